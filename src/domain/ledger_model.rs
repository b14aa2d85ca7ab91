//! The ledger's rules against a small model (TORTURE.md, F7). The model is written from DESIGN section 4, as a list of what may
//! follow; it knows nothing of how the rules are written. Only in tests.

#[cfg(test)]
mod tests {
    use crate::domain::identity::Identity;
    use crate::domain::ledger::{Account, Event, LedgerPolicy, Moment, State};
    use crate::domain::verdict::{Cause, Failure, LastError, Reason};
    use crate::seed::Chance;

    const MINUTE_MS: i64 = 60_000;

    /// One account, as the design tells of it.
    #[derive(Clone, Debug, Default)]
    struct Model {
        word: Word,
        charged: u32,
        crashes: u32,
        deaths: u32,
        deaths_alone: u32,
        wants_to_be_alone: bool,
        is_alone: bool,
        has_bytes: bool,
        identity: Option<(Identity, i64)>,
        /// A reason that stands once the directory says the same again.
        asks_again_for: Option<Reason>,
        /// It has, and the next such answer is final.
        has_asked_again: bool,
        /// Refusals, or silence of the directory: which, for how long, since when.
        streak: Option<(Cause, i64, i64)>,
        failed_at: i64,
        /// It was exported, and whatever comes of this it stays done.
        is_refreshed: bool,
        /// Why the last refresh came to nothing.
        came_to_nothing: Option<Reason>,
    }

    #[derive(Clone, Copy, Debug, Default, PartialEq)]
    enum Word {
        #[default]
        Queued,
        Resolving,
        Ready,
        Fetching,
        /// Not before this time.
        Later(i64),
        Done,
        Parked(Reason),
        Forgotten,
    }

    impl Model {
        fn is_in_work(&self) -> bool {
            matches!(self.word, Word::Resolving | Word::Fetching)
        }

        fn is_decided(&self) -> bool {
            matches!(self.word, Word::Done | Word::Parked(_) | Word::Forgotten)
        }

        fn happens(&mut self, event: &Event, policy: &LedgerPolicy, now: i64, share: f64) {
            if self.word == Word::Forgotten {
                return;
            }
            match event {
                Event::Forget => *self = Self { word: Word::Forgotten, ..Self::default() },
                Event::LeasedToResolve if self.word == Word::Queued => self.word = Word::Resolving,
                Event::LeasedToFetch { alone } if self.word == Word::Ready => {
                    if self.knows_where(policy, now) {
                        (self.word, self.is_alone, self.has_bytes) =
                            (Word::Fetching, *alone, false);
                    } else {
                        self.word = Word::Queued;
                    }
                }
                Event::Resolved(identity) if self.word == Word::Resolving => {
                    self.answered(identity, now);
                }
                Event::BodyBegun if self.word == Word::Fetching => self.has_bytes = true,
                Event::Exported => self.decided(Word::Done),
                Event::Failed { failure, host_usable_ms } if self.is_in_work() => {
                    self.fails(failure.cause, *host_usable_ms, policy, now, share);
                }
                Event::Lost { crashed: true } if self.is_in_work() => {
                    self.crashes += 1;
                    if self.crashes == 3 {
                        self.decided(Word::Parked(Reason::CrashLoop));
                    } else {
                        self.charged_for(Reason::AttemptsExhausted, policy, now, share);
                    }
                }
                Event::Lost { .. } | Event::GivenBack if self.is_in_work() => self.goes_back(),
                Event::NotBefore(at) if self.is_in_work() => self.later(*at),
                Event::TooLargeForNow if self.word == Word::Fetching => {
                    self.wants_to_be_alone = true;
                    self.goes_back();
                }
                Event::ProcessDied if self.is_in_work() => self.process_dies(now),
                Event::Due if matches!(self.word, Word::Later(_)) => self.again(policy, now),
                Event::PatienceEnded { reason, .. } if !self.is_decided() => {
                    self.decided(Word::Parked(*reason));
                }
                Event::Again if self.word == Word::Done => {
                    self.charged = 0;
                    self.again(policy, now);
                }
                Event::Refresh if self.word == Word::Done => {
                    (self.charged, self.is_refreshed, self.came_to_nothing) = (0, true, None);
                    self.again(policy, now);
                }
                Event::Unchanged | Event::WithoutLeaves | Event::RefreshDropped
                    if self.is_refreshed =>
                {
                    self.decided(Word::Done);
                }
                Event::Retry => {
                    if let Word::Parked(reason) = self.word
                        && reason != Reason::DidInvalid
                    {
                        let identity = self.identity.take().map(|(identity, _)| (identity, 0));
                        *self = Self { identity, ..Self::default() };
                    }
                }
                _ => {}
            }
        }

