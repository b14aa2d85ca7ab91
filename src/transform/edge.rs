//! Likes, reposts, follows and blocks as nearly all of them are written: canonical DAG-CBOR with no other fields.
//!
//! ```text
//!  {via: ref}? {$type: one of four, subject: ref | text, createdAt: text}        ref = {cid: text, uri: text}
//! ```
//! What is exploited: canonical maps have one byte sequence around their values, so a few comparisons recognise the whole record, and
//! texts of plain ASCII (0x20 to 0x7e without `"` and `\`) are UTF-8 and need no escape in either form of JSON. Everything
//! else, whatever it is, is left to `fields`, which the tests hold this file against. Three of four records are such; `benches/parse.rs`
//! shows what it buys.

use crate::domain::filter::Kind;
use crate::domain::window::Stamp;
use crate::transform::RecordSource;
use crate::transform::json::is_plain;
use crate::transform::row::write_end;

/// `$type` and its value, as canonical CBOR.
const TYPES: [(&[u8], Kind); 4] = [
    (b"\x65$type\x72app.bsky.feed.like", Kind::Like),
    (b"\x65$type\x74app.bsky.feed.repost", Kind::Repost),
    (b"\x65$type\x75app.bsky.graph.follow", Kind::Follow),
    (b"\x65$type\x74app.bsky.graph.block", Kind::Block),
];

/// A recognised record. All texts are plain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Edge<'a> {
    pub kind: Kind,
    pub created_at: &'a [u8],
    /// CID of what a like or repost is about; empty for a follow or block.
    cid: &'a [u8],
    /// Its URI, or the DID of a follow or block.
    subject: &'a [u8],
}

impl<'a> Edge<'a> {
    /// Recognises `record`; `None` says nothing about it.
    #[inline]
    pub fn recognise(record: &'a [u8]) -> Option<Self> {
        let rest = match record.strip_prefix(b"\xa4\x63via") {
            Some(rest) => reference(rest)?.2,
            None => record.strip_prefix(b"\xa3")?,
        };
        let of = |(prefix, kind): &(&[u8], Kind)| Some((rest.strip_prefix(*prefix)?, *kind));
        let (rest, kind) = TYPES.iter().find_map(of)?;
        let rest = rest.strip_prefix(b"\x67subject")?;
        let (cid, subject, rest) = match kind {
            Kind::Like | Kind::Repost => reference(rest)?,
            _ => text(rest).map(|(subject, rest)| (&[][..], subject, rest))?,
        };
        let (created_at, rest) = text(rest.strip_prefix(b"\x69createdAt")?)?;
        rest.is_empty().then_some(Self { kind, created_at, cid, subject })
    }

    /// Appends its row.
    pub fn write(&self, stamp: &Stamp, source: &RecordSource<'_>, out: &mut Vec<u8>) {
        out.extend_from_slice(b"{\"createdAt\":\"");
        out.extend_from_slice(self.created_at);
        if self.cid.is_empty() {
            out.extend_from_slice(b"\",\"subject\":\"");
            out.extend_from_slice(self.subject);
            out.extend_from_slice(b"\",\"py_type\":\"");
        } else {
            out.extend_from_slice(b"\",\"subject\":\"{\\\"cid\\\": \\\"");
            out.extend_from_slice(self.cid);
            out.extend_from_slice(b"\\\", \\\"uri\\\": \\\"");
            out.extend_from_slice(self.subject);
            out.extend_from_slice(
                b"\\\", \\\"py_type\\\": \\\"com.atproto.repo.strongRef\\\"}\",\"py_type\":\"",
            );
        }
        out.extend_from_slice(self.kind.nsid().as_bytes());
        out.push(b'"');
        write_end(self.kind, stamp, source, out);
    }
}

/// CID and URI of a reference, and what follows it.
#[inline]
fn reference(bytes: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let (cid, rest) = text(bytes.strip_prefix(b"\xa2\x63cid")?)?;
    let (uri, rest) = text(rest.strip_prefix(b"\x63uri")?)?;
    (!cid.is_empty()).then_some((cid, uri, rest))
}

