//! The log: one line an event on stderr, text or JSON, for the binary only.
//!
//! ```text
//!  2024-09-27T00:00:00.123Z WARN  the host refused, waiting host=pds.example wait_seconds=30 repeated=4
//!  {"time":"2024-09-27T00:00:00.123Z","level":"warn","message":"the host refused, waiting","host":"pds.example",...}
//! ```
//! An event is never more than one line and never holds a raw control character, whoever wrote its values:
//! tracing-subscriber's own formats let line breaks through and panic on a closed stderr, so neither is used. A warning that
//! comes again within 10 s is counted instead, by where in the code it comes from; the count follows as `repeated`. Other
//! crates are heard from `warn` on only. A log that cannot be written is no reason to stop.

use std::collections::HashMap;
use std::fmt::{self, Write as _};
use std::io::{self, IsTerminal, Write};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tracing::callsite::Identifier;
use tracing::field::{Field, Visit};
use tracing::level_filters::LevelFilter;
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::Registry;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};
use tracing_subscriber::reload;

use crate::clock::{Clock, Instant};
use crate::config::settings::{Log, LogFormat};

/// A warning that comes again sooner than this is counted, not written.
const REPEAT_SECONDS: u64 = 10;

/// Characters of one value: evidence, not the whole of what a stranger sent.
const VALUE_CHARACTERS_MAX: usize = 2_000;

/// Takes finished lines, each with its line break.
type Output = Box<dyn Write + Send>;

/// Where lines go instead: a progress display that makes room for them.
type Route = Box<dyn Fn(&str) + Send + Sync>;

/// Steers the log while the process runs. Dropped, it writes the counts that are still open.
pub struct LogHandle {
    shared: Arc<Shared>,
    filter: reload::Handle<Targets, Registry>,
}

impl fmt::Debug for LogHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("LogHandle")
    }
}

/// Starts the log on stderr for the whole process. Panics become events of it.
#[must_use = "the handle writes the last counts when it is dropped"]
pub fn init(log: &Log) -> LogHandle {
    let is_set = |name| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    let is_dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
    let has_colour = io::stderr().is_terminal() && !is_set("NO_COLOR") && !is_dumb;
    let (subscriber, handle) = build(log, has_colour, Clock::system(), Box::new(io::stderr()));
    let _another_is_first = tracing::subscriber::set_global_default(subscriber);
    std::panic::set_hook(Box::new(|panic| {
        let place = panic.location().map(ToString::to_string).unwrap_or_default();
        let message = panic.payload_as_str().unwrap_or("no message");
        tracing::error!(place, panic = message, "a part of skyfill crashed");
    }));
    handle
}

impl LogHandle {
    /// Changes the least level that is written.
    pub fn set_level(&self, level: Level) {
        let _gone_with_its_subscriber = self.filter.reload(targets(level));
    }

    /// Sends lines through `route` from now on, or to the output again. `route` must not log.
    pub fn set_route(&self, route: Option<Route>) {
        lock(&self.shared.sink).route = route;
    }

    /// Writes the counts of warnings that were held back.
    pub fn flush(&self) {
        let held: Vec<(String, u64)> = {
            let mut repeats = lock(&self.shared.repeats);
            let open = repeats.values_mut().filter(|repeat| repeat.held > 0);
            open.map(|repeat| (repeat.message.clone(), std::mem::take(&mut repeat.held))).collect()
        };
        for (message, count) in held {
            let mut fields = Fields { message, values: Vec::new() };
            fields.count(count);
            self.shared.write(Level::WARN, &fields);
        }
    }
}

impl Drop for LogHandle {
    fn drop(&mut self) {
        self.set_route(None);
        self.flush();
    }
}

fn build(
    log: &Log,
    has_colour: bool,
    clock: Clock,
    output: Output,
) -> (impl Subscriber + Send + Sync, LogHandle) {
    let (filter, handle) = reload::Layer::new(targets(log.level));
    let shared = Arc::new(Shared {
        format: log.format,
        has_colour,
        clock,
        sink: Mutex::new(Sink { output, route: None }),
        repeats: Mutex::new(HashMap::new()),
    });
    let lines = Lines(Arc::clone(&shared));
    (Registry::default().with(filter).with(lines), LogHandle { shared, filter: handle })
}

fn targets(level: Level) -> Targets {
    let level = LevelFilter::from_level(level);
    Targets::new().with_target("skyfill", level).with_default(level.min(LevelFilter::WARN))
}

