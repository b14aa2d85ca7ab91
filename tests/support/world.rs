//! The world: accounts on hosts, all from one seed, and none of them in memory until asked for.
//!
//! ```text
//!  Shape (seed) -> World: DIDs, hosts, record counts          small, made at once
//!                    └─ account(i) -> every record of account i, as described and as bytes; the same each time
//! ```
//! A record depends on the seed, its account, its index and nothing else; so a later *revision* of an account is the same
//! account with one record gone, one replaced and five more, for each step.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use cid::Cid;
use fastrand::Rng;
use sha2::{Digest, Sha256};

use super::forge::{self, CarOptions, Key, Order};
use super::records::{Draft, Intent, odd_draft, ordinary_draft, too_large_draft};
use super::time::Meaning;
use super::value::{Link, Value};

/// How many records an account has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Records {
    Fixed(usize),
    /// From none and one to many times the mean; all together they are accounts times mean.
    Mixed {
        mean: usize,
    },
}

/// What a world is made from.
#[derive(Clone, Debug)]
pub struct Shape {
    pub seed: u64,
    pub accounts: usize,
    pub hosts: usize,
    pub records: Records,
    /// Whether 4 records in 100 are odd: rejected, oddly typed, oddly encoded, or one record under two keys.
    pub odd: bool,
}

impl Default for Shape {
    fn default() -> Self {
        let records = Records::Mixed { mean: 100 };
        Self { seed: 1, accounts: 20, hosts: 3, records, odd: true }
    }
}

/// See the header. Cheap to clone.
#[derive(Clone)]
pub struct World(Arc<Inner>);

struct Inner {
    shape: Shape,
    sketches: Vec<Sketch>,
    by_did: HashMap<String, usize>,
}

struct Sketch {
    did: String,
    host: usize,
    records: usize,
}

/// Everything about one account at one revision.
#[derive(Clone)]
pub struct WorldAccount {
    pub index: usize,
    pub did: String,
    pub handle: String,
    pub key: Key,
    pub rev: String,
    /// In key order.
    pub records: Vec<WorldRecord>,
}

/// A record where it is: under its key, in its block.
#[derive(Clone, Debug)]
pub struct WorldRecord {
    /// `<collection>/<rkey>`.
    pub key: String,
    pub cid: Link,
    pub bytes: Vec<u8>,
    /// `None` if no decoder may accept the bytes.
    pub value: Option<Value>,
    /// Of its `createdAt`.
    pub time: Meaning,
    pub intent: Intent,
}

/// Microseconds since 1970 at which the first record key was made, and the first revision: both in the past.
const FIRST_RKEY: u64 = 1_690_000_000_000_000;
const FIRST_REV: u64 = 1_734_300_000_000_000;

impl World {
    pub fn generate(shape: &Shape) -> Self {
        assert!(shape.hosts > 0 || shape.accounts == 0, "accounts need a host");
        let mut rng = Rng::with_seed(mixed(shape.seed, 0x776f_726c, 0));
        let counts = record_counts(shape, &mut rng);
        let sketches: Vec<Sketch> = counts
            .into_iter()
            .enumerate()
            .map(|(index, records)| Sketch {
                did: forge::did_from_seed(account_seed(shape.seed, index)),
                // The first accounts fill every host once, so that none is without.
                host: if index < shape.hosts { index } else { rng.usize(..shape.hosts) },
                records,
            })
            .collect();
        let by_did = sketches.iter().enumerate().map(|(i, s)| (s.did.clone(), i)).collect();
        Self(Arc::new(Inner { shape: shape.clone(), sketches, by_did }))
    }

    pub fn shape(&self) -> &Shape {
        &self.0.shape
    }

    /// Number of accounts.
    pub fn len(&self) -> usize {
        self.0.sketches.len()
    }

    pub fn is_empty(&self) -> bool {
        self.0.sketches.is_empty()
    }

