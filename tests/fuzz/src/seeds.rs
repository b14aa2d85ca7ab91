//! Writes what the targets begin with: the public vectors, golden records, the example configuration, and forged repositories.
//!
//! One folder for each target, one file for each seed, named by its number.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use crate::forge::{self, Account, Block, CarOptions, Key, Order, plain_account};
use crate::targets::{CID_HEAD, PLACEHOLDER, TARGETS};
use base64::prelude::{BASE64_STANDARD, Engine};

type Seeds = BTreeMap<&'static str, Vec<Vec<u8>>>;

/// Writes all of them into `directory`.
pub fn write(directory: &Path) {
    let mut seeds = Seeds::new();
    numbers_and_cids(&mut seeds);
    repositories(&mut seeds);
    texts(&mut seeds);
    documents(&mut seeds);
    lists(&mut seeds);
    for target in &TARGETS {
        let found = seeds.get(target.name).expect("seeds for every target");
        let folder = directory.join(target.name);
        fs::create_dir_all(&folder).expect("a directory");
        for (number, seed) in found.iter().enumerate() {
            fs::write(folder.join(format!("seed-{number:03}")), seed).expect("written");
        }
    }
}

fn repository_root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn text(path: &str) -> String {
    fs::read_to_string(repository_root().join(path)).expect("a file of the tests")
}

/// Flags in front of bytes.
fn flagged(flags: u8, bytes: impl AsRef<[u8]>) -> Vec<u8> {
    [&[flags], bytes.as_ref()].concat()
}

fn numbers_and_cids(seeds: &mut Seeds) {
    let numbers = [0, 1, 127, 128, 300, 16_383, 16_384, 1 << 32, (1 << 63) - 1];
    for number in numbers {
        let mut bytes = Vec::new();
        forge::varint(number, &mut bytes);
        seeds.entry("varint").or_default().push(bytes);
    }
    seeds.entry("varint").or_default().extend([vec![0x80; 10], vec![0x80, 0], vec![0xff; 9]]);
    let cids = [forge::cid_of(b"a"), forge::cid_with(0x55, b"b"), forge::cid_with(0x70, b"c")];
    seeds.entry("cid").or_default().extend(cids.iter().map(cid::Cid::to_bytes));
    let whole = cids[0].to_bytes();
    for cut in [0, 4, 20, 35] {
        seeds.entry("cid").or_default().push(whole[..cut].to_vec());
    }
    seeds.entry("cid").or_default().push([whole, vec![0]].concat());
    for line in text("tests/interop/syntax/cid_syntax_valid.txt").lines() {
        let known = line.parse::<cid::Cid>().ok().map(|cid| cid.to_bytes());
        seeds.entry("cid").or_default().extend(known);
    }
}

fn repositories(seeds: &mut Seeds) {
    for (seed, records) in [(1, 0), (2, 1), (3, 3), (4, 8), (5, 20)] {
        let account = plain_account(seed, records);
        let records = account.records.values().cloned();
        seeds.entry("cbor").or_default().extend(records.take(3));
        let (data, blocks) = account.tree();
        let (nodes, _): (Vec<_>, Vec<_>) = blocks.iter().partition(|block| block.is_node);
        seeds.entry("cbor").or_default().extend(nodes.iter().take(2).map(|it| it.bytes.clone()));
        let commit = account.commit(data, &CarOptions::default());
        for flags in [0, 1, 3, 5] {
            seeds.entry("commit").or_default().push(flagged(flags, &commit));
        }
        seeds.entry("cbor").or_default().push(commit);
        for (flags, order) in [(0, Order::Tree), (1, Order::Newest), (13, Order::Shuffled(1))] {
            let options = CarOptions { order, second_root: flags == 1, ..CarOptions::default() };
            seeds.entry("car").or_default().push(flagged(flags, account.car(&options)));
        }
        for flags in [0, 1, 2, 4, 8, 9] {
            seeds.entry("mst").or_default().push(flagged(flags, script(&account)));
        }
    }
    // Signed by the very keys that the target trusts.
    for key in [Key::from_seed(1), Key::from_seed(3)] {
        let account = Account { key, ..plain_account(1, 0) };
        let commit = account.commit(account.tree().0, &CarOptions::default());
        seeds.entry("commit").or_default().push(flagged(0, commit));
    }
    let golden: serde_json::Value =
        serde_json::from_str(&text("tests/golden/records.json")).expect("JSON");
    for case in golden.as_array().expect("a list") {
        let record = case["record_cbor_b64"].as_str().expect("base64");
        seeds.entry("cbor").or_default().push(BASE64_STANDARD.decode(record).expect("base64"));
    }
    let mut depths = vec![b"\xa0".to_vec(), [vec![0x81; 63], vec![0x80]].concat()];
    depths.push([vec![0x81; 64], vec![0x80]].concat());
    seeds.entry("cbor").or_default().extend(depths);
}

