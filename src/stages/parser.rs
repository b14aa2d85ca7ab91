//! Parser: proves a repository and turns its records into rows.
//!
//! takes    FetchedCar     capacity 2 a thread: one being walked, one waiting
//! gives    RowChunk       to the exporter, the last one with the proof
//! retries  incomplete transfers, older revisions; wrong hash, tree, DID or signature once more with a fresh identity
//! gives up on repositories that can never fit their budget
//! refresh  a revision that is not the one held is compared with the leaves of that one; only what differs becomes rows
//!
//! Walks are CPU work: they run on threads of their own, one a core, never on the async workers. A worker actor a DID waits
//! for the walk's memory and for a thread; if it is stopped, the walk sees its cancel flag within 1,024 records. A panic on a
//! thread costs the DID in hand one attempt and leaves the thread alive; a walk that is silent for too long costs the same, and its
//! thread is replaced: the memory it holds is lost until it returns.

mod output;

use std::sync::Arc;
use std::time::Duration;

use ractor::{Actor, ActorProcessingErr, ActorRef, SupervisionEvent};
use tokio::runtime::Handle;
use tokio::sync::{Semaphore, oneshot};

use crate::actor::hold::{CancelOnDrop, Hold, Watched};
use crate::actor::mailbox::{Envelope, Mailbox, Slot, Told};
use crate::actor::threads::{After, Threads};
use crate::actor::worker::{note_worker_event, spawn_worker};
use crate::clock::Clock;
use crate::domain::account::{Refreshed, Revision};
use crate::domain::verdict::{Cause, Failure, Reason};
use crate::limits::ROW_CHUNK_BYTES;
use crate::repo::Source;
use crate::repo::car::Framed;
use crate::repo::error::RepoError;
use crate::repo::pages::PAGES_BYTES;
use crate::repo::walk::{Expected, Walk, index_bytes};
use crate::sink::leaves::{LEAVES_FILE, LeavesError, LeavesReader, StoredParts};
use crate::stages::messages::{
    Fate, FetchedCar, News, Point, Probe, Refusal, RowChunk, Subject, Ticket,
};
use crate::store::apply::Applier;
use crate::store::budget::Budget;
use crate::store::error::StoreError;
use crate::store::health::Health;
use crate::store::leaves::Comparison;
use crate::store::spool::SpooledCar;
use crate::transform::Transformer;

use self::output::{Output, words};

/// Repositories in the mailbox for each thread: one in work, one that is ready when it ends.
pub const CAPACITY_PER_THREAD: usize = 2;

/// A walk that wants more than this share of the walks budget has a lane of its own, so that two of them never wait for each
/// other.
const OVERSIZED_SHARE: u64 = 4;

/// A walk's pulse beats once for so many records: far more often than anybody looks, and too seldom to cost anything.
const BEAT_EVERY_RECORDS: u64 = 256;

/// Bytes reserved for a chunk before it is filled: its full size and the longest row of an ordinary record.
pub const CHUNK_RESERVED_BYTES: u64 = (ROW_CHUNK_BYTES + (256 << 10)) as u64;

/// Of the rows budget, what the chunks of all threads may hold, and what one long row may ask for. The exporter holds at most
/// half, so a quarter is always about to become free and nobody waits for ever.
pub const ROWS_SHARE: u64 = 4;

/// What all parsers share.
pub struct Tools {
    /// Decides and writes rows; replaced as a whole by a reload.
    pub transformer: Arc<Transformer>,
    /// Records in one queue item.
    pub rows_per_item: u32,
    /// Memory of block indexes.
    pub walks: Budget,
    /// Memory of rows.
    pub rows: Budget,
    /// Where chunks go.
    pub exporter: Mailbox<RowChunk>,
    /// Time, for when a proof was complete.
    pub clock: Clock,
    /// Sees what passes.
    pub probe: Probe,
    /// A walk that is silent for this long hangs.
    pub patience: Duration,
    /// What is kept of each revision.
    pub leaves: Leaves,
    /// Trouble with the disk.
    pub health: Health,
}

