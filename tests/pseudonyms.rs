//! Pseudonyms in the place of DIDs: what they are, where they stand, and that nothing else gives a DID away.
//!
//! The expected rows are the oracle's, with DIDs replaced in their text by this file's own search and its own HMAC; the program's
//! code for either is not used.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::disallowed_methods
)]

mod support;

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use ipld_core::cid::Cid as LinkCid;
use ipld_core::ipld::Ipld;
use rusqlite::Connection;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use skyfill::domain::filter::{Filter, Kind, Offsets, Outside, TypeEntry, Window};
use skyfill::repo::cid::{Cid, Codec};
use skyfill::transform::pseudonym::Pseudonyms;
use skyfill::transform::{RecordBlock, RecordSource, Transformer, Verdict};
use support::job::{Job, PATIENCE, backfill};
use support::judge::{queue_path, queue_records};
use support::network::Standing;
use support::oracle::{Options, REJECTED, visit};
use support::proc::Finished;
use support::world::{Records, Shape};

const BINARY: &str = env!("CARGO_BIN_EXE_skyfill");

const KEY: &[u8] = b"a key of this test, more than 32 bytes of it";

/// HMAC-SHA256 as RFC 2104 writes it.
fn hmac(key: &[u8], message: &[u8]) -> [u8; 32] {
    let mut block = [0_u8; 64];
    if key.len() > 64 {
        block[..32].copy_from_slice(&Sha256::digest(key));
    } else {
        block[..key.len()].copy_from_slice(key);
    }
    let padded = |pad: u8| block.map(|byte| byte ^ pad).to_vec();
    let inner = Sha256::digest([padded(0x36), message.to_vec()].concat());
    Sha256::digest([padded(0x5c), inner.to_vec()].concat()).into()
}

fn pseudonym(key: &[u8], did: &str) -> String {
    let tag = hmac(key, did.as_bytes());
    let bits: String = tag[..20].iter().map(|byte| format!("{byte:08b}")).collect();
    let digits = "abcdefghijklmnopqrstuvwxyz234567".as_bytes();
    let letter = |at: usize| {
        char::from(digits[usize::from_str_radix(&bits[at * 5..at * 5 + 5], 2).unwrap()])
    };
    format!("did:pseudo:{}", (0..32).map(letter).collect::<String>())
}

/// `text` with every DID replaced that follows `mark`.
fn replaced(text: &str, mark: &str) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some(at) = rest.find(mark) {
        let (before, after) = rest.split_at(at + mark.len());
        out += before;
        let is_of_did = |c: char| c.is_ascii_alphanumeric() || ".:%_-".contains(c);
        let end = after.find(|c| !is_of_did(c)).unwrap_or(after.len());
        let (did, behind) = after.split_at(end);
        if did.starts_with("did:") {
            out += &pseudonym(KEY, did)
        } else {
            out += did
        }
        rest = behind;
    }
    out + rest
}

/// Every text that is a DID, or a record's URI, as a whole.
fn walked(value: &Value) -> Value {
    match value {
        Value::String(text) if text.starts_with("did:") && !text.contains(' ') => {
            json!(replaced(&format!("|{text}"), "|")[1..])
        }
        Value::String(text) if text.starts_with("at://did:") && !text.contains(' ') => {
            json!(replaced(text, "at://"))
        }
        Value::Array(items) => items.iter().map(walked).collect(),
        Value::Object(fields) => {
            Value::Object(fields.iter().map(|(key, value)| (key.clone(), walked(value))).collect())
        }
        other => other.clone(),
    }
}

/// The oracle's row as it must stand in a queue with pseudonyms.
fn shown(label: &str, row: &Value) -> Value {
    let mut row = row.clone();
    let fields = row.as_object_mut().unwrap();
    for (name, value) in fields.iter_mut() {
        let Value::String(text) = &*value else {
            if name == "record" {
                *value = walked(value);
            }
            continue;
        };
        *value = match name.as_str() {
            "did" => json!(pseudonym(KEY, text)),
            "uri" | "reply" | "embed" => json!(replaced(text, "at://")),
            "subject" if text.starts_with("did:") => json!(replaced(&format!("|{text}"), "|")[1..]),
            "subject" => json!(replaced(text, "at://")),
            "facets" => json!(replaced(text, "\"did\": \"")),
            "raw" if label == REJECTED => Value::Null,
            _ => continue,
        };
    }
    row
}

