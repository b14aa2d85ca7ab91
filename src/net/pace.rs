//! One host's pace: how many requests may be out, when the next one may go, and for how long nothing usable came. Pure:
//! time and chance are passed in. The same machine serves every PDS and the directory.
//!
//! ```text
//!  closed --3 faults in a row--> open --its time is over--> probing (one request out)
//!    ^                            ^                            |
//!    |                            '--fault: for twice as long--|
//!    '---------- any answer below 500, also a late one --------'
//! ```
//! *Rate.* Turns are spread evenly and none is saved up. A turn that is taken late, by a coarse timer or a full mailbox,
//! shifts the next one only as far as it was later than `LATENESS`; for that the interval is longer than `1 / rate` by
//! that share of a second, so that no window of one second ever holds more than `ceil(rate)` turns.
//!
//! *Announcements.* `RateLimit-Remaining` counts down with every turn until its reset. What is left is spread evenly over
//! the time to the reset; nothing left parks the host until then, before it has to say no.
//!
//! *Refusals.* A 429 makes the host wait as it asks, or 60 s doubling to 300 s if it does not say; up to a tenth is added,
//! so that hosts do not all come back at once. One wait multiplies the rate by 0.7, however many requests were refused:
//! those that were out when it began belong to it, whenever their refusals come in. 20 answers without a refusal raise
//! the rate by a tenth, up to the configured one.
//!
//! *Circuit.* A 429 is an answer below 500: it ends a row of faults and closes the circuit, but it is not usable, so
//! patience runs on. Faults of requests sent before the circuit opened do not lengthen it.
//!
//! *Patience.* Silence runs from the first bad signal after the last usable one. Between two signals at most
//! [`SILENCE_STEP_MAX`] counts, so that a process that sleeps, or a host that nobody asks, uses up no patience.
//!
//! How to use it: a request is sent for a [`Turn::Go`] and tells its outcome exactly once: [`HostPace::note`] while the
//! permit stays out (a body streams) and [`HostPace::give_back`] at its end, or [`HostPace::answered`] for both at once.
//! After each of these, ask for a turn again: what was `Busy` or `At` may be `Go` now.

use std::time::Duration;

use crate::clock::Instant;
use crate::domain::verdict::{HostSignal, LastError, RateWindow};
use crate::net::answer::WAIT_MAX;
use crate::seed::Chance;

/// How late a turn may be taken without delaying the next one. At 9 requests/s less than a tenth of the interval.
const LATENESS: Duration = Duration::from_millis(10);

/// Longest interval between two turns, so that a rate next to nothing is no overflow.
const INTERVAL_MAX: Duration = Duration::from_secs(366 * 24 * 3600);

/// Faults in a row that open the circuit.
const FAULTS_MAX: u32 = 3;

/// How long the circuit is open the first time; it doubles up to [`WAIT_MAX`].
const OPEN_BASE: Duration = Duration::from_secs(30);

/// First wait for a 429 that names none; it doubles.
const UNNAMED_WAIT_BASE: Duration = Duration::from_secs(60);

/// Longest wait for a 429 that names none: the window of the reference PDS.
const UNNAMED_WAIT_MAX: Duration = Duration::from_secs(300);

/// What a wait leaves of the rate.
const SLOWING: f64 = 0.7;

/// Requests per second that refusals do not go below, unless the configured rate is lower.
const RATE_FLOOR: f64 = 1.0;

/// What [`ANSWERS_TO_RAISE`] multiply it by.
const RAISE: f64 = 1.1;

/// Answers without a refusal that raise the rate.
const ANSWERS_TO_RAISE: u32 = 20;

/// Resets that are no further apart are the same: hosts round them to seconds.
const SAME_RESET: Duration = Duration::from_secs(2);

/// Two bad signals further apart count as this far apart: longer than any wait and any retry delay.
pub const SILENCE_STEP_MAX: Duration = Duration::from_secs(16 * 60);

/// The operator's numbers for one kind of host.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PaceLimits {
    /// Requests per second, above 0.
    pub requests_per_second: f64,
    /// Permits out at once, at least 1.
    pub concurrency: usize,
    /// How long the host may give nothing usable.
    pub patience: Duration,
}

/// Whether a request may be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// Now; a permit is out.
    Go {
        /// It is the one request that finds out whether the host is back.
        probe: bool,
    },
    /// Not before this instant, which is later than now.
    At(Instant),
    /// As many requests are out as may be; one that comes back frees a turn.
    Busy,
}

/// A host's state for `status` and metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum HostState {
    /// Takes requests.
    Working,
    /// Has refused, or was parked before it had to.
    Waiting,
    /// Its circuit is open: it was not seen alive since its last faults.
    Open,
}

impl HostState {
    /// The word in `status` and in metric labels.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Working => "working",
            Self::Waiting => "waiting",
            Self::Open => "open",
        }
    }
}

