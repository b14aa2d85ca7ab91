//! What a queue file holds of an account, and taking it back: rows of any status, beside the file's writer and its readers.
//!
//! ```text
//!  held     items by status, and how many readers have taken away
//!  forget   items in small transactions ──> the account's own row with the last of them ──> WAL cut ──> a small file rebuilt
//! ```
//! Everything that is deleted is written over (`secure_delete`). What readers deleted or changed before lies in the file's free
//! space as they left it: a file of up to [`REBUILT_BYTES_MAX`] is rebuilt without it, a larger one is named. An item is the
//! account's if it lies in its range and its metadata says so, or says nothing: readers may have written anything there, and
//! rows of their own between ours.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::{Connection, OpenFlags, Transaction, TransactionBehavior, params};

use crate::crash_point;
use crate::sink::sqlite::file_name;
use crate::sink::sqlite_check::copy_by_did;
use crate::sink::sqlite_file::read_position;
use crate::store::error::StoreError;

/// How long somebody else may hold the file.
const BUSY_SECONDS: u64 = 5;

/// Items deleted in one transaction: at most some 100 MB of pages in the WAL, usually about 10.
const DELETED_AT_ONCE: i64 = 16;

/// Rows behind an account's last one that may be its own too.
const LOOKED_BEHIND: i64 = 64;

/// A file up to this size is rebuilt, which takes about a second and as much space in the folder for temporary files.
pub const REBUILT_BYTES_MAX: u64 = 64 << 20;

/// What a queue file holds of an account.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Held {
    /// Records that the file took.
    pub records: u64,
    /// Items that are still there, by status.
    pub items: BTreeMap<String, u64>,
    /// Items that readers have taken away.
    pub gone: u64,
}

impl Held {
    /// Whether the file never took anything.
    #[must_use]
    pub fn is_nothing(&self) -> bool {
        *self == Self::default()
    }

    /// Adds what another name or edition had.
    fn add(&mut self, other: Self) {
        self.records += other.records;
        self.gone += other.gone;
        for (status, count) in other.items {
            *self.items.entry(status).or_default() += count;
        }
    }
}

/// An open queue file.
pub struct QueueHoldings {
    label: String,
    path: PathBuf,
    connection: Connection,
    /// Accounts up to this row are in the copy by DID; the writer may append more.
    copied: i64,
}

/// An export of an account in the file.
struct Taken {
    row: i64,
    name: String,
    first_id: i64,
    items: i64,
    records: i64,
}

const MINE: &str = "id >= ?1 AND id < ?2 AND CASE
    WHEN json_valid(metadata) AND json_extract(metadata, '$.did') IS NOT NULL THEN json_extract(metadata, '$.did') = ?3
    ELSE id < ?4 END";

