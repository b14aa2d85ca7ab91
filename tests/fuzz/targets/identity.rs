//! DID documents against their rules over a plain JSON tree, and the guard against a second table of addresses.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use serde_json::Value;
use skyfill::config::settings::{Cidr, Settings};
use skyfill::domain::did::Did;
use skyfill::domain::verdict::{Cause, Failure, Reason};
use skyfill::identity::{document, plc};
use skyfill::net::guard::{Guard, Route, is_public};
use skyfill::repo::key::PublicKey;
use url::{Host, Url};

use super::repo::split;

/// Whose documents these are; the input's first byte chooses.
const DIDS: [&str; 2] = ["did:plc:z72i7hdynmk6r22z27h6tvur", "did:web:example.com"];

/// Input: flags, then the body of an answer.
pub fn document(data: &[u8]) -> bool {
    let (flags, body) = split(data);
    let did = Did::parse(DIDS[usize::from(flags & 1)]).expect("a DID");
    let earlier = plc::earlier_keys(body, "");
    assert!(earlier.len() <= 8 && earlier.iter().all(|key| is_usable(key)));
    let read = document::read(&did, body);
    let text = body.strip_prefix(b"\xef\xbb\xbf").unwrap_or(body);
    let tree = serde_json::from_slice::<Value>(text).ok();
    match read {
        Ok(found) => {
            let tree = tree.expect("it was read");
            assert_eq!(tree["id"].as_str().map(str::to_ascii_lowercase), Some(did.to_string()));
            let service = first(&tree["service"], |it| {
                ends(it, "id", "#atproto_pds") && it["type"] == "AtprotoPersonalDataServer"
            });
            assert_eq!(service.expect("a PDS")["serviceEndpoint"], found.endpoint.as_str());
            assert!(Url::parse(&found.endpoint).is_ok() && is_usable(&found.key));
            if let Some(handle) = &found.handle {
                let plain = |c: char| c.is_ascii_alphanumeric() || c == '.' || c == '-';
                assert!(handle.len() <= 253 && handle.chars().all(plain), "{handle:?}");
            }
            true
        }
        Err(failure) => {
            assert_shown(&failure);
            let Cause::Terminal(reason) = failure.cause else {
                assert_eq!(failure.cause, Cause::Directory);
                // What can be read as JSON is never the directory's fault.
                assert!(tree.is_none() || text.len() > 256 << 10, "{}", failure.detail);
                return false;
            };
            assert!(matches!(reason, Reason::NoPds | Reason::IdentityInvalid), "{reason:?}");
            false
        }
    }
}

fn first(list: &Value, wanted: impl Fn(&Value) -> bool) -> Option<&Value> {
    list.as_array()?.iter().find(|entry| wanted(entry))
}

fn ends(entry: &Value, name: &str, end: &str) -> bool {
    entry[name].as_str().is_some_and(|text| text.ends_with(end))
}

/// A key that is read back as itself.
fn is_usable(key: &str) -> bool {
    PublicKey::from_did_key(key).is_some_and(|read| read.to_did_key() == key)
}

/// What a person will see on a terminal.
fn assert_shown(failure: &Failure) {
    let detail = &failure.detail;
    assert!(!detail.is_empty() && !detail.chars().any(char::is_control), "{detail:?}");
    assert!(detail.chars().count() <= 200, "{} characters", detail.chars().count());
}

