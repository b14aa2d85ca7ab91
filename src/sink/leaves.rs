//! The leaves file, `DATA/leaves.db`: the sorted fingerprints of each account's newest revision (`store::leaves` says of what).
//!
//! ```text
//!  parts      did, edition, part (from 0 in key order), records, crc32c, bytes
//!  position   data id, and the segment and item up to which this file has taken leaves
//! ```
//! It follows the journal like a queue file: parts and position move in one transaction, an edition that an earlier segment brought
//! is passed over by the applier. When a newer edition is whole, those before go in the transaction that completes it. A comparison believes an
//! edition only if all of its leaves are there, by the count that its revision has; it reads a part at a time, each in a
//! transaction of its own, so that no slow repository keeps the WAL growing. The file is private: names of deleted records are in
//! it until the account's next revision, or until [`forget`].

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::{CachedStatement, Connection, OpenFlags, OptionalExtension, params};

use crate::crash_point;
use crate::store::apply::{Position, Sink};
use crate::store::durable;
use crate::store::error::StoreError;
use crate::store::leaves::{LEAVES_LABEL, Parts, Unreadable};
use crate::store::segment::{Placed, SegmentReader};

/// Name of the file in a data directory.
pub const LEAVES_FILE: &str = "leaves.db";

/// Parts have some KiB to 128 KiB.
const PAGE_BYTES: u32 = 16_384;

/// Pages of WAL after which SQLite copies them into the file: 1 MiB. A WAL that is copied is written over from its start, so that a
/// settle on a full disk needs no new space.
const WAL_PAGES: u32 = 64;

/// A WAL is cut back to this, bytes.
const WAL_BYTES: u64 = 16 << 20;

/// A transaction ends at this many bytes, so that the WAL stays small.
const TRANSACTION_BYTES_MAX: u64 = 16 << 20;

/// How long SQLite itself waits for a lock: nobody but skyfill writes here, and nobody reads for long.
const BUSY_SECONDS: u64 = 30;

/// Copies the WAL into the file and cuts it.
const CHECKPOINT: &str = "PRAGMA wal_checkpoint(TRUNCATE)";

const TABLES: &str = "
    CREATE TABLE IF NOT EXISTS parts (
        id INTEGER PRIMARY KEY, did TEXT NOT NULL, edition INTEGER NOT NULL, part INTEGER NOT NULL,
        records INTEGER NOT NULL, crc INTEGER NOT NULL, bytes BLOB NOT NULL);
    CREATE UNIQUE INDEX IF NOT EXISTS by_account ON parts (did, edition, part);
    CREATE TABLE IF NOT EXISTS position (
        one INTEGER PRIMARY KEY CHECK (one = 1), data_id TEXT, segment INTEGER, item INTEGER);";

/// The file, open for writing.
pub struct LeavesFile {
    path: PathBuf,
    connection: Connection,
    position: Position,
}

