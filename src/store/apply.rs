//! The applier: a thread that brings sealed segments to every follower, in order.
//!
//! ```text
//!  sealed -> each sink, in transactions of its own, with its position -> the ledger -> (a quiet moment, or enough of them)
//!         -> settle: one commit at synchronous = FULL in every follower -> forget: the segments are removed
//! ```
//! A follower's position moves in the same transaction as what it took, so a crash anywhere leaves each follower at a place
//! from which it goes on. On start the ledger is brought up to date first, so that nothing done is fetched again; queues
//! follow in the background. A full disk is waited out; any other failure, a panic too, ends the process. Sinks that may be slow or away
//! follow on threads of their own (`store::follow`): a segment is removed once they have settled it, too.

use std::collections::BTreeMap;
use std::panic::AssertUnwindSafe;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::watch;

use crate::crash_point;
use crate::domain::account::Revision;
pub use crate::sink::{Position, Sink};
use crate::store::error::StoreError;
use crate::store::follow::Followers;
use crate::store::health::Health;
use crate::store::journal::Journal;
use crate::store::segment::SegmentReader;
use crate::telemetry::{self, Stopwatch};

/// Segments applied before they are settled together: a settle costs a sync in every follower, a segment about 8 MiB of
/// journal space.
const SETTLE_SEGMENTS: u64 = 16;

/// Nothing new for this long: settle what was applied.
const SETTLE_QUIET_MILLISECONDS: u64 = 500;

/// Who waits, in the log, when the disk is full.
const WRITER: &str = "queues";

/// Its name, for the system and for whoever reads that it crashed.
const THREAD: &str = "applier";

/// DID and edition of an account's export.
pub type Export = (String, u32);

/// The ledger as a follower.
pub trait LedgerFollower: Send {
    /// Last segment that it has taken.
    fn position(&self) -> u64;

    /// Which of the accounts of `segment`, an earlier segment brought already. Answers the same before and after
    /// [`LedgerFollower::apply`], until the segment is settled.
    ///
    /// # Errors
    /// [`StoreError`].
    fn repeats(&mut self, segment: u64, exports: Vec<Export>) -> Result<Vec<usize>, StoreError>;

    /// Marks the accounts of a segment done.
    ///
    /// # Errors
    /// [`StoreError`].
    fn apply(&mut self, segment: u64, revisions: Vec<Revision>) -> Result<(), StoreError>;

    /// Marks the accounts of a segment that were forgotten, whose items nobody gets; says whether there are any.
    ///
    /// # Errors
    /// [`StoreError`].
    fn mark_forgotten(&self, _segment: &mut SegmentReader) -> Result<bool, StoreError> {
        Ok(false)
    }

    /// Makes that durable and remembers where each queue file is.
    ///
    /// # Errors
    /// [`StoreError`].
    fn settle(&mut self, positions: Vec<(String, Position)>) -> Result<(), StoreError>;
}

/// How far the applier is.
#[derive(Clone, Debug, Default)]
pub struct Progress {
    /// Last segment that every follower has taken.
    pub applied: u64,
    /// Last segment that was forgotten.
    pub forgotten: u64,
    /// Accounts of the applied segments that every follower passes over, by segment.
    pub passed_over: BTreeMap<u64, Vec<usize>>,
    /// It has ended, well or not.
    pub ended: bool,
}

/// Wakes the applier and shows how far it is; cheap to clone.
#[derive(Clone, Debug)]
pub struct Applier {
    wake: SyncSender<Command>,
    progress: watch::Receiver<Progress>,
    followers: Followers,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Command {
    Look,
    Stop,
    /// End without another write: something has failed.
    Abandon,
}

impl Applier {
    /// Brings the ledger up to date, then starts the thread.
    ///
    /// # Errors
    /// [`StoreError`] of the ledger's catching up, or if the thread cannot be started.
    pub fn start(
        journal: Arc<Mutex<Journal>>,
        sinks: Vec<Box<dyn Sink>>,
        ledger: Box<dyn LedgerFollower>,
        health: Health,
    ) -> Result<(Self, std::thread::JoinHandle<()>), StoreError> {
        Self::start_beside(Followers::default(), journal, sinks, ledger, health)
    }

