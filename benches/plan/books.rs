//! A ledger of counts: how many accounts of each host are ready, or wait for the directory. Only an account that is in hand is
//! held, and the production rules (`Account::apply`) move it; whatever these make of it that is not counted here is a failure of
//! the simulation, not passed over.

use std::collections::{BTreeSet, HashMap};

use skyfill::domain::account::AccountId;
use skyfill::domain::identity::Identity;
use skyfill::domain::ledger::{Account, Doubt, Event, LedgerPolicy, Moment, State};
use skyfill::store::ledger_lists::Counts;
use skyfill::store::ledger_rows::{Applied, Place, RunCounts};
use skyfill::store::ledger_work::{Batch, Batched, HostRow, Leased};

use super::network::Network;

/// Ledger time at the start, when every identity was resolved.
pub const BEGIN_MS: i64 = 1_727_395_200_000;

/// One that has the form of a DID: nobody here asks which it is.
const DID: &str = "did:plc:44ybard66vv44zksje25o7dz";

/// See the header. The row of a host is its number + 1.
pub struct Books {
    policy: LedgerPolicy,
    identities: Vec<Option<Identity>>,
    ready: Vec<u64>,
    /// Accounts by host whose verdict waits for the directory, and how such a one stands.
    doubted: Vec<u64>,
    doubtful: Option<Account>,
    hosts_doubted: BTreeSet<usize>,
    in_hand: HashMap<i64, (Account, usize)>,
    next: i64,
    counts: Counts,
    run: RunCounts,
}

impl Books {
    /// The accounts of these hosts, all resolved.
    pub fn new(network: &Network, hosts: &[usize], policy: LedgerPolicy) -> Self {
        let count = network.hosts.len();
        let mut books = Self {
            policy,
            identities: vec![None; count],
            ready: vec![0; count],
            doubted: vec![0; count],
            doubtful: None,
            hosts_doubted: BTreeSet::new(),
            in_hand: HashMap::new(),
            next: 0,
            counts: Counts::default(),
            run: RunCounts::default(),
        };
        for host in hosts.iter().copied() {
            let name = network.hosts[host].name.clone();
            let endpoint = format!("https://{name}");
            let (key, earlier_keys, handle) = (String::new(), Vec::new(), None);
            let identity = Identity { endpoint, host: name, key, earlier_keys, handle };
            books.identities[host] = Some(identity);
            books.ready[host] = network.hosts[host].accounts;
            books.counts.queued += network.hosts[host].accounts;
        }
        books
    }

    pub fn rows(&self) -> Vec<HostRow> {
        let known = self.identities.iter().enumerate();
        let row = |(host, identity): (usize, &Option<Identity>)| {
            let name = identity.as_ref()?.host.clone();
            let (id, ready) = (host as i64 + 1, self.ready[host]);
            Some(HostRow { id, name, ready, others: 0, silence_ms: 0 })
        };
        known.filter_map(row).collect()
    }

    /// The host of an account in hand.
    pub fn host(&self, id: AccountId) -> usize {
        self.in_hand[&id.0].1
    }

    /// Accounts in memory.
    pub fn held(&self) -> usize {
        self.in_hand.len()
    }

    pub fn identity(&self, host: usize) -> Identity {
        self.identities[host].clone().unwrap()
    }

    pub fn decided(&self) -> (u64, u64) {
        (self.counts.done, self.counts.parked)
    }

    pub fn run(&mut self, batch: &Batch, wall_ms: i64) -> Batched {
        assert!(batch.patience.is_empty(), "no host is away in this simulation");
        let mut done = Batched::default();
        for (id, event) in &batch.events {
            if self.in_hand.contains_key(&id.0) {
                done.applied.push(self.apply(*id, event.clone(), wall_ms));
            }
        }
        while done.plc.len() < batch.plc
            && let Some(host) = self.hosts_doubted.first().copied()
        {
            self.doubted[host] -= 1;
            if self.doubted[host] == 0 {
                self.hosts_doubted.remove(&host);
            }
            let identity = self.identities[host].clone();
            let account = Account { identity, ..self.doubtful.clone().unwrap() };
            let leased = self.lease(account, host, Event::LeasedToResolve, wall_ms, &mut done);
            done.plc.push(leased);
        }
        for (row, count) in &batch.hosts {
            let host = usize::try_from(*row - 1).unwrap();
            let there = (*count).min(usize::try_from(self.ready[host]).unwrap());
            done.dry.extend((there < *count).then_some(*row));
            for _ in 0..there {
                self.ready[host] -= 1;
                let (state, identity) = (State::Ready, self.identities[host].clone());
                let account =
                    Account { state, identity, resolved_at_ms: BEGIN_MS, ..Account::default() };
                let event = Event::LeasedToFetch { alone: false };
                let leased = self.lease(account, host, event, wall_ms, &mut done);
                done.fetch.push((*row, leased));
            }
        }
        (done.counts, done.run) = (self.counts, self.run);
        done
    }

    /// An account was applied from the journal.
    pub fn exported(&mut self, id: AccountId, wall_ms: i64) {
        self.apply(id, Event::Exported, wall_ms);
    }

    fn lease(
        &mut self,
        account: Account,
        host: usize,
        event: Event,
        wall_ms: i64,
        done: &mut Batched,
    ) -> Leased {
        self.next += 1;
        let id = AccountId(self.next);
        self.in_hand.insert(id.0, (account, host));
        done.applied.push(self.apply(id, event, wall_ms));
        let state = self.in_hand.get(&id.0).map(|(account, _)| account.state);
        let is_leased = matches!(state, Some(State::Resolving | State::Fetching));
        assert!(is_leased, "identities do not grow old in this simulation");
        let identity = (state == Some(State::Fetching)).then(|| self.identity(host));
        Leased {
            id,
            did: DID.to_owned(),
            identity,
            edition: 0,
            rev: None,
            refresh: None,
            wants_earlier_keys: false,
        }
    }

    fn apply(&mut self, id: AccountId, event: Event, wall_ms: i64) -> Applied {
        let (account, host) = self.in_hand.get_mut(&id.0).expect("it is in hand");
        let host = *host;
        let place = |account: &Account| Place {
            state: account.state,
            host: Some(host as i64 + 1),
            alone: account.runs_alone(),
        };
        let before = place(account);
        let moment = Moment { now_ms: wall_ms, fraction: 0.5 };
        let effect = account.apply(event, &self.policy, moment);
        let after = place(account);
        *self.counted(before.state) -= 1;
        *self.counted(after.state) += 1;
        match after.state {
            State::Resolving | State::Fetching => {}
            State::Done => self.run.done += u64::from(before.state != State::Done),
            State::Parked(_) => self.run.parked += 1,
            State::Queued => {
                let (account, _) = self.in_hand.get(&id.0).expect("it is in hand");
                assert!(matches!(account.doubt, Doubt::Resolve(_)), "{account:?}");
                self.doubtful = Some(Account { identity: None, ..account.clone() });
                self.doubted[host] += 1;
                self.hosts_doubted.insert(host);
            }
            other => panic!("{other:?} is not counted in this simulation"),
        }
        if !matches!(after.state, State::Resolving | State::Fetching) {
            self.in_hand.remove(&id.0);
        }
        let host_name = self.identities[host].as_ref().map(|identity| identity.host.clone());
        Applied { id, listed: true, effect, before, after, host_name }
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
}
