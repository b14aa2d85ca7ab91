//! Pages of a directory's `/export`: `?count=1000&after=TIME`, oldest first, one JSON object a line.
//!
//! takes   an address, the pace of the directory
//! gives   page after page, each tried again while the directory refuses or fails, until its patience is over
//!
//! `after` means later than, and operations of the same millisecond may be parted by the border of two pages. So the next page
//! begins a millisecond earlier than it would have to, and what comes twice says the same twice. A page that is not full is the
//! last one.

use std::time::Duration;

use url::Url;

use crate::clock::Clock;
use crate::domain::verdict::HostSignal;
use crate::net::answer;
use crate::net::body::read_capped;
use crate::net::client::{Client, Request, Trust};
use crate::net::pace::{HostPace, PaceLimits, Turn};
use crate::seed::Chance;

/// Operations a page: what the directory gives at most.
const PAGE_LINES: usize = 1_000;

/// Bytes of a page: an operation has about 1 KB, and none has more than 7,500 bytes.
const PAGE_BYTES_MAX: usize = 16 << 20;

/// Until the pace is asked again where it names no time.
const MOMENT: Duration = Duration::from_millis(100);

/// Where the pages are.
pub struct Pages {
    client: Client,
    url: Url,
    trust: Trust,
    pace: HostPace,
    clock: Clock,
    chance: Chance,
    /// Operations later than this are wanted, milliseconds since 1970.
    after_ms: Option<i64>,
    asked_ms: i64,
}

impl Pages {
    /// The pages at `url`; `trust` says whether the operator named its host as a directory.
    #[must_use]
    pub fn new(
        client: Client,
        url: &Url,
        trust: Trust,
        limits: PaceLimits,
        clock: &Clock,
        chance: &Chance,
    ) -> Self {
        let pace = HostPace::new(limits, clock.now());
        let (clock, chance) = (clock.clone(), chance.clone());
        Self { client, url: url.clone(), trust, pace, clock, chance, after_ms: None, asked_ms: 0 }
    }

    /// The next page.
    ///
    /// # Errors
    /// What the directory last did, once its patience is over; at once where it will never do.
    pub async fn next(&mut self) -> Result<String, String> {
        loop {
            match self.pace.take(self.clock.now()) {
                Turn::Go { .. } => {}
                Turn::At(at) => {
                    tokio::time::sleep_until(at).await;
                    continue;
                }
                Turn::Busy => {
                    tokio::time::sleep(MOMENT).await;
                    continue;
                }
            }
            self.asked_ms = self.clock.wall_ms();
            let asked = self.ask().await;
            let signal = match &asked {
                Ok((_, signal)) | Err((_, signal)) => signal,
            };
            self.pace.note(signal, self.clock.now(), &self.chance);
            self.pace.give_back();
            let why = match asked {
                Ok((page, _)) => return Ok(page),
                Err((why, HostSignal::NotAsked)) => return Err(why),
                Err((why, _)) => why,
            };
            if self.pace.patience_over(self.clock.now()).is_some() {
                return Err(why);
            }
            tracing::warn!(%why, "a page of the export could not be had, it is tried again");
        }
    }

    async fn ask(&self) -> Result<(String, HostSignal), (String, HostSignal)> {
        let request =
            Request { trust: self.trust, accept: "application/jsonlines", is_transfer: false };
        let url = self.page_url();
        let told = |error: crate::net::error::NetError| {
            let signal = match (error.host_signal(), error.last_error()) {
                // A page that breaks off is of no use, although something came.
                (HostSignal::Usable(_), Some(error)) => HostSignal::Fault(error),
                (signal, _) => signal,
            };
            (error.to_string(), signal)
        };
        let response = self.client.get(&url, &request).await.map_err(told)?;
        let (status, headers) = (response.status(), response.headers().clone());
        let body = read_capped(response, PAGE_BYTES_MAX).await.map_err(told)?;
        let start = if status == 200 { &[] } else { body.as_slice() };
        let signal = answer::signal(status, &headers, start, self.clock.wall_ms());
        match (status, signal) {
            (200, HostSignal::Usable(_)) => match String::from_utf8(body) {
                Ok(page) => Ok((page, signal)),
                Err(_) => Err((format!("{url}: a page that is not UTF-8"), HostSignal::NotAsked)),
            },
            // Whatever else it says, it has no such pages.
            (_, HostSignal::Usable(_)) => {
                Err((format!("{url}: {}", answer::evidence(status, &body)), HostSignal::NotAsked))
            }
            _ => Err((format!("{url}: {}", answer::evidence(status, &body)), signal)),
        }
    }

    fn page_url(&self) -> Url {
        let mut url = self.url.clone();
        url.query_pairs_mut().append_pair("count", &PAGE_LINES.to_string());
        if let Some(at) = self.after_ms.and_then(chrono::DateTime::from_timestamp_millis) {
            let text = at.to_rfc3339_opts(chrono::SecondsFormat::Millis, true);
            url.query_pairs_mut().append_pair("after", &text);
        }
        url
    }

    /// Moves on behind `page`, whose newest operation was made at `newest_ms`; says whether there may be another.
    ///
    /// # Errors
    /// Where it would go round in a circle.
    pub fn advance(&mut self, page: &str, newest_ms: Option<i64>) -> Result<bool, String> {
        if page.lines().count() < PAGE_LINES {
            return Ok(false);
        }
        let before = self.after_ms.unwrap_or(i64::MIN);
        let next = newest_ms.and_then(|newest| {
            [newest.saturating_sub(1), newest].into_iter().find(|next| *next > before)
        });
        match next {
            Some(next) => self.after_ms = Some(next),
            None => return Err(format!("{}: its pages do not move on", self.url)),
        }
        Ok(true)
    }

    /// When the last page was asked for, milliseconds since 1970.
    #[must_use]
    pub const fn asked_ms(&self) -> i64 {
        self.asked_ms
    }
}
