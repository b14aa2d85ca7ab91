//! Sums over the listed done accounts: records by label, what was skipped and rejected, bytes.
//!
//! ```text
//!  sums (kind, word, n)    kept in the transaction that makes an account done, not done any more, listed or unlisted
//! ```
//! Invariant: at every commit they equal what adding up the revisions of all rows with `listed = 1` and `state = 5` gives, so
//! that a summary of millions of accounts is some dozen rows. A ledger that was made before they were kept is added up once,
//! when it is opened.

use std::collections::{BTreeMap, HashMap};

use rusqlite::{Connection, params};

use crate::domain::account::{REJECTED, Revision, SKIPPED};
use crate::store::error::StoreError;
use crate::store::ledger_rows::Rows;

/// The kinds of sums.
const KINDS: [&str; 4] = ["record", "skipped", "rejected", "bytes"];

/// The word of the only sum that has none.
const REPO_BYTES: &str = "repo";

const TABLE: &str = "CREATE TABLE sums (kind TEXT, word TEXT, n INTEGER NOT NULL, PRIMARY KEY (kind, word)) WITHOUT ROWID";

/// Sums over done accounts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sums {
    /// Exported records by label.
    pub records: BTreeMap<String, u64>,
    /// Skipped records by reason.
    pub skipped: BTreeMap<String, u64>,
    /// Rejected records by reason.
    pub rejected: BTreeMap<String, u64>,
    /// Bytes of their repositories.
    pub repo_bytes: u64,
}

impl Sums {
    /// Nothing yet, with a zero for each of `labels` and each reason.
    #[must_use]
    pub fn zero(labels: &[String]) -> Self {
        let zeros = |words: &[&str]| words.iter().map(|word| ((*word).to_owned(), 0)).collect();
        Self {
            records: labels.iter().map(|label| (label.clone(), 0)).collect(),
            skipped: zeros(&SKIPPED),
            rejected: zeros(&REJECTED),
            repo_bytes: 0,
        }
    }

    /// Adds one account's revision.
    pub fn add(&mut self, revision: &Revision) {
        let add = |into: &mut BTreeMap<String, u64>, from: &BTreeMap<String, u64>| {
            for (word, count) in from {
                *into.entry(word.clone()).or_default() += count;
            }
        };
        add(&mut self.records, &revision.exported);
        add(&mut self.skipped, &revision.skipped);
        add(&mut self.rejected, &revision.rejected);
        self.repo_bytes += revision.repo_bytes;
    }

    /// Takes a row of the table; what is down to nothing is only shown where it was asked for.
    fn take(&mut self, kind: &str, word: String, count: u64) {
        let into = match KINDS.iter().position(|known| *known == kind) {
            Some(0) => &mut self.records,
            Some(1) => &mut self.skipped,
            Some(2) => &mut self.rejected,
            _ => {
                self.repo_bytes = count;
                return;
            }
        };
        if count > 0 || into.contains_key(&word) {
            into.insert(word, count);
        }
    }
}

/// Reads the sums into `sums`; says whether this ledger keeps any.
pub(super) fn read(connection: &Connection, sums: &mut Sums) -> rusqlite::Result<bool> {
    if !are_kept(connection)? {
        return Ok(false);
    }
    let mut statement = connection.prepare("SELECT kind, word, n FROM sums")?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        let (kind, word, count): (String, String, i64) = (row.get(0)?, row.get(1)?, row.get(2)?);
        sums.take(&kind, word, count.max(0).cast_unsigned());
    }
    Ok(true)
}

fn are_kept(connection: &Connection) -> rusqlite::Result<bool> {
    let known = "SELECT count(*) FROM sqlite_master WHERE type = 'table' AND name = 'sums'";
    connection.query_row(known, [], |row| row.get::<_, i64>(0)).map(|count| count > 0)
}

/// Makes the table and adds up what is done already, in one transaction; nothing if it is there.
pub(super) fn begin(connection: &Connection) -> rusqlite::Result<()> {
    if are_kept(connection)? {
        return Ok(());
    }
    let transaction = connection.unchecked_transaction()?;
    transaction.execute_batch(TABLE)?;
    let mut changes = Changes::default();
    let done = "SELECT revision FROM accounts WHERE listed = 1 AND state = 5";
    let mut statement = transaction.prepare(done)?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        changes.add_text(row.get(0)?, 1);
    }
    drop(rows);
    drop(statement);
    for ((kind, word), change) in changes.0 {
        transaction.execute("INSERT INTO sums VALUES (?1, ?2, ?3)", params![kind, word, change])?;
    }
    transaction.commit()
}

