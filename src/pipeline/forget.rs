//! Forgetting accounts: what becomes of the ledger, the queues and the journal, with a pipeline that runs over them or without.
//!
//! ```text
//!  ledger: forgotten, with the intent ──> the applier passes what it had in hand ──> queues: items deleted, one file after the
//!  other ──> journal: segments and spares wiped ──> ledger: the intent is done
//! ```
//! From the first commit on the account is never leased, and the applier passes over its items in every segment: what is in
//! flight ends there. A process that dies in between leaves the intent, and the next start deletes what is left before anything
//! else is applied. A file that somebody holds for too long leaves the intent too, and is named.

use std::collections::{BTreeMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crate::clock::Clock;
use crate::config::settings::Settings;
use crate::crash_point;
use crate::domain::account::AccountId;
use crate::net::client::Client;
use crate::net::error::NetError;
use crate::pipeline::data::Data;
use crate::pipeline::disk::Disk;
use crate::pipeline::parts::rechecker;
use crate::pipeline::recheck::Rechecker;
use crate::pipeline::{Surrounding, plan_limits, turns};
use crate::seed::Chance;
use crate::sink::leaves;
use crate::sink::sqlite_forget::{Held, QueueHoldings};
use crate::sink::sqlite_items::labels;
use crate::stages::scheduler::terms::PlanLimits;
use crate::store::apply::Applier;
use crate::store::error::StoreError;
use crate::store::health::Health;
use crate::store::journal::Journal;
use crate::store::ledger::{Ledger, LedgerGone};
use crate::store::ledger_forget::Begun;
use crate::store::ledger_rows::Rows;
use crate::transform::pseudonym::Pseudonyms;

/// How long the applier may take with what it has in hand, and then with giving up the segments that are to be wiped. It is
/// done in a second, unless a reader holds a queue's write lock.
const APPLIER_SECONDS: u64 = 15;

/// An account that is forgotten.
#[derive(Clone, Debug, PartialEq)]
pub struct Forgotten {
    /// What the ledger knew of it.
    pub begun: Begun,
    /// What each queue held of it and holds no more; queues that held nothing are left out.
    pub queues: BTreeMap<String, Held>,
}

/// What became of an order.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Forgot {
    /// The accounts, in the order that they were given.
    pub accounts: Vec<Forgotten>,
    /// What may still be somewhere, as sentences; also of other accounts that shared a place with these.
    pub left: Vec<String>,
    /// Not everything is done: the next such order, or the next start, goes on.
    pub is_unfinished: bool,
}

/// Why accounts were not forgotten.
#[derive(Debug, thiserror::Error)]
pub enum ForgetError {
    /// The disk.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The ledger's writer.
    #[error(transparent)]
    Gone(#[from] LedgerGone),
    /// A part of it crashed.
    #[error("a part of forgetting crashed: {0}")]
    Crashed(String),
}

/// What forgetting needs; cheap to clone.
#[derive(Clone)]
pub struct Forgetter {
    ledger: Ledger,
    journal: Arc<Mutex<Journal>>,
    applier: Applier,
    queues: PathBuf,
    names: Option<Pseudonyms>,
}

impl Forgetter {
    /// Over an open data directory.
    #[must_use]
    pub fn new(disk: &Disk) -> Self {
        let (ledger, journal) = (disk.ledger.clone(), Arc::clone(&disk.journal));
        let (queues, names) = (disk.dir.join("queue"), disk.names.clone());
        Self { ledger, journal, applier: disk.applier.clone(), queues, names }
    }

    /// Forgets the accounts of `dids`, known or not, for good.
    ///
    /// # Errors
    /// [`ForgetError`]; what was begun is gone on with by the next start.
    pub async fn forget(&self, dids: Vec<String>) -> Result<Forgot, ForgetError> {
        let names = self.names.clone();
        let begin = move |rows: &mut Rows| {
            let begin = |did: &String| {
                let pseudonym = names.as_ref().map(|names| names.of(did));
                rows.begin_forgetting(did, pseudonym.as_deref())
            };
            dids.iter().map(begin).collect::<Result<Vec<_>, _>>()
        };
        let begun = self.ledger.run(begin).await?;
        // They are forgotten and the queues do not know: the next start deletes their items.
        crash_point!(ForgetIntendedBeforeQueues);
        let mut forgot = Forgot::default();
        let newest = self.lock().newest();
        self.applier.wake();
        let patience = Duration::from_secs(APPLIER_SECONDS);
        if tokio::time::timeout(patience, self.applier.applied(newest)).await.is_err() {
            forgot.unfinished(
                "what is in the journal does not get into the queues, a reader may hold one",
            );
            forgot.accounts = begun
                .into_iter()
                .map(|begun| Forgotten { begun, queues: BTreeMap::new() })
                .collect();
            return Ok(forgot);
        }
        let own = self.clone();
        let work = move || own.take_back(begun, forgot);
        let taken = tokio::task::spawn_blocking(work).await;
        let (mut forgot, wiped) =
            taken.map_err(|error| ForgetError::Crashed(error.to_string()))??;
        if !forgot.is_unfinished {
            // The queues hold nothing more; the next start would look for it once more.
            crash_point!(ForgetQueuesDoneBeforeLedger);
            let ids: Vec<AccountId> = forgot.accounts.iter().map(|it| it.begun.id).collect();
            self.ledger.run(move |rows| rows.finish_forgetting(&ids)).await?;
        }
        if let Some(last) = wiped.filter(|last| *last > 0) {
            self.applier.wake();
            let gone = self.applier.forgotten_after(last - 1);
            if tokio::time::timeout(patience, gone).await.is_err() {
                let why =
                    "journal segments hold it until every queue has taken them, and are then wiped";
                forgot.left.push(why.to_owned());
            }
        }
        Ok(forgot)
    }

