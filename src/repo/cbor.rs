//! A reader of DAG-CBOR items over borrowed bytes, lenient about form and strict about kind.
//!
//! The hash already proves that the bytes are the author's, so key order, non-minimal integers and lengths, and finite
//! floats of 16, 32 or 64 bits are accepted. Refused: indefinite lengths, tags other than 42, simple values other than
//! true, false and null, NaN and infinity, bad UTF-8 (TRANSFORM, "Which records", 3; DAG-CBOR specification).
//! Lengths are never trusted: nothing is allocated by a claim, and a claim beyond the end is [`CborError::Truncated`].
//!
//! Text is looked at as bytes. [`validate`] proves once, for a whole record, that all of it is UTF-8; whoever reads the record
//! again afterwards takes that for granted and does not pay for it twice.

use std::ops::Range;

use smallvec::SmallVec;

use crate::limits::CBOR_DEPTH_MAX;

/// Containers around one another that need no memory of their own; nearly every record has fewer.
const DEPTH_USUAL: usize = 8;

/// One item; containers give their entry count, their entries follow as items.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Item<'a> {
    /// Major type 0.
    Unsigned(u64),
    /// Major type 1: the value is `-1 - n`.
    Negative(u64),
    /// Major type 2.
    Bytes(&'a [u8]),
    /// Major type 3; UTF-8 in a value that [`validate`] has accepted.
    Text(&'a [u8]),
    /// Major type 4: this many items follow.
    Array(u64),
    /// Major type 5: this many pairs follow.
    Map(u64),
    /// Tag 42: the binary CID, without its leading zero byte.
    Link(&'a [u8]),
    /// Finite float of 16, 32 or 64 bits.
    Float(f64),
    /// True or false.
    Bool(bool),
    /// Null.
    Null,
}

/// Why bytes are not the CBOR that records may be made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CborError {
    /// Ends within an item, or a length reaches beyond the end.
    #[error("ends within an item")]
    Truncated,
    /// Indefinite length, or a reserved additional information.
    #[error("indefinite or reserved length")]
    Indefinite,
    /// A tag other than 42, or 42 around anything but a CID.
    #[error("tag other than a CID link")]
    Tag,
    /// Undefined or another simple value.
    #[error("simple value other than true, false and null")]
    Simple,
    /// NaN or infinity.
    #[error("float that is not finite")]
    Float,
    /// Text that is not UTF-8.
    #[error("text that is not UTF-8")]
    Utf8,
    /// A map key that is not text.
    #[error("map key that is not text")]
    Key,
    /// The same key twice in one map.
    #[error("duplicate map key")]
    DuplicateKey,
    /// Nested deeper than `limits::CBOR_DEPTH_MAX`.
    #[error("nested deeper than 64")]
    Depth,
    /// Bytes after the value.
    #[error("bytes after the value")]
    Trailing,
}

/// Reads items one after another.
#[derive(Clone, Debug)]
pub struct Reader<'a> {
    rest: &'a [u8],
    length: usize,
}

