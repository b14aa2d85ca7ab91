//! Bounded mailboxes: the only way to reach a stage.
//!
//! ractor's own mailboxes are unbounded. Here `send` first waits for one of `capacity` permits; the permit travels inside
//! the message as its [`Slot`] and comes back when the message's work is done, or when the message is dropped because an
//! actor died. So *queued + in work* never exceeds the capacity, and a stage that keeps its slot while it waits for the
//! next mailbox passes the pressure back to the scheduler. The mailbox outlives its actor: the supervisor rebinds it, and
//! senders that wait meanwhile lose nothing.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ractor::{ActorRef, Message, MessagingErr, RpcReplyPort};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

/// A message with the place it takes in its mailbox.
#[derive(Debug)]
pub struct Envelope<M> {
    /// The work.
    pub message: M,
    /// Its place; dropping it admits the next message.
    pub slot: Slot,
}

/// A place in a mailbox, held until the work is done.
#[derive(Debug)]
pub struct Slot {
    _permit: OwnedSemaphorePermit,
    depth: Arc<AtomicUsize>,
    freed: Arc<tokio::sync::Notify>,
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.depth.fetch_sub(1, Ordering::AcqRel);
        self.freed.notify_one();
    }
}

/// What a stage is told: work, or the question whether it still takes any.
#[derive(Debug)]
pub enum Told<M> {
    /// Work with its place.
    Work(Envelope<M>),
    /// Answered at once by a stage that is alive.
    Beat(RpcReplyPort<()>),
}

impl<M> Told<M> {
    /// The work; a question is answered instead.
    #[must_use]
    pub fn work(self) -> Option<Envelope<M>> {
        match self {
            Self::Work(envelope) => Some(envelope),
            Self::Beat(reply) => {
                // Whoever asked may have lost patience.
                let _gone = reply.send(());
                None
            }
        }
    }
}

/// Asks the bound actor for a heartbeat; whether it was there to be asked.
type Ask = Arc<dyn Fn(RpcReplyPort<()>) -> bool + Send + Sync>;

/// Hands an envelope to the bound actor, or back if that actor is dead.
type Deliver<M> = Arc<dyn Fn(Envelope<M>) -> Result<(), Envelope<M>> + Send + Sync>;

/// The sending end; clones reach the same mailbox.
pub struct Mailbox<M> {
    inner: Arc<Inner<M>>,
}

struct Inner<M> {
    stage: &'static str,
    capacity: usize,
    bound: watch::Sender<Option<Deliver<M>>>,
    heart: Mutex<Option<Ask>>,
    /// The stage waits for somebody outside and says so: it cannot answer, and is not ill.
    is_resting: AtomicBool,
    permits: Arc<Semaphore>,
    depth: Arc<AtomicUsize>,
    freed: Arc<tokio::sync::Notify>,
}

/// The mailbox was closed for good; the message comes back.
#[derive(Debug)]
pub struct Closed<M>(pub M);

impl<M> Clone for Mailbox<M> {
    fn clone(&self) -> Self {
        Self { inner: Arc::clone(&self.inner) }
    }
}

