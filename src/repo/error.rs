//! What can be wrong with a repository, and whether to fetch it again.

use crate::domain::verdict::{Cause, LastError, Reason};
use crate::repo::cid::Cid;

/// Why a repository is not proven.
#[derive(Debug, thiserror::Error)]
pub enum RepoError {
    /// The bytes are no CAR v1 (another answer, or framing that makes no sense): fetch again.
    #[error("not a CAR: {0}")]
    NotCar(&'static str),
    /// It ends within a section: fetch again.
    #[error("incomplete: it ends after {0} bytes within a section")]
    Cut(u64),
    /// A block that the tree needs is not there: fetch again. Truncation at a block border looks like this.
    #[error("incomplete: {what} {cid} is not in the CAR")]
    Missing {
        /// What kind of block.
        what: &'static str,
        /// Which one.
        cid: Cid,
    },
    /// A block's bytes do not have the hash of its CID.
    #[error("wrong hash: {0}")]
    Hash(String),
    /// Commit or tree break the rules of the repository format.
    #[error("invalid tree: {0}")]
    Tree(String),
    /// The commit is another account's.
    #[error("the commit names {found} instead of {expected}")]
    DidMismatch {
        /// Who was asked for.
        expected: String,
        /// Who the commit names.
        found: String,
    },
    /// The commit's signature is not good under the key of the DID document.
    #[error("invalid signature: {0}")]
    Signature(&'static str),
    /// More bytes than configured.
    #[error("larger than {0} bytes (limits.repo_bytes)")]
    TooLarge(u64),
    /// The cancel flag was set.
    #[error("cancelled")]
    Cancelled,
    /// The spool could not be read.
    #[error("the spool could not be read: {0}")]
    Io(#[from] std::io::Error),
}

impl RepoError {
    /// The word kept beside the reason.
    #[must_use]
    pub fn last_error(&self) -> Option<LastError> {
        Some(match self {
            Self::NotCar(_) => LastError::NotCar,
            Self::Cut(_) | Self::Missing { .. } => LastError::Incomplete,
            Self::Hash(_) => LastError::Hash,
            Self::Tree(_) => LastError::Tree,
            Self::DidMismatch { .. } => LastError::DidMismatch,
            Self::Signature(_) => LastError::Signature,
            Self::TooLarge(_) | Self::Cancelled | Self::Io(_) => return None,
        })
    }

    /// What it means for the account. `Cancelled` and `Io` are the caller's own matter and count as transient here.
    #[must_use]
    pub fn cause(&self) -> Cause {
        match self {
            Self::Hash(_) | Self::Tree(_) | Self::DidMismatch { .. } | Self::Signature(_) => {
                Cause::Invalid
            }
            Self::TooLarge(_) => Cause::Terminal(Reason::RepoTooLarge),
            Self::NotCar(_)
            | Self::Cut(_)
            | Self::Missing { .. }
            | Self::Cancelled
            | Self::Io(_) => Cause::Transient,
        }
    }

    /// Whether the bytes may simply be cut short.
    #[must_use]
    pub fn is_incomplete(&self) -> bool {
        matches!(self, Self::Cut(_) | Self::Missing { .. })
    }

    pub(crate) fn tree(detail: impl Into<String>) -> Self {
        Self::Tree(detail.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::repo::cid::Codec;

    #[test]
    fn every_error_says_what_was_wrong_and_what_becomes_of_the_account() {
        let cid = Cid { codec: Codec::DagCbor, digest: [0; 32] };
        let missing = RepoError::Missing { what: "node", cid };
        let (expected, found) = ("did:plc:a".to_owned(), "did:plc:b".to_owned());
        let other = RepoError::DidMismatch { expected, found };
        let io = RepoError::Io(std::io::ErrorKind::NotFound.into());
        let too_large = Cause::Terminal(Reason::RepoTooLarge);
        for (error, word, cause, is_incomplete) in [
            (RepoError::NotCar("x"), Some(LastError::NotCar), Cause::Transient, false),
            (RepoError::Cut(7), Some(LastError::Incomplete), Cause::Transient, true),
            (missing, Some(LastError::Incomplete), Cause::Transient, true),
            (RepoError::Hash("x".to_owned()), Some(LastError::Hash), Cause::Invalid, false),
            (RepoError::tree("x"), Some(LastError::Tree), Cause::Invalid, false),
            (other, Some(LastError::DidMismatch), Cause::Invalid, false),
            (RepoError::Signature("x"), Some(LastError::Signature), Cause::Invalid, false),
            (RepoError::TooLarge(7), None, too_large, false),
            (RepoError::Cancelled, None, Cause::Transient, false),
            (io, None, Cause::Transient, false),
        ] {
            assert_eq!((error.last_error(), error.cause()), (word, cause), "{error}");
            assert_eq!(error.is_incomplete(), is_incomplete, "{error}");
        }
    }
}
