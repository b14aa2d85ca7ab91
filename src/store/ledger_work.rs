//! What scheduling asks of the ledger's rows: one batch of events and leases, backlogs, and recovery. A lease is an event like
//! any other; it is on disk when its job's reply is given.

use rusqlite::params;

use crate::domain::account::AccountId;
use crate::domain::identity::Identity;
use crate::domain::ledger::{Event, State};
use crate::store::error::StoreError;
use crate::store::ledger_lists::Counts;
use crate::store::ledger_rows::{Applied, Queue, Rows, RunCounts};

/// `retry.max` is at most 30 days; nothing else waits as long.
const WAIT_MS_MAX: i64 = 31 * 86_400_000;

/// Accounts that become due in one batch, so that a batch stays short.
const PROMOTED_MAX: i64 = 1_000;

/// Accounts of one host whose identities are found to have outlived the cache in one batch, for the same reason.
const OUTLIVED_MAX: usize = 256;

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
    /// It is refreshed, and so many leaves of that revision were kept, if any were.
    pub refresh: Option<Option<u64>>,
    /// Its earlier signing keys are wanted too.
    pub wants_earlier_keys: bool,
}

/// What the scheduler wants written and leased, in one transaction.
#[derive(Clone, Debug, Default)]
pub struct Batch {
    /// What happened, in order.
    pub events: Vec<(AccountId, Event)>,
    /// Hosts (`None`: the directory) whose patience is over, and what that means for their waiting accounts.
    pub patience: Vec<(Option<i64>, Event)>,
    /// How long hosts have given no usable answer, milliseconds.
    pub silences: Vec<(i64, i64)>,
    /// Make what is due available.
    pub promote: bool,
    /// Accounts of `did:plc` to lease for resolution.
    pub plc: usize,
    /// Accounts of `did:web` to lease for resolution.
    pub web: usize,
    /// Hosts and how many of their ready accounts to lease.
    pub hosts: Vec<(i64, usize)>,
    /// Lease one account that runs alone.
    pub alone: bool,
    /// Look at every host's backlog anew, after all of the above.
    pub hosts_anew: bool,
}

impl Batch {
    /// Whether there is nothing to write and nothing to lease.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.events.is_empty()
            && self.patience.is_empty()
            && self.silences.is_empty()
            && self.hosts.is_empty()
            && !self.promote
            && !self.alone
            && !self.hosts_anew
            && self.plc + self.web == 0
    }
}

/// What became of a batch.
#[derive(Clone, Debug, Default)]
pub struct Batched {
    /// Every account that was touched, in order.
    pub applied: Vec<Applied>,
    /// Leased for resolution, `did:plc`.
    pub plc: Vec<Leased>,
    /// Leased for resolution, `did:web`.
    pub web: Vec<Leased>,
    /// Leased for fetching, with their host.
    pub fetch: Vec<(i64, Leased)>,
    /// Hosts that were asked for more than they have ready.
    pub dry: Vec<i64>,
    /// Every host with ready accounts or a silence, if it was asked for.
    pub hosts_anew: Option<Vec<HostRow>>,
    /// Leased to run alone; with a host if it goes to the fetcher.
    pub alone: Option<(Option<i64>, Leased)>,
    /// When the next account is due, ledger milliseconds.
    pub next_due_ms: Option<i64>,
    /// Listed accounts by state.
    pub counts: Counts,
    /// What this process has decided, this batch included.
    pub run: RunCounts,
}

/// A host as the ledger knows it at the start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostRow {
    /// Its row.
    pub id: i64,
    /// Its name.
    pub name: String,
    /// Ready accounts, those that run alone left out.
    pub ready: u64,
    /// Accounts that are to be fetched there besides: those that run alone, are being fetched or wait for their retry.
    pub others: u64,
    /// How long it has given no usable answer, milliseconds.
    pub silence_ms: i64,
}