    /// The same, beside `followers`, whose positions the ledger remembers and without whom no segment is removed.
    ///
    /// # Errors
    /// As [`Applier::start`].
    pub fn start_beside(
        followers: Followers,
        journal: Arc<Mutex<Journal>>,
        sinks: Vec<Box<dyn Sink>>,
        mut ledger: Box<dyn LedgerFollower>,
        health: Health,
    ) -> Result<(Self, std::thread::JoinHandle<()>), StoreError> {
        while let Some(segment) = lock(&journal).next_after(ledger.position())? {
            take_into_ledger(ledger.as_mut(), &segment)?;
        }
        // One waiting wake-up is enough for any number of segments; a second place is for the stop.
        let (wake, woken) = sync_channel(2);
        let begun = lock(&journal).forgotten();
        let first = Progress { applied: begun, forgotten: begun, ..Progress::default() };
        let (progress, watched) = watch::channel(first);
        let (applied, settled, beside) = (begun, begun, followers.clone());
        let thread = Thread {
            journal,
            sinks,
            followers: beside,
            ledger,
            health,
            progress,
            applied,
            settled,
        };
        let named = std::thread::Builder::new().name(THREAD.to_owned());
        let path = std::path::Path::new("applier thread");
        let joined =
            named.spawn(move || thread.run(&woken)).map_err(|error| StoreError::io(path, error))?;
        let applier = Self { wake, progress: watched, followers };
        applier.wake();
        Ok((applier, joined))
    }

    /// Says that there may be new segments.
    pub fn wake(&self) {
        let _already_awake = self.wake.try_send(Command::Look);
        self.followers.wake();
    }

    /// Settles, closes the sinks and ends the thread.
    pub fn stop(&self) {
        let _ended = self.wake.send(Command::Stop);
    }

    /// Ends the thread without another write: something has failed.
    pub fn abandon(&self) {
        let _ended = self.wake.send(Command::Abandon);
    }

    /// How far it is.
    #[must_use]
    pub fn progress(&self) -> watch::Receiver<Progress> {
        self.progress.clone()
    }

    /// Last segment that the queues and the ledger have.
    #[must_use]
    pub fn applied_through(&self) -> u64 {
        self.progress.borrow().applied
    }

    /// The sinks on threads of their own.
    #[must_use]
    pub const fn followers(&self) -> &Followers {
        &self.followers
    }

    /// Leaves out of `segment` what nobody gets; `false` if the ledger does not have it yet, because that is not known before.
    #[must_use]
    pub fn pass_over(&self, segment: &mut SegmentReader) -> bool {
        let progress = self.progress.borrow();
        if let Some(accounts) = progress.passed_over.get(&segment.number) {
            segment.pass_over(accounts);
        }
        segment.number <= progress.applied
    }

    /// Waits until every follower has taken `segment`, or the applier has failed.
    pub async fn applied(&self, segment: u64) {
        let mut progress = self.progress.clone();
        let _ended = progress.wait_for(|it| it.applied >= segment || it.ended).await;
    }

    /// Waits until journal space has been given back since `forgotten`.
    pub async fn forgotten_after(&self, forgotten: u64) {
        let mut progress = self.progress.clone();
        let _ended = progress.wait_for(|it| it.forgotten > forgotten || it.ended).await;
    }
}

struct Thread {
    journal: Arc<Mutex<Journal>>,
    sinks: Vec<Box<dyn Sink>>,
    followers: Followers,
    ledger: Box<dyn LedgerFollower>,
    health: Health,
    progress: watch::Sender<Progress>,
    applied: u64,
    settled: u64,
}

impl Thread {
    fn run(mut self, woken: &Receiver<Command>) {
        let followed = std::panic::catch_unwind(AssertUnwindSafe(|| self.follow(woken)));
        // Nothing is written after a panic, and the segments are still there.
        let crashed = |_| Err(StoreError::Crashed { thread: THREAD });
        if let Err(error) = followed.unwrap_or_else(crashed) {
            self.health.fail(error);
        }
        self.progress.send_modify(|progress| progress.ended = true);
    }

