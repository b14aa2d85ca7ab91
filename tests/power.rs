//! Loss of power (TORTURE.md, C4): the real binary does a small but complete job under `strace`; what it asked of its data
//! directory is replayed up to the Nth operation, for every N, and the real binary goes on over what a disk could then hold.
//!
//! ```text
//!  simulated      every write, cut, rename, removal, sync; names and bytes apart (power/disk.rs); for each N: everything that was
//!                 not synced is lost; only bytes are lost; nothing is lost; and a seeded part is lost with the last write torn
//!  recorded       a run that ends well, and one that was killed, with the run after it
//!  not simulated  sectors that are damaged although they were synced, disks that lie about syncs, names of one folder out of
//!                 order, a second loss during recovery (kills.rs kills recovery), repositories that need a spool file or a
//!                 journal part of their own, the `-shm` files (SQLite makes them anew), what readers had seen before
//! ```
//! States that several N share are tried once. Every 10th N with one of the four losses in turn; every N with all of them if
//! `SKYFILL_POWER=1`. `SKYFILL_SEED` chooses parts.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::disallowed_methods
)]

#[path = "power/disk.rs"]
mod disk;
mod support;
#[path = "power/trace.rs"]
mod trace;

use std::collections::{HashMap, HashSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use disk::{Loss, Op, after_power_loss};
use support::faults::{Fault, Place, Target, Then};
use support::job::{Job, PATIENCE, has_strace, in_parallel, number_from};
use support::judge::Verdict;
use support::proc::Skyfill;
use support::world::{Records, Shape};

/// Of these N, one is tried unless all are asked for.
const EVERY: usize = 10;

/// Runs at once: they mostly wait for quiet moments.
const AT_ONCE: usize = 6;

/// Accounts one after the other, on a host that takes its time, so that there are several segments and settles.
fn job(seed: u64) -> Job {
    let shape = Shape { seed, accounts: 5, hosts: 1, records: Records::Fixed(25), odd: false };
    let job = Job::new(env!("CARGO_BIN_EXE_skyfill"), &shape, &["--batch-size", "1"]);
    let slow = Fault::SlowHeaders(Duration::from_millis(700));
    job.network.faults().script(Place::Repo, Target::Any, [slow], Then::Repeat);
    job
}

/// Runs the job below `root`, and reads what it asked of the disk.
fn record(job: &Job, root: &Path, crash_at: &str, reader: &mut trace::Reader) -> Option<i32> {
    let (data, out) = (root.join("data"), job.path("trace"));
    let expression = format!("trace={}", trace::CALLS);
    let mut arguments: Vec<String> =
        ["-f", "-xx", "-s", "100000000", "--seccomp-bpf", "-e", &expression, "-o"]
            .map(str::to_owned)
            .to_vec();
    arguments.push(out.to_str().unwrap().to_owned());
    arguments.extend(job.command(&data));
    let strace = Skyfill::new("strace").env("SKYFILL_CRASH_AT", crash_at);
    let finished = strace.run(&arguments, PATIENCE);
    reader.read(&std::fs::read_to_string(&out).unwrap());
    finished.code
}

fn losses(count: usize, seed: u64) -> [Loss; 4] {
    [Loss::Everything, Loss::Bytes, Loss::Nothing, Loss::Some(seed << 32 | count as u64)]
}

/// Goes on over what is left after the loss; what is wrong with the end of it.
fn go_on(job: &Job, ops: &[Op], count: usize, loss: Loss) -> Result<Verdict, String> {
    let root = tempfile::tempdir_in(job.folder.path()).unwrap();
    after_power_loss(ops, count, loss).write(root.path());
    let data = root.path().join("data");
    for (name, mode) in [("", 0o750), ("journal", 0o700), ("queue", 0o2770), ("spool", 0o700)] {
        let folder = data.join(name);
        if folder.exists() {
            std::fs::set_permissions(&folder, PermissionsExt::from_mode(mode)).unwrap();
        }
    }
    let finished = job.run(&data);
    let what = format!("power lost after operation {count}, lost: {loss:?}");
    if finished.code != Some(0) {
        return Err(format!("{what}: exit code {:?}: {}", finished.code, finished.stderr));
    }
    let verdict = job.verdict(&data);
    if verdict.is_clean() { Ok(verdict) } else { Err(format!("{what}: {verdict:#?}")) }
}

/// Tries every state that `ops` can leave at the chosen N.
fn lose_power_everywhere(job: &Job, ops: &[Op], what: &str) {
    let (all, seed) = (number_from("SKYFILL_POWER", 0) > 0, number_from("SKYFILL_SEED", 7));
    let (step, offset) = if all { (1, 0) } else { (EVERY, usize::try_from(seed).unwrap() % EVERY) };
    let mut seen = HashSet::new();
    let (mut states, mut points) = (Vec::new(), 0);
    for count in (0..=ops.len()).filter(|count| count % step == offset) {
        points += 1;
        let losses = losses(count, seed);
        // One of them at each N, or all.
        let chosen = if all { &losses[..] } else { &losses[points % 4..=points % 4] };
        for loss in chosen.iter().copied() {
            let mut hasher = DefaultHasher::new();
            after_power_loss(ops, count, loss).hash(&mut hasher);
            if seen.insert(hasher.finish()) {
                states.push((count, loss));
            }
        }
    }
    let (wrong, rows) = (Mutex::new(Vec::new()), AtomicU64::new(0));
    in_parallel(&states, AT_ONCE, |(count, loss)| match go_on(job, ops, *count, *loss) {
        Ok(verdict) => drop(rows.fetch_add(verdict.expected, Ordering::AcqRel)),
        Err(text) => wrong.lock().unwrap().push(text),
    });
    let wrong = wrong.into_inner().unwrap();
    assert!(
        wrong.is_empty(),
        "{} of {} states, SKYFILL_SEED={seed}:\n{}",
        wrong.len(),
        states.len(),
        wrong.iter().take(20).cloned().collect::<Vec<_>>().join("\n")
    );
    println!(
        "power lost {what}: {points} of {} operations, {} different states of the disk, {} rows expected: 0 lost, 0 doubled, 0 torn",
        ops.len() + 1,
        states.len(),
        rows.into_inner(),
    );
}

/// Operations of each kind, so that a recording that misses something is noticed.
fn counts(ops: &[Op]) -> [usize; 5] {
    let count = |is_it: fn(&Op) -> bool| ops.iter().filter(|op| is_it(op)).count();
    [
        count(|op| matches!(op, Op::Write { .. })),
        count(|op| matches!(op, Op::Sync { .. })),
        count(|op| matches!(op, Op::SyncFolder { .. })),
        count(|op| matches!(op, Op::Rename { .. })),
        count(|op| matches!(op, Op::Remove { .. })),
    ]
}

fn is_segment(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "seg")
}

