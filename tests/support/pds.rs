//! A host: repositories of the world's accounts over XRPC, as the reference server answers, at a pace that can be set.
//!
//! A CAR is made when it is first asked for, off the server's own thread, and sent in chunks without a length. Faults that
//! belong to a body act on it here.

use std::io;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::{Request, Response};
use serde_json::json;

use super::faults::{At, Fault, Place, Wait, before_headers, refusal};
use super::forge::{Block, CarOptions, cid_of, write_section};
use super::network::{Net, Now, Standing};
use super::server::{self, Answer, Body, Connection, Log, Server, Transfer};
use super::time::unix_now;

/// The method whose transfers are logged and broken.
pub const GET_REPO: &str = "com.atproto.sync.getRepo";

/// How a host behaves when nothing is wrong.
#[derive(Clone, Debug)]
pub struct Manners {
    /// Bytes of body in one piece.
    pub chunk_bytes: usize,
    /// Each transfer's own pace; `None` is as fast as it goes.
    pub bytes_per_second: Option<u64>,
    /// A limit that is kept: so many requests in so long, then 429 with `RateLimit-Reset`. Also told on every answer.
    pub limit: Option<(u32, Duration)>,
    /// Headers on every answer.
    pub headers: Vec<(String, String)>,
}

impl Default for Manners {
    fn default() -> Self {
        Self { chunk_bytes: 32 << 10, bytes_per_second: None, limit: None, headers: Vec::new() }
    }
}

pub struct Pds {
    server: Server,
    host: Arc<Host>,
}

/// What the server's requests share.
struct Host {
    number: usize,
    net: Arc<Net>,
    log: Arc<Log>,
    manners: Mutex<Manners>,
    /// Begin of the limit's window, and requests in it.
    window: Mutex<Option<(Instant, u32)>>,
}

impl Pds {
    pub(super) fn start(number: usize, net: Arc<Net>) -> Self {
        let host = Arc::new(Host {
            number,
            net,
            log: Arc::default(),
            manners: Mutex::default(),
            window: Mutex::default(),
        });
        let kept = Arc::clone(&host);
        let server = Server::start(&format!("pds {number}"), move |request, connection| {
            handle(Arc::clone(&host), request, connection)
        });
        Self { server, host: kept }
    }

    /// `http://127.0.0.1:PORT`.
    pub fn url(&self) -> String {
        self.server.url()
    }

    /// `127.0.0.1:PORT`.
    pub fn name(&self) -> String {
        self.server.address().to_string()
    }

    pub fn server(&self) -> &Server {
        &self.server
    }

    pub fn log(&self) -> &Log {
        &self.host.log
    }

    pub fn set_manners(&self, manners: Manners) {
        *self.host.manners.lock().unwrap() = manners;
    }
}

async fn handle(host: Arc<Host>, request: Request<Incoming>, connection: Connection) -> Answer {
    let method = request.uri().path().trim_start_matches("/xrpc/").to_owned();
    let did = server::query(request.uri().query().unwrap_or(""), "did").unwrap_or_default();
    let number = host.log.arrived(&method, &did, &request);
    let manners = host.manners.lock().unwrap().clone();
    let answer = match host.over_limit(&manners) {
        Some(refused) => Ok(refused),
        None => host.answer(&method, &did, number, &manners, &connection).await,
    };
    let mut answer = answer?;
    for (name, value) in manners.headers.iter().chain(&host.limit_headers(&manners)) {
        answer = server::with_header(answer, name, value);
    }
    host.log.answered(number, answer.status().as_u16());
    Ok(answer)
}

fn error(name: &str, message: &str) -> Response<Body> {
    server::json(400, &json!({"error": name, "message": message}))
}

fn not_found(did: &str) -> Response<Body> {
    error("RepoNotFound", &format!("Could not find repo for DID: {did}"))
}

impl Host {
    /// Counts the request against the limit.
    fn over_limit(&self, manners: &Manners) -> Option<Response<Body>> {
        let (requests, span) = manners.limit?;
        let mut window = self.window.lock().unwrap();
        let (begun, used) =
            window.filter(|(begun, _)| begun.elapsed() < span).unwrap_or((Instant::now(), 0));
        *window = Some((begun, used + 1));
        (used >= requests).then(|| {
            self.net.faults.note("limit");
            let left = span.saturating_sub(begun.elapsed());
            refusal(&Wait::Reset(left.as_secs().cast_signed() + 1))
        })
    }

