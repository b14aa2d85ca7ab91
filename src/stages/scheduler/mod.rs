//! Scheduler: decides what is worked on next, and writes down what became of it.
//!
//! takes    tickets and permits that come back, changed lists, time; questions of status and drain are answered at once
//! gives    DidJob to the resolver, FetchJob (with its host's permit in hand) to the fetcher; events and leases to the ledger
//! retries  what the ledger's rules say, when it is due
//! gives up on what the ledger's rules say
//!
//! The actor only waits and performs; `plan` decides. At most one batch is with the ledger at a time: what happens meanwhile
//! goes into the next one, so that the busier it is, the more one commit carries. If this actor is restarted, every lease is
//! given back first: what lower stages still do for the old one is exported at most once, by its edition.
//!
//! Where several processes share the hosts, those that the territory does not hold get nothing from here but the turns that
//! redirects and rechecks ask for.

pub mod directories;
pub mod estimate;
pub mod flights;
mod host_views;
pub mod hosts;
mod lone;
pub mod outlook;
pub mod plan;
pub mod terms;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use ractor::{Actor, ActorProcessingErr, ActorRef, RpcReplyPort};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::actor::backlog::Backlog;
use crate::actor::mailbox::Mailbox;
use crate::actor::ticket::{Desk, Returned, Ticket};
use crate::clock::{Clock, Instant};
use crate::domain::account::AccountId;
use crate::domain::ledger::Event;
use crate::net::territory::Territory;
use crate::seed::Chance;
use crate::stages::messages::{
    DidJob, FetchJob, News, Paced, Permit, PermitDesk, PermitNews, Probe, TurnDesk, TurnReply,
};
use crate::store::error::free_bytes;
use crate::store::health::Health;
use crate::store::ledger::Ledger;
use crate::store::ledger_lists::Counts;
use crate::store::ledger_rows::RunCounts;
use crate::store::ledger_work::Batched;

use self::estimate::Estimate;
use self::hosts::HostView;
use self::plan::Plan;
use self::terms::{Dispatch, Now, PlanLimits, Room};

/// How often free space is looked at, and forgotten hosts are swept.
const HOUSEKEEPING: Duration = Duration::from_secs(1);

/// Who waits, in the log, when space is short.
pub const WRITER: &str = "scheduler";

/// What the stage is told.
pub enum Message {
    /// A ticket came back or told something.
    Returned(AccountId, Returned<News>),
    /// A permit came back or told something.
    Permit(Paced, PermitNews),
    /// A redirect leads to a host of this name: may it be asked?
    Turn(String, TurnReply),
    /// The ledger has written a batch.
    Batched(Box<Batched>),
    /// A place became free, or a time has come.
    Wake,
    /// Look at free space, and sweep.
    Housekeeping,
    /// The ledger moved without us: a segment was applied, or the operator put accounts back.
    LedgerMoved,
    /// The lists have changed, or accounts were put back: look at every backlog anew.
    Relisted,
    /// Other hosts are ours to ask.
    Territory,
    /// New numbers.
    Limits(PlanLimits),
    /// Begin nothing new; reply when nothing is in flight.
    Drain(RpcReplyPort<()>),
    /// What is going on.
    Observe(RpcReplyPort<Observed>),
    /// How many hosts work, wait, and are open.
    CountHosts(RpcReplyPort<[u64; 3]>),
}

/// What is going on.
#[derive(Clone, Debug, Default)]
pub struct Observed {
    /// Listed accounts by state.
    pub counts: Counts,
    /// What this process decided.
    pub run: RunCounts,
    /// Hosts in hand, largest backlog first.
    pub hosts: Vec<HostView>,
    /// Accounts in flight.
    pub in_flight: usize,
    /// The directory refuses or is away.
    pub directory_waits: bool,
    /// The host that the end waits for.
    pub slowest_host: Option<String>,
}

