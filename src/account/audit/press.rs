//! The audit thread: takes records from the queues, makes lines of them, chains the lines and gives them to the sink.
//!
//! What the sink does not take stays here, cut nowhere: at most a batch. Meanwhile records stay in the queues, and those bound themselves.

use std::ffi::OsString;
use std::fmt::Write as _;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering::{Relaxed, SeqCst};
use std::sync::atomic::fence;
use std::sync::mpsc::{Receiver, SyncSender, TryRecvError};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use tracing::{error, info, warn};

use super::chain::{Head, Key};
use super::json::{Line, Style, string};
use super::queue::{Queues, STUCK_MS};
use super::record::{Micros, now};
use super::recover::{LastSeen, look_back};
use super::sink::{Followed, Sink};
use crate::account::{Anchor, CloseReason, Event};
use crate::sys::clock::monotonic_ms;
use crate::telemetry::LogLimiter;

/// How long the thread rests after a batch: what a kill may take from the trail, beside what the sink did not take.
const REST: Duration = Duration::from_millis(20);

/// Between two tries of a sink that refuses.
const RETRY: Duration = Duration::from_millis(200);

/// How often it looks after its file where nothing else happens.
const HOUSEKEEPING: Duration = Duration::from_secs(1);

/// After a rename that failed, how long the file goes on before it is tried again.
const RENAME_AGAIN: Duration = Duration::from_secs(60);

/// Where nobody asks for the head, it is said in the log this often.
const UNASKED: Duration = Duration::from_secs(60);

/// Bytes of a batch: enough for a call to be cheap, little enough to be heard in between.
const BATCH: usize = 256 * 1024;

/// What the thread is asked for.
#[derive(Debug)]
pub(super) enum Command {
    /// The head of all that was handed over, once it is safe.
    Head(SyncSender<Anchor>),
    /// Another configuration is in force.
    Config(String),
    /// The process ends; whether all was written.
    End(SyncSender<bool>),
}

/// What others may know of the thread.
#[derive(Debug, Default)]
pub(super) struct Known {
    pub(super) head: Head,
    /// Why the sink takes nothing.
    pub(super) why: Option<String>,
}

/// What is to be said of the time before this process.
#[derive(Debug, Default)]
pub(super) struct Past {
    /// The files, the last first, and how long they were.
    pub(super) files: Vec<(PathBuf, u64)>,
    /// How far back to look.
    pub(super) window: Option<Micros>,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Press {
    pub(super) queues: Queues,
    pub(super) commands: Receiver<Command>,
    pub(super) known: Arc<Mutex<Known>>,
    pub(super) sink: Box<dyn Sink>,
    pub(super) page: Page,
    /// How much of the page the sink has.
    pub(super) sent: usize,
    pub(super) config: String,
    pub(super) past: Past,
    /// Sessions of a killed process that are still to be closed.
    pub(super) crashed: Vec<LastSeen>,
    /// What was dropped, as far as records tell of it.
    pub(super) gaps_told: Vec<[u64; Event::ALL.len()]>,
    /// Bounds the lines that say so in the log.
    pub(super) gap_log: LogLimiter,
    /// When nothing had been dropped beyond that.
    pub(super) whole_at: Micros,
    /// The name that the file is to have: its last line says so already.
    pub(super) leaving: Option<(OsString, Instant)>,
    pub(super) looked_after: Instant,
    /// The file was moved or deleted, and no new one can be made.
    pub(super) misplaced: bool,
    /// When the head was asked for last, or said, and which it was.
    pub(super) asked: (Instant, u64),
}

/// Lines that wait for the sink, and where the chain stands with them.
#[derive(Debug)]
pub(super) struct Page {
    pub(super) lines: Vec<u8>,
    pub(super) style: Style,
    pub(super) key: Key,
    pub(super) head: Head,
}

impl Page {
    /// Adds a record: `write` begins the line and writes its fields.
    pub(super) fn add(&mut self, write: impl FnOnce(&mut Style, &mut Vec<u8>)) {
        let begin = self.lines.len();
        write(&mut self.style, &mut self.lines);
        let sequence = self.head.sequence + 1;
        Line::go_on(&mut self.lines).end(sequence, &self.head);
        let line = &self.lines[begin..self.lines.len() - 1];
        self.head = Head {
            sequence,
            hash: self.key.hash(line),
        };
    }

