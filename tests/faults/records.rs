//! Records that are none, and revisions of another time: each in a repository that is well signed, so that everything else in it
//! must arrive. The oracle says which rows that makes.

use serde_json::Value as Json;
use sha2::{Digest, Sha256};

use crate::bench::{Bench, Line, ends};
use crate::support::faults::Fault;
use crate::support::forge::tid;
use crate::support::judge::judge;
use crate::support::oracle::Options;
use crate::support::records::Intent;
use crate::support::time::Meaning;
use crate::support::value::{Style, Value, map, text, unsorted};
use crate::support::world::{Records, Shape, WorldAccount, WorldRecord};

const POST: &str = "app.bsky.feed.post";
const WRITTEN: &str = "2024-10-05T12:34:56.789Z";
/// The same, seconds since 1970.
const WRITTEN_AT: i64 = 1_728_131_696;

/// Bytes, and what they say, if they may be read at all.
type Bad = (Vec<u8>, Option<Value>);

/// A post with this text and perhaps one field more, which no row shows.
fn post(words: String, more: Option<Value>) -> Value {
    let (kind, created) = (("$type", text(POST)), ("createdAt", text(WRITTEN)));
    match more {
        None => map([kind, created, ("text", text(words))]),
        Some(more) => map([kind, created, ("text", text(words)), ("zzz", more)]),
    }
}

/// Bytes that nobody may read.
fn unreadable(bytes: &[u8]) -> Bad {
    (bytes.to_vec(), None)
}

fn readable(value: Value, style: Style) -> Bad {
    (value.to_cbor(style), Some(value))
}

const REJECTED: &str = "done, 0 charged, 1 rejected as cbor";
const EXPORTED: &str = "done, 0 charged, nothing rejected";

fn kinds() -> Vec<(&'static str, &'static str, Bad)> {
    let keys = (0..60_000_u32).map(|n| (format!("{n:05}").into(), Value::Int(n.into())));
    let many = Value::Map(keys.collect());
    let nested = (0..40).fold(Value::Null, |inner, _| Value::List(vec![inner]));
    let reversed = unsorted([
        ("text", text("keys in another order")),
        ("createdAt", text(WRITTEN)),
        ("$type", text(POST)),
    ]);
    let plain = || post("as usual".to_owned(), None);
    vec![
        ("nested 300,000 deep", REJECTED, unreadable(&[vec![0x81; 300_000], vec![0]].concat())),
        (
            "nested 40 deep",
            EXPORTED,
            readable(post("deep".to_owned(), Some(nested)), Style::Strict),
        ),
        (
            "a map of 4 billion keys, claimed",
            REJECTED,
            unreadable(b"\xba\xff\xff\xff\xff\x61a\x01"),
        ),
        (
            "a map of 60,000 keys",
            EXPORTED,
            readable(post("wide".to_owned(), Some(many)), Style::Strict),
        ),
        ("a text of 4 GB, claimed", REJECTED, unreadable(b"\xa1\x61a\x7a\xff\xff\xff\xffx")),
        (
            "a text of 990,000 bytes",
            EXPORTED,
            readable(post("x".repeat(990_000), None), Style::Strict),
        ),
        (
            "a record of 1,000,100 bytes",
            "done, 0 charged, 1 rejected as too_large",
            readable(post("x".repeat(1_000_040), None), Style::Strict),
        ),
        ("lengths of 2^63", REJECTED, unreadable(b"\xa1\x61a\x9b\x80\0\0\0\0\0\0\0")),
        ("every length in 64 bits", EXPORTED, readable(plain(), Style::Wide)),
        (
            "a float",
            EXPORTED,
            readable(post("pi".to_owned(), Some(Value::Float(3.25))), Style::Strict),
        ),
        ("a float that is no number", REJECTED, unreadable(b"\xa1\x61a\xfb\x7f\xf8\0\0\0\0\0\0")),
        ("keys in another order", EXPORTED, readable(reversed, Style::Strict)),
        ("a key twice", REJECTED, unreadable(b"\xa2\x61a\x01\x61a\x02")),
        ("text that is not UTF-8", REJECTED, unreadable(b"\xa1\x61a\x62\xff\xfe")),
        ("a length without end", REJECTED, unreadable(b"\xbf\x61a\x01\xff")),
        ("bytes behind the record", REJECTED, unreadable(b"\xa0\x00")),
        ("no bytes at all", REJECTED, unreadable(b"")),
    ]
}

