//! The ledger's rule for what an export of the directory says of an account; `domain::ledger` has all others, and the tests.

use crate::domain::ledger::{Account, Doubt, Effect, LedgerPolicy, Moment, State, millis};
use crate::domain::ledger_event::Told;
use crate::domain::verdict::Reason;

impl Account {
    /// What an export says is as old as the export: nothing where the cache would not keep it, where something newer is known,
    /// and where a verdict waits for the directory's own word. What waits for its retry goes on waiting, for the host that is
    /// told of.
    pub(super) fn told(&mut self, told: Told, policy: &LedgerPolicy, at: Moment) -> Effect {
        let Told { identity, as_of_ms } = told;
        let is_newer = self.identity.is_none() || as_of_ms > self.resolved_at_ms;
        let is_young = at.now_ms.saturating_sub(as_of_ms) < millis(policy.cache_ttl).max(1_000);
        if !is_newer || !is_young || matches!(self.doubt, Doubt::Resolve(_)) {
            return Effect::Nothing;
        }
        let Some(identity) = identity else {
            self.detail = "tombstoned in an export of the directory".to_owned();
            return self.park(Reason::DidTombstoned);
        };
        (self.identity, self.resolved_at_ms) = (Some(identity), as_of_ms.min(at.now_ms));
        if let State::RetryAt(at_ms) = self.state {
            return Effect::WakeAt(at_ms);
        }
        self.state = State::Ready;
        Effect::Available
    }
}
