//! The table while it runs: from the relay's own /metrics, redrawn in place on a terminal, plain lines elsewhere.

use std::{
    io::{self, IsTerminal, Write},
    sync::mpsc::{Receiver, RecvTimeoutError},
    thread,
    time::{Duration, Instant},
};

use crate::{
    Options, grouped,
    harness::{BOUND, relay::Metrics},
    say,
    world::{CONSUMERS, World},
};

/// Between two looks at what has no event to wait for.
pub(crate) const LOOK_AGAIN: Duration = Duration::from_millis(5);
/// Between two drawings on a terminal.
const REDRAW: Duration = Duration::from_millis(500);
/// Between two rows of lines elsewhere.
const LINES: Duration = Duration::from_secs(3);
/// From how many columns on there is room for rates.
const WIDE: u16 = 108;

/// One endpoint at one moment.
#[derive(Clone, Copy, Debug, Default)]
struct Row {
    active: u64,
    opened: u64,
    bytes: [u64; 2],
}

const DIRECTIONS: [&str; 2] = ["to_upstream", "to_client"];

impl Row {
    fn of(metrics: &Metrics, endpoint: &str) -> Self {
        let sum = |name: &str| metrics.sum(name, &[("endpoint", endpoint)]);
        Self {
            active: sum("tollgate_connections_active"),
            opened: sum("tollgate_connections_opened_total"),
            bytes: DIRECTIONS.map(|direction| {
                let labels = [("endpoint", endpoint), ("direction", direction)];
                metrics.sum("tollgate_bytes_total", &labels)
            }),
        }
    }
}

/// What the relay said, and when.
struct Sample {
    at: Instant,
    rows: [Row; 2],
    connect: Option<Duration>,
}

impl Sample {
    fn take(world: &World) -> Result<Self, String> {
        let said = world.relay.try_get("/metrics");
        let (_, text) = said.map_err(|error| format!("the relay does not answer: {error}"))?;
        let metrics = Metrics::parse(&text);
        Ok(Self {
            at: Instant::now(),
            rows: [0, 1].map(|index| Row::of(&metrics, CONSUMERS[index].endpoint)),
            connect: connect_time(&metrics),
        })
    }
}

/// The mean over all connections made so far.
fn connect_time(metrics: &Metrics) -> Option<Duration> {
    let over_all = |what: &str| -> f64 {
        let name = format!("tollgate_upstream_connect_seconds_{what}");
        let each = ["control-plane", "control-plane-http"]
            .map(|upstream| metrics.value(&name, &[("upstream", upstream)]));
        each.into_iter().flatten().sum()
    };
    let count = over_all("count");
    (count > 0.0).then(|| Duration::from_secs_f64(over_all("sum") / count))
}

/// Shows the table until time is up (or, to be kept, until told to stop).
pub(crate) fn watch(world: &World, options: Options, stop: &Receiver<()>) -> Result<(), String> {
    let mut screen = Screen::new();
    let began = Instant::now();
    let mut before: Option<Sample> = None;
    loop {
        let now = Sample::take(world)?;
        let left = options.seconds.saturating_sub(began.elapsed());
        let over = !options.keep && left.is_zero();
        screen.show(&screen.lines(&now, before.as_ref(), world, options, left));
        before = Some(now);
        if over {
            return Ok(());
        }
        let mut wait = screen.pause();
        if !options.keep {
            wait = wait.min(left);
        }
        match stop.recv_timeout(wait) {
            Err(RecvTimeoutError::Timeout) => {}
            Ok(()) | Err(RecvTimeoutError::Disconnected) => return Ok(()),
        }
    }
}

/// Waits until the relay has no connection open; false when that takes too long.
pub(crate) fn wait_idle(world: &World) -> Result<bool, String> {
    let deadline = Instant::now() + BOUND;
    loop {
        let now = Sample::take(world)?;
        if now.rows.iter().all(|row| row.active == 0) {
            return Ok(true);
        }
        if Instant::now() > deadline {
            return Ok(false);
        }
        thread::sleep(LOOK_AGAIN);
    }
}

