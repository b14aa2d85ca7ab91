//! Records as JSON lines, one record (or one list of them) a line; never more of them in memory than one line.

use std::io::{self, BufRead};

use crate::commands::determine::intake::{Cause, Intake, Place};
use crate::store::error::StoreError;

/// Bytes of a line: a record of 1 MB of control characters becomes one of 7 MB.
const LINE_BYTES_MAX: usize = 32 << 20;

/// Takes every line in.
///
/// # Errors
/// [`StoreError`] naming the file.
pub fn read(
    reader: &mut dyn BufRead,
    place: Place<'_>,
    intake: &mut Intake,
) -> Result<(), StoreError> {
    let failed = |error| StoreError::io(place.file, error);
    let mut line = Vec::new();
    for row in 1.. {
        line.clear();
        let (bytes, is_whole) = next_line(reader, &mut line).map_err(failed)?;
        if bytes == 0 {
            break;
        }
        let place = Place { row, ..place };
        let text = line.strip_prefix(b"\xef\xbb\xbf").filter(|_| row == 1).unwrap_or(&line);
        if !is_whole {
            intake.bad(Cause::TooLarge, &format!("{bytes} bytes"), place);
        } else if !text.trim_ascii().is_empty() {
            intake.json(text, place)?;
        }
    }
    Ok(())
}

/// Reads up to a line's end; how many bytes it had, 0 at the end, and whether all of them are in `line`.
fn next_line(reader: &mut dyn BufRead, line: &mut Vec<u8>) -> io::Result<(u64, bool)> {
    let mut bytes = 0;
    loop {
        let chunk = match reader.fill_buf() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            filled => filled?,
        };
        let end = chunk.iter().position(|byte| *byte == b'\n');
        let taken = end.map_or(chunk.len(), |end| end + 1);
        let room = LINE_BYTES_MAX.saturating_sub(line.len());
        line.extend_from_slice(&chunk[..taken.min(room)]);
        bytes += taken as u64;
        reader.consume(taken);
        if end.is_some() || taken == 0 {
            return Ok((bytes, line.len() as u64 == bytes));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_bounded_and_numbered() {
        let mut text = vec![b'x'; LINE_BYTES_MAX + 5];
        text.extend_from_slice(b"\nshort\n\nlast");
        let mut reader = io::BufReader::new(&text[..]);
        let mut seen = Vec::new();
        loop {
            let mut line = Vec::new();
            let (bytes, is_whole) = next_line(&mut reader, &mut line).unwrap();
            if bytes == 0 {
                break;
            }
            seen.push((bytes, is_whole));
        }
        assert_eq!(seen, [(LINE_BYTES_MAX as u64 + 6, false), (6, true), (1, true), (4, true)]);
    }
}
