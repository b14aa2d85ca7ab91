//! Gathered rows: one unlinked temporary file, and where in it the rows of each type and day are.
//!
//! Rows come by account and in the order of their keys, which is nearly that of time, so that rows of one type and day often
//! follow each other: only where such a run begins and ends is held, 16 bytes each.

use std::collections::BTreeMap;
use std::fs::{DirBuilder, File};
use std::io::{self, BufReader, Read};
use std::os::unix::fs::{DirBuilderExt, FileExt};
use std::path::{Path, PathBuf};

use crate::sink::StoreError;

/// Runs that are held at once: 4 MiB, and twice that while a list of them grows.
const RUNS_MAX: usize = 262_144;

/// Bytes of rows that are put together before they are written.
const CHUNK_BYTES: usize = 256 << 10;

/// Rows that share a file.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Group {
    /// Their type.
    pub label: String,
    /// Their day, in partitioned forms.
    pub day: Option<String>,
}

/// Consecutive bytes of the temporary file.
#[derive(Clone, Copy, Debug)]
struct Run {
    offset: u64,
    bytes: u64,
}

#[derive(Default)]
struct Rows {
    runs: Vec<Run>,
    count: u64,
}

/// Rows that wait for their file.
pub struct Gathered {
    folder: PathBuf,
    file: File,
    bytes: u64,
    runs: usize,
    groups: BTreeMap<Group, Rows>,
}

impl Gathered {
    /// Nothing yet, in an unlinked file in `folder`, which is made if it is not there.
    ///
    /// # Errors
    /// [`StoreError`] naming it.
    pub fn make(folder: &Path) -> Result<Self, StoreError> {
        let failed = |error| StoreError::io(folder, error);
        DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(failed)?;
        let file = tempfile::tempfile_in(folder).map_err(failed)?;
        let (folder, groups) = (folder.to_owned(), BTreeMap::new());
        Ok(Self { folder, file, bytes: 0, runs: 0, groups })
    }

    /// Takes rows of one type, each with its day: all of them, or after an error none.
    ///
    /// # Errors
    /// [`StoreError`] naming the folder.
    pub fn take(&mut self, label: &str, rows: &[(Option<String>, &str)]) -> Result<(), StoreError> {
        let (mut at, mut chunk) = (self.bytes, Vec::with_capacity(CHUNK_BYTES));
        for (_, row) in rows {
            chunk.extend_from_slice(row.as_bytes());
            chunk.push(b'\n');
            if chunk.len() >= CHUNK_BYTES {
                self.write(&chunk, &mut at)?;
                chunk.clear();
            }
        }
        self.write(&chunk, &mut at)?;
        let mut group = Group { label: label.to_owned(), day: None };
        for (day, row) in rows {
            group.day.clone_from(day);
            if !self.groups.contains_key(&group) {
                self.groups.insert(group.clone(), Rows::default());
            }
            let Some(held) = self.groups.get_mut(&group) else { continue };
            let (offset, bytes) = (self.bytes, row.len() as u64 + 1);
            held.count += 1;
            match held.runs.last_mut() {
                Some(last) if last.offset + last.bytes == offset => last.bytes += bytes,
                _ => {
                    held.runs.push(Run { offset, bytes });
                    self.runs += 1;
                }
            }
            self.bytes += bytes;
        }
        Ok(())
    }

    fn write(&self, chunk: &[u8], at: &mut u64) -> Result<(), StoreError> {
        let written = self.file.write_all_at(chunk, *at);
        written.map_err(|error| StoreError::io(&self.folder, error))?;
        *at += chunk.len() as u64;
        Ok(())
    }

