//! The scheduler's mind in virtual time, with a ledger, a directory and hosts that are only told about.
//!
//! It does what the actor does: one batch with the ledger at a time, a pump after everything that happens, one timer.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use skyfill::actor::ticket::Returned;
use skyfill::clock::Instant;
use skyfill::domain::account::AccountId;
use skyfill::domain::verdict::{Cause, Failure, HostSignal, LastError, RateWindow};
use skyfill::net::drips::{Transfer, Transfers};
use skyfill::net::pace::PaceLimits;
use skyfill::net::territory::Territory;
use skyfill::seed::Chance;
use skyfill::stages::messages::{News, Paced, PermitNews};
use skyfill::stages::scheduler::plan::Plan;
use skyfill::stages::scheduler::terms::{Dispatch, Now, PlanLimits, Room};
use skyfill::store::ledger_work::Batched;

use crate::books::{Books, identity, number_of};

/// Ledger time at the start.
pub const BEGIN_MS: i64 = 1_727_395_200_000;

/// How long the ledger takes for a batch.
const LEDGER: Duration = Duration::from_millis(3);

/// How long the directory takes.
const DIRECTORY: Duration = Duration::from_millis(100);

/// Places in the resolver's mailbox.
const RESOLVER: usize = 64;

/// Whoever was away for longer than this was stopped.
const LATE: Duration = Duration::from_secs(1);

/// Bytes of every repository.
const BYTES: u64 = 1_000_000;

/// What a host does with one request.
#[derive(Clone, Debug)]
pub struct Reply {
    /// What it shows of itself, and when.
    pub signal: HostSignal,
    pub said_after: Duration,
    /// When the request is over.
    pub takes: Duration,
    /// What it means for the account; `None`: its repository is good.
    pub failure: Option<(Cause, LastError)>,
    /// It redirects to this host, which then does what it does.
    pub leads_to: Option<usize>,
}

impl Reply {
    /// A good repository within 0.3 s.
    pub fn good() -> Self {
        Self::slow(Duration::from_millis(300))
    }

    /// A good repository within `takes`, its first byte after a third of that or 0.1 s.
    pub fn slow(takes: Duration) -> Self {
        let said_after = (takes / 3).min(Duration::from_millis(100));
        let signal = HostSignal::Usable(RateWindow::default());
        Self { signal, said_after, takes, failure: None, leads_to: None }
    }

    pub fn fault(after: Duration) -> Self {
        let (signal, failure) = (HostSignal::Fault(LastError::Http5xx), Cause::HostFault);
        let failure = Some((failure, LastError::Http5xx));
        Self { signal, said_after: after, takes: after, failure, leads_to: None }
    }

    /// A redirect to host `host` after 50 ms.
    pub fn elsewhere(host: usize) -> Self {
        Self { leads_to: Some(host), ..Self::slow(Duration::from_millis(50)) }
    }

    pub fn refused(wait: Option<Duration>) -> Self {
        let failure = Some((Cause::RateLimited, LastError::RateLimited));
        let after = Duration::from_millis(50);
        let signal = HostSignal::Refused(wait);
        Self { signal, said_after: after, takes: after, failure, leads_to: None }
    }
}

/// What host `.0` does at `.1` with account `.2`.
pub type Behaviour = Box<dyn Fn(usize, Duration, AccountId) -> Reply>;

enum Happening {
    Said(Paced, HostSignal),
    /// An account, whose permit comes back, what became of it, and its host's number if it was fetched.
    Back(AccountId, Paced, News, Option<usize>),
    /// An account was led to a host, so many times not at once.
    Led(AccountId, Paced, usize, usize),
    Written(Box<Batched>),
    Wake,
    Housekeeping,
}

/// A transfer that is out.
struct Out {
    transfer: Transfer,
    end: (Duration, u64),
    began: Duration,
    takes: Duration,
    told: u64,
    paced: Paced,
    host: usize,
}

