//! `skyfill determine`: the authors of subjects from queues, JSON lines and Parquet, counted here a second time, by who made
//! the records and not by reading them; lists that grow, memory, and what cannot be read.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::disallowed_methods
)]

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use fastrand::Rng;
use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::{Value, json};
use support::job::backfill;
use support::network::Network;
use support::proc::{Finished, Signal, Skyfill};
use support::world::{Records, Shape};

const PATIENCE: Duration = Duration::from_secs(240);

const KINDS: [&str; 3] = ["like", "repost", "reply"];

/// What a subject names.
#[derive(Clone, Copy)]
enum Subject {
    Author(usize),
    Bad(&'static str, &'static str),
    Missing,
}

/// A record before it is written down in one form or another.
struct Made {
    record_type: &'static str,
    stamp: Option<String>,
    /// The subject, or parent and root.
    subjects: Vec<Subject>,
}

/// What must come out.
#[derive(Default)]
struct Expected {
    rows: u64,
    other_kinds: u64,
    outside_dates: u64,
    subjects: u64,
    bad: BTreeMap<&'static str, u64>,
    authors: BTreeMap<String, [u64; 3]>,
}

struct Maker {
    rng: Rng,
    dids: Vec<String>,
    expected: Expected,
    /// Every record has a date that exists.
    is_dated: bool,
}

fn plc(rng: &mut Rng) -> String {
    let alphabet = b"abcdefghijklmnopqrstuvwxyz234567";
    let id: String = (0..24).map(|_| char::from(*rng.choice(alphabet).unwrap())).collect();
    format!("did:plc:{id}")
}

impl Maker {
    fn new(seed: u64) -> Self {
        let mut rng = Rng::with_seed(seed);
        let did = |n: usize, rng: &mut Rng| {
            if n.is_multiple_of(10) { format!("did:web:host{n}.example") } else { plc(rng) }
        };
        let dids = (0..900).map(|n| did(n, &mut rng)).collect();
        Self { rng, dids, expected: Expected::default(), is_dated: false }
    }

    /// Makes a record and knows what it comes to.
    fn make(&mut self) -> Made {
        let rng = &mut self.rng;
        let record_type = match rng.u32(..100) {
            0..45 => "like",
            45..60 => "repost",
            60..85 => "reply",
            85..95 => "post",
            _ => "follow",
        };
        let (stamp, is_inside) = match rng.u32(..if self.is_dated { 96 } else { 100 }) {
            0..80 => {
                let (month, day) = (rng.u32(10..12), rng.u32(1..31));
                (Some(format!("2024-{month}-{day:02}-{:02}:00:01", rng.u32(..24))), Some(true))
            }
            80..82 => (Some("2024-09-29-00:00:00".to_owned()), Some(true)),
            82..84 => (Some("2024-12-01-23:59:59".to_owned()), Some(true)),
            84..88 => (Some("2024-09-28-23:59:59".to_owned()), Some(false)),
            88..92 => (Some("2024-12-02-00:00:00".to_owned()), Some(false)),
            92..96 => (Some("2023-05-05-01:02:03".to_owned()), Some(false)),
            96..98 => (Some("2024-02-31-00:00:00".to_owned()), None),
            98 => (Some("yesterday".to_owned()), None),
            _ => (None, None),
        };
        let count = match record_type {
            "reply" => 2,
            "like" | "repost" => 1,
            _ => 0,
        };
        let subject = |rng: &mut Rng| match rng.u32(..100) {
            // Few are named often, many seldom.
            0..50 => Subject::Author(rng.usize(..40)),
            50..88 => Subject::Author(rng.usize(..900)),
            88..91 => Subject::Bad("at://alice.bsky.social/app.bsky.feed.post/3k", "handle"),
            91..94 => Subject::Bad("https://bsky.app/profile/alice", "not_at_uri"),
            94..97 => Subject::Bad("at://did:plc:tooshort/app.bsky.feed.post/3k", "bad_did"),
            _ => Subject::Missing,
        };
        let subjects: Vec<Subject> = (0..count).map(|_| subject(rng)).collect();
        self.expect(record_type, is_inside, &subjects);
        Made { record_type, stamp, subjects }
    }

    fn expect(&mut self, record_type: &str, is_inside: Option<bool>, subjects: &[Subject]) {
        let expected = &mut self.expected;
        expected.rows += 1;
        let Some(kind) = KINDS.iter().position(|kind| *kind == record_type) else {
            expected.other_kinds += 1;
            return;
        };
        match is_inside {
            None => *expected.bad.entry("no_date").or_default() += 1,
            Some(false) => expected.outside_dates += 1,
            Some(true) => {
                let mut about = BTreeSet::new();
                for subject in subjects {
                    match subject {
                        Subject::Author(n) => {
                            expected.subjects += 1;
                            about.insert(*n);
                        }
                        Subject::Bad(_, cause) => *expected.bad.entry(cause).or_default() += 1,
                        Subject::Missing => *expected.bad.entry("no_subject").or_default() += 1,
                    }
                }
                for n in about {
                    expected.authors.entry(self.dids[n].clone()).or_default()[kind] += 1;
                }
            }
        }
    }

