//! How configuration and lists can be wrong, and what is said then: the key, the line, what was expected, the nearest key.
//! And how they are right: defaults, precedence, the shipped example, every form of a list.
#![allow(clippy::panic, clippy::unwrap_used, clippy::expect_used)]
#![allow(clippy::disallowed_methods, reason = "what tests write need not last")]

use std::fmt::Write as _;
use std::fs;
use std::io::{self, BufReader, Read};
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use skyfill::config::broker::Broker;
use skyfill::config::changes::{Effect, changes};
use skyfill::config::file::{Assignment, ConfigError, Loaded, Mode, load, parse};
use skyfill::config::keys::KEYS;
use skyfill::config::settings::{
    Cidr, Compression, LogFormat, Settings, SinkForm, SinkPlace, SinkSettings, cores,
};
use skyfill::config::sinks::SINK_KEYS;
use skyfill::config::targets::{Counts, ListSource, Target, TargetError, from_reader, open};
use skyfill::config::written::Written;
use skyfill::domain::filter::{Kind, Offsets, Outside, TypeEntry};
use skyfill::exit_code::ExitCode;

const DID: &str = "did:plc:z72i7hdynmk6r22z27h6tvur";
const OTHER: &str = "did:plc:ewvi7nxzyoun6zhxrhs64oiz";

fn read(text: &str) -> Result<Loaded, ConfigError> {
    parse(Some(text), Some(Path::new("s.toml")), &[], Mode::Backfill)
}

fn settings(text: &str) -> Settings {
    read(text).unwrap_or_else(|error| panic!("{text}\n{error}")).settings
}

fn set(assignments: &[&str]) -> Result<Loaded, ConfigError> {
    let assignments: Vec<Assignment> =
        assignments.iter().map(|one| Assignment::parse(one).unwrap()).collect();
    parse(None, None, &assignments, Mode::Backfill)
}

