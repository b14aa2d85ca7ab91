//! Rows of rejected records: where the record is, why it was rejected, and what it holds (TRANSFORM, "Rejected").

use std::borrow::Cow;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use crate::transform::json::{Form, escape};
use crate::transform::row::write_nested;
use crate::transform::{Detail, RecordBlock, RecordSource};

/// Bytes of `record` or `raw` in a rejected row; larger ones are null.
const SHOWN_BYTES_MAX: usize = 1 << 20;

/// Appends the row of a rejected record.
pub fn write(
    reason: &str,
    detail: Detail,
    is_decodable: bool,
    source: &RecordSource<'_>,
    out: &mut Vec<u8>,
) {
    let names = source.origin.names.as_deref();
    let key = names.map_or(Cow::Borrowed(source.key), |names| names.key(source.key));
    let (collection, rkey) = key.split_once('/').unwrap_or((&*key, ""));
    out.extend_from_slice(b"{\"did\":");
    Form::Nested.write_text(source.origin.did.as_bytes(), out);
    out.extend_from_slice(b",\"collection\":");
    Form::Nested.write_text(collection.as_bytes(), out);
    out.extend_from_slice(b",\"rkey\":");
    Form::Nested.write_text(rkey.as_bytes(), out);
    out.extend_from_slice(b",\"uri\":\"at://");
    escape(source.origin.did.as_bytes(), out);
    out.push(b'/');
    escape(key.as_bytes(), out);
    out.push(b'"');
    out.extend_from_slice(b",\"cid\":\"");
    source.cid.write_text(out);
    out.extend_from_slice(b"\",\"rev\":");
    Form::Nested.write_text(source.origin.rev.as_bytes(), out);
    out.extend_from_slice(b",\"reason\":");
    Form::Nested.write_text(reason.as_bytes(), out);
    out.extend_from_slice(b",\"detail\":");
    Form::Nested.write_text(detail.to_string().as_bytes(), out);
    let held = match source.block {
        RecordBlock::Held(bytes) => Some(bytes),
        RecordBlock::TooLarge(_) => None,
    };
    out.extend_from_slice(b",\"record\":");
    let start = out.len();
    match held.filter(|_| is_decodable) {
        Some(record) => write_nested(record, names, out),
        None => out.extend_from_slice(b"null"),
    }
    null_if_too_long(start, out);
    out.extend_from_slice(b",\"raw\":");
    let start = out.len();
    // Nobody can replace what nobody can read.
    match held.filter(|_| !is_decodable && names.is_none()) {
        Some(record) => Form::Nested.write_text(STANDARD.encode(record).as_bytes(), out),
        None => out.extend_from_slice(b"null"),
    }
    null_if_too_long(start, out);
    out.push(b'}');
}

fn null_if_too_long(start: usize, out: &mut Vec<u8>) {
    if out.len() - start > SHOWN_BYTES_MAX {
        out.truncate(start);
        out.extend_from_slice(b"null");
    }
}

impl std::fmt::Display for Detail {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Text(text) => f.write_str(text),
            Self::Cbor(error) => error.fmt(f),
            Self::Bytes(bytes) => write!(f, "{bytes} bytes, the limit is 1,000,000"),
        }
    }
}
