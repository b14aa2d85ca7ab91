//! A disk that remembers what was asked of it, and what of that it holds after the power went.
//!
//! ```text
//!  bytes   durable once their file was synced after they were written; otherwise each write and cut by itself may be there,
//!          be missing, be there in part (whole sectors of 512 bytes), or have left zeros where the file grew
//!  names   durable once their folder was synced after the change; otherwise the first few changes of a folder may be there
//! ```
//! A sync covers what was asked before it began, and counts from its end. Names are kept in order within a folder, as every
//! journaling file system does; data and names are independent, as POSIX allows and ext4, XFS and btrfs are not always.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use fastrand::Rng;

/// What a disk writes whole or not at all, bytes.
const SECTOR: u64 = 512;

/// One thing that was asked of the disk. Files are known by number, so that a name may change.
#[derive(Clone, Debug)]
pub enum Op {
    Create {
        path: PathBuf,
        file: usize,
    },
    MakeFolder {
        path: PathBuf,
    },
    Rename {
        from: PathBuf,
        to: PathBuf,
    },
    Remove {
        path: PathBuf,
    },
    Write {
        file: usize,
        at: u64,
        bytes: Vec<u8>,
    },
    Cut {
        file: usize,
        bytes: u64,
    },
    /// Makes the file's writes before operation `covers` durable.
    Sync {
        file: usize,
        covers: usize,
    },
    /// The same for the names in a folder.
    SyncFolder {
        path: PathBuf,
        covers: usize,
    },
}

/// What became of that which was not synced.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Loss {
    /// It is gone: names and bytes.
    Everything,
    /// Names are there, bytes are not: empty files, old contents.
    Bytes,
    /// Nothing: as after a kill, or on a disk with a battery.
    Nothing,
    /// Some of it, chosen by this seed, the last write of each file torn.
    Some(u64),
}

/// What is found afterwards.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Image {
    pub folders: Vec<PathBuf>,
    pub files: BTreeMap<PathBuf, Vec<u8>>,
}

#[derive(Clone, Copy)]
enum Node {
    Folder,
    File(usize),
}

/// What is found if the power goes after the first `count` of `ops`.
pub fn after_power_loss(ops: &[Op], count: usize, loss: Loss) -> Image {
    let ops = &ops[..count];
    let (mut synced, mut folders_synced) = (HashMap::new(), HashMap::new());
    for op in ops {
        match op {
            Op::Sync { file, covers } => {
                synced.insert(*file, *covers);
            }
            Op::SyncFolder { path, covers } => {
                folders_synced.insert(path.clone(), *covers);
            }
            _ => {}
        }
    }
    let mut rng = Rng::with_seed(match loss {
        Loss::Some(seed) => seed,
        _ => 0,
    });
    let names = names(ops, &folders_synced, loss, &mut rng);
    let mut image = Image::default();
    for (path, node) in &names {
        let is_reachable = path
            .ancestors()
            .skip(1)
            .take_while(|folder| !folder.as_os_str().is_empty())
            .all(|folder| matches!(names.get(folder), Some(Node::Folder)));
        match node {
            _ if !is_reachable => {}
            Node::Folder => image.folders.push(path.clone()),
            Node::File(file) => {
                let covers = synced.get(file).copied().unwrap_or(0);
                image.files.insert(path.clone(), content(ops, *file, covers, loss, &mut rng));
            }
        }
    }
    image
}

fn parent(path: &Path) -> PathBuf {
    path.parent().unwrap_or(Path::new("")).to_owned()
}

/// The folder that a change of names belongs to.
fn folder_of(op: &Op) -> Option<PathBuf> {
    match op {
        Op::Create { path, .. } | Op::MakeFolder { path } | Op::Remove { path } => {
            Some(parent(path))
        }
        Op::Rename { to, .. } => Some(parent(to)),
        _ => None,
    }
}