    fn follow(&mut self, woken: &Receiver<Command>) -> Result<(), StoreError> {
        loop {
            let wait = Duration::from_millis(SETTLE_QUIET_MILLISECONDS);
            let command = woken.recv_timeout(wait);
            while self.apply_next()? {
                if self.applied - self.settled >= SETTLE_SEGMENTS {
                    self.settle()?;
                }
            }
            match command {
                Ok(Command::Look) => {}
                Err(RecvTimeoutError::Timeout) => {
                    if self.applied > self.settled || self.may_forget() {
                        self.settle()?;
                    }
                    lock(&self.journal).remove_spares()?;
                }
                Ok(Command::Abandon) => return Ok(()),
                Ok(Command::Stop) | Err(RecvTimeoutError::Disconnected) => {
                    self.settle()?;
                    lock(&self.journal).remove_spares()?;
                    return self.sinks.iter_mut().try_for_each(|sink| sink.close());
                }
            }
        }
    }

    fn apply_next(&mut self) -> Result<bool, StoreError> {
        let (journal, applied) = (&self.journal, self.applied);
        let next = self.health.wait_out(WRITER, || lock(journal).next_after(applied))?;
        let Some(mut segment) = next else { return Ok(false) };
        let applying = Stopwatch::start();
        self.pass_over(&mut segment)?;
        let health = self.health.clone();
        for index in 0..self.sinks.len() {
            health.wait_out(WRITER, || {
                let applied = self.sinks[index].apply(&segment);
                if applied.as_ref().is_err_and(StoreError::is_full) {
                    self.make_room();
                }
                applied
            })?;
            // One follower has the segment, others do not: each goes on from its own position.
            crash_point!(SinkAppliedBeforeLedger);
        }
        if segment.number > self.ledger.position() {
            let ledger = self.ledger.as_mut();
            self.health.wait_out(WRITER, || take_into_ledger(ledger, &segment))?;
        }
        // Everyone has it, nobody has synced it: the segment is still there.
        crash_point!(SegmentAppliedBeforeSettle);
        telemetry::applied(applying);
        self.applied = segment.number;
        self.progress.send_modify(|progress| progress.applied = segment.number);
        self.followers.wake();
        Ok(true)
    }

    /// What every follower passes over: an account that was exported twice, because whoever asked for it was restarted, and one that
    /// was forgotten meanwhile.
    fn pass_over(&mut self, segment: &mut SegmentReader) -> Result<(), StoreError> {
        let revisions = segment.table.accounts.iter().map(|account| &account.revision);
        let exports: Vec<_> = revisions.map(|it| (it.did.clone(), it.edition)).collect();
        let (ledger, number) = (self.ledger.as_mut(), segment.number);
        let repeats = self.health.wait_out(WRITER, || ledger.repeats(number, exports.clone()))?;
        segment.pass_over(&repeats);
        if self.ledger.mark_forgotten(segment)? {
            lock(&self.journal).want_wiped(number);
        }
        let passed_over = segment.passed_over();
        if !passed_over.is_empty() {
            self.progress.send_modify(|it| drop(it.passed_over.insert(number, passed_over)));
        }
        Ok(())
    }

    /// Gives back what can be had without new space: the WALs, and the segments that everybody has.
    fn make_room(&mut self) {
        self.sinks.iter_mut().for_each(|sink| sink.shrink());
        if self.applied == self.settled {
            return;
        }
        let settled = self.sinks.iter_mut().map(|sink| sink.settle());
        // If that needs space too, the segments stay: the next try comes with the next look at the disk.
        if let Ok(positions) = settled.collect::<Result<Vec<_>, StoreError>>()
            && let Err(error) = self.forget(positions.concat())
        {
            tracing::debug!(%error, "no segment could be forgotten");
        }
    }

