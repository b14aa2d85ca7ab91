//! Rows of exported records: every field of its kind, in the order that readers know (TRANSFORM, "Fields").

use std::borrow::Cow;

use crate::domain::filter::Kind;
use crate::domain::window::Stamp;
use crate::repo::cbor::{Item, Reader};
use crate::transform::RecordSource;
use crate::transform::fields::{CidText, Field, Fields, ReplyRef, StrongRef, Subject};
use crate::transform::json::{Form, escape};
use crate::transform::mapped::{self, Rule};
use crate::transform::pseudonym::Pseudonyms;

/// What stands for DIDs, if not they themselves.
type Names<'n> = Option<&'n Pseudonyms>;

/// `$type` of a reference that does not say its own.
const STRONG_REF: &[u8] = b"com.atproto.repo.strongRef";
/// `$type` of a reply's pair of references that does not say its own.
const REPLY_REF: &[u8] = b"app.bsky.feed.defs#replyRef";

/// Appends the row of one of the six kinds.
pub fn write(
    kind: Kind,
    stamp: &Stamp,
    fields: &Fields<'_>,
    subject: &Subject<'_>,
    source: &RecordSource<'_>,
    out: &mut Vec<u8>,
) {
    let names = source.origin.names.as_deref();
    match kind {
        Kind::Post | Kind::Reply => write_post(kind, fields, subject, names, out),
        Kind::Like | Kind::Repost | Kind::Follow | Kind::Block => {
            write_edge(kind, fields, subject, names, out);
        }
    }
    write_end(kind, stamp, source, out);
}

/// Appends the fields that follow a record's own, and closes the row.
pub fn write_end(kind: Kind, stamp: &Stamp, source: &RecordSource<'_>, out: &mut Vec<u8>) {
    out.extend_from_slice(b",\"record_type\":\"");
    out.extend_from_slice(kind.label().as_bytes());
    out.extend_from_slice(b"\",\"synctimestamp\":\"");
    out.extend_from_slice(stamp);
    out.push(b'"');
    write_origin(source, out);
    out.push(b'}');
}

/// Appends the row of a configured type: the whole record as JSON.
pub fn write_custom(nsid: &[u8], record: &[u8], source: &RecordSource<'_>, out: &mut Vec<u8>) {
    out.extend_from_slice(b"{\"record_type\":");
    Form::Nested.write_text(nsid, out);
    write_origin(source, out);
    out.extend_from_slice(b",\"record\":");
    write_nested(record, source.origin.names.as_deref(), out);
    out.push(b'}');
}

/// Appends a validated value as nested JSON.
pub fn write_nested(record: &[u8], names: Names<'_>, out: &mut Vec<u8>) {
    let start = out.len();
    let written = match names {
        None => Form::Nested.write_value(record, out),
        Some(names) => mapped::write_value(Form::Nested, record, names, Rule::All, out),
    };
    if written.is_err() {
        out.truncate(start);
        out.extend_from_slice(b"null");
    }
}

/// Appends `did`, `uri`, `cid` and `rev`, each with the comma before it.
pub fn write_origin(source: &RecordSource<'_>, out: &mut Vec<u8>) {
    out.extend_from_slice(&source.origin.head);
    match &source.origin.names {
        None => escape(source.key.as_bytes(), out),
        Some(names) => escape(names.key(source.key).as_bytes(), out),
    }
    out.extend_from_slice(b"\",\"cid\":\"");
    source.cid.write_text(out);
    out.extend_from_slice(&source.origin.tail);
}

fn write_post(
    kind: Kind,
    fields: &Fields<'_>,
    subject: &Subject<'_>,
    names: Names<'_>,
    out: &mut Vec<u8>,
) {
    out.extend_from_slice(b"{\"py_type\":\"");
    out.extend_from_slice(kind.nsid().as_bytes());
    out.extend_from_slice(b"\",\"createdAt\":");
    Form::Nested.write_text(fields.created_at().unwrap_or_default(), out);
    out.extend_from_slice(b",\"text\":");
    Form::Nested.write_text(fields.post_text(), out);
    let python = |name, field, rule, out: &mut Vec<u8>| {
        write_python(name, fields.truthy(field), names.map(|names| (names, rule)), out);
    };
    python(b",\"embed\":", Field::Embed, Rule::NotFree, out);
    python(b",\"entities\":", Field::Entities, Rule::Only(b"value"), out);
    python(b",\"facets\":", Field::Facets, Rule::Only(b"did"), out);
    out.extend_from_slice(b",\"reply\":");
    match subject {
        Subject::Reply(reply) => write_reply(reply, names, out),
        _ => out.extend_from_slice(b"null"),
    }
    python(b",\"labels\":", Field::Labels, Rule::NotFree, out);
    write_joined(b",\"langs\":", fields.truthy(Field::Langs), out);
    write_joined(b",\"tags\":", fields.truthy(Field::Tags), out);
}

