//! Many `skyfill run` that share `<topics>.dids` in a consumer group, with a real broker: every account is done exactly once for a
//! `read_committed` reader and no host is asked above its pace, while workers are killed, stopped, added and the broker dies.
//! Needs a build with the feature `kafka` and the broker that `tests/run` brings.
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
#[allow(dead_code, reason = "tests/kafka.rs uses the rest of it")]
mod topics;

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use rdkafka::ClientConfig;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer as _};
use serde_json::{Value, json};
use skyfill::domain::partition::of_key;
use skyfill::limits::INPUT_WINDOW_OFFSETS_MAX;
use support::faults::{Fault, Place, Target, Then};
use support::job::{Job, PATIENCE};
use support::kafka::Kafka;
use support::network::Standing;
use support::proc::{Finished, Running, Signal};
use support::world::{Records, Shape};
use topics::Topics;

const GET_REPO: &str = "com.atproto.sync.getRepo";

/// Partitions of the topic: several hosts in each, and some in one of their own.
const PARTITIONS: u32 = 12;

/// Requests a second that a host may be asked.
const RATE: usize = 2;

/// Between two looks at the topics.
const LOOK: Duration = Duration::from_millis(500);

/// A network, a broker, and workers of one group.
struct Scene {
    job: Job,
    kafka: Kafka,
    more: Vec<String>,
}

impl Scene {
    fn new(shape: &Shape, rate: usize, more: &[&str]) -> Option<Self> {
        let kafka = Kafka::start(&[])?;
        let job = Job::new(env!("CARGO_BIN_EXE_skyfill"), shape, &[]);
        let pace = format!("fetch.host_requests_per_second={rate}");
        let more = more.iter().map(|it| (*it).to_owned()).chain([pace]).collect();
        Some(Self { job, kafka, more })
    }

    /// `skyfill enqueue` of the accounts in `list`.
    fn enqueue(&self, list: &str) -> Finished {
        let (brokers, partitions) = (self.kafka.brokers(), PARTITIONS.to_string());
        let path = self.job.path(list);
        let fixed = ["enqueue", "--json", "--topics", "w", "--brokers", &brokers, "--partitions"];
        let own = [&partitions, "--dids-file", path.to_str().unwrap()];
        let fast = ["--set", "identity.requests_per_second=1000"];
        let all = fixed.into_iter().chain(own).chain(fast).map(str::to_owned);
        let all: Vec<String> = all.chain(self.job.network.flags()).collect();
        self.job.skyfill().run(&all, PATIENCE)
    }

    fn arguments(&self, name: &str) -> Vec<String> {
        let brokers = format!("sink.broker.brokers={}", self.kafka.brokers());
        let directory = format!("identity.plc_url={}", self.job.network.plc.url());
        let settings = [
            "source.group=workers",
            "sink.broker.type=kafka",
            "sink.broker.topics=w",
            "sink.broker.partitions=3",
            "identity.requests_per_second=1000",
            "limits.disk_free=0B",
            "network.allow=127.0.0.0/8",
            "metrics.listen=",
            &brokers,
            &directory,
        ];
        let settings = settings.into_iter().chain(self.more.iter().map(String::as_str));
        let data = self.job.path(name);
        let fixed = ["run", "--data-dir", data.to_str().unwrap()].map(str::to_owned).into_iter();
        let settings = settings.flat_map(|it| ["--set", it]).map(str::to_owned);
        fixed.chain(settings).collect()
    }

    fn worker(&self, name: &str) -> Running {
        self.job.skyfill().spawn(&self.arguments(name))
    }

    /// What the worker `name` says of itself.
    fn status(&self, name: &str) -> Value {
        let data = self.job.path(name);
        let arguments = ["status", "--json", "--data-dir", data.to_str().unwrap()];
        self.job.skyfill().run(&arguments, PATIENCE).expect_code(0).json()
    }

