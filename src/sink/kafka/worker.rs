//! The sink of a worker: what it has sealed goes to the topics through the lane of the partition that asked for it.
//!
//! ```text
//!  segment ──accounts by partition──> held: rows, accounts' records and offsets, one transaction a partition
//!                                     decided already (a crash came after the commit): passed over
//!                                     given up: passed over, its next owner does it
//! ```
//! An account is in one transaction whatever its size: if it is not committed whole, the next owner begins it anew. The accounts'
//! records come last in it, so that readers of that topic wait for moments only. Where the sink is, is the ledger's to say:
//! what it is given again is decided by the offsets.

use std::collections::{BTreeMap, BTreeSet};

use crate::domain::account::Revision;
use crate::sink::kafka::accounts::{self, AccountState, Input, Origin, Rows};
use crate::sink::kafka::holding::Holding;
use crate::sink::kafka::holdings::{Holdings, lock};
use crate::sink::kafka::lane::Outgoing;
use crate::sink::kafka::{headers, named, names, topics};
use crate::sink::{Position, SegmentReader, Sink, SinkItem, Start, StoreError};

/// One account of a segment, and the messages that asked for it in one partition.
struct Asked<'s> {
    revision: &'s Revision,
    items: Vec<SinkItem<'s>>,
    offsets: Vec<i64>,
}

/// The sink of a worker.
pub struct WorkerSink {
    name: String,
    holdings: Holdings,
    origin: Origin,
    /// Topics that were looked at.
    looked_at: BTreeSet<String>,
    taken: Position,
}

impl WorkerSink {
    /// The sink `name`; the cluster is asked nothing before it begins.
    #[must_use]
    pub fn new(name: String, holdings: Holdings) -> Self {
        let origin = Origin { directory: String::new(), sink: name.clone() };
        let (looked_at, taken) = (BTreeSet::new(), Position::default());
        Self { name, holdings, origin, looked_at, taken }
    }

