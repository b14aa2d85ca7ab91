//! The door to the network. Nothing else in skyfill opens a socket to a host.
//!
//! ```text
//!  URL ─> guard (scheme, user info, port, name, literal address) ─> route
//!           route ─> its own reqwest client ─> its own resolver (every address checked) ─> connect (a limit a step)
//!                                                   └─> response (idle, rate, total, gzip) ─> body (byte cap)
//! ```
//!
//! Invariants: a socket is opened only to an address that the guard admitted in the very lookup that the socket uses; every
//! redirect is a new URL to the guard; proxies of the environment, cookies and referers do not exist; every wait has a limit.

pub mod address_pace;
pub mod answer;
pub mod body;
pub mod client;
pub mod connect;
pub mod dns;
pub mod drips;
pub mod encoding;
pub mod error;
pub mod export_pages;
pub mod guard;
pub mod pace;
pub mod patience;
pub mod response;
pub mod territory;
