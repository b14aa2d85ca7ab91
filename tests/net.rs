//! The network door against hosts on loopback that redirect, drip, stall, lie, compress and present bad certificates.
//! Nothing here sleeps: where a limit is long, the clock is paused once the host has what it waits for.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::HashMap;
use std::future::Future;
use std::io::Write;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, date_time_ymd};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use skyfill::clock::Clock;
use skyfill::config::settings::{
    Cidr, Compression, Fetch, Identity, Limits, Log, LogFormat, Metrics, Network, Refresh, Retry,
    Settings, Source,
};
use skyfill::domain::filter::{Filter, Offsets, Outside, Window};
use skyfill::domain::verdict::{Cause, HostSignal, LastError, Reason};
use skyfill::net::body::{read_capped, read_start};
use skyfill::net::client::{Client, Request, Response, Surroundings, Trust};
use skyfill::net::dns::Names;
use skyfill::net::error::NetError;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream, UdpSocket};
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;
use url::Url;

const TRANSFER: Request = Request { trust: Trust::Stranger, accept: "*/*", is_transfer: true };
const SMALL: Request = Request { trust: Trust::Stranger, accept: "*/*", is_transfer: false };
const DIRECTORY: Request = Request { trust: Trust::Operator, accept: "*/*", is_transfer: false };

/// No test may hang, on the wall clock: tokio's own is paused and moved in some of them.
async fn bounded<T>(test: impl Future<Output = T>) -> T {
    let (done, watched) = std::sync::mpsc::sync_channel::<()>(0);
    std::thread::spawn(move || {
        let waited = watched.recv_timeout(Duration::from_secs(120));
        if waited == Err(std::sync::mpsc::RecvTimeoutError::Timeout) {
            std::process::abort();
        }
    });
    let result = test.await;
    drop(done);
    result
}

// ---- settings ----

fn settings(allow: &[&str]) -> Settings {
    let second = Duration::from_secs(1);
    Settings {
        data_dir: PathBuf::new(),
        source: Source::default(),
        filter: Filter {
            types: Vec::new(),
            window: Window {
                start: String::new(),
                end: String::new(),
                outside: Outside::Keep,
                offsets: Offsets::Utc,
            },
        },
        pseudonyms: None,
        identity: Identity {
            plc_url: Url::parse("https://plc.example").unwrap(),
            mirrors: Vec::new(),
            requests_per_second: 10.0,
            cache_ttl: second,
        },
        fetch: Fetch {
            concurrency: 8,
            host_requests_per_second: 9.0,
            host_concurrency: 4,
            address_requests_per_second: 1_000.0,
            first_byte_timeout: 30 * second,
            idle_timeout: 30 * second,
            min_bytes_per_second: 64 << 10,
            total_timeout: 1_800 * second,
            compression: Compression::Off,
            contact: String::new(),
        },
        network: Network {
            allow: allow.iter().map(|text| Cidr::parse(text).unwrap()).collect(),
            ports: vec![443],
        },
        refresh: Refresh::default(),
        retry: Retry { attempts: 5, base: second, max: second, host_patience: second },
        limits: Limits {
            batch_size: 1,
            memory: 0,
            spool_memory: 0,
            spool: 0,
            repo_bytes: 0,
            journal: 0,
            disk_free: 0,
            parsers: 1,
        },
        rows_per_item: 1,
        metrics: Metrics { listen: None, public: false },
        log: Log { level: tracing::Level::INFO, format: LogFormat::Text },
        sinks: Vec::new(),
    }
}

const LOOPBACK: &[&str] = &["127.0.0.1/32", "::1/128"];

fn client_of(settings: &Settings) -> Client {
    // No name servers that answer: only literals and localhost names work.
    let names = Names::of_servers(&["127.0.0.1:9".parse().unwrap()]).unwrap();
    client_in(settings, names, Vec::new())
}

fn client_in(settings: &Settings, names: Names, roots: Vec<CertificateDer<'static>>) -> Client {
    Client::within(settings, Clock::system(), Surroundings { names, roots }).unwrap()
}

fn client() -> Client {
    client_of(&settings(LOOPBACK))
}

async fn whole(mut response: Response) -> Result<Vec<u8>, NetError> {
    let mut body = Vec::new();
    while let Some(bytes) = response.chunk().await? {
        body.extend_from_slice(&bytes);
    }
    Ok(body)
}

async fn fetch(client: &Client, url: &str) -> Result<Vec<u8>, NetError> {
    whole(client.get(&Url::parse(url).unwrap(), &TRANSFER).await?).await
}

fn forbidden<T: std::fmt::Debug>(result: Result<T, NetError>) {
    let error = result.expect_err("it was admitted");
    assert!(matches!(error, NetError::Forbidden(_)), "{error:?}");
    assert_eq!(error.failure().cause, Cause::Terminal(Reason::EndpointForbidden));
    assert_eq!(error.host_signal(), HostSignal::NotAsked);
}

fn host_fault<T: std::fmt::Debug>(result: Result<T, NetError>, wanted: LastError) -> NetError {
    let error = result.expect_err("it worked");
    assert_eq!(error.failure().cause, Cause::HostFault, "{error:?}");
    assert_eq!(error.failure().last_error, Some(wanted), "{error:?}");
    assert_eq!(error.host_signal(), HostSignal::Fault(wanted));
    error
}

// ---- hosts ----

/// What a host does with a request, step by step; at the end it closes.
#[derive(Clone)]
enum Step {
    Send(Vec<u8>),
    /// Sends these over and over until the client hangs up.
    Forever(Vec<u8>),
    /// Says and does nothing until the client hangs up.
    Hold,
    /// Reads the next request of the same connection.
    Next,
}

type Script = Arc<dyn Fn(&str) -> Vec<Step> + Send + Sync>;

/// A host on loopback; gone when dropped.
struct Host {
    address: SocketAddr,
    heads: Arc<Mutex<Vec<String>>>,
    connections: Arc<AtomicUsize>,
    asked: Arc<tokio::sync::Notify>,
    task: JoinHandle<()>,
}

