//! Forges repositories: records, MST, signed commit and CAR, from a seed, with libraries that skyfill's engine does not use
//! for it. Broken ones too: what to break is an option.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use cid::Cid;
use cid::multihash::Multihash;
use fastrand::Rng;
use ipld_core::ipld::Ipld;
use k256::ecdsa::signature::Signer;
use sha2::{Digest, Sha256};

/// A signing key of either curve.
#[derive(Clone)]
pub enum Key {
    K256(k256::ecdsa::SigningKey),
    P256(p256::ecdsa::SigningKey),
}

impl Key {
    pub fn from_seed(seed: u64) -> Self {
        let mut rng = Rng::with_seed(seed ^ 0x6b_6579);
        loop {
            let bytes: [u8; 32] = std::array::from_fn(|_| rng.u8(..));
            let key = if seed.is_multiple_of(3) {
                p256::ecdsa::SigningKey::from_slice(&bytes).map(Self::P256).ok()
            } else {
                k256::ecdsa::SigningKey::from_slice(&bytes).map(Self::K256).ok()
            };
            if let Some(key) = key {
                return key;
            }
        }
    }

    /// The public key as Multikey (`z...`).
    pub fn multikey(&self) -> String {
        let bytes = match self {
            Self::K256(key) => {
                [&[0xe7, 1], key.verifying_key().to_sec1_point(true).as_bytes()].concat()
            }
            Self::P256(key) => {
                [&[0x80, 0x24], key.verifying_key().to_sec1_point(true).as_bytes()].concat()
            }
        };
        format!("z{}", bs58::encode(bytes).into_string())
    }

    /// The uncompressed public key as legacy verification methods have it, without a codec.
    pub fn legacy_multibase(&self) -> String {
        let bytes = match self {
            Self::K256(key) => key.verifying_key().to_sec1_point(false).as_bytes().to_vec(),
            Self::P256(key) => key.verifying_key().to_sec1_point(false).as_bytes().to_vec(),
        };
        format!("z{}", bs58::encode(bytes).into_string())
    }

    /// The legacy verification method's type.
    pub fn legacy_type(&self) -> &'static str {
        match self {
            Self::K256(_) => "EcdsaSecp256k1VerificationKey2019",
            Self::P256(_) => "EcdsaSecp256r1VerificationKey2019",
        }
    }

    pub fn did_key(&self) -> String {
        format!("did:key:{}", self.multikey())
    }

    /// 64 bytes r and s with low s.
    pub fn sign(&self, message: &[u8]) -> Vec<u8> {
        match self {
            Self::K256(key) => {
                let signature: k256::ecdsa::Signature = key.sign(message);
                signature.normalize_s().to_bytes().to_vec()
            }
            Self::P256(key) => {
                let signature: p256::ecdsa::Signature = key.sign(message);
                signature.normalize_s().to_bytes().to_vec()
            }
        }
    }

    /// The same signature with the other s, which mathematics accepts and the protocol does not.
    pub fn sign_high(&self, message: &[u8]) -> Vec<u8> {
        let low = self.sign(message);
        match self {
            Self::K256(_) => {
                let signature = k256::ecdsa::Signature::from_slice(&low).unwrap();
                let (r, s) = (signature.r(), -*signature.s());
                k256::ecdsa::Signature::from_scalars(r.to_bytes(), s.to_bytes())
                    .unwrap()
                    .to_bytes()
                    .to_vec()
            }
            Self::P256(_) => {
                let signature = p256::ecdsa::Signature::from_slice(&low).unwrap();
                let (r, s) = (signature.r(), -*signature.s());
                p256::ecdsa::Signature::from_scalars(r.to_bytes(), s.to_bytes())
                    .unwrap()
                    .to_bytes()
                    .to_vec()
            }
        }
    }
}

/// Order of the blocks in a CAR.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub enum Order {
    /// Commit, then nodes and records as the tree is walked.
    #[default]
    Tree,
    /// Records before nodes, last first, the commit at the very end: much as the reference PDS sends newest first.
    Newest,
    Shuffled(u64),
}

/// How to write a CAR, and what to break.
#[derive(Clone, Default)]
pub struct CarOptions {
    pub order: Order,
    /// Every block twice.
    pub duplicates: bool,
    /// So many blocks that nothing links to.
    pub unlinked: usize,
    pub second_root: bool,
    pub sign_high: bool,
    pub wrong_signature: bool,
    pub commit_did: Option<String>,
    /// Index into the sorted records of a record whose block is left out.
    pub missing_record: Option<usize>,
    /// Leaves one MST node below the root out, if there is one.
    pub missing_node: bool,
    /// Flips a bit in the block of this record, under its old CID.
    pub corrupt_record: Option<usize>,
}

/// A generated account.
#[derive(Clone)]
pub struct Account {
    pub did: String,
    pub handle: String,
    pub key: Key,
    pub rev: String,
    /// Key (`collection/rkey`) to record bytes, in key order.
    pub records: BTreeMap<String, Vec<u8>>,
    /// Keys of records whose blocks have the raw codec.
    pub raw_keys: BTreeSet<String>,
}

