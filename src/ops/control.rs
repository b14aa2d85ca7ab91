//! The control socket: `DATA/control.sock`, for whoever owns the data directory.
//!
//! ```text
//!  {"command":"status"}                                          {"ok":true,"phase":"working","hosts":[...],...}
//!  {"command":"retry","all":true | "reason":R | "did":D}         {"ok":true,"retried":3}
//!  {"command":"forget","dids":[D,...]}                           {"ok":true,"accounts":[...],"left":[...],"unfinished":false}
//!  {"command":"recheck"} or with "dids":[D,...]                  {"ok":true,"asked":3,"statuses":{...},"hosts":{...},...}
//!  {"command":"reload"}                                          {"ok":true} or {"ok":false,"error":"..."}
//! ```
//! One JSON object a line, both ways; while a retry or reload is in work a line `{"working":true}` a second says so. A line
//! has at most 16 KiB; whoever sends nothing for 5 s, or does not read, is dropped; at most 16 at once. A socket file that a
//! dead process left behind is replaced: the data directory's lock says that nobody else is there.

use std::fs::{File, Permissions};
use std::io::{self, BufRead, BufReader as BlockingReader, Read as _, Write as _};
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream as BlockingStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc as blocking;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, mpsc, oneshot};

use crate::domain::verdict::{LastError, Reason};
use crate::store::ledger_lists::Selection;

/// Name of the socket in a data directory.
pub const SOCKET_FILE: &str = "control.sock";

/// Longest silence, of either side: a client gives up on the daemon after it, the daemon on a client.
pub const SILENCE: Duration = Duration::from_secs(5);

/// How often a client hears that its order is in work; well below [`SILENCE`].
const WORKING_EVERY: Duration = Duration::from_secs(1);

/// Bytes of a request; a DID has at most 2 KiB.
const REQUEST_BYTES_MAX: u64 = 16 << 10;

/// Bytes of an answer: a thousand hosts are about 200 KiB.
const ANSWER_BYTES_MAX: u64 = 4 << 20;

/// Clients at once; more are turned away.
const CLIENTS_MAX: usize = 16;

/// Orders that wait for the daemon: one a client.
pub const ORDERS_MAX: usize = CLIENTS_MAX;

/// The address of a socket has at most 107 bytes; longer paths are reached through their folder's descriptor.
const ADDRESS_BYTES_MAX: usize = 100;

/// What a client asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Question {
    /// What is going on.
    Status,
    /// Put parked accounts back.
    Retry(Selection),
    /// Forget these accounts.
    Forget(Vec<String>),
    /// Ask hosts again how these accounts stand; `None`: all listed ones that were exported.
    Recheck(Option<Vec<String>>),
    /// Read configuration and lists again.
    Reload,
}

/// A question that wants an answer.
#[derive(Debug)]
pub struct Order {
    /// What is asked.
    pub question: Question,
    /// Set by whoever takes up something that may last: only then does the client hear that it is in work.
    pub is_in_work: Arc<AtomicBool>,
    /// Where the answer, one JSON object, goes.
    pub answer: oneshot::Sender<Value>,
}

/// An answer that says what went wrong.
#[must_use]
pub fn refusal(error: &dyn std::fmt::Display) -> Value {
    json!({"ok": false, "error": error.to_string()})
}

/// The listening socket. Dropped, its file goes too.
#[derive(Debug)]
pub struct ControlSocket {
    path: PathBuf,
    listener: UnixListener,
}

impl ControlSocket {
    /// Listens in a data directory that is ours; for its owner only, from the first moment: the socket is made in a folder
    /// that nobody else may enter.
    ///
    /// # Errors
    /// The system's.
    pub fn listen(data_dir: &Path) -> io::Result<Self> {
        let (spool, path) = (data_dir.join("spool"), data_dir.join(SOCKET_FILE));
        let made = spool.join(SOCKET_FILE);
        let _left_by_the_dead = std::fs::remove_file(&made);
        let (_folder, address) = address(&spool)?;
        let listener = UnixListener::bind(&address)?;
        std::fs::set_permissions(&made, Permissions::from_mode(0o600))?;
        // A socket outlives no process, so its name needs no durability.
        rustix::fs::rename(&made, &path)?;
        Ok(Self { path, listener })
    }

