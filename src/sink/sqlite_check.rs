//! Reads queue files beside their writer, for `skyfill verify`.

use std::path::{Path, PathBuf};

use rusqlite::{Connection, OpenFlags, OptionalExtension, params};
use serde_json::Value;

use crate::store::error::StoreError;

/// A reader of one queue file.
pub struct QueueReader {
    label: String,
    path: PathBuf,
    connection: Connection,
    /// What was sealed up to this segment lies in the file that its owner moved away.
    begun: u64,
    /// Accounts up to this row are in the copy by DID; the writer may append more.
    copied: i64,
}

/// An account's items in a queue file.
struct Taken {
    did: String,
    rev: String,
    first_id: i64,
    checksums: Vec<u8>,
}

impl QueueReader {
    /// Opens every queue file of `folder`, by name.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn open_all(folder: &Path) -> Result<Vec<Self>, StoreError> {
        let failed = |error| StoreError::io(folder, error);
        let mut labels = Vec::new();
        for entry in std::fs::read_dir(folder).map_err(failed)? {
            let name = entry.map_err(failed)?.file_name().into_string().unwrap_or_default();
            let stem = name.strip_suffix(".db");
            labels.extend(
                stem.and_then(|it| it.strip_prefix("output_backfill_sync_")).map(str::to_owned),
            );
        }
        labels.sort();
        labels.into_iter().map(|label| Self::open(folder, label)).collect()
    }

    fn open(folder: &Path, label: String) -> Result<Self, StoreError> {
        let path = folder.join(super::sqlite::file_name(&label));
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let opened = Connection::open_with_flags(&path, flags);
        let connection = opened.map_err(|error| StoreError::sqlite(&path, error))?;
        let select = "SELECT ifnull(max(begun), 0) FROM skyfill_position";
        let begun = connection.query_row(select, [], |row| row.get::<_, i64>(0));
        let begun = begun.map_err(|error| StoreError::sqlite(&path, error))?.cast_unsigned();
        let copied = copy_by_did(&connection).map_err(|error| StoreError::sqlite(&path, error))?;
        Ok(Self { label, path, connection, begun, copied })
    }

    /// Whether this file was made anew after `segment`, whose rows lie in the file that was there before.
    #[must_use]
    pub fn began_after(&self, segment: u64) -> bool {
        segment <= self.begun
    }

    /// Segment from which the file took an account's edition, if it took any of it.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn segment_of(&self, did: &str, edition: u32) -> Result<Option<u64>, StoreError> {
        let select = "SELECT segment FROM by_did WHERE did = ?1 AND edition = ?2";
        let mut statement =
            self.connection.prepare_cached(select).map_err(|error| self.failed(error))?;
        let found = statement.query_row(params![did, edition], |row| row.get::<_, i64>(0));
        let found = found.optional().map_err(|error| self.failed(error))?;
        Ok(found.map(i64::cast_unsigned))
    }

    /// Its label.
    #[must_use]
    pub fn label(&self) -> &str {
        &self.label
    }

    /// Records that the file took of an account's edition, and their revision; none if it knows nothing of it. `expected` records
    /// were looked for: other numbers are looked for once more in what was appended since this reader was opened.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn account(
        &self,
        did: &str,
        edition: u32,
        expected: u64,
    ) -> Result<(u64, Option<String>), StoreError> {
        let known = self.records("by_did", 0, did, edition)?;
        if known.0 == expected {
            return Ok(known);
        }
        let late = self.records("skyfill_accounts", self.copied, did, edition)?;
        Ok(if late.1.is_some() { late } else { known })
    }

    fn records(
        &self,
        table: &str,
        after: i64,
        did: &str,
        edition: u32,
    ) -> Result<(u64, Option<String>), StoreError> {
        let select =
            format!("SELECT records, rev FROM {table} WHERE did = ?1 AND edition = ?2 AND id > ?3");
        let mut statement =
            self.connection.prepare_cached(&select).map_err(|error| self.failed(error))?;
        let read = |row: &rusqlite::Row<'_>| Ok((row.get::<_, i64>(0)?, row.get(1)?));
        let found = statement.query_row(params![did, edition, after], read).optional();
        let found = found.map_err(|error| self.failed(error))?;
        Ok(found.map_or((0, None), |(records, rev)| (records.cast_unsigned(), Some(rev))))
    }

    /// Compares every item that is still there with its checksum and account; tells `each` disagreement. Gives how many
    /// items there are.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn check_items(&self, mut each: impl FnMut(String)) -> Result<u64, StoreError> {
        let select = "SELECT did, rev, first_id, checksums FROM skyfill_accounts ORDER BY id";
        let mut accounts = self.connection.prepare(select).map_err(|error| self.failed(error))?;
        let mut accounts = accounts.query([]).map_err(|error| self.failed(error))?;
        let select = "SELECT id, payload, metadata FROM queue WHERE id >= ?1 AND id < ?2";
        let mut items = self.connection.prepare(select).map_err(|error| self.failed(error))?;
        let mut count = 0;
        while let Some(row) = accounts.next().map_err(|error| self.failed(error))? {
            let taken = Taken::read(row).map_err(|error| self.failed(error))?;
            let end = taken.first_id + i64::try_from(taken.checksums.len() / 4).unwrap_or(0);
            let range = items.query(params![taken.first_id, end]);
            let mut range = range.map_err(|error| self.failed(error))?;
            while let Some(item) = range.next().map_err(|error| self.failed(error))? {
                count += 1;
                let wrong = taken.wrong(item).map_err(|error| self.failed(error))?;
                wrong.into_iter().for_each(|what| each(format!("{}: {what}", self.path.display())));
            }
        }
        Ok(count)
    }

    fn failed(&self, error: rusqlite::Error) -> StoreError {
        StoreError::sqlite(&self.path, error)
    }
}

