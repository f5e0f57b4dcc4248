//! Those who keep coming: several at once, each with session after session, whole or not.

use std::{
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use super::world::{at, session};
use crate::harness::{BOUND, netns::Host, pattern::Random, watched::Watched};

/// What became of them.
#[derive(Clone, Debug, Default)]
pub(super) struct Seen {
    /// Sessions that were whole.
    pub(super) whole: u64,
    /// Bytes of these, each way.
    pub(super) bytes: u64,
    /// Connections that nobody took: at the port there was no listener.
    pub(super) unheard: u64,
    /// Sessions that began and did not end as they should.
    pub(super) failed: Vec<String>,
    /// How many come at the moment.
    here: u64,
}

/// See the module. They come until they are told to stop.
#[derive(Debug)]
pub(super) struct Visitors {
    stop: Arc<AtomicBool>,
    seen: Arc<Watched<Seen>>,
}

impl Visitors {
    /// So many at once, each to one of these ports of the relay after the other, on behalf of `endpoint`.
    pub(super) fn start(host: &Host, at_once: u64, ports: &[u16], endpoint: &'static str) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let seen = Arc::new(Watched::<Seen>::default());
        seen.update(|seen| seen.here = at_once);
        for number in 0..at_once {
            let places: Vec<SocketAddr> = ports.iter().map(|port| at(*port)).collect();
            let (stop, seen) = (stop.clone(), seen.clone());
            host.spawn(async move {
                let mut random = Random::new(number);
                let mut round = number as usize;
                while !stop.load(Ordering::Relaxed) {
                    let to = places[round % places.len()];
                    round += 1;
                    // Most are small; some are long enough to be spliced, and to be there when something happens.
                    let bytes = match random.below(20) {
                        0 => 1_000_000,
                        1..5 => 100_000,
                        _ => random.below(5000),
                    };
                    let came = session(to, endpoint, number << 32 | round as u64, bytes).await;
                    seen.update(|seen| seen.count(to, came, bytes));
                }
                seen.update(|seen| seen.here -= 1);
            });
        }
        Self { stop, seen }
    }

    /// Waits until so many more were whole.
    #[track_caller]
    pub(super) fn wait_more(&self, n: u64) {
        let until = self.seen.look(|seen| seen.whole) + n;
        let more = |seen: &Seen| (seen.whole >= until || !seen.failed.is_empty()).then_some(());
        self.seen.wait("more visitors", 3 * BOUND, more);
        self.seen.look(Seen::assert_none_failed);
    }

    /// Lets nobody else come, waits until all have gone and returns what became of them.
    #[track_caller]
    pub(super) fn stop(&self) -> Seen {
        self.stop.store(true, Ordering::Relaxed);
        let gone = |seen: &Seen| (seen.here == 0).then(|| seen.clone());
        self.seen.wait("the visitors to go", 3 * BOUND, gone)
    }
}

impl Drop for Visitors {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

impl Seen {
    fn count(&mut self, to: SocketAddr, came: io::Result<()>, bytes: u64) {
        match came {
            Ok(()) => {
                self.whole += 1;
                self.bytes += bytes;
            }
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => self.unheard += 1,
            Err(error) => self.failed.push(format!("{to}: {error}")),
        }
    }

    /// Checks that every session that began was whole.
    #[track_caller]
    pub(super) fn assert_none_failed(&self) {
        let some: Vec<_> = self.failed.iter().take(10).collect();
        let (failed, whole) = (self.failed.len(), self.whole);
        assert!(some.is_empty(), "{failed} beside {whole}: {some:#?}");
    }

    /// Checks that each found a listener, too.
    #[track_caller]
    pub(super) fn assert_all_served(&self) {
        self.assert_none_failed();
        assert_eq!(self.unheard, 0, "of {}", self.whole);
    }
}
