//! Taking accounts back: `skyfill forget` with a daemon and without, killed on its way, and what lies where afterwards.
//!
//! Everything is looked at from outside: the judge demands exactly the rows of the accounts that are left, and the bytes of every
//! file below the data directory are searched for those that are gone.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::disallowed_methods
)]

mod support;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rusqlite::Connection;
use serde_json::{Value, json};
use support::faults::{Fault, Place, Target, Then};
use support::job::{Job, PATIENCE, backfill};
use support::judge::{judge, queue_path};
use support::network::Standing;
use support::oracle::Options;
use support::proc::{Finished, Running, Signal};
use support::world::{Records, Shape};

const BINARY: &str = env!("CARGO_BIN_EXE_skyfill");

fn job(seed: u64, accounts: usize) -> Job {
    let shape = Shape { seed, accounts, hosts: 2, records: Records::Fixed(60), odd: true };
    Job::new(BINARY, &shape, &[])
}

fn command(job: &Job, data: &Path, arguments: &[&str]) -> Finished {
    let all = [&arguments[..1], &["--data-dir", data.to_str().unwrap()], &arguments[1..]].concat();
    job.skyfill().run(&all, PATIENCE)
}

/// Files below `folder` whose bytes hold `text`.
fn holders(folder: &Path, text: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(holders(&path, text));
        } else if let Ok(bytes) = std::fs::read(&path)
            && bytes.windows(text.len()).any(|window| window == text.as_bytes())
        {
            found.push(path);
        }
    }
    found
}

/// What the queues hold is exactly the rows of the accounts but `forgotten`, and `verify` agrees.
fn assert_only_others(job: &Job, data: &Path, forgotten: &[usize]) {
    command(job, data, &["verify"]).expect_code(0);
    let world = job.network.world();
    let others = job.network.active().into_iter().filter(|index| !forgotten.contains(index));
    let others = others.map(|index| world.account_at(index, job.network.now(index).revision));
    judge(data, others, &Options::default()).assert_clean();
}

/// Nothing below the data directory holds anything of the account but the ledger its DID.
fn assert_gone(job: &Job, data: &Path, index: usize) {
    let world = job.network.world();
    assert_eq!(holders(data, world.did(index)), [data.join("state.db")]);
    let account = world.account_at(index, 0);
    for text in [&account.handle, &account.rev, &account.commit_cid()] {
        assert_eq!(holders(data, text), Vec::<PathBuf>::new(), "{text}");
    }
}

fn accounts_of(finished: &Finished) -> Vec<Value> {
    finished.json()["accounts"].as_array().unwrap().clone()
}

