//! One queue file: made, followed item by item, settled, and shrunk when the disk is full. `sink::sqlite` says what is in it.

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::{Connection, OpenFlags, OptionalExtension, params};

use crate::clock::{Clock, Instant};
use crate::crash_point;
use crate::sink::sqlite::file_name;
use crate::store::apply::Position;
use crate::store::durable;
use crate::store::error::StoreError;
use crate::store::segment::{Placed, SegmentReader};

/// Page size of queue files: items are hundreds of KiB, and larger pages halve the cost of writing them.
const PAGE_BYTES: u32 = 65_536;

/// Memory of a file's page cache, KiB, once for each of the seven files: 24 pages. Items are written once and not read again, but the
/// few pages that every item changes must outlast its own ten, or each is written and read back for each item.
const CACHE_KIBIBYTES: u32 = 1_536;

/// Pages of WAL after which SQLite copies them into the file: 8 MiB, which stays in the processor's and kernel's caches.
const WAL_PAGES: u32 = 128;

/// A WAL of this many bytes is named in the log: 8 MiB before it is copied and one transaction of 16 MiB are its own, the
/// rest is kept by a reader's open transaction. It is cut back to this once that reader has ended.
const WAL_NAMED_BYTES: u64 = 32 << 20;

/// A transaction ends at this many payload bytes, so that the WAL stays small,
const TRANSACTION_BYTES_MAX: u64 = 16 << 20;

/// or after this long, so that a reader who waits 5 s for the write lock always gets it.
const TRANSACTION_MILLISECONDS_MAX: u64 = 250;

/// Copies the WAL into the file and cuts it; gives 0 unless somebody is in the way.
const CHECKPOINT: &str = "PRAGMA wal_checkpoint(TRUNCATE)";

/// How long SQLite itself waits for a lock before it is said in the log that somebody holds the file.
const BUSY_SECONDS: u64 = 10;

/// A queue file that is open for writing.
pub(super) struct QueueFile {
    pub(super) label: String,
    path: PathBuf,
    identity: (u64, u64),
    connection: Connection,
    pub(super) position: Position,
    /// Bytes of its WAL that were named last, 0 if none were.
    wal_named_bytes: u64,
}

/// What a transaction has gathered about the account in hand.
#[derive(Default)]
struct Gathered {
    account: Option<usize>,
    /// The row that a transaction before this one has left of it.
    row: Option<i64>,
    first_id: i64,
    items: u64,
    records: u64,
    checksums: Vec<u8>,
}

/// What is the same for all items of one call.
pub(super) struct Writing<'s> {
    pub(super) segment: &'s SegmentReader,
    pub(super) rows_per_item: u32,
    pub(super) created_at: String,
    pub(super) clock: Clock,
}

impl QueueFile {
    pub(super) fn open(
        folder: &Path,
        label: &str,
        data_id: &str,
        known: Option<Position>,
    ) -> Result<Self, StoreError> {
        let path = folder.join(file_name(label));
        let is_new = !path.exists();
        if let Some(known) = known.filter(|known| is_new && *known > Position::default()) {
            tracing::warn!(path = %path.display(), segment = known.segment, "the queue file is gone, it is made anew and goes on where it was");
        }
        let failed = |error| StoreError::sqlite(&path, error);
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE
            | OpenFlags::SQLITE_OPEN_CREATE
            | OpenFlags::SQLITE_OPEN_NO_MUTEX
            | OpenFlags::SQLITE_OPEN_NOFOLLOW;
        let connection = Connection::open_with_flags(&path, flags).map_err(failed)?;
        connection.busy_timeout(Duration::from_secs(BUSY_SECONDS)).map_err(failed)?;
        let set = format!(
            "PRAGMA page_size={PAGE_BYTES}; PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL;
             PRAGMA cache_size=-{CACHE_KIBIBYTES}; PRAGMA wal_autocheckpoint={WAL_PAGES}; PRAGMA journal_size_limit={WAL_NAMED_BYTES};"
        );
        patiently(&path, || connection.execute_batch(&set))?;
        let permitted = std::fs::set_permissions(&path, PermissionsExt::from_mode(0o660));
        permitted.map_err(|error| StoreError::io(&path, error))?;
        // The file is there and has no tables yet: the next start makes them, from where the ledger says the file was.
        crash_point!(QueueFileMadeBeforeTables);
        // A file that was made and not yet filled when the process died has no position either.
        let start = known.unwrap_or_default();
        patiently(&path, || create_tables(&connection, data_id, start))?;
        let (owner, position) = read_position(&connection).map_err(failed)?;
        if owner != data_id {
            let text = format!(
                "{} belongs to another data directory: move it away, or use the --data-dir that it came from",
                path.display()
            );
            return Err(StoreError::Config(text));
        }
        // A file whose name a power cut takes away would be made anew without the rows that the ledger counts on.
        durable::sync_folder(folder)?;
        let identity = identity(&path)?;
        let label = label.to_owned();
        Ok(Self { label, path, identity, connection, position, wal_named_bytes: 0 })
    }

