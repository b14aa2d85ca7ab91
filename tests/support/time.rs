//! `createdAt` as the world writes it: a text together with what it means, so that nobody has to parse it.

use std::borrow::Cow;

use fastrand::Rng;

use super::value::Text;

/// What a written time means: known by construction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Meaning {
    /// Seconds of the written wall clock since 1970, as if it were UTC, and of the written offset east of it.
    At { wall: i64, offset: i64 },
    /// Not a time; also where there is no text at all.
    Unreadable,
}

/// The study window's default bounds.
pub const WINDOW_START: &str = "2024-09-27-00:00:00";
pub const WINDOW_END: &str = "2024-12-02-00:00:00";

/// First and last second of year 1 to 9999.
const YEARS: std::ops::RangeInclusive<i64> = -62_135_596_800..=253_402_300_799;

impl Meaning {
    /// The second that counts: of the wall clock, or of UTC unless that lies outside of years 1 to 9999.
    pub fn second(self, in_utc: bool) -> Option<i64> {
        match self {
            Self::At { wall, offset } => {
                let utc = wall - offset;
                Some(if in_utc && YEARS.contains(&utc) { utc } else { wall })
            }
            Self::Unreadable => None,
        }
    }
}

/// Year, month, day, hour, minute, second of a second since 1970.
pub fn civil(second: i64) -> [i64; 6] {
    let (day, rest) = (second.div_euclid(86_400), second.rem_euclid(86_400));
    // Days are counted from 1 March of year 0, in eras of 400 years, so that the leap day comes last.
    let day = day + 719_468;
    let (era, of_era) = (day.div_euclid(146_097), day.rem_euclid(146_097));
    let year_of_era = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * of_year + 2) / 153;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    let year = era * 400 + year_of_era + i64::from(month <= 2);
    [year, month, of_year - (153 * shifted + 2) / 5 + 1, rest / 3_600, rest / 60 % 60, rest % 60]
}

/// Second since 1970 of a civil time.
pub fn second_of([year, month, day, hour, minute, second]: [i64; 6]) -> i64 {
    let year = year - i64::from(month <= 2);
    let (era, of_era) = (year.div_euclid(400), year.rem_euclid(400));
    let of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    let days = era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719_468;
    days * 86_400 + hour * 3_600 + minute * 60 + second
}

/// `YYYY-MM-DD-HH:MM:SS`.
pub fn stamp(second: i64) -> String {
    joined(second, '-')
}

/// Second since 1970 of a stamp.
pub fn parse_stamp(stamp: &str) -> i64 {
    let part = |range: std::ops::Range<usize>| stamp[range].parse::<i64>().expect("digits");
    second_of([part(0..4), part(5..7), part(8..10), part(11..13), part(14..16), part(17..19)])
}

fn joined(second: i64, separator: char) -> String {
    let [year, month, day, hour, minute, second] = civil(second);
    format!("{year:04}-{month:02}-{day:02}{separator}{hour:02}:{minute:02}:{second:02}")
}

/// Seconds since 1970, now.
pub fn unix_now() -> i64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.expect("the clock is past 1970").as_secs().cast_signed()
}

/// `Sat, 05 Oct 2024 12:34:56 GMT`.
pub fn http_date(second: i64) -> String {
    let days = ["Thu", "Fri", "Sat", "Sun", "Mon", "Tue", "Wed"];
    let months =
        ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let [year, month, day, hour, minute, of_minute] = civil(second);
    let weekday = days[second.div_euclid(86_400).rem_euclid(7) as usize];
    let month = months[month as usize - 1];
    format!("{weekday}, {day:02} {month} {year:04} {hour:02}:{minute:02}:{of_minute:02} GMT")
}

/// The bucket of a second outside the window: the 15th up to that day, else the 1st of the next month; `None` past year 9999.
pub fn bucket(second: i64) -> Option<i64> {
    let [year, month, day, ..] = civil(second);
    let (year, month, day) = match (day, month) {
        (..=15, _) => (year, month, 15),
        (_, 12) => (year + 1, 1, 1),
        _ => (year, month + 1, 1),
    };
    (year <= 9_999).then(|| second_of([year, month, day, 0, 0, 0]))
}

/// An ordinary time, mostly in the window, in the forms that real clients write.
pub fn ordinary(rng: &mut Rng) -> (Text, Meaning) {
    let (start, end) = (1_727_395_200, 1_733_097_600);
    let utc = match rng.u32(..100) {
        0..62 => rng.i64(start..=end),
        62..92 => rng.i64(start - 44_000_000..end + 8_000_000),
        92..97 => [start, end][rng.usize(..2)] + rng.i64(-1..=1),
        _ => rng.i64(0..start),
    };
    let mut offset = 0;
    let form = rng.u32(..100);
    if form >= 95 {
        offset = [9 * 3_600, -5 * 3_600, 5 * 3_600 + 1_800, -45 * 60, 0][rng.usize(..5)];
    }
    let mut text = joined(utc + offset, 'T');
    match form {
        0..85 => text.push_str(&format!(".{:03}Z", rng.u32(..1_000))),
        85..91 => text.push_str(&format!(".{:06}Z", rng.u32(..1_000_000))),
        91..95 => text.push('Z'),
        _ => {
            let sign = if offset < 0 { '-' } else { '+' };
            let (hours, minutes) = (offset.abs() / 3_600, offset.abs() / 60 % 60);
            text.push_str(&format!(".{:03}{sign}{hours:02}:{minutes:02}", rng.u32(..1_000)));
        }
    }
    (Cow::Owned(text), Meaning::At { wall: utc + offset, offset })
}

