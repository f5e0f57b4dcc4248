//! The watch over the relay's process, tried on a stand-in with every fault that it must see.

use std::{
    env, fs,
    io::{self, PipeReader, PipeWriter, Read, Write},
    net::TcpListener,
    panic,
    process::ExitCode,
    sync::Once,
    thread,
    time::Duration,
};

use libtest_mimic::Trial;

use crate::{
    claim,
    harness::{
        netns::{Host, Lab},
        relay::{Baseline, Metrics, Relay, Signal, Start},
    },
};

/// Set in the process that stands in for a relay.
pub(crate) const STAND_IN: &str = "TOLLGATE_LAB_STAND_IN";

pub(crate) fn tests() -> Vec<Trial> {
    vec![
        claim(
            "relay_is_watched_from_start_to_exit",
            relay_is_watched_from_start_to_exit,
        ),
        claim("baseline_sees_a_kept_pipe", baseline_sees_a_kept_pipe),
        claim(
            "baseline_sees_a_spinning_thread",
            baseline_sees_a_spinning_thread,
        ),
        claim(
            "relay_that_ends_early_shows_its_log",
            relay_that_ends_early_shows_its_log,
        ),
        claim("metrics_are_read_as_written", metrics_are_read_as_written),
    ]
}

/// Serves what a relay's admin port serves, and does wrong what it is asked to by `GET /keep-a-pipe` and `GET /spin`.
pub(crate) fn stand_in() -> ExitCode {
    let config = env::args()
        .nth(3)
        .and_then(|path| fs::read_to_string(path).ok());
    let Some(config) = config else {
        let _ = writeln!(io::stderr(), "no configuration: {:?}", env::args());
        return ExitCode::from(66);
    };
    let _ = writeln!(io::stdout(), "a record");
    let _ = writeln!(io::stderr(), "configured with {}", config.trim());
    let Ok(listener) = TcpListener::bind("127.0.0.1:9900") else {
        return ExitCode::from(69);
    };
    let mut kept: Vec<(PipeReader, PipeWriter)> = Vec::new();
    let mut ready = false;
    for stream in listener.incoming() {
        let Ok(mut stream) = stream else { continue };
        let mut request = [0; 1024];
        let n = stream.read(&mut request).unwrap_or(0);
        let request = String::from_utf8_lossy(&request[..n]).into_owned();
        let (status, body) = match request.split(' ').nth(1).unwrap_or_default() {
            // Not at the first asking, so that waiting for it is seen to work.
            "/readyz" if !std::mem::replace(&mut ready, true) => (503, ""),
            "/metrics" => (
                200,
                "a_total{endpoint=\"x\",reason=\"1\"} 2\na_total{endpoint=\"x\",reason=\"2\"} 3\n",
            ),
            "/status" => (200, "{\"sessions\": 0}"),
            "/keep-a-pipe" => {
                kept.extend(io::pipe());
                (200, "")
            }
            "/spin" => {
                thread::spawn(|| {
                    loop {
                        std::hint::spin_loop()
                    }
                });
                (200, "")
            }
            "/exit" => return ExitCode::from(78),
            _ => (200, ""),
        };
        let _ = write!(stream, "HTTP/1.1 {status} -\r\n\r\n{body}");
    }
    ExitCode::SUCCESS
}

fn start(host: &Host) -> Relay {
    let program = env::current_exe().expect("we run from a file");
    Start::with("dir = \"@DIR@\"")
        .binary(&program)
        .env(STAND_IN, "1")
        .on(host)
}

fn relay_is_watched_from_start_to_exit() {
    let lab = Lab::new("watch");
    let host = lab.host("relay");
    let relay = start(&host);
    let line = relay.wait_log("configured");
    assert!(
        line.contains(relay.folder().to_str().expect("text")),
        "{line}"
    );
    relay.wait_until("its standard output to be read", || {
        relay.records() == ["a record"]
    });
    assert!(relay.log_lines("a record").is_empty(), "records are no log");
    assert_eq!(relay.metric("a_total", &[("endpoint", "x")]), 5);
    relay.wait_metric("a_total", &[("reason", "2")], 3);
    assert_eq!(relay.status()["sessions"], 0);
    // Its stdout and stderr, and whatever this program's own parent left open to all.
    assert!(relay.pipe_fd_count() >= 2, "{:?}", relay.descriptors());
    assert!(relay.rss() >= relay.pss() && relay.pss() > 4096);
    assert!(relay.cpu_time() < Duration::from_secs(10));
    Baseline::of(&relay).assert_back(&relay);
    assert!(relay.is_running());
    assert!(relay.try_get("/exit").is_err());
    assert_eq!(relay.wait_exit(), 78);

    let killed = start(&host);
    killed.signal(Signal::TERM);
    assert_eq!(killed.wait_exit(), 128 + 15);
}

/// What a check that must fail says; it says it nowhere else.
pub(super) fn failure(check: impl FnOnce() + Send) -> String {
    const NAME: &str = "expected to fail";
    static QUIET: Once = Once::new();
    QUIET.call_once(|| {
        let before = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            if thread::current().name() != Some(NAME) {
                before(info);
            }
        }));
    });
    let failed = thread::scope(|scope| {
        let check = thread::Builder::new()
            .name(NAME.to_owned())
            .spawn_scoped(scope, check);
        check.expect("one more thread").join()
    });
    let message = failed.expect_err("it is expected to fail");
    message
        .downcast_ref::<String>()
        .cloned()
        .expect("it says why")
}

fn baseline_sees_a_kept_pipe() {
    let lab = Lab::new("pipe");
    let relay = start(&lab.host("relay"));
    let baseline = Baseline::of(&relay);
    relay.get("/keep-a-pipe");
    baseline.and_pipes(1).assert_back(&relay);
    let message = failure(|| baseline.assert_back_within(Duration::from_millis(100), &relay));
    assert!(message.contains("pipe:["), "{message}");
}

fn baseline_sees_a_spinning_thread() {
    let lab = Lab::new("spin");
    let relay = start(&lab.host("relay"));
    relay.get("/spin");
    let message = failure(|| relay.assert_at_rest());
    assert!(message.contains("busy"), "{message}");
}

fn relay_that_ends_early_shows_its_log() {
    let lab = Lab::new("early");
    let host = lab.host("relay");
    let message = failure(|| {
        let program = env::current_exe().expect("we run from a file");
        let start = Start::with("").binary(&program).env(STAND_IN, "1");
        start.arguments(&["no", "such", "file"]).on(&host);
    });
    assert!(message.contains("no configuration"), "{message}");
}

fn metrics_are_read_as_written() {
    let metrics = Metrics::parse(
        "# HELP a_total Of a.\n# TYPE a_total counter\n\
         a_total{endpoint=\"x, \\\"y\\\"}\",reason=\"z\"} 1e3\na_total{reason=\"w\",} 7\nb 0.5 1700000000\n",
    );
    assert_eq!(metrics.sum("a_total", &[]), 1007);
    assert_eq!(metrics.sum("a_total", &[("endpoint", "x, \"y\"}")]), 1000);
    assert_eq!(metrics.value("a_total", &[("reason", "w")]), Some(7.0));
    assert_eq!(metrics.value("a_total", &[]), None);
    assert_eq!(metrics.value("b", &[]), Some(0.5));
    assert_eq!(metrics.label_values("a_total", "reason"), ["w", "z"]);
    assert_eq!(
        (metrics.has("b"), metrics.has("c"), metrics.len()),
        (true, false, 3)
    );
}
