//! The relay's own process: started on a host with a configuration, watched through its log, its admin port and /proc.

use std::{
    collections::VecDeque,
    env, fs,
    io::{self, BufRead, BufReader, Read, Write},
    net::SocketAddr,
    os::unix::process::ExitStatusExt,
    path::{Path, PathBuf},
    process::{Command, ExitStatus, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

pub use rustix::process::Signal;

use super::{BOUND, agent::Agent, netns::Host, origin, unit, watched::Watched};

mod held;
mod home;
mod metrics;
mod orders;
mod process;

pub use held::Held;
pub use home::{Home, Mounted, Said};
pub use metrics::Metrics;
pub use orders::Answered;
pub use process::Baseline;

/// How many lines of a relay's log, and as many of its records, are kept.
const LOG_LINES: usize = 20_000;
/// How many of them a failed test shows.
const LOG_TAIL: usize = 60;
/// Between two looks at what has no event to wait for.
const LOOK_AGAIN: Duration = Duration::from_millis(5);

/// The binary under test: `$TOLLGATE_BIN`, or the one that cargo built beside this program.
///
/// # Panics
/// When there is none.
#[track_caller]
pub fn binary() -> PathBuf {
    if let Some(path) = env::var_os("TOLLGATE_BIN") {
        return path.into();
    }
    // Cargo tells tests and benches; an example has to look: target/debug/examples/demo beside target/debug/tollgate.
    if let Some(path) = option_env!("CARGO_BIN_EXE_tollgate") {
        return path.into();
    }
    let program = env::current_exe().expect("we run from a file");
    let mut folders = program.ancestors().skip(1);
    let found = folders.find_map(|folder| {
        let path = folder.join("tollgate");
        path.is_file().then_some(path)
    });
    found.expect("no tollgate beside this program: build it, or set TOLLGATE_BIN")
}

/// How a relay is to be started.
#[derive(Clone, Debug)]
pub struct Start {
    config: String,
    arguments: Option<Vec<String>>,
    environment: Vec<(String, String)>,
    wrapper: Vec<String>,
    binary: Option<PathBuf>,
    admin: String,
    wait_ready: bool,
    etc: Vec<(&'static str, String)>,
    home: Option<Home>,
}

impl Start {
    /// With this configuration. `@DIR@` in it stands for a directory of the relay's own, which goes with it.
    pub fn with(config: &str) -> Self {
        Self {
            config: config.to_owned(),
            arguments: None,
            environment: Vec::new(),
            wrapper: Vec::new(),
            binary: None,
            admin: "127.0.0.1:9900".to_owned(),
            wait_ready: true,
            etc: Vec::new(),
            home: None,
        }
    }

    /// Changes the configuration's text, for those that are shipped.
    ///
    /// # Panics
    /// When `from` does not occur: a replacement that replaces nothing tests something else than it says.
    #[track_caller]
    #[must_use]
    pub fn replace(mut self, from: &str, to: &str) -> Self {
        assert!(self.config.contains(from), "{from:?} is not in it");
        self.config = self.config.replace(from, to);
        self
    }

    /// The configuration's text as it is by now.
    pub fn text(&self) -> &str {
        &self.config
    }

    /// Arguments in place of `run --config FILE`; `@DIR@` and `@CONFIG@` are filled in.
    #[must_use]
    pub fn arguments(mut self, arguments: &[&str]) -> Self {
        self.arguments = Some(owned(arguments));
        self
    }

    /// Sets a variable of its environment.
    #[must_use]
    pub fn env(mut self, key: &str, value: &str) -> Self {
        self.environment.push((key.to_owned(), value.to_owned()));
        self
    }

    /// Starts it through a program that sets something up and then becomes it: `["prlimit", "--nofile=64"]`, `["setpriv", "--reuid=65534"]`.
    #[must_use]
    pub fn through(mut self, wrapper: &[&str]) -> Self {
        self.wrapper = owned(wrapper);
        self
    }

    /// With an `/etc` of its own, in which there are only a `resolv.conf` and a `hosts`. See [`Relay::rewrite_etc`].
    #[must_use]
    pub fn etc(mut self, resolv_conf: &str, hosts: &str) -> Self {
        self.etc = vec![
            ("resolv.conf", resolv_conf.to_owned()),
            ("hosts", hosts.to_owned()),
            ("machine-id", format!("{:032x}\n", 0xe7c)),
        ];
        let become_it = "mount --bind @DIR@/etc /etc && exec \"$0\" \"$@\"";
        self.through(&["unshare", "--mount", "sh", "-c", become_it])
    }

    /// In directories that are there already, and stay: those of a relay that ran before, or of one that runs.
    #[must_use]
    pub fn at(mut self, home: &Home) -> Self {
        self.home = Some(home.clone());
        self
    }

    /// Another binary than the one under test.
    #[must_use]
    pub fn binary(mut self, path: &Path) -> Self {
        self.binary = Some(path.to_owned());
        self
    }

    /// Where its admin port is, if not at 127.0.0.1:9900.
    #[must_use]
    pub fn admin(mut self, address: &str) -> Self {
        self.admin = address.to_owned();
        self
    }

    /// Does not wait until it is ready: for one that is not to become so.
    #[must_use]
    pub fn without_waiting(mut self) -> Self {
        self.wait_ready = false;
        self
    }

    /// Starts it on `host` and waits until `/readyz` says 200.
    ///
    /// # Panics
    /// When it ends or is not ready in time; its log is shown.
    #[track_caller]
    pub fn on(self, host: &Host) -> Relay {
        Relay::start(self, host)
    }
}

fn owned(texts: &[&str]) -> Vec<String> {
    texts.iter().map(|text| (*text).to_owned()).collect()
}

#[derive(Debug, Default)]
struct Log {
    lines: VecDeque<String>,
}

/// A relay that runs until it is dropped; then it is killed. If the test fails, the tail of its log is printed.
#[derive(Debug)]
pub struct Relay {
    host: Host,
    id: u32,
    admin: SocketAddr,
    log: Arc<Watched<Log>>,
    records: Arc<Watched<Log>>,
    exit: Arc<Watched<Option<ExitStatus>>>,
    home: Home,
    /// Once is enough.
    tail_shown: AtomicBool,
}

impl Relay {
    #[track_caller]
    fn start(start: Start, host: &Host) -> Self {
        let home = start.home.unwrap_or_default();
        home.configure(&start.config);
        let arguments = start
            .arguments
            .unwrap_or_else(|| owned(&["run", "--config", "@CONFIG@"]));
        let binary = start.binary.unwrap_or_else(binary);
        let wrapper = start.wrapper.into_iter();
        let mut words: Vec<_> = wrapper.map(|text| home.fill(&text)).collect();
        for (name, text) in start.etc {
            fs::write(home.path().join("etc").join(name), text).expect("/run is ours");
        }
        words.extend(unit::words());
        words.push(binary.to_str().expect("cargo's paths are text").to_owned());
        words.extend(arguments.iter().map(|text| home.fill(text)));
        let mut command = host.command(&words[0]);
        home.environment(&mut command);
        command
            .args(&words[1..])
            .envs(start.environment)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let (id, [records, log], exit) = watch(&mut command);
        let relay = Self {
            host: host.clone(),
            id,
            admin: origin::parse(&start.admin),
            log,
            records,
            exit,
            home,
            tail_shown: AtomicBool::new(false),
        };
        if start.wait_ready {
            relay.wait_ready();
        }
        relay
    }

    /// Where it runs.
    pub fn host(&self) -> &Host {
        &self.host
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.id
    }

    /// The directory of its own: configuration, `run/`, `state/` and `etc/`.
    pub fn folder(&self) -> &Path {
        self.home.path()
    }

    /// The same, to start another relay in them or to ask for what is in them.
    pub fn home(&self) -> &Home {
        &self.home
    }

    /// Runs a command of the binary where the relay runs, with its directories. See [`Home::tollgate`].
    #[track_caller]
    pub fn tollgate(&self, arguments: &[&str]) -> Said {
        self.home.tollgate(&self.host, arguments)
    }

    /// Kills it, as the kernel does when memory is short, and waits for its end.
    #[track_caller]
    pub fn kill(&self) {
        self.signal(Signal::KILL);
        self.wait_exit();
    }

    /// Writes its configuration anew, for a reload; `@DIR@` is filled in.
    pub fn rewrite_config(&self, text: &str) {
        self.home.configure(text);
    }

    /// Puts another file in the place of one in its own `/etc`, at once, as those do who know that others read it.
    pub fn rewrite_etc(&self, name: &str, text: &str) {
        let folder = self.home.path();
        fs::write(folder.join("new"), text).expect("/run is ours");
        fs::rename(folder.join("new"), folder.join("etc").join(name)).expect("/run is ours");
    }

    /// Waits until `/readyz` says 200.
    #[track_caller]
    pub fn wait_ready(&self) {
        self.wait_until("readyz to say 200", || {
            assert!(
                self.exit.look(Option::is_none),
                "the relay ended before it was ready:\n{}",
                self.tail()
            );
            matches!(self.try_get("/readyz"), Ok((200, _)))
        });
    }

    /// Waits until a line of its log contains `text`, and returns the first such line.
    #[track_caller]
    pub fn wait_log(&self, text: &str) -> String {
        self.log
            .wait(&format!("a log line with {text:?}"), BOUND, |log| {
                log.lines.iter().find(|line| line.contains(text)).cloned()
            })
    }

    /// The lines of its log so far that contain `text`.
    pub fn log_lines(&self, text: &str) -> Vec<String> {
        self.log.look(|log| {
            let lines = log.lines.iter().filter(|line| line.contains(text));
            lines.cloned().collect()
        })
    }

    /// What it wrote to standard output so far, line by line: the records of the audit trail, or what a command answers.
    pub fn records(&self) -> Vec<String> {
        self.records.look(|log| log.lines.iter().cloned().collect())
    }

    /// Asks its admin port; status and body.
    #[track_caller]
    pub fn get(&self, path: &str) -> (u16, String) {
        match self.try_get(path) {
            Ok(answer) => answer,
            Err(error) => panic!("GET {path} of {}: {error}\n{}", self.admin, self.tail()),
        }
    }

    /// As [`get`](Self::get), for a relay that may not answer.
    pub fn try_get(&self, path: &str) -> io::Result<(u16, String)> {
        self.host.run(http_get(self.admin, path.to_owned()))
    }

    /// Its `/metrics` as they are now.
    #[track_caller]
    pub fn metrics(&self) -> Metrics {
        let (status, text) = self.get("/metrics");
        assert_eq!(status, 200, "/metrics");
        Metrics::parse(&text)
    }

    /// The sum of all series of that name which have these labels; 0 without any.
    #[track_caller]
    pub fn metric(&self, name: &str, labels: &[(&str, &str)]) -> u64 {
        self.metrics().sum(name, labels)
    }

    /// Waits until that sum is `wanted`.
    #[track_caller]
    pub fn wait_metric(&self, name: &str, labels: &[(&str, &str)], wanted: u64) {
        let mut last = 0;
        let became = self.becomes_true(BOUND, || {
            last = self.metric(name, labels);
            last == wanted
        });
        assert!(
            became,
            "waited {BOUND:?} for {name}{labels:?} to be {wanted}, but it is {last}:\n{}",
            self.get("/metrics").1
        );
    }

    /// Its `/status`.
    #[track_caller]
    pub fn status(&self) -> serde_json::Value {
        let (status, text) = self.get("/status");
        assert_eq!(status, 200, "/status: {text}");
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("/status: {error}: {text}"))
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) {
        let id = i32::try_from(self.id).ok();
        if let Some(id) = id.and_then(rustix::process::Pid::from_raw)
            && self.exit.look(Option::is_none)
        {
            // It may have gone in this very moment.
            let _ = rustix::process::kill_process(id, signal);
        }
    }

    /// Waits until it ends and returns its exit code, or 128 and the signal that killed it.
    #[track_caller]
    pub fn wait_exit(&self) -> i32 {
        self.wait_exit_within(BOUND)
    }

    /// As [`wait_exit`](Self::wait_exit), with a bound of the caller's.
    #[track_caller]
    pub fn wait_exit_within(&self, bound: Duration) -> i32 {
        let status = self.exit.wait("the relay to end", bound, |exit| *exit);
        let by_signal = || 128 + status.signal().unwrap_or(0);
        status.code().unwrap_or_else(by_signal)
    }

    /// Whether it still runs.
    pub fn is_running(&self) -> bool {
        self.exit.look(Option::is_none)
    }

    /// Looks again and again until `done`, for what has no event.
    ///
    /// # Panics
    /// When it takes too long; the tail of the log is shown.
    #[track_caller]
    pub fn wait_until(&self, what: &str, done: impl FnMut() -> bool) {
        let became = self.becomes_true(BOUND, done);
        assert!(became, "waited {BOUND:?} for {what}\n{}", self.tail());
    }

    fn becomes_true(&self, bound: Duration, mut done: impl FnMut() -> bool) -> bool {
        let deadline = Instant::now() + bound;
        while !done() {
            if Instant::now() > deadline {
                return false;
            }
            thread::sleep(LOOK_AGAIN);
        }
        true
    }

    /// Its last lines, for whoever reports a failure.
    fn tail(&self) -> String {
        self.tail_shown.store(true, Ordering::Relaxed);
        self.log.look(|log| {
            let from = log.lines.len().saturating_sub(LOG_TAIL);
            let lines: Vec<&str> = log.lines.range(from..).map(String::as_str).collect();
            format!("--- the relay's last lines\n{}\n---", lines.join("\n"))
        })
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        if thread::panicking() && !self.tail_shown.load(Ordering::Relaxed) {
            let _ = writeln!(io::stderr(), "{}: {}", self.host.namespace(), self.tail());
        }
        self.signal(Signal::KILL);
        if !thread::panicking() {
            self.exit.wait("a killed relay to end", BOUND, |exit| *exit);
        }
    }
}

type Watching = (
    u32,
    [Arc<Watched<Log>>; 2],
    Arc<Watched<Option<ExitStatus>>>,
);

/// Starts a command, with one thread for each of its outputs, standard output first, and one for its end.
#[track_caller]
fn watch(command: &mut Command) -> Watching {
    let mut child = command
        .spawn()
        .unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let id = child.id();
    let lines = [(), ()].map(|()| Arc::new(Watched::<Log>::default()));
    let stdout = child
        .stdout
        .take()
        .map(|out| Box::new(out) as Box<dyn Read + Send>);
    let stderr = child
        .stderr
        .take()
        .map(|out| Box::new(out) as Box<dyn Read + Send>);
    let readers: Vec<_> = [stdout, stderr]
        .into_iter()
        .zip(&lines)
        .filter_map(|(output, lines)| Some((output?, Arc::clone(lines))))
        .map(|(output, lines)| thread::spawn(move || collect(output, &lines)))
        .collect();
    let exit = Arc::new(Watched::default());
    let exited = Arc::clone(&exit);
    thread::spawn(move || {
        let status = child.wait().expect("a child can be waited for");
        // What it wrote last is read before its end is known. Bounded: its own children might hold the pipes.
        let deadline = Instant::now() + Duration::from_secs(1);
        while readers.iter().any(|reader| !reader.is_finished()) && Instant::now() < deadline {
            thread::sleep(LOOK_AGAIN);
        }
        exited.update(|exit| *exit = Some(status));
    });
    (id, lines, exit)
}

fn collect(output: Box<dyn Read + Send>, log: &Watched<Log>) {
    let mut output = BufReader::new(output);
    let mut line = Vec::new();
    while let Ok(1..) = output.read_until(b'\n', &mut line) {
        let text = String::from_utf8_lossy(&line).trim_end().to_owned();
        line.clear();
        log.update(|log| {
            if log.lines.len() == LOG_LINES {
                log.lines.pop_front();
            }
            log.lines.push_back(text);
        });
    }
}

/// Asks an HTTP server for a path; status and body.
pub async fn http_get(address: SocketAddr, path: String) -> io::Result<(u16, String)> {
    let mut agent = Agent::connect(address).await?;
    let request = format!("GET {path} HTTP/1.0\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    agent.write(request.as_bytes()).await?;
    let (answer, _) = agent.read_to_end().await?;
    let answer = String::from_utf8(answer).map_err(io::Error::other)?;
    let (head, body) = answer
        .split_once("\r\n\r\n")
        .ok_or_else(|| io::Error::other(format!("no HTTP: {answer:?}")))?;
    let status = head.split(' ').nth(1).and_then(|code| code.parse().ok());
    let status = status.ok_or_else(|| io::Error::other(format!("no status: {head:?}")))?;
    Ok((status, body.to_owned()))
}
