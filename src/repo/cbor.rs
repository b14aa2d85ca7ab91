//! A reader of DAG-CBOR items over borrowed bytes, lenient about form and strict about kind.
//!
//! The hash already proves that the bytes are the author's, so key order, non-minimal integers and lengths, and finite
//! floats of 16, 32 or 64 bits are accepted. Refused: indefinite lengths, tags other than 42, simple values other than
//! true, false and null, NaN and infinity, bad UTF-8 (TRANSFORM, "Which records", 3; DAG-CBOR specification).
//! Lengths are never trusted: nothing is allocated by a claim, and a claim beyond the end is [`CborError::Truncated`].

/// One item; containers give their entry count, their entries follow as items.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Item<'a> {
    /// Major type 0.
    Unsigned(u64),
    /// Major type 1: the value is `-1 - n`.
    Negative(u64),
    /// Major type 2.
    Bytes(&'a [u8]),
    /// Major type 3, valid UTF-8.
    Text(&'a str),
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
    #[error("nested deeper than 32")]
    Depth,
    /// More entries than `limits::CBOR_CONTAINER_ENTRIES_MAX`.
    #[error("container of more than 131,072 entries")]
    Entries,
    /// Bytes after the value.
    #[error("bytes after the value")]
    Trailing,
}

/// Reads items one after another.
#[derive(Clone, Debug)]
pub struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    /// Starts at the first byte.
    #[must_use]
    pub const fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0 }
    }

    /// Offset of the next item in bytes.
    #[must_use]
    pub const fn position(&self) -> usize {
        self.at
    }

    /// Whether everything has been read.
    #[must_use]
    pub const fn is_at_end(&self) -> bool {
        self.at == self.bytes.len()
    }

    /// Reads the next item.
    ///
    /// # Errors
    /// [`CborError`] for what DAG-CBOR does not have; the position is then undefined.
    pub fn read(&mut self) -> Result<Item<'a>, CborError> {
        let initial = self.take(1)?[0];
        let (major, info) = (initial >> 5, initial & 0x1f);
        if major == 7 {
            return self.simple(info);
        }
        let argument = self.argument(info)?;
        Ok(match major {
            0 => Item::Unsigned(argument),
            1 => Item::Negative(argument),
            2 => Item::Bytes(self.take_claimed(argument)?),
            3 => {
                let text = simdutf8::basic::from_utf8(self.take_claimed(argument)?);
                Item::Text(text.map_err(|_| CborError::Utf8)?)
            }
            4 => Item::Array(argument),
            5 => Item::Map(argument),
            _ => self.link(argument)?,
        })
    }

    fn argument(&mut self, info: u8) -> Result<u64, CborError> {
        Ok(match info {
            0..=23 => u64::from(info),
            24 => u64::from(self.take(1)?[0]),
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
        let initial = self.take(1)?[0];
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
        self.take(N)?.try_into().map_err(|_| CborError::Truncated)
    }

    fn take_claimed(&mut self, length: u64) -> Result<&'a [u8], CborError> {
        self.take(usize::try_from(length).map_err(|_| CborError::Truncated)?)
    }

    fn take(&mut self, length: usize) -> Result<&'a [u8], CborError> {
        let rest = &self.bytes[self.at..];
        let taken = rest.get(..length).ok_or(CborError::Truncated)?;
        self.at += length;
        Ok(taken)
    }
}

/// IEEE 754 half precision (RFC 8949, appendix D).
fn half_to_f64(half: u16) -> f64 {
    let (exponent, mantissa) = (i32::from(half >> 10 & 0x1f), f64::from(half & 0x3ff));
    let magnitude = match exponent {
        0 => mantissa * 2_f64.powi(-24),
        31 if mantissa == 0.0 => f64::INFINITY,
        31 => f64::NAN,
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
        assert_eq!(one(&[0x78, 2, b'h', b'i']), Ok(Item::Text("hi")));
        assert_eq!(one(&[0xf9, 0x3e, 0x00]), Ok(Item::Float(1.5)));
        assert_eq!(one(&[0xf9, 0x80, 0x01]), Ok(Item::Float(-(2_f64.powi(-24)))));
        assert_eq!(one(&[0xd8, 42, 0x43, 0, 1, 2]), Ok(Item::Link(&[1, 2])));
    }

    #[test]
    fn what_dag_cbor_has_not_is_refused() {
        assert_eq!(one(&[0x5f]), Err(CborError::Indefinite));
        assert_eq!(one(&[0x1c]), Err(CborError::Indefinite));
        assert_eq!(one(&[0xf7]), Err(CborError::Simple));
        assert_eq!(one(&[0xf9, 0x7c, 0x00]), Err(CborError::Float));
        assert_eq!(one(&[0xc1, 0]), Err(CborError::Tag));
        assert_eq!(one(&[0x61, 0xff]), Err(CborError::Utf8));
        assert_eq!(
            one(&[0x7b, 0x7f, 255, 255, 255, 255, 255, 255, 255]),
            Err(CborError::Truncated)
        );
        assert_eq!(one(&[]), Err(CborError::Truncated));
    }
}
