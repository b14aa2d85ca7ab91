//! An export of the directory on its way into the ledger's rows.
//!
//! ```text
//!  stage    some operations a transaction: of each known account the latest, in a table beside; the others are passed over
//!  take     some accounts a transaction: what the table says, by the ledger's own rules
//! ```
//! Nothing is taken before the export was read to its end: only then is it known how old it is, and which operation is an
//! account's last. The table is emptied when either begins or ends; a process that dies between leaves it to the next.

use rusqlite::params;

use crate::domain::account::AccountId;
use crate::domain::identity::Identity;
use crate::domain::ledger::{Effect, Event};
use crate::domain::ledger_event::Told;
use crate::store::error::StoreError;
use crate::store::ledger_rows::Rows;

/// Accounts taken in one transaction: about 100 ms of the writer.
const TAKEN_AT_ONCE: i64 = 2_000;

/// The last word of an export on one account.
#[derive(Clone, Debug, PartialEq)]
pub enum LastWord {
    /// Its identity.
    Identity(Identity),
    /// It is gone.
    Tombstoned,
    /// The directory must be asked.
    Unclear,
}

/// What one operation says.
#[derive(Clone, Debug, PartialEq)]
pub struct Said {
    /// Of whom.
    pub did: String,
    /// When, milliseconds since 1970.
    pub at_ms: i64,
    /// What.
    pub word: LastWord,
}

/// What was made of an export.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Taken {
    /// Accounts whose identity is known by it.
    pub resolved: u64,
    /// Accounts parked as tombstoned by it.
    pub tombstoned: u64,
    /// Accounts that it names and whose directory must be asked all the same.
    pub unclear: u64,
    /// Accounts that it names and that need nothing of it: decided, in work, or known from something newer.
    pub passed_over: u64,
}

impl Rows {
    /// Forgets what was staged before.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn unstage(&mut self) -> Result<(), StoreError> {
        self.transaction(|rows| {
            let table = "CREATE TABLE IF NOT EXISTS told (id INTEGER PRIMARY KEY, at_ms INTEGER NOT NULL, word TEXT NOT NULL)";
            rows.execute(table, [])?;
            rows.execute("DELETE FROM told", []).map(drop)
        })
    }

    /// Keeps what is said of accounts that the ledger knows, unless something later was said of them; where two were said at
    /// the same time, the one that comes later here.
    ///
    /// # Errors
    /// [`StoreError`]; nothing of it is kept then.
    pub fn stage(&mut self, said: &[Said]) -> Result<(), StoreError> {
        let insert = "INSERT INTO told SELECT id, ?2, ?3 FROM accounts WHERE did = ?1
                      ON CONFLICT (id) DO UPDATE SET at_ms = excluded.at_ms, word = excluded.word
                      WHERE excluded.at_ms >= told.at_ms";
        self.transaction(|rows| {
            for Said { did, at_ms, word } in said {
                rows.execute(insert, params![did, at_ms, written(word)])?;
            }
            Ok(())
        })
    }

    /// Makes of the accounts what was staged, which is complete up to `as_of_ms`, and forgets it.
    ///
    /// # Errors
    /// [`StoreError`]; what was taken before stays.
    pub fn take_staged(&mut self, as_of_ms: i64) -> Result<Taken, StoreError> {
        let (mut taken, mut after) = (Taken::default(), Some(0));
        while let Some(from) = after {
            after = self.transaction(|rows| rows.take_some(from, as_of_ms, &mut taken))?;
        }
        self.unstage()?;
        Ok(taken)
    }

    /// The row after which there may be more.
    fn take_some(
        &mut self,
        after: i64,
        as_of_ms: i64,
        taken: &mut Taken,
    ) -> Result<Option<i64>, StoreError> {
        let select = "SELECT id, word FROM told WHERE id > ?1 ORDER BY id LIMIT ?2";
        let read = |row: &rusqlite::Row<'_>| Ok((row.get(0)?, row.get(1)?));
        let some: Vec<(i64, String)> = self.select(select, [after, TAKEN_AT_ONCE], read)?;
        for (id, word) in &some {
            let identity = match word.as_str() {
                UNCLEAR => {
                    taken.unclear += 1;
                    continue;
                }
                TOMBSTONED => None,
                text => match serde_json::from_str(text) {
                    Ok(identity) => Some(identity),
                    // Only we write here; the directory will be asked.
                    Err(_) => continue,
                },
            };
            let event = Event::Told(Told { identity, as_of_ms });
            match self.apply(AccountId(*id), event)?.effect {
                Effect::Decided => taken.tombstoned += 1,
                Effect::Nothing => taken.passed_over += 1,
                _ => taken.resolved += 1,
            }
        }
        Ok(some.last().map(|(id, _)| *id))
    }
}

