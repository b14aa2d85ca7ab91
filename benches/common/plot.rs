//! Line plots as SVG, written into the build folder; `commands::experiment::plot` draws them.
#![allow(dead_code, reason = "not every bench uses all of it")]

use std::path::{Path, PathBuf};

pub use skyfill::commands::experiment::plot::{Axes, Line};

/// Writes `name` into the build folder; y begins at 0.
pub fn write(name: &str, axes: &Axes<'_>, lines: &[Line]) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().unwrap();
    let file = folder.join(name);
    std::fs::write(&file, skyfill::commands::experiment::plot::svg(axes, lines)).unwrap();
    file
}
