//! As written: a TOML file or a `--set` as a flat row of `section.key = value`, each with the line that it stands on.
//!
//! Nothing is understood here beyond TOML itself; `config::keys` says what a value means. Syntax errors are all collected,
//! one a line.

use std::collections::BTreeMap;
use std::fmt;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::domain::did::cleaned;

/// Bytes of a value that an error message repeats.
const SHOWN_BYTES_MAX: usize = 60;

/// Where something was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// A line of the file, from 1.
    Line(usize),
    /// Not in the file: `--set window.start=...`, `--data-dir`.
    Origin(String),
    /// Nowhere: a key that is missing.
    Nowhere,
}

/// What kind of thing was written.
#[derive(Clone, Debug, PartialEq)]
pub enum Data {
    /// Text.
    Text(String),
    /// A whole number; what does not fit is as large as can be.
    Whole(i128),
    /// A number with a fraction.
    Fraction(f64),
    /// `true` or `false`.
    Flag(bool),
    /// A date without quotes.
    Date,
    /// A list.
    List(Vec<Value>),
    /// A table.
    Table,
}

/// One value with its place.
#[derive(Clone, Debug, PartialEq)]
pub struct Value {
    /// What it is.
    pub data: Data,
    /// As it was written, shortened, for messages.
    pub shown: String,
    /// Where.
    pub place: Place,
}

impl Value {
    /// A text that was written without quotes outside the file.
    #[must_use]
    pub fn plain(text: &str, origin: &str) -> Self {
        let shown = format!("\"{}\"", short(text));
        Self { data: Data::Text(text.to_owned()), shown, place: Place::Origin(origin.to_owned()) }
    }

    /// Reads one TOML value, if `text` is one.
    #[must_use]
    pub fn parse(text: &str, origin: &str) -> Option<Self> {
        let value = DeValue::parse(text).ok()?;
        Some(Source::new(text, Some(origin)).value(&value))
    }
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.shown)
    }
}

/// One `section.key = value`.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    /// `section.key`, or `key` of the top.
    pub key: String,
    /// Its value; [`Data::Table`] for a section that is no known one or is empty.
    pub value: Value,
}

/// A syntax error.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slip {
    /// Line, from 1.
    pub line: usize,
    /// What is wrong.
    pub text: String,
}

/// A file as written.
#[derive(Debug, Default)]
pub struct Written {
    /// Its entries, in no particular order.
    pub entries: Vec<Entry>,
    /// Its syntax errors by line.
    pub slips: Vec<Slip>,
}

impl Written {
    /// Reads a whole file. Keys that are written twice are a slip each and the rest is still read; with any other slip there
    /// are no entries, because after one nobody knows which section a line is in.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        let source = Source::new(text, None);
        let (table, errors) = DeTable::parse_recoverable(text);
        let mut slips: BTreeMap<usize, String> = BTreeMap::new();
        let mut is_readable = true;
        for error in &errors {
            let span = error.span().unwrap_or(text.len()..text.len());
            let message = if error.message() == "duplicate key" {
                let key = text.get(span.clone()).unwrap_or("").trim();
                format!("\"{}\" is written twice", short(key))
            } else {
                is_readable = false;
                format!("not TOML: {}", short_to(error.message(), 200))
            };
            slips.entry(source.line(span.start)).or_insert(message);
        }
        let mut entries = Vec::new();
        if is_readable {
            source.walk("", table.get_ref(), &mut entries);
        }
        let slips = slips.into_iter().map(|(line, text)| Slip { line, text }).collect();
        Self { entries, slips }
    }
}

/// Text that spans point into.
struct Source<'t> {
    text: &'t str,
    origin: Option<&'t str>,
    /// Where each line but the first begins.
    line_starts: Vec<usize>,
}

impl<'t> Source<'t> {
    fn new(text: &'t str, origin: Option<&'t str>) -> Self {
        let line_starts = text.match_indices('\n').map(|(at, _)| at + 1).collect();
        Self { text, origin, line_starts }
    }

