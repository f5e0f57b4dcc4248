//! Answers to "are you alive" and "should you get traffic".
//!
//! Deliberately shallow: a target that the balancer takes for unhealthy has all its connections reset, so neither answer depends
//! on an upstream, unless the operator names some (`[health] fail_without`).

use std::sync::Arc;
use std::time::Duration;

use hyper::StatusCode;
use std::net::SocketAddr;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::time::timeout;

use super::Booking;
use super::http::{self, Answer, Requests, Text};
use crate::config::{CrcPolicy, Peers};
use crate::drain::Stand;
use crate::proxy_protocol::decode::{Rules, decode};
use crate::upstream::Upstream;

/// What the answers are made from.
#[derive(Debug, Clone)]
pub struct Readiness {
    /// How far the process is on its way out.
    pub stand: watch::Receiver<Stand>,
    /// Upstreams without whose usable addresses there should be no traffic.
    pub needed: watch::Receiver<Arc<[Arc<Upstream>]>>,
    /// How the books are kept.
    pub booking: Booking,
}

impl Readiness {
    /// Whether the balancer should send traffic here, and what to say to it.
    fn now(&self) -> (bool, String) {
        let phase = self.stand.borrow().phase;
        if !phase.is_ready() {
            return (false, phase.name().to_owned());
        }
        let needed = self.needed.borrow().clone();
        let mut needed = needed.iter();
        if let Some(upstream) = needed.find(|upstream| !upstream.snapshot().usable) {
            return (false, format!("no address of {} is usable", upstream.name));
        }
        match self.booking.trouble() {
            Some((true, why)) => (false, why),
            // Said, and no reason: what memory holds is not lost, and another target would have a disk of its own.
            Some((false, why)) => (true, format!("{}; {why}", phase.name())),
            None => (true, phase.name().to_owned()),
        }
    }
}

/// Longest wait for a health check to say what it wants.
const PATIENCE: Duration = Duration::from_secs(2);

/// Longest life of a health check's connection: NLB waits for an answer 10 s at most by default.
const CHECK: Duration = Duration::from_secs(5);

/// A header in front of a health check is skipped, whatever it says.
const RULES: Rules = Rules {
    max_header: 4096,
    crc: CrcPolicy::Ignore,
};

/// Answers a health check that came to the traffic port, behind its LOCAL header: as `/readyz` would, whatever the path. One that
/// sends nothing (a TCP check) gets nothing. `sent` was read already.
pub async fn answer(client: TcpStream, sent: Vec<u8>, readiness: Readiness) {
    let serving = http::serve(client, sent, Requests::One, move |_| {
        std::future::ready(ready(&readiness))
    });
    let _ = timeout(CHECK, serving).await; // a checker that dawdles is not our trouble
}

/// The answer for a path of the health and admin ports.
pub(super) fn check(path: &str, readiness: &Readiness) -> Answer {
    match path {
        "/healthz" => Text(StatusCode::OK, "alive\n".to_owned()).into(),
        "/readyz" => ready(readiness),
        _ => Text(
            StatusCode::NOT_FOUND,
            "/healthz, /readyz; /metrics and /status on the admin port\n".to_owned(),
        )
        .into(),
    }
}

fn ready(readiness: &Readiness) -> Answer {
    let (ready, why) = readiness.now();
    let status = match ready {
        true => StatusCode::OK,
        false => StatusCode::SERVICE_UNAVAILABLE,
    };
    Text(status, format!("{why}\n")).into()
}

/// Serves the health port, for ever: requests with or without a PROXY protocol header in front.
pub async fn serve(listener: TcpListener, trusted: Peers, readiness: Readiness) {
    let trusted = Arc::new(trusted);
    let accept = || listener.accept();
    super::serve_each(
        &accept,
        move |(mut stream, peer): (TcpStream, SocketAddr)| {
            let (trusted, readiness) = (trusted.clone(), readiness.clone());
            async move {
                if !trusted.contains(crate::leg::canonical(peer).ip()) {
                    return; // closed at once, unread
                }
                if let Ok(Some(request)) = timeout(PATIENCE, skip_header(&mut stream)).await {
                    let serving = http::serve(stream, request, Requests::One, |request| {
                        std::future::ready(check(request.uri.path(), &readiness))
                    });
                    let _ = timeout(CHECK, serving).await; // a checker that dawdles is not our trouble
                }
            }
        },
    )
    .await;
}

/// What follows the header, or everything where there is none; `None` when the connection ended first.
async fn skip_header(stream: &mut TcpStream) -> Option<Vec<u8>> {
    use tokio::io::AsyncReadExt;
    let mut read = Vec::with_capacity(1024);
    loop {
        match decode(&read, RULES) {
            Ok(Some(header)) => return Some(read.split_off(header.len)),
            Ok(None) => {}
            Err(_) => return Some(read),
        }
        let room = RULES.max_header + 1024 - read.len();
        if (&mut *stream)
            .take(room as u64)
            .read_buf(&mut read)
            .await
            .ok()?
            == 0
        {
            return None;
        }
    }
}
