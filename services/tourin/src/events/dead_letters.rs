//! `tourin events dead-letters`: events that failed all their retries.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::{Args, Subcommand};
use serde_json::{Value, json};
use tourin_chassis::config::{AmqpSettings, PlaintextSettings};
use tourin_shared_events::bus::rabbitmq::{AmqpUrl, RabbitBus, RabbitDeadLetters, RabbitSettings};
use tourin_shared_events::dead_letters::{DeadLetter, DeadLetterStore, Settled, SqliteDeadLetters};
use tourin_shared_events::sqlite::Database;
use uuid::Uuid;

use super::selection::Selection;
use super::table::{one_line, print, time};
use crate::DATA_DIR;

/// The file in the data folder in which the all-in-one's bus keeps dead letters.
const FILE: &str = "dead-letters.db";
/// The files that may have dead letters: a recommendation service by itself has them in its database.
const FILES: [&str; 2] = [FILE, "recommendation.db"];
const READERS: u32 = 1;
const CLOSE_LIMIT: Duration = Duration::from_secs(2);

/// Where the dead letters are.
#[derive(Debug, Clone, Args)]
pub struct DeadLetterSource {
    /// Folder that keeps the data of `tourin up`, or of a `recommendation` by itself
    #[arg(long, env = "TOURIN_DATA_DIR", value_name = "DIR", default_value = DATA_DIR)]
    pub data_dir: PathBuf,
    /// The broker, if events go through one.
    #[command(flatten)]
    pub broker: AmqpSettings<AmqpUrl>,
    /// Whether it may be reached without TLS.
    #[command(flatten)]
    pub plaintext: PlaintextSettings,
}

/// Actions on dead letters.
#[derive(Debug, Clone, Subcommand)]
pub enum DeadLettersAction {
    /// List them, newest first; the mesh may be running
    List {
        #[allow(missing_docs, reason = "its help is its fields'")]
        #[command(flatten)]
        source: DeadLetterSource,
        /// Maximum number listed
        #[arg(long, value_name = "N", default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=500))]
        limit: u32,
        /// Only those before this one, for the next page
        #[arg(long, value_name = "ID")]
        before: Option<Uuid>,
    },
    /// Show them with their bodies and headers, as JSON
    Show {
        #[allow(missing_docs, reason = "its help is its fields'")]
        #[command(flatten)]
        source: DeadLetterSource,
        /// Their ids
        #[arg(value_name = "ID", required = true)]
        ids: Vec<Uuid>,
    },
    /// Deliver exactly these once more to the queue that dead-lettered them
    Replay {
        #[allow(missing_docs, reason = "its help is its fields'")]
        #[command(flatten)]
        source: DeadLetterSource,
        #[allow(missing_docs, reason = "its help is its fields'")]
        #[command(flatten)]
        selection: Selection,
    },
    /// Delete exactly these for good
    Discard {
        #[allow(missing_docs, reason = "its help is its fields'")]
        #[command(flatten)]
        source: DeadLetterSource,
        #[allow(missing_docs, reason = "its help is its fields'")]
        #[command(flatten)]
        selection: Selection,
    },
}

/// Opens the dead letters in a data folder.
///
/// # Errors
/// When the file cannot be opened.
pub async fn open(data_dir: &Path) -> anyhow::Result<SqliteDeadLetters> {
    SqliteDeadLetters::open(Database::open(&data_dir.join(FILE), READERS).await?).await
}

/// Runs the command. Exit code 1 when one of the ids is gone or failed.
///
/// # Errors
/// When the dead letters cannot be found or read.
pub async fn run(action: &DeadLettersAction) -> anyhow::Result<ExitCode> {
    let source = match action {
        DeadLettersAction::List { source, .. }
        | DeadLettersAction::Show { source, .. }
        | DeadLettersAction::Replay { source, .. }
        | DeadLettersAction::Discard { source, .. } => source,
    };
    let stores = DeadLetters::open(source).await?;
    let done = match action {
        DeadLettersAction::List { limit, before, .. } => list(&stores, *limit, *before).await,
        DeadLettersAction::Show { ids, .. } => show(&stores, ids).await,
        DeadLettersAction::Replay { selection, .. } => stores.act(selection, Action::Replay).await,
        DeadLettersAction::Discard { selection, .. } => {
            stores.act(selection, Action::Discard).await
        }
    };
    stores.close().await;
    done
}

#[derive(Debug, Clone, Copy)]
enum Action {
    Replay,
    Discard,
}

impl Action {
    fn done(self) -> &'static str {
        match self {
            Self::Replay => "replayed",
            Self::Discard => "discarded",
        }
    }
}

/// All stores that may have dead letters of the mesh.
struct DeadLetters {
    stores: Vec<Arc<dyn DeadLetterStore>>,
    bus: Option<RabbitBus>,
}

