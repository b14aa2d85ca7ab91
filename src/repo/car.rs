//! CAR v1 as it arrives: a push parser that frames sections and checks every block's hash at once.
//!
//! ```text
//!  CAR     = varint(length) header, then sections        header  = DAG-CBOR {version: 1, roots: [CID, ...]}
//!  section = varint(length) CID block                    the first root is the commit
//! ```
//! (CARv1 specification.) A transfer of junk ends at its first bad block, nothing is hashed twice, and whatever a length
//! claims, only the header (at most [`HEADER_BYTES_MAX`]) and the head of a section (at most 45 bytes) are held. A clean
//! end proves nothing: `walk` shows whether blocks are missing.

use sha2::{Digest, Sha256};

use crate::repo::cbor::{Item, Reader};
use crate::repo::cid::{CID_BYTES, Cid};
use crate::repo::error::RepoError;
use crate::repo::fingerprint::{self, slot_value};
use crate::repo::varint::{self, VARINT_BYTES_MAX, Varint};

/// Bytes of a CAR header: one root takes about 60; some tools write several.
pub const HEADER_BYTES_MAX: u64 = 4 << 10;

/// Blocks whose heads are kept at eight bytes each while they arrive: 512 KiB, an account of some 50,000 records.
pub const HEADS_KEPT_MAX: usize = 64 << 10;

/// A CAR whose every block has the hash of its CID.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Framed {
    /// Bytes in all.
    pub bytes: u64,
    /// Bytes before the first section.
    pub header_bytes: u64,
    /// Sections, duplicates counted.
    pub blocks: u64,
    /// First root: the commit.
    pub root: Cid,
    /// Fingerprint and place of every section, as the block index keeps them; empty if they were not kept.
    pub heads: Vec<u64>,
}

/// Frames and hashes bytes in the order in which they arrive.
pub struct Framer {
    bytes_max: u64,
    bytes: u64,
    header_bytes: u64,
    blocks: u64,
    root: Option<Cid>,
    /// Bytes of a head that is not complete yet.
    held: Vec<u8>,
    body: Option<Body>,
    /// Heads so far, unless there were too many of them.
    heads: Option<Vec<u64>>,
}

/// The block whose bytes are arriving.
struct Body {
    cid: Cid,
    left: u64,
    hash: Sha256,
}

impl Framer {
    /// Accepts at most `repo_bytes_max` bytes.
    #[must_use]
    pub fn new(repo_bytes_max: u64) -> Self {
        let held = Vec::with_capacity(VARINT_BYTES_MAX + CID_BYTES);
        Self {
            bytes_max: repo_bytes_max,
            bytes: 0,
            header_bytes: 0,
            blocks: 0,
            root: None,
            held,
            body: None,
            heads: Some(Vec::new()),
        }
    }

    /// Takes the next bytes.
    ///
    /// # Errors
    /// [`RepoError`] for the first thing that is wrong; the transfer is then worth nothing.
    pub fn push(&mut self, mut bytes: &[u8]) -> Result<(), RepoError> {
        self.bytes += bytes.len() as u64;
        if self.bytes > self.bytes_max {
            return Err(RepoError::TooLarge(self.bytes_max));
        }
        while !bytes.is_empty() {
            bytes = match &mut self.body {
                Some(_) => self.push_body(bytes)?,
                None => self.push_head(bytes)?,
            };
        }
        Ok(())
    }

    /// Memory of the heads kept so far.
    #[must_use]
    pub fn heads_bytes(&self) -> u64 {
        self.heads.as_ref().map_or(0, |heads| heads.capacity() as u64 * 8)
    }

    /// Keeps no heads from now on: the index will list the sections once more.
    pub fn forget_heads(&mut self) {
        self.heads = None;
    }

    fn keep_head(&mut self, cid: &Cid, offset: u64) {
        let Some(heads) = &mut self.heads else { return };
        match slot_value(fingerprint::of(&cid.digest), offset) {
            Some(value) if heads.len() < HEADS_KEPT_MAX => heads.push(value),
            _ => self.heads = None,
        }
    }

    /// Ends the CAR.
    ///
    /// # Errors
    /// [`RepoError::Cut`] within a section, [`RepoError::NotCar`] without a header.
    pub fn finish(self) -> Result<Framed, RepoError> {
        let Self { bytes, header_bytes, blocks, root, held, body, heads, .. } = self;
        let heads = heads.unwrap_or_default();
        match root {
            _ if body.is_some() || !held.is_empty() => Err(RepoError::Cut(bytes)),
            Some(root) => Ok(Framed { bytes, header_bytes, blocks, root, heads }),
            None => Err(RepoError::Cut(bytes)),
        }
    }

