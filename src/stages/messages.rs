//! What stages say to each other: nouns for what a DID has become.
//!
//! ```text
//!  DidJob ─> resolver          FetchJob ─> fetcher ─> FetchedCar ─> parser ─> RowChunk, RowChunk, ... ─> exporter
//!     '── Ticket<News> ──> scheduler <── Ticket<News> ──────────────────────────────────────────────────'
//! ```
//! Every message about a DID carries its ticket, or belongs to an export whose last chunk carries it; a host's permit travels
//! with the job that may ask that host, and comes back when it is dropped.

use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use ractor::{ActorProcessingErr, ActorRef, Message};
use tokio::sync::oneshot;

use crate::actor::backlog::Waiting;
use crate::actor::ticket;
use crate::domain::account::Revision;
use crate::domain::did::Did;
use crate::domain::identity::Identity;
use crate::domain::verdict::{Failure, HostSignal, RateWindow};
use crate::repo::car::Framed;
use crate::store::budget::Reservation;
use crate::store::items::Item;
use crate::store::spool::SpooledCar;

/// A place that work passes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Point<'a> {
    /// A stage takes a message up.
    Stage(&'static str),
    /// A worker of a stage takes this DID up.
    Worker(&'static str, &'a str),
}

/// What becomes of whoever passes a point: anything else than going on is a fault that a test wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It goes on.
    GoOn,
    /// It fails with an error.
    Fail,
    /// It never does anything again.
    Hang,
    /// It ends there, without a word.
    Leave,
}

