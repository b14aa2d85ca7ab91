//! Reports over the ledger's rows: what became of the listed DIDs, and putting them back.

use std::collections::BTreeMap;
use std::path::Path;

use rusqlite::{Connection, OptionalExtension, Row, params};
use serde::Serialize;

use crate::domain::account::{AccountId, Revision};
use crate::domain::ledger::{Account, Event};
use crate::store::error::StoreError;
use crate::store::ledger_rows::{DONE, FORGOTTEN, PARKED, Rows};
use crate::store::ledger_schema;
use crate::store::ledger_sums::{self, Sums};

/// Accounts put back in one transaction: at most about 50 ms of the writer.
const RETRIED_AT_ONCE: i64 = 2_000;

/// What became of some parked accounts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RetriedSome {
    /// How many were put back.
    pub retried: u64,
    /// The row after which there may be more.
    pub last: Option<i64>,
}

/// Which parked accounts to put back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Selection {
    /// All of them.
    All,
    /// Those of this reason or last error.
    Word(String),
    /// One.
    Did(String),
}

/// Listed accounts by public state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Counts {
    /// Queued or ready.
    pub queued: u64,
    /// Resolving or fetching.
    pub active: u64,
    /// Waiting for their retry time.
    pub retrying: u64,
    /// Exported.
    pub done: u64,
    /// Given up.
    pub parked: u64,
    /// Forgotten by the operator's order: neither done nor parked. Told where there are any.
    #[serde(skip_serializing_if = "is_none")]
    pub forgotten: u64,
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde asks with a reference")]
const fn is_none(count: &u64) -> bool {
    *count == 0
}

impl Counts {
    /// Accounts with something left to do.
    #[must_use]
    pub const fn pending(&self) -> u64 {
        self.queued + self.active + self.retrying
    }

    fn add(&mut self, state: i64, change: i64) {
        let count = match state {
            0 | 2 => &mut self.queued,
            1 | 3 => &mut self.active,
            4 => &mut self.retrying,
            5 => &mut self.done,
            6 => &mut self.parked,
            _ => &mut self.forgotten,
        };
        *count = count.saturating_add_signed(change);
    }

    /// Accounts with nothing left to do.
    #[must_use]
    pub const fn decided(&self) -> u64 {
        self.done + self.parked + self.forgotten
    }

    /// All listed accounts.
    #[must_use]
    pub const fn total(&self) -> u64 {
        self.pending() + self.decided()
    }
}

/// How an account is decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decided {
    /// Exported.
    Done,
    /// Given up.
    Parked,
    /// Forgotten by the operator's order.
    Forgotten,
}

/// One account as a person sees it.
#[derive(Clone, Debug, PartialEq)]
pub struct Report {
    /// Its row.
    pub id: AccountId,
    /// Its DID, or the cleaned text in its place.
    pub did: String,
    /// Whether it is on the lists.
    pub listed: bool,
    /// What the rules know.
    pub account: Account,
    /// What was exported last.
    pub revision: Option<Revision>,
    /// How often it was exported.
    pub edition: u32,
    /// When it was done, ledger milliseconds.
    pub done_at_ms: Option<i64>,
}

