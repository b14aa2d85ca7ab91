//! The wanted fields of a record, where they lie in its bytes, and what each must be (TRANSFORM, "Fields").

use crate::domain::filter::Kind;
use crate::repo::cbor::{CborError, Item, Reader, validate};

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

/// Number of wanted fields.
const FIELDS: usize = Field::Subject as usize + 1;

impl Field {
    /// The field of this name.
    fn named(name: &[u8]) -> Option<Self> {
        Some(match name {
            b"$type" => Self::Type,
            b"createdAt" => Self::CreatedAt,
            b"text" => Self::Text,
            b"embed" => Self::Embed,
            b"entities" => Self::Entities,
            b"facets" => Self::Facets,
            b"reply" => Self::Reply,
            b"labels" => Self::Labels,
            b"langs" => Self::Langs,
            b"tags" => Self::Tags,
            b"subject" => Self::Subject,
            _ => return None,
        })
    }
}

/// A record's bytes and where its wanted fields lie in them.
#[derive(Clone, Copy, Debug)]
pub struct Fields<'a> {
    values: [Option<&'a [u8]>; FIELDS],
}

/// The two strings of a reference, and its type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StrongRef<'a> {
    pub cid: CidText<'a>,
    pub uri: &'a [u8],
    pub type_name: Option<&'a [u8]>,
}

/// A CID as it was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CidText<'a> {
    Text(&'a [u8]),
    Link(&'a [u8]),
}

/// What a record of one of the six kinds points to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Subject<'a> {
    /// A post: to nothing.
    None,
    /// A follow or block: to a DID.
    Text(&'a [u8]),
    /// A like or repost.
    Ref(StrongRef<'a>),
    /// A reply.
    Reply(ReplyRef<'a>),
}

/// A reply's two references, and its type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReplyRef<'a> {
    pub parent: StrongRef<'a>,
    pub root: StrongRef<'a>,
    pub type_name: Option<&'a [u8]>,
}

impl<'a> Fields<'a> {
    /// Validates a record and finds its fields; `None` if it is not a map.
    pub fn scan(record: &'a [u8]) -> Result<Option<Self>, CborError> {
        let mut values = [None; FIELDS];
        let is_map = validate(record, |key, range| {
            if let Some(field) = Field::named(key) {
                values[field as usize] = Some(&record[range]);
            }
        })?;
        Ok(is_map.then_some(Self { values }))
    }

    /// A field's bytes.
    pub fn get(&self, field: Field) -> Option<&'a [u8]> {
        self.values[field as usize]
    }

    fn text(&self, field: Field) -> Option<&'a [u8]> {
        self.get(field).and_then(text)
    }

    /// The record's `$type`, if it is text.
    pub fn type_name(&self) -> Option<&'a [u8]> {
        self.text(Field::Type)
    }

    /// The kind that `nsid` names; a post with a key `reply`, whatever its value, is a reply.
    pub fn kind(&self, nsid: &[u8]) -> Option<Kind> {
        let kind = Kind::ALL.into_iter().find(|kind| kind.nsid().as_bytes() == nsid)?;
        let is_reply = kind == Kind::Post && self.get(Field::Reply).is_some();
        Some(if is_reply { Kind::Reply } else { kind })
    }

    /// The text of `createdAt`.
    pub fn created_at(&self) -> Result<&'a [u8], &'static str> {
        let value = self.get(Field::CreatedAt).ok_or("createdAt is missing")?;
        text(value).ok_or("createdAt is not a string")
    }

    /// What the record points to, if every field that `kind` needs is there and of its type.
    pub fn check(&self, kind: Kind) -> Result<Subject<'a>, &'static str> {
        match kind {
            Kind::Follow | Kind::Block => {
                let subject = self.text(Field::Subject).map(Subject::Text);
                subject.ok_or("subject is missing or not a string")
            }
            Kind::Like | Kind::Repost => {
                let subject = self.get(Field::Subject).and_then(strong_ref).map(Subject::Ref);
                subject.ok_or("subject is no reference")
            }
            Kind::Post | Kind::Reply => {
                self.text(Field::Text).ok_or("text is missing or not a string")?;
                let subject = match kind {
                    Kind::Reply => self.reply().map(Subject::Reply),
                    _ => Some(Subject::None),
                };
                let subject = subject.ok_or("reply is no pair of references")?;
                let joins = |field| self.get(field).is_none_or(is_joinable);
                if !joins(Field::Langs) {
                    return Err("langs has an element that is not a string");
                }
                if !joins(Field::Tags) {
                    return Err("tags has an element that is not a string");
                }
                Ok(subject)
            }
        }
    }

    /// `text`, which [`Fields::check`] has seen.
    pub fn post_text(&self) -> &'a [u8] {
        self.text(Field::Text).unwrap_or_default()
    }

    fn reply(&self) -> Option<ReplyRef<'a>> {
        let (mut parent, mut root, mut type_name) = (None, None, None);
        for_each_entry(self.get(Field::Reply)?, |key, reader| {
            match key {
                b"parent" => parent = Some(strong_ref_at(reader)?),
                b"root" => root = Some(strong_ref_at(reader)?),
                b"$type" => type_name = Some(text_at(reader)?),
                _ => reader.skip().ok()?,
            }
            Some(())
        })?;
        Some(ReplyRef { parent: parent?, root: root?, type_name })
    }

    /// A field that is there and not falsy.
    pub fn truthy(&self, field: Field) -> Option<&'a [u8]> {
        self.get(field).filter(|value| !is_falsy(value))
    }
}

/// Gives each key of a map with a reader that stands before its value and must be moved past it; `None` if it is not a map, or
/// if one of the calls gives `None`.
fn for_each_entry<'a>(
    map: &'a [u8],
    each: impl FnMut(&'a [u8], &mut Reader<'a>) -> Option<()>,
) -> Option<()> {
    entries_at(&mut Reader::new(map), each)
}

fn entries_at<'a>(
    reader: &mut Reader<'a>,
    mut each: impl FnMut(&'a [u8], &mut Reader<'a>) -> Option<()>,
) -> Option<()> {
    let Item::Map(pairs) = reader.read().ok()? else { return None };
    for _ in 0..pairs {
        let Item::Text(key) = reader.read().ok()? else { return None };
        each(key, reader)?;
    }
    Some(())
}

fn strong_ref(value: &[u8]) -> Option<StrongRef<'_>> {
    strong_ref_at(&mut Reader::new(value))
}

fn strong_ref_at<'a>(reader: &mut Reader<'a>) -> Option<StrongRef<'a>> {
    let (mut cid, mut uri, mut type_name) = (None, None, None);
    entries_at(reader, |key, reader| {
        match key {
            b"cid" => {
                cid = Some(match reader.read().ok()? {
                    Item::Text(text) => CidText::Text(text),
                    Item::Link(bytes) => CidText::Link(bytes),
                    _ => return None,
                });
            }
            b"uri" => uri = Some(text_at(reader)?),
            b"$type" => type_name = Some(text_at(reader)?),
            _ => reader.skip().ok()?,
        }
        Some(())
    })?;
    Some(StrongRef { cid: cid?, uri: uri?, type_name })
}

fn text_at<'a>(reader: &mut Reader<'a>) -> Option<&'a [u8]> {
    match reader.read() {
        Ok(Item::Text(text)) => Some(text),
        _ => None,
    }
}

fn text(value: &[u8]) -> Option<&[u8]> {
    text_at(&mut Reader::new(value))
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
