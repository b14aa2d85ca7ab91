//! Intake: messages of `<topics>.dids` into the ledger, partition by partition, never more than can be told of afterwards.
//!
//! ```text
//!  taken over ──> lane opened ──> <topics>.accounts read ──> reading ──as much as may wait is there──> paused ──┐
//!                                                               ^                                              │
//!                                                               '────────────── half of it is decided ─────────┘
//! ```
//! A message is passed over if it is decided (by whoever had the partition before) or if its account is done already; what is no
//! message of ours is decided as it is, and said. Reading never waits for a lane: what is to be noted there is kept until it is free.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use rdkafka::consumer::Consumer as _;
use rdkafka::error::KafkaError;
use rdkafka::{Message, Offset, TopicPartitionList};

use crate::domain::did::cleaned;
use crate::domain::identity::Identity;
use crate::domain::input_window::InputWindow;
use crate::limits::{ADMITTED_PER_PARTITION_MAX, INPUT_WINDOW_OFFSETS_MAX};
use crate::net::guard::Guard;
use crate::pipeline::Reach;
use crate::pipeline::sharing::Trouble;
use crate::pipeline::telling::{Stragglers, take_out_left};
use crate::sink::kafka::client::ANSWER;
use crate::sink::kafka::dids::{self, Wanted};
use crate::sink::kafka::holdings::Holdings;
use crate::sink::kafka::known;
use crate::store::ledger_inputs::{Admission, Admitted};
use crate::transform::pseudonym::Pseudonyms;

/// Messages that go into the ledger in one transaction.
const ADMITTED_AT_ONCE: usize = 500;

/// Offsets that a window may span.
const WINDOW_MAX: i64 = INPUT_WINDOW_OFFSETS_MAX as i64;

/// Part of the window that may be beyond the oldest undecided message before that is put at the topic's end.
const STRAGGLES_AT: i64 = WINDOW_MAX / 8 * 7;

/// How far one partition is read.
#[derive(Debug)]
struct Reading {
    /// What had been decided when it was taken over.
    skip: InputWindow,
    /// The offset that is expected next.
    next: i64,
    /// Everything before is decided, as it was seen last.
    base: i64,
    is_paused: bool,
    /// Nothing was undecided when it was looked at last.
    was_idle: bool,
    /// Where there are no messages, to be noted when the lane is free.
    gaps: Vec<(i64, i64)>,
}

/// What is to be done about an offset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Read {
    /// It is decided.
    Skip,
    /// It is to be admitted.
    Admit,
}

impl Reading {
    fn new(skip: InputWindow) -> Self {
        let base = skip.base();
        Self { skip, next: base, base, is_paused: false, was_idle: false, gaps: Vec::new() }
    }

    fn take(&mut self, offset: i64) -> Read {
        if offset > self.next {
            self.gaps.push((self.next, offset));
        }
        self.next = self.next.max(offset + 1);
        if self.skip.is_decided(offset) { Read::Skip } else { Read::Admit }
    }

    /// Whether it is to wait, if so many messages are not decided.
    const fn waits(&self, undecided: usize) -> bool {
        let span = self.next - self.base;
        if self.is_paused {
            undecided > ADMITTED_PER_PARTITION_MAX / 2 || span > STRAGGLES_AT
        } else {
            undecided >= ADMITTED_PER_PARTITION_MAX || span >= WINDOW_MAX - ADMITTED_AT_ONCE as i64
        }
    }

    /// Whether the oldest undecided message holds everything back.
    const fn straggles(&self) -> bool {
        self.next - self.base > STRAGGLES_AT
    }
}

/// Reads the topic.
pub struct Intake {
    holdings: Holdings,
    reach: Reach,
    guard: Guard,
    names: Option<Pseudonyms>,
    readings: BTreeMap<i32, Reading>,
    /// Lanes that are open, and whose partitions are read once the accounts that are done are known.
    opened: BTreeMap<i32, InputWindow>,
    batch: Vec<Admission>,
    /// Partitions that are to be read again from where everything is decided.
    again: BTreeSet<i32>,
    has_looked: bool,
}

impl Intake {
    /// Nothing is read yet.
    #[must_use]
    pub fn new(
        holdings: Holdings,
        reach: Reach,
        (guard, names): (Guard, Option<Pseudonyms>),
    ) -> Self {
        let (readings, opened) = (BTreeMap::new(), BTreeMap::new());
        let (batch, again, has_looked) = (Vec::new(), BTreeSet::new(), false);
        Self { holdings, reach, guard, names, readings, opened, batch, again, has_looked }
    }

