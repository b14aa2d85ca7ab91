//! DIDs: the two methods of the network, `did:plc` and `did:web` (AT Protocol, "DID" section "Blessed DID Methods").
//!
//! A [`Did`] is syntactically valid by construction; `did:plc` is case-sensitive, the host of `did:web` is lower-cased.
//! Text that is not a DID has a *cleaned* form, under which it is parked as `did_invalid`.

use std::fmt;
use std::sync::Arc;

use crate::limits::DID_BYTES_MAX;

/// Characters of the cleaned text of a malformed DID.
const CLEANED_CHARACTERS_MAX: usize = 200;

/// A well-formed `did:plc` or `did:web`.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Did(Arc<str>);

/// Which directory knows the DID.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DidMethod {
    /// `did:plc:` and 24 characters of base32.
    Plc,
    /// `did:web:` and a host name.
    Web,
}

/// Why a text is no DID that skyfill can resolve.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DidError {
    /// Does not begin with `did:plc:` or `did:web:`.
    #[error("neither did:plc nor did:web")]
    Method,
    /// Not 24 characters of `a-z2-7` after `did:plc:`.
    #[error("did:plc wants 24 characters of a-z and 2-7 after it")]
    Plc,
    /// No plain host name after `did:web:`.
    #[error("did:web wants a host name, without path, and a port only for localhost")]
    Web,
    /// Longer than the protocol allows.
    #[error("longer than 2,048 bytes")]
    TooLong,
}

impl Did {
    /// Parses a DID exactly as written, except that the host of `did:web` is lower-cased.
    ///
    /// # Errors
    /// [`DidError`] says what a DID of that method looks like.
    pub fn parse(text: &str) -> Result<Self, DidError> {
        if text.len() > DID_BYTES_MAX {
            return Err(DidError::TooLong);
        }
        if let Some(id) = text.strip_prefix("did:plc:") {
            let base32 = |byte: u8| byte.is_ascii_lowercase() || (b'2'..=b'7').contains(&byte);
            let valid = id.len() == 24 && id.bytes().all(base32);
            return if valid { Ok(Self(text.into())) } else { Err(DidError::Plc) };
        }
        let Some(id) = text.strip_prefix("did:web:") else { return Err(DidError::Method) };
        let host = id.to_ascii_lowercase();
        if !is_web_host(&host) {
            return Err(DidError::Web);
        }
        Ok(Self(format!("did:web:{host}").into()))
    }

    /// The DID's text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Which directory knows it.
    #[must_use]
    pub fn method(&self) -> DidMethod {
        if self.0.starts_with("did:plc:") { DidMethod::Plc } else { DidMethod::Web }
    }

    /// What follows `did:plc:` or `did:web:`.
    #[must_use]
    pub fn identifier(&self) -> &str {
        &self.0[8..]
    }
}

