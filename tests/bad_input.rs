//! Bad input of every kind through the real binary: each thing ends with its name, its sentence and its exit code, and what is
//! good beside it is done.
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
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use base64::Engine as _;
use serde_json::{Value, json};
use support::faults::{At, Fault, Place, Target, Then};
use support::forge::{self, CarOptions};
use support::judge::{judge, queue_path, queue_records};
use support::network::Network;
use support::oracle::{Offsets, Options, Outside};
use support::proc::{Finished, Running, Signal, Skyfill};
use support::world::{Records, Shape};

const PATIENCE: Duration = Duration::from_secs(100);

fn skyfill() -> Skyfill {
    Skyfill::new(env!("CARGO_BIN_EXE_skyfill"))
}

/// A small network and a folder for data directories and lists.
struct Bench {
    network: Network,
    folder: tempfile::TempDir,
}

impl Bench {
    fn new(seed: u64, accounts: usize, records: usize) -> Self {
        Self::with(&Shape {
            seed,
            accounts,
            hosts: 2,
            records: Records::Fixed(records),
            odd: false,
        })
    }

    fn with(shape: &Shape) -> Self {
        Self { network: Network::generate(shape), folder: tempfile::tempdir().unwrap() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn data(&self) -> PathBuf {
        self.path("data")
    }

    fn did(&self, index: usize) -> &str {
        self.network.world().did(index)
    }

    fn dids(&self) -> String {
        self.network.world().dids().join(",")
    }

    fn write(&self, name: &str, content: impl AsRef<[u8]>) -> String {
        let path = self.path(name);
        std::fs::write(&path, content).unwrap();
        path.to_str().unwrap().to_owned()
    }

    /// Arguments of a run over `data`; `more` names the accounts.
    fn arguments(&self, data: &Path, more: &[&str]) -> Vec<String> {
        let fixed = [
            "backfill",
            "--json",
            "--quiet",
            "--set",
            "fetch.host_requests_per_second=1000",
            "--set",
            "identity.requests_per_second=1000",
            "--set",
            "limits.disk_free=0B",
            "--set",
            "retry.base=10ms",
            "--set",
            "retry.attempts=3",
            "--data-dir",
            data.to_str().unwrap(),
        ];
        let fixed = fixed.into_iter().map(str::to_owned).chain(self.network.flags());
        fixed.chain(more.iter().map(|text| (*text).to_owned())).collect()
    }

    fn start(&self, more: &[&str]) -> Running {
        skyfill().spawn(&self.arguments(&self.data(), more))
    }

    /// A run over the usual data directory and the accounts that `more` names.
    fn run(&self, more: &[&str]) -> Finished {
        self.start(more).finish(PATIENCE)
    }

    fn run_all(&self, more: &[&str]) -> Finished {
        let dids = self.dids();
        self.run(&[&["--dids", dids.as_str()], more].concat())
    }

    /// Another command over the usual data directory.
    fn command(&self, arguments: &[&str]) -> Finished {
        let data = self.data();
        let arguments = [arguments, &["--data-dir", data.to_str().unwrap()]].concat();
        skyfill().run(&arguments, PATIENCE)
    }

    /// All rows of all active accounts are there, once, and `verify` agrees.
    fn assert_whole(&self, options: &Options) {
        self.command(&["verify"]).expect_code(0);
        judge(&self.data(), self.network.expected(), options).assert_clean();
    }

    fn assert_all_but(&self, dids: &[&str]) {
        let others =
            self.network.expected().filter(|account| !dids.contains(&account.did.as_str()));
        judge(&self.data(), others, &Options::default()).assert_clean();
    }
}

/// Fails unless `finished` ended with `code` and one line on stderr has all of `words`; stdout is empty.
fn assert_refused(finished: &Finished, code: i32, words: &[&str]) {
    let said = finished.stderr.lines().any(|line| words.iter().all(|word| line.contains(word)));
    assert!(finished.code == Some(code) && said, "wanted {code} and {words:?}: {finished:#?}");
    assert!(finished.stdout.is_empty(), "{finished:#?}");
}

/// Entry of `did` among the parked ones of a summary.
fn parked<'s>(summary: &'s Value, did: &str) -> &'s Value {
    let entries = summary["parked"].as_array().unwrap();
    entries.iter().find(|entry| entry["did"] == did).unwrap_or(&Value::Null)
}

/// Waits until `is_so`, while the process runs.
fn wait_until(running: &Running, what: &str, is_so: impl Fn() -> bool) {
    let begun = Instant::now();
    while !is_so() {
        assert!(begun.elapsed() < PATIENCE, "{what} never came: {}", running.stderr());
        let ended = running.wait(Duration::from_millis(10));
        assert!(ended.is_none(), "ended before {what}: {ended:#?}");
    }
}

#[test]
fn malformed_dids_are_parked_under_their_cleaned_text_and_stop_nobody() {
    let bench = Bench::new(41, 4, 10);
    let upper = format!("did:plc:{}", bench.did(0)[8..].to_uppercase());
    let long = format!("did:plc:{}", "a".repeat(2_048));
    let lines = [
        bench.did(0),
        "did:plc:abc\u{1b}[31mred",
        &upper,
        bench.did(1),
        &long,
        "not a did",
        "did:web:..",
        bench.did(2),
        bench.did(0),
        "did:key:zQ3sh",
        "\u{202e}did:plc:mirrored",
        bench.did(3),
    ];
    let list = bench.write("dids.txt", lines.join("\n"));
    let finished = bench.run(&["--dids-file", &list]).expect_code(3);
    let summary = finished.json();
    let entries = summary["parked"].as_array().unwrap();
    assert_eq!((summary["accounts"]["done"].as_u64(), entries.len()), (Some(4), 7), "{summary}");
    for entry in entries {
        let (did, detail) = (entry["did"].as_str().unwrap(), entry["detail"].as_str().unwrap());
        assert_eq!(entry["reason"], "did_invalid");
        assert!(did.chars().count() <= 200 && !did.chars().any(char::is_control), "{entry}");
        assert!(detail.contains("dids.txt") && detail.contains(char::is_numeric), "{entry}");
    }
    assert!(!parked(&summary, &upper).is_null(), "case is kept: {summary}");
    assert!(!parked(&summary, "did:plc:abc\\u{1b}[31mred").is_null(), "{summary}");
    assert!(!finished.stderr.contains('\u{1b}') && !finished.stderr.contains('\u{0}'));
    bench.assert_whole(&Options::default());
    // The operator can put everything back but what never was a DID.
    let retried = bench.command(&["retry", "--all", "--json"]).expect_code(0).json();
    assert_eq!(retried["retried"], 0);
}

