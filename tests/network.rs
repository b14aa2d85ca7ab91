//! A real network: a PLC directory and two PDSes from npm, seeded by `tests/network/net.mjs`, which also says, record by
//! record, what must come of it. One test reads it with the library, the other runs the binary; both compare every field.
//!
//! Needs Node 20 and the packages of `tests/network`; `tests/run` installs these.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::print_stderr,
    clippy::disallowed_methods
)]

#[path = "network/running.rs"]
mod running;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use running::{Account, Network, Seeded, queue_file, skyfill};
use rusqlite::{Connection, OpenFlags};
use serde_json::{Value, json};
use skyfill::domain::did::Did;
use skyfill::domain::filter::{Filter, Kind, Offsets, Outside, TypeEntry, Window};
use skyfill::repo::car::Framer;
use skyfill::repo::key::{Curve, PublicKey};
use skyfill::repo::walk::{Expected, LeafBlock, Walk};
use skyfill::transform::{Origin, RecordBlock, RecordSource, Transformer, Verdict};

const QUEUES: [&str; 7] = ["post", "reply", "repost", "like", "follow", "block", "rejected"];
/// Rows of a queue item at most, by default.
const ROWS_PER_ITEM: usize = 1_000;

/// Rows by queue and `uri`.
type Rows = BTreeMap<String, BTreeMap<String, Value>>;

/// What the queues must hold: `only_inside` for `--outside drop`.
fn expected_rows<'a>(accounts: impl IntoIterator<Item = &'a Account>, only_inside: bool) -> Rows {
    let mut rows = Rows::new();
    for account in accounts {
        for record in &account.records {
            let (Some(queue), Some(row)) = (&record.queue, &record.row) else { continue };
            if only_inside && record.inside == Some(false) {
                continue;
            }
            let mut row = row.clone();
            row.insert("rev".to_owned(), json!(account.rev));
            let uri = row["uri"].as_str().unwrap().to_owned();
            let twice = rows.entry(queue.clone()).or_default().insert(uri, Value::Object(row));
            assert!(twice.is_none(), "{} is seeded twice", record.key);
        }
    }
    rows
}

/// Records by verdict and reason or queue: `exported post`, `skipped type`, `rejected schema`.
fn counts(account: &Account, verdict: &str) -> BTreeMap<String, u64> {
    let mut counts = BTreeMap::new();
    for record in account.records.iter().filter(|record| record.verdict == verdict) {
        let named = if verdict == "exported" { &record.queue } else { &record.reason };
        *counts.entry(named.clone().unwrap()).or_default() += 1;
    }
    counts
}

fn sums<'a>(
    accounts: impl IntoIterator<Item = &'a Account>,
    verdict: &str,
) -> BTreeMap<String, u64> {
    let mut sums = BTreeMap::new();
    for (name, count) in accounts.into_iter().flat_map(|account| counts(account, verdict)) {
        *sums.entry(name).or_default() += count;
    }
    sums
}

/// A JSON map of counts without its zeros.
fn counted(value: &Value) -> BTreeMap<String, u64> {
    let map = value.as_object().unwrap_or_else(|| panic!("no counts: {value}"));
    map.iter()
        .map(|(name, count)| (name.clone(), count.as_u64().unwrap()))
        .filter(|(_, count)| *count > 0)
        .collect()
}

/// Adds a found row; a second one of the same record is a failure.
fn add(rows: &mut Rows, queue: &str, row: Value) {
    let uri = row["uri"].as_str().unwrap_or_else(|| panic!("a row without uri: {row}")).to_owned();
    let twice = rows.entry(queue.to_owned()).or_default().insert(uri.clone(), row);
    assert!(twice.is_none(), "{uri} is there twice");
}

