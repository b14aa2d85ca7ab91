//! Configuration: the file as written, the settings that it means, and the DID lists.

pub mod assign;
pub mod broker;
pub mod changes;
pub mod file;
pub mod group;
pub mod keys;
pub mod list_format;
pub mod list_lines;
pub mod list_queue;
pub mod nearest;
pub mod problem;
pub mod read;
pub mod settings;
pub mod sinks;
pub mod targets;
pub mod units;
pub mod written;
