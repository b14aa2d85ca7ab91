//! The main job under kills: whatever ends the process, and whenever, the same command again loses nothing and doubles nothing.
//!
//! ```text
//!  random     SIGKILL at random moments, some within 500 ms of a restart, over many data directories
//!  named      an abort at every `crash_point!` of the source, at its first, second and a later passage
//!  asked      SIGTERM at random moments, `SKYFILL_TERMS` of them (20): exit 130, a summary, nothing charged
//! ```
//! `SKYFILL_KILLS` says how many random kills (30), `SKYFILL_SEED` repeats a choice of moments.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::disallowed_methods
)]

#[path = "sinks/read.rs"]
mod read;
mod support;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

use fastrand::Rng;
use serde_json::Value;
use support::faults::{Fault, Place, Target, Then};
use support::job::backfill;
use support::judge::{Verdict, judge};
use support::network::Network;
use support::oracle::Options;
use support::pds::Manners;
use support::proc::{Finished, Running, Signal, Skyfill};
use support::world::{Records, Shape, WorldAccount};

const PATIENCE: Duration = Duration::from_secs(100);

/// Kills in one data directory: from the third on there are accounts that run alone, and from the fourth on some that died
/// alone, and then wait a minute. So a short test ends with three.
const KILLS_A_DIRECTORY: usize = 3;

/// The same when many kills are asked for.
const KILLS_A_DIRECTORY_OF_MANY: usize = 5;

/// From here on many are asked for.
const MANY: i64 = 100;

/// Data directories at once.
const LANES: usize = 3;

/// Tests that choose moments do not run beside each other.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

fn alone() -> MutexGuard<'static, ()> {
    ONE_AT_A_TIME.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

fn skyfill() -> Skyfill {
    Skyfill::new(env!("CARGO_BIN_EXE_skyfill"))
}

fn number_from(variable: &str, otherwise: u64) -> u64 {
    std::env::var(variable).ok().and_then(|text| text.parse().ok()).unwrap_or(otherwise)
}

/// A network, the command over all of its accounts, and a list of them.
struct Scene {
    network: Network,
    folder: tempfile::TempDir,
    more: Vec<String>,
    /// The accounts as they are, made once: every data directory is judged by them.
    accounts: Vec<WorldAccount>,
    /// Beside the queues there is a sink to files, whose crash points are passed, too.
    has_sink: bool,
}

impl Scene {
    fn new(shape: &Shape, more: &[&str]) -> Self {
        let network = Network::generate(shape);
        let folder = tempfile::tempdir().unwrap();
        let list = network.world().dids().join("\n");
        std::fs::write(folder.path().join("dids.txt"), list).unwrap();
        let more = more.iter().map(|text| (*text).to_owned()).collect();
        let accounts = network.expected().collect();
        Self { network, folder, more, accounts, has_sink: false }
    }

    /// Accounts with about 100 records each on four hosts that take their time, `pace` bytes a second for each transfer.
    fn slow(seed: u64, accounts: usize, pace: u64) -> Self {
        let records = Records::Mixed { mean: 100 };
        let shape = Shape { seed, accounts, hosts: 4, records, odd: true };
        let scene = Self::new(&shape, &[]);
        scene.network.warm();
        for host in &scene.network.hosts {
            let pace = Some(pace);
            host.set_manners(Manners {
                chunk_bytes: 4 << 10,
                bytes_per_second: pace,
                ..Manners::default()
            });
        }
        scene
    }

