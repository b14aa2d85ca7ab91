//! Asking hosts again how the accounts stand whose rows we hold, beside a pipeline or without one.
//!
//! ```text
//!  exported accounts by host ──> a turn of the host ──> getRepoStatus ──> active: noted
//!                                                           └─> anything else ──> the directory, afresh ──> moved: asked there
//! ```
//! takes   turns at hosts and at the directory, from the scheduler or from a desk of its own: never faster than anybody else asks
//! gives   what hosts said to the ledger, some accounts at a time
//! retries an account 3 times; waits for a host that refuses as it asks, as long as `retry.host_patience`
//! gives up on a host that gives no usable answer for `manner::SILENCE_SECONDS_MAX`: its accounts are counted, not called withdrawn

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::stream::FuturesUnordered;
use futures::{FutureExt, StreamExt};
use tokio::sync::oneshot;
use url::Url;

use crate::domain::did::{Did, DidMethod};
use crate::domain::identity::Identity;
use crate::domain::verdict::{Cause, Failure, HostSignal, LastError, Reason};
use crate::limits::ERROR_BODY_BYTES_MAX;
use crate::net::answer;
use crate::net::body::read_start;
use crate::net::client::{Request, Trust};
use crate::net::error::NetError;
use crate::pipeline::manner::{Manner, Said, Unclear, word};
use crate::stages::messages::{DIRECTORY_TURN, Lane, Permit, TurnDesk};
use crate::stages::resolver::{Tools, resolve};
use crate::store::error::StoreError;
use crate::store::ledger::{Ledger, LedgerGone};
use crate::store::ledger_lists::Reader;
use crate::store::ledger_standing::{ACTIVE, Told, Visit, Visits};
use crate::telemetry::{self, Outcome, Service, Stopwatch};

/// Tries of one account.
const TRIES: u32 = 3;

/// Accounts read, and noted, at once.
const PAGE: usize = 200;

/// Hosts at once; each has its own pace.
const HOSTS_AT_ONCE: usize = 256;

/// Whoever gives turns is being started again: asked after this long.
const TURN_PAUSE: Duration = Duration::from_millis(200);

/// Why a recheck ended early.
#[derive(Debug, thiserror::Error)]
pub enum RecheckError {
    /// The disk.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The ledger's writer.
    #[error(transparent)]
    Gone(#[from] LedgerGone),
    /// A part of it crashed.
    #[error("a part of the recheck crashed: {0}")]
    Crashed(String),
    /// One is enough.
    #[error("a recheck is going on already")]
    Busy,
}

/// What came of a recheck.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Rechecked {
    /// Accounts that a host has told of.
    pub asked: u64,
    /// Of these, by status.
    pub statuses: BTreeMap<&'static str, u64>,
    /// Accounts that are back.
    pub back: u64,
    /// Accounts that nobody could tell of.
    pub unreached: u64,
    /// By the host that could not be asked: how many accounts, and what it did last.
    pub hosts: BTreeMap<String, Unreached>,
    /// Given accounts that hold nothing to be asked for.
    pub not_exported: u64,
}

/// Accounts of a host that could not be asked.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Unreached {
    /// How many.
    pub accounts: u64,
    /// What went wrong last.
    pub last_error: String,
}

/// What a recheck needs; cheap to clone.
#[derive(Clone)]
pub struct Rechecker {
    /// The ledger's writer.
    pub ledger: Ledger,
    /// The ledger's file.
    pub state_db: PathBuf,
    /// Where the list of visits lies.
    pub spool: PathBuf,
    /// Network and directory.
    pub tools: Arc<Tools>,
    /// Gives turns.
    pub turns: TurnDesk,
    /// Requests at once to a host.
    pub host_concurrency: usize,
    /// `retry.host_patience`.
    pub patience: Duration,
    /// One recheck at a time.
    pub is_busy: Arc<tokio::sync::Mutex<()>>,
}

/// What became of one account.
enum Visited {
    Told(Told),
    Unreached { host: String, why: String },
}

impl Rechecker {
    /// Asks for every listed account that was exported; with `given`, for these, listed or not.
    ///
    /// # Errors
    /// [`RecheckError`]; what was noted before stays.
    pub async fn run(&self, given: Option<Vec<String>>) -> Result<Rechecked, RecheckError> {
        let Ok(_alone) = self.is_busy.try_lock() else { return Err(RecheckError::Busy) };
        let (state_db, spool) = (self.state_db.clone(), self.spool.clone());
        let filled = tokio::task::spawn_blocking(move || fill(&state_db, &spool, given)).await;
        let (visits, not_exported) =
            filled.map_err(|error| RecheckError::Crashed(error.to_string()))??;
        let hosts = visits.hosts()?;
        let visits = Arc::new(Mutex::new(visits));
        let mut done = Rechecked { not_exported, ..Rechecked::default() };
        let mut under_way = FuturesUnordered::new();
        for host in hosts {
            while under_way.len() >= HOSTS_AT_ONCE {
                if let Some(one) = under_way.next().await {
                    done.add(one?);
                }
            }
            under_way.push(self.visit_host(host, Arc::clone(&visits)));
        }
        while let Some(one) = under_way.next().await {
            done.add(one?);
        }
        Ok(done)
    }

