//! `skyfill experiment` against loopback networks: what it measures, what it says bounds the work, and what it does with a run
//! that fails. Figures are checked for being consistent, never for being fast.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]
#![allow(clippy::disallowed_methods)]

mod support;

use std::path::Path;
use std::time::Duration;

use serde_json::Value;
use support::faults::{Fault, Place, Target, Then};
use support::network::Network;
use support::oracle::Options;
use support::proc::{Finished, Signal, Skyfill};
use support::world::{Records, Shape};

const PATIENCE: Duration = Duration::from_secs(200);

fn skyfill() -> Skyfill {
    Skyfill::new(env!("CARGO_BIN_EXE_skyfill"))
}

fn network(seed: u64, accounts: usize, hosts: usize, records: usize) -> Network {
    let shape = Shape { seed, accounts, hosts, records: Records::Fixed(records), odd: true };
    let network = Network::generate(&shape);
    network.warm();
    network
}

/// The command over everything in `network`, each account given twice.
fn words(network: &Network, folder: &Path, host_rate: u32, more: &[&str]) -> Vec<String> {
    let list = folder.join("list.txt");
    let dids = network.world().dids();
    std::fs::write(&list, [dids.clone(), dids].concat().join("\n")).unwrap();
    let out = folder.join("out");
    let rate = format!("fetch.host_requests_per_second={host_rate}");
    let fixed =
        ["experiment", "--dids-file", list.to_str().unwrap(), "--out", out.to_str().unwrap()];
    let settings = [
        "--set",
        &rate,
        "--set",
        "identity.requests_per_second=1000",
        "--set",
        "limits.disk_free=0B",
    ];
    let all = fixed.into_iter().chain(settings).chain(more.iter().copied());
    all.map(str::to_owned).chain(network.flags()).collect()
}

fn result(folder: &Path) -> Value {
    serde_json::from_str(&std::fs::read_to_string(folder.join("out/experiment.json")).unwrap())
        .unwrap()
}

fn runs(result: &Value) -> &Vec<Value> {
    result["runs"].as_array().unwrap()
}

fn check_run(run: &Value, records: u64, accounts: u64) {
    assert_eq!(run["ok"], true, "{run:#}");
    assert_eq!(run["total_records"].as_u64(), Some(records), "{run:#}");
    assert_eq!(run["accounts_done"].as_u64(), Some(accounts));
    let number = |key: &str| run[key].as_f64().unwrap_or_else(|| panic!("{key} in {run:#}"));
    let seconds = number("total_runtime_seconds");
    assert!(seconds > 0.0 && number("work_seconds") <= seconds, "{run:#}");
    let rate = number("total_records") / seconds;
    assert!((number("records_per_second") - rate).abs() <= rate / 100.0);
    assert!(number("cpu_user_seconds") + number("cpu_system_seconds") > 0.0);
    assert!(number("cpu_share") > 0.0 && number("cpu_share") <= 1.2, "{run:#}");
    // A process that did all this holds some megabytes, and its heap is bounded.
    let peak = number("peak_memory_bytes");
    assert!(peak > 4e6 && peak < 1e9, "{peak}");
    assert_eq!(run["requests"]["pds"]["ok"].as_u64(), Some(accounts), "{run:#}");
    let asked = match run["identities"].as_str() {
        Some("cold") => Some(accounts),
        _ => None,
    };
    assert_eq!(run["requests"]["plc"]["ok"].as_u64(), asked, "{run:#}");
    let shares: f64 = run["bound_by"].as_object().unwrap().values().filter_map(Value::as_f64).sum();
    assert!(shares == 0.0 || (shares - 1.0).abs() < 1e-6, "{run:#}");
}

