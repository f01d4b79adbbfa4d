//! What every outbox store must do. Each function takes a fixture with an empty outbox of its own.

mod claims;
mod operators;
mod relays;

use std::sync::Arc;

use async_trait::async_trait;
use chrono::{DateTime, Utc};

pub use claims::*;
pub use operators::*;
pub use relays::*;

use super::shard::all_shards;
use super::{Depth, MAX_PAGE_BYTES, OutboxFull, OutboxStore, PruneLimits, VERSION};
use crate::bus::contract::view;
use crate::events::Outgoing;

/// An outbox under test.
#[async_trait]
pub trait OutboxFixture: Send + Sync {
    /// Appends in one transaction, and commits; on failure rolls back.
    async fn appended(&self, events: &[Outgoing], recorded_at: DateTime<Utc>)
    -> anyhow::Result<()>;

    /// The same where it cannot fail.
    async fn append(&self, events: &[Outgoing], recorded_at: DateTime<Utc>) {
        self.appended(events, recorded_at).await.expect("append");
    }

    /// Whether there was room for them.
    async fn try_append(&self, events: &[Outgoing], recorded_at: DateTime<Utc>) -> bool {
        match self.appended(events, recorded_at).await {
            Ok(()) => true,
            Err(error) => {
                assert!(error.is::<OutboxFull>(), "{error:#}");
                false
            }
        }
    }

    /// The port.
    fn store(&self) -> &dyn OutboxStore;

    /// The port, for relays.
    fn shared(&self) -> Arc<dyn OutboxStore>;
}

/// Runs the whole suite; `fresh` makes a fixture with an empty outbox.
pub async fn all<F: OutboxFixture>(mut fresh: impl AsyncFnMut() -> F) {
    what_is_appended_is_pending_in_order_until_marked(&fresh().await).await;
    an_event_has_one_version_on_every_way_out(&fresh().await).await;
    the_feed_shows_everything_page_by_page(&fresh().await).await;
    a_page_is_bounded_in_bytes(&fresh().await).await;
    the_feed_says_what_it_no_longer_has(&fresh().await).await;
    what_is_unconfirmed_or_young_is_not_pruned(&fresh().await).await;
    relays_share_the_shards(&fresh().await).await;
    what_a_dead_relay_held_is_taken_over(&fresh().await).await;
    no_shard_has_two_holders(&fresh().await).await;
    a_shard_has_its_keys_and_no_others(&fresh().await).await;
    what_is_given_up_is_kept_aside(&fresh().await).await;
    rows_are_listed_and_shown(&fresh().await).await;
    replay_and_discard_touch_a_frozen_set(&fresh().await).await;
    a_full_outbox_refuses_more(&fresh().await).await;
    an_event_arrives_as_it_was_recorded(&fresh().await).await;
    an_event_that_cannot_be_carried_is_given_up(&fresh().await).await;
    healthy_relays_publish_each_event_once(&fresh().await).await;
    a_relay_that_dies_is_replaced(&fresh().await).await;
    depth_counts_what_waits(&fresh().await).await;
}

fn at(seconds: i64) -> DateTime<Utc> {
    DateTime::from_timestamp(1_700_000_000 + seconds, 0).expect("a time")
}

fn views(numbers: std::ops::Range<u32>) -> Vec<Outgoing> {
    numbers.map(|n| view("someone", n).with_header("number", n.to_string())).collect()
}

/// Which every event leaves with.
fn version_of(event: &Outgoing) -> u64 {
    event.envelope.version().expect("a version")
}

/// The events as they were appended.
fn without_versions(events: &[Outgoing]) -> Vec<Outgoing> {
    let mut events = events.to_vec();
    for event in &mut events {
        event
            .envelope
            .data
            .as_object_mut()
            .and_then(|data| data.remove(VERSION))
            .expect("a version");
    }
    events
}

async fn all_pending(store: &dyn OutboxStore, after: u64) -> Vec<(u64, Outgoing)> {
    let pending = store.pending(&all_shards(), after, 1_000).await.expect("pending");
    pending.into_iter().map(|p| (p.seq, p.event)).collect()
}

