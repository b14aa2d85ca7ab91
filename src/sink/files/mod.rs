//! Sinks to files: JSON lines or Parquet, in a directory or an object store, with a manifest that says what counts.
//!
//! ```text
//!  segment ──items──> gathered: one temporary file, rows by type and day          bounded: `file_bytes`, 262,144 runs
//!                        │ full, old enough, or the end of a run is waited for
//!                        └──> files, one after the other: drafted, synced, placed ──> manifest NNNNNNNN.json: *the commit*
//! ```
//! A manifest names files, accounts and the segment that they end with, so data and position commit together: whatever no
//! manifest names is a leftover, which the next start removes, and its rows come again. Commits lie between segments, and a
//! segment holds whole accounts, so no account of a segment is ever split over two manifests. An account larger than
//! `file_bytes` is placed in several files of one manifest.
//!
//! Memory: one writer at a time, whatever the number of types and days (`gather` holds 24 bytes a run of rows of one day);
//! with Parquet that of a row group of at most 8 MiB and its pages, with both that of one queue item of at most 8 MiB.

#[cfg(feature = "s3")]
mod bucket;
mod gather;
mod jsonl;
mod leftover;
mod manifest;
mod output;
#[cfg(feature = "parquet")]
mod parquet;
#[cfg(feature = "parquet")]
mod schema;
mod shelf;

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::clock::{Clock, Instant};
use crate::config::settings::{Bucket, SinkForm, SinkPlace, SinkSettings};
use crate::crash_point;
use crate::domain::account::Revision;
use crate::sink::{Position, SegmentReader, Sink, Start, StoreError};

use gather::{Gathered, Group};
use leftover::Stem;
use manifest::{AccountEntry, FileEntry, Manifest};
use output::Output;
use shelf::{Directory, Shelf};

pub use shelf::refusal as place_refusal;

/// What a sink keeps back is held in the journal, too: at most this part of its `lag_max`, so that the work goes on meanwhile.
const LAG_SHARE: u64 = 4;

/// Accounts of one manifest, about 200 bytes each.
const ACCOUNTS_MAX: usize = 10_000;

/// How rows become files.
pub(super) trait Form: Send {
    /// The partition that a row belongs to; `None` where there are none.
    fn day(&self, row: &str) -> Option<String>;

    /// Path of a file below the sink's place.
    fn path(&self, group: &Group, stem: &str) -> String;

    /// Ending of every file, with its dot.
    fn ending(&self) -> &'static str;

    /// Whether a file with that ending must be the sink's own, because readers take every one of them.
    fn is_exclusive(&self) -> bool;

    /// Writes `rows`, one a line, of the type `label`.
    fn write(
        &self,
        label: &str,
        rows: &mut dyn std::io::BufRead,
        out: &mut Output,
    ) -> Result<(), StoreError>;
}

/// The sink of `settings`, not opened yet: nothing is asked of a disk or a network before it begins. `scratch` is a folder for
/// what is written before it is sent.
///
/// # Errors
/// [`StoreError::Config`] for what this build cannot do.
pub fn configured(
    settings: &SinkSettings,
    scratch: &Path,
    clock: &Clock,
) -> Result<FileSink, StoreError> {
    let file_bytes = settings.file_bytes.min(settings.lag_max / LAG_SHARE);
    let held = SinkSettings { file_bytes, ..settings.clone() };
    FileSink::new(&held, scratch, clock.clone())
}

/// What `settings` need that this build does not have.
#[must_use]
pub fn missing_feature(settings: &SinkSettings) -> Option<String> {
    let name = &settings.name;
    let text = |what: &str, feature: &str| {
        Some(format!("sink.{name}: {what} needs a build with --features {feature}"))
    };
    match (&settings.form, &settings.place) {
        (SinkForm::Parquet, _) if !cfg!(feature = "parquet") => {
            text("type = \"parquet\"", "parquet")
        }
        (SinkForm::Kafka, _) if !cfg!(feature = "kafka") => text("type = \"kafka\"", "kafka"),
        (_, SinkPlace::Bucket(_)) if !cfg!(feature = "s3") => text("a url", "s3"),
        _ => None,
    }
}

/// What it has from [`Sink::begin`] on.
struct State {
    directory: String,
    /// Number of the newest manifest.
    number: u64,
    committed: u64,
    taken: Position,
    gathered: Gathered,
    placed: Vec<FileEntry>,
    accounts: Vec<AccountEntry>,
    /// The last segment whose accounts are in there.
    accounts_of: u64,
    /// When the oldest of what is not committed was taken.
    since: Option<Instant>,
    /// Written and not placed yet: the store is away.
    draft: Option<(Group, PathBuf, FileEntry)>,
}

/// A sink to files.
pub struct FileSink {
    settings: SinkSettings,
    form: Box<dyn Form>,
    shelf: Box<dyn Shelf>,
    scratch: PathBuf,
    clock: Clock,
    state: Option<State>,
}

