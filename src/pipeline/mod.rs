//! Pipeline: the only place that knows the whole. It cuts the budgets, connects the stages and starts what runs.
//!
//! ```text
//!  Data::open ──> lists ──> Pipeline::start:  ledger thread, applier thread, parser threads,
//!                                             supervisor: exporter, parser, fetcher, resolver, scheduler
//!  Pipeline::stop:  scheduler drains ──> stages stop, scheduler first ──> applier settles ──> leases go back ──> ledger closes
//! ```

pub mod data;

use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use futures::FutureExt;
use ractor::{Actor, ActorRef};
use tokio::sync::watch;

use crate::actor::mailbox::Mailbox;
use crate::actor::supervisor::{self, Child, Ended, Supervisor};
use crate::clock::Clock;
use crate::config::settings::Settings;
use crate::domain::ledger::Event;
use crate::net::client::{Client, Surroundings};
use crate::net::error::NetError;
use crate::net::pace::PaceLimits;
use crate::seed::Chance;
use crate::sink::sqlite::SqliteQueues;
use crate::stages::messages::{DidJob, FetchJob, FetchedCar, Probe, RowChunk};
use crate::stages::scheduler::terms::PlanLimits;
use crate::stages::scheduler::{Message, Observed, Progress, Scheduler};
use crate::stages::{exporter, fetcher, parser, resolver, scheduler};
use crate::store::apply::{Applier, Sink};
use crate::store::budget::Budget;
use crate::store::data_dir::DataDir;
use crate::store::error::StoreError;
use crate::store::health::{Condition, Health};
use crate::store::journal::Journal;
use crate::store::ledger::{Follower, Ledger};
use crate::store::spool::SpoolPool;
use crate::transform::Transformer;

pub use data::{Data, OtherFilter};

/// Resolutions at once to the PLC directory.
const DIRECTORY_CONCURRENCY: usize = 32;

/// Draining ends after this long, whatever is still in flight: systemd and people wait 30 s.
const DRAIN: Duration = Duration::from_secs(20);

/// What a pipeline takes from its surroundings.
#[derive(Clone)]
pub struct Surrounding {
    /// Time.
    pub clock: Clock,
    /// Chance.
    pub chance: Chance,
    /// Names and certificate authorities; `None`: the system's.
    pub network: Option<Surroundings>,
    /// Sees what passes: for tests.
    pub probe: Probe,
}

impl Surrounding {
    /// The system's clock, chance and network.
    #[must_use]
    pub fn system() -> Self {
        let (clock, chance) = (Clock::system(), Chance::system());
        Self { clock, chance, network: None, probe: Probe::default() }
    }
}

/// Why a pipeline did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The data directory.
    #[error(transparent)]
    Store(#[from] StoreError),
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
    /// Of the exporter.
    pub exporter: Mailbox<RowChunk>,
}