    fn limit_headers(&self, manners: &Manners) -> Vec<(String, String)> {
        let (Some((requests, span)), Some((begun, used))) =
            (manners.limit, *self.window.lock().unwrap())
        else {
            return Vec::new();
        };
        let left = span.saturating_sub(begun.elapsed()).as_secs().cast_signed() + 1;
        [
            ("ratelimit-limit", requests.to_string()),
            ("ratelimit-remaining", requests.saturating_sub(used).to_string()),
            ("ratelimit-reset", (unix_now() + left).to_string()),
            ("ratelimit-policy", format!("{requests};w={}", span.as_secs().max(1))),
        ]
        .map(|(name, value)| (name.to_owned(), value))
        .to_vec()
    }

    async fn answer(
        self: &Arc<Self>,
        method: &str,
        did: &str,
        number: usize,
        manners: &Manners,
        connection: &Connection,
    ) -> Answer {
        let place = if method == GET_REPO { Place::Repo } else { Place::Status };
        let mut fault = self.net.faults.take(place, Some(self.number), did);
        if let Some(early) = fault.take() {
            match before_headers(early, &self.net.faults, connection).await {
                Ok(answer) => return answer,
                Err(later) => fault = Some(later),
            }
        }
        if let Some(Fault::SlowHeaders(wait)) = fault {
            self.net.faults.note("slow_headers");
            tokio::time::sleep(wait).await;
            fault = None;
        }
        match method {
            GET_REPO => self.repo(did, number, manners, connection, fault).await,
            "com.atproto.sync.getRepoStatus" => Ok(self.status(did)),
            "com.atproto.sync.getLatestCommit" => Ok(self.latest_commit(did).await),
            "com.atproto.server.describeServer" => Ok(server::json(
                200,
                &json!({
                    "did": format!("did:web:pds{}.test", self.number),
                    "availableUserDomains": [".test"],
                    "inviteCodeRequired": false,
                }),
            )),
            _ => Ok(server::json(
                501,
                &json!({"error": "MethodNotImplemented", "message": "Method Not Implemented"}),
            )),
        }
    }

    /// The account and how it stands here, or the error that says why not.
    fn find(&self, did: &str) -> Result<(usize, Now), Box<Response<Body>>> {
        let unknown = || Box::new(not_found(did));
        let index = self.net.world.index_of(did).ok_or_else(unknown)?;
        let now = self.net.now(index);
        if now.host == self.number {
            return Ok((index, now));
        }
        if self.net.world.host(index) == self.number {
            return Ok((index, Now { standing: Standing::Deactivated, ..now }));
        }
        Err(unknown())
    }

    fn found_active(&self, did: &str) -> Result<(usize, Now), Box<Response<Body>>> {
        let (index, now) = self.find(did)?;
        Err(Box::new(match now.standing {
            Standing::Active => return Ok((index, now)),
            Standing::Deactivated => {
                error("RepoDeactivated", &format!("Repo has been deactivated: {did}"))
            }
            Standing::TakenDown => {
                error("RepoTakendown", &format!("Repo has been taken down: {did}"))
            }
            Standing::Suspended => error("RepoSuspended", &format!("Repo is suspended: {did}")),
            Standing::Deleted | Standing::Tombstoned | Standing::Unregistered => not_found(did),
        }))
    }

    fn status(&self, did: &str) -> Response<Body> {
        let (index, now) = match self.find(did) {
            Ok(found) => found,
            Err(error) => return *error,
        };
        let status = match now.standing {
            Standing::Active => {
                let rev = self.net.world.rev(index, now.revision);
                return server::json(200, &json!({"did": did, "active": true, "rev": rev}));
            }
            Standing::Deactivated => "deactivated",
            Standing::TakenDown => "takendown",
            Standing::Suspended => "suspended",
            Standing::Deleted => "deleted",
            Standing::Tombstoned | Standing::Unregistered => {
                return not_found(did);
            }
        };
        server::json(200, &json!({"did": did, "active": false, "status": status}))
    }

