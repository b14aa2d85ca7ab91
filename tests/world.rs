//! Tests of the tests' own ground: the generated world, the oracle against the golden data and against the program's
//! transformer, the servers and their faults, the judge, the child processes.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::cast_precision_loss,
    clippy::disallowed_methods
)]

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD};
use ipld_core::ipld::Ipld;
use serde_json::{Value as Json, json};
use skyfill::domain::did::Did;
use skyfill::domain::filter::{self, Filter, Kind, TypeEntry, Window};
use skyfill::repo::car::Framer;
use skyfill::repo::cid::{Cid, Codec};
use skyfill::repo::key::{Curve, PublicKey};
use skyfill::repo::walk::{Expected, Walk};
use skyfill::transform::{Origin, RecordBlock, RecordSource, Transformer, Verdict};
use support::demo_network;
use support::faults::{At, Fault, Place, Target, Then, Wait};
use support::judge::{judge, queue_path, queue_records};
use support::network::{Network, Standing};
use support::oracle::{Counts, Offsets, Options, Outcome, Outside, REJECTED, expect, outcome};
use support::pds::{GET_REPO, Manners};
use support::proc::{Signal, Skyfill};
use support::records::Intent;
use support::time::{Meaning, ODD, bucket, civil, parse_stamp, second_of, stamp};
use support::value::{Style, Value};
use support::world::{Records, Shape, World, WorldAccount, WorldRecord};

const PATIENCE: Duration = Duration::from_secs(30);

fn odd_world(seed: u64, accounts: usize, mean: usize) -> World {
    let records = Records::Mixed { mean };
    World::generate(&Shape { seed, accounts, hosts: 3, records, odd: true })
}

fn golden(file: &str) -> Vec<Json> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(file);
    fs::read_to_string(path).unwrap().parse::<Json>().unwrap().as_array().unwrap().clone()
}

// The world.

#[test]
fn one_seed_is_one_world() {
    let (world, same, other) = (odd_world(5, 30, 60), odd_world(5, 30, 60), odd_world(6, 30, 60));
    for index in 0..world.len() {
        let (account, again) = (world.account(index), same.account(index));
        assert_eq!(account.car(), again.car());
        assert_eq!(account.records.len(), world.record_count(index));
        assert!(account.records.windows(2).all(|pair| pair[0].key < pair[1].key));
    }
    assert!(world.dids().iter().all(|did| other.index_of(did).is_none()));
    let counts: Vec<usize> = (0..world.len()).map(|index| world.record_count(index)).collect();
    assert_eq!(counts.iter().sum::<usize>(), 30 * 60);
    assert!(counts.contains(&0) && counts.contains(&1) && *counts.iter().max().unwrap() > 120);
    let hosts: BTreeSet<usize> = (0..world.len()).map(|index| world.host(index)).collect();
    assert_eq!(hosts, BTreeSet::from([0, 1, 2]));
}

#[test]
fn records_weigh_what_real_ones_weigh() {
    for odd in [false, true] {
        let shape = Shape { seed: 3, accounts: 4, hosts: 1, records: Records::Fixed(2_000), odd };
        let world = World::generate(&shape);
        let bytes: usize = (0..4).map(|index| world.account(index).car().len()).sum();
        let mean = bytes as f64 / 8_000.0;
        println!("{mean:.0} bytes of CAR a record, odd: {odd}");
        assert!((370.0..410.0).contains(&mean), "{mean}");
    }
}

#[test]
fn a_later_revision_has_lost_replaced_and_gained() {
    let world = odd_world(8, 12, 50);
    let index = (0..12).find(|index| world.record_count(*index) > 40).unwrap();
    let (first, second) = (world.account(index), world.account_at(index, 1));
    assert!(first.rev < second.rev);
    let cids = |account: &WorldAccount| -> BTreeSet<[u8; 36]> {
        account.records.iter().map(|record| record.cid).collect()
    };
    assert_eq!(second.records.len(), first.records.len() + 4);
    assert!((1..=2).contains(&cids(&first).difference(&cids(&second)).count()));
    assert!((5..=6).contains(&cids(&second).difference(&cids(&first)).count()));
}

#[test]
fn what_was_meant_is_what_the_rules_say() {
    let world = odd_world(11, 48, 400);
    let options = Options { outside: Outside::Keep, ..Options::default() };
    let mut seen: BTreeMap<String, u64> = BTreeMap::new();
    let mut twins = 0;
    for index in 0..world.len() {
        let account = world.account(index);
        let cids: BTreeSet<[u8; 36]> = account.records.iter().map(|record| record.cid).collect();
        twins += account.records.len() - cids.len();
        for record in &account.records {
            let name = match outcome(&account, record, &options) {
                Outcome::Exported(label, _) => {
                    let is_meant = record.intent == Intent::Exported(find(&label));
                    assert!(is_meant, "{record:?} became {label}");
                    label
                }
                Outcome::Skipped(reason) => {
                    assert_eq!((record.intent, reason), (Intent::Skipped, "type"), "{record:?}");
                    reason.to_owned()
                }
                Outcome::Rejected(reason, _) => {
                    assert_eq!(record.intent, Intent::Rejected(reason), "{record:?}");
                    reason.to_owned()
                }
            };
            *seen.entry(name).or_default() += 1;
        }
    }
    println!("{seen:?}, {twins} twins");
    let kinds = ["post", "reply", "like", "repost", "follow", "block", "type"];
    let reasons = ["created_at", "schema", "cbor", "too_large"];
    assert!(kinds.iter().chain(&reasons).all(|name| seen.contains_key(*name)), "{seen:?}");
    assert!(seen["like"] > seen["post"] * 3 && twins > 10);
}

fn find(label: &str) -> &'static str {
    ["post", "reply", "like", "repost", "follow", "block"]
        .into_iter()
        .find(|known| *known == label)
        .unwrap()
}

