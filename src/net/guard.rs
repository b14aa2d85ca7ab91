//! The guard: what a stranger's document or redirect may make skyfill connect to.
//!
//! ```text
//!  https, configured port, ordinary name or address   ─> Public    every answer public, or every answer in network.allow
//!  http, another port, or a local name                ─> Allowed   every answer in network.allow
//!  what the operator wrote as identity.plc_url        ─> Operator  any address
//! ```
//!
//! Names are checked here; the addresses behind them in the resolver that the socket uses (`net::dns`), by the same
//! [`Guard::admits_all`]. Addresses written in the URL never meet a resolver, so they are checked here. Public means global
//! unicast and nothing else. Everything that is not admitted is refused: there is no unknown.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use url::{Host, Url};

use crate::config::settings::{Cidr, Network};
use crate::domain::did::cleaned;
use crate::domain::verdict::{Cause, Failure, Reason};
use crate::net::error::NetError;

/// IPv4 networks that are not global unicast (IANA special-purpose registry; 192.88.99.0/24 is the retired 6to4 relay).
const RESERVED_V4: [(Ipv4Addr, u32); 15] = [
    (Ipv4Addr::new(0, 0, 0, 0), 8),
    (Ipv4Addr::new(10, 0, 0, 0), 8),
    (Ipv4Addr::new(100, 64, 0, 0), 10),
    (Ipv4Addr::new(127, 0, 0, 0), 8),
    (Ipv4Addr::new(169, 254, 0, 0), 16),
    (Ipv4Addr::new(172, 16, 0, 0), 12),
    (Ipv4Addr::new(192, 0, 0, 0), 24),
    (Ipv4Addr::new(192, 0, 2, 0), 24),
    (Ipv4Addr::new(192, 88, 99, 0), 24),
    (Ipv4Addr::new(192, 168, 0, 0), 16),
    (Ipv4Addr::new(198, 18, 0, 0), 15),
    (Ipv4Addr::new(198, 51, 100, 0), 24),
    (Ipv4Addr::new(203, 0, 113, 0), 24),
    (Ipv4Addr::new(224, 0, 0, 0), 4),
    (Ipv4Addr::new(240, 0, 0, 0), 4),
];

/// The only IPv6 network that is global unicast today.
const GLOBAL_V6: (Ipv6Addr, u32) = (Ipv6Addr::new(0x2000, 0, 0, 0, 0, 0, 0, 0), 3);

/// What of it is not: protocol assignments (Teredo, ORCHID, benchmarks), documentation (two nets), 6to4. The last carries
/// an IPv4 address inside, as Teredo does, so it could name a private one.
const RESERVED_V6: [(Ipv6Addr, u32); 4] = [
    (Ipv6Addr::new(0x2001, 0, 0, 0, 0, 0, 0, 0), 23),
    (Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0), 32),
    (Ipv6Addr::new(0x2002, 0, 0, 0, 0, 0, 0, 0), 16),
    (Ipv6Addr::new(0x3fff, 0, 0, 0, 0, 0, 0, 0), 20),
];

/// Top-level names that never lead to somebody else's host.
const LOCAL_NAMES: [&str; 3] = ["localhost", "local", "internal"];

/// Where an account's requests go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// The URL, normalised: an origin, or a document's address.
    pub url: Url,
    /// Host name in lower case, with `:port` unless it is the scheme's own: the name that pace is kept by.
    pub host: String,
}

/// Which addresses a request may reach.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Route {
    /// Public ones, or those of `network.allow`.
    Public,
    /// Those of `network.allow` only.
    Allowed,
    /// Any: the operator wrote the URL.
    Operator,
}

/// Decides what may be connected to; cheap to clone.
#[derive(Clone, Debug)]
pub struct Guard {
    allow: Arc<[Cidr]>,
    ports: Arc<[u16]>,
}

impl Guard {
    /// A guard with the operator's exceptions.
    #[must_use]
    pub fn new(network: &Network) -> Self {
        Self { allow: network.allow.as_slice().into(), ports: network.ports.as_slice().into() }
    }

