//! How often accounts are named, by kind, whatever their number: counted in memory, spilled when that is full, merged.
//!
//! ```text
//!  add ──> one table, 41 bytes a bucket ──full──> sorted runs in an unlinked file ──...──> merged in order, sums added
//! ```
//! Who is named often stays in the table between two spills, so a spill is much shorter than what was read for it. Memory:
//! at most `memory` bytes for the table while it grows, an eighth of that for a run, 16 KiB a run while they are merged
//! (about 150,000 accounts a run of 16 MiB).

use std::collections::HashMap;
use std::path::Path;

use crate::domain::did::{Did, DidMethod};
use crate::store::error::StoreError;
use crate::store::sorted_list::{Entry, ListSorter, SortedList};

/// Kinds that are counted apart.
pub const KINDS: usize = 3;

/// How often an account is named, by kind.
pub type Counts = [u64; KINDS];

/// Bytes of a bucket while the table doubles: key and counts take 40, their mark 1, and half as much lies in the old table.
const BUCKET_BYTES_GROWING: usize = 62;

/// Bytes of an account in the table of the others beside its text.
const OTHER_BYTES_AROUND: usize = 120;

/// Part of the memory that one run of the file takes.
const RUN_SHARE: usize = 8;

/// A `did:plc`, whose 24 characters of base32 are 120 bits: 12 characters each.
type Plc = [u64; 2];

/// Accounts that are being counted.
#[derive(Debug)]
pub struct AuthorCounts {
    plc: HashMap<Plc, Counts>,
    plc_max: usize,
    others: HashMap<String, Counts>,
    others_bytes: usize,
    others_bytes_max: usize,
    sorter: ListSorter,
    spills: u64,
}

impl AuthorCounts {
    /// Nobody yet. About `memory` bytes are used at most; the file, if it is needed, lies in `folder`.
    #[must_use]
    pub fn new(folder: &Path, memory: usize) -> Self {
        let buckets = (memory / BUCKET_BYTES_GROWING).max(8);
        // The largest power of two: that is how the table grows, and it does so at seven eighths.
        let buckets = 1_usize << buckets.ilog2();
        Self {
            plc: HashMap::new(),
            plc_max: buckets / 8 * 7,
            others: HashMap::new(),
            others_bytes: 0,
            others_bytes_max: memory / RUN_SHARE,
            sorter: ListSorter::with_run(folder, memory / RUN_SHARE),
            spills: 0,
        }
    }

    /// Counts `did` once more under `kind`, below [`KINDS`].
    ///
    /// # Errors
    /// [`StoreError`] of the file.
    pub fn add(&mut self, did: &Did, kind: usize) -> Result<(), StoreError> {
        let counts = match did.method() {
            DidMethod::Plc => {
                let key = packed(did.identifier());
                if self.plc.len() >= self.plc_max && !self.plc.contains_key(&key) {
                    self.spill()?;
                }
                self.plc.entry(key).or_default()
            }
            DidMethod::Web => {
                if !self.others.contains_key(did.as_str()) {
                    let bytes = did.as_str().len() + OTHER_BYTES_AROUND;
                    let is_too_much = self.others_bytes + bytes > self.others_bytes_max;
                    if is_too_much && !self.others.is_empty() {
                        self.spill()?;
                    }
                    self.others_bytes += bytes;
                }
                self.others.entry(did.as_str().to_owned()).or_default()
            }
        };
        if let Some(count) = counts.get_mut(kind) {
            *count += 1;
        }
        Ok(())
    }

    /// How often the table was full.
    #[must_use]
    pub const fn spills(&self) -> u64 {
        self.spills
    }

    fn spill(&mut self) -> Result<(), StoreError> {
        self.spills += 1;
        for (key, counts) in self.plc.drain() {
            self.sorter.push(entry(unpacked(key), &counts))?;
        }
        for (name, counts) in self.others.drain() {
            self.sorter.push(entry(name, &counts))?;
        }
        self.others_bytes = 0;
        Ok(())
    }

    /// Everybody who was named, in the order of their texts.
    ///
    /// # Errors
    /// [`StoreError`] of the file.
    pub fn finish(mut self) -> Result<Authors, StoreError> {
        self.spill()?;
        drop((self.plc, self.others));
        let mut list = self.sorter.finish_sorted()?;
        let ahead = list.next_entry()?;
        Ok(Authors { list, ahead })
    }
}

/// The accounts in order, each once, with all that was counted.
#[derive(Debug)]
pub struct Authors {
    list: SortedList,
    ahead: Option<Entry>,
}

impl Authors {
    /// The next account; `None` at the end.
    ///
    /// # Errors
    /// [`StoreError`] of the file.
    pub fn next_author(&mut self) -> Result<Option<(String, Counts)>, StoreError> {
        let Some(first) = self.ahead.take() else { return Ok(None) };
        let mut sum = counts(&first);
        loop {
            self.ahead = self.list.next_entry()?;
            match &self.ahead {
                Some(next) if next.name == first.name => {
                    let more = counts(next);
                    sum.iter_mut().zip(more).for_each(|(sum, more)| *sum += more);
                }
                _ => return Ok(Some((first.name, sum))),
            }
        }
    }
}