/// What a probe does at a point.
type See = dyn Fn(Point<'_>) -> Fate + Send + Sync;

/// Sees every place that work passes: tests count, slow down and crash there. Costs one branch a DID or chunk without one.
#[derive(Clone, Default)]
pub struct Probe(Option<Arc<See>>);

impl Probe {
    /// Calls `see` at every point, on the thread that passes it.
    #[must_use]
    pub fn new(see: impl Fn(Point<'_>) + Send + Sync + 'static) -> Self {
        Self::deciding(move |point| {
            see(point);
            Fate::GoOn
        })
    }

    /// Calls `decide` at every point, which says what becomes of whoever passes it.
    #[must_use]
    pub fn deciding(decide: impl Fn(Point<'_>) -> Fate + Send + Sync + 'static) -> Self {
        Self(Some(Arc::new(decide)))
    }

    /// Work on a thread of its own passes `point`: what becomes of it.
    #[must_use]
    pub fn fate(&self, point: Point<'_>) -> Fate {
        self.0.as_ref().map_or(Fate::GoOn, |see| see(point))
    }

    /// An actor passes `point`: whether it ends there, without a word.
    ///
    /// # Errors
    /// The fault that a test wants.
    pub async fn ends_at(&self, point: Point<'_>) -> Result<bool, ActorProcessingErr> {
        match self.fate(point) {
            Fate::GoOn => Ok(false),
            Fate::Fail => Err(format!("a fault at {point:?}").into()),
            Fate::Hang => std::future::pending().await,
            Fate::Leave => Ok(true),
        }
    }

    /// `stage` takes a message up: whether it ends with it, undone; it is then told to stop.
    ///
    /// # Errors
    /// The fault that a test wants.
    pub async fn ends_stage<M: Message>(
        &self,
        stage: &'static str,
        actor: &ActorRef<M>,
    ) -> Result<bool, ActorProcessingErr> {
        let ends = self.ends_at(Point::Stage(stage)).await?;
        if ends {
            actor.stop(None);
        }
        Ok(ends)
    }
}

/// What the scheduler hears about a DID that it sent out.
#[derive(Clone, Debug, PartialEq)]
pub enum News {
    /// First bytes of its body are in hand.
    BodyBegun,
    /// Its identity.
    Resolved(Identity),
    /// It failed.
    Failed(Failure),
    /// It needs spool or journal for itself.
    TooLargeForNow,
    /// Somebody else's trouble: it goes back uncharged.
    GivenBack,
    /// It was led to a host that may not be asked for so long: it goes back uncharged.
    NotBefore(Duration),
    /// Its transfer was one of too many slow ones: it goes back uncharged, and comes later each time.
    Dripped,
    /// Its revision lies in a sealed segment.
    Sealed,
    /// Refreshed: its host has the revision that is held.
    Unchanged,
    /// Refreshed: what is newer cannot be compared, the leaves of what is held are not there.
    WithoutLeaves,
}

/// The right to work on one DID.
pub type Ticket = ticket::Ticket<News>;

/// Whose pace a permit is of.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Paced {
    /// The PLC directory.
    Directory,
    /// The web host of a `did:web`.
    Web(String),
    /// A PDS host, by its row in the ledger.
    Host(i64),
}

/// What a permit tells.
#[derive(Clone, Debug, PartialEq)]
pub enum PermitNews {
    /// What the host said; the permit is still out.
    Said(HostSignal),
    /// One more request is sent under it: the host's next turn comes as much later.
    AlsoAsked,
    /// The permit is back.
    Returned,
}

/// Where permits tell it: called from anywhere, never waits.
pub type PermitDesk = Arc<dyn Fn(&Paced, PermitNews) + Send + Sync>;

/// Answers whether a host may be asked now, or for how long not.
pub type TurnReply = oneshot::Sender<Result<Permit, Duration>>;

/// Where a turn at another host is asked for: called from anywhere, never waits.
pub type TurnDesk = Arc<dyn Fn(String, TurnReply) + Send + Sync>;

/// The name under which a turn at the PLC directory is asked for.
pub const DIRECTORY_TURN: &str = "";

/// A turn that comes within this time is waited for; for a later one the account goes back.
const TURN_WAIT_MAX: Duration = Duration::from_secs(1);

/// Others may take the turn that was waited for; so often it is asked for again.
const TURNS_ASKED_MAX: usize = 5;

/// The right to send one request to a host, with its pace already waited for.
pub struct Permit {
    paced: Paced,
    desk: PermitDesk,
    turns: Option<TurnDesk>,
}

impl Permit {
    /// A permit of `paced` that comes back to `desk`.
    #[must_use]
    pub fn new(paced: Paced, desk: PermitDesk) -> Self {
        Self { paced, desk, turns: None }
    }

    /// The same, which can get a turn at another host.
    #[must_use]
    pub fn with_turns(mut self, turns: TurnDesk) -> Self {
        self.turns = Some(turns);
        self
    }

    /// A turn at the host that a redirect leads to; nothing where nobody gives turns.
    ///
    /// # Errors
    /// How long that host may not be asked.
    async fn turn_at(&self, host: &str) -> Result<Option<Self>, Duration> {
        let Some(turns) = &self.turns else { return Ok(None) };
        for _ in 0..TURNS_ASKED_MAX {
            let (reply, answer) = oneshot::channel();
            turns(host.to_owned(), reply);
            match answer.await {
                Ok(Ok(permit)) => return Ok(Some(permit)),
                Ok(Err(wait)) if wait <= TURN_WAIT_MAX => tokio::time::sleep(wait).await,
                Ok(Err(wait)) => return Err(wait),
                Err(_gone) => break,
            }
        }
        Err(TURN_WAIT_MAX)
    }

    /// Tells what the host said.
    pub fn said(&self, signal: HostSignal) {
        (self.desk)(&self.paced, PermitNews::Said(signal));
    }

    /// Tells that one more request is sent under it.
    pub fn also_asked(&self) {
        (self.desk)(&self.paced, PermitNews::AlsoAsked);
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        (self.desk)(&self.paced, PermitNews::Returned);
    }
}

/// The permits of one request: of the host that was asked, and of the one that its redirects have led to. What is said goes to
/// whoever was asked last.
pub struct Lane<'p> {
    own: &'p Permit,
    elsewhere: Mutex<Option<Permit>>,
}

impl<'p> Lane<'p> {
    /// A request that begins with `own`.
    #[must_use]
    pub fn new(own: &'p Permit) -> Self {
        Self { own, elsewhere: Mutex::new(None) }
    }

    /// Tells what the host said that was asked last.
    pub fn said(&self, signal: HostSignal) {
        let elsewhere = self.elsewhere.lock().unwrap_or_else(PoisonError::into_inner);
        elsewhere.as_ref().unwrap_or(self.own).said(signal);
    }

    /// The host that was asked last redirects to `host`: takes a turn there.
    ///
    /// # Errors
    /// How long that host may not be asked.
    pub async fn lead_to(&self, host: String) -> Result<(), Duration> {
        self.said(HostSignal::Usable(RateWindow::default()));
        let permit = self.own.turn_at(&host).await?;
        if permit.is_some() {
            *self.elsewhere.lock().unwrap_or_else(PoisonError::into_inner) = permit;
        }
        Ok(())
    }
}

/// A DID whose identity is wanted.
pub struct DidJob {
    /// Its ticket.
    pub ticket: Ticket,
    /// The DID.
    pub did: Did,
    /// Its earlier signing keys are wanted too.
    pub wants_earlier_keys: bool,
    /// Permit of the directory or of the DID's web host.
    pub permit: Permit,
}

/// A DID whose repository is wanted.
pub struct FetchJob {
    /// Its ticket.
    pub ticket: Ticket,
    /// What is known about the account.
    pub subject: Subject,
    /// Permit of its host.
    pub permit: Permit,
    /// Ask the host how it is before blaming the account: nobody else is left to tell.
    pub ask_server: bool,
}

/// What a repository must be proven against.
#[derive(Clone, Debug)]
pub struct Subject {
    /// The DID.
    pub did: Did,
    /// Host and key.
    pub identity: Identity,
    /// How often the account was exported before.
    pub edition: u32,
    /// Newest exported revision.
    pub last_rev: Option<String>,
    /// It is refreshed: only what differs from that revision is exported.
    pub refresh: Option<Refresh>,
}

/// What a refresh compares with, beside the revision itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refresh {
    /// Leaves of that revision with a row in a queue; `None`: none were kept.
    pub kept: Option<u64>,
}

