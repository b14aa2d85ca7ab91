//! The ledger's rules: what one event makes of one account. Pure: time and chance are passed in.
//!
//! ```text
//!  queued --lease--> resolving --Resolved--> ready --lease--> fetching --Exported--> done
//!    ^  ^               |                      ^                 |
//!    |  '-- given back -+---- retry_at --------+-- given back ---+--> parked(reason)
//!    '--------------------------- Retry (operator) -------------------------'
//! ```
//! A refresh takes a done account through the same states: `done --Refresh--> queued or ready ... --> done`. However it ends, the
//! account is done, because its rows are held: with the newer revision, unchanged, or with the verdict that would have parked it
//! as evidence (`refresh_failed`, `last_error`, `detail`).
//!
//! Invariants: an account has exactly one state; only [`Event::Exported`] makes it done; a decided account (done, parked)
//! moves only by [`Event::Retry`] or by an export that was sealed before; `attempts` never exceeds the policy's bound. An
//! event that does not fit the state changes nothing, so that late news about a DID that was taken back is harmless. A
//! forgotten account ([`Event::Forget`], the operator's order, from any state) moves never again and knows nothing.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::domain::identity::Identity;
pub use crate::domain::ledger_event::{Effect, Event};
pub use crate::domain::ledger_policy::{LedgerPolicy, Moment};
use crate::domain::verdict::{Cause, Failure, LastError, Reason};
use crate::limits::CRASHES_MAX;

/// An account that died alone waits this long, so that kills from outside, however many in a minute, park nobody.
pub const LONE_WAIT_MS: i64 = 60_000;

/// Characters of evidence kept beside a reason.
const DETAIL_CHARACTERS_MAX: usize = 200;

/// Refusals further apart count as this far apart, longer than any wait: a jump of the clock or a pause uses up no patience.
const WAIT_STEP_MS_MAX: i64 = 16 * 60_000;

/// Where an account stands.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum State {
    /// Waits for a resolution.
    #[default]
    Queued,
    /// The resolver has it.
    Resolving,
    /// Its host is known; waits for the host's turn.
    Ready,
    /// Fetcher, parser or exporter has it, or it is sealed and not applied yet.
    Fetching,
    /// Waits until this ledger time (milliseconds).
    RetryAt(i64),
    /// Exported.
    Done,
    /// Given up for this reason until the operator says otherwise.
    Parked(Reason),
    /// Forgotten by the operator's order, for good.
    Forgotten,
}

impl State {
    /// The public word (DESIGN section 4).
    #[must_use]
    pub const fn public(self) -> &'static str {
        match self {
            Self::Queued | Self::Ready => "queued",
            Self::Resolving | Self::Fetching => "active",
            Self::RetryAt(_) => "retrying",
            Self::Done => "done",
            Self::Parked(_) => "parked",
            Self::Forgotten => "forgotten",
        }
    }

    /// Whether nothing is left to do.
    #[must_use]
    pub const fn is_decided(self) -> bool {
        matches!(self, Self::Done | Self::Parked(_) | Self::Forgotten)
    }
}

/// A verdict that stands only after the directory was asked again.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Doubt {
    /// No verdict is pending.
    #[default]
    None,
    /// This reason was met; the identity must be resolved afresh.
    Resolve(Reason),
    /// The identity is fresh; the next such verdict stands.
    Fetch,
}

/// What an account has only been getting, one refusal after the other.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Waiting {
    /// Neither of the two.
    #[default]
    Nothing,
    /// 429 and nothing else.
    Refusals,
    /// No usable answer from the directory.
    Directory,
}

