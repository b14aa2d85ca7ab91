//! `skyfill provenance`: where the data comes from, one JSON line for each account that was exported.
//!
//! Read from the ledger beside whoever writes it, and written while it is read. An account whose rows are in the queues was
//! proven: every block hashed, the tree complete and in order, the commit signed by the key that is named. What an older skyfill
//! did not keep is null. Forgotten accounts are not among them.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use clap::Args;
use serde_json::{Value, json};

use crate::cli::Common;
use crate::clock::wall_text;
use crate::commands::error::CommandError;
use crate::commands::output::Output;
use crate::commands::retry::ledger_in;
use crate::store::error::StoreError;
use crate::store::ledger_lists::{Reader, Report};

/// Its flags.
#[derive(Debug, Args)]
pub struct Flags {
    #[command(flatten)]
    #[allow(missing_docs, reason = "see Common")]
    pub common: Common,
    /// Write to this file, whole or not at all, instead of to stdout
    #[arg(long, value_name = "FILE", value_hint = clap::ValueHint::FilePath)]
    pub out: Option<PathBuf>,
}

/// Writes the provenance of everything that was exported from `data_dir`; gives how many accounts.
///
/// # Errors
/// [`CommandError`]: no ledger there, or the disk.
pub fn run(data_dir: &Path, out: Option<&Path>) -> Result<u64, CommandError> {
    let reader = Reader::open(&ledger_in(data_dir)?)?;
    let (mut output, mut accounts) = (Output::open(out)?, 0);
    let written = reader.each_exported(|report| {
        accounts += 1;
        output.put(&format!("{}\n", line(&report)))
    });
    match written.and_then(|()| output.finish()) {
        // Whoever read it has what they wanted.
        Err(StoreError::Io { source, .. }) if source.kind() == ErrorKind::BrokenPipe => {}
        written => written?,
    }
    Ok(accounts)
}

/// One account.
#[must_use]
pub fn line(report: &Report) -> Value {
    let identity = report.account.identity.as_ref();
    let Some(revision) = &report.revision else { return json!({"did": report.did}) };
    let known = |text: &str| (!text.is_empty()).then(|| text.to_owned());
    json!({
        "did": report.did,
        "shown_as": known(&revision.shown_as),
        "rev": revision.rev,
        "commit_cid": revision.commit_cid,
        "verified": true,
        "signed_by": known(&revision.signed_by),
        "pds_service_endpoint": identity.map(|identity| &identity.endpoint),
        "fetched_at": (revision.proven_at_ms > 0).then(|| wall_text(revision.proven_at_ms)),
        "exported_at": report.done_at_ms.map(wall_text),
        "edition": revision.edition,
        "repo_bytes": revision.repo_bytes,
        "leaves": revision.leaves,
        "records": revision.exported,
        "skipped": revision.skipped,
        "rejected": revision.rejected,
        "total_records": revision.exported_total(),
        "filter": revision.filter,
        "skyfill": known(&revision.proven_by),
    })
}
