//! Forgetting in the ledger: nothing is kept of an account but its DID and that it is forgotten.
//!
//! ```text
//!  begin    the account is forgotten, its row empty; under which names the queues hold it goes into `forgetting`: the intent
//!  finish   the intent is gone: the queues hold nothing of it any more
//! ```
//! From `begin` on nobody brings its rows anywhere: it is never leased, and [`Tombstones`] marks it in every segment that is
//! still to be applied. What a process that dies in between leaves to do stands in `forgetting`. Freed cells are written over
//! (`secure_delete`), and the WAL is cut after the commit.

use std::path::Path;
use std::time::Duration;

use rusqlite::{Connection, OptionalExtension, params};

use crate::domain::account::{AccountId, Revision};
use crate::domain::ledger::{Event, State};
use crate::store::error::StoreError;
use crate::store::ledger_rows::{QUEUED, Rows};
use crate::store::ledger_schema;
use crate::store::segment::SegmentReader;

/// How long a checkpoint of somebody else may hold a reader up.
const BUSY_SECONDS: u64 = 10;

/// An account whose rows are to be taken back.
#[derive(Clone, Debug, PartialEq)]
pub struct Begun {
    /// Its row.
    pub id: AccountId,
    /// Its DID.
    pub did: String,
    /// Its state before, as the public word; `None`: the ledger did not know it.
    pub was: Option<&'static str>,
    /// What was exported last.
    pub revision: Option<Revision>,
    /// Under which names queues may hold it.
    pub names: Vec<String>,
}

impl Rows {
    /// Forgets `did`, which needs not be known, and notes what is still to be done; `pseudonym` is what a run of today would call
    /// it. An account that is forgotten already is looked for once more.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn begin_forgetting(
        &mut self,
        did: &str,
        pseudonym: Option<&str>,
    ) -> Result<Begun, StoreError> {
        self.secure_delete("ON")?;
        let version =
            self.connection().pragma_update(None, "user_version", ledger_schema::SCHEMA_FORGOTTEN);
        version.map_err(|error| self.failed(error))?;
        let select = "SELECT id, rules, revision FROM accounts WHERE did = ?1";
        let found = self.connection().query_row(select, [did], |row| {
            Ok((row.get(0)?, row.get::<_, Option<String>>(1)?, row.get::<_, Option<String>>(2)?))
        });
        let found = found.optional().map_err(|error| self.failed(error))?;
        let (id, was, revision) = match found {
            Some((id, rules, revision)) => {
                let state = self.rules(AccountId(id), rules.as_deref())?.state;
                let revision = revision.and_then(|text| serde_json::from_str(&text).ok());
                (AccountId(id), Some(state), revision)
            }
            None => (self.add_unlisted(did)?, None, None),
        };
        // An order that was not finished may know it under a name that nobody else knows any more.
        let before = "SELECT name FROM forgetting WHERE id = ?1";
        let mut names: Vec<String> = self.select(before, [id.0], |row| row.get(0))?;
        names.push(did.to_owned());
        names.extend(pseudonym.map(str::to_owned));
        names.extend(revision.as_ref().map(|it: &Revision| it.shown_as.clone()));
        names.retain(|name| !name.is_empty());
        names.sort();
        names.dedup();
        for name in &names {
            self.execute("INSERT OR IGNORE INTO forgetting VALUES (?1, ?2)", params![id.0, name])?;
        }
        if was != Some(State::Forgotten) {
            self.apply(id, Event::Forget)?;
        }
        let clear = "UPDATE accounts SET edition = 0, rev = NULL, filter = NULL, revision = NULL, done_at_ms = NULL WHERE id = ?1";
        self.execute(clear, [id.0])?;
        self.execute("DELETE FROM standing WHERE id = ?1", [id.0])?;
        self.forget_staged(id)?;
        self.secure_delete("FAST")?;
        self.cut_wal_after_commit();
        Ok(Begun { id, did: did.to_owned(), was: was.map(State::public), revision, names })
    }

    /// The queues hold nothing of these accounts any more.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn finish_forgetting(&mut self, ids: &[AccountId]) -> Result<(), StoreError> {
        self.secure_delete("ON")?;
        for id in ids {
            self.execute("DELETE FROM forgetting WHERE id = ?1", [id.0])?;
        }
        self.secure_delete("FAST")?;
        self.cut_wal_after_commit();
        Ok(())
    }

    /// What is still to be taken back: accounts, and the names under which queues may hold them.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn unfinished_forgetting(&self) -> Result<Vec<(AccountId, String)>, StoreError> {
        let select = "SELECT id, name FROM forgetting ORDER BY id";
        self.select(select, [], |row| Ok((AccountId(row.get(0)?), row.get(1)?)))
    }

    fn add_unlisted(&mut self, did: &str) -> Result<AccountId, StoreError> {
        let insert = "INSERT INTO accounts (did, listed, web, state, alone, due_ms, edition) VALUES (?1, 0, ?2, ?3, 0, 0, 0)";
        self.execute(insert, params![did, did.starts_with("did:web:"), QUEUED])?;
        Ok(AccountId(self.connection().last_insert_rowid()))
    }

    /// What an export of the directory said of it, if one was being read when a process died.
    fn forget_staged(&self, id: AccountId) -> Result<(), StoreError> {
        let known = "SELECT count(*) FROM sqlite_master WHERE type = 'table' AND name = 'told'";
        if self.one::<i64>(known, &[])? > 0 {
            self.execute("DELETE FROM told WHERE id = ?1", [id.0])?;
        }
        Ok(())
    }

    fn secure_delete(&self, word: &str) -> Result<(), StoreError> {
        let set = self.connection().pragma_update(None, "secure_delete", word);
        set.map_err(|error| self.failed(error))
    }
}

