//! `skyfill check`: says whether `skyfill run` would accept the configuration.
//!
//! ```text
//!  syntax and meaning   config::file, every error at once          78, or 77 where the file may not be read
//!  environment          lists, data directory, free space,         78, or 77
//!                       places of sinks, listen address;
//!                       the directory's name                       a warning
//! ```
//! What the daemon of this same data directory holds is no error: the reload of a running daemon checks first.
//! Nothing is left behind: a missing data directory is not made. The result goes to stdout, as text or (`--json`) as one
//! object.

use std::fs;
use std::io::{self, Write};
use std::net::{TcpListener, ToSocketAddrs};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::mpsc;
use std::time::Duration;

use crate::cli;
use crate::commands::check_sinks::{self, Wrong};
use crate::config::file::{Mode, load};
use crate::config::settings::Settings;
use crate::config::targets::{self, ListSource, Target};
use crate::config::units::format_size;
use crate::exit_code::ExitCode;
use crate::stages::fetcher::fitting_descriptors;
use crate::stages::resolver;
use crate::store::data_dir::holder;
use crate::store::error::{StoreError, descriptors_max, free_bytes};
use crate::store::key_file;

/// How long a name may take to resolve.
const NAME_SECONDS_MAX: u64 = 10;

/// Malformed entries that are named; the rest is counted.
const MALFORMED_NAMED_MAX: u64 = 10;

/// What was found.
#[derive(Debug, Default, serde::Serialize)]
struct Findings {
    errors: Vec<String>,
    warnings: Vec<String>,
    #[serde(skip)]
    is_permission: bool,
}

impl Findings {
    fn error(&mut self, text: String) {
        self.errors.push(text);
    }

    fn permission(&mut self, text: String) {
        self.is_permission = true;
        self.errors.push(text);
    }

    fn warn(&mut self, text: String) {
        self.warnings.push(text);
    }

    fn sinks(&mut self, wrong: Vec<Wrong>) {
        for wrong in wrong {
            match wrong {
                Wrong::Error(text) => self.error(text),
                Wrong::Permission(text) => self.permission(text),
                Wrong::Warning(text) => self.warn(text),
            }
        }
    }

    fn code(&self, deny_warnings: bool) -> ExitCode {
        let is_bad = !self.errors.is_empty() || (deny_warnings && !self.warnings.is_empty());
        match (is_bad, self.is_permission) {
            (false, _) => ExitCode::Done,
            (true, true) => ExitCode::Permission,
            (true, false) => ExitCode::Config,
        }
    }
}

/// Checks and tells.
#[must_use]
pub fn run(args: &cli::Check) -> ExitCode {
    let found = examine(args);
    let code = found.code(args.deny_warnings);
    // Whoever closed stdout still gets the exit code.
    let _unread = tell(&found, code != ExitCode::Done, args.json);
    code
}

fn examine(args: &cli::Check) -> Findings {
    let mut found = Findings::default();
    match load(args.common.config.as_deref(), &args.common.assignments(), Mode::Run) {
        Ok(loaded) => {
            found.warnings = loaded.warnings;
            found.sinks(check_sinks::features(&loaded.settings));
            if !args.no_environment {
                environment(&loaded.settings, &mut found);
            }
        }
        Err(error) => {
            found.is_permission = error.is_permission();
            found.errors = error.to_string().lines().map(ToOwned::to_owned).collect();
        }
    }
    found
}

fn tell(found: &Findings, is_bad: bool, json: bool) -> io::Result<()> {
    let mut out = io::stdout().lock();
    if json {
        let result =
            serde_json::json!({"ok": !is_bad, "errors": found.errors, "warnings": found.warnings});
        return writeln!(out, "{result}");
    }
    found.errors.iter().try_for_each(|error| writeln!(out, "error: {error}"))?;
    found.warnings.iter().try_for_each(|warning| writeln!(out, "warning: {warning}"))?;
    match (is_bad, found.errors.len()) {
        (false, _) => writeln!(out, "ok"),
        (true, 0) => writeln!(out, "not ok: warnings are denied"),
        (true, errors) => writeln!(out, "not ok: {errors} errors"),
    }
}

