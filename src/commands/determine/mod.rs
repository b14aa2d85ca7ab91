//! `skyfill determine`: the accounts to backfill: whoever wrote what was liked, reposted or replied to.
//!
//! ```text
//!  queues, JSON lines, Parquet ──records──> authors of their subjects, counted ──sorted──> minus done, excluded, listed ──> list
//! ```
//! takes   records in the date range; from whoever wrote them: skyfill, or the Python service
//! gives   a list that `backfill --dids-file` and `[source]` read, and with counts a CSV that they read too
//! reads   the ledger of the data directory, if there is one, beside whoever writes it; it takes no lock
//! counts  bad records by named cause; gives up on a file that cannot be read (exit 74), and has then written nothing
//!
//! Memory stays below `limits.memory` whatever is read: the authors, the excluded and those on the list before are sorted in
//! unlinked files (`TMPDIR` says where) and merged.

pub mod files;
pub mod flags;
pub mod intake;
pub mod lines;
pub mod output;
#[cfg(feature = "parquet")]
pub mod parquet;
pub mod queues;
pub mod told;

use std::fs::File;
use std::io::{self, BufRead, BufReader, Write};
use std::path::{Path, PathBuf};

use flate2::bufread::MultiGzDecoder;

use crate::commands::error::CommandError;
use crate::config::settings::Settings;
use crate::config::targets::{self, ListSource, Target, TargetError};
use crate::pipeline::data::LEDGER_FILE;
use crate::store::author_counts::AuthorCounts;
use crate::store::error::StoreError;
use crate::store::ledger_done::DoneAccounts;
use crate::store::sorted_list::{Entry, ListSorter, SortedList};

use files::{Files, Form, Found, date_by_folder, kind_by_name};
use flags::{Flags, SubjectKind, Wanted};
use intake::{Figures, Intake, Place};
use output::{Appended, Output};

/// Part of `limits.memory` that the authors take while they are counted; a run of theirs takes an eighth of it.
const AUTHORS_SHARE: u64 = 2;

/// Bytes read from a file at once.
const READ_BYTES: usize = 256 << 10;

/// What came of it.
#[derive(Debug, Default)]
pub struct Outcome {
    /// What was read.
    pub figures: Figures,
    /// Files that were read.
    pub files: u64,
    /// Files in folders that were not.
    pub passed_over: u64,
    /// Distinct authors.
    pub authors: u64,
    /// Of them, done in the ledger.
    pub already_done: u64,
    /// Of the others, on an excluded list.
    pub excluded: u64,
    /// Of the others, on the list that is added to.
    pub already_listed: u64,
    /// The rest: what was written.
    pub accounts: u64,
    /// Lines of excluded lists that are no DID.
    pub exclude_malformed: u64,
    /// How often the authors did not fit the memory.
    pub spills: u64,
    /// The ledger, if there is one.
    pub ledger: Option<PathBuf>,
}

/// Determines the accounts; the list, or with `--json` the summary, goes to `out`, the summary for people to `told`.
///
/// # Errors
/// [`CommandError`]; no file has been changed then.
pub fn run(
    settings: &Settings,
    flags: &Flags,
    out: &mut dyn Write,
    told: &mut dyn Write,
) -> Result<(), CommandError> {
    determine(settings, flags, out, told).map_err(|error| match error {
        // Elsewhere a full disk is waited for.
        CommandError::Store(StoreError::Full { path, .. }) => {
            let text = "no space left: free some, or let TMPDIR name a folder on another disk";
            let source = io::Error::new(io::ErrorKind::StorageFull, text);
            StoreError::Io { path, source }.into()
        }
        error => error,
    })
}