/// See the header.
pub struct Simulation<B> {
    pub plan: Plan,
    pub books: B,
    /// Home host of each account, by ledger row.
    homes: Vec<usize>,
    behaviour: Behaviour,
    /// How every host answers when it is asked how it is.
    pub server: Reply,
    begun: Instant,
    /// Time since then.
    pub now: Duration,
    agenda: BTreeMap<(Duration, u64), Happening>,
    number: u64,
    is_writing: bool,
    timer: Option<Duration>,
    resolving: usize,
    fetching: usize,
    concurrency: usize,
    /// Times at which each host was asked.
    pub asked: Vec<Vec<Duration>>,
    /// Times at which the directory was asked.
    pub directory_asked: Vec<Duration>,
    /// How often hosts were asked how they are.
    pub servers_asked: u64,
    open: Vec<usize>,
    /// Most requests that were out at once, at each host.
    pub open_max: Vec<usize>,
    /// Permits of hosts that accounts were led to: until when, whose.
    led_out: Vec<(Duration, Paced, usize)>,
    transfers: Transfers,
    out: HashMap<AccountId, Out>,
    /// How often a transfer gave its place back.
    pub dripped: u64,
    /// When the last repository of each host was done, and how many were.
    pub done: Vec<(Duration, u64)>,
}

pub fn limits(patience: Duration) -> PlanLimits {
    PlanLimits {
        host: PaceLimits { requests_per_second: 9.0, concurrency: 4, patience },
        directory: PaceLimits { requests_per_second: 10.0, concurrency: 32, patience },
        batch_size: 256,
    }
}

impl<B: Books> Simulation<B> {
    /// Accounts with these homes, as `books` knows them; `homes[0]` is the account with ledger row 0.
    pub fn new(mut books: B, homes: Vec<usize>, limits: PlanLimits, behaviour: Behaviour) -> Self {
        let begun = Instant::now();
        let hosts = homes.iter().max().map_or(0, |last| last + 1);
        let now = Now { at: begun, wall_ms: BEGIN_MS };
        let plan = Plan::new(limits, Chance::seeded(4), books.host_rows(), now);
        let mut simulation = Self {
            plan,
            books,
            homes,
            behaviour,
            server: Reply::slow(Duration::from_millis(100)),
            begun,
            now: Duration::ZERO,
            agenda: BTreeMap::new(),
            number: 0,
            is_writing: false,
            timer: None,
            resolving: 0,
            fetching: 0,
            concurrency: 256,
            asked: vec![Vec::new(); hosts],
            directory_asked: Vec::new(),
            servers_asked: 0,
            open: vec![0; hosts],
            open_max: vec![0; hosts],
            transfers: Transfers::new(256.min(limits.batch_size)),
            out: HashMap::new(),
            led_out: Vec::new(),
            dripped: 0,
            done: vec![(Duration::ZERO, 0); hosts],
        };
        simulation.at(Duration::ZERO, Happening::Wake);
        simulation.at(Duration::from_secs(1), Happening::Housekeeping);
        simulation
    }

    /// Time of the day.
    fn time(&self) -> Now {
        let wall_ms = BEGIN_MS + i64::try_from(self.now.as_millis()).unwrap();
        Now { at: self.begun + self.now, wall_ms }
    }

    fn at(&mut self, after: Duration, happening: Happening) -> (Duration, u64) {
        self.number += 1;
        let key = (self.now + after, self.number);
        self.agenda.insert(key, happening);
        key
    }

    /// Only hosts of `territory` are asked.
    pub fn set_territory(&mut self, territory: Territory) {
        let time = self.time();
        self.plan.set_territory(territory, time);
    }

    /// The territory has changed, as the actor is told.
    pub fn territory_changed(&mut self) {
        let time = self.time();
        self.plan.territory_changed(time);
        self.pump();
    }

    /// A time of this simulation as the plan sees it.
    pub fn instant(&self, at: Duration) -> Instant {
        self.begun + at
    }

    /// Does what was to happen until `until`. What should have happened before now, because nobody came here for a while, happens
    /// all at once.
    pub fn run_until(&mut self, until: Duration) {
        while let Some(next) = self.agenda.first_entry().filter(|next| next.key().0 <= until) {
            let ((at, _), happening) = next.remove_entry();
            let is_late = self.now + LATE < until;
            self.now = if is_late { until } else { at.max(self.now) };
            self.return_led();
            self.happen(happening);
            self.pump();
        }
        self.now = until;
    }

