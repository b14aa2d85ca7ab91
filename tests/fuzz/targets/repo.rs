//! Varints, CIDs, CBOR and CARs against the `cid` crate, serde_ipld_dagcbor, iroh-car and arithmetic by hand.

use std::collections::BTreeMap;

use futures::FutureExt;
use ipld_core::ipld::Ipld;
use sha2::{Digest, Sha256};
use skyfill::limits::CBOR_DEPTH_MAX;
use skyfill::repo::car::{Framed, Framer};
use skyfill::repo::cbor::{CborError, Item, Reader, validate};
use skyfill::repo::cid::{Cid, Codec, write_text};
use skyfill::repo::error::RepoError;
use skyfill::repo::varint::{self, VARINT_BYTES_MAX, Varint};

/// First byte and the rest: every target that has modes takes them from there.
pub fn split(data: &[u8]) -> (u8, &[u8]) {
    data.split_first().map_or((0, data), |(first, rest)| (*first, rest))
}

pub fn varint(data: &[u8]) -> bool {
    // By hand: the last byte of a varint is the first without its high bit.
    let end = data.iter().take(VARINT_BYTES_MAX).position(|byte| byte & 0x80 == 0);
    let expected = match end {
        None if data.len() < VARINT_BYTES_MAX => Varint::Incomplete,
        None => Varint::Invalid,
        Some(last) if last > 0 && data[last] == 0 => Varint::Invalid,
        Some(last) => {
            let groups = data[..=last].iter().rev();
            let value = groups.fold(0_u128, |value, byte| value * 128 + u128::from(byte & 0x7f));
            Varint::Value(u64::try_from(value).expect("63 bits"), last + 1)
        }
    };
    assert_eq!(varint::read(data), expected);
    let Varint::Value(value, used) = expected else { return false };
    let mut written = Vec::new();
    crate::forge::varint(usize::try_from(value).expect("64-bit machine"), &mut written);
    assert_eq!(written, data[..used], "there is one form only");
    for shorter in 0..used {
        assert_eq!(varint::read(&data[..shorter]), Varint::Incomplete);
    }
    assert_eq!(varint::read(&data[..used]), expected, "what follows does not matter");
    true
}

pub fn cid(data: &[u8]) -> bool {
    let ours = Cid::from_bytes(data);
    let theirs = cid::Cid::try_from(data).ok().filter(|cid| {
        cid.version() == cid::Version::V1
            && matches!(cid.codec(), 0x71 | 0x55)
            && cid.hash().code() == 0x12
            && cid.hash().size() == 32
            // The other crate reads a CID and leaves what follows it.
            && cid.to_bytes() == data
    });
    assert_eq!(ours.map(|cid| cid.to_bytes().to_vec()), theirs.map(|cid| cid.to_bytes()));
    let mut text = Vec::new();
    write_text(data, &mut text);
    assert_eq!(base32_bytes(&text), data, "text gives the bytes back");
    let Some(ours) = ours else { return false };
    let theirs = cid::Cid::try_from(data).expect("accepted above");
    assert_eq!(ours.to_string(), theirs.to_string());
    assert_eq!(ours.codec == Codec::Raw, theirs.codec() == 0x55);
    true
}

/// RFC 4648 base32 in lower case after a `b`, digit by digit.
fn base32_bytes(text: &[u8]) -> Vec<u8> {
    let digits = text.strip_prefix(b"b").expect("multibase prefix");
    let (mut bytes, mut held, mut bits) = (Vec::new(), 0_u32, 0);
    for digit in digits {
        let value = match digit {
            b'a'..=b'z' => digit - b'a',
            b'2'..=b'7' => digit - b'2' + 26,
            other => panic!("{other} is no digit"),
        };
        held = held << 5 | u32::from(value);
        bits += 5;
        if bits >= 8 {
            bits -= 8;
            bytes.push((held >> bits & 0xff) as u8);
            held &= (1 << bits) - 1;
        }
    }
    assert!(bits < 5 && held == 0, "digits too many");
    bytes
}

