//! From the outbox to a bus that fails in every way it can.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use proptest::prelude::*;
use tokio::sync::Notify;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::outbox::Outbox;
use super::{eventually, soon};
use crate::backoff::Backoff;
use crate::bus::contract::view;
use crate::bus::{PublishError, Publisher};
use crate::events::Outgoing;
use crate::outbox::sqlite::append;
use crate::outbox::{OutboxStore as _, Relay, RelaySettings, Wake};
use crate::sqlite::Database;
use crate::system_clock;

/// The bus's reaction to one attempt.
#[derive(Clone, Copy, Debug)]
enum Act {
    Confirm,
    Refuse,
    Unavailable,
    Unroutable,
    /// It carries the event, but the confirmation is lost.
    CarryAndFail,
    /// The process dies before the bus has the event.
    CrashBefore,
    /// The process dies after the bus has the event and before the relay knows.
    CrashAfter,
}

/// A bus that follows a script, and confirms when the script is at its end.
#[derive(Default)]
struct ScriptedBus {
    script: Mutex<VecDeque<Act>>,
    carried: Mutex<Vec<(String, String)>>,
    crash: Notify,
    /// Every event of this key is refused.
    refused_key: Mutex<Option<String>>,
    /// Every event of a key with this prefix is unroutable.
    unroutable_keys: Mutex<Option<&'static str>>,
}

impl ScriptedBus {
    fn new(script: Vec<Act>) -> Arc<Self> {
        Arc::new(Self { script: Mutex::new(script.into()), ..Self::default() })
    }

    fn carry(&self, event: &Outgoing) {
        let number = event.envelope.data["tourspot_id"].as_str().unwrap().to_owned();
        self.carried.lock().unwrap().push((event.ordering_key.clone(), number));
    }

    fn carried(&self) -> Vec<(String, String)> {
        self.carried.lock().unwrap().clone()
    }

    /// By key, in the order of each number's first delivery, as a deduping consumer sees it.
    fn effect(&self) -> BTreeMap<String, Vec<u32>> {
        let mut effect: BTreeMap<String, Vec<u32>> = BTreeMap::new();
        for (key, number) in self.carried() {
            let numbers = effect.entry(key).or_default();
            let number = number.parse().unwrap();
            if !numbers.contains(&number) {
                numbers.push(number);
            }
        }
        effect
    }
}

#[async_trait]
impl Publisher for ScriptedBus {
    async fn publish(&self, batch: Vec<Outgoing>) -> Vec<Result<(), PublishError>> {
        let mut results = Vec::new();
        for event in batch {
            // Lets other tasks run, as on a network.
            tokio::task::yield_now().await;
            let act = if self.refused_key.lock().unwrap().as_ref() == Some(&event.ordering_key) {
                Act::Refuse
            } else if self
                .unroutable_keys
                .lock()
                .unwrap()
                .is_some_and(|keys| event.ordering_key.starts_with(keys))
            {
                Act::Unroutable
            } else {
                self.script.lock().unwrap().pop_front().unwrap_or(Act::Confirm)
            };
            if matches!(act, Act::Confirm | Act::CarryAndFail | Act::CrashAfter) {
                self.carry(&event);
            }
            results.push(match act {
                Act::Confirm => Ok(()),
                Act::Refuse => Err(PublishError::Rejected("no".to_owned())),
                Act::Unavailable | Act::CarryAndFail => {
                    Err(PublishError::Unavailable("gone".to_owned()))
                }
                Act::Unroutable => Err(PublishError::Unroutable),
                Act::CrashBefore | Act::CrashAfter => {
                    self.crash.notify_one();
                    std::future::pending().await
                }
            });
        }
        results
    }
}

/// The defaults with shorter times, except where a slow disk would change what happens: a lease that ends in
/// the middle repeats events, and a stop that is cut off leaves some.
fn quick() -> RelaySettings {
    RelaySettings {
        poll_interval: Duration::from_millis(5),
        rescan_interval: Duration::from_millis(50),
        lease: Duration::from_secs(10),
        confirm_timeout: Duration::from_secs(5),
        backoff: Backoff {
            base: Duration::from_millis(1),
            max: Duration::from_millis(5),
            jitter: 0.5,
        },
        drain_timeout: Duration::from_secs(30),
        ..RelaySettings::default()
    }
}

fn relay(outbox: &Outbox, bus: &Arc<ScriptedBus>, wake: &Wake, settings: RelaySettings) -> Relay {
    let store = Arc::new(outbox.store.clone());
    Relay::new(store, bus.clone(), wake.clone(), system_clock()).with_settings(settings)
}

