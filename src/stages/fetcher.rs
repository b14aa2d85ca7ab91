//! Fetcher: downloads repositories into spools, and hashes every block while it arrives.
//!
//! takes    FetchJob       capacity `fetch.concurrency`; its host's permit is already in hand, so it never waits for a host
//! gives    FetchedCar     to the parser, keeping its place until the parser has one
//! retries  what `net::answer` and `net::error` call transient or the host's fault; a cut or junk transfer
//! gives up on what the host says it does not have, and on repositories larger than `limits.repo_bytes`; where its answer leaves
//!          open why, `getRepoStatus` is asked too. The verdict stands only after the directory was asked afresh
//! refresh  `latest` asks which revision there is first, and fetches only if it is newer than the one that is held
//!
//! The permit goes back when the transfer ends; what the host said is told as soon as its first byte is there, so that a
//! circuit closes at once. A full disk is waited out with the socket left unread: the host sees backpressure, nobody is blamed.
//!
//! A transfer that broke off is begun anew, never resumed. `Range` would need an answer that is the same bytes twice, and a strong
//! validator that says so: the reference server sends no `ETag` and answers a range with the whole (measured). It writes a
//! repository's blocks as they lie at that moment, so after a write in between the rest would belong to another tree.
//! `since` is no resume either: a diff cannot be proven alone. What a break at 99% costs is one account's own retry: it waits for
//! its delay on disk while its host's other accounts take their turns.

mod latest;

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use ractor::{Actor, ActorProcessingErr, ActorRef, SupervisionEvent};
use url::Url;

use crate::actor::backlog::Backlog;
use crate::actor::mailbox::{Envelope, Mailbox, Slot, Told};
use crate::actor::worker::{Watch, note_worker_event, spawn_worker};
use crate::clock::Clock;
use crate::domain::did::Did;
use crate::domain::verdict::{Cause, Failure, HostSignal, LastError, Reason};
use crate::limits::ERROR_BODY_BYTES_MAX;
use crate::net::answer;
use crate::net::body::read_start;
use crate::net::client::{Client, Request, Trust};
use crate::net::drips::Transfers;
use crate::net::error::NetError;
use crate::net::response::Response;
use crate::repo::Source;
use crate::repo::car::{Framed, Framer};
use crate::repo::error::RepoError;
use crate::stages::messages::{
    FetchJob, FetchedCar, Lane, News, Permit, Point, Probe, Subject, Ticket,
};
use crate::store::budget::Budget;
use crate::store::error::StoreError;
use crate::store::health::Health;
use crate::store::spool::{Spool, SpoolError, SpoolPool, SpooledCar};
use crate::telemetry::{self, Outcome, Service, Stopwatch};

/// Who waits, in the log, when the disk is full.
const WRITER: &str = "spool";

/// What a transfer's socket holds beside its spool: the client's read buffer grows to about this where bytes come fast. It is
/// counted against the memory of spools; when that is used up, the next spools go to their files sooner.
const SOCKET_BYTES: u64 = 256 << 10;

/// Without a descriptor for its connection an account comes back so much later.
const DESCRIPTOR_WAIT: Duration = Duration::from_secs(1);

/// Descriptors that are not a transfer's: logs, databases with their WALs, the journal, signals, timers, status.
const DESCRIPTORS_FIXED: u64 = 56;

/// Descriptors of a transfer: its connection, one that waits for its next request, and its spool file.
const DESCRIPTORS_EACH: u64 = 3;

/// Transfers and resolutions together that a process with `limit` descriptors has room for; a third of them resolutions.
#[must_use]
pub fn fitting_descriptors(limit: u64) -> usize {
    usize::try_from(limit.saturating_sub(DESCRIPTORS_FIXED) / DESCRIPTORS_EACH)
        .unwrap_or(usize::MAX)
        .max(2)
}

/// Transfers at once: as configured, but so that their sockets take at most half of the memory of spools.
#[must_use]
pub fn capacity(concurrency: usize, spools: &Budget) -> usize {
    let fitting = usize::try_from(spools.limit() / 2 / SOCKET_BYTES).unwrap_or(usize::MAX);
    if concurrency > fitting {
        tracing::warn!(
            transfers = fitting,
            "limits.memory has room for fewer transfers than fetch.concurrency asks for"
        );
    }
    concurrency.min(fitting).max(1)
}