    fn settle(&mut self) -> Result<(), StoreError> {
        let mut positions = Vec::new();
        for sink in &mut self.sinks {
            positions.extend(self.health.wait_out(WRITER, || {
                let settled = sink.settle();
                if settled.as_ref().is_err_and(StoreError::is_full) {
                    sink.shrink();
                }
                settled
            })?);
        }
        self.forget(positions)
    }

    /// A follower has caught up since segments were last removed.
    fn may_forget(&self) -> bool {
        self.settled.min(self.followers.passed()) > self.progress.borrow().forgotten
    }

    /// Removes the segments that every sink has settled, once the ledger has too.
    fn forget(&mut self, mut positions: Vec<(String, Position)>) -> Result<(), StoreError> {
        // Looked at before the ledger remembers their positions: what is removed is never more than it knows.
        let passed = self.followers.passed();
        positions.extend(self.followers.positions());
        let ledger = self.ledger.as_mut();
        self.health.wait_out(WRITER, || ledger.settle(positions.clone()))?;
        // Everyone has synced it: the segment is no longer needed, and is skipped if it is found again.
        crash_point!(SettledBeforeForget);
        self.settled = self.applied;
        let settled = self.settled.min(passed);
        lock(&self.journal).forget_through(settled)?;
        self.progress.send_modify(|it| {
            it.forgotten = it.forgotten.max(settled);
            it.passed_over = it.passed_over.split_off(&(settled + 1));
        });
        Ok(())
    }
}

fn take_into_ledger(
    ledger: &mut dyn LedgerFollower,
    segment: &SegmentReader,
) -> Result<(), StoreError> {
    let revisions = segment.table.accounts.iter().map(|account| account.revision.clone());
    ledger.apply(segment.number, revisions.collect())
}

fn lock(journal: &Mutex<Journal>) -> std::sync::MutexGuard<'_, Journal> {
    journal.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::items::Item;

    type Log = Arc<Mutex<Vec<String>>>;

    const ID: &str = "0123456789abcdef0123456789abcdef";

    /// Tells the segment that it has at each settle.
    struct Told(u64, SyncSender<u64>);

    impl Sink for Told {
        fn begin(&mut self, start: &crate::sink::Start) -> Result<Position, StoreError> {
            Ok(start.known)
        }

        fn apply(&mut self, segment: &SegmentReader) -> Result<(), StoreError> {
            assert_ne!(segment.number, BUG, "a bug");
            self.0 = segment.number;
            Ok(())
        }

        fn settle(&mut self) -> Result<Vec<(String, Position)>, StoreError> {
            let _gone = self.1.send(self.0);
            Ok(Vec::new())
        }
    }

    /// The sink panics at this segment.
    const BUG: u64 = 41;

