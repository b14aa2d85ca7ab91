//! `skyfill retry`: puts parked accounts back, through the daemon if one is running.

use std::path::Path;

use serde_json::{Value, json};

use crate::clock::Clock;
use crate::commands::error::CommandError;
use crate::domain::ledger::LedgerPolicy;
use crate::domain::verdict::{LastError, Reason};
use crate::ops::control::{self, AskError};
use crate::pipeline::data::LEDGER_FILE;
use crate::seed::Chance;
use crate::store::data_dir::{DataDir, holder};
use crate::store::error::StoreError;
use crate::store::ledger_lists::Selection;
use crate::store::ledger_rows::Rows;

/// Why a worker's accounts cannot be put back: what became of them is told, and the group has gone on.
pub const OF_A_GROUP: &str =
    "accounts of a group are put back by asking for them again: skyfill enqueue";

/// Reads what `--reason` was given: a reason or a last error.
///
/// # Errors
/// [`CommandError::Usage`] with the words that there are.
pub fn selection_of_word(word: &str) -> Result<Selection, CommandError> {
    if Reason::parse(word).is_some() || LastError::parse(word).is_some() {
        return Ok(Selection::Word(word.to_owned()));
    }
    let reasons = Reason::ALL.iter().map(|reason| reason.as_str());
    let errors = LastError::ALL.iter().map(|error| error.as_str());
    let words: Vec<&str> = reasons.chain(errors).collect();
    let text = format!("--reason {word}: no such reason; there are {}", words.join(", "));
    Err(CommandError::Usage(text))
}

/// Puts the selected accounts of `data_dir` back; gives how many. A daemon does it at once, without one the next run takes
/// them up.
///
/// # Errors
/// [`CommandError`]: no ledger there, a daemon that does not answer, another process that holds it, or the disk.
pub fn run(data_dir: &Path, selection: &Selection) -> Result<u64, CommandError> {
    let path = ledger_in(data_dir)?;
    if let Some(answer) = ask_daemon(data_dir, &request(selection))? {
        return Ok(answer["retried"].as_u64().unwrap_or(0));
    }
    let _dir = DataDir::open(data_dir)?;
    let policy = LedgerPolicy::default();
    let (mut rows, _) = Rows::open(&path, policy, Clock::system(), Chance::system())?;
    if rows.group()?.is_some() {
        return Err(StoreError::Config(OF_A_GROUP.to_owned()).into());
    }
    Ok(rows.transaction(|rows| rows.retry(selection))?)
}

fn request(selection: &Selection) -> Value {
    match selection {
        Selection::All => json!({"command": "retry", "all": true}),
        Selection::Word(word) => json!({"command": "retry", "reason": word}),
        Selection::Did(did) => json!({"command": "retry", "did": did}),
    }
}

/// Asks the daemon of `data_dir`; `None` if there is none.
///
/// # Errors
/// [`CommandError::Unreachable`] if it does not answer, [`CommandError::Usage`] if it refuses.
pub fn ask_daemon(data_dir: &Path, request: &Value) -> Result<Option<Value>, CommandError> {
    let Some(pid) = holder(data_dir) else { return Ok(None) };
    match control::ask(data_dir, request) {
        Ok(answer) => Ok(Some(answer)),
        // A backfill holds the directory too, and a daemon that has only just started.
        Err(AskError::Nobody) => Ok(None),
        Err(AskError::Silent) => {
            Err(CommandError::Unreachable(format!("process {pid} does not answer")))
        }
        Err(AskError::Refused(why)) => Err(CommandError::Usage(why)),
    }
}

/// Path of the ledger in `data_dir`.
///
/// # Errors
/// [`CommandError::Store`] if there is none.
pub fn ledger_in(data_dir: &Path) -> Result<std::path::PathBuf, CommandError> {
    let path = data_dir.join(LEDGER_FILE);
    if path.exists() {
        return Ok(path);
    }
    let text =
        format!("{} does not exist: nothing was ever run with this --data-dir", path.display());
    Err(StoreError::Config(text).into())
}