impl<M: Send + 'static> Mailbox<M> {
    /// An unbound mailbox of `stage` for at most `capacity` messages, queued and in work together.
    #[must_use]
    pub fn new(stage: &'static str, capacity: usize) -> Self {
        let inner = Inner {
            stage,
            capacity,
            bound: watch::Sender::new(None),
            heart: Mutex::default(),
            is_resting: AtomicBool::new(false),
            permits: Arc::new(Semaphore::new(capacity)),
            depth: Arc::default(),
            freed: Arc::default(),
        };
        Self { inner: Arc::new(inner) }
    }

    /// Binds the mailbox to a new actor. Only its supervisor or its own start does this.
    pub fn bind(
        &self,
        deliver: impl Fn(Envelope<M>) -> Result<(), Envelope<M>> + Send + Sync + 'static,
    ) {
        self.inner.bound.send_replace(Some(Arc::new(deliver)));
    }

    /// Binds the mailbox to a ractor actor that takes envelopes as its messages.
    pub fn bind_actor(&self, actor: ActorRef<Envelope<M>>) {
        self.bind_with(actor, |envelope| envelope, Some);
    }

    /// Binds the mailbox to a stage, and its heartbeats too.
    pub fn bind_stage(&self, stage: ActorRef<Told<M>>) {
        self.bind_heart(stage.clone(), Told::Beat);
        self.bind_with(stage, Told::Work, |told| match told {
            Told::Work(envelope) => Some(envelope),
            Told::Beat(_) => None,
        });
    }

    /// Binds the heartbeats of the stage behind the mailbox: `wrap` makes the question a message of its own.
    pub fn bind_heart<A: Message>(
        &self,
        actor: ActorRef<A>,
        wrap: impl Fn(RpcReplyPort<()>) -> A + Send + Sync + 'static,
    ) {
        let ask: Ask = Arc::new(move |reply| actor.send_message(wrap(reply)).is_ok());
        *self.heart() = Some(ask);
        self.inner.is_resting.store(false, Ordering::Release);
    }

    /// Whether the stage answers within `patience`, or rests.
    pub async fn beats(&self, patience: Duration) -> bool {
        let ask = self.heart().clone();
        let Some(ask) = ask else { return false };
        let (answer, answered) = ractor::concurrency::oneshot();
        let is_there = ask(answer.into());
        let is_alive =
            is_there && matches!(tokio::time::timeout(patience, answered).await, Ok(Ok(())));
        is_alive || self.inner.is_resting.load(Ordering::Acquire)
    }

    /// The stage says that it waits for somebody outside from now on, or no longer does.
    pub fn rest(&self, is_resting: bool) {
        self.inner.is_resting.store(is_resting, Ordering::Release);
    }

    fn heart(&self) -> MutexGuard<'_, Option<Ask>> {
        // Whatever happened to another holder, a question is whole or not there.
        self.inner.heart.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Binds the mailbox to a ractor actor whose messages wrap envelopes; `unwrap` undoes `wrap`.
    pub fn bind_with<A: Message>(
        &self,
        actor: ActorRef<A>,
        wrap: impl Fn(Envelope<M>) -> A + Send + Sync + 'static,
        unwrap: impl Fn(A) -> Option<Envelope<M>> + Send + Sync + 'static,
    ) {
        self.bind(move |envelope| match actor.send_message(wrap(envelope)) {
            Ok(()) => Ok(()),
            Err(MessagingErr::SendErr(returned)) => unwrap(returned).map_or(Ok(()), Err),
            // The other errors say that nothing was accepted and keep the message: it is dropped, and its ticket tells.
            Err(_) => Ok(()),
        });
    }

    /// Waits for a place, then delivers; waits on while the actor is being restarted.
    ///
    /// # Errors
    /// [`Closed`] with the message after [`Mailbox::close`].
    pub async fn send(&self, message: M) -> Result<(), Closed<M>> {
        let Ok(permit) = Arc::clone(&self.inner.permits).acquire_owned().await else {
            return Err(Closed(message));
        };
        let mut envelope = Envelope { message, slot: self.slot(permit) };
        let mut bound = self.inner.bound.subscribe();
        loop {
            let current = bound.borrow_and_update().clone();
            if let Some(deliver) = current {
                match deliver(envelope) {
                    Ok(()) => return Ok(()),
                    Err(returned) => envelope = returned,
                }
            }
            tokio::select! {
                () = self.closed() => return Err(Closed(envelope.message)),
                changed = bound.changed() => if changed.is_err() { return Err(Closed(envelope.message)) },
            }
        }
    }

    /// Delivers if there is a place and a living actor right now; otherwise gives the message back.
    ///
    /// # Errors
    /// The message, if it was not delivered.
    pub fn try_send(&self, message: M) -> Result<(), M> {
        let Ok(permit) = Arc::clone(&self.inner.permits).try_acquire_owned() else {
            return Err(message);
        };
        let current = self.inner.bound.borrow().clone();
        let envelope = Envelope { message, slot: self.slot(permit) };
        match current {
            Some(deliver) => deliver(envelope).map_err(|returned| returned.message),
            None => Err(envelope.message),
        }
    }

    /// Resolves when a place has become free since the last call (or is free at once after many).
    pub async fn freed(&self) {
        self.inner.freed.notified().await;
    }

    /// Free places right now.
    #[must_use]
    pub fn free(&self) -> usize {
        self.inner.permits.available_permits()
    }

    /// Messages queued and in work right now.
    #[must_use]
    pub fn depth(&self) -> usize {
        self.inner.depth.load(Ordering::Acquire)
    }

    /// Places in all.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.inner.capacity
    }

    /// Name of the stage behind it.
    #[must_use]
    pub fn stage(&self) -> &'static str {
        self.inner.stage
    }

    /// Refuses every later send and wakes those that wait.
    pub fn close(&self) {
        self.inner.permits.close();
        self.inner.bound.send_replace(None);
    }

    async fn closed(&self) {
        let mut bound = self.inner.bound.subscribe();
        while !self.inner.permits.is_closed() {
            if bound.changed().await.is_err() {
                return;
            }
        }
    }

    fn slot(&self, permit: OwnedSemaphorePermit) -> Slot {
        self.inner.depth.fetch_add(1, Ordering::AcqRel);
        Slot {
            _permit: permit,
            depth: Arc::clone(&self.inner.depth),
            freed: Arc::clone(&self.inner.freed),
        }
    }
}

