//! createdAt: which texts are times, what second they name, and which bucket a second outside the window falls into
//! (TRANSFORM, "Time").
//!
//! ```text
//!  padded     YYYY-MM-DD(T|t)HH:MM:SS and then anything; a blank and one digit are a padded day
//!  unpadded   YYYY-M-D(T|t)H:M:S, up to 6 digits of fraction, then nothing, Z or an offset that can be
//!  queue form YYYY-M-D-H:M:S and then nothing
//! ```
//! `T24:` is `T00:` of the same day; with another separator, hour 24 is none. Everything is decided on ASCII bytes at fixed places where there are any.

use crate::domain::filter::{Offsets, Outside, Window};

/// Length of `YYYY-MM-DD-HH:MM:SS`.
pub const STAMP_BYTES: usize = 19;

/// A second as readers see it, `YYYY-MM-DD-HH:MM:SS`; sorts as text.
pub type Stamp = [u8; STAMP_BYTES];

/// What the window says of a createdAt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Placed {
    /// The record's `synctimestamp`.
    At(Stamp),
    /// Outside, and the filter drops what is outside.
    Dropped,
    /// Not a time.
    Unreadable,
}

/// A civil date and time of day; fields are in range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Civil {
    year: u32,
    month: u32,
    day: u32,
    hour: u32,
    minute: u32,
    second: u32,
}

impl Window {
    /// The `synctimestamp` of a record created at `text`.
    #[must_use]
    pub fn place(&self, text: &[u8]) -> Placed {
        let Some((written, rest)) = parse(text) else { return Placed::Unreadable };
        let offset = match (self.offsets, rest) {
            (Offsets::Ignore, _) | (_, [.., b'Z']) => None,
            (Offsets::Utc, rest) => offset_seconds(rest),
        };
        let civil = offset.map_or(written, |offset| shifted(written, offset));
        let stamp = civil.stamp();
        let is_inside = self.start.as_bytes() <= &stamp[..] && &stamp[..] <= self.end.as_bytes();
        match self.outside {
            _ if is_inside => Placed::At(stamp),
            Outside::Keep => Placed::At(stamp),
            Outside::Drop => Placed::Dropped,
            Outside::Bucket => Placed::At(bucket(civil).map_or(stamp, Civil::stamp)),
        }
    }
}

/// Whether `text` is a real second written as `YYYY-MM-DD-HH:MM:SS`: the form of window bounds.
#[must_use]
pub fn is_stamp(text: &str) -> bool {
    let is_plain =
        text.len() == STAMP_BYTES && text.as_bytes()[10] == b'-' && text.as_bytes()[8] != b' ';
    is_plain && parse(text.as_bytes()).is_some_and(|(civil, _)| civil.stamp() == text.as_bytes())
}

/// The 15th of the month up to that day, else the 1st of the next, at midnight; `None` past year 9999.
fn bucket(civil: Civil) -> Option<Civil> {
    let midnight = Civil { hour: 0, minute: 0, second: 0, ..civil };
    Some(match (civil.day, civil.month, civil.year) {
        (0..=15, _, _) => Civil { day: 15, ..midnight },
        (_, 12, 9999) => return None,
        (_, 12, year) => Civil { year: year + 1, month: 1, day: 1, ..midnight },
        (_, month, _) => Civil { month: month + 1, day: 1, ..midnight },
    })
}

impl Civil {
    fn stamp(self) -> Stamp {
        let [century, year] = [two_digits(self.year / 100), two_digits(self.year)];
        let [month, day] = [two_digits(self.month), two_digits(self.day)];
        let [hour, minute, second] = [self.hour, self.minute, self.second].map(two_digits);
        let mut stamp = *b"0000-00-00-00:00:00";
        stamp[..2].copy_from_slice(&century);
        stamp[2..4].copy_from_slice(&year);
        stamp[5..7].copy_from_slice(&month);
        stamp[8..10].copy_from_slice(&day);
        stamp[11..13].copy_from_slice(&hour);
        stamp[14..16].copy_from_slice(&minute);
        stamp[17..].copy_from_slice(&second);
        stamp
    }

    /// The fields in range as a date that exists; after `T`, hour 24 is 0 of the same day.
    fn checked(self, separator: u8) -> Option<Self> {
        let hour = if self.hour == 24 && separator == b'T' { 0 } else { self.hour };
        let days = match self.month {
            2 if self.year.is_multiple_of(4)
                && (!self.year.is_multiple_of(100) || self.year.is_multiple_of(400)) =>
            {
                29
            }
            2 => 28,
            4 | 6 | 9 | 11 => 30,
            1..=12 => 31,
            _ => return None,
        };
        let is_real = self.year >= 1
            && (1..=days).contains(&self.day)
            && hour < 24
            && self.minute < 60
            && self.second < 60;
        is_real.then_some(Self { hour, ..self })
    }
}

/// The last two digits of a number.
const fn two_digits(number: u32) -> [u8; 2] {
    [b'0' + (number / 10 % 10) as u8, b'0' + (number % 10) as u8]
}