fn from_ipld(value: Ipld) -> Value {
    match value {
        Ipld::Null => Value::Null,
        Ipld::Bool(value) => Value::Bool(value),
        Ipld::Integer(value) => Value::Int(value),
        Ipld::Float(value) => Value::Float(value),
        Ipld::String(value) => Value::Text(value.into()),
        Ipld::Bytes(value) => Value::Bytes(value),
        Ipld::Link(value) => Value::Link(value.to_bytes().try_into().unwrap()),
        Ipld::List(values) => Value::List(values.into_iter().map(from_ipld).collect()),
        Ipld::Map(fields) => {
            let fields = fields.into_iter().map(|(key, value)| (key.into(), from_ipld(value)));
            Value::Map(fields.collect()).sorted()
        }
    }
}

#[test]
fn blocks_say_what_the_world_describes() {
    let world = odd_world(12, 12, 300);
    let mut compared = 0;
    for record in (0..12).flat_map(|index| world.account(index).records) {
        let Some(value) = &record.value else { continue };
        // What strict readers refuse is compared through the program's own in the next tests.
        if value.to_cbor(Style::Strict) != record.bytes || !is_sorted(value) {
            continue;
        }
        let read: Ipld = serde_ipld_dagcbor::from_slice(&record.bytes).unwrap();
        assert_eq!(from_ipld(read), *value);
        let name = cid::Cid::new_v1(0x71, *record.cid().hash()).to_string();
        assert_eq!(support::value::cid_text(&record.cid), name);
        compared += 1;
    }
    assert!(compared > 3_400, "{compared}");
}

fn is_sorted(value: &Value) -> bool {
    match value {
        Value::Map(fields) => {
            value.clone().sorted() == *value && fields.iter().all(|(_, value)| is_sorted(value))
        }
        Value::List(values) => values.iter().all(is_sorted),
        _ => true,
    }
}

// The oracle.

#[test]
fn the_calendar_is_right() {
    for (second, text) in [
        (0, "1970-01-01-00:00:00"),
        (-1, "1969-12-31-23:59:59"),
        (951_782_399, "2000-02-28-23:59:59"),
        (951_868_799, "2000-02-29-23:59:59"),
        (1_727_395_200, "2024-09-27-00:00:00"),
        (1_733_097_600, "2024-12-02-00:00:00"),
        (-62_135_596_800, "0001-01-01-00:00:00"),
        (253_402_300_799, "9999-12-31-23:59:59"),
    ] {
        assert_eq!((stamp(second), parse_stamp(text)), (text.to_owned(), second));
    }
    let mut second = -62_135_596_800;
    while second < 253_402_300_799 {
        assert_eq!(second_of(civil(second)), second);
        second += 9_999_991;
    }
    assert_eq!(bucket(parse_stamp("9999-12-16-10:00:00")), None);
    assert_eq!(
        bucket(parse_stamp("2023-12-16-10:00:00")).map(stamp).unwrap(),
        "2024-01-01-00:00:00"
    );
}

#[test]
fn odd_times_mean_what_the_golden_table_says() {
    let mut table: BTreeMap<String, Option<String>> = BTreeMap::new();
    for case in golden("created_at.json") {
        let stamp = case["synctimestamp"].as_str().map(str::to_owned);
        table.insert(case["createdAt"].as_str().unwrap().to_owned(), stamp);
    }
    for case in golden("records.json") {
        let Some(text) = case["record"]["createdAt"].as_str() else { continue };
        let stamp = case["output"]["synctimestamp"].as_str().map(str::to_owned);
        if stamp.is_some() || case["verdict"] == "rejected:created_at" {
            table.insert(text.to_owned(), stamp);
        }
    }
    let mut compared = 0;
    for (text, wall, _) in ODD {
        let Some(expected) = table.get(*text) else { continue };
        let placed = wall.map(|wall| {
            let second = parse_stamp(wall);
            let is_inside = ("2024-09-27-00:00:00"..="2024-12-02-00:00:00").contains(&wall);
            let second = if is_inside { second } else { bucket(second).unwrap_or(second) };
            stamp(second)
        });
        assert_eq!(placed, *expected, "{text:?}");
        compared += 1;
    }
    println!("{compared} of {} odd times are in the golden table", ODD.len());
    assert!(compared >= 30);
}

/// The readable form of a golden record; maps get DAG-CBOR's order.
fn from_golden(value: &Json) -> Value {
    match value {
        Json::Null => Value::Null,
        Json::Bool(value) => Value::Bool(*value),
        Json::Number(number) => match (number.as_u64(), number.as_i64(), number.as_f64()) {
            (Some(value), ..) => Value::Int(value.into()),
            (_, Some(value), _) => Value::Int(value.into()),
            (_, _, value) => Value::Float(value.unwrap()),
        },
        Json::String(value) => Value::Text(value.clone().into()),
        Json::Array(values) => Value::List(values.iter().map(from_golden).collect()),
        Json::Object(fields) => match fields.get("/").filter(|_| fields.len() == 1) {
            Some(Json::String(link)) => {
                let link: cid::Cid = link.parse().unwrap();
                Value::Link(link.to_bytes().try_into().unwrap())
            }
            Some(bytes) => {
                let bytes = bytes["bytes"].as_str().unwrap();
                Value::Bytes(STANDARD_NO_PAD.decode(bytes).unwrap())
            }
            None => {
                let fields = fields.iter().map(|(key, v)| (key.clone().into(), from_golden(v)));
                Value::Map(fields.collect()).sorted()
            }
        },
    }
}

