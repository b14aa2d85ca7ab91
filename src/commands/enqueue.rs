//! `skyfill enqueue`: resolves accounts and puts them on `<topics>.dids`, each under the host that serves it.
//!
//! Accounts that do not resolve are put there under the directory's host, with the reason, and named. Nothing is written on
//! this machine: where there is a ledger, its identities are read, so that the directory is not asked for them, and nothing else
//! of it. Whoever reads the topic decides what is done already. Run again, it puts them there again.

use std::collections::HashSet;
use std::io::Write;
use std::path::{Path, PathBuf};

use clap::Args;
use serde_json::{Value, json};

use crate::cli::Common;
use crate::commands::error::CommandError;
use crate::commands::network_flags::NetworkFlags;
use crate::commands::resolving::{self, Told};
use crate::config::broker::{Broker, PARTITIONS, REPLICAS};
use crate::config::file::Assignment;
use crate::config::settings::Settings;
use crate::config::targets::ListSource;
use crate::exit_code::ExitCode;
use crate::pipeline::Surrounding;
use crate::sink::kafka::client::Clients;
use crate::sink::kafka::dids::{Sender, Wanted, topic};
use crate::sink::kafka::topics;
use crate::store::error::StoreError;
use crate::store::ledger_known::KnownIdentities;

/// Accounts that are named as unresolved; beyond that they are only counted.
const NAMED_MAX: usize = 10_000;

/// `skyfill enqueue`.
#[derive(Debug, Args)]
#[allow(rustdoc::broken_intra_doc_links, reason = "the help names keys of the configuration")]
pub struct Flags {
    #[command(flatten)]
    #[allow(missing_docs, reason = "see Common")]
    pub common: Common,
    /// List of accounts, as for backfill; without any, [source] (repeatable)
    #[arg(long, value_name = "FILE", value_hint = clap::ValueHint::FilePath)]
    pub dids_file: Vec<PathBuf>,
    /// The first brokers to ask, such as kafka-1:9092,kafka-2:9092
    #[arg(long, value_name = "HOST:PORT,...", value_parser = places)]
    pub brokers: String,
    /// What stands before ".dids" in the topic's name
    #[arg(long, value_name = "PREFIX", default_value = "skyfill", value_parser = prefix)]
    pub topics: String,
    /// Partitions that the topic has at least: more than there will ever be workers
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = within(PARTITIONS))]
    pub partitions: i32,
    /// Copies of the topic, if it is made here; otherwise the cluster's own default
    #[arg(long, value_name = "N", value_parser = within(REPLICAS))]
    pub replicas: Option<i32>,
    /// File with username = ... and password = ...; otherwise `KAFKA_USERNAME` and `KAFKA_PASSWORD`
    #[arg(long, value_name = "FILE", value_hint = clap::ValueHint::FilePath)]
    pub credentials: Option<PathBuf>,
    #[command(flatten)]
    #[allow(missing_docs, reason = "see NetworkFlags")]
    pub network: NetworkFlags,
    /// Print the summary as one JSON object
    #[arg(long)]
    pub json: bool,
}

impl Flags {
    /// Its settings: `--set` in the order given, then named flags.
    #[must_use]
    pub fn assignments(&self) -> Vec<Assignment> {
        self.network.assignments(&self.common)
    }

    fn sources(&self, settings: &Settings) -> Vec<ListSource> {
        match self.dids_file.is_empty() {
            true => ListSource::configured(&settings.source),
            false => self.dids_file.iter().map(|path| ListSource::file(path)).collect(),
        }
    }

    fn clients(&self) -> Clients {
        let broker = Broker {
            prefix: self.topics.clone(),
            partitions: self.partitions,
            replicas: self.replicas,
            credentials: self.credentials.clone(),
            ..Broker::new(&self.brokers)
        };
        Clients { broker, zstd: true }
    }
}

fn places(text: &str) -> Result<String, String> {
    crate::config::broker::checked_places(text).ok_or_else(|| "each is host:port".to_owned())
}

fn prefix(text: &str) -> Result<String, String> {
    let is_good = crate::config::broker::is_prefix(text);
    is_good
        .then(|| text.to_owned())
        .ok_or_else(|| "letters, digits, dots, dashes and underscores".to_owned())
}

fn within(range: std::ops::RangeInclusive<u64>) -> clap::builder::RangedI64ValueParser<i32> {
    let bound = |bound: u64| i64::try_from(bound).unwrap_or(i64::MAX);
    clap::value_parser!(i32).range(bound(*range.start())..=bound(*range.end()))
}

