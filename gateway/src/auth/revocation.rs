//! Sessions that ended before their tokens expired.
//!
//! Core keeps a log of them: a stream in Redis ([`stream`]), or a table in its database that is
//! followed by long poll. Each gateway reads the log from its own cursor and keeps the ids until the
//! tokens have expired. So a check needs no network, and a reconnect misses nothing. A response of
//! core that ends sessions also names them in a header, which is applied before the client gets the
//! response.

pub mod canary;
pub mod stream;

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use chrono::{DateTime, TimeDelta, Utc};
use clap::ValueEnum;
use http::HeaderMap;
use serde::Deserialize;
use tokio_util::sync::CancellationToken;
use tourin_chassis::clock::SharedClock;
use tourin_chassis::identity::SESSION_ENDED_HEADER;
use tourin_chassis::pruning::PruneGuard;

use crate::cache::tags::CacheTags;
use crate::mesh_client::{CORE, MeshClient};
use canary::Canaries;

/// Ended sessions that are kept. With tokens of 10 minutes that is enough for 300 a second.
const MAX_SESSIONS: usize = 200_000;
/// How long a session named in a header is kept if the header has no time: longer than an access token
/// lives, which is a day at most.
const HEADER_TTL: TimeDelta = TimeDelta::hours(25);
const MAX_POLL: Duration = Duration::from_secs(20);
/// Time for a poll besides its wait.
const POLL_MARGIN: Duration = Duration::from_millis(2_000);
const RETRY_AFTER: Duration = Duration::from_millis(250);
const PRUNE_EVERY: Duration = Duration::from_secs(60);
/// How long core keeps entries, at the least: a token may be about to expire when its session ends.
const KEPT_FOR: Duration = Duration::from_secs(60);
const MAX_PAGE_BYTES: usize = 16 << 20;

/// One page of core's log.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Page {
    /// Changes when the log is replaced and its numbers start again.
    log_id: String,
    /// Where the next page starts.
    next: u64,
    entries: Vec<Entry>,
}

#[derive(Debug, Clone, Deserialize)]
struct Entry {
    /// A session that has ended.
    session: Option<String>,
    /// A tag of cached responses that are out of date.
    invalidate: Option<String>,
    /// When the last token of the session expires.
    until: DateTime<Utc>,
}

/// What to do with calls that need a session while the list of ended sessions is stale.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum StalePolicy {
    /// Serve by the known list: a session that ended since works until its token expires.
    Serve,
    /// Answer 503 until core is back.
    Deny,
}

/// Whether the list may be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Freshness {
    /// Current, or stale under [`StalePolicy::Serve`].
    Usable,
    /// Never loaded yet, however long ago the gateway started.
    Loading,
    /// Stale under [`StalePolicy::Deny`].
    Stale,
}

#[derive(Debug, Clone, Copy, Default)]
struct Contact {
    last: Option<Instant>,
    /// When the last gap ended in which entries may have come and gone unread.
    gap_ended: Option<Instant>,
}

/// The ended sessions.
#[derive(Debug)]
pub struct Revocations {
    sessions: RwLock<HashMap<String, DateTime<Utc>>>,
    contact: RwLock<Contact>,
    stale_after: Duration,
    when_stale: StalePolicy,
    canaries: Canaries,
    clock: SharedClock,
    guard: Arc<PruneGuard>,
    tags: Option<CacheTags>,
}

impl Revocations {
    /// An empty list, not loaded yet.
    pub fn new(stale_after: Duration, when_stale: StalePolicy, clock: SharedClock) -> Self {
        Self {
            sessions: RwLock::default(),
            contact: RwLock::default(),
            stale_after,
            when_stale,
            canaries: Canaries::default(),
            guard: PruneGuard::in_memory("revocations", Arc::clone(&clock)),
            clock,
            tags: None,
        }
    }

    /// Passes the tags on that the log invalidates.
    #[must_use]
    pub fn with_tags(self, tags: CacheTags) -> Self {
        Self { tags: Some(tags), ..self }
    }

    fn invalidate(&self, tag: &str) {
        if let Some(tags) = &self.tags {
            tags.invalidate(tag);
        }
    }

    /// The log is another one, so entries may have been missed.
    fn invalidate_all(&self) {
        if let Some(tags) = &self.tags {
            tags.invalidate_all();
        }
    }

    /// Gives the time by which expired entries are deleted.
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

    /// Time since the list was last known to be complete; `None` before the first time.
    pub fn age(&self) -> Option<Duration> {
        self.last_contact().map(|at| at.elapsed())
    }

