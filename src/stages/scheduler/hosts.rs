//! Hosts: whose turn it is. Pure; each host's pace is a `net::pace::HostPace`.
//!
//! ```text
//!  away (nothing ready) ──ready──> eligible ──pick──> eligible | waiting (not before) | busy (concurrency used up)
//!     ^                               ^                           │ time                  │ a permit came back
//!     '──── nothing ready ────────────┴───────────────────────────┴───────────────────────'
//!
//!  foreign: whatever is ready there; from and to everywhere, as the territory changes, and at a pick that finds its lease over
//! ```
//! Every second pick goes to the largest backlog, so that the host that takes longest is never kept waiting; the picks
//! between go to the host whose last turn was longest ago (the largest backlog first among equals), so that no host's backlog
//! keeps another from its turn.

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use crate::clock::Instant;
use crate::domain::ledger::State;
use crate::domain::verdict::{HostSignal, LastError};
use crate::net::pace::{HostPace, HostState, PaceLimits, Turn};
use crate::net::territory::Territory;
use crate::seed::Chance;
use crate::store::ledger_rows::{Applied, Place as AccountPlace};
use crate::store::ledger_work::HostRow;

pub use super::host_views::HostView;

/// Ready accounts of one host that count as backlog against resolving more.
const READY_COUNTED_PER_HOST_MAX: u64 = 100;

/// First wait of a host whose transfers drip.
const DRIP_WAIT: Duration = Duration::from_secs(60);

/// Longest one: an hour, so that one a hundred hosts of one party take next to nothing.
const DRIP_WAIT_MAX: Duration = Duration::from_secs(3_600);

/// All hosts with something ready or in work.
pub struct Hosts {
    pub(super) limits: PaceLimits,
    pub(super) entries: HashMap<i64, Entry>,
    /// Eligible hosts by (ready, row).
    by_backlog: BTreeSet<(u64, i64)>,
    /// The same by (last turn, negated backlog, row).
    by_turn: BTreeSet<(u64, i64, i64)>,
    /// Hosts that may go on at a time.
    waiting: BTreeSet<(Instant, i64)>,
    /// Ready accounts that count against resolving more.
    counted: u64,
    turns: u64,
    /// Outside of it nobody is asked.
    pub(super) territory: Territory,
}

pub(super) struct Entry {
    pub(super) name: String,
    pub(super) pace: HostPace,
    pub(super) ready: u64,
    /// Of these, picked and not yet leased.
    picked: u64,
    /// All that is still to be fetched there: ready, alone or not, being fetched, waiting for a retry.
    pub(super) left: u64,
    /// Accounts that ended there since the estimate last looked.
    pub(super) ended: u64,
    last_turn: u64,
    /// Transfers in a row that gave their places back, and until when nothing is asked for since.
    drips: (u32, Option<Instant>),
    place: Place,
    counted: u64,
    /// Ledger time of its last usable answer.
    pub(super) usable_ms: Option<i64>,
    /// Silence of earlier processes.
    carried: Duration,
    /// Silence as the ledger has it.
    saved_ms: i64,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    Away,
    Eligible {
        ready: u64,
        last_turn: u64,
    },
    Waiting(Instant),
    Busy,
    /// Not ours to ask.
    Foreign,
}

impl Hosts {
    /// No hosts yet, each with `limits` when it comes.
    #[must_use]
    pub fn new(limits: PaceLimits) -> Self {
        Self {
            limits,
            entries: HashMap::new(),
            by_backlog: BTreeSet::new(),
            by_turn: BTreeSet::new(),
            waiting: BTreeSet::new(),
            counted: 0,
            turns: 0,
            territory: Territory::everywhere(),
        }
    }

    /// Only hosts of `territory` are asked from here on.
    pub fn set_territory(&mut self, territory: Territory, now: Instant) {
        self.territory = territory;
        self.look_anew(now);
    }

    /// The territory has changed: every host is put where it belongs now.
    pub fn look_anew(&mut self, now: Instant) {
        let ids: Vec<i64> = self.entries.keys().copied().collect();
        ids.into_iter().for_each(|id| self.settle(id, now));
    }

