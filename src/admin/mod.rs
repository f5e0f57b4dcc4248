//! What the process shows of itself: `/metrics`, `/healthz`, `/readyz`, `/status`, and the health port.
//!
//! Reads snapshots and never touches a session. Everything here runs on the control thread, except the answer to a health
//! check that came to the traffic port ([`health::answer`]).

mod accounts;
mod books;
mod configured;
mod endpoints;
mod family;
pub mod health;
mod http;
mod live;
mod metrics;
mod orders;
pub mod query;
mod socket;
mod status;
mod top;
mod upstreams;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use hyper::{Method, StatusCode};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::spawn_blocking;
use tokio::time::{Instant, sleep};
use tracing::warn;

use crate::account::Books;
use crate::orders::Orders;
use crate::places::Places;
use crate::policy::tally::Tallies;
use crate::spread::Spread;
use crate::telemetry::{DroppedLines, LogLimiter};
pub use books::Booking;
pub use configured::{Configured, Reloaded, Reloads};
pub use endpoints::Connected;
use health::Readiness;
pub use http::WARNING;
use http::{Answer, Json, Requests, Text};
pub use live::{Address as LiveAddress, Asked, Live, Rates, Row, Sort};
pub use socket::Socket;
pub use top::Top;

/// Connections served at once on the admin port, and as many on the health port; further ones wait in the accept queue. Each is
/// bounded in time, so that those who dawdle cannot keep a balancer's check waiting for long.
const CONNECTIONS: usize = 1024;

/// Long answers that are made at once; who asks for another waits.
const ANSWERS: usize = 2;

/// How long accepting rests after an error.
const REST: Duration = Duration::from_millis(100);

/// What the admin side can see.
#[derive(Debug)]
pub struct View {
    /// Takes what the relay is told to do; only the socket gives orders.
    pub orders: Orders,
    /// The books.
    pub books: Arc<Books>,
    /// What a reload replaces.
    pub in_force: watch::Receiver<Arc<Configured>>,
    /// What became of reloads.
    pub reloads: Arc<Reloads>,
    /// What was used of what endpoints may.
    pub tallies: Arc<Tallies>,
    /// Whether the process should get traffic.
    pub readiness: Readiness,
    /// How many connections each worker has.
    pub spread: Arc<Spread>,
    /// Lines of the log that nobody took.
    pub dropped_lines: DroppedLines,
    /// Questions sent to name servers.
    pub dns_queries: Arc<AtomicU64>,
    /// Data workers.
    pub workers: usize,
    /// Which endpoints are shown one by one in `/metrics`.
    pub top: Top,
    /// When the process began to serve.
    pub began: Instant,
}

/// How full a listener is.
#[derive(Debug, Clone)]
pub struct Room {
    /// Whose it is.
    pub listener: Arc<str>,
    /// Addresses it listens on.
    pub addresses: Vec<SocketAddr>,
    /// Places for connections without a whole header: `max_pending`.
    pub pending: Arc<Places>,
    /// Places for sessions: `max_sessions`.
    pub sessions: Arc<Places>,
}

impl View {
    /// What is in force now.
    fn in_force(&self) -> Arc<Configured> {
        self.in_force.borrow().clone()
    }
}

/// Serves the admin port, for ever.
pub async fn serve(listener: TcpListener, view: Arc<View>) {
    let accept = || listener.accept();
    serve_each(&accept, move |(stream, _): (TcpStream, SocketAddr)| {
        let view = view.clone();
        http::serve(stream, Vec::new(), Requests::Many, move |request| {
            let view = view.clone();
            async move { answer(&view, &request.method, request.uri.path()).await }
        })
    })
    .await;
}

/// Accepts for ever, so many connections at a time.
async fn serve_each<
    C,
    A: Future<Output = io::Result<C>>,
    F: Future<Output = ()> + Send + 'static,
>(
    accept: &impl Fn() -> A,
    connection: impl Fn(C) -> F,
) {
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    let errors = LogLimiter::default();
    loop {
        let Ok(place) = places.clone().acquire_owned().await else {
            return;
        };
        match accept().await {
            Ok(accepted) => {
                let serving = connection(accepted);
                tokio::spawn(async move {
                    serving.await;
                    drop(place);
                });
            }
            Err(error) => {
                if let Some(suppressed) = errors.allow(Instant::now().into_std()) {
                    warn!(%error, suppressed, "cannot accept on the admin or health port; trying again");
                }
                sleep(REST).await;
            }
        }
    }
}

/// What anybody may ask who reaches us.
async fn answer(view: &Arc<View>, method: &Method, path: &str) -> Answer {
    if !matches!(*method, Method::GET | Method::HEAD) {
        return Answer::reading_only();
    }
    match path {
        "/metrics" => beside(view, metrics_text).await,
        "/status" => beside(view, |view| Json(status::status(view)).into()).await,
        path => health::check(path, &view.readiness),
    }
}

fn metrics_text(view: &View) -> Answer {
    match metrics::encode(view) {
        Ok(text) => Answer::metrics(text),
        Err(error) => {
            warn!(%error, "cannot encode the metrics");
            Text(StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")).into()
        }
    }
}

/// Makes a long answer in a thread of its own, a few at a time: this one has names to resolve, and 50,000 accounts take a tenth of a second.
async fn beside(view: &Arc<View>, make: impl FnOnce(&View) -> Answer + Send + 'static) -> Answer {
    static AT_ONCE: Semaphore = Semaphore::const_new(ANSWERS);
    let view = view.clone();
    // It is never closed.
    let _place = AT_ONCE.acquire().await;
    match spawn_blocking(move || make(&view)).await {
        Ok(answer) => answer,
        Err(error) => {
            warn!(%error, "an answer could not be made");
            Text(StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")).into()
        }
    }
}
