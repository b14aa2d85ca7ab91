//! Metrics over the whole pipeline: every series of the design with exactly its labels, figures that equal the ledger's, few
//! series whatever hosts call themselves, alerts and a dashboard that name only what exists, and a real Prometheus.
//!
//! Recorder and counters belong to the process, so one test runs the pipeline and looks at everything that it left.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::cast_precision_loss,
    clippy::disallowed_methods
)]

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::{Value, json};
use skyfill::config::file::{self, Assignment, Mode};
use skyfill::config::settings::Settings;
use skyfill::config::targets::{self, ListSource};
use skyfill::net::client::Surroundings;
use skyfill::net::dns::Names;
use skyfill::ops::http::{self, Readiness};
use skyfill::ops::recorder::Recorder;
use skyfill::pipeline::{Data, Pipeline, PipelineEnd, Surrounding};
use skyfill::sink::{Position, SegmentReader, Sink, StoreError};
use skyfill::store::follow::NamedSink;
use skyfill::store::ledger_lists::Reader;
use skyfill::telemetry::{Kind, METRICS};
use support::faults::{At, Fault, Place, Target, Then, Wait};
use support::network::{Network, Standing};
use support::world::{Records, Shape};
use tokio::sync::watch;

const PATIENCE: Duration = Duration::from_secs(120);

/// Accounts that nothing happens to, or something that has a name.
const ORDINARY: usize = 30;

/// Accounts whose documents name a host of a stranger's choice,
const HOSTILE_HOSTS: usize = 300;

/// or whose host gives a reason of its own.
const HOSTILE_REASONS: usize = 300;

/// The design's list (section 7, "Metrics"), and those of ours: which worker crashed, the time left, refreshes, and sinks.
const DESIGN: [(&str, &[&str]); 31] = [
    ("skyfill_accounts", &["state"]),
    ("skyfill_parked", &["reason"]),
    ("skyfill_records_total", &["type"]),
    ("skyfill_records_skipped_total", &["reason"]),
    ("skyfill_records_rejected_total", &["reason"]),
    ("skyfill_repo_bytes_total", &[]),
    ("skyfill_requests_total", &["outcome", "service"]),
    ("skyfill_request_seconds", &["service"]),
    ("skyfill_refreshed_total", &["outcome"]),
    ("skyfill_records_deleted_total", &[]),
    ("skyfill_retries_total", &["error"]),
    ("skyfill_hosts", &["state"]),
    ("skyfill_mailbox_depth", &["stage"]),
    ("skyfill_mailbox_capacity", &["stage"]),
    ("skyfill_memory_budget_bytes", &["budget", "state"]),
    ("skyfill_journal_bytes", &[]),
    ("skyfill_spool_bytes", &[]),
    ("skyfill_actor_restarts_total", &["stage"]),
    ("skyfill_worker_crashes_total", &["stage"]),
    ("skyfill_remaining_seconds", &[]),
    ("skyfill_seal_seconds", &[]),
    ("skyfill_apply_seconds", &[]),
    ("skyfill_queue_pending", &["type"]),
    ("skyfill_sink_lag_segments", &["sink"]),
    ("skyfill_sink_lag_bytes", &["sink"]),
    ("skyfill_sink_waiting", &["sink"]),
    ("skyfill_sink_blocking", &["sink"]),
    ("skyfill_config_last_reload_successful", &[]),
    ("skyfill_config_last_reload_success_timestamp_seconds", &[]),
    ("skyfill_last_progress_timestamp_seconds", &[]),
    ("skyfill_build_info", &["version"]),
];

