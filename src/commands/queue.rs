//! `skyfill queue`: looks into a queue, writes it out as JSON lines, marks items as completed. It touches only the queue's file
//! and needs no lock: it does what any reader may do at any time.

use std::io::{self, Write};
use std::path::Path;

use serde_json::value::RawValue;
use serde_json::{Value, json};

use crate::cli::{QueueAction, QueueItems as Arguments};
use crate::commands::error::CommandError;
use crate::sink::sqlite_items::{Head, QueueItems, Which, labels};
use crate::store::error::StoreError;

/// Why writing out ended.
enum End {
    /// Whoever read it has what it wanted.
    Enough,
    /// Something failed.
    Failed(CommandError),
}

impl From<StoreError> for End {
    fn from(error: StoreError) -> Self {
        Self::Failed(error.into())
    }
}

impl From<io::Error> for End {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::BrokenPipe => Self::Enough,
            _ => StoreError::io(Path::new("stdout"), error).into(),
        }
    }
}

/// Does what `action` says with a queue of `data_dir`.
///
/// # Errors
/// [`CommandError`]: no such queue, or the disk.
pub fn run(data_dir: &Path, action: &QueueAction, out: &mut dyn Write) -> Result<(), CommandError> {
    let arguments = action.items();
    let which = Which {
        status: arguments.status.map(|status| status.as_str()),
        after: arguments.after,
        limit: arguments.limit,
        ids: arguments.ids.clone(),
    };
    let is_ack = matches!(action, QueueAction::Ack(_));
    if is_ack && which.is_everything() {
        let text = "say which items: --ids, --status, --after or --limit";
        return Err(CommandError::Usage(text.to_owned()));
    }
    let queue = open(data_dir, &arguments.queue, is_ack)?;
    let done = match action {
        QueueAction::List(_) => list(&queue, &which, arguments, out),
        QueueAction::Export(_) => export(&queue, &which, out),
        QueueAction::Ack(_) => ack(&queue, &which, arguments, out),
    };
    match done.and_then(|()| Ok(out.flush()?)) {
        Ok(()) | Err(End::Enough) => Ok(()),
        Err(End::Failed(error)) => Err(error),
    }
}

fn open(data_dir: &Path, name: &str, is_writing: bool) -> Result<QueueItems, CommandError> {
    let folder = data_dir.join("queue");
    if !folder.exists() {
        let text = format!(
            "{} does not exist: nothing was ever run with this --data-dir",
            folder.display()
        );
        return Err(StoreError::Config(text).into());
    }
    let (known, label) = (labels(&folder)?, name.replace('*', "_"));
    if !known.contains(&label) {
        let there = if known.is_empty() { "none yet".to_owned() } else { known.join(", ") };
        return Err(CommandError::Usage(format!(
            "--type {name}: no such queue; there are {there}"
        )));
    }
    Ok(QueueItems::open(&folder, &label, is_writing)?)
}

fn list(
    queue: &QueueItems,
    which: &Which,
    arguments: &Arguments,
    out: &mut dyn Write,
) -> Result<(), End> {
    queue.list(which, |head| {
        let Head { id, status, created_at, metadata, bytes } = head;
        // Readers may have put anything there.
        let metadata: Value = serde_json::from_str(&metadata).unwrap_or_default();
        let (did, rev, records) =
            (&metadata["did"], &metadata["rev"], &metadata["actual_batch_size"]);
        if arguments.json {
            let line = json!({
                "id": id, "status": status, "created_at": created_at, "did": did, "rev": rev,
                "records": records, "bytes": bytes,
            });
            return Ok(writeln!(out, "{line}")?);
        }
        let did = did.as_str().unwrap_or("?");
        let records = records.as_u64().unwrap_or(0);
        Ok(writeln!(
            out,
            "{id:>8}  {status:10}  {created_at}  {records:>6} records  {bytes:>9} bytes  {did}"
        )?)
    })
}

fn export(queue: &QueueItems, which: &Which, out: &mut dyn Write) -> Result<(), End> {
    queue.payloads(which, |(id, payload)| {
        let records: Vec<&RawValue> = match serde_json::from_slice(&payload) {
            Ok(records) => records,
            Err(error) => {
                let text = format!("item {id} is no JSON array, somebody has changed it: {error}");
                return Err(End::Failed(CommandError::Internal(text)));
            }
        };
        for record in records {
            // Outside of texts a line break is only blank space.
            let line = record.get().replace(['\n', '\r'], " ");
            writeln!(out, "{line}")?;
        }
        Ok(())
    })
}