/// What the plainest form of a time means; `None` if it is another form.
fn plain_time(value: &Value) -> Option<Meaning> {
    let Some(text) = value.get("createdAt").and_then(Value::as_text) else {
        return Some(Meaning::Unreadable);
    };
    let plain = "0000-00-00T00:00:00";
    let has_form = text.is_ascii()
        && text.len() >= plain.len()
        && text.bytes().zip(plain.bytes()).all(|(byte, form)| match form {
            b'0' => byte.is_ascii_digit(),
            _ => byte == form,
        });
    if !has_form {
        return None;
    }
    let wall = text[..plain.len()].replace('T', "-");
    let second = parse_stamp(&wall);
    let is_real = stamp(second) == wall && second >= -62_135_596_800;
    is_real.then_some(Meaning::At { wall: second, offset: 0 })
}

#[test]
fn the_oracle_agrees_with_the_python_service() {
    let options = Options { offsets: Offsets::Ignore, ..Options::default() };
    let account = odd_world(1, 1, 0).account(0);
    let (mut verdicts, mut rows) = (0, 0);
    for case in golden("records.json") {
        let bytes = STANDARD.decode(case["record_cbor_b64"].as_str().unwrap()).unwrap();
        let value = from_golden(&case["record"]);
        let Some(time) = plain_time(&value).filter(|_| value.to_cbor(Style::Strict) == bytes)
        else {
            continue;
        };
        let (collection, rkey) = (&case["collection"], &case["rkey"]);
        let key = format!("{}/{}", collection.as_str().unwrap(), rkey.as_str().unwrap());
        let (cid, intent, note) = ([0; 36], Intent::Skipped, &case["note"]);
        let record = WorldRecord { key, cid, bytes, value: Some(value), time, intent };
        let (verdict, queue, row) = match outcome(&account, &record, &options) {
            Outcome::Exported(label, row) => ("exported".to_owned(), label, row),
            Outcome::Skipped(reason) => (format!("skipped:{reason}"), String::new(), Json::Null),
            Outcome::Rejected(reason, row) => (format!("rejected:{reason}"), REJECTED.into(), row),
        };
        assert_eq!(verdict, case["verdict"].as_str().unwrap(), "{note}");
        verdicts += 1;
        let Some(output) = case["output"].as_object() else { continue };
        assert_eq!(queue, case["queue"].as_str().unwrap(), "{note}");
        for (name, value) in output {
            assert_eq!(row[name], *value, "{note}: {name}");
        }
        let names: Vec<&String> = row.as_object().unwrap().keys().collect();
        let own = ["did", "uri", "cid", "rev"].map(str::to_owned);
        let order: Vec<&String> = output.keys().chain(&own).collect();
        assert_eq!(names, order, "{note}");
        rows += 1;
    }
    println!("{verdicts} verdicts, {rows} rows");
    assert!(verdicts >= 200 && rows >= 130, "{verdicts} {rows}");
}

/// The same options in the program's own words.
fn filter_of(options: &Options) -> Filter {
    let entry = |text: &String| match Kind::ALL.into_iter().find(|kind| kind.label() == text) {
        Some(kind) => TypeEntry::Kind(kind),
        None => match text.strip_suffix('*') {
            Some(prefix) => TypeEntry::Prefix(prefix.to_owned()),
            None => TypeEntry::Nsid(text.clone()),
        },
    };
    let window = Window {
        start: options.start.clone(),
        end: options.end.clone(),
        outside: match options.outside {
            Outside::Bucket => filter::Outside::Bucket,
            Outside::Drop => filter::Outside::Drop,
            Outside::Keep => filter::Outside::Keep,
        },
        offsets: match options.offsets {
            Offsets::Utc => filter::Offsets::Utc,
            Offsets::Ignore => filter::Offsets::Ignore,
        },
    };
    Filter { types: options.types.iter().map(entry).collect(), window }
}

fn every_way() -> Vec<Options> {
    let types = ["like", "post", "com.example.note", "com.example.*", "app.bsky.graph.*"];
    let foreign = Options { types: types.map(str::to_owned).to_vec(), ..Options::default() };
    let drop = Options { outside: Outside::Drop, ..Options::default() };
    let keep = Options { outside: Outside::Keep, offsets: Offsets::Ignore, ..Options::default() };
    vec![Options::default(), foreign, drop, keep]
}

#[test]
fn the_transformer_agrees_with_the_oracle() {
    let world = odd_world(13, 24, 150);
    for options in every_way() {
        let transformer = Transformer::new(&filter_of(&options));
        assert_eq!(transformer.queues(), options.labels());
        let mut rows = 0;
        for account in (0..world.len()).map(|index| world.account(index)) {
            let origin = Origin::new(&account.did, &account.rev);
            for record in &account.records {
                let codec = if record.cid[1] == 0x55 { Codec::Raw } else { Codec::DagCbor };
                let source = RecordSource {
                    origin: &origin,
                    key: &record.key,
                    cid: Cid { codec, digest: record.cid[4..].try_into().unwrap() },
                    block: RecordBlock::Held(&record.bytes),
                };
                let plan = transformer.read(&source);
                let mut row = Vec::new();
                plan.write(&mut row);
                let row: Json = std::str::from_utf8(&row).unwrap().parse().unwrap_or_default();
                let found = match plan.verdict() {
                    Verdict::Exported(queue) => {
                        Outcome::Exported(transformer.queues()[queue].clone(), row)
                    }
                    Verdict::Skipped(reason) => Outcome::Skipped(reason),
                    Verdict::Rejected(reason) => {
                        let mut row = row;
                        assert!(row["detail"].as_str().is_some_and(|text| !text.is_empty()));
                        row["detail"] = json!(support::oracle::DETAIL);
                        Outcome::Rejected(reason, row)
                    }
                };
                let expected = outcome(&account, record, &options);
                assert_eq!(format!("{found:?}"), format!("{expected:?}"));
                rows += 1;
            }
        }
        assert_eq!(rows, world.records_total());
    }
}

