//! Following an outbox over HTTP.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use axum::Router;
use axum::extract::Query;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse as _, Response};
use axum::routing::get;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::outbox::Outbox;
use super::{eventually, soon};
use crate::backoff::Backoff;
use crate::bus::contract::{self, BusFixture, users, view, who_and_what};
use crate::bus::feed::contract::{MemoryCursors, keeps_the_last_cursor_of_each_queue};
use crate::bus::feed::*;
use crate::bus::{Deliveries, Settlement, Subscriber};
use crate::dead_letters::{DeadLetterStore, MemoryDeadLetters};
use crate::events::Outgoing;
use crate::outbox::contract::OutboxFixture as _;
use crate::outbox::{Feed, FeedPage, OutboxStore as _, PruneLimits, Wake};
use crate::system_clock;

#[derive(serde::Deserialize)]
struct Asked {
    after: u64,
    limit: u32,
    wait_ms: u64,
}

/// What the server answers with instead of a page.
#[derive(Clone, Debug)]
enum Instead {
    Status(StatusCode),
    Body(String),
    LogId(String),
}

/// A service with an outbox and the endpoint that serves it.
pub(super) struct Service {
    pub(super) outbox: Outbox,
    wake: Wake,
    instead: Arc<Mutex<Option<Instead>>>,
    pub(super) base_url: String,
    _server: JoinSet<()>,
}

impl Service {
    pub(super) async fn start() -> Self {
        let outbox = Outbox::new().await;
        let wake = Wake::new();
        let feed =
            Feed::new(Arc::new(outbox.store.clone()), wake.clone(), CancellationToken::new());
        let instead: Arc<Mutex<Option<Instead>>> = Arc::default();
        let answer = {
            let instead = instead.clone();
            async move |Query(asked): Query<Asked>, headers: HeaderMap| -> Response {
                assert_eq!(headers["x-caller"], "follower");
                let wait = Duration::from_millis(asked.wait_ms);
                let page = feed.page(asked.after, asked.limit, wait).await.unwrap();
                let instead = instead.lock().unwrap().clone();
                let answer = |page: &FeedPage| serde_json::to_string(page).unwrap();
                match instead {
                    None => answer(&page).into_response(),
                    Some(Instead::Status(status)) => status.into_response(),
                    Some(Instead::Body(body)) => body.into_response(),
                    Some(Instead::LogId(log_id)) => {
                        answer(&FeedPage { log_id, ..page }).into_response()
                    }
                }
            }
        };
        let router = Router::new().route("/internal/events", get(answer));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let base_url = format!("http://{}", listener.local_addr().unwrap());
        let mut server = JoinSet::new();
        server.spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self { outbox, wake, instead, base_url, _server: server }
    }

    pub(super) async fn send(&self, events: &[Outgoing]) {
        self.outbox.append_now(events).await;
        self.wake.notify();
    }

    fn answer(&self, instead: Option<Instead>) {
        *self.instead.lock().unwrap() = instead;
    }
}

pub(super) struct Fixed(pub(super) String);

#[async_trait]
impl Endpoint for Fixed {
    async fn resolve(&self) -> anyhow::Result<Target> {
        let mut headers = HeaderMap::new();
        headers.insert("x-caller", "follower".parse()?);
        Ok(Target { base_url: self.0.clone(), headers })
    }
}

struct Fixture {
    service: Service,
    cursors: Arc<MemoryCursors>,
    dead_letters: Arc<MemoryDeadLetters>,
    follower: FeedSubscriber,
}

impl Fixture {
    async fn new() -> Self {
        let settings = FeedSettings {
            // Below the wait between tests' events, so that pages come and go.
            wait: Duration::from_millis(200),
            save_interval: Duration::from_millis(10),
            backoff: Backoff {
                base: Duration::from_millis(2),
                max: Duration::from_millis(20),
                jitter: 0.5,
            },
            ..FeedSettings::default()
        };
        Self::with_settings(settings).await
    }

    async fn with_settings(settings: FeedSettings) -> Self {
        let service = Service::start().await;
        let cursors = Arc::new(MemoryCursors::default());
        let dead_letters = Arc::new(MemoryDeadLetters::default());
        let endpoint = Arc::new(Fixed(service.base_url.clone()));
        let follower = FeedSubscriber::new(
            endpoint,
            cursors.clone(),
            dead_letters.clone(),
            system_clock(),
            settings,
        );
        Self { service, cursors, dead_letters, follower: follower.unwrap() }
    }

    async fn follow(&self) -> Deliveries {
        self.follower.subscribe(users("q")).await.unwrap()
    }

    async fn cursor(&self) -> u64 {
        self.cursors.load("q").await.unwrap().map_or(0, |cursor| cursor.seq)
    }

    fn stats(&self) -> FeedSnapshot {
        self.follower.stats().snapshot()
    }
}

async fn ack_next(deliveries: &mut Deliveries) -> String {
    let delivery = soon(deliveries.next()).await.unwrap();
    let (_, number) = who_and_what(&delivery);
    delivery.settle(Settlement::Ack).await.unwrap();
    number
}

#[async_trait]
impl BusFixture for Fixture {
    async fn send(&self, events: Vec<Outgoing>) {
        self.service.send(&events).await;
    }

    async fn declare(&self, _: crate::bus::Subscription) {}