/// The written second and what follows it.
fn parse(text: &[u8]) -> Option<(Civil, &[u8])> {
    match padded(text) {
        Some(civil) => civil.checked(text[10]).map(|civil| (civil, &text[STAMP_BYTES..])),
        None => unpadded(text),
    }
}

/// The fields of a padded date-time, if the first 19 bytes have its form.
fn padded(text: &[u8]) -> Option<Civil> {
    let text: &Stamp = text.first_chunk()?;
    let two = |at: usize| Some(digit(text[at])? * 10 + digit(text[at + 1])?);
    let has_form = text[4] == b'-'
        && text[7] == b'-'
        && matches!(text[10], b'T' | b't')
        && text[13] == b':'
        && text[16] == b':';
    if !has_form {
        return None;
    }
    let day = if text[8] == b' ' { digit(text[9])? } else { two(8)? };
    Some(Civil {
        year: two(0)? * 100 + two(2)?,
        month: two(5)?,
        day,
        hour: two(11)?,
        minute: two(14)?,
        second: two(17)?,
    })
}

/// The second of an unpadded date-time that nothing strange follows.
fn unpadded(text: &[u8]) -> Option<(Civil, &[u8])> {
    let mut rest = text;
    let year = number(&mut rest, 4, 4)?;
    mark(&mut rest, b"-")?;
    let month = number(&mut rest, 1, 2)?;
    mark(&mut rest, b"-")?;
    let day = match rest {
        [b' ', later @ ..] => {
            rest = later;
            number(&mut rest, 1, 1)?
        }
        _ => number(&mut rest, 1, 2)?,
    };
    let separator = mark(&mut rest, b"Tt-")?;
    let hour = number(&mut rest, 1, 2)?;
    mark(&mut rest, b":")?;
    let minute = number(&mut rest, 1, 2)?;
    mark(&mut rest, b":")?;
    let second = number(&mut rest, 1, 2)?;
    let after = rest;
    if separator == b'-' && !rest.is_empty() {
        return None;
    }
    if mark(&mut rest, b".").is_some() {
        number(&mut rest, 1, 6)?;
    }
    let is_ended = matches!(rest, b"" | b"Z" | b"z") || (rest.len() > 3 && offset(rest).is_some());
    if !is_ended {
        return None;
    }
    Civil { year, month, day, hour, minute, second }.checked(separator).map(|civil| (civil, after))
}

/// Seconds east of UTC of an offset that follows seconds or fraction directly and ends the text.
fn offset_seconds(after_seconds: &[u8]) -> Option<i64> {
    let mut rest = after_seconds;
    if let [b'.', fraction @ ..] = rest {
        let digits = fraction.iter().take_while(|byte| byte.is_ascii_digit()).count();
        if digits == 0 {
            return None;
        }
        rest = &fraction[digits..];
    }
    offset(rest)
}

/// `±HH[:]MM[[:]SS[.f]]` or `±HH` up to 23:59, to the end of the text, in seconds.
fn offset(text: &[u8]) -> Option<i64> {
    let mut rest = text;
    let sign = match mark(&mut rest, b"+-")? {
        b'-' => -1,
        _ => 1,
    };
    let hours = number(&mut rest, 2, 2)?;
    let (mut minutes, mut seconds) = (0, 0);
    if !rest.is_empty() {
        let has_colons = mark(&mut rest, b":").is_some();
        minutes = number(&mut rest, 2, 2)?;
        if !rest.is_empty() {
            if has_colons {
                mark(&mut rest, b":")?;
            }
            seconds = number(&mut rest, 2, 2)?;
            if mark(&mut rest, b".").is_some() {
                number(&mut rest, 1, 6)?;
            }
        }
    }
    let is_possible = rest.is_empty() && hours < 24 && minutes < 60 && seconds < 60;
    is_possible.then(|| sign * i64::from(hours * 3600 + minutes * 60 + seconds))
}

/// `civil` in UTC, if it was written at `offset` seconds east of it; unchanged where that would leave years 1 to 9999.
fn shifted(civil: Civil, offset: i64) -> Civil {
    use chrono::{Datelike, Timelike};
    let second_of_day = civil.hour * 3600 + civil.minute * 60 + civil.second;
    let utc = i32::try_from(civil.year)
        .ok()
        .and_then(|year| chrono::NaiveDate::from_ymd_opt(year, civil.month, civil.day))
        .and_then(|date| date.and_hms_opt(0, 0, 0))
        .and_then(|start| {
            let shift = chrono::TimeDelta::seconds(i64::from(second_of_day) - offset);
            start.checked_add_signed(shift)
        });
    let year =
        utc.and_then(|utc| u32::try_from(utc.year()).ok()).filter(|year| (1..=9999).contains(year));
    match (utc, year) {
        (Some(utc), Some(year)) => Civil {
            year,
            month: utc.month(),
            day: utc.day(),
            hour: utc.hour(),
            minute: utc.minute(),
            second: utc.second(),
        },
        _ => civil,
    }
}

