//! The service on Redis and MongoDB, through proxies that are closed and opened.

use std::path::Path;
use std::sync::Arc;

use axum::http::StatusCode;
use tourin_chassis::clock::SystemClock;
use tourin_recommendation::{Dependencies, Settings, open_stores};
use tourin_shared_events::bus::Publisher as _;
use tourin_shared_events::bus::in_process::InProcessBus;
use tourin_shared_events::events::{BookmarkTourspot, Outgoing};
use tourin_testbed::{Proxy, Server, User, contains, equal, eventually, given, given_to};
use uuid::Uuid;

use super::mesh::*;
use tourin_recommendation::SERVICE;
use tourin_registry::testing::workload;

const TREND: &str = "/api/recommendations/trend";
const SIMILAR: &str = "/api/tour-spots/1/similar";

/// Proxies to the servers, and the test's own names: a prefix in Redis, a database in MongoDB.
struct Bed {
    redis: Proxy,
    mongodb: Proxy,
    name: String,
}

/// Redis, for the service's user.
fn redis_url() -> String {
    given_to(User::Recommendation, Server::Redis)
}

impl Bed {
    /// MongoDB is reachable, Redis is not.
    async fn without_redis() -> Self {
        Self {
            redis: Proxy::closed_to_url(&redis_url()),
            mongodb: Proxy::open_to_url(&given(Server::Mongodb)).await,
            name: format!("test-{}", Uuid::new_v4().simple()),
        }
    }

    async fn new() -> Self {
        let bed = Self::without_redis().await;
        bed.redis.open().await;
        bed
    }

    fn mongodb_url(&self) -> String {
        let url = self.mongodb.url(&given(Server::Mongodb));
        let (server, options) = url.split_once('?').unwrap_or((&url, ""));
        // Without directConnection the driver would connect to the server's own address.
        let mut options = format!("{options}&directConnection=true");
        if server.contains('@') && !options.contains("authSource") {
            options.push_str("&authSource=admin");
        }
        let server = server.trim_end_matches('/');
        format!("{server}/{}?{}", self.name, options.trim_start_matches('&'))
    }

    fn settings(&self, folder: &Path, registry_url: String) -> Settings {
        let mut settings = settings(folder, registry_url);
        settings.servers.redis_url = Some(self.redis.url(&redis_url()).parse().unwrap());
        settings.servers.recommendation_redis_prefix = self.name.clone();
        settings.servers.mongodb_url = Some(self.mongodb_url().parse().unwrap());
        settings
    }

    async fn clear(self) {
        let client = mongodb::Client::with_uri_str(self.mongodb_url()).await.unwrap();
        client.database(&self.name).drop().await.unwrap();
    }
}

