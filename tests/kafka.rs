//! Sinks to Kafka, with a real broker: what a `read_committed` reader finds is what the queues hold, each row once, wherever
//! skyfill or the broker dies. Needs a build with the feature `kafka` and the broker that `tests/run` brings.
#![cfg(feature = "kafka")]
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::disallowed_methods
)]

#[path = "sinks/read.rs"]
mod read;
#[path = "kafka/topics.rs"]
mod topics;

mod support;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use fastrand::Rng;
use rdkafka::message::OwnedHeaders;
use serde_json::Value;
use skyfill::clock::Clock;
use skyfill::config::broker::Broker;
use skyfill::sink::Position;
use skyfill::sink::kafka::accounts::Origin;
use skyfill::sink::kafka::client::Clients;
use skyfill::sink::kafka::lane::{Lane, Outgoing, Owner};
use skyfill::sink::kafka::position::{Positions, group};
use support::faults::{Fault, Place, Target, Then};
use support::job::{Job, PATIENCE, in_parallel, number_from};
use support::judge::queue_records;
use support::kafka::Kafka;
use support::network::Standing;
use support::pds::Manners;
use support::proc::{Finished, Running, Signal};
use support::world::{Records, Shape};
use topics::{Topics, assert_whole};

/// One data directory and the sink `broker`, whose topics have the directory's name.
struct Scene<'j> {
    job: &'j Job,
    kafka: &'j Kafka,
    name: String,
    data: PathBuf,
    flags: Vec<String>,
}

impl<'j> Scene<'j> {
    fn new(job: &'j Job, kafka: &'j Kafka, name: &str, more: &[(&str, &str)]) -> Self {
        let brokers = kafka.brokers();
        let keys =
            [("type", "kafka"), ("brokers", &brokers), ("topics", name), ("partitions", "3")];
        let set = |(key, value): &(&str, &str)| {
            ["--set".to_owned(), format!("sink.broker.{key}={value}")]
        };
        let flags = keys.iter().chain(more).flat_map(set).collect();
        Self { job, kafka, name: name.to_owned(), data: job.path(name), flags }
    }

    fn arguments(&self) -> Vec<String> {
        [self.job.arguments(&self.data), self.flags.clone()].concat()
    }

    fn start(&self) -> Running {
        self.job.skyfill().spawn(&self.arguments())
    }

    fn crash(&self, at: &str) -> Finished {
        self.job.skyfill().env("SKYFILL_CRASH_AT", at).run(&self.arguments(), PATIENCE)
    }

    /// `skyfill check` with this sink.
    fn check(&self) -> Finished {
        let fixed = ["check", "--data-dir", self.data.to_str().unwrap()].map(str::to_owned);
        let more = [
            "--set=source.dids=did:plc:z72i7hdynmk6r22z27h6tvur".to_owned(),
            format!("--set=identity.plc_url={}", self.job.network.plc.url()),
            "--set=network.allow=127.0.0.0/8".to_owned(),
            "--set=limits.disk_free=0B".to_owned(),
            "--set=metrics.listen=".to_owned(),
        ];
        let arguments = [fixed.to_vec(), self.flags.clone(), more.to_vec()];
        self.job.skyfill().run(&arguments.concat(), PATIENCE)
    }

    /// A daemon over the accounts of the job.
    fn daemon(&self, more: &[&str]) -> Running {
        let network = &self.job.network;
        let mut arguments =
            ["run", "--data-dir", self.data.to_str().unwrap()].map(str::to_owned).to_vec();
        let set = [
            format!("source.files={}", self.job.path("dids.txt").display()),
            format!("identity.plc_url={}", network.plc.url()),
            "network.allow=127.0.0.0/8".to_owned(),
            "fetch.host_requests_per_second=1000".to_owned(),
            "limits.disk_free=0B".to_owned(),
            "metrics.listen=127.0.0.1:0".to_owned(),
        ];
        arguments.extend(
            set.iter()
                .map(String::as_str)
                .chain(more.iter().copied())
                .map(|it| format!("--set={it}")),
        );
        arguments.extend(self.flags.clone());
        self.job.skyfill().spawn(&arguments)
    }

