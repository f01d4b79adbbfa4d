//! The outbox in SQLite, and the pruner over it.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use chrono::{DateTime, TimeDelta, Utc};
use tempfile::TempDir;

use super::{database, statements_after_a_restore};
use crate::bus::contract::view;
use crate::events::Outgoing;
use crate::outbox::contract::{self, OutboxFixture};
use crate::outbox::sqlite::append;
use crate::outbox::testing::recorded;
use crate::outbox::{OutboxStore, Pruner, SHARDS, Shard, SqliteOutbox, shard_of};
use crate::sqlite::Database;
use crate::unchecked;

const HOUR: Duration = Duration::from_secs(3_600);

pub(super) struct Outbox {
    pub(super) database: Database,
    pub(super) store: SqliteOutbox,
    pub(super) folder: Arc<TempDir>,
}

impl Outbox {
    pub(super) async fn new() -> Self {
        let (database, folder) = database().await;
        let store = SqliteOutbox::open(database.clone()).await.unwrap();
        Self { database, store, folder }
    }

    pub(super) async fn append_now(&self, events: &[Outgoing]) {
        self.append(events, Utc::now()).await;
    }
}

#[async_trait]
impl OutboxFixture for Outbox {
    async fn appended(
        &self,
        events: &[Outgoing],
        recorded_at: DateTime<Utc>,
    ) -> anyhow::Result<()> {
        let mut transaction = self.database.write().await?;
        append(&mut transaction, events, recorded_at).await?;
        Ok(transaction.commit().await?)
    }

    fn store(&self) -> &dyn OutboxStore {
        &self.store
    }

    fn shared(&self) -> Arc<dyn OutboxStore> {
        Arc::new(self.store.clone())
    }
}

#[tokio::test]
async fn sqlite_keeps_the_contract() {
    contract::all(Outbox::new).await;
}

#[tokio::test]
async fn events_of_a_transaction_that_is_rolled_back_never_were() {
    let outbox = Outbox::new().await;
    let mut transaction = outbox.database.write().await.unwrap();
    append(&mut transaction, &[view("a", 1)], Utc::now()).await.unwrap();
    transaction.rollback().await.unwrap();
    assert!(outbox.store.pending(&[shard_of("a")], 0, 10).await.unwrap().is_empty());
    assert!(recorded(&outbox.store).await.is_empty());
}

#[tokio::test]
async fn another_database_is_another_log_and_the_same_one_stays_the_same() {
    let one = Outbox::new().await;
    let two = Outbox::new().await;
    let log_id = async |store: &SqliteOutbox| store.log_id().await.unwrap();
    assert_ne!(log_id(&one.store).await, log_id(&two.store).await);
    let reopened = Database::open(&one.folder.path().join("test.db"), 1).await.unwrap();
    let reopened = SqliteOutbox::open(reopened).await.unwrap();
    assert_eq!(log_id(&one.store).await, log_id(&reopened).await);
}

#[tokio::test]
async fn polling_and_pruning_walk_an_index_and_not_the_table() {
    let outbox = Outbox::new().await;
    let plan = async |sql: &'static str| -> String {
        let rows: Vec<(i64, i64, i64, String)> =
            sqlx::query_as(sql).fetch_all(outbox.database.reader()).await.unwrap();
        rows.into_iter().map(|row| row.3).collect::<Vec<_>>().join("; ")
    };
    let pending = plan(
        "EXPLAIN QUERY PLAN SELECT * FROM outbox INDEXED BY outbox_pending
         WHERE published_at IS NULL AND rejected_at IS NULL AND seq > 5 AND seq <= 9 AND shard IN (1, 2)
         ORDER BY seq LIMIT 3",
    )
    .await;
    assert!(pending.contains("outbox_pending") && !pending.contains("TEMP B-TREE"), "{pending}");
    let published = plan(
        "EXPLAIN QUERY PLAN SELECT seq FROM outbox INDEXED BY outbox_published
         WHERE published_at IS NOT NULL AND published_at <= 5 ORDER BY published_at LIMIT 3",
    )
    .await;
    assert!(
        published.starts_with("SEARCH") && published.contains("outbox_published"),
        "{published}"
    );
}

#[tokio::test]
async fn events_confirmed_long_ago_are_pruned() {
    let now = Utc::now();
    let old = now - TimeDelta::hours(2);
    let pruned = async |retention: Duration| {
        let outbox = Outbox::new().await;
        // Two old events, the first of them confirmed long ago; two new events, the first of them confirmed just now.
        outbox.append(&[view("a", 1), view("a", 2)], old).await;
        outbox.append(&[view("a", 3), view("a", 4)], now).await;
        outbox.store.mark_published(&[1], old).await.unwrap();
        outbox.store.mark_published(&[3], now).await.unwrap();
        let clock: crate::Clock = Arc::new(move || now);
        let pruner = Pruner::new(Arc::new(outbox.store.clone()), retention, unchecked(clock));
        let rows = pruner.prune().await.unwrap();
        let left = recorded(&outbox.store).await;
        assert_eq!(4 - left.len() as u64, rows);
        left.into_iter().map(|(stored, _)| stored.seq).collect::<Vec<_>>()
    };
    assert_eq!(pruned(HOUR).await, [2, 3, 4]);
    assert_eq!(pruned(3 * HOUR).await, [1, 2, 3, 4]);
    assert_eq!(pruned(Duration::ZERO).await, [2, 4]);
    assert_eq!(pruned(Duration::MAX).await, [1, 2, 3, 4]);
}

