//! Does what a [`Half`] says, until it waits, fails or has had its turn.

use rustix::io::{Errno, ioctl_fionread, read};
use rustix::net::{RecvFlags, SendFlags, Shutdown, recv, send, shutdown};
use rustix::pipe::{SpliceFlags, splice};

use super::half::{Half, Next};
use super::pacing::{Gate, Grant};
use super::pipes::Pipes;
use crate::account::{Direction, Fallback, Meter, RelayPath, WorkerShard};
use crate::reactor::Watched;
use crate::sys::pipe::Pipe;

/// What one direction moves in a turn before the others get theirs.
const TURN_BYTES: u64 = 1024 * 1024;

/// Calls in a turn: bounds what many tiny reads cost.
const TURN_CALLS: u32 = 64;

/// How a direction's turn ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Turn {
    /// It waits for an event, or is done.
    Over,
    /// It has more to do.
    More,
    /// A read failed.
    SourceFailed(Errno),
    /// A write failed.
    SinkFailed(Errno),
}

/// A direction with everything its turn needs.
pub(super) struct Pump<'a> {
    pub(super) direction: Direction,
    pub(super) half: &'a mut Half,
    /// What its reads have to pass, where it has a pace.
    pub(super) gate: Option<Gate<'a>>,
    pub(super) pipe: &'a mut Option<Pipe>,
    pub(super) source: &'a Watched,
    pub(super) sink: &'a Watched,
    pub(super) meter: &'a Meter,
    pub(super) buffer: &'a mut [u8],
    pub(super) pipes: &'a mut Pipes,
    pub(super) shard: &'a WorkerShard,
    /// Bytes the sink took in this turn.
    pub(super) moved: u64,
    /// Bytes thrown away in this turn.
    pub(super) discarded: u64,
    /// The other direction has passed its FIN on: with this one's the session ends, and closing the sink sends it.
    pub(super) last: bool,
}

/// Never SPLICE_F_MORE: it holds the last segment back for up to 200 ms.
const SPLICE: SpliceFlags = SpliceFlags::NONBLOCK.union(SpliceFlags::MOVE);

