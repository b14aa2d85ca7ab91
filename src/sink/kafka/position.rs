//! Where a sink is, as its cluster knows it: an offset of a group of its own, committed in the transaction of the rows before it.
//!
//! ```text
//!  group     skyfill-<topics>-<data directory>-<sink>       also the transactional id
//!  offset    of <topics>.accounts, partition 0: the segment's number
//!  metadata  {"segment": 20, "item": null}                  item null stands for all of the segment
//! ```
//! A cluster forgets offsets that nobody has committed for `offsets.retention.minutes` (a week). So the accounts' records say
//! the position behind them, too: where the group has none, the newest of this sink's records in `<topics>.accounts` counts.

use rdkafka::consumer::Consumer as _;
use rdkafka::{Offset, TopicPartitionList};
use serde::{Deserialize, Serialize};

use crate::sink::kafka::accounts::{self, Origin};
use crate::sink::kafka::client::{ANSWER, Clients, heard_by};
use crate::sink::kafka::lane::Offsets;
use crate::sink::{Position, StoreError};

/// A position as it is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Written {
    /// Number of the segment.
    pub segment: u64,
    /// Items of it that are taken; `None`: all.
    pub item: Option<u64>,
}

impl From<Position> for Written {
    fn from(position: Position) -> Self {
        let item = (position.item != u64::MAX).then_some(position.item);
        Self { segment: position.segment, item }
    }
}

impl From<Written> for Position {
    fn from(written: Written) -> Self {
        Self { segment: written.segment, item: written.item.unwrap_or(u64::MAX) }
    }
}

/// The group that a sink's positions are kept in, and the id of its transactions.
#[must_use]
pub fn group(prefix: &str, origin: &Origin) -> String {
    format!("skyfill-{prefix}-{}-{}", origin.directory, origin.sink)
}

/// Committed positions of one sink.
pub struct Positions {
    clients: Clients,
    origin: Origin,
    topic: String,
    offsets: Offsets,
}

impl Positions {
    /// Those of the sink `origin`; asks the cluster nothing yet.
    ///
    /// # Errors
    /// As [`Clients::consumer`].
    pub fn new(clients: &Clients, origin: &Origin) -> Result<Self, StoreError> {
        let prefix = &clients.broker.prefix;
        let consumer = clients.consumer(&group(prefix, origin))?;
        // It never joins: its group has no members, and fencing is the transactional id's.
        let missing = || StoreError::sink("a consumer without a group");
        let group = consumer.group_metadata().ok_or_else(missing)?;
        let offsets = Offsets { list: TopicPartitionList::new(), group };
        let (clients, topic) = (clients.clone(), accounts::topic(prefix));
        Ok(Self { clients, origin: origin.clone(), topic, offsets })
    }

    /// The newest committed one; `None` if the cluster has none. Ask after the lane was opened: before that, a transaction of
    /// somebody who is gone may still be under way.
    ///
    /// # Errors
    /// As [`Clients::sorted`].
    pub fn read(&self) -> Result<Option<Position>, StoreError> {
        let consumer = self.clients.consumer(&group(&self.clients.broker.prefix, &self.origin))?;
        let sorted =
            |error| self.clients.sorted("reading the position", &error, Some(heard_by(&consumer)));
        let mut asked = TopicPartitionList::new();
        asked.add_partition(&self.topic, 0);
        let committed = consumer.committed_offsets(asked, ANSWER).map_err(sorted)?;
        let elements = committed.elements();
        let Some(element) = elements.first() else { return Ok(None) };
        element.error().map_err(sorted)?;
        if !matches!(element.offset(), Offset::Offset(_)) {
            return accounts::newest_position(&self.clients, &self.origin);
        }
        let written: Written = serde_json::from_str(element.metadata()).map_err(|_| {
            let group = group(&self.clients.broker.prefix, &self.origin);
            StoreError::Config(format!("the offsets of the group {group} are not skyfill's"))
        })?;
        Ok(Some(written.into()))
    }

    /// `position` as offsets for a commit.
    ///
    /// # Errors
    /// [`StoreError::Sink`] for a number that is no offset.
    pub fn offsets(&mut self, position: Position) -> Result<&Offsets, StoreError> {
        let offset = Offset::Offset(i64::try_from(position.segment).map_err(StoreError::sink)?);
        let metadata = serde_json::to_string(&Written::from(position)).map_err(StoreError::sink)?;
        let mut list = TopicPartitionList::new();
        let mut element = list.add_partition(&self.topic, 0);
        element.set_metadata(metadata);
        element.set_offset(offset).map_err(StoreError::sink)?;
        self.offsets.list = list;
        Ok(&self.offsets)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::broker::Broker;

    #[test]
    fn a_position_is_an_offset_with_the_rest_as_metadata() {
        // Nobody listens there, and nobody is asked.
        let clients = Clients { broker: Broker::new("127.0.0.1:1"), zstd: true };
        let origin = Origin { directory: "0".repeat(32), sink: "broker".to_owned() };
        let mut positions = Positions::new(&clients, &origin).unwrap();
        for (position, metadata) in [
            (Position::after(20), r#"{"segment":20,"item":null}"#),
            (Position { segment: 21, item: 3 }, r#"{"segment":21,"item":3}"#),
        ] {
            let list = &positions.offsets(position).unwrap().list;
            let elements = list.elements_for_topic("skyfill.accounts");
            let offset = i64::try_from(position.segment).unwrap();
            assert_eq!(elements[0].offset(), Offset::Offset(offset));
            assert_eq!((elements[0].partition(), elements[0].metadata()), (0, metadata));
            let written: Written = serde_json::from_str(metadata).unwrap();
            assert_eq!(Position::from(written), position);
        }
        assert!(positions.offsets(Position::after(u64::MAX)).is_err(), "it is no offset");
        assert_eq!(group("skyfill", &origin), format!("skyfill-skyfill-{}-broker", "0".repeat(32)));
    }
}