#[test]
fn lists_that_are_none_are_refused_and_change_nothing() {
    let bench = Bench::new(42, 2, 5);
    let all = bench.dids();
    bench.run_all(&[]).expect_code(0);
    let (empty, blank) = (bench.write("empty", ""), bench.write("blank", "# nobody\n\n  \n"));
    let latin = bench.write("latin", [b"did:plc:abc\n".as_slice(), b"did:plc:\xe9\n"].concat());
    let folder = bench.folder.path().to_str().unwrap().to_owned();
    let text = bench.write("queue.db", "no database");
    let nul = bench.write("nul", [b"did:plc:abc\n".as_slice(), b"did:plc:\0\n"].concat());
    // 2 GB without a line break, on hardly any disk: given up where it begins.
    let sparse = bench.write("sparse", "");
    std::fs::File::options().write(true).open(&sparse).unwrap().set_len(2 << 30).unwrap();
    let cases: [(&[&str], i32, &[&str]); 15] = [
        (&["--dids-file", &empty], 2, &["no DID"]),
        (&["--dids-file", &blank], 2, &["no DID"]),
        (&["--dids", ""], 2, &["no DID"]),
        (&[], 2, &["--dids"]),
        (&["--dids-file", &latin], 78, &["latin", "2", "UTF-8"]),
        (&["--dids-file", &nul], 78, &["nul:2", "NUL"]),
        (&["--dids-file", &sparse], 78, &["sparse:1", "NUL"]),
        (&["--dids-file", "/nowhere/dids.txt"], 78, &["/nowhere/dids.txt"]),
        (&["--dids-file", &folder], 78, &[&folder]),
        (&["--dids-queue", &text], 78, &["queue.db"]),
        (&["--dids-queue", "/nowhere/queue.db"], 78, &["/nowhere/queue.db"]),
        (&["--dids", &all, "--types", "poste"], 78, &["poste"]),
        (&["--dids", &all, "--set", "fetch.concurency=8"], 78, &["fetch.concurrency"]),
        (
            &["--dids", &all, "--start-timestamp", "yesterday"],
            78,
            &["--start-timestamp", "yesterday"],
        ),
        (&["--dids", &all, "--set", "limits.memory=1KiB"], 78, &["limits.memory"]),
    ];
    for (arguments, code, words) in cases {
        assert_refused(&bench.run(arguments), code, words);
    }
    for wrong in [
        &["--outside", "sideways"][..],
        &["--no-such-flag"],
        &["--set", "nonsense"],
        &["--batch-size", "many"],
    ] {
        assert_refused(&bench.run(&[&["--dids", all.as_str()], wrong].concat()), 2, &["error"]);
    }
    assert_refused(&skyfill().run(&["backfil"], PATIENCE), 2, &["backfil"]);
    assert_refused(&bench.command(&["retry"]), 2, &["error"]);
    assert_refused(&bench.command(&["retry", "--reason", "bad_luck"]), 2, &["bad_luck"]);
    let status = bench.command(&["status", "--json"]).expect_code(0).json();
    assert_eq!(
        status["accounts"],
        json!({"queued": 0, "active": 0, "retrying": 0, "done": 2, "parked": 0})
    );
    bench.assert_whole(&Options::default());
}

#[test]
fn every_form_of_a_list_names_the_same_accounts() {
    let bench = Bench::new(43, 5, 8);
    let dids = bench.network.world().dids();
    let queue = bench.path("input_backfill_sync.db");
    let input = rusqlite::Connection::open(&queue).unwrap();
    let make =
        "CREATE TABLE queue (id INTEGER PRIMARY KEY AUTOINCREMENT, payload TEXT, metadata TEXT,
                created_at TIMESTAMP DEFAULT CURRENT_TIMESTAMP, status TEXT DEFAULT 'pending')";
    input.execute_batch(make).unwrap();
    for pair in dids.chunks(2) {
        let payload: Vec<Value> = pair.iter().map(|did| json!({"did": did})).collect();
        input
            .execute("INSERT INTO queue (payload) VALUES (?1)", [json!(payload).to_string()])
            .unwrap();
    }
    let lines = format!("# who\n\n{}\n{}\n", dids.join("\r\n"), dids[0]);
    let csv: String = dids.iter().map(|did| format!("\"a, name\",{did},7\n")).collect();
    let jsonl: String =
        dids.iter().map(|did| format!("{}\n", json!({"n": 1, "did": did}))).collect();
    let files = [
        ("--dids-file", bench.write("dids.txt", lines)),
        ("--dids-file", bench.write("dids.csv", format!("name,did,n\n{csv}"))),
        ("--dids-file", bench.write("dids.jsonl", jsonl)),
        ("--dids-queue", queue.to_str().unwrap().to_owned()),
    ];
    for (number, (flag, path)) in files.iter().enumerate() {
        let data = bench.path(&format!("data-{number}"));
        let finished =
            skyfill().run(&bench.arguments(&data, &[flag, path]), PATIENCE).expect_code(0);
        assert_eq!(finished.json()["accounts"]["done"], 5, "{path}");
        judge(&data, bench.network.expected(), &Options::default()).assert_clean();
    }
    let stdin = bench.arguments(&bench.data(), &["--dids-file", "-"]);
    let running = skyfill().spawn_with_input(&stdin, dids.join("\n").as_bytes());
    running.finish(PATIENCE).expect_code(0);
    bench.assert_whole(&Options::default());
    let rows: i64 = input
        .query_row("SELECT count(*) FROM queue WHERE status = 'pending'", [], |row| row.get(0))
        .unwrap();
    assert_eq!(rows, 3, "the input queue is only read");
}

#[test]
fn whatever_the_directory_says_gets_its_name() {
    let cases = [
        (Fault::NotRegistered, "did_not_found"),
        (Fault::Tombstoned, "did_tombstoned"),
        (Fault::TombstonedGone, "did_tombstoned"),
        (Fault::NoPds, "no_pds"),
        (Fault::EmptyPds, "no_pds"),
        (Fault::DocumentForOther, "identity_invalid"),
        (Fault::NoKey, "identity_invalid"),
        (Fault::NotADocument, "identity_invalid"),
        (Fault::Endpoint("not a url".to_owned()), "identity_invalid"),
        (Fault::Endpoint("https://10.0.0.1".to_owned()), "endpoint_forbidden"),
        (Fault::Endpoint("https://[::1]".to_owned()), "endpoint_forbidden"),
        (Fault::Endpoint("ftp://pds.example.com".to_owned()), "endpoint_forbidden"),
        (Fault::Endpoint("https://user:word@pds.example.com".to_owned()), "endpoint_forbidden"),
    ];
    let bench = Bench::new(44, cases.len() + 5, 6);
    for (index, (fault, _)) in cases.iter().enumerate() {
        let target = Target::Did(bench.did(index).to_owned());
        bench.network.faults().script(Place::Directory, target, [fault.clone()], Then::Repeat);
    }
    // Answers that say nothing about the account: the directory is asked again.
    let healed = [(cases.len(), Fault::NotJson), (cases.len() + 1, Fault::HtmlOk)];
    for (index, fault) in healed {
        let target = Target::Did(bench.did(index).to_owned());
        bench.network.faults().script(Place::Directory, target, [fault], Then::Heal);
    }
    let summary = bench.run_all(&[]).expect_code(3).json();
    for (index, (fault, reason)) in cases.iter().enumerate() {
        let entry = parked(&summary, bench.did(index));
        assert_eq!(entry["reason"], *reason, "{fault:?}: {entry}");
        assert!(entry["detail"].as_str().is_some_and(|text| text.len() > 5), "{fault:?}: {entry}");
    }
    assert_eq!(summary["parked"].as_array().unwrap().len(), cases.len(), "{summary}");
    assert!(bench.network.faults().waiting().is_empty(), "{:?}", bench.network.faults().waiting());
    let gone: Vec<&str> = (0..cases.len()).map(|index| bench.did(index)).collect();
    bench.assert_all_but(&gone);
}