    async fn latest_commit(self: &Arc<Self>, did: &str) -> Response<Body> {
        let (index, now) = match self.found_active(did) {
            Ok(found) => found,
            Err(error) => return *error,
        };
        let net = Arc::clone(&self.net);
        let made = move || net.account(index, now).commit_cid();
        let cid = tokio::task::spawn_blocking(made).await.expect("the forge does not fail");
        let rev = self.net.world.rev(index, now.revision);
        server::json(200, &json!({"cid": cid, "rev": rev}))
    }

    async fn repo(
        self: &Arc<Self>,
        did: &str,
        number: usize,
        manners: &Manners,
        connection: &Connection,
        fault: Option<Fault>,
    ) -> Answer {
        let (index, now) = match self.found_active(did) {
            Ok(found) => found,
            Err(error) => return Ok(*error),
        };
        let net = Arc::clone(&self.net);
        let wanted = fault.clone();
        let made = move || car(&net, index, now, wanted.as_ref());
        let car = tokio::task::spawn_blocking(made).await.expect("the forge does not fail");
        let length = match &fault {
            Some(Fault::ShortLength(at)) => position(&car, *at),
            _ => car.len(),
        };
        let mut sending = Sending::new(car, manners, self.log.transfer(number), self);
        sending.meet(fault.as_ref(), connection);
        let response =
            Response::builder().status(200).header("content-type", "application/vnd.ipld.car");
        let response = match fault {
            Some(Fault::DropWithLength(_) | Fault::ShortLength(_)) => {
                response.header("content-length", length)
            }
            _ => response,
        };
        let stream = futures::stream::unfold(sending, Sending::next);
        Ok(response.body(StreamBody::new(stream).boxed_unsync()).expect("a valid answer"))
    }
}

/// The CAR, with the broken content that a fault asks for; such a fault has fired if there was something to break.
fn car(net: &Net, index: usize, now: Now, fault: Option<&Fault>) -> Bytes {
    let Some(fault) = fault.filter(|fault| fault.breaks_content()) else {
        return net.car(index, now);
    };
    let account = net.account(index, now);
    let middle = account.records.len() / 2;
    let mut options = CarOptions::default();
    match fault {
        Fault::WrongHash => {
            options.corrupt_record = (0..account.records.len())
                .find(|at| *at >= middle && !account.records[*at].bytes.is_empty());
        }
        Fault::MissingRecord => {
            options.missing_record = (!account.records.is_empty()).then_some(middle);
        }
        Fault::MissingNode => {
            let (_, blocks) = account.forged().tree();
            options.missing_node = blocks.iter().filter(|block| block.is_node).count() > 1;
        }
        Fault::OtherDid => {
            options.commit_did = Some("did:plc:aaaaaaaaaaaaaaaaaaaaaaaa".to_owned());
        }
        Fault::BadSignature => options.wrong_signature = true,
        _ => options.sign_high = true,
    }
    let is_broken = options.corrupt_record.is_some()
        || options.missing_record.is_some()
        || options.missing_node
        || options.commit_did.is_some()
        || options.wrong_signature
        || options.sign_high;
    if is_broken {
        net.faults.note(fault.name());
    }
    Bytes::from(account.car_with(&options))
}

/// What happens where a body stops.
enum Ending {
    /// A proper end.
    Proper,
    /// The connection ends.
    Broken,
    /// The connection ends with a reset.
    Reset(Connection),
    Stalled,
    /// Good blocks go on without end.
    Endless(Bytes),
}

/// A body on its way.
struct Sending {
    car: Bytes,
    at: usize,
    /// Where it stops, and how.
    stop: usize,
    ending: Ending,
    /// Noted when it comes to its ending, or to its second piece for a drip.
    fault: Option<&'static str>,
    is_drip: bool,
    chunk_bytes: usize,
    /// Before every piece but the first.
    pause: Option<Duration>,
    transfer: Transfer,
    host: Arc<Host>,
}

impl Sending {
    fn new(car: Bytes, manners: &Manners, transfer: Transfer, host: &Arc<Host>) -> Self {
        let pause = |rate: u64| Duration::from_secs_f64(manners.chunk_bytes as f64 / rate as f64);
        Self {
            stop: car.len(),
            car,
            at: 0,
            ending: Ending::Proper,
            fault: None,
            is_drip: false,
            chunk_bytes: manners.chunk_bytes.max(1),
            pause: manners.bytes_per_second.map(pause),
            transfer,
            host: Arc::clone(host),
        }
    }

