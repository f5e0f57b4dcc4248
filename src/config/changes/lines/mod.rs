//! A configuration as lines, each a key and its value, the defaults included. Every struct is taken apart whole, so that a new key has to be
//! thought of here.

mod endpoints;
mod upstream;

use std::collections::HashMap;
use std::sync::LazyLock;

use super::HealthPort;
use super::texts::{age, bound, list, or_off, path, peers, shown, size, table, text, time};
use crate::config::{
    Accounts, Audit, CloseWith, Config, CrcPolicy, Drain, Family, Ledger, Listener, Log, LogFormat,
    OnFull, ProxyProtocol, Relay, RelayMode, Resolver, Route, SessionKeys, Sink, SocketOptions,
};

/// One key in force.
#[derive(Debug)]
pub(super) struct Line {
    pub(super) key: String,
    pub(super) value: String,
    /// Only a restart changes it.
    pub(super) restart: bool,
    /// How much of the key names the table that may come and go: `listener.ingest`. Nothing for what is always there.
    table: usize,
}

impl Line {
    pub(super) fn table(&self) -> &str {
        &self.key[..self.table]
    }

    pub(super) fn beside(&self, other: &Self) -> bool {
        self.table() == other.table()
    }

    /// The key within its table.
    fn within(&self) -> &str {
        self.key[self.table..].trim_start_matches('.')
    }
}

/// What was chosen in a table that came or went, as one value.
pub(super) fn whole(lines: &[Line]) -> String {
    let chosen = lines.iter().filter(|line| {
        let kind = line.key.split('.').next().unwrap_or_default();
        DEFAULTS.get(&format!("{kind}.{}", line.within())) != Some(&line.value)
    });
    let keys: Vec<String> = chosen
        .map(|line| format!("{} = {}", line.within(), line.value))
        .collect();
    format!("{{ {} }}", keys.join(", "))
}

/// What a listener and an upstream have of which nothing was written but what must be.
static DEFAULTS: LazyLock<HashMap<String, String>> = LazyLock::new(|| {
    const LEAST: &str = r#"
        listener = [{ name = "x", bind = "127.0.0.1:1", proxy_protocol = "v2", trusted_peers = ["127.0.0.1/32"], upstream = "x" }]
        upstream = [{ name = "x", targets = ["x:1"] }]
    "#;
    const WRITTEN: [&str; 4] = ["bind", "trusted_peers", "upstream", "targets"];
    let lines = Config::from_str(LEAST, "").map(|config| of(&config));
    let lines = lines.unwrap_or_default().into_iter();
    let lines = lines.filter(|line| !WRITTEN.contains(&line.within()));
    lines
        .filter(|line| line.table > 0)
        .map(|line| (line.key.replacen(".x.", ".", 1), line.value))
        .collect()
});

/// All of it, the lines of a table beside each other.
pub(super) fn of(config: &Config) -> Vec<Line> {
    let mut lines = Lines::default();
    lines.config(config);
    lines.all
}

/// Lines in the making.
#[derive(Default)]
struct Lines {
    all: Vec<Line>,
    /// What each key begins with, with its dot.
    at: String,
    /// As [`Line::restart`].
    restart: bool,
    /// As [`Line::table`].
    table: usize,
}

impl Lines {
    fn put(&mut self, key: &str, value: String) {
        self.all.push(Line {
            key: format!("{}{key}", self.at),
            value,
            restart: self.restart,
            table: self.table,
        });
    }

    /// A key that may be left out, and is not there then.
    fn put_if(&mut self, key: &str, value: Option<String>) {
        if let Some(value) = value {
            self.put(key, value);
        }
    }

    /// `name` is as it is written: `drain`, `listener.ingest.socket`.
    fn within(&mut self, name: &str, lines: impl FnOnce(&mut Self)) {
        let before = self.at.len();
        self.at += name;
        self.at.push('.');
        lines(self);
        self.at.truncate(before);
    }

    /// A table that may come and go.
    fn named(&mut self, kind: &str, name: &str, lines: impl FnOnce(&mut Self)) {
        let name = format!("{kind}.{name}");
        self.table = name.len();
        self.within(&name, lines);
        self.table = 0;
    }

    /// What only a restart changes.
    fn kept(&mut self, lines: impl FnOnce(&mut Self)) {
        self.restart = true;
        lines(self);
        self.restart = false;
    }

