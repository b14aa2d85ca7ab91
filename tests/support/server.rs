//! One HTTP/1 server on loopback, on a thread and runtime of its own, so that blocking tests and the demo can use it. It
//! stops when it is dropped. A log of all requests can be waited on, so that no test has to sleep.

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::task::{Context, Poll};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::watch;

/// Connections that wait to be accepted; more than any scene opens at once.
const BACKLOG: u32 = 1_024;

pub type Body = UnsyncBoxBody<Bytes, io::Error>;

/// An answer, or none: then the connection ends.
pub type Answer = io::Result<Response<Body>>;

type Handler = dyn Fn(Request<Incoming>, Connection) -> Pin<Box<dyn Future<Output = Answer> + Send>>
    + Send
    + Sync;

/// The connection that a request came on.
#[derive(Clone)]
pub struct Connection {
    is_to_be_reset: Arc<AtomicBool>,
    requests: Arc<AtomicU64>,
}

impl Connection {
    /// When the connection ends, it ends with a reset.
    pub fn reset(&self) {
        self.is_to_be_reset.store(true, Ordering::SeqCst);
    }

    /// Whether it has carried a request before this one.
    pub fn is_kept(&self) -> bool {
        self.requests.load(Ordering::SeqCst) > 1
    }
}

/// What the server's thread is told.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Order {
    Serve,
    /// Connections are refused, those that exist end.
    Refuse,
    Stop,
}

/// The order that the server's thread has carried out last.
#[derive(Default)]
struct Acted {
    order: Mutex<Option<Order>>,
    changed: Condvar,
}

impl Acted {
    fn set(&self, order: Order) {
        *self.order.lock().unwrap() = Some(order);
        self.changed.notify_all();
    }

    fn wait(&self, order: Order) {
        let patience = Duration::from_secs(30);
        let is_other = |acted: &mut Option<Order>| *acted != Some(order);
        let acted = self.order.lock().unwrap();
        let (_acted, waited) = self.changed.wait_timeout_while(acted, patience, is_other).unwrap();
        assert!(!waited.timed_out(), "the server does not obey");
    }
}

pub struct Server {
    address: SocketAddr,
    order: watch::Sender<Order>,
    acted: Arc<Acted>,
    thread: Option<JoinHandle<()>>,
    /// Never listens: it holds the port while connections are refused, so that no other server of the tests is given it.
    _held: TcpSocket,
}

