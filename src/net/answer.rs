//! Answers of a PDS: what status, headers and the first bytes of a body say about the account and about the host.
//!
//! takes   status, headers and at most [`ERROR_BODY_BYTES_MAX`](crate::limits::ERROR_BODY_BYTES_MAX) of the body
//! gives   a [`Failure`] for the account and a [`HostSignal`] for the host's pace
//!
//! | answer | account | host |
//! |---|---|---|
//! | 429, or the error name `RateLimitExceeded` with any status | `RateLimited` | refused |
//! | 500 and above | `HostFault`, `http_5xx` | fault |
//! | 4xx that names the repository's state | `Repository(reason)`, no error | usable |
//! | any other 4xx | `Transient`, `http_4xx` | usable |
//! | anything else that is no CAR | `Transient`, `not_car` | usable |
//!
//! Waits are between nothing and [`WAIT_MAX`]: the past is nothing, ten years are the bound, and what is no time at all is
//! not a wait. Instants that a host names are measured against its own `Date`, if it sends one, so that a clock that is
//! wrong here costs nothing. Nothing that a host writes is trusted to be text, short or sensible.

use std::time::{Duration, SystemTime};

use reqwest::header::{CONTENT_TYPE, DATE, HeaderMap, RETRY_AFTER};
use serde_json::Value;

use crate::domain::did::cleaned;
use crate::domain::verdict::{Cause, Failure, HostSignal, LastError, RateWindow, Reason};

/// Longest wait that a host can ask for: hosts count in windows of 300 s, and a tenth more covers their clocks.
pub const WAIT_MAX: Duration = Duration::from_secs(330);

/// A reset above this is seconds since 1970 (a day in 2001), below it seconds from now (31 years, so surely meant as such).
const EPOCH_SECONDS_MIN: f64 = 1e9;

/// A reset above this is milliseconds since 1970 (a day in 1973; as seconds the year 5138).
const EPOCH_MILLISECONDS_MIN: f64 = 1e11;

/// Bytes of a body that is no error object shown as evidence; the whole evidence is cut at 200 characters.
const EVIDENCE_BYTES_MAX: usize = 160;

/// Error names that tell a repository's state, letters only, lower case: those of `getRepo` and what other hosts and older
/// versions write for the same.
const STATE_NAMES: &[(&str, Reason)] = &[
    ("reponotfound", Reason::RepoNotFound),
    ("repositorynotfound", Reason::RepoNotFound),
    ("repodeleted", Reason::RepoNotFound),
    ("accountnotfound", Reason::RepoNotFound),
    ("accountdeleted", Reason::RepoNotFound),
    ("repotakendown", Reason::RepoTakenDown),
    ("repotakedown", Reason::RepoTakenDown),
    ("accounttakendown", Reason::RepoTakenDown),
    ("accounttakedown", Reason::RepoTakenDown),
    ("reposuspended", Reason::RepoSuspended),
    ("accountsuspended", Reason::RepoSuspended),
    ("repodeactivated", Reason::RepoDeactivated),
    ("accountdeactivated", Reason::RepoDeactivated),
];

/// Error names that say nothing, so that the message decides.
const VAGUE_NAMES: &[&str] = &["", "invalidrequest", "badrequest", "notfound"];

/// What messages under a vague name say, lower case.
const STATE_MESSAGES: &[(&str, Reason)] = &[
    ("could not find repo", Reason::RepoNotFound),
    ("could not find root", Reason::RepoNotFound),
    ("repo not found", Reason::RepoNotFound),
    ("repository not found", Reason::RepoNotFound),
    ("repo has been deleted", Reason::RepoNotFound),
    ("repo has been takendown", Reason::RepoTakenDown),
    ("repo has been taken down", Reason::RepoTakenDown),
    ("repo has been suspended", Reason::RepoSuspended),
    ("repo has been deactivated", Reason::RepoDeactivated),
];

/// What `getRepoStatus` says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RepoStatus {
    /// It can be fetched.
    Active,
    /// It cannot, for this reason; `None`: for one that decides nothing (`throttled`, `desynchronized`, unknown words).
    Inactive(Option<Reason>),
}