    /// Follows what the group gave and took.
    pub fn follow(&mut self) -> Result<(), Trouble> {
        if !self.has_looked && self.holdings.is_assigned() {
            let ledger = self.reach.ledger();
            let of_earlier = ledger.run_blocking(|rows| rows.owned_partitions())?;
            self.holdings.give_up_others(&of_earlier);
            self.has_looked = true;
        }
        // What was taken back leaves the ledger before anything of it is read again.
        for partition in self.holdings.take_given_up() {
            self.readings.remove(&partition);
            self.opened.remove(&partition);
            self.again.remove(&partition);
            self.batch.retain(|it| it.partition != partition);
            while self.reach.ledger().run_blocking(move |rows| rows.give_up_partition(partition))?
                > 0
            {}
            self.reach.look_anew();
        }
        if !self.holdings.is_member() {
            return Ok(());
        }
        for partition in self.holdings.unopened() {
            if let Some(window) = self.holdings.open(partition)? {
                self.opened.insert(partition, window);
            }
        }
        if self.opened.is_empty() {
            return Ok(());
        }
        // Whoever had them before can commit nothing more: what is there now is all.
        let news = known::catch_up(self.holdings.clients(), self.holdings.known())?;
        tracing::info!(partitions = self.opened.len(), accounts = news, "reading goes on");
        // What was decided and nobody here heard of, before anything asks for the same accounts again.
        for (partition, window) in &self.opened {
            let admitted = self.holdings.admitted(*partition).into_iter();
            self.holdings.leave(*partition, admitted.filter(|it| window.is_decided(*it)));
        }
        take_out_left(&self.holdings, &self.reach)?;
        for (partition, window) in std::mem::take(&mut self.opened) {
            let again = self.again.remove(&partition).then(|| window.base());
            self.readings.insert(partition, Reading::new(window));
            self.resume(partition, again)?;
        }
        Ok(())
    }

    /// Reads what there is, for at most `wait`, into the ledger. What was read and came to nothing is read again.
    pub fn read(&mut self, wait: Duration, is_quiet: bool) -> Result<(), Trouble> {
        let read = self.read_once(wait, is_quiet);
        if read.is_err() {
            self.again.extend(std::mem::take(&mut self.readings).into_keys());
            self.batch.clear();
            self.holdings.read_again();
        }
        read
    }

    fn read_once(&mut self, wait: Duration, is_quiet: bool) -> Result<(), Trouble> {
        self.pause_or_resume(is_quiet)?;
        let holdings = self.holdings.clone();
        let mut polled = holdings.consumer().poll(wait);
        while let Some(message) = polled {
            match message {
                Ok(message) => {
                    let at = (message.partition(), message.offset());
                    self.take(at, message.payload().unwrap_or_default())?;
                }
                Err(KafkaError::PartitionEOF(_)) => {}
                Err(error) => {
                    let clients = holdings.clients();
                    return Err(clients.sorted("reading the topic", &error, None).into());
                }
            }
            if self.batch.len() >= ADMITTED_AT_ONCE {
                break;
            }
            polled = holdings.consumer().poll(Duration::ZERO);
        }
        self.note_gaps();
        self.admit()
    }

    fn take(&mut self, at: (i32, i64), payload: &[u8]) -> Result<(), Trouble> {
        let (partition, offset) = at;
        let Some(reading) = self.readings.get_mut(&partition) else { return Ok(()) };
        if reading.take(offset) == Read::Skip {
            return Ok(());
        }
        let wanted = match serde_json::from_slice::<Wanted>(payload) {
            Ok(wanted) => wanted,
            Err(error) => {
                tracing::warn!(partition, offset, error = %cleaned(&error.to_string()), "a message asks for no account");
                self.holdings.settle(at);
                return Ok(());
            }
        };
        let Wanted { did, identity, reason: _, resolved_at_ms } = wanted;
        let shown = self.names.as_ref().map(|names| names.of(&did));
        if self.holdings.add((&did, shown.as_deref().unwrap_or(&did)), at)? {
            // An endpoint that may not be reached, or stands under another's host, is left to the resolver, which says why.
            let is_good = |identity: &Identity| {
                let endpoint = self.guard.endpoint(&identity.endpoint);
                endpoint.is_ok_and(|endpoint| endpoint.host == identity.host)
            };
            let identity = identity.filter(is_good).map(|identity| (identity, resolved_at_ms));
            self.batch.push(Admission { partition, offset, did, identity });
        }
        Ok(())
    }

    fn admit(&mut self) -> Result<(), Trouble> {
        if self.batch.is_empty() {
            return Ok(());
        }
        let batch = std::mem::take(&mut self.batch);
        let places: Vec<(i32, i64)> = batch.iter().map(|it| (it.partition, it.offset)).collect();
        let admitted = self.reach.ledger().run_blocking(move |rows| rows.admit(&batch))?;
        for (at, admitted) in places.into_iter().zip(admitted) {
            match admitted {
                Admitted::Pending | Admitted::Reopened => {}
                Admitted::Forgotten => self.holdings.settle(at),
                Admitted::Malformed => {
                    let (partition, offset) = at;
                    tracing::warn!(partition, offset, "a message asks for what is no DID");
                    self.holdings.settle(at);
                }
            }
        }
        self.reach.look_anew();
        Ok(())
    }

    /// Tells the ledger what is decided and told, and what was left.
    pub fn drop_told(&mut self) -> Result<(), Trouble> {
        take_out_left(&self.holdings, &self.reach)?;
        let mut told: BTreeMap<i32, Vec<i64>> = BTreeMap::new();
        for (partition, offset) in self.holdings.take_told() {
            told.entry(partition).or_default().push(offset);
        }
        for (partition, offsets) in told {
            self.reach.ledger().run_blocking(move |rows| rows.drop_inputs(partition, &offsets))?;
        }
        Ok(())
    }