fn digit(byte: u8) -> Option<u32> {
    byte.is_ascii_digit().then(|| u32::from(byte - b'0'))
}

/// Takes a number of `least` to `most` digits.
fn number(rest: &mut &[u8], least: usize, most: usize) -> Option<u32> {
    let digits = rest.iter().take(most).take_while(|byte| byte.is_ascii_digit()).count();
    if digits < least {
        return None;
    }
    let (number, later) = rest.split_at(digits);
    *rest = later;
    Some(number.iter().fold(0, |value, byte| value * 10 + u32::from(byte - b'0')))
}

/// Takes one byte of `set`.
fn mark(rest: &mut &[u8], set: &[u8]) -> Option<u8> {
    let (first, later) = rest.split_first()?;
    set.contains(first).then(|| {
        *rest = later;
        *first
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(outside: Outside, offsets: Offsets, text: &str) -> String {
        let window = Window {
            start: "2024-09-27-00:00:00".to_owned(),
            end: "2024-12-02-00:00:00".to_owned(),
            outside,
            offsets,
        };
        match window.place(text.as_bytes()) {
            Placed::At(stamp) => String::from_utf8(stamp.to_vec()).unwrap(),
            Placed::Dropped => "dropped".to_owned(),
            Placed::Unreadable => "unreadable".to_owned(),
        }
    }

    #[test]
    fn offsets_are_converted_only_where_they_are_offsets() {
        let utc = |text| place(Outside::Keep, Offsets::Utc, text);
        assert_eq!(utc("2024-10-05T12:34:56+09:00"), "2024-10-05-03:34:56");
        assert_eq!(utc("2024-10-05T12:34:56.789-0530"), "2024-10-05-18:04:56");
        assert_eq!(utc("2024-10-05T12:34:56+09"), "2024-10-05-03:34:56");
        assert_eq!(utc("2024-10-05T00:00:00+00:00:30.5"), "2024-10-04-23:59:30");
        assert_eq!(utc("2024-10-05T12:34:56 +09:00"), "2024-10-05-12:34:56");
        assert_eq!(utc("2024-10-05T12:34:56+24:00"), "2024-10-05-12:34:56");
        assert_eq!(utc("2024-10-05T12:34:56+23:59:59"), "2024-10-04-12:34:57");
        assert_eq!(utc("2024-10-05T12:34:56+00:60"), "2024-10-05-12:34:56");
        assert_eq!(utc("2024-10-05T12:34:56+00:00:60"), "2024-10-05-12:34:56");
        assert_eq!(utc("2024-10-05T12:34:56+09:00Z"), "2024-10-05-12:34:56");
        assert_eq!(utc("2024-10-05T12:34:56+9:00"), "2024-10-05-12:34:56");
        assert_eq!(utc("2024-10-05T12:34:56.+09:00"), "2024-10-05-12:34:56");
        assert_eq!(utc("0001-01-01T00:00:00+01:00"), "0001-01-01-00:00:00");
        assert_eq!(utc("9999-12-31T23:59:59-01:00"), "9999-12-31-23:59:59");
        assert_eq!(utc("2024-3-1T0:0:0+01:00"), "2024-02-29-23:00:00");
        assert_eq!(
            place(Outside::Keep, Offsets::Ignore, "2024-10-05T12:34:56+09:00"),
            "2024-10-05-12:34:56"
        );
    }

    #[test]
    fn the_three_ways_of_outside() {
        let utc = |outside, text| place(outside, Offsets::Utc, text);
        for (text, bucket) in [
            ("2024-09-26T23:59:59Z", "2024-10-01-00:00:00"),
            ("2024-12-02T00:00:01Z", "2024-12-15-00:00:00"),
            ("2023-12-16T10:00:00Z", "2024-01-01-00:00:00"),
            ("2023-05-15T23:59:59Z", "2023-05-15-00:00:00"),
            ("9999-12-16T10:00:00Z", "9999-12-16-10:00:00"),
        ] {
            assert_eq!(utc(Outside::Bucket, text), bucket);
            assert_eq!(utc(Outside::Drop, text), "dropped");
            assert_eq!(utc(Outside::Keep, text), text[..19].replace('T', "-"));
        }
        for text in ["2024-09-27T00:00:00Z", "2024-12-02T00:00:00.999Z"] {
            assert_eq!(utc(Outside::Drop, text), text[..19].replace('T', "-"));
        }
        assert_eq!(utc(Outside::Drop, "2024-12-02T08:00:00+09:00"), "2024-12-01-23:00:00");
    }

    #[test]
    fn window_bounds_are_real_seconds_in_one_form() {
        assert!(is_stamp("2024-02-29-23:59:59"));
        for text in [
            "2023-02-29-00:00:00",
            "2024-02-29T00:00:00",
            "2024-02- 9-00:00:00",
            "2024-02-29-24:00:00",
            "x",
        ] {
            assert!(!is_stamp(text), "{text}");
        }
    }
}