/// What the stage is started with.
#[derive(Clone)]
pub struct Arguments {
    /// The ledger.
    pub ledger: Ledger,
    /// The resolver's mailbox.
    pub resolver: Mailbox<DidJob>,
    /// The fetcher's mailbox.
    pub fetcher: Mailbox<FetchJob>,
    /// What has arrived and waits for a parser.
    pub backlog: Backlog,
    /// The operator's numbers.
    pub limits: PlanLimits,
    /// Where free space is looked for, and below how many bytes nothing begins.
    pub disk: (PathBuf, u64),
    /// Trouble with the disk.
    pub health: Health,
    /// Time.
    pub clock: Clock,
    /// Chance.
    pub chance: Chance,
    /// Sees what passes.
    pub probe: Probe,
    /// Told the counts after each batch, and whether everything is decided.
    pub progress: watch::Sender<Progress>,
    /// Whether anything may begin: not before the lists are loaded.
    pub may_begin: Arc<AtomicBool>,
    /// Which hosts are ours to ask.
    pub territory: Territory,
}

/// How far the work is.
#[derive(Clone, Copy, Debug, Default)]
pub struct Progress {
    /// Listed accounts by state.
    pub counts: Counts,
    /// What this process decided.
    pub run: RunCounts,
    /// When everything will be decided; looked at once a second.
    pub estimate: Estimate,
    /// Nothing is left to do.
    pub is_finished: bool,
}

/// The scheduler.
pub struct Scheduler;

/// What the stage remembers.
pub struct State {
    arguments: Arguments,
    plan: Plan,
    tickets: Desk<News>,
    permits: PermitDesk,
    turns: TurnDesk,
    is_writing: bool,
    is_low: bool,
    drained: Vec<RpcReplyPort<()>>,
    timer: Option<(Instant, JoinHandle<()>)>,
}

impl Actor for Scheduler {
    type Msg = Message;
    type State = State;
    type Arguments = Arguments;

    async fn pre_start(
        &self,
        myself: ActorRef<Message>,
        arguments: Arguments,
    ) -> Result<State, ActorProcessingErr> {
        let begin = |rows: &mut crate::store::ledger_rows::Rows| {
            rows.end_leases(&Event::GivenBack)?;
            rows.end_absurd_waits()?;
            rows.host_rows()
        };
        let rows = arguments.ledger.run(begin).await?;
        let now = Now { at: arguments.clock.now(), wall_ms: arguments.clock.steady_ms() };
        let mut plan = Plan::new(arguments.limits, arguments.chance.clone(), rows, now);
        // Whatever changes from here on is told.
        tell_of_changes(&arguments.territory, &myself);
        plan.set_territory(arguments.territory.clone(), now);
        wake_when_free(&arguments.resolver, &myself);
        wake_when_free(&arguments.fetcher, &myself);
        wake_when_eased(&arguments.backlog, &myself);
        myself.send_interval(HOUSEKEEPING, || Message::Housekeeping);
        // Whoever tells a scheduler that is gone tells nobody: its successor has given every lease back.
        let teller = myself.clone();
        let tickets: Desk<News> = Arc::new(move |id, returned| {
            let _gone = teller.cast(Message::Returned(id, returned));
        });
        let teller = myself.clone();
        let permits: PermitDesk = Arc::new(move |paced, news| {
            let _gone = teller.cast(Message::Permit(paced.clone(), news));
        });
        let teller = myself.clone();
        let turns: TurnDesk = Arc::new(move |host, reply| {
            let _gone = teller.cast(Message::Turn(host, reply));
        });
        let (drained, timer) = (Vec::new(), None);
        let (is_writing, is_low) = (false, false);
        Ok(State { arguments, plan, tickets, permits, turns, is_writing, is_low, drained, timer })
    }

    async fn post_start(
        &self,
        myself: ActorRef<Message>,
        state: &mut State,
    ) -> Result<(), ActorProcessingErr> {
        state.pump(&myself);
        Ok(())
    }

