//! Why the journal could not take something, and which of its errors are final.

use crate::store::error::StoreError;

/// Why the journal could not take something.
#[derive(Debug)]
pub enum JournalError {
    /// Others use its space now.
    NoRoom,
    /// It is larger than the whole journal.
    TooLarge,
    /// The disk.
    Store(StoreError),
}

impl From<StoreError> for JournalError {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

/// See [`not_full`].
pub(super) fn fatal(error: StoreError) -> JournalError {
    JournalError::Store(not_full(error))
}

/// After a failed sync or rename nothing may be tried again, not even on a full disk.
pub(super) fn not_full(error: StoreError) -> StoreError {
    match error {
        StoreError::Full { path, .. } => {
            StoreError::Io { path, source: std::io::ErrorKind::StorageFull.into() }
        }
        other => other,
    }
}
