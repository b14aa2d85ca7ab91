//! Directories: the pace of the PLC directory and of the web hosts that serve `did:web` documents. Pure.

use std::collections::HashMap;
use std::time::Duration;

use crate::clock::Instant;
use crate::domain::verdict::{HostSignal, LastError};
use crate::net::pace::{HostPace, HostState, PaceLimits, Turn};
use crate::seed::Chance;
use crate::stages::messages::PermitNews;

use super::estimate::Asked;

/// Web hosts whose pace is remembered; beyond that the idle ones are forgotten, and if there are none, all that are not asked
/// just now: thousands of strangers' hosts that are away must not take memory, nor a look at each for every account.
const WEB_HOSTS_MAX: usize = 4_096;

/// A web host whose turn is at no known time: its account comes again after this long.
const WEB_PAUSE: Duration = Duration::from_secs(1);

/// Whom resolutions ask.
pub struct Directories {
    web_limits: PaceLimits,
    plc_limits: PaceLimits,
    plc: HostPace,
    /// When the PLC directory may be asked next, if it was refused a turn.
    plc_at: Option<Instant>,
    web: HashMap<String, HostPace>,
}

impl Directories {
    /// Nobody has been asked yet.
    #[must_use]
    pub fn new(plc_limits: PaceLimits, web_limits: PaceLimits, now: Instant) -> Self {
        let plc = HostPace::new(plc_limits, now);
        Self { web_limits, plc_limits, plc, plc_at: None, web: HashMap::new() }
    }

    /// New numbers.
    pub fn set_limits(&mut self, plc_limits: PaceLimits, web_limits: PaceLimits) {
        self.web_limits = web_limits;
        self.plc_limits = plc_limits;
        self.plc.set_limits(plc_limits);
        self.web.values_mut().for_each(|pace| pace.set_limits(web_limits));
    }

    /// Takes a permit of the PLC directory, if it is its turn.
    pub fn take_plc(&mut self, now: Instant) -> bool {
        let turn = self.plc.take(now);
        self.plc_at = if let Turn::At(at) = turn { Some(at) } else { None };
        matches!(turn, Turn::Go { .. })
    }

    /// A permit of the PLC directory came back.
    pub fn give_back_plc(&mut self) {
        self.plc.give_back();
    }

    /// The PLC directory said something; gives what it last did if its patience is over now.
    pub fn plc_said(
        &mut self,
        signal: &HostSignal,
        now: Instant,
        chance: &Chance,
    ) -> Option<LastError> {
        self.plc.note(signal, now, chance);
        let over = self.plc.patience_over(now);
        if over.is_some() {
            self.plc.renew_patience();
        }
        over
    }

    /// Takes a permit of a web host, or says how long to wait.
    ///
    /// # Errors
    /// The wait.
    pub fn take_web(&mut self, host: &str, now: Instant) -> Result<(), Duration> {
        if self.web.len() >= WEB_HOSTS_MAX {
            self.web.retain(|_, pace| !pace.is_idle(now));
            if self.web.len() >= WEB_HOSTS_MAX {
                self.web.retain(|_, pace| pace.active() > 0);
            }
        }
        let limits = self.web_limits;
        let pace = self.web.entry(host.to_owned()).or_insert_with(|| HostPace::new(limits, now));
        match pace.take(now) {
            Turn::Go { .. } => Ok(()),
            Turn::At(at) => Err(at.saturating_duration_since(now)),
            Turn::Busy => Err(WEB_PAUSE),
        }
    }

    /// A permit of a web host came back or told something.
    pub fn web_news(&mut self, host: &str, news: &PermitNews, now: Instant, chance: &Chance) {
        let Some(pace) = self.web.get_mut(host) else { return };
        match news {
            PermitNews::Said(signal) => pace.note(signal, now, chance),
            PermitNews::AlsoAsked => {}
            PermitNews::Returned => pace.give_back(),
        }
    }

    /// When the PLC directory may be asked next, if it could not be asked just now.
    #[must_use]
    pub fn plc_at(&self) -> Option<Instant> {
        self.plc_at
    }

    /// Whether the PLC directory has refused or gone away since a turn was taken, which is then not to be used.
    #[must_use]
    pub fn plc_holds(&self, now: Instant) -> bool {
        self.plc.holds(now)
    }

