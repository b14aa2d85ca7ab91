//! Exporter: brings proven accounts into the journal; a sealed segment is what makes an account done.
//!
//! takes    RowChunk       capacity 8: a few chunks between any number of parsers and one disk
//! gives    sealed segments to the applier, and each account's ticket back when its segment is sealed
//! retries  a full disk, for ever; a full journal, after giving the youngest large account back; before an account it waits
//!          for a sink that holds more of the journal than it may (`store::followers`)
//! gives up on accounts larger than the journal; any other failure of the disk ends the process
//!
//! ```text
//!  chunks of an account ──> held in memory ──end──> group part ──8 MiB or 200 ms──> sealed
//!                              │ over 8 MiB, or the largest when half of the rows budget is held
//!                              '──> a part of its own ──end──> sealed
//! ```
//! It waits for no budget and gives a chunk's bytes back as soon as it is written. A restarted exporter begins with an empty
//! journal part; the accounts that were open go back uncharged.

mod open;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use ractor::{Actor, ActorProcessingErr, ActorRef, RpcReplyPort};

use crate::actor::mailbox::{Envelope, Mailbox};
use crate::domain::account::Revision;
use crate::limits::{GROUP_BYTES_MAX, GROUP_SEAL_MILLISECONDS};
use crate::stages::messages::{Export, News, Probe, Proven, Refusal, RowChunk, Ticket};
use crate::store::apply::Applier;
use crate::store::budget::{Budget, Reservation};
use crate::store::error::StoreError;
use crate::store::followers::Following;
use crate::store::health::Health;
use crate::store::items::Item;
use crate::store::journal::{Journal, JournalError, LargePart};
use crate::telemetry::{self, Stopwatch};

use open::{Open, refused};

/// Chunks in the mailbox.
pub const CAPACITY: usize = 8;

/// Who waits, in the log, when the disk is full.
const WRITER: &str = "journal";

/// What the stage is told.
pub enum Message {
    /// Rows.
    Chunk(Box<Envelope<RowChunk>>),
    /// The open group is this old now.
    SealDue(u64),
    /// Answered at once, unless the disk or the journal is waited for.
    Beat(RpcReplyPort<()>),
}

/// What the stage is started with.
#[derive(Clone)]
pub struct Arguments {
    /// Its mailbox, bound at each start.
    pub mailbox: Mailbox<RowChunk>,
    /// The journal.
    pub journal: Arc<Mutex<Journal>>,
    /// Who applies what is sealed.
    pub applier: Applier,
    /// Memory of rows: half of it is the most that unfinished accounts hold.
    pub rows: Budget,
    /// Where trouble with the disk is told.
    pub health: Health,
    /// Sees what passes.
    pub probe: Probe,
}

/// The exporter.
pub struct Exporter;

/// What the stage holds.
pub struct State {
    mailbox: Mailbox<RowChunk>,
    journal: Arc<Mutex<Journal>>,
    applier: Applier,
    rows: Budget,
    health: Health,
    probe: Probe,
    /// Unfinished accounts by export number: the oldest first.
    open: BTreeMap<u64, Open>,
    /// Accounts in the open group.
    group: Vec<Ticket>,
    /// Counts groups, so that a late timer seals nothing twice.
    generation: u64,
    following: Following,
    /// The last segment that had been applied when the sinks were looked at.
    looked_at: Option<u64>,
}

impl Actor for Exporter {
    type Msg = Message;
    type State = State;
    type Arguments = Arguments;

    async fn pre_start(
        &self,
        myself: ActorRef<Message>,
        arguments: Arguments,
    ) -> Result<State, ActorProcessingErr> {
        let Arguments { mailbox, journal, applier, rows, health, probe } = arguments;
        lock(&journal).discard_open()?;
        let unwrap = |message| match message {
            Message::Chunk(envelope) => Some(*envelope),
            _ => None,
        };
        mailbox.bind_heart(myself.clone(), Message::Beat);
        mailbox.bind_with(myself, |envelope| Message::Chunk(Box::new(envelope)), unwrap);
        let (open, group) = (BTreeMap::new(), Vec::new());
        let following = Following::new(Arc::clone(&journal), applier.clone());
        let (generation, looked_at) = (0, None);
        Ok(State {
            mailbox,
            journal,
            applier,
            rows,
            health,
            probe,
            open,
            group,
            generation,
            following,
            looked_at,
        })
    }

    async fn handle(
        &self,
        myself: ActorRef<Message>,
        message: Message,
        state: &mut State,
    ) -> Result<(), ActorProcessingErr> {
        let is_work = matches!(message, Message::Chunk(_));
        if is_work && state.probe.ends_stage("exporter", &myself).await? {
            return Ok(());
        }
        // A group that was begun by this message is sealed 200 ms later at the latest.
        let generation = state.generation;
        let had_group = !state.group.is_empty();
        let taken = match message {
            Message::Chunk(envelope) => state.take(envelope.message).await,
            Message::SealDue(due) if due == state.generation => state.seal_group().await,
            Message::SealDue(_) => Ok(()),
            Message::Beat(reply) => {
                let _gone = reply.send(());
                Ok(())
            }
        };
        if let Err(error) = taken {
            // The process ends; a restart of this actor would only try again what must not be tried again.
            state.health.fail(error);
            if state.health.is_ending() {
                return Ok(());
            }
            futures::future::pending::<()>().await;
        }
        if !state.group.is_empty() && (!had_group || generation != state.generation) {
            let due = state.generation;
            let after = Duration::from_millis(GROUP_SEAL_MILLISECONDS);
            myself.send_after(after, move || Message::SealDue(due));
        }
        Ok(())
    }