    /// Serves clients until it is dropped; their orders go to `orders`.
    pub async fn serve(self, orders: mpsc::Sender<Order>) {
        let places = Arc::new(Semaphore::new(CLIENTS_MAX));
        loop {
            let Ok((stream, _)) = self.listener.accept().await else {
                // Out of descriptors, most likely: others will be closed.
                tokio::time::sleep(WORKING_EVERY).await;
                continue;
            };
            let Ok(place) = Arc::clone(&places).try_acquire_owned() else { continue };
            let orders = orders.clone();
            tokio::spawn(async move {
                // A client that is gone or too slow is nobody's loss.
                let _dropped = talk(stream, &orders).await;
                drop(place);
            });
        }
    }
}

impl Drop for ControlSocket {
    fn drop(&mut self) {
        let _gone_already = std::fs::remove_file(&self.path);
    }
}

async fn talk(stream: UnixStream, orders: &mpsc::Sender<Order>) -> io::Result<()> {
    let (reader, mut writer) = stream.into_split();
    let mut reader = BufReader::new(reader);
    loop {
        let mut line = Vec::new();
        let mut limited = (&mut reader).take(REQUEST_BYTES_MAX);
        let read = tokio::time::timeout(SILENCE, limited.read_until(b'\n', &mut line)).await;
        if read.map_err(|_| io::ErrorKind::TimedOut)?? == 0 {
            return Ok(());
        }
        if line.last() != Some(&b'\n') {
            return write(&mut writer, &refusal(&"a request is one line of at most 16 KiB")).await;
        }
        let question = match question(&line) {
            Ok(question) => question,
            Err(error) => {
                write(&mut writer, &refusal(&error)).await?;
                continue;
            }
        };
        let (answer, answered) = oneshot::channel();
        let is_in_work = Arc::<AtomicBool>::default();
        let order = Order { question, is_in_work: Arc::clone(&is_in_work), answer };
        if orders.try_send(order).is_err() {
            return write(&mut writer, &refusal(&"skyfill is stopping")).await;
        }
        tokio::pin!(answered);
        let answer = loop {
            match tokio::time::timeout(WORKING_EVERY, &mut answered).await {
                Ok(answer) => break answer.unwrap_or_else(|_| refusal(&"skyfill is stopping")),
                Err(_) if is_in_work.load(Ordering::Acquire) => {
                    write(&mut writer, &json!({"working": true})).await?;
                }
                // A client that hears nothing gives up.
                Err(_) => {}
            }
        };
        write(&mut writer, &answer).await?;
    }
}

async fn write(writer: &mut (impl AsyncWriteExt + Unpin), value: &Value) -> io::Result<()> {
    let line = format!("{value}\n");
    let written = tokio::time::timeout(SILENCE, writer.write_all(line.as_bytes())).await;
    written.map_err(|_| io::ErrorKind::TimedOut)?
}