/// Whether the body of this answer is to be read as a CAR. Some hosts name no type, or only `application/octet-stream`;
/// whether it really is one, the framing tells.
#[must_use]
pub fn is_car(status: u16, headers: &HeaderMap) -> bool {
    let Some(value) = headers.get(CONTENT_TYPE) else { return status == 200 };
    let essence = value.to_str().unwrap_or("?").split(';').next().unwrap_or_default().trim();
    let is_tolerated = ["application/vnd.ipld.car", "application/octet-stream", ""]
        .iter()
        .any(|tolerated| essence.eq_ignore_ascii_case(tolerated));
    status == 200 && is_tolerated
}

/// What any answer tells about the host that gave it; `body_start` may be empty when the status alone says enough.
#[must_use]
pub fn signal(status: u16, headers: &HeaderMap, body_start: &[u8], now_ms: i64) -> HostSignal {
    signal_of(status, headers, &Said::read(body_start), now_ms)
}

/// What an answer to `getRepo`, `getRepoStatus` or `getLatestCommit` means that is not the expected kind.
#[must_use]
pub fn repo_outcome(
    status: u16,
    headers: &HeaderMap,
    body_start: &[u8],
    now_ms: i64,
) -> (Failure, HostSignal) {
    let said = Said::read(body_start);
    let signal = signal_of(status, headers, &said, now_ms);
    let (cause, last_error) = match signal {
        HostSignal::Refused(_) => (Cause::RateLimited, Some(LastError::RateLimited)),
        HostSignal::Fault(error) => (Cause::HostFault, Some(error)),
        _ if !(400..500).contains(&status) => (Cause::Transient, Some(LastError::NotCar)),
        _ => match said.repo_state() {
            // A clear answer is no error: `retry --reason http_4xx` is not for the accounts that are gone.
            Some(reason) => (Cause::Repository(reason), None),
            None => (Cause::Transient, Some(LastError::Http4xx)),
        },
    };
    (Failure::new(cause, last_error, evidence_of(status, &said, body_start)), signal)
}

/// Whether an answer to `getRepo` leaves open why, so that `getRepoStatus` is asked: a host says "not found" also of what is
/// deactivated or taken down, and a bare 400, 404 or 410 may come from something in front of it.
#[must_use]
pub fn leaves_open_why(status: u16, body_start: &[u8]) -> bool {
    let said = Said::read(body_start);
    match said.repo_state() {
        Some(reason) => reason == Reason::RepoNotFound,
        None => matches!(status, 400 | 404 | 410) && VAGUE_NAMES.contains(&said.name().as_str()),
    }
}

/// The failure `before`, in the light of what `getRepoStatus` then answered: another reason where it names one. That the
/// repository is active, or nothing clear, changes nothing: it was not to be had.
#[must_use]
pub fn with_status(before: Failure, status: u16, headers: &HeaderMap, body: &[u8]) -> Failure {
    let reason = if status == 200 {
        match status_outcome(body) {
            Ok(RepoStatus::Inactive(reason)) => reason,
            Ok(RepoStatus::Active) | Err(_) => None,
        }
    } else {
        match repo_outcome(status, headers, body, 0).0.cause {
            Cause::Repository(reason) => Some(reason),
            _ => None,
        }
    };
    match reason {
        Some(reason) if before.cause != Cause::Repository(reason) => {
            let detail = format!("{reason} by getRepoStatus; getRepo: {}", before.detail);
            Failure::new(Cause::Repository(reason), None, cleaned(&detail))
        }
        _ => before,
    }
}

/// What the body of a `getRepoStatus` answered with 200 says.
///
/// # Errors
/// It does not say whether the account is active: transient, `not_car`.
pub fn status_outcome(body: &[u8]) -> Result<RepoStatus, Failure> {
    let value: Value = serde_json::from_slice(body).unwrap_or_default();
    let Some(is_active) = value.get("active").and_then(Value::as_bool) else {
        let detail = cleaned(&format!("no repository status: {}", start_of(body)));
        return Err(Failure::new(Cause::Transient, Some(LastError::NotCar), detail));
    };
    if is_active {
        return Ok(RepoStatus::Active);
    }
    let word = value.get("status").and_then(Value::as_str).unwrap_or_default();
    Ok(RepoStatus::Inactive(match word.to_ascii_lowercase().as_str() {
        "deleted" => Some(Reason::RepoNotFound),
        "takendown" => Some(Reason::RepoTakenDown),
        "suspended" => Some(Reason::RepoSuspended),
        "deactivated" => Some(Reason::RepoDeactivated),
        _ => None,
    }))
}

