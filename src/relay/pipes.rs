//! A worker's pipes, lent to a direction only while it has bytes in flight. Whoever gets none copies.
//!
//! The pages of pipes are counted per user against a quota of the kernel's; beyond it pipes shrink without a word. All workers draw
//! on one [`Budget`] that stays below it, idle pipes are few, and lent ones are large only while few are out.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::account::{Fallback, WorkerShard};
use crate::sys::pipe::{NoPipe, Pipe};

/// Size of a pipe. Never less: 16 slots of one segment each (64 KiB nominal) may be full at 23 KB.
const USUAL: usize = 256 * 1024;

/// Size of a pipe while few are out: one or two bulk flows gain 5 % by it (and it is what an unprivileged process may ask for,
/// `fs.pipe-max-size`).
const LARGE: usize = 1024 * 1024;

/// So many pipes lent by a worker are few.
const FEW: usize = 4;

/// Empty pipes of each size that a worker keeps. Sixteen bulk flows were seen to need 13 to 15 at once.
const KEPT: usize = 16;

/// Most pipes a worker lends at once.
const MOST: usize = 256;

/// What all workers' pipes together may take of the user's quota.
#[derive(Debug)]
pub struct Budget {
    /// In bytes; `usize::MAX` is without bound.
    bound: usize,
    /// What a worker may keep in empty pipes, in bytes: half of everything is for those who have bytes to move.
    idle: usize,
    taken: AtomicUsize,
}

impl Budget {
    /// Three quarters of `quota` for so many workers: the same user's other processes have pipes too. `None` is without bound.
    #[must_use]
    pub fn of(quota: Option<usize>, workers: usize) -> Self {
        let bound = quota.map_or(usize::MAX, |quota| quota / 4 * 3);
        Self {
            bound,
            idle: bound / 2 / workers,
            taken: AtomicUsize::new(0),
        }
    }

    fn take(&self, size: usize) -> bool {
        let more = |taken: usize| taken.checked_add(size).filter(|sum| *sum <= self.bound);
        let order = Ordering::Relaxed;
        self.taken.fetch_update(order, order, more).is_ok()
    }

    /// Whether three quarters are taken.
    fn is_scarce(&self) -> bool {
        self.taken.load(Ordering::Relaxed) > self.bound / 4 * 3
    }

    fn give_back(&self, size: usize) {
        self.taken.fetch_sub(size, Ordering::Relaxed);
    }
}

/// See the module.
#[derive(Debug)]
pub struct Pipes {
    budget: Arc<Budget>,
    usual: Vec<Pipe>,
    large: Vec<Pipe>,
    lent: usize,
}

impl Pipes {
    /// None yet; they are made as they are needed, within `budget`.
    #[must_use]
    pub fn new(budget: Arc<Budget>) -> Self {
        Self {
            budget,
            usual: Vec::new(),
            large: Vec::new(),
            lent: 0,
        }
    }

    /// An empty pipe.
    ///
    /// # Errors
    /// Why the direction has to copy.
    pub fn lend(&mut self, shard: &WorkerShard) -> Result<Pipe, Fallback> {
        let pipe = match self.lent {
            lent if lent >= MOST => return Err(Fallback::Exhausted),
            lent if lent < FEW => self.of_size(LARGE).or_else(|_| self.of_size(USUAL)),
            _ => self.of_size(USUAL),
        }?;
        self.lent += 1;
        self.show(shard);
        Ok(pipe)
    }

    fn of_size(&mut self, size: usize) -> Result<Pipe, Fallback> {
        let idle = if size == LARGE {
            &mut self.large
        } else {
            &mut self.usual
        };
        if let Some(pipe) = idle.pop() {
            return Ok(pipe);
        }
        if !self.budget.take(size) {
            return Err(Fallback::Exhausted);
        }
        Pipe::with_size(size).map_err(|error| {
            self.budget.give_back(size);
            match error {
                NoPipe::Create(_) => Fallback::NoPipe,
                NoPipe::Size => Fallback::SmallPipe,
            }
        })
    }

    /// Whether a direction that cannot move should give its pipe back and keep the bytes itself, so that receivers who have stopped
    /// reading never hold all pipes.
    #[must_use]
    pub fn are_scarce(&self) -> bool {
        self.lent > MOST / 2 || self.budget.is_scarce()
    }

