//! Clocks that are temporarily wrong. Core and recommendation run on their real stores, outbox and bus, by a
//! clock that the scenario sets.

use std::sync::Arc;
use std::time::Duration;

use chrono::{TimeDelta, Utc};
use tokio_util::sync::CancellationToken;
use tourin::up::UpSettings;
use tourin_chassis::clock::{Clock as _, ManualClock, SharedClock};
use tourin_chassis::config::MeshSettings;
use tourin_chassis::health::Health;
use tourin_chassis::pruning::CONFIRMING_PASSES;
use tourin_core::app::accounts::{Created, Credentials};
use tourin_core::app::bookmarks::{Bookmarks, Placed, Removed};
use tourin_core::app::passwords::PasswordHash;
use tourin_core::domain::account::{Account, Email, MemberId, Name};
use tourin_core::domain::spot::{RawSpot, SpotContent, SpotDraft, SpotId};
use tourin_core::domain::tag::{Tag, TagSet};
use tourin_core::store::Store;
use tourin_recommendation::app::ingest::{Guards, Ingest};
use tourin_recommendation::app::ports::TrendOutcome;
use tourin_recommendation::consumers;
use tourin_recommendation::domain::interaction::{ChangeOrder, Kind};
use tourin_recommendation::domain::spot::SpotId as KnownSpot;
use tourin_recommendation::servers::Prepared;
use tourin_recommendation::{Stores, open_stores};
use tourin_shared_events::bus::in_process::InProcessBus;
use tourin_shared_events::bus::rabbitmq::{RabbitBus, RabbitSettings};
use tourin_shared_events::bus::{Publisher, Subscriber};
use tourin_shared_events::consumer::ConsumerMetrics;
use tourin_shared_events::mysql::PoolSizes;
use tourin_shared_events::outbox::Relay;
use tourin_testbed::{equal, eventually};
use uuid::Uuid;

use crate::backends::{Backends, TIMEOUT};

const HANA: &str = "hana12345";
const SPOTS: i64 = 4;
const HOUR: TimeDelta = TimeDelta::hours(1);

/// Core's stores and recommendation's, with everything between them, by one clock.
struct Pair {
    clock: Arc<ManualClock>,
    core: Store,
    bookmarks: Bookmarks,
    stores: Stores,
    ingest: Ingest,
    guards: Guards,
    stop: CancellationToken,
    _folder: tempfile::TempDir,
    _backends: Backends,
}

