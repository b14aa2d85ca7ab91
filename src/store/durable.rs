//! The one door to the disk for journal files: what is written, synced, renamed and removed goes through here.
//!
//! A name is durable when its folder has been synced; bytes are durable when their file has been synced. After a failed sync
//! nothing of that file may be trusted: the caller ends the process.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use crate::store::error::StoreError;

/// What is about to be asked of the disk: tests record it, and let it fail, before it is done.
#[derive(Debug)]
#[cfg_attr(not(test), allow(dead_code))]
pub(super) enum Asked<'b> {
    Create,
    Write { at: u64, bytes: &'b [u8] },
    Cut { bytes: u64 },
    Sync,
    Rename { to: &'b Path },
    Remove,
    SyncFolder,
}

#[cfg(test)]
use crate::store::door::pass;

#[cfg(not(test))]
#[allow(clippy::unnecessary_wraps, reason = "in tests it fails")]
const fn pass(_path: &Path, _asked: &Asked<'_>) -> std::io::Result<()> {
    Ok(())
}

/// What is written over a file that is to be wiped, at once.
static ZEROS: [u8; 64 << 10] = [0; 64 << 10];

/// A folder whose files are written durably.
#[derive(Debug)]
pub struct Folder {
    path: PathBuf,
    handle: File,
}

/// Makes the names in the folder at `path` durable.
///
/// # Errors
/// [`StoreError`] naming it.
pub fn sync_folder(path: &Path) -> Result<(), StoreError> {
    Folder::open(path)?.sync()
}

/// A file that grows at its end. One that is used again is written over from its start, which costs half of what new blocks
/// cost, and is as long as before until it is cut.
#[derive(Debug)]
pub struct Appender {
    path: PathBuf,
    file: File,
    bytes: u64,
    /// Bytes of the file itself.
    length: u64,
}

impl Folder {
    /// Opens an existing folder.
    ///
    /// # Errors
    /// [`StoreError`] naming it.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        let handle = File::open(path).map_err(|error| StoreError::io(path, error))?;
        Ok(Self { path: path.to_owned(), handle })
    }

    /// Path of a file in it.
    #[must_use]
    pub fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Names of its files.
    ///
    /// # Errors
    /// [`StoreError`] naming it.
    pub fn names(&self) -> Result<Vec<String>, StoreError> {
        let failed = |error| StoreError::io(&self.path, error);
        let mut names = Vec::new();
        for entry in fs::read_dir(&self.path).map_err(failed)? {
            names.extend(entry.map_err(failed)?.file_name().into_string().ok());
        }
        names.sort();
        Ok(names)
    }

    /// Creates a file for its owner only; an existing one, or a link in its place, is an error.
    ///
    /// # Errors
    /// [`StoreError`] naming it.
    pub fn create(&self, name: &str) -> Result<Appender, StoreError> {
        let path = self.file(name);
        let opened = pass(&path, &Asked::Create)
            .and_then(|()| OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path));
        let file = opened.map_err(|error| StoreError::io(&path, error))?;
        Ok(Appender { path, file, bytes: 0, length: 0 })
    }

    /// Opens an existing file to write it over.
    ///
    /// # Errors
    /// [`StoreError`] naming it.
    pub fn write_over(&self, name: &str) -> Result<Appender, StoreError> {
        let path = self.file(name);
        let failed = |error| StoreError::io(&path, error);
        let file = OpenOptions::new().write(true).open(&path).map_err(failed)?;
        let length = file.metadata().map_err(failed)?.len();
        Ok(Appender { path, file, bytes: 0, length })
    }

    /// Renames a file and syncs the folder: afterwards the new name is durable.
    ///
    /// # Errors
    /// [`StoreError`]; after a failed sync it is unknown which of the two names is durable.
    pub fn rename(&self, from: &str, to: &str) -> Result<(), StoreError> {
        self.rename_for_now(from, to)?;
        // The new name exists and is not durable yet. Recovery finds either name; a part is deleted, and its accounts,
        // of which the ledger knows nothing, are fetched again.
        crate::crash_point!(SegmentRenamedBeforeFolderSync);
        self.sync()
    }

    /// Renames a file; which of the two names is durable is open until [`Folder::sync`].
    ///
    /// # Errors
    /// [`StoreError`] naming it.
    #[allow(clippy::disallowed_methods, reason = "this is the replacement that the ban names")]
    pub fn rename_for_now(&self, from: &str, to: &str) -> Result<(), StoreError> {
        let (from, path) = (self.file(from), self.file(to));
        let renamed =
            pass(&from, &Asked::Rename { to: &path }).and_then(|()| fs::rename(&from, &path));
        renamed.map_err(|error| StoreError::io(&path, error))
    }

    /// Removes a file. Whether that is durable does not matter to its callers: a leftover is removed again.
    ///
    /// # Errors
    /// [`StoreError`] naming it.
    pub fn remove(&self, name: &str) -> Result<(), StoreError> {
        let path = self.file(name);
        let removed = pass(&path, &Asked::Remove).and_then(|()| fs::remove_file(&path));
        removed.map_err(|error| StoreError::io(&path, error))
    }

    /// Writes zeros over a file's bytes, makes that durable, and removes it.
    ///
    /// # Errors
    /// [`StoreError`] naming it.
    pub fn wipe(&self, name: &str) -> Result<(), StoreError> {
        let mut file = self.write_over(name)?;
        let mut left = file.length;
        while left > 0 {
            let bytes = usize::try_from(left).map_or(ZEROS.len(), |left| left.min(ZEROS.len()));
            file.append(&ZEROS[..bytes])?;
            left -= bytes as u64;
        }
        file.sync()?;
        self.remove(name)
    }

    /// Makes its names durable.
    ///
    /// # Errors
    /// [`StoreError`]; which names are durable is then unknown.
    pub fn sync(&self) -> Result<(), StoreError> {
        let synced = pass(&self.path, &Asked::SyncFolder).and_then(|()| self.handle.sync_all());
        synced.map_err(|error| StoreError::io(&self.path, error))
    }
}

