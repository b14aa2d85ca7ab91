//! Fixed threads for the CPU work of a stage: never more at once than there are cores for, and never on the async workers.
//!
//! A job that panics is logged and counted, and its thread goes on; the ticket inside the job has already told. A thread whose
//! job hangs cannot be ended from outside: it is replaced, and ends by itself should its job ever return.

use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};

type Job = Box<dyn FnOnce() -> After + Send>;

/// What a thread does after a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum After {
    /// The next one.
    Next,
    /// Nothing: it was given up, another took its place.
    End,
}

/// Threads of one stage; clones share them. They end when the last clone is gone.
#[derive(Clone)]
pub struct Threads {
    stage: &'static str,
    jobs: SyncSender<Job>,
    queue: Arc<Mutex<Receiver<Job>>>,
    /// Threads ever started: numbers of their names.
    started: Arc<AtomicUsize>,
}

impl Threads {
    /// Starts `count` threads of `stage`, and makes room for `waiting` jobs: as many as its mailbox lets in, so that handing
    /// one over never waits.
    ///
    /// # Errors
    /// The system's, if a thread cannot be started.
    pub fn start(stage: &'static str, count: usize, waiting: usize) -> std::io::Result<Self> {
        let (jobs, queue) = sync_channel(waiting);
        let queue = Arc::new(Mutex::new(queue));
        let threads = Self { stage, jobs, queue, started: Arc::default() };
        for _ in 0..count {
            threads.add()?;
        }
        Ok(threads)
    }

    fn add(&self) -> std::io::Result<()> {
        let (stage, queue) = (self.stage, Arc::clone(&self.queue));
        let number = self.started.fetch_add(1, Ordering::AcqRel);
        let named = std::thread::Builder::new().name(format!("{stage}-{number}"));
        named.spawn(move || work(stage, &queue)).map(drop)
    }

    /// Starts another thread for one whose job hangs; that job must end with [`After::End`], should it ever.
    ///
    /// # Errors
    /// The system's, if a thread cannot be started.
    pub fn replace_hung(&self) -> std::io::Result<()> {
        crate::telemetry::worker_crashed(self.stage);
        self.add()
    }

    /// Whose they are.
    #[must_use]
    pub fn stage(&self) -> &'static str {
        self.stage
    }

    /// Hands a job over.
    pub fn run(&self, job: impl FnOnce() -> After + Send + 'static) {
        // All threads are gone only if the process ends; the job is dropped, and its ticket tells.
        let _dropped = self.jobs.send(Box::new(job));
    }
}

fn work(stage: &'static str, queue: &Mutex<Receiver<Job>>) {
    loop {
        let next = queue.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok(job) = next else { return };
        match std::panic::catch_unwind(AssertUnwindSafe(job)) {
            Ok(After::Next) => {}
            Ok(After::End) => return,
            Err(_panic) => {
                tracing::warn!(stage, "a worker crashed, its did goes back to the ledger");
                crate::telemetry::worker_crashed(stage);
            }
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
        threads.run(move || {
            tell.send(7).unwrap();
            After::Next
        });
        assert_eq!(told.recv().unwrap(), 7);
    }

    #[test]
    fn a_thread_whose_job_hangs_is_replaced_and_ends_when_the_job_does() {
        let threads = Threads::start("test", 1, 4).unwrap();
        let (release, hangs) = sync_channel::<()>(1);
        let (begin, begun) = sync_channel::<()>(1);
        let (tell, told) = sync_channel(4);
        let name = || std::thread::current().name().unwrap().to_owned();
        threads.run(move || {
            begin.send(()).unwrap();
            let _released = hangs.recv();
            After::End
        });
        // The first thread has it: otherwise the second could take it, and the first what is said.
        begun.recv().unwrap();
        let say = move || {
            let tell = tell.clone();
            move || {
                tell.send(name()).unwrap();
                After::Next
            }
        };
        threads.run(say());
        threads.replace_hung().unwrap();
        assert_eq!(told.recv().unwrap(), "test-1");
        release.send(()).unwrap();
        for _ in 0..4 {
            threads.run(say());
            assert_eq!(told.recv().unwrap(), "test-1");
        }
    }
}