/// One host's pace.
#[derive(Clone, Debug)]
pub struct HostPace {
    limits: PaceLimits,
    /// Requests per second at present, at most the configured ones.
    rate: f64,
    /// Answers since the last refusal or raise.
    answers: u32,
    /// No turn before this.
    next_at: Instant,
    last_turn_at: Option<Instant>,
    /// Permits out.
    active: usize,
    /// Requests out that have told nothing yet.
    unanswered: usize,
    refusal: Refusal,
    announced: Option<Announced>,
    /// Parked until then by a host that announced that nothing is left.
    parked_until: Instant,
    circuit: Circuit,
    silence: Option<Silence>,
}

/// The present or last wait for refusals.
#[derive(Clone, Copy, Debug)]
struct Refusal {
    until: Instant,
    /// Requests that were out when it began and have told nothing yet; their refusals belong to it.
    before: usize,
    /// Waits without a named time since the last usable answer.
    unnamed: u32,
}

/// What the host said is left.
#[derive(Clone, Copy, Debug)]
struct Announced {
    remaining: u64,
    reset_at: Instant,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Circuit {
    Closed { faults: u32 },
    Open { until: Instant, length: Duration, is_probing: bool },
}

/// Time without a usable answer.
#[derive(Clone, Copy, Debug)]
struct Silence {
    counted: Duration,
    last_at: Instant,
    last_error: LastError,
}

impl Silence {
    fn length(&self, now: Instant) -> Duration {
        self.counted + now.saturating_duration_since(self.last_at).min(SILENCE_STEP_MAX)
    }
}

impl HostPace {
    /// A host that was never asked.
    #[must_use]
    pub fn new(limits: PaceLimits, now: Instant) -> Self {
        Self {
            limits,
            rate: limits.requests_per_second,
            answers: 0,
            next_at: now,
            last_turn_at: None,
            active: 0,
            unanswered: 0,
            refusal: Refusal { until: now, before: 0, unnamed: 0 },
            announced: None,
            parked_until: now,
            circuit: Circuit::Closed { faults: 0 },
            silence: None,
        }
    }

    /// Changes the limits while requests are out. A host that refusals have slowed stays slowed.
    pub fn set_limits(&mut self, limits: PaceLimits) {
        let is_slowed = self.rate < self.limits.requests_per_second;
        let configured = limits.requests_per_second;
        self.rate = if is_slowed { self.rate.min(configured) } else { configured };
        self.limits = limits;
        if let Some(last) = self.last_turn_at {
            self.next_at = self.next_at.min(last + interval(self.rate));
        }
    }

    /// Asks for a turn; [`Turn::Go`] takes a permit.
    pub fn take(&mut self, now: Instant) -> Turn {
        if let Some(at) = self.resume_at(now) {
            return Turn::At(at);
        }
        let is_probing = matches!(self.circuit, Circuit::Open { is_probing: true, .. });
        if is_probing || self.active >= self.limits.concurrency.max(1) {
            return Turn::Busy;
        }
        let at = self.next_at.max(self.spread_at(now));
        if at > now {
            return Turn::At(at);
        }
        self.spend(now);
        self.active += 1;
        let mut probe = false;
        if let Circuit::Open { is_probing, .. } = &mut self.circuit {
            (*is_probing, probe) = (true, true);
        }
        Turn::Go { probe }
    }

    /// A request is sent beside the turns (`describeServer`, `getRepoStatus` within another's permit): the next turn comes
    /// as much later. Its outcome goes to [`HostPace::note`].
    pub fn spend(&mut self, now: Instant) {
        let late = now.max(self.next_at + LATENESS) + interval(self.rate);
        self.next_at = late.checked_sub(LATENESS).unwrap_or(late);
        self.last_turn_at = Some(now);
        self.unanswered += 1;
        if let Some(announced) = &mut self.announced {
            announced.remaining = announced.remaining.saturating_sub(1);
        }
    }

    /// A permit comes back and has nothing more to tell: its outcome was noted before, or the host was not asked. The turn
    /// is not refunded.
    pub fn give_back(&mut self) {
        self.active = self.active.saturating_sub(1);
        self.unanswered = self.unanswered.min(self.active);
        self.refusal.before = self.refusal.before.min(self.unanswered);
        if self.active == 0
            && let Circuit::Open { is_probing, .. } = &mut self.circuit
        {
            *is_probing = false; // The probe told nothing.
        }
    }

    /// A permit comes back with what its request told: [`HostPace::note`], then [`HostPace::give_back`].
    pub fn answered(&mut self, signal: &HostSignal, now: Instant, chance: &Chance) {
        self.note(signal, now, chance);
        self.give_back();
    }

    /// What a request told; its permit, if it had one, stays out.
    pub fn note(&mut self, signal: &HostSignal, now: Instant, chance: &Chance) {
        self.unanswered = self.unanswered.saturating_sub(1);
        let is_late = self.refusal.before > 0 || now < self.refusal.until;
        self.refusal.before = self.refusal.before.saturating_sub(1);
        match *signal {
            HostSignal::Usable(window) => self.usable(window, is_late, now, chance),
            HostSignal::Refused(wait) => self.refused(wait, is_late, now, chance),
            HostSignal::Fault(error) => self.fault(error, now),
            HostSignal::NotAsked => {}
        }
    }

