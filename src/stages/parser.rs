//! Parser: proves a repository and turns its records into rows.
//!
//! takes    FetchedCar     capacity 2 a thread: one being walked, one waiting
//! gives    RowChunk       to the exporter, the last one with the proof
//! retries  incomplete transfers, older revisions; wrong hash, tree, DID or signature once more with a fresh identity
//! gives up on repositories that can never fit their budget
//!
//! Walks are CPU work: they run on threads of their own, one a core, never on the async workers. A worker actor a DID waits
//! for the walk's memory and for a thread; if it is stopped, the walk sees its cancel flag within 1,024 records. A panic on a
//! thread costs the DID in hand one attempt and leaves the thread alive; a walk that is silent for too long costs the same, and its
//! thread is replaced: the memory it holds is lost until it returns.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use ractor::{Actor, ActorProcessingErr, ActorRef, SupervisionEvent};
use tokio::runtime::Handle;
use tokio::sync::{Semaphore, oneshot};

use crate::actor::hold::{CancelOnDrop, Hold, Watched};
use crate::actor::mailbox::{Envelope, Mailbox, Slot, Told};
use crate::actor::threads::{After, Threads};
use crate::actor::worker::{note_worker_event, spawn_worker};
use crate::clock::Clock;
use crate::domain::account::Revision;
use crate::domain::verdict::{Cause, Failure, Reason};
use crate::limits::ROW_CHUNK_BYTES;
use crate::repo::Source;
use crate::repo::car::Framed;
use crate::repo::error::RepoError;
use crate::repo::pages::PAGES_BYTES;
use crate::repo::walk::{Expected, Leaf, LeafBlock, Walk, index_bytes};
use crate::stages::messages::{
    Export, FetchedCar, News, Point, Probe, Proven, Refusal, RowChunk, Subject, Ticket,
};
use crate::store::budget::{Budget, Reservation};
use crate::store::items::{Item, OpenItems};
use crate::store::spool::SpooledCar;
use crate::transform::{Origin, RecordBlock, RecordSource, Transformer, Verdict};

/// Repositories in the mailbox for each thread: one in work, one that is ready when it ends.
pub const CAPACITY_PER_THREAD: usize = 2;

/// A walk that wants more than this share of the walks budget has a lane of its own, so that two of them never wait for each
/// other.
const OVERSIZED_SHARE: u64 = 4;

/// A row is at most this many times as long as its record: an empty byte string, one byte, becomes `{\"$bytes\": \"\"}, `.
const ROW_BYTES_PER_RECORD_BYTE: usize = 20;

/// Names, CID and DID around a record's own fields; a DID has at most 2 KiB and stands in a row twice.
const ROW_BYTES_AROUND: usize = 8 << 10;

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
        tools.probe.pass(Point::Stage("parser"));
        let oversized = Arc::clone(&state.oversized);
        let work = async move { walk_one(message, slot, tools, threads, oversized).await };
        Ok(spawn_worker(myself.get_cell(), work).await?)
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
) {
    let unloaded = fetched.car.unloaded_bytes();
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
        return fetched.ticket.finish(News::Failed(Failure::new(cause, None, detail)));
    };
    let loaded = if may_be_loaded(unloaded, tools.walks.limit()) {
        tools.walks.try_take(unloaded)
    } else {
        None
    };
    let FetchedCar { mut ticket, subject, mut car, framed } = fetched;
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
        let after = match loaded {
            Ok(()) => run(&held, (&subject, car, &framed), &tools, &seen, &runtime),
            Err(error) => held.end(|ticket| ticket.finish(Ended::Repo(error).news())),
        };
        // The worker may have been stopped meanwhile: then nobody listens.
        let _unheard = done.send(());
        after
    });
    tokio::select! {
        walked = walked => {
            // Whoever dropped the channel without a word crashed.
            if walked.is_err() {
                hold.end(Ticket::crashed);
            }
        }
        () = watched.pulse.silent(patience) => hold.give_up(&threads),
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
) -> After {
    static NEXT_EXPORT: AtomicU64 = AtomicU64::new(1);
    tools.probe.pass(Point::Worker("parser", subject.did.as_str()));
    let export = Export::new(NEXT_EXPORT.fetch_add(1, Ordering::AcqRel));
    let output = Output {
        tools,
        runtime,
        watched,
        export,
        sequence: 0,
        open: OpenItems::new(tools.transformer.queues().len(), tools.rows_per_item),
        reservation: None,
    };
    let (key, earlier_keys) = (Some(subject.identity.key.as_str()), &subject.identity.earlier_keys);
    let expected = Expected { did: Some(&subject.did), key, earlier_keys };
    let ended = Walk::open(&car, framed, &expected, &watched.is_cancelled)
        .map_err(Ended::Repo)
        .and_then(|walk| export_all(walk, output, subject, car.len()));
    drop(car);
    hold.end(|ticket| match ended {
        Ok((output, revision)) => output.finish(ticket, revision),
        Err(ended) => ticket.finish(ended.news()),
    })
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
}

