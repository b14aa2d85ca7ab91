//! Host views: what hosts look like from outside the scheduler, and to the estimate. Nothing here changes anything.

use std::time::Duration;

use crate::clock::Instant;
use crate::net::pace::HostState;

use super::estimate::{Asked, HostLook};
use super::hosts::{Entry, Hosts};

/// What a host looks like from outside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostView {
    /// Its name.
    pub name: String,
    /// Metric word of its state.
    pub state: HostState,
    /// Requests out.
    pub active: u64,
    /// Ready accounts.
    pub queued: u64,
    /// Until it goes on, if it waits.
    pub resumes_in: Option<Duration>,
}

impl Hosts {
    /// How many hosts work, wait, and are open.
    #[must_use]
    pub fn by_state(&self, now: Instant) -> [u64; 3] {
        let mut counts = [0; 3];
        for entry in self.entries.values() {
            match entry.pace.state(now) {
                HostState::Working => counts[0] += 1,
                HostState::Waiting => counts[1] += 1,
                HostState::Open => counts[2] += 1,
            }
        }
        counts
    }

    /// Every host, largest backlog first.
    #[must_use]
    pub fn views(&self, now: Instant) -> Vec<HostView> {
        let view = |entry: &Entry| HostView {
            name: entry.name.clone(),
            state: entry.pace.state(now),
            active: entry.pace.active() as u64,
            queued: entry.ready,
            resumes_in: entry.pace.resume_at(now).map(|at| at.saturating_duration_since(now)),
        };
        let mut views: Vec<HostView> = self.entries.values().map(view).collect();
        views.sort_by(|a, b| b.queued.cmp(&a.queued).then_with(|| a.name.cmp(&b.name)));
        views
    }

    /// Every host with something left, or where something has ended since the last time, as the estimate wants it.
    pub fn looks(&mut self, now: Instant) -> Vec<HostLook> {
        let (patience, rate_max) = (self.limits.patience, self.limits.requests_per_second);
        let look = |(id, entry): (&i64, &mut Entry)| {
            let ended = std::mem::take(&mut entry.ended);
            let (pace, silence) = (&entry.pace, entry.silence(now));
            let resume_at = pace.resume_at(now);
            let left_of_patience = patience.saturating_sub(silence);
            let is_away = pace.state(now) == HostState::Open;
            // One that has never answered is not expected to begin.
            let silence = if entry.usable_ms.is_some() { silence } else { Duration::MAX };
            let asked = Asked {
                ended,
                is_busy: entry.ready > 0 || pace.active() > 0,
                active: pace.active() as u64,
                rate: pace.rate(),
                rate_max,
                wait: resume_at.map_or(Duration::ZERO, |at| at.saturating_duration_since(now)),
                away: is_away.then_some((silence, left_of_patience)),
            };
            HostLook { id: *id, left: entry.left, asked }
        };
        let is_seen = |(_, entry): &(&i64, &mut Entry)| entry.left > 0 || entry.ended > 0;
        self.entries.iter_mut().filter(is_seen).map(look).collect()
    }

    /// Whether the host of this name may be asked by us now.
    #[must_use]
    pub fn is_ours(&self, name: &str, now: Instant) -> bool {
        self.territory.holds(name, now)
    }

    /// Ledger time of a host's last usable answer.
    #[must_use]
    pub fn usable_ms(&self, id: i64) -> Option<i64> {
        self.entries.get(&id).and_then(|entry| entry.usable_ms)
    }

    /// Accounts that are still to be fetched from a host, those that are being fetched among them.
    #[must_use]
    pub fn left(&self, id: i64) -> u64 {
        self.entries.get(&id).map_or(0, |entry| entry.left)
    }

    /// Row of a host in hand.
    #[must_use]
    pub fn id_of(&self, name: &str) -> Option<i64> {
        self.entries.iter().find(|(_, entry)| entry.name == name).map(|(id, _)| *id)
    }

    /// Name of a host in hand.
    #[must_use]
    pub fn name(&self, id: i64) -> Option<&str> {
        self.entries.get(&id).map(|entry| entry.name.as_str())
    }
}
