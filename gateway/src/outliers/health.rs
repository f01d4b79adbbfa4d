//! What is remembered of one instance.

use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde::Serialize;

use super::{Group, HealthCheckSettings, Reason, Sample, millis};

/// Time without an ejection after which the next one is half as long.
const FORGET: Duration = Duration::from_secs(60);
/// Least time between two health checks of one instance.
const CHECK_PAUSE_MS: u64 = 100;
/// Time between health checks of an instance that is down.
const CHECK_AGAIN_MS: u64 = 1_000;

const UP: u8 = 0;
const EJECTED: u8 = 1;
const UNREACHABLE: u8 = 2;

/// How a call failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// No connection, a lost connection, or a response that is not HTTP.
    Broken,
    /// No response in time.
    TimedOut,
}

/// The health of an instance. Times are [`millis`].
#[derive(Debug)]
pub struct Health {
    id: String,
    group: Arc<Group>,
    standing: AtomicU8,
    in_flight: AtomicUsize,
    /// Those of them that have become streams, for which no answer is due.
    streams: AtomicUsize,
    /// When a call began while no other was in flight, streams apart.
    busy_since: AtomicU64,
    /// The last answer to a call or to a health check.
    answered_at: AtomicU64,
    /// In a row.
    failures: AtomicU32,
    timeouts: AtomicU32,
    window: Window,
    /// When it began to warm up; 0: it is warm.
    warm_since: AtomicU64,
    checks: Checks,
    record: Mutex<Record>,
}

#[derive(Debug, Default)]
struct Window {
    calls: AtomicU64,
    failed: AtomicU64,
    answers: AtomicU64,
    answers_us: AtomicU64,
}

#[derive(Debug, Default)]
struct Checks {
    is_wanted: AtomicBool,
    is_running: AtomicBool,
    last_at: AtomicU64,
    /// In a row.
    failed: AtomicU32,
}

#[derive(Debug, Default)]
struct Record {
    reason: Option<Reason>,
    /// Ejections that make the next one longer.
    level: u32,
    since: u64,
    until: u64,
    /// When it became up again, or `level` was lowered.
    calm_since: u64,
}

/// The state of an instance, for operators.
#[derive(Debug, Clone, Serialize)]
pub struct HealthReport {
    /// `up`, `ejected` or `unreachable`.
    pub state: &'static str,
    /// Why it is not up.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<&'static str>,
    /// Milliseconds since it is not up.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub down_for_ms: Option<u64>,
    /// Milliseconds until it may be up again, if a health check passes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub left_ms: Option<u64>,
    /// Ejections that make the next one longer.
    pub ejections: u32,
    /// Calls that wait for its response.
    pub in_flight: usize,
    /// Whether it does not yet get its full share of requests.
    pub warming_up: bool,
}

impl Health {
    /// An instance that is up.
    pub fn new(id: &str, group: Arc<Group>) -> Self {
        let health = Self {
            id: id.to_owned(),
            group,
            standing: AtomicU8::new(UP),
            in_flight: AtomicUsize::new(0),
            streams: AtomicUsize::new(0),
            busy_since: AtomicU64::new(0),
            answered_at: AtomicU64::new(0),
            failures: AtomicU32::new(0),
            timeouts: AtomicU32::new(0),
            window: Window::default(),
            warm_since: AtomicU64::new(0),
            checks: Checks::default(),
            record: Mutex::default(),
        };
        // Not checked before its time: it has just registered.
        health.checks.last_at.store(millis(Instant::now()), Ordering::Relaxed);
        health
    }

    /// Whether it gets requests.
    pub fn is_up(&self) -> bool {
        self.standing.load(Ordering::Relaxed) == UP
    }

    /// Whether a health check has failed since one passed.
    pub fn is_unreachable(&self) -> bool {
        self.standing.load(Ordering::Relaxed) == UNREACHABLE
    }

    /// Calls in flight.
    pub fn in_flight(&self) -> usize {
        self.in_flight.load(Ordering::Relaxed)
    }

    /// Whether a call is in flight that is no stream.
    fn is_awaited(&self) -> bool {
        self.in_flight() > self.streams.load(Ordering::Relaxed)
    }

    /// A call begins; it is in flight until the value is dropped.
    pub fn begin(self: &Arc<Self>, now: Instant) -> InFlight {
        let others = self.in_flight.fetch_add(1, Ordering::Relaxed);
        if others <= self.streams.load(Ordering::Relaxed) {
            self.busy_since.store(millis(now), Ordering::Relaxed);
        }
        InFlight { health: Arc::clone(self), is_stream: false }
    }

    /// The head of a response came `took` after the call began.
    pub fn answered(&self, now: Instant, took: Duration) {
        self.answered_at.store(millis(now), Ordering::Relaxed);
        self.window.answers.fetch_add(1, Ordering::Relaxed);
        let took = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        self.window.answers_us.fetch_add(took, Ordering::Relaxed);
    }

