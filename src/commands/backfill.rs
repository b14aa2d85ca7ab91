//! `skyfill backfill`: one shot, until every given DID is done or parked.
//!
//! ```text
//!  lists ──> ledger ──> pipeline ──finished | interrupted | failed──> stop ──> summary ──> exit code
//! ```
//! It works on, counts and exits by exactly the DIDs it was given, including those decided before; others in the ledger rest.

use std::io::{ErrorKind, Write};
use std::path::PathBuf;
use std::sync::Arc;

use crate::commands::error::CommandError;
use crate::commands::opening::when_there_is_space;
use crate::commands::recorded::Recorded;
use crate::commands::summary::{self, Run};
use crate::config::settings::Settings;
use crate::config::targets::{self, ListSource};
use crate::domain::filter::TypeEntry;
use crate::exit_code::ExitCode;
use crate::ops::progress;
use crate::pipeline::data::Sinks;
use crate::pipeline::{Data, OtherFilter, Pipeline, PipelineEnd, Surrounding, WithoutLeaves};
use crate::store::decisions::Decisions;
use crate::store::error::StoreError;
use crate::store::ledger_lists::{Counts, Reader};

/// What to do.
#[derive(Clone, Debug)]
pub struct Backfill {
    /// The configuration.
    pub settings: Settings,
    /// The DIDs.
    pub sources: Vec<ListSource>,
    /// Export done accounts again if the filter differs.
    pub refilter: bool,
    /// Compare done accounts with what their hosts have now.
    pub refresh: bool,
    /// The summary is one JSON object.
    pub json: bool,
    /// No progress.
    pub quiet: bool,
}

/// The lists of a backfill: those that were given, and then no consumer group has to do with it; or else those of `[source]`.
///
/// # Errors
/// [`CommandError::Usage`] if there are none but those of a consumer group.
pub fn sources(
    settings: &mut Settings,
    given: Option<Vec<ListSource>>,
) -> Result<Vec<ListSource>, CommandError> {
    if let Some(given) = given {
        settings.source.group = None;
        return Ok(given);
    }
    if let Some(group) = &settings.source.group {
        return Err(CommandError::Usage(format!(
            "[source] names the consumer group {group}, whose accounts `skyfill run` works through: put accounts on its topic with \
             `skyfill enqueue`, or give a backfill accounts of its own"
        )));
    }
    Ok(ListSource::configured(&settings.source))
}

/// What goes along with a backfill that was started from a program: sinks, and somebody who watches. Nothing, by default.
#[derive(Default)]
pub struct Beside {
    /// Sinks beside the queues; the pipeline takes them.
    pub sinks: Sinks,
    /// Sinks that nothing is to wait for any more.
    pub let_go: Vec<String>,
    /// Whether every decision is wanted, one by one.
    pub wants_decisions: bool,
    /// Called when work begins, with the pipeline, and what it decides if that is wanted.
    pub started: Option<Started>,
}

/// Called once, when work begins.
pub type Started = Box<dyn Fn(&Pipeline, Option<&Decisions>) + Send + Sync>;

/// A backfill that has ended, well or not; its ledger can be read.
pub struct Performed {
    /// The ledger.
    pub ledger: PathBuf,
    /// What this process did.
    pub run: Run,
    /// How the process ends, by that and the counts of the given accounts.
    pub exit: ExitCode,
    /// What ended it early, other than being asked to.
    pub failure: Option<CommandError>,
}

/// Runs a backfill until everything is decided or `stop` resolves; the summary goes to `out`.
///
/// # Errors
/// [`CommandError`]; if the pipeline had started, the summary has been written all the same.
pub async fn run(
    order: &Backfill,
    surrounding: &Surrounding,
    stop: impl Future<Output = ()> + Send,
    out: &mut dyn Write,
) -> Result<ExitCode, CommandError> {
    let performed = perform(order, &Beside::default(), surrounding, stop).await?;
    let Some(Performed { ledger, run, exit, failure }) = performed else {
        return Ok(ExitCode::Interrupted);
    };
    write(order, &Reader::open(&ledger)?, &run, out)?;
    failure.map_or(Ok(exit), Err)
}

