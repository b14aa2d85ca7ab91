//! One run of the matrix: a network in which every case has an account and a host of its own, the real binary, what became of
//! each account, and a second run after everything has healed.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::support::faults::{Fault, Place, Target, Then};
use crate::support::judge::judge;
use crate::support::network::Network;
use crate::support::oracle::Options;
use crate::support::pds::Manners;
use crate::support::proc::{Finished, Running, Signal, Skyfill};
use crate::support::world::{Records, Shape, World, WorldAccount};

/// Anonymous memory that a run may have: `limits.memory` and the base.
const MEMORY_MAX: u64 = (256 + 64) << 20;

/// Whom a case's faults meet.
pub struct Victim {
    pub account: WorldAccount,
    /// Its own host, `http://127.0.0.1:PORT`.
    pub host: String,
    /// Another host, that is well.
    pub other_host: String,
}

impl Victim {
    /// Where its repository is asked for.
    pub fn repo_url(&self) -> String {
        format!("{}/xrpc/com.atproto.sync.getRepo?did={}", self.host, self.account.did)
    }
}

type Script = Box<dyn Fn(&Victim) -> Vec<Fault> + Send + Sync>;

/// One line of the matrix; it is acted out against a daemon, whose metrics are read at the end.
pub struct Case {
    pub kind: String,
    /// Where in the exchange it happens.
    pub place: &'static str,
    /// Which requests it happens to.
    pub at: Place,
    pub script: Script,
    pub then: Then,
    /// `done, N charged` or `reason, last error, N charged`.
    pub expected: &'static str,
    /// Requests for the repository at its host, if the number matters.
    pub requests: Option<usize>,
    /// What happens to its host's other methods.
    pub server: Option<Fault>,
    /// The `error` label under which its failures are counted, if there are any.
    pub error: Option<&'static str>,
}

impl Case {
    /// Its failures are counted as this.
    pub fn meets(self, error: &'static str) -> Self {
        Self { error: Some(error), ..self }
    }

    /// Series that it must have moved.
    fn series(&self) -> Vec<String> {
        let mut series = Vec::new();
        let mut words = self.expected.split(", ");
        let (reason, error) = (words.next().unwrap(), words.next().unwrap());
        let is_parked = reason != "done";
        if is_parked {
            series.push(format!("skyfill_parked{{reason=\"{reason}\"}}"));
        }
        // What ends at its first failure was never tried again.
        let is_tried_again = !is_parked || reason == "host_unavailable" || !self.is_single();
        let own = if is_parked && error != "-" { Some(error) } else { self.error };
        if let Some(error) = own.filter(|_| is_tried_again) {
            series.push(format!("skyfill_retries_total{{error=\"{error}\"}}"));
        }
        if series.is_empty() {
            series.push("skyfill_requests_total{service=\"pds\",outcome=\"ok\"}".to_owned());
        }
        series
    }

    /// Whether its first failure is its last.
    fn is_single(&self) -> bool {
        let is_slow = self.expected == "attempts_exhausted, too_slow, 1 charged";
        self.expected.contains("identity_invalid") || is_slow
    }
}

/// What became of a case.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    pub kind: String,
    pub place: String,
    pub expected: String,
    pub found: String,
    pub bound_seconds: u64,
    /// Series of the daemon that it moved; empty where no daemon was asked.
    pub metric: String,
}

impl Line {
    pub fn new(kind: &str, place: &str, expected: &str, found: String, bound: u64) -> Self {
        let (kind, place) = (kind.to_owned(), place.to_owned());
        let (expected, metric) = (expected.to_owned(), String::new());
        Self { kind, place, expected, found, bound_seconds: bound, metric }
    }
}

/// A network with a data directory.
pub struct Bench {
    pub network: Network,
    folder: tempfile::TempDir,
    /// `key=value`, as `--set` takes them.
    pub settings: Vec<String>,
}

