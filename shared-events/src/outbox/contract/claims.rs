//! The ownership of shards.

use std::collections::BTreeSet;
use std::time::Duration;

use tokio::time::Instant;
use tourin_testbed::{equal, eventually, eventually_within};

use super::{OutboxFixture, at, views};
use crate::outbox::shard::all_shards;
use crate::outbox::{Claim, OutboxStore, SHARDS, Shard, shard_of};

const LONG: Duration = Duration::from_secs(40);
const SHORT: Duration = Duration::from_millis(500);

async fn claim(store: &dyn OutboxStore, holder: &str, lease: Duration) -> Claim {
    store.claim(holder, lease).await.expect("claim")
}

/// Claims until `done` returns true, within the lease and a margin for a busy machine.
async fn claim_until(
    store: &dyn OutboxStore,
    holder: &str,
    done: impl Fn(&Claim) -> bool,
) -> Claim {
    let limit = SHORT + Duration::from_secs(10);
    eventually_within(limit, "the claim that is expected", async || {
        let claim = claim(store, holder, LONG).await;
        if done(&claim) { Ok(claim) } else { Err(claim) }
    })
    .await
}

/// One relay holds all shards. The next takes the released ones, and no shard has two owners.
pub async fn relays_share_the_shards(fixture: &impl OutboxFixture) {
    let store = fixture.store();
    let first = claim(store, "a", LONG).await;
    assert_eq!(first, Claim { shards: all_shards(), relays: 1 });
    assert_eq!(claim(store, "a", LONG).await, first, "renewed");
    assert_eq!(claim(store, "b", LONG).await, Claim { shards: Vec::new(), relays: 2 });
    let seen = claim(store, "a", LONG).await;
    assert_eq!((seen.shards.len(), seen.relays, seen.fair_share()), (16, 2, 8));
    store.release("a", &first.shards[8..]).await.expect("release");
    store.release("b", &first.shards[..8]).await.expect("it was not b's to give back");
    let second = claim(store, "b", LONG).await;
    assert_eq!(second.shards, first.shards[8..]);
    assert_eq!(claim(store, "a", LONG).await.shards, first.shards[..8]);

    // A third relay: six, six and four.
    assert_eq!(claim(store, "c", LONG).await.relays, 3);
    store.release("a", &first.shards[6..8]).await.expect("release");
    store.release("b", &first.shards[14..]).await.expect("release");
    let third = claim(store, "c", LONG).await;
    assert_eq!(third.shards, [6, 7, 14, 15]);

    // A relay that leaves, leaves at once.
    store.leave("b").await.expect("leave");
    let third = claim(store, "c", LONG).await;
    assert_eq!((third.relays, third.shards.len()), (2, 8));
    assert_eq!(claim(store, "a", LONG).await.shards.len(), 8);
    store.leave("a").await.expect("leave");
    store.leave("c").await.expect("leave");
    store.leave("c").await.expect("leaving again");
}

/// A dead relay's shards move only after its lease ends, and then all of them.
pub async fn the_shards_of_a_dead_relay_are_taken_over(fixture: &impl OutboxFixture) {
    let store = fixture.store();
    let before = Instant::now();
    assert_eq!(claim(store, "dead", SHORT).await.shards.len(), 16);
    let heir = claim_until(store, "heir", |claim| !claim.shards.is_empty()).await;
    assert!(before.elapsed() >= SHORT, "the lease was running");
    assert_eq!(heir.shards.len(), 16, "{heir:?}");
    let late = claim(store, "dead", SHORT).await;
    assert_eq!(late, Claim { shards: Vec::new(), relays: 2 });
    store.leave("dead").await.expect("leave");
    store.leave("heir").await.expect("leave");
}

/// With any number of concurrent claims, each shard has one owner.
pub async fn no_shard_has_two_holders(fixture: &impl OutboxFixture) {
    let store = fixture.store();
    let names: Vec<String> = (0..6).map(|n| format!("relay{n}")).collect();
    for _ in 0..5 {
        let claims =
            futures::future::join_all(names.iter().map(|name| claim(store, name, LONG))).await;
        let shards: Vec<Shard> = claims.iter().flat_map(|claim| claim.shards.clone()).collect();
        let distinct: BTreeSet<Shard> = shards.iter().copied().collect();
        assert_eq!(distinct.len(), shards.len(), "{claims:?}");
        assert!(shards.len() <= usize::from(SHARDS));
    }
    // Relays above their share release shards, and in the end all shards have an owner.
    eventually("every shard has one holder", async || {
        let mut held = 0;
        for name in &names {
            let claim = claim(store, name, LONG).await;
            held += claim.shards.len().min(claim.fair_share());
            if claim.shards.len() > claim.fair_share() {
                let surplus = &claim.shards[claim.fair_share()..];
                store.release(name, surplus).await.expect("release");
            }
        }
        equal(held, usize::from(SHARDS))
    })
    .await;
    for name in &names {
        store.leave(name).await.expect("leave");
    }
}

/// A relay reads its own shards only. Together they read everything, each key in one place.
pub async fn a_shard_has_its_keys_and_no_others(fixture: &impl OutboxFixture) {
    let store = fixture.store();
    let events: Vec<_> = (0..100)
        .flat_map(|n| views(0..2).into_iter().map(move |event| (n, event)))
        .map(|(n, mut event)| {
            event.ordering_key = format!("user{n}");
            event
        })
        .collect();
    fixture.append(&events, at(0)).await;
    let mut read = 0;
    for shard in all_shards() {
        for pending in store.pending(&[shard], 0, 1_000).await.expect("pending") {
            assert_eq!(pending.shard, shard);
            assert_eq!(shard_of(&pending.event.ordering_key), shard);
            read += 1;
        }
    }
    assert_eq!(read, events.len());
    assert!(store.pending(&[], 0, 1_000).await.expect("pending").is_empty());
    let some = store.pending(&[1, 5, 9], 0, 1_000).await.expect("pending");
    assert!(some.iter().is_sorted_by(|a, b| a.seq < b.seq) && !some.is_empty());
}
