//! The HTTP client: one GET at a time through the guard, at the pace of the address, with a limit on every wait.
//!
//! takes   a URL and who gave it: a stranger's document, or the operator
//! gives   the answer's headers and a body to be read (`net::response`), after at most five redirects
//! never   retries, goes from https to http, sends a referer, a cookie or a host to a proxy
//!
//! There is one reqwest client a route (`net::guard`), because reqwest's resolver learns nothing about the request: a route's
//! resolver admits what its route admits, and a connection is never shared between routes.

use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use reqwest::header::{ACCEPT, ACCEPT_ENCODING, HeaderMap, HeaderValue, LOCATION};
use rustls::ClientConfig;
use rustls::pki_types::CertificateDer;
use tokio::time::timeout;
use url::{Host, Url};

use crate::clock::Clock;
use crate::config::settings::{Compression, Fetch, Identity, Settings};
use crate::net::address_pace::AddressPace;
use crate::net::connect::{ConnectFault, StepLimits, system_roots, tls_config};
use crate::net::dns::{GuardedNames, Names};
use crate::net::encoding::Choices;
use crate::net::error::{NetError, innermost, told};
use crate::net::guard::{Guard, Route, host_name};
use crate::net::patience::{Limits, Patience};
use crate::net::response::Report;
pub use crate::net::response::Response;

/// Redirects that are followed (PROTOCOL section 4).
const REDIRECTS_MAX: usize = 5;

/// Bytes of an answer's headers (PROTOCOL section 4).
const HEADERS_BYTES_MAX: usize = 64 << 10;

/// Request and body of anything that is not a transfer: documents are about 1 KB.
const SMALL_TOTAL_SECONDS: u64 = 30;

/// Unused connections are closed before the host does it: Node's servers wait 5 s, and a request that meets the closing is
/// lost.
const POOL_IDLE_SECONDS: u64 = 4;

/// Unused connections a host, twice the usual `fetch.host_concurrency`.
const POOL_IDLE_PER_HOST: usize = 8;

/// Bytes of a body that HTTP/2 sends ahead of our reading. They lie in memory outside of the budgets: 256 transfers hold
/// 64 MiB of them at worst.
const STREAM_WINDOW_BYTES: u32 = 256 << 10;

/// The same for all bodies of a connection: four transfers.
const CONNECTION_WINDOW_BYTES: u32 = 1 << 20;

/// Characters of `fetch.contact` that are told.
const CONTACT_CHARACTERS_MAX: usize = 200;

/// Who gave the URL.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trust {
    /// The operator, as `identity.plc_url` and `identity.mirrors`: any address. A redirect from there is a stranger.
    Operator,
    /// Anybody else.
    Stranger,
}

/// How to ask.
#[derive(Clone, Copy, Debug)]
pub struct Request {
    /// Who gave the URL.
    pub trust: Trust,
    /// The `Accept` header.
    pub accept: &'static str,
    /// A repository: `fetch.total_timeout`, minimum rate and compression apply. Otherwise 30 s in all.
    pub is_transfer: bool,
}

/// What the machine provides.
#[derive(Clone)]
pub struct Surroundings {
    /// Names to addresses.
    pub names: Names,
    /// Trusted certificate authorities.
    pub roots: Vec<CertificateDer<'static>>,
}

impl Surroundings {
    /// This system's.
    #[must_use]
    pub fn system() -> Self {
        Self { names: Names::system(), roots: system_roots() }
    }
}

/// The client; clones share connections, caches and pace.
#[derive(Clone)]
pub struct Client(Arc<Inner>);

struct Inner {
    guard: Guard,
    clock: Clock,
    public: Way,
    allowed: Way,
    operator: Way,
    /// Scheme, host and port that the operator's trust is limited to: of the directory and its mirrors.
    trusted: Vec<url::Origin>,
    fetch: Fetch,
    pace: Mutex<AddressPace>,
    choices: Arc<Mutex<Choices>>,
}

/// A route with its resolver and its connections.
struct Way {
    route: Route,
    names: GuardedNames,
    http: reqwest::Client,
}