/// What fetching needs.
pub struct Tools {
    /// The network.
    pub client: Client,
    /// Where bytes lie.
    pub spools: SpoolPool,
    /// Their memory.
    pub memory: Budget,
    /// `limits.repo_bytes`.
    pub repo_bytes_max: u64,
    /// Where repositories go.
    pub parser: Mailbox<FetchedCar>,
    /// What waits there.
    pub backlog: Backlog,
    /// Trouble with the disk.
    pub health: Health,
    /// Transfers in hand, to find those that drip.
    pub transfers: Transfers,
    /// Time.
    pub clock: Clock,
    /// Sees what passes.
    pub probe: Probe,
    /// A worker that is silent for this long, and waits for nobody here, hangs.
    pub patience: Duration,
}

/// What the stage is started with.
#[derive(Clone)]
pub struct Arguments {
    /// Its mailbox, bound at each start.
    pub mailbox: Mailbox<FetchJob>,
    /// What fetching needs.
    pub tools: Arc<Tools>,
}

/// The fetcher.
pub struct Fetcher;

impl Actor for Fetcher {
    type Msg = Told<FetchJob>;
    type State = Arc<Tools>;
    type Arguments = Arguments;

    async fn pre_start(
        &self,
        myself: ActorRef<Self::Msg>,
        arguments: Arguments,
    ) -> Result<Arc<Tools>, ActorProcessingErr> {
        arguments.mailbox.bind_stage(myself);
        Ok(arguments.tools)
    }

    async fn handle(
        &self,
        myself: ActorRef<Self::Msg>,
        told: Self::Msg,
        tools: &mut Arc<Tools>,
    ) -> Result<(), ActorProcessingErr> {
        let Some(Envelope { message, slot }) = told.work() else { return Ok(()) };
        if tools.probe.ends_stage("fetcher", &myself).await? {
            return Ok(());
        }
        let watch = Watch { pulse: Arc::clone(message.ticket.pulse()), patience: tools.patience };
        let work = fetch_one(message, slot, Arc::clone(tools));
        Ok(spawn_worker(myself.get_cell(), Some(watch), work).await?)
    }

    async fn handle_supervisor_evt(
        &self,
        _myself: ActorRef<Self::Msg>,
        event: SupervisionEvent,
        _tools: &mut Arc<Tools>,
    ) -> Result<(), ActorProcessingErr> {
        note_worker_event("fetcher", &event);
        Ok(())
    }
}

/// One DID's worker.
async fn fetch_one(job: FetchJob, slot: Slot, tools: Arc<Tools>) -> Result<(), ActorProcessingErr> {
    let FetchJob { mut ticket, subject, permit, ask_server } = job;
    ticket.enter();
    if tools.probe.ends_at(Point::Worker("fetcher", subject.did.as_str())).await? {
        return Ok(());
    }
    let fetched = fetch(&tools, &ticket, &subject, &permit, ask_server).await;
    drop(permit);
    match fetched {
        Ok((car, framed)) => {
            ticket.leave();
            ticket.pulse().set_resting(true);
            let waiting = tools.backlog.arrived(car.len());
            let fetched = FetchedCar { ticket, subject, car, framed, waiting };
            // A closed mailbox drops the repository, and its ticket tells.
            let _stopped = tools.parser.send(fetched).await;
        }
        Err(news) => ticket.finish(news),
    }
    drop(slot);
    Ok(())
}

async fn fetch(
    tools: &Tools,
    ticket: &Ticket,
    subject: &Subject,
    permit: &Permit,
    ask_server: bool,
) -> Result<(SpooledCar, Framed), News> {
    let asking = Stopwatch::start();
    let endpoint = tools.client.guard().endpoint(&subject.identity.endpoint);
    let endpoint =
        endpoint.map_err(News::Failed).inspect_err(|news| counted(asking, Some(news)))?;
    if ask_server {
        let alive = ask_for_life(tools, &endpoint.url, permit).await;
        counted(asking, alive.as_ref().err());
        alive?;
        ticket.pulse().beat();
    }
    if subject.refresh.is_some() {
        latest::newer(tools, subject, &endpoint.url, permit).await?;
        permit.also_asked();
        ticket.pulse().beat();
    }
    let mut url = xrpc(&endpoint.url, "com.atproto.sync.getRepo");
    url.query_pairs_mut().append_pair("did", subject.did.as_str());
    let asking = Stopwatch::start();
    match transfer(tools, ticket, &url, permit).await {
        Ok(transferred) => {
            counted(asking, None);
            Ok(transferred)
        }
        Err((news, leaves_open_why)) => {
            counted(asking, Some(&news));
            ticket.pulse().beat();
            Err(match news {
                News::Failed(failure) if leaves_open_why => {
                    News::Failed(ask_why(tools, &subject.did, &endpoint.url, permit, failure).await)
                }
                news => news,
            })
        }
    }
}