pub fn cbor(data: &[u8]) -> bool {
    let mut entries = Vec::new();
    let ours = validate(data, |key, range| entries.push((key.to_vec(), range)));
    let theirs = crate::unmetered(|| serde_ipld_dagcbor::from_slice::<Ipld>(data));
    let Ok(is_map) = ours else {
        // What is in its one canonical form ours takes, nested as it may be. Beyond that the other reader is lenient in places: a map's
        // key may have an indefinite length there.
        if let (Err(error), Ok(value)) = (ours, theirs) {
            let canonical = serde_ipld_dagcbor::to_vec(&value).expect("a value");
            assert!(canonical != data || error == CborError::Depth, "{error}: {value:?}");
        }
        return false;
    };
    let mut reader = Reader::new(data);
    let value = value_of(&mut reader, 0);
    assert!(reader.is_at_end());
    let mut skipping = Reader::new(data);
    skipping.skip().expect("validated");
    assert!(skipping.is_at_end() && skipping.position() == data.len());
    assert_entries(data, is_map, &entries);
    let Some(value) = value else { return true };
    if let Ok(theirs) = theirs {
        assert_eq!(value, theirs, "two readers, two values");
    }
    // In its one canonical form it is still the same value to both.
    let canonical = serde_ipld_dagcbor::to_vec(&value).expect("a value");
    validate(&canonical, |_, _| ()).expect("canonical");
    let again = serde_ipld_dagcbor::from_slice::<Ipld>(&canonical).expect("canonical");
    assert_eq!(again, value);
    true
}

fn assert_entries(data: &[u8], is_map: bool, entries: &[(Vec<u8>, std::ops::Range<usize>)]) {
    if !is_map {
        assert!(entries.is_empty());
        return;
    }
    let mut reader = Reader::new(data);
    let Ok(Item::Map(count)) = reader.read() else { panic!("said to be a map") };
    assert_eq!(count, entries.len() as u64);
    for (key, range) in entries {
        assert_eq!(reader.read(), Ok(Item::Text(key)));
        assert_eq!(reader.position(), range.start);
        reader.skip().expect("validated");
        assert_eq!(reader.position(), range.end);
        validate(&data[range.clone()], |_, _| ()).expect("a part of what is valid");
    }
}

/// The next value, read without looking twice; `None` if it has a link that the `cid` crate does not know.
fn value_of(reader: &mut Reader<'_>, depth: usize) -> Option<Ipld> {
    assert!(depth <= CBOR_DEPTH_MAX, "deeper than allowed");
    let text = |bytes: &[u8]| std::str::from_utf8(bytes).expect("validated").to_owned();
    match reader.read().expect("validated") {
        Item::Unsigned(n) => Some(Ipld::Integer(i128::from(n))),
        Item::Negative(n) => Some(Ipld::Integer(-1 - i128::from(n))),
        Item::Bytes(bytes) => Some(Ipld::Bytes(bytes.to_vec())),
        Item::Text(bytes) => Some(Ipld::String(text(bytes))),
        Item::Link(bytes) => {
            cid::Cid::try_from(bytes).ok().filter(|cid| cid.to_bytes() == bytes).map(Ipld::Link)
        }
        Item::Float(float) => Some(Ipld::Float(float)),
        Item::Bool(flag) => Some(Ipld::Bool(flag)),
        Item::Null => Some(Ipld::Null),
        Item::Array(count) => {
            // All of them are read, also behind a link that is not known.
            let mut values = Some(Vec::new());
            for _ in 0..count {
                let value = value_of(reader, depth + 1);
                values = values.zip(value).map(|(mut values, value)| {
                    values.push(value);
                    values
                });
            }
            values.map(Ipld::List)
        }
        Item::Map(count) => {
            let (mut values, mut is_known) = (BTreeMap::new(), true);
            for _ in 0..count {
                let Ok(Item::Text(key)) = reader.read() else { panic!("a key that is no text") };
                let value = value_of(reader, depth + 1);
                is_known &= value.is_some();
                let before = values.insert(text(key), value.unwrap_or(Ipld::Null));
                assert!(before.is_none(), "a key twice");
            }
            is_known.then_some(Ipld::Map(values))
        }
    }
}

