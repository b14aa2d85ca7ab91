//! DIDs, NSIDs and record keys against the grammars of the protocol, written once more.

use skyfill::domain::did::{Did, DidMethod, cleaned};
use skyfill::domain::nsid::is_nsid;
use skyfill::domain::rkey::is_rkey;
use skyfill::domain::tid::is_tid;
use skyfill::repo::mst::checked_key;

pub fn did(data: &[u8]) -> bool {
    let text = String::from_utf8_lossy(data);
    let clean = cleaned(&text);
    assert!(clean.chars().count() <= 200 && !clean.chars().any(char::is_control), "{clean:?}");
    // Its end may have been cut off after a blank; nothing else changes when it is cleaned again.
    assert_eq!(cleaned(&clean), clean.trim_end());
    let parsed = Did::parse(&text);
    assert_eq!(parsed.is_ok(), is_did(&text), "{text:?}: {parsed:?}");
    let Ok(did) = parsed else { return false };
    assert_eq!(Did::parse(did.as_str()), Ok(did.clone()), "its own text is its DID");
    assert_eq!(did.to_string(), format!("{}{}", &did.as_str()[..8], did.identifier()));
    match did.method() {
        DidMethod::Plc => assert_eq!(did.as_str(), text),
        DidMethod::Web => assert_eq!(did.as_str(), text.to_ascii_lowercase()),
    }
    true
}

/// `did:plc:` with 24 of base32, or `did:web:` with a host of labels, the last no number, or localhost with a port.
fn is_did(text: &str) -> bool {
    if text.len() > 2048 {
        return false;
    }
    if let Some(id) = text.strip_prefix("did:plc:") {
        return id.len() == 24
            && id.chars().all(|c| "abcdefghijklmnopqrstuvwxyz234567".contains(c));
    }
    let Some(host) = text.strip_prefix("did:web:").map(str::to_ascii_lowercase) else {
        return false;
    };
    if let Some(port) = host.strip_prefix("localhost%3a") {
        let digits = port.trim_start_matches('0');
        let in_range = digits.len() < 5 || (digits.len() == 5 && digits <= "65535");
        return port.chars().all(|c| c.is_ascii_digit()) && !digits.is_empty() && in_range;
    }
    let labels = host.split('.').collect::<Vec<_>>();
    let is_number = labels[labels.len() - 1].chars().all(|c| c.is_ascii_digit());
    let all_fit = host.len() <= 253 && labels.iter().all(|label| is_label(label));
    host == "localhost" || (labels.len() > 1 && all_fit && !is_number)
}

/// One of a host's labels: letters, digits and inner hyphens.
fn is_label(label: &str) -> bool {
    let inner = |c: char| c.is_ascii_alphanumeric() || c == '-';
    let outer = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
    label.len() < 64
        && label.chars().all(inner)
        && outer(label.chars().next())
        && outer(label.chars().next_back())
}

/// Input: `<nsid>/<rkey>`, or anything.
pub fn nsid_and_rkey(data: &[u8]) -> bool {
    let text = String::from_utf8_lossy(data);
    let (collection, rkey) = text.split_once('/').unwrap_or((&text, ""));
    assert_eq!(is_nsid(collection), nsid_by_grammar(collection), "{collection:?}");
    assert_eq!(is_rkey(rkey), rkey_by_grammar(rkey), "{rkey:?}");
    assert!(!is_tid(rkey) || is_rkey(rkey), "every TID is a record key");
    assert_eq!(is_tid(rkey), tid_by_grammar(rkey), "{rkey:?}");
    let good = is_nsid(collection) && is_rkey(rkey);
    let key = checked_key(data, ("", 0));
    assert_eq!(key.is_ok(), good && std::str::from_utf8(data).is_ok(), "{text:?}");
    let Ok((checked, at)) = key else { return false };
    assert_eq!((checked, at), (&*text, collection.len() + 1));
    // A key before it, of the same collection or of another, makes no difference.
    let sibling = format!("{collection}/self");
    let other = "app.bsky.feed.like/3jzfcijpj2z2a";
    for before in [(sibling.as_str(), at), (other, "app.bsky.feed.like/".len())] {
        let again = checked_key(data, before).expect("it was good before");
        assert_eq!(again, (checked, at));
    }
    true
}

fn nsid_by_grammar(text: &str) -> bool {
    let labels: Vec<&str> = text.split('.').collect();
    let Some((name, domain)) = labels.split_last() else { return false };
    let begins = |label: &str| label.chars().next().is_some_and(|c| c.is_ascii_alphabetic());
    text.len() <= 317
        && domain.len() >= 2
        && domain.iter().all(|label| is_label(label))
        && begins(domain[0])
        && is_label(name)
        && begins(name)
        && !name.contains('-')
}

fn rkey_by_grammar(text: &str) -> bool {
    let allowed = |c: char| c.is_ascii_alphanumeric() || "._:~-".contains(c);
    !text.is_empty()
        && text.len() <= 512
        && text != "."
        && text != ".."
        && text.chars().all(allowed)
}

fn tid_by_grammar(text: &str) -> bool {
    let digits = "234567abcdefghijklmnopqrstuvwxyz";
    text.len() == 13
        && text.chars().all(|c| digits.contains(c))
        && text.chars().next().and_then(|c| digits.find(c)).is_some_and(|first| first < 16)
}