/// Prints a table of expected and found rows, then compares every field of every row.
fn compare(seeded: &Seeded, expected: &Rows, found: &Rows) {
    let count = |rows: &Rows, queue: &str, did: &str| {
        rows.get(queue).map_or(0, |rows| rows.values().filter(|row| row["did"] == did).count())
    };
    print!("{:<18}", "expected/found");
    QUEUES.iter().for_each(|queue| print!("{queue:>12}"));
    println!();
    for account in &seeded.accounts {
        print!("{:<18}", account.name);
        for queue in QUEUES {
            let pair = (count(expected, queue, &account.did), count(found, queue, &account.did));
            print!("{:>12}", format!("{}/{}", pair.0, pair.1));
        }
        println!("  {} {}", account.end, account.reason.as_deref().unwrap_or_default());
    }
    let mut wrong = Vec::new();
    for queue in expected.keys().chain(found.keys()).collect::<BTreeSet<_>>() {
        let (wanted, had) = (expected.get(queue), found.get(queue));
        let uris = wanted.into_iter().chain(had).flat_map(BTreeMap::keys).collect::<BTreeSet<_>>();
        for uri in uris {
            let of = |rows: Option<&BTreeMap<String, Value>>| {
                rows.and_then(|rows| rows.get(uri).cloned())
            };
            match (of(wanted), of(had)) {
                (Some(wanted), Some(had)) => differences(queue, &wanted, &had, &mut wrong),
                (Some(_), None) => wrong.push(format!("{queue}: {uri} is missing")),
                (None, _) => wrong.push(format!("{queue}: {uri} is not expected")),
            }
        }
    }
    assert!(
        wrong.is_empty(),
        "{} differences:\n{}",
        wrong.len(),
        wrong[..wrong.len().min(20)].join("\n")
    );
}

fn differences(queue: &str, wanted: &Value, had: &Value, wrong: &mut Vec<String>) {
    let (wanted, mut had) = (wanted.as_object().unwrap(), had.as_object().unwrap().clone());
    let uri = &wanted["uri"];
    if queue == "rejected" {
        let is_told = had
            .remove("detail")
            .is_some_and(|detail| detail.as_str().is_some_and(|text| !text.is_empty()));
        if !is_told {
            wrong.push(format!("{uri}: rejected without a detail"));
        }
    } else if !wanted.keys().eq(had.keys()) {
        let names: Vec<&String> = had.keys().collect();
        wrong.push(format!("{uri}: fields {names:?}"));
    }
    for name in wanted.keys().chain(had.keys()).collect::<BTreeSet<_>>() {
        if wanted.get(name) != had.get(name) {
            wrong.push(format!(
                "{uri}: {name}: expected {:?}, found {:?}",
                wanted.get(name),
                had.get(name)
            ));
        }
    }
}

// ---- the library against the network ----

/// Status and body of a GET.
async fn get(client: &reqwest::Client, url: &str) -> (u16, Vec<u8>) {
    let mut response =
        client.get(url).send().await.unwrap_or_else(|error| panic!("{url}: {error}"));
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.unwrap() {
        body.extend_from_slice(&chunk);
    }
    (response.status().as_u16(), body)
}

async fn get_json(client: &reqwest::Client, url: &str) -> (u16, Value) {
    let (status, body) = get(client, url).await;
    let value = serde_json::from_slice(&body);
    (
        status,
        value.unwrap_or_else(|error| panic!("{url}: {error}: {}", String::from_utf8_lossy(&body))),
    )
}

/// `did:key` and endpoint of a document.
fn identity(document: &Value) -> (String, String) {
    let method = &document["verificationMethod"][0];
    let text = method["publicKeyMultibase"].as_str().unwrap();
    let key = match method["type"].as_str().unwrap() {
        "Multikey" => PublicKey::from_multikey(text),
        "EcdsaSecp256k1VerificationKey2019" => PublicKey::from_legacy(Curve::K256, text),
        other => panic!("a key of type {other}"),
    };
    let endpoint = document["service"][0]["serviceEndpoint"].as_str().unwrap_or_default();
    (key.unwrap().to_did_key(), endpoint.to_owned())
}

