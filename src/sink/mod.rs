//! Where rows end up: each sink follows the journal with a position of its own.
//!
//! ```text
//!  0001.seg  0002.seg  0003.seg  ...         sealed: what is in them is decided, each holds whole accounts
//!      │         │
//!      │         └── SQLite queues and ledger        on the applier's thread (`store::apply`)
//!      └──────────── any other sink, yours too       on a thread of its own (`store::follow`)
//!  removed once every sink has settled it: a slow sink costs space, at most its `lag_max`, then it slows the work
//! ```
//!
//! # Exactly once, or at least once
//!
//! A sink is given every item of every segment, in order, from its position on. Whether an item can come twice is the sink's
//! own choice, by what it answers to [`Sink::begin`]:
//!
//! - **Exactly once**: it keeps its position beside its data, in one transaction, and answers with that. After a crash it goes
//!   on behind the last item that it has.
//! - **At least once**: it keeps no position and answers with [`Start::known`], that of its last [`Sink::settle`]. What it took
//!   after that comes again after a crash; an account's items can be told apart by (`did`, `edition`, position).
//!
//! Within one data directory an account at a revision is in the journal once; `Revision::edition` counts its exports.
//!
//! # Examples
//! A file of JSON lines that holds each item once, whatever happens: its length is its position.
//!
//! ```
//! # #[path = "../../tests/support/mod.rs"]
//! # mod support;
//! use std::fs::{File, OpenOptions};
//! use std::io::{BufRead, BufReader, Write};
//! use std::path::Path;
//!
//! use skyfill::sink::{Position, SegmentReader, Sink, Start, StoreError};
//!
//! /// Lines of `[segment, item, label, did, records]`; the first two are the position behind the item.
//! struct Lines {
//!     file: File,
//!     position: Position,
//! }
//!
//! impl Lines {
//!     fn open(path: &Path) -> std::io::Result<Self> {
//!         let file = OpenOptions::new().create(true).read(true).append(true).open(path)?;
//!         Ok(Self { file, position: Position::default() })
//!     }
//! }
//!
//! impl Sink for Lines {
//!     fn begin(&mut self, start: &Start) -> Result<Position, StoreError> {
//!         // What a crash has cut off in the middle of a line is no line: it is taken away and comes again.
//!         let (mut whole, mut position) = (0, start.known);
//!         let mut reader = BufReader::new(&self.file);
//!         let mut line = String::new();
//!         while reader.read_line(&mut line).map_err(StoreError::sink)? > 0 && line.ends_with('\n') {
//!             let (segment, item, ..): (u64, u64, String, String, serde_json::Value) =
//!                 serde_json::from_str(&line).map_err(StoreError::sink)?;
//!             position = position.max(Position { segment, item });
//!             whole += line.len() as u64;
//!             line.clear();
//!         }
//!         self.file.set_len(whole).map_err(StoreError::sink)?;
//!         self.position = position;
//!         Ok(position)
//!     }
//!
//!     fn apply(&mut self, segment: &SegmentReader) -> Result<(), StoreError> {
//!         let mut buffer = Vec::new();
//!         for item in segment.items_from(self.position) {
//!             let Position { segment, item: index } = item.after;
//!             let (label, did) = (item.label, &item.account.did);
//!             let line = format!("[{segment},{index},{label:?},{did:?},{}]\n", item.payload(&mut buffer)?);
//!             self.file.write_all(line.as_bytes()).map_err(StoreError::sink)?;
//!             self.position = item.after;
//!         }
//!         self.position = segment.end();
//!         Ok(())
//!     }
//!
//!     fn settle(&mut self) -> Result<Vec<(String, Position)>, StoreError> {
//!         self.file.sync_data().map_err(StoreError::sink)?;
//!         Ok(vec![("lines".to_owned(), self.position)])
//!     }
//! }
//!
//! # let shape = support::world::Shape { accounts: 6, hosts: 2, ..Default::default() };
//! # let network = support::Network::generate(&shape);
//! # let folder = tempfile::tempdir()?;
//! # let (dids, data_dir, plc_url) = (network.world().dids(), folder.path().join("data"), network.plc.url());
//! # let path = folder.path().join("lines.jsonl");
//! let report = skyfill::Backfill::new()
//!     .data_dir(&data_dir)
//!     .dids(dids)
//!     .plc_url(&plc_url)
//!     .allow_network("127.0.0.0/8")
//!     .set("fetch.host_requests_per_second", "1000")
//!     .sink("lines", Lines::open(&path)?)
//!     .run()?;
//! let lines = std::fs::read_to_string(&path)?;
//! # let records = |line: &str| -> u64 {
//! #     let line: serde_json::Value = serde_json::from_str(line).unwrap_or_default();
//! #     if line[2] == "rejected" { 0 } else { line[4].as_array().map_or(0, Vec::len) as u64 }
//! # };
//! let exported: u64 = lines.lines().map(records).sum();
//! assert_eq!(exported, report.this_run.records);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

