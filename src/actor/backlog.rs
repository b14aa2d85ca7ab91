//! Backlog: bytes of repositories that have arrived and wait for a parser, and how many transfers that leaves room for.
//!
//! ```text
//!  scheduler ──at most `window` transfers──> hosts ──> arrived, waiting ──> parsers
//!                    │  +1 for each that arrives while too few bytes wait, twice as many after each second of that
//!                    └  -1 for each that arrives while enough wait
//! ```
//! Where hosts or the network are the bound nothing waits, and the window grows to all that the limits allow: within seconds, however
//! slowly hosts answer. Where processors are the bound it shrinks until just enough waits: few repositories are held in
//! memory, and they are walked while their bytes are still in caches. Measured in `benches/README.md`.

use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::Notify;

/// Enough work for one parser thread until the next transfers arrive: it walks some 60 MB a second.
pub const ENOUGH_BYTES_PER_THREAD: u64 = 4 << 20;

/// Transfers at once for one parser thread that are begun with, and always allowed: hosts take 0.1 seconds to begin to answer.
pub const WINDOW_MIN_PER_THREAD: usize = 8;

/// What waits, and what may be on its way; clones are the same backlog.
#[derive(Clone, Debug)]
pub struct Backlog(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    window: Mutex<Window>,
    eased: Notify,
}

/// A repository that waits, as long as this lives.
#[derive(Debug)]
pub struct Waiting {
    backlog: Backlog,
    bytes: u64,
}

/// The pure part.
#[derive(Debug)]
struct Window {
    waiting_bytes: u64,
    enough_bytes: u64,
    transfers: usize,
    transfers_min: usize,
    transfers_max: usize,
}

impl Window {
    fn is_enough(&self) -> bool {
        self.waiting_bytes >= self.enough_bytes
    }

    fn arrived(&mut self, bytes: u64) {
        self.waiting_bytes += bytes;
        let transfers = if self.is_enough() { self.transfers - 1 } else { self.transfers + 1 };
        self.transfers = transfers.clamp(self.transfers_min, self.transfers_max);
    }

    fn second_passed(&mut self) {
        if !self.is_enough() {
            self.transfers = (self.transfers * 2).min(self.transfers_max);
        }
    }

    /// Says whether from now on too little waits.
    fn taken(&mut self, bytes: u64) -> bool {
        let was_enough = self.is_enough();
        self.waiting_bytes -= bytes;
        was_enough && !self.is_enough()
    }

    fn room(&self, under_way: usize) -> usize {
        if self.is_enough() { 0 } else { self.transfers.saturating_sub(under_way) }
    }
}

impl Backlog {
    /// Nothing waits yet for `threads` parsers, of `spools_bytes` of memory in all, with `transfers_max` transfers at once.
    #[must_use]
    pub fn new(threads: usize, spools_bytes: u64, transfers_max: usize) -> Self {
        let enough_bytes = (threads as u64 * ENOUGH_BYTES_PER_THREAD).min(spools_bytes / 4);
        let transfers_min = (threads * WINDOW_MIN_PER_THREAD).min(transfers_max);
        let transfers = transfers_min;
        let window =
            Window { waiting_bytes: 0, enough_bytes, transfers, transfers_min, transfers_max };
        Self(Arc::new(Inner { window: Mutex::new(window), eased: Notify::new() }))
    }

    /// A repository of `bytes` has arrived.
    #[must_use]
    pub fn arrived(&self, bytes: u64) -> Waiting {
        self.with(|window| window.arrived(bytes));
        Waiting { backlog: self.clone(), bytes }
    }

    /// A second has passed.
    pub fn second_passed(&self) {
        self.with(Window::second_passed);
    }

    /// How many transfers may begin while `under_way` are.
    #[must_use]
    pub fn room(&self, under_way: usize) -> usize {
        self.with(|window| window.room(under_way))
    }

    /// Returns when the backlog has become too short since the last call. For one waiter.
    pub async fn eased(&self) {
        self.0.eased.notified().await;
    }

    fn with<T>(&self, change: impl FnOnce(&mut Window) -> T) -> T {
        change(&mut self.0.window.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        if self.backlog.with(|window| window.taken(self.bytes)) {
            self.backlog.0.eased.notify_one();
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    #[test]
    fn the_window_grows_while_parsers_are_idle_and_shrinks_while_they_are_not() {
        let backlog = Backlog::new(1, 1 << 30, 40);
        assert_eq!((backlog.room(0), backlog.room(5), backlog.room(9)), (8, 3, 0));
        for _ in 0..8 {
            drop(backlog.arrived(1 << 20));
        }
        assert_eq!(backlog.room(0), 16);
        for _ in 0..80 {
            drop(backlog.arrived(1 << 20));
        }
        assert_eq!(backlog.room(0), 40);
        let mut waiting: Vec<Waiting> = (0..3).map(|_| backlog.arrived(1 << 20)).collect();
        assert_eq!(backlog.room(0), 40);
        waiting.extend((0..50).map(|_| backlog.arrived(1 << 20)));
        assert_eq!(backlog.room(0), 0);
        drop(waiting);
        assert_eq!(backlog.room(0), 8);
    }

    #[test]
    fn hosts_that_hold_what_they_began_hold_up_no_others() {
        let backlog = Backlog::new(1, 1 << 30, 40);
        let rooms = [0; 4].map(|_| {
            backlog.second_passed();
            backlog.room(8)
        });
        assert_eq!(rooms, [8, 24, 32, 32]);
        let waiting: Vec<Waiting> = (0..50).map(|_| backlog.arrived(1 << 20)).collect();
        backlog.second_passed();
        drop(waiting);
        assert_eq!(backlog.room(0), 8);
    }

    #[test]
    fn it_is_told_once_that_too_little_waits() {
        let backlog = Backlog::new(1, 400, 40);
        let first = backlog.arrived(60);
        assert!(backlog.room(0) > 0);
        let (second, third) = (backlog.arrived(60), backlog.arrived(60));
        assert_eq!(backlog.room(0), 0);
        drop(second);
        assert!(backlog.eased().now_or_never().is_none());
        drop(first);
        assert!(backlog.room(0) > 0);
        assert!(backlog.eased().now_or_never().is_some());
        drop(third);
        assert!(backlog.eased().now_or_never().is_none());
    }
}
