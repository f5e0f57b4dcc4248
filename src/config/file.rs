//! The TOML file, key by key: what may stand where, and at which place each value stood. No value is judged here.

use std::fmt;

use serde::Deserialize;
use serde::de::{MapAccess, SeqAccess, Visitor};
use toml::Spanned;

use super::error::Mistake;
use super::values::nearest;

/// A key that may be left out.
pub(super) type Key = Option<Spanned<Raw>>;

/// A value as it was written. One type for every key, so that a number where a duration belongs is answered by the one who
/// knows what belongs there, and beside all other mistakes of the file.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Raw {
    Text(String),
    Integer(i64),
    Flag(bool),
    List(Vec<Spanned<Raw>>),
    /// A table, key by key as written.
    Table(Vec<(Spanned<String>, Spanned<Raw>)>),
    /// What no key takes, named for the message.
    Other(&'static str),
}

/// The whole file.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct File {
    pub(super) workers: Key,
    pub(super) relay_id: Key,
    pub(super) state_dir: Key,
    pub(super) run_dir: Key,
    pub(super) admin: AdminTable,
    pub(super) health: HealthTable,
    pub(super) drain: DrainTable,
    pub(super) log: LogTable,
    pub(super) session: SessionTable,
    pub(super) relay: RelayTable,
    pub(super) resolver: ResolverTable,
    pub(super) accounts: AccountsTable,
    pub(super) metrics: MetricsTable,
    pub(super) ledger: LedgerTable,
    pub(super) audit: AuditTable,
    pub(super) limits: LimitsTable,
    pub(super) endpoint: Entries,
    pub(super) consumer: Vec<Spanned<ConsumerTable>>,
    pub(super) listener: Vec<Spanned<ListenerTable>>,
    pub(super) upstream: Vec<Spanned<UpstreamTable>>,
}

/// `[admin]`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default, expecting = "a table: [admin]")]
pub(super) struct AdminTable {
    pub(super) bind: Key,
    pub(super) socket: Key,
}

/// `[health]`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default, expecting = "a table: [health]")]
pub(super) struct HealthTable {
    pub(super) bind: Key,
    pub(super) trusted_peers: Key,
    pub(super) fail_without: Key,
}

/// `[drain]`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default, expecting = "a table: [drain]")]
pub(super) struct DrainTable {
    pub(super) accept_for: Key,
    pub(super) deadline: Key,
    pub(super) spread: Key,
    pub(super) close: Key,
}

/// `[log]`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default, expecting = "a table: [log]")]
pub(super) struct LogTable {
    pub(super) format: Key,
    pub(super) level: Key,
}

/// `[session]`, and `session = { … }` of a listener or an upstream.
#[derive(Debug, Default, Deserialize)]
#[serde(
    deny_unknown_fields,
    default,
    expecting = "a table: session = { idle_timeout = \"1h\" }"
)]
pub(super) struct SessionTable {
    pub(super) idle_timeout: Key,
    pub(super) half_close_timeout: Key,
    pub(super) max_age: Key,
    pub(super) keepalive_idle: Key,
    pub(super) keepalive_interval: Key,
    pub(super) keepalive_probes: Key,
    pub(super) user_timeout: Key,
}

/// Keys that belong into a table of a listener or an upstream: they are looked for beside it, where people write them.
const INNER_KEYS: [(&str, &[&str]); 7] = [
    (
        "session",
        &[
            "idle_timeout",
            "half_close_timeout",
            "max_age",
            "keepalive_idle",
            "keepalive_interval",
            "keepalive_probes",
            "user_timeout",
        ],
    ),
    (
        "socket",
        &[
            "preset",
            "congestion",
            "send_buffer",
            "receive_buffer",
            "notsent_lowat",
            "source",
        ],
    ),
    (
        "health",
        &[
            "check", "interval", "rise", "fall", "path", "status", "send", "expect",
        ],
    ),
    ("failover", &["below", "back_above", "back_after"]),
    (
        "limits",
        &[
            "max_sessions",
            "sessions_per_second",
            "sessions_burst",
            "on_limit",
            "wait_for",
            "max_waiting",
        ],
    ),
    ("eject", &["pause", "longest", "panic_below"]),
    ("targets", &["target", "priority", "weight"]),
];