impl QueueHoldings {
    /// Opens the file of `label` in `folder`.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn open(folder: &Path, label: &str) -> Result<Self, StoreError> {
        let path = folder.join(file_name(label));
        let failed = |error| StoreError::sqlite(&path, error);
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE
            | OpenFlags::SQLITE_OPEN_NO_MUTEX
            | OpenFlags::SQLITE_OPEN_NOFOLLOW;
        let connection = Connection::open_with_flags(&path, flags).map_err(failed)?;
        connection.busy_timeout(Duration::from_secs(BUSY_SECONDS)).map_err(failed)?;
        let mut holdings =
            Self { label: label.to_owned(), path: path.clone(), connection, copied: 0 };
        if holdings.is_ours().map_err(failed)? {
            holdings.copied = copy_by_did(&holdings.connection).map_err(failed)?;
        }
        Ok(holdings)
    }

    /// Its label.
    #[must_use]
    pub fn label(&self) -> &str {
        &self.label
    }

    /// What it holds of the account that it knows under `names`.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn held(&self, names: &[String]) -> Result<Held, StoreError> {
        self.held_of(names).map_err(|error| self.failed(error))
    }

    fn held_of(&self, names: &[String]) -> rusqlite::Result<Held> {
        let mut held = Held::default();
        for taken in self.taken(names)? {
            let upper = self.upper(&taken)?;
            let select =
                format!("SELECT CAST(status AS TEXT), count(*) FROM queue WHERE {MINE} GROUP BY 1");
            let mut statement = self.connection.prepare_cached(&select)?;
            let mut rows = statement.query(taken.range(upper))?;
            let mut items = BTreeMap::new();
            while let Some(row) = rows.next()? {
                let status: Option<String> = row.get(0)?;
                items.insert(status.unwrap_or_default(), row.get::<_, i64>(1)?.cast_unsigned());
            }
            let there: u64 = items.values().sum();
            let gone = taken.items.cast_unsigned().saturating_sub(there);
            held.add(Held { records: taken.records.cast_unsigned(), items, gone });
        }
        Ok(held)
    }

    /// Deletes everything that it holds of the account that it knows under `names`; gives what that was. After an error, part
    /// of it may be gone; the same call again deletes the rest.
    ///
    /// # Errors
    /// [`StoreError`], also if somebody holds the file for too long.
    pub fn forget(&self, names: &[String]) -> Result<Held, StoreError> {
        let held = self.held(names)?;
        let deleted = self.delete(names).map_err(|error| self.failed(error));
        deleted.map(|()| held)
    }

    fn delete(&self, names: &[String]) -> rusqlite::Result<()> {
        self.connection.pragma_update(None, "secure_delete", "ON")?;
        for taken in self.taken(names)? {
            let upper = self.upper(&taken)?;
            let delete = format!(
                "DELETE FROM queue WHERE id IN (SELECT id FROM queue WHERE {MINE} LIMIT {DELETED_AT_ONCE})"
            );
            loop {
                let some = self.connection.prepare_cached(&delete)?.execute(taken.range(upper))?;
                // Some rows are gone, others are not; the ledger's intent is there, and the next start goes on.
                crash_point!(ForgetItemsDeletedInPart);
                if some.cast_signed() < usize::try_from(DELETED_AT_ONCE).unwrap_or(1).cast_signed()
                {
                    break;
                }
            }
            self.delete_account(taken.row)?;
        }
        Ok(())
    }

    /// The account's own row. The last one says how far the file is: that is kept beside it.
    fn delete_account(&self, row: i64) -> rusqlite::Result<()> {
        let begun = Transaction::new_unchecked(&self.connection, TransactionBehavior::Immediate)?;
        let (_owner, position) = read_position(&begun)?;
        let keep = "UPDATE skyfill_position SET segment = ?1, item = ?2";
        begun
            .execute(keep, params![position.segment.cast_signed(), position.item.cast_signed()])?;
        begun.execute("DELETE FROM skyfill_accounts WHERE id = ?1", [row])?;
        begun.commit()
    }

    /// Takes what was deleted out of the WAL and, where the file is small, out of its free space. Gives what may still lie
    /// somewhere, as a sentence.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn clean(&self) -> Result<Option<String>, StoreError> {
        if !self.is_ours().map_err(|error| self.failed(error))? {
            return Ok(None);
        }
        let bytes = std::fs::metadata(&self.path).map_or(0, |metadata| metadata.len());
        let path = self.path.display();
        let mut left = None;
        if bytes <= REBUILT_BYTES_MAX {
            if let Err(error) = self.connection.execute_batch("VACUUM") {
                left = Some(format!("{path} was not rebuilt ({error})"));
            }
        } else {
            left = Some(format!("{path} is too large to be rebuilt here"));
        }
        let left = left.map(|why| {
            format!("{why}: what readers deleted or changed before may lie in its free space until VACUUM is run on it")
        });
        let cut = "PRAGMA wal_checkpoint(TRUNCATE)";
        let busy = self.connection.query_row(cut, [], |row| row.get::<_, i64>(0));
        if busy.map_err(|error| self.failed(error))? != 0 {
            return Ok(Some(format!(
                "{path}-wal still holds what was deleted: a reader's open transaction keeps it; it goes with the next checkpoint"
            )));
        }
        Ok(left)
    }

    /// Whether skyfill has ever taken anything into the file; another's is left alone.
    fn is_ours(&self) -> rusqlite::Result<bool> {
        let known = "SELECT count(*) FROM sqlite_master WHERE name = 'skyfill_accounts'";
        self.connection.query_row(known, [], |row| row.get::<_, i64>(0)).map(|count| count > 0)
    }

    /// The account's exports.
    fn taken(&self, names: &[String]) -> rusqlite::Result<Vec<Taken>> {
        if !self.is_ours()? {
            return Ok(Vec::new());
        }
        let select = "SELECT id, did, first_id, items, records FROM skyfill_accounts
                      WHERE id IN (SELECT id FROM by_did WHERE did = ?1) OR (id > ?2 AND did = ?1)";
        let mut statement = self.connection.prepare_cached(select)?;
        let mut all = Vec::new();
        for name in names {
            let rows = statement.query_map(params![name, self.copied], |row| {
                let (row_id, name, first_id) = (row.get(0)?, row.get(1)?, row.get(2)?);
                let (items, records) = (row.get(3)?, row.get(4)?);
                Ok(Taken { row: row_id, name, first_id, items, records })
            })?;
            all.extend(rows.collect::<rusqlite::Result<Vec<_>>>()?);
        }
        Ok(all)
    }

    /// The id before which its items end. Rows that readers put between them have moved the last ones back: as long as one of
    /// the next few rows is its own, there may be more.
    fn upper(&self, taken: &Taken) -> rusqlite::Result<i64> {
        let select = "SELECT max(id) FROM (SELECT id, metadata FROM queue WHERE id >= ?1 ORDER BY id LIMIT ?2)
                          WHERE json_valid(metadata) AND json_extract(metadata, '$.did') = ?3";
        let mut statement = self.connection.prepare_cached(select)?;
        let mut upper = taken.first_id + taken.items;
        while let Some(last) = statement
            .query_row(params![upper, LOOKED_BEHIND, taken.name], |row| {
                row.get::<_, Option<i64>>(0)
            })?
        {
            upper = last + 1;
        }
        Ok(upper)
    }

    fn failed(&self, error: rusqlite::Error) -> StoreError {
        StoreError::sqlite(&self.path, error)
    }
}

