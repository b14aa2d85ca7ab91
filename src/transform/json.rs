//! JSON text straight from CBOR values: as nested JSON, or as Python's `json.dumps` text inside a JSON string.
//!
//! The second form is ASCII of 0x20 to 0x7e, so that escaping it once more for the string around it touches only `"` and `\`;
//! both escapings are written in one pass. Values have been validated: depth is bounded, text is UTF-8, floats are finite.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD;

use crate::repo::cbor::{CborError, Item, Reader};
use crate::repo::cid;

/// Which of the two forms.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// Nested JSON: UTF-8, compact, `{"$link": ...}` and `{"$bytes": ...}`.
    Nested,
    /// Python JSON text within a JSON string: ASCII, `", "` and `": "`, links as plain text.
    Python,
}

impl Form {
    const fn quote(self) -> &'static [u8] {
        match self {
            Self::Nested => b"\"",
            Self::Python => b"\\\"",
        }
    }

    pub(super) const fn comma(self) -> &'static [u8] {
        match self {
            Self::Nested => b",",
            Self::Python => b", ",
        }
    }

    pub(super) const fn colon(self) -> &'static [u8] {
        match self {
            Self::Nested => b":",
            Self::Python => b": ",
        }
    }

    /// Appends `text`, which is UTF-8, with its quotes.
    pub fn write_text(self, text: &[u8], out: &mut Vec<u8>) {
        out.extend_from_slice(self.quote());
        match self {
            Self::Nested => escape(text, out),
            Self::Python => escape_python(text, out),
        }
        out.extend_from_slice(self.quote());
    }

    fn write_bytes(self, bytes: &[u8], out: &mut Vec<u8>) {
        out.push(b'{');
        self.write_text(b"$bytes", out);
        out.extend_from_slice(self.colon());
        self.write_text(STANDARD_NO_PAD.encode(bytes).as_bytes(), out);
        out.push(b'}');
    }

    /// Appends a link.
    pub fn write_link(self, link: &[u8], out: &mut Vec<u8>) {
        if self == Self::Nested {
            out.extend_from_slice(b"{\"$link\":");
        }
        out.extend_from_slice(self.quote());
        cid::write_text(link, out);
        out.extend_from_slice(self.quote());
        if self == Self::Nested {
            out.push(b'}');
        }
    }

    /// Appends a value that is no container.
    pub(super) fn write_scalar(self, item: Item<'_>, out: &mut Vec<u8>) {
        match item {
            Item::Unsigned(number) => write_number(number.into(), out),
            Item::Negative(number) => write_number(-1 - i128::from(number), out),
            Item::Float(number) => write_float(number, out),
            Item::Bool(true) => out.extend_from_slice(b"true"),
            Item::Bool(false) => out.extend_from_slice(b"false"),
            Item::Text(text) => self.write_text(text, out),
            Item::Bytes(bytes) => self.write_bytes(bytes, out),
            Item::Link(link) => self.write_link(link, out),
            Item::Null | Item::Array(_) | Item::Map(_) => out.extend_from_slice(b"null"),
        }
    }

    /// Appends a whole value.
    ///
    /// # Errors
    /// [`CborError`] if the value was not validated before; `out` then ends anywhere.
    pub fn write_value(self, value: &[u8], out: &mut Vec<u8>) -> Result<(), CborError> {
        let mut reader = Reader::new(value);
        // Items left and whether it is a map: an even number of a map's items means that a key is next.
        let mut stack: Vec<(u64, bool)> = Vec::new();
        loop {
            match reader.read()? {
                Item::Array(0) => out.extend_from_slice(b"[]"),
                Item::Map(0) => out.extend_from_slice(b"{}"),
                Item::Array(entries) => {
                    out.push(b'[');
                    stack.push((entries, false));
                    continue;
                }
                Item::Map(pairs) => {
                    out.push(b'{');
                    stack.push((pairs.saturating_mul(2), true));
                    continue;
                }
                scalar => self.write_scalar(scalar, out),
            }
            loop {
                let Some((left, is_map)) = stack.last_mut() else { return Ok(()) };
                *left -= 1;
                if *left > 0 {
                    let is_after_key = *is_map && *left % 2 == 1;
                    out.extend_from_slice(if is_after_key { self.colon() } else { self.comma() });
                    break;
                }
                out.push(if *is_map { b'}' } else { b']' });
                stack.pop();
            }
        }
    }
}

/// Appends `text`, which is UTF-8, as it stands inside a JSON string: `"`, `\` and control characters escaped.
pub fn escape(text: &[u8], out: &mut Vec<u8>) {
    let mut rest = text;
    loop {
        let (plain, special) = rest.split_at(run(rest, needs_escape));
        out.extend_from_slice(plain);
        let Some((byte, after)) = special.split_first() else { return };
        match short_escape(*byte) {
            Some(letter) => out.extend_from_slice(&[b'\\', letter]),
            None => write_unicode(u16::from(*byte), out),
        }
        rest = after;
    }
}

/// Appends the content of a Python JSON string, escaped once more for the JSON string around it.
pub fn escape_python(text: &[u8], out: &mut Vec<u8>) {
    let mut rest = text;
    loop {
        let (plain, special) = rest.split_at(run(rest, needs_python_escape));
        out.extend_from_slice(plain);
        let Some(byte) = special.first() else { return };
        if byte.is_ascii() {
            escape_python_byte(*byte, out);
            rest = &special[1..];
            continue;
        }
        let end = special.iter().position(u8::is_ascii).unwrap_or(special.len());
        for character in String::from_utf8_lossy(&special[..end]).chars() {
            for unit in character.encode_utf16(&mut [0; 2]) {
                out.push(b'\\');
                write_unicode(*unit, out);
            }
        }
        rest = &special[end..];
    }
}

