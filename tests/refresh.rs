//! Refresh: done accounts are compared with what their hosts have now. What is new or changed comes into the queues, what is gone
//! into the queue of deletions, each once, however often the process dies; what could not be had changes nothing.
//!
//! What must come is worked out here from the world's accounts and the oracle alone: the rows of the first revision, then of each
//! later one the rows of the leaves that the one before did not have, and a deletion for each URI that was exported and is not any more.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::disallowed_methods
)]

mod support;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use fastrand::Rng;
use serde_json::{Value, json};
use support::faults::{Fault, Place, Target, Then};
use support::job::{backfill, in_parallel, number_from};
use support::judge::{queue_path, queue_records};
use support::network::{Network, Standing};
use support::oracle::{DETAIL, Options, Outcome, REJECTED, outcome};
use support::pds::Manners;
use support::proc::{Finished, Running, Signal, Skyfill};
use support::time::stamp;
use support::world::{Records, Shape, World, WorldAccount};

const PATIENCE: Duration = Duration::from_secs(100);
const DELETED: &str = "deleted";
const GET_LATEST: &str = "com.atproto.sync.getLatestCommit";

fn skyfill() -> Skyfill {
    Skyfill::new(env!("CARGO_BIN_EXE_skyfill"))
}

/// A network, and the command over all of its accounts.
struct Scene {
    network: Network,
    folder: tempfile::TempDir,
    more: Vec<String>,
}

impl Scene {
    fn new(shape: &Shape, more: &[&str]) -> Self {
        let network = Network::generate(shape);
        network.warm();
        let more = more.iter().map(|text| (*text).to_owned()).collect();
        Self { network, folder: tempfile::tempdir().unwrap(), more }
    }

    fn data(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn world(&self) -> &World {
        self.network.world()
    }

    fn arguments(&self, data: &Path, more: &[&str]) -> Vec<String> {
        let dids = self.world().dids().join(",");
        let mut arguments = backfill(data, ["--dids", &dids], &self.network, &self.more);
        arguments.extend(more.iter().map(|text| (*text).to_owned()));
        arguments
    }

    fn run(&self, data: &Path, more: &[&str]) -> Finished {
        skyfill().run(&self.arguments(data, more), PATIENCE)
    }

    /// Everything that was ever to come into the queues, when the accounts had these revisions one after the other.
    fn demanded(&self, histories: &[Vec<u64>]) -> Rows {
        let mut rows = Rows::default();
        for (index, history) in histories.iter().enumerate() {
            let mut before: Option<WorldAccount> = None;
            for revision in history {
                let account = self.world().account_at(index, *revision);
                rows.demand(before.as_ref(), &account);
                before = Some(account);
            }
        }
        rows
    }

    /// The queues hold exactly that, and agree with the ledger.
    #[track_caller]
    fn assert_holds(&self, data: &Path, demanded: &Rows) {
        let found = Rows::found(data);
        let differences = demanded.differences(&found);
        assert!(
            differences.is_empty(),
            "{} differences, such as {:#?}",
            differences.len(),
            &differences[..differences.len().min(6)]
        );
        let text = data.to_str().unwrap();
        skyfill().run(&["verify", "--data-dir", text], PATIENCE).expect_code(0);
    }
}

/// Rows by their queue and text, and how often.
#[derive(Clone, Debug, Default, PartialEq)]
struct Rows(BTreeMap<(String, String), u32>);

impl Rows {
    fn add(&mut self, label: &str, row: &Value) {
        *self.0.entry((label.to_owned(), row.to_string())).or_default() += 1;
    }