    /// Waits until the daemon's status, and what its sink waits for, are so.
    fn until(&self, running: &Running, is_so: &dyn Fn(&Value, &str) -> bool) {
        let begun = Instant::now();
        let data = self.data.to_str().unwrap();
        loop {
            assert!(running.wait(Duration::from_millis(100)).is_none(), "{}", running.stderr());
            let status =
                self.job.skyfill().run(&["status", "--json", "--data-dir", data], PATIENCE);
            let status: Value = status.stdout.parse().unwrap_or_default();
            let waits = status["sinks"][0]["waits"].as_str().unwrap_or_default();
            if is_so(&status, waits) {
                return;
            }
            assert!(begun.elapsed() < PATIENCE, "{status} {}", running.stderr());
        }
    }

    fn topics(&self) -> Topics {
        Topics::read(&self.kafka.brokers(), &self.name)
    }

    /// Queues, topics and oracle agree.
    fn agree(&self) -> Topics {
        let verdict = self.job.verdict(&self.data);
        assert!(verdict.is_clean(), "{verdict:#?}");
        let topics = self.topics();
        assert_eq!(topics.total() as u64, verdict.expected);
        topics.assert_same(&read::queues(&self.data));
        topics
    }

    /// Runs it to its end, and looks.
    fn finish(&self) -> Topics {
        self.start().finish(PATIENCE).expect_code(0);
        self.agree()
    }
}

fn job(shape: &Shape) -> Job {
    Job::new(env!("CARGO_BIN_EXE_skyfill"), shape, &[])
}

/// Crash points that every sink to Kafka passes.
const POINTS: [&str; 4] = [
    "SinkKafkaBegunBeforeRows",
    "SinkKafkaRowsSentBeforeOffsets",
    "SinkKafkaOffsetsSentBeforeCommit",
    "SinkKafkaCommittedBeforeSettle",
];

#[test]
fn what_the_console_consumer_prints_is_what_the_queues_hold() {
    let Some(kafka) = Kafka::start(&[]) else { return };
    let shape =
        Shape { seed: 131, accounts: 40, hosts: 3, records: Records::Fixed(150), odd: true };
    let job = job(&shape);
    let mut scene = Scene::new(&job, &kafka, "plain", &[]);
    let (lines, columns) = (job.path("lines"), job.path("columns"));
    let beside = |name: &str, form: &str, place: &Path| {
        let keys = [("type", form), ("path", place.to_str().unwrap())];
        keys.map(|(key, value)| format!("--set=sink.{name}.{key}={value}"))
    };
    scene.flags.extend(beside("lines", "jsonl", &lines));
    let has_parquet = cfg!(feature = "parquet") && read::python().is_some();
    if has_parquet {
        scene.flags.extend(beside("columns", "parquet", &columns));
    }
    let topics = scene.finish();
    assert_eq!(topics.accounts.len(), 40);
    assert_whole(&topics);
    // Queues, files, columns as DuckDB reads them, and topics as a reader of ours does: byte for byte the same rows.
    read::assert_same(&read::held(&lines), &scene.data);
    if has_parquet {
        read::assert_same(&read::held(&columns), &scene.data);
    }
    let queues: Vec<(String, Vec<String>)> = read::queues(&scene.data).into_iter().collect();
    in_parallel(&queues, 4, |(label, rows)| {
        let printed = kafka.console(&format!("plain.{label}"));
        let mut values: Vec<&str> = printed.iter().map(|it| it.value.as_str()).collect();
        values.sort_unstable();
        assert_eq!(values, *rows, "{label}");
        for message in &printed {
            let value: Value = message.value.parse().unwrap();
            assert_eq!(message.key, value["did"].as_str().unwrap());
            let headers = format!("rev:{},edition:0", value["rev"].as_str().unwrap());
            assert_eq!(message.headers, headers);
        }
    });
    let printed = kafka.console("plain.accounts");
    let dids: BTreeSet<&str> = printed.iter().map(|it| it.key.as_str()).collect();
    assert_eq!((printed.len(), dids.len()), (40, 40));
    // The same command again has nothing to do, and sends nothing.
    assert_eq!(scene.finish().total(), topics.total());
    println!(
        "{} rows of 40 accounts: queues, JSON lines, Parquet ({has_parquet}) and Kafka's console consumer agree",
        topics.total()
    );
}

