//! The engine against iroh-car + serde_ipld_dagcbor and against repo-stream: the same records in the same order, over 220
//! forged repositories of every shape.
#![allow(
    missing_docs,
    clippy::cast_possible_truncation,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout
)]

mod support;

use std::sync::atomic::AtomicBool;

use skyfill::domain::did::Did;
use skyfill::repo::car::Framer;
use skyfill::repo::error::RepoError;
use skyfill::repo::second_opinion;
use skyfill::repo::walk::{Expected, LeafBlock, Walk};
use support::forge::{Account, CarOptions, Order, plain_account};

/// Our own listing of key, CID and record bytes.
fn ours(
    account: &Account,
    car: &Vec<u8>,
    chunk: usize,
) -> Result<Vec<(String, String, Vec<u8>)>, RepoError> {
    let mut framer = Framer::new(1 << 32);
    car.chunks(chunk).try_for_each(|bytes| framer.push(bytes))?;
    let framed = framer.finish()?;
    let (did, key) = (Did::parse(&account.did).unwrap(), account.key.did_key());
    let cancel = AtomicBool::new(false);
    let mut walk = Walk::open(
        car,
        &framed,
        &Expected { did: Some(&did), key: Some(&key), earlier_keys: &[] },
        &cancel,
    )?;
    let mut listing = Vec::new();
    while let Some(leaf) = walk.next_leaf()? {
        let LeafBlock::Held(bytes) = leaf.block else { panic!("a large leaf") };
        listing.push((leaf.key.to_owned(), leaf.cid.to_string(), bytes.to_vec()));
    }
    Ok(listing)
}

async fn of_repo_stream(car: &[u8]) -> Vec<(String, String, Vec<u8>)> {
    let driver =
        repo_stream::DriverBuilder::new().with_mem_limit_mb(1_000).load_car(car).await.unwrap();
    let repo_stream::Driver::Memory(_, mut driver) = driver else { panic!("spilled") };
    let mut listing = Vec::new();
    while let Some(chunk) = driver.next_chunk(256).await.unwrap() {
        for output in chunk {
            listing.push((output.rkey, output.cid.to_string(), output.data.to_vec()));
        }
    }
    listing
}

async fn agree(account: &Account, options: &CarOptions, chunk: usize) {
    let car = account.car(options);
    let ours = ours(account, &car, chunk).unwrap();
    let expected: Vec<(String, Vec<u8>)> = account.records.clone().into_iter().collect();
    let found: Vec<(String, Vec<u8>)> =
        ours.iter().map(|(key, _, bytes)| (key.clone(), bytes.clone())).collect();
    assert!(found == expected, "{}: {} of {} records", account.did, found.len(), expected.len());
    let second: Vec<(String, String)> = second_opinion::list(car.as_slice())
        .await
        .unwrap()
        .into_iter()
        .map(|(key, cid)| (key, cid.to_string()))
        .collect();
    let pairs: Vec<(String, String)> =
        ours.iter().map(|(key, cid, _)| (key.clone(), cid.clone())).collect();
    assert!(pairs == second, "{} differs from iroh-car", account.did);
    // repo-stream refuses repositories without records and CARs with a second root.
    if !ours.is_empty() && !options.second_root {
        assert!(ours == of_repo_stream(&car).await, "{} differs from repo-stream", account.did);
    }
}

#[tokio::test]
async fn two_hundred_and_twenty_repositories_of_every_shape() {
    let mut repositories = 0;
    for seed in 0..216_u64 {
        let records = [0, 1, 2, 3, 7, 40, 150, 600][seed as usize % 8];
        let mut account = plain_account(seed, records);
        if seed % 5 == 0 && records > 1 {
            let first = account.records.values().next().unwrap().clone();
            account.records.insert("app.bsky.feed.like/same-cid".to_owned(), first);
        }
        let order = [Order::Tree, Order::Newest, Order::Shuffled(seed)][seed as usize % 3];
        let options = CarOptions {
            order,
            duplicates: seed % 7 == 0,
            unlinked: if seed % 4 == 0 { 9 } else { 0 },
            second_root: seed % 11 == 0,
            ..CarOptions::default()
        };
        agree(&account, &options, [1 << 20, 977, 64][seed as usize % 3]).await;
        repositories += 1;
    }
    println!("{repositories} repositories agree with iroh-car and repo-stream");
}

#[tokio::test]
async fn one_of_a_hundred_thousand_records() {
    let account = plain_account(99_999, 100_000);
    let options = CarOptions { order: Order::Shuffled(1), ..CarOptions::default() };
    agree(&account, &options, 64 << 10).await;
}