    /// Takes a host as the ledger knows it.
    pub fn know(&mut self, row: HostRow, now: Instant) {
        let is_new = !self.entries.contains_key(&row.id);
        let entry = self.entry(row.id, &row.name, now);
        (entry.ready, entry.left) = (row.ready, row.ready + row.others);
        if is_new {
            // Of a host in hand the ledger knows nothing that its pace does not know better.
            entry.carried = Duration::from_millis(row.silence_ms.max(0).cast_unsigned());
            entry.saved_ms = row.silence_ms;
        }
        self.settle(row.id, now);
    }

    /// Forgets all backlogs: the lists have changed, and every host comes anew.
    pub fn forget_backlogs(&mut self, now: Instant) {
        let ids: Vec<i64> = self.entries.keys().copied().collect();
        for id in ids {
            if let Some(entry) = self.entries.get_mut(&id) {
                (entry.ready, entry.left) = (0, 0);
            }
            self.settle(id, now);
        }
    }

    /// Changes every host's limits.
    pub fn set_limits(&mut self, limits: PaceLimits) {
        self.limits = limits;
        self.entries.values_mut().for_each(|entry| entry.pace.set_limits(limits));
    }

    /// Counts an account that moved.
    pub fn moved(&mut self, applied: &Applied, now: Instant) {
        self.count_left(applied, now);
        let ready_at = |place: &AccountPlace| {
            place.host.filter(|_| place.state == State::Ready && !place.alone && applied.listed)
        };
        let (before, after) = (ready_at(&applied.before), ready_at(&applied.after));
        if before == after {
            return;
        }
        if let Some(entry) = before.and_then(|id| self.entries.get_mut(&id)) {
            entry.ready = entry.ready.saturating_sub(1);
        }
        if let (Some(id), Some(name)) = (after, &applied.host_name) {
            self.entry(id, name, now).ready += 1;
        }
        before.into_iter().chain(after).for_each(|id| self.settle(id, now));
    }

    /// The next host that may be asked, with its permit taken, and whether it is the probe of an open circuit.
    pub fn pick(&mut self, now: Instant) -> Option<(i64, bool)> {
        self.wake(now);
        loop {
            self.turns += 1;
            let id = if self.turns.is_multiple_of(2) {
                self.by_backlog.last().map(|(_, id)| *id)?
            } else {
                self.by_turn.first().map(|(_, _, id)| *id)?
            };
            let turns = self.turns;
            let entry = self.entries.get_mut(&id)?;
            if !self.territory.holds(&entry.name, now) {
                self.place(id, Place::Foreign);
                continue;
            }
            // One that drips has one place until a transfer of it ends well.
            let is_full = entry.drips.0 > 0 && entry.pace.active() > 0;
            let turn = if is_full { Turn::Busy } else { entry.pace.take(now) };
            if let Turn::Go { probe } = turn {
                entry.picked += 1;
                entry.last_turn = turns;
                self.settle(id, now);
                return Some((id, probe));
            }
            self.place(
                id,
                match turn {
                    Turn::At(at) => Place::Waiting(at),
                    _ => Place::Busy,
                },
            );
        }
    }

    /// Takes a permit of one host, outside its turn.
    pub fn take(&mut self, id: i64, name: &str, now: Instant) -> Turn {
        self.entry(id, name, now).pace.take(now)
    }

    /// Of `asked` picks of a host, `got` became leases; the other permits go back. If it `is_dry`, nothing else is ready there.
    pub fn leased(&mut self, id: i64, asked: usize, got: usize, is_dry: bool, now: Instant) {
        let Some(entry) = self.entries.get_mut(&id) else { return };
        entry.picked = entry.picked.saturating_sub(asked as u64);
        (got..asked).for_each(|_| entry.pace.give_back());
        if is_dry {
            entry.ready = 0;
        }
        self.settle(id, now);
    }

    /// A request beside the turns: the next turn comes as much later.
    pub fn spend(&mut self, id: i64, now: Instant) {
        if let Some(entry) = self.entries.get_mut(&id) {
            entry.pace.spend(now);
        }
    }

