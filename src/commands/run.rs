//! `skyfill run`: the daemon. It stays up, works through the lists, sleeps when nothing is due and wakes for what is.
//!
//! ```text
//!  lock, ledger, stages, control socket ──> ready ──> lists loaded ──> work ──TERM──> drained, given back, closed: exit 0
//!                                                       ^  │ HUP, control socket: reload, one at a time
//!                                                       '──'
//! ```
//! Ready means that the data directory is ours and questions are answered; lists may take a while, and no account is leased
//! before they are loaded. Lists that cannot be used end the start; at a reload the old ones stay in force. What asks for a
//! reload while one is going on gets the next one, together with everybody else who asked.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::{MissedTickBehavior, interval};

use crate::clock::Clock;
use crate::commands::error::CommandError;
use crate::commands::forget;
use crate::commands::group::{self, Group};
use crate::commands::live::{Beside, Live};
use crate::commands::opening::when_there_is_space;
use crate::commands::recheck;
use crate::commands::recorded::Recorded;
use crate::commands::retry;
use crate::commands::watched::{Watched, readiness};
use crate::config::settings::Settings;
use crate::config::targets::{self, ListSource};
use crate::exit_code::ExitCode;
use crate::ops::control::{ControlSocket, ORDERS_MAX, Order, Question, refusal};
use crate::ops::http::Readiness;
use crate::ops::logging::LogHandle;
use crate::ops::notify::Notifier;
use crate::ops::signals::{Asked, DaemonSignals};
use crate::pipeline::{Data, Pipeline, PipelineEnd, Reach, Surrounding, refresh};
use crate::reload::{Origin, ReloadError, Reloader};
use crate::store::error::StoreError;
use crate::store::health::Condition;
use crate::store::listing::Step;
use crate::telemetry;

/// How often the pace is measured.
const SAMPLE: Duration = Duration::from_secs(1);

/// How often progress is logged while there is some, and systemd's status line is renewed.
const PROGRESS: Duration = Duration::from_secs(60);

/// Who asked for a reload and waits for its answer; each has a connection of its own.
type Waiting = Vec<oneshot::Sender<Value>>;

/// What the task that loads lists gives back.
type Loaded = (Reloader, Result<String, ReloadError>);

/// Runs the daemon until it is asked to stop.
///
/// # Errors
/// [`CommandError`].
pub async fn run(
    settings: Settings,
    origin: Origin,
    surrounding: &Surrounding,
    log: Arc<LogHandle>,
) -> Result<ExitCode, CommandError> {
    let mut recorded = Recorded::new("run", &settings, &surrounding.clock);
    let outcome = serve(settings, origin, surrounding, log, &mut recorded).await;
    recorded.end_by_ledger(outcome.as_ref().map_or_else(CommandError::exit_code, |exit| *exit));
    outcome
}

