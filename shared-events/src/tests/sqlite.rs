use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use sqlx::Row as _;

use super::{database, soon};
use crate::sqlite::{Database, Migration, create_private_folder, is_unreachable, refusal};

const STEP: Migration = Migration {
    version: 1,
    description: "notes",
    sql: "CREATE TABLE notes (id INTEGER PRIMARY KEY, text TEXT NOT NULL);
          INSERT INTO notes (text) VALUES ('first');",
};
const SECOND_STEP: Migration = Migration {
    version: 2,
    description: "authors",
    sql: "ALTER TABLE notes ADD COLUMN author TEXT;",
};

async fn notes(database: &Database) -> i64 {
    sqlx::query_scalar("SELECT count(*) FROM notes").fetch_one(database.reader()).await.unwrap()
}

#[tokio::test]
async fn commits_are_durable_and_readers_do_not_write() {
    let (database, _folder) = database().await;
    let mut transaction = database.write().await.unwrap();
    let pragma = async |name: &'static str, connection: &mut sqlx::SqliteConnection| {
        let row = sqlx::query(name).fetch_one(connection).await.unwrap();
        row.try_get::<i64, _>(0).map_or_else(|_| row.get::<String, _>(0), |n| n.to_string())
    };
    assert_eq!(pragma("PRAGMA synchronous", &mut transaction).await, "2", "FULL");
    assert_eq!(pragma("PRAGMA journal_mode", &mut transaction).await, "wal");
    assert_eq!(pragma("PRAGMA foreign_keys", &mut transaction).await, "1");
    assert_eq!(pragma("PRAGMA busy_timeout", &mut transaction).await, "5000");
    transaction.rollback().await.unwrap();
    let refused = sqlx::query("CREATE TABLE t (a)").execute(database.reader()).await;
    assert!(refused.unwrap_err().to_string().contains("readonly"));
}

#[tokio::test]
async fn a_transaction_that_is_dropped_leaves_nothing_behind() {
    let (database, _folder) = database().await;
    database.migrate(&[STEP], "steps").await.unwrap();
    let mut transaction = database.write().await.unwrap();
    sqlx::query("DELETE FROM notes").execute(&mut *transaction).await.unwrap();
    drop(transaction);
    assert_eq!(notes(&database).await, 1);
    soon(database.write()).await.unwrap().commit().await.unwrap();
}

