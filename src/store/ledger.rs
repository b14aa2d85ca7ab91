//! The ledger's handle: one writer thread, fed by jobs, committing in groups.
//!
//! ```text
//!  async callers, applier --Job--> thread: BEGIN, jobs until none wait (at most GROUP_JOBS_MAX), COMMIT, then the replies
//! ```
//! A reply is given after its commit, so a lease is on disk before the work goes out. A full disk rolls the group back, says
//! so, and runs the same jobs again a second later; any other error ends the thread, and the process with it.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};

use crate::domain::account::Revision;
use crate::store::apply::{LedgerFollower, Position};
use crate::store::error::StoreError;
use crate::store::ledger_rows::Rows;

/// Jobs that may wait for the writer; each is a few hundred bytes.
const JOBS_WAITING_MAX: usize = 1_024;

/// Jobs in one commit, so that a reply never waits for long.
const GROUP_JOBS_MAX: usize = 512;

/// A full disk is tried again after this long.
const DISK_FULL_RETRY_MILLISECONDS: u64 = 1_000;

/// Work on the rows. It may run more than once: a full disk undoes what it did.
type Job = Box<dyn FnMut(&mut Rows) -> Result<Reply, StoreError> + Send>;
type Reply = Box<dyn FnOnce() + Send>;

/// What the writer thread finds.
#[derive(Clone, Debug, Default)]
pub struct LedgerHealth {
    /// A full disk that is being waited for.
    pub waiting: Option<String>,
    /// What ended the thread.
    pub failed: Option<Arc<StoreError>>,
}

/// Reaches the writer thread; cheap to clone. The thread ends when the last clone is dropped.
#[derive(Clone)]
pub struct Ledger {
    jobs: mpsc::Sender<Job>,
    health: watch::Receiver<LedgerHealth>,
}

/// The writer thread is gone; [`Ledger::health`] says why.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the ledger's writer has ended")]
pub struct LedgerGone;

impl Ledger {
    /// Starts the writer thread over `rows`.
    ///
    /// # Errors
    /// The system's, if the thread cannot be started.
    pub fn start(rows: Rows) -> Result<(Self, std::thread::JoinHandle<()>), StoreError> {
        let (jobs, queue) = mpsc::channel(JOBS_WAITING_MAX);
        let (health, watched) = watch::channel(LedgerHealth::default());
        let named = std::thread::Builder::new().name("ledger".to_owned());
        let joined = named.spawn(move || write(rows, queue, &health));
        let joined = joined.map_err(|error| StoreError::io(Path::new("ledger thread"), error))?;
        Ok((Self { jobs, health: watched }, joined))
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
        self.jobs.send(job).await.map_err(|_| LedgerGone)?;
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
        self.jobs.blocking_send(job).map_err(|_| LedgerGone)?;
        result.blocking_recv().map_err(|_| LedgerGone)
    }

    /// What the writer finds.
    #[must_use]
    pub fn health(&self) -> watch::Receiver<LedgerHealth> {
        self.health.clone()
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

fn write(mut rows: Rows, mut queue: mpsc::Receiver<Job>, health: &watch::Sender<LedgerHealth>) {
    while let Some(first) = queue.blocking_recv() {
        let mut group = vec![first];
        while group.len() < GROUP_JOBS_MAX
            && let Ok(next) = queue.try_recv()
        {
            group.push(next);
        }
        loop {
            match commit(&mut rows, &mut group) {
                Ok(replies) => {
                    if let Err(error) = wait_out_full_disk(health, || rows.sync_if_wanted()) {
                        health.send_modify(|health| health.failed = Some(Arc::new(error)));
                        return;
                    }
                    health.send_if_modified(|health| health.waiting.take().is_some());
                    replies.into_iter().for_each(|reply| reply());
                    break;
                }
                Err(error) if error.is_full() => wait_for_space(health, &error),
                Err(error) => {
                    tracing::error!(%error, "the ledger can no longer be written");
                    health.send_modify(|health| health.failed = Some(Arc::new(error)));
                    return;
                }
            }
        }
    }
    if let Err(error) = rows.close() {
        tracing::warn!(%error, "the ledger's wal could not be truncated");
    }
}

fn wait_out_full_disk(
    health: &watch::Sender<LedgerHealth>,
    mut work: impl FnMut() -> Result<(), StoreError>,
) -> Result<(), StoreError> {
    loop {
        match work() {
            Err(error) if error.is_full() => wait_for_space(health, &error),
            done => return done,
        }
    }
}

#[allow(clippy::disallowed_methods, reason = "a thread of its own that only waits for disk space")]
fn wait_for_space(health: &watch::Sender<LedgerHealth>, error: &StoreError) {
    if health.borrow().waiting.is_none() {
        tracing::error!(%error, "the disk is full");
    }
    health.send_modify(|health| health.waiting = Some(error.to_string()));
    std::thread::sleep(Duration::from_millis(DISK_FULL_RETRY_MILLISECONDS));
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
}

impl Follower {
    /// Continues after `position`, the last segment that the ledger has taken.
    #[must_use]
    pub fn new(ledger: Ledger, position: u64) -> Self {
        Self { ledger, position }
    }

    fn gone(&self) -> StoreError {
        let text = self
            .ledger
            .health()
            .borrow()
            .failed
            .as_ref()
            .map_or_else(|| LedgerGone.to_string(), ToString::to_string);
        StoreError::Io { path: "state.db".into(), source: std::io::Error::other(text) }
    }
}

impl LedgerFollower for Follower {
    fn position(&self) -> u64 {
        self.position
    }

    fn apply(&mut self, segment: u64, revisions: Vec<Revision>) -> Result<(), StoreError> {
        let taken = self.ledger.run_blocking(move |rows| rows.apply_segment(segment, &revisions));
        taken.map_err(|_| self.gone())?;
        self.position = segment;
        Ok(())
    }

    fn settle(&mut self, positions: Vec<(String, Position)>) -> Result<(), StoreError> {
        let settled = self.ledger.run_blocking(move |rows| rows.settle(&positions));
        settled.map_err(|_| self.gone())
    }
}
