//! From the file to a [`Config`]: every value judged, every mistake collected, so that one look at the output mends a file.

mod books;
mod findings;
mod limits;
mod listener;
mod places;
mod resolver;
mod routes;
mod socket;
mod upstream;

use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use sha2::{Digest, Sha256};
use toml::Spanned;

use self::findings::Findings;
use self::places::Placed;
use super::error::Mistake;
use super::file::{DrainTable, File, HealthTable, Key, Raw, RelayTable, SessionTable};
use super::{
    Bound, CloseWith, Config, Directories, Drain, HealthPort, Log, LogFormat, Peers, Relay,
    RelayMode, SessionKeys, Target, addresses, defaults, identity,
    values::{self, duration_text},
};

/// Judges the file, which was read from `text`.
pub(super) fn config(file: &File, text: &str) -> Result<Config, Vec<Mistake>> {
    let mut builder = Builder::default();
    let config = builder.config(file);
    match config {
        Some(config) if builder.found.mistakes.is_empty() => Ok(Config {
            digest: digest(text),
            ..config
        }),
        _ => {
            // In the order of the file, for someone who goes through it once.
            builder
                .found
                .mistakes
                .sort_by_key(|mistake| mistake.span.as_ref().map_or(usize::MAX, |span| span.start));
            Err(builder.found.mistakes)
        }
    }
}

/// What was found so far, and what has to be compared across tables.
#[derive(Default)]
struct Builder {
    found: Findings,
    listeners: Vec<Placed<SocketAddr>>,
    ports: Vec<Placed<SocketAddr>>,
    targets: Vec<Placed<Target>>,
}

/// What `[relay] stalled_receive_buffer` may be: room for a few segments of 64 KiB at least.
const STALLED_BUFFERS: std::ops::RangeInclusive<u64> = 128 * 1024..=1024 * 1024 * 1024;

impl Builder {
    fn config(&mut self, file: &File) -> Option<Config> {
        let workers = self.found.value("workers", &file.workers, |raw| {
            values::integer(raw, 1..=1024)
        });
        let admin = self.found.value("admin.bind", &file.admin.bind, |raw| {
            values::off_or(raw, addresses::bind)
        });
        let admin = admin.unwrap_or(Some(defaults::ADMIN_BIND));
        self.port("admin.bind", admin, &file.admin.bind);
        let health = self.health(&file.health);
        let drain = self.drain(&file.drain);
        let log = Log {
            format: self.found.word(
                "log.format",
                &file.log.format,
                &[
                    ("auto", LogFormat::Auto),
                    ("text", LogFormat::Text),
                    ("json", LogFormat::Json),
                ],
            ),
            level: self
                .found
                .value("log.level", &file.log.level, |raw| {
                    values::word(raw, &LEVELS)
                })
                .unwrap_or(tracing::Level::INFO),
        };
        let resolver = self.resolver(&file.resolver);
        let relay_id = self
            .found
            .value("relay_id", &file.relay_id, addresses::relay_id);
        let session = self.session("session", &file.session);
        let relay = self.relay(&file.relay);
        let Directories { state_dir, run_dir } = self.directories(file);
        let admin_socket = self.admin_socket(&file.admin.socket, run_dir.as_deref());
        let accounts = self.accounts(&file.accounts);
        let ledger = self.ledger(&file.ledger);
        let audit = self.audit(&file.audit, state_dir.as_deref());
        let endpoints = self.endpoints(&file.endpoint);
        let limits = self.limits(&file.limits);
        let consumers = self.consumers(&file.consumer);
        let max_metric_endpoints = self.found.count(
            "metrics.max_endpoints",
            &file.metrics.max_endpoints,
            defaults::MAX_METRIC_ENDPOINTS,
        );

        let upstreams: Vec<_> = file
            .upstream
            .iter()
            .map(|table| self.upstream(table))
            .collect();
        let names: Vec<Option<Arc<str>>> = file
            .upstream
            .iter()
            .map(|table| name_of(&table.get_ref().name))
            .collect();
        let listeners: Vec<_> = file
            .listener
            .iter()
            .map(|table| self.listener(table, &names))
            .collect();
        let fail_without = self.fail_without(&file.health.fail_without, &names);
        if listeners.is_empty() {
            let help = "add one: [[listener]] with name, bind, trusted_peers and upstream";
            self.found.mistake(
                "listener",
                "there is none, so nothing would be accepted",
                help,
                None,
            );
        }
        if upstreams.is_empty() {
            let help =
                "add one: [[upstream]] with name = \"control-plane\" and targets = [\"HOST:PORT\"]";
            self.found.mistake(
                "upstream",
                "there is none, so nothing could be forwarded",
                help,
                None,
            );
        }
        self.compare_places(file);

        Some(Config {
            workers: workers.and_then(NonZeroUsize::new).unwrap_or_else(cores),
            admin,
            health,
            fail_without,
            drain,
            log,
            session,
            relay,
            relay_id: relay_id.unwrap_or_else(identity::relay_id),
            resolver,
            digest: "".into(), // until it is known that there is a configuration
            state_dir,
            run_dir,
            admin_socket,
            accounts,
            ledger,
            audit,
            endpoints,
            consumers,
            max_metric_endpoints,
            limits,
            listeners: listeners.into_iter().collect::<Option<_>>()?,
            upstreams: upstreams.into_iter().collect::<Option<_>>()?,
        })
    }

