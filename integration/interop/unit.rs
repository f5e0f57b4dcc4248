//! The unit under the service manager that it is for: judged by systemd-analyze, and run by a systemd that is booted in namespaces, with nginx behind the
//! relay and curl before it.

use libtest_mimic::Trial;

use crate::{
    claim,
    harness::{
        machine::{self, Machine},
        relay,
        unit::{PROBES, prober},
    },
    programs::{local, until},
};

const UNIT: &str = "/usr/lib/systemd/system/tollgate.service";
const SOCKET: &str = "/usr/lib/systemd/system/tollgate.socket";
/// What `systemd-analyze security` may find, in tenths.
const EXPOSURE: &str = "--threshold=15";

/// A service on a port below 1024, without waiting for a balancer at its end.
const CONFIG: &str = r#"
[drain]
accept_for = "0s"
deadline = "1s"
[ledger]
interval = "100ms"
[[listener]]
name = "ingest"
bind = "127.0.0.1:443"
proxy_protocol = "off"
upstream = "nginx"
[[upstream]]
name = "nginx"
targets = ["127.0.0.1:8080"]
"#;
const NGINX: &str = "daemon off; pid /run/nginx.pid; error_log /dev/null; events {}\n\
    http { access_log off; client_body_temp_path /run/b; proxy_temp_path /run/p; fastcgi_temp_path /run/f; uwsgi_temp_path /run/u; \
    scgi_temp_path /run/s; server { listen 127.0.0.1:8080; location / { return 200 hello; } } }\n";

pub(crate) fn tests() -> Vec<Trial> {
    vec![
        on_a_machine(
            "systemd_finds_the_unit_right_and_little_exposed",
            the_unit_is_right,
        ),
        on_a_machine(
            "the_service_runs_as_its_unit_says_and_may_do_nothing_else",
            the_service_is_shut_in,
        ),
        on_a_machine(
            "systemd_refuses_what_the_harness_refuses_in_its_place",
            systemd_refuses,
        ),
        on_a_machine(
            "a_killed_service_is_back_and_books_what_it_had_counted",
            the_service_is_back,
        ),
        on_a_machine(
            "a_service_that_does_not_turn_any_more_is_started_anew",
            the_watchdog_bites,
        ),
        on_a_machine(
            "systemctl_reload_puts_a_changed_file_into_force_and_a_wrong_one_not",
            reloads,
        ),
        on_a_machine(
            "a_mistake_in_the_configuration_is_not_tried_again",
            mistakes_end_it,
        ),
        on_a_machine(
            "install_and_uninstall_leave_nothing_but_the_configuration",
            install_and_uninstall,
        ),
    ]
}

/// Where there can be no such machine, the test is left out, and it is said why.
fn on_a_machine(name: &str, test: fn()) -> Trial {
    match machine::possible() {
        Ok(()) => claim(name, test),
        Err(why) => Trial::test(format!("{name} ({why})"), || Ok(())).with_ignored_flag(true),
    }
}

/// `make install` or `make uninstall` of the binary under test.
#[track_caller]
fn make(machine: &Machine, what: &str) {
    let mut make = local("make");
    make.current_dir(env!("CARGO_MANIFEST_DIR"))
        .args(["--silent", what])
        .arg(format!("BIN={}", relay::binary().display()))
        .arg(format!("DESTDIR={}", machine.root().display()));
    let output = make.output().expect("make is installed");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "make {what}: {said}");
}

/// A machine with the relay as `make install` puts it there.
#[track_caller]
fn installed() -> Machine {
    let machine = Machine::new();
    make(&machine, "install");
    machine.must("systemd-sysusers /usr/lib/sysusers.d/tollgate.conf");
    machine
}

/// The same one, up and running with this configuration.
#[track_caller]
fn running(config: &str) -> Machine {
    let mut machine = installed();
    machine.write("/etc/tollgate/tollgate.toml", config);
    machine.write("/etc/tollgate/nginx.conf", NGINX);
    machine.write(
        "/usr/lib/systemd/system/tollgate-nginx.service",
        "[Service]\nExecStart=nginx -c /etc/tollgate/nginx.conf\n",
    );
    machine.boot();
    machine.must("systemctl start tollgate-nginx.service");
    machine
}

/// Asks nginx through the relay, until it answers.
#[track_caller]
fn ask(machine: &Machine) {
    ask_at(machine, 443);
}

