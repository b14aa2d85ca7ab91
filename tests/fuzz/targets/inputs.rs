//! What operators write: the configuration file, DID lists, and the Python service's input queue.

use std::cell::RefCell;
use std::io::{BufReader, Cursor};
use std::path::PathBuf;

use rusqlite::Connection;
use serde::de::IgnoredAny;
use serde_json::Value;
use skyfill::config::file::{ConfigError, Mode, parse};
use skyfill::config::list_queue::InputQueue;
use skyfill::config::targets::{Target, TargetError, from_reader};
use skyfill::config::written::Place;
use skyfill::domain::did::Did;

use super::repo::split;

/// Input: flags, then the file. Flag 1: as `skyfill backfill` reads it, otherwise as `skyfill run` does.
pub fn config(data: &[u8]) -> bool {
    let (flags, text) = split(data);
    let Ok(text) = std::str::from_utf8(text) else { return false };
    let mode = if flags & 1 == 0 { Mode::Run } else { Mode::Backfill };
    let tree = text.parse::<toml::Table>();
    match parse(Some(text), None, &[], mode) {
        Ok(loaded) => {
            let tree = tree.expect("accepted, but no TOML");
            let settings = loaded.settings;
            if let Some(directory) = tree.get("data_dir") {
                assert_eq!(directory.as_str(), settings.data_dir.to_str());
            }
            let number = |section: &str, key: &str| tree.get(section)?.get(key)?.as_integer();
            if let Some(number) = number("fetch", "concurrency") {
                assert_eq!(usize::try_from(number), Ok(settings.fetch.concurrency));
            }
            if let Some(number) = number("retry", "attempts") {
                assert_eq!(u32::try_from(number), Ok(settings.retry.attempts));
            }
            let dids =
                tree.get("source").and_then(|it| it.get("dids")).and_then(|it| it.as_array());
            let dids = dids.into_iter().flatten().filter_map(toml::Value::as_str);
            assert!(dids.eq(settings.source.dids.iter().map(String::as_str)));
            assert!(mode == Mode::Backfill || tree.contains_key("data_dir"));
            loaded.warnings.iter().for_each(|warning| assert_shown(warning));
            true
        }
        Err(ConfigError::Invalid(problems)) => {
            assert!(!problems.is_empty());
            let lines = text.lines().count().max(1);
            for problem in problems {
                assert_shown(&problem.to_string());
                let Place::Line(line) = problem.place else { continue };
                assert!((1..=lines + 1).contains(&line), "line {line} of {lines}: {problem}");
            }
            false
        }
        Err(other) => panic!("nothing was read from disk: {other}"),
    }
}

/// One line for a terminal.
fn assert_shown(text: &str) {
    assert!(!text.is_empty() && !text.chars().any(char::is_control), "{text:?}");
}

/// Input: flags, then the list. The flags are the size of the pieces in which it is read.
pub fn list(data: &[u8]) -> bool {
    let (flags, text) = split(data);
    let (whole, error) = targets(text, text.len().max(1));
    let (pieces, same_error) = targets(text, usize::from(flags) + 1);
    assert!(whole == pieces && error == same_error, "{error:?} or {same_error:?}");
    let lines = text.split(|byte| *byte == b'\n').count();
    assert!(whole.len() <= lines, "{} entries on {lines} lines", whole.len());
    for target in &whole {
        match target {
            Target::Did(did) => assert_eq!(Did::parse(did.as_str()).as_ref(), Ok(did)),
            Target::Malformed { cleaned, .. } => {
                assert!(Did::parse(cleaned).is_err(), "parked under somebody's DID: {cleaned}");
                assert!(!cleaned.is_empty() && !cleaned.chars().any(char::is_control));
                assert!(cleaned.chars().count() <= 200);
            }
        }
    }
    if let (None, Some(expected)) = (&error, plain_entries(text)) {
        let is_did = |target: &Target| matches!(target, Target::Did(_));
        assert!(whole.iter().map(is_did).eq(expected.iter().copied()), "a line was lost");
        // One line more is one entry more.
        let longer = [text, b"\ndid:plc:z72i7hdynmk6r22z27h6tvur\n"].concat();
        let (longer, _) = targets(&longer, 4096);
        assert_eq!(longer.len(), whole.len() + 1);
        assert!(longer.last().is_some_and(is_did));
    }
    error.is_none() && whole.iter().any(|target| matches!(target, Target::Did(_)))
}

fn targets(text: &[u8], piece: usize) -> (Vec<Target>, Option<String>) {
    let reader = BufReader::with_capacity(piece, Cursor::new(text.to_vec()));
    let (mut found, mut error) = (Vec::new(), None);
    for target in from_reader("list", Box::new(reader)) {
        match target {
            Ok(target) => found.push(target),
            Err(TargetError::NotAList { place, what }) => {
                assert!(error.is_none(), "goes on after an error");
                assert_shown(&format!("{place}: {what}"));
                error = Some(format!("{place}: {what}"));
            }
            Err(other) => panic!("nothing was read from disk: {other}"),
        }
    }
    (found, error)
}

