//! `skyfill identities` and mirrors of the directory: accounts whose directory need not be asked, or does not answer. The real
//! binary, a generated network, and the oracle.
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

use std::io::Write;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::{Value, json};
use support::faults::{Fault, Place, Target, Then};
use support::forge::{Key, did_from_seed};
use support::judge::judge;
use support::network::{Network, Standing};
use support::oracle::Options;
use support::proc::{Finished, Skyfill};
use support::server::{self, Server};
use support::world::{Records, Shape};

const PATIENCE: Duration = Duration::from_secs(120);

/// Memory of a command that reads an export, whatever its length.
const MEMORY_MAX: u64 = 96 << 20;

struct Bench {
    network: Network,
    folder: tempfile::TempDir,
}

impl Bench {
    fn new(seed: u64, accounts: usize) -> Self {
        let shape = Shape { seed, accounts, hosts: 4, records: Records::Fixed(20), odd: false };
        Self { network: Network::generate(&shape), folder: tempfile::tempdir().unwrap() }
    }

    fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    fn did(&self, index: usize) -> String {
        self.network.world().did(index).to_owned()
    }

    /// A file of this name in the bench's folder.
    fn file(&self, name: &str, bytes: &[u8]) -> String {
        let path = self.folder.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        path.to_str().unwrap().to_owned()
    }

    fn command(&self, arguments: &[&str]) -> Finished {
        let data = self.data();
        let sets = [
            "fetch.host_requests_per_second=1000",
            "identity.requests_per_second=1000",
            "limits.disk_free=0B",
            "retry.base=10ms",
            "retry.max=50ms",
        ];
        let mut all: Vec<String> = arguments.iter().map(|text| (*text).to_owned()).collect();
        all.extend(sets.iter().flat_map(|set| ["--set".to_owned(), (*set).to_owned()]));
        all.extend(["--data-dir".to_owned(), data.to_str().unwrap().to_owned()]);
        // The other commands ask nobody.
        if matches!(arguments[0], "backfill" | "identities") {
            all.extend(self.network.flags());
        }
        Skyfill::new(env!("CARGO_BIN_EXE_skyfill")).run(&all, PATIENCE)
    }

    fn list(&self) -> String {
        self.file("dids.txt", self.network.world().dids().join("\n").as_bytes())
    }

    fn identities(&self, from: &str, code: i32) -> Finished {
        let list = self.list();
        let finished =
            self.command(&["identities", "--from", from, "--dids-file", &list, "--json"]);
        finished.expect_code(code)
    }

    fn backfill(&self, more: &[&str], code: i32) -> Value {
        let list = self.list();
        let mut arguments = vec!["backfill", "--dids-file", &list, "--json", "--quiet"];
        arguments.extend(more);
        self.command(&arguments).expect_code(code).json()
    }

    fn assert_exported(&self) {
        judge(&self.data(), self.network.expected(), &Options::default()).assert_clean();
    }

    /// The account's newest operation, as of now.
    fn operation(&self, index: usize) -> Value {
        let now = self.network.now(index);
        let endpoint = self.network.hosts[now.host].url();
        operation(&self.network.world().key(index), &endpoint, &self.network.world().handle(index))
    }
}

fn operation(key: &Key, endpoint: &str, handle: &str) -> Value {
    json!({
        "type": "plc_operation", "prev": null, "sig": "c2ln", "rotationKeys": [key.did_key()],
        "verificationMethods": {"atproto": key.did_key()},
        "alsoKnownAs": [format!("at://{handle}")],
        "services": {"atproto_pds": {"type": "AtprotoPersonalDataServer", "endpoint": endpoint}},
    })
}

/// So many milliseconds before now, as the directory writes it.
fn before(milliseconds: i64) -> String {
    let at = chrono::Utc::now() - chrono::Duration::milliseconds(milliseconds);
    at.to_rfc3339_opts(chrono::SecondsFormat::Millis, true)
}

fn line(did: &str, operation: &Value, at: &str, nullified: bool) -> String {
    json!({"did": did, "operation": operation, "cid": "bafyreigh2akiscaildc", "nullified": nullified, "createdAt": at})
        .to_string()
}

