//! How a list becomes the listed accounts, in steps that each take some milliseconds of the one writer.
//!
//! ```text
//!  know: rows for new names, still unlisted; every name's row goes into `wanted`   ── nothing has changed for anybody yet
//!  swap: ranges of rows become listed or unlisted, as `wanted` says; totals move in the same transactions
//! ```
//! What a process that dies in between leaves behind is a mixture that nobody works on: every run lists anew before it
//! leases. An account in flight that is taken off finishes, and its row says what became of it.

use rusqlite::{Row, params};

use crate::domain::ledger::Account;
use crate::domain::verdict::Reason;
use crate::store::error::StoreError;
use crate::store::ledger_rows::{PARKED, QUEUED, Rows};
use crate::store::parkings::EVERYBODY;
use crate::store::sorted_list::Entry;

impl Rows {
    /// Begins a new list: nothing is wanted.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn want_nothing(&mut self) -> Result<(), StoreError> {
        self.execute("DELETE FROM wanted", []).map(drop)
    }

    /// Makes rows for names that have none, and wants them all.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn want(&mut self, entries: &[Entry]) -> Result<(), StoreError> {
        for entry in entries {
            let known = self.select(
                "SELECT id FROM accounts WHERE did = ?1",
                [&entry.name],
                |row: &Row<'_>| row.get::<_, i64>(0),
            )?;
            let id = match known.first() {
                Some(id) => *id,
                None => self.add(entry)?,
            };
            self.execute("INSERT OR IGNORE INTO wanted VALUES (?1)", [id])?;
        }
        Ok(())
    }

    /// Makes a row, unlisted; gives its number.
    pub(super) fn add(&mut self, entry: &Entry) -> Result<i64, StoreError> {
        let insert =
            "INSERT INTO accounts (did, listed, web, state, alone, due_ms, reason, edition, rules)
                      VALUES (?1, 0, ?2, ?3, 0, 0, ?4, 0, ?5)";
        let name = &entry.name;
        if entry.detail.is_empty() {
            let nothing = None::<&str>;
            self.execute(
                insert,
                params![name, name.starts_with("did:web:"), QUEUED, nothing, nothing],
            )?;
        } else {
            let account = Account::parked(Reason::DidInvalid, &entry.detail);
            // Strings, numbers and options of them always serialise.
            let rules = serde_json::to_string(&account).unwrap_or_default();
            let reason = Reason::DidInvalid.as_str();
            self.execute(insert, params![name, false, PARKED, reason, rules])?;
            self.note_parked(1);
        }
        Ok(self.connection().last_insert_rowid())
    }

    /// Wanted accounts that are done under another filter than `hash`.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn wanted_under_another_filter(&self, hash: &str) -> Result<u64, StoreError> {
        let select = "SELECT count(*) FROM accounts WHERE state = 5
                          AND (filter < ?1 OR filter > ?1 OR filter IS NULL) AND id IN (SELECT id FROM wanted)";
        self.one(select, &[&hash]).map(i64::cast_unsigned)
    }

    /// The last row's number.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn last_row(&self) -> Result<i64, StoreError> {
        self.one("SELECT ifnull(max(id), 0) FROM accounts", &[])
    }

    /// Makes the rows after `after` up to `up_to` listed or unlisted, as wanted.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn swap(&mut self, after: i64, up_to: i64) -> Result<(), StoreError> {
        let is_other = "id > ?1 AND id <= ?2 AND listed != (id IN (SELECT id FROM wanted))";
        let select = format!(
            "SELECT state, reason, listed, count(*) FROM accounts WHERE {is_other} GROUP BY state, reason, listed"
        );
        let read = |row: &Row<'_>| {
            Ok((row.get(0)?, row.get::<_, Option<String>>(1)?, row.get(2)?, row.get::<_, i64>(3)?))
        };
        let changes = self.select(&select, [after, up_to], read)?;
        if changes.is_empty() {
            return Ok(());
        }
        if changes.iter().any(|(state, _, was_listed, _)| *state == PARKED && !was_listed) {
            self.parkings.note(EVERYBODY);
        }
        self.sum_swapped(is_other, [after, up_to])?;
        for (state, reason, was_listed, count) in changes {
            self.count(state, reason.as_deref(), if was_listed { -count } else { count });
        }
        let update = format!("UPDATE accounts SET listed = 1 - listed WHERE {is_other}");
        self.execute(&update, [after, up_to]).map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Clock;
    use crate::store::decisions::{DecisionLog, Decisions};
    use crate::store::ledger_rows::opened;

    #[test]
    fn who_is_parked_is_told_anew_when_a_list_brings_one_back_and_only_then() {
        let folder = tempfile::tempdir().unwrap();
        let mut rows = opened(folder.path(), Clock::fixed(1_700_000_000_000));
        let told = Decisions::make(folder.path()).unwrap();
        rows.parkings = DecisionLog::of(told.clone());
        let (queued, parked) = (Entry::did("did:plc:a"), Entry::malformed("b", "no did"));
        let mut list = |entries: &[Entry]| {
            let listed = rows.transaction(|rows| {
                rows.want_nothing()?;
                rows.want(entries)?;
                let last = rows.last_row()?;
                rows.swap(0, last)
            });
            listed.unwrap();
            told.read(0, 9).unwrap()
        };
        assert!(list(std::slice::from_ref(&queued)).is_empty());
        assert_eq!(list(&[queued.clone(), parked.clone()]), [EVERYBODY]);
        assert_eq!(list(&[]), [EVERYBODY]);
        assert_eq!(list(&[queued]), [EVERYBODY]);
        assert_eq!(list(&[parked]), [EVERYBODY, EVERYBODY]);
    }
}
