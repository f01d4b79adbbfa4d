//! What every outbox store must do. Each function takes a fixture with an empty outbox.

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
use super::testing::recorded;
use super::{Depth, OutboxFull, OutboxStore};
use crate::bus::contract::view;
use crate::envelope::VERSION;
use crate::events::Outgoing;

/// An outbox under test.
#[async_trait]
pub trait OutboxFixture: Send + Sync {
    /// Appends in one transaction, and commits; on failure rolls back.
    async fn appended(&self, events: &[Outgoing], recorded_at: DateTime<Utc>)
    -> anyhow::Result<()>;

    /// Appends, where that cannot fail.
    async fn append(&self, events: &[Outgoing], recorded_at: DateTime<Utc>) {
        self.appended(events, recorded_at).await.expect("append");
    }

    /// Whether the outbox had room for them.
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
    appended_events_are_pending_in_order_until_marked(&fresh().await).await;
    an_event_has_one_version_on_every_way_out(&fresh().await).await;
    a_number_is_never_given_twice(&fresh().await).await;
    an_outbox_has_one_name_of_its_own(&fresh().await, &fresh().await).await;
    unconfirmed_and_recent_events_are_not_pruned(&fresh().await).await;
    relays_share_the_shards(&fresh().await).await;
    the_shards_of_a_dead_relay_are_taken_over(&fresh().await).await;
    no_shard_has_two_holders(&fresh().await).await;
    a_shard_has_its_keys_and_no_others(&fresh().await).await;
    dead_letters_are_stored(&fresh().await).await;
    rows_are_listed_and_shown(&fresh().await).await;
    replay_and_discard_touch_a_frozen_set(&fresh().await).await;
    a_full_outbox_refuses_more(&fresh().await).await;
    an_event_arrives_as_it_was_recorded(&fresh().await).await;
    an_unroutable_event_is_set_aside(&fresh().await).await;
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

/// The version that the outbox adds to every event.
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

/// Events are unchanged, in the order of commits.
pub async fn appended_events_are_pending_in_order_until_marked(fixture: &impl OutboxFixture) {
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

/// The version is the same for the bus, an operator and a replay, whatever the event's time.
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
    let shown = store.show(&seqs).await.expect("shown");
    assert_eq!(shown.iter().map(|(_, event)| version_of(event)).collect::<Vec<_>>(), versions);
    store.mark_published(&seqs, at(3_601)).await.expect("mark");
    store.replay(&seqs[..1], super::Run::Real).await.expect("replay");
    let again = all_pending(store, 0).await;
    assert_eq!(again.iter().map(|(_, event)| version_of(event)).collect::<Vec<_>>(), versions[..1]);
}

/// Numbers are never reused, even when the outbox is empty.
pub async fn a_number_is_never_given_twice(fixture: &impl OutboxFixture) {
    let store = fixture.store();
    fixture.append(&views(0..3), at(0)).await;
    let seqs: Vec<u64> = all_pending(store, 0).await.into_iter().map(|(seq, _)| seq).collect();
    store.mark_published(&seqs, at(0)).await.expect("mark");
    assert_eq!(store.prune(at(0), 100).await.expect("prune"), 3);
    assert!(recorded(store).await.is_empty());
    fixture.append(&views(3..4), at(1)).await;
    assert!(all_pending(store, 0).await[0].0 > seqs[2]);
}

/// The history's name shows a replica that the database is another one.
pub async fn an_outbox_has_one_name_of_its_own(
    fixture: &impl OutboxFixture,
    other: &impl OutboxFixture,
) {
    let name = fixture.store().log_id().await.expect("a name");
    fixture.append(&views(0..3), at(0)).await;
    assert_eq!(fixture.store().log_id().await.expect("a name"), name);
    assert_ne!(other.store().log_id().await.expect("a name"), name);
}

/// The oldest confirmations are deleted first, and the number of rows is bounded.
pub async fn unconfirmed_and_recent_events_are_not_pruned(fixture: &impl OutboxFixture) {
    let store = fixture.store();
    fixture.append(&views(0..6), at(0)).await;
    fixture.append(&views(6..8), at(100)).await;
    let seqs: Vec<u64> = all_pending(store, 0).await.into_iter().map(|(seq, _)| seq).collect();
    store.mark_published(&seqs[1..4], at(10)).await.expect("mark");
    store.mark_published(&seqs[4..5], at(90)).await.expect("mark");
    store.mark_published(&seqs[6..8], at(110)).await.expect("mark");
    let prune = async |published: i64, rows| store.prune(at(published), rows).await.expect("prune");
    let left = async || {
        recorded(store).await.into_iter().map(|(stored, _)| stored.seq).collect::<Vec<_>>()
    };
    assert_eq!(prune(9, 100).await, 0);
    assert_eq!(prune(10, 2).await, 2);
    assert_eq!(prune(10, 2).await, 1);
    assert_eq!(left().await, [seqs[0], seqs[4], seqs[5], seqs[6], seqs[7]]);
    assert_eq!(prune(90, 100).await, 1);
    assert_eq!(left().await, [seqs[0], seqs[5], seqs[6], seqs[7]]);
    assert_eq!(prune(1_000, 100).await, 2);
    assert_eq!(left().await, [seqs[0], seqs[5]], "unconfirmed rows stay");
}

/// Counts unconfirmed rows only, with the age of the oldest.
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
