//! The daemon as systemd and an operator see it: the real binary, a fake notify socket, a generated network, and the oracle.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::disallowed_methods
)]

mod support;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use serde_json::Value;
use support::judge::judge;
use support::network::{Network, Standing};
use support::oracle::Options;
use support::pds::Manners;
use support::proc::{Finished, Running, Signal, Skyfill};
use support::world::{Records, Shape};

const PATIENCE: Duration = Duration::from_secs(60);

/// A folder with a configuration, a list and a notify socket.
struct Bench {
    folder: tempfile::TempDir,
    /// What systemd was told, in order.
    notify: Receiver<String>,
    skyfill: Skyfill,
    extra: String,
    /// `metrics.listen`.
    metrics: String,
}

impl Bench {
    fn new(network: &Network) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("notify");
        let notify = UnixDatagram::bind(&socket).unwrap();
        let (told, notified) = channel();
        // Ends when the bench is gone and something more, or nothing for a while, is said.
        notify.set_read_timeout(Some(PATIENCE * 2)).unwrap();
        std::thread::spawn(move || {
            let mut buffer = [0; 8 << 10];
            while let Ok(length) = notify.recv(&mut buffer) {
                let message = String::from_utf8_lossy(&buffer[..length]).into_owned();
                if told.send(message).is_err() {
                    return;
                }
            }
        });
        let skyfill = Skyfill::new(env!("CARGO_BIN_EXE_skyfill"))
            .env("NOTIFY_SOCKET", socket.to_str().unwrap());
        let flags = network.flags();
        let extra = format!(
            "identity.plc_url = \"{}\"\nidentity.requests_per_second = 1000\nnetwork.allow = [\"127.0.0.0/8\"]\n\
             fetch.host_requests_per_second = 1000\nlimits.disk_free = \"0B\"\n",
            flags[1]
        );
        let metrics = String::new();
        let bench = Self { folder, notify: notified, skyfill, extra, metrics };
        bench.configure("");
        bench
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn data(&self) -> PathBuf {
        self.path("data")
    }

    fn configure(&self, more: &str) {
        let (data, list) = (self.data(), self.path("dids.txt"));
        let text = format!(
            "data_dir = \"{}\"\nsource.files = [\"{}\"]\n{}metrics.listen = \"{}\"\n{more}\n",
            data.display(),
            list.display(),
            self.extra,
            self.metrics
        );
        // As an editor does it: whole, or not at all.
        std::fs::write(self.path("new.toml"), text).unwrap();
        std::fs::rename(self.path("new.toml"), self.path("skyfill.toml")).unwrap();
    }

    fn list(&self, dids: &[String]) {
        self.list_bytes(dids.join("\n").as_bytes());
    }

    fn list_bytes(&self, bytes: &[u8]) {
        std::fs::write(self.path("new.txt"), bytes).unwrap();
        std::fs::rename(self.path("new.txt"), self.path("dids.txt")).unwrap();
    }

    fn start(&self) -> Running {
        self.skyfill.spawn(&["run", "--config", self.path("skyfill.toml").to_str().unwrap()])
    }

    /// Waits for a message to systemd that holds all of `texts`.
    fn told(&self, texts: &[&str]) -> String {
        let until = Instant::now() + PATIENCE;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            let message = self.notify.recv_timeout(left);
            let message = message.unwrap_or_else(|_| panic!("systemd was never told {texts:?}"));
            if texts.iter().all(|text| message.contains(text)) {
                return message;
            }
        }
    }

    fn command(&self, arguments: &[&str]) -> Finished {
        let config = self.path("skyfill.toml");
        let mut all = vec![arguments[0], "--config", config.to_str().unwrap()];
        all.extend(&arguments[1..]);
        self.skyfill.run(&all, PATIENCE)
    }

    fn status(&self) -> Value {
        // Not by the configuration, which may be broken on purpose.
        let data = self.data();
        let flags = ["status", "--data-dir", data.to_str().unwrap(), "--json"];
        self.skyfill.run(&flags, PATIENCE).expect_code(0).json()
    }

    /// One request on the control socket; waits as long as the daemon says that it works on it.
    fn ask(&self, request: &Value) -> Value {
        let mut stream = UnixStream::connect(self.data().join("control.sock")).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        writeln!(stream, "{request}").unwrap();
        let (lines, begun) = (BufReader::new(stream).lines(), Instant::now());
        for line in lines {
            let answer: Value = line.unwrap().parse().unwrap();
            if answer["working"] != true {
                return answer;
            }
            assert!(begun.elapsed() < PATIENCE, "it works for ever on {request}");
        }
        panic!("no answer to {request}");
    }

    /// Waits until the daemon has decided every listed account, and gives the status of that moment.
    fn until_decided(&self, total: u64) -> Value {
        self.until(|status| {
            let count = |state: &str| status["accounts"][state].as_u64().unwrap();
            count("done") + count("parked") == total
        })
    }

    fn until(&self, is_so: impl Fn(&Value) -> bool) -> Value {
        let begun = Instant::now();
        loop {
            let status = self.status();
            if is_so(&status) {
                return status;
            }
            assert!(begun.elapsed() < PATIENCE, "{status}");
        }
    }

    fn stop(&self, daemon: Running) -> Finished {
        daemon.signal(Signal::TERM);
        daemon.finish(Duration::from_secs(30)).expect_code(0)
    }
}

