//! Security checks of the whole program that no other test makes (TORTURE section 2); `security-counts.md` lists them all.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::disallowed_methods,
    clippy::cast_possible_truncation
)]

mod support;

use std::collections::BTreeSet;
use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use ipld_core::ipld::Ipld;
use serde_json::json;
use support::faults::{Fault, Place, Target, Then};
use support::forge::{
    Account, Block, CarOptions, cid_of, depth, encode, plain_account, tid, write_car,
};
use support::network::Network;
use support::proc::{Finished, Signal, Skyfill};
use support::world::{Records, Shape};

const PATIENCE: Duration = Duration::from_secs(120);

/// `limits.memory` and the base.
const MEMORY_MAX: u64 = (256 + 64) << 20;

fn skyfill() -> Skyfill {
    Skyfill::new(env!("CARGO_BIN_EXE_skyfill"))
}

const SETS: [&str; 10] = [
    "--set",
    "retry.host_patience=2s",
    "--set",
    "limits.disk_free=0B",
    "--set",
    "retry.base=10ms",
    "--set",
    "retry.max=20ms",
    "--set",
    "retry.attempts=2",
];

fn backfill(network: &Network, data: &Path, more: &[&str]) -> Finished {
    let dids = network.world().dids().join(",");
    let mut arguments: Vec<String> =
        ["backfill", "--quiet", "--json", "--dids", &dids, "--data-dir"]
            .map(str::to_owned)
            .to_vec();
    arguments.push(data.to_str().unwrap().to_owned());
    arguments.extend(SETS.iter().chain(more).map(|text| (*text).to_owned()));
    arguments.extend(network.flags());
    skyfill().run(&arguments, PATIENCE)
}

fn small(seed: u64, accounts: usize) -> Network {
    let records = Records::Fixed(10);
    Network::generate(&Shape { seed, accounts, hosts: 2, records, odd: false })
}

/// Every path below a folder.
fn paths(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() && !path.is_symlink() {
                folders.push(path.clone());
            }
            found.push(path);
        }
    }
    found.sort();
    found
}

// ---- S4 and S6: hostile names ----

/// Two hundred and more texts that a stranger could put where a name is expected.
fn hostile_names() -> Vec<String> {
    let plain = [
        "../../../../tmp/skyfill-escaped",
        "..",
        ".",
        "/etc/passwd",
        "/tmp/skyfill-escaped",
        "a/../../b",
        "..\\..\\b",
        "%2e%2e%2f%2e%2e%2fescaped",
        "%00",
        "a\u{0}b",
        "CON",
        "NUL.db",
        "LPT1",
        "-rf",
        "--config=/etc/passwd",
        "~root",
        "$(touch escaped)",
        "`touch escaped`",
        "; touch escaped",
        "| touch escaped",
        "\u{202e}bd.etats",
        "\u{200f}rtl",
        "a\r\nskyfill_evil 1",
        "a\u{1b}[2J",
        "\u{7f}",
        "\u{9b}31m",
        "\u{feff}x",
        "state.db",
        "queue/x",
        "journal/1.seg",
        "file:///etc/passwd",
        "did:web:..",
        "did:web:%2e%2e",
        "did:web:../x",
        "did:web:a%2Fb",
        "did:plc:../../../x",
        "did:plc:aaaaaaaaaaaaaaaaaaaaaaa/",
        "did:plc:aaaaaaaaaaaaaaaaaaaaaaa\u{0}",
        "did:web:x\r\nHost: y",
        "at://../x",
    ];
    let mut names: Vec<String> = plain.map(str::to_owned).to_vec();
    names.push("x".repeat(2_048));
    names.push(format!("did:web:{}internal", "a.".repeat(1_000)));
    for (number, name) in plain.iter().enumerate() {
        names.push(format!("did:plc:{name}"));
        // No name that a name server would be asked for.
        names.push(format!("did:web:{name}.internal"));
        names.push(format!("did:web:host{number}.internal:{name}"));
        names.push(format!("{name}{name}"));
    }
    names
}

fn assert_clean(what: &str, text: &str) {
    let raw = text.chars().find(|c| c.is_control() && *c != '\n' && *c != '\t');
    assert_eq!(raw, None, "{what}: {text:?}");
}

