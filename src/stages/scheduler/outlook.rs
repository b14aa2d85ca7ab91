//! Outlook: what the plan tells those outside, turns that redirects ask for, and what is looked after once a second. Nothing
//! here decides what is worked on.
//!
//! Where several processes share the hosts, a redirect gets its turn wherever it leads, at the pace that this process keeps of
//! that host: whoever owns it knows nothing of it. Redirects between hosts of different owners are rare, and the account behind
//! one is handed to that owner as soon as its document says so.

use std::time::Duration;

use crate::net::pace::Turn;
use crate::stages::messages::{DIRECTORY_TURN, Paced};
use crate::store::ledger_lists::Counts;
use crate::store::ledger_rows::RunCounts;

use super::estimate::{Bound, Estimate, Look};
use super::hosts::HostView;
use super::plan::{Plan, READY_MAX};
use super::terms::Now;

/// A host whose turn is at no known time is asked for again after this long.
const TURN_PAUSE: Duration = Duration::from_secs(2);

/// What the plan has counted for the estimate, since it was made.
#[derive(Debug, Default)]
pub struct Seen {
    /// Resolutions that ended.
    pub resolved: u64,
    /// The same at the last look.
    pub resolved_before: u64,
    /// Those of them that gave a host.
    pub found: u64,
    /// Accounts sealed: the ledger hears of them later.
    pub sealed: u64,
    /// Accounts that this process had exported before, as the first batch told.
    pub done_before: Option<u64>,
    /// Since the last look: how often there was no room for what hosts would give, and how often it was asked.
    pub crowded: (u32, u32),
}

impl Plan {
    /// Accounts in flight.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.in_flight.len()
    }

    /// Whether nothing is left to do, as far as the last batch knows.
    #[must_use]
    pub fn is_finished(&self) -> bool {
        self.in_flight.is_empty()
            && self.events.is_empty()
            && !self.wants_counts
            && self.counts.pending() == 0
    }

    /// Listed accounts by state, and what this process decided, as of the last batch.
    #[must_use]
    pub fn counts(&self) -> (Counts, RunCounts) {
        (self.counts, self.run)
    }

    /// Every host in hand, largest backlog first.
    #[must_use]
    pub fn host_views(&self, now: Now) -> Vec<HostView> {
        self.hosts.views(now.at)
    }

    /// Whether the PLC directory refuses or is away.
    #[must_use]
    pub fn directory_waits(&self, now: Now) -> bool {
        self.directories.plc_waits(now.at)
    }

    /// A turn at the host of this name, which a redirect or a recheck leads to: at the pace of the host in hand, or of any host;
    /// or at the directory.
    ///
    /// # Errors
    /// How long it may not be asked.
    pub fn turn_elsewhere(&mut self, host: &str, now: Now) -> Result<Paced, Duration> {
        if host == DIRECTORY_TURN {
            if self.directories.take_plc(now.at) {
                return Ok(Paced::Directory);
            }
            let at = self.directories.plc_at().unwrap_or(now.at + TURN_PAUSE);
            return Err(at.saturating_duration_since(now.at));
        }
        let Some(id) = self.hosts.id_of(host) else {
            return self.directories.take_web(host, now.at).map(|()| Paced::Web(host.to_owned()));
        };
        match self.hosts.take(id, host, now.at) {
            Turn::Go { .. } => Ok(Paced::Host(id)),
            Turn::At(at) => Err(at.saturating_duration_since(now.at)),
            Turn::Busy => Err(TURN_PAUSE),
        }
    }

    /// When everything will be decided, as of the last [`Plan::tidy`].
    #[must_use]
    pub fn estimate(&self) -> Estimate {
        self.estimator.estimate()
    }

    /// The host that the end waits for.
    #[must_use]
    pub fn slowest_host(&self) -> Option<String> {
        match self.estimate().bound {
            Bound::Host(id) => self.hosts.name(id).map(str::to_owned),
            _ => None,
        }
    }

    /// Once a second: notes for the ledger how long hosts have been silent, forgets what needs no memory any more, and looks
    /// how far everything is.
    pub fn tidy(&mut self, now: Now) {
        let look = self.look(now);
        self.estimator.look(&look, now.at);
        (self.seen.crowded, self.seen.resolved_before) = ((0, 0), self.seen.resolved);
        self.silences.extend(self.hosts.unsaved_silences(now.at));
        self.hosts.drop_idle(now.at);
    }

    fn look(&mut self, now: Now) -> Look {
        let hosts = self.hosts.looks(now.at);
        let done_here = self.run.done.saturating_sub(self.seen.done_before.unwrap_or(0));
        let pending =
            self.counts.pending().saturating_sub(self.seen.sealed.saturating_sub(done_here));
        let at_hosts: u64 = hosts.iter().map(|host| host.left).sum();
        let unresolved = pending.saturating_sub(at_hosts);
        let mut directory = self.directories.plc_look(now.at);
        directory.ended = self.seen.resolved - self.seen.resolved_before;
        directory.is_busy = unresolved > 0
            && (self.may_have.plc || self.may_have.web)
            && self.hosts.counted() < READY_MAX;
        let due_ms = self.next_due_ms.filter(|_| self.counts.retrying > 0);
        let due_in = due_ms.map(|due_ms| {
            Duration::from_millis(due_ms.saturating_sub(now.wall_ms).max(0).cast_unsigned())
        });
        let (crowded, asked) = self.seen.crowded;
        Look {
            pending,
            unresolved,
            resolved: self.seen.resolved,
            found: self.seen.found,
            directory,
            hosts,
            decided: self.seen.sealed + self.run.parked + self.run.refresh.ended(),
            is_crowded: crowded * 2 > asked,
            due_in,
        }
    }
}