fn determine(
    settings: &Settings,
    flags: &Flags,
    out: &mut dyn Write,
    told: &mut dyn Write,
) -> Result<(), CommandError> {
    let wanted = flags.wanted();
    check(flags, &wanted)?;
    let scratch = std::env::temp_dir();
    let mut excluded = Listed::read(&flags.exclude, &scratch)?;
    let append_to: Vec<PathBuf> =
        flags.append_to.iter().filter(|path| path.exists()).cloned().collect();
    let mut listed = Listed::read(&append_to, &scratch)?;
    let memory = usize::try_from(settings.limits.memory / AUTHORS_SHARE).unwrap_or(usize::MAX);
    let mut intake = Intake::new(wanted.clone(), AuthorCounts::new(&scratch, memory));
    let mut outcome = Outcome::default();
    read_all(flags, &wanted, &mut intake, &mut outcome)?;
    let Intake { authors, figures, .. } = intake;
    (outcome.figures, outcome.spills) = (figures, authors.spills());
    outcome.exclude_malformed = excluded.malformed;
    let ledger = settings.data_dir.join(LEDGER_FILE);
    let done = if ledger.exists() { Some(DoneAccounts::open(&ledger)?) } else { None };
    outcome.ledger = done.is_some().then_some(ledger);
    let mut authors = authors.finish()?;
    let mut outputs = Outputs::open(flags, out)?;
    while let Some((did, counts)) = authors.next_author()? {
        outcome.authors += 1;
        // A list that holds many of these is asked first: it costs no query.
        let (is_excluded, is_listed) = (excluded.has(&did)?, listed.has(&did)?);
        if done.as_ref().map_or(Ok(false), |done| done.has(&did))? {
            outcome.already_done += 1;
        } else if is_excluded {
            outcome.excluded += 1;
        } else if is_listed {
            outcome.already_listed += 1;
        } else {
            outcome.accounts += 1;
            outputs.add(&did, &counts)?;
        }
    }
    outputs.commit(outcome.accounts)?;
    told::text(&outcome, flags, told)?;
    if flags.json { told::json(&outcome, flags, out) } else { Ok(()) }
}

/// What can be seen to be wrong before anything is read.
fn check(flags: &Flags, wanted: &Wanted) -> Result<(), CommandError> {
    let usage = |text: String| Err(CommandError::Usage(text));
    if wanted.start_date > wanted.end_date {
        return usage(format!(
            "--start-date {} is after --end-date {}",
            wanted.start_date, wanted.end_date
        ));
    }
    let is_stdin = |path: &&PathBuf| path.as_path() == Path::new("-");
    if flags.from.iter().chain(&flags.exclude).filter(is_stdin).count() > 1 {
        return usage("standard input can be read once: give - once".to_owned());
    }
    let csv_is_stdout = flags.csv.as_deref() == Some(Path::new("-"));
    if csv_is_stdout && flags.json {
        return usage("--json and --csv - both want stdout: write the CSV to a file".to_owned());
    }
    // What is to be written can be, and everything that was named is there, and can be read by this build, before hours are spent on the first of it.
    let outputs = flags.out.iter().chain(&flags.append_to).chain(&flags.csv);
    outputs
        .filter(|path| path.as_path() != Path::new("-"))
        .try_for_each(|path| Output::probe(path))?;
    let mut files = Files::below(&flags.from, wanted.kinds);
    while let Some(found) = files.next_file()? {
        if cfg!(not(feature = "parquet"))
            && found.path.extension().is_some_and(|it| it == "parquet")
        {
            return Err(no_parquet(&found.path));
        }
    }
    Ok(())
}

fn no_parquet(path: &Path) -> CommandError {
    CommandError::Usage(format!(
        "{}: this skyfill was built without Parquet: build it with --features parquet, or convert the file to JSON lines",
        path.display()
    ))
}

fn read_all(
    flags: &Flags,
    wanted: &Wanted,
    intake: &mut Intake,
    outcome: &mut Outcome,
) -> Result<(), CommandError> {
    let mut files = Files::below(&flags.from, wanted.kinds);
    while let Some(found) = files.next_file()? {
        if read_file(&found, intake)? {
            outcome.files += 1;
        } else {
            files.passed_over += 1;
        }
    }
    outcome.passed_over = files.passed_over;
    Ok(())
}

/// Reads one file; `false` for a database in a folder that is no queue.
fn read_file(found: &Found, intake: &mut Intake) -> Result<bool, CommandError> {
    let (path, is_stdin) = (&found.path, found.path == Path::new("-"));
    let name = if is_stdin { Path::new("stdin") } else { path };
    let (kind, date) = (kind_by_name(name), date_by_folder(name));
    let place = Place { file: name, kind, date, row: 0, record: None };
    let failed = |error| StoreError::io(name, error);
    let mut reader: Box<dyn BufRead> = if is_stdin {
        Box::new(BufReader::with_capacity(READ_BYTES, io::stdin()))
    } else {
        Box::new(BufReader::with_capacity(READ_BYTES, File::open(path).map_err(failed)?))
    };
    let form = Form::of(reader.fill_buf().map_err(failed)?);
    match form {
        Form::Lines => lines::read(&mut reader, place, intake)?,
        Form::GzipLines => {
            let text = MultiGzDecoder::new(reader);
            lines::read(&mut BufReader::with_capacity(READ_BYTES, text), place, intake)?;
        }
        Form::Zstd => {
            let text = "this is a zstd file: zstd -dc it into --from -";
            return Err(failed(io::Error::new(io::ErrorKind::InvalidData, text)).into());
        }
        Form::Queue | Form::Parquet if is_stdin => {
            let text =
                "SQLite and Parquet cannot be read from standard input: name the file".to_owned();
            return Err(CommandError::Usage(text));
        }
        Form::Queue => match queues::open(path)? {
            Some(queue) => queues::read(&queue, place, intake)?,
            None if found.is_named => {
                let text = "a SQLite file without a table queue: no queue of skyfill or of the Python service";
                return Err(failed(io::Error::new(io::ErrorKind::InvalidData, text)).into());
            }
            None => return Ok(false),
        },
        Form::Parquet => read_parquet(path, place, intake)?,
    }
    Ok(true)
}

