//! How long a body may take: a judge without a clock of its own.
//!
//! It counts *host time* only: the time in which skyfill waited for the host. While a body lies unread because a disk is full
//! or a parser is busy, nobody's patience runs out.
//!
//! ```text
//!  silent for idle_timeout                                   Idle
//!  body older than 60 s, last 60 s below the minimum rate    TooSlow   (a younger body is judged by Idle alone)
//!  request and body together longer than total_timeout       OverTime
//! ```

use std::collections::VecDeque;
use std::time::Duration;

/// Seconds over which the rate is averaged (PROTOCOL section 4: short stalls are normal, 512 KiB/s killed healthy ones).
const RATE_WINDOW_SECONDS: u64 = 60;

/// What a body may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Longest silence.
    pub idle: Duration,
    /// Request and body together.
    pub total: Duration,
    /// Least average rate over a minute, bytes per second; 0 for any.
    pub bytes_per_second_min: u64,
}

/// Why a body is given up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Impatience {
    /// Silent for too long.
    Idle,
    /// Below the minimum rate.
    TooSlow,
    /// Longer than it may take in all.
    OverTime,
}

/// The judge of one body.
#[derive(Debug)]
pub struct Patience {
    limits: Limits,
    /// Host time before the body: until the headers came.
    before: Duration,
    /// Host time of the body, up to the last bytes.
    waited: Duration,
    /// Bytes by second of the body's host time, of the last minute.
    seconds: VecDeque<(u64, u64)>,
}

impl Patience {
    /// A judge for a body whose headers took `before`.
    #[must_use]
    pub fn new(limits: Limits, before: Duration) -> Self {
        Self { limits, before, waited: Duration::ZERO, seconds: VecDeque::new() }
    }

    /// Host time so far.
    #[must_use]
    pub fn host_time(&self) -> Duration {
        self.before + self.waited
    }

    /// Notes that `bytes` came after a wait of `wait`.
    pub fn received(&mut self, wait: Duration, bytes: u64) {
        self.waited += wait;
        let second = self.waited.as_secs();
        match self.seconds.back_mut() {
            Some((last, sum)) if *last == second => *sum += bytes,
            _ => self.seconds.push_back((second, bytes)),
        }
        while self.seconds.front().is_some_and(|(at, _)| at + RATE_WINDOW_SECONDS < second) {
            self.seconds.pop_front();
        }
    }

    /// The verdict after a silence of `silent` since the last bytes.
    #[must_use]
    pub fn verdict(&self, silent: Duration) -> Option<Impatience> {
        let age = self.waited + silent;
        if self.before + age >= self.limits.total {
            Some(Impatience::OverTime)
        } else if silent >= self.limits.idle {
            Some(Impatience::Idle)
        } else if age.as_secs() >= RATE_WINDOW_SECONDS && self.last_minute(age) < self.minimum() {
            Some(Impatience::TooSlow)
        } else {
            None
        }
    }

    /// How long to go on waiting before the verdict can change, given a silence of `silent` so far.
    #[must_use]
    pub fn next_look(&self, silent: Duration) -> Duration {
        let age = self.waited + silent;
        let to_total = self.limits.total.saturating_sub(self.before + age);
        let to_idle = self.limits.idle.saturating_sub(silent);
        let look = Duration::from_secs(RATE_WINDOW_SECONDS.max(age.as_secs() + 1));
        let to_rate = if self.limits.bytes_per_second_min == 0 {
            Duration::MAX
        } else {
            look.saturating_sub(age)
        };
        // Never nothing: a timer that fires early must not make the caller spin.
        to_total.min(to_idle).min(to_rate).max(Duration::from_millis(1))
    }

    /// Bytes of the last minute before `age`, rounded up to whole seconds in the host's favour.
    fn last_minute(&self, age: Duration) -> u64 {
        let oldest = age.as_secs().saturating_sub(RATE_WINDOW_SECONDS);
        self.seconds.iter().filter(|(second, _)| *second >= oldest).map(|(_, bytes)| bytes).sum()
    }

    fn minimum(&self) -> u64 {
        self.limits.bytes_per_second_min.saturating_mul(RATE_WINDOW_SECONDS)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn patience(before: Duration) -> Patience {
        let limits =
            Limits { idle: 30 * SECOND, total: 1_800 * SECOND, bytes_per_second_min: 1_000 };
        Patience::new(limits, before)
    }

    #[test]
    fn silence_ends_it_at_the_limit_and_not_before() {
        let mut patience = patience(Duration::ZERO);
        patience.received(SECOND, 1_000_000);
        assert_eq!(patience.verdict(29 * SECOND), None);
        assert_eq!(patience.verdict(30 * SECOND), Some(Impatience::Idle));
        // A stall just under the limit, then on: must pass.
        patience.received(Duration::from_millis(29_999), 1);
        assert_eq!(patience.verdict(Duration::ZERO), None);
    }

    #[test]
    fn a_drip_is_too_slow_after_a_minute_and_not_before() {
        let mut patience = patience(Duration::ZERO);
        let mut came = 0;
        let verdict = loop {
            if let Some(verdict) = patience.verdict(Duration::ZERO) {
                break verdict;
            }
            patience.received(SECOND, 1);
            came += 1;
        };
        assert_eq!((verdict, came), (Impatience::TooSlow, 60));
    }

    #[test]
    fn a_steady_body_just_above_the_minimum_passes_until_its_time_is_over() {
        let mut patience = patience(10 * SECOND);
        let mut came = 0;
        let verdict = loop {
            if let Some(verdict) = patience.verdict(Duration::ZERO) {
                break verdict;
            }
            patience.received(SECOND, 1_000);
            came += 1;
        };
        assert_eq!((verdict, came), (Impatience::OverTime, 1_790));
        assert!(patience.seconds.len() <= 61);
    }

    #[test]
    fn what_came_long_ago_does_not_count() {
        let mut patience = patience(Duration::ZERO);
        patience.received(SECOND, 1 << 40);
        for _ in 0..59 {
            patience.received(SECOND, 0);
            assert_eq!(patience.verdict(Duration::ZERO), None);
        }
        patience.received(2 * SECOND, 0);
        assert_eq!(patience.verdict(Duration::ZERO), Some(Impatience::TooSlow));
    }

    #[test]
    fn looks_are_never_later_than_the_verdict_changes() {
        let mut patience = patience(SECOND);
        patience.received(58 * SECOND, 5_000);
        assert_eq!(patience.next_look(Duration::ZERO), 2 * SECOND);
        assert_eq!(patience.verdict(2 * SECOND), Some(Impatience::TooSlow));
        patience.received(Duration::ZERO, 1 << 30);
        assert_eq!(patience.next_look(29 * SECOND + SECOND / 2), SECOND / 2);
        assert_eq!(patience.next_look(30 * SECOND), Duration::from_millis(1));
        let limits = Limits { idle: 30 * SECOND, total: 31 * SECOND, bytes_per_second_min: 0 };
        let mut free = Patience::new(limits, 30 * SECOND);
        assert_eq!(free.next_look(Duration::ZERO), SECOND);
        free.received(SECOND, 0);
        assert_eq!(free.verdict(Duration::ZERO), Some(Impatience::OverTime));
    }
}
