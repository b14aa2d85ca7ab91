//! (c) Journal and queues on disk, fed with prepared items, beside a plain copy of the same bytes to the same disk.
//!
//! `cargo bench --bench store`. The copy writes the payloads and syncs every 8 MiB, the journal's own step; it can only be read back
//! whole, knows no account and no queue, and is the least that any durable export must do. CPU is of all threads of this process,
//! kernel included, as its scheduler counts it; wall time depends on the disk. The ledger is left out: `pipeline` has it.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::print_stderr,
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::disallowed_methods
)]

#[path = "common/cpu.rs"]
mod cpu;
#[path = "common/data.rs"]
mod data;
#[path = "../tests/support/mod.rs"]
mod support;

use std::collections::HashMap;
use std::io::Write;
use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use cpu::cpu_seconds;
use data::{Repository, Set};
use skyfill::clock::Clock;
use skyfill::domain::account::Revision;
use skyfill::domain::did::Did;
use skyfill::domain::filter::{Filter, Kind, Offsets, Outside, TypeEntry, Window};
use skyfill::repo::car::Framer;
use skyfill::repo::walk::{Expected, LeafBlock, Walk};
use skyfill::sink::sqlite::SqliteQueues;
use skyfill::store::apply::{Applier, Export, LedgerFollower, Position, Sink};
use skyfill::store::error::StoreError;
use skyfill::store::health::Health;
use skyfill::store::items::{Item, OpenItems};
use skyfill::store::journal::{Journal, STEP_BYTES};
use skyfill::transform::{Origin, RecordBlock, RecordSource, Transformer, Verdict};

const RUNS: usize = 3;

/// `queue.rows_per_item` and `limits.journal` as they are by default.
const ROWS_PER_ITEM: u32 = 1_000;
const JOURNAL_BYTES: u64 = 4 << 30;

/// The applier settles after so many segments; the queues alone do the same here.
const SETTLE_SEGMENTS: u64 = 16;

/// An account's rows, and their bytes.
struct Rows {
    revision: Revision,
    items: Vec<Item>,
    bytes: u64,
}

struct Load {
    accounts: Vec<Rows>,
    labels: Vec<String>,
    records: u64,
    bytes: u64,
}

/// Seconds of CPU and of wall time.
#[derive(Clone, Copy)]
struct Cost {
    cpu: f64,
    wall: f64,
}

