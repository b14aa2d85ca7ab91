//! The endpoint for metrics and health: GET and HEAD of three paths, on loopback unless the operator wants otherwise.
//!
//! ```text
//!  /metrics   200, Prometheus' text                      always, also while it drains
//!  /healthz   200 ok | 503 failed                        the process lives and its data directory can be written
//!  /readyz    200 ready | 503 with one word              it takes up work
//! ```
//! takes    at most 16 connections at once; others wait in the kernel until one ends. One request a connection, its head at
//!          most 1 KiB (Prometheus sends half of that) and complete within 5 s; 30 s for everything
//! gives up on whoever is slower, with 408 or none at all; larger heads get 431, other methods 405, other paths 404
//! never    reads a body, keeps a connection, says a name, a path or an error's text
//!
//! hyper's own limit of a head is 8 KiB at least, so the head is read here first and hyper gets it from memory.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, HeaderValue, X_CONTENT_TYPE_OPTIONS};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::time::timeout;

/// Connections at once: a handful of scrapers and probes, and room for as many that hang.
pub const CONNECTIONS_MAX: usize = 16;

/// Bytes of a request's head.
pub const HEAD_BYTES_MAX: usize = 1 << 10;

/// A request's head must be there after this long.
pub const HEAD_TIMEOUT: Duration = Duration::from_secs(5);

/// A connection ends after this long whatever it does.
pub const CONNECTION_TIMEOUT: Duration = Duration::from_secs(30);

/// Of a request that was refused unread, so many bytes are read and thrown away,
const REST_BYTES_MAX: u64 = 64 << 10;

/// for so long.
const REST_TIMEOUT: Duration = Duration::from_secs(1);

/// After an error of the listening socket (out of descriptors, most likely) it is asked again after this long.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What hyper may buffer; the least that it accepts. Only a body that nobody reads can come there.
const HYPER_BUFFER_BYTES: usize = 8 << 10;

const METRICS_TYPE: HeaderValue =
    HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
const TEXT_TYPE: HeaderValue = HeaderValue::from_static("text/plain; charset=utf-8");

/// What probes are told.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Readiness {
    /// It opens its data directory and lists.
    #[default]
    Starting,
    /// It works, or has nothing to do.
    Ready,
    /// It waits for disk space and goes on by itself.
    DiskFull,
    /// It was asked to stop and finishes what is in flight.
    Draining,
    /// It is about to end with an error.
    Failed,
}

impl Readiness {
    /// The word in the answer.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Ready => "ready",
            Self::DiskFull => "disk_full",
            Self::Draining => "draining",
            Self::Failed => "failed",
        }
    }
}

/// The address cannot be listened on.
#[derive(Debug, thiserror::Error)]
#[error("metrics.listen: {address}: {source}: choose another address, or \"\" for none")]
pub struct ListenError {
    /// Which address.
    pub address: SocketAddr,
    /// What the system said.
    pub source: io::Error,
}

impl ListenError {
    /// Whether it is a question of permission.
    #[must_use]
    pub fn is_permission(&self) -> bool {
        self.source.kind() == io::ErrorKind::PermissionDenied
    }
}

/// Takes the address, before anything else begins: what `check` refuses is refused at the start too.
///
/// # Errors
/// [`ListenError`].
pub async fn bind(listen: SocketAddr) -> Result<TcpListener, ListenError> {
    TcpListener::bind(listen).await.map_err(|source| ListenError { address: listen, source })
}

/// Binds and serves, see [`bind`] and [`serve_on`].
///
/// # Errors
/// [`ListenError`].
pub async fn serve<F: Future<Output = String> + Send + 'static>(
    listen: SocketAddr,
    readiness: watch::Receiver<Readiness>,
    render: impl Fn() -> F + Send + Sync + 'static,
    stop: impl Future<Output = ()> + Send,
) -> Result<(), ListenError> {
    serve_on(bind(listen).await?, readiness, render, stop).await;
    Ok(())
}

