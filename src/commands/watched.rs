//! What monitoring sees of the daemon: the recorder, the endpoint of `metrics.listen`, and the word of `/readyz`.

use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};

use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::commands::error::CommandError;
use crate::ops::http::{self, Readiness};
use crate::ops::recorder::Recorder;
use crate::pipeline::sampler::Sampler;
use crate::store::health::Condition;

/// The endpoint while it serves, from before the data directory is opened until after it is closed. Dropped, it ends.
#[derive(Default)]
pub struct Watched {
    readiness: watch::Sender<Readiness>,
    sampler: Arc<OnceLock<Sampler>>,
    tasks: Vec<JoinHandle<()>>,
}

impl Watched {
    /// Takes the address and serves; without an address nothing is counted and nobody is answered.
    ///
    /// # Errors
    /// [`CommandError::Listen`] if the address cannot be taken, [`CommandError::Internal`] if there is a recorder already.
    pub async fn serve(listen: Option<SocketAddr>) -> Result<Self, CommandError> {
        let mut watched = Self::default();
        let Some(listen) = listen else { return Ok(watched) };
        let listener = http::bind(listen).await?;
        let address = listener.local_addr().unwrap_or(listen);
        let recorder = Recorder::install();
        let recorder = recorder.map_err(|error| CommandError::Internal(error.to_string()))?;
        let (sampler, rendered) = (Arc::clone(&watched.sampler), recorder.clone());
        let render = move || {
            let (sampler, recorder) = (sampler.get().cloned(), rendered.clone());
            async move {
                if let Some(sampler) = sampler {
                    sampler.sample().await;
                }
                recorder.render()
            }
        };
        let readiness = watched.readiness.subscribe();
        let serving = http::serve_on(listener, readiness, render, std::future::pending());
        watched.tasks = vec![tokio::spawn(serving), tokio::spawn(recorder.upkeep())];
        tracing::info!(listen = %address, "serving metrics");
        Ok(watched)
    }

    /// From now on the gauges are read from here.
    pub fn sample(&self, sampler: Sampler) {
        // It is told once: a daemon has one pipeline.
        let _first = self.sampler.set(sampler);
    }

    /// What `/readyz` says from now on.
    pub fn tell(&self, readiness: Readiness) {
        self.readiness.send_replace(readiness);
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

/// How a daemon stands that goes on by itself.
#[must_use]
pub fn readiness(is_loaded: bool, condition: &Condition) -> Readiness {
    match () {
        () if condition.failed.is_some() => Readiness::Failed,
        () if !condition.full.is_empty() => Readiness::DiskFull,
        () if !is_loaded => Readiness::Starting,
        () => Readiness::Ready,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::error::Lack;

    #[test]
    fn it_is_ready_once_lists_are_loaded_and_while_there_is_space() {
        let mut condition = Condition::default();
        assert_eq!(readiness(false, &condition), Readiness::Starting);
        assert_eq!(readiness(true, &condition), Readiness::Ready);
        condition.full.insert("ledger", (Lack::Space, "full".to_owned()));
        assert_eq!(readiness(true, &condition), Readiness::DiskFull);
        assert_eq!(readiness(false, &condition), Readiness::DiskFull);
    }
}
