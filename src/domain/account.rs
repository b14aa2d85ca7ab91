//! One account's names and figures: what travels from the repository walk through the journal into ledger and summary.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// The ledger's row number of an account; rows are never deleted, so it never changes its meaning.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct AccountId(pub i64);

/// Why a record is not exported although nothing is wrong with it.
pub const SKIPPED: [&str; 2] = ["type", "outside_window"];

/// Why a record goes to the rejected queue (TRANSFORM, "Which records").
pub const REJECTED: [&str; 4] = ["created_at", "schema", "cbor", "too_large"];

/// A proven and transformed revision of an account. Reconciles: `leaves` = exported + skipped + rejected.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Revision {
    /// The account's DID.
    pub did: String,
    /// How often the account had been exported before: with the DID the key under which an export happens once.
    pub edition: u32,
    /// Revision of the commit, a TID.
    pub rev: String,
    /// CID of the commit block, base32.
    pub commit_cid: String,
    /// The key that the commit's signature is good under, as `did:key:...`: the document's, or one the account had before.
    #[serde(default)]
    pub signed_by: String,
    /// Bytes of the CAR as received.
    pub repo_bytes: u64,
    /// Leaves of the MST.
    pub leaves: u64,
    /// Exported records by queue label (`post`, `reply`, ... or a configured entry).
    pub exported: BTreeMap<String, u64>,
    /// Skipped records by reason of [`SKIPPED`].
    pub skipped: BTreeMap<String, u64>,
    /// Rejected records by reason of [`REJECTED`].
    pub rejected: BTreeMap<String, u64>,
    /// Hash of the filter (types, window, outside, offsets, pseudonyms) that made the rows.
    pub filter: String,
    /// The pseudonym that stands for the DID in the rows; empty: the DID itself does.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub shown_as: String,
    /// When the proof was complete, milliseconds since 1970; 0 in a ledger of before that was kept.
    #[serde(default)]
    pub proven_at_ms: i64,
    /// Version of the skyfill that proved it; empty in a ledger of before that was kept.
    #[serde(default)]
    pub proven_by: String,
    /// Leaves with a row in a queue, if their fingerprints were kept with the revision: a later one can be compared with it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kept: Option<u64>,
    /// What a refresh made of it; `None`: everything that the counts say was put into the queues.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refresh: Option<Refreshed>,
}

/// A revision that was compared with the one before: only what differs was put into the queues.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refreshed {
    /// The revision before.
    pub previous_rev: String,
    /// Rows put into queues by label, those of `rejected` and `deleted` among them.
    pub queued: BTreeMap<String, u64>,
}

impl Refreshed {
    /// Records whose rows were put into the queue of `label`.
    #[must_use]
    pub fn queued(&self, label: &str) -> u64 {
        self.queued.get(label).copied().unwrap_or(0)
    }
}

impl Revision {
    /// What the queues call the account: its pseudonym, or else its DID.
    #[must_use]
    pub fn shown_did(&self) -> &str {
        if self.shown_as.is_empty() { &self.did } else { &self.shown_as }
    }

    /// Exported records over all queues, the rejected one not counted.
    #[must_use]
    pub fn exported_total(&self) -> u64 {
        self.exported.values().sum()
    }

    /// Records of the exported types that were put into queues with this revision.
    #[must_use]
    pub fn queued_total(&self) -> u64 {
        match &self.refresh {
            None => self.exported_total(),
            Some(refresh) => self.exported.keys().map(|label| refresh.queued(label)).sum(),
        }
    }

    /// Whether every leaf is accounted for.
    #[must_use]
    pub fn reconciles(&self) -> bool {
        let skipped: u64 = self.skipped.values().sum();
        let rejected: u64 = self.rejected.values().sum();
        self.leaves == self.exported_total() + skipped + rejected
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts<const N: usize>(counts: [(&str, u64); N]) -> BTreeMap<String, u64> {
        counts.into_iter().map(|(label, count)| (label.to_owned(), count)).collect()
    }

    #[test]
    fn the_counts_of_a_revision_are_held_against_its_leaves() {
        let mut revision = Revision {
            leaves: 21,
            exported: counts([("post", 10), ("like", 5)]),
            skipped: counts([("type", 3), ("outside_window", 1)]),
            rejected: counts([("schema", 2)]),
            ..Revision::default()
        };
        assert!(revision.reconciles());
        assert_eq!((revision.exported_total(), revision.queued_total()), (15, 15));
        revision.leaves += 1;
        assert!(!revision.reconciles());
        revision.rejected = counts([("schema", 2), ("cbor", 1)]);
        assert!(revision.reconciles());
    }

    #[test]
    fn of_a_refreshed_revision_only_what_differs_was_queued() {
        let queued = counts([("post", 2), ("like", 1), ("rejected", 4), ("deleted", 8)]);
        let refreshed = Refreshed { previous_rev: "3k".to_owned(), queued };
        assert_eq!((refreshed.queued("post"), refreshed.queued("deleted")), (2, 8));
        assert_eq!(refreshed.queued("block"), 0);
        let exported = counts([("post", 10), ("like", 5)]);
        let revision = Revision { exported, refresh: Some(refreshed), ..Revision::default() };
        assert_eq!((revision.exported_total(), revision.queued_total()), (15, 3));
    }

    #[test]
    fn the_queues_know_an_account_by_its_pseudonym_if_it_has_one() {
        let mut revision = Revision { did: "did:plc:a".to_owned(), ..Revision::default() };
        assert_eq!(revision.shown_did(), "did:plc:a");
        "p:1".clone_into(&mut revision.shown_as);
        assert_eq!(revision.shown_did(), "p:1");
    }
}