async fn serve(
    settings: Settings,
    origin: Origin,
    surrounding: &Surrounding,
    log: Arc<LogHandle>,
    recorded: &mut Recorded,
) -> Result<ExitCode, CommandError> {
    let internal = |error: std::io::Error| CommandError::Internal(error.to_string());
    let mut signals = DaemonSignals::listen().map_err(internal)?;
    // What is plainly not there is said at once.
    drop(targets::open(&ListSource::configured(&settings.source))?);
    let watched = Watched::serve(settings.metrics.listen).await;
    // Another daemon of this data directory may hold the address too, and is then the answer.
    let held = match Data::open(&settings, &surrounding.clock, &surrounding.chance) {
        Err(error) if !error.is_full() => return Err(error.into()),
        opened => opened,
    };
    let watched = watched?;
    let surrounding = &group::within(&settings, surrounding);
    let started = start(held, &settings, surrounding, &watched, &mut signals, recorded).await?;
    let Some((pipeline, group)) = started else {
        tracing::info!("stopped while the disk was full, nothing was begun");
        return Ok(ExitCode::Done);
    };
    watched.sample(pipeline.sampler());
    let listening = ControlSocket::listen(&settings.data_dir);
    let socket = listening.map_err(|error| StoreError::io(&settings.data_dir, error))?;
    let (orders, taken) = mpsc::channel(ORDERS_MAX);
    let serving = tokio::spawn(socket.serve(orders));
    let (reach, notifier) = (pipeline.reach(), Notifier::start());
    let feeding = feed(&notifier, pipeline.reach());
    tracing::info!(data_dir = %settings.data_dir.display(), "ready, loading the lists");
    notifier.ready("loading the lists");
    let live = Live::new(surrounding.clock.clone(), reach.clone());
    let batch_size = settings.limits.batch_size;
    let reloader = Reloader::new(origin, settings, reach, log);
    let daemon = Daemon {
        clock: surrounding.clock.clone(),
        live,
        notifier: notifier.clone(),
        step: reloader.step(),
        watched: &watched,
        condition: pipeline.condition(),
        batch_size,
        is_loaded: false,
        loading: None,
        is_wanted: false,
        waiting: Vec::new(),
        next: Vec::new(),
        idle: None,
        group: &group,
        run: recorded.id(),
    };
    let ended = daemon.work(&pipeline, reloader, signals, taken).await;
    feeding.abort();
    watched.tell(if ended.is_ok() { Readiness::Draining } else { Readiness::Failed });
    notifier.stopping("finishing what is in flight, giving the rest back");
    let progress = pipeline.progress();
    let stopped = stop(pipeline, group).await;
    recorded.decided = Some(progress.borrow().run);
    serving.abort();
    // Until it has ended, its file is there.
    let _aborted = serving.await;
    ended?;
    stopped.map_err(CommandError::Failed)?;
    tracing::info!("stopped");
    Ok(ExitCode::Done)
}

/// Stops the work, and leaves the group only then: what is sealed can be committed as long as the group has us.
async fn stop(pipeline: Pipeline, group: Group) -> Result<(), Arc<StoreError>> {
    group.quieten();
    let stopped = pipeline.stop().await;
    group.end().await;
    stopped
}

/// Tells the watchdog as long as the pipeline's heart beats.
fn feed(notifier: &Notifier, heart: Reach) -> JoinHandle<()> {
    tokio::spawn(notifier.clone().feed(move || {
        let heart = heart.clone();
        async move { heart.heartbeat().await }
    }))
}

/// Starts the pipeline, no account is leased yet; `None` if the daemon was asked to stop while the disk was full.
async fn start(
    held: Result<Data, StoreError>,
    settings: &Settings,
    surrounding: &Surrounding,
    watched: &Watched,
    signals: &mut DaemonSignals,
    recorded: &mut Recorded,
) -> Result<Option<(Pipeline, Group)>, CommandError> {
    let mut held = Some(held);
    let open = async || {
        let again = || Data::open(settings, &surrounding.clock, &surrounding.chance);
        let mut data = held.take().unwrap_or_else(again)?;
        recorded.begin(&mut data)?;
        let mut group = Group::default();
        group.prepare(&mut data, settings, surrounding)?;
        let pipeline = Pipeline::start_held(data, settings, surrounding).await?;
        group.start(pipeline.reach())?;
        Ok((pipeline, group))
    };
    let stop = async { while signals.next().await != Asked::Stop {} };
    let tell = |is_full| {
        watched.tell(if is_full { Readiness::DiskFull } else { Readiness::Starting });
    };
    let started = when_there_is_space(open, stop, tell).await?;
    Ok(started.inspect(|(pipeline, _)| {
        tokio::spawn(refresh::on_schedule(pipeline.reach(), surrounding.clock.clone()));
    }))
}

