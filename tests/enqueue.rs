//! `skyfill enqueue`, with a real broker: every account of a list is on the topic once, in the partition of its host, also where
//! the broker dies under it. Needs a build with the feature `kafka` and the broker that `tests/run` brings.
#![cfg(feature = "kafka")]
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::disallowed_methods
)]

mod support;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use rdkafka::consumer::Consumer as _;
use rdkafka::error::KafkaError;
use rdkafka::{Message, Offset, TopicPartitionList};
use serde_json::json;
use skyfill::config::broker::Broker;
use skyfill::domain::partition::of_key;
use skyfill::sink::kafka::client::Clients;
use skyfill::sink::kafka::dids::Wanted;
use support::job::{Job, PATIENCE};
use support::kafka::Kafka;
use support::world::{Records, Shape};

const PARTITIONS: u32 = 7;

/// Between two looks how far the command is.
const LOOK: Duration = Duration::from_millis(10);

/// One message: where it lies, under which key, and what it says.
struct Found {
    partition: i32,
    key: String,
    wanted: Wanted,
}

fn job(accounts: usize) -> Job {
    let shape = Shape { seed: 91, accounts, hosts: 9, records: Records::Fixed(1), odd: false };
    Job::new(env!("CARGO_BIN_EXE_skyfill"), &shape, &[])
}

/// Arguments of the command over the list `list`; the directory is asked so often a second.
fn arguments(job: &Job, kafka: &Kafka, topics: &str, list: &str, rate: u32) -> Vec<String> {
    let mut arguments: Vec<String> = ["enqueue", "--json", "--topics", topics]
        .into_iter()
        .chain(["--brokers", &kafka.brokers(), "--partitions", &PARTITIONS.to_string()])
        .chain(["--dids-file", job.path(list).to_str().unwrap()])
        .map(str::to_owned)
        .collect();
    arguments.push(format!("--set=identity.requests_per_second={rate}"));
    arguments.extend(job.network.flags());
    arguments
}

/// Every message of `<prefix>.dids`.
fn read(kafka: &Kafka, prefix: &str) -> Vec<Found> {
    let broker = Broker::new(&kafka.brokers());
    let consumer = Clients { broker, zstd: false }.consumer("a-reader").unwrap();
    let topic = format!("{prefix}.dids");
    let metadata = consumer.fetch_metadata(Some(&topic), PATIENCE).unwrap();
    let mut list = TopicPartitionList::new();
    for partition in metadata.topics()[0].partitions() {
        list.add_partition_offset(&topic, partition.id(), Offset::Beginning).unwrap();
    }
    assert_eq!(list.count(), PARTITIONS as usize);
    consumer.assign(&list).unwrap();
    let (mut found, mut open) = (Vec::new(), list.count());
    while open > 0 {
        match consumer.poll(PATIENCE).expect("the broker is silent") {
            Ok(message) => found.push(Found {
                partition: message.partition(),
                key: String::from_utf8(message.key().unwrap().to_vec()).unwrap(),
                wanted: serde_json::from_slice(message.payload().unwrap()).unwrap(),
            }),
            Err(KafkaError::PartitionEOF(_)) => open -= 1,
            Err(error) => panic!("{error}"),
        }
    }
    found
}

/// Every account of the network is there once, under its host, with its identity.
fn assert_each_once(job: &Job, found: &[Found]) {
    let resolved: Vec<&Found> = found.iter().filter(|it| it.wanted.identity.is_some()).collect();
    let by_did: BTreeMap<&str, &Found> =
        resolved.iter().map(|it| (it.wanted.did.as_str(), *it)).collect();
    assert_eq!((by_did.len(), resolved.len()), (job.network.world().dids().len(), by_did.len()));
    let mut hosts = std::collections::BTreeSet::new();
    for account in job.network.expected() {
        let found = by_did[account.did.as_str()];
        let identity = found.wanted.identity.as_ref().unwrap();
        let url = job.network.host_of(account.index).url();
        assert_eq!(identity.endpoint, url);
        assert_eq!(url.strip_prefix("http://").unwrap(), found.key, "keyed by its host");
        assert_eq!(identity.host, found.key);
        assert_eq!(identity.handle.as_deref(), Some(account.handle.as_str()));
        assert!(identity.key.starts_with("did:key:z"), "{}", identity.key);
        hosts.insert(found.key.as_str());
    }
    assert!(hosts.len() >= 5, "accounts of many hosts: {hosts:?}");
    // The client's own partitioner and ours agree, so whoever computes a host's partition finds its accounts there.
    for it in found {
        assert_eq!(it.partition, of_key(&it.key, PARTITIONS).cast_signed(), "{}", it.key);
    }
}

