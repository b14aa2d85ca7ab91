//! The main job with the real binary against a generated network: every record of every account, row for row, in the queues.
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
use std::time::Duration;

use serde_json::Value;
use support::judge::judge;
use support::network::{Network, Standing};
use support::oracle::Options;
use support::proc::{Finished, Skyfill};
use support::world::{Records, Shape};

const PATIENCE: Duration = Duration::from_secs(120);

fn skyfill() -> Skyfill {
    Skyfill::new(env!("CARGO_BIN_EXE_skyfill"))
}

/// Flags of a run over `dids` that does not wait for the default pace.
fn flags(network: &Network, data: &Path, dids: &[String]) -> Vec<String> {
    let fixed = [
        "backfill",
        "--json",
        "--set",
        "fetch.host_requests_per_second=1000",
        "--set",
        "identity.requests_per_second=1000",
        "--set",
        "limits.disk_free=0B",
        "--data-dir",
        data.to_str().unwrap(),
        "--dids",
        &dids.join(","),
    ];
    fixed.into_iter().map(str::to_owned).chain(network.flags()).collect()
}

fn run(network: &Network, data: &Path, more: &[&str]) -> Finished {
    let mut flags = flags(network, data, &network.world().dids());
    flags.extend(more.iter().map(|flag| (*flag).to_owned()));
    skyfill().run(&flags, PATIENCE)
}

fn number(value: &Value, path: &str) -> u64 {
    value.pointer(path).and_then(Value::as_u64).unwrap_or_else(|| panic!("{path} in {value}"))
}

#[test]
fn every_record_of_every_account_arrives_once_and_a_second_run_adds_nothing() {
    let shape = Shape {
        seed: 11,
        accounts: 40,
        hosts: 4,
        records: Records::Mixed { mean: 300 },
        odd: true,
    };
    let network = Network::generate(&shape);
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let options = Options::default();
    let first = run(&network, &data, &[]).expect_code(0);
    let summary = first.json();
    let verdict = judge(&data, network.expected(), &options);
    verdict.assert_clean();
    let counts = network.expected_counts(&options);
    assert_eq!(number(&summary, "/accounts/done"), 40);
    assert_eq!(number(&summary, "/this_run/records"), counts.exported_total());
    for (label, count) in &counts.exported {
        assert_eq!(number(&summary, &format!("/records/{label}")), *count, "{label}");
    }
    for (reason, count) in &counts.rejected {
        assert_eq!(number(&summary, &format!("/rejected/{reason}")), *count, "{reason}");
    }
    for (reason, count) in &counts.skipped {
        assert_eq!(number(&summary, &format!("/skipped/{reason}")), *count, "{reason}");
    }
    let second = run(&network, &data, &[]).expect_code(0).json();
    assert_eq!(number(&second, "/this_run/done"), 0);
    assert_eq!(second["records"], summary["records"]);
    judge(&data, network.expected(), &options).assert_clean();
    let data_dir = data.to_str().unwrap();
    skyfill().run(&["verify", "--data-dir", data_dir], PATIENCE).expect_code(0);
    println!("{verdict:?}");
}

#[test]
fn accounts_that_cannot_be_had_are_parked_by_name_and_the_others_finish() {
    let shape = Shape { seed: 12, accounts: 12, hosts: 2, records: Records::Fixed(50), odd: false };
    let network = Network::generate(&shape);
    let standings = [
        (1, Standing::Deactivated, "repo_deactivated"),
        (2, Standing::TakenDown, "repo_taken_down"),
        (3, Standing::Suspended, "repo_suspended"),
        (4, Standing::Deleted, "repo_not_found"),
        (5, Standing::Tombstoned, "did_tombstoned"),
        (6, Standing::Unregistered, "did_not_found"),
    ];
    for (index, standing, _) in standings {
        network.set_standing(index, standing);
    }
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let mut dids = network.world().dids();
    dids.push("did:plc:TOO-SHORT".to_owned());
    let finished = skyfill().run(&flags(&network, &data, &dids), PATIENCE).expect_code(3);
    let summary = finished.json();
    let parked = summary["parked"].as_array().unwrap();
    let reason_of = |did: &str| {
        let entry = parked.iter().find(|entry| entry["did"] == did);
        entry.map(|entry| entry["reason"].as_str().unwrap().to_owned()).unwrap_or_default()
    };
    for (index, _, reason) in standings {
        assert_eq!(reason_of(network.world().did(index)), reason);
    }
    assert_eq!(reason_of("did:plc:TOO-SHORT"), "did_invalid");
    assert_eq!((parked.len(), number(&summary, "/accounts/done")), (7, 6));
    assert_eq!(number(&summary, "/status_code"), 207);
    judge(&data, network.expected(), &Options::default()).assert_clean();
}
