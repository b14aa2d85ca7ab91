//! Shelves: where a sink's files end up. Here the directory; `s3` is the object store.
//!
//! A draft is written under a hidden name in its own folder, synced, and renamed. What is placed becomes durable with the
//! commit: every folder is synced before the manifest, which is written in the same way.

use std::collections::BTreeSet;
use std::fs::{self, DirBuilder};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use crate::crash_point;
use crate::sink::StoreError;
use crate::sink::files::leftover::{DRAFT_ENDING, Found};
use crate::sink::files::manifest::{file_name, number_of};
use crate::sink::files::output::Output;
use crate::store::durable::{Folder, sync_folder};

/// Folder of the manifests.
pub const MANIFESTS: &str = "manifest";

/// Levels of folders below a place: `type=post/day=2024-10-01/`.
const DEPTH_MAX: usize = 3;

/// Where files end up. Paths are relative, with `/`.
pub trait Shelf: Send {
    /// Makes it ready; gives number and content of the newest manifest.
    fn open(&mut self) -> Result<Option<(u64, Vec<u8>)>, StoreError>;

    /// Removes what `judge` calls a leftover, and counts it.
    ///
    /// # Errors
    /// [`StoreError::Config`] naming a stranger.
    fn clear(&mut self, judge: &dyn Fn(&str) -> Found) -> Result<u64, StoreError>;

    /// Where the file that will be at `path` is to be written.
    fn draft(&mut self, path: &str) -> Result<PathBuf, StoreError>;

    /// Puts a finished draft at `path`.
    fn place(&mut self, draft: &Path, path: &str) -> Result<(), StoreError>;

    /// Writes the manifest `number`: from here on everything placed before counts.
    fn commit(&mut self, number: u64, bytes: &[u8]) -> Result<(), StoreError>;
}

/// What a stranger is told.
#[must_use]
pub fn stranger(path: &str) -> StoreError {
    StoreError::Config(format!(
        "{path} is not this sink's, and readers would take it for one of its files: move it away, or give the sink a place \
         of its own"
    ))
}

/// A directory.
pub struct Directory {
    root: PathBuf,
    /// Folders with names that are not durable yet.
    unsynced: BTreeSet<PathBuf>,
}

impl Directory {
    /// The directory at `root`, which may still have to be made.
    #[must_use]
    pub fn new(root: &Path) -> Self {
        Self { root: root.to_owned(), unsynced: BTreeSet::new() }
    }

    fn make_folder(&mut self, path: &Path) -> Result<(), StoreError> {
        if path.is_dir() {
            return Ok(());
        }
        if let Some(parent) = path.parent().filter(|it| !it.as_os_str().is_empty()) {
            self.make_folder(parent)?;
            self.unsynced.insert(parent.to_owned());
        }
        let made = DirBuilder::new().mode(0o750).create(path);
        made.map_err(|error| StoreError::io(path, error))
    }

    fn manifests(&self) -> PathBuf {
        self.root.join(MANIFESTS)
    }

    /// Every file below `folder`, relative to the root.
    fn files(&self, folder: &str, depth: usize, found: &mut Vec<String>) -> Result<(), StoreError> {
        let path = self.root.join(folder);
        let failed = |error| StoreError::io(&path, error);
        for entry in fs::read_dir(&path).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let Ok(name) = entry.file_name().into_string() else { continue };
            let below = if folder.is_empty() { name } else { format!("{folder}/{name}") };
            match entry.file_type().map_err(failed)? {
                kind if kind.is_dir() && depth < DEPTH_MAX => {
                    self.files(&below, depth + 1, found)?
                }
                kind if kind.is_file() => found.push(below),
                _ => {}
            }
        }
        Ok(())
    }
}

/// Why the directory at `path` cannot be a sink's, if it is there and cannot.
#[must_use]
pub fn refusal(path: &Path) -> Option<String> {
    let metadata = match fs::metadata(path) {
        Ok(metadata) => metadata,
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
            return None;
        }
        Err(error) => return Some(format!("{}: {error}", path.display())),
    };
    let shown = path.display();
    match () {
        () if !metadata.is_dir() => Some(format!("{shown}: is not a directory")),
        () if metadata.uid() != rustix::process::geteuid().as_raw() => Some(format!(
            "{shown}: belongs to another user: run as its owner, or choose another directory"
        )),
        () if metadata.mode() & 0o002 != 0 => {
            Some(format!("{shown}: everybody may write to it: chmod o-w it first"))
        }
        () => None,
    }
}

impl Shelf for Directory {
    fn open(&mut self) -> Result<Option<(u64, Vec<u8>)>, StoreError> {
        if let Some(text) = refusal(&self.root) {
            return Err(StoreError::Permission(text));
        }
        let manifests = self.manifests();
        self.make_folder(&manifests)?;
        let folder = Folder::open(&manifests)?;
        let names = folder.names()?;
        for name in names.iter().filter(|name| name.ends_with(DRAFT_ENDING)) {
            folder.remove(name)?;
        }
        let Some(number) = names.iter().filter_map(|name| number_of(name)).max() else {
            return Ok(None);
        };
        let path = manifests.join(file_name(number));
        let bytes = fs::read(&path).map_err(|error| StoreError::io(&path, error))?;
        Ok(Some((number, bytes)))
    }

    fn clear(&mut self, judge: &dyn Fn(&str) -> Found) -> Result<u64, StoreError> {
        let mut found = Vec::new();
        self.files("", 0, &mut found)?;
        let mut removed = 0;
        for path in found.iter().filter(|path| !path.starts_with(MANIFESTS)) {
            let whole = self.root.join(path);
            match judge(path) {
                Found::Kept => {}
                Found::Leftover => {
                    fs::remove_file(&whole).map_err(|error| StoreError::io(&whole, error))?;
                    removed += 1;
                }
                Found::Stranger => return Err(stranger(&whole.display().to_string())),
            }
        }
        Ok(removed)
    }

    fn draft(&mut self, path: &str) -> Result<PathBuf, StoreError> {
        let whole = self.root.join(path);
        let folder = whole.parent().unwrap_or(&self.root).to_owned();
        self.make_folder(&folder)?;
        let name = whole.file_name().unwrap_or_default().to_string_lossy().into_owned();
        Ok(folder.join(format!(".{name}{DRAFT_ENDING}")))
    }

    fn place(&mut self, draft: &Path, path: &str) -> Result<(), StoreError> {
        let whole = self.root.join(path);
        let folder = whole.parent().unwrap_or(&self.root).to_owned();
        let name =
            |path: &Path| path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        Folder::open(&folder)?.rename_for_now(&name(draft), &name(&whole))?;
        self.unsynced.insert(folder);
        Ok(())
    }

    fn commit(&mut self, number: u64, bytes: &[u8]) -> Result<(), StoreError> {
        while let Some(folder) = self.unsynced.first().cloned() {
            sync_folder(&folder)?;
            self.unsynced.remove(&folder);
        }
        let name = file_name(number);
        let draft = format!(".{name}{DRAFT_ENDING}");
        let manifests = self.manifests();
        let path = manifests.join(&draft);
        let mut output = Output::create(&path)?;
        let written = output.write_all(bytes);
        output.finish(written.is_ok())?;
        written.map_err(|error| StoreError::io(&path, error))?;
        // A whole manifest under a name that nobody looks at: nothing is committed.
        crash_point!(SinkManifestWrittenBeforeRename);
        let folder = Folder::open(&manifests)?;
        folder.rename_for_now(&draft, &name)?;
        folder.sync()
    }
}
