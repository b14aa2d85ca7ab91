//! A list on its way into the ledger, in the order of its texts, whatever its length: an external merge sort.
//!
//! ```text
//!  entries ──> one run in memory ──full──> sorted, written to an unlinked file ──...──> merged, repetitions dropped
//! ```
//! Entries in order touch every page of the ledger's index once, so loading takes time in proportion to the list; in the
//! order of a file every one would touch a page of its own. A list that fits one run keeps its order. Memory: one run, or one
//! read buffer a run while they are merged.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::fs::File;
use std::io::{BufWriter, Seek, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use crate::store::error::StoreError;

/// Bytes of one run in memory: about 80,000 DIDs.
const RUN_BYTES_MAX: usize = 8 << 20;

/// Bytes of an entry in memory beside its texts.
const ENTRY_BYTES_AROUND: usize = 72;

/// Bytes read at once from each run while they are merged: 10 million DIDs make about 120 runs.
const READ_BYTES: usize = 16 << 10;

/// Bytes of an entry's detail that are kept: it becomes evidence of at most 200 characters.
const DETAIL_BYTES_MAX: usize = 1_000;

/// One account of a list.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Entry {
    /// The DID, or the cleaned text in its place.
    pub name: String,
    /// What is wrong with it; empty for a DID.
    pub detail: String,
}

impl Entry {
    /// A well-formed DID.
    #[must_use]
    pub fn did(name: &str) -> Self {
        Self { name: name.to_owned(), detail: String::new() }
    }

    /// Something else, and why.
    #[must_use]
    pub fn malformed(name: &str, detail: &str) -> Self {
        let end = detail.floor_char_boundary(DETAIL_BYTES_MAX);
        let detail = if end == 0 { "malformed" } else { &detail[..end] };
        Self { name: name.to_owned(), detail: detail.to_owned() }
    }

    fn bytes(&self) -> usize {
        self.name.len() + self.detail.len() + ENTRY_BYTES_AROUND
    }

    fn write(&self, out: &mut impl Write) -> std::io::Result<()> {
        for text in [&self.name, &self.detail] {
            let length = u16::try_from(text.len()).unwrap_or(u16::MAX);
            out.write_all(&length.to_le_bytes())?;
        }
        out.write_all(self.name.as_bytes())?;
        out.write_all(self.detail.as_bytes())
    }
}

/// A list that is being read.
#[derive(Debug)]
pub struct ListSorter {
    folder: PathBuf,
    run: Vec<Entry>,
    run_bytes: usize,
    run_bytes_max: usize,
    file: Option<File>,
    /// Where each written run begins and ends.
    runs: Vec<(u64, u64)>,
    entries: u64,
}

impl ListSorter {
    /// An empty one, whose file, if it needs one, lies in `folder`.
    #[must_use]
    pub fn new(folder: &Path) -> Self {
        Self::with_run(folder, RUN_BYTES_MAX)
    }

    /// The same with runs of this size in memory.
    #[must_use]
    pub fn with_run(folder: &Path, run_bytes_max: usize) -> Self {
        Self {
            folder: folder.to_owned(),
            run: Vec::new(),
            run_bytes: 0,
            run_bytes_max,
            file: None,
            runs: Vec::new(),
            entries: 0,
        }
    }

    /// Takes one entry.
    ///
    /// # Errors
    /// [`StoreError`] of the file.
    pub fn push(&mut self, entry: Entry) -> Result<(), StoreError> {
        self.entries += 1;
        self.run_bytes += entry.bytes();
        self.run.push(entry);
        if self.run_bytes >= self.run_bytes_max { self.write_run() } else { Ok(()) }
    }

    /// How many it has taken, repetitions included.
    #[must_use]
    pub fn entries(&self) -> u64 {
        self.entries
    }

    fn write_run(&mut self) -> Result<(), StoreError> {
        let failed = |error| StoreError::io(&self.folder, error);
        let file = match self.file.take() {
            Some(file) => file,
            None => tempfile::tempfile_in(&self.folder).map_err(failed)?,
        };
        self.run.sort_unstable();
        let begin = self.runs.last().map_or(0, |(_, end)| *end);
        let mut out = BufWriter::with_capacity(READ_BYTES, &file);
        let mut entries = self.run.drain(..);
        entries.try_for_each(|entry| entry.write(&mut out)).map_err(failed)?;
        let end = out.flush().and_then(|()| out.stream_position()).map_err(failed)?;
        drop((entries, out));
        self.file = Some(file);
        self.runs.push((begin, end));
        self.run_bytes = 0;
        Ok(())
    }

