//! Which accounts are done, whoever did them: what `<topics>.accounts` says, kept in a file of this process's own.
//!
//! ```text
//!  <topics>.accounts ──from where the last reading ended──> DATA/accounts.db: done(did), read(partition, offset)
//! ```
//! It is a copy: without it, or where the topic was made anew, everything is read again. So nothing of it is synced, and what a
//! crash loses of it is read once more.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use rusqlite::{Connection, OptionalExtension, params};

use crate::sink::StoreError;
use crate::sink::kafka::accounts::{self, ReadFrom, Seen};
use crate::sink::kafka::client::Clients;

/// Name of the file in a data directory.
pub const FILE: &str = "accounts.db";

/// Accounts that are noted in one transaction.
const NOTED_AT_ONCE: usize = 10_000;

const TABLES: &str = "
    PRAGMA journal_mode=WAL; PRAGMA synchronous=OFF; PRAGMA busy_timeout=10000;
    CREATE TABLE IF NOT EXISTS done (did TEXT PRIMARY KEY) WITHOUT ROWID;
    CREATE TABLE IF NOT EXISTS read (partition INTEGER PRIMARY KEY, next INTEGER NOT NULL);";

/// The accounts that are done, on disk.
#[derive(Debug)]
pub struct Known {
    path: PathBuf,
    connection: Connection,
}

impl Known {
    /// Opens or makes the file in `folder`.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn open(folder: &Path) -> Result<Self, StoreError> {
        let path = folder.join(FILE);
        let failed = |error| StoreError::sqlite(&path, error);
        let connection = Connection::open(&path).map_err(failed)?;
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o600);
        let permitted = std::fs::set_permissions(&path, mode);
        permitted.map_err(|error| StoreError::io(&path, error))?;
        connection.execute_batch(TABLES).map_err(failed)?;
        Ok(Self { path, connection })
    }

    /// Whether the account that the topic calls `did` is done.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn has(&self, did: &str) -> Result<bool, StoreError> {
        let failed = |error| self.failed(error);
        let select = "SELECT 1 FROM done WHERE did = ?1";
        let mut statement = self.connection.prepare_cached(select).map_err(failed)?;
        let found = statement.query_row([did], |_| Ok(())).optional().map_err(failed)?;
        Ok(found.is_some())
    }

    /// Notes that accounts are done.
    ///
    /// # Errors
    /// [`StoreError`]; none of them is noted then.
    pub fn note<'d>(&mut self, dids: impl Iterator<Item = &'d str>) -> Result<(), StoreError> {
        let failed = |path: &Path, error| StoreError::sqlite(path, error);
        let path = self.path.clone();
        let transaction = self.connection.transaction().map_err(|it| failed(&path, it))?;
        for did in dids {
            let insert = "INSERT OR IGNORE INTO done VALUES (?1)";
            let mut statement =
                transaction.prepare_cached(insert).map_err(|it| failed(&path, it))?;
            statement.execute([did]).map_err(|it| failed(&path, it))?;
        }
        transaction.commit().map_err(|it| failed(&path, it))
    }

    /// Where the next reading of the topic begins.
    fn from(&self) -> Result<ReadFrom, StoreError> {
        let failed = |error| self.failed(error);
        let select = "SELECT partition, next FROM read";
        let mut statement = self.connection.prepare(select).map_err(failed)?;
        let rows = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?))).map_err(failed)?;
        rows.collect::<Result<HashMap<i32, i64>, _>>().map_err(failed)
    }

    fn read_through(&self, next: &ReadFrom) -> Result<(), StoreError> {
        for (partition, next) in next {
            let insert = "INSERT OR REPLACE INTO read VALUES (?1, ?2)";
            let inserted = self.connection.execute(insert, params![partition, next]);
            inserted.map_err(|error| self.failed(error))?;
        }
        Ok(())
    }

    fn begin_anew(&self) -> Result<(), StoreError> {
        let emptied = self.connection.execute_batch("DELETE FROM done; DELETE FROM read;");
        emptied.map_err(|error| self.failed(error))
    }

    fn failed(&self, error: rusqlite::Error) -> StoreError {
        StoreError::sqlite(&self.path, error)
    }
}

/// Reads what has come to the topic since the last time, to its end as it is now; `known` is locked only while accounts are
/// noted.
///
/// # Errors
/// As [`accounts::read_from`], or [`StoreError`] of the file.
pub fn catch_up(clients: &Clients, known: &std::sync::Mutex<Known>) -> Result<u64, StoreError> {
    let lock = || known.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let mut from = lock().from()?;
    let ends = accounts::ends(clients)?;
    if from.iter().any(|(partition, next)| ends.get(partition).is_none_or(|end| next > end)) {
        tracing::warn!("the topic of the accounts was made anew: it is read from its beginning");
        lock().begin_anew()?;
        from.clear();
    }
    let (mut batch, mut noted, mut failed) = (Vec::new(), 0, None);
    let mut note = |batch: &mut Vec<String>| {
        noted += batch.len() as u64;
        let done = lock().note(batch.drain(..).as_slice().iter().map(String::as_str));
        batch.clear();
        done
    };
    let next = accounts::read_from(clients, &from, &ends, |key, value| {
        if failed.is_some() || accounts::seen(value) != Some(Seen::Done) {
            return;
        }
        batch.extend(std::str::from_utf8(key).ok().map(str::to_owned));
        if batch.len() >= NOTED_AT_ONCE {
            failed = note(&mut batch).err();
        }
    })?;
    note(&mut batch)?;
    failed.map_or(Ok(()), Err)?;
    lock().read_through(&next)?;
    Ok(noted)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_noted_is_there_after_it_is_opened_again() {
        let folder = tempfile::tempdir().unwrap();
        let mut known = Known::open(folder.path()).unwrap();
        known.note(["did:plc:a", "did:plc:b"].into_iter()).unwrap();
        known.note(["did:plc:a"].into_iter()).unwrap();
        known.read_through(&[(0, 5), (3, 9)].into()).unwrap();
        known.read_through(&[(3, 11)].into()).unwrap();
        drop(known);
        let known = Known::open(folder.path()).unwrap();
        assert!(known.has("did:plc:a").unwrap() && known.has("did:plc:b").unwrap());
        assert!(!known.has("did:plc:c").unwrap());
        assert_eq!(known.from().unwrap(), [(0, 5), (3, 11)].into());
        known.begin_anew().unwrap();
        assert!(!known.has("did:plc:a").unwrap() && known.from().unwrap().is_empty());
    }
}