/// An account's tree as the target reads it: children first, links by number.
fn script(account: &Account) -> Vec<u8> {
    let (_, mut blocks) = account.tree();
    blocks.reverse();
    let mut script = Vec::new();
    let numbers: Vec<_> = blocks.iter().map(|block| block.cid.to_bytes()).collect();
    for Block { bytes, .. } in blocks {
        let mut bytes = bytes;
        for at in 0..bytes.len().saturating_sub(35) {
            let known = numbers.iter().position(|cid| bytes[at..].starts_with(cid));
            let Some(number) = known.and_then(|number| u8::try_from(number).ok()) else { continue };
            assert!(CID_HEAD.iter().any(|head| bytes[at..].starts_with(head)));
            bytes[at + 4..at + 35].copy_from_slice(&PLACEHOLDER);
            bytes[at + 35] = number;
        }
        script.extend(u16::try_from(bytes.len()).expect("small").to_le_bytes());
        script.extend(bytes);
    }
    script
}

fn texts(seeds: &mut Seeds) {
    let lines = |path: &str| -> Vec<Vec<u8>> {
        let text = text(&format!("tests/interop/syntax/{path}.txt"));
        let lines = text.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
        lines.map(|line| line.as_bytes().to_vec()).collect()
    };
    let dids = [lines("did_syntax_valid"), lines("did_syntax_invalid")].concat();
    seeds.entry("did").or_default().extend(dids);
    let more =
        ["did:plc:z72i7hdynmk6r22z27h6tvur", "did:web:example.com", "did:web:localhost%3A8080"];
    seeds.entry("did").or_default().extend(more.map(|did| did.as_bytes().to_vec()));
    for nsid in [lines("nsid_syntax_valid"), lines("nsid_syntax_invalid")].concat() {
        seeds.entry("names").or_default().push([&nsid, b"/self".as_slice()].concat());
    }
    let rkeys = [lines("recordkey_syntax_valid"), lines("recordkey_syntax_invalid")].concat();
    for rkey in rkeys.into_iter().chain(lines("tid_syntax_valid")) {
        seeds.entry("names").or_default().push([b"app.bsky.feed.post/", rkey.as_slice()].concat());
    }
    for uri in [lines("uri_syntax_valid"), lines("uri_syntax_invalid")].concat() {
        seeds.entry("guard").or_default().push(flagged(0, &uri[..uri.len().min(500)]));
    }
    let hosts = [
        "https://pds.example.com",
        "https://pds.example.com:443/",
        "https://127.0.0.1",
        "https://[::1]/",
        "https://[::ffff:10.0.0.1]",
        "https://2130706433/",
        "https://0x7f.1/",
        "http://10.0.0.1:3000/",
        "https://a@b.example/",
        "https://localhost./",
        "https://x.internal",
        "//10.1.1.1/x",
        "/redirected?x=1",
        "example.com",
        "https://８.8.8.8/",
        "https://1.0x7f",
    ];
    for host in hosts {
        seeds.entry("guard").or_default().extend([flagged(0, host), flagged(1, host)]);
    }
    let example = text("config/skyfill.toml");
    // The whole file is longer than an input; its sections are not.
    for section in example.split("\n[") {
        seeds.entry("config").or_default().push(flagged(1, format!("[{section}")));
        let bare = section.lines().map(|line| line.strip_prefix('#').unwrap_or(line));
        let bare: Vec<&str> = bare.filter(|line| line.contains(" = ")).map(str::trim).collect();
        let head = section.lines().next().filter(|line| line.ends_with(']'));
        let head = head.map(|line| format!("[{line}\n")).unwrap_or_default();
        seeds.entry("config").or_default().push(flagged(1, head + &bare.join("\n")));
    }
    let small = "data_dir = \"/d\"\n[source]\ndids = [\"did:plc:z72i7hdynmk6r22z27h6tvur\"]\n[fetch]\nconcurrency = 20\n";
    seeds.entry("config").or_default().extend([flagged(0, small), flagged(1, "")]);
}