    /// How the host stands.
    #[must_use]
    pub fn state(&self, now: Instant) -> HostState {
        if matches!(self.circuit, Circuit::Open { .. }) {
            return HostState::Open;
        }
        if self.resume_at(now).is_some() { HostState::Waiting } else { HostState::Working }
    }

    /// Until when the host waits, is parked or has its circuit open; `None` if it does none of these.
    #[must_use]
    pub fn resume_at(&self, now: Instant) -> Option<Instant> {
        let mut until = self.refusal.until.max(self.parked_until);
        if let Some(Announced { remaining: 0, reset_at }) = self.announced {
            until = until.max(reset_at);
        }
        if let Circuit::Open { until: reopens_at, is_probing: false, .. } = self.circuit {
            until = until.max(reopens_at);
        }
        (until > now).then_some(until)
    }

    /// Whether a turn that was taken before is not to be used any more: the host has refused, said that nothing is left, or
    /// its circuit has opened. A turn that was the last of those announced is good.
    #[must_use]
    pub fn holds(&self, now: Instant) -> bool {
        let is_open =
            matches!(self.circuit, Circuit::Open { until, is_probing: false, .. } if until > now);
        is_open || self.refusal.until.max(self.parked_until) > now
    }

    /// Permits out.
    #[must_use]
    pub fn active(&self) -> usize {
        self.active
    }

    /// Requests per second at present.
    #[must_use]
    pub fn rate(&self) -> f64 {
        self.rate
    }

    /// Whether nothing would be lost if the host were forgotten and made anew later.
    #[must_use]
    pub fn is_idle(&self, now: Instant) -> bool {
        let is_free = self.active == 0 && self.next_at <= now && self.resume_at(now).is_none();
        let is_healthy = self.circuit == Circuit::Closed { faults: 0 } && self.silence.is_none();
        let is_slowed = self.rate < self.limits.requests_per_second || self.refusal.unnamed > 0;
        let is_bounded = self.announced.is_some_and(|announced| announced.reset_at > now);
        is_free && is_healthy && !is_slowed && !is_bounded
    }

    /// How long nothing usable came although the host was asked; nothing if the last answer was usable.
    #[must_use]
    pub fn silence(&self, now: Instant) -> Duration {
        self.silence.map_or(Duration::ZERO, |silence| silence.length(now))
    }

    /// What was seen last, if the silence has lasted as long as the operator's patience.
    #[must_use]
    pub fn patience_over(&self, now: Instant) -> Option<LastError> {
        let silence = self.silence.filter(|silence| silence.length(now) >= self.limits.patience)?;
        Some(silence.last_error)
    }

    /// Patience begins anew: its accounts were given up, and whoever comes back is to be asked for again.
    pub fn renew_patience(&mut self) {
        self.silence = None;
    }

    fn usable(&mut self, window: RateWindow, is_late: bool, now: Instant, chance: &Chance) {
        self.silence = None;
        self.circuit = Circuit::Closed { faults: 0 };
        self.announce(window, now, chance);
        if is_late {
            return; // Sent before the wait: it says nothing about the time after it.
        }
        self.refusal.unnamed = 0;
        self.answers += 1;
        if self.answers >= ANSWERS_TO_RAISE {
            self.answers = 0;
            self.rate = (self.rate * RAISE).min(self.limits.requests_per_second);
        }
    }

    fn announce(&mut self, window: RateWindow, now: Instant, chance: &Chance) {
        let (Some(remaining), Some(reset)) = (window.remaining, window.reset) else { return };
        let reset = reset.min(WAIT_MAX);
        let reset_at = now + reset;
        if remaining == 0 {
            self.parked_until = self.parked_until.max(now + jittered(reset, chance));
        }
        let distance = |old: Instant| old.max(reset_at).duration_since(old.min(reset_at));
        match &mut self.announced {
            // The same window: answers overtake each other, and what was sent meanwhile counts too.
            Some(old) if now < old.reset_at && distance(old.reset_at) <= SAME_RESET => {
                old.remaining = old.remaining.min(remaining);
            }
            announced => *announced = Some(Announced { remaining, reset_at }),
        }
    }

    /// When the next of the announced remaining turns is due, spread evenly from the last turn to the reset.
    fn spread_at(&self, now: Instant) -> Instant {
        let (Some(announced), Some(last)) = (self.announced, self.last_turn_at) else { return now };
        if announced.reset_at <= now {
            return now;
        }
        let turns = u32::try_from(announced.remaining).unwrap_or(u32::MAX).saturating_add(1);
        last + announced.reset_at.saturating_duration_since(last) / turns
    }

    fn refused(&mut self, wait: Option<Duration>, is_late: bool, now: Instant, chance: &Chance) {
        self.circuit = Circuit::Closed { faults: 0 };
        self.bad(LastError::RateLimited, now);
        let is_waiting = now < self.refusal.until;
        let wait = match wait {
            Some(wait) => wait.min(WAIT_MAX),
            // The wait that it asks for is the one that it belongs to.
            None if is_waiting => return,
            None => {
                let doublings = self.refusal.unnamed.min(8);
                self.refusal.unnamed += 1;
                UNNAMED_WAIT_BASE.saturating_mul(1 << doublings).min(UNNAMED_WAIT_MAX)
            }
        };
        self.refusal.until = self.refusal.until.max(now + jittered(wait, chance));
        if is_late {
            return;
        }
        // What was announced before is outdated by the refusal.
        (self.announced, self.parked_until) = (None, now);
        self.refusal.before = self.unanswered;
        self.answers = 0;
        let floor = RATE_FLOOR.min(self.limits.requests_per_second);
        self.rate = (self.rate * SLOWING).max(floor);
    }

