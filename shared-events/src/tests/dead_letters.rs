use std::sync::Arc;

use bytes::Bytes;
use chrono::Utc;
use uuid::Uuid;

use super::{database, soon};
use crate::bus::contract::{users, view};
use crate::bus::in_process::InProcessBus;
use crate::bus::{Publisher as _, Settlement, Subscriber as _};
use crate::dead_letters::{
    DeadLetter, DeadLetterStore as _, MemoryDeadLetters, Route, Settled, SqliteDeadLetters,
    contract,
};

fn letter() -> DeadLetter {
    let body = Bytes::from_static(b"{}");
    let event = Some(Uuid::now_v7());
    DeadLetter::new(
        "q",
        event,
        Route { routing_key: "a.b".to_owned(), ..Route::default() },
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
        // The same letter makes no new record, so it must not push an older one out.
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

#[tokio::test]
async fn a_replay_asked_for_by_another_process_is_carried_out_after_a_restart() {
    let (database, folder) = database().await;
    let store = Arc::new(SqliteDeadLetters::open(database.clone()).await.unwrap());
    let bus = InProcessBus::new(store.clone());
    let mut deliveries = bus.subscribe(users("q")).await.unwrap();
    let event = view("a", 1);
    let publishing = tokio::spawn({
        let (bus, event) = (bus.clone(), event.clone());
        async move { bus.publish(vec![event]).await }
    });
    let delivery = soon(deliveries.next()).await.unwrap();
    let reason = "broken".to_owned();
    delivery.settle(Settlement::DeadLetter { reason }).await.unwrap();
    assert_eq!(soon(publishing).await.unwrap(), [Ok(())]);
    drop(deliveries);
    bus.close();

    // Another process, on the same file, marks it while there is no subscriber.
    let path = folder.path().join("test.db");
    let other = crate::sqlite::Database::open(&path, 1).await.unwrap();
    let other = SqliteDeadLetters::open(other).await.unwrap();
    let id = other.list(10, None).await.unwrap()[0].id;
    assert_eq!(other.replay(&[id]).await.unwrap(), [Settled::Accepted]);
    assert!(other.get(id).await.unwrap().unwrap().replay_requested);

    // The next subscriber dies while holding the event, which is not lost.
    let bus = InProcessBus::new(store.clone());
    let mut deliveries = bus.subscribe(users("q")).await.unwrap();
    let again = soon(deliveries.next()).await.unwrap();
    assert_eq!(again.body, event.envelope.encode());
    drop((again, deliveries, bus));
    assert_eq!(store.count().await.unwrap(), 1);
    let bus = InProcessBus::new(store.clone());
    let mut deliveries = bus.subscribe(users("q")).await.unwrap();
    let again = soon(deliveries.next()).await.unwrap();
    again.settle(Settlement::Ack).await.unwrap();
    assert_eq!(other.count().await.unwrap(), 0);
}

#[tokio::test]
async fn letters_that_were_discarded_make_room_for_others() {
    let (database, _folder) = database().await;
    let store = SqliteDeadLetters::with_capacity(database, 3).await.unwrap();
    let letters: Vec<DeadLetter> = (0..5).map(|_| letter()).collect();
    for letter in &letters[..3] {
        store.put(letter.clone()).await.unwrap();
    }
    assert_eq!(store.discard(&[letters[1].id]).await.unwrap(), [Settled::Done]);
    store.put(letters[3].clone()).await.unwrap();
    assert_eq!(store.count().await.unwrap(), 3);
    store.put(letters[4].clone()).await.unwrap();
    let kept: Vec<Uuid> = store.list(10, None).await.unwrap().iter().map(|l| l.id).collect();
    assert_eq!(kept, [letters[4].id, letters[3].id, letters[2].id]);
}
