//! Plan: what the scheduler knows and decides, without a runtime. Everything that happens is told to it; it gives batches for
//! the ledger and, when a batch has been written, the work to send out.
//!
//! ```text
//!  tickets, permits, lists, time ──> Plan ──Batch──> ledger ──Batched──> Plan ──> Dispatch, Dispatch, ...
//! ```
//! Invariants: an account is in flight exactly from its lease until its ticket comes back; a permit is taken before its
//! account is leased; while an account runs alone nothing else is leased; nothing is sent out for a host that the territory does
//! not hold at that moment, as when its lease ran out while the batch was written, or the process was stopped.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use crate::actor::ticket::Returned;
use crate::clock::Instant;
use crate::domain::account::AccountId;
use crate::domain::did::Did;
use crate::domain::ledger::{Event, State, millis};
use crate::domain::verdict::{Cause, Failure, LastError, Reason};
use crate::net::territory::Territory;
use crate::seed::Chance;
use crate::stages::messages::{News, Paced, PermitNews, Refresh, Subject};
use crate::store::ledger_lists::Counts;
use crate::store::ledger_rows::{Applied, RunCounts};
use crate::store::ledger_work::{Batch, Batched, HostRow, Leased};

use super::directories::Directories;
use super::estimate::Estimator;
use super::flights::{Flight, Flights, Way};
use super::hosts::Hosts;
use super::outlook::Seen;
use super::terms::{Asked, Dispatch, MayHave, Now, PlanLimits, Room};

/// Ready accounts, counted as `Hosts::counted` does, up to which resolving goes on (DESIGN section 2).
pub(super) const READY_MAX: u64 = 10_000;

/// Resolutions of `did:web` at once: each goes to a stranger of its own.
const WEB_AT_ONCE_MAX: usize = 16;

/// What a redirect led to a busy host comes back within this time after its wait, so that not all of them come at once.
const ELSEWHERE_SPREAD: Duration = Duration::from_secs(30);

/// The scheduler's mind.
pub struct Plan {
    limits: PlanLimits,
    chance: Chance,
    pub(super) hosts: Hosts,
    pub(super) directories: Directories,
    pub(super) in_flight: Flights,
    pub(super) events: Vec<(AccountId, Event)>,
    /// Hosts (`None`: the directory) whose patience is over, for the next batch.
    patience: Vec<(Option<i64>, Event)>,
    pub(super) silences: Vec<(i64, i64)>,
    /// What the batch under way asked for.
    asked: Asked,
    pub(super) may_have: MayHave,
    pub(super) counts: Counts,
    pub(super) run: RunCounts,
    pub(super) next_due_ms: Option<i64>,
    is_draining: bool,
    pub(super) wants_counts: bool,
    wants_hosts: bool,
    pub(super) estimator: Estimator,
    pub(super) seen: Seen,
}

impl Plan {
    /// A plan over the hosts that the ledger knows.
    #[must_use]
    pub fn new(limits: PlanLimits, chance: Chance, rows: Vec<HostRow>, now: Now) -> Self {
        let mut hosts = Hosts::new(limits.host);
        rows.into_iter().for_each(|row| hosts.know(row, now.at));
        Self {
            limits,
            chance,
            hosts,
            directories: Directories::new(limits.directory, limits.host, now.at),
            in_flight: Flights::default(),
            events: Vec::new(),
            patience: Vec::new(),
            silences: Vec::new(),
            asked: Asked::default(),
            may_have: MayHave { plc: true, web: true, alone: true },
            counts: Counts::default(),
            run: RunCounts::default(),
            next_due_ms: Some(0),
            is_draining: false,
            wants_counts: true,
            wants_hosts: false,
            estimator: Estimator::default(),
            seen: Seen::default(),
        }
    }

