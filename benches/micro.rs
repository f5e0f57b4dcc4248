//! What happens once per connection or once per transfer, by itself: a header decoded, an address chosen, an account found, bytes booked.
//!
//! `cargo bench --bench micro`

use std::{
    collections::HashMap,
    net::{TcpListener, TcpStream},
    path::Path,
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};

use divan::{Bencher, black_box};
use jiff::{SignedDuration, Timestamp};
use tempfile::TempDir;
use tollgate::{
    account::{
        Account, AccountKey, AccountTotals, Books, CloseReason, Counters, Direction, Limits, Meter,
        Place, SlotTotals,
        audit::{About, Facts, Leg, Scribe, Trail},
        ledger::{
            By, FILE, Query,
            read::Reading,
            store::{Batch, Store},
        },
    },
    config::{Balance, Config, CrcPolicy, Endpoints, Family},
    proxy_protocol::decode::{Rules, decode},
    sys::clock::monotonic_ms,
    upstream::{
        Upstream,
        balance::{Balancer, key_of},
    },
};

/// A header as NLB sends it for PrivateLink: 100 bytes with checksum, endpoint id and padding.
const HEADER: &str = include_str!("../src/proxy_protocol/vectors/privatelink-tcp4.hex");

fn main() {
    divan::main();
}

fn header() -> Vec<u8> {
    let digits = HEADER.trim().as_bytes().chunks(2);
    let byte = |pair: &[u8]| {
        let pair = std::str::from_utf8(pair).expect("hexadecimal digits");
        u8::from_str_radix(pair, 16).expect("hexadecimal digits")
    };
    digits.map(byte).collect()
}

/// A whole header, with its checksum verified and not.
#[divan::bench(args = [CrcPolicy::Verify, CrcPolicy::Ignore])]
fn decode_header(bencher: Bencher<'_, '_>, crc: &CrcPolicy) {
    let (bytes, rules) = (
        header(),
        Rules {
            max_header: 4096,
            crc: *crc,
        },
    );
    bencher.bench(|| decode(black_box(&bytes), rules).map(|header| header.is_some()));
}

/// The same, arriving byte by byte: the price of decoding from the start each time.
#[divan::bench]
fn decode_header_byte_by_byte(bencher: Bencher<'_, '_>) {
    let bytes = header();
    let rules = Rules {
        max_header: 4096,
        crc: CrcPolicy::Verify,
    };
    bencher.bench(|| {
        let mut lengths = 1..=bytes.len();
        lengths.any(|length| matches!(decode(black_box(&bytes[..length]), rules), Ok(Some(_))))
    });
}

/// The first address that a session tries, of so many: what every connection takes. The names behind them are looked up elsewhere.
#[divan::bench(args = [1, 8, 256], consts = [0, 1, 2, 3])]
fn choose<const BALANCE: usize>(bencher: Bencher<'_, '_>, addresses: usize) {
    let balance = [
        Balance::LeastSessions,
        Balance::RoundRobin,
        Balance::Weighted,
        Balance::Rendezvous,
    ][BALANCE];
    let target = |n: usize| format!("\"10.0.{}.{}:443\"", n / 250, n % 250 + 1);
    let targets: Vec<String> = (0..addresses).map(target).collect();
    let text = format!(
        "[[listener]]\nname = \"ingest\"\nbind = \"0.0.0.0:8443\"\nproxy_protocol = \"off\"\nupstream = \"origin\"\n\
         [[upstream]]\nname = \"origin\"\ntargets = [{}]\n",
        targets.join(", ")
    );
    let config = Config::from_str(&text, "this benchmark").expect("it is right");
    let settings = config.upstreams.first().expect("there is one");
    let upstream = Upstream::new(0, settings, Family::Any);
    let balancer = Balancer::new(balance, 1);
    let now = Instant::now();
    bencher.bench_local(|| {
        let key = key_of(black_box(b"vpce-0123456789abcdef0"));
        let mut picks = balancer.picks(upstream.snapshot(), key);
        balancer.next(&mut picks, now)
    });
}

fn key(number: usize) -> AccountKey {
    AccountKey {
        listener: "ingest".into(),
        endpoint: format!("vpce-{number:017x}").into(),
        consumer: "".into(),
        upstream: "control-plane".into(),
    }
}

fn books(accounts: usize) -> Arc<Books> {
    let limits = Limits::of_most(accounts);
    let books = Books::new(Place::Memory, &["ingest".into()], 2, limits);
    let books = Arc::new(books.expect("there is memory"));
    for number in 0..accounts {
        let _ = books.account(key(number));
    }
    books
}

/// An account of the books by its key: what a worker does for an endpoint it has not met.
#[divan::bench(args = [1, 1000, 50_000])]
fn find_account_in_books(bencher: Bencher<'_, '_>, accounts: usize) {
    let books = books(accounts);
    bencher
        .with_inputs(|| key(accounts / 2))
        .bench_values(|key| books.account(key));
}