#[test]
fn a_sweep_measures_each_run_and_sets_it_beside_the_serial_one() {
    let network = network(81, 12, 3, 60);
    let folder = tempfile::tempdir().unwrap();
    let more = ["--workers", "1,4", "--parsers", "1,2", "--repeat", "2"];
    let finished =
        skyfill().run(&words(&network, folder.path(), 1_000, &more), PATIENCE).expect_code(0);
    let records = network.expected_counts(&Options::default()).exported_total();
    let found = result(folder.path());
    // (1, 1), (4, 1), (1, 2), (4, 2), each cold and warm, twice.
    assert_eq!(runs(&found).len(), 16);
    runs(&found).iter().for_each(|run| check_run(run, records, 12));
    assert_eq!((&found["total_users"], &found["hosts"]), (&12.into(), &3.into()));
    assert_eq!(found["requests_at_least"].as_u64(), Some(8 * 12 * 3));
    for identities in ["cold", "warm"] {
        let serial = &found["serial"][identities];
        assert_eq!((&serial["workers"], &serial["parsers"]), (&1.into(), &1.into()));
        let parallel = &found["parallel"][identities];
        let ratio = serial["total_runtime_seconds"].as_f64().unwrap()
            / parallel["total_runtime_seconds"].as_f64().unwrap();
        assert!((found["speedup"][identities].as_f64().unwrap() - ratio).abs() < 1e-6);
        let workers = parallel["workers"].as_f64().unwrap();
        assert!((parallel["efficiency"].as_f64().unwrap() - ratio / workers).abs() < 1e-6);
    }
    assert!(found["noise"].as_f64().is_some());
    let asked: usize = network.world().dids().iter().map(|did| network.repo_requests(did)).sum();
    assert_eq!(asked, 16 * 12);
    // What it will ask is said before it asks.
    let (said, first) =
        (finished.stderr.find("288 requests in all"), finished.stderr.find("a run has ended"));
    assert!(said.unwrap() < first.unwrap(), "{}", finished.stderr);
    assert!(finished.stdout.contains("workers parsers"), "{}", finished.stdout);
    assert_eq!(
        finished.stdout.matches(" times as fast as serial").count(),
        2,
        "{}",
        finished.stdout
    );
    let plot = std::fs::read_to_string(folder.path().join("out/experiment.svg")).unwrap();
    assert_eq!(plot.matches("<polyline").count(), 4);
    assert!(!folder.path().join("out/run").exists());
    // The same again, beside the first.
    let earlier = folder.path().join("earlier.json");
    std::fs::rename(folder.path().join("out/experiment.json"), &earlier).unwrap();
    let more =
        ["--workers", "4", "--parsers", "1", "--json", "--compare", earlier.to_str().unwrap()];
    let finished =
        skyfill().run(&words(&network, folder.path(), 999, &more), PATIENCE).expect_code(0);
    let again = finished.json();
    assert_eq!(again, result(folder.path()));
    assert_eq!(runs(&again).len(), 4);
    for run in runs(&again) {
        let like = |it: &&Value| {
            ["workers", "parsers", "identities"].iter().all(|key| it[*key] == run[*key])
        };
        let rates =
            runs(&found).iter().filter(like).filter_map(|it| it["records_per_second"].as_f64());
        let ratio = run["records_per_second"].as_f64().unwrap() / rates.fold(0.0, f64::max);
        assert!((run["against_earlier"].as_f64().unwrap() - ratio).abs() < 1e-6);
    }
    let notes = again["notes"].to_string();
    assert!(notes.contains("another pace") && !notes.contains("other accounts"), "{notes}");
}

#[test]
fn a_paced_host_is_what_bounds_the_work() {
    let network = network(82, 16, 1, 10);
    let folder = tempfile::tempdir().unwrap();
    let more = ["--workers", "8", "--parsers", "1", "--json"];
    let finished =
        skyfill().run(&words(&network, folder.path(), 5, &more), PATIENCE).expect_code(0);
    let found = finished.json();
    for run in runs(&found) {
        // 16 accounts at 5 a second are 3 seconds, whatever the machine does beside.
        assert!(run["work_seconds"].as_f64().unwrap() >= 2.8, "{run:#}");
        assert_eq!(run["bound"], "host_pace", "{run:#}");
        assert!(run["explanation"].as_str().unwrap().contains("host's pace"), "{run:#}");
    }
    assert!(found["speedup"]["cold"].as_f64().unwrap() < 1.5, "{found:#}");
    // The pace of a run is kept: never more than 5 a second and one at its start.
    let most = network.hosts[0].log().most_within(support::pds::GET_REPO, Duration::from_secs(1));
    assert!(most <= 7, "{most} requests within a second");
}

#[test]
fn without_a_pace_no_host_is_said_to_bound_it() {
    let network = network(83, 24, 4, 900);
    let folder = tempfile::tempdir().unwrap();
    // Neither pace nor places of a host can be what is waited for.
    let more = ["--workers", "8", "--json", "--set", "fetch.host_concurrency=32"];
    let finished =
        skyfill().run(&words(&network, folder.path(), 1_000, &more), PATIENCE).expect_code(0);
    for run in runs(&finished.json()) {
        let (bound, why) = (run["bound"].as_str().unwrap(), run["explanation"].as_str().unwrap());
        assert!(bound != "host_pace" && !bound.is_empty(), "{run:#}");
        assert!(why.len() > 20 && !why.contains("requests_per_second"), "{run:#}");
    }
}

/// Children of process `pid`.
fn children(pid: i32) -> Vec<i32> {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    let lists = tasks
        .flatten()
        .filter_map(|task| std::fs::read_to_string(task.path().join("children")).ok());
    lists
        .flat_map(|list| {
            list.split_ascii_whitespace().map(|it| it.parse().unwrap()).collect::<Vec<i32>>()
        })
        .collect()
}