/// A repository in hand: every block has the hash of its CID.
pub struct FetchedCar {
    /// Its ticket.
    pub ticket: Ticket,
    /// What it must be proven against.
    pub subject: Subject,
    /// Its bytes.
    pub car: SpooledCar,
    /// What framing found.
    pub framed: Framed,
    /// It waits for a parser.
    pub waiting: Waiting,
}

/// Finished queue items of one export; the last chunk carries the proof.
pub struct RowChunk {
    /// Which export.
    pub export: Arc<Export>,
    /// Number of the chunk within the export, from 0.
    pub sequence: u64,
    /// The items.
    pub items: Vec<Item>,
    /// Their bytes; `None` if there are none.
    pub reservation: Option<Reservation>,
    /// With the last chunk: whose it is, and what was proven.
    pub end: Option<Proven>,
}

/// A proven end of a walk.
pub struct Proven {
    /// The account's ticket.
    pub ticket: Ticket,
    /// What was proven.
    pub revision: Revision,
}

/// One walk's way into the journal. The parser holds it while it walks: when nobody holds it any more and no proof came, the
/// exporter drops what it has of it.
#[derive(Debug, Default)]
pub struct Export {
    /// Unique in this process.
    pub id: u64,
    refused: AtomicU8,
}

/// Why the exporter takes no more of an export.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The exporter was restarted and has lost the beginning.
    Restarted,
    /// The journal has no room for it beside others.
    NoRoom,
    /// It is larger than the journal.
    TooLarge,
}

impl Export {
    /// A new export.
    #[must_use]
    pub fn new(id: u64) -> Arc<Self> {
        Arc::new(Self { id, refused: AtomicU8::new(0) })
    }

    /// Takes no more of it.
    pub fn refuse(&self, why: Refusal) {
        let word = match why {
            Refusal::Restarted => 1,
            Refusal::NoRoom => 2,
            Refusal::TooLarge => 3,
        };
        self.refused.store(word, Ordering::Release);
    }

    /// Whether and why no more is taken.
    #[must_use]
    pub fn refused(&self) -> Option<Refusal> {
        match self.refused.load(Ordering::Acquire) {
            0 => None,
            1 => Some(Refusal::Restarted),
            2 => Some(Refusal::NoRoom),
            _ => Some(Refusal::TooLarge),
        }
    }
}
