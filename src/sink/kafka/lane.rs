//! A lane: one transactional id, its producer, and the offsets that its transactions commit.
//!
//! ```text
//!           open (fences whoever had the id, ends what they left open)
//!  shut ──────────────────────────────────> ready ──begin──> sending ──commit(offsets)──> ready
//!    ^                                        │                 │
//!    └───────── any error, or abandon ────────┴─────────────────┘
//! ```
//! After an error nobody knows whether a commit has happened, so a lane does not try to go on: it is shut, and the next
//! [`Lane::open`] says that it is anew. Whoever uses it then reads the committed offsets, which decide, and goes on there.

use rdkafka::TopicPartitionList;
use rdkafka::consumer::ConsumerGroupMetadata;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::OwnedHeaders;
use rdkafka::producer::{BaseRecord, Producer as _, PurgeConfig};
use std::time::Duration;

use crate::clock::{Clock, Instant};
use crate::crash_point;
use crate::sink::StoreError;
use crate::sink::kafka::client::{
    ANSWER, Clients, Producer, TRANSACTION, TRANSACTION_OF_PARTITION, is_fenced,
};

/// How long a transaction is given to be aborted before the cluster has to find out by itself.
const ABORT: Duration = Duration::from_secs(1);

/// Between two looks at what is still under way.
const LOOK: Duration = Duration::from_millis(200);

/// Offsets that a transaction commits with its messages.
pub struct Offsets {
    /// Which.
    pub list: TopicPartitionList,
    /// The group whose they are; that of a live consumer fences members that the group has given up.
    pub group: ConsumerGroupMetadata,
}

/// Whose a transactional id is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owner {
    /// A sink's of one data directory: whoever else uses it is a copy of that.
    Directory,
    /// That of whoever has a partition of the accounts that are wanted: it goes from one worker to another.
    Partition,
}

/// One message.
#[derive(Clone, Copy, Debug)]
pub struct Outgoing<'m> {
    /// Where to.
    pub topic: &'m str,
    /// The partition; `None`: that of the key.
    pub partition: Option<i32>,
    /// What decides the partition.
    pub key: &'m str,
    /// The value.
    pub value: &'m str,
}

/// One transactional id; see the head of this file.
pub struct Lane {
    clients: Clients,
    id: String,
    owner: Owner,
    clock: Clock,
    producer: Option<Producer>,
    /// When the transaction that is under way was begun.
    begun: Option<Instant>,
}

impl Lane {
    /// A lane that nobody has been asked about yet.
    #[must_use]
    pub fn new(clients: Clients, id: String, owner: Owner, clock: Clock) -> Self {
        Self { clients, id, owner, clock, producer: None, begun: None }
    }

    /// Its transactional id.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Makes it ready; `true`: it was shut, so ask for the committed offsets before anything is sent.
    ///
    /// # Errors
    /// As [`Clients::sorted`]; it is shut after every one.
    pub fn open(&mut self) -> Result<bool, StoreError> {
        if self.producer.is_some() {
            return Ok(false);
        }
        let producer = self.clients.producer(&self.id, self.transaction())?;
        let ready = producer.init_transactions(ANSWER);
        // Errors that were heard on the way are in the producer's queue until it is polled.
        producer.poll(Duration::ZERO);
        self.producer = Some(producer);
        ready.map_err(|error| self.fail("asking for transactions", &error))?;
        Ok(true)
    }

    /// How long a transaction may take. A worker's account is one, whatever its size: its next owner would begin it anew.
    const fn transaction(&self) -> Duration {
        match self.owner {
            Owner::Directory => TRANSACTION,
            Owner::Partition => TRANSACTION_OF_PARTITION,
        }
    }

    /// Whether the cluster was asked since it was shut last.
    #[must_use]
    pub const fn is_open(&self) -> bool {
        self.producer.is_some()
    }

    /// Whether a transaction is under way.
    #[must_use]
    pub const fn is_sending(&self) -> bool {
        self.begun.is_some()
    }

    /// Begins a transaction.
    ///
    /// # Errors
    /// As [`Lane::open`].
    pub fn begin(&mut self) -> Result<(), StoreError> {
        let begun = self.producer()?.begin_transaction();
        begun.map_err(|error| self.fail("beginning a transaction", &error))?;
        self.begun = Some(self.clock.now());
        Ok(())
    }