/// An account that the worker has met, opened and closed: what every connection does.
#[divan::bench(args = [1, 1000, 50_000])]
fn open_and_close(bencher: Bencher<'_, '_>, accounts: usize) {
    let books = books(accounts);
    let known: HashMap<String, Arc<Account>> = (0..accounts)
        .map(|number| (key(number).endpoint.to_string(), books.account(key(number))))
        .collect();
    let endpoint = key(accounts / 2).endpoint.to_string();
    bencher.bench_local(|| {
        let account = known.get(black_box(endpoint.as_str())).cloned();
        let meter = Meter::open(account.expect("it is known"), 0).expect("it is not retired");
        meter.close(CloseReason::Completed);
    });
}

/// Bytes booked: what every transfer does.
#[divan::bench]
fn book_bytes(bencher: Bencher<'_, '_>) {
    let (meter, _) = books(1).open(key(0), 0);
    bencher.bench_local(|| meter.moved(black_box(Direction::ToUpstream), black_box(1024)));
}

/// Books in which every account has counted something since it was looked at last.
fn busy_books(accounts: usize) -> Arc<Books> {
    let books = books(accounts);
    for number in 0..accounts {
        let (meter, _) = books.open(key(number), number % 2);
        meter.moved(Direction::ToClient, 1024);
        meter.close(CloseReason::Completed);
    }
    books
}

/// All accounts as the admin port sees them: what a scrape begins with.
#[divan::bench(args = [1000, 50_000])]
fn snapshot(bencher: Bencher<'_, '_>, accounts: usize) {
    let books = busy_books(accounts);
    bencher.bench_local(|| books.snapshot());
}

/// All accounts as the ledger sees them: what a booking begins with.
#[divan::bench(args = [1000, 50_000])]
fn slots(bencher: Bencher<'_, '_>, accounts: usize) {
    let books = busy_books(accounts);
    bencher.bench_local(|| books.slots(monotonic_ms()));
}

/// All of them booked: what a booking ends with.
#[divan::bench(args = [1000, 50_000])]
fn set_booked(bencher: Bencher<'_, '_>, accounts: usize) {
    let books = busy_books(accounts);
    let slots = books.slots(monotonic_ms());
    bencher.bench_local(|| {
        for slot in black_box(&slots) {
            books.set_booked(slot.slot, slot.generation, &slot.totals.counters);
        }
    });
}

/// A look for accounts that nobody needs any more, where there is none: what the control thread does every few seconds.
#[divan::bench(args = [1000, 50_000])]
fn look_for_idle(bencher: Bencher<'_, '_>, accounts: usize) {
    let books = busy_books(accounts);
    bencher.bench_local(|| books.let_go(Duration::MAX, monotonic_ms()));
}

/// What the kernel knows of a connection: asked once per session, and now and then for each address of an upstream.
#[divan::bench]
fn tcp_info(bencher: Bencher<'_, '_>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("loopback");
    let address = listener.local_addr().expect("it is bound");
    let client = TcpStream::connect(address).expect("it listens");
    bencher.bench_local(|| tollgate::sys::tcp_info::tcp_info(black_box(&client)).expect("TCP"));
}

/// A connection more on each of so many accounts.
fn count(slots: &mut [SlotTotals]) {
    for slot in slots {
        let counters = &mut slot.totals.counters;
        counters.opened += 1;
        counters.closed[CloseReason::Completed as usize] += 1;
        counters.bytes[0] += 1000;
        counters.bytes[1] += 100_000;
        counters.connection_ms += 250;
    }
}

fn fresh_slots(accounts: u32) -> Vec<SlotTotals> {
    let slot = |slot: u32| SlotTotals {
        slot,
        generation: 1,
        totals: AccountTotals {
            key: key(slot as usize),
            counters: Counters::default(),
            peak: 1,
        },
        booked: Counters::default(),
    };
    (0..accounts).map(slot).collect()
}

fn ledger() -> (TempDir, Store) {
    let dir = tempfile::tempdir().expect("a directory");
    let store = Store::open(&dir.path().join(FILE), "relay-1", &Endpoints::default());
    (dir, store.expect("a ledger"))
}

fn book(store: &mut Store, now: Timestamp, slots: &mut [SlotTotals]) {
    count(slots);
    let batch = Batch {
        file: 1,
        ledger: 0,
        whole: false,
        slots,
        finished: false,
        anchor: None,
    };
    store.book(now, &batch).expect("a booking");
}

