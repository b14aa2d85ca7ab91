//! Commits: the signed root of a repository (AT Protocol, "Repository" section "Commit Objects").
//!
//! The signature is over the DAG-CBOR of the commit without `sig`. Fields that skyfill does not know are kept for that.

use ipld_core::ipld::Ipld;

use crate::domain::tid::is_tid;
use crate::repo::cbor;
use crate::repo::cid::Cid;
use crate::repo::error::RepoError;
use crate::repo::key::PublicKey;

/// The only repository version of the network.
const VERSION: i128 = 3;

/// A commit whose DID and signature have been checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Commit {
    /// The commit block's own CID.
    pub cid: Cid,
    /// Whose repository it is.
    pub did: String,
    /// Its revision, a TID.
    pub rev: String,
    /// Root of the MST.
    pub data: Cid,
    /// The key that its signature is good under, as `did:key:...`; `None`: none was given.
    pub signed_by: Option<String>,
}

/// Reads the commit in `block` and checks that it is `did`'s, signed by one of `keys`, as far as these are given.
///
/// # Errors
/// [`RepoError::Tree`] for a malformed commit, [`RepoError::DidMismatch`], [`RepoError::Signature`].
pub fn prove(
    cid: Cid,
    block: &[u8],
    did: Option<&str>,
    keys: &[PublicKey],
) -> Result<Commit, RepoError> {
    let malformed = |what: &str| RepoError::tree(format!("the commit {what}"));
    // The library allocates what an array claims to hold, up to 1 MiB a level: claims are compared with the bytes first.
    cbor::validate(block, |_, _| ())
        .map_err(|error| malformed(&format!("is not DAG-CBOR: {error}")))?;
    let parsed: Ipld = serde_ipld_dagcbor::from_slice(block)
        .map_err(|error| malformed(&format!("is not DAG-CBOR: {error}")))?;
    let Ipld::Map(mut fields) = parsed else { return Err(malformed("is not a map")) };
    let Some(Ipld::Bytes(signature)) = fields.remove("sig") else {
        return Err(malformed("has no signature"));
    };
    match fields.get("version") {
        Some(Ipld::Integer(VERSION)) => {}
        _ => return Err(malformed("is not of version 3")),
    }
    let found = match fields.get("did") {
        Some(Ipld::String(found)) => found.clone(),
        _ => return Err(malformed("has no did")),
    };
    if let Some(expected) = did.filter(|expected| *expected != found) {
        let (expected, found) = (expected.to_owned(), crate::domain::did::cleaned(&found));
        return Err(RepoError::DidMismatch { expected, found });
    }
    let rev = match fields.get("rev") {
        Some(Ipld::String(rev)) if is_tid(rev) => rev.clone(),
        _ => return Err(malformed("has no rev that is a TID")),
    };
    let data = match fields.get("data") {
        Some(Ipld::Link(link)) => Cid::from_bytes(&link.to_bytes()),
        _ => None,
    };
    let data = data.ok_or_else(|| malformed("has no data link"))?;
    let unsigned = serde_ipld_dagcbor::to_vec(&Ipld::Map(fields))
        .map_err(|error| malformed(&format!("cannot be encoded: {error}")))?;
    let signed_by = signer(keys, &unsigned, &signature)?;
    Ok(Commit { cid, did: found, rev, data, signed_by })
}

/// The first of `keys` that made `signature`; if none did, what is wrong under the first.
fn signer(
    keys: &[PublicKey],
    unsigned: &[u8],
    signature: &[u8],
) -> Result<Option<String>, RepoError> {
    let Some(first) = keys.first() else { return Ok(None) };
    match keys.iter().find(|key| key.verify(unsigned, signature).is_ok()) {
        Some(key) => Ok(Some(key.to_did_key())),
        None => first.verify(unsigned, signature).map_err(RepoError::Signature).map(|()| None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::repo::cid::Codec;

    fn cid_of(codec: u64) -> cid::Cid {
        let digest = cid::multihash::Multihash::wrap(0x12, &[7; 32]).unwrap();
        cid::Cid::new_v1(codec, digest)
    }

    /// A commit with this field as it should be (`None` leaves it out), and what is said of it.
    fn proven(field: &str, value: Option<Ipld>) -> Result<Commit, String> {
        let mut fields: std::collections::BTreeMap<String, Ipld> = [
            ("did", Ipld::String("did:web:example.com".to_owned())),
            ("version", Ipld::Integer(VERSION)),
            ("rev", Ipld::String("3kdgeujwlq32y".to_owned())),
            ("data", Ipld::Link(cid_of(0x71))),
            ("prev", Ipld::Null),
            ("sig", Ipld::Bytes(vec![0; 64])),
        ]
        .map(|(name, value)| (name.to_owned(), value))
        .into();
        fields.remove(field);
        fields.extend(value.map(|value| (field.to_owned(), value)));
        let block = serde_ipld_dagcbor::to_vec(&Ipld::Map(fields)).unwrap();
        let cid = Cid { codec: Codec::DagCbor, digest: [0; 32] };
        prove(cid, &block, Some("did:web:example.com"), &[]).map_err(|error| error.to_string())
    }

    #[test]
    fn each_field_of_a_commit_must_be_what_the_protocol_says() {
        let commit = proven("unknown", Some(Ipld::Integer(1))).unwrap();
        assert_eq!((&commit.did[..], &commit.rev[..]), ("did:web:example.com", "3kdgeujwlq32y"));
        let data = Cid { codec: Codec::DagCbor, digest: [7; 32] };
        assert_eq!((commit.data, commit.signed_by), (data, None));
        let text = |text: &str| Some(Ipld::String(text.to_owned()));
        for (field, values, what) in [
            ("sig", [None, text("x"), Some(Ipld::Null)], "has no signature"),
            ("version", [None, text("3"), Some(Ipld::Integer(VERSION - 1))], "is not of version 3"),
            ("did", [None, Some(Ipld::Null), Some(Ipld::Integer(3))], "has no did"),
            (
                "rev",
                [None, text("3kdgeujwlq32"), text("zkdgeujwlq32y")],
                "has no rev that is a TID",
            ),
            (
                "rev",
                [text(""), text("3kdgeujwlq32yy"), Some(Ipld::Null)],
                "has no rev that is a TID",
            ),
            ("data", [None, Some(Ipld::Null), Some(Ipld::Link(cid_of(0x70)))], "has no data link"),
        ] {
            for value in values {
                let error = proven(field, value.clone()).err();
                let wanted = format!("invalid tree: the commit {what}");
                assert_eq!(error, Some(wanted), "{field}: {value:?}");
            }
        }
        let other = proven("did", text("did:web:example.org")).unwrap_err();
        assert!(other.contains("did:web:example.org"), "{other}");
    }

    #[test]
    fn lengths_that_a_commit_only_claims_are_refused_before_anything_is_allocated_for_them() {
        let cid = Cid { codec: Codec::DagCbor, digest: [0; 32] };
        let error_of = |block: &[u8]| {
            prove(cid, block, None, &[])
                .map_err(|error| error.to_string())
                .err()
                .unwrap_or_default()
        };
        let deep = [0x9a, 0xff, 0xff, 0xff, 0xff].repeat(200);
        let wanted = "invalid tree: the commit is not DAG-CBOR: nested deeper than 64";
        assert_eq!(error_of(&deep), wanted);
        let short = [0xa1, 0x61, b'x', 0x9b, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0];
        let wanted = "invalid tree: the commit is not DAG-CBOR: ends within an item";
        assert_eq!(error_of(&short), wanted);
    }
}
