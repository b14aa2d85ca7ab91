//! How the cost of an account and of a record grows with their number: the real binary over loopback, as in `pipeline`.
//!
//! `cargo bench --bench growth [-- huge]`: 1,000, 10,000 and 100,000 accounts of 1 to 5 records (a million with `huge`), and
//! repositories of 1,000, 10,000 and 100,000 records (2.5 million with `huge`) that make 400,000 records together. What a run
//! with a single small account costs is measured first and taken off. Flat is when no step costs 20% more than the cheapest.
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
#[path = "common/plot.rs"]
mod plot;
#[path = "common/serve.rs"]
mod serve;
#[path = "../tests/support/mod.rs"]
mod support;

use child::{Measured, Run, cheapest};
use data::{HUGE_RECORDS, Set};
use plot::{Axes, Line};
use serve::Servers;

/// Runs of which the cheapest counts; a run longer than [`LONG_CPU_SECONDS`] is made once.
const RUNS: usize = 3;
const LONG_CPU_SECONDS: f64 = 10.0;

/// What is allowed between the dearest and the cheapest step.
const FLAT: f64 = 1.2;

/// Records of each step of the second table.
const RECORDS: usize = 400_000;

/// Number, microseconds of CPU for one, milliseconds of wall time for one.
type Step = (usize, f64);

fn main() {
    let is_huge = std::env::args().any(|word| word == "huge");
    let floor = measured(Set::tiny(100_000).first(1)).cpu_seconds;
    println!("\n## Growth");
    println!("a run with one small account costs {floor:.2} s of CPU, which is taken off\n");
    let accounts = accounts(floor, is_huge);
    let records = records(floor, is_huge);
    let axes = Axes {
        title: "Cost by number",
        x: "accounts · records a repository",
        y: "µs of CPU: 1 an account / 100 a record",
        is_log_x: true,
    };
    // Two scales on one picture: a record costs about a hundredth of a small account.
    let line = |name: &str, steps: &[Step], scale: f64| Line {
        name: name.to_owned(),
        points: steps.iter().map(|(number, cost)| (*number as f64, cost * scale)).collect(),
    };
    let lines = [
        line("µs an account of 3 records, by accounts", &accounts, 1.0),
        line("µs for 100 records, by records a repository", &records, 100.0),
    ];
    println!("\n{}", plot::write("bench-growth.svg", &axes, &lines).display());
}

fn accounts(floor: f64, is_huge: bool) -> Vec<Step> {
    println!(
        "| accounts of 1 to 5 records | µs of CPU an account | cpu s | wall s | anonymous peak MiB |"
    );
    println!("|---|---|---|---|---|");
    let mut counts = vec![1_000, 10_000, 100_000];
    counts.extend(is_huge.then_some(1_000_000));
    let steps: Vec<Step> = counts
        .into_iter()
        .map(|count| {
            let it = measured(Set::tiny(count.max(100_000)).first(count));
            let cost = (it.cpu_seconds - floor) / count as f64 * 1e6;
            print(count, cost, &it);
            (count, cost)
        })
        .collect();
    flatness(&steps);
    steps
}

fn records(floor: f64, is_huge: bool) -> Vec<Step> {
    println!(
        "\n| records a repository | µs of CPU a record | cpu s | wall s | anonymous peak MiB |"
    );
    println!("|---|---|---|---|---|");
    let mut sizes = vec![1_000, 10_000, 100_000];
    sizes.extend(is_huge.then_some(HUGE_RECORDS));
    let steps: Vec<Step> = sizes
        .into_iter()
        .map(|size| {
            let it = measured(Set::fixed(RECORDS.div_ceil(size), size));
            let cost = (it.cpu_seconds - floor) / it.records as f64 * 1e6;
            print(size, cost, &it);
            (size, cost)
        })
        .collect();
    flatness(&steps);
    steps
}

fn measured(set: Set) -> Measured {
    let servers = Servers::start(set);
    let mut runs = vec![Run::default().measure(&servers)];
    while runs.len() < RUNS && runs[0].cpu_seconds < LONG_CPU_SECONDS {
        runs.push(Run::default().measure(&servers));
    }
    cheapest(&runs).clone()
}

fn print(number: usize, cost: f64, it: &Measured) {
    println!(
        "| {number} | {cost:.2} | {:.2} | {:.2} | {} |",
        it.cpu_seconds,
        it.seconds,
        it.anonymous_peak_bytes >> 20
    );
}

fn flatness(steps: &[Step]) {
    let most = steps.iter().map(|step| step.1).fold(0.0, f64::max);
    let least = steps.iter().map(|step| step.1).fold(f64::MAX, f64::min);
    let verdict = if most / least <= FLAT { "flat" } else { "not flat" };
    println!("\ndearest / cheapest: {:.2}, at most {FLAT} is flat: {verdict}", most / least);
}
