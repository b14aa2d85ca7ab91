//! `skyfill users` and `skyfill runs`: the metadata of done accounts is that of the summary in every form, and every run leaves
//! its row, however it ended. The real binary and a generated network.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::disallowed_methods
)]

mod support;

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};
use skyfill::clock::Clock;
use skyfill::domain::ledger::LedgerPolicy;
use skyfill::seed::Chance;
use skyfill::store::ledger_rows::Rows;
use support::job::backfill;
use support::network::{Network, Standing};
use support::proc::{Finished, Signal, Skyfill};
use support::world::{Records, Shape};

const PATIENCE: Duration = Duration::from_secs(100);

struct Bench {
    network: Network,
    folder: tempfile::TempDir,
}

impl Bench {
    fn new(seed: u64, accounts: usize) -> Self {
        let shape = Shape { seed, accounts, hosts: 2, records: Records::Fixed(30), odd: true };
        Self { network: Network::generate(&shape), folder: tempfile::tempdir().unwrap() }
    }

    fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    fn arguments(&self, dids: &[String], more: &[&str]) -> Vec<String> {
        let more: Vec<String> = more.iter().map(|text| (*text).to_owned()).collect();
        backfill(&self.data(), ["--dids", &dids.join(",")], &self.network, &more)
    }

    fn look(&self, arguments: &[&str]) -> Finished {
        let data = self.data();
        let all = [arguments, &["--data-dir", data.to_str().unwrap()]].concat();
        skyfill().run(&all, PATIENCE)
    }

    /// The run at `index` as soon as it is there and as it should be.
    fn until(&self, index: usize, is_so: impl Fn(&Value) -> bool) -> Value {
        let begun = std::time::Instant::now();
        loop {
            let runs = self.runs();
            match runs.get(index) {
                Some(run) if is_so(run) => return run.clone(),
                _ => assert!(begun.elapsed() < PATIENCE, "{runs:#?}"),
            }
        }
    }

    fn runs(&self) -> Vec<Value> {
        self.look(&["runs", "--json"]).expect_code(0).json()["runs"].as_array().unwrap().clone()
    }
}

fn skyfill() -> Skyfill {
    Skyfill::new(env!("CARGO_BIN_EXE_skyfill"))
}

/// Rows of a CSV as maps from column to field.
fn csv(text: &str) -> Vec<std::collections::BTreeMap<String, String>> {
    let mut rows = vec![vec![String::new()]];
    let (mut is_quoted, mut characters) = (false, text.chars().peekable());
    while let Some(character) = characters.next() {
        let row = rows.last_mut().unwrap();
        match character {
            '"' if is_quoted && characters.peek() == Some(&'"') => {
                characters.next();
                row.last_mut().unwrap().push('"');
            }
            '"' => is_quoted = !is_quoted,
            ',' if !is_quoted => row.push(String::new()),
            '\n' if !is_quoted => rows.push(vec![String::new()]),
            other => row.last_mut().unwrap().push(other),
        }
    }
    assert!(!is_quoted && rows.pop().unwrap() == [""], "it ends with a line");
    let head = rows.remove(0);
    let named = |row: Vec<String>| {
        assert_eq!(row.len(), head.len());
        head.iter().cloned().zip(row).collect()
    };
    rows.into_iter().map(named).collect()
}

