//! The golden data: what the Python service made of 1,590 dates and 289 records (`window.offsets = "ignore"`).
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout
)]

use std::fs;
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ipld_core::ipld::Ipld;
use serde_json::Value;
use sha2::{Digest, Sha256};
use skyfill::domain::filter::{Filter, Kind, Offsets, Outside, TypeEntry, Window};
use skyfill::domain::window::Placed;
use skyfill::repo::cid::{Cid, Codec};
use skyfill::transform::{Origin, RecordBlock, RecordSource, Transformer, Verdict};

fn cases(file: &str) -> Vec<Value> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(file);
    serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap()
}

fn window() -> Window {
    Window {
        start: "2024-09-27-00:00:00".to_owned(),
        end: "2024-12-02-00:00:00".to_owned(),
        outside: Outside::Bucket,
        offsets: Offsets::Ignore,
    }
}

#[test]
fn created_at() {
    let (cases, window) = (cases("created_at.json"), window());
    let mut wrong = Vec::new();
    for case in &cases {
        let text = case["createdAt"].as_str().unwrap();
        let found = match window.place(text.as_bytes()) {
            Placed::At(stamp) => Some(String::from_utf8(stamp.to_vec()).unwrap()),
            _ => None,
        };
        if found.as_deref() != case["synctimestamp"].as_str() {
            wrong.push(format!("{text:?}: expected {}, found {found:?}", case["synctimestamp"]));
        }
    }
    println!("{} dates, {} wrong", cases.len(), wrong.len());
    assert!(wrong.is_empty() && cases.len() == 1_590, "{}", wrong.join("\n"));
}

fn transformer(outside: Outside, types: Vec<TypeEntry>) -> Transformer {
    Transformer::new(&Filter { types, window: Window { outside, ..window() } })
}

fn all_kinds() -> Vec<TypeEntry> {
    Kind::ALL.into_iter().map(TypeEntry::Kind).collect()
}

/// Verdict in the golden table's words, queue, and the row.
fn read(transformer: &Transformer, key: &str, record: &[u8]) -> (String, String, Option<Value>) {
    let cid = Cid { codec: Codec::DagCbor, digest: Sha256::digest(record).into() };
    let origin = Origin::new("did:plc:aaaaaaaaaaaaaaaaaaaaaaaa", "3l5nhh4s4xs2b");
    let source = RecordSource { origin: &origin, key, cid, block: RecordBlock::Held(record) };
    let plan = transformer.read(&source);
    let mut row = Vec::new();
    plan.write(&mut row);
    let value = (!row.is_empty()).then(|| {
        serde_json::from_slice(&row)
            .unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&row)))
    });
    match plan.verdict() {
        Verdict::Exported(queue) => {
            ("exported".to_owned(), transformer.queues()[queue].clone(), value)
        }
        Verdict::Skipped(reason) => (format!("skipped:{reason}"), String::new(), value),
        Verdict::Rejected(reason) => (format!("rejected:{reason}"), "rejected".to_owned(), value),
    }
}

/// Names of a JSON object's fields in the order in which they are written.
fn field_order(value: &Value) -> Vec<String> {
    value.as_object().unwrap().keys().cloned().collect()
}

#[test]
fn records() {
    let (cases, transformer) = (cases("records.json"), transformer(Outside::Bucket, all_kinds()));
    let (mut wrong, mut compared) = (Vec::new(), 0);
    for case in &cases {
        let record = STANDARD.decode(case["record_cbor_b64"].as_str().unwrap()).unwrap();
        let key =
            format!("{}/{}", case["collection"].as_str().unwrap(), case["rkey"].as_str().unwrap());
        let (verdict, queue, row) = read(&transformer, &key, &record);
        let note = &case["note"];
        if verdict != case["verdict"].as_str().unwrap() {
            wrong.push(format!("{note}: expected {}, found {verdict} {row:?}", case["verdict"]));
            continue;
        }
        let Some(expected) = case["output"].as_object() else { continue };
        let row = row.unwrap();
        if queue != case["queue"].as_str().unwrap() {
            wrong.push(format!("{note}: queue {queue}"));
        }
        for (name, value) in expected {
            if row[name] != *value {
                wrong.push(format!("{note}: {name}: expected {value}, found {}", row[name]));
            }
        }
        assert_eq!(row.as_object().unwrap().len(), expected.len() + 4, "{note}");
        compared += 1;
    }
    println!("{} records, {compared} rows compared, {} wrong", cases.len(), wrong.len());
    assert!(wrong.is_empty() && cases.len() == 289 && compared == 174, "{}", wrong.join("\n"));
}

fn map(fields: &[(&str, Ipld)]) -> Ipld {
    Ipld::Map(fields.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect())
}

fn text(value: &str) -> Ipld {
    Ipld::String(value.to_owned())
}

fn cbor(value: &Ipld) -> Vec<u8> {
    serde_ipld_dagcbor::to_vec(value).unwrap()
}

fn follow(created_at: &str) -> Vec<u8> {
    let kind = ("$type", text("app.bsky.graph.follow"));
    cbor(&map(&[kind, ("subject", text("did:plc:x")), ("createdAt", text(created_at))]))
}

