//! Reach: what reaches into a running pipeline from outside: questions, new numbers, new lists, accounts put back, heartbeats.
//!
//! None of it waits behind work: the scheduler answers questions between two messages, the ledger's writer takes each step
//! in its next commit. After lists have changed, or accounts were put back, the scheduler looks at every backlog anew.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use ractor::ActorRef;
use tokio::sync::watch;

use crate::domain::ledger::LedgerPolicy;
use crate::net::pace::HostState;
use crate::pipeline::Mailboxes;
use crate::pipeline::forget::{ForgetError, Forgetter, Forgot};
use crate::pipeline::recheck::{RecheckError, Rechecked, Rechecker};
use crate::stages::scheduler::terms::PlanLimits;
use crate::stages::scheduler::{Message, Observed, Progress};
use crate::store::error::StoreError;
use crate::store::followers::{Followed, Following, Lag};
use crate::store::health::{Condition, Health};
use crate::store::ledger::{Ledger, LedgerGone};
use crate::store::ledger_lists::Selection;
use crate::store::listing::{Known, ListingError, Staged, Step};

/// A part that does not answer within this time has no heartbeat.
const HEARTBEAT: Duration = Duration::from_secs(10);

/// How long the scheduler may take for an answer, milliseconds.
const ANSWER_MILLISECONDS: u64 = 4_000;

/// Reaches a running pipeline; cheap to clone. What it is asked after the pipeline's end finds nobody.
#[derive(Clone)]
pub struct Reach {
    pub(super) ledger: Ledger,
    pub(super) health: Health,
    pub(super) mailboxes: Mailboxes,
    pub(super) scheduler: watch::Receiver<Option<ActorRef<Message>>>,
    pub(super) progress: watch::Receiver<Progress>,
    pub(super) may_begin: Arc<AtomicBool>,
    pub(super) limits: Arc<watch::Sender<PlanLimits>>,
    pub(super) refresh_every: Arc<watch::Sender<Option<Duration>>>,
    pub(super) spool: PathBuf,
    pub(super) state_db: PathBuf,
    pub(super) filter_hash: String,
    pub(super) forgetter: Forgetter,
    pub(super) rechecker: Rechecker,
    pub(super) following: Following,
}

impl Reach {
    /// How far the work is.
    #[must_use]
    pub fn progress(&self) -> watch::Receiver<Progress> {
        self.progress.clone()
    }

    /// The ledger's writer.
    #[cfg(feature = "kafka")]
    pub(super) const fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    /// Ends the pipeline: something that it cannot do without has failed.
    #[cfg(feature = "kafka")]
    pub(super) fn fail(&self, error: StoreError) {
        self.health.fail(error);
    }

    /// What is wrong with the disk.
    #[must_use]
    pub fn condition(&self) -> watch::Receiver<Condition> {
        self.health.watch()
    }

    /// How far each sink beside the queues is, and what it holds of the journal.
    #[must_use]
    pub fn sinks(&self) -> Vec<(Followed, Lag)> {
        self.following.lags()
    }

    /// The stages' mailboxes.
    #[must_use]
    pub fn mailboxes(&self) -> &Mailboxes {
        &self.mailboxes
    }

    /// The ledger's file, for readers.
    #[must_use]
    pub fn state_db(&self) -> &Path {
        &self.state_db
    }

    /// Where the sorted file of a long list may lie.
    #[must_use]
    pub fn spool(&self) -> &Path {
        &self.spool
    }

    /// What is going on; `None` while the scheduler is being restarted.
    pub async fn observe(&self) -> Option<Observed> {
        let scheduler = self.scheduler.borrow().clone()?;
        ractor::call_t!(scheduler, Message::Observe, ANSWER_MILLISECONDS).ok()
    }

    /// Lets work begin, if it was held until the lists were loaded.
    pub fn begin(&self) {
        self.may_begin.store(true, Ordering::Release);
        self.tell(Message::Relisted);
    }

    /// Whether work may have begun.
    pub(super) fn has_begun(&self) -> bool {
        self.may_begin.load(Ordering::Acquire)
    }

    /// Lets the scheduler look at every backlog anew.
    pub(super) fn look_anew(&self) {
        self.tell(Message::Relisted);
    }

    /// How often done accounts are refreshed from now on.
    pub fn set_refresh_every(&self, every: Option<Duration>) {
        self.refresh_every.send_replace(every);
    }

    /// New rates and limits.
    pub fn set_limits(&self, limits: PlanLimits) {
        self.limits.send_replace(limits);
        self.tell(Message::Limits(limits));
    }

    /// New numbers behind the ledger's rules.
    ///
    /// # Errors
    /// [`LedgerGone`].
    pub async fn set_policy(&self, policy: LedgerPolicy) -> Result<(), LedgerGone> {
        let set = move |rows: &mut crate::store::ledger_rows::Rows| {
            rows.set_policy(policy);
            Ok::<(), StoreError>(())
        };
        self.ledger.run(set).await
    }

    /// Makes the accounts of a list known to the ledger, and says how many of them are done under another filter than the
    /// one at work. Blocks.
    ///
    /// # Errors
    /// [`ListingError`].
    pub fn know(&self, staged: Staged, tell: &dyn Fn(Step)) -> Result<(Known, u64), ListingError> {
        let mut ledger = self.ledger.clone();
        let known = staged.know(&mut ledger, tell)?;
        let others = known.under_another_filter(&mut ledger, &self.filter_hash)?;
        Ok((known, others))
    }

