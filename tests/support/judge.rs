//! The judge: reads the queues that a run has written and compares them with the oracle, row for row, as multisets.
//!
//! ```text
//!  lost           rows that the oracle demands and no queue has
//!  doubled        rows that a queue has more often than the oracle demands
//!  torn_or_wrong  rows that no account demands: other bytes in a field, another order of fields, a stranger's row
//!  problems       whatever else breaks the public contract of the queue files: table, metadata, limits, mixed accounts
//! ```
//! Rows are compared as compact JSON text by their hash, so that a million of them fit into memory; texts are only held of
//! what is wrong.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use rusqlite::{Connection, OpenFlags};
use serde_json::Value as Json;
use sha2::{Digest, Sha256};

use super::oracle::{DETAIL, Options, visit};
use super::time;
use super::world::WorldAccount;

/// Examples that are kept of each kind.
const EXAMPLES_MAX: usize = 8;

/// Bytes of an item's payload, unless it is a single record.
const PAYLOAD_BYTES_MAX: usize = 8 << 20;

/// What the judge found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verdict {
    pub lost: u64,
    pub doubled: u64,
    pub torn_or_wrong: u64,
    /// Rows that the oracle demands.
    pub expected: u64,
    /// Rows in the queues.
    pub found: u64,
    /// Items in the queues.
    pub items: u64,
    pub problems: Vec<String>,
    pub examples: Vec<String>,
}

impl Verdict {
    pub fn is_clean(&self) -> bool {
        let wrong = self.lost + self.doubled + self.torn_or_wrong;
        wrong == 0 && self.problems.is_empty() && self.expected == self.found
    }

    /// Fails with everything that is known unless all is well.
    pub fn assert_clean(&self) {
        assert!(self.is_clean(), "{self:#?}");
    }

    /// Fails if a row is there twice or wrong; rows may still be missing, as they are while a run is interrupted.
    pub fn assert_sound(&self) {
        let is_sound = self.doubled + self.torn_or_wrong == 0 && self.problems.is_empty();
        assert!(is_sound, "{self:#?}");
    }
}

/// Path of a queue file.
pub fn queue_path(data_dir: &Path, label: &str) -> PathBuf {
    data_dir.join("queue").join(format!("output_backfill_sync_{label}.db"))
}

/// Compares the queues below `data_dir` with what `accounts` must have become.
pub fn judge(
    data_dir: &Path,
    accounts: impl IntoIterator<Item = WorldAccount>,
    options: &Options,
) -> Verdict {
    let mut judge = Judge::new(data_dir, options);
    judge.read_queues();
    for account in accounts {
        judge.demand(&account);
    }
    judge.conclude()
}

/// Every record in a queue, in order.
pub fn queue_records(data_dir: &Path, label: &str) -> Vec<Json> {
    let mut records = Vec::new();
    let path = queue_path(data_dir, label);
    each_item(&path, |item| {
        if let Ok(Json::Array(rows)) = item.payload.parse() {
            records.extend(rows);
        }
    })
    .unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    records
}

type Hash = [u8; 16];

/// A row that was found: how often, how often it was demanded, and where it was last seen.
struct Found {
    times: u32,
    demanded: u32,
    label: usize,
    item: i64,
}

struct Judge<'a> {
    data_dir: &'a Path,
    options: &'a Options,
    labels: Vec<String>,
    found: HashMap<Hash, Found>,
    /// Rows that were demanded and not found, by label and URI: their text.
    missing: HashMap<(usize, String), String>,
    verdict: Verdict,
}

/// A row of a queue table.
struct Item {
    id: i64,
    payload: String,
    metadata: String,
    created_at: String,
    status: String,
}

impl<'a> Judge<'a> {
    fn new(data_dir: &'a Path, options: &'a Options) -> Self {
        let (labels, verdict) = (options.labels(), Verdict::default());
        let (found, missing) = (HashMap::new(), HashMap::new());
        Self { data_dir, options, labels, found, missing, verdict }
    }

    fn problem(&mut self, text: String) {
        if self.verdict.problems.len() < EXAMPLES_MAX {
            self.verdict.problems.push(text);
        }
    }

