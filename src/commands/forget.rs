//! `skyfill forget`: takes accounts back for good, through the daemon if one is running.
//!
//! ```text
//!  DIDs, some at a time ──> daemon (control socket) | data directory (lock) ──> what was deleted, and what is elsewhere ──> out
//! ```
//! Rows go from every queue, whatever their status; the ledger keeps the DID and that it is forgotten, so that no list, retry
//! or refilter brings it back. Accounts that were never listed are forgotten too: a later list finds them so. What readers have
//! taken is theirs to delete, and is counted. Exit code 0, or 3 if something was malformed or is not finished yet.

use std::io::Write;
use std::path::{Path, PathBuf};

use clap::Args;
use serde_json::{Value, json};

use crate::cli::Common;
use crate::commands::error::CommandError;
use crate::commands::retry::ask_daemon;
use crate::config::settings::Settings;
use crate::config::targets::{self, ListSource, Target};
use crate::exit_code::ExitCode;
use crate::pipeline::Surrounding;
use crate::pipeline::forget::{Alone, ForgetError, Forgot, Forgotten};
use crate::store::data_dir::holder;
use crate::store::error::StoreError;

/// Accounts in one order: one transaction of the ledger, and one look at every queue file.
const AT_ONCE: usize = 100;

/// Bytes of DIDs in one order: a line of the control socket has 16 KiB.
const BYTES_AT_ONCE: usize = 8 << 10;

/// Its flags.
#[derive(Debug, Args)]
#[command(group = clap::ArgGroup::new("whom").required(true).multiple(true).args(["did", "file"]))]
pub struct Flags {
    #[command(flatten)]
    #[allow(missing_docs, reason = "see Common")]
    pub common: Common,
    /// Account to forget (repeatable)
    #[arg(long, value_name = "DID")]
    pub did: Vec<String>,
    /// List of accounts to forget, as for backfill; - is stdin (repeatable)
    #[arg(long, value_name = "FILE", value_hint = clap::ValueHint::FilePath)]
    pub file: Vec<PathBuf>,
    /// Print the result as one JSON object
    #[arg(long)]
    pub json: bool,
}

impl Flags {
    /// The lists that were given.
    #[must_use]
    pub fn sources(&self) -> Vec<ListSource> {
        let (name, dids) = ("--did".to_owned(), self.did.clone());
        let inline = (!dids.is_empty()).then_some(ListSource::Inline { name, dids });
        inline.into_iter().chain(self.file.iter().map(|path| ListSource::file(path))).collect()
    }
}

/// Who does it.
enum Doer {
    Daemon(PathBuf),
    Alone(Box<Alone>),
}

impl Doer {
    fn find(settings: &Settings, surrounding: &Surrounding) -> Result<Self, CommandError> {
        let status = json!({"command": "status"});
        let dir = &settings.data_dir;
        if holder(dir).is_some() && ask_daemon(dir, &status)?.is_some() {
            return Ok(Self::Daemon(dir.clone()));
        }
        let alone = Alone::open(settings, &surrounding.clock, &surrounding.chance)?;
        Ok(Self::Alone(Box::new(alone)))
    }

    /// Forgets some; gives the accounts, what is left, and whether it is unfinished, as [`told`] writes it.
    async fn forget(&self, dids: Vec<String>) -> Result<Value, CommandError> {
        match self {
            Self::Daemon(dir) => {
                let request = json!({"command": "forget", "dids": dids});
                let gone =
                    || CommandError::Unreachable("the daemon has ended meanwhile".to_owned());
                ask_daemon(dir, &request)?.ok_or_else(gone)
            }
            Self::Alone(alone) => Ok(told(&alone.forgetter.forget(dids).await?)),
        }
    }
}

impl From<ForgetError> for CommandError {
    fn from(error: ForgetError) -> Self {
        match error {
            ForgetError::Store(error) => Self::Store(error),
            error => Self::Internal(error.to_string()),
        }
    }
}

/// What became of an order, as JSON: the daemon's answer, and what is printed.
#[must_use]
pub fn told(forgot: &Forgot) -> Value {
    let accounts: Vec<Value> = forgot.accounts.iter().map(account).collect();
    json!({"ok": true, "accounts": accounts, "left": forgot.left, "unfinished": forgot.is_unfinished})
}

fn account(forgotten: &Forgotten) -> Value {
    let Forgotten { begun, queues } = forgotten;
    let revision = begun.revision.as_ref();
    json!({
        "did": begun.did,
        "was": begun.was,
        "rev": revision.map(|revision| &revision.rev),
        "exported": revision.map(|revision| &revision.exported),
        "deleted": queues,
    })
}

/// Totals over all orders.
#[derive(Default)]
struct Totals {
    forgotten: u64,
    already: u64,
    malformed: Vec<String>,
    left: Vec<String>,
    is_unfinished: bool,
}

