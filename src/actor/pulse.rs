//! The pulse of work on a thread: what is in an endless loop is found, what only waits for others is not.
//!
//! Work beats whenever it gets on, and says where it rests (waits for memory or for the next stage). Whoever watches learns
//! that it is silent once it neither beat nor rested at [`LOOKS`] looks in a row. Looks that come late, because the process
//! was stopped for a while, count once: a pause of everybody is no illness of one.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::{MissedTickBehavior, interval};

/// Looks in a row at which silent work must have been silent.
pub const LOOKS: u32 = 4;

/// See the header.
#[derive(Debug, Default)]
pub struct Pulse {
    beats: AtomicU64,
    is_resting: AtomicBool,
}

impl Pulse {
    /// The work got on.
    pub fn beat(&self) {
        self.beats.fetch_add(1, Ordering::Relaxed);
    }

    /// The work waits for others from now on, as long as that takes, or no longer does.
    pub fn set_resting(&self, is_resting: bool) {
        self.beat();
        self.is_resting.store(is_resting, Ordering::Release);
    }

    /// Runs `wait`, which waits for others.
    pub fn rest<R>(&self, wait: impl FnOnce() -> R) -> R {
        self.set_resting(true);
        let result = wait();
        self.set_resting(false);
        result
    }

    /// Ends when the work was silent for `patience`.
    pub async fn silent(&self, patience: Duration) {
        let mut looks = interval(patience / LOOKS);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // The first one is due at once.
        looks.tick().await;
        let (mut seen, mut silent) = (self.beats.load(Ordering::Relaxed), 0);
        while silent < LOOKS {
            looks.tick().await;
            let beats = self.beats.load(Ordering::Relaxed);
            let is_silent = beats == seen && !self.is_resting.load(Ordering::Acquire);
            silent = if is_silent { silent + 1 } else { 0 };
            seen = beats;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Duration = Duration::from_secs(120);

    #[tokio::test(start_paused = true)]
    async fn what_neither_beats_nor_rests_is_silent_after_its_patience() {
        let begun = tokio::time::Instant::now();
        Pulse::default().silent(PATIENCE).await;
        assert_eq!(begun.elapsed(), PATIENCE);
    }

    #[tokio::test(start_paused = true)]
    async fn what_beats_or_rests_is_not() {
        let pulse = Pulse::default();
        let beating = async {
            for _ in 0..100 {
                tokio::time::sleep(PATIENCE / 2).await;
                pulse.beat();
            }
        };
        tokio::select! {
            () = pulse.silent(PATIENCE) => panic!("it beat all the time"),
            () = beating => {}
        }
        pulse.set_resting(true);
        let watched = tokio::time::timeout(PATIENCE * 100, pulse.silent(PATIENCE)).await;
        assert!(watched.is_err(), "it rested all the time");
        pulse.rest(|| ());
        let watched = tokio::time::timeout(PATIENCE * 2, pulse.silent(PATIENCE)).await;
        assert!(watched.is_ok(), "it no longer rests");
    }
}
