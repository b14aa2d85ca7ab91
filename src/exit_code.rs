//! Exit codes: the one table from what went wrong to what the shell and systemd see (DESIGN section 7).
//!
//! Unknown codes mean failure. 2 and 78 are what a service manager should not try again.

use crate::config::file::ConfigError;
use crate::config::targets::TargetError;
use crate::ops::http::ListenError;
use crate::store::error::StoreError;

/// How the process ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum ExitCode {
    /// All done.
    Done = 0,
    /// Failed; for `verify`: they disagree.
    Failed = 1,
    /// The command line is wrong, or a list is empty.
    Usage = 2,
    /// Finished, but some given accounts are parked.
    SomeParked = 3,
    /// The daemon does not answer.
    Unreachable = 69,
    /// Disk or file trouble.
    Io = 74,
    /// Another process holds the data directory.
    Held = 75,
    /// Not permitted.
    Permission = 77,
    /// The configuration, or what it names, cannot be used.
    Config = 78,
    /// `backfill` was interrupted; its summary was still printed.
    Interrupted = 130,
}

impl ExitCode {
    /// Every code, in order.
    pub const ALL: [Self; 10] = [
        Self::Done,
        Self::Failed,
        Self::Usage,
        Self::SomeParked,
        Self::Unreachable,
        Self::Io,
        Self::Held,
        Self::Permission,
        Self::Config,
        Self::Interrupted,
    ];

    /// The number.
    #[must_use]
    pub const fn code(self) -> u8 {
        self as u8
    }

    /// What it means, for `--help` and the man page.
    #[must_use]
    pub const fn meaning(self) -> &'static str {
        match self {
            Self::Done => "every given account is done",
            Self::Failed => "failed; verify: they disagree",
            Self::Usage => "usage",
            Self::SomeParked => "finished, but some of the given accounts are parked",
            Self::Unreachable => "the daemon does not answer",
            Self::Io => "disk or file trouble",
            Self::Held => "another process holds the data directory (its pid is named)",
            Self::Permission => "permission",
            Self::Config => "configuration",
            Self::Interrupted => "interrupted; the summary is still printed",
        }
    }
}

impl From<ExitCode> for std::process::ExitCode {
    fn from(code: ExitCode) -> Self {
        Self::from(code.code())
    }
}

impl From<&StoreError> for ExitCode {
    fn from(error: &StoreError) -> Self {
        match error {
            StoreError::Held { .. } => Self::Held,
            StoreError::Permission(_) => Self::Permission,
            StoreError::Config(_) => Self::Config,
            StoreError::Crashed { .. } => Self::Failed,
            StoreError::Full { .. }
            | StoreError::Descriptors { .. }
            | StoreError::Io { .. }
            | StoreError::Damaged { .. }
            | StoreError::Sqlite { .. }
            | StoreError::Sink { .. }
            | StoreError::Busy { .. } => Self::Io,
        }
    }
}

impl From<&ConfigError> for ExitCode {
    fn from(error: &ConfigError) -> Self {
        if error.is_permission() { Self::Permission } else { Self::Config }
    }
}

impl From<&TargetError> for ExitCode {
    fn from(error: &TargetError) -> Self {
        match error {
            error if error.is_permission() => Self::Permission,
            error if error.is_io() => Self::Io,
            _ => Self::Config,
        }
    }
}

impl From<&ListenError> for ExitCode {
    fn from(error: &ListenError) -> Self {
        if error.is_permission() { Self::Permission } else { Self::Config }
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::path::PathBuf;

    use super::*;

    #[test]
    fn the_table_is_the_design_s() {
        let numbers = ExitCode::ALL.map(ExitCode::code);
        assert_eq!(numbers, [0, 1, 2, 3, 69, 74, 75, 77, 78, 130]);
    }

    #[test]
    fn errors_find_their_code() {
        let path = PathBuf::from("x");
        let store = |error: StoreError| ExitCode::from(&error);
        assert_eq!(store(StoreError::Held { path: path.clone(), pid: "1".into() }), ExitCode::Held);
        assert_eq!(store(StoreError::Permission(String::new())), ExitCode::Permission);
        assert_eq!(store(StoreError::Config(String::new())), ExitCode::Config);
        assert_eq!(store(StoreError::Full { path: path.clone(), free_bytes: 0 }), ExitCode::Io);
        let unreadable = |kind: io::ErrorKind| io::Error::from(kind);
        let config = |kind| {
            let source = unreadable(kind);
            ExitCode::from(&ConfigError::Unreadable { path: path.clone(), source })
        };
        assert_eq!(config(io::ErrorKind::PermissionDenied), ExitCode::Permission);
        assert_eq!(config(io::ErrorKind::NotFound), ExitCode::Config);
        let list = |kind| {
            let source = unreadable(kind);
            ExitCode::from(&TargetError::Unreadable { name: "x".into(), source })
        };
        assert_eq!(list(io::ErrorKind::PermissionDenied), ExitCode::Permission);
        assert_eq!(list(io::ErrorKind::NotFound), ExitCode::Config);
        assert_eq!(list(io::ErrorKind::Other), ExitCode::Io);
        let listen = |kind| {
            let (address, source) = (([127, 0, 0, 1], 9464).into(), unreadable(kind));
            ExitCode::from(&ListenError { address, source })
        };
        assert_eq!(listen(io::ErrorKind::AddrInUse), ExitCode::Config);
        assert_eq!(listen(io::ErrorKind::PermissionDenied), ExitCode::Permission);
    }
}
