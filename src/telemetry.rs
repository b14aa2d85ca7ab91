//! Metric names, their closed label sets, and the door through which figures leave (DESIGN section 7, "Metrics").
//!
//! ```text
//!  counters, histograms   said where it happens; records, bytes and retries only when the ledger has committed them
//!  gauges                 read from what exists by `pipeline::sampler`, when somebody asks for them
//! ```
//! No DID and no host name is ever a label: the only label values that are not written in this program are the operator's own
//! words, the configured record types and the names of sinks. Without an installed recorder every call costs one atomic load; only the binary installs one.

mod request;

use std::time::Duration;

use metrics::{counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram};

use crate::clock::{Clock, Instant};

pub use request::{Outcome, Service};

/// What a metric is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Only ever grows, from 0 at the start of the process.
    Counter,
    /// What is true when it is read.
    Gauge,
    /// Counts in buckets.
    Histogram,
}

/// One metric.
#[derive(Clone, Copy, Debug)]
pub struct Metric {
    /// Its name.
    pub name: &'static str,
    /// What it is.
    pub kind: Kind,
    /// Names of its labels.
    pub labels: &'static [&'static str],
    /// What it says.
    pub help: &'static str,
}

const fn metric(
    name: &'static str,
    kind: Kind,
    labels: &'static [&'static str],
    help: &'static str,
) -> Metric {
    Metric { name, kind, labels, help }
}

const ACCOUNTS: &str = "skyfill_accounts";
const PARKED: &str = "skyfill_parked";
const RECORDS: &str = "skyfill_records_total";
const SKIPPED: &str = "skyfill_records_skipped_total";
const REJECTED: &str = "skyfill_records_rejected_total";
const REPO_BYTES: &str = "skyfill_repo_bytes_total";
const REQUESTS: &str = "skyfill_requests_total";
const REQUEST_SECONDS: &str = "skyfill_request_seconds";
const REFRESHED: &str = "skyfill_refreshed_total";
const DELETED: &str = "skyfill_records_deleted_total";
const RETRIES: &str = "skyfill_retries_total";
const HOSTS: &str = "skyfill_hosts";
const MAILBOX_DEPTH: &str = "skyfill_mailbox_depth";
const MAILBOX_CAPACITY: &str = "skyfill_mailbox_capacity";
const MEMORY_BUDGET: &str = "skyfill_memory_budget_bytes";
const JOURNAL_BYTES: &str = "skyfill_journal_bytes";
const SPOOL_BYTES: &str = "skyfill_spool_bytes";
const RESTARTS: &str = "skyfill_actor_restarts_total";
const CRASHES: &str = "skyfill_worker_crashes_total";
const SEAL_SECONDS: &str = "skyfill_seal_seconds";
const APPLY_SECONDS: &str = "skyfill_apply_seconds";
const QUEUE_PENDING: &str = "skyfill_queue_pending";
const SINK_LAG_SEGMENTS: &str = "skyfill_sink_lag_segments";
const SINK_LAG_BYTES: &str = "skyfill_sink_lag_bytes";
const SINK_WAITING: &str = "skyfill_sink_waiting";
const SINK_BLOCKING: &str = "skyfill_sink_blocking";
const RELOAD_OK: &str = "skyfill_config_last_reload_successful";
const RELOAD_TIME: &str = "skyfill_config_last_reload_success_timestamp_seconds";
const PROGRESS_TIME: &str = "skyfill_last_progress_timestamp_seconds";
const REMAINING: &str = "skyfill_remaining_seconds";
const BUILD_INFO: &str = "skyfill_build_info";

