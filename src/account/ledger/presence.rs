//! Whether the ledger that is written to is the one that others find on the disk: files are removed, replaced and cut while somebody has them open. And its
//! log of changes, which may be lost or grow.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;

use super::store::{Store, beside, fact, file_size, set_fact};
use super::trouble::{Kind, Trouble};
use crate::account::file::random;

impl Store {
    /// The ledger's own number. One that has none yet gets it, in the file itself: a log of changes may be lost.
    pub(super) fn identify(&self) -> rusqlite::Result<u64> {
        let known = fact(&self.connection, "ledger")?;
        if let Some(id) = known.and_then(|text| u64::from_str_radix(&text, 16).ok()) {
            return Ok(id);
        }
        let id = random();
        set_fact(&self.connection, "ledger", &format!("{id:016x}"))?;
        self.take_up_wal()?;
        Ok(id)
    }

    /// Looks whether the file that is written to is still the one that others find, and as long as it was. SQLite does not: it would go on booking
    /// into a file that was removed.
    ///
    /// # Errors
    /// [`Kind::Damaged`] where it is not.
    pub fn is_there(&self) -> Result<(), Trouble> {
        let lost = |what: &str| Err(Trouble::new(Kind::Damaged, &self.path, what));
        let now = match fs::metadata(&self.path) {
            Ok(now) => now,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return lost("it was removed while the relay used it");
            }
            Err(error) => return Err(Trouble::io(&self.path, &error)),
        };
        if (now.dev(), now.ino()) != self.file {
            return lost("another file was put in its place while the relay used it");
        }
        let (length, others) = self.had;
        if now.len() < length && self.others().unwrap_or(others) == others {
            return lost("it was cut off while the relay used it");
        }
        Ok(())
    }

    /// Changes whenever another program writes to the ledger. It might make the file shorter.
    fn others(&self) -> rusqlite::Result<i64> {
        self.connection
            .pragma_query_value(None, "data_version", |row| row.get(0))
    }

    pub(super) fn remember_size(&mut self) -> rusqlite::Result<()> {
        let others = self.others()?;
        let number = |pragma| {
            self.connection
                .pragma_query_value(None, pragma, |row| row.get::<_, i64>(0))
        };
        let pages = number("page_count")?.saturating_mul(number("page_size")?);
        self.had = (file_size(&self.path).min(pages.cast_unsigned()), others);
        Ok(())
    }

    /// Takes the log of changes up without waiting for anybody; whether all of it is in the file now.
    pub(super) fn is_in_the_file(&self) -> bool {
        let sql = "PRAGMA wal_checkpoint(PASSIVE)";
        let number = |row: &rusqlite::Row<'_>, column| row.get::<_, i64>(column);
        let taken = self.connection.query_row(sql, [], |row| {
            Ok((number(row, 0)?, number(row, 1)?, number(row, 2)?))
        });
        taken.is_ok_and(|(busy, log, in_file)| busy == 0 && log == in_file)
    }

    /// Takes the log of changes up where it has grown.
    pub(super) fn bound_wal(&self) -> Result<(), Trouble> {
        let wal = beside(&self.path, "-wal");
        if file_size(&wal) < self.wal.take_up {
            return Ok(());
        }
        let failed = |error: rusqlite::Error| Trouble::of(&self.path, &error);
        self.take_up_wal().map_err(failed)?;
        let size = file_size(&wal);
        if size < self.wal.most {
            return Ok(());
        }
        let what = format!("somebody reads it without end, and {size} bytes wait to be taken up");
        Err(Trouble::new(Kind::Reader, &wal, what))
    }

    pub(super) fn take_up_wal(&self) -> rusqlite::Result<()> {
        let sql = "PRAGMA wal_checkpoint(TRUNCATE)";
        self.connection.query_row(sql, [], |_| Ok(()))
    }
}
