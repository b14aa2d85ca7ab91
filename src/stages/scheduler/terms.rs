//! What the plan is told and what it gives: limits, room, time, and work to send out.

use crate::clock::Instant;
use crate::domain::account::AccountId;
use crate::domain::did::Did;
use crate::net::pace::PaceLimits;
use crate::stages::messages::{Paced, Subject};

/// The operator's numbers.
#[derive(Clone, Copy, Debug)]
pub struct PlanLimits {
    /// Pace of each PDS host.
    pub host: PaceLimits,
    /// Pace of the directory.
    pub directory: PaceLimits,
    /// Accounts between lease and seal.
    pub batch_size: usize,
}

/// Free places in the mailboxes right now.
#[derive(Clone, Copy, Debug)]
pub struct Room {
    /// Of the resolver.
    pub resolver: usize,
    /// Of the fetcher.
    pub fetcher: usize,
}

/// Time as the plan sees it.
#[derive(Clone, Copy, Debug)]
pub struct Now {
    /// Monotonic.
    pub at: Instant,
    /// Ledger time, milliseconds.
    pub wall_ms: i64,
}

/// Work to send out, its lease written and its permit taken.
#[derive(Debug)]
pub enum Dispatch {
    /// To the resolver.
    Resolve {
        /// Whose.
        id: AccountId,
        /// The DID.
        did: Did,
        /// Its earlier signing keys are wanted too.
        wants_earlier_keys: bool,
        /// Whose pace the permit is of.
        paced: Paced,
    },
    /// To the fetcher.
    Fetch {
        /// Whose.
        id: AccountId,
        /// What it is to be proven against.
        subject: Subject,
        /// Row of its host.
        host: i64,
        /// Ask the host how it is first.
        ask_server: bool,
    },
}

/// What the batch under way asked for.
#[derive(Debug, Default)]
pub struct Asked {
    /// Accounts of `did:plc` to be resolved.
    pub plc: usize,
    /// Hosts and how many of their accounts.
    pub hosts: Vec<(i64, usize)>,
    /// Those of them whose circuits are probed.
    pub probes: Vec<i64>,
    /// One that runs alone.
    pub alone: bool,
}

/// Where the ledger may have work; set by what happens, cleared by a lease that found less than it asked for.
#[derive(Clone, Copy, Debug)]
pub struct MayHave {
    /// Queued accounts of `did:plc`.
    pub plc: bool,
    /// Queued accounts of `did:web`.
    pub web: bool,
    /// Accounts that run alone.
    pub alone: bool,
}
