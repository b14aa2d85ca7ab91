//! The block index: from CID to place, over bytes that have been framed and hashed before.
//!
//! An open-addressing table of 64-bit slots, two a block: the upper half is a fingerprint of the digest, the lower half the
//! section's offset plus one. It is sized by the number of blocks that really arrived, never by a claim. Offsets of 32 bits
//! reach 4 GiB, which is `limits.repo_bytes` at its default and largest. The full CID is compared at the section's head.
//! Duplicates are found while the table is filled and take no slot.
//!
//! The framer has seen every head while the bytes arrived; what it has kept of them fills the table without touching the
//! repository again. Where it has not kept them, because there were too many, the sections are listed once more. A node's children are
//! looked up together: first all slots, then all heads, so that the cache misses of one do not wait for those of another.

use crate::limits::SECTION_HELD_BYTES_MAX;
use crate::repo::Source;
use crate::repo::car::{Framed, section_head};
use crate::repo::cid::{CID_BYTES, Cid};
use crate::repo::error::RepoError;
use crate::repo::fingerprint::{self, slot_value};
use crate::repo::pages::Pages;
use crate::repo::varint::VARINT_BYTES_MAX;

/// Bytes of the table for each block.
const INDEX_BYTES_PER_BLOCK: u64 = 16;

/// Bytes read at once from a source on disk while its sections are listed.
const LISTING_BYTES: usize = 256 << 10;

/// Longest head of a section.
const HEAD_BYTES_MAX: usize = VARINT_BYTES_MAX + CID_BYTES;

/// Bytes of a cache line, and how many of a block's are fetched ahead of its turn: an ordinary record.
const LINE_BYTES: usize = 64;
const LINES_AHEAD: usize = 8;

/// Bytes that the index of so many blocks takes.
#[must_use]
pub const fn index_bytes(blocks: u64) -> u64 {
    (blocks + 1) * INDEX_BYTES_PER_BLOCK
}

/// Where a block lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Section {
    offset: u64,
    /// Length of the block in bytes.
    pub bytes: u64,
}

/// A source and its index.
pub struct Blocks<'s> {
    bytes: Bytes<'s>,
    slots: Vec<u64>,
    probes: Vec<Probe>,
}

