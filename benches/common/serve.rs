//! A directory and eight hosts on loopback that serve a prepared set: documents from a table, CARs by positioned reads from the
//! pack. They make nothing while somebody is measured, and run in the bench's own process, whose time is not counted.
#![allow(dead_code, reason = "not every bench uses all of it")]

use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::{Request, Response};
use tokio::sync::watch;

use crate::data::{Prepared, Set};
use crate::support::server::{self, Answer, Server};

/// Hosts beside the directory.
pub const HOSTS: usize = 8;

/// Bytes of body in one piece, without a length before it, as the reference server sends them.
const PIECE_BYTES: usize = 32 << 10;

/// A transfer that waits for the others goes on after this long.
const GATE_PATIENCE: Duration = Duration::from_secs(20);

/// See the header. Stops when it is dropped.
pub struct Servers {
    directory: Server,
    hosts: Vec<Server>,
    shared: Arc<Shared>,
}

struct Shared {
    set: Set,
    by_did: HashMap<String, usize>,
    /// Transfers that must have begun before any of them sends: all then lie side by side until the first account's CAR, the
    /// largest, is out. 0 is no gate.
    gate: usize,
    begun: watch::Sender<usize>,
    /// Transfers that are out whole.
    ended: watch::Sender<usize>,
    is_largest_out: watch::Sender<bool>,
}

impl Servers {
    pub fn start(set: Set) -> Self {
        Self::with_gate(set, 0)
    }

    /// With a gate for so many transfers.
    pub fn with_gate(set: Set, gate: usize) -> Self {
        set.warm();
        let by_did =
            set.accounts.iter().enumerate().map(|(index, it)| (it.did.clone(), index)).collect();
        let (begun, ended) = (watch::Sender::new(0), watch::Sender::new(0));
        let is_largest_out = watch::Sender::new(false);
        let shared = Arc::new(Shared { set, by_did, gate, begun, ended, is_largest_out });
        let host = |number: usize| {
            let shared = Arc::clone(&shared);
            Server::start(&format!("pds {number}"), move |request, _| {
                repo(Arc::clone(&shared), request)
            })
        };
        let hosts: Vec<Server> = (0..HOSTS).map(host).collect();
        let urls: Vec<String> = hosts.iter().map(Server::url).collect();
        let known = Arc::clone(&shared);
        let directory = Server::start("plc", move |request, _| {
            std::future::ready(document(&known, &urls, &request))
        });
        Self { directory, hosts, shared }
    }

    pub fn set(&self) -> &Set {
        &self.shared.set
    }

    pub fn plc_url(&self) -> String {
        self.directory.url()
    }

    /// How many transfers met at the gate, and shuts it again.
    pub fn gate_met(&self) -> usize {
        self.shared.is_largest_out.send_replace(false);
        self.shared.ended.send_replace(0);
        self.shared.begun.send_replace(0)
    }

    /// Whether every account's repository is out.
    pub fn all_are_out(&self) -> bool {
        *self.shared.ended.borrow() >= self.shared.set.accounts.len()
    }
}

fn document(shared: &Shared, hosts: &[String], request: &Request<Incoming>) -> Answer {
    let did = server::decoded(request.uri().path().trim_start_matches('/'));
    let Some(index) = shared.by_did.get(&did) else {
        return Ok(server::answer(404, "application/json", r#"{"message":"DID not registered"}"#));
    };
    let key = shared.set.accounts[*index].key.trim_start_matches("did:key:");
    let host = &hosts[index % HOSTS];
    let text = format!(
        r##"{{"@context":["https://www.w3.org/ns/did/v1"],"id":"{did}","alsoKnownAs":["at://user{index}.test"],"verificationMethod":[{{"id":"{did}#atproto","type":"Multikey","controller":"{did}","publicKeyMultibase":"{key}"}}],"service":[{{"id":"#atproto_pds","type":"AtprotoPersonalDataServer","serviceEndpoint":"{host}"}}]}}"##
    );
    Ok(server::answer(200, "application/did+ld+json", text))
}

async fn repo(shared: Arc<Shared>, request: Request<Incoming>) -> Answer {
    let did = server::query(request.uri().query().unwrap_or(""), "did").unwrap_or_default();
    let is_repo = request.uri().path().ends_with("com.atproto.sync.getRepo");
    let Some(index) = shared.by_did.get(&did).copied().filter(|_| is_repo) else {
        return Ok(server::answer(400, "application/json", r#"{"error":"RepoNotFound"}"#));
    };
    let sending = Sending { shared, index, at: 0 };
    let body = StreamBody::new(futures::stream::unfold(sending, Sending::next)).boxed_unsync();
    let answer = Response::builder().header("content-type", "application/vnd.ipld.car").body(body);
    Ok(answer.unwrap())
}

struct Sending {
    shared: Arc<Shared>,
    index: usize,
    at: usize,
}

impl Sending {
    async fn next(mut self) -> Option<(io::Result<Frame<Bytes>>, Self)> {
        let account: &Prepared = &self.shared.set.accounts[self.index];
        if self.at == account.bytes {
            return None;
        }
        let (is_first, is_last) = (self.at == 0, self.at + PIECE_BYTES >= account.bytes);
        if self.shared.gate > 0 {
            self.wait(is_first, is_last).await;
        }
        let piece = self.shared.set.read(account, self.at, PIECE_BYTES);
        self.at += piece.len();
        if self.at == account.bytes {
            self.shared.ended.send_modify(|ended| *ended += 1);
        }
        Some((Ok(Frame::data(Bytes::from(piece))), self))
    }

    async fn wait(&self, is_first: bool, is_last: bool) {
        let Shared { gate, begun, is_largest_out, .. } = &*self.shared;
        if is_first {
            begun.send_modify(|begun| *begun += 1);
            let mut begun = begun.subscribe();
            let met = begun.wait_for(|begun| begun >= gate);
            let _late = tokio::time::timeout(GATE_PATIENCE, met).await;
        }
        if is_last && self.index == 0 {
            is_largest_out.send_replace(true);
        } else if is_last {
            let mut out = is_largest_out.subscribe();
            let _late = tokio::time::timeout(GATE_PATIENCE, out.wait_for(|is_out| *is_out)).await;
        }
    }
}
