//! The walk and the commit: trees that the fuzzer writes node by node, with right hashes, against the second opinion and
//! against the one tree that its records can have.

use std::collections::HashSet;
use std::sync::OnceLock;
use std::sync::atomic::AtomicBool;

use cid::Cid;
use futures::FutureExt;
use ipld_core::ipld::Ipld;
use skyfill::domain::nsid::is_nsid;
use skyfill::domain::rkey::is_rkey;
use skyfill::domain::tid::is_tid;
use skyfill::limits::MST_KEY_BYTES_MAX;
use skyfill::repo::Source;
use skyfill::repo::car::Framer;
use skyfill::repo::cbor;
use skyfill::repo::error::RepoError;
use skyfill::repo::key::PublicKey;
use skyfill::repo::walk::{Expected, LeafBlock, Walk};
use skyfill::repo::{commit as proof, second_opinion};

use super::repo::split;
use crate::forge::{self, Block, Key};

/// Head of a CID with a SHA-256, dag-cbor or raw.
pub const CID_HEAD: [[u8; 4]; 2] = [[1, 0x71, 0x12, 0x20], [1, 0x55, 0x12, 0x20]];

/// A digest that begins with these bytes stands for the block whose number is its last byte.
pub const PLACEHOLDER: [u8; 31] = [0xee; 31];

/// Blocks of one input.
const BLOCKS_MAX: usize = 64;

/// A repository on something that has no slice, as a spool on disk has none.
struct Disk<'c>(&'c Vec<u8>);

impl Source for Disk<'_> {
    fn len(&self) -> u64 {
        Source::len(self.0)
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> std::io::Result<()> {
        self.0.read_at(offset, buffer)
    }
}

/// A commit whose signature nobody looks at here: that is the other target's matter, and slow.
fn unsigned(data: Cid) -> Vec<u8> {
    let fields = [
        ("did", Ipld::String("did:plc:z72i7hdynmk6r22z27h6tvur".to_owned())),
        ("version", Ipld::Integer(3)),
        ("data", Ipld::Link(data)),
        ("rev", Ipld::String("3jzfcijpj2z2a".to_owned())),
        ("prev", Ipld::Null),
        ("sig", Ipld::Bytes(vec![0; 64])),
    ];
    let fields = fields.into_iter().map(|(name, value)| (name.to_owned(), value));
    forge::encode(&Ipld::Map(fields.collect()))
}

/// Input: flags, then blocks of two bytes length (least first) each; links to earlier blocks are placeholders, the last block
/// is the root node. Flags: 1 newest first, 2 every block twice, 4 the first block is left out, 8 it is
/// read from disk too.
pub fn mst(data: &[u8]) -> bool {
    let (flags, script) = split(data);
    let (mut blocks, is_tree) = blocks_of(script);
    let Some(root) = blocks.last().map(|block| block.cid) else { return false };
    let commit = unsigned(root);
    let head = Block { cid: forge::cid_of(&commit), bytes: commit, is_node: false };
    let roots = [head.cid];
    blocks.push(head);
    if flags & 4 != 0 {
        blocks.remove(0);
    }
    if flags & 2 != 0 {
        blocks.extend_from_within(..);
    }
    if flags & 1 == 0 {
        blocks.reverse();
    }
    let car = forge::write_car(&roots, &blocks);
    let ours = walked(&car, true);
    if flags & 8 != 0 {
        match (&ours, walked(&car, false)) {
            (Ok(memory), Ok(disk)) => assert!(*memory == disk, "memory and disk differ"),
            (Err(memory), Err(disk)) => assert_eq!(memory.to_string(), disk.to_string()),
            (memory, disk) => panic!("memory and disk differ: {memory:?} {disk:?}"),
        }
    }
    match ours {
        Ok(leaves) => {
            assert_proven(&car, root, &blocks, &leaves);
            true
        }
        // A node that is linked often makes the second reader, which has no limits, walk for ever.
        Err(error) if is_tree => {
            assert_refused(&car, root, &error);
            false
        }
        Err(_) => false,
    }
}

