//! Followers: sinks beside the queues, each on a thread of its own, so that one that is slow or away holds up nobody else.
//!
//! ```text
//!  begin ──> position ──> segments after it, in order: apply ──16 of them, or a quiet moment──> settle ──> told to the applier
//!  busy or full disk: asked again every second, the others go on        any other error: the run ends, by the sink's name
//!  stop: what is sealed is still taken, for at most 20 s, then settle and close
//! ```
//! The ledger knows every sink that ever followed, by name. Work does not begin without one of them, because its rows would be
//! removed before it has had them; [`crate::store::ledger_rows::Rows::let_sink_go`] lets it go for good.

use std::collections::HashMap;
use std::panic::AssertUnwindSafe;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::sync::watch;

use crate::clock::{Clock, Instant};
use crate::sink::{Position, Sink, Start};
use crate::store::apply::Applier;
use crate::store::error::StoreError;
use crate::store::follow_names::check_names;
use crate::store::health::Health;
use crate::store::journal::Journal;
use crate::store::parkings::{Parkings, Teller};
use crate::store::segment::SegmentReader;

pub use crate::store::follow_names::ledger_label;
use crate::store::followers::Command;
pub use crate::store::followers::{Followed, Followers};

/// Segments taken before they are settled together, as the applier does it.
const SETTLE_SEGMENTS: u64 = 16;

/// What was taken and not settled is held in the journal: with this part of `lag_max` it is settled, too, so that the work does
/// not wait for what a sink has long had.
const SETTLE_SHARE: u64 = 4;

/// Nothing new for this long: settle what was taken, and look again.
const QUIET: Duration = Duration::from_millis(500);

/// A sink that takes nothing is asked again after this long.
const RETRY: Duration = Duration::from_secs(1);

/// When everything stops, a sink still takes what is sealed for this long; the rest comes with the next start.
const LAST_TAKE: Duration = Duration::from_secs(20);

/// A sink and the name that the ledger knows it by.
pub struct NamedSink {
    /// Small letters, digits, `-` and `_`.
    pub name: String,
    /// The sink.
    pub sink: Box<dyn Sink>,
    /// Bytes of segments that it may hold; `None`: as many as one without a setting may.
    pub lag_max: Option<u64>,
}

/// What the threads of sinks work with.
pub struct Around<'a> {
    /// Where they take from.
    pub journal: &'a Arc<Mutex<Journal>>,
    /// Who wakes them.
    pub applier: &'a Applier,
    /// Whom they tell of what fails.
    pub health: &'a Health,
    /// Their time.
    pub clock: &'a Clock,
    /// Accounts that were given up, for those that want to hear of them.
    pub parkings: Option<&'a Parkings>,
}

/// Followers that wait for the applier before they begin.
pub struct Waiting {
    /// What others see of them.
    pub followers: Followers,
    places: Vec<(Receiver<Command>, Start)>,
}

impl Waiting {
    /// Checks the names of `sinks`, each with the bytes of segments that it may hold, against the sinks that the ledger knows; a
    /// new one begins behind `forgotten`, the last segment that is gone.
    ///
    /// # Errors
    /// [`StoreError::Config`] for a name that is none or is there twice, and for a known sink that is not there.
    pub fn new(
        sinks: &[(String, u64)],
        known: &HashMap<String, Position>,
        forgotten: u64,
        directory: &str,
        labels: &[String],
    ) -> Result<Self, StoreError> {
        let names: Vec<&str> = sinks.iter().map(|(name, _)| name.as_str()).collect();
        check_names(&names, known)?;
        let (mut wakes, mut told, mut places) = (Vec::new(), Vec::new(), Vec::new());
        for (name, lag_max) in sinks {
            let known = known.get(&ledger_label(name)).copied();
            let known = known.unwrap_or_else(|| Position::after(forgotten));
            told.push(Followed::new(name, known, *lag_max));
            // One waiting wake-up is enough for any number of segments; a second place is for the stop.
            let (wake, woken) = sync_channel(2);
            wakes.push(wake);
            let (directory, labels) = (directory.to_owned(), labels.to_vec());
            places.push((woken, Start { directory, known, labels }));
        }
        let told = (!told.is_empty()).then(|| Arc::new(watch::Sender::new(told)));
        let is_finishing = Arc::default();
        Ok(Self { followers: Followers { wakes, is_finishing, told }, places })
    }

    /// Starts the threads of `sinks`, whose names were given in this order.
    ///
    /// # Errors
    /// The system's, if a thread cannot be started.
    pub fn start(
        self,
        sinks: Vec<NamedSink>,
        around: &Around<'_>,
    ) -> Result<Vec<JoinHandle<()>>, StoreError> {
        let threads = self.threads(sinks, around).into_iter();
        let spawned = threads.map(|(thread, start)| {
            let named = std::thread::Builder::new().name(format!("sink-{}", thread.name));
            let spawned = named.spawn(move || thread.run(&start));
            spawned.map_err(|error| StoreError::io(Path::new("sink thread"), error))
        });
        spawned.collect()
    }

