//! The fault matrix: every kind of upstream fault that the generated network can act out, with the real binary, and how each
//! must end. Whatever was parked is put back once the faults have healed, and must then succeed.
//!
//! The cases are in `faults/cases.rs`; what needs more than a script is here. The table is written to
//! `target/fault-matrix.md`; `tests/fault-matrix.md` is the copy that is kept, and must say the same.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::disallowed_methods,
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap
)]

mod support;

#[path = "faults/bench.rs"]
mod bench;
#[path = "faults/cases.rs"]
mod cases;
#[path = "faults/names.rs"]
mod names;
#[path = "faults/records.rs"]
mod records;
#[path = "faults/tls.rs"]
mod tls;

use std::collections::HashSet;
use std::fmt::Write as _;
use std::path::Path;
use std::time::Duration;

use bench::{Bench, Line, run_cases};
use support::faults::{At, Fault, Place, Target, Then, Wait};
use support::network::Standing;
use support::pds::{GET_REPO, Manners};
use support::proc::Signal;
use support::server::Entry;
use support::world::{Records, Shape};

/// Settings under which everything but circuits and minutes is over within seconds.
const QUICK: &[&str] = &[
    "fetch.idle_timeout=1s",
    "fetch.first_byte_timeout=2s",
    "fetch.total_timeout=4s",
    "limits.repo_bytes=1MiB",
];

const SLOW: &[&str] = &[
    "fetch.idle_timeout=5s",
    "fetch.first_byte_timeout=2s",
    "retry.attempts=1",
    "retry.host_patience=10s",
];

/// A first byte may take longer than a handshake.
const TLS: &[&str] =
    &["fetch.idle_timeout=5s", "fetch.first_byte_timeout=8s", "retry.host_patience=10s"];

/// Seconds within which a run must end on a machine that has other things to do.
const QUICK_BOUND: u64 = 60;
const SLOW_BOUND: u64 = 90;

const PATIENCE: Duration = Duration::from_secs(30);

fn shape(seed: u64, accounts: usize, hosts: usize) -> Shape {
    Shape { seed, accounts, hosts, records: Records::Fixed(60), odd: false }
}