fn transformer() -> Transformer {
    let types = Kind::ALL.into_iter().map(TypeEntry::Kind).collect();
    let (start, end) = ("2024-09-27-00:00:00".to_owned(), "2024-12-02-00:00:00".to_owned());
    let window = Window { start, end, outside: Outside::Bucket, offsets: Offsets::Utc };
    Transformer::new(&Filter { types, window })
}

/// Proves a repository and adds its rows; gives the rest as `skipped` counts.
fn read_repository(
    account: &Account,
    car: &Vec<u8>,
    keys: (&str, &[String]),
    rows: &mut Rows,
) -> BTreeMap<String, u64> {
    let mut framer = Framer::new(1 << 30);
    framer.push(car).unwrap();
    let (framed, did) = (framer.finish().unwrap(), Did::parse(&account.did).unwrap());
    let (cancel, transformer) = (AtomicBool::new(false), transformer());
    let expected = Expected { did: Some(&did), key: Some(keys.0), earlier_keys: keys.1 };
    let opened = Walk::open(car, &framed, &expected, &cancel);
    let mut walk = opened.unwrap_or_else(|error| panic!("{}: {error}", account.name));
    let rev = walk.commit().rev.clone();
    assert_eq!(Some(&rev), account.rev.as_ref(), "{}", account.name);
    assert_eq!(Some(framed.root.to_string()), account.commit, "{}", account.name);
    let (mut skipped, origin) = (BTreeMap::new(), Origin::new(did.as_str(), &rev));
    while let Some(leaf) = walk.next_leaf().unwrap() {
        let LeafBlock::Held(bytes) = leaf.block else { panic!("{} is too large", leaf.key) };
        let block = RecordBlock::Held(bytes);
        let source = RecordSource { origin: &origin, key: leaf.key, cid: leaf.cid, block };
        let plan = transformer.read(&source);
        let queue = match plan.verdict() {
            Verdict::Exported(queue) => &transformer.queues()[queue],
            Verdict::Rejected(_) => "rejected",
            Verdict::Skipped(reason) => {
                *skipped.entry(reason.to_owned()).or_default() += 1;
                continue;
            }
        };
        let mut row = Vec::new();
        plan.write(&mut row);
        add(rows, queue, serde_json::from_slice(&row).unwrap());
    }
    skipped
}

/// What the network itself answers for an account that must be parked.
async fn answer(client: &reqwest::Client, plc: &str, account: &Account) -> String {
    if Did::parse(&account.did).is_err() {
        return "did_invalid".to_owned();
    }
    let (status, document) = get_json(client, &format!("{plc}/{}", account.did)).await;
    if status != 200 {
        return format!("{status} {}", document["message"].as_str().unwrap_or_default());
    }
    let (key, endpoint) = identity(&document);
    if Some(&endpoint) != account.endpoint.as_ref() {
        return endpoint;
    }
    let url = format!("{endpoint}/xrpc/com.atproto.sync.getRepo?did={}", account.did);
    let (status, body) = get(client, &url).await;
    if status != 200 {
        let error: Value = serde_json::from_slice(&body).unwrap();
        return format!("{status} {}", error["error"].as_str().unwrap_or_default());
    }
    let mut framer = Framer::new(1 << 30);
    framer.push(&body).unwrap();
    let (framed, did) = (framer.finish().unwrap(), Did::parse(&account.did).unwrap());
    let (cancel, expected) =
        (AtomicBool::new(false), Expected { did: Some(&did), key: Some(&key), earlier_keys: &[] });
    let opened = Walk::open(&body, &framed, &expected, &cancel);
    opened.err().map_or("a proven repository".to_owned(), |error| error.to_string())
}

#[test]
fn the_network_serves_what_was_seeded_and_the_library_proves_it() {
    let network = Network::shared();
    let seeded = network.turn();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(read_network(&seeded));
}