#[test]
fn every_account_is_on_the_topic_once_under_its_host_and_what_does_not_resolve_is_named() {
    let Some(kafka) = Kafka::start(&[]) else { return };
    let job = job(60);
    let (unknown, malformed) = ("did:plc:aaaaaaaaaaaaaaaaaaaaaaaa", "did:plc:NOT-A-DID");
    let list = std::fs::read_to_string(job.path("dids.txt")).unwrap();
    let first = list.lines().next().unwrap();
    let text = format!("{list}\n{unknown}\n{malformed}\n{first}\n");
    std::fs::write(job.path("odd.txt"), text).unwrap();
    let run = || job.skyfill().run(&arguments(&job, &kafka, "odd", "odd.txt", 1_000), PATIENCE);
    let summary = run().expect_code(3).json();
    let found = read(&kafka, "odd");
    assert_each_once(&job, &found);
    assert_eq!(summary["topic"], "odd.dids");
    assert_eq!((&summary["enqueued"], &summary["resolved"]), (&json!(61), &json!(60)));
    assert_eq!(summary["malformed"], 1);
    assert_eq!(summary["unresolved"], json!([{"did": unknown, "reason": "did_not_found"}]));
    let others: Vec<&Found> = found.iter().filter(|it| it.wanted.identity.is_none()).collect();
    assert_eq!(others.len(), 1);
    assert_eq!((others[0].key.as_str(), others[0].wanted.did.as_str()), ("127.0.0.1", unknown));
    assert_eq!(others[0].wanted.reason.as_deref(), Some("did_not_found"));
    // Run again it says the same, and readers find everything twice: they are told so.
    assert_eq!(run().expect_code(3).json(), summary);
    assert_eq!(read(&kafka, "odd").len(), 2 * found.len());
}

#[test]
fn what_a_ledger_knows_is_not_asked_of_the_directory_again() {
    let Some(kafka) = Kafka::start(&[]) else { return };
    let job = job(60);
    let data = job.path("data");
    job.run(&data).expect_code(0);
    let asked = job.network.plc.requests();
    assert_eq!(asked, 60);
    let mut known = arguments(&job, &kafka, "known", "dids.txt", 1_000);
    known.extend(["--data-dir".to_owned(), data.to_str().unwrap().to_owned()]);
    let summary = job.skyfill().run(&known, PATIENCE).expect_code(0).json();
    assert_eq!((&summary["enqueued"], job.network.plc.requests()), (&json!(60), asked));
    assert_each_once(&job, &read(&kafka, "known"));
    // What is older than identity.cache_ttl is asked for again.
    known.extend(["--set=identity.cache_ttl=0s".to_owned(), "--topics=old".to_owned()]);
    let at = known.iter().position(|it| it == "--topics").unwrap();
    known.drain(at..at + 2);
    job.skyfill().run(&known, PATIENCE).expect_code(0);
    assert_eq!(job.network.plc.requests(), 2 * asked);
    assert_each_once(&job, &read(&kafka, "old"));
}

#[test]
fn a_broker_that_dies_meanwhile_loses_and_doubles_nothing() {
    let Some(kafka) = Kafka::start(&[]) else { return };
    let job = job(60);
    // Topic and producer know the broker before it dies: 3 s of accounts are to come.
    let running = job.skyfill().spawn(&arguments(&job, &kafka, "killed", "dids.txt", 20));
    let begun = Instant::now();
    while job.network.plc.requests() < 15 {
        assert!(running.wait(LOOK).is_none() && begun.elapsed() < PATIENCE, "{}", running.stderr());
    }
    kafka.kill();
    assert!(running.is_running(), "the broker died under it");
    let asked = job.network.plc.requests();
    assert!(asked < 60, "{asked}: with accounts still to come");
    kafka.begin();
    let summary = running.finish(PATIENCE).expect_code(0).json();
    assert_eq!(summary["enqueued"], 60);
    assert_each_once(&job, &read(&kafka, "killed"));
    println!("the broker was killed after {asked} of 60 accounts: each is there once");
}

#[test]
fn a_topic_that_would_lose_accounts_is_refused_with_the_command_that_mends_it() {
    let Some(kafka) = Kafka::start(&[]) else { return };
    let job = job(20);
    kafka.make_topic("kept.dids", PARTITIONS, &["cleanup.policy=compact"]);
    let run = || job.skyfill().run(&arguments(&job, &kafka, "kept", "dids.txt", 1_000), PATIENCE);
    // One thing at a time: each message names one command.
    let mut obeyed = Vec::new();
    let summary = loop {
        let finished = run();
        if finished.code == Some(0) {
            break finished.json();
        }
        let refused = finished.expect_code(78);
        assert!(obeyed.len() < 3, "{}", refused.stderr);
        assert!(refused.stderr.contains("kept.dids"), "{}", refused.stderr);
        kafka.obey(&refused.stderr);
        obeyed.push(refused.stderr);
    };
    assert!(obeyed.iter().any(|text| text.contains("cleanup.policy")), "{obeyed:?}");
    assert_eq!(summary["enqueued"], 20);
    assert_each_once(&job, &read(&kafka, "kept"));
}

#[test]
fn without_a_broker_or_with_bad_arguments_nothing_is_asked_of_the_directory() {
    let Some(kafka) = Kafka::start(&[]) else { return };
    let job = job(20);
    let good = arguments(&job, &kafka, "none", "dids.txt", 1_000);
    for (from, to) in [("--partitions", "0"), ("--topics", "no/topic"), ("--brokers", "nowhere")] {
        let mut bad = good.clone();
        let at = bad.iter().position(|it| it == from).unwrap();
        to.clone_into(&mut bad[at + 1]);
        let refused = job.skyfill().run(&bad, PATIENCE).expect_code(2);
        assert!(refused.stderr.contains(from), "{}", refused.stderr);
    }
    kafka.kill();
    let finished = job.skyfill().run(&good, PATIENCE).expect_code(74);
    assert!(finished.stderr.contains(&kafka.brokers()), "{}", finished.stderr);
    assert_eq!(job.network.plc.requests(), 0);
}
