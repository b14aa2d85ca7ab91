//! The ledger's rows: `state.db`, one row a DID, and what its one writer does to them.
//!
//! ```text
//!  meta       data id, last applied segment          hosts      names, and how long each gave no usable answer
//!  accounts   the rules' state as JSON (null: as it began) beside the columns that scheduling and counting need
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
use crate::store::ledger_schema;
use crate::store::tally::{Kind, Tally};

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

/// The writer's end of `state.db`.
pub struct Rows {
    path: PathBuf,
    connection: Connection,
    policy: LedgerPolicy,
    clock: Clock,
    chance: Chance,
    /// Changes to the totals since the transaction began.
    pub(crate) changes: HashMap<(i64, String), i64>,
    /// What this process decided, committed and with the open transaction.
    run: [RunCounts; 2],
    /// Figures of the open transaction.
    tally: Tally,
    /// A settle waits for a synced commit.
    wants_sync: bool,
    /// The account that was leased last, by host or kind of DID: the next lease goes on behind it.
    pub(crate) turns: HashMap<Queue, i64>,
}

/// What is leased from in turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Queue {
    /// Queued accounts, of `did:web` or of `did:plc`.
    Unresolved {
        /// Of `did:web`.
        web: bool,
    },
    /// Ready accounts of a host.
    Host(i64),
}

/// What an event led to.
#[derive(Clone, Debug, PartialEq)]
pub struct Applied {
    /// Whose.
    pub id: AccountId,
    /// It is on the lists; others rest wherever they stand.
    pub listed: bool,
    /// What follows.
    pub effect: Effect,
    /// Where the account stood.
    pub before: Place,
    /// Where it stands now.
    pub after: Place,
    /// Name of the host that it stands at now.
    pub host_name: Option<String>,
}

/// Where an account stands, as far as scheduling counts it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Its state.
    pub state: State,
    /// Row of its host, if that is known.
    pub host: Option<i64>,
    /// It may only run while nothing else does.
    pub alone: bool,
}

