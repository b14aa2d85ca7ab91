//! A thin layer on ractor: bounded mailboxes, tickets, one-DID workers, supervision.

pub mod mailbox;
pub mod supervisor;
pub mod threads;
pub mod ticket;
pub mod worker;
