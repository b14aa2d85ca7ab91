//! What operators see and send: log, progress, signals.

pub mod logging;
pub mod progress;
pub mod signals;
