//! Three workers that share twenty hosts: three plans over three ledgers, and a group that is only told about.
//!
//! ```text
//!  messages (partition of their host, offset) ──admit──> ledger of the owner ──Plan──> hosts, at one pace whoever asks
//!  sealed at its owner: the offset is decided, once      sealed elsewhere: fenced, as its transaction would be
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use skyfill::clock::Clock;
use skyfill::domain::account::AccountId;
use skyfill::domain::input_window::InputWindow;
use skyfill::domain::ledger::{Account, Event};
use skyfill::domain::partition::of_key;
use skyfill::net::territory::Territory;
use skyfill::seed::Chance;
use skyfill::store::ledger_inputs::{Admission, Admitted};
use skyfill::store::ledger_lists::Reader;
use skyfill::store::ledger_rows::Rows;
use skyfill::store::ledger_work::{Batch, Batched, HostRow};

use super::books::{Books, did, identity};
use super::simulation::{BEGIN_MS, Simulation, limits, most_within};
use super::{HOST_RATE, HOUR, SECOND, all_good, policy};

const HOSTS: usize = 20;
const ACCOUNTS_PER_HOST: usize = 300;
const PARTITIONS: u32 = 12;

/// Between two looks of the group; a worker renews its lease at each.
const STEP: Duration = Duration::from_millis(50);

/// How long a lease holds.
const LEASE: Duration = Duration::from_secs(3);

/// What a partition that moves waits for between two owners.
const MOVE: Duration = Duration::from_millis(250);

/// The real rows of a worker.
struct Ledger {
    rows: Rows,
    clock: Clock,
    path: std::path::PathBuf,
    /// Whom each row is about.
    dids: BTreeMap<AccountId, String>,
    /// What was sealed since the group last looked.
    sealed: Vec<String>,
}

impl Books for Ledger {
    fn run(&mut self, batch: &Batch, wall_ms: i64) -> Batched {
        self.clock.set_wall_ms(wall_ms);
        let done = self.rows.transaction(|rows| rows.run_batch(batch)).unwrap();
        self.dids.extend(done.fetch.iter().map(|(_, leased)| (leased.id, leased.did.clone())));
        done
    }

    fn exported(&mut self, id: AccountId, wall_ms: i64) {
        self.clock.set_wall_ms(wall_ms);
        self.rows.transaction(|rows| rows.apply(id, Event::Exported)).unwrap();
        self.sealed.push(self.dids[&id].clone());
    }

    fn host_rows(&mut self) -> Vec<HostRow> {
        self.rows.host_rows().unwrap()
    }

    fn state(&self, id: AccountId) -> Account {
        let reader = Reader::open(&self.path).unwrap();
        reader.account(&self.dids[&id]).unwrap().unwrap().account
    }
}

struct Worker {
    simulation: Simulation<Ledger>,
    territory: Territory,
    changes: tokio::sync::watch::Receiver<u64>,
    owned: BTreeSet<i32>,
    is_stopped: bool,
}

impl Worker {
    fn new(folder: &std::path::Path, number: usize) -> Self {
        let (path, clock) = (folder.join(format!("{number}.db")), Clock::fixed(BEGIN_MS));
        let chance = Chance::seeded(number as u64);
        let (rows, _) = Rows::open(&path, policy(), clock.clone(), chance).unwrap();
        let ledger = Ledger { rows, clock, path, dids: BTreeMap::new(), sealed: Vec::new() };
        let territory = Territory::shared();
        let hosts: Vec<usize> = (0..HOSTS).collect();
        let mut simulation = Simulation::new(ledger, hosts, limits(HOUR), all_good());
        simulation.set_territory(territory.clone());
        let changes = territory.changes();
        Self { simulation, territory, changes, owned: BTreeSet::new(), is_stopped: false }
    }

    /// Goes on until `now`, unless it is stopped; then it only sees that time has passed when it is continued.
    fn step(&mut self, now: Duration) {
        if self.is_stopped {
            return;
        }
        if self.changes.has_changed().unwrap() {
            self.changes.mark_unchanged();
            self.simulation.territory_changed();
        }
        self.simulation.run_until(now);
    }
}

