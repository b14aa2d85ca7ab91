//! The supervisor: starts the stages bottom-up, stops them top-down, restarts what dies.
//!
//! ```text
//!  start: children in the given order (the exporter first, the scheduler last)
//!  a child dies:  restarts in the last minute <= RESTARTS_PER_MINUTE_MAX: start it again, after 0, 100, 200, 400 ... ms
//!                 more:                                                   Ended::RestartStorm, everything stops
//!  a child hangs (whoever watches over heartbeats says so): it is killed, and that is a death
//!  stop:  children in the opposite order, each given STOP_SECONDS
//! ```
//! A child's start binds its mailbox anew, so senders that wait for it lose nothing. The supervisor never waits on a
//! mailbox. How it ended is told once through `ended`.

use std::collections::VecDeque;
use std::time::Duration;

use futures::future::BoxFuture;
use ractor::{
    Actor, ActorCell, ActorId, ActorProcessingErr, ActorRef, RpcReplyPort, SpawnErr,
    SupervisionEvent,
};
use tokio::sync::watch;

use crate::clock::{Clock, Instant};

/// A stage that dies more often than this within a minute is broken: better a clean end and systemd's restart than a
/// busy loop. 10 leaves room for a poison DID (3 crashes, of workers only) and a few passing faults.
pub const RESTARTS_PER_MINUTE_MAX: usize = 10;

/// First pause before a second restart within a minute; doubles with each one.
const RESTART_PAUSE_MILLISECONDS: u64 = 100;

/// A stage that does not stop by itself within this time is killed.
const STOP_SECONDS: u64 = 10;

/// Starts one child, linked to the supervisor that is passed in.
pub type Start =
    Box<dyn Fn(ActorCell) -> BoxFuture<'static, Result<ActorCell, SpawnErr>> + Send + Sync>;

/// One supervised stage.
pub struct Child {
    /// Name in logs and metrics.
    pub stage: &'static str,
    /// How it is started, the first time and every later time.
    pub start: Start,
}

/// How the supervised tree ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ended {
    /// It was asked to stop.
    Stopped,
    /// This stage died too often.
    RestartStorm(&'static str),
}

/// What the supervisor is told.
pub enum Command {
    /// Stop all children, top first, then reply.
    Stop(RpcReplyPort<()>),
    /// The pause before a restart is over.
    Restart(usize),
    /// This stage hangs: another is to take its place. One that does not even come to wait cannot be ended from outside.
    Replace(&'static str),
}

/// What the supervisor is started with.
pub struct Arguments {
    /// Children in start order.
    pub children: Vec<Child>,
    /// Monotonic time.
    pub clock: Clock,
    /// Told once, when the tree has ended.
    pub ended: watch::Sender<Option<Ended>>,
}

/// The supervising actor.
pub struct Supervisor;

/// Children and their recent restarts.
pub struct State {
    children: Vec<Running>,
    clock: Clock,
    ended: watch::Sender<Option<Ended>>,
    stopping: bool,
}

struct Running {
    child: Child,
    cell: Option<ActorCell>,
    restarts: VecDeque<Instant>,
}

impl Actor for Supervisor {
    type Msg = Command;
    type State = State;
    type Arguments = Arguments;

    async fn pre_start(
        &self,
        myself: ActorRef<Command>,
        arguments: Arguments,
    ) -> Result<State, ActorProcessingErr> {
        let mut children = Vec::new();
        for child in arguments.children {
            let cell = (child.start)(myself.get_cell()).await?;
            children.push(Running { child, cell: Some(cell), restarts: VecDeque::new() });
        }
        Ok(State { children, clock: arguments.clock, ended: arguments.ended, stopping: false })
    }

    async fn handle(
        &self,
        myself: ActorRef<Command>,
        command: Command,
        state: &mut State,
    ) -> Result<(), ActorProcessingErr> {
        match command {
            Command::Stop(reply) => {
                state.stop_children().await;
                state.ended.send_if_modified(|ended| ended.replace(Ended::Stopped).is_none());
                let _gone = reply.send(());
                myself.stop(None);
            }
            Command::Restart(index) if !state.stopping => restart(&myself, state, index).await,
            Command::Replace(stage) if !state.stopping => state.kill(stage),
            Command::Restart(_) | Command::Replace(_) => {}
        }
        Ok(())
    }

