//! Named crash points at durability boundaries.
//!
//! `crash_point!(Name)` stands where a crash leaves the disk in a state of its own; the comment at the place says what
//! recovery must do. In debug builds `SKYFILL_CRASH_AT=Name:N` aborts the process at the Nth passage (from 1),
//! `SKYFILL_HANG_AT=Name:N` makes the thread that passes there stand still for ever, and `SKYFILL_PANIC_AT=Name:N` makes it
//! panic, as a bug would; release builds contain none of it.

/// Passes the named point; aborts the process, hangs or panics there if the environment asks for it (debug builds only).
#[macro_export]
#[doc(hidden)]
macro_rules! crash_point {
    ($name:ident) => {
        #[cfg(debug_assertions)]
        $crate::crash_point::pass(stringify!($name));
    };
}

/// Counts a passage of `name`; aborts, hangs or panics if it is the one asked for.
///
/// # Panics
/// If `SKYFILL_PANIC_AT` asks for it.
#[cfg(debug_assertions)]
pub fn pass(name: &'static str) {
    static CRASH: Trap = Trap::new("SKYFILL_CRASH_AT");
    static HANG: Trap = Trap::new("SKYFILL_HANG_AT");
    static PANIC: Trap = Trap::new("SKYFILL_PANIC_AT");
    if CRASH.is_sprung_by(name) {
        std::process::abort();
    }
    if HANG.is_sprung_by(name) {
        tracing::warn!(point = name, "hangs here, as SKYFILL_HANG_AT asks");
        loop {
            std::thread::park();
        }
    }
    assert!(!PANIC.is_sprung_by(name), "a bug at {name}, as SKYFILL_PANIC_AT asks");
}

/// A point and a passage of it that the environment asks for.
#[cfg(debug_assertions)]
struct Trap {
    variable: &'static str,
    wanted: std::sync::OnceLock<Option<(String, u64)>>,
    passed: std::sync::atomic::AtomicU64,
}

#[cfg(debug_assertions)]
impl Trap {
    const fn new(variable: &'static str) -> Self {
        let passed = std::sync::atomic::AtomicU64::new(0);
        Self { variable, wanted: std::sync::OnceLock::new(), passed }
    }

    /// Counts a passage of `name`, and says whether it is the one asked for.
    fn is_sprung_by(&self, name: &str) -> bool {
        let wanted = self.wanted.get_or_init(|| {
            let text = std::env::var(self.variable).ok()?;
            let (point, passage) = text.split_once(':').unwrap_or((&text, "1"));
            Some((point.to_owned(), passage.parse().ok()?))
        });
        let Some((point, passage)) = wanted else { return false };
        let passed = || self.passed.fetch_add(1, std::sync::atomic::Ordering::AcqRel) + 1;
        point == name && passed() == *passage
    }
}
