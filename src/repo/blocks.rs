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