#[test]
fn a_directory_that_only_serves_html_ends_as_unavailable() {
    let bench = Bench::new(45, 4, 3);
    bench.network.faults().script(Place::Directory, Target::Any, [Fault::HtmlOk], Then::Repeat);
    let summary = bench.run_all(&["--set", "retry.host_patience=1s"]).expect_code(3).json();
    for index in 0..4 {
        let entry = parked(&summary, bench.did(index));
        assert_eq!(entry["reason"], "directory_unavailable", "{summary}");
        assert_eq!(entry["attempts"], 0);
    }
    // It comes back, and so do they.
    bench.network.faults().heal();
    let retried = bench.command(&["retry", "--reason", "directory_unavailable", "--json"]);
    assert_eq!(retried.expect_code(0).json()["retried"], 4);
    bench.run_all(&[]).expect_code(0);
    bench.assert_whole(&Options::default());
}

#[test]
fn whatever_a_host_sends_gets_its_name_and_can_be_put_back() {
    let garbage = |code: u16, body: &[u8]| Fault::Status {
        code,
        headers: vec![("content-type".to_owned(), "application/vnd.ipld.car".to_owned())],
        body: body.to_vec(),
    };
    let transient = "attempts_exhausted";
    let cases = [
        (Fault::HtmlOk, transient, "not_car"),
        (Fault::EmptyOk, transient, "not_car"),
        (Fault::Cut(At::Byte(1)), transient, "incomplete"),
        (Fault::Cut(At::Byte(70)), transient, "incomplete"),
        (Fault::Cut(At::Middle), transient, "incomplete"),
        (Fault::Cut(At::MiddleBorder), transient, "incomplete"),
        (Fault::Cut(At::LastBlock), transient, "incomplete"),
        (Fault::Cut(At::LastByte), transient, "incomplete"),
        (Fault::Drop(At::Middle), transient, "incomplete"),
        (Fault::Reset(At::LastBlock), transient, "incomplete"),
        (Fault::MissingRecord, transient, "incomplete"),
        (Fault::MissingNode, transient, "incomplete"),
        (garbage(200, b"<html>We will be back soon</html>"), transient, "not_car"),
        (garbage(200, &[0xff; 300]), transient, "not_car"),
        (Fault::status(401), transient, "http_4xx"),
        (Fault::status(404), transient, "http_4xx"),
        (Fault::WrongHash, "repo_invalid", "hash"),
        (Fault::OtherDid, "repo_invalid", "did_mismatch"),
        (Fault::BadSignature, "repo_invalid", "signature"),
        (Fault::HighS, "repo_invalid", "signature"),
        (Fault::Error("RepoNotFound"), "repo_not_found", ""),
        (Fault::Error("RepoTakendown"), "repo_taken_down", ""),
        (Fault::Error("RepoSuspended"), "repo_suspended", ""),
        (Fault::Error("RepoDeactivated"), "repo_deactivated", ""),
    ];
    let bench = Bench::new(46, cases.len() + 4, 30);
    for (index, (fault, ..)) in cases.iter().enumerate() {
        bench.network.faults().always(bench.did(index), fault.clone());
    }
    let summary = bench.run_all(&[]).expect_code(3).json();
    for (index, (fault, reason, last_error)) in cases.iter().enumerate() {
        let did = bench.did(index);
        let entry = parked(&summary, did);
        assert_eq!(entry["reason"], *reason, "{fault:?}: {entry}");
        assert_eq!(entry["last_error"].as_str().unwrap_or(""), *last_error, "{fault:?}: {entry}");
        assert!(entry["detail"].as_str().is_some_and(|text| text.len() > 5), "{fault:?}: {entry}");
        assert_eq!(
            entry["attempts"].as_u64(),
            Some(if *reason == transient { 3 } else { 0 }),
            "{fault:?}: {entry}"
        );
        let status = bench.command(&["status", did, "--json"]).expect_code(0).json();
        for field in ["reason", "last_error", "detail", "attempts"] {
            assert_eq!(status[field], entry[field], "{fault:?}: {field}");
        }
        assert_eq!(status["state"], "parked");
        assert!(bench.network.faults().fired(fault.name()) > 0, "{fault:?}");
    }
    let gone: Vec<&str> = (0..cases.len()).map(|index| bench.did(index)).collect();
    bench.assert_all_but(&gone);
    let status = bench.command(&["status", "--json"]).expect_code(0).json();
    assert_eq!(
        status["parked"][transient],
        cases.iter().filter(|case| case.1 == transient).count()
    );
    // All are well again, and are put back one way or another.
    bench.network.faults().heal();
    let retried = |arguments: &[&str]| {
        let finished = bench.command(&[&["retry", "--json"], arguments].concat()).expect_code(0);
        finished.json()["retried"].as_u64().unwrap()
    };
    assert_eq!(retried(&["--did", bench.did(0)]), 1);
    assert_eq!(retried(&["--reason", "signature"]), 2);
    assert_eq!(retried(&["--reason", "repo_suspended"]), 1);
    assert_eq!(retried(&["--all"]), cases.len() as u64 - 4);
    assert_eq!(retried(&["--all"]), 0);
    bench.run_all(&[]).expect_code(0);
    bench.assert_whole(&Options::default());
}

#[test]
fn what_is_wrong_once_is_right_the_next_time() {
    let faults = [
        Fault::Cut(At::MiddleBorder),
        Fault::WrongHash,
        Fault::BadSignature,
        Fault::OtherDid,
        Fault::HtmlOk,
        Fault::Error("RepoNotFound"),
        Fault::Reset(At::Middle),
        Fault::MissingNode,
    ];
    let bench = Bench::new(47, faults.len() + 2, 30);
    for (index, fault) in faults.iter().enumerate() {
        bench.network.faults().once(bench.did(index), fault.clone());
    }
    // A name that the host does not know any more stands once the directory has named the same host again.
    let stands = bench.did(5).to_owned();
    let summary = bench.run_all(&[]).expect_code(3).json();
    assert_eq!(parked(&summary, &stands)["reason"], "repo_not_found");
    assert_eq!(summary["parked"].as_array().unwrap().len(), 1, "{summary}");
    assert!(bench.network.faults().waiting().is_empty());
    bench.assert_all_but(&[&stands]);
}

