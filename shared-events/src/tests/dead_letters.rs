use bytes::Bytes;
use chrono::Utc;
use uuid::Uuid;

use super::database;
use crate::dead_letters::{
    DeadLetter, DeadLetterStore as _, MemoryDeadLetters, SqliteDeadLetters, contract,
};

fn letter() -> DeadLetter {
    let body = Bytes::from_static(b"{}");
    let event = Some(Uuid::now_v7());
    DeadLetter::new(
        "q",
        event,
        "a.b",
        "broken".to_owned(),
        1,
        &body,
        Default::default(),
        Utc::now(),
    )
}

#[tokio::test]
async fn sqlite_keeps_the_contract() {
    let mut folders = Vec::new();
    contract::all(async || {
        let (database, folder) = database().await;
        folders.push(folder);
        SqliteDeadLetters::open(database).await.unwrap()
    })
    .await;
}

#[tokio::test]
async fn memory_keeps_the_contract() {
    contract::all(async || MemoryDeadLetters::default()).await;
}

#[tokio::test]
async fn beyond_the_capacity_the_oldest_are_dropped() {
    let (database, _folder) = database().await;
    let store = SqliteDeadLetters::with_capacity(database, 3).await.unwrap();
    let letters: Vec<DeadLetter> = (0..5).map(|_| letter()).collect();
    for letter in &letters {
        store.put(letter.clone()).await.unwrap();
        // The same again makes no new record, so it must not push an older one out either.
        store.put(DeadLetter { id: Uuid::now_v7(), ..letter.clone() }).await.unwrap();
    }
    let kept: Vec<Uuid> = store.list(10, None).await.unwrap().iter().map(|l| l.id).collect();
    assert_eq!(kept, [letters[4].id, letters[3].id, letters[2].id]);
}

#[tokio::test]
async fn they_are_still_there_after_a_restart() {
    let (database, folder) = database().await;
    let sent = letter();
    SqliteDeadLetters::open(database.clone()).await.unwrap().put(sent.clone()).await.unwrap();
    database.close().await;
    let path = folder.path().join("test.db");
    let reopened = crate::sqlite::Database::open(&path, 1).await.unwrap();
    let store = SqliteDeadLetters::open(reopened).await.unwrap();
    let kept = store.list(10, None).await.unwrap();
    assert_eq!(kept.iter().map(|l| l.id).collect::<Vec<_>>(), [sent.id]);
}
