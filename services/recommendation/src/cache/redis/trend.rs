//! [`TrendStore`] on Redis.
//!
//! | key, after the prefix and its hash tag | type | what | lives |
//! |---|---|---|---|
//! | `state` | hash | `landmark`, `half_life_us` | for ever |
//! | `scores` | sorted set | spot: score at the landmark | for ever |
//! | `seen:<minute>` | set | ids of events, by the time in the id (UUIDv7) | until the last may be forgotten |
//! | `counted:<day>:<subject>` | hash | kind and spot: times that count | as long as an event within a window can come |
//! | `forgotten:<subject>` | string | when the person was forgotten | as long as an event from before can come |

use std::collections::HashMap;
use std::time::Duration;

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use redis::Script;
use tourin_chassis::clock::SharedClock;
use uuid::Uuid;

use super::connection::Connection;
use super::recorder::{Entry, Recorder};
use crate::app::ingest::MARGIN;
use crate::app::ports::{Counted, PortError, TrendEvent, TrendStore};
use crate::domain::decay::Decay;
use crate::domain::interaction::Kind;
use crate::domain::spot::SpotId;
use crate::domain::trend::{NEGLIGIBLE, Ranked, TrendRules, rank};

/// Read beyond what is asked for, so that spots that tie at the end are ordered by id.
const TIES: usize = 64;
/// Scores that one script removes, so that events do not wait for long.
const PRUNE_BATCH: u64 = 2_000;
/// Counts of a person are kept by the day, so that they expire by the day.
const DAY_US: i64 = 24 * 3_600 * 1_000_000;
/// Ids are kept by the minute of the time in them: few enough that a set expires in no time.
const SEEN_MS: u64 = 60_000;
/// The shortest time that a trace is kept, whatever the clocks say.
const SHORTEST_TTL_MS: i64 = 1_000;

/// A script with the functions that all of them share.
macro_rules! script {
    ($file:literal) => {
        redis::Script::new(concat!(include_str!("decay.lua"), include_str!($file)))
    };
}
pub(super) use script;

/// [`TrendStore`] on Redis.
pub(super) struct RedisTrend {
    connection: Connection,
    recorder: Recorder,
    keys: Keys,
    rules: TrendRules,
    clock: SharedClock,
    scripts: Scripts,
}

struct Scripts {
    top: Script,
    values: Script,
    forget: Script,
    prune: Script,
    adopt: Script,
}

impl Scripts {
    fn new() -> Self {
        Self {
            top: script!("top.lua"),
            values: script!("values.lua"),
            forget: script!("forget.lua"),
            prune: script!("prune.lua"),
            adopt: script!("adopt.lua"),
        }
    }
}

/// Names of keys. The tag in braces decides the slot, whatever a subject's id looks like.
pub(super) struct Keys(String);

impl Keys {
    pub(super) fn state(&self) -> String {
        format!("{}:state", self.0)
    }

    pub(super) fn scores(&self) -> String {
        format!("{}:scores", self.0)
    }

    fn seen(&self, id: Uuid) -> String {
        let millis = u64::try_from(id.as_u128() >> 80).unwrap_or_default();
        format!("{}:seen:{}", self.0, millis / SEEN_MS)
    }

    fn forgotten(&self, subject: &str) -> String {
        format!("{}:forgotten:{subject}", self.0)
    }

    fn counted(&self, day: i64, subject: &str) -> String {
        format!("{}:counted:{day}:{subject}", self.0)
    }
}

impl RedisTrend {
    /// The trend under `prefix`, by `rules`.
    pub(super) fn new(
        connection: Connection,
        prefix: &str,
        rules: TrendRules,
        clock: SharedClock,
    ) -> Self {
        let keys = Keys(format!("{prefix}:{{trend}}"));
        let (window, half_life) = (micros(rules.window), micros(rules.half_life));
        let recorder = Recorder::start(connection.clone(), &keys, window, half_life);
        Self { connection, recorder, keys, rules, clock, scripts: Scripts::new() }
    }

    /// Decays by the rules' half-life from now on; scores keep the worth they have. Replicas with
    /// different settings all follow the one that came last.
    pub(super) async fn adopt_half_life(&self) -> Result<(), PortError> {
        let mut call = self.scripts.adopt.prepare_invoke();
        call.key(self.keys.state()).key(self.keys.scores());
        call.arg(self.clock.now().timestamp_micros()).arg(micros(self.rules.half_life));
        call.arg(NEGLIGIBLE);
        self.connection.invoke(&call).await
    }

    /// What recognises an event and keeps others of its kind from counting.
    fn keys_of(&self, event: &TrendEvent, at: i64) -> Vec<String> {
        let (subject, window) = (&event.subject, micros(self.rules.window));
        let day = at.div_euclid(DAY_US);
        let mut keys = vec![
            self.keys.seen(event.event_id),
            self.keys.forgotten(subject),
            self.keys.counted(day, subject),
        ];
        let first = at.saturating_sub(window).div_euclid(DAY_US);
        let last = at.saturating_add(window).div_euclid(DAY_US);
        let around = (first..=last).filter(|other| *other != day);
        keys.extend(around.map(|other| self.keys.counted(other, subject)));
        keys
    }