#[test]
fn crashes_and_kills_of_skyfill_lose_nothing_and_double_nothing() {
    let Some(kafka) = Kafka::start(&[]) else { return };
    let shape = Shape { seed: 132, accounts: 4, hosts: 1, records: Records::Fixed(40), odd: false };
    let job = Job::new(env!("CARGO_BIN_EXE_skyfill"), &shape, &["--batch-size", "1"]);
    // Far enough apart for a segment each.
    let slow = Fault::SlowHeaders(Duration::from_millis(700));
    job.network.faults().script(Place::Repo, Target::Any, [slow], Then::Repeat);
    let mut cases: Vec<(&str, u64)> = Vec::new();
    if cfg!(debug_assertions) {
        cases =
            POINTS.iter().flat_map(|point| [1, 2, 4].map(|passage| (*point, passage))).collect();
    }
    in_parallel(&cases, 3, |(point, passage)| {
        let scene = Scene::new(&job, &kafka, &format!("{point}-{passage}"), &[]);
        let at = format!("{point}:{passage}");
        let crashed = scene.crash(&at);
        assert_eq!(crashed.signal, Some(6), "{at} never fired: {crashed:#?}");
        // The recovery itself crashes, too.
        let again = scene.crash(&format!("{point}:1"));
        assert!(again.signal == Some(6) || again.code == Some(0), "{at}, again: {again:#?}");
        assert_whole(&scene.finish());
    });
    let seed = number_from("SKYFILL_SEED", 7);
    let kills = AtomicU64::new(0);
    let lanes: Vec<u64> = (0..8).collect();
    in_parallel(&lanes, 3, |lane| {
        let mut rng = Rng::with_seed(seed * 100 + lane);
        let scene = Scene::new(&job, &kafka, &format!("killed-{lane}"), &[]);
        // More than three deaths would make accounts run alone, and then wait a minute.
        for _ in 0..3 {
            let running = scene.start();
            if running.wait(Duration::from_secs_f64(0.3 + 3.2 * rng.f64())).is_some() {
                break;
            }
            kills.fetch_add(u64::from(running.kill()), Ordering::AcqRel);
            running.wait(PATIENCE).expect("nothing survives SIGKILL");
            Topics::glance(&kafka.brokers(), &scene.name);
        }
        assert_whole(&scene.finish());
    });
    let kills = kills.into_inner();
    assert!(kills >= 15, "only {kills} kills met a process that ran; SKYFILL_SEED={seed}");
    job.network.faults().assert_fired(&["slow_headers"]);
    println!("{} crashes at {} points and {kills} kills; seed {seed}", cases.len(), POINTS.len());
}

#[test]
fn a_broker_that_is_killed_under_load_loses_nothing_and_gets_nothing_twice() {
    let Some(kafka) = Kafka::start(&[]) else { return };
    let seed = number_from("SKYFILL_SEED", 7);
    let records = Records::Mixed { mean: 150 };
    let job = job(&Shape { seed: 133, accounts: 120, hosts: 4, records, odd: true });
    for host in &job.network.hosts {
        let bytes_per_second = Some(120_000);
        host.set_manners(Manners { chunk_bytes: 4 << 10, bytes_per_second, ..Manners::default() });
    }
    let scene = Scene::new(&job, &kafka, "load", &[("transaction_bytes", "1MiB")]);
    let mut rng = Rng::with_seed(seed);
    let (begun, running) = (Instant::now(), scene.start());
    let (mut kills, mut away) = (0, Duration::ZERO);
    while kills < 4 {
        let is_over = running.wait(Duration::from_secs_f64(1.0 + 2.0 * rng.f64())).is_some();
        assert!(!is_over, "it was over after {kills} kills: {}", running.stderr());
        kafka.kill();
        let killed = Instant::now();
        kills += 1;
        if kills == 2 {
            // Long enough for the sink to give the transaction up: it says so, and asks for its position when it goes on.
            assert!(running.wait_for("a sink waits", PATIENCE), "{}", running.stderr());
        }
        assert!(running.wait(Duration::from_secs_f64(0.5 * rng.f64())).is_none());
        kafka.begin();
        away += killed.elapsed();
        Topics::glance(&kafka.brokers(), &scene.name);
    }
    let finished = running.finish(PATIENCE).expect_code(0);
    assert!(finished.stderr.contains("a sink goes on"), "{}", finished.stderr);
    let took = begun.elapsed();
    let topics = scene.agree();
    assert_whole(&topics);
    println!(
        "{} rows of 120 accounts while the broker was killed {kills} times and away for {away:.1?} of {took:.1?}: each \
         there, none twice; seed {seed}",
        topics.total()
    );
}

