//! TIDs: revisions and most record keys (AT Protocol, "Timestamp Identifiers"). They sort as text.

/// Whether `text` is a well-formed TID: 13 characters of base32-sortable, the first below `k`.
#[must_use]
pub fn is_tid(text: &str) -> bool {
    let is_digit = |b: u8| matches!(b, b'2'..=b'7' | b'a'..=b'z');
    let first_is_low = text.bytes().next().is_some_and(|b| matches!(b, b'2'..=b'7' | b'a'..=b'j'));
    text.len() == 13 && first_is_low && text.bytes().all(is_digit)
}
