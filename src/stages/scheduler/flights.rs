//! Flights: the accounts between their lease and the return of their ticket. Pure.
//!
//! An account in flight is not among those that wait: when the patience with its host ends meanwhile, it is remembered here,
//! so that its own bad answer ends it too. It may be the last one there, with nobody left to end it later.

use std::collections::HashMap;
use std::time::Duration;

use crate::clock::Instant;
use crate::domain::account::AccountId;
use crate::domain::ledger::{Event, millis};
use crate::domain::verdict::{Cause, Failure, LastError, Reason};

use super::terms::Now;

/// First delay of an account whose transfer dripped; it doubles.
const DRIP_DELAY: Duration = Duration::from_secs(60);

/// Longest one.
const DRIP_DELAY_MAX: Duration = Duration::from_secs(3_600);

/// Such accounts that are remembered, some megabytes; beyond that their delays begin anew.
const DRIPS_MAX: usize = 65_536;

/// Who is asked for an account.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// The PLC directory.
    Directory,
    /// The web host of a `did:web`.
    Web,
    /// A PDS host, by its row in the ledger.
    Host(i64),
}

/// Where an account in flight is.
#[derive(Clone, Copy, Debug)]
pub struct Flight {
    /// Who is asked for it.
    pub way: Way,
    /// While it is out, nothing else is leased.
    pub runs_alone: bool,
    /// Patience with whoever is asked ended meanwhile.
    pub patience_over: bool,
}

impl Flight {
    /// Row of its host, if it is being fetched.
    #[must_use]
    pub fn host(&self) -> Option<i64> {
        if let Way::Host(host) = self.way { Some(host) } else { None }
    }

    /// What a failure means for it; `host_usable_ms` is when its host last gave a usable answer, ledger time.
    #[must_use]
    pub fn failed(&self, failure: Failure, host_usable_ms: Option<i64>) -> Event {
        let is_no_better =
            matches!(failure.cause, Cause::HostFault | Cause::RateLimited | Cause::Directory);
        if !self.patience_over || !is_no_better {
            return Event::Failed { failure, host_usable_ms };
        }
        let reason = match self.way {
            Way::Host(_) => Reason::HostUnavailable,
            Way::Directory | Way::Web => Reason::DirectoryUnavailable,
        };
        let Failure { last_error, detail, .. } = failure;
        Event::PatienceEnded { reason, last_error, detail }
    }
}

/// All of them.
#[derive(Debug, Default)]
pub struct Flights {
    out: HashMap<AccountId, Flight>,
    /// Of these, those that are being fetched and those that run alone: asked for with every batch.
    fetching: usize,
    lone: usize,
    /// Accounts whose transfers gave their places back: how often, and when first.
    drips: HashMap<AccountId, (u32, Instant)>,
}

impl Flights {
    /// An account goes out.
    pub fn begin(&mut self, id: AccountId, flight: Flight) {
        self.end(id);
        self.fetching += usize::from(flight.host().is_some());
        self.lone += usize::from(flight.runs_alone);
        self.out.insert(id, flight);
    }

    /// Where an account is, if it is out.
    #[must_use]
    pub fn get(&self, id: AccountId) -> Option<Flight> {
        self.out.get(&id).copied()
    }

    /// A transfer gave its place back: its account comes again later each time, until patience with its host is over.
    pub fn dripped(&mut self, id: AccountId, now: Now, patience: Duration) -> Event {
        if self.drips.len() >= DRIPS_MAX {
            self.drips.clear();
        }
        let (times, first) = self.drips.entry(id).or_insert((0, now.at));
        if now.at.saturating_duration_since(*first) >= patience {
            let (reason, last_error) = (Reason::HostUnavailable, Some(LastError::TooSlow));
            let detail = "too slow, each time it was asked for".to_owned();
            self.drips.remove(&id);
            return Event::PatienceEnded { reason, last_error, detail };
        }
        let wait = DRIP_DELAY.saturating_mul(1 << (*times).min(8)).min(DRIP_DELAY_MAX);
        *times += 1;
        Event::NotBefore(now.wall_ms.saturating_add(millis(wait)))
    }

    /// A transfer ended well.
    pub fn was_good(&mut self, id: AccountId) {
        self.drips.remove(&id);
    }

    /// An account is back.
    pub fn end(&mut self, id: AccountId) {
        let Some(flight) = self.out.remove(&id) else { return };
        self.fetching -= usize::from(flight.host().is_some());
        self.lone -= usize::from(flight.runs_alone);
    }

    /// How many are out.
    #[must_use]
    pub fn len(&self) -> usize {
        self.out.len()
    }

    /// Whether none is out.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.out.is_empty()
    }

    /// How many are being fetched.
    #[must_use]
    pub fn fetching(&self) -> usize {
        self.fetching
    }

    /// Whether one is out that runs alone.
    #[must_use]
    pub fn has_lone(&self) -> bool {
        self.lone > 0
    }

    /// Patience with `way` is over.
    pub fn patience_ended(&mut self, way: Way) {
        let there = self.out.values_mut().filter(|flight| flight.way == way);
        there.for_each(|flight| flight.patience_over = true);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patience_that_ended_meanwhile_ends_those_with_no_better_answer() {
        let (id, other) = (AccountId(1), AccountId(2));
        let mut flights = Flights::default();
        for (id, way) in [(id, Way::Host(7)), (other, Way::Directory)] {
            flights.begin(id, Flight { way, runs_alone: false, patience_over: false });
        }
        let failed = |flights: &Flights, id, cause| {
            let failure = Failure::new(cause, Some(LastError::Http5xx), "evidence");
            flights.get(id).unwrap().failed(failure, Some(3))
        };
        assert!(matches!(failed(&flights, id, Cause::HostFault), Event::Failed { .. }));
        flights.patience_ended(Way::Host(7));
        for cause in [Cause::HostFault, Cause::RateLimited] {
            let expected = Event::PatienceEnded {
                reason: Reason::HostUnavailable,
                last_error: Some(LastError::Http5xx),
                detail: "evidence".to_owned(),
            };
            assert_eq!(failed(&flights, id, cause), expected);
        }
        assert!(matches!(failed(&flights, id, Cause::Transient), Event::Failed { .. }));
        assert!(matches!(failed(&flights, other, Cause::Directory), Event::Failed { .. }));
        flights.patience_ended(Way::Directory);
        let ended = failed(&flights, other, Cause::Directory);
        let reason = Reason::DirectoryUnavailable;
        assert!(matches!(ended, Event::PatienceEnded { reason: r, .. } if r == reason));
        assert_eq!((flights.len(), flights.fetching(), flights.has_lone()), (2, 1, false));
        flights.end(id);
        flights.end(id);
        assert_eq!((flights.len(), flights.fetching()), (1, 0), "an end counts once");
        for runs_alone in [false, true, true] {
            flights.begin(other, Flight { way: Way::Host(7), runs_alone, patience_over: false });
            assert_eq!((flights.fetching(), flights.has_lone()), (1, runs_alone));
        }
        flights.end(other);
        assert!(flights.is_empty() && flights.fetching() == 0 && !flights.has_lone());
    }
}