/// One account as the rules see it.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
pub struct Account {
    /// Where it stands.
    pub state: State,
    /// Charged failures since the last decision or operator's retry.
    pub attempts: u32,
    /// Crashes of its worker since the last decision.
    pub crashes: u32,
    /// Deaths of the process while its bytes were in hand, since the last decision.
    pub process_deaths: u32,
    /// Those of them while it ran alone.
    pub lone_deaths: u32,
    /// Spool or journal had no room for it beside others.
    pub large: bool,
    /// Its lease was given for a run alone.
    pub ran_alone: bool,
    /// Bytes of its body are in hand.
    pub body_begun: bool,
    /// A verdict that waits for a fresh identity.
    pub doubt: Doubt,
    /// The only kind of answer it has been getting.
    pub waiting: Waiting,
    /// For how long, milliseconds.
    pub waited_ms: i64,
    /// When that was last added to, ledger time.
    pub waited_at_ms: i64,
    /// Ledger time of its last failure, 0 if none.
    pub failed_at_ms: i64,
    /// Newest identity, if it was ever resolved.
    pub identity: Option<Identity>,
    /// Ledger time of that resolution.
    pub resolved_at_ms: i64,
    /// What went wrong last.
    pub last_error: Option<LastError>,
    /// Evidence for it, cleaned, at most 200 characters.
    pub detail: String,
    /// It is exported, and on its way to be compared with what its host has now.
    #[serde(default, skip_serializing_if = "is_false")]
    pub refreshing: bool,
    /// Why its last refresh came to nothing, if it did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refresh_failed: Option<Reason>,
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde asks for it")]
fn is_false(flag: &bool) -> bool {
    !flag
}

impl Account {
    /// An account that is parked from the start (a malformed DID).
    #[must_use]
    pub fn parked(reason: Reason, detail: &str) -> Self {
        Self { state: State::Parked(reason), detail: clean(detail), ..Self::default() }
    }

    /// Whether it may only run while nothing else does.
    #[must_use]
    pub fn runs_alone(&self) -> bool {
        self.large || self.process_deaths >= CRASHES_MAX
    }

    /// Whether its earlier signing keys are wanted with the next resolution: its repository was signed with another key than
    /// its document names, as that of an account that moved and has not written since.
    #[must_use]
    pub fn wants_earlier_keys(&self) -> bool {
        self.doubt == Doubt::Resolve(Reason::RepoInvalid)
            && self.last_error == Some(LastError::Signature)
    }

    /// Applies one event.
    pub fn apply(&mut self, event: Event, policy: &LedgerPolicy, at: Moment) -> Effect {
        let is_without_leaves = event == Event::WithoutLeaves;
        match (self.state, event) {
            (State::Forgotten, _) => Effect::Nothing,
            (_, Event::Forget) => {
                *self = Self { state: State::Forgotten, ..Self::default() };
                Effect::Decided
            }
            (State::Queued, Event::LeasedToResolve) => self.go(State::Resolving),
            (State::Ready, Event::LeasedToFetch { alone }) => {
                self.lease_to_fetch(alone, policy, at)
            }
            (State::Resolving, Event::Resolved(identity)) => self.resolved(identity, at),
            (State::Queued | State::Ready | State::RetryAt(_), Event::Told(told)) => {
                self.told(told, policy, at)
            }
            (State::Fetching, Event::BodyBegun) => {
                self.body_begun = true;
                Effect::Moved
            }
            (state, Event::Exported) if state != State::Done => {
                self.last_error = None;
                self.detail.clear();
                self.decide(State::Done)
            }
            (State::Resolving | State::Fetching, Event::Failed { failure, host_usable_ms }) => {
                let failed_before = self.failed_at_ms > 0;
                let is_own =
                    host_usable_ms.is_some_and(|ms| failed_before && ms > self.failed_at_ms);
                self.failed(&failure, is_own, policy, at)
            }
            (State::Resolving | State::Fetching, Event::Lost { crashed: true }) => {
                self.worker_crashed(policy, at)
            }
            (State::Resolving | State::Fetching, Event::Lost { .. } | Event::GivenBack) => {
                self.back()
            }
            (State::Resolving | State::Fetching, Event::NotBefore(at_ms)) => self.retry_at(at_ms),
            (State::Fetching, Event::TooLargeForNow) => {
                self.large = true;
                self.back()
            }
            (State::Resolving | State::Fetching, Event::ProcessDied) => self.process_died(at),
            (State::RetryAt(_), Event::Due) => self.available(policy, at),
            (state, Event::PatienceEnded { reason, last_error, detail }) if !state.is_decided() => {
                self.last_error = last_error.or(self.last_error);
                if !detail.is_empty() {
                    self.detail = clean(&detail);
                }
                self.park(reason)
            }
            (State::Done, Event::Again) => {
                self.attempts = 0; // those of its last export are no evidence against this one
                self.available(policy, at)
            }
            (State::Done, Event::Refresh) => self.begin_refresh(policy, at),
            (state, Event::Unchanged | Event::WithoutLeaves | Event::RefreshDropped)
                if self.refreshing && !state.is_decided() =>
            {
                self.end_refresh(is_without_leaves)
            }
            (State::Parked(reason), Event::Retry) if reason != Reason::DidInvalid => {
                let identity = self.identity.take();
                *self = Self { identity, ..Self::default() };
                Effect::Available
            }
            _ => Effect::Nothing,
        }
    }