/// Hostile names as DIDs of a list, as handles, hosts, errors and header values: nothing is made outside of the data directory, no
/// name becomes part of a path, and no raw control character gets into a log, an output or a request.
#[test]
fn hostile_names_stay_names() {
    let names = hostile_names();
    assert!(names.len() >= 200, "{} names", names.len());
    let network = small(71, 40);
    for (index, name) in names.iter().enumerate().take(40) {
        let (did, url) =
            (network.world().did(index).to_owned(), network.host_of(index).server().url());
        let key = network.world().key(index).multikey();
        let endpoint = if index % 3 == 0 { format!("https://{name}.internal") } else { url };
        let document = json!({
            "id": did, "alsoKnownAs": [format!("at://{name}"), name],
            "verificationMethod": [{"id": format!("{did}#atproto"), "type": "Multikey", "controller": did,
                                    "publicKeyMultibase": key}],
            "service": [{"id": "#atproto_pds", "type": "AtprotoPersonalDataServer", "serviceEndpoint": endpoint}],
        });
        let body = document.to_string().into_bytes();
        let fault = Fault::Status { code: 200, headers: Vec::new(), body };
        network.faults().script(Place::Directory, Target::Did(did.clone()), [fault], Then::Repeat);
        if index % 3 == 1 {
            let body = json!({"error": name, "message": format!("no\u{1b}[2J{name}")})
                .to_string()
                .into_bytes();
            // Bytes above 127 are all that a header can carry besides text.
            let headers = vec![("x-evil".to_owned(), "\u{e9}\u{fc}".to_owned())];
            network.faults().always(&did, Fault::Status { code: 404, headers, body });
        }
    }
    let folder = tempfile::tempdir().unwrap();
    let (data, list) = (folder.path().join("data"), folder.path().join("list.jsonl"));
    let lines = names.iter().map(String::as_str);
    let dids = network.world().dids();
    let lines =
        lines.chain(dids.iter().map(String::as_str)).map(|did| json!({"did": did}).to_string());
    fs::write(&list, lines.collect::<Vec<_>>().join("\n")).unwrap();
    let mut arguments = vec!["backfill", "--json", "--quiet", "--data-dir", data.to_str().unwrap()];
    arguments.extend(["--dids-file", list.to_str().unwrap(), "--set", "log.level=debug"]);
    arguments.extend(SETS);
    let flags = network.flags();
    arguments.extend(flags.iter().map(String::as_str));
    let trace = folder.path().join("trace");
    let finished = traced(&trace, &arguments);
    assert_eq!(finished.code, Some(3), "{}", finished.stderr);
    assert_clean("stderr", &finished.stderr);
    assert_clean("stdout", &finished.stdout);
    network.faults().assert_fired(&["status"]);
    for host in network.hosts.iter().map(support::pds::Pds::log).chain([network.plc.log()]) {
        for name in ["user-agent", "host", "accept", "accept-encoding"] {
            assert_clean(name, &host.last_header(name).unwrap_or_default());
        }
        assert_eq!(host.last_header("referer").or_else(|| host.last_header("cookie")), None);
    }
    let expected: BTreeSet<&str> =
        ["state.db", "leaves.db", "lock", "journal", "spool", "queue"].into();
    for path in paths(&data) {
        let name = path.file_name().unwrap().to_str().unwrap();
        let is_queue = name.starts_with("output_backfill_sync_");
        let is_segment = Path::new(name).extension().is_some_and(|it| it == "seg" || it == "free");
        let is_of_sqlite = name.starts_with("state.db-") || name.starts_with("leaves.db-");
        assert!(expected.contains(name) || is_queue || is_segment || is_of_sqlite, "{name}");
    }
    let beside: BTreeSet<PathBuf> =
        fs::read_dir(folder.path()).unwrap().map(|it| it.unwrap().path()).collect();
    let known: BTreeSet<PathBuf> = [data.clone(), list, trace.clone()].into();
    assert!(beside.is_subset(&known), "{beside:?}");
    let opened = opened_for_writing(&trace);
    println!("{} names, {} paths opened for writing", names.len(), opened.len());
    for path in opened {
        let is_ours = path.starts_with(data.to_str().unwrap());
        assert!(
            is_ours || path == "/dev/null" || path == "/dev/tty",
            "{path}: {}",
            lines_with(&trace, &path)
        );
    }
}

