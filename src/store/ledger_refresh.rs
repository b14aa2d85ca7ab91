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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Clock;
    use crate::config::targets::Target;
    use crate::domain::account::Refreshed;
    use crate::domain::did::Did;
    use crate::domain::identity::Identity;
    use crate::domain::ledger::State;
    use crate::domain::verdict::{Cause, Failure, Reason};
    use crate::store::ledger_lists::Counts;
    use crate::store::ledger_rows::opened;
    use crate::store::ledger_work::{Batch, Leased};
    use crate::store::listing::Staged;

    const NOW: i64 = 1_700_000_000_000;

    struct Bench {
        folder: tempfile::TempDir,
        rows: Rows,
        clock: Clock,
    }

    fn name(n: u8) -> Did {
        let id: String = std::iter::repeat_n(char::from(b'a' + n), 24).collect();
        Did::parse(&format!("did:plc:{id}")).unwrap()
    }

    fn revision(n: u8, edition: u32, kept: Option<u64>) -> Revision {
        let (did, filter) = (name(n).to_string(), "f".to_owned());
        let exported = [("post".to_owned(), 9)].into();
        Revision { did, edition, filter, exported, kept, ..Revision::default() }
    }

    impl Bench {
        /// Five done accounts; no leaves were kept of the last.
        fn new() -> Self {
            let folder = tempfile::tempdir().unwrap();
            let clock = Clock::fixed(NOW);
            let mut rows = opened(folder.path(), clock.clone());
            let targets = (0..5).map(|n| Ok::<_, StoreError>(Target::Did(name(n))));
            let staged = Staged::read(folder.path(), targets, &|_| {}).unwrap().unwrap();
            staged.know(&mut rows, &|_| {}).unwrap().swap(&mut rows, &|_| {}).unwrap();
            let kept = |n: u8| (n < 4).then_some(u64::from(n) + 10);
            let revisions: Vec<Revision> = (0..5).map(|n| revision(n, 0, kept(n))).collect();
            rows.transaction(|rows| rows.apply_segment(1, &revisions)).unwrap();
            Self { folder, rows, clock }
        }

        fn refresh(&mut self, ids: &[i64]) -> u64 {
            self.rows.transaction(|rows| rows.refresh(ids)).unwrap()
        }

        /// Leases everybody who is on the way to the fetcher.
        fn fetching(&mut self) -> Vec<Leased> {
            let mut run = |batch| self.rows.transaction(|rows| rows.run_batch(&batch)).unwrap();
            let resolved = Event::Resolved(Identity {
                endpoint: "https://a.test".to_owned(),
                host: "a.test".to_owned(),
                key: "did:key:z".to_owned(),
                earlier_keys: Vec::new(),
                handle: None,
            });
            let leased = run(Batch { plc: 9, ..Batch::default() }).plc;
            let events = leased.iter().map(|it| (it.id, resolved.clone())).collect();
            let host = run(Batch { events, ..Batch::default() }).applied[0].after.host.unwrap();
            let fetch = run(Batch { hosts: vec![(host, 9)], ..Batch::default() }).fetch;
            fetch.into_iter().map(|(_, leased)| leased).collect()
        }

        fn apply(&mut self, id: i64, event: Event) {
            let applied = self.rows.transaction(|rows| rows.apply(AccountId(id), event)).unwrap();
            assert_eq!(applied.after.state, State::Done);
        }

        fn refreshed(&self) -> RefreshCounts {
            self.rows.run_counts().refresh
        }

        fn reader(&self) -> Reader {
            Reader::open(&self.folder.path().join("state.db")).unwrap()
        }
    }

    #[test]
    fn who_is_due_is_done_has_leaves_and_was_not_refreshed_since() {
        let mut bench = Bench::new();
        let reader = bench.reader();
        assert_eq!(bench.rows.done_without_leaves().unwrap(), 1);
        assert_eq!(reader.done_without_leaves().unwrap(), 1);
        assert_eq!(bench.rows.can_be_refreshed(0).unwrap(), [1, 2, 3, 4]);
        assert_eq!(bench.rows.can_be_refreshed(2).unwrap(), [3, 4]);
        assert_eq!(reader.due_for_refresh(1, NOW).unwrap(), [2, 3, 4]);
        assert!(reader.due_for_refresh(0, NOW - 1).unwrap().is_empty(), "exported since");
        assert_eq!((bench.refresh(&[1, 2]), bench.refresh(&[2])), (2, 0));
        assert_eq!(bench.rows.can_be_refreshed(0).unwrap(), [3, 4]);
        bench.rows.transaction(Rows::export_without_leaves_again).unwrap();
        let counts = Counts { queued: 3, done: 2, ..Counts::default() };
        assert_eq!(bench.rows.counts().unwrap(), counts);
        assert_eq!(bench.rows.done_without_leaves().unwrap(), 0);
        assert_eq!(reader.done_without_leaves().unwrap(), 0);
    }

    #[test]
    fn who_was_refreshed_is_due_again_since_then_and_a_refresh_that_was_dropped_was_none() {
        let mut bench = Bench::new();
        bench.refresh(&[1, 2]);
        let leased =
            bench.rows.transaction(|rows| rows.run_batch(&Batch { plc: 9, ..Batch::default() }));
        let asked: Vec<_> = leased.unwrap().plc.iter().map(|it| (it.id.0, it.refresh)).collect();
        assert_eq!(asked, [(1, None), (2, None)], "the directory is asked, and compares nothing");
        bench.clock.set_wall_ms(NOW + 10);
        bench.apply(2, Event::RefreshDropped);
        let events = vec![(AccountId(1), Event::GivenBack)];
        bench
            .rows
            .transaction(|rows| rows.run_batch(&Batch { events, ..Batch::default() }))
            .unwrap();
        assert_eq!(bench.fetching().len(), 1);
        bench.apply(1, Event::Unchanged);
        let due = |until_ms| bench.reader().due_for_refresh(0, until_ms).unwrap();
        assert_eq!((due(NOW + 9), due(NOW + 10)), (vec![2, 3, 4], vec![1, 2, 3, 4]));
    }

    #[test]
    fn what_comes_of_refreshes_is_counted_and_the_accounts_are_done_again() {
        let mut bench = Bench::new();
        let before = bench.reader().sums(&[]).unwrap();
        bench.refresh(&[1, 2, 3, 4]);
        let leased = bench.fetching();
        let kept: Vec<_> = leased.iter().map(|it| (it.id.0, it.edition, it.refresh)).collect();
        let of = |id: i64| (id, 1, Some(Some(id.cast_unsigned() + 9)));
        assert_eq!(kept, [1, 2, 3, 4].map(of));
        bench.apply(1, Event::Unchanged);
        let failure = Failure::new(Cause::Terminal(Reason::RepoTooLarge), None, "x");
        bench.apply(2, Event::Failed { failure, host_usable_ms: None });
        bench.apply(3, Event::WithoutLeaves);
        let queued = [("post".to_owned(), 2), (DELETED_LABEL.to_owned(), 3)].into();
        let refresh = Some(Refreshed { previous_rev: "3k".to_owned(), queued });
        let newer = Revision { refresh, ..revision(3, 1, Some(20)) };
        bench.rows.transaction(|rows| rows.apply_segment(2, &[newer])).unwrap();
        let counts = RefreshCounts {
            unchanged: 1,
            changed: 1,
            failed: 1,
            without_leaves: 1,
            records: 2,
            deleted: 3,
        };
        assert_eq!((bench.refreshed(), counts.ended()), (counts, 3));
        // Five exports, one of them of the refresh, and three that ended as they were.
        assert_eq!(bench.rows.run_counts().done, 6);
        assert_eq!(bench.rows.run_counts().ended(), 9);
        let all = Counts { done: 5, ..Counts::default() };
        assert_eq!(bench.rows.counts().unwrap(), all);
        assert_eq!(bench.reader().sums(&[]).unwrap().records, before.records);
        assert_eq!(bench.rows.kept(AccountId(4)).unwrap(), Some(20));
        assert_eq!(bench.rows.kept(AccountId(5)).unwrap(), None);
    }

    #[test]
    fn a_refresh_under_another_filter_is_dropped_and_counts_nothing() {
        let mut bench = Bench::new();
        bench.refresh(&[1, 2]);
        bench.rows.transaction(|rows| rows.drop_refreshes_of_another_filter("f")).unwrap();
        assert_eq!(bench.rows.counts().unwrap().queued, 2, "its own");
        bench.rows.transaction(|rows| rows.drop_refreshes_of_another_filter("g")).unwrap();
        assert_eq!(bench.rows.counts().unwrap().done, 5);
        assert_eq!(bench.refreshed(), RefreshCounts::default());
        assert_eq!(bench.reader().due_for_refresh(0, NOW).unwrap(), [1, 2, 3, 4]);
    }
}
