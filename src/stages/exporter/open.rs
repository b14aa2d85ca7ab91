//! An account whose rows arrive: held in memory while it is small, in a part of its own once it is not.

use std::sync::{Arc, Mutex, Weak};

use crate::domain::verdict::{Cause, Failure, Reason};
use crate::stages::messages::{Export, News, Refusal, Ticket};
use crate::store::budget::Reservation;
use crate::store::items::Item;
use crate::store::journal::{Journal, JournalError, LargePart};

use super::lock;

/// An unfinished account.
pub(super) struct Open {
    pub(super) export: Weak<Export>,
    pub(super) next: u64,
    pub(super) held: Vec<Item>,
    pub(super) reservations: Vec<Reservation>,
    pub(super) large: Option<LargePart>,
}

impl Open {
    pub(super) fn new(export: &Arc<Export>) -> Self {
        let export = Arc::downgrade(export);
        Self { export, next: 0, held: Vec::new(), reservations: Vec::new(), large: None }
    }

    /// Writes what is held to its own part.
    pub(super) fn write(&mut self, journal: &Mutex<Journal>) -> Result<(), JournalError> {
        let mut journal = lock(journal);
        let mut large = match self.large.take() {
            Some(large) => large,
            None => journal.begin_large()?,
        };
        let written = journal.append_large(&mut large, &self.held);
        self.large = Some(large);
        written?;
        self.held.clear();
        self.reservations.clear();
        Ok(())
    }

    /// Bytes of rows in memory.
    pub(super) fn held_bytes(&self) -> u64 {
        self.held.iter().map(|item| item.payload.len() as u64).sum()
    }
}

/// Ends the ticket of an account that the journal did not take.
pub(super) fn refused(export: &Export, ticket: Ticket) {
    match export.refused() {
        Some(Refusal::TooLarge) => {
            let detail = "its rows are larger than limits.journal";
            let cause = Cause::Terminal(Reason::RepoTooLarge);
            ticket.finish(News::Failed(Failure::new(cause, None, detail)));
        }
        Some(Refusal::NoRoom) => ticket.finish(News::TooLargeForNow),
        _ => ticket.finish(News::GivenBack),
    }
}
