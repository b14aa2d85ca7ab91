//! The `skyfill` binary: arguments to actions to exit codes.

use std::io::{self, Write};
use std::os::unix::process::CommandExt;
use std::process::ExitCode as ProcessExit;
use std::sync::Arc;
use std::{env, process};

use clap::Parser;
use skyfill::cli::{self, Cli, Command, Common};
use skyfill::commands::backfill::{self, Backfill};
use skyfill::commands::error::CommandError;
use skyfill::commands::verify::Agreement;
use skyfill::commands::{
    check, determine, dry_run, experiment, forget, identities, let_sink_go, provenance, queue,
    recheck, retry, run, runs, status, users, verify, verify_car,
};
use skyfill::config::file::{self, Assignment, Loaded, Mode};
use skyfill::config::settings::Settings;
use skyfill::config::targets::ListSource;
use skyfill::exit_code::ExitCode;
use skyfill::ops::{logging, signals};
use skyfill::pipeline::Surrounding;
use skyfill::reload::Origin;
use skyfill::store::error::StoreError;
use skyfill::store::ledger_lists::Selection;
use tokio_util::sync::CancellationToken;

/// glibc gives nearly every thread a heap of its own, and a heap gives little back: threads that come and go with transfers and
/// walks then hold twice the memory that is in use, and pay for fresh pages of it. Two heaps, one a core of a small machine, are
/// enough. Buffers from 1 MiB on are the kernel's own, and given back when they are freed. Left alone, glibc raises that bound to the
/// largest buffer that was ever freed (32 MiB at most), so every larger account that comes by leaves larger holes in the heaps, and
/// memory grows by steps for as long as one runs. A bound of 128 KiB would cost a quarter more processor time, in fresh pages.
/// The C library reads this before `main`, so the program starts itself once more with it; whoever sets the variable decides.
const HEAPS: (&str, &str) =
    ("GLIBC_TUNABLES", "glibc.malloc.arena_max=2:glibc.malloc.mmap_threshold=1048576");

fn main() -> ProcessExit {
    let command = Cli::parse().command;
    let is_one = matches!(&command, Command::Experiment(args) if args.one);
    if is_one || matches!(command, Command::Backfill(_) | Command::Run(_)) {
        start_with_its_heaps();
    }
    if let Err(error) = signals::survive_file_size_limit() {
        // Without it a limit on file sizes ends the process, which loses nothing either.
        let _unseen = writeln!(io::stderr(), "skyfill: signals cannot be listened to: {error}");
    }
    let outcome = match command {
        Command::Backfill(args) => run_backfill(&args),
        Command::Run(args) => run_daemon(&args),
        Command::Check(args) => Ok(check::run(&args)),
        Command::Status(args) => run_status(&args),
        Command::Retry(args) => run_retry(&args),
        Command::Forget(args) => run_forget(&args),
        Command::Identities(args) => run_identities(&args),
        #[cfg(feature = "kafka")]
        Command::Enqueue(args) => run_enqueue(&args),
        Command::Provenance(args) => run_provenance(&args),
        Command::Recheck(args) => run_recheck(&args),
        Command::Experiment(args) => run_experiment(&args),
        Command::Verify(args) => run_verify(&args),
        Command::Queue(args) => run_queue(&args),
        Command::Determine(args) => run_determine(&args),
        Command::Users(args) => run_users(&args),
        Command::Runs(args) => run_runs(&args),
        Command::LetSinkGo(args) => run_let_sink_go(&args),
        Command::Completions { shell } => printed(cli::write_completions(shell, &mut io::stdout())),
        Command::Man => printed(cli::write_man(&mut io::stdout())),
    };
    let code = outcome.unwrap_or_else(|error| {
        // A closed stderr changes nothing about the exit code.
        let _unseen = writeln!(io::stderr(), "skyfill: {error}");
        error.exit_code()
    });
    code.into()
}

/// The same process with the same arguments; where that is refused, the program goes on as it is.
fn start_with_its_heaps() {
    if cfg!(not(target_env = "gnu")) || env::var_os(HEAPS.0).is_some() {
        return;
    }
    let mut arguments = env::args_os();
    let mut again = process::Command::new("/proc/self/exe");
    if let Some(name) = arguments.next() {
        again.arg0(name);
    }
    let _refused = again.args(arguments).env(HEAPS.0, HEAPS.1).exec();
}

fn settings(common: &Common, assignments: &[Assignment]) -> Result<Settings, CommandError> {
    let Loaded { settings, warnings } =
        file::load(common.config.as_deref(), assignments, Mode::Backfill)?;
    for warning in warnings {
        tracing::warn!("{warning}");
    }
    Ok(settings)
}

