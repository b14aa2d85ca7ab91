//! The library inside a program of somebody else's, as a child process: it leaves the process alone, and a sink of the program's
//! own has every record once however often the program is killed.
//!
//! There is no harness: this program is started again by itself with `--as-quiet` and `--as-sink`, and what it prints then is
//! judged from outside.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]
#![allow(clippy::disallowed_methods, clippy::print_stdout)]

mod support;

use std::fs::{File, OpenOptions};
use std::hash::{Hash, Hasher};
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::time::Duration;

use skyfill::Backfill;
use skyfill::sink::{Position, SegmentReader, Sink, Start, StoreError};
use support::judge::{judge, queue_records};
use support::network::Network;
use support::oracle::Options;
use support::proc::Skyfill;
use support::world::{Records, Shape};

const PATIENCE: Duration = Duration::from_secs(100);

/// Items after which the sink's process says so, and is killed; each later start lives a little longer.
const KILLED_AFTER: [usize; 6] = [1, 2, 5, 9, 20, 31];

fn main() {
    let words: Vec<String> = std::env::args().collect();
    match words.get(1).map(String::as_str) {
        Some("--as-quiet") => be_quiet(&words[2..]),
        Some("--as-sink") => be_a_sink(&words[2..]),
        _ => {
            it_leaves_its_process_alone();
            println!("test it_leaves_its_process_alone ... ok");
            a_killed_programs_sink_has_every_record_once();
            println!("test a_killed_programs_sink_has_every_record_once ... ok");
        }
    }
}

/// A run as its arguments say: directory, PLC directory, list.
fn backfill(words: &[String]) -> Backfill {
    Backfill::builder()
        .data_dir(&words[0])
        .plc_url(&words[1])
        .dids_file(&words[2])
        .allow_network("127.0.0.0/8")
        .set("fetch.host_requests_per_second", "1000")
        .set("identity.requests_per_second", "1000")
        .set("limits.disk_free", "0B")
        .set("queue.rows_per_item", "5")
}

/// A network, and the arguments with which a child finds it.
fn set_up(seed: u64, folder: &Path) -> (Network, Vec<String>) {
    let shape = Shape { seed, accounts: 16, hosts: 2, records: Records::Fixed(40), odd: true };
    let network = Network::generate(&shape);
    let list = folder.join("dids.txt");
    std::fs::write(&list, network.world().dids().join("\n")).unwrap();
    let data = folder.join("data");
    let words = [data.to_str().unwrap(), &network.plc.url(), list.to_str().unwrap()];
    let words = words.map(str::to_owned).to_vec();
    (network, words)
}

fn myself() -> Skyfill {
    Skyfill::new(std::env::current_exe().unwrap())
}

fn it_leaves_its_process_alone() {
    let folder = tempfile::tempdir().unwrap();
    let (network, words) = set_up(71, folder.path());
    let words = [vec!["--as-quiet".to_owned()], words].concat();
    let finished = myself().run(&words, PATIENCE).expect_code(0);
    assert_eq!((finished.stdout.as_str(), finished.stderr.as_str()), ("", ""));
    let options = Options { rows_per_item: 5, ..Options::default() };
    judge(Path::new(&words[1]), network.expected(), &options).assert_clean();
}

/// What a library must not touch.
#[derive(Debug, PartialEq)]
struct Process {
    /// Masks of blocked, ignored and caught signals.
    signals: Vec<String>,
    folder: std::path::PathBuf,
    /// A hash: it is nobody's business in a test's output.
    environment: u64,
    executable: std::path::PathBuf,
    has_logger: bool,
    has_tls_provider: bool,
}

impl Process {
    fn now() -> Self {
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let is_mask =
            |line: &&str| ["SigBlk:", "SigIgn:", "SigCgt:"].iter().any(|it| line.starts_with(it));
        let signals: Vec<String> = status.lines().filter(is_mask).map(str::to_owned).collect();
        assert_eq!(signals.len(), 3);
        let mut environment = std::hash::DefaultHasher::new();
        std::env::vars_os().for_each(|variable| variable.hash(&mut environment));
        Self {
            signals,
            folder: std::env::current_dir().unwrap(),
            environment: environment.finish(),
            executable: std::fs::read_link("/proc/self/exe").unwrap(),
            has_logger: tracing::dispatcher::has_been_set(),
            has_tls_provider: rustls::crypto::CryptoProvider::get_default().is_some(),
        }
    }
}

/// A recorder of the program's own can only be set if nobody has set one.
struct Deaf;

