//! The sinks of a configuration, each as its type wants it.

use std::path::Path;

use crate::clock::Clock;
use crate::config::settings::{SinkPlace, SinkSettings};
use crate::sink::{Sink, StoreError, files};
use crate::store::follow::NamedSink;

/// The sinks of `settings`, not opened yet: nothing is asked of a disk or a network before they begin. `scratch` is a folder for
/// what is written before it is sent. A worker of a group brings the sink to its brokers itself (`is_worker`).
///
/// # Errors
/// [`StoreError::Config`] for what this build cannot do.
pub fn configured(
    settings: &[SinkSettings],
    scratch: &Path,
    (clock, is_worker): (&Clock, bool),
) -> Result<Vec<NamedSink>, StoreError> {
    let named = |settings: &SinkSettings| {
        if let Some(text) = files::missing_feature(settings) {
            return Err(StoreError::Config(text));
        }
        let sink: Box<dyn Sink> = match &settings.place {
            SinkPlace::Folder(_) | SinkPlace::Bucket(_) => {
                Box::new(files::configured(settings, scratch, clock)?)
            }
            #[cfg(feature = "kafka")]
            SinkPlace::Broker(broker) => {
                let (name, clock) = (settings.name.clone(), clock.clone());
                Box::new(super::kafka::KafkaSink::new(name, broker.clone(), settings.zstd, clock))
            }
            #[cfg(not(feature = "kafka"))]
            SinkPlace::Broker(_) => return Err(StoreError::sink("a build without Kafka")),
        };
        Ok(NamedSink { name: settings.name.clone(), sink, lag_max: Some(settings.lag_max) })
    };
    let is_ours = |it: &&SinkSettings| !(is_worker && matches!(it.place, SinkPlace::Broker(_)));
    settings.iter().filter(is_ours).map(named).collect()
}