#[track_caller]
fn ask_at(machine: &Machine, port: u16) {
    let words = format!("curl --silent --show-error --max-time 10 http://127.0.0.1:{port}/");
    let mut said = String::new();
    let answered = until(|| {
        said = machine.run(&words).text;
        (said == "hello").then_some(())
    });
    assert!(answered.is_some(), "{said}");
}

fn the_unit_is_right() {
    let machine = installed();
    let text = machine.must(&format!("systemd-analyze verify --man=no {UNIT} {SOCKET}"));
    assert_eq!(text, "");
    let judged = |unit: &str| {
        let words = format!("systemd-analyze security --no-pager --offline=true {EXPOSURE} {unit}");
        machine.run(&words)
    };
    let said = judged(UNIT);
    assert_eq!(said.code, 0, "{}", said.text);
    // The judge says no where one thing less is shut.
    let text = machine.read(UNIT).replace("NoNewPrivileges=yes\n", "");
    machine.write("/run/weaker.service", &text);
    assert_ne!(judged("/run/weaker.service").code, 0);
}

/// Fields of /proc/PID/status.
fn status(machine: &Machine, pid: &str, key: &str) -> String {
    let text = machine.read(&format!("/proc/{pid}/status"));
    let line = text.lines().find_map(|line| line.strip_prefix(key));
    line.unwrap_or_default().trim().replace('\t', " ")
}

fn the_service_is_shut_in() {
    let machine = running(CONFIG);
    machine.must("systemctl start tollgate");
    assert_eq!(machine.property("tollgate", "ActiveState"), "active");
    let text = machine.property("tollgate", "StatusText");
    assert!(text.starts_with("serving"), "{text}");
    ask(&machine);

    let pid = machine.property("tollgate", "MainPID");
    let id = machine.must("id --user tollgate").trim_end().to_owned();
    assert_ne!(id, "0");
    assert_eq!(status(&machine, &pid, "Uid:"), [id.as_str(); 4].join(" "));
    for set in ["CapPrm:", "CapBnd:", "CapAmb:"] {
        // CAP_NET_BIND_SERVICE alone.
        assert_eq!(status(&machine, &pid, set), "0000000000000400", "{set}");
    }
    assert_eq!(status(&machine, &pid, "NoNewPrivs:"), "1");
    assert_eq!(status(&machine, &pid, "Seccomp:"), "2");
    let mode = |path: &str| machine.must(&format!("stat --format=%U:%a {path}"));
    assert_eq!(mode("/var/lib/tollgate"), "tollgate:750\n");
    assert_eq!(mode("/var/lib/tollgate/ledger.db"), "tollgate:640\n");
    assert_eq!(mode("/run/tollgate"), "tollgate:755\n");
    // Anybody may ask who used how much.
    let nobody = "setpriv --reuid=65534 --regid=65534 --clear-groups";
    let usage = machine.must(&format!("{nobody} tollgate usage --format csv"));
    assert!(usage.contains("direct"), "{usage}");

    // What the process itself is kept from, seen from where it is: its mounts and what may be run there.
    let within = |words: &str| {
        let mut command = machine.command("nsenter");
        command
            .arg(format!("--target={pid}"))
            .args(["--mount", "--"]);
        let output = command.args(words.split(' ')).output();
        output.expect("nsenter is installed").status.success()
    };
    assert!(!within("touch /etc/tollgate/new"), "it writes to /etc");
    assert!(
        !within("touch /var/lib/new"),
        "it writes beside its directory"
    );
    assert!(!within("id"), "it runs a program that is not its own");
    assert!(within("tollgate --version"), "it runs itself");

    machine.must("systemctl stop tollgate");
    assert_eq!(machine.property("tollgate", "Result"), "success");
    assert_eq!(machine.property("tollgate", "ExecMainStatus"), "0");
}

/// The unit with a program in it that tries.
fn systemd_refuses() {
    let mut machine = installed();
    let text = machine.read(UNIT);
    let start = "ExecStart=/usr/bin/tollgate run --config /etc/tollgate/tollgate.toml";
    assert!(text.contains(start));
    let prober_runs = "ExecStart=/usr/bin/perl /etc/tollgate/prober\nStandardOutput=file:/run/probed\nExecPaths=/usr/bin/perl";
    let text = text
        .replace(start, prober_runs)
        .replace("Type=notify\n", "Type=oneshot\n")
        .replace("Restart=on-failure\n", "");
    machine.write("/usr/lib/systemd/system/tollgate-prober.service", &text);
    machine.write("/etc/tollgate/prober", &prober());
    machine.boot();
    machine.must("systemctl start tollgate-prober");
    let probed = machine.read("/run/probed");
    let wanted: Vec<_> = PROBES.iter().map(|(_, _, wanted)| *wanted).collect();
    assert_eq!(probed.split_whitespace().collect::<Vec<_>>(), wanted);
}

