//! Readers of what sinks have written, none of it with skyfill's own code: manifests, JSON lines, and Parquet by DuckDB.

#![allow(dead_code, reason = "not every test asks everything")]

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::support::judge::queue_records;
use crate::support::oracle::Options;

/// Everything that the manifests of one place name.
#[derive(Debug, Default)]
pub struct Held {
    /// Rows by type, sorted.
    pub rows: BTreeMap<String, Vec<String>>,
    /// Accounts with their edition.
    pub accounts: BTreeSet<(String, u64)>,
    pub manifests: usize,
    pub files: usize,
    /// Last segment.
    pub through: u64,
}

impl Held {
    pub fn total(&self) -> usize {
        self.rows.values().map(Vec::len).sum()
    }
}

/// Where `tests/run` installs DuckDB and an S3 server; `None` where it has not, and that is said.
pub fn python() -> Option<PathBuf> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/tools/sinks/bin/python");
    if !path.exists() {
        println!("no DuckDB and no S3 server here (tests/run installs them): left out");
        return None;
    }
    Some(path)
}

/// Reads the manifests below `place` and every file that they name, and fails if anything about them is not as promised:
/// numbers and segments without a gap, files that are there, whole and as they are described, each account once and whole.
pub fn held(place: &Path) -> Held {
    let mut held = Held::default();
    let mut previous: Option<Value> = None;
    let read =
        |path: &PathBuf| -> Value { std::fs::read_to_string(path).unwrap().parse().unwrap() };
    let paths = manifests(place);
    let all: Vec<Value> = paths.iter().map(read).collect();
    let mut columns = parquet_rows(place, &all);
    for (path, manifest) in paths.into_iter().zip(all) {
        let shown = path.display();
        assert_eq!(manifest["version"], 1, "{shown}");
        let segments = &manifest["segments"];
        assert_eq!(segments[1], manifest["position"]["segment"], "{shown}");
        assert_eq!(manifest["position"]["item"], Value::Null, "{shown}");
        match &previous {
            None => assert_eq!(manifest["number"], 0, "{shown}"),
            Some(before) => {
                assert_eq!(number(&manifest["number"]), number(&before["number"]) + 1, "{shown}");
                assert_eq!(number(&segments[0]), number(&before["segments"][1]) + 1, "{shown}");
                assert_eq!(manifest["directory"], before["directory"], "{shown}");
            }
        }
        take(place, &manifest, &mut columns, &mut held);
        held.through = number(&segments[1]);
        previous = Some(manifest);
    }
    for rows in held.rows.values_mut() {
        rows.sort();
    }
    held
}

fn number(value: &Value) -> u64 {
    value.as_u64().unwrap_or_else(|| panic!("{value} is no number"))
}

/// Paths of the manifests in order.
pub fn manifests(place: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(place.join("manifest")) else { return Vec::new() };
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    paths.retain(|path| path.extension().is_some_and(|it| it == "json"));
    paths.sort();
    paths
}

fn take(place: &Path, manifest: &Value, columns: &mut Rows, held: &mut Held) {
    held.manifests += 1;
    let mut counts: BTreeMap<(String, String), u64> = BTreeMap::new();
    for file in manifest["files"].as_array().unwrap() {
        let (path, label) = (file["path"].as_str().unwrap(), file["type"].as_str().unwrap());
        let whole = place.join(path);
        let bytes = std::fs::read(&whole).unwrap_or_else(|error| panic!("{path}: {error}"));
        assert_eq!(bytes.len() as u64, number(&file["bytes"]), "{path}");
        let digest: String =
            Sha256::digest(&bytes).iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(digest, file["sha256"].as_str().unwrap(), "{path}");
        let rows = match path.ends_with(".parquet") {
            true => columns.remove(&whole).unwrap_or_default(),
            false => json_lines(path, &bytes),
        };
        assert_eq!(rows.len() as u64, number(&file["rows"]), "{path}");
        for row in &rows {
            let value: Value = row.parse().unwrap();
            let did = value["did"].as_str().unwrap().to_owned();
            *counts.entry((did, label.to_owned())).or_default() += 1;
        }
        held.files += 1;
        held.rows.entry(label.to_owned()).or_default().extend(rows);
    }
    for account in manifest["accounts"].as_array().unwrap() {
        let did = account["did"].as_str().unwrap();
        let is_new = held.accounts.insert((did.to_owned(), number(&account["edition"])));
        assert!(is_new, "{did} is in two manifests");
        let records = account["records"].as_object().unwrap().iter();
        let records = records.map(|(label, count)| (label.clone(), number(count)));
        for (label, count) in records.chain([("rejected".to_owned(), number(&account["rejected"]))])
        {
            let found = counts.remove(&(did.to_owned(), label.clone())).unwrap_or(0);
            assert_eq!(found, count, "{did} {label}: an account is split or doubled");
        }
    }
    assert!(counts.is_empty(), "rows of accounts that the manifest does not name: {counts:?}");
}

