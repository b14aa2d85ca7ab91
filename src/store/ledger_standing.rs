//! How exported accounts stood when their hosts were last asked: what `skyfill recheck` keeps, so that a date stays the same
//! from one recheck to the next.
//!
//! ```text
//!  standing (id, status, since_ms, was, asked_ms, host, detail)    since when it has this status, first seen by us; the one before
//! ```

use std::path::Path;

use rusqlite::{Connection, OpenFlags, OptionalExtension, params};

use crate::domain::account::AccountId;
use crate::store::error::StoreError;
use crate::store::ledger_lists::{Reader, Report};
use crate::store::ledger_rows::Rows;

/// The status of an account that can be had.
pub const ACTIVE: &str = "active";

/// What a host said of an account.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Told {
    /// Whose row.
    pub id: AccountId,
    /// `active`, `deleted`, `deactivated`, `takendown`, `suspended`, or `inactive` for whatever else hosts say.
    pub status: &'static str,
    /// Who said so.
    pub host: String,
    /// In which words, cleaned.
    pub detail: String,
}

/// How an account stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Standing {
    /// As in [`Told`].
    pub status: String,
    /// When it was first seen so, milliseconds since 1970.
    pub since_ms: i64,
    /// What it was before, if we have seen it.
    pub was: Option<String>,
    /// When its host was last asked, milliseconds since 1970.
    pub asked_ms: i64,
    /// Who said so.
    pub host: String,
    /// In which words.
    pub detail: String,
}

impl Rows {
    /// Notes what hosts said; gives how many accounts are back that were withdrawn before.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn note_standings(&mut self, told: &[Told]) -> Result<u64, StoreError> {
        let (now_ms, mut back) = (self.now_ms(), 0);
        for Told { id, status, host, detail } in told {
            // Forgotten meanwhile: nothing is kept of it.
            let is_known = "SELECT count(*) FROM accounts WHERE id = ?1 AND state != 7";
            if self.one::<i64>(is_known, &[&id.0])? == 0 {
                continue;
            }
            let select = "SELECT status FROM standing WHERE id = ?1";
            let before = self.connection().query_row(select, [id.0], |row| row.get(0));
            let before: Option<String> = before.optional().map_err(|error| self.failed(error))?;
            match before {
                Some(before) if before == *status => {
                    let update =
                        "UPDATE standing SET asked_ms = ?2, host = ?3, detail = ?4 WHERE id = ?1";
                    self.execute(update, params![id.0, now_ms, host, detail])?;
                }
                before => {
                    back += u64::from(*status == ACTIVE && before.is_some());
                    let insert =
                        "INSERT OR REPLACE INTO standing VALUES (?1, ?2, ?3, ?4, ?3, ?5, ?6)";
                    self.execute(insert, params![id.0, status, now_ms, before, host, detail])?;
                }
            }
        }
        Ok(back)
    }
}

/// Accounts to be visited, by host: a file of its own, so that memory is that of one page whatever the number of accounts.
pub struct Visits {
    path: std::path::PathBuf,
    connection: Connection,
}

/// An account to be visited.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Visit {
    /// Its row.
    pub id: AccountId,
    /// Its DID.
    pub did: String,
    /// Its endpoint as it was last known.
    pub endpoint: String,
}

