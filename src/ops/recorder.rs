//! Recorder: collects what `telemetry` says and writes it as Prometheus' text. Only the binary installs one: a library does not
//! decide for its program where figures go.

use std::time::Duration;

use metrics::SetRecorderError;
use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder, PrometheusHandle};

use crate::telemetry::{self, BUCKETS};

/// Histograms keep each sample until somebody reads or tidies; so often that a busy daemon holds some thousands at most.
const UPKEEP: Duration = Duration::from_secs(5);

/// Why there is no recorder.
#[derive(Debug, thiserror::Error)]
pub enum RecorderError {
    /// The buckets are not buckets.
    #[error("metrics: {0}")]
    Buckets(#[from] BuildError),
    /// The program has a recorder already.
    #[error("metrics: another recorder is installed")]
    Installed,
}

/// The installed recorder; cheap to clone.
#[derive(Clone, Debug)]
pub struct Recorder(PrometheusHandle);

impl Recorder {
    /// Installs the process' recorder; from then on everything counts.
    ///
    /// # Errors
    /// [`RecorderError`].
    pub fn install() -> Result<Self, RecorderError> {
        let mut builder = PrometheusBuilder::new();
        for (name, buckets) in BUCKETS {
            builder = builder.set_buckets_for_metric(Matcher::Full(name.to_owned()), buckets)?;
        }
        let recorder = builder.build_recorder();
        let handle = recorder.handle();
        let installed = metrics::set_global_recorder(recorder);
        installed.map_err(|_: SetRecorderError<_>| RecorderError::Installed)?;
        telemetry::describe();
        Ok(Self(handle))
    }

    /// Every series as text, version 0.0.4 of the format.
    #[must_use]
    pub fn render(&self) -> String {
        self.0.render()
    }

    /// Keeps memory flat while nobody asks; never ends by itself.
    pub async fn upkeep(self) {
        loop {
            tokio::time::sleep(UPKEEP).await;
            self.0.run_upkeep();
        }
    }
}