/// Text, and everything that its error must contain.
type Wrong = (&'static str, &'static [&'static str]);

fn assert_says(text: &str, said: &str, wanted: &[&str]) {
    for part in wanted {
        assert!(said.contains(part), "for:\n{text}\nit said:\n{said}\nwithout: {part}");
    }
    assert!(!said.chars().any(|c| c.is_control() && c != '\n'), "raw control characters: {said:?}");
}

const WRONG_FORM: &[Wrong] = &[
    ("data_dir = \"a\"\ndata_dir = \"b\"", &["s.toml:2: ", "\"data_dir\" is written twice"]),
    (
        "[window]\nstart = \"2024-09-27-00:00:00\"\n\nstart = \"x\"",
        &["s.toml:4: ", "\"start\" is written twice"],
    ),
    ("[fetch]\n[fetch]", &["s.toml:2: ", "\"fetch\" is written twice"]),
    ("[window\nstart = 1", &["s.toml:1: ", "not TOML"]),
    ("data_dir = ", &["s.toml:1: ", "not TOML"]),
    ("data_dir = /var/lib", &["s.toml:1: ", "not TOML"]),
    ("data_dir = \"x", &["s.toml:1: ", "not TOML"]),
    ("data_dir \"x\"", &["s.toml:1: ", "not TOML"]),
    ("\n\ndata_dir = \"a\0b\"", &["s.toml:3: ", "not TOML"]),
    ("data_dir = \"a\"\rlog = 1", &["s.toml:1: ", "not TOML"]),
    ("just some words", &["s.toml:1: ", "not TOML"]),
    ("{\"data_dir\": \"json\"}", &["s.toml:1: ", "not TOML"]),
];

const UNKNOWN: &[Wrong] = &[
    (
        "[fetch]\n\nconcurency = 8",
        &["s.toml:3: fetch.concurency: unknown key", "did you mean fetch.concurrency?"],
    ),
    (
        "[fetch]\ntimout_seconds = 8",
        &["s.toml:2: fetch.timout_seconds: unknown key", "did you mean fetch.", "timeout?"],
    ),
    (
        "[window]\nstart_timestamp = \"x\"",
        &["window.start_timestamp", "did you mean window.start?"],
    ),
    ("[fetch]\nplc_url = \"x\"", &["fetch.plc_url", "did you mean identity.plc_url?"]),
    ("batch_size = 3", &["s.toml:1: batch_size", "did you mean limits.batch_size?"]),
    ("datadir = \"x\"", &["datadir", "did you mean data_dir?"]),
    (
        "[fetsh]\nconcurrency = 8",
        &["s.toml:2: fetsh.concurrency", "did you mean fetch.concurrency?"],
    ),
    ("[fetsh]", &["s.toml:1: fetsh: unknown section", "did you mean [fetch]?"]),
    (
        "[fetch]\nzzzzzzzz = 1",
        &["fetch.zzzzzzzz: unknown key", "the keys of [fetch] are concurrency,"],
    ),
    ("[zzzzzzzz]", &["unknown section", "the sections are source, window,"]),
    ("window = 5", &["s.toml:1: window: is a section", "start, end, outside, offsets"]),
    ("[[source]]\nfiles = []", &["s.toml:1: source: is a section"]),
    (
        "[fetch.concurrency]\nmax = 4",
        &["s.toml:1: fetch.concurrency", "expected a whole number", "a section"],
    ),
    ("[fetch.hosts]\nmax = 4", &["s.toml:1: fetch.hosts: unknown section"]),
    ("\"a\\u001b[2Jb\" = 1", &["s.toml:1: a\\u{1b}[2Jb: unknown key"]),
];

const WRONG_TYPE: &[Wrong] = &[
    ("data_dir = 5", &["s.toml:1: data_dir: expected a path, found 5"]),
    ("data_dir = \"\"", &["data_dir: expected a path"]),
    ("data_dir = \"~/skyfill\"", &["data_dir", "~ is not understood here"]),
    ("data_dir = \"a\\u0000b\"", &["data_dir", "NUL"]),
    (
        "[source]\nfiles = \"dids.txt\"",
        &["s.toml:2: source.files: expected a list of files", "write [\"dids.txt\"]"],
    ),
    ("[source]\nfiles = [\n\"a\",\n 5]", &["s.toml:4: source.files: expected a path, found 5"]),
    ("[source]\ndids = [5]", &["source.dids: expected a DID, found 5"]),
    (
        "[fetch]\nconcurrency = \"8\"",
        &[
            "fetch.concurrency: expected a whole number from 1 to 10000, found \"8\" (without quotes)",
        ],
    ),
    ("[fetch]\nconcurrency = 8.5", &["expected a whole number", "found 8.5"]),
    ("[fetch]\nconcurrency = true", &["expected a whole number", "found true"]),
    (
        "[fetch]\nhost_requests_per_second = \"9\"",
        &["fetch.host_requests_per_second: expected a number", "(without quotes)"],
    ),
    (
        "[metrics]\npublic = \"true\"",
        &["metrics.public: expected true or false", "(without quotes)"],
    ),
    ("[metrics]\npublic = 1", &["metrics.public: expected true or false, found 1"]),
    (
        "[window]\nstart = 2024-09-27T00:00:00",
        &["window.start", "YYYY-MM-DD-HH:MM:SS", "quotes are missing"],
    ),
    (
        "[network]\nports = [\"443\"]",
        &["network.ports: expected a whole number from 1 to 65535", "(without quotes)"],
    ),
    ("[network]\nports = 443", &["network.ports: expected a list of ports", "write [443]"]),
    ("[records]\ntypes = { a = 1 }", &["records.types: expected a list"]),
];

const WRONG_UNIT: &[Wrong] = &[
    (
        "[fetch]\nidle_timeout = 30",
        &["s.toml:2: fetch.idle_timeout: expected a time with its unit", "\"30s\" is seconds"],
    ),
    ("[fetch]\nidle_timeout = \"30\"", &["a unit is missing", "\"30s\""]),
    ("[fetch]\nidle_timeout = \"30 sec\"", &["write \"30s\""]),
    ("[fetch]\ntotal_timeout = \"5min\"", &["write \"5m\""]),
    (
        "[fetch]\nidle_timeout = \"half a minute\"",
        &["expected a time with its unit (ms, s, m, h or d)"],
    ),
    ("[limits]\nmemory = 256", &["limits.memory: expected a size with its unit", "\"256MiB\""]),
    ("[limits]\nmemory = \"256MB\"", &["write \"256MiB\""]),
    ("[limits]\nspool = \"16 GiB\"", &["write \"16GiB\""]),
    ("[limits]\ndisk_free = 0", &["a unit is missing", "\"0B\""]),
    ("[limits]\nmemory = \"lots\"", &["expected a size with its unit (B, KiB, MiB, GiB or TiB)"]),
];

const WRONG_RANGE: &[Wrong] = &[
    (
        "[limits]\nmemory = \"63MiB\"",
        &["s.toml:2: limits.memory: expected a size from 64MiB to 1TiB, found \"63MiB\""],
    ),
    ("[limits]\nrepo_bytes = \"5GiB\"", &["limits.repo_bytes: expected a size from 1KiB to 4GiB"]),
    ("[limits]\nspool = \"99999999TiB\"", &["limits.spool", "it is too large"]),
    (
        "[limits]\nspool = \"1GiB\"",
        &["s.toml:2: limits.spool: 1GiB is less than limits.repo_bytes (4GiB)"],
    ),
    ("[limits]\nbatch_size = 0", &["limits.batch_size: expected a whole number from 1"]),
    ("[limits]\nbatch_size = -1", &["limits.batch_size", "found -1"]),
    ("[limits]\nbatch_size = 99999999999999999999999", &["limits.batch_size", "found 9999"]),
    (
        "[queue]\nrows_per_item = 100001",
        &["queue.rows_per_item: expected a whole number from 1 to 100000, found 100001"],
    ),
    ("[retry]\nattempts = 0", &["retry.attempts: expected a whole number from 1"]),
    (
        "[retry]\nbase = \"1h\"\nmax = \"1m\"",
        &["s.toml:2: retry.base: 1h is more than retry.max (1m)"],
    ),
    ("[retry]\nbase = \"0s\"", &["retry.base: expected a time from 1ms to 1d"]),
    (
        "[fetch]\ntotal_timeout = \"10s\"",
        &[
            "fetch.first_byte_timeout: 30s is more than fetch.total_timeout (10s)",
            "fetch.idle_timeout: 30s",
        ],
    ),
    (
        "[identity]\nrequests_per_second = 0",
        &["identity.requests_per_second: expected a number of requests per second from 0.001"],
    ),
    ("[identity]\nrequests_per_second = -0.5", &["found -0.5"]),
    ("[identity]\nrequests_per_second = nan", &["found nan"]),
    ("[identity]\nrequests_per_second = inf", &["found inf"]),
    (
        "[network]\nports = [0]",
        &["network.ports: expected a whole number from 1 to 65535, found 0"],
    ),
    ("[network]\nports = [443,\n 65536]", &["s.toml:3: network.ports", "found 65536"]),
    ("[network]\nports = []", &["network.ports: at least one port"]),
    (
        "[window]\nstart = \"2024-12-03-00:00:00\"",
        &["s.toml:2: window.end: 2024-12-02-00:00:00 is before window.start (2024-12-03-00:00:00)"],
    ),
    (
        "[window]\nend = \"2024-02-30-00:00:00\"",
        &["window.end: expected a second that exists", "2024-02-30"],
    ),
    ("[window]\nend = \"2024-12-02T00:00:00Z\"", &["YYYY-MM-DD-HH:MM:SS"]),
    ("[window]\nend = \"2024-12-02\"", &["YYYY-MM-DD-HH:MM:SS"]),
    (
        "[window]\noutside = \"Keep\"",
        &["window.outside: expected one of \"bucket\", \"drop\", \"keep\"", "lower case"],
    ),
    ("[window]\noffsets = \"local\"", &["window.offsets: expected one of \"utc\", \"ignore\""]),
    (
        "[fetch]\ncompression = true",
        &["fetch.compression: expected one of \"auto\", \"on\", \"off\", found true"],
    ),
    (
        "[log]\nlevel = \"verbose\"",
        &["log.level: expected one of \"error\", \"warn\", \"info\", \"debug\", \"trace\""],
    ),
    ("[log]\nformat = \"xml\"", &["log.format: expected one of \"text\", \"json\""]),
];

const WRONG_MEANING: &[Wrong] = &[
    (
        "[identity]\nplc_url = \"plc.directory\"",
        &["identity.plc_url: expected a URL", "https:// is missing"],
    ),
    ("[identity]\nplc_url = \"ftp://plc.directory\"", &["only http and https"]),
    ("[identity]\nplc_url = \"https://me:secret@plc.directory\"", &["user and password"]),
    ("[identity]\nplc_url = \"https://plc.directory?x=1\"", &["query and fragment"]),
    ("[identity]\nplc_url = \"https://plc.directory#x\"", &["query and fragment"]),
    ("[identity]\nplc_url = \"https://plc.directory:0\"", &["port 0"]),
    ("[identity]\nplc_url = \"https://\"", &["identity.plc_url: expected a URL"]),
    (
        "[metrics]\nlisten = \"0.0.0.0:9464\"",
        &["s.toml:2: metrics.listen: 0.0.0.0:9464 is not loopback", "metrics.public = true"],
    ),
    ("[metrics]\nlisten = \"[::]:9464\"", &["is not loopback"]),
    (
        "[metrics]\nlisten = \"localhost:9464\"",
        &["metrics.listen: expected an address and a port", "write \"127.0.0.1:9464\""],
    ),
    ("[metrics]\nlisten = \":9464\"", &["\"0.0.0.0:9464\" is every address"]),
    ("[metrics]\nlisten = \"127.0.0.1\"", &["expected an address and a port"]),
    ("[metrics]\nlisten = \"127.0.0.1:65536\"", &["expected an address and a port"]),
    (
        "[network]\nallow = [\"10.0.0.0/33\"]",
        &["network.allow: expected a network such as", "found \"10.0.0.0/33\""],
    ),
    ("[network]\nallow = [\"localhost\"]", &["network.allow: expected a network"]),
    ("[fetch]\ncontact = \"a\\nb\"", &["fetch.contact: expected at most 200 printable"]),
    ("[records]\ntypes = []", &["records.types: at least one record type"]),
    (
        "[records]\ntypes = [\"post\",\n\"like\",\n\"post\"]",
        &["s.toml:4: records.types: \"post\" is listed twice"],
    ),
    (
        "[records]\ntypes = [\"app.bsky.feed.post\"]",
        &["records.types: \"app.bsky.feed.post\"", "called \"post\" and \"reply\" here"],
    ),
    ("[records]\ntypes = [\"app.bsky.feed.repost\"]", &["called \"repost\" here"]),
    ("[records]\ntypes = [\"app.bsky.feed.like\"]", &["called \"like\" here"]),
    ("[records]\ntypes = [\"app.bsky.graph.follow\"]", &["called \"follow\" here"]),
    ("[records]\ntypes = [\"app.bsky.graph.block\"]", &["called \"block\" here"]),
    ("[records]\ntypes = [\"likes\"]", &["records.types: expected post, reply,", "write \"like\""]),
    ("[records]\ntypes = [\"Post\"]", &["write \"post\""]),
    ("[records]\ntypes = [\"app.bsky.*.post\"]", &["expected post, reply,"]),
    ("[records]\ntypes = [\"app.bsky.feed*\"]", &["expected post, reply,"]),
    ("[records]\ntypes = [\"*\"]", &["expected post, reply,"]),
    ("[records]\ntypes = [\"../../etc/passwd\"]", &["expected post, reply,"]),
    ("[records]\ntypes = [\"a.b/../c.d\"]", &["expected post, reply,"]),
];

#[test]
fn every_wrong_file_is_refused_in_words() {
    let tables = [WRONG_FORM, UNKNOWN, WRONG_TYPE, WRONG_UNIT, WRONG_RANGE, WRONG_MEANING];
    for (text, wanted) in tables.into_iter().flatten() {
        let error = match read(text) {
            Err(error) => error,
            Ok(loaded) => panic!("accepted:\n{text}\n{loaded:?}"),
        };
        assert_says(text, &error.to_string(), wanted);
        assert_eq!(ExitCode::from(&error), ExitCode::Config);
    }
    assert!(tables.iter().map(|table| table.len()).sum::<usize>() >= 100);
}

#[test]
fn all_errors_of_a_file_are_told_at_once() {
    let text = "data_dir = 5\n[fetch]\nconcurency = 1\nidle_timeout = 30\n[limits]\nmemory = \"1MiB\"\n\
                spool = \"1GiB\"\n[records]\ntypes = [\"likes\", \"posts\"]\n";
    let said = read(text).unwrap_err().to_string();
    let wanted = [
        "s.toml:1: data_dir",
        "s.toml:3: fetch.concurency",
        "s.toml:4: fetch.idle_timeout",
        "s.toml:6: limits.memory",
        "s.toml:7: limits.spool",
        "write \"like\"",
        "write \"post\"",
    ];
    assert_says(text, &said, &wanted);
    assert_eq!(said.lines().count(), 7, "{said}");
}

#[test]
fn a_wrong_value_does_not_make_others_look_wrong() {
    let said =
        read("[window]\nstart = \"2025-01-01-00:00:00\"\nend = \"soon\"").unwrap_err().to_string();
    assert_eq!(said.lines().count(), 1, "{said}");
    assert_says("", &said, &["s.toml:3: window.end", "\"soon\""]);
}

#[test]
fn run_wants_a_data_directory_and_a_source() {
    let run = |text: &str| parse(Some(text), Some(Path::new("s.toml")), &[], Mode::Run);
    let said = run("").unwrap_err().to_string();
    assert_says(
        "",
        &said,
        &["s.toml: data_dir: is required for run", "--data-dir", "source.files and source.dids"],
    );
    let said = run("data_dir = \"d\"\n[source]\nfiles = []\n").unwrap_err().to_string();
    assert_says("", &said, &["s.toml:3: source.files", "must not be empty"]);
    assert_eq!(said.lines().count(), 1);
    run("data_dir = \"d\"\n[source]\nfiles = [\"f\"]\n").unwrap();
    run("data_dir = \"d\"\n[source]\ndids = [\"anything\"]\n").unwrap();
    let no_file = parse(None, None, &[], Mode::Run).unwrap_err().to_string();
    assert_says("", &no_file, &["configuration: data_dir"]);
}

#[test]
fn unreadable_files_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("s.toml");
    let said = |bytes: &[u8]| {
        fs::write(&path, bytes).unwrap();
        load(Some(&path), &[], Mode::Backfill).unwrap_err().to_string()
    };
    let name = path.display().to_string();
    assert_says("", &said(b"data_dir = \"a\"\n# \xff\n"), &[&name, "line 2, byte 17", "not UTF-8"]);
    assert_says("", &said(b"\xff\xfed\0a\0"), &[&name, "line 1, byte 0", "not UTF-8"]);
    assert_says("", &said(&vec![b'#'; 5 << 20]), &[&name, "larger than 4MiB"]);
    assert_says(
        "",
        &said(format!("data_dir = {}", "[".repeat(1 << 20)).as_bytes()),
        &[&name, ":1: "],
    );
    let directory = load(Some(folder.path()), &[], Mode::Backfill).unwrap_err();
    assert_says("", &directory.to_string(), &["is a directory, expected a TOML file"]);
    let missing = load(Some(&folder.path().join("none")), &[], Mode::Backfill).unwrap_err();
    assert_says("", &missing.to_string(), &["none", "No such file"]);
    assert_eq!(ExitCode::from(&missing), ExitCode::Config);
    let endless = load(Some(Path::new("/dev/zero")), &[], Mode::Backfill).unwrap_err();
    assert_says("", &endless.to_string(), &["/dev/zero", "larger than"]);
}

#[test]
fn a_file_that_may_not_be_read_is_a_matter_of_permission() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("s.toml");
    fs::write(&path, "").unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o000)).unwrap();
    if fs::File::open(&path).is_ok() {
        // Nothing is forbidden to the superuser; the mapping itself is tested in `exit_code`.
        assert!(rustix::process::geteuid().is_root());
        return;
    }
    let error = load(Some(&path), &[], Mode::Backfill).unwrap_err();
    assert!(error.is_permission());
    assert_eq!(ExitCode::from(&error), ExitCode::Permission);
    let error = open(&[ListSource::File(path)]).unwrap_err();
    assert!(error.is_permission());
}

