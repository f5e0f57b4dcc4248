//! Where connections go: a named group of targets, resolved in the background, never per connection.
//!
//! The control thread keeps each target's addresses fresh ([`resolver`], by the decisions of [`addresses`]) and publishes them as
//! one immutable list per upstream; workers take addresses from it in turn and dial ([`connect`]).

pub mod addresses;
pub mod connect;
pub mod probe;
pub mod resolver;

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use prometheus::Histogram;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use crate::config;

/// Upper ends of the connect histogram's buckets, in seconds: a zone, a Region next door, the other side of the world, lost SYNs.
const CONNECT_BUCKETS: [f64; 12] = [
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0,
];

/// One upstream, as workers and the admin side see it.
#[derive(Debug)]
pub struct Upstream {
    /// Its name in the configuration.
    pub name: Arc<str>,
    /// Longest wait for one address.
    pub connect_timeout: Duration,
    /// Longest wait over all addresses of one session.
    pub connect_deadline: Duration,
    /// Time from SYN to SYN-ACK of connections that were made.
    pub connect_seconds: Histogram,
    published: watch::Sender<Published>,
    /// A worker could not connect: look the names up again.
    refresh: Notify,
    targets: Mutex<Vec<TargetState>>,
}

/// What workers see of an upstream's addresses.
#[derive(Debug, Clone, Default)]
pub struct Published {
    /// Every target was looked up at least once, with whatever outcome.
    pub looked_up: bool,
    /// In the order of the targets; each once.
    pub addresses: Arc<[SocketAddr]>,
}

/// What is known of one target: for `/status` and `/metrics`.
#[derive(Debug, Clone)]
pub struct TargetState {
    /// `host:port` as configured.
    pub target: String,
    /// Its addresses in use.
    pub addresses: Vec<SocketAddr>,
    /// Looked up at least once.
    pub looked_up: bool,
    /// When the last good answer came; never for literal addresses.
    pub answered: Option<Instant>,
    /// When it is looked up next.
    pub next: Option<Instant>,
    /// Why the last look-up failed, while it is the last good answer that serves.
    pub failure: Option<String>,
}

impl Upstream {
    /// An upstream whose literal targets are known and whose names are yet to be looked up.
    ///
    /// # Panics
    /// Never: the histogram's buckets are constant and in order.
    #[must_use]
    pub fn new(config: &config::Upstream) -> Self {
        let options = prometheus::HistogramOpts::new(
            "tollgate_upstream_connect_seconds",
            "Time from SYN to SYN-ACK of connections made to an upstream.",
        );
        let options = options
            .const_label("upstream", &*config.name)
            .buckets(CONNECT_BUCKETS.to_vec());
        let targets = config.targets.iter().map(|target| {
            let literal = match &target.host {
                config::Host::Literal(ip) => Some(SocketAddr::new(*ip, target.port)),
                config::Host::Name(_) => None,
            };
            TargetState {
                target: target.to_string(),
                addresses: literal.into_iter().collect(),
                looked_up: literal.is_some(),
                answered: None,
                next: None,
                failure: None,
            }
        });
        let upstream = Self {
            name: config.name.clone(),
            connect_timeout: config.connect_timeout,
            connect_deadline: config.connect_deadline,
            connect_seconds: Histogram::with_opts(options).expect("constant buckets in order"),
            published: watch::Sender::default(),
            refresh: Notify::new(),
            targets: Mutex::new(targets.collect()),
        };
        upstream.publish();
        upstream
    }

    /// The addresses as they are now.
    #[must_use]
    pub fn addresses(&self) -> Arc<[SocketAddr]> {
        self.published.borrow().addresses.clone()
    }

    /// What is known of each target.
    #[must_use]
    pub fn targets(&self) -> Vec<TargetState> {
        self.targets
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Records what became of looking a target up, and publishes the list anew.
    fn update(&self, target: usize, update: impl FnOnce(&mut TargetState)) {
        update(&mut self.targets.lock().unwrap_or_else(PoisonError::into_inner)[target]);
        self.publish();
    }

    fn publish(&self) {
        let targets = self.targets();
        let mut addresses: Vec<SocketAddr> = Vec::new();
        for address in targets.iter().flat_map(|target| &target.addresses) {
            if !addresses.contains(address) {
                addresses.push(*address);
            }
        }
        let looked_up = targets.iter().all(|target| target.looked_up);
        self.published.send_if_modified(|published| {
            let changed = published.looked_up != looked_up || *published.addresses != *addresses;
            *published = Published {
                looked_up,
                addresses: addresses.into(),
            };
            changed
        });
    }
}