/// Every metric, in the design's order.
pub const METRICS: [Metric; 31] = [
    metric(ACCOUNTS, Kind::Gauge, &["state"], "Listed accounts by state."),
    metric(PARKED, Kind::Gauge, &["reason"], "Listed accounts that were given up, by reason."),
    metric(RECORDS, Kind::Counter, &["type"], "Records exported, counted once they are committed."),
    metric(
        SKIPPED,
        Kind::Counter,
        &["reason"],
        "Records of exported accounts left out on purpose.",
    ),
    metric(REJECTED, Kind::Counter, &["reason"], "Records that went to the rejected queue."),
    metric(REPO_BYTES, Kind::Counter, &[], "Bytes of the repositories that were exported."),
    metric(REQUESTS, Kind::Counter, &["service", "outcome"], "Requests by what came of them."),
    metric(
        REQUEST_SECONDS,
        Kind::Histogram,
        &["service"],
        "From a request to the end of its answer.",
    ),
    metric(RETRIES, Kind::Counter, &["error"], "Failures after which an account is tried again."),
    metric(REFRESHED, Kind::Counter, &["outcome"], "Done accounts that were refreshed."),
    metric(DELETED, Kind::Counter, &[], "Exported records that a refresh found gone."),
    metric(
        HOSTS,
        Kind::Gauge,
        &["state"],
        "Hosts in hand: working, waiting, or with an open circuit.",
    ),
    metric(MAILBOX_DEPTH, Kind::Gauge, &["stage"], "Messages queued and in work."),
    metric(MAILBOX_CAPACITY, Kind::Gauge, &["stage"], "Messages that may be queued and in work."),
    metric(
        MEMORY_BUDGET,
        Kind::Gauge,
        &["budget", "state"],
        "Parts of limits.memory: in use, in all.",
    ),
    metric(JOURNAL_BYTES, Kind::Gauge, &[], "Journal space that is reserved or sealed."),
    metric(SPOOL_BYTES, Kind::Gauge, &[], "Disk that is reserved for spools."),
    metric(RESTARTS, Kind::Counter, &["stage"], "Restarts of stages that died."),
    metric(CRASHES, Kind::Counter, &["stage"], "Crashes of the worker of one account."),
    metric(
        SEAL_SECONDS,
        Kind::Histogram,
        &[],
        "Sealing a journal segment, with waits for a full disk.",
    ),
    metric(
        APPLY_SECONDS,
        Kind::Histogram,
        &[],
        "Bringing a segment to every queue and the ledger.",
    ),
    metric(
        QUEUE_PENDING,
        Kind::Gauge,
        &["type"],
        "Items that no reader has taken; NaN: not counted in time.",
    ),
    metric(
        SINK_LAG_SEGMENTS,
        Kind::Gauge,
        &["sink"],
        "Journal segments that the queues have and the sink has not settled.",
    ),
    metric(SINK_LAG_BYTES, Kind::Gauge, &["sink"], "Bytes of those segments."),
    metric(
        SINK_WAITING,
        Kind::Gauge,
        &["sink"],
        "Whether the sink takes nothing, because where it writes to is away or full.",
    ),
    metric(
        SINK_BLOCKING,
        Kind::Gauge,
        &["sink"],
        "Whether the work waits for the sink, because it holds more than its lag_max.",
    ),
    metric(RELOAD_OK, Kind::Gauge, &[], "Whether the last reload was accepted; 1 at the start."),
    metric(
        RELOAD_TIME,
        Kind::Gauge,
        &[],
        "When the configuration in use was loaded, Unix seconds.",
    ),
    metric(PROGRESS_TIME, Kind::Gauge, &[], "When work last moved ahead, Unix seconds."),
    metric(
        REMAINING,
        Kind::Gauge,
        &[],
        "Time until everything is decided; NaN without an estimate.",
    ),
    metric(BUILD_INFO, Kind::Gauge, &["version"], "Always 1; which skyfill this is."),
];

/// Buckets of requests, seconds: a document takes milliseconds, a transfer up to `fetch.total_timeout`.
pub const REQUEST_BUCKETS: [f64; 12] =
    [0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 60.0, 300.0, 1_800.0];

/// Buckets of seals and applies, seconds: a sync takes milliseconds, a reader's lock or a full disk as long as it takes.
pub const DISK_BUCKETS: [f64; 10] = [0.001, 0.005, 0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 60.0];

/// The histograms with their buckets.
pub const BUCKETS: [(&str, &[f64]); 3] = [
    (REQUEST_SECONDS, &REQUEST_BUCKETS),
    (SEAL_SECONDS, &DISK_BUCKETS),
    (APPLY_SECONDS, &DISK_BUCKETS),
];

/// States of accounts.
pub const ACCOUNT_STATES: [&str; 5] = ["queued", "active", "retrying", "done", "parked"];

/// One more state of accounts, told once there were any: the operator has forgotten them.
pub const FORGOTTEN: &str = "forgotten";
/// What came of a refresh.
pub const REFRESH_OUTCOMES: [&str; 4] = ["unchanged", "changed", "failed", "without_leaves"];

/// States of hosts.
pub const HOST_STATES: [&str; 3] = ["working", "waiting", "open"];

/// The supervised stages; the scheduler has no mailbox of its own.
pub const STAGES: [&str; 5] = ["scheduler", "resolver", "fetcher", "parser", "exporter"];

/// The error of a retry for which the closed set of errors has no word: an older revision, a redirect too many, a crash.
pub const OTHER_ERROR: &str = "other";

/// Measures how long something takes, in monotonic time.
#[derive(Clone, Copy, Debug)]
pub struct Stopwatch(Instant);

