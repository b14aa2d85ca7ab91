//! DID documents, as far as they concern a backfill (AT Protocol, "DID" section "DID Documents").
//!
//! | part | found as |
//! |---|---|
//! | id | `id`, the DID that was asked for |
//! | endpoint | first `service` whose id ends in `#atproto_pds`, of type `AtprotoPersonalDataServer` |
//! | key | first `verificationMethod` whose id ends in `#atproto` and whose controller is the DID: `Multikey` or a legacy type |
//! | handle | first `at://` name of `alsoKnownAs`, if it could be a handle: a claim, not verified |
//!
//! The first match decides, also when it is of no use; other entries, whatever they are, are passed over. Duplicate keys:
//! the last one counts, as in the reference implementation. Whether the endpoint may be connected to is the guard's matter.
//! What is not JSON blames the directory, what is JSON and unusable ends the account.

use serde::de::IgnoredAny;
use serde_json::Value;
use url::Url;

use crate::domain::did::{Did, cleaned};
use crate::domain::verdict::{Cause, Failure, LastError, Reason};
use crate::limits::DOCUMENT_BYTES_MAX;
use crate::net::answer;
use crate::repo::key::{Curve, PublicKey};

/// Type of the service that is a PDS.
pub const PDS_TYPE: &str = "AtprotoPersonalDataServer";

/// Bytes of a handle: it is a host name.
const HANDLE_BYTES_MAX: usize = 253;

/// What a document says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Document {
    /// `serviceEndpoint`, verbatim; it is a URL and nothing more is known of it.
    pub endpoint: String,
    /// Signing key as `did:key:...`, whatever form the document used.
    pub key: String,
    /// Claimed handle, without `at://`.
    pub handle: Option<String>,
}

/// Reads the document of `did`. `body` is the whole body; one that is longer than [`DOCUMENT_BYTES_MAX`] is refused, and
/// of such a one that many bytes and one more are enough.
///
/// # Errors
/// Not JSON: `Directory`. JSON that is unusable, another DID's or without a usable key: `identity_invalid`. No PDS or an
/// empty endpoint: `no_pds`.
pub fn read(did: &Did, body: &[u8]) -> Result<Document, Failure> {
    let document = parse(body)?;
    let id = document.get("id").and_then(Value::as_str).unwrap_or_default();
    if !names(id, did) {
        let found = if id.is_empty() { "no DID" } else { id };
        return Err(unusable(LastError::DidMismatch, &format!("the document is of {found}")));
    }
    Ok(Document {
        endpoint: endpoint(&document)?,
        key: key(&document, did)?,
        handle: handle(&document),
    })
}

fn parse(body: &[u8]) -> Result<Value, Failure> {
    // Some web servers begin a text file with a byte order mark.
    let text = body.strip_prefix(b"\xef\xbb\xbf").unwrap_or(body);
    let nonsense = |error, what: &str| {
        let detail = cleaned(&format!("{what}: {}", answer::start_of(text)));
        Failure::new(Cause::Directory, Some(error), detail)
    };
    if text.len() > DOCUMENT_BYTES_MAX {
        return Err(match text.trim_ascii_start().first() {
            Some(b'{') => invalid("a document of more than 256 KiB"),
            _ => nonsense(LastError::NotCar, "not JSON"),
        });
    }
    // Whether it is JSON at all is asked first, of a reader without bounds on depth and numbers: a document that goes
    // beyond them is its owner's fault, not the directory's.
    match serde_json::from_slice::<IgnoredAny>(text) {
        Err(error) if error.is_eof() => {
            return Err(nonsense(LastError::Incomplete, "JSON cut short"));
        }
        Err(_) => return Err(nonsense(LastError::NotCar, "not JSON")),
        Ok(_) if std::str::from_utf8(text).is_err() => {
            return Err(nonsense(LastError::NotCar, "not UTF-8"));
        }
        Ok(_) => {}
    }
    serde_json::from_slice(text).map_err(|error| invalid(&format!("unusable JSON: {error}")))
}

/// Whether `text` is `did`; the host of a `did:web` is the same in any case.
fn names(text: &str, did: &Did) -> bool {
    text == did.as_str() || Did::parse(text).is_ok_and(|named| named == *did)
}

