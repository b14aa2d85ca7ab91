//! Soak (TORTURE.md, F8): the daemon under faults for `SKYFILL_SOAK_MINUTES` (otherwise 20 s), its list growing all the time. What must
//! not grow with it is measured: memory, descriptors, write-ahead logs. Afterwards nothing is lost, doubled or torn, and a
//! new account is done within 10 s.
//!
//! ```text
//!  every tick: the list is longer, HUP       every 250 ms: memory, descriptors, the largest WAL
//!  of 1,000 requests 150 fail in one of many ways that pass; 20 of the directory's
//! ```
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::disallowed_methods
)]

mod support;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use support::faults::{At, Fault, Place, Wait};
use support::job::number_from;
use support::judge::judge;
use support::network::Network;
use support::oracle::Options;
use support::proc::{Running, Signal, Skyfill};
use support::world::{Records, Shape};

/// Accounts that are listed in a second: a few times fewer than one processor could take.
const ACCOUNTS_A_SECOND: u64 = 5;

/// Between two samples.
const SAMPLE: Duration = Duration::from_millis(250);

/// The list is read this often in a run at most: whole, and it gets long.
const RELOADS: u32 = 2_000;

/// What memory may grow by in an hour: the target of F8.
const GROWTH_AN_HOUR: f64 = 0.01;

/// What it may anyway in a run that is over before all has filled that is bounded: the page caches of seven queues and the
/// ledger (1.5 and 2 MiB each), the heaps of threads that had no large account yet.
const FILLING_BYTES: f64 = 16_777_216.0;

/// What it may anyway in a longer one, for the account or two that are being worked on at the last looks and were not at the first.
const NOISE_BYTES: f64 = 4_194_304.0;

/// From here on a run is a longer one: its first third is enough to fill them.
const LONGER_MINUTES: u64 = 30;

/// Connections that are kept, transfers and files come and go; what is not closed comes only.
const DESCRIPTORS_NOISE: usize = 24;

/// A WAL is named above 32 MiB (`sink::sqlite_file`), and is cut to nothing by then if nobody reads: half of that is never
/// reached by accounts of this size.
const WAL_BYTES_MAX: u64 = 16 << 20;

const PATIENCE: Duration = Duration::from_secs(180);

#[derive(Clone, Copy)]
struct Sample {
    seconds: f64,
    resident_bytes: f64,
    anonymous_bytes: f64,
    descriptors: usize,
    wal_bytes: u64,
}

struct Soak {
    network: Network,
    folder: tempfile::TempDir,
    skyfill: Skyfill,
}