impl Bench {
    pub fn new(shape: &Shape, settings: &[&str]) -> Self {
        let fixed = [
            "fetch.host_requests_per_second=1000",
            "identity.requests_per_second=1000",
            "limits.disk_free=0B",
            "retry.base=10ms",
            "retry.max=50ms",
        ];
        let settings = fixed.iter().chain(settings).map(|set| (*set).to_owned()).collect();
        let network = Network::start(World::generate(shape));
        Self { network, folder: tempfile::tempdir().unwrap(), settings }
    }

    pub fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    pub fn did(&self, index: usize) -> String {
        self.network.world().did(index).to_owned()
    }

    fn skyfill() -> Skyfill {
        Skyfill::new(env!("CARGO_BIN_EXE_skyfill"))
    }

    /// Starts `skyfill backfill` over every account of the world and `more` DIDs.
    pub fn start(&self, more: &[&str], flags: &[&str]) -> Running {
        let dids = self.network.world().dids();
        let dids: Vec<&str> = dids.iter().map(String::as_str).chain(more.iter().copied()).collect();
        let mut arguments = ["backfill", "--json", "--quiet"].map(str::to_owned).to_vec();
        for set in &self.settings {
            arguments.extend(["--set".to_owned(), set.clone()]);
        }
        let data = self.data().to_string_lossy().into_owned();
        arguments.extend(["--data-dir".to_owned(), data, "--dids".to_owned(), dids.join(",")]);
        arguments.extend(flags.iter().map(|flag| (*flag).to_owned()));
        arguments.extend(self.network.flags());
        Self::skyfill().spawn(&arguments)
    }

    pub fn run(&self, more: &[&str], bound_seconds: u64) -> Finished {
        let running = self.start(more, &[]);
        let Some(finished) = running.wait(Duration::from_secs(bound_seconds)) else {
            let left = self.left();
            panic!("still running after {bound_seconds} s: {left:?}\n{}", running.stderr());
        };
        assert!(finished.usage.anonymous_peak_bytes <= MEMORY_MAX, "{:?}", finished.usage);
        finished
    }

    /// Lets a daemon work until every account is decided; gives its series and what they say.
    pub fn work_as_daemon(&self, bound_seconds: u64) -> HashMap<String, f64> {
        let dids = self.network.world().dids();
        let data = self.data().to_string_lossy().into_owned();
        let mut arguments = ["run", "--data-dir", &data].map(str::to_owned).to_vec();
        let own = [
            "metrics.listen=127.0.0.1:0".to_owned(),
            "network.allow=[\"127.0.0.0/8\"]".to_owned(),
            format!("identity.plc_url={}", self.network.plc.url()),
            format!("source.dids={dids:?}"),
        ];
        for set in self.settings.iter().chain(&own) {
            arguments.extend(["--set".to_owned(), set.clone()]);
        }
        let daemon = Self::skyfill().spawn(&arguments);
        let line = "serving metrics listen=";
        assert!(daemon.wait_for(line, Duration::from_secs(30)), "{}", daemon.stderr());
        let stderr = daemon.stderr();
        let (_, rest) = stderr.split_once(line).unwrap();
        let address = rest.split_whitespace().next().unwrap().to_owned();
        let until = Instant::now() + Duration::from_secs(bound_seconds);
        let series = loop {
            let series = scrape(&address);
            // Before the data directory is open there are none.
            let accounts = |state: &str| {
                let name = format!("skyfill_accounts{{state=\"{state}\"}}");
                series.get(&name).map_or(0, |count| *count as usize)
            };
            if accounts("done") + accounts("parked") == dids.len() {
                break series;
            }
            let is_late = Instant::now() > until;
            assert!(!is_late, "still at work after {bound_seconds} s: {:?}", self.left());
            std::thread::park_timeout(Duration::from_millis(100));
        };
        assert!(daemon.signal(Signal::TERM));
        let finished = daemon.finish(Duration::from_secs(30)).expect_code(0);
        assert!(finished.usage.anonymous_peak_bytes <= MEMORY_MAX, "{:?}", finished.usage);
        series
    }

