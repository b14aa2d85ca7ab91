//! From cause to reason: the closed sets of DESIGN section 4, the same words in `status`, logs and metric labels.
//!
//! A stage reports a [`Failure`]; its [`Cause`] alone decides what the ledger does with the account, and its
//! [`HostSignal`] alone what the scheduler does with the host.

use std::fmt;
use std::time::Duration;

use crate::telemetry::Outcome;

/// Why an account is parked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[allow(missing_docs, reason = "the names are the words of DESIGN section 4")]
pub enum Reason {
    DidInvalid,
    DidNotFound,
    DidTombstoned,
    NoPds,
    IdentityInvalid,
    EndpointForbidden,
    RepoNotFound,
    RepoTakenDown,
    RepoSuspended,
    RepoDeactivated,
    RepoInvalid,
    RepoStale,
    RepoTooLarge,
    AttemptsExhausted,
    HostUnavailable,
    DirectoryUnavailable,
    CrashLoop,
}

/// What went wrong last, kept beside the reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[allow(missing_docs, reason = "the names are the words of DESIGN section 4")]
pub enum LastError {
    Dns,
    Connect,
    Tls,
    Timeout,
    TooSlow,
    Http4xx,
    Http5xx,
    RateLimited,
    NotCar,
    Incomplete,
    Hash,
    Tree,
    Signature,
    DidMismatch,
}

/// Gives an enum its words: `as_str`, `parse`, `ALL` and `Display`.
macro_rules! words {
    ($type:ident { $($variant:ident = $word:literal),+ $(,)? }) => {
        impl $type {
            /// Every value, in the order of the design's table.
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];

            /// The word that people and programs see.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $word),+ }
            }

            /// The value of a word.
            #[must_use]
            pub fn parse(word: &str) -> Option<Self> {
                match word { $($word => Some(Self::$variant),)+ _ => None }
            }
        }

        impl serde::Serialize for $type {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(self.as_str())
            }
        }

        impl<'de> serde::Deserialize<'de> for $type {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let word = String::deserialize(deserializer)?;
                Self::parse(&word).ok_or_else(|| serde::de::Error::custom(format!("no such word: {word}")))
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
            }
        }
    };
}

words!(Reason {
    DidInvalid = "did_invalid",
    DidNotFound = "did_not_found",
    DidTombstoned = "did_tombstoned",
    NoPds = "no_pds",
    IdentityInvalid = "identity_invalid",
    EndpointForbidden = "endpoint_forbidden",
    RepoNotFound = "repo_not_found",
    RepoTakenDown = "repo_taken_down",
    RepoSuspended = "repo_suspended",
    RepoDeactivated = "repo_deactivated",
    RepoInvalid = "repo_invalid",
    RepoStale = "repo_stale",
    RepoTooLarge = "repo_too_large",
    AttemptsExhausted = "attempts_exhausted",
    HostUnavailable = "host_unavailable",
    DirectoryUnavailable = "directory_unavailable",
    CrashLoop = "crash_loop",
});

words!(LastError {
    Dns = "dns",
    Connect = "connect",
    Tls = "tls",
    Timeout = "timeout",
    TooSlow = "too_slow",
    Http4xx = "http_4xx",
    Http5xx = "http_5xx",
    RateLimited = "rate_limited",
    NotCar = "not_car",
    Incomplete = "incomplete",
    Hash = "hash",
    Tree = "tree",
    Signature = "signature",
    DidMismatch = "did_mismatch",
});

/// What a failure means for the account.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// Parked as this reason at once.
    Terminal(Reason),
    /// The host says that it has no such repository, or withholds it: parked as this reason after resolving afresh.
    Repository(Reason),
    /// Wrong hash, tree, DID or signature: `repo_invalid` after a second fetch with a fresh identity.
    Invalid,
    /// Revision older than the one held: transient, ends as `repo_stale`.
    Stale,
    /// Charged as an attempt; ends as `attempts_exhausted`.
    Transient,
    /// 429 in any form: the host waits, nothing is charged.
    RateLimited,
    /// DNS, connect, TLS, 5xx or no first byte: charged only if the host was seen well since this DID's last failure.
    HostFault,
    /// The directory (or the web host of a `did:web`) refused, failed or answered nonsense: it waits like a host.
    Directory,
}