/// What the open transaction changes.
#[derive(Debug, Default)]
pub(super) struct Changes(HashMap<(&'static str, String), i64>);

impl Changes {
    /// Counts a revision in (`sign` 1) or out (-1).
    pub(super) fn add(&mut self, revision: &Revision, sign: i64) {
        let by_kind = [&revision.exported, &revision.skipped, &revision.rejected];
        for (kind, counts) in KINDS.into_iter().zip(by_kind) {
            for (word, count) in counts {
                self.change(kind, word, *count, sign);
            }
        }
        self.change(KINDS[3], REPO_BYTES, revision.repo_bytes, sign);
    }

    /// The same for a row's column. Without a readable revision an account counts as nothing, here as in a report.
    fn add_text(&mut self, text: Option<String>, sign: i64) {
        if let Some(revision) = text.and_then(|text| serde_json::from_str(&text).ok()) {
            self.add(&revision, sign);
        }
    }

    fn change(&mut self, kind: &'static str, word: &str, count: u64, sign: i64) {
        let count = i64::try_from(count).unwrap_or(i64::MAX);
        *self.0.entry((kind, word.to_owned())).or_default() += sign * count;
    }

    pub(super) fn clear(&mut self) {
        self.0.clear();
    }
}

impl Rows {
    /// Counts the revision that an account's row holds in or out.
    pub(super) fn sum_row(&mut self, id: i64, sign: i64) -> Result<(), StoreError> {
        let select = "SELECT revision FROM accounts WHERE id = ?1";
        let text = self.one_row(select, [id], |row| row.get(0))?;
        self.sums.add_text(text, sign);
        Ok(())
    }

    /// Counts the done accounts of a range of rows in or out that are about to be listed or unlisted: those of `is_other`.
    pub(super) fn sum_swapped(
        &mut self,
        is_other: &str,
        range: [i64; 2],
    ) -> Result<(), StoreError> {
        let select =
            format!("SELECT listed, revision FROM accounts WHERE state = 5 AND {is_other}");
        let rows: Vec<(bool, Option<String>)> =
            self.select(&select, range, |row| Ok((row.get(0)?, row.get(1)?)))?;
        for (was_listed, text) in rows {
            self.sums.add_text(text, if was_listed { -1 } else { 1 });
        }
        Ok(())
    }

    /// Writes what this transaction has changed so far.
    pub(super) fn write_sums(&mut self) -> Result<(), StoreError> {
        for ((kind, word), change) in std::mem::take(&mut self.sums.0) {
            let upsert =
                "INSERT INTO sums VALUES (?1, ?2, ?3) ON CONFLICT DO UPDATE SET n = n + ?3";
            self.execute(upsert, params![kind, word, change])?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::clock::Clock;
    use crate::config::targets::Target;
    use crate::domain::account::AccountId;
    use crate::domain::did::Did;
    use crate::domain::ledger::Event;
    use crate::store::ledger_lists::{Decided, Reader, Report};
    use crate::store::ledger_rows::opened;
    use crate::store::listing::Staged;

    const ACCOUNTS: u8 = 20;

    fn name(n: u8) -> Did {
        let id: String = std::iter::repeat_n(char::from(b'a' + n), 24).collect();
        Did::parse(&format!("did:plc:{id}")).unwrap()
    }

    fn open(folder: &Path) -> Rows {
        opened(folder, Clock::fixed(1_700_000_000_000))
    }

    fn list(rows: &mut Rows, folder: &Path, wanted: impl Iterator<Item = u8>) {
        let targets = wanted.map(|n| Ok::<_, StoreError>(Target::Did(name(n))));
        let staged = Staged::read(folder, targets, &|_| {}).unwrap().unwrap();
        staged.know(rows, &|_| {}).unwrap().swap(rows, &|_| {}).unwrap();
    }

    fn revision(n: u8, edition: u32, chance: &fastrand::Rng) -> Revision {
        let mut chance = chance.clone();
        let mut counts = |words: &[&str]| {
            words.iter().map(|word| ((*word).to_owned(), chance.u64(0..100))).collect()
        };
        let (exported, skipped) = (counts(&["post", "like", "app.a.*"]), counts(&SKIPPED));
        let rejected = counts(&REJECTED[..2]);
        let (did, filter) = (name(n).to_string(), format!("filter {edition}"));
        let repo_bytes = 1_000 + u64::from(n);
        Revision {
            did,
            edition,
            exported,
            skipped,
            rejected,
            repo_bytes,
            filter,
            ..Revision::default()
        }
    }

    /// What the table says, and what adding up every listed done account gives.
    fn both(folder: &Path) -> (Sums, Sums) {
        let reader = Reader::open(&folder.join("state.db")).unwrap();
        let mut slow = Sums::zero(&[]);
        let add = |report: Report| {
            slow.add(&report.revision.unwrap());
            Ok(())
        };
        reader.each(Decided::Done, add).unwrap();
        for counts in [&mut slow.records, &mut slow.skipped, &mut slow.rejected] {
            counts.retain(|word, n| {
                *n > 0 || SKIPPED.contains(&word.as_str()) || REJECTED.contains(&word.as_str())
            });
        }
        (reader.sums(&[]).unwrap(), slow)
    }

    #[test]
    fn nothing_is_a_zero_for_each_label_and_each_reason() {
        let zero = Sums::zero(&["post".to_owned(), "like".to_owned()]);
        let zeros = |words: &[&str]| words.iter().map(|it| ((*it).to_owned(), 0)).collect();
        assert_eq!(zero.records, zeros(&["post", "like"]));
        assert_eq!((zero.skipped, zero.rejected), (zeros(&SKIPPED), zeros(&REJECTED)));
        assert_eq!(zero.repo_bytes, 0);
    }

    #[test]
    fn the_sums_are_those_of_the_listed_done_accounts_whatever_moves() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path();
        let mut rows = open(folder);
        let mut chance = fastrand::Rng::with_seed(7);
        let mut editions = [0_u32; ACCOUNTS as usize];
        list(&mut rows, folder, 0..ACCOUNTS);
        let (mut segment, mut most) = (0, 0);
        for step in 0..400 {
            let n = chance.u8(0..ACCOUNTS);
            let id = AccountId(i64::from(n) + 1);
            match chance.u8(0..6) {
                0 | 1 => {
                    segment += 1;
                    // Also of an edition that is not the next one, which changes nothing.
                    let edition = editions[usize::from(n)] + u32::from(chance.u8(0..4) == 0);
                    let next = revision(n, edition, &chance);
                    rows.transaction(|rows| rows.apply_segment(segment, &[next])).unwrap();
                    editions[usize::from(n)] += u32::from(edition == editions[usize::from(n)]);
                }
                2 => drop(rows.transaction(|rows| rows.apply(id, Event::Again)).unwrap()),
                3 => drop(rows.transaction(|rows| rows.refilter("filter 2")).unwrap()),
                4 => {
                    let mask: u32 = chance.u32(..);
                    list(
                        &mut rows,
                        folder,
                        (0..ACCOUNTS).filter(|n| mask >> n & 1 == 1 || *n == 0),
                    );
                }
                _ => {
                    segment += 1;
                    let next = revision(n, editions[usize::from(n)], &chance);
                    rows.begin().unwrap();
                    rows.apply_segment(segment, &[next]).unwrap();
                    rows.roll_back().unwrap();
                }
            }
            let (kept, slow) = both(folder);
            assert_eq!(kept, slow, "step {step}");
            most = most.max(kept.records.values().sum());
        }
        assert!(most > 500, "something was done: {most}");
        // A ledger of before they were kept: read without a writer, and made up for by the next one.
        let (before, _) = both(folder);
        let is_kept = |rows: &Rows| read(rows.connection(), &mut Sums::default()).unwrap();
        assert!(is_kept(&rows));
        rows.connection().execute_batch("DROP TABLE sums").unwrap();
        assert!(!is_kept(&rows));
        drop(rows);
        assert_eq!(both(folder).0.repo_bytes, before.repo_bytes);
        drop(open(folder));
        assert_eq!(both(folder).0, before);
    }
}
