//! CARs that are cut, flipped, broken or hostile: nothing is proven that should not be, and each has its class.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout
)]

mod support;

use std::sync::atomic::AtomicBool;

use ipld_core::ipld::Ipld;
use skyfill::domain::did::Did;
use skyfill::domain::verdict::{Cause, LastError};
use skyfill::repo::car::Framer;
use skyfill::repo::error::RepoError;
use skyfill::repo::walk::{Expected, LeafBlock, Walk};
use support::forge::{
    Account, Block, CarOptions, Order, cid_of, encode, plain_account, tid, varint, write_car,
};

type Rows = Vec<(String, Option<Vec<u8>>)>;

fn prove(account: &Account, car: &Vec<u8>) -> Result<Rows, RepoError> {
    let mut framer = Framer::new(1 << 30);
    framer.push(car)?;
    let framed = framer.finish()?;
    let (did, key) = (Did::parse(&account.did).unwrap(), account.key.did_key());
    let cancel = AtomicBool::new(false);
    let mut walk = Walk::open(
        car,
        &framed,
        &Expected { did: Some(&did), key: Some(&key), earlier_keys: &[] },
        &cancel,
    )?;
    let mut rows = Vec::new();
    while let Some(leaf) = walk.next_leaf()? {
        let bytes = match leaf.block {
            LeafBlock::Held(bytes) => Some(bytes.to_vec()),
            LeafBlock::TooLarge(_) => None,
        };
        rows.push((leaf.key.to_owned(), bytes));
    }
    Ok(rows)
}

fn error_of(account: &Account, car: &Vec<u8>) -> RepoError {
    prove(account, car).expect_err("it was proven")
}

fn assert_class(account: &Account, options: &CarOptions, wanted: LastError) {
    let error = error_of(account, &account.car(options));
    assert_eq!(error.last_error(), Some(wanted), "{error}");
}

#[test]
fn cut_at_every_byte_it_is_never_proven() {
    let account = plain_account(3, 10);
    for order in [Order::Tree, Order::Newest] {
        let car = account.car(&CarOptions { order, ..CarOptions::default() });
        assert!(prove(&account, &car).is_ok());
        for length in 0..car.len() {
            let error = error_of(&account, &car[..length].to_vec());
            assert!(error.is_incomplete(), "cut at {length}: {error}");
            assert_eq!(error.cause(), Cause::Transient);
        }
        println!("{} cuts", car.len());
    }
}

#[test]
fn cut_at_every_block_border_it_is_incomplete() {
    let account = plain_account(4, 160);
    let (_, blocks) = account.tree();
    assert!(blocks.len() >= 199, "{} blocks", blocks.len());
    let car = account.car(&CarOptions::default());
    let mut borders = vec![car.len()];
    for block in blocks.iter().rev() {
        let mut section = Vec::new();
        support::forge::write_section(block, &mut section);
        borders.push(borders.last().unwrap() - section.len());
    }
    for border in borders.iter().skip(1) {
        let error = error_of(&account, &car[..*border].to_vec());
        assert!(matches!(error, RepoError::Missing { .. }), "{border}: {error}");
    }
}

#[test]
fn no_flipped_bit_yields_other_rows() {
    let account = plain_account(5, 10);
    let car = account.car(&CarOptions::default());
    let rows = prove(&account, &car).unwrap();
    let (mut refused, mut same) = (0, 0);
    for at in 0..car.len() {
        for bit in 0..8 {
            let mut flipped = car.clone();
            flipped[at] ^= 1 << bit;
            match prove(&account, &flipped) {
                Ok(found) => {
                    assert!(found == rows, "byte {at} bit {bit}");
                    same += 1;
                }
                Err(_) => refused += 1,
            }
        }
    }
    println!("{refused} flips refused, {same} without effect");
    assert_eq!(same, 0);
}

