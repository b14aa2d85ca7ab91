//! MST nodes: one node's keys and links, with every rule that a node alone can show (AT Protocol, "MST Structure").
//!
//! Node: `{l: link or null, e: [{p, k, v, t: link or null}]}`. An entry's key is the first `p` bytes of the key before it in
//! the node and the bytes `k`; `p` is as large as it can be, and 0 for the first. All keys of a node have the node's depth:
//! half the leading zero bits of their SHA-256. A key is `<nsid>/<rkey>`, ASCII, at most 1,024 bytes.

use sha2::{Digest, Sha256};

use crate::domain::nsid::is_nsid;
use crate::domain::rkey::is_rkey;
use crate::limits::{MST_KEY_BYTES_MAX, MST_NODE_KEYS_BYTES_MAX};
use crate::repo::cbor::{CborError, Item, Reader};
use crate::repo::cid::{CID_BYTES, Cid};
use crate::repo::error::RepoError;

/// A decoded node. Keys lie one after another in one buffer.
#[derive(Clone, Debug, Default)]
pub struct Node {
    /// Subtree before the first entry.
    pub left: Option<Cid>,
    /// Entries in order.
    pub entries: Vec<Entry>,
    keys: Vec<u8>,
}

/// One entry of a node.
#[derive(Clone, Copy, Debug)]
pub struct Entry {
    key_start: usize,
    key_end: usize,
    /// The record.
    pub value: Cid,
    /// Subtree after this entry.
    pub right: Option<Cid>,
}

impl Node {
    /// Decodes a node.
    ///
    /// # Errors
    /// [`RepoError::Tree`] says which rule is broken.
    pub fn read(block: &[u8]) -> Result<Self, RepoError> {
        let mut node = Self::default();
        node.read_again(block)?;
        Ok(node)
    }

    /// Decodes another node into the same memory.
    ///
    /// # Errors
    /// [`RepoError::Tree`]; the node is then undefined.
    pub fn read_again(&mut self, block: &[u8]) -> Result<(), RepoError> {
        self.clear();
        if self.read_canonical(block).is_some() {
            return Ok(());
        }
        self.clear();
        self.read_any(block)
    }

    fn clear(&mut self) {
        self.left = None;
        self.entries.clear();
        self.keys.clear();
    }

    /// A node as everybody writes it, canonical DAG-CBOR, by comparing what lies between its values; `None` says nothing.
    fn read_canonical(&mut self, block: &[u8]) -> Option<()> {
        let (count, mut rest) = head(0x80, block.strip_prefix(b"\xa2\x61e")?)?;
        for _ in 0..count {
            let (length, suffix) = head(0x40, rest.strip_prefix(b"\xa4\x61k")?)?;
            let (suffix, after) = suffix.split_at_checked(length)?;
            let (prefix, after) = head(0x00, after.strip_prefix(b"\x61p")?)?;
            let (right, after) = canonical_link(after.strip_prefix(b"\x61t")?)?;
            let (value, after) = canonical_link(after.strip_prefix(b"\x61v")?)?;
            let (key_start, key_end) = self.push_key(prefix as u64, suffix).ok()?;
            self.entries.push(Entry { key_start, key_end, value: value?, right });
            rest = after;
        }
        (self.left, rest) = canonical_link(rest.strip_prefix(b"\x61l")?)?;
        rest.is_empty().then_some(())
    }

    /// Any node.
    fn read_any(&mut self, block: &[u8]) -> Result<(), RepoError> {
        let mut reader = Reader::new(block);
        let Item::Map(2) = reader.read().map_err(not_cbor)? else { return Err(not_a_node()) };
        let mut seen = (false, false);
        for _ in 0..2 {
            match reader.read().map_err(not_cbor)? {
                Item::Text(b"l") if !seen.0 => {
                    self.left = link_or_null(&mut reader)?;
                    seen.0 = true;
                }
                Item::Text(b"e") if !seen.1 => {
                    self.read_entries(&mut reader)?;
                    seen.1 = true;
                }
                _ => return Err(not_a_node()),
            }
        }
        if !reader.is_at_end() {
            return Err(RepoError::tree("a node with bytes after it"));
        }
        Ok(())
    }

    fn read_entries(&mut self, reader: &mut Reader<'_>) -> Result<(), RepoError> {
        let Item::Array(count) = reader.read().map_err(not_cbor)? else { return Err(not_a_node()) };
        for _ in 0..count {
            self.read_entry(reader)?;
        }
        Ok(())
    }

