//! What can end a command, with its exit code. Every text says what, where and what to do.

use std::sync::Arc;

use crate::config::file::ConfigError;
use crate::config::targets::TargetError;
use crate::exit_code::ExitCode;
use crate::ops::http::ListenError;
use crate::pipeline::StartError;
use crate::reload::ReloadError;
use crate::store::error::StoreError;

/// Why a command ended early.
#[derive(Debug, thiserror::Error)]
pub enum CommandError {
    /// The arguments do not make sense together.
    #[error("{0}")]
    Usage(String),
    /// The configuration.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A DID list.
    #[error(transparent)]
    Targets(#[from] TargetError),
    /// The data directory.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The data directory, while the pipeline ran.
    #[error("{0}")]
    Failed(Arc<StoreError>),
    /// The pipeline did not start.
    #[error(transparent)]
    Start(#[from] StartError),
    /// Listed accounts are done under another filter.
    #[error(
        "{accounts} of these accounts were exported with other records.types, another [window] or other pseudonyms: use another --data-dir, \
         or --refilter to export them again (their rows will then be in the queues twice)"
    )]
    Filter {
        /// How many.
        accounts: u64,
    },
    /// Listed accounts cannot be refreshed.
    #[error(
        "{accounts} of these accounts were exported without leaves (by an older skyfill, or with refresh.leaves = false), so nothing \
         tells what is new in them: leave them out, or add --refilter to export them again whole (their rows will then be in the \
         queues twice)"
    )]
    WithoutLeaves {
        /// How many.
        accounts: u64,
    },
    /// The address for metrics cannot be taken.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// The lists of `run` cannot be used.
    #[error(transparent)]
    Reload(#[from] ReloadError),
    /// The daemon does not answer.
    #[error("{0}: it may be busy or stopped; look at its log")]
    Unreachable(String),
    /// A stage died too often.
    #[error(
        "the {0} stage crashed too often within a minute, see the log; nothing is lost, run the command again"
    )]
    RestartStorm(&'static str),
    /// Something that should not happen.
    #[error("{0}")]
    Internal(String),
}

impl CommandError {
    /// The exit code for it.
    #[must_use]
    pub fn exit_code(&self) -> ExitCode {
        match self {
            Self::Usage(_) => ExitCode::Usage,
            Self::Config(error) => ExitCode::from(error),
            Self::Targets(error) => ExitCode::from(error),
            Self::Store(error) | Self::Start(StartError::Store(error)) => ExitCode::from(error),
            Self::Failed(error) | Self::Start(StartError::Failed(error)) => {
                ExitCode::from(error.as_ref())
            }
            Self::Listen(error) => ExitCode::from(error),
            Self::Reload(error) => of_reload(error),
            Self::Unreachable(_) => ExitCode::Unreachable,
            Self::Filter { .. } | Self::WithoutLeaves { .. } => ExitCode::Config,
            Self::Start(_) | Self::RestartStorm(_) | Self::Internal(_) => ExitCode::Failed,
        }
    }
}

fn of_reload(error: &ReloadError) -> ExitCode {
    match error {
        ReloadError::Config(error) => ExitCode::from(error),
        ReloadError::Targets(error) => ExitCode::from(error),
        ReloadError::Store(error) => ExitCode::from(error),
        ReloadError::Fixed(_)
        | ReloadError::Emptied(_)
        | ReloadError::Empty
        | ReloadError::Filter { .. } => ExitCode::Config,
        ReloadError::Gone(_) => ExitCode::Io,
        ReloadError::Crashed(_) => ExitCode::Failed,
    }
}