impl Way {
    /// The addresses behind a URL's host: written there, or looked up and checked.
    async fn addresses(&self, url: &Url) -> Result<Vec<IpAddr>, NetError> {
        match url.host() {
            Some(Host::Ipv4(address)) => Ok(vec![address.into()]),
            Some(Host::Ipv6(address)) => Ok(vec![address.into()]),
            Some(Host::Domain(name)) => self.names.addresses(name).await,
            None => Ok(Vec::new()),
        }
    }
}

impl Client {
    /// A client for this system.
    ///
    /// # Errors
    /// [`NetError::Tls`] if no client can be made.
    pub fn new(settings: &Settings, clock: Clock) -> Result<Self, NetError> {
        Self::within(settings, clock, Surroundings::system())
    }

    /// A client with names and certificate authorities of its own.
    ///
    /// # Errors
    /// As [`Client::new`].
    pub fn within(
        settings: &Settings,
        clock: Clock,
        surroundings: Surroundings,
    ) -> Result<Self, NetError> {
        let guard = Guard::new(&settings.network);
        let tls = tls_config(surroundings.roots)?;
        let agent = user_agent(&settings.fetch.contact);
        let way = |route| {
            let names = GuardedNames::new(surroundings.names.clone(), guard.clone(), route);
            let http = http_client(route, names.clone(), tls.clone(), &agent)?;
            Ok::<Way, NetError>(Way { route, names, http })
        };
        Ok(Self(Arc::new(Inner {
            clock,
            public: way(Route::Public)?,
            allowed: way(Route::Allowed)?,
            operator: way(Route::Operator)?,
            trusted: trusted(&settings.identity),
            fetch: settings.fetch.clone(),
            pace: Mutex::new(AddressPace::new(settings.fetch.address_requests_per_second)),
            choices: Arc::default(),
            guard,
        })))
    }

    /// The guard that every URL goes through.
    #[must_use]
    pub fn guard(&self) -> &Guard {
        &self.0.guard
    }

    /// The addresses that a request for `url` may go to, without asking there; an address written in the URL needs no names.
    ///
    /// # Errors
    /// [`NetError::Forbidden`], [`NetError::Dns`].
    pub async fn addresses(&self, url: &Url, trust: Trust) -> Result<Vec<IpAddr>, NetError> {
        self.0.way(url, trust)?.addresses(url).await
    }

    /// Asks for `url` and follows at most five redirects, each through the guard and none from https to http. Waits for the
    /// pace of the address; that wait and a slow reader of the body count against nobody.
    ///
    /// # Errors
    /// Any [`NetError`] but those of the body. An HTTP status is no error.
    pub async fn get(&self, url: &Url, request: &Request) -> Result<Response, NetError> {
        self.get_by_turns(url, request, |_| std::future::ready(Ok(()))).await
    }

    /// The same; before a redirect to another host is followed, `turn` takes a turn there, or says for how long there is none.
    ///
    /// # Errors
    /// As [`Client::get`], and [`NetError::NotYet`].
    pub async fn get_by_turns<F>(
        &self,
        url: &Url,
        request: &Request,
        turn: impl Fn(String) -> F,
    ) -> Result<Response, NetError>
    where
        F: Future<Output = Result<(), Duration>>,
    {
        let inner = &*self.0;
        let asks_gzip = request.is_transfer && inner.asks_gzip(url);
        let limits = inner.limits(request);
        let (mut url, mut trust, mut spent) = (url.clone(), request.trust, Duration::ZERO);
        for _ in 0..=REDIRECTS_MAX {
            let way = inner.way(&url, trust)?;
            inner.wait_for_pace(way, &url).await?;
            let asked_at = inner.clock.now();
            let left = limits.total.saturating_sub(spent).min(inner.fetch.first_byte_timeout);
            let asking = Box::pin(inner.ask(way, &url, request.accept, asks_gzip));
            let answer = timeout(left, asking).await.unwrap_or_else(|_elapsed| {
                let what = format!("no answer in {:.1} s", left.as_secs_f64());
                Err(NetError::NoFirstByte(told(&host_name(&url), what)))
            })?;
            spent += inner.clock.now() - asked_at;
            let Some(next) = redirect(&answer, &url)? else {
                let report = request.is_transfer.then(|| Report {
                    choices: Arc::clone(&inner.choices),
                    host: host_name(&url),
                    asked_gzip: asks_gzip,
                });
                let patience = Patience::new(limits, spent);
                return Ok(Response::new(answer, url, inner.clock.clone(), patience, report));
            };
            // What the guard forbids takes nobody's turn.
            inner.way(&next, Trust::Stranger)?;
            if host_name(&next) != host_name(&url) {
                turn(host_name(&next)).await.map_err(NetError::NotYet)?;
            }
            (url, trust) = (next, Trust::Stranger);
        }
        Err(NetError::TooManyRedirects)
    }
}