fn environment(settings: &Settings, found: &mut Findings) {
    lists(settings, found);
    match key_file::read(settings.pseudonyms.as_deref()) {
        Err(StoreError::Permission(text)) => found.permission(text),
        Err(error) => found.error(error.to_string()),
        Ok(_) => {}
    }
    let is_ours_running = data_dir(&settings.data_dir, found);
    disk_free(settings, found);
    descriptors(settings, found);
    directory("identity.plc_url", &settings.identity.plc_url, found);
    for mirror in &settings.identity.mirrors {
        directory("identity.mirrors", mirror, found);
    }
    found.sinks(check_sinks::environment(settings));
    if !is_ours_running {
        listen(settings, found);
    }
}

fn lists(settings: &Settings, found: &mut Findings) {
    if settings.source.group.is_some() {
        // A worker's accounts come from its group's topic.
        return;
    }
    let sources = ListSource::configured(&settings.source);
    // Reading stdin would take from the daemon what it is meant to get.
    let sources: Vec<ListSource> =
        sources.into_iter().filter(|source| *source != ListSource::Stdin).collect();
    let is_everything = sources.len() == ListSource::configured(&settings.source).len();
    let mut targets = match targets::open(&sources) {
        Ok(targets) => targets,
        Err(error) if error.is_permission() => return found.permission(error.to_string()),
        Err(error) => return found.error(error.to_string()),
    };
    let mut named = 0;
    for target in targets.by_ref() {
        match target {
            Ok(Target::Malformed { cleaned, detail }) => {
                named += 1;
                if named <= MALFORMED_NAMED_MAX {
                    found.warn(format!("{detail}: {cleaned}"));
                }
            }
            Ok(Target::Did(_)) => {}
            Err(error) if error.is_permission() => return found.permission(error.to_string()),
            Err(error) => return found.error(error.to_string()),
        }
    }
    let counts = targets.counts();
    if counts.total() == 0 && is_everything {
        found.error("the lists are empty".to_owned());
    }
    if counts.malformed > MALFORMED_NAMED_MAX {
        found.warn(format!("{} entries of the lists are malformed", counts.malformed));
    }
}

/// Whether a process holds this data directory.
fn data_dir(path: &Path, found: &mut Findings) -> bool {
    let shown = path.display();
    let Some(existing) = path.ancestors().find(|part| fs::symlink_metadata(part).is_ok()) else {
        // A relative path without a parent: it will be made in the working directory.
        writable(Path::new("."), found);
        return false;
    };
    let metadata = match fs::symlink_metadata(existing) {
        Ok(metadata) => metadata,
        Err(error) => {
            found.error(format!("{}: {error}", existing.display()));
            return false;
        }
    };
    let is_itself = existing == path;
    if is_itself && metadata.is_symlink() {
        found.permission(format!("{shown}: is a symbolic link: name the directory itself"));
    } else if !fs::metadata(existing).is_ok_and(|metadata| metadata.is_dir()) {
        let error = format!("{}: is not a directory", existing.display());
        if is_itself { found.permission(error) } else { found.error(error) }
    } else if is_itself && metadata.uid() != rustix::process::geteuid().as_raw() {
        found.permission(format!(
            "{shown}: belongs to another user: run as its owner, or choose another directory"
        ));
    } else if is_itself && metadata.mode() & 0o002 != 0 {
        found.permission(format!("{shown}: everybody may write to it: chmod o-w it first"));
    } else {
        writable(existing, found);
    }
    is_itself && holder(path).is_some()
}

fn writable(path: &Path, found: &mut Findings) {
    use rustix::fs::Access;
    if rustix::fs::access(path, Access::WRITE_OK | Access::EXEC_OK).is_err() {
        let user = rustix::process::geteuid().as_raw();
        found.permission(format!("{}: user {user} may not write to it", path.display()));
    }
}

fn disk_free(settings: &Settings, found: &mut Findings) {
    let Some(free) = free_bytes(&settings.data_dir) else { return };
    if free < settings.limits.disk_free {
        let (free, wanted) = (free >> 20, format_size(settings.limits.disk_free));
        let path = settings.data_dir.display();
        found.error(format!(
            "{path}: {free} MiB are free, limits.disk_free wants {wanted}: nothing would begin"
        ));
    }
}

