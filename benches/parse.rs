//! One thread, no network and no disk: repository bytes to proven records to output rows, each step beside its peers on the same
//! bytes in the same run.
//!
//! `cargo bench --bench parse [-- CASE]`. The fastest of several passes counts, in nanoseconds of processor time a record and
//! megabytes of CAR a second of it. Where valgrind is installed, instructions a record are counted too, by a child for each case: they do not move with the
//! machine's load. With the name of a case only that case runs, once, on a few repositories: that is the child.
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

use std::hint::black_box;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::AtomicBool;

use cpu::cpu_seconds;
use data::{Repository, Set};
use ipld_core::ipld::Ipld;
use sha2::{Digest, Sha256};
use skyfill::domain::did::Did;
use skyfill::domain::filter::{Filter, Kind, Offsets, Outside, TypeEntry, Window};
use skyfill::repo::car::{Framed, Framer};
use skyfill::repo::second_opinion;
use skyfill::repo::walk::{Expected, LeafBlock, Walk};
use skyfill::transform::{Origin, RecordBlock, RecordSource, Transformer};

const PASSES: usize = 7;

/// Bytes that arrive at once, as from a socket.
const CHUNK_BYTES: usize = 64 << 10;

struct Case {
    name: &'static str,
    what: &'static str,
    run: fn(&Bench) -> u64,
}

/// What all cases work on.
struct Bench {
    repositories: Vec<Repository>,
    framed: Vec<Framed>,
    /// The blocks' bytes of every repository, one after another as in the CAR.
    blocks: Vec<Vec<(usize, usize)>>,
    records: Vec<Vec<Vec<u8>>>,
    transformer: Transformer,
    runtime: tokio::runtime::Runtime,
}

const CASES: [Case; 9] = [
    Case { name: "sha256", what: "SHA-256 alone over the same blocks", run: sha256 },
    Case { name: "frame", what: "framing and hashing, as it arrives", run: frame },
    Case { name: "walk", what: "tree and signature of framed bytes", run: walk },
    Case { name: "verify", what: "(a) frame + walk: verified", run: verify },
    Case { name: "rows", what: "frame + walk + output rows", run: rows },
    Case { name: "transform", what: "(b) CBOR to output row alone", run: transform },
    Case {
        name: "generic",
        what: "(b) peer: serde_ipld_dagcbor to generic values, no row",
        run: generic,
    },
    Case {
        name: "repo-stream",
        what: "(a) peer: repo-stream 0.4, hashes and signature not checked",
        run: repo_stream,
    },
    Case {
        name: "iroh-car",
        what: "(a) peer: iroh-car + serde_ipld_dagcbor + SHA-256",
        run: iroh_car,
    },
];

fn main() {
    let wanted: Vec<String> =
        std::env::args().skip(1).filter(|text| !text.starts_with('-')).collect();
    let only = CASES.iter().find(|case| wanted.iter().any(|name| name == case.name));
    if let Some(case) = only {
        let bench = Bench::prepare(few(Set::mix().repositories()));
        println!("{} {}", bench.totals().0, counted_case(case, &bench));
        return;
    }
    let bench = Bench::prepare(Set::mix().repositories());
    let (records, bytes) = bench.totals();
    println!("\n## (a) and (b): one thread, no network, no disk");
    println!(
        "{} repositories, {records} records, {} MiB of CAR; the fastest of {PASSES} passes, in processor time\n",
        bench.repositories.len(),
        bytes >> 20
    );
    println!(
        "| what | CPU ns a record | MB/s of CAR | instructions a record, SHA-256 in software |"
    );
    println!("|---|---|---|---|");
    let mut fastest = Vec::new();
    for case in &CASES {
        let seconds = (0..PASSES).map(|_| timed(|| (case.run)(&bench))).fold(f64::MAX, f64::min);
        let instructions = instructions(case);
        println!(
            "| {} | {:.0} | {:.0} | {} |",
            case.what,
            seconds * 1e9 / records as f64,
            bytes as f64 / seconds / 1e6,
            instructions.map_or_else(|| "no valgrind".to_owned(), |count| format!("{count:.0}"))
        );
        fastest.push((case.name, seconds, instructions));
    }
    println!(
        "\nvalgrind shows no SHA instructions to the program, so its column counts sha2's software path for every hash."
    );
    let of = |name: &str| fastest.iter().find(|(case, ..)| *case == name).unwrap().1;
    let counted = |name: &str| fastest.iter().find(|(case, ..)| *case == name).unwrap().2;
    let by_count = |of: &str, to: &str| match (counted(of), counted(to)) {
        (Some(of), Some(to)) => format!("{:.2}", of / to),
        _ => String::new(),
    };
    println!("\n| ratio | found | by instructions | target |");
    println!("|---|---|---|---|");
    let row = |what: &str, peer: &str, own: &str, target: &str| {
        println!("| {what} | {:.2} | {} | {target} |", of(peer) / of(own), by_count(peer, own));
    };
    row("verify + walk, times repo-stream 0.4", "repo-stream", "verify", "2");
    println!(
        "| the same less the block hashes, which it does not make | {:.2} | {} | |",
        of("repo-stream") / (of("verify") - of("sha256")),
        match (counted("repo-stream"), counted("verify"), counted("sha256")) {
            (Some(peer), Some(own), Some(hashes)) => format!("{:.2}", peer / (own - hashes)),
            _ => String::new(),
        }
    );
    row("verify + walk, share of SHA-256 alone", "sha256", "verify", "0.55");
    row("verify + walk, times iroh-car", "iroh-car", "verify", "");
    row("rows alone, times generic decoding", "generic", "transform", "1");
    println!(
        "| verify + walk + rows, MB/s | {:.0} | | 450, then 550 |",
        bytes as f64 / of("rows") / 1e6
    );
}

