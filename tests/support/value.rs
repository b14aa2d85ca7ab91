//! Record values as the world describes them, and their three written forms: DAG-CBOR (well formed or merely lenient), Python
//! JSON text, and nested JSON. Written from the specification alone; nothing here is skyfill's.
//!
//! A map keeps the order in which its block has its keys; [`map`] sorts as DAG-CBOR wants it, [`unsorted`] does not.

use std::borrow::Cow;
use std::fmt::Write as _;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD;

pub type Text = Cow<'static, str>;

/// Bytes of a CID: version 1, codec, sha2-256, 32 bytes.
pub type Link = [u8; 36];

#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    Null,
    Bool(bool),
    /// -2^64 to 2^64 - 1.
    Int(i128),
    Float(f64),
    Text(Text),
    Bytes(Vec<u8>),
    Link(Link),
    List(Vec<Value>),
    /// In the order of the block's bytes.
    Map(Vec<(Text, Value)>),
}

/// How values are written as CBOR.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Style {
    /// Shortest heads and 64-bit floats: what DAG-CBOR asks for, maps apart.
    #[default]
    Strict,
    /// Every head has eight bytes, floats have 16 or 32 bits where that is exact: what skyfill must read all the same.
    Wide,
}

/// A map with its keys in DAG-CBOR's order.
pub fn map<const N: usize>(fields: [(&'static str, Value); N]) -> Value {
    Value::Map(fields.into_iter().map(|(key, value)| (Cow::Borrowed(key), value)).collect())
        .sorted()
}

/// A map with its keys in the given order.
pub fn unsorted<const N: usize>(fields: [(&'static str, Value); N]) -> Value {
    Value::Map(fields.into_iter().map(|(key, value)| (Cow::Borrowed(key), value)).collect())
}

pub fn text(value: impl Into<Text>) -> Value {
    Value::Text(value.into())
}

pub fn list(values: impl IntoIterator<Item = Value>) -> Value {
    Value::List(values.into_iter().collect())
}

impl Value {
    /// The map's keys in DAG-CBOR's order, shorter ones first.
    pub fn sorted(mut self) -> Self {
        if let Self::Map(fields) = &mut self {
            fields.sort_by(|(a, _), (b, _)| (a.len(), a.as_bytes()).cmp(&(b.len(), b.as_bytes())));
        }
        self
    }

    /// Value of a map's key.
    pub fn get(&self, key: &str) -> Option<&Self> {
        match self {
            Self::Map(fields) => fields.iter().find(|(name, _)| name == key).map(|(_, v)| v),
            _ => None,
        }
    }

    pub fn as_text(&self) -> Option<&str> {
        match self {
            Self::Text(text) => Some(text),
            _ => None,
        }
    }

    /// What Python takes for true.
    pub fn is_truthy(&self) -> bool {
        match self {
            Self::Null => false,
            Self::Bool(value) => *value,
            Self::Int(value) => *value != 0,
            Self::Float(value) => *value != 0.0,
            Self::Text(value) => !value.is_empty(),
            Self::Bytes(value) => !value.is_empty(),
            Self::Link(_) => true,
            Self::List(values) => !values.is_empty(),
            Self::Map(fields) => !fields.is_empty(),
        }
    }

    /// Appends the value as CBOR.
    pub fn encode(&self, style: Style, out: &mut Vec<u8>) {
        match self {
            Self::Null => out.push(0xf6),
            Self::Bool(value) => out.push(if *value { 0xf5 } else { 0xf4 }),
            Self::Int(value) if *value < 0 => head(1, (-1 - *value) as u64, style, out),
            Self::Int(value) => head(0, *value as u64, style, out),
            Self::Float(value) => float(*value, style, out),
            Self::Text(value) => {
                head(3, value.len() as u64, style, out);
                out.extend_from_slice(value.as_bytes());
            }
            Self::Bytes(value) => {
                head(2, value.len() as u64, style, out);
                out.extend_from_slice(value);
            }
            Self::Link(value) => {
                out.extend_from_slice(&[0xd8, 0x2a, 0x58, 0x25, 0x00]);
                out.extend_from_slice(value);
            }
            Self::List(values) => {
                head(4, values.len() as u64, style, out);
                for value in values {
                    value.encode(style, out);
                }
            }
            Self::Map(fields) => {
                head(5, fields.len() as u64, style, out);
                for (key, value) in fields {
                    head(3, key.len() as u64, style, out);
                    out.extend_from_slice(key.as_bytes());
                    value.encode(style, out);
                }
            }
        }
    }

    pub fn to_cbor(&self, style: Style) -> Vec<u8> {
        let mut out = Vec::with_capacity(320);
        self.encode(style, &mut out);
        out
    }

    /// The value as Python's `json.dumps` writes it, with links as plain text (TRANSFORM, "Python JSON text").
    pub fn python_json(&self) -> String {
        let mut out = String::with_capacity(128);
        self.write_python(&mut out);
        out
    }

    fn write_python(&self, out: &mut String) {
        match self {
            Self::Null => out.push_str("null"),
            Self::Bool(value) => out.push_str(if *value { "true" } else { "false" }),
            Self::Int(value) => out.push_str(&value.to_string()),
            Self::Float(value) => out.push_str(&python_float(*value)),
            Self::Text(value) => python_string(value, out),
            Self::Bytes(value) => {
                let _ = write!(out, "{{\"$bytes\": \"{}\"}}", STANDARD_NO_PAD.encode(value));
            }
            Self::Link(value) => {
                let _ = write!(out, "\"{}\"", cid_text(value));
            }
            Self::List(values) => {
                out.push('[');
                for (at, value) in values.iter().enumerate() {
                    out.push_str(if at == 0 { "" } else { ", " });
                    value.write_python(out);
                }
                out.push(']');
            }
            Self::Map(fields) => {
                out.push('{');
                for (at, (key, value)) in fields.iter().enumerate() {
                    out.push_str(if at == 0 { "" } else { ", " });
                    python_string(key, out);
                    out.push_str(": ");
                    value.write_python(out);
                }
                out.push('}');
            }
        }
    }

    /// The value as nested JSON with `$link` and `$bytes`. Integers must fit 64 bits.
    pub fn nested_json(&self) -> serde_json::Value {
        use serde_json::Value as Json;
        let single = |name: &str, value: String| {
            Json::Object([(name.to_owned(), Json::String(value))].into_iter().collect())
        };
        match self {
            Self::Null => Json::Null,
            Self::Bool(value) => Json::Bool(*value),
            Self::Int(value) if *value < 0 => {
                Json::from(i64::try_from(*value).expect("world integers fit 64 bits"))
            }
            Self::Int(value) => {
                Json::from(u64::try_from(*value).expect("world integers fit 64 bits"))
            }
            Self::Float(value) => Json::from(*value),
            Self::Text(value) => Json::from(value.as_ref()),
            Self::Bytes(value) => single("$bytes", STANDARD_NO_PAD.encode(value)),
            Self::Link(value) => single("$link", cid_text(value)),
            Self::List(values) => Json::Array(values.iter().map(Self::nested_json).collect()),
            Self::Map(fields) => Json::Object(
                fields.iter().map(|(key, value)| (key.to_string(), value.nested_json())).collect(),
            ),
        }
    }
}

/// Appends a head: major type and argument.
pub fn head(major: u8, argument: u64, style: Style, out: &mut Vec<u8>) {
    let major = major << 5;
    if style == Style::Wide || argument > u64::from(u32::MAX) {
        out.push(major | 27);
        out.extend_from_slice(&argument.to_be_bytes());
    } else if argument < 24 {
        out.push(major | argument as u8);
    } else if argument < 0x100 {
        out.extend_from_slice(&[major | 24, argument as u8]);
    } else if argument < 0x1_0000 {
        out.push(major | 25);
        out.extend_from_slice(&(argument as u16).to_be_bytes());
    } else {
        out.push(major | 26);
        out.extend_from_slice(&(argument as u32).to_be_bytes());
    }
}

fn float(value: f64, style: Style, out: &mut Vec<u8>) {
    // The few halves that the world writes; a general conversion would have no other reader.
    let halves =
        [(1.5_f64, 0x3e00_u16), (0.5, 0x3800), (-2.0, 0xc000), (0.0, 0x0000), (1.0, 0x3c00)];
    let half =
        halves.iter().find(|(half, _)| half.to_bits() == value.to_bits()).map(|(_, bits)| *bits);
    let narrow = value as f32;
    match half {
        Some(bits) if style == Style::Wide => {
            out.push(0xf9);
            out.extend_from_slice(&bits.to_be_bytes());
        }
        _ if style == Style::Wide && f64::from(narrow).to_bits() == value.to_bits() => {
            out.push(0xfa);
            out.extend_from_slice(&narrow.to_be_bytes());
        }
        _ => {
            out.push(0xfb);
            out.extend_from_slice(&value.to_be_bytes());
        }
    }
}

/// Appends a Python JSON string with its quotes: ASCII only, astral characters as surrogate pairs.
pub fn python_string(text: &str, out: &mut String) {
    out.push('"');
    if text.bytes().all(|byte| (0x20..0x7f).contains(&byte) && byte != b'"' && byte != b'\\') {
        out.push_str(text);
    } else {
        for character in text.chars() {
            match character {
                '"' => out.push_str("\\\""),
                '\\' => out.push_str("\\\\"),
                '\n' => out.push_str("\\n"),
                '\r' => out.push_str("\\r"),
                '\t' => out.push_str("\\t"),
                '\u{8}' => out.push_str("\\b"),
                '\u{c}' => out.push_str("\\f"),
                ' '..='~' => out.push(character),
                _ => {
                    for unit in character.encode_utf16(&mut [0; 2]) {
                        let _ = write!(out, "\\u{unit:04x}");
                    }
                }
            }
        }
    }
    out.push('"');
}

/// Python's `repr` of a float: shortest digits, an exponent of two digits below 1e-4 and from 1e16 on.
fn python_float(value: f64) -> String {
    let scientific = format!("{:e}", value.abs());
    let (mantissa, exponent) = scientific.split_once('e').expect("Rust writes an exponent");
    let exponent: i32 = exponent.parse().expect("the exponent is a number");
    let digits = mantissa.replace('.', "");
    let sign = if value.is_sign_negative() { "-" } else { "" };
    let body = if (-4..0).contains(&exponent) {
        format!("0.{}{digits}", "0".repeat((-exponent - 1) as usize))
    } else if (0..16).contains(&exponent) {
        let whole = exponent as usize + 1;
        let padded = format!("{digits:0<width$}", width = whole + 1);
        format!("{}.{}", &padded[..whole], &padded[whole..])
    } else {
        format!("{mantissa}e{}{:02}", if exponent < 0 { '-' } else { '+' }, exponent.abs())
    };
    format!("{sign}{body}")
}

/// Multibase base32 of a CID.
pub fn cid_text(cid: &Link) -> String {
    let alphabet = b"abcdefghijklmnopqrstuvwxyz234567";
    let mut out = Vec::with_capacity(59);
    out.push(b'b');
    for group in cid.chunks(5) {
        let mut bits = [0; 8];
        bits[3..3 + group.len()].copy_from_slice(group);
        let bits = u64::from_be_bytes(bits);
        for place in 0..(group.len() * 8).div_ceil(5) {
            out.push(alphabet[(bits >> (35 - 5 * place)) as usize & 31]);
        }
    }
    String::from_utf8(out).expect("base32 is ASCII")
}
