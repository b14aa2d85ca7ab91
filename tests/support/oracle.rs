//! The oracle: which rows an account must become, and nothing else, by the rules of TRANSFORM alone.
//!
//! It works on what the world *describes* (values and the meaning of times), never on bytes, and shares no code with skyfill.
//! A rejected row's `detail` is free text: here it is [`DETAIL`], and the judge puts that in place of any text it finds.

use std::collections::BTreeMap;

use serde_json::{Map, Value as Json};

use super::time::{self, WINDOW_END, WINDOW_START};
use super::value::{Value, cid_text, python_string};
use super::world::{WorldAccount, WorldRecord};

/// Stands for whatever sentence a rejected row explains itself with.
pub const DETAIL: &str = "*";

/// Label of the queue for rejected records.
pub const REJECTED: &str = "rejected";

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Outside {
    #[default]
    Bucket,
    Drop,
    Keep,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Offsets {
    #[default]
    Utc,
    Ignore,
}

/// What a run was told to do. The default is the program's.
#[derive(Clone, Debug)]
pub struct Options {
    pub start: String,
    pub end: String,
    pub outside: Outside,
    pub offsets: Offsets,
    /// As in `records.types`: the six kinds, NSIDs, or prefixes that end in `.*`.
    pub types: Vec<String>,
    pub rows_per_item: usize,
}

impl Default for Options {
    fn default() -> Self {
        let kinds = ["post", "reply", "repost", "like", "follow", "block"];
        Self {
            start: WINDOW_START.to_owned(),
            end: WINDOW_END.to_owned(),
            outside: Outside::Bucket,
            offsets: Offsets::Utc,
            types: kinds.map(str::to_owned).to_vec(),
            rows_per_item: 1_000,
        }
    }
}

impl Options {
    /// Labels of the queues that such a run writes, the rejected one last.
    pub fn labels(&self) -> Vec<String> {
        let labels = self.types.iter().map(|entry| entry.replace('*', "_"));
        labels.chain([REJECTED.to_owned()]).collect()
    }
}

/// What must become of a record.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    /// Label of the queue, and the row.
    Exported(String, Json),
    /// By which reason.
    Skipped(&'static str),
    /// By which reason, and the row.
    Rejected(&'static str, Json),
}

/// How many records became what.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    pub leaves: u64,
    /// By label.
    pub exported: BTreeMap<String, u64>,
    /// `type` and `outside_window`.
    pub skipped: BTreeMap<&'static str, u64>,
    /// `created_at`, `schema`, `cbor` and `too_large`.
    pub rejected: BTreeMap<&'static str, u64>,
}

/// Everything that one account must become.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Expectation {
    /// Rows by label, the rejected ones among them, in key order.
    pub rows: BTreeMap<String, Vec<Json>>,
    pub counts: Counts,
}

impl Counts {
    fn note(&mut self, outcome: &Outcome) {
        self.leaves += 1;
        match outcome {
            Outcome::Exported(label, _) => match self.exported.get_mut(label) {
                Some(count) => *count += 1,
                None => drop(self.exported.insert(label.clone(), 1)),
            },
            Outcome::Skipped(reason) => *self.skipped.entry(reason).or_default() += 1,
            Outcome::Rejected(reason, _) => *self.rejected.entry(reason).or_default() += 1,
        }
    }

    /// Adds another account's counts.
    pub fn add(&mut self, other: &Self) {
        self.leaves += other.leaves;
        for (label, count) in &other.exported {
            *self.exported.entry(label.clone()).or_default() += count;
        }
        for (reason, count) in &other.skipped {
            *self.skipped.entry(reason).or_default() += count;
        }
        for (reason, count) in &other.rejected {
            *self.rejected.entry(reason).or_default() += count;
        }
    }

    pub fn exported_total(&self) -> u64 {
        self.exported.values().sum()
    }

    pub fn rejected_total(&self) -> u64 {
        self.rejected.values().sum()
    }

    pub fn skipped_total(&self) -> u64 {
        self.skipped.values().sum()
    }
}

/// All rows of one account, and the counts.
pub fn expect(account: &WorldAccount, options: &Options) -> Expectation {
    let mut expectation = Expectation::default();
    let rows = &mut expectation.rows;
    expectation.counts = visit(account, options, |label, row| {
        rows.entry(label.to_owned()).or_default().push(row);
    });
    expectation
}

