//! The SQLite queues: `DATA/queue/output_backfill_sync_<label>.db`, as the Python service's readers know them.
//!
//! ```text
//!  queue              id, payload, metadata, created_at, status: the readers' own; they may change, delete and clear rows
//!  skyfill_accounts   each account that this file took items of, in the order of their ids: edition, segment, revision, ids, items,
//!                     records, the crc32c of every item, and the segment's item after them, which is how far this file is
//!  skyfill_position   data id, how far the file was when it was settled, and after which segment it was made
//! ```
//! Rows, account and position move in one transaction, so a row enters a file once whatever happens. Accounts are only ever
//! appended: a table by DID would cost a page of 64 KiB an account once there are many. An export that an earlier segment brought is passed
//! over by the applier. While the process runs, a file that is moved or deleted under us ends it; one that was moved away
//! before is made anew from where the ledger says it was.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use crate::clock::Clock;
use crate::crash_point;
use crate::sink::sqlite_file::{QueueFile, Writing};
use crate::store::apply::{Position, Sink};
use crate::store::error::StoreError;
use crate::store::leaves::LEAVES_LABEL;
use crate::store::segment::{Placed, SegmentReader};

/// Name of a queue file.
#[must_use]
pub fn file_name(label: &str) -> String {
    format!("output_backfill_sync_{label}.db")
}

/// All queue files of a data directory, opened when they are first needed.
pub struct SqliteQueues {
    folder: PathBuf,
    data_id: String,
    rows_per_item: u32,
    clock: Clock,
    /// Where the ledger says that each file was.
    known: HashMap<String, Position>,
    files: Vec<QueueFile>,
}

impl SqliteQueues {
    /// Opens the files of `labels` in `folder`; `known` is where the ledger says that each was.
    ///
    /// # Errors
    /// [`StoreError::Config`] for a file of another data directory, [`StoreError`] otherwise.
    pub fn open(
        folder: &Path,
        data_id: &str,
        labels: &[String],
        rows_per_item: u32,
        known: HashMap<String, Position>,
        clock: Clock,
    ) -> Result<Self, StoreError> {
        let (folder, data_id) = (folder.to_owned(), data_id.to_owned());
        let mut queues = Self { folder, data_id, rows_per_item, clock, known, files: Vec::new() };
        labels.iter().try_for_each(|label| queues.file(label).map(drop))?;
        Ok(queues)
    }

    /// Index of the file of `label`, which is opened or made.
    fn file(&mut self, label: &str) -> Result<usize, StoreError> {
        if let Some(index) = self.files.iter().position(|file| file.label == label) {
            return Ok(index);
        }
        let known = self.known.get(label).copied();
        self.files.push(QueueFile::open(&self.folder, label, &self.data_id, known)?);
        Ok(self.files.len() - 1)
    }
}

impl Sink for SqliteQueues {
    fn apply(&mut self, segment: &SegmentReader) -> Result<(), StoreError> {
        let end = Position::after(segment.number);
        for (index, label) in segment.table.labels.iter().enumerate() {
            let is_mine = |item: &Placed| usize::from(item.entry.queue) == index;
            let items: Vec<Placed> = segment.items().filter(is_mine).collect();
            if items.is_empty() || label == LEAVES_LABEL {
                continue;
            }
            let (rows_per_item, created_at) = (self.rows_per_item, self.clock.wall_text());
            let (file, clock) = (self.file(label)?, self.clock.clone());
            let writing = Writing { segment, rows_per_item, created_at, clock };
            self.files[file].take(&items, &writing)?;
        }
        // In files without items of this segment the position moves with the next settle: there is nothing to take twice.
        self.files.iter_mut().for_each(|file| file.position = file.position.max(end));
        Ok(())
    }

    fn settle(&mut self) -> Result<Vec<(String, Position)>, StoreError> {
        for file in &mut self.files {
            file.settle()?;
            // This file has synced, others perhaps not: the segment is kept until all have.
            crash_point!(QueueSettledBeforeOthers);
        }
        Ok(self.files.iter().map(|file| (file.label.clone(), file.position)).collect())
    }

    fn shrink(&mut self) {
        self.files.iter().for_each(QueueFile::shrink);
    }

