//! Fixed threads for the CPU work of a stage: never more at once than there are cores for, and never on the async workers.
//!
//! A job that panics is logged and counted, and its thread goes on; the ticket inside the job has already told.

use std::panic::AssertUnwindSafe;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};

type Job = Box<dyn FnOnce() + Send>;

/// Threads of one stage; clones share them. They end when the last clone is gone.
#[derive(Clone)]
pub struct Threads(SyncSender<Job>);

impl Threads {
    /// Starts `count` threads of `stage`, and makes room for `waiting` jobs: as many as its mailbox lets in, so that handing
    /// one over never waits.
    ///
    /// # Errors
    /// The system's, if a thread cannot be started.
    pub fn start(stage: &'static str, count: usize, waiting: usize) -> std::io::Result<Self> {
        let (jobs, queue) = sync_channel(waiting);
        let queue = Arc::new(Mutex::new(queue));
        for number in 0..count {
            let queue = Arc::clone(&queue);
            let named = std::thread::Builder::new().name(format!("{stage}-{number}"));
            named.spawn(move || work(stage, &queue))?;
        }
        Ok(Self(jobs))
    }

    /// Hands a job over.
    pub fn run(&self, job: impl FnOnce() + Send + 'static) {
        // All threads are gone only if the process ends; the job is dropped, and its ticket tells.
        let _dropped = self.0.send(Box::new(job));
    }
}

fn work(stage: &'static str, queue: &Mutex<Receiver<Job>>) {
    loop {
        let next = queue.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok(job) = next else { return };
        if std::panic::catch_unwind(AssertUnwindSafe(job)).is_err() {
            tracing::warn!(stage, "a worker crashed, its did goes back to the ledger");
            crate::telemetry::worker_crashed(stage);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_that_panics_costs_no_thread() {
        let threads = Threads::start("test", 1, 4).unwrap();
        let (tell, told) = sync_channel(4);
        threads.run(|| panic!("a bug"));
        threads.run(move || tell.send(7).unwrap());
        assert_eq!(told.recv().unwrap(), 7);
    }
}
