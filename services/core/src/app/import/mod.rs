//! Importing spots from CSV or NDJSON, of any size, in bounded memory.
//!
//! # Contract
//! Rows are written in their order, [`MAX_BATCH`] per transaction. A row equal to the stored spot
//! changes nothing, so an import is idempotent. An id that occurs twice is a spot and a later update
//! of it. A bad row is reported with its line and skipped. An aborted import keeps the committed
//! batches; importing again completes it.
//!
//! An import may run beside the service: it holds the store's writer for one batch at a time.
//!
//! # Traces
//! An import is one trace, and its events are part of it. A trace of a million events would be
//! unreadable, so only the events of the first batch and dead-lettered events have spans.

mod records;
mod rows;
#[cfg(test)]
mod tests;

use std::path::Path;
use std::str::FromStr;

use tokio::io::AsyncRead;
use tourin_chassis::clock::Clock;
use tourin_chassis::telemetry::{Service, Span};
use tourin_shared_events::trace::rest_of_bulk;

pub use self::records::{Format, MAX_RECORD_BYTES};
use self::records::{Record, Records};
use self::rows::{Header, spot_of_line};
use super::StoreError;
use super::spots::{MAX_BATCH, SpotStore};
use crate::SERVICE;
use crate::domain::spot::SpotDraft;

/// The built-in catalogue.
const CATALOGUE: &str = include_str!("../../../data/catalogue.csv");

impl Format {
    /// The format by the file's extension: `.csv`, or `.ndjson`, `.jsonl`, `.json`.
    pub fn of_path(path: &Path) -> Option<Self> {
        path.extension()?.to_str()?.parse().ok()
    }
}

/// The text is not a valid [`Format`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the format must be csv or ndjson")]
pub struct UnknownFormat;

impl FromStr for Format {
    type Err = UnknownFormat;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.to_ascii_lowercase().as_str() {
            "csv" => Ok(Self::Csv),
            "ndjson" | "jsonl" | "json" => Ok(Self::NdJson),
            _ => Err(UnknownFormat),
        }
    }
}

/// The progress of an import; at the end, its totals.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Progress {
    /// Bytes of the source consumed.
    pub bytes: u64,
    /// Rows read without a CSV header. At the end, the sum of the three fields below.
    pub rows: u64,
    /// Rows that added or changed a spot.
    pub imported: u64,
    /// Rows equal to the stored spot.
    pub unchanged: u64,
    /// Rows skipped, each reported.
    pub rejected: u64,
}

/// A skipped row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rejected {
    /// The row's first line, from 1.
    pub line: u64,
    /// Why the row is invalid.
    pub reason: String,
}

/// Receives the progress of an import.
pub trait Observer: Send {
    /// Called for every skipped row.
    fn rejected(&mut self, row: Rejected);

    /// Called after every batch, and at the end.
    fn progressed(&mut self, progress: &Progress);
}

/// Why an import was aborted.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// The source cannot be read.
    #[error("the source cannot be read: {0}")]
    Read(#[from] std::io::Error),
    /// The first line of a CSV file does not name the required columns.
    #[error("{0}")]
    Header(String),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// The root span of an import by `service`, a program's name.
pub fn import_span(service: &'static str) -> Span {
    Service::new(service).work("import of spots")
}

/// Imports all rows of `source`.
///
/// # Errors
/// [`ImportError`]. A bad row is not an error.
pub async fn import(
    store: &dyn SpotStore,
    source: impl AsyncRead + Unpin + Send,
    format: Format,
    clock: &dyn Clock,
    observer: &mut dyn Observer,
) -> Result<Progress, ImportError> {
    let mut records = Records::new(source, format);
    let header = match format {
        Format::NdJson => None,
        Format::Csv => Some(match records.next().await? {
            Some((_, Record::Fields(names))) => Header::parse(&names)?,
            Some((line, Record::Broken(why))) => {
                return Err(ImportError::Header(format!("line {line}, the header: {why}")));
            }
            None => return Err(ImportError::Header("the file is empty".to_owned())),
        }),
    };
    let mut progress = Progress::default();
    let mut batch: Vec<SpotDraft> = Vec::with_capacity(MAX_BATCH);
    while let Some((line, record)) = records.next().await? {
        progress.rows += 1;
        let spot = match (record, &header) {
            (Record::Fields(fields), Some(header)) => header.spot(fields),
            (Record::Fields(fields), None) => spot_of_line(&fields[0]),
            (Record::Broken(why), _) => Err(why.to_owned()),
        };
        match spot {
            Ok(spot) => batch.push(spot),
            Err(reason) => {
                progress.rejected += 1;
                observer.rejected(Rejected { line, reason });
            }
        }
        if batch.len() == MAX_BATCH {
            write(store, clock, &mut batch, &mut progress).await?;
            progress.bytes = records.bytes();
            observer.progressed(&progress);
        }
    }
    write(store, clock, &mut batch, &mut progress).await?;
    progress.bytes = records.bytes();
    observer.progressed(&progress);
    Ok(progress)
}

async fn write(
    store: &dyn SpotStore,
    clock: &dyn Clock,
    batch: &mut Vec<SpotDraft>,
    progress: &mut Progress,
) -> Result<(), ImportError> {
    if !batch.is_empty() {
        let is_first = progress.imported + progress.unchanged == 0;
        let writing = store.upsert_batch(batch, clock.now());
        let done = if is_first { writing.await? } else { rest_of_bulk(writing).await? };
        progress.imported += done.changed;
        progress.unchanged += done.unchanged;
        batch.clear();
    }
    Ok(())
}

/// Logs invalid rows of the built-in catalogue. A test checks that there are none.
struct Log;

impl Observer for Log {
    fn rejected(&mut self, row: Rejected) {
        tracing::error!(line = row.line, reason = row.reason, "a bad row in the catalogue");
    }

    fn progressed(&mut self, _: &Progress) {}
}

/// Imports the built-in catalogue once, so that later edits are kept. `None` if it was imported
/// before.
///
/// # Errors
/// [`ImportError`].
pub async fn load_catalogue(
    store: &dyn SpotStore,
    clock: &dyn Clock,
) -> Result<Option<Progress>, ImportError> {
    if store.catalogue_was_loaded().await? {
        return Ok(None);
    }
    let span = import_span(SERVICE);
    let loading = async {
        let done = import(store, CATALOGUE.as_bytes(), Format::Csv, clock, &mut Log).await?;
        store.mark_catalogue_loaded(clock.now()).await?;
        Ok::<_, ImportError>(done)
    };
    let done = span.run(loading).await.inspect_err(|_| span.set_error("failed"))?;
    tracing::info!(spots = done.imported, "catalogue loaded");
    Ok(Some(done))
}