    /// Everything that was taken, in order, also if it fits one run.
    ///
    /// # Errors
    /// [`StoreError`] of the file.
    pub fn finish_sorted(mut self) -> Result<SortedList, StoreError> {
        self.run.sort_unstable();
        self.finish()
    }

    /// Everything that was taken, each once.
    ///
    /// # Errors
    /// [`StoreError`] of the file.
    pub fn finish(mut self) -> Result<SortedList, StoreError> {
        if self.file.is_some() && !self.run.is_empty() {
            self.write_run()?;
        }
        let mut list = SortedList {
            folder: self.folder,
            whole: self.run.into_iter(),
            file: self.file,
            runs: self.runs.into_iter().map(Run::new).collect(),
            next: BinaryHeap::new(),
            last: None,
        };
        for index in 0..list.runs.len() {
            list.advance(index)?;
        }
        Ok(list)
    }
}

/// The list in order; one that fitted one run is in its own order and may repeat itself.
#[derive(Debug)]
pub struct SortedList {
    folder: PathBuf,
    whole: std::vec::IntoIter<Entry>,
    file: Option<File>,
    runs: Vec<Run>,
    next: BinaryHeap<Reverse<(Entry, usize)>>,
    last: Option<String>,
}

impl SortedList {
    /// At most `count` more entries; none at the end.
    ///
    /// # Errors
    /// [`StoreError`] of the file.
    pub fn take(&mut self, count: usize) -> Result<Vec<Entry>, StoreError> {
        let mut taken: Vec<Entry> = self.whole.by_ref().take(count).collect();
        while taken.len() < count
            && let Some(entry) = self.next_merged()?
        {
            if self.last.as_ref() != Some(&entry.name) {
                self.last = Some(entry.name.clone());
                taken.push(entry);
            }
        }
        Ok(taken)
    }

    /// The next entry, with every repetition; `None` at the end.
    ///
    /// # Errors
    /// [`StoreError`] of the file.
    pub fn next_entry(&mut self) -> Result<Option<Entry>, StoreError> {
        match self.whole.next() {
            Some(entry) => Ok(Some(entry)),
            None => self.next_merged(),
        }
    }

    fn next_merged(&mut self) -> Result<Option<Entry>, StoreError> {
        let Some(Reverse((entry, index))) = self.next.pop() else { return Ok(None) };
        self.advance(index)?;
        Ok(Some(entry))
    }

    fn advance(&mut self, index: usize) -> Result<(), StoreError> {
        let (Some(file), Some(run)) = (&self.file, self.runs.get_mut(index)) else { return Ok(()) };
        let entry = run.next(file).map_err(|error| StoreError::io(&self.folder, error))?;
        self.next.extend(entry.map(|entry| Reverse((entry, index))));
        Ok(())
    }
}

/// A written run that is being read.
#[derive(Debug)]
struct Run {
    at: u64,
    end: u64,
    buffer: Vec<u8>,
    used: usize,
}

impl Run {
    fn new((at, end): (u64, u64)) -> Self {
        Self { at, end, buffer: Vec::new(), used: 0 }
    }

    fn next(&mut self, file: &File) -> std::io::Result<Option<Entry>> {
        let mut lengths = [0; 2];
        for length in &mut lengths {
            let Some(bytes) = self.bytes(2, file)? else { return Ok(None) };
            *length = usize::from(u16::from_le_bytes([bytes[0], bytes[1]]));
        }
        let [name, detail] = lengths;
        let broken = || std::io::Error::from(std::io::ErrorKind::UnexpectedEof);
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let name = text(self.bytes(name, file)?.ok_or_else(broken)?);
        let detail = text(self.bytes(detail, file)?.ok_or_else(broken)?);
        Ok(Some(Entry { name, detail }))
    }

