//! Reload: configuration and lists of a running daemon, replaced whole or not at all.
//!
//! ```text
//!  load ─> fixed keys? ─> read every list to its end ─> ledger knows its accounts ─> filter? ─┬─> numbers, log level, lists
//!   '───────'──────────────'─────────────────────────────'─────────────────────────'─> refused: the old state stays in force
//! ```
//! Nothing before the last step changes anything for anybody, and nothing in the last step can be refused. The lists are
//! swapped beside the work that goes on; a DID that is taken off rests, one in flight finishes. Only a dead ledger ends it
//! half way: the process ends with it, and the next start lists anew before it works.

use std::cell::RefCell;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use tokio::sync::watch;

use crate::config::changes::{Change, Effect, changes};
use crate::config::file::{self, Assignment, ConfigError, Loaded, Mode};
use crate::config::settings::Settings;
use crate::config::targets::{self, ListSource, Target, TargetError};
use crate::ops::logging::LogHandle;
use crate::pipeline::{Reach, plan_limits};
use crate::store::error::StoreError;
use crate::store::key_file;
use crate::store::ledger::LedgerGone;
use crate::store::listing::{Known, ListingError, Staged, Step};
use crate::transform::Transformer;

/// Entries or rows between two lines of progress in the log.
const LOGGED_EVERY: u64 = 1_000_000;

/// Where the configuration comes from, each time it is read.
#[derive(Clone, Debug)]
pub struct Origin {
    /// `--config`.
    pub config: Option<PathBuf>,
    /// What the command line sets over it.
    pub assignments: Vec<Assignment>,
}

/// Why lists or a reload were refused. The old state stays in force.
#[derive(Debug, thiserror::Error)]
pub enum ReloadError {
    /// The configuration.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// Keys that only a restart can change.
    #[error("{} cannot change while skyfill runs: put the old value back, or restart", .0.join(", "))]
    Fixed(Vec<&'static str>),
    /// A list that cannot be used.
    #[error(transparent)]
    Targets(#[from] TargetError),
    /// A list that had entries has none.
    #[error("{0} is empty now and was not before: if that is meant, take it out of [source]")]
    Emptied(String),
    /// No list has any entry.
    #[error("the lists are empty")]
    Empty,
    /// Listed accounts are done under another filter.
    #[error(
        "{accounts} of these accounts were exported with other records.types, another [window] or other pseudonyms: use another data_dir, or \
         `skyfill backfill --refilter` to export them again (their rows will then be in the queues twice)"
    )]
    Filter {
        /// How many.
        accounts: u64,
    },
    /// The disk, while a list was read.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The ledger's writer has ended, and the process ends with it.
    #[error(transparent)]
    Gone(#[from] LedgerGone),
    /// A part of the reload crashed.
    #[error("a part of the reload crashed: {0}")]
    Crashed(String),
}

impl From<ListingError> for ReloadError {
    fn from(error: ListingError) -> Self {
        match error {
            ListingError::Store(error) => Self::Store(error),
            ListingError::Gone(gone) => Self::Gone(gone),
        }
    }
}

/// What a reload did.
#[derive(Clone, Debug)]
pub struct Reloaded {
    /// Listed accounts.
    pub listed: u64,
    /// Keys that changed.
    pub changes: Vec<Change>,
}

impl fmt::Display for Reloaded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} accounts listed, {} keys changed", self.listed, self.changes.len())
    }
}

/// Replaces configuration and lists of a running pipeline.
pub struct Reloader {
    origin: Origin,
    settings: Settings,
    reach: Reach,
    log: Arc<LogHandle>,
    /// Entries of each list, as it was read last.
    sizes: Vec<(ListSource, u64)>,
    /// How far the lists are, while some are read.
    step: Arc<watch::Sender<Option<Step>>>,
}

/// Lists that were read to their end, and how many entries each has.
type ReadLists = (Staged, Vec<(ListSource, u64)>);

impl Reloader {
    /// Over a pipeline that was started with `settings`.
    #[must_use]
    pub fn new(origin: Origin, settings: Settings, reach: Reach, log: Arc<LogHandle>) -> Self {
        let step = Arc::new(watch::Sender::new(None));
        Self { origin, settings, reach, log, sizes: Vec::new(), step }
    }

    /// The settings in force, those that wait for a restart included.
    #[must_use]
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// How far the lists are; `None` while none is read.
    #[must_use]
    pub fn step(&self) -> watch::Receiver<Option<Step>> {
        self.step.subscribe()
    }

    /// Loads the lists for the first time, and lets work begin. Gives how many accounts are listed; of a group none are.
    ///
    /// # Errors
    /// [`ReloadError`].
    pub async fn begin(&mut self) -> Result<u64, ReloadError> {
        if self.settings.source.group.is_some() {
            self.reach.begin();
            return Ok(0);
        }
        let (known, sizes) = self.know(&self.settings).await?;
        let listed = self.swap(known).await?;
        self.sizes = sizes;
        self.reach.begin();
        Ok(listed)
    }