#[test]
fn crlf_and_byte_order_mark_are_accepted() {
    let text = "\u{feff}data_dir = \"a\"\r\n[fetch]\r\nconcurrency = 8\r\n";
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("s.toml");
    fs::write(&path, text).unwrap();
    let loaded = load(Some(&path), &[], Mode::Backfill).unwrap();
    assert_eq!(
        (loaded.settings.fetch.concurrency, loaded.settings.data_dir),
        (8, PathBuf::from("a"))
    );
    fs::write(&path, text.replace('8', "\"8\"")).unwrap();
    let said = load(Some(&path), &[], Mode::Backfill).unwrap_err().to_string();
    assert_says("", &said, &[":3: fetch.concurrency"]);
}

#[test]
fn the_shipped_file_is_the_defaults_and_misses_no_key() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("config/skyfill.toml");
    let loaded = load(Some(&path), &[], Mode::Run).unwrap();
    let mut expected = Settings { data_dir: "/var/lib/skyfill".into(), ..Settings::default() };
    expected.source.files = vec!["/etc/skyfill/dids.txt".into()];
    assert_eq!(loaded, Loaded { settings: expected, warnings: Vec::new() });
    let text = fs::read_to_string(&path).unwrap();
    let mut written: Vec<String> =
        Written::parse(&text).entries.into_iter().map(|entry| entry.key).collect();
    let mut known: Vec<&str> = KEYS.iter().map(|key| key.name).collect();
    written.sort();
    known.sort_unstable();
    assert_eq!(written, known);
}

/// The example of a sink to Kafka in the shipped file, uncommented.
fn shipped_broker() -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("config/skyfill.toml");
    let text = fs::read_to_string(path).unwrap();
    let (_, example) = text.split_once("# [sink.broker]\n").unwrap();
    let (example, _) = example.split_once("\n#\n").unwrap();
    let lines = example.lines().map(|line| line.strip_prefix("# ").unwrap());
    format!("[sink.broker]\n{}\n", lines.collect::<Vec<_>>().join("\n"))
}