    /// Accounts with a record in this state, as a reader sees them now.
    fn ended(&self, state: &str) -> BTreeSet<String> {
        let newest = Topics::glance(&self.kafka.brokers(), "w").newest;
        newest.into_iter().filter(|(_, it)| it["state"] == state).map(|(did, _)| did).collect()
    }

    /// Waits until `count` accounts are done; all of `workers` run meanwhile.
    fn wait_for(&self, count: usize, workers: &[&Running]) {
        let begun = Instant::now();
        loop {
            let done = self.ended("done").len();
            if done >= count {
                return;
            }
            let told: Vec<String> = workers.iter().map(|it| it.stderr()).collect();
            assert!(begun.elapsed() < PATIENCE, "{done} of {count}: {}", told.join("\n---\n"));
            for worker in workers {
                assert!(worker.wait(LOOK / 4).is_none(), "{}", worker.stderr());
            }
        }
    }

    fn wait_for_parked(&self, did: &str, workers: &[&Running]) {
        let begun = Instant::now();
        while !self.ended("parked").contains(did) {
            let told: Vec<String> = workers.iter().map(|it| it.stderr()).collect();
            assert!(begun.elapsed() < PATIENCE, "{did}: {}", told.join("\n---\n"));
            for worker in workers {
                assert!(worker.wait(LOOK / 4).is_none(), "{}", worker.stderr());
            }
        }
    }

    /// Waits until these workers have all partitions, each of them some.
    fn wait_for_shares(&self, names: &[String], workers: &[&Running]) {
        let begun = Instant::now();
        loop {
            let shares = names.iter().map(|name| {
                let has_begun = self.job.path(name).join("control.sock").exists();
                let group = if has_begun { self.status(name)["group"].take() } else { Value::Null };
                group["partitions"].as_array().map_or(0, Vec::len)
            });
            let shares: Vec<usize> = shares.collect();
            let is_all = shares.iter().sum::<usize>() == PARTITIONS as usize;
            if is_all && shares.iter().all(|share| *share > 0) {
                return;
            }
            assert!(begun.elapsed() < PATIENCE, "{shares:?}");
            for worker in workers {
                assert!(worker.wait(LOOK / 4).is_none(), "{}", worker.stderr());
            }
        }
    }

    /// Every account of the network is done exactly once, with the rows that a run of one process would bring, and no host was
    /// asked above its pace.
    fn assert_whole(&self, rate: usize) -> Topics {
        // The pace first: the run to compare with asks as fast as it can.
        for (number, host) in self.job.network.hosts.iter().enumerate() {
            let most = host.log().most_within(GET_REPO, Duration::from_secs(1));
            // Requests arrive some milliseconds apart from when they were sent.
            assert!(most <= rate + 1, "host {number}: {most} requests in a second");
        }
        let topics = Topics::read(&self.kafka.brokers(), "w");
        let listed: BTreeSet<String> = self.job.network.world().dids().into_iter().collect();
        for (did, records) in topics.accounts.iter().filter(|(did, _)| listed.contains(*did)) {
            let done = records.iter().filter(|it| it["state"] == "done").count();
            assert_eq!(done, 1, "{did}: {records:?}");
        }
        let data = self.job.path("alone");
        self.job.run(&data).expect_code(0);
        let verdict = self.job.verdict(&data);
        assert!(verdict.is_clean(), "{verdict:#?}");
        let (found, wanted) = (timeless(&topics.rows), timeless(&read::queues(&data)));
        let counts = |rows: &BTreeMap<String, Vec<String>>| -> Vec<(String, usize)> {
            rows.iter().map(|(label, rows)| (label.clone(), rows.len())).collect()
        };
        assert_eq!(counts(&found), counts(&wanted));
        assert!(found == wanted, "rows differ");
        topics
    }
}

