//! `did:web`: the document lies at `https://host/.well-known/did.json` (did:web specification, as AT Protocol restricts it).
//!
//! The host is its own authority: its 404 or 410, whatever the body, means that there is no such DID.

use reqwest::header::HeaderMap;
use url::Url;

use crate::domain::did::{Did, DidMethod};
use crate::domain::verdict::Reason;
use crate::identity::{Outcome, judge};

/// Where the document of `did` lies; `None` for another method. `localhost`, which the guard lets pass only where the
/// operator allowed it, is asked over plain http and may have a port.
#[must_use]
pub fn document_url(did: &Did) -> Option<Url> {
    if did.method() != DidMethod::Web {
        return None;
    }
    let host = did.identifier().replace("%3a", ":");
    let is_localhost = host == "localhost" || host.starts_with("localhost:");
    let scheme = if is_localhost { "http" } else { "https" };
    Url::parse(&format!("{scheme}://{host}/.well-known/did.json")).ok()
}

/// What the web host's answer means; `body` is the whole body, or its first
/// [`DOCUMENT_BYTES_MAX`](crate::limits::DOCUMENT_BYTES_MAX) + 1 bytes. `now_ms` is wall time, milliseconds since 1970.
pub fn outcome(did: &Did, status: u16, headers: &HeaderMap, body: &[u8], now_ms: i64) -> Outcome {
    judge(did, status, headers, body, now_ms, |_| Some(Reason::DidNotFound))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::verdict::{Cause, HostSignal, LastError, RateWindow};

    #[test]
    fn the_document_is_asked_for_where_the_method_says() {
        let url = |did: &str| document_url(&Did::parse(did).unwrap()).map(String::from);
        let web = |did: &str| url(did).unwrap();
        assert_eq!(web("did:web:Example.COM"), "https://example.com/.well-known/did.json");
        assert_eq!(web("did:web:localhost%3A2583"), "http://localhost:2583/.well-known/did.json");
        assert_eq!(web("did:web:localhost"), "http://localhost/.well-known/did.json");
        let named = "did:web:my-localhost.example";
        assert_eq!(web(named), "https://my-localhost.example/.well-known/did.json");
        assert_eq!(url("did:plc:44ybard66vv44zksje25o7dz"), None);
    }

    #[test]
    fn the_host_is_its_own_authority_on_what_is_missing_and_on_nothing_else() {
        let did = Did::parse("did:web:example.com").unwrap();
        let told = |status, body: &str| {
            let (result, signal) = outcome(&did, status, &HeaderMap::new(), body.as_bytes(), 0);
            let failure = result.unwrap_err();
            (failure.cause, failure.last_error, signal)
        };
        let usable = HostSignal::Usable(RateWindow::default());
        for (status, body) in [(404, ""), (404, "<html>"), (410, "{}"), (410, "gone")] {
            let gone = Cause::Terminal(Reason::DidNotFound);
            assert_eq!(told(status, body), (gone, None, usable));
        }
        for (status, body, error) in [
            (401, "", LastError::Http4xx),
            (500, "", LastError::Http5xx),
            (200, "<html>the same page for every path</html>", LastError::NotCar),
        ] {
            let expected = (Cause::Directory, Some(error), HostSignal::Fault(error));
            assert_eq!(told(status, body), expected, "{status}");
        }
        let refused = HostSignal::Refused(None);
        assert_eq!(told(429, ""), (Cause::Directory, Some(LastError::RateLimited), refused));
        let body = crate::identity::document::sample("did:web:example.com");
        let (document, signal) = outcome(&did, 200, &HeaderMap::new(), body.as_bytes(), 0);
        assert!(document.is_ok() && signal == usable);
    }
}