/// Answers on `listener` until `stop` resolves; connections end then too. `render` gives the text of `/metrics`.
pub async fn serve_on<F: Future<Output = String> + Send + 'static>(
    listener: TcpListener,
    readiness: watch::Receiver<Readiness>,
    render: impl Fn() -> F + Send + Sync + 'static,
    stop: impl Future<Output = ()> + Send,
) {
    let (places, render) = (Arc::new(Semaphore::new(CONNECTIONS_MAX)), Arc::new(render));
    let mut connections = tokio::task::JoinSet::new();
    tokio::pin!(stop);
    loop {
        let next = async {
            let place = Arc::clone(&places).acquire_owned().await;
            (place, listener.accept().await)
        };
        let (place, accepted) = tokio::select! {
            () = &mut stop => return,
            Some(_) = connections.join_next() => continue,
            next = next => next,
        };
        match accepted {
            Ok((stream, _)) => {
                let (readiness, render) = (readiness.clone(), Arc::clone(&render));
                connections.spawn(async move {
                    let _held = place;
                    let _too_slow =
                        timeout(CONNECTION_TIMEOUT, converse(stream, readiness, render)).await;
                });
            }
            Err(error) => {
                tracing::warn!(%error, "a connection to the metrics endpoint was not accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// One connection: one request.
async fn converse<F: Future<Output = String> + Send + 'static>(
    mut stream: TcpStream,
    readiness: watch::Receiver<Readiness>,
    render: Arc<impl Fn() -> F + Send + Sync + 'static>,
) {
    let head = match timeout(HEAD_TIMEOUT, read_head(&mut stream)).await {
        Ok(Ok(Head::Whole(head))) => head,
        Ok(Ok(Head::TooLong)) => {
            return refuse(stream, "431 Request Header Fields Too Large").await;
        }
        Ok(Ok(Head::Gone) | Err(_)) => return,
        Err(_) => return refuse(stream, "408 Request Timeout").await,
    };
    let service = service_fn(move |request: Request<Incoming>| {
        let (state, render) = (*readiness.borrow(), Arc::clone(&render));
        async move { Ok::<_, std::convert::Infallible>(answer(&request, state, &*render).await) }
    });
    let (reader, writer) = stream.into_split();
    let whole = tokio::io::join(io::Cursor::new(head).chain(reader), writer);
    let served = hyper::server::conn::http1::Builder::new()
        .keep_alive(false)
        .half_close(true)
        .max_buf_size(HYPER_BUFFER_BYTES)
        .serve_connection(TokioIo::new(whole), service)
        .await;
    if let Err(error) = served {
        tracing::debug!(%error, "a connection to the metrics endpoint broke off");
    }
}

/// The beginning of a request.
enum Head {
    /// Up to the empty line, and what came with it.
    Whole(Vec<u8>),
    TooLong,
    /// The other end closed the connection.
    Gone,
}

async fn read_head(stream: &mut TcpStream) -> io::Result<Head> {
    let mut head = Vec::with_capacity(HEAD_BYTES_MAX);
    loop {
        let mut free = (&mut *stream).take((HEAD_BYTES_MAX - head.len()) as u64);
        if free.read_buf(&mut head).await? == 0 {
            return Ok(if head.len() == HEAD_BYTES_MAX { Head::TooLong } else { Head::Gone });
        }
        if is_complete(&head) {
            return Ok(Head::Whole(head));
        }
    }
}

/// Whether an empty line has come after something else: leading ones are passed over, by hyper too.
fn is_complete(head: &[u8]) -> bool {
    let head = head.trim_ascii_start();
    head.windows(4).any(|end| end == b"\r\n\r\n") || head.windows(2).any(|end| end == b"\n\n")
}

/// Answers without having understood the request.
async fn refuse(mut stream: TcpStream, status: &str) {
    let text = format!("HTTP/1.1 {status}\r\nconnection: close\r\ncontent-length: 0\r\n\r\n");
    // Whoever sends that much, or that slowly, may not listen.
    let _unheard = stream.write_all(text.as_bytes()).await;
    let _gone = stream.shutdown().await;
    // Closing with bytes unread would reset the connection, and the answer could be lost on its way.
    let rest = &mut stream.take(REST_BYTES_MAX);
    let _enough = timeout(REST_TIMEOUT, tokio::io::copy(rest, &mut tokio::io::sink())).await;
}

async fn answer<F: Future<Output = String>>(
    request: &Request<Incoming>,
    state: Readiness,
    render: &impl Fn() -> F,
) -> Response<Full<Bytes>> {
    let path = request.uri().path();
    if !matches!(path, "/metrics" | "/healthz" | "/readyz") {
        return said(StatusCode::NOT_FOUND, "not found: /metrics, /healthz, /readyz");
    }
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        let mut response = said(StatusCode::METHOD_NOT_ALLOWED, "GET or HEAD");
        response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
        return response;
    }
    match path {
        "/metrics" => text(StatusCode::OK, METRICS_TYPE, render().await),
        "/healthz" if state != Readiness::Failed => said(StatusCode::OK, "ok"),
        "/readyz" if state == Readiness::Ready => said(StatusCode::OK, state.as_str()),
        _ => said(StatusCode::SERVICE_UNAVAILABLE, state.as_str()),
    }
}

fn said(status: StatusCode, word: &str) -> Response<Full<Bytes>> {
    text(status, TEXT_TYPE, format!("{word}\n"))
}

fn text(status: StatusCode, kind: HeaderValue, body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, kind);
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tokio::task::JoinHandle;

    use super::*;

    const TEXT: &str = "skyfill_build_info{version=\"0\"} 1\n";

    struct Bench {
        address: SocketAddr,
        state: watch::Sender<Readiness>,
        renders: Arc<AtomicUsize>,
        stop: Arc<tokio::sync::Notify>,
        served: JoinHandle<()>,
    }

    async fn serving(text: String) -> Bench {
        let listener = bind(([127, 0, 0, 1], 0).into()).await.unwrap();
        let address = listener.local_addr().unwrap();
        let (state, watched) = watch::channel(Readiness::Starting);
        let (renders, stop) = (Arc::<AtomicUsize>::default(), Arc::new(tokio::sync::Notify::new()));
        let (counted, stopped) = (Arc::clone(&renders), Arc::clone(&stop));
        let render = move || {
            counted.fetch_add(1, Ordering::AcqRel);
            std::future::ready(text.clone())
        };
        let served = tokio::spawn(serve_on(listener, watched, render, async move {
            stopped.notified().await;
        }));
        Bench { address, state, renders, stop, served }
    }

    impl Bench {
        async fn connect(&self) -> TcpStream {
            TcpStream::connect(self.address).await.unwrap()
        }

        /// Sends `request` as it is and gives all that comes back.
        async fn exchange(&self, request: &str) -> String {
            let mut stream = self.connect().await;
            stream.write_all(request.as_bytes()).await.unwrap();
            everything(&mut stream).await
        }

        async fn get(&self, path: &str) -> String {
            self.exchange(&format!("GET {path} HTTP/1.1\r\nhost: x\r\n\r\n")).await
        }
    }

    /// What comes until the connection ends, with a reset or without.
    async fn everything(stream: &mut TcpStream) -> String {
        let mut bytes = Vec::new();
        let _reset = stream.read_to_end(&mut bytes).await;
        String::from_utf8(bytes).unwrap()
    }

    fn status(answer: &str) -> &str {
        answer.split(' ').nth(1).unwrap_or("none")
    }

    #[tokio::test]
    async fn three_paths_are_answered_to_get_and_head_and_nothing_else() {
        let bench = serving(TEXT.to_owned()).await;
        let whole = bench.get("/metrics").await;
        let (head, body) = whole.split_once("\r\n\r\n").unwrap();
        assert_eq!((status(head), body), ("200", TEXT));
        assert!(head.contains("content-type: text/plain; version=0.0.4; charset=utf-8"), "{head}");
        assert!(head.contains("connection: close"), "{head}");
        let length = format!("content-length: {}", TEXT.len());
        assert!(head.contains(&length), "{head}");
        let only = bench.exchange("HEAD /metrics?a=b HTTP/1.1\r\nhost: x\r\n\r\n").await;
        assert!(only.contains(&length) && only.ends_with("\r\n\r\n"), "{only}");
        assert_eq!(status(&bench.exchange("GET /metrics HTTP/1.0\n\n").await), "200");
        assert_eq!(bench.renders.load(Ordering::Acquire), 3);
        for method in ["POST", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE", "BREW"] {
            let request =
                format!("{method} /metrics HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\n\r\nhi");
            let answer = bench.exchange(&request).await;
            assert_eq!(status(&answer), "405", "{method}");
            assert!(answer.contains("allow: GET, HEAD"), "{answer}");
        }
        for path in ["/", "/metrics/", "/../metrics", "/healthz/x", "/debug", "/config"] {
            assert_eq!(status(&bench.get(path).await), "404", "{path}");
        }
        for nonsense in ["hello\r\n\r\n", "GET  HTTP/1.1\r\n\r\n", "\u{1}\u{2}\n\n"] {
            let answer = bench.exchange(nonsense).await;
            assert!(matches!(status(&answer), "400" | "none"), "{nonsense:?}: {answer}");
        }
        assert_eq!(bench.renders.load(Ordering::Acquire), 3);
        let two = "GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n".repeat(2);
        assert_eq!(bench.exchange(&two).await.matches("HTTP/1.1 200").count(), 1);
        bench.stop.notify_one();
        bench.served.await.unwrap();
        assert!(TcpStream::connect(bench.address).await.is_err());
    }

    #[tokio::test]
    async fn probes_hear_one_word() {
        let bench = serving(String::new()).await;
        let states = [
            (Readiness::Starting, "200", "503", "starting"),
            (Readiness::Ready, "200", "200", "ready"),
            (Readiness::DiskFull, "200", "503", "disk_full"),
            (Readiness::Draining, "200", "503", "draining"),
            (Readiness::Failed, "503", "503", "failed"),
        ];
        for (state, alive, ready, word) in states {
            bench.state.send_replace(state);
            assert_eq!(status(&bench.get("/healthz").await), alive, "{word}");
            let answer = bench.get("/readyz").await;
            assert_eq!(status(&answer), ready, "{word}");
            assert!(answer.ends_with(&format!("\r\n\r\n{word}\n")), "{answer}");
        }
    }

    #[tokio::test]
    async fn a_head_has_at_most_one_kibibyte() {
        let bench = serving(TEXT.to_owned()).await;
        let of = |bytes: usize| {
            let frame = "GET /metrics HTTP/1.1\r\nhost: x\r\na: \r\n\r\n";
            frame.replace("a: ", &format!("a: {}", "b".repeat(bytes - frame.len())))
        };
        assert_eq!(status(&bench.exchange(&of(HEAD_BYTES_MAX)).await), "200");
        for too_long in [of(HEAD_BYTES_MAX + 1), "x".repeat(HEAD_BYTES_MAX), of(32 << 10)] {
            assert_eq!(status(&bench.exchange(&too_long).await), "431");
        }
        let mut stream = bench.connect().await;
        // The connection may end before everything is sent.
        let _broken = stream.write_all(&vec![b'x'; 8 << 20]).await;
        assert!(matches!(status(&everything(&mut stream).await), "431" | "none"));
        assert_eq!(bench.renders.load(Ordering::Acquire), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn the_slow_are_dropped_and_others_then_have_their_turn() {
        let bench = serving(TEXT.to_owned()).await;
        let mut slow = Vec::new();
        for _ in 0..CONNECTIONS_MAX {
            let mut stream = bench.connect().await;
            stream.write_all(b"GET /metr").await.unwrap();
            slow.push(stream);
        }
        let begun = tokio::time::Instant::now();
        assert_eq!(status(&bench.get("/metrics").await), "200");
        assert!(begun.elapsed() >= HEAD_TIMEOUT, "{:?}", begun.elapsed());
        for mut stream in slow {
            assert_eq!(status(&everything(&mut stream).await), "408");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn who_does_not_read_is_dropped() {
        let bench = serving("x".repeat(64 << 20)).await;
        let mut stream = bench.connect().await;
        stream.write_all(b"GET /metrics HTTP/1.1\r\n\r\n").await.unwrap();
        let begun = tokio::time::Instant::now();
        tokio::time::sleep(CONNECTION_TIMEOUT * 2).await;
        let answer = everything(&mut stream).await;
        assert!(answer.len() < 64 << 20, "{}", answer.len());
        assert!(begun.elapsed() < CONNECTION_TIMEOUT * 3);
    }

    #[tokio::test]
    async fn a_taken_address_is_told_with_a_way_out() {
        let taken = bind(([127, 0, 0, 1], 0).into()).await.unwrap();
        let address = taken.local_addr().unwrap();
        let (_state, watched) = watch::channel(Readiness::Ready);
        let never = std::future::pending();
        let refused = serve(address, watched, || std::future::ready(String::new()), never).await;
        let error = refused.unwrap_err();
        assert!(!error.is_permission());
        let text = error.to_string();
        assert!(text.starts_with(&format!("metrics.listen: {address}: ")), "{text}");
    }
}