async fn read_network(seeded: &Seeded) {
    let _already_installed = rustls::crypto::ring::default_provider().install_default();
    let client =
        reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(60)).build().unwrap();
    let mut found = Rows::new();
    for account in seeded.accounts.iter().filter(|account| account.is_done()) {
        let (status, document) =
            get_json(&client, &format!("{}/{}", seeded.plc, account.did)).await;
        let (key, endpoint) = identity(&document);
        assert_eq!((status, Some(&endpoint)), (200, account.endpoint.as_ref()), "{}", account.name);
        let url = format!("{endpoint}/xrpc/com.atproto.sync.getRepo?did={}", account.did);
        let (status, car) = get(&client, &url).await;
        assert_eq!(status, 200, "{}: {}", account.name, String::from_utf8_lossy(&car));
        let (_, log) = get(&client, &format!("{}/{}/log/audit", seeded.plc, account.did)).await;
        let earlier = skyfill::identity::plc::earlier_keys(&log, &key);
        // Only a move that was not followed by a write needs a key of before.
        let needed: &[String] = if account.name == "x-moved-silent" { &earlier } else { &[] };
        let skipped = read_repository(account, &car, (&key, needed), &mut found);
        assert_eq!(skipped, counts(account, "skipped"), "{}", account.name);
    }
    let expected = expected_rows(&seeded.accounts, false);
    compare(seeded, &expected, &found);
    for account in seeded.accounts.iter().filter(|account| !account.is_done()) {
        let reason = account.reason.as_deref().unwrap();
        let wanted: &[&str] = match (reason, account.name.as_str()) {
            ("did_invalid", _) => &["did_invalid"],
            ("did_not_found", _) => &["404 DID not registered: "],
            ("did_tombstoned", "x-tombstoned-410") => &["410 DID not available: "],
            ("did_tombstoned", _) => &["404 DID not available: "],
            ("no_pds", _) => &[""],
            ("endpoint_forbidden", _) => &["https://10.11.12.13"],
            ("repo_not_found", _) => &["400 RepoNotFound"],
            ("repo_taken_down", _) => &["400 RepoTakendown"],
            ("repo_deactivated", _) => &["400 RepoDeactivated"],
            other => panic!("{other:?}"),
        };
        let answered = answer(&client, &seeded.plc, account).await;
        let plain = answered.strip_suffix(&account.did).unwrap_or(&answered);
        println!("{:<18} {reason:<20} {answered}", account.name);
        assert!(wanted.contains(&plain), "{}: {answered}", account.name);
    }
}

// ---- the binary against the network ----

/// Runs `skyfill backfill` over `accounts`.
fn backfill(
    seeded: &Seeded,
    data: &Path,
    accounts: &[&Account],
    more: &[&str],
    code: i32,
) -> Value {
    let dids: Vec<&str> = accounts.iter().map(|account| account.did.as_str()).collect();
    let (dids, data) = (dids.join(","), data.to_str().unwrap());
    let mut arguments =
        vec!["backfill", "--dids", &dids, "--plc-url", &seeded.plc, "--data-dir", data, "--json"];
    arguments.extend(["--allow-network", "127.0.0.0/8", "--allow-network", "::1/128"]);
    arguments.extend(more);
    skyfill(&arguments).exits_with(code).json()
}

/// The rows of all queue files; their items' metadata must agree with them.
fn queued_rows(data: &Path) -> Rows {
    let mut rows = Rows::new();
    for queue in QUEUES {
        for (payload, metadata, created_at, status) in items(data, queue) {
            let payload: Vec<Value> = serde_json::from_str(&payload).unwrap();
            let metadata: Value = serde_json::from_str(&metadata).unwrap();
            assert_eq!(metadata["batch_size"], json!(ROWS_PER_ITEM));
            assert_eq!(metadata["actual_batch_size"], json!(payload.len()));
            assert!((1..=ROWS_PER_ITEM).contains(&payload.len()), "{} rows", payload.len());
            assert_eq!((created_at.len(), status.as_str()), (19, "pending"));
            for row in payload {
                assert_eq!((&metadata["did"], &metadata["rev"]), (&row["did"], &row["rev"]));
                add(&mut rows, queue, row);
            }
        }
    }
    rows
}

