//! Signals: TERM and the first INT ask for a clean end, a second one forces it.

use futures::StreamExt;
use signal_hook::consts::{SIGINT, SIGTERM};
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
        tracing::info!("stopping: what is in flight is finished or given back; again to force");
        tokio::spawn(async move {
            if signals.next().await.is_some() {
                tracing::warn!("forced to stop");
                std::process::exit(i32::from(forced_code));
            }
        });
    })
}
