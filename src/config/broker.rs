//! `[sink.NAME]` with `type = "kafka"`: the brokers, the topics and what they are made with, and how each is written.

use std::ops::RangeInclusive;
use std::path::PathBuf;

use crate::config::read::{self, Read, expected};
use crate::config::written::{Data, Place, Value};

/// Keys that only a sink to brokers has a use for.
pub const OF_A_BROKER: [&str; 5] =
    ["brokers", "topics", "partitions", "replicas", "transaction_bytes"];

/// Keys that a sink to brokers shares with others.
pub const SHARED: [&str; 4] = ["type", "credentials", "compression", "lag_max"];

/// Least and most partitions of a topic.
pub const PARTITIONS: RangeInclusive<u64> = 1..=10_000;

/// Least and most copies of a partition.
pub const REPLICAS: RangeInclusive<u64> = 1..=100;

/// Least and largest `transaction_bytes`: one row must fit, and the largest must pass within `transaction.timeout.ms`.
pub const TRANSACTION_BYTES: RangeInclusive<u64> = (1 << 20)..=(1 << 30);

/// Bytes of a topic prefix: with the longest configured type a name stays below Kafka's 249.
const PREFIX_BYTES_MAX: usize = 64;

/// Topics of a cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Broker {
    /// The first brokers to ask, `host:port`, separated by commas.
    pub brokers: String,
    /// What stands before the dot in every topic's name.
    pub prefix: String,
    /// Partitions that every topic has at least.
    pub partitions: i32,
    /// Copies of topics that are made; `None`: the cluster's own default.
    pub replicas: Option<i32>,
    /// A file of credentials; without it they come from the environment, if there are any.
    pub credentials: Option<PathBuf>,
    /// Bytes of rows of one transaction; an account with more is split.
    pub transaction_bytes: u64,
}

impl Broker {
    /// The defaults of everything but the place.
    #[must_use]
    pub fn new(brokers: &str) -> Self {
        Self {
            brokers: brokers.to_owned(),
            prefix: "skyfill".to_owned(),
            partitions: 12,
            replicas: None,
            credentials: None,
            transaction_bytes: 64 << 20,
        }
    }
}

/// Brokers: `host:port` with commas between, or a list of them.
///
/// # Errors
/// What is no such place.
pub fn brokers(value: &Value) -> Read<String> {
    let what = "brokers such as \"kafka-1:9092,kafka-2:9092\"";
    let written = read::text(value, what)?;
    checked_places(written).ok_or_else(|| expected(value, what, "each is host:port"))
}

/// Brokers as they were written, without spaces; `None`: one of them is no place.
#[must_use]
pub fn checked_places(written: &str) -> Option<String> {
    let is_place = |place: &str| {
        let Some((host, port)) = place.rsplit_once(':') else { return false };
        let is_good = |it: u8| it.is_ascii_alphanumeric() || b".-_:[]".contains(&it);
        !host.is_empty() && host.bytes().all(is_good) && port.parse::<u16>().is_ok_and(|it| it > 0)
    };
    let places: Vec<&str> = written.split(',').map(str::trim).collect();
    places.iter().all(|place| is_place(place)).then(|| places.join(","))
}

/// A whole number; `--set` writes it like a text.
///
/// # Errors
/// What is none, or out of `range`.
pub fn number(value: &Value, range: RangeInclusive<u64>) -> Read<i32> {
    let typed = match (&value.place, &value.data) {
        (Place::Origin(_), Data::Text(text)) => text.parse().ok().map(Data::Whole),
        _ => None,
    };
    let data = typed.unwrap_or_else(|| value.data.clone());
    read::whole(&Value { data, ..value.clone() }, range)
}

/// What stands before the dot in every topic's name.
///
/// # Errors
/// What no topic may be called.
pub fn prefix(value: &Value) -> Read<String> {
    let what = "a word such as \"skyfill\"";
    let written = read::text(value, what)?;
    match is_prefix(written) {
        true => Ok(written.to_owned()),
        false => Err(expected(value, what, "letters, digits, dots, dashes and underscores")),
    }
}

/// Whether it can stand before the dot in every topic's name.
#[must_use]
pub fn is_prefix(written: &str) -> bool {
    let is_good = |it: u8| it.is_ascii_alphanumeric() || b"._-".contains(&it);
    let is_word = (1..=PREFIX_BYTES_MAX).contains(&written.len()) && written.bytes().all(is_good);
    is_word && !written.starts_with('.')
}