    /// A host said something; gives what it last did if its patience is over now.
    pub fn said(
        &mut self,
        id: i64,
        signal: &HostSignal,
        now: Instant,
        wall_ms: i64,
        chance: &Chance,
    ) -> Option<LastError> {
        let patience = self.limits.patience;
        let entry = self.entries.get_mut(&id)?;
        entry.pace.note(signal, now, chance);
        let mut over = None;
        match signal {
            HostSignal::Usable(_) => {
                entry.usable_ms = Some(wall_ms);
                entry.carried = Duration::ZERO;
            }
            HostSignal::Refused(_) if entry.silence(now) >= patience => {
                over = Some(LastError::RateLimited);
            }
            HostSignal::Fault(error) if entry.silence(now) >= patience => over = Some(*error),
            _ => {}
        }
        if over.is_some() {
            // Should it be tried again, by the operator's order, it begins with new patience; what it refused or how its
            // circuit stands is not forgotten, nor are the permits that are out.
            entry.pace.renew_patience();
            entry.carried = Duration::ZERO;
        }
        self.settle(id, now);
        over
    }

    /// A permit of a host came back.
    pub fn returned(&mut self, id: i64, now: Instant) {
        if let Some(entry) = self.entries.get_mut(&id) {
            entry.pace.give_back();
            self.settle(id, now);
        }
    }

    /// An account of a host is exported.
    pub fn sealed(&mut self, id: i64) {
        if let Some(entry) = self.entries.get_mut(&id) {
            entry.left = entry.left.saturating_sub(1);
            entry.ended += 1;
            entry.drips = (0, None);
        }
    }

    /// A transfer of a host gave its place back: nothing is asked for there for a minute, twice as long each time. What else
    /// is out there goes back by itself.
    pub fn dripped(&mut self, id: i64, now: Instant) {
        let Some(entry) = self.entries.get_mut(&id) else { return };
        let (times, until) = &mut entry.drips;
        if until.is_none_or(|until| until <= now) {
            *until = Some(now + DRIP_WAIT.saturating_mul(1 << (*times).min(8)).min(DRIP_WAIT_MAX));
            *times += 1;
        }
        self.settle(id, now);
    }

    /// Whether a host has refused or gone away since a turn of it was taken, which is then not to be used.
    #[must_use]
    pub fn holds(&self, id: i64, now: Instant) -> bool {
        self.entries.get(&id).is_some_and(|entry| entry.pace.holds(now))
    }

    /// Ready accounts that count against resolving more: at most 100 a host, none of a host that waits or is not ours.
    #[must_use]
    pub fn counted(&self) -> u64 {
        self.counted
    }

    /// Whether some host may be asked now.
    #[must_use]
    pub fn has_eligible(&mut self, now: Instant) -> bool {
        self.wake(now);
        !self.by_backlog.is_empty()
    }

    /// When the next waiting host may go on.
    #[must_use]
    pub fn next_at(&self) -> Option<Instant> {
        self.waiting.first().map(|(at, _)| *at)
    }

    /// Silences that differ by more than a minute from what the ledger has, which is then taken as written.
    pub fn unsaved_silences(&mut self, now: Instant) -> Vec<(i64, i64)> {
        let mut unsaved = Vec::new();
        for (id, entry) in &mut self.entries {
            let silence_ms = i64::try_from(entry.silence(now).as_millis()).unwrap_or(i64::MAX);
            let is_news = silence_ms.abs_diff(entry.saved_ms) >= 60_000;
            if is_news || (silence_ms == 0 && entry.saved_ms != 0) {
                entry.saved_ms = silence_ms;
                unsaved.push((*id, silence_ms));
            }
        }
        unsaved
    }

    /// Drops hosts with nothing left to do or to remember.
    pub fn drop_idle(&mut self, now: Instant) {
        self.entries.retain(|_, entry| {
            let is_needed = entry.place != Place::Away || entry.left > 0;
            is_needed || !entry.pace.is_idle(now) || entry.saved_ms != 0
        });
    }

    fn entry(&mut self, id: i64, name: &str, now: Instant) -> &mut Entry {
        let limits = self.limits;
        self.entries.entry(id).or_insert_with(|| Entry {
            name: name.to_owned(),
            pace: HostPace::new(limits, now),
            ready: 0,
            picked: 0,
            left: 0,
            ended: 0,
            last_turn: 0,
            drips: (0, None),
            place: Place::Away,
            counted: 0,
            usable_ms: None,
            carried: Duration::ZERO,
            saved_ms: 0,
        })
    }