    /// Goes on until `is_enough`, or until nothing is left to do; fails if that takes longer than `patience`.
    pub fn run(&mut self, patience: Duration, is_enough: impl Fn(&Self) -> bool) {
        while !self.is_finished() && !is_enough(self) {
            let ((at, _), happening) = self.agenda.pop_first().expect("housekeeping never ends");
            assert!(at <= patience, "still at it after {at:?}: {:?}", self.plan.counts());
            self.now = at.max(self.now);
            self.return_led();
            self.happen(happening);
            self.pump();
        }
    }

    pub fn is_finished(&self) -> bool {
        !self.is_writing && self.plan.is_finished()
    }

    fn happen(&mut self, happening: Happening) {
        let time = self.time();
        match happening {
            Happening::Said(paced, signal) => {
                self.plan.permit(&paced, PermitNews::Said(signal), time);
            }
            Happening::Back(id, paced, news, host) => {
                self.plan.permit(&paced, PermitNews::Returned, time);
                if let Some(out) = self.out.remove(&id)
                    && news == News::Sealed
                {
                    out.transfer.received(BYTES - out.told, time.at);
                    out.transfer.ended(time.at);
                }
                match host {
                    Some(host) => {
                        self.fetching -= 1;
                        self.open[host] -= 1;
                        if news == News::Sealed {
                            self.done[host] = (self.now, self.done[host].1 + 1);
                            self.books.exported(id, time.wall_ms);
                        }
                    }
                    None => self.resolving -= 1,
                }
                self.plan.returned(id, Returned::Finished(news), time);
            }
            Happening::Written(done) => {
                self.is_writing = false;
                for dispatch in self.plan.batched(*done, time) {
                    self.send(dispatch);
                }
            }
            Happening::Wake => self.timer = self.timer.filter(|at| *at > self.now),
            Happening::Led(id, paced, host, tries) => self.led(id, paced, host, tries),
            Happening::Housekeeping => {
                self.look_for_drips();
                self.plan.tidy(time);
                self.at(Duration::from_secs(1), Happening::Housekeeping);
            }
        }
    }

    /// An account asks for a turn at the host that it was led to, as the fetcher does: five times at most, then it goes back.
    fn led(&mut self, id: AccountId, own: Paced, victim: usize, tries: usize) {
        let (time, home) = (self.time(), number_of_row(&own));
        let turn = self.plan.turn_elsewhere(&identity(victim).host, time);
        match turn {
            Ok(paced) => {
                self.asked[victim].push(self.now);
                self.open[victim] += 1;
                self.open_max[victim] = self.open_max[victim].max(self.open[victim]);
                let reply = (self.behaviour)(victim, self.now, id);
                self.at(reply.said_after, Happening::Said(paced.clone(), reply.signal));
                let news = match reply.failure {
                    Some((cause, error)) => News::Failed(Failure::new(cause, Some(error), "told")),
                    None => News::Sealed,
                };
                self.led_out.push((self.now + reply.takes, paced, victim));
                self.at(reply.takes, Happening::Back(id, own, news, Some(home)));
            }
            Err(wait) if wait <= Duration::from_secs(1) && tries < 4 => {
                self.at(wait, Happening::Led(id, own, victim, tries + 1));
            }
            Err(wait) => {
                let news = News::NotBefore(wait.max(Duration::from_secs(1)));
                self.at(Duration::ZERO, Happening::Back(id, own, news, Some(home)));
            }
        }
    }

    /// The permits of hosts that accounts were led to come back.
    fn return_led(&mut self) {
        let (now, time) = (self.now, self.time());
        let (over, out) =
            std::mem::take(&mut self.led_out).into_iter().partition(|(at, ..)| *at <= now);
        self.led_out = out;
        let over: Vec<(Duration, Paced, usize)> = over;
        for (_, paced, victim) in over {
            self.open[victim] -= 1;
            self.plan.permit(&paced, PermitNews::Returned, time);
        }
    }

