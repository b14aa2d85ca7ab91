//! `skyfill identities`: fills the ledger's identities from an export of the directory, so that millions of accounts need no
//! request each.
//!
//! ```text
//!  lists ──> ledger        FILE (plain or gzip) | URL (pages, at the directory's pace) ──lines──> operations ──> ledger
//! ```
//! takes   the directory's operations, one a line, oldest first; malformed lines are counted, and the first of them named
//! gives   to each account of the lists what its last operation that counts says; all others are resolved as ever
//!
//! What an export says is as old as the export: `identity.cache_ttl` counts from its last operation (of a URL: from its last
//! page), and an older export is refused whole. Memory is that of one page or batch, whatever the export's length. Interrupted,
//! it has changed nothing but the lists; the same command begins anew.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};

use clap::Args;
use flate2::bufread::MultiGzDecoder;
use indicatif::HumanCount;
use serde_json::json;
use url::Url;

use crate::cli::Common;
use crate::clock::wall_text;
use crate::commands::error::CommandError;
use crate::commands::network_flags::NetworkFlags;
use crate::config::file::Assignment;
use crate::config::list_lines::{LineError, Lines};
use crate::config::settings::Settings;
use crate::config::targets::{self, ListSource};
use crate::domain::did::cleaned;
use crate::domain::identity::Identity;
use crate::domain::ledger::millis;
use crate::identity::export::{self, Operation, State};
use crate::net::client::{Client, Trust};
use crate::net::export_pages::Pages;
use crate::net::guard::Guard;
use crate::pipeline::{Data, StartError, Surrounding, plan_limits};
use crate::store::error::StoreError;
use crate::store::ledger_export::{LastWord, Said, Taken};
use crate::store::ledger_lists::Reader;
use crate::store::ledger_rows::Rows;

/// Operations in one transaction: about 50 ms of the writer.
const STAGED_AT_ONCE: usize = 5_000;

/// Malformed lines that are named; the rest is counted.
const NAMED_MAX: usize = 20;

/// Lines between two reports of progress.
const TOLD_EVERY: u64 = 1_000_000;

/// Bytes read from a file at once.
const READ_BYTES: usize = 256 << 10;

/// Its flags.
#[derive(Debug, Args)]
#[command(mut_arg("plc_url", |it| it.help("PLC directory, whose host is trusted [identity.plc_url]")))]
#[allow(rustdoc::broken_intra_doc_links, reason = "the help names keys of the configuration")]
pub struct Flags {
    #[command(flatten)]
    #[allow(missing_docs, reason = "see Common")]
    pub common: Common,
    /// The export: a file (plain or gzip), or the URL of a directory's /export, read page by page at its pace
    #[arg(long, value_name = "FILE|URL", value_hint = clap::ValueHint::FilePath)]
    pub from: String,
    /// List of accounts, as for backfill; without any, [source], or else the accounts that the ledger knows (repeatable)
    #[arg(long, value_name = "FILE", value_hint = clap::ValueHint::FilePath)]
    pub dids_file: Vec<PathBuf>,
    #[command(flatten)]
    #[allow(missing_docs, reason = "see NetworkFlags")]
    pub network: NetworkFlags,
    /// Print the result as one JSON object
    #[arg(long)]
    pub json: bool,
}

impl Flags {
    /// Its settings: `--set` in the order given, then named flags.
    #[must_use]
    pub fn assignments(&self) -> Vec<Assignment> {
        self.network.assignments(&self.common)
    }
}

/// Where an export comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum From {
    /// A file, plain or gzip.
    File(PathBuf),
    /// An address that answers as the directory's `/export` does.
    Url(Url),
}

impl From {
    /// Reads `--from`.
    ///
    /// # Errors
    /// [`CommandError::Usage`] for a URL that is none.
    pub fn parse(text: &str) -> Result<Self, CommandError> {
        if !text.starts_with("http://") && !text.starts_with("https://") {
            return Ok(Self::File(text.into()));
        }
        let url = Url::parse(text);
        url.map(Self::Url).map_err(|error| CommandError::Usage(format!("--from {text}: {error}")))
    }
}

