//! How hosts do while their accounts are asked for again, and what they say.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use crate::clock::{Clock, Instant};
use crate::domain::did::cleaned;
use crate::domain::verdict::{Cause, Failure, HostSignal, LastError, Reason};
use crate::net::answer::RepoStatus;
use crate::store::ledger_standing::ACTIVE;

/// A host that gives nothing usable for this long is left alone for this recheck: two probes of an open circuit.
const SILENCE_SECONDS_MAX: u64 = 95;

/// How a host does while its accounts are visited.
#[derive(Default)]
pub(super) struct Manner {
    silence: Mutex<Option<Silence>>,
}

/// Since when nothing usable came, and what came last.
#[derive(Clone)]
struct Silence {
    since: Instant,
    last: LastError,
}

impl Manner {
    fn lock(&self) -> std::sync::MutexGuard<'_, Option<Silence>> {
        self.silence.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn note(&self, signal: &HostSignal, clock: &Clock) {
        let last = match signal {
            HostSignal::Usable(_) => return *self.lock() = None,
            HostSignal::Refused(_) => LastError::RateLimited,
            HostSignal::Fault(error) => *error,
            HostSignal::NotAsked => return,
        };
        let mut silence = self.lock();
        let since = silence.as_ref().map_or_else(|| clock.now(), |known| known.since);
        *silence = Some(Silence { since, last });
    }

    /// What it did last, if its silence will have lasted too long after `wait` more.
    pub(super) fn is_over(
        &self,
        wait: Duration,
        patience: Duration,
        clock: &Clock,
    ) -> Option<LastError> {
        let silence = self.lock().clone()?;
        let most = match silence.last {
            LastError::RateLimited => patience,
            _ => patience.min(Duration::from_secs(SILENCE_SECONDS_MAX)),
        };
        let length = clock.now().saturating_duration_since(silence.since) + wait;
        (length >= most).then_some(silence.last)
    }
}

/// What a host said of an account.
pub(super) struct Said {
    pub(super) status: &'static str,
    pub(super) detail: String,
}

impl Said {
    /// Of an answer to `getLatestCommit`: only what is active has one.
    pub(super) fn of_commit(body: &[u8]) -> Result<Self, Failure> {
        let value: serde_json::Value = serde_json::from_slice(body).unwrap_or_default();
        if value["rev"].is_string() {
            return Ok(Self { status: ACTIVE, detail: String::new() });
        }
        let detail = "no commit in the answer to getLatestCommit";
        Err(Failure::new(Cause::Transient, Some(LastError::NotCar), detail))
    }

    pub(super) fn of_status(status: RepoStatus, body: &[u8]) -> Self {
        let shown = || cleaned(&String::from_utf8_lossy(&body[..body.len().min(160)]));
        match status {
            RepoStatus::Active => Self { status: ACTIVE, detail: String::new() },
            RepoStatus::Inactive(Some(reason)) => Self { status: word(reason), detail: shown() },
            RepoStatus::Inactive(None) => Self { status: "inactive", detail: shown() },
        }
    }
}

/// An answer, or none, from which nothing can be concluded.
pub(super) struct Unclear {
    pub(super) why: String,
    pub(super) is_refusal: bool,
    pub(super) wait: Duration,
}

impl Unclear {
    pub(super) fn unknown_method() -> Self {
        let why = "it knows neither getRepoStatus nor getLatestCommit".to_owned();
        Self { why, is_refusal: false, wait: Duration::ZERO }
    }

    pub(super) fn of(failure: &Failure) -> Self {
        let why = failure.last_error.map_or_else(|| failure.detail.clone(), |it| it.to_string());
        let is_refusal = failure.cause == Cause::RateLimited;
        Self { why, is_refusal, wait: Duration::ZERO }
    }
}

/// The word of `getRepoStatus` for a reason.
pub(super) const fn word(reason: Reason) -> &'static str {
    match reason {
        Reason::RepoTakenDown => "takendown",
        Reason::RepoSuspended => "suspended",
        Reason::RepoDeactivated => "deactivated",
        _ => "deleted",
    }
}
