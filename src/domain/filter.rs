//! What a run exports: record types, study window, and what happens outside it (TRANSFORM, "Time").

/// The six kinds of record that the study knows; the label is the queue's name and the row's `record_type`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[allow(missing_docs, reason = "the names are the labels")]
pub enum Kind {
    Post,
    Reply,
    Repost,
    Like,
    Follow,
    Block,
}

impl Kind {
    /// Every kind, in the order of the configuration's default.
    pub const ALL: [Self; 6] =
        [Self::Post, Self::Reply, Self::Repost, Self::Like, Self::Follow, Self::Block];

    /// Queue name and `record_type`.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Post => "post",
            Self::Reply => "reply",
            Self::Repost => "repost",
            Self::Like => "like",
            Self::Follow => "follow",
            Self::Block => "block",
        }
    }

    /// The `$type` of its records.
    #[must_use]
    pub const fn nsid(self) -> &'static str {
        match self {
            Self::Post | Self::Reply => "app.bsky.feed.post",
            Self::Repost => "app.bsky.feed.repost",
            Self::Like => "app.bsky.feed.like",
            Self::Follow => "app.bsky.graph.follow",
            Self::Block => "app.bsky.graph.block",
        }
    }
}

/// One entry of `records.types`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum TypeEntry {
    /// One of the six kinds.
    Kind(Kind),
    /// One NSID, exactly.
    Nsid(String),
    /// Every NSID below this one, kept with its final dot and without the `*` (`app.example.`).
    Prefix(String),
}

impl TypeEntry {
    /// Queue name: the kind's label, the NSID, or the prefix with `_` for `*`.
    #[must_use]
    pub fn label(&self) -> String {
        match self {
            Self::Kind(kind) => kind.label().to_owned(),
            Self::Nsid(nsid) => nsid.clone(),
            Self::Prefix(prefix) => format!("{prefix}_"),
        }
    }
}

/// What becomes of a record whose time lies outside the window.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Outside {
    /// It gets a bucket timestamp, the 15th or the 1st.
    #[default]
    Bucket,
    /// It is skipped, counted as `outside_window`.
    Drop,
    /// It keeps its time.
    Keep,
}

/// What a written offset means.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Offsets {
    /// The time is converted to UTC first.
    #[default]
    Utc,
    /// The wall clock counts, as in the Python service.
    Ignore,
}

/// The study window, both ends included, as texts `YYYY-MM-DD-HH:MM:SS`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Window {
    /// First second inside.
    pub start: String,
    /// Last second inside.
    pub end: String,
    /// What becomes of records outside.
    pub outside: Outside,
    /// What offsets mean.
    pub offsets: Offsets,
}

/// Everything that decides which rows a repository becomes.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Filter {
    /// Exported types, in configured order, without duplicates.
    pub types: Vec<TypeEntry>,
    /// The study window.
    pub window: Window,
}
