//! One worker in virtual time: the production scheduler (`Plan`), a ledger of counts, and behind them hosts, a link, processors
//! and a disk that are only told about.
//!
//! ```text
//!  Plan ──fetch──> host: first byte, then its stream, over the worker's link ──> processors ──> journal and queues ──> sealed
//!   └──resolve──> directory                 (its host's permit comes back)        (each serves in turn, at its rate)
//! ```
//! A stage that is behind holds its accounts, and with them the scheduler: no more than `batch_size` are between lease and seal.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::time::Duration;

use fastrand::Rng;
use skyfill::actor::ticket::Returned;
use skyfill::clock::Instant;
use skyfill::domain::account::AccountId;
use skyfill::domain::ledger::LedgerPolicy;
use skyfill::domain::verdict::{Cause, Failure, HostSignal, LastError, RateWindow, Reason};
use skyfill::net::pace::PaceLimits;
use skyfill::seed::Chance;
use skyfill::stages::messages::{News, Paced, PermitNews};
use skyfill::stages::scheduler::plan::Plan;
use skyfill::stages::scheduler::terms::{Dispatch, Now, PlanLimits, Room};
use skyfill::store::ledger_work::Batched;

use super::books::{BEGIN_MS, Books};
use super::network::{Network, draws};

/// How long the ledger takes for a batch.
const LEDGER: Duration = Duration::from_millis(3);

/// How long the directory takes for an answer.
const DIRECTORY: Duration = Duration::from_millis(100);

/// Places in the resolver's mailbox.
const RESOLVER: usize = 64;

/// What a group of small accounts waits for its seal: half of 200 ms.
const SEAL: Duration = Duration::from_millis(100);

/// Between two looks at everything; production looks every second, for an estimate that nobody reads here.
const LOOK: Duration = Duration::from_secs(10);

/// A worker, its settings, and what hosts are like from where it stands.
#[derive(Clone, Copy)]
pub struct Machine {
    pub host_requests_per_second: f64,
    pub directory_requests_per_second: f64,
    pub batch_size: usize,
    /// `fetch.concurrency`.
    pub transfers: usize,
    pub first_byte: Duration,
    /// Bytes a second of one transfer.
    pub stream: f64,
    /// Bytes a second of all of them.
    pub link: f64,
    pub cores: f64,
    /// Processor time.
    pub account_seconds: f64,
    pub record_seconds: f64,
    pub car_bytes_per_record: f64,
    /// Records a second that journal and queues take.
    pub disk_records: f64,
}

/// What a worker's time went by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Bound {
    Host,
    Directory,
    Link,
    Processors,
    Disk,
}

/// What one worker did.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    pub seconds: f64,
    pub done: u64,
    pub parked: u64,
    pub records: u64,
    pub asked: u64,
    pub directory_asked: u64,
    /// Requests that came before their host's pace allowed them; none may.
    pub too_early: u64,
    /// Accounts in the simulation's memory at once.
    pub held: usize,
    /// Of the host that was asked for longest: when its last repository was there, and requests a second until then.
    pub last_host: (f64, f64),
    /// The largest share of its time that one of them was in use, by what.
    pub shares: Vec<(Bound, f64)>,
}

impl Outcome {
    /// What was in use for the largest share of the time, and that share.
    pub fn bound(&self) -> (Bound, f64) {
        let most = self.shares.iter().copied().max_by(|one, other| one.1.total_cmp(&other.1));
        most.unwrap_or((Bound::Host, 0.0))
    }
}

enum Happening {
    /// The transfer of an account is over, and with it its host's permit.
    Fetched(AccountId, i64, Option<u64>),
    /// A parser took it.
    Taken,
    Sealed(AccountId),
    Resolved(AccountId),
    Written(Box<Batched>),
    Wake,
    Look,
}

/// In the order of time, then of what was planned first.
struct Planned(Duration, u64, Happening);

impl Ord for Planned {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.0, self.1).cmp(&(other.0, other.1))
    }
}

