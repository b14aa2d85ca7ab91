//! The directory and its mirrors: whom a resolution asks.
//!
//! ```text
//!  plc_url ─no usable answer, or it waits─> mirrors[0] ─likewise─> mirrors[1] ...     the first usable answer counts
//! ```
//! takes   `identity.plc_url`, `identity.mirrors` in the operator's order
//! gives   turns: each source keeps a pace, waits and a circuit of its own, at `identity.requests_per_second` at most
//!
//! To the scheduler they are one directory with one pace: it hears what the last source that was asked said, so that it goes on
//! while any of them answers. Mirrors are trusted as the directory is, except for what they do not know: they may be behind,
//! so only the directory itself says that a DID was never registered. Without mirrors nothing of this is in the way.

use std::sync::{Mutex, PoisonError};

use url::Url;

use crate::clock::{Clock, Instant};
use crate::domain::verdict::{Cause, Failure, HostSignal, LastError, Reason};
use crate::identity::Outcome;
use crate::net::pace::{HostPace, HostState, PaceLimits, Turn};
use crate::seed::Chance;

/// The directory and its mirrors.
pub struct Directory {
    urls: Vec<Url>,
    /// One a source, in the same order; unused without mirrors.
    paces: Mutex<Vec<Known>>,
    clock: Clock,
    chance: Chance,
}

/// A source as it is known.
struct Known {
    pace: HostPace,
    /// What it last did.
    last_error: LastError,
}

/// A source whose turn it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    /// Its base URL.
    pub url: Url,
    index: usize,
}

impl Source {
    /// Whether it is a mirror.
    #[must_use]
    pub const fn is_mirror(&self) -> bool {
        self.index > 0
    }
}

/// What asking for a turn gave.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Asked {
    /// It may be asked now.
    Go,
    /// Later, and soon: only its rate is in the way.
    Soon(Instant),
    /// It refuses, is away, or is just being looked at.
    Away,
}

impl Directory {
    /// The directory at `plc_url`, and `mirrors` in the order in which they are tried.
    #[must_use]
    pub fn new(
        plc_url: &Url,
        mirrors: &[Url],
        limits: PaceLimits,
        clock: &Clock,
        chance: &Chance,
    ) -> Self {
        let urls: Vec<Url> = std::iter::once(plc_url).chain(mirrors).cloned().collect();
        let known =
            || Known { pace: HostPace::new(limits, clock.now()), last_error: LastError::Connect };
        let paces = Mutex::new(urls.iter().map(|_| known()).collect());
        Self { urls, paces, clock: clock.clone(), chance: chance.clone() }
    }

    /// Whom to ask after those up to `last` had no usable answer; `None`: nobody is left. Waits for a source's rate, never for
    /// one that refuses or is away.
    pub async fn next(&self, last: Option<&Source>) -> Option<Source> {
        let first = last.map_or(0, |source| source.index + 1);
        if self.urls.len() == 1 {
            return (first == 0).then(|| Source { url: self.urls[0].clone(), index: 0 });
        }
        for index in first..self.urls.len() {
            loop {
                match self.take(index) {
                    Asked::Go => return Some(Source { url: self.urls[index].clone(), index }),
                    Asked::Soon(at) => tokio::time::sleep_until(at).await,
                    Asked::Away => break,
                }
            }
        }
        None
    }

    fn take(&self, index: usize) -> Asked {
        let now = self.clock.now();
        let mut paces = self.paces.lock().unwrap_or_else(PoisonError::into_inner);
        let pace = &mut paces[index].pace;
        match pace.take(now) {
            Turn::Go { .. } => Asked::Go,
            Turn::At(at) if pace.state(now) == HostState::Working => Asked::Soon(at),
            Turn::At(_) | Turn::Busy => Asked::Away,
        }
    }

    /// What came of a turn.
    pub fn said(&self, source: &Source, signal: &HostSignal) {
        if self.urls.len() == 1 {
            return;
        }
        let mut paces = self.paces.lock().unwrap_or_else(PoisonError::into_inner);
        let known = &mut paces[source.index];
        known.pace.note(signal, self.clock.now(), &self.chance);
        known.pace.give_back();
        match signal {
            HostSignal::Fault(error) => known.last_error = *error,
            HostSignal::Refused(_) => known.last_error = LastError::RateLimited,
            HostSignal::Usable(_) | HostSignal::NotAsked => {}
        }
    }