    /// Takes `items`, those of this file in one segment, from its position on.
    pub(super) fn take(
        &mut self,
        items: &[Placed],
        writing: &Writing<'_>,
    ) -> Result<(), StoreError> {
        let segment = writing.segment.number;
        let is_due = |item: &Placed| Position { segment, item: item.index } >= self.position;
        let mut due =
            items.iter().copied().filter(is_due).collect::<Vec<_>>().into_iter().peekable();
        let mut buffer = Vec::new();
        while due.peek().is_some() {
            if identity(&self.path)? != self.identity {
                let what = "it was moved or replaced while skyfill was running".to_owned();
                return Err(StoreError::Damaged { path: self.path.clone(), what });
            }
            self.begin()?;
            let begun = writing.clock.now();
            let taken = self.take_some(&mut due, writing, &mut buffer, begun);
            let committed = taken.and_then(|next| self.commit(next));
            if committed.is_err() {
                let _rolled_back = self.connection.execute_batch("ROLLBACK");
            }
            committed?;
        }
        Ok(())
    }

    fn begin(&self) -> Result<(), StoreError> {
        patiently(&self.path, || self.connection.execute_batch("BEGIN IMMEDIATE"))
    }

    fn take_some(
        &mut self,
        due: &mut std::iter::Peekable<std::vec::IntoIter<Placed>>,
        writing: &Writing<'_>,
        buffer: &mut Vec<u8>,
        begun: Instant,
    ) -> Result<Position, StoreError> {
        let (mut gathered, mut bytes) = (Gathered::default(), 0);
        let long = Duration::from_millis(TRANSACTION_MILLISECONDS_MAX);
        let segment = writing.segment.number;
        while let Some(item) = due.peek().copied() {
            if bytes >= TRANSACTION_BYTES_MAX || writing.clock.now().duration_since(begun) >= long {
                break;
            }
            if gathered.account.is_none() {
                gathered = self.begun_before(item.account, writing)?;
            } else if gathered.account != Some(item.account) {
                self.note(&gathered, writing, Position { segment, item: item.index })?;
                gathered = Gathered { account: Some(item.account), ..Gathered::default() };
            }
            let payload = writing.segment.read(&item, buffer)?;
            let id = self.insert(payload, &item, writing)?;
            gathered.first_id = if gathered.items == 0 { id } else { gathered.first_id };
            gathered.items += 1;
            gathered.records += u64::from(item.entry.records);
            gathered.checksums.extend(item.entry.crc.to_le_bytes());
            bytes += u64::from(item.entry.bytes);
            due.next();
        }
        let next = due.peek().map(|item| Position { segment, item: item.index });
        let next = next.unwrap_or(Position::after(segment));
        self.note(&gathered, writing, next)?;
        Ok(next)
    }

    /// What the last transaction has left of the first account of this one: nothing, or its first items.
    fn begun_before(&self, account: usize, writing: &Writing<'_>) -> Result<Gathered, StoreError> {
        let revision = &writing.segment.table.accounts[account].revision;
        let select = "SELECT id, first_id, items, records, checksums FROM skyfill_accounts
                      WHERE id = (SELECT max(id) FROM skyfill_accounts) AND segment = ?1 AND did = ?2 AND edition = ?3";
        let mut gathered = Gathered { account: Some(account), ..Gathered::default() };
        let key = params![signed(writing.segment.number), revision.shown_did(), revision.edition];
        let mut statement = self.statement(select)?;
        let known = statement.query_row(key, |row| {
            gathered.row = row.get(0)?;
            gathered.first_id = row.get(1)?;
            gathered.items = unsigned(row.get(2)?);
            gathered.records = unsigned(row.get(3)?);
            gathered.checksums = row.get(4)?;
            Ok(())
        });
        known.optional().map_err(|error| StoreError::sqlite(&self.path, error))?;
        Ok(gathered)
    }

