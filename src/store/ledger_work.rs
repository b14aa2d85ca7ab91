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
        let behind = params![key, last, i64::MAX, limit(count)];
        let mut ids: Vec<i64> = self.select(select, behind, |row| row.get(0))?;
        if ids.len() < count && last > 0 {
            let before = params![key, 0, last, limit(count - ids.len())];
            ids.extend(self.select(select, before, |row| row.get::<_, i64>(0))?);
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
