//! The journal: the one place where an account becomes done.
//!
//! ```text
//!  group.part  --8 MiB or 200 ms-->  table, sync, rename  -->  NNNNNNNN.seg  --applied by everyone-->  removed
//!  large-N.part  --proven to its end-->  the same
//! ```
//! The rename is the commit. A part is worth nothing and is deleted at the next start. Space is reserved in steps of 8 MiB
//! out of `limits.journal` before it is written; sealed segments count until they are forgotten. While there is work, a few
//! forgotten segments are kept as parts to be written over, once those names are durable: a loss of power must not bring back a
//! segment with another's bytes.

use std::collections::{BTreeMap, HashSet};
use std::path::Path;

use crate::crash_point;
use crate::domain::account::Revision;
use crate::store::durable::{Appender, Folder};
use crate::store::error::StoreError;
use crate::store::items::Item;
pub use crate::store::journal_error::JournalError;
use crate::store::journal_error::{fatal, not_full};
use crate::store::segment::{
    AccountEntry, HEADER_BYTES, ItemEntry, SegmentReader, Table, header, trailer,
};
use crate::store::spares::Spares;

/// Journal space is reserved in steps of this many bytes: one group, and few steps for a large account.
pub const STEP_BYTES: u64 = 8 << 20;

/// The journal of a data directory.
#[derive(Debug)]
pub struct Journal {
    pub(super) folder: Folder,
    pub(super) data_id: String,
    labels: Vec<String>,
    limit_bytes: u64,
    /// Reserved by open parts and taken by sealed segments.
    pub(super) used_bytes: u64,
    next_number: u64,
    next_part: u64,
    /// Sealed segments that are not forgotten, with their bytes.
    pub(super) sealed: BTreeMap<u64, u64>,
    pub(super) spares: Spares,
    group: Option<Part>,
    /// A sync or rename has failed: what is durable is known to nobody but the next start.
    is_broken: bool,
}

/// A segment that is being written.
#[derive(Debug)]
struct Part {
    name: String,
    file: Appender,
    reserved_bytes: u64,
    accounts: Vec<AccountEntry>,
    /// Their DIDs and editions: an export that was begun twice (its first owner was restarted) is in a segment once.
    exports: HashSet<(String, u32)>,
}

/// The part of one large account.
#[derive(Debug)]
pub struct LargePart {
    part: Option<Part>,
    items: Vec<ItemEntry>,
}

