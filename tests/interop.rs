//! The public test vectors of the protocol (`tests/interop`, CC0): cryptography, data model, MST, syntax.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout
)]

mod support;

use std::fs;
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use serde_json::Value;
use skyfill::domain::did::Did;
use skyfill::domain::{nsid, rkey, tid};
use skyfill::repo::cbor::{Item, Reader};
use skyfill::repo::cid::Cid;
use skyfill::repo::key::{Curve, PublicKey};
use skyfill::repo::mst::{Node, key_depth};
use support::forge::{Account, cid_of};

fn text(file: &str) -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/interop");
    fs::read_to_string(root.join(file)).unwrap()
}

fn cases(file: &str) -> Vec<Value> {
    serde_json::from_str(&text(file)).unwrap()
}

fn lines(file: &str) -> Vec<String> {
    text(file)
        .lines()
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
        .map(str::to_owned)
        .collect()
}

fn field<'v>(case: &'v Value, name: &str) -> &'v str {
    case[name].as_str().unwrap()
}

#[test]
fn signatures() {
    let cases = cases("crypto/signature-fixtures.json");
    for case in &cases {
        let curve = if field(case, "algorithm") == "ES256" { Curve::P256 } else { Curve::K256 };
        let legacy = PublicKey::from_legacy(curve, field(case, "publicKeyMultibase")).unwrap();
        let key = PublicKey::from_did_key(field(case, "publicKeyDid")).unwrap();
        assert_eq!(key, legacy);
        assert_eq!(key.to_did_key(), field(case, "publicKeyDid"));
        let message = STANDARD_NO_PAD.decode(field(case, "messageBase64")).unwrap();
        let signature = STANDARD_NO_PAD.decode(field(case, "signatureBase64")).unwrap();
        let verified = key.verify(&message, &signature);
        assert_eq!(
            verified.is_ok(),
            case["validSignature"].as_bool().unwrap(),
            "{}",
            case["comment"]
        );
    }
    println!("{} signatures", cases.len());
    assert_eq!(cases.len(), 6);
}

#[test]
fn did_keys() {
    let mut keys = 0;
    for case in
        cases("crypto/w3c_didkey_K256.json").iter().chain(&cases("crypto/w3c_didkey_P256.json"))
    {
        let key = PublicKey::from_did_key(field(case, "publicDidKey")).unwrap();
        assert_eq!(key.to_did_key(), field(case, "publicDidKey"));
        keys += 1;
    }
    assert_eq!(keys, 6);
}

#[test]
fn data_model() {
    let cases = cases("data-model/data-model-fixtures.json");
    for case in &cases {
        let bytes = STANDARD_NO_PAD.decode(field(case, "cbor_base64")).unwrap();
        assert_eq!(cid_of(&bytes).to_string(), field(case, "cid"));
        let mut reader = Reader::new(&bytes);
        let (mut items, mut left) = (0, 1_u64);
        while left > 0 {
            left -= 1;
            items += 1;
            match reader.read().unwrap() {
                Item::Array(count) => left += count,
                Item::Map(count) => left += 2 * count,
                _ => {}
            }
        }
        assert!(reader.is_at_end() && items > 1);
    }
    assert_eq!(cases.len(), 3);
}

#[test]
fn mst_depths_and_roots() {
    let heights = cases("mst/key_heights.json");
    for case in &heights {
        let depth = key_depth(field(case, "key").as_bytes());
        assert_eq!(u64::from(depth), case["height"].as_u64().unwrap(), "{}", case["key"]);
    }
    let proofs = cases("firehose/commit-proof-fixtures.json");
    for case in &proofs {
        let names = |name: &str| -> Vec<String> {
            case[name]
                .as_array()
                .unwrap()
                .iter()
                .map(|key| key.as_str().unwrap().to_owned())
                .collect()
        };
        let value: cid::Cid = field(case, "leafValue").parse().unwrap();
        let mut account = Account::empty(1);
        let root_of = |account: &Account| {
            let (root, blocks) = support::forge::tree_of_cids(
                &account.records.keys().map(|key| (key.clone(), value)).collect::<Vec<_>>(),
            );
            for block in blocks.iter().filter(|block| block.is_node) {
                Node::read(&block.bytes).unwrap().depth().unwrap();
            }
            root.to_string()
        };
        account.records = names("keys").into_iter().map(|key| (key, Vec::new())).collect();
        assert_eq!(root_of(&account), field(case, "rootBeforeCommit"), "{}", case["comment"]);
        account.records.extend(names("adds").into_iter().map(|key| (key, Vec::new())));
        names("dels").iter().for_each(|key| drop(account.records.remove(key)));
        assert_eq!(root_of(&account), field(case, "rootAfterCommit"), "{}", case["comment"]);
    }
    let keys = lines("mst/example_keys.txt");
    for key in &keys {
        assert_eq!(key_depth(key.as_bytes()).to_string(), key[1..2], "{key}");
    }
    println!("{} heights, {} proofs, {} keys", heights.len(), proofs.len(), keys.len());
}

/// Every valid line is accepted, every invalid one refused; gives how many there were.
fn syntax(name: &str, accepts: impl Fn(&str) -> bool) -> usize {
    let valid = lines(&format!("syntax/{name}_syntax_valid.txt"));
    let invalid = lines(&format!("syntax/{name}_syntax_invalid.txt"));
    valid.iter().for_each(|line| assert!(accepts(line), "{name} refused: {line}"));
    invalid.iter().for_each(|line| assert!(!accepts(line), "{name} accepted: {line}"));
    valid.len() + invalid.len()
}

#[test]
fn syntax_files() {
    let mut entries = syntax("nsid", nsid::is_nsid);
    entries += syntax("recordkey", rkey::is_rkey);
    entries += syntax("tid", tid::is_tid);
    // Of valid DIDs only the network's two methods can be resolved; of CIDs only version 1 with SHA-256 name blocks.
    for line in lines("syntax/did_syntax_valid.txt") {
        let is_ours = line.starts_with("did:plc:") || line.starts_with("did:web:");
        assert_eq!(Did::parse(&line).is_ok(), is_ours, "{line}");
        entries += 1;
    }
    for line in lines("syntax/did_syntax_invalid.txt") {
        assert!(Did::parse(&line).is_err(), "{line}");
        entries += 1;
    }
    for line in lines("syntax/cid_syntax_valid.txt") {
        if let Ok(cid) = line.parse::<cid::Cid>()
            && let Some(ours) = Cid::from_bytes(&cid.to_bytes())
            && line.starts_with('b')
        {
            assert_eq!(ours.to_string(), line);
        }
        entries += 1;
    }
    println!("{entries} syntax entries");
    assert_eq!(entries, 142);
}
