//! Parkings: which accounts were given up, for followers that want to know: each at least once, and all of them at each start.
//!
//! ```text
//!  parked before ──by reason and row──┐
//!  commit of the ledger ──> file ─────┴──> page of row numbers ──> as the ledger says now: still parked, and listed?
//!  a list brings some back ──> file: everybody anew
//! ```
//! Nothing is kept of who was told: a process that dies tells again. An account that was put back meanwhile is left out.

use std::path::{Path, PathBuf};

use rusqlite::params;

use crate::domain::ledger::State;
use crate::sink::StoreError;
use crate::sink::parked::Parked;
use crate::store::decisions::{DecisionLog, Decisions};
use crate::store::ledger_lists::{REPORT, Reader, Report, report};
use crate::store::ledger_rows::Rows;
use crate::transform::pseudonym::Pseudonyms;

/// Accounts told of in one go.
const PAGE: usize = 500;

/// In the place of a row: a list has brought parked accounts back, so all are told again.
pub(super) const EVERYBODY: i64 = -1;

/// Where parked accounts are found; clones find the same ones.
#[derive(Clone, Debug)]
pub struct Parkings {
    ledger: PathBuf,
    newer: Decisions,
    names: Option<Pseudonyms>,
}

impl Parkings {
    /// Those of `rows`, the ledger `ledger`, from now on; a file in `folder` keeps them until they are read. They are told of by
    /// `names`, if rows are.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn of(
        rows: &mut Rows,
        ledger: &Path,
        folder: &Path,
        names: Option<Pseudonyms>,
    ) -> Result<Self, StoreError> {
        let newer = Decisions::make(folder)?;
        rows.parkings = DecisionLog::of(newer.clone());
        Ok(Self { ledger: ledger.to_owned(), newer, names })
    }

    /// Tells them to one follower.
    #[must_use]
    pub fn teller(self) -> Teller {
        // What is in the file by now is committed, so the round meets it.
        let (all, heard) = (Some((String::new(), 0)), *self.newer.written().borrow());
        Teller { of: self, reader: None, all, heard, then: Cursor::default() }
    }
}

/// How far a follower has been told.
type Cursor = (Option<(String, i64)>, u64);

/// Tells one follower.
pub struct Teller {
    of: Parkings,
    reader: Option<Reader>,
    /// Where the round over all that are parked is; `None`: it is over.
    all: Option<(String, i64)>,
    /// Entries of the file that are told.
    heard: u64,
    /// Where both are once the last page was told.
    then: Cursor,
}

impl Teller {
    /// The next accounts as they are now; nobody: there are none at the moment. The same place again until [`Teller::told`].
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn page(&mut self) -> Result<Vec<Parked>, StoreError> {
        loop {
            let (reports, then) = match self.all.clone() {
                Some(after) => self.of_all(&after)?,
                None => self.of_newer()?,
            };
            let is_over = then == (self.all.clone(), self.heard);
            self.then = then;
            let page: Vec<Parked> = reports.into_iter().filter_map(|it| self.parked(it)).collect();
            if is_over || !page.is_empty() {
                return Ok(page);
            }
            self.told();
        }
    }

    /// The last page was told.
    pub fn told(&mut self) {
        (self.all, self.heard) = std::mem::take(&mut self.then);
    }

    fn of_all(&mut self, after: &(String, i64)) -> Result<(Vec<Report>, Cursor), StoreError> {
        let page = self.reader()?.parked_after(&after.0, after.1, PAGE)?;
        let last = page.last().and_then(|it| match it.account.state {
            State::Parked(reason) => Some((reason.as_str().to_owned(), it.id.0)),
            _ => None,
        });
        Ok((page, (last, self.heard)))
    }

    fn of_newer(&mut self) -> Result<(Vec<Report>, Cursor), StoreError> {
        // What is in the file is committed, so a round that begins now meets it.
        let written = *self.of.newer.written().borrow();
        let rows = self.of.newer.read(self.heard, PAGE)?;
        if rows.contains(&EVERYBODY) {
            return Ok((Vec::new(), (Some((String::new(), 0)), written)));
        }
        let heard = self.heard + rows.len() as u64;
        let mut page = Vec::new();
        for row in rows {
            page.extend(self.reader()?.decided(row)?);
        }
        Ok((page, (None, heard)))
    }

    fn reader(&mut self) -> Result<&Reader, StoreError> {
        if self.reader.is_none() {
            self.reader = Some(Reader::open(&self.of.ledger)?);
        }
        self.reader.as_ref().ok_or_else(|| StoreError::sink("the ledger is not open"))
    }

    fn parked(&self, report: Report) -> Option<Parked> {
        let State::Parked(reason) = report.account.state else { return None };
        let did = match &self.of.names {
            Some(names) => names.of(&report.did),
            None => report.did,
        };
        report.listed.then(|| Parked {
            did,
            reason: reason.as_str().to_owned(),
            last_error: report.account.last_error.map(|it| it.as_str().to_owned()),
            attempts: report.account.attempts,
            revision: report.revision,
        })
    }
}

