//! `<topics>.accounts`: one record an account, compacted, so that its newest is what a late reader finds.
//!
//! ```text
//!  key    the DID, as in the rows (its pseudonym, where the rows have one)
//!  value  {"did", "state", "rev", "edition", "records": {"post": n}, "rejected": n, "rows": {"post": n, "rejected": n},
//!          "directory", "sink", "position": {"segment", "item"}}
//! ```
//! `records` and `rejected` count the account at this revision; `rows` what was sent of this edition, which is less after a
//! refresh, and has `deleted` then. `state` is `done`, in the transaction of its last rows, or `partial`: an account that is
//! larger than a transaction, with more to come. Who wants whole accounts only waits for `done`.

use std::collections::BTreeMap;

use rdkafka::consumer::Consumer as _;
use rdkafka::error::KafkaError;
use rdkafka::{Message, Offset, TopicPartitionList};
use serde::{Deserialize, Serialize};

use crate::domain::account::Revision;
use crate::sink::kafka::client::{ANSWER, Clients, heard_by};
use crate::sink::kafka::position::Written;
use crate::sink::{Position, StoreError};

/// Rows by label.
pub type Rows = BTreeMap<String, u64>;

/// Whose record it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin {
    /// Identity of the data directory.
    pub directory: String,
    /// Name of the sink.
    pub sink: String,
}

/// How an account stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AccountState {
    /// Everything of this edition is there.
    Done,
    /// More of it comes.
    Partial,
}

/// A record as it is written.
#[derive(Serialize)]
struct Account<'r> {
    did: &'r str,
    state: AccountState,
    rev: &'r str,
    edition: u32,
    records: &'r BTreeMap<String, u64>,
    rejected: u64,
    rows: &'r Rows,
    directory: &'r str,
    sink: &'r str,
    position: Written,
}

/// What is read of somebody's record.
#[derive(Deserialize)]
struct Read {
    directory: String,
    sink: String,
    position: Written,
}

/// Name of the topic.
#[must_use]
pub fn topic(prefix: &str) -> String {
    format!("{prefix}.accounts")
}

/// The record of `revision`, of which `rows` were sent, in a transaction that ends at `position`.
#[must_use]
pub fn record(
    revision: &Revision,
    state: AccountState,
    rows: &Rows,
    origin: &Origin,
    position: Position,
) -> String {
    let account = Account {
        did: revision.shown_did(),
        state,
        rev: &revision.rev,
        edition: revision.edition,
        records: &revision.exported,
        rejected: revision.rejected.values().sum(),
        rows,
        directory: &origin.directory,
        sink: &origin.sink,
        position: position.into(),
    };
    // Plain strings and numbers always serialise.
    serde_json::to_string(&account).unwrap_or_default()
}

/// Calls `take` with key and value of every committed record up to the topic's end as it is now.
///
/// # Errors
/// As [`Clients::sorted`], busy also while another's transaction is open there.
pub fn read_all(clients: &Clients, mut take: impl FnMut(&[u8], &[u8])) -> Result<(), StoreError> {
    let consumer = clients.consumer("skyfill-reader")?;
    let topic = topic(&clients.broker.prefix);
    let sorted = |error| clients.sorted("reading the accounts", &error, Some(heard_by(&consumer)));
    let metadata = consumer.fetch_metadata(Some(&topic), ANSWER).map_err(sorted)?;
    let partitions = metadata.topics().iter().flat_map(|it| it.partitions()).map(|it| it.id());
    let (mut list, mut open) = (TopicPartitionList::new(), 0);
    for partition in partitions {
        let added = list.add_partition_offset(&topic, partition, Offset::Beginning);
        added.map_err(sorted)?;
        open += 1;
    }
    consumer.assign(&list).map_err(sorted)?;
    // A partition ends once: at its last committed record, which waits for transactions that are under way.
    while open > 0 {
        match consumer.poll(ANSWER) {
            Some(Ok(message)) => {
                take(message.key().unwrap_or_default(), message.payload().unwrap_or_default());
            }
            Some(Err(KafkaError::PartitionEOF(_))) => open -= 1,
            Some(Err(error)) => return Err(sorted(error)),
            None => return Err(StoreError::busy(format!("{topic}: no answer"))),
        }
    }
    Ok(())
}

/// The newest position in the records of `origin`; `None` without any.
///
/// # Errors
/// As [`read_all`].
pub fn newest_position(clients: &Clients, origin: &Origin) -> Result<Option<Position>, StoreError> {
    let mut newest = None;
    read_all(clients, |_, value| {
        let Ok(read) = serde_json::from_slice::<Read>(value) else { return };
        if read.directory == origin.directory && read.sink == origin.sink {
            newest = newest.max(Some(Position::from(read.position)));
        }
    })?;
    Ok(newest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_names_the_account_as_the_rows_do_and_says_where_it_ends() {
        let revision = Revision {
            did: "did:plc:secret".to_owned(),
            shown_as: "did:pseudo:shown".to_owned(),
            rev: "3k".to_owned(),
            edition: 2,
            exported: [("post".to_owned(), 7)].into(),
            rejected: [("cbor".to_owned(), 1), ("schema".to_owned(), 2)].into(),
            ..Revision::default()
        };
        let origin = Origin { directory: "d".to_owned(), sink: "s".to_owned() };
        let rows: Rows = [("post".to_owned(), 4)].into();
        let position = Position { segment: 9, item: 2 };
        let text = record(&revision, AccountState::Partial, &rows, &origin, position);
        let expected = r#"{"did":"did:pseudo:shown","state":"partial","rev":"3k","edition":2,"records":{"post":7},"rejected":3,"rows":{"post":4},"directory":"d","sink":"s","position":{"segment":9,"item":2}}"#;
        assert_eq!(text, expected);
        let read: Read = serde_json::from_str(&text).unwrap();
        assert_eq!(Position::from(read.position), position);
    }
}