/// What was put on the topic.
#[derive(Default)]
struct Summary {
    resolved: u64,
    hosts: HashSet<String>,
    unresolved: u64,
    named: Vec<(String, String)>,
    malformed: u64,
}

/// Puts the accounts of the lists on the topic, and says what it has put there.
///
/// # Errors
/// [`CommandError`]: lists, network, or brokers; what was put there before stays there.
pub async fn run(
    settings: &Settings,
    flags: &Flags,
    surrounding: &Surrounding,
    out: &mut dyn Write,
) -> Result<ExitCode, CommandError> {
    let sources = flags.sources(settings);
    if sources.is_empty() {
        let text = "no accounts given: use --dids-file, or set [source]";
        return Err(CommandError::Usage(text.to_owned()));
    }
    let (clients, name) = (flags.clients(), topic(&flags.topics));
    let (looking, topics) = (clients.clone(), vec![name.clone()]);
    // Both wait for the cluster, on threads that may.
    blocking(move || topics::ensure(&looking, &topics, true)).await?;
    let directory = directory_host(settings);
    let (mut sender, mut summary) = (Sender::new(clients)?, Summary::default());
    let take = |told| {
        let now_ms = surrounding.clock.wall_ms();
        summary.take(told, &mut sender, &directory, now_ms).map_err(CommandError::from)
    };
    let ledger = settings.data_dir.join("state.db");
    let ttl = settings.identity.cache_ttl;
    let known = ledger.exists().then(|| KnownIdentities::open(&ledger, ttl)).transpose()?;
    resolving::each(settings, &sources, surrounding, known.as_ref(), take).await?;
    let arrived = blocking(move || sender.finish()).await?;
    summary.write(&name, arrived, flags.json, out)?;
    Ok(if summary.is_whole() { ExitCode::Done } else { ExitCode::SomeParked })
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, StoreError> + Send + 'static,
) -> Result<T, CommandError> {
    let done = tokio::task::spawn_blocking(work).await;
    Ok(done.map_err(|error| CommandError::Internal(error.to_string()))??)
}

/// Key of accounts whose host is not known.
fn directory_host(settings: &Settings) -> String {
    settings.identity.plc_url.host_str().unwrap_or("unresolved").to_owned()
}

impl Summary {
    fn take(
        &mut self,
        told: Told,
        sender: &mut Sender,
        directory: &str,
        resolved_at_ms: i64,
    ) -> Result<(), StoreError> {
        match told {
            Told::Found(did, identity, resolved_at_ms) => {
                self.resolved += 1;
                if !self.hosts.contains(&identity.host) {
                    self.hosts.insert(identity.host.clone());
                }
                let (did, host) = (did.as_str().to_owned(), identity.host.clone());
                let identity = Some(identity);
                sender.send(&host, &Wanted { did, identity, reason: None, resolved_at_ms })
            }
            Told::Failed(did, reason) => {
                self.unresolved += 1;
                let (did, reason) = (did.as_str().to_owned(), reason.as_str().to_owned());
                if self.named.len() < NAMED_MAX {
                    self.named.push((did.clone(), reason.clone()));
                }
                let reason = Some(reason);
                sender.send(directory, &Wanted { did, identity: None, reason, resolved_at_ms })
            }
            Told::Malformed => {
                self.malformed += 1;
                Ok(())
            }
        }
    }

    const fn is_whole(&self) -> bool {
        self.unresolved + self.malformed == 0
    }

    fn write(
        &self,
        topic: &str,
        arrived: u64,
        as_json: bool,
        out: &mut dyn Write,
    ) -> Result<(), StoreError> {
        let hosts = self.hosts.len();
        let text = if as_json {
            let named = |(did, reason): &(String, String)| json!({ "did": did, "reason": reason });
            let unresolved: Vec<Value> = self.named.iter().map(named).collect();
            let summary = json!({
                "topic": topic, "enqueued": arrived, "resolved": self.resolved, "hosts": hosts,
                "unresolved": unresolved, "unresolved_total": self.unresolved, "malformed": self.malformed,
            });
            format!("{summary}\n")
        } else {
            let mut text = format!(
                "{arrived} accounts are on {topic}: {} by their {hosts} hosts, {} unresolved; {} lines were no DID\n",
                self.resolved, self.unresolved, self.malformed
            );
            for (did, reason) in &self.named {
                text += &format!("{did}  {reason}\n");
            }
            text
        };
        let written = out.write_all(text.as_bytes()).and_then(|()| out.flush());
        written.map_err(|error| StoreError::io(Path::new("stdout"), error))
    }
}
