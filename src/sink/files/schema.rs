//! Schemas of Parquet files, one a record type, and how a record becomes a row of one; only with the feature `parquet`.
//!
//! Every field of a record is a text column of its own name: texts as they are, nested values as their JSON text, null where
//! it is null. Two columns are the files' own: `synced_at` is `synctimestamp` as a time (UTC, milliseconds), null where there is
//! none or it is none; `other` is a JSON object of fields that the schema does not know, null where there are none.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;

use arrow_array::builder::{StringBuilder, TimestampMillisecondBuilder};
use arrow_array::{ArrayRef, RecordBatch};
use arrow_schema::{ArrowError, DataType, Field, Schema, SchemaRef, TimeUnit};
use chrono::NaiveDateTime;
use serde_json::value::RawValue;

const POST: &[&str] = &[
    "py_type",
    "createdAt",
    "text",
    "embed",
    "entities",
    "facets",
    "reply",
    "labels",
    "langs",
    "tags",
    "record_type",
    "synctimestamp",
    "did",
    "uri",
    "cid",
    "rev",
];
const EDGE: &[&str] = &[
    "createdAt",
    "subject",
    "py_type",
    "record_type",
    "synctimestamp",
    "did",
    "uri",
    "cid",
    "rev",
];
const REJECTED: &[&str] =
    &["did", "collection", "rkey", "uri", "cid", "rev", "reason", "detail", "record", "raw"];
const CONFIGURED: &[&str] = &["record_type", "did", "uri", "cid", "rev", "record"];

/// Form of `synctimestamp`.
const STAMP: &str = "%Y-%m-%d-%H:%M:%S";

/// Names of the text columns of a type.
#[must_use]
pub fn columns(label: &str) -> &'static [&'static str] {
    match label {
        "post" | "reply" => POST,
        "like" | "repost" | "follow" | "block" => EDGE,
        "rejected" => REJECTED,
        _ => CONFIGURED,
    }
}

/// The schema of a type.
#[must_use]
pub fn schema(label: &str) -> SchemaRef {
    let text = |name: &&str| Field::new(*name, DataType::Utf8, true);
    let mut fields: Vec<Field> = columns(label).iter().map(text).collect();
    fields.push(Field::new("synced_at", DataType::Timestamp(TimeUnit::Millisecond, None), true));
    fields.push(Field::new("other", DataType::Utf8, true));
    Arc::new(Schema::new(fields))
}

/// Rows that become a batch.
pub struct Rows {
    names: &'static [&'static str],
    schema: SchemaRef,
    texts: Vec<StringBuilder>,
    synced_at: TimestampMillisecondBuilder,
    other: StringBuilder,
    /// How many.
    pub count: usize,
    /// Bytes of them as JSON.
    pub bytes: usize,
}

impl Rows {
    /// None yet, of a type.
    #[must_use]
    pub fn new(label: &str) -> Self {
        let (names, schema) = (columns(label), schema(label));
        Self {
            names,
            schema,
            texts: names.iter().map(|_| StringBuilder::new()).collect(),
            synced_at: TimestampMillisecondBuilder::new(),
            other: StringBuilder::new(),
            count: 0,
            bytes: 0,
        }
    }

    /// Its schema.
    #[must_use]
    pub fn schema(&self) -> SchemaRef {
        Arc::clone(&self.schema)
    }

    /// Takes a record.
    ///
    /// # Errors
    /// What is no JSON object.
    pub fn push(&mut self, row: &str) -> Result<(), serde_json::Error> {
        let mut fields: BTreeMap<&str, &RawValue> = serde_json::from_str(row)?;
        let mut synced_at = None;
        for (name, column) in self.names.iter().zip(&mut self.texts) {
            let value = fields.remove(name).map(|value| text(value.get())).transpose()?.flatten();
            if *name == "synctimestamp" {
                synced_at = value.as_deref().and_then(milliseconds);
            }
            column.append_option(value);
        }
        self.synced_at.append_option(synced_at);
        match fields.is_empty() {
            true => self.other.append_null(),
            false => self.other.append_value(serde_json::to_string(&fields)?),
        }
        self.count += 1;
        self.bytes += row.len();
        Ok(())
    }

    /// The rows as a batch; afterwards there are none.
    ///
    /// # Errors
    /// Whatever Arrow says.
    pub fn batch(&mut self) -> Result<RecordBatch, ArrowError> {
        let finish = |column: &mut StringBuilder| Arc::new(column.finish()) as ArrayRef;
        let mut arrays: Vec<ArrayRef> = self.texts.iter_mut().map(finish).collect();
        arrays.push(Arc::new(self.synced_at.finish()));
        arrays.push(Arc::new(self.other.finish()));
        (self.count, self.bytes) = (0, 0);
        RecordBatch::try_new(Arc::clone(&self.schema), arrays)
    }
}

/// A value as text: `None` for null, a string's text, anything else as it is written.
fn text(raw: &str) -> Result<Option<Cow<'_, str>>, serde_json::Error> {
    match raw.as_bytes().first() {
        Some(b'"') => {
            let plain = raw.strip_prefix('"').and_then(|it| it.strip_suffix('"'));
            match plain.filter(|it| !it.contains('\\')) {
                Some(plain) => Ok(Some(Cow::Borrowed(plain))),
                None => serde_json::from_str(raw).map(|text: String| Some(Cow::Owned(text))),
            }
        }
        Some(b'n') => Ok(None),
        _ => Ok(Some(Cow::Borrowed(raw))),
    }
}

fn milliseconds(stamp: &str) -> Option<i64> {
    let time = NaiveDateTime::parse_from_str(stamp, STAMP).ok()?;
    Some(time.and_utc().timestamp_millis())
}

#[cfg(test)]
mod tests {
    use arrow_array::Array;
    use arrow_array::cast::AsArray;
    use arrow_array::types::TimestampMillisecondType;

    use super::*;

    #[test]
    fn texts_nested_values_and_unknown_fields_arrive() {
        let mut rows = Rows::new("app.example.thing");
        rows.push(r#"{"record_type":"a\"b","did":"d","uri":null,"record":{"x":[1]},"new":1}"#)
            .unwrap();
        assert!(rows.push("[]").is_err());
        let batch = rows.batch().unwrap();
        let at = |name: &str| {
            let column = batch.column_by_name(name).unwrap().as_string::<i32>();
            column.is_valid(0).then(|| column.value(0).to_owned())
        };
        assert_eq!((at("record_type"), at("did")), (Some("a\"b".into()), Some("d".into())));
        assert_eq!((at("uri"), at("cid")), (None, None));
        assert_eq!(at("record").as_deref(), Some(r#"{"x":[1]}"#));
        assert_eq!(at("other").as_deref(), Some(r#"{"new":1}"#));
        let mut rows = Rows::new("like");
        for stamp in ["\"2024-10-01-12:00:01\"", "\"0999-01-01-00:00:00\"", "\"never\"", "null"] {
            rows.push(&format!("{{\"synctimestamp\":{stamp}}}")).unwrap();
        }
        let batch = rows.batch().unwrap();
        let times =
            batch.column_by_name("synced_at").unwrap().as_primitive::<TimestampMillisecondType>();
        assert_eq!(times.value(0), 1_727_784_001_000);
        assert!(times.is_valid(1) && times.value(1) < 0 && times.is_null(2) && times.is_null(3));
    }
}