/// Nothing is changed on the way, and the order is that of the commits.
pub async fn what_is_appended_is_pending_in_order_until_marked(fixture: &impl OutboxFixture) {
    let store = fixture.store();
    assert!(all_pending(store, 0).await.is_empty());
    let sent = views(0..250);
    fixture.append(&sent[..240], at(0)).await;
    fixture.append(&sent[240..], at(0)).await;
    let (seqs, events): (Vec<u64>, Vec<Outgoing>) = all_pending(store, 0).await.into_iter().unzip();
    assert_eq!(without_versions(&events), sent);
    let versions: Vec<u64> = events.iter().map(version_of).collect();
    assert!(versions.is_sorted_by(|a, b| a < b), "{versions:?}");
    assert!(seqs.is_sorted_by(|a, b| a < b), "{seqs:?}");
    let limited = store.pending(&all_shards(), seqs[9], 5).await.expect("pending");
    assert_eq!(limited.iter().map(|p| p.seq).collect::<Vec<_>>(), seqs[10..15]);

    let marked: Vec<u64> = seqs.iter().copied().filter(|seq| seq % 2 == 0).collect();
    store.mark_published(&marked, at(1)).await.expect("mark");
    store.mark_published(&marked, at(2)).await.expect("marking again");
    store.mark_published(&[], at(2)).await.expect("marking nothing");
    let left: Vec<u64> = all_pending(store, 0).await.into_iter().map(|(seq, _)| seq).collect();
    assert_eq!(left, seqs.iter().copied().filter(|seq| seq % 2 == 1).collect::<Vec<_>>());
}

/// To the bus, to followers, to an operator, and again to the bus when it is replayed; whatever its time is.
pub async fn an_event_has_one_version_on_every_way_out(fixture: &impl OutboxFixture) {
    let store = fixture.store();
    let mut sent = views(0..2);
    // The clock was set back in between.
    sent[0].envelope.timestamp = at(3_600);
    sent[1].envelope.timestamp = at(0);
    fixture.append(&sent[..1], at(3_600)).await;
    fixture.append(&sent[1..], at(0)).await;
    let pending = all_pending(store, 0).await;
    let (seqs, versions): (Vec<u64>, Vec<u64>) =
        pending.iter().map(|(seq, event)| (*seq, version_of(event))).unzip();
    assert!(versions[0] < versions[1], "{versions:?}");
    let fed = store.page_after(0, 10).await.expect("a page").events;
    let fed: Vec<_> = fed.iter().map(|event| event.envelope["data"][VERSION].as_u64()).collect();
    assert_eq!(fed, [Some(versions[0]), Some(versions[1])]);
    let shown = store.show(&seqs).await.expect("shown");
    assert_eq!(shown.iter().map(|(_, event)| version_of(event)).collect::<Vec<_>>(), versions);
    store.mark_published(&seqs, at(3_601)).await.expect("mark");
    store.replay(&seqs[..1], super::Run::Real).await.expect("replay");
    let again = all_pending(store, 0).await;
    assert_eq!(again.iter().map(|(_, event)| version_of(event)).collect::<Vec<_>>(), versions[..1]);
}

/// Confirmed or not; the pages join up; the end is an empty page.
pub async fn the_feed_shows_everything_page_by_page(fixture: &impl OutboxFixture) {
    let store = fixture.store();
    let empty = store.page_after(0, 10).await.expect("a page");
    assert_eq!((empty.next, empty.pruned, empty.events.len()), (0, 0, 0));
    let sent = views(0..25);
    fixture.append(&sent, at(0)).await;
    let first = all_pending(store, 0).await[0].0;
    store.mark_published(&[first], at(0)).await.expect("mark");

    let mut read = Vec::new();
    let mut after = 0;
    loop {
        let page = store.page_after(after, 10).await.expect("a page");
        assert_eq!(page.log_id, empty.log_id);
        assert!(page.events.len() <= 10);
        let last = page.events.last().map_or(after, |event| event.seq);
        assert_eq!(page.next, last);
        after = page.next;
        if page.events.is_empty() {
            break;
        }
        read.extend(page.events);
    }
    assert_eq!(read.len(), sent.len());
    for (read, sent) in read.iter().zip(&sent) {
        let mut envelope = read.envelope.clone();
        envelope["data"].as_object_mut().and_then(|data| data.remove(VERSION)).expect("a version");
        assert_eq!(envelope, serde_json::to_value(&sent.envelope).expect("JSON"));
        assert_eq!(read.exchange, sent.exchange);
        assert_eq!(read.routing_key, sent.routing_key);
        assert_eq!(read.ordering_key, sent.ordering_key);
        assert_eq!(read.headers, sent.headers);
    }
    let beyond = store.page_after(after + 100, 10).await.expect("a page");
    assert_eq!((beyond.next, beyond.events.len()), (after, 0), "a reader ahead is set back");
    let far_beyond = store.page_after(u64::MAX, 10).await.expect("a page");
    assert_eq!((far_beyond.next, far_beyond.events.len()), (after, 0));
}