    fn drain(&mut self, table: &DrainTable) -> Drain {
        let found = &mut self.found;
        let deadline = found
            .value("drain.deadline", &table.deadline, values::duration)
            .unwrap_or(defaults::DRAIN_DEADLINE);
        let spread = found.value("drain.spread", &table.spread, |raw| {
            values::off_or(raw, values::duration)
        });
        if let Some(Some(spread)) = spread
            && spread > deadline
            && let Some(written) = &table.spread
        {
            let deadline = duration_text(deadline);
            found.mistake(
                "drain.spread",
                &format!("is longer than drain.deadline, which is {deadline}"),
                &format!("write \"{deadline}\" at most, or raise drain.deadline"),
                Some(written.span()),
            );
        }
        Drain {
            accept_for: found
                .value("drain.accept_for", &table.accept_for, values::duration)
                .unwrap_or(defaults::DRAIN_ACCEPT_FOR),
            deadline,
            spread: match spread {
                Some(spread) => spread.unwrap_or(Duration::ZERO),
                None => deadline / defaults::DRAIN_SPREAD,
            },
            close: found.word(
                "drain.close",
                &table.close,
                &[("fin", CloseWith::Fin), ("rst", CloseWith::Rst)],
            ),
        }
    }

    fn fail_without(&mut self, key: &Key, upstreams: &[Option<Arc<str>>]) -> Vec<usize> {
        let at = "health.fail_without";
        let wanted = self.found.list(at, key, addresses::name);
        let wanted = wanted.into_iter().flatten();
        wanted
            .filter_map(|name| {
                let found = routes::position(upstreams, name.get_ref());
                if found.is_none() {
                    let (problem, help) = routes::no_such_upstream(upstreams, name.get_ref());
                    self.found.mistake(at, &problem, &help, Some(name.span()));
                }
                found
            })
            .collect()
    }

    fn health(&mut self, table: &HealthTable) -> Option<HealthPort> {
        let bind = self
            .found
            .value("health.bind", &table.bind, |raw| {
                values::off_or(raw, addresses::bind)
            })
            .flatten();
        let trusted_peers = self
            .found
            .peers("health.trusted_peers", &table.trusted_peers)
            .unwrap_or(Peers::Anyone);
        if let (None, Some(peers)) = (&table.bind, &table.trusted_peers) {
            let problem = "is missing, and without it there is no health port to trust anyone at";
            let help = "add bind = \"0.0.0.0:9901\", or remove trusted_peers";
            self.found
                .mistake("health.bind", problem, help, Some(peers.span()));
        }
        self.port("health.bind", bind, &table.bind);
        Some(HealthPort {
            bind: bind?,
            trusted_peers,
        })
    }

