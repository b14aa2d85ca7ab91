//! What happens while a backfill runs, for one who wants to see it happen.
//!
//! ```text
//!  decisions (a file that keeps them until they are read) ──> 256 events ──> you
//!  progress, once a second ──> if there is room ──────────────┘
//! ```
//! Each given account is told once it is done or parked, those that were decided before the run first. However slow you are,
//! none of these is lost and the work does not wait for you; it is progress that is left out then. When everything is told,
//! the stream ends.

use std::path::PathBuf;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use serde::Serialize;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::MissedTickBehavior;

use crate::domain::ledger::State;
use crate::library::report::{Parked, User};
use crate::stages::scheduler;
use crate::store::decisions::Decisions;
use crate::store::error::StoreError;
use crate::store::ledger_lists::Reader;

/// Events between skyfill and who listens, each some hundred bytes.
pub(super) const CAPACITY: usize = 256;

/// Accounts read from the ledger in one go.
const AT_ONCE: usize = 64;

/// Between two reports of progress.
const PROGRESS_EVERY: Duration = Duration::from_secs(1);

/// How far a run is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Progress {
    /// Accounts that wait.
    pub queued: u64,
    /// Accounts in work.
    pub active: u64,
    /// Accounts that wait for their next attempt.
    pub retrying: u64,
    /// Accounts exported.
    pub done: u64,
    /// Accounts given up.
    pub parked: u64,
    /// Records that this run has exported.
    pub records: u64,
    /// Seconds until everything will be decided, if that can be said.
    pub eta_seconds: Option<u64>,
}

impl From<scheduler::Progress> for Progress {
    fn from(progress: scheduler::Progress) -> Self {
        let scheduler::Progress { counts, run, estimate, .. } = progress;
        Self {
            queued: counts.queued,
            active: counts.active,
            retrying: counts.retrying,
            done: counts.done,
            parked: counts.parked,
            records: run.records,
            eta_seconds: estimate.remaining.map(|left| left.as_secs()),
        }
    }
}

/// Something that happened.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub enum Event {
    /// An account is exported, whole and proven.
    Done(User),
    /// An account is given up.
    Parked(Parked),
    /// How far the work is.
    Progress(Progress),
    /// The ledger could not be read, so that nothing more is told; the run's own end says what is wrong.
    Broken(String),
}

/// The events of a run, in order; also a [`futures::Stream`]. Dropped, nothing more is told, and the work goes on.
#[derive(Debug)]
pub struct Events(pub(super) mpsc::Receiver<Event>);

impl Events {
    /// The next event; `None` once everything is told.
    pub async fn next(&mut self) -> Option<Event> {
        self.0.recv().await
    }

    /// The next event, for code that is not async: there it panics, as tokio's own blocking calls do.
    pub fn blocking_next(&mut self) -> Option<Event> {
        self.0.blocking_recv()
    }
}

impl futures::Stream for Events {
    type Item = Event;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Event>> {
        self.0.poll_recv(context)
    }
}

/// Where events come from.
#[derive(Debug)]
pub(super) struct Source {
    pub(super) decisions: Decisions,
    pub(super) progress: watch::Receiver<scheduler::Progress>,
    pub(super) ledger: PathBuf,
}

/// Tells `to` everything that happens until `ended`; nothing if the work never begins.
pub(super) async fn pump_from(
    source: oneshot::Receiver<Source>,
    to: mpsc::Sender<Event>,
    ended: watch::Receiver<bool>,
) {
    let Ok(source) = source.await else { return };
    if let Err(error) = pump(source, &to, ended).await {
        tracing::error!(%error, "events cannot be told any more");
        let _unheard = to.send(Event::Broken(error.to_string())).await;
    }
}

async fn pump(
    source: Source,
    to: &mpsc::Sender<Event>,
    mut ended: watch::Receiver<bool>,
) -> Result<(), StoreError> {
    let Source { decisions, progress, ledger } = source;
    let mut written = decisions.written();
    let reader = Arc::new(Mutex::new(Told { reader: Reader::open(&ledger)?, decisions, next: 0 }));
    let mut ticks = tokio::time::interval(PROGRESS_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        // Looked at first: what was decided before the end is then in the file.
        let is_last = *ended.borrow_and_update();
        loop {
            let read = Arc::clone(&reader);
            let reading = tokio::task::spawn_blocking(move || {
                read.lock().unwrap_or_else(PoisonError::into_inner).read()
            });
            let Some(events) = reading.await.unwrap_or(Ok(None))? else { break };
            for event in events {
                if to.send(event).await.is_err() {
                    return Ok(());
                }
            }
        }
        if is_last {
            return Ok(());
        }
        tokio::select! {
            _ = written.changed() => {}
            _ = ended.changed() => {}
            () = to.closed() => return Ok(()),
            _ = ticks.tick() => {
                let now = Progress::from(*progress.borrow());
                // Without room it is left out: the next one says more.
                let _left_out = to.try_send(Event::Progress(now));
            }
        }
    }
}

/// How far the decisions are told.
struct Told {
    reader: Reader,
    decisions: Decisions,
    next: u64,
}

impl Told {
    /// The next accounts; `None` if there are none. An account that was put back meanwhile is told when it is decided again.
    fn read(&mut self) -> Result<Option<Vec<Event>>, StoreError> {
        let rows = self.decisions.read(self.next, AT_ONCE)?;
        if rows.is_empty() {
            return Ok(None);
        }
        self.next += rows.len() as u64;
        let mut events = Vec::with_capacity(rows.len());
        for row in rows {
            events.extend(self.reader.decided(row)?.map(|report| match report.account.state {
                State::Parked(_) => Event::Parked(Parked::from_ledger(report)),
                _ => Event::Done(User::from_ledger(report)),
            }));
        }
        Ok(Some(events))
    }
}