    /// A `serviceEndpoint` of a DID document: an origin without path, query or user info.
    ///
    /// # Errors
    /// Terminal `identity_invalid` if it is no URL, terminal `endpoint_forbidden` if it may not be asked.
    pub fn endpoint(&self, text: &str) -> Result<Endpoint, Failure> {
        let url = Url::parse(text).map_err(|error| {
            let detail = cleaned(&format!("endpoint is no URL ({error}): {text}"));
            Failure::new(Cause::Terminal(Reason::IdentityInvalid), None, detail)
        })?;
        self.check(&url)?;
        if text.contains('@') {
            return Err(refusal(&url, "has user info").failure());
        }
        if !matches!(url.path(), "" | "/") || url.query().is_some() || url.fragment().is_some() {
            return Err(refusal(&url, "has a path").failure());
        }
        Ok(Endpoint { host: host_name(&url), url })
    }

    /// The address of the document of `did:web:IDENTIFIER`: https, and the DID carries a port for localhost only. Plain http
    /// there, as in the reference implementation, because nobody has a certificate for localhost.
    ///
    /// # Errors
    /// As [`Guard::endpoint`].
    pub fn web_document(&self, did_web_identifier: &str) -> Result<Endpoint, Failure> {
        let identifier = did_web_identifier.to_ascii_lowercase();
        let (host, port) = identifier.split_once("%3a").unzip();
        let host = host.unwrap_or(&identifier);
        let scheme = if host == "localhost" { "http" } else { "https" };
        let port = port.map(|port| format!(":{port}")).unwrap_or_default();
        let origin = self.endpoint(&format!("{scheme}://{host}{port}/"))?;
        let mut url = origin.url;
        url.set_path("/.well-known/did.json");
        Ok(Endpoint { url, host: origin.host })
    }

    /// Any URL that a stranger gave and that is about to be requested, each redirect too.
    ///
    /// # Errors
    /// Terminal `endpoint_forbidden`.
    pub fn check(&self, url: &Url) -> Result<Route, Failure> {
        self.route(url).map_err(|error| error.failure())
    }

    /// [`Guard::check`] for callers inside `net`.
    ///
    /// # Errors
    /// [`NetError::Forbidden`].
    pub fn route(&self, url: &Url) -> Result<Route, NetError> {
        let is_secure = match url.scheme() {
            "https" => true,
            "http" => false,
            _ => return Err(refusal(url, "is neither https nor http")),
        };
        if !url.username().is_empty() || url.password().is_some() {
            return Err(refusal(url, "has user info"));
        }
        let is_public_port = url.port_or_known_default().is_some_and(|p| self.ports.contains(&p));
        let may_be_public = is_secure && is_public_port;
        match url.host() {
            None => Err(refusal(url, "has no host")),
            Some(Host::Ipv4(address)) => {
                self.literal_route(url, IpAddr::V4(address), may_be_public)
            }
            Some(Host::Ipv6(address)) => {
                self.literal_route(url, IpAddr::V6(address), may_be_public)
            }
            Some(Host::Domain(name)) if name.ends_with('.') => {
                Err(refusal(url, "ends in a dot, a second name for the same host"))
            }
            Some(Host::Domain(name)) if may_be_public && !is_local(name) => Ok(Route::Public),
            Some(Host::Domain(_)) if !self.allow.is_empty() => Ok(Route::Allowed),
            Some(Host::Domain(name)) if is_local(name) => Err(refusal(url, "is a local name")),
            Some(Host::Domain(_)) if !is_secure => Err(refusal(url, "is not https")),
            Some(Host::Domain(_)) => Err(refusal(url, "has a port that is not in network.ports")),
        }
    }

    fn literal_route(
        &self,
        url: &Url,
        address: IpAddr,
        may_be_public: bool,
    ) -> Result<Route, NetError> {
        if may_be_public && self.admits(address, Route::Public) {
            Ok(Route::Public)
        } else if self.is_allowed(address) {
            Ok(Route::Allowed)
        } else if is_public(address) {
            Err(refusal(url, "is not https on a port of network.ports"))
        } else {
            Err(refusal(url, "is no public address"))
        }
    }

