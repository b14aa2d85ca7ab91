//! An answer whose body is read in chunks: unpacked, watched, counted.
//!
//! A response holds its connection until its body is read to the end or it is dropped. Bytes that are not asked for stay in
//! the socket: a slow consumer slows the host, not the memory.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use reqwest::header::{CONTENT_ENCODING, HeaderMap};
use url::Url;

use crate::clock::Clock;
use crate::net::encoding::{Choices, UnpackError, Unpacker};
use crate::net::error::{NetError, innermost, told};
use crate::net::guard::host_name;
use crate::net::patience::{Impatience, Patience};

/// Where a transfer's speed is reported, once it is complete.
#[derive(Debug)]
pub struct Report {
    /// Everybody's measurements.
    pub choices: Arc<Mutex<Choices>>,
    /// The host asked, before redirects.
    pub host: String,
    /// Whether it was asked for gzip.
    pub asked_gzip: bool,
}

/// An answer with its headers; the body is still to come.
#[derive(Debug)]
pub struct Response {
    inner: reqwest::Response,
    url: Url,
    host: String,
    clock: Clock,
    patience: Patience,
    unpacker: Unpacker,
    wire_bytes: u64,
    body_bytes: u64,
    is_ended: bool,
    report: Option<Report>,
}

impl Response {
    /// Wraps an answer to a request for `url`.
    #[must_use]
    pub fn new(
        inner: reqwest::Response,
        url: Url,
        clock: Clock,
        patience: Patience,
        report: Option<Report>,
    ) -> Self {
        let values = inner.headers().get_all(CONTENT_ENCODING).iter();
        let unpacker = Unpacker::new(values.map(reqwest::header::HeaderValue::as_bytes));
        let host = host_name(&url);
        let (wire_bytes, body_bytes, is_ended) = (0, 0, false);
        Self {
            inner,
            url,
            host,
            clock,
            patience,
            unpacker,
            wire_bytes,
            body_bytes,
            is_ended,
            report,
        }
    }

    /// The HTTP status.
    #[must_use]
    pub fn status(&self) -> u16 {
        self.inner.status().as_u16()
    }

    /// The headers, as they came.
    #[must_use]
    pub fn headers(&self) -> &HeaderMap {
        self.inner.headers()
    }

    /// The URL that answered, after redirects.
    #[must_use]
    pub fn url(&self) -> &Url {
        &self.url
    }

    /// The address that answered.
    #[must_use]
    pub fn address(&self) -> Option<SocketAddr> {
        self.inner.remote_addr()
    }

    /// Bytes of the body as they came over the wire, so far.
    #[must_use]
    pub fn wire_bytes(&self) -> u64 {
        self.wire_bytes
    }

    /// The next bytes of the body, unpacked; nothing at its end. After an error the rest is lost.
    ///
    /// # Errors
    /// [`NetError::Idle`], [`NetError::TooSlow`], [`NetError::OverTime`] by the limits of `fetch`, [`NetError::Broken`] if it
    /// ends early, [`NetError::Encoding`] if it cannot be unpacked.
    pub async fn chunk(&mut self) -> Result<Option<Bytes>, NetError> {
        loop {
            let unpacked = match &mut self.unpacker {
                Unpacker::Unknown(words) => {
                    let what = format!("content-encoding {words} was not asked for");
                    return Err(NetError::Encoding(told(&self.host, what)));
                }
                Unpacker::Plain => None,
                Unpacker::Gzip(gunzip) => gunzip.pull().map_err(|error| self.damage(error))?,
            };
            if unpacked.is_some() {
                return Ok(self.counted(unpacked));
            }
            if self.is_ended {
                return Ok(None);
            }
            match self.read().await? {
                None => self.end()?,
                Some(bytes) => match &mut self.unpacker {
                    Unpacker::Gzip(gunzip) => gunzip.push(bytes),
                    _ => return Ok(self.counted(Some(bytes))),
                },
            }
        }
    }

    /// The next bytes from the wire, with patience.
    async fn read(&mut self) -> Result<Option<Bytes>, NetError> {
        let began = self.clock.now();
        loop {
            let silent = self.clock.now() - began;
            if let Some(verdict) = self.patience.verdict(silent) {
                return Err(self.given_up(verdict));
            }
            let look = self.patience.next_look(silent);
            // An abandoned chunk loses nothing: bytes are taken only when they are there.
            match tokio::time::timeout(look, self.inner.chunk()).await {
                Err(_look_again) => {}
                Ok(Err(error)) => {
                    let what = format!("the answer broke off: {}", innermost(&error));
                    return Err(NetError::Broken(told(&self.host, what)));
                }
                Ok(Ok(bytes)) => {
                    let count = bytes.as_ref().map_or(0, |bytes| bytes.len() as u64);
                    self.patience.received(self.clock.now() - began, count);
                    self.wire_bytes += count;
                    return Ok(bytes);
                }
            }
        }
    }

    /// The wire is done; so must the packing be.
    fn end(&mut self) -> Result<(), NetError> {
        self.is_ended = true;
        if let Unpacker::Gzip(gunzip) = &self.unpacker {
            gunzip.finish().map_err(|error| self.damage(error))?;
        }
        if let Some(report) = self.report.take().filter(|_| self.inner.status().is_success()) {
            let mut choices = report.choices.lock().unwrap_or_else(PoisonError::into_inner);
            let host_time = self.patience.host_time();
            choices.measured(&report.host, report.asked_gzip, self.body_bytes, host_time);
        }
        Ok(())
    }

    fn counted(&mut self, bytes: Option<Bytes>) -> Option<Bytes> {
        self.body_bytes += bytes.as_ref().map_or(0, |bytes| bytes.len() as u64);
        bytes
    }

    fn damage(&self, error: UnpackError) -> NetError {
        let text = told(&self.host, error);
        match error {
            UnpackError::Truncated => NetError::Broken(text),
            UnpackError::Damaged | UnpackError::Bomb => NetError::Encoding(text),
        }
    }

    fn given_up(&self, verdict: Impatience) -> NetError {
        let after = format!("after {} bytes of the answer", self.wire_bytes);
        match verdict {
            Impatience::Idle => NetError::Idle(told(&self.host, format!("silent {after}"))),
            Impatience::TooSlow => NetError::TooSlow(told(&self.host, format!("too slow {after}"))),
            Impatience::OverTime => {
                NetError::OverTime(told(&self.host, format!("out of time {after}")))
            }
        }
    }
}