/// Rate-limit headers, `RateLimit-*` or the older `X-RateLimit-*`. `now_ms` is wall time, milliseconds since 1970.
#[must_use]
pub fn rate_window(headers: &HeaderMap, now_ms: i64) -> RateWindow {
    let remaining = either(headers, "ratelimit-remaining", "x-ratelimit-remaining");
    RateWindow { remaining: remaining.and_then(count), reset: reset(headers, now_ms) }
}

/// How long a 429 asks to wait: `Retry-After` in seconds or as an HTTP date, else `RateLimit-Reset`; `None` if neither
/// makes sense. `now_ms` is wall time, milliseconds since 1970.
#[must_use]
pub fn refusal_wait(headers: &HeaderMap, now_ms: i64) -> Option<Duration> {
    let now = host_now(headers, now_ms);
    let retry_after = text(headers, RETRY_AFTER.as_str())
        .and_then(|text| seconds(text).or_else(|| http_date(text).map(|at| at - now)));
    retry_after.map(bounded).or_else(|| reset(headers, now_ms))
}

/// Status and what the body says, cleaned, at most 200 characters.
#[must_use]
pub fn evidence(status: u16, body_start: &[u8]) -> String {
    evidence_of(status, &Said::read(body_start), body_start)
}

/// The `message` of an error object, if the body is one.
#[must_use]
pub fn message(body_start: &[u8]) -> Option<String> {
    Said::read(body_start).message
}

/// The first bytes of a body as text, for evidence; not cleaned yet.
pub(crate) fn start_of(body: &[u8]) -> String {
    String::from_utf8_lossy(&body[..body.len().min(EVIDENCE_BYTES_MAX)]).into_owned()
}

/// An XRPC error object, as far as the body is one.
#[derive(Debug, Default)]
struct Said {
    error: Option<String>,
    message: Option<String>,
}

impl Said {
    fn read(body_start: &[u8]) -> Self {
        // Only an object is worth parsing, and a CAR is none.
        if body_start.trim_ascii_start().first() != Some(&b'{') {
            return Self::default();
        }
        let value: Value = serde_json::from_slice(body_start).unwrap_or_default();
        let member = |name: &str| value.get(name).and_then(Value::as_str).map(str::to_owned);
        Self { error: member("error"), message: member("message") }
    }

    /// The error's name, letters only, lower case: hosts differ in case and in `_`.
    fn name(&self) -> String {
        let letters = self.error.iter().flat_map(|error| error.chars());
        letters.filter(char::is_ascii_alphabetic).map(|c| c.to_ascii_lowercase()).collect()
    }

    fn repo_state(&self) -> Option<Reason> {
        let name = self.name();
        if let Some((_, reason)) = STATE_NAMES.iter().find(|(known, _)| *known == name) {
            return Some(*reason);
        }
        if !VAGUE_NAMES.contains(&name.as_str()) {
            return None;
        }
        let message = self.message.as_deref().unwrap_or_default().to_ascii_lowercase();
        let said = STATE_MESSAGES.iter().find(|(known, _)| message.contains(known));
        said.map(|(_, reason)| *reason)
    }
}

fn signal_of(status: u16, headers: &HeaderMap, said: &Said, now_ms: i64) -> HostSignal {
    if status == 429 || said.name() == "ratelimitexceeded" {
        HostSignal::Refused(refusal_wait(headers, now_ms))
    } else if status >= 500 {
        HostSignal::Fault(LastError::Http5xx)
    } else {
        HostSignal::Usable(rate_window(headers, now_ms))
    }
}

fn evidence_of(status: u16, said: &Said, body_start: &[u8]) -> String {
    let words = match (&said.error, &said.message) {
        (Some(error), Some(message)) => format!("{error}: {message}"),
        (Some(only), None) | (None, Some(only)) => only.clone(),
        (None, None) if body_start.is_empty() => "empty".to_owned(),
        (None, None) => start_of(body_start),
    };
    cleaned(&format!("status {status}: {words}"))
}

