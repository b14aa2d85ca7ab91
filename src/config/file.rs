//! The configuration's door: file and command line in, checked settings or every error at once out.
//!
//! Read twice: first as written (`config::written`, `config::assign`), then what it means (`config::keys`), then what the
//! settings mean together (here). Defaults, file, assignments in order: later wins. Each error names file and line or the
//! flag, the key, what was expected, and for an unknown key the nearest known one.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::Read as _;
use std::path::Path;
use std::time::Duration;

pub use crate::config::assign::Assignment;
use crate::config::group;
use crate::config::keys::{KEYS, Key, sections};
use crate::config::nearest::nearest;
pub use crate::config::problem::{ConfigError, Problem};
use crate::config::settings::{Settings, cores};
use crate::config::sinks::Drafts;
use crate::config::units::{format_duration, format_size};
use crate::config::written::{Data, Entry, Place, Value, Written};

/// Bytes of a configuration file: about 120,000 DIDs in `source.dids`; more belong into a list.
const FILE_BYTES_MAX: u64 = 4 << 20;

/// How long `backfill` bears a silent host, if nothing else is said: somebody waits for it.
const BACKFILL_HOST_PATIENCE: Duration = Duration::from_secs(3_600);

/// Which command asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// The daemon: `data_dir` and one of `source.files`, `source.dids` and `source.group` are required.
    Run,
    /// One shot: the data directory defaults to `./skyfill-data`, `retry.host_patience` to 1 h, and the DIDs may come from
    /// elsewhere.
    Backfill,
}

/// A good configuration.
#[derive(Clone, Debug, PartialEq)]
pub struct Loaded {
    /// What it means.
    pub settings: Settings,
    /// What is allowed but probably not meant, each with its place.
    pub warnings: Vec<String>,
}

/// Reads `file`, if there is one, and `assignments`.
///
/// # Errors
/// [`ConfigError`], with every error that can be found in one go.
pub fn load(
    file: Option<&Path>,
    assignments: &[Assignment],
    mode: Mode,
) -> Result<Loaded, ConfigError> {
    let text = file.map(read_text).transpose()?;
    parse(text.as_deref(), file, assignments, mode)
}

/// [`load`] of a text that was read before; `file` only names it.
///
/// # Errors
/// [`ConfigError::Invalid`].
pub fn parse(
    text: Option<&str>,
    file: Option<&Path>,
    assignments: &[Assignment],
    mode: Mode,
) -> Result<Loaded, ConfigError> {
    let mut draft = Draft::new(file, mode);
    if let Some(text) = text {
        let written = Written::parse(text);
        for slip in &written.slips {
            draft.problem(Place::Line(slip.line), "", slip.text.clone());
        }
        let mut entries = written.entries;
        entries.sort_by_key(|entry| match entry.value.place {
            Place::Line(line) => line,
            _ => 0,
        });
        entries.iter().for_each(|entry| draft.enter(entry));
        // After a slip nobody knows which section a line is in: what follows would only mislead.
        if entries.is_empty() && !written.slips.is_empty() {
            return Err(ConfigError::Invalid(draft.problems));
        }
    }
    assignments.iter().for_each(|assignment| draft.assign(assignment));
    draft.require();
    draft.compare();
    draft.finish()
}

fn read_text(path: &Path) -> Result<String, ConfigError> {
    let unreadable = |source| ConfigError::Unreadable { path: path.to_owned(), source };
    let not_text = |what: String| ConfigError::NotText { path: path.to_owned(), what };
    let file = File::open(path).map_err(unreadable)?;
    if file.metadata().map_err(unreadable)?.is_dir() {
        return Err(not_text("is a directory, expected a TOML file".to_owned()));
    }
    let mut bytes = Vec::new();
    file.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(unreadable)?;
    if bytes.len() as u64 > FILE_BYTES_MAX {
        let limit = format_size(FILE_BYTES_MAX);
        return Err(not_text(format!(
            "is larger than {limit}: long lists belong into source.files"
        )));
    }
    let text = String::from_utf8(bytes).map_err(|error| {
        let valid = &error.as_bytes()[..error.utf8_error().valid_up_to()];
        let line = valid.iter().filter(|byte| **byte == b'\n').count() + 1;
        not_text(format!("line {line}, byte {}: not UTF-8, save it as UTF-8", valid.len()))
    })?;
    Ok(match text.strip_prefix('\u{feff}') {
        Some(rest) => rest.to_owned(),
        None => text,
    })
}

