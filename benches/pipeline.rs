//! The whole pipeline over loopback HTTP: the real binary as a child, prepared and really signed repositories from servers in
//! this process. Prints records per CPU-second (user + system, as the kernel counts the child), per second, and peak memory.
//!
//! `cargo bench --bench pipeline [-- ACCOUNTS RECORDS [KEY=VALUE ...]]`, 500 accounts of 2,000 records without arguments; the
//! rest are settings of the run.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::cast_precision_loss,
    clippy::disallowed_methods
)]

#[path = "../tests/support/mod.rs"]
mod support;

use std::time::Duration;

use support::network::Network;
use support::proc::Skyfill;
use support::world::{Records, Shape};

const RUNS: usize = 3;

fn main() {
    let numbers: Vec<usize> = std::env::args().filter_map(|text| text.parse().ok()).collect();
    let accounts = numbers.first().copied().unwrap_or(500);
    let records = numbers.get(1).copied().unwrap_or(2_000);
    let shape = Shape { seed: 5, accounts, hosts: 8, records: Records::Fixed(records), odd: false };
    let network = Network::generate(&shape);
    let bytes: u64 = (0..accounts).map(|index| network.car_bytes(index)).sum();
    println!("{accounts} accounts of {records} records, {} MiB of CAR", bytes >> 20);
    println!("| run | records | cpu s | records/cpu s | wall s | records/s | anonymous peak MiB |");
    println!("|---|---|---|---|---|---|---|");
    for run in 1..=RUNS {
        let folder = tempfile::tempdir().unwrap();
        let list = folder.path().join("dids.txt");
        std::fs::write(&list, network.world().dids().join("\n")).unwrap();
        let data = folder.path().join("data");
        let fixed = [
            "backfill",
            "--json",
            "--quiet",
            "--set",
            "fetch.host_requests_per_second=10000",
            "--set",
            "fetch.host_concurrency=32",
            "--set",
            "identity.requests_per_second=10000",
            "--set",
            "limits.disk_free=64MiB",
            "--data-dir",
            data.to_str().unwrap(),
            "--dids-file",
            list.to_str().unwrap(),
        ];
        let mut flags: Vec<String> =
            fixed.into_iter().map(str::to_owned).chain(network.flags()).collect();
        for setting in std::env::args().filter(|text| text.contains('=')) {
            flags.extend(["--set".to_owned(), setting]);
        }
        let binary = Skyfill::new(env!("CARGO_BIN_EXE_skyfill"));
        let finished = binary.run(&flags, Duration::from_secs(600)).expect_code(0);
        let exported = finished.json()["this_run"]["records"].as_u64().unwrap();
        let (cpu, wall) = (finished.usage.cpu_seconds(), finished.seconds);
        println!(
            "| {run} | {exported} | {cpu:.2} | {:.0} | {wall:.2} | {:.0} | {} |",
            exported as f64 / cpu,
            exported as f64 / wall,
            finished.usage.anonymous_peak_bytes >> 20
        );
    }
}