impl Server {
    /// Starts serving on a free port of 127.0.0.1.
    pub fn start<F, R>(name: &str, handler: F) -> Self
    where
        F: Fn(Request<Incoming>, Connection) -> R + Send + Sync + 'static,
        R: Future<Output = Answer> + Send + 'static,
    {
        let handler: Arc<Handler> =
            Arc::new(move |request, connection| Box::pin(handler(request, connection)));
        let held = bound(SocketAddr::from(([127, 0, 0, 1], 0))).expect("a loopback port");
        let address = held.local_addr().expect("a bound socket has an address");
        let (order, orders) = watch::channel(Order::Serve);
        let acted = Arc::new(Acted::default());
        let told = Arc::clone(&acted);
        let run = move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .expect("a runtime for a test server");
            runtime.block_on(serve(address, orders, &told, handler));
            runtime.shutdown_background();
        };
        let thread = std::thread::Builder::new().name(name.to_owned()).spawn(run);
        let thread = Some(thread.expect("a thread for a test server"));
        acted.wait(Order::Serve);
        Self { address, order, acted, thread, _held: held }
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// `http://127.0.0.1:PORT`.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Whether connections are refused; those that exist end when this becomes so. It is so when this returns. The port
    /// stays the same.
    pub fn refuse(&self, is_refusing: bool) {
        let order = if is_refusing { Order::Refuse } else { Order::Serve };
        self.order.send(order).expect("the server's thread lives as long as the server");
        self.acted.wait(order);
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.order.send(Order::Stop);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// A socket that shares its port with others like it; whoever asks for any free port is given another one.
fn bound(address: SocketAddr) -> io::Result<TcpSocket> {
    let socket = TcpSocket::new_v4()?;
    socket.set_reuseport(true)?;
    socket.bind(address)?;
    Ok(socket)
}

async fn serve(
    address: SocketAddr,
    mut orders: watch::Receiver<Order>,
    acted: &Acted,
    handler: Arc<Handler>,
) {
    let mut listener: Option<TcpListener> = None;
    let mut connections = tokio::task::JoinSet::new();
    loop {
        let order = *orders.borrow_and_update();
        match order {
            Order::Stop => return,
            Order::Refuse => {
                listener = None;
                connections.abort_all();
            }
            Order::Serve if listener.is_none() => {
                let socket = bound(address).expect("the port is held");
                listener = Some(socket.listen(BACKLOG).expect("a bound socket can listen"));
            }
            Order::Serve => {}
        }
        acted.set(order);
        let accepted = async {
            match &listener {
                Some(listener) => listener.accept().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            accepted = accepted => if let Ok((stream, _)) = accepted {
                connections.spawn(converse(stream, Arc::clone(&handler)));
            },
            changed = orders.changed() => if changed.is_err() { return },
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn converse(stream: TcpStream, handler: Arc<Handler>) {
    let _ = stream.set_nodelay(true);
    let connection = Connection { is_to_be_reset: Arc::default(), requests: Arc::default() };
    let socket = Socket { stream, connection: connection.clone() };
    let service = service_fn(move |request| {
        connection.requests.fetch_add(1, Ordering::SeqCst);
        handler(request, connection.clone())
    });
    // An error is a peer that left, or a fault that ended the connection: both are meant.
    let _ = hyper::server::conn::http1::Builder::new()
        .serve_connection(TokioIo::new(socket), service)
        .await;
}

/// A stream that can end with a reset.
struct Socket {
    stream: TcpStream,
    connection: Connection,
}

impl Drop for Socket {
    fn drop(&mut self) {
        if self.connection.is_to_be_reset.load(Ordering::SeqCst) {
            let _ = self.stream.set_zero_linger();
        }
    }
}

impl AsyncRead for Socket {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Socket {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

/// A body that is all there.
pub fn whole(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).map_err(|never: Infallible| match never {}).boxed_unsync()
}

/// A complete answer.
pub fn answer(code: u16, content_type: &str, body: impl Into<Bytes>) -> Response<Body> {
    Response::builder()
        .status(code)
        .header("content-type", content_type)
        .body(whole(body))
        .expect("status and type are valid")
}

/// A complete JSON answer.
pub fn json(code: u16, value: &serde_json::Value) -> Response<Body> {
    answer(code, "application/json; charset=utf-8", value.to_string())
}

/// Adds a header to an answer.
pub fn with_header(mut response: Response<Body>, name: &str, value: &str) -> Response<Body> {
    let name = hyper::header::HeaderName::from_bytes(name.as_bytes()).expect("a header name");
    let value = hyper::header::HeaderValue::from_str(value).expect("a header value");
    response.headers_mut().insert(name, value);
    response
}

/// One request as its server saw it.
#[derive(Clone, Debug)]
pub struct Entry {
    /// Since the log began.
    pub at: Duration,
    /// Last segment of the path: `com.atproto.sync.getRepo`; empty at the directory.
    pub method: String,
    pub did: String,
    /// Status of the answer; 0 until there is one, and where there is none.
    pub status: u16,
    /// Bytes of body sent so far.
    pub bytes: Arc<AtomicU64>,
    /// Whether the body is still being sent.
    pub is_open: bool,
}

impl Entry {
    pub fn bytes_sent(&self) -> u64 {
        self.bytes.load(Ordering::SeqCst)
    }
}

/// Every request to one server, in order of arrival.
pub struct Log {
    begun: Instant,
    state: Mutex<LogState>,
    changed: Condvar,
}

#[derive(Default)]
struct LogState {
    entries: Vec<Entry>,
    open: usize,
    open_max: usize,
    headers: Vec<(String, String)>,
}

impl Default for Log {
    fn default() -> Self {
        Self { begun: Instant::now(), state: Mutex::default(), changed: Condvar::new() }
    }
}

impl Log {
    /// Notes a request; its number is for [`Log::answered`] and the rest.
    pub fn arrived(&self, method: &str, did: &str, request: &Request<Incoming>) -> usize {
        let mut state = self.state.lock().unwrap();
        let text = |value: &hyper::header::HeaderValue| value.to_str().unwrap_or("").to_owned();
        state.headers =
            request.headers().iter().map(|(name, v)| (name.to_string(), text(v))).collect();
        state.entries.push(Entry {
            at: self.begun.elapsed(),
            method: method.to_owned(),
            did: did.to_owned(),
            status: 0,
            bytes: Arc::default(),
            is_open: false,
        });
        self.changed.notify_all();
        state.entries.len() - 1
    }

    pub fn answered(&self, number: usize, status: u16) {
        self.state.lock().unwrap().entries[number].status = status;
        self.changed.notify_all();
    }

    /// A transfer begins: it counts as open until the guard is dropped.
    pub fn transfer(self: &Arc<Self>, number: usize) -> Transfer {
        let mut state = self.state.lock().unwrap();
        state.open += 1;
        state.open_max = state.open_max.max(state.open);
        let entry = &mut state.entries[number];
        entry.is_open = true;
        let bytes = Arc::clone(&entry.bytes);
        self.changed.notify_all();
        Transfer { log: Arc::clone(self), number, bytes }
    }

    pub fn entries(&self) -> Vec<Entry> {
        self.state.lock().unwrap().entries.clone()
    }

    /// Number of requests.
    pub fn len(&self) -> usize {
        self.state.lock().unwrap().entries.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Requests of `method` about `did`.
    pub fn count(&self, method: &str, did: &str) -> usize {
        let state = self.state.lock().unwrap();
        state.entries.iter().filter(|entry| entry.method == method && entry.did == did).count()
    }

    /// Transfers at this moment.
    pub fn open(&self) -> usize {
        self.state.lock().unwrap().open
    }

    /// Most transfers that there were at once.
    pub fn open_max(&self) -> usize {
        self.state.lock().unwrap().open_max
    }

    /// Bytes of body sent in all transfers.
    pub fn bytes_sent(&self) -> u64 {
        self.state.lock().unwrap().entries.iter().map(Entry::bytes_sent).sum()
    }

    /// A header of the latest request.
    pub fn last_header(&self, name: &str) -> Option<String> {
        let state = self.state.lock().unwrap();
        state.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.clone())
    }

    /// Waits until `is_enough` of the entries, at most `patience`; says whether it came to that. `is_enough` must not ask the
    /// log for anything: it is called with the log in hand.
    pub fn wait(&self, patience: Duration, mut is_enough: impl FnMut(&[Entry]) -> bool) -> bool {
        let until = Instant::now() + patience;
        let mut state = self.state.lock().unwrap();
        loop {
            if is_enough(&state.entries) {
                return true;
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            state = self.changed.wait_timeout(state, left).unwrap().0;
        }
    }

    /// Largest number of requests of `method` that arrived within any span of `span`.
    pub fn most_within(&self, method: &str, span: Duration) -> usize {
        let entries = self.entries();
        let times: Vec<Duration> =
            entries.iter().filter(|entry| entry.method == method).map(|entry| entry.at).collect();
        let mut first = 0;
        let mut most = 0;
        for (last, time) in times.iter().enumerate() {
            while *time - times[first] >= span {
                first += 1;
            }
            most = most.max(last + 1 - first);
        }
        most
    }
}

/// An open transfer in a [`Log`].
pub struct Transfer {
    log: Arc<Log>,
    number: usize,
    bytes: Arc<AtomicU64>,
}

impl Transfer {
    pub fn sent(&self, bytes: usize) {
        // Under the lock, so that nobody who waits misses it.
        let _state = self.log.state.lock().unwrap();
        self.bytes.fetch_add(bytes as u64, Ordering::SeqCst);
        self.log.changed.notify_all();
    }
}

impl Drop for Transfer {
    fn drop(&mut self) {
        let mut state = self.log.state.lock().unwrap();
        state.open -= 1;
        state.entries[self.number].is_open = false;
        self.log.changed.notify_all();
    }
}

/// Text of which percent signs are decoded.
pub fn decoded(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, later)) = rest.split_first() {
        let pair = later.get(..2).and_then(|pair| std::str::from_utf8(pair).ok());
        match pair.and_then(|pair| u8::from_str_radix(pair, 16).ok()) {
            Some(byte) if *first == b'%' => {
                bytes.push(byte);
                rest = &later[2..];
            }
            _ => {
                bytes.push(*first);
                rest = later;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// A parameter of a query.
pub fn query(query: &str, name: &str) -> Option<String> {
    let mut pairs = query.split('&').filter_map(|pair| pair.split_once('='));
    pairs.find(|(key, _)| *key == name).map(|(_, value)| decoded(value))
}