impl Journal {
    /// Opens the journal in `folder`: deletes parts, lists segments. Numbers continue after `last_known`, the highest number
    /// that any follower has applied.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn open(
        folder: &Path,
        data_id: &str,
        labels: Vec<String>,
        limit_bytes: u64,
        last_known: u64,
    ) -> Result<Self, StoreError> {
        let folder = Folder::open(folder)?;
        let mut sealed = BTreeMap::new();
        for name in folder.names()? {
            if name.ends_with(".part") {
                folder.remove(&name)?;
            } else if let Some(number) =
                name.strip_suffix(".seg").and_then(|stem| stem.parse().ok())
            {
                let path = folder.file(&name);
                let metadata =
                    std::fs::metadata(&path).map_err(|error| StoreError::io(&path, error))?;
                sealed.insert(number, metadata.len());
            }
        }
        // Parts are gone, their accounts were never done: they are fetched again.
        crash_point!(PartsDeletedBeforeRecovery);
        let newest = sealed.keys().last().copied().unwrap_or(0).max(last_known);
        Ok(Self {
            folder,
            data_id: data_id.to_owned(),
            labels,
            limit_bytes,
            used_bytes: sealed.values().sum(),
            next_number: newest + 1,
            next_part: 0,
            sealed,
            spares: Spares::default(),
            group: None,
            is_broken: false,
        })
    }

    /// Appends a whole account to the open group; all of it or nothing. An account that the group has at this edition is
    /// passed over: followers pass over repetitions between segments, the journal within one.
    ///
    /// # Errors
    /// [`JournalError`]; the group is then as it was.
    pub fn append_account(
        &mut self,
        revision: &Revision,
        items: &[&Item],
    ) -> Result<(), JournalError> {
        let mut part = match self.group.take() {
            Some(part) => part,
            None => self.begin_part("group")?,
        };
        let export = (revision.did.clone(), revision.edition);
        if part.exports.contains(&export) {
            self.group = Some(part);
            return Ok(());
        }
        let before = part.file.bytes();
        let appended = self.append_items(&mut part, items);
        match appended {
            Ok(entries) => {
                part.exports.insert(export);
                part.accounts.push(AccountEntry { revision: revision.clone(), items: entries })
            }
            Err(error) => {
                let cut = part.file.cut(before);
                self.keep_group(part);
                cut?;
                return Err(error);
            }
        }
        // The account is in a part that no one commits yet: recovery deletes it and the account is fetched again.
        crash_point!(AccountAppendedBeforeSeal);
        self.group = Some(part);
        Ok(())
    }

    fn keep_group(&mut self, part: Part) {
        if part.accounts.is_empty() {
            self.discard(part);
        } else {
            self.group = Some(part);
        }
    }

    /// Bytes in the open group.
    #[must_use]
    pub fn group_bytes(&self) -> u64 {
        self.group.as_ref().map_or(0, |part| part.file.bytes() - HEADER_BYTES)
    }

    /// Commits the open group, if there is one.
    ///
    /// # Errors
    /// [`JournalError`]; a full disk leaves the group open.
    pub fn seal_group(&mut self) -> Result<(), JournalError> {
        let Some(part) = self.group.take() else { return Ok(()) };
        self.seal(part).map_err(|failed| {
            let (part, error) = *failed;
            self.group = Some(part);
            error
        })
    }

    /// Begins the part of a large account.
    ///
    /// # Errors
    /// [`JournalError`].
    pub fn begin_large(&mut self) -> Result<LargePart, JournalError> {
        Ok(LargePart { part: Some(self.begin_part("large")?), items: Vec::new() })
    }

    /// Appends items to a large account.
    ///
    /// # Errors
    /// [`JournalError`]; none of the items is then in the part.
    pub fn append_large(
        &mut self,
        large: &mut LargePart,
        items: &[Item],
    ) -> Result<(), JournalError> {
        let Some(part) = &mut large.part else { return Ok(()) };
        let before = part.file.bytes();
        let items: Vec<&Item> = items.iter().collect();
        match self.append_items(part, &items) {
            Ok(entries) => {
                large.items.extend(entries);
                Ok(())
            }
            Err(error) => {
                part.file.cut(before)?;
                Err(error)
            }
        }
    }

    /// Commits a large account.
    ///
    /// # Errors
    /// [`JournalError`] with the part, for another try.
    pub fn seal_large(
        &mut self,
        mut large: LargePart,
        revision: &Revision,
    ) -> Result<(), Box<(LargePart, JournalError)>> {
        let Some(mut part) = large.part.take() else { return Ok(()) };
        let items = std::mem::take(&mut large.items);
        part.accounts = vec![AccountEntry { revision: revision.clone(), items }];
        self.seal(part).map_err(|failed| {
            let (mut part, error) = *failed;
            let items = part.accounts.pop().map(|account| account.items).unwrap_or_default();
            Box::new((LargePart { part: Some(part), items }, error))
        })
    }

    /// Gives the space of a large part back; the account is not committed.
    pub fn discard_large(&mut self, mut large: LargePart) {
        if let Some(part) = large.part.take() {
            self.discard(part);
        }
    }

    /// Forgets everything open: what a restarted exporter starts with. Parts whose owner died lie in the folder.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn discard_open(&mut self) -> Result<(), StoreError> {
        self.group = None;
        self.spares.clear();
        for name in self.folder.names()? {
            if name.ends_with(".part") {
                self.folder.remove(&name)?;
            }
        }
        self.used_bytes = self.sealed.values().sum();
        Ok(())
    }

    /// The first sealed segment after `number`.
    ///
    /// # Errors
    /// [`StoreError`] if it cannot be read.
    pub fn next_after(&self, number: u64) -> Result<Option<SegmentReader>, StoreError> {
        let Some((number, _)) = self.sealed.range(number + 1..).next() else { return Ok(None) };
        SegmentReader::open(&self.folder.file(&segment_name(*number)), *number, &self.data_id)
            .map(Some)
    }

    /// Number of the newest sealed segment, or of the last that was ever applied.
    #[must_use]
    pub fn newest(&self) -> u64 {
        self.next_number - 1
    }

    /// Number of the last segment that is gone.
    #[must_use]
    pub fn forgotten(&self) -> u64 {
        self.sealed.keys().next().map_or(self.newest(), |oldest| oldest - 1)
    }

    /// Bytes reserved and sealed.
    #[must_use]
    pub fn used_bytes(&self) -> u64 {
        self.used_bytes
    }

    /// Forgets the segments up to `number`, which every follower has, durably: removes them or keeps them as spares.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn forget_through(&mut self, number: u64) -> Result<(), StoreError> {
        while let Some((oldest, bytes)) = self.sealed.first_key_value().map(|(n, b)| (*n, *b)) {
            if oldest > number {
                break;
            }
            let name = segment_name(oldest);
            if self.spares.unwanted.remove(&oldest) {
                self.folder.wipe(&name)?;
                self.used_bytes -= self.used_bytes.min(bytes);
            } else if self.spares.wants(bytes) {
                let spare = self.part_name("spare");
                let kept = self.spares.keep(&self.folder, &name, spare, bytes);
                kept.map_err(|error| self.broken(error))?;
            } else {
                self.folder.remove(&name)?;
                self.used_bytes -= self.used_bytes.min(bytes);
            }
            // Gone, but perhaps not durably: a segment that comes back is skipped by every follower's position.
            crash_point!(SegmentForgotten);
            self.sealed.remove(&oldest);
        }
        self.spares.settle(&self.folder).map_err(|error| self.broken(error))
    }

    fn broken(&mut self, error: StoreError) -> StoreError {
        self.is_broken = true;
        not_full(error)
    }

    /// Removes the spares: nothing is written at the moment, or their space is needed.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn remove_spares(&mut self) -> Result<(), StoreError> {
        while let Some((name, bytes)) = self.spares.take() {
            self.used_bytes -= self.used_bytes.min(bytes);
            self.folder.remove(&name)?;
        }
        Ok(())
    }

    fn part_name(&mut self, kind: &str) -> String {
        self.next_part += 1;
        format!("{kind}-{}.part", self.next_part)
    }

    fn begin_part(&mut self, kind: &str) -> Result<Part, JournalError> {
        let (name, mut file) = match self.spares.take() {
            Some((spare, bytes)) => {
                self.used_bytes -= self.used_bytes.min(bytes);
                let file = self.folder.write_over(&spare)?;
                (spare, file)
            }
            None => {
                let name = self.part_name(kind);
                let file = self.folder.create(&name)?;
                (name, file)
            }
        };
        if let Err(error) = file.append(&header(&self.data_id)) {
            self.folder.remove(&name)?;
            return Err(error.into());
        }
        let (accounts, exports) = (Vec::new(), HashSet::new());
        Ok(Part { name, file, reserved_bytes: 0, accounts, exports })
    }

    fn append_items(
        &mut self,
        part: &mut Part,
        items: &[&Item],
    ) -> Result<Vec<ItemEntry>, JournalError> {
        let more: u64 = items.iter().map(|item| item.payload.len() as u64).sum();
        self.reserve(part, part.file.bytes() + more)?;
        let mut entries = Vec::with_capacity(items.len());
        for item in items {
            part.file.append(&item.payload)?;
            entries.push(ItemEntry {
                queue: item.queue,
                records: item.records,
                bytes: u32::try_from(item.payload.len()).unwrap_or(u32::MAX),
                crc: crc32c::crc32c(&item.payload),
            });
        }
        Ok(entries)
    }

    fn reserve(&mut self, part: &mut Part, bytes: u64) -> Result<(), JournalError> {
        while part.reserved_bytes < bytes {
            if bytes > self.limit_bytes {
                return Err(JournalError::TooLarge);
            }
            let step = STEP_BYTES.min(self.limit_bytes);
            if self.used_bytes + step > self.limit_bytes {
                self.remove_spares()?;
            }
            if self.used_bytes + step > self.limit_bytes {
                return Err(JournalError::NoRoom);
            }
            self.used_bytes += step;
            part.reserved_bytes += step;
        }
        Ok(())
    }

    fn seal(&mut self, mut part: Part) -> Result<(), Box<(Part, JournalError)>> {
        if self.is_broken {
            let (path, why) = (self.folder.file(&part.name), "an earlier sync or rename failed");
            let error = StoreError::Io { path, source: std::io::Error::other(why) };
            return Err(Box::new((part, error.into())));
        }
        let end = part.file.bytes();
        let table =
            Table { labels: self.labels.clone(), accounts: std::mem::take(&mut part.accounts) };
        let finished =
            part.file.append(&trailer(&table, end)).and_then(|()| part.file.cut_leftover());
        part.accounts = table.accounts;
        if let Err(error) = finished {
            return match part.file.cut(end) {
                Ok(()) => Err(Box::new((part, error.into()))),
                Err(worse) => Err(Box::new((part, worse.into()))),
            };
        }
        // Everything is written, nothing is durable: recovery deletes the part.
        crash_point!(PartWrittenBeforeSync);
        if let Err(error) = part.file.sync() {
            self.is_broken = true;
            return Err(Box::new((part, fatal(error))));
        }
        // The bytes are durable under the part's name: recovery deletes the part.
        crash_point!(PartSyncedBeforeRename);
        let number = self.next_number;
        if let Err(error) = self.folder.rename(&part.name, &segment_name(number)) {
            self.is_broken = true;
            return Err(Box::new((part, fatal(error))));
        }
        // Committed. The ledger does not know yet: recovery applies the segment.
        crash_point!(SegmentSealedBeforeApply);
        self.next_number += 1;
        self.used_bytes = self.used_bytes - part.reserved_bytes + part.file.bytes();
        self.sealed.insert(number, part.file.bytes());
        Ok(())
    }

    fn discard(&mut self, part: Part) {
        self.used_bytes -= self.used_bytes.min(part.reserved_bytes);
        if let Err(error) = self.folder.remove(&part.name) {
            tracing::warn!(%error, "a discarded journal part could not be removed");
        }
    }
}

