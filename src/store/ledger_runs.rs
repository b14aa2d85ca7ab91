//! What each run over the data directory did: a row of `state.db` a run, kept for the last of them.
//!
//! ```text
//!  begun ──> given known ──> ended, with its exit code        a process that dies in between: begun, and never ended
//! ```
//! A run begins in the ledger's own transactions; it ends after the ledger's writer has, by a connection of its own.

use std::path::Path;
use std::time::Duration;

use rusqlite::{Connection, OpenFlags, Row, params};

use crate::store::error::StoreError;
use crate::store::ledger_rows::Rows;
use crate::store::ledger_schema;

/// Runs that are kept: years of one a day, and 300 KiB.
pub const RUNS_MAX: i64 = 1_000;

/// How long somebody else may hold the ledger.
const BUSY: Duration = Duration::from_secs(10);

const TABLE: &str = "CREATE TABLE IF NOT EXISTS runs (
    id INTEGER PRIMARY KEY AUTOINCREMENT, command TEXT NOT NULL, version TEXT NOT NULL, pid INTEGER NOT NULL,
    begun_ms INTEGER NOT NULL, filter TEXT NOT NULL, given INTEGER, ended_ms INTEGER, exit INTEGER, seconds REAL,
    done INTEGER, parked INTEGER, records INTEGER, run_done INTEGER, run_parked INTEGER)";

/// A run that begins.
#[derive(Clone, Debug)]
pub struct Begun {
    /// Which command.
    pub command: &'static str,
    /// What decides which rows a repository becomes, as JSON.
    pub filter: String,
}

/// How a run ended.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Ended {
    /// When, ledger milliseconds.
    pub ended_ms: i64,
    /// The exit code.
    pub exit: u8,
    /// How long it took by the clock that does not jump.
    pub seconds: f64,
    /// Accounts that it was given; done and parked among them at its end.
    pub accounts: Option<[u64; 3]>,
    /// Accounts that it made done and parked, and records that it exported.
    pub this_run: [u64; 3],
}

/// A run that is told.
#[derive(Clone, Debug, PartialEq)]
pub struct Run {
    /// Its number.
    pub id: i64,
    /// Which command.
    pub command: String,
    /// Of which skyfill.
    pub version: String,
    /// Process id.
    pub pid: i64,
    /// When it began, ledger milliseconds.
    pub begun_ms: i64,
    /// What decided which rows a repository becomes, as JSON.
    pub filter: String,
    /// Accounts that it was given, as far as that is known.
    pub given: Option<u64>,
    /// Done among them at its end.
    pub done: Option<u64>,
    /// Parked among them at its end.
    pub parked: Option<u64>,
    /// When, with which exit code, after how many seconds, and what it did; `None`: it never ended.
    pub ended: Option<Ended>,
}

impl Rows {
    /// Notes that a run begins; gives its number.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn begin_run(&mut self, begun: &Begun) -> Result<i64, StoreError> {
        let (pid, now_ms) = (i64::from(std::process::id()), self.now_ms());
        self.transaction(|rows| {
            rows.execute(TABLE, [])?;
            let insert = "INSERT INTO runs (command, version, pid, begun_ms, filter) VALUES (?1, ?2, ?3, ?4, ?5)";
            let version = env!("CARGO_PKG_VERSION");
            rows.execute(insert, params![begun.command, version, pid, now_ms, begun.filter])?;
            let id = rows.connection().last_insert_rowid();
            rows.execute("DELETE FROM runs WHERE id <= ?1", [id - RUNS_MAX])?;
            Ok(id)
        })
    }

    /// Notes how many accounts the run was given, in the open transaction or in one of its own.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn run_given(&mut self, id: i64, given: u64) -> Result<(), StoreError> {
        let given = i64::try_from(given).unwrap_or(i64::MAX);
        self.execute("UPDATE runs SET given = ?2 WHERE id = ?1", [id, given]).map(drop)
    }
}