impl<'a> Reader<'a> {
    /// Starts at the first byte.
    #[must_use]
    pub const fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes, length: bytes.len() }
    }

    /// Offset of the next item in bytes.
    #[must_use]
    pub const fn position(&self) -> usize {
        self.length - self.rest.len()
    }

    /// Whether everything has been read.
    #[must_use]
    pub const fn is_at_end(&self) -> bool {
        self.rest.is_empty()
    }

    /// Reads the next item; whether text is UTF-8 is not looked at.
    ///
    /// # Errors
    /// [`CborError`] for what DAG-CBOR does not have; the position is then undefined.
    #[inline]
    pub fn read(&mut self) -> Result<Item<'a>, CborError> {
        let initial = self.byte()?;
        let (major, info) = (initial >> 5, initial & 0x1f);
        if major == 7 {
            return self.simple(info);
        }
        let argument = if info < 24 { u64::from(info) } else { self.argument(info)? };
        Ok(match major {
            0 => Item::Unsigned(argument),
            1 => Item::Negative(argument),
            2 => Item::Bytes(self.take_claimed(argument)?),
            3 => Item::Text(self.take_claimed(argument)?),
            4 => Item::Array(argument),
            5 => Item::Map(argument),
            _ => self.link(argument)?,
        })
    }

    /// Reads the next item; text must be UTF-8.
    #[inline]
    fn read_checked(&mut self) -> Result<Item<'a>, CborError> {
        let item = self.read()?;
        match item {
            Item::Text(text) if !is_utf8(text) => Err(CborError::Utf8),
            _ => Ok(item),
        }
    }

    /// Passes over the next value with all that it contains. For values that [`validate`] has accepted.
    ///
    /// # Errors
    /// [`CborError`] for the same reasons as [`Reader::read`].
    pub fn skip(&mut self) -> Result<(), CborError> {
        let mut pending = 1_u64;
        while pending > 0 {
            pending -= 1;
            pending = match self.read()? {
                Item::Array(entries) => pending.saturating_add(entries),
                Item::Map(pairs) => pending.saturating_add(pairs.saturating_mul(2)),
                _ => pending,
            };
        }
        Ok(())
    }

    #[inline]
    fn byte(&mut self) -> Result<u8, CborError> {
        let (first, rest) = self.rest.split_first().ok_or(CborError::Truncated)?;
        self.rest = rest;
        Ok(*first)
    }

    fn argument(&mut self, info: u8) -> Result<u64, CborError> {
        Ok(match info {
            0..=23 => u64::from(info),
            24 => u64::from(self.byte()?),
            25 => u64::from(u16::from_be_bytes(self.array()?)),
            26 => u64::from(u32::from_be_bytes(self.array()?)),
            27 => u64::from_be_bytes(self.array()?),
            _ => return Err(CborError::Indefinite),
        })
    }

    fn simple(&mut self, info: u8) -> Result<Item<'a>, CborError> {
        let value = match info {
            20 => return Ok(Item::Bool(false)),
            21 => return Ok(Item::Bool(true)),
            22 => return Ok(Item::Null),
            25 => half_to_f64(u16::from_be_bytes(self.array()?)),
            26 => f64::from(f32::from_be_bytes(self.array()?)),
            27 => f64::from_be_bytes(self.array()?),
            31 => return Err(CborError::Indefinite),
            _ => return Err(CborError::Simple),
        };
        if value.is_finite() { Ok(Item::Float(value)) } else { Err(CborError::Float) }
    }

    fn link(&mut self, tag: u64) -> Result<Item<'a>, CborError> {
        if tag != 42 {
            return Err(CborError::Tag);
        }
        let initial = self.byte()?;
        if initial >> 5 != 2 {
            return Err(CborError::Tag);
        }
        let length = self.argument(initial & 0x1f)?;
        match self.take_claimed(length)?.split_first() {
            Some((0, cid)) if !cid.is_empty() => Ok(Item::Link(cid)),
            _ => Err(CborError::Tag),
        }
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], CborError> {
        let (taken, rest) = self.rest.split_first_chunk().ok_or(CborError::Truncated)?;
        self.rest = rest;
        Ok(*taken)
    }

    #[inline]
    fn take_claimed(&mut self, length: u64) -> Result<&'a [u8], CborError> {
        let length = usize::try_from(length).map_err(|_| CborError::Truncated)?;
        let (taken, rest) = self.rest.split_at_checked(length).ok_or(CborError::Truncated)?;
        self.rest = rest;
        Ok(taken)
    }
}

/// Most text is short and ASCII: that is seen eight bytes at a time before a whole validator is asked.
#[inline]
fn is_utf8(text: &[u8]) -> bool {
    text.is_ascii() || simdutf8::basic::from_utf8(text).is_ok()
}

/// A container whose entries are being read.
#[derive(Clone, Copy)]
struct Open<'a> {
    /// Entries, or pairs of a map, that have not begun.
    left: u64,
    is_map: bool,
    /// Keys have ascended so far (shorter first, then by bytes), so that none can be there twice.
    is_sorted: bool,
    last_key: Option<&'a [u8]>,
    /// Offset of the first entry, and how many entries or pairs there are.
    start: usize,
    count: u64,
}

