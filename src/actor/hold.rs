//! What a worker and the thread that does its work share: the DID's ticket, and how the work gets on.
//!
//! ```text
//!  worker ──hands over──> thread ──ends──> the thread ends the ticket
//!     │                     │ panics  ───> the worker ends it as crashed
//!     │                     '─ is silent ─> the worker ends it as crashed, and another thread takes the place of this one
//!     '─ is stopped ──────────────────────> the thread is told to cancel, and ends it
//! ```
//! Whoever comes first takes the ticket; the other side finds nothing left to end.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use crate::actor::mailbox::Slot;
use crate::actor::pulse::Pulse;
use crate::actor::threads::{After, Threads};
use crate::actor::ticket::Ticket;

/// A ticket and its place in the mailbox, for whoever ends the work first; clones share them.
pub struct Hold<O>(Arc<Mutex<Option<Held<O>>>>);

type Held<O> = (Ticket<O>, Slot);

impl<O> Clone for Hold<O> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<O> Hold<O> {
    /// Takes both in hand.
    #[must_use]
    pub fn new(ticket: Ticket<O>, slot: Slot) -> Self {
        Self(Arc::new(Mutex::new(Some((ticket, slot)))))
    }

    /// Ends the work, unless the other side has: then there is nothing to go on with. The place is free afterwards.
    pub fn end(&self, end: impl FnOnce(Ticket<O>)) -> After {
        let taken = self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some((ticket, _slot)) = taken else { return After::End };
        end(ticket);
        After::Next
    }

    /// The work hangs: its DID goes back as after a crash, and another thread takes the place of its own.
    pub fn give_up(&self, threads: &Threads) {
        // Work that has just handed its ticket on does not hang any more.
        if self.end(Ticket::crashed) == After::End {
            return;
        }
        let stage = threads.stage();
        tracing::error!(stage, "a worker hangs and is replaced, its did goes back to the ledger");
        if let Err(error) = threads.replace_hung() {
            tracing::error!(stage, %error, "a thread could not be started");
        }
    }
}

/// What the worker sees of the work, and tells it.
#[derive(Default)]
pub struct Watched {
    /// How it gets on.
    pub pulse: Pulse,
    /// The worker is gone: nobody wants the result.
    pub is_cancelled: AtomicBool,
}

/// Tells the work to stop when its worker is gone.
pub struct CancelOnDrop(pub Arc<Watched>);

impl Drop for CancelOnDrop {
    fn drop(&mut self) {
        self.0.is_cancelled.store(true, Ordering::Release);
    }
}
