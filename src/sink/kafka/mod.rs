//! Sinks to Kafka: a message a row, keyed by DID, in transactions that also carry the accounts' records and the sink's position;
//! only with the feature `kafka`.
//!
//! ```text
//!  segment ──rows──> <topics>.<type>, <topics>.rejected            value: the row as in the queues · headers: rev, edition
//!          ──account──> <topics>.accounts (compacted)              one record a DID: state, revision, counts
//!          ──position──> an offset of the sink's own group         all three in one transaction: *the commit*
//! ```
//! A transaction ends with a segment, which holds whole accounts: a `read_committed` reader sees each revision whole and once.
//! Segments above `transaction_bytes` take several, cut between accounts where that is possible; an account that is larger
//! itself is cut between its items, and its record says `partial` until the last of them says `done`.
//!
//! After any error, and at every start, the lane is opened anew: that ends what was left open under its id, and the committed
//! position decides what comes next. Whoever reads without `read_committed` may see aborted rows, too.

pub mod accounts;
pub mod client;
pub mod dids;
pub mod group;
pub mod holding;
pub mod holdings;
mod inputs;
pub mod known;
pub mod lane;
pub mod parked;
pub mod position;
pub mod topics;
pub mod worker;

use std::collections::BTreeSet;

use rdkafka::message::{Header, OwnedHeaders};

use crate::clock::Clock;
use crate::config::broker::Broker;
use crate::crash_point;
use crate::domain::account::Revision;
use crate::sink::{Parked, Position, SegmentReader, Sink, SinkItem, Start, StoreError};

use accounts::{AccountState, Origin, Rows};
use client::Clients;
use lane::{Lane, Outgoing, Owner};
use position::Positions;

/// What it has from [`Sink::begin`] on.
struct State {
    origin: Origin,
    lane: Lane,
    positions: Positions,
    /// Topics that were looked at since the lane was opened.
    looked_at: BTreeSet<String>,
    /// Everything before is committed.
    committed: Position,
    /// What the committed position says is known: the lane is open, and was asked after that.
    is_ready: bool,
}

/// A sink to the topics of a cluster.
pub struct KafkaSink {
    name: String,
    clients: Clients,
    clock: Clock,
    state: Option<State>,
}

/// Looks at the topics of `labels`, those that are there, and makes none; gives a sentence about each that will delete rows.
///
/// # Errors
/// As [`topics::ensure`].
pub fn look_at(broker: &Broker, labels: &[String]) -> Result<Vec<String>, StoreError> {
    let clients = Clients { broker: broker.clone(), zstd: false };
    topics::ensure(&clients, &names(&broker.prefix, labels), false)
}

/// The topics of `labels`, and that of the accounts.
fn names(prefix: &str, labels: &[String]) -> Vec<String> {
    let of_labels = labels.iter().map(|label| topics::of_label(prefix, label));
    of_labels.chain([accounts::topic(prefix)]).collect()
}

impl KafkaSink {
    /// The sink `name`; the cluster is asked nothing before it begins.
    #[must_use]
    pub const fn new(name: String, broker: Broker, zstd: bool, clock: Clock) -> Self {
        Self { name, clients: Clients { broker, zstd }, clock, state: None }
    }

    fn state(&mut self) -> Result<&mut State, StoreError> {
        self.state.as_mut().ok_or_else(not_begun)
    }

    /// An open lane, and the position that its cluster has; `None`: it has none.
    fn opened(&mut self) -> Result<Option<Position>, StoreError> {
        let state = self.state()?;
        state.is_ready &= !state.lane.open()?;
        if state.is_ready {
            return Ok(Some(state.committed));
        }
        state.looked_at.clear();
        let position = state.positions.read()?;
        state.is_ready = position.is_some();
        Ok(position)
    }

    /// The position that its cluster has, and an open lane.
    fn ready(&mut self) -> Result<Position, StoreError> {
        let Some(position) = self.opened().map_err(|error| self.named(error))? else {
            let text = format!(
                "sink {}: the cluster has lost its position: topics or group were removed under it",
                self.name
            );
            return Err(StoreError::Config(text));
        };
        self.state()?.committed = position;
        Ok(position)
    }

