//! Pipeline: the only place that knows the whole. It cuts the budgets, connects the stages and starts what runs.
//!
//! ```text
//!  Data::open ──> lists ──> Pipeline::start:  ledger thread, applier thread, parser threads,
//!                                             supervisor: exporter, parser, fetcher, resolver, scheduler
//!  Pipeline::stop:  scheduler drains ──> stages stop, scheduler first ──> applier settles ──> leases go back ──> ledger closes
//! ```

pub mod data;
mod disk;
pub mod forget;
mod heart;
#[cfg(feature = "kafka")]
mod intake;
mod manner;
pub mod parts;
pub mod reach;
pub mod recheck;
pub mod refresh;
pub mod sampler;
#[cfg(feature = "kafka")]
pub mod sharing;
mod surrounding;
#[cfg(feature = "kafka")]
mod telling;
mod turns;

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use ractor::{Actor, ActorRef};
use tokio::sync::watch;

use crate::actor::backlog::Backlog;
use crate::actor::mailbox::Mailbox;
use crate::actor::supervisor::{self, Child, Ended, Supervisor};
use crate::clock::Clock;
use crate::config::settings::Settings;
use crate::net::error::NetError;
use crate::net::pace::PaceLimits;
use crate::stages::messages::{DidJob, FetchJob, FetchedCar, RowChunk};
use crate::stages::scheduler::terms::PlanLimits;
use crate::stages::scheduler::{Message, Progress};
use crate::stages::{exporter, parser};
use crate::store::apply::Applier;
use crate::store::budget::Budget;
use crate::store::error::StoreError;
use crate::store::follow::Followers;
use crate::store::health::{Condition, Health};
use crate::store::spool::SpoolPool;

pub use data::{Data, OtherFilter, WithoutLeaves};
pub use reach::Reach;
pub use surrounding::Surrounding;

use disk::Disk;
use forget::Forgetter;
use parts::{Parts, scheduler_child};
use recheck::Rechecker;
use sampler::Sampler;

/// Resolutions at once to the PLC directory.
const DIRECTORY_CONCURRENCY: usize = 32;

/// Draining ends after this long, whatever is still in flight: systemd and people wait 30 s.
const DRAIN: Duration = Duration::from_secs(20);

