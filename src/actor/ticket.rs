//! Tickets: no DID can fall out of the pipeline without the scheduler knowing.
//!
//! ```text
//!  issued --enter--> in work --finish(outcome)--> Returned::Finished
//!     |                 |
//!     '--- dropped -----'------------------------> Returned::Lost { crashed }
//! ```
//! A ticket that its own worker drops, because it unwinds, fails, hangs or ends without a word, says `crashed` (attempt + 1);
//! dropped for any other reason (the message waited in a dead mailbox, the stage around it died, the pipeline stopped) it
//! charges nothing.

use std::cell::Cell;
use std::sync::Arc;

use crate::actor::pulse::Pulse;
use crate::domain::account::AccountId;

thread_local! {
    /// While a worker runs on this thread: whether it has dropped a ticket that it had in work.
    static AT_WORK: Cell<Option<bool>> = const { Cell::new(None) };
}

/// Runs one step of a worker; says also whether it dropped a ticket that it had in work.
pub fn at_work<R>(step: impl FnOnce() -> R) -> (R, bool) {
    /// Puts back what was there, also when the step unwinds.
    struct Before(Option<bool>);
    impl Drop for Before {
        fn drop(&mut self) {
            AT_WORK.set(self.0);
        }
    }
    let _before = Before(AT_WORK.replace(Some(false)));
    let result = step();
    (result, AT_WORK.get() == Some(true))
}

/// What comes back for a ticket.
#[derive(Clone, Debug, PartialEq)]
pub enum Returned<O> {
    /// Something happened on the way; the ticket is still out.
    Progress(O),
    /// The work is over, one way or another.
    Finished(O),
    /// The ticket was dropped.
    Lost {
        /// Its own worker crashed while it worked on this DID.
        crashed: bool,
    },
}

/// Where tickets come back to: called from anywhere, never waits, bounded by the number of tickets out.
pub type Desk<O> = Arc<dyn Fn(AccountId, Returned<O>) + Send + Sync>;

/// The right to work on one DID.
pub struct Ticket<O> {
    account: AccountId,
    in_work: bool,
    desk: Option<Desk<O>>,
    pulse: Arc<Pulse>,
}

impl<O> Ticket<O> {
    /// Issues a ticket that comes back to `desk`.
    #[must_use]
    pub fn new(account: AccountId, desk: Desk<O>) -> Self {
        Self { account, in_work: false, desk: Some(desk), pulse: Arc::default() }
    }

    /// The pulse of the work on it.
    #[must_use]
    pub fn pulse(&self) -> &Arc<Pulse> {
        &self.pulse
    }

    /// Whose it is.
    #[must_use]
    pub fn account(&self) -> AccountId {
        self.account
    }

    /// A worker takes it up: from here on a crash is this DID's own.
    pub fn enter(&mut self) {
        self.in_work = true;
    }

    /// The worker is done with it and passes it on: a crash is no longer this DID's own.
    pub fn leave(&mut self) {
        self.in_work = false;
    }

    /// Tells the desk something on the way.
    pub fn tell(&self, progress: O) {
        if let Some(desk) = &self.desk {
            desk(self.account, Returned::Progress(progress));
        }
    }

    /// Ends the work.
    pub fn finish(mut self, outcome: O) {
        if let Some(desk) = self.desk.take() {
            desk(self.account, Returned::Finished(outcome));
        }
    }

    /// Ends the work as a crash of this DID's worker, where the crash was caught on another thread.
    pub fn crashed(mut self) {
        if let Some(desk) = self.desk.take() {
            desk(self.account, Returned::Lost { crashed: true });
        }
    }
}

impl<O> std::fmt::Debug for Ticket<O> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Ticket({}, in_work: {})", self.account.0, self.in_work)
    }
}

impl<O> Drop for Ticket<O> {
    fn drop(&mut self) {
        if let Some(desk) = self.desk.take() {
            let crashed = self.in_work && (std::thread::panicking() || AT_WORK.get().is_some());
            if crashed && AT_WORK.get().is_some() {
                AT_WORK.set(Some(true));
            }
            desk(self.account, Returned::Lost { crashed });
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    type Log = Arc<Mutex<Vec<Returned<u8>>>>;

    fn ticket() -> (Ticket<u8>, Log) {
        let log = Log::default();
        let seen = Arc::clone(&log);
        let desk: Desk<u8> = Arc::new(move |_, returned| seen.lock().unwrap().push(returned));
        (Ticket::new(AccountId(1), desk), log)
    }

    #[test]
    fn a_finished_ticket_says_so_once() {
        let (ticket, log) = ticket();
        ticket.tell(1);
        ticket.finish(2);
        assert_eq!(*log.lock().unwrap(), [Returned::Progress(1), Returned::Finished(2)]);
    }

    #[test]
    fn only_a_worker_that_unwinds_is_charged() {
        let (mut waiting, log) = ticket();
        waiting.enter();
        drop(waiting);
        assert_eq!(*log.lock().unwrap(), [Returned::Lost { crashed: false }]);

        let (mut working, log) = ticket();
        working.enter();
        let crash = std::panic::catch_unwind(std::panic::AssertUnwindSafe(move || {
            let _held = working;
            panic!("a worker's bug");
        }));
        assert!(crash.is_err());
        assert_eq!(*log.lock().unwrap(), [Returned::Lost { crashed: true }]);

        let (queued, log) = ticket();
        let crash = std::panic::catch_unwind(std::panic::AssertUnwindSafe(move || {
            let _held = queued;
            panic!("somebody else's bug");
        }));
        assert!(crash.is_err());
        assert_eq!(*log.lock().unwrap(), [Returned::Lost { crashed: false }]);
    }
}
