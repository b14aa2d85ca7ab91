//! What a process asked of its data directory, out of the system calls that `strace -f -xx` has written down.
//!
//! A call takes effect where it ended; a sync covers what had ended before it began. A call on a file of the data directory
//! that this does not know fails the test, so that no way of writing is overlooked. Left out, because SQLite makes them anew
//! after a loss of power: the `-shm` files (mapped memory); because they have no name: spools.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use super::disk::Op;

/// The calls that are written down: those that the reader knows, and those that it must not meet.
pub const CALLS: &str = "openat,close,pwrite64,write,ftruncate,fsync,fdatasync,rename,unlink,mkdir,\
    open,creat,writev,pwritev,pwritev2,truncate,fallocate,copy_file_range,sendfile,link,linkat,symlink,symlinkat,\
    renameat,renameat2,unlinkat,rmdir,mkdirat,sync_file_range,dup,dup2,dup3,mmap";

enum Handle {
    /// The file, and where the next write without a place goes.
    File(usize, u64),
    Folder(PathBuf),
    /// Of no interest: see the header.
    Left,
}

/// Reads what one or several processes did below `root`, one after the other.
pub struct Reader {
    root: PathBuf,
    pub ops: Vec<Op>,
    files: usize,
    /// Names as they are while the processes run.
    names: HashMap<PathBuf, usize>,
    handles: HashMap<i64, Handle>,
    /// Calls that have begun: by thread, their text and how much had been asked before.
    begun: HashMap<String, (String, usize)>,
}

impl Reader {
    pub fn new(root: &Path) -> Self {
        Self {
            root: root.to_owned(),
            ops: Vec::new(),
            files: 0,
            names: HashMap::new(),
            handles: HashMap::new(),
            begun: HashMap::new(),
        }
    }

    /// Reads the calls of one process.
    pub fn read(&mut self, trace: &str) {
        self.handles.clear();
        self.begun.clear();
        for line in trace.lines() {
            let Some((thread, rest)) = line.split_once(' ') else { continue };
            let rest = rest.trim_start();
            if let Some(text) = rest.strip_suffix(" <unfinished ...>") {
                self.close_early(text);
                self.begun.insert(thread.to_owned(), (text.to_owned(), self.ops.len()));
            } else if let Some((_, end)) = rest.split_once(" resumed>") {
                let Some((text, covers)) = self.begun.remove(thread) else { continue };
                self.ended(&format!("{text}{end}"), covers);
            } else if rest.contains('(') {
                self.close_early(rest);
                self.ended(rest, self.ops.len());
            }
        }
    }

    /// A descriptor is free as soon as its closing begins.
    fn close_early(&mut self, text: &str) {
        if let Some(number) = text.strip_prefix("close(") {
            self.handles.remove(&leading_number(number));
        }
    }

    fn ended(&mut self, text: &str, covers: usize) {
        let Some((call, arguments)) = text.split_once('(') else { return };
        let Some((arguments, result)) = arguments.rsplit_once(" = ") else { return };
        let result = leading_number(result);
        if result < 0 {
            return;
        }
        match call {
            "close" => {}
            "openat" => self.opened(arguments, result),
            "mkdir" | "unlink" | "rename" => self.renamed(call, arguments),
            "pwrite64" | "write" | "ftruncate" | "fsync" | "fdatasync" => {
                self.written(call, arguments, result, covers);
            }
            _ => self.refuse_unknown(call, arguments, text),
        }
    }

    fn opened(&mut self, arguments: &str, descriptor: i64) {
        self.handles.remove(&descriptor);
        let Some(path) = strings(arguments).next().and_then(|path| self.relative(&path)) else {
            return;
        };
        let handle = if arguments.contains("O_TMPFILE") || is_left_out(&path) {
            Handle::Left
        } else if self.root.join(&path).is_dir() {
            Handle::Folder(path)
        } else if let Some(file) = self.names.get(&path) {
            if arguments.contains("O_TRUNC") {
                self.ops.push(Op::Cut { file: *file, bytes: 0 });
            }
            Handle::File(*file, 0)
        } else {
            assert!(arguments.contains("O_CREAT"), "{} was there before", path.display());
            let file = self.files;
            self.files += 1;
            self.names.insert(path.clone(), file);
            self.ops.push(Op::Create { path, file });
            Handle::File(file, 0)
        };
        self.handles.insert(descriptor, handle);
    }