/// For each line with something on it whether it is a DID, if the list is certainly a plain one.
fn plain_entries(text: &[u8]) -> Option<Vec<bool>> {
    let text = std::str::from_utf8(text).ok()?;
    let lines = text.strip_prefix('\u{feff}').unwrap_or(text).split('\n').map(str::trim);
    let lines: Vec<&str> =
        lines.filter(|line| !line.is_empty() && !line.starts_with('#')).collect();
    if !lines.first()?.starts_with("did:") || lines[0].contains([',', ';', '\t']) {
        return None;
    }
    let entry = |line: &&str| {
        let end = [line.find(" #"), line.find("\t#")].into_iter().flatten().min();
        Did::parse(line[..end.unwrap_or(line.len())].trim()).is_ok()
    };
    Some(lines.iter().map(entry).collect())
}

/// A queue file that is written again for each input.
struct QueueFile {
    directory: tempfile::TempDir,
    /// A whole queue with one row, as bytes.
    empty: Vec<u8>,
}

impl QueueFile {
    fn new() -> Self {
        // Memory where there is some: a disk would be worn for nothing.
        let memory = PathBuf::from("/dev/shm");
        let directory = tempfile::tempdir_in(&memory).or_else(|_| tempfile::tempdir());
        let directory = directory.expect("a directory");
        let path = directory.path().join("whole.db");
        Connection::open(&path)
            .and_then(|connection| connection.execute_batch(SCHEMA))
            .expect("a queue");
        let empty = std::fs::read(path).expect("written");
        Self { directory, empty }
    }
}

const SCHEMA: &str = "
    PRAGMA page_size = 512;
    CREATE TABLE queue (id INTEGER PRIMARY KEY, payload TEXT, metadata TEXT, created_at TEXT, status TEXT);
    INSERT INTO queue (payload) VALUES ('[]');";

thread_local! {
    static QUEUE: RefCell<QueueFile> = RefCell::new(QueueFile::new());
}

/// Input: flags, then the payload of a queue's one row (flag 0), or bytes that are laid over a whole queue file (flag 1), each
/// with two bytes of place before it.
pub fn queue(data: &[u8]) -> bool {
    let (flags, data) = split(data);
    QUEUE.with_borrow(|queue| {
        let path = queue.directory.path().join("input.db");
        if flags & 1 != 0 {
            let mut file = queue.empty.clone();
            for patch in data.chunks_exact(3) {
                let at = usize::from(u16::from_le_bytes([patch[0], patch[1]])) % file.len();
                file[at] = patch[2];
            }
            std::fs::write(&path, file).expect("written");
            return damaged(&path);
        }
        std::fs::write(&path, &queue.empty).expect("written");
        let connection = Connection::open(&path).expect("whole");
        connection
            .execute_batch("PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF")
            .and_then(|()| connection.execute("UPDATE queue SET payload = ?1", [data]))
            .expect("one row");
        drop(connection);
        payload(&path, data)
    })
}

/// Whatever SQLite makes of a damaged file: rows end, and every entry has a text.
fn damaged(path: &std::path::Path) -> bool {
    let Ok(mut queue) = InputQueue::open(path) else { return false };
    let (mut rows, mut last) = (0, None);
    while let Ok(Some(row)) = queue.next_row() {
        assert!(last.is_none_or(|last| last < row.id), "rows go backwards");
        last = Some(row.id);
        rows += 1;
        assert!(rows < 10_000, "rows without end");
        assert!(row.wrong.iter().all(|(text, what)| !text.is_empty() && !what.is_empty()));
    }
    rows > 0
}

fn payload(path: &std::path::Path, data: &[u8]) -> bool {
    let mut queue = InputQueue::open(path).expect("whole");
    let row = queue.next_row().expect("whole").expect("one row");
    assert!(matches!(queue.next_row(), Ok(None)), "one row only");
    let mut expected = Vec::new();
    if let Ok(value) = serde_json::from_slice::<Value>(data) {
        named(&value, &mut expected);
        let mut found = row.dids.iter();
        let all = expected.iter().all(|did| found.any(|other| other == did));
        assert!(all, "{:?} lack some of {expected:?}", row.dids);
    }
    let is_json = serde_json::from_slice::<IgnoredAny>(data).is_ok();
    assert!(is_json || !row.wrong.is_empty(), "no JSON, and nobody is told");
    !row.dids.is_empty() && row.wrong.is_empty()
}

/// The DIDs of a payload in order; of a key that is there twice the last.
fn named(value: &Value, found: &mut Vec<String>) {
    match value {
        Value::String(did) => found.push(did.clone()),
        Value::Array(items) => items.iter().for_each(|item| named(item, found)),
        Value::Object(fields) => {
            found.extend(fields.get("did").and_then(Value::as_str).map(str::to_owned));
        }
        _ => {}
    }
}