    fn uri(&self, subject: Subject) -> Option<String> {
        match subject {
            Subject::Author(n) => {
                Some(format!("at://{}/app.bsky.feed.post/3l5abcdefgh2a", self.dids[n]))
            }
            Subject::Bad(uri, _) => Some(uri.to_owned()),
            Subject::Missing => None,
        }
    }

    /// The record as JSON: what is nested as JSON text, as the Python service writes it, or as objects.
    fn record(&mut self) -> Value {
        let made = self.make();
        let is_text = self.rng.bool();
        let reference = |subject: Subject| {
            let object =
                self.uri(subject).map(|uri| json!({"cid": "bafy", "uri": uri, "py_type": "x"}));
            object.unwrap_or(Value::Null)
        };
        let nested = |value: Value| match value {
            Value::Null => Value::Null,
            value if is_text => Value::String(value.to_string()),
            value => value,
        };
        let mut record = json!({
            "createdAt": "2024-10-05T12:34:56Z", "text": "\u{e9} \"quoted\" \\ {[",
            "record_type": made.record_type, "synctimestamp": made.stamp,
        });
        match made.subjects[..] {
            [one] => record["subject"] = nested(reference(one)),
            [parent, root] => {
                let (parent, root) = (reference(parent), reference(root));
                record["reply"] = nested(json!({"parent": parent, "root": root, "py_type": "y"}));
            }
            _ if made.record_type == "follow" => record["subject"] = json!(self.dids[0]),
            _ => record["reply"] = Value::Null,
        }
        record
    }

    /// A queue of some items, a few of which cannot be read.
    fn queue(&mut self, path: &Path, items: usize, broken: usize) {
        let db = rusqlite::Connection::open(path).unwrap();
        db.execute_batch(
            "PRAGMA journal_mode=WAL; BEGIN;
             CREATE TABLE queue (id INTEGER PRIMARY KEY AUTOINCREMENT, payload TEXT, metadata TEXT,
                 created_at TIMESTAMP DEFAULT CURRENT_TIMESTAMP, status TEXT DEFAULT 'pending');",
        )
        .unwrap();
        let insert = "INSERT INTO queue (payload, status) VALUES (?1, ?2)";
        for item in 0..items {
            let records: Vec<Value> = (0..50).map(|_| self.record()).collect();
            let status = ["pending", "processing", "completed", "failed"][item % 4];
            db.execute(insert, (Value::Array(records).to_string(), status)).unwrap();
        }
        for n in 0..broken {
            let good = Value::Array(vec![json!({"record_type": "like"})]).to_string();
            match n % 3 {
                0 => db.execute(insert, (&good[..good.len() - 2], "pending")),
                1 => db.execute(insert, (None::<String>, "pending")),
                _ => db.execute(insert, (b"[\"\xff\xfe\"]".to_vec(), "pending")),
            }
            .unwrap();
            *self.expected.bad.entry("not_json").or_default() += 1;
        }
        db.execute_batch("COMMIT").unwrap();
    }

    fn lines(&mut self, count: usize) -> Vec<u8> {
        let mut text = Vec::new();
        for n in 0..count {
            match n % 500 {
                100 => {
                    text.extend_from_slice(b"{\"record_type\": \"like\", \"synctime\n");
                    *self.expected.bad.entry("not_json").or_default() += 1;
                }
                200 => text.extend_from_slice(b"\n"),
                300 => {
                    text.extend_from_slice(b"\"text\"\n");
                    self.expected.rows += 1;
                    *self.expected.bad.entry("not_a_record").or_default() += 1;
                }
                _ => text.extend_from_slice(format!("{}\n", self.record()).as_bytes()),
            }
        }
        text
    }
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut packer = GzEncoder::new(Vec::new(), Compression::fast());
    packer.write_all(bytes).unwrap();
    packer.finish().unwrap()
}

struct Bench {
    folder: tempfile::TempDir,
}

impl Bench {
    fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn text(&self, name: &str) -> String {
        self.path(name).to_str().unwrap().to_owned()
    }

    fn file(&self, name: &str, bytes: &[u8]) -> String {
        std::fs::create_dir_all(self.path(name).parent().unwrap()).unwrap();
        std::fs::write(self.path(name), bytes).unwrap();
        self.text(name)
    }

    fn read(&self, name: &str) -> String {
        std::fs::read_to_string(self.path(name)).unwrap()
    }

    fn determine(&self, arguments: &[&str]) -> Finished {
        self.determine_with(arguments, b"")
    }