    /// Two levels: keys of the top and of sections, and the sinks' three. What lies deeper is no known key and is named as it is.
    fn walk(&self, section: &str, table: &DeTable<'_>, entries: &mut Vec<Entry>) {
        for (name, value) in table {
            let key = match section {
                "" => name.get_ref().to_string(),
                _ => format!("{section}.{}", name.get_ref()),
            };
            match value.get_ref() {
                DeValue::Table(inner)
                    if (section.is_empty() || section == "sink") && !inner.is_empty() =>
                {
                    self.walk(&key, inner, entries);
                }
                _ => {
                    let mut value = self.value(value);
                    value.place = self.place(name.span().start);
                    entries.push(Entry { key, value });
                }
            }
        }
    }

    fn value(&self, value: &Spanned<DeValue<'_>>) -> Value {
        let whole = |digits: &str, radix| {
            let least = if digits.starts_with('-') { i128::MIN } else { i128::MAX };
            Data::Whole(i128::from_str_radix(digits, radix).unwrap_or(least))
        };
        let data = match value.get_ref() {
            DeValue::String(text) => Data::Text(text.to_string()),
            DeValue::Integer(number) => whole(number.as_str(), number.radix()),
            DeValue::Float(number) => Data::Fraction(number.as_str().parse().unwrap_or(f64::NAN)),
            DeValue::Boolean(flag) => Data::Flag(*flag),
            DeValue::Datetime(_) => Data::Date,
            DeValue::Array(items) => {
                Data::List(items.iter().map(|item| self.value(item)).collect())
            }
            DeValue::Table(_) => Data::Table,
        };
        let shown = match data {
            Data::List(_) => "a list".to_owned(),
            Data::Table => "a section".to_owned(),
            _ => short(self.text.get(value.span()).unwrap_or("")),
        };
        Value { data, shown, place: self.place(value.span().start) }
    }

    fn place(&self, at: usize) -> Place {
        match self.origin {
            Some(origin) => Place::Origin(origin.to_owned()),
            None => Place::Line(self.line(at)),
        }
    }

    fn line(&self, at: usize) -> usize {
        self.line_starts.partition_point(|start| *start <= at) + 1
    }
}

/// `text` on one line, printable and not long.
#[must_use]
pub fn short(text: &str) -> String {
    short_to(text, SHOWN_BYTES_MAX)
}

fn short_to(text: &str, bytes_max: usize) -> String {
    let end = text.floor_char_boundary(bytes_max);
    let clean = cleaned(&text[..end]);
    if end < text.len() { format!("{clean}...") } else { clean }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_know_their_lines() {
        let written = Written::parse(
            "data_dir = \"x\"\n\n[window]\nstart = 1\n[fetch]\nports = [\n 1,\n 2]\n",
        );
        assert_eq!(written.slips, []);
        let find = |key: &str| written.entries.iter().find(|entry| entry.key == key).unwrap();
        assert_eq!(find("data_dir").value.place, Place::Line(1));
        assert_eq!(find("window.start").value.data, Data::Whole(1));
        let Data::List(items) = &find("fetch.ports").value.data else { panic!("no list") };
        assert_eq!(
            (&items[1].place, find("fetch.ports").value.place.clone()),
            (&Place::Line(8), Place::Line(6))
        );
    }

    #[test]
    fn slips_are_collected_by_line() {
        let written = Written::parse("a = 1\na = 2\nb = 3\nb = 4\n");
        let lines: Vec<usize> = written.slips.iter().map(|slip| slip.line).collect();
        assert_eq!((lines, written.entries.len()), (vec![2, 4], 2));
        assert!(written.slips[0].text.contains("\"a\" is written twice"));
        let broken = Written::parse("a = \n[window\nstart = 1\n");
        assert!(broken.slips.len() >= 2 && broken.entries.is_empty());
    }

    #[test]
    fn huge_numbers_and_deep_nests_are_no_trouble() {
        let digits = "9".repeat(400);
        let written = Written::parse(&format!("a = {digits}\nb = -{digits}\n"));
        assert!(written.entries.iter().any(|entry| entry.value.data == Data::Whole(i128::MAX)));
        assert!(written.entries.iter().any(|entry| entry.value.data == Data::Whole(i128::MIN)));
        let nest = format!("a = {}", "[".repeat(100_000));
        assert!(!Written::parse(&nest).slips.is_empty());
    }
}
