//! Forgotten segments kept to be written over: new blocks cost a disk twice what old ones do.
//!
//! A segment becomes a spare by another name, which recovery deletes like any part. It may be written over once that name is
//! durable: a loss of power must not bring back a segment with another's bytes.

use std::collections::BTreeSet;

use crate::store::durable::Folder;
use crate::store::error::StoreError;
use crate::store::journal::STEP_BYTES;

/// As many as are settled together are all used again.
const SPARES_MAX: usize = 16;

/// A longer one, of a large account, is removed: its blocks would lie idle under groups.
const SPARE_BYTES_MAX: u64 = 2 * STEP_BYTES;

/// Spares by name, with their bytes.
#[derive(Debug, Default)]
pub(super) struct Spares {
    usable: Vec<(String, u64)>,
    /// Their names are not durable yet.
    renamed: Vec<(String, u64)>,
    /// Segments that are never kept: `store::journal_wipe`.
    pub(super) unwanted: BTreeSet<u64>,
}

impl Spares {
    /// Whether a segment of `bytes` is to be kept.
    pub(super) fn wants(&self, bytes: u64) -> bool {
        self.usable.len() + self.renamed.len() < SPARES_MAX && bytes <= SPARE_BYTES_MAX
    }

    /// Keeps the segment `from` under the name `to`.
    ///
    /// # Errors
    /// [`StoreError`].
    pub(super) fn keep(
        &mut self,
        folder: &Folder,
        from: &str,
        to: String,
        bytes: u64,
    ) -> Result<(), StoreError> {
        folder.rename_for_now(from, &to)?;
        self.renamed.push((to, bytes));
        Ok(())
    }

    /// Makes their names durable.
    ///
    /// # Errors
    /// [`StoreError`].
    pub(super) fn settle(&mut self, folder: &Folder) -> Result<(), StoreError> {
        if !self.renamed.is_empty() {
            folder.sync()?;
            self.usable.append(&mut self.renamed);
        }
        Ok(())
    }

    /// One to write over.
    pub(super) fn take(&mut self) -> Option<(String, u64)> {
        self.usable.pop()
    }

    /// All of them, those whose names are not durable yet too.
    pub(super) fn take_all(&mut self) -> Vec<(String, u64)> {
        self.usable.drain(..).chain(self.renamed.drain(..)).collect()
    }

    /// Forgets them; their files are gone.
    pub(super) fn clear(&mut self) {
        drop(self.take_all());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_many_are_kept_as_are_settled_together_and_no_long_one() {
        let folder = tempfile::tempdir().unwrap();
        let held = Folder::open(folder.path()).unwrap();
        let mut spares = Spares::default();
        assert!(spares.wants(2 * STEP_BYTES) && !spares.wants(2 * STEP_BYTES + 1));
        for number in 0..SPARES_MAX {
            assert!(spares.wants(1), "{number}");
            let (segment, name) = (format!("{number}.seg"), format!("spare-{number}.part"));
            std::fs::File::create(folder.path().join(&segment)).unwrap();
            spares.keep(&held, &segment, name, 1).unwrap();
            // A name that is not durable is not written over, and counts.
            assert!(number >= SPARES_MAX / 2 || spares.take().is_none());
            if number == SPARES_MAX / 2 {
                spares.settle(&held).unwrap();
            }
        }
        assert!(!spares.wants(1));
        let last_durable = format!("spare-{}.part", SPARES_MAX / 2);
        assert_eq!(spares.take(), Some((last_durable, 1)));
        assert!(spares.wants(1));
        assert_eq!(spares.take_all().len(), SPARES_MAX - 1);
        assert!(spares.take().is_none() && spares.take_all().is_empty());
    }
}
