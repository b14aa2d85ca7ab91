//! A segment as sinks read it: item by item, each with its queue, its account and the position behind it.

use crate::domain::account::Revision;
use crate::sink::{Position, SegmentReader};
use crate::store::error::StoreError;
use crate::store::leaves::LEAVES_LABEL;
use crate::store::segment::Placed;

/// One queue item of a segment; its payload is read when it is asked for.
#[derive(Clone, Copy, Debug)]
pub struct SinkItem<'s> {
    /// Label of its queue: `post`, `reply`, ..., `rejected`, a configured type, or of what a refresh found gone `deleted`.
    pub label: &'s str,
    /// The account, with everything that was proven of it.
    pub account: &'s Revision,
    /// Records in its payload.
    pub records: u32,
    /// Bytes of its payload.
    pub bytes: u32,
    /// Where a sink is once it has taken this item and everything before.
    pub after: Position,
    segment: &'s SegmentReader,
    placed: Placed,
}

impl SinkItem<'_> {
    /// Its payload, a JSON array of records: read into `buffer` and checked.
    ///
    /// # Errors
    /// [`StoreError::Damaged`] with its place.
    pub fn payload<'b>(&self, buffer: &'b mut Vec<u8>) -> Result<&'b str, StoreError> {
        self.segment.read(&self.placed, buffer)
    }
}

impl SegmentReader {
    /// Its items that a sink at `position` has not taken, in order.
    pub fn items_from(&self, position: Position) -> impl Iterator<Item = SinkItem<'_>> {
        let segment = self.number;
        // Leaves are no rows: they are skyfill's own, to compare the account's next revision with.
        let label = self.table.labels.iter().position(|label| label == LEAVES_LABEL);
        let has_rows = move |item: &Placed| Some(usize::from(item.entry.queue)) != label;
        let last = self.items().filter(has_rows).last().map_or(0, |item| item.index);
        let is_due = move |item: &Placed| Position { segment, item: item.index } >= position;
        self.items().filter(has_rows).filter(is_due).map(move |placed| SinkItem {
            label: self
                .table
                .labels
                .get(usize::from(placed.entry.queue))
                .map_or("", String::as_str),
            account: &self.table.accounts[placed.account].revision,
            records: placed.entry.records,
            bytes: placed.entry.bytes,
            after: match placed.index {
                index if index == last => Position::after(segment),
                index => Position { segment, item: index + 1 },
            },
            segment: self,
            placed,
        })
    }

    /// Its accounts whose items are given, also those without items.
    pub fn accounts(&self) -> impl Iterator<Item = &Revision> {
        let accounts = self.table.accounts.iter().enumerate();
        accounts.filter(|(index, _)| !self.is_passed_over(*index)).map(|(_, it)| &it.revision)
    }

    /// Where a sink is once it has taken all of this segment, also one without items.
    #[must_use]
    pub fn end(&self) -> Position {
        Position::after(self.number)
    }
}