    /// Whether a request on `route` may reach `address`.
    #[must_use]
    pub fn admits(&self, address: IpAddr, route: Route) -> bool {
        self.admits_all(&[address], route)
    }

    /// Whether a request on `route` may reach a name with these addresses: one that may not be reached refuses them all,
    /// because the socket may take any, and public and private ones together are somebody's trick.
    #[must_use]
    pub fn admits_all(&self, addresses: &[IpAddr], route: Route) -> bool {
        let all_allowed = addresses.iter().all(|address| self.is_allowed(*address));
        let admitted = match route {
            Route::Public => addresses.iter().all(|a| is_public(*a)) || all_allowed,
            Route::Allowed => all_allowed,
            Route::Operator => true,
        };
        admitted && !addresses.is_empty()
    }

    /// Whether `network.allow` names `address`.
    #[must_use]
    pub fn is_allowed(&self, address: IpAddr) -> bool {
        self.allow.iter().any(|network| network.contains(address))
    }
}

/// Host name in lower case, with `:port` unless it is the scheme's own.
#[must_use]
pub fn host_name(url: &Url) -> String {
    let host = url.host_str().unwrap_or_default().to_ascii_lowercase();
    match url.port() {
        Some(port) => format!("{host}:{port}"),
        None => host,
    }
}

/// Whether `address` is global unicast. An IPv4 address written as IPv6 is the IPv4 address.
#[must_use]
pub fn is_public(address: IpAddr) -> bool {
    match address.to_canonical() {
        IpAddr::V4(address) => !RESERVED_V4.iter().any(|(network, bits)| {
            (network.to_bits() ^ address.to_bits()).leading_zeros() >= *bits
        }),
        IpAddr::V6(address) => {
            let is_in = |(network, bits): &(Ipv6Addr, u32)| {
                (network.to_bits() ^ address.to_bits()).leading_zeros() >= *bits
            };
            is_in(&GLOBAL_V6) && !RESERVED_V6.iter().any(is_in)
        }
    }
}

/// A name under a top-level name that is local by definition.
fn is_local(name: &str) -> bool {
    name.rsplit('.').next().is_some_and(|top| LOCAL_NAMES.contains(&top))
}

