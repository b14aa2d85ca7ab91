//! The library as a program sees it: the Python service's function, the builder, events, cancellation, sinks of one's own, and
//! several runs in one process.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]
#![allow(clippy::disallowed_methods, reason = "the servers live in real time")]

mod support;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use skyfill::sink::{Position, SegmentReader, Sink, Start, StoreError};
use skyfill::{Backfill, BatchedBackfill, Error, ErrorKind, Event};
use support::faults::{At, Fault, Place, Target, Then};
use support::judge::{judge, queue_records};
use support::network::{Network, Standing};
use support::oracle::{Options, expect};
use support::world::{Records, Shape};

const PATIENCE: Duration = Duration::from_secs(100);

/// Gaps between 32 tries for a lock that a drain still holds.
const DRAIN_LOOKS: Duration = Duration::from_millis(100);

fn shape(seed: u64, accounts: usize, records: usize) -> Shape {
    Shape { seed, accounts, hosts: 2, records: Records::Fixed(records), odd: true }
}

/// A run over everything in `network` that may ask as fast as it likes.
fn backfill(network: &Network, data: &Path) -> Backfill {
    over(network, data).dids(network.world().dids())
}

fn over(network: &Network, data: &Path) -> Backfill {
    Backfill::builder()
        .data_dir(data)
        .plc_url(&network.plc.url())
        .allow_network("127.0.0.0/8")
        .set("fetch.host_requests_per_second", "1000")
        .set("identity.requests_per_second", "1000")
        .set("limits.disk_free", "0B")
}

/// The seed's keys against the oracle.
fn check_batched(batched: &BatchedBackfill, network: &Network) {
    let options = Options::default();
    for account in network.expected() {
        let counts: BTreeMap<String, u64> = expect(&account, &options).counts.exported;
        let mut found = batched.did_to_backfill_counts_map[&account.did].clone();
        found.retain(|_, count| *count > 0);
        let mut wanted = counts.clone();
        wanted.retain(|_, count| *count > 0);
        assert_eq!(found, wanted, "{}", account.did);
        let mut users = batched.user_backfill_metadata.iter();
        let user = users.find(|user| user.did == account.did).unwrap();
        assert_eq!(user.total_records, counts.values().sum::<u64>());
        assert_eq!((&user.rev, &user.bluesky_handle), (&account.rev, &account.handle));
        assert!(user.total_records_by_type.starts_with('{') && !user.timestamp.is_empty());
    }
}

#[test]
fn the_services_function_gives_its_keys_blocking_and_async() {
    let network = Network::generate(&shape(51, 11, 40));
    network.set_standing(4, Standing::Deactivated);
    let folder = tempfile::tempdir().unwrap();
    let dids = network.world().dids();
    let window = (Some("2024-09-27-00:00:00"), Some("2024-12-02-00:00:00"));
    let data = folder.path().join("blocking");
    // Given twice, counted once.
    let twice = [dids.clone(), dids.clone()].concat();
    let batched = over(&network, &data).run_batched(twice, 5, window.0, window.1).unwrap();
    let totals = (batched.total_batches, batched.total_users, batched.total_processed_users);
    assert_eq!(totals, (3, 11, 10));
    assert_eq!(batched.did_to_backfill_counts_map.len(), 10);
    assert_eq!(batched.parked.len(), 1);
    assert_eq!(batched.parked[0].did, dids[4]);
    assert_eq!(batched.parked[0].reason, "repo_deactivated");
    check_batched(&batched, &network);
    judge(&data, network.expected(), &Options::default()).assert_clean();
    let json = serde_json::to_value(&batched).unwrap();
    for key in ["total_batches", "did_to_backfill_counts_map", "total_processed_users"] {
        assert!(json.get(key).is_some(), "{key}");
    }
    assert!(json["user_backfill_metadata"][0]["total_records_by_type"].is_string());
    let data = folder.path().join("async");
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let running = over(&network, &data).run_batched_async(dids, 11, None, None);
    let again = runtime.block_on(running).unwrap();
    assert_eq!(again.total_batches, 1);
    assert_eq!(again.did_to_backfill_counts_map, batched.did_to_backfill_counts_map);
}

