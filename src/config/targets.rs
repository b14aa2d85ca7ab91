//! DID lists as one stream of targets, read line by line and never held.
//!
//! takes   files, stdin, DIDs of a flag or of the configuration, the Python service's input queue
//! gives   [`Target`]s in the order of the lists; duplicates are the ledger's matter
//! goes on after a malformed line, which is a target of its own kind
//! gives up on what is no list at all ([`TargetError`]): unreadable, not text, a line without end; nothing follows an error

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::path::{Path, PathBuf};

use crate::config::list_format::{Format, Named};
use crate::config::list_lines::{LineError, Lines};
use crate::config::list_queue::InputQueue;
use crate::config::settings::Source;
use crate::domain::did::{Did, cleaned};

/// Where DIDs come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ListSource {
    /// DIDs that were written down themselves.
    Inline {
        /// Where: `--dids`, `source.dids`.
        name: String,
        /// As written; blank ones are ignored.
        dids: Vec<String>,
    },
    /// A list file.
    File(PathBuf),
    /// A list on standard input.
    Stdin,
    /// The Python service's `input_backfill_sync.db`.
    Queue(PathBuf),
}

impl ListSource {
    /// A list file, or standard input for `-`.
    #[must_use]
    pub fn file(path: &Path) -> Self {
        if path == Path::new("-") { Self::Stdin } else { Self::File(path.to_owned()) }
    }

    /// The lists of `[source]`.
    #[must_use]
    pub fn configured(source: &Source) -> Vec<Self> {
        let mut sources: Vec<Self> = source.files.iter().map(|path| Self::file(path)).collect();
        if !source.dids.is_empty() {
            let (name, dids) = ("source.dids".to_owned(), source.dids.clone());
            sources.push(Self::Inline { name, dids });
        }
        sources
    }

    /// What it is called in messages.
    #[must_use]
    pub fn name(&self) -> String {
        match self {
            Self::Inline { name, .. } => name.clone(),
            Self::File(path) | Self::Queue(path) => cleaned(&path.to_string_lossy()),
            Self::Stdin => "stdin".to_owned(),
        }
    }
}

/// One entry of a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// A well-formed DID.
    Did(Did),
    /// Something else.
    Malformed {
        /// Under which text it is parked.
        cleaned: String,
        /// Where it stands and what is wrong with it.
        detail: String,
    },
}

/// Why a list cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TargetError {
    /// It cannot be read.
    #[error("{name}: {source}")]
    Unreadable {
        /// Which list.
        name: String,
        /// What the system said.
        source: io::Error,
    },
    /// It is no list.
    #[error("{place}: {what}")]
    NotAList {
        /// File, and line where there is one.
        place: String,
        /// What is wrong.
        what: String,
    },
    /// It is no input queue.
    #[error(
        "{name}: {source}: expected the service's input queue, with a table queue(id, payload, ...)"
    )]
    Queue {
        /// Which file.
        name: String,
        /// What SQLite said.
        source: rusqlite::Error,
    },
}

impl TargetError {
    /// Whether the system did not permit to read it.
    #[must_use]
    pub fn is_permission(&self) -> bool {
        matches!(self, Self::Unreadable { source, .. } if source.kind() == io::ErrorKind::PermissionDenied)
    }

    /// Whether it is the disk that failed, not the list that is wrong.
    #[must_use]
    pub fn is_io(&self) -> bool {
        use io::ErrorKind::{IsADirectory, NotADirectory, NotFound, PermissionDenied};
        let named = [IsADirectory, NotADirectory, NotFound, PermissionDenied];
        matches!(self, Self::Unreadable { source, .. } if !named.contains(&source.kind()))
    }
}

/// Opens `sources` one after the other as they are read. What is plainly not there is reported at once.
///
/// # Errors
/// [`TargetError`] of the first source that cannot be opened.
pub fn open(sources: &[ListSource]) -> Result<Targets, TargetError> {
    for source in sources {
        if let ListSource::File(path) | ListSource::Queue(path) = source {
            probe(path, &source.name())?;
        }
    }
    let sources = sources.iter().cloned().collect();
    Ok(Targets {
        sources,
        current: None,
        waiting: VecDeque::new(),
        counts: Counts::default(),
        is_over: false,
    })
}

/// A list on `reader`, called `name` in messages.
#[must_use]
pub fn from_reader(name: &str, reader: Box<dyn BufRead + Send>) -> Targets {
    let mut targets = Targets {
        sources: VecDeque::new(),
        current: None,
        waiting: VecDeque::new(),
        counts: Counts::default(),
        is_over: false,
    };
    targets.current = Some(Open { name: name.to_owned(), kind: Kind::lines(reader) });
    targets
}

/// How many entries a stream has given.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Well-formed DIDs, duplicates included.
    pub dids: u64,
    /// Everything else.
    pub malformed: u64,
}

impl Counts {
    /// Both.
    #[must_use]
    pub const fn total(&self) -> u64 {
        self.dids + self.malformed
    }
}

/// The stream.
pub struct Targets {
    sources: VecDeque<ListSource>,
    current: Option<Open>,
    /// Entries of a queue row that was read whole.
    waiting: VecDeque<Target>,
    counts: Counts,
    is_over: bool,
}

impl std::fmt::Debug for Targets {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Targets").field("sources", &self.sources).finish_non_exhaustive()
    }
}

struct Open {
    name: String,
    kind: Kind,
}

enum Kind {
    Inline(std::vec::IntoIter<String>),
    Lines { lines: Lines<Box<dyn BufRead + Send>>, format: Option<Format> },
    Queue(InputQueue),
}

impl Kind {
    fn lines(reader: Box<dyn BufRead + Send>) -> Self {
        Self::Lines { lines: Lines::new(reader), format: None }
    }
}

