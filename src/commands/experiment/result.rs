//! What an experiment has found: one object of JSON, a table and a plot.
//!
//! The names are plain ones that the Python service's two experiment scripts use or would: `serial`, `parallel`, `speedup`,
//! `total_runtime_seconds`, `total_records`, `records_per_second`. Readers ignore keys that they do not know.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde::{Deserialize, Serialize};

use crate::commands::experiment::measure::Measured;
use crate::commands::experiment::one::One;
use crate::commands::experiment::plot::{Axes, Line, svg};
use crate::exit_code::ExitCode;

/// Bytes of a failure's text.
const ERROR_BYTES_MAX: usize = 500;

/// One run.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Run {
    /// Transfers at once (`fetch.concurrency`).
    pub workers: usize,
    /// Parser threads (`limits.parsers`).
    pub parsers: usize,
    /// `cold`: every identity was asked for; `warm`: all were known.
    pub identities: String,
    /// Which repetition, from 1.
    pub repeat: usize,
    /// It ran to its end.
    pub ok: bool,
    /// Its exit code.
    pub exit_code: i32,
    /// What it said when it failed.
    pub error: Option<String>,
    /// Wall time of the process, seconds.
    pub total_runtime_seconds: f64,
    /// Of that, with the data directory open, seconds.
    pub work_seconds: f64,
    /// Records exported.
    pub total_records: u64,
    /// Records by the wall time of the process.
    pub records_per_second: f64,
    /// Accounts exported.
    pub accounts_done: u64,
    /// Accounts given up.
    pub accounts_parked: u64,
    /// Bytes of repositories.
    pub repo_bytes: u64,
    /// CPU in user mode, seconds.
    pub cpu_user_seconds: f64,
    /// CPU in the kernel, seconds.
    pub cpu_system_seconds: f64,
    /// Both, by wall time and cores.
    pub cpu_share: f64,
    /// Peak of resident memory, bytes (`VmHWM`).
    pub peak_memory_bytes: u64,
    /// Requests by service and outcome.
    pub requests: BTreeMap<String, BTreeMap<String, u64>>,
    /// Answers that were 429.
    pub rate_limited: u64,
    /// Share of the time that each thing was waited for.
    pub bound_by: BTreeMap<String, f64>,
    /// What bounded it: a word.
    pub bound: String,
    /// The same as a sentence.
    pub explanation: String,
    /// Times as fast as the serial run with the same identities.
    pub speedup: Option<f64>,
    /// That by its workers.
    pub efficiency: Option<f64>,
    /// Records per second by those of the experiment that it is compared with.
    pub against_earlier: Option<f64>,
}

impl Run {
    /// A run of these numbers that was not made.
    #[must_use]
    pub fn planned(workers: usize, parsers: usize, identities: &str, repeat: usize) -> Self {
        let identities = identities.to_owned();
        Self { workers, parsers, identities, repeat, ..Self::default() }
    }

    /// Whether both are of the same numbers.
    #[must_use]
    pub fn is_like(&self, other: &Self) -> bool {
        let key = |run: &Self| (run.workers, run.parsers, run.identities.clone());
        key(self) == key(other)
    }

    /// Fills in what was measured.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "rates for people")]
    pub fn measured(mut self, measured: &Measured, cores: usize) -> Self {
        let Measured { code, stdout, stderr, seconds, .. } = measured;
        let said: Option<One> = stdout.lines().last().and_then(|it| serde_json::from_str(it).ok());
        let is_end =
            [ExitCode::Done, ExitCode::SomeParked].iter().any(|it| i32::from(it.code()) == *code);
        self.exit_code = *code;
        self.ok = is_end && said.is_some();
        self.total_runtime_seconds = *seconds;
        self.cpu_user_seconds = measured.user_seconds;
        self.cpu_system_seconds = measured.system_seconds;
        let cpu = measured.user_seconds + measured.system_seconds;
        self.cpu_share = cpu / seconds.max(1e-9) / cores as f64;
        if !self.ok {
            let line =
                stderr.lines().rfind(|line| !line.trim().is_empty()).unwrap_or("no word of it");
            self.error = Some(line.chars().take(ERROR_BYTES_MAX).collect());
        }
        let said = said.unwrap_or_default();
        self.peak_memory_bytes = measured.peak_bytes.max(said.peak_memory_bytes);
        self.work_seconds = said.seconds;
        self.total_records = said.records;
        self.records_per_second = said.records as f64 / seconds.max(1e-9);
        self.accounts_done = said.done;
        self.accounts_parked = said.parked;
        self.repo_bytes = said.repo_bytes;
        let looks: u64 = said.bound_by.values().sum();
        let share = |count: u64| count as f64 / looks as f64;
        self.bound_by = said.bound_by.into_iter().map(|(word, n)| (word, share(n))).collect();
        let limited = said.requests.values().filter_map(|outcomes| outcomes.get("rate_limited"));
        self.rate_limited = limited.sum();
        self.requests = said.requests;
        self
    }
}

