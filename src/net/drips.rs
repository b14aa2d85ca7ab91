//! Drips: which transfers give their places back, so that a few patient strangers do not hold them all. Pure but for its lock.
//!
//! A transfer is *slow* when we have waited for its host for 60 s or more and it came at less than a tenth of the median speed of
//! those that ended well. At most a quarter of the places may be held by slow ones; above that the slowest goes back, uncharged.
//! Time in which nobody read, because a disk was full, is nobody's.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::clock::{Clock, Instant};
use crate::limits::{DRIP_AGE_SECONDS, DRIP_PLACES_SHARE, DRIP_SPEED_SHARE};

/// Transfers whose speeds make the median: enough that one of them says nothing.
const SPEEDS_MAX: usize = 101;

/// With fewer than so many there is no median.
const SPEEDS_MIN: usize = 3;

/// A body that comes in one piece took at least this long: nobody measures less.
const LEAST: Duration = Duration::from_millis(1);

/// All transfers in hand; clones share them.
#[derive(Clone, Debug)]
pub struct Transfers(Arc<Mutex<Table>>);

#[derive(Debug)]
struct Table {
    places: usize,
    number: u64,
    transfers: HashMap<u64, Known>,
    /// Bytes per second of those that ended well last.
    speeds: VecDeque<f64>,
}

#[derive(Clone, Copy, Debug)]
struct Known {
    waited: Duration,
    waits_since: Instant,
    bytes: u64,
}

impl Known {
    fn age(&self, now: Instant) -> Duration {
        self.waited + now.saturating_duration_since(self.waits_since)
    }

    #[allow(clippy::cast_precision_loss, reason = "a speed")]
    fn speed(&self, now: Instant) -> f64 {
        self.bytes as f64 / self.age(now).max(LEAST).as_secs_f64()
    }
}

/// One transfer; dropped, it is over.
#[derive(Debug)]
pub struct Transfer {
    all: Transfers,
    number: u64,
}

impl Transfers {
    /// None yet, of at most `places`.
    #[must_use]
    pub fn new(places: usize) -> Self {
        let (transfers, speeds) = (HashMap::new(), VecDeque::new());
        Self(Arc::new(Mutex::new(Table { places, number: 0, transfers, speeds })))
    }

    /// One whose body we begin to wait for.
    #[must_use]
    pub fn begin(&self, now: Instant) -> Transfer {
        let mut table = self.lock();
        table.number += 1;
        let number = table.number;
        let known = Known { waited: Duration::ZERO, waits_since: now, bytes: 0 };
        table.transfers.insert(number, known);
        Transfer { all: self.clone(), number }
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        // Every change is whole whatever happened to another holder.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Transfer {
    /// We begin to wait for more.
    pub fn waits(&self, now: Instant) {
        if let Some(known) = self.all.lock().transfers.get_mut(&self.number) {
            known.waits_since = now;
        }
    }

    /// So many bytes came.
    pub fn received(&self, bytes: u64, now: Instant) {
        if let Some(known) = self.all.lock().transfers.get_mut(&self.number) {
            (known.waited, known.waits_since) = (known.age(now), now);
            known.bytes += bytes;
        }
    }

    /// It ended well.
    pub fn ended(&self, now: Instant) {
        let mut table = self.all.lock();
        if let Some(known) = table.transfers.get(&self.number).copied() {
            table.speeds.push_back(known.speed(now));
            if table.speeds.len() > SPEEDS_MAX {
                table.speeds.pop_front();
            }
        }
    }

    /// Whether it is to give its place back now; it then counts no more.
    #[must_use]
    pub fn yields(&self, now: Instant) -> bool {
        let mut table = self.all.lock();
        let is_it = table.is_too_slow(self.number, now);
        if is_it {
            table.transfers.remove(&self.number);
        }
        is_it
    }

    /// Comes when it is to give its place back.
    pub async fn is_given_up(&self, clock: &Clock) {
        let mut next = Duration::from_secs(DRIP_AGE_SECONDS);
        loop {
            tokio::time::sleep(next).await;
            if self.yields(clock.now()) {
                return;
            }
            next = Duration::from_secs(1);
        }
    }
}

impl Drop for Transfer {
    fn drop(&mut self) {
        self.all.lock().transfers.remove(&self.number);
    }
}

impl Table {
    /// Whether `number` is among the slow ones that are too many, the slowest of them.
    fn is_too_slow(&self, number: u64, now: Instant) -> bool {
        let Some(median) = self.median() else { return false };
        let is_slow = |known: &Known| {
            let is_old = known.age(now) >= Duration::from_secs(DRIP_AGE_SECONDS);
            is_old && known.speed(now) < median / DRIP_SPEED_SHARE
        };
        let Some(own) = self.transfers.get(&number).filter(|own| is_slow(own)) else {
            return false;
        };
        let (mut slow, mut slower) = (0, 0);
        for (other, known) in self.transfers.iter().filter(|(_, known)| is_slow(known)) {
            slow += 1;
            // Among equals the youngest: the others have more to lose.
            let by_speed = known.speed(now).total_cmp(&own.speed(now));
            slower += usize::from(by_speed.then(number.cmp(other)).is_lt());
        }
        slow > self.places / DRIP_PLACES_SHARE + slower
    }