/// What a request told about the host that it was sent to.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum HostSignal {
    /// An answer with a first byte and a status below 500 that is no refusal.
    Usable(RateWindow),
    /// A 429, with the wait it asked for, if it said one.
    Refused(Option<Duration>),
    /// DNS, connect, TLS, 5xx, or no first byte.
    Fault(LastError),
    /// The host was not asked.
    NotAsked,
}

/// Rate-limit headers of a successful answer; `None` where the host did not say.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct RateWindow {
    /// `RateLimit-Remaining`, requests.
    pub remaining: Option<u64>,
    /// Time until `RateLimit-Reset`.
    pub reset: Option<Duration>,
}

/// One failed piece of work on one DID.
#[derive(Clone, Debug, PartialEq)]
pub struct Failure {
    /// What it means for the account.
    pub cause: Cause,
    /// What went wrong, for people and for `retry --reason`.
    pub last_error: Option<LastError>,
    /// A cleaned sentence with the evidence: status, error name, first bytes.
    pub detail: String,
}

impl Failure {
    /// A failure of `cause` with its evidence.
    #[must_use]
    pub fn new(cause: Cause, last_error: Option<LastError>, detail: impl Into<String>) -> Self {
        Self { cause, last_error, detail: detail.into() }
    }

    /// What came of the request that failed like this, in the metric's words.
    #[must_use]
    pub fn outcome(&self) -> Outcome {
        match self.cause {
            Cause::Terminal(Reason::EndpointForbidden) => Outcome::Refused,
            Cause::Terminal(_) | Cause::Repository(_) | Cause::Invalid => Outcome::Terminal,
            Cause::RateLimited => Outcome::RateLimited,
            Cause::Directory if self.last_error == Some(LastError::RateLimited) => {
                Outcome::RateLimited
            }
            Cause::Stale | Cause::Transient | Cause::HostFault | Cause::Directory => {
                Outcome::Transient
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_request_counts_as_what_it_was() {
        let outcome = |cause, error| Failure::new(cause, error, "").outcome();
        let refused = Cause::Terminal(Reason::EndpointForbidden);
        for (cause, expected) in [
            (refused, Outcome::Refused),
            (Cause::Terminal(Reason::NoPds), Outcome::Terminal),
            (Cause::Repository(Reason::RepoNotFound), Outcome::Terminal),
            (Cause::Invalid, Outcome::Terminal),
            (Cause::RateLimited, Outcome::RateLimited),
            (Cause::Directory, Outcome::Transient),
            (Cause::Stale, Outcome::Transient),
            (Cause::Transient, Outcome::Transient),
            (Cause::HostFault, Outcome::Transient),
        ] {
            assert_eq!(outcome(cause, Some(LastError::Http5xx)), expected, "{cause:?}");
        }
        let limited = Some(LastError::RateLimited);
        assert_eq!(outcome(Cause::Directory, limited), Outcome::RateLimited);
        assert_eq!(outcome(Cause::HostFault, limited), Outcome::Transient);
    }

    #[test]
    fn words_are_written_and_read_as_json() {
        assert_eq!(serde_json::to_string(&Reason::NoPds).unwrap(), r#""no_pds""#);
        assert_eq!(serde_json::from_str::<LastError>(r#""http_4xx""#).unwrap(), LastError::Http4xx);
        let unknown = serde_json::from_str::<Reason>(r#""no_such""#).unwrap_err();
        assert!(unknown.to_string().contains("no such word: no_such"), "{unknown}");
        assert_eq!(format!("{} {}", Reason::CrashLoop, LastError::Dns), "crash_loop dns");
    }

    #[test]
    fn every_word_reads_back() {
        assert!(Reason::ALL.iter().all(|reason| Reason::parse(reason.as_str()) == Some(*reason)));
        assert!(
            LastError::ALL.iter().all(|error| LastError::parse(error.as_str()) == Some(*error))
        );
        assert_eq!((Reason::ALL.len(), LastError::ALL.len()), (17, 14));
    }
}
