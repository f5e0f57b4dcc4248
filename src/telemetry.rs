//! The log: one line per fact, on standard error, and a limiter for facts that strangers can cause.

use std::cell::Cell;
use std::io::IsTerminal;
use std::time::{Duration, Instant};

use tracing::Level;
use tracing::level_filters::LevelFilter;
use tracing_appender::non_blocking::{ErrorCounter, NonBlocking, NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::{Layer, SubscriberExt};
use tracing_subscriber::registry::Registry;
use tracing_subscriber::{fmt, reload};

use crate::config::{Log, LogFormat};

/// Lines that wait for a standard error which takes none; further ones are dropped and counted.
const QUEUE: usize = 8192;

/// The log while it runs. When this is dropped, what waits is written, for a second at most.
#[derive(Debug)]
pub struct Running {
    dropped: DroppedLines,
    levels: Levels,
    _writer: WorkerGuard,
}

/// Says what is written from now on.
#[derive(Clone)]
pub struct Levels {
    lines: reload::Handle<Lines, Registry>,
    levels: reload::Handle<Targets, Registry>,
    writer: NonBlocking,
}

/// Lines of one form.
type Lines = Box<dyn Layer<Registry> + Send + Sync>;

impl std::fmt::Debug for Levels {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Levels").finish_non_exhaustive()
    }
}

impl Levels {
    /// From now on lines have this form and this level.
    pub fn set(&self, log: &Log) {
        // Fails only where there was a subscriber before ours.
        let _ = self.lines.reload(lines(log, self.writer.clone()));
        let _ = self.levels.reload(levels(log.level));
    }
}

/// How many lines were dropped because standard error took none.
#[derive(Debug, Clone)]
pub struct DroppedLines(ErrorCounter);

impl Running {
    /// What changes its form and level.
    #[must_use]
    pub fn levels(&self) -> Levels {
        self.levels.clone()
    }

    /// The counter.
    #[must_use]
    pub fn dropped(&self) -> DroppedLines {
        self.dropped.clone()
    }
}

impl DroppedLines {
    /// So far.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.0.dropped_lines() as u64
    }
}

/// Starts the log of the process: to standard error, as text or as one JSON object per line. Times are RFC 3339 in UTC with
/// microseconds. Writing is a thread's of its own: a reader of the log that stops must not stop the relay.
#[must_use]
pub fn init(log: &Log) -> Running {
    let (writer, guard) = NonBlockingBuilder::default()
        .lossy(true)
        .buffered_lines_limit(QUEUE)
        .thread_name("log")
        .finish(std::io::stderr());
    let dropped = DroppedLines(writer.error_counter());
    let (form, lines) = reload::Layer::new(lines(log, writer.clone()));
    let (level, levels) = reload::Layer::new(levels(log.level));
    let subscriber = Registry::default().with(form.with_filter(level));
    // Fails only where there is a subscriber already.
    let _ = tracing::subscriber::set_global_default(subscriber);
    Running {
        dropped,
        levels: Levels {
            lines,
            levels,
            writer,
        },
        _writer: guard,
    }
}

fn lines(log: &Log, writer: NonBlocking) -> Lines {
    let json = match log.format {
        LogFormat::Auto => !std::io::stderr().is_terminal(),
        LogFormat::Text => false,
        LogFormat::Json => true,
    };
    // The module path is left out: `target` is a word of ours, the host and port of an upstream. An error in writing is not
    // reported, because it would be reported to where it could not be written.
    let lines = fmt::layer()
        .with_writer(writer)
        .with_target(false)
        .log_internal_errors(false);
    if json {
        lines
            .json()
            .flatten_event(true)
            .with_current_span(false)
            .with_span_list(false)
            .boxed()
    } else {
        lines.with_ansi(colour()).boxed()
    }
}