impl Pump<'_> {
    /// One turn. A pipe is kept beyond it only while it holds bytes, and where pipes are scarce only while those move.
    pub(super) fn turn(&mut self) -> Turn {
        let mut turn = self.steps();
        if self.half.in_pipe() > 0 && turn == Turn::Over && self.pipes.are_scarce() {
            turn = self.unload();
        }
        if self.half.in_pipe() == 0
            && let Some(pipe) = self.pipe.take()
        {
            self.pipes.give_back(pipe, self.shard);
        }
        turn
    }

    fn steps(&mut self) -> Turn {
        for _ in 0..TURN_CALLS {
            if self.moved + self.discarded >= TURN_BYTES {
                return Turn::More;
            }
            let failed = match self.half.next() {
                Next::Wait | Next::Done => return Turn::Over,
                Next::SendKept => self.send_kept(),
                Next::Copy { limit } => self.copy(limit),
                Next::Discard => self.discard(),
                Next::Fill => self.fill(),
                Next::Flush => self.flush(),
                Next::PassFin => self.pass_fin(),
            };
            if let Err(turn) = failed {
                return turn;
            }
        }
        Turn::More
    }

    fn send_kept(&mut self) -> Result<(), Turn> {
        match send(self.sink, self.half.kept(), SendFlags::NOSIGNAL) {
            Ok(n) => {
                self.book(n, RelayPath::Copy);
                self.half.sent_kept(n);
                Ok(())
            }
            Err(errno) => self.sink_said(errno),
        }
    }

    fn copy(&mut self, limit: usize) -> Result<(), Turn> {
        let grant = self.grant(limit)?;
        let room = &mut self.buffer[..grant.most];
        let received = recv(self.source, &mut *room, RecvFlags::empty()).map(|(n, _)| n);
        self.settle(&grant, received);
        let n = match received {
            Ok(n) => n,
            Err(errno) => return self.source_said(errno),
        };
        self.half.received(n, grant.most);
        if n == 0 {
            return Ok(());
        }
        match send(self.sink, &self.buffer[..n], SendFlags::NOSIGNAL) {
            Ok(sent) => {
                self.book(sent, RelayPath::Copy);
                match sent < n {
                    true => self.half.keep(self.buffer[sent..n].into()),
                    false => self.half.passed_on(),
                }
                Ok(())
            }
            Err(Errno::AGAIN) => {
                self.half.keep(self.buffer[..n].into());
                Ok(())
            }
            Err(errno) => Err(Turn::SinkFailed(errno)),
        }
    }

    fn discard(&mut self) -> Result<(), Turn> {
        match recv(self.source, &mut *self.buffer, RecvFlags::empty()) {
            Ok((n, _)) => {
                self.discarded += n as u64;
                self.half.received(n, self.buffer.len());
            }
            Err(errno) => return self.source_said(errno),
        }
        Ok(())
    }

    fn fill(&mut self) -> Result<(), Turn> {
        let pipe = match self
            .pipe
            .take()
            .map_or_else(|| self.pipes.lend(self.shard), Ok)
        {
            Ok(pipe) => &*self.pipe.insert(pipe),
            Err(fallback) => {
                self.fall_back(fallback);
                return Ok(());
            }
        };
        let grant = grant(&mut self.gate, self.half, self.source, pipe.size)?;
        let filled = splice(self.source, None, &pipe.input, None, grant.most, SPLICE);
        self.settle(&grant, filled);
        match filled {
            Ok(n) => {
                self.half.filled(n);
                Ok(())
            }
            // The pipe is empty, so it is the source that has nothing.
            Err(Errno::AGAIN) => self.source_said(Errno::AGAIN),
            Err(Errno::INVAL | Errno::NOSYS | Errno::NOMEM | Errno::PERM) => {
                self.fall_back(Fallback::Splice);
                Ok(())
            }
            Err(errno) => self.source_said(errno),
        }
    }

    /// Leave to read at most `limit` bytes; without it the direction's turn is over.
    fn grant(&mut self, limit: usize) -> Result<Grant, Turn> {
        grant(&mut self.gate, self.half, self.source, limit)
    }

    fn settle(&mut self, grant: &Grant, read: Result<usize, Errno>) {
        if let Some(gate) = &mut self.gate {
            gate.settle(grant, read.unwrap_or(0));
        }
    }

    fn flush(&mut self) -> Result<(), Turn> {
        let Some(pipe) = self.pipe.as_ref() else {
            return Err(Turn::SinkFailed(Errno::BADF)); // bytes without their pipe: a fault of ours, told as an error
        };
        match splice(
            &pipe.output,
            None,
            self.sink,
            None,
            self.half.in_pipe(),
            SPLICE,
        ) {
            Ok(0) => Err(Turn::SinkFailed(Errno::PIPE)),
            Ok(n) => {
                self.book(n, RelayPath::Splice);
                self.half.flushed(n);
                Ok(())
            }
            Err(errno) => self.sink_said(errno),
        }
    }

    /// Takes the bytes out of the pipe and keeps them on the heap, as copying would; one pipe's worth at most.
    fn unload(&mut self) -> Turn {
        let (Some(pipe), len) = (self.pipe.as_ref(), self.half.in_pipe()) else {
            return Turn::Over;
        };
        let (mut bytes, mut got) = (vec![0; len].into_boxed_slice(), 0);
        while got < len {
            match read(&pipe.output, &mut bytes[got..]) {
                Ok(n) if n > 0 => got += n,
                Err(Errno::INTR) => {}
                // Bytes that were counted are not there: the stream must not go on without them.
                Ok(_) => return Turn::SinkFailed(Errno::IO),
                Err(errno) => return Turn::SinkFailed(errno),
            }
        }
        self.half.flushed(len);
        self.half.keep(bytes);
        Turn::Over
    }

    fn pass_fin(&mut self) -> Result<(), Turn> {
        if self.last {
            self.half.fin_passed();
            return Ok(());
        }
        match shutdown(self.sink, Shutdown::Write) {
            Ok(()) => {
                self.half.fin_passed();
                Ok(())
            }
            Err(errno) => Err(Turn::SinkFailed(errno)),
        }
    }

    fn fall_back(&mut self, why: Fallback) {
        self.shard.fallbacks[why as usize].add(1);
        self.half.copy_again();
    }

    fn book(&mut self, n: usize, path: RelayPath) {
        self.moved += n as u64;
        self.meter.moved(self.direction, n);
        self.shard.relayed[path as usize].add(n as u64);
    }

    fn source_said(&mut self, errno: Errno) -> Result<(), Turn> {
        match errno {
            Errno::AGAIN => self.half.source_blocked(),
            Errno::INTR => {}
            errno => return Err(Turn::SourceFailed(errno)),
        }
        Ok(())
    }

    fn sink_said(&mut self, errno: Errno) -> Result<(), Turn> {
        match errno {
            Errno::AGAIN => self.half.sink_blocked(),
            Errno::INTR => {}
            errno => return Err(Turn::SinkFailed(errno)),
        }
        Ok(())
    }
}