/// What is kept of each revision, to compare the next one with.
pub struct Leaves {
    /// `refresh.leaves`.
    pub are_kept: bool,
    /// Where they are.
    pub reader: LeavesReader,
    /// Who brings them there.
    pub applier: Applier,
    /// The last segment that was sealed before this process: the ledger knows its accounts, the leaves file may not yet.
    pub recovered: u64,
}

impl Leaves {
    /// Waits until what an earlier process sealed has come to the leaves file.
    async fn ready(&self) {
        self.applier.applied(self.recovered).await;
    }
}

/// What the stage is started with.
#[derive(Clone)]
pub struct Arguments {
    /// Its mailbox, bound at each start.
    pub mailbox: Mailbox<FetchedCar>,
    /// What walks need.
    pub tools: Arc<Tools>,
    /// Its threads, which outlive it.
    pub threads: Threads,
}

/// The parser.
pub struct Parser;

/// What the stage remembers.
pub struct State {
    tools: Arc<Tools>,
    threads: Threads,
    oversized: Arc<Semaphore>,
}

impl Actor for Parser {
    type Msg = Told<FetchedCar>;
    type State = State;
    type Arguments = Arguments;

    async fn pre_start(
        &self,
        myself: ActorRef<Self::Msg>,
        arguments: Arguments,
    ) -> Result<State, ActorProcessingErr> {
        arguments.mailbox.bind_stage(myself);
        let Arguments { tools, threads, .. } = arguments;
        Ok(State { tools, threads, oversized: Arc::new(Semaphore::new(1)) })
    }

    async fn handle(
        &self,
        myself: ActorRef<Self::Msg>,
        told: Self::Msg,
        state: &mut State,
    ) -> Result<(), ActorProcessingErr> {
        let Some(Envelope { message, slot }) = told.work() else { return Ok(()) };
        let (tools, threads) = (Arc::clone(&state.tools), state.threads.clone());
        if tools.probe.ends_stage("parser", &myself).await? {
            return Ok(());
        }
        let oversized = Arc::clone(&state.oversized);
        let work = async move { walk_one(message, slot, tools, threads, oversized).await };
        // It watches over its walk itself.
        Ok(spawn_worker(myself.get_cell(), None, work).await?)
    }

    async fn handle_supervisor_evt(
        &self,
        _myself: ActorRef<Self::Msg>,
        event: SupervisionEvent,
        _state: &mut State,
    ) -> Result<(), ActorProcessingErr> {
        note_worker_event("parser", &event);
        Ok(())
    }
}

