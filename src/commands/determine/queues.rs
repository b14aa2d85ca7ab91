//! Records of a queue, skyfill's or the Python service's: table `queue`, `payload` a JSON list of records.
//!
//! Items are read one at a time, each in a transaction of its own, whatever their status; nothing is written.

use std::path::Path;

use rusqlite::{Connection, OptionalExtension};

use crate::commands::determine::intake::{Cause, Intake, Place};
use crate::config::list_queue::open_for_reading;
use crate::store::error::StoreError;

/// Bytes of a payload that are read at once; skyfill writes at most 8 MiB, or one record.
const PAYLOAD_BYTES_MAX: i64 = 32 << 20;

/// Whether the file is a queue; a database without one is none.
///
/// # Errors
/// [`StoreError`] naming it.
pub fn open(path: &Path) -> Result<Option<Connection>, StoreError> {
    match open_for_reading(path) {
        Ok(connection) => Ok(Some(connection)),
        Err(error) if error.to_string().contains("no such table: queue") => Ok(None),
        Err(error) => Err(StoreError::sqlite(path, error)),
    }
}

/// Takes every record of the queue in.
///
/// # Errors
/// [`StoreError`] naming the file.
pub fn read(
    connection: &Connection,
    place: Place<'_>,
    intake: &mut Intake,
) -> Result<(), StoreError> {
    let failed = |error| StoreError::sqlite(place.file, error);
    let select = "SELECT rowid, iif(octet_length(payload) <= ?2, CAST(payload AS BLOB), NULL), octet_length(payload)
                  FROM queue WHERE rowid > ?1 ORDER BY rowid LIMIT 1";
    let mut statement = connection.prepare(select).map_err(failed)?;
    let mut after = i64::MIN;
    loop {
        let taken = statement.query_row((after, PAYLOAD_BYTES_MAX), |row| {
            let id: i64 = row.get(0)?;
            let place = Place { row: id, ..place };
            // Parsed where SQLite holds it: no copy of it is made.
            Ok((
                id,
                match row.get_ref(1)?.as_blob() {
                    Ok(payload) => intake.json(payload, place),
                    Err(_) => {
                        let (cause, what) = match row.get::<_, Option<i64>>(2)? {
                            Some(bytes) => (Cause::TooLarge, format!("{bytes} bytes")),
                            None => (Cause::NotJson, "no payload".to_owned()),
                        };
                        intake.bad(cause, &what, place);
                        Ok(())
                    }
                },
            ))
        });
        let Some((id, outcome)) = taken.optional().map_err(failed)? else { return Ok(()) };
        outcome?;
        after = id;
    }
}
