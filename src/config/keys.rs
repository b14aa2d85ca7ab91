//! The keys: every setting's name, the kind of value that is written for it, its range, and where it goes.
//!
//! This is the only list of them. The file, `--set`, the nearest key of a misspelt one and the test of
//! `config/skyfill.toml` all read it.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use crate::config::group::group;
use crate::config::read::{self, Read, expected, fault};
use crate::config::settings::{Cidr, Compression, LogFormat, Settings};
use crate::config::written::{Data, Value};
use crate::domain::filter::{Kind, Offsets, Outside, TypeEntry};
use crate::domain::nsid::is_nsid;
use crate::domain::window::is_stamp;

/// What is written for a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// Text: also times, sizes and words.
    Text,
    /// A whole number.
    Whole,
    /// A number.
    Number,
    /// `true` or `false`.
    Flag,
    /// A list of texts.
    Texts,
    /// A list of whole numbers.
    Wholes,
}

impl Form {
    /// Whether `data` is of this form.
    #[must_use]
    pub fn accepts(self, data: &Data) -> bool {
        matches!(
            (self, data),
            (Self::Text, Data::Text(_))
                | (Self::Whole, Data::Whole(_))
                | (Self::Number, Data::Whole(_) | Data::Fraction(_))
                | (Self::Flag, Data::Flag(_))
                | (Self::Texts | Self::Wholes, Data::List(_))
        )
    }

    /// The form of an element, for lists.
    #[must_use]
    pub const fn element(self) -> Option<Self> {
        match self {
            Self::Texts => Some(Self::Text),
            Self::Wholes => Some(Self::Whole),
            _ => None,
        }
    }
}

/// One setting.
pub struct Key {
    /// `section.key`, or `data_dir`.
    pub name: &'static str,
    /// What is written for it.
    pub form: Form,
    set: fn(&mut Settings, &Value) -> Read<()>,
}

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name)
    }
}

impl Key {
    /// The key of this name.
    #[must_use]
    pub fn find(name: &str) -> Option<&'static Self> {
        KEYS.iter().find(|key| key.name == name)
    }

    /// Puts `value` where it belongs; on errors `settings` is as before.
    ///
    /// # Errors
    /// Everything that is wrong with the value.
    pub fn set(&self, settings: &mut Settings, value: &Value) -> Read<()> {
        (self.set)(settings, value)
    }
}

/// Names of the sections, in the order of the file.
pub fn sections() -> impl Iterator<Item = &'static str> {
    let mut last = "";
    KEYS.iter().filter_map(|key| key.name.split_once('.')).filter_map(move |(section, _)| {
        let is_new = section != last;
        last = section;
        is_new.then_some(section)
    })
}

