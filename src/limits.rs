//! Compiled bounds, each with its unit in its name and its reason beside it. What an operator may change is in
//! `config::settings`; what is here follows from the protocol or from the design.

/// A record's block above this is `too_large` (PROTOCOL: record 1,000,000 bytes).
pub const RECORD_BYTES_MAX: usize = 1_000_000;

/// A CAR section above this is hashed as it streams by and never held: twice the record limit, so that every record that
/// could be exported and every MST node of the reference implementation is held.
pub const SECTION_HELD_BYTES_MAX: u64 = 2 << 20;

/// Nesting of CBOR values. The protocol's own limit is 32, but records of 52 levels exist and the Python service exported
/// them; twice the limit keeps those and stops bombs.
pub const CBOR_DEPTH_MAX: usize = 64;

/// Bytes of an MST key `<nsid>/<rkey>` (PROTOCOL section 5).
pub const MST_KEY_BYTES_MAX: usize = 1_024;

/// Bytes of all keys of one MST node, written out: a node shares the beginnings of its keys, so 2 MiB of it could stand for
/// 38 MiB. An entry takes more bytes than a usual key, so an honest node's keys are shorter than itself.
pub const MST_NODE_KEYS_BYTES_MAX: usize = 2 << 20;

/// Levels of an MST: a SHA-256 has 256 bits, a level is two of them.
pub const MST_DEPTH_MAX: usize = 128;

/// Bytes of a DID (PROTOCOL section 5).
pub const DID_BYTES_MAX: usize = 2_048;

/// Bytes of an NSID (PROTOCOL section 5).
pub const NSID_BYTES_MAX: usize = 317;

/// Bytes of a DID document; real ones are about 1 KB.
pub const DOCUMENT_BYTES_MAX: usize = 256 << 10;

/// Bytes of a DID's operation log; an operation has about 1 KB, and few accounts have more than ten.
pub const LOG_BYTES_MAX: usize = 1 << 20;

/// Bytes of an error body that are read to find its name and message.
pub const ERROR_BODY_BYTES_MAX: usize = 16 << 10;

/// Bytes of one row chunk between parser and exporter, unless a single row is larger (a record of 1 MB of control
/// characters becomes a row of 7 MB).
pub const ROW_CHUNK_BYTES: usize = 1 << 20;

/// Bytes of one queue item's payload, unless a single row is larger (DESIGN section 7).
pub const ITEM_BYTES_MAX: usize = 8 << 20;

/// Bytes of rows up to which an account is appended whole to the open group segment (DESIGN section 5).
pub const GROUP_BYTES_MAX: u64 = 8 << 20;

/// An open group segment is sealed when it is this old, so that small accounts are not kept waiting.
pub const GROUP_SEAL_MILLISECONDS: u64 = 200;

/// Attempts of a DID that crashes its worker before it is parked as `crash_loop`; likewise process deaths.
pub const CRASHES_MAX: u32 = 3;

/// A walk that reads no further record for this long, and waits for nobody, hangs: its DID goes back with one attempt more and
/// its thread is replaced. One record takes microseconds; the slowest step, opening 4 GiB of blocks on a slow disk, seconds.
pub const WALK_SILENT_SECONDS: u64 = 120;

/// A resolution or transfer of which nothing is heard for this long, beyond what its requests may take, hangs: its DID goes back
/// with one attempt more. Their own timeouts come first; this one is for what those have missed.
pub const WORKER_SILENT_SECONDS: u64 = 600;

/// A stage that does not answer for this long, and did not say that it rests, hangs and is replaced; nobody is charged. Longer than
/// systemd's watchdog (60 s), which ends the whole process, so that a disk that takes its time costs no stage.
pub const STAGE_SILENT_SECONDS: u64 = 120;

/// Seconds that a host may be waited for before its transfer can be called slow: short stalls are normal (PROTOCOL section 4).
pub const DRIP_AGE_SECONDS: u64 = 60;

/// A slow transfer came at less than the median speed divided by this.
pub const DRIP_SPEED_SHARE: f64 = 10.0;

/// Slow transfers hold at most the places divided by this: the hosts of one party leave three quarters to the others.
pub const DRIP_PLACES_SHARE: usize = 4;

/// KiB of messages that librdkafka holds for a sink to Kafka; it is part of the base of memory, twice while batches are made.
pub const KAFKA_QUEUE_KIB: u32 = 8 << 10;

/// Messages that it holds: each has about 300 bytes beside its own.
pub const KAFKA_QUEUE_MESSAGES: u32 = 20_000;

/// Bytes of `max.message.bytes` that every topic must take: a row can become 7 MB.
pub const KAFKA_MESSAGE_BYTES_MIN: u32 = 8 << 20;

/// Accounts of one partition of `<topics>.dids` that a worker has taken and not decided: two minutes of a host at 9 requests a
/// second, and 10 MB in memory for 64 partitions.
pub const ADMITTED_PER_PARTITION_MAX: usize = 1_000;
/// Offsets of a partition that a worker may know beyond the first undecided one: their bits are 2 KiB, 2,731 characters beside an
/// offset, and brokers take 4,096 (`offset.metadata.max.bytes`). Who reaches it reads on when the first one is decided.
pub const INPUT_WINDOW_OFFSETS_MAX: u32 = 16_384;
