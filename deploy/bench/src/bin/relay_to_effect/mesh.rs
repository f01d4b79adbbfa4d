//! Tourin's path: outbox, relay, bus, consumer, trend, all in this process except for the servers.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use chrono::Utc;
use tokio_util::sync::CancellationToken;
use tourin_bench::processor_time;
use tourin_chassis::clock::{SharedClock, SystemClock};
use tourin_chassis::config::MeshSettings;
use tourin_chassis::health::Health;
use tourin_recommendation::app::ingest::{Guards, Ingest};
use tourin_recommendation::servers::Prepared;
use tourin_recommendation::{consumers, open_stores};
use tourin_shared_events::bus::rabbitmq::{RabbitBus, RabbitSettings};
use tourin_shared_events::consumer::ConsumerMetrics;
use tourin_shared_events::events::{BookmarkTourspot, Outgoing};
use tourin_shared_events::mysql::{Database, PoolSizes};
use tourin_shared_events::outbox::{MysqlOutbox, OutboxStore, Relay, Wake, mysql};
use uuid::Uuid;

use super::{Figures, Settings};

const QUEUE: &str = "recommendation.trend";
/// Members of the traffic, and so ordering keys.
const MEMBERS: usize = 1_000;
const LIMIT: Duration = Duration::from_secs(300);

/// The event with this number. Each has a new pair of member and spot.
pub fn event(number: usize) -> Outgoing {
    let bookmark = BookmarkTourspot {
        user_id: format!("member{:04}", number % MEMBERS),
        tourspot_id: (1 + number / MEMBERS).to_string(),
    };
    Outgoing::new(&bookmark, Utc::now())
}

/// Fills an outbox with `events`, then has them relayed, consumed and counted. Returns the number of
/// commands that Redis was sent besides.
pub async fn measure(settings: &Settings) -> anyhow::Result<(Figures, u64)> {
    let events = settings.events;
    let name = format!("bench-{}.", Uuid::now_v7().simple());
    let clock: SharedClock = Arc::new(SystemClock);

    let database = Database::open(&settings.mysql_url, PoolSizes::default()).await?;
    let outbox = Arc::new(MysqlOutbox::open(database.clone()).await?);
    let waiting = outbox.depth().await?.pending;
    ensure!(waiting == 0, "the database's outbox has {waiting} events in it; name an empty one");

    let broker = RabbitSettings::new(settings.amqp_url.parse()?);
    let bus = RabbitBus::start(RabbitSettings { prefix: name.clone(), ..broker });

    // Histories and spots are in an embedded store and not used.
    let folder = tempfile::tempdir()?;
    let mesh = MeshSettings::new("https://127.0.0.1:1");
    let listen = std::net::SocketAddr::from(([127, 0, 0, 1], 0));
    let mut service = tourin_recommendation::Settings::new(listen, folder.path(), mesh);
    service.servers.redis_url = Some(settings.redis_url.clone().into());
    service.servers.recommendation_redis_prefix = name;
    let stores = open_stores(&service, clock.clone()).await?;
    let redis = stores.trend_server.clone().context("the trend is on a server")?;
    redis.prepare().await?;
    let ages = service.rules.ages();
    let guards = Guards::new(stores.trend_passes, stores.history_passes, &clock);
    let ingest = Ingest::new(stores.trend, stores.histories, stores.spots, clock.clone(), ages);
    let consumer = consumers::all(
        &ingest,
        ages,
        Duration::from_secs(300),
        &guards,
        &ConsumerMetrics::default(),
    )
    .into_iter()
    .find(|consumer| consumer.queue == QUEUE)
    .context("the trend has a consumer")?;
    let metrics = consumer.metrics.clone();
    let stop = CancellationToken::new();
    let health = Health::new();
    let subscribed = health.register("bus");
    let consuming = tokio::spawn(consumer.run(
        Arc::new(bus.clone()),
        clock,
        subscribed,
        Prepared::already(),
        stop.clone(),
    ));
    let ready = async {
        while !health.unready().is_empty() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(LIMIT, ready).await.context("the consumer does not come up")?;

    for first in (0..events).step_by(1_000) {
        let batch: Vec<_> = (first..events.min(first + 1_000)).map(event).collect();
        let mut transaction = database.write().await?;
        mysql::append(&mut transaction, &batch, Utc::now()).await?;
        transaction.commit().await?;
    }

    let (before, commands) = (processor_time()?, redis.engine().commands());
    let start = Instant::now();
    let relay = Relay::new(outbox, Arc::new(bus.clone()), Wake::new(), Arc::new(Utc::now));
    let relaying = tokio::spawn(relay.run(stop.clone()));
    let counted = async {
        while metrics.applied.get() < events as u64 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(LIMIT, counted).await.context("not every event has had its effect")?;
    let took = start.elapsed();
    let processor_time = processor_time()? - before;
    let commands = redis.engine().commands() - commands;

    stop.cancel();
    relaying.await?;
    consuming.await?;
    bus.close(Duration::from_secs(2)).await;
    Ok((Figures { took, processor_time, events }, commands))
}
