//! Flags of every command that asks the network.

use clap::Args;

use crate::cli::Common;
use crate::config::file::Assignment;

/// Where the directory is, and what may be reached although it is private.
#[derive(Clone, Debug, Args)]
#[allow(rustdoc::broken_intra_doc_links, reason = "the help names keys of the configuration")]
pub struct NetworkFlags {
    /// PLC directory [identity.plc_url]
    #[arg(long, value_name = "URL", value_hint = clap::ValueHint::Url)]
    pub plc_url: Option<String>,
    /// Also reach these private addresses, on any port and over plain http (repeatable) [network.allow]
    #[arg(long, value_name = "CIDR")]
    pub allow_network: Vec<String>,
}

impl NetworkFlags {
    /// The settings of a command: `--set` in the order given, then these flags.
    #[must_use]
    pub fn assignments(&self, common: &Common) -> Vec<Assignment> {
        let mut assignments = common.assignments();
        let url = self.plc_url.as_ref();
        assignments.extend(url.map(|url| Assignment::flag("--plc-url", "identity.plc_url", url)));
        let allow = |network| Assignment::flag("--allow-network", "network.allow+", network);
        assignments.extend(self.allow_network.iter().map(allow));
        assignments
    }
}