fn ack(
    queue: &QueueItems,
    which: &Which,
    arguments: &Arguments,
    out: &mut dyn Write,
) -> Result<(), End> {
    let count = queue.complete(which)?;
    if arguments.json {
        return Ok(writeln!(out, "{}", json!({ "completed": count }))?);
    }
    Ok(writeln!(out, "{count} items marked as completed")?)
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use rusqlite::Connection;

    use super::*;
    use crate::cli::{Cli, Command};

    /// A data directory whose `post` queue has four items of two records each, one of a status each.
    fn data_dir() -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("queue")).unwrap();
        let path = folder.path().join("queue/output_backfill_sync_post.db");
        let connection = Connection::open(path).unwrap();
        connection
            .execute_batch(
                "PRAGMA journal_mode=WAL;
                 CREATE TABLE queue (id INTEGER PRIMARY KEY AUTOINCREMENT, payload TEXT, metadata TEXT,
                     created_at TIMESTAMP DEFAULT CURRENT_TIMESTAMP, status TEXT DEFAULT 'pending');",
            )
            .unwrap();
        for (number, status) in ["pending", "processing", "completed", "failed"].iter().enumerate()
        {
            let payload = format!("[{{\"z\": {number}, \"a\": 1.50}},\n {{\"text\": \"l\\n\"}}]");
            let metadata = format!(
                "{{\"did\": \"did:plc:{number}\", \"rev\": \"r\", \"actual_batch_size\": 2}}"
            );
            let insert = "INSERT INTO queue (payload, metadata, created_at, status) VALUES (?1, ?2, '2024-09-27-00:00:00', ?3)";
            connection.execute(insert, [&payload, &metadata, *status]).unwrap();
        }
        folder
    }

    fn queue(folder: &Path, line: &str) -> Result<String, CommandError> {
        let line = format!("skyfill queue {line}");
        let Command::Queue(args) = Cli::try_parse_from(line.split_whitespace()).unwrap().command
        else {
            panic!()
        };
        let mut out = Vec::new();
        run(folder, &args.action, &mut out)?;
        Ok(String::from_utf8(out).unwrap())
    }

    #[test]
    fn items_are_listed_by_every_condition() {
        let folder = data_dir();
        let ids = |line: &str| -> Vec<i64> {
            let text = queue(folder.path(), &format!("list --type post --json {line}")).unwrap();
            let id =
                |line: &str| serde_json::from_str::<Value>(line).unwrap()["id"].as_i64().unwrap();
            text.lines().map(id).collect()
        };
        assert_eq!(ids("--limit 9"), [1, 2, 3, 4]);
        assert_eq!(ids("--status failed"), [4]);
        assert_eq!(ids("--after 1 --limit 2"), [2, 3]);
        assert_eq!(ids("--ids 4,2,99"), [2, 4]);
        let first = queue(folder.path(), "list --type post --json --limit 1").unwrap();
        let expected = json!({
            "id": 1, "status": "pending", "created_at": "2024-09-27-00:00:00", "did": "did:plc:0", "rev": "r",
            "records": 2, "bytes": 39,
        });
        assert_eq!(serde_json::from_str::<Value>(&first).unwrap(), expected);
        let text = queue(folder.path(), "list --type post").unwrap();
        assert!(text.lines().count() == 4 && text.contains("processing"), "{text}");
    }

    #[test]
    fn records_are_exported_as_they_were_written() {
        let folder = data_dir();
        let text = queue(folder.path(), "export --type post --ids 1,3").unwrap();
        let expected = [
            "{\"z\": 0, \"a\": 1.50}",
            "{\"text\": \"l\\n\"}",
            "{\"z\": 2, \"a\": 1.50}",
            "{\"text\": \"l\\n\"}",
        ];
        assert_eq!(text.lines().collect::<Vec<_>>(), expected);
    }

    #[test]
    fn marking_says_which_and_how_many() {
        let folder = data_dir();
        let ack = |line: &str| queue(folder.path(), &format!("ack --type post --json {line}"));
        assert!(
            matches!(ack("").map_err(|error| error.to_string()), Err(text) if text.contains("say which"))
        );
        assert_eq!(ack("--status failed").unwrap(), "{\"completed\":1}\n");
        assert_eq!(
            ack("--ids 1,3,4").unwrap(),
            "{\"completed\":1}\n",
            "the others are completed already"
        );
        assert_eq!(ack("--after 0 --limit 5").unwrap(), "{\"completed\":1}\n");
        let left = queue(folder.path(), "list --type post --status pending").unwrap();
        assert_eq!(left, "");
    }

    #[test]
    fn a_queue_that_is_not_there_is_named() {
        let folder = data_dir();
        let error = queue(folder.path(), "list --type pots").unwrap_err();
        assert!(
            error.to_string().contains("--type pots: no such queue; there are post"),
            "{error}"
        );
        assert_eq!(error.exit_code().code(), 2);
        let nothing = tempfile::tempdir().unwrap();
        assert_eq!(queue(nothing.path(), "list --type post").unwrap_err().exit_code().code(), 78);
    }
}