    fn data(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn arguments(&self, data: &Path) -> Vec<String> {
        let list = self.data("dids.txt");
        let mut more = self.more.clone();
        if self.has_sink {
            let place = format!("sink.lines.path={}", Self::place(data).display());
            let set = ["sink.lines.type=jsonl", &place, "sink.lines.file_age=1ms"];
            more.extend(set.into_iter().flat_map(|it| ["--set".to_owned(), it.to_owned()]));
        }
        backfill(data, ["--dids-file", list.to_str().unwrap()], &self.network, &more)
    }

    /// Where the sink of a data directory writes.
    fn place(data: &Path) -> PathBuf {
        data.with_extension("lines")
    }

    fn start(&self, data: &Path) -> Running {
        skyfill().spawn(&self.arguments(data))
    }

    fn crash(&self, data: &Path, point: &str) -> Finished {
        skyfill().env("SKYFILL_CRASH_AT", point).run(&self.arguments(data), PATIENCE)
    }

    fn finish(&self, data: &Path) -> Finished {
        self.start(data).finish(PATIENCE).expect_code(0)
    }

    /// What the queues hold, after `verify` has agreed, and the sink with them.
    fn verdict(&self, data: &Path) -> Verdict {
        if self.has_sink {
            read::assert_same(&read::held(&Self::place(data)), data);
        }
        let text = data.to_str().unwrap();
        skyfill().run(&["verify", "--data-dir", text], PATIENCE).expect_code(0);
        judge(data, self.accounts.iter().cloned(), &Options::default())
    }
}

/// What many data directories came to.
#[derive(Debug, Default)]
struct Tally {
    directories: u64,
    kills: u64,
    double_kills: u64,
    verdict: Verdict,
    ready: Vec<f64>,
}

impl Tally {
    fn add(&mut self, verdict: Verdict) {
        let sum = &mut self.verdict;
        self.directories += 1;
        sum.lost += verdict.lost;
        sum.doubled += verdict.doubled;
        sum.torn_or_wrong += verdict.torn_or_wrong;
        sum.expected += verdict.expected;
        sum.found += verdict.found;
        sum.items += verdict.items;
        sum.problems.extend(verdict.problems);
        sum.examples.extend(verdict.examples);
    }
}

#[test]
fn random_kills_lose_nothing_and_double_nothing() {
    let _alone = alone();
    let seed = number_from("SKYFILL_SEED", 7);
    let wanted = i64::try_from(number_from("SKYFILL_KILLS", 30)).unwrap();
    let scene = Scene::slow(31, 200, 800_000);
    let begun = Instant::now();
    scene.finish(&scene.data("whole"));
    let whole = begun.elapsed();
    scene.verdict(&scene.data("whole")).assert_clean();
    let most = if wanted < MANY { KILLS_A_DIRECTORY } else { KILLS_A_DIRECTORY_OF_MANY };
    let plan = Kills { most, whole, left: AtomicI64::new(wanted) };
    let tally = Mutex::new(Tally::default());
    std::thread::scope(|scope| {
        for lane in 0..LANES {
            let (scene, plan, tally) = (&scene, &plan, &tally);
            scope.spawn(move || {
                let mut rng = Rng::with_seed(seed * 1_000 + lane as u64);
                let mut number = 0;
                while plan.left.load(Ordering::Acquire) > 0 {
                    number += 1;
                    let data = scene.data(&format!("lane-{lane}-{number}"));
                    kill_until_done(scene, &data, plan, &mut rng, tally);
                    std::fs::remove_dir_all(&data).unwrap();
                }
            });
        }
    });
    let mut tally = tally.into_inner().unwrap();
    tally.ready.sort_by(f64::total_cmp);
    let Tally { directories, kills, double_kills, verdict, ready } = &tally;
    println!(
        "{kills} kills ({double_kills} within 500 ms of a restart) over {directories} data directories, a whole run takes \
         {:.1} s, {} rows expected: {} lost, {} doubled, {} torn; listed again {:.2} s after the last start (median, worst {:.2}); \
         seed {seed}",
        whole.as_secs_f64(),
        verdict.expected,
        verdict.lost,
        verdict.doubled,
        verdict.torn_or_wrong,
        ready[ready.len() / 2],
        ready[ready.len() - 1]
    );
    assert!(verdict.is_clean(), "SKYFILL_SEED={seed}: {verdict:#?}");
    assert!(*kills >= u64::try_from(wanted).unwrap(), "only {kills} kills met a process that ran");
}

/// How to kill.
struct Kills {
    /// In one data directory.
    most: usize,
    /// How long a run takes that nobody kills.
    whole: Duration,
    /// Kills that are still to be had.
    left: AtomicI64,
}

fn take_one(left: &AtomicI64) -> bool {
    let fewer = |left: i64| (left > 0).then(|| left - 1);
    left.fetch_update(Ordering::AcqRel, Ordering::Acquire, fewer).is_ok()
}

/// Runs the command over `data` again and again, killing it, until it is done; judges.
fn kill_until_done(scene: &Scene, data: &Path, plan: &Kills, rng: &mut Rng, tally: &Mutex<Tally>) {
    let Kills { most, whole, left } = plan;
    let (mut kills, mut doubles, mut is_double) = (0, 0, false);
    let mut ready = None;
    while kills < *most && take_one(left) {
        let span = if is_double { Duration::from_millis(500) } else { whole.mul_f64(0.9) };
        let running = scene.start(data);
        if let Some(finished) = running.wait(span.mul_f64(rng.f64())) {
            // It was faster than the kill, which is then still to be had.
            left.fetch_add(1, Ordering::AcqRel);
            finished.expect_code(0);
            break;
        }
        let was_there = running.kill();
        let finished = running.wait(PATIENCE).expect("nothing survives SIGKILL");
        if !was_there || finished.signal != Some(9) {
            left.fetch_add(1, Ordering::AcqRel);
            finished.expect_code(0);
            break;
        }
        kills += 1;
        doubles += u64::from(is_double);
        is_double = rng.u32(..3) == 0;
    }
    let begun = Instant::now();
    let running = scene.start(data);
    if running.wait_for("accounts listed", PATIENCE) {
        ready = Some(begun.elapsed().as_secs_f64());
    }
    running.finish(PATIENCE).expect_code(0);
    let verdict = scene.verdict(data);
    let mut tally = tally.lock().unwrap();
    tally.kills += kills as u64;
    tally.double_kills += doubles;
    tally.ready.extend(ready);
    tally.add(verdict);
}

/// Every `crash_point!(Name)` of the source, once each.
fn crash_points() -> Vec<String> {
    let mut folders = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join("src")];
    let mut names = std::collections::BTreeSet::new();
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            let text = std::fs::read_to_string(&path).unwrap();
            let code = text.lines().map(str::trim).filter(|line| !line.starts_with("//"));
            for line in code {
                let name =
                    line.split_once("crash_point!(").and_then(|(_, rest)| rest.split_once(')'));
                names.extend(name.map(|(name, _)| name.to_owned()));
            }
        }
    }
    names.into_iter().collect()
}

