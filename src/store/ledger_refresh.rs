//! Refreshing done accounts, in the ledger's rows: who is due, what came of it, and when.
//!
//! ```text
//!  refreshed (id, at_ms)   when an account's last refresh ended; its export counts too, as `done_at_ms`
//! ```
//! An account can be refreshed if the leaves of its newest revision were kept. One that an earlier process has begun goes on;
//! under another filter it does not, because its rows and its leaves belong to the old one.

use rusqlite::{Row, params};
use serde::Serialize;

use crate::domain::account::{AccountId, Revision};
use crate::domain::ledger::{Effect, Event};
use crate::store::error::StoreError;
use crate::store::leaves::DELETED_LABEL;
use crate::store::ledger_lists::Reader;
use crate::store::ledger_rows::Rows;
use crate::store::tally::Kind;
use crate::telemetry;

/// Accounts put on their way in one transaction: at most about 50 ms of the writer.
pub const REFRESHED_AT_ONCE: usize = 2_000;

/// What came of refreshes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct RefreshCounts {
    /// Accounts whose host has the revision that is held.
    pub unchanged: u64,
    /// Accounts with a newer revision, which was compared and exported.
    pub changed: u64,
    /// Accounts that could not be refreshed; what is held of them stays.
    pub failed: u64,
    /// Accounts with a newer revision and nothing to compare it with.
    pub without_leaves: u64,
    /// Records that are new or changed.
    pub records: u64,
    /// Records that are gone.
    pub deleted: u64,
}

impl RefreshCounts {
    /// Accounts that ended as they were.
    #[must_use]
    pub const fn ended(&self) -> u64 {
        self.unchanged + self.failed + self.without_leaves
    }

    /// Counts an end. A revision is counted with [`RefreshCounts::exported`] too.
    pub(super) fn count(&mut self, kind: Kind) {
        match kind {
            Kind::Unchanged => self.unchanged += 1,
            Kind::Exported => self.changed += 1,
            Kind::WithoutLeaves => self.without_leaves += 1,
            Kind::RefreshDropped => {}
            _ => self.failed += 1,
        }
    }

    /// Counts the records of a refreshed revision.
    pub(super) fn exported(&mut self, revision: &Revision) {
        if let Some(refresh) = &revision.refresh {
            self.records += revision.queued_total();
            self.deleted += refresh.queued(DELETED_LABEL);
        }
    }

    /// Tells them to whoever watches.
    pub(super) fn tell(&self) {
        let outcomes = [self.unchanged, self.changed, self.failed, self.without_leaves];
        for (outcome, accounts) in telemetry::REFRESH_OUTCOMES.into_iter().zip(outcomes) {
            if accounts > 0 {
                telemetry::refreshed(outcome, accounts);
            }
        }
        if self.deleted > 0 {
            telemetry::deleted(self.deleted);
        }
    }
}

/// Whose last refresh or export is no younger than `?2`, after the row `?1`.
const DUE: &str = "SELECT id FROM accounts LEFT JOIN refreshed USING (id)
     WHERE id > ?1 AND listed = 1 AND state = 5 AND ifnull(done_at_ms, 0) <= ?2 AND ifnull(at_ms, 0) <= ?2
         AND json_extract(revision, '$.kept') IS NOT NULL
     ORDER BY id LIMIT ?3";

/// Done, and nothing to compare a newer revision with.
const WITHOUT_LEAVES: &str =
    "listed = 1 AND state = 5 AND json_extract(revision, '$.kept') IS NULL";

impl Rows {
    /// Listed done accounts that cannot be refreshed, because no leaves of theirs were kept.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn done_without_leaves(&self) -> Result<u64, StoreError> {
        let select = format!("SELECT count(*) FROM accounts WHERE {WITHOUT_LEAVES}");
        self.one(&select, &[]).map(i64::cast_unsigned)
    }

    /// Puts those back to be exported again, whole.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn export_without_leaves_again(&mut self) -> Result<(), StoreError> {
        let select = format!("SELECT id FROM accounts WHERE {WITHOUT_LEAVES}");
        let ids: Vec<i64> = self.select(&select, [], |row| row.get(0))?;
        ids.iter().try_for_each(|id| self.apply(AccountId(*id), Event::Again).map(drop))
    }

    /// Some listed done accounts after the row `after` that can be refreshed.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn can_be_refreshed(&self, after: i64) -> Result<Vec<i64>, StoreError> {
        let limit = i64::try_from(REFRESHED_AT_ONCE).unwrap_or(i64::MAX);
        self.select(DUE, [after, i64::MAX, limit], |row| row.get(0))
    }

    /// Puts done accounts on their way to be refreshed; gives how many.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn refresh(&mut self, ids: &[i64]) -> Result<u64, StoreError> {
        let mut begun = 0;
        for id in ids {
            let applied = self.apply(AccountId(*id), Event::Refresh)?;
            begun += u64::from(applied.effect != Effect::Nothing);
        }
        Ok(begun)
    }

    /// Ends refreshes that were begun under another filter than `hash`, as if they had not been.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn drop_refreshes_of_another_filter(&mut self, hash: &str) -> Result<(), StoreError> {
        let select =
            "SELECT id FROM accounts WHERE state < 5 AND filter IS NOT NULL AND filter != ?1";
        let ids: Vec<i64> = self.select(select, [hash], |row| row.get(0))?;
        ids.iter().try_for_each(|id| self.apply(AccountId(*id), Event::RefreshDropped).map(drop))
    }

    /// Leaves that were kept of an account's newest revision, if any were.
    pub(super) fn kept(&self, id: AccountId) -> Result<Option<u64>, StoreError> {
        let select = "SELECT json_extract(revision, '$.kept') FROM accounts WHERE id = ?1";
        let kept: Option<i64> = self.one_row(select, [id.0], |row| row.get(0))?;
        Ok(kept.map(i64::cast_unsigned))
    }

    /// A refresh has ended, and the account is done again: it is counted and summed up, unless a newer revision is what is summed up.
    pub(super) fn refresh_ended(
        &mut self,
        id: AccountId,
        kind: Kind,
        listed: bool,
    ) -> Result<(), StoreError> {
        if listed && kind != Kind::Exported {
            self.sum_row(id.0, 1)?;
        }
        self.run[1].refresh.count(kind);
        self.tally.refreshed(kind);
        if kind == Kind::RefreshDropped {
            return Ok(());
        }
        let upsert =
            "INSERT INTO refreshed VALUES (?1, ?2) ON CONFLICT (id) DO UPDATE SET at_ms = ?2";
        self.execute(upsert, params![id.0, self.now_ms()]).map(drop)
    }
}

impl Reader {
    /// Some listed done accounts after the row `after` whose last refresh or export ended at `until_ms` or before.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn due_for_refresh(&self, after: i64, until_ms: i64) -> Result<Vec<i64>, StoreError> {
        let limit = i64::try_from(REFRESHED_AT_ONCE).unwrap_or(i64::MAX);
        self.rows(DUE, [after, until_ms, limit], |row: &Row<'_>| row.get(0))
    }

    /// Listed done accounts that cannot be refreshed, because no leaves of theirs were kept.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn done_without_leaves(&self) -> Result<u64, StoreError> {
        let select = format!("SELECT count(*) FROM accounts WHERE {WITHOUT_LEAVES}");
        let counts: Vec<i64> = self.rows(&select, [], |row| row.get(0))?;
        Ok(counts.first().copied().unwrap_or(0).cast_unsigned())
    }
}
