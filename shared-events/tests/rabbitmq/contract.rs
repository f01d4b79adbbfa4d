//! What every bus must do.

use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use tourin_shared_events::bus::contract::{self, BusFixture};
use tourin_shared_events::bus::rabbitmq::{RabbitBus, RabbitDeadLetters};
use tourin_shared_events::bus::{PublishError, Publisher as _, Subscriber, Subscription};
use tourin_shared_events::dead_letters::{self, DeadLetterStore};
use tourin_shared_events::events::Outgoing;
use tourin_shared_events::messaging_patterns;

use crate::bed::Bed;

const QUEUES: [&str; 3] = ["q", "one", "two"];

struct Fixture {
    bus: RabbitBus,
    dead_letters: Arc<RabbitDeadLetters>,
}

#[async_trait]
impl BusFixture for Fixture {
    async fn send(&self, events: Vec<Outgoing>) {
        for result in self.bus.publish(events).await {
            assert!(matches!(result, Ok(()) | Err(PublishError::Unroutable)), "{result:?}");
        }
    }

    async fn declare(&self, subscription: Subscription) {
        self.bus.subscribe(subscription).await.expect("a queue").close().await;
    }

    fn subscriber(&self) -> &dyn Subscriber {
        &self.bus
    }

    fn dead_letters(&self) -> &dyn DeadLetterStore {
        &*self.dead_letters
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_rabbitmq_bus_carries_replies() {
    let beds = Mutex::new(Vec::new());
    messaging_patterns::contract::all(async || {
        let bed = Bed::new();
        let bus = Arc::new(bed.bus());
        beds.lock().unwrap().push(bed);
        bus
    })
    .await;
    for bed in beds.into_inner().unwrap() {
        bed.clear(&messaging_patterns::contract::QUEUES).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dead_letters_on_rabbitmq_keep_the_contract() {
    let beds = Mutex::new(Vec::new());
    dead_letters::contract::all(async || {
        let bed = Bed::new();
        let bus = bed.bus();
        beds.lock().unwrap().push(bed);
        let queues = ["q", "another"];
        for queue in queues {
            // Creates the queues of dead letters.
            bus.subscribe(contract::users(queue)).await.unwrap().close().await;
        }
        let store = RabbitDeadLetters::new(bus, queues.map(str::to_owned).to_vec());
        Arc::into_inner(store).expect("nobody else has it")
    })
    .await;
    for bed in beds.into_inner().unwrap() {
        bed.clear(&["q", "another"]).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_bus_on_rabbitmq_keeps_the_contract() {
    let beds = Mutex::new(Vec::new());
    contract::all(async || {
        let bed = Bed::new();
        let bus = bed.bus();
        beds.lock().unwrap().push(bed);
        let dead_letters = RabbitDeadLetters::new(bus.clone(), QUEUES.map(str::to_owned).to_vec());
        Fixture { bus, dead_letters }
    })
    .await;
    for bed in beds.into_inner().unwrap() {
        bed.clear(&QUEUES).await;
    }
}