/// Points that a process passes once; others are passed again and again.
const ONCE: [&str; 5] = [
    "LedgerOpenedBeforeJournal",
    "PartsDeletedBeforeRecovery",
    "RecoveredBeforeLists",
    "ListedBeforeWork",
    "LeasesEndedBeforeClose",
];

/// Points that only a refresh passes: `tests/refresh.rs` crashes there.
const ELSEWHERE: [&str; 1] = ["RefreshMarkedBeforeWork"];

/// Runs `work` over `items`, some at once.
fn in_parallel<T: Sync>(items: &[T], at_once: usize, work: impl Fn(&T) + Sync) {
    let next = std::sync::atomic::AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..at_once {
            scope.spawn(|| {
                while let Some(item) = items.get(next.fetch_add(1, Ordering::AcqRel)) {
                    work(item);
                }
            });
        }
    });
}

#[test]
fn a_crash_at_every_named_point_loses_nothing_and_doubles_nothing() {
    if cfg!(not(debug_assertions)) {
        println!("release builds have no crash points");
        return;
    }
    // Those of forgetting are passed by another command, those of Kafka need a broker: tests/forget.rs, tests/kafka.rs.
    let is_elsewhere = |point: &str| point.starts_with("Forget") || point.starts_with("SinkKafka");
    let is_here = |point: &String| !is_elsewhere(point) && !ELSEWHERE.contains(&point.as_str());
    let points: Vec<String> = crash_points().into_iter().filter(is_here).collect();
    assert!(points.len() >= 20, "{points:?}");
    // Accounts come one after the other and far enough apart for a settle, so that every point is passed several times.
    let shape = Shape { seed: 32, accounts: 5, hosts: 1, records: Records::Fixed(40), odd: false };
    let mut scene = Scene::new(&shape, &["--batch-size", "1"]);
    scene.has_sink = true;
    let slow = Fault::SlowHeaders(Duration::from_millis(900));
    scene.network.faults().script(Place::Repo, Target::Any, [slow], Then::Repeat);
    let cases: Vec<(&String, u64)> =
        points.iter().flat_map(|point| [1, 2, 3].map(|passage| (point, passage))).collect();
    let is_passed =
        |(point, passage): &(&String, u64)| *passage == 1 || !ONCE.contains(&point.as_str());
    let cases: Vec<(&String, u64)> = cases.into_iter().filter(is_passed).collect();
    let sum = Mutex::new(Tally::default());
    in_parallel(&cases, 12, |(point, passage)| {
        let data = scene.data(&format!("{point}-{passage}"));
        let at = format!("{point}:{passage}");
        let crashed = scene.crash(&data, &at);
        assert_eq!(crashed.signal, Some(6), "{at} never fired: {crashed:#?}");
        if *passage == 2 {
            // Recovery itself crashes; a point that recovery does not pass again lets it finish.
            let again = scene.crash(&data, &format!("{point}:1"));
            assert!(again.signal == Some(6) || again.code == Some(0), "{at}, again: {again:#?}");
        }
        scene.finish(&data);
        let verdict = scene.verdict(&data);
        assert!(verdict.is_clean(), "SKYFILL_CRASH_AT={at}: {verdict:#?}");
        sum.lock().unwrap().add(verdict);
    });
    scene.network.faults().assert_fired(&["slow_headers"]);
    let verdict = sum.into_inner().unwrap().verdict;
    println!(
        "{} crash points, {} cases: {} rows expected, {} lost, {} doubled, {} torn",
        points.len(),
        cases.len(),
        verdict.expected,
        verdict.lost,
        verdict.doubled,
        verdict.torn_or_wrong
    );
}