    async fn handle(
        &self,
        myself: ActorRef<Message>,
        message: Message,
        state: &mut State,
    ) -> Result<(), ActorProcessingErr> {
        let now = state.now();
        if state.arguments.probe.ends_stage("scheduler", &myself).await? {
            return Ok(());
        }
        match message {
            Message::Returned(id, returned) => state.plan.returned(id, returned, now),
            Message::Permit(paced, news) => state.plan.permit(&paced, news, now),
            Message::Turn(host, reply) => {
                let turn = state.plan.turn_elsewhere(&host, now);
                // Whoever has gone meanwhile drops the permit, and it comes back.
                let _gone = reply.send(turn.map(|paced| state.permit(paced)));
            }
            Message::Batched(done) => {
                state.is_writing = false;
                for dispatch in state.plan.batched(*done, now) {
                    state.send(dispatch);
                }
            }
            Message::Wake => {}
            Message::Housekeeping => {
                state.look_at_disk();
                state.arguments.backlog.second_passed();
                state.plan.tidy(now);
            }
            Message::LedgerMoved => state.plan.ledger_moved(),
            Message::Relisted => state.plan.relisted(),
            Message::Territory => state.plan.territory_changed(now),
            Message::Limits(limits) => state.plan.set_limits(limits),
            Message::Drain(reply) => {
                state.plan.drain();
                state.drained.push(reply);
            }
            Message::Observe(reply) => {
                let _gone = reply.send(state.observe(now));
            }
            Message::CountHosts(reply) => {
                let _gone = reply.send(state.plan.hosts.by_state(now.at));
            }
        }
        state.pump(&myself);
        Ok(())
    }

    async fn post_stop(
        &self,
        _myself: ActorRef<Message>,
        state: &mut State,
    ) -> Result<(), ActorProcessingErr> {
        if let Some((_, timer)) = state.timer.take() {
            timer.abort();
        }
        Ok(())
    }
}

/// Wakes the scheduler whenever a place in `mailbox` becomes free, as long as the scheduler lives.
fn wake_when_free<M: Send + 'static>(mailbox: &Mailbox<M>, scheduler: &ActorRef<Message>) {
    let (mailbox, scheduler) = (mailbox.clone(), scheduler.clone());
    tokio::spawn(async move {
        loop {
            mailbox.freed().await;
            if scheduler.cast(Message::Wake).is_err() {
                return;
            }
        }
    });
}

/// Wakes the scheduler whenever too little waits for the parsers. What the waker of a scheduler that is gone takes away,
/// housekeeping makes up for.
fn wake_when_eased(backlog: &Backlog, scheduler: &ActorRef<Message>) {
    let (backlog, scheduler) = (backlog.clone(), scheduler.clone());
    tokio::spawn(async move {
        loop {
            backlog.eased().await;
            if scheduler.cast(Message::Wake).is_err() {
                return;
            }
        }
    });
}

/// Tells the scheduler whenever other hosts are ours, as long as it lives.
fn tell_of_changes(territory: &Territory, scheduler: &ActorRef<Message>) {
    let (mut changes, scheduler) = (territory.changes(), scheduler.clone());
    tokio::spawn(async move {
        while changes.changed().await.is_ok() && scheduler.cast(Message::Territory).is_ok() {}
    });
}

impl State {
    fn now(&self) -> Now {
        Now { at: self.arguments.clock.now(), wall_ms: self.arguments.clock.steady_ms() }
    }

    /// Gives the ledger its next batch, if none is with it; tells how far the work is; sets the timer.
    fn pump(&mut self, myself: &ActorRef<Message>) {
        let now = self.now();
        if !self.is_writing {
            let is_held = !self.arguments.may_begin.load(Ordering::Acquire);
            let may_begin = !is_held && !self.is_low && !self.arguments.health.is_full();
            let resolver = self.arguments.resolver.free();
            let fetcher = &self.arguments.fetcher;
            let fetcher = self.arguments.backlog.room(fetcher.depth()).min(fetcher.free());
            if let Some(batch) = self.plan.next_batch(Room { resolver, fetcher }, may_begin, now) {
                self.is_writing = true;
                let (ledger, scheduler) = (self.arguments.ledger.clone(), myself.clone());
                tokio::spawn(async move {
                    // Without an answer the ledger has ended, and the process ends with it.
                    if let Ok(done) = ledger.run(move |rows| rows.run_batch(&batch)).await {
                        let _gone = scheduler.cast(Message::Batched(Box::new(done)));
                    }
                });
            }
        }
        self.tell_progress();
        if self.plan.in_flight() == 0 && !self.is_writing {
            for reply in self.drained.drain(..) {
                let _gone = reply.send(());
            }
        }
        self.set_timer(myself, now);
    }