#[test]
fn every_repository_is_proven_by_the_program_and_by_its_peers() {
    let world = odd_world(15, 30, 60);
    let mut leaves = 0;
    for account in (0..world.len()).map(|index| world.account_at(index, index as u64 % 3)) {
        let (car, forged) = (account.car(), account.forged());
        let mut framer = Framer::new(1 << 30);
        framer.push(&car).unwrap();
        let (framed, did) = (framer.finish().unwrap(), Did::parse(&account.did).unwrap());
        let (cancel, key) = (AtomicBool::new(false), account.key.did_key());
        let expected = Expected { did: Some(&did), key: Some(&key), earlier_keys: &[] };
        let mut walk = Walk::open(&car, &framed, &expected, &cancel).unwrap();
        let mut records = account.records.iter();
        while let Some(leaf) = walk.next_leaf().unwrap() {
            let record = records.next().unwrap();
            assert_eq!((leaf.key, &leaf.cid.digest[..]), (record.key.as_str(), &record.cid[4..]));
            leaves += 1;
        }
        assert!(records.next().is_none() && walk.commit().rev == account.rev);
        let legacy = forged.key.legacy_multibase();
        let curve =
            if forged.key.legacy_type().contains("256k1") { Curve::K256 } else { Curve::P256 };
        assert_eq!(PublicKey::from_legacy(curve, &legacy).unwrap().to_did_key(), key);
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let blocks = runtime.block_on(async {
            let reader = iroh_car::CarReader::new(car.as_slice()).await.unwrap();
            futures::StreamExt::count(reader.stream()).await
        });
        assert_eq!(blocks as u64, framed.blocks);
    }
    assert!(leaves > 1_700, "{leaves}");
}

#[test]
fn counts_reconcile() {
    let world = odd_world(14, 24, 120);
    for options in every_way() {
        let mut all = Counts::default();
        for index in 0..world.len() {
            let expectation = expect(&world.account(index), &options);
            let counts = &expectation.counts;
            let rows: usize = expectation.rows.values().map(Vec::len).sum();
            assert_eq!(rows as u64, counts.exported_total() + counts.rejected_total());
            all.add(counts);
        }
        let sum = all.exported_total() + all.skipped_total() + all.rejected_total();
        assert_eq!((all.leaves, sum), (24 * 120, 24 * 120));
        let is_dropping = options.outside == Outside::Drop;
        assert_eq!(all.skipped.contains_key("outside_window"), is_dropping);
    }
}

// The servers.

/// What a plain client gets for a GET.
#[derive(Debug)]
struct Got {
    status: u16,
    head: String,
    body: Vec<u8>,
    /// Whether the chunked encoding, or the announced length, was complete.
    is_complete: bool,
    is_reset: bool,
}

/// Asks for `path` and reads until the end, or until nothing comes although `is_over`.
fn get_until(address: &str, path: &str, is_over: impl Fn() -> bool) -> std::io::Result<Got> {
    let mut stream = TcpStream::connect(address.trim_start_matches("http://"))?;
    stream.set_read_timeout(Some(Duration::from_millis(30)))?;
    let request = format!("GET {path} HTTP/1.1\r\nhost: test\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes())?;
    let (mut bytes, mut buffer, mut is_reset) = (Vec::new(), vec![0; 64 << 10], false);
    let until = Instant::now() + PATIENCE;
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => break,
            Ok(length) => bytes.extend_from_slice(&buffer[..length]),
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                assert!(Instant::now() < until, "{path}: nothing happens");
                if is_over() {
                    break;
                }
            }
            Err(error) => {
                is_reset = error.kind() == std::io::ErrorKind::ConnectionReset;
                break;
            }
        }
    }
    let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") else {
        let (status, head, body) = (0, String::new(), Vec::new());
        return Ok(Got { status, head, body, is_complete: false, is_reset });
    };
    let head = String::from_utf8(bytes[..end].to_vec()).unwrap().to_ascii_lowercase();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    let rest = &bytes[end + 4..];
    let (body, is_complete) = if head.contains("transfer-encoding: chunked") {
        unchunked(rest)
    } else {
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
        let length: usize = length.unwrap_or("0").trim().parse().unwrap();
        (rest.to_vec(), rest.len() == length)
    };
    Ok(Got { status, head, body, is_complete, is_reset })
}

fn unchunked(mut rest: &[u8]) -> (Vec<u8>, bool) {
    let mut body = Vec::new();
    loop {
        let Some(end) = rest.windows(2).position(|window| window == b"\r\n") else {
            return (body, false);
        };
        let length = usize::from_str_radix(std::str::from_utf8(&rest[..end]).unwrap(), 16).unwrap();
        let data = &rest[end + 2..];
        if length == 0 {
            return (body, true);
        }
        body.extend_from_slice(&data[..length.min(data.len())]);
        if data.len() < length + 2 {
            return (body, false);
        }
        rest = &data[length + 2..];
    }
}

fn get(address: &str, path: &str) -> Got {
    get_until(address, path, || false).unwrap()
}

fn get_json(address: &str, path: &str) -> (u16, Json) {
    let got = get(address, path);
    assert!(got.is_complete, "{got:?}");
    (got.status, String::from_utf8(got.body).unwrap().parse().unwrap())
}

fn repo_path(did: &str) -> String {
    format!("/xrpc/{GET_REPO}?did={}", did.replace(':', "%3A"))
}

fn small_network() -> Network {
    let records = Records::Mixed { mean: 40 };
    Network::generate(&Shape { seed: 21, accounts: 24, hosts: 3, records, odd: true })
}