/// One DID's worker: memory first, then a thread.
async fn walk_one(
    fetched: FetchedCar,
    slot: Slot,
    tools: Arc<Tools>,
    threads: Threads,
    oversized: Arc<Semaphore>,
) -> Result<(), ActorProcessingErr> {
    drop(fetched.waiting);
    let unloaded = fetched.car.unloaded_bytes();
    if fetched.subject.refresh.is_some() {
        tools.leaves.ready().await;
    }
    let pages = if unloaded == 0 { 0 } else { PAGES_BYTES };
    let bytes = index_bytes(fetched.framed.blocks) + pages;
    let is_oversized = bytes > tools.walks.limit() / OVERSIZED_SHARE;
    let _lane = if is_oversized { oversized.acquire().await.ok() } else { None };
    let Ok(index) = tools.walks.take(bytes).await else {
        let detail = format!(
            "its block index needs {bytes} bytes, limits.memory gives walks {}",
            tools.walks.limit()
        );
        let cause = Cause::Terminal(Reason::RepoTooLarge);
        fetched.ticket.finish(News::Failed(Failure::new(cause, None, detail)));
        return Ok(());
    };
    let loaded = if may_be_loaded(unloaded, tools.walks.limit()) {
        tools.walks.try_take(unloaded)
    } else {
        None
    };
    let FetchedCar { mut ticket, subject, mut car, framed, .. } = fetched;
    ticket.enter();
    let (hold, watched) = (Hold::new(ticket, slot), Arc::new(Watched::default()));
    let _cancel = CancelOnDrop(Arc::clone(&watched));
    // Until a thread is free.
    watched.pulse.set_resting(true);
    let (held, seen, runtime, patience) =
        (hold.clone(), Arc::clone(&watched), Handle::current(), tools.patience);
    let (done, walked) = oneshot::channel();
    threads.run(move || {
        let (_index, memory) = (index, loaded);
        seen.pulse.set_resting(false);
        let loaded = memory.as_ref().map_or(Ok(()), |_| car.load().map_err(Into::into));
        let ran = match loaded {
            Ok(()) => run(&held, (&subject, car, &framed), &tools, &seen, &runtime),
            Err(error) => {
                Ok(held.end(|ticket| ticket.finish(Ended::Repo(error).news(&tools.health))))
            }
        };
        let after = *ran.as_ref().unwrap_or(&After::Next);
        // The worker may have been stopped meanwhile: then nobody listens.
        let _unheard = done.send(ran.map(drop));
        after
    });
    tokio::select! {
        walked = walked => {
            // Whoever leaves the ticket behind crashed; who dropped the channel as well unwound, and that is counted.
            let is_lost = hold.end(Ticket::crashed) == After::Next;
            match walked {
                Ok(Ok(())) if is_lost => Err("its walk ended without a word".into()),
                Ok(ran) => ran,
                Err(_unwound) => Ok(()),
            }
        }
        () = watched.pulse.silent(patience) => {
            hold.give_up(&threads);
            Ok(())
        }
    }
}

/// Whether a repository on disk is read into memory for its walk, if so much of the walks budget is free just then: what is left is
/// enough for any walk without a lane of its own. Others are read page by page.
const fn may_be_loaded(unloaded: u64, limit: u64) -> bool {
    unloaded > 0 && unloaded <= limit - limit / OVERSIZED_SHARE
}

/// On a thread: walks, and ends the ticket.
fn run(
    hold: &Hold<News>,
    (subject, car, framed): (&Subject, SpooledCar, &Framed),
    tools: &Tools,
    watched: &Watched,
    runtime: &Handle,
) -> Result<After, ActorProcessingErr> {
    match tools.probe.fate(Point::Worker("parser", subject.did.as_str())) {
        Fate::GoOn | Fate::Hang => {}
        Fate::Fail => return Err("a fault in a walk".into()),
        Fate::Leave => return Ok(After::Next),
    }
    let output = Output::new(tools, runtime, watched);
    let (key, earlier_keys) = (Some(subject.identity.key.as_str()), &subject.identity.earlier_keys);
    let expected = Expected { did: Some(&subject.did), key, earlier_keys };
    let ended = Walk::open(&car, framed, &expected, &watched.is_cancelled)
        .map_err(Ended::Repo)
        .and_then(|walk| export_all(walk, output, subject, car.len()));
    drop(car);
    Ok(hold.end(|ticket| match ended {
        Ok((output, revision)) => output.finish(ticket, revision),
        Err(ended) => ticket.finish(ended.news(&tools.health)),
    }))
}

/// Why a walk ended early.
enum Ended {
    Repo(RepoError),
    Stale {
        found: String,
        held: String,
    },
    Refused(Refusal),
    /// The pipeline stops.
    Stopped,
    /// It is the revision that is held.
    Unchanged,
    /// There is nothing to compare it with.
    WithoutLeaves,
    /// The leaves file cannot be read.
    Disk(StoreError),
}

impl From<LeavesError> for Ended {
    fn from(error: LeavesError) -> Self {
        match error {
            LeavesError::Store(error) => Self::Disk(error),
            LeavesError::Gone => Self::WithoutLeaves,
            LeavesError::Unreadable(error) => {
                let path = std::path::PathBuf::from(LEAVES_FILE);
                Self::Disk(StoreError::Damaged { path, what: error.to_string() })
            }
        }
    }
}