/// Rows without when they were made: two runs make them at different times.
fn timeless(rows: &BTreeMap<String, Vec<String>>) -> BTreeMap<String, Vec<String>> {
    let without = |row: &String| {
        let mut row: Value = row.parse().unwrap();
        row.as_object_mut().unwrap().remove("synctimestamp");
        row.to_string()
    };
    let sorted = |rows: &Vec<String>| {
        let mut rows: Vec<String> = rows.iter().map(without).collect();
        rows.sort();
        rows
    };
    let all = rows.iter().filter(|(_, rows)| !rows.is_empty());
    all.map(|(label, rows)| (label.clone(), sorted(rows))).collect()
}

fn shape(seed: u64, accounts: usize, hosts: usize) -> Shape {
    Shape { seed, accounts, hosts, records: Records::Fixed(30), odd: true }
}

#[test]
fn workers_that_are_killed_stopped_and_added_do_every_account_once_and_no_host_is_pressed() {
    let Some(scene) = Scene::new(&shape(61, 500, 20), RATE, &[]) else { return };
    scene.enqueue("dids.txt").expect_code(0);
    let first = scene.worker("first");
    let second = scene.worker("second");
    let third = scene.worker("third");
    scene.wait_for(60, &[&first, &second, &third]);
    let group = scene.status("second")["group"].clone();
    assert_eq!((&group["name"], &group["of_partitions"]), (&"workers".into(), &PARTITIONS.into()));
    let told = first.stderr();
    assert_eq!(first.kill_and_wait().signal, Some(9), "{told}");
    // Longer than a session: what it had is somebody else's when it goes on, and it does not know yet.
    assert!(second.signal(Signal::STOP));
    let fourth = scene.worker("fourth");
    let stopped = Instant::now();
    while stopped.elapsed() < Duration::from_secs(16) {
        assert!(third.wait(LOOK).is_none(), "{}", third.stderr());
        assert!(fourth.is_running(), "{}", fourth.stderr());
    }
    let before = scene.ended("done").len();
    assert!(before < 470, "{before} of 500 are done: too late to say anything");
    assert!(second.signal(Signal::CONT));
    // Killed ones come again, in the middle of it.
    let again = scene.worker("first");
    scene.wait_for(500, &[&second, &third, &fourth, &again]);
    let topics = scene.assert_whole(RATE);
    let by_directory: BTreeMap<String, usize> =
        topics.accounts.values().fold(BTreeMap::new(), |mut all, records| {
            *all.entry(records.last().unwrap()["directory"].to_string()).or_default() += 1;
            all
        });
    assert_eq!(by_directory.len(), 4, "all of them worked: {by_directory:?}");
    let views =
        ["second", "third", "fourth", "first"].map(|name| scene.status(name)["group"].clone());
    let of = |view: &Value| view["partitions"].as_array().unwrap().len();
    assert_eq!(views.iter().map(of).sum::<usize>(), PARTITIONS as usize, "{views:?}");
    assert!(views.iter().all(|view| view["undecided"] == 0), "{views:?}");
    for worker in [second, third, fourth, again] {
        assert!(worker.signal(Signal::TERM));
        worker.finish(PATIENCE).expect_code(0);
    }
    println!("500 accounts on 20 hosts, {} rows, by 4 workers: {by_directory:?}", topics.total());
}