#[test]
fn the_network_serves_its_world() {
    let network = small_network();
    for index in 0..network.world().len() {
        let did = network.world().did(index).to_owned();
        let (status, document) = get_json(&network.plc.url(), &format!("/{did}"));
        assert_eq!((status, document["id"].as_str()), (200, Some(did.as_str())));
        let host = network.host_of(index);
        let services = document["service"].as_array().unwrap();
        let pds = services.iter().find(|s| s["type"] == "AtprotoPersonalDataServer").unwrap();
        assert_eq!(pds["serviceEndpoint"], host.url());
        let got = get(&host.url(), &repo_path(&did));
        assert!(got.is_complete && got.head.contains("application/vnd.ipld.car"), "{got:?}");
        assert!(!got.head.contains("content-length"));
        assert_eq!(got.body, network.world().account(index).car());
        assert_eq!(host.log().count(GET_REPO, &did), 1);
        let rev = network.world().rev(index, 0);
        let (_, latest) =
            get_json(&host.url(), &format!("/xrpc/com.atproto.sync.getLatestCommit?did={did}"));
        assert_eq!((&latest["rev"], latest["cid"].as_str().unwrap().len()), (&json!(rev), 59));
        let (_, status) =
            get_json(&host.url(), &format!("/xrpc/com.atproto.sync.getRepoStatus?did={did}"));
        assert_eq!(status, json!({"did": did, "active": true, "rev": rev}));
    }
    assert_eq!(network.plc.requests(), 24);
    let (status, unknown) = get_json(&network.plc.url(), "/did:plc:aaaaaaaaaaaaaaaaaaaaaaaa");
    let message = "DID not registered: did:plc:aaaaaaaaaaaaaaaaaaaaaaaa";
    assert_eq!((status, unknown), (404, json!({"message": message})));
    assert_eq!(network.open_transfers(), 0);
    assert_eq!(network.faults().fired_total(), 0);
}

#[test]
fn accounts_change_while_the_network_runs() {
    let network = small_network();
    let did = network.world().did(4).to_owned();
    let here = network.now(4).host;
    let error = |host: usize| {
        let (status, body) = get_json(&network.hosts[host].url(), &repo_path(&did));
        (status, body["error"].as_str().unwrap_or("").to_owned())
    };
    for (standing, name, word) in [
        (Standing::Deactivated, "RepoDeactivated", json!("deactivated")),
        (Standing::TakenDown, "RepoTakendown", json!("takendown")),
        (Standing::Suspended, "RepoSuspended", json!("suspended")),
        (Standing::Deleted, "RepoNotFound", json!("deleted")),
        (Standing::Tombstoned, "RepoNotFound", Json::Null),
    ] {
        network.set_standing(4, standing);
        assert_eq!(error(here), (400, name.to_owned()));
        let path = format!("/xrpc/com.atproto.sync.getRepoStatus?did={did}");
        assert_eq!(get_json(&network.hosts[here].url(), &path).1["status"], word);
    }
    let (status, body) = get_json(&network.plc.url(), &format!("/{did}"));
    assert_eq!((status, body), (404, json!({"message": format!("DID not available: {did}")})));
    assert!(!network.active().contains(&4) && network.active().len() == 23);
    network.set_standing(4, Standing::Active);
    let there = (here + 1) % 3;
    network.move_account(4, there);
    assert_eq!(error(here), (400, "RepoDeactivated".to_owned()));
    assert_eq!(error((here + 2) % 3), (400, "RepoNotFound".to_owned()));
    assert_eq!(network.advance(4), 1);
    let got = get(&network.hosts[there].url(), &repo_path(&did));
    assert_eq!(got.body, network.world().account_at(4, 1).car());
    let expected: Vec<String> = network.expected().map(|account| account.rev).collect();
    assert!(expected.contains(&network.world().rev(4, 1)));
}

/// Index of an account with enough blocks for every fault.
fn full_account(network: &Network) -> usize {
    (0..24).max_by_key(|index| network.world().record_count(*index)).unwrap()
}

#[test]
fn bodies_break_where_they_are_told_to() {
    let network = small_network();
    let index = full_account(&network);
    let (did, host) = (network.world().did(index).to_owned(), network.host_of(index));
    let car = network.world().account(index).car();
    let broken = |fault: Fault| {
        let (name, fired) = (fault.name(), network.faults().fired(fault.name()));
        network.faults().once(&did, fault);
        let has_fired = || network.faults().fired(name) > fired;
        let is_silent = matches!(name, "stall" | "no_answer");
        get_until(&host.url(), &repo_path(&did), || is_silent && has_fired()).unwrap()
    };
    for at in [At::Start, At::Byte(100), At::Middle, At::MiddleBorder, At::LastBlock, At::LastByte]
    {
        let stop = support::pds::position(&car, at);
        assert!(stop < car.len());
        let got = broken(Fault::Cut(at));
        assert!(got.is_complete && got.body == car[..stop], "{at:?}");
        let got = broken(Fault::Drop(at));
        assert!(!got.is_complete && !got.is_reset && got.status == 200, "{at:?}");
        assert_eq!(got.body, car[..stop], "{at:?}");
        let got = broken(Fault::DropWithLength(at));
        assert!(!got.is_complete && got.head.contains(&format!("content-length: {}", car.len())));
        let got = broken(Fault::Reset(at));
        assert!(got.is_reset && !got.is_complete, "{at:?}");
        let got = broken(Fault::Stall(at));
        assert!(!got.is_complete && got.body == car[..stop], "{at:?}");
    }
    for name in ["cut", "drop", "drop_with_length", "reset", "stall"] {
        assert_eq!(network.faults().fired(name), 6, "{name}");
    }
    let drip = Fault::Drip { bytes: car.len() / 5 + 1, every: Duration::from_millis(20) };
    let begun = Instant::now();
    let got = broken(drip);
    assert!(got.body == car && begun.elapsed() >= Duration::from_millis(80));
    assert!(broken(Fault::NoAnswer).status == 0);
    assert!(broken(Fault::CloseBeforeHeaders).status == 0);
    assert!(broken(Fault::SlowHeaders(Duration::from_millis(30))).body == car);
    network.faults().assert_fired(&["drip", "no_answer", "close_before_headers", "slow_headers"]);
    assert!(network.faults().waiting().is_empty());
    let all_ended = host.log().wait(PATIENCE, |entries| entries.iter().all(|e| !e.is_open));
    assert!(all_ended && host.log().open() == 0, "a stalled transfer outlives its client");
}

