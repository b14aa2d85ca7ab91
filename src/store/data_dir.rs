//! The data directory: its folders and their modes, its lock, and who it belongs to.
//!
//! ```text
//!  DATA 0750   lock 0600   journal/ 0700   spool/ 0700   queue/ 0770 with the set-group bit, its files 0660
//! ```
//! Another user's directory, one that everybody may write to, and links in the place of folders are refused. One process at a
//! time: the lock is the kernel's, and its file names the holder.

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{Read, Seek, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use crate::store::durable;
use crate::store::error::StoreError;

/// Mode of `queue/`: readers of its group may write, because a reader of a WAL database must; files inherit the group.
const QUEUE_MODE: u32 = 0o2770;

/// A data directory; while this lives, it is ours alone.
#[derive(Debug)]
pub struct DataDir {
    path: PathBuf,
    _lock: File,
}

impl DataDir {
    /// Makes what is missing, checks what is there, and takes the lock.
    ///
    /// # Errors
    /// [`StoreError::Permission`] for a directory that is not ours or open to everybody, [`StoreError::Held`] if another
    /// process has it, [`StoreError`] otherwise.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        make_folder(path, 0o750)?;
        check(path)?;
        for (name, mode) in [("journal", 0o700), ("spool", 0o700), ("queue", 0o770)] {
            let folder = path.join(name);
            make_folder(&folder, mode)?;
            check(&folder)?;
        }
        let queue = path.join("queue");
        let bits = fs::metadata(&queue).map_err(|error| StoreError::io(&queue, error))?.mode();
        if bits & 0o7770 != QUEUE_MODE
            && fs::set_permissions(&queue, Permissions::from_mode(QUEUE_MODE)).is_err()
        {
            tracing::warn!(path = %queue.display(), "the set-group bit could not be set, readers of another group may be locked out");
        }
        let lock = lock(&path.join("lock"))?;
        Ok(Self { path: path.to_owned(), _lock: lock })
    }

    /// Its path.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A file or folder in it.
    #[must_use]
    pub fn join(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }
}

/// Process that holds the data directory at `path`, if one does.
#[must_use]
pub fn holder(path: &Path) -> Option<String> {
    let mut file = OpenOptions::new().read(true).open(path.join("lock")).ok()?;
    match file.try_lock() {
        Ok(()) => None,
        Err(_) => Some(read_pid(&mut file)),
    }
}

fn make_folder(path: &Path, mode: u32) -> Result<(), StoreError> {
    if fs::symlink_metadata(path).is_ok() {
        return Ok(());
    }
    if let Some(parent) =
        path.parent().filter(|parent| !parent.as_os_str().is_empty() && !parent.exists())
    {
        make_folder(parent, 0o755)?;
    }
    DirBuilder::new().mode(mode).create(path).map_err(|error| StoreError::io(path, error))?;
    // Files in it are synced one by one; what they hold is worth nothing if their folder is lost.
    durable::sync_folder(
        path.parent().filter(|it| !it.as_os_str().is_empty()).unwrap_or(Path::new(".")),
    )
}

fn check(path: &Path) -> Result<(), StoreError> {
    let refuse = |what: &str| Err(StoreError::Permission(format!("{}: {what}", path.display())));
    let metadata = fs::symlink_metadata(path).map_err(|error| StoreError::io(path, error))?;
    if metadata.file_type().is_symlink() {
        return refuse("is a symbolic link: name the directory itself");
    }
    if !metadata.is_dir() {
        return refuse("is not a directory");
    }
    if metadata.uid() != rustix::process::geteuid().as_raw() {
        return refuse("belongs to another user: run as its owner, or choose another directory");
    }
    if metadata.mode() & 0o002 != 0 {
        return refuse("everybody may write to it: chmod o-w it first");
    }
    Ok(())
}

fn lock(path: &Path) -> Result<File, StoreError> {
    let no_follow = i32::try_from(rustix::fs::OFlags::NOFOLLOW.bits()).unwrap_or(0);
    let opened = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .custom_flags(no_follow)
        .open(path);
    let mut file = opened.map_err(|error| StoreError::io(path, error))?;
    if file.try_lock().is_err() {
        return Err(StoreError::Held { path: path.to_owned(), pid: read_pid(&mut file) });
    }
    let written = file.set_len(0).and_then(|()| writeln!(file, "{}", std::process::id()));
    written.map_err(|error| StoreError::io(path, error))?;
    Ok(file)
}