/// Asks for the repository's status, and gives `failure` in its light; an answer that says nothing changes nothing.
async fn ask_why(
    tools: &Tools,
    did: &Did,
    endpoint: &Url,
    permit: &Permit,
    failure: Failure,
) -> Failure {
    let mut url = xrpc(endpoint, "com.atproto.sync.getRepoStatus");
    url.query_pairs_mut().append_pair("did", did.as_str());
    let request =
        Request { trust: Trust::Stranger, accept: "application/json", is_transfer: false };
    let asking = Stopwatch::start();
    permit.also_asked();
    let lane = Lane::new(permit);
    let response = match tools.client.get_by_turns(&url, &request, |host| lane.lead_to(host)).await
    {
        Ok(response) => response,
        Err(error) => {
            counted(asking, Some(&told(&lane, &error)));
            return failure;
        }
    };
    let (status, headers) = (response.status(), response.headers().clone());
    let start = read_start(response, ERROR_BODY_BYTES_MAX).await;
    let now_ms = tools.clock.wall_ms();
    lane.said(answer::signal(status, &headers, &start, now_ms));
    if status == 200 {
        counted(asking, None);
    } else {
        let (failure, _) = answer::repo_outcome(status, &headers, &start, now_ms);
        counted(asking, Some(&News::Failed(failure)));
    }
    answer::with_status(failure, status, &headers, &start)
}

/// Counts a request by how it failed, if it did. One that we ended ourselves will be sent again.
fn counted(asking: Stopwatch, failed: Option<&News>) {
    let outcome = match failed {
        None => Outcome::Ok,
        Some(News::Failed(failure)) => failure.outcome(),
        Some(_) => Outcome::Transient,
    };
    telemetry::requested(Service::Pds, outcome, asking);
}

/// Fetches it; a failure comes with whether it leaves open why.
async fn transfer(
    tools: &Tools,
    ticket: &Ticket,
    url: &Url,
    permit: &Permit,
) -> Result<(SpooledCar, Framed), (News, bool)> {
    let request =
        Request { trust: Trust::Stranger, accept: "application/vnd.ipld.car", is_transfer: true };
    let lane = Lane::new(permit);
    let asked = tools.client.get_by_turns(url, &request, |host| lane.lead_to(host)).await;
    let response = asked.map_err(|error| (told(&lane, &error), false))?;
    let (status, headers) = (response.status(), response.headers().clone());
    if !answer::is_car(status, &headers) {
        let start = read_start(response, ERROR_BODY_BYTES_MAX).await;
        let now_ms = tools.clock.wall_ms();
        let (failure, signal) = answer::repo_outcome(status, &headers, &start, now_ms);
        lane.said(signal);
        return Err((News::Failed(failure), answer::leaves_open_why(status, &start)));
    }
    let window = answer::rate_window(&headers, tools.clock.wall_ms());
    lane.said(HostSignal::Usable(window));
    receive(tools, ticket, response).await.map_err(|news| (news, false))
}

/// Asks a host that was away how it is, before the only account left there is blamed for what follows.
async fn ask_for_life(tools: &Tools, endpoint: &Url, permit: &Permit) -> Result<(), News> {
    let url = xrpc(endpoint, "com.atproto.server.describeServer");
    let request =
        Request { trust: Trust::Stranger, accept: "application/json", is_transfer: false };
    let lane = Lane::new(permit);
    let asked = tools.client.get_by_turns(&url, &request, |host| lane.lead_to(host)).await;
    let response = asked.map_err(|error| told(&lane, &error))?;
    let (status, headers) = (response.status(), response.headers().clone());
    let start = read_start(response, ERROR_BODY_BYTES_MAX).await;
    let now_ms = tools.clock.wall_ms();
    let signal = answer::signal(status, &headers, &start, now_ms);
    lane.said(signal);
    if let HostSignal::Usable(_) = signal {
        return Ok(());
    }
    let (failure, _) = answer::repo_outcome(status, &headers, &start, now_ms);
    Err(News::Failed(failure))
}