/// All of it.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Experiment {
    /// `serial_vs_parallel`.
    pub experiment: String,
    /// skyfill's version.
    pub version: String,
    /// When it ended, UTC.
    pub timestamp: String,
    /// It was stopped before every run was made.
    pub interrupted: bool,
    /// Distinct accounts.
    pub total_users: u64,
    /// SHA-256 of their sorted DIDs.
    pub dids_sha256: String,
    /// Hosts that they are on, as far as they were done.
    pub hosts: usize,
    /// Cores that the process may use.
    pub cores: usize,
    /// Requests per second and host.
    pub host_requests_per_second: f64,
    /// Requests per second to the directory.
    pub directory_requests_per_second: f64,
    /// Requests that all runs together make at least.
    pub requests_at_least: u64,
    /// The serial run, of each kind of identities.
    pub serial: BTreeMap<String, Run>,
    /// The fastest other run, likewise.
    pub parallel: BTreeMap<String, Run>,
    /// How many times as fast that is.
    pub speedup: BTreeMap<String, f64>,
    /// Largest difference between repetitions of one run, by the smaller; `None` if nothing was repeated.
    pub noise: Option<f64>,
    /// The file that it is compared with.
    pub compared_with: Option<String>,
    /// What must be known beside the numbers.
    pub notes: Vec<String>,
    /// Every run, in order.
    pub runs: Vec<Run>,
}

impl Experiment {
    /// Fills in what follows from the runs.
    pub fn conclude(&mut self) {
        for identities in ["cold", "warm"] {
            let of = |run: &&Run| run.ok && run.identities == identities;
            let is_serial = |run: &&Run| run.workers == 1 && run.parsers == 1;
            let faster =
                |a: &&Run, b: &&Run| a.total_runtime_seconds.total_cmp(&b.total_runtime_seconds);
            let serial = self.runs.iter().filter(of).filter(is_serial).min_by(faster).cloned();
            let others = self.runs.iter().filter(of).filter(|run| !is_serial(run));
            let parallel = others.min_by(faster).cloned();
            let Some(serial) = serial else { continue };
            for run in self.runs.iter_mut().filter(|run| run.ok && run.identities == identities) {
                run.rate(serial.total_runtime_seconds);
            }
            if let Some(mut parallel) = parallel {
                parallel.rate(serial.total_runtime_seconds);
                let speedup = parallel.speedup.unwrap_or_default();
                self.speedup.insert(identities.to_owned(), speedup);
                self.parallel.insert(identities.to_owned(), parallel);
            }
            self.serial.insert(identities.to_owned(), serial);
        }
        self.noise = noise(&self.runs);
        let refused: u64 = self.runs.iter().map(|run| run.rate_limited).sum();
        if refused > 0 {
            self.notes.push(format!(
                "{refused} answers were 429, and each run begins at the full pace again: set a lower pace for the next time"
            ));
        }
        let mut records: Vec<u64> =
            self.runs.iter().filter(|it| it.ok).map(|it| it.total_records).collect();
        records.sort_unstable();
        records.dedup();
        if records.len() > 1 {
            self.notes
                .push(format!("the runs did not export the same number of records: {records:?}"));
        }
    }