impl Stopwatch {
    /// Starts measuring.
    #[must_use]
    pub fn start() -> Self {
        Self(Clock::system().now())
    }

    /// Time since the start.
    #[must_use]
    pub fn elapsed(&self) -> Duration {
        Clock::system().now().duration_since(self.0)
    }
}

/// Tells the recorder what every metric means.
pub fn describe() {
    for metric in METRICS {
        match metric.kind {
            Kind::Counter => describe_counter!(metric.name, metric.help),
            Kind::Gauge => describe_gauge!(metric.name, metric.help),
            Kind::Histogram => describe_histogram!(metric.name, metric.help),
        }
    }
}

/// Makes the series that only this file knows the words of, so that they are 0 before something happens, and says which
/// skyfill this is.
pub fn announce() {
    gauge!(BUILD_INFO, "version" => env!("CARGO_PKG_VERSION")).set(1.0);
    for stage in STAGES {
        counter!(RESTARTS, "stage" => stage).increment(0);
        counter!(CRASHES, "stage" => stage).increment(0);
    }
    for service in Service::ALL {
        for outcome in Outcome::ALL {
            let labels = [("service", service.as_str()), ("outcome", outcome.as_str())];
            counter!(REQUESTS, &labels).increment(0);
        }
    }
    for service in Service::ALL {
        // A handle alone makes the series.
        let _nothing_measured = histogram!(REQUEST_SECONDS, "service" => service.as_str());
    }
    let _nothing_measured = (histogram!(SEAL_SECONDS), histogram!(APPLY_SECONDS));
    retried(OTHER_ERROR, 0);
    REFRESH_OUTCOMES.iter().for_each(|outcome| refreshed(outcome, 0));
    deleted(0);
    exported_bytes(0);
}

/// Records of `label` were committed.
pub fn exported(label: &str, records: u64) {
    counter!(RECORDS, "type" => label.to_owned()).increment(records);
}

/// Records were skipped for `reason`, in accounts that were committed.
pub fn skipped(reason: &str, records: u64) {
    counter!(SKIPPED, "reason" => reason.to_owned()).increment(records);
}

/// Records were rejected for `reason`, in accounts that were committed.
pub fn rejected(reason: &str, records: u64) {
    counter!(REJECTED, "reason" => reason.to_owned()).increment(records);
}

/// Repositories of so many bytes were committed.
pub fn exported_bytes(bytes: u64) {
    counter!(REPO_BYTES).increment(bytes);
}

/// Refreshes of accounts ended with `outcome`, one of [`REFRESH_OUTCOMES`].
pub fn refreshed(outcome: &'static str, accounts: u64) {
    counter!(REFRESHED, "outcome" => outcome).increment(accounts);
}

/// So many exported records are gone at a newer revision.
pub fn deleted(records: u64) {
    counter!(DELETED).increment(records);
}

/// So many accounts failed with `error` and will be tried again.
pub fn retried(error: &'static str, accounts: u64) {
    counter!(RETRIES, "error" => error).increment(accounts);
}

/// A request has ended. One that the guard refused was not sent and takes no time.
pub fn requested(service: Service, outcome: Outcome, since: Stopwatch) {
    let labels = [("service", service.as_str()), ("outcome", outcome.as_str())];
    counter!(REQUESTS, &labels).increment(1);
    if outcome != Outcome::Refused {
        histogram!(REQUEST_SECONDS, "service" => service.as_str()).record(since.elapsed());
    }
}

/// A segment was sealed.
pub fn sealed(since: Stopwatch) {
    histogram!(SEAL_SECONDS).record(since.elapsed());
}

/// Every follower has a segment.
pub fn applied(since: Stopwatch) {
    histogram!(APPLY_SECONDS).record(since.elapsed());
}

/// A one-DID worker of `stage` crashed.
pub fn worker_crashed(stage: &'static str) {
    counter!(CRASHES, "stage" => stage).increment(1);
}

/// The supervisor restarted `stage`.
pub fn stage_restarted(stage: &'static str) {
    counter!(RESTARTS, "stage" => stage).increment(1);
}

/// Work moved ahead at `wall_ms`: an account was resolved or decided, or bytes of a repository came.
pub fn progressed(wall_ms: i64) {
    gauge!(PROGRESS_TIME).set(seconds(wall_ms));
}

/// The configuration in use was loaded at `wall_ms`, at the start or by a reload.
pub fn config_loaded(wall_ms: i64) {
    gauge!(RELOAD_OK).set(1.0);
    gauge!(RELOAD_TIME).set(seconds(wall_ms));
}

/// A reload was refused; the configuration in use stays.
pub fn reload_refused() {
    gauge!(RELOAD_OK).set(0.0);
}

