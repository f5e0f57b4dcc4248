//! From the file to a [`Config`]: every value judged, every mistake collected, so that one look at the output mends a file.

use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use toml::Spanned;

use super::addresses;
use super::error::Mistake;
use super::file::{File, HealthTable, Key, ListenerTable, Raw, SessionTable, UpstreamTable};
use super::findings::{Findings, strip, trusts_nobody};
use super::places::{self, Placed};
use super::values::{self, nearest};
use super::{
    CloseWith, Config, CrcPolicy, Drain, Family, HealthPort, Listener, Log, LogFormat, Peers,
    ProxyProtocol, RelayMode, Resolver, SessionKeys, Target, Upstream, defaults,
};

/// Judges the file.
pub(super) fn config(file: &File) -> Result<Config, Vec<Mistake>> {
    let mut builder = Builder::default();
    let config = builder.config(file);
    match config {
        Some(config) if builder.found.mistakes.is_empty() => Ok(config),
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
        let drain = Drain {
            accept_for: self
                .found
                .value("drain.accept_for", &file.drain.accept_for, values::duration)
                .unwrap_or(defaults::DRAIN_ACCEPT_FOR),
            deadline: self
                .found
                .value("drain.deadline", &file.drain.deadline, values::duration)
                .unwrap_or(defaults::DRAIN_DEADLINE),
            close: self.found.word(
                "drain.close",
                &file.drain.close,
                &[("fin", CloseWith::Fin), ("rst", CloseWith::Rst)],
            ),
        };
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
            level: self.found.word("log.level", &file.log.level, &LEVELS),
        };
        let modes = [
            ("adaptive", RelayMode::Adaptive),
            ("copy", RelayMode::Copy),
            ("splice", RelayMode::Splice),
        ];
        let families = [
            ("any", Family::Any),
            ("ipv4", Family::Ipv4),
            ("ipv6", Family::Ipv6),
        ];
        let resolver = Resolver {
            servers: self
                .found
                .list(
                    "resolver.servers",
                    &file.resolver.servers,
                    addresses::name_server,
                )
                .map(strip)
                .unwrap_or_default(),
            family: self
                .found
                .word("resolver.family", &file.resolver.family, &families),
        };
        let session = self.session("session", &file.session);
        let relay_mode = self.found.word("relay.mode", &file.relay.mode, &modes);
        let max_accounts =
            self.found
                .count("accounts.max", &file.accounts.max, defaults::MAX_ACCOUNTS);
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
            drain,
            log,
            session,
            relay_mode,
            resolver,
            max_accounts,
            max_metric_endpoints,
            listeners: listeners.into_iter().collect::<Option<_>>()?,
            upstreams: upstreams.into_iter().collect::<Option<_>>()?,
        })
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
        self.port("health.bind", bind, &table.bind);
        Some(HealthPort {
            bind: bind?,
            trusted_peers,
        })
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
                .map(|idle| idle.map_or(super::Bound::Off, super::Bound::After)),
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

    fn listener(
        &mut self,
        spanned: &Spanned<ListenerTable>,
        upstreams: &[Option<Arc<str>>],
    ) -> Option<Listener> {
        let table = spanned.get_ref();
        let place = spanned.span();
        let name = self.found.required(
            "listener.name",
            &table.name,
            &place,
            "name = \"ingest\"",
            addresses::name,
        );
        let bind = self.binds(&table.bind, &place);
        let upstream = self.chosen_upstream(table, &place, upstreams);
        let modes = [("v2", ProxyProtocol::V2), ("off", ProxyProtocol::Off)];
        let proxy_protocol =
            self.found
                .word("listener.proxy_protocol", &table.proxy_protocol, &modes);
        let trusted_peers = match (proxy_protocol, trusts_nobody(&table.trusted_peers)) {
            (ProxyProtocol::V2, true) => {
                let span = table
                    .trusted_peers
                    .as_ref()
                    .map_or_else(|| place.clone(), Spanned::span);
                let problem = "whoever connects here can claim to be anyone, so it must be said whose PROXY headers are believed";
                let help = "list the subnets of the NLB, for instance trusted_peers = [\"10.20.0.0/16\"]; \
                            or, where nothing sends a header, proxy_protocol = \"off\"";
                self.found
                    .mistake("listener.trusted_peers", problem, help, Some(span));
                None
            }
            _ => Some(
                self.found
                    .peers("listener.trusted_peers", &table.trusted_peers)
                    .unwrap_or(Peers::Anyone),
            ),
        };
        let listener_value = |builder: &mut Self, key: &str, value: &Key, default: Duration| {
            builder
                .found
                .value(&format!("listener.{key}"), value, values::time)
                .unwrap_or(default)
        };
        let first_byte_timeout = listener_value(
            self,
            "first_byte_timeout",
            &table.first_byte_timeout,
            defaults::FIRST_BYTE_TIMEOUT,
        );
        let header_timeout = listener_value(
            self,
            "header_timeout",
            &table.header_timeout,
            defaults::HEADER_TIMEOUT,
        );
        // 16 bytes are fixed and a 16-bit length says what follows (PROXY protocol specification, section 2.2).
        let max_header = self
            .found
            .value("listener.max_header", &table.max_header, |raw| {
                values::size(raw, 16..=65551)
            });
        let crc = self.found.word(
            "listener.crc",
            &table.crc,
            &[("verify", CrcPolicy::Verify), ("ignore", CrcPolicy::Ignore)],
        );
        let max_pending = self.found.count(
            "listener.max_pending",
            &table.max_pending,
            defaults::MAX_PENDING,
        );
        let max_sessions = self.found.count(
            "listener.max_sessions",
            &table.max_sessions,
            defaults::MAX_SESSIONS,
        );
        let session = self.session("listener.session", &table.session);
        Some(Listener {
            name: name?,
            bind: bind?,
            upstream: upstream?,
            proxy_protocol,
            trusted_peers: trusted_peers?,
            crc,
            max_header: max_header.unwrap_or(defaults::MAX_HEADER),
            first_byte_timeout,
            header_timeout,
            max_pending,
            max_sessions,
            session,
        })
    }

    /// `bind` of a listener: one address or a list of them.
    fn binds(&mut self, key: &Key, place: &Range<usize>) -> Option<Vec<SocketAddr>> {
        let example = "bind = \"0.0.0.0:8443\"";
        let binds = match key.as_ref().map(Spanned::get_ref) {
            Some(Raw::Text(_)) => {
                let address = self.found.value("listener.bind", key, addresses::bind)?;
                vec![Spanned::new(key.as_ref()?.span(), address)]
            }
            _ => self
                .found
                .required_list("listener.bind", key, place, example, addresses::bind)?,
        };
        for bind in &binds {
            self.listeners.push(Placed {
                key: "listener.bind",
                value: *bind.get_ref(),
                span: Some(bind.span()),
            });
        }
        Some(strip(binds))
    }

    fn chosen_upstream(
        &mut self,
        table: &ListenerTable,
        place: &Range<usize>,
        upstreams: &[Option<Arc<str>>],
    ) -> Option<usize> {
        let names = || upstreams.iter().flatten().map(AsRef::as_ref);
        let example = format!("upstream = {:?}", names().next().unwrap_or("control-plane"));
        let wanted = self.found.required(
            "listener.upstream",
            &table.upstream,
            place,
            &example,
            addresses::name,
        )?;
        let found = upstreams
            .iter()
            .position(|name| name.as_ref() == Some(&wanted));
        if found.is_none() {
            let list = names()
                .map(|name| format!("{name:?}"))
                .collect::<Vec<_>>()
                .join(", ");
            let help = match nearest(&wanted, names()) {
                Some(near) => format!("did you mean {near:?}? There are: {list}"),
                None if list.is_empty() => format!("add [[upstream]] with name = {wanted:?}"),
                None => format!("write one of {list}, or add [[upstream]] with name = {wanted:?}"),
            };
            let span = table.upstream.as_ref().map(Spanned::span);
            self.found.mistake(
                "listener.upstream",
                &format!("there is no upstream {wanted:?}"),
                &help,
                span,
            );
        }
        found
    }

    fn upstream(&mut self, spanned: &Spanned<UpstreamTable>) -> Option<Upstream> {
        let table = spanned.get_ref();
        let place = spanned.span();
        let name = self.found.required(
            "upstream.name",
            &table.name,
            &place,
            "name = \"control-plane\"",
            addresses::name,
        );
        let example = "targets = [\"cp.us-east-1.example.internal:443\"]";
        let targets = self.found.required_list(
            "upstream.targets",
            &table.targets,
            &place,
            example,
            addresses::target,
        );
        for target in targets.iter().flatten() {
            self.targets.push(Placed {
                key: "upstream.targets",
                value: target.get_ref().clone(),
                span: Some(target.span()),
            });
        }
        let [connect_timeout, connect_deadline] = self.found.ordered(
            (
                "upstream.connect_timeout",
                &table.connect_timeout,
                defaults::CONNECT_TIMEOUT,
            ),
            (
                "upstream.connect_deadline",
                &table.connect_deadline,
                defaults::CONNECT_DEADLINE,
            ),
        );
        let [min_ttl, max_ttl] = self.found.ordered(
            ("upstream.min_ttl", &table.min_ttl, defaults::MIN_TTL),
            ("upstream.max_ttl", &table.max_ttl, defaults::MAX_TTL),
        );
        let stale_for = self
            .found
            .value("upstream.stale_for", &table.stale_for, |raw| {
                values::word_or(raw, "forever", values::duration)
            });
        let allow_addresses = self.found.list(
            "upstream.allow_addresses",
            &table.allow_addresses,
            addresses::network,
        );
        let session = self.session("upstream.session", &table.session);
        Some(Upstream {
            name: name?,
            targets: strip(targets?),
            connect_timeout,
            connect_deadline,
            min_ttl,
            max_ttl,
            stale_for: stale_for.flatten(),
            allow_addresses: allow_addresses.map(strip).unwrap_or_default(),
            session,
        })
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
    ("info", tracing::Level::INFO),
    ("error", tracing::Level::ERROR),
    ("warn", tracing::Level::WARN),
    ("debug", tracing::Level::DEBUG),
    ("trace", tracing::Level::TRACE),
];

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