fn the_service_is_back() {
    // Nothing is booked by itself: what the killed process counted is in the directory that systemd leaves in place, or nowhere.
    let machine = running(&CONFIG.replace("\"100ms\"", "\"1h\""));
    machine.must("systemctl start tollgate");
    ask(&machine);
    let before = machine.property("tollgate", "MainPID");
    machine.must("systemctl kill --signal=KILL tollgate");
    machine.wait_property("tollgate", "NRestarts", "1");
    machine.wait_property("tollgate", "SubState", "running");
    assert_ne!(machine.property("tollgate", "MainPID"), before);
    ask(&machine);
    let usage = machine.must("tollgate usage --format csv");
    let opened = usage.lines().nth(1).and_then(|line| {
        let column = usage
            .lines()
            .next()?
            .split(',')
            .position(|name| name == "opened")?;
        line.split(',').nth(column)?.parse::<u64>().ok()
    });
    assert!(opened.is_some_and(|opened| opened >= 2), "{usage}");
}

fn the_watchdog_bites() {
    let machine = running(CONFIG);
    assert!(machine.read(UNIT).contains("\nWatchdogSec=30s\n"));
    // Sooner than the unit has it, and nothing else.
    let sooner = "[Service]\nWatchdogSec=2s\n";
    machine.write(
        "/usr/lib/systemd/system/tollgate.service.d/test.conf",
        sooner,
    );
    machine.must("systemctl daemon-reload");
    machine.must("systemctl start tollgate");
    assert_eq!(machine.property("tollgate", "WatchdogUSec"), "2s");
    let fed = || machine.property("tollgate", "WatchdogTimestampMonotonic");
    for _ in 0..3 {
        let last = fed();
        assert!(
            until(|| (fed() != last).then_some(())).is_some(),
            "it is not fed"
        );
    }
    assert_eq!(machine.property("tollgate", "NRestarts"), "0");
    machine.must("systemctl kill --kill-who=main --signal=STOP tollgate");
    machine.wait_property("tollgate", "NRestarts", "1");
    machine.wait_property("tollgate", "SubState", "running");
    ask(&machine);
}

fn reloads() {
    let machine = running(CONFIG);
    machine.must("systemctl start tollgate");
    let pid = machine.property("tollgate", "MainPID");
    // One more listener, below 1024 as well: what the unit took from the process it must not need now.
    let text = CONFIG.replace(
        "\"127.0.0.1:443\"",
        "[\"127.0.0.1:443\", \"127.0.0.1:444\"]",
    );
    machine.write("/etc/tollgate/tollgate.toml", &text);
    machine.must("systemctl reload tollgate");
    ask_at(&machine, 444);
    machine.write("/etc/tollgate/tollgate.toml", "nonsense = 1\n");
    assert_ne!(machine.run("systemctl reload tollgate").code, 0);
    machine.wait_property("tollgate", "SubState", "running");
    ask_at(&machine, 444);
    ask(&machine);
    assert_eq!(machine.property("tollgate", "MainPID"), pid);
}

fn mistakes_end_it() {
    let machine = running("nonsense = 1\n");
    assert_ne!(machine.run("systemctl start tollgate").code, 0);
    assert_eq!(machine.property("tollgate", "ExecMainStatus"), "78");
    assert_eq!(machine.property("tollgate", "ActiveState"), "failed");
    assert_eq!(machine.property("tollgate", "NRestarts"), "0");
}

fn install_and_uninstall() {
    let machine = Machine::new();
    make(&machine, "install");
    machine.must("tollgate check --config /etc/tollgate/tollgate.toml");
    let own = "# mine\n";
    machine.write("/etc/tollgate/tollgate.toml", own);
    make(&machine, "install");
    assert_eq!(
        machine.read("/etc/tollgate/tollgate.toml"),
        own,
        "it is kept"
    );
    make(&machine, "uninstall");
    let mut left = machine.changes();
    left.retain(|path| machine.path(path).is_file());
    assert_eq!(left, ["/etc/tollgate/tollgate.toml"]);
}
