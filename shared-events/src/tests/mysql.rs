//! The outbox and the schema's history on a real server.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use tokio::time::sleep;

use super::{soon, statements_after_a_restore};
use crate::bus::contract::view;
use crate::events::Outgoing;
use crate::mysql::testing::TestDatabase;
use crate::mysql::{Database, Migration, PoolSizes};
use crate::outbox::contract::{self, OutboxFixture};
use crate::outbox::mysql::append;
use crate::outbox::testing::recorded;
use crate::outbox::{MysqlOutbox, OutboxStore, SHARDS, Shard, shard_of};
use crate::system_clock;

const ALL_SHARDS: [Shard; SHARDS as usize] = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15];

struct Outbox {
    home: TestDatabase,
    database: Database,
    store: MysqlOutbox,
}

impl Outbox {
    async fn new() -> Self {
        let home = TestDatabase::create().await;
        let database = Database::open(home.url(), PoolSizes::default()).await.unwrap();
        let store = MysqlOutbox::open(database.clone()).await.unwrap();
        Self { home, database, store }
    }

    async fn remove(self) {
        self.database.close().await;
        self.home.remove().await;
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
async fn mysql_keeps_the_contract() {
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
    outbox.remove().await;
}

#[tokio::test]
async fn rows_from_before_there_were_versions_leave_without_one() {
    use crate::outbox::mysql::{MIGRATIONS, MIGRATIONS_TABLE};
    let home = TestDatabase::create().await;
    let database = Database::open(home.url(), PoolSizes::default()).await.unwrap();
    database.migrate(&MIGRATIONS[..1], MIGRATIONS_TABLE).await.unwrap();
    let appended = async |number| {
        let mut transaction = database.write().await.unwrap();
        append(&mut transaction, &[view("a", number)], Utc::now()).await.unwrap();
        transaction.commit().await.unwrap();
    };
    appended(1).await;
    let store = MysqlOutbox::open(database.clone()).await.unwrap();
    appended(2).await;
    // Opening it again changes nothing.
    for store in [store, MysqlOutbox::open(database.clone()).await.unwrap()] {
        let pending = store.pending(&[shard_of("a")], 0, 10).await.unwrap();
        let versions: Vec<_> = pending.iter().map(|row| row.event.envelope.version()).collect();
        assert!(matches!(versions[..], [None, Some(_)]), "{versions:?}");
    }
    home.remove().await;
}

#[tokio::test]
async fn after_a_copy_was_restored_new_versions_are_above_all_of_before() {
    let outbox = Outbox::new().await;
    outbox.append(&[view("a", 1)], Utc::now()).await;
    let version = async |store: &MysqlOutbox| {
        let pending = store.pending(&[shard_of("a")], 0, 10).await.unwrap();
        pending[0].event.envelope.version().unwrap()
    };
    let ago = sqlx::query("UPDATE outbox_versions SET base = base - 60000000");
    ago.execute(outbox.database.writer()).await.unwrap();
    let copied = MysqlOutbox::open(outbox.database.clone()).await.unwrap();
    for statement in statements_after_a_restore("MySQL") {
        sqlx::query(statement).execute(outbox.database.writer()).await.unwrap();
    }
    let restored = MysqlOutbox::open(outbox.database.clone()).await.unwrap();
    assert!(version(&restored).await > version(&copied).await + 50_000_000);
    outbox.remove().await;
}

/// Also with many old published events.
#[tokio::test]
async fn a_new_subscriber_gets_the_backlog_at_once() {
    let outbox = Outbox::new().await;
    let at = system_clock()();
    let views = |count: u32| (0..count).map(|number| view("traveller", number));
    for _ in 0..10 {
        outbox.appended(&views(1_000).collect::<Vec<_>>(), at).await.unwrap();
    }
    outbox.store.mark_published(&(1..=10_000).collect::<Vec<_>>(), at).await.unwrap();
    outbox.appended(&views(1).collect::<Vec<_>>(), at).await.unwrap();

    let started = MysqlOutbox::open(outbox.database.clone()).await.unwrap();
    let waiting = started.pending(&ALL_SHARDS, 0, 10).await.unwrap();
    assert_eq!(waiting.iter().map(|pending| pending.seq).collect::<Vec<_>>(), [10_001]);
    outbox.remove().await;
}

#[tokio::test]
async fn a_relay_passes_no_number_that_is_still_to_be_committed() {
    let outbox = Outbox::new().await;
    let mut slow = outbox.database.write().await.unwrap();
    append(&mut slow, &[view("slow", 1)], Utc::now()).await.unwrap();
    // A higher number, committed before.
    outbox.append(&[view("fast", 2)], Utc::now()).await;
    let store = outbox.store.clone();
    let reader = tokio::spawn(async move { store.pending(&ALL_SHARDS, 0, 10).await });
    sleep(Duration::from_millis(200)).await;
    assert!(!reader.is_finished(), "the reader waits for the lower number");
    slow.commit().await.unwrap();
    let pending = soon(reader).await.unwrap().unwrap();
    let keys: Vec<_> = pending.iter().map(|row| row.event.ordering_key.as_str()).collect();
    assert_eq!(keys, ["slow", "fast"]);
    outbox.remove().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_misses_no_concurrent_append() {
    let outbox = Arc::new(Outbox::new().await);
    let writers: Vec<_> = (0..8_u32)
        .map(|writer| {
            let outbox = outbox.clone();
            tokio::spawn(async move {
                for n in 0..40 {
                    let events = [view(&format!("w{writer}"), n)];
                    let mut transaction = outbox.database.write().await.unwrap();
                    append(&mut transaction, &events, Utc::now()).await.unwrap();
                    if n % 10 == 9 {
                        transaction.rollback().await.unwrap();
                    } else {
                        transaction.commit().await.unwrap();
                    }
                }
            })
        })
        .collect();
    let mut read: Vec<u64> = Vec::new();
    while read.len() < 8 * 36 {
        let after = read.last().copied().unwrap_or(0);
        let pending = soon(outbox.store.pending(&ALL_SHARDS, after, 7)).await.unwrap();
        read.extend(pending.into_iter().map(|row| row.seq));
    }
    for writer in writers {
        writer.await.unwrap();
    }
    assert!(read.is_sorted_by(|a, b| a < b));
    assert_eq!(outbox.store.depth().await.unwrap().pending, 8 * 36);
    Arc::try_unwrap(outbox).ok().expect("all have ended").remove().await;
}

const STEP: Migration = Migration {
    version: 1,
    description: "notes",
    sql: "CREATE TABLE IF NOT EXISTS notes (id BIGINT NOT NULL PRIMARY KEY, text TEXT NOT NULL);
          INSERT IGNORE INTO notes (id, text) VALUES (1, 'first; with a semicolon');",
};
const SECOND_STEP: Migration = Migration {
    version: 2,
    description: "authors",
    sql: "CREATE TABLE IF NOT EXISTS authors (id BIGINT NOT NULL PRIMARY KEY);",
};

async fn notes(database: &Database) -> i64 {
    sqlx::query_scalar("SELECT COUNT(*) FROM notes").fetch_one(database.reader()).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn processes_that_migrate_at_once_do_not_collide() {
    let home = TestDatabase::create().await;
    let steps = [STEP, SECOND_STEP];
    let all = (0..6).map(|_| async {
        let database = Database::open(home.url(), PoolSizes::default()).await.unwrap();
        database.migrate(&steps, "steps").await.unwrap();
        database
    });
    let all = futures::future::join_all(all).await;
    assert_eq!(notes(&all[0]).await, 1);
    home.remove().await;
}

#[tokio::test]
async fn a_step_that_broke_off_is_done_again() {
    let home = TestDatabase::create().await;
    let database = Database::open(home.url(), PoolSizes::default()).await.unwrap();
    let broken = Migration {
        sql: "CREATE TABLE IF NOT EXISTS authors (id BIGINT NOT NULL PRIMARY KEY);
              INSERT INTO nowhere VALUES (1);",
        ..SECOND_STEP
    };
    let error = database.migrate(&[STEP, broken], "steps").await.unwrap_err();
    assert!(format!("{error:#}").contains("step 2 (authors)"), "{error:#}");
    database.migrate(&[STEP, SECOND_STEP], "steps").await.unwrap();
    let changed = Migration { sql: "CREATE TABLE other (a INT);", ..STEP };
    database.migrate(&[changed, SECOND_STEP], "steps").await.unwrap_err();
    let older = database.migrate(&[STEP], "steps").await.unwrap_err();
    assert!(format!("{older:#}").contains("newer version"), "{older:#}");
    assert_eq!(notes(&database).await, 1);
    home.remove().await;
}

#[tokio::test]
async fn readers_do_not_write_and_a_snapshot_stays_as_it_is() {
    let home = TestDatabase::create().await;
    let database = Database::open(home.url(), PoolSizes::default()).await.unwrap();
    database.migrate(&[STEP], "steps").await.unwrap();
    let refused = sqlx::query("DELETE FROM notes").execute(database.reader()).await;
    assert!(refused.unwrap_err().to_string().contains("READ ONLY"));
    let mut snapshot = database.snapshot().await.unwrap();
    let mut transaction = database.write().await.unwrap();
    sqlx::query("DELETE FROM notes").execute(&mut *transaction).await.unwrap();
    transaction.commit().await.unwrap();
    assert_eq!(notes(&database).await, 0);
    let before: i64 =
        sqlx::query_scalar("SELECT COUNT(*) FROM notes").fetch_one(&mut *snapshot).await.unwrap();
    assert_eq!(before, 1);
    // `transaction_isolation` on MySQL, `tx_isolation` on MariaDB.
    let (_, level): (String, String) = sqlx::query_as("SHOW SESSION VARIABLES LIKE 't%isolation'")
        .fetch_one(database.writer())
        .await
        .unwrap();
    assert_eq!(level, "READ-COMMITTED");
    drop(snapshot);
    home.remove().await;
}

#[tokio::test]
async fn a_wrong_password_is_refused_at_once_and_never_logged() {
    let home = TestDatabase::create().await;
    let url = home.url_through(&TestDatabase::authority());
    assert_eq!(url.to_string(), home.url().to_string());
    let text = format!("mysql://nobody:s3cr3t-word@{}/none", TestDatabase::authority());
    let wrong = text.parse().unwrap();
    let error = soon(Database::open(&wrong, PoolSizes::default())).await.unwrap_err();
    let error = format!("{error:#}");
    assert!(error.contains("cannot use the database") && !error.contains("s3cr3t"), "{error}");
    home.remove().await;
}