#[test]
fn an_endless_body_has_no_end() {
    let network = small_network();
    let index = full_account(&network);
    let did = network.world().did(index).to_owned();
    network.faults().once(&did, Fault::Endless);
    let address = network.host_of(index).url();
    let mut stream = TcpStream::connect(address.trim_start_matches("http://")).unwrap();
    let request = format!("GET {} HTTP/1.1\r\nhost: test\r\n\r\n", repo_path(&did));
    stream.write_all(request.as_bytes()).unwrap();
    let mut read = 0;
    while read < 8 << 20 {
        read += stream.read(&mut vec![0; 64 << 10]).unwrap();
    }
    network.faults().assert_fired(&["endless"]);
    assert_eq!(network.host_of(index).log().open(), 1);
    drop(stream);
    assert!(network.host_of(index).log().wait(PATIENCE, |entries| !entries[0].is_open));
}

#[test]
fn broken_repositories_are_other_bytes() {
    let network = small_network();
    let index = full_account(&network);
    let (did, address) = (network.world().did(index).to_owned(), network.host_of(index).url());
    let car = network.world().account(index).car();
    let faults = [
        Fault::WrongHash,
        Fault::MissingRecord,
        Fault::MissingNode,
        Fault::OtherDid,
        Fault::BadSignature,
        Fault::HighS,
    ];
    let names: Vec<&str> = faults.iter().map(Fault::name).collect();
    let target = Target::Did(did.clone());
    network.faults().script(Place::Repo, target, faults.clone(), Then::Heal);
    assert_eq!(network.faults().waiting().len(), 6);
    let bodies: Vec<Vec<u8>> =
        faults.iter().map(|_| get(&address, &repo_path(&did)).body).collect();
    assert!(bodies.iter().all(|body| *body != car));
    assert_eq!(bodies.iter().collect::<BTreeSet<_>>().len(), 6);
    network.faults().assert_fired(&names);
    assert_eq!(get(&address, &repo_path(&did)).body, car);
    let key = |document: Json| document["verificationMethod"].to_string();
    let before = key(get_json(&network.plc.url(), &format!("/{did}")).1);
    network.rotate_key(index);
    assert_ne!(key(get_json(&network.plc.url(), &format!("/{did}")).1), before);
    assert_ne!(get(&address, &repo_path(&did)).body, car);
}

#[test]
fn refusals_and_errors_are_answered_as_scripted() {
    let network = small_network();
    let (did, address) = (network.world().did(0).to_owned(), network.host_of(0).url());
    let waits = [
        (Wait::Seconds(7), "retry-after: 7"),
        (Wait::Date(-100), "gmt"),
        (Wait::Reset(60), "ratelimit-reset: "),
        (Wait::None, "text/html"),
        (Wait::Text("soon".to_owned()), "retry-after: soon"),
    ];
    for (wait, text) in waits {
        network.faults().once(&did, Fault::RateLimited(wait));
        let got = get(&address, &repo_path(&did));
        assert!(got.status == 429 && got.head.contains(text), "{got:?}");
    }
    network.faults().once(&did, Fault::Error("RepoTakendown"));
    assert_eq!(get_json(&address, &repo_path(&did)).1["error"], "RepoTakendown");
    network.faults().once(&did, Fault::HtmlOk);
    assert!(get(&address, &repo_path(&did)).body.starts_with(b"<!DOCTYPE html>"));
    network.faults().once(&did, Fault::EmptyOk);
    assert!(get(&address, &repo_path(&did)).body.is_empty());
    let host = Target::Host(network.now(0).host);
    network.faults().script(Place::Repo, host, [Fault::status(503)], Then::Repeat);
    assert_eq!([1, 2].map(|_| get(&address, &repo_path(&did)).status), [503, 503]);
    network.faults().heal();
    assert_eq!(get(&address, &repo_path(&did)).status, 200);
    network.faults().storm(Place::Repo, 1, 500, vec![Fault::status(500), Fault::status(502)]);
    let statuses: Vec<u16> = (0..40).map(|_| get(&address, &repo_path(&did)).status).collect();
    assert!([200, 500, 502].iter().all(|status| statuses.contains(status)), "{statuses:?}");
    assert_eq!(network.faults().never_fired(&["status", "never"]), ["never"]);
}

#[test]
fn documents_break_as_scripted() {
    let network = small_network();
    let did = network.world().did(3).to_owned();
    let ask = |fault: Fault| {
        let target = Target::Did(did.clone());
        network.faults().script(Place::Directory, target, [fault], Then::Heal);
        let got = get(&network.plc.url(), &format!("/{did}"));
        (got.status, String::from_utf8(got.body).unwrap())
    };
    assert_eq!(ask(Fault::NotRegistered).0, 404);
    assert!(ask(Fault::Tombstoned).1.contains("DID not available"));
    assert_eq!(ask(Fault::TombstonedGone).0, 410);
    assert!(ask(Fault::NotJson).1.parse::<Json>().is_err());
    assert!(ask(Fault::NotADocument).1.parse::<Json>().unwrap().is_array());
    assert!(!ask(Fault::DocumentForOther).1.contains(&format!("\"id\":\"{did}\"")));
    assert!(!ask(Fault::NoPds).1.contains("AtprotoPersonalDataServer"));
    assert!(ask(Fault::EmptyPds).1.contains("\"serviceEndpoint\":\"\""));
    assert!(ask(Fault::Endpoint("https://10.0.0.1".into())).1.contains("https://10.0.0.1"));
    assert!(!ask(Fault::NoKey).1.contains("publicKeyMultibase"));
    assert!(ask(Fault::Oversized(1 << 20)).1.len() > 1 << 20);
    assert_eq!(ask(Fault::status(500)).0, 500);
    assert_eq!(network.faults().fired_total(), 12);
    let (_, whole) = get_json(&network.plc.url(), &format!("/{did}"));
    let key = whole["verificationMethod"].as_array().unwrap().last().unwrap().clone();
    assert!(key["type"].as_str().unwrap().ends_with("VerificationKey2019"), "{key}");
}