#[test]
fn what_breaks_has_its_class() {
    let account = plain_account(6, 50);
    let with = |change: fn(&mut CarOptions)| {
        let mut options = CarOptions::default();
        change(&mut options);
        options
    };
    assert_class(&account, &with(|o| o.corrupt_record = Some(7)), LastError::Hash);
    assert_class(&account, &with(|o| o.missing_record = Some(7)), LastError::Incomplete);
    assert_class(&account, &with(|o| o.missing_node = true), LastError::Incomplete);
    assert_class(&account, &with(|o| o.wrong_signature = true), LastError::Signature);
    let other = "did:plc:aaaaaaaaaaaaaaaaaaaaaaaa".to_owned();
    let options = CarOptions { commit_did: Some(other), ..CarOptions::default() };
    assert_class(&account, &options, LastError::DidMismatch);
    for seed in [6, 7] {
        assert_class(&plain_account(seed, 5), &with(|o| o.sign_high = true), LastError::Signature);
    }
    let stranger = Account { key: plain_account(77, 0).key, ..account.clone() };
    let error = error_of(&stranger, &account.car(&CarOptions::default()));
    assert_eq!(error.last_error(), Some(LastError::Signature));
    assert_eq!(error.cause(), Cause::Invalid);
}

/// A signed CAR around hand-made nodes, the first being the root; one shared record.
fn with_nodes(nodes: &[Ipld]) -> (Account, Vec<u8>) {
    let account = Account::empty(8);
    let block = |value: &Ipld| {
        let bytes = encode(value);
        Block { cid: cid_of(&bytes), bytes, is_node: true }
    };
    let mut blocks: Vec<Block> = nodes.iter().map(block).collect();
    let commit = account.commit(blocks[0].cid, &CarOptions::default());
    let root = cid_of(&commit);
    blocks.push(Block { cid: root, bytes: commit, is_node: false });
    blocks.push(block(&record()));
    (account, write_car(&[root], &blocks))
}

fn record() -> Ipld {
    Ipld::String("record".to_owned())
}

fn entry(p: i128, k: &str, right: Option<&Ipld>) -> Ipld {
    let link = |value: &Ipld| Ipld::Link(cid_of(&encode(value)));
    let fields = [
        ("p", Ipld::Integer(p)),
        ("k", Ipld::Bytes(k.as_bytes().to_vec())),
        ("v", link(&record())),
        ("t", right.map_or(Ipld::Null, link)),
    ];
    Ipld::Map(fields.into_iter().map(|(name, value)| (name.to_owned(), value)).collect())
}

fn node(left: Option<&Ipld>, entries: Vec<Ipld>) -> Ipld {
    let left = left.map_or(Ipld::Null, |value| Ipld::Link(cid_of(&encode(value))));
    Ipld::Map([("l".to_owned(), left), ("e".to_owned(), Ipld::List(entries))].into())
}

/// Ascending keys of one depth.
fn keys_at(depth: u32, count: usize) -> Vec<String> {
    let keys = (0..).map(|n| format!("app.bsky.feed.like/{}", tid(n)));
    keys.filter(|key| support::forge::depth(key.as_bytes()) == depth).take(count).collect()
}

fn compressed(first: &str, second: &str) -> (i128, String) {
    let shared = first.bytes().zip(second.bytes()).take_while(|(a, b)| a == b).count();
    (shared as i128, second[shared..].to_owned())
}