/// Odd texts: the wall clock that they are read as, and the offset in seconds that counts; `None` is not readable.
pub const ODD: &[(&str, Option<&str>, i64)] = &[
    ("2024-10-05T12:34:56", Some("2024-10-05-12:34:56"), 0),
    ("2024-10-05T12:34:56z", Some("2024-10-05-12:34:56"), 0),
    ("2024-10-05T12:34:56.Z", Some("2024-10-05-12:34:56"), 0),
    ("2024-10-05T12:34:56Z ", Some("2024-10-05-12:34:56"), 0),
    ("2024-10-05T12:34:56 junk", Some("2024-10-05-12:34:56"), 0),
    ("2024-10-05T12:34:56[UTC]", Some("2024-10-05-12:34:56"), 0),
    ("2024-10-05T12:34:56 UTC", Some("2024-10-05-12:34:56"), 0),
    ("2024-10-05T12:34:56.789Z\u{0}", Some("2024-10-05-12:34:56"), 0),
    ("2024-10-05T12:34:56.999999999Z", Some("2024-10-05-12:34:56"), 0),
    ("2024-10-05T12:34:56.789123456+09:00", Some("2024-10-05-12:34:56"), 32_400),
    ("2024-10-05T12:34:56-0500", Some("2024-10-05-12:34:56"), -18_000),
    ("2024-10-05T12:34:56+09:00:30", Some("2024-10-05-12:34:56"), 32_430),
    ("2024-10-05T12:34:56+25:00", Some("2024-10-05-12:34:56"), 0),
    ("2024-10-05T12:34:56-24:00", Some("2024-10-05-12:34:56"), 0),
    ("2024-12-02T05:00:00+09:00", Some("2024-12-02-05:00:00"), 32_400),
    ("2024-12-01T23:00:00-05:00", Some("2024-12-01-23:00:00"), -18_000),
    ("2024-10-05-12:34:56", Some("2024-10-05-12:34:56"), 0),
    ("2024-1-5T1:2:3Z", Some("2024-01-05-01:02:03"), 0),
    ("2024-1-5T1:2:3", Some("2024-01-05-01:02:03"), 0),
    ("2024-10-05T24:34:56Z", Some("2024-10-05-00:34:56"), 0),
    ("1970-01-01T00:00:00Z", Some("1970-01-01-00:00:00"), 0),
    ("1969-12-31T23:59:59Z", Some("1969-12-31-23:59:59"), 0),
    ("1000-01-01T00:00:00Z", Some("1000-01-01-00:00:00"), 0),
    ("0999-06-01T00:00:00Z", Some("0999-06-01-00:00:00"), 0),
    ("9999-12-31T23:59:59Z", Some("9999-12-31-23:59:59"), 0),
    ("9999-12-15T00:00:00Z", Some("9999-12-15-00:00:00"), 0),
    ("2023-12-16T10:00:00Z", Some("2023-12-16-10:00:00"), 0),
    ("2024-02-29T23:59:59Z", Some("2024-02-29-23:59:59"), 0),
    ("2023-04-15T23:59:59Z", Some("2023-04-15-23:59:59"), 0),
    ("2024-10-05T12:34:60Z", None, 0),
    ("2024-10-05 12:34:56Z", None, 0),
    ("2024-10-05T12:34Z", None, 0),
    ("2024-10-05", None, 0),
    ("2023-02-29T12:34:56Z", None, 0),
    ("0000-01-01T00:00:00Z", None, 0),
    ("10000-01-01T00:00:00Z", None, 0),
    ("\n2024-10-05T12:34:56Z", None, 0),
    ("yesterday", None, 0),
    ("1728131696789", None, 0),
    ("Sat, 05 Oct 2024 12:34:56 GMT", None, 0),
    ("", None, 0),
];

/// One of [`ODD`].
pub fn odd(rng: &mut Rng, is_readable: bool) -> (Text, Meaning) {
    loop {
        let (text, wall, offset) = ODD[rng.usize(..ODD.len())];
        if wall.is_some() == is_readable {
            let read = |wall| Meaning::At { wall: parse_stamp(wall), offset };
            return (Cow::Borrowed(text), wall.map_or(Meaning::Unreadable, read));
        }
    }
}
