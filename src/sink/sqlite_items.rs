//! Looks into a queue file and marks items, beside its writer and its readers.
//!
//! Items are read some at a time, each time in a transaction of its own, however slowly they are written out: a reader that
//! stays in one would keep the WAL growing. Marking goes in small transactions too, so that the writer never waits for long.

use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::{Connection, OpenFlags, Row, params};

use crate::store::error::StoreError;

/// How long somebody else may hold the file.
const BUSY_SECONDS: u64 = 5;

/// Items in one page of a list, and in one transaction of marking.
const ITEMS_AT_ONCE: u64 = 500;

/// Which items; all conditions together.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Which {
    /// Of this status.
    pub status: Option<&'static str>,
    /// After this id.
    pub after: Option<i64>,
    /// At most so many, by id.
    pub limit: Option<u64>,
    /// Of these ids; empty: of any.
    pub ids: Vec<i64>,
}

impl Which {
    /// Whether it is every item there is.
    #[must_use]
    pub fn is_everything(&self) -> bool {
        *self == Self::default()
    }
}

/// An item without its payload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Head {
    /// Row id.
    pub id: i64,
    /// As readers left it.
    pub status: String,
    /// `YYYY-MM-DD-HH:MM:SS`, UTC.
    pub created_at: String,
    /// JSON text.
    pub metadata: String,
    /// Bytes of the payload.
    pub bytes: u64,
}

/// An open queue file.
pub struct QueueItems {
    path: PathBuf,
    connection: Connection,
}

/// Labels of the queues in `folder`, in order.
///
/// # Errors
/// [`StoreError`].
pub fn labels(folder: &Path) -> Result<Vec<String>, StoreError> {
    let failed = |error| StoreError::io(folder, error);
    let mut labels = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(failed)? {
        let name = entry.map_err(failed)?.file_name().into_string().unwrap_or_default();
        let stem = name.strip_suffix(".db").and_then(|it| it.strip_prefix("output_backfill_sync_"));
        labels.extend(stem.map(str::to_owned));
    }
    labels.sort();
    Ok(labels)
}