#[test]
fn fields_stand_in_the_order_that_readers_know() {
    let transformer = transformer(Outside::Bucket, all_kinds());
    let (_, _, row) =
        read(&transformer, "app.bsky.graph.follow/a", &follow("2024-10-05T12:34:56Z"));
    let edge = [
        "createdAt",
        "subject",
        "py_type",
        "record_type",
        "synctimestamp",
        "did",
        "uri",
        "cid",
        "rev",
    ];
    assert_eq!(field_order(&row.unwrap()), edge);
    let post = [
        ("$type", text("app.bsky.feed.post")),
        ("text", text("t")),
        ("createdAt", text("2024-10-05T12:34:56Z")),
    ];
    let (_, _, row) = read(&transformer, "app.bsky.feed.post/a", &cbor(&map(&post)));
    let order = [
        "py_type",
        "createdAt",
        "text",
        "embed",
        "entities",
        "facets",
        "reply",
        "labels",
        "langs",
        "tags",
        "record_type",
        "synctimestamp",
        "did",
        "uri",
        "cid",
        "rev",
    ];
    assert_eq!(field_order(&row.unwrap()), order);
}

#[test]
fn outside_the_window_and_outside_the_types() {
    let early = follow("2020-03-16T01:02:03Z");
    let read_with =
        |outside| read(&transformer(outside, all_kinds()), "app.bsky.graph.follow/a", &early);
    assert_eq!(read_with(Outside::Bucket).2.unwrap()["synctimestamp"], "2020-04-01-00:00:00");
    assert_eq!(read_with(Outside::Keep).2.unwrap()["synctimestamp"], "2020-03-16-01:02:03");
    assert_eq!(
        read_with(Outside::Drop),
        ("skipped:outside_window".to_owned(), String::new(), None)
    );
    let likes_only = transformer(Outside::Bucket, vec![TypeEntry::Kind(Kind::Like)]);
    assert_eq!(read(&likes_only, "app.bsky.graph.follow/a", &early).0, "skipped:type");
}

#[test]
fn configured_types_are_exported_whole() {
    let types = vec![
        TypeEntry::Prefix("com.example.".to_owned()),
        TypeEntry::Nsid("com.example.exact".to_owned()),
        TypeEntry::Prefix("app.bsky.".to_owned()),
    ];
    let transformer = transformer(Outside::Bucket, types);
    assert_eq!(
        transformer.queues(),
        ["com.example._", "com.example.exact", "app.bsky._", "rejected"]
    );
    let record = |nsid: &str| {
        let link = Ipld::Link(
            "bafyreiaehjyyo5gfok6yujnnx2y37tk4ajlk4eooz6pzyp4sluhffpvpre".parse().unwrap(),
        );
        cbor(&map(&[
            ("$type", text(nsid)),
            ("n", Ipld::Integer(1)),
            ("b", Ipld::Bytes(vec![1, 2])),
            ("l", link),
        ]))
    };
    let (verdict, queue, row) =
        read(&transformer, "com.example.other/a", &record("com.example.other"));
    let row = row.unwrap();
    assert_eq!((verdict.as_str(), queue.as_str()), ("exported", "com.example._"));
    assert_eq!(field_order(&row), ["record_type", "did", "uri", "cid", "rev", "record"]);
    assert_eq!(row["record_type"], "com.example.other");
    assert_eq!(row["record"]["b"]["$bytes"], "AQI");
    assert!(row["record"]["l"]["$link"].as_str().unwrap().starts_with("bafyrei"));
    assert_eq!(read(&transformer, "x/a", &record("com.example.exact")).1, "com.example.exact");
    assert_eq!(read(&transformer, "x/a", &record("com.examples")).0, "skipped:type");
    assert_eq!(read(&transformer, "x/a", &follow("2024-10-05T12:34:56Z")).0, "skipped:type");
    assert_eq!(read(&transformer, "x/a", &record("app.bsky.feed.threadgate")).1, "app.bsky._");
}

#[test]
fn rejected_rows_say_what_and_where() {
    let transformer = transformer(Outside::Bucket, all_kinds());
    let (verdict, _, row) = read(&transformer, "app.bsky.graph.follow/a", &follow("yesterday"));
    let row = row.unwrap();
    assert_eq!(verdict, "rejected:created_at");
    let order =
        ["did", "collection", "rkey", "uri", "cid", "rev", "reason", "detail", "record", "raw"];
    assert_eq!(field_order(&row), order);
    assert_eq!(row["uri"], "at://did:plc:aaaaaaaaaaaaaaaaaaaaaaaa/app.bsky.graph.follow/a");
    assert_eq!(
        (&row["record"]["createdAt"], &row["raw"]),
        (&Value::from("yesterday"), &Value::Null)
    );
    let broken = [0xa1, 0x61, b'a', 0x9f, 0xff];
    let (verdict, _, row) = read(&transformer, "com.example.foreign/a", &broken);
    let row = row.unwrap();
    assert_eq!((verdict.as_str(), &row["record"]), ("rejected:cbor", &Value::Null));
    assert_eq!(STANDARD.decode(row["raw"].as_str().unwrap()).unwrap(), broken);
    let big = cbor(&map(&[("text", text(&"x".repeat(1_000_000)))]));
    assert_eq!(read(&transformer, "app.bsky.feed.post/a", &big).0, "rejected:too_large");
    let controls =
        cbor(&map(&[("$type", text("app.bsky.feed.like")), ("x", text(&"\u{1}".repeat(400_000)))]));
    assert_eq!(
        read(&transformer, "app.bsky.feed.like/a", &controls).2.unwrap()["record"],
        Value::Null
    );
}

#[test]
fn no_prefix_of_a_record_panics_or_is_exported() {
    let transformer = transformer(Outside::Bucket, all_kinds());
    for case in cases("records.json").iter().step_by(7) {
        let record = STANDARD.decode(case["record_cbor_b64"].as_str().unwrap()).unwrap();
        for length in 0..record.len() {
            let (verdict, _, _) = read(&transformer, "app.bsky.feed.post/a", &record[..length]);
            assert_eq!(verdict, "rejected:cbor", "{} at {length}", case["note"]);
        }
    }
}
