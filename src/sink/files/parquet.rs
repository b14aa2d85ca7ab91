//! Parquet: `type=TYPE/day=YYYY-MM-DD/STEM.parquet`, by the day of `synctimestamp`; only with the feature `parquet`.
//!
//! Rows without a day are in the folder that readers of such trees take for "no value". Row groups end at 122,880 rows or at
//! 8 MiB of memory, whichever is first; every column has statistics.

use std::borrow::Cow;
use std::io::BufRead;

use parquet::arrow::ArrowWriter;
use parquet::basic::{Compression, ZstdLevel};
use parquet::errors::ParquetError;
use parquet::file::properties::{WriterProperties, WriterPropertiesBuilder};
use parquet::schema::types::ColumnPath;
use serde::Deserialize;

use crate::sink::StoreError;
use crate::sink::files::Form;
use crate::sink::files::gather::Group;
use crate::sink::files::output::Output;
use crate::sink::files::schema::Rows;

/// zstd's own default.
const LEVEL: i32 = 3;

/// Rows of a row group, what DuckDB itself writes.
const GROUP_ROWS_MAX: usize = 122_880;

/// Memory of a row group before it is written.
const GROUP_BYTES_MAX: usize = 8 << 20;

/// Bytes of a page and of a dictionary: each column has one of each in hand.
const PAGE_BYTES: usize = 256 << 10;

/// Rows, and bytes of them, that become columns at once.
const BATCH_ROWS: usize = 1_024;
const BATCH_BYTES: usize = 1 << 20;

/// Where readers expect rows without a day.
const NO_DAY: &str = "__HIVE_DEFAULT_PARTITION__";

/// Columns whose values are nearly all different: a dictionary of them costs and saves nothing.
const DISTINCT: [&str; 2] = ["uri", "cid"];

/// Columns by type and day.
pub struct Parquet {
    properties: WriterProperties,
}

/// What decides where a row goes.
#[derive(Deserialize)]
struct Stamped<'r> {
    #[serde(borrow, default)]
    synctimestamp: Option<Cow<'r, str>>,
}

impl Parquet {
    /// Compressed or not.
    #[must_use]
    pub fn new(zstd: bool) -> Self {
        let compression = match ZstdLevel::try_new(LEVEL) {
            Ok(level) if zstd => Compression::ZSTD(level),
            _ => Compression::UNCOMPRESSED,
        };
        let properties = WriterProperties::builder()
            .set_created_by(concat!("skyfill ", env!("CARGO_PKG_VERSION")).to_owned())
            .set_compression(compression)
            .set_max_row_group_row_count(Some(GROUP_ROWS_MAX))
            .set_data_page_size_limit(PAGE_BYTES)
            .set_dictionary_page_size_limit(PAGE_BYTES);
        let plain = |properties: WriterPropertiesBuilder, name: &str| {
            properties.set_column_dictionary_enabled(ColumnPath::from(name), false)
        };
        let properties = DISTINCT.into_iter().fold(properties, plain).build();
        Self { properties }
    }

    fn write_rows(
        &self,
        label: &str,
        rows: &mut dyn BufRead,
        out: &mut Output,
    ) -> Result<(), StoreError> {
        let failed = |error: ParquetError| StoreError::sink(error);
        let mut batch = Rows::new(label);
        let properties = Some(self.properties.clone());
        let mut writer = ArrowWriter::try_new(out, batch.schema(), properties).map_err(failed)?;
        let mut line = String::new();
        loop {
            line.clear();
            let is_end = rows.read_line(&mut line).map_err(StoreError::sink)? == 0;
            if !is_end {
                batch.push(line.trim_end_matches('\n')).map_err(StoreError::sink)?;
            }
            let is_full = batch.count >= BATCH_ROWS || batch.bytes >= BATCH_BYTES;
            if is_full || (is_end && batch.count > 0) {
                writer.write(&batch.batch().map_err(StoreError::sink)?).map_err(failed)?;
            }
            if writer.memory_size() >= GROUP_BYTES_MAX {
                writer.flush().map_err(failed)?;
            }
            if is_end {
                return writer.close().map(drop).map_err(failed);
            }
        }
    }
}

impl Form for Parquet {
    fn day(&self, row: &str) -> Option<String> {
        let stamped: Stamped<'_> = serde_json::from_str(row).ok()?;
        let stamp = stamped.synctimestamp?;
        let day = stamp.get(..10)?;
        let is_day = day.bytes().enumerate().all(|(at, byte)| match at {
            4 | 7 => byte == b'-',
            _ => byte.is_ascii_digit(),
        });
        is_day.then(|| day.to_owned())
    }

    fn path(&self, group: &Group, stem: &str) -> String {
        let day = group.day.as_deref().unwrap_or(NO_DAY);
        format!("type={}/day={day}/{stem}{}", group.label, self.ending())
    }

    fn ending(&self) -> &'static str {
        ".parquet"
    }

    fn is_exclusive(&self) -> bool {
        true
    }

    fn write(
        &self,
        label: &str,
        rows: &mut dyn BufRead,
        out: &mut Output,
    ) -> Result<(), StoreError> {
        self.write_rows(label, rows, out)
    }
}
