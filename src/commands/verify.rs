//! `skyfill verify`: what the queues hold against what the ledger says.
//!
//! ```text
//!  ledger: accounts exported, records by queue ──> each queue file's own account table ──> every item that is still there
//! ```
//! Readers may take rows away: a missing row is no disagreement, a changed one is. Nor is what lies in a queue file that its
//! owner moved away. The first 20 disagreements are named.

use std::io::Write;
use std::path::Path;

use serde_json::json;

use crate::clock::Clock;
use crate::commands::error::CommandError;
use crate::commands::retry::ledger_in;
use crate::domain::account::Revision;
use crate::sink::leaves::LeavesReader;
use crate::sink::sqlite_check::QueueReader;
use crate::store::error::StoreError;
use crate::store::ledger_lists::Reader;
use crate::transform::REJECTED_LABEL;

/// Disagreements that are named.
const NAMED_MAX: usize = 20;

/// The result of a verification.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Agreement {
    /// Everything fits.
    Agree,
    /// Something does not.
    Disagree,
}

/// Disagreements: the first ones by name, and how many in all.
#[derive(Debug, Default)]
pub struct Findings {
    named: Vec<String>,
    count: u64,
}

impl Findings {
    /// Notes one.
    pub fn add(&mut self, text: String) {
        self.count += 1;
        if self.named.len() < NAMED_MAX {
            self.named.push(text);
        }
    }
}

/// Verifies the data directory; writes what it found to `out`.
///
/// # Errors
/// [`CommandError`] if ledger or queues cannot be read.
pub fn run(data_dir: &Path, as_json: bool, out: &mut dyn Write) -> Result<Agreement, CommandError> {
    let reader = Reader::open(&ledger_in(data_dir)?)?;
    let queues = QueueReader::open_all(&data_dir.join("queue"))?;
    let leaves = LeavesReader::new(data_dir).counter()?;
    let mut findings = Findings::default();
    let (mut accounts, mut records) = (0_u64, 0_u64);
    reader.each_exported(|report| {
        let Some(revision) = report.revision else { return Ok(()) };
        accounts += 1;
        records += revision.exported_total();
        let leaves = |kept| match &leaves {
            Some(leaves) => Ok(leaves.count(&revision.did, revision.edition)? == kept),
            None => Ok::<_, StoreError>(kept == 0),
        };
        if let Some(kept) = revision.kept
            && !leaves(kept)?
        {
            findings
                .add(format!("{}: its leaves are not there, it cannot be refreshed", revision.did));
        }
        if !revision.reconciles() {
            findings.add(format!("{}: its leaves are not all accounted for", revision.did));
        }
        queues.iter().try_for_each(|queue| against_ledger(queue, &queues, &revision, &mut findings))
    })?;
    let mut items = 0;
    for queue in &queues {
        items += queue.check_items(|text| findings.add(text))?;
    }
    let value = json!({
        "timestamp": Clock::system().wall_text(),
        "accounts": accounts,
        "records": records,
        "items": items,
        "disagreements": findings.count,
        "first": findings.named,
    });
    let mut text = String::new();
    if as_json {
        text = format!("{value}\n");
    } else {
        for finding in &findings.named {
            text += &format!("{finding}\n");
        }
        let verdict = match findings.count {
            0 => "everything agrees".to_owned(),
            count => format!("{count} disagreements"),
        };
        text += &format!(
            "{accounts} accounts, {records} records, {items} items still there: {verdict}\n"
        );
    }
    let written = out.write_all(text.as_bytes()).and_then(|()| out.flush());
    written.map_err(|error| StoreError::io(Path::new("stdout"), error))?;
    Ok(if findings.count == 0 { Agreement::Agree } else { Agreement::Disagree })
}

/// Compares one account's counts in one queue with the ledger's.
fn against_ledger(
    queue: &QueueReader,
    all: &[QueueReader],
    revision: &Revision,
    findings: &mut Findings,
) -> Result<(), StoreError> {
    let expected = match &revision.refresh {
        Some(refresh) => refresh.queued(queue.label()),
        None if queue.label() == REJECTED_LABEL => revision.rejected.values().sum(),
        None => revision.exported.get(queue.label()).copied().unwrap_or(0),
    };
    let (found, rev) = queue.account(revision.shown_did(), revision.edition, expected)?;
    let (label, did) = (queue.label(), &revision.did);
    if expected > 0 && rev.is_none() && was_moved_away(queue, all, revision)? {
        return Ok(());
    }
    if found != expected {
        findings.add(format!(
            "{did}: the ledger says {expected} {label} records, the queue took {found}"
        ));
    } else if rev.is_some_and(|rev| rev != revision.rev) {
        findings.add(format!("{did}: the {label} queue took another revision than the ledger's"));
    }
    Ok(())
}

/// Whether the account's rows went into a file that its owner moved away before this one was made. An account that no other
/// file knows has given its segment nowhere, and is believed to be one of those.
fn was_moved_away(
    queue: &QueueReader,
    all: &[QueueReader],
    revision: &Revision,
) -> Result<bool, StoreError> {
    let mut segment = None;
    for other in all {
        segment = segment.or(other.segment_of(revision.shown_did(), revision.edition)?);
    }
    Ok(queue.began_after(segment.unwrap_or(1)))
}