impl Drop for Pair {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl Pair {
    async fn start() -> Self {
        let mut settings = UpSettings::ephemeral();
        let backends = Backends::create(&mut settings).await;
        let parts = settings.parts;
        let folder = tempfile::tempdir().unwrap();
        // It starts with the time of the servers' clocks.
        let clock = Arc::new(ManualClock::new(Utc::now()));
        let shared: SharedClock = clock.clone();
        let stop = CancellationToken::new();

        let core = match parts.core.database.mysql() {
            Some(url) => Store::Mysql(Store::open_mysql(url, PoolSizes::default()).await.unwrap()),
            None => Store::Sqlite(Store::open_sqlite(folder.path(), 2).await.unwrap()),
        };
        let drafts: Vec<_> = (1..=SPOTS).map(draft).collect();
        core.spots().upsert_batch(&drafts, clock.now()).await.unwrap();

        let mesh = MeshSettings::new("https://127.0.0.1:1");
        let listen = std::net::SocketAddr::from(([127, 0, 0, 1], 0));
        let mut known = tourin_recommendation::Settings::new(listen, folder.path(), mesh);
        known.servers = parts.recommendation.servers;
        let stores = open_stores(&known, shared.clone()).await.unwrap();
        for server in [&stores.trend_server, &stores.document_server].into_iter().flatten() {
            server.prepare().await.unwrap();
        }
        let ages = known.rules.ages();
        let (trend, histories) = (stores.trend.clone(), stores.histories.clone());
        let ingest = Ingest::new(trend, histories, stores.spots.clone(), shared.clone(), ages);
        let passes = (stores.trend_passes.clone(), stores.history_passes.clone());
        let guards = Guards::new(passes.0, passes.1, &shared);

        let (publisher, subscriber): (Arc<dyn Publisher>, Arc<dyn Subscriber>) =
            match parts.recommendation.broker.url() {
                Some(url) => {
                    let bus = RabbitBus::start(RabbitSettings::new(url.clone()));
                    (Arc::new(bus.clone()), Arc::new(bus))
                }
                None => {
                    let bus = InProcessBus::new(stores.dead_letters.clone());
                    (Arc::new(bus.clone()), Arc::new(bus))
                }
            };
        let health = Health::new();
        let (ahead, metrics) = (Duration::from_secs(300), ConsumerMetrics::default());
        for consumer in consumers::all(&ingest, ages, ahead, &guards, &metrics) {
            let ready = health.register(consumer.queue);
            let begin = Prepared::already();
            let running =
                consumer.run(subscriber.clone(), shared.clone(), ready, begin, stop.clone());
            tokio::spawn(running);
        }
        let ready = health.until(|unready| unready.is_empty());
        tokio::time::timeout(TIMEOUT, ready).await.expect("the consumers have subscribed");
        let time = clock.clone();
        let relay = Relay::new(core.outbox(), publisher, core.wake(), Arc::new(move || time.now()));
        tokio::spawn(relay.run(stop.clone()));

        let bookmarks = Bookmarks::new(core.bookmarks(), shared);
        let pair = Self {
            clock,
            core,
            bookmarks,
            stores,
            ingest,
            guards,
            stop,
            _folder: folder,
            _backends: backends,
        };
        pair.sign_up().await;
        pair
    }

    async fn sign_up(&self) {
        assert_eq!(self.try_sign_up().await, Created::Created);
    }

    async fn try_sign_up(&self) -> Created {
        let account = Account {
            id: MemberId::parse(HANA).unwrap(),
            name: Name::parse("김하나").unwrap(),
            email: Email::parse("hana@example.com").unwrap(),
        };
        let credentials = Credentials { account, hash: PasswordHash("hash".to_owned()) };
        self.core.accounts().create(&credentials, self.clock.now()).await.unwrap()
    }

    async fn delete_account(&self) {
        let (id, now) = (MemberId::parse(HANA).unwrap(), self.clock.now());
        let ended = self.core.accounts().delete(&id, now, now).await.unwrap();
        assert_eq!(ended, Some(Vec::new()));
    }

    async fn place(&self, spot: i64) {
        let placed = self.bookmarks.place(HANA, SpotId::new(spot)).await.unwrap();
        assert!(matches!(placed, Placed::Placed(_)), "{placed:?}");
    }

    async fn remove(&self, spot: i64) {
        let removed = self.bookmarks.remove(HANA, SpotId::new(spot)).await.unwrap();
        assert_eq!(removed, Removed::Removed);
    }

    /// Waits until recommendation knows exactly these of the member's bookmarks.
    async fn until_known(&self, spots: &[i64]) {
        let expected: Vec<_> = spots.iter().map(|spot| known(*spot)).collect();
        eventually(&format!("recommendation knows {expected:?}"), async || {
            let interactions = self.stores.histories.interactions(HANA, 100).await.unwrap();
            equal(interactions.bookmarked, expected.clone())
        })
        .await;
    }

    /// Sets the clock to the time of the servers' clocks, which always advance.
    fn correct(&self) {
        self.clock.advance(Utc::now() - self.clock.now());
    }

    /// Runs passes of pruning, 5 s apart. Returns how many were refused.
    async fn prune(&self, passes: u32) -> u64 {
        let before = self.refused();
        for _ in 0..passes {
            self.ingest.prune(&self.guards).await.unwrap();
            self.clock.advance(TimeDelta::seconds(5));
        }
        self.refused() - before
    }

