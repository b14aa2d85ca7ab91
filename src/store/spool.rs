//! Spools: where a repository lies between socket and parser.
//!
//! A spool never waits. It is memory while it is small and the spools budget has room, and an unlinked temporary file in
//! `DATA/spool` beyond that; a file is gone with its process. Disk is reserved in steps of 64 MiB out of `limits.spool`.
//! Memory of finished spools is used again: fresh pages cost a processor more than the bytes that are copied into them.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use crate::repo::Source;
use crate::store::budget::{Budget, Reservation};

/// Disk is reserved in steps of this many bytes: few steps a large repository, little waste a small one.
pub const DISK_STEP_BYTES: u64 = 64 << 20;

/// First memory of a spool; doubles as it fills.
const MEMORY_STEP_BYTES: usize = 16 << 10;

/// Share of the memory budget that may lie ready for the next spools, beside what is in use.
const KEPT_SHARE: u64 = 8;

/// Makes spools.
#[derive(Clone, Debug)]
pub struct SpoolPool {
    folder: PathBuf,
    memory_bytes_each: u64,
    memory: Budget,
    kept: Arc<Kept>,
    disk: Arc<DiskShare>,
}

/// Memory of finished spools.
#[derive(Debug)]
struct Kept {
    limit_bytes: usize,
    buffers: Mutex<Vec<Vec<u8>>>,
}

/// A spool's memory; what it leaves is kept.
#[derive(Debug)]
struct Memory {
    bytes: Vec<u8>,
    reservation: Option<Reservation>,
    kept: Arc<Kept>,
}

#[derive(Debug)]
struct DiskShare {
    limit_bytes: u64,
    used_bytes: AtomicU64,
}

/// Why a spool cannot take more.
#[derive(Debug)]
pub enum SpoolError {
    /// Others use the disk share now.
    NoRoom,
    /// It is larger than the whole disk share.
    TooLarge,
    /// The disk failed.
    Disk(io::Error),
}

/// A spool that is being written.
#[derive(Debug)]
pub struct Spool {
    pool: SpoolPool,
    place: Place,
    bytes: u64,
    beside: Option<Reservation>,
}

/// A finished spool.
#[derive(Debug)]
pub struct SpooledCar {
    place: Place,
    bytes: u64,
    /// Memory of what was kept about it; given back with it.
    _beside: Option<Reservation>,
}

#[derive(Debug)]
enum Place {
    Memory(Memory),
    /// Read back from disk, within another's budget.
    Loaded(Vec<u8>),
    Disk {
        file: File,
        share: DiskReservation,
    },
}

#[derive(Debug)]
struct DiskReservation {
    disk: Arc<DiskShare>,
    bytes: u64,
}

impl SpoolPool {
    /// Spools of at most `memory_bytes_each` in memory, all together within `memory`, and `disk_bytes` in `folder`.
    #[must_use]
    pub fn new(folder: PathBuf, memory_bytes_each: u64, memory: Budget, disk_bytes: u64) -> Self {
        let disk = DiskShare { limit_bytes: disk_bytes, used_bytes: AtomicU64::new(0) };
        let limit_bytes = usize::try_from(memory.limit() / KEPT_SHARE).unwrap_or(usize::MAX);
        let kept = Arc::new(Kept { limit_bytes, buffers: Mutex::default() });
        Self { folder, memory_bytes_each, memory, kept, disk: Arc::new(disk) }
    }

    /// An empty spool.
    #[must_use]
    pub fn open(&self) -> Spool {
        let kept = Arc::clone(&self.kept);
        let place = Place::Memory(Memory { bytes: Vec::new(), reservation: None, kept });
        Spool { pool: self.clone(), place, bytes: 0, beside: None }
    }

    /// Where its files are made.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Bytes reserved on disk.
    #[must_use]
    pub fn disk_bytes(&self) -> u64 {
        self.disk.used_bytes.load(Ordering::Acquire)
    }
}