    /// What is complete is sealed before the pipeline stops.
    async fn post_stop(
        &self,
        _myself: ActorRef<Message>,
        state: &mut State,
    ) -> Result<(), ActorProcessingErr> {
        if let Err(error) = state.seal_group().await {
            state.health.fail(error);
        }
        Ok(())
    }
}

impl State {
    async fn take(&mut self, chunk: RowChunk) -> Result<(), StoreError> {
        self.wait_for_sinks().await?;
        self.drop_abandoned();
        let RowChunk { export, sequence, items, reservation, end } = chunk;
        let id = export.id;
        if sequence == 0 {
            self.open.insert(id, Open::new(&export));
        }
        let known = self.open.get_mut(&id).filter(|open| open.next == sequence);
        let Some(open) = known.filter(|_| export.refused().is_none()) else {
            self.close(id);
            export.refuse(export.refused().unwrap_or(Refusal::Restarted));
            end.into_iter().for_each(|end| end.ticket.finish(News::GivenBack));
            return Ok(());
        };
        open.next += 1;
        open.held.extend(items);
        open.reservations.extend(reservation);
        let is_small = open.large.is_none() && open.held_bytes() <= GROUP_BYTES_MAX;
        if !is_small && !self.write_large(id).await? {
            end.into_iter().for_each(|end| refused(&export, end.ticket));
            return Ok(());
        }
        match end {
            Some(end) => self.complete(id, &export, end).await,
            None => self.keep_within_budget().await,
        }
    }

    /// While a sink holds more than it may, nothing more is written: what is complete is sealed, which the sink need not have to
    /// get on, and everybody before this stage waits with it.
    async fn wait_for_sinks(&mut self) -> Result<(), StoreError> {
        // What a sink holds grows with what is applied, and in no other way.
        let applied = Some(self.applier.applied_through());
        if applied == self.looked_at || !self.following.is_too_far() {
            self.looked_at = applied;
            return Ok(());
        }
        if !self.group.is_empty() {
            self.seal_group().await?;
        }
        self.mailbox.rest(true);
        self.following.wait_for_room(&self.health).await;
        self.mailbox.rest(false);
        Ok(())
    }

    /// Moves the largest unfinished accounts to parts of their own until less than half of the rows budget is held.
    async fn keep_within_budget(&mut self) -> Result<(), StoreError> {
        loop {
            let held: u64 = self
                .open
                .values()
                .flat_map(|open| &open.reservations)
                .map(Reservation::bytes)
                .sum();
            if held < self.rows.limit() / 2 {
                return Ok(());
            }
            let largest = self.open.iter().max_by_key(|(_, open)| open.held_bytes());
            let Some(id) = largest.map(|(id, _)| *id) else { return Ok(()) };
            self.write_large(id).await?;
        }
    }

    async fn complete(
        &mut self,
        id: u64,
        export: &Arc<Export>,
        end: Proven,
    ) -> Result<(), StoreError> {
        let Proven { ticket, revision } = end;
        let Some(mut open) = self.open.remove(&id) else { return Ok(()) };
        if let Some(large) = open.large.take() {
            self.seal_large(large, &revision).await?;
            ticket.finish(News::Sealed);
            return Ok(());
        }
        if !self.append_account(&revision, &open.held, export).await? {
            refused(export, ticket);
            return Ok(());
        }
        drop(open);
        self.group.push(ticket);
        let is_full = lock(&self.journal).group_bytes() >= GROUP_BYTES_MAX;
        if is_full { self.seal_group().await } else { Ok(()) }
    }

    /// Appends a small account to the open group; `false`: the journal is too small for it.
    async fn append_account(
        &mut self,
        revision: &Revision,
        items: &[Item],
        export: &Export,
    ) -> Result<bool, StoreError> {
        loop {
            let appended = {
                let items: Vec<&Item> = items.iter().collect();
                tokio::task::block_in_place(|| lock(&self.journal).append_account(revision, &items))
            };
            match appended {
                Ok(()) => {
                    self.health.cleared(WRITER);
                    return Ok(true);
                }
                Err(JournalError::TooLarge) => {
                    export.refuse(Refusal::TooLarge);
                    return Ok(false);
                }
                Err(JournalError::NoRoom) => {
                    if let Some(refusal) = self.make_room(None).await? {
                        export.refuse(refusal);
                        return Ok(false);
                    }
                }
                Err(JournalError::Store(error)) => self.wait_or_fail(error).await?,
            }
        }
    }