    /// The next `count` bytes; `None` at the run's end.
    fn bytes(&mut self, count: usize, file: &File) -> std::io::Result<Option<&[u8]>> {
        let missing = count.saturating_sub(self.buffer.len() - self.used);
        if missing > 0 {
            let left = usize::try_from(self.end - self.at).unwrap_or(usize::MAX);
            if left < missing {
                return Ok(None);
            }
            let more = left.min(READ_BYTES.max(missing));
            self.buffer.drain(..self.used);
            self.used = 0;
            let held = self.buffer.len();
            self.buffer.resize(held + more, 0);
            file.read_exact_at(&mut self.buffer[held..], self.at)?;
            self.at += more as u64;
        }
        let begin = self.used;
        self.used += count;
        Ok(Some(&self.buffer[begin..self.used]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drain(mut list: SortedList, at_once: usize) -> Vec<Entry> {
        let mut all = Vec::new();
        loop {
            let taken = list.take(at_once).unwrap();
            if taken.is_empty() {
                return all;
            }
            assert!(taken.len() <= at_once);
            all.extend(taken);
        }
    }

    #[test]
    fn a_small_list_keeps_its_order() {
        let folder = tempfile::tempdir().unwrap();
        let mut sorter = ListSorter::new(folder.path());
        for name in ["c", "a", "b", "a"] {
            sorter.push(Entry::did(name)).unwrap();
        }
        assert_eq!(sorter.entries(), 4);
        let names: Vec<String> =
            drain(sorter.finish().unwrap(), 3).into_iter().map(|entry| entry.name).collect();
        assert_eq!(names, ["c", "a", "b", "a"]);
    }

    #[test]
    fn a_run_is_written_when_its_texts_and_what_is_around_them_fill_it() {
        let folder = tempfile::tempdir().unwrap();
        let each = ENTRY_BYTES_AROUND + 2 + 10;
        let mut sorter = ListSorter::with_run(folder.path(), 3 * each);
        let malformed = |name| Entry::malformed(name, "no did: xx");
        let all = [
            (Entry::did("did:plc:wxyz"), 0),
            (malformed("c3"), 0),
            (Entry::did("did:plc:abcd"), 1),
            (malformed("b2"), 1),
            (malformed("d4"), 1),
            (malformed("a1"), 2),
        ];
        for (entry, runs) in &all {
            sorter.push(entry.clone()).unwrap();
            assert_eq!(sorter.runs.len(), *runs, "{entry:?}");
        }
        let mut expected = all.map(|(entry, _)| entry);
        expected.sort();
        assert_eq!(drain(sorter.finish().unwrap(), 9), expected);
    }

    #[test]
    fn entries_are_read_whole_wherever_they_lie_in_what_is_read_at_once() {
        let folder = tempfile::tempdir().unwrap();
        // Of the last entry nothing, some or all lies in the first read; a run of one entry may be longer than that.
        for before in (READ_BYTES - 30..READ_BYTES + 3).chain([40_000, 65_000]) {
            let mut sorter = ListSorter::with_run(folder.path(), 1);
            let all = [Entry::did(&"a".repeat(before)), Entry::malformed("b.last", "why")];
            for entry in &all {
                sorter.run.push(entry.clone());
            }
            sorter.write_run().unwrap();
            assert_eq!(drain(sorter.finish().unwrap(), 9), all, "{before}");
        }
    }

    #[test]
    fn a_large_list_comes_sorted_and_each_name_once() {
        let folder = tempfile::tempdir().unwrap();
        let mut sorter = ListSorter::with_run(folder.path(), 10_000);
        let mut rng = fastrand::Rng::with_seed(4);
        let mut names = std::collections::BTreeSet::new();
        for _ in 0..20_000 {
            let name = "x".repeat(rng.usize(1..9)) + &rng.u32(..5_000).to_string();
            let entry = if rng.u32(..10) == 0 && !names.contains(&name) {
                Entry::malformed(&format!("bad {name}"), &"\u{e9}".repeat(rng.usize(..2_000)))
            } else {
                Entry::did(&name)
            };
            names.insert(entry.name.clone());
            sorter.push(entry).unwrap();
        }
        assert!(sorter.runs.len() > 10);
        let entries = drain(sorter.finish().unwrap(), 7);
        assert!(entries.iter().all(|entry| entry.detail.len() <= DETAIL_BYTES_MAX));
        assert!(
            entries.iter().all(|entry| entry.name.starts_with("bad ") != entry.detail.is_empty())
        );
        let found: Vec<String> = entries.into_iter().map(|entry| entry.name).collect();
        assert_eq!(found, names.into_iter().collect::<Vec<_>>());
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0, "the file is unlinked");
    }
}