#[test]
fn hosts_have_a_pace_a_limit_and_may_be_down() {
    let network = small_network();
    let index = full_account(&network);
    let (did, host) = (network.world().did(index).to_owned(), network.host_of(index));
    let length = network.car_bytes(index);
    let manners = Manners { chunk_bytes: 4 << 10, ..Manners::default() };
    host.set_manners(Manners { bytes_per_second: Some(length * 4), ..manners });
    let begun = Instant::now();
    assert_eq!(get(&host.url(), &repo_path(&did)).body.len() as u64, length);
    assert!(begun.elapsed() >= Duration::from_millis(150), "{:?}", begun.elapsed());
    let limit = Some((3, Duration::from_secs(600)));
    host.set_manners(Manners { limit, ..Manners::default() });
    let answers: Vec<Got> = (0..5).map(|_| get(&host.url(), &repo_path(&did))).collect();
    assert_eq!(answers.iter().map(|got| got.status).collect::<Vec<_>>(), [200, 200, 200, 429, 429]);
    assert!(answers[0].head.contains("ratelimit-remaining: 2"), "{}", answers[0].head);
    assert_eq!(network.faults().fired("limit"), 2);
    assert_eq!(host.log().most_within(GET_REPO, Duration::from_secs(600)), 6);
    host.set_manners(Manners::default());
    host.server().refuse(true);
    let refused = get_until(&host.url(), &repo_path(&did), || false);
    assert_eq!(refused.unwrap_err().kind(), std::io::ErrorKind::ConnectionRefused);
    let other = std::net::TcpListener::bind(host.server().address());
    assert_eq!(other.unwrap_err().kind(), std::io::ErrorKind::AddrInUse, "the port is its own");
    host.server().refuse(false);
    assert_eq!(get(&host.url(), &repo_path(&did)).status, 200);
}

#[test]
fn the_demo_has_its_size() {
    let network = demo_network();
    let world = network.world();
    assert_eq!((world.len(), network.hosts.len(), network.active().len()), (50, 3, 48));
    let records: usize = network.active().iter().map(|index| world.record_count(*index)).sum();
    println!("{records} records in 48 accounts");
    assert!((90_000..110_000).contains(&records), "{records}");
    let standings: Vec<Standing> = (0..50).map(|index| network.now(index).standing).collect();
    assert!(
        standings.contains(&Standing::Tombstoned) && standings.contains(&Standing::Deactivated)
    );
}

// The judge.

const QUEUE_TABLE: &str = "PRAGMA journal_mode=WAL;
    CREATE TABLE queue (id INTEGER PRIMARY KEY AUTOINCREMENT, payload TEXT, metadata TEXT,
    created_at TIMESTAMP DEFAULT CURRENT_TIMESTAMP, status TEXT DEFAULT 'pending');";

/// Writes the queues as a faultless program would.
fn write_queues(data_dir: &Path, accounts: &[WorldAccount], options: &Options) {
    fs::create_dir_all(data_dir.join("queue")).unwrap();
    for label in options.labels() {
        let connection = rusqlite::Connection::open(queue_path(data_dir, &label)).unwrap();
        connection.execute_batch(QUEUE_TABLE).unwrap();
        for account in accounts {
            let expectation = expect(account, options);
            for rows in expectation
                .rows
                .get(&label)
                .into_iter()
                .flat_map(|rows| rows.chunks(options.rows_per_item))
            {
                let rows: Vec<Json> = rows
                    .iter()
                    .map(|row| {
                        let mut row = row.clone();
                        if label == REJECTED {
                            row["detail"] = json!("because");
                        }
                        row
                    })
                    .collect();
                let metadata = json!({
                    "batch_size": options.rows_per_item, "actual_batch_size": rows.len(),
                    "did": account.did, "rev": account.rev,
                });
                let insert = "INSERT INTO queue (payload, metadata, created_at) VALUES (?1, ?2, '2026-11-24-06:00:00')";
                let payload = Json::Array(rows).to_string();
                connection.execute(insert, [payload, metadata.to_string()]).unwrap();
            }
        }
    }
}

