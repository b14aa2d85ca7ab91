//! The door in tests: remembers what this thread has asked of the disk, and lets the Nth thing fail. Only in tests.

use std::cell::RefCell;
use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};

use crate::store::disk_model::Op;
use crate::store::durable::Asked;

/// What fails, and how.
#[derive(Clone, Copy, Debug)]
pub struct Failing {
    /// The Nth thing asked, from 1.
    pub at: usize,
    /// Everything after it, too.
    pub persistent: bool,
    /// The system's number of the error.
    pub errno: i32,
}

/// What this thread has asked for.
#[derive(Debug, Default)]
pub struct Door {
    /// What was done, by name within its folder.
    pub ops: Vec<Op>,
    /// Things asked for, those that failed included.
    pub asked: usize,
    /// What is to fail.
    pub failing: Option<Failing>,
    /// What failed: its name.
    pub failed: Vec<&'static str>,
    /// Folders whose names were made durable, by their paths as they were asked for.
    pub synced: Vec<PathBuf>,
    files: HashMap<PathBuf, usize>,
    next_file: usize,
}

thread_local! {
    static DOOR: RefCell<Door> = RefCell::default();
}

/// A new door for this thread; gives what the old one has seen.
pub fn renew(failing: Option<Failing>) -> Door {
    DOOR.replace(Door { failing, ..Door::default() })
}

/// Operations that were done so far.
pub fn count() -> usize {
    DOOR.with_borrow(|door| door.ops.len())
}

/// Called for everything that is about to be done.
pub fn pass(path: &Path, asked: &Asked<'_>) -> io::Result<()> {
    DOOR.with_borrow_mut(|door| {
        door.asked += 1;
        if let Some(failing) = door.failing
            && (door.asked == failing.at || (failing.persistent && door.asked > failing.at))
        {
            door.failed.push(name(asked));
            // Half of a write that fails may be there all the same.
            if let Asked::Write { at, bytes } = asked {
                door.record(path, &Asked::Write { at: *at, bytes: &bytes[..bytes.len() / 2] });
            }
            return Err(io::Error::from_raw_os_error(failing.errno));
        }
        door.record(path, asked);
        Ok(())
    })
}

const fn name(asked: &Asked<'_>) -> &'static str {
    match asked {
        Asked::Create => "create",
        Asked::Write { .. } => "write",
        Asked::Cut { .. } => "cut",
        Asked::Sync => "sync",
        Asked::Rename { .. } => "rename",
        Asked::Remove => "remove",
        Asked::SyncFolder => "sync folder",
    }
}

impl Door {
    fn record(&mut self, path: &Path, asked: &Asked<'_>) {
        let short = |path: &Path| PathBuf::from(path.file_name().unwrap_or_default());
        let (covers, known) = (self.ops.len(), self.files.get(path).copied());
        let op = match (asked, known) {
            (Asked::Create, _) => {
                let file = self.next_file;
                self.next_file += 1;
                self.files.insert(path.to_owned(), file);
                Op::Create { path: short(path), file }
            }
            (Asked::Write { at, bytes }, Some(file)) => {
                Op::Write { file, at: *at, bytes: bytes.to_vec() }
            }
            (Asked::Cut { bytes }, Some(file)) => Op::Cut { file, bytes: *bytes },
            (Asked::Sync, Some(file)) => Op::Sync { file, covers },
            (Asked::Rename { to }, Some(file)) => {
                self.files.remove(path);
                self.files.insert((*to).to_owned(), file);
                Op::Rename { from: short(path), to: short(to) }
            }
            (Asked::Remove, _) => {
                self.files.remove(path);
                Op::Remove { path: short(path) }
            }
            (Asked::SyncFolder, _) => {
                self.synced.push(path.to_owned());
                Op::SyncFolder { path: PathBuf::new(), covers }
            }
            // A file that this door has not seen made is of another test's making.
            (_, None) => return,
        };
        self.ops.push(op);
    }
}