impl PartialOrd for Planned {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Planned {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Planned {}

/// Something that serves one after the other.
#[derive(Default)]
struct Server {
    free_at: f64,
    busy: f64,
}

impl Server {
    /// Serves what comes at `now` for `seconds`; gives when it begins and ends.
    fn serve(&mut self, now: f64, seconds: f64) -> (f64, f64) {
        let begins = self.free_at.max(now);
        self.free_at = begins + seconds;
        self.busy += seconds;
        (begins, self.free_at)
    }
}

/// How a host was asked.
struct Asked {
    draws: Rng,
    count: u64,
    /// Times of the latest requests, as many as a second may hold, and which of them is the oldest.
    latest: Vec<Duration>,
    oldest: usize,
    last: Duration,
}

/// See the header.
pub struct Worker<'a> {
    network: &'a Network,
    machine: Machine,
    plan: Plan,
    books: Books,
    begun: Instant,
    now: Duration,
    agenda: BinaryHeap<Reverse<Planned>>,
    number: u64,
    is_writing: bool,
    timer: Option<Duration>,
    resolving: usize,
    fetching: usize,
    asked: HashMap<usize, Asked>,
    link: Server,
    processors: Server,
    disk: Server,
    outcome: Outcome,
}

impl<'a> Worker<'a> {
    /// A worker that has these hosts for itself.
    pub fn new(network: &'a Network, hosts: &[usize], machine: Machine) -> Self {
        let begun = Instant::now();
        let patience = Duration::from_secs(24 * 3_600);
        let pace = |requests_per_second, concurrency| PaceLimits {
            requests_per_second,
            concurrency,
            patience,
        };
        let limits = PlanLimits {
            host: pace(machine.host_requests_per_second, 4),
            directory: pace(machine.directory_requests_per_second, 32),
            batch_size: machine.batch_size,
        };
        // Every identity came with the list, and is used for as long as this takes.
        let policy =
            LedgerPolicy { cache_ttl: Duration::from_secs(366 * 86_400), ..Default::default() };
        let books = Books::new(network, hosts, policy);
        let now = Now { at: begun, wall_ms: BEGIN_MS };
        let plan = Plan::new(limits, Chance::seeded(4), books.rows(), now);
        let mut worker = Self {
            network,
            machine,
            plan,
            books,
            begun,
            now: Duration::ZERO,
            agenda: BinaryHeap::new(),
            number: 0,
            is_writing: false,
            timer: None,
            resolving: 0,
            fetching: 0,
            asked: HashMap::new(),
            link: Server::default(),
            processors: Server::default(),
            disk: Server::default(),
            outcome: Outcome::default(),
        };
        worker.at(0.0, Happening::Wake);
        worker.at(LOOK.as_secs_f64(), Happening::Look);
        worker
    }

    /// Until everything is decided.
    pub fn run(mut self) -> Outcome {
        while self.is_writing || !self.plan.is_finished() {
            let Reverse(Planned(at, _, happening)) = self.agenda.pop().expect("a look is planned");
            self.now = at.max(self.now);
            self.happen(happening);
            self.pump();
        }
        self.outcome()
    }

    fn outcome(mut self) -> Outcome {
        (self.outcome.done, self.outcome.parked) = self.books.decided();
        let seconds = self.now.as_secs_f64().max(1e-9);
        let rate = self.machine.host_requests_per_second;
        let hosts = self.asked.iter();
        let longest = hosts.map(|(_, asked)| (asked.last.as_secs_f64(), asked.count as f64));
        let longest = longest.max_by(|one, other| one.0.total_cmp(&other.0)).unwrap_or_default();
        let most = self.asked.values().map(|asked| asked.count).max().unwrap_or(0) as f64;
        let directory = self.outcome.directory_asked as f64;
        self.outcome.seconds = seconds;
        self.outcome.last_host = (longest.0, longest.1 / longest.0.max(1e-9));
        self.outcome.shares = vec![
            (Bound::Host, most / rate / seconds),
            (Bound::Directory, directory / self.machine.directory_requests_per_second / seconds),
            (Bound::Link, self.link.busy / seconds),
            (Bound::Processors, self.processors.busy / seconds),
            (Bound::Disk, self.disk.busy / seconds),
        ];
        self.outcome
    }

    /// Time of the day.
    fn time(&self) -> Now {
        let wall_ms = BEGIN_MS + i64::try_from(self.now.as_millis()).unwrap();
        Now { at: self.begun + self.now, wall_ms }
    }

    /// Plans what happens `at` seconds after the beginning, or now if that is over.
    fn at(&mut self, at: f64, happening: Happening) {
        self.number += 1;
        let at = Duration::from_secs_f64(at).max(self.now);
        self.agenda.push(Reverse(Planned(at, self.number, happening)));
    }