    /// What is under way is given up; the name of the sink in why.
    fn given_up(&mut self, error: StoreError) -> StoreError {
        if let Some(state) = self.state.as_mut() {
            state.lane.abandon();
        }
        self.named(error)
    }

    /// Makes sure that the topic of `label` can take its rows; gives its name.
    fn topic(&mut self, label: &str) -> Result<String, StoreError> {
        let state = self.state.as_mut().ok_or_else(not_begun)?;
        let ensured = topics::ensured(&self.clients, &mut state.looked_at, label);
        ensured.map_err(|error| self.named(error))
    }

    fn named(&self, error: StoreError) -> StoreError {
        named(&self.name, error)
    }

    /// Sends what is not committed of `segment`, and commits it.
    fn take(&mut self, segment: &SegmentReader) -> Result<(), StoreError> {
        let bound = self.clients.broker.transaction_bytes;
        let items: Vec<SinkItem<'_>> =
            segment.items_from(Position { segment: segment.number, item: 0 }).collect();
        let is_same =
            |one: &SinkItem<'_>, other: &SinkItem<'_>| std::ptr::eq(one.account, other.account);
        let mut transaction = Transaction { bytes: 0, behind: self.state()?.committed };
        for account in items.chunk_by(is_same) {
            let bytes: u64 = account.iter().map(|item| u64::from(item.bytes)).sum();
            if transaction.bytes > 0 && transaction.bytes + bytes > bound {
                self.commit(&mut transaction)?;
            }
            self.take_account(account, &mut transaction)?;
        }
        // They have no item to be found at: they come with the end of the segment, and only there.
        for revision in segment.accounts() {
            if !items.iter().any(|item| std::ptr::eq(item.account, revision)) {
                let (state, rows) = (AccountState::Done, Rows::new());
                self.tell(revision, state, &rows, segment.end(), &mut transaction)?;
            }
        }
        transaction.behind = segment.end();
        self.commit(&mut transaction)
    }