    fn median(&self) -> Option<f64> {
        let mut speeds: Vec<f64> = self.speeds.iter().copied().collect();
        if speeds.len() < SPEEDS_MIN {
            return None;
        }
        speeds.sort_by(f64::total_cmp);
        speeds.get(speeds.len() / 2).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    /// 16 places, and ten transfers that ended at 100 bytes per second.
    fn ended() -> (Transfers, Instant) {
        let (transfers, now) = (Transfers::new(16), Clock::system().now());
        for _ in 0..10 {
            let transfer = transfers.begin(now);
            transfer.received(100, now + SECOND);
            transfer.ended(now + SECOND);
        }
        (transfers, now)
    }

    #[test]
    fn above_a_quarter_of_the_places_the_slowest_go_back_until_a_quarter_is_left() {
        let (transfers, now) = ended();
        let slow: Vec<Transfer> = (0..7).map(|_| transfers.begin(now)).collect();
        assert!(slow.iter().all(|transfer| !transfer.yields(now + 59 * SECOND)), "too young");
        let late = now + 61 * SECOND;
        for (number, transfer) in (1_u64..).zip(&slow) {
            transfer.received(number * 10, late);
        }
        let ask = |transfer: &Transfer| transfer.yields(late);
        let gone: Vec<bool> = slow.iter().rev().map(ask).collect();
        assert_eq!(gone, [false, false, false, false, true, true, true], "within one look");
        assert!(!slow.iter().any(ask), "a quarter may stay");
    }

    #[test]
    fn what_is_not_ten_times_slower_than_others_stays_and_without_others_nobody_is_slow() {
        let (transfers, now) = ended();
        let late = now + 100 * SECOND;
        let fair: Vec<Transfer> = (0..16).map(|_| transfers.begin(now)).collect();
        fair.iter().for_each(|transfer| transfer.received(1_001, late));
        assert!(fair.iter().all(|transfer| !transfer.yields(late)), "10.01 bytes per second");
        let alone = Transfers::new(4);
        let slow: Vec<Transfer> = (0..4).map(|_| alone.begin(now)).collect();
        assert!(slow.iter().all(|transfer| !transfer.yields(late)), "nothing to compare with");
    }

    #[test]
    fn time_in_which_nobody_read_is_nobodys() {
        let (transfers, now) = ended();
        let paused: Vec<Transfer> = (0..16).map(|_| transfers.begin(now)).collect();
        for transfer in &paused {
            transfer.received(100, now + SECOND);
            transfer.waits(now + 3_600 * SECOND);
        }
        let late = now + 3_602 * SECOND;
        assert!(paused.iter().all(|transfer| !transfer.yields(late)));
        let later = now + 3_670 * SECOND;
        assert!(paused.iter().any(|transfer| transfer.yields(later)));
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_is_to_give_its_place_back_hears_of_it() {
        let (transfers, now) = ended();
        let slow: Vec<Transfer> = (0..5).map(|_| transfers.begin(now)).collect();
        let clock = Clock::system();
        let heard = futures::future::select_all(
            slow.iter().map(|transfer| Box::pin(transfer.is_given_up(&clock))),
        );
        let ((), which, others) = heard.await;
        assert!(now.elapsed() >= 60 * SECOND && now.elapsed() < 62 * SECOND && which == 4);
        let rest = futures::future::select_all(others);
        assert!(tokio::time::timeout(3_600 * SECOND, rest).await.is_err(), "a quarter may stay");
    }
}