    fn worker_crashed(&mut self, policy: &LedgerPolicy, at: Moment) -> Effect {
        self.crashes += 1;
        self.detail = "its worker crashed".to_owned();
        if self.crashes >= CRASHES_MAX {
            return self.park(Reason::CrashLoop);
        }
        self.charge(Reason::AttemptsExhausted, policy, at)
    }

    fn go(&mut self, state: State) -> Effect {
        self.state = state;
        Effect::Moved
    }

    fn lease_to_fetch(&mut self, alone: bool, policy: &LedgerPolicy, at: Moment) -> Effect {
        if !self.has_usable_identity(policy, at) {
            self.state = State::Queued;
            return Effect::Available;
        }
        self.body_begun = false;
        self.ran_alone = alone;
        self.go(State::Fetching)
    }

    fn has_usable_identity(&self, policy: &LedgerPolicy, at: Moment) -> bool {
        let age_ms = at.now_ms.saturating_sub(self.resolved_at_ms);
        let is_young = age_ms < millis(policy.cache_ttl).max(1_000);
        self.identity.is_some() && is_young && !matches!(self.doubt, Doubt::Resolve(_))
    }

    /// A verdict in doubt stands if the directory still names the same host and key; a repository that was invalid is
    /// fetched once more in any case.
    fn resolved(&mut self, identity: Identity, at: Moment) -> Effect {
        let is_same = self
            .identity
            .as_ref()
            .is_some_and(|old| old.host == identity.host && old.key == identity.key);
        self.identity = Some(identity);
        self.resolved_at_ms = at.now_ms;
        if self.waiting == Waiting::Directory {
            self.stop_waiting();
        }
        if let Doubt::Resolve(reason) = self.doubt {
            if is_same && reason != Reason::RepoInvalid {
                return self.park(reason);
            }
            self.doubt = Doubt::Fetch;
        }
        self.state = State::Ready;
        Effect::Available
    }

    fn failed(
        &mut self,
        failure: &Failure,
        is_own_fault: bool,
        policy: &LedgerPolicy,
        at: Moment,
    ) -> Effect {
        self.last_error = failure.last_error;
        self.detail = clean(&failure.detail);
        self.failed_at_ms = at.now_ms;
        let waiting = match failure.cause {
            Cause::RateLimited => Waiting::Refusals,
            Cause::Directory => Waiting::Directory,
            _ => Waiting::Nothing,
        };
        self.count_waiting(waiting, at);
        let is_patience_over = self.waited_ms >= millis(policy.host_patience);
        match failure.cause {
            Cause::Terminal(reason) => self.park(reason),
            Cause::Repository(reason) => self.doubted(reason),
            Cause::Invalid => self.doubted(Reason::RepoInvalid),
            Cause::Stale => self.charge(Reason::RepoStale, policy, at),
            Cause::Transient => self.charge(Reason::AttemptsExhausted, policy, at),
            Cause::RateLimited if is_patience_over => self.park(Reason::AttemptsExhausted),
            Cause::RateLimited => self.back(),
            Cause::Directory if is_patience_over => self.park(Reason::DirectoryUnavailable),
            Cause::HostFault if is_own_fault => self.charge(Reason::AttemptsExhausted, policy, at),
            Cause::HostFault | Cause::Directory => self.wait_for_retry(policy, at),
        }
    }

    fn doubted(&mut self, reason: Reason) -> Effect {
        if self.doubt == Doubt::Fetch || self.state == State::Resolving {
            return self.park(reason);
        }
        self.doubt = Doubt::Resolve(reason);
        self.body_begun = false;
        self.state = State::Queued;
        Effect::Available
    }

    fn charge(&mut self, reason: Reason, policy: &LedgerPolicy, at: Moment) -> Effect {
        self.attempts += 1;
        if self.attempts >= policy.attempts {
            return self.park(reason);
        }
        self.wait_for_retry(policy, at)
    }