/// Whatever happened to another holder, there is nothing in here that it could have left half done.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

struct Shared {
    format: LogFormat,
    has_colour: bool,
    clock: Clock,
    sink: Mutex<Sink>,
    /// By place in the code, so that there are never more than there are places.
    repeats: Mutex<HashMap<Identifier, Repeat>>,
}

struct Sink {
    output: Output,
    route: Option<Route>,
}

struct Repeat {
    written_at: Instant,
    held: u64,
    message: String,
}

struct Lines(Arc<Shared>);

impl<S: Subscriber> Layer<S> for Lines {
    fn on_event(&self, event: &Event<'_>, _context: Context<'_, S>) {
        let mut fields = Fields::default();
        event.record(&mut fields);
        let level = *event.metadata().level();
        if level == Level::WARN {
            match self.0.repeated(event.metadata().callsite(), &fields.message) {
                Some(held) => fields.count(held),
                None => return,
            }
        }
        self.0.write(level, &fields);
    }
}

impl Shared {
    /// How many like it were held back, if this one is due; `None` if it is held back too.
    fn repeated(&self, callsite: Identifier, message: &str) -> Option<u64> {
        let now = self.clock.now();
        let mut repeats = lock(&self.repeats);
        let Some(repeat) = repeats.get_mut(&callsite) else {
            let message = message.to_owned();
            repeats.insert(callsite, Repeat { written_at: now, held: 0, message });
            return Some(0);
        };
        if now.duration_since(repeat.written_at) < Duration::from_secs(REPEAT_SECONDS) {
            repeat.held += 1;
            return None;
        }
        repeat.written_at = now;
        Some(std::mem::take(&mut repeat.held))
    }

    fn write(&self, level: Level, fields: &Fields) {
        let time =
            chrono::DateTime::from_timestamp_millis(self.clock.wall_ms()).unwrap_or_default();
        let time = time.format("%Y-%m-%dT%H:%M:%S%.3fZ").to_string();
        let line = match self.format {
            LogFormat::Text => text_line(&time, level, fields, self.has_colour),
            LogFormat::Json => json_line(&time, level, fields),
        };
        let mut sink = lock(&self.sink);
        match &sink.route {
            Some(route) => route(line.trim_end_matches('\n')),
            None => {
                // One call a line, so that lines of several processes do not mix. Nobody is left to tell of an error.
                let _unwritten = sink.output.write_all(line.as_bytes());
            }
        }
    }
}

fn text_line(time: &str, level: Level, fields: &Fields, has_colour: bool) -> String {
    let mut line = format!("{time} ");
    if has_colour {
        let _infallible = write!(line, "\u{1b}[{}m{level:<5}\u{1b}[0m ", colour(level));
    } else {
        let _infallible = write!(line, "{level:<5} ");
    }
    escape_into(&mut line, &fields.message, false);
    for (name, value) in &fields.values {
        let _infallible = write!(line, " {name}=");
        match value {
            Value::Bare(text) => line.push_str(text),
            Value::Text(text) if is_plain(text) => line.push_str(text),
            Value::Text(text) => {
                line.push('"');
                escape_into(&mut line, text, true);
                line.push('"');
            }
        }
    }
    line.push('\n');
    line
}

const fn colour(level: Level) -> &'static str {
    match level {
        Level::ERROR => "31",
        Level::WARN => "33",
        Level::INFO => "32",
        Level::DEBUG => "34",
        Level::TRACE => "35",
    }
}

/// Whether a value needs no quotes.
fn is_plain(text: &str) -> bool {
    let is_special = |c: char| c.is_whitespace() || matches!(c, '"' | '=' | '\\') || is_hidden(c);
    !text.is_empty() && !text.contains(is_special)
}

