//! Which files are read, and what each of them is.
//!
//! A path is a file or a folder. A folder is walked in the order of its names; in it, only what looks like data by its name is
//! read, and of queues only those whose kind counts; the rest is passed over and counted. A file that was named itself is
//! always read. What a file is, is told by how it begins. Linked folders are passed over: they could lead in a circle.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::commands::determine::flags::SubjectKind;
use crate::store::error::StoreError;

/// Endings of files that are read in folders.
const ENDINGS: [&str; 9] = [
    ".db",
    ".sqlite",
    ".sqlite3",
    ".jsonl",
    ".ndjson",
    ".json",
    ".jsonl.gz",
    ".ndjson.gz",
    ".json.gz",
];

/// The ending of Parquet files.
const PARQUET: &str = ".parquet";

/// Labels of queues that no subject lies in.
const OTHER_QUEUES: [&str; 5] = ["post", "follow", "block", "rejected", "deleted"];

/// A file to read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// Where it is.
    pub path: PathBuf,
    /// It was named itself, not found in a folder.
    pub is_named: bool,
}

/// The files below some paths, in order.
#[derive(Debug)]
pub struct Files {
    /// What is still to be looked at; the next one is last.
    stack: Vec<Found>,
    wanted: [bool; 3],
    /// Files in folders that were not read.
    pub passed_over: u64,
}

impl Files {
    /// Begins at `paths`; `wanted` says which kinds count, by [`SubjectKind::index`].
    #[must_use]
    pub fn below(paths: &[PathBuf], wanted: [bool; 3]) -> Self {
        let named = |path: &PathBuf| Found { path: path.clone(), is_named: true };
        Self { stack: paths.iter().rev().map(named).collect(), wanted, passed_over: 0 }
    }

    /// The next file; `None` at the end.
    ///
    /// # Errors
    /// [`StoreError`] naming what is not there or cannot be read.
    pub fn next_file(&mut self) -> Result<Option<Found>, StoreError> {
        while let Some(found) = self.stack.pop() {
            let failed = |error| StoreError::io(&found.path, error);
            if found.is_named && found.path == Path::new("-") {
                return Ok(Some(found));
            }
            let metadata = fs::metadata(&found.path);
            let metadata = match metadata {
                // A link that leads nowhere, in a folder.
                Err(error) if !found.is_named && error.kind() == io::ErrorKind::NotFound => {
                    self.passed_over += 1;
                    continue;
                }
                metadata => metadata.map_err(failed)?,
            };
            if metadata.is_dir() {
                let is_link = fs::symlink_metadata(&found.path).map_err(failed)?.is_symlink();
                if found.is_named || !is_link {
                    self.open(&found.path)?;
                } else {
                    self.passed_over += 1;
                }
            } else if found.is_named || (metadata.is_file() && self.is_data(&found.path)) {
                return Ok(Some(found));
            } else {
                self.passed_over += 1;
            }
        }
        Ok(None)
    }

    fn open(&mut self, folder: &Path) -> Result<(), StoreError> {
        let failed = |error| StoreError::io(folder, error);
        let mut paths = Vec::new();
        for entry in fs::read_dir(folder).map_err(failed)? {
            paths.push(entry.map_err(failed)?.path());
        }
        paths.sort_unstable_by(|a, b| b.cmp(a));
        self.stack.extend(paths.into_iter().map(|path| Found { path, is_named: false }));
        Ok(())
    }

    fn is_data(&self, path: &Path) -> bool {
        let name = path.file_name().unwrap_or_default().to_string_lossy().to_ascii_lowercase();
        // As other readers of such folders do: markers and what is being written.
        if name.starts_with(['.', '_']) {
            return false;
        }
        let label =
            name.strip_suffix(".db").and_then(|it| it.strip_prefix("output_backfill_sync_"));
        if let Some(label) = label {
            let is_off = |kind: &SubjectKind| kind.label() == label && !self.wanted[kind.index()];
            return !OTHER_QUEUES.contains(&label) && !SubjectKind::ALL.iter().any(is_off);
        }
        name.ends_with(PARQUET) || ENDINGS.iter().any(|ending| name.ends_with(ending))
    }
}

