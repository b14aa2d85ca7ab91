//! Ledgers for the simulation: one in memory with the real rules of an account, and the real rows over SQLite.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use skyfill::clock::Clock;
use skyfill::config::targets::Target;
use skyfill::domain::account::AccountId;
use skyfill::domain::did::Did;
use skyfill::domain::identity::Identity;
use skyfill::domain::ledger::{Account, Event, LedgerPolicy, Moment, State};
use skyfill::seed::Chance;
use skyfill::store::error::StoreError;
use skyfill::store::ledger_lists::Counts;
use skyfill::store::ledger_rows::{Applied, Place, Rows, RunCounts};
use skyfill::store::ledger_work::{Batch, Batched, HostRow, Leased};
use skyfill::store::listing::Staged;

/// What the simulation wants of a ledger.
pub trait Books {
    fn run(&mut self, batch: &Batch, wall_ms: i64) -> Batched;
    /// An account was applied from the journal.
    fn exported(&mut self, id: AccountId, wall_ms: i64);
    fn host_rows(&mut self) -> Vec<HostRow>;
    /// Where an account stands.
    fn state(&self, id: AccountId) -> Account;
}

/// The DID of account `number`, which is its row in both ledgers.
pub fn did(number: usize) -> String {
    let alphabet = b"abcdefghijklmnopqrstuvwxyz234567";
    let id: String =
        (0..24).map(|at| char::from(alphabet[(number >> (5 * at.min(12))) & 31])).collect();
    format!("did:plc:{id}")
}

/// The identity of an account on host `host`, whose row is one more.
pub fn identity(host: usize) -> Identity {
    let name = format!("h{host}.example");
    let endpoint = format!("https://{name}");
    Identity { endpoint, host: name, key: String::new(), earlier_keys: Vec::new(), handle: None }
}

/// In memory: rules and order as in the rows, without SQL.
pub struct Memory {
    accounts: Vec<Account>,
    hosts: Vec<Option<i64>>,
    policy: LedgerPolicy,
    chance: Chance,
    queued: BTreeSet<i64>,
    ready: BTreeMap<i64, BTreeSet<i64>>,
    due: BTreeSet<(i64, i64)>,
    /// The account that was leased last, by host.
    turns: BTreeMap<i64, i64>,
    counts: Counts,
    run: RunCounts,
}

impl Memory {
    /// `homes` says on which host each account is; with `warm` they are all resolved at `wall_ms`.
    pub fn new(homes: &[usize], policy: LedgerPolicy, warm: Option<i64>) -> Self {
        let mut memory = Self {
            accounts: Vec::new(),
            hosts: Vec::new(),
            policy,
            chance: Chance::seeded(5),
            queued: BTreeSet::new(),
            ready: BTreeMap::new(),
            due: BTreeSet::new(),
            turns: BTreeMap::new(),
            counts: Counts::default(),
            run: RunCounts::default(),
        };
        for (number, home) in homes.iter().enumerate() {
            let mut account = Account::default();
            if let Some(wall_ms) = warm {
                account.identity = Some(identity(*home));
                (account.resolved_at_ms, account.state) = (wall_ms, State::Ready);
            }
            let host = warm.map(|_| row_of(*home));
            memory.enter(number as i64, account.state, host);
            memory.accounts.push(account);
            memory.hosts.push(host);
        }
        memory
    }

    fn enter(&mut self, id: i64, state: State, host: Option<i64>) {
        match state {
            State::Queued => drop(self.queued.insert(id)),
            State::Ready => drop(self.ready.entry(host.unwrap()).or_default().insert(id)),
            State::RetryAt(at) => drop(self.due.insert((at, id))),
            _ => {}
        }
        *self.counted(state) += 1;
    }