fn escape_python_byte(byte: u8, out: &mut Vec<u8>) {
    match short_escape(byte) {
        Some(letter) => {
            // The letter of `\"` and `\\` is itself one that the outer string escapes.
            out.extend_from_slice(b"\\\\");
            if matches!(letter, b'"' | b'\\') {
                out.push(b'\\');
            }
            out.push(letter);
        }
        None => {
            out.push(b'\\');
            write_unicode(u16::from(byte), out);
        }
    }
}

/// A one, and a high bit, in each of eight bytes.
const ONES: u64 = u64::MAX / 255;
const HIGH_BITS: u64 = ONES << 7;

/// Bytes before the first for which `special` sets the high bit; eight are looked at at once.
#[inline]
fn run(bytes: &[u8], special: impl Fn(u64) -> u64) -> usize {
    let (words, rest) = bytes.as_chunks::<8>();
    for (index, word) in words.iter().enumerate() {
        let found = special(u64::from_le_bytes(*word));
        if found != 0 {
            return index * 8 + first_byte(found);
        }
    }
    let mut last = [b' '; 8];
    last[..rest.len()].copy_from_slice(rest);
    let found = special(u64::from_le_bytes(last));
    words.len() * 8 + if found == 0 { rest.len() } else { first_byte(found) }
}

/// Whether `text` is ASCII that stands for itself in both forms: 0x20 to 0x7e without `"` and `\`.
#[inline]
pub fn is_plain(text: &[u8]) -> bool {
    run(text, needs_python_escape) == text.len()
}

/// Index of the lowest byte whose high bit is set. Borrows of the tests below run upwards only, so the lowest is exact.
#[inline]
const fn first_byte(found: u64) -> usize {
    found.trailing_zeros() as usize / 8
}

/// High bits of the bytes of `word` that equal `byte`, the lowest of them exactly.
#[inline]
const fn equal(word: u64, byte: u8) -> u64 {
    let difference = word ^ (ONES * byte as u64);
    difference.wrapping_sub(ONES) & !difference & HIGH_BITS
}

/// Control characters, `"` and `\`.
#[inline]
const fn needs_escape(word: u64) -> u64 {
    let controls = word.wrapping_sub(ONES * 0x20) & !word & HIGH_BITS;
    controls | equal(word, b'"') | equal(word, b'\\')
}

/// The same, and everything that is not ASCII, and 0x7f.
#[inline]
const fn needs_python_escape(word: u64) -> u64 {
    needs_escape(word) | equal(word, 0x7f) | (word & HIGH_BITS)
}

fn short_escape(byte: u8) -> Option<u8> {
    Some(match byte {
        b'"' | b'\\' => byte,
        b'\n' => b'n',
        b'\r' => b'r',
        b'\t' => b't',
        0x08 => b'b',
        0x0c => b'f',
        _ => return None,
    })
}

/// Appends `\uXXXX`, lower case.
fn write_unicode(unit: u16, out: &mut Vec<u8>) {
    let digit = |shift: u16| b"0123456789abcdef"[usize::from(unit >> shift & 15)];
    out.extend_from_slice(&[b'\\', b'u', digit(12), digit(8), digit(4), digit(0)]);
}

fn write_number(number: i128, out: &mut Vec<u8>) {
    out.extend_from_slice(number.to_string().as_bytes());
}

/// Appends a float as Python's `repr` writes it: shortest digits, an exponent below 1e-4 and from 1e16 on.
fn write_float(number: f64, out: &mut Vec<u8>) {
    let shortest = format!("{number:e}");
    let (digits, exponent) = shortest.split_once('e').unwrap_or((&shortest, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    let text = if (-4..16).contains(&exponent) {
        let plain = format!("{number}");
        if plain.contains('.') { plain } else { format!("{plain}.0") }
    } else {
        let sign = if exponent < 0 { '-' } else { '+' };
        format!("{digits}e{sign}{:02}", exponent.unsigned_abs())
    };
    out.extend_from_slice(text.as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    fn float(number: f64) -> String {
        let mut out = Vec::new();
        write_float(number, &mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn floats_are_written_as_python_writes_them() {
        for (number, text) in [
            (1.0, "1.0"),
            (-0.0, "-0.0"),
            (0.1, "0.1"),
            (1e16, "1e+16"),
            (1e15, "1000000000000000.0"),
            (1e-4, "0.0001"),
            (1e-5, "1e-05"),
            (1.5e-7, "1.5e-07"),
            (1e300, "1e+300"),
            (5e-324, "5e-324"),
            (123_456_789.25, "123456789.25"),
            (1.234_567_890_123_456_8e17, "1.2345678901234568e+17"),
        ] {
            assert_eq!(float(number), text);
        }
    }

    #[test]
    fn both_escapings_read_back() {
        let text = "q\" b\\ n\n t\t \u{1} \u{7f} é 日 🦋 / </script> \u{2028}";
        let mut plain = b"\"".to_vec();
        escape(text.as_bytes(), &mut plain);
        plain.push(b'"');
        assert_eq!(serde_json::from_slice::<String>(&plain).unwrap(), text);
        let mut double = b"\"".to_vec();
        Form::Python.write_text(text.as_bytes(), &mut double);
        double.push(b'"');
        let inner: String = serde_json::from_slice(&double).unwrap();
        assert!(
            inner.is_ascii() && inner.bytes().all(|byte| (0x20..0x7f).contains(&byte)),
            "{inner}"
        );
        assert_eq!(serde_json::from_str::<String>(&inner).unwrap(), text);
        assert!(inner.contains("\\ud83e\\udd8b") && inner.contains("\\u007f"), "{inner}");
    }
}
