//! The main job beside readers in the manner of the Python service: whole-table reads, marks, deletes and clearings, a busy
//! timeout of 5 s, and no knowledge of skyfill at all. What they did stays as they left it, whatever ends the process, and a
//! reader that takes what it reads sees every record once.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::disallowed_methods
)]

mod support;

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use fastrand::Rng;
use rusqlite::{Connection, OpenFlags, TransactionBehavior};
use serde_json::Value;
use support::job::backfill;
use support::judge::{judge, queue_path};
use support::network::Network;
use support::oracle::{Options, expect};
use support::pds::Manners;
use support::proc::{Running, Skyfill};
use support::world::{Records, Shape};

const PATIENCE: Duration = Duration::from_secs(100);

/// As the service's `sqlite3.connect(path, timeout=5)`.
const BUSY: Duration = Duration::from_secs(5);

/// Between two looks of a reader.
const LOOK_EVERY: Duration = Duration::from_millis(15);

struct Bench {
    network: Network,
    folder: tempfile::TempDir,
    more: Vec<String>,
}

impl Bench {
    fn new(shape: &Shape, more: &[&str]) -> Self {
        let network = Network::generate(shape);
        network.warm();
        let more = more.iter().map(|text| (*text).to_owned()).collect();
        Self { network, folder: tempfile::tempdir().unwrap(), more }
    }

    fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    fn start(&self) -> Running {
        let (data, dids) = (self.data(), self.network.world().dids().join(","));
        let arguments = backfill(&data, ["--dids", &dids], &self.network, &self.more);
        Skyfill::new(env!("CARGO_BIN_EXE_skyfill")).spawn(&arguments)
    }

    fn verify(&self, code: i32) {
        let data = self.data();
        let arguments = ["verify", "--data-dir", data.to_str().unwrap()];
        Skyfill::new(env!("CARGO_BIN_EXE_skyfill")).run(&arguments, PATIENCE).expect_code(code);
    }

    /// How often each row of `label` must be there.
    fn wanted(&self, label: &str) -> HashMap<String, u32> {
        let mut wanted = HashMap::new();
        for account in self.network.expected() {
            let mut rows = expect(&account, &Options::default()).rows;
            for row in rows.remove(label).unwrap_or_default() {
                *wanted.entry(row.to_string()).or_default() += 1;
            }
        }
        wanted
    }
}

/// A reader's connection, once the writer has made the file and its table.
fn connect(data: &Path, label: &str) -> Option<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let reader = Connection::open_with_flags(queue_path(data, label), flags).ok()?;
    reader.busy_timeout(BUSY).unwrap();
    let is_made = reader.prepare("SELECT * FROM queue").is_ok();
    is_made.then_some(reader)
}

fn wait_for_file(data: &Path, label: &str) -> Connection {
    let begun = Instant::now();
    loop {
        if let Some(reader) = connect(data, label) {
            return reader;
        }
        assert!(begun.elapsed() < PATIENCE, "{label} was never made");
        std::thread::sleep(LOOK_EVERY);
    }
}

/// Ids and payloads of what a reader selects.
fn select(reader: &Connection, sql: &str) -> Vec<(i64, String)> {
    let mut select = reader.prepare(sql).unwrap();
    let rows = select.query_map([], |row| Ok((row.get(0)?, row.get(1)?))).unwrap();
    rows.map(|row| row.expect("a reader is never refused")).collect()
}

/// Counts the records of a payload.
fn count_rows(payload: &str, seen: &mut HashMap<String, u32>) {
    let Ok(Value::Array(rows)) = payload.parse() else { panic!("no array: {payload:.100}") };
    for row in rows {
        *seen.entry(row.to_string()).or_default() += 1;
    }
}

/// What the readers share.
struct Readers {
    data: PathBuf,
    is_over: AtomicBool,
    looks: AtomicU64,
}

impl Readers {
    /// Looks again and again, and once more after the end.
    fn look(&self, label: &str, mut look: impl FnMut(&mut Connection)) {
        let mut reader = wait_for_file(&self.data, label);
        loop {
            let is_last = self.is_over.load(Ordering::Acquire);
            look(&mut reader);
            self.looks.fetch_add(1, Ordering::AcqRel);
            if is_last {
                return;
            }
            std::thread::sleep(LOOK_EVERY);
        }
    }

