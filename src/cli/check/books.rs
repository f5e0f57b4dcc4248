//! Where the books are, and by which names, in a paragraph.

use std::collections::BTreeMap;
use std::fmt::{self, Write as _};

use super::join;
use crate::config::{
    Audit, Config, Consumer, Endpoints, OnFull, Sink, age_text, duration_text, size_text,
};

pub(super) fn describe(out: &mut String, config: &Config) -> fmt::Result {
    match (&config.state_dir, &config.run_dir) {
        (Some(state), Some(run)) => writeln!(
            out,
            "books     in {}, counters in {}",
            state.display(),
            run.display()
        )?,
        _ => writeln!(
            out,
            "books     in memory: they end with the process. Write state_dir to keep them"
        )?,
    }
    let ledger = &config.ledger;
    let unready = ledger.unready_after.map_or(String::new(), |after| {
        format!("; not ready once that has failed for {}", age_text(after))
    });
    if config.state_dir.is_some() {
        writeln!(
            out,
            "ledger    booked every {}, kept for {}{unready}",
            duration_text(ledger.interval),
            age_text(ledger.keep)
        )?;
    }
    writeln!(out, "audit     {}", audit(&config.audit))?;
    writeln!(
        out,
        "accounts  at most {}, in memory for {} without a session; {} endpoints in metrics",
        config.accounts.max,
        age_text(config.accounts.idle_after),
        config.max_metric_endpoints
    )?;
    endpoints(out, &config.endpoints)?;
    consumers(out, &config.consumers.entries)
}

fn audit(audit: &Audit) -> String {
    let mut text = match &audit.sink {
        Sink::Off => return "off".to_owned(),
        Sink::Stdout => "standard output".to_owned(),
        Sink::File(path) => {
            let age = audit.rotate_age.map(age_text);
            let age = age.map_or(String::new(), |age| format!(" or {age}"));
            let size = size_text(audit.rotate_size);
            format!("{}, a new file after {size}{age}", path.display())
        }
    };
    text += &audit
        .interval
        .map_or("; sessions at open and close".to_owned(), |interval| {
            format!(
                "; sessions at open, close and every {}",
                duration_text(interval)
            )
        });
    text += match audit.on_full {
        OnFull::Drop => "; dropped and counted where the sink is slow",
        OnFull::Block => "; no new session where the sink is slow",
    };
    if let Some(path) = &audit.key_file {
        text += &format!("; chained with the key in {}", path.display());
    }
    text
}

fn endpoints(out: &mut String, endpoints: &Endpoints) -> fmt::Result {
    let ids = endpoints.ids().count();
    match endpoints.entries.len() - ids {
        _ if endpoints.entries.is_empty() => Ok(()),
        0 => writeln!(out, "endpoints {ids} known by their id"),
        globs => writeln!(
            out,
            "endpoints {ids} known by their id, {globs} by a pattern"
        ),
    }
}

/// A line for each, with all of its networks.
fn consumers(out: &mut String, entries: &[Consumer]) -> fmt::Result {
    let mut ways = BTreeMap::<_, Vec<_>>::new();
    for entry in entries {
        let way = (&entry.name, &entry.endpoints);
        ways.entry(way).or_default().push(entry.network);
    }
    for ((name, endpoints), networks) in ways {
        let through = match endpoints.is_empty() {
            true => "any endpoint".to_owned(),
            false => join(endpoints),
        };
        let networks = join(&networks);
        writeln!(out, "consumer  {name}: {networks} through {through}")?;
    }
    Ok(())
}
