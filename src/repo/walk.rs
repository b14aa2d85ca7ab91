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
use crate::limits::{MST_DEPTH_MAX, RECORD_BYTES_MAX};
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
        if self.cancel.load(Ordering::Acquire) {
            return Err(RepoError::Cancelled);
        }
        let Some(frame) = self.stack.last() else {
            return Err(RepoError::tree("a leaf outside a node"));
        };
        let entry = &frame.node.entries[index];
        let key = frame.node.key(entry);
        // None is empty: an empty first key has no prefix length that is right.
        if self.last_key.as_bytes() >= key {
            return Err(RepoError::tree("keys out of order"));
        }
        let before = (self.last_key.as_str(), self.last_collection);
        let (text, collection) = checked_key(key, before)?;
        self.last_collection = collection;
        self.last_key.clear();
        self.last_key.push_str(text);
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

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use ipld_core::ipld::Ipld;
    use sha2::Sha256;

    use super::*;
    use crate::repo::car::Framer;
    use crate::repo::mst::key_depth;

    type Link = ::cid::Cid;
    /// A key, and how long its record is; an error for one that is too large.
    type Seen = (String, Result<usize, u64>);
    /// Key, record, subtree after it.
    type Written<'k> = (&'k str, Link, Option<Link>);

    /// Blocks of a repository.
    #[derive(Default)]
    struct Forge(BTreeMap<Link, Vec<u8>>);

    fn map<const N: usize>(fields: [(&str, Ipld); N]) -> Ipld {
        Ipld::Map(fields.map(|(name, value)| (name.to_owned(), value)).into())
    }

    impl Forge {
        fn add(&mut self, block: Vec<u8>) -> Link {
            let hash = <Sha256 as sha2::Digest>::digest(&block);
            let link = Link::new_v1(0x71, ::cid::multihash::Multihash::wrap(0x12, &hash).unwrap());
            self.0.insert(link, block);
            link
        }

        fn node(&mut self, left: Option<Link>, entries: &[Written<'_>]) -> Link {
            let link_or_null = |link: Option<Link>| link.map_or(Ipld::Null, Ipld::Link);
            let (mut before, mut written) = ("", Vec::new());
            for (key, record, right) in entries {
                let shared = key.bytes().zip(before.bytes()).take_while(|(a, b)| a == b).count();
                written.push(map([
                    ("p", Ipld::Integer(shared as i128)),
                    ("k", Ipld::Bytes(key.as_bytes()[shared..].to_vec())),
                    ("v", Ipld::Link(*record)),
                    ("t", link_or_null(*right)),
                ]));
                before = key;
            }
            let node = map([("l", link_or_null(left)), ("e", Ipld::List(written))]);
            self.add(serde_ipld_dagcbor::to_vec(&node).unwrap())
        }

        /// The repository of the tree below `data`, without the block `missing`.
        fn car(&mut self, data: Link, missing: Option<Link>) -> (Vec<u8>, Framed) {
            let fields = [
                ("did", Ipld::String("did:web:example.com".to_owned())),
                ("version", Ipld::Integer(3)),
                ("rev", Ipld::String("3kdgeujwlq32y".to_owned())),
                ("data", Ipld::Link(data)),
                ("sig", Ipld::Bytes(vec![0; 64])),
            ];
            let root = self.add(serde_ipld_dagcbor::to_vec(&map(fields)).unwrap());
            let roots = Ipld::List(vec![Ipld::Link(root)]);
            let header = map([("roots", roots), ("version", Ipld::Integer(1))]);
            let header = serde_ipld_dagcbor::to_vec(&header).unwrap();
            let mut car = vec![u8::try_from(header.len()).unwrap()];
            car.extend(header);
            for (link, block) in self.0.iter().filter(|(link, _)| missing != Some(**link)) {
                let mut length = link.to_bytes().len() + block.len();
                while length > 0x7f {
                    car.push((length & 0x7f) as u8 | 0x80);
                    length >>= 7;
                }
                car.push(length as u8);
                car.extend(link.to_bytes());
                car.extend(block);
            }
            let mut framer = Framer::new(u64::MAX);
            framer.push(&car).unwrap();
            (car, framer.finish().unwrap())
        }

        /// What a walk over it hands out.
        fn walked(&mut self, data: Link, missing: Option<Link>) -> Result<Vec<Seen>, RepoError> {
            let ((car, framed), cancel) = (self.car(data, missing), AtomicBool::new(false));
            let mut walk = Walk::open(&car, &framed, &Expected::default(), &cancel)?;
            let mut leaves = Vec::new();
            while let Some(leaf) = walk.next_leaf()? {
                let length = match leaf.block {
                    LeafBlock::Held(bytes) => Ok(bytes.len()),
                    LeafBlock::TooLarge(bytes) => Err(bytes),
                };
                leaves.push((leaf.key.to_owned(), length));
            }
            Ok(leaves)
        }

        fn keys(&mut self, data: Link) -> Result<Vec<String>, String> {
            let leaves = self.walked(data, None).map_err(|error| error.to_string())?;
            Ok(leaves.into_iter().map(|(key, _)| key).collect())
        }
    }

    /// Ascending keys of these depths.
    fn keys<const N: usize>(depths: [u32; N]) -> [String; N] {
        let mut all = (10_000_u32..).map(|n| format!("a.b.c/{n}"));
        depths.map(|depth| all.find(|key| key_depth(key.as_bytes()) == depth).unwrap())
    }

    #[test]
    fn an_empty_repository_is_one_node_without_anything() {
        let mut forge = Forge::default();
        let root = forge.node(None, &[]);
        assert_eq!(forge.keys(root), Ok(Vec::new()));
    }

    #[test]
    fn each_child_is_exactly_one_depth_below_its_parent() {
        let mut forge = Forge::default();
        let record = forge.add(b"record".to_vec());
        let all = keys([0, 1, 0, 2, 0, 1, 0]);
        let [a, b, c, d, e, f, g] = all.each_ref().map(String::as_str);
        let leaf = |forge: &mut Forge, key| Some(forge.node(None, &[(key, record, None)]));
        let leaves = [a, c, e, g].map(|key| leaf(&mut forge, key));
        let left = forge.node(leaves[0], &[(b, record, leaves[1])]);
        let right = forge.node(leaves[2], &[(f, record, leaves[3])]);
        let whole = forge.node(Some(left), &[(d, record, Some(right))]);
        assert_eq!(forge.keys(whole), Ok(all.to_vec()));
        // A depth without keys is a node all the same.
        let between = forge.node(leaves[0], &[]);
        let bridged = forge.node(Some(between), &[(d, record, None)]);
        assert_eq!(forge.keys(bridged), Ok(vec![a.to_owned(), d.to_owned()]));

        let empty = Some(forge.node(None, &[]));
        // Its block need not even be there.
        let nowhere = Some(Forge::default().node(None, &[("a.b.c/nowhere", record, None)]));
        let (wrong, lowest) = ("a key at the wrong depth", "a node below the lowest depth");
        for (root, error) in [
            (forge.node(leaves[0], &[(d, record, None)]), wrong),
            (forge.node(None, &[(d, record, leaves[2])]), wrong),
            (forge.node(Some(whole), &[(f, record, None)]), wrong),
            (forge.node(leaves[0], &[(c, record, None)]), lowest),
            (forge.node(None, &[(a, record, leaves[1])]), lowest),
            (forge.node(nowhere, &[(a, record, None)]), lowest),
            (forge.node(None, &[(a, record, nowhere)]), lowest),
            (forge.node(empty, &[(a, record, None)]), lowest),
            (forge.node(empty, &[(b, record, None)]), "an empty node"),
            (forge.node(None, &[(b, record, empty)]), "an empty node"),
            (forge.node(leaves[0], &[]), "a root without keys above a tree"),
            (forge.node(Some(whole), &[]), "a root without keys above a tree"),
            (forge.node(leaves[1], &[(b, record, None)]), "keys out of order"),
            (forge.node(None, &[("", record, None)]), "a key whose prefix length is wrong"),
        ] {
            assert_eq!(forge.keys(root), Err(format!("invalid tree: {error}")));
        }
    }

    #[test]
    fn what_is_missing_is_named() {
        let mut forge = Forge::default();
        let all = keys([0, 1, 0, 1, 0]);
        let [a, b, c, d, e] = all.each_ref().map(String::as_str);
        let records = [1, 2, 3, 4, 5].map(|n| forge.add(vec![n]));
        let mut leaf = |key, n: usize| forge.node(None, &[(key, records[n], None)]);
        let leaves = [leaf(a, 0), leaf(c, 2), leaf(e, 4)];
        let entries = [(b, records[1], Some(leaves[1])), (d, records[3], Some(leaves[2]))];
        let root = forge.node(Some(leaves[0]), &entries);
        assert_eq!(forge.keys(root), Ok(all.to_vec()));
        let commit = *forge
            .0
            .keys()
            .find(|link| {
                let known = [&records[..], &leaves[..], &[root]].concat();
                !known.contains(link)
            })
            .unwrap();
        let mut missing = |link: Link| match forge.walked(root, Some(link)) {
            Err(RepoError::Missing { what, cid }) => (what, cid.to_string() == link.to_string()),
            other => panic!("{other:?}"),
        };
        assert_eq!(missing(commit), ("the commit", true));
        assert_eq!(missing(root), ("the root node", true));
        for record in records {
            assert_eq!(missing(record), ("the record", true));
        }
        for leaf in leaves {
            assert_eq!(missing(leaf), ("the node", true));
        }
    }

    #[test]
    fn a_walk_that_is_cancelled_ends_at_its_next_record_or_node() {
        let mut forge = Forge::default();
        let record = forge.add(b"record".to_vec());
        let all = keys([1, 0]);
        let leaf = forge.node(None, &[(&all[1], record, None)]);
        let root = forge.node(None, &[(&all[0], record, Some(leaf))]);
        let (car, framed) = forge.car(root, None);
        for before in 0..3 {
            let cancel = AtomicBool::new(false);
            let mut walk = Walk::open(&car, &framed, &Expected::default(), &cancel).unwrap();
            for key in &all[..before] {
                assert_eq!(walk.next_leaf().unwrap().unwrap().key, key);
            }
            cancel.store(true, Ordering::Release);
            // Behind the last record nothing is left to cancel.
            let is_cancelled = matches!(walk.next_leaf(), Err(RepoError::Cancelled));
            assert_eq!(is_cancelled, before < 2, "after {before} records");
        }
        let cancelled = AtomicBool::new(true);
        let error = Walk::open(&car, &framed, &Expected::default(), &cancelled).err();
        assert!(matches!(error, Some(RepoError::Cancelled)));
    }

    #[test]
    fn a_record_is_handed_out_up_to_the_limit_and_not_beyond() {
        let mut forge = Forge::default();
        let all = keys([0, 0]);
        let records = [0, 1].map(|more| forge.add(vec![7; RECORD_BYTES_MAX + more]));
        let root = forge.node(None, &[(&all[0], records[0], None), (&all[1], records[1], None)]);
        let [held, too_large] = [Ok(RECORD_BYTES_MAX), Err(RECORD_BYTES_MAX as u64 + 1)];
        let [first, second] = all;
        let leaves = forge.walked(root, None).unwrap();
        assert_eq!(leaves, [(first, held), (second, too_large)]);
    }
}