    /// Sets each run beside its like in `earlier`, read from `name`.
    pub fn compare(&mut self, earlier: &Self, name: &str) {
        self.compared_with = Some(name.to_owned());
        for run in self.runs.iter_mut().filter(|run| run.ok) {
            let likes = earlier.runs.iter().filter(|it| it.ok && it.is_like(run));
            let rate = likes.map(|it| it.records_per_second).fold(0.0, f64::max);
            run.against_earlier = (rate > 0.0).then(|| run.records_per_second / rate);
        }
        let pace = |it: &Self| [it.host_requests_per_second, it.directory_requests_per_second];
        let mut paces = pace(earlier).into_iter().zip(pace(self));
        let differences = [
            ("other accounts", earlier.dids_sha256 != self.dids_sha256),
            ("another number of cores", earlier.cores != self.cores),
            ("another pace", paces.any(|(a, b)| a.to_bits() != b.to_bits())),
        ];
        for (what, _) in differences.into_iter().filter(|(_, is_different)| *is_different) {
            let text = format!("{name} was made with {what}: the comparison is of unlike things");
            self.notes.push(text);
        }
    }

    /// For people.
    #[must_use]
    pub fn table(&self) -> String {
        let mut text = format!(
            "{:>7} {:>7} {:>6} {:>9} {:>10} {:>8} {:>6} {:>9} {:>8} {:>10}  bound by\n",
            "workers",
            "parsers",
            "ids",
            "seconds",
            "records/s",
            "cpu s",
            "cpu",
            "peak MiB",
            "speed-up",
            "efficiency"
        );
        for run in &self.runs {
            text += &run.line();
        }
        for (identities, speedup) in &self.speedup {
            let (Some(serial), Some(parallel)) =
                (self.serial.get(identities), self.parallel.get(identities))
            else {
                continue;
            };
            let _written = writeln!(
                text,
                "\n{identities}: {} workers and {} parsers are {speedup:.2} times as fast as serial ({:.2} s, {:.2} s)",
                parallel.workers,
                parallel.parsers,
                parallel.total_runtime_seconds,
                serial.total_runtime_seconds
            );
            if self.noise.is_some_and(|noise| (speedup - 1.0).abs() <= noise) {
                text += "  repetitions of one run differ by as much: this says nothing\n";
            }
            let _written = writeln!(text, "  serial is bound by {}", serial.explanation);
            let _written = writeln!(text, "  parallel is bound by {}", parallel.explanation);
        }
        match self.noise {
            Some(noise) => {
                let _written = writeln!(
                    text,
                    "\nrepetitions of one run differ by up to {:.0}%",
                    noise * 100.0
                );
            }
            None => text += "\neach run was made once: small differences say nothing (--repeat)\n",
        }
        text += "peak MiB is VmHWM, the kernel's high-water mark of resident memory; cpu is of all cores\n";
        for note in &self.notes {
            let _written = writeln!(text, "note: {note}");
        }
        text
    }

    /// Records per second by workers.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "numbers of workers")]
    pub fn plot(&self) -> String {
        let mut lines: BTreeMap<(usize, &str), BTreeMap<usize, f64>> = BTreeMap::new();
        for run in self.runs.iter().filter(|run| run.ok) {
            let line = lines.entry((run.parsers, run.identities.as_str())).or_default();
            let best = line.entry(run.workers).or_default();
            *best = best.max(run.records_per_second);
        }
        let line = |((parsers, identities), points): ((usize, &str), BTreeMap<usize, f64>)| Line {
            name: format!("{parsers} parsers, {identities}"),
            points: points.into_iter().map(|(workers, rate)| (workers as f64, rate)).collect(),
        };
        let lines: Vec<Line> = lines.into_iter().map(line).collect();
        let title = format!(
            "{} accounts, {} cores, skyfill {}",
            self.total_users, self.cores, self.version
        );
        let axes = Axes { title: &title, x: "workers", y: "records per second", is_log_x: true };
        svg(&axes, &lines)
    }
}

