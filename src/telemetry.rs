//! Metric names and the door through which figures leave (DESIGN section 7, "Metrics"). Label sets are closed: no DID and
//! no host name is ever a label. Without an installed recorder every call costs one atomic load.

/// A one-DID worker of `stage` crashed.
pub fn worker_crashed(stage: &'static str) {
    metrics::counter!("skyfill_worker_crashes_total", "stage" => stage).increment(1);
}

/// The supervisor restarted `stage`.
pub fn stage_restarted(stage: &'static str) {
    metrics::counter!("skyfill_actor_restarts_total", "stage" => stage).increment(1);
}
