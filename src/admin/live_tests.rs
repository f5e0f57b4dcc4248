use super::*;
use crate::account::{AccountKey, Counters};

const SECOND: Duration = Duration::from_secs(1);

fn account(endpoint: &str, upstream: &str, opened: u64, bytes: u64) -> AccountTotals {
    AccountTotals {
        key: AccountKey {
            listener: "l".into(),
            endpoint: endpoint.into(),
            consumer: "".into(),
            upstream: upstream.into(),
        },
        counters: Counters {
            opened,
            bytes: [bytes, 2 * bytes],
            ..Counters::default()
        },
        peak: 0,
    }
}

fn look(at: Instant, accounts: Vec<AccountTotals>) -> Look {
    use crate::account::{Books, Limits, Place};
    let books = Books::new(Place::Memory, &["l".into()], 1, Limits::of_most(1));
    let snapshot = books.expect("memory").snapshot();
    Look::at(
        &Snapshot {
            accounts,
            ..snapshot
        },
        at,
    )
}

fn rows(table: &Table, asked: &Asked, endpoints: &Endpoints) -> Vec<Row> {
    let filter = Filter::new(&asked.filter, endpoints);
    let found = table.look.rows.iter().filter(|(key, _)| filter.fits(key));
    let mut lines: Vec<_> = found.map(|(key, value)| table.line(key, value)).collect();
    first(&mut lines, asked.sort, asked.rows);
    lines.iter().map(|line| line.told(endpoints)).collect()
}

#[test]
fn rates_are_told_from_looks_that_are_apart_whoever_asks_and_however_often() {
    let mut remembered = Remembered::default();
    let began = Instant::now();
    let mut bytes = 0;
    let mut at = |ms: u64| {
        bytes += 1000;
        let at = began + Duration::from_millis(ms);
        let table = remembered.look(at, || look(at, vec![account("a", "u", 1, bytes)]));
        table.rates().map(|rates| rates.bytes_to_upstream)
    };
    assert_eq!(at(0), None, "one look tells no rate");
    assert_eq!(at(100), None, "told what was told a moment ago");
    assert_eq!(at(500), None, "too soon");
    // 1000 bytes with each question: this is the fourth.
    assert_eq!(at(1000), Some(3000.0));
    assert_eq!(at(1100), Some(3000.0));
    // Half a second after a look there is an older one.
    let soon = at(1500).expect("a rate");
    assert!((soon - 5000.0 / 1.5).abs() < 1.0, "{soon}");
    assert_eq!(at(60_000), None, "nobody asked for a minute");
}

#[test]
fn an_endpoint_is_one_row_over_all_its_upstreams() {
    let began = Instant::now();
    let mut remembered = Remembered::default();
    remembered.look(began, || {
        look(
            began,
            vec![account("a", "u", 1, 10), account("a", "v", 1, 10)],
        )
    });
    let later = began + 2 * SECOND;
    let table = remembered.look(later, || {
        let accounts = vec![
            account("a", "u", 1, 30),
            account("a", "v", 5, 10),
            account("b", "u", 2, 4),
        ];
        look(later, accounts)
    });
    let rows = rows(&table, &Asked::default(), &Endpoints::default());
    let told: Vec<_> = rows
        .iter()
        .map(|row| {
            (
                &*row.endpoint,
                row.sessions,
                row.bytes,
                row.rates.expect("two looks"),
            )
        })
        .collect();
    let rates = |opened: f64, bytes: f64| Rates {
        opened,
        refused: 0.0,
        bytes_to_upstream: bytes,
        bytes_to_client: 2.0 * bytes,
    };
    assert_eq!(
        told,
        [
            ("a", 6, 120, rates(2.0, 10.0)),
            ("b", 2, 12, rates(1.0, 2.0))
        ]
    );
}

#[test]
fn the_first_few_are_told_in_the_order_that_was_asked_for() {
    let now = Instant::now();
    let accounts = vec![
        account("a", "u", 3, 1),
        account("b", "u", 2, 9),
        account("c", "u", 1, 5),
    ];
    let table = Table {
        look: Arc::new(look(now, accounts)),
        before: None,
    };
    for (sort, expected) in [
        (Sort::Rate, ["b", "c"]), // without rates by what was moved so far
        (Sort::Sessions, ["a", "b"]),
        (Sort::Endpoint, ["a", "b"]),
    ] {
        let asked = Asked {
            sort,
            rows: 2,
            ..Asked::default()
        };
        let rows = rows(&table, &asked, &Endpoints::default());
        let told: Vec<_> = rows.iter().map(|row| &*row.endpoint).collect();
        assert_eq!(told, expected, "{sort:?}");
    }
}

#[test]
fn a_filter_finds_ids_and_what_the_configuration_calls_them() {
    let entry = |pattern: &str, name: &str| EndpointEntry {
        pattern: pattern.into(),
        name: Some(name.into()),
        account: None,
        tags: None,
        policy: crate::config::PolicyKeys::default(),
    };
    let endpoints = Endpoints {
        entries: vec![entry("vpce-1", "Billing"), entry("vpce-2*", "batch")],
    };
    let now = Instant::now();
    let accounts = ["vpce-1", "vpce-21", "vpce-3"].map(|id| account(id, "u", 1, 1));
    let table = Table {
        look: Arc::new(look(now, accounts.into())),
        before: None,
    };
    for (filter, expected) in [
        ("", &["vpce-1", "vpce-21", "vpce-3"][..]),
        ("BILL", &["vpce-1"]),
        ("batch", &["vpce-21"]),
        ("E-2", &["vpce-21"]),
        ("nobody", &[]),
    ] {
        let asked = Asked {
            filter: filter.to_owned(),
            ..Asked::default()
        };
        let rows = rows(&table, &asked, &endpoints);
        let told: Vec<_> = rows.iter().map(|row| &*row.endpoint).collect();
        assert_eq!(told, expected, "{filter}");
    }
}