    /// Evidence is kept of everything that is parked, short and clean, and `skyfill status DID` shows it.
    fn assert_evidence(&self, lines: &[Line]) {
        let ledger = rusqlite::Connection::open(self.data().join("state.db")).unwrap();
        let select = "SELECT json_extract(rules, '$.detail') FROM accounts WHERE did = ?1";
        let data = self.data().to_string_lossy().into_owned();
        let mut shown = 0;
        for (index, line) in
            lines.iter().enumerate().filter(|(_, it)| !it.found.starts_with("done"))
        {
            let did = self.did(index);
            let detail: String = ledger.query_row(select, [&did], |row| row.get(0)).unwrap();
            let is_clean = !detail.chars().any(char::is_control);
            assert!(
                is_clean && (1..=200).contains(&detail.chars().count()),
                "{}: {detail}",
                line.kind
            );
            // A process each: some are enough.
            if index.is_multiple_of(9) {
                let status = ["status", &did, "--json", "--data-dir", &data];
                let said =
                    Self::skyfill().run(&status, Duration::from_secs(30)).expect_code(0).json();
                assert_eq!(said["detail"], detail.as_str(), "{}", line.kind);
                shown += 1;
            }
        }
        assert!(
            shown > 0 || lines.iter().all(|line| line.found.starts_with("done")) || lines.len() < 9
        );
    }

    /// Accounts that are not decided yet.
    fn left(&self) -> Vec<(Option<usize>, String)> {
        let is_left = |(_, end): &(String, String)| end.starts_with("waits");
        let number = |did: &str| self.network.world().index_of(did);
        let left = self.ends().into_iter().filter(is_left);
        left.map(|(did, end)| (number(&did), end)).collect()
    }

    /// `skyfill retry --all`; gives its exit code.
    pub fn retry(&self) -> Option<i32> {
        let data = self.data().to_string_lossy().into_owned();
        let retry = ["retry", "--all", "--data-dir", &data];
        Self::skyfill().run(&retry, Duration::from_secs(30)).code
    }

    /// Puts all that is parked back, runs again with every fault healed, and judges every row.
    pub fn heal_and_finish(&self, parked_for_good: u64) {
        self.network.faults().heal();
        assert_eq!(self.retry(), Some(0));
        let code = if parked_for_good == 0 { 0 } else { 3 };
        let summary = self.run(&[], 60).expect_code(code).json();
        let parked = summary.pointer("/accounts/parked").and_then(Value::as_u64);
        assert_eq!(parked, Some(parked_for_good), "{summary}");
        judge(&self.data(), self.network.expected(), &Options::default()).assert_clean();
    }

    /// What became of every account, by DID.
    pub fn ends(&self) -> HashMap<String, String> {
        ends(&self.data())
    }
}

