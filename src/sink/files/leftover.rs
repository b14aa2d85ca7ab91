//! Names of files, and which of them are leftovers of a process that died before its commit.
//!
//! ```text
//!  00000012-00000020-0001-8f3a9c01.jsonl.zst      first and last segment, part, beginning of the data directory's identity
//!  .00000012-00000020-0001-8f3a9c01.jsonl.zst.part   a draft
//! ```
//! Segments are committed in order: a file that begins behind the last manifest was never named by one.

use std::fmt;

use crate::sink::files::Form;

/// Ending of a draft; its name begins with a dot, too.
pub const DRAFT_ENDING: &str = ".part";

/// Digits of the data directory's identity in a name.
const IDENTITY_DIGITS: usize = 8;

/// What a file is called, without its ending.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stem {
    /// First segment of its commit.
    pub first: u64,
    /// The last one that it can hold rows of.
    pub last: u64,
    /// Identity of the data directory.
    pub directory: String,
    /// Number in its commit, from 1.
    pub part: usize,
}

/// What a file is to the sink that finds it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// Committed, or none of its business.
    Kept,
    /// To be removed: it was never committed.
    Leftover,
    /// Readers would take it for the sink's.
    Stranger,
}

impl fmt::Display for Stem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { first, last, directory, part } = self;
        let identity = &directory[..IDENTITY_DIGITS.min(directory.len())];
        write!(f, "{first:08}-{last:08}-{part:04}-{identity}")
    }
}

/// First segment and identity of a stem.
fn parse(stem: &str) -> Option<(u64, &str)> {
    let mut pieces = stem.split('-');
    let numbers = [pieces.next()?, pieces.next()?, pieces.next()?];
    let is_number = |text: &&str| !text.is_empty() && text.bytes().all(|it| it.is_ascii_digit());
    let identity = pieces.next().filter(|_| pieces.next().is_none())?;
    if !numbers.iter().all(is_number) {
        return None;
    }
    Some((numbers[0].parse().ok()?, identity))
}

/// What the file at `path`, below the sink's place, is to the sink of `directory` whose last manifest ends with `committed`.
#[must_use]
pub fn judge(path: &str, directory: &str, committed: u64, form: &dyn Form) -> Found {
    let name = path.rsplit('/').next().unwrap_or(path);
    let identity = &directory[..IDENTITY_DIGITS.min(directory.len())];
    let draft = name.strip_prefix('.').and_then(|rest| rest.strip_suffix(DRAFT_ENDING));
    let Some(stem) = draft.unwrap_or(name).strip_suffix(form.ending()) else {
        return Found::Kept;
    };
    match parse(stem) {
        Some((_, of)) if draft.is_some() && of == identity => Found::Leftover,
        Some((first, of)) if of == identity && first > committed => Found::Leftover,
        Some((_, of)) if of == identity => Found::Kept,
        _ if form.is_exclusive() && draft.is_none() => Found::Stranger,
        _ => Found::Kept,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sink::files::jsonl::JsonLines;

    const ID: &str = "0123456789abcdef0123456789abcdef";

    #[test]
    fn only_what_was_never_committed_is_a_leftover() {
        let stem = Stem { first: 7, last: 9, directory: ID.to_owned(), part: 2 }.to_string();
        assert_eq!(stem, "00000007-00000009-0002-01234567");
        let form = JsonLines::new(false);
        let judged = |path: &str, committed| judge(path, ID, committed, &form);
        for (name, committed, found) in [
            (format!("post/{stem}.jsonl"), 6, Found::Leftover),
            (format!("post/{stem}.jsonl"), 7, Found::Kept),
            (format!("post/.{stem}.jsonl.part"), 9, Found::Leftover),
            (format!("post/{stem}.jsonl.zst"), 6, Found::Kept),
            ("post/mine.jsonl".to_owned(), 6, Found::Kept),
            ("post/00000007-00000009-0002-76543210.jsonl".to_owned(), 6, Found::Kept),
            ("post/7-9-01234567.jsonl".to_owned(), 6, Found::Kept),
            ("post/7-x-1-01234567.jsonl".to_owned(), 6, Found::Kept),
        ] {
            assert_eq!(judged(&name, committed), found, "{name}");
        }
    }
}
