//! The withdraw list: accounts that are deleted, deactivated, taken down or suspended (or back), since when, what was exported of
//! them, and where it still lies.
//!
//! ```text
//!  ledger: standing, revision ──┐
//!  queue files: items by status ├──> JSON lines and CSV, an account at a time
//!  journal: sealed segments ────┘
//! ```
//! Read beside whoever writes. Items that are `pending` are ours alone; those that readers have marked or taken away are with
//! them, and are counted so that it can be followed up. Memory is that of the names in the sealed segments.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use serde_json::{Value, json};

use crate::clock::wall_text;
use crate::commands::output::Output;
use crate::pipeline::data::LEDGER_FILE;
use crate::sink::sqlite_forget::{Held, QueueHoldings};
use crate::sink::sqlite_items::labels;
use crate::store::error::StoreError;
use crate::store::ledger_lists::{Reader, Report};
use crate::store::ledger_standing::{ACTIVE, Standing};
use crate::store::segment::sealed_accounts;

/// The first line of the CSV.
const CSV_HEAD: &str = "did,status,was,since,asked_at,host,rev,records,items_pending,items_with_readers,journal_segments\n";

/// Where the rows of accounts lie.
pub struct Places {
    queues: Vec<QueueHoldings>,
    /// Sealed segments by the DID that they hold.
    journal: HashMap<String, Vec<u64>>,
}

/// Where one account's rows lie.
struct Where<'p> {
    queues: BTreeMap<&'p str, Held>,
    pending: u64,
    with_readers: u64,
    segments: &'p [u64],
}

impl Places {
    /// Opens the queues of `data_dir` and looks into its journal.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn open(data_dir: &Path) -> Result<Self, StoreError> {
        let folder = data_dir.join("queue");
        let open = |label: &String| QueueHoldings::open(&folder, label);
        let queues = labels(&folder)?.iter().map(open).collect::<Result<_, _>>()?;
        Ok(Self { queues, journal: sealed_accounts(&data_dir.join("journal"))? })
    }

    fn of(&self, report: &Report) -> Result<Where<'_>, StoreError> {
        let mut names = vec![report.did.clone()];
        names.extend(report.revision.as_ref().map(|revision| revision.shown_did().to_owned()));
        names.dedup();
        let mut queues = BTreeMap::new();
        let (mut pending, mut with_readers) = (0, 0);
        for queue in &self.queues {
            let held = queue.held(&names)?;
            if held.is_nothing() {
                continue;
            }
            let ours = held.items.get("pending").copied().unwrap_or(0);
            pending += ours;
            with_readers += held.gone + held.items.values().sum::<u64>() - ours;
            queues.insert(queue.label(), held);
        }
        let segments = self.journal.get(&report.did).map_or(&[][..], Vec::as_slice);
        Ok(Where { queues, pending, with_readers, segments })
    }
}

/// Writes the list of `data_dir`, or of the accounts among it that `is_wanted`; gives how many entries it has.
///
/// # Errors
/// [`StoreError`].
pub fn write(
    data_dir: &Path,
    is_wanted: impl Fn(&str) -> bool,
    lines: Option<&mut Output>,
    csv: Option<&mut Output>,
) -> Result<u64, StoreError> {
    let (reader, places) = (Reader::open(&data_dir.join(LEDGER_FILE))?, Places::open(data_dir)?);
    let (mut lines, mut csv, mut entries) = (lines, csv, 0);
    if let Some(csv) = &mut csv {
        csv.put(CSV_HEAD)?;
    }
    reader.each_withdrawn(|report, standing| {
        if !is_wanted(&report.did) {
            return Ok(());
        }
        entries += 1;
        let place = places.of(&report)?;
        if let Some(lines) = &mut lines {
            lines.put(&format!("{}\n", entry(&report, &standing, &place)))?;
        }
        match &mut csv {
            Some(csv) => csv.put(&row(&report, &standing, &place)),
            None => Ok(()),
        }
    })?;
    Ok(entries)
}

fn entry(report: &Report, standing: &Standing, place: &Where<'_>) -> Value {
    let Where { queues, pending, with_readers, segments } = place;
    let revision = report.revision.as_ref();
    json!({
        "did": report.did,
        "status": standing.status,
        "since": wall_text(standing.since_ms),
        "was": standing.was,
        "is_withdrawn": standing.status != ACTIVE,
        "asked_at": wall_text(standing.asked_ms),
        "host": standing.host,
        "detail": standing.detail,
        "listed": report.listed,
        "rev": revision.map(|revision| &revision.rev),
        "exported_at": report.done_at_ms.map(wall_text),
        "shown_as": revision.map(|it| &it.shown_as).filter(|shown_as| !shown_as.is_empty()),
        "records": revision.map(|revision| &revision.exported),
        "rejected": revision.map(|revision| revision.rejected.values().sum::<u64>()),
        "queues": queues,
        "items_pending": pending,
        "items_with_readers": with_readers,
        "journal_segments": segments,
    })
}

fn row(report: &Report, standing: &Standing, place: &Where<'_>) -> String {
    let revision = report.revision.as_ref();
    let fields = [
        report.did.clone(),
        standing.status.clone(),
        standing.was.clone().unwrap_or_default(),
        wall_text(standing.since_ms),
        wall_text(standing.asked_ms),
        standing.host.clone(),
        revision.map(|revision| revision.rev.clone()).unwrap_or_default(),
        revision.map_or(0, |revision| revision.exported_total()).to_string(),
        place.pending.to_string(),
        place.with_readers.to_string(),
        place.segments.len().to_string(),
    ];
    format!("{}\n", fields.map(|field| quoted(&field)).join(","))
}

/// A CSV field; only what needs quotes gets them.
fn quoted(field: &str) -> String {
    if field.contains([',', '"', '\n', '\r']) {
        return format!("\"{}\"", field.replace('"', "\"\""));
    }
    field.to_owned()
}