    fn determine_with(&self, arguments: &[&str], input: &[u8]) -> Finished {
        let data = self.text("data");
        let all = [&["determine", "--data-dir", &data], arguments].concat();
        let skyfill = Skyfill::new(env!("CARGO_BIN_EXE_skyfill"));
        skyfill.spawn_with_input(&all, input).finish(PATIENCE)
    }
}

fn like(did: &str) -> String {
    let uri = format!("at://{did}/app.bsky.feed.post/3k");
    json!({"record_type": "like", "synctimestamp": "2024-10-05-00:00:00", "subject": {"cid": "b", "uri": uri}})
        .to_string()
}

fn likes<'d>(dids: impl IntoIterator<Item = &'d String>) -> Vec<u8> {
    dids.into_iter().flat_map(|did| format!("{}\n", like(did)).into_bytes()).collect()
}

fn some_dids(seed: u64, count: usize) -> Vec<String> {
    let mut rng = Rng::with_seed(seed);
    (0..count).map(|_| plc(&mut rng)).collect()
}

/// What the command says beside what must come out.
fn assert_as_expected(bench: &Bench, told: &Value, expected: &Expected) {
    let figure = |name: &str| told[name].as_u64().unwrap_or_else(|| panic!("{name}: {told}"));
    assert_eq!(figure("rows"), expected.rows);
    assert_eq!(figure("other_kinds"), expected.other_kinds);
    assert_eq!(figure("outside_dates"), expected.outside_dates);
    assert_eq!(figure("subjects"), expected.subjects);
    assert_eq!(told["bad"], json!(expected.bad));
    assert_eq!(figure("authors"), expected.authors.len() as u64);
    assert_eq!(figure("accounts"), expected.authors.len() as u64);
    let list: Vec<&String> = expected.authors.keys().collect();
    assert_eq!(bench.read("list.txt").lines().collect::<Vec<_>>(), list);
    let mut rows = vec!["did,like,repost,reply,total".to_owned()];
    for (did, [like, repost, reply]) in &expected.authors {
        rows.push(format!("{did},{like},{repost},{reply},{}", like + repost + reply));
    }
    assert_eq!(bench.read("counts.csv").lines().collect::<Vec<_>>(), rows);
}

#[test]
fn ten_thousand_records_of_all_sources_come_to_what_was_made() {
    let bench = Bench::new();
    let mut maker = Maker::new(20);
    std::fs::create_dir_all(bench.path("queues")).unwrap();
    std::fs::create_dir_all(bench.path("python")).unwrap();
    maker.queue(&bench.path("queues/output_backfill_sync_like.db"), 60, 9);
    maker.queue(&bench.path("python/whatever.sqlite"), 60, 9);
    // No queue of subjects, and no queue at all: neither is read.
    let before = maker.expected.rows;
    Maker::new(21).queue(&bench.path("queues/output_backfill_sync_follow.db"), 2, 0);
    rusqlite::Connection::open(bench.path("queues/state.db"))
        .unwrap()
        .execute_batch("CREATE TABLE x (y)")
        .unwrap();
    let lines = maker.lines(2_000);
    bench.file("history/deep/a.jsonl", &lines);
    let lines = maker.lines(2_000);
    bench.file("history/b.jsonl.gz", &gzip(&lines));
    parquet_file(
        &mut maker,
        &bench.path("history/like/partition_date=2024-10-01/0.parquet"),
        2_500,
    );
    let input = maker.lines(1_000);
    assert!(maker.expected.rows > 10_000 && before == 6_000, "{}", maker.expected.rows);
    let [queues, python, history] = ["queues", "python", "history"].map(|name| bench.text(name));
    let (list, csv) = (bench.text("list.txt"), bench.text("counts.csv"));
    let from = ["--from", &queues, &python, "--from", &history, "-"];
    let arguments = [&from[..], &["--out", &list, "--csv", &csv, "--json"]].concat();
    let finished = bench.determine_with(&arguments, &input).expect_code(0);
    let told = finished.json();
    assert_as_expected(&bench, &told, &maker.expected);
    assert_eq!(told["passed_over"], 2, "{told}");
    let named = told["named"].as_array().unwrap();
    assert_eq!(named.len(), 20);
    assert!(named[0]["file"].as_str().unwrap().ends_with("output_backfill_sync_like.db"), "{told}");
    assert!(named[0]["row"].as_u64().unwrap() > 0 && named[0]["record"].as_u64().unwrap() > 0);
    for (cause, count) in &maker.expected.bad {
        let counted = finished.stderr.replace(',', "");
        assert!(
            counted.contains(&format!("{cause} {count}")),
            "{cause} {count}: {}",
            finished.stderr
        );
    }
    // The same files twice: nobody more.
    let twice = [&from[..], &["--from", &queues, "--out", &list, "--json"]].concat();
    let told = bench.determine_with(&twice, &input).expect_code(0).json();
    assert_eq!(told["accounts"], maker.expected.authors.len());
}

