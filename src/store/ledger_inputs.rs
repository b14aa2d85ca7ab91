//! Inputs in the ledger: the messages that its accounts came by, until what became of them was told.
//!
//! ```text
//!  admit               a message: its account is listed, and the input (partition, offset, account) stands until it is told
//!  drop_inputs         told and done with: the inputs go, their accounts stay listed and counted
//!  hand_over_inputs    they are somebody else's now: the inputs go, and undecided accounts that no other input wants are unlisted
//!  give_up_partition   the same for a whole partition, some at a time
//! ```
//! Invariants: an undecided account is listed while an input wants it, and unlisted when the last one goes to somebody else;
//! counts and sums move in the same transaction. An admission is durable with its commit: an account that only the
//! journal remembers after a loss of power would be exported as a new one. Everything else may be lost with the last moments
//! before a power cut, and comes again with its messages.

use std::collections::HashMap;

use rusqlite::{OptionalExtension, Row, params};

use crate::domain::account::AccountId;
use crate::domain::did::Did;
use crate::domain::identity::Identity;
use crate::domain::ledger::{Effect, Event};
use crate::domain::ledger_event::Told;
use crate::store::error::StoreError;
use crate::store::ledger_rows::{DONE, FORGOTTEN, PARKED, QUEUED, Rows};
use crate::store::sorted_list::Entry;

/// Inputs that are given up in one transaction: about 30 ms of the writer.
const GIVEN_UP_AT_ONCE: i64 = 2_000;

/// A message that names an account.
#[derive(Clone, Debug, PartialEq)]
pub struct Admission {
    /// Where it lies.
    pub partition: i32,
    /// And at which place there.
    pub offset: i64,
    /// Whom it names.
    pub did: String,
    /// Who that is, and when the directory said so, milliseconds since 1970.
    pub identity: Option<(Identity, i64)>,
}

/// What became of an admission.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admitted {
    /// Its account is undecided, or its decision is still to be told: this input's turn comes with it.
    Pending,
    /// Its account was decided, and told to all who asked: it is worked on once more.
    Reopened,
    /// Its account is forgotten by the operator's order, and nothing was done.
    Forgotten,
    /// It names no account, and nothing was done.
    Malformed,
}

/// An input of which nothing was told yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Input {
    /// Where its message lies.
    pub partition: i32,
    /// And at which place there.
    pub offset: i64,
    /// Whom it names.
    pub did: String,
}

/// An input whose account is parked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParkedInput {
    /// Where its message lies.
    pub partition: i32,
    /// And at which place there.
    pub offset: i64,
    /// Whom it names.
    pub did: String,
    /// Why, as the public word.
    pub reason: String,
    /// What went wrong last, if anything did.
    pub last_error: Option<String>,
    /// Charged failures.
    pub attempts: u32,
}

/// An input whose account is served by a host that does not lie in the input's partition.
#[derive(Clone, Debug, PartialEq)]
pub struct StrayedInput {
    /// Where its message lies.
    pub partition: i32,
    /// And at which place there.
    pub offset: i64,
    /// Whom it names.
    pub did: String,
    /// Who that is.
    pub identity: Identity,
    /// When the directory said so, milliseconds since 1970.
    pub resolved_at_ms: i64,
    /// Name of the host.
    pub host: String,
}

