//! Unsigned varints (multiformats "unsigned-varint"): seven bits a byte, least first, at most nine bytes, no padding.

/// Bytes of the longest varint.
pub const VARINT_BYTES_MAX: usize = 9;

/// What the first bytes of a buffer say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Varint {
    /// The value, and how many bytes it took.
    Value(u64, usize),
    /// More bytes are needed.
    Incomplete,
    /// Too long, or padded with zero bits.
    Invalid,
}

/// Reads a varint from the start of `bytes`.
#[must_use]
pub fn read(bytes: &[u8]) -> Varint {
    let mut value = 0_u64;
    for (index, byte) in bytes.iter().take(VARINT_BYTES_MAX).enumerate() {
        value |= u64::from(byte & 0x7f) << (7 * index);
        if byte & 0x80 == 0 {
            let is_padded = *byte == 0 && index > 0;
            return if is_padded { Varint::Invalid } else { Varint::Value(value, index + 1) };
        }
    }
    if bytes.len() >= VARINT_BYTES_MAX { Varint::Invalid } else { Varint::Incomplete }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_ends_and_nonsense() {
        assert_eq!(read(&[0]), Varint::Value(0, 1));
        assert_eq!(read(&[0xac, 0x02, 9]), Varint::Value(300, 2));
        assert_eq!(read(&[0xff; 8]), Varint::Incomplete);
        assert_eq!(read(&[0x80, 0x00]), Varint::Invalid);
        assert_eq!(read(&[0xff; 11]), Varint::Invalid);
        assert_eq!(read(&[]), Varint::Incomplete);
    }
}