impl Rows {
    /// Runs a batch.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn run_batch(&mut self, batch: &Batch) -> Result<Batched, StoreError> {
        let mut done = Batched::default();
        for (id, event) in &batch.events {
            done.applied.push(self.apply(*id, event.clone())?);
        }
        for (host, event) in &batch.patience {
            self.end_patience(*host, event, &mut done.applied)?;
        }
        for (host, silence_ms) in &batch.silences {
            self.execute("UPDATE hosts SET silence_ms = ?2 WHERE id = ?1", [host, silence_ms])?;
        }
        if batch.promote {
            self.promote_due(&mut done.applied)?;
        }
        done.plc = self.lease_queued(false, batch.plc, &mut done.applied)?;
        done.web = self.lease_queued(true, batch.web, &mut done.applied)?;
        for (host, count) in &batch.hosts {
            let (leased, is_dry) = self.lease_ready(*host, *count, &mut done.applied)?;
            done.fetch.extend(leased.into_iter().map(|leased| (*host, leased)));
            done.dry.extend(is_dry.then_some(*host));
        }
        if batch.alone {
            done.alone = self.lease_alone(&mut done.applied)?;
        }
        let next = "SELECT min(due_ms) FROM accounts WHERE listed = 1 AND state = 4";
        done.next_due_ms = self.one(next, &[])?;
        if batch.hosts_anew {
            done.hosts_anew = Some(self.host_rows()?);
        }
        self.write_totals()?;
        (done.counts, done.run) = (self.counts()?, self.run_counts());
        Ok(done)
    }

    fn lease_queued(
        &mut self,
        web: bool,
        count: usize,
        applied: &mut Vec<Applied>,
    ) -> Result<Vec<Leased>, StoreError> {
        if count == 0 {
            return Ok(Vec::new());
        }
        let ids = self.in_turn(Queue::Unresolved { web }, count)?;
        self.lease_each(&ids, &Event::LeasedToResolve, applied)
    }

    /// The next accounts of a queue: those behind the last one that was leased, then from the beginning. One that comes back
    /// again and again, refused each time, thus takes no other's turn.
    fn in_turn(&mut self, queue: Queue, count: usize) -> Result<Vec<i64>, StoreError> {
        let (select, key) = match queue {
            Queue::Unresolved { web } => (
                "SELECT id FROM accounts WHERE listed = 1 AND state = 0 AND web = ?1 AND alone = 0
                     AND id > ?2 AND id <= ?3 ORDER BY id LIMIT ?4",
                i64::from(web),
            ),
            Queue::Host(host) => (
                "SELECT id FROM accounts WHERE listed = 1 AND state = 2 AND host = ?1 AND alone = 0
                     AND id > ?2 AND id <= ?3 ORDER BY id LIMIT ?4",
                host,
            ),
        };
        let last = self.turns.get(&queue).copied().unwrap_or(0);
        let mut ids: Vec<i64> = Vec::new();
        for (after, up_to) in [(last, i64::MAX), (0, last)] {
            let some = params![key, after, up_to, limit(count - ids.len())];
            ids.extend(self.select(select, some, |row| row.get::<_, i64>(0))?);
        }
        if let Some(last) = ids.last() {
            self.turns.insert(queue, *last);
        }
        Ok(ids)
    }

    /// Leases so many ready accounts of a host; an identity that outlived the cache sends its account back to be resolved, and
    /// the next one is tried. Says whether nothing else is ready there.
    fn lease_ready(
        &mut self,
        host: i64,
        count: usize,
        applied: &mut Vec<Applied>,
    ) -> Result<(Vec<Leased>, bool), StoreError> {
        let (mut leased, mut tried) = (Vec::new(), 0);
        while leased.len() < count && tried < count + OUTLIVED_MAX {
            let wanted = count - leased.len();
            let ids = self.in_turn(Queue::Host(host), wanted)?;
            let event = Event::LeasedToFetch { alone: false };
            leased.extend(self.lease_each(&ids, &event, applied)?);
            if ids.len() < wanted {
                return Ok((leased, true));
            }
            tried += ids.len();
        }
        Ok((leased, false))
    }

    fn lease_alone(
        &mut self,
        applied: &mut Vec<Applied>,
    ) -> Result<Option<(Option<i64>, Leased)>, StoreError> {
        let ready = "SELECT id, host FROM accounts WHERE listed = 1 AND state = 2 AND alone = 1 ORDER BY id LIMIT 1";
        let found: Vec<(i64, Option<i64>)> =
            self.select(ready, [], |row| Ok((row.get(0)?, row.get(1)?)))?;
        for (id, host) in found {
            let event = Event::LeasedToFetch { alone: true };
            if let Some(leased) = self.lease(AccountId(id), event, applied)? {
                return Ok(Some((host, leased)));
            }
        }
        let queued = "SELECT id FROM accounts WHERE listed = 1 AND state = 0 AND alone = 1 ORDER BY id LIMIT 1";
        let ids: Vec<i64> = self.select(queued, [], |row| row.get(0))?;
        let leased = self.lease_each(&ids, &Event::LeasedToResolve, applied)?.pop();
        Ok(leased.map(|leased| (None, leased)))
    }

    fn lease_each(
        &mut self,
        ids: &[i64],
        event: &Event,
        applied: &mut Vec<Applied>,
    ) -> Result<Vec<Leased>, StoreError> {
        let mut all = Vec::with_capacity(ids.len());
        for id in ids {
            all.extend(self.lease(AccountId(*id), event.clone(), applied)?);
        }
        Ok(all)
    }

    fn lease(
        &mut self,
        id: AccountId,
        event: Event,
        applied: &mut Vec<Applied>,
    ) -> Result<Option<Leased>, StoreError> {
        let is_fetch = matches!(event, Event::LeasedToFetch { .. });
        let moved = self.apply(id, event)?;
        let is_leased = matches!(moved.after.state, State::Resolving | State::Fetching);
        applied.push(moved);
        if !is_leased {
            return Ok(None);
        }
        let select = "SELECT did, edition, rev, rules FROM accounts WHERE id = ?1";
        let row = self.one_row(select, [id.0], |row| {
            Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get::<_, Option<String>>(3)?))
        })?;
        let (did, edition, rev, rules) = row;
        let account = self.rules(id, rules.as_deref())?;
        let wants_earlier_keys = account.wants_earlier_keys();
        let refresh = if account.refreshing && is_fetch { Some(self.kept(id)?) } else { None };
        let identity = account.identity.filter(|_| is_fetch);
        Ok(Some(Leased { id, did, identity, edition, rev, refresh, wants_earlier_keys }))
    }

    /// Applies `event` to all that was leased: [`Event::ProcessDied`] after a crash, [`Event::GivenBack`] at a clean end.
    /// Gives how many there were.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn end_leases(&mut self, event: &Event) -> Result<usize, StoreError> {
        let select = "SELECT id FROM accounts WHERE state IN (1, 3)";
        let ids: Vec<i64> = self.select(select, [], |row| row.get(0))?;
        ids.iter().try_for_each(|id| self.apply(AccountId(*id), event.clone()).map(drop))?;
        Ok(ids.len())
    }

    /// Makes due what waits for longer than any setting allows: it was written while the wall clock was far ahead.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn end_absurd_waits(&mut self) -> Result<(), StoreError> {
        let now_ms = self.now_ms();
        let update =
            "UPDATE accounts SET due_ms = ?1 WHERE listed = 1 AND state = 4 AND due_ms > ?2";
        self.execute(update, [now_ms, now_ms.saturating_add(WAIT_MS_MAX)]).map(drop)
    }

    fn promote_due(&mut self, applied: &mut Vec<Applied>) -> Result<(), StoreError> {
        let due = "SELECT id FROM accounts WHERE listed = 1 AND state = 4 AND due_ms <= ?1 ORDER BY due_ms LIMIT ?2";
        let ids: Vec<i64> = self.select(due, [self.now_ms(), PROMOTED_MAX], |row| row.get(0))?;
        for id in ids {
            applied.push(self.apply(AccountId(id), Event::Due)?);
        }
        Ok(())
    }

    /// Ends the waiting accounts of a host whose patience is over; of the directory, those that wait to be resolved.
    fn end_patience(
        &mut self,
        host: Option<i64>,
        event: &Event,
        applied: &mut Vec<Applied>,
    ) -> Result<(), StoreError> {
        let ids: Vec<i64> = match host {
            Some(host) => self.select(
                "SELECT id FROM accounts WHERE listed = 1 AND host = ?1 AND state IN (2, 4)",
                [host],
                |row| row.get(0),
            )?,
            None => self.select(
                "SELECT id FROM accounts WHERE listed = 1 AND web = 0 AND (state = 0 OR (state = 4 AND host IS NULL))",
                [],
                |row| row.get(0),
            )?,
        };
        for id in ids {
            applied.push(self.apply(AccountId(id), event.clone())?);
        }
        Ok(())
    }

    /// Hosts where something is to be fetched, now or later, or that have a silence.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn host_rows(&self) -> Result<Vec<HostRow>, StoreError> {
        // Each part by an index of its own: the table itself is never scanned.
        let select = "WITH later AS (
                          SELECT host FROM accounts WHERE listed = 1 AND state = 4 AND host IS NOT NULL
                          UNION ALL
                          SELECT host FROM accounts WHERE listed = 1 AND state IN (1, 3) AND state = 3),
                      counted AS (SELECT host, count(*) AS n FROM later GROUP BY host)
                      SELECT id, name, silence_ms,
                          (SELECT count(*) FROM accounts
                           WHERE listed = 1 AND state = 2 AND host = hosts.id AND alone = 0) AS ready,
                          (SELECT count(*) FROM accounts
                           WHERE listed = 1 AND state = 2 AND host = hosts.id AND alone = 1)
                              + ifnull(counted.n, 0) AS others
                      FROM hosts LEFT JOIN counted ON counted.host = hosts.id
                      WHERE ready > 0 OR others > 0 OR silence_ms > 0";
        self.select(select, [], |row| {
            let number = |at| row.get::<_, i64>(at).map(i64::cast_unsigned);
            let (id, name, silence_ms) = (row.get(0)?, row.get(1)?, row.get(2)?);
            Ok(HostRow { id, name, silence_ms, ready: number(3)?, others: number(4)? })
        })
    }
}

