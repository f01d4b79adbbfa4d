//! The queues on the in-process bus.

use std::collections::HashMap;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use chrono::{DateTime, TimeDelta, Utc};
use futures::FutureExt as _;
use prometheus_client::metrics::counter::Counter;
use serde_json::json;
use tokio_util::sync::CancellationToken;
use tourin_chassis::clock::Clock;
use tourin_chassis::health::Health;
use tourin_chassis::metrics::Metrics;
use tourin_chassis::pruning::CONFIRMING_PASSES;
use tourin_chassis::shutdown::{Shutdown, Tasks};
use tourin_shared_events::bus::Publisher;
use tourin_shared_events::bus::in_process::InProcessBus;
use tourin_shared_events::consumer::{
    ConsumerMetrics, Handler, HandlerError, Outcome, QueueMetrics, Received,
};
use tourin_shared_events::dead_letters::DeadLetter;
use tourin_shared_events::events::{
    BookmarkTourspot, DeleteUser, Event, Outgoing, ReviewTourspot, TourSpotDelete, TourSpotUpsert,
    UnbookmarkTourspot, ViewTourspot,
};
use tourin_testbed::{equal, eventually};

use crate::app::ingest::Ingest;
use crate::app::ports::{PortError, TrendEvent, TrendOutcome, TrendStore};
use crate::config::RuleSettings;
use crate::domain::interaction::ChangeOrder;
use crate::domain::spot::SpotId;
use crate::domain::trend::Ranked;
use crate::scenario::{World, id};
use crate::servers::Prepared;

struct Mesh {
    world: World,
    bus: InProcessBus,
    tasks: Tasks,
    metrics: Vec<QueueMetrics>,
}

impl Mesh {
    /// A world with this number of replicas.
    async fn with_replicas(replicas: usize) -> Self {
        let world = World::with_spots(9).await;
        let bus = InProcessBus::new(world.stores.dead_letters.clone());
        let shutdown = Shutdown::new();
        let tasks = Tasks::new(shutdown.clone());
        let health = Health::new();
        let mut metrics = Vec::new();
        for _ in 0..replicas {
            for consumer in consumers_of(&world) {
                metrics.push(consumer.metrics.clone());
                let token: CancellationToken = shutdown.token();
                let ready = health.register(consumer.queue);
                let (bus, clock) = (Arc::new(bus.clone()), world.clock.clone());
                let running = consumer.run(bus, clock, ready, Prepared::already(), token);
                tasks.spawn("consumer", running);
            }
        }
        let mesh = Self { world, bus, tasks, metrics };
        let all = 3 * replicas;
        eventually("all have subscribed", async || {
            equal(mesh.bus.depths().iter().map(|queue| queue.subscribers).sum::<usize>(), all)
        })
        .await;
        mesh
    }

    fn event<E: Event>(&self, event: &E) -> Outgoing {
        Outgoing::new(event, self.world.clock.now())
    }

    /// Publishes; the bus confirms once every queue has settled.
    async fn publish(&self, events: Vec<Outgoing>) {
        for result in self.bus.publish(events).await {
            result.unwrap();
        }
    }

    async fn dead_letters(&self) -> Vec<DeadLetter> {
        self.world.stores.dead_letters.list(100, None).await.unwrap()
    }

    fn total(&self, counter: impl Fn(&QueueMetrics) -> &Counter) -> u64 {
        self.metrics.iter().map(|metrics| counter(metrics).get()).sum()
    }

    async fn value(&self, spot: i64) -> f64 {
        let top = self.world.stores.trend.top(100, self.world.clock.now()).await.unwrap();
        top.iter().find(|ranked| ranked.spot == id(spot)).map_or(0.0, |ranked| ranked.value)
    }

    async fn stop(self) {
        self.tasks.shutdown().begin();
        self.tasks.finish(Duration::from_secs(30)).await.unwrap();
    }
}

fn consumers_of(world: &World) -> Vec<super::QueueConsumer> {
    let rules = RuleSettings::default();
    let max_ahead = Duration::from_secs(rules.event_max_ahead_s);
    super::all(&world.ingest, rules.ages(), max_ahead, &world.guards, &ConsumerMetrics::default())
}

fn view(user: &str, spot: &str) -> ViewTourspot {
    ViewTourspot { user_id: user.to_owned(), tourspot_id: spot.to_owned() }
}

