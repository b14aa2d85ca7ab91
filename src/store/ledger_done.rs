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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Clock;
    use crate::domain::account::Revision;
    use crate::store::ledger_rows::opened;
    use crate::store::sorted_list::Entry;

    #[test]
    fn every_done_account_is_told_once_in_ledger_order_whatever_their_number() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state.db");
        let mut rows = opened(folder.path(), Clock::fixed(1_700_000_000_000));
        // Two pages and one account; behind them, one that is not done. Every third is listed.
        let did = |n: i64| format!("did:plc:{n}");
        let count = 2 * ACCOUNTS_AT_ONCE + 1;
        let made = rows.transaction(|rows| {
            (1..=count + 1).try_for_each(|n| rows.add(&Entry::did(&did(n))).map(drop))?;
            let revision = |n| Revision { did: did(n), leaves: n as u64, ..Revision::default() };
            rows.apply_segment(1, &(1..=count).map(revision).collect::<Vec<_>>())?;
            rows.execute("UPDATE accounts SET listed = 1 WHERE id % 3 = 0", [])
        });
        made.unwrap();
        let done = DoneAccounts::open(&path).unwrap();
        let has = |n| done.has(&did(n)).unwrap();
        assert_eq!([1, 3, count, count + 1, count + 2].map(has), [true, true, true, false, false]);
        let told = |only_listed| {
            let mut told = Vec::new();
            let each = |it: Report| {
                assert_eq!((it.did, it.revision.unwrap().leaves), (did(it.id.0), it.id.0 as u64));
                told.push(it.id.0);
                Ok::<_, StoreError>(())
            };
            done.each(only_listed, each).unwrap();
            told
        };
        assert_eq!(told(false), (1..=count).collect::<Vec<_>>());
        assert_eq!(told(true), (1..=count).filter(|n| n % 3 == 0).collect::<Vec<_>>());
        let mut heard = 0;
        let ended = done.each(false, |_| {
            heard += 1;
            if heard < 3 { Ok(()) } else { Err(StoreError::Config("enough".to_owned())) }
        });
        assert!(ended.is_err_and(|error| error.to_string() == "enough") && heard == 3);
    }
}
