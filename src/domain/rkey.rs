//! Record keys (AT Protocol, "Record Key").

/// Whether `text` is a well-formed record key: 1 to 512 of `[A-Za-z0-9._:~-]`, not `.` or `..`.
#[must_use]
pub fn is_rkey(text: &str) -> bool {
    let is_allowed =
        |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b':' | b'~' | b'-');
    (1..=512).contains(&text.len()) && text != "." && text != ".." && text.bytes().all(is_allowed)
}
