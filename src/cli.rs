//! The command line: one table of flags behind parsing, `--help`, the man page and the shell completions.
//!
//! Nothing is decided here. Flags that are settings become [`Assignment`]s, which `config::file` reads like lines of the
//! configuration: `--set` in the order given, then named flags. Usage errors exit 2, help and version 0.

use std::io;
use std::path::PathBuf;

use clap::{Args, CommandFactory, Parser, Subcommand, ValueEnum};

use crate::config::file::Assignment;
use crate::config::targets::ListSource;
use crate::exit_code::ExitCode;

/// Backfills Bluesky (AT Protocol) accounts: every record, proven, into per-type queues.
#[derive(Debug, Parser)]
#[command(name = "skyfill", version, about, propagate_version = true)]
#[command(after_help = exit_codes(), arg_required_else_help = true, disable_help_subcommand = true)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// Every command.
#[derive(Debug, Subcommand)]
#[allow(rustdoc::broken_intra_doc_links, reason = "the help names keys of the configuration")]
pub enum Command {
    /// Run until every given account is done or parked, then print a summary
    Backfill(Box<Backfill>),
    /// Run as a daemon: work through the lists of [source], reload on SIGHUP
    Run(Run),
    /// Say whether `run` would accept the configuration
    Check(Check),
    /// Show what is done, waiting and parked, or one account's history
    Status(Status),
    /// Put parked accounts back
    Retry(Retry),
    /// Take accounts back for good: their rows, and what the ledger knows of them
    Forget(crate::commands::forget::Flags),
    /// Take identities from an export of the directory, so that accounts need no request each
    Identities(crate::commands::identities::Flags),
    /// Put accounts on a topic, by the host that serves each, for whoever shares the work
    #[cfg(feature = "kafka")]
    Enqueue(Box<crate::commands::enqueue::Flags>),
    /// Write where the data comes from, one JSON line for each exported account
    Provenance(crate::commands::provenance::Flags),
    /// Ask hosts again how exported accounts stand, and write a list of those that are withdrawn
    Recheck(crate::commands::recheck::Flags),
    /// Measure serial against parallel, and sweeps of workers and parsers, over the same accounts
    Experiment(Box<crate::commands::experiment::Flags>),
    /// Compare queues and ledger, or prove one repository file
    Verify(Verify),
    /// Look into a queue, write it as JSON lines, mark items as completed
    Queue(Queue),
    /// Determine the accounts to backfill: the authors of what was liked, reposted and replied to
    Determine(Box<crate::commands::determine::flags::Flags>),
    /// Show what is known of each done account: handle, host, records by type
    Users(crate::commands::users::Flags),
    /// Show what each run over the data directory did
    Runs(crate::commands::runs::Flags),
    /// Wait no more for a sink that is no longer configured; stop the daemon first
    LetSinkGo(crate::commands::let_sink_go::Flags),
    /// Print a completion script for a shell
    Completions {
        /// Which shell
        #[arg(value_enum, value_name = "SHELL")]
        shell: clap_complete::Shell,
    },
    /// Print the man page
    Man,
}

/// Flags of every command that reads the configuration.
#[derive(Clone, Debug, Default, Args)]
pub struct Common {
    /// Configuration file (TOML)
    #[arg(long, value_name = "FILE", value_hint = clap::ValueHint::FilePath)]
    pub config: Option<PathBuf>,
    /// Set any key of the configuration, such as fetch.concurrency=8 (repeatable; key+=value adds to a list)
    #[arg(long = "set", value_name = "KEY=VALUE", value_parser = Assignment::parse)]
    pub sets: Vec<Assignment>,
    /// Directory of ledger, journal and queues
    #[arg(long, value_name = "DIR", value_hint = clap::ValueHint::DirPath)]
    pub data_dir: Option<String>,
}

impl Common {
    /// `--set` in the order given, then `--data-dir`.
    #[must_use]
    pub fn assignments(&self) -> Vec<Assignment> {
        let mut assignments = self.sets.clone();
        if let Some(path) = &self.data_dir {
            assignments.push(Assignment::flag("--data-dir", "data_dir", path));
        }
        assignments
    }
}

