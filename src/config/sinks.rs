//! `[sink.NAME]`: sinks beside the queues, each a table of its own. Their names are the operator's, so their keys are not in
//! `config::keys`; everything else about them is the same: later wins, and every error names file and line or the flag, the
//! key, what was expected, and for an unknown key the nearest known one.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use crate::config::broker::{self, Broker, OF_A_BROKER, SHARED};
use crate::config::nearest::nearest;
use crate::config::read::{self, Fault, Read, expected, fault};
use crate::config::settings::{self, Bucket, SinkForm, SinkPlace, SinkSettings};
use crate::config::units::format_size;
use crate::config::written::{Data, Place, Value, short};

/// The table that they stand in.
const TABLE: &str = "sink";

/// Bytes of a sink's name.
const NAME_BYTES_MAX: usize = 64;

/// Every key of a sink, in the order of the file.
pub const SINK_KEYS: [&str; 15] = [
    "type",
    "path",
    "url",
    "endpoint",
    "region",
    "credentials",
    "compression",
    "file_bytes",
    "file_age",
    "brokers",
    "topics",
    "partitions",
    "replicas",
    "transaction_bytes",
    "lag_max",
];

/// Keys that only a `url` has a use for.
const OF_A_URL: [&str; 3] = ["endpoint", "region", "credentials"];

/// Words of `compression`.
const COMPRESSIONS: [(&str, bool); 2] = [("zstd", true), ("none", false)];

/// Least and largest `file_bytes`: what is smaller makes a file of nearly every account, what is larger fills the journal.
const FILE_BYTES: std::ops::RangeInclusive<u64> = (64 << 10)..=(4 << 30);

/// Least and largest `file_age`.
const FILE_AGE: std::ops::RangeInclusive<Duration> =
    Duration::from_millis(1)..=Duration::from_secs(86_400);

/// Least and largest `lag_max`: one of the smallest journal, and what no disk holds.
const LAG_MAX: std::ops::RangeInclusive<u64> = (1 << 20)..=(1 << 50);

/// One sink as written: a place for each key.
#[derive(Default)]
struct Draft {
    values: BTreeMap<&'static str, Value>,
    /// Its table, for what is missing.
    place: Option<Place>,
}

/// Sinks that are being put together.
#[derive(Default)]
pub struct Drafts {
    drafts: BTreeMap<String, Draft>,
}

/// What is wrong with a key, by its whole name.
pub type Wrong = (String, Fault);

impl Drafts {
    /// Whether `key` is one of a sink, or meant to be.
    #[must_use]
    pub fn owns(key: &str) -> bool {
        key == TABLE || key.strip_prefix(TABLE).is_some_and(|rest| rest.starts_with('.'))
    }

    /// Takes `key`, which [`Drafts::owns`] has agreed to.
    ///
    /// # Errors
    /// What is wrong with its name.
    pub fn enter(&mut self, key: &str, value: &Value) -> Read<()> {
        let rest = key.strip_prefix(TABLE).and_then(|rest| rest.strip_prefix('.')).unwrap_or("");
        let (name, known) = match rest.split_once('.') {
            Some((name, key)) => (name, Some(key)),
            None => (rest, None),
        };
        let is_good =
            |it: u8| it.is_ascii_lowercase() || it.is_ascii_digit() || b"-_".contains(&it);
        if name.is_empty() {
            // The table alone, without a sink in it.
            return match value.data {
                Data::Table => Ok(()),
                _ => Err(fault(value, "is a section, write [sink.NAME]")),
            };
        }
        if name.len() > NAME_BYTES_MAX || !name.bytes().all(is_good) {
            let text = format!(
                "{}: a sink's name has small letters, digits, - and _, at most {NAME_BYTES_MAX}",
                short(name)
            );
            return Err(fault(value, text));
        }
        let Some(known) = known else {
            let Data::Table = value.data else {
                let hint = nearest(name, SINK_KEYS.into_iter()).unwrap_or("type");
                let text = format!("is a sink, write [sink.{name}], or sink.NAME.{hint}");
                return Err(fault(value, text));
            };
            self.drafts.entry(name.to_owned()).or_default().place = Some(value.place.clone());
            return Ok(());
        };
        let Some(key) = SINK_KEYS.into_iter().find(|it| *it == known) else {
            let hint = match nearest(known, SINK_KEYS.into_iter()) {
                Some(near) => format!("did you mean sink.{name}.{near}?"),
                None => format!("the keys of [sink.{name}] are {}", SINK_KEYS.join(", ")),
            };
            return Err(fault(value, format!("unknown key, {hint}")));
        };
        let draft = self.drafts.entry(name.to_owned()).or_default();
        draft.place.get_or_insert_with(|| value.place.clone());
        draft.values.insert(key, value.clone());
        Ok(())
    }

