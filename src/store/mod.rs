//! The door to the disk: data directory, budgets, spools, journal and the thread that applies it.

pub mod apply;
pub mod author_counts;
pub mod budget;
pub mod data_dir;
pub mod decisions;
#[cfg(test)]
#[path = "../../tests/power/disk.rs"]
#[allow(dead_code, clippy::expect_used, clippy::disallowed_methods)]
mod disk_model;
#[cfg(test)]
mod door;
pub mod durable;
pub mod error;
pub mod follow;
mod follow_names;
pub mod followers;
pub mod health;
#[cfg(test)]
mod heard;
pub mod items;
pub mod journal;
mod journal_error;
#[cfg(test)]
mod journal_power;
mod journal_wipe;
pub mod key_file;
pub mod leaves;
pub mod ledger;
pub mod ledger_done;
pub mod ledger_export;
pub mod ledger_forget;
pub mod ledger_inputs;
pub mod ledger_known;
pub mod ledger_listing;
pub mod ledger_lists;
mod ledger_moves;
pub mod ledger_refresh;
pub mod ledger_rows;
pub mod ledger_runs;
pub mod ledger_schema;
pub mod ledger_standing;
pub mod ledger_sums;
pub mod ledger_work;
pub mod listing;
pub mod parkings;
pub mod segment;
pub mod sorted_list;
mod spares;
pub mod spool;
mod tally;
