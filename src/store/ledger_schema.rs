//! The ledger's tables: made once, refused if a newer skyfill made them.

use std::path::Path;

use rusqlite::{Connection, OpenFlags};

use crate::seed::Chance;
use crate::store::durable;
use crate::store::error::StoreError;
use crate::store::ledger_sums;

/// Version of the tables as they are made.
const SCHEMA: i64 = 1;

/// The same tables with forgotten accounts in them: a skyfill that does not know that state must not touch them.
pub const SCHEMA_FORGOTTEN: i64 = 2;

const TABLES: &str = "
    CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT) WITHOUT ROWID;
    CREATE TABLE hosts (id INTEGER PRIMARY KEY, name TEXT UNIQUE NOT NULL, silence_ms INTEGER NOT NULL DEFAULT 0);
    CREATE TABLE accounts (
        id INTEGER PRIMARY KEY, did TEXT UNIQUE NOT NULL, listed INTEGER NOT NULL, web INTEGER NOT NULL,
        state INTEGER NOT NULL, alone INTEGER NOT NULL, due_ms INTEGER NOT NULL, host INTEGER, reason TEXT, last_error TEXT,
        edition INTEGER NOT NULL, rev TEXT, filter TEXT, rules TEXT, revision TEXT, done_at_ms INTEGER);
    CREATE INDEX by_queue ON accounts (web, alone, id) WHERE listed = 1 AND state = 0;
    CREATE INDEX by_host ON accounts (host, alone, id) WHERE listed = 1 AND state = 2;
    CREATE INDEX by_due ON accounts (due_ms) WHERE listed = 1 AND state = 4;
    CREATE INDEX by_lease ON accounts (id) WHERE state IN (1, 3);
    CREATE INDEX by_reason ON accounts (reason, id) WHERE state = 6;
    CREATE TABLE totals (state INTEGER, reason TEXT, n INTEGER, PRIMARY KEY (state, reason)) WITHOUT ROWID;
    CREATE TABLE queues (label TEXT PRIMARY KEY, segment INTEGER, item INTEGER) WITHOUT ROWID;";

/// Opens `state.db` for reading only.
///
/// # Errors
/// [`StoreError::Config`] for a newer schema, [`StoreError`] otherwise.
pub fn read_only(path: &Path) -> Result<Connection, StoreError> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let opened = Connection::open_with_flags(path, flags);
    let connection = opened.map_err(|error| StoreError::sqlite(path, error))?;
    known_schema(&connection, path)?;
    Ok(connection)
}

/// Schema of an open ledger, 0 for a new one.
///
/// # Errors
/// [`StoreError::Config`] for a newer one, [`StoreError`] otherwise.
pub fn known_schema(connection: &Connection, path: &Path) -> Result<i64, StoreError> {
    let read = connection.query_row("PRAGMA user_version", [], |row| row.get(0));
    let schema: i64 = read.map_err(|error| StoreError::sqlite(path, error))?;
    if schema > SCHEMA_FORGOTTEN {
        let text = format!(
            "{}: schema {schema} is newer than this skyfill knows ({SCHEMA_FORGOTTEN}): use the newer skyfill",
            path.display()
        );
        return Err(StoreError::Config(text));
    }
    Ok(schema)
}

/// What came later and changes nothing of the above: the rows of a list on its way in, the accounts of segments that earlier segments
/// brought already, when accounts were refreshed, done accounts by their filter, those that are to be exported or compared once more,
/// forgotten ones by their name, those whose rows are still being taken back, how accounts stood when they were last asked for,
/// and the messages that a worker's accounts came by.
const LATER: &str = "
    CREATE TABLE IF NOT EXISTS repeats (segment INTEGER, account INTEGER, PRIMARY KEY (segment, account)) WITHOUT ROWID;
    CREATE TABLE IF NOT EXISTS wanted (id INTEGER PRIMARY KEY);
    CREATE INDEX IF NOT EXISTS by_filter ON accounts (filter, id) WHERE state = 5;
    CREATE TABLE IF NOT EXISTS refreshed (id INTEGER PRIMARY KEY, at_ms INTEGER NOT NULL);
    CREATE INDEX IF NOT EXISTS by_earlier_export ON accounts (filter, id) WHERE state < 5 AND filter IS NOT NULL;
    CREATE INDEX IF NOT EXISTS by_forgotten ON accounts (did) WHERE state = 7;
    CREATE TABLE IF NOT EXISTS forgetting (id INTEGER, name TEXT, PRIMARY KEY (id, name)) WITHOUT ROWID;
    CREATE TABLE IF NOT EXISTS standing (
        id INTEGER PRIMARY KEY, status TEXT NOT NULL, since_ms INTEGER NOT NULL, was TEXT, asked_ms INTEGER NOT NULL,
        host TEXT NOT NULL, detail TEXT NOT NULL);
    CREATE TABLE IF NOT EXISTS inputs (
        partition INTEGER, offset INTEGER, account INTEGER NOT NULL, PRIMARY KEY (partition, offset)) WITHOUT ROWID;
    CREATE INDEX IF NOT EXISTS inputs_by_account ON inputs (account);";

/// A commit that syncs everything before it. An empty one would not, nor would one that writes what is there already: SQLite
/// compares, and leaves the page alone.
pub const SYNC: &str = "
    PRAGMA synchronous=FULL;
    INSERT INTO meta VALUES ('syncs', '1') ON CONFLICT (key) DO UPDATE SET value = value + 1;
    PRAGMA synchronous=NORMAL;";

/// Opens or makes `state.db`; gives whether it is new.
///
/// # Errors
/// [`StoreError::Config`] for a newer schema, [`StoreError`] otherwise.
pub fn open(path: &Path, chance: &Chance) -> Result<(Connection, bool), StoreError> {
    let failed = |error| StoreError::sqlite(path, error);
    // SQLite would follow it, and refuse one in any folder above too if it were told not to.
    if std::fs::symlink_metadata(path).is_ok_and(|metadata| metadata.is_symlink()) {
        let text = format!("{}: is a symbolic link: put the file itself there", path.display());
        return Err(StoreError::Permission(text));
    }
    let connection = Connection::open(path).map_err(failed)?;
    std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o600))
        .map_err(|error| StoreError::io(path, error))?;
    connection
        .execute_batch(
            "PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL; PRAGMA busy_timeout=10000;
             PRAGMA secure_delete=FAST;",
        )
        .map_err(failed)?;
    let schema = known_schema(&connection, path)?;
    if schema == 0 {
        let id: String = (0..2).map(|_| format!("{:016x}", chance.bits())).collect();
        let make = format!(
            "BEGIN; {TABLES} INSERT INTO meta VALUES ('data_id', '{id}'), ('segment', '0');
             PRAGMA user_version={SCHEMA}; COMMIT;"
        );
        connection.execute_batch(&make).map_err(failed)?;
    }
    connection.execute_batch(LATER).map_err(failed)?;
    ledger_sums::begin(&connection).map_err(failed)?;
    // Queues and segments name this ledger: its identity and its name are on disk before there are any. A ledger that was
    // made by a process which died at once is no exception, so this is done at every start.
    connection.execute_batch(SYNC).map_err(failed)?;
    durable::sync_folder(path.parent().unwrap_or(path))?;
    Ok((connection, schema == 0))
}