/// A header's text, if it is text.
fn text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok().map(str::trim)
}

fn either<'a>(headers: &'a HeaderMap, name: &str, older: &str) -> Option<&'a str> {
    text(headers, name).or_else(|| text(headers, older))
}

/// A number of requests; below zero is none left.
fn count(text: &str) -> Option<u64> {
    match text.strip_prefix('-') {
        Some(digits) => digits.parse::<u64>().ok().map(|_| 0),
        None => text.parse().ok(),
    }
}

/// Plain decimal seconds, perhaps negative; no exponent, no `inf`.
fn seconds(text: &str) -> Option<f64> {
    let is_decimal = text.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.' || byte == b'-');
    if is_decimal { text.parse().ok() } else { None }
}

/// Seconds since 1970 of an HTTP date.
fn http_date(text: &str) -> Option<f64> {
    let at = httpdate::parse_http_date(text).ok()?;
    at.duration_since(SystemTime::UNIX_EPOCH).ok().map(|since| since.as_secs_f64())
}

/// The host's own time, seconds since 1970, or else ours.
fn host_now(headers: &HeaderMap, now_ms: i64) -> f64 {
    let own = Duration::from_millis(now_ms.max(0).unsigned_abs()).as_secs_f64();
    text(headers, DATE.as_str()).and_then(http_date).unwrap_or(own)
}

fn reset(headers: &HeaderMap, now_ms: i64) -> Option<Duration> {
    let given = either(headers, "ratelimit-reset", "x-ratelimit-reset").and_then(seconds)?;
    Some(bounded(match given {
        from_now if from_now < EPOCH_SECONDS_MIN => from_now,
        at if at < EPOCH_MILLISECONDS_MIN => at - host_now(headers, now_ms),
        at_ms => at_ms / 1_000.0 - host_now(headers, now_ms),
    }))
}

