//! The summary of a run: text for people, one JSON object for programs (DESIGN section 7, "Summary and status").
//!
//! It is read from the ledger, account by account, and written while it is read: a list of ten million accounts is never held.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::Path;
use std::time::Duration;

use indicatif::{HumanBytes, HumanCount};
use serde_json::{Value, json};

use crate::clock::wall_text;
use crate::domain::ledger::State;
use crate::pipeline::data::PSEUDONYMS_NOTE;
use crate::store::error::StoreError;
use crate::store::ledger_lists::{Counts, Decided, Reader, Report};
use crate::store::ledger_rows::RunCounts;
use crate::store::ledger_sums::Sums;

/// Forgotten accounts that the text names; the JSON names them all.
const FORGOTTEN_NAMED_MAX: usize = 20;

/// What a summary says beside the ledger.
#[derive(Clone, Debug)]
pub struct Run {
    /// How long the run took.
    pub took: Duration,
    /// What it decided.
    pub decided: RunCounts,
    /// When it ended, ledger milliseconds.
    pub ended_ms: i64,
    /// It was asked to stop before everything was decided.
    pub interrupted: bool,
    /// Something other than an account failed.
    pub failed: bool,
    /// It was asked to refresh.
    pub refreshes: bool,
    /// Labels of the exported types, in configured order.
    pub labels: Vec<String>,
    /// Name of the key of the pseudonyms in the queues, if there are any.
    pub pseudonyms: Option<String>,
}

/// The service's status code: all done, some not, or failed.
#[must_use]
pub fn status_code(counts: &Counts, run: &Run) -> u16 {
    match () {
        () if run.failed => 500,
        () if counts.parked > 0 || counts.pending() > 0 => 207,
        () => 200,
    }
}

/// Writes the summary as one JSON object.
///
/// # Errors
/// [`StoreError`] of the ledger; of `out`, named `stdout`.
pub fn write_json(reader: &Reader, run: &Run, out: &mut dyn Write) -> Result<(), StoreError> {
    let (counts, sums) = (reader.counts()?, reader.sums(&run.labels)?);
    let mut accounts = json!({"done": counts.done, "parked": counts.parked});
    if counts.forgotten > 0 {
        accounts["forgotten"] = json!(counts.forgotten);
    }
    let mut head = json!({
        "service": "backfill_sync",
        "timestamp": wall_text(run.ended_ms),
        "status_code": status_code(&counts, run),
        "accounts": accounts,
        "records": sums.records,
        "skipped": sums.skipped,
        "rejected": sums.rejected,
        "repo_bytes": sums.repo_bytes,
        "seconds": run.took.as_secs_f64(),
        "this_run": run.decided,
        "refresh": run.decided.refresh,
        "interrupted": run.interrupted,
    });
    if let Some(key) = &run.pseudonyms {
        head["pseudonyms"] = json!({"key": key, "note": PSEUDONYMS_NOTE});
    }
    let head = head.to_string();
    let unwritten = |error| StoreError::io(Path::new("stdout"), error);
    let open = head.strip_suffix('}').unwrap_or(&head);
    write!(out, "{open},\"parked\":[").map_err(unwritten)?;
    write_each(reader, Decided::Parked, |report| Some(parked(report)), out)?;
    if counts.forgotten > 0 {
        out.write_all(b"],\"forgotten\":[").map_err(unwritten)?;
        write_each(reader, Decided::Forgotten, |report| Some(json!(report.did)), out)?;
    }
    out.write_all(b"],\"not_refreshed\":[").map_err(unwritten)?;
    if run.refreshes {
        write_each(reader, Decided::Done, not_refreshed, out)?;
    }
    out.write_all(b"],\"users\":[").map_err(unwritten)?;
    write_each(reader, Decided::Done, |report| Some(user(report)), out)?;
    out.write_all(b"]}\n").and_then(|()| out.flush()).map_err(unwritten)
}

fn write_each(
    reader: &Reader,
    state: Decided,
    entry: impl Fn(Report) -> Option<Value>,
    out: &mut dyn Write,
) -> Result<(), StoreError> {
    let mut is_first = true;
    reader.each(state, |report| {
        let Some(entry) = entry(report) else { return Ok(()) };
        let comma = if std::mem::take(&mut is_first) { "" } else { "," };
        let written = write!(out, "{comma}{entry}");
        written.map_err(|error| StoreError::io(Path::new("stdout"), error))
    })
}

fn parked(report: Report) -> Value {
    let reason = match report.account.state {
        State::Parked(reason) => Some(reason),
        _ => None,
    };
    json!({
        "did": report.did,
        "reason": reason,
        "last_error": report.account.last_error,
        "attempts": report.account.attempts,
        "detail": report.account.detail,
    })
}

/// A done account whose last refresh came to nothing: what is held of it stays.
fn not_refreshed(report: Report) -> Option<Value> {
    let reason = report.account.refresh_failed?;
    Some(json!({
        "did": report.did,
        "reason": reason,
        "last_error": report.account.last_error,
        "attempts": report.account.attempts,
        "detail": report.account.detail,
        "rev": report.revision.map(|revision| revision.rev),
    }))
}