impl Reader {
    /// Parked accounts behind one of `reason` and `row`, in this order, at most `most`.
    fn parked_after(&self, reason: &str, row: i64, most: usize) -> Result<Vec<Report>, StoreError> {
        let sql = format!(
            "{REPORT} WHERE state = 6 AND (reason, id) > (?1, ?2) ORDER BY reason, id LIMIT ?3"
        );
        let read = || {
            let mut statement = self.connection().prepare_cached(&sql)?;
            let most = i64::try_from(most).unwrap_or(i64::MAX);
            statement
                .query_map(params![reason, row, most], report)?
                .collect::<rusqlite::Result<_>>()
        };
        read().map_err(|error| self.failed(error))
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use super::*;
    use crate::clock::Clock;
    use crate::config::targets::Target;
    use crate::domain::did::Did;
    use crate::domain::ledger::Event;
    use crate::domain::verdict::{Cause, Failure, Reason};
    use crate::store::ledger_lists::Selection;
    use crate::store::ledger_rows::opened;
    use crate::store::ledger_work::Batch;
    use crate::store::listing::Staged;

    fn rows(folder: &Path) -> Rows {
        opened(folder, Clock::system())
    }

    fn did(number: usize) -> String {
        let letter = |at: u32| char::from(b"234567abcdefghij"[(number >> (at * 4)) % 16]);
        format!("did:plc:{}", (0..24).map(|at| letter(at % 8)).collect::<String>())
    }

    fn list(rows: &mut Rows, folder: &Path, numbers: std::ops::Range<usize>) {
        let targets =
            numbers.map(|it| Ok::<Target, Infallible>(Target::Did(Did::parse(&did(it)).unwrap())));
        let staged = Staged::read(folder, targets, &|_| {}).unwrap().unwrap();
        staged.know(rows, &|_| {}).unwrap().swap(rows, &|_| {}).unwrap();
    }

    /// Leases every account that is queued, and gives up on it: those of even rows for one reason, the others for another.
    fn park_all(rows: &mut Rows) {
        loop {
            let batch = Batch { plc: 200, ..Batch::default() };
            let leased = rows.transaction(|rows| rows.run_batch(&batch)).unwrap().plc;
            if leased.is_empty() {
                return;
            }
            for it in leased {
                let reason = [Reason::NoPds, Reason::DidNotFound][it.id.0 as usize % 2];
                let failure = Failure::new(Cause::Terminal(reason), None, "");
                let event = Event::Failed { failure, host_usable_ms: None };
                let applied = rows.transaction(|rows| rows.apply(it.id, event)).unwrap();
                assert_eq!(applied.after.state, State::Parked(reason));
            }
        }
    }

    /// Reasons by DID of everything that is told until there is nothing more.
    fn told(teller: &mut Teller) -> Vec<(String, String)> {
        let mut all = Vec::new();
        loop {
            let page = teller.page().unwrap();
            assert_eq!(page, teller.page().unwrap(), "the same again until it is told");
            if page.is_empty() {
                return all;
            }
            assert!(page.len() <= PAGE);
            all.extend(page.into_iter().map(|it| (it.did, it.reason)));
            teller.told();
        }
    }

    #[test]
    fn those_that_are_parked_are_told_first_then_each_as_it_comes_and_none_that_is_put_back() {
        let folder = tempfile::tempdir().unwrap();
        let mut rows = rows(folder.path());
        let count = 2 * PAGE + 10;
        list(&mut rows, folder.path(), 0..count);
        park_all(&mut rows);
        let ledger = folder.path().join("state.db");
        let parkings = Parkings::of(&mut rows, &ledger, folder.path(), None).unwrap();
        let mut teller = parkings.clone().teller();
        let mut first = told(&mut teller);
        first.sort();
        first.dedup();
        assert_eq!(first.len(), count, "each once");
        // One is put back, one is put back and given up again, as somebody else is told at the same time.
        let retry = |rows: &mut Rows, row| {
            let one = Selection::Did(name(&ledger, row));
            assert_eq!(rows.transaction(|rows| rows.retry(&one)).unwrap(), 1);
        };
        [1, 2].into_iter().for_each(|row| retry(&mut rows, row));
        park_all(&mut rows);
        retry(&mut rows, 1);
        assert_eq!(told(&mut teller), [(name(&ledger, 2), "no_pds".to_owned())]);
        assert_eq!(told(&mut parkings.teller()).len(), count - 1, "somebody new hears of all");
    }

    /// The DID of a row.
    fn name(ledger: &Path, row: i64) -> String {
        let connection = rusqlite::Connection::open(ledger).unwrap();
        connection
            .query_row("SELECT did FROM accounts WHERE id = ?1", [row], |it| it.get(0))
            .unwrap()
    }

    #[test]
    fn what_a_list_brings_back_is_told_and_names_are_those_of_the_rows() {
        let folder = tempfile::tempdir().unwrap();
        let mut rows = rows(folder.path());
        list(&mut rows, folder.path(), 0..3);
        park_all(&mut rows);
        list(&mut rows, folder.path(), 0..1);
        let (names, ledger) = (Pseudonyms::new(&[7; 32]), folder.path().join("state.db"));
        let shown = |number| names.as_ref().unwrap().of(&did(number));
        let parkings = Parkings::of(&mut rows, &ledger, folder.path(), names.clone()).unwrap();
        let mut teller = parkings.teller();
        assert_eq!(told(&mut teller), [(shown(0), "did_not_found".to_owned())]);
        list(&mut rows, folder.path(), 0..3);
        let mut all: Vec<String> = told(&mut teller).into_iter().map(|it| it.0).collect();
        all.sort();
        let mut expected: Vec<String> = (0..3).map(shown).collect();
        expected.sort();
        assert_eq!(all, expected);
        assert!(told(&mut teller).is_empty());
    }
}
