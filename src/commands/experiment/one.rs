//! One run of an experiment: what a child process does. A backfill as ever, with a recorder of its own and a look at what bounds
//! the work, 20 times a second; its result is one line of JSON.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::commands::backfill::{self, Backfill, Beside, Performed};
use crate::commands::error::CommandError;
use crate::commands::experiment::measure::peak_memory_bytes;
use crate::exit_code::ExitCode;
use crate::ops::recorder::Recorder;
use crate::pipeline::{Reach, Surrounding};
use crate::store::error::StoreError;
use crate::store::ledger_lists::Reader;

/// Between two looks at what bounds the work.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// How often each word was seen.
type Seen = Arc<Mutex<BTreeMap<String, u64>>>;

/// What a run says of itself.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct One {
    /// Accounts exported.
    pub done: u64,
    /// Accounts given up.
    pub parked: u64,
    /// Records exported.
    pub records: u64,
    /// Bytes of their repositories.
    pub repo_bytes: u64,
    /// From the opening of the data directory to its release, seconds.
    pub seconds: f64,
    /// Highest resident memory, bytes.
    pub peak_memory_bytes: u64,
    /// How often each word of `status`'s `bound_by` was true.
    pub bound_by: BTreeMap<String, u64>,
    /// Requests by service, then by outcome.
    pub requests: BTreeMap<String, BTreeMap<String, u64>>,
}

/// Runs `order` and writes its [`One`] to `out`.
///
/// # Errors
/// [`CommandError`].
pub async fn run(
    order: &Backfill,
    surrounding: &Surrounding,
    stop: impl Future<Output = ()> + Send,
    out: &mut dyn Write,
) -> Result<ExitCode, CommandError> {
    let recorder = Recorder::install();
    let recorder = recorder.map_err(|error| CommandError::Internal(error.to_string()))?;
    let (seen, batch_size) = (Seen::default(), order.settings.limits.batch_size);
    let told = Arc::clone(&seen);
    let started: backfill::Started = Box::new(move |pipeline, _| {
        tokio::spawn(look(pipeline.reach(), batch_size, Arc::clone(&told)));
    });
    let beside = Beside { started: Some(started), ..Beside::default() };
    let performing = Box::pin(backfill::perform(order, &beside, surrounding, stop));
    let Some(performed) = performing.await? else { return Ok(ExitCode::Interrupted) };
    let Performed { ledger, run, exit, failure } = performed;
    if let Some(failure) = failure {
        return Err(failure);
    }
    let counts = Reader::open(&ledger)?.counts()?;
    let one = One {
        done: counts.done,
        parked: counts.parked,
        records: run.decided.records,
        repo_bytes: run.decided.repo_bytes,
        seconds: run.took.as_secs_f64(),
        peak_memory_bytes: peak_memory_bytes("self").unwrap_or(0),
        bound_by: seen.lock().unwrap_or_else(PoisonError::into_inner).clone(),
        requests: requests(&recorder.render()),
    };
    // Numbers and words always serialise.
    let text = serde_json::to_string(&one).unwrap_or_default();
    let written = writeln!(out, "{text}").and_then(|()| out.flush());
    written.map_err(|error| StoreError::io(Path::new("stdout"), error))?;
    Ok(exit)
}

async fn look(reach: Reach, batch_size: usize, seen: Seen) {
    while let Some(observed) = reach.observe().await {
        if let Some(word) = reach.bound_by(&observed, batch_size) {
            let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
            *seen.entry(word.to_owned()).or_default() += 1;
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// The series `skyfill_requests_total` of a recorder's text.
fn requests(text: &str) -> BTreeMap<String, BTreeMap<String, u64>> {
    let mut requests: BTreeMap<String, BTreeMap<String, u64>> = BTreeMap::new();
    let series = text.lines().filter_map(|line| line.strip_prefix("skyfill_requests_total{"));
    for (labels, count) in series.filter_map(|line| line.rsplit_once("} ")) {
        let label = |name: &str| {
            let rest = labels.split(',').find_map(|it| it.strip_prefix(name))?;
            Some(rest.strip_prefix("=\"")?.strip_suffix('"')?.to_owned())
        };
        if let (Some(service), Some(outcome), Ok(count)) =
            (label("service"), label("outcome"), count.parse())
            && count > 0
        {
            requests.entry(service).or_default().insert(outcome, count);
        }
    }
    requests
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_read_from_the_recorders_text() {
        let text = "# TYPE skyfill_requests_total counter\n\
                    skyfill_requests_total{service=\"pds\",outcome=\"ok\"} 12\n\
                    skyfill_requests_total{outcome=\"rate_limited\",service=\"pds\"} 3\n\
                    skyfill_requests_total{service=\"plc\",outcome=\"ok\"} 0\n\
                    skyfill_retries_total{error=\"dns\"} 9\n";
        let pds = BTreeMap::from([("ok".to_owned(), 12), ("rate_limited".to_owned(), 3)]);
        assert_eq!(requests(text), BTreeMap::from([("pds".to_owned(), pds)]));
    }
}
