//! [`TrendStore`] on Redis.
//!
//! | key, after the prefix and its hash tag | type | what | lives |
//! |---|---|---|---|
//! | `state` | hash | `landmark`, `half_life_us`; `seen`, the time that the scores have come to; after a jump of the clock `jumped`, `jump_landmark` | for ever |
//! | `scores` | sorted set | spot: score at the landmark | for ever |
//! | `scores:before` | sorted set | the scores before the clock has jumped ahead | until it is confirmed |
//! | `scores:since` | sorted set | spot: weight of what was counted since | the same |
//! | `passes` | hash | what is pruned: when it was last | for ever |
//! | `seen:<minute>` | set | ids of events, by the time in the id (UUIDv7) | until the last may be forgotten |
//! | `counted:<day>:<subject>` | hash | kind and spot: times that count, each with a version behind a colon | as long as an event within a window can come |
//! | `forgotten:<subject>` | string | when the person was forgotten, likewise | as long as an event from before can come |
//! | `probe` | string | nothing: the small write by which readiness sees that the server takes writes | a minute |

use std::collections::HashMap;
use std::time::Duration;

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use redis::Script;
use tourin_chassis::clock::SharedClock;
use uuid::Uuid;

use super::connection::Connection;
use super::recorder::{self, Entry, Recorder};
use crate::app::ingest::MARGIN;
use crate::app::ports::{Counted, PortError, TrendEvent, TrendStore};
use crate::domain::decay::Decay;
use crate::domain::interaction::{Kind, Moment};
use crate::domain::spot::SpotId;
use crate::domain::trend::{NEGLIGIBLE, Ranked, TrendRules, jump_of, rank};

/// Read beyond what is asked for, so that spots that tie at the end are ordered by id.
const TIES: usize = 64;
/// Scores that one script removes, so that events do not wait for long.
const PRUNE_BATCH: u64 = 2_000;
/// Scores that a pass removes at most. A clock that is wrong for longer than its check notices does not empty the trend at once.
const PRUNED_PER_PASS: u64 = 200_000;
/// Counts of a person are kept by the day, so that they expire by the day.
const DAY_US: i64 = 24 * 3_600 * 1_000_000;
/// Ids are kept by the minute of the time in them: few enough that a set expires in no time.
const SEEN_MS: u64 = 60_000;
/// Days that are looked through for what a person counted; there are more only when clocks are far apart.
const MOST_DAYS: i64 = 366;
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
    settle: Script,
}

impl Scripts {
    fn new() -> Self {
        Self {
            top: script!("top.lua"),
            values: script!("values.lua"),
            forget: script!("forget.lua"),
            prune: script!("prune.lua"),
            adopt: script!("adopt.lua"),
            settle: script!("settle.lua"),
        }
    }
}

/// Names of keys. The tag in braces decides the slot, whatever a subject's id looks like.
pub(super) struct Keys(String);

impl Keys {
    /// Those under `prefix`.
    pub(super) fn new(prefix: &str) -> Self {
        Self(format!("{prefix}:{{trend}}"))
    }

    pub(super) fn state(&self) -> String {
        format!("{}:state", self.0)
    }

    pub(super) fn scores(&self) -> String {
        format!("{}:scores", self.0)
    }

    /// When what is old was removed last.
    pub(super) fn passes(&self) -> String {
        format!("{}:passes", self.0)
    }

    fn probe(&self) -> String {
        format!("{}:probe", self.0)
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
        let keys = Keys::new(prefix);
        let (window, half_life) = (micros(rules.window), micros(rules.half_life));
        let recorder = recorder::start(connection.clone(), &keys, window, half_life);
        Self { connection, recorder, keys, rules, clock, scripts: Scripts::new() }
    }

    /// Where readiness makes its small write.
    pub(super) fn probe_key(&self) -> String {
        self.keys.probe()
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

    /// Whether a clock was ahead that the scores have seen; what it did is taken back then.
    async fn settle(&self, seen: i64, now: DateTime<Utc>) -> Result<bool, PortError> {
        let step = micros(jump_of(self.rules.half_life));
        if now.timestamp_micros() >= seen.saturating_sub(step) {
            return Ok(false);
        }
        let mut call = self.scripts.settle.prepare_invoke();
        call.key(self.keys.state()).key(self.keys.scores()).arg(now.timestamp_micros());
        self.connection.invoke::<()>(&call).await?;
        Ok(true)
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
        let at = event.occurred.at.min(event.recorded_at).timestamp_micros();
        let needed_until = at.saturating_add(self.needed_us());
        let counted_ttl_ms = (needed_until - self.clock.now().timestamp_micros()) / 1_000;
        let entry = Entry {
            keys: self.keys_of(event, at),
            event: event.clone(),
            seen_ttl_ms: self.ttl_ms(event.remember_until),
            counted_ttl_ms: counted_ttl_ms.max(SHORTEST_TTL_MS),
            what: format!("{}:{}", code(event.kind), event.spot),
        };
        self.recorder.submit(entry).await
    }

    async fn top(&self, limit: usize, now: DateTime<Utc>) -> Result<Vec<Ranked>, PortError> {
        let mut call = self.scripts.top.prepare_invoke();
        call.key(self.keys.state()).key(self.keys.scores());
        call.arg(limit.saturating_add(TIES - 1));
        let mut kept: Option<(i64, u64, i64, Vec<(String, f64)>)> =
            self.connection.invoke(&call).await?;
        if let Some((_, _, seen, _)) = &kept
            && self.settle(*seen, now).await?
        {
            kept = self.connection.invoke(&call).await?;
        }
        let Some((landmark, half_life, _, scores)) = kept else {
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
        let mut kept: Option<(i64, u64, i64, Vec<Option<f64>>)> =
            self.connection.invoke(&call).await?;
        if let Some((_, _, seen, _)) = &kept
            && self.settle(*seen, now).await?
        {
            kept = self.connection.invoke(&call).await?;
        }
        let Some((landmark, half_life, _, scores)) = kept else {
            return Ok(HashMap::new());
        };
        let worth = Self::worth(landmark, half_life, now)?;
        let scored = spots.iter().zip(scores);
        Ok(scored.filter_map(|(spot, score)| Some((*spot, worth(score?)))).collect())
    }

    async fn forget(
        &self,
        subject: &str,
        order: Moment,
        remember_until: DateTime<Utc>,
    ) -> Result<(), PortError> {
        let (at, now) = (order.at.timestamp_micros(), self.clock.now().timestamp_micros());
        let mut call = self.scripts.forget.prepare_invoke();
        call.key(self.keys.forgotten(subject));
        // The clocks that counted may have been ahead of the one that the order is dated by.
        let first = at.min(now).saturating_sub(self.needed_us()).div_euclid(DAY_US);
        let last = at.max(now).div_euclid(DAY_US).saturating_add(1).min(first + MOST_DAYS);
        for day in first..=last {
            call.key(self.keys.counted(day, subject));
        }
        call.arg(at).arg(order.version.unwrap_or_default()).arg(self.ttl_ms(remember_until));
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
            if batch < PRUNE_BATCH || removed >= PRUNED_PER_PASS {
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