#[test]
fn only_the_kinds_and_dates_that_were_asked_for_count() {
    let bench = Bench::new();
    let mut maker = Maker::new(22);
    maker.queue(&bench.path("q.db"), 30, 0);
    let (queue, list) = (bench.text("q.db"), bench.text("list.txt"));
    let from = ["--from", queue.as_str(), "--out", &list];
    bench.determine(&[&from[..], &["--kinds", "repost,reply"]].concat()).expect_code(0);
    let named = maker.expected.authors.iter().filter(|(_, counts)| counts[1] + counts[2] > 0);
    let named: Vec<&String> = named.map(|(did, _)| did).collect();
    assert_eq!(bench.read("list.txt").lines().collect::<Vec<_>>(), named);
    assert!(named.len() < maker.expected.authors.len());
    // Both ends are included.
    let days = [("2024-10-01", "a"), ("2024-10-02", "b"), ("2024-10-03", "c"), ("2024-10-04", "d")];
    let did = |letter: &str| format!("did:plc:{}", letter.repeat(24));
    let record =
        |(day, letter): &(&str, &str)| like(&did(letter)).replace("2024-10-05", day) + "\n";
    let lines = bench.file("days.jsonl", days.iter().map(record).collect::<String>().as_bytes());
    let dates = ["--from", &lines, "--start-date", "2024-10-02", "--end-date", "2024-10-03"];
    let finished = bench.determine(&dates).expect_code(0);
    assert_eq!(finished.stdout, format!("{}\n{}\n", did("b"), did("c")));
    assert!(finished.stderr.contains("2 outside 2024-10-02 to 2024-10-03"), "{}", finished.stderr);
    let same = ["--from", &lines, "--start-date", "2024-10-04", "--end-date", "2024-10-04"];
    assert_eq!(bench.determine(&same).expect_code(0).stdout, format!("{}\n", did("d")));
}

#[test]
fn the_python_service_s_own_records_are_read() {
    let bench = Bench::new();
    let golden = std::fs::read_to_string("tests/golden/records.json").unwrap();
    let golden: Vec<Value> = serde_json::from_str(&golden).unwrap();
    let (mut lines, mut authors, mut subjects) = (String::new(), BTreeSet::new(), 0);
    for record in &golden {
        let output = &record["output"];
        let uris: Vec<String> = match record["queue"].as_str() {
            Some("like" | "repost") if output.is_object() => vec![uri_in(&output["subject"])],
            Some("reply") if output.is_object() => {
                let reply: Value = serde_json::from_str(output["reply"].as_str().unwrap()).unwrap();
                vec![uri_in(&reply["parent"]), uri_in(&reply["root"])]
            }
            _ => continue,
        };
        // Whatever second each of them got: the dates are not what this is about.
        let mut output = output.clone();
        output["synctimestamp"] = json!("2024-10-05-00:00:00");
        lines += &format!("{output}\n");
        for uri in uris {
            let did =
                uri.strip_prefix("at://").and_then(|rest| rest.split('/').next()).unwrap_or("");
            if did.starts_with("did:plc:") && did.len() == 32 {
                subjects += 1;
                authors.insert(did.to_owned());
            }
        }
    }
    assert!(subjects > 30, "{subjects}");
    let path = bench.file("golden.jsonl", lines.as_bytes());
    let list = bench.text("list.txt");
    let told = bench.determine(&["--from", &path, "--json", "--out", &list]).expect_code(0).json();
    assert_eq!(told["subjects"], subjects, "{told}");
    assert_eq!(
        bench.read("list.txt").lines().collect::<BTreeSet<_>>(),
        authors.iter().map(String::as_str).collect()
    );
}

/// The uri of a reference that is JSON text or an object.
fn uri_in(reference: &Value) -> String {
    let object = match reference {
        Value::String(text) => serde_json::from_str(text).unwrap(),
        object => object.clone(),
    };
    object["uri"].as_str().unwrap_or("").to_owned()
}

/// Rows of a table with texts, as the service keeps them.
#[cfg(feature = "parquet")]
fn parquet_file(maker: &mut Maker, path: &Path, count: usize) {
    use arrow_array::{ArrayRef, RecordBatch, StringArray};
    use std::sync::Arc;
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    let records: Vec<Value> = (0..count).map(|_| maker.record()).collect();
    let column = |name: &str| {
        let text = |record: &Value| match &record[name] {
            Value::Null => None,
            Value::String(text) => Some(text.clone()),
            nested => Some(nested.to_string()),
        };
        Arc::new(records.iter().map(text).collect::<StringArray>()) as ArrayRef
    };
    let columns = ["createdAt", "subject", "record_type", "text", "reply", "synctimestamp"];
    // The folder's date is not asked where a record has none: it would be another answer than in the other files.
    let named = columns.map(|name| (name, column(name)));
    let stamps: Vec<Option<String>> = records
        .iter()
        .map(|record| Some(record["synctimestamp"].as_str().unwrap_or("none").to_owned()))
        .collect();
    let mut named = named.to_vec();
    named[5].1 = Arc::new(stamps.into_iter().collect::<StringArray>());
    let batch = RecordBatch::try_from_iter_with_nullable(
        named.into_iter().map(|(name, column)| (name, column, true)),
    );
    let batch = batch.unwrap();
    let file = std::fs::File::create(path).unwrap();
    let mut writer = parquet::arrow::ArrowWriter::try_new(file, batch.schema(), None).unwrap();
    writer.write(&batch).unwrap();
    writer.close().unwrap();
}

