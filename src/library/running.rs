//! A backfill that runs: on a thread and a runtime of its own, so that whoever started it may be any program.
//!
//! ```text
//!  caller: Running (a future, or wait)      thread "skyfill": runtime ─ perform ─ report ─> Outcome ─ last events
//!             │ dropped or cancelled ─────────────> drain: what is in flight is finished within 20 s or given back
//! ```
//! The outcome is there once the data directory is released. A Running that is dropped cancels and waits for nothing; until
//! the drain is over the data directory is still locked.

use std::fmt;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use crate::commands::backfill::{self, Beside, Performed};
use crate::library::error::Error;
use crate::library::events::{self, Event, Progress, Source};
use crate::library::report::Report;
use crate::pipeline::Surrounding;
use crate::pipeline::data::LEDGER_FILE;
use crate::sink::Position;
use crate::stages::scheduler;
use crate::store::follow::{Followed, Followers};

/// A backfill that runs. Await it, or [`Running::wait`] for it; dropped, it is cancelled.
#[must_use = "dropped at once, it is cancelled at once"]
pub struct Running {
    pending: Pending<Report>,
}

/// Reaches a backfill that runs; cheap to clone. After its end there is nothing to reach.
#[derive(Clone)]
pub struct Handle {
    cancel: CancellationToken,
    seen: SeenSlot,
}

/// What can be seen of the work, once it has begun.
type SeenSlot = Arc<Mutex<Option<(watch::Receiver<scheduler::Progress>, Followers)>>>;

/// How one of the sinks beside the queues stands.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct SinkState {
    /// Its name.
    pub name: String,
    /// What it has taken and settled.
    pub settled: Position,
    /// Why it takes nothing at the moment, in its own words.
    pub waits: Option<String>,
}

impl Handle {
    /// Asks it to stop: what is in flight is finished within 20 s or given back. It then ends with
    /// [`Error::Cancelled`], unless everything was decided; the same call goes on where it was.
    pub fn cancel(&self) {
        self.cancel.cancel();
    }

    /// How far it is; zeros before the work has begun.
    #[must_use]
    pub fn progress(&self) -> Progress {
        let known = lock(&self.seen).as_ref().map(|(progress, _)| *progress.borrow());
        known.map(Progress::from).unwrap_or_default()
    }

    /// How its sinks stand; nothing before the work has begun.
    #[must_use]
    pub fn sinks(&self) -> Vec<SinkState> {
        let seen = lock(&self.seen);
        let all = seen.as_ref().map(|(_, sinks)| sinks.followed()).unwrap_or_default();
        let state = |Followed { name, settled, waits, .. }| SinkState { name, settled, waits };
        all.into_iter().map(state).collect()
    }
}

impl fmt::Debug for Handle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Handle").field("progress", &self.progress()).finish_non_exhaustive()
    }
}

impl Running {
    pub(super) const fn new(pending: Pending<Report>) -> Self {
        Self { pending }
    }

    /// Reaches it while it runs.
    #[must_use]
    pub fn handle(&self) -> Handle {
        self.pending.handle.clone()
    }

    /// Blocks until it has ended.
    ///
    /// # Errors
    /// [`Error`].
    pub fn wait(self) -> Result<Report, Error> {
        self.pending.wait()
    }
}

impl Future for Running {
    type Output = Result<Report, Error>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.pending).poll(context)
    }
}

impl fmt::Debug for Running {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Running").field(&self.pending.handle).finish()
    }
}

/// What comes of a run, once it has come.
struct Outcome<T> {
    state: Mutex<OutcomeState<T>>,
    changed: Condvar,
}

struct OutcomeState<T> {
    result: Option<Result<T, Error>>,
    waker: Option<Waker>,
}

impl<T> Outcome<T> {
    fn set(&self, result: Result<T, Error>) {
        let mut state = lock(&self.state);
        state.result.get_or_insert(result);
        let waker = state.waker.take();
        drop(state);
        self.changed.notify_all();
        waker.into_iter().for_each(Waker::wake);
    }
}

/// Cancels its run when it is dropped.
pub(super) struct Pending<T> {
    handle: Handle,
    outcome: Arc<Outcome<T>>,
}

