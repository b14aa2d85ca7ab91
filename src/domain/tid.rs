//! TIDs: revisions and most record keys (AT Protocol, "Timestamp Identifiers"). They sort as text.

/// Whether `text` is a well-formed TID: 13 characters of base32-sortable, the first below `k`.
#[must_use]
pub fn is_tid(text: &str) -> bool {
    let is_digit = |b: u8| matches!(b, b'2'..=b'7' | b'a'..=b'z');
    let first_is_low = text.bytes().next().is_some_and(|b| matches!(b, b'2'..=b'7' | b'a'..=b'j'));
    text.len() == 13 && first_is_low && text.bytes().all(is_digit)
}

/// The time that a TID claims, milliseconds since 1970; `None` for what is no TID.
#[must_use]
pub fn claimed_ms(text: &str) -> Option<i64> {
    if !is_tid(text) {
        return None;
    }
    let value = |b: u8| u64::from(if b <= b'7' { b - b'2' } else { b - b'a' + 6 });
    let number = text.bytes().fold(0, |number, b| number * 32 + value(b));
    // 53 bits of microseconds, then 10 of a clock's number.
    i64::try_from((number >> 10) / 1_000).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tid_claims_the_time_that_it_was_made() {
        assert_eq!(claimed_ms("2222222222222"), Some(0));
        // 2024-10-05 12:34:56.789012 UTC
        let (micros, digits) = (1_728_131_696_789_012_u64, b"234567abcdefghijklmnopqrstuvwxyz");
        let number = micros << 10 | 1_023;
        let tid: String = (0..13)
            .rev()
            .map(|at| char::from(digits[(number >> (5 * at)) as usize & 31]))
            .collect();
        assert_eq!(claimed_ms(&tid), Some(1_728_131_696_789));
        assert_eq!(claimed_ms("jzzzzzzzzzzzz"), Some(((1 << 54) - 1) / 1_000));
        assert_eq!(claimed_ms("kzzzzzzzzzzzz"), None);
    }
}