/// The group: messages, what of them is decided, and who owns what.
struct Group {
    /// Accounts and hosts by partition and offset.
    messages: BTreeMap<i32, Vec<(String, usize)>>,
    places: BTreeMap<String, (i32, i64)>,
    windows: BTreeMap<i32, InputWindow>,
    workers: Vec<Worker>,
    /// Accounts that were sealed by who did not own them any more.
    fenced: usize,
    now: Duration,
}

impl Group {
    fn new(folder: &std::path::Path) -> Self {
        let mut messages: BTreeMap<i32, Vec<(String, usize)>> =
            (0..PARTITIONS as i32).map(|partition| (partition, Vec::new())).collect();
        let mut places = BTreeMap::new();
        for number in 0..HOSTS * ACCOUNTS_PER_HOST {
            let (did, host) = (did(number), number % HOSTS);
            let partition = of_key(&identity(host).host, PARTITIONS) as i32;
            let there = messages.get_mut(&partition).unwrap();
            places.insert(did.clone(), (partition, there.len() as i64));
            there.push((did, host));
        }
        let windows = messages.keys().map(|partition| (*partition, InputWindow::new(0))).collect();
        let workers = (0..3).map(|number| Worker::new(folder, number)).collect();
        Self { messages, places, windows, workers, fenced: 0, now: Duration::ZERO }
    }

    /// A worker gives up what is not among `owned`.
    fn revoke(&mut self, worker: usize, owned: &[i32]) {
        let worker = &mut self.workers[worker];
        let lost: Vec<i32> =
            worker.owned.iter().copied().filter(|it| !owned.contains(it)).collect();
        worker.owned.retain(|it| owned.contains(it));
        worker.territory.set(PARTITIONS, worker.owned.clone());
        let rows = &mut worker.simulation.books.rows;
        for partition in lost {
            while rows.transaction(|rows| rows.give_up_partition(partition)).unwrap() > 0 {}
        }
    }

    /// A worker takes `new` on: what is not decided there is read again.
    fn assign(&mut self, worker: usize, new: &[i32]) {
        for partition in new {
            assert!(self.workers.iter().all(|it| it.is_stopped || !it.owned.contains(partition)));
        }
        let worker = &mut self.workers[worker];
        worker.owned.extend(new);
        for partition in new {
            let window = &self.windows[partition];
            // As the next owner finds it beside the committed offset.
            let window = InputWindow::decode(window.base(), &window.encode()).unwrap();
            let undecided = (0..).zip(&self.messages[partition]);
            let admissions: Vec<Admission> = undecided
                .filter(|(offset, _)| !window.is_decided(*offset))
                .map(|(offset, (did, host))| Admission {
                    partition: *partition,
                    offset,
                    did: did.clone(),
                    identity: Some((identity(*host), BEGIN_MS)),
                })
                .collect();
            let rows = &mut worker.simulation.books.rows;
            let admitted = rows.transaction(|rows| rows.admit(&admissions)).unwrap();
            assert!(admitted.iter().all(|it| matches!(it, Admitted::Pending | Admitted::Reopened)));
        }
        worker.territory.set(PARTITIONS, worker.owned.clone());
    }

    /// Everybody goes on until `until`.
    fn run(&mut self, until: Duration) {
        while self.now < until && !self.is_done() {
            self.now += STEP;
            for worker in self.workers.iter_mut().filter(|worker| !worker.is_stopped) {
                worker.territory.renew(worker.simulation.instant(self.now + LEASE));
            }
            for number in 0..self.workers.len() {
                self.workers[number].step(self.now);
                self.commit(number);
            }
        }
    }

    /// What a worker has sealed is decided, if it still owns the partition.
    fn commit(&mut self, worker: usize) {
        let others: BTreeSet<i32> = (self.workers.iter().enumerate())
            .filter(|(number, it)| *number != worker && !it.is_stopped)
            .flat_map(|(_, it)| it.owned.iter().copied())
            .collect();
        let worker = &mut self.workers[worker];
        for did in std::mem::take(&mut worker.simulation.books.sealed) {
            let (partition, offset) = self.places[&did];
            if !worker.owned.contains(&partition) || others.contains(&partition) {
                self.fenced += 1;
                continue;
            }
            let window = self.windows.get_mut(&partition).unwrap();
            assert!(!window.is_decided(offset), "{did} was decided twice");
            window.decide(offset);
            let rows = &mut worker.simulation.books.rows;
            rows.transaction(|rows| rows.drop_inputs(partition, &[offset])).unwrap();
        }
    }