fn network(seed: u64, accounts: usize) -> Network {
    let shape = Shape { seed, accounts, hosts: 3, records: Records::Fixed(40), odd: false };
    Network::generate(&shape)
}

fn assert_exactly(network: &Network, data: &Path, accounts: &[usize]) {
    let expected = accounts.iter().map(|index| network.world().account(*index));
    judge(data, expected, &Options::default()).assert_clean();
}

#[test]
fn it_says_ready_works_reloads_and_drains() {
    let network = network(41, 12);
    let bench = Bench::new(&network);
    let dids = network.world().dids();
    bench.list(&dids[..4]);
    let begun = Instant::now();
    let daemon = bench.start();
    bench.told(&["READY=1"]);
    println!("ready after {:?}", begun.elapsed());
    let status = bench.until_decided(4);
    assert_eq!((&status["phase"], &status["eta_seconds"]), (&"idle".into(), &0.into()));
    // A longer list that leaves one out.
    bench.list(&dids[1..12]);
    daemon.signal(Signal::HUP);
    assert!(bench.told(&["RELOADING=1"]).contains("MONOTONIC_USEC="));
    bench.told(&["READY=1", "reloaded: 11 accounts listed"]);
    bench.until_decided(11);
    let taken_off = bench.command(&["status", &dids[0], "--json"]).expect_code(0).json();
    assert_eq!((&taken_off["listed"], &taken_off["state"]), (&false.into(), &"done".into()));
    daemon.signal(Signal::USR1);
    assert!(daemon.wait_for("progress total=11", PATIENCE));
    let held = bench.command(&["run"]).expect_code(75);
    assert!(held.stderr.contains(&format!("process {}", daemon.pid())), "{held:?}");
    let finished = bench.stop(daemon);
    bench.told(&["STOPPING=1"]);
    assert!(finished.seconds < 60.0 && !bench.data().join("control.sock").exists());
    assert_exactly(&network, &bench.data(), &(0..12).collect::<Vec<_>>());
    bench.command(&["verify"]).expect_code(0);
}

#[test]
fn a_refused_reload_leaves_everything_as_it_was() {
    let network = network(42, 6);
    let bench = Bench::new(&network);
    let dids = network.world().dids();
    bench.list(&dids[..3]);
    let daemon = bench.start();
    bench.told(&["READY=1"]);
    bench.until_decided(3);
    let refused = |what: &str| {
        daemon.signal(Signal::HUP);
        bench.told(&["READY=1", "reload refused", what]);
        let counts = bench.status()["accounts"].clone();
        assert_eq!((&counts["done"], &counts["queued"]), (&3.into(), &0.into()), "{what}");
    };
    bench.list_bytes(b"did:plc:\xff\xff");
    refused("not UTF-8");
    bench.list_bytes(b"# nothing left\n");
    refused("is empty now and was not before");
    std::fs::remove_file(bench.path("dids.txt")).unwrap();
    refused("dids.txt");
    // Good again, with more in it, but the configuration is wrong.
    bench.list(&dids);
    bench.configure("fetch.concurency = 1");
    refused("did you mean fetch.concurrency?");
    bench.configure("retry.attempts = \"many\"");
    refused("retry.attempts");
    let good = std::fs::read_to_string(bench.path("skyfill.toml")).unwrap();
    std::fs::write(
        bench.path("skyfill.toml"),
        good.replace("/data\"", "/elsewhere\"").replace("retry.attempts", "#"),
    )
    .unwrap();
    daemon.signal(Signal::HUP);
    bench.told(&["READY=1", "data_dir cannot change while skyfill runs"]);
    assert!(!bench.path("elsewhere").exists());
    bench.configure("window.start = \"2024-10-01-00:00:00\"");
    refused("3 of these accounts were exported with other records.types");
    // What needs a restart is named, and the rest of the same reload is in force.
    bench.configure("limits.parsers = 1\nlog.level = \"debug\"");
    daemon.signal(Signal::HUP);
    bench.told(&["READY=1", "reloaded: 6 accounts listed, 2 keys changed"]);
    assert!(daemon.wait_for("changed, in force after a restart key=limits.parsers", PATIENCE));
    bench.until_decided(6);
    bench.stop(daemon);
    assert_exactly(&network, &bench.data(), &(0..6).collect::<Vec<_>>());
}