#[tokio::test]
async fn many_old_rows_are_pruned_in_steps() {
    let outbox = Outbox::new().await;
    let events: Vec<Outgoing> = (0..4_500).map(|n| view("a", n)).collect();
    let old = Utc::now() - TimeDelta::hours(2);
    outbox.append(&events, old).await;
    outbox.store.mark_published(&(1..=4_500).collect::<Vec<_>>(), old).await.unwrap();
    let store = Arc::new(outbox.store.clone());
    let pruner = Pruner::new(store, HOUR, unchecked(crate::system_clock()));
    assert_eq!(pruner.prune().await.unwrap(), 4_500);
    assert!(recorded(&outbox.store).await.is_empty());
}

#[tokio::test]
async fn after_a_copy_was_restored_new_versions_are_above_all_of_before() {
    let outbox = Outbox::new().await;
    outbox.append_now(&[view("a", 1)]).await;
    let version =
        async |store: &SqliteOutbox| recorded(store).await[0].1.envelope.version().unwrap();
    let before = (outbox.store.log_id().await.unwrap(), version(&outbox.store).await);
    let mut transaction = outbox.database.write().await.unwrap();
    // The database is a minute old.
    sqlx::query("UPDATE outbox_versions SET base = base - 60000000")
        .execute(&mut *transaction)
        .await
        .unwrap();
    for statement in statements_after_a_restore("SQLite") {
        sqlx::query(statement).execute(&mut *transaction).await.unwrap();
    }
    transaction.commit().await.unwrap();
    let store = SqliteOutbox::open(outbox.database.clone()).await.unwrap();
    assert_ne!(store.log_id().await.unwrap(), before.0);
    assert!(version(&store).await >= before.1, "as if it had been made just now");
}

#[tokio::test]
async fn nothing_is_pruned_while_the_clock_is_not_to_be_trusted() {
    let outbox = Outbox::new().await;
    let old = Utc::now() - TimeDelta::days(40);
    outbox.append(&[view("a", 1), view("a", 2)], old).await;
    outbox.store.mark_published(&[1, 2], old).await.unwrap();
    let store = Arc::new(outbox.store.clone());
    let doubtful: crate::PassTime = Arc::new(|| Box::pin(async { Ok(None) }));
    let pruner = Pruner::new(store.clone(), HOUR, doubtful);
    assert_eq!(pruner.prune().await.unwrap(), 0);
    assert_eq!(recorded(&outbox.store).await.len(), 2);
    let pruner = Pruner::new(store, HOUR, unchecked(crate::system_clock()));
    assert_eq!(pruner.prune().await.unwrap(), 2);
}

#[tokio::test]
async fn rows_of_an_older_version_are_kept_and_get_their_shards() {
    use crate::outbox::sqlite::{MIGRATIONS, MIGRATIONS_TABLE};
    let (database, _folder) = database().await;
    database.migrate(&MIGRATIONS[..1], MIGRATIONS_TABLE).await.unwrap();
    let mut transaction = database.write().await.unwrap();
    for n in 0..300 {
        let event = view(&format!("user{n}"), n);
        sqlx::query("INSERT INTO outbox VALUES (NULL, ?, ?, 7, ?, ?, ?, ?, '{}', 8, NULL)")
            .bind(event.envelope.id.to_string())
            .bind(&event.routing_key)
            .bind(event.envelope.data.to_string())
            .bind(&event.exchange)
            .bind(&event.routing_key)
            .bind(&event.ordering_key)
            .execute(&mut *transaction)
            .await
            .unwrap();
    }
    sqlx::query("UPDATE outbox_state SET holder = 'someone', held_until = 9, pruned = 0")
        .execute(&mut *transaction)
        .await
        .unwrap();
    transaction.commit().await.unwrap();
    let log_id: String = sqlx::query_scalar("SELECT log_id FROM outbox_state")
        .fetch_one(database.reader())
        .await
        .unwrap();
    for _ in 0..2 {
        let store = SqliteOutbox::open(database.clone()).await.unwrap();
        assert_eq!(store.log_id().await.unwrap(), log_id);
        let shards: Vec<Shard> = (0..SHARDS).collect();
        let pending = store.pending(&shards, 0, 1_000).await.unwrap();
        assert_eq!(pending.len(), 300);
        for row in pending {
            assert_eq!(row.shard, shard_of(&row.event.ordering_key));
            assert_eq!(row.event.envelope.version(), None, "from before there were versions");
        }
    }
    let store = SqliteOutbox::open(database.clone()).await.unwrap();
    let mut transaction = database.write().await.unwrap();
    append(&mut transaction, &[view("user1", 300)], Utc::now()).await.unwrap();
    transaction.commit().await.unwrap();
    let new = store.pending(&[shard_of("user1")], 300, 10).await.unwrap();
    assert!(new[0].event.envelope.version().is_some());
}
