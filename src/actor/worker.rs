//! One-DID workers: short-lived actors linked to their stage.
//!
//! A worker runs one piece of work and stops. If the work panics, fails, is silent for too long or ends without a word about its
//! DID, that is a supervision event about this one worker: the stage and its other workers go on, and the ticket inside the work
//! has already told the scheduler (`actor::ticket`). If the stage dies, its workers are stopped with it, and their tickets come
//! back uncharged.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use ractor::{Actor, ActorCell, ActorProcessingErr, ActorRef, SpawnErr, SupervisionEvent};

use crate::actor::pulse::Pulse;
use crate::actor::ticket::at_work;

/// How a piece of work ended.
pub type Ended = Result<(), ActorProcessingErr>;

/// How long work may be silent.
#[derive(Clone, Debug)]
pub struct Watch {
    /// Its pulse.
    pub pulse: Arc<Pulse>,
    /// Silent for this long, it hangs.
    pub patience: Duration,
}

/// What a worker is told, once.
struct Job {
    work: BoxFuture<'static, Ended>,
    watch: Option<Watch>,
}

/// Runs one piece of work, then stops.
struct Worker;

impl Actor for Worker {
    type Msg = Job;
    type State = ();
    type Arguments = ();

    async fn pre_start(
        &self,
        _myself: ActorRef<Self::Msg>,
        _arguments: (),
    ) -> Result<(), ActorProcessingErr> {
        Ok(())
    }

    async fn handle(
        &self,
        myself: ActorRef<Self::Msg>,
        job: Job,
        _state: &mut (),
    ) -> Result<(), ActorProcessingErr> {
        let ended = run(job).await;
        myself.stop(None);
        ended
    }
}

/// Work to its end, or until it hangs.
async fn run(job: Job) -> Ended {
    let mut work = AtWork(Some(job.work));
    let Some(Watch { pulse, patience }) = job.watch else { return work.await };
    tokio::select! {
        biased;
        ended = &mut work => ended,
        () = pulse.silent(patience) => {
            work.give_up();
            Err(format!("it hangs: nothing was heard of it for {patience:?}").into())
        }
    }
}

/// Work whose tickets are its own: what it drops of them, it has lost.
struct AtWork(Option<BoxFuture<'static, Ended>>);

impl AtWork {
    /// Ends it where it is.
    fn give_up(&mut self) {
        let work = self.0.take();
        at_work(|| drop(work));
    }
}

impl Future for AtWork {
    type Output = Ended;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Ended> {
        let Some(work) = self.0.as_mut() else { return Poll::Ready(Ok(())) };
        let (polled, has_lost) = at_work(|| work.poll_unpin(context));
        polled.map(|ended| match ended {
            Ok(()) if has_lost => Err("it ended without a word about its did".into()),
            ended => ended,
        })
    }
}

/// Runs `work` in a worker of its own, linked to `stage`, and ends it if `watch` finds that it hangs. If the stage is already
/// stopping, `work` is dropped unrun.
///
/// # Errors
/// [`SpawnErr`] if the worker could not be started.
pub async fn spawn_worker(
    stage: ActorCell,
    watch: Option<Watch>,
    work: impl Future<Output = Ended> + Send + 'static,
) -> Result<(), SpawnErr> {
    let (worker, _joined) = Actor::spawn_linked(None, Worker, (), stage).await?;
    // A worker that is stopped before it gets the message drops it, and the ticket inside says so.
    let _dropped = worker.send_message(Job { work: work.boxed(), watch });
    Ok(())
}

/// What a stage does with a supervision event: worker ends are expected, crashes are logged and counted, nothing stops.
pub fn note_worker_event(stage: &'static str, event: &SupervisionEvent) {
    if let SupervisionEvent::ActorFailed(_, error) = event {
        tracing::warn!(stage, %error, "a worker crashed, its did goes back to the ledger");
        crate::telemetry::worker_crashed(stage);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use tokio::sync::Notify;

    use super::*;
    use crate::actor::ticket::{Desk, Returned, Ticket};
    use crate::domain::account::AccountId;

    /// A stage that does nothing but outlive its workers.
    struct Stage;

    impl Actor for Stage {
        type Msg = ();
        type State = ();
        type Arguments = ();

        async fn pre_start(&self, _: ActorRef<()>, (): ()) -> Result<(), ActorProcessingErr> {
            Ok(())
        }

        async fn handle_supervisor_evt(
            &self,
            _: ActorRef<()>,
            event: SupervisionEvent,
            (): &mut (),
        ) -> Result<(), ActorProcessingErr> {
            note_worker_event("test", &event);
            Ok(())
        }
    }

    type Log = Arc<Mutex<Vec<(i64, Returned<&'static str>)>>>;

    fn desk(log: &Log, told: &Arc<Notify>) -> Desk<&'static str> {
        let (log, told) = (Arc::clone(log), Arc::clone(told));
        Arc::new(move |account, returned| {
            log.lock().unwrap().push((account.0, returned));
            told.notify_one();
        })
    }

    #[tokio::test]
    async fn a_panic_costs_its_own_did_one_attempt_and_nobody_else_anything() {
        let (stage, _) = Actor::spawn(None, Stage, ()).await.unwrap();
        let (log, told) = (Log::default(), Arc::new(Notify::new()));
        let mut culprit = Ticket::new(AccountId(1), desk(&log, &told));
        let mut other = Ticket::new(AccountId(2), desk(&log, &told));
        let release = Arc::new(Notify::new());
        let wait = Arc::clone(&release);
        spawn_worker(stage.get_cell(), None, async move {
            other.enter();
            wait.notified().await;
            other.finish("done");
            Ok(())
        })
        .await
        .unwrap();
        spawn_worker(stage.get_cell(), None, async move {
            culprit.enter();
            panic!("poison");
        })
        .await
        .unwrap();
        told.notified().await;
        assert_eq!(*log.lock().unwrap(), [(1, Returned::Lost { crashed: true })]);
        release.notify_one();
        told.notified().await;
        assert_eq!(log.lock().unwrap()[1], (2, Returned::Finished("done")));
        assert_eq!(stage.get_status(), ractor::ActorStatus::Running);
    }

    #[tokio::test]
    async fn a_stage_that_dies_gives_its_workers_dids_back_uncharged() {
        let (stage, _) = Actor::spawn(None, Stage, ()).await.unwrap();
        let (log, told) = (Log::default(), Arc::new(Notify::new()));
        let mut ticket = Ticket::new(AccountId(3), desk(&log, &told));
        let begun = Arc::new(Notify::new());
        let entered = Arc::clone(&begun);
        spawn_worker(stage.get_cell(), None, async move {
            ticket.enter();
            entered.notify_one();
            futures::future::pending::<()>().await;
            ticket.finish("never");
            Ok(())
        })
        .await
        .unwrap();
        begun.notified().await;
        stage.kill();
        told.notified().await;
        assert_eq!(*log.lock().unwrap(), [(3, Returned::Lost { crashed: false })]);
    }
}
