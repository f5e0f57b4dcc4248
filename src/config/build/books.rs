//! Where the books are kept, for how long, and by which names.

use std::cmp::Reverse;
use std::ops::{Range, RangeInclusive};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use toml::Spanned;

use super::Builder;
use super::findings::strip;
use super::limits::{Dependent, POLICY_KEYS};
use crate::account::ledger::FILE as LEDGER_FILE;
use crate::config::file::{
    AccountsTable, AuditTable, ConsumerTable, Entries, File, Key, LedgerTable, Raw,
};
use crate::config::values::{self, Parsed, wrong};
use crate::config::{
    ADMIN_SOCKET, Accounts, Audit, Consumer, Consumers, Directories, EndpointEntry, Endpoints,
    Ledger, OnFull, PolicyKeys, Sink, addresses, defaults, patterns,
};

/// Longest path of a socket: `sun_path` of unix(7) without its closing zero.
const LONGEST_SOCKET: usize = 107;

/// Between two bookings, or two records of one session: no busier than ten times a second.
const INTERVALS: RangeInclusive<Duration> = Duration::from_millis(100)..=Duration::from_secs(3600);

/// How long hours are kept.
const AGES: RangeInclusive<Duration> =
    Duration::from_secs(3600)..=Duration::from_secs(3650 * 24 * 3600);

/// How old a file of records may grow.
const ROTATE_AGES: RangeInclusive<Duration> =
    Duration::from_secs(1)..=Duration::from_secs(3650 * 24 * 3600);

/// How long an account stays without a session: short enough to be worth it, long enough not to be made anew with each request.
const IDLE: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(30 * 24 * 3600);

/// How large a file may grow: room for one record at least.
const ROTATE_SIZES: RangeInclusive<u64> = 4 * 1024..=1 << 40;

/// Entries of `[endpoint]`, and networks of all consumers: each is looked through one by one.
const MOST_ENTRIES: usize = 10_000;

/// Longest name of an endpoint, an account or a tag, in bytes.
const LONGEST_NAME: usize = 128;

/// Most tags of an endpoint.
const MOST_TAGS: usize = 16;

impl Builder {
    pub(super) fn directories(&mut self, file: &File) -> Directories {
        let written = Directories {
            state_dir: self
                .found
                .value("state_dir", &file.state_dir, absolute_path),
            run_dir: self.found.value("run_dir", &file.run_dir, absolute_path),
        };
        written.or_environment()
    }

    pub(super) fn admin_socket(&mut self, key: &Key, run_dir: Option<&Path>) -> Option<PathBuf> {
        let at = "admin.socket";
        let written = self.found.value(at, key, |raw| {
            values::off_or(raw, |raw| fits_socket(absolute_path(raw)?))
        });
        if let Some(written) = written {
            return written;
        }
        let customary = run_dir?.join(ADMIN_SOCKET);
        if let (None, Err(wrong)) = (key, fits_socket(customary.clone())) {
            self.found.mistake(at, &wrong.problem, &wrong.help, None);
        }
        Some(customary)
    }

    pub(super) fn accounts(&mut self, table: &AccountsTable) -> Accounts {
        let idle = |raw: &_| values::age_within(raw, IDLE);
        Accounts {
            max: self
                .found
                .count("accounts.max", &table.max, defaults::MAX_ACCOUNTS),
            idle_after: self
                .found
                .value("accounts.idle_after", &table.idle_after, idle)
                .unwrap_or(defaults::ACCOUNT_IDLE_AFTER),
        }
    }

    pub(super) fn ledger(&mut self, table: &LedgerTable) -> Ledger {
        let unready = |raw: &_| values::off_or(raw, values::time);
        Ledger {
            interval: self
                .found
                .value("ledger.interval", &table.interval, |raw| {
                    values::time_within(raw, INTERVALS)
                })
                .unwrap_or(defaults::LEDGER_INTERVAL),
            keep: self
                .found
                .value("ledger.keep", &table.keep, |raw| {
                    values::age_within(raw, AGES)
                })
                .unwrap_or(defaults::LEDGER_KEEP),
            unready_after: self
                .found
                .value("ledger.unready_after", &table.unready_after, unready)
                .flatten(),
        }
    }

