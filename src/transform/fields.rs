//! The wanted fields of a record, where they lie in its bytes, and what each must be (TRANSFORM, "Fields").

use crate::domain::filter::Kind;
use crate::repo::cbor::{CborError, Item, Reader, validate};

/// Names of the wanted fields; their order is [`Field`]'s.
const NAMES: [&str; 11] = [
    "$type",
    "createdAt",
    "text",
    "embed",
    "entities",
    "facets",
    "reply",
    "labels",
    "langs",
    "tags",
    "subject",
];

/// A wanted field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Field {
    Type,
    CreatedAt,
    Text,
    Embed,
    Entities,
    Facets,
    Reply,
    Labels,
    Langs,
    Tags,
    Subject,
}

/// A record's bytes and where its wanted fields lie in them.
#[derive(Clone, Copy, Debug)]
pub struct Fields<'a> {
    values: [Option<&'a [u8]>; NAMES.len()],
}

/// The two strings of a reference, and its type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StrongRef<'a> {
    pub cid: CidText<'a>,
    pub uri: &'a str,
    pub type_name: Option<&'a str>,
}

/// A CID as it was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CidText<'a> {
    Text(&'a str),
    Link(&'a [u8]),
}

/// A reply's two references, and its type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReplyRef<'a> {
    pub parent: StrongRef<'a>,
    pub root: StrongRef<'a>,
    pub type_name: Option<&'a str>,
}

impl<'a> Fields<'a> {
    /// Validates a record and finds its fields; `None` if it is not a map.
    pub fn scan(record: &'a [u8]) -> Result<Option<Self>, CborError> {
        let mut values = [None; NAMES.len()];
        let is_map = validate(record, |key, range| {
            if let Some(field) = NAMES.iter().position(|name| *name == key) {
                values[field] = Some(&record[range]);
            }
        })?;
        Ok(is_map.then_some(Self { values }))
    }

    /// A field's bytes.
    pub fn get(&self, field: Field) -> Option<&'a [u8]> {
        self.values[field as usize]
    }

    fn text(&self, field: Field) -> Option<&'a str> {
        self.get(field).and_then(text)
    }

    /// The record's `$type`, if it is text.
    pub fn type_name(&self) -> Option<&'a str> {
        self.text(Field::Type)
    }

    /// The kind that `nsid` names; a post with a key `reply`, whatever its value, is a reply.
    pub fn kind(&self, nsid: &str) -> Option<Kind> {
        let kind = Kind::ALL.into_iter().find(|kind| kind.nsid() == nsid)?;
        let is_reply = kind == Kind::Post && self.get(Field::Reply).is_some();
        Some(if is_reply { Kind::Reply } else { kind })
    }

    /// The text of `createdAt`.
    pub fn created_at(&self) -> Result<&'a str, &'static str> {
        let value = self.get(Field::CreatedAt).ok_or("createdAt is missing")?;
        text(value).ok_or("createdAt is not a string")
    }

    /// Whether every field that `kind` needs is there and of its type.
    pub fn check(&self, kind: Kind) -> Result<(), &'static str> {
        match kind {
            Kind::Follow | Kind::Block => {
                self.subject_text().map(drop).ok_or("subject is missing or not a string")
            }
            Kind::Like | Kind::Repost => {
                self.subject_ref().map(drop).ok_or("subject is no reference")
            }
            Kind::Post | Kind::Reply => {
                self.text(Field::Text).ok_or("text is missing or not a string")?;
                if kind == Kind::Reply {
                    self.reply().ok_or("reply is no pair of references")?;
                }
                let joins = |field| self.get(field).is_none_or(is_joinable);
                if !joins(Field::Langs) {
                    return Err("langs has an element that is not a string");
                }
                if !joins(Field::Tags) {
                    return Err("tags has an element that is not a string");
                }
                Ok(())
            }
        }
    }

    /// `text`, which [`Fields::check`] has seen.
    pub fn post_text(&self) -> &'a str {
        self.text(Field::Text).unwrap_or_default()
    }

    /// The subject of a follow or block.
    pub fn subject_text(&self) -> Option<&'a str> {
        self.text(Field::Subject)
    }

    /// The subject of a like or repost.
    pub fn subject_ref(&self) -> Option<StrongRef<'a>> {
        self.get(Field::Subject).and_then(strong_ref)
    }

    /// The references of a reply.
    pub fn reply(&self) -> Option<ReplyRef<'a>> {
        let [parent, root, kind] = pick(self.get(Field::Reply)?, ["parent", "root", "$type"])?;
        let (parent, root) = (strong_ref(parent?)?, strong_ref(root?)?);
        Some(ReplyRef { parent, root, type_name: optional_text(kind)? })
    }

    /// A field that is there and not falsy.
    pub fn truthy(&self, field: Field) -> Option<&'a [u8]> {
        self.get(field).filter(|value| !is_falsy(value))
    }
}

/// Values of the named keys of a map; `None` if it is not a map.
fn pick<'a, const N: usize>(value: &'a [u8], names: [&str; N]) -> Option<[Option<&'a [u8]>; N]> {
    let mut reader = Reader::new(value);
    let Item::Map(pairs) = reader.read().ok()? else { return None };
    let mut values = [None; N];
    for _ in 0..pairs {
        let Item::Text(key) = reader.read().ok()? else { return None };
        let start = reader.position();
        reader.skip().ok()?;
        if let Some(index) = names.iter().position(|name| *name == key) {
            values[index] = value.get(start..reader.position());
        }
    }
    Some(values)
}

fn strong_ref(value: &[u8]) -> Option<StrongRef<'_>> {
    let [cid, uri, kind] = pick(value, ["cid", "uri", "$type"])?;
    let cid = match Reader::new(cid?).read().ok()? {
        Item::Text(text) => CidText::Text(text),
        Item::Link(bytes) => CidText::Link(bytes),
        _ => return None,
    };
    Some(StrongRef { cid, uri: text(uri?)?, type_name: optional_text(kind)? })
}

/// `None` outside: there, but not text.
#[allow(clippy::option_option, reason = "absent is fine, another type is not")]
fn optional_text(value: Option<&[u8]>) -> Option<Option<&str>> {
    match value {
        None => Some(None),
        Some(value) => text(value).map(Some),
    }
}

fn text(value: &[u8]) -> Option<&str> {
    match Reader::new(value).read() {
        Ok(Item::Text(text)) => Some(text),
        _ => None,
    }
}

/// What Python takes for false: null, false, zero, and whatever is empty.
pub fn is_falsy(value: &[u8]) -> bool {
    match Reader::new(value).read() {
        Ok(Item::Null | Item::Bool(false) | Item::Unsigned(0) | Item::Array(0) | Item::Map(0)) => {
            true
        }
        Ok(Item::Text(text)) => text.is_empty(),
        Ok(Item::Bytes(bytes)) => bytes.is_empty(),
        Ok(Item::Float(value)) => value == 0.0,
        _ => false,
    }
}

/// Whether Python's `",".join` takes the value, or it is falsy and never joined.
fn is_joinable(value: &[u8]) -> bool {
    let mut reader = Reader::new(value);
    match reader.read() {
        Ok(Item::Text(_) | Item::Map(_)) => true,
        Ok(Item::Array(entries)) => {
            (0..entries).all(|_| matches!(reader.read(), Ok(Item::Text(_))))
        }
        _ => is_falsy(value),
    }
}