        /// An identity may be used for as long as the operator says, and not while it is in doubt.
        fn knows_where(&self, policy: &LedgerPolicy, now: i64) -> bool {
            let ttl = (policy.cache_ttl.as_millis() as i64).max(1_000);
            let is_young = self.identity.as_ref().is_some_and(|(_, at)| now - at < ttl);
            is_young && self.asks_again_for.is_none()
        }

        fn answered(&mut self, identity: &Identity, now: i64) {
            let is_same = self
                .identity
                .as_ref()
                .is_some_and(|(old, _)| (&old.host, &old.key) == (&identity.host, &identity.key));
            self.identity = Some((identity.clone(), now));
            if matches!(self.streak, Some((Cause::Directory, ..))) {
                self.streak = None;
            }
            match self.asks_again_for.take() {
                Some(reason) if is_same && reason != Reason::RepoInvalid => {
                    return self.decided(Word::Parked(reason));
                }
                Some(_) => self.has_asked_again = true,
                None => {}
            }
            self.word = Word::Ready;
        }

        fn fails(
            &mut self,
            cause: Cause,
            usable: Option<i64>,
            policy: &LedgerPolicy,
            now: i64,
            share: f64,
        ) {
            let failed_before = std::mem::replace(&mut self.failed_at, now);
            let borne = self.bears(cause, now) >= policy.host_patience.as_millis() as i64;
            match cause {
                Cause::Terminal(reason) => self.decided(Word::Parked(reason)),
                Cause::Repository(reason) => self.is_doubted(reason),
                Cause::Invalid => self.is_doubted(Reason::RepoInvalid),
                Cause::Stale => self.charged_for(Reason::RepoStale, policy, now, share),
                Cause::Transient => {
                    self.charged_for(Reason::AttemptsExhausted, policy, now, share);
                }
                Cause::RateLimited if borne => {
                    self.decided(Word::Parked(Reason::AttemptsExhausted));
                }
                Cause::RateLimited => self.goes_back(),
                Cause::Directory if borne => {
                    self.decided(Word::Parked(Reason::DirectoryUnavailable));
                }
                // The host gave a usable answer since this account's previous failure: the fault is its own.
                Cause::HostFault
                    if failed_before > 0 && usable.is_some_and(|at| at > failed_before) =>
                {
                    self.charged_for(Reason::AttemptsExhausted, policy, now, share);
                }
                Cause::HostFault | Cause::Directory => self.waits(policy, now, share),
            }
        }

        /// For how long it has had nothing but this.
        fn bears(&mut self, cause: Cause, now: i64) -> i64 {
            if !matches!(cause, Cause::RateLimited | Cause::Directory) {
                self.streak = None;
                return 0;
            }
            let so_far = match self.streak {
                Some((before, length, at)) if before == cause => {
                    length + (now - at).clamp(0, 16 * MINUTE_MS)
                }
                _ => 0,
            };
            self.streak = Some((cause, so_far, now));
            so_far
        }

        fn is_doubted(&mut self, reason: Reason) {
            if self.has_asked_again || self.word == Word::Resolving {
                return self.decided(Word::Parked(reason));
            }
            self.asks_again_for = Some(reason);
            (self.word, self.has_bytes) = (Word::Queued, false);
        }

        fn charged_for(&mut self, reason: Reason, policy: &LedgerPolicy, now: i64, share: f64) {
            self.charged += 1;
            if self.charged == policy.attempts {
                return self.decided(Word::Parked(reason));
            }
            self.waits(policy, now, share);
        }

