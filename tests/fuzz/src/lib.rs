//! One run of a target with its promises on memory; time and the process's whole memory are libFuzzer's to watch.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

#[path = "../../support/forge.rs"]
#[allow(dead_code)]
pub mod forge;
pub mod seeds;
#[path = "../targets/mod.rs"]
pub mod targets;

use targets::Target;

/// Counts what is allocated at once.
struct Counting;

static NOW: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);
static IS_METERED: AtomicBool = AtomicBool::new(true);

#[global_allocator]
static ALLOCATOR: Counting = Counting;

// SAFETY: the system's allocator does the work; what is counted never decides anything here.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let now = NOW.fetch_add(layout.size(), Ordering::Relaxed) + layout.size();
        if IS_METERED.load(Ordering::Relaxed) {
            PEAK.fetch_max(now, Ordering::Relaxed);
        }
        // SAFETY: the caller's own promises.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        NOW.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller's own promises.
        unsafe { System.dealloc(pointer, layout) }
    }
}

/// What another library does is not ours to answer for: serde_ipld_dagcbor allocates what an array claims to hold, up to 1 MiB
/// a level.
pub fn unmetered<T>(run: impl FnOnce() -> T) -> T {
    IS_METERED.store(false, Ordering::Relaxed);
    let result = run();
    IS_METERED.store(true, Ordering::Relaxed);
    result
}

/// Runs `target` on `data`; panics when a promise is broken.
pub fn run(target: &Target, data: &[u8]) -> bool {
    let data = &data[..data.len().min(target.bytes_max)];
    let before = NOW.load(Ordering::Relaxed);
    PEAK.store(before, Ordering::Relaxed);
    let accepted = (target.run)(data);
    let peak = PEAK.load(Ordering::Relaxed).saturating_sub(before);
    let (fixed, per_byte) = target.memory;
    let most = fixed + per_byte * data.len();
    assert!(peak <= most, "{}: {peak} bytes at once for {}, above {most}", target.name, data.len());
    accepted
}