impl LeavesFile {
    /// Opens or makes the file in the data directory `folder`; `known` is where the ledger says that it was.
    ///
    /// # Errors
    /// [`StoreError::Config`] for a file of another data directory, [`StoreError`] otherwise.
    pub fn open(folder: &Path, data_id: &str, known: Option<Position>) -> Result<Self, StoreError> {
        let path = folder.join(LEAVES_FILE);
        if known.is_some_and(|known| known > Position::default()) && !path.exists() {
            tracing::warn!(path = %path.display(), "the leaves file is gone, it is made anew: accounts that were exported before cannot be refreshed");
        }
        let failed = |error| StoreError::sqlite(&path, error);
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE
            | OpenFlags::SQLITE_OPEN_CREATE
            | OpenFlags::SQLITE_OPEN_NO_MUTEX
            | OpenFlags::SQLITE_OPEN_NOFOLLOW;
        let connection = Connection::open_with_flags(&path, flags).map_err(failed)?;
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o600))
            .map_err(|error| StoreError::io(&path, error))?;
        connection.busy_timeout(Duration::from_secs(BUSY_SECONDS)).map_err(failed)?;
        let set = format!(
            "PRAGMA page_size={PAGE_BYTES}; PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL; PRAGMA secure_delete=ON;
             PRAGMA wal_autocheckpoint={WAL_PAGES}; PRAGMA journal_size_limit={WAL_BYTES}; BEGIN IMMEDIATE; {TABLES}"
        );
        connection.execute_batch(&set).map_err(failed)?;
        let start = known.unwrap_or_default();
        let insert = "INSERT OR IGNORE INTO position VALUES (1, ?1, ?2, ?3)";
        let row = params![data_id, start.segment.cast_signed(), start.item.cast_signed()];
        connection.execute(insert, row).map_err(failed)?;
        connection.execute_batch("COMMIT").map_err(failed)?;
        let select = "SELECT data_id, segment, item FROM position";
        let read = |row: &rusqlite::Row<'_>| {
            let number = |at| row.get::<_, i64>(at).map(i64::cast_unsigned);
            Ok((row.get::<_, String>(0)?, Position { segment: number(1)?, item: number(2)? }))
        };
        let (owner, position) = connection.query_row(select, [], read).map_err(failed)?;
        if owner != data_id {
            let path = path.display();
            return Err(StoreError::Config(format!(
                "{path} belongs to another data directory: remove it"
            )));
        }
        durable::sync_folder(folder)?;
        Ok(Self { path, connection, position })
    }

    /// Takes the leaves of `segment` in transactions of bounded size.
    fn take(&mut self, items: &[(Placed, i64)], segment: &SegmentReader) -> Result<(), StoreError> {
        let number = segment.number;
        let is_due =
            |item: &Placed| Position { segment: number, item: item.index } >= self.position;
        let due: Vec<(Placed, i64)> =
            items.iter().filter(|(item, _)| is_due(item)).copied().collect();
        let mut buffer = Vec::new();
        let mut at = 0;
        loop {
            self.run("BEGIN IMMEDIATE")?;
            let taken = self.take_some(&due[at..], segment, &mut buffer).and_then(|count| {
                at += count;
                let next =
                    due.get(at).map(|(item, _)| Position { segment: number, item: item.index });
                if next.is_none() {
                    self.drop_older(segment)?;
                }
                let next = next.unwrap_or(Position::after(number));
                self.write_position(next)?;
                self.run("COMMIT").map(|()| next)
            });
            if taken.is_err() {
                let _rolled_back = self.connection.execute_batch("ROLLBACK");
            }
            self.position = taken?;
            // Leaves are in, queues and ledger have not moved with them: each goes on from its own position.
            crash_point!(LeavesCommitted);
            if at >= due.len() {
                return Ok(());
            }
        }
    }

    /// Inserts until the transaction is full; gives how many were taken.
    fn take_some(
        &self,
        due: &[(Placed, i64)],
        segment: &SegmentReader,
        buffer: &mut Vec<u8>,
    ) -> Result<usize, StoreError> {
        let mut bytes = 0;
        for (count, (item, part)) in due.iter().enumerate() {
            if bytes >= TRANSACTION_BYTES_MAX {
                return Ok(count);
            }
            let revision = &segment.table.accounts[item.account].revision;
            segment.read_bytes(item, buffer)?;
            let insert = "INSERT INTO parts (did, edition, part, records, crc, bytes)
                          VALUES (?1, ?2, ?3, ?4, ?5, ?6)";
            let row = params![
                revision.did,
                revision.edition,
                part,
                item.entry.records,
                item.entry.crc,
                buffer.as_slice()
            ];
            self.statement(insert)?.execute(row).map_err(|error| self.failed(error))?;
            bytes += u64::from(item.entry.bytes);
        }
        Ok(due.len())
    }

    /// The segment's accounts are whole: drops what earlier editions of them left.
    fn drop_older(&self, segment: &SegmentReader) -> Result<(), StoreError> {
        let delete = "DELETE FROM parts WHERE did = ?1 AND edition < ?2";
        let again = segment.table.accounts.iter().map(|account| &account.revision);
        for revision in again.filter(|revision| revision.edition > 0) {
            let row = params![revision.did, revision.edition];
            self.statement(delete)?.execute(row).map_err(|error| self.failed(error))?;
        }
        Ok(())
    }

    fn write_position(&self, position: Position) -> Result<(), StoreError> {
        let update = "UPDATE position SET segment = ?1, item = ?2";
        let row = params![position.segment.cast_signed(), position.item.cast_signed()];
        self.statement(update)?.execute(row).map(drop).map_err(|error| self.failed(error))
    }

    fn statement(&self, sql: &str) -> Result<CachedStatement<'_>, StoreError> {
        self.connection.prepare_cached(sql).map_err(|error| self.failed(error))
    }

    fn run(&self, sql: &str) -> Result<(), StoreError> {
        self.connection.execute_batch(sql).map_err(|error| self.failed(error))
    }

    fn failed(&self, error: rusqlite::Error) -> StoreError {
        StoreError::sqlite(&self.path, error)
    }
}