impl Soak {
    fn new(accounts: usize) -> Self {
        let records = Records::Mixed { mean: 40 };
        let network =
            Network::generate(&Shape { seed: 81, accounts, hosts: 6, records, odd: true });
        let skyfill = Skyfill::new(env!("CARGO_BIN_EXE_skyfill"));
        Self { network, folder: tempfile::tempdir().unwrap(), skyfill }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn data(&self) -> PathBuf {
        self.path("data")
    }

    fn list(&self, accounts: usize) {
        let dids = self.network.world().dids();
        std::fs::write(self.path("new.txt"), dids[..accounts].join("\n")).unwrap();
        std::fs::rename(self.path("new.txt"), self.path("dids.txt")).unwrap();
    }

    fn start(&self) -> Running {
        let text = format!(
            "data_dir = {:?}\nsource.files = [{:?}]\nidentity.plc_url = {:?}\nidentity.requests_per_second = 1000\n\
             network.allow = [\"127.0.0.0/8\"]\nfetch.host_requests_per_second = 1000\nfetch.first_byte_timeout = \"2s\"\n\
             fetch.idle_timeout = \"2s\"\nlimits.disk_free = \"0B\"\nretry.attempts = 100\nretry.base = \"200ms\"\n\
             retry.max = \"5s\"\nmetrics.listen = \"\"\nlog.level = \"error\"\n",
            self.data(),
            self.path("dids.txt"),
            self.network.plc.url(),
        );
        std::fs::write(self.path("skyfill.toml"), text).unwrap();
        let config = self.path("skyfill.toml");
        let daemon = self.skyfill.spawn(&["run", "--config", config.to_str().unwrap()]);
        let begun = Instant::now();
        while !self.data().join("control.sock").exists() {
            assert!(begun.elapsed() < PATIENCE && daemon.is_running(), "{}", daemon.stderr());
            std::thread::sleep(SAMPLE);
        }
        daemon
    }

    /// How many accounts are in each state.
    fn accounts(&self, state: &str) -> u64 {
        let data = self.data();
        let flags = ["status", "--data-dir", data.to_str().unwrap(), "--json"];
        let status = self.skyfill.run(&flags, PATIENCE).expect_code(0).json();
        status["accounts"][state].as_u64().unwrap()
    }

    fn until_done(&self, accounts: usize, patience: Duration) -> Duration {
        let begun = Instant::now();
        while self.accounts("done") < accounts as u64 {
            assert!(begun.elapsed() < patience, "{} done", self.accounts("done"));
            std::thread::sleep(SAMPLE);
        }
        begun.elapsed()
    }

    fn sample(&self, daemon: &Running, begun: Instant) -> Sample {
        let process = PathBuf::from(format!("/proc/{}", daemon.pid()));
        let status = std::fs::read_to_string(process.join("status")).unwrap();
        let bytes = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
            let kibibytes: f64 = line.split_ascii_whitespace().next().unwrap().parse().unwrap();
            kibibytes * 1_024.0
        };
        Sample {
            seconds: begun.elapsed().as_secs_f64(),
            resident_bytes: bytes("VmRSS:"),
            anonymous_bytes: bytes("RssAnon:"),
            descriptors: std::fs::read_dir(process.join("fd")).unwrap().count(),
            wal_bytes: largest_wal(&self.data()).max(largest_wal(&self.data().join("queue"))),
        }
    }
}

fn largest_wal(folder: &Path) -> u64 {
    let Ok(entries) = std::fs::read_dir(folder) else { return 0 };
    let wals = entries.flatten().filter(|entry| entry.path().to_string_lossy().ends_with("-wal"));
    // One that is gone by now has no length.
    wals.filter_map(|entry| Some(entry.metadata().ok()?.len())).max().unwrap_or(0)
}

/// Ways in which a request fails and the next one need not.
fn faults() -> (Vec<Fault>, Vec<Fault>) {
    let repo = vec![
        Fault::status(500),
        Fault::status(503),
        Fault::RateLimited(Wait::Seconds(1)),
        Fault::CloseBeforeHeaders,
        Fault::CloseKept,
        Fault::NoAnswer,
        Fault::Reset(At::Middle),
        Fault::Cut(At::MiddleBorder),
        Fault::Drop(At::LastByte),
        Fault::Stall(At::Middle),
        Fault::HtmlOk,
        Fault::EmptyOk,
        Fault::SlowHeaders(Duration::from_millis(700)),
    ];
    let directory = vec![Fault::status(500), Fault::CloseBeforeHeaders, Fault::NotJson];
    (repo, directory)
}

/// Mean of `of`, and what it grew by from the first to the last sample, by least squares.
fn trend(samples: &[Sample], of: fn(&Sample) -> f64) -> (f64, f64) {
    let count = samples.len() as f64;
    let mean = |of: fn(&Sample) -> f64| samples.iter().map(of).sum::<f64>() / count;
    let (time, bytes) = (mean(|it| it.seconds), mean(of));
    let spread: f64 = samples.iter().map(|it| (it.seconds - time).powi(2)).sum();
    let both = samples.iter().map(|it| (it.seconds - time) * (of(it) - bytes));
    let slope = both.sum::<f64>() / spread;
    (bytes, slope * (samples[samples.len() - 1].seconds - samples[0].seconds))
}