/// A booking of accounts that all changed, to the disk and synced: what the ledger's thread does every interval, at the worst.
#[divan::bench(args = [1, 1000, 50_000], sample_count = 10, sample_size = 1)]
fn ledger_booking(bencher: Bencher<'_, '_>, accounts: u32) {
    let (_dir, mut store) = ledger();
    let mut slots = fresh_slots(accounts);
    let now = Timestamp::now();
    book(&mut store, now, &mut slots);
    bencher.bench_local(|| book(&mut store, now, &mut slots));
}

/// `tollgate usage --by endpoint --by month` over a year of 1,000 endpoints that were busy in every hour, and the hours of its last month. Each hour
/// is booked as a relay books it: what is set up takes a minute.
#[divan::bench(args = ["year by endpoint and month", "month by hour"], sample_count = 5, sample_size = 1)]
fn ledger_report(bencher: Bencher<'_, '_>, what: &str) {
    let (dir, mut store) = ledger();
    let mut slots = fresh_slots(1000);
    let first = Timestamp::from_second(1_800_000_000).expect("a time");
    let hours = if what.starts_with("year") { 8760 } else { 720 };
    for hour in 0..hours {
        let now = first + SignedDuration::from_hours(hour);
        book(&mut store, now, &mut slots);
        store.roll(now).expect("the hour before");
    }
    let by = if what.starts_with("year") {
        vec![By::Endpoint, By::Month]
    } else {
        vec![By::Hour]
    };
    let query = Query {
        by,
        ..Query::default()
    };
    let reading = Reading::open(dir.path()).expect("it can be read");
    bencher.bench_local(|| {
        let until = Instant::now() + Duration::from_secs(600);
        reading.report(black_box(&query), until).expect("a report")
    });
}

/// A trail into a file on tmpfs, where there is one, and a scribe.
fn trail(directory: &Path) -> (Trail, Rc<Scribe>) {
    let text = format!(
        "[audit]\nsink = \"{}\"\n[[listener]]\nname = \"ingest\"\nbind = \"0.0.0.0:8443\"\nproxy_protocol = \"off\"\nupstream = \"origin\"\n\
         [[upstream]]\nname = \"origin\"\ntargets = [\"10.0.0.1:443\"]\n",
        directory.join("audit.log").display()
    );
    let config = Config::from_str(&text, "this benchmark").expect("it is right");
    let about = About {
        relay_id: "relay-1",
        config: &config.digest,
        workers: 1,
    };
    let (trail, scribes) = Trail::start(&config.audit, &about, None).expect("there is room");
    let scribe = scribes.into_iter().next().expect("there is one");
    (trail, Rc::new(scribe))
}

fn facts() -> Facts {
    let leg = Leg {
        rtt_us: Some(70_123),
        min_rtt_us: Some(69_870),
        retransmits: 2,
        delivery_rate: Some(12_345_678),
        bytes_acked: Some(1_048_577),
        bytes_received: Some(4096),
    };
    Facts {
        client: Some(([172, 31, 7, 9], 51_234).into()),
        peer: Some(([10, 20, 0, 5], 40_000).into()),
        target: None,
        address: Some(([10, 0, 0, 1], 443).into()),
        bytes: Some([4096, 1_048_576]),
        legs: [Some(leg); 2],
    }
}

/// Records that are handed over before the audit thread is waited for: fewer than a queue has room for.
const RECORDS: usize = 4000;

/// The records of a session, open and close, handed over: the worker's part. Divide by two for one record.
#[divan::bench(sample_count = 50, sample_size = 2000)]
fn audit_session_handed_over(bencher: Bencher<'_, '_>) {
    let directory = tempfile::tempdir_in("/dev/shm").expect("tmpfs");
    let (trail, scribe) = trail(directory.path());
    let account = books(1).account(key(0));
    let target: Arc<str> = "origin.example.internal:443".into();
    bencher
        .with_inputs(|| while trail.status().is_some_and(|status| status.queued > 100) {})
        .bench_local_values(|()| {
            let entry = scribe
                .open(&account, None, facts)
                .expect("there is a trail");
            entry.close(&account, CloseReason::Completed, || Facts {
                target: Some(target.clone()),
                ..facts()
            });
        });
    trail.end();
}

/// So many records of sessions that ended, from the queue to the file: the audit thread's part, with its rests.
#[divan::bench(sample_count = 20, sample_size = 1)]
fn audit_4000_records_written(bencher: Bencher<'_, '_>) {
    let directory = tempfile::tempdir_in("/dev/shm").expect("tmpfs");
    let (trail, scribe) = trail(directory.path());
    let account = books(1).account(key(0));
    bencher
        .counter(divan::counter::ItemsCount::new(RECORDS))
        .bench_local(|| {
            for _ in 0..RECORDS / 2 {
                let entry = scribe
                    .open(&account, None, facts)
                    .expect("there is a trail");
                entry.close(&account, CloseReason::Completed, facts);
            }
            trail.head(Duration::from_secs(10)).expect("it is written")
        });
    trail.end();
}
