//! What travels between the stages: nouns for what a DID's data has become.
//!
//! ```text
//!  scheduler -DidJob-> resolver        scheduler -FetchJob-> fetcher -FetchedCar-> parser -RowChunk, ProvenRepo-> exporter
//!      ^---------- Outcome (through the ticket, from every stage) -----------------------------------------'
//! ```

use crate::actor::ticket;
use crate::domain::did::Did;
use crate::domain::identity::Identity;
use crate::domain::verdict::{Failure, HostSignal};

/// The right to work on one DID; it comes back to the scheduler.
pub type Ticket = ticket::Ticket<Outcome>;

/// Where tickets come back to: the scheduler's own mailbox.
pub type Desk = ticket::Desk<Outcome>;

/// What became of a ticket.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    /// Resolver, final: the identity, found just now.
    Resolved(Identity),
    /// Fetcher, on the way: the first bytes of the body are in hand; a death of the process is now this DID's matter.
    BodyBegun,
    /// Fetcher, on the way: the transfer is over and the host's permit is free.
    Transferred(HostSignal),
    /// Exporter, final: the revision lies in a sealed segment; the journal tells the ledger.
    Sealed,
    /// Any stage, final: the work failed. If the host's permit was still out, it is free.
    Failed(Failure, HostSignal),
    /// Any stage, final: given back uncharged, because of drain or because spool or journal have no room for it now.
    GivenBack(GivenBack),
}

/// Why a DID comes back uncharged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GivenBack {
    /// The pipeline stops.
    Drain,
    /// Spool or journal have no room for this large account now; it is run again alone.
    TooLargeForNow,
}

/// A DID to resolve.
#[derive(Debug)]
pub struct DidJob {
    /// Comes back with [`Outcome::Resolved`] or [`Outcome::Failed`].
    pub ticket: Ticket,
    /// The DID.
    pub did: Did,
}

/// A repository to fetch; the permit of its host is in hand.
#[derive(Debug)]
pub struct FetchJob {
    /// Comes back through fetcher, parser and exporter.
    pub ticket: Ticket,
    /// The account's DID.
    pub did: Did,
    /// Where it is, and which key signs for it.
    pub identity: Identity,
    /// How often the account was exported before.
    pub edition: u32,
    /// The newest revision ever exported or seen, if any: an older one is stale.
    pub held_rev: Option<String>,
    /// Whether nothing else is in flight and it may use the whole spool and journal.
    pub alone: bool,
}
