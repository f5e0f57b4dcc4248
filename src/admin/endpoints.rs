//! Who is connected now, for `tollgate endpoints`.

use serde::{Deserialize, Serialize};

use crate::account::{AccountTotals, Direction};
use crate::config::{Endpoints, Named};

/// One account with connections that are open.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Connected {
    /// The consumer's endpoint id.
    pub endpoint: String,
    /// The consumer behind it, where one is configured.
    pub consumer: String,
    /// What the configuration calls the endpoint.
    pub name: String,
    /// Who pays for it.
    pub account: String,
    /// Where the connections came in.
    pub listener: String,
    /// Where they go.
    pub upstream: String,
    /// How many are open.
    pub active: u64,
    /// How many were opened since the account is in memory.
    pub opened: u64,
    /// What was passed on since then.
    pub bytes_to_upstream: u64,
    /// As `bytes_to_upstream`.
    pub bytes_to_client: u64,
    /// What the configuration says beside it.
    pub tags: String,
}

/// Those with most connections first.
pub(super) fn connected(accounts: &[AccountTotals], endpoints: &Endpoints) -> Vec<Connected> {
    let open = accounts
        .iter()
        .filter(|account| account.counters.active() > 0);
    let mut lines: Vec<_> = open.map(|account| line(account, endpoints)).collect();
    lines.sort_by(|a, b| (b.active.cmp(&a.active)).then_with(|| key(a).cmp(&key(b))));
    lines
}

fn key(line: &Connected) -> [&str; 4] {
    [
        &line.endpoint,
        &line.consumer,
        &line.listener,
        &line.upstream,
    ]
}

fn line(account: &AccountTotals, endpoints: &Endpoints) -> Connected {
    let (key, counters) = (&account.key, &account.counters);
    let Named {
        name,
        account,
        tags,
    } = endpoints.named(&key.endpoint);
    Connected {
        endpoint: key.endpoint.to_string(),
        consumer: key.consumer.to_string(),
        name: name.to_string(),
        account: account.to_string(),
        listener: key.listener.to_string(),
        upstream: key.upstream.to_string(),
        active: counters.active(),
        opened: counters.opened,
        bytes_to_upstream: counters.bytes[Direction::ToUpstream as usize],
        bytes_to_client: counters.bytes[Direction::ToClient as usize],
        tags: tags.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::account::{AccountKey, CloseReason, Counters};

    fn account(endpoint: &str, opened: u64, closed: u64) -> AccountTotals {
        let mut counters = Counters {
            opened,
            bytes: [1, 2],
            ..Counters::default()
        };
        counters.closed[CloseReason::Completed as usize] = closed;
        AccountTotals {
            key: AccountKey {
                listener: "l".into(),
                endpoint: endpoint.into(),
                consumer: "".into(),
                upstream: "u".into(),
            },
            counters,
            peak: 0,
        }
    }

    #[test]
    fn who_has_a_connection_open_is_shown_and_those_with_most_first() {
        let accounts = [
            account("b", 3, 2),
            account("gone", 3, 3),
            account("c", 9, 2),
            account("a", 1, 0),
        ];
        let lines = connected(&accounts, &Endpoints::default());
        let shown: Vec<_> = lines
            .iter()
            .map(|line| (&*line.endpoint, line.active))
            .collect();
        assert_eq!(shown, [("c", 7), ("a", 1), ("b", 1)]);
        assert_eq!(
            (lines[0].bytes_to_upstream, lines[0].bytes_to_client),
            (1, 2)
        );
    }
}
