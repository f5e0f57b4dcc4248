//! The worker's pipes, lent to a direction only while it has bytes in flight.
//!
//! Pages of pipes are counted per user against `fs.pipe-user-pages-soft` (16384, that is 256 pipes of 256 KiB) unless the process
//! has CAP_SYS_RESOURCE; so idle pipes are few and lent ones bounded. Whoever gets none copies.

use crate::account::{Fallback, WorkerShard};
use crate::sys::pipe::{NoPipe, Pipe};

/// Size of a pipe. Never less: 16 slots of one segment each (64 KiB nominal) may be full at 23 KB.
pub const PIPE_SIZE: usize = 256 * 1024;

/// Empty pipes a worker keeps. Sixteen bulk flows were seen to need 13 to 15 at once.
const KEPT: usize = 16;

/// Most pipes a worker lends at once.
const MOST: usize = 64;

/// See the module.
#[derive(Debug, Default)]
pub struct Pipes {
    idle: Vec<Pipe>,
    lent: usize,
}

impl Pipes {
    /// An empty pipe.
    ///
    /// # Errors
    /// Why the direction has to copy.
    pub fn lend(&mut self, shard: &WorkerShard) -> Result<Pipe, Fallback> {
        let pipe = match self.idle.pop() {
            Some(pipe) => pipe,
            None if self.lent >= MOST => return Err(Fallback::Exhausted),
            None => Pipe::with_size(PIPE_SIZE).map_err(|error| match error {
                NoPipe::Create(_) => Fallback::NoPipe,
                NoPipe::Size => Fallback::SmallPipe,
            })?,
        };
        self.lent += 1;
        self.show(shard);
        Ok(pipe)
    }

    /// Takes a pipe back that was emptied.
    pub fn give_back(&mut self, pipe: Pipe, shard: &WorkerShard) {
        self.lent -= 1;
        if self.idle.len() < KEPT {
            self.idle.push(pipe);
        }
        self.show(shard);
    }

    /// Destroys a pipe that still holds bytes: they belong to one session and must never reach another.
    pub fn destroy(&mut self, pipe: Pipe, shard: &WorkerShard) {
        drop(pipe);
        self.lent -= 1;
        self.show(shard);
    }

    fn show(&self, shard: &WorkerShard) {
        shard.pipes_lent.set(self.lent as u64);
        shard.pipes_idle.set(self.idle.len() as u64);
    }
}