    fn demand(&mut self, before: Option<&WorldAccount>, account: &WorldAccount) {
        let options = Options::default();
        let then = before.map(|before| leaves(before, &options)).unwrap_or_default();
        let now = leaves(account, &options);
        for (key, (cid, label, row)) in &now {
            let is_same = |(had, queue, _): &(String, String, Value)| had == cid && queue == label;
            if !then.get(key).is_some_and(is_same) {
                self.add(label, row);
            }
        }
        let Some(before) = before else { return };
        let is_exported = |leaf: Option<&(String, String, Value)>| {
            leaf.is_some_and(|(_, label, _)| label != REJECTED)
        };
        for (key, (_, label, _)) in then.iter().filter(|(_, leaf)| is_exported(Some(leaf))) {
            if !is_exported(now.get(key)) {
                let deletion = json!({
                    "record_type": label,
                    "did": account.did,
                    "uri": format!("at://{}/{key}", account.did),
                    "rev": account.rev,
                    "previous_rev": before.rev,
                    "synctimestamp": time_of(&account.rev),
                });
                self.add(DELETED, &deletion);
            }
        }
    }

    fn found(data: &Path) -> Self {
        let mut rows = Self::default();
        for label in Options::default().labels().iter().map(String::as_str).chain([DELETED]) {
            if !queue_path(data, label).exists() {
                continue;
            }
            for mut row in queue_records(data, label) {
                if label == REJECTED {
                    row["detail"] = json!(DETAIL);
                }
                rows.add(label, &row);
            }
        }
        rows
    }

    fn differences(&self, found: &Self) -> Vec<String> {
        let keys = self.0.keys().chain(found.0.keys().filter(|key| !self.0.contains_key(key)));
        let of = |rows: &Self, key: &(String, String)| rows.0.get(key).copied().unwrap_or(0);
        let differs = |key: &&(String, String)| of(self, key) != of(found, key);
        keys.filter(differs)
            .map(|key| format!("{} not {}: {} {}", of(found, key), of(self, key), key.0, key.1))
            .collect()
    }