#[test]
fn the_shipped_example_of_a_sink_to_kafka_has_the_defaults_and_what_is_wrong_with_one_is_named() {
    let text = shipped_broker();
    let broker = Broker::new("kafka-1:9092,kafka-2:9092");
    let place = SinkPlace::Broker(broker);
    assert_eq!(settings(&text).sinks, [SinkSettings::new("broker", SinkForm::Kafka, place)]);
    let more = text.replace("# replicas", "replicas").replace("# credentials", "credentials");
    let sinks = settings(&more).sinks;
    let SinkPlace::Broker(broker) = &sinks[0].place else { panic!("{sinks:?}") };
    assert_eq!(
        (broker.replicas, &broker.credentials),
        (Some(3), &Some("/etc/skyfill/kafka".into()))
    );
    let flags =
        ["type=kafka", "brokers= a:1, [::1]:2", "partitions=3", "compression=none", "lag_max=2GiB"];
    let sinks = set(&flags.map(|flag| format!("sink.x.{flag}")).each_ref().map(String::as_str));
    let sinks = sinks.unwrap().settings.sinks;
    let SinkPlace::Broker(broker) = &sinks[0].place else { panic!("{sinks:?}") };
    assert_eq!((broker.partitions, sinks[0].zstd, sinks[0].lag_max), (3, false, 2 << 30));
    assert_eq!(sinks[0].place.to_string(), "kafka://a:1,[::1]:2/skyfill");
    let good = "[sink.x]\ntype = \"kafka\"\nbrokers = \"b:9092\"\n";
    for (text, expected) in [
        ("[sink.x]\ntype = \"kafka\"\n".to_owned(), "2: sink.x.brokers: is required"),
        (good.replace(":9092", ""), "3: sink.x.brokers: expected brokers such as"),
        (good.replace(":9092", ":0"), "each is host:port"),
        (
            format!("{good}path = \"p\"\n"),
            "4: sink.x.path: a sink with type = \"kafka\" has no use",
        ),
        (format!("{good}topics = \".x\"\n"), "4: sink.x.topics: expected a word"),
        (format!("{good}topics = \"a b\"\n"), "4: sink.x.topics: expected a word"),
        (format!("{good}partitions = 0\n"), "4: sink.x.partitions: expected a whole number from 1"),
        (format!("{good}partitions = \"3\"\n"), "without quotes"),
        (format!("{good}transaction_bytes = \"1KiB\"\n"), "4: sink.x.transaction_bytes"),
        (
            format!("{good}{}", good.replace("sink.x", "sink.y")),
            "sink.y: kafka://b:9092/skyfill is where",
        ),
        (
            "[sink.x]\ntype = \"jsonl\"\npath = \"p\"\nbrokers = \"b:1\"\n".to_owned(),
            "4: sink.x.brokers: only a sink with type = \"kafka\"",
        ),
    ] {
        let said = read(&text).unwrap_err().to_string();
        assert!(said.contains(expected), "{text}{said}");
    }
}

#[test]
fn a_consumer_group_stands_instead_of_lists_and_beside_one_sink_to_kafka() {
    let sink = "[sink.x]\ntype = \"kafka\"\nbrokers = \"b:9092\"\n";
    let run = |text: &str| parse(Some(text), Some(Path::new("s.toml")), &[], Mode::Run);
    let with = |source: &str, sinks: &str| format!("data_dir = \"d\"\n[source]\n{source}\n{sinks}");
    let read = run(&with("group = \"study.A_b-1\"", sink)).unwrap().settings;
    assert_eq!(read.source.group.as_deref(), Some("study.A_b-1"));
    assert_eq!(ListSource::configured(&read.source), []);
    assert_eq!(run(&with("group = \"\"\ndids = [\"x\"]", "")).unwrap().settings.source.group, None);
    let longest = "g".repeat(100);
    assert!(run(&with(&format!("group = \"{longest}\""), sink)).is_ok());
    let two = format!("{sink}{}", sink.replace("sink.x", "sink.y").replace("b:", "c:"));
    let files = "[sink.f]\ntype = \"jsonl\"\npath = \"p\"\n";
    for (source, sinks, wanted) in [
        (
            "group = \"g\"\nfiles = [\"f\"]",
            sink,
            "s.toml:3: source.group: a worker takes its accounts from",
        ),
        (
            "dids = [\"x\"]\ngroup = \"g\"",
            sink,
            "s.toml:4: source.group: a worker takes its accounts from",
        ),
        ("group = \"g\"", "", "s.toml:3: source.group: needs a sink with type = \"kafka\""),
        ("group = \"g\"", files, "s.toml:3: source.group: needs a sink with type = \"kafka\""),
        ("group = \"g\"", &two, "s.toml:3: source.group: needs exactly one sink"),
        ("group = \"a b\"", sink, "s.toml:3: source.group: expected a consumer group such as"),
        ("group = \"a/b\"", sink, "(letters, digits, dots, dashes and underscores"),
        (&format!("group = \"{longest}g\""), sink, "at most 100 of them"),
        ("group = 5", sink, "s.toml:3: source.group: expected a consumer group"),
        ("group = \"\"", sink, "source.group, is required for run"),
        ("group = \"g\"", "[sink.x]\ntype = \"kafka\"\n", "sink.x.brokers: is required"),
    ] {
        let said = run(&with(source, sinks)).unwrap_err().to_string();
        assert_says(source, &said, &[wanted]);
        assert_eq!(said.lines().count(), 1, "{said}");
    }
    let set = |value: &str| Assignment::parse(value).unwrap();
    let beside = parse(Some(sink), None, &[set("source.group=g")], Mode::Backfill).unwrap();
    assert_eq!(beside.settings.source.group.as_deref(), Some("g"));
    let moved = changes(&Settings::default(), &beside.settings);
    let moved = moved.iter().find(|change| change.key == "source.group").unwrap();
    assert_eq!(moved.effect, Effect::Fixed);
}

/// The example of a sink in the shipped file, uncommented.
fn shipped_sink() -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("config/skyfill.toml");
    let text = fs::read_to_string(path).unwrap();
    let (_, example) = text.split_once("# [sink.files]\n").unwrap();
    let lines = example.lines().map(|line| line.strip_prefix("# ").unwrap());
    format!("[sink.files]\n{}\n", lines.collect::<Vec<_>>().join("\n"))
}

#[test]
fn the_shipped_example_of_a_sink_is_a_sink_with_the_defaults_and_names_every_key() {
    let text = shipped_sink();
    let place = SinkPlace::Folder("/srv/skyfill".into());
    let sink = SinkSettings::new("files", SinkForm::JsonLines, place);
    assert_eq!(settings(&text).sinks, [sink]);
    let as_url: Vec<&str> = text
        .lines()
        .map(|line| match line.strip_prefix("# ") {
            Some(key) if SINK_KEYS.iter().any(|it| key.starts_with(&format!("{it} ="))) => key,
            _ => line,
        })
        .filter(|line| !line.starts_with("path"))
        .collect();
    let sinks = settings(&as_url.join("\n")).sinks;
    let SinkPlace::Bucket(bucket) = &sinks[0].place else { panic!("{sinks:?}") };
    assert_eq!((bucket.bucket.as_str(), bucket.prefix.as_str()), ("bucket", "skyfill"));
    assert_eq!(bucket.endpoint.as_ref().unwrap().as_str(), "https://minio.example.org/");
    assert_eq!(bucket.credentials, Some("/etc/skyfill/s3".into()));
    let both = text + &shipped_broker();
    for key in SINK_KEYS {
        assert!(both.contains(&format!("{key} = ")), "{key} is not in the examples");
    }
}

#[test]
fn several_sinks_are_read_by_name_and_set_from_the_command_line() {
    let text = "sink.b.type = \"parquet\"\nsink.b.path = \"b\"\n[sink.a]\ntype = \"jsonl\"\n\
                path = \"a\"\ncompression = \"none\"\nfile_bytes = \"1MiB\"\nfile_age = \"30s\"\n\
                lag_max = \"64MiB\"\n[limits]\njournal = \"96MiB\"\n";
    let sinks = settings(text).sinks;
    let told: Vec<_> = sinks.iter().map(|it| (it.name.as_str(), it.form, it.zstd)).collect();
    assert_eq!(told, [("a", SinkForm::JsonLines, false), ("b", SinkForm::Parquet, true)]);
    assert_eq!((sinks[0].file_bytes, sinks[0].file_age.as_secs()), (1 << 20, 30));
    assert_eq!((sinks[0].lag_max, sinks[1].lag_max), (64 << 20, (96 << 20) * 3 / 4));
    let read = set(&["sink.x-1.type=jsonl", "sink.x-1.url=s3://b/p/", "sink.x-1.file_age=5s"]);
    let sinks = read.unwrap().settings.sinks;
    assert_eq!((sinks[0].place.to_string(), sinks[0].file_age.as_secs()), ("s3://b/p".into(), 5));
}