/// The accounts in the order of their DIDs, in a temporary table on disk; gives the last row of those.
pub(super) fn copy_by_did(connection: &Connection) -> rusqlite::Result<i64> {
    let select = "SELECT ifnull(max(id), 0) FROM skyfill_accounts";
    let last: i64 = connection.query_row(select, [], |row| row.get(0))?;
    connection.execute_batch(&format!(
        "CREATE TEMP TABLE by_did (did TEXT, edition INTEGER, id INTEGER, segment INTEGER, records INTEGER, rev TEXT,
                                   PRIMARY KEY (did, edition)) WITHOUT ROWID;
         INSERT OR REPLACE INTO by_did SELECT did, edition, id, segment, records, rev FROM skyfill_accounts
             WHERE id <= {last} ORDER BY did, edition, id;"
    ))?;
    Ok(last)
}

impl Taken {
    fn read(row: &rusqlite::Row<'_>) -> rusqlite::Result<Self> {
        Ok(Self {
            did: row.get(0)?,
            rev: row.get(1)?,
            first_id: row.get(2)?,
            checksums: row.get(3)?,
        })
    }

    /// What is wrong with an item of this account.
    fn wrong(&self, item: &rusqlite::Row<'_>) -> rusqlite::Result<Option<String>> {
        let id: i64 = item.get(0)?;
        // A reader may have put anything there: whatever is no text is another payload.
        let text =
            |column| Ok::<_, rusqlite::Error>(item.get_ref(column)?.as_bytes().unwrap_or_default());
        let (payload, metadata) = (text(1)?, text(2)?);
        let at = usize::try_from(id - self.first_id).unwrap_or(usize::MAX).saturating_mul(4);
        let known = self.checksums.get(at..at.saturating_add(4)).unwrap_or_default();
        let metadata: Value = serde_json::from_slice(metadata).unwrap_or_default();
        let is_its_own =
            metadata["did"] == self.did.as_str() && metadata["rev"] == self.rev.as_str();
        let did = &self.did;
        Ok(if crc32c::crc32c(payload).to_le_bytes() != known {
            Some(format!("item {id} of {did} has another payload than was written"))
        } else if is_its_own {
            None
        } else {
            Some(format!(
                "item {id} should be of {did} at {}, its metadata says otherwise",
                self.rev
            ))
        })
    }
}