impl Drop for Host {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Host {
    async fn at(
        bind: &str,
        tls: Option<TlsAcceptor>,
        script: impl Fn(&str) -> Vec<Step> + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind(bind).await.unwrap();
        let address = listener.local_addr().unwrap();
        let heads = Arc::new(Mutex::new(Vec::new()));
        let (connections, asked) = (Arc::<AtomicUsize>::default(), Arc::default());
        let script: Script = Arc::new(script);
        let serving = Serving { heads: Arc::clone(&heads), asked: Arc::clone(&asked), script };
        let count = Arc::clone(&connections);
        let task = tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                count.fetch_add(1, Ordering::SeqCst);
                let (serving, tls) = (serving.clone(), tls.clone());
                tokio::spawn(async move {
                    match tls {
                        None => serving.connection(socket).await,
                        Some(tls) => match tls.accept(socket).await {
                            Ok(socket) => serving.connection(socket).await,
                            Err(_refused) => {}
                        },
                    }
                });
            }
        });
        Self { address, heads, connections, asked, task }
    }

    async fn new(script: impl Fn(&str) -> Vec<Step> + Send + Sync + 'static) -> Self {
        Self::at("127.0.0.1:0", None, script).await
    }

    /// Answers everything with these bytes, then closes.
    async fn saying(answer: impl Into<Vec<u8>>) -> Self {
        let answer = answer.into();
        Self::new(move |_| vec![Step::Send(answer.clone())]).await
    }

    fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    fn heads(&self) -> Vec<String> {
        self.heads.lock().unwrap().clone()
    }

    fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }
}

#[derive(Clone)]
struct Serving {
    heads: Arc<Mutex<Vec<String>>>,
    asked: Arc<tokio::sync::Notify>,
    script: Script,
}

impl Serving {
    async fn connection(self, mut socket: impl AsyncRead + AsyncWrite + Unpin) {
        let Some(mut head) = read_head(&mut socket).await else { return };
        let mut steps = (self.script)(&head);
        self.note(&head);
        let mut at = 0;
        while at < steps.len() {
            let sent = match &steps[at] {
                Step::Send(bytes) => socket.write_all(bytes).await,
                Step::Forever(bytes) => loop {
                    if let Err(error) = socket.write_all(bytes).await {
                        break Err(error);
                    }
                },
                Step::Hold => socket.read(&mut [0; 16]).await.map(|_| ()),
                Step::Next => {
                    let _flushed = socket.flush().await;
                    match read_head(&mut socket).await {
                        Some(next) => head = next,
                        None => return,
                    }
                    self.note(&head);
                    steps = (self.script)(&head);
                    at = 0;
                    continue;
                }
            };
            if sent.is_err() {
                return;
            }
            let _flushed = socket.flush().await;
            at += 1;
        }
        let _closed = socket.shutdown().await;
    }

    fn note(&self, head: &str) {
        self.heads.lock().unwrap().push(head.to_owned());
        self.asked.notify_one();
    }
}

async fn read_head(socket: &mut (impl AsyncRead + Unpin)) -> Option<String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(socket.read_u8().await.ok()?);
    }
    Some(String::from_utf8_lossy(&head).into_owned())
}

fn path_of(head: &str) -> &str {
    head.split(' ').nth(1).unwrap_or_default()
}

fn ok(headers: &str, body: &[u8]) -> Vec<u8> {
    let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n{headers}\r\n", body.len());
    [head.as_bytes(), body].concat()
}

