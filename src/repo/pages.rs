//! Pages of a repository that lies on disk: a block's head, its bytes and its neighbours come with one system call.
//!
//! Hosts write blocks in the order of the tree or of their making, and the walk goes in the order of keys, which is close to both: most
//! reads find their page. Where blocks lie at random a page costs little more than a block. A page has one place, by its
//! number; there is nothing to look up and nothing to evict.

use crate::repo::Source;
use crate::repo::error::RepoError;

/// Bytes of a page, the kernel's own.
const PAGE_BYTES: usize = 4096;
/// Pages that are kept.
const PAGES: usize = 512;
/// Memory of the pages, which a walk asks for together with its index.
pub const PAGES_BYTES: u64 = (PAGE_BYTES * PAGES) as u64;

/// No page has this number.
const NONE: u64 = u64::MAX;

/// A source and the pages of it that were read last.
pub struct Pages<'s> {
    source: &'s dyn Source,
    length: u64,
    bytes: Vec<u8>,
    /// Number of the page in each place.
    numbers: Vec<u64>,
}

impl<'s> Pages<'s> {
    /// Nothing read yet.
    #[must_use]
    pub fn new(source: &'s dyn Source) -> Self {
        let (bytes, numbers) = (vec![0; PAGE_BYTES * PAGES], vec![NONE; PAGES]);
        Self { source, length: source.len(), bytes, numbers }
    }

    /// Fills `buffer` from `offset` on; fewer bytes where the source ends. Gives how many.
    ///
    /// # Errors
    /// [`RepoError::Io`].
    pub fn read(&mut self, offset: u64, buffer: &mut [u8]) -> Result<usize, RepoError> {
        let mut filled = 0;
        while filled < buffer.len() {
            let at = offset + filled as u64;
            if at >= self.length {
                break;
            }
            let page = self.page(at / PAGE_BYTES as u64)?;
            let within = usize::try_from(at % PAGE_BYTES as u64).unwrap_or(0);
            let taken = (buffer.len() - filled).min(page.len() - within);
            buffer[filled..filled + taken].copy_from_slice(&page[within..within + taken]);
            filled += taken;
        }
        Ok(filled)
    }

    fn page(&mut self, number: u64) -> Result<&[u8], RepoError> {
        let place = usize::try_from(number % PAGES as u64).unwrap_or(0);
        let start = number * PAGE_BYTES as u64;
        let length = usize::try_from(self.length - start).unwrap_or(usize::MAX).min(PAGE_BYTES);
        let page = &mut self.bytes[place * PAGE_BYTES..][..length];
        if self.numbers[place] != number {
            self.numbers[place] = NONE;
            self.source.read_at(start, page)?;
            self.numbers[place] = number;
        }
        Ok(page)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    /// Counts what is asked of it, and lies nowhere.
    struct Counted(AtomicUsize);

    impl Source for Counted {
        fn len(&self) -> u64 {
            2 * PAGES_BYTES
        }

        fn read_at(&self, offset: u64, buffer: &mut [u8]) -> std::io::Result<()> {
            self.0.fetch_add(1, Ordering::Relaxed);
            buffer.fill((offset / PAGE_BYTES as u64 % 251) as u8);
            Ok(())
        }
    }

    #[test]
    fn a_page_is_asked_for_once_until_another_has_its_place() {
        let source = Counted(AtomicUsize::new(0));
        let mut pages = Pages::new(&source);
        let mut asked = |from: usize| {
            let before = source.0.load(Ordering::Relaxed);
            for number in from..from + PAGES {
                let mut byte = [0];
                assert_eq!(pages.read((number * PAGE_BYTES + 7) as u64, &mut byte).unwrap(), 1);
                assert_eq!(byte, [(number % 251) as u8]);
            }
            source.0.load(Ordering::Relaxed) - before
        };
        // As many as are kept, wherever they begin; one further on is one new page.
        assert_eq!((asked(0), asked(0)), (PAGES, 0));
        assert_eq!((asked(1), asked(1)), (1, 0));
        assert_eq!((asked(PAGES), asked(PAGES)), (PAGES - 1, 0));
        assert_eq!((asked(0), asked(0)), (PAGES, 0));
    }

    #[test]
    fn every_read_gives_what_a_plain_read_gives() {
        let bytes: Vec<u8> = (0..3_000_000_u64).map(|at| (at * at / 7 % 251) as u8).collect();
        let mut pages = Pages::new(&bytes);
        let mut random = fastrand::Rng::with_seed(1);
        for _ in 0..20_000 {
            let at = random.usize(..bytes.len());
            let mut buffer = vec![0; random.usize(..10_000)];
            let filled = pages.read(at as u64, &mut buffer).unwrap();
            assert_eq!(filled, buffer.len().min(bytes.len() - at));
            assert!(buffer[..filled] == bytes[at..at + filled]);
        }
    }
}
