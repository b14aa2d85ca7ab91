//! Data: an opened data directory, brought up to date, before anything runs over it.
//!
//! ```text
//!  lock -> queues without a ledger? -> ledger -> segments into the ledger -> leases of a dead process end -> lists
//! ```
//! What is sealed but not applied to the queues is applied in the background once the pipeline runs.

use std::collections::HashMap;
use std::fmt::Display;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use crate::clock::Clock;
use crate::config::group;
use crate::config::settings::Settings;
use crate::config::targets::Target;
use crate::crash_point;
use crate::domain::ledger::Event;
use crate::seed::Chance;
use crate::store::apply::Position;
use crate::store::data_dir::DataDir;
use crate::store::decisions::Decisions;
use crate::store::error::StoreError;
use crate::store::follow::{self, NamedSink};
use crate::store::journal::Journal;
use crate::store::key_file;
use crate::store::leaves::journal_labels;
use crate::store::ledger_rows::Rows;
use crate::store::listing::{ListingError, Staged};
use crate::transform::Transformer;

/// What every run with pseudonyms says.
pub const PSEUDONYMS_NOTE: &str = "dids are replaced by pseudonyms; texts and handles are not touched, and record keys, cids and texts may tell who it is";

/// Name of the ledger in a data directory.
pub const LEDGER_FILE: &str = "state.db";

/// An opened data directory; while this lives, it is ours alone.
pub struct Data {
    pub(super) dir: DataDir,
    pub(super) rows: Rows,
    pub(super) journal: Arc<Mutex<Journal>>,
    pub(super) data_id: String,
    pub(super) positions: HashMap<String, Position>,
    /// Last segment that was sealed before.
    pub(super) recovered: u64,
    /// Accounts are to be refreshed.
    pub(super) is_refreshed: bool,
    pub(super) transformer: Arc<Transformer>,
    pub(super) sinks: Sinks,
}

/// Sinks that wait for a pipeline: the one that starts takes them.
pub type Sinks = Arc<Mutex<Vec<NamedSink>>>;

/// Done accounts that were exported under another filter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OtherFilter {
    /// How many.
    pub accounts: u64,
}

/// Done accounts of whose newest revision no leaves were kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WithoutLeaves {
    /// How many.
    pub accounts: u64,
}

impl Data {
    /// Opens the data directory of `settings`, and makes it if it is not there.
    ///
    /// # Errors
    /// [`StoreError`], whose kind says which exit code is due.
    pub fn open(settings: &Settings, clock: &Clock, chance: &Chance) -> Result<Self, StoreError> {
        let dir = DataDir::open(&settings.data_dir)?;
        let ledger = dir.join(LEDGER_FILE);
        if !ledger.exists() {
            refuse_orphans(&dir)?;
        }
        let policy = settings.ledger_policy();
        let (mut rows, _is_new) = Rows::open(&ledger, policy, clock.clone(), chance.clone())?;
        claim(&mut rows, settings)?;
        // The ledger is there and nothing else is: the next start makes the rest.
        crash_point!(LedgerOpenedBeforeJournal);
        let (data_id, segment) = (rows.data_id()?, rows.segment()?);
        let names = key_file::read(settings.pseudonyms.as_deref())?;
        if let Some(names) = &names {
            tracing::info!(key = names.id(), "{PSEUDONYMS_NOTE}");
        }
        let transformer = Transformer::new(&settings.filter).with_pseudonyms(names);
        let transformer = Arc::new(transformer);
        let labels = journal_labels(transformer.queues());
        let (folder, bytes) = (dir.join("journal"), settings.limits.journal);
        let journal = Journal::open(&folder, &data_id, labels, bytes, segment)?;
        rows.transaction(|rows| {
            while let Some(segment) = journal.next_after(rows.segment()?)? {
                let accounts = segment.table.accounts.iter();
                let revisions: Vec<_> = accounts.map(|account| account.revision.clone()).collect();
                rows.apply_segment(segment.number, &revisions)?;
            }
            rows.forget_repeats(journal.forgotten())?;
            rows.end_leases(&Event::ProcessDied)?;
            rows.drop_refreshes_of_another_filter(transformer.filter_hash())
        })?;
        // The ledger knows what was sealed and has taken back its leases; queues follow later, now or at the next start.
        crash_point!(RecoveredBeforeLists);
        let positions = rows.queue_positions()?;
        let recovered = journal.newest();
        let journal = Arc::new(Mutex::new(journal));
        let sinks = Sinks::default();
        Ok(Self {
            dir,
            rows,
            journal,
            data_id,
            positions,
            recovered,
            is_refreshed: false,
            transformer,
            sinks,
        })
    }