    fn close(&mut self) -> Result<(), StoreError> {
        for file in &mut self.files {
            file.close()?;
            // This file is whole without its WAL, others perhaps not: the next start opens each as it is.
            crash_point!(QueueClosedBeforeOthers);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use rusqlite::Connection;

    use super::*;
    use crate::domain::account::Revision;
    use crate::store::items::Item;
    use crate::store::journal::Journal;

    fn open(folder: &Path) -> SqliteQueues {
        let labels = ["post".to_owned()];
        SqliteQueues::open(folder, "id", &labels, 1_000, HashMap::new(), Clock::system()).unwrap()
    }

    fn plan(path: &Path) -> String {
        let select = "EXPLAIN QUERY PLAN SELECT count(*) FROM queue WHERE status = 'pending'";
        let reader = Connection::open(path).unwrap();
        reader.query_row(select, [], |row| row.get(3)).unwrap()
    }

    #[test]
    fn pending_items_have_an_index_in_new_files_and_older_files_are_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        drop(open(folder.path()));
        let path = folder.path().join(file_name("post"));
        assert!(plan(&path).contains("skyfill_pending"), "{}", plan(&path));
        Connection::open(&path).unwrap().execute_batch("DROP INDEX skyfill_pending").unwrap();
        drop(open(folder.path()));
        assert!(!plan(&path).contains("skyfill_pending"), "{}", plan(&path));
    }

    const ID: &str = "0123456789abcdef0123456789abcdef";

    /// Seals one segment that brings `accounts`, each with two items and its edition.
    fn segment(folder: &Path, number: u64, accounts: &[(&str, u32)]) -> SegmentReader {
        let labels = vec!["post".to_owned()];
        let mut journal = Journal::open(folder, ID, labels, 1 << 30, number - 1).unwrap();
        for (did, edition) in accounts {
            let revision =
                Revision { did: (*did).to_owned(), edition: *edition, ..Revision::default() };
            let item = |part| Item {
                queue: 0,
                records: 1,
                payload: format!("[\"{did} {edition} {part}\"]").into(),
            };
            journal.append_account(&revision, &[&item(1), &item(2)]).unwrap();
        }
        journal.seal_group().unwrap();
        journal.next_after(number - 1).unwrap().unwrap()
    }

    fn payloads(folder: &Path) -> Vec<String> {
        let reader = Connection::open(folder.join(file_name("post"))).unwrap();
        let mut select = reader.prepare("SELECT payload FROM queue ORDER BY id").unwrap();
        let rows = select.query_map([], |row| row.get(0)).unwrap();
        rows.collect::<Result<_, _>>().unwrap()
    }

    #[test]
    fn a_file_goes_on_at_its_position_within_a_segment() {
        let (folder, journal) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let labels = ["post".to_owned()];
        let known = HashMap::from([("post".to_owned(), Position { segment: 1, item: 1 })]);
        let mut queues =
            SqliteQueues::open(folder.path(), ID, &labels, 1_000, known, Clock::system()).unwrap();
        queues.apply(&segment(journal.path(), 1, &[("one", 0), ("two", 0)])).unwrap();
        let wanted = ["[\"one 0 2\"]", "[\"two 0 1\"]", "[\"two 0 2\"]"];
        assert_eq!(payloads(folder.path()), wanted);
    }

    #[test]
    fn a_settle_syncs_also_where_its_position_is_written_already() {
        let (folder, journal) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (labels, known) = (["post".to_owned()], HashMap::new());
        let mut queues =
            SqliteQueues::open(folder.path(), ID, &labels, 1_000, known, Clock::system()).unwrap();
        queues.apply(&segment(journal.path(), 1, &[("one", 0)])).unwrap();
        let wal = folder.path().join(format!("{}-wal", file_name("post")));
        queues.settle().unwrap();
        let settled = std::fs::metadata(&wal).unwrap().len();
        // A process that was killed between the write and the sync of a settle leaves that position, too.
        queues.settle().unwrap();
        let again = std::fs::metadata(&wal).unwrap().len();
        assert!(again > settled, "a commit that writes nothing syncs nothing");
    }

    #[test]
    fn an_export_that_two_segments_bring_is_taken_once() {
        let (folder, journal) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let open = || {
            let (labels, known) = (["post".to_owned()], HashMap::new());
            SqliteQueues::open(folder.path(), ID, &labels, 1_000, known, Clock::system()).unwrap()
        };
        let mut queues = open();
        let first = segment(journal.path(), 1, &[("one", 0), ("two", 0)]);
        queues.apply(&first).unwrap();
        queues.apply(&first).unwrap();
        // Two again, three for the first time, and one once more under another edition.
        let mut second = segment(journal.path(), 2, &[("two", 0), ("three", 0), ("one", 1)]);
        second.pass_over(&[0]);
        queues.apply(&second).unwrap();
        queues.settle().unwrap();
        drop(queues);
        let mut queues = open();
        queues.apply(&first).unwrap();
        queues.apply(&second).unwrap();
        let all = ["one 0", "two 0", "three 0", "one 1"];
        let wanted: Vec<String> =
            all.iter().flat_map(|it| [1, 2].map(|part| format!("[\"{it} {part}\"]"))).collect();
        assert_eq!(payloads(folder.path()), wanted);
    }

    #[test]
    fn an_account_of_several_transactions_has_one_row_also_when_the_file_is_opened_between_them() {
        let (folder, journal) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (labels, known) = (vec!["post".to_owned()], HashMap::new());
        let mut writer = Journal::open(journal.path(), ID, labels.clone(), 1 << 30, 0).unwrap();
        let mut large = writer.begin_large().unwrap();
        for _ in 0..4 {
            let item = Item { queue: 0, records: 2, payload: vec![b' '; 9 << 20] };
            writer.append_large(&mut large, &[item]).unwrap();
        }
        let revision = Revision { did: "one".to_owned(), ..Revision::default() };
        writer.seal_large(large, &revision).map_err(|failed| failed.1).unwrap();
        let open =
            |known| SqliteQueues::open(folder.path(), ID, &labels, 9, known, Clock::system());
        // Two items are a transaction. As if it had ended there: what the second left is taken away.
        let segment = writer.next_after(0).unwrap().unwrap();
        open(known).unwrap().apply(&segment).unwrap();
        let path = folder.path().join(file_name("post"));
        let file = Connection::open(&path).unwrap();
        let undo = "DELETE FROM queue WHERE id > 2;
                    UPDATE skyfill_accounts SET items = 2, records = 4, checksums = substr(checksums, 1, 8), next_item = 2;";
        file.execute_batch(undo).unwrap();
        open(HashMap::new()).unwrap().apply(&segment).unwrap();
        let select = "SELECT count(*), min(first_id), sum(items), sum(records), sum(length(checksums)) FROM skyfill_accounts";
        let read = |row: &rusqlite::Row<'_>| {
            Ok([row.get::<_, i64>(0)?, row.get(1)?, row.get(2)?, row.get(3)?, row.get(4)?])
        };
        assert_eq!(file.query_row(select, [], read).unwrap(), [1, 1, 4, 8, 16]);
        assert_eq!(payloads(folder.path()).len(), 4);
    }