/// A low limit is borne, with fewer transfers.
fn descriptors(settings: &Settings, found: &mut Findings) {
    let limit = descriptors_max();
    let fitting = fitting_descriptors(limit);
    if fitting < settings.fetch.concurrency + resolver::CAPACITY {
        found.warn(format!(
            "RLIMIT_NOFILE is {limit}: that is enough for {fitting} transfers and resolutions, fetch.concurrency asks for {}",
            settings.fetch.concurrency
        ));
    }
}

/// A name that does not resolve may be the network's fault, and the network may be back when it matters.
fn directory(key: &str, url: &url::Url, found: &mut Findings) {
    let Some(url::Host::Domain(name)) = url.host() else { return };
    let (name, port) = (name.to_owned(), url.port_or_known_default().unwrap_or(443));
    let (answer, answered) = mpsc::sync_channel(1);
    let asked = (name.clone(), port);
    // The system's resolver knows no time limit; a thread that waits longer than we do ends with the process.
    let resolve = move || {
        let resolved = asked.to_socket_addrs().map(|mut addresses| addresses.next().is_some());
        let _not_waited_for = answer.send(resolved);
    };
    if std::thread::Builder::new().name("resolve".to_owned()).spawn(resolve).is_err() {
        return;
    }
    let why = match answered.recv_timeout(Duration::from_secs(NAME_SECONDS_MAX)) {
        Ok(Ok(true)) => return,
        Ok(Ok(false)) => "no address".to_owned(),
        Ok(Err(error)) => error.to_string(),
        Err(_) => format!("no answer in {NAME_SECONDS_MAX} s"),
    };
    found.warn(format!("{key}: {name} does not resolve: {why}"));
}

