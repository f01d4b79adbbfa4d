//! What every dead letter store must do. Each function takes an empty store.

use std::collections::BTreeMap;

use bytes::Bytes;
use chrono::{DateTime, TimeDelta, Utc};
use uuid::Uuid;

use super::{DeadLetter, DeadLetterStore, MAX_BODY_BYTES, Route, Settled};

fn noon() -> DateTime<Utc> {
    DateTime::from_timestamp_micros(1_700_000_000_123_456).expect("a time")
}

fn letter(queue: &str, event_id: Option<Uuid>, body: &Bytes) -> DeadLetter {
    let headers = BTreeMap::from([("traceparent".to_owned(), "00-1-2-01".to_owned())]);
    let route = Route {
        exchange: "event.user.ex".to_owned(),
        routing_key: "user.delete".to_owned(),
        ordering_key: Some("someone".to_owned()),
    };
    DeadLetter::new(queue, event_id, route, "broken".to_owned(), 3, body, headers, noon())
}

/// Runs the whole suite; `fresh` makes an empty store.
pub async fn all<S: DeadLetterStore>(mut fresh: impl AsyncFnMut() -> S) {
    a_stored_letter_is_listed_unchanged(&fresh().await).await;
    the_newest_come_first_and_pages_join_up(&fresh().await).await;
    a_dead_letter_that_fails_again_stays_one_record(&fresh().await).await;
    a_long_body_is_cut_and_its_length_kept(&fresh().await).await;
    one_can_be_looked_at(&fresh().await).await;
    exactly_what_is_named_is_discarded(&fresh().await).await;
    missing_or_truncated_letters_are_not_replayed(&fresh().await).await;
}

/// Every field survives.
pub async fn a_stored_letter_is_listed_unchanged(store: &impl DeadLetterStore) {
    let with_id = letter("q", Some(Uuid::now_v7()), &Bytes::from_static(b"{\"a\":1}"));
    let without_id = letter("q", None, &Bytes::from_static(b"\xff\x00not text"));
    store.put(with_id.clone()).await.expect("put");
    store.put(without_id.clone()).await.expect("put");
    assert_eq!(store.list(10, None).await.expect("list"), [without_id, with_id]);
    assert_eq!(store.count().await.expect("count"), 2);
}

/// Paging by the last id seen shows each letter once.
pub async fn the_newest_come_first_and_pages_join_up(store: &impl DeadLetterStore) {
    let mut put = Vec::new();
    for _ in 0..7 {
        let letter = letter("q", Some(Uuid::now_v7()), &Bytes::from_static(b"{}"));
        store.put(letter.clone()).await.expect("put");
        put.insert(0, letter.id);
    }
    let mut seen = Vec::new();
    loop {
        let page = store.list(3, seen.last().copied()).await.expect("list");
        assert!(page.len() <= 3);
        if page.is_empty() {
            break;
        }
        seen.extend(page.into_iter().map(|letter| letter.id));
    }
    assert_eq!(seen, put);
}

/// At-least-once delivery does not multiply dead letters, per queue.
pub async fn a_dead_letter_that_fails_again_stays_one_record(store: &impl DeadLetterStore) {
    let event = Some(Uuid::now_v7());
    let body = Bytes::from_static(b"{}");
    let first = letter("q", event, &body);
    store.put(first.clone()).await.expect("put");
    let mut again = letter("q", event, &body);
    again.reason = "still broken".to_owned();
    again.attempts = 9;
    again.failed_at = noon() + TimeDelta::seconds(5);
    store.put(again.clone()).await.expect("put");
    store.put(letter("another", event, &body)).await.expect("put");
    store.put(letter("q", None, &body)).await.expect("put");
    store.put(letter("q", None, &body)).await.expect("put");
    assert_eq!(store.count().await.expect("count"), 4);
    let kept = store.list(10, None).await.expect("list");
    let kept = kept.iter().find(|kept| kept.id == first.id).expect("the first one's id");
    assert_eq!(*kept, DeadLetter { id: first.id, ..again });
}

/// The body is bounded.
pub async fn a_long_body_is_cut_and_its_length_kept(store: &impl DeadLetterStore) {
    let body = Bytes::from(vec![b'x'; MAX_BODY_BYTES + 10]);
    store.put(letter("q", None, &body)).await.expect("put");
    let kept = store.list(1, None).await.expect("list").remove(0);
    assert_eq!(kept.body.len(), MAX_BODY_BYTES);
    assert_eq!(kept.body_bytes, MAX_BODY_BYTES as u64 + 10);
}

async fn put_letters<const N: usize>(store: &impl DeadLetterStore) -> [Uuid; N] {
    let mut ids = [Uuid::nil(); N];
    for id in &mut ids {
        let letter = letter("q", Some(Uuid::now_v7()), &Bytes::from_static(b"{}"));
        *id = letter.id;
        store.put(letter).await.expect("put");
    }
    ids
}

async fn ids(store: &impl DeadLetterStore) -> Vec<Uuid> {
    let letters = store.list(100, None).await.expect("list");
    letters.into_iter().map(|letter| letter.id).collect()
}

/// A letter is found by its id.
pub async fn one_can_be_looked_at(store: &impl DeadLetterStore) {
    let [_, second, _] = put_letters(store).await;
    let found = store.get(second).await.expect("get").expect("the second");
    assert_eq!(found, store.list(10, None).await.expect("list")[1]);
    assert_eq!(found.id, second);
    assert_eq!(store.get(Uuid::now_v7()).await.expect("get"), None);
}

/// Only the listed letters are deleted: later ones stay, and a missing one has no substitute.
pub async fn exactly_what_is_named_is_discarded(store: &impl DeadLetterStore) {
    let [first, second, third] = put_letters(store).await;
    let [later] = put_letters(store).await;
    let unknown = Uuid::now_v7();
    let settled = store.discard(&[third, unknown, first]).await.expect("discard");
    assert_eq!(settled, [Settled::Done, Settled::Gone, Settled::Done]);
    assert_eq!(ids(store).await, [later, second]);
    let settled = store.discard(&[first, second]).await.expect("discard");
    assert_eq!(settled, [Settled::Gone, Settled::Done]);
    assert_eq!(store.discard(&[]).await.expect("discard"), []);
    assert_eq!(ids(store).await, [later]);
}

/// A letter that cannot be replayed stays, with the reason.
pub async fn missing_or_truncated_letters_are_not_replayed(store: &impl DeadLetterStore) {
    let cut = letter("q", None, &Bytes::from(vec![b'x'; MAX_BODY_BYTES + 1]));
    store.put(cut.clone()).await.expect("put");
    let settled = store.replay(&[Uuid::now_v7(), cut.id]).await.expect("replay");
    assert_eq!(settled[0], Settled::Gone);
    assert!(matches!(settled[1], Settled::Failed(_)), "{settled:?}");
    assert_eq!(ids(store).await, [cut.id]);
}