    async fn visit_host(
        &self,
        host: String,
        visits: Arc<Mutex<Visits>>,
    ) -> Result<Rechecked, RecheckError> {
        let (manner, mut after, mut done) = (Manner::default(), 0, Rechecked::default());
        loop {
            let page = {
                let visits = visits.lock().unwrap_or_else(PoisonError::into_inner);
                visits.page(&host, after, PAGE)?
            };
            let Some(last) = page.last() else { return Ok(done) };
            after = last.id.0;
            let (mut rest, mut under_way, mut told) =
                (page.iter(), FuturesUnordered::new(), Vec::new());
            loop {
                while under_way.len() < self.host_concurrency.max(1)
                    && let Some(visit) = rest.next()
                {
                    under_way.push(self.visit(&host, visit, &manner).boxed());
                }
                let Some(visited) = under_way.next().await else { break };
                match visited {
                    Visited::Told(one) => {
                        *done.statuses.entry(one.status).or_default() += 1;
                        told.push(one);
                    }
                    Visited::Unreached { host, why } => done.unreached(host, why),
                }
            }
            done.asked += told.len() as u64;
            done.back += self.ledger.run(move |rows| rows.note_standings(&told)).await?;
        }
    }

    /// Asks for one account where it was last known to be, and where the directory says that it is now.
    async fn visit(&self, host: &str, visit: &Visit, manner: &Manner) -> Visited {
        let Ok(did) = Did::parse(&visit.did) else {
            let why = "its did is malformed".to_owned();
            return Visited::Unreached { host: host.to_owned(), why };
        };
        let told = |said: Said, host: &str| {
            let Said { status, detail } = said;
            Visited::Told(Told { id: visit.id, status, host: host.to_owned(), detail })
        };
        let there = match self.ask_patiently(host, &visit.endpoint, &did, manner).await {
            Ok(said) if said.status == ACTIVE => return told(said, host),
            Ok(said) => said,
            Err(why) => return Visited::Unreached { host: host.to_owned(), why },
        };
        match self.resolve_patiently(&did).await {
            Ok(now) if now.endpoint != visit.endpoint => {
                let manner = Manner::default();
                match self.ask_patiently(&now.host, &now.endpoint, &did, &manner).await {
                    Ok(said) => told(said, &now.host),
                    Err(why) => Visited::Unreached { host: now.host, why },
                }
            }
            Ok(_) => told(there, host),
            Err(Failure { cause: Cause::Terminal(reason), detail, .. }) => match reason {
                Reason::DidNotFound | Reason::DidTombstoned => {
                    let detail = format!("{reason}: {detail}");
                    told(Said { status: "deleted", detail }, host)
                }
                _ => told(there, host),
            },
            Err(failure) => {
                let why = format!("the directory: {}", failure.detail);
                Visited::Unreached { host: host.to_owned(), why }
            }
        }
    }

    /// A turn at `host`.
    ///
    /// # Errors
    /// What it did last, if it is given up.
    async fn turn(&self, host: &str, manner: &Manner) -> Result<Permit, LastError> {
        let clock = &self.tools.clock;
        loop {
            let (reply, answer) = oneshot::channel();
            (self.turns)(host.to_owned(), reply);
            let wait = match answer.await {
                Ok(Ok(permit)) => return Ok(permit.with_turns(Arc::clone(&self.turns))),
                Ok(Err(wait)) => wait,
                Err(_gone) => TURN_PAUSE,
            };
            if let Some(error) = manner.is_over(wait, self.patience, clock) {
                return Err(error);
            }
            tokio::time::sleep(wait.max(Duration::from_millis(1))).await;
        }
    }

    async fn ask_patiently(
        &self,
        host: &str,
        endpoint: &str,
        did: &Did,
        manner: &Manner,
    ) -> Result<Said, String> {
        let checked = self.tools.client.guard().endpoint(endpoint);
        let endpoint = checked.map_err(|failure| failure.detail)?;
        let mut tries = 0;
        loop {
            let permit = self.turn(host, manner).await.map_err(|error| error.to_string())?;
            let asked = self.ask(&endpoint.url, did, &permit, manner).await;
            drop(permit);
            match asked {
                Ok(said) => return Ok(said),
                // The pace waits as it was asked to; nobody is to blame.
                Err(Unclear { is_refusal: true, .. }) => {}
                Err(Unclear { why, wait, .. }) => {
                    tries += 1;
                    if tries >= TRIES {
                        return Err(why);
                    }
                    tokio::time::sleep(wait).await;
                }
            }
        }
    }

    /// Asks for its status; a host that does not know that question, for its newest commit.
    async fn ask(
        &self,
        endpoint: &Url,
        did: &Did,
        permit: &Permit,
        manner: &Manner,
    ) -> Result<Said, Unclear> {
        match self.ask_for("getRepoStatus", endpoint, did, permit, manner).await? {
            Some(said) => Ok(said),
            None => {
                permit.also_asked();
                let said = self.ask_for("getLatestCommit", endpoint, did, permit, manner).await?;
                said.ok_or_else(Unclear::unknown_method)
            }
        }
    }