/// What is proven is what the second reader finds, in order, and the only tree of these records has this root.
fn assert_proven(car: &[u8], root: Cid, blocks: &[Block], leaves: &[(String, Cid)]) {
    let second = second_opinion_of(car);
    assert_eq!(second.as_deref(), Ok(leaves), "the second reader");
    assert!(leaves.windows(2).all(|pair| pair[0].0 < pair[1].0), "out of order");
    let all_known = leaves.iter().all(|(key, _)| is_key(key));
    assert!(all_known, "a key that is none");
    let is_canonical = |block: &Block| {
        crate::unmetered(|| serde_ipld_dagcbor::from_slice::<Ipld>(&block.bytes))
            .is_ok_and(|value| forge::encode(&value) == block.bytes)
    };
    // Nodes may be written in other forms of CBOR; those have other hashes.
    if blocks.iter().all(is_canonical) {
        assert_eq!(forge::tree_of_cids(leaves).0, root, "records have one tree");
    }
}

fn second_opinion_of(car: &[u8]) -> Result<second_opinion::Listing, String> {
    crate::unmetered(|| second_opinion::list(car).now_or_never()).expect("in memory")
}

/// What the second reader finds to be the one tree of good records must not be refused.
fn assert_refused(car: &[u8], root: Cid, error: &RepoError) {
    let Ok(second) = second_opinion_of(car) else { return };
    let good = second.iter().all(|(key, cid)| is_key(key) && is_ours(cid))
        && second.windows(2).all(|pair| pair[0].0 < pair[1].0);
    let is_right = good && forge::tree_of_cids(&second).0 == root;
    assert!(!is_right, "refused: {error}");
}

fn is_ours(cid: &Cid) -> bool {
    CID_HEAD.iter().any(|head| cid.to_bytes().starts_with(head)) && cid.to_bytes().len() == 36
}

fn is_key(key: &str) -> bool {
    let parts = key.split_once('/');
    key.len() <= MST_KEY_BYTES_MAX
        && parts.is_some_and(|(nsid, rkey)| is_nsid(nsid) && is_rkey(rkey))
}

/// Keys and CIDs of all records, if it is proven to the end.
fn walked(car: &Vec<u8>, in_memory: bool) -> Result<Vec<(String, Cid)>, RepoError> {
    let mut framer = Framer::new(1 << 32);
    framer.push(car).expect("every hash is right");
    let framed = framer.finish().expect("every hash is right");
    let disk = Disk(car);
    let source: &dyn Source = if in_memory { car } else { &disk };
    let cancel = AtomicBool::new(false);
    let mut walk = Walk::open(source, &framed, &Expected::default(), &cancel)?;
    let mut leaves = Vec::new();
    while let Some(leaf) = walk.next_leaf()? {
        let cid = Cid::try_from(leaf.cid.to_bytes().as_slice()).expect("a CID");
        let LeafBlock::Held(bytes) = leaf.block else { panic!("no block is that large") };
        assert_eq!(forge::cid_with(cid.codec(), bytes), cid, "another record's bytes");
        leaves.push((leaf.key.to_owned(), cid));
    }
    Ok(leaves)
}

/// The blocks of a script, and whether no two links lead to one of them.
fn blocks_of(mut script: &[u8]) -> (Vec<Block>, bool) {
    let mut blocks: Vec<Block> = Vec::new();
    let (mut linked, mut is_tree) = (HashSet::new(), true);
    while let (Some((length, rest)), true) =
        (script.split_first_chunk::<2>(), blocks.len() < BLOCKS_MAX)
    {
        let length = usize::from(u16::from_le_bytes(*length)).min(rest.len());
        let mut bytes = rest[..length].to_vec();
        script = &rest[length..];
        for at in 0..bytes.len().saturating_sub(35) {
            let number = usize::from(bytes[at + 35]);
            let is_link = CID_HEAD.iter().any(|head| bytes[at..].starts_with(head))
                && bytes[at + 4..].starts_with(&PLACEHOLDER);
            if let Some(block) = blocks.get(number).filter(|_| is_link) {
                let codec = u64::from(bytes[at + 1]);
                let cid = forge::cid_with(codec, &block.bytes);
                blocks[number].cid = cid;
                is_tree &= linked.insert(number);
                bytes[at..at + 36].copy_from_slice(&cid.to_bytes());
            }
        }
        blocks.push(Block { cid: forge::cid_of(&bytes), bytes, is_node: false });
    }
    (blocks, is_tree)
}

fn keys() -> &'static [Key; 2] {
    static KEYS: OnceLock<[Key; 2]> = OnceLock::new();
    KEYS.get_or_init(|| [Key::from_seed(1), Key::from_seed(3)])
}

