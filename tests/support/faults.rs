//! Faults: what servers do instead of serving, by script. Every fault that is acted out is counted when it happens, so that a
//! test can insist on having seen it.
//!
//! ```text
//!  (place, target) -> script: one fault a request, then heal, or the last one for ever
//!  place   Directory | Repo (getRepo) | Status (getRepoStatus, getLatestCommit, describeServer)
//!  target  Did > Host > Any: the most particular script that still has something to say is asked first
//! ```

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Mutex;
use std::time::Duration;

use fastrand::Rng;
use serde_json::json;

use super::server::{self, Answer, Connection};
use super::time::{http_date, unix_now};

/// Where in a body something happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum At {
    /// After the headers, before the first byte.
    Start,
    Byte(u64),
    Middle,
    /// On the border between two blocks nearest to the middle.
    MiddleBorder,
    /// On the border before the last block.
    LastBlock,
    /// Before the last byte.
    LastByte,
    /// After the last byte, before the body's proper end.
    End,
}

/// How a refusal says how long to wait.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wait {
    /// `Retry-After` in seconds.
    Seconds(u64),
    /// `Retry-After` as HTTP date, so many seconds from now; may lie in the past.
    Date(i64),
    /// `RateLimit-Reset` as Unix second, so many seconds from now.
    Reset(i64),
    /// No header, and HTML instead of JSON: as the edge in front of hosted servers does it.
    None,
    /// `Retry-After` of this text.
    Text(String),
}

/// What a server does instead.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// This answer.
    Status { code: u16, headers: Vec<(String, String)>, body: Vec<u8> },
    /// Status 400 with an XRPC error of this name.
    Error(&'static str),
    /// 429.
    RateLimited(Wait),
    /// 200 with an HTML page.
    HtmlOk,
    /// 200 with no body at all.
    EmptyOk,
    /// Waits before the headers, then goes on as usual.
    SlowHeaders(Duration),
    /// Takes the request and never answers.
    NoAnswer,
    /// Takes the request and closes the connection.
    CloseBeforeHeaders,
    /// The same, but only on a connection that has carried a request before; a fresh one is served.
    CloseKept,
    /// The connection is reset within the body.
    Reset(At),
    /// The body ends early, the chunked encoding in good order.
    Cut(At),
    /// The connection ends within the body, without the chunked encoding's end.
    Drop(At),
    /// As `Drop`, but the headers had announced a length.
    DropWithLength(At),
    /// The headers announce only so much of the body, and the server keeps to that.
    ShortLength(At),
    /// Nothing more comes, the connection stays.
    Stall(At),
    /// The body comes in small pieces.
    Drip { bytes: usize, every: Duration },
    /// Good blocks without an end follow the repository.
    Endless,
    /// One record's block does not match its CID.
    WrongHash,
    /// One record's block is not there.
    MissingRecord,
    /// One tree node's block is not there.
    MissingNode,
    /// The commit names another DID.
    OtherDid,
    /// The signature is not the key's.
    BadSignature,
    /// The signature has the other s.
    HighS,
    /// Directory: 404, never heard of it.
    NotRegistered,
    /// Directory: 404, it is gone.
    Tombstoned,
    /// Directory: 410, it is gone.
    TombstonedGone,
    /// Directory: a good document for another DID.
    DocumentForOther,
    /// Directory: a document without a PDS.
    NoPds,
    /// Directory: a PDS with an empty endpoint.
    EmptyPds,
    /// Directory: a document whose endpoint is this.
    Endpoint(String),
    /// Directory: a document without signing key.
    NoKey,
    /// Directory: JSON that is no document.
    NotADocument,
    /// Directory: 200 with something that is not JSON.
    NotJson,
    /// Directory: a document of this many bytes.
    Oversized(usize),
}