pub fn did_from_seed(seed: u64) -> String {
    let mut rng = Rng::with_seed(seed ^ 0x64_6964);
    let alphabet = b"abcdefghijklmnopqrstuvwxyz234567";
    let id: String = (0..24).map(|_| char::from(alphabet[rng.usize(..32)])).collect();
    format!("did:plc:{id}")
}

/// A TID from a number.
pub fn tid(number: u64) -> String {
    let alphabet = b"234567abcdefghijklmnopqrstuvwxyz";
    (0..13).rev().map(|i| char::from(alphabet[(number >> (5 * i)) as usize & 31])).collect()
}

pub fn cid_of(bytes: &[u8]) -> Cid {
    cid_with(0x71, bytes)
}

/// CID of `bytes` under `codec`.
pub fn cid_with(codec: u64, bytes: &[u8]) -> Cid {
    let digest = Multihash::<64>::wrap(0x12, &Sha256::digest(bytes)).unwrap();
    Cid::new_v1(codec, digest)
}

pub fn encode(value: &Ipld) -> Vec<u8> {
    serde_ipld_dagcbor::to_vec(value).unwrap()
}

fn map<const N: usize>(fields: [(&str, Ipld); N]) -> Ipld {
    Ipld::Map(fields.into_iter().map(|(key, value)| (key.to_owned(), value)).collect())
}

fn link_or_null(cid: Option<Cid>) -> Ipld {
    cid.map_or(Ipld::Null, Ipld::Link)
}

impl Account {
    /// An account without records.
    pub fn empty(seed: u64) -> Self {
        Self {
            did: did_from_seed(seed),
            handle: format!("user{seed}.test"),
            key: Key::from_seed(seed),
            rev: tid(0x0006_0000_0000_0000 + seed),
            records: BTreeMap::new(),
            raw_keys: BTreeSet::new(),
        }
    }

    pub fn put(&mut self, collection: &str, rkey: &str, record: &Ipld) {
        self.records.insert(format!("{collection}/{rkey}"), encode(record));
    }

    fn record_cid(&self, key: &str, bytes: &[u8]) -> Cid {
        cid_with(if self.raw_keys.contains(key) { 0x55 } else { 0x71 }, bytes)
    }

    /// CID of the record at `index` in key order.
    fn nth_cid(&self, index: usize) -> Cid {
        let (key, bytes) = self.records.iter().nth(index).unwrap();
        self.record_cid(key, bytes)
    }

    /// Blocks of the tree: nodes in walk order with the records between them, and the root.
    pub fn tree(&self) -> (Cid, Vec<Block>) {
        let leaves: Vec<Leaf<'_>> = self
            .records
            .iter()
            .map(|(key, bytes)| Leaf {
                key,
                cid: self.record_cid(key, bytes),
                bytes,
                depth: depth(key.as_bytes()),
            })
            .collect();
        let mut blocks = Vec::new();
        let top = leaves.iter().map(|leaf| leaf.depth).max().unwrap_or(0);
        let root = node(&leaves, top, &mut blocks);
        (root, blocks)
    }

    pub fn commit(&self, data: Cid, options: &CarOptions) -> Vec<u8> {
        let did = options.commit_did.clone().unwrap_or_else(|| self.did.clone());
        let mut fields = match map([
            ("did", Ipld::String(did)),
            ("version", Ipld::Integer(3)),
            ("data", Ipld::Link(data)),
            ("rev", Ipld::String(self.rev.clone())),
            ("prev", Ipld::Null),
        ]) {
            Ipld::Map(fields) => fields,
            _ => unreachable!(),
        };
        let unsigned = encode(&Ipld::Map(fields.clone()));
        let mut signature = if options.sign_high {
            self.key.sign_high(&unsigned)
        } else {
            self.key.sign(&unsigned)
        };
        if options.wrong_signature {
            signature[5] ^= 1;
        }
        fields.insert("sig".to_owned(), Ipld::Bytes(signature));
        encode(&Ipld::Map(fields))
    }

    pub fn car(&self, options: &CarOptions) -> Vec<u8> {
        let (data, mut blocks) = self.tree();
        // Two keys may lead to one record: its block is sent once, so that the loss of any block is a loss.
        let mut sent = HashSet::new();
        blocks.retain(|block| sent.insert(block.cid));
        let commit = self.commit(data, options);
        let root = cid_of(&commit);
        if let Some(index) = options.corrupt_record {
            let wanted = self.nth_cid(index);
            let block = blocks.iter_mut().find(|block| block.cid == wanted).unwrap();
            let last = block.bytes.len() - 1;
            block.bytes[last] ^= 1;
        }
        if let Some(index) = options.missing_record {
            let wanted = self.nth_cid(index);
            blocks.retain(|block| block.cid != wanted);
        }
        if options.missing_node {
            let missing =
                blocks.iter().position(|block| block.is_node && block.cid != data).unwrap();
            blocks.remove(missing);
        }
        blocks.insert(0, Block { cid: root, bytes: commit, is_node: false });
        for number in 0..options.unlinked {
            let bytes = encode(&Ipld::String(format!("unlinked {number}")));
            blocks.push(Block { cid: cid_of(&bytes), bytes, is_node: false });
        }
        if options.duplicates {
            blocks.extend_from_within(..);
        }
        match options.order {
            Order::Tree => {}
            Order::Newest => {
                blocks.sort_by_key(|block| block.is_node);
                blocks.reverse();
            }
            Order::Shuffled(seed) => Rng::with_seed(seed).shuffle(&mut blocks),
        }
        let second = cid_of(b"\xa0");
        let roots = if options.second_root { vec![root, second] } else { vec![root] };
        write_car(&roots, &blocks)
    }
}