#[test]
fn a_crash_within_a_large_account_goes_on_in_the_middle_of_its_segment() {
    if cfg!(not(debug_assertions)) {
        println!("release builds have no crash points");
        return;
    }
    // Its rows are about 13 MB: a part of its own, and in a debug build several transactions.
    let shape =
        Shape { seed: 33, accounts: 1, hosts: 1, records: Records::Fixed(25_000), odd: false };
    let scene = Scene::new(&shape, &["--set", "fetch.first_byte_timeout=2m"]);
    scene.network.warm();
    let cases = [
        "PartWrittenBeforeSync:1",
        "SegmentSealedBeforeApply:1",
        "QueueCommitted:1",
        "QueueCommitted:2",
        "QueueCommitted:4",
        "QueueCommitted:6",
        "QueueSettledBeforeOthers:3",
        "SettledBeforeForget:1",
    ];
    in_parallel(&cases, 2, |at| {
        let data = scene.data(&at.replace(':', "-"));
        let crashed = scene.crash(&data, at);
        assert_eq!(crashed.signal, Some(6), "{at} never fired: {crashed:#?}");
        scene.finish(&data);
        let verdict = scene.verdict(&data);
        assert!(verdict.is_clean(), "SKYFILL_CRASH_AT={at}: {verdict:#?}");
    });
    println!("a large account: {} crashes, 0 lost, 0 doubled, 0 torn", cases.len());
}

/// Attempts and process deaths of all accounts in the ledger.
fn charged(data: &Path) -> (u64, u64) {
    let ledger = rusqlite::Connection::open(data.join("state.db")).unwrap();
    let mut select = ledger.prepare("SELECT rules FROM accounts WHERE rules IS NOT NULL").unwrap();
    let rules = select.query_map([], |row| row.get::<_, String>(0)).unwrap();
    rules.fold((0, 0), |(attempts, deaths), text| {
        let rules: Value = text.unwrap().parse().unwrap();
        let count = |name: &str| rules[name].as_u64().unwrap();
        (attempts + count("attempts"), deaths + count("process_deaths"))
    })
}

