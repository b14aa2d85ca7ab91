//! Followers as others see them: how far each is, what it holds of the journal, and whether the work waits for it.
//!
//! ```text
//!  removed  |<────────── held ──────────>|  not applied yet  |
//!        settled by it            applied to the queues    sealed
//!
//!  held > lag_max    whoever seals waits, the follower keeps nothing back, and it is said once, by its name
//!  held <= lag_max   the work goes on by itself
//! ```
//! Nobody waits in a circle: a follower needs no further segment to settle those that it holds, and what the queues have not
//! taken is not laid to its charge. One that waits for a broker, a disk or a bucket holds up nothing but the work, and that only
//! once it holds `lag_max`; a segment may go beyond it, because segments are sealed whole.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::SyncSender;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::watch;

use crate::sink::Position;
use crate::store::apply::Applier;
use crate::store::follow_names::ledger_label;
use crate::store::health::Health;
use crate::store::journal::Journal;
use crate::telemetry::Stopwatch;

/// A follower that holds up the work is named in the log at most this often: one that is merely slow does so with every segment.
const SAID_AGAIN: Duration = Duration::from_secs(60);

/// How far one follower is.
#[derive(Clone, Debug)]
pub struct Followed {
    /// Its name.
    pub name: String,
    /// Taken and settled.
    pub settled: Position,
    /// Why it takes nothing at the moment.
    pub waits: Option<String>,
    /// It has ended, well or not.
    pub ended: bool,
    /// Bytes of segments that it may hold.
    pub lag_max: u64,
    /// The work waits, because it holds more.
    pub holds_up: bool,
    /// When that was last said.
    said: Option<Stopwatch>,
    /// It was said of the wait that is going on.
    is_said: bool,
}

impl Followed {
    pub(super) fn new(name: &str, settled: Position, lag_max: u64) -> Self {
        let (name, waits) = (name.to_owned(), None);
        Self {
            name,
            settled,
            waits,
            ended: false,
            lag_max,
            holds_up: false,
            said: None,
            is_said: false,
        }
    }

    /// Notes that it holds `lag`; whether the work has to wait for it.
    fn judge(&mut self, lag: Lag) -> bool {
        // One that has ended settles nothing any more, and ends the run or has been ended by it.
        let holds_up = !self.ended && lag.bytes > self.lag_max;
        let (sink, segments, bytes) = (self.name.as_str(), lag.segments, lag.bytes);
        let is_due = self.said.is_none_or(|said| said.elapsed() >= SAID_AGAIN);
        if holds_up && !self.is_said && is_due {
            let lag_max = self.lag_max;
            tracing::warn!(sink, segments, bytes, lag_max, "the work waits for a sink");
            (self.said, self.is_said) = (Some(Stopwatch::start()), true);
        } else if !holds_up && self.is_said {
            tracing::info!(sink, segments, bytes, "the work goes on");
            self.is_said = false;
        }
        holds_up
    }
}

/// What a follower holds of the journal: applied to the queues, and not settled by it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Lag {
    /// Segments.
    pub segments: u64,
    /// Their bytes.
    pub bytes: u64,
}

