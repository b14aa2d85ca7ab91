//! What bounded a run, in a sentence that says how it knows.
//!
//! ```text
//!  floor of a pace   (requests - 1) / rate of the busiest host, or of the directory: no run can be faster
//!  bound_by          what the scheduler waited for, 20 times a second, as in `status`
//!  CPU               user and system seconds of the process, against the cores that it may use
//! ```
//! The order is by how sure each is: a floor that the run keeps close to says it all, then the CPU, then what was waited for.

use std::collections::BTreeMap;

use crate::commands::experiment::result::Run;
use crate::config::settings::Settings;

/// A run this close to its floor was bound by it.
const FLOOR_SHARE: f64 = 0.8;

/// A process that takes this much of its cores was bound by them.
const CPU_SHARE: f64 = 0.85;

/// Something that is waited for this much of the time is what bounds.
const WAITED_SHARE: f64 = 0.5;

/// Work shorter than this is mostly beginning and end (opening, the last group's 200 ms, settling), seconds.
const SHORT: f64 = 1.0;

/// What no run over these accounts can beat.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Floors {
    /// The host with the most accounts, how many, and the seconds that their requests take at its pace.
    pub host: (String, u64, f64),
    /// Accounts that the directory is asked for, and the seconds that they take at its pace.
    pub directory: (u64, f64),
}

impl Floors {
    /// Of accounts by host, `plc` of them of the directory.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "counts of accounts")]
    pub fn new(hosts: &BTreeMap<String, u64>, plc: u64, settings: &Settings) -> Self {
        let seconds = |requests: u64, rate: f64| requests.saturating_sub(1) as f64 / rate;
        let busiest = hosts.iter().max_by_key(|(_, accounts)| **accounts);
        let (name, accounts) = busiest.map(|(name, n)| (name.clone(), *n)).unwrap_or_default();
        let host_rate = settings.fetch.host_requests_per_second;
        Self {
            host: (name, accounts, seconds(accounts, host_rate)),
            directory: (plc, seconds(plc, settings.identity.requests_per_second)),
        }
    }
}

/// The word and the sentence about `run`.
#[must_use]
pub fn explain(run: &Run, floors: &Floors, cores: usize) -> (&'static str, String) {
    let seconds = run.work_seconds;
    let (host, accounts, host_floor) = &floors.host;
    let (asked, directory_floor) = floors.directory;
    // A run that is far faster than a floor proves that it was none: most accounts were not asked for.
    let is_near = |floor: f64| floor >= FLOOR_SHARE * seconds && seconds >= FLOOR_SHARE * floor;
    if run.identities == "cold" && is_near(directory_floor) && directory_floor >= *host_floor {
        let text = format!(
            "the directory's pace: {asked} questions at identity.requests_per_second take at least {directory_floor:.1} s, \
             and the work took {seconds:.1} s"
        );
        return ("directory", text);
    }
    if is_near(*host_floor) {
        let text = format!(
            "a host's pace: {accounts} accounts of {host} at fetch.host_requests_per_second take at least {host_floor:.1} s, \
             and the work took {seconds:.1} s"
        );
        return ("host_pace", text);
    }
    if seconds <= SHORT {
        let text = format!(
            "what begins and ends every run: {seconds:.2} s of work are too short to say more"
        );
        return ("unknown", text);
    }
    let top = run.bound_by.iter().max_by(|a, b| a.1.total_cmp(b.1));
    let (word, share) = top.map_or(("", 0.0), |(word, share)| (word.as_str(), *share));
    let percent = share * 100.0;
    let cpu = run.cpu_share * 100.0;
    if run.cpu_share >= CPU_SHARE {
        let text = format!("the CPU: the process took {cpu:.0}% of {cores} cores' time");
        return ("cpu", text);
    }
    if share < WAITED_SHARE {
        let text = format!(
            "nothing alone: the CPU was {cpu:.0}% of {cores} cores' time, and the most frequent wait ({word}) {percent:.0}% of it"
        );
        return ("mixed", text);
    }
    waited(word, percent, cpu, run, cores)
}

