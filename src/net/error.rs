//! What can go wrong with a request, and what it means for the account and for the host (DESIGN section 4).
//!
//! ```text
//!  Forbidden                                         terminal endpoint_forbidden   the host was not asked
//!  NotYet, NoDescriptor                              it comes later, uncharged     the host was not asked
//!  Dns, Connect, Tls, NoFirstByte, NoAnswer          the host's fault              a fault of the host
//!  Broken, Idle, TooSlow, OverTime, TooLarge,
//!  Encoding, TooManyRedirects                        transient                     the host answers
//! ```
//!
//! Texts say which host was asked, are free of control characters and at most 200 characters long.

use std::error::Error;
use std::fmt::Display;
use std::time::Duration;

use crate::domain::did::cleaned;
use crate::domain::verdict::{Cause, Failure, HostSignal, LastError, RateWindow, Reason};

/// A request that did not end well.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NetError {
    /// The guard refuses the URL, or an address behind its name.
    #[error("{0}")]
    Forbidden(String),
    /// The name has no address, or none was found in time.
    #[error("{0}")]
    Dns(String),
    /// No connection.
    #[error("{0}")]
    Connect(String),
    /// No trusted connection.
    #[error("{0}")]
    Tls(String),
    /// No answer within `fetch.first_byte_timeout`.
    #[error("{0}")]
    NoFirstByte(String),
    /// The connection ended before an answer, or what came is not HTTP.
    #[error("{0}")]
    NoAnswer(String),
    /// The answer ended early, or its end is missing.
    #[error("{0}")]
    Broken(String),
    /// Nothing came for `fetch.idle_timeout`.
    #[error("{0}")]
    Idle(String),
    /// Less than `fetch.min_bytes_per_second` came, over a minute.
    #[error("{0}")]
    TooSlow(String),
    /// The whole took longer than it may.
    #[error("{0}")]
    OverTime(String),
    /// The body is larger than this many bytes.
    #[error("the answer is larger than {0} bytes")]
    TooLarge(u64),
    /// The body is compressed in a way that was not agreed on, damaged, or a bomb.
    #[error("{0}")]
    Encoding(String),
    /// A redirect leads to a host that may not be asked for so long.
    #[error("redirected to a host that may not be asked for {} s", .0.as_secs())]
    NotYet(Duration),
    /// This process has no descriptor left for a connection: nobody was asked.
    #[error("{0}")]
    NoDescriptor(String),
    /// More redirects than are followed.
    #[error("the answer is one more redirect after five")]
    TooManyRedirects,
}

impl NetError {
    /// [`NetError::Forbidden`] with its text.
    #[must_use]
    pub fn forbidden(host: &str, why: impl Display) -> Self {
        Self::Forbidden(told(host, why))
    }

    /// What it means for the account.
    #[must_use]
    pub fn failure(&self) -> Failure {
        let cause = match self {
            Self::Forbidden(_) => Cause::Terminal(Reason::EndpointForbidden),
            _ if self.is_host_fault() => Cause::HostFault,
            _ => Cause::Transient,
        };
        Failure::new(cause, self.last_error(), cleaned(&self.to_string()))
    }

    /// What it tells about the host.
    #[must_use]
    pub fn host_signal(&self) -> HostSignal {
        match self {
            Self::Forbidden(_) | Self::NotYet(_) | Self::NoDescriptor(_) => HostSignal::NotAsked,
            _ if self.is_host_fault() => {
                HostSignal::Fault(self.last_error().unwrap_or(LastError::Connect))
            }
            _ => HostSignal::Usable(RateWindow::default()),
        }
    }

    /// What went wrong, in the closed set's word; none for what has no word there.
    #[must_use]
    pub fn last_error(&self) -> Option<LastError> {
        match self {
            Self::Forbidden(_)
            | Self::TooLarge(_)
            | Self::TooManyRedirects
            | Self::NotYet(_)
            | Self::NoDescriptor(_) => None,
            Self::Dns(_) => Some(LastError::Dns),
            Self::Connect(_) | Self::NoAnswer(_) => Some(LastError::Connect),
            Self::Tls(_) => Some(LastError::Tls),
            Self::NoFirstByte(_) | Self::Idle(_) | Self::OverTime(_) => Some(LastError::Timeout),
            Self::TooSlow(_) => Some(LastError::TooSlow),
            Self::Broken(_) => Some(LastError::Incomplete),
            Self::Encoding(_) => Some(LastError::NotCar),
        }
    }

    /// Whether it happened before the first byte of an answer.
    fn is_host_fault(&self) -> bool {
        matches!(
            self,
            Self::Dns(_)
                | Self::Connect(_)
                | Self::Tls(_)
                | Self::NoFirstByte(_)
                | Self::NoAnswer(_)
        )
    }
}

/// `host: what`, cleaned and short.
#[must_use]
pub fn told(host: &str, what: impl Display) -> String {
    // A long name must not hide what happened to it.
    let host: String = host.chars().take(100).collect();
    cleaned(&format!("{host}: {what}"))
}

/// The innermost of an error's sources, which says most.
#[must_use]
pub fn innermost(error: &(dyn Error + 'static)) -> String {
    let mut at = error;
    while let Some(source) = at.source() {
        at = source;
    }
    at.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn before_the_first_byte_it_is_the_hosts_fault_and_after_it_the_accounts() {
        let text = || String::from("h: x");
        for (error, word) in [
            (NetError::Dns(text()), LastError::Dns),
            (NetError::Connect(text()), LastError::Connect),
            (NetError::Tls(text()), LastError::Tls),
            (NetError::NoFirstByte(text()), LastError::Timeout),
            (NetError::NoAnswer(text()), LastError::Connect),
        ] {
            let failure = error.failure();
            assert_eq!((failure.cause, failure.last_error), (Cause::HostFault, Some(word)));
            assert_eq!(error.host_signal(), HostSignal::Fault(word));
        }
        for (error, word) in [
            (NetError::Broken(text()), Some(LastError::Incomplete)),
            (NetError::Idle(text()), Some(LastError::Timeout)),
            (NetError::TooSlow(text()), Some(LastError::TooSlow)),
            (NetError::OverTime(text()), Some(LastError::Timeout)),
            (NetError::TooLarge(7), None),
            (NetError::Encoding(text()), Some(LastError::NotCar)),
            (NetError::TooManyRedirects, None),
        ] {
            let failure = error.failure();
            assert_eq!((failure.cause, failure.last_error), (Cause::Transient, word));
            assert_eq!(error.host_signal(), HostSignal::Usable(RateWindow::default()));
            assert!(!failure.detail.is_empty());
        }
        let forbidden = NetError::forbidden("h", "x");
        assert_eq!(forbidden.failure().cause, Cause::Terminal(Reason::EndpointForbidden));
        assert_eq!(forbidden.host_signal(), HostSignal::NotAsked);
    }

    #[test]
    fn texts_keep_what_happened_behind_a_long_name() {
        let text = told(&"a".repeat(300), "refused\r\n\u{1b}[2J");
        assert!(text.contains(": refused\\u{d}") && text.chars().count() <= 200, "{text}");
        assert!(!text.chars().any(char::is_control));
    }
}