    fn fault(&mut self, error: LastError, now: Instant) {
        self.bad(error, now);
        let open = |length| Circuit::Open { until: now + length, length, is_probing: false };
        self.circuit = match self.circuit {
            Circuit::Closed { faults } if faults + 1 >= FAULTS_MAX => open(OPEN_BASE),
            Circuit::Closed { faults } => Circuit::Closed { faults: faults + 1 },
            Circuit::Open { length, is_probing: true, .. } => open((length * 2).min(WAIT_MAX)),
            unprobed => unprobed,
        };
    }

    fn bad(&mut self, last_error: LastError, now: Instant) {
        self.silence = Some(Silence { counted: self.silence(now), last_at: now, last_error });
    }
}

/// Time between two turns: `1 / rate`, longer by the share of a second that a turn may be late (see the header).
fn interval(rate: f64) -> Duration {
    let seconds = (1.0 + LATENESS.as_secs_f64()) / rate;
    if !seconds.is_finite() || seconds < 0.0 {
        return INTERVAL_MAX;
    }
    // One nanosecond more, so that rounding never makes it shorter.
    let exact = Duration::try_from_secs_f64(seconds).unwrap_or(INTERVAL_MAX);
    exact.saturating_add(Duration::from_nanos(1)).min(INTERVAL_MAX)
}

/// A wait and up to a tenth more.
fn jittered(wait: Duration, chance: &Chance) -> Duration {
    wait + chance.up_to(wait / 10)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Clock;

    const PATIENCE: Duration = Duration::from_secs(3600);

    fn limits(requests_per_second: f64, concurrency: usize) -> PaceLimits {
        PaceLimits { requests_per_second, concurrency, patience: PATIENCE }
    }

    fn seconds(count: f64) -> Duration {
        Duration::from_secs_f64(count)
    }

    fn usable() -> HostSignal {
        HostSignal::Usable(RateWindow::default())
    }

    #[tokio::test(start_paused = true)]
    async fn a_turn_is_held_back_by_what_came_after_it_and_not_by_being_the_last() {
        let (now, chance) = (Clock::system().now(), Chance::seeded(1));
        let fresh = || HostPace::new(limits(10.0, 4), now);
        let mut last = fresh();
        last.note(&announced(1, 60.0), now, &chance);
        let turn = now + seconds(30.0);
        assert_eq!(last.take(turn), Turn::Go { probe: false });
        assert!(last.resume_at(turn).is_some() && !last.holds(turn));
        last.note(&announced(0, 30.0), turn, &chance);
        assert!(last.holds(turn) && !last.holds(turn + seconds(34.0)));
        let mut refused = fresh();
        refused.note(&HostSignal::Refused(Some(seconds(9.0))), now, &chance);
        assert!(refused.holds(now) && !refused.holds(now + seconds(10.0)));
        let mut open = fresh();
        for _ in 0..3 {
            open.note(&HostSignal::Fault(LastError::Connect), now, &chance);
        }
        assert!(open.holds(now));
        assert_eq!(open.take(now + seconds(30.0)), Turn::Go { probe: true });
        assert!(!open.holds(now + seconds(30.0)), "the probe itself goes out");
    }

    fn announced(remaining: u64, reset: f64) -> HostSignal {
        HostSignal::Usable(RateWindow { remaining: Some(remaining), reset: Some(seconds(reset)) })
    }

    fn refused(wait: f64) -> HostSignal {
        HostSignal::Refused(Some(seconds(wait)))
    }

    const UNNAMED: HostSignal = HostSignal::Refused(None);
    const FAULT: HostSignal = HostSignal::Fault(LastError::Connect);

    /// A host with a virtual time of its own.
    struct Host {
        pace: HostPace,
        start: Instant,
        now: Instant,
        chance: Chance,
    }

    impl Host {
        fn new(requests_per_second: f64, concurrency: usize) -> Self {
            let start = Clock::system().now();
            let pace = HostPace::new(limits(requests_per_second, concurrency), start);
            Self { pace, start, now: start, chance: Chance::seeded(17) }
        }

        fn after(&mut self, time: f64) -> &mut Self {
            self.now += seconds(time);
            self
        }

        /// Takes the next turn, whenever it comes.
        fn go(&mut self) -> bool {
            loop {
                match self.pace.take(self.now) {
                    Turn::Go { probe } => return probe,
                    Turn::At(at) => {
                        assert!(at > self.now);
                        self.now = at;
                    }
                    Turn::Busy => panic!("busy"),
                }
            }
        }

        fn answered(&mut self, signal: HostSignal) {
            self.pace.answered(&signal, self.now, &self.chance);
        }

        fn ask(&mut self, signal: HostSignal) -> bool {
            let probe = self.go();
            self.answered(signal);
            probe
        }

        /// Seconds until it resumes.
        fn wait(&self) -> f64 {
            self.pace.resume_at(self.now).map_or(0.0, |at| (at - self.now).as_secs_f64())
        }

        /// It waits `wait` and at most a tenth more.
        fn assert_waits(&self, wait: f64) {
            let actual = self.wait();
            let most = wait * 1.1 + 1e-6;
            assert!((wait - 1e-6..=most).contains(&actual), "{actual} instead of {wait}");
        }

        fn elapsed(&self) -> f64 {
            (self.now - self.start).as_secs_f64()
        }
    }

    /// Every second, wherever it begins, holds at most `ceil(rate)` turns.
    fn assert_never_above(rate: f64, turns: &[Instant]) {
        let most = rate.ceil() as usize;
        for (first, after) in turns.iter().zip(turns.iter().skip(most)) {
            let window = after.duration_since(*first);
            assert!(window >= seconds(1.0), "{} turns in {window:?} at {rate}/s", most + 1);
        }
    }

    #[test]
    fn no_second_holds_more_turns_than_the_rate_whatever_happens() {
        for (seed, rate) in
            [0.3, 1.0, 2.5, 9.0, 9.5, 10.0, 100.0, 333.3, 5_000.0].into_iter().enumerate()
        {
            let mut host = Host::new(rate, 3);
            let chance = Chance::seeded(seed as u64);
            let (mut turns, mut out, mut most_out) = (Vec::new(), 0_usize, 0_usize);
            while turns.len() < 3_000 + 3 * rate as usize {
                match host.pace.take(host.now) {
                    Turn::Go { .. } => {
                        turns.push(host.now);
                        out += 1;
                    }
                    // Late by nothing, by a coarse timer, or by a process that slept.
                    Turn::At(at) => {
                        host.now = at
                            + [seconds(0.0), seconds(0.001), seconds(0.025)]
                                [chance.bits() as usize % 3];
                        if chance.bits().is_multiple_of(500) {
                            host.after(400.0);
                        }
                    }
                    Turn::Busy => assert!(out > 0),
                }
                most_out = most_out.max(out);
                assert_eq!(host.pace.active(), out);
                if out > 0 && (out == 3 || chance.bits().is_multiple_of(3)) {
                    out -= 1;
                    match chance.bits() % 40 {
                        0 => host.answered(refused(chance.fraction() * 3.0)),
                        1 => host.answered(announced(chance.bits() % 50, chance.fraction() * 5.0)),
                        2 => host.answered(FAULT),
                        3 => host.pace.give_back(),
                        4 => host.answered(HostSignal::NotAsked),
                        _ => host.answered(usable()),
                    }
                }
            }
            assert_never_above(rate, &turns);
            assert_eq!(most_out, 3, "concurrency at {rate}/s");
        }
    }

    #[test]
    fn coarse_timers_cost_nothing_but_the_share_of_the_lateness() {
        for rate in [0.5, 9.0, 100.0, 1_000.0, 20_000.0] {
            let mut host = Host::new(rate, 1);
            let (chance, mut turns) = (Chance::seeded(3), Vec::new());
            while host.elapsed() < 20.0 {
                match host.pace.take(host.now) {
                    Turn::Go { .. } => {
                        turns.push(host.now);
                        host.answered(usable());
                    }
                    Turn::At(at) => host.now = at + seconds(0.009 * chance.fraction()),
                    Turn::Busy => panic!("busy"),
                }
            }
            assert_never_above(rate, &turns);
            let reached = turns.len() as f64 / 20.0;
            assert!(reached > rate * 0.985, "{reached}/s instead of {rate}/s");
        }
    }

    #[test]
    fn nothing_is_saved_up_and_absurd_rates_are_no_overflow() {
        let mut host = Host::new(2.0, 9);
        host.after(1_000.0).go();
        let Turn::At(at) = host.pace.take(host.now) else { panic!("saved up") };
        assert!(at - host.now > seconds(0.49) && at - host.now < seconds(0.51));
        for rate in [f64::MIN_POSITIVE, 1e-9, 0.0, -1.0, f64::NAN] {
            let mut host = Host::new(rate, 9);
            host.go();
            let day = host.now + seconds(86_400.0);
            assert!(matches!(host.pace.take(host.now), Turn::At(at) if at > day), "{rate}");
        }
        let mut unbounded = Host::new(f64::INFINITY, 9);
        unbounded.go();
        unbounded.go();
        assert!(unbounded.elapsed() < 0.001);
    }

    #[test]
    fn permits_are_bounded_and_a_return_frees_a_turn() {
        let mut host = Host::new(1_000.0, 2);
        host.go();
        host.go();
        host.after(1.0);
        assert_eq!(host.pace.take(host.now), Turn::Busy);
        // A body that streams keeps its permit.
        host.pace.note(&usable(), host.now, &host.chance);
        assert_eq!((host.pace.take(host.now), host.pace.active()), (Turn::Busy, 2));
        host.pace.give_back();
        assert_eq!(host.pace.take(host.now), Turn::Go { probe: false });
        host.pace.set_limits(limits(1_000.0, 1));
        host.pace.give_back();
        host.after(1.0);
        assert_eq!(host.pace.take(host.now), Turn::Busy);
        host.pace.give_back();
        assert_eq!(host.pace.take(host.now), Turn::Go { probe: false });
    }

    #[test]
    fn a_request_beside_the_turns_delays_the_next_one() {
        let mut host = Host::new(10.0, 4);
        host.go();
        host.pace.spend(host.now);
        let Turn::At(at) = host.pace.take(host.now) else { panic!("not delayed") };
        assert!(at - host.now > seconds(0.19), "{:?}", at - host.now);
        assert_eq!(host.pace.active(), 1);
    }

    #[test]
    fn limits_change_while_it_runs() {
        let mut host = Host::new(0.01, 4);
        host.go();
        host.pace.set_limits(limits(10.0, 4));
        let Turn::At(at) = host.pace.take(host.now) else { panic!("at once") };
        assert!(at - host.now < seconds(0.2));
        host.ask(refused(1.0));
        assert_eq!(host.pace.rate(), 7.0);
        host.pace.set_limits(limits(20.0, 4));
        assert_eq!(host.pace.rate(), 7.0);
        host.pace.set_limits(limits(5.0, 4));
        assert_eq!(host.pace.rate(), 5.0);
    }

    #[test]
    fn a_wait_is_as_given_and_slows_once_however_many_were_refused() {
        let mut host = Host::new(10.0, 4);
        for _ in 0..4 {
            host.go();
        }
        host.answered(refused(20.0));
        host.assert_waits(20.0);
        assert!(host.wait() > 20.0, "not all of its clients shall come back at once");
        assert_eq!((host.pace.rate(), host.pace.state(host.now)), (7.0, HostState::Waiting));
        host.after(5.0).answered(refused(15.0));
        host.answered(refused(2.0));
        assert!(host.wait() >= 15.0 - 1e-6 && host.wait() <= 17.0);
        // This one was out before the wait began, and is refused only after it ended.
        host.after(30.0).answered(refused(3.0));
        host.assert_waits(3.0);
        assert_eq!(host.pace.rate(), 7.0);
        host.ask(refused(0.0));
        assert!((host.pace.rate() - 4.9).abs() < 1e-9);
        for _ in 0..20 {
            host.ask(refused(400.0));
            host.assert_waits(330.0);
        }
        assert_eq!(host.pace.rate(), 1.0);
        let mut slow = Host::new(0.5, 4);
        slow.ask(refused(1.0));
        assert_eq!(slow.pace.rate(), 0.5);
    }

    #[test]
    fn refusals_of_one_burst_count_once_in_any_order_even_without_a_wait() {
        let mut host = Host::new(10.0, 4);
        for _ in 0..4 {
            host.go();
        }
        host.answered(refused(0.0));
        host.go();
        // Four are out, three of them from before; whichever comes first, one of the four is news.
        for _ in 0..3 {
            host.answered(refused(0.0));
            assert_eq!(host.pace.rate(), 7.0);
        }
        host.answered(refused(0.0));
        assert!((host.pace.rate() - 4.9).abs() < 1e-9);
        // Neither a request that was never sent, nor a body that streams since before the wait, is waited for.
        let mut host = Host::new(10.0, 4);
        host.go();
        host.pace.give_back();
        host.ask(refused(1.0));
        host.ask(refused(1.0));
        assert!((host.pace.rate() - 4.9).abs() < 1e-9);
        let mut host = Host::new(10.0, 4);
        host.go();
        host.pace.note(&usable(), host.now, &host.chance);
        host.ask(refused(1.0));
        host.ask(refused(1.0));
        assert!((host.pace.rate() - 4.9).abs() < 1e-9);
    }

    #[test]
    fn waits_without_a_time_double_to_300_seconds_until_something_usable_comes() {
        let mut host = Host::new(10.0, 4);
        for wait in [60.0, 120.0, 240.0, 300.0, 300.0] {
            host.ask(UNNAMED);
            host.assert_waits(wait);
        }
        // Named ones neither grow nor count.
        host.ask(refused(10.0));
        host.assert_waits(10.0);
        host.ask(UNNAMED);
        host.assert_waits(300.0);
        host.ask(usable());
        host.go();
        host.go();
        host.answered(UNNAMED);
        host.assert_waits(60.0);
        // The other one's answer was on its way before: it shortens and forgets nothing.
        host.after(10.0).answered(usable());
        host.assert_waits(50.0);
        host.ask(UNNAMED);
        host.assert_waits(120.0);
        let left = host.wait();
        host.pace.note(&UNNAMED, host.now, &host.chance);
        assert_eq!(host.wait(), left);
    }

    #[test]
    fn twenty_answers_without_a_refusal_raise_the_rate_by_a_tenth() {
        let mut host = Host::new(10.0, 4);
        host.ask(refused(1.0));
        for _ in 0..19 {
            host.ask(usable());
        }
        assert_eq!(host.pace.rate(), 7.0);
        host.ask(usable());
        assert!((host.pace.rate() - 7.7).abs() < 1e-9);
        for _ in 0..19 {
            host.ask(usable());
        }
        host.ask(refused(1.0));
        let slowed = host.pace.rate();
        for _ in 0..19 {
            host.ask(usable());
        }
        assert_eq!(host.pace.rate(), slowed);
        for _ in 0..200 {
            host.ask(usable());
        }
        assert_eq!(host.pace.rate(), 10.0);
    }

    #[test]
    fn nothing_left_parks_the_host_and_little_left_is_spread_out() {
        let mut host = Host::new(10.0, 4);
        host.ask(announced(0, 30.0));
        host.assert_waits(30.0);
        assert_eq!((host.pace.state(host.now), host.pace.rate()), (HostState::Waiting, 10.0));
        assert!(host.wait() > 30.0, "not all of its clients shall come back at once");
        let parked = host.pace.resume_at(host.now).unwrap();
        host.go();
        assert_eq!(host.now, parked);
        // Three for 40 s: one each 10 s, then none until the reset.
        let mut host = Host::new(10.0, 4);
        host.ask(announced(3, 40.0));
        for turn in 1..=4 {
            host.go();
            let at = host.elapsed();
            assert!((at - 10.0 * f64::from(turn)).abs() < 0.1, "turn {turn} at {at}");
        }
        // Plenty left changes nothing; what is announced without a reset, or for the past, neither.
        for signal in [
            announced(2_999, 300.0),
            announced(0, 0.0),
            HostSignal::Usable(RateWindow { remaining: Some(0), reset: None }),
            HostSignal::Usable(RateWindow { remaining: None, reset: Some(seconds(60.0)) }),
        ] {
            let mut host = Host::new(10.0, 4);
            host.ask(signal);
            host.go();
            assert!(host.elapsed() < 0.11, "{signal:?}");
        }
    }

    #[test]
    fn answers_that_overtake_each_other_do_not_raise_what_is_left() {
        let mut host = Host::new(10.0, 4);
        host.go();
        host.go();
        host.answered(announced(0, 60.0));
        host.answered(announced(1, 60.0));
        host.assert_waits(60.0);
        let mut host = Host::new(10.0, 4);
        host.go();
        host.go();
        host.answered(announced(1, 60.0));
        host.answered(announced(5, 60.0));
        host.go();
        assert!((host.elapsed() - 30.1).abs() < 0.1, "{}", host.elapsed());
        // A refusal knows better than what was announced before.
        let mut host = Host::new(10.0, 4);
        host.go();
        host.ask(announced(0, 200.0));
        host.answered(refused(5.0));
        host.assert_waits(5.0);
    }

    /// A host that counts: 60 requests in 20 s, announced as the reference PDS does, in whole seconds.
    #[test]
    fn a_host_that_announces_its_limit_never_has_to_say_no() {
        for (latency, concurrency, rate) in [(0.01, 4, 9.0), (0.9, 4, 9.0), (3.0, 16, 50.0)] {
            let mut host = Host::new(rate, concurrency);
            let mut out: Vec<Instant> = Vec::new();
            let (mut window, mut served, mut total) = (0, 0, 0);
            while host.elapsed() < 400.0 {
                let turn = host.pace.take(host.now);
                if let Turn::Go { .. } = turn {
                    // It counts when the request comes in.
                    let current = (host.elapsed() / 20.0) as u64;
                    (window, served) = (current, if current == window { served + 1 } else { 1 });
                    total += 1;
                    assert!(served <= 60, "refused at {}, latency {latency}", host.elapsed());
                    out.push(host.now + seconds(latency));
                    continue;
                }
                let answer = out.first().copied();
                match (turn, answer) {
                    (Turn::At(at), Some(answer)) if at < answer => host.now = at,
                    (Turn::At(at), None) => host.now = at,
                    (_, Some(answer)) => {
                        host.now = answer;
                        out.remove(0);
                        let end = (window + 1) as f64 * 20.0;
                        let (left, reset) = if host.elapsed() < end {
                            (60 - served, (end - host.elapsed()).ceil())
                        } else {
                            (60, 20.0)
                        };
                        host.answered(announced(left, reset));
                    }
                    _ => panic!("stuck"),
                }
            }
            let share = f64::from(u32::try_from(total).unwrap()) / (60.0 * 20.0);
            assert!(share > 0.7, "only {share} of what is allowed, latency {latency}");
        }
    }

    #[test]
    fn three_faults_open_the_circuit_and_each_probe_that_fails_doubles_it() {
        let mut host = Host::new(10.0, 4);
        for _ in 0..4 {
            host.go();
        }
        host.answered(FAULT);
        host.answered(FAULT);
        assert_eq!(host.pace.state(host.now), HostState::Working);
        host.answered(FAULT);
        assert_eq!((host.pace.state(host.now), host.wait()), (HostState::Open, 30.0));
        // It was out before the circuit opened.
        host.after(1.0).answered(FAULT);
        assert_eq!(host.wait(), 29.0);
        for open in [60.0, 120.0, 240.0, 330.0, 330.0] {
            assert!(host.go());
            host.after(1.0);
            assert_eq!(host.pace.take(host.now), Turn::Busy);
            assert_eq!(host.pace.state(host.now), HostState::Open);
            host.answered(FAULT);
            assert!((host.wait() - open).abs() < 1e-6, "{} instead of {open}", host.wait());
        }
        assert!(host.ask(usable()));
        assert_eq!(host.pace.state(host.now), HostState::Working);
        host.ask(FAULT);
        host.ask(FAULT);
        host.ask(usable());
        host.ask(FAULT);
        host.ask(FAULT);
        assert_eq!(host.wait(), 0.0);
        host.ask(FAULT);
        assert_eq!(host.wait(), 30.0);
    }

    #[test]
    fn a_refusal_ends_a_row_of_faults_and_closes_the_circuit_but_is_not_usable() {
        let mut host = Host::new(10.0, 4);
        host.ask(FAULT);
        host.ask(FAULT);
        host.ask(refused(1.0));
        host.ask(FAULT);
        host.ask(FAULT);
        assert_eq!(host.pace.state(host.now), HostState::Working);
        host.ask(FAULT);
        assert_eq!(host.pace.state(host.now), HostState::Open);
        assert!(host.ask(refused(5.0)));
        assert_eq!(host.pace.state(host.now), HostState::Waiting);
        host.assert_waits(5.0);
        assert!(host.pace.silence(host.now) >= seconds(30.0));
        // Alive again, so a full row is needed, and the first circuit is short.
        host.ask(FAULT);
        host.ask(FAULT);
        assert_eq!(host.wait(), 0.0);
        host.ask(FAULT);
        assert_eq!(host.wait(), 30.0);
    }

    #[test]
    fn a_probe_that_tells_nothing_leaves_the_way_free() {
        let mut host = Host::new(10.0, 4);
        for _ in 0..3 {
            host.ask(FAULT);
        }
        assert!(host.go());
        host.pace.give_back();
        assert!(host.go());
        host.answered(HostSignal::NotAsked);
        assert!(host.go());
        // A late answer of another request shows that the host lives.
        host.pace.note(&usable(), host.now, &host.chance);
        assert_eq!(host.pace.state(host.now), HostState::Working);
        assert!(!host.go());
    }

    #[test]
    fn patience_runs_from_the_first_bad_signal_and_only_while_signals_come() {
        let mut host = Host::new(10.0, 4);
        assert_eq!(host.pace.silence(host.now), Duration::ZERO);
        host.after(90_000.0).ask(usable());
        host.after(90_000.0).ask(refused(300.0));
        assert_eq!(host.pace.silence(host.now), Duration::ZERO);
        host.after(600.0);
        assert_eq!(host.pace.silence(host.now), seconds(600.0));
        // A process that slept for a month.
        host.after(2_600_000.0);
        assert_eq!(host.pace.silence(host.now), SILENCE_STEP_MAX);
        host.answered(FAULT);
        assert_eq!(host.pace.silence(host.now), SILENCE_STEP_MAX);
        assert_eq!(host.pace.patience_over(host.now), None);
        let mut signals = 0;
        while host.pace.patience_over(host.now).is_none() {
            host.after(300.0).answered(UNNAMED);
            signals += 1;
        }
        assert_eq!((signals, host.pace.patience_over(host.now)), (9, Some(LastError::RateLimited)));
        host.answered(FAULT);
        assert_eq!(host.pace.patience_over(host.now), Some(LastError::Connect));
        host.answered(usable());
        assert_eq!(
            (host.pace.patience_over(host.now), host.pace.silence(host.now)),
            (None, Duration::ZERO)
        );
    }

    #[test]
    fn short_patience_ends_while_the_host_still_waits_and_can_be_renewed() {
        let mut host = Host::new(10.0, 4);
        host.pace.set_limits(PaceLimits { patience: seconds(2.0), ..limits(10.0, 4) });
        host.ask(UNNAMED);
        host.after(1.9);
        assert_eq!(host.pace.patience_over(host.now), None);
        host.after(0.1);
        assert_eq!(host.pace.patience_over(host.now), Some(LastError::RateLimited));
        host.pace.renew_patience();
        assert_eq!(host.pace.patience_over(host.now), None);
        host.assert_waits(58.0);
    }

    #[test]
    fn only_a_host_with_nothing_to_remember_is_idle() {
        let idle = |host: &Host| host.pace.is_idle(host.now);
        let mut host = Host::new(10.0, 4);
        assert!(idle(&host));
        host.go();
        host.after(1.0);
        assert!(!idle(&host));
        host.answered(usable());
        assert!(idle(&host));
        for signal in [FAULT, refused(1.0), UNNAMED, announced(5, 60.0), announced(0, 60.0)] {
            let mut host = Host::new(10.0, 4);
            host.ask(signal);
            host.after(2.0);
            assert!(!idle(&host), "{signal:?}");
        }
        host.ask(announced(5, 60.0));
        assert!(idle(host.after(61.0)));
        assert_eq!(host.pace.state(host.now).as_str(), "working");
    }
}
