//! NSIDs: names of record types (AT Protocol, "NSID").

use crate::limits::NSID_BYTES_MAX;

/// Whether `text` is a well-formed NSID: at least three labels, a domain reversed and a name without hyphens or digits first.
#[must_use]
pub fn is_nsid(text: &str) -> bool {
    let Some((authority, name)) = text.rsplit_once('.') else { return false };
    let labels = authority.split('.');
    let is_label = |label: &str| {
        (1..=63).contains(&label.len())
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
    };
    let is_name = (1..=63).contains(&name.len())
        && name.bytes().all(|b| b.is_ascii_alphanumeric())
        && !name.starts_with(|c: char| c.is_ascii_digit());
    text.len() <= NSID_BYTES_MAX
        && authority.contains('.')
        && !authority.starts_with(|c: char| c.is_ascii_digit())
        && is_name
        && labels.clone().all(is_label)
}