/// Forgets the accounts of `sources` in the data directory of `settings`; what became of each goes to `out`.
///
/// # Errors
/// [`CommandError`]; what was begun is gone on with by the next start.
pub async fn run(
    settings: &Settings,
    sources: &[ListSource],
    surrounding: &Surrounding,
    as_json: bool,
    out: &mut dyn Write,
) -> Result<ExitCode, CommandError> {
    let mut targets = targets::open(sources)?.peekable();
    if targets.peek().is_none() {
        return Err(CommandError::Usage("the list holds no DID".to_owned()));
    }
    let doer = Doer::find(settings, surrounding)?;
    let mut printed = Printed { out, as_json, is_first: true };
    let done = all(&doer, targets, &mut printed).await;
    if let Doer::Alone(alone) = doer {
        alone.close().await.map_err(CommandError::Failed)?;
    }
    let totals = done?;
    printed.end(&totals)?;
    let is_whole = !totals.is_unfinished && totals.malformed.is_empty();
    Ok(if is_whole { ExitCode::Done } else { ExitCode::SomeParked })
}

async fn all(
    doer: &Doer,
    targets: impl Iterator<Item = Result<Target, targets::TargetError>>,
    printed: &mut Printed<'_>,
) -> Result<Totals, CommandError> {
    let (mut totals, mut some, mut bytes) = (Totals::default(), Vec::new(), 0);
    printed.begin()?;
    for target in targets {
        match target? {
            Target::Malformed { cleaned, detail } => {
                totals.malformed.push(format!("{detail}: {cleaned}"));
            }
            Target::Did(did) => {
                bytes += did.as_str().len();
                some.push(did.as_str().to_owned());
            }
        }
        if some.len() >= AT_ONCE || bytes >= BYTES_AT_ONCE {
            order(doer, std::mem::take(&mut some), &mut totals, printed).await?;
            bytes = 0;
        }
    }
    if !some.is_empty() {
        order(doer, some, &mut totals, printed).await?;
    }
    Ok(totals)
}

async fn order(
    doer: &Doer,
    dids: Vec<String>,
    totals: &mut Totals,
    printed: &mut Printed<'_>,
) -> Result<(), CommandError> {
    let answer = doer.forget(dids).await?;
    for account in answer["accounts"].as_array().into_iter().flatten() {
        let was_forgotten = account["was"] == "forgotten";
        totals.already += u64::from(was_forgotten);
        totals.forgotten += u64::from(!was_forgotten);
        printed.account(account)?;
    }
    for left in answer["left"].as_array().into_iter().flatten() {
        let left = left.as_str().unwrap_or_default().to_owned();
        if !totals.left.contains(&left) {
            totals.left.push(left);
        }
    }
    totals.is_unfinished |= answer["unfinished"] == true;
    Ok(())
}

/// Where results go: text, or one JSON object that is written while it comes.
struct Printed<'o> {
    out: &'o mut dyn Write,
    as_json: bool,
    is_first: bool,
}

impl Printed<'_> {
    fn put(&mut self, text: &str) -> Result<(), CommandError> {
        let written = self.out.write_all(text.as_bytes()).and_then(|()| self.out.flush());
        Ok(written.map_err(|error| StoreError::io(Path::new("stdout"), error))?)
    }

    fn begin(&mut self) -> Result<(), CommandError> {
        if self.as_json { self.put("{\"accounts\":[") } else { Ok(()) }
    }

    fn account(&mut self, account: &Value) -> Result<(), CommandError> {
        let comma = if std::mem::take(&mut self.is_first) { "" } else { "," };
        let text = if self.as_json { format!("{comma}{account}") } else { line(account) };
        self.put(&text)
    }

    fn end(&mut self, totals: &Totals) -> Result<(), CommandError> {
        let Totals { forgotten, already, malformed, left, is_unfinished } = totals;
        if self.as_json {
            let rest = json!({
                "forgotten": forgotten, "already_forgotten": already, "malformed": malformed, "left": left,
                "unfinished": is_unfinished,
            });
            let rest = rest.to_string();
            return self.put(&format!("],{}\n", rest.strip_prefix('{').unwrap_or(&rest)));
        }
        let mut text = format!("{forgotten} accounts forgotten, {already} were before\n");
        malformed.iter().for_each(|entry| text += &format!("malformed: {entry}\n"));
        left.iter().for_each(|left| text += &format!("left: {left}\n"));
        text += "elsewhere: what readers have taken, backups, and blocks that a file system has given up are out of reach\n";
        self.put(&text)
    }
}

/// One account for people.
fn line(account: &Value) -> String {
    let did = account["did"].as_str().unwrap_or_default();
    let was = account["was"].as_str().unwrap_or("not known");
    let (mut deleted, mut taken) = (0, 0);
    let mut places = Vec::new();
    for (label, held) in account["deleted"].as_object().into_iter().flatten() {
        let items = held["items"].as_object().into_iter().flatten();
        let items: Vec<(&String, u64)> =
            items.map(|(status, count)| (status, count.as_u64().unwrap_or(0))).collect();
        let here: u64 = items.iter().map(|(_, count)| count).sum();
        let read = items.iter().filter(|(status, _)| *status != "pending");
        taken += held["gone"].as_u64().unwrap_or(0) + read.map(|(_, count)| count).sum::<u64>();
        deleted += here;
        places.push(format!("{label} {here}"));
    }
    let places =
        if places.is_empty() { String::new() } else { format!(" ({})", places.join(", ")) };
    format!(
        "{did}  was {was}: {deleted} items deleted{places}, readers had taken or marked {taken}\n"
    )
}
