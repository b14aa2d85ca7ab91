//! `skyfill status`: counts by state and reason, hosts, and one account's history, read from the ledger beside whoever writes
//! it; what only a running daemon knows comes from the daemon, and is null without one.

use std::io::Write;
use std::path::Path;
use std::time::Duration;

use indicatif::{BinaryBytes, HumanCount, HumanDuration};
use serde_json::{Value, json};

use crate::clock::wall_text;
use crate::commands::error::CommandError;
use crate::commands::retry::{ask_daemon, ledger_in};
use crate::domain::ledger::State;
use crate::store::error::StoreError;
use crate::store::ledger_lists::{Reader, Report};

/// Writes the status of `data_dir`, or of one account in it.
///
/// # Errors
/// [`CommandError`]: no ledger there, no such account, a daemon that does not answer, or the disk.
pub fn run(
    data_dir: &Path,
    did: Option<&str>,
    as_json: bool,
    out: &mut dyn Write,
) -> Result<(), CommandError> {
    let reader = Reader::open(&ledger_in(data_dir)?)?;
    let text = match did {
        Some(did) => {
            let unknown =
                || CommandError::Usage(format!("{did} was never listed in {}", data_dir.display()));
            let report = reader.account(did)?.ok_or_else(unknown)?;
            if as_json { format!("{}\n", account(&report)) } else { account_text(&report) }
        }
        None => {
            let live = ask_daemon(data_dir, &json!({"command": "status"}))?;
            let value = whole(&reader, live.as_ref())?;
            if as_json { format!("{value}\n") } else { whole_text(&value) }
        }
    };
    let written = out.write_all(text.as_bytes()).and_then(|()| out.flush());
    Ok(written.map_err(|error| StoreError::io(Path::new("stdout"), error))?)
}

/// The whole as one JSON object; `live` is what the daemon says.
fn whole(reader: &Reader, live: Option<&Value>) -> Result<Value, StoreError> {
    let told = |key: &str| live.map_or(Value::Null, |live| live[key].clone());
    let hosts = match live {
        Some(live) => live["hosts"].clone(),
        None => reader
            .hosts()?
            .into_iter()
            .map(|(host, queued, active)| {
                json!({"host": host, "state": null, "active": active, "queued": queued, "resume_at": null})
            })
            .collect(),
    };
    // What the daemon says of its phase and its end holds for the counts that it says itself.
    let accounts = match live {
        Some(live) => live["accounts"].clone(),
        None => json!(reader.counts()?),
    };
    Ok(json!({
        "accounts": accounts,
        "parked": reader.parked_by_reason()?,
        "records": reader.sums(&[])?.records,
        "hosts": hosts,
        "bound_by": told("bound_by"),
        "eta_seconds": told("eta_seconds"),
        "eta_bound_by": told("eta_bound_by"),
        "slowest_host": told("slowest_host"),
        "phase": told("phase"),
        "listing": told("listing"),
        "this_run": told("this_run"),
        "refresh": told("refresh"),
        "disk_full": told("disk_full"),
        "sinks": told("sinks"),
        "group": told("group"),
        "pid": told("pid"),
    }))
}

