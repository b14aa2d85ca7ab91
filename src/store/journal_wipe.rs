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
