//! The key of the day.

use crate::app::visitor_keys::VisitorKeyStore;

pub(super) async fn a_days_key_is_one_and_is_gone_the_day_after(store: impl VisitorKeyStore) {
    let candidates: Vec<[u8; 32]> = (1..=9).map(|n| [n; 32]).collect();
    let wishes = candidates.iter().map(|candidate| store.visitor_key(20_000, candidate));
    let of_today = futures::future::join_all(wishes).await;
    let of_today: Vec<_> = of_today.into_iter().map(Result::unwrap).collect();
    assert!(
        candidates.contains(&of_today[0]),
        "one of the candidates, not the row's first content"
    );
    assert!(of_today.iter().all(|key| *key == of_today[0]), "the same for all: {of_today:?}");

    let tomorrow = store.visitor_key(20_001, &[77; 32]).await.unwrap();
    assert_eq!(tomorrow, [77; 32]);
    // A clock that is a little behind does not get the old key, nor overwrites the new one.
    assert_eq!(store.visitor_key(20_000, &[78; 32]).await.unwrap(), tomorrow);
    assert_eq!(store.visitor_key(20_001, &[79; 32]).await.unwrap(), tomorrow);
}

/// Otherwise one key would be that of all days until then, and would not be destroyed before.
pub(super) async fn a_clock_that_was_years_ahead_leaves_no_key_behind(store: impl VisitorKeyStore) {
    assert_eq!(store.visitor_key(30_000, &[1; 32]).await.unwrap(), [1; 32]);
    for n in 2..4_u8 {
        let day = 20_000 + i64::from(n);
        assert_eq!(store.visitor_key(day, &[n; 32]).await.unwrap(), [n; 32]);
        assert_eq!(store.visitor_key(day, &[77; 32]).await.unwrap(), [n; 32]);
    }
}
