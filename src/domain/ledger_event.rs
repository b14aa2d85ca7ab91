//! What happens to an account, and what follows for those who schedule: the vocabulary of `domain::ledger`.

use crate::domain::identity::Identity;
use crate::domain::verdict::{Failure, LastError, Reason};

/// What an export of the directory says of an account.
#[derive(Clone, Debug, PartialEq)]
pub struct Told {
    /// Who it is; `None`: it is tombstoned.
    pub identity: Option<Identity>,
    /// Ledger time up to which the export is complete, milliseconds.
    pub as_of_ms: i64,
}

/// What happens to an account.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// The resolver gets it.
    LeasedToResolve,
    /// The fetcher gets it; nothing else is in flight if `alone`. An identity that outlived the cache sends it back to
    /// [`crate::domain::ledger::State::Queued`] instead.
    LeasedToFetch {
        /// Nothing else is in flight.
        alone: bool,
    },
    /// The directory answered.
    Resolved(Identity),
    /// An export of the directory says so.
    Told(Told),
    /// First bytes of its body are in hand.
    BodyBegun,
    /// A revision of it lies in a sealed segment that was applied.
    Exported,
    /// Its work failed.
    Failed {
        /// How.
        failure: Failure,
        /// When its host last gave a usable answer, ledger time; `None`: never, or not in this process.
        host_usable_ms: Option<i64>,
    },
    /// Its ticket was dropped.
    Lost {
        /// By its own worker's crash.
        crashed: bool,
    },
    /// Given back because the pipeline stops.
    GivenBack,
    /// Given back because whoever it needs may not be asked before this ledger time, milliseconds.
    NotBefore(i64),
    /// Given back because it needs spool or journal for itself.
    TooLargeForNow,
    /// The process died while it was leased.
    ProcessDied,
    /// Its retry time has come.
    Due,
    /// Host or directory were silent for as long as the operator's patience; for an account that was asked for meanwhile,
    /// this stands for its failure.
    PatienceEnded {
        /// `host_unavailable` or `directory_unavailable`.
        reason: Reason,
        /// What the host or directory did last.
        last_error: Option<LastError>,
        /// Evidence of this account's own last failure; empty: as it was.
        detail: String,
    },
    /// The operator puts it back.
    Retry,
    /// It is done and shall be exported again, under another filter.
    Again,
    /// The operator orders that nothing of it is kept, and that it is never fetched again.
    Forget,
    /// It is done and shall be compared with what its host has now.
    Refresh,
    /// Its host has no other revision than the one that is held.
    Unchanged,
    /// A newer revision cannot be compared: the leaves of the one that is held are not there.
    WithoutLeaves,
    /// A refresh that was begun under another filter is not gone on with.
    RefreshDropped,
}

/// What follows from an event for those who schedule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// The event did not fit the state.
    Nothing,
    /// It was taken up, or went on.
    Moved,
    /// It can be worked on at once.
    Available,
    /// It can be worked on at this ledger time, milliseconds.
    WakeAt(i64),
    /// It is decided.
    Decided,
}
