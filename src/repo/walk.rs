//! The walk: a proven repository as a stream of records in key order.
//!
//! ```text
//!  open:  index the blocks -> commit block present -> commit names the DID, signature good
//!  walk:  root node at the depth of its keys -> each child exactly one depth below -> keys ascend over the whole tree
//!         -> every record's block present        end of the walk = the repository is complete
//! ```
//! Any block order, duplicates and unlinked blocks are fine. Depth shrinks with each step down, so there is no cycle and
//! no recursion: the stack has at most `limits::MST_DEPTH_MAX` nodes. A node is decoded whole and its children are looked
//! up together before any of them is used, so that the cache misses of the look-ups overlap; memory of nodes is used again.

use std::sync::atomic::{AtomicBool, Ordering};

use crate::domain::did::Did;
use crate::limits::{CANCEL_CHECK_RECORDS, MST_DEPTH_MAX, RECORD_BYTES_MAX};
use crate::repo::Source;
use crate::repo::blocks::{Blocks, Section};
use crate::repo::car::Framed;
use crate::repo::cid::{Cid, Codec};
use crate::repo::commit::{self, Commit};
use crate::repo::error::RepoError;
use crate::repo::key::PublicKey;
use crate::repo::mst::{Node, checked_key};

pub use crate::repo::blocks::index_bytes;

/// Who the repository must belong to. Only `skyfill verify FILE.car` leaves something open, and says so.
#[derive(Clone, Copy, Debug, Default)]
pub struct Expected<'a> {
    /// The DID that was asked for; `None`: whatever the commit names.
    pub did: Option<&'a Did>,
    /// Its signing key as `did:key:...`; `None`: the signature is not checked.
    pub key: Option<&'a str>,
    /// Keys that it had before, for an account that moved and has not written since.
    pub earlier_keys: &'a [String],
}

/// A leaf of the tree.
#[derive(Clone, Copy, Debug)]
pub struct Leaf<'w> {
    /// `<collection>/<rkey>`.
    pub key: &'w str,
    /// CID of the record.
    pub cid: Cid,
    /// Its block.
    pub block: LeafBlock<'w>,
}

/// A record's block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LeafBlock<'w> {
    /// Its bytes.
    Held(&'w [u8]),
    /// It has this many bytes, more than `limits::RECORD_BYTES_MAX`.
    TooLarge(u64),
}

/// A walk under way.
pub struct Walk<'s> {
    blocks: Blocks<'s>,
    commit: Commit,
    stack: Vec<Frame>,
    /// Frames that have been left, for the next nodes.
    spare: Vec<Frame>,
    last_key: String,
    /// Bytes of the collection in it, with the slash.
    last_collection: usize,
    leaves: u64,
    cancel: &'s AtomicBool,
}

/// A node whose children have been found.
#[derive(Default)]
struct Frame {
    node: Node,
    depth: u32,
    /// The records of all entries, then the subtrees that there are, in order.
    found: Vec<Section>,
    /// 0: left subtree; then for entry `i` 2i+1: its record, 2i+2: the subtree after it.
    step: usize,
    /// Subtrees that have been visited.
    visited: usize,
}

impl<'s> Walk<'s> {
    /// Indexes the blocks and proves the commit.
    ///
    /// # Errors
    /// [`RepoError`]: what is wrong with the repository; [`RepoError::Missing`] without the commit's block.
    pub fn open(
        source: &'s dyn Source,
        framed: &Framed,
        expected: &Expected<'_>,
        cancel: &'s AtomicBool,
    ) -> Result<Self, RepoError> {
        let mut blocks = Blocks::index(source, framed)?;
        let unusable = RepoError::Signature("the DID document's key is unusable");
        let mut keys = Vec::new();
        if let Some(key) = expected.key {
            keys.push(PublicKey::from_did_key(key).ok_or(unusable)?);
            keys.extend(
                expected.earlier_keys.iter().filter_map(|key| PublicKey::from_did_key(key)),
            );
        }
        if framed.root.codec != Codec::DagCbor {
            return Err(RepoError::tree("a root that is no commit"));
        }
        let section = find(&mut blocks, &framed.root, "the commit")?;
        let block =
            blocks.read(section)?.ok_or_else(|| RepoError::tree("a commit of over 2 MiB"))?;
        let commit = commit::prove(framed.root, block, expected.did.map(Did::as_str), &keys)?;
        let mut walk = Self {
            blocks,
            commit,
            stack: Vec::new(),
            spare: Vec::new(),
            last_key: String::new(),
            last_collection: 0,
            leaves: 0,
            cancel,
        };
        let root = find(&mut walk.blocks, &walk.commit.data, "the root node")?;
        walk.descend(walk.commit.data, root, None)?;
        Ok(walk)
    }

    /// The proven commit.
    #[must_use]
    pub fn commit(&self) -> &Commit {
        &self.commit
    }

    /// Leaves handed out so far.
    #[must_use]
    pub fn leaves(&self) -> u64 {
        self.leaves
    }