    /// A record of the process itself.
    pub(super) fn tell(&mut self, event: Event, fields: impl FnOnce(&mut Line<'_>)) {
        self.add(|style, lines| {
            let mut line = style.line(lines, event, now());
            style.relay(&mut line);
            fields(&mut line);
        });
    }
}

impl Press {
    /// Writes until it is told to end, and then what is left; for `patience` at most.
    pub(super) fn run(mut self, patience: Duration) {
        self.flush();
        self.close_what_was_open();
        let mut ending: Option<(Option<SyncSender<bool>>, Instant)> = None;
        loop {
            let mut heads = Vec::new();
            loop {
                match self.commands.try_recv() {
                    Ok(Command::Head(reply)) => heads.push(reply),
                    Ok(Command::Config(digest)) => self.config_changed(digest),
                    Ok(Command::End(reply)) => {
                        ending = Some((Some(reply), Instant::now() + patience));
                    }
                    Err(TryRecvError::Empty) => break,
                    Err(TryRecvError::Disconnected) => {
                        // Nobody will ask for anything any more.
                        let _ = ending.get_or_insert((None, Instant::now() + patience));
                        break;
                    }
                }
            }
            let mut more = false;
            let mut worked = !self.page.lines.is_empty();
            if self.flush() && self.look_after_file() {
                more = self.fill();
                worked |= !self.page.lines.is_empty();
            }
            let mut flushed = self.flush();
            if flushed && !heads.is_empty() {
                self.answer(heads);
            }
            if let Some((reply, until)) = &ending {
                let done = flushed && !more && self.queues.is_empty();
                if done {
                    self.page.tell(Event::Ended, |_| {});
                    self.count(Event::Ended);
                    while !self.flush() && Instant::now() < *until {
                        thread::sleep(REST);
                    }
                    flushed = self.sent == self.page.lines.len() && self.sink.sync().is_ok();
                }
                if done || Instant::now() >= *until {
                    if let Some(reply) = reply {
                        let _ = reply.try_send(done && flushed);
                    }
                    return;
                }
            }
            match (flushed, more) {
                (true, true) => {}
                (false, _) => thread::park_timeout(RETRY),
                (true, false) if worked || ending.is_some() => thread::park_timeout(REST),
                (true, false) => self.sleep(),
            }
        }
    }

    /// Until there is work, or for a while.
    fn sleep(&mut self) {
        let shared = &self.queues.shared;
        shared.asleep.store(true, Relaxed);
        fence(SeqCst); // see `Shared::wake`
        if self.queues.is_empty() {
            thread::park_timeout(HOUSEKEEPING);
        }
        shared.asleep.store(false, Relaxed);
    }

    /// Makes a batch of lines of what waits; whether something is left. Only called with an empty page.
    fn fill(&mut self) -> bool {
        while let Some(seen) = self.crashed.pop() {
            self.page.add(|style, lines| crashed(style, lines, &seen));
            self.count(Event::Close);
            if self.page.lines.len() >= BATCH {
                return true;
            }
        }
        let (page, written) = (&mut self.page, &self.queues.shared.written);
        let more = self.queues.take(|record| {
            page.add(|style, lines| style.record(lines, record));
            written[record.event() as usize].fetch_add(1, Relaxed);
            page.lines.len() < BATCH
        });
        if !more {
            self.tell_gaps();
        }
        more
    }

    fn count(&self, event: Event) {
        self.queues.shared.written[event as usize].fetch_add(1, Relaxed);
    }

    /// What was dropped since the last time, in one record.
    fn tell_gaps(&mut self) {
        let since = std::mem::replace(&mut self.whole_at, now());
        let mut gap = [0; Event::ALL.len()];
        for (lane, told) in self.queues.shared.lanes.iter().zip(&mut self.gaps_told) {
            for ((count, told), sum) in lane.dropped.iter().zip(told).zip(&mut gap) {
                let dropped = count.load(Relaxed);
                *sum += dropped - std::mem::replace(told, dropped);
            }
        }
        let all: u64 = gap.iter().sum();
        if all == 0 {
            return;
        }
        let mut by_event = String::from("{");
        for (event, count) in Event::ALL.iter().zip(gap).filter(|(_, count)| *count > 0) {
            let comma = if by_event.len() > 1 { "," } else { "" };
            let _ = write!(by_event, "{comma}\"{}\":{count}", event.name());
        }
        by_event.push('}');
        let since = Timestamp::from_microsecond(since).unwrap_or_default();
        self.page.tell(Event::Gap, |line| {
            line.text("since", &format!("{since:.6}"));
            line.number("dropped", Some(all));
            line.raw("dropped_by_event", by_event.as_bytes());
        });
        self.count(Event::Gap);
        let Some(suppressed) = self.gap_log.allow(Instant::now()) else {
            return;
        };
        warn!(
            dropped = all,
            %since,
            suppressed,
            "audit records were dropped: they came faster than the sink takes them; audit.on_full = \"block\" refuses sessions instead"
        );
    }

