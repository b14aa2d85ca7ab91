//! What ends a backfill that a program started, by kind: what its caller can do about it.

use std::path::PathBuf;
use std::sync::Arc;

use crate::commands::error::CommandError;
use crate::library::report::Report;
use crate::pipeline::StartError;
use crate::store::error::StoreError;

/// Why a backfill gave no result. Nothing that was decided is lost: the same call goes on where this one was.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The call makes no sense: an empty list, a batch size of none.
    #[error("{0}")]
    Usage(String),
    /// A setting, a list, or what the data directory holds; every problem that was found, one a line.
    #[error("{0}")]
    Configuration(String),
    /// Given accounts are done under other record types or another window: choose another data directory, or
    /// [`crate::Backfill::refilter`].
    #[error("{accounts} of these accounts were exported with other record types or another window")]
    OtherFilter {
        /// How many.
        accounts: u64,
    },
    /// Another process, or another instance in this one, works in the data directory.
    #[error("{path} is in use by process {pid}")]
    Locked {
        /// The lock file.
        path: PathBuf,
        /// Who holds it.
        pid: String,
    },
    /// The system does not permit it.
    #[error("{0}")]
    Permission(String),
    /// The disk or a file in the data directory.
    #[error("{0}")]
    Io(#[source] Arc<StoreError>),
    /// A sink failed.
    #[error("sink {name}: {text}")]
    Sink {
        /// Its name.
        name: String,
        /// What it said.
        text: String,
    },
    /// It was cancelled before everything was decided; the report says how far it came.
    #[error("cancelled; {} of {} accounts were decided", .0.accounts.decided(), .0.accounts.total())]
    Cancelled(Box<Report>),
    /// A part of skyfill crashed, too often or where it must not.
    #[error("{0}")]
    Crashed(String),
}

/// The kinds of [`Error`], for a match that needs no contents.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// [`Error::Usage`].
    Usage,
    /// [`Error::Configuration`] and [`Error::OtherFilter`].
    Configuration,
    /// [`Error::Locked`].
    Locked,
    /// [`Error::Permission`].
    Permission,
    /// [`Error::Io`].
    Io,
    /// [`Error::Sink`].
    Sink,
    /// [`Error::Cancelled`].
    Cancelled,
    /// [`Error::Crashed`].
    Crashed,
}

impl Error {
    /// Its kind.
    #[must_use]
    pub const fn kind(&self) -> ErrorKind {
        match self {
            Self::Usage(_) => ErrorKind::Usage,
            Self::Configuration(_) | Self::OtherFilter { .. } => ErrorKind::Configuration,
            Self::Locked { .. } => ErrorKind::Locked,
            Self::Permission(_) => ErrorKind::Permission,
            Self::Io(_) => ErrorKind::Io,
            Self::Sink { .. } => ErrorKind::Sink,
            Self::Cancelled(_) => ErrorKind::Cancelled,
            Self::Crashed(_) => ErrorKind::Crashed,
        }
    }

    fn store(error: Arc<StoreError>) -> Self {
        match error.as_ref() {
            StoreError::Config(text) => Self::Configuration(text.clone()),
            StoreError::Permission(text) => Self::Permission(text.clone()),
            StoreError::Held { path, pid } => Self::Locked { path: path.clone(), pid: pid.clone() },
            StoreError::Sink { name, source } | StoreError::Busy { name, source } => {
                Self::Sink { name: name.clone(), text: source.to_string() }
            }
            StoreError::Crashed { .. } => Self::Crashed(error.to_string()),
            StoreError::Full { .. }
            | StoreError::Descriptors { .. }
            | StoreError::Io { .. }
            | StoreError::Damaged { .. }
            | StoreError::Sqlite { .. } => Self::Io(error),
        }
    }
}

impl From<StoreError> for Error {
    fn from(error: StoreError) -> Self {
        Self::store(Arc::new(error))
    }
}

impl From<CommandError> for Error {
    fn from(error: CommandError) -> Self {
        let text = error.to_string();
        match error {
            CommandError::Usage(text) => Self::Usage(text),
            CommandError::Config(error) if error.is_permission() => Self::Permission(text),
            CommandError::Targets(error) if error.is_permission() => Self::Permission(text),
            CommandError::Config(_) | CommandError::Targets(_) => Self::Configuration(text),
            CommandError::Filter { accounts } => Self::OtherFilter { accounts },
            CommandError::Store(error) | CommandError::Start(StartError::Store(error)) => {
                error.into()
            }
            CommandError::Failed(error) | CommandError::Start(StartError::Failed(error)) => {
                Self::store(error)
            }
            _ => Self::Crashed(text),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_failure_finds_its_kind() {
        let kind = |error: StoreError| Error::from(error).kind();
        let path = PathBuf::from("lock");
        assert_eq!(kind(StoreError::Held { path, pid: "1".to_owned() }), ErrorKind::Locked);
        assert_eq!(kind(StoreError::Config(String::new())), ErrorKind::Configuration);
        assert_eq!(kind(StoreError::Permission(String::new())), ErrorKind::Permission);
        assert_eq!(kind(StoreError::sink("x")), ErrorKind::Sink);
        let damaged = || StoreError::Damaged { path: "x".into(), what: String::new() };
        assert_eq!(kind(damaged()), ErrorKind::Io);
        let failed = CommandError::Failed(Arc::new(damaged()));
        assert_eq!(Error::from(failed).kind(), ErrorKind::Io);
        assert_eq!(Error::from(CommandError::RestartStorm("x")).kind(), ErrorKind::Crashed);
        let filter = CommandError::Filter { accounts: 3 };
        assert!(matches!(Error::from(filter), Error::OtherFilter { accounts: 3 }));
    }
}
