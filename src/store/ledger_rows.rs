//! The ledger's rows: `state.db`, one row a DID, and what its one writer does to them.
//!
//! ```text
//!  meta       data id, last applied segment          hosts      names
//!  accounts   the rules' state as JSON beside the columns that scheduling and counting need
//!  totals     listed accounts by state and reason, kept in the same transaction
//!  queues     where each queue file was at the last settle
//! ```
//! `domain::ledger` decides; this file only finds, applies and writes. Rows are never deleted. A newer schema is refused and
//! never rewritten.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use rusqlite::{Connection, OptionalExtension, Row, ToSql, params};

use crate::clock::Clock;
use crate::crash_point;
use crate::domain::account::{AccountId, Revision};
use crate::domain::ledger::{Account, Effect, Event, LedgerPolicy, Moment, State};
use crate::domain::verdict::Reason;
use crate::seed::Chance;
use crate::store::apply::Position;
use crate::store::error::StoreError;

/// Version of the tables.
const SCHEMA: i64 = 1;

/// State column values.
pub const QUEUED: i64 = 0;
const RESOLVING: i64 = 1;
/// Host known.
pub const READY: i64 = 2;
const FETCHING: i64 = 3;
const RETRY: i64 = 4;
/// Exported.
pub const DONE: i64 = 5;
/// Given up.
pub const PARKED: i64 = 6;

const TABLES: &str = "
    CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT) WITHOUT ROWID;
    CREATE TABLE hosts (id INTEGER PRIMARY KEY, name TEXT UNIQUE NOT NULL);
    CREATE TABLE accounts (
        id INTEGER PRIMARY KEY, did TEXT UNIQUE NOT NULL, listed INTEGER NOT NULL, state INTEGER NOT NULL,
        alone INTEGER NOT NULL, due_ms INTEGER NOT NULL, host INTEGER, reason TEXT, last_error TEXT,
        edition INTEGER NOT NULL, rev TEXT, filter TEXT, rules TEXT NOT NULL, revision TEXT, done_at_ms INTEGER);
    CREATE INDEX by_state ON accounts (state, alone, id) WHERE listed = 1;
    CREATE INDEX by_host ON accounts (host, alone, id) WHERE listed = 1 AND state = 2;
    CREATE INDEX by_due ON accounts (due_ms) WHERE listed = 1 AND state = 4;
    CREATE INDEX by_lease ON accounts (id) WHERE state IN (1, 3);
    CREATE TABLE totals (state INTEGER, reason TEXT, n INTEGER, PRIMARY KEY (state, reason)) WITHOUT ROWID;
    CREATE TABLE queues (label TEXT PRIMARY KEY, segment INTEGER, item INTEGER) WITHOUT ROWID;";

/// The writer's end of `state.db`.
pub struct Rows {
    path: PathBuf,
    connection: Connection,
    policy: LedgerPolicy,
    clock: Clock,
    chance: Chance,
    /// Changes to the totals since the transaction began.
    changes: HashMap<(i64, String), i64>,
    /// A settle waits for a synced commit.
    wants_sync: bool,
}

/// What an event led to.
#[derive(Clone, Debug, PartialEq)]
pub struct Applied {
    /// What follows.
    pub effect: Effect,
    /// Where the account stands now.
    pub state: State,
    /// Row and name of its host, if that is known.
    pub host: Option<(i64, String)>,
}

