//! Telling: what became of accounts without rows, told to the topics, with the messages that asked for them.
//!
//! ```text
//!  parked                   its record in <topics>.accounts           ┐
//!  its host is another's    on <topics>.dids again, under that host   ├ and the message is decided: one transaction a partition
//!  it holds the window back on <topics>.dids again, at the end        ┘
//! ```
//! Who was handed over is not listed here any more; where it goes it is admitted anew.

use std::collections::BTreeMap;

use rdkafka::message::OwnedHeaders;

use crate::crash_point;
use crate::pipeline::Reach;
use crate::pipeline::sharing::Trouble;
use crate::sink::Parked;
use crate::sink::kafka::accounts::{self, Input, Origin};
use crate::sink::kafka::dids::{self, Wanted};
use crate::sink::kafka::holding::Holding;
use crate::sink::kafka::holdings::Holdings;
use crate::sink::kafka::lane::Outgoing;
use crate::sink::kafka::parked::{self, Source};
use crate::store::error::StoreError;
use crate::store::ledger_inputs::{ParkedInput, StrayedInput};
use crate::transform::pseudonym::Pseudonyms;

/// Accounts of one kind that are told in one go.
const TOLD_AT_ONCE: usize = 500;

/// Messages that hold the window of their partition back, with their accounts.
pub type Stragglers = Vec<(i32, (i64, String))>;

/// Who tells.
pub struct Teller {
    /// The partitions.
    pub holdings: Holdings,
    /// The ledger.
    pub reach: Reach,
    /// Whose records they are.
    pub origin: Origin,
    /// What the topics call accounts, if not by their DIDs.
    pub names: Option<Pseudonyms>,
}

/// What is to be told of one partition.
#[derive(Default)]
struct Telling {
    parked: Vec<ParkedInput>,
    strayed: Vec<StrayedInput>,
    /// What holds the window back: offset and account.
    straggler: Option<(i64, String)>,
}

impl Teller {
    /// Tells what came without rows.
    pub fn tell(&self, stragglers: Stragglers) -> Result<(), Trouble> {
        let holdings = self.holdings.clone();
        // In one go: each is a transaction of the writer.
        let (parked, strayed, forgotten) = self.reach.ledger().run_blocking(move |rows| {
            let is_ours = |host: &str, _partition| holdings.has_host(host);
            let strayed = rows.strayed_inputs(TOLD_AT_ONCE, &is_ours)?;
            Ok((rows.parked_inputs(TOLD_AT_ONCE)?, strayed, rows.forgotten_inputs(TOLD_AT_ONCE)?))
        })?;
        // Nobody is to hear of them any more.
        for input in forgotten {
            self.holdings.settle((input.partition, input.offset));
        }
        let mut telling: BTreeMap<i32, Telling> = BTreeMap::new();
        for input in parked {
            telling.entry(input.partition).or_default().parked.push(input);
        }
        for input in strayed {
            telling.entry(input.partition).or_default().strayed.push(input);
        }
        for (partition, straggler) in stragglers {
            telling.entry(partition).or_default().straggler = Some(straggler);
        }
        for partition in self.holdings.unsettled() {
            telling.entry(partition).or_default();
        }
        for (partition, telling) in telling {
            self.tell_partition(partition, telling)?;
        }
        Ok(())
    }

