//! `<topics>.accounts`: one record an account, compacted, so that its newest is what a late reader finds.
//!
//! ```text
//!  key    the DID, as in the rows (its pseudonym, where the rows have one)
//!  value  {"did", "state", "rev", "edition", "records": {"post": n}, "rejected": n, "rows": {"post": n, "rejected": n},
//!          "directory", "sink", "position": {"segment", "item"}}      of a worker "input": {"partition", "offset"}, too
//! ```
//! `records` and `rejected` count the account at this revision; `rows` what was sent of this edition, which is less after a
//! refresh, and has `deleted` then. `state` is `done`, in the transaction of its last rows, or `partial`: an account that is
//! larger than a transaction, with more to come. Who wants whole accounts only waits for `done`. One that was given up is
//! `parked` (`kafka::parked`) until it is done after all.

use std::collections::{BTreeMap, HashMap};

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
    /// Given up, for a reason.
    Parked,
}

/// The message of `<topics>.dids` that an account came with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Input {
    /// Partition of the topic.
    pub partition: i32,
    /// Offset in it.
    pub offset: i64,
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
    #[serde(skip_serializing_if = "Option::is_none")]
    input: Option<Input>,
}

/// What is read of somebody's record.
#[derive(Deserialize)]
struct Read {
    directory: String,
    sink: String,
    position: Written,
}

/// What a record says of its account, for who wants to know whether there is anything left to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seen {
    /// Everything is there.
    Done,
    /// Not everything is.
    Open,
}

/// What the record `value` says; `None`: it is no record of ours.
#[must_use]
pub fn seen(value: &[u8]) -> Option<Seen> {
    #[derive(Deserialize)]
    struct Stated {
        state: AccountState,
    }
    let Stated { state } = serde_json::from_slice(value).ok()?;
    Some(if state == AccountState::Done { Seen::Done } else { Seen::Open })
}

/// Name of the topic.
#[must_use]
pub fn topic(prefix: &str) -> String {
    format!("{prefix}.accounts")
}

/// The record of `revision`, of which `rows` were sent, in a transaction that ends at `position`; `input` is what a worker was
/// asked for it by.
#[must_use]
pub fn record(
    revision: &Revision,
    state: AccountState,
    rows: &Rows,
    origin: &Origin,
    (position, input): (Position, Option<Input>),
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
        input,
    };
    // Plain strings and numbers always serialise.
    serde_json::to_string(&account).unwrap_or_default()
}

/// Offsets by partition; a partition that is missing begins at its beginning.
pub type ReadFrom = HashMap<i32, i64>;

/// Where each partition ends now, what is not committed yet included.
///
/// # Errors
/// As [`Clients::sorted`].
pub fn ends(clients: &Clients) -> Result<ReadFrom, StoreError> {
    let consumer = clients.uncommitted("skyfill-reader")?;
    let topic = topic(&clients.broker.prefix);
    let sorted =
        |error| clients.sorted("looking at the accounts", &error, Some(heard_by(&consumer)));
    let metadata = consumer.fetch_metadata(Some(&topic), ANSWER).map_err(sorted)?;
    let partitions = metadata.topics().iter().flat_map(|it| it.partitions()).map(|it| it.id());
    let end = |partition| {
        let marks = consumer.fetch_watermarks(&topic, partition, ANSWER).map_err(sorted)?;
        Ok((partition, marks.1))
    };
    partitions.map(end).collect()
}

/// Calls `take` with key and value of every committed record between `from` and `ends`, and maybe of some behind; gives where to
/// go on the next time.
///
/// # Errors
/// As [`Clients::sorted`], busy while a transaction is open before one of the `ends`: what it commits would be missed.
pub fn read_from(
    clients: &Clients,
    from: &ReadFrom,
    ends: &ReadFrom,
    mut take: impl FnMut(&[u8], &[u8]),
) -> Result<ReadFrom, StoreError> {
    let consumer = clients.consumer("skyfill-reader")?;
    let topic = topic(&clients.broker.prefix);
    let sorted = |error| clients.sorted("reading the accounts", &error, Some(heard_by(&consumer)));
    let (mut list, mut open, mut next) = (TopicPartitionList::new(), 0, from.clone());
    for (partition, end) in ends {
        let begins = from.get(partition).copied();
        if begins.unwrap_or(0) >= *end {
            continue;
        }
        // Asked before the partition is read: whoever reads it then comes to its end behind `end`.
        let stable = consumer.fetch_watermarks(&topic, *partition, ANSWER).map_err(sorted)?.1;
        if stable < *end {
            let text = format!("{topic}: a transaction is open in partition {partition}");
            return Err(StoreError::busy(text));
        }
        let begins = begins.map_or(Offset::Beginning, Offset::Offset);
        list.add_partition_offset(&topic, *partition, begins).map_err(sorted)?;
        open += 1;
    }
    consumer.assign(&list).map_err(sorted)?;
    // A partition ends once: at its last committed record.
    while open > 0 {
        match consumer.poll(ANSWER) {
            Some(Ok(message)) => {
                take(message.key().unwrap_or_default(), message.payload().unwrap_or_default());
                next.insert(message.partition(), message.offset() + 1);
            }
            Some(Err(KafkaError::PartitionEOF(_))) => open -= 1,
            Some(Err(error)) => return Err(sorted(error)),
            None => return Err(StoreError::busy(format!("{topic}: no answer"))),
        }
    }
    Ok(next)
}

/// The same from the beginning to the end as it is now.
///
/// # Errors
/// As [`read_from`].
pub fn read_all(clients: &Clients, take: impl FnMut(&[u8], &[u8])) -> Result<(), StoreError> {
    let ends = ends(clients)?;
    read_from(clients, &ReadFrom::new(), &ends, take).map(drop)
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
        let text = record(&revision, AccountState::Partial, &rows, &origin, (position, None));
        let expected = r#"{"did":"did:pseudo:shown","state":"partial","rev":"3k","edition":2,"records":{"post":7},"rejected":3,"rows":{"post":4},"directory":"d","sink":"s","position":{"segment":9,"item":2}}"#;
        assert_eq!(text, expected);
        let read: Read = serde_json::from_str(&text).unwrap();
        assert_eq!(Position::from(read.position), position);
        assert_eq!(seen(text.as_bytes()), Some(Seen::Open));
        let input = Input { partition: 3, offset: 8 };
        let text = record(&revision, AccountState::Done, &rows, &origin, (position, Some(input)));
        assert!(text.ends_with(r#""item":2},"input":{"partition":3,"offset":8}}"#), "{text}");
        assert_eq!(seen(text.as_bytes()), Some(Seen::Done));
        assert_eq!(seen(br#"{"state":"parked"}"#), Some(Seen::Open), "it may be asked for again");
        assert_eq!(seen(b"null"), None);
    }
}