#[test]
fn a_broker_that_dies_and_workers_that_are_killed_often_lose_and_double_nothing() {
    let Some(scene) = Scene::new(&shape(62, 300, 20), 8, &[]) else { return };
    scene.enqueue("dids.txt").expect_code(0);
    let mut workers: Vec<Option<Running>> = (0..3).map(|_| None).collect();
    let mut rng = fastrand::Rng::with_seed(support::job::number_from("SKYFILL_SEED", 3));
    let (begun, mut kills, mut deaths) = (Instant::now(), 0, 0);
    loop {
        assert!(begun.elapsed() < PATIENCE * 2, "{} done", scene.ended("done").len());
        for (number, worker) in workers.iter_mut().enumerate() {
            worker.get_or_insert_with(|| scene.worker(&number.to_string()));
        }
        std::thread::sleep(Duration::from_millis(rng.u64(1_000..4_000)));
        if deaths < 2 && rng.u8(..3) == 0 {
            scene.kafka.kill();
            std::thread::sleep(Duration::from_millis(rng.u64(..2_000)));
            scene.kafka.begin();
            deaths += 1;
        }
        if scene.ended("done").len() == 300 {
            break;
        }
        if kills < 9 {
            let killed = workers[rng.usize(..3)].take().unwrap().kill_and_wait();
            assert_eq!(killed.signal, Some(9), "{}", killed.stderr);
            kills += 1;
        }
    }
    let topics = scene.assert_whole(8);
    assert!(kills > 3 && deaths > 0, "{kills} kills, {deaths} deaths of the broker");
    println!(
        "{kills} kills of workers and {deaths} of the broker: {} rows, each once",
        topics.total()
    );
}

#[test]
fn what_is_enqueued_again_is_not_done_again_and_who_moved_goes_to_the_worker_of_the_new_host() {
    let Some(scene) = Scene::new(&shape(63, 120, 20), 50, &[]) else { return };
    let network = &scene.job.network;
    scene.enqueue("dids.txt").expect_code(0);
    // They move after they were put there, and one is taken down.
    for index in 40..60 {
        network.move_account(index, (index + 7) % 20);
    }
    network.set_standing(100, Standing::TakenDown);
    let [first, second] = ["first", "second"].map(|name| scene.worker(name));
    scene.wait_for(119, &[&first, &second]);
    let gone = &network.world().dids()[100];
    scene.wait_for_parked(gone, &[&first, &second]);
    // Everything once more, by workers with nothing in their directories, after it has come back.
    let ended = [first, second].map(|worker| {
        assert!(worker.signal(Signal::TERM));
        worker.finish(PATIENCE).expect_code(0).stderr
    });
    assert!(ended.concat().contains("accounts were handed over"), "{}", ended.concat());
    network.set_standing(100, Standing::Active);
    let asked: usize = network.hosts.iter().map(|host| host.log().len()).sum();
    let list = std::fs::read_to_string(scene.job.path("dids.txt")).unwrap();
    let unknown = "did:plc:aaaaaaaaaaaaaaaaaaaaaaaa";
    std::fs::write(scene.job.path("odd.txt"), format!("{list}\n{unknown}")).unwrap();
    scene.enqueue("odd.txt").expect_code(3);
    let [third, fourth] = ["third", "fourth"].map(|name| scene.worker(name));
    scene.wait_for(120, &[&third, &fourth]);
    // What a worker says of itself is a moment old, and the other one may have handed something over since.
    scene.wait_for_parked(unknown, &[&third, &fourth]);
    let begun = Instant::now();
    let is_quiet = |name: &str| {
        let group = scene.status(name)["group"].clone();
        (group["undecided"] == 0 && group["behind"] == 0)
            .then(|| group["partitions"].as_array().unwrap().len())
    };
    while is_quiet("third").and_then(|it| Some(it + is_quiet("fourth")?))
        != Some(PARTITIONS as usize)
    {
        assert!(begun.elapsed() < PATIENCE, "{}{}", third.stderr(), fourth.stderr());
        assert!(third.wait(LOOK).is_none(), "{}", third.stderr());
    }
    let asked_again: usize = network.hosts.iter().map(|host| host.log().len()).sum();
    assert!(asked_again - asked < 10, "only what was missing is fetched: {}", asked_again - asked);
    assert_eq!(scene.ended("parked").len(), 1, "the one that nobody knows");
    scene.assert_whole(50);
}

/// Crash points of a lane, and at which passage.
const POINTS: [(&str, u32); 4] = [
    ("SinkKafkaRowsSentBeforeOffsets", 1),
    ("SinkKafkaOffsetsSentBeforeCommit", 2),
    ("SinkKafkaLaneCommittedBeforeTold", 1),
    ("SinkKafkaLaneCommittedBeforeTold", 3),
];