impl Visits {
    /// An empty list; its file lies in `folder`, without a name.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn new(folder: &Path) -> Result<Self, StoreError> {
        let failed = |error| StoreError::io(folder, error);
        let file = tempfile::NamedTempFile::new_in(folder).map_err(failed)?;
        let path = file.path().to_owned();
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let opened = Connection::open_with_flags(&path, flags);
        let connection = opened.map_err(|error| StoreError::sqlite(&path, error))?;
        let made = connection.execute_batch(
            "PRAGMA journal_mode=OFF; PRAGMA synchronous=OFF; PRAGMA cache_size=-4096; BEGIN;
             CREATE TABLE visits (host TEXT, id INTEGER, did TEXT, endpoint TEXT, PRIMARY KEY (host, id)) WITHOUT ROWID;",
        );
        made.map_err(|error| StoreError::sqlite(&path, error))?;
        Ok(Self { path, connection })
    }

    /// Adds an account that was exported and is not forgotten; says whether it is one.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn add(&self, id: AccountId, report: &Report) -> Result<bool, StoreError> {
        let Some(identity) = &report.account.identity else { return Ok(false) };
        if report.revision.is_none() {
            return Ok(false);
        }
        let insert = "INSERT OR IGNORE INTO visits VALUES (?1, ?2, ?3, ?4)";
        let added = self.connection.prepare_cached(insert).and_then(|mut statement| {
            statement.execute(params![identity.host, id.0, report.did, identity.endpoint])
        });
        added.map(|_| true).map_err(|error| self.failed(error))
    }

    /// Hosts, in order.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn hosts(&self) -> Result<Vec<String>, StoreError> {
        let hosts = || -> rusqlite::Result<Vec<String>> {
            let mut statement = self.connection.prepare("SELECT DISTINCT host FROM visits")?;
            statement.query_map([], |row| row.get(0))?.collect()
        };
        hosts().map_err(|error| self.failed(error))
    }

    /// The next accounts of a host behind the row `after`.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn page(&self, host: &str, after: i64, count: usize) -> Result<Vec<Visit>, StoreError> {
        let page = || -> rusqlite::Result<Vec<Visit>> {
            let select = "SELECT id, did, endpoint FROM visits WHERE host = ?1 AND id > ?2 ORDER BY id LIMIT ?3";
            let mut statement = self.connection.prepare_cached(select)?;
            let count = i64::try_from(count).unwrap_or(i64::MAX);
            let rows = statement.query_map(params![host, after, count], |row| {
                Ok(Visit { id: AccountId(row.get(0)?), did: row.get(1)?, endpoint: row.get(2)? })
            })?;
            rows.collect()
        };
        page().map_err(|error| self.failed(error))
    }

    fn failed(&self, error: rusqlite::Error) -> StoreError {
        StoreError::sqlite(&self.path, error)
    }
}