/// Label values of closed sets, each in full.
const CLOSED: [(&str, &str, &[&str]); 15] = [
    ("skyfill_sink_lag_bytes", "sink", &["mine"]),
    ("skyfill_sink_waiting", "sink", &["mine"]),
    ("skyfill_accounts", "state", &["active", "done", "parked", "queued", "retrying"]),
    (
        "skyfill_parked",
        "reason",
        &[
            "attempts_exhausted",
            "crash_loop",
            "did_invalid",
            "did_not_found",
            "did_tombstoned",
            "directory_unavailable",
            "endpoint_forbidden",
            "host_unavailable",
            "identity_invalid",
            "no_pds",
            "repo_deactivated",
            "repo_invalid",
            "repo_not_found",
            "repo_stale",
            "repo_suspended",
            "repo_taken_down",
            "repo_too_large",
        ],
    ),
    ("skyfill_records_total", "type", &["block", "follow", "like", "post", "reply", "repost"]),
    ("skyfill_records_skipped_total", "reason", &["outside_window", "type"]),
    ("skyfill_records_rejected_total", "reason", &["cbor", "created_at", "schema", "too_large"]),
    ("skyfill_requests_total", "service", &["pds", "plc", "web"]),
    (
        "skyfill_requests_total",
        "outcome",
        &["ok", "rate_limited", "refused", "terminal", "transient"],
    ),
    (
        "skyfill_retries_total",
        "error",
        &[
            "connect",
            "did_mismatch",
            "dns",
            "hash",
            "http_4xx",
            "http_5xx",
            "incomplete",
            "not_car",
            "other",
            "rate_limited",
            "signature",
            "timeout",
            "tls",
            "too_slow",
            "tree",
        ],
    ),
    ("skyfill_hosts", "state", &["open", "waiting", "working"]),
    ("skyfill_mailbox_depth", "stage", &["exporter", "fetcher", "parser", "resolver"]),
    ("skyfill_memory_budget_bytes", "budget", &["rows", "spools", "walks"]),
    (
        "skyfill_queue_pending",
        "type",
        &["block", "follow", "like", "post", "rejected", "reply", "repost"],
    ),
    (
        "skyfill_actor_restarts_total",
        "stage",
        &["exporter", "fetcher", "parser", "resolver", "scheduler"],
    ),
];

type Labels = BTreeMap<String, String>;

/// A scrape, series by series.
struct Scrape {
    text: String,
    series: Vec<(String, Labels, f64)>,
}

impl Scrape {
    /// Reads the text format strictly enough to notice what Prometheus would refuse.
    fn parse(text: String) -> Self {
        let mut series = Vec::new();
        for line in text.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
            let (name, rest) = match line.split_once('{') {
                Some((name, rest)) => (name, rest),
                None => {
                    let (name, value) = line.split_once(' ').unwrap();
                    series.push((name.to_owned(), Labels::new(), value.parse().unwrap()));
                    continue;
                }
            };
            let (labels, value) = rest.rsplit_once("} ").unwrap();
            let pairs = labels.split("\",").map(|pair| {
                let (label, value) = pair.split_once("=\"").unwrap();
                (label.to_owned(), value.trim_end_matches('"').to_owned())
            });
            series.push((name.to_owned(), pairs.collect(), value.parse().unwrap()));
        }
        Self { text, series }
    }

    /// The sum of the series of `name` that have all of `labels`; there must be one.
    fn sum(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let has = |all: &Labels| {
            labels.iter().all(|(label, value)| all.get(*label).is_some_and(|it| it == value))
        };
        let of: Vec<f64> = self
            .series
            .iter()
            .filter(|(n, l, _)| n == name && has(l))
            .map(|(_, _, v)| *v)
            .collect();
        assert!(!of.is_empty(), "{name} {labels:?} is not there");
        of.iter().sum()
    }

    fn is(&self, name: &str, labels: &[(&str, &str)], expected: u64) {
        assert_eq!(self.sum(name, labels), expected as f64, "{name} {labels:?}");
    }
}

/// One HTTP request over a socket of its own.
fn get(address: SocketAddr, path: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let request = format!("GET {path} HTTP/1.0\r\nhost: {address}\r\n\r\n");
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
}

async fn get_async(address: SocketAddr, path: &'static str) -> (u16, String) {
    tokio::task::spawn_blocking(move || get(address, path)).await.unwrap()
}