/// Says what was asked and why not. The user info of a URL is not repeated.
fn refusal(url: &Url, why: &str) -> NetError {
    NetError::forbidden(&format!("{}://{}", url.scheme(), host_name(url)), why)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn guard(allow: &[&str]) -> Guard {
        let allow = allow.iter().map(|text| Cidr::parse(text).unwrap()).collect();
        Guard::new(&Network { allow, ports: vec![443] })
    }

    fn reason(result: Result<Endpoint, Failure>) -> Reason {
        match result.expect_err("it was admitted").cause {
            Cause::Terminal(reason) => reason,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_refusal_says_what_is_wrong_with_the_url() {
        for (url, why) in [
            ("ftp://example.com", "is neither https nor http"),
            ("https://example.com.", "ends in a dot"),
            ("https://pds.localhost", "is a local name"),
            ("http://pds.internal:8080", "is a local name"),
            ("http://example.com", "is not https"),
            ("http://example.com:443", "is not https"),
            ("https://example.com:8443", "has a port that is not in network.ports"),
            ("http://8.8.8.8", "is not https on a port of network.ports"),
            ("https://10.0.0.1", "is no public address"),
        ] {
            let refused = guard(&[]).endpoint(url).expect_err(url);
            assert!(refused.detail.contains(why), "{url}: {}", refused.detail);
            assert_eq!(refused.cause, Cause::Terminal(Reason::EndpointForbidden), "{url}");
        }
    }

    /// First and last address of each network that is not public, written down again: what the guard's own table says is no
    /// evidence for it.
    const EDGES_V4: [[&str; 2]; 15] = [
        ["0.0.0.0", "0.255.255.255"],
        ["10.0.0.0", "10.255.255.255"],
        ["100.64.0.0", "100.127.255.255"],
        ["127.0.0.0", "127.255.255.255"],
        ["169.254.0.0", "169.254.255.255"],
        ["172.16.0.0", "172.31.255.255"],
        ["192.0.0.0", "192.0.0.255"],
        ["192.0.2.0", "192.0.2.255"],
        ["192.88.99.0", "192.88.99.255"],
        ["192.168.0.0", "192.168.255.255"],
        ["198.18.0.0", "198.19.255.255"],
        ["198.51.100.0", "198.51.100.255"],
        ["203.0.113.0", "203.0.113.255"],
        ["224.0.0.0", "239.255.255.255"],
        ["240.0.0.0", "255.255.255.255"],
    ];

    fn reserved() -> Vec<IpAddr> {
        EDGES_V4.iter().flatten().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn reserved_addresses_are_refused_at_both_edges_in_every_family() {
        let strict = guard(&[]);
        let mut vectors = reserved();
        for address in reserved() {
            let IpAddr::V4(v4) = address else { panic!("{address}") };
            let [a, b, c, d] = v4.octets().map(u16::from);
            let (high, low) = (a << 8 | b, c << 8 | d);
            // Mapped, compatible, NAT64 (two prefixes), 6to4.
            vectors.push(IpAddr::V6(v4.to_ipv6_mapped()));
            vectors.push(IpAddr::V6(Ipv6Addr::new(0, 0, 0, 0, 0, 0, high, low)));
            vectors.push(IpAddr::V6(Ipv6Addr::new(0x64, 0xff9b, 0, 0, 0, 0, high, low)));
            vectors.push(IpAddr::V6(Ipv6Addr::new(0x64, 0xff9b, 1, 0, 0, 0, high, low)));
            vectors.push(IpAddr::V6(Ipv6Addr::new(0x2002, high, low, 0, 0, 0, 0, 1)));
        }
        for text in [
            "::",
            "::1",
            "::ffff:0:1.2.3.4",
            "64:ff9b::808:808",
            "64:ff9b:1::1",
            "100::1",
            "100:0:0:1::1",
            "2001::1",
            "2001:1ff:ffff:ffff:ffff:ffff:ffff:ffff",
            "2001:10::1",
            "2001:20::1",
            "2001:2::1",
            "2001:db8::1",
            "2001:db8:ffff:ffff:ffff:ffff:ffff:ffff",
            "2002::1",
            "2002:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
            "3fff::1",
            "3fff:fff:ffff:ffff:ffff:ffff:ffff:ffff",
            "1fff:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
            "4000::1",
            "5f00::1",
            "fc00::1",
            "fdff:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
            "fe80::1",
            "febf::1",
            "fec0::1",
            "ff02::1",
            "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
        ] {
            vectors.push(text.parse().unwrap());
        }
        assert!(vectors.len() >= 200, "{} vectors", vectors.len());
        for address in vectors {
            assert!(!is_public(address), "{address}");
            assert!(!strict.admits(address, Route::Public), "{address}");
            assert!(!strict.admits(address, Route::Allowed), "{address}");
            let host = match address {
                IpAddr::V4(address) => address.to_string(),
                IpAddr::V6(address) => format!("[{address}]"),
            };
            let endpoint = strict.endpoint(&format!("https://{host}"));
            assert_eq!(reason(endpoint), Reason::EndpointForbidden, "{address}");
        }
    }

    #[test]
    fn the_neighbours_of_reserved_networks_are_public() {
        let mut controls: Vec<IpAddr> = Vec::new();
        for edges in EDGES_V4 {
            let [first, last] = edges.map(|text| text.parse::<Ipv4Addr>().unwrap().to_bits());
            for neighbour in [first.wrapping_sub(1), last.wrapping_add(1)] {
                let neighbour = Ipv4Addr::from_bits(neighbour);
                // 239.255.255.255 and 240.0.0.0, 0.0.0.0 and 255.255.255.255 are neighbours of one another.
                if neighbour.octets()[0] < 224 && neighbour.octets()[0] > 0 {
                    controls.push(neighbour.into());
                }
            }
        }
        assert!(controls.len() >= 26, "{}", controls.len());
        for text in [
            "1.1.1.1",
            "8.8.8.8",
            "::ffff:8.8.8.8",
            "2000::1",
            "2001:200::1",
            "2001:db7:ffff::1",
            "2001:db9::1",
            "2003::1",
            "2606:4700::1111",
            "3ffe::1",
            "3fff:1000::1",
        ] {
            controls.push(text.parse().unwrap());
        }
        for address in controls {
            assert!(is_public(address), "{address}");
        }
    }

    #[test]
    fn spellings_do_not_get_past_the_guard() {
        let strict = guard(&[]);
        let forbidden = [
            "https://127.0.0.1",
            "https://127.1",
            "https://127.0.1",
            "https://2130706433",
            "https://017700000001",
            "https://0177.0.0.1",
            "https://0x7f.1",
            "https://0x7f000001",
            "https://0X7F.0x0.0.0x1",
            "https://127.0.0.1.",
            "https://%31%32%37.0.0.1",
            "https://127\u{3002}0\u{3002}0\u{3002}1",
            "https://\u{ff11}\u{ff12}\u{ff17}.0.0.1",
            "https://127.0.0.1:443",
            "https:\\\\127.0.0.1",
            "https:/127.0.0.1",
            " https://127.0.0.1 ",
            "https://127.0.\t0.1",
            "https://[::1]",
            "https://[::ffff:127.0.0.1]",
            "https://[0:0:0:0:0:ffff:7f00:1]",
            "HTTPS://LOCALHOST",
            "https://localhost",
            "https://localhost.",
            "https://LocalHost",
            "https://a.localhost",
            "https://printer.local",
            "https://printer.LOCAL.",
            "https://metadata.google.internal",
            "https://internal",
            "https://example.com.",
            "https://user@example.com",
            "https://user:password@example.com",
            "https://:password@example.com",
            "https://@example.com",
            "https://example.com:80",
            "https://example.com:8443",
            "https://example.com:0",
            "https://8.8.8.8:22",
            "http://example.com",
            "http://example.com:443",
            "http://8.8.8.8",
            "ftp://example.com",
            "file:///etc/passwd",
            "data:text/plain,x",
            "javascript:alert(1)",
            "wss://example.com",
            "did:web:example.com",
            "https://example.com/path",
            "https://example.com//",
            "https://example.com?query",
            "https://example.com/#fragment",
        ];
        for text in forbidden {
            assert_eq!(reason(strict.endpoint(text)), Reason::EndpointForbidden, "{text}");
        }
        // As a redirect may say it, where no text is looked at.
        for text in
            ["https://user@example.com/a", "https://:p@example.com/", "https://u:p@8.8.8.8/"]
        {
            assert!(strict.check(&Url::parse(text).unwrap()).is_err(), "{text}");
        }
        let no_url = [
            "",
            " ",
            "example.com",
            "//example.com",
            "https://",
            "https://[fe80::1%25eth0]",
            "https://[fe80::1%eth0]",
            "https://[::1",
            "https://256.256.256.256",
            "https://1.2.3.4.5",
            "https://example.com:99999",
            "https://exa mple.com",
            "https://a\u{0}b.com",
        ];
        for text in no_url {
            assert_eq!(reason(strict.endpoint(text)), Reason::IdentityInvalid, "{text}");
        }
    }

    #[test]
    fn ordinary_endpoints_pass_and_have_one_name() {
        let strict = guard(&[]);
        for (text, host, url) in [
            ("https://example.com", "example.com", "https://example.com/"),
            ("https://Example.COM/", "example.com", "https://example.com/"),
            ("HTTPS://example.com:443/", "example.com", "https://example.com/"),
            ("https://\u{fc}ber.example", "xn--ber-goa.example", "https://xn--ber-goa.example/"),
            ("https://8.8.8.8", "8.8.8.8", "https://8.8.8.8/"),
            ("https://[2606:4700::1111]", "[2606:4700::1111]", "https://[2606:4700::1111]/"),
            ("https://localhost.example.com", "localhost.example.com", ""),
            ("https://mylocal.example", "mylocal.example", ""),
        ] {
            let endpoint = strict.endpoint(text).unwrap();
            assert_eq!(endpoint.host, host);
            assert!(url.is_empty() || endpoint.url.as_str() == url, "{}", endpoint.url);
            assert_eq!(strict.check(&endpoint.url).unwrap(), Route::Public);
        }
    }

    #[test]
    fn what_the_operator_allows_may_be_reached_on_any_port_and_over_http() {
        let open = guard(&["127.0.0.0/8", "::1/128"]);
        for (text, host) in [
            ("http://127.0.0.1:2583", "127.0.0.1:2583"),
            ("http://[::1]:2583", "[::1]:2583"),
            ("http://localhost:2583/", "localhost:2583"),
            ("https://localhost", "localhost"),
            ("http://pds.internal:80", "pds.internal"),
        ] {
            let endpoint = open.endpoint(text).unwrap();
            assert_eq!(endpoint.host, host);
            assert_eq!(open.check(&endpoint.url).unwrap(), Route::Allowed, "{text}");
        }
        assert_eq!(
            open.check(&Url::parse("https://127.0.0.1").unwrap()).unwrap(),
            Route::Public,
            "an allowed address on an ordinary port"
        );
        assert_eq!(reason(open.endpoint("http://10.0.0.1")), Reason::EndpointForbidden);
        assert_eq!(reason(open.endpoint("http://8.8.8.8")), Reason::EndpointForbidden);
        assert_eq!(reason(open.endpoint("https://a@localhost")), Reason::EndpointForbidden);
        assert_eq!(reason(open.endpoint("ftp://127.0.0.1")), Reason::EndpointForbidden);
    }

    #[test]
    fn one_answer_that_may_not_be_reached_refuses_all() {
        let ips = |texts: &[&str]| -> Vec<IpAddr> {
            texts.iter().map(|text| text.parse().unwrap()).collect()
        };
        let open = guard(&["127.0.0.0/8", "::1/128"]);
        for (addresses, public, allowed) in [
            (&["8.8.8.8", "2606:4700::1111"][..], true, false),
            (&["8.8.8.8", "127.0.0.1"], false, false),
            (&["127.0.0.1", "::1"], true, true),
            (&["127.0.0.1", "10.0.0.1"], false, false),
            (&["10.0.0.1"], false, false),
            (&[], false, false),
        ] {
            let addresses = ips(addresses);
            assert_eq!(open.admits_all(&addresses, Route::Public), public, "{addresses:?}");
            assert_eq!(open.admits_all(&addresses, Route::Allowed), allowed, "{addresses:?}");
            assert_eq!(open.admits_all(&addresses, Route::Operator), !addresses.is_empty());
        }
    }

    #[test]
    fn documents_of_did_web_have_one_address() {
        let strict = guard(&[]);
        let document = strict.web_document("example.com").unwrap();
        assert_eq!(document.url.as_str(), "https://example.com/.well-known/did.json");
        assert_eq!(document.host, "example.com");
        assert_eq!(reason(strict.web_document("localhost%3A2583")), Reason::EndpointForbidden);
        let open = guard(&["127.0.0.0/8", "::1/128"]);
        for identifier in ["localhost%3A2583", "localhost%3a2583"] {
            let document = open.web_document(identifier).unwrap();
            assert_eq!(document.url.as_str(), "http://localhost:2583/.well-known/did.json");
            assert_eq!(document.host, "localhost:2583");
        }
        for identifier in ["127.0.0.1", "a.internal", "user@example.com", "example.com/path", ""] {
            assert!(strict.web_document(identifier).is_err(), "{identifier}");
        }
    }

    #[test]
    fn refusals_are_short_and_hold_no_control_characters() {
        let strict = guard(&[]);
        let long = format!("https://{}.internal", "a".repeat(5_000));
        for text in [long.as_str(), "\u{1b}[31m:x", "https://\u{202e}a.internal", "x\r\ny"] {
            let detail = strict.endpoint(text).expect_err("it was admitted").detail;
            assert!(detail.chars().count() <= 200 && !detail.chars().any(char::is_control));
        }
    }
}