impl Inner {
    /// The way that a request to `url` takes.
    fn way(&self, url: &Url, trust: Trust) -> Result<&Way, NetError> {
        if trust == Trust::Operator {
            return if self.trusted.contains(&url.origin()) {
                Ok(&self.operator)
            } else {
                Err(NetError::forbidden(
                    &host_name(url),
                    "is no host of identity.plc_url or identity.mirrors",
                ))
            };
        }
        Ok(match self.guard.route(url)? {
            Route::Public => &self.public,
            Route::Allowed => &self.allowed,
            Route::Operator => &self.operator,
        })
    }

    /// Takes a place at every address of the host and waits for it. The resolver asks again when it connects, mostly from its
    /// cache; its own check is what counts.
    async fn wait_for_pace(&self, way: &Way, url: &Url) -> Result<(), NetError> {
        let mut addresses = way.addresses(url).await?;
        addresses.retain(|address| !self.guard.is_allowed(*address));
        let wait = {
            let mut pace = self.pace.lock().unwrap_or_else(PoisonError::into_inner);
            pace.reserve(&addresses, self.clock.now())
        };
        if !wait.is_zero() {
            tokio::time::sleep(wait).await;
        }
        Ok(())
    }

    /// One request, without redirects, up to the headers of its answer.
    async fn ask(
        &self,
        way: &Way,
        url: &Url,
        accept: &'static str,
        asks_gzip: bool,
    ) -> Result<reqwest::Response, NetError> {
        let host = host_name(url);
        let encoding = if asks_gzip { "gzip" } else { "identity" };
        let request = way
            .http
            .get(url.clone())
            .header(ACCEPT, HeaderValue::from_static(accept))
            .header(ACCEPT_ENCODING, HeaderValue::from_static(encoding));
        let answer = request.send().await.map_err(|error| unanswered(&host, &error))?;
        // The resolver has seen to this; a connection that came about in another way would end here.
        let Some(address) = answer.remote_addr() else {
            return Err(NetError::NoAnswer(told(&host, "the connection has no address any more")));
        };
        if !self.guard.admits(address.ip(), way.route) {
            return Err(NetError::forbidden(&host, "answered from an address it may not have"));
        }
        if headers_bytes(answer.headers()) > HEADERS_BYTES_MAX {
            let what = format!("headers of more than {HEADERS_BYTES_MAX} bytes");
            return Err(NetError::Broken(told(&host, what)));
        }
        Ok(answer)
    }

    fn asks_gzip(&self, url: &Url) -> bool {
        match self.fetch.compression {
            Compression::Off => false,
            Compression::On => true,
            Compression::Auto => {
                let choices = self.choices.lock().unwrap_or_else(PoisonError::into_inner);
                choices.asks_gzip(&host_name(url))
            }
        }
    }

    fn limits(&self, request: &Request) -> Limits {
        let idle = self.fetch.idle_timeout;
        if request.is_transfer {
            let bytes_per_second_min = self.fetch.min_bytes_per_second;
            Limits { idle, total: self.fetch.total_timeout, bytes_per_second_min }
        } else {
            let total = Duration::from_secs(SMALL_TOTAL_SECONDS);
            Limits { idle, total, bytes_per_second_min: 0 }
        }
    }
}

fn trusted(identity: &Identity) -> Vec<url::Origin> {
    std::iter::once(&identity.plc_url).chain(&identity.mirrors).map(Url::origin).collect()
}