#[test]
fn an_account_larger_than_a_transaction_comes_in_parts_that_say_so() {
    let Some(kafka) = Kafka::start(&[]) else { return };
    let records = Records::Fixed(9_000);
    let job = job(&Shape { seed: 134, accounts: 2, hosts: 1, records, odd: false });
    let more = [("transaction_bytes", "1MiB")];
    let mut names = vec!["large"];
    // A crash between two parts: the rest comes, and nothing of the first ones again.
    if cfg!(debug_assertions) {
        let scene = Scene::new(&job, &kafka, "large-crashed", &more);
        let crashed = scene.crash("SinkKafkaPartCommitted:2");
        assert_eq!(crashed.signal, Some(6), "{crashed:#?}");
        let seen = scene.topics();
        let partial = seen.accounts.values().flatten().filter(|it| it["state"] == "partial");
        assert_eq!(partial.count(), 2);
        names.push("large-crashed");
    }
    for name in names {
        let topics = Scene::new(&job, &kafka, name, &more).finish();
        assert_whole(&topics);
        for (did, told) in &topics.accounts {
            let partial = told.iter().filter(|it| it["state"] == "partial").count();
            assert_eq!(partial, told.len() - 1, "{did}: the last one is done");
            assert!(partial >= 2, "{did}: {partial} parts");
        }
    }
}

#[test]
fn topics_that_would_lose_or_refuse_rows_are_refused_with_the_command_that_mends_them() {
    let Some(kafka) = Kafka::start(&[]) else { return };
    let records = Records::Fixed(20);
    let job = job(&Shape { seed: 135, accounts: 2, hosts: 1, records, odd: false });
    let large = "max.message.bytes=8388608";
    kafka.make_topic("bad.post", 3, &["cleanup.policy=compact", large]);
    kafka.make_topic("bad.like", 2, &[large]);
    kafka.make_topic("bad.follow", 3, &[]);
    kafka.make_topic("bad.accounts", 3, &[large]);
    let scene = Scene::new(&job, &kafka, "bad", &[]);
    let expected = [
        ("bad.post", "cleanup.policy=compact, which would keep one row of each account"),
        ("bad.like", "has 2 partitions, and 3 are wanted"),
        ("bad.follow", "max.message.bytes=1048588, and a row can be larger"),
        ("bad.accounts", "cleanup.policy=delete, which would forget accounts"),
    ];
    for (topic, why) in expected {
        let checked = scene.check().expect_code(78);
        let refused = scene.start().finish(PATIENCE).expect_code(78);
        for said in [&checked.stdout, &refused.stderr] {
            let names = said.contains(&format!("the topic {topic} has")) && said.contains("sink");
            assert!(names && said.contains(why), "{topic}: {said}");
        }
        kafka.obey(&refused.stderr);
    }
    scene.check().expect_code(0);
    assert_whole(&scene.finish());
}