fn job(seed: u64) -> Job {
    let shape = Shape { seed, accounts: 10, hosts: 2, records: Records::Fixed(150), odd: true };
    Job::new(BINARY, &shape, &[])
}

fn key_file(job: &Job, name: &str, key: &[u8]) -> PathBuf {
    let path = job.path(name);
    std::fs::write(&path, key).unwrap();
    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o600)).unwrap();
    path
}

fn run(job: &Job, data: &Path, key: &Path, more: &[&str]) -> Finished {
    let mut all = job.arguments(data);
    all.extend(["--set".to_owned(), format!("records.pseudonyms={}", key.display())]);
    all.extend(more.iter().map(|text| (*text).to_owned()));
    job.skyfill().run(&all, PATIENCE)
}

fn sorted(rows: impl Iterator<Item = Value>) -> Vec<String> {
    let mut texts: Vec<String> = rows
        .map(|mut row| {
            if row.get("reason").is_some() {
                row["detail"] = json!("*");
            }
            row.to_string()
        })
        .collect();
    texts.sort();
    texts
}

/// How often `text` stands in the files of `folder`.
fn occurrences(folder: &Path, text: &str) -> usize {
    let files = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| std::fs::read(entry.unwrap().path()).unwrap());
    files.map(|bytes| bytes.windows(text.len()).filter(|it| *it == text.as_bytes()).count()).sum()
}

#[test]
fn every_queue_has_the_rows_of_the_oracle_with_pseudonyms_and_no_did_anywhere() {
    let job = job(61);
    let (world, data) = (job.network.world(), job.path("data"));
    let key = key_file(&job, "key", KEY);
    let summary = run(&job, &data, &key, &[]).expect_code(0);
    let (log, summary) = (summary.stderr.clone(), summary.json());
    let note = summary["pseudonyms"]["note"].as_str().unwrap();
    assert!(note.contains("texts and handles are not touched") && !note.is_empty(), "{summary}");
    let id = summary["pseudonyms"]["key"].as_str().unwrap();
    assert!(id.len() == 16 && log.contains(id) && log.contains(note), "{log}");
    let options = Options::default();
    let mut compared = 0;
    for label in options.labels() {
        let mut wanted = Vec::new();
        for index in 0..world.len() {
            visit(&world.account(index), &options, |of, row| {
                if of == label {
                    wanted.push(shown(&label, &row));
                }
            });
        }
        let (wanted, found) =
            (sorted(wanted.into_iter()), sorted(queue_records(&data, &label).into_iter()));
        compared += found.len();
        for (wanted, found) in wanted.iter().zip(&found) {
            assert_eq!(wanted, found, "{label}");
        }
        assert_eq!(wanted.len(), found.len(), "{label}");
        let queue = Connection::open(queue_path(&data, &label)).unwrap();
        let mut select = queue.prepare("SELECT metadata FROM queue").unwrap();
        let names: Vec<String> =
            (0..world.len()).map(|index| pseudonym(KEY, world.did(index))).collect();
        for metadata in select.query_map([], |row| row.get::<_, String>(0)).unwrap() {
            let metadata: Value = metadata.unwrap().parse().unwrap();
            assert!(names.contains(&metadata["did"].as_str().unwrap().to_owned()), "{metadata}");
        }
    }
    assert!(compared > 1_200, "{compared}");
    // No DID of any directory is left in any byte of a queue, WAL included: nobody wrote one into a text here.
    let queues = data.join("queue");
    assert_eq!((occurrences(&queues, "did:plc:"), occurrences(&queues, "did:web:")), (0, 0));
    assert!(occurrences(&queues, "did:pseudo:") > 2 * compared);
    // Nor in one that was never closed.
    if cfg!(debug_assertions) {
        let killed = job.path("killed");
        let mut all = job.arguments(&killed);
        all.extend(["--set".to_owned(), format!("records.pseudonyms={}", key.display())]);
        let crashed =
            job.skyfill().env("SKYFILL_CRASH_AT", "QueueSettledBeforeOthers:3").run(&all, PATIENCE);
        assert_eq!(crashed.signal, Some(6), "{crashed:#?}");
        let queues = killed.join("queue");
        let wal = std::fs::metadata(queues.join("output_backfill_sync_post.db-wal")).unwrap();
        assert!(wal.len() > 10_000);
        assert_eq!((occurrences(&queues, "did:plc:"), occurrences(&queues, "did:web:")), (0, 0));
    }

    let text = data.to_str().unwrap();
    job.skyfill().run(&["verify", "--data-dir", text], PATIENCE).expect_code(0);
    let again = run(&job, &data, &key, &[]).expect_code(0).json();
    assert_eq!(again["this_run"]["done"], 0);
    // Another key, or none, is another filter.
    let other = key_file(&job, "other", &[9; 32]);
    for finished in [run(&job, &data, &other, &[]), job.run(&data)] {
        let refused = finished.expect_code(78).stderr;
        assert!(refused.contains("other pseudonyms"), "{refused}");
    }
    assert_ne!(pseudonym(KEY, world.did(0)), pseudonym(&[9; 32], world.did(0)));
    let elsewhere = job.path("elsewhere");
    run(&job, &elsewhere, &other, &[]).expect_code(0);
    let mine = queue_records(&data, "follow");
    let theirs = queue_records(&elsewhere, "follow");
    assert_eq!(mine.len(), theirs.len());
    let dids = |rows: &[Value]| {
        rows.iter().map(|row| row["did"].to_string()).collect::<std::collections::BTreeSet<_>>()
    };
    assert!(dids(&mine).is_disjoint(&dids(&theirs)));
}