    /// Writes what an account holds to its own part; `false`: it was refused.
    async fn write_large(&mut self, id: u64) -> Result<bool, StoreError> {
        loop {
            let Some(open) = self.open.get_mut(&id) else { return Ok(false) };
            let written = tokio::task::block_in_place(|| open.write(&self.journal));
            match written {
                Ok(()) => {
                    self.health.cleared(WRITER);
                    return Ok(true);
                }
                Err(JournalError::TooLarge) => {
                    self.refuse(id, Refusal::TooLarge);
                    return Ok(false);
                }
                Err(JournalError::NoRoom) => {
                    if let Some(refusal) = self.make_room(Some(id)).await? {
                        self.refuse(id, refusal);
                        return Ok(false);
                    }
                }
                Err(JournalError::Store(error)) => self.wait_or_fail(error).await?,
            }
        }
    }

    async fn seal_large(
        &mut self,
        large: LargePart,
        revision: &Revision,
    ) -> Result<(), StoreError> {
        let (mut large, sealing) = (Some(large), Stopwatch::start());
        while let Some(part) = large.take() {
            let sealed =
                tokio::task::block_in_place(|| lock(&self.journal).seal_large(part, revision));
            if let Err(failed) = sealed {
                let (part, error) = *failed;
                large = Some(part);
                // Sealing reserves nothing, so there is always room for it.
                if let JournalError::Store(error) = error {
                    self.wait_or_fail(error).await?;
                }
            }
        }
        telemetry::sealed(sealing);
        self.health.cleared(WRITER);
        self.applier.wake();
        Ok(())
    }

    async fn seal_group(&mut self) -> Result<(), StoreError> {
        let sealing = Stopwatch::start();
        loop {
            let sealed = tokio::task::block_in_place(|| lock(&self.journal).seal_group());
            // Sealing reserves nothing, so there is always room for it.
            let Err(JournalError::Store(error)) = sealed else { break };
            self.wait_or_fail(error).await?;
        }
        self.health.cleared(WRITER);
        self.generation += 1;
        if !self.group.is_empty() {
            telemetry::sealed(sealing);
        }
        self.group.drain(..).for_each(|ticket| ticket.finish(News::Sealed));
        self.applier.wake();
        Ok(())
    }

    /// Frees journal space for `wanting` (a large account, or `None`: one for the group): seals the group, waits for the
    /// applier, and if nothing is left to be applied, gives the youngest large account back; the oldest always proceeds.
    /// Says why `wanting` itself must give way, if it must.
    async fn make_room(&mut self, wanting: Option<u64>) -> Result<Option<Refusal>, StoreError> {
        self.drop_abandoned();
        if !self.group.is_empty() {
            self.seal_group().await?;
        }
        let (forgotten, newest) = {
            let journal = lock(&self.journal);
            (journal.forgotten(), journal.newest())
        };
        if forgotten < newest {
            self.applier.wake();
            // The applier may have to wait for a reader who holds a queue: that can take as long as the reader likes.
            self.mailbox.rest(true);
            self.applier.forgotten_after(forgotten).await;
            self.mailbox.rest(false);
            return Ok(None);
        }
        let mut large =
            self.open.iter().filter(|(_, open)| open.large.is_some()).map(|(id, _)| *id);
        let (oldest, youngest) = (large.next().or(wanting), large.next_back());
        match youngest {
            Some(id) if Some(id) == wanting => Ok(Some(Refusal::NoRoom)),
            Some(id) => {
                self.refuse(id, Refusal::NoRoom);
                Ok(None)
            }
            None if wanting == oldest => Ok(Some(Refusal::TooLarge)),
            None => Ok(Some(Refusal::NoRoom)),
        }
    }

    fn refuse(&mut self, id: u64, why: Refusal) {
        if let Some(export) = self.open.get(&id).and_then(|open| open.export.upgrade()) {
            export.refuse(why);
        }
        self.close(id);
    }

    /// Forgets accounts whose walk has ended without a proof.
    fn drop_abandoned(&mut self) {
        let dead: Vec<u64> = self
            .open
            .iter()
            .filter(|(_, open)| open.export.strong_count() == 0)
            .map(|(id, _)| *id)
            .collect();
        dead.into_iter().for_each(|id| self.close(id));
    }

    fn close(&mut self, id: u64) {
        if let Some(large) = self.open.remove(&id).and_then(|mut open| open.large.take()) {
            lock(&self.journal).discard_large(large);
        }
    }

    async fn wait_or_fail(&self, error: StoreError) -> Result<(), StoreError> {
        if !error.is_full() || self.health.is_ending() {
            return Err(error);
        }
        self.mailbox.rest(true);
        self.health.pause(WRITER, &error).await;
        self.mailbox.rest(false);
        Ok(())
    }
}

fn lock(journal: &Mutex<Journal>) -> std::sync::MutexGuard<'_, Journal> {
    journal.lock().unwrap_or_else(PoisonError::into_inner)
}
