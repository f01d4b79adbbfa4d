//! Outages of the servers: unavailable at the start, killed and restarted under load. The servers
//! belong to this test and are started by `deploy/testbed.sh`.

#![allow(clippy::unwrap_used, reason = "a test that cannot continue fails")]
#![allow(clippy::print_stdout, reason = "the figures of an outage, shown with --nocapture")]

#[path = "../mesh/mod.rs"]
mod mesh;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use axum::http::StatusCode;
use tokio::sync::{MappedMutexGuard, Mutex, MutexGuard};
use tourin_chassis::clock::SystemClock;
use tourin_chassis::telemetry::testing::all_spans;
use tourin_recommendation::app::ports::PortError;
use tourin_recommendation::domain::spot::SpotId;
use tourin_recommendation::{
    Dependencies, Recommendation, Settings, Stores, open_stores, subscriptions,
};
use tourin_shared_events::bus::rabbitmq::{RabbitBus, RabbitDeadLetters, RabbitSettings};
use tourin_shared_events::bus::{Publisher as _, Subscription};
use tourin_shared_events::consumer::QueueMetrics;
use tourin_shared_events::dead_letters::DeadLetterStore as _;
use tourin_testbed::{Bed, Server, StopSignal, User, contains, equal, eventually_within};
use uuid::Uuid;

use mesh::*;
use tourin_recommendation::SERVICE;
use tourin_registry::testing::workload;

const SIMILAR: &str = "/api/tour-spots/1/similar";
const TREND: &str = "/api/recommendations/trend";
/// A recovered dependency is used again within this time.
const RECOVERY: Duration = Duration::from_secs(40);
/// The spot that all members view.
const SPOT: u64 = 3;
/// The servers that the service needs.
const SERVERS: [Server; 3] = [Server::Redis, Server::Mongodb, Server::Amqp];

/// The test bed of this process, for one test at a time: a test that stops a server must not disturb
/// another.
static BED: Mutex<Option<Bed>> = Mutex::const_new(None);

/// Waits for exclusive use of the bed, with all of its servers running.
async fn bed() -> MappedMutexGuard<'static, Bed> {
    let mut bed = BED.lock().await;
    match &*bed {
        // A failed test may have left servers stopped.
        Some(bed) => {
            for server in SERVERS {
                bed.start(server).await;
            }
        }
        None => *bed = Some(Bed::with(&SERVERS).await),
    }
    MutexGuard::map(bed, |bed| bed.as_mut().expect("it is made above"))
}

/// One mesh on the bed, with its own names.
struct World {
    settings: Settings,
    stores: Stores,
    mesh: FakeMesh,
    _folder: tempfile::TempDir,
}

impl World {
    async fn on(bed: &Bed) -> Self {
        let name = format!("test-{}", Uuid::new_v4().simple());
        let folder = tempfile::tempdir().unwrap();
        let mesh = FakeMesh::start(catalogue(9, 1)).await;
        let mut settings = settings(folder.path(), mesh.url());
        let redis = bed.url_of(User::Recommendation, Server::Redis);
        settings.servers.redis_url = Some(redis.parse().unwrap());
        settings.servers.recommendation_redis_prefix = name.clone();
        let (before, after) = bed.url(Server::Mongodb).split_once("/?").unwrap();
        settings.servers.mongodb_url = Some(format!("{before}/{name}?{after}").parse().unwrap());
        settings.broker.amqp_url = Some(bed.url(Server::Amqp).parse().unwrap());
        settings.broker.amqp_prefix = format!("{name}.");
        // Values must not decay during the test.
        settings.rules.trend_half_life_ms = 31_536_000_000;
        let stores = open_stores(&settings, Arc::new(SystemClock)).await.unwrap();
        Self { settings, stores, mesh, _folder: folder }
    }

