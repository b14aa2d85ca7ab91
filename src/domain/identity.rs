//! What a DID document says about an account: its host, its signing key and its claimed handle.

use serde::{Deserialize, Serialize};

/// An account's identity as of one resolution (AT Protocol, "DID" section "DID Documents").
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// `serviceEndpoint` of the PDS, verbatim.
    pub endpoint: String,
    /// Host name in lower case, with `:port` unless it is the scheme's own: the name that pace is kept by.
    pub host: String,
    /// Signing key as `did:key:...` (Multikey form, whatever the document used).
    pub key: String,
    /// Signing keys that the account had before, newest first; only looked up when a signature was not good under `key`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub earlier_keys: Vec<String>,
    /// First `at://` name of `alsoKnownAs` without the scheme: a claim, not verified.
    pub handle: Option<String>,
}