    fn subscriber(&self) -> &dyn Subscriber {
        &self.follower
    }

    fn dead_letters(&self) -> &dyn DeadLetterStore {
        &*self.dead_letters
    }
}

#[tokio::test]
async fn the_feed_keeps_the_contract() {
    contract::all(Fixture::new).await;
}

#[tokio::test]
async fn cursors_in_memory_keep_the_contract() {
    keeps_the_last_cursor_of_each_queue(&MemoryCursors::default()).await;
}

#[tokio::test]
async fn the_cursor_moves_over_settled_events_only() {
    let fixture = Fixture::new().await;
    fixture.service.send(&[view("a", 1), view("b", 2), view("c", 3)]).await;
    let mut deliveries = fixture.follow().await;
    let first = soon(deliveries.next()).await.unwrap();
    assert_eq!(ack_next(&mut deliveries).await, "2");
    assert_eq!(ack_next(&mut deliveries).await, "3");
    // The process dies with the first in hand.
    deliveries.close().await;
    assert_eq!(fixture.cursor().await, 0);
    drop(first);
    let mut deliveries = fixture.follow().await;
    for number in ["1", "2", "3"] {
        assert_eq!(ack_next(&mut deliveries).await, number);
    }
    // Saved by and by while it is followed, not only at the end.
    let saved = eventually(async || match fixture.cursor().await {
        3 => Ok(()),
        other => Err(other),
    });
    tokio::select! {
        () = saved => {}
        delivery = deliveries.next() => panic!("{delivery:?}"),
    }
}

#[tokio::test]
async fn more_than_a_page_and_more_than_the_buffer_get_through_in_order() {
    let settings = FeedSettings { page_events: 7, max_buffered: 10, ..FeedSettings::default() };
    let fixture = Fixture::with_settings(settings).await;
    let events: Vec<Outgoing> = (0..100).map(|n| view("a", n)).collect();
    fixture.service.send(&events).await;
    let mut deliveries = fixture.follow().await;
    for n in 0..100 {
        assert_eq!(ack_next(&mut deliveries).await, n.to_string());
    }
    deliveries.close().await;
    assert_eq!(fixture.cursor().await, 100);
}

#[tokio::test]
async fn a_service_that_fails_is_asked_again_until_it_answers() {
    let fixture = Fixture::new().await;
    fixture.service.send(&[view("a", 1)]).await;
    let mut deliveries = fixture.follow().await;
    let failures = [
        Instead::Status(StatusCode::SERVICE_UNAVAILABLE),
        Instead::Status(StatusCode::TEMPORARY_REDIRECT),
        Instead::Body("not a page".to_owned()),
        Instead::Body("x".repeat(FeedSettings::default().max_response_bytes + 1)),
    ];
    for failure in failures {
        let before = fixture.stats().failures;
        fixture.service.answer(Some(failure));
        let failed = eventually(async || match fixture.stats().failures - before {
            0 | 1 => Err("not yet failed"),
            _ => Ok(()),
        });
        tokio::select! {
            () = failed => {}
            delivery = deliveries.next() => panic!("{delivery:?}"),
        }
    }
    fixture.service.answer(None);
    assert_eq!(ack_next(&mut deliveries).await, "1");
}

#[tokio::test]
async fn another_log_is_read_from_its_start() {
    let fixture = Fixture::new().await;
    fixture.service.send(&[view("a", 1), view("a", 2)]).await;
    let mut deliveries = fixture.follow().await;
    assert_eq!(ack_next(&mut deliveries).await, "1");
    assert_eq!(ack_next(&mut deliveries).await, "2");
    fixture.service.answer(Some(Instead::LogId("another".to_owned())));
    // The same events, for the same service answers; to the follower they are another log's.
    assert_eq!(ack_next(&mut deliveries).await, "1");
    assert_eq!(ack_next(&mut deliveries).await, "2");
    assert_eq!(fixture.stats().restarts, 1);
    deliveries.close().await;
    let cursor = fixture.cursors.load("q").await.unwrap().unwrap();
    assert_eq!(cursor, Cursor { log_id: "another".to_owned(), seq: 2 });
}

#[tokio::test]
async fn a_log_that_was_set_back_is_read_from_its_start() {
    let fixture = Fixture::new().await;
    fixture.service.send(&[view("a", 1)]).await;
    let log_id = fixture.service.outbox.store.page_after(0, 1).await.unwrap().log_id;
    fixture.cursors.save("q", &Cursor { log_id, seq: 70 }).await.unwrap();
    let mut deliveries = fixture.follow().await;
    assert_eq!(ack_next(&mut deliveries).await, "1");
    assert_eq!(fixture.stats().restarts, 1);
    deliveries.close().await;
    assert_eq!(fixture.cursor().await, 1);
}

#[tokio::test]
async fn events_that_were_deleted_unread_are_noticed() {
    let fixture = Fixture::new().await;
    let now = chrono::Utc::now();
    fixture.service.outbox.append(&[view("a", 1), view("a", 2)], now).await;
    let limits = PruneLimits { recorded_until: Some(now), rows: 1, ..PruneLimits::default() };
    fixture.service.outbox.store.prune(&limits).await.unwrap();
    let mut deliveries = fixture.follow().await;
    assert_eq!(ack_next(&mut deliveries).await, "2");
    assert_eq!(fixture.stats().gaps, 1);
}