#[test]
fn users_are_those_of_the_summary_in_every_form() {
    let bench = Bench::new(60, 8);
    bench.network.set_standing(3, Standing::TakenDown);
    let dids = bench.network.world().dids();
    let first = skyfill().run(&bench.arguments(&dids[..6], &[]), PATIENCE).expect_code(3).json();
    let users = first["users"].as_array().unwrap().clone();
    assert_eq!(users.len(), 5);
    let told = bench.look(&["users", "--json"]).expect_code(0).json();
    assert_eq!(told["users"], json!(users));
    let lines = bench.look(&["users", "--jsonl"]).expect_code(0).stdout;
    let lines: Vec<Value> = lines.lines().map(|line| line.parse().unwrap()).collect();
    assert_eq!(lines, users);
    let rows = csv(&bench.look(&["users", "--csv"]).expect_code(0).stdout);
    assert_eq!(rows.len(), 5);
    for (row, user) in rows.iter().zip(&users) {
        let user = user.as_object().unwrap();
        assert_eq!(row.len(), user.len());
        for (column, value) in user {
            let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            assert_eq!(row[column], text, "{column}");
        }
        let total: u64 = serde_json::from_str::<Value>(&row["total_records_by_type"])
            .unwrap()
            .as_object()
            .unwrap()
            .values()
            .map(|count| count.as_u64().unwrap())
            .sum();
        assert_eq!(row["total_records"], total.to_string());
    }
    let table = bench.look(&["users"]).expect_code(0).stdout;
    assert_eq!(table.lines().count(), 6);
    for user in &users {
        let line = table.lines().find(|line| line.contains(user["did"].as_str().unwrap())).unwrap();
        for column in ["bluesky_handle", "types", "pds_service_endpoint", "timestamp"] {
            assert!(line.contains(user[column].as_str().unwrap()), "{column}: {line}");
        }
    }
    // Another list: who was done before is still known, and is told apart on demand.
    let second = skyfill().run(&bench.arguments(&dids[6..], &[]), PATIENCE).expect_code(0).json();
    let listed = bench.look(&["users", "--json", "--listed"]).expect_code(0).json();
    assert_eq!(listed["users"], second["users"]);
    let all = bench.look(&["users", "--json"]).expect_code(0).json();
    assert_eq!(all["users"].as_array().unwrap().len(), 7);
    for wrong in [&["users", "--csv", "--json"][..], &["users", "--jsonl", "--json"]] {
        bench.look(wrong).expect_code(2);
    }
    let nowhere = skyfill().run(&["users", "--data-dir", "/nonexistent/x"], PATIENCE);
    assert!(nowhere.expect_code(78).stderr.contains("nothing was ever run"));
}

#[test]
fn every_run_leaves_its_row_however_it_ended() {
    let bench = Bench::new(61, 6);
    let dids = bench.network.world().dids();
    bench.network.set_standing(1, Standing::TakenDown);
    skyfill().run(&bench.arguments(&dids[..2], &[]), PATIENCE).expect_code(3);
    // Nobody answers these in a hurry: about one account in ten seconds.
    let slow = ["--set", "fetch.host_requests_per_second=0.1", "--set", "fetch.host_concurrency=1"];
    let running = skyfill().spawn(&bench.arguments(&dids, &slow));
    let told = bench.until(1, |run| run["given"] == 6);
    assert_eq!((&told["state"], &told["given"]), (&json!("running"), &json!(6)));
    assert_eq!((&told["ended_at"], &told["exit"]), (&Value::Null, &Value::Null));
    assert_eq!(told["pid"], running.pid());
    // The users are read beside it.
    bench.look(&["users", "--json"]).expect_code(0);
    running.kill_and_wait();
    let told = bench.runs();
    assert_eq!((&told[1]["state"], &told[1]["done"]), (&json!("never_ended"), &Value::Null));
    let running = skyfill().spawn(&bench.arguments(&dids, &slow));
    bench.until(2, |run| run["given"] == 6);
    running.signal(Signal::INT);
    running.finish(PATIENCE).expect_code(130);
    skyfill().run(&bench.arguments(&["junk".to_owned()], &[]), PATIENCE).expect_code(3);
    let other = ["--types", "post", "--outside", "drop", "--offsets", "ignore"];
    skyfill().run(&bench.arguments(&dids[..1], &other), PATIENCE).expect_code(78);
    // Neither of these is a run: one writes nothing, the other never got hold of the data directory.
    skyfill().run(&bench.arguments(&dids[..1], &["--dry-run"]), PATIENCE).expect_code(0);
    skyfill().run(&bench.arguments(&dids[..1], &["--set", "nonsense=1"]), PATIENCE).expect_code(78);
    let done = skyfill().run(&bench.arguments(&dids, &[]), PATIENCE).expect_code(3).json();
    let told = bench.runs();
    let seen: Vec<(&str, Option<u64>)> =
        told.iter().map(|run| (run["state"].as_str().unwrap(), run["exit"].as_u64())).collect();
    assert_eq!(
        seen,
        [
            ("ended", Some(3)),
            ("never_ended", None),
            ("ended", Some(130)),
            ("ended", Some(3)),
            ("ended", Some(78)),
            ("ended", Some(3)),
        ]
    );
    let last = told.last().unwrap();
    assert_eq!((&last["given"], &last["done"], &last["parked"]), (&json!(6), &json!(5), &json!(1)));
    assert_eq!(last["this_run"], done["this_run"]);
    assert_eq!(last["records"], done["this_run"]["records"]);
    let (told_seconds, summed) =
        (last["seconds"].as_f64().unwrap(), done["seconds"].as_f64().unwrap());
    assert!((told_seconds - summed).abs() < 1.0, "{told_seconds} {summed}");
    assert_eq!(
        (&last["command"], &last["version"]),
        (&json!("backfill"), &json!(env!("CARGO_PKG_VERSION")))
    );
    assert_eq!(last["filter"]["types"].as_array().unwrap().len(), 6);
    assert_eq!(told[4]["filter"]["outside"], "drop");
    assert_ne!(told[4]["filter"]["hash"], last["filter"]["hash"]);
    let table = bench.look(&["runs", "--limit", "3"]).expect_code(0).stdout;
    assert_eq!(table.lines().count(), 4, "{table}");
    assert!(bench.look(&["runs"]).stdout.contains("never ended"));
}

