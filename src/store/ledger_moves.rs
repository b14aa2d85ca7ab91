//! What moves in the ledger's rows, and what is counted with it, in the same transaction: accounts by the rules' events, the
//! accounts of a segment, totals by state and reason, and what this process decided.

use rusqlite::{OptionalExtension, params};

use crate::domain::account::{AccountId, Revision};
use crate::domain::ledger::{Account, Effect, Event, Moment, State};
use crate::domain::verdict::Reason;
use crate::store::apply::Export;
use crate::store::error::StoreError;
use crate::store::ledger_rows::{
    Applied, DONE, FETCHING, FORGOTTEN, PARKED, Place, QUEUED, READY, RESOLVING, RETRY, Rows,
    RunCounts,
};
use crate::store::tally::Kind;

impl Rows {
    /// Applies one event to one account.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn apply(&mut self, id: AccountId, event: Event) -> Result<Applied, StoreError> {
        let select = "SELECT reason, listed, rules, host FROM accounts WHERE id = ?1";
        let row = self.one_row(select, [id.0], |row| {
            Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?))
        })?;
        let (old_reason, listed, rules, host): (Option<String>, bool, Option<String>, _) = row;
        let mut account = self.rules(id, rules.as_deref())?;
        let moment = Moment { now_ms: self.clock.steady_ms(), fraction: self.chance.fraction() };
        let before = Place { state: account.state, host, alone: account.runs_alone() };
        let (kind, was_refreshing) = (Kind::from(&event), account.refreshing);
        let effect = account.apply(event, &self.policy, moment);
        let mut after = Place { state: account.state, host, alone: account.runs_alone() };
        if effect != Effect::Nothing {
            if kind == Kind::Resolved
                && let Some(identity) = &account.identity
            {
                after.host = Some(self.host_id(&identity.host)?);
            }
            if account.state == State::Forgotten {
                after.host = None;
            }
            self.write_account(id, &account, after)?;
            if listed {
                if before.state == State::Done {
                    self.sum_row(id.0, -1)?;
                }
                self.count(state_number(before.state), old_reason.as_deref(), -1);
                self.count(state_number(after.state), reason_word(after.state), 1);
            }
            if was_refreshing && after.state == State::Done {
                self.refresh_ended(id, kind, listed)?;
            }
            self.run[1].parked += u64::from(matches!(after.state, State::Parked(_)));
            self.tally.applied(kind, effect, after.state);
            if listed && after.state.is_decided() {
                self.decisions.note(id.0);
            }
            if listed && matches!(after.state, State::Parked(_)) {
                self.parkings.note(id.0);
            }
        }
        let host_name = account.identity.map(|identity| identity.host);
        Ok(Applied { id, listed, effect, before, after, host_name })
    }

    pub(crate) fn rules(&self, id: AccountId, text: Option<&str>) -> Result<Account, StoreError> {
        let Some(text) = text else { return Ok(Account::default()) };
        serde_json::from_str(text).map_err(|_| StoreError::Damaged {
            path: self.path().to_owned(),
            what: format!("the row of account {} is unreadable", id.0),
        })
    }

    fn write_account(
        &self,
        id: AccountId,
        account: &Account,
        place: Place,
    ) -> Result<(), StoreError> {
        let update =
            "UPDATE accounts SET state = ?2, alone = ?3, due_ms = ?4, host = ?5, reason = ?6,
                      last_error = ?7, rules = ?8 WHERE id = ?1";
        // Strings, numbers and options of them always serialise.
        let text = serde_json::to_string(account).unwrap_or_default();
        let columns = params![
            id.0,
            state_number(place.state),
            place.alone,
            due_ms(place.state),
            place.host,
            reason_word(place.state),
            account.last_error.map(|error| error.as_str()),
            text
        ];
        self.execute(update, columns).map(drop)
    }

    /// Marks the accounts of a segment done, unless they are already, or forgotten.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn apply_segment(
        &mut self,
        segment: u64,
        revisions: &[Revision],
    ) -> Result<(), StoreError> {
        if segment <= self.segment()? {
            return Ok(());
        }
        for (index, revision) in revisions.iter().enumerate() {
            let Some((id, edition, state)) = self.export_of(&revision.did)? else { continue };
            if edition > revision.edition {
                let insert = "INSERT OR IGNORE INTO repeats VALUES (?1, ?2)";
                self.execute(insert, params![segment.cast_signed(), index.cast_signed()])?;
            }
            if edition != revision.edition || state == FORGOTTEN {
                continue;
            }
            let applied = self.apply(AccountId(id), Event::Exported)?;
            if applied.listed && applied.before.state == State::Done {
                self.sum_row(id, -1)?;
            }
            if applied.listed {
                self.sums.add(revision, 1);
            }
            self.run[1].done += 1;
            self.run[1].records += revision.queued_total();
            self.run[1].refresh.exported(revision);
            self.run[1].repo_bytes += revision.repo_bytes;
            self.tally.exported(revision);
            let text = serde_json::to_string(revision).unwrap_or_default();
            let update = "UPDATE accounts SET edition = edition + 1, rev = ?2, filter = ?3, revision = ?4, done_at_ms = ?5 WHERE id = ?1";
            self.execute(
                update,
                params![id, revision.rev, revision.filter, text, self.clock.wall_ms()],
            )?;
        }
        self.execute("UPDATE meta SET value = ?1 WHERE key = 'segment'", [segment.to_string()])
            .map(drop)
    }

    /// Which of the accounts of `segment`, an earlier segment brought already.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn repeats(&self, segment: u64, exports: &[Export]) -> Result<Vec<usize>, StoreError> {
        if segment <= self.segment()? {
            let select = "SELECT account FROM repeats WHERE segment = ?1";
            let read = |row: &rusqlite::Row<'_>| Ok(row.get::<_, i64>(0)?.cast_unsigned());
            let known = self.select(select, [segment.cast_signed()], read)?;
            return Ok(known.into_iter().filter_map(|index| usize::try_from(index).ok()).collect());
        }
        let mut repeated = Vec::new();
        for (index, (did, edition)) in exports.iter().enumerate() {
            if self.export_of(did)?.is_some_and(|(_, next, _)| next > *edition) {
                repeated.push(index);
            }
        }
        Ok(repeated)
    }

    /// Forgets the repeats of segments up to `segment`, which are gone from the journal.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn forget_repeats(&self, segment: u64) -> Result<(), StoreError> {
        self.execute("DELETE FROM repeats WHERE segment <= ?1", [segment.cast_signed()]).map(drop)
    }

    /// Row of an account, the edition that its next export has, and its state.
    fn export_of(&self, did: &str) -> Result<Option<(i64, u32, i64)>, StoreError> {
        let select = "SELECT id, edition, state FROM accounts WHERE did = ?1";
        let connection = self.connection();
        let mut statement =
            connection.prepare_cached(select).map_err(|error| self.failed(error))?;
        let found = statement.query_row([did], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)));
        found.optional().map_err(|error| self.failed(error))
    }

    fn host_id(&mut self, name: &str) -> Result<i64, StoreError> {
        self.execute("INSERT OR IGNORE INTO hosts (name) VALUES (?1)", [name])?;
        let id =
            self.connection()
                .query_row("SELECT id FROM hosts WHERE name = ?1", [name], |row| row.get(0));
        id.map_err(|error| self.failed(error))
    }

    pub(crate) fn note_parked(&mut self, accounts: u64) {
        self.run[1].parked += accounts;
    }

    /// What this process has decided, with the open transaction.
    #[must_use]
    pub fn run_counts(&self) -> RunCounts {
        self.run[1]
    }

    pub(crate) fn count(&mut self, state: i64, reason: Option<&str>, change: i64) {
        *self.changes.entry((state, reason.unwrap_or_default().to_owned())).or_default() += change;
    }

    /// Changes to the totals that the open transaction has made and not yet written: state and how many.
    pub(crate) fn changes_by_state(&self) -> impl Iterator<Item = (i64, i64)> {
        self.changes.iter().map(|((state, _), change)| (*state, *change))
    }

    /// Brings the totals up to date with what this transaction has changed so far.
    pub(crate) fn write_totals(&mut self) -> Result<(), StoreError> {
        for ((state, reason), change) in std::mem::take(&mut self.changes) {
            let upsert =
                "INSERT INTO totals VALUES (?1, ?2, ?3) ON CONFLICT DO UPDATE SET n = n + ?3";
            self.execute(upsert, params![state, reason, change])?;
        }
        Ok(())
    }
}

