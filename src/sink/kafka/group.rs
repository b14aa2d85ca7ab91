//! A member of the consumer group that shares `<topics>.dids`: what the group gives and takes is told to the holdings at once.
//!
//! ```text
//!  joins ──assigned──> holdings take over (their lanes are opened by whoever reads)
//!        ──revoked, or lost──> holdings give up, and wait for a transaction under way: only then does the group hear of it
//!  every 2 s: an offset of its own is committed ──accepted──> it is a member for 10 s from when it was asked: the lease
//! ```
//! Partitions move one by one (cooperative-sticky): what stays is not interrupted. The lease is what keeps a process that was
//! stopped for a while from asking hosts that are another's by now: the group counts a commit as a sign of life, so whoever has
//! one accepted cannot have lost anything before the session's time is over.

use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, SyncSender};
use std::time::Duration;

use rdkafka::client::ClientContext;
use rdkafka::config::{FromClientConfigAndContext, RDKafkaLogLevel};
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer as _, ConsumerContext, Rebalance};
use rdkafka::error::KafkaError;
use rdkafka::{Offset, TopicPartitionList};

use crate::clock::Clock;
use crate::sink::StoreError;
use crate::sink::kafka::client::{ANSWER, Clients, Heard};
use crate::sink::kafka::holdings::Shared;
use crate::sink::kafka::{accounts, dids};

/// A worker that gives no sign of life for this long has lost its partitions. Brokers allow 6 s and more.
pub const SESSION: Duration = Duration::from_secs(10);

/// So much of it is not used: answers take their time, and clocks of two machines do not run alike.
const SESSION_MARGIN: Duration = Duration::from_secs(2);

/// Between two renewals of the lease.
const RENEWAL: Duration = Duration::from_secs(2);

/// A consumer that tells the holdings.
pub type GroupConsumer = BaseConsumer<Ear>;

/// What a member hears from its group.
pub struct Ear {
    heard: Heard,
    shared: Arc<Shared>,
}

impl ClientContext for Ear {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        self.heard.log(level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        self.heard.error(error, reason);
    }
}

impl ConsumerContext for Ear {
    fn pre_rebalance(&self, consumer: &BaseConsumer<Self>, rebalance: &Rebalance<'_>) {
        match rebalance {
            Rebalance::Assign(_) => {}
            Rebalance::Revoke(list) => {
                let partitions = numbers(list);
                tracing::info!(?partitions, "partitions are given up");
                self.shared.give_up(&partitions);
            }
            Rebalance::Error(error) => {
                // What is assigned then is taken away without being named.
                tracing::warn!(%error, "the group has lost this process");
                let assigned = consumer.assignment().map(|list| numbers(&list));
                self.shared.give_up(&assigned.unwrap_or_default());
            }
        }
    }

    fn post_rebalance(&self, consumer: &BaseConsumer<Self>, rebalance: &Rebalance<'_>) {
        let Rebalance::Assign(list) = rebalance else { return };
        let partitions = numbers(list);
        tracing::info!(?partitions, "partitions are taken over");
        // Nothing is read of them before it is known what is decided.
        if let Err(error) = consumer.pause(list) {
            tracing::warn!(%error, "a new partition could not be paused");
        }
        self.shared.take_over(&partitions);
    }
}

fn numbers(list: &TopicPartitionList) -> Vec<i32> {
    list.elements()
        .iter()
        .map(rdkafka::topic_partition_list::TopicPartitionListElem::partition)
        .collect()
}

/// Lets `consumer` hear what the cluster has said beside its answers; gives its ear. Not where messages are read.
#[must_use]
pub fn heard_by(consumer: &GroupConsumer) -> &Heard {
    &consumer.context().heard
}

