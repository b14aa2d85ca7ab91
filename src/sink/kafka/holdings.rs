//! Holdings: the partitions of `<topics>.dids` that this process has, their lanes, and which of their messages are still to be
//! decided.
//!
//! ```text
//!            taken over ──> shut ──open: fences whoever had it, reads what is decided──> open ──> admits, commits
//!                             ^                                                            │
//!                             '────────────────── any error of the lane ───────────────────┘     given up: gone for good
//!
//!  offset committed    everything before it is decided; its metadata says what is beyond it       (domain::input_window)
//!  inputs              messages that were admitted and are not decided, by account and by partition
//! ```
//! A transaction of a lane holds what became of some accounts *and* the offsets that say so. So whoever opens a lane next knows
//! exactly what is left, and nobody who has lost it can commit anything: the lane's id is taken from him, and the group refuses
//! his offsets. What lies in a journal for a partition that was given up is passed over: its next owner does it.
//!
//! Two threads use this: one reads the topic and follows the group, one takes segments. The table is locked for moments, never
//! while a partition is being locked; a partition as long as its transaction takes.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rdkafka::consumer::Consumer as _;
use rdkafka::{Offset, TopicPartitionList};

use crate::clock::{Clock, Instant};
use crate::domain::input_window::InputWindow;
use crate::net::territory::Territory;
use crate::sink::StoreError;
use crate::sink::kafka::client::{ANSWER, Clients};
use crate::sink::kafka::dids;
use crate::sink::kafka::group::{GroupConsumer, Renewal, heard_by};
use crate::sink::kafka::holding::Holding;
use crate::sink::kafka::inputs::Inputs;
use crate::sink::kafka::known::{self, Known};

/// What the group has given this process, as far as both threads and the group's callbacks share it.
#[derive(Debug)]
pub struct Shared {
    clients: Clients,
    group: String,
    clock: Clock,
    territory: Territory,
    table: Mutex<Table>,
    known: Mutex<Known>,
}

#[derive(Debug, Default)]
struct Table {
    /// The group has answered at least once.
    is_assigned: bool,
    /// Partitions of the topic; 0: not known yet.
    partitions: u32,
    held: BTreeMap<i32, Arc<Mutex<Holding>>>,
    /// Those whose lane was not opened since they were taken over.
    unopened: BTreeSet<i32>,
    /// Given up, and the ledger still has inputs of them.
    given_up: BTreeSet<i32>,
    inputs: Inputs,
    /// Decided, and the ledger does not know yet.
    told: Vec<(i32, i64)>,
    /// To be decided without anything else: their accounts are done, or are none.
    settled: BTreeMap<i32, BTreeSet<i64>>,
    /// Decided without their accounts being done: somebody else's now, and the ledger does not know yet.
    left: BTreeSet<(i32, i64)>,
}

/// The holdings of a member of the group.
#[derive(Clone)]
pub struct Holdings {
    shared: Arc<Shared>,
    consumer: Arc<GroupConsumer>,
}

impl Shared {
    /// Nothing is held. `known` is where the accounts that are done are kept.
    #[must_use]
    pub fn new(
        clients: Clients,
        group: String,
        known: Known,
        (clock, territory): (Clock, Territory),
    ) -> Self {
        let (table, known) = (Mutex::default(), Mutex::new(known));
        Self { clients, group, clock, territory, table, known }
    }

    /// Partitions that the group gives to this process.
    pub fn take_over(&self, partitions: &[i32]) {
        let mut table = self.table();
        table.is_assigned = true;
        for partition in partitions {
            let id = format!("{}-{}-{partition}", self.group, dids::topic(self.prefix()));
            let (clients, clock) = (self.clients.clone(), self.clock.clone());
            let holding = Holding::new(*partition, clients, id, clock);
            table.held.insert(*partition, Arc::new(Mutex::new(holding)));
            table.unopened.insert(*partition);
        }
        self.tell_territory(&table);
    }