/// Fills the ledger of `settings` for the accounts of `sources`; without any, for those that it knows already.
///
/// # Errors
/// [`CommandError`]; no identity has been taken then.
pub async fn run(
    settings: &Settings,
    from: &From,
    sources: &[ListSource],
    surrounding: &Surrounding,
    as_json: bool,
    out: &mut dyn Write,
) -> Result<(), CommandError> {
    let mut data = Data::open(settings, &surrounding.clock, &surrounding.chance)?;
    if !sources.is_empty() {
        data.list(targets::open(sources)?)??;
    }
    let rows = data.rows_mut();
    rows.unstage()?;
    let mut reading = Reading::new(rows, Guard::new(&settings.network));
    let as_of_ms = match from {
        From::File(path) => read_file(path, &mut reading)?,
        From::Url(url) => read_pages(url, &mut reading, settings, surrounding).await?,
    };
    reading.flush()?;
    let counts = std::mem::take(&mut reading.counts);
    let (name, now_ms) = (shown(from), surrounding.clock.wall_ms());
    if counts.good == 0 {
        return Err(CommandError::Usage(format!("{name} holds no operation of a directory")));
    }
    let as_of_ms = as_of_ms.min(now_ms);
    if now_ms - as_of_ms >= millis(settings.identity.cache_ttl) {
        let text = format!(
            "{name} ends at {} UTC, which is older than identity.cache_ttl: take a newer export, or raise identity.cache_ttl \
             here and for the runs that shall use it",
            wall_text(as_of_ms)
        );
        return Err(StoreError::Config(text).into());
    }
    let taken = data.rows_mut().take_staged(as_of_ms)?;
    let queued = Reader::open(&data.ledger_path())?.counts()?.queued;
    write(&counts, &taken, queued, as_of_ms, as_json, out)
}

fn shown(from: &From) -> String {
    match from {
        From::File(path) => path.display().to_string(),
        From::Url(url) => url.to_string(),
    }
}

/// What was read.
#[derive(Clone, Debug, Default)]
struct Counts {
    lines: u64,
    good: u64,
    malformed: u64,
    nullified: u64,
    /// The first malformed lines: their numbers, and what is wrong, cleaned.
    named: Vec<(u64, String)>,
}

/// An export being read into the ledger.
struct Reading<'r> {
    rows: &'r mut Rows,
    guard: Guard,
    batch: Vec<Said>,
    counts: Counts,
    /// Newest operation, milliseconds since 1970.
    newest_ms: i64,
}

impl<'r> Reading<'r> {
    fn new(rows: &'r mut Rows, guard: Guard) -> Self {
        let (batch, counts) = (Vec::with_capacity(STAGED_AT_ONCE), Counts::default());
        Self { rows, guard, batch, counts, newest_ms: i64::MIN }
    }

    /// Takes a line; gives when its operation was made, if it is one.
    fn take(&mut self, line: &str) -> Result<Option<i64>, StoreError> {
        self.counts.lines += 1;
        let number = self.counts.lines;
        if number.is_multiple_of(TOLD_EVERY) {
            tracing::info!(lines = number, "reading the export");
        }
        let Operation { did, at_ms, is_nullified, state } = match export::read(line) {
            Ok(operation) => operation,
            Err(why) => {
                self.counts.malformed += 1;
                if self.counts.named.len() < NAMED_MAX {
                    self.counts.named.push((number, cleaned(&why)));
                }
                return Ok(None);
            }
        };
        self.counts.good += 1;
        self.newest_ms = self.newest_ms.max(at_ms);
        if is_nullified {
            self.counts.nullified += 1;
            return Ok(Some(at_ms));
        }
        let word = self.word(state);
        self.batch.push(Said { did: did.as_str().to_owned(), at_ms, word });
        if self.batch.len() >= STAGED_AT_ONCE {
            self.flush()?;
        }
        Ok(Some(at_ms))
    }

    /// What the guard does not let pass is left to the resolver, which says why.
    fn word(&self, state: State) -> LastWord {
        let document = match state {
            State::Document(document) => document,
            State::Tombstoned => return LastWord::Tombstoned,
            State::Unclear => return LastWord::Unclear,
        };
        match self.guard.endpoint(&document.endpoint) {
            Ok(endpoint) => LastWord::Identity(Identity {
                endpoint: document.endpoint,
                host: endpoint.host,
                key: document.key,
                earlier_keys: Vec::new(),
                handle: document.handle,
            }),
            Err(_) => LastWord::Unclear,
        }
    }

