//! Territory: which hosts this process may ask, where several processes share them.
//!
//! ```text
//!  everywhere   every host is ours, always: a process that works alone
//!  shared       hosts lie in partitions (`domain::partition`); a host is ours while we own its partition and hold the lease
//! ```
//! Invariants: in a shared territory nothing is ours before it was set and the lease was given; from the lease's end on nothing
//! is, however late this process notices, because whoever asks brings the time of asking. Whoever was told that a host is not
//! ours hears of it when that may have changed.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use tokio::sync::watch;

use crate::clock::Instant;
use crate::domain::partition;

/// Which hosts are ours; a clone is the same one.
#[derive(Clone, Debug)]
pub struct Territory {
    /// `None`: everywhere.
    shared: Option<Arc<Shared>>,
    changes: Arc<watch::Sender<u64>>,
}

#[derive(Debug, Default)]
struct Shared {
    terms: RwLock<Terms>,
    /// Somebody was told that a host of ours is not, because the lease was over.
    has_lapsed: AtomicBool,
}

#[derive(Debug, Default)]
struct Terms {
    /// Of the topic; `None`: nobody has said yet.
    partitions: Option<u32>,
    owned: BTreeSet<i32>,
    /// The lease.
    until: Option<Instant>,
}

impl Default for Territory {
    fn default() -> Self {
        Self::everywhere()
    }
}

impl Territory {
    /// Every host is ours, always.
    #[must_use]
    pub fn everywhere() -> Self {
        Self { shared: None, changes: Arc::new(watch::Sender::new(0)) }
    }

    /// Nothing is ours until [`Territory::set`] and [`Territory::renew`] say so.
    #[must_use]
    pub fn shared() -> Self {
        Self { shared: Some(Arc::default()), ..Self::everywhere() }
    }

    /// The partitions that we own, of so many; the lease is as it was. Everywhere stays everywhere.
    pub fn set(&self, partitions: u32, owned: BTreeSet<i32>) {
        let Some(shared) = &self.shared else { return };
        {
            let mut terms = shared.terms.write().unwrap_or_else(PoisonError::into_inner);
            (terms.partitions, terms.owned) = (Some(partitions), owned);
        }
        self.bump();
    }

    /// The lease holds until `until`, whatever it was before.
    pub fn renew(&self, until: Instant) {
        let Some(shared) = &self.shared else { return };
        let ends_lapse = {
            let mut terms = shared.terms.write().unwrap_or_else(PoisonError::into_inner);
            terms.until = Some(until);
            shared.has_lapsed.swap(false, Ordering::AcqRel)
        };
        if ends_lapse {
            self.bump();
        }
    }

    /// Whether the lease holds now; everywhere there is none to end.
    #[must_use]
    pub fn is_leased(&self, now: Instant) -> bool {
        let Some(shared) = &self.shared else { return true };
        shared.terms.read().unwrap_or_else(PoisonError::into_inner).is_leased(now)
    }

    /// Whether this host (as `Identity::host`) may be asked now.
    #[must_use]
    pub fn holds(&self, host: &str, now: Instant) -> bool {
        let Some(shared) = &self.shared else { return true };
        let terms = shared.terms.read().unwrap_or_else(PoisonError::into_inner);
        let is_owned = terms.partition_of(host).is_some_and(|it| terms.owned.contains(&it));
        let is_leased = terms.is_leased(now);
        if is_owned && !is_leased {
            // Still under the lock: the renewal that ends this lapse comes after it, and sees it.
            shared.has_lapsed.store(true, Ordering::Release);
        }
        is_owned && is_leased
    }

    /// The partition that a host lies in; `None`: everywhere, or nobody has said how many there are.
    #[must_use]
    pub fn partition_of(&self, host: &str) -> Option<i32> {
        let shared = self.shared.as_ref()?;
        let terms = shared.terms.read().unwrap_or_else(PoisonError::into_inner);
        terms.partition_of(host)
    }