fn bookmark(user: &str, spot: &str) -> BookmarkTourspot {
    BookmarkTourspot { user_id: user.to_owned(), tourspot_id: spot.to_owned() }
}

fn review(user: &str, spot: &str) -> ReviewTourspot {
    ReviewTourspot {
        user_id: user.to_owned(),
        tourspot_id: spot.to_owned(),
        review_id: "1".to_owned(),
    }
}

fn upsert(spot: &str, version: u64) -> TourSpotUpsert {
    TourSpotUpsert {
        tourspot_id: spot.to_owned(),
        version,
        name: format!("{spot} v{version}"),
        address: String::new(),
        lat: 37.0,
        lng: 127.0,
        image_url: None,
        description: None,
        phone_number: None,
        tags: vec!["자연".to_owned()],
    }
}

#[tokio::test]
async fn views_and_bookmarks_reach_the_trend_and_the_history() {
    let mesh = Mesh::with_replicas(1).await;
    mesh.publish(vec![
        mesh.event(&view("member01", "1")),
        mesh.event(&bookmark("member01", "2")),
        mesh.event(&view("anon:abcd", "3")),
    ])
    .await;
    assert_eq!(mesh.world.trend(5).await, [2, 1, 3]);
    assert!(!mesh.world.personalized("member01", 100).await.iter().any(|n| [1, 2].contains(n)));
    let anonymous = mesh.world.stores.histories.profile("anon:abcd", 9).await.unwrap();
    assert!(anonymous.known.is_empty());

    let back = UnbookmarkTourspot { user_id: "member01".into(), tourspot_id: "2".into() };
    mesh.publish(vec![mesh.event(&back)]).await;
    assert!(mesh.world.personalized("member01", 100).await.contains(&2));
    mesh.stop().await;
}

#[tokio::test]
async fn an_event_that_comes_again_has_no_effect() {
    let mesh = Mesh::with_replicas(1).await;
    let event = mesh.event(&bookmark("member01", "1"));
    for _ in 0..3 {
        mesh.publish(vec![event.clone()]).await;
    }
    assert!((mesh.value(1).await - 2.0).abs() < 1e-9);
    assert_eq!(mesh.total(|metrics| &metrics.applied), 2);
    assert_eq!(mesh.total(|metrics| &metrics.duplicate), 4);
    mesh.stop().await;
}

#[tokio::test]
async fn an_event_that_is_too_old_is_dropped_and_a_deletion_never_is() {
    let mesh = Mesh::with_replicas(1).await;
    // Events expire only by a clock that pruning passes have confirmed.
    for _ in 0..=CONFIRMING_PASSES {
        mesh.world.ingest.prune(&mesh.world.guards).await.unwrap();
    }
    mesh.publish(vec![mesh.event(&bookmark("member01", "1"))]).await;
    let now = mesh.world.clock.now();
    let old = Outgoing::new(&view("member02", "2"), now - TimeDelta::hours(25));
    let ancient = Outgoing::new(&view("member02", "3"), now - TimeDelta::days(31));
    mesh.publish(vec![old, ancient]).await;
    assert_eq!(mesh.total(|metrics| &metrics.expired), 3);
    assert!(mesh.value(2).await.abs() < 1e-12);
    // Too old for the trend, not for a history.
    let known = mesh.world.stores.histories.profile("member02", 9).await.unwrap().known;
    assert_eq!(known.into_iter().collect::<Vec<_>>(), [id(2)]);

    let deleted = DeleteUser { user_id: "member01".into() };
    let event = mesh.event(&deleted);
    mesh.world.pass(TimeDelta::days(60));
    mesh.publish(vec![event]).await;
    let profile = mesh.world.stores.histories.profile("member01", 9).await.unwrap();
    assert!(profile.known.is_empty());
    assert!(mesh.dead_letters().await.is_empty());
    mesh.stop().await;
}

#[tokio::test]
async fn a_deleted_member_is_forgotten_and_late_events_do_not_bring_them_back() {
    let mesh = Mesh::with_replicas(1).await;
    let late = mesh.event(&view("member01", "4"));
    mesh.publish(vec![mesh.event(&bookmark("member01", "1"))]).await;
    mesh.world.pass(TimeDelta::seconds(1));
    mesh.publish(vec![mesh.event(&DeleteUser { user_id: "member01".into() })]).await;
    mesh.publish(vec![late]).await;
    let profile = mesh.world.stores.histories.profile("member01", 9).await.unwrap();
    assert!(profile.known.is_empty());
    assert!(mesh.value(4).await.abs() < 1e-12);
    mesh.stop().await;
}