#[test]
fn wrong_sinks_name_key_and_line() {
    let good = "[sink.x]\ntype = \"jsonl\"\npath = \"p\"\n";
    for (text, wanted) in [
        (
            "[sink.x]\n".to_owned(),
            vec!["1: sink.x.type: is required", "1: sink.x: one of path and url"],
        ),
        (
            format!("{good}compresion = \"none\"\n"),
            vec!["4: sink.x.compresion: unknown key, did you mean sink.x.compression?"],
        ),
        (
            format!("{good}zzzzzz = 1\n"),
            vec!["4: sink.x.zzzzzz", "the keys of [sink.x] are type, path"],
        ),
        (format!("{good}file_bytes = 5\n"), vec!["4: sink.x.file_bytes", "a unit is missing"]),
        (
            format!("{good}lagmax = \"1GiB\"\n"),
            vec!["4: sink.x.lagmax: unknown key, did you mean sink.x.lag_max?"],
        ),
        (
            format!("{good}lag_max = \"1KiB\"\n"),
            vec!["4: sink.x.lag_max: expected a size from 1MiB"],
        ),
        (
            format!("{good}lag_max = \"5GiB\"\n"),
            vec![
                "4: sink.x.lag_max: 5GiB is more than limits.journal (4GiB): raise that, or lower it",
            ],
        ),
        (
            format!("limits.journal = \"64MiB\"\n{good}lag_max = \"65MiB\"\n"),
            vec!["5: sink.x.lag_max: 65MiB is more than limits.journal (64MiB)"],
        ),
        (
            format!("{good}compression = \"gzip\"\n"),
            vec!["4: sink.x.compression", "\"zstd\", \"none\""],
        ),
        (format!("{good}url = \"s3://b\"\n"), vec!["4: sink.x.url: path and url are two places"]),
        (format!("{good}region = \"r\"\n"), vec!["4: sink.x.region: only a sink with a url"]),
        (
            "[sink.X]\ntype = \"jsonl\"\n".to_owned(),
            vec!["2: sink.X.type: X: a sink's name has small letters"],
        ),
        (
            "[sink]\ntype = \"jsonl\"\n".to_owned(),
            vec!["2: sink.type: is a sink, write [sink.type]"],
        ),
        ("sink = 1\n".to_owned(), vec!["1: sink: is a section, write [sink.NAME]"]),
        (
            "[sink.x]\ntype = \"csv\"\nurl = \"gs://b\"\n".to_owned(),
            vec!["2: sink.x.type", "3: sink.x.url", "only s3 is spoken"],
        ),
        (
            format!("{good}{}", good.replace("sink.x", "sink.y")),
            vec!["sink.y: p is where sink.x writes, too"],
        ),
        ("[sinks.x]\ntype = \"jsonl\"\n".to_owned(), vec!["sinks"]),
    ] {
        let said = parse(Some(&text), None, &[], Mode::Backfill).unwrap_err().to_string();
        assert_says(&text, &said, &wanted);
    }
    let said = set(&["sink.x.typ=jsonl"]).unwrap_err().to_string();
    assert_says("", &said, &["--set sink.x.typ=jsonl", "did you mean sink.x.type?"]);
    // What could not be read proves nothing about the other.
    let text = format!("limits.journal = 5\n{good}lag_max = \"5GiB\"\n");
    let said = parse(Some(&text), None, &[], Mode::Backfill).unwrap_err().to_string();
    assert!(said.contains("limits.journal") && !said.contains("lag_max"), "{said}");
    // An empty table asks for nothing.
    assert_eq!(settings("[sink]\n").sinks, []);
}

#[test]
fn the_defaults_are_the_design_s() {
    let run = Settings::default();
    assert_eq!(run.filter.window.start, "2024-09-27-00:00:00");
    assert_eq!(run.filter.window.end, "2024-12-02-00:00:00");
    assert_eq!(run.identity.plc_url.as_str(), "https://plc.directory/");
    assert_eq!(
        (run.retry.attempts, run.retry.base.as_secs(), run.retry.max.as_secs()),
        (5, 5, 900)
    );
    assert_eq!(run.retry.host_patience, Duration::from_secs(24 * 3_600));
    assert_eq!(run.limits.parsers, cores());
    let backfill = settings("");
    assert_eq!(backfill.data_dir, PathBuf::from("./skyfill-data"));
    assert_eq!(backfill.retry.host_patience, Duration::from_secs(3_600));
    assert_eq!(
        settings("[retry]\nhost_patience = \"2h\"").retry.host_patience,
        Duration::from_secs(7_200)
    );
    assert_eq!(settings("[limits]\nparsers = 3").limits.parsers, 3);
}

#[test]
fn values_arrive_where_they_belong() {
    let read = settings(
        "data_dir = \"d\"\nwindow.outside = \"drop\"\nwindow.offsets = \"ignore\"\n[records]\n\
         types = [\"like\", \"app.bsky.actor.profile\", \"app.bsky.graph.*\", \"com.*\"]\n\
         [identity]\nplc_url = \"http://127.0.0.1:2582/base/\"\nrequests_per_second = 0.5\ncache_ttl = \"0s\"\n\
         [fetch]\ncompression = \"off\"\ncontact = \"me@example.org\"\nmin_bytes_per_second = \"0B\"\n\
         [network]\nallow = [\"127.0.0.0/8\", \"::1\"]\nports = [443, 8443]\n\
         [metrics]\nlisten = \"0.0.0.0:80\"\npublic = true\n[log]\nlevel = \"debug\"\nformat = \"json\"\n",
    );
    assert_eq!(
        (read.filter.window.outside, read.filter.window.offsets),
        (Outside::Drop, Offsets::Ignore)
    );
    let types = [
        TypeEntry::Kind(Kind::Like),
        TypeEntry::Nsid("app.bsky.actor.profile".into()),
        TypeEntry::Prefix("app.bsky.graph.".into()),
        TypeEntry::Prefix("com.".into()),
    ];
    assert_eq!(read.filter.types, types);
    assert_eq!(read.identity.plc_url.as_str(), "http://127.0.0.1:2582/base");
    assert_eq!((read.identity.requests_per_second, read.identity.cache_ttl), (0.5, Duration::ZERO));
    assert_eq!((read.fetch.compression, read.fetch.min_bytes_per_second), (Compression::Off, 0));
    let networks = ["127.0.0.0/8", "::1/128"].map(|text| Cidr::parse(text).unwrap());
    assert_eq!((read.network.allow, read.network.ports), (networks.to_vec(), vec![443, 8443]));
    assert_eq!(read.metrics.listen, Some(SocketAddr::from(([0, 0, 0, 0], 80))));
    assert_eq!((read.log.level, read.log.format), (tracing::Level::DEBUG, LogFormat::Json));
    assert_eq!(settings("[metrics]\nlisten = \"\"").metrics.listen, None);
}