/// Every key, in the order of the file.
pub const KEYS: &[Key] = &[
    key("data_dir", Form::Text, |to, value| put(&mut to.data_dir, read::path(value))),
    key("source.files", Form::Texts, |to, value| put(&mut to.source.files, files(value))),
    key("source.dids", Form::Texts, |to, value| put(&mut to.source.dids, dids(value))),
    key("source.group", Form::Text, |to, value| put(&mut to.source.group, group(value))),
    key("window.start", Form::Text, |to, value| put(&mut to.filter.window.start, stamp(value))),
    key("window.end", Form::Text, |to, value| put(&mut to.filter.window.end, stamp(value))),
    key("window.outside", Form::Text, |to, value| {
        let words = [("bucket", Outside::Bucket), ("drop", Outside::Drop), ("keep", Outside::Keep)];
        put(&mut to.filter.window.outside, read::word(value, &words))
    }),
    key("window.offsets", Form::Text, |to, value| {
        let words = [("utc", Offsets::Utc), ("ignore", Offsets::Ignore)];
        put(&mut to.filter.window.offsets, read::word(value, &words))
    }),
    key("records.types", Form::Texts, |to, value| put(&mut to.filter.types, types(value))),
    key("records.pseudonyms", Form::Text, |to, value| put(&mut to.pseudonyms, key_file(value))),
    key("identity.plc_url", Form::Text, |to, value| {
        put(&mut to.identity.plc_url, read::directory_url(value))
    }),
    key("identity.mirrors", Form::Texts, |to, value| put(&mut to.identity.mirrors, mirrors(value))),
    key("identity.requests_per_second", Form::Number, |to, value| {
        put(&mut to.identity.requests_per_second, read::rate(value))
    }),
    key("identity.cache_ttl", Form::Text, |to, value| {
        put(&mut to.identity.cache_ttl, read::duration(value, Duration::ZERO..=DAY * 365))
    }),
    key("fetch.concurrency", Form::Whole, |to, value| {
        put(&mut to.fetch.concurrency, read::whole(value, 1..=10_000))
    }),
    key("fetch.host_requests_per_second", Form::Number, |to, value| {
        put(&mut to.fetch.host_requests_per_second, read::rate(value))
    }),
    key("fetch.host_concurrency", Form::Whole, |to, value| {
        put(&mut to.fetch.host_concurrency, read::whole(value, 1..=10_000))
    }),
    key("fetch.address_requests_per_second", Form::Number, |to, value| {
        put(&mut to.fetch.address_requests_per_second, read::rate(value))
    }),
    key("fetch.first_byte_timeout", Form::Text, |to, value| {
        put(&mut to.fetch.first_byte_timeout, read::duration(value, MOMENT..=DAY))
    }),
    key("fetch.idle_timeout", Form::Text, |to, value| {
        put(&mut to.fetch.idle_timeout, read::duration(value, MOMENT..=DAY))
    }),
    key("fetch.min_bytes_per_second", Form::Text, |to, value| {
        put(&mut to.fetch.min_bytes_per_second, read::size(value, 0..=GIB))
    }),
    key("fetch.total_timeout", Form::Text, |to, value| {
        put(&mut to.fetch.total_timeout, read::duration(value, MOMENT..=DAY * 30))
    }),
    key("fetch.compression", Form::Text, |to, value| {
        let words =
            [("auto", Compression::Auto), ("on", Compression::On), ("off", Compression::Off)];
        put(&mut to.fetch.compression, read::word(value, &words))
    }),
    key("fetch.contact", Form::Text, |to, value| {
        put(&mut to.fetch.contact, read::header_text(value))
    }),
    key("network.allow", Form::Texts, |to, value| put(&mut to.network.allow, networks(value))),
    key("network.ports", Form::Wholes, |to, value| put(&mut to.network.ports, ports(value))),
    key("retry.attempts", Form::Whole, |to, value| {
        put(&mut to.retry.attempts, read::whole(value, 1..=1_000))
    }),
    key("retry.base", Form::Text, |to, value| {
        put(&mut to.retry.base, read::duration(value, MOMENT..=DAY))
    }),
    key("retry.max", Form::Text, |to, value| {
        put(&mut to.retry.max, read::duration(value, MOMENT..=DAY * 30))
    }),
    key("retry.host_patience", Form::Text, |to, value| {
        put(&mut to.retry.host_patience, read::duration(value, MOMENT..=DAY * 365))
    }),
    key("refresh.every", Form::Text, |to, value| put(&mut to.refresh.every, every(value))),
    key("refresh.leaves", Form::Flag, |to, value| put(&mut to.refresh.leaves, read::flag(value))),
    key("limits.batch_size", Form::Whole, |to, value| {
        put(&mut to.limits.batch_size, read::whole(value, 1..=100_000))
    }),
    key("limits.memory", Form::Text, |to, value| {
        put(&mut to.limits.memory, read::size(value, 64 << 20..=1_024 * GIB))
    }),
    key("limits.spool_memory", Form::Text, |to, value| {
        put(&mut to.limits.spool_memory, read::size(value, 0..=1_024 * GIB))
    }),
    key("limits.spool", Form::Text, |to, value| {
        put(&mut to.limits.spool, read::size(value, 1_024..=DISK_MAX))
    }),
    key("limits.repo_bytes", Form::Text, |to, value| {
        put(&mut to.limits.repo_bytes, read::size(value, 1_024..=4 * GIB))
    }),
    key("limits.journal", Form::Text, |to, value| {
        put(&mut to.limits.journal, read::size(value, 1 << 20..=DISK_MAX))
    }),
    key("limits.disk_free", Form::Text, |to, value| {
        put(&mut to.limits.disk_free, read::size(value, 0..=DISK_MAX))
    }),
    key("limits.parsers", Form::Whole, |to, value| {
        put(&mut to.limits.parsers, read::whole(value, 0..=1_024))
    }),
    key("queue.rows_per_item", Form::Whole, |to, value| {
        put(&mut to.rows_per_item, read::whole(value, 1..=100_000))
    }),
    key("metrics.listen", Form::Text, |to, value| put(&mut to.metrics.listen, listen(value))),
    key("metrics.public", Form::Flag, |to, value| put(&mut to.metrics.public, read::flag(value))),
    key("log.level", Form::Text, |to, value| put(&mut to.log.level, read::word(value, LEVELS))),
    key("log.format", Form::Text, |to, value| {
        let words = [("text", LogFormat::Text), ("json", LogFormat::Json)];
        put(&mut to.log.format, read::word(value, &words))
    }),
];

