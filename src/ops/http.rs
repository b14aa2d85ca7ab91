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

/// Whether an empty line has come. A head that ends in another way is hyper's to refuse.
fn is_complete(head: &[u8]) -> bool {
    head.windows(4).any(|end| end == b"\r\n\r\n") || head.windows(2).any(|end| end == b"\n\n")
}

/// Answers without having understood the request.
async fn refuse(mut stream: TcpStream, status: &str) {
    let text = format!("HTTP/1.1 {status}\r\nconnection: close\r\ncontent-length: 0\r\n\r\n");
    // Whoever sends that much, or that slowly, may not listen.
    let _unheard = stream.write_all(text.as_bytes()).await;
    let _gone = stream.shutdown().await;
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
