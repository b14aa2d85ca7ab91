//! Output: a file that is being written, with its length and SHA-256, and what the system said if it failed.

use std::fs::{File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use crate::sink::StoreError;

/// Bytes that are put together before they are written.
const BUFFER_BYTES: usize = 256 << 10;

/// Readers of the group may read, nobody else: the rows are about people.
const MODE: u32 = 0o640;

/// A file that is being written.
pub struct Output {
    path: PathBuf,
    file: BufWriter<Counted>,
}

struct Counted {
    file: File,
    bytes: u64,
    sha256: Sha256,
    failed: Option<io::Error>,
}

impl Output {
    /// Creates a file, or writes an earlier draft over.
    ///
    /// # Errors
    /// [`StoreError`] naming it.
    pub fn create(path: &Path) -> Result<Self, StoreError> {
        let no_follow = i32::try_from(rustix::fs::OFlags::NOFOLLOW.bits()).unwrap_or(0);
        let opened = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(MODE)
            .custom_flags(no_follow)
            .open(path);
        let file = opened.map_err(|error| StoreError::io(path, error))?;
        let counted = Counted { file, bytes: 0, sha256: Sha256::new(), failed: None };
        Ok(Self { path: path.to_owned(), file: BufWriter::with_capacity(BUFFER_BYTES, counted) })
    }

    /// Makes it durable; gives its length and its SHA-256 in hexadecimal. If it `is_good` no more, `None`, unless that was the
    /// system's doing.
    ///
    /// # Errors
    /// [`StoreError`] naming it.
    pub fn finish(mut self, is_good: bool) -> Result<Option<(u64, String)>, StoreError> {
        let failed = |error| StoreError::io(&self.path, error);
        let flushed = if is_good { self.file.flush() } else { Ok(()) };
        if let Some(error) = self.file.get_mut().failed.take() {
            return Err(failed(error));
        }
        flushed.map_err(failed)?;
        if !is_good {
            // What is still in the buffer is not written by a drop.
            let (_counted, _rest) = self.file.into_parts();
            return Ok(None);
        }
        let counted = self.file.get_mut();
        counted.file.sync_data().map_err(failed)?;
        let digest = std::mem::take(&mut counted.sha256).finalize();
        let hex = digest.iter().map(|byte| format!("{byte:02x}")).collect();
        Ok(Some((counted.bytes, hex)))
    }
}

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl Write for Counted {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self.file.write(bytes) {
            Ok(written) => {
                self.sha256.update(&bytes[..written]);
                self.bytes += written as u64;
                Ok(written)
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Err(error),
            Err(error) => {
                let told = io::Error::from(error.kind());
                self.failed = Some(error);
                Err(told)
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}