#[test]
fn forgetting_and_asking_again_find_the_rows_of_a_pseudonym() {
    let job = job(62);
    let (world, data) = (job.network.world(), job.path("data"));
    let key = key_file(&job, "key", KEY);
    run(&job, &data, &key, &[]).expect_code(0);
    job.network.set_standing(1, Standing::Deactivated);
    let text = data.to_str().unwrap();
    let out = job.path("list.jsonl");
    let mut recheck = vec!["recheck", "--data-dir", text, "--out", out.to_str().unwrap()];
    let flags = job.network.flags();
    recheck.extend(flags.iter().map(String::as_str));
    recheck.extend(["--set", "fetch.host_requests_per_second=1000"]);
    job.skyfill().run(&recheck, PATIENCE).expect_code(0);
    let entry: Value = std::fs::read_to_string(&out).unwrap().trim().parse().unwrap();
    let name = pseudonym(KEY, world.did(1));
    assert_eq!((&entry["did"], &entry["shown_as"]), (&json!(world.did(1)), &json!(name)));
    let took = |label: &str| entry["queues"][label]["records"].clone();
    assert!(
        entry["records"].as_object().unwrap().iter().all(|(label, count)| took(label) == *count),
        "{entry}"
    );
    let queues = data.join("queue");
    let name = format!("\"did\":\"{name}\"");
    assert!(occurrences(&queues, &name) > 100);
    // The key is lost: what the ledger knows of the account is enough.
    job.skyfill()
        .run(&["forget", "--data-dir", text, "--did", world.did(1)], PATIENCE)
        .expect_code(0);
    assert_eq!(occurrences(&queues, &name), 0);
    // The ledger knows nothing of what was exported of this one any more: with the key it is found all the same.
    let ledger = Connection::open(data.join("state.db")).unwrap();
    ledger.execute("UPDATE accounts SET revision = NULL WHERE did = ?1", [world.did(2)]).unwrap();
    drop(ledger);
    let set = format!("records.pseudonyms={}", key.display());
    let forget = ["forget", "--data-dir", text, "--did", world.did(2), "--set", &set];
    job.skyfill().run(&forget, PATIENCE).expect_code(0);
    assert_eq!(occurrences(&queues, &format!("\"did\":\"{}\"", pseudonym(KEY, world.did(2)))), 0);
    job.skyfill().run(&["verify", "--data-dir", text], PATIENCE).expect_code(0);
    let provenance =
        job.skyfill().run(&["provenance", "--data-dir", text], PATIENCE).expect_code(0).stdout;
    let lines: Vec<Value> = provenance.lines().map(|line| line.parse().unwrap()).collect();
    assert_eq!(lines.len(), 8);
    assert!(lines.iter().all(|it| it["shown_as"] == pseudonym(KEY, it["did"].as_str().unwrap())));
}