impl Ended {
    fn news(self, health: &Health) -> News {
        match self {
            Self::Unchanged => News::Unchanged,
            Self::WithoutLeaves => News::WithoutLeaves,
            // As with every failure of the disk the process ends, and nobody is blamed.
            Self::Disk(error) => {
                health.fail(error);
                News::GivenBack
            }
            Self::Repo(RepoError::Cancelled) | Self::Stopped => News::GivenBack,
            Self::Repo(error) => {
                let (cause, last_error) = (error.cause(), error.last_error());
                News::Failed(Failure::new(cause, last_error, error.to_string()))
            }
            Self::Stale { found, held } => {
                let detail =
                    format!("the host serves revision {found}, {held} was exported before");
                News::Failed(Failure::new(Cause::Stale, None, detail))
            }
            Self::Refused(Refusal::Restarted) => News::GivenBack,
            Self::Refused(Refusal::NoRoom) => News::TooLargeForNow,
            Self::Refused(Refusal::TooLarge) => {
                let detail = "its rows are larger than limits.journal";
                News::Failed(Failure::new(Cause::Terminal(Reason::RepoTooLarge), None, detail))
            }
        }
    }
}

fn export_all<'o>(
    mut walk: Walk<'_>,
    mut output: Output<'o>,
    subject: &Subject,
    repo_bytes: u64,
) -> Result<(Output<'o>, Revision), Ended> {
    let commit = walk.commit().clone();
    let (rev, commit_cid) = (commit.rev, commit.cid.to_string());
    if let Some(held) = subject.last_rev.clone().filter(|held| rev < *held) {
        return Err(Ended::Stale { found: rev, held });
    }
    let origin = output.tools.transformer.origin(subject.did.as_str(), &rev);
    if subject.refresh.is_some() {
        let previous_rev = subject.last_rev.clone().unwrap_or_default();
        if previous_rev == rev {
            return Err(Ended::Unchanged);
        }
        let comparison = held_leaves(output.tools, subject)?.ok_or(Ended::WithoutLeaves)?;
        output.compare_with(Comparison::new(comparison), (origin.did(), &rev, &previous_rev));
    }
    while let Some(leaf) = walk.next_leaf().map_err(Ended::Repo)? {
        output.tally.leaves += 1;
        if output.tally.leaves.is_multiple_of(BEAT_EVERY_RECORDS) {
            output.watched.pulse.beat();
        }
        output.take(&leaf, &origin)?;
    }
    let previous_rev = output.end_comparison()?;
    let transformer = &output.tools.transformer;
    let refresh = previous_rev.map(|previous_rev| {
        let queued = output.tally.queued(transformer);
        Refreshed { previous_rev, queued }
    });
    let revision = Revision {
        did: subject.did.to_string(),
        edition: subject.edition,
        rev,
        commit_cid,
        signed_by: commit.signed_by.unwrap_or_default(),
        repo_bytes,
        leaves: output.tally.leaves,
        exported: output.tally.exported(transformer),
        skipped: words(&output.tally.skipped),
        rejected: words(&output.tally.rejected),
        filter: transformer.filter_hash().to_owned(),
        shown_as: origin.shown_as(),
        proven_at_ms: output.tools.clock.wall_ms(),
        proven_by: env!("CARGO_PKG_VERSION").to_owned(),
        kept: output.keeps_leaves.then_some(output.tally.kept),
        refresh,
    };
    debug_assert!(revision.reconciles());
    Ok((output, revision))
}

/// The leaves of the revision that is held; `None` if they are not there.
fn held_leaves(tools: &Tools, subject: &Subject) -> Result<Option<StoredParts>, Ended> {
    let kept = subject.refresh.and_then(|refresh| refresh.kept);
    let (Some(kept), Some(edition)) = (kept, subject.edition.checked_sub(1)) else {
        return Ok(None);
    };
    let opened = tools.leaves.reader.open(subject.did.as_str(), edition, kept);
    opened.map_err(Ended::Disk)
}