#[tokio::test]
async fn readers_go_on_while_someone_writes() {
    let (database, _folder) = database().await;
    database.migrate(&[STEP], "steps").await.unwrap();
    let mut transaction = database.write().await.unwrap();
    sqlx::query("DELETE FROM notes").execute(&mut *transaction).await.unwrap();
    assert_eq!(soon(notes(&database)).await, 1);
    transaction.commit().await.unwrap();
    assert_eq!(notes(&database).await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn processes_that_migrate_at_once_do_not_collide() {
    let (one, _folder) = database().await;
    let two = Database::open(one.path(), 1).await.unwrap();
    let steps = [STEP, SECOND_STEP];
    let (first, second) = tokio::join!(one.migrate(&steps, "steps"), two.migrate(&steps, "steps"));
    first.unwrap();
    second.unwrap();
    assert_eq!(notes(&two).await, 1, "the step ran once");
}

#[tokio::test]
async fn a_step_that_fails_leaves_the_schema_as_it_was() {
    let (database, _folder) = database().await;
    let broken = Migration { version: 2, description: "broken", sql: "CREATE TABLE x (;" };
    database.migrate(&[STEP, broken], "steps").await.unwrap_err();
    database.migrate(&[STEP, SECOND_STEP], "steps").await.unwrap();
    assert_eq!(notes(&database).await, 1);
}

#[tokio::test]
async fn history_that_was_changed_or_is_newer_is_refused() {
    let (database, _folder) = database().await;
    database.migrate(&[STEP, SECOND_STEP], "steps").await.unwrap();
    let changed = Migration { sql: "CREATE TABLE other (a);", ..STEP };
    database.migrate(&[changed, SECOND_STEP], "steps").await.unwrap_err();
    let older = database.migrate(&[STEP], "steps").await.unwrap_err();
    assert!(format!("{older:#}").contains("test.db"), "{older:#}");
    database.migrate(&[STEP, SECOND_STEP], "steps").await.unwrap();
}

#[tokio::test]
async fn a_file_that_cannot_be_opened_is_named() {
    let (_, folder) = database().await;
    let path = folder.path().join("missing").join("file.db");
    let error = Database::open(&path, 1).await.unwrap_err();
    assert!(format!("{error:#}").contains("missing/file.db"), "{error:#}");
}

#[tokio::test]
async fn created_files_are_readable_by_their_owner_only() {
    let mode = |path: &Path| path.metadata().unwrap().permissions().mode() & 0o777;
    let place = tempfile::tempdir().unwrap();
    let folder = place.path().join("data").join("tourin");
    create_private_folder(&folder).unwrap();
    create_private_folder(&folder).unwrap();
    assert_eq!(mode(&folder), 0o700);
    assert_eq!(mode(&place.path().join("data")), 0o700);

    let database = Database::open(&folder.join("test.db"), 1).await.unwrap();
    database.migrate(&[STEP], "steps").await.unwrap();
    for file in ["test.db", "test.db-wal", "test.db-shm"] {
        assert_eq!(mode(&folder.join(file)), 0o600, "{file}");
    }
    // Opening it again does not create it again.
    let again = Database::open(&folder.join("test.db"), 1).await.unwrap();
    assert_eq!(notes(&again).await, 1);
}

#[tokio::test]
async fn a_transaction_that_the_engine_ended_by_itself_does_not_stop_the_next() {
    let folder = tempfile::tempdir().unwrap();
    let database = Database::open(&folder.path().join("a.db"), 1).await.unwrap();
    for _ in 0..3 {
        let mut transaction = database.write().await.unwrap();
        // SQLite does this by itself when the disk is full.
        sqlx::query("ROLLBACK").execute(&mut *transaction).await.unwrap();
        assert!(transaction.commit().await.is_err());
    }
    let mut transaction = database.write().await.expect("a new one begins");
    sqlx::query("CREATE TABLE t (x INTEGER)").execute(&mut *transaction).await.unwrap();
    transaction.commit().await.unwrap();
}

#[test]
fn a_folder_is_held_by_one_of_a_kind() {
    let folder = tempfile::tempdir().unwrap();
    let first = crate::sqlite::hold_folder(folder.path(), "core").unwrap();
    let refused = crate::sqlite::hold_folder(folder.path(), "core").unwrap_err();
    assert_eq!(refused.kind(), std::io::ErrorKind::WouldBlock);
    let _other = crate::sqlite::hold_folder(folder.path(), "recommendation").unwrap();
    drop(first);
    crate::sqlite::hold_folder(folder.path(), "core").unwrap();
}

#[tokio::test]
async fn a_full_disk_is_named_and_writes_work_again_with_free_space() {
    let folder = tempfile::tempdir().unwrap();
    let db = Database::open(&folder.path().join("some.db"), 1).await.unwrap();
    db.prepare_probe().await.unwrap();
    db.prepare_probe().await.unwrap();
    db.write_probe().await.unwrap();
    let pages = async |most: &'static str| {
        let mut connection = db.writer().acquire().await.unwrap();
        sqlx::query(most).execute(&mut *connection).await.unwrap();
    };
    let mut setup = db.write().await.unwrap();
    sqlx::query("DELETE FROM write_probe").execute(&mut *setup).await.unwrap();
    setup.commit().await.unwrap();
    sqlx::query("VACUUM").execute(db.writer()).await.unwrap();
    pages("PRAGMA max_page_count = 1").await;
    let error = db.write_probe().await.unwrap_err();
    assert_eq!(refusal(&error).as_deref(), Some("disk full"), "{error}");
    assert!(is_unreachable(&error));
    pages("PRAGMA max_page_count = 1000000").await;
    db.write_probe().await.unwrap();
}
