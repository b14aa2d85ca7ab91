//! Segments: proven accounts on disk, the unit of commit.
//!
//! ```text
//!  header   8 bytes "SKYFSEG1", 32 bytes data id (hexadecimal)
//!  payloads the queue items' bytes, one after another
//!  table    JSON: queue labels, and for each account its revision and its items (queue, records, bytes, crc32c)
//!  footer   table offset (8 bytes, little endian), table length (4), crc32c of the table (4), 8 bytes "SKYFEND1"
//! ```
//! The table's checksum covers the items' checksums, so every byte is covered. A reader believes nothing before it has
//! checked it, and names file and place of what is wrong.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::domain::account::Revision;
use crate::store::error::StoreError;

const HEADER_MAGIC: &[u8; 8] = b"SKYFSEG1";
const FOOTER_MAGIC: &[u8; 8] = b"SKYFEND1";
/// Bytes before the first payload.
pub const HEADER_BYTES: u64 = 40;
const FOOTER_BYTES: u64 = 24;
const HEADER_LENGTH: usize = 40;
const FOOTER_LENGTH: usize = 24;
/// Bytes of a table; a group of tiny accounts has some hundred bytes for each.
const TABLE_BYTES_MAX: u32 = 256 << 20;

/// What a segment holds.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Table {
    /// Queue labels that items refer to by index.
    pub labels: Vec<String>,
    /// Accounts in order.
    pub accounts: Vec<AccountEntry>,
}

/// One account of a segment.
#[derive(Debug, Serialize, Deserialize)]
pub struct AccountEntry {
    /// What was proven.
    pub revision: Revision,
    /// Its items in order.
    pub items: Vec<ItemEntry>,
}

/// One queue item of an account.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ItemEntry {
    /// Index into the labels.
    pub queue: u16,
    /// Records in it.
    pub records: u32,
    /// Bytes of its payload.
    pub bytes: u32,
    /// CRC-32C of its payload.
    pub crc: u32,
}

/// Whose rows lie in the sealed segments of `folder`, which others may be writing and removing: names with segment numbers.
///
/// # Errors
/// [`StoreError`].
pub fn sealed_accounts(folder: &Path) -> Result<HashMap<String, Vec<u64>>, StoreError> {
    let failed = |error| StoreError::io(folder, error);
    let mut held: HashMap<String, Vec<u64>> = HashMap::new();
    for entry in std::fs::read_dir(folder).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        let stem = path.file_name().and_then(|name| name.to_str()?.strip_suffix(".seg"));
        let Some(number) = stem.and_then(|stem| stem.parse().ok()) else { continue };
        // One that is gone meanwhile, or is written over, is no longer a segment.
        let Ok(file) = File::open(&path) else { continue };
        let mut head = [0; HEADER_LENGTH];
        let Ok(()) = file.read_exact_at(&mut head, 0) else { continue };
        let data_id = String::from_utf8_lossy(&head[8..]).into_owned();
        let Ok(segment) = SegmentReader::open(&path, number, &data_id) else { continue };
        for account in segment.table.accounts {
            held.entry(account.revision.did).or_default().push(number);
        }
    }
    held.values_mut().for_each(|segments| segments.sort_unstable());
    Ok(held)
}

/// First bytes of a segment of the data directory `data_id` (32 hexadecimal digits).
#[must_use]
pub fn header(data_id: &str) -> Vec<u8> {
    [HEADER_MAGIC.as_slice(), data_id.as_bytes()].concat()
}

/// Last bytes of a segment whose payloads end at `offset`.
#[must_use]
pub fn trailer(table: &Table, offset: u64) -> Vec<u8> {
    // A table of plain strings and numbers always serialises.
    let mut bytes = serde_json::to_vec(table).unwrap_or_default();
    let (length, crc) = (u32::try_from(bytes.len()).unwrap_or(u32::MAX), crc32c::crc32c(&bytes));
    bytes.extend(offset.to_le_bytes());
    bytes.extend(length.to_le_bytes());
    bytes.extend(crc.to_le_bytes());
    bytes.extend(FOOTER_MAGIC);
    bytes
}

