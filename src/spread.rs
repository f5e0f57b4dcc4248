//! Spreading connections over the workers by how many each has open.
//!
//! The kernel spreads new connections by a hash over the workers' listening sockets. Long-lived ones stay where they land, so a worker
//! can end up with far more than its share; one that has clearly more than the least loaded passes new ones on to it.

use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::{OwnedSemaphorePermit, mpsc};

/// A worker keeps a new connection unless it has this many more than another...
const CLEARLY_MORE: usize = 8;

/// ...and at least this share more (one in so many): passing on costs a wake-up of another thread.
const SHARE: usize = 8;

/// Connections on their way to a worker; when it is that far behind, they stay where they are.
const UNDER_WAY: usize = 256;

/// A connection that is passed on: accepted, not a byte read.
#[derive(Debug)]
pub struct Passed {
    /// The socket.
    pub client: OwnedFd,
    /// Its peer, canonical and trusted.
    pub peer: SocketAddr,
    /// The number of the gate it came through.
    pub gate: u64,
    /// Its two descriptors.
    pub descriptors: OwnedSemaphorePermit,
}

/// What the workers know of each other.
#[derive(Debug)]
pub struct Spread {
    workers: Box<[Neighbour]>,
}

#[derive(Debug)]
#[repr(align(64))] // each is written by one worker at each connection
struct Neighbour {
    open: AtomicUsize,
    passed: mpsc::Sender<Passed>,
}

/// A connection's part in the load of the process and of the worker that has it; ends with the connection.
#[derive(Debug)]
pub struct Load {
    _descriptors: OwnedSemaphorePermit,
    spread: Arc<Spread>,
    worker: usize,
}

impl Spread {
    /// For so many workers, with what each of them receives.
    #[must_use]
    pub fn new(workers: usize) -> (Arc<Self>, Vec<mpsc::Receiver<Passed>>) {
        let (neighbours, receivers): (Vec<_>, Vec<_>) = (0..workers)
            .map(|_| {
                let (passed, receiver) = mpsc::channel(UNDER_WAY);
                let open = AtomicUsize::new(0);
                (Neighbour { open, passed }, receiver)
            })
            .unzip();
        let workers = neighbours.into();
        (Arc::new(Self { workers }), receivers)
    }

    /// Connections that `worker` has open, those without a whole header included.
    #[must_use]
    pub fn open(&self, worker: usize) -> usize {
        self.workers[worker].open.load(Ordering::Relaxed)
    }

    /// Connections that are open in all.
    #[must_use]
    pub fn all_open(&self) -> usize {
        (0..self.workers.len())
            .map(|worker| self.open(worker))
            .sum()
    }

    /// Who should take the next connection that `worker` accepts.
    #[must_use]
    pub fn keeper(&self, worker: usize) -> usize {
        let open = self.workers.iter().map(|w| w.open.load(Ordering::Relaxed));
        keeper(open, worker)
    }

    /// Passes a connection on.
    ///
    /// # Errors
    /// The connection itself, when that worker is too far behind or has ended.
    pub fn pass(&self, to: usize, passed: Passed) -> Result<(), Passed> {
        let sent = self.workers[to].passed.try_send(passed);
        sent.map_err(mpsc::error::TrySendError::into_inner)
    }

    /// Counts a connection to `worker`.
    #[must_use]
    pub fn load(self: &Arc<Self>, worker: usize, descriptors: OwnedSemaphorePermit) -> Load {
        self.workers[worker].open.fetch_add(1, Ordering::Relaxed);
        Load {
            _descriptors: descriptors,
            spread: self.clone(),
            worker,
        }
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        let open = &self.spread.workers[self.worker].open;
        open.fetch_sub(1, Ordering::Relaxed);
    }
}

/// `me`, unless it has clearly more than the one with the least.
fn keeper(open: impl Iterator<Item = usize> + Clone, me: usize) -> usize {
    let mine = open.clone().nth(me).unwrap_or(0);
    match open.enumerate().min_by_key(|(_, open)| *open) {
        Some((least, open)) if mine >= open + CLEARLY_MORE.max(open / SHARE) => least,
        _ => me,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn permit() -> OwnedSemaphorePermit {
        let places = Arc::new(tokio::sync::Semaphore::new(1));
        places.try_acquire_owned().unwrap()
    }

    fn keeper_of(open: &[usize], me: usize) -> usize {
        keeper(open.iter().copied(), me)
    }

    #[test]
    fn a_worker_keeps_what_it_accepts_until_it_has_clearly_more() {
        assert_eq!(keeper_of(&[0], 0), 0);
        assert_eq!(keeper_of(&[7, 0], 0), 0);
        assert_eq!(keeper_of(&[8, 0], 0), 1);
        assert_eq!(keeper_of(&[8, 0], 1), 1);
    }

    #[test]
    fn among_many_connections_a_small_difference_is_none() {
        assert_eq!(keeper_of(&[1100, 1000], 0), 0);
        assert_eq!(keeper_of(&[1125, 1000], 0), 1);
    }

    #[test]
    fn the_least_loaded_takes_it() {
        assert_eq!(keeper_of(&[40, 20, 9, 30], 0), 2);
    }

    #[test]
    fn a_load_ends_with_its_connection() {
        let (spread, _receivers) = Spread::new(2);
        let loads: Vec<Load> = (0..10).map(|_| spread.load(0, permit())).collect();
        assert_eq!(
            (spread.open(0), spread.keeper(0), spread.keeper(1)),
            (10, 1, 1)
        );
        drop(loads);
        assert_eq!((spread.open(0), spread.keeper(0)), (0, 0));
    }

    #[test]
    fn a_worker_that_is_behind_is_not_buried() {
        let (spread, receivers) = Spread::new(2);
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let passed = || Passed {
            client: listener.try_clone().unwrap().into(),
            peer: "10.0.0.1:1".parse().unwrap(),
            gate: 0,
            descriptors: permit(),
        };
        assert!(spread.pass(1, passed()).is_ok());
        drop(receivers);
        assert!(spread.pass(1, passed()).is_err(), "it comes back");
    }
}