/// Names and sizes of everything below `folder`.
fn listing(folder: &Path) -> Vec<(PathBuf, u64)> {
    let mut all = Vec::new();
    for entry in std::fs::read_dir(folder).into_iter().flatten() {
        let path = entry.unwrap().path();
        let metadata = std::fs::symlink_metadata(&path).unwrap();
        if metadata.is_dir() {
            all.extend(listing(&path));
        }
        all.push((path, metadata.len()));
    }
    all.sort();
    all
}

#[test]
fn a_dry_run_resolves_counts_and_writes_nothing() {
    let bench = Bench::new(48, 6, 5);
    let target = Target::Did(bench.did(2).to_owned());
    bench.network.faults().script(Place::Directory, target, [Fault::NoPds], Then::Repeat);
    let dids = format!("{},did:plc:WRONG,{}", bench.dids(), bench.did(0));
    let summary = bench.run(&["--dry-run", "--dids", &dids]).expect_code(3).json();
    assert_eq!(summary["failures"], json!({"did_invalid": 1, "no_pds": 1}));
    let hosts: u64 =
        summary["hosts"].as_object().unwrap().values().map(|n| n.as_u64().unwrap()).sum();
    assert_eq!((hosts, summary["dry_run"].as_bool()), (5, Some(true)));
    assert_eq!(listing(bench.folder.path()), [], "nothing was made");
    assert_eq!(bench.network.repo_requests(bench.did(0)), 0);
    bench.run_all(&[]).expect_code(3);
    let before = listing(&bench.data());
    bench.run(&["--dry-run", "--dids", bench.did(0)]).expect_code(0);
    assert_eq!(listing(&bench.data()), before);
}

#[test]
fn commands_say_what_they_do_not_find() {
    let bench = Bench::new(49, 2, 5);
    for command in [&["status"][..], &["retry", "--all"], &["verify"]] {
        assert_refused(&bench.command(command), 78, &["state.db", "does not exist"]);
    }
    assert_eq!(listing(bench.folder.path()), [], "asking makes nothing");
    bench.run_all(&[]).expect_code(0);
    assert_refused(&bench.command(&["status", "did:plc:nobody"]), 2, &["did:plc:nobody"]);
    let text = bench.command(&["status"]).expect_code(0).stdout;
    assert!(text.contains("done 2"), "{text}");
    let one = bench.command(&["status", bench.did(0), "--json"]).expect_code(0).json();
    let rev = bench.network.world().rev(0, 0);
    assert_eq!(
        (&one["state"], &one["rev"], &one["leaves"]),
        (&json!("done"), &json!(rev), &json!(5))
    );
}

#[test]
fn a_repository_file_is_proven_or_told_what_is_wrong_with_it() {
    let bench = Bench::new(50, 1, 40);
    let account = bench.network.world().account(0);
    let (car, key) = (account.car(), account.key.did_key());
    let file = bench.write("good.car", &car);
    let verify = |file: &str, more: &[&str]| {
        skyfill().run(&[&["verify", file, "--json"], more].concat(), PATIENCE)
    };
    let checked = verify(&file, &["--key", &key]).expect_code(0).json();
    assert_eq!((&checked["did"], &checked["records"]), (&json!(account.did), &json!(40)));
    assert_eq!(
        (&checked["signature_checked"], &checked["differences"]),
        (&json!(true), &json!([]))
    );
    let unchecked = verify(&file, &[]).expect_code(0).json();
    assert_eq!(unchecked["signature_checked"], false);
    let other = forge::Key::from_seed(99).did_key();
    let wrong = verify(&file, &["--key", &other]).expect_code(1).json();
    assert!(wrong["differences"][0].as_str().unwrap().contains("signature"), "{wrong}");
    let mut flipped = car.clone();
    let middle = flipped.len() / 2;
    flipped[middle] ^= 1;
    let options = CarOptions { missing_record: Some(3), ..CarOptions::default() };
    let damaged = [
        ("flipped.car", flipped),
        ("cut.car", car[..car.len() - 1].to_vec()),
        ("missing.car", account.car_with(&options)),
        ("empty.car", Vec::new()),
        ("page.car", b"<html>".to_vec()),
    ];
    for (name, bytes) in damaged {
        let file = bench.write(name, bytes);
        let found = verify(&file, &["--key", &key]).expect_code(1).json();
        assert!(!found["differences"].as_array().unwrap().is_empty(), "{name}: {found}");
    }
    let folder = bench.folder.path().to_str().unwrap();
    for unreadable in ["/nowhere/a.car", folder] {
        assert_refused(&verify(unreadable, &[]), 74, &[unreadable]);
    }
    assert_refused(&verify(&file, &["--key", "did:key:nonsense"]), 2, &["did:key:nonsense"]);
}

#[test]
fn types_windows_and_offsets_do_what_the_oracle_says() {
    let records = Records::Mixed { mean: 80 };
    let bench = Bench::with(&Shape { seed: 51, accounts: 24, hosts: 2, records, odd: true });
    let types = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
    let named = types(&["like", "post", "com.example.note", "com.example.*", "app.bsky.graph.*"]);
    let window =
        ["--start-timestamp", "2024-10-01-00:00:00", "--end-timestamp", "2024-10-31-23:59:59"];
    let (start, end) = (window[1].to_owned(), window[3].to_owned());
    let cases: [(&[&str], Options); 5] = [
        (
            &["--types", "like,post,com.example.note,com.example.*,app.bsky.graph.*"],
            Options { types: named, ..Options::default() },
        ),
        (&["--outside", "drop"], Options { outside: Outside::Drop, ..Options::default() }),
        (&["--outside", "keep"], Options { outside: Outside::Keep, ..Options::default() }),
        (&["--offsets", "ignore"], Options { offsets: Offsets::Ignore, ..Options::default() }),
        (
            &[
                &window[..],
                &["--outside", "drop", "--types", "repost", "--set", "queue.rows_per_item=7"],
            ]
            .concat(),
            Options {
                start,
                end,
                outside: Outside::Drop,
                types: types(&["repost"]),
                rows_per_item: 7,
                ..Options::default()
            },
        ),
    ];
    let dids = bench.dids();
    for (number, (flags, options)) in cases.iter().enumerate() {
        let data = bench.path(&format!("data-{number}"));
        let arguments = bench.arguments(&data, &[&["--dids", dids.as_str()], *flags].concat());
        let summary = skyfill().run(&arguments, PATIENCE).expect_code(0).json();
        judge(&data, bench.network.expected(), options).assert_clean();
        let counts = bench.network.expected_counts(options);
        for (label, count) in &counts.exported {
            assert_eq!(summary["records"][label], *count, "{flags:?}: {label}");
        }
        for (reason, count) in counts.skipped.iter().chain(&counts.rejected) {
            let told = summary["skipped"].get(*reason).or(summary["rejected"].get(*reason));
            assert_eq!(told, Some(&json!(count)), "{flags:?}: {reason}");
        }
    }
}