    fn config(&mut self, config: &Config) {
        let Config {
            workers,
            relay_id,
            admin,
            health,
            fail_without,
            drain,
            log,
            session,
            relay,
            resolver,
            digest: _, // of the text, which is no key
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
            listeners,
            upstreams,
        } = config;
        self.kept(|lines| {
            lines.put("workers", workers.to_string());
            lines.put("relay_id", text(relay_id));
            lines.put_if("state_dir", state_dir.as_deref().map(path));
            lines.put_if("run_dir", run_dir.as_deref().map(path));
            lines.put("admin.bind", or_off(admin.as_ref(), shown));
            lines.put("admin.socket", or_off(admin_socket.as_deref(), path));
            match health {
                None => lines.put("health.bind", text("off")),
                Some(HealthPort {
                    bind,
                    trusted_peers,
                }) => {
                    lines.put("health.bind", shown(bind));
                    lines.put_if("health.trusted_peers", peers(trusted_peers));
                }
            }
        });
        let upstream = |index: &usize| text(&upstreams[*index].name);
        if !fail_without.is_empty() {
            self.put("health.fail_without", list(fail_without, upstream));
        }
        self.drain(drain);
        self.log(log);
        self.session(&session.or_default());
        self.kept(|lines| lines.relay(relay));
        self.resolver(resolver);
        self.kept(|lines| {
            let Accounts { max, idle_after } = accounts;
            lines.put("accounts.max", max.to_string());
            lines.put("accounts.idle_after", age(*idle_after));
            lines.put("metrics.max_endpoints", max_metric_endpoints.to_string());
            lines.ledger(ledger);
            lines.audit(audit);
        });
        self.limits(limits);
        for entry in &endpoints.entries {
            self.endpoint(entry);
        }
        self.consumers(consumers);
        for listener in listeners {
            self.named("listener", &key(&listener.name), |lines| {
                lines.listener(listener, &upstream)
            });
        }
        for upstream in upstreams {
            self.named("upstream", &key(&upstream.name), |lines| {
                lines.upstream(upstream)
            });
        }
    }

    fn drain(&mut self, drain: &Drain) {
        let Drain {
            accept_for,
            deadline,
            spread,
            close,
        } = drain;
        self.put("drain.accept_for", time(*accept_for));
        self.put("drain.deadline", time(*deadline));
        self.put(
            "drain.spread",
            or_off((!spread.is_zero()).then_some(*spread), time),
        );
        self.put(
            "drain.close",
            text(match close {
                CloseWith::Fin => "fin",
                CloseWith::Rst => "rst",
            }),
        );
    }

    fn log(&mut self, log: &Log) {
        let Log { format, level } = log;
        self.put(
            "log.format",
            text(match format {
                LogFormat::Auto => "auto",
                LogFormat::Text => "text",
                LogFormat::Json => "json",
            }),
        );
        self.put("log.level", text(&level.as_str().to_ascii_lowercase()));
    }

    /// `session`, as far as it is there.
    fn session(&mut self, keys: &SessionKeys) {
        let SessionKeys {
            idle_timeout,
            half_close_timeout,
            max_age,
            keepalive_idle,
            keepalive_interval,
            keepalive_probes,
            user_timeout,
        } = keys;
        self.within("session", |lines| {
            lines.put_if("idle_timeout", idle_timeout.map(bound));
            lines.put_if("half_close_timeout", half_close_timeout.map(bound));
            lines.put_if("max_age", max_age.map(bound));
            lines.put_if("keepalive_idle", keepalive_idle.map(bound));
            lines.put_if("keepalive_interval", keepalive_interval.map(time));
            lines.put_if("keepalive_probes", keepalive_probes.map(|n| n.to_string()));
            lines.put_if("user_timeout", user_timeout.map(bound));
        });
    }

    fn relay(&mut self, relay: &Relay) {
        let Relay {
            mode,
            spin,
            pin,
            stalled_receive_buffer,
        } = relay;
        self.put(
            "relay.mode",
            text(match mode {
                RelayMode::Adaptive => "adaptive",
                RelayMode::Copy => "copy",
                RelayMode::Splice => "splice",
            }),
        );
        self.put("relay.spin", or_off(*spin, time));
        self.put("relay.pin", text(if *pin { "cores" } else { "off" }));
        self.put(
            "relay.stalled_receive_buffer",
            or_off(*stalled_receive_buffer, size),
        );
    }

    fn resolver(&mut self, resolver: &Resolver) {
        let Resolver {
            servers,
            search,
            family,
            queries_per_second,
        } = resolver;
        if !servers.is_empty() {
            self.put("resolver.servers", list(servers, shown));
        }
        if !search.is_empty() {
            self.put("resolver.search", list(search, |domain| text(domain)));
        }
        self.put(
            "resolver.family",
            text(match family {
                Family::Any => "any",
                Family::Ipv4 => "ipv4",
                Family::Ipv6 => "ipv6",
                Family::Ipv4First => "ipv4_first",
                Family::Ipv6First => "ipv6_first",
            }),
        );
        self.put(
            "resolver.queries_per_second",
            queries_per_second.to_string(),
        );
    }

