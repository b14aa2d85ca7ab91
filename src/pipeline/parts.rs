//! Parts: the stages as supervised children, made of settings, surroundings, disk, mailboxes and budgets.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use futures::FutureExt;
use ractor::{Actor, ActorRef};
use tokio::sync::watch;

use crate::actor::supervisor::Child;
use crate::actor::threads::Threads;
use crate::config::settings::Settings;
use crate::identity::directory::Directory;
use crate::limits::WORKER_SILENT_SECONDS;
use crate::net::client::Client;
use crate::net::drips::Transfers;
use crate::net::error::NetError;
use crate::pipeline::data::LEDGER_FILE;
use crate::pipeline::disk::Disk;
use crate::pipeline::recheck::Rechecker;
use crate::pipeline::{Budgets, Mailboxes, StartError, Surrounding, plan_limits};
use crate::sink::leaves::LeavesReader;
use crate::stages::messages::TurnDesk;
use crate::stages::scheduler::Progress;
use crate::stages::scheduler::terms::PlanLimits;
use crate::stages::{exporter, fetcher, parser, resolver, scheduler};
use crate::store::error::descriptors_max;
use crate::store::health::Health;
use crate::store::spool::SpoolPool;
use crate::transform::Transformer;

/// What the stages are made of.
pub struct Parts<'p> {
    /// The configuration.
    pub settings: &'p Settings,
    /// Time, chance, network.
    pub surrounding: &'p Surrounding,
    /// The data directory.
    pub disk: &'p Disk,
    /// Trouble with it.
    pub health: &'p Health,
    /// Ways between the stages.
    pub mailboxes: &'p Mailboxes,
    /// Memory.
    pub budgets: &'p Budgets,
    /// Where repositories lie.
    pub spools: &'p SpoolPool,
}

impl Parts<'_> {
    /// The exporter.
    pub fn exporter(&self) -> Child {
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

    /// The parser.
    pub fn parser(&self, transformer: Arc<Transformer>, threads: Threads) -> Child {
        let tools = Arc::new(parser::Tools {
            transformer,
            rows_per_item: self.settings.rows_per_item,
            walks: self.budgets.walks.clone(),
            rows: self.budgets.rows.clone(),
            exporter: self.mailboxes.exporter.clone(),
            clock: self.surrounding.clock.clone(),
            probe: self.surrounding.probe.clone(),
            patience: self.surrounding.walk_patience,
            leaves: parser::Leaves {
                are_kept: self.settings.refresh.leaves,
                reader: LeavesReader::new(self.disk.dir.path()),
                applier: self.disk.applier.clone(),
                recovered: self.disk.recovered,
            },
            health: self.health.clone(),
        });
        let arguments =
            parser::Arguments { mailbox: self.mailboxes.parser.clone(), tools, threads };
        child("parser", move || (parser::Parser, arguments.clone()), drop)
    }

    /// The fetcher.
    pub fn fetcher(&self, client: Client) -> Child {
        let places = self.mailboxes.fetcher.capacity().min(self.settings.limits.batch_size);
        let tools = Arc::new(fetcher::Tools {
            client,
            spools: self.spools.clone(),
            memory: self.budgets.spools.clone(),
            repo_bytes_max: self.settings.limits.repo_bytes,
            parser: self.mailboxes.parser.clone(),
            backlog: self.mailboxes.backlog.clone(),
            health: self.health.clone(),
            transfers: Transfers::new(places),
            clock: self.surrounding.clock.clone(),
            probe: self.surrounding.probe.clone(),
            patience: worker_patience(self.settings, self.surrounding),
        });
        let arguments = fetcher::Arguments { mailbox: self.mailboxes.fetcher.clone(), tools };
        child("fetcher", move || (fetcher::Fetcher, arguments.clone()), drop)
    }

    /// The resolver.
    pub fn resolver(&self, client: Client) -> Child {
        let tools = Arc::new(resolver::Tools {
            client,
            directory: directory(self.settings, self.surrounding),
            clock: self.surrounding.clock.clone(),
            probe: self.surrounding.probe.clone(),
            patience: worker_patience(self.settings, self.surrounding),
        });
        let arguments = resolver::Arguments { mailbox: self.mailboxes.resolver.clone(), tools };
        child("resolver", move || (resolver::Resolver, arguments.clone()), drop)
    }

    /// Asks hosts again how accounts stand, by the turns that `turns` gives.
    pub fn rechecker(&self, client: Client, turns: TurnDesk) -> Rechecker {
        rechecker(self.disk, self.settings, self.surrounding, client, turns)
    }

    /// What the scheduler is started with.
    pub fn scheduler(
        &self,
        progress: watch::Sender<Progress>,
        may_begin: Arc<AtomicBool>,
    ) -> scheduler::Arguments {
        scheduler::Arguments {
            ledger: self.disk.ledger.clone(),
            resolver: self.mailboxes.resolver.clone(),
            fetcher: self.mailboxes.fetcher.clone(),
            backlog: self.mailboxes.backlog.clone(),
            limits: plan_limits(self.settings),
            disk: (self.disk.dir.path().to_owned(), self.settings.limits.disk_free),
            health: self.health.clone(),
            clock: self.surrounding.clock.clone(),
            chance: self.surrounding.chance.clone(),
            probe: self.surrounding.probe.clone(),
            progress,
            may_begin,
            territory: self.surrounding.territory.clone(),
        }
    }
}

