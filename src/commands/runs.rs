//! `skyfill runs`: what each run over the data directory did, the last of them last. One that was killed is shown as begun and
//! never ended.

use std::io::{self, Write};
use std::path::Path;

use clap::Args;
use indicatif::HumanCount;
use serde_json::{Value, json};

use crate::cli::Common;
use crate::clock::wall_text;
use crate::commands::error::CommandError;
use crate::commands::retry::ledger_in;
use crate::store::data_dir::holder;
use crate::store::error::StoreError;
use crate::store::ledger_runs::{Run, runs};

/// Its flags.
#[derive(Debug, Args)]
pub struct Flags {
    #[command(flatten)]
    #[allow(missing_docs, reason = "see Common")]
    pub common: Common,
    /// At most so many, the last ones
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub limit: Option<u64>,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}

/// Writes the runs over `data_dir`.
///
/// # Errors
/// [`CommandError`]: no ledger there, or the disk.
pub fn run(data_dir: &Path, flags: &Flags, out: &mut dyn Write) -> Result<(), CommandError> {
    let told = runs(&ledger_in(data_dir)?)?;
    let at_work = holder(data_dir);
    let limit = flags.limit.and_then(|limit| usize::try_from(limit).ok()).unwrap_or(usize::MAX);
    let last = told.last().map(|run| run.id);
    let shown = told.iter().skip(told.len().saturating_sub(limit));
    let shown = shown.map(|run| {
        // The number of a dead process may be another's today, but only the last run can still go on.
        let is_at_work = last == Some(run.id) && at_work == Some(run.pid.to_string());
        (run, state(run, is_at_work))
    });
    let text = if flags.json {
        let values: Vec<Value> = shown.map(|(run, state)| value(run, state)).collect();
        format!("{}\n", json!({ "runs": values }))
    } else {
        head() + &shown.map(|(run, state)| line(run, state)).collect::<String>()
    };
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        written => Ok(written.map_err(|error| StoreError::io(Path::new("stdout"), error))?),
    }
}

fn state(run: &Run, is_at_work: bool) -> &'static str {
    match run.ended {
        Some(_) => "ended",
        None if is_at_work => "running",
        None => "never_ended",
    }
}

fn value(run: &Run, state: &str) -> Value {
    let this_run = run.ended.map(|ended| ended.this_run);
    json!({
        "id": run.id,
        "state": state,
        "command": run.command,
        "version": run.version,
        "pid": run.pid,
        "begun_at": wall_text(run.begun_ms),
        "ended_at": run.ended.map(|ended| wall_text(ended.ended_ms)),
        "seconds": run.ended.map(|ended| ended.seconds),
        "exit": run.ended.map(|ended| ended.exit),
        "given": run.given,
        "done": run.done,
        "parked": run.parked,
        "records": this_run.map(|[_, _, records]| records),
        "this_run": this_run.map(|[done, parked, records]| json!({"done": done, "parked": parked, "records": records})),
        // Only we write it.
        "filter": serde_json::from_str::<Value>(&run.filter).unwrap_or_default(),
    })
}

fn head() -> String {
    format!(
        "{:>5}  {:<19}  {:<8}  {:<8}  {:>10}  {:>10}  {:>8}  {:>12}  {:>9}  {:<11}  filter\n",
        "run",
        "begun at",
        "command",
        "version",
        "given",
        "done",
        "parked",
        "records",
        "seconds",
        "exit"
    )
}

fn line(run: &Run, state: &str) -> String {
    let count =
        |count: Option<u64>| count.map_or("-".to_owned(), |count| HumanCount(count).to_string());
    let exit = run.ended.map_or(state.replace('_', " "), |ended| ended.exit.to_string());
    let seconds = run.ended.map_or("-".to_owned(), |ended| format!("{:.1}", ended.seconds));
    let filter: Value = serde_json::from_str(&run.filter).unwrap_or_default();
    let word = |name: &str| filter[name].as_str().unwrap_or_default().to_owned();
    let types = filter["types"].as_array().into_iter().flatten().filter_map(Value::as_str);
    format!(
        "{:>5}  {:<19}  {:<8}  {:<8}  {:>10}  {:>10}  {:>8}  {:>12}  {seconds:>9}  {exit:<11}  {} {} {} {} {}\n",
        run.id,
        wall_text(run.begun_ms),
        run.command,
        run.version,
        count(run.given),
        count(run.done),
        count(run.parked),
        count(run.ended.map(|ended| ended.this_run[2])),
        types.collect::<Vec<_>>().join(","),
        word("start"),
        word("end"),
        word("outside"),
        word("offsets")
    )
}