    /// Reads what is pending and deletes exactly that, in one transaction.
    fn take(&self, label: &str) -> HashMap<String, u32> {
        let mut seen = HashMap::new();
        self.look(label, |reader| {
            let transaction = reader.transaction_with_behavior(TransactionBehavior::Immediate);
            let transaction = transaction.expect("the lock is had within 5 s");
            let items =
                select(&transaction, "SELECT id, payload FROM queue WHERE status = 'pending'");
            for (id, payload) in &items {
                count_rows(payload, &mut seen);
                transaction.execute("DELETE FROM queue WHERE id = ?1", [id]).unwrap();
            }
            transaction.commit().unwrap();
        });
        seen
    }

    /// Reads everything, whatever its status, and clears the table.
    fn clear(&self, label: &str) -> HashMap<String, u32> {
        let mut seen = HashMap::new();
        self.look(label, |reader| {
            let transaction = reader.transaction_with_behavior(TransactionBehavior::Immediate);
            let transaction = transaction.expect("the lock is had within 5 s");
            for (_, payload) in select(&transaction, "SELECT id, payload FROM queue") {
                count_rows(&payload, &mut seen);
            }
            transaction.execute("DELETE FROM queue", []).unwrap();
            transaction.commit().unwrap();
        });
        seen
    }

    /// Marks every other item as completed or failed; gives the marks.
    fn mark(&self, label: &str) -> BTreeMap<i64, &'static str> {
        let mut marks = BTreeMap::new();
        self.look(label, |reader| {
            for (id, _) in select(reader, "SELECT id, payload FROM queue WHERE status = 'pending'")
            {
                let mark =
                    ["completed", "failed", "processing"].get(usize::try_from(id % 4).unwrap());
                if let Some(mark) = mark {
                    let marked =
                        reader.execute("UPDATE queue SET status = ?1 WHERE id = ?2", (mark, id));
                    assert_eq!(marked.expect("the lock is had within 5 s"), 1);
                    marks.insert(id, *mark);
                }
            }
        });
        marks
    }

    /// Reads the whole table, again and again; gives how many items there were at last.
    fn read(&self, label: &str) -> usize {
        let (mut count, mut ignored) = (0, HashMap::new());
        self.look(label, |reader| {
            let items = select(reader, "SELECT id, payload FROM queue ORDER BY id");
            assert!(items.len() >= count, "rows vanished from under a reader");
            items.iter().for_each(|(_, payload)| count_rows(payload, &mut ignored));
            ignored.clear();
            count = items.len();
        });
        count
    }
}

/// Kills the command over and over while readers work, then lets it end; gives how many kills met it.
fn run_with_kills(bench: &Bench, kills: usize, rng: &mut Rng) -> usize {
    let mut met = 0;
    for _ in 0..kills {
        let running = bench.start();
        assert!(running.wait_for("accounts listed", PATIENCE), "{}", running.stderr());
        if running.wait(Duration::from_millis(rng.u64(100..1_100))).is_none() && running.kill() {
            met += 1;
        }
        running.wait(PATIENCE).expect("nothing survives SIGKILL");
    }
    bench.start().finish(PATIENCE).expect_code(0);
    met
}