    fn renamed(&mut self, call: &str, arguments: &str) {
        let mut paths = strings(arguments).map(|path| self.relative(&path));
        let (first, second) = (paths.next().flatten(), paths.next().flatten());
        drop(paths);
        let Some(path) = first.filter(|path| !is_left_out(path)) else { return };
        match (call, second) {
            ("mkdir", _) => self.ops.push(Op::MakeFolder { path }),
            ("rename", Some(to)) => {
                let file = self.names.remove(&path).expect("a renamed file was made before");
                self.names.insert(to.clone(), file);
                self.ops.push(Op::Rename { from: path, to });
            }
            _ => {
                self.names.remove(&path);
                self.ops.push(Op::Remove { path });
            }
        }
    }

    fn written(&mut self, call: &str, arguments: &str, result: i64, covers: usize) {
        let op = match (self.handles.get_mut(&leading_number(arguments)), call) {
            (None | Some(Handle::Left), _) => return,
            (Some(Handle::Folder(path)), _) => Op::SyncFolder { path: path.clone(), covers },
            (Some(Handle::File(file, _)), "fsync" | "fdatasync") => {
                Op::Sync { file: *file, covers }
            }
            (Some(Handle::File(file, _)), "ftruncate") => {
                Op::Cut { file: *file, bytes: last_number(arguments) }
            }
            (Some(Handle::File(file, place)), _) => {
                let mut bytes = unquoted(arguments);
                bytes.truncate(usize::try_from(result).expect("the call succeeded"));
                let at = if call == "write" { *place } else { last_number(arguments) };
                *place += bytes.len() as u64;
                Op::Write { file: *file, at, bytes }
            }
        };
        self.ops.push(op);
    }

    fn refuse_unknown(&self, call: &str, arguments: &str, text: &str) {
        let names_one = strings(arguments).any(|path| self.relative(&path).is_some());
        // Of a mapping, the descriptor is the argument before the last.
        let descriptor = match call {
            "mmap" => arguments.rsplit(", ").nth(1).map_or(-1, leading_number),
            _ => leading_number(arguments),
        };
        let is_shared_write = call != "mmap"
            || (arguments.contains("PROT_WRITE") && arguments.contains("MAP_SHARED"));
        let holds_one = !matches!(self.handles.get(&descriptor), None | Some(Handle::Left));
        assert!(
            !(names_one || (holds_one && is_shared_write)),
            "the model does not know {text:.200}"
        );
    }

    /// The path below the folder that holds the data directory; the data directory itself included.
    fn relative(&self, path: &[u8]) -> Option<PathBuf> {
        let path = std::str::from_utf8(path).ok()?;
        Path::new(path).strip_prefix(&self.root).ok().map(Path::to_owned)
    }
}

fn is_left_out(path: &Path) -> bool {
    let text = path.to_string_lossy();
    text.ends_with("-shm") || text.contains("/spool/")
}

fn leading_number(text: &str) -> i64 {
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '-').unwrap_or(text.len());
    text[..end].parse().unwrap_or(-1)
}

fn last_number(arguments: &str) -> u64 {
    let text = arguments.trim_end().trim_end_matches(')');
    text.rsplit(", ").next().and_then(|text| text.parse().ok()).expect("a place or a length")
}

/// The strings of a call: every character is written as `\xNN`, so none of them hides a quote.
fn strings(arguments: &str) -> impl Iterator<Item = Vec<u8>> + '_ {
    arguments.split('"').skip(1).step_by(2).map(hexadecimal)
}

fn unquoted(arguments: &str) -> Vec<u8> {
    assert!(!arguments.contains("\"..."), "strace has cut a string");
    strings(arguments).next().unwrap_or_default()
}

fn hexadecimal(text: &str) -> Vec<u8> {
    let digit = |byte: u8| match byte {
        b'0'..=b'9' => byte - b'0',
        _ => byte - b'a' + 10,
    };
    text.as_bytes().chunks_exact(4).map(|code| digit(code[2]) << 4 | digit(code[3])).collect()
}