impl Fault {
    /// The name under which it is counted.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Status { .. } => "status",
            Self::Error(name) => name,
            Self::RateLimited(Wait::Seconds(_)) => "rate_limited_seconds",
            Self::RateLimited(Wait::Date(_)) => "rate_limited_date",
            Self::RateLimited(Wait::Reset(_)) => "rate_limited_reset",
            Self::RateLimited(Wait::None) => "rate_limited_bare",
            Self::RateLimited(Wait::Text(_)) => "rate_limited_text",
            Self::HtmlOk => "html_ok",
            Self::EmptyOk => "empty_ok",
            Self::SlowHeaders(_) => "slow_headers",
            Self::NoAnswer => "no_answer",
            Self::CloseBeforeHeaders => "close_before_headers",
            Self::CloseKept => "close_kept",
            Self::Reset(_) => "reset",
            Self::Cut(_) => "cut",
            Self::Drop(_) => "drop",
            Self::DropWithLength(_) => "drop_with_length",
            Self::ShortLength(_) => "short_length",
            Self::Stall(_) => "stall",
            Self::Drip { .. } => "drip",
            Self::Endless => "endless",
            Self::WrongHash => "wrong_hash",
            Self::MissingRecord => "missing_record",
            Self::MissingNode => "missing_node",
            Self::OtherDid => "other_did",
            Self::BadSignature => "bad_signature",
            Self::HighS => "high_s",
            Self::NotRegistered => "not_registered",
            Self::Tombstoned => "tombstoned",
            Self::TombstonedGone => "tombstoned_gone",
            Self::DocumentForOther => "document_for_other",
            Self::NoPds => "no_pds",
            Self::EmptyPds => "empty_pds",
            Self::Endpoint(_) => "endpoint",
            Self::NoKey => "no_key",
            Self::NotADocument => "not_a_document",
            Self::NotJson => "not_json",
            Self::Oversized(_) => "oversized",
        }
    }

    /// Whether it is about what a repository says, not about how it is sent.
    pub fn breaks_content(&self) -> bool {
        matches!(
            self,
            Self::WrongHash
                | Self::MissingRecord
                | Self::MissingNode
                | Self::OtherDid
                | Self::BadSignature
                | Self::HighS
        )
    }

    /// A plain answer of `code`.
    pub fn status(code: u16) -> Self {
        Self::Status { code, headers: Vec::new(), body: Vec::new() }
    }
}

/// Which requests a script is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Place {
    Directory,
    Repo,
    Status,
}

/// Whose requests.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Target {
    Did(String),
    /// Any DID on this host.
    Host(usize),
    Any,
}

/// What comes after a script's last fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Then {
    Heal,
    Repeat,
}

struct Script {
    faults: VecDeque<Fault>,
    then: Then,
}

/// Faults drawn at random, for storms.
struct Storm {
    rng: Rng,
    per_thousand: u32,
    faults: Vec<Fault>,
}

/// All scripts, and what has fired. Shared by the servers.
#[derive(Default)]
pub struct Faults {
    scripts: Mutex<HashMap<(Place, Target), Script>>,
    storms: Mutex<HashMap<Place, Storm>>,
    fired: Mutex<BTreeMap<&'static str, u64>>,
}

impl Faults {
    /// From now on, `target`'s requests at `place` meet these faults, one each. Replaces an earlier script.
    pub fn script(
        &self,
        place: Place,
        target: Target,
        faults: impl IntoIterator<Item = Fault>,
        then: Then,
    ) {
        let script = Script { faults: faults.into_iter().collect(), then };
        assert!(!script.faults.is_empty(), "a script without faults cannot fire");
        self.scripts.lock().unwrap().insert((place, target), script);
    }

    /// One fault, once, at `did`'s next getRepo.
    pub fn once(&self, did: &str, fault: Fault) {
        self.script(Place::Repo, Target::Did(did.to_owned()), [fault], Then::Heal);
    }

    /// One fault at each getRepo of `did`.
    pub fn always(&self, did: &str, fault: Fault) {
        self.script(Place::Repo, Target::Did(did.to_owned()), [fault], Then::Repeat);
    }

    /// Of a thousand requests at `place` that no script is about, so many meet one of `faults`, by chance.
    pub fn storm(&self, place: Place, seed: u64, per_thousand: u32, faults: Vec<Fault>) {
        let storm = Storm { rng: Rng::with_seed(seed), per_thousand, faults };
        self.storms.lock().unwrap().insert(place, storm);
    }

    /// No more faults: forgets every script and storm, not what has fired.
    pub fn heal(&self) {
        self.scripts.lock().unwrap().clear();
        self.storms.lock().unwrap().clear();
    }

    /// Forgets one script.
    pub fn heal_at(&self, place: Place, target: Target) {
        self.scripts.lock().unwrap().remove(&(place, target));
    }