    /// How the PLC directory does, as the estimate wants it.
    #[must_use]
    pub fn plc_look(&self, now: Instant) -> Asked {
        let (pace, silence) = (&self.plc, self.plc.silence(now));
        let left_of_patience = self.plc_limits.patience.saturating_sub(silence);
        let is_away = pace.state(now) == HostState::Open;
        Asked {
            active: pace.active() as u64,
            rate: pace.rate(),
            rate_max: self.plc_limits.requests_per_second,
            wait: pace
                .resume_at(now)
                .map_or(Duration::ZERO, |at| at.saturating_duration_since(now)),
            away: is_away.then_some((silence, left_of_patience)),
            ..Asked::default()
        }
    }

    /// Whether the PLC directory refuses or is away.
    #[must_use]
    pub fn plc_waits(&self, now: Instant) -> bool {
        self.plc.state(now) != HostState::Working
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Clock;
    use crate::domain::verdict::RateWindow;

    const SECOND: Duration = Duration::from_secs(1);

    fn directories() -> (Directories, Instant) {
        let now = Clock::system().now();
        let limits = |concurrency| PaceLimits {
            requests_per_second: 10.0,
            concurrency,
            patience: Duration::from_secs(100),
        };
        (Directories::new(limits(32), limits(1), now), now)
    }

    #[test]
    fn the_directory_is_asked_at_its_pace_and_says_when_it_may_be_asked_next() {
        let (mut directories, now) = directories();
        assert!(directories.take_plc(now) && directories.plc_at().is_none());
        assert!(!directories.take_plc(now));
        let next = directories.plc_at().unwrap();
        assert!(next > now && next < now + SECOND / 9);
        assert!(directories.take_plc(next) && directories.plc_at().is_none());
    }

    #[test]
    fn it_waits_when_it_refuses_and_its_patience_ends_with_its_circuit_as_it_was() {
        let (mut directories, now) = directories();
        let chance = Chance::seeded(1);
        let refused = HostSignal::Refused(Some(20 * SECOND));
        assert!(directories.take_plc(now));
        assert_eq!(directories.plc_said(&refused, now, &chance), None);
        directories.give_back_plc();
        assert!(directories.plc_holds(now) && directories.plc_waits(now));
        assert!(!directories.take_plc(now + SECOND) && !directories.plc_holds(now + 23 * SECOND));
        let fault = HostSignal::Fault(LastError::Http5xx);
        for second in [30, 60, 99] {
            assert_eq!(directories.plc_said(&fault, now + second * SECOND, &chance), None);
        }
        let over = directories.plc_said(&fault, now + 101 * SECOND, &chance);
        assert_eq!(over, Some(LastError::Http5xx));
        assert!(directories.plc_waits(now + 102 * SECOND), "its circuit is open");
        assert_eq!(directories.plc_said(&fault, now + 103 * SECOND, &chance), None, "anew");
        let usable = HostSignal::Usable(RateWindow::default());
        directories.plc_said(&usable, now + 104 * SECOND, &chance);
        assert!(!directories.plc_waits(now + 104 * SECOND));
    }

    #[test]
    fn each_web_host_has_a_pace_of_its_own_and_the_table_stays_bounded() {
        let (mut directories, now) = directories();
        let chance = Chance::seeded(1);
        assert!(directories.take_web("a.example", now).is_ok());
        assert!(directories.take_web("a.example", now).is_err(), "one at a time");
        assert!(directories.take_web("b.example", now).is_ok());
        let refused = PermitNews::Said(HostSignal::Refused(Some(40 * SECOND)));
        directories.web_news("a.example", &refused, now, &chance);
        directories.web_news("a.example", &PermitNews::Returned, now, &chance);
        let wait = directories.take_web("a.example", now + SECOND).unwrap_err();
        assert!(wait >= 39 * SECOND && wait <= 43 * SECOND, "{wait:?}");
        for number in 0..20_000 {
            let (name, at) = (format!("h{number}.example"), now + number * SECOND);
            assert!(directories.take_web(&name, at).is_ok());
            directories.web_news(&name, &PermitNews::Returned, at, &chance);
        }
        assert!(directories.web.len() <= WEB_HOSTS_MAX);
        let away = PermitNews::Said(HostSignal::Fault(LastError::Dns));
        for number in 0..10_000 {
            let name = format!("away{number}.example");
            assert!(directories.take_web(&name, now).is_ok());
            directories.web_news(&name, &away, now, &chance);
            directories.web_news(&name, &PermitNews::Returned, now, &chance);
            assert!(directories.web.len() <= WEB_HOSTS_MAX);
        }
    }
}