#[test]
fn it_survives_kills_and_answers_on_its_socket() {
    let network = network(43, 10);
    for host in &network.hosts {
        host.set_manners(Manners { bytes_per_second: Some(2_000), ..Manners::default() });
    }
    network.set_standing(0, Standing::Deactivated);
    let bench = Bench::new(&network);
    bench.list(&network.world().dids());
    let daemon = bench.start();
    bench.told(&["READY=1"]);
    let status = bench.until(|status| {
        let hosts = status["hosts"].as_array().unwrap();
        status["phase"] == "working" && hosts.iter().any(|host| host["state"] == "working")
    });
    assert_eq!(status["pid"], daemon.pid());
    assert!(status["bound_by"].is_string(), "{status}");
    daemon.kill_and_wait();
    assert!(bench.data().join("control.sock").exists(), "what is left is no obstacle");
    let dead = bench.status();
    assert!(dead["phase"].is_null() && dead["bound_by"].is_null(), "{dead}");
    for host in &network.hosts {
        host.set_manners(Manners::default());
    }
    let daemon = bench.start();
    bench.told(&["READY=1"]);
    let status = bench.until_decided(10);
    assert_eq!(status["parked"]["repo_deactivated"], 1, "{status}");
    // The account is back, and the operator says so.
    network.set_standing(0, Standing::Active);
    let retried =
        bench.command(&["retry", "--reason", "repo_deactivated", "--json"]).expect_code(0);
    assert_eq!(retried.json()["retried"], 1);
    bench.until(|status| status["accounts"]["done"] == 10);
    // A daemon that is stopped does not answer.
    daemon.signal(Signal::STOP);
    let silent = bench.command(&["retry", "--all"]).expect_code(69);
    assert!(silent.stderr.contains("does not answer") && silent.seconds < 30.0, "{silent:?}");
    daemon.signal(Signal::CONT);
    bench.stop(daemon);
    assert_exactly(&network, &bench.data(), &(0..10).collect::<Vec<_>>());
}

/// Starts a daemon that hangs at `point`; `part` must be named as silent and the watchdog not be fed from then on. Then does what
/// systemd does, and the next start does the whole job.
fn hangs_and_is_restarted(seed: u64, point: &str, part: &str) {
    let network = network(seed, 8);
    let mut bench = Bench::new(&network);
    bench.list(&network.world().dids());
    let sound = bench.skyfill.clone().env("WATCHDOG_USEC", "3000000");
    bench.skyfill = sound.clone().env("SKYFILL_HANG_AT", point);
    let daemon = bench.start();
    bench.told(&["READY=1"]);
    assert!(daemon.wait_for("hangs here", PATIENCE), "the fault fired: {}", daemon.stderr());
    let silent = format!("no heartbeat, the watchdog is not fed part={part}");
    assert!(daemon.wait_for(&silent, PATIENCE), "{}", daemon.stderr());
    // What was said before that is read; from then on nothing feeds the watchdog for twice its period.
    let hungry = Instant::now() + Duration::from_secs(6);
    let mut last_pings = 0;
    while let Ok(message) =
        bench.notify.recv_timeout(hungry.saturating_duration_since(Instant::now()))
    {
        // Those before the hang may still lie in the channel, but no more than one beat waited for them.
        last_pings += usize::from(message.contains("WATCHDOG=1"));
    }
    assert!(daemon.is_running(), "it lives, and does nothing: only the watchdog can tell");
    assert!(last_pings < 30, "{last_pings} pings");
    assert!(
        bench.notify.recv_timeout(Duration::from_secs(4)).is_err(),
        "the watchdog is fed although {part} hangs"
    );
    daemon.signal(Signal::ABORT);
    daemon.finish(Duration::from_secs(10));
    bench.skyfill = sound;
    let daemon = bench.start();
    bench.told(&["READY=1"]);
    bench.told(&["WATCHDOG=1"]);
    bench.until_decided(8);
    bench.stop(daemon);
    assert_exactly(&network, &bench.data(), &(0..8).collect::<Vec<_>>());
}

#[test]
fn a_stage_that_hangs_starves_the_watchdog() {
    hangs_and_is_restarted(47, "AccountAppendedBeforeSeal:1", "exporter");
}

