//! Surrounding: what a pipeline takes from outside, so that tests can bring their own.

use std::time::Duration;

use crate::clock::Clock;
use crate::limits::{STAGE_SILENT_SECONDS, WALK_SILENT_SECONDS};
use crate::net::client::Surroundings;
use crate::net::territory::Territory;
use crate::seed::Chance;
use crate::stages::messages::Probe;

/// What a pipeline takes from its surroundings.
#[derive(Clone)]
pub struct Surrounding {
    /// Time.
    pub clock: Clock,
    /// Chance.
    pub chance: Chance,
    /// Names and certificate authorities; `None`: the system's.
    pub network: Option<Surroundings>,
    /// Which hosts are ours to ask: all, unless several processes share them.
    pub territory: Territory,
    /// Sees what passes: for tests.
    pub probe: Probe,
    /// A walk that is silent for this long hangs.
    pub walk_patience: Duration,
    /// A resolution or transfer that is silent for this long hangs; `None`: as long as its requests may take, and then some.
    pub worker_patience: Option<Duration>,
    /// A stage that does not answer for this long hangs.
    pub stage_patience: Duration,
}

impl Surrounding {
    /// The system's clock, chance and network.
    #[must_use]
    pub fn system() -> Self {
        let (clock, chance) = (Clock::system(), Chance::system());
        Self {
            clock,
            chance,
            network: None,
            territory: Territory::everywhere(),
            probe: Probe::default(),
            walk_patience: Duration::from_secs(WALK_SILENT_SECONDS),
            worker_patience: None,
            stage_patience: Duration::from_secs(STAGE_SILENT_SECONDS),
        }
    }
}
