//! `tourin events outbox`: core's outbox.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context, bail};
use chrono::Utc;
use clap::{Args, Subcommand, ValueEnum};
use serde_json::json;
use tourin_chassis::config::{MysqlSettings, PlaintextSettings};
use tourin_core::MysqlUrl;
use tourin_shared_events::outbox::{Filter, OutboxStore, Run, Selected, State, Stored};

use super::selection::Selection;
use super::table::{one_line, print, time};
use crate::DATA_DIR;

/// The location of the outbox.
#[derive(Debug, Clone, Args)]
pub struct OutboxSource {
    /// Folder that keeps the data of `tourin up`, or of a `core` by itself
    #[arg(long, env = "TOURIN_DATA_DIR", value_name = "DIR", default_value = DATA_DIR)]
    pub data_dir: PathBuf,
    /// The database, if core has one on a server.
    #[command(flatten)]
    pub server: MysqlSettings<MysqlUrl>,
    /// Whether it may be reached without TLS.
    #[command(flatten)]
    pub plaintext: PlaintextSettings,
}

/// Actions on the outbox.
#[derive(Debug, Clone, Subcommand)]
pub enum OutboxAction {
    /// List events, oldest first; the mesh may be running
    List {
        #[allow(missing_docs, reason = "its help is its fields'")]
        #[command(flatten)]
        source: OutboxSource,
        /// Which events
        #[arg(long, value_name = "STATE", default_value = "pending")]
        state: StateFilter,
        /// Maximum number listed
        #[arg(long, value_name = "N", default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=10_000))]
        limit: u32,
        /// Only those above this number, for the next page
        #[arg(long, value_name = "SEQ", default_value_t = 0)]
        after: u64,
    },
    /// Show events with all that they carry, as JSON
    Show {
        #[allow(missing_docs, reason = "its help is its fields'")]
        #[command(flatten)]
        source: OutboxSource,
        /// Their numbers
        #[arg(value_name = "SEQ", required = true)]
        ids: Vec<u64>,
    },
    /// Publish exactly these again; consumers ignore events that they have handled
    Replay {
        #[allow(missing_docs, reason = "its help is its fields'")]
        #[command(flatten)]
        source: OutboxSource,
        #[allow(missing_docs, reason = "its help is its fields'")]
        #[command(flatten)]
        selection: Selection,
    },
    /// Delete exactly these for good, unless the bus has confirmed them
    Discard {
        #[allow(missing_docs, reason = "its help is its fields'")]
        #[command(flatten)]
        source: OutboxSource,
        #[allow(missing_docs, reason = "its help is its fields'")]
        #[command(flatten)]
        selection: Selection,
    },
}

/// The state of the events to list.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum StateFilter {
    /// They wait for the bus.
    Pending,
    /// The bus cannot carry them.
    Rejected,
    /// The bus has confirmed them, and they are kept for a while.
    Published,
}

impl From<StateFilter> for State {
    fn from(wanted: StateFilter) -> Self {
        match wanted {
            StateFilter::Pending => Self::Pending,
            StateFilter::Rejected => Self::Rejected,
            StateFilter::Published => Self::Published,
        }
    }
}

/// Runs the command. Exit code 1 when one of the ids does not exist or is in the wrong state.
///
/// # Errors
/// When there is no outbox, or it cannot be read.
pub async fn run(action: &OutboxAction) -> anyhow::Result<ExitCode> {
    match action {
        OutboxAction::List { source, state, limit, after } => {
            let filter = Filter { state: (*state).into(), after: *after, limit: *limit };
            list(&*open(source).await?, &filter).await
        }
        OutboxAction::Show { source, ids } => show(&*open(source).await?, ids).await,
        OutboxAction::Replay { source, selection } => {
            let seqs = selection.ids("a number")?;
            let run = if selection.dry_run { Run::Dry } else { Run::Real };
            let done = open(source).await?.replay(&seqs, run).await?;
            report(&done, ["will be published again", "waits already"], selection.dry_run)
        }
        OutboxAction::Discard { source, selection } => {
            let seqs = selection.ids("a number")?;
            let run = if selection.dry_run { Run::Dry } else { Run::Real };
            let done = open(source).await?.discard(&seqs, run).await?;
            report(&done, ["discarded", "is confirmed, and goes by itself"], selection.dry_run)
        }
    }
}

async fn open(source: &OutboxSource) -> anyhow::Result<Arc<dyn OutboxStore>> {
    if let Some(url) = source.server.url() {
        return tourin_core::open_outbox_on_server(url).await;
    }
    if !tourin_core::has_database(&source.data_dir) {
        bail!(
            "--data-dir {}: no core has run on this folder; name the one that `tourin up` printed, \
             the --data-dir of `core`, or --mysql-url",
            source.data_dir.display()
        );
    }
    tourin_core::open_outbox(&source.data_dir).await
}

async fn list(outbox: &dyn OutboxStore, filter: &Filter) -> anyhow::Result<ExitCode> {
    let rows = outbox.list(filter).await?;
    let depth = outbox.depth().await?;
    let lines: Vec<String> = rows.iter().map(line).collect();
    let closing = format!(
        "{} listed; {} pending, {} rejected in all",
        rows.len(),
        depth.pending,
        depth.rejected
    );
    print(&lines, &closing).context("cannot write to standard output")?;
    Ok(ExitCode::SUCCESS)
}

fn line(row: &Stored) -> String {
    let age = row.age(Utc::now()).num_seconds();
    let error = row.last_error.as_deref().map(one_line).unwrap_or_default();
    format!(
        "{}  {}  {}  key {}  event {}  age {age} s  attempts {}  {error}",
        row.seq,
        time(row.recorded_at),
        row.r#type,
        row.ordering_key,
        row.event_id,
        row.attempts,
    )
    .trim_end()
    .to_owned()
}

async fn show(outbox: &dyn OutboxStore, seqs: &[u64]) -> anyhow::Result<ExitCode> {
    let rows = outbox.show(seqs).await?;
    let mut shown = Vec::new();
    for (row, event) in &rows {
        let mut whole = serde_json::to_value(row)?;
        whole["headers"] = json!(event.headers);
        whole["envelope"] = serde_json::to_value(&event.envelope)?;
        shown.push(serde_json::to_string_pretty(&whole)?);
    }
    let gone = seqs.iter().filter(|seq| !rows.iter().any(|(row, _)| row.seq == **seq)).count();
    print(&shown, &format!("{} shown, {gone} not there", rows.len()))?;
    Ok(if gone == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn report(done: &Selected, [touched, unfit]: [&str; 2], dry_run: bool) -> anyhow::Result<ExitCode> {
    let would = if dry_run { " (dry run: nothing was done)" } else { "" };
    let group = |seqs: &[u64], what: &str| -> Vec<String> {
        seqs.iter().map(|seq| format!("{seq}  {what}")).collect()
    };
    let lines = [
        group(&done.touched, touched),
        group(&done.unfit, unfit),
        group(&done.missing, "is not there"),
    ]
    .concat();
    let closing = format!(
        "{} {touched}, {} left alone, {} not there{would}",
        done.touched.len(),
        done.unfit.len(),
        done.missing.len()
    );
    print(&lines, &closing).context("cannot write to standard output")?;
    let all = done.unfit.is_empty() && done.missing.is_empty();
    Ok(if all { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
