//! (e) Peak memory of the real binary with 32 transfers at once, one of them large, at two settings of `limits.memory`; with
//! `huge` at one.
//!
//! `cargo bench --bench memory [-- huge] [listed]`. `listed` puts 10 million DIDs that nobody knows into the list behind them. Without `huge` a stand-in of 500,000 records, about 190 MiB, takes the place of the
//! repository of 2.5 million records and about 1 GiB. The hosts hold every transfer at its first byte until all 32 have begun, and the last
//! piece of the 31 others, about 3.9 MB each, until the large one is out: the worst case for spools. It fails nothing; it prints the ratio
//! to `limits.memory` + 64 MiB and draws resident memory over time.
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

use child::Run;
use data::{HUGE_RECORDS, STAND_IN_RECORDS, Set};
use plot::{Axes, Line};
use serve::Servers;

/// MiB beside `limits.memory` that DESIGN promise 4 leaves for everything else.
const BASE_MEBIBYTES: f64 = 64.0;

const MEBIBYTE: f64 = (1 << 20) as f64;

fn main() {
    let has = |wanted: &str| std::env::args().any(|word| word == wanted);
    let is_huge = has("huge");
    let unknown = if has("listed") { 10_000_000 } else { 0 };
    let largest = if is_huge { HUGE_RECORDS } else { STAND_IN_RECORDS };
    let set = Set::transfers(largest);
    let transfers = set.accounts.len();
    println!("\n## (e) peak memory, {transfers} transfers at once");
    if unknown > 0 {
        println!("in a list of {unknown} more accounts");
    }
    println!(
        "one of {largest} records and {} MiB{}, the others of about {} KiB\n",
        set.accounts[0].bytes >> 20,
        if is_huge { "" } else { " (a stand-in: `huge` takes 2.5 million)" },
        set.accounts[1].bytes >> 10
    );
    let servers = Servers::with_gate(set, transfers);
    println!(
        "| limits.memory | transfers at once | peak RSS MiB | peak anonymous MiB | allowed MiB | RSS / allowed | anonymous / allowed | s |"
    );
    println!("|---|---|---|---|---|---|---|---|");
    let mut lines = Vec::new();
    // At 64 MiB a walk has 16 MiB for its block index: 2.5 million records need 53 and are parked as `repo_too_large`.
    let limits: &[u32] = if is_huge { &[256] } else { &[256, 64] };
    for mebibytes in limits.iter().copied() {
        let settings = [format!("limits.memory={mebibytes}MiB")];
        let run = Run { unknown, ..Run::default() };
        let measured = run.with(&settings).measure(&servers);
        let allowed = f64::from(mebibytes) + BASE_MEBIBYTES;
        let resident = measured.rss_peak_bytes as f64 / MEBIBYTE;
        let anonymous = measured.anonymous_peak_bytes as f64 / MEBIBYTE;
        println!(
            "| {mebibytes} MiB | {} | {resident:.0} | {anonymous:.0} | {allowed:.0} | {:.2} | {:.2} | {:.1} |",
            servers.gate_met(),
            resident / allowed,
            anonymous / allowed,
            measured.seconds
        );
        let line = |name: &str, points: Vec<(f64, f64)>| Line {
            name: format!("{name}, limits.memory = {mebibytes} MiB"),
            points,
        };
        let samples = &measured.samples;
        let resident = samples.iter().map(|it| (it.0, it.1 as f64 / MEBIBYTE)).collect();
        let anonymous = samples.iter().map(|it| (it.0, it.2 as f64 / MEBIBYTE)).collect();
        lines.push(line("resident", resident));
        lines.push(line("anonymous", anonymous));
        lines.push(line("allowed", vec![(0.0, allowed), (measured.seconds, allowed)]));
    }
    let axes = Axes {
        title: "Memory over time, 32 transfers at once",
        x: "seconds",
        y: "MiB",
        is_log_x: false,
    };
    println!("\n{}", plot::write("bench-memory.svg", &axes, &lines).display());
}