    /// Prepares what `fault` does to this body.
    fn meet(&mut self, fault: Option<&Fault>, connection: &Connection) {
        let Some(fault) = fault else { return };
        self.fault = Some(fault.name());
        let (at, ending) = match fault {
            Fault::Cut(at) => (*at, Ending::Proper),
            Fault::Drop(at) | Fault::DropWithLength(at) => (*at, Ending::Broken),
            Fault::Reset(at) => (*at, Ending::Reset(connection.clone())),
            Fault::Stall(at) => (*at, Ending::Stalled),
            // What the headers announced is what leaves; the rest is not even tried.
            Fault::ShortLength(at) => (*at, Ending::Proper),
            Fault::Endless => {
                let bytes = vec![0x60; 60_000];
                let mut filler = Vec::new();
                let block = Block { cid: cid_of(&bytes), bytes, is_node: false };
                write_section(&block, &mut filler);
                self.ending = Ending::Endless(Bytes::from(filler));
                return;
            }
            Fault::Drip { bytes, every } => {
                self.chunk_bytes = (*bytes).max(1);
                self.pause = Some(*every);
                self.is_drip = true;
                return;
            }
            // What was broken about the CAR has been counted when it was made.
            _ => return self.fault = None,
        };
        (self.stop, self.ending) = (position(&self.car, at), ending);
        if self.stop == self.car.len() && matches!(self.ending, Ending::Proper) {
            // A cut at the very end is none.
            self.fault = None;
        }
    }

    async fn next(mut self) -> Option<(io::Result<Frame<Bytes>>, Self)> {
        if self.at < self.stop {
            if let Some(pause) = self.pause.filter(|_| self.at > 0) {
                tokio::time::sleep(pause).await;
                if self.is_drip {
                    self.fire();
                }
            }
            let end = self.stop.min(self.at + self.chunk_bytes);
            let piece = self.car.slice(self.at..end);
            self.at = end;
            if end == self.stop && self.fault == Some("short_length") {
                // Behind the announced length nobody asks for more.
                self.fire();
            }
            return Some((Ok(self.sent(piece)), self));
        }
        // What was sent so far must leave this process before the ending.
        tokio::task::yield_now().await;
        if !self.is_drip {
            self.fire();
        }
        match &self.ending {
            Ending::Proper => None,
            Ending::Stalled => std::future::pending().await,
            Ending::Endless(filler) => {
                let piece = filler.clone();
                Some((Ok(self.sent(piece)), self))
            }
            Ending::Broken => Some((Err(io::Error::other("the body breaks off")), self)),
            Ending::Reset(connection) => {
                connection.reset();
                Some((Err(io::Error::other("the connection is reset")), self))
            }
        }
    }

    fn sent(&self, piece: Bytes) -> Frame<Bytes> {
        self.transfer.sent(piece.len());
        Frame::data(piece)
    }

    /// Counts the fault, once.
    fn fire(&mut self) {
        if let Some(name) = self.fault.take() {
            self.host.net.faults.note(name);
        }
    }
}

/// Byte of a CAR that `at` means.
pub fn position(car: &[u8], at: At) -> usize {
    let nearest = |wanted: usize| {
        borders(car).into_iter().min_by_key(|border| border.abs_diff(wanted)).unwrap_or(0)
    };
    match at {
        At::Start => 0,
        At::Byte(byte) => usize::try_from(byte).unwrap_or(usize::MAX).min(car.len()),
        At::Middle => car.len() / 2,
        At::MiddleBorder => nearest(car.len() / 2),
        At::LastBlock => borders(car).pop().unwrap_or(0),
        At::LastByte => car.len().saturating_sub(1),
        At::End => car.len(),
    }
}

/// Where each section begins, the header's aside.
fn borders(car: &[u8]) -> Vec<usize> {
    let mut borders = Vec::new();
    let mut at = 0;
    while at < car.len() {
        if at > 0 {
            borders.push(at);
        }
        let (mut length, mut shift) = (0, 0);
        while let Some(byte) = car.get(at) {
            at += 1;
            length |= usize::from(byte & 0x7f) << shift;
            shift += 7;
            if byte & 0x80 == 0 {
                break;
            }
        }
        at += length;
    }
    borders
}