    async fn handle_supervisor_evt(
        &self,
        myself: ActorRef<Command>,
        event: SupervisionEvent,
        state: &mut State,
    ) -> Result<(), ActorProcessingErr> {
        let (id, cause) = match event {
            SupervisionEvent::ActorFailed(cell, error) => (cell.get_id(), error.to_string()),
            SupervisionEvent::ActorTerminated(cell, _, reason) => {
                (cell.get_id(), reason.unwrap_or_else(|| "stopped".to_owned()))
            }
            _ => return Ok(()),
        };
        let Some(index) = state.index_of(id).filter(|_| !state.stopping) else { return Ok(()) };
        let stage = state.children[index].child.stage;
        state.children[index].cell = None;
        match state.pause_before_restart(index) {
            Some(pause) => {
                tracing::error!(stage, %cause, ?pause, "a stage died and is restarted");
                myself.send_after(pause, move || Command::Restart(index));
            }
            None => {
                tracing::error!(stage, %cause, "a stage died too often, everything stops");
                state.stop_children().await;
                state.ended.send_replace(Some(Ended::RestartStorm(stage)));
                myself.stop(None);
            }
        }
        Ok(())
    }
}

impl State {
    fn index_of(&self, id: ActorId) -> Option<usize> {
        self.children
            .iter()
            .position(|running| running.cell.as_ref().is_some_and(|cell| cell.get_id() == id))
    }

    fn kill(&self, stage: &'static str) {
        let hung = self.children.iter().find(|running| running.child.stage == stage);
        if let Some(cell) = hung.and_then(|running| running.cell.as_ref()) {
            tracing::error!(stage, "a stage hangs and is replaced");
            cell.kill();
        }
    }

    /// How long to wait before the next restart of a child, or `None` if it died too often.
    fn pause_before_restart(&mut self, index: usize) -> Option<Duration> {
        let now = self.clock.now();
        let restarts = &mut self.children[index].restarts;
        restarts.retain(|at| now.duration_since(*at) < Duration::from_secs(60));
        if restarts.len() >= RESTARTS_PER_MINUTE_MAX {
            return None;
        }
        restarts.push_back(now);
        Some(match u32::try_from(restarts.len()).unwrap_or(u32::MAX) {
            0 | 1 => Duration::ZERO,
            later => Duration::from_millis(RESTART_PAUSE_MILLISECONDS << (later - 2).min(6)),
        })
    }

