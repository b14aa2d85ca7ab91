//! Listing: from lists to listed accounts, whatever their length, beside work that goes on.
//!
//! ```text
//!  read    every entry into a sorted file; an error of a list ends it, and the ledger has heard of nothing
//!  know    2,000 entries a transaction: new rows, unlisted; still nothing has changed for anybody
//!  swap    10,000 rows a transaction: listed or unlisted
//! ```
//! Between two transactions the ledger's writer takes whatever else waits. Memory stays flat; the time is that of the list's
//! length. All of this blocks: it runs on a thread of its own.

use std::path::Path;
use std::sync::Arc;

use crate::config::targets::Target;
use crate::store::error::StoreError;
use crate::store::ledger::{Ledger, LedgerGone};
use crate::store::ledger_rows::Rows;
use crate::store::sorted_list::{Entry, ListSorter, SortedList};

/// Entries in one transaction: about 20 ms of the writer.
const KNOWN_AT_ONCE: usize = 2_000;

/// Rows in one transaction of the swap: at most about 100 ms of the writer.
const SWAPPED_AT_ONCE: i64 = 10_000;

/// Entries between two reports of progress.
const TOLD_EVERY: u64 = 100_000;

/// How far a list is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// So many entries were read.
    Read(u64),
    /// So many accounts are known.
    Known(u64),
    /// So many rows of so many were looked at.
    Swapped(u64, u64),
}

/// Why a list did not get into the ledger.
#[derive(Debug, thiserror::Error)]
pub enum ListingError {
    /// The disk.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The ledger's writer.
    #[error(transparent)]
    Gone(#[from] LedgerGone),
}

/// Who writes the ledger.
pub trait Writer {
    /// Runs `work` in a transaction.
    ///
    /// # Errors
    /// [`ListingError`]; nothing is changed then.
    fn write<T: Send + 'static>(
        &mut self,
        work: impl FnMut(&mut Rows) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, ListingError>;
}

impl Writer for Rows {
    fn write<T: Send + 'static>(
        &mut self,
        work: impl FnMut(&mut Rows) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, ListingError> {
        Ok(self.transaction(work)?)
    }
}

impl Writer for Ledger {
    fn write<T: Send + 'static>(
        &mut self,
        work: impl FnMut(&mut Rows) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, ListingError> {
        Ok(self.run_blocking(work)?)
    }
}

/// A list that was read to its end.
#[derive(Debug)]
pub struct Staged {
    list: SortedList,
    entries: u64,
}

impl Staged {
    /// Reads `targets` to their end, or to the first error among them. The file, if one is needed, lies in `folder`.
    ///
    /// # Errors
    /// [`StoreError`] of the file.
    pub fn read<E>(
        folder: &Path,
        targets: impl Iterator<Item = Result<Target, E>>,
        tell: &dyn Fn(Step),
    ) -> Result<Result<Self, E>, StoreError> {
        let mut sorter = ListSorter::new(folder);
        for target in targets {
            let entry = match target {
                Ok(Target::Did(did)) => Entry::did(did.as_str()),
                Ok(Target::Malformed { cleaned, detail }) => Entry::malformed(&cleaned, &detail),
                Err(error) => return Ok(Err(error)),
            };
            sorter.push(entry)?;
            if sorter.entries().is_multiple_of(TOLD_EVERY) {
                tell(Step::Read(sorter.entries()));
            }
        }
        let entries = sorter.entries();
        Ok(Ok(Self { list: sorter.finish()?, entries }))
    }

    /// How many entries there are, repetitions included.
    #[must_use]
    pub fn entries(&self) -> u64 {
        self.entries
    }

