//! Record keys (AT Protocol, "Record Key").

/// Whether `text` is a well-formed record key: 1 to 512 of `[A-Za-z0-9._:~-]`, not `.` or `..`.
#[must_use]
pub fn is_rkey(text: &str) -> bool {
    let is_allowed = |b: u8| ALLOWED[usize::from(b)];
    (1..=512).contains(&text.len()) && text != "." && text != ".." && text.bytes().all(is_allowed)
}

/// Every key of every record is looked at: one load a byte.
static ALLOWED: [bool; 256] = {
    let mut allowed = [false; 256];
    let mut byte = 0_u8;
    while byte < 128 {
        allowed[byte as usize] =
            byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b':' | b'~' | b'-');
        byte += 1;
    }
    allowed
};