/// The way to the network.
///
/// # Errors
/// [`NetError`].
pub fn client(settings: &Settings, surrounding: &Surrounding) -> Result<Client, NetError> {
    let clock = surrounding.clock.clone();
    match surrounding.network.clone() {
        Some(network) => Client::within(settings, clock, network),
        None => Client::new(settings, clock),
    }
}

/// Asks hosts again how accounts stand, over an open data directory.
#[must_use]
pub fn rechecker(
    disk: &Disk,
    settings: &Settings,
    surrounding: &Surrounding,
    client: Client,
    turns: TurnDesk,
) -> Rechecker {
    let tools = Arc::new(resolver::Tools {
        client,
        directory: directory(settings, surrounding),
        clock: surrounding.clock.clone(),
        probe: surrounding.probe.clone(),
        patience: worker_patience(settings, surrounding),
    });
    Rechecker {
        ledger: disk.ledger.clone(),
        state_db: disk.dir.join(LEDGER_FILE),
        spool: disk.dir.join("spool"),
        tools,
        turns,
        host_concurrency: settings.fetch.host_concurrency,
        patience: settings.retry.host_patience,
        is_busy: Arc::default(),
    }
}

/// Transfers and resolutions at once: as configured, but within the memory of spools and this process's descriptors.
#[must_use]
pub fn places(settings: &Settings, budgets: &Budgets) -> (usize, usize) {
    let transfers = fetcher::capacity(settings.fetch.concurrency, &budgets.spools);
    let limit = descriptors_max();
    let fitting = fetcher::fitting_descriptors(limit);
    if fitting >= transfers + resolver::CAPACITY {
        return (transfers, resolver::CAPACITY);
    }
    let resolutions = (fitting / 3).clamp(1, resolver::CAPACITY);
    let fewer = transfers.min(fitting - resolutions).max(1);
    if fewer < transfers {
        tracing::warn!(
            transfers = fewer,
            limit,
            "RLIMIT_NOFILE has room for fewer transfers than fetch.concurrency asks for"
        );
    }
    (fewer, resolutions)
}

/// How long a resolution or transfer may be silent: until all its requests have run into their own timeouts, with redirects and
/// mirrors, and everybody before it at its address has had his turn.
#[must_use]
pub fn worker_patience(settings: &Settings, surrounding: &Surrounding) -> Duration {
    let fetch = &settings.fetch;
    let turns = (fetch.concurrency + resolver::CAPACITY) as f64 / fetch.address_requests_per_second;
    let requests = fetch.first_byte_timeout.saturating_mul(8) + fetch.idle_timeout;
    let derived = Duration::from_secs(WORKER_SILENT_SECONDS) + requests;
    surrounding.worker_patience.unwrap_or_else(|| {
        derived.saturating_add(Duration::try_from_secs_f64(turns).unwrap_or(Duration::MAX))
    })
}

/// The directory and its mirrors, as configured.
#[must_use]
pub fn directory(settings: &Settings, surrounding: &Surrounding) -> Directory {
    let (limits, identity) = (plan_limits(settings).directory, &settings.identity);
    let (clock, chance) = (&surrounding.clock, &surrounding.chance);
    Directory::new(&identity.plc_url, &identity.mirrors, limits, clock, chance)
}

/// A supervised stage that `make` makes anew at each start, and `started` is told of.
pub fn child<A: Actor>(
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

/// The scheduler, which is told to `bound` at each start.
pub fn scheduler_child(
    schedule: scheduler::Arguments,
    newest: watch::Receiver<PlanLimits>,
    bound: watch::Sender<Option<ActorRef<scheduler::Message>>>,
) -> Child {
    let make = move || {
        // A restarted scheduler works by the newest numbers, not by those of the start.
        let limits = *newest.borrow();
        (scheduler::Scheduler, scheduler::Arguments { limits, ..schedule.clone() })
    };
    child("scheduler", make, move |actor| {
        bound.send_replace(Some(actor));
    })
}

/// The parsers' threads.
///
/// # Errors
/// [`StartError`].
pub fn parser_pool(settings: &Settings, mailboxes: &Mailboxes) -> Result<Threads, StartError> {
    let (count, waiting) = (parser_threads(settings), mailboxes.parser.capacity());
    Threads::start("parser", count, waiting)
        .map_err(|error| StartError::Part("a parser thread", error.to_string()))
}

/// Parser threads: as configured, but no more than the rows budget can keep busy.
pub fn parser_threads(settings: &Settings) -> usize {
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