    /// Messages that hold the window of their partition back, with their accounts.
    #[must_use]
    pub fn stragglers(&self) -> Stragglers {
        let straggling = self.readings.iter().filter(|(_, reading)| reading.straggles());
        straggling.filter_map(|(at, _)| Some((*at, self.holdings.oldest(*at)?))).collect()
    }

    /// Messages that were not read yet.
    pub fn behind(&self) -> Result<i64, Trouble> {
        let (clients, consumer) = (self.holdings.clients(), self.holdings.consumer());
        let topic = dids::topic(&clients.broker.prefix);
        let mut behind = 0;
        for (partition, reading) in &self.readings {
            let marks = consumer.fetch_watermarks(&topic, *partition, ANSWER);
            let (_, end) =
                marks.map_err(|error| clients.sorted("looking at the topic", &error, None))?;
            behind += (end - reading.next).max(0);
        }
        Ok(behind)
    }

    /// Lets lanes rest that had nothing to do since the last time.
    pub fn rest(&mut self) {
        for (partition, reading) in &mut self.readings {
            let is_idle = self.holdings.undecided(*partition) == 0;
            if is_idle
                && std::mem::replace(&mut reading.was_idle, is_idle)
                && let Some(holding) = self.holdings.holding(*partition)
                && let Ok(mut holding) = holding.try_lock()
            {
                holding.rest();
            }
            reading.was_idle = is_idle;
        }
    }

    /// Notes gaps, and how far everything is decided, where the lane is free.
    fn note_gaps(&mut self) {
        for (partition, reading) in &mut self.readings {
            let Some(holding) = self.holdings.holding(*partition) else { continue };
            let Ok(mut holding) = holding.try_lock() else { continue };
            reading.gaps.drain(..).for_each(|(from, to)| holding.note_gap(from, to));
            reading.base = holding.window().base();
        }
    }

    fn pause_or_resume(&mut self, is_quiet: bool) -> Result<(), Trouble> {
        let topic = dids::topic(&self.holdings.clients().broker.prefix);
        let (mut paused, mut resumed) = (TopicPartitionList::new(), TopicPartitionList::new());
        for (partition, reading) in &mut self.readings {
            let waits = is_quiet || reading.waits(self.holdings.undecided(*partition));
            if waits != std::mem::replace(&mut reading.is_paused, waits) {
                let list = if waits { &mut paused } else { &mut resumed };
                list.add_partition(&topic, *partition);
            }
        }
        let (clients, consumer) = (self.holdings.clients(), self.holdings.consumer());
        let sorted = |error| clients.sorted("pausing partitions", &error, None);
        consumer.pause(&paused).map_err(sorted)?;
        consumer.resume(&resumed).map_err(sorted)?;
        Ok(())
    }

    /// Reads on, or from `again` on.
    fn resume(&self, partition: i32, again: Option<i64>) -> Result<(), Trouble> {
        let (clients, consumer) = (self.holdings.clients(), self.holdings.consumer());
        let sorted = |error| clients.sorted("reading a partition", &error, None);
        let topic = dids::topic(&clients.broker.prefix);
        if let Some(offset) = again {
            consumer.seek(&topic, partition, Offset::Offset(offset), ANSWER).map_err(sorted)?;
        }
        let mut list = TopicPartitionList::new();
        list.add_partition(&topic, partition);
        Ok(consumer.resume(&list).map_err(sorted)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decided_messages_are_passed_over_and_gaps_are_kept() {
        let mut skip = InputWindow::new(10);
        skip.decide(12);
        let mut reading = Reading::new(skip);
        assert_eq!(reading.take(10), Read::Admit);
        assert_eq!(reading.take(11), Read::Admit);
        assert_eq!(reading.take(12), Read::Skip);
        assert_eq!(reading.take(15), Read::Admit);
        assert_eq!(reading.gaps, [(13, 15)]);
        // What is read again after a partition was read from an earlier place is no gap.
        assert_eq!(reading.take(9), Read::Skip);
        assert_eq!((reading.next, reading.gaps.len()), (16, 1));
    }

    #[test]
    fn reading_waits_for_what_is_undecided_and_for_a_window_that_is_full() {
        let mut reading = Reading::new(InputWindow::new(0));
        reading.take(99);
        assert!(!reading.waits(ADMITTED_PER_PARTITION_MAX - 1));
        assert!(reading.waits(ADMITTED_PER_PARTITION_MAX));
        reading.is_paused = true;
        assert!(reading.waits(ADMITTED_PER_PARTITION_MAX / 2 + 1));
        assert!(!reading.waits(ADMITTED_PER_PARTITION_MAX / 2));
        assert!(!reading.straggles());
        reading.take(WINDOW_MAX - 100);
        assert!(reading.waits(1) && reading.straggles());
        reading.is_paused = false;
        assert!(reading.waits(1));
        reading.base = WINDOW_MAX - 200;
        assert!(!reading.waits(1) && !reading.straggles());
    }
}