/// Input: flags, then a commit's block. Flag 1 signs it, with one curve or (flag 2) the other; the rest says where a signature is
/// broken again (0: nowhere).
pub fn commit(data: &[u8]) -> bool {
    let (flags, block) = split(data);
    let key = &keys()[usize::from(flags >> 1 & 1)];
    let trusted: Vec<PublicKey> =
        keys().iter().filter_map(|key| PublicKey::from_did_key(&key.did_key())).collect();
    assert_eq!(trusted.len(), 2);
    let mut block = block.to_vec();
    let flaw = usize::from(flags >> 2);
    let is_signed = flags & 1 != 0 && crate::unmetered(|| sign(&mut block, key, flaw));
    let cid =
        skyfill::repo::cid::Cid::from_bytes(&forge::cid_of(&block).to_bytes()).expect("a CID");
    let unchecked = proof::prove(cid, &block, None, &[]);
    let expected = crate::unmetered(|| is_commit(&block));
    assert_eq!(unchecked.is_ok(), expected, "{unchecked:?}");
    let checked = proof::prove(cid, &block, None, &trusted);
    let Ok(found) = unchecked else {
        assert!(checked.is_err());
        return false;
    };
    assert!(is_tid(&found.rev) && found.signed_by.is_none());
    let other = format!("{}x", found.did);
    let other = proof::prove(cid, &block, Some(&other), &trusted);
    assert!(matches!(other, Err(RepoError::DidMismatch { .. })), "another account's");
    match &checked {
        Ok(commit) => {
            assert!(
                commit.did == found.did && commit.rev == found.rev && commit.data == found.data
            );
            assert!(!is_signed || flaw == 0, "a broken signature");
            let signer = trusted.iter().find(|key| Some(key.to_did_key()) == commit.signed_by);
            assert_genuine(&block, signer.expect("one of the trusted"));
        }
        Err(error) => {
            assert!(matches!(error, RepoError::Signature(_)), "{error}");
            assert!(!is_signed || flaw != 0, "a good signature: {error}");
        }
    }
    checked.is_ok()
}

/// Puts a signature into a commit, if it is a map at all, and flips a bit of its `flaw`th byte.
fn sign(block: &mut Vec<u8>, key: &Key, flaw: usize) -> bool {
    let Ok(Ipld::Map(mut fields)) = serde_ipld_dagcbor::from_slice(block) else { return false };
    fields.remove("sig");
    let mut signature = key.sign(&forge::encode(&Ipld::Map(fields.clone())));
    if flaw > 0 {
        signature[flaw % 64] ^= 1;
    }
    fields.insert("sig".to_owned(), Ipld::Bytes(signature));
    *block = forge::encode(&Ipld::Map(fields));
    true
}

/// The rules of the repository format, as a list.
fn is_commit(block: &[u8]) -> bool {
    // Twice the same key, or nested deeper than records may be: no DAG-CBOR that anybody writes.
    if cbor::validate(block, |_, _| ()).is_err() {
        return false;
    }
    let Ok(value) = serde_ipld_dagcbor::from_slice::<Ipld>(block) else { return false };
    let field = |name: &str| value.get(name).ok().flatten().cloned();
    matches!(field("sig"), Some(Ipld::Bytes(_)))
        && field("version") == Some(Ipld::Integer(3))
        && matches!(field("did"), Some(Ipld::String(_)))
        && matches!(field("rev"), Some(Ipld::String(rev)) if is_tid(&rev))
        && matches!(field("data"), Some(Ipld::Link(data)) if is_ours(&data))
}

/// The signature is good under `key` by both libraries directly, in its low form.
fn assert_genuine(block: &[u8], key: &PublicKey) {
    use k256::ecdsa::signature::Verifier;
    let Ok(Ipld::Map(mut fields)) = serde_ipld_dagcbor::from_slice(block) else { panic!("no map") };
    let Some(Ipld::Bytes(signature)) = fields.remove("sig") else { panic!("no signature") };
    let unsigned = forge::encode(&Ipld::Map(fields));
    let is_good = match key {
        PublicKey::K256(key) => k256::ecdsa::Signature::from_slice(&signature)
            .is_ok_and(|s| s.normalize_s() == s && key.verify(&unsigned, &s).is_ok()),
        PublicKey::P256(key) => p256::ecdsa::Signature::from_slice(&signature)
            .is_ok_and(|s| s.normalize_s() == s && key.verify(&unsigned, &s).is_ok()),
    };
    assert!(is_good, "not signed");
}
