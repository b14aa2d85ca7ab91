//! A run's own row in the ledger: begun, then ended with its exit code; a run that dies in between has no end there.
//!
//! What cannot be written here is logged and changes nothing else: the row is about the run, not part of its work.

use std::path::PathBuf;

use serde_json::json;

use crate::clock::{Clock, Instant};
use crate::config::settings::Settings;
use crate::domain::filter::{Filter, TypeEntry};
use crate::exit_code::ExitCode;
use crate::pipeline::Data;
use crate::store::error::StoreError;
use crate::store::ledger_lists::{Counts, Reader};
use crate::store::ledger_rows::RunCounts;
use crate::store::ledger_runs::{Begun, Ended, end_run};
use crate::transform::Transformer;

/// A run that is recorded.
pub struct Recorded {
    command: &'static str,
    filter: String,
    clock: Clock,
    begun: Instant,
    row: Option<(PathBuf, i64)>,
    /// What it has decided, once it has worked.
    pub decided: Option<RunCounts>,
}

impl Recorded {
    /// A run that begins now; nothing is written yet.
    #[must_use]
    pub fn new(command: &'static str, settings: &Settings, clock: &Clock) -> Self {
        let (filter, clock) = (told(&settings.filter), clock.clone());
        Self { command, filter, begun: clock.now(), clock, row: None, decided: None }
    }

    /// Writes that it has begun, once.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn begin(&mut self, data: &mut Data) -> Result<(), StoreError> {
        if self.row.is_none() {
            let begun = Begun { command: self.command, filter: self.filter.clone() };
            let id = data.rows_mut().begin_run(&begun)?;
            self.row = Some((data.ledger_path(), id));
        }
        Ok(())
    }

    /// Number of its row, once that is written.
    #[must_use]
    pub fn id(&self) -> Option<i64> {
        self.row.as_ref().map(|(_, id)| *id)
    }

    /// Writes how many accounts it was given.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn given(&self, data: &mut Data, accounts: u64) -> Result<(), StoreError> {
        match &self.row {
            Some((_, id)) => data.rows_mut().run_given(*id, accounts),
            None => Ok(()),
        }
    }

    /// Writes how it ends; the ledger's writer has ended, or never begun.
    pub fn end(&self, exit: ExitCode, counts: Option<&Counts>) {
        let Some((path, id)) = &self.row else { return };
        let decided = self.decided.unwrap_or_default();
        let ended = Ended {
            ended_ms: self.clock.wall_ms(),
            exit: exit.code(),
            seconds: self.clock.now().duration_since(self.begun).as_secs_f64(),
            accounts: counts.map(|counts| [counts.total(), counts.done, counts.parked]),
            this_run: [decided.done, decided.parked, decided.records],
        };
        if let Err(error) = end_run(path, *id, &ended) {
            tracing::warn!(%error, "the end of this run could not be recorded");
        }
    }

    /// The same for a run whose accounts are whatever is listed at its end, if it has worked on them.
    pub fn end_by_ledger(&self, exit: ExitCode) {
        let worked = self.row.as_ref().filter(|_| self.decided.is_some());
        let counts = worked.and_then(|(path, _)| Reader::open(path).ok()?.counts().ok());
        self.end(exit, counts.as_ref());
    }
}

/// The filter as people wrote it, and the hash that done accounts keep.
fn told(filter: &Filter) -> String {
    let types: Vec<String> = filter.types.iter().map(TypeEntry::label).collect();
    let word = |word: &dyn std::fmt::Debug| format!("{word:?}").to_lowercase();
    json!({
        "types": types,
        "start": filter.window.start,
        "end": filter.window.end,
        "outside": word(&filter.window.outside),
        "offsets": word(&filter.window.offsets),
        "hash": Transformer::new(filter).filter_hash(),
    })
    .to_string()
}