#[test]
fn topics_that_delete_rows_in_time_are_named_and_used() {
    let Some(kafka) = Kafka::start(&[]) else { return };
    let records = Records::Fixed(20);
    let job = job(&Shape { seed: 142, accounts: 2, hosts: 1, records, odd: false });
    let large = "max.message.bytes=8388608";
    // The cluster's own default is a week.
    kafka.make_topic("kept.post", 3, &[large]);
    kafka.make_topic("kept.like", 3, &[large, "retention.ms=-1", "retention.bytes=1000000"]);
    kafka.make_topic("kept.follow", 3, &[large, "retention.ms=-1"]);
    kafka.make_topic("kept.accounts", 3, &[large, "cleanup.policy=compact"]);
    let scene = Scene::new(&job, &kafka, "kept", &[]);
    let expected = [
        "sink.broker: the topic kept.post has retention.ms=604800000: rows are deleted in time",
        "sink.broker: the topic kept.like has retention.bytes=1000000: rows are deleted in time",
    ];
    let checked = scene.check().expect_code(0).stdout;
    let warned: Vec<&str> = checked.lines().filter_map(|it| it.strip_prefix("warning: ")).collect();
    assert_eq!(warned.len(), 2, "{checked}");
    for said in expected {
        assert!(warned.iter().any(|it| it.starts_with(said)), "{said}: {checked}");
    }
    let ran = scene.start().finish(PATIENCE).expect_code(0).stderr;
    for topic in ["kept.post", "kept.like"] {
        assert_eq!(ran.matches(&format!("the topic {topic} has ")).count(), 1, "{ran}");
    }
    assert_eq!(ran.matches("rows are deleted in time").count(), 2, "{ran}");
    assert_whole(&scene.agree());
    // What they name mends it.
    warned.iter().for_each(|said| kafka.obey(said));
    let mended = scene.check().expect_code(0).stdout;
    assert!(!mended.contains("warning"), "{mended}");
}

#[test]
fn a_broker_that_is_away_is_waited_for_and_nobody_else_waits_with_it() {
    let Some(kafka) = Kafka::start(&[]) else { return };
    let records = Records::Fixed(50);
    let job = job(&Shape { seed: 136, accounts: 12, hosts: 2, records, odd: false });
    let scene = Scene::new(&job, &kafka, "away", &[]);
    kafka.kill();
    let checked = scene.check().expect_code(0).stdout;
    assert!(checked.contains("looking at topics: no answer"), "it is worth a warning: {checked}");
    // A daemon, which still answers when its accounts are done.
    let running = scene.daemon(&[]);
    let until = |is_so: &dyn Fn(&Value, &str) -> bool| scene.until(&running, is_so);
    // The queues have everything, and the sink says what it waits for.
    let brokers = kafka.brokers();
    until(&|status, waits| {
        status["accounts"]["done"] == 12 && waits.contains(&brokers) && waits.contains("no answer")
    });
    assert!(job.verdict(&scene.data).is_clean());
    kafka.begin();
    until(&|status, waits| waits.is_empty() && status["sinks"][0]["segment"].as_u64() > Some(0));
    running.signal(Signal::TERM);
    running.finish(PATIENCE).expect_code(0);
    assert_whole(&scene.agree());
}