#[test]
fn a_key_that_others_can_read_or_that_is_too_short_is_refused() {
    let job = job(63);
    let data = job.path("data");
    for (mode, bytes, code, what) in
        [(0o640, 32, 77, "chmod 600"), (0o604, 32, 77, "chmod 600"), (0o600, 31, 78, "at least 32")]
    {
        let key = key_file(&job, "key", &vec![3; bytes]);
        std::fs::set_permissions(&key, PermissionsExt::from_mode(mode)).unwrap();
        let refused = run(&job, &data, &key, &[]).expect_code(code).stderr;
        assert!(refused.contains(what) && refused.contains("records.pseudonyms"), "{refused}");
        let set = format!("records.pseudonyms={}", key.display());
        let source = format!("source.dids={}", job.network.world().did(0));
        let check =
            ["check", "--data-dir", data.to_str().unwrap(), "--set", &set, "--set", &source];
        let told = job.skyfill().run(&check, PATIENCE).expect_code(code).stdout;
        assert!(told.contains(what), "{told}");
    }
    let refused = run(&job, &data, &job.path("nowhere"), &[]).expect_code(78).stderr;
    assert!(refused.contains("nowhere"), "{refused}");
    let one = backfill(&data, ["--dids", job.network.world().did(0)], &job.network, &[]);
    job.skyfill().run(&one, PATIENCE).expect_code(0);
}

// ---- hand-made records ----

const ME: &str = "did:plc:44ybard66vv44zksje25o7dz";
const YOU: &str = "did:plc:z72i7hdynmk6r22z27h6tvur";
const WEB: &str = "did:web:example.org";

fn ipld(value: &Value) -> Ipld {
    match value {
        Value::Null => Ipld::Null,
        Value::Bool(flag) => Ipld::Bool(*flag),
        Value::Number(number) => Ipld::Integer(number.as_i64().unwrap().into()),
        Value::String(text) => Ipld::String(text.clone()),
        Value::Array(items) => Ipld::List(items.iter().map(ipld).collect()),
        Value::Object(fields) => match fields.get("$link") {
            Some(link) => Ipld::Link(link.as_str().unwrap().parse::<LinkCid>().unwrap()),
            None => {
                Ipld::Map(fields.iter().map(|(key, value)| (key.clone(), ipld(value))).collect())
            }
        },
    }
}

fn row(key: &str, record: &Value) -> (Verdict, Value) {
    let window = Window {
        start: "2024-09-27-00:00:00".to_owned(),
        end: "2024-12-02-00:00:00".to_owned(),
        outside: Outside::Bucket,
        offsets: Offsets::Utc,
    };
    let mut types = Kind::ALL.map(TypeEntry::Kind).to_vec();
    types.push(TypeEntry::Nsid("org.example.thing".to_owned()));
    let plain = Transformer::new(&Filter { types, window });
    let transformer = plain.clone().with_pseudonyms(Pseudonyms::new(KEY));
    assert_ne!(plain.filter_hash(), transformer.filter_hash());
    let bytes = serde_ipld_dagcbor::to_vec(&ipld(record)).unwrap();
    let cid = Cid { codec: Codec::DagCbor, digest: Sha256::digest(&bytes).into() };
    let origin = transformer.origin(ME, "3l5nhh4s4xs2b");
    let source = RecordSource { origin: &origin, key, cid, block: RecordBlock::Held(&bytes) };
    let plan = transformer.read(&source);
    let mut out = Vec::new();
    plan.write(&mut out);
    let text = String::from_utf8(out).unwrap();
    (plan.verdict(), text.parse().unwrap_or_else(|error| panic!("{error}: {text}")))
}

fn inner(row: &Value, field: &str) -> Value {
    row[field].as_str().unwrap().parse().unwrap()
}