    fn read_queues(&mut self) {
        for label in 0..self.labels.len() {
            let path = queue_path(self.data_dir, &self.labels[label]);
            if !path.exists() {
                // Rows that should be in it will be missed.
                continue;
            }
            for problem in table_problems(&path) {
                self.problem(format!("{}: {problem}", self.labels[label]));
            }
            if let Err(error) = each_item(&path, |item| self.take(label, &item)) {
                self.problem(format!("{}: {error}", path.display()));
            }
        }
        // The queue of deletions is there once something was refreshed; `tests/refresh.rs` judges it.
        let labels = self.labels.iter().map(String::as_str).chain(["deleted"]);
        let known: Vec<PathBuf> = labels.map(|label| queue_path(self.data_dir, label)).collect();
        let folder = self.data_dir.join("queue");
        for entry in std::fs::read_dir(&folder).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.extension().is_some_and(|end| end == "db") && !known.contains(&path) {
                self.problem(format!("{} belongs to no exported type", path.display()));
            }
        }
    }

    fn take(&mut self, label: usize, item: &Item) {
        self.verdict.items += 1;
        let Ok(Json::Array(mut rows)) = item.payload.parse() else {
            self.verdict.torn_or_wrong += 1;
            let name = self.labels[label].clone();
            return self.problem(format!("{name} item {}: the payload is no array", item.id));
        };
        for problem in item_problems(item, &rows, self.options) {
            let name = self.labels[label].clone();
            self.problem(format!("{name} item {}: {problem}", item.id));
        }
        for row in &mut rows {
            self.verdict.found += 1;
            let hash = self.hash(label, &comparable(row));
            let first = Found { times: 0, demanded: 0, label, item: item.id };
            self.found.entry(hash).or_insert(first).times += 1;
        }
    }

    fn hash(&self, label: usize, text: &str) -> Hash {
        let mut hasher = Sha256::new();
        hasher.update(self.labels[label].as_bytes());
        hasher.update([0]);
        hasher.update(text.as_bytes());
        let mut hash = [0; 16];
        hash.copy_from_slice(&hasher.finalize()[..16]);
        hash
    }

    /// The rows of `account` must be there.
    fn demand(&mut self, account: &WorldAccount) {
        let options = self.options;
        visit(account, options, |label, row| {
            let label = self.labels.iter().position(|known| known == label);
            let label = label.expect("the oracle writes to the labels of its options");
            self.verdict.expected += 1;
            let text = row.to_string();
            let hash = self.hash(label, &text);
            match self.found.get_mut(&hash) {
                Some(found) if found.demanded < found.times => found.demanded += 1,
                _ => drop(self.missing.insert((label, uri(&row)), text)),
            }
        });
    }

    fn conclude(mut self) -> Verdict {
        let surplus: Vec<(Hash, u32, bool)> = self
            .found
            .iter()
            .filter(|(_, found)| found.times > found.demanded)
            .map(|(hash, found)| (*hash, found.times - found.demanded, found.demanded > 0))
            .collect();
        for (hash, times, was_demanded) in surplus {
            let (label, item) = (self.found[&hash].label, self.found[&hash].item);
            let row = self.row_of(label, item, hash);
            let key = (label, row.as_ref().map(uri).unwrap_or_default());
            let place = format!("{} item {item}", self.labels[label]);
            if was_demanded {
                self.verdict.doubled += u64::from(times);
                self.example(format!("doubled: {place}: {}", key.1));
                continue;
            }
            self.verdict.torn_or_wrong += u64::from(times);
            let text = row.map(|mut row| comparable(&mut row)).unwrap_or_default();
            match self.missing.remove(&key) {
                Some(demanded) => {
                    self.example(format!("wrong: {place}: {}", difference(&demanded, &text)));
                }
                None => self.example(format!("not demanded: {place}: {}", cut(&text))),
            }
        }
        self.verdict.lost = self.missing.len() as u64;
        let mut lost: Vec<String> = self
            .missing
            .iter()
            .map(|((label, _), text)| format!("lost: {}: {}", self.labels[*label], cut(text)))
            .collect();
        lost.sort();
        lost.into_iter().take(EXAMPLES_MAX).for_each(|text| self.verdict.examples.push(text));
        self.verdict
    }

    fn example(&mut self, text: String) {
        if self.verdict.examples.len() < EXAMPLES_MAX {
            self.verdict.examples.push(text);
        }
    }

    /// Reads a row again.
    fn row_of(&self, label: usize, item: i64, hash: Hash) -> Option<Json> {
        let connection = open(&queue_path(self.data_dir, &self.labels[label])).ok()?;
        let select = "SELECT payload FROM queue WHERE id = ?1";
        let payload: String = connection.query_row(select, [item], |row| row.get(0)).ok()?;
        let Ok(Json::Array(rows)) = payload.parse() else { return None };
        rows.into_iter().find(|row| self.hash(label, &comparable(&mut row.clone())) == hash)
    }
}

fn uri(row: &Json) -> String {
    row["uri"].as_str().unwrap_or("").to_owned()
}

/// The compact text of a row, with the free text of a rejected one replaced.
fn comparable(row: &mut Json) -> String {
    let is_rejected = row.get("reason").is_some();
    if let Some(detail) = row.get_mut("detail").filter(|_| is_rejected)
        && detail.as_str().is_some_and(|text| !text.is_empty())
    {
        *detail = Json::from(DETAIL);
    }
    row.to_string()
}

fn cut(text: &str) -> String {
    text.chars().take(600).collect()
}