    /// Writes down what is asked of it.
    struct Heard(&'static str, Log);

    impl Heard {
        fn hear(&self, what: impl std::fmt::Display) {
            self.1.lock().unwrap().push(format!("{} {what}", self.0));
        }
    }

    impl Sink for Heard {
        fn apply(&mut self, segment: &SegmentReader) -> Result<(), StoreError> {
            self.hear(segment.number);
            Ok(())
        }

        fn settle(&mut self) -> Result<Vec<(String, Position)>, StoreError> {
            self.hear("settles");
            Ok(Vec::new())
        }

        fn shrink(&mut self) {
            self.hear("shrinks");
        }

        fn close(&mut self) -> Result<(), StoreError> {
            self.hear("closes");
            Ok(())
        }
    }

    /// The segments whose account an earlier one brought.
    const REPEATED: [u64; 2] = [2, 3];

    /// Remembers no more than where it is.
    struct Ledger(u64);

    impl LedgerFollower for Ledger {
        fn position(&self) -> u64 {
            self.0
        }

        fn repeats(&mut self, segment: u64, _: Vec<Export>) -> Result<Vec<usize>, StoreError> {
            Ok(if REPEATED.contains(&segment) { vec![0] } else { Vec::new() })
        }

        fn apply(&mut self, segment: u64, _: Vec<Revision>) -> Result<(), StoreError> {
            assert!(segment > self.0, "it has segment {segment}");
            self.0 = segment;
            Ok(())
        }

        fn settle(&mut self, _: Vec<(String, Position)>) -> Result<(), StoreError> {
            Ok(())
        }
    }

    fn seal(journal: &Mutex<Journal>, numbers: std::ops::RangeInclusive<u64>) {
        for number in numbers {
            let item = Item { queue: 0, records: 1, payload: format!("[{number}]").into() };
            let revision = Revision { did: number.to_string(), ..Revision::default() };
            let mut journal = lock(journal);
            journal.append_account(&revision, &[&item]).unwrap();
            journal.seal_group().unwrap();
        }
    }

    #[tokio::test]
    async fn settles_are_few_none_is_made_for_nothing_and_a_panic_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let labels = vec!["post".to_owned()];
        let journal = Journal::open(folder.path(), ID, labels, 1 << 30, 0).unwrap();
        let (journal, health) = (Arc::new(Mutex::new(journal)), Health::default());
        seal(&journal, 1..=40);
        let mut segment = lock(&journal).next_after(0).unwrap().unwrap();
        assert!(!Ledger(0).mark_forgotten(&mut segment).unwrap(), "it forgets nobody");
        // More than it ever settles.
        let (tell, told) = sync_channel(64);
        let sinks: Vec<Box<dyn Sink>> = vec![Box::new(Told(0, tell))];
        let (applier, thread) =
            Applier::start(Arc::clone(&journal), sinks, Box::new(Ledger(0)), health.clone())
                .unwrap();
        applier.applied(40).await;
        applier.forgotten_after(39).await;
        // Two as soon as 16 segments are there, one when nothing more comes, and none after that.
        let quiet = Duration::from_millis(3 * SETTLE_QUIET_MILLISECONDS);
        let settled: Vec<u64> = std::iter::from_fn(|| told.recv_timeout(quiet).ok()).collect();
        assert_eq!(settled, [16, 32, 40]);
        assert_eq!((lock(&journal).forgotten(), health.failure().is_none()), (40, true));
        seal(&journal, BUG..=BUG);
        applier.wake();
        applier.applied(BUG).await;
        thread.join().unwrap();
        let failure = health.failure();
        assert!(matches!(failure.as_deref(), Some(StoreError::Crashed { thread: "applier" })));
        let ends = |journal: &Journal| (journal.forgotten(), journal.newest());
        assert_eq!(ends(&lock(&journal)), (40, BUG), "it is there");
        // The next start goes on from there, and nobody waits for what is gone.
        let labels = vec!["post".to_owned()];
        let journal = Journal::open(folder.path(), ID, labels, 1 << 30, 40).unwrap();
        let (journal, health) = (Arc::new(Mutex::new(journal)), Health::default());
        let (applier, thread) =
            Applier::start(Arc::clone(&journal), Vec::new(), Box::new(Ledger(40)), health).unwrap();
        let begun = applier.progress().borrow().clone();
        assert!(begun.applied >= 40 && begun.forgotten >= 40, "{begun:?}");
        applier.applied(BUG).await;
        applier.stop();
        thread.join().unwrap();
        assert!(applier.progress().borrow().ended);
    }

    fn journal(folder: &tempfile::TempDir) -> Arc<Mutex<Journal>> {
        let labels = vec!["post".to_owned()];
        Arc::new(Mutex::new(Journal::open(folder.path(), ID, labels, 1 << 30, 0).unwrap()))
    }

    /// The applier's thread before it runs, with two sealed segments, and a sink that writes into the log.
    fn resting() -> (tempfile::TempDir, Arc<Mutex<Journal>>, Log, Thread) {
        let (folder, log) = (tempfile::tempdir().unwrap(), Log::default());
        let journal = journal(&folder);
        seal(&journal, 1..=2);
        let thread = Thread {
            journal: Arc::clone(&journal),
            sinks: vec![Box::new(Heard("sink", Arc::clone(&log)))],
            followers: Followers::default(),
            ledger: Box::new(Ledger(2)),
            health: Health::default(),
            progress: watch::Sender::default(),
            applied: 0,
            settled: 0,
        };
        (folder, journal, log, thread)
    }