/// Where the blocks' bytes come from.
enum Bytes<'s> {
    Memory(&'s [u8]),
    Disk { pages: Pages<'s>, buffer: Vec<u8> },
}

/// A look-up that has begun: its fingerprint, its next slot and what lies there.
#[derive(Clone, Copy)]
struct Probe {
    fingerprint: u32,
    slot: usize,
    value: u64,
}

impl<'s> Blocks<'s> {
    /// Indexes the sections of `source`, which `framed` has counted.
    ///
    /// # Errors
    /// [`RepoError::TooLarge`] beyond 4 GiB, [`RepoError::Io`].
    pub fn index(source: &'s dyn Source, framed: &Framed) -> Result<Self, RepoError> {
        let limit = u64::from(u32::MAX);
        if framed.bytes > limit {
            return Err(RepoError::TooLarge(limit));
        }
        let slots = vec![0; usize_of(index_bytes(framed.blocks) / 8)];
        let bytes = match source.as_slice() {
            Some(slice) => Bytes::Memory(slice),
            None => Bytes::Disk { pages: Pages::new(source), buffer: Vec::new() },
        };
        let mut blocks = Self { bytes, slots, probes: Vec::new() };
        if framed.heads.len() as u64 == framed.blocks {
            framed.heads.iter().try_for_each(|head| blocks.insert(*head))?;
            return Ok(blocks);
        }
        match source.as_slice() {
            Some(slice) => blocks.list(&mut SliceHeads(slice), framed)?,
            None => blocks.list(&mut FileHeads::new(source), framed)?,
        }
        Ok(blocks)
    }

    fn list(&mut self, heads: &mut dyn Heads, framed: &Framed) -> Result<(), RepoError> {
        let mut offset = framed.header_bytes;
        while offset < framed.bytes {
            let head = section_head(heads.at(offset)?)?;
            let (cid, length, used) = head.ok_or(RepoError::Cut(offset))?;
            let value = slot_value(fingerprint::of(&cid.digest), offset);
            self.insert(value.ok_or(RepoError::TooLarge(u64::from(u32::MAX)))?)?;
            offset += used as u64 + length;
        }
        Ok(())
    }

    /// Puts a section in; a second one of the same CID is passed over.
    fn insert(&mut self, value: u64) -> Result<(), RepoError> {
        let mut slot = self.first(fingerprint_of(value));
        while self.slots[slot] != 0 {
            if fingerprint_of(self.slots[slot]) == fingerprint_of(value)
                && self.bytes.head(self.slots[slot])?.0 == self.bytes.head(value)?.0
            {
                return Ok(());
            }
            slot = self.after(slot);
        }
        self.slots[slot] = value;
        Ok(())
    }

    /// Finds a block.
    ///
    /// # Errors
    /// [`RepoError::Io`].
    pub fn find(&mut self, cid: &Cid) -> Result<Option<Section>, RepoError> {
        let probe = self.begin(cid);
        self.finish(probe, cid)
    }

    /// Finds the blocks of all `cids`, and appends them to `found` in the same order, up to the first that is not there. Gives
    /// whether all are.
    ///
    /// # Errors
    /// [`RepoError::Io`].
    pub fn find_all<'c>(
        &mut self,
        cids: impl Iterator<Item = &'c Cid> + Clone,
        found: &mut Vec<Section>,
    ) -> Result<bool, RepoError> {
        let mut probes = std::mem::take(&mut self.probes);
        probes.clear();
        probes.extend(cids.clone().map(|cid| self.begin(cid)));
        for (probe, cid) in probes.iter().zip(cids) {
            let Some(section) = self.finish(*probe, cid)? else { return Ok(false) };
            found.push(section);
        }
        self.probes = probes;
        Ok(true)
    }

    fn begin(&self, cid: &Cid) -> Probe {
        let fingerprint = fingerprint::of(&cid.digest);
        let slot = self.first(fingerprint);
        Probe { fingerprint, slot, value: self.slots[slot] }
    }

    fn finish(&mut self, mut probe: Probe, cid: &Cid) -> Result<Option<Section>, RepoError> {
        while probe.value != 0 {
            if fingerprint_of(probe.value) == probe.fingerprint {
                // Codecs are compared too: a CID names a kind of block.
                let (found, section) = self.bytes.head(probe.value)?;
                if found == *cid {
                    return Ok(Some(section));
                }
            }
            probe.slot = self.after(probe.slot);
            probe.value = self.slots[probe.slot];
        }
        Ok(None)
    }

    /// Reads a block of at most `limits::SECTION_HELD_BYTES_MAX` bytes; `None` for a longer one.
    ///
    /// # Errors
    /// [`RepoError::Io`].
    pub fn read(&mut self, section: Section) -> Result<Option<&[u8]>, RepoError> {
        if section.bytes > SECTION_HELD_BYTES_MAX {
            return Ok(None);
        }
        let length = usize_of(section.bytes);
        match &mut self.bytes {
            Bytes::Memory(slice) => {
                let start = usize_of(section.offset);
                let block = slice.get(start..start + length);
                block.map(Some).ok_or(RepoError::Cut(section.offset))
            }
            Bytes::Disk { pages, buffer } => {
                if buffer.len() < length {
                    buffer.resize(length, 0);
                }
                if pages.read(section.offset, &mut buffer[..length])? < length {
                    return Err(RepoError::Cut(section.offset));
                }
                Ok(Some(&buffer[..length]))
            }
        }
    }

    /// Touches blocks that will be read soon, so that their cache misses overlap. A hint: it changes nothing.
    pub fn touch(&self, sections: impl Iterator<Item = Section>) {
        let Bytes::Memory(slice) = &self.bytes else { return };
        let mut sum = 0_u8;
        for section in sections {
            let (start, length) = (usize_of(section.offset), usize_of(section.bytes));
            let block = slice.get(start..start + length).unwrap_or_default();
            let lines = block.iter().skip(LINE_BYTES).step_by(LINE_BYTES).take(LINES_AHEAD);
            sum = lines.fold(sum, |sum, byte| sum ^ byte);
        }
        std::hint::black_box(sum);
    }

    /// First slot of a fingerprint.
    fn first(&self, fingerprint: u32) -> usize {
        // Below the number of slots, which fits.
        usize_of((u64::from(fingerprint) * self.slots.len() as u64) >> 32)
    }

    fn after(&self, slot: usize) -> usize {
        if slot + 1 == self.slots.len() { 0 } else { slot + 1 }
    }
}

