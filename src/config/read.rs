//! Readers: one written value as one typed thing, or what was expected instead, in words.

use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use crate::config::units::{
    DURATION_FORM, SIZE_FORM, format_duration, format_size, parse_duration, parse_size,
};
use crate::config::written::{Data, Place, Value, short};

/// One thing that is wrong with a value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Where exactly; the value's own place for what is wrong with all of it.
    pub place: Place,
    /// What was expected and what was found.
    pub text: String,
}

/// A read value, or everything that is wrong with it.
pub type Read<T> = Result<T, Vec<Fault>>;

/// A fault of `value` in free words.
#[must_use]
pub fn fault(value: &Value, text: impl Into<String>) -> Vec<Fault> {
    vec![Fault { place: value.place.clone(), text: text.into() }]
}

/// A fault of `value`: something else was expected; `hint` may be empty.
#[must_use]
pub fn expected(value: &Value, what: &str, hint: &str) -> Vec<Fault> {
    let hint = if hint.is_empty() { String::new() } else { format!(" ({hint})") };
    fault(value, format!("expected {what}, found {value}{hint}"))
}

/// Text.
///
/// # Errors
/// What was found instead of `what`.
pub fn text<'v>(value: &'v Value, what: &str) -> Read<&'v str> {
    match &value.data {
        Data::Text(text) => Ok(text),
        Data::Date => Err(expected(value, what, "quotes are missing")),
        _ => Err(expected(value, what, "")),
    }
}

/// `true` or `false`.
///
/// # Errors
/// What was found instead.
pub fn flag(value: &Value) -> Read<bool> {
    match &value.data {
        Data::Flag(flag) => Ok(*flag),
        Data::Text(text) if matches!(text.as_str(), "true" | "false") => {
            Err(expected(value, "true or false", "without quotes"))
        }
        _ => Err(expected(value, "true or false", "")),
    }
}

/// A whole number in `range`, in the caller's type.
///
/// # Errors
/// What was found instead.
pub fn whole<T: TryFrom<u64>>(value: &Value, range: RangeInclusive<u64>) -> Read<T> {
    let what = format!("a whole number from {} to {}", range.start(), range.end());
    let hint = match &value.data {
        Data::Text(text) if text.parse::<u64>().is_ok() => "without quotes",
        _ => "",
    };
    let number = match value.data {
        Data::Whole(number) => u64::try_from(number).ok(),
        _ => None,
    };
    let number = number.filter(|number| range.contains(number)).and_then(|n| T::try_from(n).ok());
    number.ok_or_else(|| expected(value, &what, hint))
}

/// Least rate: one request in about a quarter of an hour.
const RATE_MIN: f64 = 0.001;

/// Largest rate: what no host and no socket reaches.
const RATE_MAX: f64 = 1_000_000.0;

/// Requests per second, above 0.
///
/// # Errors
/// What was found instead.
pub fn rate(value: &Value) -> Read<f64> {
    let what = "a number of requests per second from 0.001 to 1000000";
    let number = match value.data {
        Data::Whole(number) => u32::try_from(number).ok().map(f64::from),
        Data::Fraction(number) => Some(number),
        _ => None,
    };
    let number = number.filter(|number| (RATE_MIN..=RATE_MAX).contains(number));
    let hint = match &value.data {
        Data::Text(text) if text.parse::<f64>().is_ok() => "without quotes",
        _ => "",
    };
    number.ok_or_else(|| expected(value, what, hint))
}

/// A time in `range`.
///
/// # Errors
/// What was found instead.
pub fn duration(value: &Value, range: RangeInclusive<Duration>) -> Read<Duration> {
    if let Data::Whole(number) = value.data {
        let hint = format!("a unit is missing: \"{number}s\" is seconds");
        return Err(expected(value, DURATION_FORM, &hint));
    }
    let parsed = parse_duration(text(value, DURATION_FORM)?);
    let duration = parsed.map_err(|hint| expected(value, DURATION_FORM, &hint))?;
    let bounds = || {
        let (least, most) = (format_duration(*range.start()), format_duration(*range.end()));
        expected(value, &format!("a time from {least} to {most}"), "")
    };
    if range.contains(&duration) { Ok(duration) } else { Err(bounds()) }
}

