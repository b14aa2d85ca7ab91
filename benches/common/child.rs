//! The real binary as a measured child: `skyfill backfill` of a served set into a fresh data directory.
#![allow(dead_code, reason = "not every bench uses all of it")]

use std::fs::File;
use std::io::{BufWriter, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::data::folder;
use crate::serve::Servers;
use crate::support::proc::Skyfill;

/// A run that takes longer hangs.
const PATIENCE: Duration = Duration::from_secs(1_800);

/// Between two looks at the child's memory.
const SAMPLE_EVERY: Duration = Duration::from_millis(20);

/// How to run it.
#[derive(Clone, Default)]
pub struct Run {
    /// What stands before the binary: `taskset`, `perf`.
    pub under: Vec<String>,
    /// Settings beside the usual ones, `section.key=value`.
    pub settings: Vec<String>,
    /// DIDs in the list behind those that are served, which nobody knows: the run is ended once all that are served are out.
    pub unknown: usize,
}

/// What a run took.
#[derive(Clone, Debug)]
pub struct Measured {
    /// Exported records; those of foreign types, two in a hundred, are read and proven and not counted.
    pub records: u64,
    /// User and system, of all threads, from its start to its end.
    pub cpu_seconds: f64,
    pub seconds: f64,
    pub rss_peak_bytes: u64,
    pub anonymous_peak_bytes: u64,
    /// Seconds, resident and anonymous bytes.
    pub samples: Vec<(f64, u64, u64)>,
}

impl Measured {
    pub fn per_cpu_second(&self) -> f64 {
        self.records as f64 / self.cpu_seconds
    }

    pub fn per_second(&self) -> f64 {
        self.records as f64 / self.seconds
    }
}

impl Run {
    /// On so many cores; more than one is left to the kernel.
    pub fn on_cores(cores: usize) -> Self {
        let list = format!("0-{}", cores - 1);
        Self { under: ["taskset", "-c", &list].map(str::to_owned).to_vec(), ..Self::default() }
    }

    pub fn with(mut self, settings: &[String]) -> Self {
        self.settings.extend_from_slice(settings);
        self
    }

    /// Everything that is served; each account must end as done.
    pub fn measure(&self, servers: &Servers) -> Measured {
        let place = tempfile::tempdir_in(folder()).unwrap();
        let list = place.path().join("dids.txt");
        let dids: Vec<&str> = servers.set().accounts.iter().map(|it| it.did.as_str()).collect();
        let mut file = BufWriter::new(File::create(&list).unwrap());
        dids.iter().for_each(|did| writeln!(file, "{did}").unwrap());
        for number in 0..self.unknown {
            // They come after all others, which are taken on in the order of their names.
            let digits = (0..12).map(|at| char::from(b'w' + (number >> (2 * at) & 3) as u8));
            writeln!(file, "did:plc:zzzzzzzzzzzz{}", digits.collect::<String>()).unwrap();
        }
        drop(file);
        let data = place.path().join("data");
        let plc = servers.plc_url();
        let mut words = self.under.clone();
        words.extend(
            [
                env!("CARGO_BIN_EXE_skyfill"),
                "backfill",
                "--json",
                "--quiet",
                "--plc-url",
                &plc,
                "--allow-network",
                "127.0.0.0/8",
                "--dids-file",
                list.to_str().unwrap(),
                "--data-dir",
                data.to_str().unwrap(),
                "--set",
                "fetch.host_requests_per_second=10000",
                "--set",
                "fetch.host_concurrency=32",
                "--set",
                "identity.requests_per_second=100000",
                "--set",
                "limits.disk_free=64MiB",
            ]
            .map(str::to_owned),
        );
        words.extend(self.settings.iter().flat_map(|it| ["--set".to_owned(), it.clone()]));
        let child = Skyfill::new(words.remove(0)).spawn(&words);
        let (pid, is_over) = (child.pid(), AtomicBool::new(false));
        let (finished, samples) = std::thread::scope(|scope| {
            let sampler = scope.spawn(|| sample(pid, &is_over));
            if self.unknown > 0 {
                while child.is_running() && !servers.all_are_out() {
                    std::thread::sleep(SAMPLE_EVERY);
                }
                // What is in flight is finished first.
                child.signal(Signal::TERM);
            }
            let finished = child.finish(PATIENCE);
            is_over.store(true, Ordering::Release);
            let code = if self.unknown > 0 { 130 } else { 0 };
            (finished.expect_code(code), sampler.join().unwrap())
        });
        let summary = finished.json();
        assert_eq!(summary["this_run"]["done"].as_u64(), Some(dids.len() as u64), "{summary}");
        Measured {
            records: summary["this_run"]["records"].as_u64().unwrap(),
            cpu_seconds: finished.usage.cpu_seconds(),
            seconds: finished.seconds,
            rss_peak_bytes: finished.usage.rss_peak_bytes,
            anonymous_peak_bytes: finished.usage.anonymous_peak_bytes,
            samples,
        }
    }
}

/// The run that took the least processor time: what others do on the machine only ever adds.
pub fn cheapest(runs: &[Measured]) -> &Measured {
    runs.iter().min_by(|a, b| a.cpu_seconds.total_cmp(&b.cpu_seconds)).unwrap()
}

fn sample(pid: i32, is_over: &AtomicBool) -> Vec<(f64, u64, u64)> {
    let (begun, mut samples) = (Instant::now(), Vec::new());
    while !is_over.load(Ordering::Acquire) {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let value = |name: &str| {
            let rest = status.lines().find_map(|line| line.strip_prefix(name))?;
            Some(rest.split_ascii_whitespace().next()?.parse::<u64>().ok()? << 10)
        };
        if let (Some(resident), Some(anonymous)) = (value("VmRSS:"), value("RssAnon:")) {
            samples.push((begun.elapsed().as_secs_f64(), resident, anonymous));
        }
        std::thread::sleep(SAMPLE_EVERY);
    }
    samples
}