/// Runs skyfill under strace where there is one.
fn traced(trace: &Path, arguments: &[&str]) -> Finished {
    let has_strace = Command::new("strace").arg("-V").output().is_ok_and(|it| it.status.success());
    if !has_strace {
        fs::write(trace, "").unwrap();
        return skyfill().run(arguments, PATIENCE);
    }
    let (trace, binary) = (trace.to_str().unwrap(), env!("CARGO_BIN_EXE_skyfill"));
    let calls =
        "trace=open,openat,openat2,creat,mkdir,mkdirat,rename,renameat,renameat2,symlinkat,linkat";
    let mut all = vec!["-f", "-qq", "-s", "4096", "-e", calls, "-o", trace, binary];
    all.extend(arguments);
    Skyfill::new("strace").run(&all, PATIENCE)
}

/// Paths that a trace shows as made, or opened to be written.
fn opened_for_writing(trace: &Path) -> BTreeSet<String> {
    let text = fs::read_to_string(trace).unwrap();
    let writes = ["O_WRONLY", "O_RDWR", "O_CREAT", "mkdir", "rename", "creat(", "linkat"];
    // SQLite sorts in files that never have a name, in the system's folder for such.
    let named = text.lines().filter(|line| !line.contains("O_TMPFILE"));
    let lines = named.filter(|line| writes.iter().any(|word| line.contains(word)));
    let quoted = lines.flat_map(|line| line.split('"').skip(1).step_by(2));
    quoted.map(str::to_owned).collect()
}

/// Where a trace names a path.
fn lines_with(trace: &Path, path: &str) -> String {
    let text = fs::read_to_string(trace).unwrap();
    let named = format!("\"{path}\"");
    text.lines().filter(|line| line.contains(&named)).take(3).collect::<Vec<_>>().join("; ")
}

// ---- S5: bombs ----

fn map<const N: usize>(fields: [(&str, Ipld); N]) -> Ipld {
    Ipld::Map(fields.map(|(name, value)| (name.to_owned(), value)).into())
}

/// A signed CAR around these blocks, the first being the tree's root.
fn around(account: &Account, blocks: &[Block]) -> Vec<u8> {
    let bytes = account.commit(blocks[0].cid, &CarOptions::default());
    let commit = Block { cid: cid_of(&bytes), bytes, is_node: false };
    let roots = [commit.cid];
    write_car(&roots, &[&[commit], blocks].concat())
}

/// So many nodes, each the left child of the one before.
fn deep_tree(levels: usize) -> Vec<Block> {
    let mut blocks: Vec<Block> = Vec::new();
    for _ in 0..levels {
        let left = blocks.last().map_or(Ipld::Null, |below| Ipld::Link(below.cid));
        let bytes = encode(&map([("l", left), ("e", Ipld::List(Vec::new()))]));
        blocks.push(Block { cid: cid_of(&bytes), bytes, is_node: true });
    }
    blocks.reverse();
    blocks
}

/// One record of any bytes under a good tree.
fn with_record(account: &Account, bytes: Vec<u8>) -> Vec<u8> {
    let record = Block { cid: cid_of(&bytes), bytes, is_node: false };
    let key = (0..)
        .map(|n| format!("app.bsky.feed.post/{}", tid(n)))
        .find(|key| depth(key.as_bytes()) == 0);
    let entry = map([
        ("p", Ipld::Integer(0)),
        ("k", Ipld::Bytes(key.unwrap().into_bytes())),
        ("v", Ipld::Link(record.cid)),
        ("t", Ipld::Null),
    ]);
    let bytes = encode(&map([("l", Ipld::Null), ("e", Ipld::List(vec![entry]))]));
    around(account, &[Block { cid: cid_of(&bytes), bytes, is_node: true }, record])
}