    /// A response is complete. `is_error` says that its status is 5xx: the instance works, and may still
    /// be an outlier.
    pub fn completed(&self, is_error: bool) {
        self.window.calls.fetch_add(1, Ordering::Relaxed);
        self.window.failed.fetch_add(u64::from(is_error), Ordering::Relaxed);
        // Stores only when there is something to change: the line is shared by all workers.
        if self.failures.load(Ordering::Relaxed) != 0 {
            self.failures.store(0, Ordering::Relaxed);
            self.timeouts.store(0, Ordering::Relaxed);
        }
    }

    /// A call that began at `began` has failed. Gives the reason if that ejects the instance.
    pub fn failed(&self, failure: Failure, began: Instant, now: Instant) -> Option<Reason> {
        self.window.calls.fetch_add(1, Ordering::Relaxed);
        self.window.failed.fetch_add(1, Ordering::Relaxed);
        let failures = self.failures.fetch_add(1, Ordering::Relaxed) + 1;
        let settings = &self.group.settings;
        let reached = |count, limit| limit > 0 && count >= limit;
        let reason = match failure {
            Failure::TimedOut => {
                let timeouts = self.timeouts.fetch_add(1, Ordering::Relaxed) + 1;
                let is_silent = self.answered_at.load(Ordering::Relaxed) < millis(began);
                let is_enough = is_silent || timeouts >= settings.eject_timeouts;
                (settings.eject_timeouts > 0 && is_enough).then_some(Reason::Timeouts)
            }
            Failure::Broken => None,
        };
        let in_a_row = reached(failures, settings.eject_failures).then_some(Reason::Failures);
        self.suspect();
        reason.or(in_a_row).filter(|reason| self.eject(*reason, now))
    }

    /// Ejects the instance, unless it is down already or too many are.
    pub fn eject(&self, reason: Reason, now: Instant) -> bool {
        let mut record = self.record();
        if !self.is_up() || !self.group.try_eject() {
            return false;
        }
        let duration = self.group.settings.duration(record.level);
        let at = millis(now);
        record.reason = Some(reason);
        record.level = record.level.saturating_add(1);
        (record.since, record.until) = (at, at.saturating_add(duration.as_millis() as u64));
        self.standing.store(EJECTED, Ordering::Relaxed);
        drop(record);
        self.group.metrics.ejected(reason);
        tracing::warn!(
            service = &*self.group.service,
            instance = self.id,
            reason = reason.label(),
            for_ms = duration.as_millis() as u64,
            "an instance is ejected: it gets no requests for a while"
        );
        self.suspect();
        true
    }

    fn suspect(&self) {
        self.checks.is_wanted.store(true, Ordering::Relaxed);
        self.group.suspected.notify_one();
    }

    /// Whether a health check should begin now; the caller then begins one.
    pub fn check_due(&self, settings: &HealthCheckSettings, now: Instant) -> bool {
        let now = millis(now);
        let load = |at: &AtomicU64| at.load(Ordering::Relaxed);
        let since_check = now.saturating_sub(load(&self.checks.last_at));
        if since_check < CHECK_PAUSE_MS || self.checks.is_running.load(Ordering::Relaxed) {
            return false;
        }
        let answered_at = load(&self.answered_at);
        let is_due = match self.standing.load(Ordering::Relaxed) {
            UNREACHABLE => since_check >= CHECK_AGAIN_MS,
            EJECTED => {
                self.checks.is_wanted.swap(false, Ordering::Relaxed) || now >= self.record().until
            }
            _ => {
                let quiet_for = now.saturating_sub(answered_at.max(load(&self.busy_since)));
                let is_silent = self.is_awaited() && quiet_for >= settings.silence_ms;
                let interval = settings.health_check_interval_ms;
                let is_idle = now.saturating_sub(answered_at) >= interval;
                self.checks.is_wanted.swap(false, Ordering::Relaxed)
                    || is_silent && since_check >= settings.silence_ms
                    || interval > 0 && is_idle && since_check >= interval
            }
        };
        if is_due {
            self.checks.is_running.store(true, Ordering::Relaxed);
            self.checks.last_at.store(now, Ordering::Relaxed);
        }
        is_due
    }

    /// The result of a health check that began at `began`.
    pub fn checked(
        &self,
        passed: bool,
        settings: &HealthCheckSettings,
        began: Instant,
        now: Instant,
    ) {
        self.checks.is_running.store(false, Ordering::Relaxed);
        self.group.metrics.checked(passed);
        if passed {
            self.answered_at.fetch_max(millis(now), Ordering::Relaxed);
            self.checks.failed.store(0, Ordering::Relaxed);
            self.passed(now);
            return;
        }
        let failed = self.checks.failed.fetch_add(1, Ordering::Relaxed) + 1;
        let has_answered = self.answered_at.load(Ordering::Relaxed) >= millis(began);
        let is_suspected = self.failures.load(Ordering::Relaxed) > 0
            || self.is_awaited() && self.is_silent(settings, now);
        if !self.is_up()
            || !has_answered && (is_suspected || failed >= settings.health_check_failures)
        {
            self.found_unreachable(now);
        }
    }