/// Understands a request.
fn question(line: &[u8]) -> Result<Question, String> {
    let request: Value =
        serde_json::from_slice(line).map_err(|_| "a request is one JSON object")?;
    let text = |key: &str| request[key].as_str().map(str::to_owned);
    match request["command"].as_str() {
        Some("status") => Ok(Question::Status),
        Some("reload") => Ok(Question::Reload),
        Some("forget") => {
            dids(&request).map(Question::Forget).ok_or_else(|| "forget takes dids".to_owned())
        }
        Some("recheck") if request["dids"].is_null() => Ok(Question::Recheck(None)),
        Some("recheck") => {
            let given = dids(&request).map(|dids| Question::Recheck(Some(dids)));
            given.ok_or_else(|| "recheck takes dids, or nothing".to_owned())
        }
        Some("retry") => match (&request["all"], text("reason"), text("did")) {
            (Value::Bool(true), None, None) => Ok(Question::Retry(Selection::All)),
            (Value::Null, Some(word), None)
                if Reason::parse(&word).is_some() || LastError::parse(&word).is_some() =>
            {
                Ok(Question::Retry(Selection::Word(word)))
            }
            (Value::Null, Some(word), None) => Err(format!("{word}: no such reason")),
            (Value::Null, None, Some(did)) => Ok(Question::Retry(Selection::Did(did))),
            _ => Err("retry takes one of all, reason and did".to_owned()),
        },
        _ => Err("the commands are status, retry, forget, recheck and reload".to_owned()),
    }
}

/// The member `dids`: texts, at least one.
fn dids(request: &Value) -> Option<Vec<String>> {
    let dids = request["dids"].as_array().filter(|dids| !dids.is_empty())?;
    dids.iter().map(|did| did.as_str().map(str::to_owned)).collect()
}

/// Why a daemon was not asked.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum AskError {
    /// Nobody listens: there is no daemon, or not yet.
    #[error("no daemon listens in this data directory")]
    Nobody,
    /// It does not answer.
    #[error("the daemon does not answer")]
    Silent,
    /// It refuses.
    #[error("{0}")]
    Refused(String),
}

/// Asks the daemon of a data directory; blocks, at most 5 s without a sign of life.
///
/// # Errors
/// [`AskError`].
pub fn ask(data_dir: &Path, request: &Value) -> Result<Value, AskError> {
    let stream = connect(data_dir)?;
    let exchange = || -> io::Result<Value> {
        stream.set_read_timeout(Some(SILENCE))?;
        stream.set_write_timeout(Some(SILENCE))?;
        (&stream).write_all(format!("{request}\n").as_bytes())?;
        let mut reader = BlockingReader::new(&stream);
        loop {
            let mut line = Vec::new();
            reader.by_ref().take(ANSWER_BYTES_MAX).read_until(b'\n', &mut line)?;
            let value: Value = serde_json::from_slice(&line)?;
            if value["working"] != true {
                return Ok(value);
            }
        }
    };
    let answer = exchange().map_err(|_| AskError::Silent)?;
    if answer["ok"] == true {
        return Ok(answer);
    }
    Err(AskError::Refused(answer["error"].as_str().unwrap_or("refused").to_owned()))
}

/// A process that is stopped still has its socket, and a full queue of it makes the kernel wait: the thread that waits ends
/// with this process.
fn connect(data_dir: &Path) -> Result<BlockingStream, AskError> {
    let (_folder, address) = address(data_dir).map_err(|_| AskError::Nobody)?;
    let (tell, told) = blocking::sync_channel(1);
    let connect = move || tell.send(BlockingStream::connect(address));
    let begun = std::thread::Builder::new().name("connect".to_owned()).spawn(connect);
    begun.map_err(|_| AskError::Silent)?;
    match told.recv_timeout(SILENCE) {
        Ok(connected) => connected.map_err(|_| AskError::Nobody),
        Err(_) => Err(AskError::Silent),
    }
}

