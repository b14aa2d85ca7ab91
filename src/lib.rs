//! skyfill backfills Bluesky (AT Protocol) accounts: it finds each account's server, downloads its repository, proves that
//! it is complete and authentic, and puts its records, by type, into queues. `README.md` maps the source tree.

#![cfg_attr(test, allow(clippy::cast_possible_truncation))]

pub mod actor;
pub mod cli;
pub mod clock;
pub mod commands;
pub mod config;
pub mod crash_point;
pub mod domain;
pub mod exit_code;
pub mod identity;
pub mod limits;
pub mod net;
pub mod ops;
pub mod pipeline;
pub mod reload;
pub mod repo;
pub mod seed;
pub mod sink;
pub mod stages;
pub mod store;
pub mod telemetry;
pub mod transform;
