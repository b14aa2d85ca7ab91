//! The journal without its disk: power lost after the Nth operation, and the Nth operation failing, for every N (TORTURE.md, C4 and
//! E3). Everything that the journal asks of the disk goes through `store::durable`, and is recorded there. Only in tests.

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::path::Path;

    use crate::domain::account::Revision;
    use crate::store::disk_model::{Loss, after_power_loss};
    use crate::store::door::{self, Failing};
    use crate::store::error::StoreError;
    use crate::store::items::Item;
    use crate::store::journal::{Journal, JournalError};

    const EIO: i32 = 5;
    const ENOSPC: i32 = 28;

    /// What happens in the journal, in order.
    #[derive(Clone, Copy, Debug)]
    enum Step {
        Append(&'static str),
        Seal,
        Large(&'static str),
        Discarded,
        Forget(u64),
        Reopen,
    }

    const STEPS: [Step; 15] = [
        Step::Append("one"),
        Step::Append("two"),
        Step::Seal,
        Step::Large("three"),
        Step::Append("four"),
        Step::Discarded,
        Step::Seal,
        Step::Forget(1),
        Step::Append("five"),
        Step::Reopen,
        Step::Append("five"),
        Step::Seal,
        Step::Forget(3),
        Step::Append("six"),
        Step::Seal,
    ];

    fn id() -> String {
        "a".repeat(32)
    }

    fn open(folder: &Path, last: u64) -> Result<Journal, StoreError> {
        Journal::open(folder, &id(), vec!["post".to_owned()], 1 << 30, last)
    }

    fn items(did: &str) -> [Item; 2] {
        let item = |part: u8| Item {
            queue: 0,
            records: 1,
            payload: format!("[\"{did} {part} {}\"]", "x".repeat(900)).into_bytes(),
        };
        [item(0), item(1)]
    }

    fn revision(did: &str) -> Revision {
        Revision { did: did.to_owned(), ..Revision::default() }
    }

    /// A journal at work, with what was promised of each account: how much had been asked of the disk then.
    struct Work<'f> {
        folder: &'f Path,
        journal: Journal,
        open: Vec<&'static str>,
        sealed: BTreeMap<&'static str, (u64, usize)>,
        forgotten: Vec<(u64, usize)>,
    }

    impl<'f> Work<'f> {
        fn new(folder: &'f Path) -> Self {
            let journal = open(folder, 0).unwrap();
            let (open, sealed, forgotten) = (Vec::new(), BTreeMap::new(), Vec::new());
            Self { folder, journal, open, sealed, forgotten }
        }

        fn take(&mut self, step: Step) -> Result<(), JournalError> {
            match step {
                Step::Append(did) => {
                    let [first, second] = items(did);
                    self.journal.append_account(&revision(did), &[&first, &second])?;
                    self.open.push(did);
                }
                Step::Seal => {
                    self.journal.seal_group()?;
                    for did in std::mem::take(&mut self.open) {
                        self.sealed.insert(did, (self.journal.newest(), door::count()));
                    }
                }
                Step::Large(did) => {
                    let mut large = self.journal.begin_large()?;
                    let [first, second] = items(did);
                    for item in [first, second] {
                        if let Err(error) = self.journal.append_large(&mut large, &[item]) {
                            self.journal.discard_large(large);
                            return Err(error);
                        }
                    }
                    if let Err(failed) = self.journal.seal_large(large, &revision(did)) {
                        let (large, error) = *failed;
                        if is_full(&error) {
                            self.journal.discard_large(large);
                        }
                        return Err(error);
                    }
                    self.sealed.insert(did, (self.journal.newest(), door::count()));
                }
                Step::Discarded => {
                    let mut large = self.journal.begin_large()?;
                    let appended = self.journal.append_large(&mut large, &items("nobody"));
                    self.journal.discard_large(large);
                    appended?;
                }
                Step::Forget(number) => {
                    self.forgotten.push((number, door::count()));
                    self.journal.forget_through(number)?;
                }
                Step::Reopen => {
                    self.journal = open(self.folder, self.last(usize::MAX))?;
                    self.open.clear();
                }
            }
            Ok(())
        }

        /// The last segment that was forgotten, or was about to be, when `count` operations had been done.
        fn last(&self, count: usize) -> u64 {
            let begun = self.forgotten.iter().filter(|(_, at)| *at <= count);
            begun.map(|(number, _)| *number).max().unwrap_or(0)
        }

        /// What is in `folder` is what was promised after `count` operations.
        fn check(&self, folder: &Path, count: usize, what: &str) {
            let last = self.last(count);
            let journal = open(folder, last).unwrap_or_else(|error| panic!("{what}: {error}"));
            let mut found = Vec::new();
            let mut number = 0;
            while let Some(segment) =
                journal.next_after(number).unwrap_or_else(|error| panic!("{what}: {error}"))
            {
                number = segment.number;
                for item in segment.items() {
                    let did = segment.table.accounts[item.account].revision.did.clone();
                    let mut buffer = Vec::new();
                    let payload = segment.read(&item, &mut buffer).unwrap();
                    assert!(payload.contains(&did), "{what}: {did} has somebody else's items");
                    found.push(did);
                }
            }
            for (did, (segment, sealed_at)) in &self.sealed {
                let times = found.iter().filter(|it| it == did).count();
                let is_promised = *sealed_at <= count && *segment > last;
                assert!(times == 2 || (times == 0 && !is_promised), "{what}: {did} {times} times");
            }
        }
    }

    fn is_full(error: &JournalError) -> bool {
        matches!(error, JournalError::Store(error) if error.is_full())
    }

    fn losses(count: usize) -> impl Iterator<Item = Loss> {
        let some = (0..6).map(move |seed| Loss::Some(seed << 32 | count as u64));
        [Loss::Everything, Loss::Bytes, Loss::Nothing].into_iter().chain(some)
    }

    #[test]
    fn power_lost_anywhere_keeps_what_was_sealed() {
        let folder = tempfile::tempdir().unwrap();
        door::renew(None);
        let mut work = Work::new(folder.path());
        STEPS.iter().for_each(|step| work.take(*step).unwrap());
        let ops = door::renew(None).ops;
        assert!(ops.len() > 40 && work.sealed.len() == 6, "{} operations", ops.len());
        for count in 0..=ops.len() {
            for loss in losses(count) {
                let left = tempfile::tempdir().unwrap();
                after_power_loss(&ops, count, loss).write(left.path());
                work.check(left.path(), count, &format!("after operation {count}, lost: {loss:?}"));
            }
        }
    }

    #[test]
    fn an_operation_that_fails_anywhere_ends_it_and_what_was_sealed_is_kept() {
        for persistent in [false, true] {
            for at in 1.. {
                let folder = tempfile::tempdir().unwrap();
                door::renew(None);
                let mut work = Work::new(folder.path());
                door::renew(Some(Failing { at, persistent, errno: EIO }));
                // The process ends at the first error.
                let failed = STEPS.iter().find_map(|step| work.take(*step).err());
                let seen = door::renew(None);
                if seen.failed.is_empty() {
                    assert!(failed.is_none() && at > 40, "{failed:?} without a cause at {at}");
                    break;
                }
                // Only the removal of a discarded part may fail without ending it: the next start removes it.
                assert!(failed.is_some() || seen.failed == ["remove"], "{at}: {:?}", seen.failed);
                let is_named = matches!(&failed, Some(JournalError::Store(StoreError::Io { path, .. })) if path.starts_with(folder.path()));
                assert!(failed.is_none() || is_named, "{at}: {failed:?}");
                // Whoever tries again after that commits nothing: the bytes of a failed sync may be gone although the
                // next sync succeeds.
                if ["sync", "rename", "sync folder"].contains(&seen.failed[0]) {
                    let before = std::fs::read_dir(folder.path()).unwrap().count();
                    assert!(work.take(Step::Append("late")).is_ok());
                    assert!(work.take(Step::Seal).is_err(), "{at}: sealed after {:?}", seen.failed);
                    let after = std::fs::read_dir(folder.path()).unwrap().count();
                    assert!(after <= before + 1, "{at}: only an open group may have been added");
                    door::renew(None);
                }
                // What a sync that failed was asked for is not trusted: it may be lost although the cache shows it.
                for loss in losses(at) {
                    let left = tempfile::tempdir().unwrap();
                    after_power_loss(&seen.ops, seen.ops.len(), loss).write(left.path());
                    work.check(
                        left.path(),
                        seen.ops.len(),
                        &format!("{at} failed, lost: {loss:?}"),
                    );
                }
            }
        }
    }

    /// A copy of what is sealed, which another journal may open without taking anything away.
    fn segments_of(folder: &Path) -> tempfile::TempDir {
        let copy = tempfile::tempdir().unwrap();
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_some_and(|extension| extension == "seg") {
                std::fs::copy(&path, copy.path().join(path.file_name().unwrap())).unwrap();
            }
        }
        copy
    }

    #[test]
    fn a_full_disk_anywhere_is_tried_again_and_loses_nothing() {
        for at in 1.. {
            let folder = tempfile::tempdir().unwrap();
            door::renew(None);
            let mut work = Work::new(folder.path());
            door::renew(Some(Failing { at, persistent: false, errno: ENOSPC }));
            let (mut ended, mut has_waited) = (None, false);
            for step in STEPS {
                let first = work.take(step);
                let done = match first {
                    Err(error) if is_full(&error) => {
                        has_waited = true;
                        work.take(step)
                    }
                    done => done,
                };
                if let Err(error) = done {
                    ended = Some(error);
                    break;
                }
                if matches!(step, Step::Seal) {
                    let copy = segments_of(folder.path());
                    work.check(copy.path(), usize::MAX, &format!("no space at {at}, {step:?}"));
                }
            }
            let seen = door::renew(None);
            let Some(failed) = seen.failed.first() else {
                assert!(ended.is_none() && at > 40);
                break;
            };
            // A sync or rename is never tried again, not even on a full disk.
            let is_final = ["sync", "rename", "sync folder"].contains(failed);
            assert_eq!(ended.is_some(), is_final, "{at}: {failed}: {ended:?}");
            assert!(!(is_final && has_waited), "{at}: {failed} was to be tried again");
            work.check(folder.path(), seen.ops.len(), &format!("{failed} at {at} found no space"));
        }
    }
}
