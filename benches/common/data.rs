//! Prepared repositories for the benches: generated, really signed, and kept in a folder outside the repository
//! (`SKYFILL_BENCH_DATA`, or `skyfill-bench` in the system's folder for temporary files), because making them takes longer than
//! reading them does. Every bench reads the same ones.
//!
//! ```text
//!  NAME.pack   the CARs of a set, one after another        NAME.tsv   a line an account: DID, key, records, offset, length
//! ```
//! One key in three is P-256, blocks are in tree order, newest first or shuffled, by turns.
#![allow(dead_code, reason = "not every bench uses all of it")]

use std::fmt::Write as _;
use std::fs::File;
use std::io::Write as _;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use crate::support::forge::{CarOptions, Order};
use crate::support::world::{Records, Shape, World};

/// Changes whenever the generator makes other bytes from the same seed.
const VERSION: u32 = 2;

/// Mean records of a repository on the network (PROTOCOL section 1).
const MEAN_RECORDS: usize = 1_180;

/// Records of the largest repositories of the mix; of the largest on the network, about 1 GiB; and of its stand-in.
const LARGE_RECORDS: usize = 100_000;
pub const HUGE_RECORDS: usize = 2_500_000;
pub const STAND_IN_RECORDS: usize = 500_000;

/// Accounts that are made at once: bounds what is held before it is written.
const MADE_AT_ONCE: usize = 256;

/// An account of a set.
#[derive(Clone, Debug)]
pub struct Prepared {
    pub did: String,
    /// `did:key:...`, who must have signed it.
    pub key: String,
    pub records: usize,
    /// Where its CAR lies in the pack.
    pub offset: u64,
    pub bytes: usize,
}

/// A set of accounts with their CARs on disk.
pub struct Set {
    pub accounts: Vec<Prepared>,
    pack: File,
}

/// A repository in memory.
pub struct Repository {
    pub did: String,
    pub key: String,
    pub records: usize,
    pub car: Vec<u8>,
}

impl Set {
    /// The realistic mix: 400 accounts of 1,180 records on average, half of them tiny, two of 100,000 records.
    pub fn mix() -> Self {
        Self::load("mix", &mix_sizes(400))
    }

    /// The mix and one of 2.5 million records, about 1 GiB.
    pub fn huge_mix() -> Self {
        let mut sizes = mix_sizes(400);
        sizes.insert(0, HUGE_RECORDS);
        Self::load("huge-mix", &sizes)
    }

    /// So many accounts of so many records each.
    pub fn fixed(accounts: usize, records: usize) -> Self {
        Self::load(&format!("{accounts}x{records}"), &vec![records; accounts])
    }

    /// So many accounts of 1 to 5 records.
    pub fn tiny(accounts: usize) -> Self {
        let sizes: Vec<usize> = (0..accounts).map(|index| 1 + index % 5).collect();
        Self::load(&format!("tiny-{accounts}"), &sizes)
    }

    /// One large repository, the first of the set, and 31 of 10,000 records, about 3.9 MB each: just under
    /// `limits.spool_memory`, so that each of them lies in memory as long as its host holds the last bytes back.
    pub fn transfers(largest: usize) -> Self {
        let mut sizes = vec![10_000; 32];
        sizes[0] = largest;
        Self::load(&format!("transfers-{largest}"), &sizes)
    }

    /// Accounts of these many records, from the cache or made now.
    pub fn load(name: &str, sizes: &[usize]) -> Self {
        std::fs::create_dir_all(folder()).unwrap();
        let index = folder().join(format!("v{VERSION}-{name}.tsv"));
        let pack = index.with_extension("pack");
        if !index.exists() {
            eprintln!(
                "making {} accounts with {} records",
                sizes.len(),
                sizes.iter().sum::<usize>()
            );
            make(&index, &pack, sizes);
        }
        let text = std::fs::read_to_string(&index).unwrap();
        let accounts: Vec<Prepared> = text.lines().map(Prepared::read).collect();
        assert!(
            accounts.iter().map(|it| it.records).eq(sizes.iter().copied()),
            "{index:?}: remove it"
        );
        Self { accounts, pack: File::open(&pack).unwrap() }
    }

    /// The first accounts of it.
    pub fn first(mut self, accounts: usize) -> Self {
        self.accounts.truncate(accounts);
        self
    }

    pub fn records(&self) -> usize {
        self.accounts.iter().map(|it| it.records).sum()
    }

    pub fn bytes(&self) -> usize {
        self.accounts.iter().map(|it| it.bytes).sum()
    }

