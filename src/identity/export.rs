//! The directory's export: one operation a line, oldest first (`GET {plc}/export`, did:plc specification, "Operation
//! Serialization").
//!
//! ```text
//!  {"did", "operation": {...}, "cid", "nullified", "createdAt"}
//!  plc_operation  alsoKnownAs, services.atproto_pds, verificationMethods.atproto     what the DID is from then on
//!  create         handle, service, signingKey                                        the same, in the oldest form
//!  plc_tombstone                                                                     it is gone
//! ```
//! takes   a line
//! gives   whose it is, when it was made, whether it counts, and what it makes of the DID's document
//!
//! An operation says the same as the document that the directory makes of it, so the same things are asked of it; one that is
//! of no use is no verdict here: its DID is resolved as if it were not in the export.

use serde_json::Value;

use crate::domain::did::{Did, DidMethod};
use crate::identity::document::{self, Document};
use crate::repo::key::PublicKey;

/// One operation.
#[derive(Clone, Debug, PartialEq)]
pub struct Operation {
    /// Whose.
    pub did: Did,
    /// When the directory took it, milliseconds since 1970.
    pub at_ms: i64,
    /// It was undone by a rotation key of more weight, and never counted.
    pub is_nullified: bool,
    /// What the DID is after it.
    pub state: State,
}

/// What a DID is after an operation.
#[derive(Clone, Debug, PartialEq)]
pub enum State {
    /// This document.
    Document(Document),
    /// Gone.
    Tombstoned,
    /// Something that the directory must be asked about.
    Unclear,
}

/// Reads a line.
///
/// # Errors
/// What is wrong with it, in a few words.
pub fn read(line: &str) -> Result<Operation, String> {
    let value: Value = serde_json::from_str(line).map_err(|error| format!("not JSON: {error}"))?;
    let text = |name: &str| value.get(name).and_then(Value::as_str);
    let did = text("did").ok_or("no did")?;
    let did = Did::parse(did).map_err(|error| error.to_string())?;
    if did.method() != DidMethod::Plc {
        return Err(format!("{did} is no did:plc"));
    }
    let at = text("createdAt").ok_or("no createdAt")?;
    let at = chrono::DateTime::parse_from_rfc3339(at).map_err(|_| "createdAt is no time")?;
    let operation = value.get("operation").filter(|it| it.is_object()).ok_or("no operation")?;
    let is_nullified = match value.get("nullified") {
        None | Some(Value::Null) => false,
        Some(Value::Bool(flag)) => *flag,
        Some(_) => return Err("nullified is neither true nor false".to_owned()),
    };
    let state = match operation.get("type").and_then(Value::as_str) {
        Some("plc_operation") => current(operation),
        Some("create") => oldest(operation),
        Some("plc_tombstone") => State::Tombstoned,
        _ => return Err("an operation of unknown type".to_owned()),
    };
    Ok(Operation { did, at_ms: at.timestamp_millis(), is_nullified, state })
}

fn current(operation: &Value) -> State {
    let service = &operation["services"]["atproto_pds"];
    let is_pds = service["type"] == document::PDS_TYPE;
    let endpoint = service["endpoint"].as_str().filter(|_| is_pds).unwrap_or_default();
    let key = operation["verificationMethods"]["atproto"].as_str().unwrap_or_default();
    let names = operation["alsoKnownAs"].as_array().into_iter().flatten();
    let claim = names.filter_map(Value::as_str).find_map(|name| name.strip_prefix("at://"));
    state(endpoint, key, claim)
}

/// The oldest form names host and handle without a scheme, or with one.
fn oldest(operation: &Value) -> State {
    let text = |name: &str| operation[name].as_str().unwrap_or_default();
    let service = text("service");
    let endpoint = match service {
        "" => String::new(),
        _ if service.starts_with("https://") || service.starts_with("http://") => {
            service.to_owned()
        }
        _ => format!("https://{service}"),
    };
    let handle = text("handle");
    let handle = ["at://", "https://", "http://"]
        .into_iter()
        .find_map(|scheme| handle.strip_prefix(scheme))
        .unwrap_or(handle);
    state(&endpoint, text("signingKey"), Some(handle))
}

