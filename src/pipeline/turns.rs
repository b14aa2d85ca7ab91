//! Turns at hosts for who asks beside the work: from the scheduler, or where none runs, at the same paces kept here.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use ractor::ActorRef;
use tokio::sync::watch;

use crate::clock::Clock;
use crate::net::pace::{HostPace, PaceLimits, Turn};
use crate::seed::Chance;
use crate::stages::messages::{DIRECTORY_TURN, Paced, Permit, PermitDesk, PermitNews, TurnDesk};
use crate::stages::scheduler::Message;

/// A host that has as many requests out as it may is asked for again after this long.
const BUSY_PAUSE: Duration = Duration::from_millis(20);

/// Hosts whose pace is remembered; beyond that the idle ones are forgotten.
const HOSTS_MAX: usize = 4_096;

/// The desk of a running scheduler; while it is being started again, nobody answers.
#[must_use]
pub fn of(scheduler: watch::Receiver<Option<ActorRef<Message>>>) -> TurnDesk {
    Arc::new(move |host, reply| {
        if let Some(scheduler) = scheduler.borrow().as_ref() {
            let _gone = scheduler.cast(Message::Turn(host, reply));
        }
    })
}

/// A desk that gives turns at hosts by `limits`, and at the directory by its own.
#[must_use]
pub fn alone(limits: PaceLimits, directory: PaceLimits, clock: Clock, chance: Chance) -> TurnDesk {
    let paces: Arc<Mutex<HashMap<String, HostPace>>> = Arc::default();
    let (told, at) = (Arc::clone(&paces), clock.clone());
    let permits: PermitDesk = Arc::new(move |paced, news| {
        let Paced::Web(host) = paced else { return };
        let mut paces = told.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(pace) = paces.get_mut(host) else { return };
        match news {
            PermitNews::Said(signal) => pace.note(&signal, at.now(), &chance),
            PermitNews::AlsoAsked => pace.spend(at.now()),
            PermitNews::Returned => pace.give_back(),
        }
    });
    Arc::new(move |host, reply| {
        let now = clock.now();
        let turn = {
            let mut paces = paces.lock().unwrap_or_else(PoisonError::into_inner);
            if paces.len() >= HOSTS_MAX {
                paces.retain(|_, pace| !pace.is_idle(now));
            }
            let limits = if host == DIRECTORY_TURN { directory } else { limits };
            let pace = paces.entry(host.clone()).or_insert_with(|| HostPace::new(limits, now));
            pace.take(now)
        };
        let told = match turn {
            Turn::Go { .. } => Ok(Permit::new(Paced::Web(host), Arc::clone(&permits))),
            Turn::At(at) => Err(at.saturating_duration_since(now)),
            Turn::Busy => Err(BUSY_PAUSE),
        };
        // Whoever has gone meanwhile drops the permit, and it comes back.
        let _gone = reply.send(told);
    })
}
