//! Where lists and tables go: stdout, or a file that is there whole or not at all.
//!
//! ```text
//!  write ──> FILE's folder: a temporary file ──commit──> synced, renamed to FILE, folder synced
//! ```
//! A file that is replaced keeps its mode and, as far as we may, its owner: a daemon of another user reads it. A link is
//! followed; what is no ordinary file (`/dev/null`, a pipe) is written to as it is.

use std::fs::{self, File, Permissions};
use std::io::{self, BufWriter, Read, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};

use tempfile::NamedTempFile;

use crate::commands::error::CommandError;
use crate::config::list_format::Format;
use crate::config::list_lines::Lines;
use crate::store::durable;
use crate::store::error::StoreError;

/// Bytes written at once.
const WRITE_BYTES: usize = 64 << 10;

/// Where something goes.
pub struct Output<'o> {
    name: PathBuf,
    writer: BufWriter<Place<'o>>,
    is_closed: bool,
}

enum Place<'o> {
    Out(&'o mut dyn Write),
    Direct(File),
    Whole { file: NamedTempFile, path: PathBuf, folder: PathBuf },
}

impl Write for Place<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Out(out) => out.write(bytes),
            Self::Direct(file) => file.write(bytes),
            Self::Whole { file, .. } => file.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Out(out) => out.flush(),
            Self::Direct(file) => file.flush(),
            Self::Whole { file, .. } => file.flush(),
        }
    }
}

impl<'o> Output<'o> {
    /// Standard output; whoever reads it may stop at any time.
    pub fn stdout(out: &'o mut dyn Write) -> Self {
        let writer = BufWriter::with_capacity(WRITE_BYTES, Place::Out(out));
        Self { name: "stdout".into(), writer, is_closed: false }
    }

    /// The file at `path`, new or replaced.
    ///
    /// # Errors
    /// [`StoreError`] naming it.
    pub fn file(path: &Path) -> Result<Self, StoreError> {
        let failed = |error| StoreError::io(path, error);
        let existing = match fs::metadata(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            metadata => Some(metadata.map_err(failed)?),
        };
        let place = match existing {
            Some(metadata) if !metadata.is_file() => {
                Place::Direct(File::options().write(true).open(path).map_err(failed)?)
            }
            existing => whole(path, existing.as_ref()).map_err(failed)?,
        };
        let writer = BufWriter::with_capacity(WRITE_BYTES, place);
        Ok(Self { name: path.to_owned(), writer, is_closed: false })
    }

    /// Whether [`Output::file`] would find what it needs, before there is anything to write. A pipe is not opened for it.
    ///
    /// # Errors
    /// [`StoreError`] naming it.
    pub fn probe(path: &Path) -> Result<(), StoreError> {
        match fs::metadata(path) {
            Ok(metadata) if !metadata.is_file() && !metadata.is_dir() => Ok(()),
            _ => Output::file(path).map(drop),
        }
    }

    /// Writes; a reader of stdout that has enough ends it silently.
    ///
    /// # Errors
    /// [`StoreError`] naming it.
    pub fn write(&mut self, text: &str) -> Result<(), StoreError> {
        if self.is_closed {
            return Ok(());
        }
        let written = self.writer.write_all(text.as_bytes());
        self.unless_closed(written)
    }

    fn unless_closed(&mut self, written: io::Result<()>) -> Result<(), StoreError> {
        let is_out = matches!(self.writer.get_ref(), Place::Out(_));
        match written {
            Err(error) if is_out && error.kind() == io::ErrorKind::BrokenPipe => {
                self.is_closed = true;
                Ok(())
            }
            written => written.map_err(|error| StoreError::io(&self.name, error)),
        }
    }

    /// Makes what was written the file.
    ///
    /// # Errors
    /// [`StoreError`] naming it; the file is then as it was before.
    pub fn commit(mut self) -> Result<(), StoreError> {
        if self.is_closed {
            return Ok(());
        }
        let flushed = self.writer.flush();
        self.unless_closed(flushed)?;
        let failed = |error| StoreError::io(&self.name, error);
        let (place, _unwritten) = self.writer.into_parts();
        match place {
            Place::Out(_) | Place::Direct(_) => Ok(()),
            Place::Whole { file, path, folder } => {
                file.as_file().sync_all().map_err(failed)?;
                file.persist(&path).map_err(|error| failed(error.error))?;
                durable::sync_folder(&folder)
            }
        }
    }
}

