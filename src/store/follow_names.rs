//! Names of followers: what they may be, how the ledger writes them, and who is missed.

use std::collections::HashMap;

use crate::sink::Position;
use crate::store::error::StoreError;

/// Bytes of a sink's name.
const NAME_BYTES_MAX: usize = 64;

/// What stands before a sink's name in the ledger, so that it is no queue's.
const LEDGER_PREFIX: &str = "sink:";

/// Position of a sink in the ledger.
#[must_use]
pub fn ledger_label(name: &str) -> String {
    format!("{LEDGER_PREFIX}{name}")
}

/// Checks `names` against each other and against the sinks that the ledger knows.
///
/// # Errors
/// [`StoreError::Config`] for a name that is none or is there twice, and for a known sink that is not there.
pub fn check_names(names: &[&str], known: &HashMap<String, Position>) -> Result<(), StoreError> {
    let is_good = |it: u8| it.is_ascii_lowercase() || it.is_ascii_digit() || b"-_".contains(&it);
    for (index, name) in names.iter().enumerate() {
        let is_name = (1..=NAME_BYTES_MAX).contains(&name.len()) && name.bytes().all(is_good);
        if !is_name || names[..index].contains(name) {
            let text = "a sink needs a name of its own, of small letters, digits, - and _";
            return Err(StoreError::Config(format!("{name:?}: {text}")));
        }
    }
    let mut followed = known.keys().filter_map(|label| label.strip_prefix(LEDGER_PREFIX));
    match followed.find(|name| !names.contains(name)) {
        Some(name) => Err(StoreError::Config(format!(
            "the sink {name} follows this data directory and is not there: rows would pass it by. Run with it, or let it go \
             for good (skyfill let-sink-go {name}, in a program Backfill::let_sink_go)"
        ))),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checked(names: &[&str], known: &[&str]) -> Result<(), String> {
        let known = known.iter().map(|label| ((*label).to_owned(), Position::default()));
        check_names(names, &known.collect()).map_err(|error| error.to_string())
    }

    #[test]
    fn names_are_small_letters_digits_and_two_marks_each_once() {
        let longest = "x".repeat(NAME_BYTES_MAX);
        for name in ["a", "lines", "kafka-2", "by_day", "9", &longest] {
            assert_eq!(checked(&[name, "other"], &[]), Ok(()), "{name}");
        }
        for name in ["", "A", "a.b", "a b", "a/b", "ä", &format!("{longest}x")] {
            assert!(checked(&["other", name], &[]).is_err(), "{name}");
        }
        assert!(checked(&["a", "b", "a"], &[]).is_err_and(|text| text.starts_with("\"a\"")));
    }

    #[test]
    fn a_sink_that_the_ledger_knows_is_missed_and_a_queue_is_none() {
        let known = ["post", &ledger_label("lines"), &ledger_label("kafka")];
        assert_eq!(checked(&["kafka", "lines", "new"], &known), Ok(()));
        let missed = checked(&["lines"], &known).unwrap_err();
        assert!(missed.starts_with("the sink kafka follows"), "{missed}");
    }
}
