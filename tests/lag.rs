//! Sinks that are away while there is work, in one process with a pipeline over a generated network: each holds up the work at
//! its own `lag_max`, long before the journal is full, nothing else does, and in the end each has every row once.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::disallowed_methods
)]

#[path = "sinks/read.rs"]
mod read;
mod support;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::Value;
use serde_json::value::RawValue;
use skyfill::clock::Clock;
use skyfill::commands::live::{Beside, Live};
use skyfill::config::file::{self, Assignment, Mode};
use skyfill::config::settings::Settings;
use skyfill::config::targets::{self, ListSource};
use skyfill::pipeline::{Data, Pipeline, PipelineEnd, Surrounding};
use skyfill::sink::{Position, SegmentReader, Sink, Start, StoreError};
use skyfill::store::follow::NamedSink;
use support::network::Network;
use support::world::{Records, Shape};

const PATIENCE: Duration = Duration::from_secs(100);

/// Accounts, each in a segment of its own.
const ACCOUNTS: usize = 30;

/// What the two sinks may hold, and what the journal may have.
const NEAR: u64 = 1 << 20;
const FAR: u64 = 3 << 20;
const JOURNAL: u64 = 64 << 20;

/// No segment of this test is larger: one account, and what is complete beside it.
const SEGMENT_MAX: u64 = 1 << 20;

/// What a sink holds; it takes nothing while it is shut.
#[derive(Default)]
struct Held {
    is_open: bool,
    rows: BTreeMap<String, Vec<String>>,
    position: Position,
}

/// A sink whose position is with its rows.
#[derive(Clone, Default)]
struct Gated(Arc<Mutex<Held>>);

impl Gated {
    fn open(&self) {
        self.0.lock().unwrap().is_open = true;
    }

    fn named(&self, name: &str, lag_max: u64) -> NamedSink {
        NamedSink { name: name.to_owned(), sink: Box::new(self.clone()), lag_max: Some(lag_max) }
    }

    /// Its rows, as `read::queues` gives those of the queues.
    fn rows(&self) -> BTreeMap<String, Vec<String>> {
        let mut rows = self.0.lock().unwrap().rows.clone();
        rows.values_mut().for_each(|rows| rows.sort());
        rows
    }
}

impl Sink for Gated {
    fn begin(&mut self, start: &Start) -> Result<Position, StoreError> {
        let mut held = self.0.lock().unwrap();
        if held.position == Position::default() {
            held.position = start.known;
        }
        Ok(held.position)
    }

    fn apply(&mut self, segment: &SegmentReader) -> Result<(), StoreError> {
        let mut held = self.0.lock().unwrap();
        if !held.is_open {
            return Err(StoreError::busy("the gate is shut"));
        }
        let mut buffer = Vec::new();
        for item in segment.items_from(held.position) {
            let rows: Vec<&RawValue> = serde_json::from_str(item.payload(&mut buffer)?).unwrap();
            let rows = rows.iter().map(|row| row.get().to_owned());
            held.rows.entry(item.label.to_owned()).or_default().extend(rows);
            held.position = item.after;
        }
        held.position = segment.end();
        Ok(())
    }

    fn settle(&mut self) -> Result<Vec<(String, Position)>, StoreError> {
        Ok(vec![("gate".to_owned(), self.0.lock().unwrap().position)])
    }
}

fn settings(network: &Network, data: &Path) -> Settings {
    let set = |(key, value): (&str, &str)| Assignment::flag("test", key, value);
    let (data, plc) = (data.to_string_lossy(), network.plc.url());
    let assignments = [
        ("data_dir", data.as_ref()),
        ("identity.plc_url", plc.as_str()),
        ("identity.requests_per_second", "1000"),
        ("fetch.host_requests_per_second", "1000"),
        ("network.allow", "127.0.0.0/8"),
        ("limits.disk_free", "0B"),
        ("limits.journal", "64MiB"),
        ("limits.batch_size", "1"),
    ];
    file::load(None, &assignments.map(set), Mode::Backfill).unwrap().settings
}

/// One process's time over the data directory.
struct Run {
    pipeline: Pipeline,
    live: Live,
    begun: Instant,
}

