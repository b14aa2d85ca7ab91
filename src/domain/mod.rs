//! Pure decisions about DIDs, accounts and failures: no runtime, no disk, no network.

pub mod account;
pub mod did;
pub mod filter;
pub mod identity;
pub mod input_window;
pub mod ledger;
pub mod ledger_event;
#[cfg(test)]
mod ledger_model;
pub mod ledger_policy;
mod ledger_refresh;
mod ledger_told;
pub mod nsid;
pub mod partition;
pub mod rkey;
pub mod tid;
pub mod verdict;
pub mod window;