    fn leave(&mut self, id: i64, state: State, host: Option<i64>) {
        match state {
            State::Queued => drop(self.queued.remove(&id)),
            State::Ready => drop(self.ready.get_mut(&host.unwrap()).unwrap().remove(&id)),
            State::RetryAt(at) => drop(self.due.remove(&(at, id))),
            _ => {}
        }
        *self.counted(state) -= 1;
    }

    fn counted(&mut self, state: State) -> &mut u64 {
        match state {
            State::Queued | State::Ready => &mut self.counts.queued,
            State::Resolving | State::Fetching => &mut self.counts.active,
            State::RetryAt(_) => &mut self.counts.retrying,
            State::Done => &mut self.counts.done,
            State::Parked(_) => &mut self.counts.parked,
            State::Forgotten => &mut self.counts.forgotten,
        }
    }

    fn apply(&mut self, id: i64, event: Event, wall_ms: i64) -> Applied {
        let at = usize::try_from(id).unwrap();
        let moment = Moment { now_ms: wall_ms, fraction: self.chance.fraction() };
        let is_resolved = matches!(event, Event::Resolved(_));
        let old_host = self.hosts[at];
        let account = &mut self.accounts[at];
        let before = Place { state: account.state, host: old_host, alone: account.runs_alone() };
        let effect = account.apply(event, &self.policy, moment);
        let host_name = account.identity.as_ref().map(|identity| identity.host.clone());
        let host = if is_resolved {
            host_name.as_deref().map(|name| row_of(number_of(name)))
        } else {
            old_host
        };
        let after = Place { state: account.state, host, alone: account.runs_alone() };
        self.leave(id, before.state, old_host);
        self.enter(id, after.state, host);
        self.hosts[at] = host;
        self.run.done += u64::from(before.state != State::Done && after.state == State::Done);
        self.run.parked += u64::from(matches!(after.state, State::Parked(_)));
        Applied { id: AccountId(id), listed: true, effect, before, after, host_name }
    }

    fn lease(&mut self, id: i64, event: Event, wall_ms: i64, done: &mut Batched) -> Option<Leased> {
        let is_fetch = matches!(event, Event::LeasedToFetch { .. });
        let applied = self.apply(id, event, wall_ms);
        let is_leased = matches!(applied.after.state, State::Resolving | State::Fetching);
        done.applied.push(applied);
        let at = usize::try_from(id).unwrap();
        let identity = self.accounts[at].identity.clone().filter(|_| is_fetch);
        let (id, did) = (AccountId(id), did(at));
        is_leased.then_some(Leased {
            id,
            did,
            identity,
            edition: 0,
            rev: None,
            refresh: None,
            wants_earlier_keys: false,
        })
    }
}

fn row_of(host: usize) -> i64 {
    host as i64 + 1
}

/// The number of the host of this name.
pub fn number_of(name: &str) -> usize {
    let number = name.strip_prefix('h').and_then(|rest| rest.strip_suffix(".example"));
    number.unwrap().parse().unwrap()
}