impl QueueItems {
    /// Opens the queue of `label`, for marking too if `is_writing`.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn open(folder: &Path, label: &str, is_writing: bool) -> Result<Self, StoreError> {
        let path = folder.join(super::sqlite::file_name(label));
        let access = if is_writing {
            OpenFlags::SQLITE_OPEN_READ_WRITE
        } else {
            OpenFlags::SQLITE_OPEN_READ_ONLY
        };
        let flags = access | OpenFlags::SQLITE_OPEN_NO_MUTEX | OpenFlags::SQLITE_OPEN_NOFOLLOW;
        let opened = Connection::open_with_flags(&path, flags);
        let connection = opened.map_err(|error| StoreError::sqlite(&path, error))?;
        let patient = connection.busy_timeout(Duration::from_secs(BUSY_SECONDS));
        patient.map_err(|error| StoreError::sqlite(&path, error))?;
        Ok(Self { path, connection })
    }

    /// Tells `each` of the items, by id. An error of `each` ends it.
    ///
    /// # Errors
    /// [`StoreError`], or the error of `each`.
    pub fn list<E: From<StoreError>>(
        &self,
        which: &Which,
        mut each: impl FnMut(Head) -> Result<(), E>,
    ) -> Result<(), E> {
        let columns = "id, CAST(status AS TEXT), CAST(created_at AS TEXT), CAST(metadata AS TEXT), octet_length(payload)";
        let read = |row: &Row<'_>| {
            let text = |at| row.get::<_, Option<String>>(at).map(Option::unwrap_or_default);
            Ok(Head {
                id: row.get(0)?,
                status: text(1)?,
                created_at: text(2)?,
                metadata: text(3)?,
                bytes: row.get::<_, Option<i64>>(4)?.unwrap_or(0).cast_unsigned(),
            })
        };
        self.pages(which, columns, ITEMS_AT_ONCE, read, |head: &Head| head.id, &mut each)
    }

    /// Tells `each` of the items' ids and payloads, one at a time.
    ///
    /// # Errors
    /// [`StoreError`], or the error of `each`.
    pub fn payloads<E: From<StoreError>>(
        &self,
        which: &Which,
        mut each: impl FnMut((i64, Vec<u8>)) -> Result<(), E>,
    ) -> Result<(), E> {
        let read = |row: &Row<'_>| {
            let payload: Option<Vec<u8>> = row.get(1)?;
            Ok((row.get(0)?, payload.unwrap_or_default()))
        };
        let columns = "id, CAST(payload AS BLOB)";
        self.pages(which, columns, 1, read, |item: &(i64, Vec<u8>)| item.0, &mut each)
    }

    fn pages<T, E: From<StoreError>>(
        &self,
        which: &Which,
        columns: &str,
        at_once: u64,
        read: impl Fn(&Row<'_>) -> rusqlite::Result<T>,
        id_of: impl Fn(&T) -> i64,
        each: &mut dyn FnMut(T) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut after = which.after.unwrap_or(i64::MIN);
        let mut left = which.limit.unwrap_or(u64::MAX);
        while left > 0 {
            let page = self.page(which, columns, after, left.min(at_once), &read)?;
            let Some(last) = page.last() else { return Ok(()) };
            after = id_of(last);
            left -= page.len() as u64;
            page.into_iter().try_for_each(&mut *each)?;
        }
        Ok(())
    }

    fn page<T>(
        &self,
        which: &Which,
        columns: &str,
        after: i64,
        count: u64,
        read: impl Fn(&Row<'_>) -> rusqlite::Result<T>,
    ) -> Result<Vec<T>, StoreError> {
        let failed = |error| StoreError::sqlite(&self.path, error);
        let select = format!(
            "SELECT {columns} FROM queue WHERE id > ?1 AND (?2 IS NULL OR status = ?2)
                 AND (?3 IS NULL OR id IN (SELECT value FROM json_each(?3))) ORDER BY id LIMIT ?4"
        );
        let ids = (!which.ids.is_empty()).then(|| format!("{:?}", which.ids));
        let count = i64::try_from(count).unwrap_or(i64::MAX);
        let mut statement = self.connection.prepare_cached(&select).map_err(failed)?;
        let rows = statement.query_map(params![after, which.status, ids, count], read);
        rows.map_err(failed)?.collect::<Result<_, _>>().map_err(failed)
    }

    /// Marks the items that are not completed as completed; gives how many there were.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn complete(&self, which: &Which) -> Result<u64, StoreError> {
        let failed = |error| StoreError::sqlite(&self.path, error);
        let mut after = which.after.unwrap_or(i64::MIN);
        let (mut left, mut marked) = (which.limit.unwrap_or(u64::MAX), 0);
        loop {
            let read = |row: &Row<'_>| Ok((row.get(0)?, row.get::<_, Option<String>>(1)?));
            let columns = "id, CAST(status AS TEXT)";
            let page = self.page(which, columns, after, ITEMS_AT_ONCE, read)?;
            let Some((last, _)) = page.last() else { return Ok(marked) };
            after = *last;
            let is_open = |(id, status): &(i64, Option<String>)| {
                (status.as_deref() != Some("completed")).then_some(*id)
            };
            let room = usize::try_from(left).unwrap_or(usize::MAX);
            let ids: Vec<i64> = page.iter().filter_map(is_open).take(room).collect();
            // A reader that has changed one of them meanwhile keeps what it wrote.
            let update = "UPDATE queue SET status = 'completed' WHERE id IN (SELECT value FROM json_each(?1))
                              AND status IS NOT 'completed' AND (?2 IS NULL OR status = ?2)";
            let changed =
                self.connection.execute(update, params![format!("{ids:?}"), which.status]);
            let changed = changed.map_err(failed)? as u64;
            (marked, left) = (marked + changed, left.saturating_sub(changed));
            if left == 0 {
                return Ok(marked);
            }
        }
    }
}