#[cfg(feature = "parquet")]
fn read_parquet(path: &Path, place: Place<'_>, intake: &mut Intake) -> Result<(), CommandError> {
    Ok(parquet::read(path, place, intake)?)
}

#[cfg(not(feature = "parquet"))]
fn read_parquet(path: &Path, _: Place<'_>, _: &mut Intake) -> Result<(), CommandError> {
    Err(no_parquet(path))
}

/// Accounts of lists, in order, to be asked in order.
struct Listed {
    list: SortedList,
    next: Option<Entry>,
    malformed: u64,
}

impl Listed {
    fn read(paths: &[PathBuf], scratch: &Path) -> Result<Self, CommandError> {
        let sources: Vec<ListSource> = paths.iter().map(|path| ListSource::file(path)).collect();
        let (mut sorter, mut malformed) = (ListSorter::new(scratch), 0);
        for target in targets::open(&sources).map_err(unreadable)? {
            match target.map_err(unreadable)? {
                Target::Did(did) => sorter.push(Entry::did(did.as_str()))?,
                Target::Malformed { .. } => malformed += 1,
            }
        }
        let mut list = sorter.finish_sorted()?;
        let next = list.next_entry()?;
        Ok(Self { list, next, malformed })
    }

    /// Whether `did` is on it; what is asked comes later in order each time.
    fn has(&mut self, did: &str) -> Result<bool, StoreError> {
        while self.next.as_ref().is_some_and(|next| next.name.as_str() < did) {
            self.next = self.list.next_entry()?;
        }
        Ok(self.next.as_ref().is_some_and(|next| next.name == did))
    }
}

/// What cannot be read is a matter of files here, as with the sources.
fn unreadable(error: TargetError) -> CommandError {
    match error {
        TargetError::Unreadable { name, source } => StoreError::io(Path::new(&name), source).into(),
        error => error.into(),
    }
}

/// Where the accounts go.
struct Outputs<'o> {
    list: Option<Output<'o>>,
    appended: Option<(Appended<'o>, PathBuf)>,
    csv: Option<Output<'o>>,
}

impl<'o> Outputs<'o> {
    fn open(flags: &Flags, out: &'o mut dyn Write) -> Result<Self, CommandError> {
        let is_stdout = |path: &Option<PathBuf>| path.as_deref() == Some(Path::new("-"));
        let mut out = (!flags.json).then_some(out);
        let csv = match &flags.csv {
            Some(_) if is_stdout(&flags.csv) => out.take().map(Output::stdout),
            Some(path) => Some(Output::file(path)?),
            None => None,
        };
        let appended = match &flags.append_to {
            Some(path) => Some((Appended::open(path)?, path.clone())),
            None => None,
        };
        let list = match &flags.out {
            Some(path) if !is_stdout(&flags.out) => Some(Output::file(path)?),
            _ if appended.is_some() => None,
            _ => out.take().map(Output::stdout),
        };
        let mut outputs = Self { list, appended, csv };
        if let Some(csv) = &mut outputs.csv {
            let labels = SubjectKind::ALL.map(SubjectKind::label).join(",");
            csv.write(&format!("did,{labels},total\n"))?;
        }
        Ok(outputs)
    }

    fn add(&mut self, did: &str, counts: &[u64; 3]) -> Result<(), StoreError> {
        if let Some(list) = &mut self.list {
            list.write(&format!("{did}\n"))?;
        }
        if let Some((list, _)) = &mut self.appended {
            list.add(did)?;
        }
        if let Some(csv) = &mut self.csv {
            let [like, repost, reply] = counts;
            csv.write(&format!("{did},{like},{repost},{reply},{}\n", like + repost + reply))?;
        }
        Ok(())
    }

    /// Makes all of it the files that were asked for; a list that nothing is added to stays untouched.
    fn commit(self, accounts: u64) -> Result<(), StoreError> {
        if let Some(csv) = self.csv {
            csv.commit()?;
        }
        if let Some(list) = self.list {
            list.commit()?;
        }
        match self.appended {
            Some((list, path)) if accounts > 0 || !path.exists() => list.output.commit(),
            _ => Ok(()),
        }
    }
}
