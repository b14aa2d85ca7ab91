//! What is logged, as tests hear it. Only in tests.

use std::sync::{Arc, Mutex, PoisonError};

use tracing_subscriber::Layer;
use tracing_subscriber::layer::{Context, SubscriberExt};

/// Messages of the log.
#[derive(Clone, Default)]
pub struct Messages(Arc<Mutex<Vec<String>>>);

impl Messages {
    /// Those of `work`, on this thread.
    pub fn of(work: impl FnOnce()) -> Vec<String> {
        let messages = Self::default();
        let subscriber = tracing_subscriber::registry().with(messages.clone());
        // With a second one alive, what another thread logs first is not decided by that thread alone, which has none.
        let _another = tracing::Dispatch::new(tracing_subscriber::registry());
        tracing::subscriber::with_default(subscriber, work);
        std::mem::take(&mut *messages.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl<S: tracing::Subscriber> Layer<S> for Messages {
    fn on_event(&self, event: &tracing::Event<'_>, _: Context<'_, S>) {
        let mut keep = |field: &tracing::field::Field, value: &dyn std::fmt::Debug| {
            if field.name() == "message" {
                self.0.lock().unwrap_or_else(PoisonError::into_inner).push(format!("{value:?}"));
            }
        };
        event.record(&mut keep as &mut dyn tracing::field::Visit);
    }
}
