//! The block index: from CID to place, over bytes that have been framed and hashed before.
//!
//! An open-addressing table of 64-bit slots, two a block: the upper half is a fingerprint of the digest, the lower half the
//! section's offset plus one. It is sized by the number of blocks that really arrived, never by a claim. Offsets of 32 bits
//! reach 4 GiB, which is `limits.repo_bytes` at its default and largest. Digests can be ground, so they are mixed with a
//! key of this process before they choose a slot; the full digest is compared at the section's head. Duplicates are found
//! while the table is filled and take no slot.

use std::hash::{BuildHasher, RandomState};
use std::sync::OnceLock;

use crate::limits::SECTION_HELD_BYTES_MAX;
use crate::repo::Source;
use crate::repo::car::{Framed, section_head};
use crate::repo::cid::{CID_BYTES, Cid};
use crate::repo::error::RepoError;
use crate::repo::varint::VARINT_BYTES_MAX;

/// Bytes of the table for each block.
const INDEX_BYTES_PER_BLOCK: u64 = 16;

/// Bytes read at once from a source on disk while its sections are listed.
const LISTING_BYTES: usize = 256 << 10;

/// Longest head of a section.
const HEAD_BYTES_MAX: usize = VARINT_BYTES_MAX + CID_BYTES;

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
    source: &'s dyn Source,
    slice: Option<&'s [u8]>,
    slots: Vec<u64>,
    key: u64,
    buffer: Vec<u8>,
}

impl<'s> Blocks<'s> {
    /// Lists the sections of `source`, which `framed` has counted.
    ///
    /// # Errors
    /// [`RepoError::TooLarge`] beyond 4 GiB, [`RepoError::Io`].
    pub fn index(source: &'s dyn Source, framed: &Framed) -> Result<Self, RepoError> {
        static KEY: OnceLock<u64> = OnceLock::new();
        let limit = u64::from(u32::MAX);
        if framed.bytes > limit {
            return Err(RepoError::TooLarge(limit));
        }
        let slots = usize::try_from(index_bytes(framed.blocks) / 8).unwrap_or(usize::MAX);
        let mut blocks = Self {
            source,
            slice: source.as_slice(),
            slots: vec![0; slots],
            key: *KEY.get_or_init(|| RandomState::new().hash_one("skyfill") | 1),
            buffer: Vec::new(),
        };
        match blocks.slice {
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
            self.insert(&cid, offset)?;
            offset += used as u64 + length;
        }
        Ok(())
    }

    fn insert(&mut self, cid: &Cid, offset: u64) -> Result<(), RepoError> {
        let (mut slot, fingerprint) = self.start(&cid.digest);
        while self.slots[slot] != 0 {
            if self.slots[slot] >> 32 == fingerprint && self.at(slot, cid)?.is_some() {
                return Ok(());
            }
            slot = self.next(slot);
        }
        self.slots[slot] = fingerprint << 32 | (offset + 1);
        Ok(())
    }

    /// Finds a block.
    ///
    /// # Errors
    /// [`RepoError::Io`].
    pub fn find(&mut self, cid: &Cid) -> Result<Option<Section>, RepoError> {
        let (mut slot, fingerprint) = self.start(&cid.digest);
        while self.slots[slot] != 0 {
            if self.slots[slot] >> 32 == fingerprint
                && let Some(section) = self.at(slot, cid)?
            {
                return Ok(Some(section));
            }
            slot = self.next(slot);
        }
        Ok(None)
    }

    /// The section in `slot`, if it is `cid`'s. Codecs are compared too: a CID names a kind of block.
    fn at(&mut self, slot: usize, cid: &Cid) -> Result<Option<Section>, RepoError> {
        let offset = (self.slots[slot] & u64::from(u32::MAX)) - 1;
        let head = match self.slice {
            Some(slice) => section_head(slice.get(usize_of(offset)..).unwrap_or_default())?,
            None => {
                let mut head = [0; HEAD_BYTES_MAX];
                let left = self.source.len().saturating_sub(offset);
                let length = HEAD_BYTES_MAX.min(usize_of(left));
                self.source.read_at(offset, &mut head[..length])?;
                section_head(&head[..length])?
            }
        };
        let matching = head.filter(|(found, _, _)| found == cid);
        Ok(matching.map(|(_, bytes, used)| Section { offset: offset + used as u64, bytes }))
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
        if let Some(slice) = self.slice {
            let start = usize_of(section.offset);
            let block = slice.get(start..start + length);
            return block.map(Some).ok_or(RepoError::Cut(section.offset));
        }
        if self.buffer.len() < length {
            self.buffer.resize(length, 0);
        }
        self.source.read_at(section.offset, &mut self.buffer[..length])?;
        Ok(Some(&self.buffer[..length]))
    }

    /// First slot and fingerprint of a digest.
    fn start(&self, digest: &[u8; 32]) -> (usize, u64) {
        let word = |at: usize| u64::from_le_bytes(std::array::from_fn(|i| digest[at + i]));
        let (low, high) = (word(0) ^ self.key).widening_product(word(8) | 1);
        let mixed = (low ^ high).wrapping_mul(self.key);
        let (_, slot) = mixed.widening_product(self.slots.len() as u64);
        (usize_of(slot), mixed & u64::from(u32::MAX))
    }

    fn next(&self, slot: usize) -> usize {
        if slot + 1 == self.slots.len() { 0 } else { slot + 1 }
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

/// Both halves of a product.
trait WideningProduct {
    /// Low and high 64 bits.
    fn widening_product(self, other: u64) -> (u64, u64);
}

impl WideningProduct for u64 {
    #[allow(clippy::cast_possible_truncation, reason = "the two halves are what is wanted")]
    fn widening_product(self, other: u64) -> (u64, u64) {
        let product = u128::from(self) * u128::from(other);
        (product as u64, (product >> 64) as u64)
    }
}

/// Offsets are below 4 GiB, and skyfill runs where that is a usize.
fn usize_of(offset: u64) -> usize {
    usize::try_from(offset).unwrap_or(usize::MAX)
}