fn with_record(mut account: WorldAccount, (bytes, value): Bad) -> WorldAccount {
    let mut cid = [0; 36];
    cid[..4].copy_from_slice(&[1, 0x71, 0x12, 0x20]);
    cid[4..].copy_from_slice(&Sha256::digest(&bytes));
    let (key, intent) =
        (format!("{POST}/{}", tid(0x0006_0000_0000_0000)), Intent::Exported("post"));
    let time = Meaning::At { wall: WRITTEN_AT, offset: 0 };
    account.records.push(WorldRecord { key, cid, bytes, value, time, intent });
    account.records.sort_by(|a, b| a.key.cmp(&b.key));
    account
}

/// What the ledger says was left out, in words.
fn rejections(bench: &Bench, did: &str) -> String {
    let ledger = rusqlite::Connection::open(bench.data().join("state.db")).unwrap();
    let select = "SELECT revision FROM accounts WHERE did = ?1";
    let revision: Option<String> = ledger.query_row(select, [did], |row| row.get(0)).unwrap();
    let Some(revision) = revision else { return "nothing exported".to_owned() };
    let revision: Json = revision.parse().unwrap();
    let counts = revision["rejected"].as_object().unwrap();
    let words: Vec<String> = counts
        .iter()
        .filter(|(_, count)| count.as_u64() > Some(0))
        .map(|(reason, count)| format!("{count} rejected as {reason}"))
        .collect();
    if words.is_empty() { "nothing rejected".to_owned() } else { words.join(" and ") }
}

/// A TID of the year 2200, and the first of all.
const REVISIONS: [(&str, u64); 2] =
    [("a revision of the year 2200", 7_258_118_400_000_000 << 10), ("a revision of 1970", 1)];

pub fn run(settings: &[&str], bound_seconds: u64) -> Vec<Line> {
    let kinds = kinds();
    let count = kinds.len() + REVISIONS.len();
    let records = Records::Fixed(30);
    let shape = Shape { seed: 89, accounts: count, hosts: count, records, odd: false };
    let bench = Bench::new(&shape, settings);
    let world = bench.network.world();
    let mut served: Vec<WorldAccount> = Vec::new();
    for (index, (_, _, bad)) in kinds.iter().enumerate() {
        served.push(with_record(world.account(index), bad.clone()));
    }
    for (_, number) in REVISIONS {
        let account = world.account(served.len());
        served.push(WorldAccount { rev: tid(number), ..account });
    }
    for account in &served {
        let headers = vec![("content-type".to_owned(), "application/vnd.ipld.car".to_owned())];
        let fault = Fault::Status { code: 200, headers, body: account.car() };
        bench.network.faults().always(&account.did, fault);
    }
    bench.run(&[], bound_seconds).expect_code(0);
    assert_eq!(bench.network.faults().fired("status"), count as u64);
    let options = Options::default();
    judge(&bench.data(), served.iter().cloned(), &options).assert_clean();
    let ends = ends(&bench.data());
    let found = |index: usize| {
        let did = bench.did(index);
        format!("{}, {}", ends[&did], rejections(&bench, &did))
    };
    let revisions = REVISIONS.iter().map(|(kind, _)| (*kind, EXPORTED));
    let cases = kinds.iter().map(|(kind, expected, _)| (*kind, *expected)).chain(revisions);
    cases
        .enumerate()
        .map(|(index, (kind, expected))| {
            Line::new(kind, "whole body", expected, found(index), bound_seconds)
        })
        .collect()
}
