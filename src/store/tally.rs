//! Tally: figures of the ledger's open transaction, told to telemetry once it is committed. What is rolled back, as on a full
//! disk, was never counted: the same jobs run again and count anew.

use std::collections::BTreeMap;

use crate::domain::account::Revision;
use crate::domain::ledger::{Effect, Event, State};
use crate::domain::ledger_event::Told;
use crate::domain::verdict::LastError;
use crate::store::leaves::DELETED_LABEL;
use crate::store::ledger_refresh::RefreshCounts;
use crate::telemetry;

/// What an event is, as far as figures care.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The directory answered.
    Resolved,
    /// Work failed, with this error.
    Failed(Option<LastError>),
    /// A worker crashed.
    Crashed,
    /// A revision was exported.
    Exported,
    /// A refresh ended with the revision that was held.
    Unchanged,
    /// A refresh found no leaves to compare with.
    WithoutLeaves,
    /// A refresh is not gone on with.
    RefreshDropped,
    /// Anything else.
    Other,
}

impl From<&Event> for Kind {
    fn from(event: &Event) -> Self {
        match event {
            Event::Resolved(_) | Event::Told(Told { identity: Some(_), .. }) => Self::Resolved,
            Event::Failed { failure, .. } => Self::Failed(failure.last_error),
            Event::Lost { crashed: true } => Self::Crashed,
            Event::Exported => Self::Exported,
            Event::Unchanged => Self::Unchanged,
            Event::WithoutLeaves => Self::WithoutLeaves,
            Event::RefreshDropped => Self::RefreshDropped,
            _ => Self::Other,
        }
    }
}

/// What the open transaction has done.
#[derive(Debug, Default)]
pub struct Tally {
    exported: BTreeMap<String, u64>,
    skipped: BTreeMap<String, u64>,
    rejected: BTreeMap<String, u64>,
    repo_bytes: u64,
    retried: BTreeMap<&'static str, u64>,
    refresh: RefreshCounts,
    has_progressed: bool,
}

impl Tally {
    /// An event led to `effect`, which is not nothing, and to `state`.
    pub fn applied(&mut self, kind: Kind, effect: Effect, state: State) {
        let is_over = state.is_decided();
        self.has_progressed |= kind == Kind::Resolved || effect == Effect::Decided;
        let error = match kind {
            Kind::Failed(error) if !is_over => error.map(LastError::as_str),
            Kind::Crashed if !is_over => None,
            _ => return,
        };
        *self.retried.entry(error.unwrap_or(telemetry::OTHER_ERROR)).or_default() += 1;
    }

    /// A refresh ended.
    pub fn refreshed(&mut self, kind: Kind) {
        self.refresh.count(kind);
        self.has_progressed = true;
    }

    /// A revision was exported.
    pub fn exported(&mut self, revision: &Revision) {
        let add = |into: &mut BTreeMap<String, u64>, from: &BTreeMap<String, u64>| {
            for (word, count) in from {
                *into.entry(word.clone()).or_default() += count;
            }
        };
        match &revision.refresh {
            None => {
                add(&mut self.exported, &revision.exported);
                add(&mut self.skipped, &revision.skipped);
                add(&mut self.rejected, &revision.rejected);
            }
            // What was counted with an earlier revision is not counted again.
            Some(refresh) => {
                let written = |label: &String| (label.clone(), refresh.queued(label));
                add(&mut self.exported, &revision.exported.keys().map(written).collect());
                self.refresh.deleted += refresh.queued(DELETED_LABEL);
            }
        }
        self.repo_bytes += revision.repo_bytes;
        self.has_progressed = true;
    }