fn bounded(seconds: f64) -> Duration {
    Duration::try_from_secs_f64(seconds.clamp(0.0, WAIT_MAX.as_secs_f64())).unwrap_or(WAIT_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use reqwest::header::{HeaderName, HeaderValue};

    /// Fri, 27 Sep 2024 00:00:00 GMT.
    const NOW_MS: i64 = 1_727_395_200_000;

    fn headers(pairs: &[(&str, &str)]) -> HeaderMap {
        let pair = |(name, value): &(&str, &str)| {
            (
                HeaderName::from_bytes(name.as_bytes()).unwrap(),
                HeaderValue::from_bytes(value.as_bytes()).unwrap(),
            )
        };
        pairs.iter().map(pair).collect()
    }

    fn outcome(status: u16, body: &str) -> (Cause, Option<LastError>, HostSignal) {
        let (failure, signal) = repo_outcome(status, &HeaderMap::new(), body.as_bytes(), NOW_MS);
        (failure.cause, failure.last_error, signal)
    }

    fn usable() -> HostSignal {
        HostSignal::Usable(RateWindow::default())
    }

    #[test]
    fn get_repo_status_decides_where_the_answer_left_open_why() {
        let not_found = br#"{"error":"RepoNotFound","message":"Could not find repo"}"#;
        assert!(
            leaves_open_why(400, not_found)
                && leaves_open_why(404, b"")
                && leaves_open_why(410, b"gone")
        );
        assert!(leaves_open_why(
            400,
            br#"{"error":"InvalidRequest","message":"Could not find repo for DID: x"}"#
        ));
        for (status, body) in [
            (400, &br#"{"error":"RepoDeactivated"}"#[..]),
            (400, br#"{"error":"Whatever"}"#),
            (401, b""),
            (403, b"<html>"),
            (500, b""),
        ] {
            assert!(!leaves_open_why(status, body), "{status}");
        }
        let before = |body: &[u8]| repo_outcome(400, &HeaderMap::new(), body, NOW_MS).0;
        let after = |body: &[u8], status, answer: &str| {
            with_status(before(body), status, &HeaderMap::new(), answer.as_bytes())
        };
        let repository = Cause::Repository;
        for (body, status, answer, cause) in [
            (
                &not_found[..],
                200,
                r#"{"active":false,"status":"deactivated"}"#,
                repository(Reason::RepoDeactivated),
            ),
            (
                not_found,
                200,
                r#"{"active":false,"status":"takendown"}"#,
                repository(Reason::RepoTakenDown),
            ),
            (
                not_found,
                200,
                r#"{"active":false,"status":"suspended"}"#,
                repository(Reason::RepoSuspended),
            ),
            (
                not_found,
                200,
                r#"{"active":false,"status":"deleted"}"#,
                repository(Reason::RepoNotFound),
            ),
            (not_found, 200, r#"{"active":true,"rev":"x"}"#, repository(Reason::RepoNotFound)),
            (not_found, 429, "", repository(Reason::RepoNotFound)),
            (b"", 400, r#"{"error":"RepoNotFound"}"#, repository(Reason::RepoNotFound)),
            (
                b"",
                200,
                r#"{"active":false,"status":"takendown"}"#,
                repository(Reason::RepoTakenDown),
            ),
            (b"", 200, r#"{"active":false,"status":"throttled"}"#, Cause::Transient),
            (b"", 200, r#"{"active":true}"#, Cause::Transient),
            (b"", 200, "<html>", Cause::Transient),
            (b"", 501, "", Cause::Transient),
        ] {
            let failure = after(body, status, answer);
            assert_eq!(failure.cause, cause, "{status} {answer}");
            assert_eq!(failure.last_error.is_none(), matches!(cause, Cause::Repository(_)));
        }
        let told = after(not_found, 200, r#"{"active":false,"status":"deactivated"}"#).detail;
        assert_eq!(
            told,
            "repo_deactivated by getRepoStatus; getRepo: status 400: RepoNotFound: Could not find repo"
        );
    }

    #[test]
    fn waits_are_read_in_every_form_and_bounded() {
        type Headers = &'static [(&'static str, &'static str)];
        let cases: &[(Headers, Option<f64>)] = &[
            (&[], None),
            (&[("retry-after", "17")], Some(17.0)),
            (&[("retry-after", " 1.5 ")], Some(1.5)),
            (&[("retry-after", "0")], Some(0.0)),
            (&[("retry-after", "-5")], Some(0.0)),
            (&[("retry-after", "330")], Some(330.0)),
            (&[("retry-after", "331")], Some(330.0)),
            (&[("retry-after", "315360000")], Some(330.0)),
            (&[("retry-after", "999999999999999999999999999")], Some(330.0)),
            (&[("retry-after", "soon")], None),
            (&[("retry-after", "")], None),
            (&[("retry-after", "inf")], None),
            (&[("retry-after", "NaN")], None),
            (&[("retry-after", "1e2")], None),
            (&[("retry-after", "--1")], None),
            (&[("retry-after", "\u{fffd}")], None),
            (&[("retry-after", "Fri, 27 Sep 2024 00:00:42 GMT")], Some(42.0)),
            (&[("retry-after", "Thu, 26 Sep 2024 00:00:00 GMT")], Some(0.0)),
            (&[("retry-after", "Wed, 27 Sep 2034 00:00:00 GMT")], Some(330.0)),
            (&[("retry-after", "Fri, 99 Sep 2024 00:00:42 GMT")], None),
            (&[("ratelimit-reset", "1727395260")], Some(60.0)),
            (&[("ratelimit-reset", "1727395199")], Some(0.0)),
            (&[("ratelimit-reset", "2042755200")], Some(330.0)),
            (&[("ratelimit-reset", "1727395260000")], Some(60.0)),
            (&[("ratelimit-reset", "45")], Some(45.0)),
            (&[("ratelimit-reset", "-45")], Some(0.0)),
            (&[("ratelimit-reset", "later")], None),
            (&[("x-ratelimit-reset", "45")], Some(45.0)),
            // The refusal's own header goes first, unless it is garbage.
            (&[("retry-after", "7"), ("ratelimit-reset", "45")], Some(7.0)),
            (&[("retry-after", "soon"), ("ratelimit-reset", "45")], Some(45.0)),
        ];
        for (pairs, expected) in cases {
            let wait = refusal_wait(&headers(pairs), NOW_MS).map(|wait| wait.as_secs_f64());
            assert_eq!(wait, *expected, "{pairs:?}");
        }
    }

    #[test]
    fn a_wrong_clock_here_changes_no_wait_that_the_host_dates() {
        for skew_ms in [-3_600_000, 0, 86_400_000, 315_360_000_000, -NOW_MS, i64::MIN / 2] {
            let now_ms = NOW_MS.saturating_add(skew_ms);
            let dated =
                |name, value| headers(&[("date", "Fri, 27 Sep 2024 00:00:00 GMT"), (name, value)]);
            for given in [
                dated("ratelimit-reset", "1727395260"),
                dated("retry-after", "Fri, 27 Sep 2024 00:01:00 GMT"),
                dated("retry-after", "60"),
            ] {
                let wait = refusal_wait(&given, now_ms);
                assert_eq!(wait, Some(Duration::from_secs(60)), "{skew_ms} {given:?}");
            }
        }
        let undated = headers(&[("date", "yesterday"), ("ratelimit-reset", "1727395260")]);
        assert_eq!(refusal_wait(&undated, NOW_MS), Some(Duration::from_secs(60)));
    }

    #[test]
    fn windows_are_read_where_hosts_announce_them() {
        let window = |pairs: &[(&str, &str)]| {
            let window = rate_window(&headers(pairs), NOW_MS);
            (window.remaining, window.reset.map(|reset| reset.as_secs()))
        };
        assert_eq!(window(&[]), (None, None));
        let reference = [
            ("RateLimit-Limit", "3000"),
            ("RateLimit-Remaining", "2999"),
            ("RateLimit-Reset", "1727395500"),
            ("RateLimit-Policy", "3000;w=300"),
        ];
        assert_eq!(window(&reference), (Some(2_999), Some(300)));
        let older = [("x-ratelimit-remaining", "0"), ("x-ratelimit-reset", "12")];
        assert_eq!(window(&older), (Some(0), Some(12)));
        assert_eq!(window(&[("ratelimit-remaining", "-3")]), (Some(0), None));
        for garbage in ["", "-", "many", "1.5", "18446744073709551616", "\u{b2}"] {
            assert_eq!(window(&[("ratelimit-remaining", garbage)]), (None, None), "{garbage}");
        }
    }

    #[test]
    fn a_named_state_is_the_repositorys_with_any_4xx_in_any_case() {
        let cases = [
            (400, r#"{"error":"RepoNotFound","message":"no"}"#, Reason::RepoNotFound),
            (404, r#"{"error":"RepoNotFound"}"#, Reason::RepoNotFound),
            (400, r#"{"error":"RepoTakendown"}"#, Reason::RepoTakenDown),
            (400, r#"{"error":"REPO_TAKEN_DOWN"}"#, Reason::RepoTakenDown),
            (403, r#"{"error":"repotakedown"}"#, Reason::RepoTakenDown),
            (400, r#"{"error":"AccountTakedown"}"#, Reason::RepoTakenDown),
            (400, r#"{"error":"RepoSuspended"}"#, Reason::RepoSuspended),
            (400, r#"{"error":"RepoDeactivated","message":""}"#, Reason::RepoDeactivated),
            (400, r#" {"error":"repodeactivated"} "#, Reason::RepoDeactivated),
            (
                400,
                r#"{"error":"InvalidRequest","message":"Could not find repo for DID: did:plc:a"}"#,
                Reason::RepoNotFound,
            ),
            (404, r#"{"error":"NotFound","message":"Repo not found"}"#, Reason::RepoNotFound),
            (404, r#"{"error":"notfound","message":"REPO NOT FOUND."}"#, Reason::RepoNotFound),
            (404, r#"{"message":"Repository not found"}"#, Reason::RepoNotFound),
            (
                400,
                r#"{"error":"InvalidRequest","message":"Repo has been takendown: did:web:deactivated.example"}"#,
                Reason::RepoTakenDown,
            ),
        ];
        for (status, body, reason) in cases {
            let expected = (Cause::Repository(reason), None, usable());
            assert_eq!(outcome(status, body), expected, "{status} {body}");
        }
    }

    #[test]
    fn everything_else_that_is_no_car_is_transient_and_shows_the_host_alive() {
        let cases = [
            (200, "<!doctype html><p>hello", LastError::NotCar),
            (200, "", LastError::NotCar),
            (200, r#"{"error":"RepoNotFound"}"#, LastError::NotCar),
            (204, "", LastError::NotCar),
            (302, "moved", LastError::NotCar),
            (
                400,
                r#"{"error":"InvalidRequest","message":"did must be a DID"}"#,
                LastError::Http4xx,
            ),
            (400, r#"{"error":"ExpiredToken","message":"repo not found"}"#, LastError::Http4xx),
            (400, r#"{"error":7,"message":["repo not found"]}"#, LastError::Http4xx),
            (400, "Repo not found", LastError::Http4xx),
            (401, r#"{"error":"AuthMissing"}"#, LastError::Http4xx),
            (404, r#"{"error":"NotFound","message":"Not Found"}"#, LastError::Http4xx),
            (404, "<html>nginx</html>", LastError::Http4xx),
            (418, "", LastError::Http4xx),
            (499, "{\"error\":\"RepoNot", LastError::Http4xx),
        ];
        for (status, body, last_error) in cases {
            let expected = (Cause::Transient, Some(last_error), usable());
            assert_eq!(outcome(status, body), expected, "{status} {body}");
        }
    }

    #[test]
    fn a_refusal_is_one_in_any_form_and_a_server_error_is_the_hosts() {
        let refused = (Cause::RateLimited, Some(LastError::RateLimited), HostSignal::Refused(None));
        for (status, body) in [
            (429, ""),
            (429, "<html>Too Many Requests</html>"),
            (429, r#"{"error":"RepoNotFound"}"#),
            (400, r#"{"error":"RateLimitExceeded","message":"Rate Limit Exceeded"}"#),
            (200, r#"{"error":"rate_limit_exceeded"}"#),
            (503, r#"{"error":"RateLimitExceeded"}"#),
        ] {
            assert_eq!(outcome(status, body), refused, "{status} {body}");
        }
        let told = headers(&[("retry-after", "9"), ("ratelimit-remaining", "0")]);
        let (_, signal) = repo_outcome(429, &told, b"", NOW_MS);
        assert_eq!(signal, HostSignal::Refused(Some(Duration::from_secs(9))));
        let fault = HostSignal::Fault(LastError::Http5xx);
        for (status, body) in
            [(500, r#"{"error":"RepoNotFound"}"#), (502, "<html>"), (599, ""), (700, "")]
        {
            let expected = (Cause::HostFault, Some(LastError::Http5xx), fault);
            assert_eq!(outcome(status, body), expected, "{status} {body}");
        }
    }

    #[test]
    fn the_signal_of_a_car_carries_what_the_host_announced() {
        let told = headers(&[("ratelimit-remaining", "5"), ("ratelimit-reset", "30")]);
        let window = RateWindow { remaining: Some(5), reset: Some(Duration::from_secs(30)) };
        assert_eq!(signal(200, &told, &[], NOW_MS), HostSignal::Usable(window));
        assert_eq!(signal(404, &told, b"not here", NOW_MS), HostSignal::Usable(window));
        assert_eq!(signal(503, &told, &[], NOW_MS), HostSignal::Fault(LastError::Http5xx));
    }

    #[test]
    fn a_car_is_told_by_status_and_type() {
        let typed = |status, content_type: &str| {
            is_car(status, &headers(&[("content-type", content_type)]))
        };
        assert!(is_car(200, &HeaderMap::new()) && !is_car(206, &HeaderMap::new()));
        for good in [
            "application/vnd.ipld.car",
            "Application/VND.IPLD.CAR; version=1",
            "application/octet-stream",
            "",
        ] {
            assert!(typed(200, good) && !typed(400, good) && !typed(204, good), "{good}");
        }
        for bad in [
            "text/html; charset=utf-8",
            "application/json",
            "text/plain",
            "application/vnd.ipld.carx",
            "\u{e4}",
        ] {
            assert!(!typed(200, bad), "{bad}");
        }
    }

    #[test]
    fn status_words_become_reasons() {
        let status = |body: &str| status_outcome(body.as_bytes());
        assert_eq!(
            status(r#"{"did":"did:plc:a","active":true,"rev":"3"}"#),
            Ok(RepoStatus::Active)
        );
        for (word, reason) in [
            ("deleted", Some(Reason::RepoNotFound)),
            ("takendown", Some(Reason::RepoTakenDown)),
            ("Suspended", Some(Reason::RepoSuspended)),
            ("deactivated", Some(Reason::RepoDeactivated)),
            ("throttled", None),
            ("desynchronized", None),
            ("", None),
        ] {
            let body = format!(r#"{{"active":false,"status":"{word}"}}"#);
            assert_eq!(status(&body), Ok(RepoStatus::Inactive(reason)), "{word}");
        }
        assert_eq!(status(r#"{"active":false,"status":null}"#), Ok(RepoStatus::Inactive(None)));
        for nonsense in
            ["", "<html>", "[]", "{}", r#"{"active":"true"}"#, r#"{"active":null}"#, "null"]
        {
            let failure = status(nonsense).unwrap_err();
            assert_eq!(
                (failure.cause, failure.last_error),
                (Cause::Transient, Some(LastError::NotCar))
            );
        }
    }

    #[test]
    fn evidence_is_short_and_printable_whatever_the_host_sent() {
        let detail =
            |status, body: &[u8]| repo_outcome(status, &HeaderMap::new(), body, NOW_MS).0.detail;
        assert_eq!(detail(404, b""), "status 404: empty");
        let named = br#"{"error":"InvalidRequest","message":"line\r\nbreak\u001b[31m"}"#;
        assert_eq!(
            detail(400, named),
            "status 400: InvalidRequest: line\\u{d}\\u{a}break\\u{1b}[31m"
        );
        assert!(detail(200, b"<html>\n<b>").starts_with("status 200: <html>\\u{a}<b>"));
        let long = format!(
            r#"{{"error":"{}","message":"{}"}}"#,
            "e".repeat(9_000),
            "\u{202e}".repeat(9_000)
        );
        for body in
            [long.as_bytes(), &[0xff; 16_384], &[0; 16_384], "\u{1f600}".repeat(500).as_bytes()]
        {
            let detail = detail(400, body);
            assert!(
                detail.chars().count() <= 200 && !detail.chars().any(char::is_control),
                "{detail}"
            );
        }
        assert_eq!(
            message(br#"{"message":"DID not registered: x"}"#).unwrap(),
            "DID not registered: x"
        );
        assert_eq!(evidence(502, b"bad"), "status 502: bad");
    }

    /// Random bytes and cuts of real bodies: every outcome is one of the table's, and nothing panics.
    #[test]
    fn hostile_answers_always_have_an_outcome() {
        let chance = crate::seed::Chance::seeded(11);
        let real =
            br#"{"error":"RepoNotFound","message":"Could not find repo for DID: did:plc:a"}"#;
        for round in 0..20_000_usize {
            let mut body = real[..round % (real.len() + 1)].to_vec();
            for _ in 0..chance.bits() % 4 {
                body.push(chance.bits().to_le_bytes()[0]);
            }
            let value = HeaderValue::from_bytes(&body).unwrap_or(HeaderValue::from_static("0"));
            let mut told = HeaderMap::new();
            for name in
                ["retry-after", "ratelimit-reset", "ratelimit-remaining", "date", "content-type"]
            {
                told.insert(name, value.clone());
            }
            let status = 100 + u16::try_from(chance.bits() % 900).unwrap();
            let (failure, signal) = repo_outcome(status, &told, &body, NOW_MS);
            match signal {
                HostSignal::Refused(wait) => {
                    assert_eq!(failure.cause, Cause::RateLimited);
                    assert!(wait.is_none_or(|wait| wait <= WAIT_MAX));
                }
                HostSignal::Fault(_) => assert!(status >= 500),
                HostSignal::Usable(_) => assert!(status < 500 && failure.cause != Cause::HostFault),
                HostSignal::NotAsked => panic!("it was asked"),
            }
        }
    }
}