    fn tell_progress(&self) {
        let (counts, run) = self.plan.counts();
        let is_finished = !self.is_writing && self.plan.is_finished();
        let estimate = self.plan.estimate();
        let progress = Progress { counts, run, estimate, is_finished };
        self.arguments.progress.send_if_modified(|known| {
            let is_news =
                known.counts != counts || known.run != run || known.is_finished != is_finished;
            *known = progress;
            is_news
        });
    }

    fn set_timer(&mut self, myself: &ActorRef<Message>, now: Now) {
        let Some(at) = self.plan.wake_at(now) else { return };
        let is_set = |(set, timer): &(Instant, JoinHandle<()>)| *set <= at && !timer.is_finished();
        if at <= now.at || self.timer.as_ref().is_some_and(is_set) {
            return;
        }
        if let Some((_, late)) = self.timer.take() {
            late.abort();
        }
        let scheduler = myself.clone();
        let timer = tokio::spawn(async move {
            tokio::time::sleep_until(at).await;
            let _gone = scheduler.cast(Message::Wake);
        });
        self.timer = Some((at, timer));
    }

    fn permit(&self, paced: Paced) -> Permit {
        Permit::new(paced, Arc::clone(&self.permits)).with_turns(Arc::clone(&self.turns))
    }

    fn send(&self, dispatch: Dispatch) {
        let permit = |paced| self.permit(paced);
        let ticket = |id| Ticket::new(id, Arc::clone(&self.tickets));
        match dispatch {
            Dispatch::Resolve { id, did, wants_earlier_keys, paced } => {
                let (ticket, permit) = (ticket(id), permit(paced));
                let job = DidJob { ticket, did, wants_earlier_keys, permit };
                deliver(&self.arguments.resolver, job);
            }
            Dispatch::Fetch { id, subject, host, ask_server } => {
                let (ticket, permit) = (ticket(id), permit(Paced::Host(host)));
                deliver(&self.arguments.fetcher, FetchJob { ticket, subject, permit, ask_server });
            }
        }
    }

    fn look_at_disk(&mut self) {
        let (path, least) = &self.arguments.disk;
        let free = free_bytes(path).unwrap_or(u64::MAX);
        let is_low = free < *least;
        let health = &self.arguments.health;
        if is_low && !self.is_low {
            let path = path.display();
            let text = format!(
                "{path} has {free} bytes free, limits.disk_free asks for {least}: free some space; skyfill goes on by itself"
            );
            health.full(WRITER, &text);
        } else if !is_low && self.is_low {
            health.cleared(WRITER);
        }
        self.is_low = is_low;
    }

    fn observe(&self, now: Now) -> Observed {
        let (counts, run) = self.plan.counts();
        Observed {
            counts,
            run,
            hosts: self.plan.host_views(now),
            in_flight: self.plan.in_flight(),
            directory_waits: self.plan.directory_waits(now),
            slowest_host: self.plan.slowest_host(),
        }
    }
}

/// Delivers at once; while the stage is being restarted, the job waits for it on a task of its own. The places were counted
/// before, so there is one for each job.
fn deliver<M: Send + 'static>(mailbox: &Mailbox<M>, job: M) {
    if let Err(job) = mailbox.try_send(job) {
        let mailbox = mailbox.clone();
        tokio::spawn(async move {
            // A closed mailbox drops the job, and its ticket tells.
            let _stopped = mailbox.send(job).await;
        });
    }
}