    /// The fault for a request, taken from its script.
    pub fn take(&self, place: Place, host: Option<usize>, did: &str) -> Option<Fault> {
        let targets =
            [Some(Target::Did(did.to_owned())), host.map(Target::Host), Some(Target::Any)];
        let mut scripts = self.scripts.lock().unwrap();
        for target in targets.into_iter().flatten() {
            let Some(script) = scripts.get_mut(&(place, target)) else { continue };
            let is_last = script.faults.len() == 1 && script.then == Then::Repeat;
            let fault =
                if is_last { script.faults.front().cloned() } else { script.faults.pop_front() };
            if fault.is_some() {
                return fault;
            }
        }
        drop(scripts);
        let mut storms = self.storms.lock().unwrap();
        let storm = storms.get_mut(&place)?;
        let is_hit = storm.rng.u32(..1_000) < storm.per_thousand;
        is_hit.then(|| storm.faults[storm.rng.usize(..storm.faults.len())].clone())
    }

    /// Called by the servers when a fault has been acted out.
    pub fn note(&self, name: &'static str) {
        *self.fired.lock().unwrap().entry(name).or_default() += 1;
    }

    /// How often the fault of this name has fired.
    pub fn fired(&self, name: &str) -> u64 {
        self.fired.lock().unwrap().get(name).copied().unwrap_or(0)
    }

    pub fn fired_total(&self) -> u64 {
        self.fired.lock().unwrap().values().sum()
    }

    /// Faults that are scripted and still wait for a request; repeating ones do not count as waiting.
    pub fn waiting(&self) -> Vec<String> {
        let scripts = self.scripts.lock().unwrap();
        let mut waiting: Vec<String> = scripts
            .iter()
            .filter(|(_, script)| script.then == Then::Heal)
            .flat_map(|((place, target), script)| {
                script.faults.iter().map(move |f| format!("{place:?} {target:?}: {}", f.name()))
            })
            .collect();
        waiting.sort();
        waiting
    }

    /// Those of `names` that have not fired.
    pub fn never_fired<'n>(&self, names: &[&'n str]) -> Vec<&'n str> {
        names.iter().copied().filter(|name| self.fired(name) == 0).collect()
    }

    /// Fails unless each of these has fired at least once.
    pub fn assert_fired(&self, names: &[&str]) {
        let (missing, fired) = (self.never_fired(names), self.fired.lock().unwrap().clone());
        assert!(missing.is_empty(), "never fired: {missing:?}; fired: {fired:?}");
    }
}

/// Acts out what happens instead of, or before, an answer; gives the fault back if its time has not come yet.
///
/// # Errors
/// The fault, for the body or the document.
pub async fn before_headers(
    fault: Fault,
    faults: &Faults,
    connection: &Connection,
) -> Result<Answer, Fault> {
    let name = fault.name();
    let answer = match fault {
        Fault::Status { code, headers, body } => {
            let plain = server::answer(code, "text/plain; charset=utf-8", body);
            headers.iter().fold(plain, |r, (name, value)| server::with_header(r, name, value))
        }
        Fault::Error(error) => {
            server::json(400, &json!({"error": error, "message": "as scripted"}))
        }
        Fault::RateLimited(wait) => refusal(&wait),
        Fault::HtmlOk => {
            let page = "<!DOCTYPE html><html><body>We will be back soon.</body></html>";
            server::answer(200, "text/html; charset=utf-8", page)
        }
        Fault::EmptyOk => server::answer(200, "application/octet-stream", ""),
        Fault::NoAnswer => {
            faults.note(name);
            std::future::pending().await
        }
        Fault::CloseKept if !connection.is_kept() => return Err(fault),
        Fault::CloseBeforeHeaders | Fault::CloseKept => {
            faults.note(name);
            connection.reset();
            return Ok(Err(std::io::Error::other(name)));
        }
        later => return Err(later),
    };
    faults.note(name);
    Ok(Ok(answer))
}

/// A 429 that asks to wait.
pub fn refusal(wait: &Wait) -> hyper::Response<server::Body> {
    let error = json!({"error": "RateLimitExceeded", "message": "Rate Limit Exceeded"});
    let plain = server::json(429, &error);
    match wait {
        Wait::Seconds(seconds) => server::with_header(plain, "retry-after", &seconds.to_string()),
        Wait::Date(later) => {
            server::with_header(plain, "retry-after", &http_date(unix_now() + later))
        }
        Wait::Reset(later) => {
            let reset = (unix_now() + later).to_string();
            let limited = server::with_header(plain, "ratelimit-limit", "3000");
            let limited = server::with_header(limited, "ratelimit-remaining", "0");
            let limited = server::with_header(limited, "ratelimit-policy", "3000;w=300");
            server::with_header(limited, "ratelimit-reset", &reset)
        }
        Wait::Text(text) => server::with_header(plain, "retry-after", text),
        Wait::None => server::answer(429, "text/html", "<html><h1>Too many requests</h1></html>"),
    }
}