    fn threads(self, sinks: Vec<NamedSink>, around: &Around<'_>) -> Vec<(Thread, Start)> {
        let Self { followers: Followers { told, is_finishing, .. }, places } = self;
        let Some(told) = told else { return Vec::new() };
        let placed = sinks.into_iter().zip(places).enumerate();
        let threads = placed.map(|(index, (named, (woken, start)))| {
            let NamedSink { name, sink, .. } = named;
            let lag_max = told.borrow()[index].lag_max;
            let parkings = around.parkings.filter(|_| sink.hears_of_parked()).cloned();
            let thread = Thread {
                index,
                name,
                sink,
                woken,
                told: Arc::clone(&told),
                journal: Arc::clone(around.journal),
                applier: around.applier.clone(),
                health: around.health.clone(),
                clock: around.clock.clone(),
                is_finishing: Arc::clone(&is_finishing),
                taken: start.known,
                settled: start.known,
                unsettled: Unsettled::default(),
                lag_max,
                teller: parkings.map(Parkings::teller),
                ends_at: None,
                is_over: false,
            };
            (thread, start)
        });
        threads.collect()
    }
}

/// Segments taken since the last settle, and their bytes.
#[derive(Clone, Copy, Debug, Default)]
struct Unsettled {
    segments: u64,
    bytes: u64,
}

impl Unsettled {
    /// With one of `bytes` more.
    fn with(self, bytes: u64) -> Self {
        Self { segments: self.segments + 1, bytes: self.bytes + bytes }
    }

    /// Whether it is to be settled before another segment is taken, of a sink that may hold `lag_max` bytes.
    fn is_enough(self, lag_max: u64) -> bool {
        self.segments >= SETTLE_SEGMENTS || self.bytes >= lag_max / SETTLE_SHARE
    }
}

struct Thread {
    index: usize,
    name: String,
    sink: Box<dyn Sink>,
    woken: Receiver<Command>,
    told: Arc<watch::Sender<Vec<Followed>>>,
    journal: Arc<Mutex<Journal>>,
    applier: Applier,
    health: Health,
    clock: Clock,
    is_finishing: Arc<AtomicBool>,
    taken: Position,
    settled: Position,
    unsettled: Unsettled,
    /// Bytes of segments that it may hold.
    lag_max: u64,
    /// Accounts that were given up, if the sink wants to hear of them.
    teller: Option<Teller>,
    /// Everything stops: until when segments are still taken.
    ends_at: Option<Instant>,
    /// Nothing is to be asked of the sink any more.
    is_over: bool,
}

impl Thread {
    fn run(mut self, start: &Start) {
        let followed = std::panic::catch_unwind(AssertUnwindSafe(|| self.follow(start)));
        let failed = match followed {
            Ok(Ok(())) => None,
            Ok(Err(error)) => Some(self.named(error)),
            Err(_) => Some(self.named(StoreError::sink("it panicked"))),
        };
        if let Some(error) = failed {
            self.health.fail(error);
        }
        self.tell(|it| it.ended = true);
        self.applier.wake();
    }

    fn follow(&mut self, start: &Start) -> Result<(), StoreError> {
        let Some(position) = self.patiently(|sink| sink.begin(start))? else { return Ok(()) };
        self.check(position)?;
        // What it has beyond what the ledger knows is settled like everything else, before it is told.
        self.taken = position;
        tracing::info!(sink = %self.name, segment = position.segment, "a sink follows");
        loop {
            while !self.is_over && self.has_time() && self.take_next()? {
                if self.unsettled.is_enough(self.lag_max) {
                    self.settle()?;
                }
            }
            if let Some(mut teller) = self.teller.take() {
                self.tell_parked(&mut teller)?;
                self.teller = Some(teller);
            }
            if self.is_over {
                return Ok(());
            }
            if self.ends_at.is_some() {
                self.settle_by(|sink| sink.finish())?;
                return self.patiently(|sink| sink.close()).map(drop);
            }
            if self.is_waited_for() {
                self.settle_rest()?;
            }
            let heard = self.woken.recv_timeout(QUIET);
            self.hear(heard)?;
        }
    }

    fn hear(&mut self, heard: Result<Command, RecvTimeoutError>) -> Result<(), StoreError> {
        match heard {
            Ok(Command::Look) => {}
            Ok(Command::Stop) => self.ends_at = Some(self.clock.now() + LAST_TAKE),
            Ok(Command::Abandon) | Err(RecvTimeoutError::Disconnected) => self.is_over = true,
            // What it has kept back is asked for again: it may be old enough by now.
            Err(RecvTimeoutError::Timeout) => self.settle_rest()?,
        }
        Ok(())
    }

    fn has_time(&self) -> bool {
        self.ends_at.is_none_or(|at| self.clock.now() < at)
    }

    /// Rows that the journal no longer has are missed, and rows that it never had are of another time.
    fn check(&self, position: Position) -> Result<(), StoreError> {
        let (forgotten, newest) = {
            let journal = lock(&self.journal);
            (journal.forgotten(), journal.newest())
        };
        if position > Position::after(newest) {
            let text = format!(
                "the sink {} is at segment {}, and this data directory ends at {newest}: it is older than the sink, or \
                 another one",
                self.name, position.segment
            );
            return Err(StoreError::Config(text));
        }
        self.misses_nothing(position, forgotten)
    }