    /// What a resolution ends with when nobody could be asked at all.
    #[must_use]
    pub fn nobody(&self) -> (Failure, HostSignal) {
        let now = self.clock.now();
        let paces = self.paces.lock().unwrap_or_else(PoisonError::into_inner);
        let refusing = paces.iter().filter(|it| it.pace.state(now) == HostState::Waiting);
        let resume_at = refusing.filter_map(|it| it.pace.resume_at(now)).min();
        let failed = |error| {
            let detail = "the directory and its mirrors refuse or are away";
            Failure::new(Cause::Directory, Some(error), detail)
        };
        match resume_at {
            Some(at) => {
                let wait = Some(at.saturating_duration_since(now));
                (failed(LastError::RateLimited), HostSignal::Refused(wait))
            }
            None => {
                let error = paces.first().map_or(LastError::Connect, |known| known.last_error);
                (failed(error), HostSignal::Fault(error))
            }
        }
    }
}

/// A mirror's answer as far as it may be concluded from: that it does not know a DID says nothing.
pub fn of_mirror((read, signal): Outcome) -> Outcome {
    let is_unknown = |failure: &Failure| failure.cause == Cause::Terminal(Reason::DidNotFound);
    match read {
        Err(failure) if is_unknown(&failure) => {
            let last_error = Some(LastError::Http4xx);
            (Err(Failure { cause: Cause::Directory, last_error, ..failure }), signal)
        }
        read => (read, signal),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::domain::verdict::RateWindow;

    fn directory(mirrors: usize) -> Directory {
        let url = |n: usize| Url::parse(&format!("https://plc{n}.example")).unwrap();
        let mirrors: Vec<Url> = (1..=mirrors).map(url).collect();
        let patience = Duration::from_secs(100);
        let limits = PaceLimits { requests_per_second: 100.0, concurrency: 32, patience };
        Directory::new(&url(0), &mirrors, limits, &Clock::system(), &Chance::seeded(1))
    }

    fn usable() -> HostSignal {
        HostSignal::Usable(RateWindow::default())
    }

    #[tokio::test(start_paused = true)]
    async fn mirrors_are_asked_in_order_and_only_where_nothing_usable_came() {
        let directory = directory(2);
        let first = directory.next(None).await.unwrap();
        assert!(!first.is_mirror());
        directory.said(&first, &HostSignal::Fault(LastError::Http5xx));
        let second = directory.next(Some(&first)).await.unwrap();
        assert_eq!((second.url.as_str(), second.is_mirror()), ("https://plc1.example/", true));
        directory.said(&second, &HostSignal::Fault(LastError::Dns));
        let third = directory.next(Some(&second)).await.unwrap();
        assert_eq!(third.url.as_str(), "https://plc2.example/");
        directory.said(&third, &usable());
        assert_eq!(directory.next(Some(&third)).await, None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_directory_that_refuses_or_is_away_is_passed_over_until_it_is_due_again() {
        let directory = directory(1);
        let source = directory.next(None).await.unwrap();
        directory.said(&source, &HostSignal::Refused(Some(Duration::from_secs(60))));
        for _ in 0..10 {
            let source = directory.next(None).await.unwrap();
            assert!(source.is_mirror(), "while the directory waits");
            directory.said(&source, &usable());
        }
        let mirror = directory.next(None).await.unwrap();
        directory.said(&mirror, &HostSignal::Refused(Some(Duration::from_secs(30))));
        assert_eq!(directory.next(None).await, None);
        let (failure, signal) = directory.nobody();
        assert_eq!(
            (failure.cause, failure.last_error),
            (Cause::Directory, Some(LastError::RateLimited))
        );
        let HostSignal::Refused(Some(wait)) = signal else { panic!("{signal:?}") };
        assert!(wait >= Duration::from_secs(29) && wait <= Duration::from_secs(34), "{wait:?}");
        tokio::time::advance(Duration::from_secs(70)).await;
        assert!(!directory.next(None).await.unwrap().is_mirror(), "it is due again");
    }

    #[tokio::test(start_paused = true)]
    async fn without_mirrors_the_one_directory_is_asked_once_and_nothing_else_is_kept() {
        let directory = directory(0);
        for _ in 0..10 {
            let source = directory.next(None).await.unwrap();
            directory.said(&source, &HostSignal::Fault(LastError::Dns));
            assert_eq!(directory.next(Some(&source)).await, None);
        }
    }

    #[test]
    fn what_a_mirror_does_not_know_is_not_concluded_and_a_tombstone_is() {
        let told = |reason| {
            let failure = Failure::new(Cause::Terminal(reason), None, "status 404");
            of_mirror((Err(failure), usable())).0.unwrap_err()
        };
        let unknown = told(Reason::DidNotFound);
        assert_eq!(
            (unknown.cause, unknown.last_error),
            (Cause::Directory, Some(LastError::Http4xx))
        );
        assert_eq!(told(Reason::DidTombstoned).cause, Cause::Terminal(Reason::DidTombstoned));
    }
}