/// What the daemon's loop remembers.
struct Daemon<'d> {
    clock: Clock,
    live: Live,
    notifier: Notifier,
    step: watch::Receiver<Option<Step>>,
    watched: &'d Watched,
    condition: watch::Receiver<Condition>,
    batch_size: usize,
    is_loaded: bool,
    /// Lists are being loaded, and the reloader is with them.
    loading: Option<JoinHandle<Loaded>>,
    /// Somebody asked for another reload meanwhile.
    is_wanted: bool,
    /// Who waits for the reload that is going on, and for the next.
    waiting: Waiting,
    next: Waiting,
    /// The reloader while nothing is loaded.
    idle: Option<Reloader>,
    group: &'d Group,
    /// Number of this run in the ledger.
    run: Option<i64>,
}

impl Daemon<'_> {
    async fn work(
        mut self,
        pipeline: &Pipeline,
        mut reloader: Reloader,
        mut signals: DaemonSignals,
        mut orders: mpsc::Receiver<Order>,
    ) -> Result<(), CommandError> {
        let (reach, noted, run) = (pipeline.reach(), pipeline.reach(), self.run);
        let (mut sampling, mut telling) = (interval(SAMPLE), interval(PROGRESS));
        sampling.set_missed_tick_behavior(MissedTickBehavior::Delay);
        telling.set_missed_tick_behavior(MissedTickBehavior::Delay);
        telling.reset();
        self.loading = Some(tokio::spawn(async move {
            let listed = reloader.begin().await;
            if let (Some(run), Ok(listed)) = (run, &listed) {
                // The end of the ledger is told by the pipeline.
                let _gone = noted.run_given(run, *listed).await;
            }
            (reloader, listed.map(|listed| format!("{listed} accounts listed")))
        }));
        let ended = loop {
            tokio::select! {
                end = pipeline.broken() => break Err(failure(end)),
                asked = signals.next() => match asked {
                    Asked::Reload => self.want_reload(None),
                    Asked::Report => self.live.log(),
                    Asked::Stop => break Ok(()),
                },
                Some(order) = orders.recv() => self.answer(order, &reach),
                loaded = ended(&mut self.loading) => {
                    if let Err(error) = self.loaded(loaded) {
                        break Err(error);
                    }
                }
                Ok(()) = self.condition.changed() => self.tell_readiness(),
                _ = sampling.tick() => self.live.sample(),
                _ = telling.tick() => self.tell(),
            }
        };
        // From here on another TERM forces the end.
        signals.stopping(ExitCode::Failed.code());
        if let Some(loading) = self.loading.take() {
            loading.abort();
        }
        let refused = refusal(&"skyfill is stopping");
        for answer in self.waiting.into_iter().chain(self.next) {
            let _gone = answer.send(refused.clone());
        }
        ended
    }

    fn tell_readiness(&mut self) {
        self.watched.tell(readiness(self.is_loaded, &self.condition.borrow_and_update()));
    }

    /// Says how far the work is, if there is any.
    fn tell(&self) {
        if self.is_loaded {
            self.notifier.status(&self.live.line());
        }
        if self.live.is_busy() {
            self.live.log();
        }
    }

    fn answer(&mut self, order: Order, reach: &Reach) {
        let Order { question, is_in_work, answer } = order;
        // Status is a matter of moments, the others of the ledger's or the lists' length.
        is_in_work.store(question != Question::Status, Ordering::Release);
        match question {
            Question::Reload => self.want_reload(Some(answer)),
            Question::Status => {
                let (is_loaded, batch_size) = (self.is_loaded, self.batch_size);
                let beside = Beside { is_loaded, step: *self.step.borrow(), batch_size };
                let (live, group) = (self.live.clone(), self.group.view());
                tokio::spawn(async move {
                    let mut told = live.status(beside).await;
                    told["group"] = group;
                    let _gone = answer.send(told);
                });
            }
            Question::Forget(dids) => {
                let reach = reach.clone();
                tokio::spawn(async move {
                    let told = match reach.forget(dids).await {
                        Ok(forgot) => {
                            tracing::info!(
                                accounts = forgot.accounts.len(),
                                "accounts were forgotten"
                            );
                            forget::told(&forgot)
                        }
                        Err(error) => refusal(&error),
                    };
                    let _gone = answer.send(told);
                });
            }
            Question::Recheck(given) => {
                let (reach, mut answer) = (reach.clone(), answer);
                tokio::spawn(async move {
                    let told = tokio::select! {
                        told = reach.recheck(given) => told,
                        // Whoever asked is gone, and what was noted stays.
                        () = answer.closed() => return,
                    };
                    let told = told.map_or_else(|error| refusal(&error), |it| recheck::told(&it));
                    let _gone = answer.send(told);
                });
            }
            Question::Retry(_) if self.group.is_there() => {
                let _gone = answer.send(refusal(&retry::OF_A_GROUP));
            }
            Question::Retry(selection) => {
                let reach = reach.clone();
                tokio::spawn(async move {
                    let told = match reach.retry(selection).await {
                        Ok(retried) => {
                            tracing::info!(retried, "parked accounts were put back");
                            json!({"ok": true, "retried": retried})
                        }
                        Err(error) => refusal(&error),
                    };
                    let _gone = answer.send(told);
                });
            }
        }
    }

    /// Begins a reload, or notes that another one is wanted after the one that is going on.
    fn want_reload(&mut self, answer: Option<oneshot::Sender<Value>>) {
        self.next.extend(answer);
        let Some(mut reloader) = self.idle.take() else {
            self.is_wanted = true;
            return;
        };
        self.waiting = std::mem::take(&mut self.next);
        tracing::info!("reloading configuration and lists");
        self.notifier.reloading("reading configuration and lists");
        self.loading = Some(tokio::spawn(async move {
            let reloaded = reloader.reload().await;
            (reloader, reloaded.map(|reloaded| reloaded.to_string()))
        }));
    }

    /// Lists have been loaded, or refused.
    fn loaded(&mut self, loaded: Result<Loaded, CommandError>) -> Result<(), CommandError> {
        let (reloader, outcome) = loaded?;
        self.batch_size = reloader.settings().limits.batch_size;
        self.idle = Some(reloader);
        let is_first = !std::mem::replace(&mut self.is_loaded, true);
        let answer = match outcome {
            Ok(what) if is_first => {
                tracing::info!("working: {what}");
                self.tell_readiness();
                self.notifier.status(&format!("working: {what}"));
                json!({"ok": true})
            }
            Ok(what) => {
                tracing::info!("reloaded: {what}");
                telemetry::config_loaded(self.clock.wall_ms());
                self.notifier.ready(&format!("reloaded: {what}"));
                json!({"ok": true, "reloaded": what})
            }
            Err(error) if is_first => return Err(error.into()),
            // The end of the ledger is told by the pipeline.
            Err(error) => {
                telemetry::reload_refused();
                tracing::error!(%error, "reload refused, the old configuration and lists stay in force");
                self.notifier
                    .ready(&format!("reload refused, the old state stays in force: {error}"));
                refusal(&error)
            }
        };
        for waiting in self.waiting.drain(..) {
            let _gone = waiting.send(answer.clone());
        }
        if std::mem::take(&mut self.is_wanted) {
            self.want_reload(None);
        }
        Ok(())
    }
}

/// Waits for the lists; for ever if none are loaded.
async fn ended(loading: &mut Option<JoinHandle<Loaded>>) -> Result<Loaded, CommandError> {
    let Some(task) = loading else { return std::future::pending().await };
    let done = task.await;
    *loading = None;
    done.map_err(|error| CommandError::Internal(format!("loading lists crashed: {error}")))
}

fn failure(end: PipelineEnd) -> CommandError {
    match end {
        PipelineEnd::Failed(error) => CommandError::Failed(error),
        PipelineEnd::RestartStorm(stage) => CommandError::RestartStorm(stage),
        PipelineEnd::Finished => CommandError::Internal("the stages have ended".to_owned()),
    }
}