    /// The sinks, and everything that is wrong with them. `journal` is `limits.journal`, if that could be read.
    #[must_use]
    pub fn finish(self, journal: Option<u64>) -> (Vec<SinkSettings>, Vec<Wrong>) {
        let (mut sinks, mut wrong) = (Vec::new(), Vec::new());
        for (name, draft) in self.drafts {
            let lag_max = draft.lag_max(&name, journal, &mut wrong);
            match draft.finish(&name, &mut wrong) {
                Some(sink) => sinks.push(SinkSettings { lag_max, ..sink }),
                None => continue,
            }
        }
        let mut places: BTreeMap<String, &str> = BTreeMap::new();
        for sink in &sinks {
            let place = sink.place.to_string();
            if let Some(other) = places.insert(place.clone(), &sink.name) {
                let text = format!("{} is where sink.{other} writes, too", short(&place));
                wrong.push((format!("sink.{}", sink.name), Fault { place: Place::Nowhere, text }));
            }
        }
        (sinks, wrong)
    }
}

impl Draft {
    fn finish(&self, name: &str, wrong: &mut Vec<Wrong>) -> Option<SinkSettings> {
        let is_kafka = |value: &Value| matches!(&value.data, Data::Text(it) if it == "kafka");
        if self.values.get("type").is_some_and(is_kafka) {
            return self.finish_broker(name, wrong);
        }
        self.useless(name, wrong, "only a sink with type = \"kafka\" has a use for it", |key| {
            OF_A_BROKER.contains(&key)
        });
        self.finish_files(name, wrong)
    }

    /// A sink to the topics of a cluster.
    fn finish_broker(&self, name: &str, wrong: &mut Vec<Wrong>) -> Option<SinkSettings> {
        let before = wrong.len();
        self.useless(name, wrong, "a sink with type = \"kafka\" has no use for it", |key| {
            !OF_A_BROKER.contains(&key) && !SHARED.contains(&key)
        });
        if !self.values.contains_key("brokers") {
            let place = self.place.clone().unwrap_or(Place::Nowhere);
            let text = "is required: brokers = \"kafka-1:9092,kafka-2:9092\"".to_owned();
            wrong.push((format!("sink.{name}.brokers"), Fault { place, text }));
        }
        let brokers = self.read(name, "brokers", wrong, broker::brokers);
        let prefix = self.read(name, "topics", wrong, broker::prefix);
        let number = |range| move |value: &Value| broker::number(value, range);
        let partitions = self.read(name, "partitions", wrong, number(broker::PARTITIONS));
        let replicas = self.read(name, "replicas", wrong, number(broker::REPLICAS));
        let credentials = self.read(name, "credentials", wrong, read::path);
        let zstd = self.read(name, "compression", wrong, |value| read::word(value, &COMPRESSIONS));
        let bytes = self.read(name, "transaction_bytes", wrong, |value| {
            read::size(value, broker::TRANSACTION_BYTES)
        });
        if wrong.len() > before {
            return None;
        }
        let defaults = Broker::new(&brokers?);
        let place = Broker {
            prefix: prefix.unwrap_or(defaults.prefix),
            partitions: partitions.unwrap_or(defaults.partitions),
            replicas,
            credentials,
            transaction_bytes: bytes.unwrap_or(defaults.transaction_bytes),
            ..defaults
        };
        let defaults = SinkSettings::new(name, SinkForm::Kafka, SinkPlace::Broker(place));
        Some(SinkSettings { zstd: zstd.unwrap_or(defaults.zstd), ..defaults })
    }

    /// Names keys that a sink of this type does nothing with.
    fn useless(
        &self,
        name: &str,
        wrong: &mut Vec<Wrong>,
        text: &str,
        is_useless: impl Fn(&str) -> bool,
    ) {
        for (key, value) in self.values.iter().filter(|(key, _)| is_useless(key)) {
            let fault = Fault { place: value.place.clone(), text: text.to_owned() };
            wrong.push((format!("sink.{name}.{key}"), fault));
        }
    }