/// State column of a state.
const fn state_number(state: State) -> i64 {
    match state {
        State::Queued => QUEUED,
        State::Resolving => RESOLVING,
        State::Ready => READY,
        State::Fetching => FETCHING,
        State::RetryAt(_) => RETRY,
        State::Done => DONE,
        State::Parked(_) => PARKED,
        State::Forgotten => FORGOTTEN,
    }
}

const fn due_ms(state: State) -> i64 {
    match state {
        State::RetryAt(at_ms) => at_ms,
        _ => 0,
    }
}

fn reason_word(state: State) -> Option<&'static str> {
    match state {
        State::Parked(reason) => Some(Reason::as_str(reason)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Clock;
    use crate::domain::verdict::{Cause, Failure};

    use crate::store::decisions::{DecisionLog, Decisions};
    use crate::store::ledger_rows::opened;
    use crate::store::sorted_list::Entry;

    #[test]
    fn a_decision_about_a_listed_account_is_told_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let mut rows = opened(folder.path(), Clock::fixed(1_700_000_000_000));
        let dids = ["did:plc:a", "did:plc:b", "did:plc:c"];
        let made = rows.transaction(|rows| {
            dids.iter().try_for_each(|did| rows.add(&Entry::did(did)).map(drop))?;
            rows.execute("UPDATE accounts SET listed = 1 WHERE id > 1", [])
        });
        made.unwrap();
        let logs = [(); 2].map(|()| Decisions::make(folder.path()).unwrap());
        [&mut rows.decisions, &mut rows.parkings]
            .into_iter()
            .zip(&logs)
            .for_each(|(log, told)| *log = DecisionLog::of(told.clone()));
        let mut apply = |id, event: &Event| {
            rows.transaction(|rows| rows.apply(AccountId(id), event.clone())).unwrap();
            logs.each_ref().map(|log| log.read(0, 9).unwrap())
        };
        let nothing = || [Vec::<i64>::new(), Vec::new()];
        for id in [1, 2] {
            assert_eq!(apply(id, &Event::LeasedToResolve), nothing());
        }
        let failure = Failure::new(Cause::Terminal(Reason::NoPds), None, "");
        let parked = Event::Failed { failure, host_usable_ms: None };
        assert_eq!(apply(1, &parked), nothing(), "it is on no list");
        assert_eq!(apply(2, &parked), [vec![2], vec![2]]);
        assert_eq!(apply(3, &Event::Exported), [vec![2, 3], vec![2]]);
        assert_eq!(apply(3, &parked), [vec![2, 3], vec![2]], "it is done");
    }
}