/// Knows who is forgotten, beside the ledger's writer.
pub struct Tombstones {
    path: std::path::PathBuf,
    connection: Connection,
}

impl Tombstones {
    /// Reads the ledger at `path`.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        let connection = ledger_schema::read_only(path)?;
        let patient = connection.busy_timeout(Duration::from_secs(BUSY_SECONDS));
        patient.map_err(|error| StoreError::sqlite(path, error))?;
        Ok(Self { path: path.to_owned(), connection })
    }

    /// Marks the forgotten accounts of `segment`; says whether there are any. Costs one look at an empty index where nobody is
    /// forgotten.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn mark(&self, segment: &mut SegmentReader) -> Result<bool, StoreError> {
        self.marked(segment).map_err(|error| StoreError::sqlite(&self.path, error))
    }

    fn marked(&self, segment: &mut SegmentReader) -> rusqlite::Result<bool> {
        let any = "SELECT EXISTS (SELECT 1 FROM accounts WHERE state = 7)";
        let has_any: bool = self.connection.prepare_cached(any)?.query_row([], |row| row.get(0))?;
        if !has_any {
            return Ok(false);
        }
        let one = "SELECT EXISTS (SELECT 1 FROM accounts WHERE did = ?1 AND state = 7)";
        let mut statement = self.connection.prepare_cached(one)?;
        let mut forgotten = Vec::new();
        for (index, account) in segment.table.accounts.iter().enumerate() {
            if statement.query_row([&account.revision.did], |row| row.get(0))? {
                forgotten.push(index);
            }
        }
        let is_marked = !forgotten.is_empty();
        segment.pass_over(&forgotten);
        Ok(is_marked)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::convert::Infallible;

    use super::*;
    use crate::clock::Clock;
    use crate::config::targets::Target;
    use crate::domain::did::Did;
    use crate::domain::identity::Identity;
    use crate::store::items::Item;
    use crate::store::journal::Journal;
    use crate::store::ledger_export::{LastWord, Said};
    use crate::store::ledger_lists::Reader;
    use crate::store::ledger_rows::opened;
    use crate::store::ledger_work::Batch;
    use crate::store::listing::Staged;
    use crate::store::sorted_list::Entry;

    const ACCOUNTS: usize = 3_000;

    fn did(number: usize) -> String {
        let digits = "abcdefghijklmnopqrstuvwxyz234567".as_bytes();
        let mixed = (number as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let letter = |at: u32| char::from(digits[(mixed.rotate_left(at * 5) % 32) as usize]);
        format!("did:plc:{}", (0..24).map(letter).collect::<String>())
    }

    /// What follows `mark` in the file, as long as the name of a DID is.
    fn named(path: &Path, mark: &str) -> HashSet<String> {
        let bytes = std::fs::read(path).unwrap();
        let ends =
            (mark.len()..bytes.len() - 24).filter(|end| bytes[..*end].ends_with(mark.as_bytes()));
        ends.map(|end| String::from_utf8_lossy(&bytes[end..end + 24]).into_owned()).collect()
    }

    #[test]
    fn a_segment_is_marked_where_it_holds_the_forgotten_and_nowhere_else() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state.db");
        let mut rows = opened(folder.path(), Clock::fixed(1_700_000_000_000));
        let (id, labels) = ("a".repeat(32), vec!["post".to_owned()]);
        std::fs::create_dir(folder.path().join("journal")).unwrap();
        let mut journal =
            Journal::open(&folder.path().join("journal"), &id, labels, 1 << 30, 0).unwrap();
        for number in 0..3 {
            let item = Item { queue: 0, records: 1, payload: b"[1]".to_vec() };
            let revision = Revision { did: did(number), ..Revision::default() };
            journal.append_account(&revision, &[&item]).unwrap();
        }
        journal.seal_group().unwrap();
        let tombstones = Tombstones::open(&path).unwrap();
        let marked = || {
            let mut segment = journal.next_after(0).unwrap().unwrap();
            (tombstones.mark(&mut segment).unwrap(), segment.passed_over())
        };
        assert_eq!(marked(), (false, vec![]));
        // Somebody who is not in it.
        rows.transaction(|rows| rows.begin_forgetting(&did(9), None)).unwrap();
        assert_eq!(marked(), (false, vec![]));
        let begun = rows.transaction(|rows| rows.begin_forgetting(&did(1), None)).unwrap();
        assert_eq!((begun.was, begun.names), (None, vec![did(1)]));
        assert_eq!(marked(), (true, vec![1]));
    }

    #[test]
    fn what_was_read_of_a_directory_and_not_taken_yet_is_forgotten_too() {
        let folder = tempfile::tempdir().unwrap();
        let mut rows = opened(folder.path(), Clock::fixed(1_700_000_000_000));
        rows.unstage().unwrap();
        let said = [1, 2].map(|n| Said { did: did(n), at_ms: 5, word: LastWord::Tombstoned });
        for said in &said {
            rows.transaction(|rows| rows.add(&Entry::did(&said.did))).unwrap();
        }
        rows.stage(&said).unwrap();
        let staged = |rows: &Rows| {
            let select = "SELECT did FROM told JOIN accounts USING (id)";
            rows.select(select, [], |row| row.get::<_, String>(0)).unwrap()
        };
        assert_eq!(staged(&rows).len(), 2);
        rows.transaction(|rows| rows.begin_forgetting(&did(1), None)).unwrap();
        assert_eq!(staged(&rows), [did(2)]);
    }

    /// Rows that have moved through many states and pages leave no copy of what they held, wherever they have been.
    #[test]
    fn of_a_forgotten_account_not_a_byte_but_its_did_is_left_in_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state.db");
        let mut rows = opened(folder.path(), Clock::fixed(1_700_000_000_000));
        let gone: Vec<String> = (0..ACCOUNTS).step_by(37).map(did).collect();
        let targets =
            (0..ACCOUNTS).map(|n| Ok::<_, Infallible>(Target::Did(Did::parse(&did(n)).unwrap())));
        let staged = Staged::read(folder.path(), targets, &|_| {}).unwrap().unwrap();
        staged.know(&mut rows, &|_| {}).unwrap().swap(&mut rows, &|_| {}).unwrap();
        let mut segment = 0;
        while segment * 100 < ACCOUNTS as u64 {
            let leased = Batch { plc: 100, ..Batch::default() };
            let leased = rows.transaction(|rows| rows.run_batch(&leased)).unwrap().plc;
            let identity = |did: &str| Identity {
                endpoint: format!("https://{}.example", &did[8..]),
                host: "a.example".to_owned(),
                key: format!("did:key:z{}", &did[8..]),
                earlier_keys: Vec::new(),
                handle: Some(format!("handle-of-{}", &did[8..])),
            };
            let events =
                leased.iter().map(|it| (it.id, Event::Resolved(identity(&it.did)))).collect();
            rows.transaction(|rows| rows.run_batch(&Batch { events, ..Batch::default() })).unwrap();
            segment += 1;
            let revisions: Vec<Revision> = leased
                .iter()
                .map(|leased| Revision {
                    did: leased.did.clone(),
                    rev: format!("rev-of-{}", &leased.did[8..]),
                    commit_cid: {
                        // Some fill pages of their own, which are free when they are gone.
                        let few = 1 + leased.did.as_bytes()[9] as usize % 5;
                        let is_long = gone.iter().take(5).any(|did| *did == leased.did);
                        let name = format!("cid-of-{}", &leased.did[8..]);
                        name.repeat(if is_long { 500 } else { few })
                    },
                    ..Revision::default()
                })
                .collect();
            rows.transaction(|rows| rows.apply_segment(segment, &revisions)).unwrap();
            rows.shrink().unwrap();
        }
        let handles = named(&path, "handle-of-");
        assert!(gone.iter().all(|did| handles.contains(&did[8..])));
        for did in &gone {
            let begun = rows.transaction(|rows| rows.begin_forgetting(did, Some("x"))).unwrap();
            assert_eq!(begun.was, Some("done"));
            assert_eq!(begun.names, [did.clone(), "x".to_owned()]);
            // An order that is given again before it is finished looks under the same names.
            let again = rows.transaction(|rows| rows.begin_forgetting(did, None)).unwrap();
            assert_eq!((&again.names, again.was), (&begun.names, Some("forgotten")));
            let left = begun.names.into_iter().map(|name| (begun.id, name)).collect::<Vec<_>>();
            assert_eq!(rows.unfinished_forgetting().unwrap(), left);
            rows.transaction(|rows| rows.finish_forgetting(&[begun.id])).unwrap();
        }
        rows.sync_if_wanted().unwrap();
        assert!(rows.unfinished_forgetting().unwrap().is_empty());
        let wal = std::fs::metadata(folder.path().join("state.db-wal")).unwrap();
        assert_eq!(wal.len(), 0);
        for mark in ["handle-of-", "rev-of-", "did:key:z", "cid-of-"] {
            let there = named(&path, mark);
            let left: Vec<&String> = gone.iter().filter(|did| there.contains(&did[8..])).collect();
            assert!(left.is_empty(), "{mark}: {} of {}: {left:?}", left.len(), gone.len());
            assert!(there.contains(&did(1)[8..]));
        }
        let counts = Reader::open(&path).unwrap().counts().unwrap();
        assert_eq!(counts.forgotten, gone.len() as u64);
        // A skyfill that does not know the state sees a newer schema.
        assert_eq!(
            rows.one::<i64>("SELECT user_version FROM pragma_user_version", &[]).unwrap(),
            2
        );
    }
}
