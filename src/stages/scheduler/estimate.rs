//! Estimate: when everything will be decided, and what that waits for. Pure: it is shown what is left and what has ended, once
//! a second, and measures by itself.
//!
//! ```text
//!  directory   its wait + unresolved accounts / its pace
//!  each host   its wait + (accounts left there + its share of the unresolved) / its pace, but not before the directory is done
//!  machine     all that is left / what it does, while it has no room for what hosts would give
//!  retries     the next account that is due
//! ```
//! The longest of these is the answer. A pace is measured over the last ten minutes or so of time in which there was work; until
//! something was measured, it is the configured one, or what the oldest requests that are still out show. Unresolved accounts
//! are spread over hosts as those that were resolved so far. A host that is away is expected to stay away for as long as it has
//! been, and no longer than the operator's patience: then its accounts are given up.

use std::collections::HashMap;
use std::time::Duration;

use crate::clock::Instant;

/// Seconds after which what was measured counts only 1/e: longer than the windows of the reference PDS, 300 s.
const MEMORY_SECONDS: f64 = 600.0;

/// Less time than this is no base for an estimate.
const BASE: Duration = Duration::from_secs(2);

/// A host that had to wait so often will wait again: its waits count as part of its pace.
const WAITS_MIN: u32 = 2;

/// Hosts that are remembered when nothing is left there, for their share of the unresolved: only large ones decide anything.
const HOSTS_MAX: usize = 4_096;

/// Whom the end waits for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Bound {
    /// Nobody: nothing is left, or nothing is known.
    #[default]
    Nobody,
    /// The PLC directory.
    Directory,
    /// A host, by its row in the ledger.
    Host(i64),
    /// This machine, or the operator's limits on it.
    Machine,
    /// The time of the next retry.
    Retry,
}

impl Bound {
    /// The word in `status`.
    #[must_use]
    pub const fn as_str(self) -> Option<&'static str> {
        match self {
            Self::Nobody => None,
            Self::Directory => Some("directory"),
            Self::Host(_) => Some("host"),
            Self::Machine => Some("machine"),
            Self::Retry => Some("retry"),
        }
    }
}

/// When everything will be decided.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Estimate {
    /// From now on; `None` without a base, zero if nothing is left.
    pub remaining: Option<Duration>,
    /// What that waits for.
    pub bound: Bound,
}

/// One that is asked: the directory or a host.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Asked {
    /// Accounts that have ended there since the last look.
    pub ended: u64,
    /// There is work for it, waiting or out.
    pub is_busy: bool,
    /// Requests out.
    pub active: u64,
    /// Requests per second that it may be sent at present: one that has refused is asked less often.
    pub rate: f64,
    /// The same as configured.
    pub rate_max: f64,
    /// Until it may be asked again.
    pub wait: Duration,
    /// It is away: for how long it has given no usable answer, and how long that will still be borne.
    pub away: Option<(Duration, Duration)>,
}

/// A host as it stands.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct HostLook {
    /// Its row in the ledger.
    pub id: i64,
    /// Accounts that are still to be fetched there.
    pub left: u64,
    /// How it does.
    pub asked: Asked,
}

/// Everything as it stands.
#[derive(Clone, Debug, Default)]
pub struct Look {
    /// Accounts with something left to do.
    pub pending: u64,
    /// Those of them whose host is not known.
    pub unresolved: u64,
    /// Resolutions that have ended in this process.
    pub resolved: u64,
    /// Those of them that have given a host.
    pub found: u64,
    /// How the directory does.
    pub directory: Asked,
    /// Every host with something left, or where something has ended since the last look.
    pub hosts: Vec<HostLook>,
    /// Accounts that were decided in this process.
    pub decided: u64,
    /// There was no room for what hosts would give.
    pub is_crowded: bool,
    /// Until the next retry, if accounts wait for one.
    pub due_in: Option<Duration>,
}

