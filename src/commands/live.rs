//! What only a running daemon knows: its phase, its hosts, its pace, what bounds it.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde_json::{Value, json};

use crate::clock::{Clock, wall_text};
use crate::ops::progress::Meter;
use crate::pipeline::Reach;
use crate::stages::scheduler::Progress;
use crate::stages::scheduler::hosts::HostView;
use crate::store::followers::{Followed, Lag};
use crate::store::listing::Step;

/// Hosts that an answer names, largest backlog first; the rest is counted.
const HOSTS_TOLD_MAX: usize = 1_000;

/// Looks at a running pipeline; cheap to clone, clones share one meter.
#[derive(Clone)]
pub struct Live {
    clock: Clock,
    reach: Reach,
    meter: Arc<Mutex<Meter>>,
}

/// What the daemon knows beside the pipeline.
#[derive(Clone, Copy, Debug)]
pub struct Beside {
    /// The first lists are loaded.
    pub is_loaded: bool,
    /// How far lists are that are being read.
    pub step: Option<Step>,
    /// `limits.batch_size`.
    pub batch_size: usize,
}

impl Live {
    /// Over a running pipeline.
    #[must_use]
    pub fn new(clock: Clock, reach: Reach) -> Self {
        Self { clock, reach, meter: Arc::default() }
    }

    /// Notes how far the work is now.
    pub fn sample(&self) {
        let Progress { counts: _, run, .. } = *self.reach.progress().borrow();
        self.meter().sample(self.clock.now(), run.ended(), run.records);
    }

    /// Seconds until everything is decided; `None` without a base for it.
    fn eta_seconds(&self) -> Option<u64> {
        let Progress { counts, estimate, .. } = *self.reach.progress().borrow();
        match counts.pending() {
            0 => Some(0),
            _ => estimate.remaining.map(|left| left.as_secs()),
        }
    }

    fn meter(&self) -> MutexGuard<'_, Meter> {
        // Samples are whole whatever happened to another holder.
        self.meter.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether something is queued or active.
    #[must_use]
    pub fn is_busy(&self) -> bool {
        let counts = self.reach.progress().borrow().counts;
        counts.queued + counts.active > 0
    }

    /// One line for `systemctl status`.
    #[must_use]
    pub fn line(&self) -> String {
        let Progress { counts, .. } = *self.reach.progress().borrow();
        let decided = counts.decided();
        let eta = match self.eta_seconds() {
            Some(0) => "nothing is due".to_owned(),
            Some(seconds) => format!("done in about {seconds} s"),
            None => "no estimate yet".to_owned(),
        };
        format!("{decided} of {} accounts, {} parked, {eta}", counts.total(), counts.parked)
    }

    /// Says in the log how far the work is.
    pub fn log(&self) {
        let Progress { counts, run, .. } = *self.reach.progress().borrow();
        let (accounts, records) = self.meter().rates();
        let (accounts_per_second, records_per_second) =
            (format!("{accounts:.1}"), format!("{records:.0}"));
        let eta_seconds = self.eta_seconds();
        let waits_for = self.reach.condition().borrow().waits().next().cloned();
        tracing::info!(
            total = counts.total(),
            queued = counts.queued,
            active = counts.active,
            retrying = counts.retrying,
            done = counts.done,
            parked = counts.parked,
            records_this_run = run.records,
            accounts_per_second,
            records_per_second,
            eta_seconds,
            waits_for,
            "progress"
        );
    }

    /// The live part of `status --json`.
    pub async fn status(&self, beside: Beside) -> Value {
        self.sample();
        let observed = self.reach.observe().await;
        let Progress { counts, estimate, .. } = *self.reach.progress().borrow();
        let phase = match () {
            () if !beside.is_loaded => "loading",
            () if counts.queued + counts.active > 0 => "working",
            () if counts.retrying > 0 => "waiting",
            () => "idle",
        };
        let listing = beside.step.map(|step| match step {
            Step::Read(entries) => json!({"step": "read", "count": entries}),
            Step::Known(accounts) => json!({"step": "known", "count": accounts}),
            Step::Swapped(rows, of) => json!({"step": "listed", "count": rows, "of": of}),
        });
        let hosts = observed.as_ref().map(|observed| &observed.hosts[..]).unwrap_or_default();
        let told: Vec<Value> = hosts.iter().take(HOSTS_TOLD_MAX).map(|it| self.host(it)).collect();
        let bound_by = observed.as_ref().and_then(|it| self.reach.bound_by(it, beside.batch_size));
        let disk: Vec<String> = self.reach.condition().borrow().waits().cloned().collect();
        json!({
            "ok": true,
            "pid": std::process::id(),
            "phase": phase,
            "listing": listing,
            "accounts": counts,
            "this_run": self.reach.progress().borrow().run,
            "refresh": self.reach.progress().borrow().run.refresh,
            "hosts": told,
            "hosts_left_out": hosts.len().saturating_sub(HOSTS_TOLD_MAX),
            "bound_by": bound_by,
            "eta_seconds": self.eta_seconds(),
            "eta_bound_by": estimate.bound.as_str(),
            "slowest_host": observed.as_ref().and_then(|observed| observed.slowest_host.clone()),
            "disk_full": disk,
            "sinks": self.reach.sinks().iter().map(sink).collect::<Vec<Value>>(),
        })
    }

    fn host(&self, view: &HostView) -> Value {
        let resume_at = view.resumes_in.map(|wait| {
            let wait_ms = i64::try_from(wait.as_millis()).unwrap_or(i64::MAX);
            wall_text(self.clock.wall_ms().saturating_add(wait_ms))
        });
        json!({
            "host": view.name,
            "state": view.state.as_str(),
            "active": view.active,
            "queued": view.queued,
            "resume_at": resume_at,
        })
    }
}

/// A sink: the last segment that it has durably, what it holds of the journal, why it takes nothing, if so, and whether the work
/// waits for it.
fn sink((followed, lag): &(Followed, Lag)) -> Value {
    json!({
        "name": followed.name,
        "segment": followed.settled.passed(),
        "lag_segments": lag.segments,
        "lag_bytes": lag.bytes,
        "lag_max": followed.lag_max,
        "waits": followed.waits,
        "holds_up": followed.holds_up,
    })
}