/// Every series of a daemon's endpoint.
fn scrape(address: &str) -> HashMap<String, f64> {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    write!(stream, "GET /metrics HTTP/1.1\r\nhost: x\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let lines = answer.lines().filter(|line| line.starts_with("skyfill_"));
    let series = lines.filter_map(|line| line.rsplit_once(' '));
    series.map(|(series, value)| (series.to_owned(), value.parse().unwrap())).collect()
}

/// Every case has moved its series, each of an account parked exactly one, and no other error was counted.
fn assert_counted(cases: &[Case], series: &HashMap<String, f64>) {
    let mut wanted: HashMap<String, f64> = HashMap::new();
    for name in cases.iter().flat_map(Case::series) {
        *wanted.entry(name).or_default() += 1.0;
    }
    let is_open =
        |name: &str| name.starts_with("skyfill_parked") || name.starts_with("skyfill_retries");
    for (name, value) in series.iter().filter(|(name, _)| is_open(name)) {
        let least = wanted.get(name).copied().unwrap_or(0.0);
        let is_exact = name.starts_with("skyfill_parked") || least == 0.0;
        // An answer that is looked at twice, or a redirect too many, has no error of its own; and on a busy machine a good
        // request may come to its time limit, which is tried again uncharged.
        let is_free = name.contains("\"other\"") || name.contains("\"timeout\"");
        assert!(
            if is_exact && !is_free { *value == least } else { *value >= least },
            "{name} is {value}, {least} cases move it"
        );
    }
    for (name, least) in wanted {
        let value = series.get(&name).copied().unwrap_or(0.0);
        assert!(value >= least, "{name} is {value}, {least} cases move it");
    }
}

/// What the ledger says of each account, in the matrix's words.
pub fn ends(data: &Path) -> HashMap<String, String> {
    let ledger = rusqlite::Connection::open(data.join("state.db")).unwrap();
    let select = "SELECT did, state, reason, last_error, rules FROM accounts";
    let mut statement = ledger.prepare(select).unwrap();
    let rows = statement.query_map([], |row| {
        let (state, reason): (i64, Option<String>) = (row.get(1)?, row.get(2)?);
        let (error, rules): (Option<String>, Option<String>) = (row.get(3)?, row.get(4)?);
        let rules: Value = rules.map_or(Value::Null, |text| text.parse().unwrap());
        let attempts = rules["attempts"].as_u64().unwrap_or(0);
        let error = error.as_deref().unwrap_or("-");
        let end = match (state, reason) {
            (5, _) => format!("done, {attempts} charged"),
            (_, Some(reason)) => format!("{reason}, {error}, {attempts} charged"),
            _ => format!("waits, {error}, {attempts} charged"),
        };
        Ok((row.get(0)?, end))
    });
    rows.unwrap().map(Result::unwrap).collect()
}

/// Runs `cases` at once, each on a host of its own, beside `healthy` accounts on theirs.
pub fn run_cases(
    seed: u64,
    cases: Vec<Case>,
    healthy: usize,
    settings: &[&str],
    bound_seconds: u64,
) -> Vec<Line> {
    let count = cases.len() + healthy;
    let records = Records::Fixed(60);
    let shape = Shape { seed, accounts: count, hosts: count, records, odd: false };
    let bench = Bench::new(&shape, settings);
    let network = &bench.network;
    let mut names = Vec::new();
    for (index, case) in cases.iter().enumerate() {
        println!("case {index}: {}, {}", case.kind, case.place);
        let victim = Victim {
            account: network.world().account(index),
            host: network.hosts[index].url(),
            other_host: network.hosts[count - 1].url(),
        };
        let (target, faults) = (Target::Did(victim.account.did.clone()), (case.script)(&victim));
        names.extend(faults.iter().map(Fault::name));
        network.faults().script(case.at, target, faults, case.then);
        if let Some(fault) = &case.server {
            let target = Target::Host(index);
            network.faults().script(Place::Status, target, [fault.clone()], Then::Repeat);
        }
    }
    // In pieces, so that the headers have been read before a reset throws away what was not.
    let manners =
        Manners { chunk_bytes: 4 << 10, bytes_per_second: Some(100 << 10), ..Manners::default() };
    network.hosts.iter().for_each(|host| host.set_manners(manners.clone()));
    let begun = Instant::now();
    let series = bench.work_as_daemon(bound_seconds);
    println!("{} cases in {:.1} s", cases.len(), begun.elapsed().as_secs_f64());
    assert_eq!(network.faults().waiting(), Vec::<String>::new(), "faults that never fired");
    network.faults().assert_fired(&names);
    let ends = bench.ends();
    let found = |index: usize| ends[&bench.did(index)].clone();
    for index in cases.len()..count {
        assert_eq!(found(index), "done, 0 charged", "a healthy account beside the cases");
    }
    let mut lines = Vec::new();
    for (index, case) in cases.iter().enumerate() {
        let did = bench.did(index);
        let asked = match case.at {
            Place::Directory => network.plc.log().count("", &did),
            _ => network.repo_requests(&did),
        };
        assert!(asked > 0, "{}: its fault was never met", case.kind);
        if let Some(requests) = case.requests {
            assert_eq!(network.repo_requests(&did), requests, "{}: requests", case.kind);
        }
        let line = Line::new(&case.kind, case.place, case.expected, found(index), bound_seconds);
        lines.push(Line { metric: case.series().join(" "), ..line });
    }
    bench.assert_evidence(&lines);
    if lines.iter().all(|line| line.found == line.expected) {
        assert_counted(&cases, &series);
    }
    bench.heal_and_finish(0);
    lines
}
