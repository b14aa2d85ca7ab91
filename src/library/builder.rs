//! The builder: what `skyfill backfill` can be told by flags and configuration, for a program.
//!
//! Settings are read and checked as the command's are, file first, then these in the order given; errors name the method.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use tokio::sync::mpsc;

use crate::commands::backfill::{self, Beside};
use crate::commands::error::CommandError;
use crate::config::file::{self, Assignment, Loaded, Mode};
use crate::config::targets::ListSource;
use crate::library::error::Error;
use crate::library::events::{self, Events};
use crate::library::report::{BatchedBackfill, Report};
use crate::library::running::{Pending, Running, Work, launch};
use crate::sink::Sink;
use crate::store::follow::NamedSink;

/// A backfill that is being put together, as in the example of [the library](crate).
#[derive(Default)]
#[must_use = "nothing happens before it is run"]
pub struct Backfill {
    config: Option<PathBuf>,
    assignments: Vec<Assignment>,
    sources: Vec<ListSource>,
    refilter: bool,
    refresh: bool,
    sinks: Vec<NamedSink>,
    let_go: Vec<String>,
}

impl Backfill {
    /// The defaults of `skyfill backfill`: data in `./skyfill-data`, the six record types in the window of the study.
    pub fn new() -> Self {
        Self::default()
    }

    /// The same as [`Backfill::new`].
    pub fn builder() -> Self {
        Self::new()
    }

    /// A configuration file in TOML, as `--config`.
    pub fn config(mut self, path: impl Into<PathBuf>) -> Self {
        self.config = Some(path.into());
        self
    }

    /// Any key of the configuration, such as `("fetch.concurrency", "8")`, as `--set`; a `+` at the key's end adds to a list.
    pub fn set(self, key: &str, value: impl Into<String>) -> Self {
        self.assign("Backfill::set", key, value)
    }

    /// Directory of ledger, journal and queues; one instance at a time.
    pub fn data_dir(self, path: impl AsRef<Path>) -> Self {
        let path = path.as_ref().to_string_lossy().into_owned();
        self.assign("Backfill::data_dir", "data_dir", path)
    }

    /// PLC directory.
    pub fn plc_url(self, url: &str) -> Self {
        self.assign("Backfill::plc_url", "identity.plc_url", url)
    }

    /// Also reach these private addresses, on any port and over plain http, such as `127.0.0.0/8`; may be called repeatedly.
    pub fn allow_network(self, network: &str) -> Self {
        self.assign("Backfill::allow_network", "network.allow+", network)
    }

    /// Record types: `post`, `reply`, `repost`, `like`, `follow`, `block`, NSIDs, prefixes ending in `.*`.
    pub fn types<T: AsRef<str>>(self, types: impl IntoIterator<Item = T>) -> Self {
        let types: Vec<String> = types.into_iter().map(|it| it.as_ref().to_owned()).collect();
        self.assign("Backfill::types", "records.types", types.join(","))
    }

    /// First second of the study, UTC, `YYYY-MM-DD-HH:MM:SS`.
    pub fn start_timestamp(self, time: &str) -> Self {
        self.assign("Backfill::start_timestamp", "window.start", time)
    }

    /// Last second of the study, UTC, `YYYY-MM-DD-HH:MM:SS`.
    pub fn end_timestamp(self, time: &str) -> Self {
        self.assign("Backfill::end_timestamp", "window.end", time)
    }

    /// Records outside the window: `bucket`, `drop` or `keep`.
    pub fn outside(self, what: &str) -> Self {
        self.assign("Backfill::outside", "window.outside", what)
    }

    /// Offsets in `createdAt`: `utc` or `ignore`.
    pub fn offsets(self, what: &str) -> Self {
        self.assign("Backfill::offsets", "window.offsets", what)
    }

    /// Accounts at once between lease and seal.
    pub fn batch_size(self, accounts: u64) -> Self {
        self.assign("Backfill::batch_size", "limits.batch_size", accounts.to_string())
    }

    /// Memory for what is in flight, such as `64MiB`; the process takes some tens of MiB beside it.
    pub fn memory(self, size: &str) -> Self {
        self.assign("Backfill::memory", "limits.memory", size)
    }

    /// Accounts to backfill. With these, or a list below, the lists of the configuration are ignored; repetitions are dropped.
    pub fn dids<D: Into<String>>(mut self, dids: impl IntoIterator<Item = D>) -> Self {
        let dids = dids.into_iter().map(Into::into).collect();
        self.sources.push(ListSource::Inline { name: "Backfill::dids".to_owned(), dids });
        self
    }

    /// A list: one DID a line, CSV with a `did` column, or JSON lines. It is read once and never held.
    pub fn dids_file(mut self, path: impl Into<PathBuf>) -> Self {
        self.sources.push(ListSource::File(path.into()));
        self
    }

    /// The Python service's `input_backfill_sync.db`.
    pub fn dids_queue(mut self, path: impl Into<PathBuf>) -> Self {
        self.sources.push(ListSource::Queue(path.into()));
        self
    }