/// A plain text of at most 255 bytes, and what follows it.
#[inline]
fn text(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (length, rest) = match bytes {
        [initial @ 0x60..=0x77, rest @ ..] => (initial & 0x1f, rest),
        [0x78, length, rest @ ..] => (*length, rest),
        _ => return None,
    };
    let (text, rest) = rest.split_at_checked(usize::from(length))?;
    is_plain(text).then_some((text, rest))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::filter::{Filter, Offsets, Outside, TypeEntry, Window};
    use crate::repo::cid::{Cid, Codec};
    use crate::transform::{Origin, RecordBlock, Transformer};

    fn put(text: &str, out: &mut Vec<u8>) {
        match u8::try_from(text.len()).unwrap() {
            length @ 0..24 => out.push(0x60 | length),
            length => out.extend([0x78, length]),
        }
        out.extend(text.as_bytes());
    }

    fn put_reference(cid: &str, uri: &str, out: &mut Vec<u8>) {
        out.extend(b"\xa2\x63cid");
        put(cid, out);
        out.extend(b"\x63uri");
        put(uri, out);
    }

    fn record(kind: Kind, has_via: bool, cid: &str, subject: &str, created_at: &str) -> Vec<u8> {
        let mut out = vec![0xa3 + u8::from(has_via)];
        if has_via {
            put("via", &mut out);
            put_reference("bafyvia", "at://did:plc:via/a/b", &mut out);
        }
        put("$type", &mut out);
        put(kind.nsid(), &mut out);
        put("subject", &mut out);
        match kind {
            Kind::Like | Kind::Repost => put_reference(cid, subject, &mut out),
            _ => put(subject, &mut out),
        }
        put("createdAt", &mut out);
        put(created_at, &mut out);
        out
    }

    fn transformer() -> Transformer {
        let window = Window {
            start: "2024-09-27-00:00:00".to_owned(),
            end: "2024-12-02-00:00:00".to_owned(),
            outside: Outside::Bucket,
            offsets: Offsets::Utc,
        };
        Transformer::new(&Filter { types: Kind::ALL.map(TypeEntry::Kind).to_vec(), window })
    }

    fn rows(record: &[u8]) -> (String, String) {
        let origin = Origin::new("did:plc:aaaaaaaaaaaaaaaaaaaaaaaa", "3l5nhh4s4xs2b");
        let (cid, key) = (Cid { codec: Codec::DagCbor, digest: [9; 32] }, "a.b.c/3l5nhh4s4xs2b");
        let source = RecordSource { origin: &origin, key, cid, block: RecordBlock::Held(record) };
        let transformer = transformer();
        let [ordinary, plain] = [transformer.read(&source), transformer.read_generally(&source)];
        assert_eq!(ordinary.verdict(), plain.verdict());
        let written = [ordinary, plain].map(|plan| {
            let mut out = Vec::new();
            plan.write(&mut out);
            String::from_utf8(out).unwrap()
        });
        (written[0].clone(), written[1].clone())
    }

    /// Every recognised record becomes the very row that the general reader makes of it, and every byte changed anywhere
    /// leaves both in agreement.
    #[test]
    fn recognised_records_and_their_neighbours_become_the_rows_of_the_general_reader() {
        let (mut recognised, mut neighbours) = (0, 0);
        for kind in [Kind::Like, Kind::Repost, Kind::Follow, Kind::Block] {
            for has_via in [false, true] {
                for (cid, subject, created_at) in [
                    (
                        "bafyreib",
                        "at://did:plc:x/app.bsky.feed.post/3l",
                        "2024-10-05T12:34:56.789Z",
                    ),
                    ("", "", "2024-10-05T12:34:56Z"),
                    ("b", "did:plc:\"quoted\"", "2024-10-05T12:34:56+09:00"),
                    ("b\\", "did:web:é", "2031-01-16T00:00:00Z \u{7f}"),
                    ("b", "did:plc:y", "never"),
                ] {
                    let record = record(kind, has_via, cid, subject, created_at);
                    recognised += usize::from(Edge::recognise(&record).is_some());
                    for at in 0..record.len() {
                        for flip in [0, 1, 0x20, 0x80] {
                            let mut record = record.clone();
                            record[at] ^= flip;
                            let (ordinary, plain) = rows(&record);
                            assert_eq!(ordinary, plain, "byte {at} of {kind:?} ^ {flip}");
                            neighbours += 1;
                        }
                    }
                }
            }
        }
        assert!(recognised >= 16 && neighbours > 10_000, "{recognised}, {neighbours}");
    }
}