pub(super) fn segment_name(number: u64) -> String {
    format!("{number:08}.seg")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn revision(did: &str) -> Revision {
        Revision { did: did.to_owned(), ..Revision::default() }
    }

    fn item(queue: u16, text: &str) -> Item {
        Item { queue, records: 1, payload: text.as_bytes().to_vec() }
    }

    fn open(folder: &Path, limit: u64, last: u64) -> Journal {
        Journal::open(folder, &"a".repeat(32), vec!["post".to_owned()], limit, last).unwrap()
    }

    #[test]
    fn groups_and_large_accounts_are_sealed_in_order_and_read_back() {
        let folder = tempfile::tempdir().unwrap();
        let mut journal = open(folder.path(), 1 << 30, 0);
        let mut large = journal.begin_large().unwrap();
        journal.append_account(&revision("one"), &[&item(0, "[1]"), &item(0, "[22]")]).unwrap();
        journal.append_account(&revision("two"), &[]).unwrap();
        journal.append_account(&revision("one"), &[&item(0, "[1]")]).unwrap();
        journal.append_large(&mut large, &[item(0, "[333]")]).unwrap();
        assert_eq!(journal.group_bytes(), 7, "of the group's items, without the file's head");
        journal.seal_group().unwrap();
        assert_eq!(journal.group_bytes(), 0);
        journal.seal_large(large, &revision("three")).unwrap();
        let mut lost = journal.begin_large().unwrap();
        journal.append_large(&mut lost, &[item(0, "[4]")]).unwrap();
        drop((journal, lost));

        let mut journal = open(folder.path(), 1 << 30, 0);
        let first = journal.next_after(0).unwrap().unwrap();
        let items: Vec<_> = first.items().collect();
        assert_eq!((first.number, items.len(), items[1].account), (1, 2, 0));
        assert_eq!(first.read(&items[1], &mut Vec::new()).unwrap(), "[22]");
        let second = journal.next_after(1).unwrap().unwrap();
        assert_eq!(second.table.accounts[0].revision.did, "three");
        assert!(journal.next_after(2).unwrap().is_none());
        journal.forget_through(2).unwrap();
        // Shorter than what lay there before: nothing of that is left.
        journal.append_account(&revision("four"), &[&item(0, "[]")]).unwrap();
        journal.seal_group().unwrap();
        let third = journal.next_after(2).unwrap().unwrap();
        let items: Vec<_> = third.items().collect();
        assert_eq!((items.len(), third.read(&items[0], &mut Vec::new()).unwrap()), (1, "[]"));
        journal.forget_through(3).unwrap();
        journal.remove_spares().unwrap();
        assert_eq!((journal.used_bytes(), journal.newest()), (0, 3));
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
        assert_eq!(open(folder.path(), 1, 9).newest(), 9);
    }

    #[test]
    fn space_is_a_limit() {
        let folder = tempfile::tempdir().unwrap();
        let mut journal = open(folder.path(), 2 * STEP_BYTES, 0);
        let (mut first, mut second) =
            (journal.begin_large().unwrap(), journal.begin_large().unwrap());
        journal.append_large(&mut first, &[item(0, "[1]")]).unwrap();
        journal.append_large(&mut second, &[item(0, "[2]")]).unwrap();
        let refused = journal.append_account(&revision("one"), &[&item(0, "[3]")]);
        assert!(matches!(refused, Err(JournalError::NoRoom)));
        journal.discard_large(second);
        journal.append_account(&revision("one"), &[&item(0, "[3]")]).unwrap();
        let huge = "x".repeat(usize::try_from(2 * STEP_BYTES).unwrap());
        assert!(matches!(
            journal.append_large(&mut first, &[item(0, &huge)]),
            Err(JournalError::TooLarge)
        ));
        journal.seal_large(first, &revision("two")).unwrap();
        let segment = journal.next_after(0).unwrap().unwrap();
        assert_eq!(segment.items().count(), 1);
    }

    #[test]
    fn the_space_taken_is_that_of_open_parts_by_steps_and_of_segments_and_spares_by_bytes() {
        let folder = tempfile::tempdir().unwrap();
        let bytes = |name: &str| std::fs::metadata(folder.path().join(name)).unwrap().len();
        let files = || std::fs::read_dir(folder.path()).unwrap().count();
        let seal = |journal: &mut Journal, did: &str| {
            journal.append_account(&revision(did), &[&item(0, "[1]")]).unwrap();
            journal.seal_group().unwrap();
        };
        let mut journal = open(folder.path(), 1 << 30, 0);
        seal(&mut journal, "one");
        let one = bytes("00000001.seg");
        assert_eq!(journal.used_bytes(), one);
        drop(journal);

        // Room for one step beside a segment, to the byte.
        let mut journal = open(folder.path(), STEP_BYTES + one, 0);
        assert_eq!((journal.used_bytes(), journal.newest(), journal.forgotten()), (one, 1, 0));
        seal(&mut journal, "two");
        let two = bytes("00000002.seg");
        assert_eq!(journal.used_bytes(), one + two);
        journal.forget_through(1).unwrap();
        assert_eq!((journal.newest(), journal.forgotten()), (2, 1));
        journal.forget_through(2).unwrap();
        assert_eq!((journal.used_bytes(), journal.forgotten(), files()), (one + two, 2, 2));
        // One spare is written over, and there is room for the other.
        journal.append_account(&revision("three"), &[&item(0, "[1]")]).unwrap();
        let left = journal.used_bytes() - STEP_BYTES;
        assert!(files() == 2 && (left == one || left == two), "{left}");
        journal.seal_group().unwrap();
        let three = bytes("00000003.seg");
        assert_eq!(journal.used_bytes(), left + three);
        journal.remove_spares().unwrap();
        assert_eq!((journal.used_bytes(), files()), (three, 1));

        // A part of two steps; what it has reserved and not used is given back with its seal, or all of it.
        let mut journal = open(folder.path(), 1 << 30, 0);
        let long = "x".repeat(usize::try_from(STEP_BYTES).unwrap());
        for is_kept in [false, true] {
            let mut large = journal.begin_large().unwrap();
            assert_eq!(journal.used_bytes(), three);
            journal.append_large(&mut large, &[item(0, "[1]")]).unwrap();
            assert_eq!(journal.used_bytes(), three + STEP_BYTES);
            journal.append_large(&mut large, &[item(0, &long)]).unwrap();
            assert_eq!(journal.used_bytes(), three + 2 * STEP_BYTES);
            if is_kept {
                journal.seal_large(large, &revision("four")).unwrap();
            } else {
                journal.discard_large(large);
                assert_eq!((journal.used_bytes(), files()), (three, 1));
            }
        }
        assert_eq!(journal.used_bytes(), three + bytes("00000004.seg"));
        journal.append_account(&revision("five"), &[]).unwrap();
        let open_part = journal.begin_large().unwrap();
        assert_eq!(files(), 4);
        journal.discard_open().unwrap();
        drop(open_part);
        assert_eq!((journal.used_bytes(), files()), (three + bytes("00000004.seg"), 2));
    }

    #[test]
    fn spares_stay_while_there_is_room_and_give_theirs_to_an_account_that_needs_it() {
        let folder = tempfile::tempdir().unwrap();
        let mut journal = open(folder.path(), 2 * STEP_BYTES, 0);
        for did in ["one", "two"] {
            journal.append_account(&revision(did), &[&item(0, "[1]")]).unwrap();
            journal.seal_group().unwrap();
        }
        let spare = journal.used_bytes() / 2;
        journal.forget_through(2).unwrap();
        assert_eq!(journal.used_bytes(), 2 * spare);
        // One is written over; the other stays beside the first step and not beside the second.
        let mut large = journal.begin_large().unwrap();
        journal.append_large(&mut large, &[item(0, "[1]")]).unwrap();
        assert_eq!(journal.used_bytes(), spare + STEP_BYTES);
        let long = "x".repeat(usize::try_from(STEP_BYTES).unwrap());
        journal.append_large(&mut large, &[item(0, &long)]).unwrap();
        assert_eq!(journal.used_bytes(), 2 * STEP_BYTES);
        journal.seal_large(large, &revision("three")).unwrap();
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn more_segments_than_are_kept_as_spares_give_their_space_back_and_spares_are_given_up() {
        let folder = tempfile::tempdir().unwrap();
        let mut journal = open(folder.path(), 1 << 30, 0);
        for number in 0..20 {
            let did = format!("{number:02}");
            journal.append_account(&revision(&did), &[&item(0, "[1]")]).unwrap();
            journal.seal_group().unwrap();
        }
        let segment = journal.used_bytes() / 20;
        journal.forget_through(20).unwrap();
        let files = std::fs::read_dir(folder.path()).unwrap().count() as u64;
        assert!((1..20).contains(&files), "{files}");
        assert_eq!(journal.used_bytes(), files * segment);
        // An exporter that starts again finds none of them, and needs none.
        journal.discard_open().unwrap();
        assert_eq!(journal.used_bytes(), 0);
        journal.append_account(&revision("more"), &[&item(0, "[1]")]).unwrap();
        journal.seal_group().unwrap();
        assert_eq!((journal.newest(), journal.forgotten()), (21, 20));
    }

    #[test]
    fn an_account_may_be_as_long_as_the_whole_journal() {
        let folder = tempfile::tempdir().unwrap();
        let mut journal = open(folder.path(), STEP_BYTES, 0);
        let most = usize::try_from(STEP_BYTES - HEADER_BYTES).unwrap();
        let mut large = journal.begin_large().unwrap();
        journal.append_large(&mut large, &[item(0, &"x".repeat(most))]).unwrap();
        let more = journal.append_large(&mut large, &[item(0, "x")]);
        assert!(matches!(more, Err(JournalError::TooLarge)));
        assert_eq!(journal.used_bytes(), STEP_BYTES);
    }

    #[test]
    fn every_damaged_byte_is_noticed_and_the_file_stays() {
        let folder = tempfile::tempdir().unwrap();
        let mut journal = open(folder.path(), 1 << 30, 0);
        journal.append_account(&revision("one"), &[&item(0, "[1,2,3]")]).unwrap();
        journal.seal_group().unwrap();
        let path = folder.path().join("00000001.seg");
        let good = std::fs::read(&path).unwrap();
        let read = || -> Result<(), StoreError> {
            let segment = SegmentReader::open(&path, 1, &"a".repeat(32))?;
            segment.items().try_for_each(|item| segment.read(&item, &mut Vec::new()).map(drop))
        };
        read().unwrap();
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 0x10;
            std::fs::File::create(&path)
                .and_then(|mut file| std::io::Write::write_all(&mut file, &bad))
                .unwrap();
            assert!(read().is_err(), "byte {at}");
            assert!(path.exists());
        }
    }
}
