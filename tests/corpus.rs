//! The kept inputs of the fuzz targets, one after another through the same bodies, in the ordinary suite.
//!
//! `tests/corpus/TARGET/` holds what mutation has found to reach different code, made small; an input that once broke a promise
//! is named for what it broke. `tests/fuzz/run` makes more.
#![allow(
    missing_docs,
    clippy::cast_possible_truncation,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::disallowed_methods
)]

mod support;
#[path = "fuzz/targets/mod.rs"]
mod targets;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use support::forge;
use targets::TARGETS;

/// Memory is counted by `tests/fuzz` only; there this leaves other libraries out.
fn unmetered<T>(run: impl FnOnce() -> T) -> T {
    run()
}

/// No input takes longer, in a build that is not optimised, on a machine that does other things too.
const RUN_MAX: Duration = Duration::from_secs(5);

/// All kept inputs together: a clone should not notice them.
const CORPUS_BYTES_MAX: usize = 1 << 20;

fn corpus() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/corpus")
}

fn inputs(target: &str) -> Vec<(PathBuf, Vec<u8>)> {
    let entries = fs::read_dir(corpus().join(target)).expect("a folder for every target");
    let paths: BTreeSet<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    paths.into_iter().map(|path| (path.clone(), fs::read(path).unwrap())).collect()
}

#[test]
fn every_kept_input_keeps_every_promise() {
    for target in &TARGETS {
        let inputs = inputs(target.name);
        let (mut accepted, mut slowest) = (0, Duration::ZERO);
        for (path, input) in &inputs {
            // The last of these lines before a panic names the input.
            println!("{}", path.display());
            assert!(input.len() <= target.bytes_max, "longer than the target takes");
            let start = Instant::now();
            accepted += usize::from((target.run)(input));
            slowest = slowest.max(start.elapsed());
        }
        println!("{}: {} inputs, {accepted} accepted, {slowest:?}", target.name, inputs.len());
        assert!(slowest < RUN_MAX, "{}: {slowest:?}", target.name);
        // A corpus that never gets in, or is never turned away, shows nothing.
        assert!(accepted > 0 && accepted < inputs.len(), "{}: {accepted}", target.name);
        assert!(inputs.len() >= 10, "{}: {} inputs", target.name, inputs.len());
    }
}

#[test]
fn the_corpus_is_small_and_every_folder_has_a_target() {
    let mut bytes = 0;
    for folder in fs::read_dir(corpus()).unwrap() {
        let name = folder.unwrap().file_name().into_string().unwrap();
        assert!(targets::named(&name).is_some(), "{name} is nobody's");
        bytes += inputs(&name).iter().map(|(_, input)| input.len()).sum::<usize>();
    }
    println!("{bytes} bytes");
    assert!(bytes < CORPUS_BYTES_MAX, "{bytes} bytes");
}
