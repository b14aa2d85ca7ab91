//! A disk that fails (TORTURE.md, E3): `strace` lets the Nth call of a kind fail in the real binary, for every N that a small job has, once
//! and from then on. The process ends with exit code 74 and names the file, or goes on where nothing depended on it; the next
//! run finishes: 0 lost, 0 twice, 0 torn.
//!
//! ```text
//!  calls      pwrite64, fdatasync, fsync, ftruncate, rename, unlink, mkdir, pread64: only the data directory is worked on with these
//!  errors     EIO; ENOSPC once, which is waited out, and from then on, which waits until it is asked to stop
//!  counted    by thread, as strace does: the Nth call of each thread fails
//!  not shown  short writes (tests/local_faults.rs: file size limits), pages that a failed sync drops from the kernel's cache
//!             (tests/power.rs, and the door of the journal, leave out what was not synced)
//! ```
//! Some N of each kind; all of them with `SKYFILL_DISK=1`.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::disallowed_methods
)]

mod support;

use std::path::Path;
use std::sync::Mutex;

use support::job::{Job, PATIENCE, has_strace, in_parallel, number_from};
use support::proc::{Finished, Signal, Skyfill};
use support::world::{Records, Shape};

/// Without `SKYFILL_DISK`, of each kind of call.
const SOME: [u32; 5] = [1, 2, 4, 7, 12];

/// No thread of the job has more calls of one kind than this.
const CALLS_MAX: u32 = 400;

const CALLS: [&str; 8] =
    ["pwrite64", "fdatasync", "fsync", "ftruncate", "rename", "unlink", "mkdir", "pread64"];

#[derive(Clone, Copy, Debug)]
struct Case {
    call: &'static str,
    error: &'static str,
    at: u32,
    is_persistent: bool,
}

fn job(seed: u64) -> Job {
    let shape = Shape { seed, accounts: 4, hosts: 1, records: Records::Fixed(25), odd: false };
    Job::new(env!("CARGO_BIN_EXE_skyfill"), &shape, &["--batch-size", "2"])
}

impl Case {
    /// Runs the job over `data` with this fault; says how it ended and how often the fault fired.
    fn run(self, job: &Job, data: &Path) -> (Finished, usize) {
        let Self { call, error, at, is_persistent } = self;
        let out = data.with_extension("trace");
        let from = if is_persistent { "+" } else { "" };
        let mut arguments: Vec<String> = ["-f", "-o"].map(str::to_owned).to_vec();
        arguments.push(out.to_str().unwrap().to_owned());
        arguments.push(format!("--trace={call}"));
        arguments.push(format!("--inject={call}:error={error}:when={at}{from}"));
        arguments.extend(job.command(data));
        let running = Skyfill::new("strace").spawn(&arguments);
        if is_persistent && error == "ENOSPC" {
            // It waits for space that never comes, until it is asked to stop.
            let is_waiting = running.wait_for("the disk is full", PATIENCE);
            if is_waiting && running.is_running() {
                stop(data);
            }
        }
        let finished = running.finish(PATIENCE);
        let trace = std::fs::read_to_string(&out).unwrap_or_default();
        (finished, trace.matches("(INJECTED)").count())
    }
}

/// Asks the process that holds `data` to stop: strace would keep the signal for itself.
fn stop(data: &Path) {
    let pid = std::fs::read_to_string(data.join("lock")).unwrap_or_default();
    let pid = pid.trim().parse().ok().and_then(rustix::process::Pid::from_raw);
    if let Some(pid) = pid {
        let _gone = rustix::process::kill_process(pid, Signal::TERM);
    }
}

/// What is wrong with how it ended; `None` if all is well, or if the fault did not fire.
fn judge(job: &Job, case: Case) -> Outcome {
    let root = tempfile::tempdir_in(job.folder.path()).unwrap();
    let data = root.path().join("data");
    let (finished, fired) = case.run(job, &data);
    if fired == 0 {
        return Outcome::NotFired;
    }
    let said = &finished.stderr;
    // A file, a folder in it, or the folder that it lies in.
    let is_named = said.contains(root.path().to_str().unwrap());
    if finished.code == Some(127) {
        // It was the loader's call, before there was a process of ours.
        return Outcome::NotOurs;
    }
    let is_full = case.error == "ENOSPC";
    let is_right = match finished.code {
        Some(0) => true,
        // For space it waits.
        Some(74) => is_named && !(is_full && case.is_persistent),
        // It waited and was asked to stop.
        Some(130) => is_full && is_named,
        _ => false,
    };
    if !is_right {
        return Outcome::Wrong(format!("{case:?}: {:?}: {said}", finished.code));
    }
    let again = job.run(&data);
    if again.code != Some(0) {
        return Outcome::Wrong(format!(
            "{case:?}: the next run: {:?}: {}",
            again.code, again.stderr
        ));
    }
    let verdict = job.verdict(&data);
    if !verdict.is_clean() {
        return Outcome::Wrong(format!("{case:?}: {verdict:#?}"));
    }
    Outcome::Right(finished.code.unwrap_or(-1))
}

