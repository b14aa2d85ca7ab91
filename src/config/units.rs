//! Units: times and sizes as people write them, `30s` and `256MiB`, and back.
//!
//! A unit is always required, also for zero, so that nobody has to remember what a bare number would mean. Decimal sizes
//! (`MB`) are refused with the binary one beside them: a limit that is 5% off is worse than an error.

use std::time::Duration;

/// What a time looks like, for error messages.
pub const DURATION_FORM: &str = "a time with its unit (ms, s, m, h or d), such as \"30s\"";

/// What a size looks like, for error messages.
pub const SIZE_FORM: &str = "a size with its unit (B, KiB, MiB, GiB or TiB), such as \"256MiB\"";

/// Milliseconds of each unit of time, longest first.
const DURATION_UNITS: &[(&str, u64)] =
    &[("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1_000), ("ms", 1)];

/// Bytes of each unit of size, largest first.
const SIZE_UNITS: &[(&str, u64)] =
    &[("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10), ("B", 1)];

/// Reads `30s`; the error is a hint, empty where the form says everything.
///
/// # Errors
/// A hint for the person who wrote it.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let hint = |number: &str, unit: &str| match unit.to_ascii_lowercase().as_str() {
        "" => format!("a unit is missing: \"{number}s\" is seconds"),
        "sec" | "secs" | "second" | "seconds" => format!("write \"{number}s\""),
        "min" | "mins" | "minute" | "minutes" => format!("write \"{number}m\""),
        "hr" | "hrs" | "hour" | "hours" => format!("write \"{number}h\""),
        "day" | "days" => format!("write \"{number}d\""),
        "s" | "m" | "h" | "d" | "ms" => "units are lower case".to_owned(),
        _ => String::new(),
    };
    parse(text, DURATION_UNITS, hint).map(Duration::from_millis)
}

/// Reads `256MiB`, in bytes; the error is a hint, empty where the form says everything.
///
/// # Errors
/// A hint for the person who wrote it.
pub fn parse_size(text: &str) -> Result<u64, String> {
    let hint = |number: &str, unit: &str| match unit.to_ascii_lowercase().as_str() {
        "" => format!("a unit is missing: \"{number}MiB\" or \"{number}B\""),
        "b" | "byte" | "bytes" => format!("write \"{number}B\""),
        "k" | "kb" | "kib" => format!("write \"{number}KiB\" (1,024 bytes each)"),
        "m" | "mb" | "mib" => format!("write \"{number}MiB\" (1,048,576 bytes each)"),
        "g" | "gb" | "gib" => format!("write \"{number}GiB\" (1,024 MiB each)"),
        "t" | "tb" | "tib" => format!("write \"{number}TiB\" (1,024 GiB each)"),
        _ => String::new(),
    };
    parse(text, SIZE_UNITS, hint)
}

fn parse(
    text: &str,
    units: &[(&str, u64)],
    hint: impl Fn(&str, &str) -> String,
) -> Result<u64, String> {
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    if number.is_empty() {
        return Err(String::new());
    }
    let Some((_, factor)) = units.iter().find(|(name, _)| *name == unit) else {
        return Err(hint(number, unit.trim()));
    };
    let number: Option<u64> = number.parse().ok();
    number
        .and_then(|number| number.checked_mul(*factor))
        .ok_or_else(|| "it is too large".to_owned())
}

/// `duration` in its largest whole unit, `15m`.
#[must_use]
pub fn format_duration(duration: Duration) -> String {
    let milliseconds = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    format(milliseconds, DURATION_UNITS, "0s")
}

/// `bytes` in their largest whole unit, `256MiB`.
#[must_use]
pub fn format_size(bytes: u64) -> String {
    format(bytes, SIZE_UNITS, "0B")
}

fn format(value: u64, units: &[(&str, u64)], zero: &str) -> String {
    let fits = |(_, factor): &&(&str, u64)| value != 0 && value.is_multiple_of(*factor);
    match units.iter().find(fits) {
        Some((unit, factor)) => format!("{}{unit}", value / factor),
        None => zero.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_reads_back() {
        for text in ["1ms", "30s", "15m", "36h", "2d", "0s", "1500ms"] {
            assert_eq!(format_duration(parse_duration(text).unwrap()), text);
        }
        for text in ["1B", "64KiB", "256MiB", "3GiB", "2TiB", "0B", "1000KiB"] {
            assert_eq!(format_size(parse_size(text).unwrap()), text);
        }
        assert_eq!(parse_duration("90s"), Ok(Duration::from_secs(90)));
        assert_eq!(parse_size("64KiB"), Ok(65_536));
        assert_eq!(
            (format_duration(Duration::from_secs(120)), format_size(1 << 21)),
            ("2m".into(), "2MiB".into())
        );
    }

    #[test]
    fn hints_name_the_right_unit() {
        for (text, hint) in [
            ("30", "\"30s\""),
            ("0", "a unit is missing"),
            ("30 sec", "write \"30s\""),
            ("5min", "write \"5m\""),
            ("30S", "lower case"),
            ("99999999999999999d", "too large"),
            ("99999999999999999999999s", "too large"),
        ] {
            assert!(parse_duration(text).unwrap_err().contains(hint), "{text}");
        }
        for (text, hint) in [
            ("256", "\"256MiB\""),
            ("256MB", "write \"256MiB\""),
            ("4 GiB", "write \"4GiB\""),
            ("64kb", "write \"64KiB\""),
            ("99999999TiB", "too large"),
        ] {
            assert!(parse_size(text).unwrap_err().contains(hint), "{text}");
        }
        for text in ["", "s", "-1s", "1.5h", "1h30m", "\u{661}s"] {
            assert!(parse_duration(text).is_err(), "{text}");
        }
    }
}