fn names(
    ops: &[Op],
    synced: &HashMap<PathBuf, usize>,
    loss: Loss,
    rng: &mut Rng,
) -> BTreeMap<PathBuf, Node> {
    let covers = |folder: &PathBuf| synced.get(folder).copied().unwrap_or(0);
    // How many changes of each folder that were not synced are there all the same.
    let mut pending: BTreeMap<PathBuf, usize> = BTreeMap::new();
    for (index, op) in ops.iter().enumerate() {
        if let Some(folder) = folder_of(op).filter(|folder| index >= covers(folder)) {
            *pending.entry(folder).or_default() += 1;
        }
    }
    for count in pending.values_mut() {
        *count = match loss {
            Loss::Everything => 0,
            Loss::Bytes | Loss::Nothing => *count,
            Loss::Some(_) => rng.usize(..=*count),
        };
    }
    let mut names = BTreeMap::new();
    for (index, op) in ops.iter().enumerate() {
        let Some(folder) = folder_of(op) else { continue };
        if index >= covers(&folder) {
            let left = pending.get_mut(&folder).expect("it was counted above");
            if *left == 0 {
                continue;
            }
            *left -= 1;
        }
        match op {
            Op::Create { path, file } => drop(names.insert(path.clone(), Node::File(*file))),
            Op::MakeFolder { path } => drop(names.insert(path.clone(), Node::Folder)),
            Op::Remove { path } => drop(names.remove(path)),
            Op::Rename { from, to } => {
                if let Some(node) = names.remove(from) {
                    names.insert(to.clone(), node);
                }
            }
            _ => {}
        }
    }
    names
}

fn content(ops: &[Op], file: usize, covers: usize, loss: Loss, rng: &mut Rng) -> Vec<u8> {
    let is_own = |op: &Op| match op {
        Op::Write { file: other, .. } | Op::Cut { file: other, .. } => *other == file,
        _ => false,
    };
    let last = ops.iter().rposition(is_own).unwrap_or(0);
    let mut content = Vec::new();
    for (index, op) in ops.iter().enumerate().filter(|(_, op)| is_own(op)) {
        let is_there = index < covers
            || match loss {
                Loss::Everything | Loss::Bytes => false,
                Loss::Nothing => true,
                Loss::Some(_) => rng.bool(),
            };
        match op {
            Op::Cut { bytes, .. } if is_there => content.resize(length(*bytes), 0),
            Op::Write { at, bytes, .. } => {
                let is_torn = index == last && index >= covers && matches!(loss, Loss::Some(_));
                let kept = match (is_there, is_torn) {
                    (_, true) => torn(*at, bytes.len() as u64, rng),
                    (true, false) => bytes.len() as u64,
                    (false, false) => 0,
                };
                put(&mut content, *at, &bytes[..length(kept)]);
                // The file grew, its bytes were not written.
                let grew = length(*at + bytes.len() as u64);
                if kept == 0 && matches!(loss, Loss::Some(_)) && content.len() < grew && rng.bool()
                {
                    content.resize(grew, 0);
                }
            }
            _ => {}
        }
    }
    content
}

/// How many bytes of a write of `bytes` at `at` are there when it is torn: up to the end of one of its sectors.
fn torn(at: u64, bytes: u64, rng: &mut Rng) -> u64 {
    let sectors = (at + bytes).div_ceil(SECTOR) - at / SECTOR;
    ((at / SECTOR + rng.u64(..sectors.max(1))) * SECTOR).saturating_sub(at).min(bytes)
}

fn put(content: &mut Vec<u8>, at: u64, bytes: &[u8]) {
    if bytes.is_empty() {
        return;
    }
    let (at, end) = (length(at), length(at) + bytes.len());
    if content.len() < end {
        content.resize(end, 0);
    }
    content[at..end].copy_from_slice(bytes);
}

fn length(bytes: u64) -> usize {
    usize::try_from(bytes).expect("a test's files fit into memory")
}

impl Image {
    /// Makes it below `root`.
    pub fn write(&self, root: &Path) {
        for folder in &self.folders {
            std::fs::create_dir_all(root.join(folder)).expect("a folder can be made");
        }
        for (path, content) in &self.files {
            std::fs::write(root.join(path), content).expect("a file can be written");
        }
    }
}
