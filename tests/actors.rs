//! The actors over the whole pipeline, in this process: backpressure, crashes of workers and stages, budgets.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::disallowed_methods
)]

mod support;

use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use serde_json::Value;
use skyfill::actor::supervisor::RESTARTS_PER_MINUTE_MAX;
use skyfill::clock::Clock;
use skyfill::commands::backfill::{self, Backfill};
use skyfill::commands::error::CommandError;
use skyfill::config::file::{self, Assignment, Mode};
use skyfill::config::targets::ListSource;
use skyfill::exit_code::ExitCode;
use skyfill::net::territory::Territory;
use skyfill::pipeline::Surrounding;
use skyfill::stages::messages::{Fate, Point, Probe};
use support::faults::{Fault, Place as FaultPlace, Target, Then};
use support::job::{Job, in_parallel};
use support::judge::judge;
use support::network::Network;
use support::oracle::Options;
use support::proc::Skyfill;
use support::world::{Records, Shape};

const PATIENCE: Duration = Duration::from_secs(300);

struct Bench {
    network: Network,
    _folder: tempfile::TempDir,
    data: PathBuf,
}

struct Ran {
    code: Result<ExitCode, CommandError>,
    summary: Value,
}

impl Bench {
    fn new(seed: u64, accounts: usize, records: usize) -> Self {
        let records = Records::Fixed(records);
        let shape = Shape { seed, accounts, hosts: 4, records, odd: false };
        let folder = tempfile::tempdir().unwrap();
        let data = folder.path().join("data");
        Self { network: Network::generate(&shape), _folder: folder, data }
    }

    /// Runs to the end with `settings` (`key=value`) and `see` at every point.
    fn run(&self, settings: &[&str], see: impl Fn(Point<'_>) + Send + Sync + 'static) -> Ran {
        self.run_within(settings, Surrounding { probe: Probe::new(see), ..Surrounding::system() })
    }

    fn run_within(&self, settings: &[&str], surrounding: Surrounding) -> Ran {
        let order = self.order(settings);
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(4)
            .enable_all()
            .build()
            .unwrap();
        let mut out = Vec::new();
        let code = runtime.block_on(async {
            let run = backfill::run(&order, &surrounding, std::future::pending(), &mut out);
            tokio::time::timeout(PATIENCE, run).await.expect("the run ends in time")
        });
        runtime.shutdown_background();
        Ran { code, summary: serde_json::from_slice(&out).unwrap_or_default() }
    }

    fn order(&self, settings: &[&str]) -> Backfill {
        let set = |(key, value): (&str, &str)| Assignment::flag("test", key, value);
        let data = self.data.to_string_lossy().into_owned();
        let plc = self.network.plc.url();
        let fixed = [
            ("data_dir", data.as_str()),
            ("identity.plc_url", plc.as_str()),
            ("identity.requests_per_second", "1000"),
            ("fetch.host_requests_per_second", "1000"),
            ("fetch.host_concurrency", "64"),
            ("network.allow", "127.0.0.0/8"),
            ("limits.disk_free", "0B"),
            ("retry.base", "10ms"),
        ];
        let given = settings.iter().map(|text| text.split_once('=').unwrap());
        let assignments: Vec<Assignment> = fixed.into_iter().chain(given).map(set).collect();
        let settings = file::load(None, &assignments, Mode::Backfill).unwrap().settings;
        let dids = self.network.world().dids();
        let sources = vec![ListSource::Inline { name: "test".to_owned(), dids }];
        Backfill { settings, sources, refilter: false, refresh: false, json: true, quiet: true }
    }

    /// What each account was charged.
    fn attempts(&self) -> HashMap<String, u64> {
        let ledger = rusqlite::Connection::open(self.data.join("state.db")).unwrap();
        let mut select = ledger.prepare("SELECT did, rules FROM accounts").unwrap();
        let rows = select.query_map([], |row| Ok((row.get(0)?, row.get::<_, String>(1)?))).unwrap();
        rows.map(Result::unwrap)
            .map(|(did, rules)| (did, number(&rules.parse().unwrap(), "/attempts")))
            .collect()
    }

    fn assert_all_rows(&self) {
        judge(&self.data, self.network.expected(), &Options::default()).assert_clean();
    }
}

fn number(value: &Value, path: &str) -> u64 {
    value.pointer(path).and_then(Value::as_u64).unwrap_or_else(|| panic!("{path} in {value}"))
}

/// A gate that is shut until it is opened.
#[derive(Default)]
struct Gate(Mutex<bool>, Condvar);

impl Gate {
    fn wait(&self) {
        let shut = self.0.lock().unwrap();
        let opened = self.1.wait_timeout_while(shut, PATIENCE, |is_open| !*is_open).unwrap();
        assert!(!opened.1.timed_out(), "the gate was opened in time");
    }

