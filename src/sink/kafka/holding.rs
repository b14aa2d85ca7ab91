//! One partition of `<topics>.dids` that this process has: its lane, and which of its messages are decided.

use std::collections::BTreeMap;

use rdkafka::{Offset, TopicPartitionList};

use crate::clock::Clock;
use crate::crash_point;
use crate::domain::input_window::InputWindow;
use crate::sink::StoreError;
use crate::sink::kafka::client::Clients;
use crate::sink::kafka::dids;
use crate::sink::kafka::holdings::Holdings;
use crate::sink::kafka::lane::{Lane, Offsets, Owner};

/// One partition.
#[derive(Debug)]
pub struct Holding {
    /// Its number.
    pub partition: i32,
    lane: Lane,
    window: InputWindow,
    /// Where there is no message: what is committed does not know of it before something behind is.
    gaps: BTreeMap<i64, i64>,
    is_given_up: bool,
}

impl Holding {
    /// The partition `partition`, whose lane is shut; its transactions are those of `id`.
    #[must_use]
    pub fn new(partition: i32, clients: Clients, id: String, clock: Clock) -> Self {
        let (lane, window) = (Lane::new(clients, id, Owner::Partition, clock), InputWindow::new(0));
        Self { partition, lane, window, gaps: BTreeMap::new(), is_given_up: false }
    }

    /// It is another's from here on.
    pub fn give_up(&mut self) {
        self.is_given_up = true;
        self.lane.abandon();
    }

    /// Makes the lane ready and asks what is decided, if it was shut; `false`: the partition was given up.
    ///
    /// # Errors
    /// As [`Lane::open`]. Busy also as long as the group may have given the partition to somebody else: opening would take it
    /// from him.
    pub fn ready(&mut self, holdings: &Holdings) -> Result<bool, StoreError> {
        if self.is_given_up {
            return Ok(false);
        }
        if !self.lane.is_open() && !holdings.is_member() {
            return Err(StoreError::busy("the group has not confirmed this process as a member"));
        }
        if self.lane.open()? {
            match holdings.committed(self.partition) {
                Ok(window) => self.window = self.with_gaps(window),
                Err(error) => {
                    // Nobody may send with a window that is not known.
                    self.lane.abandon();
                    return Err(error);
                }
            }
        }
        Ok(true)
    }

    /// Whether a message is decided.
    #[must_use]
    pub fn is_decided(&self, offset: i64) -> bool {
        self.window.is_decided(offset)
    }

    /// Which messages are decided.
    #[must_use]
    pub const fn window(&self) -> &InputWindow {
        &self.window
    }

    /// There is no message from `from` to before `to`.
    pub fn note_gap(&mut self, from: i64, to: i64) {
        self.gaps.insert(from, to);
        self.window.note_gap(from, to);
    }

    fn with_gaps(&mut self, mut window: InputWindow) -> InputWindow {
        self.gaps.retain(|_, to| *to > window.base());
        self.gaps.iter().for_each(|(from, to)| window.note_gap(*from, *to));
        window
    }

    /// `offsets` turned out to be decided, as those of accounts that are `done`: nothing is left to do for them.
    ///
    /// # Errors
    /// [`StoreError`] of the file of accounts that are done.
    pub fn forget(
        &self,
        holdings: &Holdings,
        offsets: &[i64],
        done: &[(&str, &str)],
    ) -> Result<(), StoreError> {
        holdings.decided(self.partition, offsets, done)
    }

    /// The lane, in a transaction.
    ///
    /// # Errors
    /// As [`Lane::begin`].
    pub fn sending(&mut self) -> Result<&mut Lane, StoreError> {
        if !self.lane.is_sending() {
            self.lane.begin()?;
        }
        Ok(&mut self.lane)
    }

    /// Commits what was sent, and that `offsets` are decided with it, as are those that only wait for a commit. `done` are the
    /// accounts that are done with it, each with what the topics call it.
    ///
    /// # Errors
    /// As [`Lane::commit`]; then nothing is decided, as far as this process knows.
    pub fn commit(
        &mut self,
        holdings: &Holdings,
        offsets: &[i64],
        done: &[(&str, &str)],
    ) -> Result<(), StoreError> {
        let mut all = holdings.settled(self.partition);
        all.extend(offsets);
        let mut window = self.window.clone();
        all.iter().for_each(|offset| window.decide(*offset));
        let mut list = TopicPartitionList::new();
        let topic = dids::topic(&holdings.clients().broker.prefix);
        let mut element = list.add_partition(&topic, self.partition);
        element.set_metadata(window.encode());
        element.set_offset(Offset::Offset(window.base())).map_err(StoreError::sink)?;
        let group = holdings.membership()?;
        self.sending()?.commit(&Offsets { list, group })?;
        // Readers see it, and neither ledger nor table knows: the offsets say what is decided.
        crash_point!(SinkKafkaLaneCommittedBeforeTold);
        self.window = window;
        holdings.decided(self.partition, &all, done)
    }

    /// Gives back what a lane takes of memory and threads; the next [`Holding::ready`] opens it again.
    pub fn rest(&mut self) {
        if !self.lane.is_sending() {
            self.lane.abandon();
        }
    }

    /// Gives up what is under way; the next [`Holding::ready`] asks what is decided.
    pub fn abandon(&mut self) {
        self.lane.abandon();
    }
}
