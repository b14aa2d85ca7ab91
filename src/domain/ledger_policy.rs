//! What the ledger's rules are given beside an event: the operator's numbers, time and chance.

use std::time::Duration;

/// The operator's numbers behind the rules (`[retry]` and `identity.cache_ttl`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LedgerPolicy {
    /// Charged failures that end an account.
    pub attempts: u32,
    /// First retry delay; doubles with each attempt.
    pub base: Duration,
    /// Longest retry delay.
    pub max: Duration,
    /// How long refusals or a silent directory are borne for one account.
    pub host_patience: Duration,
    /// How long an identity may be used without asking the directory again.
    pub cache_ttl: Duration,
}

impl Default for LedgerPolicy {
    fn default() -> Self {
        Self {
            attempts: 5,
            base: Duration::from_secs(5),
            max: Duration::from_secs(15 * 60),
            host_patience: Duration::from_secs(24 * 3600),
            cache_ttl: Duration::from_secs(24 * 3600),
        }
    }
}

/// Time and chance of one application.
#[derive(Clone, Copy, Debug)]
pub struct Moment {
    /// Ledger time, milliseconds since 1970.
    pub now_ms: i64,
    /// Full jitter's share of the delay, `0.0..1.0`.
    pub fraction: f64,
}
