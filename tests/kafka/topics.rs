//! What a `read_committed` reader finds in the topics of one sink, with another client than skyfill's own code, and whether
//! every account in it is whole.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::{ClientConfig, Message, Offset, TopicPartitionList};
use serde_json::Value;
use skyfill::sink::kafka::client::Clients;
use skyfill::sink::kafka::topics::ensure;

/// How long the broker may be silent.
const PATIENCE: Duration = Duration::from_secs(60);

/// Everything that is committed.
#[derive(Debug, Default)]
pub struct Topics {
    /// Values by type, sorted.
    pub rows: BTreeMap<String, Vec<String>>,
    /// Records of accounts in the order in which they came, by DID, but those of accounts that were given up.
    pub accounts: BTreeMap<String, Vec<Value>>,
    /// The newest record of each, whatever it is.
    pub newest: BTreeMap<String, Value>,
}

impl Topics {
    /// Reads the topics `<prefix>.*` to their ends once no transaction is under way, and checks that accounts are whole.
    pub fn read(brokers: &str, prefix: &str) -> Self {
        wait_for_the_end_of_transactions(brokers, prefix);
        let read = Self::glance(brokers, prefix);
        read.check();
        read
    }

    /// Reads them as they are while somebody writes: topics are not read at the same moment, so accounts may look torn, but
    /// nothing may be there twice.
    pub fn glance(brokers: &str, prefix: &str) -> Self {
        let consumer = consumer(brokers, "read_committed");
        let metadata = consumer.fetch_metadata(None, PATIENCE).unwrap();
        let (mut list, mut open) = (TopicPartitionList::new(), BTreeSet::new());
        for topic in metadata.topics() {
            let Some(label) = topic.name().strip_prefix(&format!("{prefix}.")) else { continue };
            // What is wanted is no row.
            if label == "dids" {
                continue;
            }
            for partition in topic.partitions() {
                list.add_partition_offset(topic.name(), partition.id(), Offset::Beginning).unwrap();
                open.insert((label.to_owned(), partition.id()));
            }
        }
        consumer.assign(&list).unwrap();
        let (mut read, mut left) = (Self::default(), open.len());
        let mut partitions: HashMap<(String, String), i32> = HashMap::new();
        while left > 0 {
            let message = match consumer.poll(PATIENCE).expect("the broker is silent") {
                Ok(message) => message,
                Err(KafkaError::PartitionEOF(_)) => {
                    left -= 1;
                    continue;
                }
                Err(error) => panic!("{error}"),
            };
            let label = message.topic()[prefix.len() + 1..].to_owned();
            let text = |bytes: Option<&[u8]>| String::from_utf8(bytes.unwrap().to_vec()).unwrap();
            let (key, value) = (text(message.key()), text(message.payload()));
            let before = partitions.insert((label.clone(), key.clone()), message.partition());
            assert!(
                before.is_none_or(|it| it == message.partition()),
                "{key} is in two partitions"
            );
            if label == "accounts" {
                let value: Value = value.parse().unwrap();
                assert_eq!(value["did"], *key);
                if value["state"] != "parked" {
                    read.accounts.entry(key.clone()).or_default().push(value.clone());
                }
                read.newest.insert(key, value);
            } else {
                read.rows.entry(label).or_default().push(value);
            }
        }
        for rows in read.rows.values_mut() {
            rows.sort();
        }
        read.check_once();
        read
    }

    pub fn total(&self) -> usize {
        self.rows.values().map(Vec::len).sum()
    }

    /// Rows by account and type.
    fn counts(&self) -> BTreeMap<String, BTreeMap<String, u64>> {
        let mut counts: BTreeMap<String, BTreeMap<String, u64>> = BTreeMap::new();
        for (label, rows) in &self.rows {
            for row in rows {
                let row: Value = row.parse().unwrap();
                let of = counts.entry(row["did"].as_str().unwrap().to_owned()).or_default();
                *of.entry(label.clone()).or_default() += 1;
            }
        }
        counts
    }