impl Mailboxes {
    fn new(settings: &Settings) -> Self {
        let parser = parser_threads(settings) * parser::CAPACITY_PER_THREAD;
        Self {
            resolver: Mailbox::new("resolver", resolver::CAPACITY),
            fetcher: Mailbox::new("fetcher", settings.fetch.concurrency),
            parser: Mailbox::new("parser", parser),
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
    progress: watch::Receiver<Progress>,
}

/// The data directory with the threads that write it.
struct Disk {
    ledger: Ledger,
    journal: Arc<Mutex<Journal>>,
    applier: Applier,
    threads: Vec<JoinHandle<()>>,
    dir: DataDir,
}

impl Disk {
    fn start(
        data: Data,
        settings: &Settings,
        clock: &Clock,
        health: &Health,
    ) -> Result<Self, StoreError> {
        let Data { dir, rows, journal, data_id, positions, transformer } = data;
        let segment = rows.segment()?;
        let (ledger, ledger_thread) = Ledger::start(rows, health.clone())?;
        let (labels, rows_per_item) = (transformer.queues(), settings.rows_per_item);
        let folder = dir.join("queue");
        let queues =
            SqliteQueues::open(&folder, &data_id, labels, rows_per_item, positions, clock.clone())?;
        let follower = Box::new(Follower::new(ledger.clone(), segment));
        let sinks: Vec<Box<dyn Sink>> = vec![Box::new(queues)];
        let (applier, applier_thread) =
            Applier::start(Arc::clone(&journal), sinks, follower, health.clone())?;
        Ok(Self { ledger, journal, applier, threads: vec![applier_thread, ledger_thread], dir })
    }

    /// Settles the queues, ends every lease and closes the ledger.
    async fn stop(self, health: &Health) {
        let applier = self.applier.clone();
        let _stopped = tokio::task::spawn_blocking(move || applier.stop()).await;
        let mut progress = self.applier.progress();
        let _ended = progress.wait_for(|progress| progress.ended).await;
        if health.failure().is_some() {
            return;
        }
        let _gone = self.ledger.run(|rows| rows.end_leases(&Event::GivenBack)).await;
        self.ledger.close().await;
        let threads = self.threads;
        let join = move || threads.into_iter().for_each(|thread| drop(thread.join()));
        let _joined = tokio::task::spawn_blocking(join).await;
    }
}

impl Pipeline {
    /// Starts the stages over `data`.
    ///
    /// # Errors
    /// [`StartError`].
    pub async fn start(
        data: Data,
        settings: &Settings,
        surrounding: &Surrounding,
    ) -> Result<Self, StartError> {
        let health = Health::default();
        let (clock, transformer) = (surrounding.clock.clone(), Arc::clone(&data.transformer));
        let disk = Disk::start(data, settings, &clock, &health)?;
        let mailboxes = Mailboxes::new(settings);
        let budgets = Budgets::cut(settings.limits.memory);
        let (progress, watched) = watch::channel(Progress::default());
        let (bound, scheduler) = watch::channel(None);
        let parts = Parts {
            settings,
            surrounding,
            disk: &disk,
            health: &health,
            mailboxes: &mailboxes,
            budgets: &budgets,
        };
        let client = parts.client()?;
        let threads = parser::Threads::start(parser_threads(settings))
            .map_err(|error| StartError::Part("a parser thread", error.to_string()))?;
        let schedule = parts.scheduler(progress);
        let children = vec![
            parts.exporter(),
            parts.parser(transformer, threads),
            parts.fetcher(client.clone()),
            parts.resolver(client),
            child(
                "scheduler",
                move || (Scheduler, schedule.clone()),
                move |actor| {
                    bound.send_replace(Some(actor));
                },
            ),
        ];
        let (tell_end, ended) = watch::channel(None);
        let arguments = supervisor::Arguments { children, clock, ended: tell_end };
        let (supervisor, _joined) = Actor::spawn(None, Supervisor, arguments)
            .await
            .map_err(|error| StartError::Part("a stage", error.to_string()))?;
        tell_applied(&disk.applier, scheduler.clone());
        Ok(Self {
            budgets,
            mailboxes,
            disk,
            health,
            supervisor,
            scheduler,
            ended,
            progress: watched,
        })
    }

    /// Waits until nothing is left to do, or something has ended the pipeline.
    pub async fn ended(&self) -> PipelineEnd {
        let (mut progress, mut ended) = (self.progress.clone(), self.ended.clone());
        let mut health = self.health.watch();
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
            _ = progress.wait_for(|it| it.is_finished) => PipelineEnd::Finished,
        }
    }

    /// How far the work is.
    #[must_use]
    pub fn progress(&self) -> watch::Receiver<Progress> {
        self.progress.clone()
    }

    /// What is wrong with the disk.
    #[must_use]
    pub fn condition(&self) -> watch::Receiver<Condition> {
        self.health.watch()
    }

    /// What is going on; `None` while the scheduler is being restarted.
    pub async fn observe(&self) -> Option<Observed> {
        let scheduler = self.scheduler.borrow().clone()?;
        ractor::call_t!(scheduler, Message::Observe, 5_000).ok()
    }

    /// Stops: what is in flight is finished within 20 s or given back, nothing is charged.
    ///
    /// # Errors
    /// What ended the data directory, if something did.
    pub async fn stop(self) -> Result<(), Arc<StoreError>> {
        let scheduler = self.scheduler.borrow().clone();
        if let Some(scheduler) = scheduler.filter(|_| self.health.failure().is_none()) {
            let millis = u64::try_from(DRAIN.as_millis()).unwrap_or(u64::MAX);
            let _drained = ractor::call_t!(scheduler, Message::Drain, millis);
        }
        let _stopped = ractor::call!(self.supervisor, supervisor::Command::Stop);
        if let Some(error) = self.health.failure() {
            return Err(error);
        }
        self.disk.stop(&self.health).await;
        self.health.failure().map_or(Ok(()), Err)
    }
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

/// Parser threads: as configured, but no more than the rows budget can keep busy.
fn parser_threads(settings: &Settings) -> usize {
    let share = settings.limits.memory / 4 / parser::ROWS_SHARE / parser::CHUNK_RESERVED_BYTES;
    let fitting = usize::try_from(share).unwrap_or(usize::MAX).max(1);
    if settings.limits.parsers > fitting {
        tracing::warn!(
            threads = fitting,
            "limits.memory keeps fewer parsers busy than limits.parsers asks for"
        );
    }
    settings.limits.parsers.clamp(1, fitting)
}

/// What the stages are made of.
struct Parts<'p> {
    settings: &'p Settings,
    surrounding: &'p Surrounding,
    disk: &'p Disk,
    health: &'p Health,
    mailboxes: &'p Mailboxes,
    budgets: &'p Budgets,
}

impl Parts<'_> {
    fn client(&self) -> Result<Client, NetError> {
        let clock = self.surrounding.clock.clone();
        match self.surrounding.network.clone() {
            Some(network) => Client::within(self.settings, clock, network),
            None => Client::new(self.settings, clock),
        }
    }