/// The reqwest client of `route`.
fn http_client(
    route: Route,
    names: GuardedNames,
    tls: ClientConfig,
    agent: &HeaderValue,
) -> Result<reqwest::Client, NetError> {
    reqwest::Client::builder()
        .user_agent(agent.clone())
        .dns_resolver(Arc::new(names))
        .connector_layer(StepLimits)
        .tls_backend_preconfigured(tls)
        .https_only(route == Route::Public)
        .redirect(reqwest::redirect::Policy::none())
        .no_proxy()
        .referer(false)
        .pool_idle_timeout(Duration::from_secs(POOL_IDLE_SECONDS))
        .pool_max_idle_per_host(POOL_IDLE_PER_HOST)
        .http2_initial_stream_window_size(STREAM_WINDOW_BYTES)
        .http2_initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .http2_max_header_list_size(u32::try_from(HEADERS_BYTES_MAX).unwrap_or(u32::MAX))
        .build()
        .map_err(|error| NetError::Tls(told("http client", innermost(&error))))
}

/// Where an answer from `url` sends us, if anywhere.
fn redirect(answer: &reqwest::Response, url: &Url) -> Result<Option<Url>, NetError> {
    if !matches!(answer.status().as_u16(), 301 | 302 | 303 | 307 | 308) {
        return Ok(None);
    }
    let Some(location) = answer.headers().get(LOCATION) else { return Ok(None) };
    let next = std::str::from_utf8(location.as_bytes()).ok().and_then(|text| url.join(text).ok());
    let host = host_name(url);
    let Some(next) = next else {
        return Err(NetError::Broken(told(&host, "redirects to something that is no URL")));
    };
    if url.scheme() == "https" && next.scheme() != "https" {
        return Err(NetError::forbidden(&host, "redirects from https to something less"));
    }
    Ok(Some(next))
}

/// Why there is no answer: what the resolver said, what the connector said, or what happened after.
fn unanswered(host: &str, error: &reqwest::Error) -> NetError {
    let mut source = std::error::Error::source(error);
    while let Some(at) = source {
        if let Some(known) = at.downcast_ref::<NetError>() {
            return known.clone();
        }
        if let Some(fault) = at.downcast_ref::<ConnectFault>() {
            return fault.at(host);
        }
        source = at.source();
    }
    if error.is_builder() {
        return NetError::forbidden(host, innermost(error));
    }
    NetError::NoAnswer(told(host, format!("no answer: {}", innermost(error))))
}

/// Bytes of headers as HTTP/1 writes them.
fn headers_bytes(headers: &HeaderMap) -> usize {
    const COLON_AND_LINE_END: usize = 4;
    headers.iter().map(|(name, value)| name.as_str().len() + value.len() + COLON_AND_LINE_END).sum()
}

/// `skyfill/VERSION (contact)`. Of the contact only what cannot break out of the comment is told.
fn user_agent(contact: &str) -> HeaderValue {
    let is_safe = |c: &char| (c.is_ascii_graphic() || *c == ' ') && !matches!(c, '(' | ')' | '\\');
    let contact: String = contact.chars().filter(is_safe).take(CONTACT_CHARACTERS_MAX).collect();
    let plain = concat!("skyfill/", env!("CARGO_PKG_VERSION"));
    let agent = match contact.trim() {
        "" => plain.to_owned(),
        contact => format!("{plain} ({contact})"),
    };
    HeaderValue::from_str(&agent).unwrap_or(HeaderValue::from_static(plain))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_user_agent_names_us_and_the_contact_cannot_break_out() {
        let version = env!("CARGO_PKG_VERSION");
        let agent = |contact: &str| user_agent(contact).to_str().unwrap().to_owned();
        assert_eq!(agent(""), format!("skyfill/{version}"));
        assert_eq!(agent(" \r\n"), format!("skyfill/{version}"));
        assert_eq!(agent("me@example.com"), format!("skyfill/{version} (me@example.com)"));
        assert_eq!(
            agent("me\r\nX-Evil: 1\u{1b}\0\u{7f}\u{e9}) x (\\"),
            format!("skyfill/{version} (meX-Evil: 1 x)")
        );
        assert!(agent(&"x".repeat(5_000)).len() < 250);
    }
}
