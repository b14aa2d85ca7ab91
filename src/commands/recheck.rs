//! `skyfill recheck`: asks hosts how the accounts stand whose rows we hold, and writes the withdraw list.
//!
//! ```text
//!  accounts ──> daemon (control socket) | data directory (lock): hosts are asked, the ledger notes ──> list from the ledger ──> out
//! ```
//! The list has every account that is withdrawn, or was and is back, with the date when it was first seen so, whether this
//! recheck could ask for it or not; with `--dids` or `--dids-file`, of these alone. An account whose host does not answer is
//! counted and its host named, never called withdrawn. Exit code 0, or 3 if some could not be asked for.

use std::collections::HashSet;
use std::io::Write;
use std::path::{Path, PathBuf};

use clap::Args;
use serde_json::{Value, json};

use crate::cli::Common;
use crate::commands::error::CommandError;
use crate::commands::network_flags::NetworkFlags;
use crate::commands::output::Output;
use crate::commands::retry::{ask_daemon, ledger_in};
use crate::commands::withdrawn;
use crate::config::file::Assignment;
use crate::config::settings::Settings;
use crate::config::targets::{self, ListSource, Target};
use crate::exit_code::ExitCode;
use crate::pipeline::forget::Alone;
use crate::pipeline::recheck::{RecheckError, Rechecked, Rechecker};
use crate::pipeline::{StartError, Surrounding};
use crate::store::data_dir::holder;
use crate::store::error::StoreError;

/// Given accounts in one question: a line of the control socket has 16 KiB.
const ASKED_AT_ONCE: usize = 100;

/// Bytes of them.
const BYTES_AT_ONCE: usize = 8 << 10;

/// Its flags.
#[derive(Debug, Args)]
pub struct Flags {
    #[command(flatten)]
    #[allow(missing_docs, reason = "see Common")]
    pub common: Common,
    /// Only these accounts, comma-separated (repeatable)
    #[arg(long, value_name = "DID,...", value_delimiter = ',')]
    pub dids: Vec<String>,
    /// Only the accounts of this list, as for backfill; - is stdin (repeatable)
    #[arg(long, value_name = "FILE", value_hint = clap::ValueHint::FilePath)]
    pub dids_file: Vec<PathBuf>,
    /// Write the list as JSON lines to this file, whole or not at all; without --out and --csv it goes to stdout
    #[arg(long, value_name = "FILE", value_hint = clap::ValueHint::FilePath)]
    pub out: Option<PathBuf>,
    /// Write the list as CSV to this file, whole or not at all
    #[arg(long, value_name = "FILE", value_hint = clap::ValueHint::FilePath)]
    pub csv: Option<PathBuf>,
    #[command(flatten)]
    #[allow(missing_docs, reason = "see NetworkFlags")]
    pub network: NetworkFlags,
    /// Print the result as one JSON object: on stdout, or on stderr if the list goes to stdout
    #[arg(long)]
    pub json: bool,
}

impl Flags {
    /// Its settings: `--set` in the order given, then named flags.
    #[must_use]
    pub fn assignments(&self) -> Vec<Assignment> {
        self.network.assignments(&self.common)
    }

    fn sources(&self) -> Vec<ListSource> {
        let (name, dids) = ("--dids".to_owned(), self.dids.clone());
        let inline = (!dids.is_empty()).then_some(ListSource::Inline { name, dids });
        let files = self.dids_file.iter().map(|path| ListSource::file(path));
        inline.into_iter().chain(files).collect()
    }

    /// Whether the list goes to stdout.
    fn lists_on_stdout(&self) -> bool {
        let is_stdout = |path: &PathBuf| path.as_path() == Path::new("-");
        self.out.as_ref().map_or(self.csv.is_none(), is_stdout)
    }
}

/// What came of a recheck, as JSON.
#[must_use]
pub fn told(done: &Rechecked) -> Value {
    let mut told = serde_json::to_value(done).unwrap_or_default();
    told["ok"] = json!(true);
    told
}

impl From<RecheckError> for CommandError {
    fn from(error: RecheckError) -> Self {
        match error {
            RecheckError::Store(error) => Self::Store(error),
            error => Self::Internal(error.to_string()),
        }
    }
}

/// Asks, and writes the list.
///
/// # Errors
/// [`CommandError`]; what hosts have said before is noted.
pub async fn run(
    settings: &Settings,
    flags: &Flags,
    surrounding: &Surrounding,
) -> Result<ExitCode, CommandError> {
    ledger_in(&settings.data_dir)?;
    let given = given(&flags.sources())?;
    // A place that cannot be written to is said before anybody is asked.
    let (mut lines, mut csv) = outputs(flags)?;
    let Some(done) = ask(settings, given.as_deref(), surrounding).await? else {
        tracing::warn!("interrupted: what hosts have said so far is noted, no list was written");
        return Ok(ExitCode::Interrupted);
    };
    let names: Option<HashSet<&str>> =
        given.as_ref().map(|given| given.iter().map(String::as_str).collect());
    let is_wanted = |did: &str| names.as_ref().is_none_or(|names| names.contains(did));
    let entries = withdrawn::write(&settings.data_dir, is_wanted, lines.as_mut(), csv.as_mut())?;
    for output in [lines, csv].into_iter().flatten() {
        output.finish()?;
    }
    say(flags, &done, entries)?;
    let is_whole = done["unreached"].as_u64().unwrap_or(0) == 0;
    Ok(if is_whole { ExitCode::Done } else { ExitCode::SomeParked })
}

fn outputs(flags: &Flags) -> Result<(Option<Output>, Option<Output>), StoreError> {
    let wants_lines = flags.out.is_some() || flags.csv.is_none();
    let lines = wants_lines.then(|| Output::open(flags.out.as_deref())).transpose()?;
    let csv = flags.csv.as_deref().map(|path| Output::open(Some(path))).transpose()?;
    Ok((lines, csv))
}