async fn all_marked(outbox: &Outbox) {
    eventually("all events are marked", async || match outbox.store.depth().await.unwrap() {
        depth if depth.pending == 0 => Ok(()),
        depth => Err(depth),
    })
    .await;
}

/// Runs a relay until everything is marked, then stops it.
async fn run_until_marked(outbox: &Outbox, relay: Relay) {
    let shutdown = CancellationToken::new();
    let work = relay.run(shutdown.clone());
    let control = async {
        all_marked(outbox).await;
        shutdown.cancel();
    };
    soon(async { tokio::join!(work, control) }).await;
}

#[tokio::test]
async fn committed_events_are_published_at_once_and_marked() {
    let outbox = Outbox::new().await;
    let bus = ScriptedBus::new(Vec::new());
    let wake = Wake::new();
    // Longer than the test: only the signal can wake it.
    let settings = RelaySettings { poll_interval: Duration::from_secs(600), ..quick() };
    let relay = relay(&outbox, &bus, &wake, settings);
    let metrics = relay.metrics();
    let shutdown = CancellationToken::new();
    let control = async {
        for n in 0..20 {
            outbox.append_now(&[view("a", n)]).await;
            wake.notify();
            all_marked(&outbox).await;
        }
        shutdown.cancel();
    };
    soon(async { tokio::join!(relay.run(shutdown.clone()), control) }).await;
    assert_eq!(bus.effect()["a"], (0..20).collect::<Vec<_>>());
    assert_eq!(bus.carried().len(), 20, "each once, for nothing failed");
    assert_eq!(metrics.published.get(), 20);
}

#[tokio::test]
async fn commits_of_another_process_are_found_without_a_signal() {
    let outbox = Outbox::new().await;
    let bus = ScriptedBus::new(Vec::new());
    let other = Database::open(&outbox.folder.path().join("test.db"), 1).await.unwrap();
    let settings = RelaySettings::default();
    let relay = relay(&outbox, &bus, &Wake::new(), settings);
    let shutdown = CancellationToken::new();
    let control = async {
        // The relay has polled once and found nothing.
        sleep(Duration::from_millis(20)).await;
        let mut transaction = other.write().await.unwrap();
        append(&mut transaction, &[view("a", 1)], chrono::Utc::now()).await.unwrap();
        transaction.commit().await.unwrap();
        all_marked(&outbox).await;
        shutdown.cancel();
    };
    soon(async { tokio::join!(relay.run(shutdown.clone()), control) }).await;
    assert_eq!(bus.carried().len(), 1);
}

#[tokio::test]
async fn an_event_that_is_refused_holds_back_its_own_key_only() {
    let outbox = Outbox::new().await;
    let bus = ScriptedBus::new(Vec::new());
    *bus.refused_key.lock().unwrap() = Some("poison".to_owned());
    outbox.append_now(&[view("poison", 1), view("poison", 2), view("b", 1), view("b", 2)]).await;
    let relay = relay(&outbox, &bus, &Wake::new(), quick());
    let metrics = relay.metrics();
    let shutdown = CancellationToken::new();
    let control = async {
        eventually("the refused key alone is pending", async || {
            match outbox.store.depth().await.unwrap().pending {
                2 if metrics.failed.get() > 3 => Ok(()),
                pending => Err((pending, metrics.clone())),
            }
        })
        .await;
        assert_eq!(bus.effect(), BTreeMap::from([("b".to_owned(), vec![1, 2])]));
        *bus.refused_key.lock().unwrap() = None;
        all_marked(&outbox).await;
        shutdown.cancel();
    };
    soon(async { tokio::join!(relay.run(shutdown.clone()), control) }).await;
    assert_eq!(bus.effect()["poison"], [1, 2]);
}