    /// Makes the accounts known to the ledger. Nothing has changed for anybody then.
    ///
    /// # Errors
    /// [`ListingError`].
    pub fn know(
        mut self,
        writer: &mut impl Writer,
        tell: &dyn Fn(Step),
    ) -> Result<Known, ListingError> {
        writer.write(Rows::want_nothing)?;
        let mut known = 0;
        loop {
            let entries = Arc::new(self.list.take(KNOWN_AT_ONCE)?);
            if entries.is_empty() {
                // An account that only the journal remembers after a loss of power would be taken for a new one.
                writer.write(Rows::make_durable)?;
                return Ok(Known { is_empty: known == 0 });
            }
            let before = known;
            known += entries.len() as u64;
            writer.write(move |rows| rows.want(&entries))?;
            if known / TOLD_EVERY != before / TOLD_EVERY {
                tell(Step::Known(known));
            }
        }
    }
}

/// A list whose accounts the ledger knows.
#[derive(Debug)]
pub struct Known {
    is_empty: bool,
}

impl Known {
    /// Its accounts that are done under another filter than `hash`.
    ///
    /// # Errors
    /// [`ListingError`].
    pub fn under_another_filter(
        &self,
        writer: &mut impl Writer,
        hash: &str,
    ) -> Result<u64, ListingError> {
        let hash = hash.to_owned();
        writer.write(move |rows| rows.wanted_under_another_filter(&hash))
    }