#[test]
fn a_broker_that_is_away_holds_up_the_work_once_lag_max_is_held_and_that_is_said() {
    let Some(kafka) = Kafka::start(&[]) else { return };
    let records = Records::Fixed(450);
    let job = job(&Shape { seed: 141, accounts: 20, hosts: 2, records, odd: false });
    let scene = Scene::new(&job, &kafka, "far", &[("lag_max", "1MiB")]);
    kafka.kill();
    // One account a segment, as far as the work allows it.
    let running = scene.daemon(&["limits.batch_size=1"]);
    scene.until(&running, &|status, waits| {
        let sink = &status["sinks"][0];
        let is_held = sink["lag_bytes"].as_u64() > Some(1 << 20) && sink["lag_max"] == 1 << 20;
        is_held && sink["holds_up"] == true && status["bound_by"] == "sink" && !waits.is_empty()
    });
    let status = || {
        let data = scene.data.to_str().unwrap();
        job.skyfill().run(&["status", "--data-dir", data], PATIENCE).expect_code(0).stdout
    };
    let before = status();
    assert!(before.contains("bound by sink"), "{before}");
    assert!(
        before.contains(", the work waits for it: it holds 1.")
            && before.contains("MiB, 1.00 MiB at most"),
        "{before}"
    );
    assert!(running.wait(Duration::from_secs(2)).is_none());
    let accounts = |text: &str| text.lines().next().unwrap().to_owned();
    assert_eq!(accounts(&status()), accounts(&before), "the work goes on");
    let scraped = scrape(&running);
    for (name, is_so) in [
        ("lag_segments", &(|it: f64| it >= 3.0) as &dyn Fn(f64) -> bool),
        ("lag_bytes", &|it| it > 1_048_576.0),
        ("waiting", &|it| it == 1.0),
        ("blocking", &|it| it == 1.0),
    ] {
        let series = format!("skyfill_sink_{name}{{sink=\"broker\"}} ");
        let figure = scraped.split_once(&series).expect(&series).1.lines().next().unwrap();
        assert!(is_so(figure.parse().unwrap()), "{series}{figure}");
    }
    let said = "the work waits for a sink sink=broker";
    assert_eq!(running.stderr().matches(said).count(), 1, "{}", running.stderr());
    kafka.begin();
    scene.until(&running, &|status, _| {
        status["accounts"]["done"] == 20 && status["sinks"][0]["lag_bytes"] == 0
    });
    running.signal(Signal::TERM);
    let log = running.finish(PATIENCE).expect_code(0).stderr;
    assert_eq!(log.matches("the work goes on sink=broker").count(), 1, "{log}");
    assert_eq!(log.matches(said).count(), 1, "{log}");
    assert_whole(&scene.agree());
}

/// What the daemon's metrics are.
fn scrape(running: &Running) -> String {
    use std::io::{Read as _, Write as _};
    let line = "serving metrics listen=";
    assert!(running.wait_for(line, PATIENCE), "{}", running.stderr());
    let log = running.stderr();
    let address = log.split_once(line).unwrap().1.split_whitespace().next().unwrap().to_owned();
    let mut stream = std::net::TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(b"GET /metrics HTTP/1.0\r\n\r\n").unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    text
}

#[test]
fn a_refreshed_account_sends_what_is_new_and_what_is_gone_under_its_next_edition() {
    let Some(kafka) = Kafka::start(&[]) else { return };
    let records = Records::Fixed(60);
    let job = job(&Shape { seed: 140, accounts: 3, hosts: 1, records, odd: false });
    let mut scene = Scene::new(&job, &kafka, "fresh", &[("compression", "none")]);
    assert_whole(&scene.finish());
    job.network.set_revision(1, 3);
    scene.flags.push("--refresh".to_owned());
    scene.start().finish(PATIENCE).expect_code(0);
    let topics = scene.topics();
    let mut queues = read::queues(&scene.data);
    let deleted = queue_records(&scene.data, "deleted");
    assert!(!deleted.is_empty());
    let mut deleted: Vec<String> = deleted.iter().map(ToString::to_string).collect();
    deleted.sort();
    queues.insert("deleted".to_owned(), deleted.clone());
    topics.assert_same(&queues);
    let told = &topics.accounts[job.network.world().did(1)];
    let editions: Vec<u64> = told.iter().map(|it| it["edition"].as_u64().unwrap()).collect();
    assert_eq!(editions, [0, 1]);
    assert_eq!(told[1]["rows"]["deleted"], deleted.len());
    assert_eq!(told[1]["rev"], job.network.world().rev(1, 3));
    let others = topics.accounts.values().filter(|it| it.len() == 1).count();
    assert_eq!(others, 2, "they have nothing new");
}