    pub(super) fn audit(&mut self, table: &AuditTable, state_dir: Option<&Path>) -> Audit {
        let sink = self.found.value("audit.sink", &table.sink, sink);
        let sink = sink.unwrap_or(Sink::Stdout);
        let records = [
            ("audit.interval", &table.interval),
            ("audit.on_full", &table.on_full),
            ("audit.key_file", &table.key_file),
        ];
        let files = [
            ("audit.rotate_size", &table.rotate_size),
            ("audit.rotate_age", &table.rotate_age),
        ];
        let (nowhere, in_file) = (sink == Sink::Off, matches!(sink, Sink::File(_)));
        for (at, key) in records.into_iter().filter(|_| nowhere) {
            let because = "there are no records, with sink = \"off\"";
            self.found.useless(at, key, because, "remove it");
        }
        for (at, key) in files.into_iter().filter(|_| !in_file) {
            let because = "only a file is followed by another";
            let help = "remove it, or write sink = \"/var/log/tollgate/audit.jsonl\"";
            self.found.useless(at, key, because, help);
        }
        let interval = |raw: &_| values::off_or(raw, |raw| values::time_within(raw, INTERVALS));
        let size = |raw: &_| values::size(raw, ROTATE_SIZES);
        let age = |raw: &_| values::off_or(raw, |raw| values::age_within(raw, ROTATE_AGES));
        let rotate_size = self
            .found
            .value("audit.rotate_size", &table.rotate_size, size);
        let key_file = self
            .found
            .value("audit.key_file", &table.key_file, absolute_path);
        if let Sink::File(path) = &sink {
            self.sink_is_no_others(table, path, key_file.as_deref(), state_dir);
        }
        Audit {
            interval: self
                .found
                .value("audit.interval", &table.interval, interval)
                .unwrap_or(Some(defaults::AUDIT_INTERVAL)),
            on_full: self.found.word(
                "audit.on_full",
                &table.on_full,
                &[("drop", OnFull::Drop), ("block", OnFull::Block)],
            ),
            key_file,
            rotate_size: rotate_size.map_or(defaults::AUDIT_ROTATE_SIZE, |size| size as u64),
            rotate_age: self
                .found
                .value("audit.rotate_age", &table.rotate_age, age)
                .unwrap_or(Some(defaults::AUDIT_ROTATE_AGE)),
            sink,
        }
    }

    /// Records are not written into what is something else.
    fn sink_is_no_others(
        &mut self,
        table: &AuditTable,
        path: &Path,
        key_file: Option<&Path>,
        state_dir: Option<&Path>,
    ) {
        let ledger = LEDGER_FILE.as_bytes();
        let name = path.file_name().unwrap_or_default().as_bytes();
        let is_ledger = path.parent() == state_dir && name.starts_with(ledger);
        let what = match key_file == Some(path) {
            true => "it is the key_file as well",
            false if is_ledger && state_dir.is_some() => "that is where the ledger is",
            false => return,
        };
        let help = "the trail needs a file of its own: \"/var/log/tollgate/audit.jsonl\"";
        let span = table.sink.as_ref().map(toml::Spanned::span);
        self.found.mistake("audit.sink", what, help, span);
    }

    pub(super) fn endpoints(&mut self, entries: &Entries) -> Endpoints {
        if let Some((_, extra)) = entries.0.get(MOST_ENTRIES) {
            let problem = format!("there are more than {MOST_ENTRIES} of them");
            let help = "write one entry with \"*\" for those that have the same account and tags";
            self.found
                .mistake("endpoint", &problem, help, Some(extra.span()));
            return Endpoints::default();
        }
        let mut policies = Vec::new();
        let mut judged: Vec<_> = entries
            .0
            .iter()
            .filter_map(|(id, table)| self.endpoint(id, table, &mut policies))
            .collect();
        self.policies_mean_something(&policies);
        let specific = |entry: &EndpointEntry| match entry.is_id() {
            true => (false, Reverse(0), entry.pattern.clone()),
            false => (true, Reverse(entry.pattern.len()), entry.pattern.clone()),
        };
        judged.sort_by_cached_key(specific);
        Endpoints { entries: judged }
    }