    async fn stop_children(&mut self) {
        self.stopping = true;
        for running in self.children.iter_mut().rev() {
            let Some(cell) = running.cell.take() else { continue };
            let patience = Some(Duration::from_secs(STOP_SECONDS));
            if cell.stop_and_wait(None, patience).await.is_err() {
                cell.kill();
            }
        }
    }
}

/// Starts a dead child again; a start that fails counts as another death.
async fn restart(myself: &ActorRef<Command>, state: &mut State, index: usize) {
    let started = (state.children[index].child.start)(myself.get_cell()).await;
    let stage = state.children[index].child.stage;
    crate::telemetry::stage_restarted(stage);
    match started {
        Ok(cell) => state.children[index].cell = Some(cell),
        Err(error) => match state.pause_before_restart(index) {
            Some(pause) => {
                tracing::error!(stage, %error, "a stage could not be restarted");
                let again = pause.max(Duration::from_millis(RESTART_PAUSE_MILLISECONDS));
                myself.send_after(again, move || Command::Restart(index));
            }
            None => {
                state.stop_children().await;
                state.ended.send_replace(Some(Ended::RestartStorm(stage)));
                myself.stop(None);
            }
        },
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::{Arc, Mutex};

    use futures::FutureExt;

    use super::*;
    use crate::actor::mailbox::{Envelope, Mailbox};

    /// A stage that dies on every message `0` and logs the others.
    struct Fragile;

    struct FragileArguments {
        mailbox: Mailbox<u8>,
        log: Arc<Mutex<Vec<u8>>>,
        starts: Arc<AtomicUsize>,
        name: &'static str,
        stops: Arc<Mutex<Vec<&'static str>>>,
    }

    impl Actor for Fragile {
        type Msg = Envelope<u8>;
        type State = FragileArguments;
        type Arguments = FragileArguments;

        async fn pre_start(
            &self,
            myself: ActorRef<Envelope<u8>>,
            arguments: FragileArguments,
        ) -> Result<FragileArguments, ActorProcessingErr> {
            arguments.starts.fetch_add(1, Ordering::AcqRel);
            arguments.mailbox.bind_actor(myself);
            Ok(arguments)
        }

        async fn post_stop(
            &self,
            _: ActorRef<Envelope<u8>>,
            state: &mut FragileArguments,
        ) -> Result<(), ActorProcessingErr> {
            state.stops.lock().unwrap().push(state.name);
            Ok(())
        }

        async fn handle(
            &self,
            _: ActorRef<Envelope<u8>>,
            envelope: Envelope<u8>,
            state: &mut FragileArguments,
        ) -> Result<(), ActorProcessingErr> {
            assert_ne!(envelope.message, 0, "a stage's bug");
            state.log.lock().unwrap().push(envelope.message);
            Ok(())
        }
    }

    #[derive(Clone, Default)]
    struct Bench {
        log: Arc<Mutex<Vec<u8>>>,
        starts: Arc<AtomicUsize>,
        stops: Arc<Mutex<Vec<&'static str>>>,
    }

    impl Bench {
        fn child(&self, name: &'static str, mailbox: &Mailbox<u8>) -> Child {
            let (bench, mailbox) = (self.clone(), mailbox.clone());
            let start = move |supervisor| {
                let arguments = FragileArguments {
                    mailbox: mailbox.clone(),
                    log: Arc::clone(&bench.log),
                    starts: Arc::clone(&bench.starts),
                    name,
                    stops: Arc::clone(&bench.stops),
                };
                async move {
                    let started = Actor::spawn_linked(None, Fragile, arguments, supervisor).await;
                    started.map(|(actor, _)| actor.get_cell())
                }
                .boxed()
            };
            Child { stage: name, start: Box::new(start) }
        }
    }

    async fn supervise(
        children: Vec<Child>,
    ) -> (ActorRef<Command>, watch::Receiver<Option<Ended>>) {
        let (ended, watched) = watch::channel(None);
        let arguments = Arguments { children, clock: Clock::system(), ended };
        let (supervisor, _) = Actor::spawn(None, Supervisor, arguments).await.unwrap();
        (supervisor, watched)
    }

    #[tokio::test(start_paused = true)]
    async fn a_dead_stage_is_restarted_and_later_messages_arrive() {
        let (bench, mailbox) = (Bench::default(), Mailbox::new("fragile", 4));
        let (supervisor, _ended) = supervise(vec![bench.child("fragile", &mailbox)]).await;
        for message in [1, 0, 2, 0, 3] {
            mailbox.send(message).await.unwrap();
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        assert_eq!(*bench.log.lock().unwrap(), [1, 2, 3]);
        assert_eq!((bench.starts.load(Ordering::Acquire), mailbox.free()), (3, 4));
        supervisor.stop(None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_restart_storm_ends_everything_by_name() {
        let (bench, mailbox) = (Bench::default(), Mailbox::new("fragile", 4));
        let (_supervisor, mut ended) = supervise(vec![bench.child("fragile", &mailbox)]).await;
        let storm = async {
            loop {
                mailbox.send(0).await.ok();
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::select! {
            () = storm => {}
            seen = ended.wait_for(Option::is_some) => {
                assert_eq!(*seen.unwrap(), Some(Ended::RestartStorm("fragile")));
            }
        }
        assert_eq!(bench.starts.load(Ordering::Acquire), 1 + RESTARTS_PER_MINUTE_MAX);
    }

    #[tokio::test(start_paused = true)]
    async fn stages_stop_in_the_opposite_order() {
        let bench = Bench::default();
        let mailboxes = [Mailbox::new("bottom", 1), Mailbox::new("top", 1)];
        let children =
            vec![bench.child("bottom", &mailboxes[0]), bench.child("top", &mailboxes[1])];
        let (supervisor, mut ended) = supervise(children).await;
        ractor::call!(supervisor, Command::Stop).unwrap();
        assert_eq!(*bench.stops.lock().unwrap(), ["top", "bottom"]);
        assert_eq!(*ended.wait_for(Option::is_some).await.unwrap(), Some(Ended::Stopped));
    }
}