/// Listed accounts in a state of [`ACCOUNT_STATES`], or [`FORGOTTEN`].
pub fn accounts(state: &'static str, accounts: u64) {
    gauge!(ACCOUNTS, "state" => state).set(figure(accounts));
}

/// Time until everything is decided, if there is a base for an estimate.
pub fn remaining(remaining: Option<Duration>) {
    gauge!(REMAINING).set(remaining.map_or(f64::NAN, |time| time.as_secs_f64()));
}

/// Listed accounts that were given up for `reason`.
pub fn parked(reason: &'static str, accounts: u64) {
    gauge!(PARKED, "reason" => reason).set(figure(accounts));
}

/// Hosts in a state of [`HOST_STATES`].
pub fn hosts(state: &'static str, hosts: u64) {
    gauge!(HOSTS, "state" => state).set(figure(hosts));
}

/// The mailbox of `stage`.
pub fn mailbox(stage: &'static str, depth: usize, capacity: usize) {
    gauge!(MAILBOX_DEPTH, "stage" => stage).set(figure(depth as u64));
    gauge!(MAILBOX_CAPACITY, "stage" => stage).set(figure(capacity as u64));
}

/// One of the parts of `limits.memory`, bytes.
pub fn memory_budget(budget: &'static str, used: u64, limit: u64) {
    for (state, bytes) in [("used", used), ("limit", limit)] {
        gauge!(MEMORY_BUDGET, "budget" => budget, "state" => state).set(figure(bytes));
    }
}

/// Journal space that is reserved or sealed, bytes.
pub fn journal_bytes(bytes: u64) {
    gauge!(JOURNAL_BYTES).set(figure(bytes));
}

/// Disk that is reserved for spools, bytes.
pub fn spool_bytes(bytes: u64) {
    gauge!(SPOOL_BYTES).set(figure(bytes));
}

/// Items of the queue of `label` that no reader has taken; `None`: they could not be counted in time.
pub fn queue_pending(label: &str, items: Option<u64>) {
    gauge!(QUEUE_PENDING, "type" => label.to_owned()).set(items.map_or(f64::NAN, figure));
}

/// How a sink stands. Its name is the operator's, so there are few.
#[derive(Clone, Copy, Debug)]
pub struct SinkGauges<'s> {
    /// Its name.
    pub sink: &'s str,
    /// Segments that it holds.
    pub lag_segments: u64,
    /// Their bytes.
    pub lag_bytes: u64,
    /// It takes nothing at the moment.
    pub is_waiting: bool,
    /// The work waits for it.
    pub is_blocking: bool,
}

/// How a sink stands.
pub fn sink(gauges: SinkGauges<'_>) {
    let SinkGauges { sink, lag_segments, lag_bytes, is_waiting, is_blocking } = gauges;
    for (name, value) in [
        (SINK_LAG_SEGMENTS, lag_segments),
        (SINK_LAG_BYTES, lag_bytes),
        (SINK_WAITING, u64::from(is_waiting)),
        (SINK_BLOCKING, u64::from(is_blocking)),
    ] {
        gauge!(name, "sink" => sink.to_owned()).set(figure(value));
    }
}

/// Figures above 2^53 lose their last digits, as everywhere in Prometheus.
#[allow(clippy::cast_precision_loss, reason = "every figure of the format is a double")]
fn figure(number: u64) -> f64 {
    number as f64
}

#[allow(clippy::cast_precision_loss, reason = "milliseconds since 1970 are below 2^53")]
fn seconds(wall_ms: i64) -> f64 {
    wall_ms as f64 / 1_000.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_follow_the_conventions_and_have_help() {
        let mut names: Vec<&str> = METRICS.iter().map(|metric| metric.name).collect();
        for metric in METRICS {
            let is_plain = |c: char| c.is_ascii_lowercase() || c == '_';
            assert!(metric.name.starts_with("skyfill_") && metric.name.chars().all(is_plain));
            let is_total = metric.name.ends_with("_total");
            assert_eq!(is_total, metric.kind == Kind::Counter, "{}", metric.name);
            assert!(metric.help.ends_with('.'), "{}", metric.name);
            assert!(!metric.labels.iter().any(|label| ["did", "host", "le"].contains(label)));
            let has_buckets = BUCKETS.iter().any(|(name, _)| *name == metric.name);
            assert_eq!(has_buckets, metric.kind == Kind::Histogram, "{}", metric.name);
        }
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), METRICS.len());
        for (name, buckets) in BUCKETS {
            assert!(buckets.is_sorted() && !buckets.is_empty(), "{name}");
        }
    }
}