    fn relay(&mut self, table: &RelayTable) -> Relay {
        let modes = [
            ("adaptive", RelayMode::Adaptive),
            ("copy", RelayMode::Copy),
            ("splice", RelayMode::Splice),
        ];
        let buffer = |raw: &_| values::off_or(raw, |raw| values::size(raw, STALLED_BUFFERS));
        let key = "relay.stalled_receive_buffer";
        let stalled = self.found.value(key, &table.stalled_receive_buffer, buffer);
        Relay {
            mode: self.found.word("relay.mode", &table.mode, &modes),
            spin: self
                .found
                .value("relay.spin", &table.spin, values::spin)
                .flatten(),
            pin: self
                .found
                .word("relay.pin", &table.pin, &[("off", false), ("cores", true)]),
            stalled_receive_buffer: stalled.flatten(),
        }
    }

    fn session(&mut self, at: &str, table: &SessionTable) -> SessionKeys {
        let key = |name: &str| format!("{at}.{name}");
        SessionKeys {
            idle_timeout: self.found.value(
                &key("idle_timeout"),
                &table.idle_timeout,
                values::bound,
            ),
            half_close_timeout: self.found.value(
                &key("half_close_timeout"),
                &table.half_close_timeout,
                values::bound,
            ),
            max_age: self
                .found
                .value(&key("max_age"), &table.max_age, values::bound),
            keepalive_idle: self
                .found
                .value(&key("keepalive_idle"), &table.keepalive_idle, |raw| {
                    values::off_or(raw, values::keepalive_time)
                })
                .map(|idle| idle.map_or(Bound::Off, Bound::After)),
            keepalive_interval: self.found.value(
                &key("keepalive_interval"),
                &table.keepalive_interval,
                values::keepalive_time,
            ),
            keepalive_probes: self
                .found
                .value(&key("keepalive_probes"), &table.keepalive_probes, |raw| {
                    values::integer(raw, 1..=127)
                })
                .and_then(|probes| u32::try_from(probes).ok()),
            user_timeout: self.found.value(
                &key("user_timeout"),
                &table.user_timeout,
                values::user_timeout,
            ),
        }
    }

    fn compare_places(&mut self, file: &File) {
        let listener_names = file
            .listener
            .iter()
            .filter_map(|table| placed_name("listener.name", &table.get_ref().name));
        let upstream_names = file
            .upstream
            .iter()
            .filter_map(|table| placed_name("upstream.name", &table.get_ref().name));
        let names: [Vec<Placed<&str>>; 2] = [listener_names.collect(), upstream_names.collect()];
        self.found.mistakes.extend(
            names
                .iter()
                .flat_map(|names| places::duplicate_names(names)),
        );
        self.found
            .mistakes
            .extend(places::loops(&self.listeners, &self.targets));
        self.ports.append(&mut self.listeners);
        self.found
            .mistakes
            .extend(places::duplicate_binds(&self.ports));
    }

    fn port(&mut self, key: &'static str, bind: Option<SocketAddr>, written: &Key) {
        self.ports.extend(bind.map(|value| Placed {
            key,
            value,
            span: written.as_ref().map(Spanned::span),
        }));
    }
}

const LEVELS: [(&str, tracing::Level); 5] = [
    ("error", tracing::Level::ERROR),
    ("warn", tracing::Level::WARN),
    ("info", tracing::Level::INFO),
    ("debug", tracing::Level::DEBUG),
    ("trace", tracing::Level::TRACE),
];

/// SHA-256, in hexadecimal.
pub(super) fn digest(text: &str) -> Arc<str> {
    let hash = Sha256::digest(text);
    let hex: String = hash.iter().map(|byte| format!("{byte:02x}")).collect();
    hex.into()
}

fn cores() -> NonZeroUsize {
    std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN)
}

fn name_of(key: &Key) -> Option<Arc<str>> {
    addresses::name(key.as_ref()?.get_ref()).ok()
}

fn placed_name<'a>(key: &'static str, name: &'a Key) -> Option<Placed<&'a str>> {
    let name = name.as_ref()?;
    let Raw::Text(text) = name.get_ref() else {
        return None;
    };
    Some(Placed {
        key,
        value: text,
        span: Some(name.span()),
    })
}
