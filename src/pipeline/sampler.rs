//! Sampler: reads the gauges from what exists, when somebody asks for them. Between two questions it costs nothing.
//!
//! ```text
//!  at once         accounts and the time left (as the scheduler last told), mailboxes, budgets, spools
//!  within 2 s      hosts (the scheduler is asked), parked by reason (state.db is read), the journal, what sinks hold of it
//!  once a minute   pending items of each queue, 1 s for all together
//! ```
//! What does not answer in time keeps its last figure; pending items then become NaN, because theirs may be long past. Questions
//! that come at the same time share one answer of the slow part.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, TryLockError};
use std::time::Duration;

use ractor::ActorRef;
use tokio::sync::watch;

use crate::clock::{Clock, Instant};
use crate::domain::account::{REJECTED, SKIPPED};
use crate::domain::verdict::{LastError, Reason};
use crate::pipeline::data::LEDGER_FILE;
use crate::pipeline::parts::Parts;
use crate::pipeline::{Budgets, Mailboxes};
use crate::sink::{pending, sqlite::file_name};
use crate::stages::scheduler::{Message, Progress};
use crate::store::followers::Following;
use crate::store::journal::Journal;
use crate::store::leaves::DELETED_LABEL;
use crate::store::ledger_lists::{Counts, Reader};
use crate::store::spool::SpoolPool;
use crate::telemetry;
use crate::transform::Transformer;

/// How long a scrape waits for what may be slow; Prometheus itself waits 10 s.
const PATIENCE: Duration = Duration::from_secs(2);

/// Pending items are counted again after this long.
const PENDING_EVERY: Duration = Duration::from_secs(60);

/// All queues together are counted within this time; each has an equal share of what those before it have left.
const PENDING_PATIENCE: Duration = Duration::from_secs(1);

/// Reads a pipeline's gauges; clones share their work. Outlives the pipeline harmlessly.
#[derive(Clone)]
pub struct Sampler {
    clock: Clock,
    mailboxes: Mailboxes,
    budgets: Budgets,
    spools: SpoolPool,
    progress: watch::Receiver<Progress>,
    scheduler: watch::Receiver<Option<ActorRef<Message>>>,
    disk: Arc<Mutex<DiskFigures>>,
    has_told_forgotten: Arc<AtomicBool>,
}

/// What is read from the disk, by one question at a time.
struct DiskFigures {
    journal: Arc<Mutex<Journal>>,
    following: Following,
    ledger: PathBuf,
    queues: PathBuf,
    /// Of every queue, those of rejections and deletions too.
    labels: Vec<String>,
    pending_at: Option<Instant>,
}

impl Sampler {
    /// A sampler of the pipeline that is made of `parts`; the series are there from now on.
    pub(super) fn new(
        parts: &Parts<'_>,
        transformer: &Transformer,
        progress: watch::Receiver<Progress>,
        scheduler: watch::Receiver<Option<ActorRef<Message>>>,
    ) -> Self {
        let dir = &parts.disk.dir;
        let labels = transformer.queues();
        let figures = DiskFigures {
            journal: Arc::clone(&parts.disk.journal),
            following: parts.disk.following(),
            ledger: dir.join(LEDGER_FILE),
            queues: dir.join("queue"),
            labels: labels.iter().cloned().chain([DELETED_LABEL.to_owned()]).collect(),
            pending_at: None,
        };
        let sampler = Self {
            clock: parts.surrounding.clock.clone(),
            mailboxes: parts.mailboxes.clone(),
            budgets: parts.budgets.clone(),
            spools: parts.spools.clone(),
            progress,
            scheduler,
            disk: Arc::new(Mutex::new(figures)),
            has_told_forgotten: Arc::default(),
        };
        sampler.announce(&labels[..transformer.rejected_queue()]);
        sampler
    }

    /// Makes every series of the closed label sets, so that each is there before something happens: an alert on what is not
    /// there stays silent. `exported` are the labels of the exported types.
    fn announce(&self, exported: &[String]) {
        telemetry::announce();
        telemetry::progressed(self.clock.wall_ms());
        telemetry::config_loaded(self.clock.wall_ms());
        exported.iter().for_each(|label| telemetry::exported(label, 0));
        SKIPPED.iter().for_each(|reason| telemetry::skipped(reason, 0));
        REJECTED.iter().for_each(|reason| telemetry::rejected(reason, 0));
        LastError::ALL.iter().for_each(|error| telemetry::retried(error.as_str(), 0));
        Reason::ALL.iter().for_each(|reason| telemetry::parked(reason.as_str(), 0));
        telemetry::HOST_STATES.iter().for_each(|state| telemetry::hosts(state, 0));
        telemetry::journal_bytes(0);
    }