    fn read_entry(&mut self, reader: &mut Reader<'_>) -> Result<(), RepoError> {
        let Item::Map(4) = reader.read().map_err(not_cbor)? else { return Err(not_a_node()) };
        let (mut prefix, mut suffix, mut value, mut right) = (None, None, None, None);
        for _ in 0..4 {
            let Item::Text(field) = reader.read().map_err(not_cbor)? else {
                return Err(not_a_node());
            };
            match field {
                b"p" => match reader.read().map_err(not_cbor)? {
                    Item::Unsigned(bytes) => prefix = Some(bytes),
                    _ => return Err(not_a_node()),
                },
                b"k" => match reader.read().map_err(not_cbor)? {
                    Item::Bytes(bytes) => suffix = Some(bytes),
                    _ => return Err(not_a_node()),
                },
                b"v" => value = link_or_null(reader)?,
                b"t" => right = Some(link_or_null(reader)?),
                _ => return Err(not_a_node()),
            }
        }
        match (prefix, suffix, value, right) {
            (Some(prefix), Some(suffix), Some(value), Some(right)) => {
                let (key_start, key_end) = self.push_key(prefix, suffix)?;
                self.entries.push(Entry { key_start, key_end, value, right });
                Ok(())
            }
            _ => Err(not_a_node()),
        }
    }

    /// Appends a key from its prefix length and suffix.
    fn push_key(&mut self, prefix: u64, suffix: &[u8]) -> Result<(usize, usize), RepoError> {
        let (start, end) =
            self.entries.last().map_or((0, 0), |last| (last.key_start, last.key_end));
        let prefix = usize::try_from(prefix).unwrap_or(usize::MAX);
        let is_maximal =
            suffix.first() != self.keys.get(start..end).and_then(|key| key.get(prefix));
        if prefix > end - start || !is_maximal {
            return Err(RepoError::tree("a key whose prefix length is wrong"));
        }
        if prefix + suffix.len() > MST_KEY_BYTES_MAX {
            return Err(RepoError::tree("a key of more than 1,024 bytes"));
        }
        if self.keys.len() + prefix + suffix.len() > MST_NODE_KEYS_BYTES_MAX {
            return Err(RepoError::tree("a node whose keys are more than 2 MiB"));
        }
        let key_start = self.keys.len();
        self.keys.extend_from_within(start..start + prefix);
        self.keys.extend_from_slice(suffix);
        Ok((key_start, self.keys.len()))
    }

    /// Bytes of an entry's key.
    #[must_use]
    pub fn key(&self, entry: &Entry) -> &[u8] {
        &self.keys[entry.key_start..entry.key_end]
    }

    /// The depth that all keys share; `None` without entries.
    ///
    /// # Errors
    /// [`RepoError::Tree`] if they differ.
    pub fn depth(&self) -> Result<Option<u32>, RepoError> {
        let mut depth = None;
        for entry in &self.entries {
            let this = key_depth(self.key(entry));
            if depth.is_some_and(|depth| depth != this) {
                return Err(RepoError::tree("keys of different depth in one node"));
            }
            depth = Some(this);
        }
        Ok(depth)
    }
}

/// Depth of a key: leading zero bits of its SHA-256, two a level.
#[must_use]
pub fn key_depth(key: &[u8]) -> u32 {
    let mut zeros = 0;
    for byte in Sha256::digest(key) {
        zeros += byte.leading_zeros();
        if byte != 0 {
            break;
        }
    }
    zeros / 2
}

/// The key as text, if it is `<nsid>/<rkey>`, and the bytes of its collection with the slash. `before` is a key that has been
/// checked, with its own, or empty: keys come in order, so the collection is nearly always its collection, and then only the record key is looked at.
///
/// # Errors
/// [`RepoError::Tree`] for anything else.
pub fn checked_key<'k>(
    key: &'k [u8],
    before: (&str, usize),
) -> Result<(&'k str, usize), RepoError> {
    let wrong = || RepoError::tree("a key that is no collection and record key");
    let text = std::str::from_utf8(key).map_err(|_| wrong())?;
    let known = before.0.as_bytes().get(..before.1).unwrap_or_default();
    if !known.is_empty() && key.starts_with(known) {
        let is_valid = is_rkey(&text[known.len()..]);
        return if is_valid { Ok((text, known.len())) } else { Err(wrong()) };
    }
    let (collection, rkey) = text.split_once('/').ok_or_else(wrong)?;
    let is_valid = is_nsid(collection) && is_rkey(rkey);
    if is_valid { Ok((text, collection.len() + 1)) } else { Err(wrong()) }
}

