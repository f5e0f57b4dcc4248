//! Namespaces of the program's own: `main` calls [`enter`] before it starts its first thread.
//!
//! The program starts itself again through unshare(1), with its own network, mounts and process ids, as root or, through a user namespace, as
//! an ordinary user. Inside it is process 1, so whatever kills it (or unshare, which takes it along) ends every process it started and with
//! them every namespace, interface, mount and file under /run.

use std::{env, fs, os::unix::process::CommandExt, process::Command, thread};

use tokio::signal::unix::{SignalKind, signal};

/// Set for the second start.
pub const INSIDE: &str = "TOLLGATE_LAB_INSIDE";

/// Returns inside fresh namespaces, with a private /run and lo up; outside it never returns unless it fails.
///
/// # Errors
/// One line that says what is missing and what to do about it.
pub fn enter() -> Result<(), String> {
    // The variable alone could be inherited by accident, and then a tmpfs would cover the machine's own /run.
    if env::var_os(INSIDE).is_some() && std::process::id() == 1 {
        return furnish();
    }
    let mut probe = unshare();
    probe.arg("true");
    match probe.output() {
        Ok(output) if output.status.success() => {}
        Ok(output) => {
            let said = String::from_utf8_lossy(&output.stderr);
            return Err(format!(
                "cannot make namespaces ({}): run as root, or allow user namespaces \
                 (sysctl user.max_user_namespaces=10000, and on Ubuntu kernel.apparmor_restrict_unprivileged_userns=0)",
                said.trim()
            ));
        }
        Err(error) => {
            return Err(format!(
                "cannot run unshare(1) ({error}): install util-linux"
            ));
        }
    }
    let program = env::current_exe().map_err(|error| format!("who am I? {error}"))?;
    let error = unshare()
        .arg(program)
        .args(env::args_os().skip(1))
        .env(INSIDE, "1")
        .exec();
    Err(format!("cannot run unshare(1): {error}"))
}

/// unshare(1) with all flags, the program still to be named.
pub fn unshare() -> Command {
    let mut command = Command::new("unshare");
    if !rustix::process::geteuid().is_root() {
        command.args(["--user", "--map-root-user"]);
    }
    command.args([
        "--net",
        "--mount",
        "--pid",
        "--fork",
        "--kill-child",
        "--mount-proc",
        "--",
    ]);
    command
}

fn furnish() -> Result<(), String> {
    // A private /run: `ip netns` keeps its names there, and so do we keep what must vanish with us.
    must("mount", &["-t", "tmpfs", "tmpfs", "/run"], "util-linux")?;
    fs::create_dir("/run/netns").map_err(|error| format!("cannot make /run/netns: {error}"))?;
    must("ip", &["link", "set", "lo", "up"], "iproute2")?;
    must("nsenter", &["--version"], "util-linux")?;
    end_on_signals()
}

fn must(program: &str, arguments: &[&str], package: &str) -> Result<(), String> {
    match Command::new(program).args(arguments).output() {
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => Err(format!(
            "{program} {} failed: {}",
            arguments.join(" "),
            String::from_utf8_lossy(&output.stderr).trim()
        )),
        Err(error) => Err(format!("cannot run {program} ({error}): install {package}")),
    }
}

/// Process 1 ignores every signal that it has no handler for, so Ctrl-C would do nothing.
fn end_on_signals() -> Result<(), String> {
    let wait = || -> std::io::Result<()> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        runtime.block_on(async {
            let mut interrupt = signal(SignalKind::interrupt())?;
            let mut terminate = signal(SignalKind::terminate())?;
            let mut hangup = signal(SignalKind::hangup())?;
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
                _ = hangup.recv() => {}
            }
            std::process::exit(130)
        })
    };
    thread::Builder::new()
        .name("signals".to_owned())
        .spawn(wait)
        .map(drop)
        .map_err(|error| format!("cannot start a thread: {error}"))
}
