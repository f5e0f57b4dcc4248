//! From the file to a [`Config`]: every value judged, every mistake collected, so that one look at the output mends a file.

use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use toml::Spanned;

use super::error::Mistake;
use super::file::{File, HealthTable, Key, ListenerTable, Raw, SessionTable, UpstreamTable};
use super::places::{self, Placed};
use super::values::{self, Wrong, duration_text, nearest};
use super::{
    CloseWith, Config, CrcPolicy, Drain, Family, HealthPort, Listener, Log, LogFormat, Peers,
    ProxyProtocol, RelayMode, Resolver, SessionKeys, Target, Upstream, defaults,
};

/// The most that any table of ours may be told to hold; far beyond what memory allows, and no typo.
const MOST: i64 = 10_000_000;

/// Judges the file.
pub(super) fn config(file: &File) -> Result<Config, Vec<Mistake>> {
    let mut builder = Builder::default();
    let config = builder.config(file);
    match config {
        Some(config) if builder.mistakes.is_empty() => Ok(config),
        _ => {
            // In the order of the file, for someone who goes through it once.
            builder
                .mistakes
                .sort_by_key(|mistake| mistake.span.as_ref().map_or(usize::MAX, |span| span.start));
            Err(builder.mistakes)
        }
    }
}

/// Collects mistakes, and what has to be compared across tables. A value in error counts as not written: the result is thrown
/// away anyway.
#[derive(Default)]
struct Builder {
    mistakes: Vec<Mistake>,
    listeners: Vec<Placed<SocketAddr>>,
    ports: Vec<Placed<SocketAddr>>,
    targets: Vec<Placed<Target>>,
}

