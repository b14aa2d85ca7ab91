//! `skyfill backfill --dry-run`: resolves the given DIDs, counts them by host, and writes nothing.

use std::collections::{BTreeMap, HashSet};
use std::io::Write;
use std::path::Path;
use std::time::Duration;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use indicatif::HumanCount;
use serde_json::json;

use crate::clock::Clock;
use crate::commands::error::CommandError;
use crate::config::settings::Settings;
use crate::config::targets::{self, ListSource, Target};
use crate::domain::did::Did;
use crate::domain::identity::Identity;
use crate::domain::verdict::{Cause, Failure, HostSignal, Reason};
use crate::exit_code::ExitCode;
use crate::net::client::Client;
use crate::net::pace::{HostPace, Turn};
use crate::pipeline::parts::{directory, worker_patience};
use crate::pipeline::{Surrounding, plan_limits};
use crate::stages::messages::Probe;
use crate::stages::resolver::{Tools, resolve};
use crate::store::error::StoreError;

/// Resolutions at once.
const AT_ONCE: usize = 32;

/// Tries of one DID whose directory fails; the real run is more patient.
const TRIES: u32 = 3;

/// DIDs remembered to pass over repetitions; a longer list counts repetitions beyond that.
const REMEMBERED_MAX: usize = 1_000_000;

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
    let (clock, mut found) = (&surrounding.clock, Found::default());
    let tools = tools(settings, surrounding)?;
    let mut pace = HostPace::new(plan_limits(settings).directory, clock.now());
    let (mut under_way, mut seen) = (FuturesUnordered::new(), HashSet::new());
    for target in targets::open(sources)? {
        let did = match target? {
            Target::Did(did) => did,
            Target::Malformed { detail, .. } => {
                tracing::warn!(%detail, "malformed did");
                found.failed(Reason::DidInvalid.as_str());
                continue;
            }
        };
        if seen.contains(&did) {
            continue;
        }
        if seen.len() < REMEMBERED_MAX {
            seen.insert(did.clone());
        }
        while under_way.len() >= AT_ONCE {
            if let Some(done) = under_way.next().await {
                found.take(done, &mut pace, surrounding);
            }
        }
        turn(&mut pace, clock).await;
        under_way.push(resolve_patiently(&tools, did));
    }
    while let Some(done) = under_way.next().await {
        found.take(done, &mut pace, surrounding);
    }
    if found.hosts.is_empty() && found.failures.is_empty() {
        return Err(CommandError::Usage("the list holds no DID".to_owned()));
    }
    found.write(as_json, out)?;
    Ok(if found.failures.is_empty() { ExitCode::Done } else { ExitCode::SomeParked })
}

fn tools(settings: &Settings, surrounding: &Surrounding) -> Result<Tools, CommandError> {
    let clock = surrounding.clock.clone();
    let client = match surrounding.network.clone() {
        Some(network) => Client::within(settings, clock.clone(), network),
        None => Client::new(settings, clock.clone()),
    };
    let client = client.map_err(crate::pipeline::StartError::Net)?;
    let directory = directory(settings, surrounding);
    let patience = worker_patience(settings, surrounding);
    Ok(Tools { client, directory, clock, probe: Probe::default(), patience })
}

/// Waits for the directory's turn.
async fn turn(pace: &mut HostPace, clock: &Clock) {
    loop {
        match pace.take(clock.now()) {
            Turn::Go { .. } => return,
            Turn::At(at) => tokio::time::sleep_until(at).await,
            // Fewer are under way than the pace allows, so this does not last.
            Turn::Busy => tokio::time::sleep(Duration::from_millis(10)).await,
        }
    }
}

type Resolved = (Result<Identity, Failure>, HostSignal);

async fn resolve_patiently(tools: &Tools, did: Did) -> Resolved {
    let mut tries = 1;
    loop {
        let (resolved, signal) = resolve(tools, &did).await;
        let is_worth_a_retry =
            matches!(&resolved, Err(failure) if failure.cause == Cause::Directory);
        if !is_worth_a_retry || tries >= TRIES {
            return (resolved, signal);
        }
        tokio::time::sleep(Duration::from_secs(1 << tries)).await;
        tries += 1;
    }
}

impl Found {
    fn take(&mut self, (resolved, signal): Resolved, pace: &mut HostPace, around: &Surrounding) {
        pace.note(&signal, around.clock.now(), &around.chance);
        pace.give_back();
        match resolved {
            Ok(identity) => *self.hosts.entry(identity.host).or_default() += 1,
            Err(failure) => self.failed(match failure.cause {
                Cause::Terminal(reason) => reason.as_str(),
                _ => Reason::DirectoryUnavailable.as_str(),
            }),
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
