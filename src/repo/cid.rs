//! CIDs of the repository: version 1, SHA-256, codec dag-cbor or raw (AT Protocol, "Data Model" section "link and CID").

/// Bytes of a binary CID of this form: version, codec, hash function, hash length, hash.
pub const CID_BYTES: usize = 36;

/// Room for the text of a CID of that length, and what its groups of eight digits round it up to.
const TEXT_BYTES_USUAL: usize = 67;

/// RFC 4648 base32, lower case.
const BASE32: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";

/// What kind of block a CID names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Codec {
    /// 0x71: commit, MST node or record.
    DagCbor,
    /// 0x55: blob.
    Raw,
}

/// A CIDv1 with a SHA-256.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Cid {
    /// What kind of block it names.
    pub codec: Codec,
    /// SHA-256 of the block.
    pub digest: [u8; 32],
}

impl Cid {
    /// Reads a binary CID of exactly this form; `None` for every other.
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (head, digest) = bytes.split_at_checked(4)?;
        let codec = match head {
            [1, 0x71, 0x12, 0x20] => Codec::DagCbor,
            [1, 0x55, 0x12, 0x20] => Codec::Raw,
            _ => return None,
        };
        Some(Self { codec, digest: digest.try_into().ok()? })
    }

    /// The binary form.
    #[must_use]
    pub fn to_bytes(self) -> [u8; CID_BYTES] {
        let mut bytes = [0; CID_BYTES];
        let codec = if self.codec == Codec::DagCbor { 0x71 } else { 0x55 };
        bytes[..4].copy_from_slice(&[1, codec, 0x12, 0x20]);
        bytes[4..].copy_from_slice(&self.digest);
        bytes
    }

    /// Appends the text form (`bafyrei...`) to `out`.
    pub fn write_text(self, out: &mut Vec<u8>) {
        write_text(&self.to_bytes(), out);
    }
}

impl std::fmt::Display for Cid {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut text = Vec::with_capacity(59);
        self.write_text(&mut text);
        f.write_str(&String::from_utf8_lossy(&text))
    }
}

/// Appends any binary CID as multibase base32 (`b...`, RFC 4648 lower case without padding) to `out`.
///
/// Five bytes are eight digits: four look-ups of two digits each.
pub fn write_text(cid: &[u8], out: &mut Vec<u8>) {
    let (groups, rest) = cid.as_chunks::<5>();
    let mut text = [b'b'; TEXT_BYTES_USUAL];
    if let (Some(digits), [last]) = (text[1..].as_chunks_mut::<8>().0.get_mut(..groups.len()), rest)
    {
        // The usual CID of 36 bytes: seven groups, and two digits for the last byte.
        for (digits, group) in digits.iter_mut().zip(groups) {
            *digits = digits_of(*group);
        }
        let end = 1 + groups.len() * 8;
        text[end..end + 2].copy_from_slice(&digits_of([*last, 0, 0, 0, 0])[..2]);
        return out.extend_from_slice(&text[..end + 2]);
    }
    out.push(b'b');
    groups.iter().for_each(|group| out.extend_from_slice(&digits_of(*group)));
    let mut group = [0; 5];
    group[..rest.len()].copy_from_slice(rest);
    out.extend_from_slice(&digits_of(group)[..(rest.len() * 8).div_ceil(5)]);
}

#[inline]
#[allow(clippy::cast_possible_truncation, reason = "ten bits are wanted")]
fn digits_of([a, b, c, d, e]: [u8; 5]) -> [u8; 8] {
    let bits = u64::from_be_bytes([0, 0, 0, a, b, c, d, e]);
    let pair = |shift: u32| PAIRS[(bits >> shift) as usize & 1023];
    let ([a, b], [c, d], [e, f], [g, h]) = (pair(30), pair(20), pair(10), pair(0));
    [a, b, c, d, e, f, g, h]
}

/// Both base32 digits of every ten bits: 2 KiB, which stay in the nearest cache.
static PAIRS: [[u8; 2]; 1024] = {
    let mut pairs = [[0; 2]; 1024];
    let mut bits = 0;
    while bits < 1024 {
        pairs[bits] = [BASE32[bits >> 5], BASE32[bits & 31]];
        bits += 1;
    }
    pairs
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_agrees_with_the_reference_crate() {
        for codec in [Codec::DagCbor, Codec::Raw] {
            let ours = Cid { codec, digest: std::array::from_fn(|i| (i * 37) as u8) };
            let theirs = cid::Cid::try_from(ours.to_bytes().as_slice()).unwrap();
            assert_eq!(ours.to_string(), theirs.to_string());
            assert_eq!(Cid::from_bytes(&ours.to_bytes()), Some(ours));
        }
        assert_eq!(Cid::from_bytes(&[1, 0x71, 0x12, 0x20]), None);
    }

    #[test]
    fn a_cid_of_any_length_is_base32_without_padding() {
        let text = |bytes: &[u8]| {
            let mut out = b"before ".to_vec();
            write_text(bytes, &mut out);
            String::from_utf8(out).unwrap()
        };
        // RFC 4648, section 10.
        let rfc = ["", "my", "mzxq", "mzxw6", "mzxw6yq", "mzxw6ytb", "mzxw6ytboi"];
        for (length, digits) in rfc.into_iter().enumerate() {
            assert_eq!(text(&b"foobar"[..length]), format!("before b{digits}"));
        }
        // Bit by bit, on both sides of the usual length.
        let bytes: Vec<u8> = (0..90_u32).map(|n| (n * 37 + 11) as u8).collect();
        for length in 0..bytes.len() {
            let bits: Vec<u8> =
                (0..length * 8).map(|at| bytes[at / 8] >> (7 - at % 8) & 1).collect();
            let digit = |bits: &[u8]| {
                let value = bits.iter().fold(0, |value, bit| value * 2 + bit);
                char::from(BASE32[usize::from(value << (5 - bits.len()))])
            };
            let digits: String = bits.chunks(5).map(digit).collect();
            assert_eq!(text(&bytes[..length]), format!("before b{digits}"), "{length} bytes");
        }
    }
}