#[test]
fn a_crash_at_every_point_of_a_lane_loses_and_doubles_nothing() {
    if cfg!(not(debug_assertions)) {
        println!("release builds have no crash points");
        return;
    }
    let Some(scene) = Scene::new(&shape(67, 120, 12), 2, &[]) else { return };
    scene.enqueue("dids.txt").expect_code(0);
    for (point, passage) in POINTS {
        let at = format!("{point}:{passage}");
        let crashing = scene.job.skyfill().env("SKYFILL_CRASH_AT", &at);
        let crashed = crashing.run(&scene.arguments("crashing"), PATIENCE);
        assert_eq!(crashed.signal, Some(6), "{at} never fired: {}", crashed.stderr);
    }
    let done = scene.ended("done").len();
    assert!(done < 120, "all were done before the last crash");
    // One that knows nothing of it, and the one that crashed.
    let [fresh, crashed] = ["fresh", "crashing"].map(|name| scene.worker(name));
    scene.wait_for(120, &[&fresh, &crashed]);
    let topics = scene.assert_whole(2);
    println!("{} crashes in lanes: {} rows, each once", POINTS.len(), topics.total());
}

#[test]
fn an_account_that_holds_everything_back_is_put_at_the_end_and_what_nobody_resolved_is_resolved() {
    if cfg!(not(debug_assertions)) {
        println!("release builds have no crash points");
        return;
    }
    let Some(scene) = Scene::new(&shape(66, 20, 1), 50, &["retry.base=1s", "retry.attempts=100"])
    else {
        return;
    };
    let network = &scene.job.network;
    let slow = &network.world().dids()[0];
    network.faults().always(slow, Fault::status(503));
    let dids = network.world().dids();
    std::fs::write(scene.job.path("most.txt"), dids[..19].join("\n")).unwrap();
    scene.enqueue("most.txt").expect_code(0);
    let crashing = scene.job.skyfill().env("SKYFILL_CRASH_AT", "SinkKafkaHandedOverBeforeTold:1");
    let worker = crashing.spawn(&scene.arguments("first"));
    scene.wait_for(18, &[&worker]);
    // Nothing of ours, and enough of it: what is decided beyond the slow one does not fit beside an offset any more.
    let partition = of_key(&network.hosts[0].name(), PARTITIONS).cast_signed();
    let mut config = ClientConfig::new();
    let producer: BaseProducer =
        config.set("bootstrap.servers", scene.kafka.brokers()).create().unwrap();
    // An identity that nobody resolved: where it leads is not asked, the directory is.
    let identity = json!({"endpoint": "https://10.0.0.1", "host": network.hosts[0].name(), "key": "did:key:z", "handle": null});
    let hostile =
        json!({"did": dids[19], "identity": identity, "resolved_at_ms": 4_000_000_000_000_i64})
            .to_string();
    producer.send(BaseRecord::to("w.dids").key("10.0.0.1").payload(&hostile)).unwrap();
    scene.wait_for(19, &[&worker]);
    for _ in 0..INPUT_WINDOW_OFFSETS_MAX {
        let record: BaseRecord<'_, str, str> =
            BaseRecord::to("w.dids").partition(partition).payload("{}");
        producer.send(record).unwrap();
    }
    producer.flush(PATIENCE).unwrap();
    // Killed when the topic has it at its end already and nobody here has heard of that.
    let ended = worker.finish(PATIENCE);
    assert_eq!(ended.signal, Some(6), "{}", ended.stderr);
    assert!(!scene.ended("done").contains(slow));
    network.faults().heal();
    let worker = scene.worker("first");
    scene.wait_for(20, &[&worker]);
    let topics = Topics::read(&scene.kafka.brokers(), "w");
    assert_eq!(topics.accounts.len(), 20, "messages of nobody leave nothing behind");
    // By the message that was put there for it.
    let offset = topics.accounts[slow].last().unwrap()["input"]["offset"].as_i64().unwrap();
    assert!(offset > i64::from(INPUT_WINDOW_OFFSETS_MAX), "{offset}");
    scene.assert_whole(50);
    let begun = Instant::now();
    while scene.status("first")["accounts"]["done"] != 20 {
        assert!(begun.elapsed() < PATIENCE, "{}", scene.status("first"));
        assert!(worker.wait(LOOK).is_none(), "{}", worker.stderr());
    }
}

