//! Events for the trend, in groups.
//!
//! Events that arrive while a script is under way go together with the next: alone, an event goes at
//! once; under load, hundreds share a round trip. Each of them is still counted with its id or not
//! at all, for a script is.

use redis::Script;
use tokio::sync::{mpsc, oneshot};

use super::connection::Connection;
use super::trend::{Keys, script};
use crate::app::ports::{Counted, PortError, TrendEvent};
use crate::domain::decay::MOVE_AT;
use crate::domain::trend::NEGLIGIBLE;

/// Events that wait for their group; more make their senders wait.
const QUEUE: usize = 1_024;
/// The most events in a group: few enough that Redis is done with them in a few milliseconds.
const GROUP: usize = 256;

/// What a script needs to know of one event.
pub(super) struct Entry {
    /// Ids seen, forgotten, counts of its day, counts of days around it.
    pub(super) keys: Vec<String>,
    pub(super) event: TrendEvent,
    /// How long the id is remembered and how long the count is, in milliseconds.
    pub(super) seen_ttl_ms: i64,
    pub(super) counted_ttl_ms: i64,
    /// The kind and the spot.
    pub(super) what: String,
}

struct Job {
    entry: Entry,
    reply: oneshot::Sender<Result<Counted, PortError>>,
}

/// A handle on the recorder. The recording task belongs to the handle: it ends, after the last event,
/// when the handle is gone.
pub(super) struct Recorder(mpsc::Sender<Job>);

impl Recorder {
    /// Starts the recorder. Must be called inside a tokio runtime.
    pub(super) fn start(
        connection: Connection,
        keys: &Keys,
        window_us: i64,
        half_life_us: i64,
    ) -> Self {
        let (sender, jobs) = mpsc::channel(QUEUE);
        let groups = Groups {
            connection,
            state: keys.state(),
            scores: keys.scores(),
            window_us,
            half_life_us,
            script: script!("record.lua"),
        };
        tokio::spawn(groups.run(jobs));
        Self(sender)
    }

    /// Counts an event; returns once it is kept.
    pub(super) async fn count(&self, entry: Entry) -> Result<Counted, PortError> {
        let (reply, done) = oneshot::channel();
        let stopped =
            || PortError::failed(anyhow::anyhow!("the recorder of the trend has stopped"));
        self.0.send(Job { entry, reply }).await.map_err(|_| stopped())?;
        done.await.unwrap_or_else(|_| Err(stopped()))
    }
}

struct Groups {
    connection: Connection,
    state: String,
    scores: String,
    window_us: i64,
    half_life_us: i64,
    script: Script,
}

impl Groups {
    async fn run(self, mut jobs: mpsc::Receiver<Job>) {
        let mut group = Vec::with_capacity(GROUP);
        while jobs.recv_many(&mut group, GROUP).await > 0 {
            // Whoever asked and is gone will ask again.
            group.retain(|job| !job.reply.is_closed());
            if !group.is_empty() {
                let outcomes = self.send(&group).await;
                answer(group.drain(..), outcomes);
            }
        }
    }

    async fn send(&self, group: &[Job]) -> Result<Vec<u8>, PortError> {
        let mut call = self.script.prepare_invoke();
        call.key(&self.state).key(&self.scores);
        call.arg(self.window_us).arg(self.half_life_us).arg(MOVE_AT).arg(NEGLIGIBLE);
        for Job { entry, .. } in group {
            for key in &entry.keys {
                call.key(key);
            }
            let event = &entry.event;
            call.arg(entry.keys.len()).arg(event.event_id.as_bytes().as_slice());
            call.arg(event.occurred.at.min(event.recorded_at).timestamp_micros());
            call.arg(event.recorded_at.timestamp_micros());
            call.arg(entry.seen_ttl_ms).arg(entry.counted_ttl_ms).arg(&entry.what);
            call.arg(event.kind.weight()).arg(event.spot.number());
            call.arg(event.occurred.version.unwrap_or_default());
        }
        self.connection.invoke(&call).await
    }
}

fn answer(group: impl Iterator<Item = Job>, outcomes: Result<Vec<u8>, PortError>) {
    for (index, job) in group.enumerate() {
        let outcome = match &outcomes {
            Ok(outcomes) => match outcomes.get(index) {
                Some(0) => Ok(Counted::Applied),
                Some(1) => Ok(Counted::Duplicate),
                Some(_) => Ok(Counted::AlreadyCounted),
                None => Err(PortError::failed(anyhow::anyhow!("redis left an event out"))),
            },
            Err(error) => Err(error.clone()),
        };
        if job.reply.send(outcome).is_err() {
            tracing::trace!("nobody waits for a counted event");
        }
    }
}