fn entry(name: String, counts: &Counts) -> Entry {
    let texts: Vec<String> = counts.iter().map(u64::to_string).collect();
    Entry { name, detail: texts.join(" ") }
}

fn counts(entry: &Entry) -> Counts {
    let mut counts = Counts::default();
    let texts = entry.detail.split(' ');
    // Only `entry` writes them.
    counts.iter_mut().zip(texts).for_each(|(count, text)| *count = text.parse().unwrap_or(0));
    counts
}

const ALPHABET: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";

fn packed(identifier: &str) -> Plc {
    let value = |byte: u8| u64::from(if byte >= b'a' { byte - b'a' } else { byte - b'2' + 26 });
    let half = |bytes: &[u8]| bytes.iter().fold(0, |bits, byte| bits << 5 | value(*byte));
    let (high, low) = identifier.as_bytes().split_at(12);
    [half(high), half(low)]
}

fn unpacked(key: Plc) -> String {
    let mut text = "did:plc:".to_owned();
    for half in key {
        let characters =
            (0..12).rev().map(|at| char::from(ALPHABET[(half >> (5 * at) & 31) as usize]));
        text.extend(characters);
    }
    text
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn name(n: u32) -> String {
        if n.is_multiple_of(7) {
            return format!("did:web:host{n}.example");
        }
        let mut text = "did:plc:".to_owned();
        text.extend((0..24_u32).map(|at| {
            let mixed = u64::from(n).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(at * 5);
            char::from(ALPHABET[(mixed & 31) as usize])
        }));
        text
    }

    #[test]
    fn what_was_spilled_is_added_up_again() {
        let folder = tempfile::tempdir().unwrap();
        let mut rng = fastrand::Rng::with_seed(8);
        // Room for about a thousand of the three thousand.
        let mut counting = AuthorCounts::new(folder.path(), 80_000);
        let mut expected: BTreeMap<String, Counts> = BTreeMap::new();
        for _ in 0..60_000 {
            let (name, kind) = (name(rng.u32(..3_000)), rng.usize(..KINDS));
            counting.add(&Did::parse(&name).unwrap(), kind).unwrap();
            expected.entry(name).or_default()[kind] += 1;
        }
        assert!(counting.spills() > 10, "{}", counting.spills());
        let mut authors = counting.finish().unwrap();
        let mut found = Vec::new();
        while let Some(author) = authors.next_author().unwrap() {
            found.push(author);
        }
        assert_eq!(found, expected.into_iter().collect::<Vec<_>>());
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0, "the file is unlinked");
    }

    #[test]
    fn what_fits_comes_in_order_too_and_nobody_is_nobody() {
        let folder = Path::new("never-written");
        let mut counting = AuthorCounts::new(folder, 1 << 20);
        let plc = ["did:plc:77777777777777777777zzzz", "did:plc:z7777777777777777777zzz2"];
        for text in ["did:web:b.example", plc[0], plc[1], "did:web:c.example", "did:web:b.example"]
        {
            counting.add(&Did::parse(text).unwrap(), 1).unwrap();
        }
        assert_eq!(counting.spills(), 0);
        let mut authors = counting.finish().unwrap();
        let first = authors.next_author().unwrap().unwrap();
        assert_eq!(first, (plc[0].to_owned(), [0, 1, 0]));
        assert_eq!(authors.next_author().unwrap().unwrap(), (plc[1].to_owned(), [0, 1, 0]));
        let web = ["did:web:b.example", "did:web:c.example"].map(str::to_owned);
        assert_eq!(authors.next_author().unwrap().unwrap(), (web[0].clone(), [0, 2, 0]));
        assert_eq!(authors.next_author().unwrap().unwrap(), (web[1].clone(), [0, 1, 0]));
        assert_eq!(authors.next_author().unwrap(), None);
        let mut empty = AuthorCounts::new(folder, 1 << 20).finish().unwrap();
        assert_eq!(empty.next_author().unwrap(), None);
    }

    #[test]
    fn a_full_table_is_spilled_for_somebody_new_and_not_for_who_is_in_it() {
        let folder = tempfile::tempdir().unwrap();
        let plc: fn(u64) -> String = |n| unpacked([0, n]);
        let web: fn(u64) -> String = |n| format!("did:web:host{n:02}.example");
        let five = 5 * (web(0).len() + OTHER_BYTES_AROUND);
        let named = [
            // The table has 32 buckets, and would grow behind the 28th.
            (32 * BUCKET_BYTES_GROWING, 28, plc),
            (RUN_SHARE * five, 5, web),
            // One that is longer than there is room for is there alone.
            (0, 1, web),
        ];
        for (memory, room, did) in named {
            let mut counting = AuthorCounts::new(folder.path(), memory);
            for round in 0..3 {
                let all = || round * room..(round + 1) * room;
                for n in all().chain(all()) {
                    counting.add(&Did::parse(&did(n)).unwrap(), 0).unwrap();
                    assert_eq!(counting.spills(), round, "{} in {memory} bytes", did(n));
                }
            }
        }
    }
}