/// Settings that are being put together.
struct Draft<'f> {
    file: Option<&'f Path>,
    mode: Mode,
    settings: Settings,
    sinks: Drafts,
    /// Where each key was last set, also if its value was wrong.
    places: BTreeMap<&'static str, Place>,
    wrong: BTreeSet<&'static str>,
    problems: Vec<Problem>,
    warnings: Vec<Problem>,
}

impl<'f> Draft<'f> {
    fn new(file: Option<&'f Path>, mode: Mode) -> Self {
        let mut settings = Settings::default();
        if mode == Mode::Backfill {
            settings.retry.host_patience = BACKFILL_HOST_PATIENCE;
        }
        Self {
            file,
            mode,
            settings,
            sinks: Drafts::default(),
            places: BTreeMap::new(),
            wrong: BTreeSet::new(),
            problems: Vec::new(),
            warnings: Vec::new(),
        }
    }

    fn at(&self, place: Place, key: &str, text: String) -> Problem {
        Problem { file: self.file.map(Path::to_owned), place, key: key.to_owned(), text }
    }

    fn problem(&mut self, place: Place, key: &str, text: String) {
        let problem = self.at(place, key, text);
        self.problems.push(problem);
    }

    fn enter(&mut self, entry: &Entry) {
        let place = entry.value.place.clone();
        let is_section = sections().any(|section| section == entry.key);
        if is_section && entry.value.data == Data::Table {
            return;
        }
        if Drafts::owns(&entry.key) {
            return self.enter_sink(&entry.key, &entry.value);
        }
        let Some(key) = Key::find(&entry.key) else {
            return self.unknown(&entry.key, place, entry.value.data == Data::Table);
        };
        self.places.insert(key.name, place);
        if let Err(faults) = key.set(&mut self.settings, &entry.value) {
            self.wrong.insert(key.name);
            faults.into_iter().for_each(|fault| self.problem(fault.place, key.name, fault.text));
        }
    }

    fn assign(&mut self, assignment: &Assignment) {
        let (name, _) = assignment.target();
        if Drafts::owns(name) {
            return self.enter_sink(name, &assignment.text());
        }
        let Some(key) = Key::find(name) else {
            return self.unknown(name, assignment.place(), false);
        };
        self.places.insert(key.name, assignment.place());
        if let Err(faults) = assignment.apply(key, &mut self.settings) {
            self.wrong.insert(key.name);
            faults.into_iter().for_each(|fault| self.problem(fault.place, key.name, fault.text));
        } else {
            self.forgive(key.name);
        }
    }

    fn enter_sink(&mut self, key: &str, value: &Value) {
        if let Err(faults) = self.sinks.enter(key, value) {
            faults.into_iter().for_each(|fault| self.problem(fault.place, key, fault.text));
        }
    }

    /// A good assignment stands in for what an earlier one of the same key got wrong, but not for what the file did: that
    /// stays wrong for the next one who reads it.
    fn forgive(&mut self, name: &'static str) {
        let is_mine = |problem: &Problem| problem.key == name;
        if !self
            .problems
            .iter()
            .any(|problem| is_mine(problem) && matches!(problem.place, Place::Line(_)))
        {
            self.problems.retain(|problem| !is_mine(problem));
            self.wrong.remove(name);
        }
    }