#[test]
fn a_daemon_s_run_is_told_while_it_goes_on_and_when_it_has_ended() {
    let bench = Bench::new(62, 3);
    let dids = bench.network.world().dids();
    let list = bench.folder.path().join("dids.txt");
    std::fs::write(&list, dids.join("\n")).unwrap();
    let mut arguments = bench.arguments(&dids, &[]);
    let (data, url) = (bench.data(), bench.network.flags()[1].clone());
    arguments.clear();
    arguments.extend(["run", "--data-dir", data.to_str().unwrap()].map(str::to_owned));
    let sets = [
        format!("source.files={}", list.display()),
        format!("identity.plc_url={url}"),
        "identity.requests_per_second=1000".to_owned(),
        "network.allow=127.0.0.0/8".to_owned(),
        "metrics.listen=".to_owned(),
        "limits.disk_free=0B".to_owned(),
    ];
    arguments.extend(sets.into_iter().flat_map(|set| ["--set".to_owned(), set]));
    let daemon = skyfill().spawn(&arguments);
    assert!(daemon.wait_for("3 accounts listed", PATIENCE), "{}", daemon.stderr());
    let begun = std::time::Instant::now();
    while bench.look(&["users", "--jsonl"]).expect_code(0).stdout.lines().count() < 3 {
        assert!(begun.elapsed() < PATIENCE);
    }
    let told = [bench.until(0, |run| run["given"] == 3)];
    assert_eq!(
        (told.len(), &told[0]["state"], &told[0]["command"]),
        (1, &json!("running"), &json!("run"))
    );
    daemon.signal(Signal::TERM);
    daemon.finish(PATIENCE).expect_code(0);
    let told = &bench.runs()[0];
    assert_eq!((&told["state"], &told["exit"]), (&json!("ended"), &json!(0)));
    assert_eq!(
        (&told["given"], &told["done"], &told["this_run"]["done"]),
        (&json!(3), &json!(3), &json!(3))
    );
}

/// Done accounts, however many, are told some at a time.
#[test]
fn many_users_take_no_more_memory_than_few() {
    const ACCOUNTS: usize = 150_000;
    let folder = tempfile::tempdir().unwrap();
    fill(&folder.path().join("state.db"), ACCOUNTS);
    let data = folder.path().to_str().unwrap();
    let few =
        skyfill().run(&["users", "--listed", "--csv", "--data-dir", data], PATIENCE).expect_code(0);
    assert_eq!(few.stdout.lines().count(), 11);
    let many = skyfill().run(&["users", "--csv", "--data-dir", data], PATIENCE).expect_code(0);
    println!("{ACCOUNTS} users in {:.1} s, {} KiB", many.seconds, many.usage.rss_peak_bytes >> 10);
    assert_eq!(many.stdout.lines().count(), ACCOUNTS + 1);
    assert!(
        many.usage.rss_peak_bytes < few.usage.rss_peak_bytes + (8 << 20),
        "{:?} {:?}",
        many.usage,
        few.usage
    );
}

fn fill(path: &Path, accounts: usize) {
    let clock = Clock::fixed(1_727_395_200_000);
    drop(Rows::open(path, LedgerPolicy::default(), clock, Chance::seeded(1)).unwrap());
    let filler = rusqlite::Connection::open(path).unwrap();
    let fill = format!(
        r#"PRAGMA synchronous=OFF; BEGIN;
        WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {accounts})
        INSERT INTO accounts (did, listed, web, state, alone, due_ms, edition, rev, filter, rules, revision, done_at_ms)
        SELECT printf('did:plc:%024d', i), i <= 10, 0, 5, 0, 0, 1, '3k', 'f', NULL,
            '{{"did":"did:plc:x","edition":0,"rev":"3k","commit_cid":"b","repo_bytes":1000,"leaves":12,'
            || '"exported":{{"like":7,"post":3}},"skipped":{{"type":1}},"rejected":{{"schema":1}},"filter":"f"}}', 1
        FROM n;
        COMMIT;"#
    );
    filler.execute_batch(&fill).unwrap();
}