impl Sink for LeavesFile {
    fn apply(&mut self, segment: &SegmentReader) -> Result<(), StoreError> {
        let label = segment.table.labels.iter().position(|label| label == LEAVES_LABEL);
        let (mut account, mut part) = (usize::MAX, 0);
        let mine = segment.items().filter(|item| Some(usize::from(item.entry.queue)) == label);
        let items: Vec<(Placed, i64)> = mine
            .map(|item| {
                part = if item.account == account { part + 1 } else { 0 };
                account = item.account;
                (item, part)
            })
            .collect();
        let is_again = segment.table.accounts.iter().any(|it| it.revision.edition > 0);
        let end = Position::after(segment.number);
        if self.position < end && (!items.is_empty() || is_again) {
            self.take(&items, segment)?;
        }
        // Without leaves in it the position moves with the next settle: there is nothing to take twice.
        self.position = self.position.max(end);
        Ok(())
    }

    fn settle(&mut self) -> Result<Vec<(String, Position)>, StoreError> {
        self.run("PRAGMA synchronous=FULL; BEGIN IMMEDIATE")?;
        // A commit that writes what is there already syncs nothing: SQLite leaves the page alone.
        let written = self
            .write_position(Position::default())
            .and_then(|()| self.write_position(self.position))
            .and_then(|()| self.run("COMMIT"));
        if written.is_err() {
            let _rolled_back = self.connection.execute_batch("ROLLBACK");
        }
        written?;
        self.run("PRAGMA synchronous=NORMAL")?;
        // Leaves are durable, queues perhaps not: the segment is kept until all are.
        crash_point!(LeavesSettledBeforeOthers);
        Ok(vec![(LEAVES_LABEL.to_owned(), self.position)])
    }

    fn shrink(&mut self) {
        let cut = self.connection.query_row(CHECKPOINT, [], |row| row.get::<_, i64>(0));
        if let Err(error) = cut {
            tracing::debug!(path = %self.path.display(), %error, "the wal could not be cut");
        }
    }

    fn close(&mut self) -> Result<(), StoreError> {
        let cut = self.connection.query_row(CHECKPOINT, [], |row| row.get::<_, i64>(0));
        cut.map(drop).map_err(|error| self.failed(error))
    }
}

/// Removes everything that is known of an account's records, also from the file's free space; gives how many leaves there were.
/// The writer may go on meanwhile.
///
/// # Errors
/// [`StoreError`].
pub fn forget(folder: &Path, did: &str) -> Result<u64, StoreError> {
    let path = folder.join(LEAVES_FILE);
    if !path.exists() {
        return Ok(0);
    }
    let failed = |error| StoreError::sqlite(&path, error);
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE
        | OpenFlags::SQLITE_OPEN_NO_MUTEX
        | OpenFlags::SQLITE_OPEN_NOFOLLOW;
    let mut connection = Connection::open_with_flags(&path, flags).map_err(failed)?;
    connection.busy_timeout(Duration::from_secs(BUSY_SECONDS)).map_err(failed)?;
    connection.execute_batch("PRAGMA synchronous=FULL; PRAGMA secure_delete=ON").map_err(failed)?;
    let begun = connection.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate);
    let transaction = begun.map_err(failed)?;
    let select = "SELECT ifnull(sum(records), 0) FROM parts WHERE did = ?1";
    let leaves: i64 = transaction.query_row(select, [did], |row| row.get(0)).map_err(failed)?;
    transaction.execute("DELETE FROM parts WHERE did = ?1", [did]).map_err(failed)?;
    transaction.commit().map_err(failed)?;
    connection.query_row(CHECKPOINT, [], |_| Ok(())).map_err(failed)?;
    Ok(leaves.cast_unsigned())
}

/// Finds the leaves of an account, beside the writer; cheap to clone.
#[derive(Clone, Debug)]
pub struct LeavesReader {
    path: PathBuf,
}