fn limit(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Clock;
    use crate::config::targets::Target;
    use crate::domain::did::Did;
    use crate::domain::ledger::LedgerPolicy;
    use crate::domain::verdict::{LastError, Reason};
    use crate::store::ledger_rows::opened;
    use crate::store::listing::Staged;

    const NOW_MS: i64 = 1_700_000_000_000;

    struct Bench {
        rows: Rows,
        clock: Clock,
        _folder: tempfile::TempDir,
    }

    impl Bench {
        /// So many accounts of `did:plc`, in rows from 1 on, and one of `did:web` in the row behind them.
        fn new(plc: i64) -> Self {
            let folder = tempfile::tempdir().unwrap();
            let clock = Clock::fixed(NOW_MS);
            let mut rows = opened(folder.path(), clock.clone());
            let letter = |n: i64| char::from(b'a' + u8::try_from(n % 20).unwrap());
            let name =
                |n| format!("did:plc:{}{}", letter(n / 20), letter(n).to_string().repeat(23));
            let names = (0..plc).map(name).chain(["did:web:a.test".to_owned()]);
            let targets =
                names.map(|it| Ok::<_, StoreError>(Target::Did(Did::parse(&it).unwrap())));
            let staged = Staged::read(folder.path(), targets, &|_| {}).unwrap().unwrap();
            staged.know(&mut rows, &|_| {}).unwrap().swap(&mut rows, &|_| {}).unwrap();
            Self { rows, clock, _folder: folder }
        }

        fn run(&mut self, batch: Batch) -> Batched {
            self.rows.transaction(|rows| rows.run_batch(&batch)).unwrap()
        }

        /// Leases so many of `did:plc` and brings them to this host, whose row it gives.
        fn ready(&mut self, host: &str, count: usize) -> i64 {
            let leased = self.run(Batch { plc: count, ..Batch::default() }).plc;
            assert_eq!(leased.len(), count);
            let events = leased.iter().map(|it| (it.id, resolved(host))).collect();
            self.run(Batch { events, ..Batch::default() }).applied[0].after.host.unwrap()
        }

        fn fetch(&mut self, host: i64, count: usize) -> Batched {
            self.run(Batch { hosts: vec![(host, count)], ..Batch::default() })
        }

        fn host_rows(&mut self) -> Vec<HostRow> {
            self.run(Batch { hosts_anew: true, ..Batch::default() }).hosts_anew.unwrap()
        }
    }

    fn resolved(host: &str) -> Event {
        Event::Resolved(Identity {
            endpoint: format!("https://{host}"),
            host: host.to_owned(),
            key: "did:key:z".to_owned(),
            earlier_keys: Vec::new(),
            handle: None,
        })
    }

    fn ids(leased: &[Leased]) -> Vec<i64> {
        leased.iter().map(|it| it.id.0).collect()
    }

    fn fetched(done: &Batched) -> Vec<i64> {
        done.fetch.iter().map(|(_, leased)| leased.id.0).collect()
    }

    #[test]
    fn a_batch_is_empty_without_anything_to_write_or_lease() {
        assert!(Batch::default().is_empty());
        let id = AccountId(1);
        let each = [
            Batch { events: vec![(id, Event::Due)], ..Batch::default() },
            Batch { patience: vec![(None, Event::Due)], ..Batch::default() },
            Batch { silences: vec![(1, 0)], ..Batch::default() },
            Batch { hosts: vec![(1, 0)], ..Batch::default() },
            Batch { promote: true, ..Batch::default() },
            Batch { alone: true, ..Batch::default() },
            Batch { hosts_anew: true, ..Batch::default() },
            Batch { plc: 1, ..Batch::default() },
            Batch { web: 1, ..Batch::default() },
            Batch { plc: 1, web: 1, ..Batch::default() },
        ];
        for batch in each {
            assert!(!batch.is_empty(), "{batch:?}");
        }
    }

    #[test]
    fn accounts_are_leased_in_turn_and_those_that_come_back_take_no_others_turn() {
        let mut bench = Bench::new(5);
        let take = |bench: &mut Bench, count| bench.run(Batch { plc: count, ..Batch::default() });
        assert_eq!(ids(&take(&mut bench, 2).plc), [1, 2]);
        // Given back at once: the others come first, then they, each once.
        let events = [1, 2].map(|id| (AccountId(id), Event::GivenBack)).to_vec();
        bench.run(Batch { events, ..Batch::default() });
        assert_eq!(ids(&take(&mut bench, 2).plc), [3, 4]);
        assert_eq!(ids(&take(&mut bench, 2).plc), [5, 1]);
        assert_eq!(ids(&take(&mut bench, 9).plc), [2]);
        let done = bench.run(Batch { plc: 9, web: 9, ..Batch::default() });
        assert_eq!((ids(&done.plc), ids(&done.web)), (vec![], vec![6]));
        assert_eq!(
            (done.web[0].did.as_str(), done.web[0].identity.as_ref()),
            ("did:web:a.test", None)
        );
        assert_eq!((done.counts.queued, done.run.ended()), (0, 0));
        let moved: Vec<_> = done.applied.iter().map(|it| (it.id.0, it.after.state)).collect();
        assert_eq!(moved, [(6, State::Resolving)]);
    }

    #[test]
    fn a_host_gives_what_it_has_ready_and_is_dry_once_it_has_no_more() {
        let mut bench = Bench::new(6);
        let host = bench.ready("a.test", 5);
        let other = bench.ready("b.test", 1);
        let done = bench.fetch(host, 2);
        assert_eq!((fetched(&done), done.dry), (vec![1, 2], vec![]));
        assert!(done.fetch.iter().all(|(at, _)| *at == host));
        assert_eq!(done.fetch[0].1.identity.as_ref().unwrap().host, "a.test");
        assert!(done.fetch.iter().all(|(_, leased)| leased.refresh.is_none()), "a first fetch");
        // As many as there are: that nothing is left is only known of one that has less.
        let done = bench.fetch(host, 3);
        assert_eq!((fetched(&done), done.dry), (vec![3, 4, 5], vec![]));
        let done = bench.fetch(host, 1);
        assert_eq!((fetched(&done), done.dry), (vec![], vec![host]));
        let done = bench.fetch(other, 2);
        assert_eq!((fetched(&done), done.dry), (vec![6], vec![other]));
        // At the end of the process they all go back to where they were.
        let ended = bench.rows.transaction(|rows| rows.end_leases(&Event::GivenBack)).unwrap();
        assert_eq!(ended, 6);
        assert_eq!(fetched(&bench.fetch(host, 9)), [1, 2, 3, 4, 5]);
    }

    #[test]
    fn identities_that_outlived_the_cache_are_passed_over_up_to_a_bound() {
        let old = i64::try_from(OUTLIVED_MAX).unwrap();
        let mut bench = Bench::new(old + 10);
        let count = OUTLIVED_MAX + 3;
        let host = bench.ready("a.test", count);
        let ttl = LedgerPolicy::default().cache_ttl;
        bench.clock.set_wall_ms(NOW_MS + i64::try_from(ttl.as_millis()).unwrap());
        assert_eq!(bench.ready("a.test", 4), host);
        // Two leases, and as many as may be tried beside: all of them are old, and one more is.
        let done = bench.fetch(host, 2);
        assert_eq!((fetched(&done), done.dry), (vec![], vec![]));
        assert_eq!(done.applied.len(), OUTLIVED_MAX + 2);
        assert!(done.applied.iter().all(|it| it.after.state == State::Queued));
        // The last old one, and those that are young, in one batch.
        let done = bench.fetch(host, 3);
        assert_eq!((fetched(&done), done.dry), (vec![old + 4, old + 5, old + 6], vec![]));
        let done = bench.fetch(host, 3);
        assert_eq!((fetched(&done), done.dry), (vec![old + 7], vec![host]));
    }

    #[test]
    fn who_runs_alone_is_leased_alone_wherever_it_stands() {
        let mut bench = Bench::new(3);
        let nobody = bench.run(Batch { alone: true, ..Batch::default() });
        assert_eq!((nobody.alone, nobody.applied), (None, Vec::new()));
        let host = bench.ready("a.test", 3);
        assert_eq!(fetched(&bench.fetch(host, 2)), [1, 2]);
        let events =
            vec![(AccountId(1), Event::TooLargeForNow), (AccountId(2), Event::TooLargeForNow)];
        bench.run(Batch { events, ..Batch::default() });
        let row = |ready, others, silence_ms| {
            let name = "a.test".to_owned();
            HostRow { id: host, name, ready, others, silence_ms }
        };
        assert_eq!(bench.host_rows(), [row(1, 2, 0)]);
        assert_eq!(fetched(&bench.fetch(host, 9)), [3], "the others are not leased beside it");
        let (at, leased) = bench.run(Batch { alone: true, ..Batch::default() }).alone.unwrap();
        assert_eq!((at, leased.id, leased.edition), (Some(host), AccountId(1), 0));
        assert_eq!(leased.identity.unwrap().host, "a.test");
        // Its identity has outlived the cache: it is asked for anew, alone too.
        let ttl = LedgerPolicy::default().cache_ttl;
        bench.clock.set_wall_ms(NOW_MS + i64::try_from(ttl.as_millis()).unwrap());
        let (at, leased) = bench.run(Batch { alone: true, ..Batch::default() }).alone.unwrap();
        assert_eq!((at, leased.id, leased.identity), (None, AccountId(2), None));
        assert_eq!(bench.host_rows(), [row(0, 2, 0)], "two are being fetched");
    }

    #[test]
    fn what_waits_comes_back_when_it_is_due_and_nothing_waits_beyond_any_setting() {
        let mut bench = Bench::new(3);
        let host = bench.ready("a.test", 3);
        bench.fetch(host, 3);
        let far = NOW_MS + WAIT_MS_MAX;
        let at = [NOW_MS + 10, far, far + 1];
        let events = (1..).zip(at).map(|(id, at)| (AccountId(id), Event::NotBefore(at)));
        let done = bench.run(Batch { events: events.collect(), ..Batch::default() });
        assert_eq!(done.next_due_ms, Some(at[0]));
        let promoted = |bench: &mut Bench| {
            let done = bench.run(Batch { promote: true, ..Batch::default() });
            (done.applied.iter().map(|it| it.id.0).collect::<Vec<_>>(), done.next_due_ms)
        };
        bench.clock.set_wall_ms(at[0] - 1);
        assert_eq!(promoted(&mut bench), (vec![], Some(at[0])));
        bench.clock.set_wall_ms(NOW_MS);
        bench.rows.transaction(Rows::end_absurd_waits).unwrap();
        assert_eq!(promoted(&mut bench), (vec![3], Some(at[0])));
        bench.clock.set_wall_ms(at[0]);
        assert_eq!(promoted(&mut bench), (vec![1], Some(far)));
        let silences = vec![(host, 70)];
        bench.run(Batch { silences, ..Batch::default() });
        let rows = bench.host_rows();
        assert_eq!((rows[0].ready, rows[0].others, rows[0].silence_ms), (2, 1, 70));
        assert_eq!(WAIT_MS_MAX, 31 * 24 * 3_600_000);
    }

    #[test]
    fn the_end_of_patience_is_for_those_who_wait_for_that_host_or_for_the_directory() {
        let mut bench = Bench::new(5);
        let host = bench.ready("a.test", 2);
        bench.ready("b.test", 1);
        let event = |reason| Event::PatienceEnded {
            reason,
            last_error: Some(LastError::Timeout),
            detail: String::new(),
        };
        let parked = |bench: &mut Bench, host, reason| {
            let patience = vec![(host, event(reason))];
            let done = bench.run(Batch { patience, ..Batch::default() });
            assert!(done.applied.iter().all(|it| it.after.state == State::Parked(reason)));
            done.applied.iter().map(|it| it.id.0).collect::<Vec<_>>()
        };
        assert_eq!(parked(&mut bench, Some(host), Reason::HostUnavailable), [1, 2]);
        // Neither who has a host, nor whom another directory tells.
        assert_eq!(parked(&mut bench, None, Reason::DirectoryUnavailable), [4, 5]);
    }
}
