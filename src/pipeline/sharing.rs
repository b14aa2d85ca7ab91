//! Sharing: the worker's end of `<topics>.dids`. It follows the group, reads what is wanted into the ledger, and tells the topics
//! what came of it without rows.
//!
//! ```text
//!  group ──partition──> lane opened, <topics>.accounts read to its end ──> messages ──> ledger: admitted (pipeline::intake)
//!        ──taken back─> lane shut, its inputs leave the ledger, its accounts rest
//!  ledger: parked ──────────────> its record, and the message is decided        one transaction a partition,
//!          elsewhere now ───────> on the topic again under its host, decided    twice a second
//!          holding the window ──> on the topic again, at its end, decided
//! ```
//! Rows go through the sink (`sink::kafka::worker`). Both use the same lanes, so one of them waits while the other commits. All of
//! it blocks, on a thread of its own, which hears from the group between two steps; the lease is renewed on another
//! (`sink::kafka::group`).

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::sync::watch;

use rdkafka::consumer::Consumer as _;

use crate::clock::{Clock, Instant};
use crate::config::settings::{Settings, SinkPlace};
use crate::net::guard::Guard;
use crate::net::territory::Territory;
use crate::pipeline::Reach;
use crate::pipeline::intake::Intake;
use crate::pipeline::telling::Teller;
use crate::sink::kafka::accounts::Origin;
use crate::sink::kafka::client::Clients;
use crate::sink::kafka::dids;
use crate::sink::kafka::group::{self, Renewal};
use crate::sink::kafka::holdings::{Holdings, Shared};
use crate::sink::kafka::known::Known;
use crate::sink::kafka::worker::WorkerSink;
use crate::store::error::StoreError;
use crate::store::follow::NamedSink;
use crate::store::ledger::LedgerGone;
use crate::transform::pseudonym::Pseudonyms;

/// How long one wait for messages takes at most: everything else here is done between two of them.
const POLL: Duration = Duration::from_millis(100);

/// Between two tellings of what came without rows.
const TELL: Duration = Duration::from_millis(500);

/// Between two looks at the group and the topic, for `status` and for more partitions.
const LOOK: Duration = Duration::from_secs(10);

/// After trouble that may pass, everything is tried again after this long.
const RETRY: Duration = Duration::from_secs(1);

/// What the thread is to do, besides staying a member.
const WORK: u8 = 0;
const QUIET: u8 = 1;
const END: u8 = 2;

/// The group as this process sees it.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct GroupView {
    /// Its name.
    pub name: String,
    /// Processes in it; `None`: not asked yet.
    pub members: Option<usize>,
    /// Partitions of the topic that this process has.
    pub partitions: Vec<i32>,
    /// Partitions that the topic has.
    pub of_partitions: u32,
    /// Accounts that were read and are not decided.
    pub undecided: usize,
    /// Messages of its partitions that were not read yet; `None`: not asked yet.
    pub behind: Option<i64>,
    /// Why nothing is read at the moment.
    pub waits: Option<String>,
}

/// What a worker is made of before anything runs.
pub struct Worker {
    holdings: Holdings,
    sink: String,
    lag_max: u64,
    origin: Origin,
    guard: Guard,
    names: Option<Pseudonyms>,
    clock: Clock,
}

/// The running thread.
pub struct Sharing {
    order: Arc<AtomicU8>,
    view: watch::Receiver<GroupView>,
    thread: JoinHandle<()>,
}

