//! Identities that `state.db` knows, for readers beside a writer or without one; each question is a transaction of its own.

use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::{Connection, OptionalExtension};

use crate::domain::identity::Identity;
use crate::domain::ledger::{Account, Doubt, millis};
use crate::store::error::StoreError;
use crate::store::ledger_schema;

/// A reader of identities.
#[derive(Debug)]
pub struct KnownIdentities {
    path: PathBuf,
    connection: Connection,
    ttl: Duration,
}

impl KnownIdentities {
    /// Opens `state.db` for reading; what was resolved longer ago than `ttl` is not known any more.
    ///
    /// # Errors
    /// [`StoreError::Config`] for a newer schema, [`StoreError`] otherwise.
    pub fn open(path: &Path, ttl: Duration) -> Result<Self, StoreError> {
        let connection = ledger_schema::read_only(path)?;
        Ok(Self { path: path.to_owned(), connection, ttl })
    }

    /// The identity of `did` and when it was resolved, milliseconds since 1970; `None`: the directory is to be asked, because
    /// it is not there, too old, or in doubt.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn of(&self, did: &str, now_ms: i64) -> Result<Option<(Identity, i64)>, StoreError> {
        let failed = |error| StoreError::sqlite(&self.path, error);
        let select = "SELECT rules FROM accounts WHERE did = ?1";
        let mut statement = self.connection.prepare_cached(select).map_err(failed)?;
        let found = statement.query_row([did], |row| row.get::<_, Option<String>>(0));
        let Some(text) = found.optional().map_err(failed)?.flatten() else { return Ok(None) };
        // What this skyfill cannot read, the directory can tell.
        let Ok(account) = serde_json::from_str::<Account>(&text) else { return Ok(None) };
        let is_young = now_ms.saturating_sub(account.resolved_at_ms) < millis(self.ttl);
        let is_sure = !matches!(account.doubt, Doubt::Resolve(_));
        let known = account.identity.filter(|_| is_young && is_sure);
        Ok(known.map(|identity| (identity, account.resolved_at_ms)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_unknown_old_or_in_doubt_is_left_to_the_directory() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state.db");
        let writer = Connection::open(&path).unwrap();
        writer.execute_batch("CREATE TABLE accounts (did TEXT, rules TEXT)").unwrap();
        let identity = Identity {
            endpoint: "https://h".to_owned(),
            host: "h".to_owned(),
            key: "did:key:z".to_owned(),
            earlier_keys: Vec::new(),
            handle: None,
        };
        let reason = crate::domain::verdict::Reason::RepoNotFound;
        let base = Account {
            identity: Some(identity.clone()),
            resolved_at_ms: 1_000_000,
            ..Account::default()
        };
        let doubted = Account { doubt: Doubt::Resolve(reason), ..base.clone() };
        let rows = [
            ("sure", serde_json::to_string(&base).ok()),
            ("doubted", serde_json::to_string(&doubted).ok()),
            ("unresolved", serde_json::to_string(&Account::default()).ok()),
            ("torn", Some("{".to_owned())),
            ("new", None),
        ];
        for row in rows {
            writer.execute("INSERT INTO accounts VALUES (?1, ?2)", row).unwrap();
        }
        let known = KnownIdentities::open(&path, Duration::from_secs(60)).unwrap();
        assert_eq!(known.of("sure", 1_059_999).unwrap(), Some((identity, 1_000_000)));
        assert_eq!(known.of("sure", 1_060_000).unwrap(), None, "old");
        for did in ["doubted", "unresolved", "torn", "new", "nobody"] {
            assert_eq!(known.of(did, 1_000_001).unwrap(), None, "{did}");
        }
    }
}
