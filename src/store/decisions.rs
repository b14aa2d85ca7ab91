//! Decisions: which accounts became done or parked, in order, for one who follows the run. None is lost and nobody waits for
//! the follower: row numbers lie in an unlinked file, 8 bytes each, from the commit on until they are read.
//!
//! ```text
//!  listed and decided before ──┐
//!  commit of the ledger ───────┴──> file ──read(from)──> row numbers ──> Reader::decided: what became of the account
//! ```
//! What a roll-back takes away was never written. Where the file itself cannot be written (the disk is full, and with it
//! everything waits) numbers stay in memory until the next commit.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rusqlite::{OptionalExtension, params};
use tokio::sync::watch;

use crate::store::error::StoreError;
use crate::store::ledger_lists::{REPORT, Reader, Report, report};
use crate::store::ledger_rows::Rows;

/// Bytes of a row number.
const ENTRY_BYTES: u64 = 8;

/// Rows looked at in one go for those that were decided before.
const ROWS_AT_ONCE: i64 = 10_000;

/// The decisions of a run; clones are the same ones.
#[derive(Clone, Debug)]
pub struct Decisions {
    path: PathBuf,
    file: Arc<File>,
    written: Arc<watch::Sender<u64>>,
}

/// The ledger's end of them.
#[derive(Debug, Default)]
pub struct DecisionLog {
    decisions: Option<Decisions>,
    /// Of the open transaction.
    open: Vec<i64>,
    /// Committed, and not in the file yet.
    unwritten: Vec<i64>,
}

impl Decisions {
    /// An empty file in `folder`, which has no name there.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn make(folder: &Path) -> Result<Self, StoreError> {
        let file = tempfile::tempfile_in(folder).map_err(|error| StoreError::io(folder, error))?;
        Ok(Self { path: folder.to_owned(), file: Arc::new(file), written: Arc::default() })
    }

    /// How many there are.
    #[must_use]
    pub fn written(&self) -> watch::Receiver<u64> {
        self.written.subscribe()
    }

    /// Row numbers from entry `from` on, at most `most`.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn read(&self, from: u64, most: usize) -> Result<Vec<i64>, StoreError> {
        let left =
            usize::try_from(self.written.borrow().saturating_sub(from)).unwrap_or(usize::MAX);
        let mut bytes = vec![0; left.min(most) * 8];
        let read = self.file.read_exact_at(&mut bytes, from * ENTRY_BYTES);
        read.map_err(|error| StoreError::io(&self.path, error))?;
        let (entries, _) = bytes.as_chunks::<8>();
        Ok(entries.iter().map(|entry| i64::from_le_bytes(*entry)).collect())
    }

    fn append(&self, rows: &[i64]) -> Result<(), StoreError> {
        let bytes: Vec<u8> = rows.iter().flat_map(|row| row.to_le_bytes()).collect();
        let written = *self.written.borrow();
        let appended = self.file.write_all_at(&bytes, written * ENTRY_BYTES);
        appended.map_err(|error| StoreError::io(&self.path, error))?;
        self.written.send_modify(|count| *count += rows.len() as u64);
        Ok(())
    }
}

impl DecisionLog {
    /// One that tells `decisions`.
    #[must_use]
    pub fn of(decisions: Decisions) -> Self {
        Self { decisions: Some(decisions), ..Self::default() }
    }

    /// The open transaction has decided the account of `row`.
    pub fn note(&mut self, row: i64) {
        if self.decisions.is_some() {
            self.open.push(row);
        }
    }

    /// The transaction is committed.
    pub fn committed(&mut self) {
        self.unwritten.append(&mut self.open);
        let Some(decisions) = self.decisions.as_ref().filter(|_| !self.unwritten.is_empty()) else {
            return;
        };
        match decisions.append(&self.unwritten) {
            Ok(()) => self.unwritten.clear(),
            Err(error) => tracing::warn!(%error, "decisions are told later"),
        }
    }

    /// The transaction is undone.
    pub fn undone(&mut self) {
        self.open.clear();
    }
}

