//! Manifests: `manifest/NNNNNNNN.json`, one a commit, counted from 0. What none of them names does not count.
//!
//! ```text
//!  {"version": 1, "sink": "files", "form": ".jsonl.zst", "directory": "<data id>", "number": 3,
//!   "segments": [12, 20], "position": {"segment": 20, "item": null},
//!   "files": [{"path", "type", "day", "rows", "bytes", "sha256"}],
//!   "accounts": [{"did", "edition", "rev", "records": {"post": n}, "rejected": n}]}
//! ```
//! `position` is that of the journal behind everything in it; `item` null stands for all of the segment. Number 0 has no
//! files: it says whose place this is, and where the sink began.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::domain::account::Revision;
use crate::sink::StoreError;

/// Version of the form of these files.
const VERSION: u32 = 1;

/// Digits of a manifest's number in its name.
const DIGITS: usize = 8;

/// One commit.
#[derive(Debug, Serialize, Deserialize)]
pub struct Manifest {
    version: u32,
    sink: String,
    form: String,
    directory: String,
    /// Counted from 0.
    pub number: u64,
    /// First and last segment of the journal.
    pub segments: [u64; 2],
    position: Through,
    /// Files, complete and durable.
    pub files: Vec<FileEntry>,
    /// Accounts, whole.
    pub accounts: Vec<AccountEntry>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Through {
    segment: u64,
    item: Option<u64>,
}

/// A file of a commit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileEntry {
    /// Below the sink's place.
    pub path: String,
    /// Type of its rows.
    #[serde(rename = "type")]
    pub label: String,
    /// Day of its rows, in partitioned forms.
    pub day: Option<String>,
    /// How many.
    pub rows: u64,
    /// Its length.
    pub bytes: u64,
    /// Its SHA-256, hexadecimal.
    pub sha256: String,
}

/// An account of a commit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AccountEntry {
    did: String,
    edition: u32,
    rev: String,
    records: BTreeMap<String, u64>,
    rejected: u64,
}

impl AccountEntry {
    /// What a manifest says of `revision`.
    #[must_use]
    pub fn of(revision: &Revision) -> Self {
        let Revision { did, edition, rev, exported, rejected, .. } = revision;
        let rejected = rejected.values().sum();
        let (did, rev, records) = (did.clone(), rev.clone(), exported.clone());
        Self { did, edition: *edition, rev, records, rejected }
    }
}

/// Name of a manifest below `manifest/`.
#[must_use]
pub fn file_name(number: u64) -> String {
    format!("{number:0DIGITS$}.json")
}

/// Number of the manifest of this name.
#[must_use]
pub fn number_of(name: &str) -> Option<u64> {
    let digits = name.strip_suffix(".json")?;
    let is_number = digits.len() >= DIGITS && digits.bytes().all(|it| it.is_ascii_digit());
    if is_number { digits.parse().ok() } else { None }
}

impl Manifest {
    /// One without files that ends with the segment `through`.
    #[must_use]
    pub fn head(sink: &str, form: &str, directory: &str, through: u64) -> Self {
        Self {
            version: VERSION,
            sink: sink.to_owned(),
            form: form.to_owned(),
            directory: directory.to_owned(),
            number: 0,
            segments: [through, through],
            position: Through { segment: through, item: None },
            files: Vec::new(),
            accounts: Vec::new(),
        }
    }

    /// The last segment that it and all before it hold.
    #[must_use]
    pub const fn through(&self) -> u64 {
        self.position.segment
    }

    /// As it is written.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        // Plain strings and numbers always serialise.
        let mut bytes = serde_json::to_vec(self).unwrap_or_default();
        bytes.push(b'\n');
        bytes
    }

    /// Reads the manifest `number` of the sink at `place`.
    ///
    /// # Errors
    /// [`StoreError::Config`] naming it: it is no manifest, or one of a later version.
    pub fn read(number: u64, bytes: &[u8], place: &str) -> Result<Self, StoreError> {
        let refuse = |why: &str| {
            let name = file_name(number);
            Err(StoreError::Config(format!("{place}/manifest/{name} {why}: move it away")))
        };
        let Ok(manifest) = serde_json::from_slice::<Self>(bytes) else {
            return refuse("is no manifest of this version of skyfill");
        };
        if manifest.version != VERSION || manifest.number != number {
            return refuse("is no manifest of this version of skyfill");
        }
        Ok(manifest)
    }

    /// Whether this place is that of the data directory `directory` and of this form.
    ///
    /// # Errors
    /// [`StoreError::Config`] with the ways out.
    pub fn check(&self, directory: &str, form: &str, place: &str) -> Result<(), StoreError> {
        if self.directory != directory {
            return Err(StoreError::Config(format!(
                "{place} belongs to another data directory: give the sink a place of its own"
            )));
        }
        if self.form != form {
            return Err(StoreError::Config(format!(
                "{place} holds {} files, and the configuration wants {form}: put type and compression back, or begin a new \
                 sink at another place",
                self.form
            )));
        }
        Ok(())
    }
}
