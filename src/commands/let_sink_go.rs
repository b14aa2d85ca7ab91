//! `skyfill let-sink-go`: a sink that is no longer configured is waited for no more.
//!
//! The ledger remembers every sink that ever followed, and no run begins without one of them, because rows would pass it by.
//! This is the way out. It takes the lock: a running daemon has all of its sinks.

use std::io::Write;
use std::path::Path;

use clap::Args;

use crate::cli::Common;
use crate::clock::Clock;
use crate::commands::error::CommandError;
use crate::commands::retry::ledger_in;
use crate::config::settings::Settings;
use crate::domain::ledger::LedgerPolicy;
use crate::seed::Chance;
use crate::store::data_dir::DataDir;
use crate::store::error::StoreError;
use crate::store::follow::ledger_label;
use crate::store::ledger_rows::Rows;

/// `skyfill let-sink-go`.
#[derive(Debug, Args)]
pub struct Flags {
    #[command(flatten)]
    #[allow(missing_docs, reason = "see cli::Common")]
    pub common: Common,
    /// The sink: NAME of its [sink.NAME]. What it holds stays where it is; added again, it begins anew at another place
    #[arg(value_name = "NAME")]
    pub name: String,
}

/// Lets the sink `name` go and says so.
///
/// # Errors
/// [`CommandError`]: it is still configured or was never there, no ledger, another process that holds it, or the disk.
pub fn run(settings: &Settings, name: &str, out: &mut dyn Write) -> Result<(), CommandError> {
    if settings.sinks.iter().any(|sink| sink.name == name) {
        let text = format!("[sink.{name}] is still configured: take it out first");
        return Err(CommandError::Usage(text));
    }
    let path = ledger_in(&settings.data_dir)?;
    let _dir = DataDir::open(&settings.data_dir)?;
    let (mut rows, _) =
        Rows::open(&path, LedgerPolicy::default(), Clock::system(), Chance::system())?;
    let label = ledger_label(name);
    if !rows.transaction(|rows| rows.let_sink_go(&label))? {
        let text = format!("no sink {name} follows {}", settings.data_dir.display());
        return Err(CommandError::Usage(text));
    }
    let told = writeln!(
        out,
        "the sink {name} is let go: the next run does not wait for it; added again, it begins anew at another place"
    );
    told.map_err(|error| StoreError::io(Path::new("stdout"), error).into())
}
