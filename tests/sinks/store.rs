//! An S3 server on loopback, and a gate before it that can be shut.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use crate::read::python;
use crate::support::proc::{Running, Skyfill};

const PATIENCE: Duration = Duration::from_secs(60);

/// Objects in memory; ends with this.
pub struct Store {
    running: Running,
    pub address: SocketAddr,
}

impl Store {
    /// One with the bucket `bucket` in it, or `None` where there is no server; `environment` is the server's.
    pub fn start(environment: &[(&str, &str)]) -> Option<Self> {
        let server = python()?.with_file_name("moto_server");
        let mut server = Skyfill::new(server);
        for (name, value) in environment {
            server = server.env(name, value);
        }
        let running = server.spawn(&["-H", "127.0.0.1", "-p", "0"]);
        assert!(running.wait_for("Press CTRL+C", PATIENCE), "{}", running.stderr());
        let told = running.stderr();
        let (_, rest) = told.split_once("Running on http://").unwrap();
        let address: String =
            rest.chars().take_while(|it| it.is_ascii_digit() || ".:".contains(*it)).collect();
        let store = Self { running, address: address.parse().unwrap() };
        let mut stream = TcpStream::connect(store.address).unwrap();
        let head = "PUT /bucket HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
        stream.write_all(head.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        Some(store)
    }

    /// Copies every object below `prefix` into `folder`; gives how many were sent in parts.
    pub fn fetch(&self, prefix: &str, folder: &Path) -> usize {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/sinks/fetch.py");
        let mut command = Command::new(python().unwrap());
        let endpoint = format!("http://{}", self.address);
        let output = command.arg(script).args([&endpoint, prefix]).arg(folder).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap().trim().parse().unwrap()
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        self.running.kill();
    }
}

/// Passes connections on while it is open; shut, it drops them at once, also those that are there.
pub struct Gate {
    pub address: SocketAddr,
    is_open: Arc<AtomicBool>,
    dropped: Arc<AtomicU64>,
    /// Bytes that may still pass before it shuts by itself.
    left: Arc<AtomicU64>,
}

impl Gate {
    pub fn before(store: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let gate = Self {
            address,
            is_open: Arc::new(AtomicBool::new(true)),
            dropped: Arc::default(),
            left: Arc::new(AtomicU64::new(u64::MAX)),
        };
        let (is_open, dropped, left) =
            (Arc::clone(&gate.is_open), Arc::clone(&gate.dropped), Arc::clone(&gate.left));
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let Ok(stream) = stream else { return };
                if !is_open.load(Ordering::Acquire) {
                    dropped.fetch_add(1, Ordering::AcqRel);
                    continue;
                }
                let onward = TcpStream::connect(store).unwrap();
                for (from, to) in
                    [(stream.try_clone().unwrap(), onward.try_clone().unwrap()), (onward, stream)]
                {
                    let (is_open, left) = (Arc::clone(&is_open), Arc::clone(&left));
                    std::thread::spawn(move || pass(from, to, &is_open, &left));
                }
            }
        });
        gate
    }

    pub fn set_open(&self, is_open: bool) {
        self.left.store(u64::MAX, Ordering::Release);
        self.is_open.store(is_open, Ordering::Release);
    }

    /// Shuts once this many more bytes have passed, in the middle of whatever that is.
    pub fn shut_after(&self, bytes: u64) {
        self.left.store(bytes, Ordering::Release);
    }

    /// Connections that were dropped.
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Acquire)
    }

    pub fn is_shut(&self) -> bool {
        !self.is_open.load(Ordering::Acquire)
    }
}

fn pass(mut from: TcpStream, mut to: TcpStream, is_open: &AtomicBool, left: &AtomicU64) {
    let mut buffer = [0; 16 << 10];
    loop {
        let read: io::Result<usize> = from.read(&mut buffer);
        let Ok(bytes @ 1..) = read else { break };
        let fewer = |left: u64| {
            let is_counted = left != u64::MAX;
            Some(if is_counted { left.saturating_sub(bytes as u64) } else { left })
        };
        if left.fetch_update(Ordering::AcqRel, Ordering::Acquire, fewer) == Ok(0) {
            is_open.store(false, Ordering::Release);
        }
        if !is_open.load(Ordering::Acquire) || to.write_all(&buffer[..bytes]).is_err() {
            break;
        }
    }
    let _gone = (from.shutdown(Shutdown::Both), to.shutdown(Shutdown::Both));
}

/// A file of credentials that the server takes.
pub fn credentials(folder: &Path) -> PathBuf {
    let path = folder.join("credentials");
    let text = "[default]\naws_access_key_id = key\naws_secret_access_key = secret\n";
    std::fs::write(&path, text).unwrap();
    path
}
