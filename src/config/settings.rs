//! Settings: what the configuration means. Every value is present, typed and checked; nothing here is text that still has to
//! be understood. `config::file` reads what was written and turns it into this.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use crate::config::broker::Broker;
use crate::domain::filter::{Filter, Kind, Offsets, Outside, TypeEntry, Window};
use crate::domain::ledger::LedgerPolicy;

/// Everything that an operator can set, one section a field (DESIGN section 7, "Configuration").
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// The data directory.
    pub data_dir: PathBuf,
    /// Where the DIDs come from.
    pub source: Source,
    /// Record types and study window.
    pub filter: Filter,
    /// Key file of the pseudonyms that stand for DIDs; `None`: the DIDs themselves do.
    pub pseudonyms: Option<PathBuf>,
    /// Directory.
    pub identity: Identity,
    /// Transfers.
    pub fetch: Fetch,
    /// What may be connected to.
    pub network: Network,
    /// Retries.
    pub retry: Retry,
    /// Refreshes.
    pub refresh: Refresh,
    /// Bounds on memory, disk and work.
    pub limits: Limits,
    /// Records in one queue item, at least 1.
    pub rows_per_item: u32,
    /// Metrics endpoint.
    pub metrics: Metrics,
    /// Log.
    pub log: Log,
    /// Sinks beside the queues, by name.
    pub sinks: Vec<SinkSettings>,
}

/// `[source]`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Source {
    /// DID lists.
    pub files: Vec<PathBuf>,
    /// DIDs written into the configuration itself, not checked yet: a malformed one is parked, not refused.
    pub dids: Vec<String>,
    /// Instead of both: the consumer group that shares the accounts on `<topics>.dids`.
    pub group: Option<String>,
}

/// `[identity]`.
#[derive(Clone, Debug, PartialEq)]
pub struct Identity {
    /// PLC directory: `http` or `https`, without user info, query or fragment. A path never ends in `/`; where there is
    /// none, the URL's text ends in the `/` of the root, as `url::Url` always writes it.
    pub plc_url: url::Url,
    /// Copies of the directory, asked in this order where it has no usable answer; of the same form.
    pub mirrors: Vec<url::Url>,
    /// Requests per second to the directory, above 0.
    pub requests_per_second: f64,
    /// Age up to which a resolved identity is used without asking again.
    pub cache_ttl: Duration,
}

/// `[fetch]`.
#[derive(Clone, Debug, PartialEq)]
pub struct Fetch {
    /// Transfers at once, over all hosts.
    pub concurrency: usize,
    /// Requests per second and host, above 0.
    pub host_requests_per_second: f64,
    /// Transfers at once per host.
    pub host_concurrency: usize,
    /// Requests per second to one address (IPv4 /32, IPv6 /64), whatever the names that lead to it.
    pub address_requests_per_second: f64,
    /// From the request to the first byte of the answer.
    pub first_byte_timeout: Duration,
    /// Between two reads of a body.
    pub idle_timeout: Duration,
    /// Average over 60 s below which a transfer is given up, bytes per second.
    pub min_bytes_per_second: u64,
    /// A whole transfer.
    pub total_timeout: Duration,
    /// Whether bodies may be compressed on the way.
    pub compression: Compression,
    /// How hosts can reach the operator; part of the User-Agent. Empty: not told.
    pub contact: String,
}

/// `fetch.compression`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Compression {
    /// Decided per host by measurement.
    #[default]
    Auto,
    /// gzip is asked for.
    On,
    /// Plain bodies only.
    Off,
}

/// `[network]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Network {
    /// Addresses that may be reached although private, on any port and over plain http.
    pub allow: Vec<Cidr>,
    /// Ports that hosts may use.
    pub ports: Vec<u16>,
}

/// A network of addresses, `127.0.0.0/8` or `::1/128`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cidr {
    address: IpAddr,
    prefix_bits: u8,
}

