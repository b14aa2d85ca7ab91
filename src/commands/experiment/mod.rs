//! `skyfill experiment`: serial against parallel, and sweeps of workers and parsers, over the same accounts.
//!
//! ```text
//!  for each repetition, parsers, workers:   cold  a child over a new data directory
//!                                           warm  the same, with the identities that the first cold run has found
//!  serial: one worker, one parser; always there, because everything is measured against it
//!  OUT/experiment.json   OUT/experiment.svg   OUT/dids.txt (the distinct accounts)   OUT/run (the data of the run at work)
//! ```
//! takes   a list, numbers, everything that `backfill` takes by configuration
//! gives   a table, JSON and a plot; a run that fails is one of the results
//!
//! Every run asks every host anew, at the configured pace: how many requests that makes is said before the first one. Runs come
//! one after the other, each in a process of its own, so that none inherits another's memory, connections or threads.

pub mod bound;
pub mod measure;
pub mod one;
pub mod plot;
pub mod result;

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use clap::Args;
use indicatif::HumanCount;
use sha2::{Digest, Sha256};
use tokio_util::sync::CancellationToken;

use crate::cli::Common;
use crate::clock::Clock;
use crate::commands::error::CommandError;
use crate::commands::network_flags::NetworkFlags;
use crate::config::file::Assignment;
use crate::config::settings::{Settings, cores};
use crate::config::targets::{self, ListSource, Target};
use crate::domain::identity::Identity;
use crate::exit_code::ExitCode;
use crate::pipeline::data::LEDGER_FILE;
use crate::pipeline::{Data, Surrounding};
use crate::store::durable::Folder;
use crate::store::error::StoreError;
use crate::store::ledger_export::{LastWord, Said};
use crate::store::ledger_lists::{Decided, Reader};

use bound::Floors;
use result::{Experiment, Run};

/// Accounts of an experiment: more of them than a few thousand say nothing more, and they are asked for many times.
const ACCOUNTS_MAX: usize = 1_000_000;

/// Identities in one transaction.
const STAGED_AT_ONCE: usize = 5_000;

/// Its flags.
#[derive(Clone, Debug, Args)]
#[allow(rustdoc::broken_intra_doc_links, reason = "the help names keys of the configuration")]
pub struct Flags {
    #[command(flatten)]
    #[allow(missing_docs, reason = "see Common")]
    pub common: Common,
    /// List of accounts, as for backfill; each run is over all of them
    #[arg(long, value_name = "FILE", required = true, value_hint = clap::ValueHint::FilePath)]
    pub dids_file: Vec<PathBuf>,
    /// Transfers at once of each run, comma-separated [fetch.concurrency]
    #[arg(long, value_name = "N,...", value_delimiter = ',', default_value = "1,2,4,8,16", value_parser = clap::value_parser!(u32).range(1..))]
    pub workers: Vec<u32>,
    /// Parser threads of each run, comma-separated; without it one a core [limits.parsers]
    #[arg(long, value_name = "N,...", value_delimiter = ',', value_parser = clap::value_parser!(u32).range(1..))]
    pub parsers: Vec<u32>,
    /// How often each run is made
    #[arg(long, value_name = "N", default_value = "1", value_parser = clap::value_parser!(u32).range(1..=100))]
    pub repeat: u32,
    /// Directory for experiment.json, experiment.svg and the data of the run at work
    #[arg(long, value_name = "DIR", required_unless_present = "one", value_hint = clap::ValueHint::DirPath)]
    pub out: Option<PathBuf>,
    /// Set it beside the experiment.json of an earlier experiment
    #[arg(long, value_name = "FILE", value_hint = clap::ValueHint::FilePath)]
    pub compare: Option<PathBuf>,
    #[command(flatten)]
    #[allow(missing_docs, reason = "see NetworkFlags")]
    pub network: NetworkFlags,
    /// Print the result as one JSON object
    #[arg(long)]
    pub json: bool,
    /// Make one run over --data-dir: what the experiment starts
    #[arg(long, hide = true)]
    pub one: bool,
}

impl Flags {
    /// Its settings: `--set` in the order given, then named flags.
    #[must_use]
    pub fn assignments(&self) -> Vec<Assignment> {
        self.network.assignments(&self.common)
    }