    /// Brings every gauge up to date.
    pub async fn sample(&self) {
        self.tell_at_once();
        let disk = Arc::clone(&self.disk);
        let clock = self.clock.clone();
        let reading = tokio::task::spawn_blocking(move || match disk.try_lock() {
            Ok(mut figures) => figures.tell(&clock),
            Err(TryLockError::Poisoned(figures)) => figures.into_inner().tell(&clock),
            // Another question has it in hand.
            Err(TryLockError::WouldBlock) => {}
        });
        let _in_time = tokio::join!(tokio::time::timeout(PATIENCE, reading), self.tell_hosts());
    }

    fn tell_at_once(&self) {
        let Progress { counts, estimate, .. } = *self.progress.borrow();
        telemetry::remaining(estimate.remaining);
        let Counts { queued, active, retrying, done, parked, forgotten } = counts;
        let by_state = [queued, active, retrying, done, parked];
        if forgotten > 0 || self.has_told_forgotten.load(Ordering::Acquire) {
            self.has_told_forgotten.store(true, Ordering::Release);
            telemetry::accounts(telemetry::FORGOTTEN, forgotten);
        }
        for (state, accounts) in telemetry::ACCOUNT_STATES.into_iter().zip(by_state) {
            telemetry::accounts(state, accounts);
        }
        let Mailboxes { resolver, fetcher, parser, exporter, backlog: _ } = &self.mailboxes;
        telemetry::mailbox(resolver.stage(), resolver.depth(), resolver.capacity());
        telemetry::mailbox(fetcher.stage(), fetcher.depth(), fetcher.capacity());
        telemetry::mailbox(parser.stage(), parser.depth(), parser.capacity());
        telemetry::mailbox(exporter.stage(), exporter.depth(), exporter.capacity());
        let Budgets { spools, walks, rows } = &self.budgets;
        for (budget, bytes) in [("spools", spools), ("walks", walks), ("rows", rows)] {
            telemetry::memory_budget(budget, bytes.used(), bytes.limit());
        }
        telemetry::spool_bytes(self.spools.disk_bytes());
    }

    async fn tell_hosts(&self) {
        let Some(scheduler) = self.scheduler.borrow().clone() else { return };
        let millis = u64::try_from(PATIENCE.as_millis()).unwrap_or(u64::MAX);
        if let Ok(counts) = ractor::call_t!(scheduler, Message::CountHosts, millis) {
            for (state, hosts) in telemetry::HOST_STATES.into_iter().zip(counts) {
                telemetry::hosts(state, hosts);
            }
        }
    }
}

impl DiskFigures {
    fn tell(&mut self, clock: &Clock) {
        telemetry::journal_bytes(
            self.journal.lock().unwrap_or_else(PoisonError::into_inner).used_bytes(),
        );
        for (followed, lag) in self.following.lags() {
            telemetry::sink(telemetry::SinkGauges {
                sink: &followed.name,
                lag_segments: lag.segments,
                lag_bytes: lag.bytes,
                is_waiting: followed.waits.is_some(),
                is_blocking: followed.holds_up,
            });
        }
        match Reader::open(&self.ledger).and_then(|reader| reader.parked_by_reason()) {
            Ok(counts) => {
                for reason in Reason::ALL {
                    let accounts = counts.get(reason.as_str()).copied().unwrap_or(0);
                    telemetry::parked(reason.as_str(), accounts);
                }
            }
            Err(error) => tracing::debug!(%error, "parked accounts were not counted"),
        }
        let is_old = |at: Instant| clock.now().duration_since(at) >= PENDING_EVERY;
        if self.pending_at.is_none_or(is_old) {
            self.tell_pending(clock);
            self.pending_at = Some(clock.now());
        }
    }

    fn tell_pending(&self, clock: &Clock) {
        let until = clock.now() + PENDING_PATIENCE;
        for (index, label) in self.labels.iter().enumerate() {
            let left = u32::try_from(self.labels.len() - index).unwrap_or(u32::MAX);
            let share = until.saturating_duration_since(clock.now()) / left;
            let path = self.queues.join(file_name(label));
            // There is a queue of deletions once accounts are refreshed.
            if label == DELETED_LABEL && !path.exists() {
                continue;
            }
            let items = pending::count(&path, share, clock);
            telemetry::queue_pending(label, items);
        }
    }
}