impl Rows {
    /// Takes messages on; says of each what became of it, in order. One that is there already changes nothing.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn admit(&mut self, admissions: &[Admission]) -> Result<Vec<Admitted>, StoreError> {
        let mut all = Vec::with_capacity(admissions.len());
        for admission in admissions {
            all.push(self.admit_one(admission)?);
        }
        if all.iter().any(|it| matches!(it, Admitted::Pending | Admitted::Reopened)) {
            self.make_durable()?;
        }
        Ok(all)
    }

    fn admit_one(&mut self, admission: &Admission) -> Result<Admitted, StoreError> {
        let Admission { partition, offset, did, identity } = admission;
        let Ok(did) = Did::parse(did) else { return Ok(Admitted::Malformed) };
        let known = "SELECT id, state, listed FROM accounts WHERE did = ?1";
        let read = |row: &Row<'_>| Ok((row.get(0)?, row.get(1)?, row.get(2)?));
        let known: Option<(i64, i64, bool)> = self.select(known, [did.as_str()], read)?.pop();
        let (id, state, is_listed) = match known {
            Some((_, FORGOTTEN, _)) => return Ok(Admitted::Forgotten),
            Some(known) => known,
            None => (self.add(&Entry::did(did.as_str()))?, QUEUED, false),
        };
        let is_untold = self.is_wanted(id)?;
        let insert = "INSERT OR IGNORE INTO inputs VALUES (?1, ?2, ?3)";
        if self.execute(insert, params![partition, offset, id])? == 0 {
            return Ok(Admitted::Pending);
        }
        if !is_listed {
            self.set_listed(id, true)?;
        }
        let is_reopened = !is_untold && self.reopen(id, state)?;
        if let Some((identity, resolved_at_ms)) = identity {
            // What is older, or comes while the account is in work or decided, is passed over by the rules.
            let told = Told { identity: Some(identity.clone()), as_of_ms: *resolved_at_ms };
            self.apply(AccountId(id), Event::Told(told))?;
        }
        Ok(if is_reopened { Admitted::Reopened } else { Admitted::Pending })
    }

    /// Puts an account back that is decided.
    fn reopen(&mut self, id: i64, state: i64) -> Result<bool, StoreError> {
        let event = match state {
            DONE => Event::Again,
            PARKED => Event::Retry,
            _ => return Ok(false),
        };
        Ok(self.apply(AccountId(id), event)?.effect != Effect::Nothing)
    }

    /// Whether an input is there that names this account.
    fn is_wanted(&self, id: i64) -> Result<bool, StoreError> {
        self.one("SELECT EXISTS (SELECT 1 FROM inputs WHERE account = ?1)", &[&id])
    }

    /// Lists or unlists an account that is not, or is, and counts it in or out.
    fn set_listed(&mut self, id: i64, is_listed: bool) -> Result<(), StoreError> {
        let select = "SELECT state, reason FROM accounts WHERE id = ?1";
        let (state, reason): (i64, Option<String>) =
            self.one_row(select, [id], |row| Ok((row.get(0)?, row.get(1)?)))?;
        let sign = if is_listed { 1 } else { -1 };
        self.count(state, reason.as_deref(), sign);
        if state == DONE {
            self.sum_row(id, sign)?;
        }
        let update = "UPDATE accounts SET listed = ?2 WHERE id = ?1";
        self.execute(update, params![id, is_listed]).map(drop)
    }

    /// Every input, by partition and offset.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn inputs(&self) -> Result<Vec<Input>, StoreError> {
        let select = "SELECT partition, offset, did FROM inputs JOIN accounts ON id = account
                      ORDER BY partition, offset";
        self.select(select, [], input)
    }

    /// What became of these inputs was told; their accounts stay listed.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn drop_inputs(&mut self, partition: i32, offsets: &[i64]) -> Result<(), StoreError> {
        let delete = "DELETE FROM inputs WHERE partition = ?1 AND offset = ?2";
        offsets
            .iter()
            .try_for_each(|offset| self.execute(delete, params![partition, offset]).map(drop))
    }

    /// Somebody else has these inputs now. Undecided accounts that no other input wants are not worked on any more; gives how many
    /// inputs there were.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn hand_over_inputs(&mut self, partition: i32, offsets: &[i64]) -> Result<u64, StoreError> {
        let select = "SELECT account FROM inputs WHERE partition = ?1 AND offset = ?2";
        let mut some = Vec::with_capacity(offsets.len());
        for offset in offsets {
            let account = self.select(select, params![partition, offset], |row| row.get(0))?.pop();
            some.extend(account.map(|account: i64| (*offset, account)));
        }
        self.give_up(partition, &some)
    }

    /// The partition is lost: some of its inputs go, and undecided accounts that no other input wants are not worked on any more.
    /// Gives how many inputs went; none are left when none did.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn give_up_partition(&mut self, partition: i32) -> Result<u64, StoreError> {
        let select =
            "SELECT offset, account FROM inputs WHERE partition = ?1 ORDER BY offset LIMIT ?2";
        let some: Vec<(i64, i64)> =
            self.select(select, params![partition, GIVEN_UP_AT_ONCE], |row| {
                Ok((row.get(0)?, row.get(1)?))
            })?;
        self.give_up(partition, &some)
    }

    /// Drops inputs, given with their accounts.
    fn give_up(&mut self, partition: i32, some: &[(i64, i64)]) -> Result<u64, StoreError> {
        let offsets: Vec<i64> = some.iter().map(|(offset, _)| *offset).collect();
        self.drop_inputs(partition, &offsets)?;
        let select = "SELECT id FROM accounts WHERE id = ?1 AND listed = 1 AND state < 5
                          AND NOT EXISTS (SELECT 1 FROM inputs WHERE account = ?1)";
        for (_, account) in some {
            let unwanted: Vec<i64> = self.select(select, [account], |row| row.get(0))?;
            unwanted.into_iter().try_for_each(|id| self.set_listed(id, false))?;
        }
        Ok(some.len() as u64)
    }

    /// The partitions that inputs lie in.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn owned_partitions(&self) -> Result<Vec<i32>, StoreError> {
        // From one to the next by the key: what lies in a partition is passed over.
        let select = "WITH RECURSIVE owned (partition) AS (
                          SELECT min(partition) FROM inputs
                          UNION ALL
                          SELECT (SELECT min(inputs.partition) FROM inputs WHERE inputs.partition > owned.partition)
                          FROM owned WHERE owned.partition IS NOT NULL)
                      SELECT partition FROM owned WHERE partition IS NOT NULL";
        self.select(select, [], |row| row.get(0))
    }

    /// Some of the inputs whose accounts are parked.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn parked_inputs(&self, limit: usize) -> Result<Vec<ParkedInput>, StoreError> {
        // Only a worker asks, so only its ledger has the index, which finds the few parked ones without a look at any row.
        self.execute("CREATE INDEX IF NOT EXISTS by_parked ON accounts (id) WHERE state = 6", [])?;
        let select = "SELECT partition, offset, did, reason, last_error, id, rules
                      FROM inputs CROSS JOIN accounts INDEXED BY by_parked ON id = account
                      WHERE state = 6 LIMIT ?1";
        let read = |row: &Row<'_>| {
            let input = ParkedInput {
                partition: row.get(0)?,
                offset: row.get(1)?,
                did: row.get(2)?,
                reason: row.get::<_, Option<String>>(3)?.unwrap_or_default(),
                last_error: row.get(4)?,
                attempts: 0,
            };
            Ok((input, row.get(5)?, row.get::<_, Option<String>>(6)?))
        };
        let some = self.select(select, [rows_of(limit)], read)?;
        let with_attempts = |(input, id, rules): (ParkedInput, i64, Option<String>)| {
            let attempts = self.rules(AccountId(id), rules.as_deref())?.attempts;
            Ok(ParkedInput { attempts, ..input })
        };
        some.into_iter().map(with_attempts).collect()
    }

    /// Some of the inputs whose accounts were forgotten since they were admitted: there is nothing to tell of them.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn forgotten_inputs(&self, limit: usize) -> Result<Vec<Input>, StoreError> {
        let select = "SELECT partition, offset, did FROM accounts INDEXED BY by_forgotten
                      CROSS JOIN inputs ON account = id WHERE state = 7 LIMIT ?1";
        self.select(select, [rows_of(limit)], input)
    }

    /// Some of the inputs whose undecided accounts wait for a host that does not lie in the input's partition, as `is_ours`
    /// says of a host and a partition.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn strayed_inputs(
        &self,
        limit: usize,
        is_ours: &dyn Fn(&str, i32) -> bool,
    ) -> Result<Vec<StrayedInput>, StoreError> {
        let mut strayed = Vec::new();
        // Ready accounts may be many, so their index is asked which hosts there are, and rows are only read where it matters.
        let pairs = "SELECT DISTINCT host, partition FROM accounts INDEXED BY by_host
                     CROSS JOIN inputs ON account = id WHERE listed = 1 AND state = 2";
        let there =
            "SELECT id, offset FROM accounts INDEXED BY by_host CROSS JOIN inputs ON account = id
                     WHERE listed = 1 AND state = 2 AND host = ?1 AND partition = ?2 LIMIT ?3";
        let mut names = HashMap::new();
        for (host, partition) in self.select(pairs, [], |row| Ok((row.get(0)?, row.get(1)?)))? {
            if strayed.len() >= limit || is_ours(self.host_name(host, &mut names)?, partition) {
                continue;
            }
            let left = rows_of(limit - strayed.len());
            let read = |row: &Row<'_>| Ok((row.get(0)?, partition, row.get(1)?));
            for (id, partition, offset) in
                self.select(there, params![host, partition, left], read)?
            {
                strayed.extend(self.strayed(id, partition, offset)?);
            }
        }
        let waiting = "SELECT id, host, partition, offset FROM accounts INDEXED BY by_due
                       CROSS JOIN inputs ON account = id WHERE listed = 1 AND state = 4 AND host IS NOT NULL";
        let read = |row: &Row<'_>| Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?));
        for (id, host, partition, offset) in self.select(waiting, [], read)? {
            if strayed.len() >= limit {
                break;
            }
            if !is_ours(self.host_name(host, &mut names)?, partition) {
                strayed.extend(self.strayed(id, partition, offset)?);
            }
        }
        Ok(strayed)
    }

    fn host_name<'n>(
        &self,
        host: i64,
        names: &'n mut HashMap<i64, String>,
    ) -> Result<&'n str, StoreError> {
        if let std::collections::hash_map::Entry::Vacant(new) = names.entry(host) {
            new.insert(self.one("SELECT name FROM hosts WHERE id = ?1", &[&host])?);
        }
        Ok(names.get(&host).map_or("", String::as_str))
    }

    fn strayed(
        &self,
        id: i64,
        partition: i32,
        offset: i64,
    ) -> Result<Option<StrayedInput>, StoreError> {
        let select = "SELECT did, rules FROM accounts WHERE id = ?1";
        let (did, rules): (String, Option<String>) =
            self.one_row(select, [id], |row| Ok((row.get(0)?, row.get(1)?)))?;
        let account = self.rules(AccountId(id), rules.as_deref())?;
        let resolved_at_ms = account.resolved_at_ms;
        Ok(account.identity.map(|identity| {
            let host = identity.host.clone();
            StrayedInput { partition, offset, did, identity, resolved_at_ms, host }
        }))
    }

    /// The group that this ledger works for; `None`: it works alone.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn group(&self) -> Result<Option<String>, StoreError> {
        let select = "SELECT value FROM meta WHERE key = 'group'";
        let found = self.connection().query_row(select, [], |row| row.get(0)).optional();
        found.map_err(|error| self.failed(error))
    }

    /// From now on this ledger works for `group`, as it may have done before.
    ///
    /// # Errors
    /// [`StoreError::Config`] if it has accounts of lists, or works for another group.
    pub fn bind_group(&mut self, group: &str) -> Result<(), StoreError> {
        match self.group()? {
            Some(bound) if bound == group => return Ok(()),
            Some(bound) => {
                let text = format!(
                    "this data directory works for the consumer group {bound}: a worker of another group needs a directory of its own"
                );
                return Err(StoreError::Config(text));
            }
            None if self.last_row()? > 0 => {
                let text = "this data directory has accounts of lists: a worker needs a directory of its own";
                return Err(StoreError::Config(text.to_owned()));
            }
            None => {}
        }
        self.execute("INSERT INTO meta VALUES ('group', ?1)", [group]).map(drop)
    }
}