/// `skyfill backfill`.
#[derive(Debug, Args)]
pub struct Backfill {
    #[command(flatten)]
    #[allow(missing_docs, reason = "see Common")]
    pub common: Common,
    /// Accounts, comma-separated (repeatable)
    #[arg(long, value_name = "DID,...", value_delimiter = ',')]
    pub dids: Option<Vec<String>>,
    /// List of accounts: one DID a line, CSV with a did column, or JSON lines; - is stdin (repeatable)
    #[arg(long, value_name = "FILE", value_hint = clap::ValueHint::FilePath)]
    pub dids_file: Vec<PathBuf>,
    /// The Python service's input_backfill_sync.db (repeatable)
    #[arg(long, value_name = "FILE", value_hint = clap::ValueHint::FilePath)]
    pub dids_queue: Vec<PathBuf>,
    /// Accounts at once between lease and seal [limits.batch_size]
    #[arg(long, value_name = "N")]
    pub batch_size: Option<u64>,
    /// First second of the study, YYYY-MM-DD-HH:MM:SS [window.start]
    #[arg(long, value_name = "TIME")]
    pub start_timestamp: Option<String>,
    /// Last second of the study, YYYY-MM-DD-HH:MM:SS [window.end]
    #[arg(long, value_name = "TIME")]
    pub end_timestamp: Option<String>,
    /// Records outside the window: into a bucket's time, dropped, or kept as they are [window.outside]
    #[arg(long, value_enum)]
    pub outside: Option<Outside>,
    /// Offsets in createdAt: converted to UTC, or ignored as the Python service did [window.offsets]
    #[arg(long, value_enum)]
    pub offsets: Option<Offsets>,
    /// Record types: post, reply, repost, like, follow, block, NSIDs, prefixes ending in .* [records.types]
    #[arg(long, value_name = "TYPE,...", value_delimiter = ',')]
    pub types: Option<Vec<String>>,
    /// Export accounts again that were done under another filter; their rows will be there twice
    #[arg(long)]
    pub refilter: bool,
    /// Compare done accounts with what their hosts have now: what is new or changed goes into the queues, what is gone into
    /// the deleted queue
    #[arg(long)]
    pub refresh: bool,
    /// PLC directory [identity.plc_url]
    #[arg(long, value_name = "URL", value_hint = clap::ValueHint::Url)]
    pub plc_url: Option<String>,
    /// Also reach these private addresses, on any port and over plain http (repeatable) [network.allow]
    #[arg(long, value_name = "CIDR")]
    pub allow_network: Vec<String>,
    /// Resolve and count by host; write nothing
    #[arg(long)]
    pub dry_run: bool,
    /// No progress on the terminal
    #[arg(long)]
    pub quiet: bool,
    /// Form of the log on stderr [log.format]
    #[arg(long, value_enum)]
    pub log_format: Option<LogFormat>,
    /// Print the summary as one JSON object
    #[arg(long)]
    pub json: bool,
}

impl Backfill {
    /// Its settings: `--set` in the order given, then named flags.
    #[must_use]
    pub fn assignments(&self) -> Vec<Assignment> {
        let mut assignments = self.common.assignments();
        let mut set = |flag: &str, key: &str, value: Option<String>| {
            assignments.extend(value.map(|value| Assignment::flag(flag, key, value)));
        };
        let types = self.types.as_ref().map(|types| types.join(","));
        set("--batch-size", "limits.batch_size", self.batch_size.map(|n| n.to_string()));
        set("--start-timestamp", "window.start", self.start_timestamp.clone());
        set("--end-timestamp", "window.end", self.end_timestamp.clone());
        set("--outside", "window.outside", self.outside.map(word));
        set("--offsets", "window.offsets", self.offsets.map(word));
        set("--types", "records.types", types);
        set("--plc-url", "identity.plc_url", self.plc_url.clone());
        for network in &self.allow_network {
            set("--allow-network", "network.allow+", Some(network.clone()));
        }
        set("--log-format", "log.format", self.log_format.map(word));
        assignments
    }