    /// Sends what is not committed of one account's `items`.
    fn take_account(
        &mut self,
        items: &[SinkItem<'_>],
        transaction: &mut Transaction,
    ) -> Result<(), StoreError> {
        let bound = self.clients.broker.transaction_bytes;
        let committed = self.state()?.committed;
        let (Some(first), Some(last)) = (items.first(), items.last()) else { return Ok(()) };
        if last.after <= committed {
            return Ok(());
        }
        let revision = first.account;
        let headers = headers(revision);
        let (mut rows, mut buffer) = (Rows::new(), Vec::new());
        for item in items {
            if item.after > committed {
                let is_full = transaction.bytes + u64::from(item.bytes) > bound;
                if transaction.bytes > 0 && is_full {
                    let (state, position) = (AccountState::Partial, transaction.behind);
                    self.tell(revision, state, &rows, position, transaction)?;
                    self.commit(transaction)?;
                    // A part of an account is there, and the record says so: the rest comes from the position on.
                    crash_point!(SinkKafkaPartCommitted);
                }
                self.send_rows(item, item.payload(&mut buffer)?, &headers)?;
                transaction.bytes += u64::from(item.bytes);
                transaction.behind = item.after;
            }
            *rows.entry(item.label.to_owned()).or_default() += u64::from(item.records);
        }
        let behind = transaction.behind;
        self.tell(revision, AccountState::Done, &rows, behind, transaction)
    }

    fn send_rows(
        &mut self,
        item: &SinkItem<'_>,
        payload: &str,
        headers: &OwnedHeaders,
    ) -> Result<(), StoreError> {
        let topic = self.topic(item.label)?;
        let key = item.account.shown_did();
        topics::send_rows(self.sending()?, &topic, (key, headers), payload)
    }

    /// Sends an account's record, for a transaction that ends at `position`.
    fn tell(
        &mut self,
        revision: &Revision,
        state: AccountState,
        rows: &Rows,
        position: Position,
        transaction: &mut Transaction,
    ) -> Result<(), StoreError> {
        let origin = self.state()?.origin.clone();
        let value = accounts::record(revision, state, rows, &origin, (position, None));
        let topic = self.topic("accounts")?;
        let message =
            Outgoing { topic: &topic, partition: None, key: revision.shown_did(), value: &value };
        self.sending()?.send(message, &headers(revision))?;
        transaction.bytes += value.len() as u64;
        Ok(())
    }

    /// The lane, in a transaction.
    fn sending(&mut self) -> Result<&mut Lane, StoreError> {
        let lane = &mut self.state()?.lane;
        if !lane.is_sending() {
            lane.begin()?;
            // A transaction without a message: its id is all that the cluster knows of it.
            crash_point!(SinkKafkaBegunBeforeRows);
        }
        Ok(lane)
    }

    /// Commits what was sent, with the position behind it.
    fn commit(&mut self, transaction: &mut Transaction) -> Result<(), StoreError> {
        self.sending()?;
        let state = self.state()?;
        let offsets = state.positions.offsets(transaction.behind)?;
        state.lane.commit(offsets)?;
        (state.committed, transaction.bytes) = (transaction.behind, 0);
        // Readers see it and the ledger does not know: the cluster says where the sink is.
        crash_point!(SinkKafkaCommittedBeforeSettle);
        Ok(())
    }

    fn begun(&mut self, start: &Start) -> Result<Position, StoreError> {
        let topics = names(&self.clients.broker.prefix, &start.labels);
        let odd = topics::ensure(&self.clients, &topics, true)?;
        if !odd.is_empty() {
            tracing::warn!(sink = %self.name, "{}", odd.join("; "));
        }
        let origin = Origin { directory: start.directory.clone(), sink: self.name.clone() };
        let id = position::group(&self.clients.broker.prefix, &origin);
        let (clients, clock) = (self.clients.clone(), self.clock.clone());
        let positions = Positions::new(&clients, &origin)?;
        self.state = Some(State {
            origin,
            lane: Lane::new(clients, id, Owner::Directory, clock),
            positions,
            looked_at: BTreeSet::new(),
            committed: start.known,
            is_ready: false,
        });
        if let Some(position) = self.opened()? {
            self.state()?.looked_at.extend(topics);
            self.state()?.committed = position;
            return Ok(position);
        }
        if start.known.passed() > 0 {
            tracing::warn!(sink = %self.name, segment = start.known.passed(), "the cluster has no position of the sink: it goes on where the ledger says it was");
        }
        // From here on the cluster has one.
        self.state()?.is_ready = true;
        self.commit(&mut Transaction { bytes: 0, behind: start.known })?;
        Ok(start.known)
    }
}

/// What is sent and not committed.
struct Transaction {
    bytes: u64,
    /// The position behind it.
    behind: Position,
}

fn not_begun() -> StoreError {
    StoreError::sink("it was asked for something before it had begun")
}

/// The name of the sink in what the follower does not name.
fn named(sink: &str, error: StoreError) -> StoreError {
    match error {
        StoreError::Config(text) => StoreError::Config(format!("sink {sink}: {text}")),
        StoreError::Permission(text) => StoreError::Permission(format!("sink {sink}: {text}")),
        error => error,
    }
}

fn headers(revision: &Revision) -> OwnedHeaders {
    let edition = revision.edition.to_string();
    OwnedHeaders::new_with_capacity(2)
        .insert(Header { key: "rev", value: Some(revision.rev.as_str()) })
        .insert(Header { key: "edition", value: Some(edition.as_str()) })
}

impl Sink for KafkaSink {
    fn begin(&mut self, start: &Start) -> Result<Position, StoreError> {
        self.begun(start).map_err(|error| self.named(error))
    }

    fn apply(&mut self, segment: &SegmentReader) -> Result<(), StoreError> {
        let position = self.ready()?;
        if position >= segment.end() {
            return Ok(());
        }
        let taken = self.take(segment);
        taken.map_err(|error| self.given_up(error))
    }

    fn hears_of_parked(&self) -> bool {
        true
    }

    fn parked(&mut self, accounts: &[Parked]) -> Result<(), StoreError> {
        let position = self.ready()?;
        let told = self.tell_parked(accounts, position);
        told.map_err(|error| self.given_up(error))
    }

    fn settle(&mut self) -> Result<Vec<(String, Position)>, StoreError> {
        Ok(vec![("kafka".to_owned(), self.state()?.committed)])
    }

    fn close(&mut self) -> Result<(), StoreError> {
        self.state()?.lane.abandon();
        Ok(())
    }
}