    /// A ticket came back or told something.
    pub fn returned(&mut self, id: AccountId, returned: Returned<News>, now: Now) {
        let Some(flight) = self.in_flight.get(id) else { return };
        let event = match returned {
            Returned::Progress(News::BodyBegun) => {
                return self.events.push((id, Event::BodyBegun));
            }
            Returned::Progress(_) => return,
            Returned::Finished(news) => match news {
                News::Resolved(identity) => {
                    self.seen.found += 1;
                    Some(Event::Resolved(identity))
                }
                News::Failed(failure) => {
                    let usable_ms = flight.host().and_then(|host| self.hosts.usable_ms(host));
                    Some(flight.failed(failure, usable_ms))
                }
                News::TooLargeForNow => Some(Event::TooLargeForNow),
                News::Unchanged => Some(Event::Unchanged),
                News::WithoutLeaves => Some(Event::WithoutLeaves),
                News::NotBefore(wait) => {
                    let wait = wait + self.chance.up_to(ELSEWHERE_SPREAD);
                    Some(Event::NotBefore(now.wall_ms.saturating_add(millis(wait).max(1))))
                }
                News::Dripped => {
                    flight.host().into_iter().for_each(|host| self.hosts.dripped(host, now.at));
                    Some(self.in_flight.dripped(id, now, self.limits.host.patience))
                }
                News::GivenBack | News::BodyBegun => Some(Event::GivenBack),
                News::Sealed => {
                    // The applier tells the ledger, and nobody tells us that it moved.
                    flight.host().into_iter().for_each(|host| self.hosts.sealed(host));
                    self.in_flight.was_good(id);
                    self.seen.sealed += 1;
                    None
                }
            },
            Returned::Lost { crashed } => Some(Event::Lost { crashed }),
        };
        self.in_flight.end(id);
        self.seen.resolved += u64::from(flight.host().is_none());
        self.wants_counts = true;
        self.events.extend(event.map(|event| (id, event)));
    }

    /// A permit came back or told something.
    pub fn permit(&mut self, paced: &Paced, news: PermitNews, now: Now) {
        match (paced, news) {
            (Paced::Directory, PermitNews::Said(signal)) => {
                let over = self.directories.plc_said(&signal, now.at, &self.chance);
                if let Some(last_error) = over {
                    self.end_patience(None, Reason::DirectoryUnavailable, last_error);
                }
            }
            (Paced::Directory, PermitNews::AlsoAsked) => {}
            (Paced::Directory, PermitNews::Returned) => self.directories.give_back_plc(),
            (Paced::Web(host), news) => {
                self.directories.web_news(host, &news, now.at, &self.chance);
            }
            (Paced::Host(id), PermitNews::Said(signal)) => {
                let over = self.hosts.said(*id, &signal, now.at, now.wall_ms, &self.chance);
                if let Some(last_error) = over {
                    self.end_patience(Some(*id), Reason::HostUnavailable, last_error);
                }
            }
            (Paced::Host(id), PermitNews::AlsoAsked) => self.hosts.spend(*id, now.at),
            (Paced::Host(id), PermitNews::Returned) => self.hosts.returned(*id, now.at),
        }
    }

    fn end_patience(&mut self, host: Option<i64>, reason: Reason, last_error: LastError) {
        tracing::warn!(%reason, %last_error, "patience is over, what waits there is parked");
        let (last_error, detail) = (Some(last_error), String::new());
        self.patience.push((host, Event::PatienceEnded { reason, last_error, detail }));
        self.in_flight.patience_ended(host.map_or(Way::Directory, Way::Host));
    }

    /// The lists have changed, or accounts were put back. The next batch looks at every backlog anew, in its own transaction:
    /// counts read at any other time would not fit the accounts that are moving meanwhile.
    pub fn relisted(&mut self) {
        self.wants_hosts = true;
        self.may_have = MayHave { plc: true, web: true, alone: true };
        self.next_due_ms = Some(0);
        self.wants_counts = true;
    }

    /// Only hosts of `territory` are asked from here on.
    pub fn set_territory(&mut self, territory: Territory, now: Now) {
        self.hosts.set_territory(territory, now.at);
    }

    /// The territory has changed, and with it which backlogs matter.
    pub fn territory_changed(&mut self, now: Now) {
        self.hosts.look_anew(now.at);
        self.relisted();
    }