/// Hands each row of one account with its queue's label to `each`, in key order; gives the counts.
pub fn visit(
    account: &WorldAccount,
    options: &Options,
    mut each: impl FnMut(&str, Json),
) -> Counts {
    let mut counts = Counts::default();
    for record in &account.records {
        let outcome = outcome(account, record, options);
        counts.note(&outcome);
        match outcome {
            Outcome::Exported(label, row) => each(&label, row),
            Outcome::Rejected(_, row) => each(REJECTED, row),
            Outcome::Skipped(_) => {}
        }
    }
    counts
}

/// What must become of one record.
pub fn outcome(account: &WorldAccount, record: &WorldRecord, options: &Options) -> Outcome {
    let rejected = |reason| Outcome::Rejected(reason, rejected_row(account, record, reason));
    if record.bytes.len() > 1_000_000 {
        return rejected("too_large");
    }
    let Some(value) = &record.value else { return rejected("cbor") };
    let Value::Map(_) = value else { return rejected("schema") };
    let Some(nsid) = value.get("$type").and_then(Value::as_text) else {
        return Outcome::Skipped("type");
    };
    let Some(kind) = kind(nsid, value) else {
        let Some(entry) = covering(nsid, options) else { return Outcome::Skipped("type") };
        let mut row = Row::default();
        row.put("record_type", nsid);
        origin(account, record, &mut row);
        row.put("record", value.nested_json());
        return Outcome::Exported(entry.replace('*', "_"), row.finish());
    };
    if !options.types.iter().any(|entry| entry == kind) {
        return Outcome::Skipped("type");
    }
    let written = value.get("createdAt").and_then(Value::as_text);
    let (Some(written), Some(second)) =
        (written, record.time.second(options.offsets == Offsets::Utc))
    else {
        return rejected("created_at");
    };
    let mut row = Row::default();
    let filled = match kind {
        "post" | "reply" => post(kind, value, written, &mut row),
        _ => edge(kind, nsid, value, written, &mut row),
    };
    if filled.is_none() {
        return rejected("schema");
    }
    let Some(stamp) = placed(second, options) else { return Outcome::Skipped("outside_window") };
    row.put("record_type", kind);
    row.put("synctimestamp", stamp);
    origin(account, record, &mut row);
    Outcome::Exported(kind.to_owned(), row.finish())
}

/// A row under construction; fields stand in the order in which they are put.
#[derive(Default)]
struct Row(Map<String, Json>);

impl Row {
    fn put(&mut self, name: &str, value: impl Into<Json>) {
        self.0.insert(name.to_owned(), value.into());
    }

    fn finish(self) -> Json {
        Json::Object(self.0)
    }
}

fn kind(nsid: &str, value: &Value) -> Option<&'static str> {
    Some(match nsid {
        "app.bsky.feed.post" if value.get("reply").is_some() => "reply",
        "app.bsky.feed.post" => "post",
        "app.bsky.feed.repost" => "repost",
        "app.bsky.feed.like" => "like",
        "app.bsky.graph.follow" => "follow",
        "app.bsky.graph.block" => "block",
        _ => return None,
    })
}

/// The configured entry for a foreign type: its own name before any prefix, a longer prefix before a shorter one.
fn covering<'o>(nsid: &str, options: &'o Options) -> Option<&'o str> {
    let prefix =
        |entry: &&String| entry.strip_suffix('*').is_some_and(|prefix| nsid.starts_with(prefix));
    let exact = options.types.iter().find(|entry| *entry == nsid && entry.contains('.'));
    let longest = || options.types.iter().filter(prefix).max_by_key(|entry| entry.len());
    exact.or_else(longest).map(String::as_str)
}

/// The `synctimestamp`; `None` if the record is dropped.
fn placed(second: i64, options: &Options) -> Option<String> {
    let stamp = time::stamp(second);
    if options.start <= stamp && stamp <= options.end {
        return Some(stamp);
    }
    match options.outside {
        Outside::Keep => Some(stamp),
        Outside::Drop => None,
        Outside::Bucket => Some(time::bucket(second).map_or(stamp, time::stamp)),
    }
}

fn origin(account: &WorldAccount, record: &WorldRecord, row: &mut Row) {
    row.put("did", account.did.as_str());
    row.put("uri", format!("at://{}/{}", account.did, record.key));
    row.put("cid", cid_text(&record.cid));
    row.put("rev", account.rev.as_str());
}