fn documents(seeds: &mut Seeds) {
    for (number, did) in
        ["did:plc:z72i7hdynmk6r22z27h6tvur", "did:web:example.com"].iter().enumerate()
    {
        for key in [Key::from_seed(1), Key::from_seed(3)] {
            for (kind, encoded) in
                [("Multikey", key.multikey()), (key.legacy_type(), key.legacy_multibase())]
            {
                let document = serde_json::json!({
                    "@context": ["https://www.w3.org/ns/did/v1"], "id": did, "alsoKnownAs": ["at://alice.example.com"],
                    "verificationMethod": [{"id": format!("{did}#atproto"), "type": kind, "controller": did,
                        "publicKeyMultibase": encoded}],
                    "service": [{"id": "#atproto_pds", "type": "AtprotoPersonalDataServer",
                        "serviceEndpoint": "https://pds.example.com"}]
                });
                let flags = u8::try_from(number).expect("two");
                seeds.entry("document").or_default().push(flagged(flags, document.to_string()));
            }
        }
    }
    let log = serde_json::json!([{"nullified": false, "operation": {"signingKey": Key::from_seed(1).did_key()}},
        {"operation": {"verificationMethods": {"atproto": Key::from_seed(3).did_key()}}}]);
    let others =
        [log.to_string(), "<html>".to_owned(), "{\"id\":".to_owned(), "\u{feff}{}".to_owned()];
    seeds.entry("document").or_default().extend(others.map(|body| flagged(0, body)));
}

fn lists(seeds: &mut Seeds) {
    let did = "did:plc:z72i7hdynmk6r22z27h6tvur";
    let lists = [
        format!("{did}\n# remark\n\n{did} # alice\r\ndid:web:example.com"),
        format!("handle,DID\nalice,{did}\n\"a,\n\"\"b\",\"{did}\"\n"),
        format!("did;x\n{did};1\n\"open;{did}\n"),
        format!("{{\"did\":\"{did}\"}}\n{{\"did\":1}}\n{{}}\nnone\n"),
        format!("\u{feff}{did}\n"),
        "SQLite format 3\0".to_owned(),
        "did:plc:short\n\0".to_owned(),
    ];
    for list in lists {
        seeds.entry("list").or_default().extend([flagged(0, &list), flagged(20, &list)]);
    }
    let payloads = [
        format!("[{{\"did\":\"{did}\"}},{{\"did\":\"did:web:example.com\",\"x\":[1]}}]"),
        format!("{{\"did\":\"{did}\"}}"),
        format!("\"{did}\""),
        "[1,null,true,1.5,[]]".to_owned(),
        "[{\"did\":1},{}]".to_owned(),
        "[{\"did\":".to_owned(),
        format!("{{\"did\":\"{did}\",\"did\":\"x\"}}"),
    ];
    seeds.entry("queue").or_default().extend(payloads.map(|payload| flagged(0, payload)));
    let patches: [&[u8]; 4] =
        [&[], &[18, 0, 2, 19, 0, 2], &[0, 2, 5], &[100, 0, 9, 101, 4, 0, 7, 5, 255]];
    seeds.entry("queue").or_default().extend(patches.map(|patch| flagged(1, patch)));
}