#[test]
fn a_forgotten_account_is_gone_from_every_file_and_never_comes_back() {
    let job = job(81, 8);
    let (world, data) = (job.network.world(), job.path("data"));
    job.network.set_standing(7, Standing::Deactivated);
    job.run(&data).expect_code(3);
    // Readers have worked meanwhile: some items are marked, some are taken away.
    let (gone, parked, never) = (world.did(2), world.did(7), "did:plc:aaaabbbbccccddddeeeeffff");
    let like = Connection::open(queue_path(&data, "like")).unwrap();
    let marked = "UPDATE queue SET status = 'completed' WHERE json_extract(metadata, '$.did') = ?1";
    assert_eq!(like.execute(marked, [gone]).unwrap(), 1);
    let post = Connection::open(queue_path(&data, "post")).unwrap();
    let taken = "DELETE FROM queue WHERE json_extract(metadata, '$.did') = ?1";
    assert_eq!(post.execute(taken, [gone]).unwrap(), 1);
    drop((like, post));
    let told =
        command(&job, &data, &["forget", "--did", gone, "--did", parked, "--did", never, "--json"]);
    let told = told.expect_code(0).json();
    assert_eq!((&told["forgotten"], &told["already_forgotten"]), (&json!(3), &json!(0)), "{told}");
    assert_eq!(told["left"], json!([]), "{told}");
    let accounts = told["accounts"].as_array().unwrap();
    let was: Vec<&Value> = accounts.iter().map(|account| &account["was"]).collect();
    assert_eq!(was, [&json!("done"), &json!("parked"), &Value::Null]);
    assert_eq!(accounts[0]["rev"], world.rev(2, 0));
    assert_eq!(accounts[0]["deleted"]["like"]["items"], json!({"completed": 1}));
    assert_eq!(
        (&accounts[0]["deleted"]["post"]["gone"], &accounts[0]["deleted"]["post"]["items"]),
        (&json!(1), &json!({}))
    );
    let exported = accounts[0]["exported"].as_object().unwrap();
    let deleted = |label: &str| accounts[0]["deleted"][label]["records"].as_u64();
    assert!(exported.iter().all(|(label, count)| deleted(label) == count.as_u64()), "{told}");
    assert_only_others(&job, &data, &[2]);
    assert_gone(&job, &data, 2);
    assert_eq!(holders(&data, &world.handle(7)), Vec::<PathBuf>::new());

    // Listed again, given by name, put back, exported under another filter: it stays forgotten, and nobody asks for it.
    let requests =
        |did: &str| (job.network.repo_requests(did), job.network.plc.log().count("", did));
    let asked = (requests(gone), requests(parked));
    let again = job.run(&data).expect_code(0).json();
    assert_eq!(again["accounts"], json!({"done": 6, "parked": 0, "forgotten": 2}), "{again}");
    let mut names = again["forgotten"].as_array().unwrap().clone();
    names.sort_by_key(Value::to_string);
    let mut wanted = [json!(gone), json!(parked)];
    wanted.sort_by_key(Value::to_string);
    assert_eq!((names, &again["status_code"]), (wanted.to_vec(), &json!(200)));
    let given = backfill(&data, ["--dids", &format!("{gone},{never}")], &job.network, &[]);
    let alone = job.skyfill().run(&given, PATIENCE).expect_code(0).json();
    assert_eq!(alone["accounts"], json!({"done": 0, "parked": 0, "forgotten": 2}), "{alone}");
    for flags in [["retry", "--all"].as_slice(), &["retry", "--did", gone]] {
        let retried = command(&job, &data, &[flags, &["--json"]].concat()).expect_code(0).json();
        assert_eq!(retried["retried"], 0);
    }
    let mut other = job.arguments(&data);
    other.extend(["--refilter", "--outside", "keep"].map(str::to_owned));
    let refiltered = job.skyfill().run(&other, PATIENCE).expect_code(0).json();
    assert_eq!(refiltered["this_run"]["done"], 6, "{refiltered}");
    assert_eq!((requests(gone), requests(parked)), asked);
    assert_gone(&job, &data, 2);
    let status = command(&job, &data, &["status", gone, "--json"]).expect_code(0).json();
    let told =
        ["state", "host", "handle", "rev", "records", "done_at", "reason"].map(|key| &status[key]);
    let null = Value::Null;
    assert_eq!(told, [&json!("forgotten"), &null, &null, &null, &null, &null, &null]);
    let whole = command(&job, &data, &["status", "--json"]).expect_code(0).json();
    assert_eq!(whole["accounts"]["forgotten"], 2, "{whole}");
    command(&job, &data, &["verify"]).expect_code(0);
    let twice = command(&job, &data, &["forget", "--did", gone]).expect_code(0).stdout;
    assert!(twice.contains("0 accounts forgotten, 1 were before"), "{twice}");
}

#[test]
fn a_list_goes_through_and_what_is_malformed_is_named() {
    let job = job(82, 4);
    let data = job.path("data");
    job.run(&data).expect_code(0);
    let list = job.path("forget.txt");
    let dids = job.network.world().dids();
    std::fs::write(&list, format!("{}\n# no more\nnonsense\n{}\n", dids[0], dids[3])).unwrap();
    let told = command(&job, &data, &["forget", "--file", list.to_str().unwrap(), "--json"]);
    let told = told.expect_code(3);
    assert_eq!(accounts_of(&told).len(), 2);
    let malformed = told.json()["malformed"][0].as_str().unwrap().to_owned();
    assert!(malformed.contains("forget.txt:3") && malformed.contains("nonsense"), "{malformed}");
    assert_only_others(&job, &data, &[0, 3]);
    assert_gone(&job, &data, 0);
    command(&job, &data, &["forget"]).expect_code(2);
    std::fs::write(&list, "# nobody\n").unwrap();
    command(&job, &data, &["forget", "--file", list.to_str().unwrap()]).expect_code(2);
}