/// Validates the one value that `bytes` must be, and tells `entry` key and byte range of each value of its outermost map.
/// Gives whether it is a map.
///
/// # Errors
/// [`CborError`]: the first thing that records may not contain.
pub fn validate<'a>(
    bytes: &'a [u8],
    mut entry: impl FnMut(&'a [u8], Range<usize>),
) -> Result<bool, CborError> {
    let mut reader = Reader::new(bytes);
    let mut stack: SmallVec<[Open<'a>; DEPTH_USUAL]> = SmallVec::new();
    let (mut outer_key, mut outer_start): (&[u8], _) = (&[], 0);
    let mut is_map = false;
    loop {
        let opened = match reader.read_checked()? {
            Item::Array(count) => Some((false, count)),
            Item::Map(count) => Some((true, count)),
            _ => None,
        };
        if let Some((is_map_here, count)) = opened {
            if stack.len() >= CBOR_DEPTH_MAX {
                return Err(CborError::Depth);
            }
            is_map |= stack.is_empty() && is_map_here;
            stack.push(Open::new(is_map_here, count, reader.position()));
        }
        // A container that is complete is itself an entry of the one around it.
        let mut is_complete = opened.is_none();
        loop {
            if is_complete && is_map && stack.len() == 1 {
                entry(outer_key, outer_start..reader.position());
            }
            let is_outermost = stack.len() == 1;
            let Some(open) = stack.last_mut() else {
                return if reader.is_at_end() { Ok(is_map) } else { Err(CborError::Trailing) };
            };
            if open.left > 0 {
                open.left -= 1;
                if open.is_map {
                    let Item::Text(key) = reader.read_checked()? else {
                        return Err(CborError::Key);
                    };
                    open.note_key(key);
                    if is_outermost {
                        (outer_key, outer_start) = (key, reader.position());
                    }
                }
                break;
            }
            if !open.is_sorted && has_duplicate_key(&bytes[open.start..], open.count)? {
                return Err(CborError::DuplicateKey);
            }
            stack.pop();
            is_complete = true;
        }
    }
}

impl<'a> Open<'a> {
    fn new(is_map: bool, count: u64, start: usize) -> Self {
        Self { left: count, is_map, is_sorted: true, last_key: None, start, count }
    }

    #[inline]
    fn note_key(&mut self, key: &'a [u8]) {
        let is_after = |last: &[u8]| (last.len(), last) < (key.len(), key);
        self.is_sorted &= self.last_key.is_none_or(is_after);
        self.last_key = Some(key);
    }
}

/// Whether a map whose entries start at `entries` has a key twice; its own keys only.
fn has_duplicate_key(entries: &[u8], pairs: u64) -> Result<bool, CborError> {
    let mut reader = Reader::new(entries);
    let mut keys = Vec::new();
    for _ in 0..pairs {
        let Item::Text(key) = reader.read()? else { return Err(CborError::Key) };
        keys.push(key);
        reader.skip()?;
    }
    keys.sort_unstable();
    Ok(keys.windows(2).any(|pair| pair[0] == pair[1]))
}

/// IEEE 754 half precision (RFC 8949, appendix D); NaN for what is not finite.
fn half_to_f64(half: u16) -> f64 {
    let (exponent, mantissa) = (i32::from(half >> 10 & 0x1f), f64::from(half & 0x3ff));
    let magnitude = match exponent {
        0 => mantissa * 2_f64.powi(-24),
        31 => f64::NAN, // or infinity: neither is finite
        _ => (mantissa + 1024.0) * 2_f64.powi(exponent - 25),
    };
    if half & 0x8000 == 0 { magnitude } else { -magnitude }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(bytes: &[u8]) -> Result<Item<'_>, CborError> {
        Reader::new(bytes).read()
    }

    #[test]
    fn items_are_read_whatever_their_form() {
        assert_eq!(one(&[0x18, 5]), Ok(Item::Unsigned(5)));
        assert_eq!(one(&[0x38, 99]), Ok(Item::Negative(99)));
        assert_eq!(one(&[0x78, 2, b'h', b'i']), Ok(Item::Text(b"hi")));
        assert_eq!(one(&[0xf9, 0x3e, 0x00]), Ok(Item::Float(1.5)));
        assert_eq!(one(&[0xf9, 0x80, 0x01]), Ok(Item::Float(-(2_f64.powi(-24)))));
        assert_eq!(one(&[0xd8, 42, 0x43, 0, 1, 2]), Ok(Item::Link(&[1, 2])));
    }

    #[test]
    fn arguments_and_numbers_of_every_width_are_read() {
        for (bytes, item) in [
            (&[0x17][..], Item::Unsigned(23)),
            (&[0x18, 24], Item::Unsigned(24)),
            (&[0x19, 1, 2], Item::Unsigned(0x102)),
            (&[0x1a, 1, 2, 3, 4], Item::Unsigned(0x102_0304)),
            (&[0x1b, 1, 2, 3, 4, 5, 6, 7, 8], Item::Unsigned(0x102_0304_0506_0708)),
            (&[0x20], Item::Negative(0)),
            (&[0x42, 7, 8], Item::Bytes(&[7, 8])),
            (&[0x61, b'a'], Item::Text(b"a")),
            (&[0x82], Item::Array(2)),
            (&[0xb8, 30], Item::Map(30)),
            (&[0xf4], Item::Bool(false)),
            (&[0xf5], Item::Bool(true)),
            (&[0xf6], Item::Null),
            (&[0xf9, 0x00, 0x01], Item::Float(2_f64.powi(-24))),
            (&[0xf9, 0x04, 0x00], Item::Float(2_f64.powi(-14))),
            (&[0xf9, 0x3c, 0x00], Item::Float(1.0)),
            (&[0xf9, 0x7b, 0xff], Item::Float(65_504.0)),
            (&[0xf9, 0xc0, 0x00], Item::Float(-2.0)),
            (&[0xfa, 0x3f, 0xc0, 0, 0], Item::Float(1.5)),
            (&[0xfb, 0xbf, 0xf8, 0, 0, 0, 0, 0, 0], Item::Float(-1.5)),
        ] {
            let mut reader = Reader::new(bytes);
            assert_eq!(reader.read(), Ok(item), "{bytes:x?}");
            assert!(reader.is_at_end() && reader.position() == bytes.len(), "{bytes:x?}");
            assert_eq!(one(&bytes[..bytes.len() - 1]), Err(CborError::Truncated), "{bytes:x?}");
        }
    }

    #[test]
    fn a_value_is_passed_over_with_all_that_it_contains() {
        // [[], {"a": [1, {}]}, "x"] and then 7.
        let bytes = [0x83, 0x80, 0xa1, 0x61, b'a', 0x82, 1, 0xa0, 0x61, b'x', 7];
        let mut reader = Reader::new(&bytes);
        reader.skip().unwrap();
        assert_eq!((reader.position(), reader.is_at_end()), (bytes.len() - 1, false));
        assert_eq!(reader.read(), Ok(Item::Unsigned(7)));
        assert_eq!(reader.skip(), Err(CborError::Truncated));
        for cut in 1..bytes.len() - 1 {
            assert_eq!(Reader::new(&bytes[..cut]).skip(), Err(CborError::Truncated), "{cut}");
        }
    }

    fn check(bytes: &[u8]) -> Result<bool, CborError> {
        validate(bytes, |_, _| {})
    }

    #[test]
    fn whole_values_are_validated() {
        let mut seen = Vec::new();
        let map = [0xa3, 0x61, b'a', 0x82, 1, 2, 0x61, b'b', 0xa0, 0x62, b'c', b'c', 0xf6];
        assert_eq!(validate(&map, |key, range| seen.push((key.to_owned(), range))), Ok(true));
        let expected: [(&[u8], _); 3] = [(b"a", 3..6), (b"b", 8..9), (b"cc", 12..13)];
        assert!(seen.iter().map(|(key, range)| (key.as_slice(), range.clone())).eq(expected));
        assert_eq!(check(&[0x81, 0xa0]), Ok(false));
        assert_eq!(check(&[0xa2, 0x61, b'a', 1, 0x61, b'a', 2]), Err(CborError::DuplicateKey));
        let apart = [0xa3, 0x61, b'b', 1, 0x61, b'a', 1, 0x61, b'b', 2];
        assert_eq!(check(&apart), Err(CborError::DuplicateKey));
        assert_eq!(check(&[0xa2, 0x61, b'b', 1, 0x61, b'a', 1]), Ok(true));
        assert_eq!(check(&[0xa1, 1, 1]), Err(CborError::Key));
        assert_eq!(check(&[0xa0, 0xa0]), Err(CborError::Trailing));
        assert_eq!(
            check(&[0x9b, 255, 255, 255, 255, 255, 255, 255, 255]),
            Err(CborError::Truncated)
        );
        assert_eq!(
            check(&[0xbb, 255, 255, 255, 255, 255, 255, 255, 255]),
            Err(CborError::Truncated)
        );
        let nested = |depth: usize| [vec![0x81; depth], vec![0xf6]].concat();
        assert_eq!(check(&nested(CBOR_DEPTH_MAX)), Ok(false));
        assert_eq!(check(&nested(CBOR_DEPTH_MAX + 1)), Err(CborError::Depth));
        assert_eq!(check(&vec![0x81; 1_000_000]), Err(CborError::Depth));
    }

    #[test]
    fn keys_that_ascend_need_no_second_look_and_all_others_do() {
        let is_sorted = |keys: &[&'static str]| {
            let mut open = Open::new(true, keys.len() as u64, 0);
            keys.iter().for_each(|key| open.note_key(key.as_bytes()));
            open.is_sorted
        };
        assert!(is_sorted(&["b", "c", "aa", "ab", "aaa"]), "shorter ones first");
        assert!(is_sorted(&["", "a"]) && is_sorted(&["a"]) && is_sorted(&[]));
        for keys in [["a", "c", "b"], ["a", "b", "b"], ["aa", "b", "cc"], ["b", "a", "c"]] {
            assert!(!is_sorted(&keys), "{keys:?}");
        }
    }

    #[test]
    fn what_dag_cbor_has_not_is_refused() {
        assert_eq!(one(&[0x5f]), Err(CborError::Indefinite));
        assert_eq!(one(&[0x1c]), Err(CborError::Indefinite));
        assert_eq!(one(&[0x1f]), Err(CborError::Indefinite));
        assert_eq!(one(&[0xff]), Err(CborError::Indefinite), "a break");
        for simple in [0xe0, 0xf3, 0xf7, 0xf8, 0xfc] {
            assert_eq!(one(&[simple, 32]), Err(CborError::Simple), "{simple:x}");
        }
        assert_eq!(one(&[0xf9, 0x7e, 0x00]), Err(CborError::Float), "NaN");
        assert_eq!(one(&[0xfa, 0xff, 0x80, 0, 0]), Err(CborError::Float), "-infinity");
        // Another tag, no byte string, no zero before the CID, no CID behind it.
        assert_eq!(one(&[0xd8, 43, 0x43, 0, 1, 2]), Err(CborError::Tag));
        assert_eq!(one(&[0xd8, 42, 0x63, 0, 1, 2]), Err(CborError::Tag));
        assert_eq!(one(&[0xd8, 42, 0x43, 3, 1, 2]), Err(CborError::Tag));
        assert_eq!(one(&[0xd8, 42, 0x41, 0]), Err(CborError::Tag));
        assert_eq!(one(&[0xd8, 42, 0x40]), Err(CborError::Tag));
        assert_eq!(one(&[0xf9, 0x7c, 0x00]), Err(CborError::Float));
        assert_eq!(one(&[0xc1, 0]), Err(CborError::Tag));
        assert_eq!(check(&[0x61, 0xff]), Err(CborError::Utf8));
        assert_eq!(check(&[0xa1, 0x61, 0xff, 1]), Err(CborError::Utf8));
        assert_eq!(
            one(&[0x7b, 0x7f, 255, 255, 255, 255, 255, 255, 255]),
            Err(CborError::Truncated)
        );
        assert_eq!(one(&[]), Err(CborError::Truncated));
    }
}