/// The network with everything that can happen to an account, and strangers who write what they like.
fn hostile_network() -> (Network, Vec<String>) {
    let accounts = ORDINARY + HOSTILE_HOSTS + HOSTILE_REASONS;
    let shape = Shape { seed: 31, accounts, hosts: 3, records: Records::Fixed(12), odd: true };
    let network = Network::generate(&shape);
    for (index, standing) in [
        (1, Standing::Deactivated),
        (2, Standing::TakenDown),
        (3, Standing::Suspended),
        (4, Standing::Deleted),
        (5, Standing::Tombstoned),
        (6, Standing::Unregistered),
    ] {
        network.set_standing(index, standing);
    }
    let faults = network.faults();
    let did = |index: usize| network.world().did(index).to_owned();
    faults.once(&did(7), Fault::Cut(At::Middle));
    faults.once(&did(8), Fault::status(503));
    faults.once(&did(9), Fault::RateLimited(Wait::Seconds(0)));
    faults.once(&did(10), Fault::Reset(At::Middle));
    faults.once(&did(11), Fault::WrongHash);
    faults.once(&did(12), Fault::HtmlOk);
    faults.always(&did(13), Fault::BadSignature);
    faults.script(Place::Directory, Target::Did(did(14)), [Fault::NoPds], Then::Repeat);
    for number in 0..HOSTILE_HOSTS {
        let endpoint = match number % 4 {
            0 => format!("https://evil-{number}.internal"),
            1 if number < HOSTILE_HOSTS / 2 => {
                format!("https://evil-{number}.example\r\nskyfill_evil{{did=\"x\"}} 1")
            }
            1 => format!("https://evil-{number}\u{1b}[2J\".localhost"),
            2 => format!("https://user-{number}:secret@evil.example"),
            // A host like any other, but for its name.
            _ => {
                let port = network.host_of(ORDINARY + number).server().address().port();
                format!("http://evil-{number}.example:{port}")
            }
        };
        let target = Target::Did(did(ORDINARY + number));
        faults.script(Place::Directory, target, [Fault::Endpoint(endpoint)], Then::Repeat);
    }
    for number in 0..HOSTILE_REASONS {
        let error = format!("Evil{number}\"}} 1\nskyfill_evil{{a=\"\u{1b}");
        let body = json!({"error": error, "message": "did:plc:evil"}).to_string().into_bytes();
        let code = 400 + u16::try_from(number % 20).unwrap();
        let code = if code == 429 { 400 } else { code };
        let fault = Fault::Status { code, headers: Vec::new(), body };
        faults.always(&did(ORDINARY + HOSTILE_HOSTS + number), fault);
    }
    let mut dids = network.world().dids();
    dids.push("did:web:evil.internal".to_owned());
    dids.push("did:plc:NOT-A-DID\u{1b}\n".to_owned());
    (network, dids)
}

fn settings(network: &Network, data: &Path) -> Settings {
    let set = |(key, value): (&str, &str)| Assignment::flag("test", key, value);
    let (data, plc) = (data.to_string_lossy(), network.plc.url());
    let assignments = [
        ("data_dir", data.as_ref()),
        ("identity.plc_url", plc.as_str()),
        ("identity.requests_per_second", "5000"),
        ("fetch.host_requests_per_second", "5000"),
        ("fetch.host_concurrency", "16"),
        ("network.allow", "127.0.0.0/8"),
        ("retry.attempts", "2"),
        ("retry.base", "10ms"),
        ("retry.max", "20ms"),
        ("limits.disk_free", "0B"),
        ("limits.memory", "64MiB"),
    ];
    file::load(None, &assignments.map(set), Mode::Backfill).unwrap().settings
}

/// A name server on loopback: names under `internal` are private addresses, all others are loopback.
async fn names() -> Names {
    let socket = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let names = Names::of_servers(&[socket.local_addr().unwrap()]).unwrap();
    tokio::spawn(async move {
        let mut query = [0; 1_500];
        while let Ok((length, from)) = socket.recv_from(&mut query).await {
            // A header of 12 bytes, labels up to an empty one, type and class.
            let end = 12 + query[12..length].iter().position(|byte| *byte == 0).unwrap() + 5;
            let is_ipv4 = query[end - 3] == 1;
            let is_internal = query[..end].windows(8).any(|part| part == b"internal");
            let mut reply = query[..end].to_vec();
            reply[2..12].copy_from_slice(&[0x81, 0x80, 0, 1, 0, u8::from(is_ipv4), 0, 0, 0, 0]);
            if is_ipv4 {
                let address = if is_internal { [10, 0, 0, 1] } else { [127, 0, 0, 1] };
                reply.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4]);
                reply.extend(address);
            }
            socket.send_to(&reply, from).await.unwrap();
        }
    });
    names
}