impl Lag {
    fn of(followed: &Followed, journal: &Journal, applied: u64) -> Self {
        let first = followed.settled.passed().saturating_add(1);
        if first > applied {
            return Self::default();
        }
        journal.sealed.range(first..=applied).fold(Self::default(), |lag, (_, bytes)| Self {
            segments: lag.segments + 1,
            bytes: lag.bytes + bytes,
        })
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Command {
    Look,
    Stop,
    Abandon,
}

/// All followers of a pipeline; clones are the same ones. The default is nobody.
#[derive(Clone, Debug, Default)]
pub struct Followers {
    pub(super) wakes: Vec<SyncSender<Command>>,
    /// Somebody waits for the end of what is sealed: nothing is kept back.
    pub(super) is_finishing: Arc<AtomicBool>,
    pub(super) told: Option<Arc<watch::Sender<Vec<Followed>>>>,
}

impl Followers {
    /// Says that there may be new segments.
    pub fn wake(&self) {
        for wake in &self.wakes {
            let _already_awake = wake.try_send(Command::Look);
        }
    }

    /// From now on nothing is kept back: somebody waits for [`Followers::passed_by`].
    pub fn finish(&self) {
        self.is_finishing.store(true, Ordering::Release);
        self.wake();
    }

    /// Lets them take what is sealed, settle and end.
    pub fn stop(&self) {
        self.tell(Command::Stop);
    }

    /// Ends them without another call of a sink: something has failed.
    pub fn abandon(&self) {
        self.tell(Command::Abandon);
    }

    fn tell(&self, command: Command) {
        for wake in &self.wakes {
            let _ended = wake.send(command);
        }
    }

    /// The last segment that every follower has settled whole; `u64::MAX` without any.
    #[must_use]
    pub fn passed(&self) -> u64 {
        let slowest = self.look(|all| all.iter().map(|it| it.settled.passed()).min());
        slowest.unwrap_or(u64::MAX)
    }

    /// Where each is, by its name in the ledger.
    #[must_use]
    pub fn positions(&self) -> Vec<(String, Position)> {
        self.look(|all| all.iter().map(|it| (ledger_label(&it.name), it.settled)).collect())
    }

    /// How far each is.
    #[must_use]
    pub fn followed(&self) -> Vec<Followed> {
        self.look(<[Followed]>::to_vec)
    }

    /// Whether the work waits for one of them.
    #[must_use]
    pub fn hold_up(&self) -> bool {
        self.look(|all| all.iter().any(|it| it.holds_up))
    }

    /// Waits until every follower has settled `segment`, or has ended.
    pub async fn passed_by(&self, segment: u64) {
        let Some(told) = &self.told else { return };
        let mut watched = told.subscribe();
        let is_by = |it: &Followed| it.ended || it.settled.passed() >= segment;
        let _by = watched.wait_for(|all| all.iter().all(is_by)).await;
    }

    fn look<T>(&self, read: impl FnOnce(&[Followed]) -> T) -> T {
        match &self.told {
            Some(told) => read(&told.borrow()),
            None => read(&[]),
        }
    }

    /// Marks who holds more of `journal` than it may; whether there is anybody.
    fn mark(&self, journal: &Mutex<Journal>, applied: u64) -> bool {
        let Some(told) = &self.told else { return false };
        let journal = journal.lock().unwrap_or_else(PoisonError::into_inner);
        let mut anybody = false;
        told.send_if_modified(|all| {
            let mut is_news = false;
            for followed in all {
                let holds_up = followed.judge(Lag::of(followed, &journal, applied));
                is_news |= holds_up != followed.holds_up;
                followed.holds_up = holds_up;
                anybody |= holds_up;
            }
            is_news
        });
        anybody
    }
}

/// Takes the marks off when nobody waits any more, also when whoever waited was ended.
struct Marked<'f>(&'f Followers);

impl Drop for Marked<'_> {
    fn drop(&mut self) {
        let Some(told) = &self.0.told else { return };
        told.send_if_modified(|all| {
            let is_news = all.iter().any(|it| it.holds_up);
            all.iter_mut().for_each(|it| it.holds_up = false);
            is_news
        });
    }
}

/// Looks at the followers of one journal; clones look at the same ones.
#[derive(Clone, Debug)]
pub struct Following {
    journal: Arc<Mutex<Journal>>,
    applier: Applier,
}

impl Following {
    /// Those beside `applier`, which follow `journal`.
    #[must_use]
    pub const fn new(journal: Arc<Mutex<Journal>>, applier: Applier) -> Self {
        Self { journal, applier }
    }

    /// The followers.
    #[must_use]
    pub const fn followers(&self) -> &Followers {
        self.applier.followers()
    }

    /// How far each is, and what it holds.
    #[must_use]
    pub fn lags(&self) -> Vec<(Followed, Lag)> {
        let (all, applied) = (self.followers().followed(), self.applier.applied_through());
        if all.is_empty() {
            return Vec::new();
        }
        let journal = self.journal.lock().unwrap_or_else(PoisonError::into_inner);
        let with_lag = |it: Followed| {
            let lag = Lag::of(&it, &journal, applied);
            (it, lag)
        };
        all.into_iter().map(with_lag).collect()
    }