    fn push_body<'a>(&mut self, bytes: &'a [u8]) -> Result<&'a [u8], RepoError> {
        let Some(body) = &mut self.body else { return Ok(bytes) };
        let length = usize::try_from(body.left).unwrap_or(usize::MAX).min(bytes.len());
        let (mine, rest) = bytes.split_at(length);
        body.hash.update(mine);
        body.left -= length as u64;
        if body.left == 0 {
            self.end_body()?;
        }
        Ok(rest)
    }

    fn end_body(&mut self) -> Result<(), RepoError> {
        let Some(body) = self.body.take() else { return Ok(()) };
        self.checked(&body.cid, &body.hash.finalize())
    }

    fn checked(&mut self, cid: &Cid, digest: &[u8]) -> Result<(), RepoError> {
        if digest != cid.digest {
            return Err(RepoError::Hash(format!("block {cid} before byte {}", self.bytes)));
        }
        self.blocks += 1;
        Ok(())
    }

    /// Completes the head of the CAR or of a section, byte by byte only where a chunk cuts it.
    fn push_head<'a>(&mut self, bytes: &'a [u8]) -> Result<&'a [u8], RepoError> {
        if self.held.is_empty()
            && self.root.is_some()
            && let Some((cid, length, used)) = section_head(bytes)?
        {
            let rest = &bytes[used..];
            self.keep_head(&cid, self.bytes - bytes.len() as u64);
            return self.begin_body(cid, length, rest);
        }
        for (index, byte) in bytes.iter().enumerate() {
            self.held.push(*byte);
            let rest = &bytes[index + 1..];
            if self.root.is_none() {
                if let Some(root) = header(&self.held)? {
                    self.root = Some(root);
                    self.header_bytes = self.held.len() as u64;
                    self.held.clear();
                    return Ok(rest);
                }
            } else if let Some((cid, length, used)) = section_head(&self.held)? {
                self.held.clear();
                self.keep_head(&cid, self.bytes - (rest.len() + used) as u64);
                return self.begin_body(cid, length, rest);
            }
        }
        Ok(&[])
    }

    fn begin_body<'a>(
        &mut self,
        cid: Cid,
        length: u64,
        rest: &'a [u8],
    ) -> Result<&'a [u8], RepoError> {
        // A block that has arrived whole is hashed at once.
        if let Some((block, rest)) =
            rest.split_at_checked(usize::try_from(length).unwrap_or(usize::MAX))
        {
            self.checked(&cid, &Sha256::digest(block))?;
            return Ok(rest);
        }
        self.body = Some(Body { cid, left: length, hash: Sha256::new() });
        Ok(rest)
    }
}

/// CID and block length of the section that begins with `bytes`, and the bytes before its block; `None`: more is needed.
pub(crate) fn section_head(bytes: &[u8]) -> Result<Option<(Cid, u64, usize)>, RepoError> {
    let (length, used) = match varint::read(bytes) {
        Varint::Value(length, used) => (length, used),
        Varint::Incomplete => return Ok(None),
        Varint::Invalid => return Err(RepoError::NotCar("a section length that is no varint")),
    };
    let Some(block) = length.checked_sub(CID_BYTES as u64) else {
        return Err(RepoError::NotCar("a section too short for a CID"));
    };
    let Some(cid) = bytes.get(used..used + CID_BYTES) else { return Ok(None) };
    let unsupported = || RepoError::Hash("a CID that is not version 1 with SHA-256".to_owned());
    let cid = Cid::from_bytes(cid).ok_or_else(unsupported)?;
    Ok(Some((cid, block, used + CID_BYTES)))
}

/// First root of a complete header; `None`: more is needed.
fn header(bytes: &[u8]) -> Result<Option<Cid>, RepoError> {
    let (length, used) = match varint::read(bytes) {
        Varint::Value(length, used) => (length, used),
        Varint::Incomplete => return Ok(None),
        Varint::Invalid => return Err(RepoError::NotCar("a header length that is no varint")),
    };
    if length == 0 || length > HEADER_BYTES_MAX {
        return Err(RepoError::NotCar("a header of no plausible length"));
    }
    match bytes.get(used) {
        // A map of two entries: anything else, HTML above all, is refused at its second byte.
        Some(0xa2) | None => {}
        Some(_) => return Err(RepoError::NotCar("a header that is no map of two")),
    }
    if ((bytes.len() - used) as u64) < length {
        return Ok(None);
    }
    read_header(&bytes[used..]).map(Some)
}

fn read_header(bytes: &[u8]) -> Result<Cid, RepoError> {
    let wrong = |_| RepoError::NotCar("a header that is no DAG-CBOR");
    let mut reader = Reader::new(bytes);
    let (mut version, mut root) = (None, None);
    if reader.read().map_err(wrong)? != Item::Map(2) {
        return Err(RepoError::NotCar("a header that is no map of two"));
    }
    for _ in 0..2 {
        match (reader.read().map_err(wrong)?, reader.read().map_err(wrong)?) {
            (Item::Text(b"version"), Item::Unsigned(number)) => version = Some(number),
            (Item::Text(b"roots"), Item::Array(count)) => {
                for index in 0..count {
                    let Item::Link(cid) = reader.read().map_err(wrong)? else {
                        return Err(RepoError::NotCar("a root that is no CID"));
                    };
                    if index == 0 {
                        root = Cid::from_bytes(cid);
                    }
                }
            }
            _ => return Err(RepoError::NotCar("a header with other keys than version and roots")),
        }
    }
    match (version, root) {
        (Some(1), Some(root)) => Ok(root),
        (Some(1), None) => Err(RepoError::NotCar("a header without a usable root")),
        _ => Err(RepoError::NotCar("a version other than 1")),
    }
}
