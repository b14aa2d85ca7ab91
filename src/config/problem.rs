//! Problems: what is wrong with a configuration, each with its place, and why there are no settings.

use std::fmt;
use std::io;
use std::path::PathBuf;

use crate::config::written::{Place, short};

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The file, if there is one.
    pub file: Option<PathBuf>,
    /// Line or flag.
    pub place: Place,
    /// Which key, empty for syntax.
    pub key: String,
    /// What was expected, and what was found.
    pub text: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let file = self.file.as_ref().map_or("configuration".into(), |file| file.to_string_lossy());
        match &self.place {
            Place::Line(line) => write!(f, "{file}:{line}: ")?,
            Place::Origin(origin) => write!(f, "{}: ", short(origin))?,
            Place::Nowhere => write!(f, "{file}: ")?,
        }
        if !self.key.is_empty() {
            write!(f, "{}: ", short(&self.key))?;
        }
        f.write_str(&self.text)
    }
}

/// Why there are no settings.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("{path}: {source}")]
    Unreadable {
        /// Which file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The file is no text.
    #[error("{path}: {what}")]
    NotText {
        /// Which file.
        path: PathBuf,
        /// What it is instead, and where.
        what: String,
    },
    /// Everything that is wrong with what was written, one a line.
    #[error("{}", lines(.0))]
    Invalid(Vec<Problem>),
}

impl ConfigError {
    /// Whether the system did not permit to read it.
    #[must_use]
    pub fn is_permission(&self) -> bool {
        matches!(self, Self::Unreadable { source, .. } if source.kind() == io::ErrorKind::PermissionDenied)
    }
}

fn lines(problems: &[Problem]) -> String {
    problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
}
