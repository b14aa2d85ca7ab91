//! Topics: made where they are missing, refused with the command that mends them where they would lose or refuse rows.
//!
//! ```text
//!                      made with                                     refused
//!  <topics>.<type>     cleanup.policy=delete, retention.ms=-1        compaction: the key is the DID, it would keep one row of each
//!  <topics>.accounts   cleanup.policy=compact                        deletion: what an account is would be forgotten
//!  both                max.message.bytes=8 MiB, `partitions`         less of either
//! ```
//! How long rows are kept is the operator's: an existing topic that will delete some is named with the command that keeps them,
//! and used.

use std::collections::BTreeSet;
use std::path::Path;

use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, ResourceSpecifier, TopicReplication};
use rdkafka::consumer::Consumer as _;
use rdkafka::error::RDKafkaErrorCode;
use rdkafka::message::OwnedHeaders;
use serde_json::value::RawValue;

use crate::limits::KAFKA_MESSAGE_BYTES_MIN;
use crate::sink::StoreError;
use crate::sink::kafka::accounts;
use crate::sink::kafka::client::{ANSWER, Clients, Consumer, Heard, heard_by};
use crate::sink::kafka::lane::{Lane, Outgoing};

/// Group of the client that looks at topics; it never joins.
const READER: &str = "skyfill-reader";

/// The topic of a type.
#[must_use]
pub fn of_label(prefix: &str, label: &str) -> String {
    format!("{prefix}.{label}")
}

/// Name of the topic of `label`, which is looked at, and made if it is missing, unless it is among those `looked_at`.
///
/// # Errors
/// As [`ensure`].
pub fn ensured(
    clients: &Clients,
    looked_at: &mut BTreeSet<String>,
    label: &str,
) -> Result<String, StoreError> {
    let topic = of_label(&clients.broker.prefix, label);
    if !looked_at.contains(&topic) {
        ensure(clients, std::slice::from_ref(&topic), true)?;
        looked_at.insert(topic.clone());
    }
    Ok(topic)
}

/// Sends each row of `payload`, a JSON array, to `topic` under `key` with `headers`.
///
/// # Errors
/// As [`Lane::send`].
pub fn send_rows(
    lane: &mut Lane,
    topic: &str,
    (key, headers): (&str, &OwnedHeaders),
    payload: &str,
) -> Result<(), StoreError> {
    let rows: Vec<&RawValue> = serde_json::from_str(payload).map_err(StoreError::sink)?;
    for row in rows {
        lane.send(Outgoing { topic, partition: None, key, value: row.get() }, headers)?;
    }
    Ok(())
}

/// What a topic must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Policy {
    Delete,
    Compact,
}

impl Policy {
    fn of(topic: &str, prefix: &str) -> Self {
        if topic == accounts::topic(prefix) { Self::Compact } else { Self::Delete }
    }

    const fn word(self) -> &'static str {
        match self {
            Self::Delete => "delete",
            Self::Compact => "compact",
        }
    }
}

