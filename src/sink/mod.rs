//! Where rows end up: each sink follows the journal with a position of its own.
//!
//! ```text
//!  0001.seg  0002.seg  0003.seg  ...         sealed: what is in them is decided, each holds whole accounts
//!      │         │
//!      │         └── SQLite queues and ledger        on the applier's thread (`store::apply`)
//!      └──────────── any other sink, yours too       on a thread of its own (`store::follow`)
//!  removed once every sink has settled it: a slow sink costs space, at most `limits.journal`, then it slows the work
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

mod items;
pub mod pending;
pub mod sqlite;
pub mod sqlite_check;
mod sqlite_file;
pub mod sqlite_items;

pub use crate::store::segment::SegmentReader;
pub use items::SinkItem;

use crate::store::error::StoreError;

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
    /// Labels of the queues, the rejected one last: the only ones that items of this run can have.
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

    /// Makes everything taken durable; gives each of its parts (files, partitions; one with any name if it has none) with its
    /// position. What lies before all of them may be removed from the journal.
    ///
    /// # Errors
    /// See above.
    fn settle(&mut self) -> Result<Vec<(String, Position)>, StoreError>;

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
