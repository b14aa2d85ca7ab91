//! Asking again: `skyfill recheck` with its withdraw list, and `skyfill provenance`, against hosts whose accounts change their
//! standing between two runs.
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
use std::path::Path;
use std::time::{Duration, Instant};

use rusqlite::Connection;
use serde_json::{Value, json};
use support::faults::{Fault, Place, Target, Then, Wait};
use support::job::{Job, PATIENCE};
use support::judge::queue_path;
use support::network::Standing;
use support::oracle::{Options, visit};
use support::proc::{Finished, Signal};
use support::world::{Records, Shape};

const BINARY: &str = env!("CARGO_BIN_EXE_skyfill");

fn job(seed: u64, accounts: usize, hosts: usize) -> Job {
    let shape = Shape { seed, accounts, hosts, records: Records::Fixed(30), odd: true };
    Job::new(BINARY, &shape, &[])
}

fn recheck(job: &Job, data: &Path, more: &[&str]) -> Finished {
    let fast = [
        "fetch.host_requests_per_second=1000",
        "identity.requests_per_second=1000",
        "limits.disk_free=0B",
    ];
    let mut all = vec!["recheck", "--data-dir", data.to_str().unwrap(), "--json"];
    all.extend(fast.iter().flat_map(|set| ["--set", set]));
    let flags = job.network.flags();
    all.extend(flags.iter().map(String::as_str));
    all.extend(more);
    job.skyfill().run(&all, PATIENCE)
}

/// The list by DID.
fn listed(path: &Path) -> BTreeMap<String, Value> {
    let text = std::fs::read_to_string(path).unwrap();
    let entries = text.lines().map(|line| line.parse::<Value>().unwrap());
    entries.map(|entry| (entry["did"].as_str().unwrap().to_owned(), entry)).collect()
}

/// Exported records of an account by type, by the oracle.
fn exported(job: &Job, index: usize) -> Value {
    let counts = visit(&job.network.world().account(index), &Options::default(), |_, _| {});
    json!(counts.exported)
}

