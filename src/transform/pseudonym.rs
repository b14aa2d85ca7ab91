//! Pseudonyms: keyed hashes in the place of DIDs, the same for the same DID and key everywhere.
//!
//! ```text
//!  did:pseudo:<32 characters of a-z2-7>    base32 of the first 20 bytes of HMAC-SHA256(key, DID), the host of did:web in lower case
//! ```
//! A *DID* here is whatever looks like one (`did:method:...`), whether any directory knows it or not. A *field* that stands for an
//! account or a record (subject, uri) is replaced from its beginning on, whatever follows the DID; any other text only if it is a
//! DID, or the URI of a record of one, as a whole. Record keys that are DIDs are replaced too. Texts and handles are not touched,
//! and what points to the network by itself (CIDs, record keys) stays: pseudonyms are no anonymity.

use std::borrow::Cow;

use ring::hmac;
use sha2::{Digest, Sha256};

/// Bytes that a key has at least: as many as the hash.
pub const KEY_BYTES_MIN: usize = 32;

/// Bytes of the hash that are shown: none of 10^12 accounts shares its pseudonym with another.
const SHOWN_BYTES: usize = 20;

/// What every pseudonym begins with.
const PREFIX: &str = "did:pseudo:";

const URI: &[u8] = b"at://";

/// Replaces DIDs by keyed hashes; cheap to clone.
#[derive(Clone)]
pub struct Pseudonyms {
    key: hmac::Key,
    id: String,
}

impl std::fmt::Debug for Pseudonyms {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Pseudonyms({})", self.id)
    }
}

impl Pseudonyms {
    /// Pseudonyms by `key`; `None` if it is too short.
    #[must_use]
    pub fn new(key: &[u8]) -> Option<Self> {
        if key.len() < KEY_BYTES_MIN {
            return None;
        }
        let named = [b"skyfill pseudonyms: the name of this key\0".as_slice(), key].concat();
        let id = Sha256::digest(named)[..8].iter().map(|byte| format!("{byte:02x}")).collect();
        Some(Self { key: hmac::Key::new(hmac::HMAC_SHA256, key), id })
    }

    /// Names the key without telling it: 16 hexadecimal digits.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The pseudonym of a DID.
    #[must_use]
    pub fn of(&self, did: &str) -> String {
        let canonical = if did.starts_with("did:web:") {
            Cow::Owned(did.to_ascii_lowercase())
        } else {
            Cow::Borrowed(did)
        };
        let tag = hmac::sign(&self.key, canonical.as_bytes());
        let mut text = PREFIX.to_owned();
        base32(&tag.as_ref()[..SHOWN_BYTES], &mut text);
        text
    }

    /// A field that stands for an account or a record.
    pub(super) fn field<'t>(&self, text: &'t [u8]) -> Cow<'t, [u8]> {
        let Some((start, authority)) = authority(text) else { return Cow::Borrowed(text) };
        let length = did_length(authority);
        if length == 0 {
            return Cow::Borrowed(text);
        }
        self.replaced(text, start, length)
    }

    /// Any other text.
    pub(super) fn whole<'t>(&self, text: &'t [u8]) -> Cow<'t, [u8]> {
        let Some((start, authority)) = authority(text) else { return Cow::Borrowed(text) };
        let is_whole = did_length(authority) == authority.len() && !authority.is_empty();
        let is_one_word = !text.iter().any(u8::is_ascii_whitespace);
        if !is_whole || !is_one_word || (start == 0 && authority.len() < text.len()) {
            return Cow::Borrowed(text);
        }
        self.replaced(text, start, authority.len())
    }

    /// A `<collection>/<rkey>`.
    pub(super) fn key<'t>(&self, key: &'t str) -> Cow<'t, str> {
        match key.split_once('/') {
            Some((collection, rkey)) if did_length(rkey.as_bytes()) == rkey.len() => {
                Cow::Owned(format!("{collection}/{}", self.of(rkey)))
            }
            _ => Cow::Borrowed(key),
        }
    }

    /// `text` with the DID of `length` bytes at `start` replaced, and the record key behind it if that is one.
    fn replaced(&self, text: &[u8], start: usize, length: usize) -> Cow<'static, [u8]> {
        let did = String::from_utf8_lossy(&text[start..start + length]);
        let mut out = text[..start].to_vec();
        out.extend_from_slice(self.of(&did).as_bytes());
        let rest = &text[start + length..];
        let path = rest.strip_prefix(b"/").and_then(|path| {
            let slash = path.iter().position(|byte| *byte == b'/')?;
            Some((&rest[..slash + 2], &path[slash + 1..]))
        });
        match path {
            Some((collection, rkey)) if start > 0 && did_length(rkey) > 0 => {
                let (rkey, after) = rkey.split_at(did_length(rkey));
                out.extend_from_slice(collection);
                out.extend_from_slice(self.of(&String::from_utf8_lossy(rkey)).as_bytes());
                out.extend_from_slice(after);
            }
            _ => out.extend_from_slice(rest),
        }
        Cow::Owned(out)
    }
}

