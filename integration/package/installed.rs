//! The packages on a machine: put there by its package manager, run by its systemd, changed, and taken away.

use std::{
    path::Path,
    process::Command,
    thread,
    time::{Duration, Instant},
};

use libtest_mimic::Trial;

use crate::{
    claim,
    harness::{BOUND, machine::Machine},
    made, output_of,
};

const CONFIG: &str = "/etc/tollgate/tollgate.toml";
const PACKAGE: &str = "/run/package";
const BINARY: &str = "/usr/bin/tollgate";
/// It asks nobody and ends soon.
const OWN: &str = "drain = { accept_for = \"0s\", deadline = \"1s\" }\n\
    [[listener]]\nname = \"ingest\"\nbind = \"127.0.0.1:443\"\nproxy_protocol = \"off\"\nupstream = \"nowhere\"\n\
    [[upstream]]\nname = \"nowhere\"\ntargets = [\"127.0.0.1:9\"]\n";

pub(crate) fn tests() -> Vec<Trial> {
    vec![
        claim("deb_is_installed_run_upgraded_and_purged", || whole(&DEB)),
        claim("rpm_is_installed_run_upgraded_and_erased", || whole(&RPM)),
        claim("packages_of_both_architectures_have_the_same_in_them", same),
    ]
}

/// How a package manager is spoken to. Its package is at [`PACKAGE`].
struct Manager {
    ends: &'static str,
    install: &'static str,
    upgrade: &'static str,
    remove: &'static str,
    /// The last word: also what people changed.
    purge: Option<&'static str>,
    /// Where a changed configuration is after the package was removed.
    kept: &'static str,
    completions: [&'static str; 3],
}

/// Its dependencies are this machine's, of which the other one is a copy.
const DEB: Manager = Manager {
    ends: "_amd64.deb",
    install: "dpkg --install /run/package",
    upgrade: "dpkg --install /run/package",
    remove: "dpkg --remove tollgate",
    purge: Some("dpkg --purge tollgate"),
    kept: CONFIG,
    completions: [
        "/usr/share/bash-completion/completions/tollgate",
        "/usr/share/zsh/vendor-completions/_tollgate",
        "/usr/share/fish/vendor_completions.d/tollgate.fish",
    ],
};

/// Nothing of this machine is known to rpm, so that it can find no dependency.
const RPM: Manager = Manager {
    ends: "x86_64.rpm",
    install: "rpm --install --nodeps /run/package",
    upgrade: "rpm --upgrade --force --nodeps /run/package",
    remove: "rpm --erase --nodeps tollgate",
    purge: None,
    kept: "/etc/tollgate/tollgate.toml.rpmsave",
    completions: [
        "/usr/share/bash-completion/completions/tollgate",
        "/usr/share/zsh/site-functions/_tollgate",
        "/usr/share/fish/vendor_completions.d/tollgate.fish",
    ],
};

#[track_caller]
fn exists(machine: &Machine, path: &str) -> bool {
    machine.run(&format!("test -e {path}")).code == 0
}

fn whole(manager: &Manager) {
    let mut machine = Machine::new();
    machine.boot();
    machine.copy(&made(manager.ends), PACKAGE);

    let said = machine.must(manager.install);
    assert!(said.contains("systemctl enable --now tollgate"), "{said}");
    let user = machine.must("getent passwd tollgate");
    assert!(user.contains("/var/lib/tollgate"), "{user}");
    assert_eq!(machine.run("systemctl is-active tollgate").code, 3);
    assert_eq!(
        machine.run("systemctl is-enabled tollgate").text,
        "disabled\n"
    );
    machine.must(&format!("tollgate check --config {CONFIG}"));
    documented(&machine, manager);

    // The operator makes it his own, and it runs.
    machine.write(CONFIG, OWN);
    machine.must("systemctl enable --quiet --now tollgate");
    let running = machine.property("tollgate", "MainPID");
    machine.must("tollgate usage");

    // An upgrade ends no connection, asks nothing and leaves alone what was changed.
    let said = machine.must(manager.upgrade);
    assert!(said.contains("systemctl restart tollgate"), "{said}");
    assert_eq!(machine.property("tollgate", "MainPID"), running);
    assert_eq!(machine.read(CONFIG), OWN);
    machine.must("systemctl restart tollgate");
    assert_ne!(machine.property("tollgate", "MainPID"), running);

    // Removing ends it in order.
    machine.must(manager.remove);
    gone(&machine);
    assert!(!exists(&machine, BINARY), "the binary is left");
    assert!(!exists(
        &machine,
        "/usr/lib/systemd/system/tollgate.service"
    ));
    assert_eq!(machine.read(manager.kept), OWN, "what was changed is kept");
    if let Some(purge) = manager.purge {
        machine.must(purge);
        assert!(!exists(&machine, "/etc/tollgate"), "purged is purged");
    }
    assert!(
        exists(&machine, "/var/lib/tollgate/ledger.db"),
        "the books stay"
    );
    machine.must("getent passwd tollgate");
}

/// Waits until no relay runs there.
#[track_caller]
fn gone(machine: &Machine) {
    let deadline = Instant::now() + BOUND;
    while machine.run("pgrep --exact tollgate").code == 0 {
        assert!(Instant::now() < deadline, "it goes on");
        thread::sleep(Duration::from_millis(20));
    }
}

/// Pages that man(1) has nothing to say about, and completions that shells can read.
#[track_caller]
fn documented(machine: &Machine, manager: &Manager) {
    let pages = machine.must("ls /usr/share/man/man1");
    let pages: Vec<_> = pages
        .lines()
        .filter(|page| page.starts_with("tollgate"))
        .collect();
    assert!(pages.len() > 5, "{pages:?}");
    for page in pages {
        let words = format!("man --warnings --local-file /usr/share/man/man1/{page}");
        let mut man = machine.command("env");
        man.args(["MANWIDTH=100", "LC_ALL=C.UTF-8"])
            .args(words.split(' '));
        let output = man.output().expect("man is installed");
        let warnings = String::from_utf8_lossy(&output.stderr);
        assert!(
            output.status.success() && warnings.is_empty(),
            "{page}: {warnings}"
        );
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(text.contains("SYNOPSIS"), "{page}: {text}");
    }
    let [bash, zsh, fish] = manager.completions;
    machine.must(&format!("bash -n {bash}"));
    for (path, word) in [(zsh, "#compdef tollgate"), (fish, "complete -c tollgate")] {
        let text = machine.read(path);
        assert!(text.contains(word), "{path}: {text}");
    }
}

fn same() {
    let deb = |ends| {
        let mut dpkg = Command::new("dpkg-deb");
        output_of(dpkg.arg("--contents").arg(made(ends)))
    };
    let rpm = |ends| {
        let mut rpm = Command::new("rpm");
        output_of(rpm.args(["--query", "--list", "--package"]).arg(made(ends)))
    };
    let names = |text: String| -> Vec<String> {
        let lines = text.lines();
        lines
            .filter_map(|line| Some(line.rsplit(' ').next()?.to_owned()))
            .collect()
    };
    let debs = names(deb("_amd64.deb"));
    assert!(debs.contains(&format!(".{BINARY}")), "{debs:?}");
    assert_eq!(debs, names(deb("_arm64.deb")));
    let rpms = names(rpm("x86_64.rpm"));
    assert!(rpms.iter().any(|path| Path::new(path) == Path::new(BINARY)));
    assert_eq!(rpms, names(rpm("aarch64.rpm")));
}