#[test]
fn records_of_every_golden_kind_arrive_as_the_golden_rows() {
    let bench = Bench::new(52, 2, 10);
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/records.json");
    let cases: Vec<Value> = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    let mut account = bench.network.world().account(0).forged();
    account.records.clear();
    let mut wanted: BTreeMap<String, &Value> = BTreeMap::new();
    for (number, case) in cases.iter().enumerate() {
        let text = case["record_cbor_b64"].as_str().unwrap();
        let bytes = base64::engine::general_purpose::STANDARD.decode(text).unwrap();
        // Many cases share a key; here each has its own.
        let key = format!("{}/golden{number:04}", case["collection"].as_str().unwrap());
        account.records.insert(key.clone(), bytes);
        wanted.insert(key, case);
    }
    let headers = vec![("content-type".to_owned(), "application/vnd.ipld.car".to_owned())];
    let body = account.car(&CarOptions::default());
    bench.network.faults().always(bench.did(0), Fault::Status { code: 200, headers, body });
    let summary = bench.run_all(&["--offsets", "ignore"]).expect_code(0).json();
    let mut compared = 0;
    for label in ["post", "reply", "repost", "like", "follow", "block"] {
        for row in
            queue_records(&bench.data(), label).iter().filter(|row| row["did"] == bench.did(0))
        {
            let uri = row["uri"].as_str().unwrap();
            let key = uri.strip_prefix(&format!("at://{}/", bench.did(0))).unwrap();
            let case = wanted
                .remove(key)
                .unwrap_or_else(|| panic!("{uri} is there twice or was never written"));
            assert_eq!(case["verdict"], "exported", "{case}");
            // Where the Python service failed there is no row to compare with.
            assert!(case["queue"].is_null() || case["queue"] == label, "{case}");
            for (name, value) in case["output"].as_object().into_iter().flatten() {
                assert_eq!(row[name], *value, "{}: {name}", case["note"]);
            }
            compared += 1;
        }
    }
    let rejected = queue_records(&bench.data(), "rejected");
    for row in rejected.iter().filter(|row| row["did"] == bench.did(0)) {
        let key =
            format!("{}/{}", row["collection"].as_str().unwrap(), row["rkey"].as_str().unwrap());
        let case = wanted.remove(&key).unwrap();
        assert_eq!(
            case["verdict"],
            format!("rejected:{}", row["reason"].as_str().unwrap()),
            "{case}"
        );
    }
    for case in wanted.values() {
        assert!(case["verdict"].as_str().unwrap().starts_with("skipped:"), "no row for {case}");
    }
    let user = summary["users"]
        .as_array()
        .unwrap()
        .iter()
        .find(|user| user["did"] == bench.did(0))
        .unwrap();
    assert_eq!(user["leaves"], cases.len());
    println!("{} golden records through the whole job, {compared} rows compared", cases.len());
}

#[test]
fn a_second_process_is_refused_and_told_who_holds_the_directory() {
    let bench = Bench::new(53, 2, 30);
    bench.network.faults().once(bench.did(0), Fault::Stall(At::Middle));
    let dids = bench.dids();
    let first = bench.start(&["--dids", &dids]);
    wait_until(&first, "the stall", || bench.network.faults().fired("stall") > 0);
    let pid = std::fs::read_to_string(bench.data().join("lock")).unwrap();
    let pid = pid.trim();
    assert!(pid.parse::<u32>().is_ok());
    assert_refused(&bench.run_all(&[]), 75, &[&format!("process {pid}"), "lock"]);
    assert_refused(&bench.command(&["retry", "--all"]), 75, &[&format!("process {pid}")]);
    // Looking does not need the lock.
    let status = bench.command(&["status", "--json"]).expect_code(0).json();
    assert!(status["accounts"]["active"].as_u64().unwrap() >= 1, "{status}");
    first.signal(Signal::KILL);
    first.finish(PATIENCE);
    bench.run_all(&[]).expect_code(0);
    bench.assert_whole(&Options::default());
}

#[test]
fn data_directories_that_others_could_change_are_refused() {
    let bench = Bench::new(54, 1, 3);
    let mode = |path: &Path, mode| {
        std::fs::set_permissions(path, PermissionsExt::from_mode(mode)).unwrap()
    };
    std::fs::create_dir(bench.data()).unwrap();
    mode(&bench.data(), 0o777);
    assert_refused(&bench.run_all(&[]), 77, &["data", "everybody may write"]);
    mode(&bench.data(), 0o750);
    bench.run_all(&[]).expect_code(0);
    mode(&bench.data().join("journal"), 0o777);
    assert_refused(&bench.run_all(&[]), 77, &["journal", "everybody may write"]);
    mode(&bench.data().join("journal"), 0o700);
    let dids = bench.dids();
    let link = bench.path("link");
    std::os::unix::fs::symlink(bench.data(), &link).unwrap();
    let linked = skyfill().run(&bench.arguments(&link, &["--dids", &dids]), PATIENCE);
    assert_refused(&linked, 77, &["link", "symbolic link"]);
    std::fs::rename(bench.data().join("spool"), bench.path("elsewhere")).unwrap();
    std::os::unix::fs::symlink(bench.path("elsewhere"), bench.data().join("spool")).unwrap();
    assert_refused(&bench.run_all(&[]), 77, &["spool", "symbolic link"]);
    std::fs::remove_file(bench.data().join("spool")).unwrap();
    bench.run_all(&[]).expect_code(0);
    // Somebody else's: root can give it away, others find one in the root directory.
    let foreign = bench.path("foreign");
    std::fs::create_dir(&foreign).unwrap();
    let foreign = match std::os::unix::fs::chown(&foreign, Some(12_345), None) {
        Ok(()) => foreign,
        Err(_) => PathBuf::from("/usr"),
    };
    let refused = skyfill().run(&bench.arguments(&foreign, &["--dids", &dids]), PATIENCE);
    assert_refused(&refused, 77, &[foreign.to_str().unwrap(), "another user"]);
    assert_eq!(listing(&bench.path("foreign")), []);
}