/// Without Parquet in this build the same records are JSON lines.
#[cfg(not(feature = "parquet"))]
fn parquet_file(maker: &mut Maker, path: &Path, count: usize) {
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    let mut text = Vec::new();
    for _ in 0..count {
        let mut record = maker.record();
        if record["synctimestamp"].is_null() {
            record["synctimestamp"] = json!("none");
        }
        text.extend_from_slice(format!("{record}\n").as_bytes());
    }
    std::fs::write(path.with_extension("jsonl"), text).unwrap();
}

#[test]
fn lists_grow_by_who_is_not_on_them_and_never_twice() {
    let bench = Bench::new();
    let dids = some_dids(30, 300);
    let lines = bench.file("likes.jsonl", &likes(&dids));
    let (first, second) =
        (bench.file("some.jsonl", &likes(&dids[..100])), bench.text("likes.jsonl"));
    let list = bench.text("list.txt");
    let append = |from: &str| {
        bench.determine(&["--from", from, "--append-to", &list, "--json"]).expect_code(0).json()
    };
    assert_eq!(append(&first)["accounts"], 100);
    std::fs::write(&list, format!("# by hand\ndid:web:mine.example\n{}", bench.read("list.txt")))
        .unwrap();
    let told = append(&second);
    assert_eq!((&told["accounts"], &told["already_listed"]), (&json!(200), &json!(100)));
    let text = bench.read("list.txt");
    assert!(text.starts_with("# by hand\ndid:web:mine.example\n"), "what was there stays: {text}");
    let (before, inode) = (text.clone(), inode(&list));
    let told = append(&second);
    assert_eq!((&told["accounts"], &told["already_listed"]), (&json!(0), &json!(300)));
    assert_eq!((bench.read("list.txt"), self::inode(&list)), (before, inode), "not touched");
    let mut listed: Vec<&str> = text.lines().skip(2).collect();
    listed.sort_unstable();
    let mut expected: Vec<&str> = dids.iter().map(String::as_str).collect();
    expected.sort_unstable();
    assert_eq!(listed, expected);
    // A list that excludes everybody leaves an empty list, and that is no failure.
    let out = bench.text("empty.txt");
    let exclude = ["--from", &lines, "--exclude", &list, "--out", &out, "--json"];
    let told = bench.determine(&exclude).expect_code(0).json();
    assert_eq!((&told["accounts"], &told["excluded"]), (&json!(0), &json!(300)));
    assert_eq!(bench.read("empty.txt"), "");
    // Several lists, in their several forms.
    let csv = bench.file("a.csv", format!("x,did\n1,{}\n2,{}\n", dids[0], dids[1]).as_bytes());
    let json = bench.file("b.jsonl", format!("{{\"did\":\"{}\"}}\nnonsense\n", dids[2]).as_bytes());
    let exclude = ["--from", &lines, "--exclude", &csv, "--exclude", &json];
    let finished = bench.determine(&exclude).expect_code(0);
    assert_eq!(finished.stdout.lines().count(), 297);
    assert!(finished.stderr.contains("1 lines are no DID"), "{}", finished.stderr);
    // A list of many others, in no order, with some of these in between and twice.
    let mut mixed = some_dids(34, 2_000);
    mixed.extend(dids[..50].iter().chain(&dids[..50]).cloned());
    Rng::with_seed(35).shuffle(&mut mixed);
    let mixed = bench.file("mixed.txt", mixed.join("\n").as_bytes());
    let mut left = dids[50..].to_vec();
    left.sort();
    let found = bench.determine(&["--from", &lines, "--exclude", &mixed]).expect_code(0).stdout;
    assert_eq!(found.lines().collect::<Vec<_>>(), left);
}

fn inode(path: &str) -> u64 {
    std::os::unix::fs::MetadataExt::ino(&std::fs::metadata(path).unwrap())
}