#[tokio::test]
async fn unroutable_events_leave_room_for_others_and_go_in_order_once_they_can() {
    let outbox = Outbox::new().await;
    let bus = ScriptedBus::new(Vec::new());
    *bus.unroutable_keys.lock().unwrap() = Some("nobody");
    // Many times the memory bound, then one event with a consumer.
    let unwanted = (0..300).map(|n| view(&format!("nobody{}", n % 60), n));
    let events: Vec<Outgoing> = unwanted.chain([view("wanted", 1)]).collect();
    outbox.append_now(&events).await;
    let settings = RelaySettings { max_buffered: 16, max_in_flight: 4, ..quick() };
    let relay = relay(&outbox, &bus, &Wake::new(), settings);
    let metrics = relay.metrics();
    let shutdown = CancellationToken::new();
    let control = async {
        eventually("the wanted event alone is published", async || {
            match outbox.store.depth().await.unwrap().pending {
                300 if bus.carried().len() == 1 => Ok(()),
                pending => Err((pending, metrics.clone())),
            }
        })
        .await;
        // Retries continue without a bound.
        let tried = metrics.unroutable.get();
        eventually("many more attempts are unroutable", async || match metrics.unroutable.get() {
            now if now > tried + 120 => Ok(()),
            now => Err(now),
        })
        .await;
        outbox.append_now(&[view("wanted", 2), view("nobody3", 1_000)]).await;
        eventually("the second wanted event is published", async || match bus.carried().len() {
            2 => Ok(()),
            carried => Err(carried),
        })
        .await;
        *bus.unroutable_keys.lock().unwrap() = None;
        all_marked(&outbox).await;
        shutdown.cancel();
    };
    soon(async { tokio::join!(relay.run(shutdown.clone()), control) }).await;
    let effect = bus.effect();
    assert_eq!((effect.len(), &effect["wanted"]), (61, &vec![1, 2]));
    assert_eq!(effect["nobody3"], [3, 63, 123, 183, 243, 1_000]);
    for (key, numbers) in effect {
        assert!(numbers.is_sorted(), "{key}: {numbers:?}");
    }
}

#[tokio::test]
async fn more_than_fits_in_memory_gets_through() {
    let outbox = Outbox::new().await;
    let bus = ScriptedBus::new(vec![Act::Unroutable; 5]);
    let events: Vec<Outgoing> = (0..500).map(|n| view(&format!("user{}", n % 40), n)).collect();
    outbox.append_now(&events).await;
    let settings = RelaySettings { max_buffered: 32, max_in_flight: 8, ..quick() };
    let relay = relay(&outbox, &bus, &Wake::new(), settings);
    let metrics = relay.metrics();
    run_until_marked(&outbox, relay).await;
    assert_eq!(metrics.unroutable.get(), 5);
    assert_eq!(bus.carried().len(), 500);
    for (key, numbers) in bus.effect() {
        assert!(numbers.is_sorted(), "{key}: {numbers:?}");
    }
}

#[tokio::test]
async fn an_idle_relay_gives_its_shards_back_and_writes_no_more() {
    let outbox = Outbox::new().await;
    let bus = ScriptedBus::new(Vec::new());
    let wake = Wake::new();
    let relay = relay(&outbox, &bus, &wake, quick());
    let metrics = relay.metrics();
    let shutdown = CancellationToken::new();
    let control = async {
        outbox.append_now(&[view("a", 1)]).await;
        wake.notify();
        all_marked(&outbox).await;
        eventually("the shards are released", async || match metrics.shards.get() {
            0 => Ok(()),
            shards => Err(shards),
        })
        .await;
        let holders = async || -> i64 {
            sqlx::query_scalar("SELECT count(*) FROM outbox_relays")
                .fetch_one(outbox.database.reader())
                .await
                .unwrap()
        };
        for _ in 0..10 {
            assert_eq!(holders().await, 0);
            sleep(Duration::from_millis(20)).await;
        }
        outbox.append_now(&[view("a", 2)]).await;
        wake.notify();
        all_marked(&outbox).await;
        shutdown.cancel();
    };
    soon(async { tokio::join!(relay.run(shutdown.clone()), control) }).await;
    assert_eq!(bus.effect()["a"], [1, 2]);
}

#[tokio::test]
async fn a_relay_that_was_paused_repeats_events_but_loses_and_swaps_none() {
    let outbox = Outbox::new().await;
    let (slow, fast) = (ScriptedBus::new(vec![Act::CrashAfter]), ScriptedBus::new(Vec::new()));
    let events: Vec<Outgoing> = (0..5).map(|n| view("a", n)).collect();
    outbox.append_now(&events).await;
    let settings = RelaySettings { lease: Duration::from_millis(500), ..quick() };
    let paused = relay(&outbox, &slow, &Wake::new(), settings);
    let mut paused = Box::pin(paused.run(CancellationToken::new()));
    // It has published the first event. Then it stops, with its shards and its confirmation.
    tokio::select! {
        () = &mut paused => unreachable!(),
        () = slow.crash.notified() => {}
    }
    run_until_marked(&outbox, relay(&outbox, &fast, &Wake::new(), quick())).await;
    assert_eq!(fast.effect()["a"], [0, 1, 2, 3, 4]);
    // It resumes, and notices before it publishes that its lease has ended.
    outbox.append_now(&[view("a", 5)]).await;
    let control = async {
        all_marked(&outbox).await;
    };
    tokio::select! {
        () = &mut paused => unreachable!(),
        () = soon(control) => {}
    }
    assert_eq!(slow.effect()["a"], [0, 5]);
}

