//! What operators see and do; refusals; the bound.

use super::{OutboxFixture, all_pending, at, views};
use crate::outbox::{Filter, OutboxStore, Refusal, Run, Selected, State, Stored};

async fn list(store: &dyn OutboxStore, state: State) -> Vec<Stored> {
    store.list(&Filter { state, after: 0, limit: 100 }).await.expect("list")
}

fn seqs(rows: &[Stored]) -> Vec<u64> {
    rows.iter().map(|row| row.seq).collect()
}

fn refusal(seq: u64, reason: &str, give_up: bool) -> Refusal {
    Refusal { seq, reason: reason.to_owned(), give_up }
}

/// Attempts are counted with their reasons. A dead-lettered row leaves the relays' path and is not lost.
pub async fn dead_letters_are_stored(fixture: &impl OutboxFixture) {
    let store = fixture.store();
    fixture.append(&views(0..4), at(0)).await;
    let all: Vec<u64> = all_pending(store, 0).await.into_iter().map(|(seq, _)| seq).collect();
    let refusals =
        [refusal(all[1], "too large", false), refusal(all[2], &"too 큰 ".repeat(1_000), true)];
    store.record_refusals(&refusals, at(1)).await.expect("record");
    store
        .record_refusals(&[refusal(all[1], "too large still", true)], at(2))
        .await
        .expect("record");
    store.record_refusals(&[], at(2)).await.expect("nothing to record");
    let left: Vec<u64> = all_pending(store, 0).await.into_iter().map(|(seq, _)| seq).collect();
    assert_eq!(left, [all[0], all[3]]);
    let depth = store.depth().await.expect("depth");
    assert_eq!((depth.pending, depth.rejected, depth.oldest), (2, 2, Some(at(0))));

    let rejected = list(store, State::Rejected).await;
    assert_eq!(seqs(&rejected), all[1..3]);
    let (first, second) = (&rejected[0], &rejected[1]);
    assert_eq!((first.attempts, first.last_error.as_deref()), (2, Some("too large still")));
    assert_eq!(
        (first.state, first.rejected_at, first.published_at),
        (State::Rejected, Some(at(2)), None)
    );
    assert_eq!(first.age(at(10)), chrono::TimeDelta::seconds(10));
    assert_eq!(second.attempts, 1);
    let kept = second.last_error.as_deref().unwrap_or_default();
    assert!(kept.starts_with("too 큰 ") && kept.chars().count() <= 500, "{kept}");

    // A late confirmation settles it.
    store.mark_published(&all[2..3], at(3)).await.expect("mark");
    assert_eq!(seqs(&list(store, State::Rejected).await), all[1..2]);
    assert_eq!(store.depth().await.expect("depth").rejected, 1);
}