    /// The lists that were given by flags; with any, `[source]` is ignored. `None`: none was given.
    #[must_use]
    pub fn sources(&self) -> Option<Vec<ListSource>> {
        let inline = self.dids.iter().map(|dids| {
            let (name, dids) = ("--dids".to_owned(), dids.clone());
            ListSource::Inline { name, dids }
        });
        let files = self.dids_file.iter().map(|path| ListSource::file(path));
        let queues = self.dids_queue.iter().cloned().map(ListSource::Queue);
        let sources: Vec<ListSource> = inline.chain(files).chain(queues).collect();
        (!sources.is_empty()).then_some(sources)
    }
}

/// `skyfill run`.
#[derive(Debug, Args)]
pub struct Run {
    #[command(flatten)]
    #[allow(missing_docs, reason = "see Common")]
    pub common: Common,
}

/// `skyfill check`.
#[derive(Debug, Args)]
pub struct Check {
    #[command(flatten)]
    #[allow(missing_docs, reason = "see Common")]
    pub common: Common,
    /// Leave out directories, lists, names and addresses
    #[arg(long)]
    pub no_environment: bool,
    /// Fail on warnings too
    #[arg(long)]
    pub deny_warnings: bool,
    /// Print the result as one JSON object
    #[arg(long)]
    pub json: bool,
}

/// `skyfill status`.
#[derive(Debug, Args)]
pub struct Status {
    #[command(flatten)]
    #[allow(missing_docs, reason = "see Common")]
    pub common: Common,
    /// Show this account's history
    #[arg(value_name = "DID")]
    pub did: Option<String>,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}

/// `skyfill retry`.
#[derive(Debug, Args)]
#[command(group = clap::ArgGroup::new("which").required(true).args(["all", "reason", "did"]))]
pub struct Retry {
    #[command(flatten)]
    #[allow(missing_docs, reason = "see Common")]
    pub common: Common,
    /// Every parked account
    #[arg(long)]
    pub all: bool,
    /// Those parked for this reason, or with this last error
    #[arg(long, value_name = "REASON", value_parser = clap::builder::PossibleValuesParser::new(retry_words()))]
    pub reason: Option<String>,
    /// This account
    #[arg(long, value_name = "DID")]
    pub did: Option<String>,
    /// Print the result as one JSON object
    #[arg(long)]
    pub json: bool,
}

/// `skyfill verify`.
#[derive(Debug, Args)]
pub struct Verify {
    #[command(flatten)]
    #[allow(missing_docs, reason = "see Common")]
    pub common: Common,
    /// Prove this repository file with two engines instead of comparing queues and ledger
    #[arg(value_name = "FILE.car", value_hint = clap::ValueHint::FilePath)]
    pub file: Option<PathBuf>,
    /// Signing key of the repository file; without it the signature is not checked
    #[arg(long, value_name = "did:key:...", requires = "file")]
    pub key: Option<String>,
    /// Print the result as one JSON object
    #[arg(long)]
    pub json: bool,
}

/// `skyfill queue`.
#[derive(Debug, Args)]
pub struct Queue {
    /// What to do with it.
    #[command(subcommand)]
    pub action: QueueAction,
}

impl QueueAction {
    /// Which items of which queue.
    #[must_use]
    pub fn items(&self) -> &QueueItems {
        let (Self::List(items) | Self::Export(items) | Self::Ack(items)) = self;
        items
    }
}

/// Actions of `skyfill queue`.
#[derive(Debug, Subcommand)]
pub enum QueueAction {
    /// List items
    List(QueueItems),
    /// Write the records of items as JSON lines
    Export(QueueItems),
    /// Mark items as completed
    Ack(QueueItems),
}