#[test]
fn a_run_that_fails_is_shown_as_failed_and_the_others_are_made() {
    let network = network(84, 8, 1, 10);
    let folder = tempfile::tempdir().unwrap();
    let words = words(&network, folder.path(), 10, &["--workers", "1,2", "--parsers", "1"]);
    let child = skyfill().spawn(&words);
    let is_asked = |entries: &[support::server::Entry]| !entries.is_empty();
    assert!(network.hosts[0].log().wait(PATIENCE, is_asked), "{}", child.stderr());
    // Somebody kills the first run, which has most of a second to go.
    let [run] = children(child.pid())[..] else { panic!("{:?}", children(child.pid())) };
    let run = rustix::process::Pid::from_raw(run).unwrap();
    rustix::process::kill_process(run, Signal::KILL).unwrap();
    let finished = child.finish(PATIENCE).expect_code(1);
    let found = result(folder.path());
    let seen: Vec<(bool, i64)> = runs(&found)
        .iter()
        .map(|it| (it["ok"] == true, it["exit_code"].as_i64().unwrap()))
        .collect();
    assert_eq!(seen, [(false, 137), (false, -1), (true, 0), (true, 0)], "{found:#}");
    let why = runs(&found)[1]["error"].as_str().unwrap();
    assert!(why.contains("no cold run has found the identities"), "{why}");
    assert!(
        finished.stdout.contains("failed (137)") && finished.stdout.contains(why),
        "{}",
        finished.stdout
    );
    // Without a serial run there is nothing to be faster than.
    assert!(found["speedup"].as_object().unwrap().is_empty(), "{found:#}");
}

#[test]
fn accounts_that_cannot_be_had_are_no_failure_and_are_told() {
    let network = network(87, 4, 1, 10);
    let folder = tempfile::tempdir().unwrap();
    let target = Target::Did(network.world().did(2).to_owned());
    network.faults().script(Place::Repo, target, [Fault::Error("RepoNotFound")], Then::Repeat);
    let words = words(&network, folder.path(), 1_000, &["--workers", "1", "--parsers", "1"]);
    let finished = skyfill().run(&words, PATIENCE).expect_code(0);
    network.faults().assert_fired(&["RepoNotFound"]);
    for run in runs(&result(folder.path())) {
        assert_eq!((&run["ok"], &run["exit_code"]), (&true.into(), &3.into()), "{run:#}");
        assert_eq!(
            (&run["accounts_done"], &run["accounts_parked"]),
            (&3.into(), &1.into()),
            "{run:#}"
        );
    }
    assert_eq!(finished.stdout.matches("1 parked").count(), 2, "{}", finished.stdout);
}

#[test]
fn what_is_no_experiment_is_refused_before_anybody_is_asked() {
    let network = network(85, 2, 1, 1);
    let folder = tempfile::tempdir().unwrap();
    let run = |more: &[&str]| skyfill().run(&words(&network, folder.path(), 1_000, more), PATIENCE);
    let text = folder.path().join("text.json");
    std::fs::write(&text, "no json").unwrap();
    run(&["--compare", text.to_str().unwrap()]).expect_code(2);
    run(&["--compare", "/nowhere.json"]).expect_code(74);
    run(&["--workers", "0"]).expect_code(2);
    run(&["--set", "limits.memory=1MiB"]).expect_code(78);
    let asked: usize = network.world().dids().iter().map(|did| network.repo_requests(did)).sum();
    assert_eq!((asked, network.plc.log().len()), (0, 0));
    let help = skyfill().run(&["experiment", "--help"], PATIENCE).expect_code(0);
    assert!(help.stdout.contains("--workers") && !help.stdout.contains("--one"), "{}", help.stdout);
    let man = skyfill().run(&["man"], PATIENCE).expect_code(0);
    assert!(man.stdout.contains("EXPERIMENT"), "{}", man.stdout);
}

#[test]
fn stopped_it_keeps_what_it_has() {
    let network = network(86, 10, 1, 10);
    let folder = tempfile::tempdir().unwrap();
    let child = skyfill().spawn(&words(&network, folder.path(), 10, &["--workers", "1,2"]));
    assert!(child.wait_for("a run has ended", PATIENCE), "{}", child.stderr());
    assert!(child.signal(Signal::TERM));
    let finished: Finished = child.finish(PATIENCE).expect_code(130);
    let found = result(folder.path());
    assert_eq!(found["interrupted"], true);
    assert!(!runs(&found).is_empty() && runs(&found)[0]["ok"] == true, "{found:#}");
    assert!(finished.stdout.contains("workers parsers"));
    assert!(!folder.path().join("out/run").exists());
}