/// What a terminal obeys without showing it: control characters, direction marks, line and paragraph separators.
fn is_hidden(character: char) -> bool {
    character.is_control()
        || matches!(character, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{2069}' | '\u{feff}')
}

fn escape_into(line: &mut String, text: &str, is_quoted: bool) {
    for character in text.chars() {
        match character {
            '\n' => line.push_str("\\n"),
            '\r' => line.push_str("\\r"),
            '\t' => line.push_str("\\t"),
            '"' | '\\' if is_quoted => line.extend(['\\', character]),
            _ if is_hidden(character) => line.extend(character.escape_unicode()),
            _ => line.push(character),
        }
    }
}

fn json_line(time: &str, level: Level, fields: &Fields) -> String {
    let mut line = format!(
        "{{\"time\":\"{time}\",\"level\":\"{}\",\"message\":",
        level.as_str().to_lowercase()
    );
    json_into(&mut line, &fields.message);
    for (name, value) in &fields.values {
        // The three above are the log's own.
        let own = if matches!(*name, "time" | "level") { "_" } else { "" };
        let _infallible = write!(line, ",\"{name}{own}\":");
        match value {
            Value::Bare(text) => line.push_str(text),
            Value::Text(text) => json_into(&mut line, text),
        }
    }
    line.push_str("}\n");
    line
}

/// JSON text in which nothing hidden is left: JSON itself would allow DEL and everything above it.
fn json_into(line: &mut String, text: &str) {
    line.push('"');
    for character in text.chars() {
        match character {
            '\n' => line.push_str("\\n"),
            '\r' => line.push_str("\\r"),
            '\t' => line.push_str("\\t"),
            '"' | '\\' => line.extend(['\\', character]),
            _ if is_hidden(character) => {
                let _infallible = write!(line, "\\u{:04x}", u32::from(character));
            }
            _ => line.push(character),
        }
    }
    line.push('"');
}

/// An event's message and values, in their order.
#[derive(Default)]
struct Fields {
    message: String,
    values: Vec<(&'static str, Value)>,
}

enum Value {
    /// A number or a truth value, as it is in JSON too.
    Bare(String),
    Text(String),
}

impl Fields {
    fn count(&mut self, repeated: u64) {
        if repeated > 0 {
            self.values.push(("repeated", Value::Bare(repeated.to_string())));
        }
    }

    fn text(&mut self, field: &Field, text: String) {
        let text = match text.char_indices().nth(VALUE_CHARACTERS_MAX) {
            Some((end, _)) => format!("{}...", &text[..end]),
            None => text,
        };
        match field.name() {
            "message" => self.message = text,
            name => self.values.push((name, Value::Text(text))),
        }
    }

    fn bare(&mut self, field: &Field, value: impl fmt::Display) {
        self.values.push((field.name(), Value::Bare(value.to_string())));
    }
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.text(field, format!("{value:?}"));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.text(field, value.to_owned());
    }

    fn record_error(&mut self, field: &Field, value: &(dyn std::error::Error + 'static)) {
        let mut text = value.to_string();
        let mut source = value.source();
        while let Some(cause) = source {
            let _infallible = write!(text, ": {cause}");
            source = cause.source();
        }
        self.text(field, text);
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.bare(field, value);
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.bare(field, value);
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.bare(field, value);
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        if value.is_finite() {
            self.bare(field, value);
        } else {
            self.text(field, value.to_string());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Clone, Default)]
    struct Memory(Arc<Mutex<Vec<u8>>>);

    impl Write for Memory {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            lock(&self.0).write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl Memory {
        fn take(&self) -> String {
            String::from_utf8(std::mem::take(&mut *lock(&self.0))).unwrap()
        }
    }

    fn started(
        level: Level,
        format: LogFormat,
    ) -> (Memory, LogHandle, tracing::subscriber::DefaultGuard) {
        let memory = Memory::default();
        let clock = Clock::fixed(1_727_395_200_123);
        let (subscriber, handle) =
            build(&Log { level, format }, false, clock, Box::new(memory.clone()));
        (memory, handle, tracing::subscriber::set_default(subscriber))
    }

    const HOSTILE: &str =
        "a\n2024 ERROR forged\r\u{1b}[2J\u{7}\u{0}\u{7f}\u{9b}31m\u{202e}\u{2028}\u{85}";

    #[test]
    fn text_lines_are_time_level_message_and_values() {
        let (memory, _handle, _guard) = started(Level::INFO, LogFormat::Text);
        let error = io::Error::other("no \"luck\"");
        tracing::info!(did = "did:plc:x", bytes = 5_u64, left = -1, ok = true, share = 0.5, path = ?"p", %error, "it is done");
        assert_eq!(
            memory.take(),
            "2024-09-27T00:00:00.123Z INFO  it is done did=did:plc:x bytes=5 left=-1 ok=true share=0.5 \
             path=\"\\\"p\\\"\" error=\"no \\\"luck\\\"\"\n"
        );
        tracing::debug!("too fine");
        assert_eq!(memory.take(), "");
    }

    #[test]
    fn json_lines_are_json_with_numbers_as_numbers() {
        let (memory, _handle, _guard) = started(Level::INFO, LogFormat::Json);
        tracing::error!(
            bytes = 5_u64,
            nan = f64::NAN,
            level = "mine",
            text = "a \"b\" \\",
            "it is done"
        );
        let line = memory.take();
        let value: serde_json::Value = serde_json::from_str(&line).unwrap();
        let expected = serde_json::json!({
            "time": "2024-09-27T00:00:00.123Z", "level": "error", "message": "it is done",
            "bytes": 5, "nan": "NaN", "level_": "mine", "text": "a \"b\" \\",
        });
        assert_eq!(value, expected);
    }

    #[test]
    fn hostile_values_stay_on_their_line_and_harmless() {
        for format in [LogFormat::Text, LogFormat::Json] {
            let (memory, _handle, _guard) = started(Level::INFO, format);
            let error = io::Error::other(HOSTILE);
            let dynamic: &(dyn std::error::Error + 'static) = &error;
            tracing::info!(text = HOSTILE, display = %HOSTILE, debug = ?HOSTILE, dynamic, "{HOSTILE}");
            let line = memory.take();
            assert_eq!(line.matches('\n').count(), 1, "{line:?}");
            assert!(!line.trim_end_matches('\n').contains(is_hidden), "{line:?}");
            if format == LogFormat::Json {
                let value: serde_json::Value = serde_json::from_str(&line).unwrap();
                assert_eq!((&value["text"], &value["dynamic"]), (&HOSTILE.into(), &HOSTILE.into()));
            }
        }
        let (memory, _handle, _guard) = started(Level::INFO, LogFormat::Text);
        tracing::info!(long = "x".repeat(1 << 20), "cut");
        assert!(memory.take().len() < 3_000);
    }

    #[tokio::test(start_paused = true)]
    async fn repeated_warnings_are_counted_by_place() {
        let (memory, handle, _guard) = started(Level::INFO, LogFormat::Text);
        let warn = |host: &str| tracing::warn!(host, "the host refused");
        warn("a");
        assert!(memory.take().ends_with("WARN  the host refused host=a\n"));
        for _ in 0..1_000 {
            warn("b");
        }
        tracing::warn!("another one");
        tracing::error!("errors are always written");
        tracing::error!("errors are always written");
        assert_eq!(memory.take().lines().count(), 3);
        tokio::time::advance(Duration::from_secs(9)).await;
        warn("c");
        assert_eq!(memory.take(), "");
        tokio::time::advance(Duration::from_secs(1)).await;
        warn("d");
        assert!(memory.take().ends_with("WARN  the host refused host=d repeated=1001\n"));
        warn("e");
        drop(handle);
        assert!(memory.take().ends_with("WARN  the host refused repeated=1\n"));
    }

    #[test]
    fn level_and_route_change_while_it_runs() {
        let (memory, handle, _guard) = started(Level::WARN, LogFormat::Text);
        let info = || tracing::info!("fine");
        info();
        assert_eq!(memory.take(), "");
        handle.set_level(Level::INFO);
        info();
        assert_eq!(memory.take().lines().count(), 1);
        let routed = Memory::default();
        let target = routed.clone();
        let write = move |line: &str| lock(&target.0).extend_from_slice(line.as_bytes());
        handle.set_route(Some(Box::new(write)));
        info();
        assert_eq!(memory.take(), "");
        assert!(routed.take().ends_with("INFO  fine"));
        handle.set_route(None);
        info();
        assert_eq!(memory.take().lines().count(), 1);
    }

    #[test]
    fn a_closed_output_is_no_reason_to_stop() {
        struct Closed;
        impl Write for Closed {
            fn write(&mut self, _bytes: &[u8]) -> io::Result<usize> {
                Err(io::ErrorKind::BrokenPipe.into())
            }

            fn flush(&mut self) -> io::Result<()> {
                Err(io::ErrorKind::BrokenPipe.into())
            }
        }
        let log = Log { level: Level::INFO, format: LogFormat::Text };
        let (subscriber, handle) = build(&log, false, Clock::fixed(0), Box::new(Closed));
        let _guard = tracing::subscriber::set_default(subscriber);
        tracing::warn!("nobody hears this");
        drop(handle);
    }

    #[test]
    fn colour_is_only_the_level_s() {
        let fields = Fields { message: "m".into(), values: Vec::new() };
        assert_eq!(text_line("t", Level::WARN, &fields, true), "t \u{1b}[33mWARN \u{1b}[0m m\n");
    }
}
