//! What tests and the demo share: a generated network with an oracle, none of it made with skyfill's own code.
#![allow(
    dead_code,
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::cast_possible_truncation,
    clippy::print_stdout,
    clippy::print_stderr
)]

pub mod forge;
