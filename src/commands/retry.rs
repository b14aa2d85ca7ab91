//! `skyfill retry`: puts parked accounts back to be worked on by the next run.

use std::path::Path;

use crate::clock::Clock;
use crate::commands::error::CommandError;
use crate::domain::ledger::LedgerPolicy;
use crate::domain::verdict::{LastError, Reason};
use crate::pipeline::data::LEDGER_FILE;
use crate::seed::Chance;
use crate::store::data_dir::DataDir;
use crate::store::error::StoreError;
use crate::store::ledger_lists::Selection;
use crate::store::ledger_rows::Rows;

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

/// Puts the selected accounts of `data_dir` back; gives how many.
///
/// # Errors
/// [`CommandError`]: no ledger there, another process holds it, or the disk.
pub fn run(data_dir: &Path, selection: &Selection) -> Result<u64, CommandError> {
    let path = ledger_in(data_dir)?;
    let _dir = DataDir::open(data_dir)?;
    let policy = LedgerPolicy::default();
    let (mut rows, _) = Rows::open(&path, policy, Clock::system(), Chance::system())?;
    Ok(rows.transaction(|rows| rows.retry(selection))?)
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
