//! One address of an upstream: what all workers and the control thread know of it together.
//!
//! Numbers only, each true by itself: workers write them once per connection, never per transfer.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use tokio::sync::Notify;

use super::distribution::{Distribution, RATE_BYTES, RTT_MICROS};

/// See the module. It lives as long as a session, a connection dialled ahead, or the upstream's answers hold it.
#[derive(Debug)]
pub struct Address {
    /// Where it is.
    pub at: SocketAddr,
    /// The target it was found for, as configured.
    pub target: Arc<str>,
    /// Its upstream's [`id`](super::Upstream::id).
    pub upstream: usize,
    present: AtomicBool,
    sessions: AtomicU32,
    ahead: AtomicU32,
    opened: AtomicU64,
    /// Connects that failed since the last that did not.
    connect_failures: AtomicU32,
    /// Connections reset before they said a word, since the last that said one.
    early_resets: AtomicU32,
    /// The same, but what one endpoint alone got in a row counts once.
    resets_of_several: AtomicU32,
    /// Whose connection the last of them was.
    reset_for: AtomicU64,
    /// Smoothed; 0: none was made yet.
    connect_micros: AtomicU32,
    /// As last seen; 0: never.
    rtt_micros: AtomicU32,
    retransmits: AtomicU64,
    /// Round trips, in microseconds.
    pub rtts: Distribution<{ RTT_MICROS.len() }>,
    /// Rates at which it took bytes, in bytes a second.
    pub rates: Distribution<{ RATE_BYTES.len() }>,
    /// Failures in a row at which the control thread has to look; 0: never.
    alarm: AtomicU32,
    attention: Arc<Notify>,
}

impl Address {
    /// An address nothing is known of. `attention` is told when `alarm` failures have come in a row; 0: never.
    #[must_use]
    pub fn new(
        at: SocketAddr,
        target: Arc<str>,
        upstream: usize,
        alarm: u32,
        attention: Arc<Notify>,
    ) -> Self {
        Self {
            at,
            target,
            upstream,
            present: AtomicBool::new(true),
            sessions: AtomicU32::new(0),
            ahead: AtomicU32::new(0),
            opened: AtomicU64::new(0),
            connect_failures: AtomicU32::new(0),
            early_resets: AtomicU32::new(0),
            resets_of_several: AtomicU32::new(0),
            reset_for: AtomicU64::new(0),
            connect_micros: AtomicU32::new(0),
            rtt_micros: AtomicU32::new(0),
            retransmits: AtomicU64::new(0),
            rtts: Distribution::new(&RTT_MICROS),
            rates: Distribution::new(&RATE_BYTES),
            alarm: AtomicU32::new(alarm),
            attention,
        }
    }

    /// Another configuration has another number of failures at which the control thread is told.
    pub(super) fn set_alarm(&self, alarm: u32) {
        self.alarm.store(alarm, Relaxed);
    }

    /// Whether it is in the upstream's answers.
    #[must_use]
    pub fn is_present(&self) -> bool {
        self.present.load(Relaxed)
    }

    pub(super) fn set_present(&self, present: bool) {
        self.present.store(present, Relaxed);
    }

    /// Sessions on it, those that are being connected included.
    #[must_use]
    pub fn sessions(&self) -> u32 {
        self.sessions.load(Relaxed)
    }

    /// Sessions that were connected to it so far.
    #[must_use]
    pub fn opened(&self) -> u64 {
        self.opened.load(Relaxed)
    }

    /// A session is connected to it.
    pub fn open(&self) {
        self.opened.fetch_add(1, Relaxed);
    }

    /// Connections dialled ahead.
    #[must_use]
    pub fn ahead(&self) -> u32 {
        self.ahead.load(Relaxed)
    }

    /// Sessions, and connections that wait for one.
    #[must_use]
    pub fn load(&self) -> u32 {
        self.sessions().saturating_add(self.ahead())
    }

    /// How long connects take, smoothed; `None`: none succeeded yet.
    #[must_use]
    pub fn connect_time(&self) -> Option<Duration> {
        some_micros(&self.connect_micros)
    }

    /// The round trip as its connections last saw it.
    #[must_use]
    pub fn rtt(&self) -> Option<Duration> {
        some_micros(&self.rtt_micros)
    }

