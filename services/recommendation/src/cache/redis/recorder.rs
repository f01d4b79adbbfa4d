//! Events for the trend, in batches: under load, hundreds share a round trip. A script is atomic, so each
//! event is counted together with its id, or not at all.

use redis::Script;

use super::connection::Connection;
use super::keys::Keys;
use crate::app::ports::{PortError, TrendEvent, TrendOutcome};
use crate::batcher::{Batcher, Work};
use crate::domain::decay::MOVE_AT;
use crate::domain::trend::NEGLIGIBLE;

/// The arguments of a script for one event.
pub(super) struct Entry {
    /// The keys: ids seen, forgotten, counts of the event's day, counts of the days around it.
    pub(super) keys: Vec<String>,
    pub(super) event: TrendEvent,
    /// The lifetimes of the id and of the count, in milliseconds.
    pub(super) seen_ttl_ms: i64,
    pub(super) counted_ttl_ms: i64,
    /// The kind and the spot.
    pub(super) what: String,
}

/// Counts events. Returns a [`TrendOutcome`] for each once it is stored.
pub(super) type Recorder = Batcher<Recording>;

/// Starts a recorder. Must be called inside a tokio runtime.
pub(super) fn start(
    connection: Connection,
    keys: &Keys,
    window_us: i64,
    half_life_us: i64,
) -> Recorder {
    Batcher::start(Recording {
        connection,
        state: keys.state(),
        scores: keys.scores(),
        window_us,
        half_life_us,
        script: script!("record.lua"),
    })
}

/// The arguments of a script for all events.
pub(super) struct Recording {
    connection: Connection,
    state: String,
    scores: String,
    window_us: i64,
    half_life_us: i64,
    script: Script,
}

impl Work for Recording {
    type Item = Entry;
    type Output = TrendOutcome;
    const NAME: &'static str = "the recorder of the trend";
    /// Few enough that Redis handles them in a few milliseconds.
    const MAX: usize = 256;

    async fn run(&self, batch: &[Entry]) -> Vec<Result<TrendOutcome, PortError>> {
        let counted = |outcome| match outcome {
            0 => Ok(TrendOutcome::Applied),
            1 => Ok(TrendOutcome::Duplicate),
            _ => Ok(TrendOutcome::AlreadyCounted),
        };
        match self.send(batch).await {
            Ok(outcomes) => outcomes.into_iter().map(counted).collect(),
            Err(error) => batch.iter().map(|_| Err(error.clone())).collect(),
        }
    }
}

impl Recording {
    async fn send(&self, batch: &[Entry]) -> Result<Vec<u8>, PortError> {
        let mut call = self.script.prepare_invoke();
        call.key(&self.state).key(&self.scores);
        call.arg(self.window_us).arg(self.half_life_us).arg(MOVE_AT).arg(NEGLIGIBLE);
        for entry in batch {
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
