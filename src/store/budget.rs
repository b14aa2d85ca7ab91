//! Byte budgets: memory that must be asked for before it is used.
//!
//! A budget is counted in KiB, first come first served. What is asked for in vain for ever (more than the whole budget) is
//! refused. Reservations travel with the data and come back when they are dropped.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Bytes of one permit.
const UNIT_BYTES: u64 = 1 << 10;

/// How often a waiting thread looks at its cancel flag.
const CANCEL_POLL_MILLISECONDS: u64 = 100;

/// A number of bytes shared by many; clones are the same budget.
#[derive(Clone, Debug)]
pub struct Budget {
    units: u32,
    free: Arc<Semaphore>,
}

/// Bytes in hand.
#[derive(Debug)]
pub struct Reservation(OwnedSemaphorePermit);

/// More was asked for than there is in all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NeverFits;

impl Budget {
    /// A budget of `bytes`, rounded down to KiB.
    #[must_use]
    pub fn new(bytes: u64) -> Self {
        let units = u32::try_from(bytes / UNIT_BYTES).unwrap_or(u32::MAX);
        Self { units, free: Arc::new(Semaphore::new(units as usize)) }
    }

    /// All bytes.
    #[must_use]
    pub fn limit(&self) -> u64 {
        u64::from(self.units) * UNIT_BYTES
    }

    /// Bytes in hands.
    #[must_use]
    pub fn used(&self) -> u64 {
        self.limit() - self.free.available_permits() as u64 * UNIT_BYTES
    }

    /// Takes `bytes` if they are free now.
    #[must_use]
    pub fn try_take(&self, bytes: u64) -> Option<Reservation> {
        let units = self.units(bytes).ok()?;
        Arc::clone(&self.free).try_acquire_many_owned(units).ok().map(Reservation)
    }

    /// Waits for `bytes`.
    ///
    /// # Errors
    /// [`NeverFits`] if the budget is smaller than that.
    pub async fn take(&self, bytes: u64) -> Result<Reservation, NeverFits> {
        let units = self.units(bytes)?;
        let permits = Arc::clone(&self.free).acquire_many_owned(units).await;
        permits.map(Reservation).map_err(|_closed| NeverFits)
    }

    /// Waits for `bytes` on a thread of its own, until `cancel` is set; `None` then, or if it can never fit.
    #[must_use]
    pub fn blocking_take(
        &self,
        bytes: u64,
        runtime: &Handle,
        cancel: &AtomicBool,
    ) -> Option<Reservation> {
        if let Some(taken) = self.try_take(bytes) {
            return Some(taken);
        }
        let mut taking = Box::pin(self.take(bytes));
        let patience = Duration::from_millis(CANCEL_POLL_MILLISECONDS);
        loop {
            let waited = async { tokio::time::timeout(patience, &mut taking).await };
            if let Ok(taken) = runtime.block_on(waited) {
                return taken.ok();
            }
            if cancel.load(Ordering::Acquire) {
                return None;
            }
        }
    }

    fn units(&self, bytes: u64) -> Result<u32, NeverFits> {
        let units = u32::try_from(bytes.div_ceil(UNIT_BYTES)).map_err(|_| NeverFits)?;
        if units > self.units { Err(NeverFits) } else { Ok(units) }
    }
}

impl Reservation {
    /// Bytes in hand.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.0.num_permits() as u64 * UNIT_BYTES
    }

    /// Gives up to `bytes` of it to somebody else.
    #[must_use]
    pub fn split(&mut self, bytes: u64) -> Option<Self> {
        let units = usize::try_from(bytes.div_ceil(UNIT_BYTES)).ok()?;
        self.0.split(units.min(self.0.num_permits())).map(Self)
    }

    /// Joins another reservation of the same budget to it.
    pub fn merge(&mut self, other: Self) {
        self.0.merge(other.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn bytes_come_back_when_dropped_and_are_given_in_turn() {
        let budget = Budget::new(10 << 10);
        let mut first = budget.try_take(8 << 10).unwrap();
        assert!(budget.try_take(4 << 10).is_none());
        assert_eq!(budget.take(11 << 10).await.unwrap_err(), NeverFits);
        let half = first.split(4 << 10).unwrap();
        assert_eq!((first.bytes(), half.bytes(), budget.used()), (4096, 4096, 8192));
        let waiting = budget.take(6 << 10);
        drop(half);
        assert_eq!(waiting.await.unwrap().bytes(), 6144);
        drop(first);
        assert_eq!(budget.used(), 0);
    }

    #[test]
    fn what_is_joined_is_held_until_the_whole_is_dropped() {
        let budget = Budget::new(10 << 10);
        let (mut first, second) =
            (budget.try_take(2 << 10).unwrap(), budget.try_take(3 << 10).unwrap());
        first.merge(second);
        assert_eq!((first.bytes(), budget.used()), (5 << 10, 5 << 10));
        drop(first);
        assert_eq!(budget.used(), 0);
    }

    #[test]
    fn a_waiting_thread_is_cancelled() {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_time()
            .build()
            .unwrap();
        let (budget, cancel) = (Budget::new(1 << 10), AtomicBool::new(false));
        let held = budget.try_take(1).unwrap();
        std::thread::scope(|scope| {
            let waiting =
                scope.spawn(|| budget.blocking_take(1, runtime.handle(), &cancel).is_none());
            cancel.store(true, Ordering::Release);
            assert!(waiting.join().unwrap());
        });
        drop(held);
        assert!(budget.blocking_take(1, runtime.handle(), &cancel).is_some());
    }
}
