//! Tests beyond the port's contract: key names, lifetimes, a server that is lost.

use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use futures::future::join_all;
use redis::AsyncCommands as _;
use redis::aio::MultiplexedConnection;
use tokio::io::AsyncReadExt as _;
use tourin_chassis::clock::ManualClock;
use tourin_chassis::pruning::PassLog as _;
use uuid::Uuid;

use super::OnRedis;
use crate::app::ports::{PortError, TrendEvent, TrendOutcome, TrendStore};
use crate::domain::interaction::{ChangeOrder, Kind};
use crate::domain::spot::SpotId;
use crate::domain::trend::TrendRules;
use crate::operation::StoreMetrics;
use crate::test_servers;
use tourin_chassis::redis::RedisUrl;

fn start() -> DateTime<Utc> {
    DateTime::from_timestamp(1_800_000_000, 0).unwrap()
}

fn at(seconds: i64) -> DateTime<Utc> {
    start() + TimeDelta::seconds(seconds)
}

fn moment(seconds: i64) -> ChangeOrder {
    ChangeOrder { at: at(seconds), version: None }
}

fn view(subject: &str, seconds: i64) -> TrendEvent {
    TrendEvent {
        event_id: Uuid::now_v7(),
        subject: subject.to_owned(),
        spot: SpotId::new(1).unwrap(),
        kind: Kind::View,
        occurred: moment(seconds),
        recorded_at: at(seconds.max(0)),
        remember_until: at(seconds) + TimeDelta::hours(25),
    }
}

/// A trend on the test bed's Redis under its own prefix, with direct access to its keys.
struct Bench {
    trend: Arc<dyn TrendStore>,
    prefix: String,
    connection: MultiplexedConnection,
}

impl Bench {
    async fn new() -> Self {
        let prefix = test_servers::unique();
        let url = test_servers::redis();
        let clock = Arc::new(ManualClock::new(start()));
        let OnRedis { trend, server, .. } =
            super::open(&url, &prefix, TrendRules::default(), clock, &StoreMetrics::default())
                .unwrap();
        server.prepare().await.unwrap();
        let client = redis::Client::open(test_servers::redis_with_all_rights().expose()).unwrap();
        let connection = client.get_multiplexed_async_connection().await.unwrap();
        Self { trend, prefix, connection }
    }

    async fn keys(&mut self, middle: &str) -> Vec<String> {
        let pattern = format!("{}:{{trend}}:{middle}*", self.prefix);
        let mut keys = Vec::new();
        let mut found = self.connection.scan_match::<_, String>(pattern).await.unwrap();
        while let Some(key) = found.next_item().await {
            keys.push(key.unwrap());
        }
        keys.sort();
        keys.dedup();
        keys
    }

    async fn ttl(&mut self, middle: &str) -> Duration {
        let keys = self.keys(middle).await;
        assert_eq!(keys.len(), 1, "{keys:?}");
        let millis: i64 = self.connection.pttl(&keys[0]).await.unwrap();
        Duration::from_millis(u64::try_from(millis).expect("it expires"))
    }
}

const HOUR: Duration = Duration::from_secs(3_600);
const MOMENT: Duration = Duration::from_secs(30);

fn assert_about(ttl: Duration, expected: Duration) {
    assert!(ttl <= expected && ttl > expected - MOMENT, "{ttl:?} is not {expected:?}");
}

#[tokio::test]
async fn keys_live_as_long_as_their_events_can_be_redelivered_and_share_one_slot() {
    let mut bench = Bench::new().await;
    // Braces in an id must not move a key to another slot.
    let first = view("member{1}", 0);
    bench.trend.record(&first).await.unwrap();
    assert_about(bench.ttl("seen:").await, 25 * HOUR);
    // The maximum age, the window and the margin.
    assert_about(bench.ttl("counted:").await, 26 * HOUR);

    // An older event with an id of the same minute does not shorten the lifetime.
    let older = TrendEvent { event_id: first.event_id, ..view("member{1}", -7_200) };
    let next_id = Uuid::from_u128(older.event_id.as_u128() + 1);
    bench.trend.record(&TrendEvent { event_id: next_id, ..older }).await.unwrap();
    assert_about(bench.ttl("seen:").await, 25 * HOUR);
    assert_about(bench.ttl("counted:").await, 26 * HOUR);

    bench.trend.forget("member{1}", moment(0), at(25 * 3_600)).await.unwrap();
    assert_about(bench.ttl("forgotten:").await, 25 * HOUR);
    assert!(bench.keys("counted:").await.is_empty());

    let mut slots = Vec::new();
    for key in bench.keys("").await {
        let tag = key.split_once('{').and_then(|(_, rest)| rest.split_once('}')).unwrap().0;
        slots.push(tag.to_owned());
    }
    assert!(slots.len() >= 4 && slots.iter().all(|slot| slot == "trend"), "{slots:?}");
}

#[tokio::test]
async fn forgetting_a_person_keeps_later_counts_of_the_same_day() {
    let mut bench = Bench::new().await;
    bench.trend.record(&view("member1", -90_000)).await.unwrap();
    bench.trend.record(&view("member1", 0)).await.unwrap();
    bench.trend.record(&view("member1", 7_200)).await.unwrap();
    bench.trend.forget("member1", moment(60), at(90_000)).await.unwrap();
    assert_eq!(bench.keys("counted:").await.len(), 1);
    // The later count is still known.
    let again = bench.trend.record(&view("member1", 7_300)).await.unwrap();
    assert_eq!(again, TrendOutcome::AlreadyCounted);
}