    /// Hash of the filter at work.
    #[must_use]
    pub fn filter_hash(&self) -> &str {
        &self.filter_hash
    }

    /// Accounts of a list that are done under another filter than `hash`. Blocks.
    ///
    /// # Errors
    /// [`ListingError`].
    pub fn under_another_filter(&self, known: &Known, hash: &str) -> Result<u64, ListingError> {
        known.under_another_filter(&mut self.ledger.clone(), hash)
    }

    /// Makes them the listed accounts; gives how many there are. Blocks.
    ///
    /// # Errors
    /// [`ListingError`].
    pub fn swap(&self, known: Known, tell: &dyn Fn(Step)) -> Result<u64, ListingError> {
        let listed = known.swap(&mut self.ledger.clone(), tell)?;
        self.tell(Message::Relisted);
        Ok(listed)
    }

    /// Notes how many accounts this run was given.
    ///
    /// # Errors
    /// [`LedgerGone`].
    pub async fn run_given(&self, run: i64, accounts: u64) -> Result<(), LedgerGone> {
        self.ledger.run(move |rows| rows.run_given(run, accounts)).await
    }

    /// Puts parked accounts back, some at a time; gives how many.
    ///
    /// # Errors
    /// [`LedgerGone`].
    pub async fn retry(&self, selection: Selection) -> Result<u64, LedgerGone> {
        let (mut after, mut count) = (0, 0);
        loop {
            let selection = selection.clone();
            let some = self.ledger.run(move |rows| rows.retry_some(&selection, after)).await?;
            count += some.retried;
            self.tell(Message::Relisted);
            match some.last {
                Some(last) => after = last,
                None => return Ok(count),
            }
        }
    }

    /// Forgets accounts: see [`Forgetter::forget`].
    ///
    /// # Errors
    /// [`ForgetError`].
    pub async fn forget(&self, dids: Vec<String>) -> Result<Forgot, ForgetError> {
        let forgot = self.forgetter.forget(dids).await;
        self.tell(Message::Relisted);
        forgot
    }

    /// Asks hosts again how accounts stand: see [`Rechecker::run`].
    ///
    /// # Errors
    /// [`RecheckError`].
    pub async fn recheck(&self, given: Option<Vec<String>>) -> Result<Rechecked, RecheckError> {
        self.rechecker.run(given).await
    }

    /// Asks every stage and the ledger for a heartbeat.
    ///
    /// # Errors
    /// Who did not answer.
    pub async fn heartbeat(&self) -> Result<(), &'static str> {
        self.silent(HEARTBEAT).await.first().map_or(Ok(()), |part| Err(*part))
    }

    /// Which stages, or the ledger, do not answer within `patience`. While the disk is full everybody waits, and that is no
    /// illness.
    pub(super) async fn silent(&self, patience: Duration) -> Vec<&'static str> {
        let boxes = &self.mailboxes;
        let scheduler = async {
            let asked = self.scheduler.borrow().clone();
            let millis = u64::try_from(patience.as_millis()).unwrap_or(u64::MAX);
            match asked {
                Some(scheduler) => ractor::call_t!(scheduler, Message::Observe, millis).is_ok(),
                None => false,
            }
        };
        let ledger = tokio::time::timeout(patience, self.ledger.run(|_| Ok(())));
        let (scheduler, resolver, fetcher, parser, exporter, ledger) = tokio::join!(
            scheduler,
            boxes.resolver.beats(patience),
            boxes.fetcher.beats(patience),
            boxes.parser.beats(patience),
            boxes.exporter.beats(patience),
            ledger
        );
        let parts = [
            ("scheduler", scheduler),
            ("resolver", resolver),
            ("fetcher", fetcher),
            ("parser", parser),
            ("exporter", exporter),
            ("ledger", matches!(ledger, Ok(Ok(())))),
        ];
        if self.health.is_full() {
            return Vec::new();
        }
        parts.into_iter().filter(|(_, is_beating)| !is_beating).map(|(part, _)| part).collect()
    }

    /// What keeps the work from going faster: a word of a closed set; `None` if nothing is left to do.
    #[must_use]
    pub fn bound_by(&self, observed: &Observed, batch_size: usize) -> Option<&'static str> {
        let (counts, boxes) = (&observed.counts, &self.mailboxes);
        let has_ready = observed.hosts.iter().any(|host| host.queued > 0);
        let is_waiting = |state| state != HostState::Working;
        let waiting = observed.hosts.iter().filter(|host| host.queued > 0);
        let all_wait = has_ready && waiting.clone().all(|host| is_waiting(host.state));
        Some(match () {
            () if !self.may_begin.load(Ordering::Acquire) => "lists",
            () if counts.pending() == 0 => return None,
            () if self.health.is_full() => "disk",
            () if self.following.followers().hold_up() => "sink",
            () if boxes.exporter.free() == 0 => "exporter",
            () if boxes.parser.free() == 0 => "parser",
            () if boxes.fetcher.free() == 0 || observed.in_flight >= batch_size => "concurrency",
            () if all_wait => "hosts",
            () if has_ready => "host_pace",
            () if observed.directory_waits || counts.queued > 0 => "directory",
            () if counts.active > 0 => "hosts",
            () => "retry",
        })
    }

    fn tell(&self, message: Message) {
        if let Some(scheduler) = self.scheduler.borrow().as_ref() {
            // A scheduler that is being restarted looks at everything anew anyway.
            let _gone = scheduler.cast(message);
        }
    }
}