const UNCLEAR: &str = "";
const TOMBSTONED: &str = "-";

fn written(word: &LastWord) -> String {
    match word {
        // Strings and options of them always serialise.
        LastWord::Identity(identity) => serde_json::to_string(identity).unwrap_or_default(),
        LastWord::Tombstoned => TOMBSTONED.to_owned(),
        LastWord::Unclear => UNCLEAR.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use super::*;
    use crate::clock::Clock;
    use crate::config::targets::Target;
    use crate::domain::did::Did;
    use crate::domain::ledger::State;
    use crate::domain::verdict::Reason;
    use crate::store::ledger_lists::Reader;
    use crate::store::ledger_rows::opened;
    use crate::store::listing::Staged;

    const NOW_MS: i64 = 1_728_131_696_000;

    fn did(letter: char) -> String {
        format!("did:plc:{}", letter.to_string().repeat(24))
    }

    fn identity(host: &str) -> LastWord {
        LastWord::Identity(Identity {
            endpoint: format!("https://{host}"),
            host: host.to_owned(),
            key: "did:key:z".to_owned(),
            earlier_keys: Vec::new(),
            handle: None,
        })
    }

    fn said(letter: char, at_ms: i64, word: LastWord) -> Said {
        Said { did: did(letter), at_ms, word }
    }

    #[test]
    fn the_latest_word_on_each_known_account_is_taken_and_strangers_are_passed_over() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state.db");
        let mut rows = opened(folder.path(), Clock::fixed(NOW_MS));
        let targets = "abcde"
            .chars()
            .map(|letter| Ok::<_, Infallible>(Target::Did(Did::parse(&did(letter)).unwrap())));
        let staged = Staged::read(folder.path(), targets, &|_| {}).unwrap().unwrap();
        staged.know(&mut rows, &|_| {}).unwrap().swap(&mut rows, &|_| {}).unwrap();
        rows.unstage().unwrap();
        rows.stage(&[said('a', 1, identity("old")), said('a', 9, identity("new"))]).unwrap();
        rows.stage(&[said('a', 5, identity("between")), said('x', 5, identity("stranger"))])
            .unwrap();
        rows.stage(&[said('b', 5, identity("b")), said('b', 6, LastWord::Tombstoned)]).unwrap();
        rows.stage(&[said('c', 5, identity("c")), said('c', 6, LastWord::Unclear)]).unwrap();
        rows.stage(&[said('d', 5, identity("one")), said('d', 5, identity("two"))]).unwrap();
        let taken = rows.take_staged(NOW_MS - 1_000).unwrap();
        assert_eq!(taken, Taken { resolved: 2, tombstoned: 1, unclear: 1, passed_over: 0 });
        let reader = Reader::open(&path).unwrap();
        let account = |letter| reader.account(&did(letter)).unwrap().unwrap().account;
        assert_eq!(account('a').identity.unwrap().host, "new");
        assert_eq!(account('d').identity.unwrap().host, "two");
        assert_eq!(account('b').state, State::Parked(Reason::DidTombstoned));
        assert_eq!((account('c').state, account('e').state), (State::Queued, State::Queued));
        let hosts = rows.host_rows().unwrap();
        assert_eq!(hosts.iter().map(|host| host.ready).sum::<u64>(), 2);
        // The same again changes nothing, and nothing is left behind.
        rows.stage(&[said('a', 9, identity("new"))]).unwrap();
        let again = rows.take_staged(NOW_MS - 1_000).unwrap();
        assert_eq!(again, Taken { passed_over: 1, ..Taken::default() });
        assert_eq!(rows.take_staged(NOW_MS).unwrap(), Taken::default());
    }
}