type Item = (String, String, String, String);

/// Every item of a queue file, oldest first.
fn items(data: &Path, queue: &str) -> Vec<Item> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE;
    let connection = Connection::open_with_flags(queue_file(data, queue), flags).unwrap();
    let select = "SELECT payload, metadata, created_at, status FROM queue ORDER BY id";
    let mut statement = connection.prepare(select).unwrap();
    let read =
        statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?)));
    read.unwrap().map(Result::unwrap).collect()
}

fn all_items(data: &Path) -> Vec<Vec<Item>> {
    QUEUES.iter().map(|queue| items(data, queue)).collect()
}

/// Checks everything in a summary that does not depend on the run.
fn check_summary(summary: &Value, accounts: &[&Account]) {
    let given = || accounts.iter().copied();
    let (done, parked): (Vec<&Account>, Vec<&Account>) =
        given().partition(|account| account.is_done());
    assert_eq!(summary["accounts"], json!({"done": done.len(), "parked": parked.len()}));
    assert_eq!(summary["status_code"], json!(if parked.is_empty() { 200 } else { 207 }));
    assert_eq!(summary["service"], "backfill_sync");
    let word = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let found = summary["parked"].as_array().unwrap().iter();
    let found: BTreeMap<String, String> =
        found.map(|entry| (word(&entry["did"]), word(&entry["reason"]))).collect();
    let wanted =
        parked.iter().map(|account| (account.did.clone(), account.reason.clone().unwrap()));
    let wanted: BTreeMap<String, String> = wanted.collect();
    for account in &parked {
        let had = found.get(&account.did).map_or("-", String::as_str);
        println!("{:<18} {:<20} {had}", account.name, wanted[&account.did]);
    }
    assert_eq!(found, wanted);
    assert_eq!(counted(&summary["records"]), sums(given(), "exported"));
    assert_eq!(counted(&summary["skipped"]), sums(given(), "skipped"));
    assert_eq!(counted(&summary["rejected"]), sums(given(), "rejected"));
    let users = summary["users"].as_array().unwrap();
    assert_eq!(users.len(), done.len());
    for account in done {
        let user = users.iter().find(|user| user["did"] == account.did.as_str());
        check_user(user.unwrap_or_else(|| panic!("no user {}", account.name)), account);
    }
}

fn check_user(user: &Value, account: &Account) {
    let name = &account.name;
    let by_type = user["total_records_by_type"].as_str().unwrap();
    let exported = counts(account, "exported");
    assert_eq!(counted(&serde_json::from_str(by_type).unwrap()), exported, "{name}");
    assert_eq!(user["total_records"], json!(exported.values().sum::<u64>()), "{name}");
    assert_eq!(user["leaves"], json!(account.records.len()), "{name}");
    assert_eq!(user["bluesky_handle"], json!(account.handle), "{name}");
    assert_eq!(user["pds_service_endpoint"], json!(account.endpoint), "{name}");
    assert_eq!(user["rev"], json!(account.rev), "{name}");
    assert_eq!(user["commit_cid"], json!(account.commit), "{name}");
}

fn this_run(summary: &Value) -> [u64; 3] {
    ["done", "parked", "records"].map(|name| summary["this_run"][name].as_u64().unwrap())
}

