//! What scheduling asks of the ledger's rows: leases, backlogs, what is due, and recovery. A lease is an event like any other;
//! it is on disk when its job's reply is given.

use rusqlite::params;

use crate::domain::account::AccountId;
use crate::domain::identity::Identity;
use crate::domain::ledger::{Account, Event, State};
use crate::store::error::StoreError;
use crate::store::ledger_rows::{Applied, Rows};

/// A leased account.
#[derive(Clone, Debug, PartialEq)]
pub struct Leased {
    /// Its row.
    pub id: AccountId,
    /// Its DID.
    pub did: String,
    /// Its identity, if it was leased for fetching.
    pub identity: Option<Identity>,
    /// How often it was exported.
    pub edition: u32,
    /// Its newest exported revision.
    pub rev: Option<String>,
}

impl Rows {
    /// Leases up to `count` queued accounts for resolution; those that run alone only if `alone`.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn lease_queued(&mut self, count: usize, alone: bool) -> Result<Vec<Leased>, StoreError> {
        let select = "SELECT id FROM accounts WHERE listed = 1 AND state = 0 AND alone = ?1 ORDER BY id LIMIT ?2";
        let limit = i64::try_from(count).unwrap_or(i64::MAX);
        let ids: Vec<i64> = self.select(select, params![alone, limit], |row| row.get(0))?;
        ids.into_iter()
            .map(|id| self.lease(id, Event::LeasedToResolve))
            .filter_map(Result::transpose)
            .collect()
    }

    /// Leases up to `count` ready accounts of `host` for fetching; those that run alone only if `alone`.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn lease_ready(
        &mut self,
        host: i64,
        count: usize,
        alone: bool,
    ) -> Result<Vec<Leased>, StoreError> {
        let select =
            "SELECT id FROM accounts WHERE listed = 1 AND state = 2 AND host = ?1 AND alone = ?2
                      ORDER BY id LIMIT ?3";
        let limit = i64::try_from(count).unwrap_or(i64::MAX);
        let ids: Vec<i64> = self.select(select, params![host, alone, limit], |row| row.get(0))?;
        let event = Event::LeasedToFetch { alone };
        ids.into_iter()
            .map(|id| self.lease(id, event.clone()))
            .filter_map(Result::transpose)
            .collect()
    }

    fn lease(&mut self, id: i64, event: Event) -> Result<Option<Leased>, StoreError> {
        let is_fetch = matches!(event, Event::LeasedToFetch { .. });
        let applied = self.apply(AccountId(id), event)?;
        if !matches!(applied.state, State::Resolving | State::Fetching) {
            return Ok(None);
        }
        let select = "SELECT did, edition, rev, rules FROM accounts WHERE id = ?1";
        let leased = self.connection().query_row(select, [id], |row| {
            let rules: String = row.get(3)?;
            let account: Account = serde_json::from_str(&rules).unwrap_or_default();
            let identity = account.identity.filter(|_| is_fetch);
            let (did, edition, rev) = (row.get(0)?, row.get(1)?, row.get(2)?);
            Ok(Leased { id: AccountId(id), did, identity, edition, rev })
        });
        leased.map(Some).map_err(|error| self.failed(error))
    }

    /// Gives back what was leased when the process died; gives how many.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn recover(&mut self) -> Result<usize, StoreError> {
        let ids: Vec<i64> =
            self.select("SELECT id FROM accounts WHERE state IN (1, 3)", [], |row| row.get(0))?;
        ids.iter().try_for_each(|id| self.apply(AccountId(*id), Event::ProcessDied).map(drop))?;
        Ok(ids.len())
    }

    /// Makes what is due available; gives when the next is, in ledger milliseconds.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn promote_due(&mut self) -> Result<(Vec<Applied>, Option<i64>), StoreError> {
        let due = "SELECT id FROM accounts WHERE listed = 1 AND state = 4 AND due_ms <= ?1 ORDER BY due_ms LIMIT 1000";
        let ids: Vec<i64> = self.select(due, [self.now_ms()], |row| row.get(0))?;
        let promoted: Result<Vec<Applied>, _> =
            ids.into_iter().map(|id| self.apply(AccountId(id), Event::Due)).collect();
        let next = "SELECT min(due_ms) FROM accounts WHERE listed = 1 AND state = 4";
        let next = self.connection().query_row(next, [], |row| row.get(0));
        Ok((promoted?, next.map_err(|error| self.failed(error))?))
    }

    /// Ends the waiting accounts of a host (or, without one, of the directory) whose patience is over.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn end_patience(&mut self, host: Option<i64>, event: &Event) -> Result<usize, StoreError> {
        let of_host = "SELECT id FROM accounts WHERE listed = 1 AND host = ?1 AND state IN (2, 4)";
        let of_directory =
            "SELECT id FROM accounts WHERE listed = 1 AND state IN (0, 4) AND host IS ?1";
        let select = if host.is_some() { of_host } else { of_directory };
        let ids: Vec<i64> = self.select(select, params![host], |row| row.get(0))?;
        ids.iter().try_for_each(|id| self.apply(AccountId(*id), event.clone()).map(drop))?;
        Ok(ids.len())
    }

    /// Hosts with ready accounts: row, name, how many, how many of them run alone.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn backlog(&self) -> Result<Vec<(i64, String, u64, u64)>, StoreError> {
        let select =
            "SELECT host, name, count(*), sum(alone) FROM accounts JOIN hosts ON hosts.id = host
                      WHERE listed = 1 AND state = 2 GROUP BY host";
        self.select(select, [], |row| {
            let count = |at| row.get::<_, i64>(at).map(i64::cast_unsigned);
            Ok((row.get(0)?, row.get(1)?, count(2)?, count(3)?))
        })
    }
}
