//! The door for time.
//!
//! Everything that asks what time it is asks a [`Clock`]. Monotonic time is tokio's, so that paused tests own it; wall
//! time is the system's, or the test's own. Timers use monotonic time only: a wall clock that jumps starts no storm.
//! Wall time is kept in the ledger as whole milliseconds since 1970-01-01T00:00:00Z.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

pub use tokio::time::Instant;

/// Tells the time; cheap to clone.
#[derive(Clone, Debug)]
pub struct Clock {
    /// `None`: the system's wall clock.
    fixed_wall_ms: Option<Arc<AtomicI64>>,
    /// When this clock was made, and what the wall clock showed then.
    made: (Instant, i64),
}

impl Clock {
    /// The system's clock.
    #[must_use]
    pub fn system() -> Self {
        Self { fixed_wall_ms: None, made: (Instant::now(), system_wall_ms()) }
    }

    /// A clock whose wall time stands at `wall_ms` until [`Clock::set_wall_ms`] moves it.
    #[must_use]
    pub fn fixed(wall_ms: i64) -> Self {
        let fixed_wall_ms = Some(Arc::new(AtomicI64::new(wall_ms)));
        Self { fixed_wall_ms, made: (Instant::now(), wall_ms) }
    }

    /// Monotonic time.
    #[must_use]
    pub fn now(&self) -> Instant {
        Instant::now()
    }

    /// Wall time in milliseconds since 1970-01-01T00:00:00Z.
    #[must_use]
    pub fn wall_ms(&self) -> i64 {
        match &self.fixed_wall_ms {
            Some(fixed) => fixed.load(Ordering::Acquire),
            None => system_wall_ms(),
        }
    }

    /// What retries and waits are counted by: wall time when this clock was made, and monotonic time since. A wall clock that is
    /// set, jumps or stands still neither hurries nor holds up anything; a fixed clock is taken as it is.
    #[must_use]
    pub fn steady_ms(&self) -> i64 {
        if self.fixed_wall_ms.is_some() {
            return self.wall_ms();
        }
        let (at, wall_ms) = self.made;
        let since = i64::try_from(self.now().saturating_duration_since(at).as_millis());
        wall_ms.saturating_add(since.unwrap_or(i64::MAX))
    }

    /// Wall time as UTC text `YYYY-MM-DD-HH:MM:SS`, the form of every timestamp that readers see.
    #[must_use]
    pub fn wall_text(&self) -> String {
        wall_text(self.wall_ms())
    }

    /// Moves a fixed clock; the system's clock stays as it is.
    pub fn set_wall_ms(&self, wall_ms: i64) {
        if let Some(fixed) = &self.fixed_wall_ms {
            fixed.store(wall_ms, Ordering::Release);
        }
    }
}

fn system_wall_ms() -> i64 {
    chrono::Utc::now().timestamp_millis()
}

/// `wall_ms` (milliseconds since 1970) as UTC text `YYYY-MM-DD-HH:MM:SS`.
#[must_use]
pub fn wall_text(wall_ms: i64) -> String {
    chrono::DateTime::from_timestamp_millis(wall_ms)
        .unwrap_or_default()
        .format("%Y-%m-%d-%H:%M:%S")
        .to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wall_time_is_written_the_way_readers_know_it() {
        let clock = Clock::fixed(1_727_395_200_000);
        assert_eq!(clock.wall_text(), "2024-09-27-00:00:00");
        clock.set_wall_ms(1_727_395_201_999);
        assert_eq!(clock.wall_text(), "2024-09-27-00:00:01");
    }

    #[tokio::test(start_paused = true)]
    async fn steady_time_is_monotonic_time_with_a_date() {
        let clock = Clock::system();
        let (begun, hour) = (clock.steady_ms(), std::time::Duration::from_secs(3_600));
        tokio::time::sleep(hour).await;
        assert_eq!(clock.steady_ms() - begun, 3_600_000);
        assert!(clock.wall_ms() - begun < 3_000_000, "the wall clock knows nothing of it");
    }
}
