//! What a backfill gives back: counts of the given accounts, and each account when it is asked for.
//!
//! ```text
//!  Report            counts, as `skyfill backfill --json` has them; long lists are read from the ledger, one account at a time
//!  BatchedBackfill   what the Python service's run_batched_backfill returned, under its names: holds every user
//! ```

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::commands::backfill::Performed;
use crate::commands::summary;
use crate::domain::ledger::State;
use crate::library::error::Error;
use crate::store::error::StoreError;
use crate::store::ledger_lists::{self, Decided, Reader};

/// Labelled counts.
pub type Counts = BTreeMap<String, u64>;

/// The given accounts by how they stand.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Accounts {
    /// Exported.
    pub done: u64,
    /// Given up, with a named reason.
    pub parked: u64,
    /// Not decided yet: 0 unless the run was cancelled.
    pub left: u64,
}

impl Accounts {
    /// Done or parked.
    #[must_use]
    pub const fn decided(&self) -> u64 {
        self.done + self.parked
    }

    /// All that were given, each once.
    #[must_use]
    pub const fn total(&self) -> u64 {
        self.decided() + self.left
    }
}

/// What this run itself did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct ThisRun {
    /// Accounts exported.
    pub done: u64,
    /// Accounts parked.
    pub parked: u64,
    /// Records exported.
    pub records: u64,
}

/// What became of the given accounts, whenever they were decided.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Report {
    /// How they stand.
    pub accounts: Accounts,
    /// Exported records by type.
    pub records: Counts,
    /// Records left out on purpose, by reason.
    pub skipped: Counts,
    /// Records in the rejected queue, by reason.
    pub rejected: Counts,
    /// Bytes of the exported repositories.
    pub repo_bytes: u64,
    /// How long this run took, seconds.
    pub seconds: f64,
    /// What this run itself did.
    pub this_run: ThisRun,
    /// It was cancelled.
    pub interrupted: bool,
    #[serde(skip)]
    ledger: PathBuf,
}

/// An exported account, in the Python service's names, and below them what is skyfill's own.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct User {
    /// DID.
    pub did: String,
    /// Handle as the DID document claims it; empty if it has none.
    pub bluesky_handle: String,
    /// Exported types, sorted, comma between them.
    pub types: String,
    /// Exported records.
    pub total_records: u64,
    /// The same by type, as JSON text.
    pub total_records_by_type: String,
    /// Endpoint of its host, as the document has it.
    pub pds_service_endpoint: String,
    /// When it was done, UTC, `YYYY-MM-DD-HH:MM:SS`.
    pub timestamp: String,
    /// Revision that was exported.
    pub rev: String,
    /// CID of its commit.
    pub commit_cid: String,
    /// Bytes of its repository.
    pub repo_bytes: u64,
    /// Records in its repository.
    pub leaves: u64,
    /// Those left out, by reason.
    pub skipped: Counts,
    /// Those in the rejected queue, by reason.
    pub rejected: Counts,
}

impl User {
    /// Exported records by type.
    #[must_use]
    pub fn counts(&self) -> Counts {
        serde_json::from_str(&self.total_records_by_type).unwrap_or_default()
    }

    pub(crate) fn from_ledger(report: ledger_lists::Report) -> Self {
        // One place says what a user is: the command's summary. Its own words always read back.
        serde_json::from_value(summary::user(report)).unwrap_or_default()
    }
}

/// An account that was given up.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct Parked {
    /// DID, or the cleaned text that stood in its place.
    pub did: String,
    /// Why, a word of a closed set: `repo_not_found`, `did_tombstoned`, ...
    pub reason: String,
    /// The error behind it, if there was one.
    pub last_error: Option<String>,
    /// Attempts that were charged.
    pub attempts: u32,
    /// Evidence, for people.
    pub detail: String,
}