    fn tell_partition(&self, partition: i32, mut telling: Telling) -> Result<(), Trouble> {
        let Some(holding) = self.holdings.holding(partition) else { return Ok(()) };
        // Its sink commits at the moment: the next time will do, and the group is heard meanwhile.
        let Ok(mut holding) = holding.try_lock() else { return Ok(()) };
        if !holding.ready(&self.holdings)? {
            return Ok(());
        }
        // What was committed although nobody heard of it: told, or handed over.
        let of_parked = telling.parked.iter().map(|it| it.offset);
        let told: Vec<i64> = of_parked.filter(|at| holding.is_decided(*at)).collect();
        holding.forget(&self.holdings, &told, &[])?;
        let of_strayed = telling.strayed.iter().map(|it| it.offset);
        let moved = of_strayed.chain(telling.straggler.iter().map(|(at, _)| *at));
        self.holdings.leave(partition, moved.filter(|at| holding.is_decided(*at)));
        telling.parked.retain(|it| !holding.is_decided(it.offset));
        telling.strayed.retain(|it| !holding.is_decided(it.offset));
        telling.straggler = telling.straggler.filter(|(at, _)| !holding.is_decided(*at));
        let told = self.send(&mut holding, &telling).and_then(|moved| {
            let parked = telling.parked.iter().map(|it| it.offset);
            let offsets: Vec<i64> = parked.chain(moved.iter().copied()).collect();
            holding.commit(&self.holdings, &offsets, &[])?;
            Ok(moved)
        });
        let moved = told.inspect_err(|_| holding.abandon())?;
        drop(holding);
        if !moved.is_empty() {
            // The topics say that others do them, and nobody here has heard of it.
            crash_point!(SinkKafkaHandedOverBeforeTold);
            tracing::info!(partition, accounts = moved.len(), "accounts were handed over");
            self.holdings.leave(partition, moved);
            take_out_left(&self.holdings, &self.reach)?;
        }
        Ok(())
    }

    /// Sends records and messages; gives the offsets of the accounts that are handed over.
    fn send(&self, holding: &mut Holding, telling: &Telling) -> Result<Vec<i64>, StoreError> {
        let prefix = &self.holdings.clients().broker.prefix;
        let (accounts_topic, dids_topic) = (accounts::topic(prefix), dids::topic(prefix));
        let partition = holding.partition;
        for it in &telling.parked {
            let shown = self.names.as_ref().map(|names| names.of(&it.did));
            let parked = Parked {
                did: shown.unwrap_or_else(|| it.did.clone()),
                reason: it.reason.clone(),
                last_error: it.last_error.clone(),
                attempts: it.attempts,
                revision: None,
            };
            let source = Source::Worker(Input { partition, offset: it.offset });
            let (key, value) = (&parked.did, parked::record(&parked, &self.origin, source));
            let message = Outgoing { topic: &accounts_topic, partition: None, key, value: &value };
            holding.sending()?.send(message, &OwnedHeaders::new())?;
        }
        let mut moved = Vec::new();
        for it in &telling.strayed {
            let wanted = Wanted {
                did: it.did.clone(),
                identity: Some(it.identity.clone()),
                reason: None,
                resolved_at_ms: it.resolved_at_ms,
            };
            let value = serde_json::to_string(&wanted).map_err(StoreError::sink)?;
            let message =
                Outgoing { topic: &dids_topic, partition: None, key: &it.host, value: &value };
            holding.sending()?.send(message, &OwnedHeaders::new())?;
            moved.push(it.offset);
        }
        if let Some((offset, did)) = &telling.straggler {
            // What the ledger knows of it stays there; whoever else gets it asks the directory.
            let wanted =
                Wanted { did: did.clone(), identity: None, reason: None, resolved_at_ms: 0 };
            let value = serde_json::to_string(&wanted).map_err(StoreError::sink)?;
            let message = Outgoing {
                topic: &dids_topic,
                partition: Some(partition),
                key: did,
                value: &value,
            };
            holding.sending()?.send(message, &OwnedHeaders::new())?;
            moved.push(*offset);
        }
        Ok(moved)
    }
}

/// Tells the ledger which messages others have to do with now.
pub fn take_out_left(holdings: &Holdings, reach: &Reach) -> Result<(), Trouble> {
    for (partition, offsets) in holdings.left() {
        let out = offsets.clone();
        reach.ledger().run_blocking(move |rows| rows.hand_over_inputs(partition, &out))?;
        holdings.taken_out(partition, &offsets);
    }
    Ok(())
}