impl Builder {
    fn config(&mut self, file: &File) -> Option<Config> {
        let workers = self.value("workers", &file.workers, |raw| {
            values::integer(raw, 1..=1024)
        });
        let admin = self.value("admin.bind", &file.admin.bind, |raw| {
            values::off_or(raw, values::bind)
        });
        let admin = admin.unwrap_or(Some(defaults::ADMIN_BIND));
        self.port("admin.bind", admin, &file.admin.bind);
        let health = self.health(&file.health);
        let drain = Drain {
            accept_for: self
                .value("drain.accept_for", &file.drain.accept_for, values::duration)
                .unwrap_or(defaults::DRAIN_ACCEPT_FOR),
            deadline: self
                .value("drain.deadline", &file.drain.deadline, values::duration)
                .unwrap_or(defaults::DRAIN_DEADLINE),
            close: self.word(
                "drain.close",
                &file.drain.close,
                &[("fin", CloseWith::Fin), ("rst", CloseWith::Rst)],
            ),
        };
        let log = Log {
            format: self.word(
                "log.format",
                &file.log.format,
                &[
                    ("auto", LogFormat::Auto),
                    ("text", LogFormat::Text),
                    ("json", LogFormat::Json),
                ],
            ),
            level: self.word("log.level", &file.log.level, &LEVELS),
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
                .list(
                    "resolver.servers",
                    &file.resolver.servers,
                    values::name_server,
                )
                .map(strip)
                .unwrap_or_default(),
            family: self.word("resolver.family", &file.resolver.family, &families),
        };
        let session = self.session("session", &file.session);
        let relay_mode = self.word("relay.mode", &file.relay.mode, &modes);
        let max_accounts = self.count("accounts.max", &file.accounts.max, defaults::MAX_ACCOUNTS);
        let max_metric_endpoints = self.count(
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
            self.mistake(
                "listener",
                "there is none, so nothing would be accepted",
                help,
                None,
            );
        }
        if upstreams.is_empty() {
            let help =
                "add one: [[upstream]] with name = \"control-plane\" and targets = [\"HOST:PORT\"]";
            self.mistake(
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
            .value("health.bind", &table.bind, |raw| {
                values::off_or(raw, values::bind)
            })
            .flatten();
        let trusted_peers = self
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
            idle_timeout: self.value(&key("idle_timeout"), &table.idle_timeout, values::bound),
            half_close_timeout: self.value(
                &key("half_close_timeout"),
                &table.half_close_timeout,
                values::bound,
            ),
            max_age: self.value(&key("max_age"), &table.max_age, values::bound),
            keepalive_idle: self
                .value(&key("keepalive_idle"), &table.keepalive_idle, |raw| {
                    values::off_or(raw, values::keepalive_time)
                })
                .map(|idle| idle.map_or(super::Bound::Off, super::Bound::After)),
            keepalive_interval: self.value(
                &key("keepalive_interval"),
                &table.keepalive_interval,
                values::keepalive_time,
            ),
            keepalive_probes: self
                .value(&key("keepalive_probes"), &table.keepalive_probes, |raw| {
                    values::integer(raw, 1..=127)
                })
                .and_then(|probes| u32::try_from(probes).ok()),
            user_timeout: self.value(
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
        let name = self.required(
            "listener.name",
            &table.name,
            &place,
            "name = \"ingest\"",
            values::name,
        );
        let bind = self.binds(&table.bind, &place);
        let upstream = self.chosen_upstream(table, &place, upstreams);
        let modes = [("v2", ProxyProtocol::V2), ("off", ProxyProtocol::Off)];
        let proxy_protocol = self.word("listener.proxy_protocol", &table.proxy_protocol, &modes);
        let trusted_peers = match (proxy_protocol, trusts_nobody(&table.trusted_peers)) {
            (ProxyProtocol::V2, true) => {
                let span = table
                    .trusted_peers
                    .as_ref()
                    .map_or_else(|| place.clone(), Spanned::span);
                let problem = "whoever connects here can claim to be anyone, so it must be said whose PROXY headers are believed";
                let help = "list the subnets of the NLB, for instance trusted_peers = [\"10.20.0.0/16\"]; \
                            or, where nothing sends a header, proxy_protocol = \"off\"";
                self.mistake("listener.trusted_peers", problem, help, Some(span));
                None
            }
            _ => Some(
                self.peers("listener.trusted_peers", &table.trusted_peers)
                    .unwrap_or(Peers::Anyone),
            ),
        };
        let listener_value = |builder: &mut Self, key: &str, value: &Key, default: Duration| {
            builder
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
        let max_header = self.value("listener.max_header", &table.max_header, |raw| {
            values::size(raw, 16..=65551)
        });
        let crc = self.word(
            "listener.crc",
            &table.crc,
            &[("verify", CrcPolicy::Verify), ("ignore", CrcPolicy::Ignore)],
        );
        let max_pending = self.count(
            "listener.max_pending",
            &table.max_pending,
            defaults::MAX_PENDING,
        );
        let max_sessions = self.count(
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
                let address = self.value("listener.bind", key, values::bind)?;
                vec![Spanned::new(key.as_ref()?.span(), address)]
            }
            _ => self.required_list("listener.bind", key, place, example, values::bind)?,
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
        let wanted = self.required(
            "listener.upstream",
            &table.upstream,
            place,
            &example,
            values::name,
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
            self.mistake(
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
        let name = self.required(
            "upstream.name",
            &table.name,
            &place,
            "name = \"control-plane\"",
            values::name,
        );
        let example = "targets = [\"cp.us-east-1.example.internal:443\"]";
        let targets = self.required_list(
            "upstream.targets",
            &table.targets,
            &place,
            example,
            values::target,
        );
        for target in targets.iter().flatten() {
            self.targets.push(Placed {
                key: "upstream.targets",
                value: target.get_ref().clone(),
                span: Some(target.span()),
            });
        }
        let [connect_timeout, connect_deadline] = self.ordered(
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
        let [min_ttl, max_ttl] = self.ordered(
            ("upstream.min_ttl", &table.min_ttl, defaults::MIN_TTL),
            ("upstream.max_ttl", &table.max_ttl, defaults::MAX_TTL),
        );
        let stale_for = self.value("upstream.stale_for", &table.stale_for, |raw| {
            values::word_or(raw, "forever", values::duration)
        });
        let allow_addresses = self.list(
            "upstream.allow_addresses",
            &table.allow_addresses,
            values::network,
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

    /// Two durations of which the first may not exceed the second.
    fn ordered(
        &mut self,
        less: (&str, &Key, Duration),
        more: (&str, &Key, Duration),
    ) -> [Duration; 2] {
        let low = self.value(less.0, less.1, values::time);
        let high = self.value(more.0, more.1, values::time);
        let pair = [low.unwrap_or(less.2), high.unwrap_or(more.2)];
        // The one that was written is at fault; a value in error was said already.
        let written = if high.is_some() { more } else { less };
        if (low.is_some() || high.is_some()) && pair[0] > pair[1] {
            let said = |(key, _, _): (&str, &Key, Duration), value, given: bool| {
                let default = if given { "" } else { " (the default)" };
                format!(
                    "{} = \"{}\"{default}",
                    key.trim_start_matches("upstream."),
                    duration_text(value)
                )
            };
            let problem = format!(
                "{} is longer than {}",
                said(less, pair[0], low.is_some()),
                said(more, pair[1], high.is_some())
            );
            let help = format!(
                "write {} = \"{}\" or more",
                more.0.trim_start_matches("upstream."),
                duration_text(pair[0])
            );
            self.mistake(
                written.0,
                &problem,
                &help,
                written.1.as_ref().map(Spanned::span),
            );
        }
        pair
    }

    /// A list of networks; an empty one would trust nobody.
    fn peers(&mut self, key: &str, value: &Key) -> Option<Peers> {
        let networks = self.list(key, value, values::network)?;
        if trusts_nobody(value) {
            let help =
                "leave the key out to let anyone connect, or list networks: [\"10.20.0.0/16\"]";
            self.mistake(
                key,
                "an empty list would let nobody connect",
                help,
                value.as_ref().map(Spanned::span),
            );
        }
        Some(Peers::Within(strip(networks)))
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
        self.mistakes.extend(
            names
                .iter()
                .flat_map(|names| places::duplicate_names(names)),
        );
        self.mistakes
            .extend(places::loops(&self.listeners, &self.targets));
        self.ports.append(&mut self.listeners);
        self.mistakes.extend(places::duplicate_binds(&self.ports));
    }

    fn port(&mut self, key: &'static str, bind: Option<SocketAddr>, written: &Key) {
        self.ports.extend(bind.map(|value| Placed {
            key,
            value,
            span: written.as_ref().map(Spanned::span),
        }));
    }

    /// What was written under a key; `None` when nothing was, or something wrong.
    fn value<T>(
        &mut self,
        key: &str,
        value: &Key,
        parse: impl FnOnce(&Raw) -> Result<T, Wrong>,
    ) -> Option<T> {
        self.judge(key, value.as_ref()?, parse)
    }

    fn judge<T>(
        &mut self,
        key: &str,
        value: &Spanned<Raw>,
        parse: impl FnOnce(&Raw) -> Result<T, Wrong>,
    ) -> Option<T> {
        parse(value.get_ref())
            .map_err(|wrong| self.mistake(key, &wrong.problem, &wrong.help, Some(value.span())))
            .ok()
    }

    /// A key that must be there; `place` is the table without it.
    fn required<T>(
        &mut self,
        key: &str,
        value: &Key,
        place: &Range<usize>,
        example: &str,
        parse: fn(&Raw) -> Result<T, Wrong>,
    ) -> Option<T> {
        if value.is_none() {
            self.mistake(
                key,
                "is missing",
                &format!("add {example}"),
                Some(place.clone()),
            );
        }
        self.value(key, value, parse)
    }

    /// A list that must be there and hold something.
    fn required_list<T>(
        &mut self,
        key: &str,
        value: &Key,
        place: &Range<usize>,
        example: &str,
        parse: fn(&Raw) -> Result<T, Wrong>,
    ) -> Option<Vec<Spanned<T>>> {
        let empty = value
            .as_ref()
            .is_some_and(|value| matches!(value.get_ref(), Raw::List(items) if items.is_empty()));
        if value.is_none() || empty {
            let span = value.as_ref().map_or_else(|| place.clone(), Spanned::span);
            self.mistake(
                key,
                if empty { "is empty" } else { "is missing" },
                &format!("write {example}"),
                Some(span),
            );
            return None;
        }
        self.list(key, value, parse)
    }

    /// A list whose items are judged one by one; `None` when nothing was written, or no list.
    fn list<T>(
        &mut self,
        key: &str,
        value: &Key,
        parse: fn(&Raw) -> Result<T, Wrong>,
    ) -> Option<Vec<Spanned<T>>> {
        let value = value.as_ref()?;
        let Raw::List(items) = value.get_ref() else {
            let help = match value.get_ref() {
                Raw::Text(text) => format!("write it in brackets: [{text:?}]"),
                _ => "write text in quotes within brackets: [\"…\", \"…\"]".to_owned(),
            };
            self.mistake(key, "this must be a list", &help, Some(value.span()));
            return None;
        };
        let judged = items
            .iter()
            .filter_map(|item| Some(Spanned::new(item.span(), self.judge(key, item, parse)?)));
        Some(judged.collect())
    }

    /// One of a few words, the first of which is the default.
    fn word<T: Copy>(&mut self, key: &str, value: &Key, words: &[(&str, T)]) -> T {
        self.value(key, value, |raw| values::word(raw, words))
            .unwrap_or(words[0].1)
    }

    fn count(&mut self, key: &str, value: &Key, default: usize) -> usize {
        self.value(key, value, |raw| values::integer(raw, 1..=MOST))
            .unwrap_or(default)
    }

    fn mistake(&mut self, key: &str, problem: &str, help: &str, span: Option<Range<usize>>) {
        self.mistakes.push(Mistake {
            key: key.to_owned(),
            problem: problem.to_owned(),
            help: help.to_owned(),
            span,
            other: None,
        });
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

fn strip<T>(items: Vec<Spanned<T>>) -> Vec<T> {
    items.into_iter().map(Spanned::into_inner).collect()
}

/// Whether a list of peers is missing or empty.
fn trusts_nobody(peers: &Key) -> bool {
    peers
        .as_ref()
        .is_none_or(|peers| matches!(peers.get_ref(), Raw::List(items) if items.is_empty()))
}

fn name_of(key: &Key) -> Option<Arc<str>> {
    values::name(key.as_ref()?.get_ref()).ok()
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
