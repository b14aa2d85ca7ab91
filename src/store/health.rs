//! Health of the data directory: who waits for disk space, and what ended everything.
//!
//! A full disk pauses whoever writes; it says so once, tries again every second and goes on by itself, and nobody is blamed.
//! Any other failed write or sync is final: the first one is kept, and the process ends with its exit code.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use crate::store::error::{Lack, StoreError};

/// A full disk is tried again after this long.
const DISK_FULL_RETRY: Duration = Duration::from_secs(1);

/// What is wrong right now.
#[derive(Clone, Debug, Default)]
pub struct Condition {
    /// Writers that wait for space, or for a descriptor, each with its sentence.
    pub full: BTreeMap<&'static str, (Lack, String)>,
    /// What ended everything.
    pub failed: Option<Arc<StoreError>>,
    /// The process was asked to stop: nobody waits for space any more.
    pub ending: bool,
}

impl Condition {
    /// The sentences of all who wait.
    pub fn waits(&self) -> impl Iterator<Item = &String> {
        self.full.values().map(|(_, text)| text)
    }
}

/// Reports and watches the condition; clones are the same one.
#[derive(Clone, Debug, Default)]
pub struct Health(Arc<watch::Sender<Condition>>);

impl Health {
    /// Follows the condition.
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<Condition> {
        self.0.subscribe()
    }

    /// What ended everything, if something did.
    #[must_use]
    pub fn failure(&self) -> Option<Arc<StoreError>> {
        self.0.borrow().failed.clone()
    }

    /// Whether some writer waits for space.
    #[must_use]
    pub fn is_full(&self) -> bool {
        !self.0.borrow().full.is_empty()
    }

    /// From now on a full disk ends whoever waits for it; what was not written is found by the next start.
    pub fn end_waiting(&self) {
        self.0.send_modify(|condition| condition.ending = true);
    }

    /// Whether nobody is to wait for space any more.
    #[must_use]
    pub fn is_ending(&self) -> bool {
        self.0.borrow().ending
    }

    /// Ends everything, unless something has before; a full disk does not when the process ends anyway.
    pub fn fail(&self, error: StoreError) {
        if error.is_full() && self.is_ending() {
            return;
        }
        tracing::error!(%error, "the data directory can no longer be written");
        self.0.send_if_modified(|condition| {
            let is_first = condition.failed.is_none();
            condition.failed.get_or_insert_with(|| Arc::new(error));
            is_first
        });
    }

    /// `writer` found the disk full, or too full.
    pub fn full(&self, writer: &'static str, error: &dyn std::fmt::Display) {
        self.lacks(writer, Lack::Space, error);
    }

    fn lacks(&self, writer: &'static str, what: Lack, error: &dyn std::fmt::Display) {
        let text = error.to_string();
        let is_news = self
            .0
            .send_if_modified(|condition| condition.full.insert(writer, (what, text)).is_none());
        match what {
            _ if !is_news => {}
            Lack::Space => tracing::error!(writer, %error, "the disk is full, everything waits"),
            Lack::Descriptors => {
                tracing::error!(writer, %error, "no descriptor is left, everything waits");
            }
        }
    }

    /// `writer` could write again.
    pub fn cleared(&self, writer: &'static str) {
        let mut lacked = None;
        self.0.send_if_modified(|condition| {
            lacked = condition.full.remove(writer).map(|(what, _)| what);
            lacked.is_some()
        });
        match lacked {
            None => {}
            Some(Lack::Space) => tracing::info!(writer, "there is space again, going on"),
            Some(Lack::Descriptors) => {
                tracing::info!(writer, "there are descriptors again, going on");
            }
        }
    }