impl Taken {
    fn range(&self, upper: i64) -> impl rusqlite::Params + '_ {
        (self.first_id, upper, self.name.as_str(), self.first_id + self.items)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sink::Position;

    fn queue(folder: &Path) -> Connection {
        let connection = Connection::open(folder.join(file_name("post"))).unwrap();
        connection
            .execute_batch(
                "PRAGMA journal_mode=WAL;
                 CREATE TABLE queue (id INTEGER PRIMARY KEY AUTOINCREMENT, payload TEXT, metadata TEXT, created_at, status TEXT);
                 CREATE TABLE skyfill_accounts (id INTEGER PRIMARY KEY, did TEXT, edition INTEGER, segment INTEGER, rev TEXT,
                     first_id INTEGER, items INTEGER, records INTEGER, checksums BLOB, next_item INTEGER);
                 CREATE TABLE skyfill_position (data_id TEXT, segment INTEGER, item INTEGER);
                 INSERT INTO skyfill_position VALUES ('id', 0, 0);",
            )
            .unwrap();
        connection
    }

    fn put(queue: &Connection, id: i64, metadata: &str, status: &str) {
        let insert = "INSERT INTO queue VALUES (?1, '[\"row ' || ?1 || ' of them\"]', ?2, '', ?3)";
        queue.execute(insert, params![id, metadata, status]).unwrap();
    }

    fn account(queue: &Connection, did: &str, edition: i64, first_id: i64, items: i64) {
        let insert =
            "INSERT INTO skyfill_accounts VALUES (NULL, ?1, ?2, 1, 'r', ?3, ?4, ?5, x'', ?3 + ?4)";
        queue.execute(insert, params![did, edition, first_id, items, items * 10]).unwrap();
    }