#[test]
fn a_post_keeps_its_words_and_loses_its_names() {
    let (me, you, web) = (pseudonym(KEY, ME), pseudonym(KEY, YOU), pseudonym(KEY, WEB));
    let strong = |uri: String| json!({"cid": "bafyx", "uri": uri});
    let words = format!("{YOU} is at://{YOU}/app.bsky.feed.post/3l, says @user.test");
    let record = json!({
        "$type": "app.bsky.feed.post", "createdAt": "2024-10-05T12:34:56.000Z", "text": words,
        "reply": {"parent": strong(format!("at://{YOU}/app.bsky.feed.post/3a")), "root": strong("at://user.test/a.b.c/3b".into())},
        "embed": {
            "$type": "app.bsky.embed.recordWithMedia",
            "record": {"$type": "app.bsky.embed.record", "record": strong(format!("at://{WEB}/app.bsky.feed.post/3c"))},
            "media": {"$type": "app.bsky.embed.external", "external": {
                "uri": format!("https://bsky.app/profile/{YOU}"), "title": ME, "description": format!("at://{ME}/a.b.c/x"),
            }},
            "images": [{"alt": YOU}],
        },
        "facets": [{"index": {"byteStart": 0, "byteEnd": 3}, "features": [
            {"$type": "app.bsky.richtext.facet#mention", "did": YOU},
            {"$type": "app.bsky.richtext.facet#link", "uri": format!("at://{YOU}/a.b.c/x")},
            {"$type": "app.bsky.richtext.facet#tag", "tag": YOU},
        ]}],
        "entities": [{"type": "mention", "value": WEB, "index": {"start": 0, "end": 1}}],
        "tags": [YOU, "x"],
    });
    let (verdict, row) = row("app.bsky.feed.post/3l5nhh4s4xs2b", &record);
    assert!(matches!(verdict, Verdict::Exported(_)));
    assert_eq!((&row["did"], &row["text"]), (&json!(me), &json!(words)));
    assert_eq!(row["uri"], format!("at://{me}/app.bsky.feed.post/3l5nhh4s4xs2b"));
    let reply = inner(&row, "reply");
    assert_eq!(reply["parent"]["uri"], format!("at://{you}/app.bsky.feed.post/3a"));
    assert_eq!(reply["root"]["uri"], "at://user.test/a.b.c/3b");
    let embed = inner(&row, "embed");
    assert_eq!(embed["record"]["record"]["uri"], format!("at://{web}/app.bsky.feed.post/3c"));
    assert_eq!(embed["media"], record["embed"]["media"]);
    assert_eq!(embed["images"], record["embed"]["images"]);
    let facets = inner(&row, "facets");
    assert_eq!(facets[0]["features"][0]["did"], you);
    assert_eq!(facets[0]["features"][1], record["facets"][0]["features"][1]);
    assert_eq!(facets[0]["features"][2], record["facets"][0]["features"][2]);
    assert_eq!(inner(&row, "entities")[0]["value"], web);
    assert_eq!(row["tags"], format!("{YOU},x"));
}

#[test]
fn edges_configured_types_and_rejected_records_are_shown_alike() {
    let (me, you, web) = (pseudonym(KEY, ME), pseudonym(KEY, YOU), pseudonym(KEY, WEB));
    let created = "2024-10-05T12:34:56.000Z";
    let edge = |nsid: &str, subject: Value| {
        row("a.b.c/3l", &json!({"$type": nsid, "createdAt": created, "subject": subject})).1
    };
    assert_eq!(edge("app.bsky.graph.follow", json!(YOU))["subject"], you);
    assert_eq!(edge("app.bsky.graph.block", json!("did:web:EXAMPLE.org"))["subject"], web);
    assert_eq!(edge("app.bsky.graph.follow", json!("user.test"))["subject"], "user.test");
    let like =
        edge("app.bsky.feed.like", json!({"cid": "bafyx", "uri": format!("at://{YOU}/a.b.c/x")}));
    assert_eq!(inner(&like, "subject")["uri"], format!("at://{you}/a.b.c/x"));
    assert_eq!(like["cid"].as_str().unwrap().len(), 59);
    let thing = json!({
        "$type": "org.example.thing", "owner": YOU, "of": format!("at://{YOU}/a.b.c/{WEB}"), "text": format!("for {YOU}"),
        "list": [ME, 7, {"deep": WEB}], YOU: true,
    });
    let (_, custom) = row(&format!("org.example.thing/{YOU}"), &thing);
    assert_eq!(custom["uri"], format!("at://{me}/org.example.thing/{you}"));
    let wanted = json!({
        "$type": "org.example.thing", "owner": you, "of": format!("at://{you}/a.b.c/{web}"), "text": format!("for {YOU}"),
        "list": [me, 7, {"deep": web}], you.clone(): true,
    });
    assert_eq!(custom["record"], wanted);
    let broken = json!({"$type": "app.bsky.graph.follow", "createdAt": "never", "subject": YOU});
    let (verdict, rejected) = row("a.b.c/3l", &broken);
    assert!(matches!(verdict, Verdict::Rejected("created_at")));
    assert_eq!((&rejected["did"], &rejected["record"]["subject"]), (&json!(me), &json!(you)));
    assert_eq!(rejected["raw"], Value::Null);
}
