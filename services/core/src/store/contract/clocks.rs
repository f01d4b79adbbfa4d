//! A clock that is temporarily wrong.

use std::sync::Arc;

use tourin_chassis::clock::{Clock as _, ManualClock};
use tourin_chassis::pruning::{CONFIRMING_PASSES, PruneGuard};

use super::sessions::rotate;
use super::*;
use crate::app::session_store::Rotation;

pub(super) async fn a_clock_that_is_weeks_ahead_for_a_minute_ends_no_session(store: impl Ports) {
    let policy = SessionPolicy::default();
    // A server's clock is right.
    let clock = Arc::new(ManualClock::new(Utc::now()));
    let store = Arc::new(store);
    let guard = PruneGuard::new("sessions", store.clone(), clock.clone());
    let pass = async || {
        let Some(now) = guard.pass().await.unwrap() else { return false };
        store.prune(&policy, now).await.unwrap();
        store.prune_expired(now).await.unwrap();
        true
    };
    // Without a server's clock to agree with, the first passes only read the clock.
    let mut looks = 0;
    while !pass().await {
        looks += 1;
        assert!(looks <= CONFIRMING_PASSES);
    }
    assert!([0, CONFIRMING_PASSES].contains(&looks), "{looks} looks");

    let hana = sign_up(&*store, "hana12345").await;
    let session = log_in(&*store, &hana, &policy, clock.now()).await;
    let ended = log_in(&*store, &hana, &policy, clock.now()).await;
    let until = clock.now() + TimeDelta::minutes(10);
    store.end(&hana.account.id, ended.id, false, until).await.unwrap();

    clock.advance(TimeDelta::days(40));
    for _ in 0..3 {
        assert!(!pass().await);
        clock.advance(TimeDelta::seconds(20));
    }
    assert!(!is_open(&*store, &hana.account.id, session.id, clock.now()).await);
    let refused = rotate(&*store, &session.token, &policy, clock.now()).await;
    assert_eq!(refused, Rotation::Expired);

    clock.advance(-TimeDelta::days(40) - TimeDelta::minutes(1));
    assert!(is_open(&*store, &hana.account.id, session.id, clock.now()).await);
    assert_eq!(revoked(&*store, clock.now()).await, [ended.id]);
    assert!(pass().await, "the clock is right again");
    let renewed = rotate(&*store, &session.token, &policy, clock.now()).await;
    assert!(matches!(renewed, Rotation::Rotated { .. }), "{renewed:?}");
    assert_eq!(revoked(&*store, clock.now()).await, [ended.id]);
}
