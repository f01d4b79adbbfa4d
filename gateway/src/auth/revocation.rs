//! Sessions that have ended before their tokens expired.
//!
//! Core keeps a log of them: a stream in Redis ([`stream`]), or where there is no Redis, one in its
//! database, which is followed by long poll. Each gateway reads it from where it left off and keeps
//! the ids until the tokens would have expired anyway. So no request asks anybody, and nothing is
//! missed across a reconnect. An answer of core that ends sessions says so in a header too, which
//! this gateway takes to heart before the client has the answer.

pub mod stream;

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use chrono::{DateTime, TimeDelta, Utc};
use serde::Deserialize;
use tokio_util::sync::CancellationToken;
use tourin_chassis::clock::SharedClock;
use tourin_chassis::pruning::PruneGuard;

use crate::config::StalePolicy;
use crate::mesh_client::{CORE, MeshClient};

/// Ended sessions that are remembered. With tokens of 10 minutes this holds 300 endings a second.
const MAX_SESSIONS: usize = 200_000;
/// How long a session named in a header is remembered, unless the log gives a later end: longer than
/// any access token lives, for which core takes a day at the most.
const HEADER_TTL: TimeDelta = TimeDelta::hours(25);
/// Longest wait of one long poll.
const MAX_POLL: Duration = Duration::from_secs(20);
/// What a poll may take beyond the wait that it asked for.
const POLL_MARGIN: Duration = Duration::from_millis(2_000);
const RETRY_AFTER: Duration = Duration::from_millis(250);
const PRUNE_EVERY: Duration = Duration::from_secs(60);
const MAX_PAGE_BYTES: usize = 16 << 20;

/// One page of core's log.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Page {
    /// Another one means another log: numbers start anew.
    log_id: String,
    /// Where the next page starts.
    next: u64,
    entries: Vec<Entry>,
}

#[derive(Debug, Clone, Deserialize)]
struct Entry {
    session: String,
    /// When the last token of the session expires.
    until: DateTime<Utc>,
}

/// Whether the list can be relied on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Freshness {
    /// It is current, or old and meant to be used all the same.
    Usable,
    /// It has not been loaded yet.
    Loading,
    /// It is too old.
    Stale,
}

#[derive(Debug, Clone, Copy, Default)]
struct Contact {
    last: Option<Instant>,
}

/// The sessions that have ended.
#[derive(Debug)]
pub struct Revocations {
    sessions: RwLock<HashMap<String, DateTime<Utc>>>,
    contact: RwLock<Contact>,
    started: Instant,
    stale_after: Duration,
    when_stale: StalePolicy,
    clock: SharedClock,
    guard: Arc<PruneGuard>,
}

impl Revocations {
    /// An empty list that counts as not loaded.
    pub fn new(stale_after: Duration, when_stale: StalePolicy, clock: SharedClock) -> Self {
        Self {
            sessions: RwLock::default(),
            contact: RwLock::default(),
            started: Instant::now(),
            stale_after,
            when_stale,
            guard: PruneGuard::in_memory("revocations", Arc::clone(&clock)),
            clock,
        }
    }

    /// Says by which time ended sessions may be forgotten.
    pub fn guard(&self) -> Arc<PruneGuard> {
        Arc::clone(&self.guard)
    }

    /// Whether the session has ended.
    pub fn has_ended(&self, session: &str) -> bool {
        let sessions = self.sessions.read().unwrap_or_else(PoisonError::into_inner);
        sessions.contains_key(session)
    }

    /// Whether the list has been loaded once.
    pub fn is_loaded(&self) -> bool {
        self.last_contact().is_some()
    }

    /// How long ago core, or Redis, last said that nothing is missing here; `None` when never.
    pub fn age(&self) -> Option<Duration> {
        self.last_contact().map(|at| at.elapsed())
    }