#[test]
fn trees_that_break_a_rule_are_invalid() {
    let (low, high) = (keys_at(0, 3), keys_at(1, 3));
    let (shared, rest) = compressed(&low[0], &low[1]);
    let leaf = node(None, vec![entry(0, &low[0], None)]);
    let empty = node(None, Vec::new());
    let (back_shared, back_rest) = compressed(&low[1], &low[0]);
    let good = with_nodes(&[node(None, vec![entry(0, &low[0], None), entry(shared, &rest, None)])]);
    assert_eq!(prove(&good.0, &good.1).unwrap().len(), 2);
    let later: Vec<&String> = high.iter().filter(|key| **key > low[0]).collect();
    let under = node(None, vec![entry(0, &low[2], None)]);
    let cases = [
        (
            "order",
            vec![node(None, vec![entry(0, &low[1], None), entry(back_shared, &back_rest, None)])],
        ),
        (
            "duplicate",
            vec![node(None, vec![entry(0, &low[0], None), entry(low[0].len() as i128, "", None)])],
        ),
        (
            "prefix not maximal",
            vec![node(None, vec![entry(0, &low[0], None), entry(0, &low[1], None)])],
        ),
        (
            "prefix out of range",
            vec![node(None, vec![entry(0, &low[0], None), entry(999, &rest, None)])],
        ),
        ("first prefix", vec![node(None, vec![entry(5, &low[0], None)])]),
        ("negative prefix", vec![node(None, vec![entry(-1, &low[0], None)])]),
        (
            "mixed depth",
            vec![node(
                None,
                vec![
                    entry(0, &low[0], None),
                    entry(compressed(&low[0], later[0]).0, &compressed(&low[0], later[0]).1, None),
                ],
            )],
        ),
        (
            "child of the lowest",
            vec![node(Some(&leaf), vec![entry(0, &low[1], None)]), leaf.clone()],
        ),
        ("empty child", vec![node(Some(&empty), vec![entry(0, &high[0], None)]), empty.clone()]),
        ("root without keys", vec![node(Some(&leaf), Vec::new()), leaf.clone()]),
        (
            "child out of order",
            vec![node(Some(&under), vec![entry(0, &high[0], None)]), under.clone()],
        ),
        (
            "child twice",
            vec![node(Some(&leaf), vec![entry(0, later[0], Some(&leaf))]), leaf.clone()],
        ),
        ("key syntax", vec![node(None, vec![entry(0, "no-slash", None)])]),
        ("not a node", vec![record()]),
    ];
    let mut tried = 0;
    for (name, nodes) in cases {
        if name == "child out of order" && low[2] < high[0] {
            continue;
        }
        let (account, car) = with_nodes(&nodes);
        let error = error_of(&account, &car);
        assert_eq!(error.last_error(), Some(LastError::Tree), "{name}: {error}");
        tried += 1;
    }
    println!("{tried} broken trees");
    assert!(tried >= 13);
}

#[test]
fn nonsense_is_no_car_and_claims_allocate_nothing() {
    let account = plain_account(9, 3);
    let car = account.car(&CarOptions::default());
    let class = |bytes: &[u8]| error_of(&account, &bytes.to_vec()).last_error();
    assert_eq!(class(b"<!DOCTYPE html><html><body>busy</body></html>"), Some(LastError::NotCar));
    assert_eq!(class(b"{\"error\":\"busy\"}"), Some(LastError::NotCar));
    assert_eq!(class(b""), Some(LastError::Incomplete));
    let header = car[0] as usize + 1;
    let mut huge = car[..header].to_vec();
    huge.extend([0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f]);
    huge.extend(cid_of(b"x").to_bytes());
    huge.extend([0; 4096]);
    assert_eq!(class(&huge), Some(LastError::Incomplete));
    let mut endless = car[..header].to_vec();
    endless.extend([0xff; 11]);
    assert_eq!(class(&endless), Some(LastError::NotCar));
    let mut zero = car.clone();
    varint(0, &mut zero);
    assert_eq!(class(&zero), Some(LastError::NotCar));
    let mut empty_block = car.clone();
    support::forge::write_section(
        &Block { cid: cid_of(b""), bytes: Vec::new(), is_node: false },
        &mut empty_block,
    );
    assert_eq!(prove(&account, &empty_block).unwrap().len(), 3);
    let no_roots = encode(&Ipld::Map(
        [("roots".to_owned(), Ipld::List(vec![])), ("version".to_owned(), Ipld::Integer(1))].into(),
    ));
    let version_two = encode(&Ipld::Map(
        [
            ("roots".to_owned(), Ipld::List(vec![Ipld::Link(cid_of(b"x"))])),
            ("version".to_owned(), Ipld::Integer(2)),
        ]
        .into(),
    ));
    for header in [no_roots, version_two] {
        let mut bytes = vec![u8::try_from(header.len()).unwrap()];
        bytes.extend(header);
        assert_eq!(class(&bytes), Some(LastError::NotCar));
    }
    let mut framer = Framer::new(100);
    assert!(matches!(framer.push(&car), Err(RepoError::TooLarge(100))));
}

#[test]
fn a_record_over_the_limit_is_a_leaf_without_bytes() {
    let mut account = plain_account(10, 3);
    account.put("app.bsky.feed.post", "big", &Ipld::String("x".repeat(1_200_000)));
    account.put("app.bsky.feed.post", "huge", &Ipld::String("x".repeat(3_000_000)));
    let rows = prove(&account, &account.car(&CarOptions::default())).unwrap();
    assert_eq!((rows.len(), rows.iter().filter(|(_, bytes)| bytes.is_none()).count()), (5, 2));
}