fn post(kind: &str, value: &Value, written: &str, row: &mut Row) -> Option<()> {
    let python = |name| value.get(name).filter(|v| v.is_truthy()).map(Value::python_json);
    let reply = match value.get("reply") {
        Some(reply) if kind == "reply" => Some(reply_text(reply)?),
        _ => None,
    };
    row.put("py_type", "app.bsky.feed.post");
    row.put("createdAt", written);
    row.put("text", value.get("text")?.as_text()?);
    row.put("embed", python("embed"));
    row.put("entities", python("entities"));
    row.put("facets", python("facets"));
    row.put("reply", reply);
    row.put("labels", python("labels"));
    row.put("langs", joined(value.get("langs"))?);
    row.put("tags", joined(value.get("tags"))?);
    Some(())
}

fn edge(kind: &str, nsid: &str, value: &Value, written: &str, row: &mut Row) -> Option<()> {
    let subject = value.get("subject")?;
    let subject = match kind {
        "like" | "repost" => reference_text(subject)?,
        _ => subject.as_text()?.to_owned(),
    };
    row.put("createdAt", written);
    row.put("subject", subject);
    row.put("py_type", nsid);
    Some(())
}

/// Python's `",".join` of a value: null if falsy, `None` if it has an element that is not a string.
#[allow(clippy::option_option, reason = "null is a good value here")]
fn joined(value: Option<&Value>) -> Option<Option<String>> {
    let Some(value) = value.filter(|value| value.is_truthy()) else { return Some(None) };
    let parts: Vec<String> = match value {
        Value::Text(text) => text.chars().map(String::from).collect(),
        Value::Map(fields) => fields.iter().map(|(key, _)| key.to_string()).collect(),
        Value::List(values) => {
            values.iter().map(|v| v.as_text().map(str::to_owned)).collect::<Option<_>>()?
        }
        _ => return None,
    };
    Some(Some(parts.join(",")))
}

/// A map's `$type`, or `default`; `None` if it is there but no text.
fn type_or(value: &Value, default: &str) -> Option<String> {
    value.get("$type").map_or(Some(default.to_owned()), |kind| kind.as_text().map(str::to_owned))
}

fn quoted(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    python_string(text, &mut out);
    out
}

fn reference_text(value: &Value) -> Option<String> {
    let cid = match value.get("cid")? {
        Value::Text(text) => text.to_string(),
        Value::Link(link) => cid_text(link),
        _ => return None,
    };
    let uri = value.get("uri")?.as_text()?;
    let kind = type_or(value, "com.atproto.repo.strongRef")?;
    Some(format!(
        "{{\"cid\": {}, \"uri\": {}, \"py_type\": {}}}",
        quoted(&cid),
        quoted(uri),
        quoted(&kind)
    ))
}

fn reply_text(value: &Value) -> Option<String> {
    let (parent, root) =
        (reference_text(value.get("parent")?)?, reference_text(value.get("root")?)?);
    let kind = quoted(&type_or(value, "app.bsky.feed.defs#replyRef")?);
    Some(format!("{{\"parent\": {parent}, \"root\": {root}, \"py_type\": {kind}}}"))
}

fn rejected_row(account: &WorldAccount, record: &WorldRecord, reason: &str) -> Json {
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;
    let (collection, rkey) = record.path();
    let shown = matches!(reason, "created_at" | "schema");
    let decoded = record.value.as_ref().filter(|_| shown).map(Value::nested_json);
    // What is larger than 1 MiB is not shown. The world keeps well away from the border.
    let decoded =
        decoded.filter(|value| record.bytes.len() < 100_000 || value.to_string().len() <= 1 << 20);
    let raw = (!shown).then(|| STANDARD.encode(&record.bytes)).filter(|raw| raw.len() <= 1 << 20);
    let mut row = Row::default();
    row.put("did", account.did.as_str());
    row.put("collection", collection);
    row.put("rkey", rkey);
    row.put("uri", format!("at://{}/{}", account.did, record.key));
    row.put("cid", cid_text(&record.cid));
    row.put("rev", account.rev.as_str());
    row.put("reason", reason);
    row.put("detail", DETAIL);
    row.put("record", decoded);
    row.put("raw", raw);
    row.finish()
}
