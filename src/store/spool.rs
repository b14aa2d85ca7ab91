//! Spools: where a repository lies between socket and parser.
//!
//! A spool never waits. It is memory while it is small and the spools budget has room, and an unlinked temporary file in
//! `DATA/spool` beyond that; a file is gone with its process. Disk is reserved in steps of 64 MiB out of `limits.spool`.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::repo::Source;
use crate::store::budget::{Budget, Reservation};

/// Disk is reserved in steps of this many bytes: few steps a large repository, little waste a small one.
pub const DISK_STEP_BYTES: u64 = 64 << 20;

/// First memory of a spool; doubles as it fills.
const MEMORY_STEP_BYTES: usize = 16 << 10;

/// Makes spools.
#[derive(Clone, Debug)]
pub struct SpoolPool {
    folder: PathBuf,
    memory_bytes_each: u64,
    memory: Budget,
    disk: Arc<DiskShare>,
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
    Memory { bytes: Vec<u8>, reservation: Option<Reservation> },
    Disk { file: File, share: DiskReservation },
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
        Self { folder, memory_bytes_each, memory, disk: Arc::new(disk) }
    }

    /// An empty spool.
    #[must_use]
    pub fn open(&self) -> Spool {
        let place = Place::Memory { bytes: Vec::new(), reservation: None };
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
            Place::Memory { bytes: held, .. } => held.extend_from_slice(bytes),
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
        let Place::Memory { bytes, reservation } = &mut self.place else { return true };
        if length <= bytes.capacity() as u64 {
            return true;
        }
        if length > self.pool.memory_bytes_each {
            return false;
        }
        let wanted = usize::try_from(length).unwrap_or(usize::MAX).next_power_of_two();
        let wanted = wanted.max(MEMORY_STEP_BYTES);
        let Some(more) = self.pool.memory.try_take((wanted - bytes.capacity()) as u64) else {
            return false;
        };
        match reservation {
            Some(held) => held.merge(more),
            None => *reservation = Some(more),
        }
        bytes.reserve_exact(wanted - bytes.len());
        true
    }

    fn move_to_disk(&mut self) -> Result<(), SpoolError> {
        let Place::Memory { bytes, .. } = &self.place else { return Ok(()) };
        let mut share = DiskReservation { disk: Arc::clone(&self.pool.disk), bytes: 0 };
        share.grow_to(bytes.len() as u64)?;
        let file = tempfile::tempfile_in(&self.pool.folder).map_err(SpoolError::Disk)?;
        file.write_all_at(bytes, 0).map_err(SpoolError::Disk)?;
        self.place = Place::Disk { file, share };
        Ok(())
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
            Place::Memory { .. } => 0,
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
            self.place = Place::Memory { bytes, reservation: None };
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
            Place::Memory { bytes, .. } => bytes.read_at(offset, buffer),
            Place::Disk { file, .. } => file.read_exact_at(buffer, offset),
        }
    }

    fn as_slice(&self) -> Option<&[u8]> {
        match &self.place {
            Place::Memory { bytes, .. } => Some(bytes),
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
    fn the_disk_share_is_a_limit() {
        let folder = tempfile::tempdir().unwrap();
        let pool = SpoolPool::new(folder.path().to_owned(), 0, Budget::new(0), 2 * DISK_STEP_BYTES);
        let mut spools = [pool.open(), pool.open(), pool.open()];
        spools[0].write(&[0; 10]).unwrap();
        spools[1].write(&[0; 10]).unwrap();
        assert!(matches!(spools[2].write(&[0; 10]), Err(SpoolError::NoRoom)));
        let pool = SpoolPool::new(folder.path().to_owned(), 0, Budget::new(0), 50);
        assert!(matches!(pool.open().write(&[0; 51]), Err(SpoolError::TooLarge)));
    }
}