/// Input: flags, then the text of an endpoint. Flag 1: the operator allows 10.0.0.0/8 and ::1. Its first bytes are addresses too.
pub fn guard(data: &[u8]) -> bool {
    let (flags, text) = split(data);
    assert_addresses(text);
    let mut network = Settings::default().network;
    if flags & 1 != 0 {
        network.allow = ["10.0.0.0/8", "::1"].iter().filter_map(|net| Cidr::parse(net)).collect();
        assert_eq!(network.allow.len(), 2);
    }
    let guard = Guard::new(&network);
    let text = String::from_utf8_lossy(text);
    let base = Url::parse("https://pds.example.com/xrpc/com.atproto.sync.getRepo").expect("a URL");
    if let Ok(redirect) = base.join(&text)
        && let Ok(route) = guard.check(&redirect)
    {
        assert_reachable(&redirect, route, flags & 1 != 0);
    }
    if let Ok(did) = Did::parse(&format!("did:web:{text}"))
        && let Ok(found) = guard.web_document(did.identifier())
    {
        assert_eq!(found.url.path(), "/.well-known/did.json");
        let route = guard.check(&found.url).expect("it was good");
        assert_reachable(&found.url, route, flags & 1 != 0);
    }
    match guard.endpoint(&text) {
        Ok(found) => {
            let url = &found.url;
            let origin = (url.path(), url.query(), url.fragment());
            assert_eq!(origin, ("/", None, None), "an origin");
            assert_eq!(Url::parse(url.as_str()).as_ref(), Ok(url), "it means the same again");
            let again = guard.endpoint(url.as_str()).expect("its own text is as good");
            assert_eq!(again, found);
            assert!(found.host.starts_with(url.host_str().expect("a host")));
            assert_reachable(url, guard.check(url).expect("it was good"), flags & 1 != 0);
            true
        }
        Err(failure) => {
            assert_shown(&failure);
            let reasons = [Reason::EndpointForbidden, Reason::IdentityInvalid];
            assert!(reasons.iter().any(|reason| failure.cause == Cause::Terminal(*reason)));
            false
        }
    }
}

/// Nothing that the second table calls private is behind a URL that was let through.
fn assert_reachable(url: &Url, route: Route, with_exceptions: bool) {
    assert!(matches!(url.scheme(), "http" | "https"), "{url}");
    assert!(url.username().is_empty() && url.password().is_none(), "{url}");
    assert!(route == Route::Public || (with_exceptions && route == Route::Allowed), "{url}");
    if route == Route::Public {
        assert!(url.scheme() == "https" && url.port_or_known_default() == Some(443), "{url}");
    }
    let address = match url.host().expect("a host") {
        Host::Ipv4(address) => IpAddr::V4(address),
        Host::Ipv6(address) => IpAddr::V6(address),
        Host::Domain(name) => {
            let local = ["localhost", "local", "internal"].map(|top| format!(".{top}"));
            let dotted = format!(".{}", name.to_ascii_lowercase());
            let is_local = local.iter().any(|top| dotted.ends_with(top)) || name.ends_with('.');
            assert!(!is_local || route == Route::Allowed, "{url}");
            return;
        }
    };
    match route {
        Route::Public => assert!(is_global(address) || is_excepted(address), "{url}"),
        _ => assert!(is_excepted(address), "{url}"),
    }
}

fn is_excepted(address: IpAddr) -> bool {
    match address.to_canonical() {
        IpAddr::V4(address) => address.octets()[0] == 10,
        IpAddr::V6(address) => address == Ipv6Addr::LOCALHOST,
    }
}

fn assert_addresses(data: &[u8]) {
    if let Some((first, _)) = data.split_first_chunk::<4>() {
        let address = Ipv4Addr::from(*first);
        for form in [IpAddr::V4(address), IpAddr::V6(address.to_ipv6_mapped())] {
            assert_eq!(is_public(form), is_global(form), "{form}");
        }
    }
    if let Some((first, _)) = data.split_first_chunk::<16>() {
        let address = IpAddr::V6(Ipv6Addr::from(*first));
        assert_eq!(is_public(address), is_global(address), "{address}");
    }
}

/// IANA's special-purpose registries, octet by octet.
fn is_global(address: IpAddr) -> bool {
    match address.to_canonical() {
        IpAddr::V4(address) => !matches!(
            address.octets(),
            [0 | 10 | 127 | 224..=255, ..]
                | [100, 64..=127, ..]
                | [169, 254, ..]
                | [172, 16..=31, ..]
                | [192, 168, ..]
                | [192, 0, 0 | 2, _]
                | [192, 88, 99, _]
                | [198, 18 | 19, ..]
                | [198, 51, 100, _]
                | [203, 0, 113, _]
        ),
        IpAddr::V6(address) => match address.segments() {
            [0x2001, 0..=0x1ff | 0xdb8, ..] | [0x2002, ..] | [0x3fff, 0..=0xfff, ..] => false,
            [first, ..] => (0x2000..=0x3fff).contains(&first),
        },
    }
}