#[tokio::test]
async fn stopping_marks_what_was_confirmed_and_leaves_the_rest() {
    let outbox = Outbox::new().await;
    // One of the two is never confirmed.
    let bus = ScriptedBus::new(vec![Act::Confirm, Act::CrashAfter]);
    outbox.append_now(&[view("a", 1), view("b", 1)]).await;
    let settings = RelaySettings { drain_timeout: Duration::from_secs(2), ..quick() };
    let relay = relay(&outbox, &bus, &Wake::new(), settings);
    let shutdown = CancellationToken::new();
    let control = async {
        bus.crash.notified().await;
        shutdown.cancel();
    };
    soon(async { tokio::join!(relay.run(shutdown.clone()), control) }).await;
    assert_eq!(bus.carried().len(), 2);
    assert_eq!(outbox.store.depth().await.unwrap().pending, 1);
}

#[tokio::test]
async fn what_was_committed_before_the_stop_is_published_in_it() {
    let outbox = Outbox::new().await;
    let bus = ScriptedBus::new(Vec::new());
    let events: Vec<Outgoing> =
        (0..20).map(|n| view(if n % 2 == 0 { "a" } else { "b" }, n)).collect();
    outbox.append_now(&events).await;
    let shutdown = CancellationToken::new();
    shutdown.cancel();
    // More than it holds at once.
    let settings = RelaySettings { max_buffered: 4, ..quick() };
    soon(relay(&outbox, &bus, &Wake::new(), settings).run(shutdown)).await;
    assert_eq!(bus.effect()["a"], [0, 2, 4, 6, 8, 10, 12, 14, 16, 18]);
    assert_eq!(bus.carried().len(), 20);
    assert_eq!(outbox.store.depth().await.unwrap().pending, 0);
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        10 => Just(Act::Confirm),
        2 => Just(Act::Refuse),
        2 => Just(Act::Unavailable),
        1 => Just(Act::Unroutable),
        2 => Just(Act::CarryAndFail),
        2 => Just(Act::CrashBefore),
        2 => Just(Act::CrashAfter),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    /// With any failures and crashes, every committed event is carried at least once, and first in its key's order.
    #[test]
    fn every_committed_event_is_carried_in_order_across_crashes(
        transactions in proptest::collection::vec(proptest::collection::vec(0_u8..4, 1..6), 1..8),
        script in proptest::collection::vec(act(), 0..40),
        max_buffered in 1_usize..20,
        max_in_flight in 1_usize..10,
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let outbox = Outbox::new().await;
            let bus = ScriptedBus::new(script);
            let wake = Wake::new();
            let mut committed: BTreeMap<String, Vec<u32>> = BTreeMap::new();
            let mut batches = Vec::new();
            for keys in transactions {
                let mut batch = Vec::new();
                for key in keys {
                    let key = format!("user{key}");
                    let numbers = committed.entry(key.clone()).or_default();
                    let number = u32::try_from(numbers.len()).unwrap();
                    numbers.push(number);
                    batch.push(view(&key, number));
                }
                batches.push(batch);
            }
            // So long that a claim does not outlast it, and short because each crash waits for its end.
            let lease = Duration::from_millis(100);
            let settings = RelaySettings { max_buffered, max_in_flight, lease, ..quick() };
            let writing = async {
                for batch in batches {
                    outbox.append_now(&batch).await;
                    wake.notify();
                    sleep(Duration::from_millis(1)).await;
                }
            };
            let working = async {
                loop {
                    let shutdown = CancellationToken::new();
                    tokio::select! {
                        // Dropped without draining, marking or releasing.
                        () = bus.crash.notified() => continue,
                        () = relay(&outbox, &bus, &wake, settings).run(shutdown) => unreachable!(),
                    }
                }
            };
            let checking = async {
                writing.await;
                all_marked(&outbox).await;
            };
            tokio::select! {
                () = working => unreachable!(),
                () = soon(checking) => {}
            }
            assert_eq!(bus.effect(), committed);
        });
    }
}
