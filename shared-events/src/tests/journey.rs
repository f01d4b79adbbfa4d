//! End to end: outbox, relay, bus, consumer, an effect in another database; with crashes in between.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use async_trait::async_trait;
use tokio::task::JoinSet;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::outbox::Outbox;
use super::{database, eventually, soon};
use crate::bus::Subscriber as _;
use crate::bus::contract::{users, view};
use crate::bus::in_process::InProcessBus;
use crate::consumer::{Consumer, Handler, HandlerError, Outcome, Received};
use crate::dead_letters::MemoryDeadLetters;
use crate::events::ViewTourspot;
use crate::outbox::{OutboxStore as _, Relay, RelaySettings, Wake};
use crate::sqlite::{Database, Migration};
use crate::system_clock;

const EFFECTS: &[Migration] = &[Migration {
    version: 1,
    description: "effects",
    sql:
        "CREATE TABLE seen (event_id TEXT PRIMARY KEY) WITHOUT ROWID;
          CREATE TABLE effects (number INTEGER PRIMARY KEY AUTOINCREMENT, user_id TEXT, spot TEXT);",
}];

/// Commits the effect and the event's id together.
struct Effects(Database);

impl Effects {
    async fn apply(&self, event: &Received, view: &ViewTourspot) -> anyhow::Result<Outcome> {
        let mut transaction = self.0.write().await?;
        let fresh = sqlx::query("INSERT OR IGNORE INTO seen VALUES (?)")
            .bind(event.envelope.id.to_string())
            .execute(&mut *transaction)
            .await?;
        if fresh.rows_affected() == 0 {
            return Ok(Outcome::Duplicate);
        }
        sqlx::query("INSERT INTO effects (user_id, spot) VALUES (?, ?)")
            .bind(&view.user_id)
            .bind(&view.tourspot_id)
            .execute(&mut *transaction)
            .await?;
        transaction.commit().await.context("the effect")?;
        Ok(Outcome::Applied)
    }
}

#[async_trait]
impl Handler for Effects {
    async fn handle(&self, event: &Received) -> Result<Outcome, HandlerError> {
        let view: ViewTourspot = event.data()?;
        Ok(self.apply(event, &view).await?)
    }
}

/// One life of the process: a relay, a bus and three replicas of the consumer. Dropping it is a crash.
async fn live(outbox: &Outbox, effects: &Database, wake: &Wake) -> JoinSet<()> {
    let bus = InProcessBus::new(Arc::new(MemoryDeadLetters::default()));
    let mut tasks = JoinSet::new();
    for _ in 0..3 {
        let deliveries = bus.subscribe(users("effects")).await.unwrap();
        let handler = Arc::new(Effects(effects.clone()));
        let consumer = Consumer::new("effects", deliveries, handler, system_clock());
        tasks.spawn(consumer.run(CancellationToken::new()));
    }
    let settings = RelaySettings { lease: Duration::from_millis(20), ..RelaySettings::default() };
    let store = Arc::new(outbox.store.clone());
    let relay =
        Relay::new(store, Arc::new(bus), wake.clone(), system_clock()).with_settings(settings);
    tasks.spawn(relay.run(CancellationToken::new()));
    tasks
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_event_takes_effect_once_and_in_order_whatever_dies() {
    let outbox = Outbox::new().await;
    let (effects, _folder) = database().await;
    effects.migrate(EFFECTS, "effects_migrations").await.unwrap();
    let wake = Wake::new();
    let writing = async {
        for n in 0..60 {
            let events: Vec<_> = (0..4).map(|user| view(&format!("user{user}"), n)).collect();
            outbox.append_now(&events).await;
            wake.notify();
        }
    };
    let dying = async {
        for life in 0..6_u64 {
            let tasks = live(&outbox, &effects, &wake).await;
            sleep(Duration::from_millis(7 + 11 * life)).await;
            drop(tasks);
        }
        let last_life = live(&outbox, &effects, &wake).await;
        eventually("all events are marked", async || match outbox.store.depth().await.unwrap() {
            depth if depth.pending == 0 => Ok(()),
            depth => Err(depth),
        })
        .await;
        drop(last_life);
    };
    soon(async { tokio::join!(writing, dying) }).await;
    each_took_effect_once_and_in_order(&effects).await;
}

/// Sixty events of each of four users.
async fn each_took_effect_once_and_in_order(effects: &Database) {
    let applied: Vec<(String, String)> =
        sqlx::query_as("SELECT user_id, spot FROM effects ORDER BY number")
            .fetch_all(effects.reader())
            .await
            .unwrap();
    assert_eq!(applied.len(), 240);
    for user in 0..4 {
        let user = format!("user{user}");
        let spots: Vec<&str> =
            applied.iter().filter(|(who, _)| *who == user).map(|(_, spot)| spot.as_str()).collect();
        let expected: Vec<String> = (0..60).map(|n: u32| n.to_string()).collect();
        assert_eq!(spots, expected, "{user}");
    }
}
