//! The repository engine: pure functions from bytes to proven records (AT Protocol, "Repository").
//!
//! `car::Framer` hashes blocks while they arrive; `walk::Walk` then proves commit, tree and completeness over the same
//! bytes, wherever they lie, and hands out the records in key order.

pub mod blocks;
pub mod car;
pub mod cbor;
pub mod cid;
pub mod commit;
pub mod error;
pub mod fingerprint;
pub mod key;
pub mod mst;
pub mod pages;
pub mod second_opinion;
pub mod varint;
pub mod walk;

/// A repository's bytes, in memory or on disk.
pub trait Source: Send + Sync {
    /// Length in bytes.
    fn len(&self) -> u64;

    /// Whether there is nothing.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Fills `buffer` from `offset` on.
    ///
    /// # Errors
    /// The system's; reading beyond the end is one.
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> std::io::Result<()>;

    /// All bytes at once, if they lie in memory.
    fn as_slice(&self) -> Option<&[u8]> {
        None
    }
}

impl Source for Vec<u8> {
    fn len(&self) -> u64 {
        self.as_slice().len() as u64
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> std::io::Result<()> {
        let start = usize::try_from(offset).unwrap_or(usize::MAX);
        let rest = self.get(start..).and_then(|rest| rest.get(..buffer.len()));
        let bytes = rest.ok_or(std::io::ErrorKind::UnexpectedEof)?;
        buffer.copy_from_slice(bytes);
        Ok(())
    }

    fn as_slice(&self) -> Option<&[u8]> {
        Some(self)
    }
}
