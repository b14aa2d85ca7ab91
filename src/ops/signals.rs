//! Signals: TERM and the first INT ask for a clean end, a second one forces it; HUP asks the daemon to reload, USR1 for its
//! progress.

use std::sync::Arc;

use futures::StreamExt;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGUSR1};
use signal_hook_tokio::Signals;

/// Resolves at the first TERM or INT; from then on a second one ends the process at once: what is in flight is then given
/// back by the next start, as after any crash. It then exits with `forced_code`.
///
/// # Errors
/// The system's, if signals cannot be listened to.
pub fn stop_requested(forced_code: u8) -> std::io::Result<impl Future<Output = ()> + Send> {
    let mut signals = Signals::new([SIGTERM, SIGINT])?;
    Ok(async move {
        if signals.next().await.is_none() {
            return std::future::pending().await;
        }
        force_on_next(signals, forced_code);
    })
}

/// Lets a write beyond the limit on file sizes (`RLIMIT_FSIZE`) fail like one on a full disk: by itself that signal ends the
/// process.
///
/// # Errors
/// The system's, if signals cannot be listened to.
pub fn survive_file_size_limit() -> std::io::Result<()> {
    let number = rustix::process::Signal::XFSZ.as_raw();
    // Nobody reads the flag: the failed write says it all.
    signal_hook::flag::register(number, Arc::default()).map(drop)
}

/// What a signal asks of the daemon.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asked {
    /// Read configuration and lists again.
    Reload,
    /// Say how far the work is.
    Report,
    /// Stop.
    Stop,
}

/// The daemon's signals, from the moment they are listened to: none of them ends the process by itself any more.
pub struct DaemonSignals(Signals);

impl DaemonSignals {
    /// Listens.
    ///
    /// # Errors
    /// The system's, if signals cannot be listened to.
    pub fn listen() -> std::io::Result<Self> {
        Ok(Self(Signals::new([SIGTERM, SIGINT, SIGHUP, SIGUSR1])?))
    }

    /// The next one.
    pub async fn next(&mut self) -> Asked {
        match self.0.next().await {
            Some(SIGHUP) => Asked::Reload,
            Some(SIGUSR1) => Asked::Report,
            Some(_) => Asked::Stop,
            None => std::future::pending().await,
        }
    }

    /// The end has begun: another TERM or INT forces it, with `forced_code`; the others mean nothing any more.
    pub fn stopping(self, forced_code: u8) {
        force_on_next(self.0, forced_code);
    }
}

fn force_on_next(mut signals: Signals, forced_code: u8) {
    tracing::info!("stopping: what is in flight is finished or given back; again to force");
    tokio::spawn(async move {
        while let Some(signal) = signals.next().await {
            if matches!(signal, SIGTERM | SIGINT) {
                tracing::warn!("forced to stop");
                std::process::exit(i32::from(forced_code));
            }
        }
    });
}
