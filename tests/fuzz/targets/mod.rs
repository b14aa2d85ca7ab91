//! The bodies of the fuzz targets: what must hold for every input, whatever bytes strangers send.
//!
//! Shared by `tests/fuzz` (mutation guided by coverage) and `tests/corpus.rs` (the kept inputs, in the ordinary suite). A body
//! panics when a promise is broken; it gives whether skyfill accepted the input, so that a corpus in which nothing is ever
//! accepted, or nothing refused, is seen to be worthless.

mod identity;
mod inputs;
mod names;
mod repo;
mod tree;

#[allow(unused_imports, reason = "who makes seeds needs them")]
pub use tree::{CID_HEAD, PLACEHOLDER};

/// One target.
pub struct Target {
    pub name: &'static str,
    /// Longest input in bytes.
    pub bytes_max: usize,
    /// What one run may allocate at once: so many bytes, and so many more for each byte of input.
    #[allow(dead_code, reason = "counted under the fuzzer only: an allocator is unsafe code")]
    pub memory: (usize, usize),
    pub run: fn(&[u8]) -> bool,
}

/// Every target, by name.
pub const TARGETS: [Target; 13] = [
    Target { name: "varint", bytes_max: 64, memory: (4 << 10, 8), run: repo::varint },
    Target { name: "cid", bytes_max: 256, memory: (16 << 10, 16), run: repo::cid },
    Target { name: "cbor", bytes_max: 4096, memory: (64 << 10, 1024), run: repo::cbor },
    Target { name: "car", bytes_max: 8192, memory: (5 << 20, 256), run: repo::car },
    // Two walks of 2 MiB of pages on disk; the other reader's maps; a node's keys may be 17 times its bytes.
    Target { name: "mst", bytes_max: 16 << 10, memory: (8 << 20, 1024), run: tree::mst },
    Target { name: "commit", bytes_max: 2048, memory: (256 << 10, 1024), run: tree::commit },
    Target { name: "did", bytes_max: 3000, memory: (16 << 10, 64), run: names::did },
    Target { name: "names", bytes_max: 2048, memory: (16 << 10, 64), run: names::nsid_and_rkey },
    Target { name: "document", bytes_max: 8192, memory: (64 << 10, 256), run: identity::document },
    Target { name: "config", bytes_max: 8192, memory: (1 << 20, 1024), run: inputs::config },
    Target { name: "list", bytes_max: 8192, memory: (256 << 10, 512), run: inputs::list },
    Target { name: "queue", bytes_max: 16 << 10, memory: (256 << 10, 512), run: inputs::queue },
    Target { name: "guard", bytes_max: 2048, memory: (64 << 10, 256), run: identity::guard },
];

/// The target of that name.
pub fn named(name: &str) -> Option<&'static Target> {
    TARGETS.iter().find(|target| target.name == name)
}
