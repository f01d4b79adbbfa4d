//! Publish and consume: a change commits with its event, a relay publishes the event, and a consumer applies it once.
//!
//! Run it by `cargo run -p tourin-shared-events --example publish_and_consume`. All of it runs in this process. With
//! `RabbitBus` in place of `InProcessBus`, publisher and consumer can be separate processes.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use async_trait::async_trait;
use chrono::Utc;
use tokio_util::sync::CancellationToken;
use tourin_shared_events::bus::in_process::InProcessBus;
use tourin_shared_events::bus::{Binding, Subscriber as _, Subscription};
use tourin_shared_events::consumer::{Consumer, Handler, HandlerError, Outcome, Received};
use tourin_shared_events::dead_letters::SqliteDeadLetters;
use tourin_shared_events::events::{Event as _, Outgoing, USER_EXCHANGE, ViewTourspot};
use tourin_shared_events::outbox::{Relay, SqliteOutbox, Wake, sqlite};
use tourin_shared_events::sqlite::{Database, Migration};
use tourin_shared_events::system_clock;

const TABLES: &[Migration] = &[Migration {
    version: 1,
    description: "views by spot, and the events that were counted",
    sql: "CREATE TABLE views (spot TEXT PRIMARY KEY, count INTEGER NOT NULL);
          CREATE TABLE counted (event_id TEXT PRIMARY KEY) WITHOUT ROWID;",
}];

/// Counts views.
struct CountViews(Database);

impl CountViews {
    /// Commits the effect and the event's id together: a repeated delivery changes nothing.
    async fn count(&self, event: &Received, view: &ViewTourspot) -> anyhow::Result<Outcome> {
        let mut transaction = self.0.write().await?;
        let is_new = sqlx::query("INSERT OR IGNORE INTO counted VALUES (?)")
            .bind(event.envelope.id.to_string())
            .execute(&mut *transaction)
            .await?;
        if is_new.rows_affected() == 0 {
            return Ok(Outcome::Duplicate);
        }
        sqlx::query("INSERT INTO views VALUES (?, 1) ON CONFLICT DO UPDATE SET count = count + 1")
            .bind(&view.tourspot_id)
            .execute(&mut *transaction)
            .await?;
        transaction.commit().await?;
        Ok(Outcome::Applied)
    }
}

#[async_trait]
impl Handler for CountViews {
    async fn handle(&self, event: &Received) -> Result<Outcome, HandlerError> {
        // An invalid payload becomes a dead letter; a database error is retried.
        let view: ViewTourspot = event.data()?;
        Ok(self.count(event, &view).await?)
    }
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let folder = tempfile::tempdir()?;
    let database = Database::open(&folder.path().join("example.db"), 2).await?;
    database.migrate(TABLES, "example_migrations").await?;
    let dead_letters = SqliteDeadLetters::open(database.clone()).await?;
    let outbox = SqliteOutbox::open(database.clone()).await?;
    let (wake, stop) = (Wake::new(), CancellationToken::new());

    // Declare queues before the first publisher: an event goes to the queues that exist.
    let bus = InProcessBus::new(Arc::new(dead_letters));
    let bindings = vec![Binding::new(USER_EXCHANGE, ViewTourspot::TYPE)];
    let deliveries = bus.subscribe(Subscription::new("views", bindings)).await?;
    let handler = Arc::new(CountViews(database.clone()));
    let consumer = Consumer::new("views", deliveries, handler, system_clock());
    let metrics = consumer.metrics();
    let consuming = tokio::spawn(consumer.run(stop.clone()));
    let relay = Relay::new(Arc::new(outbox), Arc::new(bus), wake.clone(), system_clock());
    let relaying = tokio::spawn(relay.run(stop.clone()));

    // The service's own change would be in the same transaction.
    let view = ViewTourspot { user_id: "hana12345".to_owned(), tourspot_id: "1".to_owned() };
    let mut transaction = database.write().await?;
    let now = Utc::now();
    sqlite::append(&mut transaction, &[Outgoing::new(&view, now)], now).await?;
    transaction.commit().await?;
    wake.notify();

    let applied = async {
        while metrics.applied.get() == 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), applied).await.context("nothing was counted")?;
    let count: i64 = sqlx::query_scalar("SELECT count FROM views WHERE spot = '1'")
        .fetch_one(database.reader())
        .await?;
    anyhow::ensure!(count == 1, "spot 1 was viewed {count} times");
    stop.cancel();
    relaying.await?;
    consuming.await?;
    Ok(())
}