fn xrpc(endpoint: &Url, method: &str) -> Url {
    let mut url = endpoint.clone();
    url.set_path(&format!("/xrpc/{method}"));
    url.set_query(None);
    url
}

/// Tells the host's side of a failed request, and gives the account's.
fn told(lane: &Lane<'_>, error: &NetError) -> News {
    if let NetError::NotYet(wait) = error {
        return News::NotBefore(*wait);
    }
    if let NetError::NoDescriptor(text) = error {
        tracing::warn!(%text, "no descriptor is left for a connection, it is tried again");
        return News::NotBefore(DESCRIPTOR_WAIT);
    }
    lane.said(error.host_signal());
    News::Failed(error.failure())
}

async fn receive(
    tools: &Tools,
    ticket: &Ticket,
    mut response: Response,
) -> Result<(SpooledCar, Framed), News> {
    let _socket = tools.memory.try_take(SOCKET_BYTES);
    let mut framer = Framer::new(tools.repo_bytes_max);
    let mut spool = tools.spools.open();
    let (mut has_begun, mut has_paused) = (false, false);
    let transfer = tools.transfers.begin(tools.clock.now());
    let mut given_up = pin!(transfer.is_given_up(&tools.clock));
    loop {
        transfer.waits(tools.clock.now());
        let chunk = tokio::select! {
            biased;
            chunk = response.chunk() => chunk,
            () = &mut given_up => return Err(News::Dripped),
        };
        let chunk = match chunk {
            Ok(Some(chunk)) => chunk,
            Ok(None) => break,
            // While the disk was full nobody read: a host that did not wait for that is not to blame.
            Err(_) if has_paused => return Err(News::GivenBack),
            Err(error) => return Err(News::Failed(error.failure())),
        };
        if !has_begun {
            ticket.tell(News::BodyBegun);
            has_begun = true;
        }
        transfer.received(chunk.len() as u64, tools.clock.now());
        framer.push(&chunk).map_err(of_repo)?;
        if !spool.has_memory_beside(framer.heads_bytes()) {
            framer.forget_heads();
        }
        ticket.pulse().beat();
        has_paused |= write(tools, ticket, &mut spool, &chunk).await?;
        telemetry::progressed(tools.clock.wall_ms());
    }
    if !has_begun {
        let detail = "an empty answer with status 200";
        let failure = Failure::new(Cause::Transient, Some(LastError::NotCar), detail);
        return Err(News::Failed(failure));
    }
    let framed = framer.finish().map_err(of_repo)?;
    transfer.ended(tools.clock.now());
    Ok((spool.freeze(), framed))
}

fn of_repo(error: RepoError) -> News {
    News::Failed(Failure::new(error.cause(), error.last_error(), error.to_string()))
}

/// Says whether it had to wait for space.
async fn write(
    tools: &Tools,
    ticket: &Ticket,
    spool: &mut Spool,
    chunk: &Bytes,
) -> Result<bool, News> {
    let mut has_paused = false;
    loop {
        match spool.write(chunk) {
            Ok(()) => {
                if has_paused {
                    tools.health.cleared(WRITER);
                }
                return Ok(has_paused);
            }
            Err(SpoolError::NoRoom) => return Err(News::TooLargeForNow),
            Err(SpoolError::TooLarge) => {
                let detail = "larger than limits.spool";
                let cause = Cause::Terminal(Reason::RepoTooLarge);
                return Err(News::Failed(Failure::new(cause, None, detail)));
            }
            Err(SpoolError::Disk(error)) => {
                let error = StoreError::io(tools.spools.folder(), error);
                if !error.is_full() {
                    tools.health.fail(error);
                    return Err(News::GivenBack);
                }
                ticket.pulse().set_resting(true);
                tools.health.pause(WRITER, &error).await;
                ticket.pulse().set_resting(false);
                has_paused = true;
            }
        }
    }
}
