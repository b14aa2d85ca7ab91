//! Transform: pure functions from a record's CBOR bytes to its output row.
//!
//! ```text
//!  size -> decode -> map? -> $type -> createdAt -> fields        (TRANSFORM, "Which records": the first that fails decides)
//! ```
//! One validating pass remembers where the wanted fields lie; the row is then written from there in output order. No generic
//! values, no copies of strings: what comes in as bytes goes out as bytes. [`Transformer::read`] decides, [`Plan::write`]
//! writes. `edge` is a short way for the most usual records; it gives what `fields` and `row` would. With pseudonyms every record
//! goes the whole way, and `row` replaces DIDs while it writes.

mod deleted;
mod edge;
mod fields;
mod json;
mod mapped;
pub mod pseudonym;
mod rejected;
mod row;

use std::sync::Arc;

use sha2::{Digest, Sha256};

use crate::domain::filter::{Filter, Kind, TypeEntry, Window};
use crate::domain::window::{Placed, Stamp};
use crate::limits::RECORD_BYTES_MAX;
use crate::repo::cbor::CborError;
use crate::repo::cid::{Cid, Codec};
use crate::transform::edge::Edge;
use crate::transform::fields::{Fields, Subject};
use crate::transform::json::escape;
use crate::transform::pseudonym::Pseudonyms;

pub use deleted::Deletions;

/// Label of the queue for rejected records.
pub const REJECTED_LABEL: &str = "rejected";

/// Whose records these are, at which revision; what every row says of that is written once.
#[derive(Clone, Debug)]
pub struct Origin {
    did: String,
    rev: String,
    /// `,"did":"...","uri":"at://.../`
    head: Vec<u8>,
    /// `","rev":"..."`
    tail: Vec<u8>,
    names: Option<Arc<Pseudonyms>>,
}

impl Origin {
    /// What rows call the account: its DID, or the pseudonym for it.
    #[must_use]
    pub fn did(&self) -> &str {
        &self.did
    }

    /// Records of `did` in the commit `rev`.
    #[must_use]
    pub fn new(did: &str, rev: &str) -> Self {
        Self::shown(did, rev, None)
    }

    fn shown(did: &str, rev: &str, names: Option<Arc<Pseudonyms>>) -> Self {
        let did = names.as_ref().map_or_else(|| did.to_owned(), |names| names.of(did));
        let did = did.as_str();
        let (mut head, mut tail) = (b",\"did\":\"".to_vec(), b"\",\"rev\":\"".to_vec());
        escape(did.as_bytes(), &mut head);
        head.extend_from_slice(b"\",\"uri\":\"at://");
        escape(did.as_bytes(), &mut head);
        head.push(b'/');
        escape(rev.as_bytes(), &mut tail);
        tail.push(b'"');
        Self { did: did.to_owned(), rev: rev.to_owned(), head, tail, names }
    }

    /// The pseudonym that stands for the DID; empty if the DID itself does.
    #[must_use]
    pub fn shown_as(&self) -> String {
        self.names.as_ref().map_or_else(String::new, |_| self.did.clone())
    }
}

/// A record as the walk found it.
#[derive(Clone, Copy, Debug)]
pub struct RecordSource<'a> {
    /// Its account and commit.
    pub origin: &'a Origin,
    /// `<collection>/<rkey>`.
    pub key: &'a str,
    /// CID of the record.
    pub cid: Cid,
    /// Its bytes.
    pub block: RecordBlock<'a>,
}

/// A record's bytes.
#[derive(Clone, Copy, Debug)]
pub enum RecordBlock<'a> {
    /// All of them.
    Held(&'a [u8]),
    /// Too many: this many.
    TooLarge(u64),
}

/// What becomes of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Its row goes to the queue of this index.
    Exported(usize),
    /// Not wanted, by a word of `domain::account::SKIPPED`.
    Skipped(&'static str),
    /// Its row goes to the rejected queue, by a word of `domain::account::REJECTED`.
    Rejected(&'static str),
}

/// The filter, ready to be applied; shared by all parser threads.
#[derive(Clone, Debug)]
pub struct Transformer {
    window: Window,
    queues: Vec<String>,
    /// Queue of each kind, in the order of `Kind::ALL`.
    kinds: [Option<usize>; 6],
    /// Configured NSIDs and prefixes with their queues; exact names first.
    custom: Vec<(TypeEntry, usize)>,
    hash: String,
    names: Option<Arc<Pseudonyms>>,
}

/// A decided record, ready to be written.
#[derive(Debug)]
pub struct Plan<'a> {
    source: RecordSource<'a>,
    verdict: Verdict,
    row: Row<'a>,
}