#[test]
fn bombs_cost_neither_memory_nor_stack() {
    let account = plain_account(3, 0);
    let million_keys: Vec<u8> = {
        let keys = (0..1_000_000_u32)
            .flat_map(|n| [&[0x64][..], format!("{n:04x}").as_bytes(), &[1]].concat());
        [vec![0xba, 0, 0x0f, 0x42, 0x40], keys.collect()].concat()
    };
    let head = around(&account, &deep_tree(1));
    // (what, the file, how `skyfill verify FILE` ends: 0 is a repository whose record is no record, 1 one that either engine refuses)
    let bombs: Vec<(&str, Vec<u8>, i32)> = vec![
        ("CBOR 1,000,000 deep", with_record(&account, [vec![0x81; 999_999], vec![0]].concat()), 0),
        ("an array of 2^63", with_record(&account, b"\x9b\x80\0\0\0\0\0\0\0".to_vec()), 0),
        ("a map of 1,000,000 keys", with_record(&account, million_keys), 1),
        (
            "a text of 2^63",
            with_record(&account, b"\x7b\x7f\xff\xff\xff\xff\xff\xff\xff".to_vec()),
            0,
        ),
        ("a tree of 10,000 levels", around(&account, &deep_tree(10_000)), 1),
        ("a length of 11 bytes", [head.clone(), vec![0xff; 11]].concat(), 1),
        (
            "a length of petabytes",
            [head.clone(), vec![0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f]].concat(),
            1,
        ),
        ("a header of 2^63", vec![0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f, 0xa0], 1),
    ];
    let folder = tempfile::tempdir().unwrap();
    for (what, car, code) in bombs {
        let path = folder.path().join("bomb.car");
        fs::write(&path, &car).unwrap();
        let said = skyfill().run(&["verify", path.to_str().unwrap(), "--json"], PATIENCE);
        println!(
            "{what}: {} bytes, code {:?}, {:.2} s, {:?}",
            car.len(),
            said.code,
            said.seconds,
            said.usage
        );
        assert_eq!(
            (said.code, said.signal),
            (Some(code), None),
            "{what}: {} {}",
            said.stdout,
            said.stderr
        );
        assert!(said.usage.anonymous_peak_bytes <= MEMORY_MAX, "{what}: {:?}", said.usage);
    }
}

// ---- S7: cardinality ----

#[test]
fn a_hundred_thousand_hosts_are_no_series() {
    const HOSTS: u32 = 100_000;
    let folder = tempfile::tempdir().unwrap();
    let (data, list, export) =
        (folder.path().join("data"), folder.path().join("dids"), folder.path().join("export"));
    let (mut dids, mut lines) = (String::new(), String::new());
    let key = support::forge::Key::from_seed(1).did_key();
    let at = chrono::Utc::now().to_rfc3339_opts(chrono::SecondsFormat::Millis, true);
    for number in 0..HOSTS {
        let did = support::forge::did_from_seed(u64::from(number));
        // Each an address of its own on loopback, where nobody listens.
        let [_, b, c, d] = number.to_be_bytes();
        let endpoint = format!("http://127.{}.{c}.{d}:1", b + 1);
        dids += &format!("{did}\n");
        let operation = json!({
            "type": "plc_operation", "verificationMethods": {"atproto": key}, "alsoKnownAs": [],
            "services": {"atproto_pds": {"type": "AtprotoPersonalDataServer", "endpoint": endpoint}},
        });
        lines += &format!("{}\n", json!({"did": did, "operation": operation, "createdAt": at}));
    }
    fs::write(&list, dids).unwrap();
    fs::write(&export, lines).unwrap();
    let (data, list, export) =
        (data.to_str().unwrap(), list.to_str().unwrap(), export.to_str().unwrap());
    let common = [
        "--data-dir",
        data,
        "--set",
        "network.allow=[\"127.0.0.0/8\"]",
        "--set",
        "limits.disk_free=0B",
    ];
    let mut filling = vec!["identities", "--from", export, "--dids-file", list, "--json"];
    filling.extend(common);
    let filled = skyfill().run(&filling, PATIENCE).expect_code(0);
    println!("{:.1} s, {:?}", filled.seconds, filled.usage);
    assert_eq!(filled.json()["resolved"], HOSTS);
    let files = format!("source.files=[{list:?}]");
    let mut running = vec!["run", "--set", &files, "--set", "metrics.listen=127.0.0.1:0"];
    running.extend([
        "--set",
        "fetch.host_requests_per_second=1000",
        "--set",
        "identity.plc_url=http://127.0.0.1:1",
    ]);
    running.extend(common);
    let daemon = skyfill().spawn(&running);
    assert!(daemon.wait_for("serving metrics listen=", PATIENCE), "{}", daemon.stderr());
    let stderr = daemon.stderr();
    let address =
        stderr.split_once("serving metrics listen=").unwrap().1.split_whitespace().next().unwrap();
    let begun = Instant::now();
    // Once it has had to do with two thousand of them, it knows them all.
    let text = loop {
        let text = scrape(address);
        let failed = value(&text, "skyfill_retries_total{error=\"connect\"}");
        if failed >= 2_000.0 {
            break text;
        }
        assert!(begun.elapsed() < PATIENCE, "{failed} connects; {}", daemon.stderr());
        std::thread::park_timeout(Duration::from_millis(200));
    };
    let series = text.lines().filter(|line| line.starts_with("skyfill_")).count();
    println!("{series} series after {:.1} s", begun.elapsed().as_secs_f64());
    assert!(series < 1_000, "{series} series");
    assert!(!text.contains("127.") && !text.contains("did:"), "a host or a did in the metrics");
    assert!(daemon.signal(Signal::TERM));
    let finished = daemon.finish(PATIENCE).expect_code(0);
    assert!(finished.usage.anonymous_peak_bytes <= MEMORY_MAX, "{:?}", finished.usage);
}