#[doc(hidden)]
pub mod configured;
#[doc(hidden)]
pub mod files;
mod items;
#[cfg(feature = "kafka")]
#[doc(hidden)]
pub mod kafka;
#[doc(hidden)]
pub mod leaves;
pub(crate) mod parked;
#[doc(hidden)]
pub mod pending;
#[doc(hidden)]
pub mod sqlite;
#[doc(hidden)]
pub mod sqlite_check;
mod sqlite_file;
#[doc(hidden)]
pub mod sqlite_forget;
#[doc(hidden)]
pub mod sqlite_items;

pub use crate::domain::account::Revision;
pub use crate::store::error::StoreError;
pub use crate::store::segment::SegmentReader;
pub use items::SinkItem;
pub use parked::Parked;

/// Where a follower is: everything before this item of this segment is taken.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    serde::Serialize,
    serde::Deserialize,
)]
pub struct Position {
    /// Segment number; the segments before it are taken whole.
    pub segment: u64,
    /// Items of that segment that are taken; `u64::MAX` for all.
    pub item: u64,
}

impl Position {
    /// Everything of `segment` and before.
    #[must_use]
    pub const fn after(segment: u64) -> Self {
        Self { segment, item: u64::MAX }
    }

    /// The last segment that is taken whole.
    #[must_use]
    pub const fn passed(self) -> u64 {
        match self.item {
            u64::MAX => self.segment,
            _ => self.segment.saturating_sub(1),
        }
    }
}

/// What a sink is told before anything else.
#[derive(Clone, Debug)]
pub struct Start {
    /// Identity of the data directory, 32 hexadecimal digits: a position means nothing in another one.
    pub directory: String,
    /// Where the ledger says that the sink was when it last settled; of a new sink, the end of what was removed before it came.
    pub known: Position,
    /// Labels of the queues, the rejected one last: the only ones that items of this run can have, beside `deleted` where
    /// accounts are refreshed.
    pub labels: Vec<String>,
}

/// A follower of the journal that holds rows: queues, files, a broker, your own.
///
/// It is called from one thread, never from two at once, and may block: nobody waits for it but the journal's space.
/// [`StoreError::busy`] (or a full disk) is asked again a second later, for ever; any other error ends the run, and the next
/// run goes on at the sink's position. Whatever was not settled may be given again, so an error between two calls loses nothing.
pub trait Sink: Send {
    /// Called once, before anything is applied; gives the position to go on from.
    ///
    /// A position before what the journal still has, or beyond what it ever had, ends the run by name: rows are missing, or
    /// the data directory is older than the sink.
    ///
    /// # Errors
    /// See above.
    fn begin(&mut self, start: &Start) -> Result<Position, StoreError> {
        Ok(start.known)
    }

    /// Takes what it has not taken of `segment`: `segment.items_from(position)`, one item at a time, each at most 8 MiB or
    /// one row. Called again with the same segment after an error.
    ///
    /// # Errors
    /// See above.
    fn apply(&mut self, segment: &SegmentReader) -> Result<(), StoreError>;

    /// Whether it wants to be told of accounts that were given up.
    fn hears_of_parked(&self) -> bool {
        false
    }

    /// Is told of accounts that were given up: of each at least once, and of all of them again at each start. By then it has
    /// taken everything that was sealed before; one that is exported later comes with [`Sink::apply`], after this.
    ///
    /// # Errors
    /// See above.
    fn parked(&mut self, _accounts: &[Parked]) -> Result<(), StoreError> {
        Ok(())
    }

    /// Makes everything taken durable; gives each of its parts (files, partitions; one with any name if it has none) with its
    /// position. What lies before all of them may be removed from the journal. A sink may keep something back for a while, to
    /// make larger files of it, and gives the position before that: it is asked again twice a second.
    ///
    /// # Errors
    /// See above.
    fn settle(&mut self) -> Result<Vec<(String, Position)>, StoreError>;

    /// As [`Sink::settle`], and keeps nothing back for later: the end of a run waits for it.
    ///
    /// # Errors
    /// See above.
    fn finish(&mut self) -> Result<Vec<(String, Position)>, StoreError> {
        self.settle()
    }

    /// Gives space back that it can do without: the disk is full.
    fn shrink(&mut self) {}

    /// Ends cleanly, after a last settle: what a reader or a mover finds afterwards is whole.
    ///
    /// # Errors
    /// See above.
    fn close(&mut self) -> Result<(), StoreError> {
        Ok(())
    }
}