/// Where the table is drawn.
struct Screen {
    terminal: bool,
    /// Lines of the drawing that stands there now.
    drawn: usize,
}

impl Screen {
    fn new() -> Self {
        let dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
        Self {
            terminal: io::stdout().is_terminal() && !dumb,
            drawn: 0,
        }
    }

    fn pause(&self) -> Duration {
        if self.terminal { REDRAW } else { LINES }
    }

    /// Asked for each time: windows change.
    fn columns(&self) -> u16 {
        let size = rustix::termios::tcgetwinsize(io::stdout());
        size.map_or(80, |size| size.ws_col).max(40)
    }

    fn lines(
        &self,
        now: &Sample,
        before: Option<&Sample>,
        world: &World,
        options: Options,
        left: Duration,
    ) -> Vec<String> {
        if !self.terminal {
            let rows = now.rows.iter().zip(&CONSUMERS);
            let lines = rows.map(|(row, consumer)| {
                let [to_upstream, to_client] = row.bytes.map(grouped);
                format!(
                    "  {}  {:<9} active {}  opened {}  bytes to_upstream {to_upstream}  to_client {to_client}",
                    consumer.endpoint, consumer.name, row.active, row.opened
                )
            });
            return lines.collect();
        }
        let wide = self.columns() >= WIDE;
        let rate = if wide { "     per second" } else { "" };
        let mut lines = vec![format!(
            "  {:<22}  {:<8}  {:>6} {:>6}  {:>12}{rate}  {:>11}{rate}",
            "endpoint", "consumer", "active", "opened", "to_upstream", "to_client"
        )];
        for (index, (row, consumer)) in now.rows.iter().zip(&CONSUMERS).enumerate() {
            let mut cells = row.bytes.map(|bytes| (grouped(bytes), String::new()));
            if wide {
                for (direction, (_, rate)) in cells.iter_mut().enumerate() {
                    let earlier = before.map(|before| {
                        let bytes = row.bytes[direction] - before.rows[index].bytes[direction];
                        let seconds = now.at.duration_since(before.at).as_secs_f64();
                        (bytes as f64 / seconds) as u64
                    });
                    *rate = format!("{:>15}", earlier.map_or_else(String::new, grouped));
                }
            }
            let [(to_upstream, a), (to_client, b)] = cells;
            lines.push(format!(
                "  {:<22}  {:<8}  {:>6} {:>6}  {to_upstream:>12}{a}  {to_client:>11}{b}",
                consumer.endpoint, consumer.name, row.active, row.opened
            ));
        }
        let (passed, failed) = world.health_checks();
        let connect = now.connect.map_or_else(String::new, |connect| {
            format!("a connect takes {} ms, ", connect.as_millis())
        });
        let time = if options.keep {
            "until Ctrl-C".to_owned()
        } else {
            format!("{} s to go", left.as_secs_f64().ceil())
        };
        let checks = format!("health checks passed {passed}, failed {failed}");
        lines.push(format!("  {connect}{checks}, {time}"));
        let failures: u64 = world.counts.iter().map(|counts| counts.failures()).sum();
        if let Some(note) = world.note().filter(|_| options.keep) {
            lines.push(format!(
                "  last: {note}; agents had to try anew {failures} times"
            ));
        }
        lines
    }

    fn show(&mut self, lines: &[String]) {
        if !self.terminal {
            lines.iter().for_each(|line| say(line));
            return;
        }
        // A line that wraps would take two, and going up by one would not be enough.
        let room = usize::from(self.columns()) - 1;
        let mut text = String::new();
        if self.drawn > 0 {
            text.push_str(&format!("\x1b[{}A\r\x1b[J", self.drawn));
        }
        for line in lines {
            text.extend(line.chars().take(room));
            text.push('\n');
        }
        let mut out = io::stdout().lock();
        let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
        self.drawn = lines.len();
    }
}