impl LeavesReader {
    /// In the data directory `folder`.
    #[must_use]
    pub fn new(folder: &Path) -> Self {
        Self { path: folder.join(LEAVES_FILE) }
    }

    /// The leaves of an account's edition, which has `kept` of them; `None` if not all of them are there.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn open(
        &self,
        did: &str,
        edition: u32,
        kept: u64,
    ) -> Result<Option<StoredParts>, StoreError> {
        let Some(counter) = self.counter()? else { return Ok(None) };
        if counter.count(did, edition)? != kept {
            return Ok(None);
        }
        let LeavesCounter { connection, .. } = counter;
        let (path, did) = (self.path.clone(), did.to_owned());
        Ok(Some(StoredParts { path, connection, did, edition, next: 0, left: kept }))
    }

    /// Counts leaves of many accounts; `None` if there is no file.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn counter(&self) -> Result<Option<LeavesCounter>, StoreError> {
        if !self.path.exists() {
            return Ok(None);
        }
        let failed = |error| StoreError::sqlite(&self.path, error);
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection = Connection::open_with_flags(&self.path, flags).map_err(failed)?;
        connection.busy_timeout(Duration::from_secs(BUSY_SECONDS)).map_err(failed)?;
        Ok(Some(LeavesCounter { path: self.path.clone(), connection }))
    }
}

/// Counts what is there of an account.
pub struct LeavesCounter {
    path: PathBuf,
    connection: Connection,
}

impl LeavesCounter {
    /// Leaves of an account's edition.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn count(&self, did: &str, edition: u32) -> Result<u64, StoreError> {
        let select = "SELECT ifnull(sum(records), 0) FROM parts WHERE did = ?1 AND edition = ?2";
        let statement = self.connection.prepare_cached(select);
        let count = statement.and_then(|mut statement| {
            statement.query_row(params![did, edition], |row| row.get::<_, i64>(0))
        });
        count.map(i64::cast_unsigned).map_err(|error| StoreError::sqlite(&self.path, error))
    }
}

/// The parts of one edition, read one after the other.
pub struct StoredParts {
    path: PathBuf,
    connection: Connection,
    did: String,
    edition: u32,
    next: i64,
    /// Leaves of the parts that are still to come.
    left: u64,
}

impl Parts for StoredParts {
    type Error = LeavesError;

    fn next_part(&mut self) -> Result<Option<Vec<u8>>, LeavesError> {
        if self.left == 0 {
            return Ok(None);
        }
        let select =
            "SELECT records, crc, bytes FROM parts WHERE did = ?1 AND edition = ?2 AND part = ?3";
        let read = |row: &rusqlite::Row<'_>| {
            Ok((row.get::<_, i64>(0)?, row.get::<_, u32>(1)?, row.get::<_, Vec<u8>>(2)?))
        };
        let statement = self.connection.prepare_cached(select);
        let found = statement.and_then(|mut statement| {
            statement.query_row(params![self.did, self.edition, self.next], read).optional()
        });
        let found = found.map_err(|error| StoreError::sqlite(&self.path, error))?;
        let Some((records, crc, bytes)) = found else {
            // Another edition took their place, or they were forgotten.
            return Err(LeavesError::Gone);
        };
        if crc32c::crc32c(&bytes) != crc {
            return Err(Unreadable.into());
        }
        self.next += 1;
        self.left = self.left.saturating_sub(records.cast_unsigned());
        Ok(Some(bytes))
    }
}