/// What this process has decided so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct RunCounts {
    /// Accounts exported.
    pub done: u64,
    /// Accounts parked.
    pub parked: u64,
    /// Records exported.
    pub records: u64,
    /// Bytes of the repositories that were exported.
    #[serde(skip)]
    pub repo_bytes: u64,
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
        let (connection, is_new) = ledger_schema::open(path, &chance)?;
        let rows = Self {
            path: path.to_owned(),
            connection,
            policy,
            clock,
            chance,
            changes: HashMap::new(),
            run: [RunCounts::default(); 2],
            tally: Tally::default(),
            wants_sync: false,
            turns: HashMap::new(),
        };
        Ok((rows, is_new))
    }

    /// The operator's new numbers; they hold from the next event on.
    pub fn set_policy(&mut self, policy: LedgerPolicy) {
        self.policy = policy;
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

    /// Runs `work` in a transaction of its own, before the writer thread has the rows.
    ///
    /// # Errors
    /// [`StoreError`]; nothing is changed then.
    pub fn transaction<T>(
        &mut self,
        work: impl FnOnce(&mut Self) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        self.begin()?;
        let done = work(self).and_then(|done| self.commit().map(|()| done));
        if done.is_err() {
            self.roll_back()?;
        }
        done
    }

    /// Begins a group.
    pub(crate) fn begin(&mut self) -> Result<(), StoreError> {
        self.execute("BEGIN IMMEDIATE", []).map(drop)
    }

    /// Writes the totals and commits.
    pub(crate) fn commit(&mut self) -> Result<(), StoreError> {
        self.write_totals()?;
        self.execute("COMMIT", []).map(drop)?;
        self.run[0] = self.run[1];
        self.tally.committed(self.clock.wall_ms());
        // What the group wrote survives the process from here on, and a power cut from the next settle on.
        crash_point!(LedgerCommitted);
        Ok(())
    }

    /// Brings the totals up to date with what this transaction has changed so far.
    pub(crate) fn write_totals(&mut self) -> Result<(), StoreError> {
        for ((state, reason), change) in std::mem::take(&mut self.changes) {
            let upsert =
                "INSERT INTO totals VALUES (?1, ?2, ?3) ON CONFLICT DO UPDATE SET n = n + ?3";
            self.execute(upsert, params![state, reason, change])?;
        }
        Ok(())
    }

    /// Undoes the group.
    pub(crate) fn roll_back(&mut self) -> Result<(), StoreError> {
        self.changes.clear();
        self.run[1] = self.run[0];
        self.tally.undone();
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
        let select = "SELECT reason, listed, rules, host FROM accounts WHERE id = ?1";
        let row = self.one_row(select, [id.0], |row| {
            Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?))
        })?;
        let (old_reason, listed, rules, host): (Option<String>, bool, Option<String>, _) = row;
        let mut account = self.rules(id, rules.as_deref())?;
        let moment = Moment { now_ms: self.clock.wall_ms(), fraction: self.chance.fraction() };
        let before = Place { state: account.state, host, alone: account.runs_alone() };
        let kind = Kind::from(&event);
        let effect = account.apply(event, &self.policy, moment);
        let mut after = Place { state: account.state, host, alone: account.runs_alone() };
        if effect != Effect::Nothing {
            if kind == Kind::Resolved
                && let Some(identity) = &account.identity
            {
                after.host = Some(self.host_id(&identity.host)?);
            }
            self.write_account(id, &account, after)?;
            if listed {
                self.count(state_number(before.state), old_reason.as_deref(), -1);
                self.count(state_number(after.state), reason_word(after.state), 1);
            }
            self.run[1].parked += u64::from(matches!(after.state, State::Parked(_)));
            self.tally.applied(kind, effect, after.state);
        }
        let host_name = account.identity.map(|identity| identity.host);
        Ok(Applied { id, listed, effect, before, after, host_name })
    }

    pub(crate) fn rules(&self, id: AccountId, text: Option<&str>) -> Result<Account, StoreError> {
        let Some(text) = text else { return Ok(Account::default()) };
        serde_json::from_str(text).map_err(|_| StoreError::Damaged {
            path: self.path.clone(),
            what: format!("the row of account {} is unreadable", id.0),
        })
    }

    fn write_account(
        &self,
        id: AccountId,
        account: &Account,
        place: Place,
    ) -> Result<(), StoreError> {
        let update =
            "UPDATE accounts SET state = ?2, alone = ?3, due_ms = ?4, host = ?5, reason = ?6,
                      last_error = ?7, rules = ?8 WHERE id = ?1";
        // Strings, numbers and options of them always serialise.
        let text = serde_json::to_string(account).unwrap_or_default();
        let columns = params![
            id.0,
            state_number(place.state),
            place.alone,
            due_ms(place.state),
            place.host,
            reason_word(place.state),
            account.last_error.map(|error| error.as_str()),
            text
        ];
        self.execute(update, columns).map(drop)
    }

    pub(crate) fn note_parked(&mut self, accounts: u64) {
        self.run[1].parked += accounts;
    }

    /// What this process has decided, with the open transaction.
    #[must_use]
    pub fn run_counts(&self) -> RunCounts {
        self.run[1]
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
            self.run[1].done += 1;
            self.run[1].records += revision.exported_total();
            self.run[1].repo_bytes += revision.repo_bytes;
            self.tally.exported(revision);
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

    /// Changes to the totals that the open transaction has made and not yet written: state and how many.
    pub(crate) fn changes_by_state(&self) -> impl Iterator<Item = (i64, i64)> {
        self.changes.iter().map(|((state, _), change)| (*state, *change))
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

    pub(crate) fn one_row<T>(
        &self,
        sql: &str,
        parameters: impl rusqlite::Params,
        read: impl FnOnce(&Row<'_>) -> rusqlite::Result<T>,
    ) -> Result<T, StoreError> {
        let mut statement =
            self.connection.prepare_cached(sql).map_err(|error| self.failed(error))?;
        statement.query_row(parameters, read).map_err(|error| self.failed(error))
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