#[test]
fn the_binary_backfills_it_once_and_follows_an_account_that_moves() {
    let network = Network::shared();
    let mut seeded = network.turn();
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let all: Vec<&Account> = seeded.accounts.iter().collect();
    let done: Vec<&Account> = all.iter().copied().filter(|account| account.is_done()).collect();
    let rows: u64 = sums(all.iter().copied(), "exported").values().sum();

    let summary = backfill(&seeded, &data, &all, &[], 3);
    compare(&seeded, &expected_rows(all.iter().copied(), false), &queued_rows(&data));
    check_summary(&summary, &all);
    assert_eq!(this_run(&summary), [done.len() as u64, (all.len() - done.len()) as u64, rows]);
    skyfill(&["verify", "--data-dir", data.to_str().unwrap()]).exits_with(0);

    let before = all_items(&data);
    let summary = backfill(&seeded, &data, &all, &[], 3);
    check_summary(&summary, &all);
    assert_eq!(this_run(&summary), [0, 0, 0], "the second run did something");
    assert!(before == all_items(&data), "the second run changed a queue");

    drops_what_lies_outside(&seeded, &folder.path().join("dropped"), &done);
    *seeded = network.move_account();
    follows(&seeded, &data);
}

/// Another data directory with `--outside drop`: only what lies inside the window.
fn drops_what_lies_outside(seeded: &Seeded, data: &Path, done: &[&Account]) {
    let summary = backfill(seeded, data, done, &["--outside", "drop"], 0);
    compare(seeded, &expected_rows(done.iter().copied(), true), &queued_rows(data));
    let outside = done.iter().flat_map(|account| &account.records);
    let outside = outside.filter(|record| record.inside == Some(false)).count() as u64;
    assert_eq!(counted(&summary["skipped"]).get("outside_window"), Some(&outside));
    assert!(outside > 100, "hardly anything was seeded outside the window");
}

/// An account that was parked as deactivated on its old host, whose name the ledger holds, is fetched from the new one.
fn follows(seeded: &Seeded, data: &Path) {
    let all: Vec<&Account> = seeded.accounts.iter().collect();
    skyfill(&["retry", "--reason", "repo_deactivated", "--data-dir", data.to_str().unwrap()])
        .exits_with(0);
    let summary = backfill(seeded, data, &all, &[], 3);
    compare(seeded, &expected_rows(all.iter().copied(), false), &queued_rows(data));
    check_summary(&summary, &all);
    let moved = all.iter().find(|account| account.name == "x-moving").unwrap();
    let rows: u64 = counts(moved, "exported").values().sum();
    assert_eq!((this_run(&summary)[0], this_run(&summary)[2]), (1, rows));
    skyfill(&["verify", "--data-dir", data.to_str().unwrap()]).exits_with(0);
}

/// Answers of a server with this status.
fn answered(seeded: &Seeded, server: &str, status: &str) -> u64 {
    seeded.answers[server].get(status).copied().unwrap_or(0)
}

