//! Resolver: finds the host, the signing key and the claimed handle of a DID.
//!
//! takes    DidJob         capacity 64: more requests than any directory answers at once
//! gives    News::Resolved back to the scheduler, which writes it to the ledger: that is the cache
//! retries  a directory that refuses, fails or answers nonsense: its mirrors are asked; without an answer it waits like a host
//! gives up on unknown, tombstoned or unusable identities, and on endpoints that may not be connected to

use std::sync::Arc;
use std::time::Duration;

use ractor::{Actor, ActorProcessingErr, ActorRef, SupervisionEvent};
use url::Url;

use crate::actor::mailbox::{Envelope, Mailbox, Told};
use crate::actor::worker::{Watch, note_worker_event, spawn_worker};
use crate::clock::Clock;
use crate::domain::did::{Did, DidMethod};
use crate::domain::identity::Identity;
use crate::domain::verdict::{Cause, Failure, HostSignal};
use crate::identity::directory::{Directory, Source, of_mirror};
use crate::identity::{Outcome, plc, web};
use crate::limits::{DOCUMENT_BYTES_MAX, LOG_BYTES_MAX};
use crate::net::body::{read_capped, read_up_to};
use crate::net::client::{Client, Request, Trust};
use crate::net::error::NetError;
use crate::stages::messages::{DidJob, News, Point, Probe};
use crate::telemetry::{self, Outcome as Came, Service, Stopwatch};

/// DIDs in the mailbox, waiting and in work.
pub const CAPACITY: usize = 64;

/// What directories are asked for.
const ACCEPT: &str = "application/did+ld+json, application/json";

/// What resolving needs.
pub struct Tools {
    /// The network.
    pub client: Client,
    /// `identity.plc_url` and `identity.mirrors`.
    pub directory: Directory,
    /// Wall time, for the dates in headers.
    pub clock: Clock,
    /// Sees what passes.
    pub probe: Probe,
    /// A worker that is silent for this long hangs.
    pub patience: Duration,
}

/// What the stage is started with.
#[derive(Clone)]
pub struct Arguments {
    /// Its mailbox, bound at each start.
    pub mailbox: Mailbox<DidJob>,
    /// What resolving needs.
    pub tools: Arc<Tools>,
}

/// The resolver.
pub struct Resolver;

impl Actor for Resolver {
    type Msg = Told<DidJob>;
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
        let Some(envelope) = told.work() else { return Ok(()) };
        let tools = Arc::clone(tools);
        if tools.probe.ends_stage("resolver", &myself).await? {
            return Ok(());
        }
        let pulse = Arc::clone(envelope.message.ticket.pulse());
        let watch = Watch { pulse, patience: tools.patience };
        let work = async move { resolve_one(envelope, &tools).await };
        Ok(spawn_worker(myself.get_cell(), Some(watch), work).await?)
    }

    async fn handle_supervisor_evt(
        &self,
        _myself: ActorRef<Self::Msg>,
        event: SupervisionEvent,
        _tools: &mut Arc<Tools>,
    ) -> Result<(), ActorProcessingErr> {
        note_worker_event("resolver", &event);
        Ok(())
    }
}

/// One DID's worker.
async fn resolve_one(envelope: Envelope<DidJob>, tools: &Tools) -> Result<(), ActorProcessingErr> {
    let Envelope { message, slot: _held } = envelope;
    let DidJob { mut ticket, did, wants_earlier_keys, permit } = message;
    ticket.enter();
    if tools.probe.ends_at(Point::Worker("resolver", did.as_str())).await? {
        return Ok(());
    }
    let Resolved { mut found, signal, source } = resolve_at(tools, &did).await;
    ticket.pulse().beat();
    permit.said(signal);
    if let (Ok(identity), Some(source), true) = (&mut found, source, wants_earlier_keys) {
        identity.earlier_keys = earlier_keys(tools, &source, &did, &identity.key).await;
    }
    ticket.finish(match found {
        Ok(identity) => News::Resolved(identity),
        Err(failure) => News::Failed(failure),
    });
    Ok(())
}

/// What came of a resolution.
struct Resolved {
    found: Result<Identity, Failure>,
    signal: HostSignal,
    /// Which directory said it, for a `did:plc`.
    source: Option<Source>,
}

/// Asks the DID's directory once; gives the identity, and what the directory showed of itself.
pub async fn resolve(tools: &Tools, did: &Did) -> (Result<Identity, Failure>, HostSignal) {
    let Resolved { found, signal, .. } = resolve_at(tools, did).await;
    (found, signal)
}

async fn resolve_at(tools: &Tools, did: &Did) -> Resolved {
    let asking = Stopwatch::start();
    let ((read, signal), source) = match did.method() {
        DidMethod::Plc => ask_directories(tools, did).await,
        DidMethod::Web => (ask_web(tools, did).await, None),
    };
    let guard = tools.client.guard();
    let identity = read.and_then(|document| {
        let endpoint = guard.endpoint(&document.endpoint).inspect_err(|failure| {
            telemetry::requested(Service::Pds, failure.outcome(), asking);
        });
        let host = endpoint?.host;
        let (endpoint, key, handle) = (document.endpoint, document.key, document.handle);
        Ok(Identity { endpoint, host, key, earlier_keys: Vec::new(), handle })
    });
    Resolved { found: identity, signal, source }
}