const EVIL: &str = "https://nobody.example";

/// What is in the long export beside strangers, each account in a way of its own.
fn lines_of(bench: &Bench, index: usize) -> Vec<String> {
    let (did, world) = (bench.did(index), bench.network.world());
    let (now, other) = (bench.operation(index), operation(&Key::from_seed(7), EVIL, "x.test"));
    let hour = 3_600_000;
    match index {
        // Its last operation never counted.
        0 => vec![line(&did, &now, &before(hour), false), line(&did, &other, &before(9_000), true)],
        // It moved long ago.
        1 => {
            vec![line(&did, &other, &before(hour), false), line(&did, &now, &before(9_000), false)]
        }
        // The same, and the lines are not in order.
        2 => {
            vec![line(&did, &now, &before(9_000), false), line(&did, &other, &before(hour), false)]
        }
        // The oldest form, with a host without a scheme: that can only be https, so it is left alone here.
        3 => {
            let key = world.key(index).did_key();
            let oldest = json!({"type": "create", "signingKey": key, "recoveryKey": key, "prev": null, "sig": "x",
                                "handle": world.handle(index), "service": bench.network.host_of(index).url()});
            vec![line(&did, &oldest, &before(hour), false)]
        }
        // Its host is of no use: the directory is asked.
        4 => {
            let private = operation(&world.key(index), "https://10.0.0.1", "x.test");
            vec![line(&did, &private, &before(hour), false)]
        }
        // Tombstoned, and not.
        5 => vec![
            line(&did, &now, &before(hour), false),
            line(
                &did,
                &json!({"type": "plc_tombstone", "prev": "x", "sig": "x"}),
                &before(9_000),
                false,
            ),
        ],
        6 => vec![
            line(&did, &now, &before(hour), false),
            line(
                &did,
                &json!({"type": "plc_tombstone", "prev": "x", "sig": "x"}),
                &before(9_000),
                true,
            ),
        ],
        // Not in the export.
        7 => Vec::new(),
        _ => vec![line(&did, &now, &before(hour), false)],
    }
}

#[test]
fn a_long_export_fills_the_ledger_and_hardly_anybody_is_asked() {
    const ACCOUNTS: usize = 200;
    const STRANGERS: usize = 110_000;
    let bench = Bench::new(61, ACCOUNTS);
    bench.network.set_standing(5, Standing::Tombstoned);
    let stranger = operation(&Key::from_seed(1), EVIL, "stranger.test");
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    let mut count = 0;
    let mut put = |text: &str| {
        count += 1;
        writeln!(gzip, "{text}").unwrap();
    };
    let at = before(3_700_000);
    for number in 0..STRANGERS {
        put(&line(&did_from_seed(1_000_000 + number as u64), &stranger, &at, false));
        if number.is_multiple_of(STRANGERS / ACCOUNTS) {
            let index = number / (STRANGERS / ACCOUNTS);
            if index < ACCOUNTS {
                lines_of(&bench, index).iter().for_each(|line| put(line));
            }
        }
    }
    for bad in ["{\"did\":", "no json\u{1b}[2J", "{}", "[1]"] {
        put(bad);
    }
    let newest = before(5_000);
    put(&line(&did_from_seed(9), &stranger, &newest, false));
    let export = bench.file("export.jsonl.gz", &gzip.finish().unwrap());

    let finished = bench.identities(&export, 0);
    println!("{count} lines in {:.1} s, {:?}", finished.seconds, finished.usage);
    assert!(finished.usage.anonymous_peak_bytes <= MEMORY_MAX, "{:?}", finished.usage);
    let told = finished.json();
    let wanted = [
        ("lines", count),
        ("malformed", 4),
        ("nullified", 2),
        ("resolved", ACCOUNTS as u64 - 3),
        ("tombstoned", 1),
        ("unclear", 1),
        ("passed_over", 0),
        ("queued", ACCOUNTS as u64 - 1),
    ];
    for (name, number) in wanted {
        assert_eq!(told[name], json!(number), "{name}: {told}");
    }
    let named: Vec<u64> =
        told["named"].as_array().unwrap().iter().map(|it| it["line"].as_u64().unwrap()).collect();
    assert_eq!(named, [count - 4, count - 3, count - 2, count - 1]);
    let printed = finished.stdout.trim_end().chars();
    assert!(!printed.clone().any(char::is_control), "{}", finished.stdout);
    assert_eq!(bench.network.plc.requests(), 0);

    let summary = bench.backfill(&[], 3);
    assert_eq!(summary["accounts"], json!({"done": ACCOUNTS - 1, "parked": 1}));
    assert_eq!(summary["parked"][0]["reason"], "did_tombstoned");
    bench.assert_exported();
    let asked: Vec<String> =
        bench.network.plc.log().entries().into_iter().map(|entry| entry.did).collect();
    let (unclear, missing) = (bench.did(4), bench.did(7));
    assert!(asked.len() == 2 && asked.contains(&unclear) && asked.contains(&missing), "{asked:?}");
}

