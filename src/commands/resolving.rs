//! Resolves the DIDs of lists, one after the other at the directory's pace, without a ledger.
//!
//! takes    lists
//! gives    each DID once, with its identity (from the ledger, if one is given and knows it) or the reason why there is none; repetitions beyond a million DIDs come again
//! retries  a directory that does not answer, three times
//! gives up on lists that cannot be read

use std::collections::HashSet;
use std::time::Duration;

use futures::StreamExt;
use futures::stream::FuturesUnordered;

use crate::clock::Clock;
use crate::commands::error::CommandError;
use crate::config::settings::Settings;
use crate::config::targets::{self, ListSource, Target};
use crate::domain::did::Did;
use crate::domain::identity::Identity;
use crate::domain::verdict::{Cause, Failure, HostSignal, Reason};
use crate::net::client::Client;
use crate::net::pace::{HostPace, Turn};
use crate::pipeline::parts::{directory, worker_patience};
use crate::pipeline::{Surrounding, plan_limits};
use crate::stages::messages::Probe;
use crate::stages::resolver::{Tools, resolve};
use crate::store::ledger_known::KnownIdentities;

/// Resolutions at once.
const AT_ONCE: usize = 32;

/// Tries of one DID whose directory fails; the real run is more patient.
const TRIES: u32 = 3;

/// DIDs remembered to pass over repetitions.
const REMEMBERED_MAX: usize = 1_000_000;

/// What became of one line of the lists.
#[derive(Debug)]
pub enum Told {
    /// Its host is known since then, milliseconds since 1970.
    Found(Did, Identity, i64),
    /// It is not, for this reason.
    Failed(Did, Reason),
    /// It is no DID.
    Malformed,
}

/// Tells `take` of every DID of `sources`; its error ends it. The directory is not asked for what is `known`.
///
/// # Errors
/// [`CommandError`], also if the lists hold no DID.
pub async fn each(
    settings: &Settings,
    sources: &[ListSource],
    surrounding: &Surrounding,
    known: Option<&KnownIdentities>,
    mut take: impl FnMut(Told) -> Result<(), CommandError>,
) -> Result<(), CommandError> {
    let clock = &surrounding.clock;
    let tools = tools(settings, surrounding)?;
    let mut pace = HostPace::new(plan_limits(settings).directory, clock.now());
    let (mut under_way, mut seen) = (FuturesUnordered::new(), HashSet::new());
    let mut is_empty = true;
    for target in targets::open(sources)? {
        is_empty = false;
        let did = match target? {
            Target::Did(did) => did,
            Target::Malformed { detail, .. } => {
                tracing::warn!(%detail, "malformed did");
                take(Told::Malformed)?;
                continue;
            }
        };
        if seen.contains(&did) {
            continue;
        }
        if seen.len() < REMEMBERED_MAX {
            seen.insert(did.clone());
        }
        let now_ms = clock.wall_ms();
        if let Some((identity, at_ms)) =
            known.map(|it| it.of(did.as_str(), now_ms)).transpose()?.flatten()
        {
            take(Told::Found(did, identity, at_ms))?;
            continue;
        }
        while under_way.len() >= AT_ONCE {
            if let Some(done) = under_way.next().await {
                take(noted(done, &mut pace, surrounding))?;
            }
        }
        turn(&mut pace, clock).await;
        under_way.push(resolve_patiently(&tools, did));
    }
    while let Some(done) = under_way.next().await {
        take(noted(done, &mut pace, surrounding))?;
    }
    if is_empty {
        return Err(CommandError::Usage("the list holds no DID".to_owned()));
    }
    Ok(())
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

type Resolved = (Did, Result<Identity, Failure>, HostSignal);

async fn resolve_patiently(tools: &Tools, did: Did) -> Resolved {
    let mut tries = 1;
    loop {
        let (resolved, signal) = resolve(tools, &did).await;
        let is_worth_a_retry =
            matches!(&resolved, Err(failure) if failure.cause == Cause::Directory);
        if !is_worth_a_retry || tries >= TRIES {
            return (did, resolved, signal);
        }
        tokio::time::sleep(Duration::from_secs(1 << tries)).await;
        tries += 1;
    }
}

fn noted((did, resolved, signal): Resolved, pace: &mut HostPace, around: &Surrounding) -> Told {
    pace.note(&signal, around.clock.now(), &around.chance);
    pace.give_back();
    match resolved {
        Ok(identity) => Told::Found(did, identity, around.clock.wall_ms()),
        Err(Failure { cause: Cause::Terminal(reason), .. }) => Told::Failed(did, reason),
        Err(_) => Told::Failed(did, Reason::DirectoryUnavailable),
    }
}