impl Rows {
    /// Opens or makes `state.db`; gives whether it is new.
    ///
    /// # Errors
    /// [`StoreError::Config`] for a newer schema, [`StoreError`] otherwise.
    pub fn open(
        path: &Path,
        policy: LedgerPolicy,
        clock: Clock,
        chance: Chance,
    ) -> Result<(Self, bool), StoreError> {
        let failed = |error| StoreError::sqlite(path, error);
        let connection = Connection::open(path).map_err(failed)?;
        std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o600))
            .map_err(|error| StoreError::io(path, error))?;
        connection
            .execute_batch(
                "PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL; PRAGMA busy_timeout=10000;",
            )
            .map_err(failed)?;
        let schema: i64 =
            connection.query_row("PRAGMA user_version", [], |row| row.get(0)).map_err(failed)?;
        if schema > SCHEMA {
            let text = format!(
                "{}: schema {schema} is newer than this skyfill knows ({SCHEMA}): use the newer skyfill",
                path.display()
            );
            return Err(StoreError::Config(text));
        }
        if schema == 0 {
            let id: String = (0..2).map(|_| format!("{:016x}", chance.bits())).collect();
            let make = format!(
                "BEGIN; {TABLES} INSERT INTO meta VALUES ('data_id', '{id}'), ('segment', '0');
                 PRAGMA user_version={SCHEMA}; COMMIT;"
            );
            connection.execute_batch(&make).map_err(failed)?;
        }
        let rows = Self {
            path: path.to_owned(),
            connection,
            policy,
            clock,
            chance,
            changes: HashMap::new(),
            wants_sync: false,
        };
        Ok((rows, schema == 0))
    }

    /// Identity of the data directory, 32 hexadecimal digits.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn data_id(&self) -> Result<String, StoreError> {
        self.meta("data_id")
    }

    /// Last segment that the ledger has taken.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn segment(&self) -> Result<u64, StoreError> {
        Ok(self.meta("segment")?.parse().unwrap_or(0))
    }

    /// Where each queue file was at the last settle.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn queue_positions(&self) -> Result<HashMap<String, Position>, StoreError> {
        let select = "SELECT label, segment, item FROM queues";
        let read = |row: &Row<'_>| {
            let number = |at| row.get::<_, i64>(at).map(i64::cast_unsigned);
            Ok((row.get(0)?, Position { segment: number(1)?, item: number(2)? }))
        };
        Ok(self.select(select, [], read)?.into_iter().collect())
    }

    fn meta(&self, key: &str) -> Result<String, StoreError> {
        let select = "SELECT value FROM meta WHERE key = ?1";
        let found = self.connection.query_row(select, [key], |row| row.get(0));
        found.map_err(|error| self.failed(error))
    }

    /// Begins a group.
    pub(crate) fn begin(&mut self) -> Result<(), StoreError> {
        self.execute("BEGIN IMMEDIATE", []).map(drop)
    }

    /// Writes the totals and commits.
    pub(crate) fn commit(&mut self) -> Result<(), StoreError> {
        for ((state, reason), change) in std::mem::take(&mut self.changes) {
            let upsert =
                "INSERT INTO totals VALUES (?1, ?2, ?3) ON CONFLICT DO UPDATE SET n = n + ?3";
            self.execute(upsert, params![state, reason, change])?;
        }
        self.execute("COMMIT", []).map(drop)?;
        // What the group wrote survives the process from here on, and a power cut from the next settle on.
        crash_point!(LedgerCommitted);
        Ok(())
    }

    /// Undoes the group.
    pub(crate) fn roll_back(&mut self) -> Result<(), StoreError> {
        self.changes.clear();
        if self.connection.is_autocommit() {
            Ok(())
        } else {
            self.execute("ROLLBACK", []).map(drop)
        }
    }

    /// Truncates the WAL.
    pub(crate) fn close(&mut self) -> Result<(), StoreError> {
        let cut = self.connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()));
        cut.map_err(|error| self.failed(error))
    }

    /// Applies one event to one account.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn apply(&mut self, id: AccountId, event: Event) -> Result<Applied, StoreError> {
        let select = "SELECT state, reason, listed, rules, host FROM accounts WHERE id = ?1";
        let found = self.connection.query_row(select, [id.0], |row| {
            Ok((
                row.get::<_, i64>(0)?,
                row.get::<_, Option<String>>(1)?,
                row.get::<_, bool>(2)?,
                row.get::<_, String>(3)?,
                row.get::<_, Option<i64>>(4)?,
            ))
        });
        let (old_state, old_reason, listed, rules, mut host) =
            found.map_err(|error| self.failed(error))?;
        let path = self.path.clone();
        let damaged = |_| StoreError::Damaged {
            path: path.clone(),
            what: format!("the row of account {} is unreadable", id.0),
        };
        let mut account: Account = serde_json::from_str(&rules).map_err(damaged)?;
        let moment = Moment { now_ms: self.clock.wall_ms(), fraction: self.chance.fraction() };
        let is_resolved = matches!(event, Event::Resolved(_));
        let effect = account.apply(event, &self.policy, moment);
        if effect != Effect::Nothing {
            if is_resolved && let Some(identity) = &account.identity {
                host = Some(self.host_id(&identity.host)?);
            }
            let (state, reason) = (state_number(account.state), reason_word(account.state));
            let update =
                "UPDATE accounts SET state = ?2, alone = ?3, due_ms = ?4, host = ?5, reason = ?6,
                          last_error = ?7, rules = ?8 WHERE id = ?1";
            let (due_ms, last_error) =
                (due_ms(account.state), account.last_error.map(|error| error.as_str()));
            let text = serde_json::to_string(&account).map_err(damaged)?;
            self.execute(
                update,
                params![id.0, state, account.runs_alone(), due_ms, host, reason, last_error, text],
            )?;
            if listed {
                self.count(old_state, old_reason.as_deref(), -1);
                self.count(state, reason, 1);
            }
        }
        let host = host.zip(account.identity.as_ref().map(|identity| identity.host.clone()));
        Ok(Applied { effect, state: account.state, host })
    }

    /// Marks the accounts of a segment done, unless they are already.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn apply_segment(
        &mut self,
        segment: u64,
        revisions: &[Revision],
    ) -> Result<(), StoreError> {
        if segment <= self.segment()? {
            return Ok(());
        }
        for revision in revisions {
            let select = "SELECT id FROM accounts WHERE did = ?1 AND edition = ?2";
            let found =
                self.connection.query_row(select, params![revision.did, revision.edition], |row| {
                    row.get::<_, i64>(0)
                });
            let Some(id) = found.optional().map_err(|error| self.failed(error))? else { continue };
            self.apply(AccountId(id), Event::Exported)?;
            let text = serde_json::to_string(revision).unwrap_or_default();
            let update = "UPDATE accounts SET edition = edition + 1, rev = ?2, filter = ?3, revision = ?4, done_at_ms = ?5 WHERE id = ?1";
            self.execute(
                update,
                params![id, revision.rev, revision.filter, text, self.clock.wall_ms()],
            )?;
        }
        self.execute("UPDATE meta SET value = ?1 WHERE key = 'segment'", [segment.to_string()])
            .map(drop)
    }

    /// Remembers where the queue files are; the writer syncs after the group's commit.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn settle(&mut self, positions: &[(String, Position)]) -> Result<(), StoreError> {
        for (label, position) in positions {
            let (segment, item) = (position.segment.cast_signed(), position.item.cast_signed());
            self.execute(
                "INSERT OR REPLACE INTO queues VALUES (?1, ?2, ?3)",
                params![label, segment, item],
            )?;
        }
        self.wants_sync = true;
        Ok(())
    }

    /// Makes every commit so far durable, if a settle asked for it: one commit at FULL that writes something.
    pub(crate) fn sync_if_wanted(&mut self) -> Result<(), StoreError> {
        if self.wants_sync {
            let full = self.connection.execute_batch(
                "PRAGMA synchronous=FULL; UPDATE meta SET value = value WHERE key = 'segment';
                 PRAGMA synchronous=NORMAL;",
            );
            full.map_err(|error| self.failed(error))?;
            self.wants_sync = false;
        }
        Ok(())
    }

    fn host_id(&mut self, name: &str) -> Result<i64, StoreError> {
        self.execute("INSERT OR IGNORE INTO hosts (name) VALUES (?1)", [name])?;
        let id = self
            .connection
            .query_row("SELECT id FROM hosts WHERE name = ?1", [name], |row| row.get(0));
        id.map_err(|error| self.failed(error))
    }

    pub(crate) fn count(&mut self, state: i64, reason: Option<&str>, change: i64) {
        *self.changes.entry((state, reason.unwrap_or_default().to_owned())).or_default() += change;
    }

    pub(crate) fn select<T>(
        &self,
        sql: &str,
        parameters: impl rusqlite::Params,
        read: impl FnMut(&Row<'_>) -> rusqlite::Result<T>,
    ) -> Result<Vec<T>, StoreError> {
        let mut statement =
            self.connection.prepare_cached(sql).map_err(|error| self.failed(error))?;
        let rows = statement.query_map(parameters, read).map_err(|error| self.failed(error))?;
        rows.collect::<Result<_, _>>().map_err(|error| self.failed(error))
    }

    pub(crate) fn execute(
        &self,
        sql: &str,
        parameters: impl rusqlite::Params,
    ) -> Result<usize, StoreError> {
        let mut statement =
            self.connection.prepare_cached(sql).map_err(|error| self.failed(error))?;
        statement.execute(parameters).map_err(|error| self.failed(error))
    }

    pub(crate) fn failed(&self, error: rusqlite::Error) -> StoreError {
        StoreError::sqlite(&self.path, error)
    }

    pub(crate) fn now_ms(&self) -> i64 {
        self.clock.wall_ms()
    }

    pub(crate) fn connection(&self) -> &Connection {
        &self.connection
    }

    pub(crate) fn one<T: rusqlite::types::FromSql>(
        &self,
        sql: &str,
        parameters: &[&dyn ToSql],
    ) -> Result<T, StoreError> {
        self.connection
            .query_row(sql, parameters, |row| row.get(0))
            .map_err(|error| self.failed(error))
    }
}

/// State column of a state.
#[must_use]
pub const fn state_number(state: State) -> i64 {
    match state {
        State::Queued => QUEUED,
        State::Resolving => RESOLVING,
        State::Ready => READY,
        State::Fetching => FETCHING,
        State::RetryAt(_) => RETRY,
        State::Done => DONE,
        State::Parked(_) => PARKED,
    }
}

const fn due_ms(state: State) -> i64 {
    match state {
        State::RetryAt(at_ms) => at_ms,
        _ => 0,
    }
}

fn reason_word(state: State) -> Option<&'static str> {
    match state {
        State::Parked(reason) => Some(Reason::as_str(reason)),
        _ => None,
    }
}
