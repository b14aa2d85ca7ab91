//! What runs outside the test: node with the real network, and the skyfill binary. Both are waited for by events with a
//! bound, both are ended through their own handles, and what they wrote to stderr is shown when a test fails.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::thread;
use std::time::Duration;

use serde::Deserialize;
use serde_json::{Map, Value};

/// Seconds until the network must be seeded; it takes 5 on an idle machine.
const SEED_SECONDS: u64 = 240;
/// Seconds that the network has for one more step, or for its end.
const STEP_SECONDS: u64 = 60;
/// Seconds that one command of skyfill may take; a run over the whole network needs few.
const COMMAND_SECONDS: u64 = 180;

/// `net.json`.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct Seeded {
    pub plc: String,
    /// PDSes, the second one with rate limits.
    pub hosts: Vec<String>,
    /// Answers so far by server (`a`, `b`, `plc`) and status.
    pub answers: BTreeMap<String, BTreeMap<String, u64>>,
    /// Requests for documents so far, by DID.
    pub asked: BTreeMap<String, u64>,
    pub accounts: Vec<Account>,
}

/// An account with its expected end.
#[derive(Clone, Debug, Deserialize)]
pub struct Account {
    pub name: String,
    pub did: String,
    pub handle: Option<String>,
    /// As the DID document has it.
    pub endpoint: Option<String>,
    /// `done` or `parked`.
    pub end: String,
    pub reason: Option<String>,
    pub rev: Option<String>,
    /// CID of the commit.
    pub commit: Option<String>,
    /// What the repository holds now; only of accounts that are to be done.
    pub records: Vec<Record>,
}

/// A record with its expected fate.
#[derive(Clone, Debug, Deserialize)]
pub struct Record {
    /// `<collection>/<rkey>`.
    pub key: String,
    /// `exported`, `rejected` or `skipped`.
    pub verdict: String,
    pub queue: Option<String>,
    /// Why it is rejected or skipped.
    pub reason: Option<String>,
    /// Whether an exported record lies in the window.
    pub inside: Option<bool>,
    /// Every field of its row, in order, but `rev`.
    pub row: Option<Map<String, Value>>,
}

impl Account {
    pub fn is_done(&self) -> bool {
        self.end == "done"
    }
}

/// The running network; ends with its last user.
pub struct Network {
    seeded: Mutex<Seeded>,
    folder: tempfile::TempDir,
    node: Child,
    /// Closed, it ends the network, so that no killed test leaves one behind.
    stdin: Mutex<Option<ChildStdin>>,
    lines: Mutex<Receiver<String>>,
    errors: Arc<Mutex<String>>,
}

static SHARED: Mutex<Weak<Network>> = Mutex::new(Weak::new());

impl Network {
    /// The one network of this process; started if there is none.
    pub fn shared() -> Arc<Self> {
        let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
        shared.upgrade().unwrap_or_else(|| {
            let network = Arc::new(Self::start());
            *shared = Arc::downgrade(&network);
            network
        })
    }