    /// Deletes from the queues and marks the journal's segments; gives the last one that is to be wiped.
    fn take_back(
        &self,
        begun: Vec<Begun>,
        mut forgot: Forgot,
    ) -> Result<(Forgot, Option<u64>), StoreError> {
        let mut queues: Vec<BTreeMap<String, Held>> = vec![BTreeMap::new(); begun.len()];
        for label in labels(&self.queues)? {
            let holdings = QueueHoldings::open(&self.queues, &label)?;
            let (mut is_free, mut has_held) = (true, false);
            for (account, held) in begun.iter().zip(&mut queues) {
                match holdings.forget(&account.names) {
                    Ok(found) if found.is_nothing() => {}
                    Ok(found) => {
                        has_held = true;
                        held.insert(label.clone(), found);
                    }
                    Err(error) => {
                        is_free = false;
                        forgot.unfinished(&error.to_string());
                        break;
                    }
                }
            }
            if is_free && has_held {
                clean(&holdings, &mut forgot);
            }
            // This queue holds nothing of them, others perhaps do: the ledger's intent is still there.
            crash_point!(ForgetQueueDoneBeforeOthers);
        }
        let names = begun.iter().map(|account| account.did.as_str());
        forget_leaves(&self.queues, names, &mut forgot);
        let dids: HashSet<String> = begun.iter().map(|account| account.did.clone()).collect();
        let wiped = self.lock().wipe(&dids)?;
        let pairs = begun.into_iter().zip(queues);
        forgot.accounts = pairs.map(|(begun, queues)| Forgotten { begun, queues }).collect();
        Ok((forgot, wiped))
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Journal> {
        self.journal.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Forgot {
    fn unfinished(&mut self, why: &str) {
        self.is_unfinished = true;
        self.left
            .push(format!("{why}: it is gone on with at the next start, or by the same command"));
    }
}

/// Removes the names of their records, which lie beside the queues for the next refresh.
fn forget_leaves<'n>(queues: &Path, dids: impl Iterator<Item = &'n str>, forgot: &mut Forgot) {
    let folder = queues.parent().unwrap_or(queues);
    for did in dids {
        if let Err(error) = leaves::forget(folder, did) {
            forgot.unfinished(&error.to_string());
        }
    }
}

fn clean(holdings: &QueueHoldings, forgot: &mut Forgot) {
    match holdings.clean() {
        Ok(left) => forgot.left.extend(left),
        Err(error) => forgot.left.push(error.to_string()),
    }
}

/// Goes on with what a process that died has begun, before anything is applied.
///
/// # Errors
/// [`StoreError`] of the ledger. A queue that cannot be written leaves the intent for the next start.
pub fn finish(rows: &mut Rows, queues: &Path) -> Result<(), StoreError> {
    let unfinished = rows.unfinished_forgetting()?;
    if unfinished.is_empty() {
        return Ok(());
    }
    let mut forgot = Forgot::default();
    for label in labels(queues)? {
        let holdings = QueueHoldings::open(queues, &label)?;
        for (_, name) in &unfinished {
            if let Err(error) = holdings.forget(std::slice::from_ref(name)) {
                forgot.unfinished(&error.to_string());
            }
        }
        clean(&holdings, &mut forgot);
    }
    forget_leaves(queues, unfinished.iter().map(|(_, name)| name.as_str()), &mut forgot);
    forgot.left.iter().for_each(|left| tracing::warn!("forgetting: {left}"));
    if forgot.is_unfinished {
        return Ok(());
    }
    let mut ids: Vec<AccountId> = unfinished.into_iter().map(|(id, _)| id).collect();
    ids.dedup();
    tracing::info!(accounts = ids.len(), "forgetting was gone on with");
    rows.transaction(|rows| rows.finish_forgetting(&ids))?;
    rows.sync_if_wanted()
}

/// An open data directory without a pipeline, for a command that forgets.
pub struct Alone {
    disk: Disk,
    health: Health,
    /// Forgets in it.
    pub forgetter: Forgetter,
}

impl Alone {
    /// Opens the data directory of `settings` and brings what is sealed into its queues.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn open(settings: &Settings, clock: &Clock, chance: &Chance) -> Result<Self, StoreError> {
        let (data, health) = (Data::open(settings, clock, chance)?, Health::default());
        let disk = Disk::start(data, settings, clock, &health)?;
        let forgetter = Forgetter::new(&disk);
        Ok(Self { disk, health, forgetter })
    }

    /// Asks hosts again how accounts stand.
    ///
    /// # Errors
    /// [`NetError`] if there can be no client.
    pub fn rechecker(
        &self,
        settings: &Settings,
        surrounding: &Surrounding,
    ) -> Result<Rechecker, NetError> {
        let (clock, chance) = (surrounding.clock.clone(), surrounding.chance.clone());
        let client = match surrounding.network.clone() {
            Some(network) => Client::within(settings, clock.clone(), network)?,
            None => Client::new(settings, clock.clone())?,
        };
        let PlanLimits { host, directory, .. } = plan_limits(settings);
        let turns = turns::alone(host, directory, clock, chance);
        Ok(rechecker(&self.disk, settings, surrounding, client, turns))
    }

    /// Settles and closes it.
    ///
    /// # Errors
    /// What ended the data directory, if something did.
    pub async fn close(self) -> Result<(), Arc<StoreError>> {
        drop(self.forgetter);
        self.health.end_waiting();
        let _run = self.disk.stop(&self.health).await;
        self.health.failure().map_or(Ok(()), Err)
    }
}
