//! What can go wrong with the disk, and whether to wait, to end, or to ask the operator.

use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

/// A failure of the data directory.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// No space (or quota, or file size) left: everything pauses and resumes by itself.
    #[error(
        "{path} is full, {free_bytes} bytes are free: free some space; skyfill goes on by itself"
    )]
    Full {
        /// What could not be written.
        path: PathBuf,
        /// Free bytes of its file system.
        free_bytes: u64,
    },
    /// Any other I/O error: the process ends with exit code 74.
    #[error("{path}: {source}")]
    Io {
        /// Which file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A file that is not what was written: it is left in place, the process ends with exit code 74.
    #[error(
        "{path} is damaged ({what}); it was left in place: restore it from a backup, or start with a new data directory"
    )]
    Damaged {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// SQLite failed: the process ends with exit code 74.
    #[error("{path}: {source}")]
    Sqlite {
        /// Which database.
        path: PathBuf,
        /// What SQLite said.
        source: rusqlite::Error,
    },
    /// Not permitted: exit code 77.
    #[error("{0}")]
    Permission(String),
    /// The data directory and the configuration do not go together: exit code 78.
    #[error("{0}")]
    Config(String),
    /// Another process holds the data directory: exit code 75.
    #[error("{path} is in use by process {pid}: stop that one first, or use another --data-dir")]
    Held {
        /// The lock file.
        path: PathBuf,
        /// Who holds it.
        pid: String,
    },
}

impl StoreError {
    /// Sorts an I/O error on `path`.
    #[must_use]
    pub fn io(path: &Path, source: io::Error) -> Self {
        match source.kind() {
            ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::FileTooLarge => {
                let (path, free_bytes) = (path.to_owned(), free_bytes(path).unwrap_or(0));
                Self::Full { path, free_bytes }
            }
            ErrorKind::PermissionDenied => {
                Self::Permission(format!("{}: permission denied", path.display()))
            }
            _ => Self::Io { path: path.to_owned(), source },
        }
    }

    /// Sorts a SQLite error on `path`.
    #[must_use]
    pub fn sqlite(path: &Path, source: rusqlite::Error) -> Self {
        let code = source.sqlite_error_code();
        let path = path.to_owned();
        match code {
            Some(rusqlite::ErrorCode::DiskFull) => {
                let free_bytes = free_bytes(&path).unwrap_or(0);
                Self::Full { path, free_bytes }
            }
            Some(rusqlite::ErrorCode::NotADatabase | rusqlite::ErrorCode::DatabaseCorrupt) => {
                Self::Damaged { path, what: source.to_string() }
            }
            Some(rusqlite::ErrorCode::PermissionDenied | rusqlite::ErrorCode::CannotOpen) => {
                Self::Permission(format!("{}: {source}", path.display()))
            }
            _ => Self::Sqlite { path, source },
        }
    }

    /// Whether waiting may help.
    #[must_use]
    pub fn is_full(&self) -> bool {
        matches!(self, Self::Full { .. })
    }
}

/// Bytes that an ordinary user may still write to the file system of `path`, or of its folder.
#[must_use]
pub fn free_bytes(path: &Path) -> Option<u64> {
    let existing = path.ancestors().find(|ancestor| ancestor.exists())?;
    let figures = rustix::fs::statvfs(existing).ok()?;
    Some(figures.f_bavail.saturating_mul(figures.f_frsize))
}
