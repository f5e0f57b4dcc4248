//! The static binaries: that they need nothing, and that they run, the one for the other architecture under an emulator.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use libtest_mimic::Trial;
use tempfile::TempDir;

use crate::{
    claim,
    harness::{BOUND, netns::Lab},
    made, output_of,
};

/// qemu's name for the other architecture's emulator, and Debian's package of it.
const EMULATOR: &str = "qemu-aarch64-static";
const HELLO: &str = "hello from behind the relay\n";

pub(crate) fn tests() -> Vec<Trial> {
    vec![
        claim(
            "static_binaries_need_no_library_and_no_loader",
            static_indeed,
        ),
        claim("the_binary_of_this_architecture_relays", || {
            relays(&binary("x86_64"), &[]);
        }),
        claim("the_binary_for_aarch64_relays_under_an_emulator", || {
            relays(&binary("aarch64"), &[EMULATOR]);
        }),
    ]
}

pub(crate) fn binary(arch: &str) -> PathBuf {
    made(&format!("-{arch}"))
}

fn static_indeed() {
    for (arch, machine) in [("x86_64", "X86-64"), ("aarch64", "AArch64")] {
        let mut readelf = Command::new("readelf");
        readelf.args(["--wide", "--file-header", "--program-headers", "--dynamic"]);
        let text = output_of(readelf.arg(binary(arch)));
        assert!(text.contains(machine), "{text}");
        assert!(
            !text.contains("INTERP") && !text.contains("(NEEDED)"),
            "{text}"
        );
    }
}

struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A relay of its own between curl and nginx, on ports of our own network namespace; one request through it, and what it booked.
fn relays(binary: &Path, through: &[&str]) {
    // Its own /etc and network, so that both tests may run at once.
    let folder = TempDir::new_in("/run").expect("/run is ours");
    let at = |name: &str| folder.path().join(name).display().to_string();
    let config = format!(
        "state_dir = \"{}\"\nrun_dir = \"{}\"\n[ledger]\ninterval = \"100ms\"\n[audit]\nsink = \"off\"\n[admin]\nbind = \"127.0.0.1:9900\"\n\
         [[listener]]\nname = \"l\"\nbind = \"127.0.0.1:8443\"\nproxy_protocol = \"off\"\nupstream = \"u\"\n\
         [[upstream]]\nname = \"u\"\ntargets = [\"127.0.0.1:8080\"]\n",
        at("state"),
        at("run"),
    );
    for name in ["state", "run"] {
        fs::create_dir(at(name)).expect("/run is ours");
    }
    fs::write(at("config"), config).expect("/run is ours");
    let nginx = format!(
        "daemon off; pid {0}/pid; error_log {0}/log; events {{}} http {{ access_log off; client_body_temp_path {0}/b; proxy_temp_path {0}/p; \
         fastcgi_temp_path {0}/f; uwsgi_temp_path {0}/u; scgi_temp_path {0}/s; server {{ listen 127.0.0.1:8080; location / {{ return 200 \"{1}\"; }} }} }}",
        folder.path().display(),
        HELLO.trim_end().to_owned() + "\\n",
    );
    fs::write(at("nginx"), nginx).expect("/run is ours");
    let lab = Lab::new("static");
    let host = lab.host("relay");
    let start = |words: &[&str]| {
        let mut command = host.command(words[0]);
        command
            .args(&words[1..])
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
        command.stdin(Stdio::null()).stdout(Stdio::null());
        let log = fs::File::options()
            .create(true)
            .append(true)
            .open(at("log"));
        Running(
            command
                .stderr(log.expect("/run is ours"))
                .spawn()
                .expect("it runs"),
        )
    };
    let _nginx = start(&["nginx", "-c", &at("nginx")]);
    let config = at("config");
    let binary = binary.to_str().expect("cargo's paths are text");
    let words = [through, &[binary]].concat();
    let mut relay = start(&[&words[..], &["run", "--config", &config]].concat());
    let deadline = Instant::now() + BOUND;
    loop {
        let mut curl = host.command("curl");
        curl.args(["--silent", "--max-time", "10", "http://127.0.0.1:8443/"]);
        let output = curl.output().expect("curl is installed");
        if output.stdout == HELLO.as_bytes() {
            break;
        }
        let log = fs::read_to_string(at("log")).unwrap_or_default();
        assert!(matches!(relay.0.try_wait(), Ok(None)), "it ended: {log}");
        assert!(Instant::now() < deadline, "{log}");
        thread::sleep(Duration::from_millis(20));
    }
    let mut usage = host.command(words[0]);
    usage
        .args(&words[1..])
        .args(["usage", "--config", &config, "--format", "csv"]);
    let said = output_of(&mut usage);
    let row = said.lines().nth(1).unwrap_or_default();
    assert!(row.contains("direct"), "{said}");
}
