//! What operators see and send: log, metrics and health, progress, signals, systemd, the control socket.

pub mod control;
pub mod http;
pub mod logging;
pub mod notify;
pub mod progress;
pub mod recorder;
pub mod signals;
