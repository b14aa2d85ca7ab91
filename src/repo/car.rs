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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::repo::cid::Codec;

    const LIMIT: u64 = 1 << 30;

    fn varint(mut value: usize) -> Vec<u8> {
        let mut bytes = Vec::new();
        while value > 0x7f {
            bytes.push((value & 0x7f) as u8 | 0x80);
            value >>= 7;
        }
        bytes.push(value as u8);
        bytes
    }

    fn cid_of(block: &[u8]) -> Cid {
        Cid { codec: Codec::DagCbor, digest: Sha256::digest(block).into() }
    }

    fn link(cid: Cid) -> Vec<u8> {
        [b"\xd8\x2a\x58\x25\x00".as_slice(), &cid.to_bytes()].concat()
    }

    const VERSION: &[u8] = b"\x67version\x01";

    fn roots(cids: &[Cid]) -> Vec<u8> {
        let count = 0x80 | u8::try_from(cids.len()).unwrap();
        let links = cids.iter().flat_map(|cid| link(*cid));
        b"\x65roots".iter().copied().chain([count]).chain(links).collect()
    }

    fn header_of(cids: &[Cid]) -> Vec<u8> {
        [b"\xa2", roots(cids).as_slice(), VERSION].concat()
    }

    fn prefixed(bytes: &[u8]) -> Vec<u8> {
        [varint(bytes.len()), bytes.to_vec()].concat()
    }

    /// Blocks of no byte, of a few, and of more than a byte's varint tells; the second comes twice.
    fn blocks() -> Vec<Vec<u8>> {
        vec![Vec::new(), vec![1; 3], vec![2; 200], vec![1; 3], vec![3; 90]]
    }

    /// The CAR of these blocks, and where each section begins.
    fn car_of(blocks: &[Vec<u8>]) -> (Vec<u8>, Vec<u64>) {
        let mut car = prefixed(&header_of(&[cid_of(&blocks[0])]));
        let mut places = Vec::new();
        for block in blocks {
            places.push(car.len() as u64);
            car.extend(prefixed(&[cid_of(block).to_bytes().as_slice(), block].concat()));
        }
        (car, places)
    }

    fn framed(car: &[u8], chunk: usize) -> Result<Framed, RepoError> {
        let mut framer = Framer::new(LIMIT);
        car.chunks(chunk).try_for_each(|bytes| framer.push(bytes))?;
        framer.finish()
    }

    /// Takes the header, which is all there is.
    fn header_only(header: &[u8]) -> Result<Cid, RepoError> {
        framed(&prefixed(header), 1).map(|framed| framed.root)
    }

    #[test]
    fn however_the_bytes_arrive_every_section_is_counted_and_its_place_kept() {
        let (blocks, root) = (blocks(), cid_of(&[]));
        let (car, places) = car_of(&blocks);
        let heads = blocks
            .iter()
            .zip(&places)
            .map(|(block, at)| slot_value(fingerprint::of(&cid_of(block).digest), *at).unwrap());
        let expected = Framed {
            bytes: car.len() as u64,
            header_bytes: places[0],
            blocks: 5,
            root,
            heads: heads.collect(),
        };
        for chunk in 1..=car.len() {
            assert_eq!(framed(&car, chunk).unwrap(), expected, "{chunk}");
        }
        for end in 0..car.len() {
            let whole = places.iter().position(|at| *at == end as u64);
            let cut = framed(&car[..end], 7);
            match whole {
                Some(count) => assert_eq!(cut.unwrap().blocks, count as u64),
                None => {
                    assert!(matches!(cut, Err(RepoError::Cut(at)) if at == end as u64), "{end}")
                }
            }
        }
        for at in usize::try_from(places[0]).unwrap()..car.len() {
            let mut bad = car.clone();
            bad[at] ^= 1;
            assert!(framed(&bad, 50).is_err(), "byte {at}");
        }
    }

    #[test]
    fn a_repository_may_be_as_long_as_the_limit() {
        let (car, _) = car_of(&blocks());
        let length = car.len() as u64;
        for (limit, fits) in [(length, true), (length - 1, false)] {
            let mut framer = Framer::new(limit);
            let pushed = car.chunks(9).try_for_each(|bytes| framer.push(bytes));
            match pushed {
                Ok(()) => assert!(fits && framer.finish().is_ok()),
                Err(error) => {
                    assert!(!fits && matches!(error, RepoError::TooLarge(at) if at == limit));
                }
            }
        }
    }

    #[test]
    fn heads_are_kept_up_to_a_number_and_their_memory_is_told() {
        let (car, places) = car_of(&blocks());
        let mut framer = Framer::new(LIMIT);
        assert_eq!(framer.heads_bytes(), 0);
        framer.push(&car).unwrap();
        let bytes = framer.heads_bytes();
        assert!(bytes >= 8 * places.len() as u64 && bytes.is_multiple_of(8), "{bytes}");
        framer.forget_heads();
        assert_eq!(framer.heads_bytes(), 0);
        let framed = framer.finish().unwrap();
        assert_eq!((framed.blocks, framed.heads), (5, Vec::new()));

        let mut framer = Framer::new(LIMIT);
        let (one, _) = car_of(&[Vec::new()]);
        framer.push(&one).unwrap();
        let section = &one[usize::try_from(places[0]).unwrap()..];
        for _ in 1..HEADS_KEPT_MAX {
            framer.push(section).unwrap();
        }
        assert_eq!(framer.heads.as_ref().unwrap().len(), HEADS_KEPT_MAX);
        framer.push(section).unwrap();
        assert_eq!(framer.heads_bytes(), 0, "one too many, and none is kept");
        assert_eq!(framer.finish().unwrap().blocks, HEADS_KEPT_MAX as u64 + 1);
    }

    #[test]
    fn a_header_is_a_map_of_version_and_roots_of_at_most_four_kilobytes() {
        let (one, two) = (cid_of(&[1]), cid_of(&[2]));
        assert_eq!(header_only(&header_of(&[one])).unwrap(), one);
        assert_eq!(header_only(&header_of(&[two, one])).unwrap(), two, "the first");
        let turned = [b"\xa2", VERSION, roots(&[one]).as_slice()].concat();
        assert_eq!(header_only(&turned).unwrap(), one);
        let most = usize::try_from(HEADER_BYTES_MAX).unwrap();
        assert_eq!(most, 4_096);
        let mut long = header_of(&[one]);
        long.resize(most, 0);
        assert_eq!(header_only(&long).unwrap(), one);
        long.push(0);
        let said = |header: &[u8]| match header_only(header) {
            Err(RepoError::NotCar(said)) => said,
            other => panic!("{other:?}"),
        };
        assert_eq!(said(&long), "a header of no plausible length");
        assert_eq!(said(&[]), "a header of no plausible length");
        // Refused before the rest is waited for.
        for length in [0, most + 1] {
            assert!(matches!(header(&varint(length)), Err(RepoError::NotCar(_))), "{length}");
        }
        assert_eq!(header(&varint(most)).unwrap(), None);
        assert!(matches!(
            header(b"\x40<"),
            Err(RepoError::NotCar("a header that is no map of two"))
        ));
        assert_eq!(said(&[0xa1]), "a header that is no map of two");
        assert_eq!(said(b"\xa2\x67version\x01\x67version\x01"), "a header without a usable root");
        assert_eq!(said(&header_of(&[])), "a header without a usable root");
        let other = [b"\xa2\x67version\x02", roots(&[one]).as_slice()].concat();
        assert_eq!(said(&other), "a version other than 1");
        let other = [b"\xa2", roots(&[one]).as_slice(), b"\x67another\x01"].concat();
        assert_eq!(said(&other), "a header with other keys than version and roots");
        let no_link = [b"\xa2\x65roots\x81\x01", VERSION].concat();
        assert_eq!(said(&no_link), "a root that is no CID");
        assert_eq!(said(b"\xa2\x65roots"), "a header that is no DAG-CBOR");
    }

    #[test]
    fn a_section_has_room_for_a_cid_of_the_one_form() {
        let cid = cid_of(&[1]);
        let section = |length: usize, cid: &[u8]| [varint(length), cid.to_vec()].concat();
        let head = |bytes: &[u8]| section_head(bytes).unwrap();
        assert_eq!(head(&section(CID_BYTES, &cid.to_bytes())), Some((cid, 0, 1 + CID_BYTES)));
        assert_eq!(head(&section(300, &cid.to_bytes())), Some((cid, 264, 2 + CID_BYTES)));
        assert_eq!(head(&section(300, &cid.to_bytes()[..35])), None);
        assert_eq!(head(&[]), None);
        let short = section_head(&section(CID_BYTES - 1, &cid.to_bytes()));
        assert!(matches!(short, Err(RepoError::NotCar("a section too short for a CID"))));
        let other = section_head(&section(CID_BYTES, &[1; CID_BYTES]));
        assert!(matches!(other, Err(RepoError::Hash(_))));
        let endless = section_head(&[0xff; 11]);
        assert!(matches!(endless, Err(RepoError::NotCar("a section length that is no varint"))));
    }
}