impl Worker {
    /// A worker of the group of `settings`; `None` if it has none. The cluster is asked nothing yet.
    ///
    /// # Errors
    /// [`StoreError`] of the client, or of the file of accounts that are done.
    pub fn new(
        settings: &Settings,
        clock: &Clock,
        territory: &Territory,
    ) -> Result<Option<Self>, StoreError> {
        let Some(group) = settings.source.group.clone() else { return Ok(None) };
        let of_broker = settings.sinks.iter().find_map(|sink| match &sink.place {
            SinkPlace::Broker(broker) => Some((sink, broker)),
            _ => None,
        });
        let missing = || StoreError::Config("source.group wants a sink of type kafka".to_owned());
        let (sink, broker) = of_broker.ok_or_else(missing)?;
        let clients = Clients { broker: broker.clone(), zstd: sink.zstd };
        let known = Known::open(&settings.data_dir)?;
        let both = (clock.clone(), territory.clone());
        let shared = Arc::new(Shared::new(clients.clone(), group.clone(), known, both));
        let consumer = Arc::new(group::member(&clients, &group, &shared)?);
        let names = crate::store::key_file::read(settings.pseudonyms.as_deref())?;
        Ok(Some(Self {
            holdings: Holdings::new(shared, consumer),
            sink: sink.name.clone(),
            lag_max: sink.lag_max,
            origin: Origin { directory: String::new(), sink: sink.name.clone() },
            guard: Guard::new(&settings.network),
            names,
            clock: clock.clone(),
        }))
    }

    /// The sink that follows the journal for it.
    #[must_use]
    pub fn sink(&self) -> NamedSink {
        let sink = WorkerSink::new(self.sink.clone(), self.holdings.clone());
        NamedSink { name: self.sink.clone(), sink: Box::new(sink), lag_max: Some(self.lag_max) }
    }

    /// Takes what the ledger of `directory` had been asked for by an earlier process; before the sinks begin.
    pub fn begin(&mut self, directory: &str, inputs: Vec<crate::store::ledger_inputs::Input>) {
        directory.clone_into(&mut self.origin.directory);
        self.holdings.begin(inputs.iter().map(|it| (&*it.did, it.partition, it.offset)));
    }

    /// Joins the group and begins to read.
    ///
    /// # Errors
    /// The system's, if the thread cannot be started.
    pub fn start(self, reach: Reach) -> Result<Sharing, StoreError> {
        let order = Arc::new(AtomicU8::new(WORK));
        let name = self.holdings.group().to_owned();
        let (told, view) = watch::channel(GroupView { name, ..GroupView::default() });
        let renewal = self.holdings.renewal(&self.clock)?;
        let Self { holdings, origin, guard, names, clock, .. } = self;
        let now = clock.now();
        let intake = Intake::new(holdings.clone(), reach.clone(), (guard, names.clone()));
        let (told_by, reached) = (holdings.clone(), reach.clone());
        let thread = Thread {
            holdings,
            reach,
            intake,
            teller: Teller { holdings: told_by, reach: reached, origin, names },
            clock,
            _renewal: renewal,
            order: Arc::clone(&order),
            told,
            tells_at: now,
            looks_at: now,
            is_joined: false,
        };
        let named = std::thread::Builder::new().name("workers".to_owned());
        let spawned = named.spawn(move || thread.run());
        let thread =
            spawned.map_err(|it| StoreError::io(std::path::Path::new("workers thread"), it))?;
        Ok(Sharing { order, view, thread })
    }
}

impl Sharing {
    /// The group as it was seen last.
    #[must_use]
    pub fn view(&self) -> watch::Receiver<GroupView> {
        self.view.clone()
    }

    /// Reads nothing more; the process stays a member, so that what is sealed can be committed.
    pub fn quieten(&self) {
        self.order.fetch_max(QUIET, Ordering::AcqRel);
    }

    /// Leaves the group. Blocks.
    pub fn end(self) {
        self.order.store(END, Ordering::Release);
        self.thread.thread().unpark();
        if self.thread.join().is_err() {
            tracing::error!("the thread of the group ended by a panic");
        }
    }
}

struct Thread {
    holdings: Holdings,
    reach: Reach,
    intake: Intake,
    teller: Teller,
    clock: Clock,
    /// As long as it is there the group is asked whether this process is a member.
    _renewal: Renewal,
    order: Arc<AtomicU8>,
    told: watch::Sender<GroupView>,
    tells_at: Instant,
    looks_at: Instant,
    is_joined: bool,
}