fn run_backfill(args: &cli::Backfill) -> Result<ExitCode, CommandError> {
    let mut settings = settings(&args.common, &args.assignments())?;
    let log = logging::init(&settings.log);
    let sources = backfill::sources(&mut settings, args.sources())?;
    if sources.is_empty() {
        let text = "no accounts given: use --dids, --dids-file or --dids-queue, or set [source]";
        return Err(CommandError::Usage(text.to_owned()));
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let runtime = runtime.map_err(|error| CommandError::Internal(error.to_string()))?;
    let mut out = io::stdout().lock();
    let surrounding = Surrounding::system();
    let outcome = runtime.block_on(async {
        if args.dry_run {
            return dry_run::run(&settings, &sources, &surrounding, args.json, &mut out).await;
        }
        let stop = signals::stop_requested(ExitCode::Interrupted.code());
        let stop = stop.map_err(|error| CommandError::Internal(error.to_string()))?;
        let order = Backfill {
            settings,
            sources,
            refilter: args.refilter,
            refresh: args.refresh,
            json: args.json,
            quiet: args.quiet,
        };
        backfill::run(&order, &surrounding, stop, &mut out).await
    });
    log.flush();
    // Whatever still waits for the network or a disk does not keep the process.
    runtime.shutdown_background();
    outcome
}

fn run_daemon(args: &cli::Run) -> Result<ExitCode, CommandError> {
    let origin =
        Origin { config: args.common.config.clone(), assignments: args.common.assignments() };
    let Loaded { settings, warnings } =
        file::load(origin.config.as_deref(), &origin.assignments, Mode::Run)?;
    let log = Arc::new(logging::init(&settings.log));
    warnings.iter().for_each(|warning| tracing::warn!("{warning}"));
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let runtime = runtime.map_err(|error| CommandError::Internal(error.to_string()))?;
    let surrounding = Surrounding::system();
    let outcome = runtime.block_on(run::run(settings, origin, &surrounding, Arc::clone(&log)));
    log.flush();
    // Whatever still waits for the network or a disk does not keep the process.
    runtime.shutdown_background();
    outcome
}

fn run_status(args: &cli::Status) -> Result<ExitCode, CommandError> {
    let settings = settings(&args.common, &args.common.assignments())?;
    status::run(&settings.data_dir, args.did.as_deref(), args.json, &mut io::stdout())?;
    Ok(ExitCode::Done)
}

fn run_retry(args: &cli::Retry) -> Result<ExitCode, CommandError> {
    let settings = settings(&args.common, &args.common.assignments())?;
    let selection = match (&args.did, &args.reason) {
        (Some(did), _) => Selection::Did(did.clone()),
        (None, Some(word)) => retry::selection_of_word(word)?,
        (None, None) => Selection::All,
    };
    let count = retry::run(&settings.data_dir, &selection)?;
    let text = if args.json {
        format!("{}\n", serde_json::json!({ "retried": count }))
    } else {
        format!(
            "{count} accounts put back; a running daemon takes them up at once, without one the next run does\n"
        )
    };
    printed(io::stdout().write_all(text.as_bytes()))
}

fn run_forget(args: &forget::Flags) -> Result<ExitCode, CommandError> {
    let settings = settings(&args.common, &args.common.assignments())?;
    let log = logging::init(&settings.log);
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let runtime = runtime.map_err(|error| CommandError::Internal(error.to_string()))?;
    let (surrounding, mut out) = (Surrounding::system(), io::stdout().lock());
    let sources = args.sources();
    let forgetting = forget::run(&settings, &sources, &surrounding, args.json, &mut out);
    let outcome = runtime.block_on(forgetting);
    log.flush();
    runtime.shutdown_background();
    outcome
}

fn run_identities(args: &identities::Flags) -> Result<ExitCode, CommandError> {
    let settings = settings(&args.common, &args.assignments())?;
    let log = logging::init(&settings.log);
    let from = identities::From::parse(&args.from)?;
    let given: Vec<ListSource> = args.dids_file.iter().map(|path| ListSource::file(path)).collect();
    let sources = if given.is_empty() { ListSource::configured(&settings.source) } else { given };
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let runtime = runtime.map_err(|error| CommandError::Internal(error.to_string()))?;
    let (surrounding, mut out) = (Surrounding::system(), io::stdout().lock());
    let taking = identities::run(&settings, &from, &sources, &surrounding, args.json, &mut out);
    let outcome = runtime.block_on(taking);
    log.flush();
    runtime.shutdown_background();
    outcome.map(|()| ExitCode::Done)
}

#[cfg(feature = "kafka")]
fn run_enqueue(args: &skyfill::commands::enqueue::Flags) -> Result<ExitCode, CommandError> {
    let settings = settings(&args.common, &args.assignments())?;
    let log = logging::init(&settings.log);
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let runtime = runtime.map_err(|error| CommandError::Internal(error.to_string()))?;
    let (surrounding, mut out) = (Surrounding::system(), io::stdout().lock());
    let enqueuing = skyfill::commands::enqueue::run(&settings, args, &surrounding, &mut out);
    let outcome = runtime.block_on(enqueuing);
    log.flush();
    runtime.shutdown_background();
    outcome
}

fn run_provenance(args: &provenance::Flags) -> Result<ExitCode, CommandError> {
    let settings = settings(&args.common, &args.common.assignments())?;
    provenance::run(&settings.data_dir, args.out.as_deref())?;
    Ok(ExitCode::Done)
}

fn run_experiment(args: &experiment::Flags) -> Result<ExitCode, CommandError> {
    let mut settings = settings(&args.common, &args.assignments())?;
    backfill::sources(&mut settings, Some(args.sources()))?;
    let log = logging::init(&settings.log);
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let runtime = runtime.map_err(|error| CommandError::Internal(error.to_string()))?;
    let (surrounding, mut out) = (Surrounding::system(), io::stdout().lock());
    let outcome = runtime.block_on(async {
        let stop = signals::stop_requested(ExitCode::Interrupted.code());
        let stop = stop.map_err(|error| CommandError::Internal(error.to_string()))?;
        if args.one {
            let order = Backfill {
                settings,
                sources: args.sources(),
                refilter: false,
                refresh: false,
                json: true,
                quiet: true,
            };
            return experiment::one::run(&order, &surrounding, stop, &mut out).await;
        }
        let token = CancellationToken::new();
        let stopped = token.clone();
        tokio::spawn(async move {
            stop.await;
            stopped.cancel();
        });
        experiment::run(args, &settings, &surrounding, token, &mut out).await
    });
    log.flush();
    runtime.shutdown_background();
    outcome
}

fn run_recheck(args: &recheck::Flags) -> Result<ExitCode, CommandError> {
    let settings = settings(&args.common, &args.assignments())?;
    let log = logging::init(&settings.log);
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let runtime = runtime.map_err(|error| CommandError::Internal(error.to_string()))?;
    let surrounding = Surrounding::system();
    let outcome = runtime.block_on(recheck::run(&settings, args, &surrounding));
    log.flush();
    runtime.shutdown_background();
    outcome
}

fn run_verify(args: &cli::Verify) -> Result<ExitCode, CommandError> {
    let mut out = io::stdout();
    let agreement = match &args.file {
        Some(path) => verify_car::run(path, args.key.as_deref(), args.json, &mut out)?,
        None => {
            let settings = settings(&args.common, &args.common.assignments())?;
            verify::run(&settings.data_dir, args.json, &mut out)?
        }
    };
    Ok(match agreement {
        Agreement::Agree => ExitCode::Done,
        Agreement::Disagree => ExitCode::Failed,
    })
}

fn run_queue(args: &cli::Queue) -> Result<ExitCode, CommandError> {
    let common = &args.action.items().common;
    let settings = settings(common, &common.assignments())?;
    let mut out = io::BufWriter::new(io::stdout().lock());
    queue::run(&settings.data_dir, &args.action, &mut out)?;
    Ok(ExitCode::Done)
}

fn run_determine(args: &determine::flags::Flags) -> Result<ExitCode, CommandError> {
    let settings = settings(&args.common, &args.common.assignments())?;
    let log = logging::init(&settings.log);
    let (mut out, mut told) = (io::stdout().lock(), io::stderr());
    let outcome = determine::run(&settings, args, &mut out, &mut told);
    log.flush();
    outcome.map(|()| ExitCode::Done)
}

fn run_users(args: &users::Flags) -> Result<ExitCode, CommandError> {
    let settings = settings(&args.common, &args.common.assignments())?;
    let mut out = io::BufWriter::new(io::stdout().lock());
    users::run(&settings.data_dir, args, &mut out).map(|()| ExitCode::Done)
}

fn run_runs(args: &runs::Flags) -> Result<ExitCode, CommandError> {
    let settings = settings(&args.common, &args.common.assignments())?;
    runs::run(&settings.data_dir, args, &mut io::stdout()).map(|()| ExitCode::Done)
}

fn run_let_sink_go(args: &let_sink_go::Flags) -> Result<ExitCode, CommandError> {
    let settings = settings(&args.common, &args.common.assignments())?;
    let_sink_go::run(&settings, &args.name, &mut io::stdout()).map(|()| ExitCode::Done)
}

/// A closed pipe on stdout is success: whoever read it has what it wanted.
fn printed(written: io::Result<()>) -> Result<ExitCode, CommandError> {
    match written {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(StoreError::io(std::path::Path::new("stdout"), error).into())
        }
        _ => Ok(ExitCode::Done),
    }
}