    pub fn did(&self, index: usize) -> &str {
        &self.0.sketches[index].did
    }

    pub fn dids(&self) -> Vec<String> {
        self.0.sketches.iter().map(|sketch| sketch.did.clone()).collect()
    }

    pub fn index_of(&self, did: &str) -> Option<usize> {
        self.0.by_did.get(did).copied()
    }

    /// Index of the host where the account was born.
    pub fn host(&self, index: usize) -> usize {
        self.0.sketches[index].host
    }

    /// Records of the account at its first revision.
    pub fn record_count(&self, index: usize) -> usize {
        self.0.sketches[index].records
    }

    /// Records of all accounts at their first revision.
    pub fn records_total(&self) -> usize {
        self.0.sketches.iter().map(|sketch| sketch.records).sum()
    }

    pub fn handle(&self, index: usize) -> String {
        format!("user{index}.test")
    }

    /// The account's signing key; one in three is P-256.
    pub fn key(&self, index: usize) -> Key {
        self.key_after(index, 0)
    }

    /// The key after so many rotations.
    pub fn key_after(&self, index: usize, rotations: u64) -> Key {
        Key::from_seed(account_seed(self.0.shape.seed, index).wrapping_add(rotations))
    }

    /// Revision number `revision` of the account, as its commit says it.
    pub fn rev(&self, index: usize, revision: u64) -> String {
        forge::tid((FIRST_REV + index as u64 * 1_000 + revision * 1_000_000) << 10)
    }

    /// The account at its first revision.
    pub fn account(&self, index: usize) -> WorldAccount {
        self.account_at(index, 0)
    }

    pub fn account_at(&self, index: usize, revision: u64) -> WorldAccount {
        let count = self.record_count(index);
        let steps = revision as usize;
        let is_changed = |number: usize| steps > 0 && count > 0 && changed(count, steps, number);
        let mut records: Vec<WorldRecord> = (0..count + 5 * steps)
            .filter(|number| *number >= count || *number % 2 == 1 || *number / 2 >= steps)
            .map(|number| self.record(index, number, is_changed(number)))
            .collect();
        records.sort_by(|a, b| a.key.cmp(&b.key));
        WorldAccount {
            index,
            did: self.did(index).to_owned(),
            handle: self.handle(index),
            key: self.key(index),
            rev: self.rev(index, revision),
            records,
        }
    }

    fn record(&self, index: usize, number: usize, is_changed: bool) -> WorldRecord {
        let shape = &self.0.shape;
        let Draft { collection, value, bytes, is_raw, time, intent } =
            self.draft(index, number, is_changed);
        let mut rng = Rng::with_seed(mixed(account_seed(shape.seed, index), number as u64, 2));
        let moment = FIRST_RKEY + number as u64 * 40_000_000 + rng.u64(..40_000_000);
        let tid = forge::tid(moment << 10 | rng.u64(..1_024));
        let rkey = match rng.u32(..2_000) {
            0 if shape.odd => format!("x._:~-{number}"),
            1 if shape.odd => format!("{}{number}", "long".repeat(60)),
            _ => tid,
        };
        let mut cid = [0; 36];
        cid[..4].copy_from_slice(&[1, if is_raw { 0x55 } else { 0x71 }, 0x12, 0x20]);
        cid[4..].copy_from_slice(&Sha256::digest(&bytes));
        WorldRecord { key: format!("{collection}/{rkey}"), cid, bytes, value, time, intent }
    }

    fn draft(&self, index: usize, number: usize, is_changed: bool) -> Draft {
        let shape = &self.0.shape;
        let salt = 1 + 2 * u64::from(is_changed);
        let mut rng = Rng::with_seed(mixed(account_seed(shape.seed, index), number as u64, salt));
        if !shape.odd {
            return ordinary_draft(&mut rng);
        }
        if number == 40 && index % 97 == 13 {
            return too_large_draft(&mut rng);
        }
        match rng.u32(..1_000) {
            0..35 => odd_draft(&mut rng),
            35..40 if number > 0 => self.draft(index, number - 1, false),
            _ => ordinary_draft(&mut rng),
        }
    }
}