/// Runs a backfill until everything is decided or `stop` resolves; `None` if it was stopped before anything was begun.
///
/// # Errors
/// [`CommandError`] of what went wrong before the work began.
pub async fn perform(
    order: &Backfill,
    beside: &Beside,
    surrounding: &Surrounding,
    stop: impl Future<Output = ()> + Send,
) -> Result<Option<Performed>, CommandError> {
    let clock = &surrounding.clock;
    let begun = clock.now();
    let mut stop = std::pin::pin!(stop);
    let mut is_listed = false;
    let mut recorded = Recorded::new("backfill", &order.settings, clock);
    let open = async || start(order, beside, surrounding, &mut is_listed, &mut recorded).await;
    let started = when_there_is_space(open, stop.as_mut(), |_| ()).await;
    let started = started.inspect_err(|error| {
        recorded.end(error.exit_code(), None);
    })?;
    let Some((ledger, pipeline)) = started else {
        tracing::info!("stopped while the disk was full, nothing was begun");
        recorded.end(ExitCode::Interrupted, None);
        return Ok(None);
    };
    let (end, interrupted) = wait(&pipeline, order, surrounding, stop).await;
    let (progress, pseudonyms) = (pipeline.progress(), pipeline.pseudonyms());
    let stopped = pipeline.stop().await;
    let decided = progress.borrow().run;
    recorded.decided = Some(decided);
    let failure = failure(end, stopped);
    let run = Run {
        took: clock.now().duration_since(begun),
        decided,
        ended_ms: clock.wall_ms(),
        interrupted,
        failed: failure.is_some(),
        refreshes: order.refresh,
        labels: order.settings.filter.types.iter().map(TypeEntry::label).collect(),
        pseudonyms,
    };
    let counts = Reader::open(&ledger)?.counts()?;
    let exit = failure.as_ref().map_or_else(|| exit_code(&counts, &run), CommandError::exit_code);
    recorded.end(exit, Some(&counts));
    Ok(Some(Performed { ledger, run, exit, failure }))
}

/// Opens the data directory, lists the accounts unless that was done before, and starts the pipeline; gives the ledger's path.
async fn start(
    order: &Backfill,
    beside: &Beside,
    surrounding: &Surrounding,
    is_listed: &mut bool,
    recorded: &mut Recorded,
) -> Result<(PathBuf, Pipeline), CommandError> {
    let mut data = Data::open(&order.settings, &surrounding.clock, &surrounding.chance)?;
    recorded.begin(&mut data)?;
    if !*is_listed {
        let accounts = list(&mut data, &order.sources).map_err(|error| match error {
            // What was read from standard input cannot be read again.
            CommandError::Store(error) if order.sources.contains(&ListSource::Stdin) => {
                CommandError::Failed(Arc::new(error))
            }
            error => error,
        })?;
        *is_listed = true;
        recorded.given(&mut data, accounts)?;
    }
    if let Some(OtherFilter { accounts }) = data.check_filter(order.refilter)? {
        return Err(CommandError::Filter { accounts });
    }
    if order.refresh {
        match data.refresh(order.refilter)? {
            Ok(accounts) => tracing::info!(accounts, "accounts will be refreshed"),
            Err(WithoutLeaves { accounts }) => {
                return Err(CommandError::WithoutLeaves { accounts });
            }
        }
    }
    for name in &beside.let_go {
        data.let_sink_go(name)?;
    }
    data.follow_with(Arc::clone(&beside.sinks));
    let decisions = beside.wants_decisions.then(|| data.tell_decisions()).transpose()?;
    let ledger = data.ledger_path();
    let pipeline = Pipeline::start(data, &order.settings, surrounding).await?;
    if let Some(started) = &beside.started {
        started(&pipeline, decisions.as_ref());
    }
    Ok((ledger, pipeline))
}

