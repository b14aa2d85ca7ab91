//! libFuzzer around the target that `SKYFILL_FUZZ_TARGET` names; with `SKYFILL_FUZZ_SEEDS` it writes all seeds into that
//! directory and is done.
#![no_main]

use std::sync::OnceLock;

use libfuzzer_sys::fuzz_target;
use skyfill_fuzz::targets::{Target, named};

fn target() -> &'static Target {
    static TARGET: OnceLock<&Target> = OnceLock::new();
    TARGET.get_or_init(|| {
        let name = std::env::var("SKYFILL_FUZZ_TARGET").unwrap_or_default();
        let target =
            named(&name).unwrap_or_else(|| panic!("SKYFILL_FUZZ_TARGET={name}: no target"));
        // What is made once for all runs is not charged to the first of them.
        (target.run)(&[]);
        target
    })
}

fn init() {
    if let Some(directory) = std::env::var_os("SKYFILL_FUZZ_SEEDS") {
        skyfill_fuzz::seeds::write(directory.as_ref());
        std::process::exit(0);
    }
    target();
}

fuzz_target!(init: init(), |data: &[u8]| {
    skyfill_fuzz::run(target(), data);
});