/// Notes how a run ended; nobody else need have the ledger open.
///
/// # Errors
/// [`StoreError`].
pub fn end_run(path: &Path, id: i64, ended: &Ended) -> Result<(), StoreError> {
    let failed = |error| StoreError::sqlite(path, error);
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags).map_err(failed)?;
    connection.busy_timeout(BUSY).map_err(failed)?;
    let number = |count: u64| i64::try_from(count).unwrap_or(i64::MAX);
    let accounts = ended.accounts.map(|counts| counts.map(number));
    let [run_done, run_parked, records] = ended.this_run.map(number);
    let update = "UPDATE runs SET ended_ms = ?2, exit = ?3, seconds = ?4, given = ifnull(?5, given), done = ?6, parked = ?7,
                      run_done = ?8, run_parked = ?9, records = ?10 WHERE id = ?1";
    let parameters = params![
        id,
        ended.ended_ms,
        ended.exit,
        ended.seconds,
        accounts.map(|counts| counts[0]),
        accounts.map(|counts| counts[1]),
        accounts.map(|counts| counts[2]),
        run_done,
        run_parked,
        records
    ];
    connection.execute(update, parameters).map_err(failed)?;
    connection.close().map_err(|(_, error)| failed(error))
}

/// The runs that are known, the first one first.
///
/// # Errors
/// [`StoreError::Config`] for a newer schema, [`StoreError`] otherwise.
pub fn runs(path: &Path) -> Result<Vec<Run>, StoreError> {
    let failed = |error| StoreError::sqlite(path, error);
    let connection = ledger_schema::read_only(path)?;
    connection.busy_timeout(BUSY).map_err(failed)?;
    let known = "SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = 'runs'";
    // A ledger that only an older skyfill has written knows of none.
    if !connection.prepare(known).and_then(|mut it| it.exists([])).map_err(failed)? {
        return Ok(Vec::new());
    }
    let select = "SELECT id, command, version, pid, begun_ms, filter, given, done, parked, ended_ms, exit, seconds,
                      run_done, run_parked, records FROM runs ORDER BY id";
    let mut statement = connection.prepare(select).map_err(failed)?;
    let rows = statement.query_map([], run).map_err(failed)?;
    rows.collect::<Result<_, _>>().map_err(failed)
}

fn run(row: &Row<'_>) -> rusqlite::Result<Run> {
    let count = |at| row.get::<_, Option<i64>>(at).map(|count| count.map(i64::cast_unsigned));
    let (given, done, parked) = (count(6)?, count(7)?, count(8)?);
    let ended = match row.get::<_, Option<i64>>(9)? {
        None => None,
        Some(ended_ms) => Some(Ended {
            ended_ms,
            exit: row.get(10)?,
            seconds: row.get(11)?,
            accounts: given
                .zip(done)
                .zip(parked)
                .map(|((given, done), parked)| [given, done, parked]),
            this_run: [count(12)?, count(13)?, count(14)?].map(Option::unwrap_or_default),
        }),
    };
    Ok(Run {
        id: row.get(0)?,
        command: row.get(1)?,
        version: row.get(2)?,
        pid: row.get(3)?,
        begun_ms: row.get(4)?,
        filter: row.get(5)?,
        given,
        done,
        parked,
        ended,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Clock;
    use crate::store::ledger_rows::opened;

    #[test]
    fn runs_are_kept_up_to_a_number_and_one_that_died_has_no_end() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state.db");
        let clock = Clock::fixed(1_700_000_000_000);
        let open = || opened(folder.path(), clock.clone());
        let mut rows = open();
        assert_eq!(runs(&path).unwrap(), Vec::new());
        let begun = Begun { command: "backfill", filter: "{}".to_owned() };
        let died = rows.begin_run(&begun).unwrap();
        rows.run_given(died, 7).unwrap();
        let ended = rows.begin_run(&begun).unwrap();
        drop(rows);
        let how = Ended {
            ended_ms: 1_700_000_001_500,
            exit: 3,
            seconds: 1.5,
            accounts: Some([9, 8, 1]),
            this_run: [2, 1, 300],
        };
        end_run(&path, ended, &how).unwrap();
        let told = runs(&path).unwrap();
        assert_eq!((told[0].given, told[0].done, told[0].ended), (Some(7), None, None));
        assert_eq!((told[1].given, told[1].done, told[1].ended), (Some(9), Some(8), Some(how)));
        let mut rows = open();
        for _ in 0..RUNS_MAX {
            rows.begin_run(&begun).unwrap();
        }
        let told = runs(&path).unwrap();
        assert_eq!((told.len() as i64, told[0].id), (RUNS_MAX, ended + 1));
    }
}
