//! Programs of others, on hosts of ours.

use std::{
    env, fs,
    fs::File,
    net::SocketAddr,
    path::Path,
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use crate::harness::{BOUND, netns::Host, sockets::State};

/// What is needed, and Debian's names for it.
const NEEDED: [(&str, &str); 11] = [
    ("haproxy", "haproxy"),
    ("nginx", "nginx-light"),
    ("curl", "curl"),
    ("openssl", "openssl"),
    ("prometheus", "prometheus"),
    ("promtool", "prometheus"),
    ("sqlite3", "sqlite3"),
    ("jq", "jq"),
    ("make", "make"),
    ("perl", "perl-base"),
    ("systemd-analyze", "systemd"),
];
/// Between two looks at what has no event to wait for.
const LOOK_AGAIN: Duration = Duration::from_millis(5);

/// Looks for every program.
pub(crate) fn all_there() -> Result<(), String> {
    let path = search_path();
    let there = |program: &str| {
        path.split(':')
            .any(|folder| Path::new(folder).join(program).is_file())
    };
    let missing: Vec<_> = NEEDED
        .iter()
        .filter(|(program, _)| !there(program))
        .map(|(_, package)| *package)
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    Err(format!(
        "apt-get install --no-install-recommends {}",
        missing.join(" ")
    ))
}

/// With the folders of servers, which an ordinary user's may lack.
fn search_path() -> String {
    let path = env::var("PATH").unwrap_or_default();
    format!("{path}:/usr/sbin:/sbin")
}

/// A program that will run on a host.
pub(crate) fn command(host: &Host, program: &str) -> Command {
    let mut command = host.command(program);
    command.env("PATH", search_path());
    command
}

/// One that will run on this machine, and needs no host of ours.
pub(crate) fn local(program: &str) -> Command {
    let mut command = Command::new(program);
    command.env("PATH", search_path());
    command
}

/// A server that runs until it is dropped.
#[derive(Debug)]
pub(crate) struct Server {
    child: Child,
}

impl Server {
    /// Starts it with its output in a file, and waits until it listens.
    #[track_caller]
    pub(crate) fn start(
        host: &Host,
        mut command: Command,
        output: &Path,
        listens: &[&str],
    ) -> Self {
        let file = File::create(output).expect("a folder of ours");
        let errors = file.try_clone().expect("one more descriptor");
        command.stdin(Stdio::null()).stdout(file).stderr(errors);
        let child = command
            .spawn()
            .unwrap_or_else(|error| panic!("{command:?}: {error}"));
        let mut server = Self { child };
        let wanted: Vec<SocketAddr> = listens
            .iter()
            .map(|text| text.parse().expect("an address"))
            .collect();
        let started = until(|| {
            if let Ok(Some(status)) = server.child.try_wait() {
                panic!("{command:?}: {status}\n{}", read(output));
            }
            let sockets = host.sockets();
            let listening = |address: &SocketAddr| {
                sockets
                    .iter()
                    .any(|socket| socket.state == State::Listen && socket.local == *address)
            };
            wanted.iter().all(listening).then_some(())
        });
        assert!(started.is_some(), "{command:?}\n{}", read(output));
        server
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What is in a file by now.
pub(crate) fn read(path: &Path) -> String {
    let bytes = fs::read(path).unwrap_or_default();
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Looks again and again, for a bounded time.
pub(crate) fn until<T>(mut look: impl FnMut() -> Option<T>) -> Option<T> {
    let deadline = Instant::now() + BOUND;
    loop {
        let found = look();
        if found.is_some() || Instant::now() > deadline {
            return found;
        }
        thread::sleep(LOOK_AGAIN);
    }
}