impl Rows {
    /// Listed accounts by public state, with what the open transaction has changed.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn counts(&self) -> Result<Counts, StoreError> {
        let mut counts = counts(self.connection()).map_err(|error| self.failed(error))?;
        self.changes_by_state().for_each(|(state, change)| counts.add(state, change));
        Ok(counts)
    }

    /// Listed accounts that are done under another filter than `hash`.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn done_under_another_filter(&self, hash: &str) -> Result<u64, StoreError> {
        let select = "SELECT count(*) FROM accounts WHERE state = 5
                          AND (filter < ?1 OR filter > ?1 OR filter IS NULL) AND listed = 1";
        self.one(select, &[&hash]).map(i64::cast_unsigned)
    }

    /// Puts those accounts back, to be exported again; gives how many.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn refilter(&mut self, hash: &str) -> Result<usize, StoreError> {
        let select = "SELECT id FROM accounts WHERE listed = 1 AND state = 5 AND filter IS NOT ?1";
        let ids: Vec<i64> = self.select(select, [hash], |row| row.get(0))?;
        ids.iter().try_for_each(|id| self.apply(AccountId(*id), Event::Again).map(drop))?;
        Ok(ids.len())
    }

    /// Puts parked accounts back; gives how many.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn retry(&mut self, selection: &Selection) -> Result<u64, StoreError> {
        let (mut after, mut count) = (0, 0);
        loop {
            let some = self.retry_some(selection, after)?;
            count += some.retried;
            match some.last {
                Some(last) => after = last,
                None => return Ok(count),
            }
        }
    }

    /// Puts some parked accounts after the row `after` back.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn retry_some(
        &mut self,
        selection: &Selection,
        after: i64,
    ) -> Result<RetriedSome, StoreError> {
        let (condition, word) = match selection {
            Selection::All => ("?3 = ''", ""),
            Selection::Word(word) => ("(reason = ?3 OR last_error = ?3)", word.as_str()),
            Selection::Did(did) => ("did = ?3", did.as_str()),
        };
        let select = format!(
            "SELECT id FROM accounts WHERE state = 6 AND id > ?1 AND {condition} ORDER BY id LIMIT ?2"
        );
        let parameters = params![after, RETRIED_AT_ONCE, word];
        let ids: Vec<i64> = self.select(&select, parameters, |row| row.get(0))?;
        let is_full = ids.len() as u64 == RETRIED_AT_ONCE.cast_unsigned();
        let mut some = RetriedSome { retried: 0, last: ids.last().copied().filter(|_| is_full) };
        for id in ids {
            let applied = self.apply(AccountId(id), Event::Retry)?;
            some.retried += u64::from(!applied.after.state.is_decided());
        }
        Ok(some)
    }
}

/// A reader of `state.db`, beside a writer or without one.
pub struct Reader {
    path: std::path::PathBuf,
    connection: Connection,
}

