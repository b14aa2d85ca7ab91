//! The repository engine: pure functions from bytes to proven records (AT Protocol, "Repository").

pub mod cbor;
pub mod cid;