    /// Partitions that the group takes back, or has given to somebody else. Waits for a transaction that is under way there,
    /// whose end then is before the next owner's beginning.
    pub fn give_up(&self, partitions: &[i32]) {
        let mut gone = Vec::new();
        {
            let mut table = self.table();
            for partition in partitions {
                gone.extend(table.held.remove(partition));
                table.unopened.remove(partition);
                table.given_up.insert(*partition);
            }
            // From here on no host of theirs is asked.
            self.tell_territory(&table);
        }
        for holding in gone {
            lock(&holding).give_up();
        }
        let mut table = self.table();
        for partition in partitions {
            table.inputs.remove_partition(*partition);
            table.settled.remove(partition);
            table.left.retain(|(left, _)| left != partition);
        }
    }

    /// The group has this process as a member, and keeps it at least `until` then.
    pub fn confirmed(&self, until: Instant) {
        self.territory.renew(until);
    }

    fn tell_territory(&self, table: &Table) {
        self.territory.set(table.partitions, table.held.keys().copied().collect());
    }

    fn prefix(&self) -> &str {
        &self.clients.broker.prefix
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        lock(&self.table)
    }
}

impl Holdings {
    /// Those that `shared` is told of by the callbacks of `consumer`.
    #[must_use]
    pub const fn new(shared: Arc<Shared>, consumer: Arc<GroupConsumer>) -> Self {
        Self { shared, consumer }
    }

