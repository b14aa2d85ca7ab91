//! Records of a Parquet file, by the names of its columns; only with the feature `parquet`.
//!
//! ```text
//!  record_type, py_type, synctimestamp, partition_date   texts, dates or times, also as dictionaries
//!  subject                                               JSON text, a uri, or a struct with a uri
//!  reply                                                 JSON text, or a struct of parent and root, each as a subject
//! ```
//! Only these columns are read, page by page, some rows at a time: memory is that of a page of each and of these rows. A file
//! that the reader stumbles over, or that makes it panic, is a file that cannot be read.

use std::borrow::Cow;
use std::fs::File;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use arrow_array::cast::AsArray;
use arrow_array::{Array, ArrayRef, RecordBatch, StringArray, StructArray};
use arrow_schema::{ArrowError, DataType};
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use parquet::errors::ParquetError;

use crate::commands::determine::intake::{Intake, Part, Place, Row};
use crate::store::error::StoreError;

/// Rows at once: of 1 MB each they are a part of the smallest `limits.memory`.
const ROWS_AT_ONCE: usize = 1_024;

/// The columns that are read.
const COLUMNS: [&str; 6] =
    ["record_type", "py_type", "synctimestamp", "partition_date", "subject", "reply"];

/// Why a file ended early.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error(transparent)]
    Parquet(#[from] ParquetError),
    #[error(transparent)]
    Arrow(#[from] ArrowError),
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Takes every row in.
///
/// # Errors
/// [`StoreError`] naming the file.
pub fn read(path: &Path, place: Place<'_>, intake: &mut Intake) -> Result<(), StoreError> {
    // What was counted before a panic is only used for an error.
    let outcome = catch_unwind(AssertUnwindSafe(|| read_rows(path, place, intake)));
    let failed =
        |text: String| StoreError::io(path, io::Error::new(io::ErrorKind::InvalidData, text));
    match outcome {
        Ok(Ok(())) => Ok(()),
        Ok(Err(Failure::Store(error))) => Err(error),
        Ok(Err(Failure::Io(error))) => Err(StoreError::io(path, error)),
        Ok(Err(error)) => Err(failed(error.to_string())),
        Err(_) => Err(failed("the Parquet reader gave up on it: it is damaged".to_owned())),
    }
}

fn read_rows(path: &Path, place: Place<'_>, intake: &mut Intake) -> Result<(), Failure> {
    let builder = ParquetRecordBatchReaderBuilder::try_new(File::open(path)?)?;
    let fields = builder.schema().fields();
    let is_read = |(_, field): &(usize, &std::sync::Arc<arrow_schema::Field>)| {
        COLUMNS.contains(&field.name().as_str())
    };
    let roots: Vec<usize> =
        fields.iter().enumerate().filter(is_read).map(|(index, _)| index).collect();
    let mask = ProjectionMask::roots(builder.parquet_schema(), roots);
    let reader = builder.with_projection(mask).with_batch_size(ROWS_AT_ONCE).build()?;
    let mut before = 0;
    for batch in reader {
        let batch = batch?;
        take(&batch, Place { row: before, ..place }, intake)?;
        before += i64::try_from(batch.num_rows()).unwrap_or(i64::MAX);
    }
    Ok(())
}

fn take(batch: &RecordBatch, place: Place<'_>, intake: &mut Intake) -> Result<(), Failure> {
    let mut columns = Vec::with_capacity(COLUMNS.len());
    for name in COLUMNS {
        columns.push(Column::of(batch.column_by_name(name))?);
    }
    for index in 0..batch.num_rows() {
        let row = Row {
            record_type: columns[0].text(index),
            py_type: columns[1].text(index),
            synctimestamp: columns[2].text(index),
            partition_date: columns[3].text(index),
            subject: columns[4].part(index),
            reply: columns[5].part(index),
        };
        let number = i64::try_from(index).unwrap_or(i64::MAX).saturating_add(1);
        intake.row(&row, Place { row: place.row.saturating_add(number), ..place })?;
    }
    Ok(())
}

/// A column, as what it can mean.
enum Column {
    Nothing,
    Texts(StringArray),
    /// Structs with a uri.
    Uris(StructArray, StringArray),
    /// Structs with parent and root.
    Pairs(StructArray, Box<[Column; 2]>),
}

impl Column {
    fn of(array: Option<&ArrayRef>) -> Result<Self, ArrowError> {
        let Some(array) = array else { return Ok(Self::Nothing) };
        let Some(structs) = array.as_struct_opt() else {
            // A dictionary's texts, a date as YYYY-MM-DD, a time as YYYY-MM-DDTHH:MM:SS; a list of something is nothing.
            return match arrow_cast::cast(array, &DataType::Utf8) {
                Ok(texts) => Ok(Self::Texts(texts.as_string().clone())),
                Err(ArrowError::CastError(_)) => Ok(Self::Nothing),
                Err(error) => Err(error),
            };
        };
        if let Some(uris) = structs.column_by_name("uri") {
            return match Self::of(Some(uris))? {
                Self::Texts(uris) => Ok(Self::Uris(structs.clone(), uris)),
                _ => Ok(Self::Nothing),
            };
        }
        let parts = ["parent", "root"].map(|name| structs.column_by_name(name));
        let [parent, root] = [Self::of(parts[0])?, Self::of(parts[1])?];
        Ok(Self::Pairs(structs.clone(), Box::new([parent, root])))
    }

    fn text(&self, index: usize) -> Option<Cow<'_, str>> {
        match self {
            Self::Texts(texts) if texts.is_valid(index) => Some(Cow::Borrowed(texts.value(index))),
            _ => None,
        }
    }

    fn part(&self, index: usize) -> Part<'_> {
        match self {
            Self::Texts(texts) if texts.is_valid(index) => {
                Part::Text(Cow::Borrowed(texts.value(index)))
            }
            Self::Uris(structs, uris) if structs.is_valid(index) && uris.is_valid(index) => {
                Part::Text(Cow::Borrowed(uris.value(index)))
            }
            Self::Pairs(structs, pair) if structs.is_valid(index) => {
                Part::Pair(Box::new([pair[0].part(index), pair[1].part(index)]))
            }
            _ => Part::Nothing,
        }
    }
}