    /// Segments sent to it more than once.
    #[must_use]
    pub fn retransmits(&self) -> u64 {
        self.retransmits.load(Relaxed)
    }

    /// A connection was made.
    pub fn connected(&self, took: Duration) {
        if self.connect_failures.load(Relaxed) != 0 {
            self.connect_failures.store(0, Relaxed);
        }
        let took = u32::try_from(took.as_micros()).unwrap_or(u32::MAX).max(1);
        let smoothed = match self.connect_micros.load(Relaxed) {
            0 => took,
            // An eighth, as TCP smooths its round trip (RFC 6298, section 2). Racing workers lose a sample, not the figure.
            before => before - before / 8 + took / 8,
        };
        self.connect_micros.store(smoothed.max(1), Relaxed);
    }

    /// A connect failed, or another address that was asked later answered first.
    pub fn connect_failed(&self) {
        let failures = self
            .connect_failures
            .fetch_add(1, Relaxed)
            .saturating_add(1);
        if failures == self.alarm.load(Relaxed) {
            self.attention.notify_one();
        }
    }

    /// A connection to it was reset before it had said a word. `asked_by`: the endpoint whose bytes it had got by then, as
    /// [`key_of`](super::balance::key_of) knows it; `None`: nobody's. What one endpoint alone gets for its bytes may be its own fault: see
    /// `failures`.
    pub fn reset_early(&self, asked_by: Option<u64>) {
        let before = asked_by.map(|key| self.reset_for.swap(key, Relaxed));
        if before.is_none() || before != asked_by {
            self.resets_of_several.fetch_add(1, Relaxed);
        }
        let resets = self.early_resets.fetch_add(1, Relaxed).saturating_add(1);
        let alarm = self.alarm.load(Relaxed);
        if alarm > 0 && resets >= alarm {
            self.attention.notify_one();
        }
    }

    /// A connection to it said something.
    pub fn spoke(&self) {
        if self.early_resets.load(Relaxed) != 0 {
            self.early_resets.store(0, Relaxed);
            self.resets_of_several.store(0, Relaxed);
            self.reset_for.store(0, Relaxed);
        }
    }

    /// Connections in a row that were reset before they said a word.
    pub(super) fn early_resets(&self) -> u32 {
        self.early_resets.load(Relaxed)
    }

    /// The failures in a row of the kind that has more of them; and which kind. `others_do_well`: what one endpoint alone got counts, because
    /// another address would not have reset it; else it counts once, and no consumer ejects an address from all others.
    pub(super) fn failures(&self, others_do_well: bool) -> (u32, &'static str) {
        let connects = self.connect_failures.load(Relaxed);
        let resets = match others_do_well {
            true => self.early_resets.load(Relaxed),
            false => self.resets_of_several.load(Relaxed),
        };
        if connects >= resets {
            (connects, "connects failed")
        } else {
            (resets, "connections were reset before a byte")
        }
    }

    pub(super) fn forget_failures(&self) {
        self.connect_failures.store(0, Relaxed);
        self.early_resets.store(0, Relaxed);
        self.resets_of_several.store(0, Relaxed);
    }

    /// What the kernel knows of one of its connections, `rate` in bytes a second; `more` segments were sent again since it was last asked.
    pub fn measured(&self, rtt: Option<Duration>, rate: Option<u64>, more: u64) {
        if let Some(rtt) = rtt {
            let rtt = u32::try_from(rtt.as_micros()).unwrap_or(u32::MAX);
            self.rtt_micros.store(rtt, Relaxed);
            self.rtts.add(rtt.into());
        }
        if let Some(rate) = rate {
            self.rates.add(rate);
        }
        if more > 0 {
            self.retransmits.fetch_add(more, Relaxed);
        }
    }
}

fn some_micros(micros: &AtomicU32) -> Option<Duration> {
    let micros = micros.load(Relaxed);
    (micros > 0).then(|| Duration::from_micros(micros.into()))
}

/// A session's place on an address, or that of a connection dialled ahead: counted as long as it is held.
#[derive(Debug)]
pub struct Hold {
    address: Arc<Address>,
    ahead: bool,
}

impl Hold {
    /// Counts a session.
    #[must_use]
    pub fn session(address: Arc<Address>) -> Self {
        address.sessions.fetch_add(1, Relaxed);
        Self {
            address,
            ahead: false,
        }
    }