    /// Reads configuration and lists again, and replaces both.
    ///
    /// # Errors
    /// [`ReloadError`]; then nothing is changed.
    pub async fn reload(&mut self) -> Result<Reloaded, ReloadError> {
        let origin = self.origin.clone();
        let load = move || file::load(origin.config.as_deref(), &origin.assignments, Mode::Run);
        let Loaded { settings, warnings } = blocking(load).await??;
        warnings.iter().for_each(|warning| tracing::warn!("{warning}"));
        let changes = changes(&self.settings, &settings);
        let fixed = changes.iter().filter(|change| change.effect == Effect::Fixed);
        let fixed: Vec<&str> = fixed.map(|change| change.key).collect();
        if !fixed.is_empty() {
            return Err(ReloadError::Fixed(fixed));
        }
        let known = match settings.source.group {
            // Its accounts come by themselves.
            Some(_) => None,
            None => Some(self.know(&settings).await?),
        };
        // From here on nothing is refused.
        self.reach.set_policy(settings.ledger_policy()).await?;
        self.reach.set_limits(plan_limits(&settings));
        self.reach.set_refresh_every(settings.refresh.every);
        self.log.set_level(settings.log.level);
        let listed = match known {
            Some((known, sizes)) => {
                self.sizes = sizes;
                self.swap(known).await?
            }
            None => self.reach.progress().borrow().counts.total(),
        };
        self.settings = settings;
        changes.iter().for_each(log_change);
        Ok(Reloaded { listed, changes })
    }

    /// Reads the lists of `settings` to their end, and makes their accounts known to the ledger.
    async fn know(
        &self,
        settings: &Settings,
    ) -> Result<(Known, Vec<(ListSource, u64)>), ReloadError> {
        let (reach, tell, before) = (self.reach.clone(), self.teller(), self.sizes.clone());
        let sources = ListSource::configured(&settings.source);
        let (filter, key) = (settings.filter.clone(), settings.pseudonyms.clone());
        let known = blocking(move || {
            let names = key_file::read(key.as_deref())?;
            let (staged, sizes) = read(&sources, &reach, &tell)?;
            let emptied = sizes.iter().find(|(source, entries)| {
                let had = |(known, entries): &(ListSource, u64)| known == source && *entries > 0;
                *entries == 0 && before.iter().any(had)
            });
            if let Some((source, _)) = emptied {
                return Err(ReloadError::Emptied(source.name()));
            }
            if staged.entries() == 0 {
                return Err(ReloadError::Empty);
            }
            let (known, mut others) = reach.know(staged, &tell)?;
            let wanted = Transformer::new(&filter).with_pseudonyms(names);
            if others == 0 && wanted.filter_hash() != reach.filter_hash() {
                others = reach.under_another_filter(&known, wanted.filter_hash())?;
            }
            if others > 0 {
                return Err(ReloadError::Filter { accounts: others });
            }
            Ok((known, sizes))
        });
        let known = known.await;
        self.step.send_replace(None);
        known?
    }

    async fn swap(&self, known: Known) -> Result<u64, ReloadError> {
        let (reach, tell) = (self.reach.clone(), self.teller());
        let swapped = blocking(move || reach.swap(known, &tell)).await;
        self.step.send_replace(None);
        Ok(swapped??)
    }

    fn teller(&self) -> impl Fn(Step) + Send + 'static {
        let told = Arc::clone(&self.step);
        move |step| {
            told.send_replace(Some(step));
            match step {
                Step::Read(entries) if entries.is_multiple_of(LOGGED_EVERY) => {
                    tracing::info!(entries, "reading the lists");
                }
                Step::Known(accounts) if accounts.is_multiple_of(LOGGED_EVERY) => {
                    tracing::info!(accounts, "loading the lists");
                }
                Step::Swapped(rows, of) if rows.is_multiple_of(LOGGED_EVERY) => {
                    tracing::info!(rows, of, "listing the accounts");
                }
                _ => {}
            }
        }
    }
}

/// Reads every list to its end.
fn read(
    sources: &[ListSource],
    reach: &Reach,
    tell: &dyn Fn(Step),
) -> Result<ReadLists, ReloadError> {
    // What is plainly not there is said before anything is read.
    drop(targets::open(sources)?);
    let sizes = RefCell::new(Vec::new());
    let entries = sources.iter().flat_map(|source| {
        sizes.borrow_mut().push((source.clone(), 0));
        let count = |target: &Result<Target, TargetError>| {
            if let Some((_, entries)) = sizes.borrow_mut().last_mut() {
                *entries += 1;
            }
            if let Ok(Target::Malformed { cleaned, detail }) = target {
                tracing::warn!(entry = cleaned, %detail, "a malformed entry is parked");
            }
        };
        let opened: Box<dyn Iterator<Item = _>> = match targets::open(std::slice::from_ref(source))
        {
            Ok(targets) => Box::new(targets),
            Err(error) => Box::new(std::iter::once(Err(error))),
        };
        opened.inspect(count)
    });
    let staged = Staged::read(reach.spool(), entries, tell)??;
    Ok((staged, sizes.into_inner()))
}

fn log_change(change: &Change) {
    let Change { key, effect, from, to } = change;
    match effect {
        Effect::Restart => tracing::warn!(key, from, to, "changed, in force after a restart"),
        Effect::Now | Effect::Fixed => tracing::info!(key, from, to, "changed"),
    }
}

/// Runs `work` on a thread of its own.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, ReloadError> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|error| ReloadError::Crashed(error.to_string()))
}