/// A measured pace. Time counts up to the last end: transfers often end in bursts, and between two of them nothing has changed.
#[derive(Clone, Copy, Debug, Default)]
struct Meter {
    ends: f64,
    /// Seconds with work, without waits, up to the last end.
    working: f64,
    /// Seconds of waits up to the last end.
    waiting: f64,
    /// The same since the last end.
    since: (f64, f64),
    waits: u32,
    was_waiting: bool,
}

impl Meter {
    /// After `seconds` more, in which it was asked if `counts`.
    fn sample(&mut self, seconds: f64, asked: &Asked, counts: bool) {
        #[allow(clippy::cast_precision_loss, reason = "small counts")]
        let ends = asked.ended as f64;
        let is_waiting = !asked.wait.is_zero() || asked.away.is_some();
        self.waits = self.waits.saturating_add(u32::from(self.was_waiting && !is_waiting));
        let was_waiting = std::mem::replace(&mut self.was_waiting, is_waiting);
        if !counts || !(asked.is_busy || ends > 0.0) {
            return;
        }
        if is_waiting && was_waiting {
            self.since.1 += seconds;
        } else {
            self.since.0 += seconds;
        }
        if ends > 0.0 {
            let since = std::mem::take(&mut self.since);
            let fading = (-(since.0 + since.1) / MEMORY_SECONDS).exp();
            self.ends = self.ends * fading + ends;
            self.working = self.working * fading + since.0;
            self.waiting = self.waiting * fading + since.1;
        }
    }

    /// Ends per second, above 0 and at most what is allowed.
    #[allow(clippy::cast_precision_loss, reason = "small counts")]
    fn rate(&self, asked: &Asked) -> f64 {
        let again = if self.waits >= WAITS_MIN { self.waiting } else { 0.0 };
        let time = self.working + again;
        // Should all that is out end right now, it has been no faster than this.
        let at_best = (self.ends + asked.active.max(1) as f64) / (time + self.since.0).max(1e-3);
        let (measured, allowed) = if self.ends > 0.0 {
            (self.ends / time.max(1e-3), asked.rate_max)
        } else {
            (f64::MAX, asked.rate)
        };
        measured.min(at_best).clamp(1e-9, allowed.max(1e-9))
    }

    /// Ends per second, whatever is allowed; `None` if nothing has ended.
    fn measured(&self) -> Option<f64> {
        (self.ends > 0.0).then(|| self.ends / self.working.max(1e-3))
    }
}

/// A host as it is remembered.
#[derive(Clone, Copy, Debug, Default)]
struct Known {
    meter: Meter,
    ended: u64,
    /// Accounts that were or are there.
    seen: u64,
}

/// Measures, and estimates.
#[derive(Debug, Default)]
pub struct Estimator {
    begun_at: Option<Instant>,
    last_at: Option<Instant>,
    directory: Meter,
    machine: Meter,
    hosts: HashMap<i64, Known>,
    decided: Option<u64>,
    estimate: Estimate,
}

impl Estimator {
    /// The estimate of the last look.
    #[must_use]
    pub fn estimate(&self) -> Estimate {
        self.estimate
    }

    /// Looks at how everything stands at `now`.
    pub fn look(&mut self, look: &Look, now: Instant) {
        let begun_at = *self.begun_at.get_or_insert(now);
        let since = now.saturating_duration_since(self.last_at.unwrap_or(now));
        self.last_at = Some(now);
        self.measure(look, since.as_secs_f64());
        let has_base =
            now.saturating_duration_since(begun_at) >= BASE && look.decided + look.resolved > 0;
        self.estimate = match look.pending {
            0 => Estimate { remaining: Some(Duration::ZERO), bound: Bound::Nobody },
            _ if has_base => self.longest(look),
            _ => Estimate::default(),
        };
    }