    /// The lists.
    #[must_use]
    pub fn sources(&self) -> Vec<ListSource> {
        self.dids_file.iter().map(|path| ListSource::file(path)).collect()
    }

    /// What is run in one repetition: workers and parsers, the serial run first, none twice.
    fn sweep(&self) -> Vec<(usize, usize)> {
        let number = |it: &u32| usize::try_from(*it).unwrap_or(usize::MAX);
        let parsers: Vec<usize> = match self.parsers.is_empty() {
            true => vec![cores()],
            false => self.parsers.iter().map(number).collect(),
        };
        let mut sweep = vec![(1, 1)];
        for parsers in parsers {
            for workers in self.workers.iter().map(number) {
                if !sweep.contains(&(workers, parsers)) {
                    sweep.push((workers, parsers));
                }
            }
        }
        sweep
    }
}

/// An experiment at work.
struct Bench<'b> {
    flags: &'b Flags,
    settings: &'b Settings,
    surrounding: &'b Surrounding,
    out: &'b Path,
    stop: CancellationToken,
    /// What the first cold run has found.
    known: Option<Vec<(String, Identity)>>,
    floors: Floors,
    found: Experiment,
}

/// Makes the experiment that `flags` ask for; the table, or the JSON, goes to `out`.
///
/// # Errors
/// [`CommandError`] of what is wrong before the first run; a run that fails is in the result.
pub async fn run(
    flags: &Flags,
    settings: &Settings,
    surrounding: &Surrounding,
    stop: CancellationToken,
    out: &mut dyn Write,
) -> Result<ExitCode, CommandError> {
    let Some(folder) = &flags.out else {
        return Err(CommandError::Usage("--out names where the results go".to_owned()));
    };
    let earlier = flags.compare.as_deref().map(read_earlier).transpose()?;
    let dids = distinct(&flags.sources())?;
    std::fs::create_dir_all(folder).map_err(|error| StoreError::io(folder, error))?;
    let list: String = dids.iter().map(|did| format!("{did}\n")).collect();
    write(folder, "dids.txt", &list)?;
    let mut bench = Bench::new(flags, settings, surrounding, folder, stop, &dids);
    bench.announce();
    bench.sweep().await?;
    let mut found = bench.found;
    found.timestamp = surrounding.clock.wall_text();
    found.conclude();
    if let (Some(earlier), Some(path)) = (&earlier, &flags.compare) {
        found.compare(earlier, &path.display().to_string());
    }
    // Numbers and words always serialise.
    let json = serde_json::to_string_pretty(&found).unwrap_or_default() + "\n";
    write(folder, "experiment.json", &json)?;
    write(folder, "experiment.svg", &found.plot())?;
    let text = if flags.json { json } else { found.table() };
    let written = out.write_all(text.as_bytes()).and_then(|()| out.flush());
    written.map_err(|error| StoreError::io(Path::new("stdout"), error))?;
    Ok(match () {
        () if found.interrupted => ExitCode::Interrupted,
        () if found.runs.iter().any(|run| !run.ok) => ExitCode::Failed,
        () => ExitCode::Done,
    })
}

fn read_earlier(path: &Path) -> Result<Experiment, CommandError> {
    let text = std::fs::read_to_string(path).map_err(|error| StoreError::io(path, error))?;
    let earlier: Result<Experiment, _> = serde_json::from_str(&text);
    match earlier {
        Ok(earlier) if !earlier.runs.is_empty() => Ok(earlier),
        Ok(_) => Err(CommandError::Usage(format!("{}: no runs are in it", path.display()))),
        Err(error) => Err(CommandError::Usage(format!(
            "{}: not the experiment.json of an experiment: {error}",
            path.display()
        ))),
    }
}