/// The sentence about what was waited for most of the time.
fn waited(word: &str, percent: f64, cpu: f64, run: &Run, cores: usize) -> (&'static str, String) {
    let beside = format!("{percent:.0}% of the time; the CPU was {cpu:.0}% of {cores} cores' time");
    let (workers, parsers) = (run.workers, run.parsers);
    match word {
        "parser" => (
            "cpu",
            format!(
                "the CPU of {parsers} parser threads, which had more to do than they could {beside}"
            ),
        ),
        "sink" => {
            ("sink", format!("a sink that held more than its lag_max: it was waited for {beside}"))
        }
        "exporter" | "disk" => ("disk", format!("the disk: the journal was waited for {beside}")),
        "concurrency" => (
            "network",
            format!(
                "the network and the hosts behind it: all {workers} workers were transferring {beside}"
            ),
        ),
        "host_pace" => (
            "host_pace",
            format!(
                "a host's pace or places: accounts were ready and no host might be asked {beside}"
            ),
        ),
        "hosts" => (
            "hosts",
            format!(
                "answers that were still out, with nothing more to begin (slow or refusing hosts, the last transfers and their commit), {beside}"
            ),
        ),
        "directory" => {
            ("directory", format!("the directory: accounts waited to be resolved {beside}"))
        }
        "retry" => ("retry", format!("failures: accounts waited for their next attempt {beside}")),
        _ => ("unknown", format!("unknown ({word}), {beside}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(work_seconds: f64, cpu_share: f64, bound_by: &[(&str, f64)]) -> Run {
        let bound_by = bound_by.iter().map(|(word, share)| ((*word).to_owned(), *share)).collect();
        let identities = "cold".to_owned();
        Run {
            workers: 8,
            parsers: 2,
            identities,
            work_seconds,
            cpu_share,
            bound_by,
            ..Run::default()
        }
    }

    #[test]
    fn what_is_surest_is_said_and_the_evidence_with_it() {
        let mut settings = Settings::default();
        settings.fetch.host_requests_per_second = 10.0;
        settings.identity.requests_per_second = 100.0;
        let hosts = BTreeMap::from([("a.test".to_owned(), 101), ("b.test".to_owned(), 5)]);
        let floors = Floors::new(&hosts, 106, &settings);
        assert_eq!(floors.host, ("a.test".to_owned(), 101, 10.0));
        let said = |run: &Run| explain(run, &floors, 2);
        let (word, text) = said(&run(11.0, 0.9, &[("parser", 0.9)]));
        assert_eq!(word, "host_pace");
        assert!(text.contains("101 accounts of a.test") && text.contains("10.0 s"), "{text}");
        assert_eq!(said(&run(40.0, 0.9, &[("host_pace", 0.9)])).0, "cpu");
        assert_eq!(said(&run(40.0, 0.5, &[("parser", 0.9)])).0, "cpu");
        assert_eq!(said(&run(40.0, 0.1, &[("concurrency", 0.7), ("hosts", 0.3)])).0, "network");
        assert_eq!(said(&run(40.0, 0.1, &[("exporter", 0.7)])).0, "disk");
        assert_eq!(said(&run(40.0, 0.1, &[("exporter", 0.4), ("hosts", 0.3)])).0, "mixed");
        assert_eq!(said(&run(0.1, 0.1, &[])).0, "unknown");
        settings.identity.requests_per_second = 5.0;
        let floors = Floors::new(&hosts, 106, &settings);
        let cold = run(22.0, 0.1, &[]);
        assert_eq!(explain(&cold, &floors, 2).0, "directory");
        let warm = Run { identities: "warm".to_owned(), ..cold };
        assert_ne!(explain(&warm, &floors, 2).0, "directory");
    }
}
