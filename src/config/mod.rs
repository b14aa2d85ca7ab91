//! Configuration: the file as written, the settings that it means, and the DID lists.

pub mod settings;
