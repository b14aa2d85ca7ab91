//! Done accounts of `state.db`, listed or not, for readers that take long: each question is a transaction of its own, so that
//! however slowly the answers are used, the writer's WAL does not grow for them.

use std::path::{Path, PathBuf};

use rusqlite::{Connection, OpenFlags};

use crate::store::error::StoreError;
use crate::store::ledger_rows::DONE;
use crate::store::ledger_schema;

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
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let opened = Connection::open_with_flags(path, flags);
        let connection = opened.map_err(|error| StoreError::sqlite(path, error))?;
        ledger_schema::known_schema(&connection, path)?;
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
}