/// Why a pipeline did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The data directory.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The data directory, when it had just been opened.
    #[error("{0}")]
    Failed(Arc<StoreError>),
    /// The network client.
    #[error("the network client could not be made: {0}")]
    Net(#[from] NetError),
    /// A thread or an actor.
    #[error("{0} could not be started: {1}")]
    Part(&'static str, String),
}

/// How a pipeline ended.
#[derive(Clone, Debug)]
pub enum PipelineEnd {
    /// Nothing is left to do.
    Finished,
    /// The data directory failed.
    Failed(Arc<StoreError>),
    /// This stage died too often.
    RestartStorm(&'static str),
}

/// The budgets that `limits.memory` is cut into (DESIGN section 3).
#[derive(Clone, Debug)]
pub struct Budgets {
    /// One half: repositories in memory.
    pub spools: Budget,
    /// One quarter: block indexes.
    pub walks: Budget,
    /// One quarter: rows.
    pub rows: Budget,
}

impl Budgets {
    fn cut(memory: u64) -> Self {
        let (spools, walks, rows) = (memory / 2, memory / 4, memory / 4);
        Self { spools: Budget::new(spools), walks: Budget::new(walks), rows: Budget::new(rows) }
    }
}

/// The stages' mailboxes.
#[derive(Clone)]
pub struct Mailboxes {
    /// Of the resolver.
    pub resolver: Mailbox<DidJob>,
    /// Of the fetcher.
    pub fetcher: Mailbox<FetchJob>,
    /// Of the parser.
    pub parser: Mailbox<FetchedCar>,
    /// What has arrived there and waits.
    pub backlog: Backlog,
    /// Of the exporter.
    pub exporter: Mailbox<RowChunk>,
}

impl Mailboxes {
    fn new(settings: &Settings, budgets: &Budgets) -> Self {
        let (transfers, resolutions) = parts::places(settings, budgets);
        let threads = parts::parser_threads(settings);
        let parser = threads * parser::CAPACITY_PER_THREAD;
        Self {
            resolver: Mailbox::new("resolver", resolutions),
            fetcher: Mailbox::new("fetcher", transfers),
            parser: Mailbox::new("parser", parser),
            backlog: Backlog::new(threads, budgets.spools.limit(), transfers),
            exporter: Mailbox::new("exporter", exporter::CAPACITY),
        }
    }
}

/// A running pipeline.
pub struct Pipeline {
    /// Its budgets.
    pub budgets: Budgets,
    /// Its mailboxes.
    pub mailboxes: Mailboxes,
    disk: Disk,
    health: Health,
    supervisor: ActorRef<supervisor::Command>,
    scheduler: watch::Receiver<Option<ActorRef<Message>>>,
    ended: watch::Receiver<Option<Ended>>,
    progress: watch::Sender<Progress>,
    sampler: Sampler,
    may_begin: Arc<AtomicBool>,
    limits: Arc<watch::Sender<PlanLimits>>,
    refresh_every: Arc<watch::Sender<Option<Duration>>>,
    filter_hash: String,
    rechecker: Rechecker,
}

impl Pipeline {
    /// Starts the stages over `data`, and with them the work.
    ///
    /// # Errors
    /// [`StartError`].
    pub async fn start(
        data: Data,
        settings: &Settings,
        surrounding: &Surrounding,
    ) -> Result<Self, StartError> {
        let pipeline = Self::start_held(data, settings, surrounding).await?;
        pipeline.reach().begin();
        Ok(pipeline)
    }

    /// Starts the stages over `data`; no account is leased before [`Reach::begin`].
    ///
    /// # Errors
    /// [`StartError`].
    pub async fn start_held(
        data: Data,
        settings: &Settings,
        surrounding: &Surrounding,
    ) -> Result<Self, StartError> {
        let health = Health::default();
        let (may_begin, filter_hash) = (Arc::default(), data.transformer.filter_hash().to_owned());
        let (clock, transformer) = (surrounding.clock.clone(), Arc::clone(&data.transformer));
        let budgets = Budgets::cut(settings.limits.memory);
        let mailboxes = Mailboxes::new(settings, &budgets);
        let client = parts::client(settings, surrounding)?;
        let threads = parts::parser_pool(settings, &mailboxes)?;
        let disk = Disk::start(data, settings, &clock, &health)?;
        let spools = spool_pool(&disk, settings, &budgets);
        let progress = watch::Sender::new(Progress::default());
        let (bound, bound_scheduler) = watch::channel(None);
        let parts = Parts {
            settings,
            surrounding,
            disk: &disk,
            health: &health,
            mailboxes: &mailboxes,
            budgets: &budgets,
            spools: &spools,
        };
        let rechecker = parts.rechecker(client.clone(), turns::of(bound_scheduler.clone()));
        let (limits, newest) = watch::channel(plan_limits(settings));
        let schedule = parts.scheduler(progress.clone(), Arc::clone(&may_begin));
        let watched = progress.subscribe();
        let sampler = Sampler::new(&parts, &transformer, watched, bound_scheduler.clone());
        let children = vec![
            parts.exporter(),
            parts.parser(transformer, threads),
            parts.fetcher(client.clone()),
            parts.resolver(client),
            scheduler_child(schedule, newest, bound),
        ];
        let (supervisor, ended) = match supervise(children, clock).await {
            Ok(supervised) => supervised,
            Err(error) => {
                // Whoever tries again in this process finds nobody in the directory.
                disk.abandon().await;
                return Err(health.failure().map_or(error, StartError::Failed));
            }
        };
        tell_applied(&disk.applier, bound_scheduler.clone());
        let pipeline = Self {
            budgets,
            mailboxes,
            disk,
            health,
            supervisor,
            scheduler: bound_scheduler,
            ended,
            progress,
            sampler,
            may_begin,
            limits: Arc::new(limits),
            refresh_every: Arc::new(watch::Sender::new(settings.refresh.every)),
            filter_hash,
            rechecker,
        };
        let (reach, supervisor) = (pipeline.reach(), pipeline.supervisor.clone());
        tokio::spawn(heart::replace_silent(reach, supervisor, surrounding.stage_patience));
        Ok(pipeline)
    }

    /// The way into it from outside.
    #[must_use]
    pub fn reach(&self) -> Reach {
        Reach {
            ledger: self.disk.ledger.clone(),
            health: self.health.clone(),
            mailboxes: self.mailboxes.clone(),
            scheduler: self.scheduler.clone(),
            progress: self.progress.subscribe(),
            may_begin: Arc::clone(&self.may_begin),
            limits: Arc::clone(&self.limits),
            refresh_every: Arc::clone(&self.refresh_every),
            spool: self.disk.dir.join("spool"),
            state_db: self.disk.dir.join(data::LEDGER_FILE),
            forgetter: Forgetter::new(&self.disk),
            rechecker: self.rechecker.clone(),
            filter_hash: self.filter_hash.clone(),
            following: self.disk.following(),
        }
    }

    /// Waits until nothing is left to do, or something has ended the pipeline.
    pub async fn ended(&self) -> PipelineEnd {
        let mut progress = self.progress.subscribe();
        tokio::select! {
            biased;
            end = self.broken() => end,
            _ = progress.wait_for(|it| it.is_finished) => PipelineEnd::Finished,
        }
    }

    /// Waits until something has ended the pipeline.
    pub async fn broken(&self) -> PipelineEnd {
        let (mut health, mut ended) = (self.health.watch(), self.ended.clone());
        tokio::select! {
            biased;
            failed = health.wait_for(|it| it.failed.is_some()) => {
                match failed.ok().and_then(|condition| condition.failed.clone()) {
                    Some(error) => PipelineEnd::Failed(error),
                    None => PipelineEnd::RestartStorm("supervisor"),
                }
            }
            storm = ended.wait_for(Option::is_some) => match storm.as_deref() {
                Ok(Some(Ended::RestartStorm(stage))) => PipelineEnd::RestartStorm(stage),
                _ => PipelineEnd::Finished,
            },
        }
    }

    /// Name of the key of the pseudonyms in the queues, if there are any.
    #[must_use]
    pub fn pseudonyms(&self) -> Option<String> {
        self.disk.names.as_ref().map(|names| names.id().to_owned())
    }

    /// Reads the gauges of this pipeline.
    #[must_use]
    pub fn sampler(&self) -> Sampler {
        self.sampler.clone()
    }

    /// How far the work is.
    #[must_use]
    pub fn progress(&self) -> watch::Receiver<Progress> {
        self.progress.subscribe()
    }

    /// What is wrong with the disk.
    #[must_use]
    pub fn condition(&self) -> watch::Receiver<Condition> {
        self.health.watch()
    }

    /// Waits until every sink beside the queues has what is sealed by now, or has ended.
    pub async fn followed(&self) {
        let newest = {
            let journal = self.disk.journal.lock();
            journal.unwrap_or_else(std::sync::PoisonError::into_inner).newest()
        };
        self.disk.followers.finish();
        self.disk.followers.passed_by(newest).await;
    }

    /// Those sinks.
    #[must_use]
    pub fn sinks(&self) -> Followers {
        self.disk.followers.clone()
    }

    /// Stops: what is in flight is finished within 20 s or given back, nothing is charged. The progress then counts what was
    /// sealed last, too.
    ///
    /// # Errors
    /// What ended the data directory, if something did.
    pub async fn stop(self) -> Result<(), Arc<StoreError>> {
        let scheduler = self.scheduler.borrow().clone();
        let may_finish = self.disk.may_finish(&self.health);
        if let Some(scheduler) = scheduler.filter(|_| may_finish) {
            let millis = u64::try_from(DRAIN.as_millis()).unwrap_or(u64::MAX);
            let _drained = ractor::call_t!(scheduler, Message::Drain, millis);
        }
        self.health.end_waiting();
        let _stopped = ractor::call!(self.supervisor, supervisor::Command::Stop);
        if let Some(error) = self.health.failure() {
            self.disk.abandon().await;
            return Err(error);
        }
        if let Some(run) = self.disk.stop(&self.health).await {
            self.progress.send_modify(|progress| progress.run = run);
        }
        self.health.failure().map_or(Ok(()), Err)
    }
}

/// Starts the stages, each when those below it are there.
async fn supervise(
    children: Vec<Child>,
    clock: Clock,
) -> Result<(ActorRef<supervisor::Command>, watch::Receiver<Option<Ended>>), StartError> {
    let (tell_end, ended) = watch::channel(None);
    let arguments = supervisor::Arguments { children, clock, ended: tell_end };
    match Actor::spawn(None, Supervisor, arguments).await {
        Ok((supervisor, _joined)) => Ok((supervisor, ended)),
        Err(error) => Err(StartError::Part("a stage", error.to_string())),
    }
}

/// Where repositories lie between socket and parser.
fn spool_pool(disk: &Disk, settings: &Settings, budgets: &Budgets) -> SpoolPool {
    let limits = &settings.limits;
    let (folder, memory) = (disk.dir.join("spool"), budgets.spools.clone());
    SpoolPool::new(folder, limits.spool_memory, memory, limits.spool)
}

/// Tells the scheduler whenever the ledger has taken a segment.
fn tell_applied(applier: &Applier, scheduler: watch::Receiver<Option<ActorRef<Message>>>) {
    let mut progress = applier.progress();
    tokio::spawn(async move {
        while progress.changed().await.is_ok() {
            if let Some(scheduler) = scheduler.borrow().as_ref() {
                // A scheduler that is being restarted counts anew anyway.
                let _gone = scheduler.cast(Message::LedgerMoved);
            }
        }
    });
}

/// The numbers of `settings` that the scheduler works by.
#[must_use]
pub fn plan_limits(settings: &Settings) -> PlanLimits {
    let patience = settings.retry.host_patience;
    PlanLimits {
        host: PaceLimits {
            requests_per_second: settings.fetch.host_requests_per_second,
            concurrency: settings.fetch.host_concurrency,
            patience,
        },
        directory: PaceLimits {
            requests_per_second: settings.identity.requests_per_second,
            concurrency: DIRECTORY_CONCURRENCY,
            patience,
        },
        batch_size: settings.limits.batch_size,
    }
}