    fn config_changed(&mut self, digest: String) {
        if digest == self.config {
            return;
        }
        let former = std::mem::replace(&mut self.config, digest);
        let digest = &self.config;
        self.page.tell(Event::Config, |line| {
            line.text("config", digest);
            line.text("former", &former);
        });
        self.count(Event::Config);
    }

    /// Gives the sink what it takes; whether that is all.
    fn flush(&mut self) -> bool {
        let writing_since = &self.queues.shared.writing_since;
        while self.sent < self.page.lines.len() {
            if writing_since.load(Relaxed) == 0 {
                writing_since.store(monotonic_ms().max(1), Relaxed);
            }
            match self.sink.write(&self.page.lines[self.sent..]) {
                Ok(0) => return self.failed(&io::ErrorKind::WriteZero.into()),
                Ok(written) => {
                    self.sent += written;
                    writing_since.store(0, Relaxed);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return self.failed(&error),
            }
        }
        if self.sent > 0 {
            self.page.lines.clear();
            self.page.lines.shrink_to(2 * BATCH);
            self.sent = 0;
            self.succeeded();
        }
        true
    }

    fn failed(&self, error: &io::Error) -> bool {
        let shared = &self.queues.shared;
        let why = if error.kind() == io::ErrorKind::WouldBlock {
            let since = shared.writing_since.load(Relaxed);
            if monotonic_ms().saturating_sub(since) <= STUCK_MS {
                return false;
            }
            "nobody reads it".to_owned()
        } else {
            shared.writing_since.store(0, Relaxed);
            error.to_string()
        };
        shared.failing.store(true, Relaxed);
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if known.why.as_ref() != Some(&why) {
            let (sink, on_full) = (self.place(), shared.on_full);
            error!(
                sink,
                error = why,
                ?on_full,
                "the audit trail cannot be written; trying again until it can"
            );
            known.why = Some(why);
        }
        false
    }

    fn succeeded(&self) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.head = self.page.head;
        if !self.misplaced && known.why.take().is_some() {
            self.queues.shared.failing.store(false, Relaxed);
            info!(sink = self.place(), "the audit trail is written again");
        }
    }

    fn place(&self) -> String {
        match self.sink.name() {
            name if name.is_empty() => "standard output".to_owned(),
            name => name,
        }
    }

    /// Answers those who asked for the head: everything up to it is where it belongs.
    fn answer(&mut self, asking: Vec<SyncSender<Anchor>>) {
        self.asked = (Instant::now(), self.page.head.sequence);
        match self.sink.sync() {
            Ok(()) => {
                for reply in asking {
                    let _ = reply.try_send(self.anchor());
                }
            }
            Err(error) => {
                self.failed(&error);
            }
        }
    }

    fn anchor(&self) -> Anchor {
        Anchor {
            time: Timestamp::now(),
            sequence: self.page.head.sequence,
            hash: self.page.head.hash.to_string(),
            file: self.sink.name(),
        }
    }

    /// Whether a new file is due, and once a second, whether the file is still where it was. Only called with an empty page; whether records may follow.
    fn look_after_file(&mut self) -> bool {
        let began = Instant::now();
        if self.leaving.is_none()
            && let Some(to) = self.sink.due(self.page.head.sequence + 1, now())
        {
            let name = to.to_string_lossy();
            self.page
                .tell(Event::Rotated, |line| line.text("to", &name));
            self.count(Event::Rotated);
            self.leaving = Some((to, began));
            // It is the file's last line: nothing is to come behind it.
            if !self.flush() {
                return false;
            }
        }
        if self.leaving.as_ref().is_some_and(|(_, at)| began >= *at) {
            self.leave(began);
        }
        if began.saturating_duration_since(self.looked_after) >= HOUSEKEEPING {
            self.looked_after = began;
            self.keep_house(began);
        }
        true
    }

