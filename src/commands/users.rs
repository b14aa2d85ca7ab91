//! `skyfill users`: what the summary of `backfill --json` says of each user, for every account that is done in the data
//! directory: as a table, CSV, JSON lines or one JSON object. Read some accounts at a time, beside whoever writes the ledger.

use std::io::{self, Write};
use std::path::Path;

use clap::Args;
use indicatif::HumanCount;
use serde_json::Value;

use crate::cli::Common;
use crate::commands::error::CommandError;
use crate::commands::retry::ledger_in;
use crate::commands::summary::user;
use crate::domain::did::cleaned;
use crate::store::error::StoreError;
use crate::store::ledger_done::DoneAccounts;

/// The columns: the Python service's, then ours.
const COLUMNS: [&str; 13] = [
    "did",
    "bluesky_handle",
    "types",
    "total_records",
    "total_records_by_type",
    "pds_service_endpoint",
    "timestamp",
    "rev",
    "commit_cid",
    "repo_bytes",
    "leaves",
    "skipped",
    "rejected",
];

/// Its flags.
#[derive(Debug, Args)]
#[command(group = clap::ArgGroup::new("form").args(["csv", "jsonl", "json"]))]
pub struct Flags {
    #[command(flatten)]
    #[allow(missing_docs, reason = "see Common")]
    pub common: Common,
    /// Only accounts that are on the lists of the last run
    #[arg(long)]
    pub listed: bool,
    /// Print CSV, with the columns of the Python service's metadata and ours
    #[arg(long)]
    pub csv: bool,
    /// Print JSON, one object a line
    #[arg(long)]
    pub jsonl: bool,
    /// Print one JSON object, whose users are as in the summary of backfill
    #[arg(long)]
    pub json: bool,
}

/// Why writing ended.
enum End {
    /// Whoever read it has what it wanted.
    Enough,
    /// Something failed.
    Failed(StoreError),
}

impl From<StoreError> for End {
    fn from(error: StoreError) -> Self {
        Self::Failed(error)
    }
}

impl From<io::Error> for End {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::BrokenPipe => Self::Enough,
            _ => Self::Failed(StoreError::io(Path::new("stdout"), error)),
        }
    }
}

/// Writes the users of `data_dir`.
///
/// # Errors
/// [`CommandError`]: no ledger there, or the disk.
pub fn run(data_dir: &Path, flags: &Flags, out: &mut dyn Write) -> Result<(), CommandError> {
    let accounts = DoneAccounts::open(&ledger_in(data_dir)?)?;
    match write(&accounts, flags, out) {
        Ok(()) | Err(End::Enough) => Ok(()),
        Err(End::Failed(error)) => Err(error.into()),
    }
}

fn write(accounts: &DoneAccounts, flags: &Flags, out: &mut dyn Write) -> Result<(), End> {
    let (begin, end) = match () {
        () if flags.csv => (COLUMNS.join(",") + "\n", ""),
        () if flags.json => ("{\"users\":[".to_owned(), "]}\n"),
        () if flags.jsonl => (String::new(), ""),
        () => (head(), ""),
    };
    out.write_all(begin.as_bytes())?;
    let mut is_first = true;
    accounts.each(flags.listed, |report| {
        let user = user(report);
        let text = match () {
            () if flags.csv => csv(&user),
            () if flags.json && std::mem::take(&mut is_first) => user.to_string(),
            () if flags.json => format!(",{user}"),
            () if flags.jsonl => format!("{user}\n"),
            () => line(&user),
        };
        Ok::<(), End>(out.write_all(text.as_bytes())?)
    })?;
    out.write_all(end.as_bytes())?;
    Ok(out.flush()?)
}

fn csv(user: &Value) -> String {
    let fields = COLUMNS.map(|column| match &user[column] {
        Value::String(text) => csv_field(text),
        Value::Null => String::new(),
        value => csv_field(&value.to_string()),
    });
    fields.join(",") + "\n"
}

/// A field of a CSV row: in quotes if it needs them (RFC 4180).
fn csv_field(text: &str) -> String {
    if text.contains(['"', ',', '\n', '\r']) {
        return format!("\"{}\"", text.replace('"', "\"\""));
    }
    text.to_owned()
}

fn head() -> String {
    format!(
        "{:<32}  {:<28}  {:>12}  {:<19}  {:<36}  types\n",
        "did", "handle", "records", "done at", "pds"
    )
}

/// One line for people; what strangers wrote cannot command the terminal.
fn line(user: &Value) -> String {
    let text = |column: &str| cleaned(user[column].as_str().unwrap_or_default());
    let records = HumanCount(user["total_records"].as_u64().unwrap_or(0)).to_string();
    format!(
        "{:<32}  {:<28}  {records:>12}  {:<19}  {:<36}  {}\n",
        text("did"),
        text("bluesky_handle"),
        text("timestamp"),
        text("pds_service_endpoint"),
        text("types")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn csv_is_quoted_where_it_must_be() {
        assert_eq!(csv_field("plain"), "plain");
        assert_eq!(
            csv_field("{\"post\": 2, \"like\": 1}"),
            "\"{\"\"post\"\": 2, \"\"like\"\": 1}\""
        );
        assert_eq!(csv_field("a\nb"), "\"a\nb\"");
    }

    #[test]
    fn the_columns_are_all_that_a_user_has() {
        let report = crate::store::ledger_lists::Report {
            id: crate::domain::account::AccountId(1),
            did: "did:web:a.b".to_owned(),
            listed: true,
            account: crate::domain::ledger::Account::default(),
            revision: None,
            edition: 1,
            done_at_ms: Some(0),
        };
        let user = user(report);
        let mut keys: Vec<&str> = user.as_object().unwrap().keys().map(String::as_str).collect();
        let mut columns = COLUMNS.to_vec();
        keys.sort_unstable();
        columns.sort_unstable();
        assert_eq!(keys, columns);
        assert!(
            csv(&user).starts_with("did:web:a.b,,,0,{},,1970-01-01-00:00:00,"),
            "{}",
            csv(&user)
        );
    }
}
