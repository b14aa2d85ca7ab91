//! Open queue items: rows of one account become the payloads that readers see, its leaves the parts that are kept of it.
//!
//! A payload is a JSON array. Rows are written straight into the buffer of their queue's open item, `,` between them; an
//! item closes at `rows_per_item` rows, before it would exceed `limits::ITEM_BYTES_MAX`, or when its owner needs room.
//! Nothing is serialised or copied again before the kernel takes it.

use crate::limits::ITEM_BYTES_MAX;
use crate::store::leaves::PART_BYTES;

/// Room that a queue's next item begins with. Every queue of every parser thread has one, and none of it is asked for: seven
/// queues and two threads hold about 2 MiB so.
const NEXT_ITEM_BYTES: usize = 128 << 10;

/// A finished queue item.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Item {
    /// Index of the queue in the transformer's label list.
    pub queue: u16,
    /// Records in the payload.
    pub records: u32,
    /// JSON array of the records, UTF-8.
    pub payload: Vec<u8>,
}

/// The open items of one account, at most one a queue.
#[derive(Debug)]
pub struct OpenItems {
    rows_per_item: u32,
    open: Vec<Item>,
    bytes: usize,
    /// The one of leaves, which are no JSON.
    leaves: Option<usize>,
}

impl OpenItems {
    /// No rows yet; `queues` queues, at most `rows_per_item` rows an item.
    #[must_use]
    pub fn new(queues: usize, rows_per_item: u32) -> Self {
        let empty = |queue| Item { queue, records: 0, payload: Vec::new() };
        let queues = u16::try_from(queues).unwrap_or(u16::MAX);
        Self { rows_per_item, open: (0..queues).map(empty).collect(), bytes: 0, leaves: None }
    }

    /// The items of index `leaves` are no JSON arrays: [`OpenItems::push_leaf`] writes them.
    #[must_use]
    pub fn with_leaves(mut self, leaves: usize) -> Self {
        self.leaves = Some(leaves);
        self
    }

    /// Appends the leaf that `write` appends to the buffer, which begins a part if it is told so; gives back the part that
    /// became full, if one did.
    pub fn push_leaf(&mut self, write: impl FnOnce(bool, &mut Vec<u8>)) -> Option<Item> {
        let queue = self.leaves?;
        let item = self.open.get_mut(queue)?;
        let before = item.payload.len();
        write(item.records == 0, &mut item.payload);
        item.records += 1;
        self.bytes += item.payload.len() - before;
        if item.payload.len() >= PART_BYTES { self.close(queue) } else { None }
    }

    /// Bytes in all open items.
    #[must_use]
    pub const fn bytes(&self) -> usize {
        self.bytes
    }

    /// Appends the row that `write` appends to the buffer; gives back the item that became full, if one did.
    pub fn push(&mut self, queue: usize, write: impl FnOnce(&mut Vec<u8>)) -> Option<Item> {
        let item = self.open.get_mut(queue)?;
        let before = item.payload.len();
        item.payload.push(if item.records == 0 { b'[' } else { b',' });
        write(&mut item.payload);
        self.bytes += item.payload.len() - before;
        let overflows = item.records > 0 && item.payload.len() + 1 > ITEM_BYTES_MAX;
        if overflows {
            let mut row = item.payload.split_off(before);
            row[0] = b'[';
            let full = self.close(queue);
            self.open[queue].payload = row;
            self.open[queue].records = 1;
            return full;
        }
        item.records += 1;
        if item.records >= self.rows_per_item { self.close(queue) } else { None }
    }

    /// Closes the item with the most bytes; `None` if all are empty.
    pub fn take_largest(&mut self) -> Option<Item> {
        let largest = (0..self.open.len()).max_by_key(|queue| self.open[*queue].payload.len())?;
        self.close(largest)
    }