/// Whether one of the steps has replaced record `number`: an odd one each, the even ones being taken for deletion.
fn changed(count: usize, steps: usize, number: usize) -> bool {
    number < count && number % 2 == 1 && number / 2 < steps
}

fn account_seed(seed: u64, index: usize) -> u64 {
    mixed(seed, index as u64, 0x6163_6374)
}

/// One seed from three numbers, well mixed: neighbours must not look alike.
fn mixed(a: u64, b: u64, c: u64) -> u64 {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    for part in [a, b, c] {
        state = (state ^ part).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        state ^= state >> 29;
        state = state.wrapping_mul(0x94d0_49bb_1331_11eb);
        state ^= state >> 32;
    }
    state
}

fn record_counts(shape: &Shape, rng: &mut Rng) -> Vec<usize> {
    let mean = match shape.records {
        Records::Fixed(count) => return vec![count; shape.accounts],
        Records::Mixed { mean } => mean,
    };
    let weights: Vec<f64> = (0..shape.accounts)
        .map(|index| match index % 24 {
            // Every 24th is empty, every 12th besides has a single record.
            5 => 0.0,
            9 | 17 => -1.0,
            _ => (rng.f64() * 6.0).exp2(),
        })
        .collect();
    let singles = weights.iter().filter(|weight| **weight < 0.0).count();
    let total = shape.accounts * mean;
    let sum: f64 = weights.iter().filter(|weight| **weight > 0.0).sum();
    let share = total.saturating_sub(singles) as f64 / sum.max(1.0);
    let mut counts: Vec<usize> = weights
        .iter()
        .map(|weight| if *weight < 0.0 { 1 } else { (weight * share) as usize })
        .collect();
    let rest = total.saturating_sub(counts.iter().sum());
    if let Some(largest) = counts.iter_mut().max() {
        *largest += rest;
    }
    counts
}

impl WorldAccount {
    /// The account as the forge writes it.
    pub fn forged(&self) -> forge::Account {
        let raw = |record: &&WorldRecord| record.cid[1] == 0x55;
        forge::Account {
            did: self.did.clone(),
            handle: self.handle.clone(),
            key: self.key.clone(),
            rev: self.rev.clone(),
            records: self
                .records
                .iter()
                .map(|r| (r.key.clone(), r.bytes.clone()))
                .collect::<BTreeMap<_, _>>(),
            raw_keys: self
                .records
                .iter()
                .filter(raw)
                .map(|r| r.key.clone())
                .collect::<BTreeSet<_>>(),
        }
    }

    /// The CAR with its blocks in an order of this account's own.
    pub fn car(&self) -> Vec<u8> {
        self.car_with(&CarOptions::default())
    }

    /// The CAR with `options`, but with its blocks in an order of this account's own, and here and there a second root.
    pub fn car_with(&self, options: &CarOptions) -> Vec<u8> {
        let order = match self.index % 3 {
            0 => Order::Tree,
            1 => Order::Newest,
            _ => Order::Shuffled(self.index as u64),
        };
        let second_root = options.second_root || self.index % 13 == 8;
        self.forged().car(&CarOptions { order, second_root, ..options.clone() })
    }

    /// CID of the commit, as text.
    pub fn commit_cid(&self) -> String {
        let forged = self.forged();
        let (data, _) = forged.tree();
        forge::cid_of(&forged.commit(data, &CarOptions::default())).to_string()
    }
}

impl WorldRecord {
    /// Collection and rkey.
    pub fn path(&self) -> (&str, &str) {
        self.key.split_once('/').expect("world keys have a slash")
    }

    pub fn cid(&self) -> Cid {
        Cid::try_from(&self.cid[..]).expect("world CIDs are well formed")
    }
}