#[derive(Debug)]
#[allow(clippy::large_enum_variant, reason = "a plan lives on the stack, for one record")]
enum Row<'a> {
    None,
    Edge { stamp: Stamp, edge: Edge<'a> },
    Kind { kind: Kind, stamp: Stamp, fields: Fields<'a>, subject: Subject<'a> },
    Custom { nsid: &'a [u8], record: &'a [u8] },
    Rejected { reason: &'static str, detail: Detail, is_decodable: bool },
}

/// What exactly was wrong.
#[derive(Clone, Copy, Debug)]
enum Detail {
    Text(&'static str),
    Cbor(CborError),
    Bytes(u64),
}

impl Transformer {
    /// Prepares `filter`.
    #[must_use]
    pub fn new(filter: &Filter) -> Self {
        let mut queues: Vec<String> = filter.types.iter().map(TypeEntry::label).collect();
        queues.push(REJECTED_LABEL.to_owned());
        let queue_of = |kind| filter.types.iter().position(|entry| *entry == TypeEntry::Kind(kind));
        let is_custom = |entry: &TypeEntry| !matches!(entry, TypeEntry::Kind(_));
        let numbered =
            filter.types.iter().cloned().enumerate().map(|(queue, entry)| (entry, queue));
        let mut custom: Vec<(TypeEntry, usize)> =
            numbered.filter(|(entry, _)| is_custom(entry)).collect();
        custom.sort_by_key(|(entry, _)| match entry {
            TypeEntry::Prefix(prefix) => (1, usize::MAX - prefix.len()),
            _ => (0, 0),
        });
        let (window, kinds, hash) = (filter.window.clone(), Kind::ALL.map(queue_of), hash(filter));
        Self { window, queues, kinds, custom, hash, names: None }
    }

    /// The same, with pseudonyms in the place of DIDs.
    #[must_use]
    pub fn with_pseudonyms(mut self, names: Option<Pseudonyms>) -> Self {
        if let Some(names) = &names {
            self.hash = short_hash(&format!("{} pseudonyms {}", self.hash, names.id()));
        }
        Self { names: names.map(Arc::new), ..self }
    }

    /// The pseudonyms, if there are any.
    #[must_use]
    pub fn pseudonyms(&self) -> Option<&Pseudonyms> {
        self.names.as_deref()
    }

    /// Records of `did` in the commit `rev`.
    #[must_use]
    pub fn origin(&self, did: &str, rev: &str) -> Origin {
        Origin::shown(did, rev, self.names.clone())
    }

    /// Labels of the queues, the rejected one last; file names are made of them.
    #[must_use]
    pub fn queues(&self) -> &[String] {
        &self.queues
    }

    /// Index of the queue for rejected records.
    #[must_use]
    pub fn rejected_queue(&self) -> usize {
        self.queues.len() - 1
    }

    /// Hash of everything that decides which rows a repository becomes, 32 hexadecimal digits.
    #[must_use]
    pub fn filter_hash(&self) -> &str {
        &self.hash
    }

    /// Decides what becomes of a record.
    #[must_use]
    pub fn read<'a>(&self, source: &RecordSource<'a>) -> Plan<'a> {
        match self.decide_edge(source) {
            Some((verdict, row)) => Plan { source: *source, verdict, row },
            None => self.read_generally(source),
        }
    }

    /// The short way; `None` says nothing about the record.
    fn decide_edge<'a>(&self, source: &RecordSource<'a>) -> Option<(Verdict, Row<'a>)> {
        let RecordBlock::Held(record) = source.block else { return None };
        if source.cid.codec == Codec::Raw || source.origin.names.is_some() {
            return None;
        }
        let edge = Edge::recognise(record)?;
        let Some(queue) = self.kinds[edge.kind as usize] else {
            return Some((Verdict::Skipped("type"), Row::None));
        };
        match self.window.place(edge.created_at) {
            Placed::At(stamp) => Some((Verdict::Exported(queue), Row::Edge { stamp, edge })),
            Placed::Dropped => Some((Verdict::Skipped("outside_window"), Row::None)),
            Placed::Unreadable => None,
        }
    }

    /// The whole way, for any record.
    fn read_generally<'a>(&self, source: &RecordSource<'a>) -> Plan<'a> {
        match self.decide(source) {
            Ok((verdict, row)) => Plan { source: *source, verdict, row },
            Err((reason, detail, is_decodable)) => {
                let row = Row::Rejected { reason, detail, is_decodable };
                Plan { source: *source, verdict: Verdict::Rejected(reason), row }
            }
        }
    }

    fn decide<'a>(&self, source: &RecordSource<'a>) -> Result<(Verdict, Row<'a>), Rejection> {
        let record = match source.block {
            RecordBlock::Held(bytes) if bytes.len() <= RECORD_BYTES_MAX => bytes,
            RecordBlock::Held(bytes) => return Err(too_large(bytes.len() as u64)),
            RecordBlock::TooLarge(bytes) => return Err(too_large(bytes)),
        };
        if source.cid.codec == Codec::Raw {
            return Err(("cbor", Detail::Text("a block of the raw codec"), false));
        }
        let fields = Fields::scan(record).map_err(|error| ("cbor", Detail::Cbor(error), false))?;
        let schema = |detail| ("schema", Detail::Text(detail), true);
        let fields = fields.ok_or(schema("the record is not a map"))?;
        let skipped = (Verdict::Skipped("type"), Row::None);
        let Some(nsid) = fields.type_name() else { return Ok(skipped) };
        let Some(kind) = fields.kind(nsid) else {
            let queue = self.custom.iter().find(|(entry, _)| is_covered(entry, nsid));
            return Ok(queue.map_or(skipped, |(_, queue)| {
                (Verdict::Exported(*queue), Row::Custom { nsid, record })
            }));
        };
        let Some(queue) = self.kinds[kind as usize] else { return Ok(skipped) };
        let created = |detail| ("created_at", Detail::Text(detail), true);
        let written = fields.created_at().map_err(created)?;
        let stamp = match self.window.place(written) {
            Placed::At(stamp) => stamp,
            Placed::Dropped => {
                fields.check(kind).map_err(schema)?;
                return Ok((Verdict::Skipped("outside_window"), Row::None));
            }
            Placed::Unreadable => return Err(created("createdAt is not a readable time")),
        };
        let subject = fields.check(kind).map_err(schema)?;
        Ok((Verdict::Exported(queue), Row::Kind { kind, stamp, fields, subject }))
    }
}