impl fmt::Display for Did {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Did {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The text under which something that is not a DID is parked: trimmed, control characters escaped, cut at 200
/// characters, case kept.
#[must_use]
pub fn cleaned(text: &str) -> String {
    let mut clean = String::new();
    for character in text.trim().chars() {
        if character.is_control() || is_invisible(character) {
            clean.extend(character.escape_unicode());
        } else {
            clean.push(character);
        }
        if clean.chars().count() >= CLEANED_CHARACTERS_MAX {
            break;
        }
    }
    clean.chars().take(CLEANED_CHARACTERS_MAX).collect()
}

/// Direction marks and separators that a terminal obeys without showing them.
fn is_invisible(character: char) -> bool {
    matches!(character, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{2069}' | '\u{feff}')
}

/// A lower-case host name of at least two labels, or localhost with an optional `%3A` port.
fn is_web_host(host: &str) -> bool {
    if host == "localhost" {
        return true;
    }
    if let Some(port) = host.strip_prefix("localhost%3a") {
        // Digits only: a number may be read from "+80" too.
        let is_digits = port.bytes().all(|byte| byte.is_ascii_digit());
        return is_digits && port.parse::<u16>().is_ok_and(|n| n > 0);
    }
    let labels: Vec<&str> = host.split('.').collect();
    let is_label = |label: &&str| {
        (1..=63).contains(&label.len())
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
    };
    let last_is_name =
        labels.last().is_some_and(|label| !label.bytes().all(|b| b.is_ascii_digit()));
    host.len() <= 253 && labels.len() >= 2 && labels.iter().all(is_label) && last_is_name
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_two_methods_are_read() {
        let plc = Did::parse("did:plc:44ybard66vv44zksje25o7dz").unwrap();
        assert_eq!((plc.method(), plc.identifier()), (DidMethod::Plc, "44ybard66vv44zksje25o7dz"));
        let web = Did::parse("did:web:Example.COM").unwrap();
        assert_eq!((web.method(), web.as_str()), (DidMethod::Web, "did:web:example.com"));
        assert_eq!(format!("{web} {web:?}"), "did:web:example.com did:web:example.com");
        for text in ["localhost%3A2583", "localhost", "localhosting.net", "localhost.example.com"] {
            assert!(Did::parse(&format!("did:web:{text}")).is_ok(), "{text}");
        }
    }

    #[test]
    fn everything_else_is_refused() {
        for text in [
            "",
            "did:plc:",
            "DID:PLC:44ybard66vv44zksje25o7dz",
            "did:plc:44YBARD66vv44zksje25o7dz",
            "did:plc:44ybard66vv44zksje25o7d1",
            "did:plc:44ybard66vv44zksje25o7dzz",
            "did:key:zQ3sh",
            "did:web:",
            "did:web:..",
            "did:web:example.com:path",
            "did:web:example.com%3A8080",
            "did:web:127.0.0.1",
            "did:web:example",
            "did:web:localhost%3A",
            "did:web:localhost%3A0",
            "did:web:localhost%3A+80",
            "did:web:localhost%3A65536",
            "did:web:localhost%3A80%3A80",
            "did:web:localhosting",
            "did:web:-a.com",
            "did:web:a..com",
            "did:web:[::1]",
            "did:plc:../../../../../../etc/pa",
        ] {
            assert!(Did::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn lengths_are_counted_to_the_last_byte() {
        // The longest text that is looked at, and what is not.
        assert_eq!(Did::parse(&"x".repeat(DID_BYTES_MAX)), Err(DidError::Method));
        assert_eq!(Did::parse(&"x".repeat(DID_BYTES_MAX + 1)), Err(DidError::TooLong));
        let label = "a".repeat(63);
        let web = |host: &str| Did::parse(&format!("did:web:{host}")).is_ok();
        assert!(web(&format!("{label}.com")) && !web(&format!("a{label}.com")));
        let host = format!("{label}.{label}.{label}.{}", &label[..61]);
        assert_eq!(host.len(), 253);
        assert!(web(&host) && !web(&format!("{host}a")));
    }

    #[test]
    fn labels_of_a_host_are_letters_digits_and_hyphens_within() {
        let web = |host: &str| Did::parse(&format!("did:web:{host}")).is_ok();
        for host in ["a-1.example.com", "1.example.com", "xn--a.b", "example.c0m"] {
            assert!(web(host), "{host}");
        }
        for host in ["a-.example.com", "-1.example.com", "a_b.com", "a.example.1", "é.com"] {
            assert!(!web(host), "{host}");
        }
    }

    #[test]
    fn direction_marks_are_shown_and_a_cut_is_no_longer_than_200_characters() {
        for mark in
            ['\u{200b}', '\u{200f}', '\u{2028}', '\u{202e}', '\u{2060}', '\u{2069}', '\u{feff}']
        {
            assert_eq!(cleaned(&format!("a{mark}b")), format!("a{}b", mark.escape_unicode()));
        }
        assert_eq!(cleaned("a\u{2010}b"), "a\u{2010}b");
        // The last one is escaped only in part.
        let cut = cleaned(&format!("{}\u{7}", "é".repeat(198)));
        assert_eq!((cut.chars().count(), cut.ends_with("\\u")), (200, true));
    }

    #[test]
    fn cleaned_text_is_short_and_printable() {
        assert_eq!(cleaned("  did:PLC:abc\u{1b}[31m\n"), "did:PLC:abc\\u{1b}[31m");
        assert_eq!(cleaned(&"x".repeat(5_000)).len(), 200);
        assert!(!cleaned(&"\u{7}".repeat(300)).contains('\u{7}'));
    }
}