#[test]
fn a_crash_anywhere_on_the_way_is_gone_on_with_at_the_next_start() {
    if cfg!(not(debug_assertions)) {
        println!("release builds have no crash points");
        return;
    }
    let job = job(83, 5);
    let points = [
        "ForgetIntendedBeforeQueues:1",
        "ForgetItemsDeletedInPart:1",
        "ForgetItemsDeletedInPart:4",
        "ForgetQueueDoneBeforeOthers:1",
        "ForgetQueueDoneBeforeOthers:5",
        "ForgetQueuesDoneBeforeLedger:1",
        "LedgerCommitted:2",
        "SettledBeforeForget:1",
    ];
    for point in points {
        let data = job.path(&point.replace(':', "-"));
        job.run(&data).expect_code(0);
        let text = data.to_str().unwrap();
        let order = ["forget", "--data-dir", text, "--did", job.network.world().did(1)];
        let crashed = job.skyfill().env("SKYFILL_CRASH_AT", point).run(&order, PATIENCE);
        assert_eq!(crashed.signal, Some(6), "{point} never fired: {crashed:#?}");
        // Either the order was not begun, and is given again, or any start finishes it.
        let told = if point == "LedgerCommitted:2" {
            job.skyfill().run(&order, PATIENCE).expect_code(0)
        } else {
            job.run(&data).expect_code(0)
        };
        assert_only_others(&job, &data, &[1]);
        assert_gone(&job, &data, 1);
        drop(told);
    }
}

#[test]
fn what_is_sealed_and_in_no_queue_yet_never_gets_there_and_its_segment_is_wiped() {
    if cfg!(not(debug_assertions)) {
        println!("release builds have no crash points");
        return;
    }
    let job = job(84, 5);
    for point in ["SegmentSealedBeforeApply:1", "QueueCommitted:2", "SegmentAppliedBeforeSettle:1"]
    {
        let data = job.path(&point.replace(':', "-"));
        let crashed =
            job.skyfill().env("SKYFILL_CRASH_AT", point).run(&job.arguments(&data), PATIENCE);
        assert_eq!(crashed.signal, Some(6), "{point} never fired: {crashed:#?}");
        let segments = |data: &Path| {
            let names = std::fs::read_dir(data.join("journal")).unwrap();
            names.filter(|it| it.as_ref().unwrap().path().extension().unwrap() == "seg").count()
        };
        assert_eq!(segments(&data), 1, "{point}");
        let sealed = std::fs::read(data.join("journal/00000001.seg")).unwrap();
        let is_in = |did: &String| sealed.windows(did.len()).any(|it| it == did.as_bytes());
        let world = job.network.world();
        let gone = world.dids().iter().position(is_in).expect("an account is sealed");
        let told =
            command(&job, &data, &["forget", "--did", world.did(gone), "--json"]).expect_code(0);
        assert_eq!(told.json()["left"], json!([]));
        assert_eq!(segments(&data), 0, "{point}");
        assert_gone(&job, &data, gone);
        job.run(&data).expect_code(0);
        assert_only_others(&job, &data, &[gone]);
        assert_gone(&job, &data, gone);
    }
}

/// A daemon over the job's list.
fn daemon(job: &Job, data: &Path, environment: Option<(&str, &str)>) -> Running {
    let list = job.path("dids.txt");
    let flags = job.network.flags();
    let text = format!(
        "data_dir = \"{}\"\nsource.files = [\"{}\"]\nidentity.plc_url = \"{}\"\nidentity.requests_per_second = 1000\n\
         network.allow = [\"127.0.0.0/8\"]\nfetch.host_requests_per_second = 1000\nlimits.disk_free = \"0B\"\n\
         metrics.listen = \"127.0.0.1:0\"\n",
        data.display(),
        list.display(),
        flags[1]
    );
    let config = job.path("skyfill.toml");
    std::fs::write(&config, text).unwrap();
    let skyfill = job.skyfill();
    let skyfill = environment.into_iter().fold(skyfill, |it, (name, value)| it.env(name, value));
    let daemon = skyfill.spawn(&["run", "--config", config.to_str().unwrap()]);
    assert!(daemon.wait_for("working: ", PATIENCE), "{}", daemon.stderr());
    daemon
}