    fn unknown(&mut self, name: &str, place: Place, is_table: bool) {
        if sections().any(|section| section == name) {
            let text = format!("is a section, its keys are {}", keys_of(name));
            return self.problem(place, name, text);
        }
        let what = if is_table { "unknown section" } else { "unknown key" };
        let section = name.split_once('.').map_or("", |(section, _)| section);
        let is_known_section = sections().any(|known| known == section);
        let near = if is_table || (name.contains('.') && !is_known_section) {
            let near_key = nearest(name, KEYS.iter().map(|key| key.name)).filter(|_| !is_table);
            near_key.map(ToOwned::to_owned).or_else(|| {
                let section = if section.is_empty() { name } else { section };
                nearest(section, sections()).map(|section| format!("[{section}]"))
            })
        } else {
            nearest(name, KEYS.iter().map(|key| key.name)).map(ToOwned::to_owned)
        };
        let hint = match near {
            Some(near) => format!("did you mean {near}?"),
            None if is_known_section => format!("the keys of [{section}] are {}", keys_of(section)),
            None => format!("the sections are {}", sections().collect::<Vec<_>>().join(", ")),
        };
        self.problem(place, name, format!("{what}, {hint}"));
    }

    fn require(&mut self) {
        if self.mode != Mode::Run {
            return;
        }
        let is_given = |draft: &Self, key| draft.places.contains_key(key);
        if !is_given(self, "data_dir") {
            let text = "is required for run: write data_dir = \"/var/lib/skyfill\" at the top, or give --data-dir";
            self.problem(Place::Nowhere, "data_dir", text.to_owned());
        }
        let source = &self.settings.source;
        let is_wrong = self.wrong.iter().any(|key| key.starts_with("source."));
        let is_empty = source.files.is_empty() && source.dids.is_empty() && source.group.is_none();
        if is_empty && !is_wrong {
            let place = self.place_of("source.files", "source.dids");
            let text = "one of source.files and source.dids, or source.group, is required for run and must not be empty";
            self.problem(place, "source.files", text.to_owned());
        }
    }

    /// What the settings mean together.
    fn compare(&mut self) {
        let Settings { filter, fetch, network, retry, refresh, limits, metrics, .. } =
            self.settings.clone();
        let window = &filter.window;
        self.refuse_if(window.start > window.end, "window.end", "window.start", || {
            format!("{} is before window.start ({})", window.end, window.start)
        });
        self.refuse_if(
            limits.spool < limits.repo_bytes,
            "limits.spool",
            "limits.repo_bytes",
            || {
                let (spool, repo) = (format_size(limits.spool), format_size(limits.repo_bytes));
                format!("{spool} is less than limits.repo_bytes ({repo}): raise it, or lower that")
            },
        );
        self.refuse_if(retry.base > retry.max, "retry.base", "retry.max", || {
            let (base, max) = (format_duration(retry.base), format_duration(retry.max));
            format!("{base} is more than retry.max ({max})")
        });
        let is_blind = refresh.every.is_some() && !refresh.leaves;
        self.refuse_if(is_blind, "refresh.every", "refresh.leaves", || {
            "needs refresh.leaves = true: without leaves there is nothing to compare with"
                .to_owned()
        });
        for (name, timeout) in [
            ("fetch.first_byte_timeout", fetch.first_byte_timeout),
            ("fetch.idle_timeout", fetch.idle_timeout),
        ] {
            self.refuse_if(timeout > fetch.total_timeout, name, "fetch.total_timeout", || {
                let (part, total) =
                    (format_duration(timeout), format_duration(fetch.total_timeout));
                format!("{part} is more than fetch.total_timeout ({total})")
            });
        }
        if let Some(listen) = metrics.listen {
            let is_open = !listen.ip().to_canonical().is_loopback() && !metrics.public;
            self.refuse_if(is_open, "metrics.listen", "metrics.public", || {
                format!("{listen} is not loopback, others could read it: set metrics.public = true if that is meant")
            });
        }
        self.warn_if(limits.spool_memory > limits.memory / 2, "limits.spool_memory", || {
            "more than half of limits.memory, no spool can have that much".to_owned()
        });
        self.warn_if(fetch.host_concurrency > fetch.concurrency, "fetch.host_concurrency", || {
            format!("more than fetch.concurrency ({}), which it never reaches", fetch.concurrency)
        });
        self.warn_if(
            network.allow.iter().any(|network| network.is_everything()),
            "network.allow",
            || {
                "every address is allowed, a DID document can make skyfill connect to any of yours"
                    .to_owned()
            },
        );
        self.warn_about_sources();
    }