#[test]
fn what_readers_did_stays_and_takers_see_every_record_once() {
    let seed: u64 =
        std::env::var("SKYFILL_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or(7);
    let records = Records::Mixed { mean: 100 };
    // Small items, so that readers and writer meet often.
    let shape = Shape { seed: 71, accounts: 120, hosts: 4, records, odd: false };
    let bench = Bench::new(&shape, &["--set", "queue.rows_per_item=10"]);
    for host in &bench.network.hosts {
        let pace = Some(150_000);
        host.set_manners(Manners {
            chunk_bytes: 4 << 10,
            bytes_per_second: pace,
            ..Manners::default()
        });
    }
    let readers =
        Readers { data: bench.data(), is_over: AtomicBool::new(false), looks: AtomicU64::new(0) };
    let mut rng = Rng::with_seed(seed);
    std::thread::scope(|scope| {
        let post = scope.spawn(|| readers.take("post"));
        let reply = scope.spawn(|| readers.take("reply"));
        let repost = scope.spawn(|| readers.clear("repost"));
        let like = scope.spawn(|| readers.mark("like"));
        let follow = scope.spawn(|| readers.read("follow"));
        let met = run_with_kills(&bench, 3, &mut rng);
        // One more run over what the readers have made of it.
        bench.start().finish(PATIENCE).expect_code(0);
        readers.is_over.store(true, Ordering::Release);
        let taken = [("post", post.join()), ("reply", reply.join()), ("repost", repost.join())];
        let mut records = 0;
        for (label, seen) in taken {
            let (seen, wanted) = (seen.unwrap(), bench.wanted(label));
            let wrong = wanted.iter().filter(|(row, times)| seen.get(*row) != Some(*times)).count();
            assert_eq!((wrong, seen.len()), (0, wanted.len()), "SKYFILL_SEED={seed}: {label}");
            records += wanted.values().sum::<u32>();
        }
        let (marks, follows) = (like.join().unwrap(), follow.join().unwrap());
        bench.start().finish(PATIENCE).expect_code(0);
        bench.verify(0);
        assert!(
            select(&wait_for_file(&bench.data(), "post"), "SELECT id, payload FROM queue")
                .is_empty()
        );
        let likes = wait_for_file(&bench.data(), "like");
        let mut status = likes.prepare("SELECT status FROM queue WHERE id = ?1").unwrap();
        for (id, mark) in &marks {
            let found: String = status.query_row([id], |row| row.get(0)).unwrap();
            assert_eq!(found, *mark, "SKYFILL_SEED={seed}: item {id}");
        }
        let mut rows = HashMap::new();
        let items = select(&likes, "SELECT id, payload FROM queue");
        items.iter().for_each(|(_, payload)| count_rows(payload, &mut rows));
        assert_eq!(rows, bench.wanted("like"), "SKYFILL_SEED={seed}");
        assert!(met > 0, "no kill met the process");
        println!(
            "{met} kills, {} looks of 5 readers: {records} records taken once each, {} of {} items marked and left so, {follows} items \
             read to the end; seed {seed}",
            readers.looks.load(Ordering::Acquire),
            marks.len(),
            items.len()
        );
    });
}

#[test]
fn a_long_read_transaction_stops_nothing_and_the_growing_wal_is_named() {
    const HELD: Duration = Duration::from_secs(20);
    // Rows of about 45 MB in one queue.
    let shape =
        Shape { seed: 72, accounts: 8, hosts: 2, records: Records::Fixed(20_000), odd: false };
    let bench = Bench::new(&shape, &["--types", "like", "--set", "fetch.first_byte_timeout=2m"]);
    let running = bench.start();
    let reader = wait_for_file(&bench.data(), "like");
    let held = Instant::now();
    reader.execute_batch("BEGIN").unwrap();
    let count = |reader: &Connection| -> i64 {
        reader.query_row("SELECT count(*) FROM queue", [], |row| row.get(0)).unwrap()
    };
    let first = count(&reader);
    let mut is_named = false;
    while held.elapsed() < HELD {
        is_named |=
            running.stderr().contains("a reader's open transaction keeps the WAL, which grows");
        // Whatever the writer does meanwhile, the reader sees what it saw.
        assert_eq!(count(&reader), first);
        std::thread::sleep(Duration::from_millis(100));
    }
    reader.execute_batch("COMMIT").unwrap();
    let finished = running.finish(PATIENCE).expect_code(0);
    let line =
        finished.stderr.lines().find(|line| line.contains("which grows")).unwrap_or_default();
    assert!(is_named && line.contains("output_backfill_sync_like.db-wal"), "{}", finished.stderr);
    assert!(line.contains("bytes="), "{line}");
    let likes = |options: &Options| judge(&bench.data(), bench.network.expected(), options);
    likes(&Options { types: vec!["like".to_owned()], ..Options::default() }).assert_clean();
    bench.verify(0);
    println!("a reader held its transaction for {HELD:?}; {line}");
}

#[test]
fn a_held_write_lock_is_waited_for_and_named() {
    // Longer than SQLite's own wait, at the start and in the middle.
    const HELD: Duration = Duration::from_secs(12);
    let shape = Shape { seed: 73, accounts: 10, hosts: 2, records: Records::Fixed(20), odd: false };
    let bench = Bench::new(&shape, &[]);
    let half = bench.start();
    let holder = wait_for_file(&bench.data(), "post");
    holder.execute_batch("BEGIN IMMEDIATE").unwrap();
    let held = Instant::now();
    let is_waited_for = half.wait_for("another process holds the queue's write lock", HELD);
    assert!(is_waited_for || !half.is_running(), "{}", half.stderr());
    half.kill();
    half.wait(PATIENCE).unwrap();
    // It still holds the lock when the next one starts.
    let running = bench.start();
    assert!(
        running.wait(HELD.saturating_sub(held.elapsed())).is_none(),
        "it did not wait: {}",
        running.stderr()
    );
    assert!(running.wait_for("output_backfill_sync_post.db", HELD), "{}", running.stderr());
    holder.execute_batch("ROLLBACK").unwrap();
    running.finish(PATIENCE).expect_code(0);
    judge(&bench.data(), bench.network.expected(), &Options::default()).assert_clean();
    bench.verify(0);
}