    /// Whether the end of a session that was open at `since` may never have been read. Its tokens have expired by
    /// then, so that this matters only for what lasts longer than they.
    pub fn may_have_missed_an_end(&self, since: Instant) -> bool {
        let contact = self.contact.read().unwrap_or_else(PoisonError::into_inner);
        contact.gap_ended.is_some_and(|gap_ended| since <= gap_ended)
    }

    /// Number of ended sessions in the list.
    pub fn count(&self) -> usize {
        self.sessions.read().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// Whether calls that need a session can be checked at `now`.
    pub fn freshness(&self, now: Instant) -> Freshness {
        let last = self.last_contact();
        let silent_for = last.map_or(Duration::ZERO, |last| now.saturating_duration_since(last));
        match (last, silent_for > self.stale_after, self.when_stale) {
            (Some(_), false, _) | (Some(_), true, StalePolicy::Serve) => Freshness::Usable,
            (Some(_), true, StalePolicy::Deny) => Freshness::Stale,
            // Without a list any ended session would be served, so not even `Serve` allows it.
            (None, ..) => Freshness::Loading,
        }
    }

    fn last_contact(&self) -> Option<Instant> {
        self.contact.read().unwrap_or_else(PoisonError::into_inner).last
    }

    /// Adds the sessions in core's header: a comma-separated list of `ID;until=SECONDS`, the time since
    /// the epoch.
    pub fn revoke_listed(&self, header: &str) {
        let without_time = self.clock.now() + HEADER_TTL;
        let named = header.split(',').map(str::trim).filter(|entry| !entry.is_empty());
        self.end(named.map(|entry| {
            let (session, parameters) = entry.split_once(';').unwrap_or((entry, ""));
            let until = parameters.trim().strip_prefix("until=");
            let until =
                until.and_then(|seconds| DateTime::from_timestamp(seconds.parse().ok()?, 0));
            (session.trim_end().to_owned(), until.unwrap_or(without_time))
        }));
    }

    /// [`Revocations::revoke_listed`], for the headers of a response of core.
    pub fn revoke_named(&self, headers: &HeaderMap) {
        let lists = headers.get_all(SESSION_ENDED_HEADER).iter();
        lists.filter_map(|list| list.to_str().ok()).for_each(|list| self.revoke_listed(list));
    }

    fn end(&self, ended: impl Iterator<Item = (String, DateTime<Utc>)>) {
        let mut sessions = self.sessions.write().unwrap_or_else(PoisonError::into_inner);
        for (session, until) in ended.filter(|(session, _)| !self.canaries.catch(session)) {
            // A header and the log may name the same session, in any order and with different times. The
            // later time wins: an earlier one must not let the session's tokens be valid again.
            let known = sessions.entry(session).or_insert(until);
            *known = until.max(*known);
        }
        if sessions.len() > MAX_SESSIONS {
            // Those whose tokens expire first are dropped first.
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

    /// Deletes sessions whose tokens have expired by `now`, the time of a checked clock: core names each
    /// session once.
    fn prune(&self, now: DateTime<Utc>) {
        let mut sessions = self.sessions.write().unwrap_or_else(PoisonError::into_inner);
        sessions.retain(|_, until| *until > now);
    }

    fn contacted(&self) {
        let mut contact = self.contact.write().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        if contact.last.is_some_and(|last| now.saturating_duration_since(last) > KEPT_FOR) {
            contact.gap_ended = Some(now);
        }
        contact.last = Some(now);
    }

    async fn keep_pruned(&self) {
        loop {
            tokio::time::sleep(PRUNE_EVERY).await;
            // In memory nothing can fail.
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
        // Several polls must fit into the bound, so that a log without entries is not stale.
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

    /// Applies a page; true if the list is complete then.
    fn apply(&self, cursor: &mut Cursor, page: Page) -> bool {
        if cursor.log.as_deref().is_some_and(|log| log != page.log_id) {
            // The cursor is of another log. Known sessions stay: an ended session stays ended.
            tracing::info!("core's log of ended sessions is a new one; reading it from its start");
            *cursor = Cursor { log: Some(page.log_id), ..Cursor::default() };
            self.invalidate_all();
            return false;
        }
        let caught_up = cursor.caught_up || page.entries.is_empty();
        *cursor = Cursor { log: Some(page.log_id), after: page.next.max(cursor.after), caught_up };
        page.entries.iter().filter_map(|entry| entry.invalidate.as_deref()).for_each(|tag| {
            self.invalidate(tag);
        });
        let ended = page.entries.into_iter().filter(|entry| entry.invalidate.is_none());
        self.end(ended.filter_map(|entry| Some((entry.session?, entry.until))));
        caught_up
    }
}

/// The follower's position in core's log.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Cursor {
    log: Option<String>,
    after: u64,
    /// Whether the log's end has been read; until then a poll does not wait.
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
    use proptest::prelude::*;
    use tourin_chassis::clock::{Clock, ManualClock};

    use super::*;

    fn list(stale_ms: u64, when_stale: StalePolicy) -> (Revocations, Arc<ManualClock>) {
        let clock = Arc::new(ManualClock::new(DateTime::UNIX_EPOCH));
        let shared: SharedClock = clock.clone();
        (Revocations::new(Duration::from_millis(stale_ms), when_stale, shared), clock)
    }

    fn page(log: &str, next: u64, sessions: &[&str], until: DateTime<Utc>) -> Page {
        let entries = sessions.iter().map(|session| Entry {
            session: Some((*session).to_owned()),
            invalidate: None,
            until,
        });
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
        // The log never shortens the time of a session that a header named, before or after.
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
    fn ends_may_be_missed_in_a_long_gap_alone() {
        let (list, _) = list(1_000, StalePolicy::Serve);
        list.contacted();
        list.contacted();
        assert!(!list.may_have_missed_an_end(Instant::now()));
        list.contact.write().unwrap().last = Instant::now().checked_sub(2 * KEPT_FOR);
        let open = Instant::now();
        list.contacted();
        assert!(list.may_have_missed_an_end(open));
        assert!(!list.may_have_missed_an_end(Instant::now() + KEPT_FOR), "of a later one");
    }

    #[test]
    fn reliance_follows_contact_and_policy() {
        let later =
            |list: &Revocations, ms| list.freshness(Instant::now() + Duration::from_millis(ms));
        for policy in [StalePolicy::Serve, StalePolicy::Deny] {
            let (list, _) = list(10_000, policy);
            for ms in [0, 20_000, 86_400_000] {
                assert_eq!(later(&list, ms), Freshness::Loading, "{policy:?} after {ms} ms");
            }
            let bound_passed = match policy {
                StalePolicy::Serve => Freshness::Usable,
                StalePolicy::Deny => Freshness::Stale,
            };
            list.contacted();
            assert_eq!(later(&list, 5_000), Freshness::Usable);
            assert_eq!(later(&list, 20_000), bound_passed);
        }
    }

    /// What the gateway learns of one session's end.
    #[derive(Debug, Clone)]
    enum News {
        /// A header that has the time, in seconds from the start.
        Header(i64),
        /// A header of a core that sends no time.
        HeaderWithoutTime,
        /// An entry of the log.
        Log(i64),
        /// Nothing for so many seconds, and then a pass of the pruner.
        Pass(i64),
    }

    proptest! {
        /// A log-out is never undone: in every order of headers, entries of the log and passes, the
        /// session has ended until the latest time that was given while it was known.
        #[test]
        fn the_latest_time_wins_in_every_order(
            news in proptest::collection::vec(
                prop_oneof![
                    (1..200_000_i64).prop_map(News::Header),
                    Just(News::HeaderWithoutTime),
                    (1..200_000_i64).prop_map(News::Log),
                    (1..50_000_i64).prop_map(News::Pass),
                ],
                1..20,
            ),
        ) {
            let (list, clock) = list(1_000, StalePolicy::Serve);
            let mut cursor = Cursor::default();
            let mut latest = i64::MIN;
            for (seq, piece) in news.into_iter().enumerate() {
                let now = clock.now().timestamp();
                match piece {
                    News::Header(until) => {
                        list.revoke_listed(&format!("other;until=9, s1;until={until}"));
                        latest = latest.max(until);
                    }
                    News::HeaderWithoutTime => {
                        list.revoke_listed("s1");
                        latest = latest.max(now + HEADER_TTL.num_seconds());
                    }
                    News::Log(until) => {
                        let until_at = DateTime::from_timestamp(until, 0).unwrap();
                        list.apply(&mut cursor, page("a", seq as u64, &["s1"], until_at));
                        latest = latest.max(until);
                    }
                    News::Pass(seconds) => {
                        clock.advance(TimeDelta::seconds(seconds));
                        list.prune(clock.now());
                    }
                }
                let now = clock.now().timestamp();
                if latest > now {
                    prop_assert!(list.has_ended("s1"), "forgotten at {now}, before {latest}");
                }
            }
            // It is forgotten then: the list does not grow without end.
            clock.advance(TimeDelta::days(30));
            list.prune(clock.now());
            prop_assert_eq!(list.count(), 0);
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