impl metrics::Recorder for Deaf {
    fn describe_counter(
        &self,
        _: metrics::KeyName,
        _: Option<metrics::Unit>,
        _: metrics::SharedString,
    ) {
    }
    fn describe_gauge(
        &self,
        _: metrics::KeyName,
        _: Option<metrics::Unit>,
        _: metrics::SharedString,
    ) {
    }
    fn describe_histogram(
        &self,
        _: metrics::KeyName,
        _: Option<metrics::Unit>,
        _: metrics::SharedString,
    ) {
    }
    fn register_counter(&self, _: &metrics::Key, _: &metrics::Metadata<'_>) -> metrics::Counter {
        metrics::Counter::noop()
    }
    fn register_gauge(&self, _: &metrics::Key, _: &metrics::Metadata<'_>) -> metrics::Gauge {
        metrics::Gauge::noop()
    }
    fn register_histogram(
        &self,
        _: &metrics::Key,
        _: &metrics::Metadata<'_>,
    ) -> metrics::Histogram {
        metrics::Histogram::noop()
    }
}

fn be_quiet(words: &[String]) {
    // The C library takes a signal of its own with the first thread of a program.
    std::thread::spawn(|| ()).join().unwrap();
    let before = Process::now();
    let (running, mut events) = backfill(words).start_with_events().unwrap();
    assert!(events.blocking_next().is_some());
    assert_eq!(Process::now(), before, "while it runs");
    let report = running.wait().unwrap();
    assert_eq!(report.accounts.done, 16);
    assert_eq!(Process::now(), before, "after it ran");
    assert!(!before.has_logger && !before.has_tls_provider);
    assert!(metrics::set_global_recorder(Deaf).is_ok(), "there is a recorder already");
}

/// Lines of `[segment, item, label, records]`: the file's last whole line is its position.
struct Lines {
    file: File,
    position: Position,
    items: usize,
    tells_at: usize,
}

impl Sink for Lines {
    fn begin(&mut self, start: &Start) -> Result<Position, StoreError> {
        let (mut whole, mut position, mut line) = (0, start.known, String::new());
        let mut reader = BufReader::new(&self.file);
        while reader.read_line(&mut line).unwrap() > 0 && line.ends_with('\n') {
            let (segment, item, ..): (u64, u64, String, serde_json::Value) =
                serde_json::from_str(&line).unwrap();
            position = position.max(Position { segment, item });
            whole += line.len() as u64;
            line.clear();
        }
        self.file.set_len(whole).unwrap();
        self.position = position;
        Ok(position)
    }

    fn apply(&mut self, segment: &SegmentReader) -> Result<(), StoreError> {
        let mut buffer = Vec::new();
        for item in segment.items_from(self.position) {
            let Position { segment, item: index } = item.after;
            let head = format!("[{segment},{index},{:?},", item.label);
            self.file.write_all(head.as_bytes()).map_err(StoreError::sink)?;
            if self.items == self.tells_at {
                // Half a line is written: now is the moment.
                println!("enough");
                loop {
                    std::thread::park();
                }
            }
            let tail = format!("{}]\n", item.payload(&mut buffer)?);
            self.file.write_all(tail.as_bytes()).map_err(StoreError::sink)?;
            self.position = item.after;
            self.items += 1;
        }
        self.position = segment.end();
        Ok(())
    }

    fn settle(&mut self) -> Result<Vec<(String, Position)>, StoreError> {
        self.file.sync_data().map_err(StoreError::sink)?;
        Ok(vec![("lines".to_owned(), self.position)])
    }
}

fn be_a_sink(words: &[String]) {
    let path = Path::new(&words[0]).with_extension("lines");
    let file = OpenOptions::new().create(true).read(true).append(true).open(path).unwrap();
    let (position, tells_at) = (Position::default(), words[3].parse().unwrap());
    let lines = Lines { file, position, items: 0, tells_at };
    let report = backfill(words).sink("lines", lines).run().unwrap();
    assert_eq!(report.accounts.done, 16);
}

fn a_killed_programs_sink_has_every_record_once() {
    let folder = tempfile::tempdir().unwrap();
    let (network, words) = set_up(72, folder.path());
    let data = folder.path().join("data");
    let words = |tells_at: usize| {
        [vec!["--as-sink".to_owned()], words.clone(), vec![tells_at.to_string()]].concat()
    };
    for items in KILLED_AFTER {
        let child = myself().spawn(&words(items));
        assert!(child.wait_for("enough", PATIENCE), "{items}: {}", child.stderr());
        let killed = child.kill_and_wait();
        assert_eq!(killed.signal, Some(9));
    }
    myself().run(&words(usize::MAX), PATIENCE).expect_code(0);
    let options = Options { rows_per_item: 5, ..Options::default() };
    judge(&data, network.expected(), &options).assert_clean();
    let file = File::open(data.with_extension("lines")).unwrap();
    let mut records = Vec::new();
    for line in BufReader::new(file).lines() {
        let (_, _, label, rows): (u64, u64, String, Vec<serde_json::Value>) =
            serde_json::from_str(&line.unwrap()).unwrap();
        records.extend(rows.iter().map(|row| format!("{label} {row}")));
    }
    let mut wanted = Vec::new();
    for label in Options::default().labels() {
        let rows = queue_records(&data, &label);
        wanted.extend(rows.iter().map(|row| format!("{label} {row}")));
    }
    records.sort();
    wanted.sort();
    assert_eq!(records, wanted);
}
