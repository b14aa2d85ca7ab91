//! The ledger's rows: `state.db`, one row a DID, and what its one writer does to them.
//!
//! ```text
//!  meta       data id, last applied segment          hosts      names, and how long each gave no usable answer
//!  accounts   the rules' state as JSON (null: as it began) beside the columns that scheduling and counting need
//!  totals     listed accounts by state and reason, kept in the same transaction; sums: what the done ones of them hold
//!  queues     where each queue file was at the last settle
//! ```
//! `domain::ledger` decides; this file opens, commits and rolls back, `ledger_moves` applies, `ledger_work` leases and
//! `ledger_listing` lists. Rows are never deleted. A newer schema is refused and never rewritten.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use rusqlite::{Connection, Row, ToSql, params};

use crate::clock::Clock;
use crate::crash_point;
use crate::domain::account::AccountId;
use crate::domain::ledger::{Effect, LedgerPolicy, State};
use crate::seed::Chance;
use crate::store::apply::Position;
use crate::store::decisions::DecisionLog;
use crate::store::error::StoreError;
use crate::store::ledger_refresh::RefreshCounts;
use crate::store::ledger_schema;
use crate::store::ledger_sums::Changes;
use crate::store::tally::Tally;

/// State column values.
pub const QUEUED: i64 = 0;
pub(super) const RESOLVING: i64 = 1;
/// Host known.
pub const READY: i64 = 2;
pub(super) const FETCHING: i64 = 3;
pub(super) const RETRY: i64 = 4;
/// Exported.
pub const DONE: i64 = 5;
/// Given up.
pub const PARKED: i64 = 6;
/// Forgotten by the operator's order.
pub const FORGOTTEN: i64 = 7;

/// The writer's end of `state.db`.
pub struct Rows {
    path: PathBuf,
    connection: Connection,
    pub(super) policy: LedgerPolicy,
    pub(super) clock: Clock,
    pub(super) chance: Chance,
    /// Changes to the totals since the transaction began.
    pub(super) changes: HashMap<(i64, String), i64>,
    /// The same for the sums.
    pub(super) sums: Changes,
    /// What this process decided, committed and with the open transaction.
    pub(super) run: [RunCounts; 2],
    /// Figures of the open transaction.
    pub(super) tally: Tally,
    /// For who follows the run.
    pub(super) decisions: DecisionLog,
    /// For followers that want to know of accounts that are given up.
    pub(super) parkings: DecisionLog,
    /// A settle waits for a synced commit.
    wants_sync: bool,
    /// What was deleted is not to stay in the WAL.
    wants_cut: bool,
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
    /// What came of refreshes.
    #[serde(skip)]
    pub refresh: RefreshCounts,
}

impl RunCounts {
    /// Accounts that were brought to an end, one way or another.
    #[must_use]
    pub const fn ended(&self) -> u64 {
        self.done + self.parked + self.refresh.ended()
    }
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
            sums: Changes::default(),
            run: [RunCounts::default(); 2],
            tally: Tally::default(),
            decisions: DecisionLog::default(),
            parkings: DecisionLog::default(),
            wants_sync: false,
            wants_cut: false,
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

