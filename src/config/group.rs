//! `source.group`: the consumer group that shares `<topics>.dids`, how it is written, and what it needs beside it.

use crate::config::read::{self, Read, expected};
use crate::config::settings::{Settings, SinkForm};
use crate::config::written::Value;

/// Bytes of a group's name.
const NAME_BYTES_MAX: usize = 100;

/// The name of a group; nothing is none.
///
/// # Errors
/// What no group may be called.
pub fn group(value: &Value) -> Read<Option<String>> {
    let what = "a consumer group such as \"skyfill\", or \"\" for none";
    let written = read::text(value, what)?;
    if written.is_empty() {
        return Ok(None);
    }
    let is_good = |it: u8| it.is_ascii_alphanumeric() || b"._-".contains(&it);
    if written.len() <= NAME_BYTES_MAX && written.bytes().all(is_good) {
        return Ok(Some(written.to_owned()));
    }
    let hint =
        format!("letters, digits, dots, dashes and underscores, at most {NAME_BYTES_MAX} of them");
    Err(expected(value, what, &hint))
}

/// What is wrong with a group and `settings` together.
#[must_use]
pub fn conflict(settings: &Settings) -> Option<&'static str> {
    let source = &settings.source;
    source.group.as_ref()?;
    if !source.files.is_empty() || !source.dids.is_empty() {
        return Some(
            "a worker takes its accounts from its group's topic: take source.files and source.dids out, and give their accounts to `skyfill enqueue`",
        );
    }
    if settings.refresh.every.is_some() {
        return Some(
            "a worker does each account that it is asked for once: take refresh.every out, and ask for accounts again with `skyfill enqueue`",
        );
    }
    match settings.sinks.iter().filter(|sink| sink.form == SinkForm::Kafka).count() {
        1 => None,
        0 => Some("needs a sink with type = \"kafka\": its cluster has the topic of the group"),
        _ => Some(
            "needs exactly one sink with type = \"kafka\": its cluster has the topic of the group",
        ),
    }
}

/// What this build lacks for a group.
#[must_use]
pub fn missing_feature(settings: &Settings) -> Option<&'static str> {
    let is_missing = settings.source.group.is_some() && !cfg!(feature = "kafka");
    is_missing.then_some("source.group: needs a build with --features kafka")
}