    fn measure(&mut self, look: &Look, seconds: f64) {
        self.directory.sample(seconds, &look.directory, true);
        let before = self.decided.replace(look.decided).unwrap_or(look.decided);
        let ended = look.decided.saturating_sub(before);
        let all = Asked { ended, is_busy: true, ..Asked::default() };
        self.machine.sample(seconds, &all, look.is_crowded);
        for host in &look.hosts {
            let known = self.hosts.entry(host.id).or_default();
            // While the machine has no room, a host shows nothing of its own pace.
            known.meter.sample(seconds, &host.asked, !look.is_crowded);
            known.ended += host.asked.ended;
            known.seen = known.seen.max(host.left + known.ended);
        }
        if self.hosts.len() > HOSTS_MAX {
            let is_left: std::collections::HashSet<i64> =
                look.hosts.iter().map(|host| host.id).collect();
            let largest = self.hosts.values().map(|known| known.seen).max().unwrap_or(0);
            self.hosts.retain(|id, known| is_left.contains(id) || known.seen * 100 >= largest);
        }
    }

    #[allow(clippy::cast_precision_loss, reason = "an estimate for people")]
    fn longest(&self, look: &Look) -> Estimate {
        let directory = seconds_of(
            &look.directory,
            look.unresolved as f64,
            self.directory.rate(&look.directory),
        );
        let directory = if look.unresolved > 0 { directory } else { 0.0 };
        let mut longest = (directory, Bound::Directory);
        let mut take = |seconds: f64, bound| {
            if seconds > longest.0 {
                longest = (seconds, bound);
            }
        };
        let seen: u64 = self.hosts.values().map(|known| known.seen).sum();
        let coming = look.unresolved as f64 * look.found as f64
            / look.resolved.max(1) as f64
            / seen.max(1) as f64;
        let now: HashMap<i64, &HostLook> = look.hosts.iter().map(|host| (host.id, host)).collect();
        for (id, known) in &self.hosts {
            let idle = HostLook { id: *id, left: 0, asked: Asked::default() };
            let host = now.get(id).copied().unwrap_or(&idle);
            let left = host.left as f64 + coming * known.seen as f64;
            // A host that nobody is asking just now is not what anything waits for.
            if host.left > 0 {
                take(
                    seconds_of(&host.asked, left, known.meter.rate(&host.asked)),
                    Bound::Host(*id),
                );
            }
        }
        if let Some(rate) = self.machine.measured().filter(|_| look.is_crowded) {
            take(look.pending as f64 / rate, Bound::Machine);
        }
        take(look.due_in.unwrap_or_default().as_secs_f64(), Bound::Retry);
        let remaining = Duration::try_from_secs_f64(longest.0).unwrap_or(Duration::MAX);
        Estimate { remaining: Some(remaining), bound: longest.1 }
    }
}