    /// The pipeline's sinks beside the queues.
    pub fn follow_with(&mut self, sinks: Sinks) {
        self.sinks = sinks;
    }

    /// From now on nothing waits for the sink `name`, and work goes on without it; gives whether it was known.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn let_sink_go(&mut self, name: &str) -> Result<bool, StoreError> {
        let label = follow::ledger_label(name);
        self.positions.remove(&label);
        self.rows.transaction(|rows| rows.let_sink_go(&label))
    }

    /// Makes `targets` the listed accounts; the others rest. Gives how many there are, or the first error of the list, and
    /// then nothing is changed.
    ///
    /// # Errors
    /// [`StoreError`]; its kind is [`StoreError::Config`] if the accounts are those of a consumer group.
    pub fn list<E>(
        &mut self,
        targets: impl Iterator<Item = Result<Target, E>>,
    ) -> Result<Result<u64, E>, StoreError> {
        if let Some(group) = self.rows.group()? {
            let text = format!(
                "{} holds what the consumer group {group} has given this worker: use another --data-dir for lists",
                self.dir.path().display()
            );
            return Err(StoreError::Config(text));
        }
        let nobody = |_| {};
        let staged = match Staged::read(&self.dir.join("spool"), targets, &nobody)? {
            Ok(staged) => staged,
            Err(error) => return Ok(Err(error)),
        };
        let listed = staged
            .know(&mut self.rows, &nobody)
            .and_then(|known| known.swap(&mut self.rows, &nobody));
        // The lists are in the ledger and nothing has begun: the same command lists the same again.
        crash_point!(ListedBeforeWork);
        match listed {
            Ok(listed) => Ok(Ok(listed)),
            Err(ListingError::Store(error)) => Err(error),
            // Only a running pipeline has a writer that can be gone.
            Err(ListingError::Gone(gone)) => Err(StoreError::Config(gone.to_string())),
        }
    }

    /// Whether listed accounts were exported under another filter; with `refilter` they are put back instead, to be exported
    /// again.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn check_filter(&mut self, refilter: bool) -> Result<Option<OtherFilter>, StoreError> {
        let hash = self.transformer.filter_hash().to_owned();
        let accounts = self.rows.done_under_another_filter(&hash)?;
        if accounts == 0 {
            return Ok(None);
        }
        if refilter {
            self.rows.transaction(|rows| rows.refilter(&hash))?;
            return Ok(None);
        }
        Ok(Some(OtherFilter { accounts }))
    }

    /// Tells who follows the run of every decision about a listed account, first of those that are decided already.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn tell_decisions(&mut self) -> Result<Decisions, StoreError> {
        let decisions = Decisions::make(&self.dir.join("spool"))?;
        self.rows.tell_decisions(decisions.clone())?;
        Ok(decisions)
    }

    /// Puts the listed done accounts on their way to be refreshed; gives how many there are. Those whose leaves were not kept are
    /// exported again, whole, if `anew`; otherwise, if there are any, nothing is changed.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn refresh(&mut self, anew: bool) -> Result<Result<u64, WithoutLeaves>, StoreError> {
        let accounts = self.rows.done_without_leaves()?;
        if accounts > 0 && !anew {
            return Ok(Err(WithoutLeaves { accounts }));
        }
        self.is_refreshed = true;
        if accounts > 0 {
            self.rows.transaction(Rows::export_without_leaves_again)?;
        }
        let (mut after, mut count) = (0, 0);
        loop {
            let ids = self.rows.can_be_refreshed(after)?;
            let Some(last) = ids.last() else { break };
            after = *last;
            count += self.rows.transaction(|rows| rows.refresh(&ids))?;
            // Some accounts are on their way and nothing has begun: the same command takes the others too.
            crash_point!(RefreshMarkedBeforeWork);
        }
        Ok(Ok(count))
    }

    /// The ledger's rows.
    pub const fn rows_mut(&mut self) -> &mut Rows {
        &mut self.rows
    }

    /// Path of the ledger, for readers.
    #[must_use]
    pub fn ledger_path(&self) -> PathBuf {
        self.dir.join(LEDGER_FILE)
    }
}