    /// Counts a connection that waits for a session.
    #[must_use]
    pub fn ahead(address: Arc<Address>) -> Self {
        address.ahead.fetch_add(1, Relaxed);
        Self {
            address,
            ahead: true,
        }
    }

    /// The waiting is over: it counts as a session.
    #[must_use]
    pub fn taken(self) -> Self {
        Self::session(self.address.clone())
    }

    /// What is held.
    #[must_use]
    pub fn address(&self) -> &Arc<Address> {
        &self.address
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        let counter = match self.ahead {
            true => &self.address.ahead,
            false => &self.address.sessions,
        };
        counter.fetch_sub(1, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(alarm: u32) -> (Arc<Address>, Arc<Notify>) {
        let attention = Arc::new(Notify::new());
        let at = "10.0.0.1:443".parse().unwrap();
        let address = Address::new(at, "cp:443".into(), 0, alarm, attention.clone());
        (Arc::new(address), attention)
    }

    #[test]
    fn a_hold_counts_as_long_as_it_is_held() {
        let (address, _) = address(0);
        let waiting = Hold::ahead(address.clone());
        assert_eq!((address.sessions(), address.ahead()), (0, 1));
        let session = waiting.taken();
        assert_eq!((address.sessions(), address.ahead()), (1, 0));
        drop(session);
        assert_eq!(address.load(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn failures_in_a_row_raise_the_alarm_once() {
        let (address, attention) = address(3);
        for _ in 0..2 {
            address.connect_failed();
        }
        address.connected(Duration::from_millis(1));
        for _ in 0..2 {
            address.connect_failed();
        }
        let soon = Duration::from_millis(1);
        let heard = |attention: Arc<Notify>| async move {
            tokio::time::timeout(soon, attention.notified())
                .await
                .is_ok()
        };
        assert!(!heard(attention.clone()).await, "a success came between");
        address.connect_failed();
        assert!(heard(attention.clone()).await);
        address.connect_failed();
        assert!(!heard(attention).await);
    }

    #[test]
    fn early_resets_count_though_each_connect_succeeds() {
        let (address, _) = address(3);
        for _ in 0..3 {
            address.connected(Duration::from_millis(1));
            address.reset_early(None);
        }
        assert_eq!(address.failures(false).0, 3);
        address.spoke();
        assert_eq!(address.failures(false).0, 0);
    }

    #[test]
    fn one_endpoint_alone_cannot_make_an_address_fail() {
        let (address, _) = address(3);
        for _ in 0..9 {
            address.reset_early(Some(7));
        }
        assert_eq!(address.failures(false).0, 1);
        assert_eq!(
            address.failures(true).0,
            9,
            "where another address is better"
        );
        for key in [8, 7, 8] {
            address.reset_early(Some(key));
        }
        assert_eq!(address.failures(false).0, 4);
    }

    #[test]
    fn what_was_measured_is_kept_as_seen_last_and_as_distributed() {
        let (address, _) = address(0);
        address.measured(None, None, 0);
        assert_eq!((address.rtts.read(), address.rates.read()), (None, None));
        for millis in [70, 71, 220] {
            address.measured(Some(Duration::from_millis(millis)), Some(1_000_000), 2);
        }
        assert_eq!(address.rtt(), Some(Duration::from_millis(220)));
        assert_eq!(address.retransmits(), 6);
        let rtts = address.rtts.read().unwrap();
        assert_eq!((rtts.count, rtts.sum), (3, 361_000));
        let of = |end| rtts.up_to.iter().find(|bucket| bucket.0 == end).unwrap().1;
        assert_eq!([of(50_000), of(75_000), of(250_000)], [0, 2, 3]);
        assert_eq!(address.rates.read().unwrap().sum, 3_000_000);
    }

    #[test]
    fn connect_times_are_smoothed() {
        let (address, _) = address(0);
        assert_eq!(address.connect_time(), None);
        address.connected(Duration::from_millis(80));
        assert_eq!(address.connect_time(), Some(Duration::from_millis(80)));
        address.connected(Duration::from_millis(160));
        assert_eq!(address.connect_time(), Some(Duration::from_millis(90)));
    }
}
