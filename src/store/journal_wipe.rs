//! Wiping: segments that hold a forgotten account are written over before they are removed, and are never kept as spares.

use std::collections::HashSet;

use crate::store::error::StoreError;
use crate::store::journal::{Journal, segment_name};
use crate::store::segment::SegmentReader;

impl Journal {
    /// Segment `number` is wiped when it is no longer needed.
    pub fn want_wiped(&mut self, number: u64) {
        self.spares.unwanted.insert(number);
    }

    /// Wants every sealed segment wiped that holds one of `dids`, and wipes the spares, which may hold anybody. Gives the last
    /// such segment, if there is one.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn wipe(&mut self, dids: &HashSet<String>) -> Result<Option<u64>, StoreError> {
        self.wipe_spares()?;
        let mut last = None;
        for number in self.sealed.keys().copied().collect::<Vec<_>>() {
            let path = self.folder.file(&segment_name(number));
            let segment = SegmentReader::open(&path, number, &self.data_id)?;
            let mut accounts = segment.table.accounts.iter();
            if accounts.any(|account| dids.contains(&account.revision.did)) {
                self.want_wiped(number);
            }
            last = if self.spares.unwanted.contains(&number) { Some(number) } else { last };
        }
        Ok(last)
    }

    fn wipe_spares(&mut self) -> Result<(), StoreError> {
        for (name, bytes) in self.spares.take_all() {
            self.used_bytes -= self.used_bytes.min(bytes);
            self.folder.wipe(&name)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::domain::account::Revision;
    use crate::store::items::Item;

    fn open(folder: &Path) -> Journal {
        Journal::open(folder, &"a".repeat(32), vec!["post".to_owned()], 1 << 30, 0).unwrap()
    }

    fn seal(journal: &mut Journal, did: &str) {
        let item = Item { queue: 0, records: 1, payload: format!("[\"{did}\"]").into() };
        let revision = Revision { did: did.to_owned(), ..Revision::default() };
        journal.append_account(&revision, &[&item]).unwrap();
        journal.seal_group().unwrap();
    }

    /// The file of segment `number` under another name, which stays when the first is gone.
    fn kept(folder: &Path, number: u64) -> std::path::PathBuf {
        let kept = folder.join(format!("kept-{number}"));
        std::fs::hard_link(folder.join(segment_name(number)), &kept).unwrap();
        kept
    }

    fn is_zeros(path: &Path) -> bool {
        let bytes = std::fs::read(path).unwrap();
        !bytes.is_empty() && bytes.iter().all(|byte| *byte == 0)
    }

    #[test]
    fn segments_of_the_forgotten_and_all_spares_are_written_over_and_give_their_space_back() {
        let (folder, elsewhere) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let mut journal = open(folder.path());
        ["one", "two", "three"].iter().for_each(|did| seal(&mut journal, did));
        let spare = kept(folder.path(), 1);
        // Out of the journal's sight.
        let move_out = |path: &Path| {
            let out = elsewhere.path().join(path.file_name().unwrap());
            std::fs::hard_link(path, &out).unwrap();
            std::fs::remove_file(path).unwrap();
            out
        };
        let (spare, wanted, other) = (
            move_out(&spare),
            move_out(&kept(folder.path(), 2)),
            move_out(&kept(folder.path(), 3)),
        );
        let length = |path: &Path| std::fs::metadata(path).unwrap().len();
        let bytes = [&spare, &wanted, &other].map(|path| length(path));
        journal.forget_through(1).unwrap();
        assert!(!is_zeros(&spare), "it is a spare, or just removed");
        assert_eq!(journal.used_bytes(), bytes.iter().sum::<u64>());
        let dids = HashSet::from(["two".to_owned()]);
        assert_eq!(journal.wipe(&dids).unwrap(), Some(2));
        assert!(is_zeros(&spare));
        assert_eq!(journal.used_bytes(), bytes[1] + bytes[2]);
        assert!(!is_zeros(&wanted), "its followers do not have it yet");
        assert_eq!(journal.wipe(&HashSet::new()).unwrap(), Some(2), "it is still to be wiped");
        journal.forget_through(2).unwrap();
        assert_eq!(journal.used_bytes(), bytes[2]);
        journal.forget_through(3).unwrap();
        assert!(is_zeros(&wanted) && !is_zeros(&other));
        journal.remove_spares().unwrap();
        assert_eq!(journal.used_bytes(), 0);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
        seal(&mut journal, "four");
        assert_eq!(journal.wipe(&dids).unwrap(), None);
    }
}
