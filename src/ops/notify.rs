//! What systemd is told: ready, reloading, a status line, stopping, and a heartbeat; without systemd, nobody is.
//!
//! The watchdog is fed only while every stage and the ledger answer: a process that lives but does no work is restarted. A
//! message that cannot be sent is no reason to stop.

use std::sync::mpsc::{SyncSender, sync_channel};
use std::time::Duration;

use sd_notify::NotifyState;

/// Pings in one watchdog period: one that is late, or one heartbeat that is slow, is not the end.
const PINGS_A_PERIOD: u32 = 3;

/// Messages that may wait while systemd does not read; later ones are dropped.
const WAITING_MAX: usize = 64;

/// One message.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Said {
    Ready(String),
    Reloading(String),
    Status(String),
    Stopping(String),
    Watchdog,
}

/// Tells systemd, from a thread of its own: a service manager that does not read makes nobody wait. Clones share the thread.
#[derive(Clone, Debug)]
pub struct Notifier(Option<SyncSender<Said>>);

impl Notifier {
    /// To the systemd that started this process, if one did.
    #[must_use]
    pub fn start() -> Self {
        Self::over(|said| {
            if let Err(error) = send(&said) {
                tracing::debug!(%error, "systemd could not be told");
            }
        })
    }

    fn over(mut send: impl FnMut(Said) + Send + 'static) -> Self {
        let (said, heard) = sync_channel(WAITING_MAX);
        let tell = move || heard.into_iter().for_each(&mut send);
        let started = std::thread::Builder::new().name("notify".to_owned()).spawn(tell);
        Self(started.is_ok().then_some(said))
    }

    /// The start, or a reload, is over.
    pub fn ready(&self, status: &str) {
        self.say(Said::Ready(line(status)));
    }

    /// A reload begins.
    pub fn reloading(&self, status: &str) {
        self.say(Said::Reloading(line(status)));
    }

    /// What `systemctl status` shows.
    pub fn status(&self, text: &str) {
        self.say(Said::Status(line(text)));
    }

    /// The end begins.
    pub fn stopping(&self, status: &str) {
        self.say(Said::Stopping(line(status)));
    }

    fn say(&self, said: Said) {
        // Nobody there, or nobody who reads.
        let _untold = self.0.as_ref().map(|to| to.try_send(said));
    }

    /// Feeds the watchdog, if there is one, as long as `heartbeat` finds nobody silent. Never ends.
    pub async fn feed<B: Future<Output = Result<(), &'static str>>>(
        self,
        heartbeat: impl Fn() -> B,
    ) {
        match sd_notify::watchdog_enabled() {
            Some(period) => {
                let ping = || self.say(Said::Watchdog);
                ping_while(period / PINGS_A_PERIOD, heartbeat, ping).await;
            }
            None => std::future::pending().await,
        }
    }
}

fn send(said: &Said) -> std::io::Result<()> {
    match said {
        Said::Ready(status) => {
            sd_notify::notify(&[NotifyState::Ready, NotifyState::Status(status)])
        }
        Said::Status(status) => sd_notify::notify(&[NotifyState::Status(status)]),
        Said::Stopping(status) => {
            sd_notify::notify(&[NotifyState::Stopping, NotifyState::Status(status)])
        }
        Said::Watchdog => sd_notify::notify(&[NotifyState::Watchdog]),
        Said::Reloading(status) => {
            let now = NotifyState::monotonic_usec_now()?;
            sd_notify::notify(&[NotifyState::Reloading, now, NotifyState::Status(status)])
        }
    }
}

async fn ping_while<B: Future<Output = Result<(), &'static str>>>(
    every: Duration,
    heartbeat: impl Fn() -> B,
    ping: impl Fn(),
) {
    loop {
        match heartbeat().await {
            Ok(()) => ping(),
            Err(part) => tracing::error!(part, "no heartbeat, the watchdog is not fed"),
        }
        tokio::time::sleep(every).await;
    }
}

/// A line break would end the status and begin another message.
fn line(text: &str) -> String {
    text.split(['\n', '\r', '\0']).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_watchdog_is_fed_only_while_everybody_answers() {
        let (pings, is_ill) = (Cell::new(0), Cell::new(false));
        let heartbeat = || {
            let is_ill = is_ill.get();
            async move { if is_ill { Err("parser") } else { Ok(()) } }
        };
        let feeding = ping_while(Duration::from_secs(20), heartbeat, || pings.set(pings.get() + 1));
        tokio::pin!(feeding);
        let minute = Duration::from_secs(59);
        assert!(tokio::time::timeout(minute, &mut feeding).await.is_err());
        assert_eq!(pings.get(), 3);
        is_ill.set(true);
        assert!(tokio::time::timeout(minute, &mut feeding).await.is_err());
        assert_eq!(pings.get(), 3);
        is_ill.set(false);
        assert!(tokio::time::timeout(minute, &mut feeding).await.is_err());
        assert_eq!(pings.get(), 6);
    }

    #[test]
    fn a_systemd_that_does_not_read_makes_nobody_wait() {
        let (read, wait) = sync_channel::<()>(0);
        let (told, heard) = sync_channel(1_000);
        let notifier = Notifier::over(move |said| {
            let _reads = wait.recv();
            told.send(said).unwrap();
        });
        notifier.ready("up");
        for number in 0..1_000 {
            notifier.status(&format!("{number}"));
        }
        // From now on it reads.
        drop(read);
        drop(notifier);
        let heard: Vec<Said> = heard.into_iter().collect();
        assert_eq!(heard[..2], [Said::Ready("up".into()), Said::Status("0".into())]);
        assert!(heard.len() <= WAITING_MAX + 2, "{}", heard.len());
    }

    #[test]
    fn a_status_is_one_line() {
        assert_eq!(line("a\nREADY=1\r\nb"), "a READY=1  b");
    }
}