    fn misses_nothing(&self, position: Position, forgotten: u64) -> Result<(), StoreError> {
        let passed = position.passed();
        if passed >= forgotten {
            return Ok(());
        }
        Err(StoreError::Config(format!(
            "the sink {} is at segment {passed}, and what follows is gone up to {forgotten}: rows are missing in it. Restore a \
             newer copy of it; or, if it was let go, give it a place where it is not yet (path, url or topics): it begins there \
             with what comes from now on",
            self.name
        )))
    }

    fn take_next(&mut self) -> Result<bool, StoreError> {
        let (next, bytes, forgotten) = {
            let journal = lock(&self.journal);
            let next = journal.next_after(self.taken.passed())?;
            let bytes = next.as_ref().and_then(|it| journal.sealed.get(&it.number).copied());
            (next, bytes.unwrap_or(0), journal.forgotten())
        };
        // Nobody removes what is not settled here: a gap is never passed over in silence.
        self.misses_nothing(self.taken, forgotten)?;
        let Some(mut segment) = next else { return Ok(false) };
        if !self.applier.pass_over(&mut segment) {
            return Ok(false);
        }
        if self.patiently(|sink| sink.apply(&segment))?.is_none() {
            return Ok(false);
        }
        self.taken = SegmentReader::end(&segment);
        self.unsettled = self.unsettled.with(bytes);
        Ok(true)
    }

    /// Tells of accounts that were given up, while the sink has everything that is sealed: an export that the ledger knows of,
    /// which may be older than the parking, is then told before it, and a later one after it.
    fn tell_parked(&mut self, teller: &mut Teller) -> Result<(), StoreError> {
        while !self.is_over && self.has_time() {
            let page = teller.page()?;
            // Looked at after the ledger: what is sealed by now was before, or is later than what was read there.
            if page.is_empty() || lock(&self.journal).newest() > self.taken.passed() {
                return Ok(());
            }
            if self.patiently(|sink| sink.parked(&page))?.is_none() {
                return Ok(());
            }
            teller.told();
        }
        Ok(())
    }

    /// Whether somebody waits for what it has, so that nothing is kept back: the end of a run, or work that it holds up.
    fn is_waited_for(&self) -> bool {
        self.is_finishing.load(Ordering::Acquire) || self.told.borrow()[self.index].holds_up
    }

    /// Asks for what was taken and is not settled, if there is anything.
    fn settle_rest(&mut self) -> Result<(), StoreError> {
        if self.settled < self.taken { self.settle() } else { Ok(()) }
    }

    fn settle(&mut self) -> Result<(), StoreError> {
        match self.is_waited_for() {
            true => self.settle_by(|sink| sink.finish()),
            false => self.settle_by(|sink| sink.settle()),
        }
    }

    fn settle_by(
        &mut self,
        settle: impl FnMut(&mut dyn Sink) -> Result<Vec<(String, Position)>, StoreError>,
    ) -> Result<(), StoreError> {
        let Some(parts) = self.patiently(settle)? else { return Ok(()) };
        let least = parts.into_iter().map(|(_, position)| position).min();
        let settled = least.unwrap_or(self.taken).min(self.taken);
        self.unsettled = Unsettled::default();
        if settled <= self.settled {
            return Ok(());
        }
        self.settled = settled;
        self.tell(|it| it.settled = it.settled.max(settled));
        // What everybody has can be removed, which somebody may be waiting for.
        self.applier.wake();
        Ok(())
    }

    /// Asks the sink until it answers otherwise than with trouble that may pass; `None`: the end came first.
    fn patiently<T>(
        &mut self,
        mut ask: impl FnMut(&mut dyn Sink) -> Result<T, StoreError>,
    ) -> Result<Option<T>, StoreError> {
        loop {
            let error = match ask(self.sink.as_mut()) {
                Err(error) if error.is_full() || matches!(error, StoreError::Busy { .. }) => error,
                answered => {
                    self.wait_for(None);
                    return answered.map(Some);
                }
            };
            self.wait_for(Some(self.named(error).to_string()));
            // The end does not wait for it any longer; the next start goes on where it is.
            self.is_over |= !self.has_time();
            if self.is_over {
                return Ok(None);
            }
            self.sink.shrink();
            let until = self.clock.now() + RETRY;
            while let left = until.saturating_duration_since(self.clock.now())
                && !left.is_zero()
            {
                match self.woken.recv_timeout(left) {
                    Ok(Command::Look) | Err(RecvTimeoutError::Timeout) => {}
                    // It may wait for long: whoever stops does not wait with it.
                    Ok(Command::Stop | Command::Abandon) | Err(RecvTimeoutError::Disconnected) => {
                        self.is_over = true;
                        return Ok(None);
                    }
                }
            }
        }
    }

    fn wait_for(&self, what: Option<String>) {
        let was = self.told.borrow()[self.index].waits.clone();
        match (&was, &what) {
            (None, Some(error)) => {
                tracing::warn!(sink = %self.name, %error, "a sink waits, the others go on");
            }
            (Some(_), None) => tracing::info!(sink = %self.name, "a sink goes on"),
            _ => {}
        }
        if was != what {
            self.tell(|it| it.waits = what);
        }
    }

    fn named(&self, error: StoreError) -> StoreError {
        let name = self.name.clone();
        match error {
            StoreError::Sink { source, .. } => StoreError::Sink { name, source },
            StoreError::Busy { source, .. } => StoreError::Busy { name, source },
            error => error,
        }
    }

