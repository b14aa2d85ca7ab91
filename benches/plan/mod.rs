//! More accounts than this machine could hold, in virtual time and with the scheduler as it is: `network` is what is there,
//! `worker` one worker, `books` its ledger, `fleet` many of them. `benches/plan.rs` makes the table, `tests/schedule` checks it.

pub mod books;
pub mod fleet;
pub mod network;
pub mod worker;