#[test]
fn more_workers_do_more_where_hosts_allow_it() {
    let limits = ["limits.batch_size=2", "limits.parsers=1"];
    let mut seconds = Vec::new();
    for workers in [1, 3] {
        let Some(scene) = Scene::new(&shape(64, 90, 20), 50, &limits) else { return };
        scene.kafka.make_topic(
            "w.dids",
            PARTITIONS,
            &["max.message.bytes=8388608", "retention.ms=-1"],
        );
        let slow = Fault::SlowHeaders(Duration::from_millis(400));
        scene.job.network.faults().script(Place::Repo, Target::Any, [slow], Then::Repeat);
        // They have shared the partitions before there is work.
        let names: Vec<String> = (0..workers).map(|it| it.to_string()).collect();
        let running: Vec<Running> = names.iter().map(|name| scene.worker(name)).collect();
        let running: Vec<&Running> = running.iter().collect();
        scene.wait_for_shares(&names, &running);
        scene.enqueue("dids.txt").expect_code(0);
        scene.wait_for(90, &running);
        let times: Vec<Duration> = scene.job.network.hosts.iter().flat_map(times).collect();
        let (first, last) = (times.iter().min().unwrap(), times.iter().max().unwrap());
        seconds.push((*last - *first).as_secs_f64());
    }
    println!("90 accounts by one worker: {:.1} s, by three: {:.1} s", seconds[0], seconds[1]);
    assert!(seconds[1] < 0.7 * seconds[0], "{seconds:?}");
}

/// When the repositories of a host were asked for.
fn times(host: &support::pds::Pds) -> Vec<Duration> {
    let entries = host.log().entries();
    entries.iter().filter(|it| it.method == GET_REPO).map(|it| it.at).collect()
}

#[test]
fn a_worker_waits_for_topic_and_broker_and_says_so_and_refuses_what_it_cannot_keep() {
    let Some(scene) = Scene::new(&shape(65, 10, 2), 50, &[]) else { return };
    let waiting = scene.worker("early");
    assert!(waiting.wait_for("there is no topic w.dids yet", PATIENCE), "{}", waiting.stderr());
    assert_eq!(scene.status("early")["group"]["partitions"], Value::Array(Vec::new()));
    scene.enqueue("dids.txt").expect_code(0);
    scene.wait_for(10, &[&waiting]);
    // What came from the topic is put back by the topic.
    let data = scene.job.path("early");
    let retry = ["retry", "--all", "--data-dir", data.to_str().unwrap()];
    let refused = scene.job.skyfill().run(&retry, PATIENCE);
    assert_ne!(refused.code, Some(0));
    assert!(refused.stderr.contains("skyfill enqueue"), "{}", refused.stderr);
    assert!(waiting.signal(Signal::TERM));
    waiting.finish(PATIENCE).expect_code(0);
    let retried = scene.job.skyfill().run(&retry, PATIENCE);
    assert_ne!(retried.code, Some(0));
    // A directory of lists is none of a worker's, nor the other way round.
    let lists = scene.job.path("lists");
    scene.job.run(&lists).expect_code(0);
    let refused = scene.job.skyfill().run(&scene.arguments("lists"), PATIENCE).expect_code(78);
    assert!(refused.stderr.contains("directory"), "{}", refused.stderr);
    let refused = scene.job.run(&data).expect_code(78);
    assert!(refused.stderr.contains("workers"), "{}", refused.stderr);
    scene.assert_whole(1_000);
}
