//! The ledger's handle: one writer thread, fed by jobs, committing in groups.
//!
//! ```text
//!  async callers, applier --Job--> thread: BEGIN, jobs until none wait (at most GROUP_JOBS_MAX), COMMIT, then the replies
//! ```
//! A reply is given after its commit, so a lease is on disk before the work goes out. A full disk rolls the group back, says
//! so, and runs the same jobs again a second later; any other error, or a panic, ends the thread, and the process with it.

use std::panic::AssertUnwindSafe;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{mpsc, oneshot};

use crate::domain::account::Revision;
use crate::store::apply::{Export, LedgerFollower, Position};
use crate::store::error::StoreError;
use crate::store::health::Health;
use crate::store::ledger_forget::Tombstones;
use crate::store::ledger_rows::Rows;
use crate::store::segment::SegmentReader;

/// Jobs that may wait for the writer; each is a few hundred bytes.
const JOBS_WAITING_MAX: usize = 1_024;

/// Jobs in one commit, so that a reply never waits for long.
const GROUP_JOBS_MAX: usize = 512;

/// Its name, for the system, and in the log for who waits when the disk is full.
const WRITER: &str = "ledger";

/// Work on the rows. It may run more than once: a full disk undoes what it did.
type Job = Box<dyn FnMut(&mut Rows) -> Result<Reply, StoreError> + Send>;
type Reply = Box<dyn FnOnce() + Send>;

/// What the writer thread is sent.
enum Order {
    Run(Job),
    Close,
}

/// Reaches the writer thread; cheap to clone. The thread ends with [`Ledger::close`], or when the last clone is dropped.
#[derive(Clone)]
pub struct Ledger {
    jobs: mpsc::Sender<Order>,
    health: Health,
}

/// The writer thread is gone; [`Health::failure`] says why.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the ledger's writer has ended")]
pub struct LedgerGone;

impl Ledger {
    /// Starts the writer thread over `rows`.
    ///
    /// # Errors
    /// The system's, if the thread cannot be started.
    pub fn start(
        rows: Rows,
        health: Health,
    ) -> Result<(Self, std::thread::JoinHandle<()>), StoreError> {
        let (jobs, queue) = mpsc::channel(JOBS_WAITING_MAX);
        let named = std::thread::Builder::new().name(WRITER.to_owned());
        let own = health.clone();
        let joined = named.spawn(move || run(rows, queue, &own));
        let joined = joined.map_err(|error| StoreError::io(Path::new("ledger thread"), error))?;
        Ok((Self { jobs, health }, joined))
    }

    /// Runs `work` in the next commit and gives its result after it.
    ///
    /// # Errors
    /// [`LedgerGone`].
    pub async fn run<T: Send + 'static>(
        &self,
        work: impl FnMut(&mut Rows) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, LedgerGone> {
        let (job, result) = job(work);
        self.jobs.send(Order::Run(job)).await.map_err(|_| LedgerGone)?;
        result.await.map_err(|_| LedgerGone)
    }

    /// The same from a thread of its own.
    ///
    /// # Errors
    /// [`LedgerGone`].
    pub fn run_blocking<T: Send + 'static>(
        &self,
        work: impl FnMut(&mut Rows) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, LedgerGone> {
        let (job, result) = job(work);
        self.jobs.blocking_send(Order::Run(job)).map_err(|_| LedgerGone)?;
        result.blocking_recv().map_err(|_| LedgerGone)
    }

    /// Ends the writer thread after the jobs before; its WAL is then truncated.
    pub async fn close(&self) {
        let _gone = self.jobs.send(Order::Close).await;
    }
}

fn job<T: Send + 'static>(
    mut work: impl FnMut(&mut Rows) -> Result<T, StoreError> + Send + 'static,
) -> (Job, oneshot::Receiver<T>) {
    let (sender, receiver) = oneshot::channel();
    let sender = Arc::new(Mutex::new(Some(sender)));
    let job: Job = Box::new(move |rows| {
        let result = work(rows)?;
        let sender = Arc::clone(&sender);
        Ok(Box::new(move || {
            let sender = sender.lock().unwrap_or_else(PoisonError::into_inner).take();
            // Whoever asked may be gone; what was written stays.
            let _unheard = sender.map(|sender| sender.send(result));
        }))
    });
    (job, receiver)
}

