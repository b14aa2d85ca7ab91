//! (d) The whole job over loopback HTTP: the real binary as a child, a directory and eight hosts in this process that serve
//! prepared, really signed repositories. Prints records per CPU-second (user + system, as the kernel counts the child), per second,
//! and peak memory, on one core and on two; then the Python service's own job.
//!
//! `cargo bench --bench pipeline [-- huge | profile | ACCOUNTS RECORDS] [KEY=VALUE ...]`: the mix of `common/data.rs`; with one of
//! 2.5 million records besides; only a profile by thread; or so many accounts of so many records. The rest are settings of the run.
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

#[path = "common/child.rs"]
mod child;
#[path = "common/data.rs"]
mod data;
#[path = "common/serve.rs"]
mod serve;
#[path = "../tests/support/mod.rs"]
mod support;

use std::process::Command;

use child::{Measured, Run, cheapest};
use data::Set;
use serve::Servers;

const RUNS: usize = 3;

/// Figures of others that DESIGN section 9 quotes; not measured here.
const JETSTREAM_PER_CPU_SECOND: f64 = 108_000.0;
const PYTHON_PER_CPU_SECOND: f64 = 8_000.0;
const PYTHON_MEMORY_MEGABYTES: f64 = 365.0;

/// The target of DESIGN section 9.
const TARGET_PER_CPU_SECOND: f64 = 300_000.0;

fn main() {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let has = |name: &str| words.iter().any(|word| word == name);
    let settings: Vec<String> = words.iter().filter(|word| word.contains('=')).cloned().collect();
    let numbers: Vec<usize> = words.iter().filter_map(|word| word.parse().ok()).collect();
    let set = match numbers[..] {
        [accounts, records] => Set::fixed(accounts, records),
        _ if has("huge") => Set::huge_mix(),
        _ => Set::mix(),
    };
    let servers = Servers::start(set);
    if has("profile") {
        return profile(&servers, &settings);
    }
    println!("\n## (d) the whole job over loopback HTTP");
    describe(&servers);
    println!(
        "| cores | run | records/cpu s | µs a record | records/s | cpu s | wall s | anonymous peak MiB |"
    );
    println!("|---|---|---|---|---|---|---|---|");
    let mut best = Vec::new();
    let last = std::thread::available_parallelism().map_or(1, |it| it.get() - 1).max(1);
    for cores in [1, 2] {
        // The servers beside a child on one core have the others, those beside a child on two have the same two.
        keep_to(&format!("{}-{last}", 2 - cores));
        let run = Run::on_cores(cores).with(&settings);
        let runs: Vec<Measured> = (1..=RUNS)
            .map(|number| {
                let measured = run.measure(&servers);
                print(&format!("{cores} | {number}"), &measured);
                measured
            })
            .collect();
        best.push(cheapest(&runs).clone());
    }
    drop(servers);
    println!(
        "\n| best of {RUNS} | found | target | Jetstream's published {JETSTREAM_PER_CPU_SECOND} |"
    );
    println!("|---|---|---|---|");
    for (measured, cores) in best.iter().zip([1, 2]) {
        println!(
            "| records per CPU-second, {cores} core(s) | {:.0} | {TARGET_PER_CPU_SECOND} | {:.1} times |",
            measured.per_cpu_second(),
            measured.per_cpu_second() / JETSTREAM_PER_CPU_SECOND
        );
    }
    if numbers.is_empty() {
        python(&settings);
    }
}

/// All threads of this process on these cores; where that cannot be, they stay where they are.
fn keep_to(cores: &str) {
    let own = std::process::id().to_string();
    let kept = Command::new("taskset").args(["-a", "-p", "-c", cores, &own]).output();
    if !kept.is_ok_and(|it| it.status.success()) {
        println!("(the servers could not be kept to cores {cores})");
    }
}

fn describe(servers: &Servers) {
    let set = servers.set();
    println!(
        "{} accounts, {} records, {} MiB of CAR, {} hosts in this process beside it\n",
        set.accounts.len(),
        set.records(),
        set.bytes() >> 20,
        serve::HOSTS
    );
}

fn print(head: &str, it: &Measured) {
    println!(
        "| {head} | {:.0} | {:.2} | {:.0} | {:.2} | {:.2} | {} |",
        it.per_cpu_second(),
        1e6 / it.per_cpu_second(),
        it.per_second(),
        it.cpu_seconds,
        it.seconds,
        it.anonymous_peak_bytes >> 20
    );
}

/// 50 repositories of 2,000 records with the least memory that can be configured.
fn python(settings: &[String]) {
    let servers = Servers::start(Set::fixed(50, 2_000));
    println!("\n## The Python service's own job, limits.memory = \"64MiB\"");
    describe(&servers);
    println!(
        "| cores | run | records/cpu s | µs a record | records/s | cpu s | wall s | anonymous peak MiB |"
    );
    println!("|---|---|---|---|---|---|---|---|");
    let run = Run::on_cores(2).with(&["limits.memory=64MiB".to_owned()]).with(settings);
    let runs: Vec<Measured> = (1..=RUNS)
        .map(|number| {
            let measured = run.measure(&servers);
            print(&format!("2 | {number}"), &measured);
            measured
        })
        .collect();
    let best = cheapest(&runs);
    println!(
        "\n| best of {RUNS} | found | its figure (quoted, not measured here) | ratio | target |"
    );
    println!("|---|---|---|---|---|");
    println!(
        "| records per CPU-second | {:.0} | {PYTHON_PER_CPU_SECOND} | {:.1} | 40 |",
        best.per_cpu_second(),
        best.per_cpu_second() / PYTHON_PER_CPU_SECOND
    );
    let megabytes = best.rss_peak_bytes as f64 / 1e6;
    println!(
        "| peak resident memory, MB | {megabytes:.0} | {PYTHON_MEMORY_MEGABYTES} | {:.2} | 0.33 |",
        megabytes / PYTHON_MEMORY_MEGABYTES
    );
}

/// One run under `perf record`: shares of the processor by thread, then by function of our own.
fn profile(servers: &Servers, settings: &[String]) {
    describe(servers);
    let file = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join("skyfill.perf");
    let file = file.to_str().unwrap();
    let under = ["perf", "record", "-e", "cpu-clock", "-F", "1999", "-g", "-o", file, "--"];
    let under = under.map(str::to_owned).to_vec();
    let run = Run { under, settings: settings.to_vec(), ..Run::default() };
    run.measure(servers);
    for by in ["comm", "comm,dso", "comm,symbol"] {
        let arguments = [
            "report",
            "-i",
            file,
            "--no-children",
            "--stdio",
            "-g",
            "none",
            "--percent-limit",
            "0.7",
        ];
        let report = Command::new("perf").args(arguments).args(["--sort", by]).output().unwrap();
        let text = String::from_utf8_lossy(&report.stdout);
        println!("\n# by {by}");
        for line in text.lines().filter(|line| !line.starts_with('#') && !line.trim().is_empty()) {
            println!("{}", line.trim_end_matches(['-', ' ']));
        }
    }
}