    fn count_left(&mut self, applied: &Applied, now: Instant) {
        let is_left = |place: &AccountPlace| {
            matches!(place.state, State::Ready | State::Fetching | State::RetryAt(_))
        };
        let at = |place: &AccountPlace| place.host.filter(|_| is_left(place) && applied.listed);
        let (before, after) = (at(&applied.before), at(&applied.after));
        if before == after {
            return;
        }
        if let Some(entry) = before.and_then(|id| self.entries.get_mut(&id)) {
            entry.left = entry.left.saturating_sub(1);
            entry.ended += u64::from(applied.after.state.is_decided());
        }
        if let (Some(id), Some(name)) = (after, &applied.host_name) {
            self.entry(id, name, now).left += 1;
        }
    }

    /// Puts waiting hosts whose time has come among the eligible.
    fn wake(&mut self, now: Instant) {
        while let Some((_, id)) = self.waiting.first().copied().filter(|(at, _)| *at <= now) {
            self.settle(id, now);
        }
    }

    /// Puts a host where it belongs now.
    fn settle(&mut self, id: i64, now: Instant) {
        let Some(entry) = self.entries.get(&id) else { return };
        let place = match entry.pace.state(now) {
            _ if entry.ready <= entry.picked => Place::Away,
            _ if !self.territory.holds(&entry.name, now) => Place::Foreign,
            _ if entry.drips.1.is_some_and(|until| until > now) => {
                Place::Waiting(entry.drips.1.unwrap_or(now))
            }
            HostState::Working => {
                Place::Eligible { ready: entry.ready, last_turn: entry.last_turn }
            }
            _ => match entry.pace.resume_at(now).filter(|at| *at > now) {
                Some(at) => Place::Waiting(at),
                // Its time has come: the next pick is its probe.
                None => Place::Eligible { ready: entry.ready, last_turn: entry.last_turn },
            },
        };
        self.place(id, place);
    }

    fn place(&mut self, id: i64, place: Place) {
        let Some(entry) = self.entries.get_mut(&id) else { return };
        let backlog = |ready: u64| -i64::try_from(ready).unwrap_or(i64::MAX);
        match entry.place {
            Place::Eligible { ready, last_turn } => {
                self.by_backlog.remove(&(ready, id));
                self.by_turn.remove(&(last_turn, backlog(ready), id));
            }
            Place::Waiting(at) => {
                self.waiting.remove(&(at, id));
            }
            Place::Away | Place::Busy | Place::Foreign => {}
        }
        match place {
            Place::Eligible { ready, last_turn } => {
                self.by_backlog.insert((ready, id));
                self.by_turn.insert((last_turn, backlog(ready), id));
            }
            Place::Waiting(at) => {
                self.waiting.insert((at, id));
            }
            Place::Away | Place::Busy | Place::Foreign => {}
        }
        entry.place = place;
        let is_working = match place {
            Place::Waiting(_) => entry.pace.active() > 0,
            Place::Foreign => false,
            _ => true,
        };
        let counted = if is_working { entry.ready.min(READY_COUNTED_PER_HOST_MAX) } else { 0 };
        self.counted = self.counted + counted - entry.counted;
        entry.counted = counted;
    }
}