    /// Forgets that a sink of this name (as `store::follow` writes it) follows; gives whether one did.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn let_sink_go(&mut self, label: &str) -> Result<bool, StoreError> {
        self.execute("DELETE FROM queues WHERE label = ?1", [label]).map(|rows| rows > 0)
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
        } else {
            self.sync_if_wanted()?;
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
        self.write_sums()?;
        self.execute("COMMIT", []).map(drop)?;
        self.run[0] = self.run[1];
        self.tally.committed(self.clock.wall_ms());
        self.decisions.committed();
        self.parkings.committed();
        // What the group wrote survives the process from here on, and a power cut from the next settle on.
        crash_point!(LedgerCommitted);
        Ok(())
    }

    /// Undoes the group.
    pub(crate) fn roll_back(&mut self) -> Result<(), StoreError> {
        self.changes.clear();
        self.sums.clear();
        self.run[1] = self.run[0];
        self.tally.undone();
        self.decisions.undone();
        self.parkings.undone();
        if self.connection.is_autocommit() {
            Ok(())
        } else {
            self.execute("ROLLBACK", []).map(drop)
        }
    }

    /// Truncates the WAL.
    pub(crate) fn close(&mut self) -> Result<(), StoreError> {
        // Everything is settled and given back; what is left in the WAL is read from there.
        crash_point!(LeasesEndedBeforeClose);
        self.shrink()
    }

    /// Brings the WAL's pages into the file and cuts it to nothing.
    pub(crate) fn shrink(&mut self) -> Result<(), StoreError> {
        let cut = self.connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()));
        cut.map_err(|error| self.failed(error))
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
        self.make_durable()
    }

    /// Asks that what was written so far be durable with the commit of the open transaction.
    ///
    /// # Errors
    /// None; as others that are sent to the writer.
    pub fn make_durable(&mut self) -> Result<(), StoreError> {
        self.wants_sync = true;
        Ok(())
    }

    /// Makes every commit so far durable, if one of them asked for it: one commit at FULL that writes something.
    pub(crate) fn sync_if_wanted(&mut self) -> Result<(), StoreError> {
        if self.wants_sync {
            // Positions are written and not durable; the segments are still there and every follower knows its own.
            crash_point!(PositionsWrittenBeforeSync);
            let full = self.connection.execute_batch(ledger_schema::SYNC);
            full.map_err(|error| self.failed(error))?;
            self.wants_sync = false;
        }
        if std::mem::take(&mut self.wants_cut) {
            self.shrink()?;
        }
        Ok(())
    }

    /// What this group deletes is not to stay in the WAL: it is synced and cut after the commit.
    pub(super) fn cut_wal_after_commit(&mut self) {
        (self.wants_sync, self.wants_cut) = (true, true);
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

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Steady: what is due does not depend on a wall clock that jumps.
    pub(crate) fn now_ms(&self) -> i64 {
        self.clock.steady_ms()
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

#[cfg(test)]
pub use tests::opened;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::identity::Identity;
    use crate::domain::ledger::Event;
    use crate::domain::verdict::{Cause, Failure, Reason};
    use crate::store::sorted_list::Entry;

    /// The ledger in `folder`, a new one if there is none.
    pub fn opened(folder: &Path, clock: Clock) -> Rows {
        let path = folder.join("state.db");
        Rows::open(&path, LedgerPolicy::default(), clock, Chance::seeded(1)).unwrap().0
    }

    #[test]
    fn a_new_policy_holds_from_the_next_event_on() {
        let folder = tempfile::tempdir().unwrap();
        let mut rows = opened(folder.path(), Clock::fixed(1_700_000_000_000));
        let identity = Identity {
            endpoint: "https://a.test".to_owned(),
            host: "a.test".to_owned(),
            key: "did:key:z".to_owned(),
            earlier_keys: Vec::new(),
            handle: None,
        };
        let failure = Failure::new(Cause::Transient, None, "");
        let failed = |rows: &mut Rows, did: &str| {
            let events = [
                Event::LeasedToResolve,
                Event::Resolved(identity.clone()),
                Event::LeasedToFetch { alone: false },
                Event::Failed { failure: failure.clone(), host_usable_ms: None },
            ];
            let done = rows.transaction(|rows| {
                let id = AccountId(rows.add(&Entry::did(did))?);
                events.into_iter().map(|event| rows.apply(id, event)).collect::<Result<Vec<_>, _>>()
            });
            done.unwrap().pop().unwrap().after.state
        };
        assert!(matches!(failed(&mut rows, "did:plc:a"), State::RetryAt(_)));
        rows.set_policy(LedgerPolicy { attempts: 1, ..LedgerPolicy::default() });
        assert_eq!(failed(&mut rows, "did:plc:b"), State::Parked(Reason::AttemptsExhausted));
    }

    #[test]
    fn a_closed_ledger_leaves_no_wal_behind_and_what_is_undone_never_was() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state.db");
        let (policy, clock) = (LedgerPolicy::default(), Clock::fixed(1_700_000_000_000));
        let (mut rows, is_new) = Rows::open(&path, policy, clock, Chance::seeded(1)).unwrap();
        assert!(is_new && rows.data_id().unwrap().len() == 32);
        let position = Position { segment: 3, item: 4 };
        let positions = [("post".to_owned(), position), ("sink:x".to_owned(), position)];
        let settled = rows.transaction(|rows| {
            assert!(!rows.wants_sync);
            rows.settle(&positions)?;
            Ok(rows.wants_sync)
        });
        assert!(settled.unwrap() && !rows.wants_sync, "synced with its commit");
        let failed = rows.transaction(|rows| {
            assert!(rows.let_sink_go("sink:x")?);
            Err::<(), _>(StoreError::Config("x".to_owned()))
        });
        assert!(failed.is_err());
        assert_eq!(rows.queue_positions().unwrap(), HashMap::from(positions));
        assert!(rows.transaction(|rows| rows.let_sink_go("sink:x")).unwrap());
        assert!(!rows.transaction(|rows| rows.let_sink_go("sink:x")).unwrap());
        let wal = || std::fs::metadata(folder.path().join("state.db-wal")).unwrap().len();
        assert!(wal() > 0);
        rows.close().unwrap();
        assert_eq!(wal(), 0);
    }
}