/// Runs everything to its end with the endpoint up, and gives what was scraped before, and after.
struct Ran {
    before: Scrape,
    after: Scrape,
    pending_before: u64,
}

#[test]
fn every_figure_of_the_design_is_there_and_right() {
    let (network, dids) = hostile_network();
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let settings = settings(&network, &data);
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let recorder = Recorder::install().unwrap();
        assert!(Recorder::install().is_err());
        let ran = tokio::time::timeout(PATIENCE, run(&recorder, &settings, dids)).await.unwrap();
        names_and_labels(&ran.before);
        names_and_labels(&ran.after);
        begins_at_zero(&ran.before, ran.pending_before);
        figures(&ran.after, &settings, &network);
        bounded_and_clean(&ran.after);
        tokio::time::timeout(PATIENCE, prometheus(recorder)).await.unwrap();
    });
    runtime.shutdown_background();
    network.faults().assert_fired(&["cut", "status", "rate_limited_seconds", "wrong_hash"]);
}

/// A sink that keeps nothing of what it takes.
struct Mine;

impl Sink for Mine {
    fn apply(&mut self, segment: &SegmentReader) -> Result<(), StoreError> {
        let mut buffer = Vec::new();
        for item in segment.items_from(Position::after(segment.number - 1)) {
            item.payload(&mut buffer)?;
        }
        Ok(())
    }

    fn settle(&mut self) -> Result<Vec<(String, Position)>, StoreError> {
        Ok(Vec::new())
    }
}

async fn run(recorder: &Recorder, settings: &Settings, dids: Vec<String>) -> Ran {
    let network = Surroundings { names: names().await, roots: Vec::new() };
    let surrounding = Surrounding { network: Some(network), ..Surrounding::system() };
    let mut data = Data::open(settings, &surrounding.clock, &surrounding.chance).unwrap();
    let sources = [ListSource::Inline { name: "test".to_owned(), dids }];
    let listed = data.list(targets::open(&sources).unwrap()).unwrap().unwrap();
    assert_eq!(listed, (ORDINARY + HOSTILE_HOSTS + HOSTILE_REASONS + 2) as u64);
    let ledger = data.ledger_path();
    let sink = NamedSink { name: "mine".to_owned(), sink: Box::new(Mine), lag_max: None };
    data.follow_with(Arc::new(Mutex::new(vec![sink])));
    let pipeline = Pipeline::start(data, settings, &surrounding).await.unwrap();
    let listener = http::bind(([127, 0, 0, 1], 0).into()).await.unwrap();
    let address = listener.local_addr().unwrap();
    let (state, watched) = watch::channel(Readiness::Ready);
    let (sampler, rendered) = (pipeline.sampler(), recorder.clone());
    let render = move || {
        let (sampler, rendered) = (sampler.clone(), rendered.clone());
        async move {
            sampler.sample().await;
            rendered.render()
        }
    };
    let stop = tokio_util::sync::CancellationToken::new();
    let stopped = stop.clone().cancelled_owned();
    let serving = tokio::spawn(http::serve_on(listener, watched, render, stopped));
    let (code, text) = get_async(address, "/metrics").await;
    assert_eq!(code, 200);
    let before = Scrape::parse(text);
    let pending_before = pipeline.progress().borrow().counts.pending();
    assert!(matches!(pipeline.ended().await, PipelineEnd::Finished));
    pipeline.followed().await;
    let (code, text) = get_async(address, "/metrics").await;
    assert_eq!((code, Reader::open(&ledger).unwrap().counts().unwrap().pending()), (200, 0));
    state.send_replace(Readiness::Draining);
    assert_eq!(get_async(address, "/readyz").await, (503, "draining\n".to_owned()));
    pipeline.stop().await.unwrap();
    // Whoever asks while everything ends gets an answer too.
    assert_eq!(get_async(address, "/metrics").await.0, 200);
    stop.cancel();
    serving.await.unwrap();
    Ran { before, after: Scrape::parse(text), pending_before }
}