    /// Runs `work` on a thread of its own until the disk is no longer full.
    ///
    /// # Errors
    /// Whatever else `work` finds; the full disk itself once nobody is to wait for it any more.
    #[allow(clippy::disallowed_methods, reason = "a thread of its own that only waits for space")]
    pub fn wait_out<T>(
        &self,
        writer: &'static str,
        mut work: impl FnMut() -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        loop {
            match work() {
                Err(error) if error.is_full() && self.failure().is_none() => {
                    self.lacks(writer, error.lack(), &error);
                    if self.is_ending() {
                        return Err(error);
                    }
                    std::thread::sleep(DISK_FULL_RETRY);
                }
                done => {
                    self.cleared(writer);
                    return done;
                }
            }
        }
    }

    /// Waits one turn for space, in async code; the caller then tries again and calls [`Health::cleared`].
    pub async fn pause(&self, writer: &'static str, error: &StoreError) {
        self.lacks(writer, error.lack(), error);
        tokio::time::sleep(DISK_FULL_RETRY).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::heard::Messages;

    fn full() -> StoreError {
        StoreError::Full { path: "x".into(), free_bytes: 0 }
    }

    /// However often it is met, and again when it is lacking again.
    #[test]
    fn what_is_lacking_and_its_end_are_said_once() {
        let health = Health::default();
        let no_descriptor = StoreError::Descriptors { path: "x".into(), limit: 9 };
        for _ in 0..2 {
            let told = Messages::of(|| {
                let mut tries = 0;
                let done = health.wait_out("one", || {
                    tries += 1;
                    if tries == 3 { Ok(()) } else { Err(full()) }
                });
                done.unwrap();
            });
            assert_eq!(
                told,
                ["the disk is full, everything waits", "there is space again, going on"]
            );
        }
        let lacks = || health.lacks("two", no_descriptor.lack(), &no_descriptor);
        assert_eq!(Messages::of(lacks), ["no descriptor is left, everything waits"]);
        assert!(Messages::of(lacks).is_empty());
        assert!(health.is_full());
        let told = Messages::of(|| (0..2).for_each(|_| health.cleared("two")));
        assert_eq!(told, ["there are descriptors again, going on"]);
        assert!(!health.is_full());
    }

    #[test]
    fn a_full_disk_is_waited_out_and_other_errors_are_not() {
        let health = Health::default();
        let mut tries = 0;
        let done = health.wait_out("test", || {
            tries += 1;
            if tries == 2 { Ok(tries) } else { Err(full()) }
        });
        assert_eq!(done.unwrap(), 2);
        assert!(!health.is_full());
        let damaged = || StoreError::Damaged { path: "x".into(), what: String::new() };
        assert!(health.wait_out::<()>("test", || Err(damaged())).is_err());
        let ending = Health::default();
        ending.end_waiting();
        assert!(ending.wait_out::<()>("test", || Err(full())).is_err_and(|error| error.is_full()));
        ending.fail(full());
        assert!(ending.failure().is_none() && ending.is_full());
        health.fail(damaged());
        health.fail(full());
        assert!(matches!(health.failure().as_deref(), Some(StoreError::Damaged { .. })));
        // Whatever else fails at the end, and a full disk of who does not wait for space, is final.
        ending.fail(damaged());
        assert!(ending.failure().is_some_and(|error| !error.is_full()));
        let other = Health::default();
        other.fail(full());
        assert!(other.failure().is_some_and(|error| error.is_full()));
    }

    #[tokio::test(start_paused = true)]
    async fn who_found_the_disk_full_is_known_until_it_writes_again() {
        let health = Health::default();
        let waits = || health.watch().borrow().waits().cloned().collect::<Vec<_>>();
        health.full("one", &"less than 1 GiB is free");
        assert_eq!(waits(), ["less than 1 GiB is free"]);
        let begun = tokio::time::Instant::now();
        health.pause("two", &full()).await;
        assert_eq!(begun.elapsed(), DISK_FULL_RETRY);
        assert_eq!(waits(), ["less than 1 GiB is free".to_owned(), full().to_string()]);
        health.cleared("one");
        assert!(health.is_full());
        health.cleared("two");
        assert!(!health.is_full() && waits().is_empty());
    }
}