#[test]
fn an_account_that_has_moved_since_is_resolved_afresh() {
    let bench = Bench::new(62, 6);
    let lines: Vec<String> = (0..6)
        .map(|index| line(&bench.did(index), &bench.operation(index), &before(1_000), false))
        .collect();
    let export = bench.file("export.jsonl", lines.join("\n").as_bytes());
    let host = bench.network.now(0).host;
    bench.network.move_account(0, (host + 1) % 4);
    bench.network.rotate_key(1);
    bench.identities(&export, 0);
    let summary = bench.backfill(&[], 0);
    assert_eq!(summary["accounts"]["done"], 6);
    bench.assert_exported();
    let log = bench.network.plc.log();
    let asked: Vec<usize> = (0..6).map(|index| log.count("", &bench.did(index))).collect();
    assert_eq!(asked[2..], [0; 4], "{asked:?}");
    assert!(asked[0] >= 1 && asked[1] >= 1, "{asked:?}");
}

#[test]
fn an_export_that_is_old_cut_or_none_is_refused_whole() {
    let bench = Bench::new(63, 3);
    let whole = |age: i64| -> String {
        let line = |index| line(&bench.did(index), &bench.operation(index), &before(age), false);
        (0..3).map(line).collect::<Vec<_>>().join("\n")
    };
    let day = 24 * 3_600_000;
    let old = bench.file("old.jsonl", whole(day + 60_000).as_bytes());
    let refused = bench.identities(&old, 78);
    assert!(refused.stderr.contains("older than identity.cache_ttl"), "{}", refused.stderr);
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(whole(1_000).as_bytes()).unwrap();
    let packed = gzip.finish().unwrap();
    let cut = bench.file("cut.gz", &packed[..packed.len() - 6]);
    bench.identities(&cut, 74);
    let page = bench.file("page.html", b"<html>busy</html>\n");
    let none = bench.identities(&page, 2);
    assert!(none.stderr.contains("holds no operation of a directory"), "{}", none.stderr);
    bench.identities("/nowhere/export.jsonl", 74);
    // Nothing was taken: everybody is asked for, except where a longer memory was ordered.
    let ledger = rusqlite::Connection::open(bench.data().join("state.db")).unwrap();
    let known: i64 = ledger
        .query_row("SELECT count(*) FROM accounts WHERE host IS NOT NULL", [], |row| row.get(0))
        .unwrap();
    assert_eq!(known, 0);
    let list = bench.list();
    let longer = [
        "identities",
        "--from",
        &old,
        "--dids-file",
        &list,
        "--json",
        "--set",
        "identity.cache_ttl=48h",
    ];
    assert_eq!(bench.command(&longer).expect_code(0).json()["resolved"], 3);
    bench.backfill(&["--set", "identity.cache_ttl=48h"], 0);
    assert_eq!(bench.network.plc.requests(), 0);
    bench.assert_exported();
}

