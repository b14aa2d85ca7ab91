//! The PLC directory: `GET {plc}/{did}` (did:plc specification, "DID Resolution").
//!
//! Unknown and tombstoned DIDs are told apart by the directory's own message; without it a 404 or 410 comes from something
//! in between (a proxy, a wrong path) and decides nothing.

use reqwest::header::HeaderMap;
use serde_json::Value;
use url::Url;

use crate::domain::did::Did;
use crate::domain::verdict::Reason;
use crate::identity::{Outcome, judge};
use crate::net::answer;
use crate::repo::key::PublicKey;

/// Earlier keys that are looked at: each costs one signature check, and few accounts have moved more than twice.
const EARLIER_KEYS_MAX: usize = 8;

/// Where the directory at `base` keeps the document of `did`; `base` may have a path, with or without a final slash.
#[must_use]
pub fn document_url(base: &Url, did: &Did) -> Url {
    let mut url = base.clone();
    let folders = base.path().split('/').filter(|folder| !folder.is_empty());
    let path = folders.chain([did.as_str()]).collect::<Vec<_>>().join("/");
    url.set_path(&path);
    url.set_fragment(None);
    url
}

/// Where the directory at `base` keeps the operations of `did`, oldest first, with those that were nullified.
#[must_use]
pub fn log_url(base: &Url, did: &Did) -> Url {
    let mut url = document_url(base, did);
    let path = format!("{}/log/audit", url.path());
    url.set_path(&path);
    url
}

/// Signing keys in the log `body`, newest first, `current` left out (did:plc specification, "Audit Logs" and "Operation
/// Serialization": `verificationMethods.atproto`, and `signingKey` of the oldest form). Nullified operations never counted.
#[must_use]
pub fn earlier_keys(body: &[u8], current: &str) -> Vec<String> {
    let Ok(Value::Array(entries)) = serde_json::from_slice(body) else { return Vec::new() };
    let mut keys: Vec<String> = Vec::new();
    for entry in entries.iter().rev().filter(|entry| entry["nullified"] != true) {
        let operation = &entry["operation"];
        let named = operation["verificationMethods"]["atproto"].as_str();
        let key = named
            .or_else(|| operation["signingKey"].as_str())
            .and_then(|text| PublicKey::from_did_key(text).map(|key| key.to_did_key()));
        keys.extend(key.filter(|key| key != current && !keys.contains(key)));
        if keys.len() >= EARLIER_KEYS_MAX {
            break;
        }
    }
    keys
}