#[test]
fn a_ledger_that_hangs_starves_the_watchdog() {
    hangs_and_is_restarted(48, "LedgerCommitted:12", "ledger");
}

/// What a round of the storm gives the daemon.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Round {
    Some,
    NotText,
    Empty,
    Big,
    BadConfig,
}

/// A well-formed DID that no directory knows.
fn stranger(rng: &mut fastrand::Rng) -> String {
    let letters: Vec<char> = "abcdefghijklmnopqrstuvwxyz234567".chars().collect();
    let name: String = (0..24).map(|_| letters[rng.usize(..letters.len())]).collect();
    format!("did:plc:{name}")
}

#[test]
fn a_hundred_reloads_under_load_lose_nothing() {
    let network = network(45, 120);
    for host in &network.hosts {
        host.set_manners(Manners { bytes_per_second: Some(20_000), ..Manners::default() });
    }
    let bench = Bench::new(&network);
    let (dids, mut rng) = (network.world().dids(), fastrand::Rng::with_seed(45));
    bench.list(&dids);
    let daemon = bench.start();
    bench.told(&["READY=1"]);
    bench.told(&["working: 120 accounts listed"]);
    let (mut accepted, mut refused) = (0, 0);
    for number in 0..100 {
        let round = match number % 5 {
            0 => Round::Some,
            1 => Round::NotText,
            2 => Round::Empty,
            3 if number % 20 == 3 => Round::Big,
            3 => Round::Some,
            _ => Round::BadConfig,
        };
        bench.configure(if round == Round::BadConfig { "limits.memory = \"1\"" } else { "" });
        let mut some: Vec<String> = dids.iter().filter(|_| rng.bool()).cloned().collect();
        some.push(dids[number].clone());
        match round {
            Round::NotText => bench.list_bytes(b"did:plc:\xff"),
            Round::Empty => bench.list_bytes(b""),
            Round::Big => {
                some.extend((0..40_000).map(|_| stranger(&mut rng)));
                bench.list(&some);
            }
            Round::Some | Round::BadConfig => bench.list(&some),
        }
        if number % 10 == 9 {
            // Signals beside it end in the same state, however many there are.
            assert!((0..5).all(|_| daemon.signal(Signal::HUP)));
        }
        let answer = bench.ask(&serde_json::json!({"command": "reload"}));
        let is_good = matches!(round, Round::Some | Round::Big);
        assert_eq!(answer["ok"], is_good, "{round:?}: {answer}");
        accepted += u32::from(is_good);
        refused += u32::from(!is_good);
    }
    assert_eq!((accepted, refused), (40, 60));
    bench.configure("");
    bench.list(&dids);
    assert_eq!(bench.ask(&serde_json::json!({"command": "reload"}))["ok"], true);
    for host in &network.hosts {
        host.set_manners(Manners::default());
    }
    let status = bench.until_decided(120);
    assert_eq!(status["accounts"]["done"], 120, "{status}");
    let finished = bench.stop(daemon);
    assert!(!finished.stderr.contains("crashed"), "{}", finished.stderr);
    assert_exactly(&network, &bench.data(), &(0..120).collect::<Vec<_>>());
    bench.command(&["verify"]).expect_code(0);
    println!("{accepted} reloads accepted, {refused} refused, {:?}", finished.usage);
}

#[test]
fn a_drain_under_load_gives_back_and_the_next_start_goes_on() {
    let network = network(46, 30);
    let slow = Manners { chunk_bytes: 50, bytes_per_second: Some(200), ..Manners::default() };
    network.hosts.iter().for_each(|host| host.set_manners(slow.clone()));
    let bench = Bench::new(&network);
    bench.list(&network.world().dids());
    let daemon = bench.start();
    bench.told(&["READY=1"]);
    bench.until(|status| {
        status["accounts"]["active"].as_u64() > Some(0) && network.open_transfers() > 0
    });
    let begun = Instant::now();
    bench.stop(daemon);
    assert!(begun.elapsed() < Duration::from_secs(30), "{:?}", begun.elapsed());
    let counts = bench.status()["accounts"].clone();
    assert_eq!(counts["active"], 0, "{counts}");
    for did in network.world().dids() {
        let account = bench.command(&["status", &did, "--json"]).expect_code(0).json();
        assert_eq!((&account["attempts"], &account["process_deaths"]), (&0.into(), &0.into()));
    }
    // A second signal does not wait.
    let daemon = bench.start();
    bench.told(&["READY=1"]);
    bench.until(|_| network.open_transfers() > 0);
    daemon.signal(Signal::TERM);
    assert!(daemon.wait_for("again to force", PATIENCE));
    daemon.signal(Signal::TERM);
    daemon.finish(Duration::from_secs(5)).expect_code(1);
    network.hosts.iter().for_each(|host| host.set_manners(Manners::default()));
    let daemon = bench.start();
    bench.told(&["READY=1"]);
    bench.until_decided(30);
    bench.stop(daemon);
    assert_exactly(&network, &bench.data(), &(0..30).collect::<Vec<_>>());
}