/// Seconds until `left` have ended at `rate`.
fn seconds_of(asked: &Asked, left: f64, rate: f64) -> f64 {
    let work = left / rate;
    match asked.away {
        Some((silence, patience)) if silence >= patience => patience.as_secs_f64(),
        Some((silence, _)) => silence.max(asked.wait).as_secs_f64() + work,
        None => asked.wait.as_secs_f64() + work,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Clock;

    const SECOND: Duration = Duration::from_secs(1);

    fn asked(ended: u64, rate: f64) -> Asked {
        Asked { ended, is_busy: true, active: 4, rate, rate_max: rate, ..Asked::default() }
    }

    fn host(id: i64, left: u64, asked: Asked) -> HostLook {
        HostLook { id, left, asked }
    }

    fn seconds(estimator: &Estimator) -> f64 {
        estimator.estimate().remaining.unwrap().as_secs_f64()
    }

    fn near(value: f64, expected: f64) -> bool {
        (value - expected).abs() <= 0.05 * expected + 0.5
    }

    #[test]
    fn nothing_is_said_without_a_base_and_nothing_left_is_no_time() {
        let (mut estimator, now) = (Estimator::default(), Clock::system().now());
        let look = Look { pending: 10, ..Look::default() };
        estimator.look(&look, now);
        estimator.look(&look, now + 10 * SECOND);
        assert_eq!(estimator.estimate(), Estimate::default());
        estimator.look(&Look::default(), now + 11 * SECOND);
        assert_eq!(estimator.estimate().remaining, Some(Duration::ZERO));
    }

    #[test]
    fn the_host_that_takes_longest_decides_at_its_measured_pace_and_its_wait_counts() {
        let (mut estimator, now) = (Estimator::default(), Clock::system().now());
        for second in 0..61_u64 {
            // One as fast as it may be, one of which one account in five seconds ends.
            let slow = u64::from(second > 0 && second.is_multiple_of(5));
            let hosts = vec![
                host(1, 9_000 - second * 9, asked(9 * second.min(1), 9.0)),
                host(2, 1_000 - second / 5, asked(slow, 9.0)),
            ];
            let look = Look { pending: 9_000, hosts, decided: second * 9, ..Look::default() };
            estimator.look(&look, now + u32::try_from(second).unwrap() * SECOND);
        }
        assert!(near(seconds(&estimator), 988.0 * 5.0), "{:?}", estimator.estimate());
        assert_eq!(estimator.estimate().bound, Bound::Host(2));
        let wait = Asked { wait: 20_000 * SECOND, ..asked(0, 9.0) };
        let hosts = vec![host(1, 900, wait), host(2, 988, asked(0, 9.0))];
        let look = Look { pending: 9_000, hosts, decided: 600, ..Look::default() };
        estimator.look(&look, now + 61 * SECOND);
        assert_eq!(estimator.estimate().bound, Bound::Host(1));
        assert!(near(seconds(&estimator), 20_100.0), "{:?}", estimator.estimate());
    }

    #[test]
    fn unresolved_accounts_wait_for_the_directory_and_then_for_their_hosts() {
        // All go to one host, which takes nine a second at best.
        for (rate, bound) in [(5, Bound::Directory), (100, Bound::Host(1))] {
            let (mut estimator, now) = (Estimator::default(), Clock::system().now());
            let fetched = rate.min(9);
            for second in 0..100_u64 {
                let is_first = second == 0;
                let ended = |count| if is_first { 0 } else { count };
                let (resolved, done) = (second * rate, second * fetched);
                let look = Look {
                    pending: 20_000 - done,
                    unresolved: 20_000 - resolved,
                    resolved,
                    found: resolved,
                    directory: asked(ended(rate), 1_000.0),
                    hosts: vec![host(1, resolved - done + 1, asked(ended(fetched), 9.0))],
                    decided: done,
                    ..Look::default()
                };
                estimator.look(&look, now + u32::try_from(second).unwrap() * SECOND);
            }
            let expected = (20_000 - 99 * fetched) / fetched;
            let expected = f64::from(u32::try_from(expected).unwrap());
            assert!(near(seconds(&estimator), expected), "{:?}", estimator.estimate());
            assert!(estimator.estimate().bound == bound || rate == 5);
        }
    }

    #[test]
    fn a_machine_without_room_decides_by_what_it_does_in_all() {
        let (mut estimator, now) = (Estimator::default(), Clock::system().now());
        for second in 0..30_u64 {
            let left = 10_000 - second * 50;
            let hosts = (0..10).map(|id| host(id, left / 10, asked(5, 9.0))).collect();
            let decided = second * 50;
            let look = Look { pending: left, hosts, decided, is_crowded: true, ..Look::default() };
            estimator.look(&look, now + u32::try_from(second).unwrap() * SECOND);
        }
        assert_eq!(estimator.estimate().bound, Bound::Machine);
        assert!(near(seconds(&estimator), 8_550.0 / 50.0), "{:?}", estimator.estimate());
    }

    #[test]
    fn a_host_that_is_away_stays_away_as_long_again_and_never_longer_than_patience() {
        let (mut estimator, now) = (Estimator::default(), Clock::system().now());
        for (silence, patience, expected) in [(60, 3_600, 60.0 + 10.0), (3_000, 600, 600.0)] {
            let away = Some((silence * SECOND, patience * SECOND));
            let gone = Asked { away, wait: 30 * SECOND, ..asked(0, 9.0) };
            for second in 0..5 {
                let look = Look {
                    pending: 90,
                    hosts: vec![host(1, 90, gone)],
                    decided: 1,
                    ..Look::default()
                };
                estimator.look(&look, now + second * SECOND);
            }
            assert!(near(seconds(&estimator), expected), "{:?}", estimator.estimate());
            estimator = Estimator::default();
        }
    }
}
