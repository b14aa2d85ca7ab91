//! Names to addresses, checked where the socket asks.
//!
//! `/etc/hosts` first (as read when the client was made), then localhost names as RFC 6761 wants them, then the system's
//! name servers: asynchronously, cached, at most 5 s a lookup. Without usable name servers the first two still answer, and
//! addresses written in URLs never come here. A [`GuardedNames`] belongs to one route and is the resolver of that route's
//! HTTP client: what it lets through is what the socket connects to, so nothing can change in between.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use hickory_resolver::config::{
    ConnectionConfig, LookupIpStrategy, NameServerConfig, ResolveHosts, ResolverConfig,
    ResolverOpts,
};
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::proto::op::Query;
use hickory_resolver::proto::rr::{Name, RecordType};
use hickory_resolver::{Hosts, TokioResolver};
use reqwest::dns::{Addrs, Resolve, Resolving};

use crate::net::connect::Progress;
use crate::net::error::{NetError, innermost, told};
use crate::net::guard::{Guard, Route};
use crate::store::error::has_descriptor;

/// A lookup that takes longer has failed (PROTOCOL section 4: connect 5 s; a name is not worth more).
const LOOKUP_SECONDS: u64 = 5;

/// Addresses of one name that are used. All are checked; a name with more is a trick or has plenty.
const ADDRESSES_MAX: usize = 8;

/// Answers in the cache. Two a host (IPv4, IPv6); a hostile one can be 64 KiB.
const CACHE_ANSWERS: u64 = 2_048;

/// A name that does not exist is asked again after this at the latest: people register hosts late.
const NEGATIVE_TTL_SECONDS: u64 = 60;

/// An address is looked up again after this at the latest: hosts move.
const POSITIVE_TTL_SECONDS: u64 = 3_600;

/// Lookups at once over one connection; every host of a full pipeline at once.
const LOOKUPS_MAX: usize = 1_024;

/// The machine's view of names; clones share the cache.
#[derive(Clone)]
pub struct Names {
    hosts: Arc<Hosts>,
    servers: Option<TokioResolver>,
}

impl Names {
    /// What this system is configured to use. Without usable name servers it warns, and only `/etc/hosts` answers.
    #[must_use]
    pub fn system() -> Self {
        let hosts = Hosts::from_system().unwrap_or_default();
        let configured = hickory_resolver::system_conf::read_system_conf();
        let servers = configured.and_then(|(config, options)| resolver(config, options));
        let servers = servers.inspect_err(|error| {
            tracing::warn!(%error, "no usable name servers, only the hosts file answers");
        });
        Self { hosts: Arc::new(hosts), servers: servers.ok() }
    }

    /// Only these name servers and no hosts file, for networks with their own.
    ///
    /// # Errors
    /// [`NetError::Dns`] if no resolver can be made of them.
    pub fn of_servers(servers: &[SocketAddr]) -> Result<Self, NetError> {
        let server = |address: &SocketAddr| {
            let connections = [ConnectionConfig::udp(), ConnectionConfig::tcp()].map(|mut c| {
                c.port = address.port();
                c
            });
            NameServerConfig::new(address.ip(), true, connections.into())
        };
        let config = ResolverConfig::from_name_servers(servers.iter().map(server).collect());
        let servers = resolver(config, ResolverOpts::default())
            .map_err(|error| NetError::Dns(told("name servers", error)))?;
        Ok(Self { hosts: Arc::default(), servers: Some(servers) })
    }

