//! JSON lines: `TYPE/STEM.jsonl` or `.jsonl.zst`, one record a line, byte for byte as in the queue's payload.

use std::io::{self, BufRead, Write};

use crate::sink::StoreError;
use crate::sink::files::Form;
use crate::sink::files::gather::Group;
use crate::sink::files::output::Output;

/// zstd's own default: three times as fast as the disk, and a sixth of the bytes.
const LEVEL: i32 = 3;

/// Rows as they are.
pub struct JsonLines {
    zstd: bool,
}

impl JsonLines {
    /// Compressed or not.
    #[must_use]
    pub const fn new(zstd: bool) -> Self {
        Self { zstd }
    }
}

impl Form for JsonLines {
    fn day(&self, _row: &str) -> Option<String> {
        None
    }

    fn path(&self, group: &Group, stem: &str) -> String {
        format!("{}/{stem}{}", group.label, self.ending())
    }

    fn ending(&self) -> &'static str {
        if self.zstd { ".jsonl.zst" } else { ".jsonl" }
    }

    fn is_exclusive(&self) -> bool {
        false
    }

    fn write(
        &self,
        _label: &str,
        rows: &mut dyn BufRead,
        out: &mut Output,
    ) -> Result<(), StoreError> {
        let written = match self.zstd {
            true => compress(rows, out),
            false => copy(rows, out),
        };
        written.map_err(StoreError::sink)
    }
}

fn compress(rows: &mut dyn BufRead, out: &mut Output) -> io::Result<()> {
    let mut encoder = zstd::Encoder::new(out, LEVEL)?;
    encoder.include_checksum(true)?;
    copy(rows, &mut encoder)?;
    encoder.finish().map(drop)
}

fn copy(rows: &mut dyn BufRead, out: &mut dyn Write) -> io::Result<()> {
    loop {
        let chunk = rows.fill_buf()?;
        let length = chunk.len();
        if length == 0 {
            return Ok(());
        }
        out.write_all(chunk)?;
        rows.consume(length);
    }
}
