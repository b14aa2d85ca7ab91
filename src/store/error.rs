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
    /// Something could not be opened, because this process or the machine has no descriptor left: waited for like space.
    #[error(
        "{path}: too many open files (RLIMIT_NOFILE is {limit}): raise the limit; skyfill goes on by itself as soon as it can"
    )]
    Descriptors {
        /// What could not be opened.
        path: PathBuf,
        /// The limit of this process.
        limit: u64,
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
    /// A sink of somebody else's failed: the run ends, the next one goes on where that sink is.
    #[error("sink {name}: {source}")]
    Sink {
        /// Which sink.
        name: String,
        /// What it said.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A thread that writes the data directory panicked: exit code 1. What it had not committed, the next start finds.
    #[error(
        "the {thread} thread crashed, which is a bug in skyfill: its log line says where; nothing is lost, start it again"
    )]
    Crashed {
        /// Which thread.
        thread: &'static str,
    },
    /// Such a sink takes nothing for now: it is asked again, and the others go on meanwhile.
    #[error("sink {name} takes nothing at the moment: {source}")]
    Busy {
        /// Which sink.
        name: String,
        /// What it said.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

impl StoreError {
    /// A sink's own final failure; who follows with the sink fills in its name.
    #[must_use]
    pub fn sink(source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self::Sink { name: String::new(), source: source.into() }
    }

    /// A sink's own trouble that may pass, as that of a broker that is away: the sink is asked again a second later.
    #[must_use]
    pub fn busy(source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self::Busy { name: String::new(), source: source.into() }
    }

    /// Sorts an I/O error on `path`.
    #[must_use]
    pub fn io(path: &Path, source: io::Error) -> Self {
        if wants_descriptor(&source) {
            return Self::descriptors(path.to_owned());
        }
        match source.kind() {
            ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::FileTooLarge => {
                Self::full(path.to_owned())
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
            Some(rusqlite::ErrorCode::DiskFull) => Self::full(path),
            // SQLite has one code for every failed write; those that space would mend are told apart.
            Some(rusqlite::ErrorCode::SystemIoFailure) if wants_space(&path, &source) => {
                Self::full(path)
            }
            // It opens files whenever it likes, and does not say what the system said.
            Some(rusqlite::ErrorCode::SystemIoFailure | rusqlite::ErrorCode::CannotOpen)
                if !has_descriptor() =>
            {
                Self::descriptors(path)
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

    fn full(path: PathBuf) -> Self {
        let free_bytes = free_bytes(&path).unwrap_or(0);
        Self::Full { path, free_bytes }
    }

    fn descriptors(path: PathBuf) -> Self {
        Self::Descriptors { path, limit: descriptors_max() }
    }

    /// Whether waiting may help.
    #[must_use]
    pub fn is_full(&self) -> bool {
        matches!(self, Self::Full { .. } | Self::Descriptors { .. })
    }

    /// What is waited for, in the log.
    #[must_use]
    pub fn lack(&self) -> Lack {
        if matches!(self, Self::Descriptors { .. }) { Lack::Descriptors } else { Lack::Space }
    }
}

/// What everything waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lack {
    /// Space on the disk.
    Space,
    /// Descriptors of this process.
    Descriptors,
}

/// Whether the system had no descriptor to give.
#[must_use]
pub fn wants_descriptor(error: &io::Error) -> bool {
    let codes = [rustix::io::Errno::MFILE, rustix::io::Errno::NFILE].map(|it| it.raw_os_error());
    error.raw_os_error().is_some_and(|code| codes.contains(&code))
}

/// Whether anything can be opened at this moment.
#[must_use]
pub fn has_descriptor() -> bool {
    !std::fs::File::open("/dev/null").is_err_and(|error| wants_descriptor(&error))
}

/// How many descriptors this process may have (`RLIMIT_NOFILE`).
#[must_use]
pub fn descriptors_max() -> u64 {
    rustix::process::getrlimit(rustix::process::Resource::Nofile).current.unwrap_or(u64::MAX)
}

/// Whether SQLite's general I/O error means that there is no space: for its index of the WAL, or because the database or its
/// WAL is as long as a file may be (`RLIMIT_FSIZE`).
fn wants_space(database: &Path, source: &rusqlite::Error) -> bool {
    let code = source.sqlite_error().map(|error| error.extended_code);
    if code == Some(rusqlite::ffi::SQLITE_IOERR_SHMSIZE) {
        return free_bytes(database).is_some_and(wants_space_for_index);
    }
    let is_write = code == Some(rusqlite::ffi::SQLITE_IOERR_WRITE);
    let limit = rustix::process::getrlimit(rustix::process::Resource::Fsize).current;
    let Some(limit) = limit.filter(|_| is_write) else { return false };
    ["", "-wal"].iter().any(|ending| {
        let mut path = database.as_os_str().to_owned();
        path.push(ending);
        std::fs::metadata(path).is_ok_and(|file| file.len() + LARGEST_WRITE_BYTES > limit)
    })
}

/// With less than this free, an index of the WAL that cannot grow (by 32 KiB) wants space.
const INDEX_BYTES: u64 = 1 << 20;

fn wants_space_for_index(free: u64) -> bool {
    free < INDEX_BYTES
}

/// The most that SQLite writes at once: a page and the head of its frame.
const LARGEST_WRITE_BYTES: u64 = (64 << 10) + 24;

/// Bytes that an ordinary user may still write to the file system of `path`, or of its folder.
#[must_use]
pub fn free_bytes(path: &Path) -> Option<u64> {
    let existing = path.ancestors().find(|ancestor| ancestor.exists())?;
    let figures = rustix::fs::statvfs(existing).ok()?;
    Some(figures.f_bavail.saturating_mul(figures.f_frsize))
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;
    use std::process::Command;

    use rusqlite::ffi;
    use rustix::process::{Resource, Rlimit, setrlimit};

    use super::*;

    fn of_system(errno: rustix::io::Errno) -> StoreError {
        StoreError::io(Path::new("/x/y"), io::Error::from_raw_os_error(errno.raw_os_error()))
    }

    fn of_sqlite(database: &Path, code: i32) -> StoreError {
        let failure = rusqlite::Error::SqliteFailure(ffi::Error::new(code), None);
        StoreError::sqlite(database, failure)
    }

    #[test]
    fn what_the_system_says_is_waited_out_or_final() {
        use rustix::io::Errno;
        for errno in [Errno::NOSPC, Errno::DQUOT, Errno::FBIG] {
            let error = of_system(errno);
            assert!(matches!(error, StoreError::Full { .. }), "{error:?}");
            assert!(error.is_full() && error.lack() == Lack::Space);
        }
        for errno in [Errno::MFILE, Errno::NFILE] {
            let error = of_system(errno);
            let StoreError::Descriptors { limit, .. } = error else { panic!("{error:?}") };
            assert!(error.is_full() && error.lack() == Lack::Descriptors);
            assert!(limit > 10 && limit == descriptors_max());
        }
        assert!(matches!(of_system(Errno::ACCESS), StoreError::Permission(_)));
        for errno in [Errno::IO, Errno::NOENT] {
            let error = of_system(errno);
            assert!(matches!(error, StoreError::Io { .. }) && !error.is_full(), "{error:?}");
        }
        assert!(has_descriptor());
        let texts = [StoreError::sink("a"), StoreError::busy("b")].map(|error| error.to_string());
        assert_eq!(texts, ["sink : a", "sink  takes nothing at the moment: b"]);
    }

    #[test]
    fn what_sqlite_says_is_sorted_by_what_would_mend_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state.db");
        let of = |code| of_sqlite(&path, code);
        assert!(matches!(of(ffi::SQLITE_FULL), StoreError::Full { .. }));
        assert!(matches!(of(ffi::SQLITE_NOTADB), StoreError::Damaged { .. }));
        assert!(matches!(of(ffi::SQLITE_CORRUPT), StoreError::Damaged { .. }));
        assert!(matches!(of(ffi::SQLITE_PERM), StoreError::Permission(_)));
        // There are descriptors, and there is space: neither is the reason.
        assert!(matches!(of(ffi::SQLITE_CANTOPEN), StoreError::Permission(_)));
        assert!(free_bytes(&path).unwrap() > INDEX_BYTES, "or the next is of another kind");
        for code in [ffi::SQLITE_IOERR_WRITE, ffi::SQLITE_IOERR_READ, ffi::SQLITE_IOERR_SHMSIZE] {
            assert!(matches!(of(code), StoreError::Sqlite { .. }), "{code}");
        }
        assert!(matches!(of(ffi::SQLITE_BUSY), StoreError::Sqlite { .. }));
        assert_eq!((INDEX_BYTES, LARGEST_WRITE_BYTES), (1_048_576, 65_536 + 24));
        assert!(wants_space_for_index(INDEX_BYTES - 1) && !wants_space_for_index(INDEX_BYTES));
    }

    #[test]
    fn free_bytes_are_those_of_the_nearest_folder_that_is_there() {
        let folder = tempfile::tempdir().unwrap();
        let figures = rustix::fs::statvfs(folder.path()).unwrap();
        let all = figures.f_blocks * figures.f_frsize;
        let free = free_bytes(&folder.path().join("not/there")).unwrap();
        assert!((2..=all).contains(&free), "{free} of {all}");
    }

    const CHILD: &str = "SKYFILL_TEST_LIMIT";
    const LARGEST_FILE_BYTES: u64 = 1 << 20;

    /// A limit holds for a whole process: one of its own, which runs nothing but the test `name`. Whether this is that one.
    fn is_child(name: &str) -> bool {
        if std::env::var_os(CHILD).is_some() {
            return true;
        }
        let mut child = Command::new(std::env::current_exe().unwrap());
        let name = format!("store::error::tests::{name}");
        let ran = child.args(["--exact", &name]).env(CHILD, "1").output().unwrap();
        let said = String::from_utf8_lossy(&ran.stdout);
        assert!(ran.status.success() && said.contains("1 passed"), "{said}");
        false
    }

    #[test]
    fn what_sqlite_cannot_open_or_do_wants_descriptors_while_there_are_none() {
        if !is_child("what_sqlite_cannot_open_or_do_wants_descriptors_while_there_are_none") {
            return;
        }
        let limit = Rlimit { current: Some(64), maximum: Some(64) };
        setrlimit(Resource::Nofile, limit).unwrap();
        let path = Path::new("/x/state.db");
        let is_for_want = |code| matches!(of_sqlite(path, code), StoreError::Descriptors { .. });
        let codes = [ffi::SQLITE_CANTOPEN, ffi::SQLITE_IOERR_READ];
        assert!(has_descriptor() && !codes.into_iter().any(is_for_want));
        let said = of_system(rustix::io::Errno::MFILE);
        assert!(matches!(said, StoreError::Descriptors { limit: 64, .. }), "{said:?}");
        let taken: Vec<_> = std::iter::from_fn(|| std::fs::File::open("/dev/null").ok()).collect();
        assert!(!has_descriptor() && codes.into_iter().all(is_for_want));
        assert!(matches!(of_sqlite(path, ffi::SQLITE_CORRUPT), StoreError::Damaged { .. }));
        drop(taken);
        assert!(has_descriptor() && !codes.into_iter().any(is_for_want));
    }

    #[test]
    fn a_failed_write_wants_space_where_the_file_is_as_long_as_it_may_be() {
        if !is_child("a_failed_write_wants_space_where_the_file_is_as_long_as_it_may_be") {
            return;
        }
        let limit = Some(LARGEST_FILE_BYTES);
        setrlimit(Resource::Fsize, Rlimit { current: limit, maximum: limit }).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state.db");
        let wal = PathBuf::from(format!("{}-wal", path.display()));
        let last_that_fits = LARGEST_FILE_BYTES - LARGEST_WRITE_BYTES;
        for (database, wal_bytes, wants) in [
            (0, 0, false),
            (last_that_fits, last_that_fits, false),
            (last_that_fits + 1, 0, true),
            (0, last_that_fits + 1, true),
            (LARGEST_FILE_BYTES, 0, true),
        ] {
            std::fs::File::create(&path).unwrap().set_len(database).unwrap();
            std::fs::File::create(&wal).unwrap().set_len(wal_bytes).unwrap();
            let written = of_sqlite(&path, ffi::SQLITE_IOERR_WRITE);
            assert_eq!(written.is_full(), wants, "{database} {wal_bytes}: {written:?}");
            let read = of_sqlite(&path, ffi::SQLITE_IOERR_READ);
            assert!(matches!(read, StoreError::Sqlite { .. }), "{read:?}");
        }
    }
}