/// Where the table lies, its length and its checksum, as the footer of a file of `length` bytes says; `None` if it is none.
fn table_by(foot: &[u8; FOOTER_LENGTH], length: u64) -> Option<(u64, u32, u32)> {
    let word = |at: usize| u32::from_le_bytes(std::array::from_fn(|i| foot[at + i]));
    let offset = u64::from_le_bytes(std::array::from_fn(|i| foot[i]));
    let (bytes, crc) = (word(8), word(12));
    let fits = offset.checked_add(u64::from(bytes))?.checked_add(FOOTER_BYTES)? == length;
    let is_footer = &foot[16..] == FOOTER_MAGIC && fits && bytes <= TABLE_BYTES_MAX;
    is_footer.then_some((offset, bytes, crc))
}

/// An open, checked segment.
#[derive(Debug)]
pub struct SegmentReader {
    /// Its number.
    pub number: u64,
    /// What it holds.
    pub table: Table,
    path: PathBuf,
    file: File,
    /// Indexes of accounts whose items nobody gets.
    passed_over: HashSet<usize>,
}

/// An item's place in a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Placed {
    /// Number of the item in the segment, from 0.
    pub index: u64,
    /// Index of its account.
    pub account: usize,
    /// What the table says.
    pub entry: ItemEntry,
    offset: u64,
}

impl SegmentReader {
    /// Opens a segment and checks header, table and lengths.
    ///
    /// # Errors
    /// [`StoreError::Damaged`], or [`StoreError::Config`] for another directory's segment.
    pub fn open(path: &Path, number: u64, data_id: &str) -> Result<Self, StoreError> {
        let failed = |error| StoreError::io(path, error);
        let damaged =
            |what: &str| StoreError::Damaged { path: path.to_owned(), what: what.to_owned() };
        let file = File::open(path).map_err(failed)?;
        let length = file.metadata().map_err(failed)?.len();
        if length < HEADER_BYTES + FOOTER_BYTES {
            return Err(damaged("too short"));
        }
        let mut head = [0; HEADER_LENGTH];
        file.read_exact_at(&mut head, 0).map_err(failed)?;
        if &head[..8] != HEADER_MAGIC {
            return Err(damaged("no segment header"));
        }
        if &head[8..] != data_id.as_bytes() {
            let path = path.display();
            return Err(StoreError::Config(format!(
                "{path} belongs to another data directory: remove it"
            )));
        }
        let mut foot = [0; FOOTER_LENGTH];
        file.read_exact_at(&mut foot, length - FOOTER_BYTES).map_err(failed)?;
        let Some((offset, table_bytes, crc)) = table_by(&foot, length) else {
            return Err(damaged("its footer is wrong"));
        };
        let mut table = vec![0; table_bytes as usize];
        file.read_exact_at(&mut table, offset).map_err(failed)?;
        if crc32c::crc32c(&table) != crc {
            return Err(damaged("its table has a wrong checksum"));
        }
        let table: Table =
            serde_json::from_slice(&table).map_err(|_| damaged("its table is unreadable"))?;
        let passed_over = HashSet::new();
        let reader = Self { number, table, path: path.to_owned(), file, passed_over };
        let end = reader
            .items()
            .last()
            .map_or(HEADER_BYTES, |last| last.offset + u64::from(last.entry.bytes));
        if end != offset {
            return Err(damaged("its table does not fit its items"));
        }
        Ok(reader)
    }

    /// From now on the items of these accounts, by index, are left out; those of the others keep their numbers.
    pub fn pass_over(&mut self, accounts: &[usize]) {
        self.passed_over.extend(accounts);
    }

    /// Indexes of the accounts whose items are left out.
    #[must_use]
    pub fn passed_over(&self) -> Vec<usize> {
        self.passed_over.iter().copied().collect()
    }

