//! Output: what a walk gives: rows on their way to the exporter, and the leaves that are kept of the revision.
//!
//! ```text
//!  leaf ─> decided ─> its fingerprint into the open part ─┬─ not compared, or new, or another than before ─> row into its open item
//!                                                         └─ as it was ─> nothing      gone meanwhile ─> row into `deleted`
//! ```
//! Memory of the open items and the open part is reserved before they grow.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::runtime::Handle;

use super::{CHUNK_RESERVED_BYTES, Ended, ROWS_SHARE, Tools};
use crate::actor::hold::Watched;
use crate::domain::account::Revision;
use crate::limits::ROW_CHUNK_BYTES;
use crate::repo::walk::{Leaf, LeafBlock};
use crate::sink::leaves::StoredParts;
use crate::stages::messages::{Export, Proven, RowChunk, Ticket};
use crate::store::budget::Reservation;
use crate::store::items::{Item, OpenItems};
use crate::store::leaves::{Comparison, DELETED_LABEL, Gone, LeafWriter, Row};
use crate::transform::{Deletions, Origin, RecordBlock, RecordSource, Transformer, Verdict};

/// A row is at most this many times as long as its record: an empty byte string, one byte, becomes `{\"$bytes\": \"\"}, `.
const ROW_BYTES_PER_RECORD_BYTE: usize = 20;

/// Names, CID and DID around a record's own fields; a DID has at most 2 KiB and stands in a row twice.
const ROW_BYTES_AROUND: usize = 8 << 10;

