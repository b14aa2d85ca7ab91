//! `<topics>.dids`: the accounts that somebody wants, by the host that serves each.
//!
//! ```text
//!  key    the host, as its pace is kept by: all accounts of a host lie in one partition (`domain::partition`)
//!         the directory's host, for an account that was not resolved
//!  value  {"did", "identity": {"endpoint", "host", "key", "handle"}, "resolved_at_ms"} · {"did", "reason", "resolved_at_ms"}
//! ```
//! The producer is idempotent: what the network makes it send again is there once. A whole command that is run again puts its
//! accounts there again, which is for the readers to see.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use rdkafka::ClientContext;
use rdkafka::config::{FromClientConfigAndContext, RDKafkaLogLevel};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::DeliveryResult;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer as _, ProducerContext};
use serde::{Deserialize, Serialize};

use crate::domain::identity::Identity;
use crate::limits::{KAFKA_QUEUE_KIB, KAFKA_QUEUE_MESSAGES};
use crate::sink::StoreError;
use crate::sink::kafka::client::{Clients, Heard, TRANSACTION};

/// Between two looks at what is still under way.
const LOOK: Duration = Duration::from_millis(200);

/// Name of the topic.
#[must_use]
pub fn topic(prefix: &str) -> String {
    format!("{prefix}.dids")
}

/// One account that is wanted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wanted {
    /// Whose.
    pub did: String,
    /// Its identity, if it was resolved.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub identity: Option<Identity>,
    /// Why it was not, if it was not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// When that was found, milliseconds since 1970.
    pub resolved_at_ms: i64,
}

/// What has become of messages, and what the client has heard.
#[derive(Default)]
struct Deliveries {
    heard: Heard,
    arrived: AtomicU64,
    /// The first one that was not delivered.
    lost: Mutex<Option<KafkaError>>,
}

impl Deliveries {
    fn lost(&self) -> Option<KafkaError> {
        self.lost.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl ClientContext for Deliveries {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        self.heard.log(level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        self.heard.error(error, reason);
    }
}

impl ProducerContext for Deliveries {
    type DeliveryOpaque = ();

    fn delivery(&self, delivered: &DeliveryResult<'_>, (): ()) {
        match delivered {
            Ok(_) => drop(self.arrived.fetch_add(1, Ordering::AcqRel)),
            Err((error, _)) => {
                let mut lost = self.lost.lock().unwrap_or_else(PoisonError::into_inner);
                lost.get_or_insert_with(|| error.clone());
            }
        }
    }
}

/// Puts accounts on the topic.
pub struct Sender {
    clients: Clients,
    topic: String,
    producer: BaseProducer<Deliveries>,
    sent: u64,
}

impl Sender {
    /// A producer for `<topics>.dids`; the cluster is asked nothing yet.
    ///
    /// # Errors
    /// [`StoreError::Config`], or that of a file of credentials.
    pub fn new(clients: Clients) -> Result<Self, StoreError> {
        let mut config = clients.config()?;
        config
            .set("enable.idempotence", "true")
            .set("message.timeout.ms", TRANSACTION.as_millis().to_string())
            .set("queue.buffering.max.kbytes", KAFKA_QUEUE_KIB.to_string())
            .set("queue.buffering.max.messages", KAFKA_QUEUE_MESSAGES.to_string())
            .set("compression.codec", if clients.zstd { "zstd" } else { "none" })
            .set("partitioner", "murmur2_random");
        let made = BaseProducer::from_config_and_context(&config, Deliveries::default());
        let producer =
            made.map_err(|error| StoreError::Config(format!("the Kafka client: {error}")))?;
        let topic = topic(&clients.broker.prefix);
        Ok(Self { clients, topic, producer, sent: 0 })
    }

    /// Hands `wanted` over under `key`; waits while the queue of what is under way is full. It is there only when
    /// [`Sender::finish`] has said so.
    ///
    /// # Errors
    /// As [`Clients::sorted`]: something was not delivered within two minutes, or will never be taken.
    pub fn send(&mut self, key: &str, wanted: &Wanted) -> Result<(), StoreError> {
        let value = serde_json::to_string(wanted).map_err(StoreError::sink)?;
        let mut record = BaseRecord::to(&self.topic).key(key).payload(&value);
        loop {
            let sent = self.producer.send(record);
            self.producer.poll(Duration::ZERO);
            self.intact()?;
            let Err((error, back)) = sent else { break };
            if error.rdkafka_error_code() != Some(RDKafkaErrorCode::QueueFull) {
                return Err(self.sorted(&error));
            }
            self.producer.poll(LOOK);
            record = back;
        }
        self.sent += 1;
        Ok(())
    }

    /// Waits until everything has arrived; gives how many there were.
    ///
    /// # Errors
    /// As [`Sender::send`]: then some of them may be there and others not.
    pub fn finish(self) -> Result<u64, StoreError> {
        while self.producer.flush(LOOK).is_err() {
            // Each message has a time of its own, so this ends.
            self.intact()?;
        }
        self.intact()?;
        let arrived = self.producer.context().arrived.load(Ordering::Acquire);
        if arrived != self.sent {
            let text = format!("{}: {arrived} of {} arrived", self.topic, self.sent);
            return Err(StoreError::sink(text));
        }
        Ok(arrived)
    }

    fn intact(&self) -> Result<(), StoreError> {
        self.producer.context().lost().map_or(Ok(()), |error| Err(self.sorted(&error)))
    }

    fn sorted(&self, error: &KafkaError) -> StoreError {
        let heard = &self.producer.context().heard;
        self.clients.sorted(&format!("sending to {}", self.topic), error, Some(heard))
    }
}