fn list(data: &mut Data, sources: &[ListSource]) -> Result<u64, CommandError> {
    match data.list(targets::open(sources)?)?? {
        0 => Err(CommandError::Usage(
            "the list holds no DID: name one with --dids or --dids-file, or in [source]".to_owned(),
        )),
        accounts => {
            tracing::info!(accounts, "accounts listed");
            Ok(accounts)
        }
    }
}

/// Waits for the end; gives it, and whether it was asked for from outside.
async fn wait(
    pipeline: &Pipeline,
    order: &Backfill,
    surrounding: &Surrounding,
    stop: impl Future<Output = ()>,
) -> (Option<PipelineEnd>, bool) {
    let condition = pipeline.condition();
    let waiting = move || condition.borrow().waits().next().cloned();
    let shown = async {
        if order.quiet {
            return std::future::pending().await;
        }
        progress::show(surrounding.clock.clone(), pipeline.progress(), waiting).await;
    };
    let ended = async {
        let end = pipeline.ended().await;
        if matches!(end, PipelineEnd::Finished) {
            // What is decided shall be with every sink, too, unless something ends that.
            tokio::select! {
                biased;
                broken = pipeline.broken() => return broken,
                () = pipeline.followed() => {}
            }
        }
        end
    };
    tokio::select! {
        end = ended => (Some(end), false),
        () = stop => (None, true),
        () = shown => (None, false),
    }
}

fn failure(end: Option<PipelineEnd>, stopped: Result<(), Arc<StoreError>>) -> Option<CommandError> {
    match (end, stopped) {
        (Some(PipelineEnd::Failed(error)), _) | (_, Err(error)) => {
            Some(CommandError::Failed(error))
        }
        (Some(PipelineEnd::RestartStorm(stage)), _) => Some(CommandError::RestartStorm(stage)),
        (Some(PipelineEnd::Finished) | None, Ok(())) => None,
    }
}

fn write(
    order: &Backfill,
    reader: &Reader,
    run: &Run,
    out: &mut dyn Write,
) -> Result<(), CommandError> {
    let written = if order.json {
        summary::write_json(reader, run, out)
    } else {
        summary::write_text(reader, run, &order.settings.data_dir.join("queue"), out)
    };
    match written {
        // Whoever read it has what they wanted; the work is done all the same.
        Err(StoreError::Io { source, .. }) if source.kind() == ErrorKind::BrokenPipe => {}
        written => written?,
    }
    Ok(())
}

fn exit_code(counts: &Counts, run: &Run) -> ExitCode {
    match () {
        () if run.interrupted => ExitCode::Interrupted,
        () if counts.pending() > 0 => ExitCode::Failed,
        () if counts.parked > 0 => ExitCode::SomeParked,
        () => ExitCode::Done,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::settings::Source;

    #[test]
    fn accounts_that_are_given_stand_before_source_and_those_of_a_group_are_left_to_run() {
        let source = Source { files: vec!["list".into()], ..Source::default() };
        let mut listed = Settings { source, ..Settings::default() };
        let file = |path: &str| vec![ListSource::File(path.into())];
        assert_eq!(sources(&mut listed, None).unwrap(), file("list"));
        assert_eq!(sources(&mut listed, Some(file("other"))).unwrap(), file("other"));
        let source = Source { group: Some("study".to_owned()), ..Source::default() };
        let mut shared = Settings { source, ..Settings::default() };
        let refused = sources(&mut shared, None).unwrap_err();
        assert_eq!(refused.exit_code(), ExitCode::Usage);
        assert!(refused.to_string().contains("the consumer group study"), "{refused}");
        // The data directory is then one of lists, whatever the configuration says of workers.
        assert_eq!(sources(&mut shared, Some(file("other"))).unwrap(), file("other"));
        assert_eq!(shared.source, Source::default());
    }
}