impl Cidr {
    /// Parses `ADDRESS/BITS`, or an address alone for just that one.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let (address, bits) = match text.split_once('/') {
            Some((address, bits)) => (address, Some(bits)),
            None => (text, None),
        };
        let address: IpAddr = address.parse().ok()?;
        let bits_max = if address.is_ipv4() { 32 } else { 128 };
        let prefix_bits: u8 = match bits {
            Some(bits) if bits.bytes().all(|byte| byte.is_ascii_digit()) => bits.parse().ok()?,
            Some(_) => return None,
            None => bits_max,
        };
        let bits_of_mapped = prefix_bits.checked_sub(MAPPED_BITS);
        match (address.to_canonical(), bits_of_mapped) {
            _ if prefix_bits > bits_max => None,
            (IpAddr::V4(address), Some(prefix_bits)) if bits_max == 128 => {
                Some(Self { address: IpAddr::V4(address), prefix_bits })
            }
            (IpAddr::V4(_), None) if bits_max == 128 => None,
            _ => Some(Self { address, prefix_bits }),
        }
    }

    /// Whether it is every address there is.
    #[must_use]
    pub const fn is_everything(&self) -> bool {
        self.prefix_bits == 0
    }

    /// Whether `address` is one of the network; an IPv4 address written as IPv6 is the IPv4 address.
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        let bits = u32::from(self.prefix_bits);
        match (self.address.to_canonical(), address.to_canonical()) {
            (IpAddr::V4(network), IpAddr::V4(address)) => {
                let differ = network.to_bits() ^ address.to_bits();
                differ.checked_shr(32_u32.saturating_sub(bits)).unwrap_or(0) == 0
            }
            (IpAddr::V6(network), IpAddr::V6(address)) => {
                let differ = network.to_bits() ^ address.to_bits();
                differ.checked_shr(128_u32.saturating_sub(bits)).unwrap_or(0) == 0
            }
            _ => false,
        }
    }
}

impl std::fmt::Display for Cidr {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix_bits)
    }
}

/// Bits before the IPv4 address in an IPv6 address that maps it (`::ffff:127.0.0.1`).
const MAPPED_BITS: u8 = 96;

/// `[retry]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retry {
    /// Charged failures that end an account, at least 1.
    pub attempts: u32,
    /// First retry delay.
    pub base: Duration,
    /// Longest retry delay.
    pub max: Duration,
    /// How long a host or the directory may give no usable answer.
    pub host_patience: Duration,
}

/// `[refresh]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refresh {
    /// The daemon compares each done account with its host this long after its export or its last refresh; `None`: never.
    pub every: Option<Duration>,
    /// Whether fingerprints of each revision are kept, without which there is nothing to compare the next one with.
    pub leaves: bool,
}

impl Default for Refresh {
    fn default() -> Self {
        Self { every: None, leaves: true }
    }
}

/// `[limits]`. Sizes in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Accounts between lease and seal, at least 1.
    pub batch_size: usize,
    /// Memory that the three budgets are cut from.
    pub memory: u64,
    /// Memory of one spool before it goes to its file.
    pub spool_memory: u64,
    /// Disk of all spools together.
    pub spool: u64,
    /// One repository.
    pub repo_bytes: u64,
    /// Journal.
    pub journal: u64,
    /// Free space below which no new work begins.
    pub disk_free: u64,
    /// Parser threads; never 0 here, the file's 0 has become the number of cores.
    pub parsers: usize,
}

/// `[metrics]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Metrics {
    /// Where to listen, `None` for off.
    pub listen: Option<SocketAddr>,
    /// Whether an address that is not loopback was asked for on purpose.
    pub public: bool,
}

/// `[log]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Log {
    /// Least level that is written.
    pub level: tracing::Level,
    /// Form of a line.
    pub format: LogFormat,
}

/// `log.format`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LogFormat {
    /// `key=value`.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// `[sink.NAME]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SinkSettings {
    /// The name that the ledger remembers it by.
    pub name: String,
    /// What it writes.
    pub form: SinkForm,
    /// Where.
    pub place: SinkPlace,
    /// Whether what it writes is compressed.
    pub zstd: bool,
    /// Bytes of rows, as JSON, after which its files are closed.
    pub file_bytes: u64,
    /// Age after which they are closed all the same.
    pub file_age: Duration,
    /// Bytes of sealed segments that it may hold before the work waits for it.
    pub lag_max: u64,
}

/// `sink.NAME.type`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SinkForm {
    /// One record a line, as in the queues.
    JsonLines,
    /// One schema a record type, by day.
    Parquet,
    /// One message a record, in transactions.
    Kafka,
}

/// `sink.NAME.path`, `sink.NAME.url` or `sink.NAME.brokers`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SinkPlace {
    /// A directory.
    Folder(PathBuf),
    /// An object store.
    Bucket(Bucket),
    /// Topics.
    Broker(Broker),
}

/// A place in an object store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bucket {
    /// Its name.
    pub bucket: String,
    /// What stands before every key, without a slash at its end; may be empty.
    pub prefix: String,
    /// The server, where it is not the provider's own.
    pub endpoint: Option<url::Url>,
    /// The region.
    pub region: Option<String>,
    /// A file of credentials; without it they come from the environment.
    pub credentials: Option<PathBuf>,
}

impl SinkSettings {
    /// A sink with the defaults of everything else.
    #[must_use]
    pub fn new(name: &str, form: SinkForm, place: SinkPlace) -> Self {
        let (file_bytes, file_age) = (256 << 20, MINUTE * 10);
        let lag_max = lag_max(Limits::default().journal);
        Self { name: name.to_owned(), form, place, zstd: true, file_bytes, file_age, lag_max }
    }
}