    /// The accounts of `segment` that a partition of ours asked for, by partition.
    fn asked<'s>(&self, segment: &'s SegmentReader) -> BTreeMap<i32, Vec<Asked<'s>>> {
        let start = Position { segment: segment.number, item: 0 };
        let mut items = segment.items_from(start).peekable();
        let mut by_partition: BTreeMap<i32, Vec<Asked<'_>>> = BTreeMap::new();
        for revision in segment.accounts() {
            let its =
                std::iter::from_fn(|| items.next_if(|item| std::ptr::eq(item.account, revision)));
            let its = its.collect();
            let Some((partition, offsets)) = self.holdings.asked(&revision.did) else {
                tracing::debug!(did = %revision.did, "nobody asks for it here any more");
                continue;
            };
            let asked = Asked { revision, items: its, offsets };
            by_partition.entry(partition).or_default().push(asked);
        }
        by_partition
    }

    fn take(&mut self, partition: i32, accounts: &[Asked<'_>]) -> Result<(), StoreError> {
        let Some(holding) = self.holdings.holding(partition) else { return Ok(()) };
        let holdings = self.holdings.clone();
        let mut holding = lock(&holding);
        if !holding.ready(&holdings)? {
            return Ok(());
        }
        let is_decided =
            |account: &&Asked<'_>| account.offsets.iter().any(|offset| holding.is_decided(*offset));
        let (decided, due): (Vec<_>, Vec<_>) = accounts.iter().partition(is_decided);
        if !decided.is_empty() {
            self.make_sure_done(&holding, &decided)?;
            let (offsets, done) = ended(&decided);
            holding.forget(&holdings, &offsets, &done)?;
        }
        if due.is_empty() {
            return Ok(());
        }
        let sent = self.send(&mut holding, &due).and_then(|()| {
            let (offsets, done) = ended(&due);
            holding.commit(&holdings, &offsets, &done)
        });
        sent.inspect_err(|_| holding.abandon())
    }

    /// Makes sure that accounts whose messages are `decided` are done: that a commit which nobody heard of was theirs. A message
    /// is decided, too, if it was handed over; somebody else's asks for the account then, maybe one of ours that was read
    /// meanwhile. Such an account is not done, and waits until the ledger has heard of that.
    fn make_sure_done(&self, holding: &Holding, decided: &[&Asked<'_>]) -> Result<(), StoreError> {
        let shown: Vec<&str> = decided.iter().map(|it| it.revision.shown_did()).collect();
        let are_done = self.holdings.are_done(&shown)?;
        let others = decided.iter().zip(are_done).filter(|(_, is_done)| !is_done);
        let offsets = others.flat_map(|(account, _)| account.offsets.iter().copied());
        let left: Vec<i64> = offsets.filter(|offset| holding.is_decided(*offset)).collect();
        if left.is_empty() {
            return Ok(());
        }
        self.holdings.leave(holding.partition, left);
        Err(StoreError::busy("messages that were handed over leave the ledger first"))
    }

    /// Sends rows first and records last.
    fn send(&mut self, holding: &mut Holding, accounts: &[&Asked<'_>]) -> Result<(), StoreError> {
        let mut buffer = Vec::new();
        let mut records = Vec::new();
        let partition = holding.partition;
        for Asked { revision, items, offsets } in accounts {
            let (headers, key) = (headers(revision), revision.shown_did());
            let mut rows = Rows::new();
            for item in items {
                let topic = self.topic(item.label)?;
                topics::send_rows(
                    holding.sending()?,
                    &topic,
                    (key, &headers),
                    item.payload(&mut buffer)?,
                )?;
                *rows.entry(item.label.to_owned()).or_default() += u64::from(item.records);
            }
            let offset = offsets.first().copied().unwrap_or_default();
            let (state, input) = (AccountState::Done, Input { partition, offset });
            let position = items.last().map_or(self.taken, |item| item.after);
            let value =
                accounts::record(revision, state, &rows, &self.origin, (position, Some(input)));
            records.push((key, headers, value));
        }
        let topic = self.topic("accounts")?;
        for (key, headers, value) in &records {
            let message = Outgoing { topic: &topic, partition: None, key, value };
            holding.sending()?.send(message, headers)?;
        }
        Ok(())
    }

    /// Makes sure that the topic of `label` can take its rows; gives its name.
    fn topic(&mut self, label: &str) -> Result<String, StoreError> {
        topics::ensured(self.holdings.clients(), &mut self.looked_at, label)
    }
}

/// Messages and accounts that are at their end.
fn ended<'a>(accounts: &[&'a Asked<'_>]) -> (Vec<i64>, Vec<(&'a str, &'a str)>) {
    let offsets = accounts.iter().flat_map(|account| account.offsets.iter().copied()).collect();
    let names = |account: &&'a Asked<'_>| (&*account.revision.did, account.revision.shown_did());
    (offsets, accounts.iter().map(names).collect())
}

impl Sink for WorkerSink {
    fn begin(&mut self, start: &Start) -> Result<Position, StoreError> {
        self.origin.directory.clone_from(&start.directory);
        let clients = self.holdings.clients();
        let topics = names(&clients.broker.prefix, &start.labels);
        topics::ensure(clients, &topics, true).map_err(|error| named(&self.name, error))?;
        self.looked_at.extend(topics);
        self.taken = start.known;
        Ok(start.known)
    }

    fn apply(&mut self, segment: &SegmentReader) -> Result<(), StoreError> {
        if !self.holdings.is_assigned() {
            let group = self.holdings.group();
            return Err(StoreError::busy(format!("the group {group} has not answered yet")));
        }
        for (partition, accounts) in self.asked(segment) {
            self.take(partition, &accounts).map_err(|error| named(&self.name, error))?;
        }
        self.taken = segment.end();
        Ok(())
    }

    fn settle(&mut self) -> Result<Vec<(String, Position)>, StoreError> {
        Ok(vec![("kafka".to_owned(), self.taken)])
    }
}
