//! A thin layer on ractor: bounded mailboxes, tickets, one-DID workers, supervision.

pub mod backlog;
pub mod hold;
pub mod mailbox;
pub mod pulse;
pub mod supervisor;
pub mod threads;
pub mod ticket;
pub mod worker;