fn whole<'o>(path: &Path, existing: Option<&fs::Metadata>) -> io::Result<Place<'o>> {
    // A link is kept; what it leads to is replaced.
    let path = if existing.is_some() { fs::canonicalize(path)? } else { path.to_owned() };
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    let folder = folder.unwrap_or(Path::new(".")).to_owned();
    // The process's umask takes away from these, as from every new file.
    let everybody = Permissions::from_mode(0o666);
    let file =
        tempfile::Builder::new().prefix(".skyfill-").permissions(everybody).tempfile_in(&folder)?;
    if let Some(existing) = existing {
        // Without the right to give files away it becomes ours, as with every other program that replaces files.
        let _kept = fchown(file.as_file(), Some(existing.uid()), Some(existing.gid()));
        file.as_file().set_permissions(Permissions::from_mode(existing.mode() & 0o7777))?;
    }
    Ok(Place::Whole { file, path, folder })
}

/// A list that is added to, and how it is written.
pub struct Appended<'o> {
    /// What it becomes.
    pub output: Output<'o>,
    format: Format,
}

impl Appended<'_> {
    /// The list at `path` as it is, to be added to; a new one if there is none.
    ///
    /// # Errors
    /// [`CommandError`] naming it.
    pub fn open(path: &Path) -> Result<Self, CommandError> {
        let failed = |error| StoreError::io(path, error);
        let mut output = Output::file(path)?;
        let mut old = match File::open(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Ok(Self { output, format: Format::Plain });
            }
            opened => opened.map_err(failed)?,
        };
        let (mut chunk, mut last) = (vec![0; WRITE_BYTES], b'\n');
        loop {
            let length = old.read(&mut chunk).map_err(failed)?;
            if length == 0 {
                break;
            }
            last = chunk[length - 1];
            output.writer.write_all(&chunk[..length]).map_err(failed)?;
        }
        if last != b'\n' {
            output.write("\n")?;
        }
        Ok(Self { output, format: format_of(path)? })
    }

    /// Adds an account in the list's own form.
    ///
    /// # Errors
    /// [`StoreError`] naming it.
    pub fn add(&mut self, did: &str) -> Result<(), StoreError> {
        let line = match self.format {
            Format::Plain => format!("{did}\n"),
            Format::Json => format!("{}\n", serde_json::json!({ "did": did })),
            Format::Csv { delimiter, column } => {
                format!("{}{did}\n", delimiter.to_string().repeat(column))
            }
        };
        self.output.write(&line)
    }
}

/// How a list is written, by its first line with something on it.
fn format_of(path: &Path) -> Result<Format, StoreError> {
    let failed = |error| StoreError::io(path, error);
    let mut lines = Lines::new(io::BufReader::new(File::open(path).map_err(failed)?));
    // What is no text was found when the list was read.
    while let Ok(Some(line)) = lines.next_line() {
        let content = line.text.trim();
        if !content.is_empty() && !content.starts_with('#') {
            return Ok(Format::detect(content).0);
        }
    }
    Ok(Format::Plain)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::disallowed_methods, reason = "files of tests need not last")]

    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().mode() & 0o7777
    }

    #[test]
    fn a_file_is_replaced_whole_and_keeps_its_mode_and_links() {
        let folder = tempfile::tempdir().unwrap();
        let (path, link) = (folder.path().join("list"), folder.path().join("link"));
        fs::write(&path, "old\n").unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o640)).unwrap();
        std::os::unix::fs::symlink(&path, &link).unwrap();
        let mut output = Output::file(&link).unwrap();
        output.write("new\n").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "old\n", "not before it is whole");
        output.commit().unwrap();
        assert_eq!((fs::read_to_string(&path).unwrap(), mode(&path)), ("new\n".to_owned(), 0o640));
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        let mut dropped = Output::file(&path).unwrap();
        dropped.write("never\n").unwrap();
        drop(dropped);
        assert_eq!(fs::read_to_string(&path).unwrap(), "new\n");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2, "nothing is left behind");
        let mut nowhere = Output::file(Path::new("/dev/null")).unwrap();
        nowhere.write("x").unwrap();
        nowhere.commit().unwrap();
        assert!(!fs::metadata("/dev/null").unwrap().is_file());
    }

    #[test]
    fn a_list_grows_in_its_own_form() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("list");
        for (before, after) in [
            (None, "did:web:a.b\n"),
            (Some("# mine\n\ndid:web:x.y"), "# mine\n\ndid:web:x.y\ndid:web:a.b\n"),
            (Some("name;did\nx;did:web:x.y\n"), "name;did\nx;did:web:x.y\n;did:web:a.b\n"),
            (
                Some("{\"did\": \"did:web:x.y\"}\n"),
                "{\"did\": \"did:web:x.y\"}\n{\"did\":\"did:web:a.b\"}\n",
            ),
        ] {
            match before {
                Some(text) => fs::write(&path, text).unwrap(),
                None => drop(fs::remove_file(&path)),
            }
            let mut list = Appended::open(&path).unwrap();
            list.add("did:web:a.b").unwrap();
            list.output.commit().unwrap();
            assert_eq!(fs::read_to_string(&path).unwrap(), after);
        }
    }
}