#[test]
fn assignments_need_no_quotes_and_later_ones_win() {
    let loaded = set(&[
        "window.start=2024-10-01-00:00:00",
        "fetch.concurrency=8",
        "fetch.concurrency=9",
        "limits.memory=64MiB",
        "fetch.idle_timeout=\"10s\"",
        "identity.requests_per_second=2",
        "source.dids=[\"did:plc:a\", \"did:plc:b\"]",
        "records.types=post,app.bsky.graph.*",
        "network.allow=127.0.0.0/8",
        "network.ports=8443",
        "source.files=a,b.txt",
        "metrics.public=true",
        "metrics.listen=",
        "data_dir=123",
        "fetch.contact=a = b",
    ]);
    let read = loaded.unwrap().settings;
    assert_eq!(read.filter.window.start, "2024-10-01-00:00:00");
    assert_eq!((read.fetch.concurrency, read.limits.memory), (9, 64 << 20));
    assert_eq!(read.fetch.idle_timeout, Duration::from_secs(10));
    assert_eq!(read.source.dids, ["did:plc:a", "did:plc:b"]);
    assert_eq!(read.source.files, [PathBuf::from("a,b.txt")]);
    assert_eq!(
        read.filter.types,
        [TypeEntry::Kind(Kind::Post), TypeEntry::Prefix("app.bsky.graph.".into())]
    );
    assert_eq!((read.network.allow.len(), read.network.ports), (1, vec![8443]));
    assert_eq!((read.metrics.public, read.metrics.listen), (true, None));
    assert_eq!((read.data_dir, read.fetch.contact.as_str()), (PathBuf::from("123"), "a = b"));
    let text = Some("data_dir = \"file\"\n[fetch]\nconcurrency = 1\n");
    let later = [
        Assignment::parse("fetch.concurrency=2").unwrap(),
        Assignment::flag("--data-dir", "data_dir", "flag"),
    ];
    let read = parse(text, None, &later, Mode::Backfill).unwrap().settings;
    assert_eq!((read.fetch.concurrency, read.data_dir), (2, PathBuf::from("flag")));
}

#[test]
fn lists_can_be_added_to() {
    let read = set(&["network.ports=443,8443", "network.ports+=9443", "network.ports+=443"])
        .unwrap()
        .settings;
    assert_eq!(read.network.ports, [443, 8443, 9443]);
    let text = Some("[network]\nallow = [\"10.0.0.0/8\"]\n");
    let flags = ["127.0.0.0/8", "::1/128"]
        .map(|cidr| Assignment::flag("--allow-network", "network.allow+", cidr));
    let read = parse(text, None, &flags, Mode::Backfill).unwrap().settings;
    let shown: Vec<String> = read.network.allow.iter().map(ToString::to_string).collect();
    assert_eq!(shown, ["10.0.0.0/8", "127.0.0.0/8", "::1/128"]);
}

#[test]
fn wrong_assignments_name_the_flag_and_the_key() {
    for (assignment, wanted) in [
        (
            "fetch.concurrency=eight",
            ["--set fetch.concurrency=eight: fetch.concurrency", "a whole number", "\"eight\""],
        ),
        (
            "fetch.concurency=8",
            [
                "--set fetch.concurency=8: fetch.concurency",
                "unknown key",
                "did you mean fetch.concurrency?",
            ],
        ),
        ("window.start=2024-13-01-00:00:00", ["window.start", "YYYY-MM-DD-HH:MM:SS", "2024-13-01"]),
        ("limits.memory=256", ["limits.memory", "a unit is missing", "256MiB"]),
        ("source.dids=[did:plc:a]", ["source.dids", "not a list", "single quotes"]),
        ("window=x", ["window", "is a section", "start, end"]),
        ("fetch.concurrency+=1", ["fetch.concurrency", "+= adds to a list", "--set"]),
        ("network.ports=443,none", ["network.ports", "whole number", "none"]),
        ("network.ports=[]", ["network.ports", "at least one", "--set"]),
        ("records.types=", ["records.types", "at least one", "--set"]),
        ("metrics.listen=0.0.0.0:1", ["metrics.listen", "not loopback", "--set"]),
        ("fetch.contact=a\u{1b}[2Jb", ["fetch.contact", "printable", "\\u{1b}"]),
    ] {
        assert_says(assignment, &set(&[assignment]).unwrap_err().to_string(), &wanted);
    }
    let flag = [Assignment::flag("--start-timestamp", "window.start", "now")];
    let said = parse(None, None, &flag, Mode::Backfill).unwrap_err().to_string();
    assert_says("", &said, &["--start-timestamp: window.start: expected a second"]);
    assert!(Assignment::parse("novalue").is_err() && Assignment::parse("=x").is_err());
}

#[test]
fn a_good_assignment_mends_a_bad_one_but_not_the_file() {
    set(&["fetch.concurrency=x", "fetch.concurrency=8"]).unwrap();
    let good = [Assignment::parse("fetch.concurrency=8").unwrap()];
    let said = parse(Some("[fetch]\nconcurrency = 0\n"), None, &good, Mode::Backfill).unwrap_err();
    assert_says("", &said.to_string(), &[":2: fetch.concurrency"]);
}

#[test]
fn odd_settings_are_warned_of() {
    for (text, wanted) in [
        (
            "[limits]\nspool_memory = \"200MiB\"",
            ["s.toml:2: limits.spool_memory", "half of limits.memory"],
        ),
        ("[fetch]\nconcurrency = 2", ["fetch.host_concurrency", "fetch.concurrency (2)"]),
        ("[network]\nallow = [\"0.0.0.0/0\"]", ["s.toml:2: network.allow", "every address"]),
        (
            "[identity]\nplc_url = \"http://example.com\"",
            ["s.toml:2: identity.plc_url", "plain http"],
        ),
        (
            "[source]\nfiles = [\"a\", \"b\", \"a\"]",
            ["s.toml:2: source.files", "a is listed twice"],
        ),
    ] {
        let warnings = read(text).unwrap().warnings;
        assert_eq!(warnings.len(), 1, "{warnings:?}");
        assert_says(text, &warnings[0], &wanted);
    }
    for text in [
        "",
        "[identity]\nplc_url = \"http://127.0.0.1:1\"",
        "[identity]\nplc_url = \"http://localhost:1\"",
    ] {
        assert_eq!(read(text).unwrap().warnings, Vec::<String>::new());
    }
}

fn list(text: impl Into<Vec<u8>>) -> Vec<Result<Target, TargetError>> {
    let bytes: Vec<u8> = text.into();
    from_reader("l.txt", Box::new(io::Cursor::new(bytes))).collect()
}

/// DIDs as they are, malformed entries as `! cleaned | detail`.
fn shown(text: impl Into<Vec<u8>>) -> Vec<String> {
    let show = |target: Result<Target, TargetError>| match target.unwrap() {
        Target::Did(did) => did.to_string(),
        Target::Malformed { cleaned, detail } => format!("! {cleaned} | {detail}"),
    };
    list(text).into_iter().map(show).collect()
}

#[test]
fn the_three_forms_of_a_list_name_the_same() {
    let both = [DID.to_owned(), OTHER.to_owned()];
    for text in [
        format!("{DID}\n{OTHER}\n"),
        format!("{DID}\n{OTHER}"),
        format!("\u{feff}# a list\r\n\r\n  {DID}\t\r\n#{DID}\r\n{OTHER}  # with a remark\r\n"),
        format!("did\n{DID}\n{OTHER}\n"),
        format!("\u{feff}\"did\"\n\"{DID}\"\n\"{OTHER}\"\n"),
        format!("# exported\nhandle, DID ,name\na.b,{DID},x\n\n# c,{DID},y\nc.d, {OTHER} ,\n"),
        format!("name;did\n\"x;y\";{DID}\nz;{OTHER}\n"),
        format!("name\tdid\nx\t{DID}\nz\t{OTHER}\n"),
        format!(
            "name,did\n\"a \"\"b\"\", c\",{DID}\n\"two\nlines, and \"\"quotes\"\"\n\",{OTHER}\n"
        ),
        format!(
            "{{\"did\": \"{DID}\", \"n\": [1, {{}}]}}\n\n{{\"a\": 1, \"did\": \" {OTHER}\"}}\n"
        ),
    ] {
        assert_eq!(shown(text.clone()), both, "{text}");
    }
}