/// The accounts that were given; `None`: none were.
fn given(sources: &[ListSource]) -> Result<Option<Vec<String>>, CommandError> {
    if sources.is_empty() {
        return Ok(None);
    }
    let mut given = Vec::new();
    for target in targets::open(sources)? {
        match target? {
            Target::Did(did) => given.push(did.as_str().to_owned()),
            Target::Malformed { detail, .. } => tracing::warn!(%detail, "malformed did"),
        }
    }
    given.sort();
    given.dedup();
    if given.is_empty() {
        return Err(CommandError::Usage("the list holds no DID".to_owned()));
    }
    Ok(Some(given))
}

/// `None`: it was interrupted.
async fn ask(
    settings: &Settings,
    given: Option<&[String]>,
    surrounding: &Surrounding,
) -> Result<Option<Value>, CommandError> {
    let dir = &settings.data_dir;
    if holder(dir).is_some() && ask_daemon(dir, &json!({"command": "status"}))?.is_some() {
        return ask_of_daemon(dir, given).map(Some);
    }
    let alone = Alone::open(settings, &surrounding.clock, &surrounding.chance)?;
    let rechecker = alone.rechecker(settings, surrounding).map_err(StartError::Net)?;
    let done = unless_stopped(&rechecker, given).await;
    drop(rechecker);
    alone.close().await.map_err(CommandError::Failed)?;
    Ok(done?.map(|done| told(&done)))
}

/// The first INT or TERM ends it; what was noted stays.
async fn unless_stopped(
    rechecker: &Rechecker,
    given: Option<&[String]>,
) -> Result<Option<Rechecked>, CommandError> {
    let stop = crate::ops::signals::stop_requested(ExitCode::Interrupted.code());
    let stop = stop.map_err(|error| CommandError::Internal(error.to_string()))?;
    tokio::select! {
        done = rechecker.run(given.map(<[String]>::to_vec)) => Ok(Some(done?)),
        () = stop => Ok(None),
    }
}

fn ask_of_daemon(dir: &Path, given: Option<&[String]>) -> Result<Value, CommandError> {
    let gone = || CommandError::Unreachable("the daemon has ended meanwhile".to_owned());
    let one = |request: Value| ask_daemon(dir, &request)?.ok_or_else(gone);
    let Some(mut given) = given else { return one(json!({"command": "recheck"})) };
    let mut whole = told(&Rechecked::default());
    while !given.is_empty() {
        let (mut count, mut bytes) = (0, 0);
        while count < given.len() && count < ASKED_AT_ONCE && bytes < BYTES_AT_ONCE {
            bytes += given[count].len();
            count += 1;
        }
        let (some, rest) = given.split_at(count);
        add(&mut whole, &one(json!({"command": "recheck", "dids": some}))?);
        given = rest;
    }
    Ok(whole)
}

/// Adds numbers to numbers, member by member; of texts the last one stays.
fn add(whole: &mut Value, part: &Value) {
    match (&mut *whole, part) {
        (Value::Object(whole), Value::Object(part)) => {
            for (name, value) in part {
                add(whole.entry(name.clone()).or_insert(Value::Null), value);
            }
        }
        (Value::Number(known), Value::Number(more)) => {
            *whole = json!(known.as_u64().unwrap_or(0) + more.as_u64().unwrap_or(0));
        }
        (whole, part) => *whole = part.clone(),
    }
}

fn say(flags: &Flags, done: &Value, entries: u64) -> Result<(), CommandError> {
    let text = if flags.json {
        let mut told = done.clone();
        told["entries"] = json!(entries);
        format!("{told}\n")
    } else {
        text(done, entries)
    };
    let (name, written) = if flags.lists_on_stdout() {
        ("stderr", std::io::stderr().write_all(text.as_bytes()))
    } else {
        ("stdout", std::io::stdout().write_all(text.as_bytes()))
    };
    Ok(written.map_err(|error| StoreError::io(Path::new(name), error))?)
}

fn text(done: &Value, entries: u64) -> String {
    let statuses = done["statuses"].as_object().into_iter().flatten();
    let statuses: Vec<String> = statuses.map(|(word, count)| format!("{word} {count}")).collect();
    let statuses = if statuses.is_empty() { "nobody".to_owned() } else { statuses.join(", ") };
    let mut text = format!(
        "asked     {}: {statuses}\nback      {}\nlist      {entries} accounts\n",
        done["asked"], done["back"]
    );
    if done["not_exported"] != 0 {
        text += &format!(
            "passed    {} of the given accounts were never exported\n",
            done["not_exported"]
        );
    }
    if done["unreached"] != 0 {
        text += &format!("unreached {} accounts could not be asked for\n", done["unreached"]);
    }
    for (host, unreached) in done["hosts"].as_object().into_iter().flatten() {
        let error = unreached["last_error"].as_str().unwrap_or_default();
        text += &format!("          {host}: {} accounts, {error}\n", unreached["accounts"]);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_add_up() {
        let mut whole = json!({"asked": 1, "statuses": {"active": 1}, "hosts": {}, "ok": true});
        let part = json!({
            "asked": 2, "statuses": {"active": 1, "deleted": 1}, "hosts": {"a": {"accounts": 1, "last_error": "dns"}},
            "ok": true,
        });
        add(&mut whole, &part);
        add(&mut whole, &part);
        assert_eq!(
            (&whole["asked"], &whole["statuses"]),
            (&json!(5), &json!({"active": 3, "deleted": 2}))
        );
        assert_eq!(whole["hosts"]["a"], json!({"accounts": 2, "last_error": "dns"}));
    }
}