const fn key(name: &'static str, form: Form, set: fn(&mut Settings, &Value) -> Read<()>) -> Key {
    Key { name, form, set }
}

fn put<T>(slot: &mut T, value: Read<T>) -> Read<()> {
    *slot = value?;
    Ok(())
}

/// Least time that makes sense as a limit.
const MOMENT: Duration = Duration::from_millis(1);
const DAY: Duration = Duration::from_secs(86_400);
const GIB: u64 = 1 << 30;
/// Largest limit on disk: 1,024 TiB.
const DISK_MAX: u64 = 1 << 50;

const LEVELS: &[(&str, tracing::Level)] = &[
    ("error", tracing::Level::ERROR),
    ("warn", tracing::Level::WARN),
    ("info", tracing::Level::INFO),
    ("debug", tracing::Level::DEBUG),
    ("trace", tracing::Level::TRACE),
];

/// Bytes of a type's name: it becomes part of a file name, which may have 255.
const TYPE_BYTES_MAX: usize = 200;

fn files(value: &Value) -> Read<Vec<PathBuf>> {
    read::list(value, "a list of files such as [\"/etc/skyfill/dids.txt\"]", read::path)
}

/// DIDs are not judged here: a malformed one is parked, it does not stop the run.
fn dids(value: &Value) -> Read<Vec<String>> {
    let what = "a list of DIDs such as [\"did:plc:z72i7hdynmk6r22z27h6tvur\"]";
    read::list(value, what, |item| read::text(item, "a DID").map(ToOwned::to_owned))
}

fn stamp(value: &Value) -> Read<String> {
    let what = "a second that exists, as \"YYYY-MM-DD-HH:MM:SS\"";
    let written = read::text(value, what)?;
    if is_stamp(written) { Ok(written.to_owned()) } else { Err(expected(value, what, "")) }
}

fn types(value: &Value) -> Read<Vec<TypeEntry>> {
    let what = "a list of record types such as [\"post\", \"like\"]";
    let types = read::list(value, what, type_entry)?;
    let mut faults = Vec::new();
    let Data::List(items) = &value.data else { return Ok(types) };
    for (index, entry) in types.iter().enumerate() {
        if types[..index].contains(entry) {
            faults.extend(fault(&items[index], format!("{} is listed twice", items[index])));
        }
    }
    match (types.is_empty(), faults.is_empty()) {
        (true, _) => Err(fault(value, "at least one record type is needed")),
        (_, false) => Err(faults),
        _ => Ok(types),
    }
}