#[test]
fn on_a_current_thread_runtime_it_blocks_no_other_task() {
    let network = Network::generate(&shape(52, 6, 30));
    let slow = Fault::SlowHeaders(Duration::from_millis(700));
    network.faults().script(Place::Repo, Target::Any, [slow], Then::Heal);
    let folder = tempfile::tempdir().unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    let ticks = Arc::new(AtomicU64::new(0));
    let report = runtime.block_on(async {
        let counted = Arc::clone(&ticks);
        let ticking = tokio::spawn(async move {
            let mut interval = tokio::time::interval(Duration::from_millis(5));
            loop {
                interval.tick().await;
                counted.fetch_add(1, Ordering::AcqRel);
            }
        });
        let inner = tokio::spawn(backfill(&network, &folder.path().join("data")).run_async());
        let report = inner.await.unwrap();
        ticking.abort();
        report
    });
    assert_eq!(report.unwrap().accounts.done, 6);
    network.faults().assert_fired(&["slow_headers"]);
    let ticks = ticks.load(Ordering::Acquire);
    assert!(ticks >= 40, "another task ran only {ticks} times in 700 ms");
}

#[test]
fn several_runs_share_a_process_but_no_data_directory() {
    let networks = [61, 62].map(|seed| Network::generate(&shape(seed, 8, 30)));
    let folder = tempfile::tempdir().unwrap();
    let slow = || Fault::SlowHeaders(Duration::from_millis(500));
    for network in &networks {
        network.faults().script(Place::Repo, Target::Any, [slow()], Then::Heal);
    }
    let data = [0, 1].map(|number| folder.path().join(format!("data-{number}")));
    let started = [0, 1].map(|it| backfill(&networks[it], &data[it]).start_with_events().unwrap());
    let [(one, mut events), (two, _unheard)] = started;
    // Its first event says that it has the directory.
    assert!(events.blocking_next().is_some());
    let held = backfill(&networks[0], &data[0]).run().unwrap_err();
    assert_eq!(held.kind(), ErrorKind::Locked, "{held}");
    let Error::Locked { pid, .. } = held else { panic!("{held}") };
    assert_eq!(pid, std::process::id().to_string());
    assert_eq!(one.wait().unwrap().accounts.done, 8);
    assert_eq!(two.wait().unwrap().accounts.done, 8);
    for it in [0, 1] {
        judge(&data[it], networks[it].expected(), &Options::default()).assert_clean();
        networks[it].faults().assert_fired(&["slow_headers"]);
    }
}

#[test]
fn a_listener_that_is_slow_loses_no_account() {
    let accounts = 700;
    let network = Network::generate(&shape(53, accounts, 2));
    network.set_standing(3, Standing::Deleted);
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let dids = || [network.world().dids(), vec!["did:plc:TYPO".to_owned()]].concat();
    for run in ["first", "again"] {
        let order = over(&network, &data).dids(dids());
        let (running, mut events) = order.start_with_events().unwrap();
        // Nobody listens while the work is done: more is decided than the channel holds.
        let report = running.wait().unwrap();
        assert_eq!((report.accounts.done, report.accounts.parked), (accounts as u64 - 1, 2));
        let (mut done, mut parked) = (BTreeMap::new(), BTreeMap::new());
        while let Some(event) = events.blocking_next() {
            match event {
                Event::Done(user) => *done.entry(user.did).or_insert(0) += 1,
                Event::Parked(it) => *parked.entry(it.did).or_insert(0) += 1,
                Event::Progress(_) => {}
                other => panic!("{other:?}"),
            }
        }
        assert_eq!((done.len(), parked.len()), (accounts - 1, 2), "{run}");
        assert!(done.values().chain(parked.values()).all(|times| *times == 1), "{run}");
    }
}