#[test]
fn the_withdraw_list_says_who_since_when_and_where_it_lies() {
    let job = job(91, 10, 3);
    let (network, world, data) = (&job.network, job.network.world(), job.path("data"));
    job.run(&data).expect_code(0);
    let standings = [
        (1, Standing::Deleted, "deleted"),
        (2, Standing::Deactivated, "deactivated"),
        (3, Standing::TakenDown, "takendown"),
        (4, Standing::Suspended, "suspended"),
        (5, Standing::Tombstoned, "deleted"),
    ];
    standings.iter().for_each(|(index, standing, _)| network.set_standing(*index, *standing));
    // Two have moved: one is well, the other is deactivated where it is now.
    for index in [6, 7] {
        network.move_account(index, (network.now(index).host + 1) % 3);
    }
    network.set_standing(7, Standing::Deactivated);
    // Readers have marked one of its items and taken another.
    let like = Connection::open(queue_path(&data, "like")).unwrap();
    let marked = "UPDATE queue SET status = 'completed' WHERE json_extract(metadata, '$.did') = ?1";
    assert_eq!(like.execute(marked, [world.did(3)]).unwrap(), 1);
    let post = Connection::open(queue_path(&data, "post")).unwrap();
    let taken = "DELETE FROM queue WHERE json_extract(metadata, '$.did') = ?1";
    assert_eq!(post.execute(taken, [world.did(3)]).unwrap(), 1);
    drop((like, post));

    let (out, csv) = (job.path("list.jsonl"), job.path("list.csv"));
    let flags = ["--out", out.to_str().unwrap(), "--csv", csv.to_str().unwrap()];
    let done = recheck(&job, &data, &flags).expect_code(0).json();
    assert_eq!(
        (&done["asked"], &done["unreached"], &done["entries"]),
        (&json!(10), &json!(0), &json!(6)),
        "{done}"
    );
    let wanted =
        json!({"active": 4, "deactivated": 2, "deleted": 2, "suspended": 1, "takendown": 1});
    assert_eq!(done["statuses"], wanted);
    let list = listed(&out);
    assert_eq!(list.len(), 6, "{list:#?}");
    for (index, status) in
        standings.iter().map(|(index, _, status)| (*index, *status)).chain([(7, "deactivated")])
    {
        let entry = &list[world.did(index)];
        assert_eq!(entry["status"], status, "{entry}");
        assert_eq!(
            (&entry["rev"], &entry["records"]),
            (&json!(world.rev(index, 0)), &exported(&job, index))
        );
        let host = network.host_of(index).name();
        assert_eq!(entry["host"], host, "{entry}");
        let took = |label: &str| entry["queues"][label]["records"].clone();
        let records = entry["records"].as_object().unwrap();
        assert!(records.iter().all(|(label, count)| took(label) == *count), "{entry}");
        assert_eq!(entry["journal_segments"], json!([]));
    }
    let read = &list[world.did(3)];
    assert_eq!(
        (&read["queues"]["like"]["items"], &read["queues"]["post"]["gone"]),
        (&json!({"completed": 1}), &json!(1))
    );
    assert_eq!(read["items_with_readers"], 2);
    assert_eq!(list[world.did(2)]["items_with_readers"], 0);
    let rows: Vec<String> =
        std::fs::read_to_string(&csv).unwrap().lines().map(str::to_owned).collect();
    assert_eq!(rows.len(), 7);
    let start = format!("{},takendown,,{}", world.did(3), read["since"].as_str().unwrap());
    assert!(rows.iter().any(|row| row.starts_with(&start)), "{rows:#?}");

    // A second recheck keeps the date; who is back is said to be, and an old list stays where nothing can be written.
    let ledger = Connection::open(data.join("state.db")).unwrap();
    ledger.execute("UPDATE standing SET since_ms = since_ms - 86400000", []).unwrap();
    drop(ledger);
    network.set_standing(3, Standing::Active);
    network.set_standing(4, Standing::Deactivated);
    let again = recheck(&job, &data, &flags).expect_code(0).json();
    assert_eq!((&again["back"], &again["entries"]), (&json!(1), &json!(6)), "{again}");
    let later = listed(&out);
    let since = |list: &BTreeMap<String, Value>, index| {
        list[world.did(index)]["since"].as_str().unwrap().to_owned()
    };
    assert!(since(&later, 1) < since(&list, 1), "the day before, as it was noted");
    let back = &later[world.did(3)];
    assert_eq!(
        [&back["status"], &back["was"], &back["is_withdrawn"]],
        [&json!("active"), &json!("takendown"), &json!(false)]
    );
    assert!(since(&later, 3) >= since(&list, 3));
    assert_eq!(
        (&later[world.did(4)]["status"], &later[world.did(4)]["was"]),
        (&json!("deactivated"), &json!("suspended"))
    );

    // Given accounts only; the list goes to stdout then, and the rest to stderr.
    let given = format!("{},{},did:plc:aaaabbbbccccddddeeeeffff", world.did(0), world.did(1));
    let some = recheck(&job, &data, &["--dids", &given]).expect_code(0);
    let entry: Value = some.stdout.trim().parse().unwrap();
    assert_eq!((&entry["did"], &entry["status"]), (&json!(world.did(1)), &json!("deleted")));
    assert!(
        some.stderr.contains("\"asked\":2") && some.stderr.contains("\"not_exported\":1"),
        "{}",
        some.stderr
    );
    // What is forgotten is asked for no more, and nothing is kept of it.
    let text = data.to_str().unwrap();
    job.skyfill()
        .run(&["forget", "--data-dir", text, "--did", world.did(1)], PATIENCE)
        .expect_code(0);
    let asked = |index: usize| {
        let count = |host: &support::pds::Pds| {
            host.log().count("com.atproto.sync.getRepoStatus", world.did(index))
        };
        network.hosts.iter().map(count).sum::<usize>()
    };
    let before = asked(1);
    let last = recheck(&job, &data, &flags).expect_code(0).json();
    assert_eq!((&last["asked"], asked(1)), (&json!(9), before));
    assert!(!listed(&out).contains_key(world.did(1)));
    job.skyfill().run(&["verify", "--data-dir", text], PATIENCE).expect_code(0);
}

