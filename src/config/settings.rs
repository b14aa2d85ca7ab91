//! Settings: what the configuration means. Every value is present, typed and checked; nothing here is text that still has to
//! be understood. `config::file` reads what was written and turns it into this.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use crate::domain::filter::Filter;
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
    /// Directory.
    pub identity: Identity,
    /// Transfers.
    pub fetch: Fetch,
    /// What may be connected to.
    pub network: Network,
    /// Retries.
    pub retry: Retry,
    /// Bounds on memory, disk and work.
    pub limits: Limits,
    /// Records in one queue item, at least 1.
    pub rows_per_item: u32,
    /// Metrics endpoint.
    pub metrics: Metrics,
    /// Log.
    pub log: Log,
}

/// `[source]`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Source {
    /// DID lists.
    pub files: Vec<PathBuf>,
    /// DIDs written into the configuration itself, not checked yet: a malformed one is parked, not refused.
    pub dids: Vec<String>,
}

/// `[identity]`.
#[derive(Clone, Debug, PartialEq)]
pub struct Identity {
    /// PLC directory: `http` or `https`, with or without a path, never ending in `/`.
    pub plc_url: url::Url,
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
        let prefix_bits = match bits {
            Some(bits) if bits.bytes().all(|byte| byte.is_ascii_digit()) => bits.parse().ok()?,
            Some(_) => return None,
            None => bits_max,
        };
        (prefix_bits <= bits_max).then_some(Self { address, prefix_bits })
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
        assert!(contains("0.0.0.0/0", "9.9.9.9") && contains("::/0", "2001::1"));
        for text in
            ["", "1.2.3.4/33", "::1/129", "1.2.3.4/-1", "1.2.3.4/+8", "localhost/8", "1.2.3/8"]
        {
            assert_eq!(Cidr::parse(text), None, "{text}");
        }
    }
}
