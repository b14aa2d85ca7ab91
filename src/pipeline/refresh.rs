//! Refresh: the daemon's schedule. An account is due `refresh.every` after its export or its last refresh, by the ledger, so that
//! restarts neither hasten nor delay it.
//!
//! ```text
//!  now and then: a reader finds who is due ──some at a time──> the ledger's writer ──> the scheduler looks at its backlogs anew
//! ```
//! Nothing here waits for what came of it: an account on its way is not done, and so not due, until it is done again.

use std::time::Duration;

use crate::clock::Clock;
use crate::domain::ledger::millis;
use crate::pipeline::Reach;
use crate::store::error::StoreError;
use crate::store::ledger::LedgerGone;
use crate::store::ledger_lists::Reader;
use crate::store::ledger_refresh::REFRESHED_AT_ONCE;

/// Looks within one period: an account is refreshed at most a tenth of it late.
const LOOKS: u32 = 10;

/// The least and the most time between two looks; a look over ten million accounts takes seconds of one core.
const PAUSE: [Duration; 2] = [Duration::from_millis(500), Duration::from_secs(600)];

/// Why nobody was put on their way.
#[derive(Debug, thiserror::Error)]
enum RefreshError {
    /// The ledger could not be read.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Its writer has ended.
    #[error(transparent)]
    Gone(#[from] LedgerGone),
    /// The look crashed.
    #[error("a look at the ledger crashed: {0}")]
    Crashed(#[from] tokio::task::JoinError),
}

/// Puts accounts on their way whenever they are due; ends with the pipeline.
pub async fn on_schedule(reach: Reach, clock: Clock) {
    let mut every = reach.refresh_every.subscribe();
    let mut has_warned = false;
    loop {
        let Some(period) = *every.borrow_and_update() else {
            if every.changed().await.is_err() {
                return;
            }
            continue;
        };
        tokio::select! {
            changed = every.changed() => if changed.is_err() { return },
            () = tokio::time::sleep((period / LOOKS).clamp(PAUSE[0], PAUSE[1])) => {
                if !reach.has_begun() {
                    continue;
                }
                if !std::mem::replace(&mut has_warned, true) {
                    warn_of_those_without_leaves(&reach).await;
                }
                match refresh(&reach, clock.wall_ms().saturating_sub(millis(period))).await {
                    Ok(0) => {}
                    Ok(accounts) => tracing::info!(accounts, "accounts are due to be refreshed"),
                    Err(RefreshError::Gone(_)) => return,
                    Err(error) => tracing::warn!(%error, "no account could be refreshed"),
                }
            }
        }
    }
}

/// Puts everybody on their way whose last refresh or export ended at `until_ms` or before; gives how many.
async fn refresh(reach: &Reach, until_ms: i64) -> Result<u64, RefreshError> {
    let (mut after, mut count) = (0, 0);
    loop {
        let path = reach.state_db.clone();
        let look = move || Reader::open(&path)?.due_for_refresh(after, until_ms);
        let ids = tokio::task::spawn_blocking(look).await??;
        let some = ids.len();
        after = ids.last().copied().unwrap_or(after);
        let begun = reach.ledger.run(move |rows| rows.refresh(&ids)).await?;
        if begun > 0 {
            count += begun;
            reach.look_anew();
        }
        if some < REFRESHED_AT_ONCE {
            return Ok(count);
        }
    }
}

async fn warn_of_those_without_leaves(reach: &Reach) {
    let path = reach.state_db.clone();
    let look = move || Reader::open(&path)?.done_without_leaves();
    match tokio::task::spawn_blocking(look).await {
        Ok(Ok(0)) => {}
        Ok(Ok(accounts)) => tracing::warn!(
            accounts,
            "these were exported without leaves and are not refreshed: nothing tells what would be new in them"
        ),
        Ok(Err(error)) => tracing::debug!(%error, "accounts without leaves were not counted"),
        Err(error) => tracing::debug!(%error, "accounts without leaves were not counted"),
    }
}