        fn waits(&mut self, policy: &LedgerPolicy, now: i64, share: f64) {
            let mut bound = policy.base;
            for _ in 1..self.charged {
                bound = (bound * 2).min(policy.max);
            }
            self.later(now + bound.mul_f64(share).as_millis() as i64);
        }

        fn later(&mut self, at: i64) {
            (self.word, self.has_bytes) = (Word::Later(at), false);
        }

        fn goes_back(&mut self) {
            self.word = if self.word == Word::Resolving { Word::Queued } else { Word::Ready };
            self.has_bytes = false;
        }

        fn again(&mut self, policy: &LedgerPolicy, now: i64) {
            self.word = if self.knows_where(policy, now) { Word::Ready } else { Word::Queued };
        }

        fn process_dies(&mut self, now: i64) {
            if self.word == Word::Resolving || !self.has_bytes {
                return self.goes_back();
            }
            self.deaths += 1;
            if self.deaths <= 3 || !self.is_alone {
                return self.goes_back();
            }
            self.deaths_alone += 1;
            if self.deaths_alone == 3 {
                return self.decided(Word::Parked(Reason::CrashLoop));
            }
            self.later(now + MINUTE_MS);
        }

        fn decided(&mut self, word: Word) {
            if word == Word::Done && self.word == Word::Done {
                return;
            }
            let mut word = word;
            if std::mem::take(&mut self.is_refreshed)
                && let Word::Parked(reason) = word
            {
                (word, self.came_to_nothing) = (Word::Done, Some(reason));
            }
            (self.crashes, self.deaths, self.deaths_alone) = (0, 0, 0);
            (self.wants_to_be_alone, self.is_alone, self.has_bytes) = (false, false, false);
            (self.asks_again_for, self.has_asked_again, self.streak) = (None, false, None);
            self.word = word;
        }

        fn assert_same(&self, account: &Account, what: &str) {
            let word = match account.state {
                State::Queued => Word::Queued,
                State::Resolving => Word::Resolving,
                State::Ready => Word::Ready,
                State::Fetching => Word::Fetching,
                State::RetryAt(at) => Word::Later(at),
                State::Done => Word::Done,
                State::Parked(reason) => Word::Parked(reason),
                State::Forgotten => Word::Forgotten,
            };
            assert_eq!(word, self.word, "{what}\n{self:#?}");
            assert_eq!(account.attempts, self.charged, "{what}");
            assert_eq!(account.refreshing, self.is_refreshed, "{what}");
            assert_eq!(account.refresh_failed, self.came_to_nothing, "{what}");
            let counts = (account.crashes, account.process_deaths, account.lone_deaths);
            assert_eq!(counts, (self.crashes, self.deaths, self.deaths_alone), "{what}");
            assert_eq!(account.runs_alone(), self.wants_to_be_alone || self.deaths >= 3, "{what}");
        }
    }

    fn one_in(times: u64, chance: &Chance) -> bool {
        chance.bits().is_multiple_of(times)
    }

    fn random_failure(chance: &Chance, now: i64, mood: u64) -> Event {
        let causes = [
            Cause::Terminal(Reason::NoPds),
            Cause::Repository(Reason::RepoTakenDown),
            Cause::Repository(Reason::RepoNotFound),
            Cause::Invalid,
            Cause::Stale,
            Cause::Transient,
            Cause::RateLimited,
            Cause::RateLimited,
            Cause::HostFault,
            Cause::HostFault,
            Cause::Directory,
            Cause::Directory,
        ];
        // Mostly the same kind for one account, so that attempts and patience have a chance to end.
        let kind = if !one_in(8, chance) { mood } else { chance.bits() };
        let cause = causes[(kind % causes.len() as u64) as usize];
        let ago = (chance.bits() % 2_000_000) as i64;
        let host_usable_ms = (!one_in(3, chance)).then(|| now - ago);
        let failure = Failure::new(cause, Some(LastError::Timeout), "evidence");
        Event::Failed { failure, host_usable_ms }
    }