/// Ordinary repositories of about 15,000 records in all: an instruction counter is fifty times slower.
fn few(repositories: Vec<Repository>) -> Vec<Repository> {
    let mut records = 0;
    let is_wanted = |it: &Repository| {
        let is_wanted = it.records < 5_000 && records < 15_000;
        records += if is_wanted { it.records } else { 0 };
        is_wanted
    };
    repositories.into_iter().filter(is_wanted).collect()
}

/// What the instruction counter counts; its name is how the counter knows it.
#[inline(never)]
fn counted_case(case: &Case, bench: &Bench) -> u64 {
    (case.run)(bench)
}

/// Instructions a record, from a child under callgrind; `None` without valgrind.
fn instructions(case: &Case) -> Option<f64> {
    let out = Path::new(env!("CARGO_TARGET_TMPDIR")).join("callgrind.out");
    let run = Command::new("valgrind")
        .args(["--tool=callgrind", "--toggle-collect=*counted_case*"])
        .arg(format!("--callgrind-out-file={}", out.display()))
        .arg(std::env::current_exe().unwrap())
        .arg(case.name)
        .output()
        .ok()?;
    let (stdout, stderr) =
        (String::from_utf8_lossy(&run.stdout), String::from_utf8_lossy(&run.stderr));
    let records: f64 = stdout.split_ascii_whitespace().next()?.parse().ok()?;
    let collected = stderr.lines().find_map(|line| line.split("Collected :").nth(1));
    let count: f64 = collected.unwrap_or_else(|| panic!("{stderr}")).trim().parse().unwrap();
    assert!(count > 0.0, "the counter has not seen the case: {stderr}");
    Some(count / records)
}

/// Seconds of processor time.
fn timed(run: impl FnOnce() -> u64) -> f64 {
    let begun = cpu_seconds();
    black_box(run());
    cpu_seconds() - begun
}

impl Bench {
    fn prepare(repositories: Vec<Repository>) -> Self {
        let framed: Vec<Framed> = repositories.iter().map(|it| framed_of(&it.car)).collect();
        let blocks =
            repositories.iter().zip(&framed).map(|(it, framed)| ranges(it, framed)).collect();
        let records =
            repositories.iter().zip(&framed).map(|(it, framed)| leaves(it, framed)).collect();
        let types = Kind::ALL.into_iter().map(TypeEntry::Kind).collect();
        let window = Window {
            start: "2024-09-27-00:00:00".parse().unwrap(),
            end: "2024-12-02-00:00:00".parse().unwrap(),
            outside: Outside::Bucket,
            offsets: Offsets::Utc,
        };
        let transformer = Transformer::new(&Filter { types, window });
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        Self { repositories, framed, blocks, records, transformer, runtime }
    }

    fn totals(&self) -> (usize, usize) {
        let records = self.repositories.iter().map(|it| it.records).sum();
        (records, self.repositories.iter().map(|it| it.car.len()).sum())
    }
}

fn framed_of(car: &[u8]) -> Framed {
    let mut framer = Framer::new(1 << 32);
    car.chunks(CHUNK_BYTES).for_each(|bytes| framer.push(bytes).unwrap());
    framer.finish().unwrap()
}

/// Where the blocks lie, found without the engine.
fn ranges(repository: &Repository, framed: &Framed) -> Vec<(usize, usize)> {
    let (car, mut at) = (&repository.car, framed.header_bytes as usize);
    let mut ranges = Vec::new();
    while at < car.len() {
        let (mut length, mut shift) = (0_usize, 0);
        loop {
            let byte = car[at];
            at += 1;
            length |= usize::from(byte & 0x7f) << shift;
            shift += 7;
            if byte < 0x80 {
                break;
            }
        }
        ranges.push((at + 36, at + length));
        at += length;
    }
    ranges
}

