//! [`TrendStore`] on Redis.

use std::collections::HashMap;
use std::time::Duration;

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use redis::Script;
use tourin_chassis::clock::SharedClock;

use super::connection::Connection;
use super::keys::Keys;
use super::recorder::{self, Entry, Recorder};
use crate::app::ingest::MARGIN;
use crate::app::ports::{PortError, TrendEvent, TrendOutcome, TrendStore};
use crate::domain::decay::Decay;
use crate::domain::interaction::{ChangeOrder, Kind};
use crate::domain::spot::SpotId;
use crate::domain::trend::{NEGLIGIBLE, Ranked, TrendRules, best, jump_of};
use crate::operation::{read, write};

/// Spots read beyond the limit, so that ties at the end are ordered by id.
const TIES: usize = 64;
/// Scores that one script removes. Events wait while a script runs.
const PRUNE_BATCH: u64 = 2_000;
/// The maximum number of scores that a pass removes, so that a wrong clock that passes its check
/// does not empty the trend at once.
const PRUNED_PER_PASS: u64 = 200_000;
/// A person's counts are stored and expire by the day.
const DAY_US: i64 = 24 * 3_600 * 1_000_000;
/// Days searched for a person's counts. More are needed only if clocks differ widely.
const MAX_DAYS: i64 = 366;
/// The shortest lifetime of a key, whatever the clocks show.
const SHORTEST_TTL_MS: i64 = 1_000;

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

    /// The key of readiness's small write.
    pub(super) fn probe_key(&self) -> String {
        self.keys.probe()
    }

    /// Adopts the half-life of the rules. Existing scores keep their current value. Of replicas with
    /// different settings, the last one wins.
    pub(super) async fn adopt_half_life(&self) -> Result<(), PortError> {
        let mut call = self.scripts.adopt.prepare_invoke();
        call.key(self.keys.state()).key(self.keys.scores());
        call.arg(self.clock.now().timestamp_micros()).arg(micros(self.rules.half_life));
        call.arg(NEGLIGIBLE);
        self.connection.invoke(&call).await
    }

    /// The keys that recognise an event and its window.
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

    /// Converts scores to values at `now`. A landmark in the future counts as `now`, as in `record`.
    fn values_at(
        landmark: i64,
        half_life_us: u64,
        now: DateTime<Utc>,
    ) -> Result<impl Fn(f64) -> f64, PortError> {
        let landmark = DateTime::from_timestamp_micros(landmark).ok_or_else(|| {
            PortError::failed(anyhow::anyhow!("the landmark is not a valid time"))
        })?;
        // The half-life stored with the scores, not that of the rules.
        let decay = Decay::with_half_life(Duration::from_micros(half_life_us));
        Ok(move |score| decay.value(score, landmark.min(now), now))
    }

    /// Reverts the effect of a clock that was ahead. Returns whether there was one.
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

    fn ttl_ms(&self, until: DateTime<Utc>) -> i64 {
        (until - self.clock.now()).num_milliseconds().max(SHORTEST_TTL_MS)
    }

    /// How long a count is needed after its time: an event within its window can still arrive.
    fn retention_us(&self) -> i64 {
        micros(self.rules.max_age.saturating_add(self.rules.window).saturating_add(MARGIN))
    }
}

#[async_trait]
impl TrendStore for RedisTrend {
    async fn record(&self, event: &TrendEvent) -> Result<TrendOutcome, PortError> {
        write(&self.connection.engine, "record", "trend", async {
            let at = event.occurred.at.min(event.recorded_at).timestamp_micros();
            let needed_until = at.saturating_add(self.retention_us());
            let counted_ttl_ms = (needed_until - self.clock.now().timestamp_micros()) / 1_000;
            let entry = Entry {
                keys: self.keys_of(event, at),
                event: event.clone(),
                seen_ttl_ms: self.ttl_ms(event.remember_until),
                counted_ttl_ms: counted_ttl_ms.max(SHORTEST_TTL_MS),
                what: format!("{}:{}", code(event.kind), event.spot),
            };
            self.recorder.submit(entry).await
        })
        .await
    }

    async fn top(&self, limit: usize, now: DateTime<Utc>) -> Result<Vec<Ranked>, PortError> {
        read(&self.connection.engine, "top", "trend", async {
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
            let value = Self::values_at(landmark, half_life, now)?;
            let scored = scores.into_iter().filter_map(|(spot, score)| {
                Some(Ranked { spot: spot.parse().ok()?, value: value(score) })
            });
            Ok(best(scored, self.rules.floor, limit))
        })
        .await
    }

    async fn values(
        &self,
        spots: &[SpotId],
        now: DateTime<Utc>,
    ) -> Result<HashMap<SpotId, f64>, PortError> {
        read(&self.connection.engine, "values", "trend", async {
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
            let value = Self::values_at(landmark, half_life, now)?;
            let scored = spots.iter().zip(scores);
            Ok(scored.filter_map(|(spot, score)| Some((*spot, value(score?)))).collect())
        })
        .await
    }

    async fn forget(
        &self,
        subject: &str,
        order: ChangeOrder,
        remember_until: DateTime<Utc>,
    ) -> Result<(), PortError> {
        write(&self.connection.engine, "forget", "trend", async {
            let (at, now) = (order.at.timestamp_micros(), self.clock.now().timestamp_micros());
            let mut call = self.scripts.forget.prepare_invoke();
            call.key(self.keys.forgotten(subject));
            // The clocks of the counts may have been ahead of the order's clock.
            let first = at.min(now).saturating_sub(self.retention_us()).div_euclid(DAY_US);
            let last = at.max(now).div_euclid(DAY_US).saturating_add(1).min(first + MAX_DAYS);
            for day in first..=last {
                call.key(self.keys.counted(day, subject));
            }
            call.arg(at).arg(order.version.unwrap_or_default()).arg(self.ttl_ms(remember_until));
            self.connection.invoke(&call).await
        })
        .await
    }

    async fn prune(&self, now: DateTime<Utc>) -> Result<u64, PortError> {
        write(&self.connection.engine, "prune", "trend", async {
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
        })
        .await
    }
}

const fn code(kind: Kind) -> char {
    match kind {
        Kind::View => 'v',
        Kind::Bookmark => 'b',
    }
}

/// A duration in microseconds, saturating.
fn micros(span: Duration) -> i64 {
    i64::try_from(span.as_micros()).unwrap_or(i64::MAX)
}