/// What it is, and how to run it in an empty folder.
type Case = (&'static str, fn(&Load, &Path) -> Cost);

fn main() {
    let load = Load::prepare(&Set::mix());
    println!("\n## (c) journal and queues, beside a plain copy of the same bytes");
    println!(
        "{} accounts, {} rows, {} items, {} MiB of payload; the cheapest of {RUNS} runs\n",
        load.accounts.len(),
        load.records,
        load.accounts.iter().map(|it| it.items.len()).sum::<usize>(),
        load.bytes >> 20
    );
    let cases: [Case; 4] = [
        ("plain copy: write, fdatasync every 8 MiB", copy),
        ("journal: append, checksum, seal", |load, folder| journal(load, folder).1),
        ("queues: sealed segments into seven SQLite files", queues),
        ("both at once: journal here, applier on its thread", both),
    ];
    println!(
        "| what | CPU ns a row | wall ns a row | MB/s of payload | CPU, times copy | wall, times copy |"
    );
    println!("|---|---|---|---|---|---|");
    let mut first = None;
    for (what, run) in cases {
        let runs: Vec<Cost> = (0..RUNS).map(|_| in_folder(|folder| run(&load, folder))).collect();
        let cpu = runs.iter().map(|it| it.cpu).fold(f64::MAX, f64::min);
        let wall = runs.iter().map(|it| it.wall).fold(f64::MAX, f64::min);
        let copy = *first.get_or_insert(Cost { cpu, wall });
        println!(
            "| {what} | {:.0} | {:.0} | {:.0} | {:.2} | {:.2} |",
            cpu * 1e9 / load.records as f64,
            wall * 1e9 / load.records as f64,
            load.bytes as f64 / wall / 1e6,
            cpu / copy.cpu,
            wall / copy.wall
        );
    }
}

fn in_folder(run: impl FnOnce(&Path) -> Cost) -> Cost {
    run(tempfile::tempdir_in(data::folder()).unwrap().path())
}

fn measured<T>(work: impl FnOnce() -> T) -> (T, Cost) {
    let (begun, before) = (Instant::now(), cpu_seconds());
    let done = work();
    (done, Cost { cpu: cpu_seconds() - before, wall: begun.elapsed().as_secs_f64() })
}

fn copy(load: &Load, folder: &Path) -> Cost {
    let mut file = std::fs::File::create(folder.join("copy")).unwrap();
    let ((), cost) = measured(|| {
        let mut unsynced = 0;
        for item in load.accounts.iter().flat_map(|it| &it.items) {
            file.write_all(&item.payload).unwrap();
            unsynced += item.payload.len() as u64;
            if unsynced >= STEP_BYTES {
                file.sync_data().unwrap();
                unsynced = 0;
            }
        }
        file.sync_data().unwrap();
    });
    cost
}

fn journal(load: &Load, folder: &Path) -> (Journal, Cost) {
    let mut journal = open_journal(load, folder);
    let ((), cost) = measured(|| {
        load.accounts.iter().for_each(|account| append(&mut journal, account));
        journal.seal_group().unwrap();
    });
    (journal, cost)
}

fn queues(load: &Load, folder: &Path) -> Cost {
    let (journal, _) = journal(load, folder);
    let mut queues = open_queues(load, folder);
    let ((), cost) = measured(|| {
        for number in 0..journal.newest() {
            let segment = journal.next_after(number).unwrap().unwrap();
            queues.apply(&segment).unwrap();
            if number % SETTLE_SEGMENTS == 0 {
                queues.settle().unwrap();
            }
        }
        queues.settle().unwrap();
        queues.close().unwrap();
    });
    cost
}

fn both(load: &Load, folder: &Path) -> Cost {
    let journal = Arc::new(Mutex::new(open_journal(load, folder)));
    let sinks: Vec<Box<dyn Sink>> = vec![Box::new(open_queues(load, folder))];
    let (health, ledger) = (Health::default(), Box::new(Elsewhere(0)));
    let (applier, thread) =
        Applier::start(Arc::clone(&journal), sinks, ledger, health.clone()).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let ((), cost) = measured(|| {
        for account in &load.accounts {
            append(&mut journal.lock().unwrap(), account);
            applier.wake();
        }
        journal.lock().unwrap().seal_group().unwrap();
        let newest = journal.lock().unwrap().newest();
        applier.wake();
        runtime.block_on(applier.applied(newest));
    });
    applier.stop();
    thread.join().unwrap();
    assert!(health.failure().is_none(), "{:?}", health.failure());
    cost
}

/// As the exporter does it: an account that fits into a group whole, a larger one into a part of its own.
fn append(journal: &mut Journal, account: &Rows) {
    if account.bytes > STEP_BYTES {
        let mut large = journal.begin_large().unwrap();
        for item in &account.items {
            journal.append_large(&mut large, std::slice::from_ref(item)).unwrap();
        }
        journal.seal_large(large, &account.revision).map_err(|failed| failed.1).unwrap();
        return;
    }
    let items: Vec<&Item> = account.items.iter().collect();
    journal.append_account(&account.revision, &items).unwrap();
    if journal.group_bytes() >= STEP_BYTES {
        journal.seal_group().unwrap();
    }
}

fn open_journal(load: &Load, folder: &Path) -> Journal {
    let folder = folder.join("journal");
    std::fs::create_dir(&folder).unwrap();
    Journal::open(&folder, &data_id(), load.labels.clone(), JOURNAL_BYTES, 0).unwrap()
}

fn open_queues(load: &Load, folder: &Path) -> SqliteQueues {
    let (known, clock) = (HashMap::new(), Clock::system());
    SqliteQueues::open(folder, &data_id(), &load.labels, ROWS_PER_ITEM, known, clock).unwrap()
}

fn data_id() -> String {
    "b".repeat(32)
}

/// A ledger that only remembers where it is.
struct Elsewhere(u64);

impl LedgerFollower for Elsewhere {
    fn position(&self) -> u64 {
        self.0
    }

    fn repeats(&mut self, _segment: u64, _exports: Vec<Export>) -> Result<Vec<usize>, StoreError> {
        Ok(Vec::new())
    }

    fn apply(&mut self, segment: u64, _revisions: Vec<Revision>) -> Result<(), StoreError> {
        self.0 = segment;
        Ok(())
    }

    fn settle(&mut self, _positions: Vec<(String, Position)>) -> Result<(), StoreError> {
        Ok(())
    }
}

impl Load {
    /// The rows of a set, made by the engine as the parser makes them.
    fn prepare(set: &Set) -> Self {
        let types = Kind::ALL.into_iter().map(TypeEntry::Kind).collect();
        let window = Window {
            start: "2024-09-27-00:00:00".parse().unwrap(),
            end: "2024-12-02-00:00:00".parse().unwrap(),
            outside: Outside::Bucket,
            offsets: Offsets::Utc,
        };
        let transformer = Transformer::new(&Filter { types, window });
        let accounts: Vec<Rows> =
            set.repositories().iter().map(|it| rows(it, &transformer)).collect();
        let items = || accounts.iter().flat_map(|it| &it.items);
        let (records, bytes) = (
            items().map(|item| u64::from(item.records)).sum(),
            items().map(|item| item.payload.len() as u64).sum(),
        );
        Self { labels: transformer.queues().to_vec(), records, bytes, accounts }
    }
}

fn rows(repository: &Repository, transformer: &Transformer) -> Rows {
    let mut framer = Framer::new(1 << 32);
    framer.push(&repository.car).unwrap();
    let framed = framer.finish().unwrap();
    let (did, cancel) = (Did::parse(&repository.did).unwrap(), AtomicBool::new(false));
    let expected = Expected { did: Some(&did), key: Some(&repository.key), earlier_keys: &[] };
    let mut walk = Walk::open(&repository.car, &framed, &expected, &cancel).unwrap();
    let rev = walk.commit().rev.clone();
    let origin = Origin::new(&repository.did, &rev);
    let mut open = OpenItems::new(transformer.queues().len(), ROWS_PER_ITEM);
    let mut items = Vec::new();
    while let Some(leaf) = walk.next_leaf().unwrap() {
        let LeafBlock::Held(bytes) = leaf.block else { panic!("a large leaf") };
        let block = RecordBlock::Held(bytes);
        let source = RecordSource { origin: &origin, key: leaf.key, cid: leaf.cid, block };
        let plan = transformer.read(&source);
        if let Verdict::Exported(queue) = plan.verdict() {
            items.extend(open.push(queue, |out| plan.write(out)));
        }
        // As the parser does: a chunk of 1 MiB is sent on.
        if open.bytes() >= 1 << 20 {
            items.extend(open.take_largest());
        }
    }
    items.extend(std::iter::from_fn(|| open.take_largest()));
    let bytes = items.iter().map(|item| item.payload.len() as u64).sum();
    let revision = Revision { did: repository.did.clone(), rev, ..Revision::default() };
    Rows { revision, items, bytes }
}