    /// Gives the file the name that its last line says, and begins a new one.
    fn leave(&mut self, began: Instant) {
        let Some((to, _)) = self.leaving.take() else {
            return;
        };
        match self.sink.rotate(&to, now()) {
            Ok(()) => self.arrive(Some(&to.to_string_lossy()), None),
            Err(error) => {
                warn!(file = self.place(), %error, "the audit trail's file cannot be followed by a new one; it goes on in this one");
                self.leaving = Some((to, began + RENAME_AGAIN));
            }
        }
    }

    fn keep_house(&mut self, began: Instant) {
        let followed = self.sink.follow(now());
        self.misplaced = followed.is_err();
        match followed {
            Ok(Followed::Same) => {}
            Ok(Followed::Other { aside }) => {
                if let Some(aside) = &aside {
                    error!(file = self.place(), aside = %aside.display(), "another file took the place of the audit trail's; it is set aside, and a new one begun");
                }
                self.arrive(None, aside.as_deref());
            }
            Err(error) => {
                self.failed(&error);
            }
        }
        let (asked, sequence) = self.asked;
        if began.saturating_duration_since(asked) >= UNASKED {
            self.asked = (began, self.page.head.sequence);
            if sequence != self.page.head.sequence {
                say(&self.anchor());
            }
        }
    }

    /// The first record of a file that follows another.
    fn arrive(&mut self, from: Option<&str>, aside: Option<&Path>) {
        let config = &self.config;
        self.page.tell(Event::Rotated, |line| {
            line.some_text("from", from.unwrap_or_default());
            line.text("version", env!("CARGO_PKG_VERSION"));
            line.text("config", config);
            if let Some(aside) = aside {
                line.text("damaged", &aside.to_string_lossy());
            }
        });
        self.count(Event::Rotated);
    }

    /// Looks what the process before left open.
    fn close_what_was_open(&mut self) {
        let past = std::mem::take(&mut self.past);
        if past.files.is_empty() {
            return;
        }
        let before = look_back(&past.files, past.window);
        if before.cut_short {
            warn!(
                "the audit trail is too long to be searched in whole for sessions of the process before; some may have no close record"
            );
        }
        if !before.open.is_empty() {
            let sessions = before.open.len();
            warn!(
                sessions,
                "the process before was killed: its sessions are closed in the audit trail as crashed"
            );
        }
        self.crashed = before.open;
        let config = std::mem::take(&mut self.config);
        if let Some(former) = before.config {
            self.config = former;
            self.config_changed(config);
        } else {
            self.config = config;
        }
    }
}

/// Says in the log where the trail stands.
pub(super) fn say(anchor: &Anchor) {
    info!(
        sequence = anchor.sequence,
        head = anchor.hash,
        file = anchor.file,
        "audit head"
    );
}

/// The end of a session that a killed process had open, from its last record.
fn crashed(style: &mut Style, lines: &mut Vec<u8>, seen: &LastSeen) {
    let mut line = style.line(lines, Event::Close, now());
    let texts = [
        ("session", &seen.session),
        ("relay", &seen.relay),
        ("listener", &seen.listener),
        ("endpoint", &seen.endpoint),
        ("consumer", &seen.consumer),
        ("client", &seen.client),
        ("peer", &seen.peer),
        ("upstream", &seen.upstream),
        ("target", &seen.target),
        ("address", &seen.address),
    ];
    for (key, text) in texts {
        line.some_text(key, text);
    }
    line.number("bytes_to_upstream", seen.bytes_to_upstream);
    line.number("bytes_to_client", seen.bytes_to_client);
    line.number("duration_ms", seen.duration_ms);
    line.number("connect_ms", seen.connect_ms);
    line.text("reason", CloseReason::Crashed.name());
    line.text("last_seen", &seen.time);
}

/// Bytes as a JSON string, one character for each byte.
pub(super) fn bytes_as_text(bytes: &[u8]) -> Vec<u8> {
    let text: String = bytes.iter().map(|byte| char::from(*byte)).collect();
    let mut json = Vec::new();
    string(&mut json, &text);
    json
}