/// Which items of which queue.
#[derive(Debug, Args)]
pub struct QueueItems {
    #[command(flatten)]
    #[allow(missing_docs, reason = "see Common")]
    pub common: Common,
    /// The queue: post, reply, repost, like, follow, block, rejected, deleted, or a configured type
    #[arg(long = "type", value_name = "TYPE")]
    pub queue: String,
    /// Only items of this status
    #[arg(long, value_enum)]
    pub status: Option<ItemStatus>,
    /// Only items after this id
    #[arg(long, value_name = "ID")]
    pub after: Option<i64>,
    /// At most so many items
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub limit: Option<u64>,
    /// Only these items, comma-separated
    #[arg(long, value_name = "ID,...", value_delimiter = ',')]
    pub ids: Vec<i64>,
    /// Print JSON, one object a line
    #[arg(long)]
    pub json: bool,
}

/// `--outside`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
#[allow(missing_docs, reason = "see domain::filter::Outside")]
pub enum Outside {
    Bucket,
    Drop,
    Keep,
}

/// `--offsets`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
#[allow(missing_docs, reason = "see domain::filter::Offsets")]
pub enum Offsets {
    Utc,
    Ignore,
}

/// `--log-format`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
#[allow(missing_docs, reason = "see config::settings::LogFormat")]
pub enum LogFormat {
    Text,
    Json,
}

/// Status of a queue item.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
#[allow(missing_docs, reason = "the names are the words in the table")]
pub enum ItemStatus {
    Pending,
    Processing,
    Completed,
    Failed,
}

impl ItemStatus {
    /// The word in the table.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Processing => "processing",
            Self::Completed => "completed",
            Self::Failed => "failed",
        }
    }
}

/// The word on the command line, which is the word of the configuration.
fn word(value: impl ValueEnum) -> String {
    value.to_possible_value().map_or(String::new(), |value| value.get_name().to_owned())
}

fn retry_words() -> Vec<&'static str> {
    use crate::domain::verdict::{LastError, Reason};
    let reasons = Reason::ALL.iter().map(|reason| reason.as_str());
    reasons.chain(LastError::ALL.iter().map(|error| error.as_str())).collect()
}

fn exit_codes() -> String {
    let line = |code: &ExitCode| format!("  {:>3}  {}\n", code.code(), code.meaning());
    let lines: String = ExitCode::ALL.iter().map(line).collect();
    format!("Exit codes:\n{lines}Unknown codes mean failure.")
}

/// Writes the completion script of `shell`.
///
/// # Errors
/// Whatever `out` says.
pub fn write_completions(shell: clap_complete::Shell, out: &mut dyn io::Write) -> io::Result<()> {
    // Into memory first: the generator panics where it cannot write.
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "skyfill", &mut script);
    out.write_all(&script)
}

/// Writes the man page: the command, then each of its commands with its flags, on one page.
///
/// # Errors
/// Whatever `out` says.
pub fn write_man(out: &mut dyn io::Write) -> io::Result<()> {
    let mut root = Cli::command();
    root.build();
    let page = clap_mangen::Man::new(root.clone());
    page.render_title(out)?;
    page.render_name_section(out)?;
    page.render_synopsis_section(out)?;
    page.render_description_section(out)?;
    write_man_commands(&root, "skyfill", out)?;
    writeln!(out, ".SH \"EXIT CODES\"")?;
    for code in ExitCode::ALL {
        writeln!(out, ".TP\n{}\n{}", code.code(), code.meaning())?;
    }
    page.render_version_section(out)
}