#[test]
fn another_filter_is_refused_with_both_ways_out() {
    let bench = Bench::new(55, 4, 40);
    bench.run_all(&[]).expect_code(0);
    bench.assert_whole(&Options::default());
    let refused = bench.run_all(&["--types", "post,like"]);
    assert_refused(&refused, 78, &["4 of these accounts", "--data-dir", "--refilter"]);
    bench.assert_whole(&Options::default());
    let posts = queue_records(&bench.data(), "post").len();
    let likes = queue_records(&bench.data(), "like").len();
    let follows = queue_records(&bench.data(), "follow").len();
    bench.run_all(&["--types", "post,like", "--refilter"]).expect_code(0);
    bench.command(&["verify"]).expect_code(0);
    assert_eq!(queue_records(&bench.data(), "post").len(), 2 * posts);
    assert_eq!(queue_records(&bench.data(), "like").len(), 2 * likes);
    assert_eq!(queue_records(&bench.data(), "follow").len(), follows);
    // Now the old one is the other one.
    assert_refused(&bench.run_all(&[]), 78, &["--refilter"]);
    bench.run_all(&["--types", "post,like"]).expect_code(0);
    assert_eq!(queue_records(&bench.data(), "post").len(), 2 * posts);
}

/// Removes a database with what belongs to it.
fn remove_database(path: &Path) {
    for ending in ["", "-wal", "-shm"] {
        let mut name = path.as_os_str().to_owned();
        name.push(ending);
        let _not_there = std::fs::remove_file(name);
    }
}

#[test]
fn queues_without_a_ledger_and_a_foreign_queue_are_refused() {
    let bench = Bench::new(56, 3, 20);
    bench.run_all(&[]).expect_code(0);
    let dids = bench.dids();
    let other = bench.path("other");
    skyfill().run(&bench.arguments(&other, &["--dids", &dids]), PATIENCE).expect_code(0);
    let mine = queue_path(&bench.data(), "post");
    std::fs::rename(&mine, bench.path("kept.db")).unwrap();
    std::fs::copy(queue_path(&other, "post"), &mine).unwrap();
    assert_refused(
        &bench.run_all(&[]),
        78,
        &["output_backfill_sync_post.db", "another data directory"],
    );
    remove_database(&mine);
    std::fs::rename(bench.path("kept.db"), &mine).unwrap();
    bench.run_all(&[]).expect_code(0);
    bench.assert_whole(&Options::default());
    remove_database(&bench.data().join("state.db"));
    assert_refused(&bench.run_all(&[]), 78, &["queues", "state.db", "--data-dir"]);
    assert!(!bench.data().join("state.db").exists(), "no ledger was made");
    judge(&bench.data(), bench.network.expected(), &Options::default()).assert_clean();
}

#[test]
fn a_queue_moved_away_while_stopped_is_made_anew_and_what_it_held_is_not_repeated() {
    let bench = Bench::new(57, 8, 30);
    let (half, rest) = (bench.network.world().dids()[..4].join(","), bench.dids());
    bench.run(&["--dids", &half]).expect_code(0);
    let path = queue_path(&bench.data(), "like");
    let before = queue_records(&bench.data(), "like");
    let moved = bench.path("moved/queue");
    std::fs::create_dir_all(&moved).unwrap();
    std::fs::rename(&path, moved.join("output_backfill_sync_like.db")).unwrap();
    let wal = std::fs::metadata(path.with_extension("db-wal")).map_or(0, |wal| wal.len());
    assert_eq!(wal, 0, "a clean stop leaves nothing in the WAL");
    let finished = bench.run(&["--dids", &rest]).expect_code(0);
    let warned = finished
        .stderr
        .lines()
        .any(|line| line.contains("WARN") && line.contains("output_backfill_sync_like.db"));
    assert!(warned, "{}", finished.stderr);
    assert_eq!(queue_records(&bench.path("moved"), "like"), before, "the moved file was whole");
    // Both files together hold every like once.
    let mut likes = queue_records(&bench.data(), "like");
    assert!(likes.iter().all(|row| !before.contains(row)));
    likes.extend(before);
    let wanted = bench.network.expected_counts(&Options::default()).exported["like"];
    assert_eq!(likes.len() as u64, wanted);
    // What the new file never took is no disagreement: its owner moved it away.
    bench.command(&["verify"]).expect_code(0);
}

#[test]
fn a_queue_moved_away_while_running_ends_the_process_and_names_it() {
    let bench = Bench::new(58, 6, 40);
    let slow = Fault::SlowHeaders(Duration::from_millis(700));
    bench.network.faults().script(Place::Repo, Target::Any, [slow], Then::Repeat);
    let dids = bench.dids();
    let running = bench.start(&["--dids", &dids, "--batch-size", "1"]);
    let path = queue_path(&bench.data(), "like");
    wait_until(&running, "a like", || {
        path.exists() && !queue_records_or_none(&bench.data()).is_empty()
    });
    std::fs::rename(&path, bench.path("away.db")).unwrap();
    let ended = running.finish(PATIENCE);
    let named = ended.stderr.contains("output_backfill_sync_like.db")
        && ended.stderr.contains("while skyfill was running");
    assert!(ended.code == Some(74) && named, "{ended:#?}");
    assert_eq!(ended.json()["status_code"], 500);
    assert!(!path.exists(), "nothing was made in its place");
    // Put back, it goes on.
    std::fs::rename(bench.path("away.db"), &path).unwrap();
    bench.run_all(&[]).expect_code(0);
    bench.assert_whole(&Options::default());
}

fn queue_records_or_none(data: &Path) -> Vec<i64> {
    let count = || -> rusqlite::Result<Vec<i64>> {
        let queue = rusqlite::Connection::open(queue_path(data, "like"))?;
        let mut select = queue.prepare("SELECT id FROM queue")?;
        select.query_map([], |row| row.get(0))?.collect()
    };
    count().unwrap_or_default()
}

/// A data directory that was left with a sealed and unapplied segment; its path.
fn with_a_segment(bench: &Bench) -> PathBuf {
    let dids = bench.dids();
    let arguments = bench.arguments(&bench.data(), &["--dids", &dids]);
    let crashed =
        skyfill().env("SKYFILL_CRASH_AT", "SegmentSealedBeforeApply:1").run(&arguments, PATIENCE);
    assert_eq!(crashed.signal, Some(6), "{crashed:#?}");
    let segment = bench.data().join("journal/00000001.seg");
    assert!(segment.exists());
    segment
}

/// Copies a folder with everything in it.
fn copy(from: &Path, to: &Path) {
    std::fs::create_dir(to).unwrap();
    std::fs::set_permissions(to, std::fs::metadata(from).unwrap().permissions()).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let (path, name) = (entry.as_ref().unwrap().path(), entry.unwrap().file_name());
        if path.is_dir() {
            copy(&path, &to.join(name));
        } else {
            std::fs::copy(&path, to.join(name)).unwrap();
        }
    }
}