    /// The next record, or `None` at the proven end.
    ///
    /// # Errors
    /// [`RepoError`]: what is wrong with the tree; the repository is then not proven.
    pub fn next_leaf(&mut self) -> Result<Option<Leaf<'_>>, RepoError> {
        loop {
            let Some(frame) = self.stack.last_mut() else { return Ok(None) };
            let step = frame.step;
            frame.step += 1;
            let index = step.wrapping_sub(1) / 2;
            let child = match step {
                0 => frame.node.left,
                _ if index >= frame.node.entries.len() => {
                    self.spare.extend(self.stack.pop());
                    continue;
                }
                _ if step % 2 == 1 => return self.leaf(index).map(Some),
                _ => frame.node.entries[index].right,
            };
            if let Some(cid) = child {
                let section = frame.found[frame.node.entries.len() + frame.visited];
                frame.visited += 1;
                let depth = frame.depth;
                self.descend(cid, section, Some(depth))?;
            }
        }
    }

    fn leaf(&mut self, index: usize) -> Result<Leaf<'_>, RepoError> {
        if self.leaves.is_multiple_of(CANCEL_CHECK_RECORDS) && self.cancel.load(Ordering::Acquire) {
            return Err(RepoError::Cancelled);
        }
        let Some(frame) = self.stack.last() else {
            return Err(RepoError::tree("a leaf outside a node"));
        };
        let entry = &frame.node.entries[index];
        let key = frame.node.key(entry);
        if self.leaves > 0 && self.last_key.as_bytes() >= key {
            return Err(RepoError::tree("keys out of order"));
        }
        let before = (self.last_key.as_str(), self.last_collection);
        let (text, collection) = checked_key(key, before)?;
        self.last_collection = collection;
        self.last_key.clear();
        self.last_key.push_str(text);
        self.leaves += 1;
        let section = frame.found[index];
        let block = if section.bytes > RECORD_BYTES_MAX as u64 {
            LeafBlock::TooLarge(section.bytes)
        } else {
            match self.blocks.read(section)? {
                Some(bytes) => LeafBlock::Held(bytes),
                None => LeafBlock::TooLarge(section.bytes),
            }
        };
        Ok(Leaf { key: &self.last_key, cid: entry.value, block })
    }

    /// Decodes a node, checks it against its parent's depth and finds all its children.
    fn descend(&mut self, cid: Cid, section: Section, above: Option<u32>) -> Result<(), RepoError> {
        if self.cancel.load(Ordering::Acquire) {
            return Err(RepoError::Cancelled);
        }
        if self.stack.len() >= MST_DEPTH_MAX {
            return Err(RepoError::tree("deeper than a SHA-256 allows"));
        }
        if cid.codec != Codec::DagCbor {
            return Err(RepoError::tree("a node that is no DAG-CBOR block"));
        }
        let block = self.blocks.read(section)?;
        let block = block.ok_or_else(|| RepoError::tree("a node of over 2 MiB"))?;
        let mut frame = self.spare.pop().unwrap_or_default();
        frame.node.read_again(block)?;
        (frame.depth, frame.step, frame.visited) = (checked_depth(&frame.node, above)?, 0, 0);
        frame.found.clear();
        let Frame { node, found, .. } = &mut frame;
        let records = node.entries.iter().map(|entry| &entry.value);
        let nodes = node.left.iter().chain(node.entries.iter().filter_map(|it| it.right.as_ref()));
        if !self.blocks.find_all(records.clone().chain(nodes.clone()), found)? {
            let missing = records.chain(nodes).nth(found.len()).copied().unwrap_or(cid);
            let what = if found.len() < node.entries.len() { "the record" } else { "the node" };
            return Err(RepoError::Missing { what, cid: missing });
        }
        self.blocks.touch(found.iter().take(node.entries.len()).copied());
        self.stack.push(frame);
        Ok(())
    }
}

/// The depth of a node: its keys' for the root, else exactly one below its parent's.
fn checked_depth(node: &Node, above: Option<u32>) -> Result<u32, RepoError> {
    let own = node.depth()?;
    let depth = match (above, own) {
        (None, Some(own)) => own,
        (None, None) if node.left.is_none() => 0,
        (None, None) => return Err(RepoError::tree("a root without keys above a tree")),
        (Some(0), _) => return Err(RepoError::tree("a node below the lowest depth")),
        (Some(_), None) if node.left.is_none() => return Err(RepoError::tree("an empty node")),
        (Some(above), own) if own.is_some_and(|own| own != above - 1) => {
            return Err(RepoError::tree("a key at the wrong depth"));
        }
        (Some(above), _) => above - 1,
    };
    let has_child = node.left.is_some() || node.entries.iter().any(|entry| entry.right.is_some());
    if depth == 0 && has_child {
        return Err(RepoError::tree("a node below the lowest depth"));
    }
    Ok(depth)
}

fn find(blocks: &mut Blocks<'_>, cid: &Cid, what: &'static str) -> Result<Section, RepoError> {
    blocks.find(cid)?.ok_or(RepoError::Missing { what, cid: *cid })
}