    fn refused(&self) -> u64 {
        self.guards.trend.refused() + self.guards.histories.refused()
    }
}

fn known(spot: i64) -> KnownSpot {
    KnownSpot::new(spot).unwrap()
}

fn draft(id: i64) -> SpotDraft {
    let raw = RawSpot {
        name: format!("곳 {id}"),
        address: "서울".to_owned(),
        lat: 37.5,
        lng: 127.0,
        tags: TagSet::from_iter([Tag::History]),
        ..RawSpot::default()
    };
    SpotDraft { id: SpotId::new(id), content: SpotContent::new(raw).unwrap() }
}

// Several threads: dropping `Backends` blocks one, and tasks must still release connections.
#[tokio::test(flavor = "multi_thread")]
async fn a_bookmark_removed_after_a_clock_correction_stays_removed() {
    let pair = Pair::start().await;
    pair.clock.advance(HOUR);
    pair.place(1).await;
    pair.place(2).await;
    pair.until_known(&[1, 2]).await;
    pair.clock.advance(-HOUR);
    pair.remove(1).await;
    pair.until_known(&[2]).await;
    // A bookmark that is placed again exists again.
    pair.clock.advance(-HOUR);
    pair.place(1).await;
    pair.until_known(&[1, 2]).await;
    // The clock jumps ahead and back, without a wait for the effects.
    pair.clock.advance(HOUR);
    pair.remove(2).await;
    pair.clock.advance(-HOUR);
    pair.place(2).await;
    pair.remove(1).await;
    pair.until_known(&[2]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_account_that_a_clock_ahead_deleted_is_gone_and_its_id_stays_taken() {
    let pair = Pair::start().await;
    pair.clock.advance(HOUR);
    pair.place(1).await;
    pair.until_known(&[1]).await;
    pair.delete_account().await;
    pair.until_known(&[]).await;
    pair.clock.advance(-HOUR);
    assert_eq!(pair.try_sign_up().await, Created::Taken);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clock_that_is_weeks_ahead_for_a_minute_costs_neither_trend_nor_history() {
    let pair = Pair::start().await;
    pair.correct();
    pair.prune(CONFIRMING_PASSES + 1).await;
    assert_eq!(pair.prune(1).await, 0, "pruning continues");
    pair.correct();
    let view = Uuid::now_v7();
    let count = async |id: Uuid, subject: &str, spot: i64| {
        let now = ChangeOrder { at: pair.clock.now(), version: None };
        pair.ingest.count((id, now.at), subject, known(spot), Kind::View, now).await.unwrap()
    };
    assert_eq!(count(view, "member001", 1).await, TrendOutcome::Applied);
    assert_eq!(count(Uuid::now_v7(), "member002", 1).await, TrendOutcome::Applied);
    pair.place(3).await;
    pair.until_known(&[3]).await;
    pair.remove(3).await;
    pair.until_known(&[]).await;

    pair.clock.advance(TimeDelta::days(40));
    assert_eq!(pair.prune(3).await, 6, "both stores refuse each pass");
    assert_eq!(count(Uuid::now_v7(), "member003", 2).await, TrendOutcome::Applied);
    pair.clock.advance(-TimeDelta::days(40) - TimeDelta::seconds(15));

    let values = async || {
        let now = pair.clock.now();
        let top = pair.stores.trend.top(9, now).await.unwrap();
        top.iter().map(|r| (r.spot.number(), (r.value * 1_000.0).round())).collect::<Vec<_>>()
    };
    // A bookmark counts as two views. Events that were counted by the wrong clock count as of now.
    assert_eq!(values().await, [(1, 2_000.0), (3, 2_000.0), (2, 1_000.0)]);
    assert_eq!(count(view, "member001", 1).await, TrendOutcome::Duplicate);
    assert_eq!(count(Uuid::now_v7(), "member002", 1).await, TrendOutcome::AlreadyCounted);
    pair.correct();
    assert_eq!(pair.prune(1).await, 0, "the clock is right again");
    assert_eq!(values().await.len(), 3);
}
