//! The part of `skyfill check` that looks at the sinks: what this build can do, and the places that they write to.
//!
//! ```text
//!  feature compiled in           an error, also with --no-environment
//!  directory ours and writable   an error; one that is not there yet must be possible to make
//!  bucket                        no rights or no bucket: an error; no answer: a warning
//!  topics                        no rights, or one that cannot be used: an error with the command; no answer, or one that
//!                                deletes rows in time: a warning
//! ```
//! Nothing is written anywhere.

use std::path::Path;

use crate::config::group;
use crate::config::settings::{Settings, SinkPlace};
#[cfg(feature = "kafka")]
use crate::domain::filter::TypeEntry;
use crate::sink::files::{look_at, missing_feature, place_refusal};
use crate::store::error::StoreError;
#[cfg(feature = "kafka")]
use crate::transform::REJECTED_LABEL;

/// What is wrong with a sink.
#[derive(Debug, PartialEq, Eq)]
pub enum Wrong {
    /// An error.
    Error(String),
    /// An error of permission.
    Permission(String),
    /// It may be better when it matters.
    Warning(String),
}

/// What this build cannot do.
#[must_use]
pub fn features(settings: &Settings) -> Vec<Wrong> {
    let group = group::missing_feature(settings).map(str::to_owned);
    let sinks = settings.sinks.iter().filter_map(missing_feature);
    group.into_iter().chain(sinks).map(Wrong::Error).collect()
}

/// What is wrong with the places of the sinks.
#[must_use]
pub fn environment(settings: &Settings) -> Vec<Wrong> {
    let mut wrong = Vec::new();
    for sink in &settings.sinks {
        let named = |text: &str| format!("sink.{}: {text}", sink.name);
        match &sink.place {
            SinkPlace::Folder(path) => {
                let refused = place_refusal(path).or_else(|| unwritable(path));
                wrong.extend(refused.map(|text| Wrong::Permission(named(&text))));
            }
            SinkPlace::Bucket(bucket) => {
                wrong.extend(reach(&sink.name, look_at(bucket).map(|()| Vec::new())));
            }
            #[cfg(feature = "kafka")]
            SinkPlace::Broker(broker) => {
                let types = settings.filter.types.iter().map(TypeEntry::label);
                let labels: Vec<String> = types.chain([REJECTED_LABEL.to_owned()]).collect();
                wrong.extend(reach(&sink.name, crate::sink::kafka::look_at(broker, &labels)));
            }
            #[cfg(not(feature = "kafka"))]
            SinkPlace::Broker(_) => {}
        }
    }
    wrong
}

fn unwritable(path: &Path) -> Option<String> {
    use rustix::fs::Access;
    let existing = path.ancestors().find(|part| part.exists());
    let existing = existing.filter(|it| !it.as_os_str().is_empty()).unwrap_or(Path::new("."));
    if !existing.is_dir() {
        return Some(format!("{}: is not a directory", existing.display()));
    }
    rustix::fs::access(existing, Access::WRITE_OK | Access::EXEC_OK).err().map(|_| {
        let user = rustix::process::geteuid().as_raw();
        format!("{}: user {user} may not write to it", existing.display())
    })
}

fn reach(name: &str, looked: Result<Vec<String>, StoreError>) -> Vec<Wrong> {
    let named = |text: String| format!("sink.{name}: {text}");
    match looked {
        Ok(odd) => odd.into_iter().map(|text| Wrong::Warning(named(text))).collect(),
        Err(StoreError::Permission(text)) => vec![Wrong::Permission(named(text))],
        Err(StoreError::Busy { source, .. }) => vec![Wrong::Warning(named(source.to_string()))],
        Err(error) => vec![Wrong::Error(named(error.to_string()))],
    }
}
