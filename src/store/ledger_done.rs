//! Done accounts of `state.db`, listed or not, for readers that take long: each question is a transaction of its own, so that
//! however slowly the answers are used, the writer's WAL does not grow for them.

use std::path::{Path, PathBuf};

use rusqlite::Connection;

use crate::store::error::StoreError;
use crate::store::ledger_lists::{Report, report};
use crate::store::ledger_rows::DONE;
use crate::store::ledger_schema;

/// Accounts in one page.
const ACCOUNTS_AT_ONCE: i64 = 500;

/// A reader of done accounts, beside a writer or without one.
#[derive(Debug)]
pub struct DoneAccounts {
    path: PathBuf,
    connection: Connection,
}

impl DoneAccounts {
    /// Opens `state.db` for reading.
    ///
    /// # Errors
    /// [`StoreError::Config`] for a newer schema, [`StoreError`] otherwise.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        let connection = ledger_schema::read_only(path)?;
        Ok(Self { path: path.to_owned(), connection })
    }

    /// Whether this account is done.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn has(&self, did: &str) -> Result<bool, StoreError> {
        let failed = |error| StoreError::sqlite(&self.path, error);
        let select = "SELECT 1 FROM accounts WHERE did = ?1 AND state = ?2";
        let mut statement = self.connection.prepare_cached(select).map_err(failed)?;
        statement.exists((did, DONE)).map_err(failed)
    }

    /// Tells `each` of every done account, or of those that are on the lists; in ledger order, one at a time. An error of
    /// `each` ends it.
    ///
    /// # Errors
    /// [`StoreError`], or the error of `each`.
    pub fn each<E: From<StoreError>>(
        &self,
        only_listed: bool,
        mut each: impl FnMut(Report) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut after = 0;
        loop {
            let page = self.page(only_listed, after)?;
            let Some((last, _)) = page.last() else { return Ok(()) };
            after = *last;
            page.into_iter().try_for_each(|(_, report)| each(report))?;
        }
    }

    fn page(&self, only_listed: bool, after: i64) -> Result<Vec<(i64, Report)>, StoreError> {
        let failed = |error| StoreError::sqlite(&self.path, error);
        // In the order of the rows: an index of the done ones would have to be sorted for every page.
        let select =
            "SELECT did, listed, rules, revision, edition, done_at_ms, id FROM accounts NOT INDEXED
                      WHERE id > ?1 AND state = ?2 AND (listed = 1 OR NOT ?3) ORDER BY id LIMIT ?4";
        let mut statement = self.connection.prepare_cached(select).map_err(failed)?;
        let parameters = (after, DONE, only_listed, ACCOUNTS_AT_ONCE);
        let rows = statement.query_map(parameters, |row| Ok((row.get(6)?, report(row)?)));
        rows.map_err(failed)?.collect::<Result<_, _>>().map_err(failed)
    }
}