    fn random_event(chance: &Chance, model: &Model, now: i64, mood: u64) -> Event {
        let identity = |number: u64| Identity {
            endpoint: "https://example.com".to_owned(),
            host: ["a", "b"][(number % 2) as usize].to_owned(),
            key: ["k", "l"][(number / 8 % 2) as usize].to_owned(),
            earlier_keys: Vec::new(),
            handle: None,
        };
        match chance.bits() % 40 {
            0..=7 => Event::LeasedToResolve,
            8..=14 => Event::LeasedToFetch { alone: !one_in(4, chance) && model.deaths >= 3 },
            15..=19 => {
                Event::Resolved(identity(if !one_in(4, chance) { 0 } else { chance.bits() }))
            }
            20..=23 => Event::BodyBegun,
            24 if one_in(8, chance) => Event::Exported,
            25 => Event::Lost { crashed: one_in(2, chance) },
            26 => Event::GivenBack,
            27 | 28 => Event::ProcessDied,
            29 if one_in(4, chance) => Event::Retry,
            30 => Event::TooLargeForNow,
            31 if one_in(4, chance) => Event::NotBefore(now + (chance.bits() % 60_000) as i64),
            32 if one_in(16, chance) => Event::PatienceEnded {
                reason: Reason::HostUnavailable,
                last_error: None,
                detail: String::new(),
            },
            33 if one_in(4, chance) => Event::Again,
            33 | 24 => Event::Refresh,
            38 if one_in(8, chance) => Event::Unchanged,
            39 if one_in(16, chance) => Event::WithoutLeaves,
            39 if one_in(16, chance) => Event::RefreshDropped,
            34..=36 => Event::Due,
            37 if one_in(64, chance) => Event::Forget,
            _ => random_failure(chance, now, mood),
        }
    }

    /// 1,000,000 steps with `SKYFILL_LONG=1`, otherwise 200,000; `SKYFILL_SEED` chooses them.
    #[test]
    fn a_million_random_steps_agree_with_the_model() {
        let number =
            |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
        let steps = if number("SKYFILL_LONG").is_some() { 1_000_000 } else { 200_000 };
        let seed = number("SKYFILL_SEED").unwrap_or(7);
        let (chance, policy) = (
            Chance::seeded(seed),
            LedgerPolicy {
                attempts: 4,
                host_patience: std::time::Duration::from_secs(3_600),
                ..LedgerPolicy::default()
            },
        );
        let (mut account, mut model) = (Account::default(), Model::default());
        let (mut now, mut mood) = (1, 0);
        let mut ends = std::collections::BTreeMap::new();
        for step in 0..steps {
            // Mostly minutes; now and then the clock jumps, both ways.
            now += match chance.bits() % 200 {
                0 => 90_000_000,
                1 => -3_600_000,
                _ => (chance.bits() % 300_000) as i64,
            };
            now = now.max(1);
            let event = random_event(&chance, &model, now, mood);
            let fraction = (chance.bits() % 1_000) as f64 / 1_000.0;
            let what = format!("SKYFILL_SEED={seed}, step {step}: {event:?} at {now}: {account:?}");
            let was_decided = model.is_decided();
            model.happens(&event, &policy, now, fraction);
            account.apply(event, &policy, Moment { now_ms: now, fraction });
            model.assert_same(&account, &what);
            if model.is_decided() && !was_decided {
                let refreshed = model.came_to_nothing.filter(|_| model.word == Word::Done);
                let end = format!("{:?} {refreshed:?}", model.word);
                *ends.entry(end).or_insert(0) += 1;
            }
            if model.is_decided() && !model.is_refreshed && one_in(8, &chance) {
                (account, model, mood) = (Account::default(), Model::default(), chance.bits());
            }
        }
        // Every way to end was taken.
        let ways = [
            "Done None",
            "Done Some(RepoTakenDown)",
            "Done Some(HostUnavailable)",
            "Done Some(AttemptsExhausted)",
            "NoPds",
            "RepoTakenDown",
            "RepoNotFound",
            "RepoInvalid",
            "RepoStale",
            "CrashLoop",
            "AttemptsExhausted",
            "DirectoryUnavailable",
            "HostUnavailable",
            "Forgotten",
        ];
        let is_taken = |way: &&str| ends.keys().any(|end| end.contains(*way));
        assert!(ways.iter().all(is_taken), "{ends:?}");
    }
}