/// `[relay]`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default, expecting = "a table: [relay]")]
pub(super) struct RelayTable {
    pub(super) mode: Key,
    pub(super) spin: Key,
    pub(super) pin: Key,
    pub(super) stalled_receive_buffer: Key,
}

/// `[resolver]`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default, expecting = "a table: [resolver]")]
pub(super) struct ResolverTable {
    pub(super) servers: Key,
    pub(super) search: Key,
    pub(super) family: Key,
    pub(super) queries_per_second: Key,
}

/// `[accounts]`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default, expecting = "a table: [accounts]")]
pub(super) struct AccountsTable {
    pub(super) max: Key,
    pub(super) idle_after: Key,
}

/// `[ledger]`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default, expecting = "a table: [ledger]")]
pub(super) struct LedgerTable {
    pub(super) interval: Key,
    pub(super) keep: Key,
    pub(super) unready_after: Key,
}

/// `[audit]`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default, expecting = "a table: [audit]")]
pub(super) struct AuditTable {
    pub(super) sink: Key,
    pub(super) interval: Key,
    pub(super) on_full: Key,
    pub(super) key_file: Key,
    pub(super) rotate_size: Key,
    pub(super) rotate_age: Key,
}

/// `[limits]`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default, expecting = "a table: [limits]")]
pub(super) struct LimitsTable {
    pub(super) max_sessions: Key,
    pub(super) sessions_per_second: Key,
    pub(super) sessions_burst: Key,
    pub(super) on_limit: Key,
    pub(super) wait_for: Key,
    pub(super) max_waiting: Key,
}

/// Tables below `[endpoint]`, by the id or glob they are about. The table around them has no place of its own where only they have headers.
#[derive(Debug, Default)]
pub(super) struct Entries(pub(super) Vec<(Spanned<String>, Spanned<Raw>)>);

/// `[[consumer]]`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default, expecting = "a table: [[consumer]]")]
pub(super) struct ConsumerTable {
    pub(super) name: Key,
    pub(super) endpoints: Key,
    pub(super) networks: Key,
}

/// `[metrics]`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default, expecting = "a table: [metrics]")]
pub(super) struct MetricsTable {
    pub(super) max_endpoints: Key,
}

/// `[[listener]]`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default, expecting = "a table: [[listener]]")]
pub(super) struct ListenerTable {
    pub(super) name: Key,
    pub(super) bind: Key,
    pub(super) upstream: Key,
    pub(super) routes: Key,
    pub(super) peek_size: Key,
    pub(super) peek_timeout: Key,
    pub(super) proxy_protocol: Key,
    pub(super) trusted_peers: Key,
    pub(super) crc: Key,
    pub(super) max_header: Key,
    pub(super) first_byte_timeout: Key,
    pub(super) header_timeout: Key,
    pub(super) max_pending: Key,
    pub(super) max_sessions: Key,
    pub(super) sessions_per_second: Key,
    pub(super) sessions_burst: Key,
    pub(super) on_limit: Key,
    pub(super) wait_for: Key,
    pub(super) max_waiting: Key,
    pub(super) session: SessionTable,
    pub(super) socket: Key,
}