fn walked(
    repository: &Repository,
    framed: &Framed,
    mut each: impl FnMut(&str, skyfill::repo::cid::Cid, &[u8]),
) -> u64 {
    let (did, cancel) = (Did::parse(&repository.did).unwrap(), AtomicBool::new(false));
    let expected = Expected { did: Some(&did), key: Some(&repository.key), earlier_keys: &[] };
    let mut walk = Walk::open(&repository.car, framed, &expected, &cancel).unwrap();
    let mut leaves = 0;
    while let Some(leaf) = walk.next_leaf().unwrap() {
        let LeafBlock::Held(bytes) = leaf.block else { panic!("a large leaf") };
        each(leaf.key, leaf.cid, bytes);
        leaves += 1;
    }
    leaves
}

fn leaves(repository: &Repository, framed: &Framed) -> Vec<Vec<u8>> {
    let mut records = Vec::new();
    walked(repository, framed, |_, _, bytes| records.push(bytes.to_vec()));
    records
}

fn sha256(bench: &Bench) -> u64 {
    let mut blocks = 0;
    for (repository, ranges) in bench.repositories.iter().zip(&bench.blocks) {
        for (start, end) in ranges {
            black_box(Sha256::digest(&repository.car[*start..*end]));
            blocks += 1;
        }
    }
    blocks
}

fn frame(bench: &Bench) -> u64 {
    bench.repositories.iter().map(|it| framed_of(&it.car).blocks).sum()
}

fn walk(bench: &Bench) -> u64 {
    let pairs = bench.repositories.iter().zip(&bench.framed);
    pairs
        .map(|(it, framed)| {
            walked(it, framed, |_, _, bytes| {
                black_box(bytes.first());
            })
        })
        .sum()
}

fn verify(bench: &Bench) -> u64 {
    let touch = |_: &str, _, bytes: &[u8]| {
        black_box(bytes.first());
    };
    bench.repositories.iter().map(|it| walked(it, &framed_of(&it.car), touch)).sum()
}

/// Rows go where the pipeline puts them: into buffers that are used again.
fn rows(bench: &Bench) -> u64 {
    let mut out = Vec::with_capacity(2 << 20);
    let mut count = 0;
    for repository in &bench.repositories {
        let origin = Origin::new(&repository.did, "3l5nhh4s4xs2b");
        count += walked(repository, &framed_of(&repository.car), |key, cid, bytes| {
            let block = RecordBlock::Held(bytes);

            bench
                .transformer
                .read(&RecordSource { origin: &origin, key, cid, block })
                .write(&mut out);
            if out.len() > 1 << 20 {
                black_box(&out);
                out.clear();
            }
        });
    }
    count
}

fn transform(bench: &Bench) -> u64 {
    let mut out = Vec::with_capacity(2 << 20);
    let mut count = 0;
    let cid =
        skyfill::repo::cid::Cid { codec: skyfill::repo::cid::Codec::DagCbor, digest: [7; 32] };
    for (repository, records) in bench.repositories.iter().zip(&bench.records) {
        let origin = Origin::new(&repository.did, "3l5nhh4s4xs2b");
        for bytes in records {
            let block = RecordBlock::Held(bytes);
            let key = "app.bsky.feed.like/3l5nhh4s4xs2b";
            bench
                .transformer
                .read(&RecordSource { origin: &origin, key, cid, block })
                .write(&mut out);
            count += 1;
            if out.len() > 1 << 20 {
                black_box(&out);
                out.clear();
            }
        }
    }
    count
}

fn generic(bench: &Bench) -> u64 {
    let records = bench.records.iter().flatten();
    records.filter(|bytes| black_box(serde_ipld_dagcbor::from_slice::<Ipld>(bytes)).is_ok()).count()
        as u64
}

fn repo_stream(bench: &Bench) -> u64 {
    let length = |block: Vec<u8>| block.len().to_ne_bytes().to_vec();
    bench.runtime.block_on(async {
        let mut count = 0;
        for repository in &bench.repositories {
            let builder = repo_stream::DriverBuilder::new()
                .with_mem_limit_mb(1_000)
                .with_block_processor(length);
            let driver = builder.load_car(repository.car.as_slice()).await.unwrap();
            let repo_stream::Driver::Memory(_, mut driver) = driver else { panic!("spilled") };
            while let Some(chunk) = driver.next_chunk(256).await.unwrap() {
                count += chunk.len() as u64;
            }
        }
        count
    })
}

fn iroh_car(bench: &Bench) -> u64 {
    bench.runtime.block_on(async {
        let mut count = 0;
        for repository in &bench.repositories {
            count += second_opinion::list(repository.car.as_slice()).await.unwrap().len() as u64;
        }
        count
    })
}