#[test]
fn with_rate_limits_on_and_the_directorys_own_export_it_finishes_without_a_single_429() {
    let network = Network::shared();
    let seeded = network.turn();
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    // Those of the host with rate limits, and those that only the directory knows.
    let is_chosen = |account: &&Account| account.endpoint.as_ref() != Some(&seeded.hosts[0]);
    let chosen: Vec<&Account> = seeded.accounts.iter().filter(is_chosen).collect();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let has_limits = runtime.block_on(async {
        let _already_installed = rustls::crypto::ring::default_provider().install_default();
        let client = reqwest::Client::builder().no_proxy().build().unwrap();
        let url = format!("{}/xrpc/com.atproto.server.describeServer", seeded.hosts[1]);
        client.get(url).send().await.unwrap().headers().contains_key("ratelimit-remaining")
    });
    assert!(has_limits, "the second host limits nobody");

    let list = folder.path().join("dids.txt");
    let dids: Vec<&str> = chosen.iter().map(|account| account.did.as_str()).collect();
    std::fs::write(&list, dids.join("\n")).unwrap();
    let export = format!("{}/export", seeded.plc);
    let (list, directory) = (list.to_str().unwrap(), data.to_str().unwrap());
    let mut arguments = vec!["identities", "--from", &export, "--dids-file", list, "--json"];
    arguments.extend(["--plc-url", &seeded.plc, "--data-dir", directory]);
    let told = skyfill(&arguments).exits_with(0).json();
    println!("{told}");
    assert_eq!(told["malformed"], 0);
    assert!(told["lines"].as_u64() > Some(seeded.accounts.len() as u64));

    let before = network.counted();
    // The endpoints are plain http on loopback: without leave they cannot be taken from the export.
    assert_eq!(told["resolved"], 0);
    arguments.extend(["--allow-network", "127.0.0.0/8", "--allow-network", "::1/128"]);
    let told = skyfill(&arguments).exits_with(0).json();
    println!("{told}");
    let done: Vec<&Account> = chosen.iter().copied().filter(|account| account.is_done()).collect();
    assert_eq!(told["resolved"], done.len());
    let summary = backfill(&seeded, &data, &chosen, &[], 3);
    check_summary(&summary, &chosen);
    compare(&seeded, &expected_rows(chosen.iter().copied(), false), &queued_rows(&data));
    let after = network.counted();
    for account in done {
        let asked = |seeded: &Seeded| seeded.asked.get(&account.did).copied().unwrap_or(0);
        // Its new host serves what its old one signed: only the directory's log has that key.
        let wanted = if account.name == "x-moved-silent" { 1 } else { 0 };
        assert_eq!(asked(&after) - asked(&before), wanted, "{}: documents", account.name);
    }
    for server in ["a", "b", "plc"] {
        println!("{server}: {:?}", after.answers[server]);
        assert_eq!(answered(&after, server, "429"), 0, "{server}");
    }
    assert!(answered(&after, "b", "200") > answered(&before, "b", "200"));
}

/// Leaves of an account with a row, by key: CID, queue, row.
fn leaves(account: &Account) -> BTreeMap<&str, (&str, &str, Value)> {
    let with_rows = account.records.iter().filter_map(|record| {
        let written = record.row.as_ref()?;
        let mut row = written.clone();
        row.insert("rev".to_owned(), json!(account.rev));
        let (cid, queue) = (written["cid"].as_str()?, record.queue.as_deref()?);
        Some((record.key.as_str(), (cid, queue, Value::Object(row))))
    });
    with_rows.collect()
}

/// What a refresh must bring: rows of leaves that were not there before, and who is gone, as (queue, URI, revision before and after).
fn difference(before: &Account, after: &Account) -> (Vec<(String, Value)>, Vec<Value>) {
    let (then, now) = (leaves(before), leaves(after));
    let is_same = |key: &str, (cid, queue, _): &(&str, &str, Value)| {
        then.get(key).is_some_and(|(had, was, _)| had == cid && was == queue)
    };
    let new = now.iter().filter(|(key, leaf)| !is_same(key, leaf));
    let new = new.map(|(_, (_, queue, row))| ((*queue).to_owned(), row.clone())).collect();
    let is_exported =
        |leaf: Option<&(&str, &str, Value)>| leaf.is_some_and(|(_, queue, _)| *queue != "rejected");
    let gone =
        then.iter().filter(|(key, leaf)| is_exported(Some(leaf)) && !is_exported(now.get(*key)));
    let deletion = |key: &str, queue: &str| {
        let uri = format!("at://{}/{key}", before.did);
        json!({"record_type": queue, "did": before.did, "uri": uri, "rev": after.rev, "previous_rev": before.rev})
    };
    (new, gone.map(|(key, (_, queue, _))| deletion(key, queue)).collect())
}

/// Every row of a queue as text, in order.
fn texts(data: &Path, queue: &str) -> Vec<String> {
    let rows = items(data, queue)
        .into_iter()
        .flat_map(|(payload, ..)| serde_json::from_str::<Vec<Value>>(&payload).unwrap());
    let mut texts: Vec<String> = rows
        .map(|mut row| {
            if let Some(row) = row.as_object_mut() {
                row.remove("detail");
                // Its form is looked at apart from what the difference says.
                let stamp = row.remove("synctimestamp").filter(|_| queue != "deleted");
                row.extend(stamp.map(|stamp| ("synctimestamp".to_owned(), stamp)));
            }
            sorted_text(&row)
        })
        .collect();
    texts.sort();
    texts
}