fn state(endpoint: &str, key: &str, claim: Option<&str>) -> State {
    let Some(key) = PublicKey::from_did_key(key) else { return State::Unclear };
    if endpoint.trim().is_empty() || url::Url::parse(endpoint).is_err() {
        return State::Unclear;
    }
    State::Document(Document {
        endpoint: endpoint.to_owned(),
        key: key.to_did_key(),
        handle: claim.filter(|claim| document::is_handle(claim)).map(str::to_owned),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const DID: &str = "did:plc:44ybard66vv44zksje25o7dz";
    const KEY: &str = "did:key:zQ3shokFTS3brHcDQrn82RUDfCZESWL1ZdCEJwekUDPQiYBme";

    fn line(operation: &Value) -> String {
        json!({"did": DID, "operation": operation, "cid": "bafy", "nullified": false,
               "createdAt": "2024-10-05T12:34:56.789Z"})
        .to_string()
    }

    fn operation() -> Value {
        json!({
            "type": "plc_operation", "rotationKeys": [KEY], "prev": null, "sig": "x",
            "verificationMethods": {"atproto": KEY},
            "alsoKnownAs": ["https://alice.example", "at://alice.example"],
            "services": {"atproto_pds": {"type": document::PDS_TYPE, "endpoint": "https://pds.example"}},
        })
    }

    fn document() -> Document {
        Document {
            endpoint: "https://pds.example".to_owned(),
            key: KEY.to_owned(),
            handle: Some("alice.example".to_owned()),
        }
    }

    fn state_of(operation: &Value) -> State {
        read(&line(operation)).unwrap().state
    }

    #[test]
    fn every_form_of_an_operation_says_what_its_document_would() {
        let read = read(&line(&operation())).unwrap();
        assert_eq!((read.did.as_str(), read.at_ms), (DID, 1_728_131_696_789));
        assert_eq!((read.is_nullified, read.state), (false, State::Document(document())));
        for (service, handle) in [
            ("https://pds.example", "alice.example"),
            ("pds.example", "at://alice.example"),
            ("pds.example", "https://alice.example"),
        ] {
            let oldest = json!({"type": "create", "signingKey": KEY, "recoveryKey": KEY, "handle": handle,
                                "service": service, "prev": null, "sig": "x"});
            assert_eq!(state_of(&oldest), State::Document(document()), "{service} {handle}");
        }
        assert_eq!(state_of(&json!({"type": "plc_tombstone", "prev": "x"})), State::Tombstoned);
    }

    #[test]
    fn what_is_of_no_use_is_left_to_the_directory() {
        let changed = |change: fn(&mut Value)| {
            let mut changed = operation();
            change(&mut changed);
            state_of(&changed)
        };
        for change in [
            |o: &mut Value| o["services"] = json!({}),
            |o: &mut Value| o["services"]["atproto_pds"]["type"] = json!("Other"),
            |o: &mut Value| o["services"]["atproto_pds"]["endpoint"] = json!(" "),
            |o: &mut Value| o["services"]["atproto_pds"]["endpoint"] = json!("no url"),
            |o: &mut Value| o["verificationMethods"] = json!({}),
            |o: &mut Value| o["verificationMethods"]["atproto"] = json!("did:key:zjunk"),
        ] {
            assert_eq!(changed(change), State::Unclear);
        }
        let State::Document(nameless) = changed(|o| o["alsoKnownAs"] = json!(["at://a b\u{1b}"]))
        else {
            panic!("a strange name does not matter")
        };
        assert_eq!(nameless.handle, None);
    }

    #[test]
    fn what_is_no_operation_is_said_in_words() {
        let whole: Value = serde_json::from_str(&line(&operation())).unwrap();
        let without = |name: &str| {
            let mut part = whole.clone();
            part.as_object_mut().unwrap().remove(name);
            read(&part.to_string()).unwrap_err()
        };
        assert_eq!(without("did"), "no did");
        assert_eq!(without("createdAt"), "no createdAt");
        assert_eq!(without("operation"), "no operation");
        assert!(read("{\"did\": ").unwrap_err().starts_with("not JSON"));
        assert!(read("[]").is_err() && read("").is_err() && read("\"x\"").is_err());
        let with = |name: &str, value: Value| {
            let mut other = whole.clone();
            other[name] = value;
            read(&other.to_string())
        };
        for (name, value) in [
            ("did", json!("did:plc:BAD")),
            ("did", json!("did:web:example.com")),
            ("createdAt", json!("yesterday")),
            ("operation", json!({"type": "other"})),
            ("operation", json!([])),
            ("nullified", json!("no")),
        ] {
            assert!(with(name, value.clone()).is_err(), "{name}: {value}");
        }
        assert!(with("nullified", json!(true)).unwrap().is_nullified);
    }
}