    fn endpoint(
        &mut self,
        id: &Spanned<String>,
        table: &Spanned<Raw>,
        policies: &mut Vec<(PolicyKeys, Dependent)>,
    ) -> Option<EndpointEntry> {
        const EXAMPLE: &str = "a table: [endpoint.\"vpce-08d2bf8fac5001001\"] with name = \"…\"";
        let written = Some(Spanned::new(id.span(), Raw::Text(id.get_ref().clone())));
        let pattern = self.found.value("endpoint", &written, patterns::endpoint);
        const LABELS: [&str; 3] = ["name", "account", "tags"];
        let mut known = [""; LABELS.len() + POLICY_KEYS.len()];
        known[..LABELS.len()].copy_from_slice(&LABELS);
        known[LABELS.len()..].copy_from_slice(&POLICY_KEYS);
        let [name, account, tags, keys @ ..] =
            self.found.open("endpoint", table, EXAMPLE, known)?;
        let (policy, dependent) = self.policy(keys);
        policies.push((policy.clone(), dependent));
        let entry = EndpointEntry {
            name: self.found.value("endpoint.name", &name, label),
            account: self.found.value("endpoint.account", &account, label),
            tags: self.found.list("endpoint.tags", &tags, tag).map(strip),
            policy,
            pattern: pattern?,
        };
        if entry
            .tags
            .as_ref()
            .is_some_and(|tags| tags.len() > MOST_TAGS)
        {
            let problem = format!("there are more than {MOST_TAGS}");
            let help = "keep those that reports are cut by";
            let span = tags.as_ref().map(Spanned::span);
            self.found.mistake("endpoint.tags", &problem, help, span);
        }
        let empty = matches!(table.get_ref(), Raw::Table(keys) if keys.is_empty());
        if empty {
            let help = "write name, account, tags or a limit into it, or remove it";
            let problem = "says nothing of the endpoint";
            self.found
                .mistake("endpoint", problem, help, Some(id.span()));
        }
        Some(entry)
    }

    pub(super) fn consumers(&mut self, tables: &[Spanned<ConsumerTable>]) -> Consumers {
        let mut placed: Vec<(Consumer, Range<usize>)> = Vec::new();
        for table in tables {
            self.consumer(table, &mut placed);
        }
        if let Some((_, span)) = placed.get(MOST_ENTRIES) {
            let problem = format!("all of them have more than {MOST_ENTRIES} networks");
            let help = "name larger networks";
            self.found
                .mistake("consumer.networks", &problem, help, Some(span.clone()));
        }
        let mut entries: Vec<Consumer> = placed.into_iter().map(|(entry, _)| entry).collect();
        entries.sort_by_key(|entry| Reverse(entry.network.prefix_len()));
        Consumers { entries }
    }

    fn consumer(
        &mut self,
        table: &Spanned<ConsumerTable>,
        placed: &mut Vec<(Consumer, Range<usize>)>,
    ) {
        let (place, table) = (table.span(), table.get_ref());
        let name = self.found.required(
            "consumer.name",
            &table.name,
            &place,
            "name = \"billing\"",
            addresses::name,
        );
        let endpoints = "consumer.endpoints";
        let empty =
            |value: &Spanned<Raw>| matches!(value.get_ref(), Raw::List(list) if list.is_empty());
        if let Some(value) = table.endpoints.as_ref().filter(|value| empty(value)) {
            let help = "leave the key out where the consumer may come through any endpoint";
            self.found
                .mistake(endpoints, "is empty", help, Some(value.span()));
        }
        let through = self
            .found
            .list(endpoints, &table.endpoints, patterns::endpoint);
        let networks = self.found.required_list(
            "consumer.networks",
            &table.networks,
            &place,
            "networks = [\"10.1.0.0/16\"]",
            addresses::network,
        );
        let (Some(name), Some(networks)) = (name, networks) else {
            return;
        };
        let through = strip(through.unwrap_or_default());
        for network in networks {
            let entry = Consumer {
                name: name.clone(),
                endpoints: through.clone(),
                network: *network.get_ref(),
            };
            if let Some((earlier, span)) = placed.iter().find(|(earlier, _)| same(earlier, &entry))
            {
                let problem = format!(
                    "{} is {}'s already, through the same endpoint",
                    entry.network, earlier.name
                );
                let other = Some((span.clone(), "first named here".to_owned()));
                let help = "keep one of them, or tell them apart by endpoints or longer prefixes";
                let span = Some(network.span());
                self.found
                    .mistake("consumer.networks", &problem, help, span);
                if let Some(mistake) = self.found.mistakes.last_mut() {
                    mistake.other = other;
                }
            }
            placed.push((entry, network.span()));
        }
    }
}