impl Bytes<'_> {
    /// CID and place of the section that a slot's value names.
    fn head(&mut self, value: u64) -> Result<(Cid, Section), RepoError> {
        let offset = (value & u64::from(u32::MAX)) - 1;
        let head = match self {
            Self::Memory(slice) => section_head(slice.get(usize_of(offset)..).unwrap_or_default())?,
            Self::Disk { pages, .. } => {
                let mut head = [0; HEAD_BYTES_MAX];
                let filled = pages.read(offset, &mut head)?;
                section_head(&head[..filled])?
            }
        };
        let (cid, bytes, used) = head.ok_or(RepoError::Cut(offset))?;
        Ok((cid, Section { offset: offset + used as u64, bytes }))
    }
}

/// Bytes at an offset, at least one section head of them unless the end is nearer.
trait Heads {
    fn at(&mut self, offset: u64) -> Result<&[u8], RepoError>;
}

struct SliceHeads<'s>(&'s [u8]);

impl Heads for SliceHeads<'_> {
    fn at(&mut self, offset: u64) -> Result<&[u8], RepoError> {
        Ok(self.0.get(usize_of(offset)..).unwrap_or_default())
    }
}

/// A window that moves forward over a source on disk.
struct FileHeads<'s> {
    source: &'s dyn Source,
    window: Vec<u8>,
    start: u64,
    filled: usize,
}

impl<'s> FileHeads<'s> {
    fn new(source: &'s dyn Source) -> Self {
        Self { source, window: vec![0; LISTING_BYTES], start: 0, filled: 0 }
    }
}

impl Heads for FileHeads<'_> {
    fn at(&mut self, offset: u64) -> Result<&[u8], RepoError> {
        let end = self.start + self.filled as u64;
        let is_inside = offset >= self.start && offset + HEAD_BYTES_MAX as u64 <= end;
        if !is_inside {
            let left = self.source.len().saturating_sub(offset);
            self.filled = LISTING_BYTES.min(usize_of(left));
            self.source.read_at(offset, &mut self.window[..self.filled])?;
            self.start = offset;
        }
        Ok(&self.window[usize_of(offset - self.start)..self.filled])
    }
}

#[allow(clippy::cast_possible_truncation, reason = "32 bits are left")]
const fn fingerprint_of(value: u64) -> u32 {
    (value >> 32) as u32
}