/// The first field in which two rows differ.
fn difference(demanded: &str, found: &str) -> String {
    let (Ok(Json::Object(demanded)), Ok(Json::Object(found))) = (demanded.parse(), found.parse())
    else {
        return format!("demanded {}, found {}", cut(demanded), cut(found));
    };
    let uri = demanded.get("uri").cloned().unwrap_or_default();
    for (name, value) in &demanded {
        let other = found.get(name);
        if other != Some(value) {
            let other = other.map_or("nothing".to_owned(), Json::to_string);
            return format!(
                "{uri}: {name}: demanded {}, found {}",
                cut(&value.to_string()),
                cut(&other)
            );
        }
    }
    let names = |row: &serde_json::Map<String, Json>| row.keys().cloned().collect::<Vec<_>>();
    format!("{uri}: demanded fields {:?}, found {:?}", names(&demanded), names(&found))
}

fn open(path: &Path) -> rusqlite::Result<Connection> {
    let connection = Connection::open_with_flags(
        path,
        OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX,
    )?;
    connection.busy_timeout(std::time::Duration::from_secs(10))?;
    Ok(connection)
}

fn each_item(path: &Path, mut each: impl FnMut(Item)) -> rusqlite::Result<()> {
    let connection = open(path)?;
    let select = "SELECT id, payload, metadata, created_at, status FROM queue ORDER BY id";
    let mut statement = connection.prepare(select)?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        each(Item {
            id: row.get(0)?,
            payload: row.get(1)?,
            metadata: row.get(2)?,
            created_at: row.get(3)?,
            status: row.get(4)?,
        });
    }
    Ok(())
}

/// What is not as the readers of the Python service's queues know it.
fn table_problems(path: &Path) -> Vec<String> {
    let read = || -> rusqlite::Result<Vec<String>> {
        let connection = open(path)?;
        let mut problems = Vec::new();
        let mut statement = connection.prepare("SELECT * FROM pragma_table_info('queue')")?;
        let columns = statement.query_map([], |row| {
            let default: Option<String> = row.get(4)?;
            let (name, kind, key): (String, String, i64) = (row.get(1)?, row.get(2)?, row.get(5)?);
            Ok(format!("{name} {kind} {} {key}", default.unwrap_or_default()))
        })?;
        let columns = columns.collect::<rusqlite::Result<Vec<String>>>()?;
        let wanted = [
            "id INTEGER  1",
            "payload TEXT  0",
            "metadata TEXT  0",
            "created_at TIMESTAMP CURRENT_TIMESTAMP 0",
            "status TEXT 'pending' 0",
        ];
        if columns != wanted {
            problems.push(format!("columns are {columns:?}"));
        }
        let select = "SELECT sql FROM sqlite_master WHERE name = 'queue'";
        let sql: String = connection.query_row(select, [], |row| row.get(0))?;
        if !sql.to_ascii_uppercase().contains("AUTOINCREMENT") {
            problems.push("ids are not AUTOINCREMENT".to_owned());
        }
        let mode: String = connection.query_row("PRAGMA journal_mode", [], |row| row.get(0))?;
        if mode != "wal" {
            problems.push(format!("journal mode {mode}"));
        }
        let check: String = connection.query_row("PRAGMA quick_check", [], |row| row.get(0))?;
        if check != "ok" {
            problems.push(check);
        }
        Ok(problems)
    };
    read().unwrap_or_else(|error| vec![format!("not readable: {error}")])
}

fn item_problems(item: &Item, rows: &[Json], options: &Options) -> Vec<String> {
    let mut problems = Vec::new();
    let mut check = |is_good: bool, what: &str| {
        if !is_good {
            problems.push(what.to_owned());
        }
    };
    let metadata: Json = item.metadata.parse().unwrap_or_default();
    let count = |name: &str| metadata[name].as_u64();
    check(metadata.is_object(), "the metadata is no object");
    check(count("batch_size") == Some(options.rows_per_item as u64), "batch_size");
    check(count("actual_batch_size") == Some(rows.len() as u64), "actual_batch_size");
    check(metadata["did"].is_string() && metadata["rev"].is_string(), "did or rev in metadata");
    check((1..=options.rows_per_item).contains(&rows.len()), "number of records");
    check(rows.len() == 1 || item.payload.len() <= PAYLOAD_BYTES_MAX, "bytes of payload");
    let is_own = |row: &Json| row["did"] == metadata["did"] && row["rev"] == metadata["rev"];
    check(rows.iter().all(is_own), "it mixes accounts or revisions");
    check(is_stamp(&item.created_at), "created_at");
    let known = ["pending", "processing", "completed", "failed"];
    check(known.contains(&item.status.as_str()), "status");
    problems
}

fn is_stamp(text: &str) -> bool {
    let has_form = text.len() == 19
        && text.bytes().enumerate().all(|(at, byte)| match at {
            4 | 7 | 10 => byte == b'-',
            13 | 16 => byte == b':',
            _ => byte.is_ascii_digit(),
        });
    has_form && time::stamp(time::parse_stamp(text)) == text
}