    fn warn_about_sources(&mut self) {
        let is_open = |plc: &url::Url| {
            let is_loopback = match plc.host() {
                Some(url::Host::Ipv4(address)) => address.is_loopback(),
                Some(url::Host::Ipv6(address)) => address.is_loopback(),
                Some(url::Host::Domain(name)) => name == "localhost",
                None => false,
            };
            plc.scheme() == "http" && !is_loopback
        };
        let identity = &self.settings.identity;
        let (plc, mirrors) = (is_open(&identity.plc_url), identity.mirrors.iter().any(is_open));
        for (is_open, key) in [(plc, "identity.plc_url"), (mirrors, "identity.mirrors")] {
            self.warn_if(is_open, key, || {
                "plain http, anybody on the way can name other hosts and keys".to_owned()
            });
        }
        let files = self.settings.source.files.clone();
        let twice = files.iter().enumerate().find(|(at, file)| files[..*at].contains(file));
        if let Some((_, file)) = twice {
            let text = format!("{} is listed twice", file.display());
            self.warn_if(true, "source.files", || text);
        }
    }

    fn place_of(&self, key: &str, or: &str) -> Place {
        self.places.get(key).or_else(|| self.places.get(or)).cloned().unwrap_or(Place::Nowhere)
    }

    fn refuse_if(&mut self, is_wrong: bool, key: &str, other: &str, text: impl FnOnce() -> String) {
        // A value that could not be read left its default behind, which proves nothing.
        let is_known = !self.wrong.contains(key) && !self.wrong.contains(other);
        if is_wrong && is_known {
            self.problem(self.place_of(key, other), key, text());
        }
    }

    fn warn_if(&mut self, is_odd: bool, key: &str, text: impl FnOnce() -> String) {
        if is_odd {
            let warning = self.at(self.place_of(key, key), key, text());
            self.warnings.push(warning);
        }
    }

    fn finish(mut self) -> Result<Loaded, ConfigError> {
        let is_known = !self.wrong.contains("limits.journal");
        let journal = is_known.then_some(self.settings.limits.journal);
        let (sinks, wrong) = std::mem::take(&mut self.sinks).finish(journal);
        let are_sinks_known = wrong.is_empty();
        wrong.into_iter().for_each(|(key, fault)| self.problem(fault.place, &key, fault.text));
        self.settings.sinks = sinks;
        if let Some(text) = group::conflict(&self.settings).filter(|_| are_sinks_known) {
            self.problem(
                self.place_of("source.group", "source.group"),
                "source.group",
                text.to_owned(),
            );
        }
        if !self.problems.is_empty() {
            return Err(ConfigError::Invalid(self.problems));
        }
        if self.settings.limits.parsers == 0 {
            self.settings.limits.parsers = cores();
        }
        let warnings = self.warnings.iter().map(ToString::to_string).collect();
        Ok(Loaded { settings: self.settings, warnings })
    }
}

fn keys_of(section: &str) -> String {
    let inside = KEYS.iter().filter_map(|key| key.name.split_once('.'));
    let names: Vec<&str> = inside.filter(|(of, _)| *of == section).map(|(_, name)| name).collect();
    names.join(", ")
}