fn redirect_to(status: u16, location: &str) -> Vec<u8> {
    format!("HTTP/1.1 {status} Moved\r\nLocation: {location}\r\nContent-Length: 0\r\n\r\n").into()
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// Text that packs about two to one.
fn letters(bytes: usize) -> Vec<u8> {
    let mut rng = fastrand::Rng::with_seed(5);
    std::iter::repeat_with(|| b'a' + rng.u8(..16)).take(bytes).collect()
}

// ---- certificates ----

struct Authority {
    der: CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
}

fn authority(name: &str) -> Authority {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.distinguished_name.push(rcgen::DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let key = KeyPair::generate().unwrap();
    let der = params.self_signed(&key).unwrap().der().clone();
    Authority { der, issuer: Issuer::new(params, key) }
}

fn acceptor(chain: CertificateDer<'static>, key: &KeyPair, protocols: &[&str]) -> TlsAcceptor {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![chain], key)
        .unwrap();
    config.alpn_protocols = protocols.iter().map(|p| p.as_bytes().to_vec()).collect();
    TlsAcceptor::from(Arc::new(config))
}

/// A TLS side for `name`, valid until `year`.
fn tls_for(authority: &Authority, name: &str, year: i32, protocols: &[&str]) -> TlsAcceptor {
    let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
    params.not_before = date_time_ymd(2020, 1, 1);
    params.not_after = date_time_ymd(year, 1, 1);
    let key = KeyPair::generate().unwrap();
    let certificate = params.signed_by(&key, &authority.issuer).unwrap();
    acceptor(certificate.der().clone(), &key, protocols)
}

// ---- names ----

type Answers = dyn Fn(&str, bool, usize) -> Option<Vec<IpAddr>> + Send + Sync;

/// A name server on loopback: `answers(name, wants_ipv6, how_often_asked)`; `None` says nothing at all.
struct NameServer {
    names: Names,
    /// How often each name was asked for, by whether IPv6 was wanted.
    times: Arc<Mutex<HashMap<(String, bool), usize>>>,
    just_asked: Arc<tokio::sync::Notify>,
    task: JoinHandle<()>,
}

impl NameServer {
    /// How often the IPv4 addresses of `name` were asked for.
    fn asked(&self, name: &str) -> usize {
        self.times.lock().unwrap().get(&(name.to_owned(), false)).copied().unwrap_or_default()
    }
}

impl Drop for NameServer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn name_server(
    answers: impl Fn(&str, bool, usize) -> Option<Vec<IpAddr>> + Send + Sync + 'static,
) -> NameServer {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let names = Names::of_servers(&[socket.local_addr().unwrap()]).unwrap();
    let answers: Box<Answers> = Box::new(answers);
    let just_asked: Arc<tokio::sync::Notify> = Arc::default();
    let times: Arc<Mutex<HashMap<(String, bool), usize>>> = Arc::default();
    let (told, counts) = (Arc::clone(&just_asked), Arc::clone(&times));
    let task = tokio::spawn(async move {
        let mut query = [0; 1500];
        while let Ok((length, from)) = socket.recv_from(&mut query).await {
            let (name, end) = question(&query[..length]);
            let wants_ipv6 = query[end - 3] == 28;
            let count = {
                let mut counts = counts.lock().unwrap();
                let count = counts.entry((name.clone(), wants_ipv6)).or_insert(0);
                *count += 1;
                *count
            };
            told.notify_one();
            if let Some(addresses) = answers(&name, wants_ipv6, count) {
                let reply = name_reply(&query[..end], &addresses, wants_ipv6);
                socket.send_to(&reply, from).await.unwrap();
            }
        }
    });
    NameServer { names, times, just_asked, task }
}

/// The name asked for, and where the question ends.
fn question(query: &[u8]) -> (String, usize) {
    let (mut at, mut labels) = (12, Vec::new());
    while query[at] != 0 {
        let length = usize::from(query[at]);
        labels.push(String::from_utf8_lossy(&query[at + 1..at + 1 + length]).to_lowercase());
        at += 1 + length;
    }
    (labels.join("."), at + 5)
}

/// An answer without lifetime (TTL 0); no addresses are NXDOMAIN.
fn name_reply(question: &[u8], addresses: &[IpAddr], wants_ipv6: bool) -> Vec<u8> {
    let fitting: Vec<&IpAddr> = addresses.iter().filter(|a| a.is_ipv6() == wants_ipv6).collect();
    let code = if addresses.is_empty() { 3 } else { 0 };
    let mut reply = question.to_vec();
    reply[2..4].copy_from_slice(&[0x81, 0x80 | code]);
    reply[4..12].copy_from_slice(&[0, 1, 0, u8::try_from(fitting.len()).unwrap(), 0, 0, 0, 0]);
    for address in fitting {
        let (kind, bytes) = match address {
            IpAddr::V4(address) => (1, address.octets().to_vec()),
            IpAddr::V6(address) => (28, address.octets().to_vec()),
        };
        reply.extend([0xc0, 12, 0, kind, 0, 1, 0, 0, 0, 0, 0, u8::try_from(bytes.len()).unwrap()]);
        reply.extend(bytes);
    }
    reply
}

fn ips(texts: &[&str]) -> Vec<IpAddr> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

/// Every name is this machine.
async fn loopback_names() -> NameServer {
    name_server(|_, _, _| Some(ips(&["127.0.0.1"]))).await
}

// ---- redirects ----

#[tokio::test]
async fn redirects_to_private_places_are_refused_and_nobody_is_asked_there() {
    bounded(async {
        let secret = Host::at("127.0.0.2:0", None, |_| vec![Step::Send(ok("", b"secret"))]).await;
        let port = secret.address.port();
        let places = [
            format!("http://127.0.0.2:{port}/"),
            format!("//127.0.0.2:{port}/"),
            format!("http://2130706434:{port}/"),
            format!("http://[::ffff:127.0.0.2]:{port}/"),
            format!("http://user@127.0.0.1:{port}/"),
            format!("http://localhost.:{port}/"),
            "http://169.254.169.254/latest/meta-data".to_owned(),
            "https://10.0.0.1/".to_owned(),
            "http://8.8.8.8/".to_owned(),
            "https://8.8.8.8:22/".to_owned(),
            "file:///etc/passwd".to_owned(),
            "data:text/plain,x".to_owned(),
            "gopher://127.0.0.1/".to_owned(),
        ];
        for status in [301, 302, 303, 307, 308] {
            for place in &places {
                let host = Host::saying(redirect_to(status, place)).await;
                forbidden(fetch(&client(), &host.url("/")).await);
                assert_eq!(host.connections(), 1, "{status} {place}");
            }
        }
        assert_eq!(secret.connections(), 0);
    })
    .await;
}

#[tokio::test]
async fn five_redirects_are_followed_and_a_loop_ends() {
    bounded(async {
        let host = Host::new(|head| {
            let hop: u16 = path_of(head).trim_start_matches("/hop/").parse().unwrap();
            let answer = match hop {
                0 => ok("", b"arrived"),
                hop => redirect_to(
                    [301, 302, 303, 307, 308][usize::from(hop) % 5],
                    &(hop - 1).to_string(),
                ),
            };
            vec![Step::Send(answer)]
        })
        .await;
        let start = Url::parse(&host.url("/hop/5#here")).unwrap();
        let response = client().get(&start, &TRANSFER).await.unwrap();
        assert_eq!(
            (response.status(), response.url().as_str()),
            (200, host.url("/hop/0").as_str())
        );
        assert_eq!(whole(response).await.unwrap(), b"arrived");
        assert_eq!(host.heads().len(), 6);
        assert!(host.heads().iter().all(|head| !head.to_lowercase().contains("referer")));

        let error = fetch(&client(), &host.url("/hop/6")).await.unwrap_err();
        assert_eq!(error, NetError::TooManyRedirects);
        let circle = Host::new(|_| vec![Step::Send(redirect_to(302, "/"))]).await;
        let error = fetch(&client(), &circle.url("/")).await.unwrap_err();
        assert_eq!((error, circle.heads().len()), (NetError::TooManyRedirects, 6));
    })
    .await;
}

#[tokio::test]
async fn a_redirect_without_a_place_is_an_answer_and_one_to_nonsense_is_broken() {
    bounded(async {
        let host = Host::saying(&b"HTTP/1.1 302 Found\r\nContent-Length: 2\r\n\r\nhi"[..]).await;
        let url = Url::parse(&host.url("/")).unwrap();
        let response = client().get(&url, &TRANSFER).await.unwrap();
        assert_eq!(response.status(), 302);
        for nonsense in ["http://[", "https://", "\u{ff}\u{fe}:"] {
            let host = Host::saying(redirect_to(302, nonsense)).await;
            let result = fetch(&client(), &host.url("/")).await;
            // What is no absolute URL may still be a relative one, which that host then redirects again.
            assert!(
                matches!(result, Err(NetError::Broken(_) | NetError::TooManyRedirects)),
                "{nonsense}: {result:?}"
            );
        }
    })
    .await;
}

#[tokio::test]
async fn https_never_redirects_to_http() {
    bounded(async {
        let (ca, names) = (authority("ours"), loopback_names().await);
        let plain = Host::saying(ok("", b"plain")).await;
        let place = plain.url("/");
        let tls = tls_for(&ca, "pds.example", 2090, &[]);
        let host = Host::at("127.0.0.1:0", Some(tls), move |head| {
            let place = if path_of(head) == "/down" { place.as_str() } else { "/end" };
            let answer =
                if path_of(head) == "/end" { ok("", b"end") } else { redirect_to(301, place) };
            vec![Step::Send(answer)]
        })
        .await;
        let client = client_in(&settings(LOOPBACK), names.names.clone(), vec![ca.der.clone()]);
        let origin = format!("https://pds.example:{}", host.address.port());
        forbidden(fetch(&client, &format!("{origin}/down")).await);
        assert_eq!(plain.connections(), 0);
        assert_eq!(fetch(&client, &format!("{origin}/up")).await.unwrap(), b"end");
    })
    .await;
}

#[tokio::test]
async fn the_directory_may_be_private_but_nobody_else_may_name_it() {
    bounded(async {
        let directory = Host::new(|head| {
            let answer = match path_of(head) {
                "/moved" => redirect_to(302, "/did:plc:x"),
                _ => ok("", b"{}"),
            };
            vec![Step::Send(answer)]
        })
        .await;
        let mut settings = settings(&[]);
        settings.identity.plc_url = Url::parse(&directory.url("")).unwrap();
        let client = client_of(&settings);
        let url = |path: &str| Url::parse(&directory.url(path)).unwrap();
        let response = client.get(&url("/did:plc:x"), &DIRECTORY).await.unwrap();
        assert_eq!(read_capped(response, 100).await.unwrap(), b"{}");
        // A document that names the directory's address, a redirect from it, another URL with its trust.
        forbidden(client.get(&url("/"), &SMALL).await);
        forbidden(client.get(&url("/moved"), &DIRECTORY).await);
        let other = Host::saying(ok("", b"other")).await;
        forbidden(client.get(&Url::parse(&other.url("/")).unwrap(), &DIRECTORY).await);
        assert_eq!((directory.heads().len(), other.connections()), (2, 0));
    })
    .await;
}

// ---- names ----

#[tokio::test]
async fn localhost_names_pass_only_if_every_answer_is_allowed() {
    bounded(async {
        // On IPv4 only: a client must not give up because ::1 refuses.
        let host = Host::new(|_| vec![Step::Send(ok("", b"here"))]).await;
        for name in ["localhost", "pds.localhost"] {
            let url = format!("http://{name}:{}/", host.address.port());
            for allow in [&[][..], &["127.0.0.0/8"], &["::1/128"], &["10.0.0.0/8"]] {
                forbidden(fetch(&client_of(&settings(allow)), &url).await);
            }
            let client = client_of(&settings(&["127.0.0.0/8", "::1/128"]));
            for _ in 0..4 {
                assert_eq!(fetch(&client, &url).await.unwrap(), b"here");
            }
        }
        assert_eq!(host.connections(), 8);
    })
    .await;
}

#[tokio::test]
async fn the_systems_own_client_reaches_addresses_and_localhost_without_name_servers() {
    bounded(async {
        let host = Host::saying(ok("", b"here")).await;
        let settings = settings(&["127.0.0.0/8", "::1/128"]);
        let client = Client::new(&settings, Clock::system()).unwrap();
        assert_eq!(fetch(&client, &host.url("/")).await.unwrap(), b"here");
        let by_name = Url::parse(&format!("http://localhost:{}/", host.address.port())).unwrap();
        let addresses = client.addresses(&by_name, Trust::Stranger).await.unwrap();
        assert!(addresses.iter().all(IpAddr::is_loopback) && !addresses.is_empty());
        assert_eq!(fetch(&client, by_name.as_str()).await.unwrap(), b"here");
    })
    .await;
}

#[tokio::test]
async fn one_private_answer_refuses_the_name() {
    bounded(async {
        let host = Host::saying(ok("", b"here")).await;
        let server = name_server(|name, _, _| {
            Some(match name {
                "mixed.example" => ips(&["93.184.216.34", "127.0.0.1"]),
                "family.example" => ips(&["93.184.216.34", "::1"]),
                "cgnat.example" => ips(&["100.64.0.1"]),
                "mapped.example" => ips(&["::ffff:10.0.0.1"]),
                "pds.local" | "meta.internal" | "public.example" => ips(&["93.184.216.34"]),
                _ => ips(&["127.0.0.1"]),
            })
        })
        .await;
        let port = host.address.port();
        let mut strict = settings(&[]);
        strict.network.ports = vec![443, port];
        let strict = client_in(&strict, server.names.clone(), Vec::new());
        let names =
            ["mixed.example", "family.example", "cgnat.example", "mapped.example", "loop.example"];
        for name in names.into_iter().chain(["pds.local", "meta.internal", "localhost"]) {
            forbidden(fetch(&strict, &format!("https://{name}:{port}/")).await);
        }
        // Over plain http, or on another port, not even public answers pass, unless they are allowed.
        let open = client_in(&settings(LOOPBACK), server.names.clone(), Vec::new());
        for name in ["mixed.example", "public.example", "pds.local"] {
            forbidden(fetch(&open, &format!("http://{name}:{port}/")).await);
        }
        assert_eq!(host.connections(), 0);
        for name in ["loop.example", "LOOP.example", "under_score.local"] {
            assert_eq!(fetch(&open, &format!("http://{name}:{port}/")).await.unwrap(), b"here");
        }
    })
    .await;
}

#[tokio::test]
async fn a_name_that_changes_between_look_and_connect_is_refused_by_the_sockets_resolver() {
    bounded(async {
        let host = Host::saying(ok("", b"secret")).await;
        // Public when first asked, this machine ever after.
        let server = name_server(|_, wants_ipv6, times| {
            Some(match (wants_ipv6, times) {
                (true, _) => ips(&["127.0.0.1"]),
                (false, 1) => ips(&["93.184.216.34"]),
                (false, _) => ips(&["127.0.0.1"]),
            })
        })
        .await;
        let mut settings = settings(&[]);
        settings.network.ports = vec![host.address.port()];
        let client = client_in(&settings, server.names.clone(), Vec::new());
        let url = format!("https://rebind.example:{}/", host.address.port());
        forbidden(fetch(&client, &url).await);
        assert_eq!((host.connections(), server.asked("rebind.example")), (0, 2));
    })
    .await;
}

#[tokio::test]
async fn names_that_do_not_exist_or_are_not_answered_are_dns_faults() {
    bounded(async {
        let server = name_server(|name, _, _| (name == "gone.example").then(Vec::new)).await;
        let client = client_in(&settings(&[]), server.names.clone(), Vec::new());
        host_fault(fetch(&client, "https://gone.example/").await, LastError::Dns);
        let client = client_in(&settings(&[]), server.names.clone(), Vec::new());
        let asking = tokio::spawn(async move { fetch(&client, "https://silent.example/").await });
        server.just_asked.notified().await;
        tokio::time::pause();
        let clock = Clock::system();
        let began = clock.now();
        let error = host_fault(asking.await.unwrap(), LastError::Dns);
        assert!(clock.now() - began <= Duration::from_secs(6), "{error}");
    })
    .await;
}

// ---- transport ----

#[tokio::test]
async fn no_connection_and_no_answer_are_the_hosts_fault() {
    bounded(async {
        // It has its port and never listens.
        let refusing = TcpSocket::new_v4().unwrap();
        refusing.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let url = format!("http://{}/", refusing.local_addr().unwrap());
        let error = host_fault(fetch(&client(), &url).await, LastError::Connect);
        assert!(matches!(error, NetError::Connect(_)), "{error:?}");
        for answer in
            [&b""[..], b"HTTP/1.1 200 OK\r\n", b"SSH-2.0-OpenSSH_9.6\r\n", b"\x15\x03\x01"]
        {
            let host = Host::saying(answer).await;
            let error = host_fault(fetch(&client(), &host.url("/")).await, LastError::Connect);
            assert!(matches!(error, NetError::NoAnswer(_)), "{error:?}");
            assert!(error.to_string().starts_with(&host.address.to_string()));
        }
    })
    .await;
}

#[tokio::test]
async fn a_host_without_a_first_byte_is_given_up_in_time() {
    bounded(async {
        for (request, seconds) in [(TRANSFER, 30), (SMALL, 30)] {
            let host = Host::new(|_| vec![Step::Hold]).await;
            let url = Url::parse(&host.url("/")).unwrap();
            let asking = tokio::spawn(async move { client().get(&url, &request).await });
            host.asked.notified().await;
            tokio::time::pause();
            let clock = Clock::system();
            let began = clock.now();
            let error = host_fault(asking.await.unwrap(), LastError::Timeout);
            let waited = (clock.now() - began).as_secs();
            assert!((seconds - 2..=seconds).contains(&waited), "{waited} s: {error}");
            tokio::time::resume();
        }
    })
    .await;
}

/// A body of one byte, then silence; what is said of it, and after how many seconds of it.
async fn stalled(settings: &Settings, request: Request) -> (NetError, u64) {
    let head = b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\nx".to_vec();
    let host = Host::new(move |_| vec![Step::Send(head.clone()), Step::Hold]).await;
    let url = Url::parse(&host.url("/")).unwrap();
    let mut response = client_of(settings).get(&url, &request).await.unwrap();
    assert_eq!(response.chunk().await.unwrap().unwrap().as_ref(), b"x");
    tokio::time::pause();
    let clock = Clock::system();
    let began = clock.now();
    let error = response.chunk().await.unwrap_err();
    let waited = clock.now() - began;
    tokio::time::resume();
    assert_eq!(error.failure().cause, Cause::Transient);
    assert!(matches!(error.host_signal(), HostSignal::Usable(_)));
    (error, (waited + Duration::from_millis(500)).as_secs())
}

#[tokio::test]
async fn stalls_drips_and_long_bodies_end_by_their_own_limits() {
    bounded(async {
        let hour = Duration::from_secs(3_600);
        let mut settings = settings(LOOPBACK);
        let (error, waited) = stalled(&settings, TRANSFER).await;
        assert!(matches!(error, NetError::Idle(_)) && waited == 30, "{waited} s: {error}");
        settings.fetch.idle_timeout = hour;
        let (error, waited) = stalled(&settings, TRANSFER).await;
        assert!(matches!(error, NetError::TooSlow(_)) && waited == 60, "{waited} s: {error}");
        settings.fetch.min_bytes_per_second = 0;
        let (error, waited) = stalled(&settings, TRANSFER).await;
        assert!(matches!(error, NetError::OverTime(_)) && waited == 1_800, "{waited} s: {error}");
        let (error, waited) = stalled(&settings, SMALL).await;
        assert!(matches!(error, NetError::OverTime(_)) && waited == 30, "{waited} s: {error}");
    })
    .await;
}

#[tokio::test]
async fn a_drip_that_is_never_idle_runs_out_of_time() {
    bounded(async {
        let mut settings = settings(LOOPBACK);
        settings.fetch.total_timeout = Duration::from_millis(300);
        let host = Host::new(|_| {
            let head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n".to_vec();
            vec![Step::Send(head), Step::Forever(b"1\r\nx\r\n".to_vec())]
        })
        .await;
        let error = fetch(&client_of(&settings), &host.url("/")).await.unwrap_err();
        assert!(matches!(error, NetError::OverTime(_)), "{error:?}");
    })
    .await;
}

#[tokio::test]
async fn a_slow_reader_is_not_the_hosts_fault() {
    bounded(async {
        let body = letters(100_000);
        let (first, rest) = body.split_at(10);
        let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len());
        let start = [head.as_bytes(), first].concat();
        let steps = vec![Step::Send(start), Step::Send(rest.to_vec())];
        let host = Host::new(move |_| steps.clone()).await;
        let url = Url::parse(&host.url("/")).unwrap();
        let mut response = client().get(&url, &TRANSFER).await.unwrap();
        let mut read = response.chunk().await.unwrap().unwrap().to_vec();
        tokio::time::pause();
        tokio::time::advance(Duration::from_secs(7_200)).await;
        tokio::time::resume();
        read.extend(whole(response).await.unwrap());
        assert_eq!(read, body);
    })
    .await;
}

#[tokio::test]
async fn bodies_without_their_end_are_broken_and_closed_ones_without_length_are_whole() {
    bounded(async {
        let chunked = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
        for answer in [
            "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhello".to_owned(),
            format!("{chunked}5\r\nhello\r\n"),
            format!("{chunked}5\r\nhel"),
            format!("{chunked}5\r\nhello\r\nzz\r\n"),
        ] {
            let host = Host::saying(answer.clone()).await;
            let error = fetch(&client(), &host.url("/")).await.unwrap_err();
            assert!(matches!(error, NetError::Broken(_)), "{answer}: {error:?}");
            assert_eq!(error.failure().cause, Cause::Transient);
            assert_eq!(error.failure().last_error, Some(LastError::Incomplete));
        }
        for (answer, body) in [
            ("HTTP/1.1 200 OK\r\n\r\nhello".to_owned(), "hello"),
            (format!("{chunked}5\r\nhello\r\n0\r\n\r\n"), "hello"),
            ("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nhello".to_owned(), "hell"),
            ("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n".to_owned(), ""),
            ("HTTP/1.1 204 None\r\n\r\n".to_owned(), ""),
        ] {
            let host = Host::saying(answer).await;
            assert_eq!(fetch(&client(), &host.url("/")).await.unwrap(), body.as_bytes());
        }
    })
    .await;
}

#[tokio::test]
async fn connections_are_kept_and_a_closed_one_is_noticed() {
    bounded(async {
        let host = Host::new(|head| {
            let mut steps = vec![Step::Send(ok("", b"here"))];
            if path_of(head) != "/last" {
                steps.push(Step::Next);
            }
            steps
        })
        .await;
        let client = client();
        for path in ["/1", "/2", "/3", "/last"] {
            assert_eq!(fetch(&client, &host.url(path)).await.unwrap(), b"here");
        }
        assert_eq!(host.connections(), 1);
        for path in ["/5", "/6"] {
            assert_eq!(fetch(&client, &host.url(path)).await.unwrap(), b"here");
        }
        assert_eq!((host.connections(), host.heads().len()), (2, 6));
    })
    .await;
}

#[tokio::test]
async fn huge_headers_are_refused() {
    bounded(async {
        let header = |bytes: usize| format!("X-Huge: {}\r\n", "x".repeat(bytes));
        let host = Host::saying(ok(&header(60 << 10), b"fits")).await;
        assert_eq!(fetch(&client(), &host.url("/")).await.unwrap(), b"fits");
        let host = Host::saying(ok(&header(64 << 10), b"")).await;
        let error = fetch(&client(), &host.url("/")).await.unwrap_err();
        assert!(matches!(error, NetError::Broken(_)), "{error:?}");
        let line = header(1 << 10).into_bytes();
        let endless = move |_: &str| {
            vec![Step::Send(b"HTTP/1.1 200 OK\r\n".to_vec()), Step::Forever(line.clone())]
        };
        let host = Host::new(endless).await;
        let error = fetch(&client(), &host.url("/")).await.unwrap_err();
        assert!(matches!(error, NetError::NoAnswer(_)), "{error:?}");
    })
    .await;
}

// ---- what is sent ----

#[tokio::test]
async fn what_is_sent_is_ours_alone_and_cannot_be_injected_into() {
    bounded(async {
        let host = Host::saying(ok("Set-Cookie: a=b\r\n", b"")).await;
        let mut settings = settings(LOOPBACK);
        settings.fetch.contact = "me@example.com\r\nX-Evil: 1\n\n\u{1b}[31m\0".to_owned();
        let client = client_of(&settings);
        for _ in 0..2 {
            let mut url = Url::parse(&host.url("/xrpc/com.atproto.sync.getRepo")).unwrap();
            url.query_pairs_mut().append_pair("did", "did:plc:x\r\nX-Evil: 2");
            let request = Request { accept: "application/vnd.ipld.car", ..TRANSFER };
            client.get(&url, &request).await.unwrap();
        }
        for head in host.heads() {
            let names: Vec<String> = head
                .lines()
                .skip(1)
                .filter_map(|line| line.split_once(':'))
                .map(|(name, _)| name.to_lowercase())
                .collect();
            let mut sorted = names.clone();
            sorted.sort();
            assert_eq!(sorted, ["accept", "accept-encoding", "host", "user-agent"], "{head}");
            assert!(head.contains("(me@example.comX-Evil: 1[31m)"), "{head}");
            assert!(head.to_lowercase().contains("accept: application/vnd.ipld.car"), "{head}");
            assert!(head.starts_with("GET /xrpc/com.atproto.sync.getRepo?did=did%3Aplc%3Ax%0D%0A"));
            assert!(!head.replace("\r\n", "").contains(char::is_control), "{head:?}");
        }
        assert_eq!(host.heads().len(), 2);
    })
    .await;
}

/// Set in the child of the next test: the URL to fetch.
const CHILD_URL: &str = "SKYFILL_TEST_PROXIED_URL";

#[tokio::test]
async fn proxy_variables_are_ignored() {
    bounded(async {
        if let Ok(url) = std::env::var(CHILD_URL) {
            assert_eq!(fetch(&client(), &url).await.unwrap(), b"direct");
            return;
        }
        let proxy = Host::saying(ok("", b"proxied")).await;
        let host = Host::saying(ok("", b"direct")).await;
        let (place, url) = (proxy.url("/"), host.url("/"));
        let child = tokio::task::spawn_blocking(move || {
            let mut command = Command::new(std::env::current_exe().unwrap());
            command.args(["--exact", "proxy_variables_are_ignored"]).env(CHILD_URL, url);
            for name in ["http_proxy", "https_proxy", "all_proxy"] {
                command.env(name, &place).env(name.to_uppercase(), &place);
            }
            command.env_remove("no_proxy").env_remove("NO_PROXY").output().unwrap()
        });
        let output = child.await.unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
        assert!(String::from_utf8_lossy(&output.stdout).contains("1 passed"));
        assert_eq!((proxy.connections(), host.connections()), (0, 1));
    })
    .await;
}

#[tokio::test]
async fn an_address_is_asked_no_faster_than_configured_unless_it_is_allowed() {
    bounded(async {
        let host = Host::saying(ok("", b"{}")).await;
        let mut settings = settings(&[]);
        settings.identity.plc_url = Url::parse(&host.url("")).unwrap();
        settings.fetch.address_requests_per_second = 20.0;
        let (client, clock) = (client_of(&settings), Clock::system());
        let url = Url::parse(&host.url("/x")).unwrap();
        let began = clock.now();
        futures::future::join_all((0..5).map(|_| client.get(&url, &DIRECTORY))).await;
        assert!(clock.now() - began >= Duration::from_millis(200));
        assert_eq!(host.heads().len(), 5);
        settings.network.allow = vec![Cidr::parse("127.0.0.0/8").unwrap()];
        settings.fetch.address_requests_per_second = 0.001;
        let client = client_of(&settings);
        let all = futures::future::join_all((0..5).map(|_| client.get(&url, &TRANSFER))).await;
        assert!(all.iter().all(Result::is_ok));
    })
    .await;
}

// ---- bodies ----

#[tokio::test]
async fn small_bodies_have_a_limit() {
    bounded(async {
        let get = async |host: &Host| {
            client().get(&Url::parse(&host.url("/")).unwrap(), &SMALL).await.unwrap()
        };
        let chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n".to_vec();
        let steps = vec![Step::Send(chunked), Step::Forever(b"5\r\nhello\r\n".to_vec())];
        let endless = Host::new(move |_| steps.clone()).await;
        let error = read_capped(get(&endless).await, 1_000).await.unwrap_err();
        assert_eq!(error, NetError::TooLarge(1_000));
        assert_eq!(read_start(get(&endless).await, 7).await, b"hellohe");

        let announced = b"HTTP/1.1 200 OK\r\nContent-Length: 100000000\r\n\r\n".to_vec();
        let host = Host::new(move |_| vec![Step::Send(announced.clone()), Step::Hold]).await;
        let error = read_capped(get(&host).await, 256 << 10).await.unwrap_err();
        assert_eq!(error, NetError::TooLarge(256 << 10));

        let host = Host::saying(ok("", b"exactly")).await;
        assert_eq!(read_capped(get(&host).await, 7).await.unwrap(), b"exactly");
        assert!(read_capped(get(&host).await, 6).await.is_err());

        let cut = Host::saying(&b"HTTP/1.1 500 No\r\nContent-Length: 50\r\n\r\nwhy"[..]).await;
        assert_eq!(read_start(get(&cut).await, 100).await, b"why");
        assert!(matches!(read_capped(get(&cut).await, 100).await, Err(NetError::Broken(_))));
    })
    .await;
}

#[tokio::test]
async fn the_start_of_an_error_is_waited_for_ten_seconds_at_most() {
    bounded(async {
        let head = b"HTTP/1.1 502 Bad\r\nContent-Length: 100\r\n\r\nhalf".to_vec();
        let host = Host::new(move |_| vec![Step::Send(head.clone()), Step::Hold]).await;
        let url = Url::parse(&host.url("/")).unwrap();
        let response = client().get(&url, &SMALL).await.unwrap();
        let clock = Clock::system();
        // The four bytes came with the head; from here on only the limit can happen.
        tokio::time::pause();
        let began = clock.now();
        let start = read_start(response, 100).await;
        assert_eq!((clock.now() - began).as_secs(), 10);
        assert!(start.is_empty() || start == b"half");
    })
    .await;
}

fn compressing(mode: Compression) -> Client {
    let mut settings = settings(LOOPBACK);
    settings.fetch.compression = mode;
    client_of(&settings)
}

#[tokio::test]
async fn gzip_is_asked_for_if_wanted_and_understood_in_any_case() {
    bounded(async {
        let body = letters(500_000);
        let packed = gzip(&body);
        let (plain, zipped) = (body.clone(), ok("Content-Encoding: gzip\r\n", &packed));
        let host = Host::new(move |head| {
            let is_asked = head.to_lowercase().contains("accept-encoding: gzip");
            let is_forced = path_of(head) == "/forced";
            vec![Step::Send(if is_asked || is_forced { zipped.clone() } else { ok("", &plain) })]
        })
        .await;
        for (mode, path, wire_bytes, asked) in [
            (Compression::Off, "/", body.len(), "identity"),
            (Compression::Off, "/forced", packed.len(), "identity"),
            (Compression::On, "/", packed.len(), "gzip"),
        ] {
            let url = Url::parse(&host.url(path)).unwrap();
            let mut response = compressing(mode).get(&url, &TRANSFER).await.unwrap();
            let mut read = Vec::new();
            while let Some(bytes) = response.chunk().await.unwrap() {
                read.extend_from_slice(&bytes);
            }
            assert!(read == body, "{mode:?} {path}");
            assert_eq!(response.wire_bytes(), wire_bytes as u64);
            let head = host.heads().last().unwrap().to_lowercase();
            assert!(head.contains(&format!("accept-encoding: {asked}\r\n")), "{head}");
        }
        // Documents are never asked for packed.
        let url = Url::parse(&host.url("/")).unwrap();
        let response = compressing(Compression::On).get(&url, &SMALL).await.unwrap();
        assert_eq!(read_capped(response, 500_000).await.unwrap(), body);
    })
    .await;
}

#[tokio::test]
async fn auto_tries_both_ways_at_a_host() {
    bounded(async {
        let body = letters(400_000);
        let (plain, zipped) = (ok("", &body), ok("Content-Encoding: gzip\r\n", &gzip(&body)));
        let host = Host::new(move |head| {
            let is_asked = head.to_lowercase().contains("accept-encoding: gzip");
            vec![Step::Send(if is_asked { zipped.clone() } else { plain.clone() })]
        })
        .await;
        let client = compressing(Compression::Auto);
        for _ in 0..2 {
            assert!(fetch(&client, &host.url("/")).await.unwrap() == body);
        }
        let asked: Vec<bool> = host
            .heads()
            .iter()
            .map(|head| head.to_lowercase().contains("accept-encoding: gzip"))
            .collect();
        assert_eq!(asked, [false, true]);
    })
    .await;
}

#[tokio::test]
async fn bombs_nests_and_unknown_encodings_end_it() {
    bounded(async {
        let bomb = gzip(&vec![0; 64 << 20]);
        let twice = gzip(&gzip(&letters(1_000)));
        for (encoding, body) in [
            ("gzip", bomb),
            ("gzip, gzip", twice.clone()),
            ("gzip\r\nContent-Encoding: gzip", twice),
            ("br", letters(100)),
            ("zstd", letters(100)),
            ("gzip", letters(100)),
        ] {
            let host = Host::saying(ok(&format!("Content-Encoding: {encoding}\r\n"), &body)).await;
            let url = Url::parse(&host.url("/")).unwrap();
            let mut response = client().get(&url, &TRANSFER).await.unwrap();
            assert_eq!(response.status(), 200);
            let mut bytes = 0;
            let error = loop {
                match response.chunk().await {
                    Ok(Some(piece)) => bytes += piece.len(),
                    Ok(None) => panic!("{encoding}: it ended well"),
                    Err(error) => break error,
                }
            };
            assert!(matches!(error, NetError::Encoding(_)), "{encoding}: {error:?}");
            assert!(bytes <= 2 << 20, "{encoding}: {bytes} bytes");
            assert_eq!(error.failure().cause, Cause::Transient);
        }
        let packed = gzip(&letters(10_000));
        let host =
            Host::saying(ok("Content-Encoding: gzip\r\n", &packed[..packed.len() - 9])).await;
        let error = fetch(&client(), &host.url("/")).await.unwrap_err();
        assert!(matches!(error, NetError::Broken(_)), "{error:?}");
    })
    .await;
}

// ---- TLS and HTTP/2 ----

#[tokio::test]
async fn bad_certificates_are_tls_faults() {
    bounded(async {
        let (ours, theirs, names) =
            (authority("ours"), authority("theirs"), loopback_names().await);
        let client = client_in(&settings(LOOPBACK), names.names.clone(), vec![ours.der.clone()]);
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec!["pds.example".to_owned()]).unwrap();
        let self_signed = params.self_signed(&key).unwrap().der().clone();
        let cases = [
            ("good", tls_for(&ours, "pds.example", 2090, &[])),
            ("expired", tls_for(&ours, "pds.example", 2021, &[])),
            ("wrong host", tls_for(&ours, "other.example", 2090, &[])),
            ("unknown authority", tls_for(&theirs, "pds.example", 2090, &[])),
            ("self-signed", acceptor(self_signed, &key, &[])),
        ];
        for (case, tls) in cases {
            let host =
                Host::at("127.0.0.1:0", Some(tls), |_| vec![Step::Send(ok("", b"hi"))]).await;
            let url = format!("https://pds.example:{}/", host.address.port());
            let result = fetch(&client, &url).await;
            if case == "good" {
                assert_eq!(result.unwrap(), b"hi");
            } else {
                let error = host_fault(result, LastError::Tls);
                assert!(error.to_string().starts_with("pds.example:"), "{case}: {error}");
                assert!(host.heads().is_empty(), "{case}");
            }
        }
    })
    .await;
}

