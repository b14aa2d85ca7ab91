//! Heart: asks every stage for its heartbeat, and has those replaced that hang.
//!
//! A stage hangs if it neither answered nor rested at [`LOOKS`] looks in a row: one that comes late, because the whole process was
//! stopped for a while, counts once. Its successor takes over as after a crash: what it had in hand goes back uncharged.

use std::collections::HashMap;
use std::time::Duration;

use ractor::ActorRef;
use tokio::time::{MissedTickBehavior, interval};

use crate::actor::pulse::LOOKS;
use crate::actor::supervisor::Command;
use crate::pipeline::reach::Reach;

/// Watches as long as there is a supervisor; a stage is replaced that was silent for `patience`.
pub async fn replace_silent(reach: Reach, supervisor: ActorRef<Command>, patience: Duration) {
    tokio::select! {
        // It ends when everything does, however.
        _ended = supervisor.wait(None) => {}
        () = look(&reach, &supervisor, patience / LOOKS) => {}
    }
}

/// Looks every `patience`, and waits as long for answers.
async fn look(reach: &Reach, supervisor: &ActorRef<Command>, patience: Duration) {
    let mut looks = interval(patience);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut misses: HashMap<&'static str, u32> = HashMap::new();
    loop {
        looks.tick().await;
        let silent = reach.silent(patience).await;
        misses.retain(|stage, _| silent.contains(stage));
        for stage in silent {
            let missed = misses.entry(stage).or_default();
            *missed += 1;
            if *missed >= LOOKS {
                *missed = 0;
                // A supervisor that has ended replaces nobody any more.
                let _gone = supervisor.cast(Command::Replace(stage));
            }
        }
    }
}