    fn happen(&mut self, happening: Happening) {
        let time = self.time();
        match happening {
            Happening::Fetched(id, row, records) => self.fetched(id, row, records),
            Happening::Taken => self.fetching -= 1,
            Happening::Sealed(id) => {
                self.books.exported(id, time.wall_ms);
                self.plan.returned(id, Returned::Finished(News::Sealed), time);
            }
            Happening::Resolved(id) => {
                self.resolving -= 1;
                self.told(&Paced::Directory);
                let identity = self.books.identity(self.books.host(id));
                self.plan.returned(id, Returned::Finished(News::Resolved(identity)), time);
            }
            Happening::Written(done) => {
                self.is_writing = false;
                for dispatch in self.plan.batched(*done, time) {
                    self.send(dispatch);
                }
            }
            Happening::Wake => self.timer = self.timer.filter(|at| *at > self.now),
            Happening::Look => {
                self.plan.tidy(time);
                self.at((self.now + LOOK).as_secs_f64(), Happening::Look);
            }
        }
    }

    /// A usable answer came, and the permit with it.
    fn told(&mut self, paced: &Paced) {
        let time = self.time();
        let signal = HostSignal::Usable(RateWindow::default());
        self.plan.permit(paced, PermitNews::Said(signal), time);
        self.plan.permit(paced, PermitNews::Returned, time);
    }

    fn fetched(&mut self, id: AccountId, row: i64, records: Option<u64>) {
        let (time, now) = (self.time(), self.now.as_secs_f64());
        self.told(&Paced::Host(row));
        let Some(records) = records else {
            self.fetching -= 1;
            let cause = Cause::Repository(Reason::RepoNotFound);
            let failure = Failure::new(cause, Some(LastError::Http4xx), "");
            self.plan.returned(id, Returned::Finished(News::Failed(failure)), time);
            return;
        };
        let (machine, count) = (self.machine, records as f64);
        let work = machine.account_seconds + machine.record_seconds * count;
        let (begins, walked) = self.processors.serve(now, work / machine.cores);
        let (_, written) = self.disk.serve(walked, count / machine.disk_records);
        self.outcome.records += records;
        if begins > now {
            self.at(begins, Happening::Taken);
        } else {
            self.fetching -= 1;
        }
        self.at(written + SEAL.as_secs_f64(), Happening::Sealed(id));
    }

    fn send(&mut self, dispatch: Dispatch) {
        let now = self.now.as_secs_f64();
        match dispatch {
            Dispatch::Resolve { id, .. } => {
                self.resolving += 1;
                self.outcome.directory_asked += 1;
                self.at(now + DIRECTORY.as_secs_f64(), Happening::Resolved(id));
            }
            Dispatch::Fetch { id, host: row, ask_server, .. } => {
                assert!(!ask_server, "no circuit is open in this simulation");
                self.fetching += 1;
                let records = self.ask(usize::try_from(row - 1).unwrap());
                let bytes = records.unwrap_or(0) as f64 * self.machine.car_bytes_per_record;
                let first = now + self.machine.first_byte.as_secs_f64();
                let (_, carried) = self.link.serve(first, bytes / self.machine.link);
                let ends = (first + bytes / self.machine.stream).max(carried);
                self.at(ends, Happening::Fetched(id, row, records));
            }
        }
    }

    /// A host is asked for its next account: notes when, and gives what it has.
    fn ask(&mut self, host: usize) -> Option<u64> {
        let now = self.now;
        let most = self.machine.host_requests_per_second.ceil() as usize;
        let asked = self.asked.entry(host).or_insert_with(|| Asked {
            draws: draws(host),
            count: 0,
            latest: Vec::new(),
            oldest: 0,
            last: now,
        });
        if asked.latest.len() < most {
            asked.latest.push(now);
        } else {
            let oldest = std::mem::replace(&mut asked.latest[asked.oldest], now);
            asked.oldest = (asked.oldest + 1) % most;
            self.outcome.too_early += u64::from(now - oldest < Duration::from_secs(1));
        }
        asked.count += 1;
        asked.last = now;
        self.outcome.asked += 1;
        self.network.draw(&mut asked.draws)
    }

    fn pump(&mut self) {
        let time = self.time();
        if !self.is_writing {
            let resolver = RESOLVER - self.resolving;
            let fetcher = self.machine.transfers - self.fetching;
            if let Some(batch) = self.plan.next_batch(Room { resolver, fetcher }, true, time) {
                self.is_writing = true;
                let done = self.books.run(&batch, time.wall_ms);
                self.outcome.held = self.outcome.held.max(self.books.held());
                let written = (self.now + LEDGER).as_secs_f64();
                self.at(written, Happening::Written(Box::new(done)));
            }
        }
        let Some(at) = self.plan.wake_at(time) else { return };
        let at = at - self.begun;
        if self.timer.is_none_or(|set| at < set) {
            self.timer = Some(at);
            self.at(at.as_secs_f64(), Happening::Wake);
        }
    }
}