#[test]
fn a_daemon_under_faults_does_not_grow() {
    let minutes = number_from("SKYFILL_SOAK_MINUTES", 0);
    let length = Duration::from_secs(if minutes == 0 { 20 } else { minutes * 60 });
    let listed_by = |seconds: u64| usize::try_from(10 + seconds * ACCOUNTS_A_SECOND).unwrap();
    // The last one is for afterwards.
    let most = listed_by(length.as_secs());
    let soak = Soak::new(most + 1);
    let (repo, directory) = faults();
    let names: Vec<&str> = repo.iter().chain(&directory).map(Fault::name).collect();
    soak.network.faults().storm(Place::Repo, 82, 150, repo);
    soak.network.faults().storm(Place::Directory, 83, 20, directory);
    soak.list(listed_by(0));
    let daemon = soak.start();
    soak.until_done(1, PATIENCE);
    let (begun, mut samples, mut listed_at) = (Instant::now(), Vec::new(), Instant::now());
    let tick = Duration::from_secs(2).max(length / RELOADS);
    while begun.elapsed() < length {
        if listed_at.elapsed() >= tick {
            listed_at = Instant::now();
            soak.list(listed_by(begun.elapsed().as_secs()).min(most));
            daemon.signal(Signal::HUP);
        }
        let ended = daemon.wait(SAMPLE);
        assert!(ended.is_none(), "{ended:#?}");
        samples.push(soak.sample(&daemon, begun));
    }
    let behind = listed_by(begun.elapsed().as_secs()).min(most) as u64 - soak.accounts("done");
    soak.network.faults().heal();
    soak.list(most);
    daemon.signal(Signal::HUP);
    soak.until_done(most, PATIENCE);
    // What is new is worked on at once, whatever has been.
    soak.list(most + 1);
    daemon.signal(Signal::HUP);
    let alive = soak.until_done(most + 1, Duration::from_secs(10));
    daemon.signal(Signal::TERM);
    daemon.finish(Duration::from_secs(30)).expect_code(0);
    let verdict = judge(&soak.data(), soak.network.expected(), &Options::default());
    verdict.assert_clean();
    if minutes >= 5 {
        soak.network.faults().assert_fired(&names);
    }
    assert!(soak.network.faults().fired_total() > 0, "no fault fired");
    grown(&samples, minutes);
    println!(
        "{} accounts, {} rows, {} faults, at most {behind} accounts behind at the end, a new one done in {:.1} s; 0 lost, 0 doubled, 0 torn",
        most + 1,
        verdict.expected,
        soak.network.faults().fired_total(),
        alive.as_secs_f64(),
    );
}

/// Fails if something grew; the first third of the run is for caches, threads and connections to fill.
fn grown(samples: &[Sample], minutes: u64) {
    let (middle, end) = (samples.len() / 3, samples.len() * 2 / 3);
    let settled = &samples[middle..];
    let hours = (settled[settled.len() - 1].seconds - settled[0].seconds) / 3_600.0;
    let resident = trend(settled, |it| it.resident_bytes);
    // Without the pages of files that are mapped: the binary's own come as they are first needed, and are the kernel's to take.
    let (mean, growth) = trend(settled, |it| it.anonymous_bytes);
    let tenth = (samples.len() / 10).max(1);
    let series = samples.chunks(tenth).map(|part| part[0].anonymous_bytes / 1_048_576.0);
    let series: Vec<String> = series.map(|it| format!("{it:.0}")).collect();
    let series = series.join(" ");
    let anyway = if minutes < LONGER_MINUTES { FILLING_BYTES } else { NOISE_BYTES };
    let allowed = (GROWTH_AN_HOUR * hours * mean).max(anyway);
    assert!(
        growth < allowed,
        "{growth:.0} bytes in {hours:.2} hours on top of {mean:.0}: {series}"
    );
    let most = |part: &[Sample]| part.iter().map(|it| it.descriptors).max().unwrap();
    let (before, after) = (most(&samples[..end]), most(&samples[end..]));
    assert!(after <= before + DESCRIPTORS_NOISE, "{after} descriptors, {before} before");
    let wal = samples.iter().map(|it| it.wal_bytes).max().unwrap();
    assert!(wal <= WAL_BYTES_MAX, "a WAL of {wal} bytes");
    let mebibytes = |bytes: f64| bytes / 1_048_576.0;
    println!(
        "{minutes} minutes: {:.1} MiB resident in the mean, growing by {:.2} MiB in the last two thirds, of it anonymous {:.1} and {:.2} \
         (ten looks: {series}); {after} descriptors at most, {before} before; largest WAL {:.1} MiB",
        mebibytes(resident.0),
        mebibytes(resident.1),
        mebibytes(mean),
        mebibytes(growth),
        mebibytes(wal as f64),
    );
}