/// What a file is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// SQLite: a queue.
    Queue,
    /// Parquet.
    Parquet,
    /// JSON lines.
    Lines,
    /// The same in gzip.
    GzipLines,
    /// zstd, which is not read.
    Zstd,
}

impl Form {
    /// By the first bytes.
    #[must_use]
    pub fn of(begin: &[u8]) -> Self {
        match begin {
            [b'S', b'Q', b'L', b'i', b't', b'e', b' ', ..] => Self::Queue,
            [b'P', b'A', b'R', b'1', ..] => Self::Parquet,
            [0x1f, 0x8b, ..] => Self::GzipLines,
            [0x28, 0xb5, 0x2f, 0xfd, ..] => Self::Zstd,
            _ => Self::Lines,
        }
    }
}

/// What the names of a path say of the kind of its records: the last that says anything.
#[must_use]
pub fn kind_by_name(path: &Path) -> Option<SubjectKind> {
    path.components().rev().find_map(|component| {
        let name = component.as_os_str().to_string_lossy().to_ascii_lowercase();
        name.split(|c: char| !c.is_ascii_alphanumeric()).find_map(|word| match word {
            "like" | "likes" => Some(SubjectKind::Like),
            "repost" | "reposts" => Some(SubjectKind::Repost),
            "reply" | "replies" => Some(SubjectKind::Reply),
            _ => None,
        })
    })
}

/// What a folder of the path says of the date: `partition_date=YYYY-MM-DD`.
#[must_use]
pub fn date_by_folder(path: &Path) -> Option<&str> {
    path.components()
        .rev()
        .find_map(|component| component.as_os_str().to_str()?.strip_prefix("partition_date="))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::disallowed_methods, reason = "files of tests need not last")]

    use super::*;

    #[test]
    fn folders_are_walked_in_order_and_only_data_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        fs::create_dir_all(root.join("b/deeper")).unwrap();
        for name in [
            "b/2.jsonl",
            "b/10.jsonl",
            "b/deeper/x.parquet",
            "a.ndjson.gz",
            "state.db",
            "state.db-wal",
            "note.txt",
            ".hidden.jsonl",
            "_SUCCESS",
            "output_backfill_sync_like.db",
            "output_backfill_sync_repost.db",
            "output_backfill_sync_post.db",
        ] {
            fs::write(root.join(name), "").unwrap();
        }
        std::os::unix::fs::symlink(root, root.join("b/circle")).unwrap();
        std::os::unix::fs::symlink("nowhere", root.join("broken.jsonl")).unwrap();
        let mut files =
            Files::below(&[root.join("note.txt"), root.to_owned()], [true, false, true]);
        let mut found = Vec::new();
        while let Some(Found { path, is_named }) = files.next_file().unwrap() {
            found.push((path.strip_prefix(root).unwrap().display().to_string(), is_named));
        }
        let expected = [
            ("note.txt", true),
            ("a.ndjson.gz", false),
            ("b/10.jsonl", false),
            ("b/2.jsonl", false),
            ("b/deeper/x.parquet", false),
            ("output_backfill_sync_like.db", false),
            ("state.db", false),
        ];
        assert_eq!(found, expected.map(|(name, is_named)| (name.to_owned(), is_named)));
        assert_eq!(files.passed_over, 8);
        let missing = Files::below(&["not-there".into()], [true; 3]).next_file().unwrap_err();
        assert!(missing.to_string().starts_with("not-there: "), "{missing}");
    }

    #[test]
    fn names_say_kind_and_date() {
        let kind = |path: &str| kind_by_name(Path::new(path));
        assert_eq!(kind("x/output_backfill_sync_repost.db"), Some(SubjectKind::Repost));
        assert_eq!(kind("likes/replies/part-0.parquet"), Some(SubjectKind::Reply));
        assert_eq!(
            kind("record_type=like/partition_date=2024-10-01/0.parquet"),
            Some(SubjectKind::Like)
        );
        assert_eq!(kind("likely/unlike.jsonl"), None);
        let date = |path| date_by_folder(Path::new(path));
        assert_eq!(date("a/partition_date=2024-10-01/0.parquet"), Some("2024-10-01"));
        assert_eq!(date("a/2024-10-01/0.parquet"), None);
    }
}