/// Input: flags, then a CAR. Flag 1 gives every block its right hash, so that mutations get beyond it; the rest is the chunk.
pub fn car(data: &[u8]) -> bool {
    let (flags, car) = split(data);
    let mut car = car.to_vec();
    if flags & 1 != 0 {
        mend(&mut car);
    }
    let whole = frame(&car, car.len().max(1), true);
    let chunked = frame(&car, usize::from(flags >> 1) + 1, false);
    match (&whole, &chunked) {
        (Ok(whole), Ok(chunked)) => {
            assert_eq!(
                (whole.bytes, whole.header_bytes, whole.blocks, whole.root),
                (chunked.bytes, chunked.header_bytes, chunked.blocks, chunked.root)
            );
            assert_eq!(whole.heads.len() as u64, whole.blocks);
            assert!(chunked.heads.is_empty(), "they were to be forgotten");
        }
        (Err(whole), Err(chunked)) => {
            assert_eq!(whole.last_error(), chunked.last_error(), "{whole} or {chunked}");
        }
        _ => panic!("chunks change the outcome: {whole:?} {chunked:?}"),
    }
    let too_large = Framer::new(car.len() as u64 - u64::from(!car.is_empty())).push(&car);
    assert!(car.is_empty() || too_large.is_err());
    let theirs = crate::unmetered(|| of_iroh_car(&car));
    let Ok(whole) = whole else {
        if let Some((root, blocks)) = theirs {
            panic!("refused by us only: root {root}, {blocks} blocks: {whole:?}");
        }
        return false;
    };
    if let Some((root, blocks)) = theirs {
        assert_eq!((whole.root.to_string(), whole.blocks), (root, blocks));
    }
    true
}

fn frame(car: &[u8], chunk: usize, keep: bool) -> Result<Framed, RepoError> {
    let mut framer = Framer::new(1 << 32);
    if !keep {
        framer.forget_heads();
    }
    car.chunks(chunk).try_for_each(|bytes| framer.push(bytes))?;
    framer.finish()
}

/// Root and number of blocks, if iroh-car reads all of it, every CID is of our kind and every hash is right.
fn of_iroh_car(car: &[u8]) -> Option<(String, u64)> {
    let ours = |cid: &cid::Cid| Cid::from_bytes(&cid.to_bytes()).is_some();
    let mut reader = iroh_car::CarReader::new(car).now_or_never().expect("in memory").ok()?;
    let root = *reader.header().roots().first()?;
    let mut blocks = 0;
    let mut bytes = 0;
    while let Some((cid, block)) = reader.next_block().now_or_never().expect("in memory").ok()? {
        if !ours(&cid) || Sha256::digest(&block).as_slice() != cid.hash().digest() {
            return None;
        }
        bytes += block.len();
        blocks += 1;
    }
    // It calls a CAR that ends within a length whole, and takes a header whose keys are byte strings.
    let is_whole = sections(car).is_some_and(|found| found.len() as u64 == blocks);
    let is_good = ours(&root) && is_whole && bytes <= car.len() && has_canonical_header(car);
    is_good.then(|| (root.to_string(), blocks))
}

fn has_canonical_header(car: &[u8]) -> bool {
    let Varint::Value(length, used) = varint::read(car) else { return false };
    let header = usize::try_from(length).ok().and_then(|length| car[used..].get(..length));
    header.is_some_and(|header| {
        serde_ipld_dagcbor::from_slice::<Ipld>(header)
            .is_ok_and(|value| serde_ipld_dagcbor::to_vec(&value).is_ok_and(|it| it == header))
    })
}

/// Ranges of the sections, CID and block, if there is nothing else behind the header.
fn sections(car: &[u8]) -> Option<Vec<std::ops::Range<usize>>> {
    let (mut at, mut found) = (0, Vec::new());
    while at < car.len() {
        let Varint::Value(length, used) = varint::read(&car[at..]) else { return None };
        let start = at + used;
        at = start.checked_add(usize::try_from(length).ok()?).filter(|end| *end <= car.len())?;
        found.push(start..at);
    }
    (!found.is_empty()).then(|| found.split_off(1))
}

/// Gives every section that has room for a CID the right one; its codec stays.
fn mend(car: &mut [u8]) {
    for section in sections(car).unwrap_or_default() {
        let Some((cid, block)) = car[section].split_at_mut_checked(36) else { continue };
        let codec = if cid[1] == 0x55 { 0x55 } else { 0x71 };
        cid[..4].copy_from_slice(&[1, codec, 0x12, 0x20]);
        cid[4..].copy_from_slice(&Sha256::digest(block));
    }
}