#[test]
fn the_judge_sees_every_kind_of_wrong() {
    let world = odd_world(31, 12, 60);
    let accounts: Vec<WorldAccount> = (0..12).map(|index| world.account(index)).collect();
    let options = Options { rows_per_item: 20, ..Options::default() };
    let folder = tempfile::tempdir().unwrap();
    let counts = accounts.iter().fold(Counts::default(), |mut sum, account| {
        sum.add(&expect(account, &options).counts);
        sum
    });
    let with = |sql: &str| {
        let data_dir = tempfile::tempdir_in(folder.path()).unwrap();
        write_queues(data_dir.path(), &accounts, &options);
        let connection = rusqlite::Connection::open(queue_path(data_dir.path(), "like")).unwrap();
        connection.execute_batch(sql).unwrap();
        drop(connection);
        judge(data_dir.path(), accounts.iter().cloned(), &options)
    };
    let clean = with("");
    clean.assert_clean();
    assert_eq!(clean.expected, counts.exported_total() + counts.rejected_total());
    let first = "(SELECT min(id) FROM queue WHERE json_array_length(payload) > 3)";
    let lost = with(&format!(
        "UPDATE queue SET payload = json_remove(payload, '$[1]'), metadata = json_set(metadata, '$.actual_batch_size', json_array_length(payload) - 1) WHERE id = {first}"
    ));
    assert_eq!((lost.lost, lost.doubled, lost.torn_or_wrong, lost.problems.len()), (1, 0, 0, 0));
    assert!(lost.examples[0].starts_with("lost: like"), "{lost:?}");
    lost.assert_sound();
    let doubled = with(&format!(
        "INSERT INTO queue (payload, metadata, created_at) SELECT payload, metadata, created_at FROM queue WHERE id = {first}"
    ));
    assert!(doubled.doubled > 3 && doubled.lost + doubled.torn_or_wrong == 0, "{doubled:?}");
    let torn = with(&format!(
        "UPDATE queue SET payload = json_set(payload, '$[0].subject', 'x') WHERE id = {first}"
    ));
    assert_eq!((torn.lost, torn.doubled, torn.torn_or_wrong), (0, 0, 1));
    assert!(torn.examples[0].contains("subject: demanded"), "{torn:?}");
    let order = with(&format!(
        "UPDATE queue SET payload = json_set(json_remove(payload, '$[0].createdAt'), '$[0].createdAt', json_extract(payload, '$[0].createdAt')) WHERE id = {first}"
    ));
    assert_eq!((order.lost, order.torn_or_wrong), (0, 1), "{order:?}");
    for (sql, problem) in [
        (
            "UPDATE queue SET metadata = json_set(metadata, '$.batch_size', 7) WHERE id = 1",
            "batch_size",
        ),
        (
            "UPDATE queue SET metadata = json_set(metadata, '$.did', 'x') WHERE id = 1",
            "mixes accounts",
        ),
        (
            "UPDATE queue SET metadata = json_set(metadata, '$.actual_batch_size', 0) WHERE id = 1",
            "actual_batch_size",
        ),
        ("UPDATE queue SET created_at = '2026-11-24 06:00:00' WHERE id = 1", "created_at"),
        ("UPDATE queue SET status = 'odd' WHERE id = 1", "status"),
        ("ALTER TABLE queue ADD COLUMN extra TEXT", "columns"),
        ("PRAGMA journal_mode=DELETE", "journal mode"),
        ("UPDATE queue SET payload = '[' WHERE id = 1", "no array"),
    ] {
        let verdict = with(sql);
        assert!(verdict.problems.iter().any(|text| text.contains(problem)), "{sql}: {verdict:?}");
        assert!(!verdict.is_clean());
    }
}

#[test]
fn the_judge_misses_whole_accounts_and_names_strangers() {
    let world = odd_world(32, 12, 60);
    let accounts: Vec<WorldAccount> = (0..12).map(|index| world.account(index)).collect();
    let options = Options::default();
    let folder = tempfile::tempdir().unwrap();
    write_queues(folder.path(), &accounts[..11], &options);
    let own = expect(&accounts[11], &options);
    let rows: u64 = own.counts.exported_total() + own.counts.rejected_total();
    let verdict = judge(folder.path(), accounts.iter().cloned(), &options);
    assert!(rows > 0 && verdict.lost == rows && verdict.torn_or_wrong == 0);
    let verdict = judge(folder.path(), accounts[1..11].iter().cloned(), &options);
    assert!(verdict.torn_or_wrong > 0 && verdict.lost == 0);
    assert!(verdict.examples[0].starts_with("not demanded"), "{verdict:?}");
    let likes = expect(&accounts[0], &options).rows.get("like").map_or(0, Vec::len);
    assert!(queue_records(folder.path(), "like").len() >= likes);
    fs::File::create(queue_path(folder.path(), "com.example._")).unwrap();
    let verdict = judge(folder.path(), accounts[..11].iter().cloned(), &options);
    assert!(verdict.problems[0].contains("belongs to no exported type"), "{verdict:?}");
}

// Child processes, tried with a shell in place of the program.

fn shell() -> Skyfill {
    Skyfill::new("/bin/sh")
}

#[test]
fn a_child_is_watched_to_its_end() {
    let finished = shell()
        .env("WORD", "seen")
        .spawn_with_input(&["-c", "cat; echo $WORD >&2; echo '{\"a\": 1}'; exit 3"], b" ")
        .finish(PATIENCE)
        .expect_code(3);
    assert_eq!((finished.json(), finished.stderr.trim()), (json!({"a": 1}), "seen"));
    let busy = shell().run(&["-c", "i=0; while [ $i -lt 300000 ]; do i=$((i+1)); done"], PATIENCE);
    assert!(busy.usage.cpu_seconds() > 0.02 && busy.seconds > 0.02, "{busy:?}");
    assert!(busy.usage.rss_peak_bytes > 100_000 && busy.usage.anonymous_peak_bytes > 10_000);
    assert!(busy.usage.rss_peak_bytes > busy.usage.anonymous_peak_bytes);
}

#[test]
fn a_child_is_signalled_and_killed() {
    let script = "trap 'echo drained; exit 0' TERM; echo ready; while :; do :; done";
    let running = shell().spawn(&["-c", script]);
    assert!(running.wait_for("ready", PATIENCE) && running.is_running());
    assert!(running.wait(Duration::from_millis(20)).is_none());
    assert!(running.signal(Signal::TERM));
    let finished = running.finish(PATIENCE).expect_code(0);
    assert!(finished.stdout.contains("drained"));
    let running = shell().spawn(&["-c", script]);
    assert!(running.wait_for("ready", PATIENCE));
    let killed = running.kill_and_wait();
    assert_eq!((killed.code, killed.signal), (None, Some(9)));
    let ended = shell().spawn(&["-c", "exit 0"]);
    assert!(ended.wait(PATIENCE).is_some() && !ended.kill() && !ended.wait_for("x", PATIENCE));
}