impl Reader {
    /// Opens `state.db` for reading.
    ///
    /// # Errors
    /// [`StoreError::Config`] for a newer schema, [`StoreError`] otherwise.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        let connection = ledger_schema::read_only(path)?;
        Ok(Self { path: path.to_owned(), connection })
    }

    /// Listed accounts by public state.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn counts(&self) -> Result<Counts, StoreError> {
        counts(&self.connection).map_err(|error| self.failed(error))
    }

    /// Parked listed accounts by reason.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn parked_by_reason(&self) -> Result<BTreeMap<String, u64>, StoreError> {
        let sql = "SELECT reason, n FROM totals WHERE state = 6 AND n > 0";
        let mut statement = self.connection.prepare(sql).map_err(|error| self.failed(error))?;
        let read = |row: &Row<'_>| Ok((row.get(0)?, row.get::<_, i64>(1)?.cast_unsigned()));
        let rows = statement.query_map([], read).map_err(|error| self.failed(error))?;
        rows.collect::<Result<_, _>>().map_err(|error| self.failed(error))
    }

    /// Sums over the listed done accounts, with a zero for each of `labels`. A ledger of an older skyfill that nobody has
    /// opened for writing since is added up account by account.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn sums(&self, labels: &[String]) -> Result<Sums, StoreError> {
        let mut sums = Sums::zero(labels);
        if !ledger_sums::read(&self.connection, &mut sums).map_err(|error| self.failed(error))? {
            self.each(Decided::Done, |report| {
                report.revision.iter().for_each(|revision| sums.add(revision));
                Ok(())
            })?;
        }
        Ok(sums)
    }

    /// Hosts of listed accounts that are not decided: name, queued, active.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn hosts(&self) -> Result<Vec<(String, u64, u64)>, StoreError> {
        // Each part by an index of its own: the table itself is never scanned.
        let sql = "WITH fetching AS (SELECT host, count(*) AS n FROM accounts
                                    WHERE listed = 1 AND state IN (1, 3) AND state = 3 GROUP BY host)
                   SELECT name, (SELECT count(*) FROM accounts WHERE listed = 1 AND state = 2 AND host = hosts.id) AS ready,
                       ifnull(fetching.n, 0) AS active
                   FROM hosts LEFT JOIN fetching ON fetching.host = hosts.id
                   WHERE ready > 0 OR active > 0 ORDER BY ready DESC";
        let mut statement = self.connection.prepare(sql).map_err(|error| self.failed(error))?;
        let read = |row: &Row<'_>| {
            let count = |at| row.get::<_, i64>(at).map(i64::cast_unsigned);
            Ok((row.get(0)?, count(1)?, count(2)?))
        };
        let rows = statement.query_map([], read).map_err(|error| self.failed(error))?;
        rows.collect::<Result<_, _>>().map_err(|error| self.failed(error))
    }

    /// Tells `each` of every listed account that is decided in this way; in ledger order, one at a time. An error of `each`
    /// ends it.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn each(
        &self,
        decided: Decided,
        each: impl FnMut(Report) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        let state = match decided {
            Decided::Done => DONE,
            Decided::Parked => PARKED,
            Decided::Forgotten => FORGOTTEN,
        };
        self.each_where("listed = 1 AND state = ?1", &[&state], each)
    }

    /// Tells `each` of every account that was ever exported.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn each_exported(
        &self,
        each: impl FnMut(Report) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        self.each_where("revision IS NOT NULL", &[], each)
    }

    pub(super) fn each_where(
        &self,
        condition: &str,
        parameters: &[&dyn rusqlite::ToSql],
        mut each: impl FnMut(Report) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        let sql = format!("{REPORT} WHERE {condition} ORDER BY id");
        let mut statement = self.connection.prepare(&sql).map_err(|error| self.failed(error))?;
        let mut rows = statement.query(parameters).map_err(|error| self.failed(error))?;
        while let Some(row) = rows.next().map_err(|error| self.failed(error))? {
            each(report(row).map_err(|error| self.failed(error))?)?;
        }
        Ok(())
    }

    /// One account, listed or not.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn account(&self, did: &str) -> Result<Option<Report>, StoreError> {
        let sql = format!("{REPORT} WHERE did = ?1");
        self.one_or_none(&sql, &[&did], report)
    }

    pub(super) fn one_or_none<T>(
        &self,
        sql: &str,
        parameters: &[&dyn rusqlite::ToSql],
        read: impl FnOnce(&Row<'_>) -> rusqlite::Result<T>,
    ) -> Result<Option<T>, StoreError> {
        let found = self.connection.query_row(sql, parameters, read).optional();
        found.map_err(|error| self.failed(error))
    }

    pub(super) fn rows<T>(
        &self,
        sql: &str,
        parameters: impl rusqlite::Params,
        read: impl FnMut(&Row<'_>) -> rusqlite::Result<T>,
    ) -> Result<Vec<T>, StoreError> {
        let mut statement =
            self.connection.prepare_cached(sql).map_err(|error| self.failed(error))?;
        let rows = statement.query_map(parameters, read).map_err(|error| self.failed(error))?;
        rows.collect::<Result<_, _>>().map_err(|error| self.failed(error))
    }

    pub(super) const fn connection(&self) -> &Connection {
        &self.connection
    }

    pub(super) fn failed(&self, error: rusqlite::Error) -> StoreError {
        StoreError::sqlite(&self.path, error)
    }
}

pub(super) const REPORT: &str =
    "SELECT did, listed, rules, revision, edition, done_at_ms, id FROM accounts";

pub(super) fn report(row: &Row<'_>) -> rusqlite::Result<Report> {
    let rules: Option<String> = row.get(2)?;
    let revision: Option<String> = row.get(3)?;
    Ok(Report {
        did: row.get(0)?,
        listed: row.get(1)?,
        account: rules.and_then(|text| serde_json::from_str(&text).ok()).unwrap_or_default(),
        revision: revision.and_then(|text| serde_json::from_str(&text).ok()),
        edition: row.get(4)?,
        done_at_ms: row.get(5)?,
        id: AccountId(row.get(6)?),
    })
}

fn counts(connection: &Connection) -> rusqlite::Result<Counts> {
    let mut statement =
        connection.prepare_cached("SELECT state, sum(n) FROM totals GROUP BY state")?;
    let mut rows = statement.query([])?;
    let mut counts = Counts::default();
    while let Some(row) = rows.next()? {
        counts.add(row.get(0)?, row.get(1)?);
    }
    Ok(counts)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Clock;
    use crate::config::targets::Target;
    use crate::domain::did::Did;
    use crate::domain::identity::Identity;
    use crate::domain::ledger::{Event, LedgerPolicy};
    use crate::domain::verdict::{Cause, Failure, LastError, Reason};
    use crate::seed::Chance;
    use crate::store::ledger_rows::opened;
    use crate::store::ledger_work::Batch;
    use crate::store::listing::Staged;
    use crate::store::sorted_list::Entry;

    fn rows(folder: &Path) -> Rows {
        opened(folder, Clock::fixed(1_700_000_000_000))
    }

    fn did(n: u8) -> Target {
        let id: String = std::iter::repeat_n(char::from(b'a' + n), 24).collect();
        Target::Did(Did::parse(&format!("did:plc:{id}")).unwrap())
    }

    fn list(rows: &mut Rows, targets: Vec<Target>) -> u64 {
        let targets = targets.into_iter().map(Ok::<Target, String>);
        let staged = Staged::read(Path::new("never-written"), targets, &|_| {}).unwrap().unwrap();
        staged.know(rows, &|_| {}).unwrap().swap(rows, &|_| {}).unwrap()
    }

    fn batch(rows: &mut Rows, batch: Batch) -> crate::store::ledger_work::Batched {
        rows.transaction(|rows| rows.run_batch(&batch)).unwrap()
    }

    fn resolved() -> Event {
        Event::Resolved(Identity {
            endpoint: "https://a.test".to_owned(),
            host: "a.test".to_owned(),
            key: "did:key:z".to_owned(),
            earlier_keys: Vec::new(),
            handle: None,
        })
    }

    /// Brings `count` accounts to fetching.
    fn fetching(rows: &mut Rows, count: usize) -> Vec<AccountId> {
        let leased = batch(rows, Batch { plc: count, ..Batch::default() }).plc;
        let events = leased.iter().map(|leased| (leased.id, resolved())).collect();
        let done = batch(rows, Batch { events, ..Batch::default() });
        let host = done.applied[0].after.host.unwrap();
        let fetch = batch(rows, Batch { hosts: vec![(host, count)], ..Batch::default() }).fetch;
        fetch.into_iter().map(|(_, leased)| leased.id).collect()
    }

    #[test]
    fn every_account_is_pending_or_decided_and_the_forgotten_are_told_where_there_are_any() {
        let mut counts =
            Counts { queued: 1, active: 2, retrying: 4, done: 8, parked: 16, forgotten: 32 };
        assert_eq!((counts.pending(), counts.decided(), counts.total()), (7, 56, 63));
        let text = |counts: &Counts| serde_json::to_string(counts).unwrap();
        assert!(text(&counts).ends_with(r#""parked":16,"forgotten":32}"#));
        counts.forgotten = 0;
        assert!(text(&counts).ends_with(r#""parked":16}"#));
        for (state, change) in [(0, 3), (2, -1), (1, 1), (3, -2), (4, -4), (5, 1), (6, 2), (7, 9)] {
            counts.add(state, change);
        }
        let after = Counts { queued: 3, active: 1, retrying: 0, done: 9, parked: 18, forgotten: 9 };
        assert_eq!(counts, after);
    }

    #[test]
    fn a_list_replaces_the_one_before_and_states_are_kept() {
        let folder = tempfile::tempdir().unwrap();
        let mut rows = rows(folder.path());
        let junk =
            Target::Malformed { cleaned: "junk".to_owned(), detail: "f:3: no did".to_owned() };
        assert_eq!(list(&mut rows, vec![did(0), did(1), did(0), junk.clone()]), 3);
        let counts = rows.counts().unwrap();
        assert_eq!((counts.queued, counts.parked, rows.run_counts().parked), (2, 1, 1));
        let leased = fetching(&mut rows, 1);
        assert_eq!(list(&mut rows, vec![did(1), did(2), junk]), 3);
        assert_eq!((rows.counts().unwrap().active, rows.run_counts().parked), (0, 1));
        // What was in flight finishes all the same, and is there again when it is listed again.
        let failure = Failure::new(Cause::Terminal(Reason::NoPds), None, "x");
        let events = vec![(leased[0], Event::Failed { failure, host_usable_ms: None })];
        assert!(!batch(&mut rows, Batch { events, ..Batch::default() }).applied[0].listed);
        assert_eq!(list(&mut rows, vec![did(0)]), 1);
        assert_eq!(rows.counts().unwrap(), Counts { parked: 1, ..Counts::default() });
    }

    #[test]
    fn a_list_that_breaks_off_or_is_empty_changes_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let mut rows = rows(folder.path());
        list(&mut rows, vec![did(0), did(1)]);
        let broken = vec![Ok(did(2)), Err("not utf-8")].into_iter();
        let staged = Staged::read(folder.path(), broken, &|_| {}).unwrap();
        assert_eq!(staged.unwrap_err(), "not utf-8");
        assert_eq!(list(&mut rows, Vec::new()), 0);
        assert_eq!(rows.counts().unwrap(), Counts { queued: 2, ..Counts::default() });
        let reader = Reader::open(&folder.path().join("state.db")).unwrap();
        assert_eq!(reader.account("did:plc:cccccccccccccccccccccccc").unwrap(), None);
    }

    #[test]
    fn a_segment_makes_an_edition_done_once_and_a_filter_can_ask_for_it_again() {
        let folder = tempfile::tempdir().unwrap();
        let mut rows = rows(folder.path());
        list(&mut rows, vec![did(0)]);
        let ids = fetching(&mut rows, 1);
        let Target::Did(name) = did(0) else { panic!("a did") };
        let revision = |edition, filter: &str| Revision {
            did: name.to_string(),
            edition,
            rev: "3kabc".to_owned(),
            filter: filter.to_owned(),
            exported: [("post".to_owned(), 7)].into(),
            ..Revision::default()
        };
        let apply = |rows: &mut Rows, segment, revision: Revision| {
            rows.transaction(|rows| rows.apply_segment(segment, &[revision])).unwrap();
        };
        apply(&mut rows, 1, revision(0, "one"));
        apply(&mut rows, 1, revision(0, "one"));
        let repeats = |rows: &Rows, segment| {
            rows.repeats(segment, &[(name.to_string(), 1), (name.to_string(), 0)]).unwrap()
        };
        assert_eq!((repeats(&rows, 1), repeats(&rows, 2)), (vec![], vec![1]));
        let late = [revision(9, "of no turn"), revision(0, "late")];
        rows.transaction(|rows| rows.apply_segment(2, &late)).unwrap();
        assert_eq!((repeats(&rows, 1), repeats(&rows, 2)), (vec![], vec![1]));
        rows.transaction(|rows| rows.forget_repeats(1)).unwrap();
        assert_eq!(repeats(&rows, 2), vec![1]);
        rows.transaction(|rows| rows.forget_repeats(2)).unwrap();
        assert_eq!(repeats(&rows, 2), Vec::<usize>::new());
        assert_eq!((rows.run_counts().done, rows.run_counts().records), (1, 7));
        // Late news about it changes nothing.
        let events = vec![(ids[0], Event::Lost { crashed: true })];
        batch(&mut rows, Batch { events, ..Batch::default() });
        assert_eq!(rows.counts().unwrap(), Counts { done: 1, ..Counts::default() });
        assert_eq!(rows.done_under_another_filter("one").unwrap(), 0);
        assert_eq!(rows.done_under_another_filter("two").unwrap(), 1);
        assert_eq!(rows.transaction(|rows| rows.refilter("two")).unwrap(), 1);
        // Its identity is young, so it goes straight to its host.
        assert_eq!(rows.host_rows().unwrap()[0].ready, 1);
        apply(&mut rows, 3, revision(1, "two"));
        let report = Reader::open(&folder.path().join("state.db")).unwrap();
        assert_eq!(report.account(name.as_str()).unwrap().unwrap().edition, 2);
    }

    #[test]
    fn a_run_counts_what_it_decides_and_readers_see_hosts_and_reasons() {
        let folder = tempfile::tempdir().unwrap();
        let mut rows = rows(folder.path());
        list(&mut rows, (0..6).map(did).collect());
        let ids = fetching(&mut rows, 4);
        let reader = Reader::open(&folder.path().join("state.db")).unwrap();
        let host = |ready, active| vec![("a.test".to_owned(), ready, active)];
        assert_eq!((reader.hosts().unwrap(), rows.run_counts().ended()), (host(0, 4), 0));
        let failure = Failure::new(Cause::Terminal(Reason::NoPds), None, "x");
        let parked = Event::Failed { failure, host_usable_ms: None };
        let events = vec![(ids[3], Event::GivenBack), (ids[0], parked)];
        batch(&mut rows, Batch { events, ..Batch::default() });
        assert_eq!(reader.hosts().unwrap(), host(1, 2));
        assert_eq!(reader.parked_by_reason().unwrap(), BTreeMap::from([("no_pds".to_owned(), 1)]));
        let name = |n| match did(n) {
            Target::Did(did) => did.to_string(),
            Target::Malformed { cleaned, .. } => cleaned,
        };
        let revision = |n, label: &str, records, repo_bytes| Revision {
            did: name(n),
            rev: format!("3k{n}"),
            exported: [(label.to_owned(), records)].into(),
            repo_bytes,
            ..Revision::default()
        };
        let revisions = [revision(1, "post", 7, 100), revision(2, "like", 2, 11)];
        let counts = Counts { queued: 3, done: 2, parked: 1, ..Counts::default() };
        let open = rows.transaction(|rows| {
            rows.apply_segment(5, &revisions)?;
            rows.counts()
        });
        assert_eq!(open.unwrap(), counts, "with what is not committed yet");
        // One that the ledger has taken, or an earlier one, changes nothing.
        for segment in [5, 4] {
            let late = [revision(3, "post", 1, 1)];
            rows.transaction(|rows| rows.apply_segment(segment, &late)).unwrap();
        }
        let run = rows.run_counts();
        assert_eq!((run.done, run.parked, run.records, run.repo_bytes), (2, 1, 9, 111));
        assert_eq!(run.ended(), 3);
        assert_eq!((reader.counts().unwrap(), reader.hosts().unwrap()), (counts, host(1, 0)));
        let report = reader.account(&name(2)).unwrap().unwrap();
        assert_eq!((report.id, report.edition, report.listed), (ids[2], 1, true));
        assert_eq!(report.done_at_ms, Some(1_700_000_000_000));
        assert_eq!(report.revision.as_ref(), Some(&revisions[1]));
        let mut exported = Vec::new();
        let each = |report: Report| {
            exported.push(report.did);
            Ok(())
        };
        reader.each_exported(each).unwrap();
        assert_eq!(exported, [name(1), name(2)]);
        assert_eq!(reader.account(&name(9)).unwrap(), None);
    }

    #[test]
    fn leases_end_uncharged_and_parked_accounts_come_back_by_reason_or_error() {
        let folder = tempfile::tempdir().unwrap();
        let mut rows = rows(folder.path());
        list(&mut rows, (0..4).map(did).collect());
        let ids = fetching(&mut rows, 3);
        let failed = |cause, last_error| Event::Failed {
            failure: Failure::new(cause, last_error, "x"),
            host_usable_ms: None,
        };
        let events = vec![
            (ids[0], failed(Cause::Terminal(Reason::NoPds), None)),
            (ids[1], failed(Cause::Terminal(Reason::EndpointForbidden), Some(LastError::Dns))),
        ];
        let done = batch(&mut rows, Batch { events, ..Batch::default() });
        assert_eq!((done.counts.parked, done.counts.active, done.counts.queued), (2, 1, 1));
        assert_eq!(rows.transaction(|rows| rows.end_leases(&Event::GivenBack)).unwrap(), 1);
        let retry = |rows: &mut Rows, selection: &Selection| {
            rows.transaction(|rows| rows.retry(selection)).unwrap()
        };
        assert_eq!(retry(&mut rows, &Selection::Word("repo_invalid".to_owned())), 0);
        assert_eq!(retry(&mut rows, &Selection::Word("dns".to_owned())), 1);
        assert_eq!(retry(&mut rows, &Selection::All), 1);
        assert_eq!(rows.counts().unwrap(), Counts { queued: 4, ..Counts::default() });
    }

    #[test]
    fn however_many_are_parked_they_are_put_back_in_bounded_steps() {
        let folder = tempfile::tempdir().unwrap();
        let mut rows = rows(folder.path());
        let ended = Event::PatienceEnded {
            reason: Reason::DirectoryUnavailable,
            last_error: Some(LastError::Timeout),
            detail: String::new(),
        };
        let parked = rows.transaction(|rows| {
            (0..RETRIED_AT_ONCE + 3).try_for_each(|n| {
                let id = rows.add(&Entry::did(&format!("did:plc:{n}")))?;
                rows.apply(AccountId(id), ended.clone()).map(drop)
            })
        });
        parked.unwrap();
        let some = rows.transaction(|rows| rows.retry_some(&Selection::All, 0)).unwrap();
        assert_eq!((some.retried, some.last), (2_000, Some(2_000)));
        let some = rows.transaction(|rows| rows.retry_some(&Selection::All, 2_000)).unwrap();
        assert_eq!((some.retried, some.last), (3, None));
        assert_eq!(rows.transaction(|rows| rows.retry(&Selection::All)).unwrap(), 0);
    }

    #[test]
    fn a_newer_schema_is_refused_and_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        drop(rows(folder.path()));
        let path = folder.path().join("state.db");
        let other = Connection::open(&path).unwrap();
        other.execute_batch("PRAGMA user_version = 99").unwrap();
        let opened = Rows::open(&path, LedgerPolicy::default(), Clock::system(), Chance::seeded(1));
        let error = opened.err().unwrap();
        assert!(matches!(&error, StoreError::Config(text) if text.contains("99")), "{error}");
    }
}