impl Parked {
    pub(crate) fn from_ledger(report: ledger_lists::Report) -> Self {
        let ledger_lists::Report { did, account, .. } = report;
        let reason = match account.state {
            State::Parked(reason) => reason.as_str(),
            _ => "",
        };
        Self {
            did,
            reason: reason.to_owned(),
            last_error: account.last_error.map(|error| error.as_str().to_owned()),
            attempts: account.attempts,
            detail: account.detail,
        }
    }
}

impl Report {
    /// Reads the counts of a run that has ended.
    pub(crate) fn of(performed: &Performed) -> Result<Self, StoreError> {
        let Performed { ledger, run, .. } = performed;
        let reader = Reader::open(ledger)?;
        let (counts, sums) = (reader.counts()?, reader.sums(&run.labels)?);
        let decided = run.decided;
        Ok(Self {
            accounts: Accounts { done: counts.done, parked: counts.parked, left: counts.pending() },
            records: sums.records,
            skipped: sums.skipped,
            rejected: sums.rejected,
            repo_bytes: sums.repo_bytes,
            seconds: run.took.as_secs_f64(),
            this_run: ThisRun {
                done: decided.done,
                parked: decided.parked,
                records: decided.records,
            },
            interrupted: run.interrupted,
            ledger: ledger.clone(),
        })
    }

    /// A run that was cancelled before it could begin.
    pub(crate) fn nothing_begun() -> Self {
        Self { interrupted: true, ..Self::default() }
    }

    /// Tells `each` of every exported account, one at a time, in the order of the list. Blocks.
    ///
    /// # Errors
    /// [`Error::Io`] if the ledger cannot be read.
    pub fn each_user(&self, mut each: impl FnMut(User)) -> Result<(), Error> {
        self.each(Decided::Done, |report| each(User::from_ledger(report)))
    }

    /// Tells `each` of every parked account, one at a time. Blocks.
    ///
    /// # Errors
    /// [`Error::Io`] if the ledger cannot be read.
    pub fn each_parked(&self, mut each: impl FnMut(Parked)) -> Result<(), Error> {
        self.each(Decided::Parked, |report| each(Parked::from_ledger(report)))
    }

    fn each(
        &self,
        decided: Decided,
        mut each: impl FnMut(ledger_lists::Report),
    ) -> Result<(), Error> {
        if self.ledger.as_os_str().is_empty() {
            return Ok(());
        }
        let reader = Reader::open(&self.ledger)?;
        reader.each(decided, |report| {
            each(report);
            Ok(())
        })?;
        Ok(())
    }
}

/// What the Python service's `run_batched_backfill` returned, under its names.
///
/// It holds every user: for lists of millions take [`Report`], which reads them one by one.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct BatchedBackfill {
    /// Given accounts, each once, divided by the batch size, rounded up. skyfill itself has no batches: an account follows as
    /// soon as another is sealed, and the batch size bounds how many are between the two.
    pub total_batches: u64,
    /// Exported records by type, of each exported account under its own DID.
    pub did_to_backfill_counts_map: BTreeMap<String, Counts>,
    /// Accounts that were exported.
    pub total_processed_users: u64,
    /// Accounts that were given, each once.
    pub total_users: u64,
    /// Each exported account.
    pub user_backfill_metadata: Vec<User>,
    /// Each account that was given up, with its reason; the Python service had no word for them.
    pub parked: Vec<Parked>,
}

impl BatchedBackfill {
    /// Reads all of it.
    pub(crate) fn of(report: &Report, batch_size: u64) -> Result<Self, Error> {
        let mut batched = Self {
            total_batches: report.accounts.total().div_ceil(batch_size.max(1)),
            total_processed_users: report.accounts.done,
            total_users: report.accounts.total(),
            ..Self::default()
        };
        report.each_user(|user| {
            batched.did_to_backfill_counts_map.insert(user.did.clone(), user.counts());
            batched.user_backfill_metadata.push(user);
        })?;
        report.each_parked(|parked| batched.parked.push(parked))?;
        Ok(batched)
    }
}