/// Argument of the shortest head of `major` (its three bits in place), below 65,536, and what follows it.
#[inline]
fn head(major: u8, bytes: &[u8]) -> Option<(usize, &[u8])> {
    let (initial, rest) = bytes.split_first()?;
    match (initial.checked_sub(major)?, rest) {
        (info @ 0..24, rest) => Some((usize::from(info), rest)),
        (24, [low, rest @ ..]) => Some((usize::from(*low), rest)),
        (25, [high, low, rest @ ..]) => {
            Some((usize::from(u16::from_be_bytes([*high, *low])), rest))
        }
        _ => None,
    }
}

/// A link or null, and what follows it.
#[inline]
fn canonical_link(bytes: &[u8]) -> Option<(Option<Cid>, &[u8])> {
    if let [0xf6, rest @ ..] = bytes {
        return Some((None, rest));
    }
    let (cid, rest) = bytes.strip_prefix(b"\xd8\x2a\x58\x25\x00")?.split_at_checked(CID_BYTES)?;
    Some((Some(Cid::from_bytes(cid)?), rest))
}

fn link_or_null(reader: &mut Reader<'_>) -> Result<Option<Cid>, RepoError> {
    match reader.read().map_err(not_cbor)? {
        Item::Null => Ok(None),
        Item::Link(bytes) => match Cid::from_bytes(bytes) {
            Some(cid) => Ok(Some(cid)),
            None => Err(RepoError::tree("a link that is not version 1 with SHA-256")),
        },
        _ => Err(not_a_node()),
    }
}

fn not_cbor(error: CborError) -> RepoError {
    RepoError::tree(format!("a node that is not DAG-CBOR: {error}"))
}

fn not_a_node() -> RepoError {
    RepoError::tree("a block that is not an MST node")
}

#[cfg(test)]
mod tests {
    use ipld_core::ipld::Ipld;

    use super::*;

    /// Keys of 1,024 bytes that differ in their last four only.
    fn long_keys(count: u16) -> Vec<Vec<u8>> {
        let key = |number| {
            let mut key = b"app.bsky.feed.like/".to_vec();
            key.resize(MST_KEY_BYTES_MAX - 4, b'a');
            key.extend(format!("{number:04}").bytes());
            key
        };
        (0..count).map(key).collect()
    }

    fn node_of_keys(keys: &[Vec<u8>]) -> Vec<u8> {
        let count = u16::try_from(keys.len()).unwrap();
        let mut block = [b"\xa2\x61e\x99".as_slice(), &count.to_be_bytes()].concat();
        let mut before: &[u8] = &[];
        for key in keys {
            let shared = key.iter().zip(before).take_while(|(one, other)| one == other).count();
            let rest = &key[shared..];
            block.extend(b"\xa4\x61k\x59");
            block.extend((rest.len() as u16).to_be_bytes());
            block.extend_from_slice(rest);
            block.extend(b"\x61p\x19");
            block.extend((shared as u16).to_be_bytes());
            block.extend(b"\x61t\xf6\x61v\xd8\x2a\x58\x25\x00");
            block.extend(
                Cid { codec: crate::repo::cid::Codec::DagCbor, digest: [7; 32] }.to_bytes(),
            );
            before = key;
        }
        block.extend(b"\x61l\xf6");
        block
    }

    fn cid(number: u8) -> Cid {
        Cid { codec: crate::repo::cid::Codec::DagCbor, digest: [number; 32] }
    }

    fn link(cid: Option<u8>) -> Vec<u8> {
        match cid {
            None => vec![0xf6],
            Some(number) => [b"\xd8\x2a\x58\x25\x00", &self::cid(number).to_bytes()[..]].concat(),
        }
    }

