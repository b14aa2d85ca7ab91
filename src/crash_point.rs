//! Named crash points at durability boundaries.
//!
//! `crash_point!(Name)` stands where a crash leaves the disk in a state of its own; the comment at the place says what
//! recovery must do. In debug builds `SKYFILL_CRASH_AT=Name:N` aborts the process at the Nth passage (from 1); release
//! builds contain none of it.

/// Passes the named point; aborts the process if the environment asks for it (debug builds only).
#[macro_export]
macro_rules! crash_point {
    ($name:ident) => {
        #[cfg(debug_assertions)]
        $crate::crash_point::pass(stringify!($name));
    };
}

/// Counts a passage of `name` and aborts if it is the one asked for.
#[cfg(debug_assertions)]
pub fn pass(name: &'static str) {
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicU64, Ordering};
    static WANTED: OnceLock<Option<(String, u64)>> = OnceLock::new();
    static PASSED: AtomicU64 = AtomicU64::new(0);
    let wanted = WANTED.get_or_init(|| {
        let text = std::env::var("SKYFILL_CRASH_AT").ok()?;
        let (point, passage) = text.split_once(':').unwrap_or((&text, "1"));
        Some((point.to_owned(), passage.parse().ok()?))
    });
    let Some((point, passage)) = wanted else { return };
    if point == name && PASSED.fetch_add(1, Ordering::AcqRel) + 1 == *passage {
        std::process::abort();
    }
}