impl Books for Memory {
    fn run(&mut self, batch: &Batch, wall_ms: i64) -> Batched {
        let mut done = Batched::default();
        for (id, event) in &batch.events {
            done.applied.push(self.apply(id.0, event.clone(), wall_ms));
        }
        for (host, event) in &batch.patience {
            let host = host.expect("no simulation ends the directory's patience");
            let waits =
                |account: &Account| matches!(account.state, State::Ready | State::RetryAt(_));
            let there: Vec<i64> = (0..self.accounts.len())
                .filter(|at| self.hosts[*at] == Some(host) && waits(&self.accounts[*at]))
                .map(|at| at as i64)
                .collect();
            done.applied.extend(
                there
                    .into_iter()
                    .map(|id| self.apply(id, event.clone(), wall_ms))
                    .collect::<Vec<_>>(),
            );
        }
        if batch.promote {
            let due: Vec<(i64, i64)> =
                self.due.range(..=(wall_ms, i64::MAX)).take(1_000).copied().collect();
            for (_, id) in due {
                done.applied.push(self.apply(id, Event::Due, wall_ms));
            }
        }
        let queued: Vec<i64> = self.queued.iter().take(batch.plc).copied().collect();
        for id in queued {
            let leased = self.lease(id, Event::LeasedToResolve, wall_ms, &mut done);
            done.plc.extend(leased);
        }
        for (host, count) in &batch.hosts {
            let ready = self.ready.entry(*host).or_default();
            let last = self.turns.get(host).copied().unwrap_or(-1);
            let behind = ready.range(last + 1..).chain(ready.range(..=last));
            let ids: Vec<i64> = behind.take(*count).copied().collect();
            ids.last().map(|last| self.turns.insert(*host, *last));
            done.dry.extend((ids.len() < *count).then_some(*host));
            for id in ids {
                let leased =
                    self.lease(id, Event::LeasedToFetch { alone: false }, wall_ms, &mut done);
                done.fetch.extend(leased.map(|leased| (*host, leased)));
            }
        }
        done.next_due_ms = self.due.first().map(|(at, _)| *at);
        (done.counts, done.run) = (self.counts, self.run);
        done
    }

    fn exported(&mut self, id: AccountId, wall_ms: i64) {
        self.apply(id.0, Event::Exported, wall_ms);
    }

    fn host_rows(&mut self) -> Vec<HostRow> {
        let row = |(id, ready): (&i64, &BTreeSet<i64>)| HostRow {
            id: *id,
            name: format!("h{}.example", id - 1),
            ready: ready.len() as u64,
            others: 0,
            silence_ms: 0,
        };
        self.ready.iter().map(row).collect()
    }

    fn state(&self, id: AccountId) -> Account {
        self.accounts[usize::try_from(id.0).unwrap()].clone()
    }
}

/// The real rows.
pub struct OnDisk {
    pub rows: Rows,
    clock: Clock,
    path: std::path::PathBuf,
}

impl OnDisk {
    /// Accounts `0..count`; the row of each is its number + 1.
    pub fn new(folder: &Path, count: usize, policy: LedgerPolicy, wall_ms: i64) -> Self {
        let (clock, path) = (Clock::fixed(wall_ms), folder.join("state.db"));
        let (mut rows, _) = Rows::open(&path, policy, clock.clone(), Chance::seeded(6)).unwrap();
        let targets = (0..count).map(|n| Target::Did(Did::parse(&did(n)).unwrap()));
        let targets = targets.map(Ok::<_, StoreError>);
        let staged = Staged::read(folder, targets, &|_| {}).unwrap().unwrap();
        let listed = staged.know(&mut rows, &|_| {}).unwrap().swap(&mut rows, &|_| {}).unwrap();
        assert_eq!(listed, count as u64);
        Self { rows, clock, path }
    }

    pub fn at(&self, wall_ms: i64) {
        self.clock.set_wall_ms(wall_ms);
    }
}

impl Books for OnDisk {
    fn run(&mut self, batch: &Batch, wall_ms: i64) -> Batched {
        self.at(wall_ms);
        self.rows.transaction(|rows| rows.run_batch(batch)).unwrap()
    }

    fn exported(&mut self, id: AccountId, wall_ms: i64) {
        self.at(wall_ms);
        self.rows.transaction(|rows| rows.apply(id, Event::Exported)).unwrap();
    }

    fn host_rows(&mut self) -> Vec<HostRow> {
        self.rows.host_rows().unwrap()
    }

    fn state(&self, id: AccountId) -> Account {
        let reader = rusqlite::Connection::open(&self.path).unwrap();
        let select = "SELECT rules FROM accounts WHERE id = ?1";
        let rules: Option<String> = reader.query_row(select, [id.0], |row| row.get(0)).unwrap();
        rules.map(|text| serde_json::from_str(&text).unwrap()).unwrap_or_default()
    }
}