/// An older version stored no `seen`, and times without versions.
#[tokio::test]
async fn data_of_an_older_version_is_read_and_is_earlier_than_versioned_data() {
    let mut bench = Bench::new().await;
    bench.trend.record(&view("member1", 0)).await.unwrap();
    let state = bench.keys("state").await.remove(0);
    let _: () = bench.connection.hdel(&state, "seen").await.unwrap();
    let forgotten = state.replace("state", "forgotten:member2");
    let ahead = (start() + TimeDelta::days(1)).timestamp_micros();
    let _: () = bench.connection.set(&forgotten, ahead).await.unwrap();
    let top = bench.trend.top(9, at(1)).await.unwrap();
    assert_eq!(top.len(), 1);
    let old = bench.trend.record(&view("member2", 1)).await.unwrap();
    assert_eq!(old, TrendOutcome::AlreadyCounted);
    let occurred = ChangeOrder { version: Some(1), ..moment(1) };
    let new = bench.trend.record(&TrendEvent { occurred, ..view("member2", 1) }).await.unwrap();
    assert_eq!(new, TrendOutcome::Applied);
    let top = bench.trend.top(9, at(1)).await.unwrap();
    assert!((top[0].value - 2.0).abs() < 1e-3, "{top:?}");
}

#[tokio::test]
async fn passes_are_stored_and_the_servers_time_is_read() {
    let connection =
        super::connection::Connection::new(&test_servers::redis(), &StoreMetrics::default())
            .unwrap();
    let key = format!("{}:passes", test_servers::unique());
    let passes = super::passes::RedisPasses::new(connection, key);
    let before = passes.times("things").await.unwrap();
    assert_eq!(before.last_pass, None);
    let apart = Utc::now() - before.server.unwrap();
    assert!(apart.abs() < TimeDelta::seconds(10), "{apart}");
    passes.passed("things", at(7)).await.unwrap();
    assert_eq!(passes.times("things").await.unwrap().last_pass, Some(at(7)));
    assert_eq!(passes.times("others").await.unwrap().last_pass, None);
}

#[tokio::test]
async fn a_redis_that_was_emptied_starts_anew() {
    let mut bench = Bench::new().await;
    bench.trend.record(&view("member1", 0)).await.unwrap();
    for key in bench.keys("").await {
        let _: () = bench.connection.del(key).await.unwrap();
    }
    assert!(bench.trend.top(9, at(0)).await.unwrap().is_empty());
    assert_eq!(bench.trend.record(&view("member1", 1)).await.unwrap(), TrendOutcome::Applied);
    let top = bench.trend.top(9, at(1)).await.unwrap();
    assert!((top[0].value - 1.0).abs() < 1e-9);
}

#[tokio::test]
async fn an_unreachable_server_is_unavailable_at_once_and_its_password_is_not_repeated() {
    let url: RedisUrl = "redis://user:hunter2@127.0.0.1:1".parse().unwrap();
    let clock = Arc::new(ManualClock::new(start()));
    let OnRedis { trend, server, .. } =
        super::open(&url, "test", TrendRules::default(), clock, &StoreMetrics::default()).unwrap();
    assert_eq!(server.address(), "127.0.0.1:1");
    let began = std::time::Instant::now();
    let error = trend.top(1, start()).await.unwrap_err();
    assert!(began.elapsed() < Duration::from_secs(10));
    assert!(matches!(error, PortError::Unavailable(_)), "{error}");
    assert!(!format!("{error} {error:?}").contains("hunter2"));
}

#[tokio::test]
async fn events_at_once_share_round_trips() {
    let prefix = test_servers::unique();
    let clock = Arc::new(ManualClock::new(start()));
    let OnRedis { trend, server, .. } = super::open(
        &test_servers::redis(),
        &prefix,
        TrendRules::default(),
        clock,
        &StoreMetrics::default(),
    )
    .unwrap();
    server.prepare().await.unwrap();
    let events: Vec<_> = (0..1_000).map(|n| view(&format!("member{n}"), n)).collect();
    let before = server.engine().commands();
    let outcomes = join_all(events.iter().map(|event| trend.record(event))).await;
    assert!(outcomes.into_iter().all(|counted| counted.unwrap() == TrendOutcome::Applied));
    let round_trips = server.engine().commands() - before;
    println!("1,000 events: {round_trips} round trips");
    // tokio lets a task run for 128 steps at a time. So many events form a group if the server has
    // finished the previous group by then. With a slower server the groups are larger.
    assert!(round_trips <= 10, "{round_trips}");

    // Two events of one window in one group count once, and both ids are known afterwards.
    let twice = [view("another", 0), view("another", 1)];
    let outcomes = join_all(twice.iter().chain(&twice).map(|event| trend.record(event))).await;
    let outcomes: Vec<TrendOutcome> = outcomes.into_iter().map(Result::unwrap).collect();
    assert_eq!(
        outcomes,
        [
            TrendOutcome::Applied,
            TrendOutcome::AlreadyCounted,
            TrendOutcome::Duplicate,
            TrendOutcome::Duplicate
        ]
    );
}

#[tokio::test]
async fn a_tls_url_connects_with_tls() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("rediss://user:hunter2@{}", listener.local_addr().unwrap());
    let clock = Arc::new(ManualClock::new(start()));
    let OnRedis { trend, .. } = super::open(
        &url.parse().unwrap(),
        "test",
        TrendRules::default(),
        clock,
        &StoreMetrics::default(),
    )
    .unwrap();
    let reading = tokio::spawn(async move { trend.top(1, start()).await });
    let (mut client, _) = listener.accept().await.unwrap();
    let mut first = [0; 1];
    client.read_exact(&mut first).await.unwrap();
    assert_eq!(first[0], test_servers::TLS_HANDSHAKE);
    drop((client, listener));
    let error = reading.await.unwrap().unwrap_err();
    assert!(matches!(error, PortError::Unavailable(_)), "{error}");
}
