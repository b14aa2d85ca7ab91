//! The stages: scheduler -> resolver -> back to the ledger; scheduler -> fetcher -> parser -> exporter. One file a stage, none
//! imports another; `messages` is what they say to each other.

pub mod exporter;
pub mod fetcher;
pub mod messages;
pub mod parser;
pub mod resolver;
pub mod scheduler;