fn input(row: &Row<'_>) -> rusqlite::Result<Input> {
    Ok(Input { partition: row.get(0)?, offset: row.get(1)?, did: row.get(2)? })
}

fn rows_of(limit: usize) -> i64 {
    i64::try_from(limit).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::clock::Clock;
    use crate::domain::account::Revision;
    use crate::domain::ledger::State;
    use crate::domain::verdict::{Cause, Failure, LastError, Reason};
    use crate::store::ledger_lists::{Counts, Decided, Reader};
    use crate::store::ledger_rows::opened;
    use crate::store::ledger_sums::Sums;
    use crate::store::ledger_work::Batch;

    const NOW_MS: i64 = 1_728_131_696_000;
    const HOUR_MS: i64 = 3_600_000;

    fn rows(folder: &Path) -> Rows {
        opened(folder, Clock::fixed(NOW_MS))
    }

    fn did(letter: char) -> String {
        format!("did:plc:{}", letter.to_string().repeat(24))
    }

    fn identity(host: &str) -> Identity {
        Identity {
            endpoint: format!("https://{host}"),
            host: host.to_owned(),
            key: "did:key:z".to_owned(),
            earlier_keys: Vec::new(),
            handle: None,
        }
    }

    fn admission(partition: i32, offset: i64, letter: char, host: &str) -> Admission {
        let identity = (!host.is_empty()).then(|| (identity(host), NOW_MS - HOUR_MS));
        Admission { partition, offset, did: did(letter), identity }
    }

    fn admit(rows: &mut Rows, admissions: &[Admission]) -> Vec<Admitted> {
        rows.transaction(|rows| rows.admit(admissions)).unwrap()
    }

    fn admit_one(rows: &mut Rows, partition: i32, offset: i64, letter: char) -> Admitted {
        admit(rows, &[admission(partition, offset, letter, "h1")])[0]
    }

    fn apply(rows: &mut Rows, letter: char, event: &Event) {
        let id = rows.one("SELECT id FROM accounts WHERE did = ?1", &[&did(letter)]).unwrap();
        rows.transaction(|rows| rows.apply(AccountId(id), event.clone())).unwrap();
    }

    fn lease(rows: &mut Rows, letter: char) {
        apply(rows, letter, &Event::LeasedToFetch { alone: false });
    }

    fn failed(cause: Cause) -> Event {
        let failure = Failure::new(cause, Some(LastError::Http4xx), "evidence");
        Event::Failed { failure, host_usable_ms: None }
    }

    fn export(rows: &mut Rows, segment: u64, letter: char, edition: u32) {
        let exported = [("post".to_owned(), 7)].into();
        let revision = Revision { did: did(letter), edition, exported, ..Revision::default() };
        rows.transaction(|rows| rows.apply_segment(segment, std::slice::from_ref(&revision)))
            .unwrap();
    }

    fn account(folder: &Path, letter: char) -> (State, bool) {
        let reader = Reader::open(&folder.join("state.db")).unwrap();
        let report = reader.account(&did(letter)).unwrap().unwrap();
        (report.account.state, report.listed)
    }

    fn host(folder: &Path, letter: char) -> Option<String> {
        let reader = Reader::open(&folder.join("state.db")).unwrap();
        let account = reader.account(&did(letter)).unwrap().unwrap().account;
        account.identity.map(|identity| identity.host)
    }

    /// Counts and sums as they are kept are those of the rows themselves.
    fn assert_counted(folder: &Path, rows: &Rows) -> Counts {
        let select = "SELECT state, count(*) FROM accounts WHERE listed = 1 GROUP BY state";
        let by_state: Vec<(i64, u64)> =
            rows.select(select, [], |row| Ok((row.get(0)?, row.get::<_, i64>(1)? as u64))).unwrap();
        let of = |states: &[i64]| {
            by_state.iter().filter(|(state, _)| states.contains(state)).map(|(_, n)| n).sum()
        };
        let expected = Counts {
            queued: of(&[0, 2]),
            active: of(&[1, 3]),
            retrying: of(&[4]),
            done: of(&[5]),
            parked: of(&[6]),
            forgotten: of(&[7]),
        };
        let reader = Reader::open(&folder.join("state.db")).unwrap();
        assert_eq!(reader.counts().unwrap(), expected);
        let mut slow = Sums::zero(&["post".to_owned()]);
        let add = |report: crate::store::ledger_lists::Report| {
            slow.add(&report.revision.unwrap());
            Ok(())
        };
        reader.each(Decided::Done, add).unwrap();
        assert_eq!(reader.sums(&["post".to_owned()]).unwrap(), slow);
        expected
    }

    #[test]
    fn an_unknown_account_is_listed_and_needs_no_directory_while_its_identity_is_young() {
        let folder = tempfile::tempdir().unwrap();
        let mut rows = rows(folder.path());
        let day = 24 * HOUR_MS;
        let old = Admission {
            identity: Some((identity("h1"), NOW_MS - day)),
            ..admission(3, 8, 'c', "")
        };
        let malformed = Admission { did: "did:plc:BAD".to_owned(), ..admission(3, 9, 'd', "h1") };
        let all = [admission(3, 5, 'a', "h1"), admission(4, 0, 'b', ""), old, malformed];
        use Admitted::{Malformed, Pending};
        assert_eq!(admit(&mut rows, &all), [Pending, Pending, Pending, Malformed]);
        let states = ['a', 'b', 'c'].map(|letter| account(folder.path(), letter));
        assert_eq!(states, [(State::Ready, true), (State::Queued, true), (State::Queued, true)]);
        assert_eq!(assert_counted(folder.path(), &rows).queued, 3);
        let hosts = rows.host_rows().unwrap();
        assert_eq!(
            hosts.iter().map(|it| (it.name.as_str(), it.ready)).collect::<Vec<_>>(),
            [("h1", 1)]
        );
        // The same messages again, as after a loss of power: nothing changes, whatever they say of whom.
        let mut again = all.to_vec();
        again[0].identity = Some((identity("h2"), NOW_MS));
        assert_eq!(admit(&mut rows, &again), [Pending, Pending, Pending, Malformed]);
        assert_eq!(host(folder.path(), 'a').unwrap(), "h1");
        let input = |partition, offset, letter| Input { partition, offset, did: did(letter) };
        assert_eq!(rows.inputs().unwrap(), [input(3, 5, 'a'), input(3, 8, 'c'), input(4, 0, 'b')]);
        assert_eq!(rows.owned_partitions().unwrap(), [3, 4]);
    }

    #[test]
    fn an_admission_is_durable_and_malformed_ones_sync_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let mut rows = rows(folder.path());
        let syncs =
            |rows: &Rows| rows.one::<String>("SELECT value FROM meta WHERE key = 'syncs'", &[]);
        let before = syncs(&rows).unwrap();
        let malformed = Admission { did: "nobody".to_owned(), ..admission(0, 0, 'a', "") };
        admit(&mut rows, &[malformed]);
        assert_eq!(syncs(&rows).unwrap(), before);
        admit_one(&mut rows, 0, 1, 'a');
        assert_ne!(syncs(&rows).unwrap(), before);
    }

    #[test]
    fn an_undecided_account_gets_another_input_and_keeps_the_newer_identity() {
        let folder = tempfile::tempdir().unwrap();
        let (path, mut rows) = (folder.path(), rows(folder.path()));
        let told = |offset, host: &str, at_ms| Admission {
            identity: Some((identity(host), at_ms)),
            ..admission(0, offset, 'a', "")
        };
        admit(&mut rows, &[told(0, "h1", NOW_MS - 5)]);
        admit(&mut rows, &[told(1, "older", NOW_MS - 6)]);
        assert_eq!((host(path, 'a').unwrap(), rows.inputs().unwrap().len()), ("h1".to_owned(), 2));
        admit(&mut rows, &[told(2, "h2", NOW_MS - 4)]);
        assert_eq!(
            (host(path, 'a').unwrap(), account(path, 'a').0),
            ("h2".to_owned(), State::Ready)
        );
        // In work, it stays with whom it is asked of; waiting for its retry, it waits on, for the newer host.
        lease(&mut rows, 'a');
        admit(&mut rows, &[told(3, "h3", NOW_MS - 3)]);
        assert_eq!(
            (host(path, 'a').unwrap(), account(path, 'a').0),
            ("h2".to_owned(), State::Fetching)
        );
        apply(&mut rows, 'a', &failed(Cause::Transient));
        let waiting = account(path, 'a').0;
        assert!(matches!(waiting, State::RetryAt(_)));
        admit(&mut rows, &[told(4, "h4", NOW_MS - 2)]);
        assert_eq!((host(path, 'a').unwrap(), account(path, 'a').0), ("h4".to_owned(), waiting));
        let others: Vec<_> =
            rows.host_rows().unwrap().into_iter().map(|it| (it.name, it.others)).collect();
        assert_eq!(others, [("h4".to_owned(), 1)]);
        assert_counted(path, &rows);
    }

    #[test]
    fn a_decided_account_is_reopened_once_all_who_asked_before_were_told() {
        let folder = tempfile::tempdir().unwrap();
        let (path, mut rows) = (folder.path(), rows(folder.path()));
        for (offset, letter) in [(0, 'a'), (1, 'b')] {
            assert_eq!(admit_one(&mut rows, 0, offset, letter), Admitted::Pending);
            lease(&mut rows, letter);
        }
        export(&mut rows, 1, 'a', 0);
        apply(&mut rows, 'b', &failed(Cause::Terminal(Reason::RepoTooLarge)));
        let counts = assert_counted(path, &rows);
        assert_eq!((counts.done, counts.parked), (1, 1));
        // Not told yet: who asks now is told with the others.
        for (offset, letter) in [(2, 'a'), (3, 'b')] {
            assert_eq!(admit_one(&mut rows, 0, offset, letter), Admitted::Pending);
            assert!(account(path, letter).0.is_decided());
        }
        rows.transaction(|rows| rows.drop_inputs(0, &[0, 1, 2, 3, 99])).unwrap();
        assert_eq!((rows.inputs().unwrap(), assert_counted(path, &rows)), (vec![], counts));
        for (offset, letter) in [(4, 'a'), (5, 'b')] {
            assert_eq!(admit_one(&mut rows, 1, offset, letter), Admitted::Reopened);
            assert_eq!(account(path, letter), (State::Ready, true));
        }
        assert_eq!(assert_counted(path, &rows).queued, 2);
        // Exported once more, under its next edition.
        lease(&mut rows, 'a');
        export(&mut rows, 2, 'a', 1);
        assert_eq!(assert_counted(path, &rows).done, 1);
        let begin = |rows: &mut Rows| rows.begin_forgetting(&did('b'), None).map(drop);
        rows.transaction(begin).unwrap();
        assert_eq!(rows.forgotten_inputs(9).unwrap().len(), 1);
        rows.transaction(|rows| rows.drop_inputs(1, &[5])).unwrap();
        assert_eq!(rows.forgotten_inputs(9).unwrap(), []);
        assert_eq!(admit_one(&mut rows, 1, 6, 'b'), Admitted::Forgotten);
        assert!(rows.inputs().unwrap().iter().all(|input| input.did == did('a')));
    }

    #[test]
    fn what_is_given_up_rests_and_goes_on_where_it_was_when_it_comes_back() {
        let folder = tempfile::tempdir().unwrap();
        let (path, mut rows) = (folder.path(), rows(folder.path()));
        // Undecided, wanted twice, in work, done and parked.
        let wanted = [(0, 'a'), (1, 'b'), (2, 'c'), (3, 'd'), (4, 'e')];
        for (offset, letter) in wanted {
            admit_one(&mut rows, 7, offset, letter);
        }
        admit_one(&mut rows, 8, 0, 'b');
        ['c', 'd', 'e'].into_iter().for_each(|letter| lease(&mut rows, letter));
        export(&mut rows, 1, 'd', 0);
        apply(&mut rows, 'e', &failed(Cause::Terminal(Reason::RepoTooLarge)));
        assert_eq!(rows.transaction(|rows| rows.give_up_partition(7)).unwrap(), 5);
        assert_eq!(rows.transaction(|rows| rows.give_up_partition(7)).unwrap(), 0);
        assert_eq!(rows.owned_partitions().unwrap(), [8]);
        let is_listed = |letter| account(path, letter).1;
        assert_eq!(['a', 'b', 'c', 'd', 'e'].map(is_listed), [false, true, false, true, true]);
        let counts = assert_counted(path, &rows);
        assert_eq!((counts.queued, counts.active, counts.done, counts.parked), (1, 0, 1, 1));
        // What was in work ends without being counted, and is counted when it is wanted again.
        export(&mut rows, 2, 'c', 0);
        assert_eq!(assert_counted(path, &rows).done, 1);
        assert_eq!(admit_one(&mut rows, 7, 2, 'c'), Admitted::Reopened);
        assert_eq!(admit_one(&mut rows, 7, 0, 'a'), Admitted::Pending);
        assert_eq!(
            (account(path, 'a'), account(path, 'c')),
            ((State::Ready, true), (State::Ready, true))
        );
        assert_eq!(assert_counted(path, &rows).queued, 3);
        // Handed over one by one.
        assert_eq!(rows.transaction(|rows| rows.hand_over_inputs(8, &[0, 1])).unwrap(), 1);
        assert!(!is_listed('b'));
        assert_eq!(assert_counted(path, &rows).queued, 2);
    }

    #[test]
    fn a_large_partition_is_given_up_in_bounded_steps() {
        let folder = tempfile::tempdir().unwrap();
        let mut rows = rows(folder.path());
        let name = |n: i64| {
            let letter = |at: u32| char::from(b'a' + (n / 26_i64.pow(at) % 26) as u8);
            format!("did:plc:{}{}", "a".repeat(20), (0..4).map(letter).collect::<String>())
        };
        let all: Vec<Admission> =
            (0..4_500).map(|n| Admission { did: name(n), ..admission(1, n, 'a', "h1") }).collect();
        admit(&mut rows, &all);
        let mut dropped = Vec::new();
        while dropped.last() != Some(&0) {
            dropped.push(rows.transaction(|rows| rows.give_up_partition(1)).unwrap());
        }
        assert_eq!(dropped, [2_000, 2_000, 500, 0]);
        assert_eq!(assert_counted(folder.path(), &rows), Counts::default());
    }

    #[test]
    fn parked_inputs_say_why() {
        let folder = tempfile::tempdir().unwrap();
        let mut rows = rows(folder.path());
        for (offset, letter) in [(0, 'a'), (1, 'b'), (2, 'c')] {
            admit_one(&mut rows, 2, offset, letter);
            lease(&mut rows, letter);
        }
        assert_eq!(rows.parked_inputs(9).unwrap(), []);
        apply(&mut rows, 'b', &failed(Cause::Transient));
        for _ in 0..4 {
            apply(&mut rows, 'b', &Event::Due);
            lease(&mut rows, 'b');
            apply(&mut rows, 'b', &failed(Cause::Transient));
        }
        apply(&mut rows, 'c', &failed(Cause::Terminal(Reason::RepoTooLarge)));
        let parked = |offset, letter, reason: Reason, attempts| ParkedInput {
            partition: 2,
            offset,
            did: did(letter),
            reason: reason.as_str().to_owned(),
            last_error: Some("http_4xx".to_owned()),
            attempts,
        };
        let expected =
            [parked(1, 'b', Reason::AttemptsExhausted, 5), parked(2, 'c', Reason::RepoTooLarge, 0)];
        assert_eq!(rows.parked_inputs(9).unwrap(), expected);
        assert_eq!(rows.parked_inputs(1).unwrap().len(), 1);
        rows.transaction(|rows| rows.drop_inputs(2, &[1, 2])).unwrap();
        assert_eq!(rows.parked_inputs(9).unwrap(), []);
    }

    #[test]
    fn strayed_inputs_are_those_of_undecided_accounts_at_hosts_of_other_partitions() {
        let folder = tempfile::tempdir().unwrap();
        let mut rows = rows(folder.path());
        // Hosts h0 to h3 lie in partitions 0 to 3.
        let is_ours = |host: &str, partition: i32| host == format!("h{partition}");
        let at = [
            (0, 'a', "h0"),
            (0, 'b', "h1"),
            (1, 'c', "h2"),
            (2, 'd', "h3"),
            (2, 'e', ""),
            (2, 'f', "h2"),
        ];
        let admissions: Vec<Admission> = (0..)
            .zip(at)
            .map(|(offset, (partition, letter, host))| admission(partition, offset, letter, host))
            .collect();
        admit(&mut rows, &admissions);
        // One of them waits for its retry, one is in work, one is wanted in both partitions.
        lease(&mut rows, 'c');
        apply(&mut rows, 'c', &failed(Cause::Transient));
        lease(&mut rows, 'd');
        admit(&mut rows, &[admission(1, 9, 'b', "h1")]);
        let strayed = rows.strayed_inputs(9, &is_ours).unwrap();
        let found: Vec<_> =
            strayed.iter().map(|it| (it.partition, it.offset, it.host.as_str())).collect();
        assert_eq!(found, [(0, 1, "h1"), (1, 2, "h2")]);
        let StrayedInput { did: whose, identity: who, resolved_at_ms, .. } = &strayed[0];
        assert_eq!((whose, who, *resolved_at_ms), (&did('b'), &identity("h1"), NOW_MS - HOUR_MS));
        assert_eq!(rows.strayed_inputs(1, &is_ours).unwrap(), strayed[..1]);
        // One more at a host of its own, and two at one host: as many as were asked for, wherever they lie.
        let more = [(0, 'g', "h2"), (0, 'h', "h2"), (0, 'i', "h3")];
        for (offset, (partition, letter, host)) in (20..).zip(more) {
            admit(&mut rows, &[admission(partition, offset, letter, host)]);
        }
        let found = |limit| rows.strayed_inputs(limit, &is_ours).unwrap().len();
        assert_eq!([1, 2, 3, 4, 5, 6].map(found), [1, 2, 3, 4, 5, 5]);
        rows.transaction(|rows| rows.hand_over_inputs(0, &[20, 21, 22])).unwrap();
        assert_eq!(rows.strayed_inputs(9, &|_, _| true).unwrap(), []);
        apply(&mut rows, 'd', &Event::GivenBack);
        assert_eq!(rows.strayed_inputs(9, &is_ours).unwrap().len(), 3);
        for input in &strayed {
            rows.transaction(|rows| rows.hand_over_inputs(input.partition, &[input.offset]))
                .unwrap();
        }
        assert_eq!(rows.strayed_inputs(9, &is_ours).unwrap().len(), 1);
        // The one that another input wants stays, the other does not.
        assert!(account(folder.path(), 'b').1 && !account(folder.path(), 'c').1);
        assert_counted(folder.path(), &rows);
    }

    /// What is asked again and again reads no row of the accounts that it has nothing to do with.
    #[test]
    fn questions_are_answered_by_indexes() {
        let folder = tempfile::tempdir().unwrap();
        let rows = rows(folder.path());
        rows.parked_inputs(1).unwrap();
        let plan = |sql: &str| -> Vec<String> {
            rows.select(&format!("EXPLAIN QUERY PLAN {sql}"), [], |row| row.get(3)).unwrap()
        };
        let parked = plan(
            "SELECT did FROM inputs CROSS JOIN accounts INDEXED BY by_parked ON id = account WHERE state = 6",
        );
        assert!(parked[1].starts_with("SEARCH accounts USING INDEX by_parked"), "{parked:?}");
        let strayed = plan(
            "SELECT DISTINCT host, partition FROM accounts INDEXED BY by_host CROSS JOIN inputs ON account = id WHERE listed = 1 AND state = 2",
        );
        assert!(strayed[0].contains("COVERING INDEX by_host"), "{strayed:?}");
        assert!(strayed[1].contains("COVERING INDEX inputs_by_account"), "{strayed:?}");
    }

    #[test]
    fn a_ledger_works_for_one_group_or_for_lists() {
        let folder = tempfile::tempdir().unwrap();
        let mut rows = rows(folder.path());
        let bind = |rows: &mut Rows, group: &str| rows.transaction(|rows| rows.bind_group(group));
        assert_eq!(rows.group().unwrap(), None);
        bind(&mut rows, "study").unwrap();
        admit_one(&mut rows, 0, 0, 'a');
        bind(&mut rows, "study").unwrap();
        assert_eq!(rows.group().unwrap().as_deref(), Some("study"));
        let refused = bind(&mut rows, "other").unwrap_err().to_string();
        assert!(refused.contains("the consumer group study"), "{refused}");
        let folder = tempfile::tempdir().unwrap();
        let mut rows = self::rows(folder.path());
        admit_one(&mut rows, 0, 0, 'a');
        let refused = bind(&mut rows, "study").unwrap_err();
        assert!(matches!(&refused, StoreError::Config(text) if text.contains("accounts of lists")));
    }

    /// Random admissions, work, telling and giving up: counts and sums fit the rows, and what is wanted is listed.
    #[test]
    fn whatever_happens_what_is_wanted_is_listed_and_counted() {
        let folder = tempfile::tempdir().unwrap();
        let (path, mut rows) = (folder.path(), rows(folder.path()));
        let (mut chance, mut segment, mut offset) = (fastrand::Rng::with_seed(11), 0, 0);
        let mut editions = [0_u32; 8];
        for step in 0..600 {
            let (number, partition) = (chance.u8(0..8), i32::from(chance.u8(0..3)));
            let letter = char::from(b'a' + number);
            let is_known = rows
                .select("SELECT 1 FROM accounts WHERE did = ?1", [did(letter)], |_| Ok(()))
                .unwrap()
                .len();
            match chance.u8(0..8) {
                0..=2 => {
                    offset += 1;
                    admit_one(&mut rows, partition, offset, letter);
                }
                3 if is_known == 1 => {
                    lease(&mut rows, letter);
                    segment += 1;
                    export(&mut rows, segment, letter, editions[usize::from(number)]);
                    editions[usize::from(number)] += 1;
                }
                4 if is_known == 1 => {
                    lease(&mut rows, letter);
                    apply(&mut rows, letter, &failed(Cause::Terminal(Reason::RepoTooLarge)));
                }
                5 => drop(rows.transaction(|rows| rows.give_up_partition(partition)).unwrap()),
                6 => {
                    let select = "SELECT offset FROM inputs JOIN accounts ON id = account
                                  WHERE state >= 5 AND partition = ?1";
                    let told: Vec<i64> =
                        rows.select(select, [partition], |row| row.get(0)).unwrap();
                    rows.transaction(|rows| rows.drop_inputs(partition, &told)).unwrap();
                }
                _ => drop(
                    rows.transaction(|rows| rows.run_batch(&Batch { plc: 1, ..Batch::default() }))
                        .unwrap(),
                ),
            }
            assert_counted(path, &rows);
            let wrong = "SELECT count(*) FROM accounts
                         WHERE state < 5 AND listed != EXISTS (SELECT 1 FROM inputs WHERE account = id)";
            assert_eq!(rows.one::<i64>(wrong, &[]).unwrap(), 0, "step {step}");
        }
        assert!(segment > 20 && offset > 100);
    }
}