impl DeadLetters {
    async fn open(source: &DeadLetterSource) -> anyhow::Result<Self> {
        if let Some(url) = source.broker.url() {
            let mut settings = RabbitSettings::new(url.clone());
            settings.prefix.clone_from(&source.broker.amqp_prefix);
            let bus = RabbitBus::start(settings);
            let queues = tourin_recommendation::subscriptions()
                .into_iter()
                .map(|subscription| subscription.queue)
                .collect();
            let store = RabbitDeadLetters::new(bus.clone(), queues);
            return Ok(Self { stores: vec![store], bus: Some(bus) });
        }
        let folder = &source.data_dir;
        let mut stores: Vec<Arc<dyn DeadLetterStore>> = Vec::new();
        for file in FILES.map(|file| folder.join(file)).iter().filter(|file| file.exists()) {
            let database = Database::open(file, READERS).await?;
            stores.push(Arc::new(SqliteDeadLetters::open(database).await?));
        }
        if stores.is_empty() {
            bail!(
                "--data-dir {}: no mesh has run on this folder; name the one that `tourin up` \
                 printed, the --data-dir of `recommendation`, or --amqp-url",
                folder.display()
            );
        }
        Ok(Self { stores, bus: None })
    }

    async fn close(self) {
        drop(self.stores);
        if let Some(bus) = self.bus {
            bus.close(CLOSE_LIMIT).await;
        }
    }

    async fn get(&self, id: Uuid) -> anyhow::Result<Option<DeadLetter>> {
        for store in &self.stores {
            if let Some(letter) = store.get(id).await? {
                return Ok(Some(letter));
            }
        }
        Ok(None)
    }

    /// The result for each letter, from the store that has it.
    async fn settle(&self, ids: &[Uuid], action: Action) -> anyhow::Result<Vec<Settled>> {
        let mut answers = vec![Settled::Gone; ids.len()];
        for store in &self.stores {
            let settled = match action {
                Action::Replay => store.replay(ids).await?,
                Action::Discard => store.discard(ids).await?,
            };
            for (answer, settled) in answers.iter_mut().zip(settled) {
                if settled != Settled::Gone {
                    *answer = settled;
                }
            }
        }
        Ok(answers)
    }

    async fn act(&self, selection: &Selection, action: Action) -> anyhow::Result<ExitCode> {
        let ids: Vec<Uuid> = selection.ids("an id")?;
        let settled = if selection.dry_run {
            let mut found = Vec::new();
            for id in &ids {
                let letter = self.get(*id).await?;
                found.push(letter.map_or(Settled::Gone, |_| Settled::Done));
            }
            found
        } else {
            self.settle(&ids, action).await?
        };
        let word = |settled: &Settled| match settled {
            Settled::Done => action.done().to_owned(),
            Settled::Accepted => "will be replayed by the running mesh".to_owned(),
            Settled::Gone => "is not there (any more)".to_owned(),
            Settled::Failed(reason) => format!("stays: {}", one_line(reason)),
        };
        let lines: Vec<String> =
            ids.iter().zip(&settled).map(|(id, done)| format!("{id}  {}", word(done))).collect();
        let done = settled
            .iter()
            .filter(|settled| matches!(settled, Settled::Done | Settled::Accepted))
            .count();
        let dry = if selection.dry_run { " (dry run: nothing was done)" } else { "" };
        let closing = format!("{done} of {} {}{dry}", ids.len(), action.done());
        print(&lines, &closing).context("cannot write to standard output")?;
        Ok(if done == ids.len() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }
}

async fn list(stores: &DeadLetters, limit: u32, before: Option<Uuid>) -> anyhow::Result<ExitCode> {
    let (mut found, mut count) = (Vec::new(), 0);
    for store in &stores.stores {
        found.extend(store.list(limit, before).await?);
        count += store.count().await?;
    }
    // Newest first: the ids begin with the time.
    found.sort_by_key(|letter| std::cmp::Reverse(letter.id));
    found.truncate(usize::try_from(limit).unwrap_or(usize::MAX));
    let lines: Vec<String> = found.iter().map(line).collect();
    print(&lines, &format!("{} of {count} dead letters", lines.len()))
        .context("cannot write to standard output")?;
    Ok(ExitCode::SUCCESS)
}

fn line(letter: &DeadLetter) -> String {
    let event = letter.event_id.map_or_else(|| "unreadable".to_owned(), |id| id.to_string());
    let marked = if letter.replay_requested { "  (to be replayed)" } else { "" };
    format!(
        "{}  {}  {}  {}  event {event}  attempts {}  {}{marked}",
        letter.id,
        time(letter.failed_at),
        letter.queue,
        letter.routing_key,
        letter.attempts,
        one_line(&letter.reason),
    )
}

async fn show(stores: &DeadLetters, ids: &[Uuid]) -> anyhow::Result<ExitCode> {
    let (mut shown, mut gone) = (Vec::new(), 0);
    for id in ids {
        match stores.get(*id).await? {
            Some(letter) => shown.push(serde_json::to_string_pretty(&letter_json(&letter))?),
            None => gone += 1,
        }
    }
    let closing = format!("{} shown, {gone} not there", shown.len());
    print(&shown, &closing).context("cannot write to standard output")?;
    Ok(if gone == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// A letter as JSON; a body that is not JSON as text.
fn letter_json(letter: &DeadLetter) -> Value {
    let body = serde_json::from_slice::<Value>(&letter.body)
        .unwrap_or_else(|_| json!(String::from_utf8_lossy(&letter.body)));
    json!({
        "id": letter.id,
        "queue": letter.queue,
        "exchange": letter.exchange,
        "routingKey": letter.routing_key,
        "orderingKey": letter.ordering_key,
        "eventId": letter.event_id,
        "reason": letter.reason,
        "attempts": letter.attempts,
        "failedAt": time(letter.failed_at),
        "replayRequested": letter.replay_requested,
        "headers": letter.headers,
        "bodyBytes": letter.body_bytes,
        "body": body,
    })
}