    /// What scores are worth at `now`. Scores as of a time to come are taken for those of now, as
    /// `record` is about to have them.
    fn worth(
        landmark: i64,
        half_life_us: u64,
        now: DateTime<Utc>,
    ) -> Result<impl Fn(f64) -> f64, PortError> {
        let landmark = DateTime::from_timestamp_micros(landmark)
            .ok_or_else(|| PortError::failed(anyhow::anyhow!("the landmark is not a time")))?;
        // Whatever these rules say: scores are as of the half-life that is kept with them.
        let decay = Decay::with_half_life(Duration::from_micros(half_life_us));
        Ok(move |score| decay.value(score, landmark.min(now), now))
    }

    /// Milliseconds from now until `until`.
    fn ttl_ms(&self, until: DateTime<Utc>) -> i64 {
        (until - self.clock.now()).num_milliseconds().max(SHORTEST_TTL_MS)
    }

    /// How long after its time a count matters: an event within a window of it can still come.
    fn needed_us(&self) -> i64 {
        micros(self.rules.max_age.saturating_add(self.rules.window).saturating_add(MARGIN))
    }
}

#[async_trait]
impl TrendStore for RedisTrend {
    async fn record(&self, event: &TrendEvent) -> Result<Counted, PortError> {
        let at = event.occurred_at.min(event.recorded_at).timestamp_micros();
        let needed_until = at.saturating_add(self.needed_us());
        let counted_ttl_ms = (needed_until - self.clock.now().timestamp_micros()) / 1_000;
        let entry = Entry {
            keys: self.keys_of(event, at),
            event: event.clone(),
            seen_ttl_ms: self.ttl_ms(event.remember_until),
            counted_ttl_ms: counted_ttl_ms.max(SHORTEST_TTL_MS),
            what: format!("{}:{}", code(event.kind), event.spot),
        };
        self.recorder.count(entry).await
    }

    async fn top(&self, limit: usize, now: DateTime<Utc>) -> Result<Vec<Ranked>, PortError> {
        let mut call = self.scripts.top.prepare_invoke();
        call.key(self.keys.state()).key(self.keys.scores());
        call.arg(limit.saturating_add(TIES - 1));
        let kept: Option<(i64, u64, Vec<(String, f64)>)> = self.connection.invoke(&call).await?;
        let Some((landmark, half_life, scores)) = kept else {
            return Ok(Vec::new());
        };
        let worth = Self::worth(landmark, half_life, now)?;
        let live = scores
            .into_iter()
            .filter_map(|(spot, score)| {
                Some(Ranked { spot: spot.parse().ok()?, value: worth(score) })
            })
            .filter(|ranked| ranked.value >= self.rules.floor)
            .collect();
        let mut top = rank(live);
        top.truncate(limit);
        Ok(top)
    }

    async fn values(
        &self,
        spots: &[SpotId],
        now: DateTime<Utc>,
    ) -> Result<HashMap<SpotId, f64>, PortError> {
        if spots.is_empty() {
            return Ok(HashMap::new());
        }
        let mut call = self.scripts.values.prepare_invoke();
        call.key(self.keys.state()).key(self.keys.scores());
        for spot in spots {
            call.arg(spot.number());
        }
        let kept: Option<(i64, u64, Vec<Option<f64>>)> = self.connection.invoke(&call).await?;
        let Some((landmark, half_life, scores)) = kept else {
            return Ok(HashMap::new());
        };
        let worth = Self::worth(landmark, half_life, now)?;
        let scored = spots.iter().zip(scores);
        Ok(scored.filter_map(|(spot, score)| Some((*spot, worth(score?)))).collect())
    }

    async fn forget(
        &self,
        subject: &str,
        at: DateTime<Utc>,
        remember_until: DateTime<Utc>,
    ) -> Result<(), PortError> {
        let at = at.timestamp_micros();
        let day = at.div_euclid(DAY_US);
        let mut call = self.scripts.forget.prepare_invoke();
        call.key(self.keys.forgotten(subject)).key(self.keys.counted(day, subject));
        for earlier in at.saturating_sub(self.needed_us()).div_euclid(DAY_US)..day {
            call.key(self.keys.counted(earlier, subject));
        }
        call.arg(at).arg(self.ttl_ms(remember_until));
        self.connection.invoke(&call).await
    }

    async fn prune(&self, now: DateTime<Utc>) -> Result<u64, PortError> {
        let mut removed = 0;
        loop {
            let mut call = self.scripts.prune.prepare_invoke();
            call.key(self.keys.state()).key(self.keys.scores());
            call.arg(now.timestamp_micros()).arg(NEGLIGIBLE).arg(PRUNE_BATCH);
            let batch: u64 = self.connection.invoke(&call).await?;
            removed += batch;
            if batch < PRUNE_BATCH {
                return Ok(removed);
            }
        }
    }
}

const fn code(kind: Kind) -> char {
    match kind {
        Kind::View => 'v',
        Kind::Bookmark => 'b',
    }
}

/// A span in microseconds; one that does not fit is the longest that does.
fn micros(span: Duration) -> i64 {
    i64::try_from(span.as_micros()).unwrap_or(i64::MAX)
}
