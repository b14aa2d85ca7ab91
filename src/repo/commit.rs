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