    /// A sink to files.
    fn finish_files(&self, name: &str, wrong: &mut Vec<Wrong>) -> Option<SinkSettings> {
        let before = wrong.len();
        let mut missing = |key: &str, text: &str| {
            let place = self.place.clone().unwrap_or(Place::Nowhere);
            wrong.push((format!("sink.{name}{key}"), Fault { place, text: text.to_owned() }));
        };
        if !self.values.contains_key("type") {
            missing(".type", "is required: type = \"jsonl\", \"parquet\" or \"kafka\"");
        }
        match (self.values.get("path"), self.values.get("url")) {
            (None, None) => {
                missing("", "one of path and url is required: path = \"/srv/skyfill\"");
            }
            (Some(_), Some(url)) => {
                let text = "path and url are two places, a sink has one".to_owned();
                wrong.push((format!("sink.{name}.url"), Fault { place: url.place.clone(), text }));
            }
            _ => {}
        }
        let words = [
            ("jsonl", SinkForm::JsonLines),
            ("parquet", SinkForm::Parquet),
            ("kafka", SinkForm::Kafka),
        ];
        let form = self.read(name, "type", wrong, |value| read::word(value, &words));
        let path = self.read(name, "path", wrong, read::path);
        let bucket = self.read(name, "url", wrong, bucket);
        let endpoint = self.read(name, "endpoint", wrong, endpoint);
        let region = self.read(name, "region", wrong, word);
        let credentials = self.read(name, "credentials", wrong, read::path);
        let zstd = self.read(name, "compression", wrong, |value| read::word(value, &COMPRESSIONS));
        let bytes = self.read(name, "file_bytes", wrong, |value| read::size(value, FILE_BYTES));
        let age = self.read(name, "file_age", wrong, |value| read::duration(value, FILE_AGE));
        if path.is_some() {
            let text = "only a sink with a url has a use for it";
            self.useless(name, wrong, text, |key| OF_A_URL.contains(&key));
        }
        if wrong.len() > before {
            return None;
        }
        let place = match (path, bucket) {
            (Some(path), _) => SinkPlace::Folder(path),
            (None, Some((bucket, prefix))) => {
                SinkPlace::Bucket(Bucket { bucket, prefix, endpoint, region, credentials })
            }
            (None, None) => return None,
        };
        let defaults = SinkSettings::new(name, form?, place);
        Some(SinkSettings {
            zstd: zstd.unwrap_or(defaults.zstd),
            file_bytes: bytes.unwrap_or(defaults.file_bytes),
            file_age: age.unwrap_or(defaults.file_age),
            ..defaults
        })
    }

    /// What it may hold of a journal of `journal` bytes, as written or by itself.
    fn lag_max(&self, name: &str, journal: Option<u64>, wrong: &mut Vec<Wrong>) -> u64 {
        let written = self.read(name, "lag_max", wrong, |value| read::size(value, LAG_MAX));
        let Some(journal) = journal else { return written.unwrap_or_default() };
        let written = written.unwrap_or_else(|| settings::lag_max(journal));
        if written > journal {
            let place = self.values.get("lag_max").map_or(Place::Nowhere, |it| it.place.clone());
            let (is, whole) = (format_size(written), format_size(journal));
            let text =
                format!("{is} is more than limits.journal ({whole}): raise that, or lower it");
            wrong.push((format!("sink.{name}.lag_max"), Fault { place, text }));
        }
        written
    }

    fn read<T>(
        &self,
        name: &str,
        key: &str,
        wrong: &mut Vec<Wrong>,
        read: impl FnOnce(&Value) -> Read<T>,
    ) -> Option<T> {
        match read(self.values.get(key)?) {
            Ok(value) => Some(value),
            Err(faults) => {
                let named = |fault| (format!("sink.{name}.{key}"), fault);
                wrong.extend(faults.into_iter().map(named));
                None
            }
        }
    }
}

/// `s3://bucket/prefix`: the bucket, and the prefix without slashes at its ends.
fn bucket(value: &Value) -> Read<(String, String)> {
    let what = "a URL such as \"s3://bucket/prefix\"";
    let written = read::text(value, what)?;
    let Some(rest) = written.strip_prefix("s3://") else {
        return Err(expected(
            value,
            what,
            "only s3 is spoken, what speaks like it has an endpoint",
        ));
    };
    if rest.contains(['?', '#', '@', '\\', '%']) || rest.contains("//") || rest.contains("..") {
        return Err(expected(value, what, "nothing but a bucket and a prefix has a place in it"));
    }
    let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
    let is_good = |it: u8| it.is_ascii_alphanumeric() || b".-_".contains(&it);
    if bucket.is_empty() || !bucket.bytes().all(is_good) {
        return Err(expected(value, what, "a bucket has letters, digits, dots and dashes"));
    }
    let is_plain = |it: u8| it.is_ascii_graphic();
    if !prefix.bytes().all(is_plain) {
        return Err(expected(value, what, "a prefix is of printable ASCII without blanks"));
    }
    Ok((bucket.to_owned(), prefix.trim_end_matches('/').to_owned()))
}

fn endpoint(value: &Value) -> Read<url::Url> {
    let url = read::directory_url(value)?;
    if url.path() == "/" {
        Ok(url)
    } else {
        Err(expected(value, "a URL such as \"https://minio.example.org\"", "a path is no endpoint"))
    }
}

fn word(value: &Value) -> Read<String> {
    let what = "a word such as \"eu-central-1\"";
    let written = read::text(value, what)?;
    let is_good = |it: u8| it.is_ascii_alphanumeric() || b"-_".contains(&it);
    let is_word = (1..=NAME_BYTES_MAX).contains(&written.len()) && written.bytes().all(is_good);
    if is_word { Ok(written.to_owned()) } else { Err(expected(value, what, "")) }
}

/// Where a path would be, for the comparison of two sinks.
impl std::fmt::Display for SinkPlace {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Folder(path) => {
                let path: PathBuf = path.components().collect();
                write!(f, "{}", path.display())
            }
            Self::Bucket(Bucket { bucket, prefix, .. }) => write!(f, "s3://{bucket}/{prefix}"),
            Self::Broker(Broker { brokers, prefix, .. }) => write!(f, "kafka://{brokers}/{prefix}"),
        }
    }
}