    fn ledger(&mut self, ledger: &Ledger) {
        let Ledger {
            interval,
            keep,
            unready_after,
        } = ledger;
        self.put("ledger.interval", time(*interval));
        self.put("ledger.keep", age(*keep));
        self.put("ledger.unready_after", or_off(*unready_after, time));
    }

    fn audit(&mut self, audit: &Audit) {
        let Audit {
            sink,
            interval,
            on_full,
            key_file,
            rotate_size,
            rotate_age,
        } = audit;
        self.put(
            "audit.sink",
            match sink {
                Sink::Off => text("off"),
                Sink::Stdout => text("stdout"),
                Sink::File(file) => path(file),
            },
        );
        self.put("audit.interval", or_off(*interval, time));
        self.put(
            "audit.on_full",
            text(match on_full {
                OnFull::Drop => "drop",
                OnFull::Block => "block",
            }),
        );
        self.put_if("audit.key_file", key_file.as_deref().map(path));
        self.put(
            "audit.rotate_size",
            text(&crate::config::size_text(*rotate_size)),
        );
        self.put("audit.rotate_age", or_off(*rotate_age, age));
    }

    fn listener(&mut self, listener: &Listener, name_of: &dyn Fn(&usize) -> String) {
        let Listener {
            name: _,
            bind,
            upstream,
            routes,
            peek_size,
            peek_timeout,
            proxy_protocol,
            trusted_peers,
            crc,
            max_header,
            first_byte_timeout,
            header_timeout,
            max_pending,
            max_sessions,
            rate,
            on_limit,
            session,
            socket,
        } = listener;
        self.put(
            "bind",
            match &bind[..] {
                [bind] => shown(bind),
                several => list(several, shown),
            },
        );
        self.put_if("upstream", upstream.as_ref().map(name_of));
        if !routes.is_empty() {
            self.put("routes", list(routes, |route| route_text(route, name_of)));
        }
        self.put("peek_size", size(*peek_size));
        self.put("peek_timeout", time(*peek_timeout));
        self.put(
            "proxy_protocol",
            text(match proxy_protocol {
                ProxyProtocol::V2 => "v2",
                ProxyProtocol::Off => "off",
            }),
        );
        self.put_if("trusted_peers", peers(trusted_peers));
        self.put(
            "crc",
            text(match crc {
                CrcPolicy::Verify => "verify",
                CrcPolicy::Ignore => "ignore",
            }),
        );
        self.put("max_header", size(*max_header));
        self.put("first_byte_timeout", time(*first_byte_timeout));
        self.put("header_timeout", time(*header_timeout));
        self.put("max_pending", max_pending.to_string());
        self.put("max_sessions", max_sessions.to_string());
        self.rate(rate.as_ref());
        let waiting = self.on_limit(on_limit);
        self.put_if("max_waiting", waiting.map(|n| n.to_string()));
        self.session(session);
        self.socket(socket);
    }

    /// `socket`, as far as it is there.
    fn socket(&mut self, options: &SocketOptions) {
        let SocketOptions {
            congestion,
            send_buffer,
            receive_buffer,
            notsent_lowat,
            source,
            wan,
        } = options;
        self.within("socket", |lines| {
            lines.put_if("preset", wan.then(|| text("wan")));
            lines.put_if("congestion", congestion.as_deref().map(text));
            lines.put_if("send_buffer", send_buffer.map(size));
            lines.put_if("receive_buffer", receive_buffer.map(size));
            lines.put_if("notsent_lowat", notsent_lowat.map(size));
            lines.put_if("source", source.as_ref().map(shown));
        });
    }
}

fn route_text(route: &Route, name_of: &dyn Fn(&usize) -> String) -> String {
    let Route {
        endpoint,
        network,
        sni,
        host,
        upstream,
    } = route;
    table([
        ("endpoint", endpoint.as_deref().map(text)),
        ("network", network.as_ref().map(shown)),
        ("sni", sni.as_deref().map(text)),
        ("host", host.as_deref().map(text)),
        ("upstream", Some(name_of(upstream))),
    ])
}

/// A name as part of a key.
fn key(name: &str) -> String {
    let bare = |byte: u8| byte.is_ascii_alphanumeric() || b"_-".contains(&byte);
    match !name.is_empty() && name.bytes().all(bare) {
        true => name.to_owned(),
        false => text(name),
    }
}
