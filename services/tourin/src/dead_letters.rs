//! `tourin events`: the events that the in-process bus gave up.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, bail};
use clap::{Args, Subcommand};
use tourin_shared_events::dead_letters::{DeadLetter, DeadLetterStore, SqliteDeadLetters};
use tourin_shared_events::sqlite::Database;

/// The file in the data folder in which the all-in-one's bus keeps dead letters.
const FILE: &str = "dead-letters.db";
/// The files that may have some: a recommendation service by itself keeps its own in its database.
const FILES: [&str; 2] = [FILE, "recommendation.db"];
/// Connections that read at once: the bus writes, a person reads.
const READERS: u32 = 1;

/// What to look at.
#[derive(Debug, Clone, Args)]
pub struct EventsCommand {
    /// What to look at.
    #[command(subcommand)]
    pub command: EventsSubject,
}

/// The things that can be looked at.
#[derive(Debug, Clone, Subcommand)]
pub enum EventsSubject {
    /// Events that were given up after their retries
    DeadLetters {
        /// What to do with them.
        #[command(subcommand)]
        action: DeadLettersAction,
    },
}

/// What can be done with dead letters.
#[derive(Debug, Clone, Subcommand)]
pub enum DeadLettersAction {
    /// List them, newest first; the mesh may be running
    List {
        /// Folder that keeps the data of `tourin up`, or of a `recommendation` by itself
        #[arg(long, env = "TOURIN_DATA_DIR", value_name = "DIR", default_value = "tourin-data")]
        data_dir: PathBuf,
        /// How many at the most
        #[arg(long, value_name = "N", default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=500))]
        limit: u32,
    },
}

/// Opens the dead letters in a data folder.
///
/// # Errors
/// When the file cannot be opened or is not what it should be.
pub async fn open(data_dir: &Path) -> anyhow::Result<SqliteDeadLetters> {
    SqliteDeadLetters::open(Database::open(&data_dir.join(FILE), READERS).await?).await
}

/// Runs the command.
///
/// # Errors
/// When the folder has no mesh's data or cannot be read.
pub async fn run(command: &EventsCommand) -> anyhow::Result<ExitCode> {
    let EventsSubject::DeadLetters { action: DeadLettersAction::List { data_dir, limit } } =
        &command.command;
    let (mut letters, mut count, mut found) = (Vec::new(), 0, false);
    for file in FILES.map(|file| data_dir.join(file)).iter().filter(|file| file.exists()) {
        let store = SqliteDeadLetters::open(Database::open(file, READERS).await?).await?;
        letters.extend(store.list(*limit, None).await?);
        count += store.count().await?;
        found = true;
    }
    if !found {
        bail!(
            "--data-dir {}: no mesh has run on this folder; name the one that `tourin up` printed, \
             or the --data-dir of `recommendation`",
            data_dir.display()
        );
    }
    // Newest first, as each file lists them: the ids begin with the time.
    letters.sort_by_key(|letter| std::cmp::Reverse(letter.id));
    letters.truncate(usize::try_from(*limit).unwrap_or(usize::MAX));
    print(&letters, count).context("cannot write to standard output")?;
    Ok(ExitCode::SUCCESS)
}

fn print(letters: &[DeadLetter], count: u64) -> std::io::Result<()> {
    let mut out = std::io::stdout().lock();
    for letter in letters {
        let event = letter.event_id.map_or_else(|| "unreadable".to_owned(), |id| id.to_string());
        writeln!(
            out,
            "{}  {}  {}  {}  event {event}  attempts {}  {}",
            letter.id,
            letter.failed_at.to_rfc3339_opts(chrono::SecondsFormat::Millis, true),
            letter.queue,
            letter.routing_key,
            letter.attempts,
            // A reason is one line here, whatever an error's text has in it.
            letter.reason.split_whitespace().collect::<Vec<_>>().join(" "),
        )?;
    }
    writeln!(out, "{} of {count} dead letters", letters.len())
}