    fn insert(
        &self,
        payload: &str,
        item: &Placed,
        writing: &Writing<'_>,
    ) -> Result<i64, StoreError> {
        let revision = &writing.segment.table.accounts[item.account].revision;
        let metadata = serde_json::json!({
            "batch_size": writing.rows_per_item,
            "actual_batch_size": item.entry.records,
            "did": revision.shown_did(),
            "rev": revision.rev,
        });
        let insert = "INSERT INTO queue (payload, metadata, created_at, status) VALUES (?1, ?2, ?3, 'pending')";
        let mut statement = self.statement(insert)?;
        let inserted = statement.insert(params![payload, metadata.to_string(), writing.created_at]);
        inserted.map_err(|error| StoreError::sqlite(&self.path, error))
    }

    /// Writes what was gathered about an account into its row, and with it how far the file is.
    fn note(
        &self,
        gathered: &Gathered,
        writing: &Writing<'_>,
        next: Position,
    ) -> Result<(), StoreError> {
        let Some(account) = gathered.account else { return Ok(()) };
        let revision = &writing.segment.table.accounts[account].revision;
        let upsert = "INSERT OR REPLACE INTO skyfill_accounts
             (id, did, edition, segment, rev, first_id, items, records, checksums, next_item)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)";
        let noted = self.statement(upsert)?.execute(params![
            gathered.row,
            revision.shown_did(),
            revision.edition,
            signed(writing.segment.number),
            revision.rev,
            gathered.first_id,
            signed(gathered.items),
            signed(gathered.records),
            gathered.checksums,
            signed(next.item)
        ]);
        noted.map(drop).map_err(|error| StoreError::sqlite(&self.path, error))
    }

    /// The position goes with the account's row: one page less to write than a row of its own.
    fn commit(&mut self, next: Position) -> Result<(), StoreError> {
        let committed = self.connection.execute_batch("COMMIT");
        committed.map_err(|error| StoreError::sqlite(&self.path, error))?;
        self.position = next;
        // This file has the rows, the others and the ledger have not: each goes on from its own position.
        crash_point!(QueueCommitted);
        self.name_growing_wal();
        Ok(())
    }

    /// Says so each time the WAL has doubled, because its owner may not know why the disk fills.
    fn name_growing_wal(&mut self) {
        let mut path = self.path.clone().into_os_string();
        path.push("-wal");
        let bytes = std::fs::metadata(&path).map_or(0, |metadata| metadata.len());
        if bytes >= WAL_NAMED_BYTES.max(2 * self.wal_named_bytes) {
            let path = Path::new(&path).display();
            tracing::warn!(%path, bytes, "a reader's open transaction keeps the WAL, which grows until that reader ends it");
            self.wal_named_bytes = bytes;
        } else if bytes < WAL_NAMED_BYTES {
            self.wal_named_bytes = 0;
        }
    }

    /// One commit that syncs. An empty one would not, nor would one that writes the position that is there already: SQLite
    /// compares, and leaves the page alone.
    pub(super) fn settle(&mut self) -> Result<(), StoreError> {
        let failed = |error| StoreError::sqlite(&self.path, error);
        self.connection.execute_batch("PRAGMA synchronous=FULL").map_err(failed)?;
        let written = self.begin().and_then(|()| {
            self.write_position(Position::default())?;
            self.write_position(self.position)
        });
        let committed =
            written.and_then(|()| self.connection.execute_batch("COMMIT").map_err(failed));
        if committed.is_err() {
            let _rolled_back = self.connection.execute_batch("ROLLBACK");
        }
        committed?;
        self.connection.execute_batch("PRAGMA synchronous=NORMAL").map_err(failed)
    }

    /// Brings the WAL's pages into the file and cuts it to nothing; what is in it is kept where that is not possible, as
    /// when the file would have to grow.
    pub(super) fn shrink(&self) {
        let cut = self.connection.query_row(CHECKPOINT, [], |row| row.get::<_, i64>(0));
        if let Err(error) = cut {
            tracing::debug!(path = %self.path.display(), %error, "the wal could not be cut");
        }
    }

    /// Makes the file whole without its WAL, for whoever moves it.
    pub(super) fn close(&self) -> Result<(), StoreError> {
        let cut = self.connection.query_row(CHECKPOINT, [], |row| row.get::<_, i64>(0));
        if cut.map_err(|error| StoreError::sqlite(&self.path, error))? != 0 {
            tracing::warn!(path = %self.path.display(), "a reader's open transaction keeps the WAL, do not move this file yet");
        }
        Ok(())
    }

    fn write_position(&self, position: Position) -> Result<(), StoreError> {
        let mut statement =
            self.statement("UPDATE skyfill_position SET segment = ?1, item = ?2")?;
        let written = statement.execute(params![signed(position.segment), signed(position.item)]);
        written.map(drop).map_err(|error| StoreError::sqlite(&self.path, error))
    }

    fn statement(&self, sql: &str) -> Result<rusqlite::CachedStatement<'_>, StoreError> {
        self.connection.prepare_cached(sql).map_err(|error| StoreError::sqlite(&self.path, error))
    }
}