#[tokio::test]
async fn spots_follow_their_versions_whatever_the_order() {
    let mesh = Mesh::with_replicas(1).await;
    let deletion = TourSpotDelete { tourspot_id: "51".into(), version: 3 };
    mesh.publish(vec![mesh.event(&upsert("50", 2)), mesh.event(&upsert("50", 1))]).await;
    mesh.publish(vec![mesh.event(&deletion), mesh.event(&upsert("51", 2))]).await;
    let spots = mesh.world.stores.spots.get_many(&[id(50), id(51)]).await.unwrap();
    assert_eq!(spots.len(), 1);
    assert_eq!(spots[&id(50)].name, "50 v2");
    mesh.stop().await;
}

#[tokio::test]
async fn a_malformed_event_becomes_a_dead_letter_and_the_others_are_handled() {
    let mesh = Mesh::with_replicas(1).await;
    let mut shapeless = mesh.event(&view("member01", "1"));
    shapeless.envelope.data = json!({"user_id": 7});
    let leading_zero = mesh.event(&view("member02", "007"));
    let nowhere = TourSpotUpsert { lat: 91.0, ..upsert("60", 1) };
    let events =
        vec![shapeless, leading_zero, mesh.event(&nowhere), mesh.event(&view("member03", "3"))];
    for result in mesh.bus.publish(events).await {
        // A dead letter counts as delivered.
        result.unwrap();
    }
    eventually("the valid event counted", async || {
        equal(mesh.total(|metrics| &metrics.applied), 2)
    })
    .await;
    assert_eq!(mesh.world.trend(5).await, [3]);
    let letters = mesh.dead_letters().await;
    let mut queues: Vec<_> = letters.iter().map(|letter| letter.queue.as_str()).collect();
    queues.sort_unstable();
    assert_eq!(
        queues,
        [
            "recommendation.history",
            "recommendation.history",
            "recommendation.spots",
            "recommendation.trend",
            "recommendation.trend"
        ]
    );
    mesh.stop().await;
}

#[tokio::test]
async fn two_replicas_share_the_work_and_count_each_event_once() {
    let mesh = Mesh::with_replicas(2).await;
    let mut events = Vec::new();
    for n in 0..200 {
        events.push(mesh.event(&view(&format!("member{n:03}"), &(n % 4 + 1).to_string())));
    }
    let again = events.clone();
    let (first, second) = tokio::join!(mesh.bus.publish(events), mesh.bus.publish(again));
    assert!(first.into_iter().chain(second).all(|result| result.is_ok()));
    for spot in 1..=4 {
        let value = mesh.value(spot).await;
        assert!((value - 50.0).abs() < 1e-6, "spot {spot} is worth {value}");
    }
    assert_eq!(mesh.total(|metrics| &metrics.applied), 400);
    assert_eq!(mesh.total(|metrics| &metrics.duplicate), 400);
    for replica in mesh.metrics.chunks(3) {
        assert!(replica.iter().any(|metrics| metrics.received.get() > 0), "a replica is idle");
    }
    mesh.stop().await;
}

#[tokio::test]
async fn a_member_who_reviews_a_spot_knows_it_and_the_trend_does_not_change() {
    let mesh = Mesh::with_replicas(1).await;
    mesh.publish(vec![mesh.event(&review("member01", "4"))]).await;
    let profile = mesh.world.stores.histories.profile("member01", 9).await.unwrap();
    assert!(profile.known.contains(&id(4)), "{profile:?}");
    assert!(mesh.value(4).await.abs() < f64::EPSILON, "a review may be a bad one");
    mesh.stop().await;
}