impl Running {
    async fn trend_status(&self) -> StatusCode {
        self.answer(TREND, "reader01").await.status()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn during_an_outage_of_redis_the_trend_is_served_from_the_cache_and_no_event_is_lost() {
    let bed = Bed::without_redis().await;
    let folder = tempfile::tempdir().unwrap();
    let mesh = FakeMesh::start(catalogue(9, 1)).await;
    let settings = bed.settings(folder.path(), mesh.url());
    let clock = Arc::new(SystemClock);
    let stores = open_stores(&settings, clock.clone()).await.unwrap();
    let bus = InProcessBus::new(stores.dead_letters.clone());
    let dependencies = Dependencies {
        events: Some(Arc::new(bus.clone())),
        workload: Some(workload(SERVICE)),
        stores: Some(stores.clone()),
        clock,
    };
    let service = Running::start(settings, dependencies).await;

    // It starts without Redis, reports this, and answers what it can.
    eventually("readiness says what is missing", async || {
        contains(service.unready().await, "waiting for redis at 127.0.0.1")
    })
    .await;
    eventually("similar spots are answered so", async || {
        equal(service.status(SIMILAR).await, StatusCode::OK)
    })
    .await;
    eventually("eight similar spots", async || {
        equal(service.ids(SIMILAR, "reader01").await.len(), 8)
    })
    .await;
    assert_eq!(service.trend_status().await, StatusCode::SERVICE_UNAVAILABLE);
    assert!(!service.unready().await.contains("mongodb"));
    eventually("the service is registered", async || {
        equal(mesh.state.lock().unwrap().registered.len(), 1)
    })
    .await;
    eventually("the queues are declared", async || equal(bus.depths().len(), 3)).await;
    let waiting = tokio::spawn({
        let bus = bus.clone();
        async move { bus.publish(vec![view("member01", 3)]).await }
    });

    bed.redis.open().await;
    eventually("the service is ready", async || {
        equal(service.status("/readyz").await, StatusCode::OK)
    })
    .await;
    eventually("the events are in the trend", async || equal(service.trend().await, ["3"])).await;
    assert!(waiting.await.unwrap()[0].is_ok());

    // A second outage: the last trend response is served.
    bed.redis.close().await;
    eventually("readiness says what is missing", async || {
        contains(service.unready().await, "waiting for redis")
    })
    .await;
    assert_eq!(service.trend().await, ["3"]);
    let personal = service.ids("/api/recommendations/personalized?k=9", "member02").await;
    assert_eq!((personal.len(), personal[0].as_str()), (9, "3"));
    assert_eq!(service.ids(SIMILAR, "reader01").await.len(), 8);
    let events: Vec<_> = (0..30).map(|n| view(&format!("member{n:02}"), 4)).collect();
    let waiting = tokio::spawn({
        let bus = bus.clone();
        async move { bus.publish(events).await }
    });
    assert_eq!(service.status(SIMILAR).await, StatusCode::OK);
    bed.redis.open().await;
    eventually("the events are in the trend", async || equal(service.trend().await, ["4", "3"]))
        .await;
    assert!(waiting.await.unwrap().iter().all(Result::is_ok));
    let scores = stores.trend.top(9, chrono::Utc::now()).await.unwrap();
    assert!((29.5..30.0).contains(&scores[0].value), "{scores:?}");
    eventually("the service is ready", async || {
        equal(service.status("/readyz").await, StatusCode::OK)
    })
    .await;
    assert_eq!(stores.dead_letters.count().await.unwrap(), 0);

    bed.redis.close().await;
    service.stop().await;
    bed.clear().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_an_outage_of_mongodb_queries_succeed_and_waiting_events_are_applied() {
    let bed = Bed::new().await;
    let folder = tempfile::tempdir().unwrap();
    let mesh = FakeMesh::start(catalogue(9, 1)).await;
    let settings = bed.settings(folder.path(), mesh.url());
    let clock = Arc::new(SystemClock);
    let stores = open_stores(&settings, clock.clone()).await.unwrap();
    let bus = InProcessBus::new(stores.dead_letters.clone());
    let dependencies = Dependencies {
        events: Some(Arc::new(bus.clone())),
        workload: Some(workload(SERVICE)),
        stores: Some(stores.clone()),
        clock,
    };
    let service = Running::start(settings, dependencies).await;
    eventually("the service is ready", async || {
        equal(service.status("/readyz").await, StatusCode::OK)
    })
    .await;
    assert!(bus.publish(vec![view("anon:abcd", 5)]).await[0].is_ok());
    assert_eq!(service.trend().await, ["5"]);

    // The trend reads its spots from MongoDB, so the last response is served.
    bed.mongodb.close().await;
    eventually("similar spots are answered so", async || {
        equal(service.status(SIMILAR).await, StatusCode::SERVICE_UNAVAILABLE)
    })
    .await;
    assert_eq!(service.trend().await, ["5"]);
    let answer = service.answer(SIMILAR, "reader01").await;
    assert!(answer.headers().contains_key("retry-after"));
    let events: Vec<_> = (1..=9).map(|n| view("member01", n)).collect();
    let waiting = tokio::spawn({
        let bus = bus.clone();
        async move { bus.publish(events).await }
    });
    eventually("readiness says what is missing", async || {
        contains(service.unready().await, "waiting for mongodb at 127.0.0.1")
    })
    .await;
    bed.mongodb.open().await;
    let all = "/api/recommendations/personalized?k=100";
    eventually("the service is ready", async || equal(service.unready().await, READY)).await;
    assert!(waiting.await.unwrap().iter().all(Result::is_ok));
    assert!(service.ids(all, "member01").await.is_empty());
    assert_eq!(service.ids(all, "member02").await.len(), 9);
    assert_eq!(stores.dead_letters.count().await.unwrap(), 0);
    service.stop().await;
    bed.clear().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replicas_that_share_only_the_servers_give_the_same_answers() {
    let bed = Bed::new().await;
    let mesh = FakeMesh::start(catalogue(9, 1)).await;
    let folders = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let clock = Arc::new(SystemClock);
    let mut replicas = Vec::new();
    let mut bus = None;
    for folder in &folders {
        let settings = bed.settings(folder.path(), mesh.url());
        let stores = open_stores(&settings, clock.clone()).await.unwrap();
        let bus = bus.get_or_insert_with(|| InProcessBus::new(stores.dead_letters.clone())).clone();
        let dependencies = Dependencies {
            events: Some(Arc::new(bus)),
            workload: Some(workload(SERVICE)),
            stores: Some(stores),
            clock: clock.clone(),
        };
        replicas.push(Running::start(settings, dependencies).await);
    }
    for replica in &replicas {
        eventually("the replica is ready", async || equal(replica.unready().await, READY)).await;
    }
    let mut events: Vec<_> = (0..50).map(|n| view(&format!("member{n:02}"), 7)).collect();
    let bookmark = BookmarkTourspot { user_id: "member01".into(), tourspot_id: "5".into() };
    events.push(Outgoing::new(&bookmark, chrono::Utc::now()));
    assert!(bus.unwrap().publish(events).await.into_iter().all(|result| result.is_ok()));
    for replica in &replicas {
        assert_eq!(replica.trend().await, ["7", "5"]);
        let personal = replica.ids("/api/recommendations/personalized?k=9", "member01").await;
        assert_eq!(personal.len(), 7);
    }
    for replica in replicas {
        replica.stop().await;
    }
    bed.clear().await;
}