/// Asks the directory, and its mirrors as long as nothing usable comes.
async fn ask_directories(tools: &Tools, did: &Did) -> (Outcome, Option<Source>) {
    let mut last: Option<(Outcome, Source)> = None;
    while let Some(source) = tools.directory.next(last.as_ref().map(|(_, source)| source)).await {
        let asking = Stopwatch::start();
        let url = plc::document_url(&source.url, did);
        let outcome = ask(tools, did, &url, Trust::Operator).await;
        counted(did, &outcome, asking);
        tools.directory.said(&source, &outcome.1);
        let outcome = if source.is_mirror() { of_mirror(outcome) } else { outcome };
        if matches!(outcome.1, HostSignal::Usable(_) | HostSignal::NotAsked) {
            return (outcome, Some(source));
        }
        last = Some((outcome, source));
    }
    match last {
        Some((outcome, source)) => (outcome, Some(source)),
        None => {
            let (failure, signal) = tools.directory.nobody();
            ((Err(failure), signal), None)
        }
    }
}

async fn ask_web(tools: &Tools, did: &Did) -> Outcome {
    let asking = Stopwatch::start();
    let outcome = match tools.client.guard().web_document(did.identifier()) {
        Ok(endpoint) => ask(tools, did, &endpoint.url, Trust::Stranger).await,
        Err(failure) => (Err(failure), HostSignal::NotAsked),
    };
    counted(did, &outcome, asking);
    outcome
}

/// Counts a request by what came of it.
fn counted(did: &Did, (read, _): &Outcome, asking: Stopwatch) {
    let came = read.as_ref().map_or_else(Failure::outcome, |_| Came::Ok);
    telemetry::requested(service(did), came, asking);
}

fn service(did: &Did) -> Service {
    match did.method() {
        DidMethod::Plc => Service::Plc,
        DidMethod::Web => Service::Web,
    }
}

/// Signing keys that the directory's log shows for a `did:plc` before `current`; none if it shows none or does not answer:
/// the account is then judged by its document alone.
async fn earlier_keys(tools: &Tools, source: &Source, did: &Did, current: &str) -> Vec<String> {
    let url = plc::log_url(&source.url, did);
    let request =
        Request { trust: Trust::Operator, accept: "application/json", is_transfer: false };
    let asking = Stopwatch::start();
    let (body, came) = match tools.client.get(&url, &request).await {
        Ok(response) if response.status() == 200 => {
            let body = read_capped(response, LOG_BYTES_MAX).await;
            let came =
                body.as_ref().map_or_else(|error| of_directory(error).outcome(), |_| Came::Ok);
            (body.map(Some), came)
        }
        Ok(response) => (Ok(None), came_by_status(response.status())),
        Err(error) => {
            let came = of_directory(&error).outcome();
            (Err(error), came)
        }
    };
    telemetry::requested(Service::Plc, came, asking);
    match body {
        Ok(body) => body.map_or_else(Vec::new, |body| plc::earlier_keys(&body, current)),
        Err(error) => {
            tracing::warn!(%did, %error, "the directory's log of this did could not be read");
            Vec::new()
        }
    }
}

/// What came of a request whose answer is not read.
const fn came_by_status(status: u16) -> Came {
    match status {
        429 => Came::RateLimited,
        400..=499 => Came::Terminal,
        _ => Came::Transient,
    }
}

async fn ask(tools: &Tools, did: &Did, url: &Url, trust: Trust) -> Outcome {
    let request = Request { trust, accept: ACCEPT, is_transfer: false };
    let answer = async {
        let response = tools.client.get(url, &request).await?;
        let (status, headers) = (response.status(), response.headers().clone());
        // One byte more than a document may have: what is too long is its owner's fault, and judged as such.
        let body = read_up_to(response, DOCUMENT_BYTES_MAX + 1).await?;
        Ok::<_, NetError>((status, headers, body))
    };
    let now_ms = tools.clock.wall_ms();
    match (answer.await, did.method()) {
        (Ok((status, headers, body)), DidMethod::Plc) => {
            plc::outcome(did, status, &headers, &body, now_ms)
        }
        (Ok((status, headers, body)), DidMethod::Web) => {
            web::outcome(did, status, &headers, &body, now_ms)
        }
        (Err(error), _) => (Err(of_directory(&error)), signal_of_directory(&error)),
    }
}

/// Whatever goes wrong on the way to a directory is the directory's fault, unless the guard refused.
fn of_directory(error: &NetError) -> Failure {
    let failure = error.failure();
    match failure.cause {
        Cause::Terminal(_) => failure,
        _ => Failure { cause: Cause::Directory, ..failure },
    }
}

/// A directory whose answers break off is of no use, although something came.
fn signal_of_directory(error: &NetError) -> HostSignal {
    match (error.host_signal(), error.last_error()) {
        (HostSignal::Usable(_), Some(last_error)) => HostSignal::Fault(last_error),
        (signal, _) => signal,
    }
}