/// A size in `range`, bytes.
///
/// # Errors
/// What was found instead.
pub fn size(value: &Value, range: RangeInclusive<u64>) -> Read<u64> {
    if let Data::Whole(number) = value.data {
        let hint = format!("a unit is missing: \"{number}MiB\" or \"{number}B\"");
        return Err(expected(value, SIZE_FORM, &hint));
    }
    let parsed = parse_size(text(value, SIZE_FORM)?);
    let bytes = parsed.map_err(|hint| expected(value, SIZE_FORM, &hint))?;
    let bounds = || {
        let (least, most) = (format_size(*range.start()), format_size(*range.end()));
        expected(value, &format!("a size from {least} to {most}"), "")
    };
    if range.contains(&bytes) { Ok(bytes) } else { Err(bounds()) }
}

/// One of a closed set of words.
///
/// # Errors
/// The words.
pub fn word<T: Copy>(value: &Value, words: &[(&str, T)]) -> Read<T> {
    let names: Vec<String> = words.iter().map(|(name, _)| format!("\"{name}\"")).collect();
    let what = format!("one of {}", names.join(", "));
    let written = text(value, &what)?;
    let found = words.iter().find(|(name, _)| *name == written);
    let is_other_case = words.iter().any(|(name, _)| name.eq_ignore_ascii_case(written));
    let hint = if is_other_case { "words are lower case" } else { "" };
    found.map(|(_, meaning)| *meaning).ok_or_else(|| expected(value, &what, hint))
}

/// A list whose every element `read` understands; the faults of all its elements otherwise.
///
/// # Errors
/// No list, or the faults of its elements.
pub fn list<T>(value: &Value, what: &str, read: impl Fn(&Value) -> Read<T>) -> Read<Vec<T>> {
    let Data::List(items) = &value.data else {
        let hint = match &value.data {
            Data::Text(_) | Data::Whole(_) => format!("write [{value}]"),
            _ => String::new(),
        };
        return Err(expected(value, what, &hint));
    };
    let (mut values, mut faults) = (Vec::new(), Vec::new());
    for item in items {
        match read(item) {
            Ok(value) => values.push(value),
            Err(wrong) => faults.extend(wrong),
        }
    }
    if faults.is_empty() { Ok(values) } else { Err(faults) }
}

/// A path, relative ones to the working directory.
///
/// # Errors
/// What no file can be called, or what only a shell would understand.
pub fn path(value: &Value) -> Read<PathBuf> {
    let written = text(value, "a path")?;
    if written.trim().is_empty() {
        return Err(expected(value, "a path", ""));
    }
    if written.contains('\0') {
        return Err(fault(value, "a path cannot contain a NUL character"));
    }
    if written == "~" || written.starts_with("~/") {
        return Err(fault(
            value,
            format!("{value}: ~ is not understood here, write the whole path"),
        ));
    }
    Ok(PathBuf::from(written))
}

/// Text for an HTTP header: printable ASCII, at most 200 bytes.
///
/// # Errors
/// What it must look like.
pub fn header_text(value: &Value) -> Read<String> {
    let what = "at most 200 printable ASCII characters";
    let written = text(value, what)?;
    let is_fit = written.len() <= 200 && written.bytes().all(|byte| (b' '..=b'~').contains(&byte));
    if is_fit { Ok(written.to_owned()) } else { Err(expected(value, what, "")) }
}

/// Base URL of a directory.
///
/// # Errors
/// What it must look like.
pub fn directory_url(value: &Value) -> Read<url::Url> {
    let what = "a URL such as \"https://plc.directory\"";
    let written = text(value, what)?;
    let refuse = |why: &str| Err(fault(value, format!("{}: {why}", short(written))));
    let Ok(mut url) = url::Url::parse(written) else {
        let hint = if written.contains("://") { "" } else { "https:// is missing" };
        return Err(expected(value, what, hint));
    };
    if !matches!(url.scheme(), "http" | "https") {
        return Err(expected(value, what, "only http and https are spoken"));
    }
    if !url.username().is_empty() || url.password().is_some() || written.contains('@') {
        return refuse("user and password have no place in it");
    }
    if url.query().is_some() || url.fragment().is_some() {
        return refuse("query and fragment have no place in it");
    }
    if url.port() == Some(0) {
        return refuse("port 0 cannot be reached");
    }
    if let Ok(mut segments) = url.path_segments_mut() {
        segments.pop_if_empty();
    }
    Ok(url)
}