/// The objects of an array that may be missing, or anything else.
fn entries<'a>(document: &'a Value, name: &str) -> impl Iterator<Item = &'a Value> {
    document.get(name).and_then(Value::as_array).into_iter().flatten()
}

fn text<'a>(entry: &'a Value, name: &str) -> &'a str {
    entry.get(name).and_then(Value::as_str).unwrap_or_default()
}

fn endpoint(document: &Value) -> Result<String, Failure> {
    let no_pds = |detail| Failure::new(Cause::Terminal(Reason::NoPds), None, detail);
    let is_pds = |entry: &&Value| {
        text(entry, "id").ends_with("#atproto_pds") && text(entry, "type") == PDS_TYPE
    };
    let Some(service) = entries(document, "service").find(is_pds) else {
        return Err(no_pds("the document names no PDS"));
    };
    match service.get("serviceEndpoint") {
        None | Some(Value::Null) => Err(no_pds("its PDS has no endpoint")),
        Some(Value::String(endpoint)) if endpoint.trim().is_empty() => {
            Err(no_pds("the endpoint of its PDS is empty"))
        }
        Some(Value::String(endpoint)) => match Url::parse(endpoint) {
            Ok(_) => Ok(endpoint.clone()),
            Err(error) => Err(invalid(&format!("endpoint {endpoint} is no URL: {error}"))),
        },
        Some(_) => Err(invalid("the endpoint of its PDS is no string")),
    }
}

fn key(document: &Value, did: &Did) -> Result<String, Failure> {
    let is_signing = |entry: &&Value| {
        text(entry, "id").ends_with("#atproto") && names(text(entry, "controller"), did)
    };
    let Some(method) = entries(document, "verificationMethod").find(is_signing) else {
        return Err(invalid("the document names no signing key"));
    };
    let encoded = text(method, "publicKeyMultibase");
    let key = match text(method, "type") {
        "Multikey" => PublicKey::from_multikey(encoded),
        "EcdsaSecp256k1VerificationKey2019" => PublicKey::from_legacy(Curve::K256, encoded),
        "EcdsaSecp256r1VerificationKey2019" => PublicKey::from_legacy(Curve::P256, encoded),
        other => return Err(invalid(&format!("a signing key of unknown type {other}"))),
    };
    match key {
        Some(key) => Ok(key.to_did_key()),
        None => Err(invalid(&format!("no usable signing key: {encoded}"))),
    }
}

fn handle(document: &Value) -> Option<String> {
    let mut names = entries(document, "alsoKnownAs").filter_map(Value::as_str);
    let claim = names.find_map(|name| name.strip_prefix("at://"))?;
    is_handle(claim).then(|| claim.to_owned())
}

/// Whether a claim could be a handle: it goes into summaries and logs, so it must at least look like a host name.
#[must_use]
pub fn is_handle(claim: &str) -> bool {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'.' || byte == b'-';
    (1..=HANDLE_BYTES_MAX).contains(&claim.len()) && claim.bytes().all(is_plain)
}

fn invalid(detail: &str) -> Failure {
    Failure::new(Cause::Terminal(Reason::IdentityInvalid), None, cleaned(detail))
}

fn unusable(error: LastError, detail: &str) -> Failure {
    Failure { last_error: Some(error), ..invalid(detail) }
}

