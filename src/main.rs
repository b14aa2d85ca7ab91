//! The `skyfill` binary.

fn main() {}