    fn look_for_drips(&mut self) {
        let time = self.time();
        for out in self.out.values_mut() {
            let share = (self.now - out.began).as_secs_f64() / out.takes.as_secs_f64();
            let told = (share.min(1.0) * BYTES as f64) as u64;
            out.transfer.received(told - out.told, time.at);
            out.told = told;
        }
        let mut ids: Vec<AccountId> = self.out.keys().copied().collect();
        ids.sort();
        for id in ids {
            let Some(out) = self.out.get(&id).filter(|out| out.transfer.yields(time.at)) else {
                continue;
            };
            self.agenda.remove(&out.end);
            let (paced, host) = (out.paced.clone(), out.host);
            self.dripped += 1;
            self.at(Duration::ZERO, Happening::Back(id, paced, News::Dripped, Some(host)));
        }
    }

    fn send(&mut self, dispatch: Dispatch) {
        let time = self.time();
        match dispatch {
            Dispatch::Resolve { id, paced, .. } => {
                self.resolving += 1;
                self.directory_asked.push(self.now);
                let home = self.homes[usize::try_from(id.0).unwrap()];
                let signal = HostSignal::Usable(RateWindow::default());
                self.at(DIRECTORY, Happening::Said(paced.clone(), signal));
                let news = News::Resolved(identity(home));
                self.at(DIRECTORY, Happening::Back(id, paced, news, None));
            }
            Dispatch::Fetch { id, host: row, ask_server, subject } => {
                let host = number_of(&subject.identity.host);
                self.fetching += 1;
                self.open[host] += 1;
                self.open_max[host] = self.open_max[host].max(self.open[host]);
                self.asked[host].push(self.now);
                let (mut waited, mut reply) = (Duration::ZERO, None);
                if ask_server {
                    self.servers_asked += 1;
                    waited = self.server.takes;
                    self.at(waited, Happening::Said(Paced::Host(row), self.server.signal));
                    reply = self.server.failure.is_some().then(|| self.server.clone());
                }
                if ask_server && reply.is_none() {
                    self.asked[host].push(self.now + waited);
                }
                let reply = reply.unwrap_or_else(|| (self.behaviour)(host, self.now, id));
                if let Some(victim) = reply.leads_to {
                    let own = Paced::Host(row);
                    self.at(reply.said_after, Happening::Said(own.clone(), reply.signal));
                    self.at(reply.takes, Happening::Led(id, own, victim, 0));
                    return;
                }
                let news = match reply.failure {
                    Some((cause, error)) => News::Failed(Failure::new(cause, Some(error), "told")),
                    None => News::Sealed,
                };
                self.at(waited + reply.said_after, Happening::Said(Paced::Host(row), reply.signal));
                let paced = Paced::Host(row);
                let is_good = news == News::Sealed;
                let back = Happening::Back(id, paced.clone(), news, Some(host));
                let end = self.at(waited + reply.takes, back);
                if is_good {
                    let transfer = self.transfers.begin(time.at);
                    let (began, takes) = (self.now, waited + reply.takes);
                    let out = Out { transfer, end, began, takes, told: 0, paced, host };
                    self.out.insert(id, out);
                }
            }
        }
    }

    fn pump(&mut self) {
        let time = self.time();
        if !self.is_writing {
            let resolver = RESOLVER - self.resolving;
            let fetcher = self.concurrency - self.fetching;
            if let Some(batch) = self.plan.next_batch(Room { resolver, fetcher }, true, time) {
                self.is_writing = true;
                let done = self.books.run(&batch, time.wall_ms);
                self.at(LEDGER, Happening::Written(Box::new(done)));
            }
        }
        let Some(at) = self.plan.wake_at(time) else { return };
        let at = at - self.begun;
        if self.timer.is_none_or(|set| at < set) {
            self.timer = Some(at);
            self.at(at - self.now, Happening::Wake);
        }
    }
}

/// Number of the host whose permit this is.
fn number_of_row(paced: &Paced) -> usize {
    let Paced::Host(row) = paced else { panic!("{paced:?} is no host") };
    usize::try_from(*row - 1).unwrap()
}

/// The largest number of `times` within any span of `span`.
pub fn most_within(times: &[Duration], span: Duration) -> usize {
    let (mut first, mut most) = (0, 0);
    for (last, time) in times.iter().enumerate() {
        while *time - times[first] >= span {
            first += 1;
        }
        most = most.max(last + 1 - first);
    }
    most
}
