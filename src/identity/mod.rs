//! Identities: where a DID's document is found, what the answer of its directory means, and what the document says.
//!
//! takes   status, headers and body of one answer, and wall time
//! gives   the [`Document`](document::Document) or the failure, and what the answer tells about the directory
//!
//! | answer | account | directory |
//! |---|---|---|
//! | 2xx with a usable document | identity | usable |
//! | 2xx with JSON that is no usable document | terminal | usable |
//! | 404 or 410 that the directory means | terminal, no error | usable |
//! | 429 in any form | `Directory`, `rate_limited` | refused |
//! | 5xx | `Directory`, `http_5xx` | fault |
//! | any other 4xx, anything that is not JSON | `Directory` | fault: it waits like a host |

pub mod directory;
pub mod document;
pub mod export;
pub mod plc;
pub mod web;

use reqwest::header::HeaderMap;

use crate::domain::did::Did;
use crate::domain::verdict::{Cause, Failure, HostSignal, LastError, Reason};
use crate::identity::document::Document;
use crate::net::answer;

/// What one answer of a directory means for the account and for the directory.
pub type Outcome = (Result<Document, Failure>, HostSignal);

/// Judges an answer by the table above; `gone` is what the directory means by its 404 or 410, if it means anything.
fn judge(
    did: &Did,
    status: u16,
    headers: &HeaderMap,
    body: &[u8],
    now_ms: i64,
    gone: impl FnOnce(&[u8]) -> Option<Reason>,
) -> Outcome {
    // A document is not searched for an error name: whoever controls a DID could write one there.
    let is_success = (200..300).contains(&status);
    let signal = answer::signal(status, headers, if is_success { &[] } else { body }, now_ms);
    let failed =
        |cause, last_error| Err(Failure::new(cause, last_error, answer::evidence(status, body)));
    match signal {
        HostSignal::Refused(_) => (failed(Cause::Directory, Some(LastError::RateLimited)), signal),
        HostSignal::Fault(error) => (failed(Cause::Directory, Some(error)), signal),
        _ if is_success => {
            let read = document::read(did, body);
            let is_nonsense = |failure: &&Failure| failure.cause == Cause::Directory;
            let signal = match read.as_ref().err().filter(is_nonsense) {
                Some(failure) => HostSignal::Fault(failure.last_error.unwrap_or(LastError::NotCar)),
                None => signal,
            };
            (read, signal)
        }
        _ => {
            if matches!(status, 404 | 410)
                && let Some(reason) = gone(body)
            {
                return (failed(Cause::Terminal(reason), None), signal);
            }
            let is_4xx = (400..500).contains(&status);
            let error = if is_4xx { LastError::Http4xx } else { LastError::NotCar };
            (failed(Cause::Directory, Some(error)), HostSignal::Fault(error))
        }
    }
}