    /// New numbers.
    pub fn set_limits(&mut self, limits: PlanLimits) {
        self.limits = limits;
        self.hosts.set_limits(limits.host);
        self.directories.set_limits(limits.directory, limits.host);
    }

    /// The ledger may have moved without us: an account was applied or put back.
    pub fn ledger_moved(&mut self) {
        self.wants_counts = true;
    }

    /// No new work from here on.
    pub fn drain(&mut self) {
        self.is_draining = true;
    }

    /// What to write and lease next; `None`: nothing.
    pub fn next_batch(&mut self, room: Room, may_begin: bool, now: Now) -> Option<Batch> {
        let mut batch = Batch {
            events: std::mem::take(&mut self.events),
            patience: std::mem::take(&mut self.patience),
            silences: std::mem::take(&mut self.silences),
            hosts_anew: std::mem::take(&mut self.wants_hosts),
            ..Batch::default()
        };
        self.asked = Asked::default();
        batch.promote = self.next_due_ms.is_some_and(|due_ms| due_ms <= now.wall_ms);
        if may_begin && !self.is_draining && !self.in_flight.has_lone() {
            self.ask_for_resolutions(&mut batch, room.resolver, now);
            self.ask_for_fetches(&mut batch, room.fetcher, now);
            let is_quiet = batch.plc + batch.web + batch.hosts.len() == 0;
            batch.alone = is_quiet
                && self.in_flight.is_empty()
                && self.may_have.alone
                && room.fetcher.min(room.resolver) > 0;
            self.asked.alone = batch.alone;
        }
        if batch.is_empty() && !self.wants_counts {
            return None;
        }
        self.wants_counts = false;
        Some(batch)
    }

    fn ask_for_resolutions(&mut self, batch: &mut Batch, room: usize, now: Now) {
        if self.hosts.counted() >= READY_MAX {
            return;
        }
        if self.may_have.web {
            batch.web = room.min(WEB_AT_ONCE_MAX);
        }
        let room = room.saturating_sub(batch.web);
        while self.may_have.plc && batch.plc < room && self.directories.take_plc(now.at) {
            batch.plc += 1;
        }
        self.asked.plc = batch.plc;
    }

    fn ask_for_fetches(&mut self, batch: &mut Batch, room: usize, now: Now) {
        let room = room.min(self.limits.batch_size.saturating_sub(self.in_flight.fetching()));
        self.seen.crowded.1 += 1;
        let (mut taken, mut places) = (0, HashMap::new());
        while taken < room
            && let Some((host, is_probe)) = self.hosts.pick(now.at)
        {
            taken += 1;
            if is_probe {
                self.asked.probes.push(host);
            }
            let place = *places.entry(host).or_insert(self.asked.hosts.len());
            match self.asked.hosts.get_mut(place) {
                Some((_, count)) => *count += 1,
                None => self.asked.hosts.push((host, 1)),
            }
        }
        self.seen.crowded.0 += u32::from(taken == room && self.hosts.has_eligible(now.at));
        batch.hosts.clone_from(&self.asked.hosts);
    }

    /// A batch has been written: what to send out.
    pub fn batched(&mut self, done: Batched, now: Now) -> Vec<Dispatch> {
        (self.counts, self.run, self.next_due_ms) = (done.counts, done.run, done.next_due_ms);
        self.seen.done_before.get_or_insert(done.run.done);
        let asked = std::mem::take(&mut self.asked);
        let mut out = Vec::new();
        for _ in done.plc.len()..asked.plc {
            self.directories.give_back_plc();
            self.may_have.plc = false;
        }
        self.may_have.web &= !done.web.is_empty();
        self.may_have.alone &= !asked.alone || done.alone.is_some();
        // What moved is looked at last: it may have come back after the leases found nothing.
        self.moved(&done.applied, now);
        for leased in done.plc {
            out.extend(self.resolve_plc(leased, now));
        }
        for leased in done.web {
            out.extend(self.resolve_web(leased, false, now));
        }
        let mut got: HashMap<i64, usize> = HashMap::new();
        for (host, leased) in done.fetch {
            *got.entry(host).or_default() += 1;
            let is_probe = asked.probes.contains(&host);
            out.extend(self.fetch_in_turn(leased, host, is_probe, now));
        }
        for (host, count) in asked.hosts {
            let is_dry = done.dry.contains(&host);
            let got = got.get(&host).copied().unwrap_or(0);
            self.hosts.leased(host, count, got, is_dry, now.at);
        }
        if let Some((host, leased)) = done.alone {
            out.extend(self.alone(host, leased, now));
        }
        if let Some(rows) = done.hosts_anew {
            self.hosts.forget_backlogs(now.at);
            rows.into_iter().for_each(|row| self.hosts.know(row, now.at));
        }
        out
    }

