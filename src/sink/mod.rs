//! Where rows end up: each sink follows the journal with a position of its own.

pub mod pending;
pub mod sqlite;
pub mod sqlite_check;
mod sqlite_file;
pub mod sqlite_items;