type Part = (&'static str, fn() -> Vec<Line>);

/// The matrix's parts; each is a run or a few, and all of them go on at once.
const PARTS: &[Part] = &[
    ("Transfers and answers", || run_cases(71, cases::quick(), 4, QUICK, QUICK_BOUND)),
    ("Identities", || run_cases(72, cases::identities(), 4, QUICK, QUICK_BOUND)),
    ("A directory in trouble", directory_in_trouble),
    ("Circuits, refusals of a minute, slowness", || {
        run_cases(73, cases::slow(), 2, SLOW, SLOW_BOUND)
    }),
    ("Lists", lists),
    ("A changing world", changing_world),
    ("An older revision", older_revision),
    ("Company", company),
    ("A dead host, a dead directory", dead),
    ("Names", || names::run(&Bench::new(&shape(99, 4, 4), SLOW), SLOW_BOUND)),
    ("A wait of years", a_wait_of_years),
    ("Records and revisions", || records::run(QUICK, QUICK_BOUND)),
    ("TLS and HTTP/2", || {
        tls::run(&Bench::new(&shape(88, tls::CASES, tls::CASES), TLS), SLOW_BOUND)
    }),
];

#[test]
fn every_fault_ends_as_the_matrix_says_and_heals() {
    let begun = std::time::Instant::now();
    let lines: Vec<(&str, Vec<Line>)> = std::thread::scope(|scope| {
        let parts: Vec<_> = PARTS.iter().map(|(name, part)| (*name, scope.spawn(part))).collect();
        let end = |(name, part): (&'static str, std::thread::ScopedJoinHandle<'_, Vec<Line>>)| {
            (name, part.join().unwrap_or_else(|_| panic!("{name}: see above")))
        };
        parts.into_iter().map(end).collect()
    });
    let table = table(&lines);
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let written = root.join("target/fault-matrix.md");
    std::fs::create_dir_all(written.parent().unwrap()).unwrap();
    std::fs::write(&written, &table).unwrap();
    let all: Vec<&Line> = lines.iter().flat_map(|(_, lines)| lines).collect();
    println!("{} cases in {:.1} s", all.len(), begun.elapsed().as_secs_f64());
    let wrong: Vec<&&Line> = all.iter().filter(|line| line.found != line.expected).collect();
    assert!(wrong.is_empty(), "{} of {} cases: {wrong:#?}", wrong.len(), all.len());
    assert!(all.len() >= 280, "{} cases", all.len());
    let kept = std::fs::read_to_string(root.join("tests/fault-matrix.md")).unwrap_or_default();
    assert!(kept == table, "copy target/fault-matrix.md to tests/fault-matrix.md");
}

fn table(parts: &[(&str, Vec<Line>)]) -> String {
    let count: usize = parts.iter().map(|(_, lines)| lines.len()).sum();
    let mut text = format!(
        "# The fault matrix\n\nWritten by `tests/faults.rs`: each of {count} cases was acted out against the real \
         binary and seen to happen; no run had more\nanonymous memory than `limits.memory` and 64 MiB; healthy \
         accounts beside them were exported meanwhile; after it had healed,\nits own account was exported. A series \
         was read at the daemon's endpoint; `-`: that run was no daemon.\n"
    );
    for (name, lines) in parts {
        let head =
            "| kind | place | expected | found | series | within |\n|---|---|---|---|---|---|";
        write!(text, "\n## {name}\n\n{head}\n").unwrap();
        for line in lines {
            let Line { kind, place, expected, found, bound_seconds, metric } = line;
            let metric = if metric.is_empty() { "-".to_owned() } else { format!("`{metric}`") };
            writeln!(
                text,
                "| {kind} | {place} | {expected} | {found} | {metric} | {bound_seconds} s |"
            )
            .unwrap();
        }
    }
    text
}

/// Two faults to a run: a third in a row would open the directory's circuit.
fn directory_in_trouble() -> Vec<Line> {
    let runs = cases::directory_troubles().into_iter().enumerate();
    runs.flat_map(|(at, cases)| run_cases(80 + at as u64, cases, 3, QUICK, QUICK_BOUND)).collect()
}

/// What is wrong with a DID is known without asking anybody.
fn lists() -> Vec<Line> {
    let bench = Bench::new(&shape(90, 2, 1), QUICK);
    let (upper, web) = (bench.did(0).to_uppercase(), "did:web:EXAMPLE.com:path");
    let strange = [
        (upper.as_str(), "a DID in capitals"),
        ("did:plc:short", "a short DID"),
        (web, "did:web with a path"),
        ("did:web:127.0.0.1", "did:web with an address"),
        ("did:web:example.com%3A8443", "did:web with a port"),
        ("did:web:localhost%3A+80", "did:web:localhost with a strange port"),
        ("did:key:zQ3sh", "another method"),
    ];
    let mut given: Vec<&str> = strange.iter().map(|(did, _)| *did).collect();
    let twice = bench.did(1);
    given.extend([twice.as_str(), twice.as_str()]);
    let summary = bench.run(&given, QUICK_BOUND).expect_code(3).json();
    assert_eq!(summary["accounts"]["done"], 2);
    assert_eq!(bench.network.repo_requests(&twice), 1, "listed three times, asked for once");
    let ends = bench.ends();
    let end = |did: &str| ends.get(did).cloned().unwrap_or_else(|| "not there".to_owned());
    let expected = "did_invalid, -, 0 charged";
    let mut lines: Vec<Line> = strange
        .iter()
        .map(|(did, kind)| Line::new(kind, "list", expected, end(did), QUICK_BOUND))
        .collect();
    lines.push(Line::new(
        "the same DID three times",
        "list",
        "done, 0 charged",
        end(&twice),
        QUICK_BOUND,
    ));
    bench.heal_and_finish(0);
    lines
}

const BETWEEN: &str = "its key is replaced between resolve and fetch";

/// What happens to accounts while they are being fetched: each is held in the middle of its body until it has happened.
fn changing_world() -> Vec<Line> {
    type Change = fn(&Bench, usize);
    let changes: &[(&str, &str, Change)] = &[
        (BETWEEN, "done, 0 charged", |bench, index| bench.network.rotate_key(index)),
        ("the account moves to another host", "done, 1 charged", |bench, index| {
            bench.network.move_account(index, bench.network.hosts.len() - 1);
        }),
        ("its key is replaced", "done, 1 charged", |bench, index| bench.network.rotate_key(index)),
        ("its key is replaced and it moves", "done, 1 charged", |bench, index| {
            bench.network.rotate_key(index);
            bench.network.move_account(index, bench.network.hosts.len() - 1);
        }),
        ("its repository changes", "done, 1 charged", |bench, index| {
            bench.network.advance(index);
        }),
        ("it is deleted", "repo_not_found, -, 1 charged", |bench, index| {
            bench.network.set_standing(index, Standing::Deleted);
        }),
        ("it is taken down", "repo_taken_down, -, 1 charged", |bench, index| {
            bench.network.set_standing(index, Standing::TakenDown);
        }),
        ("it is deleted and tombstoned", "did_tombstoned, -, 1 charged", |bench, index| {
            bench.network.set_standing(index, Standing::Tombstoned);
        }),
    ];
    let count = changes.len() + 1;
    let bench = Bench::new(&shape(91, count, count), QUICK);
    // Its answer is made from what is true a second after the request.
    let slow = Fault::SlowHeaders(Duration::from_millis(1_200));
    bench.network.faults().once(&bench.did(0), slow);
    for index in 1..changes.len() {
        bench.network.faults().once(&bench.did(index), Fault::Stall(At::Middle));
    }
    let running = bench.start(&[], &[]);
    for (index, (name, _, change)) in changes.iter().enumerate() {
        let log = bench.network.hosts[index].log();
        // What is sent is made before its transfer begins, and the slow answer after its request has come.
        let is_met = |e: &Entry| e.method == GET_REPO && (index == 0 || e.is_open);
        let is_asked = log.wait(PATIENCE, |entries| entries.iter().any(is_met));
        assert!(is_asked, "{name}: never asked for");
        change(&bench, index);
    }
    running.finish(Duration::from_secs(QUICK_BOUND)).expect_code(3);
    assert_eq!(bench.network.faults().fired("stall"), changes.len() as u64 - 1);
    let fetched = bench.network.repo_requests(&bench.did(0));
    assert_eq!(fetched, 2, "{BETWEEN}: fetched again with the new key");
    let ends = bench.ends();
    let line = |(index, (kind, expected, _)): (usize, &(&str, &str, Change))| {
        let place = if index == 0 { "before headers" } else { "mid body" };
        Line::new(kind, place, expected, ends[&bench.did(index)].clone(), QUICK_BOUND)
    };
    let lines = changes.iter().enumerate().map(line).collect();
    for index in 0..changes.len() {
        bench.network.set_standing(index, Standing::Active);
    }
    bench.heal_and_finish(0);
    lines
}

/// A host that serves less than it did.
fn older_revision() -> Vec<Line> {
    let mut bench = Bench::new(&shape(92, 3, 3), QUICK);
    bench.network.set_revision(0, 2);
    bench.settings.push("records.types=[\"post\"]".to_owned());
    bench.run(&[], QUICK_BOUND).expect_code(0);
    bench.network.set_revision(0, 1);
    *bench.settings.last_mut().unwrap() = "records.types=[\"post\", \"like\"]".to_owned();
    let again = bench.start(&[], &["--refilter"]);
    again.finish(Duration::from_secs(QUICK_BOUND)).expect_code(3);
    let found = bench.ends()[&bench.did(0)].clone();
    assert_eq!(bench.network.repo_requests(&bench.did(0)), 1 + 5);
    bench.network.set_revision(0, 2);
    let retry = bench.retry();
    assert_eq!(retry, Some(0));
    bench.run(&[], QUICK_BOUND).expect_code(0);
    let expected = "repo_stale, -, 5 charged";
    vec![Line::new(
        "a revision older than the one held",
        "whole body",
        expected,
        found,
        QUICK_BOUND,
    )]
}

/// One account that fails on a host that works for the others.
fn company() -> Vec<Line> {
    let alone = |seed, fault: Fault, settings: &[&str]| {
        let bench = Bench::new(&shape(seed, 30, 1), settings);
        let manners = Manners { bytes_per_second: Some(8 << 10), ..Manners::default() };
        bench.network.hosts[0].set_manners(Manners { chunk_bytes: 2 << 10, ..manners });
        let did = bench.did(3);
        bench.network.faults().always(&did, fault);
        let summary = bench.run(&[], SLOW_BOUND).expect_code(3).json();
        assert_eq!(summary["accounts"]["done"], 29, "the others finish");
        let entries = bench.network.hosts[0].log().entries();
        let asked: Vec<&str> =
            entries.iter().filter(|e| e.method == GET_REPO).map(|e| e.did.as_str()).collect();
        let again = asked.iter().enumerate().filter(|(_, it)| **it == did).nth(1).unwrap().0;
        let others: HashSet<&str> = asked[..again].iter().copied().collect();
        assert_eq!(others.len(), 30, "each has had its turn before it has its second");
        let found = bench.ends()[&did].clone();
        bench.network.hosts[0].set_manners(Manners::default());
        bench.heal_and_finish(0);
        found
    };
    std::thread::scope(|scope| {
        let fails = scope.spawn(|| alone(93, Fault::status(500), &["retry.attempts=2"]));
        let broken = scope.spawn(|| {
            alone(100, Fault::Reset(At::LastByte), &["retry.attempts=2", "fetch.idle_timeout=5s"])
        });
        let refused = scope.spawn(|| {
            let patience = ["retry.host_patience=8s"];
            alone(94, Fault::RateLimited(Wait::Seconds(0)), &patience)
        });
        let line =
            |kind, expected, found| Line::new(kind, "before headers", expected, found, SLOW_BOUND);
        vec![
            line(
                "500 for one of thirty, always",
                "attempts_exhausted, http_5xx, 2 charged",
                fails.join().unwrap(),
            ),
            line(
                "a reset at the last byte for one of thirty, always",
                "attempts_exhausted, incomplete, 2 charged",
                broken.join().unwrap(),
            ),
            line(
                "429 for one of thirty, always",
                "attempts_exhausted, rate_limited, 0 charged",
                refused.join().unwrap(),
            ),
        ]
    })
}

/// Nobody answers any more.
fn dead() -> Vec<Line> {
    let settings = ["retry.host_patience=10s", "fetch.first_byte_timeout=2s"];
    let host = || {
        let bench = Bench::new(&shape(95, 12, 2), &settings);
        bench.network.hosts[0].server().refuse(true);
        bench.run(&[], SLOW_BOUND).expect_code(3);
        let ends = bench.ends();
        let world = bench.network.world();
        let (there, elsewhere): (Vec<usize>, Vec<usize>) =
            (0..world.len()).partition(|index| world.host(*index) == 0);
        assert!(elsewhere.iter().all(|index| ends[world.did(*index)] == "done, 0 charged"));
        let mut found: Vec<String> =
            there.iter().map(|index| ends[world.did(*index)].clone()).collect();
        assert!(found.len() > 1);
        found.dedup();
        bench.network.hosts[0].server().refuse(false);
        bench.heal_and_finish(0);
        found.join(" / ")
    };
    let directory = |fault: Option<Fault>, seed| {
        let bench = Bench::new(&shape(seed, 12, 2), &settings);
        match fault {
            None => bench.network.plc.server().refuse(true),
            Some(fault) => {
                bench.network.faults().script(Place::Directory, Target::Any, [fault], Then::Repeat);
            }
        }
        bench.run(&[], SLOW_BOUND).expect_code(3);
        let mut found: Vec<String> = bench.ends().into_values().collect();
        found.dedup();
        bench.network.plc.server().refuse(false);
        bench.heal_and_finish(0);
        found.join(" / ")
    };
    std::thread::scope(|scope| {
        let host = scope.spawn(host);
        let refusing = scope.spawn(|| directory(None, 96));
        let failing = scope.spawn(|| directory(Some(Fault::status(503)), 97));
        let line =
            |kind, place, expected, found| Line::new(kind, place, expected, found, SLOW_BOUND);
        vec![
            line(
                "connections refused, several accounts",
                "connect",
                "host_unavailable, connect, 0 charged",
                host.join().unwrap(),
            ),
            line(
                "connections refused",
                "directory",
                "directory_unavailable, connect, 0 charged",
                refusing.join().unwrap(),
            ),
            line(
                "status 503 for everything",
                "directory",
                "directory_unavailable, http_5xx, 0 charged",
                failing.join().unwrap(),
            ),
        ]
    })
}

/// A refusal that asks for ten years is waited for as long as the bound says, nothing is charged, and a stop ends the wait.
fn a_wait_of_years() -> Vec<Line> {
    let bench = Bench::new(&shape(98, 6, 6), QUICK);
    let waits = [
        ("429 with ten years in seconds", Wait::Text("315360000".to_owned())),
        ("429 with a date in ten years", Wait::Date(315_360_000)),
        ("429 with a reset in ten years", Wait::Reset(315_360_000)),
    ];
    for (index, (_, wait)) in waits.iter().enumerate() {
        bench.network.faults().once(&bench.did(index), Fault::RateLimited(wait.clone()));
    }
    let running = bench.start(&[], &[]);
    for host in &bench.network.hosts {
        // An answer of each, so that only the waits are left.
        assert!(host.log().wait(PATIENCE, |entries| entries.iter().any(|e| e.status > 0)));
    }
    assert!(running.signal(Signal::TERM));
    running.finish(PATIENCE).expect_code(130);
    let ends = bench.ends();
    let line = |(index, (kind, _)): (usize, &(&str, Wait))| {
        let expected = "waits, rate_limited, 0 charged";
        Line::new(kind, "before headers", expected, ends[&bench.did(index)].clone(), QUICK_BOUND)
    };
    let lines = waits.iter().enumerate().map(line).collect();
    for index in 0..waits.len() {
        assert_eq!(bench.network.repo_requests(&bench.did(index)), 1, "asked again while it waits");
    }
    bench.heal_and_finish(0);
    lines
}