/// A TCP host that does this with each connection, instead of a handshake.
async fn no_tls(
    behave: impl AsyncFn(TcpStream) + Send + Sync + 'static,
) -> (SocketAddr, impl Future<Output = ()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let serving = async move {
        while let Ok((socket, _)) = listener.accept().await {
            behave(socket).await;
        }
    };
    (address, serving)
}

#[tokio::test]
async fn what_is_no_handshake_is_a_tls_fault() {
    bounded(async {
        let names = loopback_names().await;
        // TLS 1.1 only (an alert: protocol version), plain http, and an end without a word.
        let alert: &[u8] = &[21, 3, 2, 0, 2, 2, 70];
        for answer in [alert, b"HTTP/1.1 400 Bad Request\r\n\r\n", b""] {
            let (address, serving) = no_tls(async move |mut socket: TcpStream| {
                let _hello = socket.read(&mut [0; 4096]).await;
                let _sent = socket.write_all(answer).await;
            })
            .await;
            let client = client_in(&settings(LOOPBACK), names.names.clone(), Vec::new());
            let url = format!("https://pds.example:{}/", address.port());
            let result = tokio::select! {
                result = fetch(&client, &url) => result,
                () = serving => unreachable!("it serves for ever"),
            };
            host_fault(result, LastError::Tls);
        }
    })
    .await;
}