fn write_edge(
    kind: Kind,
    fields: &Fields<'_>,
    subject: &Subject<'_>,
    names: Names<'_>,
    out: &mut Vec<u8>,
) {
    out.extend_from_slice(b"{\"createdAt\":");
    Form::Nested.write_text(fields.created_at().unwrap_or_default(), out);
    out.extend_from_slice(b",\"subject\":");
    match subject {
        Subject::Ref(subject) => {
            out.push(b'"');
            write_ref(subject, names, out);
            out.push(b'"');
        }
        Subject::Text(subject) => Form::Nested.write_text(&shown(subject, names), out),
        Subject::None | Subject::Reply(_) => out.extend_from_slice(b"null"),
    }
    out.extend_from_slice(b",\"py_type\":\"");
    out.extend_from_slice(kind.nsid().as_bytes());
    out.push(b'"');
}

/// Appends a field of Python JSON text, or null.
fn write_python(
    name: &[u8],
    value: Option<&[u8]>,
    names: Option<(&Pseudonyms, Rule)>,
    out: &mut Vec<u8>,
) {
    out.extend_from_slice(name);
    let Some(value) = value else { return out.extend_from_slice(b"null") };
    let start = out.len();
    out.push(b'"');
    let written = match names {
        None => Form::Python.write_value(value, out),
        Some((names, rule)) => mapped::write_value(Form::Python, value, names, rule, out),
    };
    if written.is_err() {
        out.truncate(start);
        return out.extend_from_slice(b"null");
    }
    out.push(b'"');
}

/// Appends what Python's `",".join` makes of a value: elements, characters or keys; or null.
fn write_joined(name: &[u8], value: Option<&[u8]>, out: &mut Vec<u8>) {
    out.extend_from_slice(name);
    let Some(value) = value else { return out.extend_from_slice(b"null") };
    out.push(b'"');
    let mut reader = Reader::new(value);
    match reader.read() {
        Ok(Item::Text(text)) => {
            let text = String::from_utf8_lossy(text);
            for (at, character) in text.char_indices() {
                write_element(at == 0, text[at..at + character.len_utf8()].as_bytes(), out);
            }
        }
        Ok(Item::Array(entries)) => {
            for entry in 0..entries {
                let Ok(Item::Text(element)) = reader.read() else { break };
                write_element(entry == 0, element, out);
            }
        }
        Ok(Item::Map(pairs)) => {
            for pair in 0..pairs {
                let Ok(Item::Text(key)) = reader.read() else { break };
                write_element(pair == 0, key, out);
                if reader.skip().is_err() {
                    break;
                }
            }
        }
        _ => {}
    }
    out.push(b'"');
}

fn write_element(is_first: bool, element: &[u8], out: &mut Vec<u8>) {
    if !is_first {
        out.push(b',');
    }
    escape(element, out);
}

fn write_reply(reply: &ReplyRef<'_>, names: Names<'_>, out: &mut Vec<u8>) {
    out.extend_from_slice(b"\"{\\\"parent\\\": ");
    write_ref(&reply.parent, names, out);
    out.extend_from_slice(b", \\\"root\\\": ");
    write_ref(&reply.root, names, out);
    out.extend_from_slice(b", \\\"py_type\\\": ");
    Form::Python.write_text(reply.type_name.unwrap_or(REPLY_REF), out);
    out.extend_from_slice(b"}\"");
}

/// A field that stands for an account or a record, as it is shown.
fn shown<'f>(field: &'f [u8], names: Names<'_>) -> Cow<'f, [u8]> {
    names.map_or(Cow::Borrowed(field), |names| names.field(field))
}

fn write_ref(subject: &StrongRef<'_>, names: Names<'_>, out: &mut Vec<u8>) {
    out.extend_from_slice(b"{\\\"cid\\\": ");
    match subject.cid {
        CidText::Text(text) => Form::Python.write_text(text, out),
        CidText::Link(link) => Form::Python.write_link(link, out),
    }
    out.extend_from_slice(b", \\\"uri\\\": ");
    Form::Python.write_text(&shown(subject.uri, names), out);
    out.extend_from_slice(b", \\\"py_type\\\": ");
    Form::Python.write_text(subject.type_name.unwrap_or(STRONG_REF), out);
    out.push(b'}');
}