/// Whether one address through one endpoint could be both, and nothing says which. Overlapping globs are not looked for: the first wins.
fn same(a: &Consumer, b: &Consumer) -> bool {
    let shared = || {
        a.endpoints
            .iter()
            .any(|endpoint| b.endpoints.contains(endpoint))
    };
    let anywhere = a.endpoints.is_empty() && b.endpoints.is_empty();
    a.network == b.network && (anywhere || shared())
}

fn sink(raw: &Raw) -> Parsed<Sink> {
    const HELP: &str =
        "write \"stdout\", \"off\", or the path of a file: \"/var/log/tollgate/audit.jsonl\"";
    let text = raw.text(HELP)?;
    match text {
        "off" => Ok(Sink::Off),
        "stdout" => Ok(Sink::Stdout),
        path if path.starts_with('/') => absolute_path(raw).map(Sink::File),
        _ => match values::nearest(text, ["off", "stdout"].into_iter()) {
            Some(near) => wrong(
                format!("{text:?} is neither \"stdout\" nor \"off\" nor a path from / on"),
                format!("did you mean {near:?}?"),
            ),
            None => wrong(format!("{text:?} is not a path from / on"), HELP),
        },
    }
}

/// A path from the root on: a service's working directory is nobody's idea of a place.
fn absolute_path(raw: &Raw) -> Parsed<PathBuf> {
    const HELP: &str = "write the whole path, for instance \"/var/lib/tollgate\"";
    let text = raw.text(HELP)?;
    if text.contains('\0') {
        return wrong(format!("{text:?} has a zero in it, as no path has"), HELP);
    }
    if text.starts_with('/') {
        return Ok(text.into());
    }
    wrong(format!("{text:?} does not begin at the root, /"), HELP)
}

fn fits_socket(path: PathBuf) -> Parsed<PathBuf> {
    let bytes = path.as_os_str().as_bytes().len();
    if bytes <= LONGEST_SOCKET {
        return Ok(path);
    }
    wrong(
        format!(
            "the path of the admin socket, {}, has {bytes} bytes, and the kernel takes {LONGEST_SOCKET}",
            path.display()
        ),
        "write a shorter one, for instance \"/run/tollgate/admin.sock\", or a shorter run_dir",
    )
}

/// What people call something: it stands in tables, files and labels.
fn label(raw: &Raw) -> Parsed<Arc<str>> {
    let help = format!("write 1 to {LONGEST_NAME} bytes of text on one line");
    let text = raw.text(&help)?;
    let fits = (1..=LONGEST_NAME).contains(&text.len()) && !text.chars().any(char::is_control);
    match fits {
        true if text.trim() == text => Ok(text.into()),
        true => wrong(
            format!("{text:?} has blanks around it"),
            format!("write {:?}", text.trim()),
        ),
        false => wrong(format!("{text:?} cannot be a name"), help),
    }
}

/// One word: several are joined by spaces.
fn tag(raw: &Raw) -> Parsed<Arc<str>> {
    let text = label(raw)?;
    match text.contains(char::is_whitespace) {
        true => wrong(
            format!("{text:?} has a blank in it, and tags are told apart by blanks"),
            format!("write {:?}", text.replace(char::is_whitespace, "-")),
        ),
        false => Ok(text),
    }
}