/// A directory whose `/export` gives 1,000 operations at most, later than `after`; refuses once, fails once, breaks off once.
fn exporting(lines: Vec<(String, String)>, asked: Arc<Mutex<Vec<String>>>) -> Server {
    Server::start("export", move |request, _| {
        let query = request.uri().query().unwrap_or_default().to_owned();
        let after = server::query(&query, "after").unwrap_or_default();
        let number = {
            let mut asked = asked.lock().unwrap();
            asked.push(after.clone());
            asked.len()
        };
        let later = lines.iter().filter(|(at, _)| *at > after);
        let page: Vec<&str> = later.map(|(_, line)| line.as_str()).take(1_000).collect();
        let answer = match number {
            2 => server::with_header(server::answer(429, "text/plain", ""), "retry-after", "1"),
            3 => server::answer(503, "text/plain", "busy"),
            _ => server::answer(200, "application/jsonlines", page.join("\n")),
        };
        async move { Ok(answer) }
    })
}

#[test]
fn an_export_is_read_page_by_page_from_a_url() {
    const ACCOUNTS: usize = 40;
    let bench = Bench::new(64, ACCOUNTS);
    let stranger = operation(&Key::from_seed(1), EVIL, "stranger.test");
    // 2,600 operations; the first page's border lies within operations of one millisecond.
    let lines: Vec<(String, String)> = (0..2_600_u64)
        .map(|number| {
            let step = if (990..1_010).contains(&number) { 990 } else { number };
            let at = before(10_000_000 - step as i64 * 1_000);
            (at, number)
        })
        .map(|(at, number)| {
            let at = if (990..1_010).contains(&number) {
                "2026-01-01T00:00:00.000Z".to_owned()
            } else {
                at
            };
            let index = (number as usize) / (2_600 / ACCOUNTS);
            let is_own = number.is_multiple_of(2_600 / ACCOUNTS as u64) && index < ACCOUNTS;
            let (did, operation) = if is_own {
                (bench.did(index), bench.operation(index))
            } else {
                (did_from_seed(2_000_000 + number), stranger.clone())
            };
            (at.clone(), line(&did, &operation, &at, false))
        })
        .collect();
    let mut lines = lines;
    // In order of time, as the directory keeps them; the equal ones come first then.
    lines.sort_by(|a, b| a.0.cmp(&b.0));
    let asked = Arc::new(Mutex::new(Vec::new()));
    let server = exporting(lines, Arc::clone(&asked));
    let url = format!("{}/export", server.url());
    let told = bench.identities(&url, 0).json();
    assert_eq!((&told["resolved"], &told["malformed"]), (&json!(ACCOUNTS), &json!(0)), "{told}");
    let asked = asked.lock().unwrap().clone();
    assert_eq!(asked.len(), 5, "three pages, one refused, one failed: {asked:?}");
    assert!(asked[0].is_empty() && asked[1] == asked[2] && asked[2] == asked[3], "{asked:?}");
    bench.backfill(&[], 0);
    assert_eq!(bench.network.plc.requests(), 0);
    bench.assert_exported();
    // What is no such address says so at once.
    let wrong = format!("{}/nothing", bench.network.plc.url());
    let refused = bench.identities(&wrong, 69);
    assert!(refused.stderr.contains("404"), "{}", refused.stderr);
}

#[test]
fn without_a_list_the_ledgers_own_accounts_are_filled_and_a_lock_is_respected() {
    let bench = Bench::new(65, 3);
    let lines: Vec<String> = (0..3)
        .map(|index| line(&bench.did(index), &bench.operation(index), &before(1_000), false))
        .collect();
    let export = bench.file("export.jsonl", lines.join("\n").as_bytes());
    let empty = bench.command(&["identities", "--from", &export, "--json"]).expect_code(0).json();
    assert_eq!((&empty["resolved"], &empty["queued"]), (&json!(0), &json!(0)));
    // A directory that is away parks everybody, and they come back.
    bench.network.plc.server().refuse(true);
    bench.backfill(&["--set", "retry.host_patience=1s"], 3);
    bench.command(&["retry", "--all"]).expect_code(0);
    let filled = bench.command(&["identities", "--from", &export, "--json"]).expect_code(0).json();
    assert_eq!(filled["resolved"], 3, "{filled}");
    bench.backfill(&[], 0);
    bench.assert_exported();
}

