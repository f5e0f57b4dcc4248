//! Streams whose every byte is known: what was sent can be checked anywhere on its way, at any offset, without keeping it.
//!
//! A stream starts with its seed (8 bytes, big-endian), so that a receiver that was told nothing can check it. What follows is a window into
//! one table of random bytes, of prime length so that no shift by a buffer, a pipe or a page goes unseen; each seed has its own shift, so
//! bytes of another connection do not pass for this one's. Sending and checking cost a memcpy and a memcmp, in a debug build too.

use std::{fmt, io, sync::OnceLock};

/// 2^20 - 3, a prime.
const PERIOD: usize = 1_048_573;
/// Bytes of the seed at a stream's start.
const HEAD: u64 = 8;

/// A small random generator (SplitMix64): same seed, same numbers, on every machine.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// Starts from `seed`.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next number.
    pub fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `bound`; 0 when `bound` is 0.
    pub fn below(&mut self, bound: u64) -> u64 {
        if bound == 0 { 0 } else { self.number() % bound }
    }

    /// True with probability `p`.
    pub fn chance(&mut self, p: f64) -> bool {
        // 53 bits are what an f64 holds exactly.
        p > 0.0 && ((self.number() >> 11) as f64) < p * (1_u64 << 53) as f64
    }
}

fn table() -> &'static [u8] {
    static TABLE: OnceLock<Vec<u8>> = OnceLock::new();
    TABLE.get_or_init(|| {
        let mut random = Random::new(0x7011_9a7e);
        let mut bytes = Vec::with_capacity(PERIOD + 8);
        while bytes.len() < PERIOD {
            bytes.extend_from_slice(&random.number().to_le_bytes());
        }
        bytes.truncate(PERIOD);
        bytes
    })
}

/// The endless stream of one seed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pattern {
    seed: u64,
}

impl Pattern {
    /// The stream of `seed`.
    pub fn new(seed: u64) -> Self {
        Self { seed }
    }

    /// The seed it was made from.
    pub fn seed(self) -> u64 {
        self.seed
    }

    /// Writes the bytes from `offset` on into `into`.
    pub fn fill(self, offset: u64, into: &mut [u8]) {
        let mut done = 0;
        while done < into.len() {
            let part = self.run(offset + done as u64);
            let n = part.len().min(into.len() - done);
            into[done..done + n].copy_from_slice(&part[..n]);
            done += n;
        }
    }

    /// The bytes from `offset` on, `n` of them.
    pub fn bytes(self, offset: u64, n: usize) -> Vec<u8> {
        let mut bytes = vec![0; n];
        self.fill(offset, &mut bytes);
        bytes
    }

    /// Compares `found` with the bytes from `offset` on.
    pub fn check(self, offset: u64, found: &[u8]) -> Result<(), Mismatch> {
        let mut done = 0;
        while done < found.len() {
            let part = self.run(offset + done as u64);
            let n = part.len().min(found.len() - done);
            let (part, found) = (&part[..n], &found[done..done + n]);
            if part != found {
                let at = part.iter().zip(found).position(|(a, b)| a != b);
                let at = at.expect("slices that differ differ somewhere");
                return Err(Mismatch {
                    seed: self.seed,
                    offset: offset + (done + at) as u64,
                    expected: part[at],
                    found: found[at],
                });
            }
            done += n;
        }
        Ok(())
    }

    /// The longest run of bytes from `offset` on that lies in one piece.
    fn run(self, offset: u64) -> Run {
        if offset < HEAD {
            return Run::Head(self.seed.to_be_bytes(), offset as usize);
        }
        // Injective for seeds below the period, because the period is prime.
        let shift = self.seed.wrapping_mul(7919) % PERIOD as u64;
        let at = (shift + offset % PERIOD as u64) % PERIOD as u64;
        Run::Table(&table()[at as usize..])
    }
}

enum Run {
    Head([u8; HEAD as usize], usize),
    Table(&'static [u8]),
}

impl std::ops::Deref for Run {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        match self {
            Run::Head(head, from) => &head[*from..],
            Run::Table(bytes) => bytes,
        }
    }
}

/// The first byte that is not what was sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mismatch {
    /// Whose stream it should be.
    pub seed: u64,
    /// Where in the stream.
    pub offset: u64,
    /// What was sent.
    pub expected: u8,
    /// What arrived.
    pub found: u8,
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            seed,
            offset,
            expected,
            found,
        } = self;
        write!(
            f,
            "stream {seed}: byte {offset} is {found:#04x}, sent was {expected:#04x}"
        )
    }
}

impl std::error::Error for Mismatch {}

impl From<Mismatch> for io::Error {
    fn from(mismatch: Mismatch) -> Self {
        io::Error::new(io::ErrorKind::InvalidData, mismatch)
    }
}

/// Follows one stream from its start and checks each byte.
#[derive(Clone, Debug)]
pub struct Checker {
    pattern: Option<Pattern>,
    head: [u8; HEAD as usize],
    offset: u64,
}

impl Checker {
    /// Expects the stream of `seed`.
    pub fn of(seed: u64) -> Self {
        Self {
            pattern: Some(Pattern::new(seed)),
            ..Self::learning()
        }
    }

    /// Takes the seed from the stream's first bytes.
    pub fn learning() -> Self {
        Self {
            pattern: None,
            head: [0; HEAD as usize],
            offset: 0,
        }
    }

    /// Checks the bytes that came next.
    pub fn feed(&mut self, mut bytes: &[u8]) -> Result<(), Mismatch> {
        if self.pattern.is_none() {
            let from = self.offset as usize;
            let n = bytes.len().min(self.head.len() - from);
            self.head[from..from + n].copy_from_slice(&bytes[..n]);
            self.offset += n as u64;
            bytes = &bytes[n..];
            if self.offset == HEAD {
                self.pattern = Some(Pattern::new(u64::from_be_bytes(self.head)));
            }
        }
        if let Some(pattern) = self.pattern {
            pattern.check(self.offset, bytes)?;
            self.offset += bytes.len() as u64;
        }
        Ok(())
    }

    /// How many bytes came, all right.
    pub fn received(&self) -> u64 {
        self.offset
    }

    /// Whose stream it is, as soon as that is known.
    pub fn seed(&self) -> Option<u64> {
        self.pattern.map(Pattern::seed)
    }
}