impl Thread {
    fn run(mut self) {
        let worked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| self.work()));
        match worked {
            Ok(Ok(())) => {}
            Ok(Err(error)) => self.reach.fail(error),
            Err(_) => self.reach.fail(StoreError::sink("the thread of the group panicked")),
        }
        // Whoever waits for this process learns at once that it is gone.
        self.holdings.consumer().unsubscribe();
    }

    fn work(&mut self) -> Result<(), StoreError> {
        loop {
            let order = self.order.load(Ordering::Acquire);
            if order == END {
                return Ok(());
            }
            let stepped = self.step(order == QUIET);
            let waits = match stepped {
                Ok(()) => None,
                // The process ends with the ledger, which says why.
                Err(Trouble::Gone) => return Ok(()),
                Err(Trouble::Store(error)) if is_passing(&error) => Some(error.to_string()),
                Err(Trouble::Store(error)) => return Err(error),
            };
            self.note(waits);
        }
    }

    /// Notes why it does not go on, and waits a moment then.
    fn note(&mut self, waits: Option<String>) {
        let was = self.told.borrow().waits.clone();
        match (&was, &waits) {
            (None, Some(error)) => tracing::warn!(%error, "the group waits"),
            (Some(_), None) => tracing::info!("the group goes on"),
            _ => {}
        }
        if was != waits {
            self.told.send_modify(|view| view.waits.clone_from(&waits));
        }
        let until = self.clock.now() + RETRY;
        while waits.is_some() && self.clock.now() < until {
            // The group still wants to be heard, and what it takes away is to be given up.
            if self.intake.read(POLL, true).is_err() {
                std::thread::park_timeout(POLL);
            }
        }
    }

    fn step(&mut self, is_quiet: bool) -> Result<(), Trouble> {
        let now = self.clock.now();
        if now >= self.looks_at {
            self.looks_at = now + LOOK;
            self.look()?;
        }
        if !self.is_joined {
            return Ok(());
        }
        self.intake.follow()?;
        self.intake.read(POLL, is_quiet)?;
        if now >= self.tells_at {
            self.tells_at = now + TELL;
            self.teller.tell(self.intake.stragglers())?;
            self.intake.drop_told()?;
            let (partitions, undecided) = (self.holdings.held(), self.holdings.undecided_total());
            self.told.send_if_modified(|view| {
                let is_news = view.partitions != partitions || view.undecided != undecided;
                (view.partitions, view.undecided) = (partitions, undecided);
                is_news
            });
        }
        Ok(())
    }

    /// Looks at the topic and at the group; joins it once there is a topic.
    fn look(&mut self) -> Result<(), Trouble> {
        let (clients, consumer) = (self.holdings.clients(), self.holdings.consumer());
        let topic = dids::topic(&clients.broker.prefix);
        let Some(partitions) = group::partitions(consumer, clients)? else {
            self.looks_at = self.clock.now();
            let text = format!("there is no topic {topic} yet: skyfill enqueue makes it");
            return Err(StoreError::busy(text).into());
        };
        self.holdings.set_partitions(partitions);
        if !self.is_joined {
            let joined = consumer.subscribe(&[&topic]);
            joined.map_err(|error| clients.sorted("joining the group", &error, None))?;
            self.is_joined = true;
        }
        let members = group::members(consumer, clients, self.holdings.group())?;
        self.intake.rest();
        let behind = self.intake.behind()?;
        self.told.send_modify(|view| {
            (view.members, view.of_partitions) = (Some(members), partitions);
            view.behind = Some(behind);
        });
        Ok(())
    }
}

/// Why a step came to no end.
pub enum Trouble {
    /// The cluster, or the disk.
    Store(StoreError),
    /// The ledger has ended.
    Gone,
}

impl From<StoreError> for Trouble {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

impl From<LedgerGone> for Trouble {
    fn from(_: LedgerGone) -> Self {
        Self::Gone
    }
}

fn is_passing(error: &StoreError) -> bool {
    error.is_full() || matches!(error, StoreError::Busy { .. })
}