impl Run {
    #[expect(clippy::cast_precision_loss, reason = "numbers of workers")]
    fn rate(&mut self, serial_seconds: f64) {
        let speedup = serial_seconds / self.total_runtime_seconds.max(1e-9);
        self.speedup = Some(speedup);
        self.efficiency = Some(speedup / self.workers.max(1) as f64);
    }

    fn line(&self) -> String {
        let head = format!("{:>7} {:>7} {:>6}", self.workers, self.parsers, self.identities);
        if !self.ok {
            let error = self.error.as_deref().unwrap_or("it was not made");
            return format!("{head} failed ({}): {error}\n", self.exit_code);
        }
        let share = |it: Option<f64>| it.map_or("-".to_owned(), |it| format!("{it:.2}"));
        let mut line = format!(
            "{head} {:>9.2} {:>10.0} {:>8.2} {:>5.0}% {:>9} {:>8} {:>10}  {}",
            self.total_runtime_seconds,
            self.records_per_second,
            self.cpu_user_seconds + self.cpu_system_seconds,
            self.cpu_share * 100.0,
            self.peak_memory_bytes >> 20,
            share(self.speedup),
            share(self.efficiency),
            self.bound
        );
        if self.accounts_parked > 0 {
            let _written = write!(line, "; {} parked", self.accounts_parked);
        }
        if self.rate_limited > 0 {
            let _written = write!(line, "; {} answers were 429", self.rate_limited);
        }
        if let Some(ratio) = self.against_earlier {
            let _written = write!(line, "; {ratio:.2} of the earlier rate");
        }
        line + "\n"
    }
}

/// The largest difference between likes.
fn noise(runs: &[Run]) -> Option<f64> {
    let mut most = None;
    for run in runs.iter().filter(|run| run.ok) {
        for other in runs.iter().filter(|it| it.ok && it.repeat > run.repeat && it.is_like(run)) {
            let (a, b) = (run.total_runtime_seconds, other.total_runtime_seconds);
            let difference = (a - b).abs() / a.min(b).max(1e-9);
            most = Some(f64::max(most.unwrap_or(0.0), difference));
        }
    }
    most
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(workers: usize, seconds: f64, repeat: usize) -> Run {
        let planned = Run::planned(workers, 1, "cold", repeat);
        let (ok, total_records) = (true, 1_000);
        Run {
            ok,
            total_records,
            total_runtime_seconds: seconds,
            records_per_second: 1_000.0 / seconds,
            ..planned
        }
    }

    #[test]
    fn speed_up_is_against_the_serial_run_and_a_failed_one_is_shown() {
        let first = Run { rate_limited: 3, ..run(1, 8.0, 1) };
        let failed =
            Run { ok: false, exit_code: 74, error: Some("no disk".to_owned()), ..run(2, 1.0, 1) };
        let runs = vec![first, run(4, 2.0, 1), failed, run(4, 2.5, 2)];
        let mut found = Experiment { runs, dids_sha256: "a".to_owned(), ..Experiment::default() };
        found.conclude();
        assert_eq!(found.speedup["cold"], 4.0);
        assert!(found.notes[0].starts_with("3 answers were 429"), "{:?}", found.notes);
        assert_eq!(
            (found.parallel["cold"].speedup, found.parallel["cold"].efficiency),
            (Some(4.0), Some(1.0))
        );
        assert_eq!((found.runs[2].speedup, found.noise), (None, Some(0.25)));
        let earlier = Experiment { runs: vec![run(4, 4.0, 1)], ..Experiment::default() };
        found.compare(&earlier, "old.json");
        assert_eq!(found.runs[1].against_earlier, Some(2.0));
        assert_eq!((found.runs[0].against_earlier, found.runs[2].against_earlier), (None, None));
        let table = found.table();
        assert!(table.contains("failed (74): no disk"), "{table}");
        assert!(
            table.contains("4.00 times as fast") && table.contains("other accounts"),
            "{table}"
        );
        assert_eq!(found.plot().matches("<polyline").count(), 1);
        let text = serde_json::to_string(&found).unwrap();
        let read: Experiment = serde_json::from_str(&text).unwrap();
        assert_eq!(read.runs, found.runs);
    }
}