/// The tree over given CIDs, whose blocks are left empty.
pub fn tree_of_cids(records: &[(String, Cid)]) -> (Cid, Vec<Block>) {
    let leaves: Vec<Leaf<'_>> = records
        .iter()
        .map(|(key, cid)| Leaf { key, cid: *cid, bytes: &[], depth: depth(key.as_bytes()) })
        .collect();
    let mut blocks = Vec::new();
    let top = leaves.iter().map(|leaf| leaf.depth).max().unwrap_or(0);
    (node(&leaves, top, &mut blocks), blocks)
}

#[derive(Clone)]
pub struct Block {
    pub cid: Cid,
    pub bytes: Vec<u8>,
    pub is_node: bool,
}

pub fn write_car(roots: &[Cid], blocks: &[Block]) -> Vec<u8> {
    let roots = roots.iter().map(|root| Ipld::Link(*root)).collect();
    let header = encode(&map([("roots", Ipld::List(roots)), ("version", Ipld::Integer(1))]));
    let mut car = Vec::new();
    varint(header.len(), &mut car);
    car.extend(header);
    for block in blocks {
        write_section(block, &mut car);
    }
    car
}

pub fn write_section(block: &Block, car: &mut Vec<u8>) {
    let cid = block.cid.to_bytes();
    varint(cid.len() + block.bytes.len(), car);
    car.extend(cid);
    car.extend_from_slice(&block.bytes);
}

pub fn varint(mut value: usize, out: &mut Vec<u8>) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

pub fn depth(key: &[u8]) -> u32 {
    let hash = Sha256::digest(key);
    let mut bits = 0;
    for byte in hash {
        bits += byte.leading_zeros();
        if byte != 0 {
            break;
        }
    }
    bits / 2
}

struct Leaf<'a> {
    key: &'a str,
    cid: Cid,
    bytes: &'a [u8],
    depth: u32,
}

/// Writes the node of `leaves` at `layer`, its subtrees and records; gives its CID. Walk order: a node before its children.
fn node(leaves: &[Leaf<'_>], layer: u32, blocks: &mut Vec<Block>) -> Cid {
    let place = blocks.len();
    blocks.push(Block { cid: Cid::default(), bytes: Vec::new(), is_node: true });
    let subtree = |range: &[Leaf<'_>], blocks: &mut Vec<Block>| {
        (!range.is_empty()).then(|| node(range, layer - 1, blocks))
    };
    let own: Vec<usize> = (0..leaves.len()).filter(|i| leaves[*i].depth == layer).collect();
    let left = subtree(&leaves[..own.first().copied().unwrap_or(leaves.len())], blocks);
    let mut entries = Vec::new();
    let mut previous = "";
    for (position, index) in own.iter().enumerate() {
        let leaf = &leaves[*index];
        blocks.push(Block { cid: leaf.cid, bytes: leaf.bytes.to_vec(), is_node: false });
        let end = own.get(position + 1).copied().unwrap_or(leaves.len());
        let right = subtree(&leaves[index + 1..end], blocks);
        let shared = previous.bytes().zip(leaf.key.bytes()).take_while(|(a, b)| a == b).count();
        entries.push(map([
            ("p", Ipld::Integer(shared as i128)),
            ("k", Ipld::Bytes(leaf.key.as_bytes()[shared..].to_vec())),
            ("v", Ipld::Link(leaf.cid)),
            ("t", link_or_null(right)),
        ]));
        previous = leaf.key;
    }
    let bytes = encode(&map([("l", link_or_null(left)), ("e", Ipld::List(entries))]));
    let cid = cid_of(&bytes);
    blocks[place] = Block { cid, bytes, is_node: true };
    cid
}

/// Plain records of the six kinds, many likes: for the engine, which does not look inside.
pub fn plain_account(seed: u64, records: usize) -> Account {
    let mut account = Account::empty(seed);
    let mut rng = Rng::with_seed(seed);
    let kinds = ["like", "like", "like", "post", "repost"];
    while account.records.len() < records {
        let kind = kinds[rng.usize(..kinds.len())];
        let collection = format!("app.bsky.feed.{kind}");
        let text: String = (0..rng.usize(5..80)).map(|_| rng.alphanumeric()).collect();
        let record = map([
            ("$type", Ipld::String(collection.clone())),
            ("text", Ipld::String(text)),
            ("createdAt", Ipld::String("2024-10-05T12:34:56.789Z".to_owned())),
        ]);
        account.put(&collection, &tid(0x0005_0000_0000_0000 | rng.u64(..1 << 50)), &record);
    }
    account
}