#[tokio::test]
async fn a_handshake_that_stalls_is_given_up_after_five_seconds() {
    bounded(async {
        let (address, serving) = no_tls(async |mut socket: TcpStream| {
            socket.read_exact(&mut [0; 100]).await.unwrap();
            // From here on nothing can happen but the limit.
            tokio::time::pause();
            let _hung_up = socket.read_to_end(&mut Vec::new()).await;
        })
        .await;
        let (client, clock) = (client(), Clock::system());
        let url = format!("https://127.0.0.1:{}/", address.port());
        let began = clock.now();
        let result = tokio::select! {
            result = fetch(&client, &url) => result,
            () = serving => unreachable!("it serves for ever"),
        };
        let error = host_fault(result, LastError::Tls);
        let waited = clock.now() - began;
        assert!(waited >= Duration::from_secs(4) && waited < Duration::from_secs(9), "{error}");
    })
    .await;
}

/// An HTTP/2 host: `/whole` answers, `/reset` resets in mid body when told, `/away` goes away without an answer.
async fn http2_host(tls: TlsAcceptor, reset: Arc<tokio::sync::Notify>) -> (u16, JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let task = tokio::spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            let (tls, reset) = (tls.clone(), Arc::clone(&reset));
            tokio::spawn(async move {
                let Ok(socket) = tls.accept(socket).await else { return };
                let mut connection = h2::server::handshake(socket).await.unwrap();
                while let Some(Ok((request, mut respond))) = connection.accept().await {
                    if request.uri().path() == "/away" {
                        connection.abrupt_shutdown(h2::Reason::INTERNAL_ERROR);
                        continue;
                    }
                    let head = http::Response::new(());
                    let mut body = respond.send_response(head, false).unwrap();
                    body.send_data(vec![b'x'; 9_000].into(), request.uri().path() == "/whole")
                        .unwrap();
                    if request.uri().path() == "/reset" {
                        let reset = Arc::clone(&reset);
                        tokio::spawn(async move {
                            reset.notified().await;
                            body.send_reset(h2::Reason::CANCEL);
                        });
                    }
                }
            });
        }
    });
    (port, task)
}

