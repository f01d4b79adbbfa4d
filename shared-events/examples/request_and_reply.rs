//! Request and reply: a service replies on a queue, and a requester waits for the reply with a time-out.
//!
//! Run it by `cargo run -p tourin-shared-events --example request_and_reply`. With `RabbitBus` in place of
//! `InProcessBus`, the two can be separate processes.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;
use tourin_shared_events::bus::Subscriber as _;
use tourin_shared_events::bus::in_process::InProcessBus;
use tourin_shared_events::consumer::{Consumer, HandlerError, Received};
use tourin_shared_events::dead_letters::SqliteDeadLetters;
use tourin_shared_events::messaging_patterns::{
    Commands, Message, ReplyPublisher, RequestError, RequestHandler, RequestSettings, Requests,
    Responder,
};
use tourin_shared_events::sqlite::Database;
use tourin_shared_events::system_clock;

/// Replies to requests for a distance.
struct Distances;

#[async_trait]
impl RequestHandler for Distances {
    async fn reply(&self, request: &Received) -> Result<Value, HandlerError> {
        match request.envelope.data["to"].as_str() {
            Some("경복궁") => Ok(json!({"km": 3})),
            // A refusal is a reply too. An error would be retried, and the requester would time out.
            _ => Ok(json!({"error": "unknown place"})),
        }
    }
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let folder = tempfile::tempdir()?;
    let database = Database::open(&folder.path().join("example.db"), 1).await?;
    let dead_letters = SqliteDeadLetters::open(database).await?;
    let bus = Arc::new(InProcessBus::new(Arc::new(dead_letters)));
    let stop = CancellationToken::new();

    let deliveries = bus.subscribe(Commands::subscription("distances")).await?;
    let replies = ReplyPublisher::new(bus.clone(), system_clock());
    let responder = Arc::new(Responder::new(Distances, replies));
    let consumer = Consumer::new("distances", deliveries, responder, system_clock());
    let responding = tokio::spawn(consumer.run(stop.clone()));

    let requests = Requests::open(bus, system_clock(), RequestSettings::default()).await?;
    let limit = Duration::from_secs(5);
    for (place, expected) in
        [("경복궁", json!({"km": 3})), ("서울숲", json!({"error": "unknown place"}))]
    {
        let question = Message::new("distance", json!({"to": place}));
        let reply = requests.request("distances", question, limit).await?;
        anyhow::ensure!(reply.envelope.data == expected, "{place}: {reply:?}");
    }

    // There is no queue of this name.
    let nowhere = requests.request("nowhere", Message::new("distance", json!({})), limit).await;
    anyhow::ensure!(matches!(nowhere, Err(RequestError::NotSent(_))), "{nowhere:?}");
    stop.cancel();
    responding.await?;
    Ok(())
}