impl Default for Settings {
    /// What `config/skyfill.toml` says, with the data directory of `backfill` and no source.
    fn default() -> Self {
        Self {
            data_dir: PathBuf::from("./skyfill-data"),
            source: Source::default(),
            filter: study(),
            pseudonyms: None,
            identity: Identity::default(),
            fetch: Fetch::default(),
            network: Network { allow: Vec::new(), ports: vec![443] },
            retry: Retry::default(),
            refresh: Refresh::default(),
            limits: Limits::default(),
            rows_per_item: 1_000,
            metrics: Metrics::default(),
            log: Log { level: tracing::Level::INFO, format: LogFormat::Text },
            sinks: Vec::new(),
        }
    }
}

impl Default for Identity {
    fn default() -> Self {
        #[expect(clippy::expect_used, reason = "invariant: a literal that a test parses")]
        let plc_url = url::Url::parse("https://plc.directory").expect("invariant: a valid URL");
        Self { plc_url, mirrors: Vec::new(), requests_per_second: 10.0, cache_ttl: HOUR * 24 }
    }
}

impl Default for Fetch {
    fn default() -> Self {
        Self {
            concurrency: 256,
            host_requests_per_second: 9.0,
            host_concurrency: 4,
            address_requests_per_second: 100.0,
            first_byte_timeout: Duration::from_secs(30),
            idle_timeout: Duration::from_secs(30),
            min_bytes_per_second: 64 << 10,
            total_timeout: MINUTE * 30,
            compression: Compression::Auto,
            contact: String::new(),
        }
    }
}

impl Default for Retry {
    fn default() -> Self {
        let LedgerPolicy { attempts, base, max, host_patience, .. } = LedgerPolicy::default();
        Self { attempts, base, max, host_patience }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            batch_size: 256,
            memory: 256 << 20,
            spool_memory: 4 << 20,
            spool: 16 << 30,
            repo_bytes: 4 << 30,
            journal: 4 << 30,
            disk_free: 1 << 30,
            parsers: cores(),
        }
    }
}

impl Default for Metrics {
    fn default() -> Self {
        let listen = SocketAddr::from(([127, 0, 0, 1], 9464));
        Self { listen: Some(listen), public: false }
    }
}

/// The six kinds in the window of the study.
fn study() -> Filter {
    let window = Window {
        start: "2024-09-27-00:00:00".to_owned(),
        end: "2024-12-02-00:00:00".to_owned(),
        outside: Outside::Bucket,
        offsets: Offsets::Utc,
    };
    Filter { types: Kind::ALL.map(TypeEntry::Kind).to_vec(), window }
}

/// `sink.NAME.lag_max`, where it is not written, of a journal of `journal` bytes: three quarters. Segments are shared, so sinks
/// that are away together hold no more than the one that is furthest behind. The last quarter stays for what is being written:
/// without it, large accounts would be given back and fetched again while a sink is away.
#[must_use]
pub const fn lag_max(journal: u64) -> u64 {
    journal / 4 * 3
}

const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3_600);

/// Parser threads behind `limits.parsers = 0`: one a core that this process may use.
#[must_use]
pub fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}

impl Settings {
    /// The numbers behind the ledger's rules.
    #[must_use]
    pub fn ledger_policy(&self) -> LedgerPolicy {
        LedgerPolicy {
            attempts: self.retry.attempts,
            base: self.retry.base,
            max: self.retry.max,
            host_patience: self.retry.host_patience,
            cache_ttl: self.identity.cache_ttl,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_contain_their_addresses_only() {
        let contains = |network: &str, address: &str| {
            Cidr::parse(network).unwrap().contains(address.parse().unwrap())
        };
        assert!(
            contains("127.0.0.0/8", "127.255.255.255")
                && contains("127.0.0.0/8", "::ffff:127.0.0.1")
        );
        assert!(!contains("127.0.0.0/8", "128.0.0.0") && !contains("::1/128", "::2"));
        assert!(contains("10.1.2.3", "10.1.2.3") && !contains("10.1.2.3", "10.1.2.4"));
        assert!(
            contains("::ffff:127.0.0.0/104", "127.9.9.9")
                && !contains("::ffff:127.0.0.0/104", "128.0.0.1")
        );
        assert!(contains("0.0.0.0/0", "9.9.9.9") && contains("::/0", "2001::1"));
        for text in [
            "",
            "::ffff:1.2.3.4/64",
            "1.2.3.4/33",
            "::1/129",
            "1.2.3.4/-1",
            "1.2.3.4/+8",
            "localhost/8",
            "1.2.3/8",
        ] {
            assert_eq!(Cidr::parse(text), None, "{text}");
        }
    }
}