fn json_lines(path: &str, bytes: &[u8]) -> Vec<String> {
    let mut text = String::new();
    match path.ends_with(".zst") {
        true => zstd::Decoder::new(bytes).unwrap().read_to_string(&mut text).map(drop).unwrap(),
        false => text.push_str(std::str::from_utf8(bytes).unwrap()),
    }
    assert!(text.ends_with('\n'), "{path} ends in the middle of a line");
    text.lines().map(str::to_owned).collect()
}

/// Rows by file.
type Rows = HashMap<PathBuf, Vec<String>>;

/// Rows of every Parquet file in `manifests` as DuckDB reads them, each as the record that it was made from.
fn parquet_rows(place: &Path, manifests: &[Value]) -> Rows {
    let files = manifests.iter().flat_map(|manifest| manifest["files"].as_array().unwrap());
    let whole = |file: &Value| place.join(file["path"].as_str().unwrap());
    let files: Vec<Value> = files
        .filter(|file| file["path"].as_str().unwrap().ends_with(".parquet"))
        .map(|file| serde_json::json!([whole(file), file["type"], file["day"]]))
        .collect();
    if files.is_empty() {
        return Rows::new();
    }
    let python = python().expect("Parquet is only looked at where DuckDB is");
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/sinks/rows.py");
    let mut command = Command::new(python);
    command.arg(script).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let input = Value::from(files).to_string();
    let giving = std::thread::spawn(move || stdin.write_all(input.as_bytes()).unwrap());
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    giving.join().unwrap();
    let mut rows = Rows::new();
    for line in String::from_utf8(output.stdout).unwrap().lines() {
        let (path, row) = line.split_once('\t').unwrap();
        rows.entry(path.into()).or_default().push(row.to_owned());
    }
    rows
}

/// Every row in the queues by type, sorted.
pub fn queues(data: &Path) -> BTreeMap<String, Vec<String>> {
    let mut rows = BTreeMap::new();
    for label in Options::default().labels() {
        let path = crate::support::judge::queue_path(data, &label);
        if !path.exists() {
            continue;
        }
        let mut found: Vec<String> =
            queue_records(data, &label).iter().map(ToString::to_string).collect();
        found.sort();
        if !found.is_empty() {
            rows.insert(label, found);
        }
    }
    rows
}

/// Fails unless the place holds exactly the rows of the queues.
pub fn assert_same(held: &Held, data: &Path) {
    let queues = queues(data);
    let counts = |rows: &BTreeMap<String, Vec<String>>| -> BTreeMap<String, usize> {
        rows.iter().map(|(label, rows)| (label.clone(), rows.len())).collect()
    };
    assert_eq!(counts(&held.rows), counts(&queues));
    for (label, rows) in &queues {
        let differing = rows.iter().zip(&held.rows[label]).find(|(queue, held)| queue != held);
        assert_eq!(differing, None, "{label}");
    }
}

/// Every file below `place` that no manifest names.
pub fn unnamed(place: &Path) -> Vec<String> {
    let mut named = BTreeSet::new();
    for path in manifests(place) {
        let manifest: Value = std::fs::read_to_string(&path).unwrap().parse().unwrap();
        let files = manifest["files"].as_array().unwrap();
        named.extend(files.iter().map(|file| file["path"].as_str().unwrap().to_owned()));
    }
    let (mut folders, mut found) = (vec![place.to_owned()], Vec::new());
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            let below = path.strip_prefix(place).unwrap().to_str().unwrap().to_owned();
            let is_manifest = below.starts_with("manifest/") && below.ends_with(".json");
            if !is_manifest && !named.contains(&below) {
                found.push(below);
            }
        }
    }
    found
}
