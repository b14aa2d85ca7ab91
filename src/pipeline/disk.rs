//! Disk: an opened data directory with the threads that write it.

use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::clock::Clock;
use crate::config::settings::{Settings, lag_max};
use crate::domain::ledger::Event;
use crate::pipeline::data::{Data, LEDGER_FILE};
use crate::pipeline::forget;
use crate::sink::configured::configured;
use crate::sink::leaves::LeavesFile;
use crate::sink::sqlite::{SqliteQueues, file_name};
use crate::stages::scheduler::WRITER;
use crate::store::apply::{Applier, Sink};
use crate::store::data_dir::DataDir;
use crate::store::error::StoreError;
use crate::store::follow::{Around, Followers, NamedSink, Waiting};
use crate::store::followers::Following;
use crate::store::health::Health;
use crate::store::journal::Journal;
use crate::store::leaves::{DELETED_LABEL, LEAVES_LABEL};
use crate::store::ledger::{Follower, Ledger};
use crate::store::ledger_forget::Tombstones;
use crate::store::ledger_rows::{Rows, RunCounts};
use crate::store::parkings::Parkings;
use crate::transform::pseudonym::Pseudonyms;

/// After a failure the threads are waited for only so long; the data directory stays locked until they have ended.
const ABANDON: Duration = Duration::from_secs(5);

/// The data directory with the threads that write it.
pub struct Disk {
    /// The ledger's writer.
    pub ledger: Ledger,
    /// The journal.
    pub journal: Arc<Mutex<Journal>>,
    /// Who brings sealed segments to the queues and the ledger.
    pub applier: Applier,
    /// The sinks beside the queues.
    pub followers: Followers,
    /// What stands for DIDs in the queues, if not they themselves.
    pub names: Option<Pseudonyms>,
    /// The directory, ours as long as this lives.
    pub dir: DataDir,
    /// Last segment that an earlier process sealed.
    pub recovered: u64,
    threads: Vec<JoinHandle<()>>,
}