/// Exactly the design's names, each with help, its type and exactly its labels.
fn names_and_labels(scrape: &Scrape) {
    let mut seen: BTreeMap<&str, BTreeSet<Vec<&str>>> = BTreeMap::new();
    for (name, labels, _) in &scrape.series {
        let labels = labels.keys().map(String::as_str).filter(|label| *label != "le").collect();
        seen.entry(base(name)).or_default().insert(labels);
    }
    let expected: BTreeMap<&str, BTreeSet<Vec<&str>>> =
        DESIGN.iter().map(|(name, labels)| (*name, BTreeSet::from([labels.to_vec()]))).collect();
    for (name, labels) in &seen {
        assert_eq!(Some(labels), expected.get(name), "{name}");
    }
    for metric in METRICS {
        assert!(seen.contains_key(metric.name), "{} is missing", metric.name);
        {
            let kind = match metric.kind {
                Kind::Counter => "counter",
                Kind::Gauge => "gauge",
                Kind::Histogram => "histogram",
            };
            let lines = [
                format!("# HELP {} {}", metric.name, metric.help),
                format!("# TYPE {} {kind}", metric.name),
            ];
            for line in lines {
                assert!(scrape.text.lines().any(|it| it == line), "{line}");
            }
        }
    }
    for (name, label, values) in CLOSED {
        let of = scrape.series.iter().filter(|(known, _, _)| known == name);
        let found: BTreeSet<&str> = of.map(|(_, labels, _)| labels[label].as_str()).collect();
        assert_eq!(found, values.iter().copied().collect(), "{name} {label}");
    }
}

/// The metric that a series belongs to.
fn base(series: &str) -> &str {
    let cut = ["_bucket", "_sum", "_count"].iter().find_map(|end| series.strip_suffix(end));
    let is_histogram =
        |name: &&str| METRICS.iter().any(|it| it.name == *name && it.kind == Kind::Histogram);
    cut.filter(is_histogram).unwrap_or(series)
}

/// Every counter is there before anything has happened to it, so that `rate` sees its first step.
fn begins_at_zero(scrape: &Scrape, pending: u64) {
    assert!(pending > 0, "the first scrape came while there was work");
    scrape.is("skyfill_actor_restarts_total", &[], 0);
    scrape.is("skyfill_worker_crashes_total", &[], 0);
    scrape.is("skyfill_config_last_reload_successful", &[], 1);
    scrape.is("skyfill_build_info", &[("version", env!("CARGO_PKG_VERSION"))], 1);
    let now = support::time::unix_now() as f64;
    for name in [
        "skyfill_config_last_reload_success_timestamp_seconds",
        "skyfill_last_progress_timestamp_seconds",
    ] {
        let age = now - scrape.sum(name, &[]);
        assert!((-1.0..PATIENCE.as_secs_f64()).contains(&age), "{name}: {age}");
    }
    scrape.is("skyfill_mailbox_capacity", &[("stage", "resolver")], 64);
    scrape.is("skyfill_mailbox_capacity", &[("stage", "exporter")], 8);
    for (budget, share) in [("spools", 2), ("walks", 4), ("rows", 4)] {
        let labels = [("budget", budget), ("state", "limit")];
        scrape.is("skyfill_memory_budget_bytes", &labels, (64 << 20) / share);
    }
}