#[tokio::test]
async fn events_published_before_the_first_subscription_reach_every_declared_queue() {
    let world = World::with_spots(3).await;
    let bus = InProcessBus::new(world.stores.dead_letters.clone());
    for subscription in super::subscriptions() {
        bus.declare(subscription).unwrap();
    }
    let now = world.clock.now();
    let review = review("member01", "1");
    let events = vec![
        // Only the history's queue receives it. Another event of the same member follows.
        Outgoing::new(&review, now),
        Outgoing::new(&bookmark("member01", "2"), now),
        Outgoing::new(&upsert("50", 1), now),
    ];
    let publishing = tokio::spawn({
        let bus = bus.clone();
        async move { bus.publish(events).await }
    });
    eventually("events in each queue", async || bus.depths().iter().all(|queue| queue.waiting > 0))
        .await;

    let (health, tasks) = (Health::new(), Tasks::new(Shutdown::new()));
    for consumer in consumers_of(&world) {
        let (ready, token) = (health.register(consumer.queue), tasks.shutdown().token());
        let (bus, clock) = (Arc::new(bus.clone()), world.clock.clone());
        let running = consumer.run(bus, clock, ready, Prepared::already(), token);
        tasks.spawn("consumer", running);
    }
    let published = tokio::time::timeout(Duration::from_secs(40), publishing).await;
    assert_eq!(published.expect("all settled in time").unwrap(), vec![Ok(()); 3]);
    assert_eq!(world.trend(5).await, [2]);
    let known = world.stores.histories.profile("member01", 9).await.unwrap().known;
    assert_eq!(known, [id(1), id(2)].into_iter().collect());
    assert!(world.stores.spots.get_many(&[id(50)]).await.unwrap().contains_key(&id(50)));
    tasks.shutdown().begin();
    tasks.finish(Duration::from_secs(30)).await.unwrap();
}

/// A store that fails every operation with the same error.
struct Broken(PortError);

#[async_trait]
impl TrendStore for Broken {
    async fn record(&self, _: &TrendEvent) -> Result<TrendOutcome, PortError> {
        Err(self.0.clone())
    }
    async fn top(&self, _: usize, _: DateTime<Utc>) -> Result<Vec<Ranked>, PortError> {
        Err(self.0.clone())
    }
    async fn values(
        &self,
        _: &[SpotId],
        _: DateTime<Utc>,
    ) -> Result<HashMap<SpotId, f64>, PortError> {
        Err(self.0.clone())
    }
    async fn forget(&self, _: &str, _: ChangeOrder, _: DateTime<Utc>) -> Result<(), PortError> {
        Err(self.0.clone())
    }
    async fn prune(&self, _: DateTime<Utc>) -> Result<u64, PortError> {
        Err(self.0.clone())
    }
}

fn received(Outgoing { envelope, .. }: Outgoing) -> Received {
    Received {
        routing_key: envelope.r#type.clone(),
        dated_at: envelope.timestamp,
        envelope,
        exchange: String::new(),
        ordering_key: None,
        headers: std::collections::BTreeMap::default(),
        attempt: 1,
        trace: Default::default(),
    }
}

#[tokio::test]
async fn events_wait_for_the_end_of_an_outage_but_not_for_other_failures() {
    let world = World::new().await;
    let event = received(Outgoing::new(&view("member01", "1"), world.clock.now()));
    let handled = async |error: PortError| {
        let ages = RuleSettings::default().ages();
        let (histories, spots) = (world.stores.histories.clone(), world.stores.spots.clone());
        let ingest =
            Ingest::new(Arc::new(Broken(error)), histories, spots, world.clock.clone(), ages);
        super::all(&ingest, ages, Duration::ZERO, &world.guards, &ConsumerMetrics::default())[0]
            .handler
            .handle(&event)
            .await
    };
    let outage = handled(PortError::unavailable(anyhow::anyhow!("the disk is full"))).await;
    assert!(matches!(outage, Err(HandlerError::Unavailable(_))), "{outage:?}");
    let failure = handled(PortError::failed(anyhow::anyhow!("no such column"))).await;
    assert!(matches!(failure, Err(HandlerError::Transient(_))), "{failure:?}");
}

struct Panicking;

#[async_trait]
impl Handler for Panicking {
    async fn handle(&self, _: &Received) -> Result<Outcome, HandlerError> {
        panic!("a handler under test")
    }
}

#[tokio::test]
async fn a_handlers_panic_is_counted_and_reaches_the_consumer() {
    let counted = || {
        let text = Metrics::new("recommendation").render();
        let line = text.lines().find_map(|line| line.strip_prefix("tourin_panics_total "));
        line.unwrap().parse::<u64>().unwrap()
    };
    let event = received(Outgoing::new(&view("member01", "1"), Utc::now()));
    let before = counted();
    let handler = super::TimeoutHandler(Panicking);
    let caught = AssertUnwindSafe(handler.handle(&event)).catch_unwind().await;
    assert_eq!(caught.unwrap_err().downcast_ref::<&str>(), Some(&"a handler under test"));
    // Panics of other tests may be counted as well.
    assert!(counted() > before);
}