#[test]
fn a_death_is_counted_for_whom_it_met_with_its_bytes_in_hand_and_for_nobody_else() {
    if cfg!(not(debug_assertions)) {
        println!("release builds have no crash points");
        return;
    }
    let shape = Shape { seed: 36, accounts: 5, hosts: 1, records: Records::Fixed(40), odd: false };
    let scene = Scene::new(&shape, &["--batch-size", "1"]);
    // Rows written and not sealed; asked for and nothing of it there yet.
    for (point, deaths) in [("PartWrittenBeforeSync:1", 1), ("ListedBeforeWork:1", 0)] {
        let data = scene.data(point);
        for point in [point, "RecoveredBeforeLists:1"] {
            assert_eq!(scene.crash(&data, point).signal, Some(6), "{point} never fired");
        }
        assert_eq!(charged(&data), (0, deaths), "{point}");
        scene.finish(&data);
        scene.verdict(&data).assert_clean();
    }
}

#[test]
fn a_run_that_is_asked_to_stop_says_so_charges_nobody_and_goes_on_later() {
    let _alone = alone();
    let seed = number_from("SKYFILL_SEED", 7);
    let (scene, mut rng) = (Scene::slow(34, 80, 250_000), Rng::with_seed(seed));
    let mut interrupted = 0;
    let mut slowest = Duration::ZERO;
    let wanted = number_from("SKYFILL_TERMS", 20);
    let mut directories = 0;
    while interrupted < wanted {
        let data = scene.data(&format!("asked-{directories}"));
        directories += 1;
        assert!(directories <= wanted, "most runs end before they are asked to");
        let mut done_before = 0;
        loop {
            let running = scene.start(&data);
            // The ledger is open and the signals are listened to from here on.
            assert!(running.wait_for("accounts listed", PATIENCE), "{}", running.stderr());
            if running.wait(Duration::from_secs(1).mul_f64(rng.f64())).is_none() {
                let signal = if rng.bool() { Signal::TERM } else { Signal::INT };
                running.signal(signal);
            }
            let asked = Instant::now();
            let finished = running.finish(PATIENCE);
            slowest = slowest.max(asked.elapsed());
            let summary = finished.json();
            let done = summary["accounts"]["done"].as_u64().unwrap();
            assert_eq!(charged(&data), (0, 0), "SKYFILL_SEED={seed}");
            assert!(done >= done_before, "SKYFILL_SEED={seed}: {summary}");
            assert_eq!(summary["this_run"]["done"].as_u64(), Some(done - done_before));
            done_before = done;
            if summary["interrupted"] == false {
                finished.expect_code(0);
                break;
            }
            finished.expect_code(130);
            assert_eq!(summary["status_code"], if done == 80 { 200 } else { 207 });
            interrupted += 1;
        }
        let verdict = scene.verdict(&data);
        assert!(verdict.is_clean(), "SKYFILL_SEED={seed}: {verdict:#?}");
    }
    assert!(slowest < Duration::from_secs(30), "it took {slowest:?} to stop");
    println!(
        "{interrupted} runs interrupted in {directories} data directories, stopped within {slowest:.1?}; nothing charged, lost or doubled"
    );
}

#[test]
fn a_second_signal_forces_the_end_and_that_is_like_a_kill() {
    let _alone = alone();
    let scene = Scene::slow(35, 80, 800_000);
    // Transfers that do not end keep the drain waiting.
    let did = scene.network.world().did(0).to_owned();
    scene.network.faults().once(&did, Fault::Stall(support::faults::At::Middle));
    let data = scene.data("forced");
    let running = scene.start(&data);
    let begun = Instant::now();
    while scene.network.faults().fired("stall") == 0 {
        assert!(begun.elapsed() < PATIENCE, "the stall never fired");
        assert!(running.wait(Duration::from_millis(10)).is_none(), "it ended early");
    }
    running.signal(Signal::TERM);
    assert!(running.wait_for("stopping", PATIENCE));
    running.signal(Signal::TERM);
    let forced = running.finish(PATIENCE).expect_code(130);
    assert!(forced.stderr.contains("forced to stop"), "{forced:#?}");
    scene.finish(&data);
    scene.verdict(&data).assert_clean();
}
