//! What ties each record to the one before: the hash of its whole line, without its newline, is the next record's `prev`.

use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use hmac::{Hmac, Mac};
use sha2::{Digest, Sha256};

/// `prev` of the first record of a trail.
pub const BEGINNING: Hash = Hash([0; 32]);

/// The largest number of a record: what is larger no relay has written, and the ledger could not keep.
pub const LAST: u64 = i64::MAX as u64;

/// The shortest: what is shorter can be tried out.
const SHORTEST_KEY: usize = 16;

/// The longest key that is read. Any longer file is no key.
const LONGEST_KEY: u64 = 64 * 1024;

/// A hash of a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Hash([u8; 32]);

impl Hash {
    /// As it stands in records: 64 lower-case digits.
    #[must_use]
    pub fn hex(&self) -> [u8; 64] {
        const DIGITS: &[u8; 16] = b"0123456789abcdef";
        let mut text = [0; 64];
        for (byte, pair) in self.0.iter().zip(text.chunks_exact_mut(2)) {
            pair[0] = DIGITS[usize::from(byte >> 4)];
            pair[1] = DIGITS[usize::from(byte & 15)];
        }
        text
    }

    /// What [`Self::hex`] wrote; `None` for anything else.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let digit = |byte: u8| match byte {
            b'0'..=b'9' => Some(byte - b'0'),
            b'a'..=b'f' => Some(byte - b'a' + 10),
            _ => None,
        };
        let mut hash = [0; 32];
        if text.len() != 64 {
            return None;
        }
        for (byte, pair) in hash.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
            *byte = digit(pair[0])? << 4 | digit(pair[1])?;
        }
        Some(Self(hash))
    }
}

impl std::fmt::Display for Hash {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// How lines are hashed: SHA-256, or HMAC-SHA-256 where there is a key. Without the key nobody can forge a trail, not even as a whole; without
/// any, only the anchors tell a forged one.
#[derive(Debug, Clone, Default)]
pub struct Key(Option<Hmac<Sha256>>);

impl Key {
    /// No key: plain SHA-256.
    #[must_use]
    pub const fn none() -> Self {
        Self(None)
    }

    /// HMAC with `secret`, which must not be empty.
    #[must_use]
    pub fn new(secret: &[u8]) -> Self {
        Self(Hmac::new_from_slice(secret).ok())
    }

    /// Reads a key file: its bytes, without white space at the end, which editors add.
    ///
    /// # Errors
    /// It cannot be read, is empty, shorter than 16 bytes, or larger than any key.
    pub fn read(path: &Path) -> io::Result<Self> {
        if std::fs::metadata(path)?.len() > LONGEST_KEY {
            return Err(io::Error::other("larger than 64 KiB: this is no key"));
        }
        let bytes = std::fs::read(path)?;
        match bytes.trim_ascii_end() {
            [] => Err(io::Error::other(
                "it is empty; a key is made by: openssl rand -hex 32",
            )),
            secret if secret.len() < SHORTEST_KEY => Err(io::Error::other(
                "it is shorter than 16 bytes; a key is made by: openssl rand -hex 32",
            )),
            secret => Ok(Self::new(secret)),
        }
    }

    /// Whether a key file is open to everybody: whoever can read it can forge the trail.
    #[must_use]
    pub fn is_exposed(path: &Path) -> bool {
        std::fs::metadata(path).is_ok_and(|found| found.permissions().mode() & 0o006 != 0)
    }

    /// What it is called in `started` records.
    #[must_use]
    pub const fn algorithm(&self) -> &'static str {
        match self.0 {
            None => "sha256",
            Some(_) => "hmac-sha256",
        }
    }

    /// The hash of a line, without its newline.
    #[must_use]
    pub fn hash(&self, line: &[u8]) -> Hash {
        Hash(match &self.0 {
            None => Sha256::digest(line).into(),
            Some(keyed) => {
                let mut keyed = keyed.clone();
                keyed.update(line);
                keyed.finalize().into_bytes().into()
            }
        })
    }
}

/// Where a trail stands: the number and the hash of its last record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Head {
    /// From 1; 0: there is none yet.
    pub sequence: u64,
    /// [`BEGINNING`] where there is none yet.
    pub hash: Hash,
}

impl Default for Head {
    fn default() -> Self {
        Self {
            sequence: 0,
            hash: BEGINNING,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_are_those_that_others_compute() {
        // printf abc | sha256sum; printf abc | openssl dgst -sha256 -hmac key
        let abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(Key::none().hash(b"abc").to_string(), abc);
        let keyed = "9c196e32dc0175f86f4b1cb89289d6619de6bee699e4c378e68309ed97a1a6ab";
        assert_eq!(Key::new(b"key").hash(b"abc").to_string(), keyed);
    }

    #[test]
    fn a_hash_is_read_as_it_is_written() {
        let hash = Key::none().hash(b"line");
        let text = hash.hex();
        let text = std::str::from_utf8(&text).unwrap();
        assert_eq!(text, hash.to_string());
        assert_eq!(Hash::parse(text), Some(hash));
        assert_eq!(Hash::parse(&text.to_uppercase()), None);
        assert_eq!(Hash::parse(&text[1..]), None);
    }

    #[test]
    fn a_key_is_its_files_bytes_without_the_last_newline() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("key");
        std::fs::write(&path, "a secret of many\n").unwrap();
        let read = Key::read(&path).unwrap();
        assert_eq!(read.hash(b"x"), Key::new(b"a secret of many").hash(b"x"));
        for wrong in ["\n", "a secret of few\n"] {
            std::fs::write(&path, wrong).unwrap();
            assert!(Key::read(&path).is_err(), "{wrong}");
        }
        for (mode, exposed) in [(0o600, false), (0o640, false), (0o644, true)] {
            let mode = std::fs::Permissions::from_mode(mode);
            std::fs::set_permissions(&path, mode).unwrap();
            assert_eq!(Key::is_exposed(&path), exposed);
        }
    }
}