#[test]
fn a_cancelled_run_says_how_far_it_came_and_goes_on() {
    let network = Network::generate(&shape(54, 30, 40));
    let stuck = network.world().did(7).to_owned();
    network.faults().once(&stuck, Fault::Stall(At::Middle));
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let order = backfill(&network, &data).set("fetch.idle_timeout", "1s");
    let (running, mut events) = order.start_with_events().unwrap();
    let handle = running.handle();
    assert!(events.blocking_next().is_some());
    while network.faults().fired("stall") == 0 {
        assert!(events.blocking_next().is_some(), "it ended before the transfer stalled");
    }
    handle.cancel();
    let cancelled = running.wait().unwrap_err();
    assert_eq!(cancelled.kind(), ErrorKind::Cancelled);
    let Error::Cancelled(report) = cancelled else { panic!() };
    assert!(report.interrupted && report.accounts.left > 0, "{report:?}");
    assert_eq!(report.accounts.total(), 30);
    network.faults().assert_fired(&["stall"]);
    let report = backfill(&network, &data).run().unwrap();
    assert_eq!(report.accounts.done, 30);
    judge(&data, network.expected(), &Options::default()).assert_clean();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dropped_future_cancels_and_everything_goes_on_later() {
    let network = Network::generate(&shape(55, 20, 40));
    let faults = (0..20).map(|_| Fault::SlowHeaders(Duration::from_millis(300)));
    network.faults().script(Place::Repo, Target::Any, faults, Then::Heal);
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let (running, mut events) = backfill(&network, &data).start_with_events().unwrap();
    assert!(events.next().await.is_some());
    drop(running);
    // The drain needs nobody to hear it, and releases the directory.
    let begun = std::time::Instant::now();
    let report = loop {
        match backfill(&network, &data).run_async().await {
            Err(error) if error.kind() == ErrorKind::Locked => {
                assert!(begun.elapsed() < PATIENCE, "{error}");
                tokio::time::sleep(DRAIN_LOOKS).await;
            }
            report => break report.unwrap(),
        }
    };
    assert_eq!(report.accounts.done, 20);
    assert!(report.this_run.done > 0, "the first run was not cancelled: {report:?}");
    network.faults().assert_fired(&["slow_headers"]);
    judge(&data, network.expected(), &Options::default()).assert_clean();
}

#[test]
fn what_makes_no_sense_is_said_by_kind_before_anything_begins() {
    let folder = tempfile::tempdir().unwrap();
    let kind = |order: Backfill| order.data_dir(folder.path()).run().unwrap_err().kind();
    assert_eq!(kind(Backfill::new()), ErrorKind::Usage);
    assert_eq!(kind(Backfill::new().dids([""; 2])), ErrorKind::Usage);
    let did = "did:plc:z72i7hdynmk6r22z27h6tvur";
    let order = || Backfill::new().dids([did]);
    assert_eq!(kind(order().set("fetch.speed", "1")), ErrorKind::Configuration);
    assert_eq!(kind(order().batch_size(0)), ErrorKind::Configuration);
    assert_eq!(kind(order().start_timestamp("yesterday")), ErrorKind::Configuration);
    assert_eq!(kind(order().config("/nowhere/skyfill.toml")), ErrorKind::Configuration);
    assert_eq!(kind(Backfill::new().dids_file("/nowhere/dids.txt")), ErrorKind::Configuration);
    let named = order().types(["posts"]).run().unwrap_err().to_string();
    assert!(named.contains("Backfill::types") && named.contains("posts"), "{named}");
}

/// A sink in this process's memory, which outlives the runs; what is not committed dies with a run.
#[derive(Clone, Default)]
struct Memory {
    kept: Arc<Mutex<Kept>>,
    pending: Vec<String>,
    /// Fails at this item, counted over all runs; `u64::MAX`: never.
    fails_at: Arc<AtomicU64>,
    panics: bool,
    seen: Arc<AtomicU64>,
}

#[derive(Default)]
struct Kept {
    rows: Vec<String>,
    position: Position,
}

/// Items in one of its transactions.
const COMMIT_ITEMS: usize = 3;

impl Memory {
    fn commit(&mut self, position: Position) {
        let mut kept = self.kept.lock().unwrap();
        kept.rows.append(&mut self.pending);
        kept.position = position;
    }
}

impl Sink for Memory {
    fn begin(&mut self, start: &Start) -> Result<Position, StoreError> {
        let mut kept = self.kept.lock().unwrap();
        kept.position = kept.position.max(start.known);
        Ok(kept.position)
    }

    fn apply(&mut self, segment: &SegmentReader) -> Result<(), StoreError> {
        let position = self.kept.lock().unwrap().position;
        let mut buffer = Vec::new();
        for item in segment.items_from(position) {
            if self.seen.fetch_add(1, Ordering::AcqRel) == self.fails_at.load(Ordering::Acquire) {
                assert!(!self.panics, "as the test wants it");
                return Err(StoreError::sink("as the test wants it"));
            }
            let row = format!("{} {} {}", item.label, item.account.did, item.payload(&mut buffer)?);
            self.pending.push(row);
            if self.pending.len() >= COMMIT_ITEMS {
                self.commit(item.after);
            }
        }
        self.commit(segment.end());
        Ok(())
    }

    fn settle(&mut self) -> Result<Vec<(String, Position)>, StoreError> {
        Ok(vec![("memory".to_owned(), self.kept.lock().unwrap().position)])
    }
}

/// Every record in the queues, each as the sink writes it if it were an item of its own.
fn records_of(rows: &[String]) -> Vec<String> {
    let mut records = Vec::new();
    for row in rows {
        let (label, rest) = row.split_once(' ').unwrap();
        let (_, payload) = rest.split_once(' ').unwrap();
        let items: Vec<serde_json::Value> = serde_json::from_str(payload).unwrap();
        records.extend(items.iter().map(|item| format!("{label} {item}")));
    }
    records.sort();
    records
}

fn records_in_queues(data: &Path) -> Vec<String> {
    let mut records = Vec::new();
    for label in Options::default().labels() {
        let rows = queue_records(data, &label);
        records.extend(rows.iter().map(|row| format!("{label} {row}")));
    }
    records.sort();
    records
}

#[test]
fn a_sink_of_ones_own_has_every_record_once_wherever_it_dies() {
    let network = Network::generate(&shape(56, 12, 40));
    let folder = tempfile::tempdir().unwrap();
    let mut deaths = 0;
    for (number, fails_at) in [0, 1, 2, 3, 7, 20, 33, 60].into_iter().enumerate() {
        let data = folder.path().join(format!("data-{number}"));
        let memory = Memory { panics: number % 2 == 1, ..Memory::default() };
        let order = || {
            let order = backfill(&network, &data).set("queue.rows_per_item", "5");
            order.sink("memory", Memory { pending: Vec::new(), ..memory.clone() })
        };
        // It dies twice: in the first run, and again a little later, then lives.
        for later in [0, 9] {
            let seen = memory.seen.load(Ordering::Acquire);
            memory.fails_at.store(seen + fails_at + later, Ordering::Release);
            match order().run() {
                Ok(_) => assert!(memory.seen.load(Ordering::Acquire) <= seen + fails_at + later),
                Err(error) => {
                    assert_eq!(error.kind(), ErrorKind::Sink, "{error}");
                    assert!(error.to_string().starts_with("sink memory: "), "{error}");
                    deaths += 1;
                }
            }
        }
        memory.fails_at.store(u64::MAX, Ordering::Release);
        assert_eq!(order().run().unwrap().accounts.done, 12);
        judge(&data, network.expected(), &Options { rows_per_item: 5, ..Options::default() })
            .assert_clean();
        let kept = memory.kept.lock().unwrap();
        assert_eq!(records_of(&kept.rows), records_in_queues(&data), "fails at {fails_at}");
    }
    assert!(deaths >= 12, "{deaths} of 16 runs died");
}

#[test]
fn a_known_sink_is_missed_until_it_is_let_go() {
    let network = Network::generate(&shape(57, 6, 20));
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let memory = Memory { fails_at: Arc::new(AtomicU64::new(u64::MAX)), ..Memory::default() };
    let first = over(&network, &data).dids(&network.world().dids()[..3]);
    first.sink("memory", memory.clone()).run().unwrap();
    let rows = memory.kept.lock().unwrap().rows.len();
    assert!(rows > 0);
    let missed = backfill(&network, &data).run().unwrap_err();
    assert_eq!(missed.kind(), ErrorKind::Configuration);
    assert!(missed.to_string().contains("let_sink_go"), "{missed}");
    let report = backfill(&network, &data).let_sink_go("memory").run().unwrap();
    assert_eq!(report.accounts.done, 6);
    assert_eq!(memory.kept.lock().unwrap().rows.len(), rows);
    let wrong = backfill(&network, &data).sink("Memory", memory).run().unwrap_err();
    assert_eq!(wrong.kind(), ErrorKind::Configuration);
}

/// A sink that is away until it is told otherwise.
struct Away(Memory, Arc<AtomicU64>);

impl Sink for Away {
    fn begin(&mut self, start: &Start) -> Result<Position, StoreError> {
        self.0.begin(start)
    }

    fn apply(&mut self, segment: &SegmentReader) -> Result<(), StoreError> {
        if self.1.fetch_sub(1, Ordering::AcqRel) > 1 {
            return Err(StoreError::busy("the broker is away"));
        }
        self.1.store(1, Ordering::Release);
        self.0.apply(segment)
    }

    fn settle(&mut self) -> Result<Vec<(String, Position)>, StoreError> {
        self.0.settle()
    }
}

#[test]
fn a_sink_that_is_away_holds_up_no_queue_and_the_run_ends_when_it_has_everything() {
    let network = Network::generate(&shape(58, 10, 40));
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let never = || Arc::new(AtomicU64::new(u64::MAX));
    let (slow, swift) = (
        Memory { fails_at: never(), ..Memory::default() },
        Memory { fails_at: never(), ..Memory::default() },
    );
    let refusals = Arc::new(AtomicU64::new(u64::MAX));
    let order = backfill(&network, &data)
        .sink("slow", Away(slow.clone(), Arc::clone(&refusals)))
        .sink("swift", swift.clone());
    let (running, mut events) = order.start_with_events().unwrap();
    let handle = running.handle();
    // All accounts are decided while the slow one still refuses.
    let mut done = 0;
    while done < 10 {
        done += u64::from(matches!(events.blocking_next().unwrap(), Event::Done(_)));
    }
    while refusals.load(Ordering::Acquire) == u64::MAX || handle.progress().done < 10 {
        assert!(events.blocking_next().is_some(), "it ended without the sink");
    }
    assert!(slow.kept.lock().unwrap().rows.is_empty());
    let waits = |name: &str| handle.sinks().into_iter().find(|it| it.name == name).unwrap().waits;
    while waits("slow").is_none() {
        assert!(events.blocking_next().is_some(), "it ended without the sink");
    }
    assert!(waits("slow").unwrap().contains("the broker is away"));
    assert_eq!(waits("swift"), None);
    refusals.store(1, Ordering::Release);
    running.wait().unwrap();
    let queues = records_in_queues(&data);
    assert_eq!(records_of(&slow.kept.lock().unwrap().rows), queues);
    assert_eq!(records_of(&swift.kept.lock().unwrap().rows), queues);
}

#[test]
fn a_sink_that_stays_away_costs_the_journals_space_and_no_more() {
    let network = Network::generate(&shape(59, 24, 2_000));
    network.warm();
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let never = Arc::new(AtomicU64::new(u64::MAX));
    let memory = Memory { fails_at: never, ..Memory::default() };
    let refusals = Arc::new(AtomicU64::new(u64::MAX));
    let (running, mut events) = backfill(&network, &data)
        .set("limits.journal", "16MiB")
        .sink("away", Away(memory.clone(), Arc::clone(&refusals)))
        .start_with_events()
        .unwrap();
    // Once the journal is full nothing more is decided: three looks, a second apart, are the same.
    let (mut known, mut same) = (0, 0);
    while same < 3 {
        if let Event::Progress(now) = events.blocking_next().expect("it waits for the sink") {
            same = if now.done > 0 && now.done == known { same + 1 } else { 0 };
            known = now.done;
        }
    }
    assert!(known < 24, "the journal was large enough for everything");
    let files = std::fs::read_dir(data.join("journal")).unwrap();
    let bytes: u64 = files.flatten().map(|file| file.metadata().unwrap().len()).sum();
    assert!(bytes <= 16 << 20, "{bytes}");
    refusals.store(1, Ordering::Release);
    assert_eq!(running.wait().unwrap().accounts.done, 24);
    assert_eq!(records_of(&memory.kept.lock().unwrap().rows), records_in_queues(&data));
    judge(&data, network.expected(), &Options::default()).assert_clean();
}