impl FileSink {
    /// A sink as `settings` say.
    ///
    /// # Errors
    /// [`StoreError::Config`] for what this build cannot do.
    pub fn new(settings: &SinkSettings, scratch: &Path, clock: Clock) -> Result<Self, StoreError> {
        if let Some(text) = missing_feature(settings) {
            return Err(StoreError::Config(text));
        }
        let scratch = scratch.join(&settings.name);
        let shelf: Box<dyn Shelf> = match &settings.place {
            SinkPlace::Folder(path) => Box::new(Directory::new(path)),
            SinkPlace::Bucket(bucket) => remote(bucket, &scratch)?,
            SinkPlace::Broker(_) => return Err(StoreError::sink("a broker has no files")),
        };
        let form = form(settings)?;
        Ok(Self { settings: settings.clone(), form, shelf, scratch, clock, state: None })
    }

    fn state(&mut self) -> Result<&mut State, StoreError> {
        let missing = || StoreError::sink("it was asked for something before it had begun");
        self.state.as_mut().ok_or_else(missing)
    }

    /// Takes the rows of one item.
    fn take(&mut self, label: &str, payload: &str) -> Result<(), StoreError> {
        let rows: Vec<&serde_json::value::RawValue> =
            serde_json::from_str(payload).map_err(StoreError::sink)?;
        let by_day: Vec<(Option<String>, &str)> =
            rows.iter().map(|row| (self.form.day(row.get()), row.get())).collect();
        self.state()?.gathered.take(label, &by_day)
    }

    /// Makes files of everything that is gathered, and places them.
    fn turn(&mut self) -> Result<(), StoreError> {
        loop {
            let drafted = self.state()?.draft.is_some();
            if !drafted && !self.draft()? {
                return self.state()?.gathered.clear();
            }
            let Some(state) = self.state.as_mut() else { return Ok(()) };
            let Some((group, draft, entry)) = &state.draft else { continue };
            self.shelf.place(draft, &entry.path)?;
            state.gathered.remove(group);
            let placed = state.draft.take().map(|(_, _, entry)| entry);
            state.placed.extend(placed);
        }
    }

    /// Writes the next file; `false` if there is none.
    fn draft(&mut self) -> Result<bool, StoreError> {
        let Some(state) = self.state.as_mut() else { return Ok(false) };
        let Some((group, mut rows)) = state.gathered.first() else { return Ok(false) };
        let stem = Stem {
            first: state.committed + 1,
            last: state.taken.segment,
            directory: state.directory.clone(),
            part: state.placed.len() + 1,
        };
        let path = self.form.path(&group, &stem.to_string());
        let draft = self.shelf.draft(&path)?;
        let mut output = Output::create(&draft)?;
        let written = self.form.write(&group.label, &mut rows, &mut output);
        // What the system said is worth more than what a writer above it made of it.
        let (bytes, sha256) = match output.finish(written.is_ok())? {
            Some(finished) => finished,
            None => return written.map(|()| false),
        };
        let (label, rows) = (group.label.clone(), state.gathered.rows(&group));
        let entry = FileEntry { path, label, day: group.day.clone(), rows, bytes, sha256 };
        // A whole file under a name that nobody looks at: it is a leftover, and its rows come again.
        crash_point!(SinkFileDraftedBeforePlaced);
        state.draft = Some((group, draft, entry));
        Ok(true)
    }

    /// Makes everything taken count.
    fn commit(&mut self) -> Result<(), StoreError> {
        let state = self.state()?;
        let through = state.taken.passed();
        if through <= state.committed && state.gathered.is_empty() {
            return Ok(());
        }
        self.turn()?;
        // Its files are placed and no manifest names them: they are leftovers, and their rows come again.
        crash_point!(SinkFilesPlacedBeforeManifest);
        let manifest = {
            let (form, settings) = (self.form.ending(), &self.settings);
            let Some(state) = self.state.as_mut() else { return Ok(()) };
            let mut next = Manifest::head(&settings.name, form, &state.directory, through);
            next.number = state.number + 1;
            next.segments = [state.committed + 1, through];
            next.files = std::mem::take(&mut state.placed);
            next.accounts = std::mem::take(&mut state.accounts);
            next
        };
        let written = self.shelf.commit(manifest.number, &manifest.to_bytes());
        let state = self.state()?;
        if let Err(error) = written {
            (state.placed, state.accounts) = (manifest.files, manifest.accounts);
            return Err(error);
        }
        (state.number, state.committed, state.since) = (manifest.number, through, None);
        // The manifest counts and the ledger does not know: the sink says where it is.
        crash_point!(SinkCommittedBeforeSettle);
        Ok(())
    }