/// What is true of a topic.
struct Found {
    partitions: usize,
    cleanup: String,
    message_bytes: u64,
    /// Settings that delete rows, each with its value.
    retention: Vec<(&'static str, String)>,
}

/// What makes a topic delete rows, unless it is -1.
const RETENTION: [&str; 2] = ["retention.ms", "retention.bytes"];

/// Looks at `topics` and makes those that are missing; `makes`: or else leaves them missing. Gives a sentence about each that will
/// delete rows.
///
/// # Errors
/// [`StoreError::Config`] with the command that mends a topic, [`StoreError::Permission`], or [`StoreError::Busy`].
pub fn ensure(
    clients: &Clients,
    topics: &[String],
    makes: bool,
) -> Result<Vec<String>, StoreError> {
    let mut warnings = Vec::new();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build();
    let runtime = runtime.map_err(|error| StoreError::io(Path::new("runtime"), error))?;
    let (admin, consumer) = (clients.admin()?, clients.consumer(READER)?);
    for topic in topics {
        let found = match runtime.block_on(look(clients, &admin, &consumer, topic))? {
            Some(found) => found,
            None if makes => {
                runtime.block_on(make(clients, &admin, topic))?;
                continue;
            }
            None => continue,
        };
        if let Some(text) = refusal(clients, topic, &found) {
            return Err(StoreError::Config(text));
        }
        warnings.extend(warning(clients, topic, &found));
    }
    Ok(warnings)
}

/// What is true of `topic`; `None`: it is missing.
async fn look(
    clients: &Clients,
    admin: &AdminClient<Heard>,
    consumer: &Consumer,
    topic: &str,
) -> Result<Option<Found>, StoreError> {
    let sorted = |error| clients.sorted("looking at topics", &error, Some(heard_by(consumer)));
    let metadata = consumer.fetch_metadata(Some(topic), ANSWER).map_err(sorted)?;
    let known = metadata.topics().iter().find(|it| it.name() == topic);
    let is_missing = |code: RDKafkaErrorCode| {
        matches!(code, RDKafkaErrorCode::UnknownTopicOrPartition | RDKafkaErrorCode::UnknownTopic)
    };
    let partitions = match known.map(|it| (it.error(), it.partitions().len())) {
        None => return Ok(None),
        Some((Some(error), _)) => match RDKafkaErrorCode::from(error) {
            code if is_missing(code) => return Ok(None),
            code => return Err(sorted(rdkafka::error::KafkaError::MetadataFetch(code))),
        },
        Some((None, partitions)) => partitions,
    };
    let options = AdminOptions::new().request_timeout(Some(ANSWER));
    let described = admin.describe_configs([&ResourceSpecifier::Topic(topic)], &options).await;
    let described = described.map_err(sorted)?.pop();
    let config = match described {
        Some(Ok(config)) => config,
        Some(Err(code)) => return Err(sorted(rdkafka::error::KafkaError::AdminOp(code))),
        None => return Err(StoreError::busy(format!("{topic}: nothing was said of it"))),
    };
    let value = |name: &str| config.get(name).and_then(|it| it.value.clone()).unwrap_or_default();
    let message_bytes = value("max.message.bytes").parse().unwrap_or(0);
    let kept = |it: &String| it.is_empty() || it == "-1";
    let retention = RETENTION.map(|name| (name, value(name)));
    let retention = retention.into_iter().filter(|(_, it)| !kept(it)).collect();
    Ok(Some(Found { partitions, cleanup: value("cleanup.policy"), message_bytes, retention }))
}

async fn make(
    clients: &Clients,
    admin: &AdminClient<Heard>,
    topic: &str,
) -> Result<(), StoreError> {
    let broker = &clients.broker;
    let policy = Policy::of(topic, &broker.prefix);
    let bytes = KAFKA_MESSAGE_BYTES_MIN.to_string();
    let replication = TopicReplication::Fixed(broker.replicas.unwrap_or(-1));
    let mut new = NewTopic::new(topic, broker.partitions, replication)
        .set("cleanup.policy", policy.word())
        .set("max.message.bytes", &bytes);
    if policy == Policy::Delete {
        new = new.set("retention.ms", "-1");
    }
    let options = AdminOptions::new().request_timeout(Some(ANSWER)).operation_timeout(Some(ANSWER));
    let doing = format!("making the topic {topic}");
    let heard = admin.inner().context();
    let made = admin.create_topics([&new], &options).await;
    let made = made.map_err(|error| clients.sorted(&doing, &error, Some(heard)))?;
    match made.into_iter().next() {
        Some(Err((_, RDKafkaErrorCode::TopicAlreadyExists))) | Some(Ok(_)) => {
            tracing::info!(topic, partitions = broker.partitions, "a topic was made");
            Ok(())
        }
        Some(Err((_, code))) if is_final(code) => {
            let text = format!("{}: {doing}: {code}: make it yourself", broker.brokers);
            Err(StoreError::Config(text))
        }
        Some(Err((_, code))) => {
            let error = rdkafka::error::KafkaError::AdminOp(code);
            Err(clients.sorted(&doing, &error, Some(heard)))
        }
        None => Err(StoreError::busy(format!("{doing}: no answer"))),
    }
}

/// What asking again does not mend.
const fn is_final(code: RDKafkaErrorCode) -> bool {
    matches!(
        code,
        RDKafkaErrorCode::InvalidReplicationFactor
            | RDKafkaErrorCode::InvalidPartitions
            | RDKafkaErrorCode::InvalidTopic
            | RDKafkaErrorCode::InvalidConfig
            | RDKafkaErrorCode::PolicyViolation
    )
}

/// The command that gives a topic another setting.
fn alter(clients: &Clients, topic: &str, setting: &str) -> String {
    let server = &clients.broker.brokers;
    format!(
        "kafka-configs.sh --bootstrap-server {server} --alter --entity-type topics --entity-name {topic} --add-config {setting}"
    )
}

/// What a topic that can be used will lose, with the command that keeps it. A compacted one loses nothing by age or size.
fn warning(clients: &Clients, topic: &str, found: &Found) -> Option<String> {
    if found.retention.is_empty() || Policy::of(topic, &clients.broker.prefix) == Policy::Compact {
        return None;
    }
    let joined = |of: &dyn Fn(&(&str, String)) -> String| {
        found.retention.iter().map(of).collect::<Vec<_>>().join(",")
    };
    let is = joined(&|(name, value)| format!("{name}={value}"));
    let keeps = alter(clients, topic, &joined(&|(name, _)| format!("{name}=-1")));
    Some(format!(
        "the topic {topic} has {is}: rows are deleted in time, which may be meant; to keep them: {keeps}"
    ))
}

/// Why a topic cannot be used, with the command that mends it.
fn refusal(clients: &Clients, topic: &str, found: &Found) -> Option<String> {
    let (server, wanted) = (&clients.broker.brokers, clients.broker.partitions);
    let alter = |setting: &str| alter(clients, topic, setting);
    let policy = Policy::of(topic, &clients.broker.prefix);
    if found.cleanup != policy.word() {
        let why = match policy {
            Policy::Delete => "would keep one row of each account",
            Policy::Compact => "would forget accounts",
        };
        let mend = alter(&format!("cleanup.policy={}", policy.word()));
        let is = &found.cleanup;
        return Some(format!("the topic {topic} has cleanup.policy={is}, which {why}: {mend}"));
    }
    if found.message_bytes < u64::from(KAFKA_MESSAGE_BYTES_MIN) {
        let mend = alter(&format!("max.message.bytes={KAFKA_MESSAGE_BYTES_MIN}"));
        let is = found.message_bytes;
        return Some(format!(
            "the topic {topic} has max.message.bytes={is}, and a row can be larger: {mend}"
        ));
    }
    if usize::try_from(wanted).is_ok_and(|wanted| found.partitions < wanted) {
        return Some(format!(
            "the topic {topic} has {} partitions, and {wanted} are wanted: kafka-topics.sh --bootstrap-server {server} --alter \
             --topic {topic} --partitions {wanted} (or set partitions to what it has)",
            found.partitions
        ));
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::broker::Broker;

    #[test]
    fn what_would_lose_or_refuse_rows_is_named_and_nothing_else() {
        let clients = Clients { broker: Broker::new("b:1"), zstd: true };
        let found = |cleanup: &str, message_bytes, partitions| Found {
            partitions,
            cleanup: cleanup.to_owned(),
            message_bytes,
            retention: Vec::new(),
        };
        let refused = |topic: &str, found: &Found| refusal(&clients, topic, found);
        let (enough, post, accounts) = (8 << 20, "skyfill.post", "skyfill.accounts");
        assert_eq!(refused(post, &found("delete", enough, 12)), None);
        assert_eq!(refused(accounts, &found("compact", enough, 13)), None);
        for (topic, found, mends) in [
            (post, found("compact", enough, 12), "--add-config cleanup.policy=delete"),
            (post, found("compact,delete", enough, 12), "--add-config cleanup.policy=delete"),
            (accounts, found("delete", enough, 12), "--add-config cleanup.policy=compact"),
            (accounts, found("compact,delete", enough, 12), "--add-config cleanup.policy=compact"),
            (post, found("delete", enough - 1, 12), "--add-config max.message.bytes=8388608"),
            (post, found("delete", enough, 11), "--topic skyfill.post --partitions 12"),
        ] {
            let text = refused(topic, &found).unwrap();
            assert!(text.contains(mends) && text.contains("--bootstrap-server b:1"), "{text}");
        }
    }

    #[test]
    fn a_topic_that_deletes_rows_is_named_with_what_keeps_them() {
        let clients = Clients { broker: Broker::new("b:1"), zstd: true };
        let found = |retention: &[(&'static str, &str)]| Found {
            partitions: 12,
            cleanup: "delete".to_owned(),
            message_bytes: 8 << 20,
            retention: retention.iter().map(|(name, it)| (*name, (*it).to_owned())).collect(),
        };
        let warned = |topic: &str, retention: &[(&'static str, &str)]| {
            warning(&clients, topic, &found(retention))
        };
        let (week, little) = (("retention.ms", "604800000"), ("retention.bytes", "1"));
        assert_eq!(warned("skyfill.post", &[]), None);
        assert_eq!(warned("skyfill.accounts", &[week]), None);
        for (retention, is, keeps) in [
            (vec![week], "has retention.ms=604800000:", "--add-config retention.ms=-1"),
            (vec![little], "has retention.bytes=1:", "--add-config retention.bytes=-1"),
            (
                vec![week, little],
                "has retention.ms=604800000,retention.bytes=1:",
                "--entity-name skyfill.post --add-config retention.ms=-1,retention.bytes=-1",
            ),
        ] {
            let text = warned("skyfill.post", &retention).unwrap();
            assert!(text.contains(is) && text.ends_with(keeps), "{text}");
        }
    }
}
