//! Pending items: how much of a queue no reader has taken. A look from outside at a file that its owner may be writing, moving
//! or deleting; it never waits for a lock, and ends when its time is over.

use std::path::Path;
use std::time::Duration;

use rusqlite::{Connection, OpenFlags};

use crate::clock::Clock;

/// SQLite instructions between two looks at the clock: some microseconds.
const INSTRUCTIONS_PER_LOOK: i32 = 1_000;

/// Items of `path` that are pending; `None` if they could not be counted within `patience`.
#[must_use]
pub fn count(path: &Path, patience: Duration, clock: &Clock) -> Option<u64> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY
        | OpenFlags::SQLITE_OPEN_NO_MUTEX
        | OpenFlags::SQLITE_OPEN_NOFOLLOW;
    let counted = Connection::open_with_flags(path, flags).and_then(|mut connection| {
        let (clock, until) = (clock.clone(), clock.now() + patience);
        let is_over = move || clock.now() >= until;
        connection.progress_handler(INSTRUCTIONS_PER_LOOK, Some(is_over))?;
        let select = "SELECT count(*) FROM queue WHERE status = 'pending'";
        connection.query_row(select, [], |row| row.get::<_, i64>(0))
    });
    match counted {
        Ok(items) => Some(items.cast_unsigned()),
        Err(error) => {
            tracing::debug!(path = %path.display(), %error, "pending items were not counted");
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pending_items_are_counted_in_time_or_not_at_all() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("queue.db");
        let (clock, second) = (Clock::system(), Duration::from_secs(60));
        assert_eq!(count(&path, second, &clock), None);
        assert!(!path.exists());
        let writer = Connection::open(&path).unwrap();
        writer
            .execute_batch(
                "PRAGMA journal_mode = WAL; CREATE TABLE queue (id INTEGER PRIMARY KEY, status TEXT);
                 WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 5000)
                 INSERT INTO queue SELECT i, CASE i % 5 WHEN 0 THEN 'completed' ELSE 'pending' END FROM n;
                 BEGIN IMMEDIATE; DELETE FROM queue;",
            )
            .unwrap();
        assert_eq!(count(&path, second, &clock), Some(4_000));
        assert_eq!(count(&path, Duration::ZERO, &clock), None);
    }
}