/// The socket's address in `folder`; if its path is too long for one, through the folder's descriptor, which must be kept.
fn address(folder: &Path) -> io::Result<(Option<File>, PathBuf)> {
    let path = folder.join(SOCKET_FILE);
    if path.as_os_str().len() <= ADDRESS_BYTES_MAX {
        return Ok((None, path));
    }
    let folder = File::open(folder)?;
    let path = Path::new("/proc/self/fd").join(folder.as_raw_fd().to_string()).join(SOCKET_FILE);
    Ok((Some(folder), path))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::disallowed_methods, reason = "what tests write need not last")]

    use std::os::unix::fs::MetadataExt;

    use super::*;

    fn data_dir(name: &str) -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(name);
        std::fs::create_dir_all(path.join("spool")).unwrap();
        (folder, path)
    }

    /// A daemon that answers every question with its text.
    fn daemon(path: &Path) -> tokio::task::JoinHandle<()> {
        let socket = ControlSocket::listen(path).unwrap();
        let (orders, mut taken) = mpsc::channel(ORDERS_MAX);
        tokio::spawn(async move {
            while let Some(Order { question, answer, .. }) = taken.recv().await {
                let _gone = answer.send(json!({"ok": true, "asked": format!("{question:?}")}));
            }
        });
        tokio::spawn(socket.serve(orders))
    }

    async fn asked(path: &Path, request: Value) -> Result<Value, AskError> {
        let path = path.to_owned();
        tokio::task::spawn_blocking(move || ask(&path, &request)).await.unwrap()
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn questions_are_answered_and_the_file_is_its_owner_s_alone() {
        for name in ["d".to_owned(), "long/".repeat(60)] {
            let (_folder, path) = data_dir(&name);
            // What a dead process left is no obstacle.
            std::fs::write(path.join(SOCKET_FILE), "").unwrap();
            let serving = daemon(&path);
            let mode = std::fs::metadata(path.join(SOCKET_FILE)).unwrap().mode();
            assert_eq!(mode & 0o777, 0o600);
            let answer = asked(&path, json!({"command": "status"})).await.unwrap();
            assert_eq!(answer["asked"], "Status");
            let answer = asked(&path, json!({"command": "retry", "reason": "tls"})).await.unwrap();
            assert_eq!(answer["asked"], "Retry(Word(\"tls\"))");
            for wrong in [
                json!({"command": "retry"}),
                json!({"command": "retry", "reason": "bored"}),
                json!({"command": "retry", "all": true, "did": "x"}),
                json!({"command": "explode"}),
                json!({"command": "forget", "dids": []}),
                json!({"command": "forget", "dids": [1]}),
                json!([1]),
            ] {
                assert!(matches!(asked(&path, wrong).await, Err(AskError::Refused(_))));
            }
            serving.abort();
            assert!(serving.await.is_err());
            assert!(!path.join(SOCKET_FILE).exists());
            let nobody = asked(&path, json!({"command": "status"})).await;
            assert_eq!(nobody, Err(AskError::Nobody));
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn long_lines_are_refused_and_the_next_client_is_served() {
        let (_folder, path) = data_dir("d");
        let _serving = daemon(&path);
        let mut stream = UnixStream::connect(path.join(SOCKET_FILE)).await.unwrap();
        stream.write_all(&vec![b'x'; 20 << 10]).await.unwrap();
        let mut answer = String::new();
        // The connection ends with unread bytes, which may show as a reset after the answer.
        let _reset = stream.read_to_string(&mut answer).await;
        assert!(answer.is_empty() || answer.contains("at most 16 KiB"), "{answer}");
        asked(&path, json!({"command": "status"})).await.unwrap();
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_daemon_that_takes_nothing_up_is_given_up() {
        let (_folder, path) = data_dir("d");
        let socket = ControlSocket::listen(&path).unwrap();
        // Nobody takes the order, and nobody drops it.
        let (orders, _taken) = mpsc::channel(ORDERS_MAX);
        let _serving = tokio::spawn(socket.serve(orders));
        assert_eq!(asked(&path, json!({"command": "reload"})).await, Err(AskError::Silent));
    }

    #[tokio::test(start_paused = true)]
    async fn silent_clients_are_dropped() {
        let (_folder, path) = data_dir("d");
        let _serving = daemon(&path);
        let mut silent = UnixStream::connect(path.join(SOCKET_FILE)).await.unwrap();
        let mut rest = Vec::new();
        let begun = tokio::time::Instant::now();
        assert_eq!(silent.read_to_end(&mut rest).await.unwrap(), 0);
        assert!(begun.elapsed() >= SILENCE && begun.elapsed() < SILENCE * 2);
    }
}