enum Outcome {
    NotFired,
    NotOurs,
    Right(i32),
    Wrong(String),
}

fn fail_everywhere(job: &Job, errors: &[(&'static str, bool)]) {
    let all = number_from("SKYFILL_DISK", 0) > 0;
    let kinds: Vec<(&'static str, &'static str, bool)> = CALLS
        .iter()
        .flat_map(|call| errors.iter().map(move |(error, persistent)| (*call, *error, *persistent)))
        // A read finds no disk full, and nothing of a removal needs space.
        .filter(|(call, error, _)| {
            *error == "EIO" || !["pread64", "unlink", "fsync", "fdatasync"].contains(call)
        })
        .collect();
    let (wrong, tally) = (Mutex::new(Vec::new()), Mutex::new(std::collections::BTreeMap::new()));
    in_parallel(&kinds, 5, |(call, error, is_persistent)| {
        let mut fired = 0;
        let numbers: Vec<u32> = if all { (1..CALLS_MAX).collect() } else { SOME.to_vec() };
        for at in numbers {
            let case = Case { call, error, at, is_persistent: *is_persistent };
            match judge(job, case) {
                // No thread has so many.
                Outcome::NotFired => break,
                Outcome::NotOurs => {}
                Outcome::Right(code) => {
                    fired += 1;
                    *tally.lock().unwrap().entry(code).or_insert(0) += 1;
                }
                Outcome::Wrong(text) => {
                    fired += 1;
                    wrong.lock().unwrap().push(text);
                }
            }
        }
        assert!(fired > 0, "{call} never failed with {error}");
    });
    let wrong = wrong.into_inner().unwrap();
    assert!(wrong.is_empty(), "{}:\n{}", wrong.len(), wrong.join("\n"));
    let tally = tally.into_inner().unwrap();
    println!("calls that fail, by exit code: {tally:?}; afterwards 0 lost, 0 doubled, 0 torn");
}

#[test]
fn a_call_that_fails_ends_the_process_by_name_and_the_next_run_finishes() {
    if has_strace() {
        fail_everywhere(&job(73), &[("EIO", false), ("EIO", true)]);
    }
}

#[test]
fn a_call_that_finds_no_space_is_waited_out() {
    if has_strace() {
        fail_everywhere(&job(74), &[("ENOSPC", false)]);
    }
}

/// E9: every sync takes 200 ms longer.
#[test]
fn a_slow_disk_costs_only_time() {
    if !has_strace() {
        return;
    }
    let job = job(76);
    let data = job.path("slow");
    let out = job.path("slow.trace");
    let mut arguments: Vec<String> = ["-f", "-o"].map(str::to_owned).to_vec();
    arguments.push(out.to_str().unwrap().to_owned());
    arguments.push("--trace=fdatasync,fsync".to_owned());
    arguments.push("--inject=fdatasync,fsync:delay_enter=200000".to_owned());
    arguments.extend(job.command(&data));
    let finished = Skyfill::new("strace").run(&arguments, PATIENCE);
    assert_eq!(finished.code, Some(0), "{finished:#?}");
    let slowed = std::fs::read_to_string(&out).unwrap().matches("(DELAYED)").count();
    assert!(slowed > 20 && finished.seconds > 2.0, "{slowed} syncs in {} s", finished.seconds);
    job.verdict(&data).assert_clean();
    println!("{slowed} syncs of 200 ms more: {:.1} s, 0 lost, 0 doubled, 0 torn", finished.seconds);
}

#[test]
fn space_that_never_comes_is_waited_for_until_somebody_says_stop() {
    if !has_strace() {
        return;
    }
    let job = job(75);
    // Beyond the start, whose small calls SQLite reports in its own words.
    for at in [30, 60] {
        let case = Case { call: "pwrite64", error: "ENOSPC", at, is_persistent: true };
        match judge(&job, case) {
            Outcome::Right(code) => assert_eq!(code, 130, "{case:?}"),
            Outcome::Wrong(text) => panic!("{text}"),
            Outcome::NotFired | Outcome::NotOurs => panic!("{case:?} never fired"),
        }
    }
}