/// A user's metadata in the Python service's own forms, and what is ours.
#[must_use]
pub fn user(report: Report) -> Value {
    let revision = report.revision.unwrap_or_default();
    let identity = report.account.identity;
    let handle = identity.as_ref().and_then(|identity| identity.handle.clone());
    let types: Vec<&str> = revision.exported.keys().map(String::as_str).collect();
    json!({
        "did": report.did,
        "bluesky_handle": handle.unwrap_or_default(),
        "types": types.join(","),
        "total_records": revision.exported_total(),
        "total_records_by_type": python_json(&revision.exported),
        "pds_service_endpoint": identity.map(|identity| identity.endpoint).unwrap_or_default(),
        "timestamp": wall_text(report.done_at_ms.unwrap_or_default()),
        "rev": revision.rev,
        "commit_cid": revision.commit_cid,
        "repo_bytes": revision.repo_bytes,
        "leaves": revision.leaves,
        "skipped": revision.skipped,
        "rejected": revision.rejected,
    })
}

/// Counts as Python's `json.dumps` writes them; labels are plain ASCII.
fn python_json(counts: &BTreeMap<String, u64>) -> String {
    let pairs: Vec<String> =
        counts.iter().map(|(label, count)| format!("\"{label}\": {count}")).collect();
    format!("{{{}}}", pairs.join(", "))
}

/// Writes the summary for people.
///
/// # Errors
/// [`StoreError`] of the ledger; of `out`, named `stdout`.
pub fn write_text(
    reader: &Reader,
    run: &Run,
    queues: &Path,
    out: &mut dyn Write,
) -> Result<(), StoreError> {
    let (counts, sums) = (reader.counts()?, reader.sums(&run.labels)?);
    let reasons = reader.parked_by_reason()?;
    let mut text = text(&counts, &sums, &reasons, run, queues);
    if counts.forgotten > 0 {
        text += &forgotten(reader, counts.forgotten)?;
    }
    if run.pseudonyms.is_some() {
        text += &format!("note      {PSEUDONYMS_NOTE}\n");
    }
    let written = out.write_all(text.as_bytes()).and_then(|()| out.flush());
    written.map_err(|error: io::Error| StoreError::io(Path::new("stdout"), error))
}

/// The given accounts that were forgotten, the first of them by name.
fn forgotten(reader: &Reader, count: u64) -> Result<String, StoreError> {
    let mut text =
        format!("forgotten {} of the given accounts, never fetched again\n", HumanCount(count));
    let mut left = FORGOTTEN_NAMED_MAX;
    reader.each(Decided::Forgotten, |report| {
        if left > 0 {
            text += &format!("          {}\n", report.did);
        }
        left = left.saturating_sub(1);
        Ok(())
    })?;
    Ok(text)
}

#[allow(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "rates for people"
)]
fn text(
    counts: &Counts,
    sums: &Sums,
    reasons: &BTreeMap<String, u64>,
    run: &Run,
    queues: &Path,
) -> String {
    let list = |counts: &BTreeMap<String, u64>| {
        let shown: Vec<String> = counts
            .iter()
            .filter(|(_, count)| **count > 0)
            .map(|(word, count)| format!("{word} {}", HumanCount(*count)))
            .collect();
        if shown.is_empty() { "none".to_owned() } else { shown.join(", ") }
    };
    let seconds = run.took.as_secs_f64();
    let rate = (run.decided.records as f64 / seconds.max(0.001)) as u64;
    let mut text = String::new();
    if run.interrupted {
        text += "interrupted: run the same command again, it goes on where it was\n";
    }
    text += &format!(
        "accounts  {} of {} done, {} parked, {} left\n",
        HumanCount(counts.done),
        HumanCount(counts.total()),
        HumanCount(counts.parked),
        HumanCount(counts.pending())
    );
    if counts.parked > 0 {
        text += &format!("parked    {}\n", list(reasons));
    }
    text += &format!("records   {}\n", list(&sums.records));
    text += &format!("skipped   {}\n", list(&sums.skipped));
    text += &format!("rejected  {}\n", list(&sums.rejected));
    text += &format!(
        "this run  {} accounts, {} records in {seconds:.1} s, {} records/s; {} of repositories in all\n",
        HumanCount(run.decided.ended()),
        HumanCount(run.decided.records),
        HumanCount(rate),
        HumanBytes(sums.repo_bytes)
    );
    if run.refreshes {
        let refresh = run.decided.refresh;
        text += &format!(
            "refresh   {} unchanged, {} changed, {} not refreshed: {} records new or changed, {} deleted\n",
            HumanCount(refresh.unchanged),
            HumanCount(refresh.changed),
            HumanCount(refresh.failed + refresh.without_leaves),
            HumanCount(refresh.records),
            HumanCount(refresh.deleted)
        );
    }
    text += &format!("queues    {}\n", queues.display());
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_written_the_way_python_writes_them() {
        let counts = BTreeMap::from([("post".to_owned(), 2), ("like".to_owned(), 10)]);
        assert_eq!(python_json(&counts), r#"{"like": 10, "post": 2}"#);
        assert_eq!(python_json(&BTreeMap::new()), "{}");
    }
}