/// Where the DID of a text would begin, and up to where it could reach: all of it, or the authority of an `at://` URI.
fn authority(text: &[u8]) -> Option<(usize, &[u8])> {
    match text.strip_prefix(URI) {
        Some(rest) => {
            let end = rest.iter().position(|byte| matches!(byte, b'/' | b'?' | b'#'));
            Some((URI.len(), &rest[..end.unwrap_or(rest.len())]))
        }
        None => text.starts_with(b"did:").then_some((0, text)),
    }
}

/// Bytes of the DID that `text` begins with, 0 if it begins with none.
fn did_length(text: &[u8]) -> usize {
    let Some(rest) = text.strip_prefix(b"did:") else { return 0 };
    let method =
        rest.iter().take_while(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit()).count();
    let Some(id) = rest[method..].strip_prefix(b":").filter(|_| method > 0) else { return 0 };
    let is_of_id = |byte: &&u8| byte.is_ascii_alphanumeric() || b"._:%-".contains(byte);
    match id.iter().take_while(is_of_id).count() {
        0 => 0,
        length => 4 + method + 1 + length,
    }
}

fn base32(bytes: &[u8], out: &mut String) {
    let (mut bits, mut count) = (0_u32, 0);
    for byte in bytes {
        bits = bits << 8 | u32::from(*byte);
        count += 8;
        while count >= 5 {
            count -= 5;
            out.push(char::from(
                b"abcdefghijklmnopqrstuvwxyz234567"[(bits >> count & 31) as usize],
            ));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names() -> Pseudonyms {
        Pseudonyms::new(&[7; 32]).unwrap()
    }

    #[test]
    fn it_is_the_hash_that_others_compute() {
        // python3: base64.b32encode(hmac.new(bytes([7]*32), b"did:plc:44ybard66vv44zksje25o7dz", "sha256").digest()[:20])
        let known = "apcrmx4fwttsl4aysy7vrvokff5t3mi3";
        assert_eq!(names().of("did:plc:44ybard66vv44zksje25o7dz"), format!("did:pseudo:{known}"));
        assert_eq!(names().of("did:web:Example.COM"), names().of("did:web:example.com"));
        assert!(Pseudonyms::new(&[7; 31]).is_none());
        let other = Pseudonyms::new(&[8; 32]).unwrap();
        assert!(other.id() != names().id() && other.of("did:plc:a") != names().of("did:plc:a"));
        assert_eq!(format!("{other:?}"), format!("Pseudonyms({})", other.id()));
    }

    #[test]
    fn fields_are_replaced_from_their_beginning_and_other_texts_as_a_whole() {
        let names = names();
        let p = |did: &str| names.of(did);
        let a = "did:plc:44ybard66vv44zksje25o7dz";
        for (text, field, whole) in [
            (a.to_owned(), p(a), p(a)),
            (format!("at://{a}"), format!("at://{}", p(a)), format!("at://{}", p(a))),
            (
                format!("at://{a}/app.bsky.feed.post/3l?x#y"),
                format!("at://{}/app.bsky.feed.post/3l?x#y", p(a)),
                format!("at://{}/app.bsky.feed.post/3l?x#y", p(a)),
            ),
            (
                format!("at://{a}/a.b.c/did:web:x.org"),
                format!("at://{}/a.b.c/{}", p(a), p("did:web:x.org")),
                format!("at://{}/a.b.c/{}", p(a), p("did:web:x.org")),
            ),
            (format!("{a} is me"), format!("{} is me", p(a)), format!("{a} is me")),
            (format!("{a}\n"), format!("{}\n", p(a)), format!("{a}\n")),
            (
                format!("at://{a}/b look"),
                format!("at://{}/b look", p(a)),
                format!("at://{a}/b look"),
            ),
            (format!("see {a}"), format!("see {a}"), format!("see {a}")),
            ("at://user.test/a/b".into(), "at://user.test/a/b".into(), "at://user.test/a/b".into()),
            ("did:".into(), "did:".into(), "did:".into()),
            ("did:plc:".into(), "did:plc:".into(), "did:plc:".into()),
            ("did:PLC:x".into(), "did:PLC:x".into(), "did:PLC:x".into()),
            (String::new(), String::new(), String::new()),
        ] {
            let text = text.as_bytes();
            assert_eq!(String::from_utf8_lossy(&names.field(text)), field);
            assert_eq!(String::from_utf8_lossy(&names.whole(text)), whole);
        }
        assert_eq!(names.key("a.b.c/3l"), "a.b.c/3l");
        assert_eq!(names.key(&format!("a.b.c/{a}")), format!("a.b.c/{}", p(a)));
    }
}
