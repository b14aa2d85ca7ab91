//! What operators see and send: log, metrics and health, progress, signals.

pub mod http;
pub mod logging;
pub mod progress;
pub mod recorder;
pub mod signals;