    fn is_silent(&self, settings: &HealthCheckSettings, now: Instant) -> bool {
        let answered_at = self.answered_at.load(Ordering::Relaxed);
        let since = answered_at.max(self.busy_since.load(Ordering::Relaxed));
        millis(now).saturating_sub(since) >= settings.silence_ms
    }

    fn found_unreachable(&self, now: Instant) {
        let mut record = self.record();
        let before = self.standing.swap(UNREACHABLE, Ordering::Relaxed);
        if before == UNREACHABLE {
            return;
        }
        self.group.unreachable.fetch_add(1, Ordering::Relaxed);
        if before == EJECTED {
            self.uncount_ejected();
            record.reason = Some(Reason::Unreachable);
            return;
        }
        let at = millis(now);
        record.reason = Some(Reason::Unreachable);
        (record.since, record.until) = (at, at);
        drop(record);
        self.group.metrics.ejected(Reason::Unreachable);
        tracing::warn!(
            service = &*self.group.service,
            instance = self.id,
            reason = Reason::Unreachable.label(),
            "an instance is ejected: its health check failed"
        );
    }

    /// The ejection ends without a health check, if its time is over.
    pub fn end_ejection(&self, now: Instant) {
        if self.standing.load(Ordering::Relaxed) == EJECTED {
            self.passed(now);
        }
    }

    fn passed(&self, now: Instant) {
        let mut record = self.record();
        let at = millis(now);
        let before = self.standing.load(Ordering::Relaxed);
        if before == UP {
            let calm_for = at.saturating_sub(record.calm_since);
            if record.level > 0 && calm_for >= FORGET.as_millis() as u64 {
                record.level -= 1;
                record.calm_since = at;
            }
            return;
        }
        if before == UNREACHABLE {
            decrease(&self.group.unreachable);
        }
        if at < record.until {
            if before == UNREACHABLE {
                self.group.ejected.fetch_add(1, Ordering::Relaxed);
                self.standing.store(EJECTED, Ordering::Relaxed);
            }
            return;
        }
        if before == EJECTED {
            self.uncount_ejected();
        }
        record.reason = None;
        record.calm_since = at;
        self.failures.store(0, Ordering::Relaxed);
        self.timeouts.store(0, Ordering::Relaxed);
        self.warm_up();
        self.standing.store(UP, Ordering::Relaxed);
        drop(record);
        let service = &*self.group.service;
        tracing::info!(service, instance = self.id, "an ejected instance gets requests again");
    }

    fn uncount_ejected(&self) {
        decrease(&self.group.ejected);
    }

    /// Its calls since the last time, and an end to long ejections of long ago.
    pub fn take_sample(&self, now: Instant) -> Sample {
        if self.is_up() {
            self.passed(now);
        }
        let take = |count: &AtomicU64| count.swap(0, Ordering::Relaxed);
        Sample {
            calls: take(&self.window.calls),
            failed: take(&self.window.failed),
            answers: take(&self.window.answers),
            answers_us: take(&self.window.answers_us),
        }
    }

    /// It gets a growing share of requests from now on.
    pub fn warm_up(&self) {
        self.warm_since.store(millis(Instant::now()), Ordering::Relaxed);
    }

    /// For how long it has been warming up; `None` if it is warm.
    pub fn warm_for(&self) -> Option<Duration> {
        match self.warm_since.load(Ordering::Relaxed) {
            0 => None,
            since => Some(Duration::from_millis(millis(Instant::now()).saturating_sub(since))),
        }
    }

    /// It gets its full share.
    pub fn warmed_up(&self) {
        self.warm_since.store(0, Ordering::Relaxed);
    }

    /// Its state.
    pub fn report(&self, now: Instant) -> HealthReport {
        let record = self.record();
        let now = millis(now);
        let state = match self.standing.load(Ordering::Relaxed) {
            UP => "up",
            EJECTED => "ejected",
            _ => "unreachable",
        };
        let is_down = state != "up";
        HealthReport {
            state,
            reason: record.reason.filter(|_| is_down).map(Reason::label),
            down_for_ms: is_down.then(|| now.saturating_sub(record.since)),
            left_ms: is_down.then(|| record.until.saturating_sub(now)),
            ejections: record.level,
            in_flight: self.in_flight(),
            warming_up: self.warm_for().is_some(),
        }
    }

    fn record(&self) -> MutexGuard<'_, Record> {
        self.record.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn decrease(count: &AtomicUsize) {
    // A recount may have come in between.
    let less = |count: usize| Some(count.saturating_sub(1));
    let _ = count.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less);
}

/// A call in flight.
#[derive(Debug)]
pub struct InFlight {
    health: Arc<Health>,
    is_stream: bool,
}

impl InFlight {
    /// It has become a stream, which may be quiet for long.
    pub fn becomes_stream(&mut self) {
        if !std::mem::replace(&mut self.is_stream, true) {
            self.health.streams.fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        if self.is_stream {
            self.health.streams.fetch_sub(1, Ordering::Relaxed);
        }
        self.health.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests;