    fn exporter(&self) -> Child {
        let arguments = exporter::Arguments {
            mailbox: self.mailboxes.exporter.clone(),
            journal: Arc::clone(&self.disk.journal),
            applier: self.disk.applier.clone(),
            rows: self.budgets.rows.clone(),
            health: self.health.clone(),
            probe: self.surrounding.probe.clone(),
        };
        child("exporter", move || (exporter::Exporter, arguments.clone()), drop)
    }

    fn parser(&self, transformer: Arc<Transformer>, threads: parser::Threads) -> Child {
        let tools = Arc::new(parser::Tools {
            transformer,
            rows_per_item: self.settings.rows_per_item,
            walks: self.budgets.walks.clone(),
            rows: self.budgets.rows.clone(),
            exporter: self.mailboxes.exporter.clone(),
            probe: self.surrounding.probe.clone(),
        });
        let arguments =
            parser::Arguments { mailbox: self.mailboxes.parser.clone(), tools, threads };
        child("parser", move || (parser::Parser, arguments.clone()), drop)
    }

    fn fetcher(&self, client: Client) -> Child {
        let limits = &self.settings.limits;
        let (folder, memory) = (self.disk.dir.join("spool"), self.budgets.spools.clone());
        let tools = Arc::new(fetcher::Tools {
            client,
            spools: SpoolPool::new(folder, limits.spool_memory, memory, limits.spool),
            repo_bytes_max: limits.repo_bytes,
            parser: self.mailboxes.parser.clone(),
            health: self.health.clone(),
            clock: self.surrounding.clock.clone(),
            probe: self.surrounding.probe.clone(),
        });
        let arguments = fetcher::Arguments { mailbox: self.mailboxes.fetcher.clone(), tools };
        child("fetcher", move || (fetcher::Fetcher, arguments.clone()), drop)
    }

    fn resolver(&self, client: Client) -> Child {
        let tools = Arc::new(resolver::Tools {
            client,
            plc_url: self.settings.identity.plc_url.clone(),
            clock: self.surrounding.clock.clone(),
            probe: self.surrounding.probe.clone(),
        });
        let arguments = resolver::Arguments { mailbox: self.mailboxes.resolver.clone(), tools };
        child("resolver", move || (resolver::Resolver, arguments.clone()), drop)
    }

    fn scheduler(&self, progress: watch::Sender<Progress>) -> scheduler::Arguments {
        scheduler::Arguments {
            ledger: self.disk.ledger.clone(),
            resolver: self.mailboxes.resolver.clone(),
            fetcher: self.mailboxes.fetcher.clone(),
            limits: plan_limits(self.settings),
            disk: (self.disk.dir.path().to_owned(), self.settings.limits.disk_free),
            health: self.health.clone(),
            clock: self.surrounding.clock.clone(),
            chance: self.surrounding.chance.clone(),
            probe: self.surrounding.probe.clone(),
            progress,
        }
    }
}

/// A supervised stage that `make` makes anew at each start, and `started` is told of.
fn child<A: Actor>(
    stage: &'static str,
    make: impl Fn() -> (A, A::Arguments) + Send + Sync + 'static,
    started: impl Fn(ActorRef<A::Msg>) + Send + Sync + 'static,
) -> Child {
    let started = Arc::new(started);
    let start = move |supervisor| {
        let ((actor, arguments), started) = (make(), Arc::clone(&started));
        async move {
            let (actor, _) = Actor::spawn_linked(None, actor, arguments, supervisor).await?;
            started(actor.clone());
            Ok(actor.get_cell())
        }
        .boxed()
    };
    Child { stage, start: Box::new(start) }
}