/// Tries again as long as another process holds the write lock, and says so.
fn patiently(path: &Path, work: impl Fn() -> rusqlite::Result<()>) -> Result<(), StoreError> {
    loop {
        match work() {
            Err(error) if error.sqlite_error_code() == Some(rusqlite::ErrorCode::DatabaseBusy) => {
                tracing::warn!(path = %path.display(), "another process holds the queue's write lock, waiting");
            }
            done => return done.map_err(|error| StoreError::sqlite(path, error)),
        }
    }
}

fn create_tables(connection: &Connection, data_id: &str, start: Position) -> rusqlite::Result<()> {
    let select = "SELECT NOT EXISTS (SELECT 1 FROM sqlite_master WHERE name = 'queue')";
    // What is pending is found and counted without reading the payloads. An older file may be long, and is left as it is.
    let index = match connection.query_row(select, [], |row| row.get(0))? {
        true => {
            "CREATE INDEX IF NOT EXISTS skyfill_pending ON queue(status) WHERE status = 'pending';"
        }
        false => "",
    };
    // An early build kept the accounts by DID, and the position beside them.
    let select = "SELECT EXISTS (SELECT 1 FROM sqlite_master WHERE name = 'skyfill_accounts' AND sql NOT LIKE '%next_item%')";
    let (aside, back) = match connection.query_row(select, [], |row| row.get(0))? {
        true => (
            "ALTER TABLE skyfill_accounts RENAME TO skyfill_accounts_by_did;",
            "INSERT INTO skyfill_accounts SELECT NULL, did, edition, segment, rev, first_id, items, records, checksums, 0
                 FROM skyfill_accounts_by_did ORDER BY first_id;
             DROP TABLE skyfill_accounts_by_did;",
        ),
        false => ("", ""),
    };
    connection.execute_batch(&format!(
        "BEGIN IMMEDIATE;
         {aside}
         CREATE TABLE IF NOT EXISTS queue (
             id INTEGER PRIMARY KEY AUTOINCREMENT,
             payload TEXT,
             metadata TEXT,
             created_at TIMESTAMP DEFAULT CURRENT_TIMESTAMP,
             status TEXT DEFAULT 'pending');
         CREATE TABLE IF NOT EXISTS skyfill_accounts (
             id INTEGER PRIMARY KEY, did TEXT, edition INTEGER, segment INTEGER, rev TEXT, first_id INTEGER,
             items INTEGER, records INTEGER, checksums BLOB, next_item INTEGER);
         CREATE TABLE IF NOT EXISTS skyfill_position (
             one INTEGER PRIMARY KEY CHECK (one = 1), data_id TEXT, segment INTEGER, item INTEGER,
             begun INTEGER);
         {back}
         {index}
         COMMIT;",
    ))?;
    let insert = "INSERT OR IGNORE INTO skyfill_position (one, data_id, segment, item, begun) VALUES (1, ?1, ?2, ?3, ?2)";
    connection.execute(insert, params![data_id, signed(start.segment), signed(start.item)])?;
    Ok(())
}

/// Whose file it is and how far: after the last account, or after what was settled since.
pub(super) fn read_position(connection: &Connection) -> rusqlite::Result<(String, Position)> {
    let position = |row: &rusqlite::Row<'_>, at| {
        let (segment, item) = (unsigned(row.get(at)?), unsigned(row.get(at + 1)?));
        Ok(Position { segment, item })
    };
    let select = "SELECT data_id, segment, item FROM skyfill_position";
    let (owner, settled) =
        connection.query_row(select, [], |row| Ok((row.get(0)?, position(row, 1)?)))?;
    let select = "SELECT segment, next_item FROM skyfill_accounts ORDER BY id DESC LIMIT 1";
    let taken = connection.query_row(select, [], |row| position(row, 0)).optional()?;
    Ok((owner, settled.max(taken.unwrap_or_default())))
}

fn identity(path: &Path) -> Result<(u64, u64), StoreError> {
    match std::fs::metadata(path) {
        Ok(metadata) => Ok((metadata.dev(), metadata.ino())),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let what = "it was moved or deleted while skyfill was running".to_owned();
            Err(StoreError::Damaged { path: path.to_owned(), what })
        }
        Err(error) => Err(StoreError::io(path, error)),
    }
}

/// SQLite has signed integers only; `u64::MAX` becomes -1 and back.
const fn signed(number: u64) -> i64 {
    number.cast_signed()
}

const fn unsigned(number: i64) -> u64 {
    number.cast_unsigned()
}