    fn start() -> Self {
        let scripts = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/network");
        assert!(
            scripts.join("node_modules/@atproto/pds").is_dir(),
            "tests/network/node_modules is missing: run tests/run, or `npm ci` in tests/network"
        );
        let folder = tempfile::tempdir().unwrap();
        let spawned = Command::new("node")
            .arg(scripts.join("net.mjs"))
            .env("OUT", folder.path().join("net.json"))
            .env("DATA_DIR", folder.path())
            .env("EXIT_ON_EOF", "1")
            .env("LOG_ENABLED", "false")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn();
        let mut node = spawned.unwrap_or_else(|error| {
            panic!("node does not start ({error}): this test needs Node 20 with npm, install it and run tests/run")
        });
        let stdin = Mutex::new(node.stdin.take());
        let lines = Mutex::new(lines_of(node.stdout.take().unwrap()));
        let errors = Arc::new(Mutex::new(String::new()));
        let (stderr, sink) = (node.stderr.take().unwrap(), Arc::clone(&errors));
        thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                let _infallible =
                    writeln!(sink.lock().unwrap_or_else(PoisonError::into_inner), "{line}");
            }
        });
        let seeded = Mutex::new(Seeded::default());
        let network = Self { seeded, folder, node, stdin, lines, errors };
        println!("network: {}", network.line(SEED_SECONDS));
        *network.turn() = network.read();
        network
    }

    /// What the network holds, for one test at a time, because tests change it.
    pub fn turn(&self) -> MutexGuard<'_, Seeded> {
        self.seeded.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets the account that waits for it move to its new host; gives what the network then holds.
    pub fn move_account(&self) -> Seeded {
        let mut stdin = self.stdin.lock().unwrap();
        writeln!(stdin.as_mut().unwrap(), "move").unwrap();
        println!("network: {}", self.line(STEP_SECONDS));
        self.read()
    }

    /// Lets the accounts' owners make 200 edits; gives what the network then holds.
    pub fn edit(&self) -> Seeded {
        let mut stdin = self.stdin.lock().unwrap();
        writeln!(stdin.as_mut().unwrap(), "edit").unwrap();
        println!("network: {}", self.line(STEP_SECONDS));
        self.read()
    }

    /// What was answered and asked for so far.
    pub fn counted(&self) -> Seeded {
        let mut stdin = self.stdin.lock().unwrap();
        writeln!(stdin.as_mut().unwrap(), "count").unwrap();
        println!("network: {}", self.line(STEP_SECONDS));
        self.read()
    }

    fn read(&self) -> Seeded {
        let file = File::open(self.folder.path().join("net.json")).unwrap();
        serde_json::from_reader(BufReader::new(file)).unwrap()
    }

    /// The next line that the network prints: one step of it is complete.
    fn line(&self, seconds: u64) -> String {
        let line = self.lines.lock().unwrap().recv_timeout(Duration::from_secs(seconds));
        line.unwrap_or_else(|error| match error {
            RecvTimeoutError::Timeout => panic!("the network was not ready after {seconds} s"),
            RecvTimeoutError::Disconnected => panic!("the network ended before it was ready"),
        })
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        self.stdin.lock().unwrap_or_else(PoisonError::into_inner).take();
        let lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        while lines.recv_timeout(Duration::from_secs(STEP_SECONDS)).is_ok() {}
        if !matches!(lines.try_recv(), Err(std::sync::mpsc::TryRecvError::Disconnected)) {
            let _already_gone = self.node.kill();
        }
        let _already_gone = self.node.wait();
        if thread::panicking() {
            let errors = self.errors.lock().unwrap_or_else(PoisonError::into_inner);
            eprintln!("stderr of the network:\n{}", tail(&errors));
        }
    }
}

/// What a command of skyfill said.
pub struct Said {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl Said {
    /// Standard output as one JSON object.
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| {
            panic!("stdout is no JSON ({error}): {}\n{}", self.stdout, tail(&self.stderr))
        })
    }

    #[track_caller]
    pub fn exits_with(self, code: i32) -> Self {
        assert_eq!(self.code, Some(code), "stdout: {}\n{}", self.stdout, tail(&self.stderr));
        self
    }
}

/// Runs the binary to its end.
pub fn skyfill(arguments: &[&str]) -> Said {
    let mut child = Command::new(env!("CARGO_BIN_EXE_skyfill"))
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let (stdout, stderr) = (child.stdout.take().unwrap(), child.stderr.take().unwrap());
    let (stdout, stderr) = (all_of(stdout), all_of(stderr));
    let within = Duration::from_secs(COMMAND_SECONDS);
    let read = (stdout.recv_timeout(within), stderr.recv_timeout(within));
    let (Ok(stdout), Ok(stderr)) = read else {
        let _already_gone = child.kill();
        let _already_gone = child.wait();
        let stderr = stderr.recv().unwrap_or_default();
        panic!("skyfill {arguments:?} did not end within {COMMAND_SECONDS} s\n{}", tail(&stderr));
    };
    Said { code: child.wait().unwrap().code(), stdout, stderr }
}

/// The queue file of one type.
pub fn queue_file(data: &Path, label: &str) -> PathBuf {
    data.join("queue").join(format!("output_backfill_sync_{label}.db"))
}

fn lines_of(pipe: impl Read + Send + 'static) -> Receiver<String> {
    let (sender, receiver) = sync_channel(16);
    thread::spawn(move || {
        for line in BufReader::new(pipe).lines().map_while(Result::ok) {
            if sender.send(line).is_err() {
                break;
            }
        }
    });
    receiver
}

fn all_of(mut pipe: impl Read + Send + 'static) -> Receiver<String> {
    let (sender, receiver) = sync_channel(1);
    thread::spawn(move || {
        let mut bytes = Vec::new();
        let _closed_early = pipe.read_to_end(&mut bytes);
        let _nobody_waits = sender.send(String::from_utf8_lossy(&bytes).into_owned());
    });
    receiver
}

/// The last lines of a log.
fn tail(text: &str) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(60)..].join("\n")
}