impl Spool {
    /// Appends `bytes`: all of them, or none if the disk is full, so that the same call can be made again.
    ///
    /// # Errors
    /// [`SpoolError`].
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), SpoolError> {
        let length = self.bytes + bytes.len() as u64;
        if !self.has_memory_for(length) {
            self.move_to_disk()?;
        }
        match &mut self.place {
            Place::Memory(memory) => memory.bytes.extend_from_slice(bytes),
            // Only a frozen spool is loaded.
            Place::Loaded(held) => held.extend_from_slice(bytes),
            Place::Disk { file, share } => {
                share.grow_to(length)?;
                file.write_all_at(bytes, self.bytes).map_err(SpoolError::Disk)?;
            }
        }
        self.bytes = length;
        Ok(())
    }

    /// Ends writing.
    #[must_use]
    pub fn freeze(self) -> SpooledCar {
        SpooledCar { place: self.place, bytes: self.bytes, _beside: self.beside }
    }

    /// Whether the budget also has `bytes` for what is kept about the repository beside it.
    pub fn has_memory_beside(&mut self, bytes: u64) -> bool {
        let held = self.beside.as_ref().map_or(0, Reservation::bytes);
        if bytes <= held {
            return true;
        }
        let Some(more) = self.pool.memory.try_take(bytes - held) else { return false };
        match &mut self.beside {
            Some(held) => held.merge(more),
            None => self.beside = Some(more),
        }
        true
    }

    /// Makes room in memory for `length` bytes in all, if the spool is in memory and may stay there.
    fn has_memory_for(&mut self, length: u64) -> bool {
        let Place::Memory(memory) = &mut self.place else { return true };
        if length <= memory.bytes.capacity() as u64 {
            return true;
        }
        if length > self.pool.memory_bytes_each {
            return false;
        }
        if memory.bytes.capacity() == 0 {
            memory.take_kept(&self.pool.memory);
        }
        let held = memory.bytes.capacity();
        let wanted = usize::try_from(length).unwrap_or(usize::MAX).next_power_of_two();
        let wanted = wanted.max(MEMORY_STEP_BYTES);
        if wanted <= held {
            return true;
        }
        let Some(more) = self.pool.memory.try_take((wanted - held) as u64) else { return false };
        match &mut memory.reservation {
            Some(held) => held.merge(more),
            None => memory.reservation = Some(more),
        }
        memory.bytes.reserve_exact(wanted - memory.bytes.len());
        true
    }

    fn move_to_disk(&mut self) -> Result<(), SpoolError> {
        let Place::Memory(Memory { bytes, .. }) = &self.place else { return Ok(()) };
        let mut share = DiskReservation { disk: Arc::clone(&self.pool.disk), bytes: 0 };
        share.grow_to(bytes.len() as u64)?;
        let file = tempfile::tempfile_in(&self.pool.folder).map_err(SpoolError::Disk)?;
        file.write_all_at(bytes, 0).map_err(SpoolError::Disk)?;
        self.place = Place::Disk { file, share };
        Ok(())
    }
}

impl Memory {
    /// Begins with what another spool has left, if the budget has room for it.
    fn take_kept(&mut self, budget: &Budget) {
        let mut buffers = self.kept.buffers.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(last) = buffers.last() else { return };
        self.reservation = budget.try_take(last.capacity() as u64);
        if self.reservation.is_some() {
            self.bytes = buffers.pop().unwrap_or_default();
        }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        let mut bytes = std::mem::take(&mut self.bytes);
        bytes.clear();
        let mut buffers = self.kept.buffers.lock().unwrap_or_else(PoisonError::into_inner);
        let kept: usize = buffers.iter().map(Vec::capacity).sum();
        if bytes.capacity() > 0 && kept + bytes.capacity() <= self.kept.limit_bytes {
            buffers.push(bytes);
        }
    }
}

impl DiskReservation {
    fn grow_to(&mut self, bytes: u64) -> Result<(), SpoolError> {
        while self.bytes < bytes {
            let (limit, step) = (self.disk.limit_bytes, DISK_STEP_BYTES.min(self.disk.limit_bytes));
            if bytes > limit {
                return Err(SpoolError::TooLarge);
            }
            let take = |used: u64| (used + step <= limit.max(step)).then_some(used + step);
            let taken =
                self.disk.used_bytes.fetch_update(Ordering::AcqRel, Ordering::Acquire, take);
            taken.map_err(|_| SpoolError::NoRoom)?;
            self.bytes += step;
        }
        Ok(())
    }
}

impl Drop for DiskReservation {
    fn drop(&mut self) {
        self.disk.used_bytes.fetch_sub(self.bytes, Ordering::AcqRel);
    }
}

impl SpooledCar {
    /// Bytes that [`SpooledCar::load`] would take: all of them if it lies on disk, none otherwise.
    #[must_use]
    pub fn unloaded_bytes(&self) -> u64 {
        match &self.place {
            Place::Memory(_) | Place::Loaded(_) => 0,
            Place::Disk { .. } => self.bytes,
        }
    }