    #[test]
    fn what_the_ledger_has_by_the_start_is_brought_to_the_sinks_alone() {
        let (_folder, journal, log, mut thread) = resting();
        seal(&journal, 3..=3);
        while thread.apply_next().unwrap() {}
        assert_eq!((thread.applied, thread.ledger.position()), (3, 3));
        assert_eq!(*log.lock().unwrap(), ["sink 1", "sink 2", "sink 3"]);
    }

    #[test]
    fn who_is_passed_over_is_known_until_the_segment_is_gone() {
        let (_folder, journal, _log, mut thread) = resting();
        let passed_over = |it: &Thread| it.progress.borrow().passed_over.clone();
        while thread.apply_next().unwrap() {}
        assert_eq!(passed_over(&thread), BTreeMap::from([(2, vec![0])]));
        // Applied beyond what is settled: that one is still there.
        seal(&journal, 3..=3);
        while thread.apply_next().unwrap() {}
        assert_eq!(passed_over(&thread).into_keys().collect::<Vec<_>>(), REPEATED);
        thread.settle().unwrap();
        assert_eq!((passed_over(&thread), lock(&journal).forgotten()), (BTreeMap::new(), 3));
    }

    #[test]
    fn room_is_what_sinks_can_shrink_by_and_the_segments_that_everybody_has() {
        let (_folder, journal, log, mut thread) = resting();
        let heard = || std::mem::take(&mut *log.lock().unwrap());
        thread.make_room();
        assert_eq!((heard(), lock(&journal).forgotten()), (vec!["sink shrinks".to_owned()], 0));
        while thread.apply_next().unwrap() {}
        assert_eq!(heard(), ["sink 1", "sink 2"]);
        thread.make_room();
        assert_eq!(heard(), ["sink shrinks", "sink settles"]);
        assert_eq!((lock(&journal).forgotten(), thread.progress.borrow().forgotten), (2, 2));
    }

    #[test]
    fn who_abandons_the_applier_ends_it_without_another_write() {
        for (is_abandoned, heard) in [(true, &[][..]), (false, &["sink settles", "sink closes"])] {
            let (folder, log) = (tempfile::tempdir().unwrap(), Log::default());
            let sinks: Vec<Box<dyn Sink>> = vec![Box::new(Heard("sink", Arc::clone(&log)))];
            let (journal, ledger) = (journal(&folder), Box::new(Ledger(0)));
            let (applier, thread) =
                Applier::start(journal, sinks, ledger, Health::default()).unwrap();
            if is_abandoned {
                applier.abandon();
            }
            // It also ends when nobody is left who could ask for anything.
            drop(applier);
            thread.join().unwrap();
            assert_eq!(*log.lock().unwrap(), heard);
        }
    }

    /// An applier as others have it, whose thread is the test.
    fn held() -> (Applier, Receiver<Command>, watch::Sender<Progress>) {
        let ((wake, woken), (progress, watched)) =
            (sync_channel(1), watch::channel(Progress::default()));
        (Applier { wake, progress: watched, followers: Followers::default() }, woken, progress)
    }

    #[test]
    fn whoever_wakes_the_applier_wakes_the_followers_and_never_waits() {
        let (mut applier, woken, _progress) = held();
        let (wake, follower_woken) = sync_channel(1);
        applier.followers.wakes.push(wake);
        applier.wake();
        applier.wake();
        assert_eq!(woken.try_iter().collect::<Vec<_>>(), [Command::Look]);
        assert_eq!(follower_woken.try_iter().count(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn space_is_waited_for_until_more_is_given_back_or_the_applier_ends() {
        let (applier, _woken, progress) = held();
        let is_there = async |forgotten| {
            let waiting = applier.forgotten_after(forgotten);
            tokio::time::timeout(Duration::from_secs(60), waiting).await.is_ok()
        };
        progress.send_modify(|it| it.forgotten = 7);
        assert!(is_there(6).await && !is_there(7).await && !is_there(8).await);
        progress.send_modify(|it| it.ended = true);
        assert!(is_there(8).await);
    }
}