#[test]
fn a_host_that_does_not_answer_is_named_and_nobody_is_called_withdrawn_for_it() {
    let job = job(92, 9, 3);
    let (network, world, data) = (&job.network, job.network.world(), job.path("data"));
    job.run(&data).expect_code(0);
    network.set_standing(0, Standing::TakenDown);
    let out = job.path("list.jsonl");
    let flags = ["--out", out.to_str().unwrap(), "--set", "retry.host_patience=2s"];
    recheck(&job, &data, &flags).expect_code(0);
    let away = network.now(0).host;
    let unavailable = Fault::Status { code: 503, headers: Vec::new(), body: b"away".to_vec() };
    network.faults().script(Place::Status, Target::Host(away), [unavailable], Then::Repeat);
    // Another host refuses once, as it may, and one answers nonsense for one account.
    let others: Vec<usize> = (0..9).filter(|index| network.now(*index).host != away).collect();
    let did = |index: usize| Target::Did(world.did(index).to_owned());
    let unknown = Fault::Status { code: 501, headers: Vec::new(), body: Vec::new() };
    network.faults().script(Place::Status, did(others[2]), [unknown], Then::Heal);
    let refusal = Fault::RateLimited(Wait::Seconds(1));
    network.faults().script(Place::Status, did(others[0]), [refusal], Then::Heal);
    network.faults().script(Place::Status, did(others[1]), [Fault::HtmlOk], Then::Repeat);
    let flags = ["--out", out.to_str().unwrap(), "--set", "retry.host_patience=20s"];
    let done = recheck(&job, &data, &flags).expect_code(3).json();
    network.faults().assert_fired(&["status", "rate_limited_seconds", "html_ok"]);
    let asked = |method: &str| network.host_of(others[2]).log().count(method, world.did(others[2]));
    assert_eq!(asked("com.atproto.sync.getLatestCommit"), 1, "where getRepoStatus is not known");
    let there = 9 - others.len();
    assert_eq!(
        (&done["asked"], &done["unreached"]),
        (&json!(others.len() - 1), &json!(there + 1)),
        "{done}"
    );
    assert_eq!(done["statuses"], json!({"active": others.len() - 1}));
    let host = &done["hosts"][network.hosts[away].name()];
    assert_eq!(host, &json!({"accounts": there, "last_error": "http_5xx"}));
    // What was known before stays on the list, with its date.
    let list = listed(&out);
    assert_eq!((list.len(), &list[world.did(0)]["status"]), (1, &json!("takendown")));
}

#[test]
fn a_daemon_asks_by_its_own_turns_and_notes_it_in_its_own_ledger() {
    let job = job(93, 6, 2);
    let (network, world, data) = (&job.network, job.network.world(), job.path("data"));
    let flags = network.flags();
    let text = format!(
        "data_dir = \"{}\"\nsource.files = [\"{}\"]\nidentity.plc_url = \"{}\"\nidentity.requests_per_second = 1000\n\
         network.allow = [\"127.0.0.0/8\"]\nfetch.host_requests_per_second = 1000\nlimits.disk_free = \"0B\"\n\
         metrics.listen = \"\"\n",
        data.display(),
        job.path("dids.txt").display(),
        flags[1]
    );
    let config = job.path("skyfill.toml");
    std::fs::write(&config, text).unwrap();
    let daemon = job.skyfill().spawn(&["run", "--config", config.to_str().unwrap()]);
    assert!(daemon.wait_for("working: ", PATIENCE), "{}", daemon.stderr());
    let begun = Instant::now();
    let done = || {
        let status = ["status", "--data-dir", data.to_str().unwrap(), "--json"];
        job.skyfill().run(&status, PATIENCE).expect_code(0).json()["accounts"]["done"] == 6
    };
    while !done() {
        assert!(begun.elapsed() < PATIENCE);
    }
    network.set_standing(2, Standing::Deactivated);
    network.move_account(3, 1 - network.now(3).host);
    let out = job.path("list.jsonl");
    let all =
        ["recheck", "--config", config.to_str().unwrap(), "--json", "--out", out.to_str().unwrap()];
    let told = job.skyfill().run(&all, PATIENCE).expect_code(0).json();
    assert_eq!(
        (&told["asked"], &told["statuses"]),
        (&json!(6), &json!({"active": 5, "deactivated": 1})),
        "{told}"
    );
    assert_eq!(listed(&out)[world.did(2)]["status"], "deactivated");
    let list = job.path("some.txt");
    std::fs::write(&list, format!("{}\n{}\n", world.did(2), world.did(4))).unwrap();
    let some = [&all[..], &["--dids-file", list.to_str().unwrap()]].concat();
    let told = job.skyfill().run(&some, PATIENCE).expect_code(0).json();
    assert_eq!(told["asked"], 2, "{told}");
    daemon.signal(Signal::TERM);
    daemon.finish(Duration::from_secs(30)).expect_code(0);
}