fn run(mut rows: Rows, mut orders: mpsc::Receiver<Order>, health: &Health) {
    // Kept until the end is told: who waits for a reply then knows why there is none.
    let mut group = Vec::new();
    let write = AssertUnwindSafe(|| write(&mut rows, &mut orders, &mut group, health));
    // Nothing is written after a panic: what was open is undone when the rows are dropped.
    if std::panic::catch_unwind(write).is_err() {
        health.fail(StoreError::Crashed { thread: WRITER });
    }
}

fn write(
    rows: &mut Rows,
    orders: &mut mpsc::Receiver<Order>,
    group: &mut Vec<Job>,
    health: &Health,
) {
    let mut is_open = true;
    while is_open && let Some(Order::Run(first)) = orders.blocking_recv() {
        group.push(first);
        while group.len() < GROUP_JOBS_MAX
            && let Ok(next) = orders.try_recv()
        {
            match next {
                Order::Run(job) => group.push(job),
                Order::Close => {
                    is_open = false;
                    break;
                }
            }
        }
        let committed = health.wait_out(WRITER, || {
            let committed = commit(rows, group);
            if committed.as_ref().is_err_and(StoreError::is_full) {
                // Its own WAL may hold the space that it waits for.
                let _still_full = rows.shrink();
            }
            committed
        });
        let synced = committed.and_then(|replies| {
            health.wait_out(WRITER, || rows.sync_if_wanted()).map(|()| replies)
        });
        match synced {
            Ok(replies) => replies.into_iter().for_each(|reply| reply()),
            Err(error) => return health.fail(error),
        }
        group.clear();
    }
    if let Err(error) = rows.close() {
        tracing::warn!(%error, "the ledger's wal could not be truncated");
    }
}

fn commit(rows: &mut Rows, group: &mut [Job]) -> Result<Vec<Reply>, StoreError> {
    rows.begin()?;
    let replies: Result<Vec<Reply>, StoreError> = group.iter_mut().map(|job| job(rows)).collect();
    let committed = replies.and_then(|replies| rows.commit().map(|()| replies));
    if committed.is_err() {
        rows.roll_back()?;
    }
    committed
}

/// The ledger as a follower of the journal, for the applier's thread.
pub struct Follower {
    ledger: Ledger,
    position: u64,
    tombstones: Tombstones,
}

impl Follower {
    /// Continues after `position`, the last segment that the ledger has taken.
    #[must_use]
    pub fn new(ledger: Ledger, position: u64, tombstones: Tombstones) -> Self {
        Self { ledger, position, tombstones }
    }

    fn gone(&self) -> StoreError {
        let (path, health) = (std::path::PathBuf::from("state.db"), &self.ledger.health);
        let failure = health.failure();
        if failure.is_none() && health.is_ending() && health.is_full() {
            return StoreError::Full { path, free_bytes: 0 };
        }
        let text = failure.map_or_else(|| LedgerGone.to_string(), |error| error.to_string());
        StoreError::Io { path, source: std::io::Error::other(text) }
    }
}

impl LedgerFollower for Follower {
    fn position(&self) -> u64 {
        self.position
    }

    fn repeats(&mut self, segment: u64, exports: Vec<Export>) -> Result<Vec<usize>, StoreError> {
        let found = self.ledger.run_blocking(move |rows| rows.repeats(segment, &exports));
        found.map_err(|_| self.gone())
    }

    fn apply(&mut self, segment: u64, revisions: Vec<Revision>) -> Result<(), StoreError> {
        let taken = self.ledger.run_blocking(move |rows| rows.apply_segment(segment, &revisions));
        taken.map_err(|_| self.gone())?;
        self.position = segment;
        Ok(())
    }

    fn mark_forgotten(&self, segment: &mut SegmentReader) -> Result<bool, StoreError> {
        self.tombstones.mark(segment)
    }

