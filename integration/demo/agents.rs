//! Agents in the consumers' VPCs: they push this machine's own metrics over HTTP and log lines over TLS, and count what they sent and read.

use std::{
    fmt, fs, io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::TcpStream,
    task::JoinHandle,
    time::{sleep, timeout},
};
use tokio_rustls::{
    TlsConnector,
    rustls::{ClientConfig, pki_types::ServerName},
};
use tokio_util::sync::CancellationToken;

use crate::{
    control_plane::CONSUMER,
    counted::{Counted, Tally},
    harness::{netns::Host, stream::within},
};

/// How many pushes a connection carries before the agent opens another.
const PUSHES: u32 = 8;
/// How long one push, or a connect, or a close, may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// Between a failure and the next try.
const RETRY: Duration = Duration::from_millis(500);
/// How many log lines go into one push.
const LINES: usize = 20;
/// Where a machine keeps logs that anyone may read; those that are there are pushed.
const LOGS: [&str; 4] = [
    "/var/log/syslog",
    "/var/log/messages",
    "/var/log/dpkg.log",
    "/var/log/alternatives.log",
];
/// What is read for metrics.
const PROC: [&str; 5] = ["loadavg", "meminfo", "stat", "vmstat", "uptime"];

/// What the agents of one consumer counted.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    pub(crate) bytes: Arc<Tally>,
    connections: AtomicU64,
    pushes: AtomicU64,
    failures: AtomicU64,
}

impl Counts {
    pub(crate) fn connections(&self) -> u64 {
        self.connections.load(Ordering::Relaxed)
    }

    pub(crate) fn pushes(&self) -> u64 {
        self.pushes.load(Ordering::Relaxed)
    }

    pub(crate) fn failures(&self) -> u64 {
        self.failures.load(Ordering::Relaxed)
    }
}

/// What an agent pushes, and how.
#[derive(Clone)]
pub(crate) enum Signal {
    /// Metrics over HTTP.
    Metrics,
    /// Log lines over TLS.
    Logs {
        tls: Arc<ClientConfig>,
        lines: Arc<Vec<String>>,
    },
}

impl fmt::Display for Signal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Metrics => "metrics",
            Self::Logs { .. } => "logs",
        })
    }
}

/// One agent, to be started.
#[derive(Clone)]
pub(crate) struct Agent {
    pub(crate) consumer: &'static str,
    pub(crate) signal: Signal,
    /// The endpoint's interface in the consumer's VPC.
    pub(crate) endpoint: SocketAddr,
    /// The name under which the endpoint is known there.
    pub(crate) name: &'static str,
    pub(crate) every: Duration,
    pub(crate) counts: Arc<Counts>,
}

/// An agent at work.
pub(crate) struct Running {
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl Running {
    /// Asks it to end its push and to close in order.
    pub(crate) fn stop(&self) {
        self.stop.cancel();
    }

    /// Waits for that; false when it took too long and was cut off.
    pub(crate) fn ended(mut self, host: &Host) -> bool {
        host.run(async move {
            let ended = timeout(3 * PATIENCE, &mut self.task).await.is_ok();
            self.task.abort();
            ended
        })
    }

    /// Ends it as kill -9 would: its sockets are closed by the kernel, whatever is on its way.
    pub(crate) fn kill(self) {
        self.task.abort();
    }
}

impl Agent {
    pub(crate) fn start(self, host: &Host) -> Running {
        let stop = CancellationToken::new();
        let task = host.spawn(self.run(stop.clone()));
        Running { stop, task }
    }

    async fn run(self, stop: CancellationToken) {
        let mut number = 0;
        while !stop.is_cancelled() {
            if self.connection(&stop, &mut number).await.is_err() {
                self.counts.failures.fetch_add(1, Ordering::Relaxed);
                stop.run_until_cancelled(sleep(RETRY)).await;
            }
        }
    }