/// The accounts of `sources`, each once; what is none is left out and named.
fn distinct(sources: &[ListSource]) -> Result<BTreeSet<String>, CommandError> {
    let mut dids = BTreeSet::new();
    for target in targets::open(sources)? {
        match target? {
            Target::Did(did) => drop(dids.insert(did.as_str().to_owned())),
            Target::Malformed { detail, .. } => tracing::warn!(%detail, "malformed did, left out"),
        }
        if dids.len() > ACCOUNTS_MAX {
            let text = format!(
                "more than {ACCOUNTS_MAX} accounts: take a part of them, every run asks for all"
            );
            return Err(CommandError::Usage(text));
        }
    }
    match dids.is_empty() {
        true => Err(CommandError::Usage("the list holds no DID".to_owned())),
        false => Ok(dids),
    }
}

/// Writes a whole file, or leaves the old one.
fn write(folder: &Path, name: &str, text: &str) -> Result<(), StoreError> {
    let (folder, part) = (Folder::open(folder)?, format!("{name}.part"));
    if folder.file(&part).exists() {
        folder.remove(&part)?;
    }
    let mut file = folder.create(&part)?;
    file.append(text.as_bytes())?;
    file.sync()?;
    folder.rename(&part, name)
}

impl<'b> Bench<'b> {
    fn new(
        flags: &'b Flags,
        settings: &'b Settings,
        surrounding: &'b Surrounding,
        out: &'b Path,
        stop: CancellationToken,
        dids: &BTreeSet<String>,
    ) -> Self {
        let mut hasher = Sha256::new();
        dids.iter().for_each(|did| hasher.update(format!("{did}\n")));
        let dids_sha256 = hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
        let accounts = dids.len() as u64;
        let runs = flags.sweep().len() as u64 * u64::from(flags.repeat);
        let found = Experiment {
            experiment: "serial_vs_parallel".to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            total_users: accounts,
            dids_sha256,
            cores: cores(),
            host_requests_per_second: settings.fetch.host_requests_per_second,
            directory_requests_per_second: settings.identity.requests_per_second,
            // Cold: the directory and the host; warm: the host.
            requests_at_least: runs * accounts * 3,
            ..Experiment::default()
        };
        let (known, floors) = (None, Floors::default());
        Self { flags, settings, surrounding, out, stop, known, floors, found }
    }

    /// Says what is about to be asked of others.
    fn announce(&self) {
        let runs = self.flags.sweep().len() as u64 * u64::from(self.flags.repeat) * 2;
        let found = &self.found;
        tracing::info!(
            runs,
            accounts = found.total_users,
            requests_at_least = found.requests_at_least,
            to_directories = runs / 2 * found.total_users,
            host_requests_per_second = found.host_requests_per_second,
            directory_requests_per_second = found.directory_requests_per_second,
            "every run asks every host anew: at least {} requests in all, at the configured pace",
            HumanCount(found.requests_at_least)
        );
    }

    async fn sweep(&mut self) -> Result<(), CommandError> {
        for repeat in 1..=usize::try_from(self.flags.repeat).unwrap_or(1) {
            for (workers, parsers) in self.flags.sweep() {
                for identities in ["cold", "warm"] {
                    if self.stop.is_cancelled() {
                        self.found.interrupted = true;
                        return Ok(());
                    }
                    let planned = Run::planned(workers, parsers, identities, repeat);
                    let run = self.one(planned).await?;
                    tracing::info!(
                        workers,
                        parsers,
                        identities,
                        seconds = format!("{:.2}", run.total_runtime_seconds),
                        records_per_second = format!("{:.0}", run.records_per_second),
                        error = run.error,
                        "a run has ended"
                    );
                    self.found.runs.push(run);
                }
            }
        }
        Ok(())
    }

    async fn one(&mut self, planned: Run) -> Result<Run, CommandError> {
        let data = self.out.join("run");
        remove(&data)?;
        if planned.identities == "warm"
            && let Err(error) = self.warm(&data)
        {
            remove(&data)?;
            return Ok(Run { error: Some(error.to_string()), exit_code: -1, ..planned });
        }
        let clock = &self.surrounding.clock;
        let mut command = self.command(&data, &planned)?;
        let measured = measure::measure(&mut command, clock, &self.stop).await;
        let measured = measured.map_err(|error| StoreError::io(Path::new("the child"), error))?;
        let mut run = planned.measured(&measured, self.found.cores);
        if run.ok && self.known.is_none() {
            self.learn(&data)?;
        }
        if run.ok {
            let (word, sentence) = bound::explain(&run, &self.floors, self.found.cores);
            (run.bound, run.explanation) = (word.to_owned(), sentence);
        }
        remove(&data)?;
        Ok(run)
    }