    fn settle(&mut self, positions: Vec<(String, Position)>) -> Result<(), StoreError> {
        let settled = self.ledger.run_blocking(move |rows| rows.settle(&positions));
        settled.map_err(|_| self.gone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Clock;
    use crate::store::journal::Journal;
    use crate::store::ledger_rows::opened;
    use crate::store::sorted_list::Entry;

    #[test]
    fn the_applier_reaches_the_rows_and_is_told_why_it_does_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state.db");
        let mut rows = opened(folder.path(), Clock::system());
        let tombstones = Tombstones::open(&path).unwrap();
        let done = Revision { did: "did:plc:a".to_owned(), ..Revision::default() };
        rows.transaction(|rows| rows.apply_segment(1, std::slice::from_ref(&done))).unwrap();
        let (ledger, thread) = Ledger::start(rows, Health::default()).unwrap();
        let mut follower = Follower::new(ledger.clone(), 1, tombstones);
        assert_eq!(follower.position(), 1);
        assert!(follower.repeats(2, Vec::new()).unwrap().is_empty());
        follower.apply(2, vec![done]).unwrap();
        assert_eq!(follower.position(), 2);
        let position = Position { segment: 2, item: 5 };
        follower.settle(vec![("post".to_owned(), position)]).unwrap();
        let (segment, positions) =
            ledger.run_blocking(|rows| Ok((rows.segment()?, rows.queue_positions()?))).unwrap();
        assert_eq!((segment, positions["post"]), (2, position));
        let failed = ledger.run_blocking(|_| Err::<(), _>(StoreError::Config("x".to_owned())));
        assert_eq!(failed, Err(LedgerGone));
        thread.join().unwrap();
        let gone = follower.apply(3, Vec::new()).unwrap_err().to_string();
        assert_eq!((gone.as_str(), follower.position()), ("state.db: x", 2));
    }

    #[test]
    fn jobs_that_wait_together_are_in_one_commit_and_each_has_its_own_reply() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state.db");
        let rows = opened(folder.path(), Clock::system());
        let (ledger, thread) = Ledger::start(rows, Health::default()).unwrap();
        let go = held_up(&ledger);
        // What everybody else sees of the ledger while each job runs.
        let others = path.clone();
        let mut replies = Vec::new();
        for segment in 1..=3 {
            let others = others.clone();
            let (next, reply) = job(move |rows| {
                rows.apply_segment(segment, &[])?;
                let select = "SELECT CAST(value AS INTEGER) FROM meta WHERE key = 'segment'";
                let other = crate::store::ledger_schema::read_only(&others)?;
                let seen: rusqlite::Result<i64> = other.query_row(select, [], |row| row.get(0));
                Ok((rows.segment()?, seen.unwrap()))
            });
            ledger.jobs.try_send(Order::Run(next)).ok().unwrap();
            replies.push(reply);
        }
        drop(go);
        let told: Vec<_> = replies.into_iter().map(|it| it.blocking_recv().unwrap()).collect();
        assert_eq!(told, [(1, 0), (2, 0), (3, 0)]);
        drop(ledger);
        thread.join().unwrap();
    }

    /// Holds the writer up; it goes on when what this gives is dropped or sent to.
    fn held_up(ledger: &Ledger) -> std::sync::mpsc::SyncSender<()> {
        let (begun, begins) = std::sync::mpsc::sync_channel(1);
        let (go, goes) = std::sync::mpsc::sync_channel::<()>(1);
        let (held, _reply) = job(move |_| {
            begun.send(()).unwrap();
            let _dropped = goes.recv();
            Ok(())
        });
        ledger.jobs.try_send(Order::Run(held)).ok().unwrap();
        begins.recv().unwrap();
        go
    }

