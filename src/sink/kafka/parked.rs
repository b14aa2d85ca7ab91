//! Records of accounts that were given up, in transactions of their own.
//!
//! ```text
//!  {"did", "state": "parked", "reason", "last_error", "attempts", "rev", "edition", "records", "rejected", "rows": {},
//!   "directory", "sink", "position"}                             of a worker "input": {"partition", "offset"} in its place
//! ```
//! They go the way of all records, through the sink's one lane, and its follower tells of them only while the sink has everything
//! that is sealed: so one that is exported later is `done` after it, and stays so. `rev` and `edition` are those of the last export,
//! null if there was none. The position is the one that is committed already, because a record may be the newest that the topic
//! keeps.

use std::collections::BTreeMap;

use rdkafka::message::OwnedHeaders;
use serde::Serialize;

use crate::sink::kafka::accounts::{AccountState, Input, Origin, Rows};
use crate::sink::kafka::lane::Outgoing;
use crate::sink::kafka::position::Written;
use crate::sink::kafka::{KafkaSink, Transaction};
use crate::sink::parked::Parked;
use crate::sink::{Position, StoreError};

/// A record as it is written.
#[derive(Serialize)]
struct Record<'r> {
    did: &'r str,
    state: AccountState,
    reason: &'r str,
    last_error: Option<&'r str>,
    attempts: u32,
    rev: Option<&'r str>,
    edition: Option<u32>,
    records: &'r BTreeMap<String, u64>,
    rejected: u64,
    rows: Rows,
    directory: &'r str,
    sink: &'r str,
    #[serde(skip_serializing_if = "Option::is_none")]
    position: Option<Written>,
    #[serde(skip_serializing_if = "Option::is_none")]
    input: Option<Input>,
}

/// Where a record comes from.
#[derive(Clone, Copy, Debug)]
pub enum Source {
    /// A sink that has everything before.
    Sink(Position),
    /// A worker that was asked for the account.
    Worker(Input),
}

/// The record of `parked`.
#[must_use]
pub fn record(parked: &Parked, origin: &Origin, source: Source) -> String {
    let (position, input) = match source {
        Source::Sink(position) => (Some(position.into()), None),
        Source::Worker(input) => (None, Some(input)),
    };
    let (revision, nothing) = (parked.revision.as_ref(), BTreeMap::new());
    let record = Record {
        did: &parked.did,
        state: AccountState::Parked,
        reason: &parked.reason,
        last_error: parked.last_error.as_deref(),
        attempts: parked.attempts,
        rev: revision.map(|it| it.rev.as_str()),
        edition: revision.map(|it| it.edition),
        records: revision.map_or(&nothing, |it| &it.exported),
        rejected: revision.map_or(0, |it| it.rejected.values().sum()),
        rows: Rows::new(),
        directory: &origin.directory,
        sink: &origin.sink,
        position,
        input,
    };
    // Plain strings and numbers always serialise.
    serde_json::to_string(&record).unwrap_or_default()
}

impl KafkaSink {
    /// Sends the records of `accounts`, and commits them.
    pub(super) fn tell_parked(
        &mut self,
        accounts: &[Parked],
        position: Position,
    ) -> Result<(), StoreError> {
        let (origin, topic) = (self.state()?.origin.clone(), self.topic("accounts")?);
        let headers = OwnedHeaders::new();
        for parked in accounts {
            let value = record(parked, &origin, Source::Sink(position));
            let message =
                Outgoing { topic: &topic, partition: None, key: &parked.did, value: &value };
            self.sending()?.send(message, &headers)?;
        }
        self.commit(&mut Transaction { bytes: 0, behind: position })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::account::Revision;

    #[test]
    fn a_record_says_why_and_what_was_exported_before() {
        let mut parked = Parked {
            did: "did:plc:x".to_owned(),
            reason: "attempts_exhausted".to_owned(),
            last_error: Some("hash".to_owned()),
            attempts: 5,
            revision: None,
        };
        let origin = Origin { directory: "d".to_owned(), sink: "s".to_owned() };
        let text = |parked: &Parked| record(parked, &origin, Source::Sink(Position::after(3)));
        let expected = r#"{"did":"did:plc:x","state":"parked","reason":"attempts_exhausted","last_error":"hash","attempts":5,"rev":null,"edition":null,"records":{},"rejected":0,"rows":{},"directory":"d","sink":"s","position":{"segment":3,"item":null}}"#;
        assert_eq!(text(&parked), expected);
        let asked = record(&parked, &origin, Source::Worker(Input { partition: 3, offset: 8 }));
        assert!(asked.ends_with(r#""sink":"s","input":{"partition":3,"offset":8}}"#), "{asked}");
        parked.last_error = None;
        parked.revision = Some(Revision {
            rev: "3k".to_owned(),
            edition: 1,
            exported: [("post".to_owned(), 7)].into(),
            rejected: [("cbor".to_owned(), 2)].into(),
            ..Revision::default()
        });
        let expected = r#""last_error":null,"attempts":5,"rev":"3k","edition":1,"records":{"post":7},"rejected":2,"#;
        assert!(text(&parked).contains(expected), "{}", text(&parked));
    }
}