/// Why leaves could not be read to their end.
#[derive(Debug, thiserror::Error)]
pub enum LeavesError {
    /// The disk.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Others are there than were written.
    #[error(transparent)]
    Unreadable(#[from] Unreadable),
    /// They are not there any more.
    #[error("its leaves are not there any more")]
    Gone,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::account::Revision;
    use crate::store::items::Item;
    use crate::store::journal::Journal;

    const ID: &str = "0123456789abcdef0123456789abcdef";

    fn item(queue: u16, payload: &str) -> Item {
        Item { queue, records: 2, payload: payload.into() }
    }

    /// A segment with one account of so many parts of leaves.
    fn segment(folder: &Path, number: u64, edition: u32, parts: &[&str]) -> SegmentReader {
        let labels = ["post", "deleted", LEAVES_LABEL].map(str::to_owned).to_vec();
        let mut journal = Journal::open(folder, ID, labels, 1 << 30, number - 1).unwrap();
        let revision = Revision { did: "did".to_owned(), edition, ..Revision::default() };
        let items: Vec<Item> =
            parts.iter().flat_map(|it| [item(2, it), item(0, "[1,2]")]).collect();
        journal.append_account(&revision, &items.iter().collect::<Vec<_>>()).unwrap();
        journal.seal_group().unwrap();
        journal.next_after(number - 1).unwrap().unwrap()
    }

    fn parts(folder: &Path, edition: u32, kept: u64) -> Option<Vec<String>> {
        let mut stored = LeavesReader::new(folder).open("did", edition, kept).unwrap()?;
        let mut texts = Vec::new();
        while let Some(part) = stored.next_part().unwrap() {
            texts.push(String::from_utf8(part).unwrap());
        }
        Some(texts)
    }

    fn texts(of: &[&str]) -> Option<Vec<String>> {
        Some(of.iter().map(|text| (*text).to_owned()).collect())
    }

    #[test]
    fn a_newer_edition_takes_the_place_of_the_one_before_and_repetitions_are_passed_over() {
        let (folder, journal) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (data, journal) = (folder.path(), journal.path());
        assert_eq!(parts(data, 0, 4), None);
        let mut file = LeavesFile::open(data, ID, None).unwrap();
        let first = segment(journal, 1, 0, &["one", "two"]);
        file.apply(&first).unwrap();
        file.apply(&first).unwrap();
        assert_eq!(parts(data, 0, 4), texts(&["one", "two"]));
        assert_eq!(parts(data, 0, 6), None, "not all of them are there");
        // The same edition from another segment, and the next one.
        let mut second = segment(journal, 2, 0, &["other", "more", "most"]);
        second.pass_over(&[0]);
        file.apply(&second).unwrap();
        assert_eq!(parts(data, 0, 4), texts(&["one", "two"]));
        file.apply(&segment(journal, 3, 1, &["three"])).unwrap();
        assert_eq!((parts(data, 0, 4), parts(data, 1, 2)), (None, texts(&["three"])));
        assert_eq!(parts(data, 1, 0), None);
        assert_eq!(file.settle().unwrap(), [(LEAVES_LABEL.to_owned(), Position::after(3))]);
        file.close().unwrap();
        drop(file);
        // An edition without any leaf leaves nothing behind, and so does an account that is forgotten.
        let mut file = LeavesFile::open(data, ID, Some(Position::after(3))).unwrap();
        assert_eq!(file.position, Position::after(3));
        file.apply(&segment(journal, 4, 2, &[])).unwrap();
        assert_eq!((parts(data, 1, 2), parts(data, 2, 0)), (None, texts(&[])));
        file.apply(&segment(journal, 5, 3, &["four", "five"])).unwrap();
        assert_eq!((forget(data, "other").unwrap(), forget(data, "did").unwrap()), (0, 4));
        assert_eq!(parts(data, 3, 4), None);
        let other = LeavesFile::open(data, &"f".repeat(32), None);
        assert!(matches!(other, Err(StoreError::Config(_))));
    }

    #[test]
    fn it_goes_on_within_a_segment_and_changed_bytes_are_noticed() {
        let (folder, journal) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let data = folder.path();
        let known = Position { segment: 1, item: 2 };
        let mut file = LeavesFile::open(data, ID, Some(known)).unwrap();
        file.apply(&segment(journal.path(), 1, 0, &["one", "two", "three"])).unwrap();
        let first: i64 =
            file.connection.query_row("SELECT min(part) FROM parts", [], |row| row.get(0)).unwrap();
        assert_eq!(first, 1, "the part before the position was taken by the file that is gone");
        let mut stored = LeavesReader::new(data).open("did", 0, 4).unwrap().unwrap();
        assert!(matches!(stored.next_part(), Err(LeavesError::Gone)));
        file.run("UPDATE parts SET part = part - 1, bytes = x'78'").unwrap();
        let mut stored = LeavesReader::new(data).open("did", 0, 4).unwrap().unwrap();
        assert!(matches!(stored.next_part(), Err(LeavesError::Unreadable(_))));
    }
}