    /// Takes a pipe back that was emptied.
    pub fn give_back(&mut self, pipe: Pipe, shard: &WorkerShard) {
        let kept = self.usual.len() * USUAL + self.large.len() * LARGE;
        let room = kept + pipe.size <= self.budget.idle;
        let idle = if pipe.size >= LARGE {
            &mut self.large
        } else {
            &mut self.usual
        };
        if idle.len() < KEPT && room {
            idle.push(pipe);
            self.returned(shard);
        } else {
            self.destroy(pipe, shard);
        }
    }

    /// Destroys a pipe, because it still holds bytes, which belong to one session and must never reach another, or because enough
    /// are kept.
    pub fn destroy(&mut self, pipe: Pipe, shard: &WorkerShard) {
        self.budget
            .give_back(if pipe.size >= LARGE { LARGE } else { USUAL });
        drop(pipe);
        self.returned(shard);
    }

    fn returned(&mut self, shard: &WorkerShard) {
        self.lent -= 1;
        self.show(shard);
    }

    fn show(&self, shard: &WorkerShard) {
        shard.pipes_lent.set(self.lent as u64);
        let idle = self.usual.len() + self.large.len();
        shard.pipes_idle.set(idle as u64);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pipes(quota: usize) -> Pipes {
        Pipes::new(Arc::new(Budget::of(Some(quota), 2)))
    }

    #[test]
    fn the_first_few_are_large_and_the_others_are_not() {
        let (mut pipes, shard) = (pipes(64 * LARGE), WorkerShard::default());
        let sizes: Vec<usize> = (0..6).map(|_| pipes.lend(&shard).unwrap().size).collect();
        assert_eq!(sizes, [LARGE, LARGE, LARGE, LARGE, USUAL, USUAL]);
        assert_eq!(shard.pipes_lent.get(), 6);
    }

    #[test]
    fn a_pipe_comes_back_and_is_lent_again() {
        let (mut pipes, shard) = (pipes(64 * LARGE), WorkerShard::default());
        let pipe = pipes.lend(&shard).unwrap();
        pipes.give_back(pipe, &shard);
        assert_eq!((shard.pipes_lent.get(), shard.pipes_idle.get()), (0, 1));
        let _again = pipes.lend(&shard).unwrap();
        assert_eq!(pipes.budget.taken.load(Ordering::Relaxed), LARGE);
    }

    #[test]
    fn the_budget_is_kept_and_what_is_destroyed_returns_to_it() {
        let (mut pipes, shard) = (pipes(4 * LARGE), WorkerShard::default()); // 3 MiB to be had
        let mut lent: Vec<Pipe> = (0..3).map(|_| pipes.lend(&shard).unwrap()).collect();
        assert_eq!(pipes.lend(&shard).unwrap_err(), Fallback::Exhausted);
        pipes.destroy(lent.pop().unwrap(), &shard);
        assert_eq!(pipes.lend(&shard).unwrap().size, LARGE);
    }

    #[test]
    fn empty_pipes_leave_half_of_the_budget_to_the_others() {
        let (mut pipes, shard) = (pipes(8 * LARGE), WorkerShard::default()); // 6 MiB, 1.5 of it for our empty ones
        let lent: Vec<Pipe> = (0..3).map(|_| pipes.lend(&shard).unwrap()).collect();
        for pipe in lent {
            pipes.give_back(pipe, &shard);
        }
        assert_eq!(shard.pipes_idle.get(), 1);
        assert_eq!(pipes.budget.taken.load(Ordering::Relaxed), LARGE);
    }

    #[test]
    fn pipes_are_scarce_before_there_are_none() {
        let (mut pipes, shard) = (pipes(8 * LARGE), WorkerShard::default());
        let mut lent = Vec::new();
        while !pipes.are_scarce() {
            lent.push(pipes.lend(&shard).unwrap());
        }
        assert!(pipes.lend(&shard).is_ok());
    }

    #[test]
    fn where_no_large_one_is_to_be_had_a_usual_one_is() {
        let (mut pipes, shard) = (pipes(LARGE), WorkerShard::default());
        assert_eq!(pipes.lend(&shard).unwrap().size, USUAL);
    }
}
