//! One host's pace: how many requests may be out, when the next one may go, and for how long nothing usable came. Pure:
//! time and chance are passed in. The same machine serves every PDS and the directory.
//!
//! ```text
//!             3 faults in a row               until is over: one probe
//!  closed --------------------------> open ------------------------------> probing
//!    ^                                 ^ |                                  |  |
//!    |                                 | | a late answer below 500          |  |
//!    |                                 '-|-- fault: open for twice as long -'  |
//!    '---------- any answer below 500 ---+-------------------------------------'
//! ```
//! *Rate.* Turns are spread evenly and none is saved up. A turn that is taken late, by a coarse timer or a full mailbox,
//! shifts the next one only as far as it was later than [`LATENESS`]; for that the interval is longer than `1 / rate` by
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

/// First wait for a 429 that names none; it doubles up to [`UNNAMED_WAIT_MAX`], the window of the reference PDS.
const UNNAMED_WAIT_BASE: Duration = Duration::from_secs(60);

/// Longest wait for a 429 that names none.
const UNNAMED_WAIT_MAX: Duration = Duration::from_secs(300);

/// Share of a wait that is added at most.
const JITTER: f64 = 0.1;

/// What a wait leaves of the rate.
const SLOWING: f64 = 0.7;

/// Requests per second that refusals do not go below, unless the configured rate is lower.
const RATE_FLOOR: f64 = 1.0;

/// Answers without a refusal that raise the rate.
const ANSWERS_TO_RAISE: u32 = 20;

/// What they multiply it by.
const RAISE: f64 = 1.1;

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
    last_usable_at: Option<Instant>,
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
        let step = now.saturating_duration_since(self.last_at).min(SILENCE_STEP_MAX);
        self.counted.saturating_add(step)
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
            last_usable_at: None,
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
        if let Circuit::Open { is_probing, .. } = &mut self.circuit
            && self.active == 0
        {
            // The probe told nothing.
            *is_probing = false;
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
        let is_closed = self.circuit == Circuit::Closed { faults: 0 };
        let is_rested = self.next_at <= now && self.resume_at(now).is_none();
        let is_bounded = self.announced.is_some_and(|announced| announced.reset_at > now);
        let is_slowed = self.rate < self.limits.requests_per_second || self.refusal.unnamed > 0;
        self.active == 0
            && is_closed
            && is_rested
            && !is_bounded
            && !is_slowed
            && self.silence.is_none()
    }

    /// Whether a usable answer came later than `since`.
    #[must_use]
    pub fn usable_since(&self, since: Instant) -> bool {
        self.last_usable_at.is_some_and(|at| at > since)
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
        self.last_usable_at = Some(now);
        self.silence = None;
        self.circuit = Circuit::Closed { faults: 0 };
        self.announce(window, now, chance);
        if is_late {
            // Sent before the wait: it says nothing about the time after it.
            return;
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
    if !seconds.is_finite() || seconds <= 0.0 {
        return INTERVAL_MAX;
    }
    // One nanosecond more, so that rounding never makes it shorter.
    let exact = Duration::try_from_secs_f64(seconds).unwrap_or(INTERVAL_MAX);
    exact.saturating_add(Duration::from_nanos(1)).min(INTERVAL_MAX)
}

fn jittered(wait: Duration, chance: &Chance) -> Duration {
    wait + chance.up_to(wait.mul_f64(JITTER))
}