/// What was counted is what the ledger, the queues and the servers know.
fn figures(scrape: &Scrape, settings: &Settings, network: &Network) {
    let reader = Reader::open(&settings.data_dir.join("state.db")).unwrap();
    let labels: Vec<String> = settings.filter.types.iter().map(|entry| entry.label()).collect();
    let (sums, counts) = (reader.sums(&labels).unwrap(), reader.counts().unwrap());
    assert!(sums.records.values().sum::<u64>() > 100 && counts.done > 90 && counts.parked > 500);
    for (label, records) in &sums.records {
        scrape.is("skyfill_records_total", &[("type", label)], *records);
    }
    for (reason, records) in &sums.skipped {
        scrape.is("skyfill_records_skipped_total", &[("reason", reason)], *records);
    }
    for (reason, records) in &sums.rejected {
        scrape.is("skyfill_records_rejected_total", &[("reason", reason)], *records);
    }
    scrape.is("skyfill_repo_bytes_total", &[], sums.repo_bytes);
    let states = [
        ("queued", 0),
        ("active", 0),
        ("retrying", 0),
        ("done", counts.done),
        ("parked", counts.parked),
    ];
    for (state, accounts) in states {
        scrape.is("skyfill_accounts", &[("state", state)], accounts);
    }
    let parked = reader.parked_by_reason().unwrap();
    scrape.is("skyfill_parked", &[], counts.parked);
    for (reason, accounts) in &parked {
        scrape.is("skyfill_parked", &[("reason", reason)], *accounts);
    }
    assert_eq!((parked["endpoint_forbidden"], parked["identity_invalid"]), (151, 75));
    requests(scrape, network);
    for stage in ["resolver", "fetcher", "parser", "exporter"] {
        scrape.is("skyfill_mailbox_depth", &[("stage", stage)], 0);
    }
    for budget in ["spools", "walks", "rows"] {
        scrape.is("skyfill_memory_budget_bytes", &[("budget", budget), ("state", "used")], 0);
    }
    scrape.is("skyfill_spool_bytes", &[], 0);
    for name in ["lag_segments", "lag_bytes", "waiting", "blocking"] {
        scrape.is(&format!("skyfill_sink_{name}"), &[("sink", "mine")], 0);
    }
    let (seals, applies) = (
        scrape.sum("skyfill_seal_seconds_count", &[]),
        scrape.sum("skyfill_apply_seconds_count", &[]),
    );
    assert!(seals >= 1.0 && seals == applies, "{seals} seals, {applies} applied");
    pending(&settings.data_dir, &labels);
}

/// Every request that a server saw was counted, once, by what came of it.
fn requests(scrape: &Scrape, network: &Network) {
    let of = |service, outcome| {
        scrape.sum("skyfill_requests_total", &[("service", service), ("outcome", outcome)])
    };
    let sent = |service| {
        ["ok", "rate_limited", "transient", "terminal"]
            .iter()
            .map(|it| of(service, it))
            .sum::<f64>()
    };
    let at_hosts: usize = network.hosts.iter().map(|host| host.log().len()).sum();
    assert_eq!(sent("pds"), at_hosts as f64);
    assert_eq!(sent("plc"), network.plc.requests() as f64);
    for service in ["plc", "pds"] {
        let timed = scrape.sum("skyfill_request_seconds_count", &[("service", service)]);
        assert_eq!(timed, sent(service), "{service}");
    }
    assert_eq!((of("web", "refused"), sent("web")), (1.0, 0.0));
    assert!(of("pds", "rate_limited") >= 1.0 && of("pds", "refused") >= 100.0);
    assert!(of("plc", "terminal") >= 3.0, "tombstoned, unregistered, without a host");
    let retries = |error| scrape.sum("skyfill_retries_total", &[("error", error)]);
    for error in
        ["incomplete", "http_5xx", "http_4xx", "rate_limited", "hash", "not_car", "signature"]
    {
        assert!(retries(error) >= 1.0, "{error}");
    }
    // Two attempts each: the first is tried again, the second is the last.
    assert!(retries("http_4xx") >= HOSTILE_REASONS as f64 * 0.9);
    assert_eq!(retries("dns"), 0.0);
}

/// Pending items are counted once a minute; the figure of the first scrape may be old, so they are counted afresh here.
fn pending(data: &Path, labels: &[String]) {
    use skyfill::sink::{pending, sqlite::file_name};
    let counted = |label: &String| {
        let path = data.join("queue").join(file_name(label));
        let connection = rusqlite::Connection::open(&path).unwrap();
        let all: i64 =
            connection.query_row("SELECT count(*) FROM queue", [], |row| row.get(0)).unwrap();
        let clock = skyfill::clock::Clock::system();
        assert_eq!(pending::count(&path, PATIENCE, &clock), u64::try_from(all).ok(), "{label}");
        all
    };
    assert!(labels.iter().map(counted).sum::<i64>() > 6);
}

/// Few series, and nothing that a stranger wrote in any of them.
fn bounded_and_clean(scrape: &Scrape) {
    assert!(scrape.series.len() < 1_000, "{} series", scrape.series.len());
    println!("{} series", scrape.series.len());
    let is_control = |c: char| c.is_control() && c != '\n';
    assert!(!scrape.text.contains(is_control));
    for word in ["did:", "evil", "Evil", "127.0.0.1", "example", "secret", "internal"] {
        assert!(!scrape.text.contains(word), "{word} in\n{}", scrape.text);
    }
}