    /// How many ended sessions are remembered.
    pub fn count(&self) -> usize {
        self.sessions.read().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// Whether calls that need a session can be judged now.
    pub fn freshness(&self, now: Instant) -> Freshness {
        let last = self.last_contact();
        let silent_for = now.saturating_duration_since(last.unwrap_or(self.started));
        match (last, silent_for > self.stale_after, self.when_stale) {
            (Some(_), false, _) | (_, true, StalePolicy::Serve) => Freshness::Usable,
            (None, false, _) => Freshness::Loading,
            (_, true, StalePolicy::Deny) => Freshness::Stale,
        }
    }

    fn last_contact(&self) -> Option<Instant> {
        self.contact.read().unwrap_or_else(PoisonError::into_inner).last
    }

    /// Ends the sessions that an answer of core names, separated by commas.
    pub fn revoke_listed(&self, header: &str) {
        let until = self.clock.now() + HEADER_TTL;
        let named = header.split(',').map(str::trim).filter(|name| !name.is_empty());
        self.end(named.map(|session| (session.to_owned(), until)));
    }

    fn end(&self, ended: impl Iterator<Item = (String, DateTime<Utc>)>) {
        let mut sessions = self.sessions.write().unwrap_or_else(PoisonError::into_inner);
        for (session, until) in ended {
            // A header and the log tell of the same session, in either order.
            let known = sessions.entry(session).or_insert(until);
            *known = until.max(*known);
        }
        if sessions.len() > MAX_SESSIONS {
            // Those whose tokens expire first have the least left to do harm with.
            let mut ends: Vec<_> = sessions.values().copied().collect();
            let (_, cut, _) = ends.select_nth_unstable(sessions.len() - MAX_SESSIONS);
            let cut = *cut;
            sessions.retain(|_, until| *until > cut);
            tracing::error!(
                kept = sessions.len(),
                "more ended sessions than can be remembered; dropped the oldest"
            );
        }
    }

    /// Forgets sessions whose tokens have expired by `now`, the time of a checked clock: core tells of each session once.
    fn prune(&self, now: DateTime<Utc>) {
        let mut sessions = self.sessions.write().unwrap_or_else(PoisonError::into_inner);
        sessions.retain(|_, until| *until > now);
    }

    fn contacted(&self) {
        let mut contact = self.contact.write().unwrap_or_else(PoisonError::into_inner);
        contact.last = Some(Instant::now());
    }

    /// Forgets what has expired, every now and then, for ever.
    async fn keep_pruned(&self) {
        loop {
            tokio::time::sleep(PRUNE_EVERY).await;
            // In memory there is nothing that could fail.
            if let Ok(Some(now)) = self.guard.pass().await {
                self.prune(now);
            }
        }
    }

    /// Follows core's log by long poll until `stop`.
    pub async fn follow(&self, mesh: MeshClient, stop: CancellationToken) {
        let following = self.follow_log(mesh);
        tokio::select! {
            () = stop.cancelled() => {}
            () = following => {}
            () = self.keep_pruned() => {}
        }
    }

    async fn follow_log(&self, mesh: MeshClient) {
        let mut membership = mesh.directory().changed();
        let mut cursor = Cursor::default();
        // Several polls must fit into the bound, or a quiet log would look stale.
        let max_wait = MAX_POLL.min(self.stale_after / 3);
        loop {
            match read(&mesh, &cursor, max_wait).await {
                Ok(page) => {
                    if self.apply(&mut cursor, page) {
                        self.contacted();
                    }
                }
                Err(error) => {
                    tracing::debug!(error = format!("{error:#}"), "cannot read the ended sessions");
                    tokio::select! {
                        () = tokio::time::sleep(RETRY_AFTER) => {}
                        Ok(()) = membership.changed(), if !self.is_loaded() => {}
                    }
                }
            }
        }
    }

    /// Takes a page over; whether that brings the list up to date.
    fn apply(&self, cursor: &mut Cursor, page: Page) -> bool {
        if cursor.log.as_deref().is_some_and(|log| log != page.log_id) {
            // Numbers of another log mean nothing here. What is known stays: ended is ended.
            tracing::info!("core's log of ended sessions is a new one; reading it from its start");
            *cursor = Cursor { log: Some(page.log_id), ..Cursor::default() };
            return false;
        }
        let caught_up = cursor.caught_up || page.entries.is_empty();
        *cursor = Cursor { log: Some(page.log_id), after: page.next.max(cursor.after), caught_up };
        self.end(page.entries.into_iter().map(|entry| (entry.session, entry.until)));
        caught_up
    }
}

/// Where the follower is in core's log.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Cursor {
    log: Option<String>,
    after: u64,
    /// Whether the log's end has been seen; until then nobody waits for more.
    caught_up: bool,
}

