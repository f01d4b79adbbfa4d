//! Who has acknowledged what.

use super::*;
use crate::domain::{AckState, Session, Sessions, WatcherKind, WatcherLimits};

over_each_store!(
    a_version_is_acknowledged_when_every_watcher_has,
    a_watcher_that_timed_out_counts_again_only_after_catching_up,
    a_new_session_has_to_say_so_itself,
);

pub(super) fn sessions() -> Sessions {
    Sessions::new(WatcherLimits { watchers: 1_000, per_peer: 1_000 })
}

pub(super) async fn join(fixture: &Fixture, sessions: &mut Sessions, name: &str) -> Session {
    let session = sessions.join(WatcherKind::Named(name), "gateway/a").unwrap();
    fixture.store.joined(&session).await.unwrap();
    session
}

pub(super) async fn state(fixture: &Fixture, version: u64) -> AckState {
    let mut state = fixture.store.acks(version).await.unwrap();
    state.done.sort_unstable();
    state.open.sort_unstable();
    state
}

async fn acknowledge(fixture: &Fixture, name: &str, version: u64) -> bool {
    fixture.store.acknowledge(name, version).await.unwrap()
}

async fn a_version_is_acknowledged_when_every_watcher_has(
    open: impl AsyncFn(CatalogueLimits) -> Fixture,
) {
    let (fixture, mut sessions) = (open(LIMITS).await, sessions());
    assert_eq!(state(&fixture, 7).await, AckState::default(), "nobody to wait for");
    let first = join(&fixture, &mut sessions, "first").await;
    join(&fixture, &mut sessions, "second").await;
    assert!(acknowledge(&fixture, "second", 9).await);
    assert!(acknowledge(&fixture, "first", 6).await);
    let of = |done: &[&str], open: &[&str]| AckState {
        done: done.iter().map(ToString::to_string).collect(),
        open: open.iter().map(ToString::to_string).collect(),
    };
    assert_eq!(state(&fixture, 7).await, of(&["second"], &["first"]));
    assert!(acknowledge(&fixture, "second", 3).await, "an old one takes nothing back");
    assert_eq!(state(&fixture, 6).await, of(&["first", "second"], &[]));
    fixture.store.left(&first);
    eventually("it has left", async || {
        let state = state(&fixture, 7).await;
        if state == of(&["second"], &[]) { Ok(()) } else { Err(state) }
    })
    .await;
    assert!(!acknowledge(&fixture, "first", 7).await, "it is gone");
}

async fn a_watcher_that_timed_out_counts_again_only_after_catching_up(
    open: impl AsyncFn(CatalogueLimits) -> Fixture,
) {
    let (fixture, mut sessions) = (open(LIMITS).await, sessions());
    join(&fixture, &mut sessions, "slow").await;
    assert_eq!(fixture.store.stop_waiting_for(7).await.unwrap(), ["slow"]);
    assert_eq!(state(&fixture, 8).await.open, [""; 0]);
    acknowledge(&fixture, "slow", 6).await;
    assert_eq!(state(&fixture, 8).await.open, [""; 0]);
    acknowledge(&fixture, "slow", 7).await;
    assert_eq!(state(&fixture, 8).await.open, ["slow"]);
}

async fn a_new_session_has_to_say_so_itself(open: impl AsyncFn(CatalogueLimits) -> Fixture) {
    let (fixture, mut sessions) = (open(LIMITS).await, sessions());
    let old = join(&fixture, &mut sessions, "gateway").await;
    acknowledge(&fixture, "gateway", 7).await;
    let new = join(&fixture, &mut sessions, "gateway").await;
    assert_eq!(state(&fixture, 7).await.open, ["gateway"]);
    let other = join(&fixture, &mut sessions, "other").await;
    fixture.store.left(&old);
    // What leaves later is told later, so this one's end is known after the old one's.
    fixture.store.left(&other);
    eventually("the other one has left", async || !acknowledge(&fixture, "other", 1).await).await;
    assert!(acknowledge(&fixture, "gateway", 7).await, "the old one's end is not the new one's");
    fixture.store.left(&new);
    eventually("it has left", async || !acknowledge(&fixture, "gateway", 7).await).await;
}
