//! An account that was given up, as a sink is told of it.

use crate::domain::account::Revision;

/// An account that was given up: nothing of it comes, unless it is put back.
#[derive(Clone, Debug, PartialEq)]
pub struct Parked {
    /// Its DID, or what stands for it in the rows; the cleaned text of what is none.
    pub did: String,
    /// Why, as in `skyfill status`.
    pub reason: String,
    /// What went wrong last, if something did, as there.
    pub last_error: Option<String>,
    /// Charged failures.
    pub attempts: u32,
    /// What was exported of it before, if it was ever done.
    pub revision: Option<Revision>,
}