/// Offsets are below 4 GiB, and skyfill runs where that is a usize.
fn usize_of(offset: u64) -> usize {
    usize::try_from(offset).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use sha2::{Digest, Sha256};

    use super::*;
    use crate::repo::car::{Framer, HEADS_KEPT_MAX};
    use crate::repo::cid::Codec;

    /// Nothing of it lies in memory.
    struct OnDisk(Vec<u8>);

    impl Source for OnDisk {
        fn len(&self) -> u64 {
            self.0.len() as u64
        }

        fn read_at(&self, offset: u64, buffer: &mut [u8]) -> std::io::Result<()> {
            self.0.read_at(offset, buffer)
        }
    }

    /// Counts the bytes that are asked of it.
    struct Counted(OnDisk, AtomicUsize);

    impl Source for Counted {
        fn len(&self) -> u64 {
            self.0.len()
        }

        fn read_at(&self, offset: u64, buffer: &mut [u8]) -> std::io::Result<()> {
            self.1.fetch_add(buffer.len(), Ordering::Relaxed);
            self.0.read_at(offset, buffer)
        }
    }

    type Block = (Cid, Vec<u8>);

    fn block(bytes: Vec<u8>) -> Block {
        (Cid { codec: Codec::DagCbor, digest: Sha256::digest(&bytes).into() }, bytes)
    }

    /// Of many lengths up to 604 bytes; the first is empty.
    fn blocks(count: u32) -> Vec<Block> {
        let length = |n: u32| if n == 0 { 0 } else { 4 + n as usize * 7 % 601 };
        let bytes = |n: u32| n.to_le_bytes().into_iter().cycle().take(length(n)).collect();
        (0..count).map(|n| block(bytes(n))).collect()
    }

    fn varint(mut value: usize) -> Vec<u8> {
        let mut bytes = Vec::new();
        while value > 0x7f {
            bytes.push((value & 0x7f) as u8 | 0x80);
            value >>= 7;
        }
        bytes.push(value as u8);
        bytes
    }

    fn car_of(blocks: &[Block]) -> Vec<u8> {
        let root = [&[0x81, 0xd8, 0x2a, 0x58, 0x25, 0][..], &blocks[0].0.to_bytes()].concat();
        let header = [b"\xa2\x65roots", &root[..], b"\x67version\x01"].concat();
        let mut car = [varint(header.len()), header].concat();
        for (cid, bytes) in blocks {
            car.extend(varint(CID_BYTES + bytes.len()));
            car.extend(cid.to_bytes());
            car.extend(bytes);
        }
        car
    }

    fn framed(car: &[u8], keeps_heads: bool) -> Framed {
        let mut framer = Framer::new(u64::MAX);
        if !keeps_heads {
            framer.forget_heads();
        }
        car.chunks(1_000).for_each(|chunk| framer.push(chunk).unwrap());
        framer.finish().unwrap()
    }

    /// In memory and on disk, with the heads that the framer kept and by listing.
    fn everywhere(car: Vec<u8>, see: impl Fn(&mut Blocks<'_>, &str)) {
        let disk = OnDisk(car.clone());
        for (source, place) in [(&car as &dyn Source, "memory"), (&disk, "disk")] {
            for keeps_heads in [true, false] {
                let framed = framed(&car, keeps_heads);
                assert_eq!(framed.heads.is_empty(), !keeps_heads);
                see(
                    &mut Blocks::index(source, &framed).unwrap(),
                    &format!("{place}, {keeps_heads}"),
                );
            }
        }
    }

    #[test]
    fn every_block_is_found_and_read_wherever_it_lies() {
        // Longer than what is listed at once; every tenth block is there twice.
        let all = blocks(3_000);
        let twice = all.iter().step_by(10).cloned();
        let car = car_of(&all.iter().cloned().chain(twice).collect::<Vec<_>>());
        assert!(car.len() > 3 * LISTING_BYTES);
        everywhere(car, |blocks, place| {
            for (cid, bytes) in &all {
                let section = blocks.find(cid).unwrap().unwrap();
                assert_eq!(section.bytes, bytes.len() as u64, "{place}");
                assert_eq!(blocks.read(section).unwrap(), Some(&bytes[..]), "{place}");
            }
            let slots = blocks.slots.iter().filter(|slot| **slot != 0).count();
            assert_eq!(slots, all.len(), "{place}: what is there twice has one slot");
            let mut found = Vec::new();
            assert!(blocks.find_all(all.iter().map(|it| &it.0), &mut found).unwrap());
            let lengths = all.iter().map(|it| it.1.len() as u64);
            assert!(found.iter().map(|it| it.bytes).eq(lengths), "{place}");
            blocks.touch(found.iter().copied());
        });
    }

    #[test]
    fn a_head_that_the_end_of_the_window_cuts_is_read_whole() {
        for left in [1, 2, 10, HEAD_BYTES_MAX - 1, HEAD_BYTES_MAX, HEAD_BYTES_MAX + 1] {
            // Its section ends so many bytes before the first window does; three bytes are its length.
            let long = block(vec![1; LISTING_BYTES - left - 3 - CID_BYTES]);
            let all = [long, block(b"second".to_vec()), block(b"third".to_vec())];
            everywhere(car_of(&all), |blocks, place| {
                for (cid, bytes) in &all {
                    let section = blocks.find(cid).unwrap().unwrap();
                    assert_eq!(section.bytes, bytes.len() as u64, "{place}, {left} bytes left");
                }
            });
        }
    }

    #[test]
    fn a_source_on_disk_is_listed_by_reading_it_once() {
        let car = car_of(&blocks(3_000));
        let disk = Counted(OnDisk(car.clone()), AtomicUsize::new(0));
        let blocks = Blocks::index(&disk, &framed(&car, false)).unwrap();
        assert_eq!(blocks.slots.iter().filter(|slot| **slot != 0).count(), 3_000);
        // The windows' borders are read twice, and pages where two fingerprints meet.
        let read = disk.1.load(Ordering::Relaxed);
        assert!(read < car.len() + LISTING_BYTES / 2, "{read} bytes of {}", car.len());
    }

    #[test]
    fn fingerprints_are_spread_evenly_over_all_slots() {
        let car = car_of(&blocks(20));
        let blocks = Blocks::index(&car, &framed(&car, true)).unwrap();
        let mut found = vec![0; blocks.slots.len()];
        for fingerprint in (0..=u32::MAX).step_by(1 << 20) {
            found[blocks.first(fingerprint)] += 1;
        }
        let share = 4_096 / found.len();
        assert!(found.iter().all(|found| (share..=share + 1).contains(found)), "{found:?}");
        assert_eq!((blocks.first(0), blocks.first(u32::MAX)), (0, found.len() - 1));
    }

    #[test]
    fn blocks_of_one_fingerprint_are_told_apart_by_their_cids() {
        let all = blocks(10);
        let car = car_of(&[&all[..], &all[..3]].concat());
        // The last one: their look-ups go on from the table's end at its begin.
        for fingerprint in [7, u32::MAX] {
            let mut same = framed(&car, true);
            let place = |head: &u64| slot_value(fingerprint, (head & u64::from(u32::MAX)) - 1);
            same.heads = same.heads.iter().filter_map(place).collect();
            let mut blocks = Blocks::index(&car, &same).unwrap();
            assert_eq!(blocks.slots.iter().filter(|slot| **slot != 0).count(), all.len());
            let slot = blocks.first(fingerprint);
            let probe = Probe { fingerprint, slot, value: blocks.slots[slot] };
            for (cid, bytes) in &all {
                let section = blocks.finish(probe, cid).unwrap().unwrap();
                assert_eq!(blocks.read(section).unwrap(), Some(&bytes[..]));
            }
            assert_eq!(blocks.finish(probe, &block(b"another".to_vec()).0).unwrap(), None);
        }
    }

    #[test]
    fn heads_are_kept_with_their_places_however_the_bytes_arrive_and_up_to_a_number() {
        let all = blocks(30);
        let car = car_of(&all);
        let (whole, mut offset) = (framed(&car, true), 0);
        for (head, (_, bytes)) in whole.heads.iter().zip(&all) {
            offset = if offset == 0 { whole.header_bytes } else { offset };
            assert_eq!((head & u64::from(u32::MAX)) - 1, offset);
            offset += (varint(CID_BYTES + bytes.len()).len() + CID_BYTES + bytes.len()) as u64;
        }
        assert_eq!((whole.heads.len(), offset), (30, car.len() as u64));
        for length in [1, 2, 7, 40, 41, 100] {
            let mut framer = Framer::new(u64::MAX);
            car.chunks(length).for_each(|chunk| framer.push(chunk).unwrap());
            assert!((30 * 8..30 * 8 * 4).contains(&framer.heads_bytes()));
            assert_eq!(framer.finish().unwrap(), whole, "pieces of {length} bytes");
        }
        // One block again and again is one section each time.
        let one = &all[0];
        for (count, kept) in [(HEADS_KEPT_MAX, HEADS_KEPT_MAX), (HEADS_KEPT_MAX + 1, 0)] {
            let framed = framed(&car_of(&vec![one.clone(); count]), true);
            assert_eq!((framed.blocks, framed.heads.len()), (count as u64, kept));
        }
    }

    #[test]
    fn what_is_not_there_is_not_found() {
        let all = blocks(50);
        let absent = block(b"another".to_vec()).0;
        let raw = Cid { codec: Codec::Raw, ..all[7].0 };
        everywhere(car_of(&all), |blocks, place| {
            assert_eq!(blocks.find(&absent).unwrap(), None, "{place}");
            assert_eq!(blocks.find(&raw).unwrap(), None, "{place}: another kind of block");
            let mut found = Vec::new();
            let asked = [&all[3].0, &all[4].0, &absent, &all[5].0];
            assert!(!blocks.find_all(asked.into_iter(), &mut found).unwrap(), "{place}");
            assert_eq!(found.len(), 2, "{place}: up to the first that is missing");
        });
    }

    #[test]
    fn a_block_is_held_up_to_the_bound_and_not_beyond() {
        let bound = usize_of(SECTION_HELD_BYTES_MAX);
        let all = [block(vec![1; bound]), block(vec![2; bound + 1]), block(vec![3; 10])];
        everywhere(car_of(&all), |blocks, place| {
            let mut read = |index: usize| {
                let section = blocks.find(&all[index].0).unwrap().unwrap();
                blocks.read(section).unwrap().map(<[u8]>::to_vec)
            };
            assert!(read(0).as_ref() == Some(&all[0].1), "{place}");
            assert!(read(1).is_none(), "{place}");
            assert!(read(2).as_ref() == Some(&all[2].1), "{place}: shorter than the one before");
        });
    }

    #[test]
    fn a_source_that_has_lost_its_end_is_cut() {
        let all = blocks(20);
        let car = car_of(&all);
        let framed = framed(&car, true);
        let (last, lost) = (all.last().unwrap(), car.len() - 1);
        let shorter = car[..lost].to_vec();
        for source in [&shorter as &dyn Source, &OnDisk(shorter.clone())] {
            let mut blocks = Blocks::index(source, &framed).unwrap();
            let section = blocks.find(&last.0).unwrap().unwrap();
            assert!(matches!(blocks.read(section), Err(RepoError::Cut(_))));
            let before = blocks.find(&all[18].0).unwrap().unwrap();
            assert_eq!(blocks.read(before).unwrap(), Some(&all[18].1[..]));
        }
    }

    #[test]
    fn four_gibibytes_are_the_end_of_the_index() {
        let (car, limit) = (car_of(&blocks(1)), u64::from(u32::MAX));
        let claiming = |bytes| Framed { bytes, ..framed(&car, true) };
        assert!(Blocks::index(&car, &claiming(limit)).is_ok());
        let beyond = Blocks::index(&car, &claiming(limit + 1)).err();
        assert!(matches!(beyond, Some(RepoError::TooLarge(bytes)) if bytes == limit));
    }
}