    /// The same program, with the same configuration.
    fn command(&self, data: &Path, run: &Run) -> Result<Command, CommandError> {
        let program = std::env::current_exe();
        let program = program.map_err(|error| StoreError::io(Path::new("skyfill"), error))?;
        let mut command = Command::new(program);
        command.args(["experiment", "--one", "--dids-file"]).arg(self.out.join("dids.txt"));
        if let Some(path) = &self.flags.common.config {
            command.arg("--config").arg(path);
        }
        for Assignment { key, value, .. } in self.flags.assignments() {
            command.arg("--set").arg(format!("{key}={value}"));
        }
        let own = [
            format!("fetch.concurrency={}", run.workers),
            format!("limits.parsers={}", run.parsers),
            "log.level=warn".to_owned(),
        ];
        for setting in own {
            command.arg("--set").arg(setting);
        }
        command.arg("--data-dir").arg(data);
        Ok(command)
    }

    /// Remembers the identities of a run that has ended, and what its hosts' pace makes of them.
    fn learn(&mut self, data: &Path) -> Result<(), CommandError> {
        let (mut known, mut hosts) = (Vec::new(), BTreeMap::<String, u64>::new());
        let reader = Reader::open(&data.join(LEDGER_FILE))?;
        reader.each(Decided::Done, |report| {
            if let Some(identity) = report.account.identity {
                *hosts.entry(identity.host.clone()).or_default() += 1;
                known.push((report.did, identity));
            }
            Ok(())
        })?;
        let plc = known.iter().filter(|(did, _)| did.starts_with("did:plc:")).count() as u64;
        self.floors = Floors::new(&hosts, plc, self.settings);
        self.found.hosts = hosts.len();
        self.known = Some(known);
        Ok(())
    }

    /// Makes a data directory that knows every account and where it lives.
    fn warm(&self, data: &Path) -> Result<(), CommandError> {
        let Some(known) = &self.known else {
            return Err(CommandError::Usage("no cold run has found the identities".to_owned()));
        };
        let settings = Settings { data_dir: data.to_owned(), ..self.settings.clone() };
        let Surrounding { clock, chance, .. } = self.surrounding;
        let mut ledger = Data::open(&settings, clock, chance)?;
        ledger.list(targets::open(&[ListSource::file(&self.out.join("dids.txt"))])?)??;
        let rows = ledger.rows_mut();
        rows.unstage()?;
        let at_ms = Clock::wall_ms(clock);
        for some in known.chunks(STAGED_AT_ONCE) {
            let said = |(did, identity): &(String, Identity)| {
                let (did, word) = (did.clone(), LastWord::Identity(identity.clone()));
                Said { did, at_ms, word }
            };
            let said: Vec<Said> = some.iter().map(said).collect();
            rows.stage(&said)?;
        }
        rows.take_staged(at_ms)?;
        Ok(())
    }
}

fn remove(data: &Path) -> Result<(), StoreError> {
    match std::fs::remove_dir_all(data) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(StoreError::io(data, error))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        flags: Flags,
    }

    fn sweep(line: &str) -> Vec<(usize, usize)> {
        let words = format!("x --dids-file f --out o {line}");
        Line::try_parse_from(words.split_ascii_whitespace()).unwrap().flags.sweep()
    }

    #[test]
    fn the_serial_run_is_always_there_and_no_run_twice() {
        assert_eq!(sweep("--workers 1,2,2 --parsers 1"), [(1, 1), (2, 1)]);
        assert_eq!(sweep("--workers 4 --parsers 2,3"), [(1, 1), (4, 2), (4, 3)]);
        assert_eq!(sweep("").len(), if cores() == 1 { 5 } else { 6 });
        for line in ["--workers 0", "--parsers x", "--repeat 0"] {
            let words = format!("x --dids-file f --out o {line}");
            assert!(Line::try_parse_from(words.split_ascii_whitespace()).is_err(), "{line}");
        }
        assert!(Line::try_parse_from(["x", "--dids-file", "f"]).is_err());
    }
}
