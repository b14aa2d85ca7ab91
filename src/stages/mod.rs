//! The stages of the pipeline, one file each; no stage imports another.

pub mod messages;
