//! Rows of the `deleted` queue: what was exported, and is no more at a newer revision.
//!
//! `record_type`, `did`, `uri`, `rev`, `previous_rev`, `synctimestamp`, in this order. `record_type` is that of the row it takes
//! back; of a type that was configured as a prefix, its collection. `rev` is the revision that was found without the record, and
//! `previous_rev` the one that was held: when in between it went, and what it held, nobody can say any more. `synctimestamp` is the
//! time that `rev` claims, in UTC, outside the window too: it says when the host wrote the revision, not when the record was
//! made. The same two revisions always give the same bytes.

use crate::clock::wall_text;
use crate::domain::tid::claimed_ms;
use crate::transform::json::escape;

/// What all deletions of one revision share.
#[derive(Clone, Debug)]
pub struct Deletions {
    /// `","did":"...","uri":"at://.../`
    head: Vec<u8>,
    /// `","rev":"...","previous_rev":"...","synctimestamp":"..."}`
    tail: Vec<u8>,
}

impl Deletions {
    /// Of the account `did`, found at `rev`; the revision before was `previous_rev`.
    #[must_use]
    pub fn new(did: &str, rev: &str, previous_rev: &str) -> Self {
        let (mut head, mut tail) = (b"\",\"did\":\"".to_vec(), b"\",\"rev\":\"".to_vec());
        escape(did.as_bytes(), &mut head);
        head.extend_from_slice(b"\",\"uri\":\"at://");
        escape(did.as_bytes(), &mut head);
        head.push(b'/');
        escape(rev.as_bytes(), &mut tail);
        tail.extend_from_slice(b"\",\"previous_rev\":\"");
        escape(previous_rev.as_bytes(), &mut tail);
        tail.extend_from_slice(b"\",\"synctimestamp\":\"");
        tail.extend_from_slice(wall_text(claimed_ms(rev).unwrap_or_default()).as_bytes());
        tail.extend_from_slice(b"\"}");
        Self { head, tail }
    }

    /// Appends the row of the record at `key`, whose own row went to the queue of `label`.
    pub fn write(&self, key: &str, label: &str, out: &mut Vec<u8>) {
        let record_type = match label.strip_suffix("._") {
            Some(_) => key.split_once('/').map_or(key, |(collection, _)| collection),
            None => label,
        };
        out.extend_from_slice(b"{\"record_type\":\"");
        escape(record_type.as_bytes(), out);
        out.extend_from_slice(&self.head);
        escape(key.as_bytes(), out);
        out.extend_from_slice(&self.tail);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_deletion_says_what_was_taken_back_and_between_which_revisions() {
        let deletions = Deletions::new("did:plc:abc", "3l5rc3yn3ko27", "3l5raaaaaaa2b");
        let row = |key, label| {
            let mut out = Vec::new();
            deletions.write(key, label, &mut out);
            String::from_utf8(out).unwrap()
        };
        let wanted = "{\"record_type\":\"reply\",\"did\":\"did:plc:abc\",\"uri\":\"at://did:plc:abc/app.bsky.feed.post/3k\",\
                      \"rev\":\"3l5rc3yn3ko27\",\"previous_rev\":\"3l5raaaaaaa2b\",\"synctimestamp\":\"2024-10-05-12:34:56\"}";
        assert_eq!(row("app.bsky.feed.post/3k", "reply"), wanted);
        assert!(row("app.x.y/3k", "app.x._").starts_with("{\"record_type\":\"app.x.y\","));
        assert!(row("app.other/3k", "app.x.y").starts_with("{\"record_type\":\"app.x.y\","));
    }
}