    /// Prefix length, suffix, value, right.
    type Written<'k> = (u8, &'k [u8], Option<u8>, Option<u8>);

    /// One entry, its fields in the order that `order` says; suffixes are shorter than 24 bytes.
    fn entry((prefix, suffix, value, right): Written<'_>, order: &str) -> Vec<u8> {
        let mut bytes = vec![0xa0 + order.len() as u8];
        for field in order.bytes() {
            bytes.extend([0x61, field]);
            bytes.extend(match field {
                b'p' => vec![prefix],
                b'k' => [&[0x40 + suffix.len() as u8], suffix].concat(),
                b'v' => link(value),
                _ => link(right),
            });
        }
        bytes
    }

    fn node(left: Option<u8>, entries: &[Vec<u8>], order: &str) -> Vec<u8> {
        let mut bytes = vec![0xa0 + order.len() as u8];
        for field in order.bytes() {
            bytes.extend([0x61, field]);
            bytes.extend(match field {
                b'l' => link(left),
                _ => [&[0x80 + entries.len() as u8], &entries.concat()[..]].concat(),
            });
        }
        bytes
    }

    const ENTRIES: [Written<'_>; 3] =
        [(0, b"a.b.c/one", Some(1), None), (6, b"two", Some(2), Some(9)), (7, b"x", Some(3), None)];

    fn entries(order: &str) -> Vec<Vec<u8>> {
        ENTRIES.iter().map(|it| entry(*it, order)).collect()
    }

    fn refused(block: &[u8]) -> String {
        Node::read(block).err().map(|error| error.to_string()).unwrap_or_default()
    }

    #[test]
    fn a_node_says_the_same_in_whatever_order_its_fields_are() {
        let canonical = node(Some(8), &entries("kptv"), "el");
        let mut fast = Node::default();
        assert!(fast.read_canonical(&canonical).is_some());
        assert!(Node::default().read_canonical(&node(Some(8), &entries("pkvt"), "el")).is_none());
        for (order, fields) in [("el", "kptv"), ("le", "kptv"), ("el", "pkvt"), ("le", "vtkp")] {
            let block = node(Some(8), &entries(fields), order);
            let node = Node::read(&block).unwrap();
            let keys: Vec<&[u8]> = node.entries.iter().map(|it| node.key(it)).collect();
            assert_eq!(keys, [&b"a.b.c/one"[..], b"a.b.c/two", b"a.b.c/tx"], "{order} {fields}");
            let links: Vec<_> = node.entries.iter().map(|it| (it.value, it.right)).collect();
            assert_eq!(links, [(cid(1), None), (cid(2), Some(cid(9))), (cid(3), None)]);
            assert_eq!((node.left, &node.keys), (Some(cid(8)), &fast.keys));
            for cut in 0..block.len() {
                assert!(!refused(&block[..cut]).is_empty(), "{order} {fields}, cut at {cut}");
            }
            let after = [&block[..], &[0xf6]].concat();
            assert_eq!(refused(&after), "invalid tree: a node with bytes after it");
        }
        // The same memory again: nothing of the node before is left.
        fast.read_again(&node(None, &[], "le")).unwrap();
        assert_eq!((fast.left, fast.entries.len(), fast.keys.len()), (None, 0, 0));
    }

    #[test]
    fn a_node_as_everybody_writes_it_is_read_by_comparing_whatever_its_size() {
        // On both sides of each width of a length in CBOR: of the suffix, the prefix and the number of entries.
        let lengths = [22, 23, 24, 255, 256, 1_000].map(|length| vec![vec![b'a'; length]]);
        let shared = [23, 24, 255, 256].map(|length| {
            let key = |last| [vec![b'a'; length], vec![last]].concat();
            vec![key(b'a'), key(b'b')]
        });
        let counts =
            [1, 23, 24, 255, 256].map(|count| (1_000..1_000 + count).map(|n| n.to_string().into()));
        for keys in lengths.into_iter().chain(shared).chain(counts.map(Iterator::collect)) {
            let link =
                |number| Ipld::Link(cid::Cid::try_from(&cid(number).to_bytes()[..]).unwrap());
            let map = |fields: Vec<(&str, Ipld)>| {
                Ipld::Map(
                    fields.into_iter().map(|(name, value)| (name.to_owned(), value)).collect(),
                )
            };
            let mut before: &[u8] = &[];
            let mut entries = Vec::new();
            for key in &keys {
                let same = key.iter().zip(before).take_while(|(one, other)| one == other).count();
                let (shared, rest) =
                    (Ipld::Integer(same as i128), Ipld::Bytes(key[same..].to_vec()));
                entries.push(map(vec![("p", shared), ("k", rest), ("v", link(1)), ("t", link(2))]));
                before = key;
            }
            let node = map(vec![("l", Ipld::Null), ("e", Ipld::List(entries))]);
            let block = serde_ipld_dagcbor::to_vec(&node).unwrap();
            let (mut fast, mut any) = (Node::default(), Node::default());
            assert!(fast.read_canonical(&block).is_some(), "{} keys, {:?}", keys.len(), keys[0]);
            any.read_any(&block).unwrap();
            for node in [fast, any] {
                assert!(node.entries.iter().map(|entry| node.key(entry)).eq(&keys));
            }
        }
    }

    #[test]
    fn what_is_no_node_is_refused_by_its_rule() {
        let no_node = "invalid tree: a block that is not an MST node";
        let one = |entry| node(None, &[entry], "el");
        for (what, block) in [
            ("no map", vec![0x80]),
            ("one field", node(None, &[], "e")),
            ("no left", node(None, &[], "ee")),
            ("no entries", node(None, &[], "ll")),
            ("another field", node(None, &[], "ex")),
            ("three fields", one(entry(ENTRIES[0], "kpt"))),
            ("no key", one(entry(ENTRIES[0], "ppvt"))),
            ("no prefix", one(entry(ENTRIES[0], "kkvt"))),
            ("no value", one(entry(ENTRIES[0], "kptt"))),
            ("no right", one(entry(ENTRIES[0], "kpvv"))),
            ("a null value", one(entry((0, b"a.b.c/one", None, None), "kptv"))),
        ] {
            assert_eq!(refused(&block), no_node, "{what}");
        }
        let prefix = "invalid tree: a key whose prefix length is wrong";
        let two = |second| node(None, &[entry(ENTRIES[0], "kptv"), entry(second, "kptv")], "el");
        assert_eq!(refused(&one(entry((1, b"a", Some(1), None), "kptv"))), prefix, "the first");
        assert_eq!(refused(&two((10, b"x", Some(1), None))), prefix, "longer than the key before");
        let three = |third| [entries("kptv")[..2].to_vec(), vec![entry(third, "kptv")]].concat();
        let beyond = node(None, &three((10, b"x", Some(1), None)), "el");
        assert_eq!(refused(&beyond), prefix, "longer than the second key");
        assert_eq!(refused(&two((5, b"/two", Some(1), None))), prefix, "shorter than it could be");
        assert!(refused(&two((9, b"x", Some(1), None))).is_empty(), "all of the key before");
        let raw = [b"\xd8\x2a\x58\x25\x00\x01\x70\x12\x20", &[7; 32][..]].concat();
        let foreign = [b"\xa2\x61e\x80\x61l", &raw[..]].concat();
        assert_eq!(refused(&foreign), "invalid tree: a link that is not version 1 with SHA-256");
    }

    #[test]
    fn all_keys_of_a_node_have_its_depth() {
        // Known depths of the specification's implementations.
        for (key, depth) in [
            ("2653ae71", 0),
            ("blue", 1),
            ("app.bsky.feed.post/454397e440ec", 4),
            ("app.bsky.feed.post/9adeb165882c", 8),
        ] {
            assert_eq!(key_depth(key.as_bytes()), depth, "{key}");
        }
        let keys = |keys: &[&str]| {
            let entries: Vec<Vec<u8>> =
                keys.iter().map(|key| entry((0, key.as_bytes(), Some(1), None), "kptv")).collect();
            Node::read(&node(None, &entries, "el")).unwrap().depth().map_err(|it| it.to_string())
        };
        assert_eq!((keys(&[]), keys(&["blue"])), (Ok(None), Ok(Some(1))));
        let differ = "invalid tree: keys of different depth in one node".to_owned();
        assert_eq!(keys(&["2653ae71", "blue"]), Err(differ));
    }

    #[test]
    fn keys_are_checked_alike_with_a_neighbour_and_without() {
        let end = "a.b.c/".len();
        for (key, is_good) in [
            ("a.b.c/one", true),
            ("a.b.c/", false),
            ("a.b.c/o/e", false),
            ("a.b.c/.", false),
            ("a.b/one", false),
            ("a.b.c", false),
            ("a.b.cc/one", true),
        ] {
            for before in [("", 0), ("a.b.c/zero", end)] {
                let checked = checked_key(key.as_bytes(), before).ok();
                let slash = key.find('/').map_or(0, |at| at + 1);
                assert_eq!(checked, is_good.then_some((key, slash)), "{key} after {before:?}");
            }
        }
        assert!(checked_key(b"a.b.c/\xff", ("", 0)).is_err());
    }

    #[test]
    fn a_small_node_cannot_stand_for_keys_without_end() {
        let node = Node::read(&node_of_keys(&long_keys(2_048))).unwrap();
        assert_eq!((node.entries.len(), node.keys.len()), (2_048, MST_NODE_KEYS_BYTES_MAX));
        let block = node_of_keys(&long_keys(2_049));
        assert!(block.len() < 200_000, "{} bytes", block.len());
        let over = "invalid tree: a node whose keys are more than 2 MiB";
        assert_eq!(refused(&block), over);
        // One byte too many, where the last key adds one to the key before it.
        let one_byte = [vec![vec![b'a']], long_keys(2_048)].concat();
        assert_eq!(refused(&node_of_keys(&one_byte)), over);
        assert_eq!(refused(&node_of_keys(&one_byte[..2_048])), "");
    }
}