    /// `base` doubling with each attempt up to `max`, with full jitter.
    fn wait_for_retry(&mut self, policy: &LedgerPolicy, at: Moment) -> Effect {
        let doublings = self.attempts.saturating_sub(1).min(20);
        let bound = policy.base.saturating_mul(1 << doublings).min(policy.max);
        self.retry_at(at.now_ms.saturating_add(millis(bound.mul_f64(at.fraction.clamp(0.0, 1.0)))))
    }

    fn retry_at(&mut self, at_ms: i64) -> Effect {
        self.body_begun = false;
        self.state = State::RetryAt(at_ms);
        Effect::WakeAt(at_ms)
    }

    /// Back to where its lease came from, uncharged.
    fn back(&mut self) -> Effect {
        self.body_begun = false;
        self.state = if self.state == State::Resolving { State::Queued } else { State::Ready };
        Effect::Available
    }

    pub(super) fn available(&mut self, policy: &LedgerPolicy, at: Moment) -> Effect {
        self.state =
            if self.has_usable_identity(policy, at) { State::Ready } else { State::Queued };
        Effect::Available
    }

    fn process_died(&mut self, at: Moment) -> Effect {
        if self.state == State::Resolving || !self.body_begun {
            return self.back();
        }
        let was_suspect = self.process_deaths >= CRASHES_MAX;
        self.process_deaths += 1;
        self.detail = "the process died while its bytes were in hand".to_owned();
        if !(was_suspect && self.ran_alone) {
            return self.back();
        }
        self.lone_deaths += 1;
        if self.lone_deaths >= CRASHES_MAX {
            return self.park(Reason::CrashLoop);
        }
        self.retry_at(at.now_ms.saturating_add(LONE_WAIT_MS))
    }

    fn count_waiting(&mut self, waiting: Waiting, at: Moment) {
        if waiting == Waiting::Nothing || waiting != self.waiting {
            self.waited_ms = 0;
        } else {
            let step = at.now_ms.saturating_sub(self.waited_at_ms).clamp(0, WAIT_STEP_MS_MAX);
            self.waited_ms = self.waited_ms.saturating_add(step);
        }
        self.waiting = waiting;
        self.waited_at_ms = at.now_ms;
    }

    fn stop_waiting(&mut self) {
        (self.waiting, self.waited_ms) = (Waiting::Nothing, 0);
    }

    /// What is held of a refreshed account stays: it is done all the same.
    pub(super) fn park(&mut self, reason: Reason) -> Effect {
        if self.refreshing {
            self.refresh_failed = Some(reason);
            return self.decide(State::Done);
        }
        self.decide(State::Parked(reason))
    }