    fn flush(&mut self) -> Result<(), StoreError> {
        self.rows.stage(&self.batch)?;
        self.batch.clear();
        Ok(())
    }
}

/// Reads a file to its end; gives when its newest operation was made.
fn read_file(path: &Path, reading: &mut Reading<'_>) -> Result<i64, CommandError> {
    let failed = |error| StoreError::io(path, error);
    let mut file = BufReader::with_capacity(READ_BYTES, File::open(path).map_err(failed)?);
    let is_gzip = file.fill_buf().map_err(failed)?.starts_with(b"\x1f\x8b");
    let text: Box<dyn Read> =
        if is_gzip { Box::new(MultiGzDecoder::new(file)) } else { Box::new(file) };
    let mut lines = Lines::new(BufReader::with_capacity(READ_BYTES, text));
    loop {
        match lines.next_line() {
            Ok(None) => return Ok(reading.newest_ms),
            Ok(Some(line)) if line.text.trim().is_empty() => {}
            Ok(Some(line)) => drop(reading.take(&line.text)?),
            Err(LineError::Io(error)) => return Err(failed(error).into()),
            Err(LineError::Bad { number, what }) => {
                let text = format!("{}:{number}: {what}", path.display());
                return Err(StoreError::Config(text).into());
            }
        }
    }
}

/// Reads page after page; gives when the last one was asked for.
async fn read_pages(
    url: &Url,
    reading: &mut Reading<'_>,
    settings: &Settings,
    surrounding: &Surrounding,
) -> Result<i64, CommandError> {
    let clock = surrounding.clock.clone();
    let client = match surrounding.network.clone() {
        Some(network) => Client::within(settings, clock, network),
        None => Client::new(settings, clock),
    };
    let client = client.map_err(StartError::Net)?;
    let identity = &settings.identity;
    let directories = std::iter::once(&identity.plc_url).chain(&identity.mirrors);
    let is_known = directories.map(Url::origin).any(|origin| origin == url.origin());
    let trust = if is_known { Trust::Operator } else { Trust::Stranger };
    let limits = plan_limits(settings).directory;
    let (clock, chance) = (&surrounding.clock, &surrounding.chance);
    let mut pages = Pages::new(client, url, trust, limits, clock, chance);
    loop {
        let page = pages.next().await.map_err(CommandError::Unreachable)?;
        let mut newest_ms = None;
        for line in page.lines() {
            newest_ms = newest_ms.max(reading.take(line)?);
        }
        if !pages.advance(&page, newest_ms).map_err(CommandError::Unreachable)? {
            return Ok(pages.asked_ms());
        }
    }
}

fn write(
    counts: &Counts,
    taken: &Taken,
    queued: u64,
    as_of_ms: i64,
    as_json: bool,
    out: &mut dyn Write,
) -> Result<(), CommandError> {
    let Counts { lines, malformed, nullified, named, .. } = counts;
    let Taken { resolved, tombstoned, unclear, passed_over } = taken;
    let as_of = wall_text(as_of_ms);
    let name = |(line, why): &(u64, String)| json!({"line": line, "why": why});
    let text = if as_json {
        let named: Vec<_> = named.iter().map(name).collect();
        let value = json!({
            "lines": lines, "malformed": malformed, "nullified": nullified, "named": named, "resolved": resolved,
            "tombstoned": tombstoned, "unclear": unclear, "passed_over": passed_over, "queued": queued,
            "as_of": as_of,
        });
        format!("{value}\n")
    } else {
        let count = |n: &u64| HumanCount(*n).to_string();
        let named: String =
            named.iter().map(|(line, why)| format!("malformed   line {line}: {why}\n")).collect();
        format!(
            "lines       {}, {} malformed, {} nullified\nidentities  {} taken as of {as_of} UTC, {} tombstoned, {} left to the \
             directory, {} passed over\naccounts    {} to be done\n{named}",
            count(lines),
            count(malformed),
            count(nullified),
            count(resolved),
            count(tombstoned),
            count(unclear),
            count(passed_over),
            count(&queued)
        )
    };
    let written = out.write_all(text.as_bytes()).and_then(|()| out.flush());
    Ok(written.map_err(|error| StoreError::io(Path::new("stdout"), error))?)
}