/// Large events make short pages, but never an empty one.
pub async fn a_page_is_bounded_in_bytes(fixture: &impl OutboxFixture) {
    let store = fixture.store();
    let large = |n: u32, bytes: usize| {
        let mut event = view("someone", n);
        event.envelope.data["padding"] = "x".repeat(bytes).into();
        event
    };
    let third = MAX_PAGE_BYTES / 3;
    let sent = [large(0, third), large(1, third), large(2, third), large(3, 2 * MAX_PAGE_BYTES)];
    fixture.append(&sent, at(0)).await;
    let mut lengths = Vec::new();
    let mut after = 0;
    loop {
        let page = store.page_after(after, 10).await.expect("a page");
        if page.events.is_empty() {
            break;
        }
        lengths.push(page.events.len());
        after = page.next;
    }
    assert_eq!(lengths, [2, 1, 1]);
}

/// A reader can tell that he missed something, even when the outbox is empty by now.
pub async fn the_feed_says_what_it_no_longer_has(fixture: &impl OutboxFixture) {
    let store = fixture.store();
    fixture.append(&views(0..3), at(0)).await;
    fixture.append(&views(3..5), at(100)).await;
    let seqs: Vec<u64> = all_pending(store, 0).await.into_iter().map(|(seq, _)| seq).collect();
    let until = |time| PruneLimits { recorded_until: Some(time), rows: 100, ..Default::default() };
    assert_eq!(store.prune(&until(at(50))).await.expect("prune"), 3);
    let page = store.page_after(0, 10).await.expect("a page");
    assert_eq!((page.pruned, page.events[0].seq), (seqs[2], seqs[3]));
    assert_eq!(store.prune(&until(at(100))).await.expect("prune"), 2);
    let page = store.page_after(seqs[4], 10).await.expect("a page");
    assert_eq!((page.pruned, page.next, page.events.len()), (seqs[4], seqs[4], 0));
    fixture.append(&views(5..6), at(200)).await;
    let page = store.page_after(seqs[4], 10).await.expect("a page");
    assert!(page.events[0].seq > seqs[4], "a number is never given twice");
}

/// The conditions hold together, and the number of rows is a bound.
pub async fn what_is_unconfirmed_or_young_is_not_pruned(fixture: &impl OutboxFixture) {
    let store = fixture.store();
    fixture.append(&views(0..6), at(0)).await;
    fixture.append(&views(6..8), at(100)).await;
    let seqs: Vec<u64> = all_pending(store, 0).await.into_iter().map(|(seq, _)| seq).collect();
    store.mark_published(&seqs[1..4], at(10)).await.expect("mark");
    store.mark_published(&seqs[4..5], at(90)).await.expect("mark");
    store.mark_published(&seqs[6..8], at(110)).await.expect("mark");
    let prune = async |published: Option<i64>, recorded: Option<i64>, rows| {
        let limits = PruneLimits {
            published_until: published.map(at),
            recorded_until: recorded.map(at),
            rows,
        };
        store.prune(&limits).await.expect("prune")
    };
    let left = async || {
        let page = store.page_after(0, 100).await.expect("a page");
        page.events.into_iter().map(|event| event.seq).collect::<Vec<_>>()
    };
    assert_eq!(prune(None, None, 100).await, 0);
    assert_eq!(prune(Some(10), None, 2).await, 2);
    assert_eq!(prune(Some(10), None, 2).await, 1);
    assert_eq!(left().await, [seqs[0], seqs[4], seqs[5], seqs[6], seqs[7]]);
    assert_eq!(prune(Some(1_000), Some(50), 100).await, 1);
    assert_eq!(left().await, [seqs[0], seqs[5], seqs[6], seqs[7]]);
    assert_eq!(prune(Some(1_000), None, 100).await, 2);
    assert_eq!(left().await, [seqs[0], seqs[5]], "unconfirmed rows stay");
}

/// Unconfirmed rows only, and the age of the oldest.
pub async fn depth_counts_what_waits(fixture: &impl OutboxFixture) {
    let store = fixture.store();
    assert_eq!(store.depth().await.expect("depth"), Depth::default());
    fixture.append(&views(0..3), at(0)).await;
    fixture.append(&views(3..5), at(7)).await;
    let depth = store.depth().await.expect("depth");
    assert_eq!(depth, Depth { pending: 5, oldest: Some(at(0)), rejected: 0 });
    let seqs: Vec<u64> = all_pending(store, 0).await.into_iter().map(|(seq, _)| seq).collect();
    store.mark_published(&seqs[..3], at(8)).await.expect("mark");
    let depth = store.depth().await.expect("depth");
    assert_eq!(depth, Depth { pending: 2, oldest: Some(at(7)), rejected: 0 });
}