/// Counts of one walk.
pub(super) struct Tally {
    /// Leaves of the tree.
    pub(super) leaves: u64,
    /// Those with a row in a queue, now or with an earlier revision.
    pub(super) kept: u64,
    by_queue: Vec<u64>,
    /// Rows written, by queue.
    queued: Vec<u64>,
    pub(super) skipped: Vec<(&'static str, u64)>,
    pub(super) rejected: Vec<(&'static str, u64)>,
}

impl Tally {
    fn new(transformer: &Transformer) -> Self {
        let count = transformer.queues().len();
        let (by_queue, queued) = (vec![0; count], vec![0; count + 1]);
        let (skipped, rejected) = (Vec::new(), Vec::new());
        Self { leaves: 0, kept: 0, by_queue, queued, skipped, rejected }
    }

    /// Exported records by label; the rejected queue is counted by reason instead.
    pub(super) fn exported(&self, transformer: &Transformer) -> BTreeMap<String, u64> {
        let labels = transformer.queues().iter().take(transformer.rejected_queue()).cloned();
        labels.zip(self.by_queue.iter().copied()).filter(|(_, count)| *count > 0).collect()
    }

    /// Rows written by label of their queue.
    pub(super) fn queued(&self, transformer: &Transformer) -> BTreeMap<String, u64> {
        let labels = transformer.queues().iter().cloned().chain([DELETED_LABEL.to_owned()]);
        labels.zip(self.queued.iter().copied()).filter(|(_, count)| *count > 0).collect()
    }
}

fn count(words: &mut Vec<(&'static str, u64)>, word: &'static str) {
    match words.iter_mut().find(|(known, _)| *known == word) {
        Some((_, count)) => *count += 1,
        None => words.push((word, 1)),
    }
}

pub(super) fn words(counts: &[(&'static str, u64)]) -> BTreeMap<String, u64> {
    counts.iter().map(|(word, count)| ((*word).to_owned(), *count)).collect()
}

/// Rows on their way to the exporter.
pub(super) struct Output<'t> {
    pub(super) tools: &'t Tools,
    runtime: &'t Handle,
    pub(super) watched: &'t Watched,
    export: Arc<Export>,
    sequence: u64,
    pub(super) tally: Tally,
    /// The leaves go into the journal with the rows.
    pub(super) keeps_leaves: bool,
    writer: LeafWriter,
    compared: Option<Compared>,
    open: OpenItems,
    /// Memory of the open items, reserved before they grow.
    reservation: Option<Reservation>,
}

/// What a refresh compares with.
struct Compared {
    comparison: Comparison<StoredParts>,
    deletions: Deletions,
    previous_rev: String,
}

impl<'t> Output<'t> {
    /// Of one walk.
    pub(super) fn new(tools: &'t Tools, runtime: &'t Handle, watched: &'t Watched) -> Self {
        static NEXT_EXPORT: AtomicU64 = AtomicU64::new(1);
        let transformer = &tools.transformer;
        // As `store::leaves::journal_labels` has it: the queues, deletions, leaves.
        let queues = transformer.queues().len();
        Self {
            tools,
            runtime,
            watched,
            export: Export::new(NEXT_EXPORT.fetch_add(1, Ordering::AcqRel)),
            sequence: 0,
            tally: Tally::new(transformer),
            keeps_leaves: tools.leaves.are_kept,
            writer: LeafWriter::new(transformer.queues(), transformer.rejected_queue()),
            compared: None,
            open: OpenItems::new(queues + 2, tools.rows_per_item).with_leaves(queues + 1),
            reservation: None,
        }
    }

    /// Only what differs from `previous_rev`, whose leaves `comparison` has, becomes rows.
    pub(super) fn compare_with(
        &mut self,
        comparison: Comparison<StoredParts>,
        (did, rev, previous_rev): (&str, &str, &str),
    ) {
        let deletions = Deletions::new(did, rev, previous_rev);
        let previous_rev = previous_rev.to_owned();
        self.compared = Some(Compared { comparison, deletions, previous_rev });
        self.keeps_leaves = true;
    }

    /// The walk is proven to its end: what was exported behind its last leaf is gone. Gives the revision that it was compared
    /// with.
    pub(super) fn end_comparison(&mut self) -> Result<Option<String>, Ended> {
        let Some(mut compared) = self.compared.take() else { return Ok(None) };
        let Compared { comparison, deletions, .. } = &mut compared;
        comparison.finish(|gone| self.write_deletion(deletions, gone))?;
        Ok(Some(compared.previous_rev))
    }

    /// Decides what becomes of a leaf, and writes it.
    pub(super) fn take(&mut self, leaf: &Leaf<'_>, origin: &Origin) -> Result<(), Ended> {
        let tally = &mut self.tally;
        let transformer = &self.tools.transformer;
        let block = match leaf.block {
            LeafBlock::Held(bytes) => RecordBlock::Held(bytes),
            LeafBlock::TooLarge(bytes) => RecordBlock::TooLarge(bytes),
        };
        let source = RecordSource { origin, key: leaf.key, cid: leaf.cid, block };
        let plan = transformer.read(&source);
        let queue = match plan.verdict() {
            Verdict::Skipped(word) => {
                count(&mut tally.skipped, word);
                return Ok(());
            }
            Verdict::Exported(queue) => {
                tally.by_queue[queue] += 1;
                queue
            }
            Verdict::Rejected(word) => {
                count(&mut tally.rejected, word);
                transformer.rejected_queue()
            }
        };
        let record_bytes = if let LeafBlock::Held(bytes) = leaf.block { bytes.len() } else { 0 };
        self.tally.kept += 1;
        if !self.differs(leaf, queue)? {
            self.make_room(0)?;
            return self.keep(leaf, queue);
        }
        self.make_room(record_bytes)?;
        self.keep(leaf, queue)?;
        self.write_row(queue, |out| plan.write(out))
    }

    /// Whether its row is to be written.
    fn differs(&mut self, leaf: &Leaf<'_>, queue: usize) -> Result<bool, Ended> {
        let Some(mut compared) = self.compared.take() else { return Ok(true) };
        let transformer = &self.tools.transformer;
        let row = match queue {
            _ if queue == transformer.rejected_queue() => Row::Rejected,
            _ => Row::Exported(&transformer.queues()[queue]),
        };
        let Compared { comparison, deletions, .. } = &mut compared;
        let tell = |gone: Gone<'_>| self.write_deletion(deletions, gone);
        let differs = comparison.differs(leaf.key, row, &leaf.cid.digest, tell);
        self.compared = Some(compared);
        differs
    }

    fn write_deletion(&mut self, deletions: &Deletions, gone: Gone<'_>) -> Result<(), Ended> {
        self.make_room(0)?;
        let queue = self.tools.transformer.queues().len();
        self.write_row(queue, |out| deletions.write(gone.key, gone.label, out))
    }

    /// Its fingerprint goes into the open part.
    fn keep(&mut self, leaf: &Leaf<'_>, queue: usize) -> Result<(), Ended> {
        if !self.keeps_leaves {
            return Ok(());
        }
        let (writer, key) = (&mut self.writer, (leaf.key, queue));
        let write = |begins, out: &mut Vec<u8>| writer.write(begins, key, &leaf.cid.digest, out);
        match self.open.push_leaf(write) {
            Some(part) => self.send(vec![part], None),
            None => Ok(()),
        }
    }

    fn write_row(&mut self, queue: usize, write: impl FnOnce(&mut Vec<u8>)) -> Result<(), Ended> {
        self.tally.queued[queue] += 1;
        if let Some(item) = self.open.push(queue, write) {
            self.send(vec![item], None)?;
        }
        while self.open.bytes() >= ROW_CHUNK_BYTES {
            let Some(item) = self.open.take_largest() else { break };
            self.send(vec![item], None)?;
        }
        Ok(())
    }

    /// Reserves memory for one more row. A row that does not fit beside the open ones gets its own: first everything open is
    /// sent, so that nothing is held while its bytes are waited for.
    fn make_room(&mut self, record_bytes: usize) -> Result<(), Ended> {
        let longest = (record_bytes * ROW_BYTES_PER_RECORD_BYTE + ROW_BYTES_AROUND) as u64;
        if self.open.bytes() as u64 + longest > CHUNK_RESERVED_BYTES {
            while let Some(item) = self.open.take_largest() {
                self.send(vec![item], None)?;
            }
        }
        if longest <= CHUNK_RESERVED_BYTES {
            return self.reserve(CHUNK_RESERVED_BYTES);
        }
        self.reservation = None;
        // A row longer than its share is written all the same: it is one a thread, and rare.
        self.reserve(longest.min(self.tools.rows.limit() / ROWS_SHARE))
    }

    fn reserve(&mut self, bytes: u64) -> Result<(), Ended> {
        let held = self.reservation.as_ref().map_or(0, Reservation::bytes);
        if held >= bytes {
            return Ok(());
        }
        let (rows, cancel) = (&self.tools.rows, &self.watched.is_cancelled);
        let take = || rows.blocking_take(bytes - held, self.runtime, cancel);
        let more = self.watched.pulse.rest(take).ok_or(Ended::Stopped)?;
        match &mut self.reservation {
            Some(held) => held.merge(more),
            None => self.reservation = Some(more),
        }
        Ok(())
    }

    fn send(&mut self, items: Vec<Item>, end: Option<Proven>) -> Result<(), Ended> {
        if let Some(refusal) = self.export.refused() {
            return Err(Ended::Refused(refusal));
        }
        let bytes: usize = items.iter().map(|item| item.payload.capacity()).sum();
        let reservation = self.reservation.as_mut().and_then(|held| held.split(bytes as u64));
        let export = Arc::clone(&self.export);
        let chunk = RowChunk { export, sequence: self.sequence, items, reservation, end };
        self.sequence += 1;
        let send = || self.runtime.block_on(self.tools.exporter.send(chunk)).is_ok();
        if self.watched.pulse.rest(send) { Ok(()) } else { Err(Ended::Stopped) }
    }

    /// Sends what is left with the proof.
    pub(super) fn finish(mut self, mut ticket: Ticket, revision: Revision) {
        if let Some(refusal) = self.export.refused() {
            return ticket.finish(Ended::Refused(refusal).news(&self.tools.health));
        }
        let mut items = Vec::new();
        while let Some(item) = self.open.take_largest() {
            items.push(item);
        }
        ticket.leave();
        // If the mailbox is closed, the ticket is dropped with the chunk and tells.
        let _stopped = self.send(items, Some(Proven { ticket, revision }));
    }
}