#[test]
fn what_cannot_be_read_is_named_and_nothing_is_written() {
    let bench = Bench::new();
    let dids = some_dids(31, 2_000);
    let good = bench.file("good.jsonl", &likes(&dids));
    let packed = gzip(&likes(&dids));
    let cut = bench.file("cut.jsonl.gz", &packed[..packed.len() / 2]);
    let mut maker = Maker::new(32);
    maker.queue(&bench.path("whole.db"), 40, 0);
    let mut bytes = std::fs::read(bench.path("whole.db")).unwrap();
    let middle = bytes.len() / 2;
    bytes[4_096..middle].fill(0x5a);
    let damaged = bench.file("damaged.db", &bytes);
    rusqlite::Connection::open(bench.path("other.db"))
        .unwrap()
        .execute_batch("CREATE TABLE x (y)")
        .unwrap();
    let other = bench.text("other.db");
    let zstd = bench.file("x.jsonl.zst", b"\x28\xb5\x2f\xfdxxxx");
    let (missing, out) = (bench.text("not-there.jsonl"), bench.file("list.txt", b"as it was\n"));
    for (path, says) in [
        (&missing, "No such file"),
        (&cut, "incomplete deflate stream"),
        (&damaged, "malformed"),
        (&other, "without a table queue"),
        (&zstd, "zstd"),
    ] {
        let finished = bench.determine(&["--from", &good, path, "--out", &out]).expect_code(74);
        assert!(finished.stderr.contains(path.as_str()), "{path}: {}", finished.stderr);
        assert!(finished.stderr.contains(says), "{says}: {}", finished.stderr);
        assert_eq!(bench.read("list.txt"), "as it was\n", "{path}");
    }
    let lists = ["--from", &good, "--exclude", &missing, "--out", &out];
    assert!(bench.determine(&lists).expect_code(74).stderr.contains(&missing));
    let left = |entry: std::io::Result<std::fs::DirEntry>| {
        entry.unwrap().file_name().to_string_lossy().starts_with('.')
    };
    assert!(!std::fs::read_dir(bench.folder.path()).unwrap().any(left), "nothing is left behind");
    let nowhere = bench.text("no/such/folder/list.txt");
    for flag in ["--out", "--append-to", "--csv"] {
        // Before anything is read: of the damaged one nothing is said.
        let finished = bench.determine(&["--from", &damaged, flag, &nowhere]).expect_code(74);
        assert!(finished.stderr.contains("no/such/folder"), "{}", finished.stderr);
    }
    full_disk(&bench, &good);
    for wrong in [
        &["--from", &good, "--kinds", "follow"][..],
        &["--from", &good, "--start-date", "2024-02-30"],
        &["--from", &good, "--start-date", "2024-10-2"],
        &["--from", &good, "--start-date", "2024-10-02", "--end-date", "2024-10-01"],
        &["--from", &good, "--out", &out, "--append-to", &out],
        &["--from", "-", "--exclude", "-"],
        &["--from", &good, "--csv", "-", "--json"],
        &["--start-date", "2024-10-02"],
    ] {
        bench.determine(wrong).expect_code(2);
    }
    let queue = std::fs::read(bench.path("whole.db")).unwrap();
    bench.determine_with(&["--from", "-"], &queue).expect_code(2);
}

/// A list that does not fit: the old one stays, and the way out is said.
fn full_disk(bench: &Bench, good: &str) {
    if !Path::new("/dev/full").exists() {
        println!("no /dev/full here");
        return;
    }
    let finished = bench.determine(&["--from", good, "--out", "/dev/full"]).expect_code(74);
    assert!(finished.stderr.contains("/dev/full: no space left"), "{}", finished.stderr);
}

/// Accounts that are all different, more than the memory takes: it spills, and stays below its bound.
#[test]
fn three_million_authors_take_no_more_memory_than_allowed() {
    const ROWS: u64 = 3_000_000;
    let bench = Bench::new();
    let path = bench.path("likes.jsonl.gz");
    let mut packer = GzEncoder::new(std::fs::File::create(&path).unwrap(), Compression::fast());
    let (mut rng, mut seen_twice) = (Rng::with_seed(33), Vec::new());
    let mut text = String::new();
    for row in 0..ROWS {
        let id: String = (0..24)
            .map(|at| {
                char::from(
                    b"abcdefghijklmnop234567"[((row >> at) % 2) as usize * 7 + rng.usize(..7)],
                )
            })
            .collect();
        if row < 1_000 {
            seen_twice.push(id.clone());
        }
        text += &format!(
            "{{\"record_type\":\"like\",\"synctimestamp\":\"2024-10-05-00:00:00\",\"subject\":{{\"uri\":\"at://did:plc:{id}/x/y\"}}}}\n"
        );
        if text.len() > 1 << 16 {
            packer.write_all(text.as_bytes()).unwrap();
            text.clear();
        }
    }
    for id in &seen_twice {
        text += &(like(&format!("did:plc:{id}")) + "\n");
    }
    packer.write_all(text.as_bytes()).unwrap();
    packer.finish().unwrap();
    let (from, out, csv) =
        (bench.text("likes.jsonl.gz"), bench.text("list.txt"), bench.text("counts.csv"));
    let memory = ["--set", "limits.memory=64MiB"];
    let arguments =
        [&["--from", &from, "--out", &out, "--csv", &csv, "--json"], &memory[..]].concat();
    let finished = bench.determine(&arguments).expect_code(0);
    let told = finished.json();
    println!(
        "{ROWS} authors: {:.1} s, {} KiB, {} spills",
        finished.seconds,
        finished.usage.rss_peak_bytes >> 10,
        told["spills"]
    );
    assert_eq!(told["authors"], ROWS);
    assert!(told["spills"].as_u64().unwrap() > 2, "{told}");
    assert!(finished.usage.rss_peak_bytes < (64 + 64) << 20, "{:?}", finished.usage);
    let lines =
        std::io::BufRead::lines(std::io::BufReader::new(std::fs::File::open(&csv).unwrap()));
    let (mut last, mut twice) = (String::new(), 0);
    for line in lines.skip(1).map(Result::unwrap) {
        assert!(line > last, "in order, and each once");
        twice += usize::from(line.ends_with(",2,0,0,2"));
        last = line;
    }
    assert_eq!(twice, seen_twice.len());
}