/// All facts of a row, in pages; single rows with payload; rows by event id.
pub async fn rows_are_listed_and_shown(fixture: &impl OutboxFixture) {
    let store = fixture.store();
    let sent = views(0..30);
    fixture.append(&sent, at(5)).await;
    let all = list(store, State::Pending).await;
    assert_eq!(all.len(), 30);
    let page = Filter { state: State::Pending, after: all[9].seq, limit: 5 };
    assert_eq!(store.list(&page).await.expect("list"), all[10..15]);
    for (row, event) in all.iter().zip(&sent) {
        assert_eq!(row.event_id, event.envelope.id);
        assert_eq!((&row.r#type, &row.exchange), (&event.routing_key, &event.exchange));
        assert_eq!((row.recorded_at, row.occurred_at), (at(5), event.envelope.timestamp));
        assert_eq!((&row.ordering_key, row.attempts), (&event.ordering_key, 0));
    }
    let asked = [all[7].seq, all[3].seq, u64::MAX >> 1, all[3].seq];
    let shown = store.show(&asked).await.expect("show");
    let (rows, events): (Vec<_>, Vec<_>) = shown.into_iter().unzip();
    assert_eq!(rows, [all[3].clone(), all[7].clone()]);
    assert_eq!(super::without_versions(&events), [sent[3].clone(), sent[7].clone()]);
    let ids = [sent[20].envelope.id, uuid::Uuid::now_v7(), sent[2].envelope.id];
    assert_eq!(store.find(&ids).await.expect("find"), [all[2].seq, all[20].seq]);
}

/// Changes exactly the given set, once. A dry run reports the same and changes nothing.
pub async fn replay_and_discard_touch_a_frozen_set(fixture: &impl OutboxFixture) {
    let store = fixture.store();
    fixture.append(&views(0..6), at(0)).await;
    let all: Vec<u64> = all_pending(store, 0).await.into_iter().map(|(seq, _)| seq).collect();
    let missing = all[5] + 1_000;
    store.mark_published(&all[..2], at(1)).await.expect("mark");
    store.record_refusals(&[refusal(all[2], "no", true)], at(1)).await.expect("record");
    let pending = async || -> Vec<u64> {
        all_pending(store, 0).await.into_iter().map(|(seq, _)| seq).collect()
    };

    let asked = [missing, all[3], all[2], all[0], all[2]];
    let expected =
        Selected { touched: vec![all[0], all[2]], unfit: vec![all[3]], missing: vec![missing] };
    assert_eq!(store.replay(&asked, Run::Dry).await.expect("replay"), expected);
    assert_eq!(pending().await, all[3..]);
    assert_eq!(store.replay(&asked, Run::Real).await.expect("replay"), expected);
    assert_eq!(pending().await, [&all[..1], &all[2..]].concat());
    let row = &store.show(&all[2..3]).await.expect("show")[0].0;
    assert_eq!((row.state, row.attempts, row.last_error.as_deref()), (State::Pending, 0, None));

    store.record_refusals(&[refusal(all[4], "no", true)], at(2)).await.expect("record");
    let asked = [all[1], all[3], all[4], all[5], missing];
    let expected =
        Selected { touched: all[3..].to_vec(), unfit: vec![all[1]], missing: vec![missing] };
    assert_eq!(store.discard(&asked, Run::Dry).await.expect("discard"), expected);
    assert_eq!(pending().await, [all[0], all[2], all[3], all[5]]);
    assert_eq!(store.discard(&asked, Run::Real).await.expect("discard"), expected);
    assert_eq!(pending().await, [all[0], all[2]]);
    assert_eq!(store.replay(&[], Run::Real).await.expect("replay"), Selected::default());

    // A number is never reused, even when the last rows are deleted.
    fixture.append(&views(6..7), at(3)).await;
    assert!(pending().await.last().is_some_and(|seq| *seq > all[5]));
}

/// Appending is refused at the bound, and accepted again with a tenth of it free.
pub async fn a_full_outbox_refuses_more(fixture: &impl OutboxFixture) {
    let store = fixture.store();
    let bound = async |max| store.enforce_bound(max).await.expect("bound");
    assert!(!bound(Some(20)).await);
    fixture.append(&views(0..19), at(0)).await;
    assert!(!bound(Some(20)).await);
    assert!(fixture.try_append(&views(19..22), at(0)).await, "the bound is looked after later");
    assert!(bound(Some(20)).await);
    assert!(bound(Some(20)).await, "it stays so");
    assert!(!fixture.try_append(&views(22..23), at(0)).await);
    assert!(fixture.try_append(&[], at(0)).await, "a change without events is none of its concern");
    let all: Vec<u64> = all_pending(store, 0).await.into_iter().map(|(seq, _)| seq).collect();
    assert_eq!(all.len(), 22);
    // Counts the rows that remain, not the gaps between their numbers.
    store.mark_published(&all[1..4], at(1)).await.expect("mark");
    assert!(bound(Some(20)).await);
    assert!(!fixture.try_append(&views(22..23), at(0)).await);
    store.mark_published(&all[4..6], at(1)).await.expect("mark");
    assert!(!bound(Some(20)).await);
    assert!(fixture.try_append(&views(22..23), at(0)).await);
    assert!(!bound(Some(20)).await);
    assert!(bound(Some(5)).await);
    assert!(!bound(None).await, "without a bound nothing is refused");
    assert!(fixture.try_append(&views(23..24), at(0)).await);
}