/// Reason, what exactly, and whether the record can be shown decoded.
type Rejection = (&'static str, Detail, bool);

fn too_large(bytes: u64) -> Rejection {
    ("too_large", Detail::Bytes(bytes), false)
}

fn is_covered(entry: &TypeEntry, nsid: &[u8]) -> bool {
    match entry {
        TypeEntry::Kind(_) => false,
        TypeEntry::Nsid(exact) => exact.as_bytes() == nsid,
        TypeEntry::Prefix(prefix) => nsid.starts_with(prefix.as_bytes()),
    }
}

fn hash(filter: &Filter) -> String {
    let mut labels: Vec<String> = filter.types.iter().map(TypeEntry::label).collect();
    labels.sort_unstable();
    let Window { start, end, outside, offsets } = &filter.window;
    let text = format!("{labels:?} {start} {end} {outside:?} {offsets:?}");
    short_hash(&text)
}

fn short_hash(text: &str) -> String {
    Sha256::digest(text)[..16].iter().map(|byte| format!("{byte:02x}")).collect()
}

impl Plan<'_> {
    /// What becomes of the record.
    #[must_use]
    pub fn verdict(&self) -> Verdict {
        self.verdict
    }

    /// Appends the row as one JSON object; nothing for a skipped record.
    pub fn write(&self, out: &mut Vec<u8>) {
        match &self.row {
            Row::None => {}
            Row::Edge { stamp, edge } => edge.write(stamp, &self.source, out),
            Row::Kind { kind, stamp, fields, subject } => {
                row::write(*kind, stamp, fields, subject, &self.source, out);
            }
            Row::Custom { nsid, record } => row::write_custom(nsid, record, &self.source, out),
            Row::Rejected { reason, detail, is_decodable } => {
                rejected::write(reason, *detail, *is_decodable, &self.source, out);
            }
        }
    }
}