    /// Whether what is gathered is to become files now.
    fn is_due(&mut self) -> Result<bool, StoreError> {
        let (now, settings) = (self.clock.now(), self.settings.clone());
        let state = self.state()?;
        let age = state.since.map_or(Duration::ZERO, |since| now.saturating_duration_since(since));
        let is_old = state.since.is_some() && age >= settings.file_age;
        let is_full = state.gathered.is_full(settings.file_bytes) || !state.placed.is_empty();
        Ok(is_old || is_full || state.accounts.len() >= ACCOUNTS_MAX)
    }

    fn settled(&mut self) -> Result<Vec<(String, Position)>, StoreError> {
        let committed = self.state()?.committed;
        Ok(vec![("files".to_owned(), Position::after(committed))])
    }
}

impl Sink for FileSink {
    fn begin(&mut self, start: &Start) -> Result<Position, StoreError> {
        let name = self.settings.name.clone();
        let newest = self.shelf.open()?;
        let manifest = match newest {
            Some((number, bytes)) => {
                let place = self.settings.place.to_string();
                let manifest = Manifest::read(number, &bytes, &place)?;
                manifest.check(&start.directory, self.form.ending(), &place)?;
                manifest
            }
            None => {
                let through = start.known.passed();
                if through > 0 {
                    tracing::warn!(sink = %name, segment = through, "the sink has no manifest: it is made anew and goes on where it was");
                }
                let head = Manifest::head(&name, self.form.ending(), &start.directory, through);
                self.shelf.commit(head.number, &head.to_bytes())?;
                head
            }
        };
        let committed = manifest.through();
        let is_leftover =
            |path: &str| leftover::judge(path, &start.directory, committed, &*self.form);
        let removed = self.shelf.clear(&is_leftover)?;
        if removed > 0 {
            tracing::info!(sink = %name, files = removed, "what no manifest names was removed, its rows come again");
        }
        self.state = Some(State {
            directory: start.directory.clone(),
            number: manifest.number,
            committed,
            taken: Position::after(committed),
            gathered: Gathered::make(&self.scratch)?,
            placed: Vec::new(),
            accounts: Vec::new(),
            accounts_of: committed,
            since: None,
            draft: None,
        });
        Ok(Position::after(committed))
    }

    fn apply(&mut self, segment: &SegmentReader) -> Result<(), StoreError> {
        let now = self.clock.now();
        let file_bytes = self.settings.file_bytes;
        self.state()?.since.get_or_insert(now);
        let mut buffer = Vec::new();
        for item in segment.items_from(self.state()?.taken) {
            if self.state()?.gathered.is_full(file_bytes) {
                self.turn()?;
            }
            self.take(item.label, item.payload(&mut buffer)?)?;
            self.state()?.taken = item.after;
        }
        let state = self.state()?;
        if state.accounts_of < segment.number {
            let revisions = segment.accounts();
            state.accounts.extend(revisions.map(|it: &Revision| AccountEntry::of(it)));
            state.accounts_of = segment.number;
        }
        state.taken = segment.end();
        if self.is_due()? { self.commit() } else { Ok(()) }
    }

    fn settle(&mut self) -> Result<Vec<(String, Position)>, StoreError> {
        if self.is_due()? {
            self.commit()?;
        }
        self.settled()
    }

    fn finish(&mut self) -> Result<Vec<(String, Position)>, StoreError> {
        self.commit()?;
        self.settled()
    }
}

fn form(settings: &SinkSettings) -> Result<Box<dyn Form>, StoreError> {
    match settings.form {
        SinkForm::JsonLines => Ok(Box::new(jsonl::JsonLines::new(settings.zstd))),
        #[cfg(feature = "parquet")]
        SinkForm::Parquet => Ok(Box::new(parquet::Parquet::new(settings.zstd))),
        #[cfg(not(feature = "parquet"))]
        SinkForm::Parquet => Err(StoreError::Config(missing_feature(settings).unwrap_or_default())),
        SinkForm::Kafka => Err(StoreError::sink("a broker has no files")),
    }
}

/// A shelf in an object store.
#[cfg(feature = "s3")]
fn remote(bucket: &Bucket, scratch: &Path) -> Result<Box<dyn Shelf>, StoreError> {
    Ok(Box::new(bucket::Objects::new(bucket, scratch)))
}

#[cfg(not(feature = "s3"))]
fn remote(_bucket: &Bucket, _scratch: &Path) -> Result<Box<dyn Shelf>, StoreError> {
    Err(StoreError::Config("a url needs a build with --features s3".to_owned()))
}

/// Whether a bucket can be reached and read; a build without the feature does not look.
///
/// # Errors
/// [`StoreError::Permission`], [`StoreError::Config`], or [`StoreError::Busy`] if nobody answers.
#[cfg(feature = "s3")]
pub fn look_at(bucket: &Bucket) -> Result<(), StoreError> {
    bucket::Objects::new(bucket, Path::new("")).look()
}

/// Whether a bucket can be reached and read; a build without the feature does not look.
///
/// # Errors
/// None.
#[cfg(not(feature = "s3"))]
pub const fn look_at(_bucket: &Bucket) -> Result<(), StoreError> {
    Ok(())
}