#[test]
fn a_damaged_segment_ends_the_process_and_stays_where_it_is() {
    if cfg!(not(debug_assertions)) {
        println!("release builds have no crash points");
        return;
    }
    let bench = Bench::new(59, 4, 20);
    let segment = with_a_segment(&bench);
    let good = std::fs::read(&segment).unwrap();
    let places = [0, 20, 200, good.len() / 2, good.len() - 100, good.len() - 20, good.len() - 1];
    let dids = bench.dids();
    // Each in a copy: what a queue has taken from a good segment it does not read again.
    let spoil = |name: &str, bad: &[u8]| {
        let data = bench.path(name);
        copy(&bench.data(), &data);
        std::fs::write(data.join("journal/00000001.seg"), bad).unwrap();
        let refused = skyfill().run(&bench.arguments(&data, &["--dids", &dids]), PATIENCE);
        let left = std::fs::read(data.join("journal/00000001.seg")).unwrap();
        assert!(refused.stderr.contains("00000001.seg") && left == bad, "{name}: {refused:#?}");
        refused
    };
    for at in places {
        let mut bad = good.clone();
        bad[at] ^= 0x20;
        let refused = spoil(&format!("byte-{at}"), &bad);
        // Byte 20 lies in the identity of the data directory.
        refused.expect_code(if at == 20 { 78 } else { 74 });
    }
    let refused = spoil("cut", &good[..good.len() / 3]).expect_code(74);
    assert!(refused.stderr.contains("is damaged"), "{refused:#?}");
    bench.run_all(&[]).expect_code(0);
    bench.assert_whole(&Options::default());
    // A segment whose ledger is gone.
    let other = Bench::new(59, 4, 20);
    with_a_segment(&other);
    remove_database(&other.data().join("state.db"));
    for entry in std::fs::read_dir(other.data().join("queue")).unwrap() {
        std::fs::remove_file(entry.unwrap().path()).unwrap();
    }
    assert_refused(&other.run_all(&[]), 78, &["journal segments", "state.db"]);
}

#[test]
fn damaged_and_newer_databases_are_refused_and_left_as_they_are() {
    let bench = Bench::new(60, 3, 20);
    bench.run_all(&[]).expect_code(0);
    let ledger = bench.data().join("state.db");
    let good = std::fs::read(&ledger).unwrap();
    for (what, code, words) in
        [("header", 74, "state.db"), ("newer", 78, "newer"), ("cut", 74, "state.db")]
    {
        match what {
            "header" => {
                std::fs::write(&ledger, [b"not a database".as_slice(), &good[14..]].concat())
                    .unwrap()
            }
            "cut" => std::fs::write(&ledger, &good[..good.len() / 2]).unwrap(),
            _ => {
                let database = rusqlite::Connection::open(&ledger).unwrap();
                database
                    .execute_batch("PRAGMA user_version = 99; PRAGMA wal_checkpoint(TRUNCATE)")
                    .unwrap();
            }
        }
        let bad = std::fs::read(&ledger).unwrap();
        for command in [&["status"][..], &["retry", "--all"], &["verify"]] {
            let refused = bench.command(command);
            assert!(refused.code == Some(code), "{what}, {command:?}: {refused:#?}");
        }
        assert_refused(&bench.run_all(&[]), code, &[words]);
        assert_eq!(std::fs::read(&ledger).unwrap(), bad, "{what}: it was left in place");
        remove_database(&ledger);
        std::fs::write(&ledger, &good).unwrap();
    }
    let queue = queue_path(&bench.data(), "like");
    let good = std::fs::read(&queue).unwrap();
    std::fs::write(&queue, [b"not a database".as_slice(), &good[14..]].concat()).unwrap();
    assert_refused(&bench.run_all(&[]), 74, &["output_backfill_sync_like.db"]);
    assert_refused(&bench.command(&["verify"]), 74, &["output_backfill_sync_like.db"]);
    std::fs::write(&queue, &good).unwrap();
    bench.run_all(&[]).expect_code(0);
    bench.assert_whole(&Options::default());
    // A changed payload is found, and named.
    let database = rusqlite::Connection::open(&queue).unwrap();
    database.execute("UPDATE queue SET payload = '[]' WHERE id = 1", []).unwrap();
    let found = bench.command(&["verify"]).expect_code(1);
    assert!(found.stdout.contains("item 1 of did:plc:"), "{found:#?}");
}

/// What a full or read-only disk is tried with: a file system of its own in a user and mount namespace. `$1` is its size, `$2`
/// where it is mounted, `$3` a folder outside of it in which files give orders and results are left, the rest is the command.
const ON_A_DISK_OF_ITS_OWN: &str = r#"
size=$1 disk=$2 orders=$3; shift 3
mount -t tmpfs -o size=$size,mode=750 skyfill "$disk" || exit 99
( while [ ! -e "$orders/stop" ]; do
    if [ -e "$orders/fill" ]; then cat /dev/zero > "$disk/filler" 2>/dev/null; rm "$orders/fill"; fi
    if [ -e "$orders/term" ]; then kill -TERM $(cat "$disk/data/lock"); rm "$orders/term"; fi
    if [ -e "$orders/almost" ]; then
        cat /dev/zero > "$disk/filler" 2>/dev/null; truncate -s -1M "$disk/filler"; rm "$orders/almost"
    fi
    if [ -e "$orders/free" ]; then rm -f "$disk/filler" "$orders/free"; fi
    sleep 0.02
  done ) &
"$@"
code=$?
for how in $(cat "$orders/again" 2>/dev/null); do
    case $how in
        free) rm -f "$disk/filler" ;;
        *) mount -o remount,$how "$disk" ;;
    esac
    "$@" > "$orders/$how.out" 2> "$orders/$how.err"
    echo $? > "$orders/$how.code"
done
touch "$orders/stop"; wait
cp -a "$disk/data" "$orders/data"
exit $code
"#;

/// A run on a disk of its own.
struct OnDisk {
    orders: PathBuf,
    running: Running,
}

impl OnDisk {
    /// `None` where the system gives no namespaces.
    fn start(bench: &Bench, size: &str, more: &[&str]) -> Option<Self> {
        let (disk, orders) = (bench.path("disk"), bench.path("orders"));
        std::fs::create_dir_all(&disk).unwrap();
        std::fs::create_dir_all(&orders).unwrap();
        let probe = std::process::Command::new("unshare").args(["-Urm", "true"]).status();
        if !probe.is_ok_and(|status| status.success()) {
            println!("no user and mount namespaces here: a disk of its own cannot be had");
            return None;
        }
        let mut command: Vec<String> =
            ["-Urm", "sh", "-c", ON_A_DISK_OF_ITS_OWN, "sh", size].map(str::to_owned).to_vec();
        command.extend([&disk, &orders].map(|path| path.to_str().unwrap().to_owned()));
        command.push(env!("CARGO_BIN_EXE_skyfill").to_owned());
        command.extend(bench.arguments(&disk.join("data"), more));
        Some(Self { orders, running: Skyfill::new("unshare").spawn(&command) })
    }