    /// Reads it into memory, which the caller has reserved: a walk reads each of its thousands of blocks by itself, and a
    /// system call for each costs more than reading it whole.
    ///
    /// # Errors
    /// The system's.
    pub fn load(&mut self) -> io::Result<()> {
        if let Place::Disk { file, .. } = &self.place {
            let mut bytes = vec![0; usize::try_from(self.bytes).unwrap_or(usize::MAX)];
            file.read_exact_at(&mut bytes, 0)?;
            self.place = Place::Loaded(bytes);
        }
        Ok(())
    }
}

impl Source for SpooledCar {
    fn len(&self) -> u64 {
        self.bytes
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        match &self.place {
            Place::Memory(Memory { bytes, .. }) | Place::Loaded(bytes) => {
                bytes.read_at(offset, buffer)
            }
            Place::Disk { file, .. } => file.read_exact_at(buffer, offset),
        }
    }

    fn as_slice(&self) -> Option<&[u8]> {
        match &self.place {
            Place::Memory(Memory { bytes, .. }) | Place::Loaded(bytes) => Some(bytes),
            Place::Disk { .. } => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn content(spooled: &SpooledCar) -> Vec<u8> {
        let mut bytes = vec![0; usize::try_from(Source::len(spooled)).unwrap()];
        spooled.read_at(0, &mut bytes).unwrap();
        bytes
    }

    #[test]
    fn small_stays_in_memory_large_and_unlucky_go_to_disk() {
        let folder = tempfile::tempdir().unwrap();
        let memory = Budget::new(64 << 10);
        let pool = SpoolPool::new(folder.path().to_owned(), 32 << 10, memory.clone(), 256 << 20);
        let (mut small, mut large, mut unlucky) = (pool.open(), pool.open(), pool.open());
        small.write(&[1; 20_000]).unwrap();
        let _others = memory.try_take(memory.limit() - memory.used()).unwrap();
        unlucky.write(&[2; 100]).unwrap();
        for _ in 0..5 {
            large.write(&[3; 10_000]).unwrap();
        }
        let (small, large, unlucky) = (small.freeze(), large.freeze(), unlucky.freeze());
        assert!(
            small.as_slice().is_some()
                && large.as_slice().is_none()
                && unlucky.as_slice().is_none()
        );
        assert_eq!(content(&small), [1; 20_000]);
        assert_eq!(content(&large), [3; 50_000]);
        assert_eq!(content(&unlucky), [2; 100]);
        assert_eq!(pool.disk_bytes(), 2 * DISK_STEP_BYTES);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
        drop((small, large, unlucky));
        assert_eq!(pool.disk_bytes(), 0);
    }

    #[test]
    fn memory_is_used_again_counted_while_in_use_and_kept_up_to_a_share() {
        let folder = tempfile::tempdir().unwrap();
        let memory = Budget::new(1 << 20);
        let pool = SpoolPool::new(folder.path().to_owned(), 1 << 20, memory.clone(), 1 << 30);
        let full = |byte, length| {
            let mut spool = pool.open();
            spool.write(&vec![byte; length]).unwrap();
            spool.freeze()
        };
        let kept = || pool.kept.buffers.lock().unwrap().iter().map(Vec::capacity).sum::<usize>();
        drop((full(1, 100_000), full(2, 10_000), full(3, 500_000)));
        // An eighth of the budget: the first, not the second beside it, not the third.
        assert_eq!((memory.used(), kept()), (0, 131_072));
        let next = full(4, 3);
        assert_eq!((memory.used(), kept(), content(&next)), (131_072, 0, vec![4; 3]));
        drop(next);
        // The budget has no room for so much: the kept one stays, and the spool begins small.
        let others = memory.try_take(memory.limit() - (20 << 10)).unwrap();
        let small = full(5, 9_000);
        assert_eq!((memory.used() - others.bytes(), kept()), (16_384, 131_072));
        assert_eq!(content(&small), [5; 9_000]);
    }

    #[test]
    fn what_is_larger_than_the_share_is_not_kept_even_alone_and_what_fills_it_is() {
        let memory = Budget::new(1 << 20);
        let pool = SpoolPool::new(PathBuf::new(), 1 << 20, memory, 1 << 30);
        let kept = || pool.kept.buffers.lock().unwrap().iter().map(Vec::capacity).sum::<usize>();
        for (length, left) in [(200_000, 0), (65_536, 65_536), (131_072, 65_536)] {
            let mut spool = pool.open();
            // Nothing is ready for it that it could begin with.
            let ready = std::mem::take(&mut *pool.kept.buffers.lock().unwrap());
            spool.write(&vec![1; length]).unwrap();
            *pool.kept.buffers.lock().unwrap() = ready;
            drop(spool);
            assert_eq!(kept(), left, "{length}");
        }
        let (mut one, mut two) = (pool.open(), pool.open());
        one.write(&[1; 65_536]).unwrap();
        two.write(&[2; 65_536]).unwrap();
        drop((one, two));
        assert_eq!(kept(), 131_072);
    }

    #[test]
    fn memory_grows_by_what_is_lacking_and_what_it_holds_is_what_it_has_asked_for() {
        let folder = tempfile::tempdir().unwrap();
        let memory = Budget::new(1 << 20);
        let pool = SpoolPool::new(folder.path().to_owned(), 64 << 10, memory.clone(), 1 << 30);
        let mut spool = pool.open();
        for (bytes, held) in [(10_000, 16_384), (6_384, 16_384), (1, 32_768), (49_151, 65_536)] {
            spool.write(&vec![7; bytes]).unwrap();
            let Place::Memory(Memory { bytes, .. }) = &spool.place else { panic!("on disk") };
            assert_eq!((bytes.capacity(), memory.used()), (held, held as u64));
        }
        // As much as one may have in memory, and one byte more.
        assert_eq!(pool.disk_bytes(), 0);
        spool.write(&[8]).unwrap();
        assert_eq!((pool.disk_bytes(), memory.used()), (DISK_STEP_BYTES, 0));
        assert_eq!(content(&spool.freeze()), [vec![7; 65_536], vec![8]].concat());
    }

    #[test]
    fn a_spool_that_was_never_written_leaves_nothing_that_another_would_begin_with() {
        let pool = SpoolPool::new(PathBuf::new(), 1 << 20, Budget::new(1 << 20), 1 << 30);
        let mut spool = pool.open();
        spool.write(&[1; 100]).unwrap();
        drop((spool, pool.open(), pool.open().freeze()));
        let kept: Vec<usize> =
            pool.kept.buffers.lock().unwrap().iter().map(Vec::capacity).collect();
        assert_eq!(kept, [MEMORY_STEP_BYTES]);
    }

    #[test]
    fn memory_beside_is_asked_for_once_and_given_back_with_the_spool() {
        let memory = Budget::new(64 << 10);
        let pool = SpoolPool::new(PathBuf::new(), 0, memory.clone(), 0);
        let mut spool = pool.open();
        let mut has = |bytes: u64| (spool.has_memory_beside(bytes << 10), memory.used() >> 10);
        assert_eq!([0, 10, 10, 7].map(&mut has), [(true, 0), (true, 10), (true, 10), (true, 10)]);
        assert_eq!([30, 64].map(&mut has), [(true, 30), (true, 64)]);
        assert_eq!(has(65), (false, 64), "what it has stays");
        let frozen = spool.freeze();
        assert_eq!(memory.used(), memory.limit());
        drop(frozen);
        assert_eq!(memory.used(), 0);
    }

    #[test]
    fn what_lies_on_disk_is_loaded_whole_and_what_lies_in_memory_needs_no_loading() {
        let folder = tempfile::tempdir().unwrap();
        let pool =
            |each| SpoolPool::new(folder.path().to_owned(), each, Budget::new(1 << 20), 1 << 30);
        let bytes: Vec<u8> = (0..5_000_u32).map(|n| n.to_le_bytes()[0]).collect();
        for (each, unloaded) in [(1 << 20, 0), (0, 5_000)] {
            let mut spool = pool(each).open();
            spool.write(&bytes).unwrap();
            let mut spooled = spool.freeze();
            assert_eq!(spooled.unloaded_bytes(), unloaded);
            assert_eq!(spooled.as_slice().is_some(), unloaded == 0);
            spooled.load().unwrap();
            assert_eq!((spooled.unloaded_bytes(), spooled.as_slice()), (0, Some(&bytes[..])));
            assert_eq!(content(&spooled), bytes);
        }
    }

    #[test]
    fn the_disk_share_is_a_limit() {
        let folder = tempfile::tempdir().unwrap();
        let pool = SpoolPool::new(folder.path().to_owned(), 0, Budget::new(0), 2 * DISK_STEP_BYTES);
        let mut spools = [pool.open(), pool.open(), pool.open()];
        spools[0].write(&[0; 10]).unwrap();
        spools[1].write(&[0; 10]).unwrap();
        assert!(matches!(spools[2].write(&[0; 10]), Err(SpoolError::NoRoom)));
        let pool = SpoolPool::new(folder.path().to_owned(), 0, Budget::new(0), 50);
        let mut whole = pool.open();
        whole.write(&[0; 50]).unwrap();
        assert_eq!(pool.disk_bytes(), 50, "one may fill the share");
        drop(whole);
        assert!(matches!(pool.open().write(&[0; 51]), Err(SpoolError::TooLarge)));
    }
}