impl<T> Pending<T> {
    pub(super) fn wait(self) -> Result<T, Error> {
        let mut state = lock(&self.outcome.state);
        loop {
            if let Some(result) = state.result.take() {
                return result;
            }
            let waited = self.outcome.changed.wait(state);
            state = waited.unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl<T> Future for Pending<T> {
    type Output = Result<T, Error>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let mut state = lock(&self.outcome.state);
        match state.result.take() {
            Some(result) => Poll::Ready(result),
            None => {
                state.waker = Some(context.waker().clone());
                Poll::Pending
            }
        }
    }
}

impl<T> Drop for Pending<T> {
    fn drop(&mut self) {
        self.handle.cancel();
    }
}

/// What is to be done, all checked.
pub(super) struct Work {
    pub(super) order: backfill::Backfill,
    pub(super) beside: Beside,
    /// Where events go.
    pub(super) events: Option<mpsc::Sender<Event>>,
}

/// Starts the thread; `finish` makes the result of a report, on that thread.
///
/// # Errors
/// [`Error::Io`] if the system gives no thread.
pub(super) fn launch<T: Send + 'static>(
    work: Work,
    finish: impl FnOnce(Report) -> Result<T, Error> + Send + 'static,
) -> Result<Pending<T>, Error> {
    let state = Mutex::new(OutcomeState { result: None, waker: None });
    let outcome = Arc::new(Outcome { state, changed: Condvar::new() });
    let handle = Handle { cancel: CancellationToken::new(), seen: SeenSlot::default() };
    let (owed, reached) = (Owed(Arc::clone(&outcome)), handle.clone());
    let thread = std::thread::Builder::new().name("skyfill".to_owned());
    let spawned = thread.spawn(move || live(work, &reached, finish, owed));
    spawned.map_err(|error| Error::Crashed(format!("no thread could be started: {error}")))?;
    Ok(Pending { handle, outcome })
}

/// An outcome that somebody waits for: if its thread dies, it says so.
struct Owed<T>(Arc<Outcome<T>>);

impl<T> Drop for Owed<T> {
    fn drop(&mut self) {
        self.0.set(Err(Error::Crashed("skyfill's own thread crashed".to_owned())));
    }
}

/// The thread's life: the runtime, the work, its outcome, and then what is left to be told.
fn live<T>(
    work: Work,
    handle: &Handle,
    finish: impl FnOnce(Report) -> Result<T, Error>,
    owed: Owed<T>,
) {
    let built =
        tokio::runtime::Builder::new_multi_thread().thread_name("skyfill").enable_all().build();
    let runtime = match built {
        Ok(runtime) => runtime,
        Err(error) => {
            return owed.0.set(Err(Error::Crashed(format!("no runtime could be made: {error}"))));
        }
    };
    let (end, ended) = watch::channel(false);
    let (pumped, source) = tokio::sync::oneshot::channel();
    let Work { order, mut beside, events } = work;
    let ledger = order.settings.data_dir.join(LEDGER_FILE);
    beside.wants_decisions = events.is_some();
    beside.started = Some(tell_started(handle, ledger, pumped));
    let pump = events.map(|to| runtime.spawn(events::pump_from(source, to, ended)));
    let performing = Box::pin(perform(&order, &beside, handle));
    let report = runtime.block_on(performing);
    owed.0.set(report.and_then(finish));
    // Whoever listens is told to the end; who does not listen any more has dropped the events.
    end.send_replace(true);
    drop(beside);
    if let Some(pump) = pump {
        let _crashed = runtime.block_on(pump);
    }
    // Whatever still waits for the network does not keep anybody.
    runtime.shutdown_background();
}

/// Remembers how to see the progress, and lets the events begin.
fn tell_started(
    handle: &Handle,
    ledger: PathBuf,
    pumped: tokio::sync::oneshot::Sender<Source>,
) -> backfill::Started {
    let (slot, pumped) = (Arc::clone(&handle.seen), Mutex::new(Some(pumped)));
    Box::new(move |pipeline, decisions| {
        *lock(&slot) = Some((pipeline.progress(), pipeline.sinks()));
        if let (Some(pumped), Some(decisions)) = (lock(&pumped).take(), decisions) {
            let (ledger, progress) = (ledger.clone(), pipeline.progress());
            let _unheard = pumped.send(Source { decisions: decisions.clone(), progress, ledger });
        }
    })
}

async fn perform(
    order: &backfill::Backfill,
    beside: &Beside,
    handle: &Handle,
) -> Result<Report, Error> {
    let surrounding = Surrounding::system();
    let stop = handle.cancel.clone().cancelled_owned();
    let performed = backfill::perform(order, beside, &surrounding, stop).await?;
    let Some(performed) = performed else {
        return Err(Error::Cancelled(Box::new(Report::nothing_begun())));
    };
    let report = Report::of(&performed)?;
    let Performed { failure, .. } = performed;
    match failure {
        Some(failure) => Err(failure.into()),
        None if report.accounts.left > 0 => Err(Error::Cancelled(Box::new(report))),
        None => Ok(report),
    }
}

/// What is guarded is whole whatever happened to another holder.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
