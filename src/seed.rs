//! The door for chance: jitter and random identifiers come from here, from a seed in tests and from the system otherwise.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// A source of random numbers; cheap to clone, clones share one sequence. Not for secrets.
#[derive(Clone, Debug)]
pub struct Chance(Arc<Mutex<fastrand::Rng>>);

impl Chance {
    /// Seeded by the system.
    #[must_use]
    pub fn system() -> Self {
        Self(Arc::new(Mutex::new(fastrand::Rng::new())))
    }

    /// The same sequence for the same `seed`.
    #[must_use]
    pub fn seeded(seed: u64) -> Self {
        Self(Arc::new(Mutex::new(fastrand::Rng::with_seed(seed))))
    }

    /// 64 random bits.
    #[must_use]
    pub fn bits(&self) -> u64 {
        self.with(|rng| rng.u64(..))
    }

    /// Evenly distributed in `0.0..1.0`.
    #[must_use]
    pub fn fraction(&self) -> f64 {
        self.with(fastrand::Rng::f64)
    }

    /// Full jitter: evenly distributed between nothing and `bound`.
    #[must_use]
    pub fn up_to(&self, bound: Duration) -> Duration {
        bound.mul_f64(self.fraction())
    }

    fn with<T>(&self, draw: impl FnOnce(&mut fastrand::Rng) -> T) -> T {
        draw(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_gives_one_sequence_and_clones_share_it() {
        let (one, two) = (Chance::seeded(7), Chance::seeded(7));
        let twin = one.clone();
        assert_eq!([one.bits(), twin.bits()], [two.bits(), two.bits()]);
        assert!(one.up_to(Duration::from_secs(5)) <= Duration::from_secs(5));
    }
}