    /// What an earlier process had admitted: account, partition and offset.
    pub fn begin<'i>(&self, inputs: impl Iterator<Item = (&'i str, i32, i64)>) {
        inputs.for_each(|(did, at, offset)| self.shared.table().inputs.add(did, at, offset));
    }

    /// What is left of `partitions` that the group did not give back is given up.
    pub fn give_up_others(&self, partitions: &[i32]) {
        let mut table = self.shared.table();
        for partition in partitions {
            if !table.held.contains_key(partition) {
                table.inputs.remove_partition(*partition);
                table.given_up.insert(*partition);
            }
        }
    }

    /// Everything of its partitions is read once more.
    pub fn read_again(&self) {
        let mut table = self.shared.table();
        let held: Vec<i32> = table.held.keys().copied().collect();
        table.unopened.extend(held);
    }

    /// The member of the group.
    #[must_use]
    pub fn consumer(&self) -> &GroupConsumer {
        &self.consumer
    }

    /// Asks the group from now on whether this process is a member.
    ///
    /// # Errors
    /// As [`Renewal::start`].
    pub fn renewal(&self, clock: &Clock) -> Result<Renewal, StoreError> {
        Renewal::start(&self.consumer, self.shared.prefix(), clock)
    }

    /// Clients of the cluster.
    #[must_use]
    pub fn clients(&self) -> &Clients {
        &self.shared.clients
    }

    /// Name of the group.
    #[must_use]
    pub fn group(&self) -> &str {
        &self.shared.group
    }

    /// The topic has so many partitions.
    pub fn set_partitions(&self, partitions: u32) {
        let mut table = self.shared.table();
        if table.partitions != partitions {
            table.partitions = partitions;
            self.shared.tell_territory(&table);
        }
    }

    /// Whether the group has answered yet.
    #[must_use]
    pub fn is_assigned(&self) -> bool {
        self.shared.table().is_assigned
    }

    /// Whether the group is sure to have this process as a member still.
    #[must_use]
    pub fn is_member(&self) -> bool {
        self.shared.territory.is_leased(self.shared.clock.now())
    }

    /// The partitions that it has.
    #[must_use]
    pub fn held(&self) -> Vec<i32> {
        self.shared.table().held.keys().copied().collect()
    }

    /// Those whose lane is still to be opened.
    #[must_use]
    pub fn unopened(&self) -> Vec<i32> {
        self.shared.table().unopened.iter().copied().collect()
    }

    /// One of them; `None`: it is another's.
    #[must_use]
    pub fn holding(&self, partition: i32) -> Option<Arc<Mutex<Holding>>> {
        self.shared.table().held.get(&partition).cloned()
    }

    /// Opens the lane of a partition that was taken over; gives what is decided of it. Waits for whoever had it.
    ///
    /// # Errors
    /// As [`crate::sink::kafka::client::Clients::sorted`].
    pub fn open(&self, partition: i32) -> Result<Option<InputWindow>, StoreError> {
        let Some(holding) = self.holding(partition) else { return Ok(None) };
        let mut holding = lock(&holding);
        if !holding.ready(self)? {
            return Ok(None);
        }
        self.shared.table().unopened.remove(&partition);
        Ok(Some(holding.window().clone()))
    }

    /// Partitions that were given up and that the ledger still has inputs of.
    #[must_use]
    pub fn take_given_up(&self) -> Vec<i32> {
        std::mem::take(&mut self.shared.table().given_up).into_iter().collect()
    }

    /// The accounts that are done.
    #[must_use]
    pub fn known(&self) -> &Mutex<Known> {
        &self.shared.known
    }

    /// Notes a message that is to be decided; `false`: its account, which the topics call `shown`, is done already, and it is
    /// decided as soon as something is committed.
    ///
    /// # Errors
    /// [`StoreError`] of the file of accounts that are done.
    pub fn add(&self, (did, shown): (&str, &str), at: (i32, i64)) -> Result<bool, StoreError> {
        let mut table = self.shared.table();
        // Whoever commits an account notes it before he removes its inputs, under the same lock.
        let is_done = lock(&self.shared.known).has(shown)?;
        if is_done {
            table.settled.entry(at.0).or_default().insert(at.1);
        } else {
            table.inputs.add(did, at.0, at.1);
        }
        Ok(!is_done)
    }

    /// Which of the accounts that the topics call `shown` are done, whether or not this process has heard of it.
    ///
    /// # Errors
    /// As [`known::catch_up`].
    pub fn are_done(&self, shown: &[&str]) -> Result<Vec<bool>, StoreError> {
        known::catch_up(&self.shared.clients, &self.shared.known)?;
        shown.iter().map(|shown| lock(&self.shared.known).has(shown)).collect()
    }

    /// Messages of a partition that turned out to be decided while their accounts are not done. They stand until
    /// [`Holdings::taken_out`]: the ledger takes whoever asks for the same accounts until then for one more of them.
    pub fn leave(&self, partition: i32, offsets: impl IntoIterator<Item = i64>) {
        let mut table = self.shared.table();
        table.left.extend(offsets.into_iter().map(|offset| (partition, offset)));
    }

    /// Messages of a partition that were admitted.
    #[must_use]
    pub fn admitted(&self, partition: i32) -> Vec<i64> {
        self.shared.table().inputs.of_partition(partition).collect()
    }

    /// Those, by partition: the ledger is to be told that it has nothing to do with them any more.
    #[must_use]
    pub fn left(&self) -> BTreeMap<i32, Vec<i64>> {
        let mut left = BTreeMap::<i32, Vec<i64>>::new();
        let table = self.shared.table();
        table.left.iter().for_each(|(at, offset)| left.entry(*at).or_default().push(*offset));
        left
    }

    /// The ledger knows of those.
    pub fn taken_out(&self, partition: i32, offsets: &[i64]) {
        let mut table = self.shared.table();
        for offset in offsets {
            table.inputs.remove(partition, *offset);
            table.left.remove(&(partition, *offset));
        }
    }

    /// A message that is decided as soon as something is committed: it is of no account.
    pub fn settle(&self, (partition, offset): (i32, i64)) {
        let mut table = self.shared.table();
        table.inputs.remove(partition, offset);
        table.settled.entry(partition).or_default().insert(offset);
    }

    /// A partition of ours that asks for an account which is sealed now, and its messages. `None`: nobody asks for it here; whoever
    /// does so later, in a partition that was away, has it exported once more.
    #[must_use]
    pub fn asked(&self, did: &str) -> Option<(i32, Vec<i64>)> {
        let mut table = self.shared.table();
        let inputs = table.inputs.of_did(did);
        let held = inputs.iter().map(|(partition, _)| *partition);
        let Some(partition) = held.into_iter().find(|it| table.held.contains_key(it)) else {
            // They come again with their partition, and find nothing of this sealing.
            table.given_up.extend(inputs.iter().map(|(partition, _)| *partition));
            inputs.iter().for_each(|(partition, offset)| table.inputs.remove(*partition, *offset));
            return None;
        };
        let is_there = |(at, offset): &(i32, i64)| (*at == partition).then_some(*offset);
        Some((partition, inputs.iter().filter_map(is_there).collect()))
    }

    /// How many messages of a partition are not decided.
    #[must_use]
    pub fn undecided(&self, partition: i32) -> usize {
        self.shared.table().inputs.count(partition)
    }

    /// How many messages are not decided.
    #[must_use]
    pub fn undecided_total(&self) -> usize {
        self.shared.table().inputs.total()
    }

    /// The oldest message of a partition that is not decided.
    #[must_use]
    pub fn oldest(&self, partition: i32) -> Option<(i64, String)> {
        self.shared.table().inputs.oldest(partition)
    }

    /// Partitions with messages to be decided without anything else.
    #[must_use]
    pub fn unsettled(&self) -> Vec<i32> {
        self.shared.table().settled.keys().copied().collect()
    }

    /// Messages that are decided and that the ledger does not know of.
    #[must_use]
    pub fn take_told(&self) -> Vec<(i32, i64)> {
        std::mem::take(&mut self.shared.table().told)
    }

    /// Whether a host is in a partition that this process has.
    #[must_use]
    pub fn has_host(&self, host: &str) -> bool {
        let partition = self.shared.territory.partition_of(host);
        partition.is_some_and(|partition| self.shared.table().held.contains_key(&partition))
    }

    /// `offsets` of `partition` are decided: in the window, which is committed.
    pub(super) fn decided(
        &self,
        partition: i32,
        offsets: &[i64],
        done: &[(&str, &str)],
    ) -> Result<(), StoreError> {
        let mut table = self.shared.table();
        let shown = done.iter().map(|(_, shown)| *shown);
        lock(&self.shared.known).note(shown)?;
        for offset in offsets {
            table.inputs.remove(partition, *offset);
            table.told.push((partition, *offset));
            if let Some(settled) = table.settled.get_mut(&partition) {
                settled.remove(offset);
                if settled.is_empty() {
                    table.settled.remove(&partition);
                }
            }
        }
        // Messages that came for the same account meanwhile, here or in another partition.
        for (did, _) in done {
            for (partition, offset) in table.inputs.of_did(did) {
                table.inputs.remove(partition, offset);
                table.settled.entry(partition).or_default().insert(offset);
            }
        }
        Ok(())
    }

    /// Offsets that are to be decided without anything else.
    pub(super) fn settled(&self, partition: i32) -> Vec<i64> {
        self.shared.table().settled.get(&partition).into_iter().flatten().copied().collect()
    }

    /// The group of this process as it is now, for a commit: one that it has left is refused.
    pub(super) fn membership(
        &self,
    ) -> Result<rdkafka::consumer::ConsumerGroupMetadata, StoreError> {
        let missing = || StoreError::busy("the group does not have this process as a member");
        self.consumer.group_metadata().ok_or_else(missing)
    }

    /// What is committed of `partition`.
    pub(super) fn committed(&self, partition: i32) -> Result<InputWindow, StoreError> {
        let clients = &self.shared.clients;
        let sorted =
            |error| clients.sorted("reading the offsets", &error, Some(heard_by(&self.consumer)));
        let mut asked = TopicPartitionList::new();
        asked.add_partition(&dids::topic(self.shared.prefix()), partition);
        let committed = self.consumer.committed_offsets(asked, ANSWER).map_err(sorted)?;
        let elements = committed.elements();
        let Some(element) = elements.first() else { return Ok(InputWindow::new(0)) };
        element.error().map_err(sorted)?;
        let Offset::Offset(base) = element.offset() else { return Ok(InputWindow::new(0)) };
        InputWindow::decode(base, element.metadata()).ok_or_else(|| {
            let group = &self.shared.group;
            StoreError::Config(format!(
                "the offsets of the group {group} are not skyfill's: use another source.group"
            ))
        })
    }
}

/// Locks, whatever happened to another holder: everything in here is changed in one step.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