impl Rows {
    /// From now on `decisions` gets every decision about a listed account; first those that are decided already.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn tell_decisions(&mut self, decisions: Decisions) -> Result<(), StoreError> {
        let select = "SELECT id, listed = 1 AND state IN (5, 6) FROM accounts WHERE id > ?1 ORDER BY id LIMIT ?2";
        let mut after = 0;
        loop {
            let rows: Vec<(i64, bool)> =
                self.select(select, params![after, ROWS_AT_ONCE], |row| {
                    Ok((row.get(0)?, row.get(1)?))
                })?;
            let Some((last, _)) = rows.last() else { break };
            after = *last;
            let decided: Vec<i64> = rows.iter().filter(|it| it.1).map(|it| it.0).collect();
            decisions.append(&decided)?;
        }
        self.decisions = DecisionLog::of(decisions);
        Ok(())
    }
}

impl Reader {
    /// The account of `row`, if it is decided.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn decided(&self, row: i64) -> Result<Option<Report>, StoreError> {
        let sql = format!("{REPORT} WHERE id = ?1 AND state IN (5, 6)");
        let statement = self.connection().prepare_cached(&sql);
        let found = statement.and_then(|mut it| it.query_row([row], report).optional());
        found.map_err(|error| self.failed(error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Clock;
    use crate::config::targets::Target;
    use crate::domain::account::Revision;
    use crate::domain::did::Did;
    use crate::store::ledger_rows::opened;
    use crate::store::listing::Staged;

    #[test]
    fn who_is_decided_is_told_with_what_became_of_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state.db");
        let mut rows = opened(folder.path(), Clock::fixed(1_700_000_000_000));
        let dids =
            ["a", "b", "c"].map(|it| Did::parse(&format!("did:plc:{}", it.repeat(24))).unwrap());
        let targets = dids.iter().map(|did| Ok::<_, StoreError>(Target::Did(did.clone())));
        let staged = Staged::read(folder.path(), targets, &|_| {}).unwrap().unwrap();
        staged.know(&mut rows, &|_| {}).unwrap().swap(&mut rows, &|_| {}).unwrap();
        let export =
            |did: &Did| Revision { did: did.to_string(), leaves: 3, ..Revision::default() };
        let early = export(&dids[0]);
        rows.transaction(|rows| rows.apply_segment(1, &[early])).unwrap();
        // First those of before, then each with its commit.
        let decisions = Decisions::make(folder.path()).unwrap();
        rows.tell_decisions(decisions.clone()).unwrap();
        let late = export(&dids[2]);
        rows.transaction(|rows| rows.apply_segment(2, &[late])).unwrap();
        assert_eq!(decisions.read(0, 9).unwrap(), [1, 3]);
        let reader = Reader::open(&path).unwrap();
        let told =
            |row| reader.decided(row).unwrap().map(|it| (it.did, it.revision.unwrap().leaves));
        assert_eq!(told(1), Some((dids[0].to_string(), 3)));
        assert_eq!(told(2), None, "nothing has become of it yet");
        assert_eq!(told(3), Some((dids[2].to_string(), 3)));
        assert_eq!(told(4), None);
    }

    #[test]
    fn what_is_committed_is_read_in_order_and_what_is_undone_never_was() {
        let folder = tempfile::tempdir().unwrap();
        let decisions = Decisions::make(folder.path()).unwrap();
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
        let mut log = DecisionLog { decisions: Some(decisions.clone()), ..DecisionLog::default() };
        [3, 1].into_iter().for_each(|row| log.note(row));
        log.committed();
        log.note(9);
        log.undone();
        log.note(2);
        log.committed();
        assert_eq!(*decisions.written().borrow(), 3);
        assert_eq!(decisions.read(0, 2).unwrap(), [3, 1]);
        assert_eq!(decisions.read(2, 2).unwrap(), [2]);
        assert!(decisions.read(3, 2).unwrap().is_empty());
        let mut nobody = DecisionLog::default();
        nobody.note(1);
        nobody.committed();
        assert!(nobody.open.is_empty() && nobody.unwritten.is_empty());
    }
}