fn tool(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    let found = std::env::split_paths(&path).map(|folder| folder.join(name)).find(|it| it.exists());
    if found.is_none() {
        println!("{name} is not installed (Debian package prometheus): this part is left out");
    }
    found
}

/// A Prometheus that is stopped when it is dropped.
struct Prometheus(Child);

impl Drop for Prometheus {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A real Prometheus reads the endpoint and evaluates the alerts on it.
async fn prometheus(recorder: Recorder) {
    let Some(binary) = tool("prometheus") else { return };
    let listener = http::bind(([127, 0, 0, 1], 0).into()).await.unwrap();
    let address = listener.local_addr().unwrap();
    let (scrapes, mut scraped) = watch::channel(0);
    let render = move || {
        scrapes.send_modify(|count| *count += 1);
        std::future::ready(recorder.render())
    };
    let (_state, readiness) = watch::channel(Readiness::Ready);
    let serving = tokio::spawn(http::serve_on(listener, readiness, render, std::future::pending()));
    let folder = tempfile::tempdir().unwrap();
    let rules = Path::new(env!("CARGO_MANIFEST_DIR")).join("config/alerts.yml");
    let config = json!({
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
        "rule_files": [rules],
        "scrape_configs": [{"job_name": "skyfill", "static_configs": [{"targets": [address.to_string()]}]}],
    });
    // JSON is YAML.
    std::fs::write(folder.path().join("prometheus.yml"), config.to_string()).unwrap();
    let port = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap().local_addr().unwrap();
    let child = Command::new(binary)
        .current_dir(folder.path())
        .arg("--config.file=prometheus.yml")
        .arg("--storage.tsdb.path=data")
        .arg(format!("--web.listen-address={port}"))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let _stopped = Prometheus(child);
    // The fourth scrape comes when the third has been stored and rules have been evaluated on it.
    scraped.wait_for(|count| *count >= 4).await.unwrap();
    let ask = move |path: &'static str| async move {
        let (code, body) = get_async(port, path).await;
        assert_eq!(code, 200, "{path}: {body}");
        serde_json::from_str::<Value>(&body[body.find('{').unwrap()..=body.rfind('}').unwrap()])
            .unwrap()
    };
    let up = ask("/api/v1/query?query=up").await;
    assert_eq!(up["data"]["result"][0]["value"][1], "1", "{up}");
    let names = ask("/api/v1/label/__name__/values").await;
    let names: BTreeSet<&str> =
        names["data"].as_array().unwrap().iter().map(|name| base(name.as_str().unwrap())).collect();
    for metric in METRICS {
        assert!(names.contains(metric.name), "{} was not stored", metric.name);
    }
    let rules = ask("/api/v1/rules").await;
    let groups = rules["data"]["groups"].as_array().unwrap();
    let alerts: Vec<&Value> =
        groups.iter().flat_map(|group| group["rules"].as_array().unwrap()).collect();
    assert!(alerts.len() >= 8, "{rules}");
    for alert in alerts {
        assert_eq!(alert["health"], "ok", "{alert}");
    }
    serving.abort();
}

fn shipped(name: &str) -> String {
    std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(name)).unwrap()
}

/// Names of ours in a text.
fn named(text: &str) -> BTreeSet<&str> {
    let is_inside = |c: char| c.is_ascii_alphanumeric() || c == '_';
    text.split(|c| !is_inside(c)).filter(|word| word.starts_with("skyfill_")).map(base).collect()
}

#[test]
fn alerts_and_dashboard_name_only_what_exists_and_the_dashboard_shows_all_of_it() {
    let known: BTreeSet<&str> = METRICS.iter().map(|metric| metric.name).collect();
    assert_eq!(known, DESIGN.iter().map(|(name, _)| *name).collect());
    let (alerts, dashboard) = (shipped("config/alerts.yml"), shipped("config/dashboard.json"));
    for (file, text) in [("alerts", &alerts), ("dashboard", &dashboard)] {
        let names = named(text);
        let unknown: Vec<_> = names.difference(&known).collect();
        assert!(unknown.is_empty(), "{file}: {unknown:?}");
    }
    assert_eq!(named(&dashboard), known);
    for alert in [
        "ReloadFailed",
        "NoProgress10m",
        "ParkedRising",
        "DiskFullIn4h",
        "ErrorRatio",
        "RestartLoop",
    ] {
        assert!(alerts.contains(&format!("alert: Skyfill{alert}\n")), "{alert}");
    }
}