    fn count(&self, of: impl Fn(&str) -> bool) -> u64 {
        self.0.iter().filter(|((label, _), _)| of(label)).map(|(_, times)| u64::from(*times)).sum()
    }
}

/// The leaves of an account with a row: CID, label and row by key.
fn leaves(account: &WorldAccount, options: &Options) -> BTreeMap<String, (String, String, Value)> {
    let rows = account.records.iter().filter_map(|record| {
        let (label, row) = match outcome(account, record, options) {
            Outcome::Exported(label, row) => (label, row),
            Outcome::Rejected(_, row) => (REJECTED.to_owned(), row),
            Outcome::Skipped(_) => return None,
        };
        Some((record.key.clone(), (record.cid().to_string(), label, row)))
    });
    rows.collect()
}

/// The second that a TID names, as readers write it.
fn time_of(tid: &str) -> String {
    let digits = "234567abcdefghijklmnopqrstuvwxyz";
    let number =
        tid.chars().fold(0_u64, |number, digit| number << 5 | digits.find(digit).unwrap() as u64);
    stamp(i64::try_from((number >> 10) / 1_000_000).unwrap())
}

fn number(value: &Value, path: &str) -> u64 {
    value.pointer(path).and_then(Value::as_u64).unwrap_or_else(|| panic!("{path} in {value}"))
}

#[test]
fn what_differs_comes_once_and_a_refresh_of_nothing_new_asks_one_question_an_account() {
    let shape = Shape {
        seed: 71,
        accounts: 30,
        hosts: 3,
        records: Records::Mixed { mean: 120 },
        odd: true,
    };
    let scene = Scene::new(&shape, &[]);
    let data = scene.data("data");
    scene.run(&data, &[]).expect_code(0);
    assert!(!queue_path(&data, DELETED).exists(), "nobody asked for it yet");
    let mut histories = vec![vec![0]; shape.accounts];
    scene.assert_holds(&data, &scene.demanded(&histories));
    let mut rng = Rng::with_seed(5);
    let mut before = scene.demanded(&histories);
    for round in 0..4 {
        // Some write nothing, some once, some so much that hardly anything is left as it was.
        let mut changed = 0;
        for (index, history) in histories.iter_mut().enumerate() {
            let steps = [0, 0, 1, 7, 90][rng.usize(..5)];
            (0..steps).for_each(|_| {
                scene.network.advance(index);
            });
            if steps > 0 {
                history.push(scene.network.now(index).revision);
                changed += 1;
            }
        }
        let asked: usize =
            scene.world().dids().iter().map(|did| scene.network.repo_requests(did)).sum();
        let summary = scene.run(&data, &["--refresh"]).expect_code(0).json();
        let demanded = scene.demanded(&histories);
        scene.assert_holds(&data, &demanded);
        let more = |of: &dyn Fn(&str) -> bool| demanded.count(of) - before.count(of);
        assert_eq!(number(&summary, "/refresh/changed"), changed, "round {round}: {summary}");
        assert_eq!(number(&summary, "/refresh/unchanged"), 30 - changed);
        assert_eq!(number(&summary, "/refresh/deleted"), more(&|label| label == DELETED));
        let is_record = |label: &str| label != DELETED && label != REJECTED;
        assert_eq!(number(&summary, "/refresh/records"), more(&is_record));
        assert_eq!(number(&summary, "/accounts/done"), 30);
        let asked_now: usize =
            scene.world().dids().iter().map(|did| scene.network.repo_requests(did)).sum();
        assert_eq!((asked_now - asked) as u64, changed, "only what is newer is fetched");
        let counts = scene.network.expected_counts(&Options::default());
        assert_eq!(summary["users"].as_array().unwrap().len(), 30);
        for (label, count) in &counts.exported {
            assert_eq!(
                number(&summary, &format!("/records/{label}")),
                *count,
                "the newest revision's"
            );
        }
        before = demanded;
    }
    assert!(before.count(|label| label == DELETED) > 300, "hardly anything was deleted");
    let text = data.to_str().unwrap();
    let list = ["queue", "export", "--type", DELETED, "--data-dir", text];
    let lines = skyfill().run(&list, PATIENCE).expect_code(0).stdout.lines().count();
    assert_eq!(lines as u64, before.count(|label| label == DELETED));
    let ack = ["queue", "ack", "--type", DELETED, "--status", "pending", "--data-dir", text];
    skyfill().run(&ack, PATIENCE).expect_code(0);
    println!(
        "{} rows, {} of them deletions",
        before.count(|_| true),
        before.count(|label| label == DELETED)
    );
}

#[test]
fn what_lay_behind_everything_that_is_left_is_told_as_gone_too() {
    let shape = Shape { seed: 79, accounts: 80, hosts: 2, records: Records::Fixed(1), odd: false };
    let scene = Scene::new(&shape, &[]);
    let data = scene.data("data");
    scene.run(&data, &[]).expect_code(0);
    let last = |index: usize, revision: u64| {
        let account = scene.world().account_at(index, revision);
        leaves(&account, &Options::default()).into_keys().next_back()
    };
    // Each loses its only record, and writes five others.
    let mut behind = 0;
    for index in 0..80 {
        scene.network.advance(index);
        behind += usize::from(last(index, 0) > last(index, 1));
    }
    assert!(behind >= 3, "in {behind} accounts only");
    scene.run(&data, &["--refresh"]).expect_code(0);
    scene.assert_holds(&data, &scene.demanded(&vec![vec![0, 1]; 80]));
}

#[test]
fn what_cannot_be_had_changes_nothing_and_is_named() {
    let shape = Shape { seed: 72, accounts: 9, hosts: 3, records: Records::Fixed(40), odd: true };
    let scene = Scene::new(&shape, &["--set", "retry.base=10ms", "--set", "retry.max=20ms"]);
    let data = scene.data("data");
    (0..9).for_each(|index| scene.network.set_revision(index, 3));
    scene.run(&data, &[]).expect_code(0);
    let first = scene.demanded(&vec![vec![3]; 9]);
    (0..9).for_each(|index| {
        scene.network.advance(index);
    });
    // An older revision than before, and accounts that their hosts withhold or have no more.
    scene.network.set_revision(0, 1);
    let standings =
        [Standing::TakenDown, Standing::Deactivated, Standing::Deleted, Standing::Tombstoned];
    for (index, standing) in (1..).zip(standings) {
        scene.network.set_standing(index, standing);
    }
    // One whose host talks nonsense, one whose new revision is not signed by its owner, and one that breaks off once.
    let did = |index: usize| scene.world().did(index).to_owned();
    let faults = scene.network.faults();
    faults.script(Place::Status, Target::Did(did(5)), [Fault::HtmlOk], Then::Repeat);
    faults.script(Place::Repo, Target::Did(did(6)), [Fault::BadSignature], Then::Repeat);
    faults.once(&did(7), Fault::Cut(support::faults::At::Middle));
    let summary = scene.run(&data, &["--refresh"]).expect_code(0).json();
    faults.assert_fired(&["html_ok", "bad_signature", "cut"]);
    let reasons: BTreeMap<&str, &str> = summary["not_refreshed"]
        .as_array()
        .unwrap()
        .iter()
        .map(|it| (it["did"].as_str().unwrap(), it["reason"].as_str().unwrap()))
        .collect();
    let wanted = [
        (0, "repo_stale"),
        (1, "repo_taken_down"),
        (2, "repo_deactivated"),
        (3, "repo_not_found"),
        (5, "attempts_exhausted"),
        (6, "repo_invalid"),
    ];
    for (index, reason) in wanted {
        assert_eq!(reasons.get(did(index).as_str()), Some(&reason), "{index}: {summary}");
    }
    // Its host still serves the tombstoned one, and its identity was young enough not to be asked for again; or it is gone too.
    assert_eq!(number(&summary, "/refresh/failed"), reasons.len() as u64);
    assert_eq!((number(&summary, "/accounts/done"), number(&summary, "/accounts/parked")), (9, 0));
    let fresh: Vec<usize> =
        (0..9).filter(|index| !reasons.contains_key(did(*index).as_str())).collect();
    let histories: Vec<Vec<u64>> =
        (0..9).map(|index| if fresh.contains(&index) { vec![3, 4] } else { vec![3] }).collect();
    assert!(fresh.contains(&7) && fresh.contains(&8), "{fresh:?}");
    scene.assert_holds(&data, &scene.demanded(&histories));
    assert_ne!(scene.demanded(&histories), first);
    let status = ["status", &did(0), "--json", "--data-dir", data.to_str().unwrap()];
    let status = skyfill().run(&status, PATIENCE).expect_code(0).json();
    assert_eq!(
        (&status["state"], &status["refresh_failed"]),
        (&json!("done"), &json!("repo_stale"))
    );
    let (found, held) = (scene.world().rev(0, 1), scene.world().rev(0, 3));
    let detail = status["detail"].as_str().unwrap();
    assert!(detail.contains(&found) && detail.contains(&held), "{status}");
    assert_eq!(status["rev"], json!(held));
    // When its host has caught up, nothing of what it held back is missing.
    scene.network.set_revision(0, 9);
    let summary = scene.run(&data, &["--refresh"]).expect_code(0).json();
    assert!(
        summary["not_refreshed"].as_array().unwrap().iter().all(|it| it["did"] != json!(did(0)))
    );
    let mut histories = histories;
    histories[0].push(9);
    scene.assert_holds(&data, &scene.demanded(&histories));
}

#[test]
fn accounts_without_leaves_are_refused_and_can_be_exported_again() {
    let shape = Shape { seed: 73, accounts: 4, hosts: 1, records: Records::Fixed(30), odd: true };
    let scene = Scene::new(&shape, &[]);
    let data = scene.data("data");
    scene.run(&data, &["--set", "refresh.leaves=false"]).expect_code(0);
    (0..4).for_each(|index| {
        scene.network.advance(index);
    });
    let refused = scene.run(&data, &["--refresh"]).expect_code(78);
    for word in ["4 of these accounts", "without leaves", "--refilter"] {
        assert!(refused.stderr.contains(word), "{}", refused.stderr);
    }
    scene.assert_holds(&data, &scene.demanded(&vec![vec![0]; 4]));
    let summary = scene.run(&data, &["--refresh", "--refilter"]).expect_code(0).json();
    assert_eq!(number(&summary, "/this_run/done"), 4);
    let mut twice = scene.demanded(&vec![vec![0]; 4]);
    for account in scene.network.expected() {
        twice.demand(None, &account);
    }
    scene.assert_holds(&data, &twice);
    // From now on they can be refreshed.
    let summary = scene.run(&data, &["--refresh"]).expect_code(0).json();
    assert_eq!(number(&summary, "/refresh/unchanged"), 4);
    // Should the leaves get lost, that is said, and nothing is guessed.
    for name in ["leaves.db", "leaves.db-wal", "leaves.db-shm"] {
        let _not_there = std::fs::remove_file(data.join(name));
    }
    (0..3).for_each(|index| {
        scene.network.advance(index);
    });
    let finished = scene.run(&data, &["--refresh"]).expect_code(0);
    assert!(finished.stderr.contains("the leaves file is gone"), "{}", finished.stderr);
    let summary = finished.json();
    assert_eq!(number(&summary, "/refresh/without_leaves"), 3);
    assert_eq!(number(&summary, "/refresh/unchanged"), 1);
    assert_eq!(Rows::found(&data), twice);
}

#[test]
fn a_refilter_exports_again_what_has_another_filter_and_of_that_only_what_was_given() {
    let shape = Shape { seed: 74, accounts: 6, hosts: 1, records: Records::Fixed(30), odd: false };
    let scene = Scene::new(&shape, &[]);
    let data = scene.data("data");
    let types = |types: &str| vec!["--types".to_owned(), types.to_owned()];
    let run = |dids: &[usize], more: &[String]| {
        let dids: Vec<&str> = dids.iter().map(|index| scene.world().did(*index)).collect();
        let arguments = backfill(&data, ["--dids", &dids.join(",")], &scene.network, more);
        skyfill().run(&arguments, PATIENCE)
    };
    run(&[0, 1, 2], &types("like")).expect_code(0);
    run(&[3, 4, 5], &types("post")).expect_code(0);
    let refused = run(&[0, 3], &types("post")).expect_code(78);
    assert!(refused.stderr.contains("1 of these accounts"), "{}", refused.stderr);
    let with = |flag: &str| [types("post"), vec![flag.to_owned()]].concat();
    let summary = run(&[0, 3, 4], &with("--refilter")).expect_code(0).json();
    assert_eq!(number(&summary, "/this_run/done"), 1, "the one with the other filter");
    // Of the others that have it nothing was exported again.
    let requests: Vec<usize> =
        (0..6).map(|index| scene.network.repo_requests(scene.world().did(index))).collect();
    assert_eq!(requests, [2, 1, 1, 1, 1, 1]);
    let posts = |index: usize| {
        let did = scene.world().did(index);
        queue_records(&data, "post").iter().filter(|row| row["did"] == did).count()
    };
    assert!(posts(0) > 0 && posts(1) == 0 && posts(2) == 0);
    let summary = run(&[0, 3, 4], &with("--refilter")).expect_code(0).json();
    assert_eq!(number(&summary, "/this_run/done"), 0, "a second time there is nothing to do");
    // A refresh under another filter is refused too; after the refilter it compares with what that brought.
    run(&[1], &with("--refresh")).expect_code(78);
    scene.network.advance(0);
    let summary = run(&[0, 3], &with("--refresh")).expect_code(0).json();
    assert_eq!(
        (number(&summary, "/refresh/changed"), number(&summary, "/refresh/unchanged")),
        (1, 1)
    );
    let gone = queue_records(&data, DELETED);
    assert!(gone.iter().all(|row| row["record_type"] == "post"), "{gone:?}");
}

/// Copies a data directory that nobody uses.
fn copy(from: &Path, to: &Path) {
    std::fs::create_dir(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let (path, target) = (entry.as_ref().unwrap().path(), to.join(entry.unwrap().file_name()));
        if path.is_dir() {
            copy(&path, &target);
        } else {
            std::fs::copy(&path, &target).unwrap();
        }
    }
}

/// A scene whose accounts were exported at their first revision into `exported`, and have then been written to.
fn advanced(shape: &Shape, more: &[&str]) -> (Scene, PathBuf, Rows) {
    let scene = Scene::new(shape, more);
    let exported = scene.data("exported");
    scene.run(&exported, &[]).expect_code(0);
    let mut histories = vec![vec![0]; shape.accounts];
    for (index, history) in histories.iter_mut().enumerate() {
        let steps = [5, 2, 0, 9][index % 4];
        (0..steps).for_each(|_| {
            scene.network.advance(index);
        });
        history.extend((steps > 0).then(|| scene.network.now(index).revision));
    }
    scene.network.warm();
    let demanded = scene.demanded(&histories);
    (scene, exported, demanded)
}

/// Boundaries that a refresh passes, each at its first and a later passage.
const POINTS: [&str; 18] = [
    "RefreshMarkedBeforeWork:1",
    "RecoveredBeforeLists:1",
    "AccountAppendedBeforeSeal:1",
    "AccountAppendedBeforeSeal:3",
    "PartWrittenBeforeSync:2",
    "PartSyncedBeforeRename:1",
    "SegmentRenamedBeforeFolderSync:2",
    "SegmentSealedBeforeApply:1",
    "SegmentSealedBeforeApply:4",
    "LeavesCommitted:1",
    "LeavesCommitted:3",
    "LeavesSettledBeforeOthers:1",
    "QueueCommitted:1",
    "QueueCommitted:7",
    "QueueSettledBeforeOthers:2",
    "SinkAppliedBeforeLedger:1",
    "SegmentAppliedBeforeSettle:2",
    "SettledBeforeForget:1",
];

#[test]
fn a_crash_at_every_boundary_of_a_refresh_loses_nothing_and_doubles_nothing() {
    if cfg!(not(debug_assertions)) {
        println!("release builds have no crash points");
        return;
    }
    let shape = Shape { seed: 75, accounts: 8, hosts: 1, records: Records::Fixed(60), odd: true };
    let (scene, exported, demanded) = advanced(&shape, &["--batch-size", "1"]);
    // Far enough apart for segments of their own.
    let slow = Fault::SlowHeaders(Duration::from_millis(300));
    scene.network.faults().script(Place::Repo, Target::Any, [slow], Then::Repeat);
    in_parallel(&POINTS, 6, |point| {
        let data = scene.data(&point.replace(':', "-"));
        copy(&exported, &data);
        let arguments = scene.arguments(&data, &["--refresh"]);
        let crashed = skyfill().env("SKYFILL_CRASH_AT", point).run(&arguments, PATIENCE);
        assert_eq!(crashed.signal, Some(6), "{point} never fired: {crashed:#?}");
        // Whoever forgets the flag goes on with what was begun, and refreshes nothing else.
        if point.ends_with(":1") {
            scene.run(&data, &[]).expect_code(0);
        }
        scene.run(&data, &["--refresh"]).expect_code(0);
        scene.assert_holds(&data, &demanded);
    });
    scene.network.faults().assert_fired(&["slow_headers"]);
    println!(
        "{} crashes: {} rows, none lost, none doubled",
        POINTS.len(),
        demanded.count(|_| true)
    );
}

#[test]
fn random_kills_in_a_refresh_lose_nothing_and_double_nothing() {
    let seed = number_from("SKYFILL_SEED", 7);
    let wanted = usize::try_from(number_from("SKYFILL_KILLS", 24)).unwrap();
    let shape =
        Shape { seed: 76, accounts: 60, hosts: 4, records: Records::Mixed { mean: 80 }, odd: true };
    let (scene, exported, demanded) = advanced(&shape, &[]);
    for host in &scene.network.hosts {
        let (chunk_bytes, bytes_per_second) = (4 << 10, Some(400_000));
        host.set_manners(Manners { chunk_bytes, bytes_per_second, ..Manners::default() });
    }
    let begun = Instant::now();
    let whole = scene.data("whole");
    copy(&exported, &whole);
    scene.run(&whole, &["--refresh"]).expect_code(0);
    scene.assert_holds(&whole, &demanded);
    let span = begun.elapsed();
    let (directories, killed) = (wanted.div_ceil(3), std::sync::atomic::AtomicUsize::new(0));
    let numbers: Vec<usize> = (0..directories).collect();
    in_parallel(&numbers, 3, |number| {
        let mut rng = Rng::with_seed(seed * 1_000 + *number as u64);
        let data = scene.data(&format!("killed-{number}"));
        copy(&exported, &data);
        for _ in 0..3 {
            let running = skyfill().spawn(&scene.arguments(&data, &["--refresh"]));
            if running.wait(span.mul_f64(rng.f64() * 0.9)).is_some() || !running.kill() {
                break;
            }
            let ended = running.wait(PATIENCE).expect("nothing survives SIGKILL");
            killed.fetch_add(
                usize::from(ended.signal == Some(9)),
                std::sync::atomic::Ordering::AcqRel,
            );
        }
        let finished = scene.run(&data, &["--refresh"]).expect_code(0);
        assert_eq!(finished.json()["not_refreshed"], json!([]), "SKYFILL_SEED={seed}");
        scene.assert_holds(&data, &demanded);
        std::fs::remove_dir_all(&data).unwrap();
    });
    let killed = killed.into_inner();
    assert!(killed * 2 > wanted, "only {killed} kills met a process that ran");
    println!(
        "{killed} kills over {directories} directories: {} rows, none lost, none doubled; seed {seed}",
        demanded.count(|_| true)
    );
}

/// A daemon over a scene's accounts, by a configuration that can be changed.
struct Daemon {
    config: PathBuf,
    base: String,
}

impl Daemon {
    fn new(scene: &Scene, data: &Path) -> Self {
        let base = format!(
            "data_dir = {data:?}\nsource.dids = {:?}\nidentity.plc_url = {:?}\nidentity.requests_per_second = 1000\n\
             network.allow = [\"127.0.0.0/8\"]\nfetch.host_requests_per_second = 1000\nlimits.disk_free = \"0B\"\nmetrics.listen = \"\"\n",
            scene.world().dids(),
            scene.network.flags()[1]
        );
        Self { config: scene.data("skyfill.toml"), base }
    }