    fn moved(&mut self, applied: &[Applied], now: Now) {
        let mut queued = HashSet::new();
        for moved in applied {
            self.hosts.moved(moved, now.at);
            if moved.after.state == State::Queued && !moved.after.alone {
                queued.insert(moved.id);
            } else {
                queued.remove(&moved.id);
            }
            self.may_have.alone |= moved.after.alone;
        }
        if !queued.is_empty() {
            (self.may_have.plc, self.may_have.web) = (true, true);
        }
    }

    /// To the directory, unless it has refused others since this one's permit was taken.
    fn resolve_plc(&mut self, leased: Leased, now: Now) -> Option<Dispatch> {
        if self.directories.plc_holds(now.at) {
            self.directories.give_back_plc();
            self.events.push((leased.id, Event::GivenBack));
            return None;
        }
        self.resolve(leased, Paced::Directory, false)
    }

    /// To its host, unless that has refused others since this one's permit was taken, or is not ours any more.
    fn fetch_in_turn(
        &mut self,
        leased: Leased,
        host: i64,
        is_probe: bool,
        now: Now,
    ) -> Option<Dispatch> {
        if self.hosts.holds(host, now.at) || !self.is_ours(&leased, now) {
            self.hosts.returned(host, now.at);
            self.events.push((leased.id, Event::GivenBack));
            return None;
        }
        self.fetch(leased, host, is_probe, false, now)
    }

    pub(super) fn resolve(
        &mut self,
        leased: Leased,
        paced: Paced,
        runs_alone: bool,
    ) -> Option<Dispatch> {
        let did = self.parsed(&leased)?;
        let way = if paced == Paced::Directory { Way::Directory } else { Way::Web };
        let (id, wants_earlier_keys) = (leased.id, leased.wants_earlier_keys);
        self.begin(id, way, runs_alone);
        Some(Dispatch::Resolve { id, did, wants_earlier_keys, paced })
    }

    pub(super) fn resolve_web(
        &mut self,
        leased: Leased,
        runs_alone: bool,
        now: Now,
    ) -> Option<Dispatch> {
        let host = self.parsed(&leased)?.identifier().to_owned();
        match self.directories.take_web(&host, now.at) {
            Ok(()) => self.resolve(leased, Paced::Web(host), runs_alone),
            Err(wait) => {
                self.not_before(&leased, wait, now);
                None
            }
        }
    }

    pub(super) fn not_before(&mut self, leased: &Leased, wait: Duration, now: Now) {
        let at_ms = now.wall_ms.saturating_add(millis(wait).max(1));
        self.events.push((leased.id, Event::NotBefore(at_ms)));
    }

    /// It is out. Patience that ended while its lease was being written ended for it too.
    fn begin(&mut self, id: AccountId, way: Way, runs_alone: bool) {
        let is_it = |host: &Option<i64>| host.map_or(Way::Directory, Way::Host) == way;
        let patience_over = self.patience.iter().any(|(host, _)| is_it(host));
        self.in_flight.begin(id, Flight { way, runs_alone, patience_over });
    }

    pub(super) fn fetch(
        &mut self,
        leased: Leased,
        host: i64,
        is_probe: bool,
        runs_alone: bool,
        now: Now,
    ) -> Option<Dispatch> {
        let (did, id) = (self.parsed(&leased)?, leased.id);
        let identity = leased.identity?;
        self.begin(id, Way::Host(host), runs_alone);
        // When this is the last one there, no other account can show that the host works.
        let ask_server = is_probe && self.hosts.left(host) <= 1;
        if ask_server {
            self.hosts.spend(host, now.at);
        }
        let Leased { edition, rev: last_rev, refresh, .. } = leased;
        let refresh = refresh.map(|kept| Refresh { kept });
        let subject = Subject { did, identity, edition, last_rev, refresh };
        Some(Dispatch::Fetch { id, subject, host, ask_server })
    }