/// Whether standard error shows colours: it is a terminal, and `NO_COLOR` (<https://no-color.org>) is not set.
#[must_use]
pub fn colour() -> bool {
    std::io::stderr().is_terminal()
        && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

/// Our own lines down to `level`; those of the crates we use only from warnings up, or the resolver would drown the rest. It warns of each
/// datagram that is no answer to a question of ours, and anybody can send those: its warnings are for who looks for them.
fn levels(level: Level) -> Targets {
    let ours = LevelFilter::from_level(level);
    let resolvers = match ours >= LevelFilter::DEBUG {
        true => LevelFilter::WARN,
        false => LevelFilter::ERROR,
    };
    Targets::new()
        .with_default(ours.min(LevelFilter::WARN))
        .with_target("hickory_net", resolvers)
        .with_target("hickory_proto", resolvers)
        .with_target("hickory_resolver", resolvers)
        .with_target(env!("CARGO_CRATE_NAME"), ours)
}

/// Lets at most so many lines per interval through, for one kind of event, and counts the rest. For one thread.
///
/// ```
/// # use std::time::{Duration, Instant};
/// # use tollgate::telemetry::LogLimiter;
/// let limiter = LogLimiter::new(5, Duration::from_secs(10));
/// if let Some(suppressed) = limiter.allow(Instant::now()) {
///     tracing::warn!(suppressed, "not a PROXY header");
/// }
/// ```
#[derive(Debug)]
pub struct LogLimiter {
    most: u32,
    interval: Duration,
    /// When the interval began in which `passed` lines went through.
    since: Cell<Option<Instant>>,
    passed: Cell<u32>,
    suppressed: Cell<u64>,
}

impl Default for LogLimiter {
    /// Five lines in ten seconds: enough to see a kind of event, too few to fill a disk.
    fn default() -> Self {
        Self::new(5, Duration::from_secs(10))
    }
}

impl LogLimiter {
    /// At most `most` lines in each `interval`, which begins with the first line after the last one ended.
    #[must_use]
    pub const fn new(most: u32, interval: Duration) -> Self {
        Self {
            most,
            interval,
            since: Cell::new(None),
            passed: Cell::new(0),
            suppressed: Cell::new(0),
        }
    }

    /// Whether a line may be written now; then with the number of lines suppressed since the last that was.
    pub fn allow(&self, now: Instant) -> Option<u64> {
        let running = self
            .since
            .get()
            .is_some_and(|since| now.saturating_duration_since(since) < self.interval);
        if !running {
            self.since.set(Some(now));
            self.passed.set(0);
        }
        if self.passed.get() < self.most {
            self.passed.set(self.passed.get() + 1);
            Some(self.suppressed.take())
        } else {
            self.suppressed.set(self.suppressed.get().saturating_add(1));
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const INTERVAL: Duration = Duration::from_secs(10);

    #[test]
    fn lines_beyond_the_limit_are_counted_and_reported_with_the_next() {
        let start = Instant::now();
        let limiter = LogLimiter::new(2, INTERVAL);
        let answers =
            [0, 1, 2, 3, 4].map(|second| limiter.allow(start + Duration::from_secs(second)));
        assert_eq!(answers, [Some(0), Some(0), None, None, None]);
        assert_eq!(limiter.allow(start + INTERVAL), Some(3));
        assert_eq!(limiter.allow(start + INTERVAL), Some(0), "reported once");
        assert_eq!(limiter.allow(start + INTERVAL), None);
    }

    #[test]
    fn the_interval_begins_with_its_first_line() {
        let start = Instant::now();
        let limiter = LogLimiter::new(1, INTERVAL);
        assert_eq!(limiter.allow(start), Some(0));
        let late = start + INTERVAL * 5;
        assert_eq!(limiter.allow(late), Some(0));
        assert_eq!(
            limiter.allow(late + INTERVAL - Duration::from_millis(1)),
            None
        );
        assert_eq!(limiter.allow(late + INTERVAL), Some(1));
    }

    #[test]
    fn a_clock_that_steps_back_neither_panics_nor_opens_the_gate() {
        let start = Instant::now() + INTERVAL;
        let limiter = LogLimiter::new(1, INTERVAL);
        assert_eq!(limiter.allow(start), Some(0));
        assert_eq!(limiter.allow(start - Duration::from_secs(5)), None);
    }

    #[test]
    fn other_crates_speak_from_warnings_up() {
        let levels = levels(Level::TRACE);
        assert!(levels.would_enable("tollgate::session", &Level::TRACE));
        assert!(levels.would_enable("hickory_resolver", &Level::WARN));
        assert!(!levels.would_enable("hickory_resolver", &Level::INFO));
        assert!(!self::levels(Level::ERROR).would_enable("hickory_resolver", &Level::WARN));
    }
}