fn type_entry(item: &Value) -> Read<TypeEntry> {
    let what = "post, reply, repost, like, follow, block, an NSID such as \"app.bsky.actor.profile\", or a prefix such as \"app.bsky.graph.*\"";
    let written = read::text(item, what)?;
    if let Some(kind) = Kind::ALL.into_iter().find(|kind| kind.label() == written) {
        return Ok(TypeEntry::Kind(kind));
    }
    let behind = |kind: &Kind| kind.nsid().eq_ignore_ascii_case(written);
    if let Some(kind) = Kind::ALL.into_iter().find(behind) {
        let names = if matches!(kind, Kind::Post | Kind::Reply) {
            "\"post\" and \"reply\"".to_owned()
        } else {
            format!("\"{}\"", kind.label())
        };
        return Err(fault(item, format!("{item}: these records are called {names} here")));
    }
    if written.len() > TYPE_BYTES_MAX {
        return Err(fault(
            item,
            format!("{item}: longer than {TYPE_BYTES_MAX} bytes, too long for a file name"),
        ));
    }
    if let Some(prefix) = written.strip_suffix('*').filter(|prefix| prefix.ends_with('.')) {
        // Two more labels make an NSID of any prefix of one.
        let is_prefix = is_nsid(&format!("{prefix}a.a"));
        return if is_prefix {
            Ok(TypeEntry::Prefix(prefix.to_owned()))
        } else {
            Err(expected(item, what, ""))
        };
    }
    let lower = written.to_ascii_lowercase();
    let singular = lower.strip_suffix('s').unwrap_or(&lower);
    let meant = Kind::ALL.into_iter().find(|kind| kind.label() == singular);
    let hint = meant.map_or(String::new(), |kind| format!("write \"{}\"", kind.label()));
    if is_nsid(written) {
        return Ok(TypeEntry::Nsid(written.to_owned()));
    }
    Err(expected(item, what, &hint))
}

fn key_file(value: &Value) -> Read<Option<PathBuf>> {
    match read::text(value, "a key file such as \"/etc/skyfill/key\", or \"\" for none")? {
        "" => Ok(None),
        _ => read::path(value).map(Some),
    }
}

fn mirrors(value: &Value) -> Read<Vec<url::Url>> {
    let what = "a list of URLs such as [\"https://plc.example.org\"]";
    read::list(value, what, read::directory_url)
}

fn networks(value: &Value) -> Read<Vec<Cidr>> {
    let what = "a list of networks such as [\"10.0.0.0/8\"]";
    let one = "a network such as \"10.0.0.0/8\" or \"::1/128\"";
    read::list(value, what, |item| {
        Cidr::parse(read::text(item, one)?).ok_or_else(|| expected(item, one, ""))
    })
}

fn ports(value: &Value) -> Read<Vec<u16>> {
    let what = "a list of ports such as [443]";
    let ports = read::list(value, what, |item| read::whole(item, 1..=65_535))?;
    if ports.is_empty() { Err(fault(value, "at least one port is needed")) } else { Ok(ports) }
}

fn every(value: &Value) -> Read<Option<Duration>> {
    if matches!(&value.data, Data::Text(text) if text.is_empty()) {
        return Ok(None);
    }
    read::duration(value, Duration::from_secs(1)..=DAY * 365).map(Some)
}

fn listen(value: &Value) -> Read<Option<SocketAddr>> {
    let what = "an address and a port such as \"127.0.0.1:9464\", or \"\" for off";
    let written = read::text(value, what)?;
    if written.is_empty() {
        return Ok(None);
    }
    let hint = match written.rsplit_once(':') {
        Some(("localhost", port)) => format!("write \"127.0.0.1:{port}\""),
        Some(("" | "*", port)) => format!("\"0.0.0.0:{port}\" is every address"),
        _ => String::new(),
    };
    written.parse().map(Some).map_err(|_| expected(value, what, &hint))
}