    /// The lists hold well-formed DIDs only; should one not be, it is parked instead of being leased for ever.
    fn parsed(&mut self, leased: &Leased) -> Option<Did> {
        match Did::parse(&leased.did) {
            Ok(did) => Some(did),
            Err(error) => {
                let cause = Cause::Terminal(Reason::DidInvalid);
                let failure = Failure::new(cause, None, error.to_string());
                self.events.push((leased.id, Event::Failed { failure, host_usable_ms: None }));
                None
            }
        }
    }

    /// When something can change by time alone.
    #[must_use]
    pub fn wake_at(&mut self, now: Now) -> Option<Instant> {
        let due = self.next_due_ms.map(|due_ms| {
            let wait_ms = due_ms.saturating_sub(now.wall_ms).clamp(0, 60_000).cast_unsigned();
            now.at + Duration::from_millis(wait_ms)
        });
        let directory = self.directories.plc_at().filter(|_| self.may_have.plc);
        // What is over already waits for a place or an answer, not for time, and must not hide what does.
        let times = [due, self.hosts.next_at(), directory];
        times.into_iter().flatten().filter(|at| *at > now.at).min()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::clock::Clock;
    use crate::domain::identity::Identity;
    use crate::domain::ledger::Effect;
    use crate::domain::verdict::HostSignal;
    use crate::net::pace::PaceLimits;
    use crate::store::ledger_rows::Place;

    const SECOND: Duration = Duration::from_secs(1);
    const ROOM: Room = Room { resolver: 32, fetcher: 8 };

    /// A plan over one host with `ready` accounts, and its begin.
    fn plan(ready: u64) -> (Plan, Now) {
        let now = Now { at: Clock::system().now(), wall_ms: 1_000_000 };
        let pace = |patience| PaceLimits { requests_per_second: 10.0, concurrency: 4, patience };
        let (host, directory) = (pace(100 * SECOND), pace(100 * SECOND));
        let limits = PlanLimits { host, directory, batch_size: 8 };
        let row = HostRow { id: 1, name: "h".to_owned(), ready, others: 0, silence_ms: 0 };
        (Plan::new(limits, Chance::seeded(2), vec![row], now), now)
    }

    fn leased(id: i64) -> Leased {
        let identity = Identity {
            endpoint: "https://h".to_owned(),
            host: "h".to_owned(),
            key: String::new(),
            earlier_keys: Vec::new(),
            handle: None,
        };
        let did = "did:plc:44ybard66vv44zksje25o7dz".to_owned();
        Leased {
            id: AccountId(id),
            did,
            identity: Some(identity),
            edition: 0,
            rev: None,
            refresh: None,
            wants_earlier_keys: false,
        }
    }

    fn applied(id: i64, before: State, after: State) -> Applied {
        let place = |state| Place { state, host: Some(1), alone: false };
        Applied {
            id: AccountId(id),
            listed: true,
            effect: Effect::Moved,
            before: place(before),
            after: place(after),
            host_name: Some("h".to_owned()),
        }
    }

    fn fetching(id: i64) -> Batched {
        let applied = vec![applied(id, State::Ready, State::Fetching)];
        Batched { applied, fetch: vec![(1, leased(id))], ..Batched::default() }
    }

    fn said(plan: &mut Plan, paced: &Paced, signal: HostSignal, now: Now) {
        plan.permit(paced, PermitNews::Said(signal), now);
    }

    #[test]
    fn what_was_leased_before_a_refusal_is_not_sent_after_it() {
        let (mut plan, now) = plan(3);
        let batch = plan.next_batch(ROOM, true, now).unwrap();
        assert_eq!((batch.hosts, batch.plc), (vec![(1, 1)], 1));
        let refused = HostSignal::Refused(Some(60 * SECOND));
        for paced in [Paced::Host(1), Paced::Directory] {
            said(&mut plan, &paced, refused, now);
        }
        let done = Batched { plc: vec![leased(9)], ..fetching(1) };
        assert!(plan.batched(done, now).is_empty());
        assert_eq!(plan.in_flight(), 0);
        let batch = plan.next_batch(ROOM, true, now).unwrap();
        let back = |id| (AccountId(id), Event::GivenBack);
        assert_eq!(batch.events, [back(9), back(1)]);
        assert!(batch.hosts.is_empty() && batch.plc == 0, "both wait");
        let wake = plan.wake_at(now).unwrap();
        assert!(wake >= now.at + 59 * SECOND);
    }

    /// A plan over one host that is ours for a second, and its begin.
    fn plan_on_a_lease(ready: u64) -> (Plan, Territory, Now) {
        let (mut plan, now) = plan(ready);
        let territory = Territory::shared();
        plan.set_territory(territory.clone(), now);
        plan.batched(Batched::default(), now);
        assert!(plan.next_batch(ROOM, true, now).unwrap().hosts.is_empty(), "nothing is ours yet");
        plan.batched(Batched::default(), now);
        territory.set(1, BTreeSet::from([0]));
        territory.renew(now.at + SECOND);
        plan.territory_changed(now);
        (plan, territory, now)
    }

    #[test]
    fn what_was_leased_before_the_territory_was_lost_is_not_sent_after_it() {
        let (mut plan, territory, now) = plan_on_a_lease(3);
        let batch = plan.next_batch(ROOM, true, now).unwrap();
        assert_eq!((batch.hosts, batch.hosts_anew), (vec![(1, 1)], true));
        // The process was stopped while the ledger wrote.
        let late = Now { at: now.at + SECOND, ..now };
        assert!(plan.batched(fetching(1), late).is_empty());
        assert_eq!(plan.in_flight(), 0);
        let batch = plan.next_batch(ROOM, true, late).unwrap();
        assert_eq!(batch.events, [(AccountId(1), Event::GivenBack)]);
        assert!(batch.hosts.is_empty());
        let back = vec![applied(1, State::Fetching, State::Ready)];
        plan.batched(Batched { applied: back, ..Batched::default() }, late);
        assert_eq!(plan.host_views(late)[0].active, 0, "its permit came back");
        // Whoever was refused hears of the next lease.
        territory.renew(late.at + SECOND);
        assert!(territory.changes().borrow().to_owned() >= 2);
        plan.territory_changed(late);
        assert_eq!(plan.next_batch(ROOM, true, late).unwrap().hosts, [(1, 1)]);
        assert_eq!(plan.batched(fetching(1), late).len(), 1);
    }

    #[test]
    fn an_account_that_runs_alone_takes_no_permit_of_a_host_that_is_not_ours() {
        let (mut plan, _, now) = plan_on_a_lease(0);
        let late = Now { at: now.at + SECOND, ..now };
        plan.next_batch(ROOM, true, late);
        let alone = || Some((Some(1), leased(1)));
        let done = Batched { alone: alone(), ..Batched::default() };
        assert!(plan.batched(done, late).is_empty());
        let batch = plan.next_batch(ROOM, true, late).unwrap();
        assert!(matches!(batch.events[..], [(AccountId(1), Event::NotBefore(_))]), "{batch:?}");
        assert!(plan.host_views(late).iter().all(|host| host.active == 0));
        let done = Batched { alone: alone(), ..Batched::default() };
        assert_eq!(plan.batched(done, now).len(), 1, "a moment before it was ours");
    }

    #[test]
    fn patience_that_ends_while_a_lease_is_written_ends_that_account_too() {
        let (mut plan, now) = plan(2);
        plan.next_batch(ROOM, true, now).unwrap();
        let fault = HostSignal::Fault(LastError::Connect);
        said(&mut plan, &Paced::Host(1), fault, now);
        let late = Now { at: now.at + 101 * SECOND, ..now };
        said(&mut plan, &Paced::Host(1), fault, late);
        let sent = plan.batched(fetching(1), late);
        assert!(matches!(sent[..], [Dispatch::Fetch { ask_server: false, .. }]));
        let batch = plan.next_batch(ROOM, true, late).unwrap();
        assert!(matches!(batch.patience[..], [(Some(1), Event::PatienceEnded { .. })]));
        plan.batched(Batched::default(), late);
        let failure = Failure::new(Cause::HostFault, Some(LastError::Connect), "refused");
        plan.returned(AccountId(1), Returned::Finished(News::Failed(failure)), late);
        let batch = plan.next_batch(ROOM, true, late).unwrap();
        let reason = Reason::HostUnavailable;
        assert!(
            matches!(&batch.events[..], [(AccountId(1), Event::PatienceEnded { reason: r, .. })] if *r == reason)
        );
    }

    #[test]
    fn a_batch_that_finds_nobody_queued_looks_again_if_it_made_somebody_queued_itself() {
        let (mut plan, now) = plan(1);
        assert_eq!(plan.next_batch(ROOM, true, now).unwrap().plc, 1);
        let outlived = vec![applied(1, State::Ready, State::Queued)];
        plan.batched(Batched { applied: outlived, dry: vec![1], ..Batched::default() }, now);
        let later = Now { at: now.at + SECOND, ..now };
        assert_eq!(plan.next_batch(ROOM, true, later).unwrap().plc, 1);
        plan.batched(Batched::default(), later);
        let batch = plan.next_batch(ROOM, true, Now { at: later.at + SECOND, ..now });
        assert!(batch.is_none_or(|batch| batch.plc == 0), "now nobody is queued");
    }

    #[test]
    fn a_plan_that_drains_begins_nothing_and_times_that_are_over_are_no_alarm() {
        let (mut plan, now) = plan(5);
        plan.next_batch(ROOM, true, now).unwrap();
        plan.batched(fetching(1), now);
        plan.drain();
        let later = Now { at: now.at + 10 * SECOND, ..now };
        let batch = plan.next_batch(ROOM, true, later);
        assert!(batch.is_none_or(|batch| batch.hosts.is_empty() && batch.plc == 0));
        assert!(plan.wake_at(later).is_none_or(|at| at > later.at));
        assert_eq!(plan.in_flight(), 1);
    }

    #[test]
    fn when_only_accounts_that_run_alone_are_left_one_of_them_is_asked_for() {
        let (mut plan, now) = plan(0);
        let first = plan.next_batch(ROOM, true, now).unwrap();
        assert!(first.plc > 0 && !first.alone, "others come first");
        // As a restart finds the ledger after kills: nothing but an account that runs alone.
        let left = Counts { queued: 1, ..Counts::default() };
        plan.batched(Batched { counts: left, ..Batched::default() }, now);
        assert!(plan.next_batch(ROOM, true, now).unwrap().alone);
        plan.batched(Batched { counts: left, ..Batched::default() }, now);
        assert!(plan.next_batch(ROOM, true, now).is_none(), "there was none");
    }

    #[test]
    fn changed_lists_replace_every_backlog_with_the_next_batch_even_while_nothing_may_begin() {
        let (mut plan, now) = plan(3);
        plan.next_batch(ROOM, false, now).unwrap();
        plan.batched(Batched::default(), now);
        plan.relisted();
        let batch = plan.next_batch(ROOM, false, now).unwrap();
        assert!(batch.hosts_anew && batch.hosts.is_empty());
        let row = HostRow { id: 2, name: "g".to_owned(), ready: 5, others: 0, silence_ms: 0 };
        plan.batched(Batched { hosts_anew: Some(vec![row]), ..Batched::default() }, now);
        let queued: Vec<_> =
            plan.host_views(now).into_iter().map(|host| (host.name, host.queued)).collect();
        assert_eq!(queued, [("g".to_owned(), 5), ("h".to_owned(), 0)]);
        let batch = plan.next_batch(ROOM, true, now).unwrap();
        assert!(!batch.hosts_anew);
        assert_eq!(batch.hosts, [(2, 1)]);
    }
}