/// What the directory's answer means; `body` is the whole body, or its first
/// [`DOCUMENT_BYTES_MAX`](crate::limits::DOCUMENT_BYTES_MAX) + 1 bytes. `now_ms` is wall time, milliseconds since 1970.
pub fn outcome(did: &Did, status: u16, headers: &HeaderMap, body: &[u8], now_ms: i64) -> Outcome {
    judge(did, status, headers, body, now_ms, |body| {
        let message = answer::message(body)?.to_ascii_lowercase();
        if message.contains("did not registered") {
            Some(Reason::DidNotFound)
        } else if message.contains("did not available") {
            Some(Reason::DidTombstoned)
        } else {
            None
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::verdict::{Cause, HostSignal, LastError, RateWindow};
    use std::time::Duration;

    const DID: &str = "did:plc:44ybard66vv44zksje25o7dz";

    fn told(status: u16, body: &str) -> (Cause, Option<LastError>, HostSignal) {
        let did = Did::parse(DID).unwrap();
        let (result, signal) = outcome(&did, status, &HeaderMap::new(), body.as_bytes(), 0);
        let failure = result.unwrap_err();
        assert!(!failure.detail.is_empty() && failure.detail.chars().count() <= 200);
        (failure.cause, failure.last_error, signal)
    }

    #[test]
    fn earlier_keys_are_those_of_operations_that_count() {
        let key = |n: u8| {
            let secret = k256::ecdsa::SigningKey::from_slice(&[n; 32]).unwrap();
            PublicKey::K256(*secret.verifying_key()).to_did_key()
        };
        let operation = |key: &str, nullified: bool| {
            serde_json::json!({"nullified": nullified, "operation":
                {"type": "plc_operation", "verificationMethods": {"atproto": key}}})
        };
        let oldest = serde_json::json!({"operation": {"type": "create", "signingKey": key(1)}});
        let log = serde_json::json!([
            oldest,
            operation(&key(2), false),
            operation(&key(3), true),
            operation("did:key:junk", false),
            operation(&key(2), false),
            operation(&key(4), false),
            {"operation": {"type": "plc_tombstone"}},
        ]);
        assert_eq!(earlier_keys(log.to_string().as_bytes(), &key(4)), [key(2), key(1)]);
        assert!(earlier_keys(b"{}", &key(4)).is_empty() && earlier_keys(b"<html>", "").is_empty());
    }

    #[test]
    fn the_url_has_single_slashes_whatever_the_base() {
        let did = Did::parse(DID).unwrap();
        for (base, expected) in [
            ("https://plc.directory", "https://plc.directory/"),
            ("https://plc.directory/", "https://plc.directory/"),
            ("https://plc.directory//", "https://plc.directory/"),
            ("http://127.0.0.1:2582", "http://127.0.0.1:2582/"),
            ("https://mirror.example/plc", "https://mirror.example/plc/"),
            ("https://mirror.example//plc//v1/#top", "https://mirror.example/plc/v1/"),
        ] {
            let url = document_url(&Url::parse(base).unwrap(), &did);
            assert_eq!(url.as_str(), format!("{expected}{DID}"), "{base}");
        }
        let keyed = Url::parse("https://mirror.example/plc?token=x").unwrap();
        let expected = format!("https://mirror.example/plc/{DID}?token=x");
        assert_eq!(document_url(&keyed, &did).as_str(), expected);
    }

    #[test]
    fn its_own_message_tells_unknown_from_tombstoned() {
        let usable = HostSignal::Usable(RateWindow::default());
        for (status, message, reason) in [
            (404, "DID not registered: did:plc:44ybard66vv44zksje25o7dz", Reason::DidNotFound),
            (404, "did not registered", Reason::DidNotFound),
            (410, "DID not registered", Reason::DidNotFound),
            (404, "DID not available: did:plc:44ybard66vv44zksje25o7dz", Reason::DidTombstoned),
            (410, "DID not available: did:plc:44ybard66vv44zksje25o7dz", Reason::DidTombstoned),
        ] {
            let body = format!(r#"{{"message":"{message}"}}"#);
            let expected = (Cause::Terminal(reason), None, usable);
            assert_eq!(told(status, &body), expected, "{status} {message}");
        }
    }

    #[test]
    fn whatever_decides_nothing_makes_the_directory_wait() {
        for (status, body, error) in [
            (404, "", LastError::Http4xx),
            (404, "<html>DID not registered</html>", LastError::Http4xx),
            (404, r#"{"message":"Not Found"}"#, LastError::Http4xx),
            (404, r#"{"message":["DID not registered"]}"#, LastError::Http4xx),
            (410, "gone", LastError::Http4xx),
            (400, r#"{"message":"DID not registered"}"#, LastError::Http4xx),
            (401, "", LastError::Http4xx),
            (403, r#"{"message":"DID not available"}"#, LastError::Http4xx),
            (304, "", LastError::NotCar),
            (500, r#"{"message":"DID not registered"}"#, LastError::Http5xx),
            (503, "busy", LastError::Http5xx),
            (200, "<html>maintenance</html>", LastError::NotCar),
            (200, "", LastError::Incomplete),
            (200, r#"{"id":"did:plc:44yb"#, LastError::Incomplete),
        ] {
            let expected = (Cause::Directory, Some(error), HostSignal::Fault(error));
            assert_eq!(told(status, body), expected, "{status} {body}");
        }
    }

    #[test]
    fn a_refusal_waits_and_an_unusable_document_does_not_blame_the_directory() {
        let refused = (Cause::Directory, Some(LastError::RateLimited), HostSignal::Refused(None));
        assert_eq!(told(429, "<html>"), refused);
        assert_eq!(told(503, r#"{"error":"RateLimitExceeded"}"#), refused);
        let did = Did::parse(DID).unwrap();
        let headers: HeaderMap =
            [(reqwest::header::RETRY_AFTER, "20".parse().unwrap())].into_iter().collect();
        let (_, signal) = outcome(&did, 429, &headers, b"", 0);
        assert_eq!(signal, HostSignal::Refused(Some(Duration::from_secs(20))));
        let (cause, _, signal) = told(200, r#"{"id":"did:plc:other","error":"RateLimitExceeded"}"#);
        assert_eq!(cause, Cause::Terminal(Reason::IdentityInvalid));
        assert_eq!(signal, HostSignal::Usable(RateWindow::default()));
    }

    #[test]
    fn a_document_comes_with_what_the_directory_announced() {
        let did = Did::parse(DID).unwrap();
        let body = crate::identity::document::sample(DID);
        let headers: HeaderMap = [("ratelimit-remaining", "3"), ("ratelimit-reset", "60")]
            .into_iter()
            .map(|(name, value)| {
                (name.parse::<reqwest::header::HeaderName>().unwrap(), value.parse().unwrap())
            })
            .collect();
        let (document, signal) = outcome(&did, 200, &headers, body.as_bytes(), 0);
        assert_eq!(document.unwrap().endpoint, "https://pds.example");
        let window = RateWindow { remaining: Some(3), reset: Some(Duration::from_secs(60)) };
        assert_eq!(signal, HostSignal::Usable(window));
    }
}