    /// Whatever a reader finds at any moment: no row and no account twice.
    fn check_once(&self) {
        for (label, rows) in &self.rows {
            let twice = rows.windows(2).find(|pair| pair[0] == pair[1]);
            assert_eq!(twice, None, "{label}");
        }
        for (did, records) in &self.accounts {
            let done = records.iter().filter(|it| it["state"] == "done");
            let mut editions: Vec<u64> = done.map(|it| it["edition"].as_u64().unwrap()).collect();
            editions.sort_unstable();
            let twice = editions.windows(2).any(|pair| pair[0] == pair[1]);
            assert!(!twice, "{did} is done twice: {records:?}");
        }
    }

    /// What a reader finds when nobody writes: as many rows of an account as the newest record of each edition says.
    fn check(&self) {
        let mut counts = self.counts();
        for (did, records) in &self.accounts {
            let mut editions: BTreeMap<u64, &Value> = BTreeMap::new();
            for record in records {
                let edition = record["edition"].as_u64().unwrap();
                let before = editions.insert(edition, record);
                assert!(before.is_none_or(|it| it["state"] == "partial"), "{records:?}");
            }
            let mut told: BTreeMap<String, u64> = BTreeMap::new();
            for (label, rows) in editions.values().flat_map(|it| it["rows"].as_object().unwrap()) {
                *told.entry(label.clone()).or_default() += rows.as_u64().unwrap();
            }
            assert_eq!(counts.remove(did).unwrap_or_default(), told, "{did}");
        }
        assert!(counts.is_empty(), "rows of accounts without a record: {counts:?}");
    }

    /// Fails unless the topics hold exactly the rows of the queues, byte for byte.
    pub fn assert_same(&self, queues: &BTreeMap<String, Vec<String>>) {
        let counts = |rows: &BTreeMap<String, Vec<String>>| -> BTreeMap<String, usize> {
            rows.iter().map(|(label, rows)| (label.clone(), rows.len())).collect()
        };
        assert_eq!(counts(&self.rows), counts(queues));
        for (label, rows) in queues {
            let differing = rows.iter().zip(&self.rows[label]).find(|(queue, sent)| queue != sent);
            assert_eq!(differing, None, "{label}");
        }
    }
}

fn consumer(brokers: &str, isolation: &str) -> BaseConsumer {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", brokers).set("group.id", "reader");
    config.set("isolation.level", isolation).set("enable.auto.commit", "false");
    config.set("enable.partition.eof", "true").create().unwrap()
}

/// The cluster ends a committed transaction partition by partition, a moment after it has said so.
fn wait_for_the_end_of_transactions(brokers: &str, prefix: &str) {
    let readers = ["read_committed", "read_uncommitted"].map(|it| consumer(brokers, it));
    let metadata = readers[0].fetch_metadata(None, PATIENCE).unwrap();
    let is_read = |name: &str| name.starts_with(&format!("{prefix}.")) && !name.ends_with(".dids");
    let topics = metadata.topics().iter().filter(|it| is_read(it.name()));
    let begun = Instant::now();
    for topic in topics {
        for partition in topic.partitions() {
            let end = |reader: &BaseConsumer| {
                reader.fetch_watermarks(topic.name(), partition.id(), PATIENCE).unwrap().1
            };
            while end(&readers[0]) < end(&readers[1]) {
                let name = topic.name();
                assert!(begun.elapsed() < PATIENCE, "a transaction does not end in {name}");
            }
        }
    }
}

/// Makes topics as a sink does.
pub fn make(clients: &Clients, topics: &[String]) {
    ensure(clients, topics, true).unwrap();
}

/// Fails unless every account is done, with the counts of its rows.
pub fn assert_whole(topics: &Topics) {
    for (did, records) in &topics.accounts {
        let last = records.last().unwrap();
        assert_eq!(last["state"], "done", "{did}");
        let mut rows = last["rows"].clone();
        let rejected = rows.as_object_mut().unwrap().remove("rejected");
        assert_eq!(rejected.and_then(|it| it.as_u64()).unwrap_or(0), last["rejected"]);
        assert_eq!(rows, last["records"], "{did}");
    }
}
