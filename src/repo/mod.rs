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

#[cfg(test)]
mod tests {
    use super::*;

    /// What lies on disk has no slice.
    struct Elsewhere;

    impl Source for Elsewhere {
        fn len(&self) -> u64 {
            3
        }

        fn read_at(&self, _: u64, buffer: &mut [u8]) -> std::io::Result<()> {
            buffer.fill(7);
            Ok(())
        }
    }

    #[test]
    fn bytes_in_memory_are_a_source_with_a_slice_and_an_end() {
        let bytes = vec![1, 2, 3, 4];
        assert_eq!((Source::len(&bytes), Source::as_slice(&bytes)), (4, Some(&[1, 2, 3, 4][..])));
        let mut two = [0; 2];
        bytes.read_at(2, &mut two).unwrap();
        assert_eq!(two, [3, 4]);
        for offset in [3, 4, 5, u64::MAX] {
            let error = bytes.read_at(offset, &mut two).unwrap_err();
            assert_eq!(error.kind(), std::io::ErrorKind::UnexpectedEof, "{offset}");
        }
        assert!(Source::is_empty(&Vec::new()) && !Source::is_empty(&bytes));
        assert!(!Elsewhere.is_empty() && Elsewhere.as_slice().is_none());
    }
}