    fn close(&mut self, queue: usize) -> Option<Item> {
        let item = self.open.get_mut(queue).filter(|item| item.records > 0)?;
        // The next item of this queue may be as long, or the last: it begins with room for some hundred rows and grows.
        let next = Vec::with_capacity(item.payload.capacity().min(NEXT_ITEM_BYTES));
        let mut full = Item { queue: item.queue, records: item.records, payload: next };
        std::mem::swap(&mut full.payload, &mut item.payload);
        item.records = 0;
        self.bytes -= self.bytes.min(full.payload.len());
        if self.leaves != Some(queue) {
            full.payload.push(b']');
        }
        Some(full)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(items: &mut OpenItems, queue: usize, text: &str) -> Option<Item> {
        items.push(queue, |out| out.extend_from_slice(text.as_bytes()))
    }

    #[test]
    fn an_item_closes_at_its_row_count_and_is_a_json_array() {
        let mut items = OpenItems::new(2, 2);
        assert_eq!(row(&mut items, 0, "1"), None);
        assert_eq!(row(&mut items, 1, "9"), None);
        let full = row(&mut items, 0, "2").unwrap();
        assert_eq!(
            (full.queue, full.records, full.payload.as_slice()),
            (0, 2, b"[1,2]".as_slice())
        );
        assert_eq!(items.bytes(), 2);
        assert_eq!(items.take_largest().unwrap().payload, b"[9]");
        assert_eq!((items.take_largest(), items.bytes()), (None, 0));
    }

    #[test]
    fn a_part_of_leaves_closes_at_its_size_and_the_next_one_begins_anew() {
        let mut items = OpenItems::new(2, 2).with_leaves(1);
        let leaf = |items: &mut OpenItems, bytes| {
            items.push_leaf(|begins, out| out.extend(vec![u8::from(begins); bytes]))
        };
        assert_eq!(leaf(&mut items, 10), None);
        assert_eq!(row(&mut items, 0, "1"), None);
        assert_eq!(items.bytes(), 12);
        let full = leaf(&mut items, PART_BYTES - 10).unwrap();
        assert_eq!((full.queue, full.records, full.payload.len()), (1, 2, PART_BYTES));
        assert_eq!(full.payload[..12], [1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0]);
        assert_eq!(leaf(&mut items, 3), None);
        assert_eq!(items.take_largest().unwrap().payload, [1, 1, 1]);
        assert_eq!(items.take_largest().unwrap().payload, b"[1]");
        assert_eq!(items.bytes(), 0);
    }

    #[test]
    fn an_item_closes_before_it_would_be_too_long_and_no_row_is_lost() {
        let mut items = OpenItems::new(1, 1_000);
        let long = "7".repeat(ITEM_BYTES_MAX / 2);
        assert_eq!(row(&mut items, 0, &long), None);
        let full = row(&mut items, 0, &long).unwrap();
        assert_eq!((full.records, full.payload.len()), (1, long.len() + 2));
        let rest = items.take_largest().unwrap();
        assert_eq!((rest.records, rest.payload.len()), (1, long.len() + 2));
        // `[`, `,` and `]` are the last bytes that there is room for.
        let (first, second) = ("7".repeat(100), "7".repeat(ITEM_BYTES_MAX - 103));
        assert_eq!((row(&mut items, 0, &first), row(&mut items, 0, &second)), (None, None));
        let whole = items.take_largest().unwrap();
        assert_eq!((whole.records, whole.payload.len()), (2, ITEM_BYTES_MAX));
        // One more, and the second begins an item of its own; what is open is counted once.
        let (first, second) = ("7".repeat(100), "7".repeat(ITEM_BYTES_MAX - 102));
        assert_eq!(row(&mut items, 0, &first), None);
        assert_eq!(row(&mut items, 0, &second).unwrap().payload.len(), 102);
        assert_eq!(items.bytes(), ITEM_BYTES_MAX - 101);
        assert_eq!((items.take_largest().unwrap().records, items.bytes()), (1, 0));
        let single = "7".repeat(ITEM_BYTES_MAX + 10);
        assert_eq!(row(&mut items, 0, &single), None);
        assert_eq!(items.take_largest().unwrap().records, 1);
        assert_eq!(
            row(&mut OpenItems::new(1, 1), 0, &single).unwrap().records,
            1,
            "it is full too"
        );
    }
}