/// Before a segment is removed or becomes a spare, everybody has synced what it brought: every queue file all that it wrote, the ledger what
/// it wrote since the segment was there.
fn assert_synced_before_forgotten(ops: &[Op]) {
    let (mut wals, mut written, mut synced) = (HashMap::new(), HashMap::new(), HashMap::new());
    let (mut sealed, mut forgotten) = (HashMap::new(), 0);
    for (index, op) in ops.iter().enumerate() {
        match op {
            Op::Create { path, file } if path.to_string_lossy().ends_with(".db-wal") => {
                wals.insert(*file, path.clone());
            }
            Op::Write { file, .. } => {
                written.insert(*file, index);
            }
            Op::Sync { file, covers } => {
                synced.insert(*file, *covers);
            }
            Op::Rename { to, .. } if is_segment(to) => {
                sealed.insert(to.clone(), index);
            }
            Op::Remove { path } | Op::Rename { from: path, .. } if is_segment(path) => {
                forgotten += 1;
                for (wal, name) in &wals {
                    let covered = synced.get(wal).copied().unwrap_or(0);
                    let is_ledger = name.ends_with("state.db-wal");
                    let last = if is_ledger { Some(&sealed[path]) } else { written.get(wal) };
                    let is_synced = last.is_none_or(|last| covered > *last);
                    let what = format!(
                        "{} forgotten before {} was synced",
                        path.display(),
                        name.display()
                    );
                    assert!(is_synced, "operation {index}: {what}");
                }
            }
            _ => {}
        }
    }
    assert!(forgotten >= 3, "{forgotten} segments were forgotten");
}

#[test]
fn power_lost_at_any_operation_loses_nothing_and_doubles_nothing() {
    if !has_strace() {
        return;
    }
    let job = job(71);
    let root = job.path("recorded");
    std::fs::create_dir(&root).unwrap();
    let mut reader = trace::Reader::new(&root);
    assert_eq!(record(&job, &root, "", &mut reader), Some(0));
    // The model agrees with the real disk: what it holds when nothing is lost is what is there.
    let whole = after_power_loss(&reader.ops, reader.ops.len(), Loss::Nothing);
    for (path, content) in &whole.files {
        assert!(std::fs::read(root.join(path)).unwrap() == *content, "{}", path.display());
    }
    assert!(whole.files.len() >= 9, "{:?}", whole.files.keys());
    job.verdict(&root.join("data")).assert_clean();
    let [writes, syncs, folder_syncs, renames, removals] = counts(&reader.ops);
    println!(
        "{writes} writes, {syncs} syncs of files, {folder_syncs} of folders, {renames} renames, {removals} removals"
    );
    assert!(writes > 100 && syncs > 30 && folder_syncs >= 5 && renames >= 3 && removals >= 3);
    assert_synced_before_forgotten(&reader.ops);
    job.network.faults().assert_fired(&["slow_headers"]);
    job.network.faults().heal();
    lose_power_everywhere(&job, &reader.ops, "in a run that ends well");
}

#[test]
fn power_lost_after_a_crash_and_in_the_run_that_follows_loses_nothing() {
    if !has_strace() || cfg!(not(debug_assertions)) {
        return;
    }
    let job = job(72);
    let root = job.path("recorded");
    std::fs::create_dir(&root).unwrap();
    let mut reader = trace::Reader::new(&root);
    let crashed = record(&job, &root, "SinkAppliedBeforeLedger:2", &mut reader);
    assert_ne!(crashed, Some(0), "the crash never fired");
    let first = reader.ops.len();
    job.network.faults().heal();
    assert_eq!(record(&job, &root, "", &mut reader), Some(0));
    job.verdict(&root.join("data")).assert_clean();
    assert!(first > 50 && reader.ops.len() > first + 50);
    lose_power_everywhere(&job, &reader.ops, "in a run that crashes and the next");
}