    /// Every address of `name`, at least one. `is_relative` tries the system's search domains too.
    async fn lookup(&self, name: &str, is_relative: bool) -> Result<Vec<IpAddr>, NotFound> {
        let failed = |why: &dyn std::fmt::Display| {
            let why = why.to_string();
            NotFound { why, is_final: true }
        };
        let mut parsed = Name::from_ascii(name).map_err(|error| failed(&error))?;
        let listed = self.listed(&parsed);
        if !listed.is_empty() {
            return Ok(listed);
        }
        if name == "localhost" || name.ends_with(".localhost") {
            return Ok(vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()]);
        }
        let Some(servers) = &self.servers else {
            return Err(failed(&"not in the hosts file, and there are no name servers"));
        };
        parsed.set_fqdn(!is_relative);
        let lookup = servers.lookup_ip(parsed);
        match tokio::time::timeout(Duration::from_secs(LOOKUP_SECONDS), lookup).await {
            Err(_elapsed) => {
                let why = format!("no name server answered in {LOOKUP_SECONDS} s");
                Err(NotFound { why, is_final: false })
            }
            Ok(Err(error)) => {
                let is_final = error.is_no_records_found();
                Err(NotFound { why: innermost(&error), is_final })
            }
            Ok(Ok(found)) => {
                let addresses: Vec<IpAddr> = found.iter().collect();
                if addresses.is_empty() { Err(failed(&"has no address")) } else { Ok(addresses) }
            }
        }
    }

    /// What the hosts file says of `name`. One family there is the whole answer, as everywhere else on the system.
    fn listed(&self, name: &Name) -> Vec<IpAddr> {
        let mut addresses = Vec::new();
        for kind in [RecordType::A, RecordType::AAAA] {
            if let Some(found) = self.hosts.lookup_static_host(&Query::query(name.clone(), kind)) {
                addresses.extend(found.answers().iter().filter_map(|record| record.data.ip_addr()));
            }
        }
        addresses
    }
}

/// A resolver with our limits; the hosts file is asked by [`Names`].
fn resolver(
    config: ResolverConfig,
    mut options: ResolverOpts,
) -> Result<TokioResolver, hickory_resolver::net::NetError> {
    if config.name_servers().is_empty() {
        return Err(io::Error::other("none is configured").into());
    }
    // Two tries within the limit of a lookup.
    options.timeout = options.timeout.min(Duration::from_secs(LOOKUP_SECONDS) / 2);
    options.ip_strategy = LookupIpStrategy::Ipv4AndIpv6;
    options.use_hosts_file = ResolveHosts::Never;
    options.cache_size = CACHE_ANSWERS;
    options.negative_max_ttl = Some(Duration::from_secs(NEGATIVE_TTL_SECONDS));
    options.positive_max_ttl = Some(Duration::from_secs(POSITIVE_TTL_SECONDS));
    options.max_active_requests = LOOKUPS_MAX;
    let mut builder = TokioResolver::builder_with_config(config, TokioRuntimeProvider::default());
    *builder.options_mut() = options;
    builder.build()
}

/// Why a name has no address.
#[derive(Debug)]
struct NotFound {
    why: String,
    /// Asking again would not help: there is no such name, or nobody to ask.
    is_final: bool,
}

/// The resolver of one route: refuses a name unless every one of its addresses may be reached.
#[derive(Clone)]
pub struct GuardedNames {
    names: Names,
    guard: Guard,
    route: Route,
    /// Where the next answer starts, so that one dead address of several is not the first one for ever.
    turn: Arc<AtomicUsize>,
}

impl GuardedNames {
    /// A resolver for `route`.
    #[must_use]
    pub fn new(names: Names, guard: Guard, route: Route) -> Self {
        Self { names, guard, route, turn: Arc::default() }
    }

    /// Every address of `name`, if all may be reached.
    ///
    /// # Errors
    /// [`NetError::Dns`], [`NetError::Forbidden`].
    pub async fn addresses(&self, name: &str) -> Result<Vec<IpAddr>, NetError> {
        let is_relative = self.route == Route::Operator;
        let mut addresses = match self.names.lookup(name, is_relative).await {
            Ok(addresses) => addresses,
            // A name that only network.allow could let pass, and that has no address there, is not let pass.
            Err(NotFound { why, is_final: true }) if self.route == Route::Allowed => {
                let why = format!("no address of it is in network.allow: {why}");
                return Err(NetError::forbidden(name, why));
            }
            Err(not) if !has_descriptor() => {
                return Err(NetError::NoDescriptor(told(name, not.why)));
            }
            Err(not) => return Err(NetError::Dns(told(name, not.why))),
        };
        if !self.guard.admits_all(&addresses, self.route) {
            let why = match self.route {
                Route::Public => "one of its addresses is not public",
                _ => "one of its addresses is not in network.allow",
            };
            return Err(NetError::forbidden(name, why));
        }
        let turn = self.turn.fetch_add(1, Ordering::Relaxed) % addresses.len();
        addresses.rotate_left(turn);
        addresses.truncate(ADDRESSES_MAX);
        Ok(addresses)
    }
}

