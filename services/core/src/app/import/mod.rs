//! Importing spots from CSV or NDJSON, of any size, in bounded memory.
//!
//! # Contract
//! Rows are written in their order, [`MAX_BATCH`] per transaction. A row whose spot says the same
//! already changes nothing, so that importing a file twice is importing it once; an id that comes
//! twice is a spot and a later update of it. A bad row is reported with its line and left out. When
//! the import is broken off, the batches before it stay, and importing again completes it.
//!
//! An import may run while the service does: it holds the store's writer for one batch at a time.
//!
//! # Traces
//! An import is one trace, its caller's, of which the events are part. A trace of a million events could not be read: only
//! those of the first batch have spans, and those that are given up.

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

/// The catalogue that comes with the program.
const CATALOGUE: &str = include_str!("../../../data/catalogue.csv");

impl Format {
    /// The format that a file's name tells: `.csv`, or `.ndjson`, `.jsonl`, `.json`.
    pub fn of_path(path: &Path) -> Option<Self> {
        path.extension()?.to_str()?.parse().ok()
    }
}

/// A text that names no [`Format`].
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

/// How far an import is; at its end, what it did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Progress {
    /// Bytes of the source that are behind us.
    pub bytes: u64,
    /// Rows read, a CSV file's header not counted. The three below add up to it at the end.
    pub rows: u64,
    /// Rows that added a spot or changed one.
    pub imported: u64,
    /// Rows that said what was there already.
    pub unchanged: u64,
    /// Rows left out, each reported.
    pub rejected: u64,
}

/// A row that was left out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rejected {
    /// The line that it begins on, from 1.
    pub line: u64,
    /// What is wrong with it.
    pub reason: String,
}

/// Who wants to know how an import goes.
pub trait Observer: Send {
    /// Called for every row that is left out.
    fn rejected(&mut self, row: Rejected);

    /// Called after every batch, and at the end.
    fn progressed(&mut self, progress: &Progress);
}

/// Why an import broke off.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// The source cannot be read.
    #[error("the source cannot be read: {0}")]
    Read(#[from] std::io::Error),
    /// A CSV file whose first line does not name the columns.
    #[error("{0}")]
    Header(String),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// A trace for an import by `service` (a program's name), to run it in.
pub fn import_span(service: &'static str) -> Span {
    Service::new(service).work("import of spots")
}

/// Imports everything that `source` has.
///
/// # Errors
/// [`ImportError`]; a bad row is none.
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

/// Logs what is wrong with the catalogue; nothing is, or a test fails.
struct Log;

impl Observer for Log {
    fn rejected(&mut self, row: Rejected) {
        tracing::error!(line = row.line, reason = row.reason, "a bad row in the own catalogue");
    }

    fn progressed(&mut self, _: &Progress) {}
}

/// Imports the catalogue that comes with the program, unless that was done before: spots that were
/// edited or removed since stay so. `None` when it was.
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