    #[test]
    fn a_commit_has_so_many_jobs_at_most_and_the_rest_follow_in_the_next() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state.db");
        let rows = opened(folder.path(), Clock::system());
        let (ledger, thread) = Ledger::start(rows, Health::default()).unwrap();
        let go = held_up(&ledger);
        let most = GROUP_JOBS_MAX as u64;
        let mut replies = Vec::new();
        for segment in 1..=most + 1 {
            let others = path.clone();
            let (next, reply) = job(move |rows| {
                rows.apply_segment(segment, &[])?;
                if segment < most {
                    return Ok(0);
                }
                // What everybody else sees of the ledger meanwhile.
                let select = "SELECT CAST(value AS INTEGER) FROM meta WHERE key = 'segment'";
                let other = crate::store::ledger_schema::read_only(&others)?;
                let seen: rusqlite::Result<i64> = other.query_row(select, [], |row| row.get(0));
                Ok(seen.unwrap().cast_unsigned())
            });
            ledger.jobs.try_send(Order::Run(next)).ok().unwrap();
            replies.push(reply);
        }
        drop(go);
        let seen: Vec<_> = replies.into_iter().map(|it| it.blocking_recv().unwrap()).collect();
        assert_eq!(seen.split_at(GROUP_JOBS_MAX - 1).1, [0, most]);
        drop(ledger);
        thread.join().unwrap();
    }

    #[test]
    fn a_closed_ledger_has_done_what_it_was_sent_before_takes_nothing_more_and_leaves_no_wal() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state.db");
        let rows = opened(folder.path(), Clock::system());
        let tombstones = Tombstones::open(&path).unwrap();
        let (ledger, thread) = Ledger::start(rows, Health::default()).unwrap();
        let go = held_up(&ledger);
        let (before, reply) = job(|rows| rows.apply_segment(7, &[]));
        ledger.jobs.try_send(Order::Run(before)).ok().unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(ledger.close());
        drop(go);
        assert_eq!(ledger.run_blocking(|rows| rows.segment()), Err(LedgerGone));
        thread.join().unwrap();
        reply.blocking_recv().unwrap();
        let wal = std::fs::metadata(folder.path().join("state.db-wal")).map_or(0, |it| it.len());
        assert_eq!(wal, 0);
        // Why it is gone: nobody waits for space any more when the process ends, and nothing else has failed.
        let (health, mut follower) = (ledger.health.clone(), Follower::new(ledger, 7, tombstones));
        let mut gone = || follower.apply(8, Vec::new()).unwrap_err();
        assert!(
            matches!(gone(), StoreError::Io { source, .. } if source.to_string() == LedgerGone.to_string())
        );
        health.full("queue", &"no space");
        assert!(!gone().is_full());
        health.end_waiting();
        assert!(gone().is_full());
        health.fail(StoreError::Config("x".to_owned()));
        assert_eq!(gone().to_string(), "state.db: x");
    }

    #[test]
    fn the_applier_is_told_what_was_brought_before_and_who_is_forgotten() {
        let folder = tempfile::tempdir().unwrap();
        let (path, journal) = (folder.path().join("state.db"), folder.path().join("journal"));
        let mut rows = opened(folder.path(), Clock::system());
        let tombstones = Tombstones::open(&path).unwrap();
        std::fs::create_dir(&journal).unwrap();
        let labels = vec!["post".to_owned()];
        let mut journal = Journal::open(&journal, &"a".repeat(32), labels, 1 << 30, 0).unwrap();
        let dids = ["did:plc:a", "did:plc:b"].map(str::to_owned);
        for did in &dids {
            rows.transaction(|rows| rows.add(&Entry::did(did))).unwrap();
            let revision = Revision { did: did.clone(), ..Revision::default() };
            journal.append_account(&revision, &[]).unwrap();
        }
        journal.seal_group().unwrap();
        let (ledger, thread) = Ledger::start(rows, Health::default()).unwrap();
        let mut follower = Follower::new(ledger.clone(), 0, tombstones);
        let exports = || dids.iter().map(|did| (did.clone(), 0)).collect::<Vec<Export>>();
        assert!(follower.repeats(1, exports()).unwrap().is_empty());
        follower.apply(1, vec![Revision { did: dids[1].clone(), ..Revision::default() }]).unwrap();
        assert_eq!(follower.repeats(2, exports()).unwrap(), [1]);
        let mut segment = journal.next_after(0).unwrap().unwrap();
        assert!(!follower.mark_forgotten(&mut segment).unwrap());
        let forgotten = dids[0].clone();
        ledger.run_blocking(move |rows| rows.begin_forgetting(&forgotten, None)).unwrap();
        assert!(follower.mark_forgotten(&mut segment).unwrap());
        assert_eq!(segment.passed_over(), [0]);
        drop((ledger, follower));
        thread.join().unwrap();
    }

    #[test]
    fn a_job_that_panics_ends_the_writer_and_whoever_waits_knows_why() {
        let folder = tempfile::tempdir().unwrap();
        let open = || opened(folder.path(), Clock::system());
        let (ledger, thread) = Ledger::start(open(), Health::default()).unwrap();
        assert_eq!(ledger.run_blocking(|rows| rows.segment()), Ok(0));
        let gone = ledger.run_blocking(|rows| {
            rows.apply_segment(1, &[])?;
            assert_ne!(rows.segment()?, 1, "a bug");
            Ok(())
        });
        assert_eq!(gone, Err(LedgerGone));
        // Known by the time that the reply is given up.
        let failure = ledger.health.failure();
        assert!(
            matches!(failure.as_deref(), Some(StoreError::Crashed { thread: "ledger" })),
            "{failure:?}"
        );
        thread.join().unwrap();
        assert_eq!(ledger.run_blocking(|rows| rows.segment()), Err(LedgerGone));
        assert_eq!(open().segment().unwrap(), 0, "what its group wrote is undone");
    }
}