fn write_man_commands(
    parent: &clap::Command,
    path: &str,
    out: &mut dyn io::Write,
) -> io::Result<()> {
    for command in parent.get_subcommands() {
        let path = format!("{path} {}", command.get_name());
        let about = command.get_about().map(ToString::to_string).unwrap_or_default();
        writeln!(out, ".SH \"{}\"\n{about}.", path.to_uppercase().replace("SKYFILL ", ""))?;
        let page = clap_mangen::Man::new(command.clone());
        let mut sections = Vec::new();
        page.render_synopsis_section(&mut sections)?;
        if command.get_arguments().next().is_some() {
            page.render_options_section(&mut sections)?;
        }
        // Its sections are subsections here.
        out.write_all(String::from_utf8_lossy(&sections).replace("\n.SH ", "\n.SS ").as_bytes())?;
        write_man_commands(command, &path, out)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Cli, clap::Error> {
        Cli::try_parse_from(line.split(' '))
    }

    fn backfill(line: &str) -> Backfill {
        match parse(line).unwrap().command {
            Command::Backfill(backfill) => *backfill,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_table_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn named_flags_come_after_sets() {
        let line = "skyfill backfill --data-dir d --start-timestamp 2024-01-01-00:00:00 --types post,reply \
                    --allow-network 127.0.0.0/8 --allow-network ::1/128 --outside keep --offsets ignore \
                    --log-format json --batch-size 50 --plc-url http://x --end-timestamp e --set window.start=x \
                    --set fetch.concurrency=8";
        let assignments = backfill(line).assignments();
        let seen: Vec<(&str, &str)> =
            assignments.iter().map(|one| (one.key.as_str(), one.value.as_str())).collect();
        assert_eq!(
            seen,
            [
                ("window.start", "x"),
                ("fetch.concurrency", "8"),
                ("data_dir", "d"),
                ("limits.batch_size", "50"),
                ("window.start", "2024-01-01-00:00:00"),
                ("window.end", "e"),
                ("window.outside", "keep"),
                ("window.offsets", "ignore"),
                ("records.types", "post,reply"),
                ("identity.plc_url", "http://x"),
                ("network.allow+", "127.0.0.0/8"),
                ("network.allow+", "::1/128"),
                ("log.format", "json"),
            ]
        );
        assert_eq!(assignments[4].origin, "--start-timestamp");
        assert_eq!(assignments[0].origin, "--set window.start=x");
    }

    #[test]
    fn lists_are_given_by_flags_or_not_at_all() {
        assert_eq!(backfill("skyfill backfill").sources(), None);
        let sources =
            backfill("skyfill backfill --dids a,b --dids-file - --dids-file f --dids-queue q");
        let inline =
            ListSource::Inline { name: "--dids".into(), dids: vec!["a".into(), "b".into()] };
        let (file, queue) = (ListSource::File("f".into()), ListSource::Queue("q".into()));
        assert_eq!(sources.sources(), Some(vec![inline, ListSource::Stdin, file, queue]));
    }

    #[test]
    fn usage_errors_exit_with_2_and_help_with_0() {
        for line in [
            "skyfill nonsense",
            "skyfill backfill --nonsense",
            "skyfill backfill --batch-size many",
            "skyfill backfill --outside somewhere",
            "skyfill backfill --set novalue",
            "skyfill backfill --set =x",
            "skyfill retry",
            "skyfill retry --all --did x",
            "skyfill retry --reason bored",
            "skyfill verify --key did:key:x",
            "skyfill completions tcsh",
        ] {
            assert_eq!(parse(line).unwrap_err().exit_code(), 2, "{line}");
        }
        assert_eq!(parse("skyfill --help").unwrap_err().exit_code(), 0);
        assert_eq!(parse("skyfill status --version").unwrap_err().exit_code(), 0);
        for line in [
            "skyfill check --no-environment --deny-warnings --json",
            "skyfill status did:plc:x --json",
            "skyfill retry --reason rate_limited",
            "skyfill verify x.car --key did:key:z",
            "skyfill completions zsh",
            "skyfill man",
        ] {
            parse(line).unwrap();
        }
    }

    #[test]
    fn completions_and_man_page_know_every_flag() {
        let mut man = Vec::new();
        write_man(&mut man).unwrap();
        let man = String::from_utf8(man).unwrap();
        for shell in clap_complete::Shell::value_variants() {
            let mut script = Vec::new();
            write_completions(*shell, &mut script).unwrap();
            let script = String::from_utf8(script).unwrap();
            assert!(
                script.contains("allow-network") && script.contains("no-environment"),
                "{shell}"
            );
        }
        let root = Cli::command();
        for command in root.get_subcommands() {
            let name = command.get_name();
            assert!(man.contains(&name.replace('-', "\\-")), "{name}");
            for flag in command.get_arguments().filter_map(clap::Arg::get_long) {
                assert!(man.contains(&flag.replace('-', "\\-")), "{flag}");
            }
        }
        assert!(man.contains(".TP\n130\n"));
    }
}