impl Resolve for GuardedNames {
    fn resolve(&self, name: reqwest::dns::Name) -> Resolving {
        let this = self.clone();
        Box::pin(async move {
            Progress::resolving();
            let addresses = this.addresses(name.as_str()).await?;
            Progress::connecting();
            // Port 0 stands for the URL's own.
            let sockets = addresses.into_iter().map(|address| SocketAddr::new(address, 0));
            Ok(Box::new(sockets) as Addrs)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::settings::{Cidr, Network};

    /// No name servers, and this hosts file.
    fn names(hosts_file: &str) -> Names {
        let mut hosts = Hosts::default();
        hosts.read_hosts_conf(hosts_file.as_bytes()).unwrap();
        Names { hosts: Arc::new(hosts), servers: None }
    }

    fn guarded(hosts_file: &str, route: Route) -> GuardedNames {
        let allow = vec![Cidr::parse("127.0.0.0/8").unwrap(), Cidr::parse("::1/128").unwrap()];
        let guard = Guard::new(&Network { allow, ports: vec![443] });
        GuardedNames::new(names(hosts_file), guard, route)
    }

    fn ips(texts: &[&str]) -> Vec<IpAddr> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[tokio::test]
    async fn the_hosts_file_answers_first_and_localhost_always() {
        let names =
            names("8.8.8.8 a.example Two.example\n2606::1 two.example\n127.0.0.9 localhost\n");
        assert_eq!(names.lookup("a.example", false).await.unwrap(), ips(&["8.8.8.8"]));
        assert_eq!(names.lookup("two.example", false).await.unwrap(), ips(&["8.8.8.8", "2606::1"]));
        assert_eq!(names.lookup("localhost", true).await.unwrap(), ips(&["127.0.0.9"]));
        let loopback = ips(&["127.0.0.1", "::1"]);
        assert_eq!(names.lookup("pds.localhost", false).await.unwrap(), loopback);
        for name in ["b.example", "", "a..b", "127.0.0.1"] {
            let not = names.lookup(name, false).await.unwrap_err();
            assert!(not.is_final && !not.why.is_empty(), "{name}");
        }
    }

    #[tokio::test]
    async fn a_route_lets_through_only_what_its_rule_admits() {
        let hosts =
            "8.8.8.8 public mixed\n2606::1 public\n127.0.0.1 mixed loop\n10.0.0.1 private\n";
        for (route, name, passes) in [
            (Route::Public, "public", true),
            (Route::Public, "mixed", false),
            (Route::Public, "loop", true),
            (Route::Public, "private", false),
            (Route::Allowed, "public", false),
            (Route::Allowed, "mixed", false),
            (Route::Allowed, "loop", true),
            (Route::Allowed, "private", false),
            (Route::Operator, "private", true),
            (Route::Operator, "mixed", true),
        ] {
            match guarded(hosts, route).addresses(name).await {
                Ok(_) => assert!(passes, "{route:?} {name}"),
                Err(NetError::Forbidden(text)) => {
                    assert!(!passes && text.starts_with(name), "{route:?} {text}");
                }
                Err(error) => panic!("{error}"),
            }
        }
    }

    #[tokio::test]
    async fn a_name_without_an_address_is_refused_only_where_the_operators_leave_was_needed() {
        let nothing = |route| async move { guarded("", route).addresses("pds.local").await };
        assert!(matches!(nothing(Route::Allowed).await, Err(NetError::Forbidden(_))));
        assert!(matches!(nothing(Route::Public).await, Err(NetError::Dns(_))));
        assert!(matches!(nothing(Route::Operator).await, Err(NetError::Dns(_))));
    }

    #[tokio::test]
    async fn every_address_has_its_turn_and_all_are_checked_before_some_are_dropped() {
        let many: String = (1..=20).map(|n| format!("127.0.0.{n} many\n")).collect();
        let guarded_names = guarded(&many, Route::Allowed);
        let mut firsts = std::collections::HashSet::new();
        for _ in 0..20 {
            let addresses = guarded_names.addresses("many").await.unwrap();
            assert_eq!(addresses.len(), ADDRESSES_MAX);
            firsts.insert(addresses[0]);
        }
        assert_eq!(firsts.len(), 20);
        let last_is_private = guarded(&format!("{many}10.0.0.1 many\n"), Route::Allowed);
        assert!(last_is_private.addresses("many").await.is_err());
    }

    #[test]
    fn the_systems_view_can_be_made_outside_a_runtime() {
        let _names = Names::system();
        assert!(Names::of_servers(&[]).is_err());
    }
}
