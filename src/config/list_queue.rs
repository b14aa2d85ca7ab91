//! The Python service's input queue (`input_backfill_sync.db`) as a list: table `queue`, `payload` a JSON array of
//! `{"did": ...}` or one such object. Opened read-only; every row counts, whatever its status: the ledger knows what is done.

use std::fmt;
use std::path::Path;
use std::time::Duration;

use rusqlite::{Connection, OpenFlags, OptionalExtension};
use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

/// Bytes of one payload: about 150,000 DIDs, far above what the service writes.
const PAYLOAD_BYTES_MAX: i64 = 8 << 20;

/// How long a writer may hold the file before reading it fails.
const BUSY_SECONDS: u64 = 5;

/// What a row's payload names: texts in the place of DIDs, or what is wrong and the payload's beginning.
#[derive(Debug, Default)]
pub struct Payload {
    /// Row id.
    pub id: i64,
    /// Texts of `did`, in order.
    pub dids: Vec<String>,
    /// What is not as it should be, with the text that stands for it.
    pub wrong: Vec<(String, String)>,
    /// Objects and texts so far.
    entries: u64,
}

/// An open input queue.
#[derive(Debug)]
pub struct InputQueue {
    connection: Connection,
    last_id: i64,
}

impl InputQueue {
    /// Opens the queue at `path`.
    ///
    /// # Errors
    /// What SQLite said.
    pub fn open(path: &Path) -> rusqlite::Result<Self> {
        Ok(Self { connection: open_for_reading(path)?, last_id: i64::MIN })
    }

    /// The next row, `None` after the last.
    ///
    /// # Errors
    /// What SQLite said.
    pub fn next_row(&mut self) -> rusqlite::Result<Option<Payload>> {
        let select = "SELECT rowid, octet_length(payload), iif(octet_length(payload) <= ?2, CAST(payload AS BLOB), NULL)
                      FROM queue WHERE rowid > ?1 ORDER BY rowid LIMIT 1";
        let mut statement = self.connection.prepare_cached(select)?;
        let row = statement.query_row((self.last_id, PAYLOAD_BYTES_MAX), |row| {
            let (id, bytes) = (row.get(0)?, row.get::<_, Option<i64>>(1)?);
            Ok((id, bytes, row.get::<_, Option<Vec<u8>>>(2)?))
        });
        let Some((id, bytes, payload)) = row.optional()? else { return Ok(None) };
        self.last_id = id;
        Ok(Some(match (payload, bytes) {
            (Some(payload), _) => read(id, &payload),
            (None, Some(bytes)) => {
                refused(id, format!("a payload of {bytes} bytes is too large"), b"")
            }
            (None, None) => refused(id, "no payload".to_owned(), b""),
        }))
    }
}

/// Opens somebody's queue file, which has a table `queue` with a `payload`, and never writes to it.
///
/// # Errors
/// What SQLite said.
pub fn open_for_reading(path: &Path) -> rusqlite::Result<Connection> {
    let plain = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    match Connection::open_with_flags(path, plain).and_then(check) {
        // A WAL file in a folder that we may not write to: without a WAL beside it, it is whole by itself.
        Err(error) if is_locked_out(&error) && !has_wal(path) => {
            let uri = immutable_uri(path);
            Connection::open_with_flags(uri, plain | OpenFlags::SQLITE_OPEN_URI).and_then(check)
        }
        opened => opened,
    }
}

fn check(connection: Connection) -> rusqlite::Result<Connection> {
    connection.busy_timeout(Duration::from_secs(BUSY_SECONDS))?;
    connection.prepare("SELECT rowid, payload FROM queue LIMIT 1")?.exists([])?;
    Ok(connection)
}

fn is_locked_out(error: &rusqlite::Error) -> bool {
    use rusqlite::ErrorCode::{CannotOpen, PermissionDenied, ReadOnly};
    matches!(error.sqlite_error_code(), Some(CannotOpen | PermissionDenied | ReadOnly))
}

fn has_wal(path: &Path) -> bool {
    let mut wal = path.as_os_str().to_owned();
    wal.push("-wal");
    std::fs::metadata(wal).is_ok_and(|wal| wal.len() > 0)
}

fn immutable_uri(path: &Path) -> String {
    use std::fmt::Write as _;
    use std::os::unix::ffi::OsStrExt;
    let absolute = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let mut uri = "file:".to_owned();
    for byte in absolute.as_os_str().as_bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'/' | b'.' | b'_' | b'-') {
            uri.push(char::from(*byte));
        } else {
            let _infallible = write!(uri, "%{byte:02X}");
        }
    }
    uri + "?immutable=1"
}

fn read(id: i64, payload: &[u8]) -> Payload {
    let mut found = Payload { id, ..Payload::default() };
    let mut json = serde_json::Deserializer::from_slice(payload);
    let read = Entries(&mut found).deserialize(&mut json).and_then(|()| json.end());
    match read {
        Ok(()) => found,
        Err(error) => {
            // What came before the error is as good as the rest: nothing of it is dropped.
            let Payload { wrong, .. } = refused(id, format!("payload: {error}"), payload);
            found.wrong.extend(wrong);
            found
        }
    }
}

fn refused(id: i64, what: String, payload: &[u8]) -> Payload {
    let start = String::from_utf8_lossy(&payload[..payload.len().min(200)]).into_owned();
    let text = if start.trim().is_empty() { format!("row {id}") } else { start };
    Payload { id, wrong: vec![(text, format!("row {id}: {what}"))], ..Payload::default() }
}

/// Takes the `did`s out of a payload while it is parsed: a large payload becomes no tree of values.
struct Entries<'p>(&'p mut Payload);

impl Entries<'_> {
    fn strange<E>(self, what: &dyn fmt::Display) -> Result<(), E> {
        self.0.entries += 1;
        let place = format!("row {}: neither an object nor a text", self.0.id);
        self.0.wrong.push((what.to_string(), place));
        Ok(())
    }
}

impl<'de> DeserializeSeed<'de> for Entries<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Entries<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object with a did, or a list of such")
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<(), E> {
        self.0.entries += 1;
        self.0.dids.push(text.to_owned());
        Ok(())
    }

    fn visit_bool<E>(self, flag: bool) -> Result<(), E> {
        self.strange(&flag)
    }

    fn visit_i64<E>(self, number: i64) -> Result<(), E> {
        self.strange(&number)
    }

    fn visit_u64<E>(self, number: u64) -> Result<(), E> {
        self.strange(&number)
    }

    fn visit_f64<E>(self, number: f64) -> Result<(), E> {
        self.strange(&number)
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        self.strange(&"null")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<(), A::Error> {
        while items.next_element_seed(Entries(self.0))?.is_some() {}
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        self.0.entries += 1;
        let mut has_did = false;
        while let Some(key) = map.next_key::<String>()? {
            if key != "did" {
                map.next_value::<IgnoredAny>()?;
                continue;
            }
            has_did = true;
            match map.next_value::<serde_json::Value>()? {
                serde_json::Value::String(did) => self.0.dids.push(did),
                other => {
                    let what = format!("row {}: did is not a text", self.0.id);
                    self.0.wrong.push((other.to_string().chars().take(200).collect(), what));
                }
            }
        }
        if !has_did {
            let Payload { id, entries, .. } = *self.0;
            self.0
                .wrong
                .push((format!("row {id} entry {entries}"), format!("row {id}: no did key")));
        }
        Ok(())
    }
}