    /// A decision resets the counts of crashes and deaths; attempts stay as evidence.
    pub(super) fn decide(&mut self, state: State) -> Effect {
        (self.crashes, self.process_deaths, self.lone_deaths) = (0, 0, 0);
        (self.large, self.ran_alone, self.body_begun) = (false, false, false);
        self.doubt = Doubt::None;
        self.refreshing = false;
        self.stop_waiting();
        self.state = state;
        Effect::Decided
    }
}

/// Milliseconds of a duration, as ledger time counts.
#[must_use]
pub fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

fn clean(detail: &str) -> String {
    crate::domain::did::cleaned(detail).chars().take(DETAIL_CHARACTERS_MAX).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::ledger_event::Told;

    fn at(now_ms: i64) -> Moment {
        Moment { now_ms, fraction: 0.5 }
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

    fn failed(cause: Cause) -> Event {
        let failure = Failure::new(cause, Some(LastError::Timeout), "evidence");
        Event::Failed { failure, host_usable_ms: None }
    }

    #[test]
    fn an_export_is_believed_as_far_as_the_cache_would_be() {
        let policy = LedgerPolicy::default();
        let told = |host: Option<&str>, as_of_ms| {
            Event::Told(Told { identity: host.map(identity), as_of_ms })
        };
        let (hour, now) = (3_600_000, 100 * 3_600_000);
        let mut account = Account::default();
        let old = account.apply(told(Some("a"), now - 24 * hour), &policy, at(now));
        assert_eq!((old, account.state), (Effect::Nothing, State::Queued));
        let young = account.apply(told(Some("a"), now - 23 * hour), &policy, at(now));
        assert_eq!((young, account.state), (Effect::Available, State::Ready));
        // Its age is the export's, not that of the reading.
        account.apply(Event::LeasedToFetch { alone: false }, &policy, at(now + 2 * hour));
        assert_eq!(account.state, State::Queued, "asked for afresh");
        // What the directory said itself stands against an older export, and an older one against nothing.
        account.apply(Event::LeasedToResolve, &policy, at(now));
        assert_eq!(account.apply(told(Some("c"), now), &policy, at(now)), Effect::Nothing);
        account.apply(Event::Resolved(identity("b")), &policy, at(now));
        assert_eq!(account.apply(told(Some("c"), now - 1), &policy, at(now)), Effect::Nothing);
        assert_eq!(account.apply(told(Some("c"), now), &policy, at(now)), Effect::Nothing);
        account.apply(told(Some("c"), now + 1), &policy, at(now + 2));
        assert_eq!(account.identity.as_ref().unwrap().host, "c");
        // A verdict in doubt waits for the directory itself.
        account.apply(Event::LeasedToFetch { alone: false }, &policy, at(now + 2));
        account.apply(failed(Cause::Repository(Reason::RepoNotFound)), &policy, at(now + 3));
        assert_eq!(account.apply(told(Some("d"), now + 4), &policy, at(now + 4)), Effect::Nothing);
        // What waits for its retry waits on, for the newer host; so does what waits for its second verdict.
        account.apply(Event::LeasedToResolve, &policy, at(now + 4));
        account.apply(Event::Resolved(identity("e")), &policy, at(now + 4));
        assert_eq!(account.doubt, Doubt::Fetch);
        account.apply(Event::LeasedToFetch { alone: false }, &policy, at(now + 4));
        let waits = account.apply(failed(Cause::Transient), &policy, at(now + 4));
        assert_eq!(account.apply(told(Some("f"), now + 4), &policy, at(now + 5)), Effect::Nothing);
        assert_eq!(account.apply(told(Some("f"), now + 5), &policy, at(now + 5)), waits);
        let host = account.identity.as_ref().map(|identity| identity.host.as_str());
        assert_eq!((host, account.doubt), (Some("f"), Doubt::Fetch));
        account.apply(Event::Due, &policy, at(now + 6));
        assert_eq!(account.state, State::Ready);
        let mut gone = Account::default();
        assert_eq!(gone.apply(told(None, now), &policy, at(now)), Effect::Decided);
        assert_eq!(gone.state, State::Parked(Reason::DidTombstoned));
        assert_eq!(gone.apply(told(Some("a"), now), &policy, at(now)), Effect::Nothing);
    }

    #[test]
    fn every_state_has_its_public_word() {
        let words = [
            (State::Queued, "queued"),
            (State::Ready, "queued"),
            (State::Resolving, "active"),
            (State::Fetching, "active"),
            (State::RetryAt(1), "retrying"),
            (State::Done, "done"),
            (State::Parked(Reason::NoPds), "parked"),
            (State::Forgotten, "forgotten"),
        ];
        for (state, word) in words {
            assert_eq!(state.public(), word);
            let is_decided = ["done", "parked", "forgotten"].contains(&word);
            assert_eq!(state.is_decided(), is_decided, "{word}");
        }
    }

    #[test]
    fn what_the_ledger_writes_of_an_account_reads_back() {
        let account = Account {
            state: State::RetryAt(7),
            attempts: 2,
            identity: Some(identity("a")),
            last_error: Some(LastError::Dns),
            refreshing: true,
            refresh_failed: Some(Reason::RepoStale),
            ..Account::default()
        };
        for account in [account, Account::default(), Account::parked(Reason::NoPds, "x")] {
            let text = serde_json::to_string(&account).unwrap();
            assert_eq!(serde_json::from_str::<Account>(&text).unwrap(), account, "{text}");
            // Millions of them are never refreshed, and do not say so.
            assert_eq!(text.contains("refresh"), account.refreshing, "{text}");
        }
    }

    #[test]
    fn a_malformed_did_is_parked_from_the_start_and_stays_so() {
        let policy = LedgerPolicy::default();
        let mut account = Account::parked(Reason::DidInvalid, "list.txt:3 \u{1b}[31m");
        assert_eq!(account.state, State::Parked(Reason::DidInvalid));
        assert_eq!(account.detail, "list.txt:3 \\u{1b}[31m");
        assert_eq!(account.apply(Event::Retry, &policy, at(1)), Effect::Nothing);
        assert_eq!(account.state, State::Parked(Reason::DidInvalid));
        let mut other = Account::parked(Reason::DidNotFound, "404");
        assert_eq!(other.apply(Event::Retry, &policy, at(1)), Effect::Available);
        assert_eq!(other, Account::default());
        // Who it is is not forgotten: the next resolution is compared with that.
        let mut known = Account { identity: Some(identity("a")), ..other };
        known.park(Reason::CrashLoop);
        assert_eq!(known.apply(Event::Retry, &policy, at(1)), Effect::Available);
        assert_eq!(known, Account { identity: Some(identity("a")), ..Account::default() });
    }

    #[test]
    fn an_account_that_is_done_is_not_exported_a_second_time() {
        let (policy, mut account) = (LedgerPolicy::default(), Account::default());
        fetching(&mut account, "a", 0);
        assert_eq!(account.apply(Event::Exported, &policy, at(1)), Effect::Decided);
        assert_eq!(account.apply(Event::Exported, &policy, at(2)), Effect::Nothing);
        let mut parked = Account::parked(Reason::CrashLoop, "x");
        let late = parked.apply(Event::Exported, &policy, at(2));
        assert_eq!((late, parked.state), (Effect::Decided, State::Done), "sealed before");
        assert_eq!((parked.last_error, parked.detail.as_str()), (None, ""));
    }

    #[test]
    fn the_end_of_patience_keeps_the_evidence_that_is_there_and_touches_nothing_decided() {
        let policy = LedgerPolicy::default();
        let ended = |last_error, detail: &str| Event::PatienceEnded {
            reason: Reason::HostUnavailable,
            last_error,
            detail: detail.to_owned(),
        };
        let waiting = || Account {
            last_error: Some(LastError::Timeout),
            detail: "evidence".to_owned(),
            ..Account::default()
        };
        let mut silent = waiting();
        assert_eq!(silent.apply(ended(None, ""), &policy, at(1)), Effect::Decided);
        assert_eq!(silent.state, State::Parked(Reason::HostUnavailable));
        assert_eq!(
            (silent.last_error, silent.detail.as_str()),
            (Some(LastError::Timeout), "evidence")
        );
        let mut told = waiting();
        told.apply(ended(Some(LastError::Dns), "no such name"), &policy, at(1));
        assert_eq!((told.last_error, told.detail.as_str()), (Some(LastError::Dns), "no such name"));
        assert_eq!(told.apply(ended(None, "later"), &policy, at(2)), Effect::Nothing);
        assert_eq!(told.detail, "no such name");
    }

    #[test]
    fn earlier_keys_are_wanted_only_after_a_signature_that_is_not_the_documents() {
        let policy = LedgerPolicy::default();
        for (error, is_wanted) in [(LastError::Signature, true), (LastError::Hash, false)] {
            let mut account = Account::default();
            fetching(&mut account, "a", 0);
            let failure = Failure::new(Cause::Invalid, Some(error), "evidence");
            account.apply(Event::Failed { failure, host_usable_ms: None }, &policy, at(1));
            assert_eq!(account.wants_earlier_keys(), is_wanted, "{error}");
        }
        let mut gone = Account::default();
        fetching(&mut gone, "a", 0);
        gone.apply(failed(Cause::Repository(Reason::RepoNotFound)), &policy, at(1));
        gone.last_error = Some(LastError::Signature);
        assert!(!gone.wants_earlier_keys(), "another verdict is in doubt");
    }

    fn fetching(account: &mut Account, host: &str, now_ms: i64) {
        let policy = LedgerPolicy::default();
        account.apply(Event::Due, &policy, at(now_ms));
        account.apply(Event::LeasedToResolve, &policy, at(now_ms));
        account.apply(Event::Resolved(identity(host)), &policy, at(now_ms));
        account.apply(Event::LeasedToFetch { alone: account.runs_alone() }, &policy, at(now_ms));
        if account.state == State::Queued {
            // The identity outlived the cache.
            return fetching(account, host, now_ms);
        }
        assert_eq!(account.state, State::Fetching);
        account.apply(Event::BodyBegun, &policy, at(now_ms));
    }

    #[test]
    fn five_charged_failures_end_it_with_growing_delays() {
        let (policy, mut account) = (LedgerPolicy::default(), Account::default());
        let mut delays = Vec::new();
        for _ in 0..4 {
            fetching(&mut account, "a", 0);
            let effect = account.apply(failed(Cause::Transient), &policy, at(0));
            let Effect::WakeAt(delay) = effect else { panic!("{effect:?}") };
            delays.push(delay);
        }
        assert_eq!(delays, [2_500, 5_000, 10_000, 20_000]);
        fetching(&mut account, "a", 0);
        account.apply(failed(Cause::Transient), &policy, at(0));
        assert_eq!(account.state, State::Parked(Reason::AttemptsExhausted));
        assert_eq!((account.attempts, account.last_error), (5, Some(LastError::Timeout)));
    }

    #[test]
    fn a_missing_repository_stands_only_after_the_directory_was_asked_again() {
        let policy = LedgerPolicy::default();
        let gone = Cause::Repository(Reason::RepoNotFound);
        let mut stays = Account::default();
        fetching(&mut stays, "a", 0);
        stays.apply(failed(gone), &policy, at(0));
        assert_eq!(stays.state, State::Queued);
        stays.apply(Event::LeasedToResolve, &policy, at(0));
        stays.apply(Event::Resolved(identity("a")), &policy, at(0));
        assert_eq!(stays.state, State::Parked(Reason::RepoNotFound));

        let mut moved = Account::default();
        fetching(&mut moved, "a", 0);
        moved.apply(failed(gone), &policy, at(0));
        fetching(&mut moved, "b", 0);
        moved.apply(failed(gone), &policy, at(0));
        assert_eq!(moved.state, State::Parked(Reason::RepoNotFound));
    }

    #[test]
    fn an_invalid_repository_is_fetched_twice_and_a_stale_one_five_times() {
        let policy = LedgerPolicy::default();
        let mut invalid = Account::default();
        for _ in 0..2 {
            fetching(&mut invalid, "a", 0);
            invalid.apply(failed(Cause::Invalid), &policy, at(0));
        }
        assert_eq!(invalid.state, State::Parked(Reason::RepoInvalid));
        let mut stale = Account::default();
        for _ in 0..5 {
            fetching(&mut stale, "a", 0);
            stale.apply(failed(Cause::Stale), &policy, at(0));
        }
        assert_eq!(stale.state, State::Parked(Reason::RepoStale));
    }

    #[test]
    fn refusals_cost_nothing_until_patience_ends_and_a_jumping_clock_ends_none() {
        let (policy, mut account) = (LedgerPolicy::default(), Account::default());
        for minute in 0..=24 * 12 {
            assert!(!account.state.is_decided(), "after {minute} waits");
            fetching(&mut account, "a", minute * 300_000);
            account.apply(failed(Cause::RateLimited), &policy, at(minute * 300_000));
        }
        assert_eq!(account.state, State::Parked(Reason::AttemptsExhausted));
        assert_eq!(account.attempts, 0);
        let mut jumped = Account::default();
        for now_ms in [0, 400_000_000_000] {
            fetching(&mut jumped, "a", now_ms);
            jumped.apply(failed(Cause::RateLimited), &policy, at(now_ms));
        }
        assert!(!jumped.state.is_decided());
    }

    #[test]
    fn only_a_host_that_works_for_others_makes_its_faults_the_accounts_own() {
        let (policy, mut account) = (LedgerPolicy::default(), Account::default());
        let fault = |host_usable_ms| {
            let failure = Failure::new(Cause::HostFault, Some(LastError::Http5xx), "");
            Event::Failed { failure, host_usable_ms }
        };
        for (now_ms, host_usable_ms, attempts) in [
            (100, Some(50), 0),
            (200, None, 0),
            (300, Some(150), 0),
            (400, Some(350), 1),
            // Usable when it failed there last, and not since.
            (500, Some(400), 1),
            (600, Some(501), 2),
        ] {
            fetching(&mut account, "a", now_ms);
            account.apply(fault(host_usable_ms), &policy, at(now_ms));
            assert_eq!(account.attempts, attempts, "at {now_ms}");
        }
        assert_eq!(account.last_error, Some(LastError::Http5xx));
    }

    #[test]
    fn three_crashes_of_its_worker_or_three_lone_deaths_are_a_crash_loop() {
        let policy = LedgerPolicy::default();
        let mut poison = Account::default();
        for _ in 0..3 {
            fetching(&mut poison, "a", 0);
            poison.apply(Event::Lost { crashed: true }, &policy, at(0));
        }
        assert_eq!(poison.state, State::Parked(Reason::CrashLoop));

        let mut killer = Account::default();
        for death in 0..6 {
            assert_eq!(killer.runs_alone(), death >= 3);
            fetching(&mut killer, "a", 0);
            killer.apply(Event::ProcessDied, &policy, at(0));
            let expected = if death < 3 { State::Ready } else { State::RetryAt(LONE_WAIT_MS) };
            if death < 5 {
                assert_eq!(killer.state, expected, "death {death}");
                killer.state = State::Queued;
            }
        }
        assert_eq!(killer.state, State::Parked(Reason::CrashLoop));
        assert_eq!((killer.process_deaths, killer.lone_deaths), (0, 0));

        let mut waiting = Account::default();
        fetching(&mut waiting, "a", 0);
        waiting.body_begun = false;
        waiting.apply(Event::ProcessDied, &policy, at(0));
        assert_eq!((waiting.process_deaths, waiting.attempts), (0, 0));
    }

    #[test]
    fn a_death_is_charged_only_to_a_suspect_that_ran_alone() {
        let policy = LedgerPolicy::default();
        for (deaths_before, alone, lone_deaths) in [
            (CRASHES_MAX - 1, true, 0),
            (CRASHES_MAX - 1, false, 0),
            (CRASHES_MAX, false, 0),
            (CRASHES_MAX, true, 1),
        ] {
            let mut account = Account::default();
            fetching(&mut account, "a", 0);
            (account.process_deaths, account.ran_alone) = (deaths_before, alone);
            account.apply(Event::ProcessDied, &policy, at(0));
            assert_eq!(account.process_deaths, deaths_before + 1);
            let charged = (account.lone_deaths, account.state == State::RetryAt(LONE_WAIT_MS));
            assert_eq!(charged, (lone_deaths, lone_deaths > 0), "{deaths_before}, alone: {alone}");
        }
    }

    /// A model that knows only counts: 200,000 random events, every invariant after each.
    #[test]
    fn random_events_keep_the_invariants() {
        let (policy, chance) = (LedgerPolicy::default(), crate::seed::Chance::seeded(3));
        let causes = [
            Cause::Terminal(Reason::NoPds),
            Cause::Repository(Reason::RepoTakenDown),
            Cause::Invalid,
            Cause::Stale,
            Cause::Transient,
            Cause::RateLimited,
            Cause::HostFault,
            Cause::Directory,
        ];
        let (mut account, mut now_ms, mut decided, mut done) = (Account::default(), 0, 0, 0);
        for step in 0..200_000_u32 {
            now_ms += (chance.bits() % 1_000_000) as i64;
            let before = account.clone();
            let event = match chance.bits() % 24 {
                0..=4 => Event::LeasedToResolve,
                5..=9 => Event::LeasedToFetch { alone: before.runs_alone() },
                10..=13 => Event::Resolved(identity(["a", "b"][(step % 2) as usize])),
                14 => Event::BodyBegun,
                15 if step % 8 == 0 => Event::Exported,
                16 => Event::Lost { crashed: step % 2 == 0 },
                17 => Event::GivenBack,
                18 => Event::ProcessDied,
                19 if step % 16 == 0 => Event::Retry,
                20 => Event::TooLargeForNow,
                21 => Event::Due,
                22 if step % 32 == 0 => Event::PatienceEnded {
                    reason: Reason::HostUnavailable,
                    last_error: Some(LastError::Connect),
                    detail: String::new(),
                },
                22 => Event::Due,
                _ => failed(causes[(chance.bits() % 8) as usize]),
            };
            let is_retry_or_export = matches!(event, Event::Retry | Event::Exported);
            let is_export = event == Event::Exported;
            let effect = account.apply(event, &policy, at(now_ms));
            assert!(account.attempts <= policy.attempts && account.crashes < CRASHES_MAX);
            assert!(account.lone_deaths < CRASHES_MAX);
            assert_eq!(
                account.state.is_decided() && effect != Effect::Nothing,
                effect == Effect::Decided
            );
            if effect == Effect::Nothing {
                assert_eq!(account, before);
            }
            if before.state.is_decided() && account != before {
                assert!(is_retry_or_export);
            }
            if account.state == State::Done && before.state != State::Done {
                assert!(is_export);
                done += 1;
            }
            decided += u32::from(effect == Effect::Decided);
            if account.state == State::Done {
                account = Account::default();
            }
        }
        assert!(decided > 1_000 && done > 500, "{decided} {done}");
    }
}