#[test]
fn accounts_that_are_given_up_have_a_record_until_they_are_done_after_all() {
    let Some(kafka) = Kafka::start(&[]) else { return };
    let records = Records::Fixed(30);
    let job = job(&Shape { seed: 143, accounts: 6, hosts: 2, records, odd: false });
    let did = |index: usize| job.network.world().did(index).to_owned();
    job.network.set_standing(1, Standing::Deactivated);
    job.network.set_standing(2, Standing::TakenDown);
    let malformed = "did:plc:NOT-A-DID";
    let list = job.path("dids.txt");
    let text = std::fs::read_to_string(&list).unwrap();
    std::fs::write(&list, format!("{text}\n{malformed}\n")).unwrap();
    let key = job.path("key");
    std::fs::write(&key, [b'k'; 32]).unwrap();
    std::fs::set_permissions(&key, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    let mut hidden = Scene::new(&job, &kafka, "hidden", &[]);
    hidden.flags.push(format!("--set=records.pseudonyms={}", key.display()));
    for scene in [Scene::new(&job, &kafka, "given-up", &[]), hidden] {
        scene.start().finish(PATIENCE).expect_code(3);
        let topics = scene.topics();
        let parked: Vec<&Value> =
            topics.newest.values().filter(|it| it["state"] == "parked").collect();
        let mut reasons: Vec<&str> =
            parked.iter().map(|it| it["reason"].as_str().unwrap()).collect();
        reasons.sort_unstable();
        assert_eq!(reasons, ["did_invalid", "repo_deactivated", "repo_taken_down"], "{parked:?}");
        assert_eq!((topics.newest.len(), topics.accounts.len()), (7, 4));
        let is_hidden = scene.name == "hidden";
        for (of, value) in &topics.newest {
            assert_eq!(of.starts_with("did:pseudo:"), is_hidden, "{of}");
            assert!(value["directory"].is_string() && value["position"]["segment"].is_u64());
        }
        if !is_hidden {
            let of = &topics.newest[&did(1)];
            assert_eq!((&of["reason"], &of["rev"]), (&"repo_deactivated".into(), &Value::Null));
            assert!(topics.newest.contains_key(malformed));
        }
        // The same again: they are told again, and nobody is done twice.
        scene.start().finish(PATIENCE).expect_code(3);
        assert_eq!(scene.topics().newest, topics.newest);
    }
    // They come back, and are put back: what was given up is done, and stays so.
    job.network.set_standing(1, Standing::Active);
    job.network.set_standing(2, Standing::Active);
    let scene = Scene::new(&job, &kafka, "given-up", &[]);
    let data = scene.data.to_str().unwrap();
    job.skyfill().run(&["retry", "--all", "--data-dir", data], PATIENCE).expect_code(0);
    for _ in 0..2 {
        scene.start().finish(PATIENCE).expect_code(3);
        let topics = scene.topics();
        for index in 0..6 {
            assert_eq!(topics.newest[&did(index)]["state"], "done", "{index}");
        }
        assert_eq!(topics.newest[malformed]["state"], "parked");
        assert_whole(&topics);
    }
}

#[test]
fn a_cluster_that_wants_a_password_gets_it_from_a_file_or_the_environment() {
    let Some(kafka) = Kafka::start(&[]) else { return };
    let records = Records::Fixed(20);
    let job = job(&Shape { seed: 139, accounts: 2, hosts: 1, records, odd: false });
    let credentials = job.path("credentials");
    let brokers = kafka.brokers_with_password();
    let file = credentials.to_str().unwrap();
    let more = [("brokers", brokers.as_str()), ("credentials", file)];
    let scene = Scene::new(&job, &kafka, "password", &more);
    let missing = scene.start().finish(PATIENCE).expect_code(74);
    assert!(missing.stderr.contains(file), "{}", missing.stderr);
    std::fs::write(&credentials, "username = skyfill\n").unwrap();
    let half = scene.start().finish(PATIENCE).expect_code(78);
    assert!(half.stderr.contains("one password = ..."), "{}", half.stderr);
    std::fs::write(&credentials, "username = skyfill\npassword = let-me-out\n").unwrap();
    let wrong = scene.start().finish(PATIENCE / 2).expect_code(77);
    assert!(wrong.stderr.contains("the credentials do not allow it"), "{}", wrong.stderr);
    assert!(!wrong.stderr.contains("let-me-out"), "{}", wrong.stderr);
    std::fs::write(&credentials, "username = \"skyfill\"\npassword = \"let-me-in\"\n").unwrap();
    assert_whole(&scene.finish());
    let bare = Scene::new(&job, &kafka, "environment", &[("brokers", &brokers)]);
    let skyfill = job.skyfill().env("KAFKA_USERNAME", "skyfill").env("KAFKA_PASSWORD", "let-me-in");
    skyfill.run(&bare.arguments(), PATIENCE).expect_code(0);
    assert_whole(&bare.agree());
}

#[test]
fn a_cluster_that_forgot_the_position_finds_it_in_the_accounts() {
    let Some(kafka) = Kafka::start(&[]) else { return };
    if cfg!(not(debug_assertions)) {
        return;
    }
    let records = Records::Fixed(40);
    let job = job(&Shape { seed: 137, accounts: 6, hosts: 1, records, odd: false });
    let scene = Scene::new(&job, &kafka, "forgot", &[]);
    // The second passage: the first is that of the position that a new sink begins with.
    let crashed = scene.crash("SinkKafkaCommittedBeforeSettle:2");
    assert_eq!(crashed.signal, Some(6), "{crashed:#?}");
    let before = scene.topics().total();
    assert!(before > 0);
    let groups = "org.apache.kafka.tools.consumer.group.ConsumerGroupCommand";
    let listed = kafka.tool(groups, &["--list"]).expect_code(0).stdout;
    let group = listed.lines().find(|it| it.starts_with("skyfill-forgot-")).unwrap();
    kafka.tool(groups, &["--delete", "--group", group]).expect_code(0);
    assert_whole(&scene.finish());
}

#[test]
fn a_second_process_with_the_same_transactions_ends_the_first_by_name() {
    let Some(kafka) = Kafka::start(&[]) else { return };
    let broker = Broker { partitions: 1, ..Broker::new(&kafka.brokers()) };
    let clients = Clients { broker, zstd: true };
    topics::make(&clients, &["skyfill.accounts".to_owned()]);
    let origin = Origin { directory: "0".repeat(32), sink: "x".to_owned() };
    let id = group("skyfill", &origin);
    let mut positions = Positions::new(&clients, &origin).unwrap();
    let message = Outgoing { topic: "skyfill.accounts", partition: None, key: "did", value: "{}" };
    let lane = || Lane::new(clients.clone(), id.clone(), Owner::Directory, Clock::system());
    let (mut first, mut second) = (lane(), lane());
    assert!(first.open().unwrap(), "it was shut");
    assert!(!first.open().unwrap(), "it was open");
    first.begin().unwrap();
    first.send(message, &OwnedHeaders::new()).unwrap();
    assert!(second.open().unwrap());
    assert_eq!(positions.read().unwrap(), None);
    let refused = first.commit(positions.offsets(Position::after(3)).unwrap()).unwrap_err();
    let said = refused.to_string();
    assert!(said.contains("another process writes as skyfill-skyfill-0000"), "{said}");
    second.begin().unwrap();
    second.send(message, &OwnedHeaders::new()).unwrap();
    let position = Position { segment: 3, item: 5 };
    second.commit(positions.offsets(position).unwrap()).unwrap();
    assert_eq!(positions.read().unwrap(), Some(position));
    assert_eq!(kafka.console("skyfill.accounts").len(), 1, "only what was committed");
}

/// Anonymous memory beside `limits.memory`.
const BASE_BYTES: u64 = 64 << 20;

#[test]
fn a_sink_to_kafka_stays_within_the_base_of_memory() {
    let Some(kafka) = Kafka::start(&[]) else { return };
    let records = Records::Fixed(25_000);
    let job = job(&Shape { seed: 138, accounts: 4, hosts: 2, records, odd: false });
    let mut scene = Scene::new(&job, &kafka, "memory", &[]);
    scene
        .flags
        .extend(["--set=limits.memory=64MiB", "--set=limits.journal=32MiB"].map(str::to_owned));
    let begun = Instant::now();
    let finished = scene.start().finish(PATIENCE).expect_code(0);
    let (seconds, peak) = (begun.elapsed().as_secs_f64(), finished.usage.anonymous_peak_bytes);
    assert!(peak <= (64 << 20) + BASE_BYTES, "{} MiB", peak >> 20);
    let topics = scene.agree();
    assert_whole(&topics);
    println!(
        "{} rows in {seconds:.1} s and {:.1} s of CPU, anonymous peak {} MiB at limits.memory = 64MiB",
        topics.total(),
        finished.usage.cpu_seconds(),
        peak >> 20
    );
}