/// See [`Pump::grant`]; for where its pipe is borrowed.
fn grant(
    gate: &mut Option<Gate<'_>>,
    half: &mut Half,
    source: &Watched,
    limit: usize,
) -> Result<Grant, Turn> {
    let Some(gate) = gate else {
        return Ok(Grant::free(limit));
    };
    gate.ask(limit, || ioctl_fionread(source)).ok_or_else(|| {
        half.hold_up();
        Turn::Over
    })
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};
    use std::num::NonZeroU64;
    use std::rc::Rc;
    use std::sync::Arc;

    use super::*;
    use crate::account::{AccountKey, Books, Limits, Place};
    use crate::config::RelayMode;
    use crate::policy::pace::Pace;
    use crate::reactor::Reactor;
    use crate::relay::pacing::Pacer;
    use crate::relay::pipes::Budget;

    const MIB: usize = 1024 * 1024;

    /// Our end, in a reactor, and the other.
    fn pair(reactor: &Rc<Reactor>) -> (Watched, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let ours = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        ours.set_nonblocking(true).unwrap();
        let ours = Watched::new(reactor, ours.into()).unwrap();
        (ours, listener.accept().unwrap().0)
    }

    fn account_key() -> AccountKey {
        AccountKey {
            listener: "in".into(),
            endpoint: "vpce-1".into(),
            consumer: "".into(),
            upstream: "cp".into(),
        }
    }

    #[test]
    fn where_pipes_are_scarce_a_blocked_direction_gives_its_pipe_back_and_loses_nothing() {
        let reactor = Rc::new(Reactor::new(None).unwrap());
        let (source, mut sender) = pair(&reactor);
        let (sink, receiver) = pair(&reactor);
        let books = Books::new(Place::Memory, &[], 1, Limits::of_most(1)).unwrap();
        let (meter, _) = books.open(account_key(), 0);
        // Room for one usual pipe: with it lent, pipes are scarce.
        let mut pipes = Pipes::new(Arc::new(Budget::of(Some(MIB * 3 / 8), 1)));
        let (mut half, mut pipe) = (Half::new(RelayMode::Splice, Vec::new()), None);
        let mut buffer = vec![0; MIB / 4];
        let sent: Vec<u8> = (0..32 * MIB).map(|n| (n / 7) as u8).collect();
        let expected = sent.clone();
        let sending = std::thread::spawn(move || sender.write_all(&sent));
        let mut turn = || {
            half.source_ready(false);
            half.sink_ready();
            let turn = Pump {
                direction: Direction::ToUpstream,
                half: &mut half,
                gate: None,
                pipe: &mut pipe,
                source: &source,
                sink: &sink,
                meter: &meter,
                buffer: &mut buffer,
                pipes: &mut pipes,
                shard: books.worker(0),
                moved: 0,
                discarded: 0,
                last: false,
            }
            .turn();
            (turn, half.in_pipe(), half.kept().len())
        };
        let mut kept = 0;
        while kept == 0 {
            let (turn, in_pipe, now_kept) = turn();
            assert!(matches!(turn, Turn::Over | Turn::More), "{turn:?}");
            assert!(
                in_pipe == 0 || turn == Turn::More,
                "a blocked direction has a pipe"
            );
            kept = now_kept;
        }
        let shard = books.worker(0);
        assert_eq!(shard.pipes_lent.get(), 0);
        assert_eq!(shard.fallbacks[Fallback::SmallPipe as usize].get(), 0);
        receiver.set_nonblocking(true).unwrap();
        let mut received = Vec::with_capacity(expected.len());
        while received.len() < expected.len() {
            let _ = turn();
            let _ = (&receiver).take(MIB as u64).read_to_end(&mut received); // as much as there is
        }
        sending.join().unwrap().unwrap();
        assert!(received == expected);
    }

    #[test]
    fn by_its_pace_and_not_faster_a_direction_moves_every_byte() {
        for mode in [RelayMode::Copy, RelayMode::Splice, RelayMode::Adaptive] {
            let reactor = Rc::new(Reactor::new(None).unwrap());
            let (source, mut sender) = pair(&reactor);
            let (sink, mut receiver) = pair(&reactor);
            let books = Books::new(Place::Memory, &[], 1, Limits::of_most(1)).unwrap();
            let (meter, _) = books.open(account_key(), 0);
            let mut pipes = Pipes::new(Arc::new(Budget::of(None, 1)));
            let (mut half, mut pipe) = (Half::new(mode, Vec::new()), None);
            let mut buffer = vec![0; MIB / 4];
            let per_second = 10 * MIB as u64;
            let pace = Pace {
                buckets: Arc::default(),
                rates: [NonZeroU64::new(per_second), None],
            };
            let mut pacer = Pacer::new(pace);
            let sent: Vec<u8> = (0..8 * MIB).map(|n| (n / 7) as u8).collect();
            let expected = sent.clone();
            let sending = std::thread::spawn(move || {
                sender.write_all(&sent).unwrap();
            });
            let receiving = std::thread::spawn(move || {
                let mut received = Vec::new();
                receiver.read_to_end(&mut received).unwrap();
                received
            });
            // The time is made up; it goes on when the direction waits for it, and not when it waits for the kernel.
            let second = 1_000_000_000;
            let (began, mut now, mut moved) = (second, second, 0);
            while !half.is_finished() {
                half.source_ready(true);
                half.sink_ready();
                let mut pump = Pump {
                    direction: Direction::ToUpstream,
                    half: &mut half,
                    gate: pacer.gate(Direction::ToUpstream, now),
                    pipe: &mut pipe,
                    source: &source,
                    sink: &sink,
                    meter: &meter,
                    buffer: &mut buffer,
                    pipes: &mut pipes,
                    shard: books.worker(0),
                    moved: 0,
                    discarded: 0,
                    last: false,
                };
                let turn = pump.turn();
                moved += pump.moved;
                assert!(matches!(turn, Turn::Over | Turn::More), "{turn:?}");
                // And what came in between asking how much there is and reading, for which it pays later: made likely here, because it is
                // asked though nothing was announced.
                let raced = 64 * 1024;
                let most = per_second / 10 + (now - began) * per_second / second + raced;
                assert!(moved <= most, "{moved} of {most}");
                if half.is_held_up() {
                    now = pacer.next().unwrap();
                    half.let_go();
                    assert!(pipe.is_none());
                }
            }
            sending.join().unwrap();
            assert!(receiving.join().unwrap() == expected, "{mode:?}");
            let shard = books.worker(0);
            let spliced = shard.relayed[RelayPath::Splice as usize].get();
            assert_eq!(spliced > moved / 2, mode != RelayMode::Copy, "{mode:?}");
        }
    }
}