#[test]
fn malformed_entries_are_named_and_stop_nothing() {
    let plc = "did:plc wants 24 characters of a-z and 2-7 after it";
    assert_eq!(
        shown(format!("{DID}\n\ndid:plc:SHORT\nalice.bsky.social\u{1b}[2J\n{OTHER}\n")),
        [
            DID.to_owned(),
            format!("! did:plc:SHORT | l.txt:3: {plc}"),
            "! alice.bsky.social\\u{1b}[2J | l.txt:4: neither did:plc nor did:web".to_owned(),
            OTHER.to_owned(),
        ]
    );
    assert_eq!(
        shown(format!("name,did\na\nb,\nc,did:plc:x,d\n,,\n{DID},\ne,{OTHER}\n")),
        [
            "! a | l.txt:2: no did in this row".to_owned(),
            "! b, | l.txt:3: no did in this row".to_owned(),
            format!("! did:plc:x | l.txt:4: {plc}"),
            "! ,, | l.txt:5: no did in this row".to_owned(),
            format!("! {DID}, | l.txt:6: no did in this row"),
            OTHER.to_owned(),
        ]
    );
    assert_eq!(
        shown(format!(
            "{{\"did\": 5}}\n{{\"dod\": \"{DID}\"}}\n{{\"did\": \"{DID}\"\n[]\n{{\"did\": \"\"}}\n{{\"did\": \"{DID}\"}}"
        )),
        [
            "! {\"did\": 5} | l.txt:1: did is not a text".to_owned(),
            format!("! {{\"dod\": \"{DID}\"}} | l.txt:2: no did key"),
            format!("! {{\"did\": \"{DID}\" | l.txt:3: not JSON at column 42"),
            "! [] | l.txt:4: not JSON at column 2".to_owned(),
            "! {\"did\": \"\"} | l.txt:5: did is not a text".to_owned(),
            DID.to_owned(),
        ]
    );
}

#[test]
fn a_quote_that_is_never_closed_loses_no_row() {
    let mut text = format!("did,name\n{DID},\"never closed\n");
    for _ in 0..2_000 {
        writeln!(text, "{OTHER},plain").unwrap();
    }
    let found = shown(text);
    assert_eq!((found.len(), found[0].as_str(), found[1].as_str()), (2_001, DID, OTHER));
    // Closed by a later row's quote, after which no field can go on as it does.
    let found = shown(format!("did,name\n{DID},\"open\n{OTHER},\"closed\"\n{DID},x\n"));
    assert_eq!(found, [DID, OTHER, DID]);
    let huge = format!(
        "did,name\n{DID},\"open\n{}{OTHER},x\n",
        format!("{OTHER},{}\n", "y".repeat(1_000)).repeat(3_000)
    );
    assert_eq!(shown(huge).len(), 3_002);
}

#[test]
fn a_text_that_is_cut_never_looks_like_somebody() {
    let host = format!("did:web:{}", "a.".repeat(96));
    let found = shown(format!("{host}b.cde/{}\n", "x".repeat(100)));
    let cleaned = found[0].trim_start_matches("! ").split(" | ").next().unwrap().to_owned();
    assert!(skyfill::domain::did::Did::parse(&cleaned).is_err(), "{cleaned}");
    let long = shown(format!("did:web:{}\n", "a.".repeat(95) + "bc" + &"d".repeat(500)));
    let cleaned = long[0].trim_start_matches("! ").split(" | ").next().unwrap().to_owned();
    assert!(cleaned.ends_with('\u{2026}') && cleaned.chars().count() == 200, "{cleaned}");
}

#[test]
fn what_is_no_list_is_refused_with_its_line() {
    let wrong: &[(&[u8], &[&str])] = &[
        (b"did:plc:a\ndid:plc:b\0\n", &["l.txt:2: ", "a NUL at byte 19"]),
        (b"did:plc:a\n\nx\xffy\n", &["l.txt:3: ", "byte 12 is not UTF-8"]),
        (b"\xff\xfed\0i\0d\0", &["l.txt:1: ", "UTF-16"]),
        (b"\x1f\x8b\x08\0\0\0", &["l.txt:1: ", "gzip"]),
        (b"SQLite format 3\0\x10\0", &["l.txt:1: ", "--dids-queue"]),
        (b"PK\x03\x04\x14\0", &["l.txt:1: ", "save it as CSV"]),
        (b"(\xb5/\xfd\x04\0", &["l.txt:1: ", "zstd"]),
    ];
    for (bytes, wanted) in wrong {
        let found = list(*bytes);
        let error = found.last().unwrap().as_ref().unwrap_err();
        assert_says("", &error.to_string(), wanted);
        assert_eq!(ExitCode::from(error), ExitCode::Config);
        assert_eq!(found.iter().filter(|target| target.is_err()).count(), 1);
    }
}

/// Counts what is read of it.
struct Endless(std::sync::Arc<std::sync::atomic::AtomicU64>, &'static [u8]);

impl Read for Endless {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.0.fetch_add(buffer.len() as u64, std::sync::atomic::Ordering::Relaxed);
        let at = usize::try_from(read).unwrap() % self.1.len();
        buffer.iter_mut().zip(self.1.iter().cycle().skip(at)).for_each(|(to, from)| *to = *from);
        Ok(buffer.len())
    }
}

#[test]
fn a_line_without_end_is_given_up_at_1_mib() {
    let read = std::sync::Arc::<std::sync::atomic::AtomicU64>::default();
    let endless = Endless(std::sync::Arc::clone(&read), b"x");
    let found: Vec<_> = from_reader("l.txt", Box::new(BufReader::new(endless))).collect();
    assert_eq!(found.len(), 1);
    assert_says(
        "",
        &found[0].as_ref().unwrap_err().to_string(),
        &["l.txt:1: ", "longer than 1048576 bytes"],
    );
    assert!(read.load(std::sync::atomic::Ordering::Relaxed) <= (1 << 20) + (16 << 10));
    let just_fits = "x".repeat(1 << 20);
    assert_eq!(shown(format!("{just_fits}\n{DID}\n")).len(), 2);
    let too_long = list(format!("{DID}\n{just_fits}x\n{DID}\n"));
    assert_eq!(too_long.len(), 2);
    assert_says("", &too_long[1].as_ref().unwrap_err().to_string(), &["l.txt:2: "]);
}

#[test]
fn a_long_list_is_streamed() {
    let read = std::sync::Arc::<std::sync::atomic::AtomicU64>::default();
    let lines = b"did:plc:z72i7hdynmk6r22z27h6tvur\n";
    let endless = Endless(std::sync::Arc::clone(&read), lines);
    let mut targets = from_reader("l.txt", Box::new(BufReader::new(endless)));
    let first = targets.by_ref().take(100_000);
    assert!(first.into_iter().all(|target| matches!(target, Ok(Target::Did(_)))));
    assert_eq!(targets.counts(), Counts { dids: 100_000, malformed: 0 });
    assert!(
        read.load(std::sync::atomic::Ordering::Relaxed)
            <= 100_000 * lines.len() as u64 + (16 << 10)
    );
}

#[test]
fn sources_follow_one_another() {
    let folder = tempfile::tempdir().unwrap();
    let (plain, csv) = (folder.path().join("a.txt"), folder.path().join("b.csv"));
    fs::write(&plain, format!("{DID}\nbad")).unwrap();
    fs::write(&csv, format!("did\n{OTHER}\n")).unwrap();
    let inline = ListSource::Inline {
        name: "--dids".into(),
        dids: vec![format!(" {DID} "), " ".into(), "did:x".into()],
    };
    let mut targets = open(&[ListSource::file(&plain), inline, ListSource::file(&csv)]).unwrap();
    let found: Vec<Target> = targets.by_ref().map(Result::unwrap).collect();
    assert_eq!(found.len(), 5);
    assert_eq!(targets.counts(), Counts { dids: 3, malformed: 2 });
    let details: Vec<String> = found
        .iter()
        .filter_map(|target| match target {
            Target::Malformed { detail, .. } => Some(detail.clone()),
            Target::Did(_) => None,
        })
        .collect();
    assert!(details[0].starts_with(&format!("{}:2: ", plain.display())), "{details:?}");
    assert!(details[1].starts_with("--dids: neither"), "{details:?}");
    let mut empty = open(&[]).unwrap();
    assert!(empty.next().is_none() && empty.counts().total() == 0);
    fs::write(&plain, "\n# nothing\n\n").unwrap();
    let mut nothing = open(&[ListSource::File(plain)]).unwrap();
    assert!(nothing.next().is_none() && nothing.counts().total() == 0);
}