#[test]
fn it_keeps_to_the_pace_and_an_interruption_keeps_what_was_noted() {
    let job = job(95, 12, 1);
    let (network, world, data) = (&job.network, job.network.world(), job.path("data"));
    job.run(&data).expect_code(0);
    network.set_standing(3, Standing::TakenDown);
    let out = job.path("list.jsonl");
    let slow = ["--out", out.to_str().unwrap(), "--set", "fetch.host_requests_per_second=10"];
    let paced = recheck(&job, &data, &slow).expect_code(0);
    assert!(paced.seconds >= 1.1, "12 requests at 10 a second: {} s", paced.seconds);
    let before = std::fs::read_to_string(&out).unwrap();
    network.set_standing(4, Standing::TakenDown);
    let hang = [Fault::SlowHeaders(Duration::from_secs(20))];
    network.faults().script(
        Place::Status,
        Target::Did(world.did(11).to_owned()),
        hang,
        Then::Repeat,
    );
    let mut all =
        vec!["recheck", "--data-dir", data.to_str().unwrap(), "--out", out.to_str().unwrap()];
    let flags = network.flags();
    all.extend(flags.iter().map(String::as_str));
    all.extend(["--set", "fetch.host_requests_per_second=1000"]);
    let running = job.skyfill().spawn(&all);
    let begun = Instant::now();
    while network.faults().fired("slow_headers") == 0 {
        assert!(begun.elapsed() < PATIENCE);
    }
    running.signal(Signal::TERM);
    running.finish(PATIENCE).expect_code(130);
    // No list was written, the old one is whole; the data directory is closed well and the next recheck goes on.
    assert_eq!(std::fs::read_to_string(&out).unwrap(), before);
    network.faults().script(
        Place::Status,
        Target::Did(world.did(11).to_owned()),
        [Fault::HtmlOk],
        Then::Heal,
    );
    recheck(&job, &data, &["--out", out.to_str().unwrap()]).expect_code(0);
    assert_eq!(listed(&out).len(), 2);
}

#[test]
fn provenance_names_what_was_proven_and_by_which_key() {
    let job = job(94, 6, 2);
    let (network, world, data) = (&job.network, job.network.world(), job.path("data"));
    network.set_standing(5, Standing::Deactivated);
    let summary = job.run(&data).expect_code(3).json();
    let out = job.path("provenance.jsonl");
    let text = data.to_str().unwrap();
    let flags = ["provenance", "--data-dir", text, "--out", out.to_str().unwrap()];
    job.skyfill().run(&flags, PATIENCE).expect_code(0);
    let lines = listed(&out);
    assert_eq!(lines.len(), 5);
    for index in 0..5 {
        let (line, account) = (&lines[world.did(index)], world.account(index));
        assert_eq!(
            (&line["rev"], &line["commit_cid"]),
            (&json!(account.rev), &json!(account.commit_cid()))
        );
        assert_eq!(
            (&line["verified"], &line["signed_by"]),
            (&json!(true), &json!(account.key.did_key()))
        );
        assert_eq!(
            (&line["records"], &line["repo_bytes"]),
            (&exported(&job, index), &json!(network.car_bytes(index)))
        );
        assert_eq!(line["pds_service_endpoint"], network.host_of(index).url());
        assert_eq!(line["skyfill"], env!("CARGO_PKG_VERSION"));
        assert_eq!(line["filter"].as_str().unwrap().len(), 32);
        let user =
            summary["users"].as_array().unwrap().iter().find(|user| user["did"] == account.did);
        let ended = summary["timestamp"].as_str().unwrap();
        assert!(
            line["fetched_at"].as_str().unwrap() <= ended
                && user.unwrap()["timestamp"] == line["exported_at"]
        );
    }
    let streamed = job.skyfill().run(&flags[..3], PATIENCE).expect_code(0).stdout;
    assert_eq!(streamed, std::fs::read_to_string(&out).unwrap());
    job.skyfill()
        .run(&["forget", "--data-dir", text, "--did", world.did(0)], PATIENCE)
        .expect_code(0);
    let streamed = job.skyfill().run(&flags[..3], PATIENCE).expect_code(0).stdout;
    assert_eq!(streamed.lines().count(), 4);
    job.skyfill().run(&["provenance", "--data-dir", "/nowhere"], PATIENCE).expect_code(78);
}