    /// Makes them the listed accounts; the others rest. Gives how many there are; a list without entries changes nothing.
    ///
    /// # Errors
    /// [`ListingError`].
    pub fn swap(self, writer: &mut impl Writer, tell: &dyn Fn(Step)) -> Result<u64, ListingError> {
        if self.is_empty {
            return Ok(0);
        }
        let last = writer.write(|rows| rows.last_row())?;
        let mut after = 0;
        while after < last {
            let up_to = after.saturating_add(SWAPPED_AT_ONCE).min(last);
            writer.write(move |rows| rows.swap(after, up_to))?;
            after = up_to;
            tell(Step::Swapped(after.unsigned_abs(), last.unsigned_abs()));
        }
        Ok(writer.write(|rows| rows.counts())?.total())
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::convert::Infallible;

    use super::*;
    use crate::clock::Clock;
    use crate::domain::account::AccountId;
    use crate::domain::did::Did;
    use crate::domain::ledger::Event;
    use crate::store::ledger_lists::Counts;
    use crate::store::ledger_rows::opened;
    use crate::store::ledger_work::Batch;

    fn rows(folder: &Path) -> Rows {
        opened(folder, Clock::system())
    }

    /// A DID of its own for every number, in no order.
    fn did(number: usize) -> String {
        let digits = "234567abcdefghijklmnopqrstuvwxyz".as_bytes();
        let mixed = u128::from((number as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let letter = |at: u32| char::from(digits[((mixed >> (at * 5)) % 32) as usize]);
        format!("did:plc:{}", (0..24).map(letter).collect::<String>())
    }

    fn targets(dids: &[&str]) -> Vec<Result<Target, Infallible>> {
        dids.iter().map(|did| Ok(Target::Did(Did::parse(did).unwrap()))).collect()
    }

    fn list(rows: &mut Rows, folder: &Path, dids: &[&str]) -> u64 {
        let staged = Staged::read(folder, targets(dids).into_iter(), &|_| {}).unwrap().unwrap();
        staged.know(rows, &|_| {}).unwrap().swap(rows, &|_| {}).unwrap()
    }

    const A: &str = "did:plc:aaaaaaaaaaaaaaaaaaaaaaaa";
    const B: &str = "did:plc:bbbbbbbbbbbbbbbbbbbbbbbb";
    const C: &str = "did:plc:cccccccccccccccccccccccc";

    #[test]
    fn the_listed_accounts_are_those_of_the_last_list_and_each_keeps_its_state() {
        let folder = tempfile::tempdir().unwrap();
        let mut rows = rows(folder.path());
        assert_eq!(list(&mut rows, folder.path(), &[A, B, A]), 2);
        // The first is leased and then taken off: it finishes, and is not counted.
        let leased =
            rows.transaction(|rows| rows.run_batch(&Batch { plc: 1, ..Batch::default() })).unwrap();
        assert_eq!(leased.plc[0].did, A);
        assert_eq!(list(&mut rows, folder.path(), &[B, C]), 2);
        let queued = |queued| Counts { queued, ..Counts::default() };
        assert_eq!(rows.counts().unwrap(), queued(2));
        let event = Event::GivenBack;
        let applied = rows.transaction(|rows| rows.apply(AccountId(1), event.clone())).unwrap();
        assert!(!applied.listed);
        assert_eq!(rows.counts().unwrap(), queued(2));
        assert_eq!(list(&mut rows, folder.path(), &[A, B, C, "did:web:example.org"]), 4);
        assert_eq!(rows.counts().unwrap(), queued(4));
    }

    #[test]
    fn a_malformed_entry_is_parked_and_a_broken_list_changes_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let mut rows = rows(folder.path());
        let malformed =
            Target::Malformed { cleaned: "did:plc:BAD".into(), detail: "x:1: upper case".into() };
        let entries = vec![Ok::<_, &str>(malformed), Err("not UTF-8")];
        let whole = entries[..1].to_vec();
        let staged = Staged::read(folder.path(), whole.into_iter(), &|_| {}).unwrap().unwrap();
        assert_eq!(staged.know(&mut rows, &|_| {}).unwrap().swap(&mut rows, &|_| {}).unwrap(), 1);
        assert_eq!(rows.counts().unwrap(), Counts { parked: 1, ..Counts::default() });
        let broken = Staged::read(folder.path(), entries.into_iter(), &|_| {}).unwrap();
        assert_eq!(broken.unwrap_err(), "not UTF-8");
        assert_eq!(rows.counts().unwrap(), Counts { parked: 1, ..Counts::default() });
    }

    #[test]
    fn accounts_done_under_another_filter_are_found_before_the_swap() {
        let folder = tempfile::tempdir().unwrap();
        let mut rows = rows(folder.path());
        list(&mut rows, folder.path(), &[A, B]);
        let done = "UPDATE accounts SET state = 5, filter = 'old' WHERE id = 1";
        rows.transaction(|rows| rows.execute(done, [])).unwrap();
        let staged = Staged::read(folder.path(), targets(&[A, C]).into_iter(), &|_| {});
        let known = staged.unwrap().unwrap().know(&mut rows, &|_| {}).unwrap();
        assert_eq!(known.under_another_filter(&mut rows, "new").unwrap(), 1);
        assert_eq!(known.under_another_filter(&mut rows, "old").unwrap(), 0);
        assert_eq!(rows.done_under_another_filter("new").unwrap(), 1);
    }

    /// More than one run of the sorter: what is true here is true of ten million.
    #[test]
    fn a_long_list_goes_in_by_small_steps_in_the_order_of_its_names() {
        let folder = tempfile::tempdir().unwrap();
        let mut rows = rows(folder.path());
        let count = 200_000;
        let dids =
            (0..count).map(|n| Ok::<_, Infallible>(Target::Did(Did::parse(&did(n)).unwrap())));
        let steps = RefCell::new(Vec::new());
        let tell = |step| steps.borrow_mut().push(step);
        let staged = Staged::read(folder.path(), dids, &tell).unwrap().unwrap();
        assert_eq!(staged.entries(), count as u64);
        let listed = staged.know(&mut rows, &tell).unwrap().swap(&mut rows, &tell).unwrap();
        assert_eq!(listed, count as u64);
        let steps = steps.into_inner();
        assert_eq!(steps[..2], [Step::Read(100_000), Step::Read(200_000)]);
        let known = steps.iter().filter(|step| matches!(step, Step::Known(_)));
        assert!(known.eq([&Step::Known(100_000), &Step::Known(200_000)]));
        assert_eq!(steps.last(), Some(&Step::Swapped(count as u64, count as u64)));
        assert!(steps.iter().filter(|step| matches!(step, Step::Swapped(..))).count() == 20);
        let sorted = "SELECT count(*) FROM accounts a JOIN accounts b ON b.id = a.id + 1 WHERE a.did > b.did";
        assert_eq!(rows.one::<i64>(sorted, &[]).unwrap(), 0, "rows come in the order of the index");
    }
}