#[test]
fn lists_that_are_not_there_are_named_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let missing = folder.path().join("none.txt");
    let good = folder.path().join("good.txt");
    fs::write(&good, DID).unwrap();
    let error = open(&[ListSource::File(good), ListSource::File(missing.clone())]).unwrap_err();
    assert_says("", &error.to_string(), &["none.txt", "No such file"]);
    assert_eq!(ExitCode::from(&error), ExitCode::Config);
    let error = open(&[ListSource::File(folder.path().to_owned())]).unwrap_err();
    assert_says("", &error.to_string(), &[&folder.path().display().to_string(), "is a directory"]);
    let error = open(&[ListSource::Queue(missing)]).unwrap_err();
    assert_says("", &error.to_string(), &["none.txt", "No such file"]);
    let zero: Vec<_> = open(&[ListSource::File("/dev/zero".into())]).unwrap().collect();
    assert_says(
        "",
        &zero[0].as_ref().unwrap_err().to_string(),
        &["/dev/zero:1: ", "a NUL at byte 0"],
    );
}

fn input_queue(path: &Path, payloads: &[&str]) -> rusqlite::Connection {
    let connection = rusqlite::Connection::open(path).unwrap();
    connection
        .execute_batch(
            "PRAGMA journal_mode=WAL;
             CREATE TABLE queue (id INTEGER PRIMARY KEY AUTOINCREMENT, payload TEXT, metadata TEXT,
                 created_at TIMESTAMP DEFAULT CURRENT_TIMESTAMP, status TEXT DEFAULT 'pending');",
        )
        .unwrap();
    for (at, payload) in payloads.iter().enumerate() {
        let status = ["pending", "processing", "completed", "failed"][at % 4];
        connection
            .execute("INSERT INTO queue (payload, status) VALUES (?1, ?2)", (payload, status))
            .unwrap();
    }
    connection
}

#[test]
fn the_input_queue_is_read_whatever_its_status() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("input #1?.db");
    let many = format!("[{{\"did\": \"{DID}\", \"n\": {{}}}}, {{\"did\": \"{OTHER}\"}}]");
    let one = format!("{{\"did\": \"{DID}\"}}");
    let mixed = format!(
        "[{{\"did\": \"{DID}\"}}, 5, null, {{\"dod\": 1}}, {{\"did\": []}}, \"{OTHER}\", {{\"did\": \"bad\"}}]"
    );
    let broken = format!("[{{\"did\": \"{DID}\"}}, ");
    let connection = input_queue(&path, &[&many, &one, "[]", &mixed, &broken, "", &many]);
    connection.execute("INSERT INTO queue (payload) VALUES (NULL)", []).unwrap();
    let read = || {
        let mut targets = open(&[ListSource::Queue(path.clone())]).unwrap();
        let found: Vec<Target> = targets.by_ref().map(Result::unwrap).collect();
        (targets.counts(), found)
    };
    let (counts, found) = read();
    assert_eq!(counts, Counts { dids: 8, malformed: 8 }, "{found:?}");
    let bad = found.iter().any(|target| {
        matches!(target, Target::Malformed { cleaned, detail } if cleaned == "bad" && detail.contains("input #1?.db row 4: neither"))
    });
    assert!(bad, "{found:?}");
    // A clean file without WAL or index beside it, in a folder that nobody may write to.
    connection.execute_batch("PRAGMA wal_checkpoint(TRUNCATE)").unwrap();
    drop(connection);
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o555)).unwrap();
    assert_eq!(read(), (counts, found));
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
}

#[test]
fn what_is_no_input_queue_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let read = |path: &Path| {
        let found: Vec<_> = open(&[ListSource::Queue(path.to_owned())]).unwrap().collect();
        assert_eq!(found.len(), 1);
        found.into_iter().next().unwrap().unwrap_err()
    };
    let text = folder.path().join("text.db");
    fs::write(&text, format!("{DID}\n").repeat(100)).unwrap();
    let error = read(&text);
    assert_says(
        "",
        &error.to_string(),
        &["text.db", "not a database", "the service's input queue"],
    );
    assert_eq!(ExitCode::from(&error), ExitCode::Config);
    let other = folder.path().join("other.db");
    rusqlite::Connection::open(&other).unwrap().execute_batch("CREATE TABLE t (a)").unwrap();
    assert_says("", &read(&other).to_string(), &["other.db", "no such table: queue"]);
    let large = folder.path().join("large.db");
    input_queue(&large, &[&" ".repeat(9 << 20), &format!("[{{\"did\": \"{DID}\"}}]")]);
    let found: Vec<Target> =
        open(&[ListSource::Queue(large)]).unwrap().map(Result::unwrap).collect();
    assert!(matches!(&found[0], Target::Malformed { detail, .. } if detail.contains("too large")));
    assert!(matches!(&found[1], Target::Did(_)));
}

#[test]
fn the_configured_sources_are_files_and_dids() {
    let read = settings("[source]\nfiles = [\"a\", \"-\"]\ndids = [\"x\"]\n");
    let expected = vec![
        ListSource::File("a".into()),
        ListSource::Stdin,
        ListSource::Inline { name: "source.dids".into(), dids: vec!["x".into()] },
    ];
    assert_eq!(ListSource::configured(&read.source), expected);
}

#[test]
fn the_example_list_is_one() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("config/dids.example.txt");
    let found: Vec<Target> = open(&[ListSource::File(path)]).unwrap().map(Result::unwrap).collect();
    assert!(
        found.len() == 2 && found.iter().all(|target| matches!(target, Target::Did(_))),
        "{found:?}"
    );
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig { failure_persistence: None, ..Default::default() })]

    #[test]
    fn no_text_breaks_the_reader(text in "[\\[\\]\\{\\}a-z_.=\"'#0-9 \n\r\u{feff}é\\\\-]{0,200}") {
        let _either = read(&text);
        for key in KEYS {
            let assignment = Assignment::flag("--x", key.name, text.clone());
            if let Err(error) = parse(None, None, &[assignment], Mode::Backfill) {
                proptest::prop_assert!(error.to_string().contains("--x: "));
            }
        }
    }

    #[test]
    fn no_bytes_break_a_list(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..300)) {
        let found = list(bytes);
        proptest::prop_assert!(found.iter().rev().skip(1).all(Result::is_ok));
    }

    #[test]
    fn bad_rows_hide_no_good_one(junk in proptest::collection::vec("[a-z\", ]{0,12}", 1..20)) {
        // Whatever quotes the junk leaves open, the good row's own close them where no field can go on.
        let rows: Vec<String> = junk.iter().map(|row| format!("{row}\n{DID},\"x\",\"{DID}\"")).collect();
        let text = format!("did,a,b\n{}\n", rows.join("\n"));
        let found = shown(text);
        proptest::prop_assert_eq!(found.iter().filter(|one| one.as_str() == DID).count(), junk.len());
        let plain: Vec<String> = junk.iter().map(|row| format!("{row}\n{DID}")).collect();
        let named = shown(format!("x\n{}\n", plain.join("\n")));
        proptest::prop_assert_eq!(named.iter().filter(|one| one.as_str() == DID).count(), junk.len());
    }
}