/// `[[upstream]]`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default, expecting = "a table: [[upstream]]")]
pub(super) struct UpstreamTable {
    pub(super) name: Key,
    pub(super) targets: Key,
    pub(super) connect_timeout: Key,
    pub(super) connect_deadline: Key,
    pub(super) min_ttl: Key,
    pub(super) max_ttl: Key,
    pub(super) stale_for: Key,
    pub(super) allow_addresses: Key,
    pub(super) balance: Key,
    pub(super) next_try_after: Key,
    pub(super) retry_budget: Key,
    pub(super) on_vanish: Key,
    pub(super) vanish_deadline: Key,
    pub(super) vanish_spread: Key,
    pub(super) failover: Key,
    pub(super) eject: Key,
    pub(super) slow_start: Key,
    pub(super) health: Key,
    pub(super) ahead: Key,
    pub(super) proxy_protocol: Key,
    pub(super) session: SessionTable,
    pub(super) socket: Key,
}

impl File {
    /// Parses the text. The first thing that is not TOML, or a key that does not exist, ends it.
    pub(super) fn parse(text: &str) -> Result<Self, Vec<Mistake>> {
        toml::from_str(text).map_err(|error| vec![mistake(&error)])
    }
}

/// What serde or the TOML parser found, in our words.
fn mistake(error: &toml::de::Error) -> Mistake {
    let said = error.message();
    let (key, problem, help) = if let Some(known) = said.strip_prefix("unknown field ") {
        // serde: unknown field `a`, expected one of `b`, `c`
        let mut quoted = known.split('`').skip(1).step_by(2);
        let key = quoted.next().unwrap_or_default();
        let help = unknown_key_help(key, &quoted.collect::<Vec<_>>());
        (
            key.escape_debug().to_string(),
            "there is no such key here".to_owned(),
            help,
        )
    } else if said.contains("expected a sequence") {
        let help = "two brackets, as in [[listener]], [[upstream]] and [[consumer]]";
        (
            String::new(),
            "this table may stand several times, and begins otherwise".to_owned(),
            help.to_owned(),
        )
    } else if let Some((_, expected)) = said.split_once(", expected a table: ") {
        (
            String::new(),
            "a single value where a table belongs".to_owned(),
            format!("write {expected}"),
        )
    } else if said.contains("expected a spanned value") {
        // To serde a date is a map, whose one key has no place.
        let help = "durations, addresses and words stand in quotes: \"5m\"";
        (
            String::new(),
            "a date or a time of day, which no key takes".to_owned(),
            help.to_owned(),
        )
    } else {
        let help = if said.contains("duplicate key") {
            "keep one of the two"
        } else if said.contains("quoted") {
            "durations, sizes, addresses and words stand in quotes: \"5m\", \"4KiB\", \"0.0.0.0:8443\""
        } else {
            "a line is a header, [table] or [[listener]], or key = value (https://toml.io)"
        };
        (
            String::new(),
            format!("this cannot be read as TOML: {said}"),
            help.to_owned(),
        )
    };
    Mistake {
        key,
        problem,
        help,
        span: error.span(),
        other: None,
    }
}

/// What to do about a key that is not `known` where it was written.
pub(super) fn unknown_key_help(key: &str, known: &[&str]) -> String {
    let inner = INNER_KEYS
        .iter()
        .find(|(table, keys)| known.contains(table) && keys.contains(&key));
    if let Some((table, _)) = inner {
        // At the top of the file `session` is a table of its own, with a header; other tables of these names have other keys there.
        return match (*table, known.contains(&"listener")) {
            ("session" | "limits", true) => format!("it belongs under [{table}]: {key} = …"),
            (table, true) => format!("it belongs to an upstream: {table} = {{ {key} = … }}"),
            ("targets", _) => format!(
                "it belongs to one target: targets = [{{ target = \"HOST:PORT\", {key} = … }}]"
            ),
            _ => format!("here it belongs into {table}: {table} = {{ {key} = … }}"),
        };
    }
    let list = known.join(", ");
    match nearest(key, known.iter().copied()) {
        Some(near) => format!("did you mean {near}? Known here: {list}"),
        None => format!("known here: {list}"),
    }
}

impl<'de> Deserialize<'de> for Raw {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(RawVisitor)
    }
}

impl<'de> Deserialize<'de> for Entries {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(EntriesVisitor)
    }
}

