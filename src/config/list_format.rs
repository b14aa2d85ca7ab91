//! The three forms of a list: plain, CSV with a `did` column, JSON lines with a `did` key; told apart by the first line
//! that has something on it.
//!
//! Blank lines and lines that begin with `#` are ignored in all of them. A quoted CSV field may go over several lines; where
//! its quote is never closed, the first of them stands for itself and the rest are read again, so that one bad row loses
//! no other.

use std::io::BufRead;

use crate::config::list_lines::{LINE_BYTES_MAX, Line, LineError, Lines};

/// How a list is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// One DID a line.
    Plain,
    /// A header row, and a `did` column.
    Csv {
        /// What parts the fields: a comma, a semicolon or a tab.
        delimiter: char,
        /// Which field, from 0.
        column: usize,
    },
    /// One JSON object a line.
    Json,
}

/// What a row names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Named {
    /// Line on which the row begins.
    pub line: u64,
    /// What stands in the DID's place, or the whole row if there is none.
    pub text: String,
    /// Why it can be no DID, if the row itself is wrong.
    pub wrong: Option<String>,
}

impl Format {
    /// The form of a list whose first line with something on it is `line`, and whether that line is a header.
    #[must_use]
    pub fn detect(line: &str) -> (Self, bool) {
        if line.trim_start().starts_with('{') {
            return (Self::Json, false);
        }
        for delimiter in [',', ';', '\t'] {
            let fields = fields(line, delimiter).unwrap_or_default();
            let is_did = |field: &String| field.trim().eq_ignore_ascii_case("did");
            if let Some(column) = fields.iter().position(is_did) {
                return (Self::Csv { delimiter, column }, true);
            }
        }
        (Self::Plain, false)
    }

    /// What the row that begins with `line` names.
    ///
    /// # Errors
    /// [`LineError`] of the lines that follow, where the row goes on.
    pub fn read<R: BufRead>(self, line: Line, lines: &mut Lines<R>) -> Result<Named, LineError> {
        match self {
            Self::Plain => Ok(plain(line)),
            Self::Json => Ok(json(line)),
            Self::Csv { delimiter, column } => csv(line, delimiter, column, lines),
        }
    }
}

fn plain(line: Line) -> Named {
    // No DID contains a blank, so what follows one and a # is a remark.
    let remark =
        line.text.match_indices('#').find(|(at, _)| line.text[..*at].ends_with([' ', '\t']));
    let text = remark.map_or(line.text.as_str(), |(at, _)| &line.text[..at]).trim().to_owned();
    Named { line: line.number, text, wrong: None }
}

fn json(line: Line) -> Named {
    #[derive(serde::Deserialize)]
    struct Object {
        did: Option<serde_json::Value>,
    }
    let wrong = match serde_json::from_str::<Object>(line.text.trim()) {
        Ok(Object { did: Some(serde_json::Value::String(did)) }) if !did.trim().is_empty() => {
            return Named { line: line.number, text: did, wrong: None };
        }
        Ok(Object { did: None }) => "no did key".to_owned(),
        Ok(_) => "did is not a text".to_owned(),
        Err(error) => format!("not JSON at column {}", error.column()),
    };
    Named { line: line.number, text: line.text, wrong: Some(wrong) }
}

fn csv<R: BufRead>(
    first: Line,
    delimiter: char,
    column: usize,
    lines: &mut Lines<R>,
) -> Result<Named, LineError> {
    let mut row = Row::new(delimiter);
    row.push(&first.text);
    let mut following = Vec::new();
    let mut bytes = first.text.len();
    while row.state == State::Quoted && bytes <= LINE_BYTES_MAX {
        let Some(next) = lines.next_line()? else { break };
        row.push("\n");
        row.push(&next.text);
        bytes += next.text.len() + 1;
        following.push(next);
    }
    let found = row.finish().unwrap_or_else(|| {
        lines.put_back(following.into_iter());
        first.text.split(delimiter).map(|field| field.replace('"', "")).collect()
    });
    let did = found.into_iter().nth(column).map(|field| field.trim().to_owned());
    Ok(match did.filter(|did| !did.is_empty()) {
        Some(text) => Named { line: first.number, text, wrong: None },
        None => {
            let wrong = Some("no did in this row".to_owned());
            Named { line: first.number, text: first.text, wrong }
        }
    })
}

/// A CSV row that is read piece by piece.
struct Row {
    delimiter: char,
    fields: Vec<String>,
    field: String,
    state: State,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    /// In a field without quotes, or before one.
    Bare,
    /// In a quoted field.
    Quoted,
    /// After a quote in a quoted field: its end, or the first of two.
    Closed,
    /// Text after a closing quote: no CSV.
    Broken,
}

impl Row {
    const fn new(delimiter: char) -> Self {
        Self { delimiter, fields: Vec::new(), field: String::new(), state: State::Bare }
    }

    fn push(&mut self, text: &str) {
        for character in text.chars() {
            self.state = match (self.state, character) {
                (State::Broken, _) => return,
                (State::Bare | State::Closed, c) if c == self.delimiter => {
                    self.fields.push(std::mem::take(&mut self.field));
                    State::Bare
                }
                (State::Bare, '"') if self.field.trim().is_empty() => {
                    self.field.clear();
                    State::Quoted
                }
                (State::Quoted, '"') => State::Closed,
                (State::Closed, ' ') => State::Closed,
                (State::Closed, c) if c != '"' => State::Broken,
                (state, c) => {
                    self.field.push(c);
                    if state == State::Closed { State::Quoted } else { state }
                }
            };
        }
    }

    /// All fields; `None` if a quoted one is not closed or text follows its closing quote.
    fn finish(mut self) -> Option<Vec<String>> {
        self.fields.push(self.field);
        matches!(self.state, State::Bare | State::Closed).then_some(self.fields)
    }
}

fn fields(line: &str, delimiter: char) -> Option<Vec<String>> {
    let mut row = Row::new(delimiter);
    row.push(line);
    row.finish()
}