#[tokio::test]
async fn http2_hosts_answer_reset_and_go_away() {
    bounded(async {
        let (ca, names) = (authority("ours"), loopback_names().await);
        let reset = Arc::new(tokio::sync::Notify::new());
        let (port, task) =
            http2_host(tls_for(&ca, "pds.example", 2090, &["h2"]), Arc::clone(&reset)).await;
        let client = client_in(&settings(LOOPBACK), names.names.clone(), vec![ca.der.clone()]);
        let url = |path: &str| format!("https://pds.example:{port}{path}");
        for _ in 0..2 {
            assert_eq!(fetch(&client, &url("/whole")).await.unwrap(), vec![b'x'; 9_000]);
        }
        let to_reset = Url::parse(&url("/reset")).unwrap();
        let mut response = client.get(&to_reset, &TRANSFER).await.unwrap();
        assert!(response.chunk().await.unwrap().is_some());
        reset.notify_one();
        let error = whole(response).await.unwrap_err();
        assert!(matches!(error, NetError::Broken(_)), "{error:?}");
        let error = host_fault(fetch(&client, &url("/away")).await, LastError::Connect);
        assert!(matches!(error, NetError::NoAnswer(_)), "{error:?}");
        assert_eq!(fetch(&client, &url("/whole")).await.unwrap().len(), 9_000);
        task.abort();
    })
    .await;
}
