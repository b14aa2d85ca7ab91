//! Disk: an opened data directory with the threads that write it.

use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use crate::clock::Clock;
use crate::config::settings::Settings;
use crate::domain::ledger::Event;
use crate::pipeline::data::Data;
use crate::sink::sqlite::SqliteQueues;
use crate::store::apply::{Applier, Sink};
use crate::store::data_dir::DataDir;
use crate::store::error::StoreError;
use crate::store::health::Health;
use crate::store::journal::Journal;
use crate::store::ledger::{Follower, Ledger};
use crate::store::ledger_rows::{Rows, RunCounts};

/// The data directory with the threads that write it.
pub struct Disk {
    /// The ledger's writer.
    pub ledger: Ledger,
    /// The journal.
    pub journal: Arc<Mutex<Journal>>,
    /// Who brings sealed segments to the queues and the ledger.
    pub applier: Applier,
    /// The directory, ours as long as this lives.
    pub dir: DataDir,
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
        let Data { dir, rows, journal, data_id, positions, transformer } = data;
        let segment = rows.segment()?;
        let (ledger, ledger_thread) = Ledger::start(rows, health.clone())?;
        let (labels, rows_per_item) = (transformer.queues(), settings.rows_per_item);
        let folder = dir.join("queue");
        let queues =
            SqliteQueues::open(&folder, &data_id, labels, rows_per_item, positions, clock.clone())?;
        let follower = Box::new(Follower::new(ledger.clone(), segment));
        let sinks: Vec<Box<dyn Sink>> = vec![Box::new(queues)];
        let (applier, applier_thread) =
            Applier::start(Arc::clone(&journal), sinks, follower, health.clone())?;
        Ok(Self { ledger, journal, applier, threads: vec![applier_thread, ledger_thread], dir })
    }

    /// Settles the queues, ends every lease and closes the ledger; gives what this process decided, to the last segment.
    pub async fn stop(self, health: &Health) -> Option<RunCounts> {
        let applier = self.applier.clone();
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
}