impl Disk {
    /// Starts the threads over `data`.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn start(
        data: Data,
        settings: &Settings,
        clock: &Clock,
        health: &Health,
    ) -> Result<Self, StoreError> {
        let refreshes = settings.refresh.every.is_some() || data.is_refreshed;
        let Data {
            dir, mut rows, journal, data_id, positions, recovered, transformer, sinks, ..
        } = data;
        let (segment, ledger_path) = (rows.segment()?, dir.join(LEDGER_FILE));
        forget::finish(&mut rows, &dir.join("queue"))?;
        let mut sinks = sinks.lock().unwrap_or_else(PoisonError::into_inner);
        let is_worker = settings.source.group.is_some();
        let beside = (clock, is_worker);
        let mut configured = configured(&settings.sinks, &dir.join("sink"), beside)?;
        let by_itself = lag_max(settings.limits.journal);
        let place = |it: &NamedSink| (it.name.clone(), it.lag_max.unwrap_or(by_itself));
        let places: Vec<(String, u64)> = configured.iter().chain(sinks.iter()).map(place).collect();
        let forgotten = journal.lock().unwrap_or_else(PoisonError::into_inner).forgotten();
        let labels = transformer.queues();
        let waiting = Waiting::new(&places, &positions, forgotten, &data_id, labels)?;
        let followers = waiting.followers.clone();
        // From here on nothing is removed that they have not had, whoever runs over this directory.
        if !places.is_empty() {
            rows.transaction(|rows| rows.settle(&followers.positions()))?;
        }
        let hears = configured.iter().chain(sinks.iter()).any(|it| it.sink.hears_of_parked());
        let (folder, names) = (dir.join("spool"), transformer.pseudonyms().cloned());
        let parkings = hears.then(|| Parkings::of(&mut rows, &ledger_path, &folder, names));
        let parkings = parkings.transpose()?;
        let (ledger, ledger_thread) = Ledger::start(rows, health.clone())?;
        let (rows_per_item, folder) = (settings.rows_per_item, dir.join("queue"));
        // There is a queue for deletions once something was refreshed, or is to be.
        let mut labels = labels.to_vec();
        let is_there = folder.join(file_name(DELETED_LABEL)).exists();
        labels.extend((refreshes || is_there).then(|| DELETED_LABEL.to_owned()));
        let known = positions.get(LEAVES_LABEL).copied();
        let leaves = LeavesFile::open(dir.path(), &data_id, known)?;
        let clock_too = clock.clone();
        let queues =
            SqliteQueues::open(&folder, &data_id, &labels, rows_per_item, positions, clock_too)?;
        let tombstones = Tombstones::open(&ledger_path)?;
        let follower = Box::new(Follower::new(ledger.clone(), segment, tombstones));
        let queues: Vec<Box<dyn Sink>> = vec![Box::new(queues), Box::new(leaves)];
        let (beside, journal_too) = (followers.clone(), Arc::clone(&journal));
        let (applier, applier_thread) =
            Applier::start_beside(beside, journal_too, queues, follower, health.clone())?;
        // Taken only now: what found the disk full before is tried again with them.
        configured.append(&mut sinks);
        let parkings = parkings.as_ref();
        let around = Around { journal: &journal, applier: &applier, health, clock, parkings };
        let mut threads = waiting.start(configured, &around)?;
        threads.extend([applier_thread, ledger_thread]);
        let names = transformer.pseudonyms().cloned();
        Ok(Self { ledger, journal, applier, followers, names, threads, dir, recovered })
    }

    /// Looks at its followers.
    #[must_use]
    pub fn following(&self) -> Following {
        Following::new(Arc::clone(&self.journal), self.applier.clone())
    }

    /// Whether what is in flight could be finished: not on a full disk (what is merely below limits.disk_free can be), nor while
    /// a sink holds up the work.
    #[must_use]
    pub fn may_finish(&self, health: &Health) -> bool {
        let is_full = health.watch().borrow().full.keys().any(|writer| *writer != WRITER);
        health.failure().is_none() && !is_full && !self.followers.hold_up()
    }

    /// Settles the queues, ends every lease and closes the ledger; gives what this process decided, to the last segment.
    pub async fn stop(self, health: &Health) -> Option<RunCounts> {
        let (applier, followers) = (self.applier.clone(), self.followers.clone());
        // They take what the queues have.
        let newest = self.journal.lock().unwrap_or_else(PoisonError::into_inner).newest();
        applier.applied(newest).await;
        let _stopped = tokio::task::spawn_blocking(move || followers.stop()).await;
        // What they have taken by then is removed with the applier's last settle.
        self.followers.passed_by(u64::MAX).await;
        let _stopped = tokio::task::spawn_blocking(move || applier.stop()).await;
        let mut progress = self.applier.progress();
        let _ended = progress.wait_for(|progress| progress.ended).await;
        if health.failure().is_some() {
            return None;
        }
        let end = |rows: &mut Rows| rows.end_leases(&Event::GivenBack).map(|_| rows.run_counts());
        let decided = self.ledger.run(end).await.ok();
        self.ledger.close().await;
        let threads = self.threads;
        let join = move || threads.into_iter().for_each(|thread| drop(thread.join()));
        let _joined = tokio::task::spawn_blocking(join).await;
        decided
    }

    /// Something has failed: ends the threads without another write. While one of them still hangs in a call of the system or
    /// of a sink, the data directory stays locked.
    pub async fn abandon(self) {
        let Self { ledger, applier, followers, dir, threads, .. } = self;
        let ended = tokio::task::spawn_blocking(move || {
            followers.abandon();
            applier.abandon();
        });
        let _in_time = tokio::time::timeout(ABANDON, async {
            let _told = ended.await;
            ledger.close().await;
            drop(ledger);
            let join = move || {
                threads.into_iter().for_each(|thread| drop(thread.join()));
                drop(dir);
            };
            tokio::task::spawn_blocking(join).await
        })
        .await;
    }
}
