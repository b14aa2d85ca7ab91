//! JSON text from CBOR values with DIDs replaced, as `json` writes it without: the slower way, taken only with pseudonyms.

use crate::repo::cbor::{CborError, Item, Reader};
use crate::transform::json::Form;
use crate::transform::pseudonym::Pseudonyms;

/// Keys of free text within embeds.
const FREE: [&[u8]; 5] = [b"alt", b"title", b"description", b"text", b"name"];

/// Which texts of a value are looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
    /// All but those under the keys of free text.
    NotFree,
    /// Those under this key.
    Only(&'static [u8]),
    /// All of them, and map keys.
    All,
}

impl Rule {
    fn looks_at(self, key: &[u8]) -> bool {
        match self {
            Self::NotFree => !FREE.contains(&key),
            Self::Only(only) => only == key,
            Self::All => true,
        }
    }
}

/// A container that is being written.
struct Open<'v> {
    /// Items that are left, keys and values alike.
    left: u64,
    is_map: bool,
    /// The key that its values stand under; of an array, that of the array.
    key: &'v [u8],
}

/// Appends a whole value.
///
/// # Errors
/// [`CborError`] if the value was not validated before; `out` then ends anywhere.
pub fn write_value(
    form: Form,
    value: &[u8],
    names: &Pseudonyms,
    rule: Rule,
    out: &mut Vec<u8>,
) -> Result<(), CborError> {
    let (mut reader, mut stack): (_, Vec<Open<'_>>) = (Reader::new(value), Vec::new());
    loop {
        let is_key = stack.last().is_some_and(|open| open.is_map && open.left.is_multiple_of(2));
        let key = stack.last().map_or(&[][..], |open| open.key);
        match reader.read()? {
            Item::Array(0) => out.extend_from_slice(b"[]"),
            Item::Map(0) => out.extend_from_slice(b"{}"),
            Item::Array(left) => {
                out.push(b'[');
                stack.push(Open { left, is_map: false, key });
                continue;
            }
            Item::Map(pairs) => {
                out.push(b'{');
                stack.push(Open { left: pairs.saturating_mul(2), is_map: true, key: &[] });
                continue;
            }
            Item::Text(text) if is_key => {
                let shown = if rule == Rule::All { names.whole(text) } else { text.into() };
                form.write_text(&shown, out);
                if let Some(open) = stack.last_mut() {
                    open.key = text;
                }
            }
            Item::Text(text) if rule.looks_at(key) => form.write_text(&names.whole(text), out),
            scalar => form.write_scalar(scalar, out),
        }
        loop {
            let Some(open) = stack.last_mut() else { return Ok(()) };
            open.left -= 1;
            if open.left > 0 {
                let is_after_key = open.is_map && open.left % 2 == 1;
                out.extend_from_slice(if is_after_key { form.colon() } else { form.comma() });
                break;
            }
            out.push(if open.is_map { b'}' } else { b']' });
            stack.pop();
        }
    }
}