impl Reader {
    /// Tells `each` of every listed account that was exported, with its row. An error of `each` ends it.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn each_to_visit(
        &self,
        mut each: impl FnMut(AccountId, Report) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        self.each_where("listed = 1 AND revision IS NOT NULL", &[], |report| {
            each(report.id, report)
        })
    }

    /// How an account stood when it was last asked.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn standing(&self, id: AccountId) -> Result<Option<Standing>, StoreError> {
        let select =
            "SELECT status, since_ms, was, asked_ms, host, detail FROM standing WHERE id = ?1";
        let read = |row: &rusqlite::Row<'_>| {
            Ok(Standing {
                status: row.get(0)?,
                since_ms: row.get(1)?,
                was: row.get(2)?,
                asked_ms: row.get(3)?,
                host: row.get(4)?,
                detail: row.get(5)?,
            })
        };
        self.one_or_none(select, &[&id.0], read)
    }

    /// Tells `each` of every account that is withdrawn, or was. An error of `each` ends it.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn each_withdrawn(
        &self,
        mut each: impl FnMut(Report, Standing) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        // A ledger of before there were rechecks has none.
        let known = "SELECT count(*) FROM sqlite_master WHERE type = 'table' AND name = 'standing'";
        if self.one_or_none(known, &[], |row| row.get::<_, i64>(0))? != Some(1) {
            return Ok(());
        }
        let withdrawn = "id IN (SELECT id FROM standing WHERE status != 'active' OR was IS NOT NULL) AND state != 7";
        self.each_where(withdrawn, &[], |report| match self.standing(report.id)? {
            Some(standing) => each(report, standing),
            None => Ok(()),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Clock;
    use crate::domain::account::Revision;
    use crate::domain::identity::Identity;
    use crate::domain::ledger::Account;
    use crate::store::ledger_rows::opened;
    use crate::store::sorted_list::Entry;

    const NOW: i64 = 1_700_000_000_000;

    #[test]
    fn how_an_account_stands_is_kept_with_what_it_was_and_since_when() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state.db");
        let at = |now_ms| opened(folder.path(), Clock::fixed(now_ms));
        let told = |id, status| Told {
            id,
            status,
            host: "a.test".to_owned(),
            detail: format!("says {status}"),
        };
        let note = |rows: &mut Rows, told: &[Told]| {
            rows.transaction(|rows| rows.note_standings(told)).unwrap()
        };
        let mut rows = at(NOW);
        let id = rows.transaction(|rows| rows.begin_forgetting("did:plc:gone", None)).unwrap().id;
        let insert = "INSERT INTO accounts (id, did, listed, web, state, alone, due_ms, edition) VALUES (7, 'did:plc:a', 1, 0, 5, 0, 0, 1)";
        rows.connection().execute_batch(insert).unwrap();
        let mine = AccountId(7);
        // Nothing is kept of who is forgotten, or of nobody.
        assert_eq!(note(&mut rows, &[told(id, "deleted"), told(AccountId(99), "deleted")]), 0);
        assert_eq!(note(&mut rows, &[told(mine, ACTIVE)]), 0, "it was never away");
        let reader = Reader::open(&path).unwrap();
        assert_eq!(reader.standing(id).unwrap(), None);
        assert_eq!(reader.standing(AccountId(99)).unwrap(), None);
        let withdrawn = || {
            let mut found = Vec::new();
            let each = |report: Report, standing: Standing| {
                found.push((report.did, standing.status));
                Ok(())
            };
            reader.each_withdrawn(each).unwrap();
            found
        };
        assert_eq!(withdrawn(), Vec::new());
        drop(rows);
        let mut rows = at(NOW + 10);
        assert_eq!(note(&mut rows, &[told(mine, "deactivated")]), 0);
        drop(rows);
        let mut rows = at(NOW + 20);
        assert_eq!(note(&mut rows, &[told(mine, "deactivated")]), 0);
        let standing = Standing {
            status: "deactivated".to_owned(),
            since_ms: NOW + 10,
            was: Some(ACTIVE.to_owned()),
            asked_ms: NOW + 20,
            host: "a.test".to_owned(),
            detail: "says deactivated".to_owned(),
        };
        assert_eq!(reader.standing(mine).unwrap(), Some(standing));
        assert_eq!(withdrawn(), [("did:plc:a".to_owned(), "deactivated".to_owned())]);
        assert_eq!(note(&mut rows, &[told(mine, ACTIVE)]), 1, "it is back");
        assert_eq!(withdrawn(), [("did:plc:a".to_owned(), ACTIVE.to_owned())], "it was away");
    }

    #[test]
    fn who_is_listed_and_was_exported_is_to_be_visited() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state.db");
        let mut rows = opened(folder.path(), Clock::fixed(NOW));
        let dids = ["a", "b", "c", "d"].map(|it| format!("did:plc:{it}"));
        let made = rows.transaction(|rows| {
            dids.iter().try_for_each(|did| rows.add(&Entry::did(did)).map(drop))?;
            let exported = |n: usize| Revision { did: dids[n].clone(), ..Revision::default() };
            rows.apply_segment(1, &[exported(0), exported(1), exported(3)])?;
            rows.execute("UPDATE accounts SET listed = 1 WHERE id != 2", [])
        });
        made.unwrap();
        let reader = Reader::open(&path).unwrap();
        let mut told = Vec::new();
        let each = |id: AccountId, report: Report| {
            told.push((id.0, report.did));
            Ok(())
        };
        reader.each_to_visit(each).unwrap();
        assert_eq!(told, [(1, dids[0].clone()), (4, dids[3].clone())]);
        let enough = || StoreError::Config("enough".to_owned());
        let ended = reader.each_to_visit(|id, _| if id.0 < 4 { Ok(()) } else { Err(enough()) });
        assert_eq!(ended.unwrap_err().to_string(), "enough");
    }

    #[test]
    fn visits_go_host_by_host_and_page_by_page_to_who_was_exported() {
        let folder = tempfile::tempdir().unwrap();
        let visits = Visits::new(folder.path()).unwrap();
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0, "it has no name");
        let report = |host: Option<&str>, is_exported: bool| Report {
            id: AccountId(0),
            did: "did:plc:a".to_owned(),
            listed: true,
            account: Account {
                identity: host.map(|host| Identity {
                    endpoint: format!("https://{host}"),
                    host: host.to_owned(),
                    key: String::new(),
                    earlier_keys: Vec::new(),
                    handle: None,
                }),
                ..Account::default()
            },
            revision: is_exported.then(Revision::default),
            edition: 1,
            done_at_ms: None,
        };
        assert!(!visits.add(AccountId(1), &report(None, true)).unwrap());
        assert!(!visits.add(AccountId(2), &report(Some("a"), false)).unwrap());
        for (id, host) in [(9, "b"), (5, "a"), (3, "a"), (4, "a"), (3, "a")] {
            assert!(visits.add(AccountId(id), &report(Some(host), true)).unwrap());
        }
        assert_eq!(visits.hosts().unwrap(), ["a", "b"]);
        let page = |host, after, count| {
            let page = visits.page(host, after, count).unwrap();
            page.into_iter().map(|visit| visit.id.0).collect::<Vec<_>>()
        };
        assert_eq!((page("a", 0, 2), page("a", 4, 2)), (vec![3, 4], vec![5]));
        assert_eq!((page("a", 5, 2), page("b", 0, 2)), (vec![], vec![9]));
        let visit = visits.page("b", 0, 1).unwrap();
        assert_eq!((visit[0].did.as_str(), visit[0].endpoint.as_str()), ("did:plc:a", "https://b"));
    }
}
