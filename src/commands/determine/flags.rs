//! The flags of `skyfill determine`, and what they mean.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use crate::cli::Common;
use crate::domain::window;

/// Its flags.
#[derive(Debug, Args)]
pub struct Flags {
    #[command(flatten)]
    #[allow(missing_docs, reason = "see Common")]
    pub common: Common,
    /// Queues, JSON lines (plain or gzip; - is stdin), Parquet, or folders of them (several, repeatable)
    #[arg(long, value_name = "PATH", required = true, num_args = 1.., value_hint = clap::ValueHint::AnyPath)]
    pub from: Vec<PathBuf>,
    /// Records whose subjects count
    #[arg(
        long,
        value_enum,
        value_name = "KIND,...",
        value_delimiter = ',',
        default_value = "like,repost,reply"
    )]
    pub kinds: Vec<SubjectKind>,
    /// First partition date, the date of synctimestamp
    #[arg(long, value_name = "YYYY-MM-DD", value_parser = date, default_value = "2024-09-29")]
    pub start_date: String,
    /// Last partition date, included
    #[arg(long, value_name = "YYYY-MM-DD", value_parser = date, default_value = "2024-12-01")]
    pub end_date: String,
    /// List of accounts to leave out, as for backfill (repeatable)
    #[arg(long, value_name = "FILE", value_hint = clap::ValueHint::FilePath)]
    pub exclude: Vec<PathBuf>,
    /// Write the list to this file instead of stdout
    #[arg(long, value_name = "FILE", value_hint = clap::ValueHint::FilePath, conflicts_with = "append_to")]
    pub out: Option<PathBuf>,
    /// Add what is not yet in this list to it; then SIGHUP makes a daemon that reads it take them up
    #[arg(long, value_name = "LIST", value_hint = clap::ValueHint::FilePath)]
    pub append_to: Option<PathBuf>,
    /// Also write the accounts as CSV with how many records of each kind are about them; - is stdout, without the list
    #[arg(long, value_name = "FILE", value_hint = clap::ValueHint::FilePath)]
    pub csv: Option<PathBuf>,
    /// Print the summary as one JSON object; the list is then only written with --out or --append-to
    #[arg(long)]
    pub json: bool,
}

/// A kind of record that has a subject.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
#[allow(missing_docs, reason = "the names are the labels")]
pub enum SubjectKind {
    Like,
    Repost,
    Reply,
}

impl SubjectKind {
    /// Every kind, in the order of the columns.
    pub const ALL: [Self; 3] = [Self::Like, Self::Repost, Self::Reply];

    /// Queue name and `record_type`.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Like => "like",
            Self::Repost => "repost",
            Self::Reply => "reply",
        }
    }

    /// Its column, from 0.
    #[must_use]
    pub const fn index(self) -> usize {
        self as usize
    }
}

/// Which records count.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// By [`SubjectKind::index`].
    pub kinds: [bool; 3],
    /// First partition date.
    pub start_date: String,
    /// Last partition date.
    pub end_date: String,
}

impl Flags {
    /// Which records count.
    #[must_use]
    pub fn wanted(&self) -> Wanted {
        let kinds = SubjectKind::ALL.map(|kind| self.kinds.contains(&kind));
        Wanted { kinds, start_date: self.start_date.clone(), end_date: self.end_date.clone() }
    }
}

/// Reads a date.
fn date(text: &str) -> Result<String, &'static str> {
    if is_date(text) { Ok(text.to_owned()) } else { Err("no date; expected YYYY-MM-DD") }
}

/// Whether `text` is a real day, written `YYYY-MM-DD`.
#[must_use]
pub fn is_date(text: &str) -> bool {
    text.len() == 10 && window::is_stamp(&format!("{text}-00:00:00"))
}