/// A member-to-be: the cluster is asked nothing yet.
///
/// # Errors
/// [`StoreError::Config`], or that of a file of credentials.
pub fn member(
    clients: &Clients,
    group: &str,
    shared: &Arc<Shared>,
) -> Result<GroupConsumer, StoreError> {
    let mut config = clients.config()?;
    let session = SESSION.as_millis().to_string();
    config
        .set("group.id", group)
        .set("isolation.level", "read_committed")
        .set("enable.auto.commit", "false")
        .set("enable.auto.offset.store", "false")
        .set("auto.offset.reset", "earliest")
        .set("allow.auto.create.topics", "false")
        .set("partition.assignment.strategy", "cooperative-sticky")
        .set("session.timeout.ms", &session)
        .set("heartbeat.interval.ms", "2000")
        .set("topic.metadata.refresh.interval.ms", "10000")
        .set("queued.max.messages.kbytes", "8192")
        .set("fetch.message.max.bytes", "1048576");
    let ear = Ear { heard: Heard::default(), shared: Arc::clone(shared) };
    BaseConsumer::from_config_and_context(&config, ear)
        .map_err(|error| StoreError::Config(format!("the Kafka client: {error}")))
}

/// Renews the lease every two seconds until this is dropped, on a thread of its own: an answer may take for ever.
#[derive(Debug)]
pub struct Renewal {
    /// Its end is that of the thread.
    _alive: SyncSender<()>,
}

impl Renewal {
    /// Of the member `consumer` of a group of the topics `prefix`.
    ///
    /// # Errors
    /// The system's, if the thread cannot be started, or the client's, if it refuses the offset.
    pub fn start(
        consumer: &Arc<GroupConsumer>,
        prefix: &str,
        clock: &Clock,
    ) -> Result<Self, StoreError> {
        let mut list = TopicPartitionList::new();
        let mut element = list.add_partition(&accounts::topic(prefix), 0);
        element.set_offset(Offset::Offset(0)).map_err(StoreError::sink)?;
        // Nothing is ever sent: its end is all there is to hear.
        let (alive, waits) = std::sync::mpsc::sync_channel(0);
        let (member, clock) = (Arc::downgrade(consumer), clock.clone());
        let named = std::thread::Builder::new().name("lease".to_owned());
        let spawned = named.spawn(move || {
            while let Some(consumer) = member.upgrade() {
                let asked = clock.now();
                let wait = match consumer.commit(&list, CommitMode::Sync) {
                    Ok(()) => {
                        consumer.context().shared.confirmed(asked + (SESSION - SESSION_MARGIN));
                        RENEWAL
                    }
                    // Between two assignments, or nobody answers: until then the lease just ends.
                    Err(error) => {
                        tracing::debug!(%error, "the lease was not renewed");
                        RENEWAL / 8
                    }
                };
                drop(consumer);
                if waits.recv_timeout(wait) != Err(RecvTimeoutError::Timeout) {
                    return;
                }
            }
        });
        spawned.map_err(|error| StoreError::io(Path::new("lease thread"), error))?;
        Ok(Self { _alive: alive })
    }
}

/// Members of the group as it is now.
///
/// # Errors
/// As [`Clients::sorted`].
pub fn members(
    consumer: &GroupConsumer,
    clients: &Clients,
    group: &str,
) -> Result<usize, StoreError> {
    let list = consumer.fetch_group_list(Some(group), ANSWER);
    let list = list.map_err(|error| clients.sorted("looking at the group", &error, None))?;
    Ok(list.groups().iter().map(|group| group.members().len()).sum())
}

/// Partitions of `<topics>.dids`; `None`: there is no such topic yet.
///
/// # Errors
/// As [`Clients::sorted`].
pub fn partitions(consumer: &GroupConsumer, clients: &Clients) -> Result<Option<u32>, StoreError> {
    let topic = dids::topic(&clients.broker.prefix);
    let sorted = |error| clients.sorted("looking at the topic", &error, Some(heard_by(consumer)));
    let metadata = consumer.fetch_metadata(Some(&topic), ANSWER).map_err(sorted)?;
    let found = metadata.topics().iter().find(|it| it.name() == topic && it.error().is_none());
    let count = found.map_or(0, |it| it.partitions().len());
    Ok(u32::try_from(count).ok().filter(|count| *count > 0))
}