#[test]
fn the_readme_lists_every_metric_every_alert_and_every_row() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let texts = ["README.md", "README-metrics.md"]
        .map(|name| std::fs::read_to_string(root.join(name)).unwrap_or_default());
    let text = texts.iter().find(|text| text.contains("## Metrics\n")).expect("the section");
    let section = text.split("## Metrics\n").nth(1).unwrap();
    let section = section.split("\n## ").next().unwrap();
    assert_eq!(named(section), METRICS.iter().map(|metric| metric.name).collect());
    let alerts = shipped("config/alerts.yml");
    let rules: BTreeSet<&str> = alerts
        .lines()
        .filter_map(|line| line.split_once("alert: ").map(|(_, name)| name))
        .collect();
    let listed: BTreeSet<&str> = section
        .lines()
        .filter_map(|line| line.strip_prefix("| `Skyfill")?.split_once('`').map(|(name, _)| name))
        .collect();
    assert_eq!(listed, rules.iter().filter_map(|name| name.strip_prefix("Skyfill")).collect());
    let dashboard: Value = serde_json::from_str(&shipped("config/dashboard.json")).unwrap();
    for panel in dashboard["panels"].as_array().unwrap() {
        let title = panel["title"].as_str().unwrap();
        let row = format!("| {title} |");
        assert_eq!(section.contains(&row), panel["type"] == "row", "{title}");
    }
}

#[test]
fn the_dashboard_asks_by_its_variables_only() {
    let dashboard: Value = serde_json::from_str(&shipped("config/dashboard.json")).unwrap();
    let variables: Vec<&str> = dashboard["templating"]["list"]
        .as_array()
        .unwrap()
        .iter()
        .map(|variable| variable["name"].as_str().unwrap())
        .collect();
    assert_eq!(variables, ["datasource", "job", "instance"]);
    assert_eq!((&dashboard["id"], &dashboard["uid"]), (&Value::Null, &Value::Null));
    let panels = dashboard["panels"].as_array().unwrap();
    let mut ids = BTreeSet::new();
    for panel in panels {
        assert!(ids.insert(panel["id"].as_u64().unwrap()), "{panel}");
        assert!(!panel["title"].as_str().unwrap().is_empty());
        if panel["type"] == "row" {
            continue;
        }
        assert_eq!(panel["datasource"]["uid"], "${datasource}", "{panel}");
        assert!(!panel["description"].as_str().unwrap().is_empty(), "{panel}");
        let targets = panel["targets"].as_array().unwrap();
        assert!(!targets.is_empty(), "{panel}");
        for target in targets {
            let expr = target["expr"].as_str().unwrap();
            let filtered = expr.matches("job=~\"$job\", instance=~\"$instance\"").count();
            assert_eq!(filtered, expr.matches("skyfill_").count(), "{expr}");
        }
    }
}

#[test]
fn promtool_accepts_the_alerts_and_their_unit_tests() {
    let Some(promtool) = tool("promtool") else { return };
    let config = Path::new(env!("CARGO_MANIFEST_DIR")).join("config");
    for arguments in [["check", "rules", "alerts.yml"], ["test", "rules", "alerts.test.yml"]] {
        let done = Command::new(&promtool).current_dir(&config).args(arguments).output().unwrap();
        let said = format!(
            "{}{}",
            String::from_utf8_lossy(&done.stdout),
            String::from_utf8_lossy(&done.stderr)
        );
        assert!(done.status.success(), "{arguments:?}: {said}");
    }
    // Every alert has a unit test.
    let (alerts, tests) = (shipped("config/alerts.yml"), shipped("config/alerts.test.yml"));
    for line in alerts.lines() {
        if let Some((_, alert)) = line.split_once("alert: ") {
            assert!(tests.contains(&format!("alertname: {alert}\n")), "{alert} is not tested");
        }
    }
}