/// A data directory works for one consumer group, or for lists: accounts of the one would be taken off by the other.
fn claim(rows: &mut Rows, settings: &Settings) -> Result<(), StoreError> {
    if let Some(text) = group::missing_feature(settings) {
        return Err(StoreError::Config(text.to_owned()));
    }
    let shown = settings.data_dir.display();
    match (&settings.source.group, rows.group()?) {
        (None, None) => Ok(()),
        (None, Some(bound)) => Err(StoreError::Config(format!(
            "{shown} works for the consumer group {bound}: give the configuration of its worker (source.group = \"{bound}\"), or use another --data-dir"
        ))),
        (Some(group), Some(bound)) if *group == bound => Ok(()),
        (Some(group), Some(bound)) => Err(StoreError::Config(format!(
            "{shown} works for the consumer group {bound}, source.group is {group}: put the old value back, or use another --data-dir"
        ))),
        (Some(group), None) => match rows.transaction(|rows| rows.bind_group(group)) {
            Err(StoreError::Config(text)) => Err(StoreError::Config(format!("{shown}: {text}"))),
            bound => bound,
        },
    }
}

/// Queues or segments without a ledger belong to something that is gone: going on would make rows twice.
fn refuse_orphans(dir: &DataDir) -> Result<(), StoreError> {
    let holds = |folder: &str, ending: &str| {
        let path = dir.join(folder);
        let entries = std::fs::read_dir(&path).map_err(|error| StoreError::io(&path, error))?;
        let mut names = entries.flatten().map(|entry| entry.file_name());
        Ok::<bool, StoreError>(
            names.any(|name| Path::new(&name).extension().is_some_and(|it| it == ending)),
        )
    };
    let refuse = |what: &dyn Display| {
        Err(StoreError::Config(format!(
            "{} holds {what} but no {LEDGER_FILE}, which knows what is in them: put {LEDGER_FILE} back, move them away, or use another --data-dir",
            dir.path().display()
        )))
    };
    if holds("queue", "db")? {
        return refuse(&"queues");
    }
    if holds("journal", "seg")? {
        return refuse(&"journal segments");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::settings::Source;
    use crate::domain::did::Did;

    /// Opens `folder` for a group, or for lists.
    fn open(folder: &Path, group: Option<&str>) -> Result<Data, StoreError> {
        let source = Source { group: group.map(str::to_owned), ..Source::default() };
        let settings = Settings { data_dir: folder.to_owned(), source, ..Settings::default() };
        Data::open(&settings, &Clock::fixed(0), &Chance::seeded(1))
    }

    fn list(data: &mut Data) -> Result<u64, StoreError> {
        let did = Did::parse("did:plc:44ybard66vv44zksje25o7dz").unwrap();
        let targets = [Ok::<_, StoreError>(Target::Did(did))];
        data.list(targets.into_iter()).map(Result::unwrap)
    }

    fn refused<T>(outcome: Result<T, StoreError>, text: &str) {
        let Err(StoreError::Config(said)) = outcome.map(drop) else { panic!("not refused") };
        assert!(said.contains(text), "{said}");
    }

    #[cfg(feature = "kafka")]
    #[test]
    fn a_data_directory_works_for_one_group_or_for_lists() {
        let folder = tempfile::tempdir().unwrap();
        let worker = folder.path().join("worker");
        drop(open(&worker, Some("study")).unwrap());
        let mut again = open(&worker, Some("study")).unwrap();
        refused(list(&mut again), "the consumer group study has given this worker");
        assert_eq!(again.rows_mut().last_row().unwrap(), 0);
        drop(again);
        refused(open(&worker, None), "works for the consumer group study: give the configuration");
        refused(open(&worker, Some("other")), "source.group is other: put the old value back");
        let listed = folder.path().join("listed");
        assert_eq!(list(&mut open(&listed, None).unwrap()).unwrap(), 1);
        refused(open(&listed, Some("study")), "listed: this data directory has accounts of lists");
        assert_eq!(list(&mut open(&listed, None).unwrap()).unwrap(), 1);
    }

    #[cfg(not(feature = "kafka"))]
    #[test]
    fn a_build_without_kafka_works_for_no_group() {
        let folder = tempfile::tempdir().unwrap();
        refused(
            open(folder.path(), Some("study")),
            "source.group: needs a build with --features kafka",
        );
        assert_eq!(list(&mut open(folder.path(), None).unwrap()).unwrap(), 1);
    }
}