impl Iterator for Targets {
    type Item = Result<Target, TargetError>;

    fn next(&mut self) -> Option<Self::Item> {
        let next = self.advance().transpose();
        match &next {
            Some(Ok(Target::Did(_))) => self.counts.dids += 1,
            Some(Ok(Target::Malformed { .. })) => self.counts.malformed += 1,
            Some(Err(_)) | None => self.is_over = true,
        }
        next
    }
}

impl Targets {
    /// How many entries were given so far; after the last one, how many there are.
    #[must_use]
    pub const fn counts(&self) -> Counts {
        self.counts
    }

    fn advance(&mut self) -> Result<Option<Target>, TargetError> {
        while !self.is_over {
            if let Some(target) = self.waiting.pop_front() {
                return Ok(Some(target));
            }
            if self.current.is_none() {
                let Some(source) = self.sources.pop_front() else { break };
                self.current = Some(Open::new(source)?);
            }
            let Some(current) = &mut self.current else { break };
            match current.next(&mut self.waiting)? {
                Step::Target(target) => return Ok(Some(target)),
                Step::Waiting => {}
                Step::End => self.current = None,
            }
        }
        Ok(None)
    }
}

enum Step {
    Target(Target),
    /// Some, or none, were put among the waiting ones.
    Waiting,
    End,
}

impl Open {
    fn new(source: ListSource) -> Result<Self, TargetError> {
        let name = source.name();
        let kind = match source {
            ListSource::Inline { dids, .. } => Kind::Inline(dids.into_iter()),
            ListSource::Stdin => Kind::lines(Box::new(BufReader::new(io::stdin()))),
            ListSource::File(path) => {
                let file = File::open(&path);
                let file =
                    file.map_err(|source| TargetError::Unreadable { name: name.clone(), source })?;
                Kind::lines(Box::new(BufReader::with_capacity(READ_BYTES, file)))
            }
            ListSource::Queue(path) => {
                let queue = InputQueue::open(&path);
                Kind::Queue(
                    queue.map_err(|source| TargetError::Queue { name: name.clone(), source })?,
                )
            }
        };
        Ok(Self { name, kind })
    }

    fn next(&mut self, waiting: &mut VecDeque<Target>) -> Result<Step, TargetError> {
        let name = &self.name;
        match &mut self.kind {
            Kind::Inline(dids) => {
                let next = dids.find(|did| !did.trim().is_empty());
                Ok(next.map_or(Step::End, |did| Step::Target(target(&did, name, None))))
            }
            Kind::Queue(queue) => {
                let row = queue.next_row();
                let row =
                    row.map_err(|source| TargetError::Queue { name: name.clone(), source })?;
                let Some(row) = row else { return Ok(Step::End) };
                let place = format!("{name} row {}", row.id);
                waiting.extend(row.dids.iter().map(|did| target(did, &place, None)));
                let wrong = row.wrong.into_iter();
                waiting.extend(wrong.map(|(text, what)| malformed(&text, name, &what)));
                Ok(Step::Waiting)
            }
            Kind::Lines { lines, format } => {
                let named = next_named(lines, format).map_err(|error| refused(name, error))?;
                Ok(named.map_or(Step::End, |named| {
                    Step::Target(target(
                        &named.text,
                        &format!("{name}:{}", named.line),
                        named.wrong,
                    ))
                }))
            }
        }
    }
}

/// Bytes read from a list at once.
const READ_BYTES: usize = 64 << 10;

/// Opens a file that can be opened twice, and names one that cannot be opened at all.
fn probe(path: &Path, name: &str) -> Result<(), TargetError> {
    let unreadable = |source| TargetError::Unreadable { name: name.to_owned(), source };
    let metadata = std::fs::metadata(path).map_err(unreadable)?;
    if metadata.is_dir() {
        return Err(unreadable(io::Error::from(io::ErrorKind::IsADirectory)));
    }
    if metadata.is_file() {
        File::open(path).map_err(unreadable)?;
    }
    Ok(())
}

fn next_named(
    lines: &mut Lines<Box<dyn BufRead + Send>>,
    format: &mut Option<Format>,
) -> Result<Option<Named>, LineError> {
    while let Some(line) = lines.next_line()? {
        let content = line.text.trim();
        if content.is_empty() || content.starts_with('#') {
            continue;
        }
        let known = match *format {
            Some(known) => known,
            None => {
                let (detected, is_header) = Format::detect(content);
                *format = Some(detected);
                if is_header {
                    continue;
                }
                detected
            }
        };
        return known.read(line, lines).map(Some);
    }
    Ok(None)
}

fn refused(name: &str, error: LineError) -> TargetError {
    match error {
        LineError::Io(source) => TargetError::Unreadable { name: name.to_owned(), source },
        LineError::Bad { number, what } => {
            TargetError::NotAList { place: format!("{name}:{number}"), what }
        }
    }
}

fn target(text: &str, place: &str, wrong: Option<String>) -> Target {
    let parsed = match wrong {
        Some(wrong) => Err(wrong),
        None => Did::parse(text.trim()).map_err(|error| error.to_string()),
    };
    match parsed {
        Ok(did) => Target::Did(did),
        Err(what) => malformed(text, place, &what),
    }
}

fn malformed(text: &str, place: &str, what: &str) -> Target {
    let mut cleaned = cleaned(text);
    if cleaned.is_empty() {
        cleaned = format!("nothing at {place}");
    }
    // Cut short, a text that is no DID can look like somebody's.
    if Did::parse(&cleaned).is_ok() {
        cleaned.pop();
        cleaned.push('\u{2026}');
    }
    Target::Malformed { cleaned, detail: format!("{place}: {what}") }
}
