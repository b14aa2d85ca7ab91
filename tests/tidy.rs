//! The measurable part of the style: this file only ever gets stricter.
//!
//! Checked over `src/`: a `//!` header on every file, at most 450 code lines a file and 70 a function, imports only from
//! the file's own row of the layout and the rows above it (no stage imports another), no `unwrap`, no unbounded channel,
//! no leftover marks, lower-case log messages without a final period; and over `Cargo.toml`: a reason for each dependency.
#![allow(clippy::panic, clippy::unwrap_used, clippy::expect_used)]

use std::fs;
use std::path::{Path, PathBuf};

const CODE_LINES_MAX: usize = 450;
const FUNCTION_LINES_MAX: usize = 70;

/// The layout's rows: a module may import from its own row and from rows above it.
const ROWS: &[&[&str]] = &[
    &["limits", "clock", "seed", "telemetry", "crash_point"],
    &["domain"],
    &["repo"],
    &["transform"],
    &["config"],
    &["net", "store", "identity", "sink"],
    &["actor"],
    &["stages"],
    &["ops"],
    &["pipeline", "reload"],
    &["commands", "cli", "exit_code", "library", "lib", "main"],
];

struct Source {
    path: PathBuf,
    /// Name of the top-level module that the file belongs to.
    module: String,
    /// Everything before the in-file tests.
    code: String,
}

fn sources() -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut found = Vec::new();
    let mut folders = vec![root.clone()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = fs::read_to_string(&path).unwrap();
                let code = text.split("\n#[cfg(test)]\nmod ").next().unwrap().to_owned();
                let relative = path.strip_prefix(&root).unwrap();
                let first = relative.components().next().unwrap().as_os_str().to_str().unwrap();
                let module = first.trim_end_matches(".rs").to_owned();
                found.push(Source { path: relative.to_owned(), module, code });
            }
        }
    }
    assert!(found.len() > 10, "the sources were not found");
    found
}

fn row_of(module: &str) -> usize {
    let row = ROWS.iter().position(|row| row.contains(&module));
    row.unwrap_or_else(|| panic!("src/{module} has no row in the layout"))
}

fn assert_none(what: &str, offences: &[String]) {
    assert!(offences.is_empty(), "{what}:\n{}", offences.join("\n"));
}

#[test]
fn every_file_opens_with_its_contract() {
    let bare = |source: &Source| !source.code.starts_with("//! ");
    let offences: Vec<String> =
        sources().iter().filter(|s| bare(s)).map(|s| s.path.display().to_string()).collect();
    assert_none("no //! header", &offences);
}

#[test]
fn files_and_functions_are_short() {
    let mut offences = Vec::new();
    for source in sources() {
        let lines: Vec<&str> = source.code.lines().collect();
        if lines.len() > CODE_LINES_MAX {
            offences.push(format!("{}: {} lines", source.path.display(), lines.len()));
        }
        for (start, line) in lines.iter().enumerate() {
            let indent = line.len() - line.trim_start().len();
            let is_function = [
                "fn ",
                "pub fn ",
                "pub(crate) fn ",
                "async fn ",
                "pub async fn ",
                "const fn ",
                "pub const fn ",
            ]
            .iter()
            .any(|head| line.trim_start().starts_with(head));
            if !is_function || line.trim_end().ends_with(';') {
                continue;
            }
            let closing = format!("{}}}", " ".repeat(indent));
            let length = lines[start..].iter().position(|l| *l == closing).map_or(1, |end| end + 1);
            if length > FUNCTION_LINES_MAX {
                offences.push(format!("{}:{}: {length} lines", source.path.display(), start + 1));
            }
        }
    }
    assert_none("too long", &offences);
}

#[test]
fn imports_point_upwards_in_the_layout() {
    let mut offences = Vec::new();
    for source in sources() {
        let own_row = row_of(&source.module);
        for (number, line) in source.code.lines().enumerate() {
            let code = line.split("//").next().unwrap();
            for (at, _) in code.match_indices("crate::") {
                let rest = &code[at + "crate::".len()..];
                let end =
                    rest.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(rest.len());
                let imported = &rest[..end];
                let place = format!("{}:{}: {imported}", source.path.display(), number + 1);
                if imported.is_empty() || code[..at].ends_with('$') {
                    continue;
                }
                if ROWS.iter().any(|row| row.contains(&imported)) && row_of(imported) > own_row {
                    offences.push(place.clone());
                }
                let stage = rest.strip_prefix("stages::").unwrap_or("");
                if source.module == "stages" && !stage.is_empty() && !stage.starts_with("messages")
                {
                    offences.push(place);
                }
            }
        }
    }
    assert_none("imports from a row below its own, or from another stage", &offences);
}

#[test]
fn nothing_forbidden_is_left() {
    let marks = [
        "TODO",
        "FIXME",
        ".unwrap()",
        "todo!(",
        "unimplemented!(",
        "unbounded_channel(",
        "#[ignore",
    ];
    let mut offences = Vec::new();
    for source in sources() {
        for (number, line) in source.code.lines().enumerate() {
            if marks.iter().any(|mark| line.contains(mark)) {
                offences.push(format!("{}:{}: {}", source.path.display(), number + 1, line.trim()));
            }
        }
    }
    assert_none("leftovers", &offences);
}

#[test]
fn log_messages_are_lower_case_without_a_final_period() {
    let mut offences = Vec::new();
    for source in sources() {
        for (number, line) in source.code.lines().enumerate() {
            let is_log =
                ["error!(", "warn!(", "info!(", "debug!("].iter().any(|log| line.contains(log));
            let Some(message) = line.rsplit('"').nth(1).filter(|_| is_log) else { continue };
            let starts_upper = message.starts_with(|c: char| c.is_ascii_uppercase());
            if starts_upper || message.ends_with('.') {
                offences.push(format!("{}:{}: {message}", source.path.display(), number + 1));
            }
        }
    }
    assert_none("log wording", &offences);
}

#[test]
fn every_direct_dependency_has_its_reason() {
    let manifest =
        fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml")).unwrap();
    let mut offences = Vec::new();
    let (mut inside, mut reasons) = (false, String::new());
    for line in manifest.lines() {
        if line.starts_with('[') {
            inside = line.contains("dependencies]");
        } else if line.starts_with('#') {
            reasons = format!("{reasons}\n{line}");
        } else if inside && let Some((name, _)) = line.split_once(" = ") {
            let named = |head: &str| head.split([',', ' ']).any(|word| word == name);
            let explained = reasons
                .lines()
                .any(|reason| reason.split_once(':').is_some_and(|(head, _)| named(head)));
            if !explained {
                offences.push(name.to_owned());
            }
        }
    }
    assert_none("dependencies without a reason", &offences);
}