    #[test]
    fn only_the_account_s_items_go_whatever_readers_did_to_them() {
        let folder = tempfile::tempdir().unwrap();
        let queue = queue(folder.path());
        // Forty items of one account; a reader's own row has come between them, another was changed, some were taken.
        for id in 1..=41 {
            match id {
                7 => put(&queue, id, r#"{"did":"did:plc:reader"}"#, "pending"),
                9 => put(&queue, id, "nonsense", "failed"),
                11..=13 => {}
                _ if id % 2 == 0 => put(&queue, id, r#"{"did":"did:plc:a"}"#, "completed"),
                _ => put(&queue, id, r#"{"did":"did:plc:a"}"#, "pending"),
            }
        }
        account(&queue, "did:plc:a", 0, 1, 40);
        put(&queue, 42, r#"{"did":"did:plc:b"}"#, "pending");
        account(&queue, "did:plc:b", 0, 42, 1);
        put(&queue, 43, r#"{"did":"pseudonym of a"}"#, "pending");
        account(&queue, "pseudonym of a", 1, 43, 1);
        let holdings = QueueHoldings::open(folder.path(), "post").unwrap();
        let names = ["did:plc:a".to_owned(), "pseudonym of a".to_owned()];
        let held = holdings.held(&names).unwrap();
        assert_eq!((held.records, held.gone), (410, 3));
        assert_eq!(held.items["failed"], 1);
        assert_eq!(held.items.values().sum::<u64>(), 38);
        assert_eq!(holdings.forget(&names).unwrap(), held);
        assert_eq!(holdings.forget(&names).unwrap(), Held::default());
        let left: Vec<i64> = queue
            .prepare("SELECT id FROM queue")
            .unwrap()
            .query_map([], |row| row.get(0))
            .unwrap()
            .map(Result::unwrap)
            .collect();
        assert_eq!(left, [7, 42]);
        // The last account that is gone was how far the file is.
        assert_eq!(read_position(&queue).unwrap().1, Position { segment: 1, item: 44 });
        assert_eq!(holdings.clean().unwrap(), None);
        let whole = std::fs::read(folder.path().join(file_name("post"))).unwrap();
        let has = |text: &str| whole.windows(text.len()).any(|window| window == text.as_bytes());
        assert!(has("row 42 of") && !has("row 20 of") && !has("pseudonym of a"));
        let wal = folder.path().join(format!("{}-wal", file_name("post")));
        assert_eq!(std::fs::metadata(wal).unwrap().len(), 0);
    }

    #[test]
    fn a_file_that_is_not_ours_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let other = Connection::open(folder.path().join(file_name("old"))).unwrap();
        other.execute_batch("CREATE TABLE queue (id INTEGER PRIMARY KEY, metadata TEXT)").unwrap();
        other.execute("INSERT INTO queue VALUES (1, '{\"did\":\"did:plc:a\"}')", []).unwrap();
        let holdings = QueueHoldings::open(folder.path(), "old").unwrap();
        assert_eq!(holdings.forget(&["did:plc:a".to_owned()]).unwrap(), Held::default());
        assert_eq!(holdings.clean().unwrap(), None);
        let left: i64 =
            other.query_row("SELECT count(*) FROM queue", [], |row| row.get(0)).unwrap();
        assert_eq!(left, 1);
    }

    #[test]
    fn a_reader_s_open_transaction_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let queue = queue(folder.path());
        put(&queue, 1, r#"{"did":"did:plc:a"}"#, "pending");
        account(&queue, "did:plc:a", 0, 1, 1);
        let reader = Connection::open(folder.path().join(file_name("post"))).unwrap();
        reader.execute_batch("BEGIN; SELECT count(*) FROM queue;").unwrap();
        let holdings = QueueHoldings::open(folder.path(), "post").unwrap();
        holdings.connection.busy_timeout(Duration::ZERO).unwrap();
        holdings.forget(&["did:plc:a".to_owned()]).unwrap();
        let left = holdings.clean().unwrap().unwrap();
        assert!(left.contains("-wal still holds"), "{left}");
        reader.execute_batch("COMMIT").unwrap();
        assert_eq!(holdings.clean().unwrap(), None);
    }
}
