//! What tests and the demo share: a generated network with an oracle, none of it made with skyfill's own code.
//!
//! ```text
//!  value, time, records   what can be written into a repository, and what it means
//!  world                  accounts and records from one seed          forge   their trees, commits and CARs
//!  oracle                 the rows and counts that they must become   judge   the queues against the oracle
//!  network                running servers: plc, pds (on server), with faults by script
//!  proc                   the real binary as a child process        job     network, list, command and verdict in one
//!  transcript             what is typed and answered, written down and played again
//!  kafka                  a real broker with its own tools, to be killed and started again
//!  root, package          a root of its own, for the Debian package and for sandboxes
//! ```
//! The servers and the processes live in real time, so this may read the clock that the program itself may not.
#![allow(
    dead_code,
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::cast_possible_truncation,
    clippy::disallowed_methods,
    clippy::print_stdout,
    clippy::print_stderr
)]

pub mod faults;
pub mod forge;
pub mod job;
pub mod judge;
pub mod kafka;
pub mod network;
pub mod oracle;
pub mod package;
pub mod pds;
pub mod plc;
pub mod proc;
pub mod records;
pub mod root;
pub mod server;
pub mod time;
pub mod transcript;
pub mod value;
pub mod world;

#[allow(unused_imports, reason = "not every test has a network")]
pub use network::{Network, demo_network};
