//! Lines of a list, one at a time and never more than 1 MiB of them: whatever a file is, reading it costs no more memory.
//!
//! A file that is not text ends with an error that names its line: a NUL, bytes that are not UTF-8, a line without end.
//! CRLF and a byte order mark at the very start are accepted and not part of any line.

use std::collections::VecDeque;
use std::io::{self, BufRead};

/// Bytes of one line, and of one quoted CSV row over several lines.
pub const LINE_BYTES_MAX: usize = 1 << 20;

/// First bytes of files that are often given by mistake, and what to do about it.
const MISTAKEN: &[(&[u8], &str)] = &[
    (b"SQLite format 3\0", "this is a SQLite file: --dids-queue reads the service's input queue"),
    (b"\x1f\x8b", "this is a gzip file: unpack it first"),
    (b"\x28\xb5\x2f\xfd", "this is a zstd file: unpack it first"),
    (b"PK\x03\x04", "this is a ZIP or spreadsheet file: save it as CSV first"),
    (b"\xff\xfe", "this is UTF-16: save it as UTF-8"),
    (b"\xfe\xff", "this is UTF-16: save it as UTF-8"),
];

/// One line without its end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// From 1.
    pub number: u64,
    /// What stands on it.
    pub text: String,
}

/// Why there are no more lines.
#[derive(Debug)]
pub enum LineError {
    /// The system said no.
    Io(io::Error),
    /// This line is no text.
    Bad {
        /// From 1.
        number: u64,
        /// What is wrong.
        what: String,
    },
}

/// Lines of `reader`; a line may be put back.
#[derive(Debug)]
pub struct Lines<R> {
    reader: R,
    /// Number of the line that was read last.
    number: u64,
    /// Bytes before the next line.
    offset: u64,
    back: VecDeque<Line>,
    buffer: Vec<u8>,
}

impl<R: BufRead> Lines<R> {
    /// Lines from the start of a file.
    pub fn new(reader: R) -> Self {
        Self { reader, number: 0, offset: 0, back: VecDeque::new(), buffer: Vec::new() }
    }

    /// The next line, `None` at the end.
    ///
    /// # Errors
    /// [`LineError`]; nothing sensible follows it.
    pub fn next_line(&mut self) -> Result<Option<Line>, LineError> {
        match self.back.pop_front() {
            Some(line) => Ok(Some(line)),
            None => self.read(),
        }
    }

    /// Puts `lines` back in front of all others, in their order.
    pub fn put_back(&mut self, lines: impl DoubleEndedIterator<Item = Line>) {
        lines.rev().for_each(|line| self.back.push_front(line));
    }

    fn read(&mut self) -> Result<Option<Line>, LineError> {
        self.buffer.clear();
        self.number += 1;
        let number = self.number;
        let bad = |what: String| LineError::Bad { number, what };
        let read = self.fill()?;
        if read == 0 {
            return Ok(None);
        }
        let begins_at = self.offset;
        self.offset += read as u64;
        if number == 1
            && let Some((_, what)) =
                MISTAKEN.iter().find(|(magic, _)| self.buffer.starts_with(magic))
        {
            return Err(bad((*what).to_owned()));
        }
        if let Some(at) = self.buffer.iter().position(|byte| *byte == 0) {
            return Err(bad(format!("a NUL at byte {}: this is no text", begins_at + at as u64)));
        }
        if self.buffer.last() == Some(&b'\n') {
            self.buffer.pop();
        } else if self.buffer.len() > LINE_BYTES_MAX {
            return Err(bad(format!("longer than {LINE_BYTES_MAX} bytes: this is no list")));
        }
        if self.buffer.last() == Some(&b'\r') {
            self.buffer.pop();
        }
        let text = std::str::from_utf8(&self.buffer).map_err(|error| {
            let at = begins_at + error.valid_up_to() as u64;
            bad(format!("byte {at} is not UTF-8: save the list as UTF-8"))
        })?;
        let text = if number == 1 { text.strip_prefix('\u{feff}').unwrap_or(text) } else { text };
        Ok(Some(Line { number, text: text.to_owned() }))
    }

    /// Reads up to a line's end, a NUL, or one byte more than a line may have; the number of bytes, 0 at the end.
    fn fill(&mut self) -> Result<usize, LineError> {
        while self.buffer.len() <= LINE_BYTES_MAX {
            let chunk = match self.reader.fill_buf() {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                filled => filled.map_err(LineError::Io)?,
            };
            let room = LINE_BYTES_MAX + 1 - self.buffer.len();
            let chunk = &chunk[..chunk.len().min(room)];
            let end = chunk.iter().position(|byte| matches!(byte, b'\n' | 0));
            let taken = end.map_or(chunk.len(), |end| end + 1);
            self.buffer.extend_from_slice(&chunk[..taken]);
            self.reader.consume(taken);
            if end.is_some() || taken == 0 {
                break;
            }
        }
        Ok(self.buffer.len())
    }
}