    fn configure(&self, every: &str) {
        std::fs::write(&self.config, format!("{}refresh.every = \"{every}\"\n", self.base))
            .unwrap();
    }

    fn start(&self) -> Running {
        skyfill().spawn(&["run", "--config", self.config.to_str().unwrap()])
    }

    /// Asks for the status until it `is_so`.
    fn until(&self, running: &Running, is_so: impl Fn(&Value) -> bool) -> Value {
        let begun = Instant::now();
        loop {
            let asked = ["status", "--json", "--config", self.config.to_str().unwrap()];
            let status = skyfill().run(&asked, PATIENCE).expect_code(0).json();
            if is_so(&status) {
                return status;
            }
            assert!(begun.elapsed() < PATIENCE, "{status}\n{}", running.stderr());
            assert!(running.wait(Duration::from_millis(20)).is_none(), "{}", running.stderr());
        }
    }

    fn stop(running: Running) {
        assert!(running.signal(Signal::TERM));
        running.finish(PATIENCE).expect_code(0);
    }
}

#[test]
fn the_daemon_refreshes_what_is_due_and_restarts_and_reloads_keep_to_the_schedule() {
    let shape = Shape { seed: 77, accounts: 6, hosts: 2, records: Records::Fixed(40), odd: true };
    let scene = Scene::new(&shape, &[]);
    let data = scene.data("data");
    let daemon = Daemon::new(&scene, &data);
    daemon.configure("1h");
    let running = daemon.start();
    assert!(running.wait_for("working: 6 accounts listed", PATIENCE), "{}", running.stderr());
    daemon.until(&running, |status| status["accounts"]["done"] == json!(6));
    Daemon::stop(running);
    assert!(
        queue_path(&data, DELETED).exists(),
        "readers can open it before there is anything in it"
    );
    // After a restart the hour is not over, and nobody is asked for anything.
    (0..6).for_each(|index| {
        scene.network.advance(index);
    });
    let running = daemon.start();
    assert!(running.wait_for("working: 6 accounts listed", PATIENCE), "{}", running.stderr());
    let latest = || {
        let dids = scene.world().dids();
        let asked = |host: &support::pds::Pds, did: &str| host.log().count(GET_LATEST, did);
        let hosts = &scene.network.hosts;
        dids.iter().flat_map(|did| hosts.iter().map(move |host| asked(host, did))).sum::<usize>()
    };
    assert!(running.wait(Duration::from_millis(1_200)).is_none());
    assert_eq!(latest(), 0);
    // A reload brings the schedule forward, in force at once.
    daemon.configure("1s");
    assert!(running.signal(Signal::HUP));
    let status = daemon.until(&running, |status| status["refresh"]["changed"] == json!(6));
    assert!(latest() >= 6);
    assert!(running.stderr().contains("accounts are due to be refreshed"));
    assert_eq!(status["refresh"]["failed"], json!(0));
    // It goes on: what has not changed is asked for again, a second later.
    daemon.until(&running, |status| status["refresh"]["unchanged"].as_u64() >= Some(12));
    Daemon::stop(running);
    scene.assert_holds(&data, &scene.demanded(&vec![vec![0, 1]; 6]));
    daemon.configure("1s");
    let blind = skyfill().run(
        &[
            "check",
            "--no-environment",
            "--set",
            "refresh.leaves=false",
            "--config",
            daemon.config.to_str().unwrap(),
        ],
        PATIENCE,
    );
    assert!(
        blind.stdout.contains("refresh.leaves") || blind.stderr.contains("refresh.leaves"),
        "{blind:#?}"
    );
    assert_eq!(blind.code, Some(78));
}

#[test]
fn a_large_account_is_compared_part_by_part_and_a_crash_in_its_middle_changes_nothing() {
    // 25,000 leaves are five parts; `SKYFILL_LONG` makes it 300,000.
    let records = if number_from("SKYFILL_LONG", 0) > 0 { 300_000 } else { 25_000 };
    let shape =
        Shape { seed: 78, accounts: 1, hosts: 1, records: Records::Fixed(records), odd: false };
    let scene = Scene::new(
        &shape,
        &["--set", "fetch.first_byte_timeout=3m", "--set", "limits.memory=64MiB"],
    );
    let exported = scene.data("exported");
    scene.run(&exported, &[]).expect_code(0);
    let parts = rusqlite::Connection::open(exported.join("leaves.db")).unwrap();
    let count = |of: &str| parts.query_row(of, [], |row| row.get::<_, i64>(0)).unwrap();
    let (leaves, bytes) = (
        count("SELECT sum(records) FROM parts"),
        count("SELECT sum(octet_length(bytes)) FROM parts"),
    );
    assert!(count("SELECT count(*) FROM parts") >= 4 && leaves > 20_000, "{leaves} leaves");
    println!("{leaves} leaves, {:.1} bytes each", bytes as f64 / leaves as f64);
    assert!(bytes < leaves * 24);
    drop(parts);
    for _ in 0..1_500 {
        scene.network.advance(0);
    }
    scene.network.warm();
    let demanded = scene.demanded(&[vec![0, 1_500]]);
    assert!(demanded.count(|label| label == DELETED) > 1_000);
    let points: &[&str] = match cfg!(debug_assertions) {
        true => &["", "SegmentSealedBeforeApply:1", "LeavesCommitted:1", "QueueCommitted:2"],
        false => &[""],
    };
    in_parallel(points, 2, |point| {
        let data = scene.data(&format!("large-{}", point.replace(':', "-")));
        copy(&exported, &data);
        if !point.is_empty() {
            let arguments = scene.arguments(&data, &["--refresh"]);
            let crashed = skyfill().env("SKYFILL_CRASH_AT", point).run(&arguments, PATIENCE);
            assert_eq!(crashed.signal, Some(6), "{point} never fired: {crashed:#?}");
        }
        let finished = scene.run(&data, &["--refresh"]).expect_code(0);
        scene.assert_holds(&data, &demanded);
        let peak = finished.usage.anonymous_peak_bytes >> 20;
        println!("{point:26} {peak} MiB anonymous at most");
        assert!(peak < 128, "{peak} MiB, limits.memory and the base are 128");
    });
}