fn sorted_text(row: &Value) -> String {
    sorted(row).to_string()
}

/// The same with the keys of every object in order.
fn sorted(value: &Value) -> Value {
    match value {
        Value::Object(map) => {
            let fields: BTreeMap<&String, Value> =
                map.iter().map(|(name, value)| (name, sorted(value))).collect();
            fields.into_iter().map(|(name, value)| (name.clone(), value)).collect()
        }
        Value::Array(items) => items.iter().map(sorted).collect(),
        other => other.clone(),
    }
}

#[test]
fn a_refresh_after_200_random_edits_gives_exactly_those() {
    let network = Network::shared();
    let mut seeded = network.turn();
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let before = seeded.clone();
    let done: Vec<&Account> = before.accounts.iter().filter(|account| account.is_done()).collect();
    backfill(&before, &data, &done, &[], 0);
    let held: BTreeMap<&str, Vec<String>> =
        QUEUES.iter().map(|queue| (*queue, texts(&data, queue))).collect();
    let summary = backfill(&before, &data, &done, &["--refresh"], 0);
    assert_eq!(summary["refresh"]["unchanged"], json!(done.len()), "{summary}");

    *seeded = network.edit();
    let mut expected = held;
    let (mut deleted, mut changed, mut new) = (Vec::new(), 0, 0_u64);
    for account in &done {
        let after = seeded.accounts.iter().find(|it| it.did == account.did).unwrap();
        changed += u64::from(after.rev != account.rev);
        let (rows, gone) = difference(account, after);
        new += rows.iter().filter(|(queue, _)| queue != "rejected").count() as u64;
        for (queue, row) in rows {
            expected.get_mut(queue.as_str()).unwrap().push(sorted_text(&row));
        }
        deleted.extend(gone.iter().map(sorted_text));
    }
    let summary = backfill(&seeded, &data, &done, &["--refresh"], 0);
    let refresh = &summary["refresh"];
    println!(
        "{changed} accounts changed, {new} records new or changed, {} deleted: {refresh}",
        deleted.len()
    );
    assert!(new > 40 && deleted.len() > 30 && changed > 5, "hardly anything was edited");
    for (queue, mut rows) in expected {
        rows.sort();
        let found = texts(&data, queue);
        let missing: Vec<&String> = rows.iter().filter(|row| !found.contains(row)).collect();
        let strange: Vec<&String> = found.iter().filter(|row| !rows.contains(row)).collect();
        assert!(rows == found, "{queue}: missing {missing:#?}, not expected {strange:#?}");
    }
    deleted.sort();
    assert_eq!(deleted, texts(&data, "deleted"));
    for (payload, metadata, ..) in items(&data, "deleted") {
        let (payload, metadata): (Vec<Value>, Value) =
            (serde_json::from_str(&payload).unwrap(), serde_json::from_str(&metadata).unwrap());
        for row in payload {
            assert_eq!((&metadata["did"], &metadata["rev"]), (&row["did"], &row["rev"]));
            assert_eq!(row["synctimestamp"].as_str().map(str::len), Some(19));
        }
    }
    let counts = [("changed", changed), ("records", new), ("deleted", deleted.len() as u64)];
    for (name, count) in counts {
        assert_eq!(refresh[name], json!(count), "{name}");
    }
    assert_eq!(refresh["unchanged"], json!(done.len() as u64 - changed));
    skyfill(&["verify", "--data-dir", data.to_str().unwrap()]).exits_with(0);
    // A second time there is nothing left to bring.
    let again = backfill(&seeded, &data, &done, &["--refresh"], 0);
    assert_eq!(again["refresh"]["unchanged"], json!(done.len()));
    assert_eq!(deleted, texts(&data, "deleted"));
}