    fn tell(&self, change: impl FnOnce(&mut Followed)) {
        self.told.send_modify(|all| change(&mut all[self.index]));
    }
}

fn lock(journal: &Mutex<Journal>) -> std::sync::MutexGuard<'_, Journal> {
    journal.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::sync::MutexGuard;

    use super::*;
    use crate::config::targets::Target;
    use crate::domain::account::Revision;
    use crate::sink::Parked;
    use crate::store::apply::{Export, LedgerFollower};
    use crate::store::followers::{Following, Lag};
    use crate::store::heard::Messages;
    use crate::store::items::Item;
    use crate::store::ledger_rows::{Rows, opened};
    use crate::store::listing::Staged;

    const ID: &str = "0123456789abcdef0123456789abcdef";

    /// The segment whose account the ledger knows from an earlier one.
    const REPEATED: u64 = 3;

    /// Remembers what the applier tells it, as `state.db` does.
    #[derive(Clone, Default)]
    struct Ledger(Arc<Mutex<(u64, HashMap<String, Position>)>>);

    impl LedgerFollower for Ledger {
        fn position(&self) -> u64 {
            self.0.lock().unwrap().0
        }

        fn repeats(&mut self, segment: u64, _: Vec<Export>) -> Result<Vec<usize>, StoreError> {
            Ok(if segment == REPEATED { vec![0] } else { Vec::new() })
        }

        fn apply(&mut self, segment: u64, _: Vec<Revision>) -> Result<(), StoreError> {
            self.0.lock().unwrap().0 = segment;
            Ok(())
        }

        fn settle(&mut self, positions: Vec<(String, Position)>) -> Result<(), StoreError> {
            self.0.lock().unwrap().1.extend(positions);
            Ok(())
        }
    }

    /// What a sink holds, and how often it is still to refuse.
    #[derive(Default)]
    struct Held {
        rows: Vec<String>,
        position: Position,
        refusals: u32,
        is_shut: bool,
        is_absent: bool,
        settles_never: bool,
        /// Settled positions stay here until the sink is asked to finish.
        keeps_back: Option<Position>,
        /// What it was asked to do.
        calls: Vec<&'static str>,
    }

    /// A sink whose position is with its rows, or is not.
    #[derive(Clone, Default)]
    struct Memory {
        held: Arc<Mutex<Held>>,
        keeps_no_position: bool,
    }

    impl Memory {
        fn called(&self, what: &'static str) -> MutexGuard<'_, Held> {
            let mut held = self.held.lock().unwrap();
            held.calls.push(what);
            held
        }

        /// What it was asked to do since this was last looked at.
        fn calls(&self) -> Vec<&'static str> {
            std::mem::take(&mut self.held.lock().unwrap().calls)
        }
    }

    impl Sink for Memory {
        fn begin(&mut self, start: &Start) -> Result<Position, StoreError> {
            let mut held = self.called("begin");
            assert_eq!(start.directory, ID);
            if held.is_absent {
                return Err(StoreError::busy("not there yet"));
            }
            if self.keeps_no_position || held.position == Position::default() {
                held.position = start.known;
            }
            Ok(held.position)
        }

        fn apply(&mut self, segment: &SegmentReader) -> Result<(), StoreError> {
            let mut held = self.called("apply");
            let mut buffer = Vec::new();
            for item in segment.items_from(held.position) {
                if held.refusals > 0 {
                    held.refusals -= 1;
                    return Err(StoreError::busy("a broker that is away"));
                }
                if held.is_shut {
                    return Err(StoreError::sink("shut"));
                }
                assert_eq!(item.label, "post");
                held.rows.push(item.payload(&mut buffer)?.to_owned());
                held.position = item.after;
            }
            held.position = segment.end();
            Ok(())
        }

        fn settle(&mut self) -> Result<Vec<(String, Position)>, StoreError> {
            let held = self.called("settle");
            if held.settles_never {
                return Err(StoreError::busy("not now"));
            }
            Ok(vec![(String::new(), held.keeps_back.unwrap_or(held.position))])
        }

        fn hears_of_parked(&self) -> bool {
            true
        }

        fn parked(&mut self, accounts: &[Parked]) -> Result<(), StoreError> {
            let mut held = self.called("parked");
            held.rows.extend(accounts.iter().map(|it| format!("{} {}", it.did, it.reason)));
            Ok(())
        }

        fn finish(&mut self) -> Result<Vec<(String, Position)>, StoreError> {
            Ok(vec![(String::new(), self.called("finish").position)])
        }

        fn shrink(&mut self) {
            drop(self.called("shrink"));
        }

        fn close(&mut self) -> Result<(), StoreError> {
            drop(self.called("close"));
            Ok(())
        }
    }

    fn sinks(name: &str, sink: &Memory) -> Vec<NamedSink> {
        let (name, sink) = (name.to_owned(), Box::new(sink.clone()));
        vec![NamedSink { name, sink, lag_max: None }]
    }

    struct Bench {
        folder: tempfile::TempDir,
        ledger: Ledger,
        clock: Clock,
        sealed: u64,
        lag_max: u64,
        parkings: Option<Parkings>,
    }

    struct Running {
        journal: Arc<Mutex<Journal>>,
        applier: Applier,
        followers: Followers,
        health: Health,
        threads: Vec<JoinHandle<()>>,
    }

    impl Bench {
        fn new() -> Self {
            let folder = tempfile::tempdir().unwrap();
            let ledger = Ledger::default();
            let clock = Clock::system();
            Self { folder, ledger, clock, sealed: 0, lag_max: u64::MAX, parkings: None }
        }

        fn start(&self, name: &str, sink: &Memory) -> Result<Running, StoreError> {
            let (waiting, mut running) = self.begin(name)?;
            let threads = waiting.start(sinks(name, sink), &self.around(&running))?;
            running.threads.extend(threads);
            Ok(running)
        }

        /// The thread of `sink` before it runs, with everything around it; it hears `commands`, and that nobody is left.
        fn resting(&self, sink: &Memory, commands: &[Command]) -> (Thread, Start, Running) {
            let (waiting, running) = self.begin("memory").unwrap();
            let mut threads = waiting.threads(sinks("memory", sink), &self.around(&running));
            let (mut thread, start) = threads.pop().unwrap();
            let (wake, woken) = sync_channel(commands.len());
            commands.iter().for_each(|command| wake.send(*command).unwrap());
            thread.woken = woken;
            (thread, start, running)
        }

        fn around<'a>(&'a self, running: &'a Running) -> Around<'a> {
            let Running { journal, applier, health, .. } = running;
            Around {
                journal,
                applier,
                health,
                clock: &self.clock,
                parkings: self.parkings.as_ref(),
            }
        }

        /// All but the sink's thread.
        fn begin(&self, name: &str) -> Result<(Waiting, Running), StoreError> {
            let labels = vec!["post".to_owned()];
            let known = self.ledger.0.lock().unwrap().clone();
            let journal = Journal::open(self.folder.path(), ID, labels.clone(), 1 << 30, known.0)?;
            let names = [(name.to_owned(), self.lag_max)];
            let waiting = Waiting::new(&names, &known.1, journal.forgotten(), ID, &labels)?;
            let (journal, health) = (Arc::new(Mutex::new(journal)), Health::default());
            let followers = waiting.followers.clone();
            let mut ledger = Box::new(self.ledger.clone());
            ledger.settle(followers.positions())?;
            let (applier, thread) = Applier::start_beside(
                followers.clone(),
                Arc::clone(&journal),
                Vec::new(),
                ledger,
                health.clone(),
            )?;
            let threads = vec![thread];
            Ok((waiting, Running { journal, applier, followers, health, threads }))
        }

        /// An account that was given up, of which the sink is told; the ledger that has it.
        fn park(&mut self) -> Rows {
            let (folder, path) = (self.folder.path(), self.folder.path().join("state.db"));
            let mut rows = opened(folder, self.clock.clone());
            let malformed =
                Target::Malformed { cleaned: "did:plc:BAD".into(), detail: "x:1".into() };
            let list = std::iter::once(Ok::<_, StoreError>(malformed));
            let staged = Staged::read(folder, list, &|_| {}).unwrap().unwrap();
            staged.know(&mut rows, &|_| {}).unwrap().swap(&mut rows, &|_| {}).unwrap();
            self.parkings = Some(Parkings::of(&mut rows, &path, folder, None).unwrap());
            rows
        }

        /// Seals `count` segments of one account with two items each; gives their rows.
        fn seal(&mut self, running: &Running, count: u64) -> Vec<String> {
            let mut rows = Vec::new();
            for _ in 0..count {
                self.sealed += 1;
                let payload = |part| format!("[\"{} {part}\"]", self.sealed);
                let item = |part| Item { queue: 0, records: 1, payload: payload(part).into() };
                let revision = Revision { did: self.sealed.to_string(), ..Revision::default() };
                let mut journal = running.journal.lock().unwrap();
                journal.append_account(&revision, &[&item(1), &item(2)]).unwrap();
                journal.seal_group().unwrap();
                if self.sealed != REPEATED {
                    rows.extend([payload(1), payload(2)]);
                }
            }
            running.applier.wake();
            rows
        }
    }

    impl Running {
        async fn all_is_passed(&self) {
            let newest = lock(&self.journal).newest();
            self.followers.passed_by(newest).await;
        }

        async fn stop(self) -> Health {
            // As the pipeline does it: they take what the applier has taken.
            let newest = lock(&self.journal).newest();
            self.applier.applied(newest).await;
            self.followers.stop();
            self.followers.passed_by(u64::MAX).await;
            self.end()
        }

        fn end(self) -> Health {
            self.applier.stop();
            self.threads.into_iter().for_each(|thread| thread.join().unwrap());
            self.health
        }
    }

    #[tokio::test]
    async fn a_sink_that_waits_keeps_its_segments_and_misses_nothing() {
        let (mut bench, sink) = (Bench::new(), Memory::default());
        sink.held.lock().unwrap().refusals = 1;
        let running = bench.start("memory", &sink).unwrap();
        let rows = bench.seal(&running, 3);
        running.applier.applied(3).await;
        let is_waiting = |it: &Followed| it.waits.is_some();
        let mut told = running.followers.told.as_ref().unwrap().subscribe();
        told.wait_for(|all| all.iter().all(is_waiting)).await.unwrap();
        assert_eq!((running.followers.passed(), lock(&running.journal).forgotten()), (0, 0));
        running.all_is_passed().await;
        running.applier.forgotten_after(2).await;
        assert_eq!(sink.held.lock().unwrap().rows, rows);
        let more = bench.seal(&running, 40);
        // As whoever stops a pipeline does: followers take what the queues have.
        running.applier.applied(43).await;
        let health = running.stop().await;
        assert!(health.failure().is_none());
        assert_eq!(sink.held.lock().unwrap().rows, [rows, more].concat());
        assert_eq!(bench.ledger.0.lock().unwrap().1["sink:memory"], Position::after(43));
    }

    #[test]
    fn that_a_sink_waits_and_goes_on_is_said_once() {
        let (bench, sink) = (Bench::new(), Memory::default());
        let (thread, _start, running) = bench.resting(&sink, &[]);
        let said = |what: Option<&str>| Messages::of(|| thread.wait_for(what.map(str::to_owned)));
        let waits = || thread.told.borrow()[0].waits.clone();
        assert_eq!(said(None), Vec::<String>::new());
        assert_eq!(said(Some("away")), ["a sink waits, the others go on"]);
        assert_eq!((said(Some("away")), waits().as_deref()), (vec![], Some("away")));
        assert_eq!((said(Some("busy")), waits().as_deref()), (vec![], Some("busy")));
        assert_eq!(said(None), ["a sink goes on"]);
        assert_eq!((said(None), waits()), (vec![], None));
        running.end();
    }

    #[test]
    fn what_was_taken_is_settled_with_so_many_segments_or_a_share_of_what_may_be_held() {
        let taken = |segments: u64, bytes| {
            (0..segments).fold(Unsettled::default(), |taken, _| taken.with(bytes))
        };
        for (segments, bytes, lag_max, is_enough) in [
            (0, 0, 400, false),
            (SETTLE_SEGMENTS - 1, 1, 400, false),
            (SETTLE_SEGMENTS, 1, 400, true),
            (3, 33, 400, false),
            (4, 25, 400, true),
            (1, 100, 400, true),
            (1, 100, u64::MAX, false),
        ] {
            let taken = taken(segments, bytes);
            assert_eq!(taken.is_enough(lag_max), is_enough, "{taken:?} of {lag_max}");
        }
    }

    #[tokio::test]
    async fn a_sink_settles_what_it_has_taken_and_is_not_asked_for_nothing() {
        let sixteen = ["apply"; 16];
        for (is_finishing, then) in [
            (false, &["settle", "apply", "finish", "close"][..]),
            // Nothing is kept back, and the rest is not held until the end.
            (true, &["finish", "apply", "finish", "finish", "close"]),
        ] {
            let (mut bench, sink) = (Bench::new(), Memory::default());
            let commands = [Command::Look, Command::Look, Command::Stop];
            let (mut thread, start, running) = bench.resting(&sink, &commands);
            bench.seal(&running, 17);
            running.applier.applied(17).await;
            running.followers.is_finishing.store(is_finishing, Ordering::Release);
            thread.follow(&start).unwrap();
            assert_eq!(sink.calls(), [&["begin"], &sixteen[..], then].concat());
            assert_eq!(running.followers.passed(), 17);
            running.end();
        }
    }

    #[tokio::test]
    async fn a_quiet_moment_is_for_what_was_taken_and_is_not_settled() {
        let (mut bench, sink) = (Bench::new(), Memory::default());
        let (mut thread, _start, running) = bench.resting(&sink, &[]);
        bench.seal(&running, 1);
        running.applier.applied(1).await;
        let quiet = |thread: &mut Thread| {
            thread.hear(Err(RecvTimeoutError::Timeout)).unwrap();
            sink.calls()
        };
        assert_eq!(quiet(&mut thread), [""; 0]);
        assert!(thread.take_next().unwrap());
        assert_eq!(quiet(&mut thread), ["apply", "settle"]);
        assert_eq!(quiet(&mut thread), [""; 0]);
        assert!(!thread.is_over);
        thread.hear(Err(RecvTimeoutError::Disconnected)).unwrap();
        assert!(thread.is_over, "nobody is left who could stop it");
        running.end();
    }

    #[tokio::test(start_paused = true)]
    async fn after_the_stop_a_sink_has_a_while_and_one_that_is_busy_then_is_not_asked_again() {
        let (mut bench, sink) = (Bench::new(), Memory::default());
        let (mut thread, _start, running) = bench.resting(&sink, &[]);
        bench.seal(&running, 1);
        running.applier.applied(1).await;
        tokio::time::advance(2 * LAST_TAKE).await;
        assert!(thread.has_time(), "nothing has stopped");
        thread.hear(Ok(Command::Stop)).unwrap();
        let last = Duration::from_millis(1);
        tokio::time::advance(LAST_TAKE - last).await;
        assert!(thread.has_time());
        tokio::time::advance(last).await;
        assert!(!thread.has_time());
        sink.held.lock().unwrap().refusals = 1;
        assert!(!thread.take_next().unwrap() && thread.is_over);
        assert_eq!(sink.calls(), ["apply"]);
        running.end();
    }

    #[test]
    fn nobody_is_told_of_after_the_end() {
        let (mut bench, sink) = (Bench::new(), Memory::default());
        let _rows = bench.park();
        let (mut thread, _start, running) = bench.resting(&sink, &[]);
        let mut teller = thread.teller.take().unwrap();
        let now = thread.clock.now();
        for (is_over, ends_at, calls) in
            [(true, None, &[][..]), (false, Some(now), &[]), (false, None, &["parked"])]
        {
            (thread.is_over, thread.ends_at) = (is_over, ends_at);
            thread.tell_parked(&mut teller).unwrap();
            assert_eq!(sink.calls(), calls);
        }
        running.end();
    }

    #[tokio::test]
    async fn a_sink_that_fails_ends_everything_by_its_name_and_goes_on_where_it_was() {
        let (mut bench, sink) = (Bench::new(), Memory::default());
        let running = bench.start("memory", &sink).unwrap();
        let rows = bench.seal(&running, 2);
        running.all_is_passed().await;
        sink.held.lock().unwrap().is_shut = true;
        let lost = bench.seal(&running, 2);
        running.all_is_passed().await;
        let health = running.stop().await;
        let failure = health.failure().unwrap().to_string();
        assert_eq!(failure, "sink memory: shut");
        assert_eq!(sink.held.lock().unwrap().rows, rows);
        sink.held.lock().unwrap().is_shut = false;
        let running = bench.start("memory", &sink).unwrap();
        running.all_is_passed().await;
        assert!(running.stop().await.failure().is_none());
        assert_eq!(sink.held.lock().unwrap().rows, [rows, lost].concat());
    }

    #[tokio::test]
    async fn what_a_sink_without_a_position_had_not_settled_comes_again() {
        let mut bench = Bench::new();
        let sink = Memory { keeps_no_position: true, ..Memory::default() };
        sink.held.lock().unwrap().settles_never = true;
        let running = bench.start("memory", &sink).unwrap();
        let rows = bench.seal(&running, 1);
        let mut told = running.followers.told.as_ref().unwrap().subscribe();
        told.wait_for(|all| all.iter().all(|it| it.waits.is_some())).await.unwrap();
        running.followers.abandon();
        running.followers.passed_by(u64::MAX).await;
        running.applier.abandon();
        sink.held.lock().unwrap().settles_never = false;
        let running = bench.start("memory", &sink).unwrap();
        let more = bench.seal(&running, 1);
        running.all_is_passed().await;
        running.stop().await;
        assert_eq!(sink.held.lock().unwrap().rows, [rows.clone(), rows, more].concat());
    }

    #[tokio::test]
    async fn what_a_sink_keeps_back_is_settled_when_the_end_is_waited_for() {
        let (mut bench, sink) = (Bench::new(), Memory::default());
        sink.held.lock().unwrap().keeps_back = Some(Position::default());
        let running = bench.start("memory", &sink).unwrap();
        let rows = bench.seal(&running, 20);
        running.applier.applied(20).await;
        assert_eq!((running.followers.passed(), lock(&running.journal).forgotten()), (0, 0));
        running.followers.finish();
        running.all_is_passed().await;
        assert_eq!(sink.held.lock().unwrap().rows, rows);
        assert!(running.stop().await.failure().is_none());
        // It died between its own commit and the ledger's: the next run has nothing for it, and still hears where it is.
        bench.ledger.0.lock().unwrap().1.insert("sink:memory".to_owned(), Position::after(1));
        let running = bench.start("memory", &sink).unwrap();
        running.followers.finish();
        running.all_is_passed().await;
        running.stop().await;
        assert_eq!(bench.ledger.0.lock().unwrap().1["sink:memory"], Position::after(20));
    }

    #[tokio::test]
    async fn a_sink_that_is_not_there_or_does_not_fit_is_refused() {
        let (mut bench, sink) = (Bench::new(), Memory::default());
        for name in ["", "Big", "a b", &"x".repeat(65)] {
            assert!(matches!(bench.start(name, &sink), Err(StoreError::Config(_))), "{name}");
        }
        let running = bench.start("memory", &sink).unwrap();
        bench.seal(&running, 3);
        running.all_is_passed().await;
        running.stop().await;
        let absent = bench.start("another", &sink).err().unwrap().to_string();
        assert!(absent.contains("memory follows this data directory"), "{absent}");
        for (segment, word) in [(1, "rows are missing"), (9, "older than the sink")] {
            sink.held.lock().unwrap().position = Position::after(segment);
            let running = bench.start("memory", &sink).unwrap();
            running.followers.passed_by(u64::MAX).await;
            let failure = running.stop().await.failure().unwrap().to_string();
            assert!(failure.contains(word), "{failure}");
        }
    }

    fn following(running: &Running) -> Following {
        Following::new(Arc::clone(&running.journal), running.applier.clone())
    }

    /// `sink`, which may hold two segments of `Bench::seal`: their checksums take some bytes more or less.
    async fn bounded(sink: &Memory) -> (Bench, Running, Following) {
        let (mut measured, away) = (Bench::new(), Memory::default());
        away.held.lock().unwrap().refusals = u32::MAX;
        let running = measured.start("memory", &away).unwrap();
        measured.seal(&running, 1);
        running.applier.applied(1).await;
        let Lag { segments: 1, bytes } = following(&running).lags()[0].1 else { panic!() };
        running.stop().await;
        let bench = Bench { lag_max: 2 * bytes + bytes / 2, ..Bench::new() };
        let running = bench.start("memory", sink).unwrap();
        let following = following(&running);
        (bench, running, following)
    }

    #[tokio::test]
    async fn the_work_waits_for_a_sink_that_holds_more_than_it_may_and_goes_on_with_it() {
        let sink = Memory::default();
        sink.held.lock().unwrap().refusals = u32::MAX;
        let (mut bench, running, following) = bounded(&sink).await;
        let lags = || following.lags().into_iter().map(|(it, lag)| (it.holds_up, lag.segments));
        let mut rows = Vec::new();
        // One that nobody gets anything of is held like the others.
        for (segment, is_too_far) in [(1, false), (2, false), (REPEATED, true)] {
            rows.extend(bench.seal(&running, 1));
            running.applier.applied(segment).await;
            assert_eq!(following.is_too_far(), is_too_far, "{segment}");
            assert_eq!(lags().collect::<Vec<_>>(), [(is_too_far, segment)]);
        }
        let waiting = following.wait_for_room(&running.health);
        let soon = tokio::time::timeout(Duration::from_millis(100), waiting).await;
        assert!(soon.is_err() && !following.followers().hold_up(), "nobody waits any more");
        // Whoever waits has its mark, and goes on when the sink does.
        let waiter = following.clone();
        let health = running.health.clone();
        let waiting = tokio::spawn(async move { waiter.wait_for_room(&health).await });
        let mut told = running.followers.told.as_ref().unwrap().subscribe();
        told.wait_for(|all| all.iter().all(|it| it.holds_up && it.waits.is_some())).await.unwrap();
        sink.held.lock().unwrap().refusals = 0;
        tokio::time::timeout(LAST_TAKE, waiting).await.expect("it goes on").unwrap();
        assert!(!following.is_too_far() && !following.followers().hold_up());
        running.all_is_passed().await;
        assert_eq!(lags().collect::<Vec<_>>(), [(false, 0)]);
        assert!(running.stop().await.failure().is_none());
        assert_eq!(sink.held.lock().unwrap().rows, rows);
    }

    #[tokio::test]
    async fn what_is_sealed_is_taken_before_accounts_are_told_of_that_were_given_up() {
        let (mut bench, sink) = (Bench::new(), Memory::default());
        let _rows = bench.park();
        sink.held.lock().unwrap().is_absent = true;
        let running = bench.start("memory", &sink).unwrap();
        // Sealed, and the applier cannot bring it to the ledger: the sink is not given it yet.
        let (ledger, (stop, stopped)) = (Arc::clone(&bench.ledger.0), sync_channel::<()>(0));
        let stopping = std::thread::spawn(move || {
            let _held = ledger.lock().unwrap();
            stopped.recv().unwrap();
            stopped.recv().unwrap();
        });
        stop.send(()).unwrap();
        let mut expected = bench.seal(&running, 1);
        sink.held.lock().unwrap().is_absent = false;
        tokio::time::sleep(RETRY + 2 * QUIET).await;
        assert!(sink.held.lock().unwrap().rows.is_empty());
        stop.send(()).unwrap();
        stopping.join().unwrap();
        let begun = Clock::system().now();
        expected.push("did:plc:BAD did_invalid".to_owned());
        while sink.held.lock().unwrap().rows.len() < expected.len() {
            assert!(begun.elapsed() < Duration::from_secs(20));
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        // At each start again, and also when everything stops at once.
        running.stop().await;
        assert_eq!(sink.held.lock().unwrap().rows, expected);
        let running = bench.start("memory", &sink).unwrap();
        running.stop().await;
        expected.push("did:plc:BAD did_invalid".to_owned());
        assert_eq!(sink.held.lock().unwrap().rows, expected);
    }

    #[tokio::test]
    async fn what_a_sink_keeps_back_is_asked_for_when_the_work_waits_for_it() {
        let sink = Memory::default();
        sink.held.lock().unwrap().keeps_back = Some(Position::default());
        let (mut bench, running, following) = bounded(&sink).await;
        bench.seal(&running, 3);
        running.applier.applied(3).await;
        assert!(following.is_too_far());
        let waiting = following.wait_for_room(&running.health);
        tokio::time::timeout(LAST_TAKE, waiting).await.expect("it settles what it kept back");
        assert!(following.lags()[0].1.segments < 3, "all three are kept back otherwise");
        running.stop().await;
    }

    #[tokio::test]
    async fn nobody_waits_for_a_sink_when_everything_ends() {
        let sink = Memory::default();
        sink.held.lock().unwrap().refusals = u32::MAX;
        let (mut bench, running, following) = bounded(&sink).await;
        bench.seal(&running, 3);
        running.applier.applied(3).await;
        assert!(following.is_too_far());
        let health = running.health.clone();
        let waiting = tokio::spawn(async move { following.wait_for_room(&health).await });
        let mut told = running.followers.told.as_ref().unwrap().subscribe();
        told.wait_for(|all| all.iter().all(|it| it.holds_up)).await.unwrap();
        running.health.end_waiting();
        tokio::time::timeout(LAST_TAKE, waiting).await.expect("it goes on").unwrap();
        assert!(!running.followers.hold_up());
        sink.held.lock().unwrap().refusals = 0;
        running.stop().await;
    }
}