struct EntriesVisitor;

impl<'de> Visitor<'de> for EntriesVisitor {
    type Value = Entries;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a table: [endpoint.\"vpce-08d2bf8fac5001001\"]")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Entries, A::Error> {
        let mut entries = Vec::new();
        while let Some(entry) = map.next_entry()? {
            entries.push(entry);
        }
        Ok(Entries(entries))
    }
}

struct RawVisitor;

impl<'de> Visitor<'de> for RawVisitor {
    type Value = Raw;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_str<E>(self, text: &str) -> Result<Raw, E> {
        Ok(Raw::Text(text.to_owned()))
    }

    fn visit_i64<E>(self, number: i64) -> Result<Raw, E> {
        Ok(Raw::Integer(number))
    }

    fn visit_i128<E>(self, _: i128) -> Result<Raw, E> {
        Ok(Raw::Other("a number beyond every bound"))
    }

    fn visit_f64<E>(self, _: f64) -> Result<Raw, E> {
        Ok(Raw::Other("a number with a fraction"))
    }

    fn visit_bool<E>(self, value: bool) -> Result<Raw, E> {
        Ok(Raw::Flag(value))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Raw, A::Error> {
        let mut values = Vec::new();
        while let Some(value) = list.next_element()? {
            values.push(value);
        }
        Ok(Raw::List(values))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Raw, A::Error> {
        let mut entries = Vec::new();
        while let Some(entry) = map.next_entry()? {
            entries.push(entry);
        }
        Ok(Raw::Table(entries))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn only_mistake(text: &str) -> Mistake {
        let mut mistakes = File::parse(text).expect_err("must be refused");
        assert_eq!(mistakes.len(), 1, "{mistakes:?}");
        mistakes.remove(0)
    }

    #[test]
    fn unknown_key_gets_a_suggestion() {
        let text = "[session]\nidletimeout = \"1h\"\n";
        let mistake = only_mistake(text);
        assert_eq!(mistake.key, "idletimeout");
        assert_eq!(mistake.line(text), Some(2));
        assert!(
            mistake.help.starts_with("did you mean idle_timeout?"),
            "{}",
            mistake.help
        );
    }

    #[test]
    fn unknown_table_gets_a_suggestion() {
        assert!(
            only_mistake("[sesion]\n")
                .help
                .starts_with("did you mean session?")
        );
    }

    #[test]
    fn a_session_key_beside_session_is_sent_there() {
        let mistake = only_mistake("[[listener]]\nidle_timeout = \"1h\"\n");
        assert!(
            mistake.help.contains("session = { idle_timeout = … }"),
            "{}",
            mistake.help
        );
        assert!(
            only_mistake("max_age = \"1h\"\n")
                .help
                .contains("under [session]")
        );
    }

    #[test]
    fn a_single_bracket_is_explained() {
        assert!(
            only_mistake("[listener]\nname = \"a\"\n")
                .help
                .contains("[[listener]]")
        );
    }

    #[test]
    fn text_without_quotes_is_explained() {
        assert!(
            only_mistake("[session]\nidle_timeout = 5m\n")
                .help
                .contains("\"5m\"")
        );
    }

    #[test]
    fn session_keys_name_the_fields_of_the_table() {
        for key in INNER_KEYS[0].1 {
            File::parse(&format!("[session]\n{key} = 1\n")).expect("every listed key exists");
        }
    }

    #[test]
    fn each_value_knows_its_place() {
        let text = "[resolver]\nservers = [\"10.0.0.2\"]\n";
        let file = File::parse(text).expect("valid");
        let servers = file.resolver.servers.expect("written");
        assert_eq!(&text[servers.span()], "[\"10.0.0.2\"]");
        let Raw::List(items) = servers.get_ref() else {
            panic!("a list")
        };
        assert_eq!(&text[items[0].span()], "\"10.0.0.2\"");
    }
}
