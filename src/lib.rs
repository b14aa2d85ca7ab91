//! skyfill backfills Bluesky (AT Protocol) accounts: it finds each account's server, downloads its repository, proves that
//! it is complete and authentic, and puts its records, by type, into queues. `README.md` maps the source tree.
//!
//! As a library it does what `skyfill backfill` does, from any program, blocking or async:
//!
//! - [`run_batched_backfill`] and [`run_batched_backfill_async`]: the Python service's function, with its keys;
//! - [`Backfill`]: everything else, with [`Events`] of what happens, a [`Handle`] to cancel, and a [`Report`];
//! - [`sink::Sink`]: a place of your own that the records go to, each once.
//!
//! A run keeps its state in a data directory and is resumable at any moment, however it ended: the same call goes on where the
//! last one was. One run at a time uses a data directory; several with directories of their own may run in one process. It
//! lives on threads of its own and leaves its process alone: no signal handler, logger, metrics recorder or TLS provider is
//! installed, nothing is printed, no environment or directory is changed. Records of its log go to the program's `tracing`
//! subscriber, figures to its `metrics` recorder, if it has them. (The command also gives itself two heaps of glibc's that
//! give large buffers back, which saves memory: set `GLIBC_TUNABLES=glibc.malloc.arena_max=2:glibc.malloc.mmap_threshold=1048576` for
//! a program whose memory matters.)
//!
//! # Examples
//! A run over a small network on this machine. With real hosts, `plc_url`, `allow_network` and the pace are left out.
//!
//! ```
//! # #[path = "../tests/support/mod.rs"]
//! # mod support;
//! # let shape = support::world::Shape { accounts: 8, hosts: 2, ..Default::default() };
//! # let network = support::Network::generate(&shape);
//! # let folder = tempfile::tempdir()?;
//! # let (dids, data_dir, plc_url) = (network.world().dids(), folder.path().join("data"), network.plc.url());
//! use skyfill::Backfill;
//!
//! let report = Backfill::new()
//!     .data_dir(&data_dir)
//!     .dids(dids)
//!     .types(["post", "like"])
//!     .plc_url(&plc_url)
//!     .allow_network("127.0.0.0/8")
//!     .set("fetch.host_requests_per_second", "1000")
//!     .run()?;
//! assert_eq!((report.accounts.done, report.accounts.parked), (8, 0));
//! assert_eq!(report.records["post"] + report.records["like"], report.this_run.records);
//! report.each_user(|user| assert!(user.did.starts_with("did:plc:")))?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! The same in async code, watched. It works under any runtime, and blocks none:
//!
//! ```
//! # #[path = "../tests/support/mod.rs"]
//! # mod support;
//! # let shape = support::world::Shape { accounts: 8, hosts: 2, ..Default::default() };
//! # let network = support::Network::generate(&shape);
//! # let folder = tempfile::tempdir()?;
//! # let (dids, data_dir, plc_url) = (network.world().dids(), folder.path().join("data"), network.plc.url());
//! use skyfill::{Backfill, Event};
//!
//! # tokio::runtime::Builder::new_current_thread().build()?.block_on(async {
//! let backfill = Backfill::new().data_dir(&data_dir).dids(dids).plc_url(&plc_url).allow_network("127.0.0.0/8");
//! let (running, mut events) = backfill.set("fetch.host_requests_per_second", "1000").start_with_events()?;
//! let mut done = 0;
//! while let Some(event) = events.next().await {
//!     match event {
//!         Event::Done(user) => done += u64::from(user.total_records < u64::MAX),
//!         Event::Parked(parked) => println!("{}: {}", parked.did, parked.reason),
//!         _ => {}
//!     }
//! }
//! let report = running.await?;
//! assert_eq!(done, report.accounts.done);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! # })?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # What is public
//! What this page lists, and [`sink`]. The other modules are the program's own: they are reachable, for its tests and benches,
//! and may change in any release.

#![cfg_attr(test, allow(clippy::cast_possible_truncation))]

#[doc(hidden)]
pub mod actor;
#[doc(hidden)]
pub mod cli;
#[doc(hidden)]
pub mod clock;
#[doc(hidden)]
pub mod commands;
#[doc(hidden)]
pub mod config;
#[doc(hidden)]
pub mod crash_point;
#[doc(hidden)]
pub mod domain;
#[doc(hidden)]
pub mod exit_code;
#[doc(hidden)]
pub mod identity;
#[doc(hidden)]
pub mod library;
#[doc(hidden)]
pub mod limits;
#[doc(hidden)]
pub mod net;
#[doc(hidden)]
pub mod ops;
#[doc(hidden)]
pub mod pipeline;
#[doc(hidden)]
pub mod reload;
#[doc(hidden)]
pub mod repo;
#[doc(hidden)]
pub mod seed;
pub mod sink;
#[doc(hidden)]
pub mod stages;
#[doc(hidden)]
pub mod store;
#[doc(hidden)]
pub mod telemetry;
#[doc(hidden)]
pub mod transform;

pub use library::{
    Accounts, Backfill, BatchedBackfill, Counts, Error, ErrorKind, Event, Events, Handle, Parked,
    Progress, Report, Running, SinkState, ThisRun, User, run_batched_backfill,
    run_batched_backfill_async,
};