/// Unless Parquet is in this build, a Parquet file is refused before anything is read.
#[cfg(not(feature = "parquet"))]
#[test]
fn without_the_feature_parquet_is_refused_by_name() {
    let bench = Bench::new();
    let parquet = bench.file("history/0.parquet", b"PAR1");
    for from in [parquet.as_str(), &bench.text("history"), &bench.file("odd.bin", b"PAR1")] {
        let finished = bench.determine(&["--from", from]).expect_code(2);
        assert!(finished.stderr.contains("--features parquet"), "{}", finished.stderr);
    }
}

/// Parquet that is not ours: texts, structs, dictionaries, times and dates, by pyarrow.
#[cfg(feature = "parquet")]
#[test]
fn parquet_of_another_hand_is_read_in_every_layout() {
    let python = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/tools/pyarrow/bin/python");
    if !python.exists() {
        println!("no pyarrow here (tests/run installs it): Parquet of another hand is left out");
        return;
    }
    let bench = Bench::new();
    let mut maker = Maker::new(40);
    maker.is_dated = true;
    let mut layouts = Vec::new();
    for _ in 0..4 {
        let mut records = Vec::new();
        for _ in 0..1_500 {
            let made = maker.make();
            let uris: Vec<Option<String>> =
                made.subjects.iter().map(|subject| maker.uri(*subject)).collect();
            records
                .push(json!({"record_type": made.record_type, "stamp": made.stamp, "uris": uris}));
        }
        layouts.push(records);
    }
    let order = json!({"folder": bench.text("history"), "layouts": layouts}).to_string();
    let mut writing = std::process::Command::new(python)
        .arg("tests/determine/history.py")
        .stdin(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    writing.stdin.take().unwrap().write_all(order.as_bytes()).unwrap();
    assert!(writing.wait().unwrap().success());
    let (history, list, csv) =
        (bench.text("history"), bench.text("list.txt"), bench.text("counts.csv"));
    let arguments = ["--from", &history, "--out", &list, "--csv", &csv, "--json"];
    let told = bench.determine(&arguments).expect_code(0).json();
    assert!(told["files"].as_u64().unwrap() > 20, "partitions are files: {told}");
    assert_as_expected(&bench, &told, &maker.expected);
}

/// Whatever is wrong with a Parquet file, it is the file that is named.
#[cfg(feature = "parquet")]
#[test]
fn damaged_parquet_is_named() {
    let bench = Bench::new();
    let mut maker = Maker::new(41);
    parquet_file(&mut maker, &bench.path("whole.parquet"), 300);
    let whole = std::fs::read(bench.path("whole.parquet")).unwrap();
    let cut = bench.file("cut.parquet", &whole[..whole.len() / 2]);
    assert!(bench.determine(&["--from", &cut]).expect_code(74).stderr.contains(&cut));
    let (mut rng, mut refused) = (Rng::with_seed(42), 0);
    for _ in 0..60 {
        let mut bytes = whole.clone();
        for _ in 0..rng.usize(1..6) {
            let at = rng.usize(4..bytes.len());
            bytes[at] ^= rng.u8(1..);
        }
        let path = bench.file("damaged.parquet", &bytes);
        let finished = bench.determine(&["--from", &path]);
        // Where a text was hit, it is another text: Parquet has no checksum unless its writer made one.
        assert!(matches!(finished.code, Some(0 | 74)), "{finished:?}");
        if finished.code == Some(74) {
            refused += 1;
            assert!(finished.stderr.contains(&path), "{}", finished.stderr);
        }
    }
    assert!(refused > 20, "{refused}");
}

/// The whole way: who is determined is backfilled, whoever is done is not determined again, and a daemon takes the rest up.
#[test]
fn the_list_goes_into_backfill_and_into_a_daemon_and_leaves_out_who_is_done() {
    let bench = Bench::new();
    let network = Network::generate(&Shape {
        seed: 50,
        accounts: 12,
        hosts: 3,
        records: Records::Fixed(60),
        odd: false,
    });
    let mut dids = network.world().dids();
    dids.sort();
    let some = bench.file("some.jsonl", &likes(&dids[..8]));
    let all = bench.file("all.jsonl", &likes(&dids));
    let list = bench.determine(&["--from", &some]).expect_code(0).stdout;
    assert_eq!(list.lines().count(), 8);
    let skyfill = Skyfill::new(env!("CARGO_BIN_EXE_skyfill"));
    let arguments = backfill(&bench.path("data"), ["--dids-file", "-"], &network, &[]);
    let done =
        skyfill.spawn_with_input(&arguments, list.as_bytes()).finish(PATIENCE).expect_code(0);
    assert_eq!(done.json()["accounts"]["done"], 8);
    let finished = bench.determine(&["--from", &all]).expect_code(0);
    assert_eq!(finished.stdout.lines().collect::<Vec<_>>(), dids[8..].iter().collect::<Vec<_>>());
    assert!(finished.stderr.contains("8 done in "), "{}", finished.stderr);
    // Our own queues, read a second time here.
    let queue = bench.text("data/queue");
    let mut named = BTreeSet::new();
    for label in KINDS {
        let path = bench.path(&format!("data/queue/output_backfill_sync_{label}.db"));
        let db = rusqlite::Connection::open(path).unwrap();
        let mut select = db.prepare("SELECT value FROM queue, json_each(payload)").unwrap();
        for record in select.query_map([], |row| row.get::<_, String>(0)).unwrap() {
            let record: Value = serde_json::from_str(&record.unwrap()).unwrap();
            let date = &record["synctimestamp"].as_str().unwrap()[..10];
            if ("2024-10-01"..="2024-11-20").contains(&date) {
                let of =
                    |text: &Value| serde_json::from_str::<Value>(text.as_str().unwrap()).unwrap();
                let uris = match label {
                    "reply" => {
                        ["parent", "root"].map(|part| uri_in(&of(&record["reply"])[part])).to_vec()
                    }
                    _ => vec![uri_in(&record["subject"])],
                };
                named.extend(uris.iter().map(|uri| uri.split('/').nth(2).unwrap().to_owned()));
            }
        }
    }
    let dates = ["--start-date", "2024-10-01", "--end-date", "2024-11-20"];
    let found = bench.determine(&[&["--from", &queue], &dates[..]].concat()).expect_code(0);
    let done: BTreeSet<String> = dids[..8].iter().cloned().collect();
    let expected: Vec<&String> =
        named.iter().filter(|did| did.starts_with("did:plc:") && !done.contains(*did)).collect();
    let plc: Vec<&str> = found.stdout.lines().filter(|did| did.starts_with("did:plc:")).collect();
    assert!(plc.len() > 50, "{}", plc.len());
    assert_eq!(plc, expected);
    // A daemon at work on this list, in this data directory.
    let list = bench.file("dids.txt", list.as_bytes());
    let mut arguments =
        backfill(&bench.path("data"), ["--set", &format!("source.files={list}")], &network, &[]);
    arguments.retain(|argument| !matches!(argument.as_str(), "--json" | "--quiet"));
    let url = arguments.iter().position(|argument| argument == "--plc-url").unwrap();
    let plc_url = format!("identity.plc_url={}", arguments[url + 1]);
    arguments.truncate(url);
    arguments[0] = "run".to_owned();
    for set in [plc_url.as_str(), "network.allow=127.0.0.0/8", "metrics.listen="] {
        arguments.extend(["--set".to_owned(), set.to_owned()]);
    }
    let daemon = skyfill.spawn(&arguments);
    assert!(daemon.wait_for("8 accounts listed", PATIENCE), "{}", daemon.stderr());
    let told =
        bench.determine(&["--from", &all, "--append-to", &list, "--json"]).expect_code(0).json();
    assert_eq!((&told["already_done"], &told["accounts"]), (&json!(8), &json!(4)));
    assert!(daemon.signal(Signal::HUP));
    assert!(daemon.wait_for("12 accounts listed", PATIENCE), "{}", daemon.stderr());
    let data = bench.text("data");
    let begun = std::time::Instant::now();
    loop {
        let status =
            skyfill.run(&["status", "--json", "--data-dir", &data], PATIENCE).expect_code(0).json();
        if status["accounts"]["done"] == 12 {
            break;
        }
        assert!(begun.elapsed() < PATIENCE, "{status}");
    }
    let told =
        bench.determine(&["--from", &all, "--append-to", &list, "--json"]).expect_code(0).json();
    assert_eq!((&told["already_done"], &told["accounts"]), (&json!(12), &json!(0)));
    daemon.signal(Signal::TERM);
    daemon.finish(Duration::from_secs(30)).expect_code(0);
}