impl Run {
    async fn start(settings: &Settings, network: &Network, near: &Gated, far: &Gated) -> Self {
        let surrounding = Surrounding::system();
        let mut data = Data::open(settings, &surrounding.clock, &surrounding.chance).unwrap();
        let dids = network.world().dids();
        let sources = [ListSource::Inline { name: "test".to_owned(), dids }];
        assert_eq!(data.list(targets::open(&sources).unwrap()).unwrap().unwrap(), ACCOUNTS as u64);
        let sinks = vec![near.named("near", NEAR), far.named("far", FAR)];
        data.follow_with(Arc::new(Mutex::new(sinks)));
        let pipeline = Pipeline::start(data, settings, &surrounding).await.unwrap();
        let live = Live::new(Clock::system(), pipeline.reach());
        Self { pipeline, live, begun: Instant::now() }
    }

    async fn status(&self) -> Value {
        self.live.status(Beside { is_loaded: true, step: None, batch_size: 1 }).await
    }

    /// The status in which the work waits for `name` and for nobody else; it stays so.
    async fn held_up_by(&self, name: &str) -> Value {
        let mut before = Value::Null;
        loop {
            assert!(self.begun.elapsed() < PATIENCE, "{before}");
            let status = self.status().await;
            let sinks = status["sinks"].as_array().unwrap().clone();
            let is_so = sinks.iter().all(|it| it["holds_up"] == (it["name"] == name));
            let is_still = ["accounts", "sinks"].iter().all(|key| status[key] == before[key]);
            if is_so && is_still {
                return status;
            }
            before = status;
            tokio::time::sleep(Duration::from_millis(700)).await;
        }
    }
}

/// How many accounts are done, and what a sink holds.
fn figures(status: &Value, sink: &str) -> (u64, u64) {
    let sinks = status["sinks"].as_array().unwrap();
    let sink = sinks.iter().find(|it| it["name"] == sink).unwrap();
    (status["accounts"]["done"].as_u64().unwrap(), sink["lag_bytes"].as_u64().unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_sink_that_is_away_holds_up_the_work_at_its_own_bound_and_has_everything_once() {
    let records = Records::Fixed(450);
    let shape = Shape { seed: 151, accounts: ACCOUNTS, hosts: 2, records, odd: false };
    let network = Network::generate(&shape);
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let settings = settings(&network, &data);
    assert_eq!(settings.limits.journal, JOURNAL);
    let (near, far) = (Gated::default(), Gated::default());
    let run = Run::start(&settings, &network, &near, &far).await;
    // Both are away: the one that may hold less stops the work, and the journal has room for many times more.
    let status = run.held_up_by("near").await;
    let (first_done, lag) = figures(&status, "near");
    assert!((NEAR..NEAR + SEGMENT_MAX).contains(&lag), "{status}");
    assert_eq!(status["bound_by"], "sink", "{status}");
    assert!(first_done > 0 && first_done < ACCOUNTS as u64 / 3, "{status}");
    // One is there again: the work goes on by itself, up to the bound of the other.
    near.open();
    let status = run.held_up_by("far").await;
    let (second_done, lag) = figures(&status, "far");
    assert!((FAR..FAR + SEGMENT_MAX).contains(&lag), "{status}");
    assert!(second_done > first_done && second_done < ACCOUNTS as u64, "{status}");
    assert_eq!(figures(&status, "near").1, 0, "{status}");
    // Whoever stops does not wait for a sink that is away, and the next start waits where this one did.
    let stopping = Instant::now();
    run.pipeline.stop().await.unwrap();
    let stopped = stopping.elapsed();
    assert!(stopped < Duration::from_secs(10), "{stopped:?}");
    let run = Run::start(&settings, &network, &near, &far).await;
    let status = run.held_up_by("far").await;
    let (third_done, lag) = figures(&status, "far");
    assert!(lag < FAR + 2 * SEGMENT_MAX && third_done <= second_done + 1, "{status}");
    far.open();
    let ended = tokio::time::timeout(PATIENCE, run.pipeline.ended()).await.unwrap();
    assert!(matches!(ended, PipelineEnd::Finished), "{ended:?}");
    run.pipeline.followed().await;
    let status = run.status().await;
    assert_eq!(status["bound_by"], Value::Null, "{status}");
    assert_eq!((figures(&status, "near"), figures(&status, "far").1), ((30, 0), 0), "{status}");
    run.pipeline.stop().await.unwrap();
    let queues = read::queues(&data);
    for sink in [&near, &far] {
        let rows = sink.rows();
        assert!(rows == queues, "rows differ");
    }
    println!(
        "{} rows in 2 sinks: the work waited at {first_done}, then at {second_done} of {ACCOUNTS} accounts; a stop took {stopped:.1?}",
        queues.values().map(Vec::len).sum::<usize>()
    );
}
