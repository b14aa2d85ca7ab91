//! What systemd is told: ready, reloading, a status line, stopping, and a heartbeat; without systemd, nobody is.
//!
//! The watchdog is fed only while every stage and the ledger answer: a process that lives but does no work is restarted. A
//! message that cannot be sent is no reason to stop.

use std::time::Duration;

use sd_notify::NotifyState;

/// Pings in one watchdog period: one that is late, or one heartbeat that is slow, is not the end.
const PINGS_A_PERIOD: u32 = 3;

/// The start, or a reload, is over.
pub fn ready(status: &str) {
    let status = line(status);
    tell(&[NotifyState::Ready, NotifyState::Status(&status)]);
}

/// A reload begins.
pub fn reloading(status: &str) {
    let status = line(status);
    let mut states = vec![NotifyState::Reloading, NotifyState::Status(&status)];
    states.extend(NotifyState::monotonic_usec_now().ok());
    tell(&states);
}

/// What `systemctl status` shows.
pub fn status(text: &str) {
    tell(&[NotifyState::Status(&line(text))]);
}

/// The end begins.
pub fn stopping(status: &str) {
    let status = line(status);
    tell(&[NotifyState::Stopping, NotifyState::Status(&status)]);
}

/// Feeds the watchdog, if there is one, as long as `heartbeat` finds nobody silent. Never ends.
pub async fn feed<B: Future<Output = Result<(), &'static str>>>(heartbeat: impl Fn() -> B) {
    match sd_notify::watchdog_enabled() {
        Some(period) => {
            let ping = || tell(&[NotifyState::Watchdog]);
            ping_while(period / PINGS_A_PERIOD, heartbeat, ping).await;
        }
        None => std::future::pending().await,
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

fn tell(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::debug!(%error, "systemd could not be told");
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
    fn a_status_is_one_line() {
        assert_eq!(line("a\nREADY=1\r\nb"), "a READY=1  b");
    }
}