    /// Whether an account's items are left out.
    #[must_use]
    pub fn is_passed_over(&self, account: usize) -> bool {
        self.passed_over.contains(&account)
    }

    /// Its items in order, but those of accounts that are passed over.
    pub fn items(&self) -> impl Iterator<Item = Placed> {
        let mut offset = HEADER_BYTES;
        let entries = self.table.accounts.iter().enumerate();
        let entries =
            entries.flat_map(|(account, it)| it.items.iter().map(move |entry| (account, *entry)));
        let placed = (0..).zip(entries).map(move |(index, (account, entry))| {
            let placed = Placed { index, account, entry, offset };
            offset += u64::from(entry.bytes);
            placed
        });
        placed.filter(|item| !self.is_passed_over(item.account))
    }

    /// Reads an item's payload, which is text, into `buffer` and checks it.
    ///
    /// # Errors
    /// [`StoreError::Damaged`] with its place.
    pub fn read<'b>(&self, item: &Placed, buffer: &'b mut Vec<u8>) -> Result<&'b str, StoreError> {
        self.read_bytes(item, buffer)?;
        simdutf8::basic::from_utf8(buffer).map_err(|_| self.damaged(item))
    }

    fn damaged(&self, item: &Placed) -> StoreError {
        let what = format!("item {} at byte {} has a wrong checksum", item.index, item.offset);
        StoreError::Damaged { path: self.path.clone(), what }
    }

    /// Reads an item's payload, whatever it is, into `buffer` and checks it.
    ///
    /// # Errors
    /// [`StoreError::Damaged`] with its place.
    pub fn read_bytes(&self, item: &Placed, buffer: &mut Vec<u8>) -> Result<(), StoreError> {
        buffer.resize(item.entry.bytes as usize, 0);
        let read = self.file.read_exact_at(buffer, item.offset);
        read.map_err(|error| StoreError::io(&self.path, error))?;
        if crc32c::crc32c(buffer) != item.entry.crc {
            return Err(self.damaged(item));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::items::Item;
    use crate::store::journal::Journal;

    fn revision(did: &str) -> Revision {
        Revision { did: did.to_owned(), ..Revision::default() }
    }

    fn item(text: &str) -> Item {
        Item { queue: 0, records: 1, payload: text.as_bytes().to_vec() }
    }

    /// Three segments: of `a` and `b`, of `b`, and of `a` again.
    fn sealed(folder: &Path, data_id: &str) -> Journal {
        let labels = vec!["post".to_owned()];
        let mut journal = Journal::open(folder, data_id, labels, 1 << 30, 0).unwrap();
        for group in [&["a", "b"][..], &["b"], &["a"]] {
            for did in group {
                let items = [item("[1]"), item("[22]")];
                journal.append_account(&revision(did), &[&items[0], &items[1]]).unwrap();
            }
            journal.seal_group().unwrap();
        }
        journal
    }

    #[test]
    fn whose_rows_lie_in_sealed_segments_is_found_and_what_is_no_segment_is_passed_over() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path();
        let _journal = sealed(path, &"a".repeat(32));
        let whole = std::fs::read(path.join("00000002.seg")).unwrap();
        for (name, bytes) in [
            ("00000004.seg", &whole[..20]),
            ("00000005.part", &whole),
            ("x.seg", &whole),
            ("6", &whole),
        ] {
            crate::store::durable::Folder::open(path)
                .and_then(|folder| folder.create(name)?.append(bytes))
                .unwrap();
        }
        let held = sealed_accounts(path).unwrap();
        let expected = [("a".to_owned(), vec![1, 3]), ("b".to_owned(), vec![1, 2])];
        assert_eq!(held, HashMap::from(expected));
    }

    #[test]
    fn items_keep_their_numbers_and_places_when_accounts_are_passed_over() {
        let folder = tempfile::tempdir().unwrap();
        let journal = sealed(folder.path(), &"a".repeat(32));
        let mut segment = journal.next_after(0).unwrap().unwrap();
        let read = |segment: &SegmentReader| {
            let mut buffer = Vec::new();
            let items: Vec<Placed> = segment.items().collect();
            let each = items.iter().map(|it| {
                let text = segment.read(it, &mut buffer).unwrap().to_owned();
                (it.index, it.account, text)
            });
            each.collect::<Vec<_>>()
        };
        let one = |index, account, text: &str| (index, account, text.to_owned());
        let all = [one(0, 0, "[1]"), one(1, 0, "[22]"), one(2, 1, "[1]"), one(3, 1, "[22]")];
        assert_eq!(read(&segment), all);
        segment.pass_over(&[0]);
        assert_eq!((segment.passed_over(), segment.is_passed_over(1)), (vec![0], false));
        assert_eq!(read(&segment), all[2..]);
    }

    #[test]
    fn a_segment_of_another_directory_and_bytes_that_are_none_are_told_apart() {
        let folder = tempfile::tempdir().unwrap();
        let id = "a".repeat(32);
        drop(sealed(folder.path(), &id));
        let path = folder.path().join("00000001.seg");
        let of = |bytes: &[u8], id: &str| {
            let path = folder.path().join("copy");
            let mut copy = File::create(&path).unwrap();
            std::io::Write::write_all(&mut copy, bytes).unwrap();
            SegmentReader::open(&path, 1, id).err().map(|error| error.to_string())
        };
        let whole = std::fs::read(&path).unwrap();
        assert_eq!(of(&whole, &id), None);
        let other = of(&whole, &"b".repeat(32)).unwrap();
        assert!(other.contains("belongs to another data directory"), "{other}");
        let least = HEADER_LENGTH + FOOTER_LENGTH;
        for (bytes, said) in [
            (&whole[..least - 1], "too short"),
            (&whole[1..], "no segment header"),
            (&whole[..whole.len() - 1], "its footer is wrong"),
        ] {
            let error = of(bytes, &id).unwrap();
            assert!(error.contains(said), "{said}: {error}");
        }
        // A table of its own, which says less than there is.
        let empty = Table { labels: Vec::new(), accounts: Vec::new() };
        let head = header(&id);
        let begin = head.len() as u64;
        assert_eq!(of(&[head.clone(), trailer(&empty, begin)].concat(), &id), None);
        let error = of(&[head, b"[1]".to_vec(), trailer(&empty, begin + 3)].concat(), &id).unwrap();
        assert!(error.contains("its table does not fit its items"), "{error}");
        // Bytes of nobody behind the table, which is whole.
        let (head, end) = (header(&id), trailer(&empty, begin));
        let (table, foot) = end.split_at(end.len() - FOOTER_LENGTH);
        let error = of(&[&head, table, b"[1]", foot].concat(), &id).unwrap();
        assert!(error.contains("its footer is wrong"), "{error}");
        // Long enough, with a footer that fits, of a table that is not there.
        let foot = [&begin.to_le_bytes(), &[0; 8][..], FOOTER_MAGIC].concat();
        let error = of(&[head, foot].concat(), &id).unwrap();
        assert!(error.contains("its table is unreadable"), "{error}");
    }

    #[test]
    fn a_table_may_be_as_long_as_the_most_that_is_read_and_no_longer() {
        let by = |bytes: u32| {
            let words = [bytes.to_le_bytes(), 7_u32.to_le_bytes()].concat();
            let foot = [&HEADER_BYTES.to_le_bytes()[..], &words, FOOTER_MAGIC].concat();
            let length = HEADER_BYTES + u64::from(bytes) + FOOTER_BYTES;
            table_by(&foot.try_into().unwrap(), length)
        };
        assert_eq!(by(TABLE_BYTES_MAX), Some((HEADER_BYTES, TABLE_BYTES_MAX, 7)));
        assert_eq!(by(TABLE_BYTES_MAX + 1), None);
    }
}