    #[test]
    fn a_file_of_an_early_build_keeps_its_accounts_and_its_place() {
        let (folder, journal) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let file = Connection::open(folder.path().join(file_name("post"))).unwrap();
        let early = format!(
            "CREATE TABLE queue (id INTEGER PRIMARY KEY AUTOINCREMENT, payload TEXT, metadata TEXT, created_at TIMESTAMP, status TEXT);
             CREATE TABLE skyfill_accounts (
                 did TEXT, edition INTEGER, segment INTEGER, rev TEXT, first_id INTEGER, items INTEGER,
                 records INTEGER, checksums BLOB, PRIMARY KEY (did, edition)) WITHOUT ROWID;
             CREATE TABLE skyfill_position (
                 one INTEGER PRIMARY KEY CHECK (one = 1), data_id TEXT, segment INTEGER, item INTEGER, begun INTEGER);
             INSERT INTO skyfill_position VALUES (1, '{ID}', 1, 3, 0);
             INSERT INTO skyfill_accounts VALUES ('b', 0, 1, 'r', 1, 2, 2, x'0000000000000000'), ('a', 0, 1, 'r', 3, 1, 1, x'00000000');"
        );
        file.execute_batch(&early).unwrap();
        let (labels, known) = (["post".to_owned()], HashMap::new());
        let mut queues =
            SqliteQueues::open(folder.path(), ID, &labels, 1_000, known, Clock::system()).unwrap();
        let first = segment(journal.path(), 1, &[("b", 0), ("c", 0)]);
        queues.apply(&first).unwrap();
        assert_eq!(payloads(folder.path()), ["[\"c 0 2\"]"]);
        let select = "SELECT group_concat(did || id, ' ') FROM skyfill_accounts";
        let accounts: String = file.query_row(select, [], |row| row.get(0)).unwrap();
        assert_eq!(accounts, "b1 a2 c3");
    }
}
