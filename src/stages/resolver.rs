//! Resolver: finds the host, the signing key and the claimed handle of a DID.
//!
//! takes    DidJob         capacity 64: more requests than any directory answers at once
//! gives    News::Resolved back to the scheduler, which writes it to the ledger: that is the cache
//! retries  a directory that refuses, fails or answers nonsense: it waits like a host
//! gives up on unknown, tombstoned or unusable identities, and on endpoints that may not be connected to

use std::sync::Arc;

use ractor::{Actor, ActorProcessingErr, ActorRef, SupervisionEvent};
use url::Url;

use crate::actor::mailbox::{Envelope, Mailbox, Told};
use crate::actor::worker::{note_worker_event, spawn_worker};
use crate::clock::Clock;
use crate::domain::did::{Did, DidMethod};
use crate::domain::identity::Identity;
use crate::domain::verdict::{Cause, Failure, HostSignal};
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
    /// `identity.plc_url`.
    pub plc_url: Url,
    /// Wall time, for the dates in headers.
    pub clock: Clock,
    /// Sees what passes.
    pub probe: Probe,
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
        tools.probe.pass(Point::Stage("resolver"));
        let work = async move {
            let Envelope { message, slot: _held } = envelope;
            let DidJob { mut ticket, did, wants_earlier_keys, permit } = message;
            ticket.enter();
            tools.probe.pass(Point::Worker("resolver", did.as_str()));
            let (mut found, signal) = resolve(&tools, &did).await;
            permit.said(signal);
            if let Ok(identity) = &mut found
                && wants_earlier_keys
            {
                identity.earlier_keys = earlier_keys(&tools, &did, &identity.key).await;
            }
            ticket.finish(match found {
                Ok(identity) => News::Resolved(identity),
                Err(failure) => News::Failed(failure),
            });
        };
        Ok(spawn_worker(myself.get_cell(), work).await?)
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

/// Asks the DID's directory once; gives the identity, and what the directory showed of itself.
pub async fn resolve(tools: &Tools, did: &Did) -> (Result<Identity, Failure>, HostSignal) {
    let asking = Stopwatch::start();
    let (read, signal) = match ask(tools, did).await {
        Ok(outcome) => outcome,
        Err((failure, signal)) => (Err(failure), signal),
    };
    let came = read.as_ref().map_or_else(Failure::outcome, |_| Came::Ok);
    telemetry::requested(service(did), came, asking);
    let guard = tools.client.guard();
    let identity = read.and_then(|document| {
        let endpoint = guard.endpoint(&document.endpoint).inspect_err(|failure| {
            telemetry::requested(Service::Pds, failure.outcome(), asking);
        });
        let host = endpoint?.host;
        let (endpoint, key, handle) = (document.endpoint, document.key, document.handle);
        Ok(Identity { endpoint, host, key, earlier_keys: Vec::new(), handle })
    });
    (identity, signal)
}

fn service(did: &Did) -> Service {
    match did.method() {
        DidMethod::Plc => Service::Plc,
        DidMethod::Web => Service::Web,
    }
}

/// Signing keys that the directory's log shows for a `did:plc` before `current`; none if it shows none or does not answer:
/// the account is then judged by its document alone.
async fn earlier_keys(tools: &Tools, did: &Did, current: &str) -> Vec<String> {
    if did.method() != DidMethod::Plc {
        return Vec::new();
    }
    let url = plc::log_url(&tools.plc_url, did);
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

async fn ask(tools: &Tools, did: &Did) -> Result<Outcome, (Failure, HostSignal)> {
    let (url, trust) = match did.method() {
        DidMethod::Plc => (plc::document_url(&tools.plc_url, did), Trust::Operator),
        DidMethod::Web => {
            let endpoint = tools.client.guard().web_document(did.identifier());
            let endpoint = endpoint.map_err(|failure| (failure, HostSignal::NotAsked))?;
            (endpoint.url, Trust::Stranger)
        }
    };
    let request = Request { trust, accept: ACCEPT, is_transfer: false };
    let failed = |error: NetError| (of_directory(&error), signal_of_directory(&error));
    let response = tools.client.get(&url, &request).await.map_err(failed)?;
    let (status, headers) = (response.status(), response.headers().clone());
    // One byte more than a document may have: what is too long is its owner's fault, and judged as such.
    let body = read_up_to(response, DOCUMENT_BYTES_MAX + 1).await.map_err(failed)?;
    let now_ms = tools.clock.wall_ms();
    Ok(match did.method() {
        DidMethod::Plc => plc::outcome(did, status, &headers, &body, now_ms),
        DidMethod::Web => web::outcome(did, status, &headers, &body, now_ms),
    })
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