    /// Whether there is nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.groups.is_empty()
    }

    /// Whether there is as much as may be, of rows or of runs.
    #[must_use]
    pub const fn is_full(&self, bytes_max: u64) -> bool {
        self.bytes >= bytes_max || self.runs >= RUNS_MAX
    }

    /// The first group, and its rows one a line.
    #[must_use]
    pub fn first(&self) -> Option<(Group, BufReader<Reader<'_>>)> {
        let (group, rows) = self.groups.first_key_value()?;
        let reader = Reader { file: &self.file, runs: &rows.runs, read: 0 };
        Some((group.clone(), BufReader::with_capacity(CHUNK_BYTES, reader)))
    }

    /// Rows of a group.
    #[must_use]
    pub fn rows(&self, group: &Group) -> u64 {
        self.groups.get(group).map_or(0, |rows| rows.count)
    }

    /// Drops a group: its file is there.
    pub fn remove(&mut self, group: &Group) {
        self.groups.remove(group);
    }

    /// Gives the disk back once every group is gone.
    ///
    /// # Errors
    /// [`StoreError`] naming the folder.
    pub fn clear(&mut self) -> Result<(), StoreError> {
        self.file.set_len(0).map_err(|error| StoreError::io(&self.folder, error))?;
        (self.bytes, self.runs) = (0, 0);
        Ok(())
    }
}

/// Reads a group's runs one after the other.
pub struct Reader<'g> {
    file: &'g File,
    runs: &'g [Run],
    /// Bytes of the first run that are read.
    read: u64,
}

impl Read for Reader<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut filled = 0;
        while let Some((run, rest)) = self.runs.split_first()
            && filled < buffer.len()
        {
            let left = usize::try_from(run.bytes - self.read).unwrap_or(usize::MAX);
            let wanted = left.min(buffer.len() - filled);
            let place = &mut buffer[filled..filled + wanted];
            self.file.read_exact_at(place, run.offset + self.read)?;
            filled += wanted;
            self.read += wanted as u64;
            if self.read == run.bytes {
                (self.runs, self.read) = (rest, 0);
            }
        }
        Ok(filled)
    }
}

#[cfg(test)]
mod tests {
    use std::io::BufRead;

    use super::*;

    fn day(text: &str) -> Option<String> {
        Some(text.to_owned())
    }

    #[test]
    fn rows_come_back_by_group_in_their_order_and_runs_are_few() {
        let folder = tempfile::tempdir().unwrap();
        let mut gathered = Gathered::make(&folder.path().join("made")).unwrap();
        let long = "x".repeat(3 * CHUNK_BYTES);
        for round in 0..3 {
            let rows = [(day("b"), long.as_str()), (day("b"), "2"), (day("a"), "3")];
            gathered.take("post", &rows).unwrap();
            gathered.take("like", &[(None, "4"), (None, "5")]).unwrap();
            assert_eq!(gathered.runs, 3 * (round + 1));
        }
        let mut seen = Vec::new();
        while let Some((group, rows)) = gathered.first() {
            let lines: Vec<String> = rows.lines().map(Result::unwrap).collect();
            assert_eq!(gathered.rows(&group), lines.len() as u64);
            let lengths: Vec<usize> = lines.iter().map(String::len).collect();
            seen.push((group.label.clone(), group.day.clone(), lengths));
            gathered.remove(&group);
        }
        let posts = [long.len(), 1].repeat(3);
        let expected = [
            ("like".to_owned(), None, vec![1; 6]),
            ("post".to_owned(), day("a"), vec![1; 3]),
            ("post".to_owned(), day("b"), posts),
        ];
        assert_eq!(seen, expected);
        assert!(gathered.is_full(gathered.bytes) && !gathered.is_full(gathered.bytes + 1));
        gathered.clear().unwrap();
        assert!(gathered.is_empty() && gathered.file.metadata().unwrap().len() == 0);
        assert_eq!(std::fs::read_dir(&gathered.folder).unwrap().count(), 0);
    }

    #[test]
    fn runs_are_bounded_whatever_the_rows_are() {
        let folder = tempfile::tempdir().unwrap();
        let mut gathered = Gathered::make(folder.path()).unwrap();
        let days = ["a", "b"].map(day);
        let rows: Vec<_> = (0..RUNS_MAX).map(|row| (days[row % 2].clone(), "{}")).collect();
        assert!(!gathered.is_full(1 << 30));
        gathered.take("post", &rows).unwrap();
        assert!(gathered.is_full(1 << 30));
    }
}
