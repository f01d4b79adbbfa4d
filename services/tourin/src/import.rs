//! `tourin import`: imports tour spots from a file into core's store.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use tourin_chassis::clock::SystemClock;
use tourin_chassis::config::{MysqlSettings, PlaintextSettings};
use tourin_chassis::shutdown::Shutdown;
use tourin_core::MysqlUrl;
use tourin_core::app::import::{Format, Observer, Progress, Rejected, import, import_span};

use crate::DATA_DIR;

const PROGRAM: &str = "import";
/// Maximum number of bad rows that are printed; the rest are counted.
const PRINTED_REJECTIONS: u64 = 1_000;
const LAST_PRINTED: u64 = PRINTED_REJECTIONS + 1;

/// Settings of an import.
#[derive(Debug, Clone, Args)]
pub struct ImportSettings {
    /// CSV with a header (id,name,address,lat,lng,tags,description,phoneNumber,imageUrl; tags
    /// separated by `|`) or NDJSON with the same names and tags as a list
    #[arg(value_name = "FILE")]
    pub source: PathBuf,
    /// `csv` or `ndjson` [default: what the file's name ends in]
    #[arg(long, env = "TOURIN_IMPORT_FORMAT", value_name = "FORMAT")]
    pub format: Option<Format>,
    /// Folder that keeps the data of `tourin up`, or of a `core` by itself; either may be running
    #[arg(long, env = "TOURIN_DATA_DIR", value_name = "DIR", default_value = DATA_DIR)]
    pub data_dir: PathBuf,
    #[allow(missing_docs, reason = "its help is its field's")]
    #[command(flatten)]
    pub server: MysqlSettings<MysqlUrl>,
    #[allow(missing_docs, reason = "its help is its field's")]
    #[command(flatten)]
    pub plaintext: PlaintextSettings,
}

/// Runs the import and prints its counts. Exit code 1 when rows were rejected.
///
/// # Errors
/// When the file or the store cannot be used, or the import fails half-way.
pub async fn run(settings: &ImportSettings, stop: &Shutdown) -> anyhow::Result<ExitCode> {
    let shown = settings.source.display();
    let Some(format) = settings.format.or_else(|| Format::of_path(&settings.source)) else {
        bail!(
            "{shown}: its name does not end in .csv or .ndjson; say --format csv or --format ndjson"
        );
    };
    let file = tokio::fs::File::open(&settings.source)
        .await
        .with_context(|| format!("cannot read {shown}"))?;
    let size = file.metadata().await.with_context(|| format!("cannot read {shown}"))?.len();
    let mut console = Console::new(size);
    let span = import_span(PROGRAM);
    let importing = span.run(async {
        match settings.server.url() {
            Some(url) => {
                let store = tourin_core::open_spots_on_server(url).await?;
                Ok(import(&store, file, format, &SystemClock, &mut console).await)
            }
            None => {
                note_new_database(&settings.data_dir)?;
                let store = tourin_core::open_spots(&settings.data_dir).await?;
                Ok(import(&store, file, format, &SystemClock, &mut console).await)
            }
        }
    });
    let done: anyhow::Result<_> = tokio::select! {
        done = importing => done,
        () = stop.begun() => {
            console.bar.finish_and_clear();
            bail!("interrupted; the rows imported so far stay, and importing again completes it");
        }
    };
    console.bar.finish_and_clear();
    let done = done?.with_context(|| format!("{shown}: the import failed"));
    let done = done.inspect_err(|_| span.set_error("broken_off"))?;
    drop(span);
    writeln!(
        std::io::stdout(),
        "{} rows: {} imported, {} unchanged, {} rejected",
        done.rows,
        done.imported,
        done.unchanged,
        done.rejected,
    )?;
    Ok(if done.rejected == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn note_new_database(data_dir: &Path) -> std::io::Result<()> {
    if tourin_core::has_database(data_dir) {
        return Ok(());
    }
    let folder = data_dir.display();
    writeln!(std::io::stderr(), "note: no mesh has run on {folder} yet; making a new database")
}

/// A progress bar on a terminal, and a line for each bad row on standard error.
struct Console {
    bar: ProgressBar,
    printed: u64,
}

impl Console {
    fn new(bytes: u64) -> Self {
        let bar = ProgressBar::new(bytes);
        let style = ProgressStyle::with_template(
            "{bar:30} {percent:>3} %  {decimal_bytes_per_sec}  {msg}  {eta} left",
        );
        if let Ok(style) = style {
            bar.set_style(style);
        }
        bar.enable_steady_tick(Duration::from_millis(200));
        Self { bar, printed: 0 }
    }
}

impl Observer for Console {
    fn rejected(&mut self, row: Rejected) {
        self.printed += 1;
        let line = match self.printed {
            ..=PRINTED_REJECTIONS => format!("line {}: {}", row.line, row.reason),
            LAST_PRINTED => "more bad rows are counted, not printed".to_owned(),
            _ => return,
        };
        // The import continues if the reader of the report stops (`| head`).
        let _unread = self.bar.suspend(|| writeln!(std::io::stderr(), "{line}"));
    }

    fn progressed(&mut self, progress: &Progress) {
        self.bar.set_position(progress.bytes);
        self.bar.set_message(format!("{} rows, {} rejected", progress.rows, progress.rejected));
    }
}