    async fn connection(&self, stop: &CancellationToken, number: &mut usize) -> io::Result<()> {
        let stream = within(PATIENCE, TcpStream::connect(self.endpoint)).await?;
        stream.set_nodelay(true)?;
        self.counts.connections.fetch_add(1, Ordering::Relaxed);
        let stream = Counted::new(stream, Arc::clone(&self.counts.bytes));
        match &self.signal {
            Signal::Metrics => self.push_all(stream, stop, number).await,
            Signal::Logs { tls, .. } => {
                let name = ServerName::try_from(self.name).map_err(io::Error::other)?;
                let connect = TlsConnector::from(Arc::clone(tls)).connect(name, stream);
                let stream = within(PATIENCE, connect).await?;
                self.push_all(stream, stop, number).await
            }
        }
    }

    async fn push_all<S>(
        &self,
        mut stream: S,
        stop: &CancellationToken,
        number: &mut usize,
    ) -> io::Result<()>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        for _ in 0..PUSHES {
            *number += 1;
            within(PATIENCE, self.push(&mut stream, *number)).await?;
            self.counts.pushes.fetch_add(1, Ordering::Relaxed);
            if stop.run_until_cancelled(sleep(self.every)).await.is_none() {
                break;
            }
        }
        within(PATIENCE, async {
            stream.shutdown().await?;
            // Nothing comes any more but the other end's close.
            while stream.read(&mut [0; 1024]).await? > 0 {}
            Ok(())
        })
        .await
    }

    async fn push<S>(&self, stream: &mut S, number: usize) -> io::Result<()>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let body = match &self.signal {
            Signal::Metrics => metrics(),
            Signal::Logs { lines, .. } => some_of(lines, number),
        };
        let request = format!(
            "POST /v1/{} HTTP/1.1\r\nHost: {}\r\n{CONSUMER}: {}\r\nContent-Length: {}\r\n\r\n{body}",
            self.signal,
            self.name,
            self.consumer,
            body.len()
        );
        stream.write_all(request.as_bytes()).await?;
        stream.flush().await?;
        answer(stream).await
    }
}

/// Reads one answer to its end; only a 200 is success.
async fn answer(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<()> {
    let mut bytes = Vec::new();
    loop {
        if stream.read_buf(&mut bytes).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let text = String::from_utf8_lossy(&bytes);
        let Some((head, body)) = text.split_once("\r\n\r\n") else {
            continue;
        };
        if !head.starts_with("HTTP/1.1 200") {
            return Err(io::Error::other(head.to_owned()));
        }
        let length = head.lines().find_map(|line| {
            let (key, value) = line.split_once(':')?;
            key.eq_ignore_ascii_case("content-length")
                .then(|| value.trim().parse::<usize>().ok())?
        });
        if body.len() >= length.unwrap_or(0) {
            return Ok(());
        }
    }
}

/// What /proc says at this moment.
fn metrics() -> String {
    let mut text = String::new();
    for file in PROC {
        // Some machines hide some of them.
        if let Ok(content) = fs::read_to_string(format!("/proc/{file}")) {
            text.push_str("# ");
            text.push_str(file);
            text.push('\n');
            text.push_str(&content);
        }
    }
    text
}

/// The machine's own log lines, as far as they may be read, and the files they are from.
pub(crate) fn log_lines() -> (Vec<String>, Vec<&'static str>) {
    let mut lines = Vec::new();
    let mut files = Vec::new();
    for file in LOGS {
        let Ok(bytes) = fs::read(file) else {
            continue;
        };
        let tail = &bytes[bytes.len().saturating_sub(64 * 1024)..];
        let before = lines.len();
        lines.extend(String::from_utf8_lossy(tail).lines().map(str::to_owned));
        if lines.len() > before {
            files.push(file);
        }
    }
    (lines, files)
}

fn some_of(lines: &[String], number: usize) -> String {
    let from = (number * LINES) % lines.len().max(1);
    let lines = lines.iter().cycle().skip(from).take(LINES);
    lines.flat_map(|line| [line.as_str(), "\n"]).collect()
}