impl Entry {
    pub(super) fn silence(&self, now: Instant) -> Duration {
        self.carried + self.pace.silence(now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Clock;
    use crate::domain::account::AccountId;
    use crate::domain::ledger::Effect;
    use crate::domain::verdict::RateWindow;

    const PATIENCE: Duration = Duration::from_secs(3_600);
    const SECOND: Duration = Duration::from_secs(1);

    fn hosts(backlogs: &[u64]) -> (Hosts, Instant) {
        let (now, pace) = (
            Clock::system().now(),
            PaceLimits { requests_per_second: 10.0, concurrency: 2, patience: PATIENCE },
        );
        let mut hosts = Hosts::new(pace);
        for (id, ready) in backlogs.iter().enumerate() {
            hosts.know(row(id as i64, *ready, 0), now);
        }
        (hosts, now)
    }

    fn row(id: i64, ready: u64, silence_ms: i64) -> HostRow {
        HostRow { id, name: format!("h{id}"), ready, others: 0, silence_ms }
    }

    fn moved(id: i64, before: State, after: State) -> Applied {
        let place = |state| AccountPlace { state, host: Some(id), alone: false };
        let (id, effect) = (AccountId(1), Effect::Moved);
        let host_name = Some("h".to_owned());
        Applied { id, listed: true, effect, before: place(before), after: place(after), host_name }
    }

    fn said(hosts: &mut Hosts, id: i64, signal: &HostSignal, now: Instant) -> Option<LastError> {
        hosts.said(id, signal, now, 1, &Chance::seeded(1))
    }

    #[test]
    fn the_largest_backlog_has_every_second_pick_and_the_others_take_turns() {
        let (mut hosts, mut now) = hosts(&[5, 500, 50, 5, 5]);
        let mut picked = Vec::new();
        for _ in 0..12 {
            now += SECOND;
            let (id, is_probe) = hosts.pick(now).unwrap();
            assert!(!is_probe);
            picked.push(id);
            hosts.leased(id, 1, 1, false, now);
            hosts.returned(id, now);
        }
        assert_eq!(
            picked.iter().skip(1).step_by(2).filter(|id| **id == 1).count(),
            6,
            "{picked:?}"
        );
        let between: Vec<i64> = picked.iter().copied().step_by(2).collect();
        assert_eq!(between, [1, 2, 0, 3, 4, 2], "first the largest, then whoever waited longest");
    }

    #[test]
    fn a_host_is_picked_at_its_pace_and_not_beyond_its_places_or_its_backlog() {
        let (mut hosts, now) = hosts(&[3]);
        assert_eq!(hosts.pick(now), Some((0, false)));
        assert_eq!(hosts.pick(now), None, "its next turn comes later");
        let next = hosts.next_at().unwrap();
        assert!(next > now && next <= now + SECOND / 9);
        assert_eq!(hosts.pick(next), Some((0, false)));
        assert_eq!(hosts.pick(next + SECOND), None, "two places");
        assert_eq!(hosts.next_at(), None, "only an answer frees one");
        hosts.leased(0, 2, 2, false, next + SECOND);
        for _ in 0..2 {
            hosts.moved(&moved(0, State::Ready, State::Fetching), next + SECOND);
        }
        hosts.returned(0, next + SECOND);
        assert_eq!(hosts.pick(next + 2 * SECOND), Some((0, false)));
        hosts.returned(0, next + 2 * SECOND);
        assert_eq!(hosts.pick(next + 3 * SECOND), None, "one was ready, and it is picked");
        assert_eq!(hosts.left(0), 3);
    }

    #[test]
    fn a_host_that_is_not_ours_is_neither_picked_nor_counted_nor_waited_for() {
        let (mut hosts, now) = hosts(&[200, 30]);
        let territory = Territory::shared();
        territory.set(64, BTreeSet::new());
        hosts.set_territory(territory.clone(), now);
        assert_eq!((hosts.counted(), hosts.pick(now), hosts.next_at()), (0, None, None));
        assert!(!hosts.has_eligible(now));
        let of = |name: &str| territory.partition_of(name).unwrap();
        assert_ne!(of("h0"), of("h1"));
        territory.set(64, BTreeSet::from([of("h1")]));
        territory.renew(now + 10 * SECOND);
        hosts.look_anew(now);
        assert_eq!((hosts.counted(), hosts.pick(now)), (30, Some((1, false))));
        assert_eq!(hosts.pick(now), None, "its next turn comes later, and the other's never");
        assert!(hosts.next_at().unwrap() < now + SECOND);
        // What happens to a host that is not ours makes it no more so.
        hosts.moved(&moved(0, State::Fetching, State::Ready), now);
        said(&mut hosts, 0, &HostSignal::Refused(Some(SECOND)), now);
        hosts.returned(1, now);
        assert_eq!(hosts.pick(now + 9 * SECOND), Some((1, false)));
        assert_eq!(hosts.pick(now + 10 * SECOND), None, "the lease is over");
        assert!(!hosts.is_ours("h1", now + 10 * SECOND));
        assert_eq!((hosts.counted(), hosts.next_at()), (0, None));
        // With the next lease it goes on, and both are asked once both are ours.
        territory.renew(now + 30 * SECOND);
        territory.set(64, BTreeSet::from([of("h0"), of("h1")]));
        hosts.look_anew(now + 11 * SECOND);
        let mut picked: Vec<_> = (0..2).filter_map(|_| hosts.pick(now + 11 * SECOND)).collect();
        picked.sort_unstable();
        assert_eq!(picked, [(0, false), (1, false)]);
        assert_eq!(hosts.counted(), 130);
    }

    #[test]
    fn a_lease_that_finds_less_ends_a_backlog_only_if_nothing_is_there() {
        let (mut hosts, now) = hosts(&[7, 7]);
        hosts.leased(0, 1, 0, false, now);
        hosts.leased(1, 1, 0, true, now);
        let queued = |hosts: &Hosts, name: &str| {
            hosts.views(now).into_iter().find(|view| view.name == name).unwrap().queued
        };
        assert_eq!((queued(&hosts, "h0"), queued(&hosts, "h1")), (7, 0));
    }

    #[test]
    fn a_backlog_counts_up_to_a_hundred_and_not_while_its_host_waits() {
        let (mut hosts, now) = hosts(&[5_000, 30]);
        assert_eq!(hosts.counted(), 130);
        hosts.pick(now).unwrap();
        said(&mut hosts, 0, &HostSignal::Refused(Some(60 * SECOND)), now);
        hosts.returned(0, now);
        assert_eq!(hosts.counted(), 30);
        assert!(hosts.holds(0, now) && !hosts.holds(1, now));
        assert!(hosts.has_eligible(now + 70 * SECOND));
        assert_eq!(hosts.counted(), 130);
    }

    #[test]
    fn silence_goes_on_over_restarts_counts_once_and_ends_with_an_answer() {
        let (mut hosts, now) = hosts(&[]);
        let almost = PATIENCE - 10 * SECOND;
        hosts.know(row(3, 2, i64::try_from(almost.as_millis()).unwrap()), now);
        let fault = HostSignal::Fault(LastError::Connect);
        assert_eq!(said(&mut hosts, 3, &fault, now), None);
        // The lists are read again: what the ledger knows of the silence is not added a second time.
        hosts.know(row(3, 2, i64::try_from(PATIENCE.as_millis()).unwrap()), now);
        assert_eq!(said(&mut hosts, 3, &fault, now + 5 * SECOND), None);
        let over = said(&mut hosts, 3, &fault, now + 11 * SECOND);
        assert_eq!(over, Some(LastError::Connect));
        assert_eq!(said(&mut hosts, 3, &fault, now + 12 * SECOND), None, "patience begins anew");
        assert!(hosts.holds(3, now + 13 * SECOND), "its circuit is still open");
        hosts.know(row(4, 1, 120_000), now);
        assert_eq!(hosts.unsaved_silences(now), [(3, 0)]);
        said(&mut hosts, 4, &HostSignal::Usable(RateWindow::default()), now);
        assert_eq!(hosts.unsaved_silences(now), [(4, 0)]);
    }

    #[test]
    fn a_host_with_something_left_is_remembered_and_an_idle_one_is_not() {
        let (mut hosts, now) = hosts(&[1, 1]);
        let usable = HostSignal::Usable(RateWindow::default());
        for id in [0, 1] {
            hosts.pick(now).unwrap();
            hosts.leased(id, 1, 1, false, now);
            hosts.moved(&moved(id, State::Ready, State::Fetching), now);
            said(&mut hosts, id, &usable, now);
            hosts.returned(id, now);
        }
        hosts.moved(&moved(0, State::Fetching, State::RetryAt(5)), now);
        hosts.sealed(1);
        hosts.drop_idle(now + SECOND);
        assert_eq!((hosts.usable_ms(0), hosts.usable_ms(1)), (Some(1), None));
        assert_eq!((hosts.left(0), hosts.left(1)), (1, 0));
        hosts.moved(&moved(0, State::RetryAt(5), State::Ready), now);
        assert_eq!((hosts.left(0), hosts.counted()), (1, 1));
    }
}