// ---- mirrors ----

/// A mirror of the network's directory, which answers for it whatever happens to the directory itself.
fn mirror(
    bench: &Bench,
    knows: impl Fn(&str) -> bool + Send + Sync + 'static,
) -> (Server, Arc<Mutex<Vec<String>>>) {
    let documents: std::collections::HashMap<String, String> = (0..bench.network.world().len())
        .map(|index| {
            let (did, key) = (bench.did(index), bench.network.world().key(index));
            let document = json!({
                "id": did, "alsoKnownAs": [format!("at://{}", bench.network.world().handle(index))],
                "verificationMethod": [{"id": format!("{did}#atproto"), "type": "Multikey", "controller": did,
                                        "publicKeyMultibase": key.multikey()}],
                "service": [{"id": "#atproto_pds", "type": "AtprotoPersonalDataServer",
                             "serviceEndpoint": bench.network.host_of(index).url()}],
            });
            (did, document.to_string())
        })
        .collect();
    let asked: Arc<Mutex<Vec<String>>> = Arc::default();
    let seen = Arc::clone(&asked);
    let server = Server::start("mirror", move |request, _| {
        let did = server::decoded(request.uri().path().trim_start_matches('/'));
        seen.lock().unwrap().push(did.clone());
        let known = documents.get(&did).filter(|_| knows(&did));
        let answer = match known {
            Some(document) => server::answer(200, "application/json", document.clone()),
            None => server::json(404, &json!({"message": format!("DID not registered: {did}")})),
        };
        async move { Ok(answer) }
    });
    (server, asked)
}

fn mirrors(urls: &[String]) -> String {
    format!("identity.mirrors={urls:?}")
}

#[test]
fn mirrors_are_asked_in_order_while_the_directory_has_no_usable_answer() {
    let bench = Bench::new(66, 30);
    let (second, asked) = mirror(&bench, |_| true);
    // The first mirror refuses connections.
    let (gone, _) = mirror(&bench, |_| true);
    gone.refuse(true);
    let target = (Place::Directory, Target::Any);
    bench.network.faults().script(target.0, target.1, [Fault::status(503)], Then::Repeat);
    let set = mirrors(&[gone.url(), second.url()]);
    let summary = bench.backfill(&["--set", &set], 0);
    assert_eq!(summary["accounts"]["done"], 30);
    bench.assert_exported();
    let asked = asked.lock().unwrap().len();
    assert!(asked >= 30, "{asked}");
    // Its circuit opens at once, so the directory is hardly asked.
    let directory = bench.network.plc.requests();
    assert!((1..=34).contains(&directory), "{directory}");
    bench.network.faults().assert_fired(&["status"]);
}

#[test]
fn a_directory_that_answers_is_never_passed_over() {
    let bench = Bench::new(67, 10);
    let (server, asked) = mirror(&bench, |_| true);
    bench.network.set_standing(3, Standing::Unregistered);
    bench.network.set_standing(4, Standing::Tombstoned);
    let summary = bench.backfill(&["--set", &mirrors(&[server.url()])], 3);
    assert_eq!(summary["accounts"], json!({"done": 8, "parked": 2}));
    assert_eq!(asked.lock().unwrap().len(), 0);
    bench.assert_exported();
}

#[test]
fn what_a_mirror_does_not_know_waits_for_the_directory() {
    let bench = Bench::new(68, 4);
    let unknown = bench.did(2);
    let (server, _) = mirror(&bench, move |did| did != unknown);
    bench.network.plc.server().refuse(true);
    let set = mirrors(&[server.url()]);
    let summary = bench.backfill(&["--set", &set, "--set", "retry.host_patience=2s"], 3);
    assert_eq!(summary["accounts"], json!({"done": 3, "parked": 1}));
    assert_eq!(summary["parked"][0]["reason"], "directory_unavailable");
    bench.network.plc.server().refuse(false);
    bench.command(&["retry", "--all"]).expect_code(0);
    bench.backfill(&["--set", &set], 0);
    bench.assert_exported();
}