/// A good document of `did`, for tests of this folder.
#[cfg(test)]
pub(crate) fn sample(did: &str) -> String {
    tests::document(did).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const DID: &str = "did:plc:44ybard66vv44zksje25o7dz";
    /// A K-256 and a P-256 key of the public vectors, as Multikeys.
    const K256: &str = "zQ3shokFTS3brHcDQrn82RUDfCZESWL1ZdCEJwekUDPQiYBme";
    const P256: &str = "zDnaeTiq1PdzvZXUaMdezchcMJQpBdH2VN4pgrrEhMCCbmwSb";

    pub(super) fn document(did: &str) -> Value {
        json!({
            "@context": ["https://www.w3.org/ns/did/v1"],
            "id": did,
            "alsoKnownAs": ["at://alice.example", "https://alice.example", "at://other.example"],
            "verificationMethod": [
                {"id": format!("{did}#atproto_label"), "type": "Multikey", "controller": did, "publicKeyMultibase": P256},
                {"id": format!("{did}#atproto"), "type": "Multikey", "controller": did, "publicKeyMultibase": K256},
            ],
            "service": [
                {"id": "#atproto_labeler", "type": "AtprotoLabeler", "serviceEndpoint": "https://labels.example"},
                {"id": "#atproto_pds", "type": PDS_TYPE, "serviceEndpoint": "https://pds.example"},
            ],
        })
    }

    fn read_value(document: &Value) -> Result<Document, Failure> {
        read(&Did::parse(DID).unwrap(), document.to_string().as_bytes())
    }

    /// What is wrong with the sample once `change` is made to it.
    fn cause(change: impl FnOnce(&mut Value)) -> Cause {
        let mut changed = document(DID);
        change(&mut changed);
        read_value(&changed).unwrap_err().cause
    }

    fn not_json(body: &[u8]) -> Option<LastError> {
        let failure = read(&Did::parse(DID).unwrap(), body).unwrap_err();
        assert_eq!(failure.cause, Cause::Directory, "{:?}", String::from_utf8_lossy(body));
        assert!(failure.detail.chars().count() <= 200);
        failure.last_error
    }

    const INVALID: Cause = Cause::Terminal(Reason::IdentityInvalid);
    const NO_PDS: Cause = Cause::Terminal(Reason::NoPds);

    #[test]
    fn a_document_says_endpoint_key_and_claimed_handle() {
        let expected = Document {
            endpoint: "https://pds.example".to_owned(),
            key: format!("did:key:{K256}"),
            handle: Some("alice.example".to_owned()),
        };
        assert_eq!(read_value(&document(DID)), Ok(expected.clone()));
        let marked = [b"\xef\xbb\xbf", document(DID).to_string().as_bytes()].concat();
        assert_eq!(read(&Did::parse(DID).unwrap(), &marked), Ok(expected));
        let web = Did::parse("did:web:example.com").unwrap();
        assert!(read(&web, sample("did:web:Example.com").as_bytes()).is_ok());
        let local = Did::parse("did:web:localhost%3A2583").unwrap();
        assert!(read(&local, sample("did:web:localhost%3A2583").as_bytes()).is_ok());
    }

    #[test]
    fn ids_are_relative_or_full_and_the_first_match_decides() {
        let mut changed = document(DID);
        changed["service"][1]["id"] = json!(format!("{DID}#atproto_pds"));
        changed["verificationMethod"][1]["id"] = json!("#atproto");
        assert!(read_value(&changed).is_ok());

        let services = |entries: Value| {
            let mut changed = document(DID);
            changed["service"] = entries;
            read_value(&changed).map(|document| document.endpoint).map_err(|failure| failure.cause)
        };
        let pds = |endpoint: &str| json!({"id": "#atproto_pds", "type": PDS_TYPE, "serviceEndpoint": endpoint});
        let endpoint = |text: &str| Ok(text.to_owned());
        assert_eq!(
            services(json!([pds("https://one.example"), pds("https://two.example")])),
            endpoint("https://one.example")
        );
        assert_eq!(services(json!([pds(""), pds("https://two.example")])), Err(NO_PDS));
        assert_eq!(services(json!([pds("nonsense"), pds("https://two.example")])), Err(INVALID));
        let other_type = json!({"id": "#atproto_pds", "type": "Other", "serviceEndpoint": "https://one.example"});
        assert_eq!(
            services(json!([other_type, pds("https://two.example")])),
            endpoint("https://two.example")
        );
        assert_eq!(
            services(json!([null, 7, [], "x", {}, pds("https://two.example")])),
            endpoint("https://two.example")
        );

        let bad_first = json!({"id": "#atproto", "type": "Multikey", "controller": DID, "publicKeyMultibase": "z6Mk"});
        assert_eq!(cause(|document| document["verificationMethod"][0] = bad_first), INVALID);
        let mut foreign_first = document(DID);
        foreign_first["verificationMethod"][0] = json!({"id": "#atproto", "type": "Multikey", "controller": "did:plc:other", "publicKeyMultibase": P256});
        assert_eq!(read_value(&foreign_first).unwrap().key, format!("did:key:{K256}"));
    }

    #[test]
    fn keys_come_in_both_curves_and_in_legacy_form() {
        let mut changed = document(DID);
        let mut key_of = |kind: &str, encoded: &str| {
            changed["verificationMethod"][1]["type"] = json!(kind);
            changed["verificationMethod"][1]["publicKeyMultibase"] = json!(encoded);
            read_value(&changed).map(|document| document.key).map_err(|failure| failure.cause)
        };
        let multibase = |bytes: &[u8]| format!("z{}", bs58::encode(bytes).into_string());
        let Some(PublicKey::K256(k256)) = PublicKey::from_multikey(K256) else { panic!() };
        let Some(PublicKey::P256(p256)) = PublicKey::from_multikey(P256) else { panic!() };
        assert_eq!(key_of("Multikey", P256), Ok(format!("did:key:{P256}")));
        for is_compressed in [true, false] {
            let point = multibase(k256.to_sec1_point(is_compressed).as_bytes());
            let legacy = key_of("EcdsaSecp256k1VerificationKey2019", &point);
            assert_eq!(legacy, Ok(format!("did:key:{K256}")));
            let point = multibase(p256.to_sec1_point(is_compressed).as_bytes());
            let legacy = key_of("EcdsaSecp256r1VerificationKey2019", &point);
            assert_eq!(legacy, Ok(format!("did:key:{P256}")));
            if !is_compressed {
                // Of the other curve; half of all compressed points would pass for one.
                assert_eq!(key_of("EcdsaSecp256k1VerificationKey2019", &point), Err(INVALID));
            }
        }
        for (kind, encoded) in [
            ("Multikey", ""),
            ("Multikey", "zzzz"),
            ("Ed25519VerificationKey2020", K256),
            ("", K256),
        ] {
            assert_eq!(key_of(kind, encoded), Err(INVALID), "{kind} {encoded}");
        }
    }

    #[test]
    fn what_is_wrong_decides_how_it_ends() {
        for wrong in [json!(null), json!(""), json!([]), json!({}), json!(5), json!("none")] {
            let shown = wrong.to_string();
            assert_eq!(cause(|document| document["service"] = wrong.clone()), NO_PDS, "{shown}");
            assert_eq!(
                cause(|document| document["verificationMethod"] = wrong.clone()),
                INVALID,
                "{shown}"
            );
            assert_eq!(cause(|document| document["id"] = wrong), INVALID, "{shown}");
        }
        for (endpoint, expected) in [
            (json!(""), NO_PDS),
            (json!("  "), NO_PDS),
            (json!(null), NO_PDS),
            (json!("pds.example"), INVALID),
            (json!("https://"), INVALID),
            (json!("/xrpc"), INVALID),
            (json!(["https://pds.example"]), INVALID),
            (json!({"uri": "https://pds.example"}), INVALID),
            (json!(443), INVALID),
        ] {
            let shown = endpoint.to_string();
            assert_eq!(
                cause(|document| document["service"][1]["serviceEndpoint"] = endpoint),
                expected,
                "{shown}"
            );
        }
        let missing = |document: &mut Value| {
            document["service"][1].as_object_mut().unwrap().remove("serviceEndpoint");
        };
        assert_eq!(cause(missing), NO_PDS);
        let mut foreign = document(DID);
        foreign["id"] = json!("did:plc:aaaaaaaaaaaaaaaaaaaaaaaa");
        let failure = read_value(&foreign).unwrap_err();
        assert_eq!((failure.cause, failure.last_error), (INVALID, Some(LastError::DidMismatch)));
        for other in [DID.to_uppercase(), format!("{DID} "), format!("{DID}#x")] {
            assert_eq!(cause(|document| document["id"] = json!(other)), INVALID, "{other}");
        }
        // What may stay verbatim, because the guard judges it.
        for odd in [
            "http://127.0.0.1:80/x?y#z",
            "ftp://user@host",
            "https://PDS.example/",
            "localhost:3000",
        ] {
            let mut changed = document(DID);
            changed["service"][1]["serviceEndpoint"] = json!(odd);
            assert_eq!(read_value(&changed).unwrap().endpoint, odd);
        }
    }

    #[test]
    fn a_handle_is_a_plausible_claim_or_none() {
        let handle = |names: Value| {
            let mut changed = document(DID);
            changed["alsoKnownAs"] = names;
            read_value(&changed).unwrap().handle
        };
        assert_eq!(handle(json!(["https://x", null, "at://Bob.example"])).unwrap(), "Bob.example");
        for none in [
            json!(null),
            json!([]),
            json!("at://alice.example"),
            json!(["AT://alice.example"]),
            json!(["at://"]),
            json!(["at://../../etc/passwd"]),
            json!(["at://evil\u{1b}[31m.example", "at://alice.example"]),
            json!([format!("at://{}", "a".repeat(300))]),
        ] {
            assert_eq!(handle(none.clone()), None, "{none}");
        }
    }

    #[test]
    fn what_is_not_json_blames_the_directory_and_a_bomb_does_not() {
        let good = document(DID).to_string();
        for cut in 0..good.len() {
            assert_eq!(not_json(&good.as_bytes()[..cut]), Some(LastError::Incomplete), "{cut}");
        }
        for body in ["<html>", "nonsense", "{\"id\": did}", "{} {}", "\u{feff}\u{feff}{}", "NaN"] {
            assert_eq!(not_json(body.as_bytes()), Some(LastError::NotCar), "{body}");
        }
        assert_eq!(not_json(b"{\"id\": \"\xff\"}"), Some(LastError::NotCar));
        assert_eq!(not_json(&vec![b'<'; DOCUMENT_BYTES_MAX + 1]), Some(LastError::NotCar));

        let did = Did::parse(DID).unwrap();
        let deep = "[".repeat(100_000) + &"]".repeat(100_000);
        let wide = format!(r#"{{"id":"{DID}","service":[{}0]}}"#, "{},".repeat(80_000));
        let long = format!(r#"{{"id":"{}"#, "x".repeat(DOCUMENT_BYTES_MAX));
        for (body, expected) in [
            (deep.as_str(), INVALID),
            (&format!(r#"{{"id":"{DID}","x":1e999}}"#), INVALID),
            (&format!(r#"{{"id":"{DID}","x":"\ud800"}}"#), INVALID),
            (&wide, NO_PDS),
            (&long, INVALID),
            ("null", INVALID),
            ("[]", INVALID),
            ("{}", INVALID),
            ("7", INVALID),
        ] {
            let failure = read(&did, body.as_bytes()).unwrap_err();
            assert_eq!(failure.cause, expected, "{:.60}", body);
            assert!(failure.detail.chars().count() <= 200);
        }
    }

    #[test]
    fn of_duplicate_keys_the_last_one_counts() {
        let did = Did::parse(DID).unwrap();
        let good = document(DID).to_string();
        let first = good.replacen('{', r#"{"id":"did:plc:aaaaaaaaaaaaaaaaaaaaaaaa","#, 1);
        assert!(read(&did, first.as_bytes()).is_ok());
        let last = format!("{},\"id\":null}}", &good[..good.len() - 1]);
        assert_eq!(read(&did, last.as_bytes()).unwrap_err().cause, INVALID);
    }

    /// Flips, cuts and splices of a good document: never a panic, and never another DID's document.
    #[test]
    fn hostile_documents_never_panic() {
        let (did, chance) = (Did::parse(DID).unwrap(), crate::seed::Chance::seeded(5));
        let good = document(DID).to_string().into_bytes();
        let tokens: [&[u8]; 8] =
            [b"null", b"[]", b"{}", b"\"\"", b"1e999", b"\"\\ud800\"", b",", b"[[[[[[[["];
        let index = |bound: usize| usize::try_from(chance.bits() % 1_000_003).unwrap() % bound;
        for _ in 0..20_000 {
            let mut body = good.clone();
            for _ in 0..=index(3) {
                let at = index(body.len());
                match index(3) {
                    0 => body[at] ^= 1 << index(8),
                    1 => drop(body.drain(at..(at + index(40)).min(body.len()))),
                    _ => drop(body.splice(at..at, tokens[index(8)].iter().copied())),
                }
                body.push(b' ');
            }
            if let Ok(document) = read(&did, &body) {
                assert!(Url::parse(&document.endpoint).is_ok());
                assert!(PublicKey::from_did_key(&document.key).is_some());
            }
        }
    }
}