impl Ended {
    fn news(self) -> News {
        match self {
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
    let mut tally = Tally::new(&output.tools.transformer);
    let origin = output.tools.transformer.origin(subject.did.as_str(), &rev);
    while let Some(leaf) = walk.next_leaf().map_err(Ended::Repo)? {
        tally.leaves += 1;
        if tally.leaves.is_multiple_of(BEAT_EVERY_RECORDS) {
            output.watched.pulse.beat();
        }
        output.take(&leaf, &origin, &mut tally)?;
    }
    let revision = Revision {
        did: subject.did.to_string(),
        edition: subject.edition,
        rev,
        commit_cid,
        signed_by: commit.signed_by.unwrap_or_default(),
        repo_bytes,
        leaves: tally.leaves,
        exported: tally.exported(&output.tools.transformer),
        skipped: words(&tally.skipped),
        rejected: words(&tally.rejected),
        filter: output.tools.transformer.filter_hash().to_owned(),
        shown_as: origin.shown_as(),
        proven_at_ms: output.tools.clock.wall_ms(),
        proven_by: env!("CARGO_PKG_VERSION").to_owned(),
    };
    debug_assert!(revision.reconciles());
    Ok((output, revision))
}

/// Counts of one walk.
struct Tally {
    leaves: u64,
    by_queue: Vec<u64>,
    skipped: Vec<(&'static str, u64)>,
    rejected: Vec<(&'static str, u64)>,
}

impl Tally {
    fn new(transformer: &Transformer) -> Self {
        let by_queue = vec![0; transformer.queues().len()];
        Self { leaves: 0, by_queue, skipped: Vec::new(), rejected: Vec::new() }
    }

    /// Exported records by label; the rejected queue is counted by reason instead.
    fn exported(&self, transformer: &Transformer) -> BTreeMap<String, u64> {
        let labels = transformer.queues().iter().take(transformer.rejected_queue()).cloned();
        labels.zip(self.by_queue.iter().copied()).filter(|(_, count)| *count > 0).collect()
    }
}

fn count(words: &mut Vec<(&'static str, u64)>, word: &'static str) {
    match words.iter_mut().find(|(known, _)| *known == word) {
        Some((_, count)) => *count += 1,
        None => words.push((word, 1)),
    }
}

fn words(counts: &[(&'static str, u64)]) -> BTreeMap<String, u64> {
    counts.iter().map(|(word, count)| ((*word).to_owned(), *count)).collect()
}

/// Rows on their way to the exporter.
struct Output<'t> {
    tools: &'t Tools,
    runtime: &'t Handle,
    watched: &'t Watched,
    export: Arc<Export>,
    sequence: u64,
    open: OpenItems,
    /// Memory of the open items, reserved before they grow.
    reservation: Option<Reservation>,
}

impl Output<'_> {
    fn take(&mut self, leaf: &Leaf<'_>, origin: &Origin, tally: &mut Tally) -> Result<(), Ended> {
        let transformer = &self.tools.transformer;
        let block = match leaf.block {
            LeafBlock::Held(bytes) => RecordBlock::Held(bytes),
            LeafBlock::TooLarge(bytes) => RecordBlock::TooLarge(bytes),
        };
        let source = RecordSource { origin, key: leaf.key, cid: leaf.cid, block };
        let plan = transformer.read(&source);
        let queue = match plan.verdict() {
            Verdict::Skipped(word) => {
                count(&mut tally.skipped, word);
                return Ok(());
            }
            Verdict::Exported(queue) => {
                tally.by_queue[queue] += 1;
                queue
            }
            Verdict::Rejected(word) => {
                count(&mut tally.rejected, word);
                transformer.rejected_queue()
            }
        };
        let record_bytes = if let LeafBlock::Held(bytes) = leaf.block { bytes.len() } else { 0 };
        self.make_room(record_bytes)?;
        if let Some(item) = self.open.push(queue, |out| plan.write(out)) {
            self.send(vec![item], None)?;
        }
        while self.open.bytes() >= ROW_CHUNK_BYTES {
            let Some(item) = self.open.take_largest() else { break };
            self.send(vec![item], None)?;
        }
        Ok(())
    }

    /// Reserves memory for one more row. A row that does not fit beside the open ones gets its own: first everything open is
    /// sent, so that nothing is held while its bytes are waited for.
    fn make_room(&mut self, record_bytes: usize) -> Result<(), Ended> {
        let longest = (record_bytes * ROW_BYTES_PER_RECORD_BYTE + ROW_BYTES_AROUND) as u64;
        if self.open.bytes() as u64 + longest > CHUNK_RESERVED_BYTES {
            while let Some(item) = self.open.take_largest() {
                self.send(vec![item], None)?;
            }
        }
        if longest <= CHUNK_RESERVED_BYTES {
            return self.reserve(CHUNK_RESERVED_BYTES);
        }
        self.reservation = None;
        // A row longer than its share is written all the same: it is one a thread, and rare.
        self.reserve(longest.min(self.tools.rows.limit() / ROWS_SHARE))
    }

    fn reserve(&mut self, bytes: u64) -> Result<(), Ended> {
        let held = self.reservation.as_ref().map_or(0, Reservation::bytes);
        if held >= bytes {
            return Ok(());
        }
        let (rows, cancel) = (&self.tools.rows, &self.watched.is_cancelled);
        let take = || rows.blocking_take(bytes - held, self.runtime, cancel);
        let more = self.watched.pulse.rest(take).ok_or(Ended::Stopped)?;
        match &mut self.reservation {
            Some(held) => held.merge(more),
            None => self.reservation = Some(more),
        }
        Ok(())
    }

    fn send(&mut self, items: Vec<Item>, end: Option<Proven>) -> Result<(), Ended> {
        if let Some(refusal) = self.export.refused() {
            return Err(Ended::Refused(refusal));
        }
        let bytes: usize = items.iter().map(|item| item.payload.capacity()).sum();
        let reservation = self.reservation.as_mut().and_then(|held| held.split(bytes as u64));
        let export = Arc::clone(&self.export);
        let chunk = RowChunk { export, sequence: self.sequence, items, reservation, end };
        self.sequence += 1;
        let send = || self.runtime.block_on(self.tools.exporter.send(chunk)).is_ok();
        if self.watched.pulse.rest(send) { Ok(()) } else { Err(Ended::Stopped) }
    }

    /// Sends what is left with the proof.
    fn finish(mut self, mut ticket: Ticket, revision: Revision) {
        if let Some(refusal) = self.export.refused() {
            return ticket.finish(Ended::Refused(refusal).news());
        }
        let mut items = Vec::new();
        while let Some(item) = self.open.take_largest() {
            items.push(item);
        }
        ticket.leave();
        // If the mailbox is closed, the ticket is dropped with the chunk and tells.
        let _stopped = self.send(items, Some(Proven { ticket, revision }));
    }
}