    /// Reads all of it once, so that the kernel has it when it is served.
    pub fn warm(&self) {
        for account in &self.accounts {
            self.read(account, 0, account.bytes);
        }
    }

    /// A piece of an account's CAR.
    pub fn read(&self, account: &Prepared, from: usize, bytes: usize) -> Vec<u8> {
        let mut piece = vec![0; bytes.min(account.bytes - from)];
        self.pack.read_exact_at(&mut piece, account.offset + from as u64).unwrap();
        piece
    }

    /// All of it in memory.
    pub fn repositories(&self) -> Vec<Repository> {
        let read = |it: &Prepared| Repository {
            did: it.did.clone(),
            key: it.key.clone(),
            records: it.records,
            car: self.read(it, 0, it.bytes),
        };
        self.accounts.iter().map(read).collect()
    }
}

impl Prepared {
    fn read(line: &str) -> Self {
        let fields: Vec<&str> = line.split('\t').collect();
        let number = |at: usize| fields[at].parse::<usize>().unwrap();
        let (did, key) = (fields[0].to_owned(), fields[1].to_owned());
        Self { did, key, records: number(2), offset: number(3) as u64, bytes: number(4) }
    }
}

/// Half of them of 1 to 20 records, two large ones, and between them a spread of 1 to 64 times the smallest that brings the mean
/// to that of the network.
fn mix_sizes(accounts: usize) -> Vec<usize> {
    let is_large = |index: usize| index == 21 || index == accounts / 2 + 21;
    // Fractions of multiples of the golden ratio: an even spread without chance.
    let weight = |index: usize| (6.0 * (index as f64 * 0.618_034).fract()).exp2();
    let is_middle = |index: &usize| index % 2 == 1 && !is_large(*index);
    let sum: f64 = (0..accounts).filter(is_middle).map(weight).sum();
    let tiny: usize = (0..accounts).step_by(2).map(|index| 1 + index / 2 % 20).sum();
    let left = (accounts * MEAN_RECORDS - tiny - 2 * LARGE_RECORDS) as f64;
    let size = |index: usize| match index {
        index if index % 2 == 0 => 1 + index / 2 % 20,
        index if is_large(index) => LARGE_RECORDS,
        index => (weight(index) / sum * left) as usize,
    };
    (0..accounts).map(size).collect()
}

fn make(index: &Path, pack: &Path, sizes: &[usize]) {
    let (part, mut lines) = (pack.with_extension("part"), String::new());
    let mut file = std::io::BufWriter::new(File::create(&part).unwrap());
    let mut offset = 0;
    for (group, sizes) in sizes.chunks(MADE_AT_ONCE).enumerate() {
        for (line, car) in made(group * MADE_AT_ONCE, sizes) {
            writeln!(lines, "{line}\t{offset}\t{}", car.len()).unwrap();
            offset += car.len();
            file.write_all(&car).unwrap();
        }
    }
    file.into_inner().unwrap().sync_all().unwrap();
    std::fs::rename(&part, pack).unwrap();
    let part = index.with_extension("part");
    std::fs::write(&part, lines).unwrap();
    std::fs::rename(&part, index).unwrap();
}

/// Accounts from number `first` on, on two threads.
fn made(first: usize, sizes: &[usize]) -> Vec<(String, Vec<u8>)> {
    let (left, right) = sizes.split_at(sizes.len() / 2);
    let all = |first: usize, sizes: &[usize]| -> Vec<_> {
        sizes.iter().enumerate().map(|(at, records)| account(first + at, *records)).collect()
    };
    std::thread::scope(|scope| {
        let other = scope.spawn(|| all(first + left.len(), right));
        let mut accounts = all(first, left);
        accounts.extend(other.join().unwrap());
        accounts
    })
}

/// A world of its own for each, so that an account depends on its number and its size alone.
fn account(number: usize, records: usize) -> (String, Vec<u8>) {
    let seed = 7_000_000 + number as u64;
    let shape = Shape { seed, accounts: 1, hosts: 1, records: Records::Fixed(records), odd: false };
    let order = match number % 3 {
        0 => Order::Tree,
        1 => Order::Newest,
        _ => Order::Shuffled(seed),
    };
    let account = World::generate(&shape).account(0).forged();
    let car = account.car(&CarOptions { order, ..CarOptions::default() });
    (format!("{}\t{}\t{records}", account.did, account.key.did_key()), car)
}

/// Where sets are kept; data directories of measured runs are made beside them, on the same disk.
pub fn folder() -> PathBuf {
    let chosen = std::env::var_os("SKYFILL_BENCH_DATA").map(PathBuf::from);
    chosen.unwrap_or_else(|| std::env::temp_dir().join("skyfill-bench"))
}