fn scrape(address: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    write!(stream, "GET /metrics HTTP/1.1\r\nhost: x\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

fn value(text: &str, series: &str) -> f64 {
    let line = text.lines().find_map(|line| line.strip_prefix(series));
    line.map_or(0.0, |value| value.trim().parse().unwrap())
}

// ---- S9 and S10: files ----

#[test]
fn files_are_the_owners_whatever_the_umask() {
    let network = small(72, 4);
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let binary = env!("CARGO_BIN_EXE_skyfill");
    let dids = network.world().dids().join(",");
    let line = "umask 000; exec \"$0\" \"$@\"";
    let mut arguments = vec!["-c", line, binary, "backfill", "--quiet", "--dids", &dids];
    arguments.extend(["--data-dir", data.to_str().unwrap()]);
    arguments.extend(SETS);
    let flags = network.flags();
    arguments.extend(flags.iter().map(String::as_str));
    Skyfill::new("/bin/sh").run(&arguments, PATIENCE).expect_code(0);
    let mode = |path: &Path| fs::metadata(path).unwrap().mode() & 0o7777;
    assert_eq!(mode(&data), 0o750);
    let mut files = 0;
    for path in paths(&data) {
        let is_of_queue = path.strip_prefix(&data).unwrap().starts_with("queue");
        let wanted: &[u32] = match (path.is_dir(), is_of_queue) {
            (true, true) => &[0o2770, 0o770],
            (true, false) => &[0o700],
            (false, true) => &[0o660],
            (false, false) => &[0o600],
        };
        assert!(wanted.contains(&mode(&path)), "{}: {:o}", path.display(), mode(&path));
        files += 1;
    }
    println!("{files} files and folders");
    assert!(files >= 10, "{files}");
}

#[test]
fn symbolic_links_in_the_data_directory_are_refused_and_their_targets_left_alone() {
    let network = small(73, 3);
    let folder = tempfile::tempdir().unwrap();
    let names = [
        "state.db",
        "state.db-wal",
        "lock",
        "journal",
        "spool",
        "queue",
        "queue/output_backfill_sync_like.db",
        "queue/output_backfill_sync_like.db-wal",
        "journal/00000001.seg",
    ];
    for (number, name) in names.iter().enumerate() {
        let data = folder.path().join(format!("data{number}"));
        let elsewhere = folder.path().join(format!("elsewhere{number}"));
        // A good directory, and one of its own parts moved away and linked to.
        backfill(&network, &data, &[]).expect_code(0);
        let path = data.join(name);
        if path.exists() {
            fs::rename(&path, &elsewhere).unwrap();
        } else {
            fs::write(&elsewhere, b"not ours").unwrap();
        }
        symlink(&elsewhere, &path).unwrap();
        let before = (!elsewhere.is_dir()).then(|| fs::read(&elsewhere).unwrap());
        let finished = backfill(
            &network,
            &data,
            &["--set", "records.types=[\"like\", \"post\"]", "--refilter"],
        );
        println!(
            "{name}: {:?} {}",
            finished.code,
            finished.stderr.lines().last().unwrap_or_default()
        );
        let is_refused = matches!(finished.code, Some(74 | 77 | 78));
        assert!(is_refused, "{name}: {:?} {}", finished.code, finished.stderr);
        assert!(!finished.stderr.is_empty(), "{name}: without a word");
        let after = (!elsewhere.is_dir()).then(|| fs::read(&elsewhere).unwrap());
        assert!(before == after, "{name}: what it leads to was changed");
    }
}

// ---- S12 and S13: what it is made of ----

fn shipped(name: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(name)).unwrap()
}

#[test]
fn the_lock_file_names_no_other_tls_and_no_source_but_the_registry() {
    let lock = shipped("Cargo.lock");
    let packages: Vec<&str> = lock.split("[[package]]").skip(1).collect();
    let field = |package: &str, name: &str| -> Option<String> {
        let line = package.lines().find(|line| line.starts_with(&format!("{name} = ")))?;
        Some(line.split('"').nth(1)?.to_owned())
    };
    for package in &packages {
        let name = field(package, "name").unwrap();
        let banned = ["openssl", "openssl-sys", "native-tls", "schannel-sys", "aws-lc-sys"];
        assert!(!banned.contains(&name.as_str()), "{name}");
        match field(package, "source") {
            None => assert_eq!(name, "skyfill", "a package without a source"),
            Some(source) => {
                assert!(
                    source.starts_with("registry+") && field(package, "checksum").is_some(),
                    "{name}"
                );
            }
        }
    }
    println!("{} packages", packages.len());
    assert!(packages.len() > 100);
}

#[test]
fn the_binary_can_lie_anywhere_and_its_tables_cannot_be_written() {
    let mut head = vec![0; 16 << 10];
    let length = fs::File::open(env!("CARGO_BIN_EXE_skyfill")).unwrap().read(&mut head).unwrap();
    let head = &head[..length];
    let number = |at: usize, bytes: usize| {
        head[at..at + bytes].iter().rev().fold(0_usize, |sum, byte| sum << 8 | usize::from(*byte))
    };
    assert_eq!(&head[..5], b"\x7fELF\x02", "a 64-bit ELF");
    // Shared object: position-independent. Then the program headers.
    assert_eq!(number(16, 2), 3, "not position-independent");
    let (table, size, count) = (number(32, 8), number(54, 2), number(56, 2));
    let kinds: BTreeSet<usize> = (0..count).map(|at| number(table + at * size, 4)).collect();
    let (relro, stack) = (0x6474_e552, 0x6474_e551);
    assert!(kinds.contains(&relro), "no RELRO");
    let flags = (0..count).map(|at| table + at * size).find(|at| number(*at, 4) == stack);
    assert_eq!(number(flags.unwrap() + 4, 4) & 1, 0, "an executable stack");
}

/// Every test that `security-counts.md` names exists where it says.
#[test]
fn the_table_names_tests_that_exist() {
    let table = shipped("tests/security-counts.md");
    let mut named = 0;
    for cell in table.split('`').skip(1).step_by(2).filter(|cell| cell.contains("::")) {
        let (file, test) = cell.split_once("::").unwrap();
        let source = shipped(file);
        assert!(source.contains(&format!("fn {test}(")), "{cell}");
        named += 1;
    }
    let ids = (1..=15).filter(|id| table.contains(&format!("| S{id} |"))).count();
    assert_eq!(ids, 15, "each of S1 to S15 has a line");
    assert!(named >= 25, "{named} tests named");
}
