//! Lone runs: how an account is sent out that may only run while nothing else does. `plan` decides when.

use std::time::Duration;

use crate::net::pace::Turn;
use crate::stages::messages::Paced;
use crate::store::ledger_work::Leased;

use super::plan::Plan;
use super::terms::{Dispatch, Now};

/// An account that runs alone and whose host is not to be asked yet comes again after this long.
const ALONE_PAUSE: Duration = Duration::from_secs(1);

impl Plan {
    /// To whom it wants; if that is not to be asked now, it comes again a moment later.
    pub(super) fn alone(
        &mut self,
        host: Option<i64>,
        leased: Leased,
        now: Now,
    ) -> Option<Dispatch> {
        let Some(host) = host else {
            if leased.did.starts_with("did:web:") {
                return self.resolve_web(leased, true, now);
            }
            if self.directories.take_plc(now.at) {
                return self.resolve(leased, Paced::Directory, true);
            }
            self.not_before(&leased, ALONE_PAUSE, now);
            return None;
        };
        if !self.is_ours(&leased, now) {
            self.not_before(&leased, ALONE_PAUSE, now);
            return None;
        }
        let name = leased.identity.as_ref().map_or("", |identity| identity.host.as_str());
        match self.hosts.take(host, name, now.at) {
            Turn::Go { probe } => self.fetch(leased, host, probe, true, now),
            Turn::At(_) | Turn::Busy => {
                self.not_before(&leased, ALONE_PAUSE, now);
                None
            }
        }
    }

    /// Whether the host that an account was leased for may be asked by us now.
    pub(super) fn is_ours(&self, leased: &Leased, now: Now) -> bool {
        let host = leased.identity.as_ref().map_or("", |identity| identity.host.as_str());
        self.hosts.is_ours(host, now.at)
    }
}