    /// Puts a message into the transaction; waits while the queue of what is under way is full.
    ///
    /// # Errors
    /// As [`Lane::open`].
    pub fn send(
        &mut self,
        message: Outgoing<'_>,
        headers: &OwnedHeaders,
    ) -> Result<(), StoreError> {
        let Outgoing { topic, partition, key, value } = message;
        let mut record = BaseRecord::to(topic).key(key).payload(value).headers(headers.clone());
        record.partition = partition;
        let mut patience = Patience::new(self.clock.now());
        loop {
            let producer = self.producer()?;
            let Err((error, back)) = producer.send(record) else {
                producer.poll(Duration::ZERO);
                return Ok(());
            };
            let is_full = error.rdkafka_error_code() == Some(RDKafkaErrorCode::QueueFull);
            if is_full {
                producer.poll(LOOK);
            }
            if !is_full || patience.is_over(producer.in_flight_count(), self.clock.now()) {
                return Err(self.fail(topic, &error));
            }
            record = back;
        }
    }

    /// Commits what was sent, and `offsets` with it.
    ///
    /// # Errors
    /// As [`Lane::open`]; whether it has happened is then for [`Lane::open`] and the committed offsets to say.
    pub fn commit(&mut self, offsets: &Offsets) -> Result<(), StoreError> {
        self.flush()?;
        // Rows are with the cluster, and their transaction is open: the next owner of the id aborts it, and they come again.
        crash_point!(SinkKafkaRowsSentBeforeOffsets);
        let sent =
            self.producer()?.send_offsets_to_transaction(&offsets.list, &offsets.group, ANSWER);
        sent.map_err(|error| self.fail("sending the position", &error))?;
        // As above: offsets of an open transaction are nobody's position.
        crash_point!(SinkKafkaOffsetsSentBeforeCommit);
        let committed = self.producer()?.commit_transaction(ANSWER);
        committed.map_err(|error| self.fail("committing", &error))?;
        self.begun = None;
        Ok(())
    }

    /// Gives up what is under way, so that no reader waits for its end.
    pub fn abandon(&mut self) {
        let Some(producer) = self.producer.take() else { return };
        if self.begun.take().is_some() {
            producer.purge(PurgeConfig::default().queue().inflight());
            let _purged = producer.flush(ABORT);
            let aborted = producer.abort_transaction(ABORT);
            if let Err(error) = aborted {
                tracing::debug!(id = %self.id, %error, "a transaction is left to the cluster to abort");
            }
        }
    }

    /// Waits until everything that was sent has arrived.
    fn flush(&mut self) -> Result<(), StoreError> {
        let mut patience = Patience::new(self.clock.now());
        loop {
            let producer = self.producer()?;
            let error = match producer.flush(LOOK) {
                Ok(()) => return Ok(()),
                Err(error) => error,
            };
            let left = producer.in_flight_count();
            let is_silence =
                matches!(error, KafkaError::Flush(RDKafkaErrorCode::OperationTimedOut));
            if !is_silence || patience.is_over(left, self.clock.now()) {
                return Err(self.fail("sending rows", &error));
            }
        }
    }

    fn producer(&self) -> Result<&Producer, StoreError> {
        let missing = || StoreError::sink("something was to be sent before the cluster was asked");
        self.producer.as_ref().ok_or_else(missing)
    }

    /// Shuts it, and says what the error means.
    fn fail(&mut self, doing: &str, error: &KafkaError) -> StoreError {
        let age = self.begun.map(|begun| self.clock.now().saturating_duration_since(begun));
        let heard = self.producer.as_ref().map(|producer| producer.context().clone());
        let sorted = self.clients.sorted(doing, error, heard.as_deref());
        // A transaction that outlived its time is aborted by the cluster: then nobody has taken the id.
        let is_young = age.is_some_and(|age| age < self.transaction() / 2);
        let is_rival = is_fenced(error) && is_young && self.owner == Owner::Directory;
        self.abandon();
        if !is_rival {
            return sorted;
        }
        StoreError::sink(format!(
            "{sorted}: another process writes as {}, which only a copy of this data directory can do: one of them has to go",
            self.id
        ))
    }
}

impl std::fmt::Debug for Lane {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Lane").field("id", &self.id).finish_non_exhaustive()
    }
}

/// Waits as long as messages arrive, however slowly.
struct Patience {
    left: i32,
    since: Instant,
}

impl Patience {
    const fn new(now: Instant) -> Self {
        Self { left: i32::MAX, since: now }
    }

    /// Whether nothing has arrived for too long; `left` are under way.
    fn is_over(&mut self, left: i32, now: Instant) -> bool {
        if left < self.left {
            (self.left, self.since) = (left, now);
        }
        now.saturating_duration_since(self.since) >= ANSWER
    }
}