    /// Changes whenever a host that was not ours may be, or the other way round; the end of a lease changes nothing here.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    fn bump(&self) {
        self.changes.send_modify(|changes| *changes += 1);
    }
}

impl Terms {
    fn is_leased(&self, now: Instant) -> bool {
        self.until.is_some_and(|until| now < until)
    }

    fn partition_of(&self, host: &str) -> Option<i32> {
        i32::try_from(partition::of_key(host, self.partitions?)).ok()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::clock::Clock;

    const SECOND: Duration = Duration::from_secs(1);
    const PARTITIONS: u32 = 12;

    fn hosts() -> impl Iterator<Item = String> {
        (0..200).map(|number| format!("h{number}.example"))
    }

    #[test]
    fn alone_every_host_is_ours_and_nothing_changes_that() {
        let (alone, now) = (Territory::everywhere(), Clock::system().now());
        alone.set(PARTITIONS, BTreeSet::new());
        alone.renew(now);
        assert!(hosts().all(|host| alone.holds(&host, now + 1_000 * SECOND)));
        assert_eq!(alone.partition_of("h1.example"), None);
        assert!(!alone.changes().has_changed().unwrap() && *alone.changes().borrow() == 0);
    }

    #[test]
    fn shared_hosts_are_held_by_exactly_the_owner_of_their_partition_while_it_has_the_lease() {
        let now = Clock::system().now();
        let all: Vec<Territory> = (0..3).map(|_| Territory::shared()).collect();
        let held = |host: &str, at| all.iter().filter(|it| it.holds(host, at)).count();
        assert!(hosts().all(|host| held(&host, now) == 0), "nobody was told anything");
        for (number, territory) in (0..).zip(&all) {
            territory.renew(now + 10 * SECOND);
            assert!(!territory.holds("h1.example", now), "a lease on nothing");
            territory.set(PARTITIONS, (0..12).filter(|it| it % 3 == number).collect());
        }
        assert!(hosts().all(|host| held(&host, now) == 1));
        let partition = all[0].partition_of("h1.example").unwrap();
        assert!(
            all[partition as usize % 3].clone().holds("h1.example", now),
            "a clone is the same"
        );
        assert!(hosts().all(|host| held(&host, now + 10 * SECOND) == 0), "the lease is over");
        all[1].renew(now + 20 * SECOND);
        assert!(hosts().all(|host| {
            let is_its = all[1].partition_of(&host).unwrap() % 3 == 1;
            held(&host, now + 10 * SECOND) == usize::from(is_its)
        }));
        // A lease that is given back.
        all[1].renew(now);
        assert!(hosts().all(|host| held(&host, now + 10 * SECOND) == 0));
    }

    #[test]
    fn a_change_is_told_and_a_renewal_only_when_somebody_missed_it() {
        let (territory, now) = (Territory::shared(), Clock::system().now());
        let mut changes = territory.changes();
        let mut is_told = || changes.has_changed().unwrap() && *changes.borrow_and_update() > 0;
        territory.renew(now + SECOND);
        assert!(!is_told());
        territory.set(1, BTreeSet::from([0]));
        assert!(is_told());
        territory.renew(now + 2 * SECOND);
        assert!(territory.holds("h", now + SECOND) && !is_told());
        // The lease lapsed and nobody asked meanwhile: nobody has to hear of it.
        territory.renew(now + 5 * SECOND);
        assert!(!is_told());
        assert!(!territory.holds("h", now + 5 * SECOND));
        territory.renew(now + 9 * SECOND);
        assert!(is_told() && territory.holds("h", now + 5 * SECOND));
        territory.renew(now + 10 * SECOND);
        assert!(!is_told(), "once");
        territory.set(1, BTreeSet::new());
        assert!(is_told() && !territory.holds("h", now + 5 * SECOND));
        territory.renew(now + 11 * SECOND);
        assert!(!is_told(), "what is not ours was not missed");
    }
}