    /// `None`: the host does not know the question, which says nothing against it.
    async fn ask_for(
        &self,
        method: &str,
        endpoint: &Url,
        did: &Did,
        permit: &Permit,
        manner: &Manner,
    ) -> Result<Option<Said>, Unclear> {
        let mut url = endpoint.clone();
        url.set_path(&format!("/xrpc/com.atproto.sync.{method}"));
        url.set_query(None);
        url.query_pairs_mut().append_pair("did", did.as_str());
        let request =
            Request { trust: Trust::Stranger, accept: "application/json", is_transfer: false };
        let (asking, lane, clock) = (Stopwatch::start(), Lane::new(permit), &self.tools.clock);
        let asked = self.tools.client.get_by_turns(&url, &request, |it| lane.lead_to(it)).await;
        let response = match asked {
            Ok(response) => response,
            Err(NetError::NotYet(wait)) => {
                return Err(Unclear { why: "rate_limited".to_owned(), is_refusal: false, wait });
            }
            Err(error) => {
                let (signal, failure) = (error.host_signal(), error.failure());
                lane.said(signal);
                manner.note(&signal, clock);
                telemetry::requested(Service::Pds, failure.outcome(), asking);
                return Err(Unclear::of(&failure));
            }
        };
        let (status, headers) = (response.status(), response.headers().clone());
        let body = read_start(response, ERROR_BODY_BYTES_MAX).await;
        let signal = match status {
            501 => HostSignal::Usable(answer::rate_window(&headers, clock.wall_ms())),
            _ => answer::signal(status, &headers, &body, clock.wall_ms()),
        };
        lane.said(signal);
        manner.note(&signal, clock);
        if status == 501 {
            telemetry::requested(Service::Pds, Outcome::Terminal, asking);
            return Ok(None);
        }
        let said = if status == 200 && method == "getLatestCommit" {
            Said::of_commit(&body)
        } else if status == 200 {
            answer::status_outcome(&body).map(|status| Said::of_status(status, &body))
        } else {
            let (failure, _) = answer::repo_outcome(status, &headers, &body, clock.wall_ms());
            match failure.cause {
                Cause::Repository(reason) => {
                    Ok(Said { status: word(reason), detail: failure.detail })
                }
                _ => Err(failure),
            }
        };
        let outcome = said.as_ref().map_or_else(Failure::outcome, |_| Outcome::Ok);
        telemetry::requested(Service::Pds, outcome, asking);
        said.map(Some).map_err(|failure| Unclear::of(&failure))
    }

    async fn resolve_patiently(&self, did: &Did) -> Result<Identity, Failure> {
        let (manner, mut tries) = (Manner::default(), 0);
        let who = match did.method() {
            DidMethod::Plc => DIRECTORY_TURN,
            DidMethod::Web => did.identifier(),
        };
        loop {
            let permit = self
                .turn(who, &manner)
                .await
                .map_err(|error| Failure::new(Cause::Directory, Some(error), error.to_string()))?;
            let (found, signal) = resolve(&self.tools, did).await;
            permit.said(signal);
            manner.note(&signal, &self.tools.clock);
            drop(permit);
            match found {
                Err(failure) if failure.cause == Cause::Directory => {
                    let is_refusal = matches!(signal, HostSignal::Refused(_));
                    tries += u32::from(!is_refusal);
                    if tries >= TRIES {
                        return Err(failure);
                    }
                }
                found => return found,
            }
        }
    }
}

impl Rechecked {
    fn unreached(&mut self, host: String, why: String) {
        self.unreached += 1;
        let host = self.hosts.entry(host).or_default();
        host.accounts += 1;
        host.last_error = why;
    }

    fn add(&mut self, other: Self) {
        self.asked += other.asked;
        self.back += other.back;
        self.unreached += other.unreached;
        for (status, count) in other.statuses {
            *self.statuses.entry(status).or_default() += count;
        }
        for (name, unreached) in other.hosts {
            let host = self.hosts.entry(name).or_default();
            host.accounts += unreached.accounts;
            host.last_error = unreached.last_error;
        }
    }
}

/// Lists who is to be visited; gives how many of the given ones hold nothing to be asked for.
fn fill(
    state_db: &std::path::Path,
    spool: &std::path::Path,
    given: Option<Vec<String>>,
) -> Result<(Visits, u64), StoreError> {
    let (reader, visits, mut not_exported) = (Reader::open(state_db)?, Visits::new(spool)?, 0);
    match given {
        None => reader.each_to_visit(|id, report| visits.add(id, &report).map(drop))?,
        Some(given) => {
            for did in given {
                let report = reader.account(&did)?;
                let is_added = match &report {
                    Some(report) => visits.add(report.id, report)?,
                    None => false,
                };
                not_exported += u64::from(!is_added);
            }
        }
    }
    Ok((visits, not_exported))
}