fn listen(settings: &Settings, found: &mut Findings) {
    let Some(address) = settings.metrics.listen else { return };
    match TcpListener::bind(address) {
        Ok(_closed_again) => {}
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            found.permission(format!("metrics.listen: {address}: {error}"));
        }
        Err(error) => found.error(format!("metrics.listen: {address}: {error}")),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::disallowed_methods, reason = "what tests write need not last")]

    use std::os::unix::fs::{PermissionsExt, symlink};

    use clap::Parser;

    use super::*;
    use crate::config::settings::Source;
    use crate::store::data_dir::DataDir;

    const DID: &str = "did:plc:z72i7hdynmk6r22z27h6tvur";

    /// A folder with a good list, and what `check` finds with these flags besides its good ones.
    fn found(folder: &Path, flags: &[&str]) -> Findings {
        let list = folder.join("dids.txt");
        if !list.exists() {
            fs::write(&list, DID).unwrap();
        }
        let (data, list) =
            (folder.join("data").display().to_string(), format!("source.files={}", list.display()));
        let good = [
            "skyfill",
            "check",
            "--set",
            "metrics.listen=",
            "--set",
            "identity.plc_url=http://127.0.0.1:1",
        ];
        let paths = ["--data-dir", &data, "--set", &list];
        let line = good.into_iter().chain(paths).chain(flags.iter().copied());
        let cli::Command::Check(args) = cli::Cli::try_parse_from(line).unwrap().command else {
            panic!()
        };
        examine(&args)
    }

    fn assert_refused(found: &Findings, code: ExitCode, text: &str) {
        assert_eq!(found.code(false), code, "{found:?}");
        assert!(found.errors.iter().any(|error| error.contains(text)), "{found:?}");
    }

    #[test]
    fn a_good_one_leaves_nothing_behind() {
        let folder = tempfile::tempdir().unwrap();
        let good = found(folder.path(), &[]);
        assert_eq!((good.code(true), good.errors.len()), (ExitCode::Done, 0), "{good:?}");
        assert!(!folder.path().join("data").exists());
    }

    #[test]
    fn lists_are_read_to_their_end() {
        let folder = tempfile::tempdir().unwrap();
        let list = folder.path().join("dids.txt");
        fs::write(&list, format!("{DID}\n{}", "bad\n".repeat(20))).unwrap();
        let malformed = found(folder.path(), &[]);
        assert_eq!(
            (malformed.code(false), malformed.code(true)),
            (ExitCode::Done, ExitCode::Config)
        );
        assert!(
            malformed.warnings.len() == 11 && malformed.warnings[0].contains("dids.txt:2"),
            "{malformed:?}"
        );
        fs::write(&list, "# nothing").unwrap();
        assert_refused(&found(folder.path(), &[]), ExitCode::Config, "the lists are empty");
        assert_eq!(found(folder.path(), &["--no-environment"]).code(true), ExitCode::Done);
        fs::write(&list, b"did:plc:\xff").unwrap();
        assert_refused(
            &found(folder.path(), &[]),
            ExitCode::Config,
            "dids.txt:1: byte 8 is not UTF-8",
        );
        fs::remove_file(&list).unwrap();
        fs::create_dir(&list).unwrap();
        assert_refused(&found(folder.path(), &[]), ExitCode::Config, "is a directory");
    }

    #[test]
    fn a_worker_has_no_lists_that_could_be_empty() {
        let folder = tempfile::tempdir().unwrap();
        let flags = [
            "source.files=[]",
            "source.group=study",
            "sink.x.type=kafka",
            "sink.x.brokers=127.0.0.1:1",
        ];
        let mut flags = flags.map(|flag| ["--set", flag]).concat();
        flags.push("--no-environment");
        let told = found(folder.path(), &flags);
        if cfg!(feature = "kafka") {
            assert_eq!((told.code(true), told.errors.len()), (ExitCode::Done, 0), "{told:?}");
        } else {
            let refused = "source.group: needs a build with --features kafka";
            assert_refused(&told, ExitCode::Config, refused);
        }
        let source = Source { group: Some("study".to_owned()), ..Source::default() };
        let mut looked = Findings::default();
        lists(&Settings { source, ..Settings::default() }, &mut looked);
        assert_eq!(looked.code(true), ExitCode::Done, "{looked:?}");
        let alone =
            found(folder.path(), &["--set", "source.files=[]", "--set", "source.group=study"]);
        assert_refused(
            &alone,
            ExitCode::Config,
            "source.group: needs a sink with type = \"kafka\"",
        );
    }

    #[test]
    fn data_directories_that_run_would_refuse_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let data = folder.path().join("data");
        fs::create_dir(&data).unwrap();
        fs::set_permissions(&data, fs::Permissions::from_mode(0o777)).unwrap();
        assert_refused(
            &found(folder.path(), &[]),
            ExitCode::Permission,
            "everybody may write to it",
        );
        fs::set_permissions(&data, fs::Permissions::from_mode(0o750)).unwrap();
        assert_eq!(found(folder.path(), &[]).code(true), ExitCode::Done);
        let full = found(folder.path(), &["--set", "limits.disk_free=1024TiB"]);
        assert_refused(&full, ExitCode::Config, "limits.disk_free wants 1024TiB");
        fs::rename(&data, folder.path().join("real")).unwrap();
        symlink(folder.path().join("real"), &data).unwrap();
        assert_refused(&found(folder.path(), &[]), ExitCode::Permission, "symbolic link");
        fs::remove_file(&data).unwrap();
        fs::write(&data, "").unwrap();
        assert_refused(&found(folder.path(), &[]), ExitCode::Permission, "is not a directory");
    }

    #[test]
    fn a_port_is_ours_only_with_the_data_directory() {
        let folder = tempfile::tempdir().unwrap();
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let listen = format!("metrics.listen={}", taken.local_addr().unwrap());
        assert_refused(
            &found(folder.path(), &["--set", &listen]),
            ExitCode::Config,
            "metrics.listen: 127.0.0.1:",
        );
        let _running = DataDir::open(&folder.path().join("data")).unwrap();
        assert_eq!(found(folder.path(), &["--set", &listen]).code(true), ExitCode::Done);
    }

    #[test]
    fn a_name_without_address_is_a_warning() {
        let folder = tempfile::tempdir().unwrap();
        let unknown = found(folder.path(), &["--set", "identity.plc_url=https://nowhere.invalid"]);
        assert_eq!((unknown.code(false), unknown.code(true)), (ExitCode::Done, ExitCode::Config));
        assert!(unknown.warnings[0].contains("nowhere.invalid does not resolve"), "{unknown:?}");
    }

    #[test]
    fn meaning_comes_before_environment() {
        let folder = tempfile::tempdir().unwrap();
        let wrong =
            found(folder.path(), &["--set", "fetch.concurency=1", "--set", "limits.memory=1MiB"]);
        assert_refused(&wrong, ExitCode::Config, "did you mean fetch.concurrency?");
        assert_eq!(wrong.errors.len(), 2);
    }
}