    /// The transaction is committed, at `wall_ms`: tells the figures and begins anew.
    pub fn committed(&mut self, wall_ms: i64) {
        let told = std::mem::take(self);
        told.exported.iter().for_each(|(label, count)| telemetry::exported(label, *count));
        told.skipped.iter().for_each(|(reason, count)| telemetry::skipped(reason, *count));
        told.rejected.iter().for_each(|(reason, count)| telemetry::rejected(reason, *count));
        told.retried.iter().for_each(|(error, count)| telemetry::retried(error, *count));
        told.refresh.tell();
        if told.repo_bytes > 0 {
            telemetry::exported_bytes(told.repo_bytes);
        }
        if told.has_progressed {
            telemetry::progressed(wall_ms);
        }
    }

    /// The transaction is undone.
    pub fn undone(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use metrics_exporter_prometheus::PrometheusBuilder;

    use super::*;
    use crate::clock::Clock;
    use crate::config::targets::Target;
    use crate::domain::account::{AccountId, Refreshed};
    use crate::domain::did::Did;
    use crate::domain::verdict::{Cause, Failure, Reason};

    use crate::store::error::StoreError;
    use crate::store::ledger_rows::{Rows, opened};
    use crate::store::listing::Staged;

    const DID: &str = "did:plc:44ybard66vv44zksje25o7dz";

    fn work(rows: &mut Rows) -> Result<(), StoreError> {
        let failed = |cause, last_error| Event::Failed {
            failure: Failure::new(cause, last_error, "evidence"),
            host_usable_ms: None,
        };
        let revision = Revision {
            did: DID.to_owned(),
            exported: BTreeMap::from([("post".to_owned(), 7)]),
            skipped: BTreeMap::from([("type".to_owned(), 2)]),
            rejected: BTreeMap::from([("schema".to_owned(), 1)]),
            repo_bytes: 1_000,
            ..Revision::default()
        };
        let (first, second) = (AccountId(1), AccountId(2));
        rows.apply(first, Event::LeasedToResolve)?;
        rows.apply(first, failed(Cause::Directory, Some(LastError::Http5xx)))?;
        rows.apply(first, Event::Due)?;
        rows.apply(first, Event::LeasedToResolve)?;
        rows.apply(first, Event::Lost { crashed: true })?;
        rows.apply(second, Event::LeasedToResolve)?;
        rows.apply(second, failed(Cause::Terminal(Reason::NoPds), None))?;
        rows.apply_segment(1, std::slice::from_ref(&revision))?;
        rows.apply_segment(1, &[revision])
    }

    #[test]
    fn what_is_rolled_back_and_done_again_counts_once() {
        let recorder = PrometheusBuilder::new().build_recorder();
        let folder = tempfile::tempdir().unwrap();
        let clock = Clock::fixed(1_727_395_200_000);
        metrics::with_local_recorder(&recorder, || {
            let mut rows = opened(folder.path(), clock.clone());
            let other = "did:plc:z72i7hdynmk6r22z27h6tvur";
            let targets =
                [DID, other].map(|did| Ok::<_, StoreError>(Target::Did(Did::parse(did).unwrap())));
            let staged = Staged::read(folder.path(), targets.into_iter(), &|_| {}).unwrap();
            staged.unwrap().know(&mut rows, &|_| {}).unwrap().swap(&mut rows, &|_| {}).unwrap();
            for _ in 0..2 {
                rows.begin().unwrap();
                work(&mut rows).unwrap();
                rows.roll_back().unwrap();
            }
            assert!(!recorder.handle().render().contains("skyfill_"));
            rows.transaction(work).unwrap();
        });
        let text = recorder.handle().render();
        for line in [
            "skyfill_records_total{type=\"post\"} 7",
            "skyfill_records_skipped_total{reason=\"type\"} 2",
            "skyfill_records_rejected_total{reason=\"schema\"} 1",
            "skyfill_repo_bytes_total 1000",
            "skyfill_retries_total{error=\"http_5xx\"} 1",
            "skyfill_retries_total{error=\"other\"} 1",
            "skyfill_last_progress_timestamp_seconds 1727395200",
        ] {
            assert!(text.lines().any(|it| it == line), "{line} in\n{text}");
        }
        assert_eq!(text.matches("skyfill_retries_total{").count(), 2);
    }

    #[test]
    fn progress_is_an_answer_of_the_directory_or_a_decision_and_a_retry_is_of_who_goes_on() {
        let told = |events: &[(Kind, Effect, State)]| {
            let recorder = PrometheusBuilder::new().build_recorder();
            metrics::with_local_recorder(&recorder, || {
                let mut tally = Tally::default();
                events
                    .iter()
                    .for_each(|(kind, effect, state)| tally.applied(*kind, *effect, *state));
                tally.committed(7_000);
            });
            let text = recorder.handle().render();
            let has = |line: &str| text.lines().any(|it| it == line);
            (
                has("skyfill_last_progress_timestamp_seconds 7"),
                has("skyfill_retries_total{error=\"other\"} 1"),
            )
        };
        let waits = State::RetryAt(9);
        let parked = State::Parked(Reason::CrashLoop);
        let resolved = (Kind::Resolved, Effect::Available, State::Ready);
        let decided = (Kind::Other, Effect::Decided, parked);
        let moved = (Kind::Other, Effect::Moved, State::Fetching);
        assert_eq!(told(&[resolved]), (true, false));
        assert_eq!(told(&[decided]), (true, false));
        assert_eq!(told(&[moved]), (false, false));
        assert_eq!(told(&[resolved, moved]), (true, false), "it has been made");
        assert_eq!(told(&[(Kind::Crashed, Effect::WakeAt(9), waits)]), (false, true));
        assert_eq!(told(&[(Kind::Crashed, Effect::Decided, parked)]), (true, false));
        assert_eq!(told(&[(Kind::Failed(None), Effect::WakeAt(9), waits)]), (false, true));
        assert_eq!(told(&[(Kind::Failed(None), Effect::Decided, parked)]), (true, false));
    }

    #[test]
    fn refreshes_are_told_by_what_came_of_them_and_only_what_there_is() {
        let recorder = PrometheusBuilder::new().build_recorder();
        metrics::with_local_recorder(&recorder, || {
            let mut tally = Tally::default();
            [Kind::Unchanged, Kind::Unchanged, Kind::Exported, Kind::RefreshDropped]
                .into_iter()
                .for_each(|kind| tally.refreshed(kind));
            tally.committed(1);
        });
        let text = recorder.handle().render();
        let figures = |text: &str| {
            let lines =
                text.lines().filter(|line| line.contains("refreshed") && !line.starts_with('#'));
            let mut lines: Vec<String> = lines.map(str::to_owned).collect();
            lines.sort();
            lines
        };
        let told =
            |outcome, count| format!("skyfill_refreshed_total{{outcome=\"{outcome}\"}} {count}");
        assert_eq!(figures(&text), [told("changed", 1), told("unchanged", 2)]);
        assert!(!text.contains("skyfill_records_deleted_total"));

        let queued = BTreeMap::from([("post".to_owned(), 2), (DELETED_LABEL.to_owned(), 3)]);
        let revision = Revision {
            exported: BTreeMap::from([("post".to_owned(), 7)]),
            refresh: Some(Refreshed { previous_rev: "3k".to_owned(), queued }),
            ..Revision::default()
        };
        metrics::with_local_recorder(&recorder, || {
            let mut tally = Tally::default();
            [Kind::WithoutLeaves, Kind::Failed(None)]
                .into_iter()
                .for_each(|kind| tally.refreshed(kind));
            tally.exported(&revision);
            tally.committed(1);
        });
        let text = recorder.handle().render();
        let all = [("changed", 1), ("failed", 1), ("unchanged", 2), ("without_leaves", 1)];
        assert_eq!(figures(&text), all.map(|(outcome, count)| told(outcome, count)));
        for line in ["skyfill_records_deleted_total 3", "skyfill_records_total{type=\"post\"} 2"] {
            assert!(text.lines().any(|it| it == line), "{line} in\n{text}");
        }
    }
}