    fn open(&self) {
        *self.0.lock().unwrap() = true;
        self.1.notify_all();
    }
}

/// Waits until `value` has been the same, and above zero, for a second.
fn steady(value: impl Fn() -> usize) -> usize {
    let (begun, mut last, mut since) = (Instant::now(), 0, Instant::now());
    loop {
        let now = value();
        if now != last {
            (last, since) = (now, Instant::now());
        }
        if last > 0 && since.elapsed() > Duration::from_secs(1) {
            return last;
        }
        assert!(begun.elapsed() < PATIENCE, "it never came to rest");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_slow_exporter_makes_the_sockets_wait() {
    const ACCOUNTS: usize = 80;
    let bench = Bench::new(21, ACCOUNTS, 30);
    let (gate, fetched, parsed) =
        (Arc::new(Gate::default()), Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let (shut, fetching, parsing) = (Arc::clone(&gate), Arc::clone(&fetched), Arc::clone(&parsed));
    let see = move |point: Point<'_>| match point {
        Point::Worker("fetcher", _) => drop(fetching.fetch_add(1, Ordering::AcqRel)),
        Point::Worker("parser", _) => drop(parsing.fetch_add(1, Ordering::AcqRel)),
        Point::Stage("exporter") => shut.wait(),
        _ => {}
    };
    let settings = ["fetch.concurrency=6", "limits.parsers=2", "limits.batch_size=1000"];
    std::thread::scope(|scope| {
        let run = scope.spawn(|| bench.run(&settings, see));
        let at_rest = steady(|| fetched.load(Ordering::Acquire));
        // Counted at the points, not by the mailboxes: in the exporter's mailbox 8 chunks, one of each finished walk, and one
        // in its hands counts among them; 2 walks that wait for a place there and 2 repositories behind them; 6 in the fetcher.
        let walked = parsed.load(Ordering::Acquire);
        assert!(walked <= 8 + 2, "{walked} walks begun");
        assert!(at_rest <= 8 + 4 + 6, "{at_rest} repositories asked for");
        let asked: usize = bench.network.hosts.iter().map(|host| host.log().len()).sum();
        assert!(asked <= at_rest, "{asked} requests at the hosts");
        gate.open();
        let ran = run.join().unwrap();
        assert_eq!(ran.code.unwrap(), ExitCode::Done);
        println!("at rest: {at_rest} asked for, {walked} walked, of {ACCOUNTS}");
    });
    assert_eq!(fetched.load(Ordering::Acquire), ACCOUNTS);
    bench.assert_all_rows();
}

#[test]
fn a_did_that_kills_its_worker_three_times_is_parked_and_the_rest_finish() {
    let bench = Bench::new(23, 10, 20);
    let victim = bench.network.world().did(3).to_owned();
    let (did, crashes) = (victim.clone(), Arc::new(AtomicUsize::new(0)));
    let counted = Arc::clone(&crashes);
    let ran = bench.run(&[], move |point| {
        if point == Point::Worker("parser", &did) {
            counted.fetch_add(1, Ordering::AcqRel);
            panic!("poison");
        }
    });
    assert_eq!(ran.code.unwrap(), ExitCode::SomeParked);
    assert_eq!(crashes.load(Ordering::Acquire), 3);
    assert_eq!(
        (number(&ran.summary, "/accounts/done"), number(&ran.summary, "/accounts/parked")),
        (9, 1)
    );
    let parked = &ran.summary["parked"][0];
    assert_eq!((&parked["did"], &parked["reason"]), (&victim.clone().into(), &"crash_loop".into()));
    let others = bench.network.expected().filter(|account| account.did != victim);
    judge(&bench.data, others, &Options::default()).assert_clean();
}

/// Ways in which an actor fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Panic,
    Error,
    Hang,
    Exit,
}

/// Who fails, how, and at which of its messages.
#[derive(Clone, Copy, Debug)]
struct Strike {
    stage: &'static str,
    /// The worker of one DID, not the stage.
    is_worker: bool,
    kind: Kind,
    place: Place,
}

/// Of the messages that a stage gets while `STRUCK` accounts are worked through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    First,
    Middle,
    Last,
}

const PLACES: [Place; 3] = [Place::First, Place::Middle, Place::Last];
const STRUCK: usize = 12;
/// Longer than any of these accounts takes, also on a busy machine.
const STRUCK_PATIENCE: Duration = Duration::from_secs(4);

impl Place {
    /// Its number among `STRUCK` messages, from 1.
    fn number(self) -> usize {
        match self {
            Self::First => 1,
            Self::Middle => STRUCK / 2,
            Self::Last => STRUCK,
        }
    }
}

/// Counts what passes, and strikes once.
#[derive(Default)]
struct Striker {
    passed: AtomicUsize,
    /// Chunks that the exporter has taken: the scheduler has no count of its own, it hears of each account many times.
    exported: AtomicUsize,
    struck: Mutex<Vec<String>>,
    gate: Gate,
}

impl Striker {
    fn see(&self, strike: Strike, point: Point<'_>) -> Fate {
        if point == Point::Stage("exporter") {
            self.exported.fetch_add(1, Ordering::AcqRel);
        }
        let did = match point {
            Point::Worker(stage, did) if strike.is_worker && stage == strike.stage => did,
            Point::Stage(stage) if !strike.is_worker && stage == strike.stage => "",
            _ => return Fate::GoOn,
        };
        let passed = self.passed.fetch_add(1, Ordering::AcqRel) + 1;
        let is_due = match strike.place {
            Place::First => passed == 1,
            _ if strike.stage == "scheduler" => {
                self.exported.load(Ordering::Acquire) >= strike.place.number()
            }
            place => passed == place.number(),
        };
        {
            let mut struck = self.struck.lock().unwrap();
            if !is_due || !struck.is_empty() {
                return Fate::GoOn;
            }
            struck.push(did.to_owned());
        }
        match strike.kind {
            Kind::Panic => panic!("a bug in the {}", strike.stage),
            Kind::Error => Fate::Fail,
            Kind::Exit => Fate::Leave,
            Kind::Hang => {
                // A walk is on a thread of its own: that is what hangs.
                if strike.is_worker && strike.stage == "parser" {
                    self.gate.wait();
                }
                Fate::Hang
            }
        }
    }
}

/// One run with one fault: everything is done and exact, and only a worker's own DID is charged.
fn strike(strike: Strike) {
    let (bench, striker) = (Bench::new(24, STRUCK, 20), Arc::new(Striker::default()));
    let (begun, seeing) = (Instant::now(), Arc::clone(&striker));
    let surrounding = Surrounding {
        probe: Probe::deciding(move |point| seeing.see(strike, point)),
        walk_patience: STRUCK_PATIENCE,
        worker_patience: Some(STRUCK_PATIENCE),
        stage_patience: STRUCK_PATIENCE,
        ..Surrounding::system()
    };
    let ran = bench.run_within(&["limits.parsers=2"], surrounding);
    striker.gate.open();
    assert_eq!(ran.code.unwrap(), ExitCode::Done, "{strike:?}");
    let struck = striker.struck.lock().unwrap().clone();
    assert_eq!(struck.len(), 1, "{strike:?}: the fault fired");
    if strike.kind == Kind::Hang {
        // Not before a heartbeat was missed, and then at once.
        assert!(begun.elapsed() > STRUCK_PATIENCE, "{strike:?}: {:?}", begun.elapsed());
    }
    for (did, attempts) in bench.attempts() {
        assert_eq!(attempts, u64::from(did == struck[0]), "{strike:?}: {did}");
    }
    bench.assert_all_rows();
}

/// Every stage or worker, every place, `kinds`; some at once, because who waits for a heartbeat only waits.
fn strike_everywhere(stages: &[&'static str], is_worker: bool, kinds: &[Kind]) {
    let (sender, strikes) = std::sync::mpsc::sync_channel(1);
    let (strikes, count) = (Mutex::new(strikes), AtomicUsize::new(0));
    let next = || strikes.lock().unwrap().recv();
    std::thread::scope(|scope| {
        for _ in 0..if kinds == [Kind::Hang] { 5 } else { 1 } {
            scope.spawn(|| {
                while let Ok(due) = next() {
                    strike(due);
                    count.fetch_add(1, Ordering::AcqRel);
                }
            });
        }
        for &kind in kinds {
            for &stage in stages {
                for place in PLACES {
                    sender.send(Strike { stage, is_worker, kind, place }).unwrap();
                }
            }
        }
        drop(sender);
    });
    let count = count.into_inner();
    assert_eq!(count, kinds.len() * stages.len() * PLACES.len());
    let who = if is_worker { "workers" } else { "stages" };
    println!(
        "faults in {who} ({kinds:?}): {count} fired, 0 lost, 0 doubled, only a worker's DID charged"
    );
}

const WITH_WORKERS: [&str; 3] = ["resolver", "fetcher", "parser"];
const STAGES: [&str; 5] = ["exporter", "parser", "fetcher", "resolver", "scheduler"];
const SUDDEN: [Kind; 3] = [Kind::Panic, Kind::Error, Kind::Exit];

#[test]
fn a_worker_that_fails_in_any_way_costs_only_its_did_one_attempt() {
    strike_everywhere(&WITH_WORKERS, true, &SUDDEN);
}

#[test]
fn a_worker_that_hangs_is_found_and_costs_only_its_did_one_attempt() {
    strike_everywhere(&WITH_WORKERS, true, &[Kind::Hang]);
}

#[test]
fn a_stage_that_fails_in_any_way_is_restarted_and_nothing_is_lost() {
    strike_everywhere(&STAGES, false, &SUDDEN);
}

#[test]
fn a_stage_that_hangs_is_replaced_and_nothing_is_lost() {
    strike_everywhere(&STAGES, false, &[Kind::Hang]);
}

/// Set in the child that the storm rages in.
const STORM: &str = "SKYFILL_TEST_STORM";

#[test]
fn a_stage_that_always_dies_ends_the_run_with_its_name() {
    if std::env::var_os(STORM).is_none() {
        return measure_the_storm();
    }
    let bench = Bench::new(25, 5, 5);
    let deaths = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&deaths);
    let ran = bench.run(&[], move |point| {
        if point == Point::Stage("fetcher") {
            if counted.fetch_add(1, Ordering::AcqRel) == 0 {
                println!("the storm begins");
            }
            panic!("always");
        }
    });
    let error = ran.code.unwrap_err();
    assert!(error.to_string().contains("fetcher"), "{error}");
    println!("the storm ends after {} deaths", deaths.load(Ordering::Acquire));
    std::process::exit(i32::from(error.exit_code().code()));
}

/// The test above in a process of its own: how it ends, and what the storm costs.
fn measure_the_storm() {
    let name = "a_stage_that_always_dies_ends_the_run_with_its_name";
    let itself =
        Skyfill::new(std::env::current_exe().unwrap()).env(STORM, "1").env("RUST_BACKTRACE", "0");
    let (child, patience) =
        (itself.spawn(&["--exact", name, "--nocapture"]), Duration::from_secs(120));
    assert!(child.wait_for("the storm begins", patience), "{}", child.stderr());
    let (begun, before) = (Instant::now(), child.usage().cpu_seconds());
    let finished = child.finish(patience);
    let (lasted, used) = (begun.elapsed(), finished.usage.cpu_seconds() - before);
    assert_eq!(finished.code, Some(1), "{finished:#?}");
    let deaths = format!("the storm ends after {} deaths", 1 + RESTARTS_PER_MINUTE_MAX);
    assert!(finished.stdout.contains(&deaths), "{finished:#?}");
    // 100 ms, doubling to 6.4 s: within a minute, or the count would begin anew.
    assert!(lasted < Duration::from_secs(60), "{lasted:?}");
    let share = used / lasted.as_secs_f64();
    assert!(share < 0.05, "{used} CPU-seconds in {lasted:?}");
    println!(
        "restart storm: exit code 1 after {} deaths in {:.1} s, {:.1}% of a core, nothing lost",
        1 + RESTARTS_PER_MINUTE_MAX,
        lasted.as_secs_f64(),
        share * 100.0
    );
}

/// Threads that nobody restarts, what each passes, and at which passage it panics there. The ledger's are not the first:
/// the start commits and syncs, too, before there is a thread.
const THREADS: [(&str, &str, &[u64]); 8] = [
    ("ledger", "LedgerCommitted", &[12, 16, 24]),
    ("ledger", "PositionsWrittenBeforeSync", &[2, 3, 4]),
    ("ledger", "LeasesEndedBeforeClose", &[1]),
    ("applier", "QueueCommitted", &[1, 2, 6]),
    ("applier", "SinkAppliedBeforeLedger", &[1, 2, 6]),
    ("applier", "SegmentAppliedBeforeSettle", &[1, 2, 3]),
    ("applier", "SettledBeforeForget", &[1, 2, 3]),
    ("applier", "SegmentForgotten", &[1, 2, 3]),
];

#[test]
fn a_panic_of_the_ledger_or_the_applier_ends_the_process_by_its_name_and_loses_nothing() {
    if cfg!(not(debug_assertions)) {
        println!("release builds have no crash points");
        return;
    }
    // One account after the other, far enough apart for a settle, so that every point is passed several times.
    let shape = Shape { seed: 29, accounts: 5, hosts: 1, records: Records::Fixed(40), odd: false };
    let job = Job::new(env!("CARGO_BIN_EXE_skyfill"), &shape, &["--batch-size", "1"]);
    let slow = Fault::SlowHeaders(Duration::from_millis(900));
    job.network.faults().script(FaultPlace::Repo, Target::Any, [slow], Then::Repeat);
    let cases: Vec<(&str, String)> = THREADS
        .iter()
        .flat_map(|(thread, point, passages)| {
            passages.iter().map(move |passage| (*thread, format!("{point}:{passage}")))
        })
        .collect();
    in_parallel(&cases, 8, |(thread, at)| {
        let data = job.path(&at.replace(':', "-"));
        let panicking = job.skyfill().env("SKYFILL_PANIC_AT", at).env("RUST_BACKTRACE", "0");
        let ended = panicking.run(&job.arguments(&data), Duration::from_secs(60));
        let at = format!("SKYFILL_PANIC_AT={at}");
        assert_eq!(ended.code, Some(1), "{at}: {ended:#?}");
        // Its own words, and where it was.
        let name = format!("the {thread} thread crashed");
        assert!(ended.stderr.contains(&name), "{at}: {ended:#?}");
        assert!(ended.stderr.contains("as SKYFILL_PANIC_AT asks"), "{at}: {ended:#?}");
        job.run(&data).expect_code(0);
        let verdict = job.verdict(&data);
        assert!(verdict.is_clean(), "{at}: {verdict:#?}");
    });
    println!(
        "panics of the ledger's and the applier's thread: {} fired, exit code 1 by name, 0 lost, 0 doubled",
        cases.len()
    );
}

/// Walks that hang for ever in this run: `true` from `hangs` makes the walk of that number (from 1) of `did` stand still.
fn run_with_hanging_walks(bench: &Bench, did: &str, hangs: fn(usize) -> bool) -> (Ran, usize) {
    let (gate, hung) = (Arc::new(Gate::default()), Arc::new(AtomicUsize::new(0)));
    let (walks, did) = (AtomicUsize::new(0), did.to_owned());
    let (shut, counted) = (Arc::clone(&gate), Arc::clone(&hung));
    let probe = Probe::new(move |point| {
        let is_its = point == Point::Worker("parser", &did);
        if is_its && hangs(walks.fetch_add(1, Ordering::AcqRel) + 1) {
            counted.fetch_add(1, Ordering::AcqRel);
            shut.wait();
        }
    });
    let walk_patience = Duration::from_secs(3);
    let surrounding = Surrounding { probe, walk_patience, ..Surrounding::system() };
    // One thread: if it were not replaced, nothing would be walked any more.
    let ran = bench.run_within(&["limits.parsers=1"], surrounding);
    gate.open();
    (ran, hung.load(Ordering::Acquire))
}

#[test]
fn a_walk_that_hangs_is_found_and_its_thread_replaced() {
    let bench = Bench::new(27, 12, 30);
    let did = bench.network.world().dids()[3].clone();
    let (ran, hung) = run_with_hanging_walks(&bench, &did, |walk| walk == 1);
    assert_eq!((ran.code.unwrap(), hung), (ExitCode::Done, 1));
    bench.assert_all_rows();
    assert_eq!(bench.network.repo_requests(&did), 2, "it was fetched again");
}

#[test]
fn an_account_whose_walks_always_hang_is_parked_and_the_others_are_done() {
    let bench = Bench::new(28, 6, 30);
    let did = bench.network.world().dids()[3].clone();
    let (ran, hung) = run_with_hanging_walks(&bench, &did, |_| true);
    assert_eq!((ran.code.unwrap(), hung), (ExitCode::SomeParked, 3));
    assert_eq!(number(&ran.summary, "/accounts/done"), 5);
    assert_eq!(ran.summary["parked"][0]["did"], did);
    assert_eq!(ran.summary["parked"][0]["reason"], "crash_loop");
}

#[test]
fn three_small_budgets_and_sixty_four_large_repositories_do_not_deadlock() {
    // About 10 MB a repository: 400 bytes of CAR a record.
    let bench = Bench::new(26, 64, 25_000);
    let begun: Arc<Mutex<HashMap<String, u32>>> = Arc::default();
    let seen = Arc::clone(&begun);
    let settings = [
        "limits.memory=64MiB",
        "fetch.concurrency=64",
        "limits.batch_size=64",
        // The generated hosts make their repositories when they are asked.
        "fetch.first_byte_timeout=10m",
        "fetch.total_timeout=30m",
    ];
    let ran = bench.run(&settings, move |point| {
        if let Point::Worker("fetcher", did) = point {
            *seen.lock().unwrap().entry(did.to_owned()).or_default() += 1;
        }
    });
    assert_eq!(ran.code.unwrap(), ExitCode::Done);
    let bytes = number(&ran.summary, "/repo_bytes");
    assert!(bytes > 64 * 9_000_000, "{bytes} bytes are not 64 repositories of about 10 MB");
    assert!(begun.lock().unwrap().values().all(|times| *times == 1), "none was fetched twice");
    let sum = |part: &str| -> u64 {
        ran.summary[part].as_object().unwrap().values().filter_map(Value::as_u64).sum()
    };
    assert_eq!(sum("records") + sum("skipped") + sum("rejected"), 64 * 25_000);
    assert_eq!(verified(&bench.data), sum("records"));
}

/// Records that `skyfill verify` finds to agree.
fn verified(data: &Path) -> u64 {
    let mut out = Vec::new();
    let agreement = skyfill::commands::verify::run(data, true, &mut out).unwrap();
    let value: Value = serde_json::from_slice(&out).unwrap();
    assert_eq!(agreement, skyfill::commands::verify::Agreement::Agree, "{value}");
    number(&value, "/records")
}

#[test]
fn hosts_are_asked_as_soon_as_the_territory_holds_them_and_not_before() {
    let (bench, territory, clock) = (Bench::new(29, 24, 20), Territory::shared(), Clock::system());
    let dids = bench.network.world().dids();
    let asked = || dids.iter().map(|did| bench.network.repo_requests(did)).sum::<usize>();
    let surrounding = Surrounding { territory: territory.clone(), ..Surrounding::system() };
    let is_nobody_asked = || {
        std::thread::sleep(Duration::from_millis(700));
        asked() == 0
    };
    let ran = std::thread::scope(|scope| {
        let running = scope.spawn(|| bench.run_within(&[], surrounding));
        // All of them are resolved meanwhile.
        assert!(is_nobody_asked(), "nothing is ours");
        territory.set(1, BTreeSet::from([0]));
        assert!(is_nobody_asked(), "without a lease");
        territory.renew(clock.now());
        assert!(is_nobody_asked(), "the lease is over");
        territory.renew(clock.now() + PATIENCE);
        running.join().unwrap()
    });
    assert_eq!((ran.code.unwrap(), asked()), (ExitCode::Done, dids.len()));
    bench.assert_all_rows();
}