    fn order(&self, what: &str) {
        std::fs::write(self.orders.join(what), "").unwrap();
        wait_until(&self.running, what, || !self.orders.join(what).exists());
    }

    fn says(&self, what: &str, times: usize) {
        wait_until(&self.running, what, || self.running.stderr().matches(what).count() >= times);
    }
}

/// 40 accounts on hosts that take a while.
fn slow_bench(seed: u64) -> Bench {
    let bench = Bench::new(seed, 40, 60);
    let slow = Fault::SlowHeaders(Duration::from_millis(150));
    bench.network.faults().script(Place::Repo, Target::Any, [slow], Then::Repeat);
    bench
}

#[test]
fn a_full_disk_pauses_everything_and_goes_on_by_itself() {
    let bench = slow_bench(61);
    let dids = bench.dids();
    let Some(disk) = OnDisk::start(&bench, "128m", &["--dids", &dids, "--batch-size", "2"]) else {
        return;
    };
    disk.says("accounts listed", 1);
    for time in 1..=4 {
        disk.order("fill");
        disk.says("the disk is full, everything waits", time);
        // Nothing is asked of anybody while it waits.
        assert!(disk.running.wait(Duration::from_millis(1_500)).is_none());
        disk.order("free");
        disk.says("there is space again, going on", time);
    }
    let finished = disk.running.finish(PATIENCE);
    assert_eq!(finished.code, Some(0), "{finished:#?}");
    let full: Vec<&str> =
        finished.stderr.lines().filter(|line| line.contains("the disk is full")).collect();
    let is_told = |line: &&&str| line.contains("/disk/data") && line.contains("bytes are free");
    assert!(full.iter().all(|line| is_told(&line)), "{full:#?}");
    let summary = finished.json();
    assert_eq!(summary["accounts"]["done"], 40, "{summary}");
    judge(&disk.orders.join("data"), bench.network.expected(), &Options::default()).assert_clean();
    println!("a full disk: {} pauses told, nothing lost or doubled", full.len());
}

#[test]
fn too_little_free_space_begins_nothing_new() {
    let bench = slow_bench(62);
    let dids = bench.dids();
    let more = ["--dids", dids.as_str(), "--set", "limits.disk_free=32MiB"];
    let Some(disk) = OnDisk::start(&bench, "160m", &more) else { return };
    disk.says("accounts listed", 1);
    disk.order("fill");
    disk.says("limits.disk_free asks for", 1);
    disk.order("free");
    disk.says("there is space again", 1);
    let finished = disk.running.finish(PATIENCE);
    assert_eq!(finished.code, Some(0), "{finished:#?}");
    judge(&disk.orders.join("data"), bench.network.expected(), &Options::default()).assert_clean();
}

#[test]
fn a_read_only_disk_is_refused_by_name_and_harms_nothing() {
    let bench = Bench::new(63, 6, 20);
    let dids = bench.dids();
    std::fs::create_dir_all(bench.path("orders")).unwrap();
    std::fs::write(bench.path("orders/again"), "ro rw").unwrap();
    let Some(disk) = OnDisk::start(&bench, "160m", &["--dids", &dids]) else { return };
    let finished = disk.running.finish(PATIENCE);
    assert_eq!(finished.code, Some(0), "{finished:#?}");
    let read = |name: &str| std::fs::read_to_string(disk.orders.join(name)).unwrap();
    let (code, said) = (read("ro.code"), read("ro.err"));
    assert!(["74", "77"].contains(&code.trim()), "{code}: {said}");
    assert!(said.contains("/disk/data") && said.to_lowercase().contains("read-only"), "{said}");
    assert_eq!(read("rw.code").trim(), "0", "{}", read("rw.err"));
    judge(&disk.orders.join("data"), bench.network.expected(), &Options::default()).assert_clean();
}

#[test]
fn a_host_that_does_not_wait_for_space_is_not_to_blame() {
    // A repository of about 3 MB, which is more than what is left.
    let bench = Bench::new(64, 1, 8_000);
    bench.network.warm();
    let slow = Fault::SlowHeaders(Duration::from_secs(2));
    bench.network.faults().script(Place::Directory, Target::Any, [slow], Then::Heal);
    bench.network.faults().once(bench.did(0), Fault::Drop(At::LastBlock));
    let did = bench.did(0).to_owned();
    let more = ["--dids", did.as_str(), "--set", "limits.spool_memory=64KiB"];
    let Some(disk) = OnDisk::start(&bench, "160m", &more) else { return };
    disk.says("accounts listed", 1);
    disk.order("almost");
    disk.says("the disk is full, everything waits writer=spool", 1);
    disk.order("free");
    let finished = disk.running.finish(PATIENCE);
    assert_eq!(finished.code, Some(0), "{finished:#?}");
    bench.network.faults().assert_fired(&["drop"]);
    assert_eq!(bench.network.repo_requests(&did), 2);
    let data = disk.orders.join("data");
    let arguments = ["status", &did, "--json", "--data-dir", data.to_str().unwrap()];
    let status = skyfill().run(&arguments, PATIENCE).expect_code(0).json();
    assert_eq!((&status["state"], &status["attempts"]), (&json!("done"), &json!(0)), "{status}");
    judge(&data, bench.network.expected(), &Options::default()).assert_clean();
}

#[test]
fn a_run_that_waits_for_space_can_be_stopped_and_goes_on_later() {
    let bench = slow_bench(65);
    let dids = bench.dids();
    let Some(disk) = OnDisk::start(&bench, "128m", &["--dids", &dids, "--batch-size", "2"]) else {
        return;
    };
    std::fs::write(disk.orders.join("again"), "free").unwrap();
    disk.says("accounts listed", 1);
    wait_until(&disk.running, "transfers", || bench.network.faults().fired("slow_headers") > 6);
    disk.order("fill");
    disk.says("the disk is full, everything waits", 1);
    disk.order("term");
    let asked = Instant::now();
    wait_until(&disk.running, "the end", || disk.running.stdout().contains("\"interrupted\":true"));
    assert!(asked.elapsed() < Duration::from_secs(30), "{:?}", asked.elapsed());
    let took = asked.elapsed();
    let finished = disk.running.finish(PATIENCE);
    assert_eq!(finished.code, Some(130), "{finished:#?}");
    let read = |name: &str| std::fs::read_to_string(disk.orders.join(name)).unwrap();
    assert_eq!(read("free.code").trim(), "0", "{}", read("free.err"));
    judge(&disk.orders.join("data"), bench.network.expected(), &Options::default()).assert_clean();
    println!("stopped within {took:.1?} on a full disk");
}