fn read_pid(file: &mut File) -> String {
    let mut text = String::new();
    let read = file.rewind().and_then(|()| file.take(20).read_to_string(&mut text));
    let pid = text.trim();
    if read.is_ok() && !pid.is_empty() { pid.to_owned() } else { "unknown".to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::door;

    #[test]
    fn it_is_made_locked_and_released() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("new/data");
        let data = DataDir::open(&path).unwrap();
        let mode = |name: &str| fs::metadata(path.join(name)).unwrap().mode() & 0o7777;
        assert_eq!(
            (mode("journal"), mode("spool"), mode("queue"), mode("lock")),
            (0o700, 0o700, 0o2770, 0o600)
        );
        assert_eq!((data.path(), data.join("state.db")), (&*path, path.join("state.db")));
        let held = DataDir::open(&path).unwrap_err();
        assert!(
            matches!(held, StoreError::Held { pid, .. } if pid == std::process::id().to_string())
        );
        assert_eq!(holder(&path), Some(std::process::id().to_string()));
        drop(data);
        assert_eq!(holder(&path), None);
        DataDir::open(&path).unwrap();
    }

    #[test]
    fn a_holder_that_has_not_said_who_it_is_is_unknown() {
        let folder = tempfile::tempdir().unwrap();
        drop(DataDir::open(folder.path()).unwrap());
        // Between its lock and its name, and with something else in the place of a name.
        for said in [&b""[..], b"\n", b"\xff"] {
            let path = folder.path().join("lock");
            let mut file = File::create(&path).unwrap();
            file.write_all(said).unwrap();
            file.lock().unwrap();
            assert_eq!(holder(folder.path()).as_deref(), Some("unknown"), "{said:?}");
            let held = DataDir::open(folder.path()).unwrap_err();
            assert!(matches!(held, StoreError::Held { pid, .. } if pid == "unknown"), "{said:?}");
        }
    }

    #[test]
    fn a_relative_name_is_made_where_the_process_is() {
        let held = tempfile::tempdir_in(".").unwrap();
        let name = Path::new(held.path().file_name().unwrap());
        fs::remove_dir(name).unwrap();
        make_folder(&name.join("a/b"), 0o750).unwrap();
        fs::remove_dir_all(name).unwrap();
        make_folder(name, 0o750).unwrap();
        assert_eq!(fs::metadata(name).unwrap().mode() & 0o7777, 0o750);
    }

    #[test]
    fn every_new_folder_is_durable_in_the_one_above_it() {
        let held = tempfile::tempdir_in(".").unwrap();
        let synced = || door::renew(None).synced;
        synced();
        make_folder(&held.path().join("a/b"), 0o750).unwrap();
        assert_eq!(synced(), [held.path().to_owned(), held.path().join("a")]);
        let name = Path::new(held.path().file_name().unwrap());
        fs::remove_dir_all(name).unwrap();
        make_folder(name, 0o750).unwrap();
        assert_eq!(synced(), [Path::new(".")]);
    }

    #[test]
    fn a_queue_folder_that_others_may_read_stays_so_and_one_without_the_group_bit_gets_it() {
        let folder = tempfile::tempdir().unwrap();
        let (path, queue) = (folder.path().join("data"), folder.path().join("data/queue"));
        drop(DataDir::open(&path).unwrap());
        for (mode, then) in [(0o2775, 0o2775), (0o775, 0o2770), (0o2750, 0o2770)] {
            fs::set_permissions(&queue, Permissions::from_mode(mode)).unwrap();
            drop(DataDir::open(&path).unwrap());
            assert_eq!(fs::metadata(&queue).unwrap().mode() & 0o7777, then, "{mode:o}");
        }
    }

    #[test]
    fn open_and_linked_directories_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let (real, link) = (folder.path().join("real"), folder.path().join("link"));
        DataDir::open(&real).unwrap();
        std::os::unix::fs::symlink(&real, &link).unwrap();
        assert!(matches!(DataDir::open(&link), Err(StoreError::Permission(_))));
        fs::set_permissions(&real, Permissions::from_mode(0o777)).unwrap();
        assert!(matches!(DataDir::open(&real), Err(StoreError::Permission(_))));
    }
}