fn until(job: &Job, data: &Path, is_so: impl Fn(&Value) -> bool) -> Value {
    let begun = Instant::now();
    loop {
        let status = command(job, data, &["status", "--json"]).expect_code(0).json();
        if is_so(&status) {
            return status;
        }
        assert!(begun.elapsed() < PATIENCE, "{status}");
    }
}

/// What the daemon tells Prometheus.
fn figures(daemon: &Running) -> String {
    let log = daemon.stderr();
    let (_, behind) = log.split_once("serving metrics listen=").unwrap();
    let address = behind.split_whitespace().next().unwrap();
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(b"GET /metrics HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

fn count(status: &Value, state: &str) -> u64 {
    status["accounts"][state].as_u64().unwrap_or(0)
}

#[test]
fn a_daemon_forgets_what_is_done_what_waits_and_what_is_in_flight() {
    let job = job(85, 6);
    let (world, data) = (job.network.world(), job.path("data"));
    // One account's host takes its time, and one fails again and again.
    let slow = Fault::SlowHeaders(Duration::from_secs(6));
    let faults = job.network.faults();
    faults.script(Place::Repo, Target::Did(world.did(0).to_owned()), [slow], Then::Heal);
    let html = [Fault::HtmlOk];
    faults.script(Place::Repo, Target::Did(world.did(1).to_owned()), html, Then::Repeat);
    let daemon = daemon(&job, &data, None);
    until(&job, &data, |status| count(status, "done") == 4);
    assert_eq!(job.network.repo_requests(world.did(0)), 1, "it is in flight");
    let order =
        ["forget", "--did", world.did(0), "--did", world.did(1), "--did", world.did(2), "--json"];
    let told = command(&job, &data, &order).expect_code(0);
    let was: Vec<Value> = accounts_of(&told).iter().map(|it| it["was"].clone()).collect();
    assert_eq!(was, [json!("active"), json!("retrying"), json!("done")]);
    let status = until(&job, &data, |status| count(status, "active") == 0);
    assert_eq!((count(&status, "forgotten"), count(&status, "done")), (3, 3), "{status}");
    assert_eq!(status["phase"], "idle");
    let figures = figures(&daemon);
    let has = |line: &str| figures.lines().any(|it| it == line);
    assert!(
        has("skyfill_accounts{state=\"forgotten\"} 3") && has("skyfill_accounts{state=\"done\"} 3"),
        "{figures}"
    );
    // The transfer that was in flight ends, and nothing comes of it.
    let begun = Instant::now();
    while job.network.faults().fired("slow_headers") == 0 || job.network.open_transfers() > 0 {
        assert!(begun.elapsed() < PATIENCE);
    }
    let config = job.path("skyfill.toml");
    let reload = daemon.signal(Signal::HUP);
    assert!(
        reload && daemon.wait_for("reloaded: 6 accounts listed", PATIENCE),
        "{}",
        daemon.stderr()
    );
    let retried = job
        .skyfill()
        .run(&["retry", "--config", config.to_str().unwrap(), "--all", "--json"], PATIENCE);
    assert_eq!(retried.expect_code(0).json()["retried"], 0);
    daemon.signal(Signal::TERM);
    daemon.finish(PATIENCE).expect_code(0);
    for index in [0, 1, 2] {
        assert_gone(&job, &data, index);
    }
    assert_only_others(&job, &data, &[0, 1, 2]);
    job.network.faults().assert_fired(&["slow_headers", "html_ok"]);
}

#[test]
fn a_daemon_that_is_killed_while_it_forgets_goes_on_when_it_is_started_again() {
    if cfg!(not(debug_assertions)) {
        println!("release builds have no crash points");
        return;
    }
    let job = job(86, 5);
    for point in ["ForgetIntendedBeforeQueues:1", "ForgetQueueDoneBeforeOthers:3"] {
        let data = job.path(&point.replace(':', "-"));
        let running = daemon(&job, &data, Some(("SKYFILL_HANG_AT", point)));
        until(&job, &data, |status| count(status, "done") == 5);
        let text = data.to_str().unwrap();
        let order = ["forget", "--data-dir", text, "--did", job.network.world().did(3)];
        let asking = job.skyfill().spawn(&order);
        assert!(running.wait_for("hangs here", PATIENCE), "{}", running.stderr());
        running.kill_and_wait();
        asking.finish(PATIENCE).expect_code(69);
        let running = daemon(&job, &data, None);
        assert!(running.stderr().contains("forgetting was gone on with"), "{}", running.stderr());
        let status = until(&job, &data, |status| count(status, "queued") == 0);
        assert_eq!((count(&status, "forgotten"), count(&status, "done")), (1, 4), "{status}");
        running.signal(Signal::TERM);
        running.finish(PATIENCE).expect_code(0);
        assert_gone(&job, &data, 3);
        assert_only_others(&job, &data, &[3]);
    }
}

#[test]
fn a_queue_that_a_reader_holds_is_named_and_done_later() {
    let job = job(87, 3);
    let data = job.path("data");
    let running = daemon(&job, &data, None);
    until(&job, &data, |status| count(status, "done") == 3);
    until(&job, &data, |_| std::fs::read_dir(data.join("journal")).unwrap().next().is_none());
    let reader = Connection::open(queue_path(&data, "follow")).unwrap();
    reader.busy_timeout(PATIENCE).unwrap();
    reader.execute_batch("BEGIN IMMEDIATE").unwrap();
    let order = ["forget", "--did", job.network.world().did(0), "--json"];
    let told = command(&job, &data, &order).expect_code(3).json();
    let left = told["left"].to_string();
    assert!(told["unfinished"] == true && left.contains("_follow.db"), "{told}");
    reader.execute_batch("ROLLBACK").unwrap();
    drop(reader);
    let told = command(&job, &data, &order).expect_code(0).json();
    assert_eq!((&told["already_forgotten"], &told["left"]), (&json!(1), &json!([])));
    running.signal(Signal::TERM);
    running.finish(PATIENCE).expect_code(0);
    assert_only_others(&job, &data, &[0]);
    assert_gone(&job, &data, 0);
}

/// Orders and kills at random moments of a daemon at work: an order that was given and finished holds, whatever happened.
#[test]
fn orders_at_random_moments_under_kills_hold_and_cost_nobody_else_a_row() {
    let job = job(88, 16);
    for host in &job.network.hosts {
        let manners = support::pds::Manners {
            chunk_bytes: 4 << 10,
            bytes_per_second: Some(100_000),
            ..support::pds::Manners::default()
        };
        host.set_manners(manners);
    }
    let seed = support::job::number_from("SKYFILL_SEED", 7);
    let (mut kills, mut orders) = (0, 0);
    for directory in 0..3 {
        let mut rng = fastrand::Rng::with_seed(seed * 1_000 + directory);
        let data = job.path(&format!("random-{directory}"));
        let mut forgotten = std::collections::BTreeSet::new();
        let order = |index: usize| {
            let did = job.network.world().did(index).to_owned();
            ["forget", "--data-dir", data.to_str().unwrap(), "--did", &did].map(str::to_owned)
        };
        for _ in 0..3 {
            let running = daemon(&job, &data, None);
            let index = rng.usize(..16);
            forgotten.insert(index);
            // Any moment, from long before anything is there to long after everything is.
            let before = running.wait(Duration::from_millis(rng.u64(..600)));
            assert!(before.is_none(), "{before:#?}");
            let asking = job.skyfill().spawn(&order(index));
            let between = running.wait(Duration::from_millis(rng.u64(..400)));
            assert!(between.is_none(), "{between:#?}");
            kills += u64::from(running.kill_and_wait().signal == Some(9));
            // Done before the kill, cut off by it, or done by itself once the daemon was gone.
            let asked = asking.finish(PATIENCE);
            orders += u64::from(asked.code == Some(0));
            assert!(matches!(asked.code, Some(0 | 3 | 69 | 75)), "SKYFILL_SEED={seed}: {asked:#?}");
        }
        let all: Vec<usize> = forgotten.iter().copied().collect();
        for index in &all {
            job.skyfill().run(&order(*index), PATIENCE).expect_code(0);
        }
        let done = job.run(&data).expect_code(0).json();
        assert_eq!(done["accounts"]["forgotten"], all.len(), "SKYFILL_SEED={seed}: {done}");
        assert_only_others(&job, &data, &all);
        all.iter().for_each(|index| assert_gone(&job, &data, *index));
    }
    assert!(kills == 9, "{kills}");
    println!(
        "{kills} kills, {orders} orders that were answered well before or after them; seed {seed}"
    );
}