    fn is_done(&self) -> bool {
        self.windows
            .iter()
            .all(|(partition, window)| window.base() == self.messages[partition].len() as i64)
    }

    /// When a host was asked, by whomever.
    fn asked(&self, host: usize) -> Vec<Duration> {
        let mut times: Vec<Duration> = (self.workers.iter())
            .flat_map(|worker| worker.simulation.asked[host].iter().copied())
            .collect();
        times.sort();
        times
    }

    fn asked_by(&self, worker: usize) -> impl Iterator<Item = Duration> {
        self.workers[worker].simulation.asked.iter().flatten().copied()
    }
}

#[test]
fn workers_that_share_hosts_ask_each_at_one_pace_while_ownership_moves_and_a_lease_lapses() {
    let folder = tempfile::tempdir().unwrap();
    let mut group = Group::new(folder.path());
    let begun = std::time::Instant::now();
    group.assign(0, &[0, 1, 2, 3, 4, 5]);
    group.assign(1, &[6, 7, 8, 9, 10, 11]);
    group.run(5 * SECOND);
    assert_eq!(group.asked_by(2).count(), 0, "nothing is its own");
    // A third one joins.
    group.revoke(0, &[0, 1, 2, 3]);
    group.revoke(1, &[6, 7, 8, 9]);
    group.run(5 * SECOND + MOVE);
    group.assign(2, &[4, 5, 10, 11]);
    group.run(10 * SECOND);
    let joined = group.asked_by(2).count();
    assert!(joined > 100, "{joined}");
    // It is stopped, its lease lapses, and what it has goes to the others.
    group.workers[2].is_stopped = true;
    let stopped = group.now;
    group.run(stopped + LEASE + MOVE);
    group.assign(0, &[4, 5]);
    group.assign(1, &[10, 11]);
    group.run(20 * SECOND);
    // Continued, it finds that time has passed: what it has begun ends fenced, and nothing new begins.
    group.workers[2].is_stopped = false;
    let fenced = group.fenced;
    group.workers[2].step(group.now);
    group.commit(2);
    assert!(group.fenced > fenced, "it had accounts in hand");
    assert_eq!(group.asked_by(2).count(), joined, "it has asked nobody since its lease was over");
    group.revoke(2, &[]);
    group.run(21 * SECOND);
    assert_eq!(group.asked_by(2).count(), joined);
    // It comes back for other partitions, and for one that it had.
    group.revoke(0, &[1, 2, 3, 5]);
    group.revoke(1, &[7, 8, 9, 10, 11]);
    group.run(21 * SECOND + MOVE);
    group.assign(2, &[0, 4, 6]);
    group.run(200 * SECOND);

    assert!(group.is_done(), "{:?}", group.windows);
    let mut shared = 0;
    for host in 0..HOSTS {
        let asked = group.asked(host);
        for seconds in [1, 10, 60] {
            let most = most_within(&asked, seconds * SECOND);
            let bound = HOST_RATE as usize * seconds as usize;
            assert!(most <= bound, "host {host}: {most} requests in {seconds} s");
        }
        assert!(asked.len() >= ACCOUNTS_PER_HOST);
        let asks = |worker: &&Worker| !worker.simulation.asked[host].is_empty();
        shared += usize::from(group.workers.iter().filter(asks).count() > 1);
    }
    assert!(shared >= 5, "{shared} hosts were asked by several");
    let asked: usize = (0..HOSTS).map(|host| group.asked(host).len()).sum();
    let accounts = HOSTS * ACCOUNTS_PER_HOST;
    // What was in hand when its partition moved was asked for once more, and nothing else.
    assert!(asked - accounts <= group.fenced, "{asked} requests, {} fenced", group.fenced);
    println!(
        "{accounts} accounts by 3 workers in {:.1} s, {} of them in hand when they moved; in {:.1} s",
        group.now.as_secs_f64(),
        group.fenced,
        begun.elapsed().as_secs_f64()
    );
}