async fn read(mesh: &MeshClient, cursor: &Cursor, max_wait: Duration) -> anyhow::Result<Page> {
    let wait = if cursor.caught_up { max_wait } else { Duration::ZERO };
    let path = format!("/internal/revocations?after={}&wait_ms={}", cursor.after, wait.as_millis());
    let page = mesh.get(CORE, &path, wait + POLL_MARGIN, MAX_PAGE_BYTES).await?;
    Ok(serde_json::from_slice(&page)?)
}

#[cfg(test)]
mod tests {
    use tourin_chassis::clock::{Clock, ManualClock};

    use super::*;

    fn list(stale_ms: u64, when_stale: StalePolicy) -> (Revocations, Arc<ManualClock>) {
        let clock = Arc::new(ManualClock::new(DateTime::UNIX_EPOCH));
        let shared: SharedClock = clock.clone();
        (Revocations::new(Duration::from_millis(stale_ms), when_stale, shared), clock)
    }

    fn page(log: &str, next: u64, sessions: &[&str], until: DateTime<Utc>) -> Page {
        let entries =
            sessions.iter().map(|session| Entry { session: (*session).to_owned(), until });
        Page { log_id: log.to_owned(), next, entries: entries.collect() }
    }

    #[test]
    fn ended_sessions_are_known_until_their_tokens_expire() {
        let (list, clock) = list(1_000, StalePolicy::Serve);
        let mut cursor = Cursor::default();
        let until = clock.now() + TimeDelta::minutes(10);
        assert!(!list.apply(&mut cursor, page("a", 2, &["s1", "s2"], until)), "not yet at the end");
        assert!(list.apply(&mut cursor, page("a", 2, &[], until)));
        list.revoke_listed("s3, s4,");
        assert!(["s1", "s2", "s3", "s4"].iter().all(|session| list.has_ended(session)));
        assert!(!list.has_ended("s5") && !list.has_ended(""));
        // What the log says of a session that a header named before, and after, shortens nothing.
        list.revoke_listed("s1");
        list.apply(&mut cursor, page("a", 3, &["s4"], until));
        clock.advance(TimeDelta::minutes(11));
        list.prune(clock.now());
        assert!(!list.has_ended("s2"));
        assert!(["s1", "s3", "s4"].iter().all(|session| list.has_ended(session)));
    }

    #[test]
    fn another_log_is_read_from_its_start() {
        let (list, clock) = list(1_000, StalePolicy::Serve);
        let mut cursor = Cursor::default();
        let until = clock.now() + TimeDelta::minutes(10);
        list.apply(&mut cursor, page("a", 9, &["s1"], until));
        assert_eq!(cursor.after, 9);
        assert!(!list.apply(&mut cursor, page("b", 9, &[], until)));
        assert_eq!(cursor, Cursor { log: Some("b".to_owned()), after: 0, caught_up: false });
        assert!(list.has_ended("s1"));
        list.apply(&mut cursor, page("b", 1, &["s2"], until));
        assert!(list.has_ended("s2"));
    }

    #[test]
    fn reliance_follows_contact_and_policy() {
        let later =
            |list: &Revocations, ms| list.freshness(Instant::now() + Duration::from_millis(ms));
        for policy in [StalePolicy::Serve, StalePolicy::Deny] {
            let (list, _) = list(10_000, policy);
            assert_eq!(later(&list, 0), Freshness::Loading, "{policy:?}");
            let bound_passed = match policy {
                StalePolicy::Serve => Freshness::Usable,
                StalePolicy::Deny => Freshness::Stale,
            };
            assert_eq!(later(&list, 20_000), bound_passed);
            list.contacted();
            assert_eq!(later(&list, 5_000), Freshness::Usable);
            assert_eq!(later(&list, 20_000), bound_passed);
        }
    }

    #[test]
    fn the_list_is_bounded() {
        let (list, clock) = list(1_000, StalePolicy::Serve);
        let now = clock.now();
        let ended = (0..MAX_SESSIONS + 10).map(|n| {
            let seconds = i64::try_from(n).unwrap() + 1;
            (format!("s{n}"), now + TimeDelta::seconds(seconds))
        });
        list.end(ended);
        assert!(list.sessions.read().unwrap().len() <= MAX_SESSIONS);
        assert!(!list.has_ended("s0"));
        assert!(list.has_ended(&format!("s{}", MAX_SESSIONS + 9)));
    }
}
