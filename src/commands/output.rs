//! Where a command's list goes: stdout, or a file that is there whole or not at all.
//!
//! A file is written beside itself under another name, synced, and renamed: a reader never sees half of it, and an older one
//! stays until the new one is complete. What is no regular file (a pipe, a terminal) is written as it comes.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use tempfile::NamedTempFile;

use crate::store::durable;
use crate::store::error::StoreError;

/// An open output.
pub enum Output {
    /// Standard output.
    Stdout(BufWriter<io::Stdout>),
    /// Something else that takes bytes as they come.
    Stream(PathBuf, BufWriter<File>),
    /// A file in the making.
    File(PathBuf, BufWriter<NamedTempFile>),
}

impl Output {
    /// Opens `path`; nothing, or `-`, is standard output.
    ///
    /// # Errors
    /// [`StoreError`] naming it.
    pub fn open(path: Option<&Path>) -> Result<Self, StoreError> {
        let Some(path) = path.filter(|path| *path != Path::new("-")) else {
            return Ok(Self::Stdout(BufWriter::new(io::stdout())));
        };
        let failed = |error| StoreError::io(path, error);
        if std::fs::metadata(path).is_ok_and(|metadata| !metadata.is_file()) {
            let stream = std::fs::OpenOptions::new().write(true).open(path).map_err(failed)?;
            return Ok(Self::Stream(path.to_owned(), BufWriter::new(stream)));
        }
        let file = NamedTempFile::new_in(folder(path)).map_err(failed)?;
        Ok(Self::File(path.to_owned(), BufWriter::new(file)))
    }

    /// Appends `text`.
    ///
    /// # Errors
    /// [`StoreError`] naming where.
    pub fn put(&mut self, text: &str) -> Result<(), StoreError> {
        match self {
            Self::Stdout(out) => named(Path::new("stdout"), out.write_all(text.as_bytes())),
            Self::Stream(path, out) => named(path, out.write_all(text.as_bytes())),
            Self::File(path, out) => named(path, out.write_all(text.as_bytes())),
        }
    }

    /// Makes it complete.
    ///
    /// # Errors
    /// [`StoreError`] naming where; a file is then as it was before.
    pub fn finish(self) -> Result<(), StoreError> {
        match self {
            Self::Stdout(mut out) => named(Path::new("stdout"), out.flush()),
            Self::Stream(path, mut out) => named(&path, out.flush()),
            Self::File(path, out) => {
                let file = out.into_inner().map_err(|error| error.into_error());
                let file = file.and_then(|file| file.as_file().sync_all().map(|()| file));
                let file = file.map_err(|error| StoreError::io(&path, error))?;
                let kept = file.persist(&path).map_err(|error| error.error);
                kept.map_err(|error| StoreError::io(&path, error))?;
                durable::sync_folder(folder(&path))
            }
        }
    }
}

fn named(path: &Path, written: io::Result<()>) -> Result<(), StoreError> {
    written.map_err(|error| StoreError::io(path, error))
}

fn folder(path: &Path) -> &Path {
    path.parent().filter(|it| !it.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_there_whole_or_as_it_was() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("list");
        let put = |text: &str| {
            let mut output = Output::open(Some(&path)).unwrap();
            output.put(text).unwrap();
            output
        };
        put("one\n").finish().unwrap();
        drop(put("two\n"));
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "one\n");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
        put("three\n").finish().unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "three\n");
        assert!(Output::open(Some(Path::new("/nowhere/list"))).is_err());
        let mut stream = Output::open(Some(Path::new("/dev/null"))).unwrap();
        stream.put("x").unwrap();
        stream.finish().unwrap();
    }
}
