//! The ledger's rules for a refresh; `domain::ledger` has all others.

use crate::domain::ledger::{Account, Effect, LedgerPolicy, Moment, State};

impl Account {
    /// A done account is compared with what its host has now; what an earlier refresh came to is forgotten.
    pub(super) fn begin_refresh(&mut self, policy: &LedgerPolicy, at: Moment) -> Effect {
        self.attempts = 0;
        (self.refreshing, self.refresh_failed) = (true, None);
        self.last_error = None;
        self.detail.clear();
        self.available(policy, at)
    }

    /// It ends with what was held before.
    pub(super) fn end_refresh(&mut self, is_without_leaves: bool) -> Effect {
        self.last_error = None;
        self.detail.clear();
        if is_without_leaves {
            "its host has a newer revision, and the leaves of the one that is held are not there to compare it with"
                .clone_into(&mut self.detail);
        }
        self.decide(State::Done)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::identity::Identity;
    use crate::domain::ledger::Event;
    use crate::domain::verdict::{Cause, Failure, LastError, Reason};

    fn apply(account: &mut Account, events: &[Event]) -> Effect {
        let policy = LedgerPolicy { attempts: 2, ..LedgerPolicy::default() };
        let at = Moment { now_ms: 1_000, fraction: 0.5 };
        let mut effect = Effect::Nothing;
        for event in events {
            effect = account.apply(event.clone(), &policy, at);
        }
        effect
    }

    fn identity(host: &str) -> Event {
        let (endpoint, host, key) = (String::new(), host.to_owned(), String::new());
        Event::Resolved(Identity { endpoint, host, key, earlier_keys: Vec::new(), handle: None })
    }

    fn failed(cause: Cause) -> Event {
        let failure = Failure::new(cause, Some(LastError::Http4xx), "evidence");
        Event::Failed { failure, host_usable_ms: None }
    }

    const FETCH: Event = Event::LeasedToFetch { alone: false };

    /// Exported once and on its way to be refreshed.
    fn refreshing() -> Account {
        let mut account = Account::default();
        let events = [Event::LeasedToResolve, identity("a"), FETCH, Event::Exported];
        assert_eq!(apply(&mut account, &events), Effect::Decided);
        assert_eq!(apply(&mut account, &[Event::Unchanged]), Effect::Nothing, "nobody asked");
        assert_eq!(apply(&mut account, &[Event::Refresh]), Effect::Available);
        assert_eq!((account.state, account.refreshing), (State::Ready, true));
        account
    }

    #[test]
    fn whatever_a_refresh_comes_to_the_account_is_done_and_its_evidence_is_kept() {
        let stale = [failed(Cause::Stale), Event::Due, FETCH, failed(Cause::Stale)];
        let gone = failed(Cause::Repository(Reason::RepoTakenDown));
        let gone = [gone, Event::LeasedToResolve, identity("a")];
        let silent = Event::PatienceEnded {
            reason: Reason::HostUnavailable,
            last_error: None,
            detail: String::new(),
        };
        let crashes =
            [Event::Lost { crashed: true }, Event::Due, FETCH, Event::Lost { crashed: true }];
        let cases: [(&[Event], Option<Reason>); 7] = [
            (&[Event::Unchanged], None),
            (&[Event::Exported], None),
            (&[Event::WithoutLeaves], None),
            (&stale, Some(Reason::RepoStale)),
            (&gone, Some(Reason::RepoTakenDown)),
            (&[silent], Some(Reason::HostUnavailable)),
            (&crashes, Some(Reason::AttemptsExhausted)),
        ];
        for (events, failed) in cases {
            let mut account = refreshing();
            apply(&mut account, &[FETCH]);
            assert_eq!(apply(&mut account, events), Effect::Decided, "{events:?}");
            assert_eq!((account.state, account.refreshing), (State::Done, false), "{events:?}");
            assert_eq!(account.refresh_failed, failed);
            let has_evidence = !account.detail.is_empty();
            assert_eq!(
                has_evidence,
                failed.is_some() && failed != Some(Reason::HostUnavailable)
                    || events == [Event::WithoutLeaves],
                "{account:?}"
            );
            // The next one begins anew.
            apply(&mut account, &[Event::Refresh]);
            assert_eq!(
                (account.attempts, account.refresh_failed, account.last_error),
                (0, None, None)
            );
            apply(&mut account, &[FETCH, Event::Unchanged]);
            assert_eq!((account.state, account.detail.as_str()), (State::Done, ""));
        }
    }

    #[test]
    fn a_refresh_that_is_dropped_leaves_the_account_as_it_was_and_nobody_else_is_touched() {
        for events in
            [&[][..], &[FETCH], &[FETCH, Event::GivenBack], &[FETCH, failed(Cause::Transient)]]
        {
            let mut account = refreshing();
            apply(&mut account, events);
            assert_eq!(apply(&mut account, &[Event::RefreshDropped]), Effect::Decided);
            assert_eq!((account.state, account.refreshing), (State::Done, false));
            assert_eq!(apply(&mut account, &[Event::RefreshDropped]), Effect::Nothing);
        }
        let mut queued = Account::default();
        let events = [Event::Refresh, Event::RefreshDropped, Event::WithoutLeaves];
        assert_eq!(apply(&mut queued, &events), Effect::Nothing);
        assert_eq!(queued, Account::default());
    }
}