    async fn serve(&self) -> (Running, Vec<(&'static str, QueueMetrics)>) {
        let dependencies = Dependencies {
            events: None,
            workload: Some(workload(SERVICE)),
            stores: Some(self.stores.clone()),
            clock: Arc::new(SystemClock),
        };
        let service = Recommendation::build(self.settings.clone(), dependencies).await.unwrap();
        let metrics = service.consumer_metrics();
        (Running::run(service), metrics)
    }

    fn rabbitmq(&self) -> RabbitSettings {
        self.settings.broker().unwrap()
    }

    /// The mesh's queues at the broker.
    fn queues(&self) -> Vec<String> {
        let prefix = &self.settings.broker.amqp_prefix;
        let shards =
            subscriptions().into_iter().flat_map(|Subscription { queue, shards, .. }| {
                let shards = (0..shards).map(|shard| format!("{prefix}{queue}.shard.{shard}"));
                shards.collect::<Vec<_>>()
            });
        shards.collect()
    }

    /// The number of members who know the spot, and its value in the trend.
    async fn counts(&self) -> Result<(usize, usize), PortError> {
        let spot = SpotId::new(SPOT.cast_signed()).unwrap();
        let degrees = self.stores.histories.degrees(&[spot]).await?;
        let values = self.stores.trend.values(&[spot], chrono::Utc::now()).await?;
        let known = degrees.get(&spot).copied().unwrap_or_default();
        let value = values.get(&spot).copied().unwrap_or_default();
        Ok((known as usize, value.round() as usize))
    }

    async fn dead_letters(&self, bus: &RabbitBus) -> u64 {
        let queues = subscriptions().into_iter().map(|subscription| subscription.queue).collect();
        RabbitDeadLetters::new(bus.clone(), queues).count().await.unwrap()
    }
}

/// Publishes a view of one member after another, and repeats each until the broker confirms it.
/// Returns the number of members.
async fn publish_until(stop: Arc<AtomicBool>, bus: RabbitBus) -> usize {
    let mut members = 0;
    while !stop.load(Ordering::SeqCst) {
        let mut events: Vec<_> =
            (members..members + 5).map(|n| view(&format!("member{n:06}"), SPOT)).collect();
        members += events.len();
        while !events.is_empty() {
            let results = bus.publish(events.clone()).await;
            let mut results = results.into_iter();
            events.retain(|_| results.next().unwrap().is_err());
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
    members
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_starts_without_servers_and_uses_them_as_they_become_available() {
    let spans = all_spans();
    let bed = bed().await;
    for server in SERVERS {
        bed.stop(server, StopSignal::Kill).await;
    }
    let world = World::on(&bed).await;
    let (service, _) = world.serve().await;
    for reason in
        ["waiting for redis at 127", "waiting for mongodb at 127", "waiting for rabbitmq at 127"]
    {
        eventually_within(RECOVERY, "readiness says what is missing", async || {
            contains(service.unready().await, reason)
        })
        .await;
    }
    assert!(!service.unready().await.contains('@'), "{}", service.unready().await);
    for path in [TREND, SIMILAR] {
        let answer = service.answer(path, "reader01").await;
        assert_eq!(answer.status(), StatusCode::SERVICE_UNAVAILABLE, "{path}");
        assert!(answer.headers().contains_key("retry-after"));
    }
    // A request does not wait for an unavailable server, and its trace shows this.
    let answer = service.answer(SIMILAR, "reader01").await;
    let trace = answer.headers()["traceresponse"].to_str().unwrap().split('-').nth(1).unwrap();
    let annotated = || {
        let spans = spans.trace(trace).unwrap_or_default();
        let mut annotations = spans.iter().flat_map(|span| &span.annotations);
        annotations.any(|annotation| annotation.value == "breaker_open server=mongodb")
    };
    eventually_within(RECOVERY, "the open breaker is annotated", async || annotated()).await;
    // Without spots it could only refuse requests, so it must not be registered.
    assert_eq!(world.mesh.state.lock().unwrap().registered.len(), 0);

    bed.start(Server::Mongodb).await;
    eventually_within(RECOVERY, "similar spots are answered so", async || {
        equal(service.status(SIMILAR).await, StatusCode::OK)
    })
    .await;
    // With spots it must be registered, whatever else is unavailable.
    eventually_within(RECOVERY, "the service is registered", async || {
        equal(world.mesh.state.lock().unwrap().registered.len(), 1)
    })
    .await;
    eventually_within(RECOVERY, "eight similar spots", async || {
        equal(service.ids(SIMILAR, "reader01").await.len(), 8)
    })
    .await;
    bed.start(Server::Redis).await;
    eventually_within(RECOVERY, "the trend is answered", async || {
        equal(service.answer(TREND, "reader01").await.status(), StatusCode::OK)
    })
    .await;
    assert!(service.unready().await.contains("waiting for rabbitmq"));
    bed.start(Server::Amqp).await;
    eventually_within(RECOVERY, "the service is ready", async || {
        equal(service.unready().await, READY)
    })
    .await;

    // It also stops in time without the servers.
    for server in SERVERS {
        bed.stop(server, StopSignal::Kill).await;
    }
    service.stop().await;
}

/// Stops a server under load, and starts it again.
async fn survives(server: Server, signal: StopSignal) {
    let bed = bed().await;
    let world = World::on(&bed).await;
    let (service, metrics) = world.serve().await;
    eventually_within(RECOVERY, "the service is ready", async || {
        equal(service.unready().await, READY)
    })
    .await;
    let publisher = RabbitBus::start(world.rabbitmq());
    assert!(publisher.wait_until_connected(true).await);
    let stop = Arc::new(AtomicBool::new(false));
    let publishing = tokio::spawn(publish_until(stop.clone(), publisher.clone()));
    eventually_within(RECOVERY, "more than fifty are counted", async || {
        world.counts().await.unwrap().1 > 50
    })
    .await;

    bed.quorum_queues_are_kept(&world.queues()).await;
    bed.stop(server, signal).await;
    let reason = match server {
        Server::Amqp => "rabbitmq".to_owned(),
        server => server.to_string(),
    };
    let unready = format!("waiting for {reason} at 127.0.0.1");
    eventually_within(RECOVERY, "readiness says what is missing", async || {
        contains(service.unready().await, &unready)
    })
    .await;
    let status = service.status(TREND).await;
    // The call has no session. An outage does not change that answer.
    assert_eq!(status, StatusCode::UNAUTHORIZED);
    tokio::time::sleep(Duration::from_secs(1)).await;
    bed.start(server).await;
    let back = Instant::now();
    stop.store(true, Ordering::SeqCst);
    let members = publishing.await.unwrap();
    let left = RECOVERY.saturating_sub(back.elapsed());
    eventually_within(left, "every event has its effect", async || {
        equal(world.counts().await.unwrap_or_default(), (members, members))
    })
    .await;
    let took = back.elapsed();
    eventually_within(RECOVERY.saturating_sub(took), "the service is ready", async || {
        equal(service.unready().await, READY)
    })
    .await;
    println!("{server}: {members} events, applied {took:?} after the server's return");

    assert_eq!(service.trend().await, [SPOT.to_string()]);
    for (queue, metrics) in metrics {
        assert_eq!(metrics.dead_lettered.get(), 0, "{queue}: {metrics:?}");
    }
    assert_eq!(world.dead_letters(&publisher).await, 0);
    publisher.close(Duration::from_secs(1)).await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_redis_that_is_killed_loses_nothing() {
    survives(Server::Redis, StopSignal::Kill).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_redis_that_is_restarted_loses_nothing() {
    survives(Server::Redis, StopSignal::Term).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mongodb_that_is_killed_loses_nothing() {
    survives(Server::Mongodb, StopSignal::Kill).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mongodb_that_is_restarted_loses_nothing() {
    survives(Server::Mongodb, StopSignal::Term).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_that_is_killed_loses_nothing() {
    survives(Server::Amqp, StopSignal::Kill).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_that_is_restarted_loses_nothing() {
    survives(Server::Amqp, StopSignal::Term).await;
}

/// Redis refuses writes: its events wait, reads continue, and readiness names the reason.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_redis_without_memory_is_reported_and_its_events_wait() {
    let bed = bed().await;
    let world = World::on(&bed).await;
    let (service, metrics) = world.serve().await;
    eventually_within(RECOVERY, "the service is ready", async || {
        equal(service.unready().await, READY)
    })
    .await;
    let publisher = RabbitBus::start(world.rabbitmq());
    assert!(publisher.wait_until_connected(true).await);

    let client = redis::Client::open(bed.url(Server::Redis)).unwrap();
    let mut admin = client.get_multiplexed_async_connection().await.unwrap();
    let limit = |bytes: &'static str| {
        let mut set = redis::cmd("CONFIG");
        set.arg("SET").arg("maxmemory").arg(bytes);
        set
    };
    limit("1").query_async::<()>(&mut admin).await.unwrap();
    eventually_within(RECOVERY, "readiness says what is missing", async || {
        contains(service.unready().await, ": out of memory")
    })
    .await;
    assert!(service.unready().await.contains("redis at 127.0.0.1"), "{}", service.unready().await);
    let events: Vec<_> = (0..5).map(|n| view(&format!("waiting{n:04}"), SPOT)).collect();
    assert!(publisher.publish(events).await.iter().all(Result::is_ok));
    eventually_within(RECOVERY, "the events have their effects", async || {
        equal(world.counts().await.unwrap(), (5, 0))
    })
    .await;
    assert_eq!(service.status(SIMILAR).await, StatusCode::OK);

    limit("0").query_async::<()>(&mut admin).await.unwrap();
    eventually_within(RECOVERY, "the service is ready", async || {
        equal(service.unready().await, READY)
    })
    .await;
    eventually_within(RECOVERY, "the events have their effects", async || {
        equal(world.counts().await.unwrap(), (5, 5))
    })
    .await;
    for (queue, metrics) in metrics {
        assert_eq!(metrics.dead_lettered.get(), 0, "{queue}");
    }
    publisher.close(Duration::from_secs(1)).await;
    service.stop().await;
}