#[test]
fn lists_that_cannot_be_used_end_the_start_by_name() {
    let network = network(44, 1);
    let bench = Bench::new(&network);
    let missing = bench.start().finish(PATIENCE).expect_code(78);
    assert!(missing.stderr.contains("dids.txt"), "{missing:?}");
    bench.list_bytes(b"\n# nobody\n");
    let empty = bench.start().finish(PATIENCE).expect_code(78);
    assert!(empty.stderr.contains("the lists are empty"), "{empty:?}");
    bench.list_bytes(b"did:plc:\xff");
    let broken = bench.start().finish(PATIENCE).expect_code(78);
    assert!(broken.stderr.contains("not UTF-8"), "{broken:?}");
    bench.list(&network.world().dids());
    let daemon = bench.start();
    bench.told(&["READY=1"]);
    bench.told(&["working: 1 accounts listed"]);
    bench.until_decided(1);
    bench.stop(daemon);
}

/// Status and body of a path at a daemon's endpoint.
fn get(address: &str, path: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nhost: x\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
}

/// Where a daemon says that it serves its metrics.
fn endpoint(daemon: &Running) -> String {
    let line = "serving metrics listen=";
    assert!(daemon.wait_for(line, PATIENCE));
    let stderr = daemon.stderr();
    let (_, rest) = stderr.split_once(line).unwrap();
    rest.split_whitespace().next().unwrap().to_owned()
}

#[test]
fn it_is_watched_from_its_start_to_its_end() {
    let network = network(45, 8);
    let mut bench = Bench::new(&network);
    bench.metrics = "127.0.0.1:0".to_owned();
    bench.configure("");
    let dids = network.world().dids();
    bench.list(&dids[..4]);
    let daemon = bench.start();
    let address = endpoint(&daemon);
    bench.told(&["working: 4 accounts listed"]);
    bench.until_decided(4);
    assert_eq!(get(&address, "/readyz"), (200, "ready\n".to_owned()));
    assert_eq!(get(&address, "/healthz"), (200, "ok\n".to_owned()));
    let metric = |line: &str| {
        let (status, text) = get(&address, "/metrics");
        assert_eq!(status, 200);
        assert!(text.lines().any(|it| it == line), "{line} is not in\n{text}");
    };
    metric("skyfill_accounts{state=\"done\"} 4");
    metric("skyfill_config_last_reload_successful 1");
    bench.list_bytes(b"did:plc:\xff");
    daemon.signal(Signal::HUP);
    bench.told(&["READY=1", "reload refused"]);
    metric("skyfill_config_last_reload_successful 0");
    let slow = Manners { chunk_bytes: 500, bytes_per_second: Some(5_000), ..Manners::default() };
    for host in &network.hosts {
        host.set_manners(slow.clone());
    }
    bench.list(&dids);
    daemon.signal(Signal::HUP);
    bench.told(&["READY=1", "reloaded: 8 accounts listed"]);
    metric("skyfill_config_last_reload_successful 1");
    bench.until(|status| status["accounts"]["active"].as_u64() > Some(0));
    daemon.signal(Signal::TERM);
    bench.told(&["STOPPING=1"]);
    assert_eq!(get(&address, "/readyz"), (503, "draining\n".to_owned()));
    metric("skyfill_config_last_reload_successful 1");
    daemon.finish(Duration::from_secs(30)).expect_code(0);
    assert!(TcpStream::connect(&address).is_err());
}

#[test]
fn an_address_in_use_ends_the_start_and_a_directory_in_use_comes_first() {
    let network = network(46, 1);
    let mut bench = Bench::new(&network);
    let other = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = other.local_addr().unwrap().to_string();
    bench.metrics.clone_from(&address);
    bench.configure("");
    bench.list(&network.world().dids());
    let taken = bench.command(&["run"]).expect_code(78);
    assert!(taken.stderr.contains(&format!("metrics.listen: {address}: ")), "{taken:?}");
    drop(other);
    let daemon = bench.start();
    bench.told(&["working: 1 accounts listed"]);
    bench.command(&["run"]).expect_code(75);
    bench.command(&["check"]).expect_code(0);
    bench.stop(daemon);
}