    /// Whether somebody holds more than it may, which is said by its name.
    #[must_use]
    pub fn is_too_far(&self) -> bool {
        self.followers().mark(&self.journal, self.applier.applied_through())
    }

    /// Waits until nobody holds more than it may, or everything ends. They keep nothing back meanwhile.
    pub async fn wait_for_room(&self, health: &Health) {
        let followers = self.followers();
        let Some(told) = &followers.told else { return };
        let (mut watched, mut condition) = (told.subscribe(), health.watch());
        let _marked = Marked(followers);
        loop {
            watched.mark_unchanged();
            condition.mark_unchanged();
            let is_over = health.is_ending() || health.failure().is_some();
            if is_over || !self.is_too_far() {
                return;
            }
            followers.wake();
            tokio::select! {
                _moved = watched.changed() => {}
                _ended = condition.changed() => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::heard::Messages;

    #[tokio::test(start_paused = true)]
    async fn who_holds_up_the_work_is_named_once_a_wait_and_at_most_once_a_minute() {
        const WAITS: &[&str] = &["the work waits for a sink"];
        const GOES_ON: &[&str] = &["the work goes on"];
        let mut followed = Followed::new("slow", Position::default(), 10);
        let minute = 1_000 * SAID_AGAIN.as_secs();
        let steps = [
            (0, 10, false, &[][..]),
            (0, 11, true, WAITS),
            (0, 12, true, &[]),
            (0, 10, false, GOES_ON),
            (0, 10, false, &[]),
            // Again, and too soon to say so: nor is it said that this is over.
            (0, 11, true, &[]),
            (0, 10, false, &[]),
            (minute - 1, 11, true, &[]),
            // It still waits when that may be said, and is not named again while it does.
            (1, 11, true, WAITS),
            (minute, 11, true, &[]),
        ];
        let judge = |followed: &mut Followed, bytes| {
            let mut holds_up = false;
            let heard = Messages::of(|| holds_up = followed.judge(Lag { segments: 1, bytes }));
            (holds_up, heard)
        };
        for (step, (milliseconds, bytes, holds_up, said)) in steps.into_iter().enumerate() {
            tokio::time::advance(Duration::from_millis(milliseconds)).await;
            let (is_held, heard) = judge(&mut followed, bytes);
            assert_eq!(is_held, holds_up, "{step}");
            assert_eq!(heard, said, "{step}");
        }
        followed.ended = true;
        assert_eq!(judge(&mut followed, 11), (false, vec![GOES_ON[0].to_owned()]));
    }

    #[test]
    fn a_mark_is_news_when_it_is_put_on_and_when_it_is_taken_off() {
        let folder = tempfile::tempdir().unwrap();
        let labels = vec!["post".to_owned()];
        let mut journal = Journal::open(folder.path(), "id", labels, 1 << 30, 0).unwrap();
        journal.sealed.extend([(1, 6), (2, 4), (3, 1)]);
        let journal = Mutex::new(journal);
        let told = watch::Sender::new(vec![Followed::new("slow", Position::default(), 10)]);
        let mut watched = told.subscribe();
        let followers = Followers { told: Some(Arc::new(told)), ..Followers::default() };
        let mut is_news = || {
            let is_news = watched.has_changed().unwrap();
            watched.mark_unchanged();
            is_news
        };
        for (applied, is_held, is_told) in
            [(2, false, false), (3, true, true), (3, true, false), (2, false, true)]
        {
            assert_eq!(followers.mark(&journal, applied), is_held, "{applied}");
            assert_eq!((followers.hold_up(), is_news()), (is_held, is_told), "{applied}");
        }
        assert!(followers.mark(&journal, 3) && is_news());
        drop(Marked(&followers));
        assert!(!followers.hold_up() && is_news());
        drop(Marked(&followers));
        assert!(!is_news(), "there was none");
    }
}
