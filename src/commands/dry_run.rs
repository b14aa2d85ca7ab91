//! `skyfill backfill --dry-run`: resolves the given DIDs, counts them by host, and writes nothing.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;

use indicatif::HumanCount;
use serde_json::json;

use crate::commands::error::CommandError;
use crate::commands::resolving::{self, Told};
use crate::config::settings::Settings;
use crate::config::targets::ListSource;
use crate::domain::verdict::Reason;
use crate::exit_code::ExitCode;
use crate::pipeline::Surrounding;
use crate::store::error::StoreError;

/// What was found.
#[derive(Default)]
struct Found {
    hosts: BTreeMap<String, u64>,
    failures: BTreeMap<String, u64>,
}

/// Resolves every DID of `sources` and writes the counts to `out`.
///
/// # Errors
/// [`CommandError`].
pub async fn run(
    settings: &Settings,
    sources: &[ListSource],
    surrounding: &Surrounding,
    as_json: bool,
    out: &mut dyn Write,
) -> Result<ExitCode, CommandError> {
    let mut found = Found::default();
    let take = |told| {
        found.take(told);
        Ok(())
    };
    resolving::each(settings, sources, surrounding, None, take).await?;
    found.write(as_json, out)?;
    Ok(if found.failures.is_empty() { ExitCode::Done } else { ExitCode::SomeParked })
}

impl Found {
    fn take(&mut self, told: Told) {
        match told {
            Told::Found(_, identity, _) => *self.hosts.entry(identity.host).or_default() += 1,
            Told::Failed(_, reason) => self.failed(reason.as_str()),
            Told::Malformed => self.failed(Reason::DidInvalid.as_str()),
        }
    }

    fn failed(&mut self, reason: &str) {
        *self.failures.entry(reason.to_owned()).or_default() += 1;
    }

    fn write(&self, as_json: bool, out: &mut dyn Write) -> Result<(), StoreError> {
        let mut text = String::new();
        if as_json {
            let failures = &self.failures;
            text = format!(
                "{}\n",
                json!({"dry_run": true, "hosts": self.hosts, "failures": failures})
            );
        } else {
            let mut hosts: Vec<(&String, &u64)> = self.hosts.iter().collect();
            hosts.sort_by(|a, b| b.1.cmp(a.1).then(a.0.cmp(b.0)));
            for (name, count) in hosts.into_iter().chain(&self.failures) {
                text += &format!("{:>10}  {name}\n", HumanCount(*count).to_string());
            }
            text += "dry run: nothing was fetched, nothing was written\n";
        }
        let written = out.write_all(text.as_bytes()).and_then(|()| out.flush());
        written.map_err(|error| StoreError::io(Path::new("stdout"), error))
    }
}
