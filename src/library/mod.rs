//! The library's public part: what a program calls. Everything here is re-exported at the crate's root.
//!
//! ```text
//!  builder   what is to be done        running   while it is done, and its end        events   what happens meanwhile
//!  report    what came of it           error     what went wrong, by kind
//! ```
//! A run lives on threads of its own and leaves its process alone: no signal handler, no logger, no metrics recorder, no default
//! TLS provider, nothing printed, no environment and no directory changed. What it logs goes through `tracing` and what it
//! counts through `metrics`, to whatever the program has set up, or to nobody.

mod builder;
mod error;
mod events;
mod report;
mod running;

pub use builder::Backfill;
pub use error::{Error, ErrorKind};
pub use events::{Event, Events, Progress};
pub use report::{Accounts, BatchedBackfill, Counts, Parked, Report, ThisRun, User};
pub use running::{Handle, Running, SinkState};

/// Backfills `dids` into `./skyfill-data` and gives back what the Python service's function of this name did. Blocks until every
/// account is done or parked.
///
/// `batch_size` bounds the accounts between lease and seal; `start` and `end` are the study's window, UTC, as
/// `YYYY-MM-DD-HH:MM:SS` (`None`: the configuration's default). For everything else there is [`Backfill::run_batched`].
///
/// # Errors
/// [`Error`].
///
/// # Examples
/// An account that cannot be one is parked and named; this asks nobody:
///
/// ```standalone_crate
/// # let folder = tempfile::tempdir()?;
/// # std::env::set_current_dir(folder.path())?;
/// let done = skyfill::run_batched_backfill(["did:plc:TYPO"], 50, None, None)?;
/// assert_eq!((done.total_batches, done.total_users, done.total_processed_users), (1, 1, 0));
/// assert_eq!(done.parked[0].reason, "did_invalid");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn run_batched_backfill<D: Into<String>>(
    dids: impl IntoIterator<Item = D>,
    batch_size: u64,
    start: Option<&str>,
    end: Option<&str>,
) -> Result<BatchedBackfill, Error> {
    Backfill::new().run_batched(dids, batch_size, start, end)
}

/// [`run_batched_backfill`] for async code: it runs on threads of its own, under any runtime, and blocks none. Dropped before its
/// end, the future cancels the run; what was decided stays, and the same call goes on.
///
/// # Errors
/// [`Error`].
///
/// # Examples
/// ```standalone_crate
/// # let folder = tempfile::tempdir()?;
/// # std::env::set_current_dir(folder.path())?;
/// # tokio::runtime::Builder::new_current_thread().build()?.block_on(async {
/// let window = (Some("2024-09-27-00:00:00"), Some("2024-12-02-00:00:00"));
/// let done = skyfill::run_batched_backfill_async(["did:plc:TYPO"], 50, window.0, window.1).await?;
/// assert_eq!(done.parked[0].reason, "did_invalid");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// # })?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub async fn run_batched_backfill_async<D: Into<String>>(
    dids: impl IntoIterator<Item = D>,
    batch_size: u64,
    start: Option<&str>,
    end: Option<&str>,
) -> Result<BatchedBackfill, Error> {
    Backfill::new().run_batched_async(dids, batch_size, start, end).await
}