#[cfg(test)]
mod tests {
    use ractor::{Actor, ActorProcessingErr};

    use super::*;

    /// Answers until it is told the number 0, and then never again.
    struct Stage;

    impl Actor for Stage {
        type Msg = Told<u8>;
        type State = ();
        type Arguments = Mailbox<u8>;

        async fn pre_start(
            &self,
            myself: ActorRef<Told<u8>>,
            mailbox: Mailbox<u8>,
        ) -> Result<(), ActorProcessingErr> {
            mailbox.bind_stage(myself);
            Ok(())
        }

        async fn handle(
            &self,
            _: ActorRef<Told<u8>>,
            told: Told<u8>,
            (): &mut (),
        ) -> Result<(), ActorProcessingErr> {
            if told.work().is_some_and(|envelope| envelope.message == 0) {
                std::future::pending::<()>().await;
            }
            Ok(())
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_stage_that_hangs_has_no_heartbeat_unless_it_said_that_it_rests() {
        let (mailbox, patience) = (Mailbox::new("test", 2), Duration::from_secs(5));
        assert!(!mailbox.beats(patience).await, "nobody is there");
        let (stage, _) = Actor::spawn(None, Stage, mailbox.clone()).await.unwrap();
        mailbox.send(1).await.unwrap();
        assert!(mailbox.beats(patience).await);
        mailbox.send(0).await.unwrap();
        assert!(!mailbox.beats(patience).await);
        mailbox.rest(true);
        assert!(mailbox.beats(patience).await);
        stage.kill();
        let (_again, _) = Actor::spawn(None, Stage, mailbox.clone()).await.unwrap();
        assert!(mailbox.beats(patience).await, "its successor has one");
    }

    #[tokio::test(start_paused = true)]
    async fn a_full_mailbox_makes_the_sender_wait_until_a_slot_is_dropped() {
        let mailbox = Mailbox::new("test", 2);
        let held = Arc::new(Mutex::new(Vec::new()));
        let sink = Arc::clone(&held);
        mailbox.bind(move |envelope| {
            sink.lock().unwrap().push(envelope);
            Ok(())
        });
        mailbox.send(1).await.unwrap();
        mailbox.send(2).await.unwrap();
        assert_eq!(mailbox.try_send(3), Err(3));
        let waiting = mailbox.send(3);
        assert!(tokio::time::timeout(Duration::from_secs(1), waiting).await.is_err());
        held.lock().unwrap().remove(0);
        mailbox.send(3).await.unwrap();
        assert_eq!((mailbox.depth(), mailbox.free()), (2, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn a_sender_survives_the_death_and_rebinding_of_its_actor() {
        let mailbox = Mailbox::new("test", 1);
        mailbox.bind(Err);
        let sender = mailbox.clone();
        let sending = tokio::spawn(async move { sender.send(7).await.is_ok() });
        tokio::time::sleep(Duration::from_secs(1)).await;
        let got = Arc::new(AtomicUsize::new(0));
        let seen = Arc::clone(&got);
        mailbox.bind(move |envelope: Envelope<usize>| {
            seen.store(envelope.message, Ordering::Release);
            Ok(())
        });
        assert!(sending.await.unwrap());
        assert_eq!(got.load(Ordering::Acquire), 7);
        assert_eq!(mailbox.free(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn closing_gives_waiting_messages_back() {
        let mailbox = Mailbox::<u8>::new("test", 1);
        let sender = mailbox.clone();
        let sending = tokio::spawn(async move { sender.send(9).await });
        tokio::time::sleep(Duration::from_secs(1)).await;
        mailbox.close();
        assert!(matches!(sending.await.unwrap(), Err(Closed(9))));
        assert!(matches!(mailbox.send(1).await, Err(Closed(1))));
    }
}
