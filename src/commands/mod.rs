//! Commands: arguments to actions to exit codes.

pub mod backfill;
pub mod check;
pub mod determine;
pub mod dry_run;
pub mod error;
pub mod experiment;
pub mod forget;
pub mod identities;
pub mod live;
pub mod opening;
pub mod output;
pub mod provenance;
pub mod queue;
pub mod recheck;
pub mod recorded;
pub mod retry;
pub mod run;
pub mod runs;
pub mod status;
pub mod summary;
pub mod users;
pub mod verify;
pub mod verify_car;
pub mod watched;
pub mod withdrawn;