impl Appender {
    /// Length in bytes.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Appends all of `bytes`, or leaves the file as it was.
    ///
    /// # Errors
    /// [`StoreError`] naming it.
    pub fn append(&mut self, bytes: &[u8]) -> Result<(), StoreError> {
        let asked = Asked::Write { at: self.bytes, bytes };
        let written =
            pass(&self.path, &asked).and_then(|()| self.file.write_all_at(bytes, self.bytes));
        match written {
            Ok(()) => {
                self.bytes += bytes.len() as u64;
                self.length = self.length.max(self.bytes);
                Ok(())
            }
            Err(error) => {
                // What was written beyond the end is overwritten by the next append; the file's length matters only
                // when it is sealed, and sealing cuts it.
                let _cut = self.file.set_len(self.bytes);
                self.length = self.bytes;
                Err(StoreError::io(&self.path, error))
            }
        }
    }

    /// Cuts the file to `bytes`.
    ///
    /// # Errors
    /// [`StoreError`] naming it.
    pub fn cut(&mut self, bytes: u64) -> Result<(), StoreError> {
        let cut = pass(&self.path, &Asked::Cut { bytes }).and_then(|()| self.file.set_len(bytes));
        cut.map_err(|error| StoreError::io(&self.path, error))?;
        (self.bytes, self.length) = (bytes, bytes);
        Ok(())
    }

    /// Cuts what an earlier use has left beyond the end.
    ///
    /// # Errors
    /// [`StoreError`] naming it.
    pub fn cut_leftover(&mut self) -> Result<(), StoreError> {
        if self.length > self.bytes { self.cut(self.bytes) } else { Ok(()) }
    }

    /// Makes everything written so far durable.
    ///
    /// # Errors
    /// [`StoreError`]; the file must not be used any more.
    pub fn sync(&mut self) -> Result<(), StoreError> {
        let synced = pass(&self.path, &Asked::Sync)
            .and_then(|()| self.file.flush())
            .and_then(|()| self.file.sync_data());
        synced.map_err(|error| StoreError::io(&self.path, error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::disk_model::Op;
    use crate::store::door;

    #[test]
    fn what_is_wiped_holds_zeros_wherever_else_it_is_named() {
        let place = tempfile::tempdir().unwrap();
        let folder = Folder::open(place.path()).unwrap();
        // Not a multiple of what is written at once.
        let secret = vec![b's'; 2 * ZEROS.len() + 3];
        folder.create("a").unwrap().append(&secret).unwrap();
        fs::hard_link(folder.file("a"), folder.file("b")).unwrap();
        folder.wipe("a").unwrap();
        assert_eq!(folder.names().unwrap(), ["b"]);
        assert_eq!(fs::read(folder.file("b")).unwrap(), vec![0; secret.len()]);
    }

    #[test]
    fn an_append_goes_on_where_the_last_one_ended_and_leftovers_are_cut() {
        let place = tempfile::tempdir().unwrap();
        let folder = Folder::open(place.path()).unwrap();
        let mut file = folder.create("a").unwrap();
        file.append(b"0123456789").unwrap();
        assert_eq!(file.bytes(), 10);
        assert!(folder.create("a").is_err(), "it is there");
        let mut again = folder.write_over("a").unwrap();
        again.append(b"ab").unwrap();
        again.append(b"cd").unwrap();
        assert_eq!(
            (again.bytes(), fs::read(folder.file("a")).unwrap()),
            (4, b"abcd456789".to_vec())
        );
        again.cut_leftover().unwrap();
        assert_eq!(fs::read(folder.file("a")).unwrap(), b"abcd");
        again.append(b"ef").unwrap();
        again.cut_leftover().unwrap();
        again.sync().unwrap();
        assert_eq!(fs::read(folder.file("a")).unwrap(), b"abcdef");
        again.cut(1).unwrap();
        again.append(b"z").unwrap();
        assert_eq!((again.bytes(), fs::read(folder.file("a")).unwrap()), (2, b"az".to_vec()));
    }

    #[test]
    fn a_file_without_a_leftover_is_not_cut() {
        let place = tempfile::tempdir().unwrap();
        let folder = Folder::open(place.path()).unwrap();
        door::renew(None);
        let mut file = folder.create("a").unwrap();
        file.append(b"0123456789").unwrap();
        file.cut_leftover().unwrap();
        let asked = door::renew(None).ops;
        assert!(matches!(asked[..], [Op::Create { .. }, Op::Write { .. }]), "{asked:?}");
    }
}