    /// Exports accounts again that are done under other types or another window; their rows will be there twice.
    pub const fn refilter(mut self, refilter: bool) -> Self {
        self.refilter = refilter;
        self
    }

    /// Compares done accounts with what their hosts have now: what is new or changed goes into the queues, what is gone into the
    /// queue `deleted`.
    pub const fn refresh(mut self, refresh: bool) -> Self {
        self.refresh = refresh;
        self
    }

    /// A sink beside the queues, which the ledger remembers by `name` (small letters, digits, `-`, `_`): from now on every run
    /// over this data directory needs it, because rows would pass it by. What was removed from the journal before it came
    /// first, it never sees: begin with a new data directory, or export again.
    pub fn sink(mut self, name: &str, sink: impl Sink + 'static) -> Self {
        let (name, sink) = (name.to_owned(), Box::new(sink));
        self.sinks.push(NamedSink { name, sink, lag_max: None });
        self
    }

    /// Nothing waits for the sink of this name any more; added again later, it begins anew.
    pub fn let_sink_go(mut self, name: &str) -> Self {
        self.let_go.push(name.to_owned());
        self
    }

    /// Starts it on threads of its own, from sync code as from async code.
    ///
    /// # Errors
    /// [`Error::Configuration`] and [`Error::Usage`]; everything else comes from what is returned.
    pub fn start(self) -> Result<Running, Error> {
        launch(self.work(None)?, Ok).map(Running::new)
    }

    /// The same, with its events.
    ///
    /// # Errors
    /// As [`Backfill::start`].
    pub fn start_with_events(self) -> Result<(Running, Events), Error> {
        let (to, events) = mpsc::channel(events::CAPACITY);
        let pending = launch(self.work(Some(to))?, Ok)?;
        Ok((Running::new(pending), Events(events)))
    }

    /// Runs until every given account is done or parked. Blocks.
    ///
    /// # Errors
    /// [`Error`].
    pub fn run(self) -> Result<Report, Error> {
        self.start()?.wait()
    }

    /// Runs until every given account is done or parked. Dropped before its end, the future cancels the run.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn run_async(self) -> Result<Report, Error> {
        self.start()?.await
    }

    /// [`crate::run_batched_backfill`] with everything else as it was set here. Blocks.
    ///
    /// # Errors
    /// [`Error`].
    pub fn run_batched<D: Into<String>>(
        self,
        dids: impl IntoIterator<Item = D>,
        batch_size: u64,
        start: Option<&str>,
        end: Option<&str>,
    ) -> Result<BatchedBackfill, Error> {
        self.batched(dids, batch_size, start, end)?.wait()
    }

    /// [`crate::run_batched_backfill_async`] with everything else as it was set here.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn run_batched_async<D: Into<String>>(
        self,
        dids: impl IntoIterator<Item = D>,
        batch_size: u64,
        start: Option<&str>,
        end: Option<&str>,
    ) -> Result<BatchedBackfill, Error> {
        self.batched(dids, batch_size, start, end)?.await
    }

    fn batched<D: Into<String>>(
        self,
        dids: impl IntoIterator<Item = D>,
        batch_size: u64,
        start: Option<&str>,
        end: Option<&str>,
    ) -> Result<Pending<BatchedBackfill>, Error> {
        let mut this = self.dids(dids).batch_size(batch_size);
        this = start.into_iter().fold(this, Self::start_timestamp);
        this = end.into_iter().fold(this, Self::end_timestamp);
        launch(this.work(None)?, move |report| BatchedBackfill::of(&report, batch_size))
    }

    fn assign(mut self, method: &str, key: &str, value: impl Into<String>) -> Self {
        self.assignments.push(Assignment::flag(method, key, value));
        self
    }

    fn work(self, events: Option<mpsc::Sender<events::Event>>) -> Result<Work, Error> {
        let loaded = file::load(self.config.as_deref(), &self.assignments, Mode::Backfill);
        let Loaded { mut settings, warnings } = loaded.map_err(CommandError::Config)?;
        warnings.iter().for_each(|warning| tracing::warn!("{warning}"));
        let given = Some(self.sources).filter(|sources| !sources.is_empty());
        let sources = backfill::sources(&mut settings, given)?;
        if sources.is_empty() {
            let text = "no accounts given: use dids, dids_file or dids_queue, or set [source]";
            return Err(Error::Usage(text.to_owned()));
        }
        let order = backfill::Backfill {
            settings,
            sources,
            refilter: self.refilter,
            refresh: self.refresh,
            json: true,
            quiet: true,
        };
        let sinks = Arc::new(Mutex::new(self.sinks));
        let beside = Beside { sinks, let_go: self.let_go, ..Beside::default() };
        Ok(Work { order, beside, events })
    }
}

impl fmt::Debug for Backfill {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sinks: Vec<&str> = self.sinks.iter().map(|sink| sink.name.as_str()).collect();
        f.debug_struct("Backfill")
            .field("config", &self.config)
            .field("assignments", &self.assignments)
            .field("sources", &self.sources)
            .field("refilter", &self.refilter)
            .field("refresh", &self.refresh)
            .field("sinks", &sinks)
            .field("let_go", &self.let_go)
            .finish()
    }
}