fn whole_text(status: &Value) -> String {
    let list = |value: &Value| {
        let counts = value.as_object().into_iter().flatten();
        let shown: Vec<String> = counts
            .filter_map(|(word, count)| Some(format!("{word} {}", HumanCount(count.as_u64()?))))
            .collect();
        if shown.is_empty() { "none".to_owned() } else { shown.join(", ") }
    };
    let mut text = format!(
        "accounts  {}\nparked    {}\nrecords   {}\n",
        list(&status["accounts"]),
        list(&status["parked"]),
        list(&status["records"])
    );
    if let Some(phase) = status["phase"].as_str() {
        text += &format!("phase     {phase}");
        if let Some(bound_by) = status["bound_by"].as_str() {
            text += &format!(", bound by {bound_by}");
        }
        if let Some(seconds) = status["eta_seconds"].as_u64().filter(|seconds| *seconds > 0) {
            text += &format!(", done in about {}", HumanDuration(Duration::from_secs(seconds)));
            if let Some(host) = status["slowest_host"].as_str() {
                text += &format!(", {host} takes longest");
            }
        }
        text += "\n";
    }
    text += &group_text(&status["group"]);
    for sink in status["sinks"].as_array().into_iter().flatten() {
        let name = sink["name"].as_str().unwrap_or_default();
        let waits = sink["waits"].as_str().map_or(String::new(), |why| format!(", {why}"));
        text += &format!("sink      {name}: has segment {}{}{waits}\n", sink["segment"], lag(sink));
    }
    for host in status["hosts"].as_array().into_iter().flatten().take(10) {
        let name = host["host"].as_str().unwrap_or_default();
        text += &format!("host      {name}: {} queued, {} active", host["queued"], host["active"]);
        if let Some(state) = host["state"].as_str() {
            text += &format!(", {state}");
        }
        if let Some(at) = host["resume_at"].as_str() {
            text += &format!(" until {at}");
        }
        text += "\n";
    }
    text
}

/// The group that the daemon shares its work with; nothing without one.
fn group_text(group: &Value) -> String {
    let Some(name) = group["name"].as_str() else { return String::new() };
    let partitions = group["partitions"].as_array().map_or(0, Vec::len);
    let members = group["members"].as_u64().map_or("?".to_owned(), |it| it.to_string());
    let behind = group["behind"].as_i64().map_or("?".to_owned(), |it| it.to_string());
    let waits = group["waits"].as_str().map_or(String::new(), |why| format!(", {why}"));
    format!(
        "group     {name}: {partitions} of {} partitions, {members} members, {} undecided, {behind} to read{waits}\n",
        group["of_partitions"], group["undecided"]
    )
}

/// How far a sink is behind; nothing of one that has everything.
fn lag(sink: &Value) -> String {
    let figure = |key: &str| sink[key].as_u64().unwrap_or(0);
    let (segments, bytes) = (figure("lag_segments"), figure("lag_bytes"));
    let (held, most) = (BinaryBytes(bytes), BinaryBytes(figure("lag_max")));
    match sink["holds_up"].as_bool() {
        Some(true) => format!(", the work waits for it: it holds {held}, {most} at most"),
        _ if segments > 0 => format!(", {segments} behind ({held})"),
        _ => String::new(),
    }
}

fn account(report: &Report) -> Value {
    let account = &report.account;
    let reason = if let State::Parked(reason) = account.state { Some(reason) } else { None };
    let next =
        if let State::RetryAt(at_ms) = account.state { Some(wall_text(at_ms)) } else { None };
    let revision = report.revision.as_ref();
    let identity = account.identity.as_ref();
    json!({
        "did": report.did,
        "listed": report.listed,
        "state": account.state.public(),
        "reason": reason,
        "last_error": account.last_error,
        "detail": account.detail,
        "refreshing": account.refreshing,
        "refresh_failed": account.refresh_failed,
        "attempts": account.attempts,
        "crashes": account.crashes,
        "process_deaths": account.process_deaths,
        "host": identity.map(|identity| &identity.host),
        "handle": identity.and_then(|identity| identity.handle.as_ref()),
        "next_attempt": next,
        "done_at": report.done_at_ms.map(wall_text),
        "rev": revision.map(|revision| &revision.rev),
        "commit_cid": revision.map(|revision| &revision.commit_cid),
        "signed_by": revision.map(|revision| &revision.signed_by),
        "repo_bytes": revision.map(|revision| revision.repo_bytes),
        "leaves": revision.map(|revision| revision.leaves),
        "records": revision.map(|revision| &revision.exported),
        "skipped": revision.map(|revision| &revision.skipped),
        "rejected": revision.map(|revision| &revision.rejected),
    })
}

fn account_text(report: &Report) -> String {
    let value = account(report);
    let lines = value.as_object().into_iter().flatten().filter(|(_, value)| !value.is_null());
    lines
        .map(|(key, value)| match value.as_str() {
            Some(text) => format!("{key:15} {text}\n"),
            None => format!("{key:15} {value}\n"),
        })
        .collect()
}
