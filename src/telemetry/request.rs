//! Labels of requests: whom one goes to, and what came of it.

/// Whom a request goes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Service {
    /// The PLC directory.
    Plc,
    /// The web host of a `did:web`.
    Web,
    /// A host of repositories.
    Pds,
}

impl Service {
    /// Every service.
    pub const ALL: [Self; 3] = [Self::Plc, Self::Web, Self::Pds];

    /// Its label value.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Plc => "plc",
            Self::Web => "web",
            Self::Pds => "pds",
        }
    }
}

/// What came of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// What was asked for, whole and usable.
    Ok,
    /// The guard did not let it go there.
    Refused,
    /// 429 in any form.
    RateLimited,
    /// A failure that may pass: of the network, the host, the directory, or the transfer.
    Transient,
    /// An answer that stays as it is: no such account, taken down, unusable document, invalid or too large repository.
    Terminal,
}

impl Outcome {
    /// Every outcome.
    pub const ALL: [Self; 5] =
        [Self::Ok, Self::Refused, Self::RateLimited, Self::Transient, Self::Terminal];

    /// Its label value.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Refused => "refused",
            Self::RateLimited => "rate_limited",
            Self::Transient => "transient",
            Self::Terminal => "terminal",
        }
    }
}
