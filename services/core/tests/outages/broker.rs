//! RabbitMQ becomes unreachable.

use std::time::Duration;

use tokio::time::timeout;
use tourin_shared_events::bus::rabbitmq::{RabbitBus, RabbitSettings};
use tourin_shared_events::bus::{Binding, Deliveries, Settlement, Subscriber as _, Subscription};
use tourin_testbed::{Bed, Server, StopSignal, User};

use super::running::{RECOVERY, Running, hana, settings};

/// How long a broker that has just started again may take until its quorum queues have leaders and both
/// ends have found them.
const AFTER_RESTART: Duration = Duration::from_secs(30);

async fn next_spot(deliveries: &mut Deliveries) -> String {
    let delivery =
        timeout(AFTER_RESTART, deliveries.next()).await.expect("no event in time").unwrap();
    let event: serde_json::Value = serde_json::from_slice(&delivery.body).unwrap();
    delivery.settle(Settlement::Ack).await.unwrap();
    event["data"]["tourspot_id"].as_str().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn events_wait_while_the_broker_is_away_and_core_goes_on() {
    let bed = Bed::with(&[Server::Amqp]).await;
    let dir = tempfile::tempdir().unwrap();
    let mut settings = settings(dir.path(), &[]);
    settings.events.amqp_url = Some(bed.url_of(User::Core, Server::Amqp).parse().unwrap());

    let reader = RabbitSettings::new(bed.url(Server::Amqp).parse().unwrap());
    let bus = RabbitBus::start(reader);
    let mut deliveries = bus
        .subscribe(Subscription {
            queue: "reader".to_owned(),
            bindings: vec![Binding::new("event.user.ex", "user.bookmarkTourspot")],
            prefetch: 10,
            shards: 2,
        })
        .await
        .unwrap();

    let core = Running::start(settings).await;
    assert_eq!(core.post("/api/auth/signup", hana()).await.0, 201);
    assert_eq!(core.bookmark("hana12345", 1).await.status(), 201);
    assert_eq!(next_spot(&mut deliveries).await, "1");

    let queues = ["reader.shard.0", "reader.shard.1", "reader.dead"];
    bed.quorum_queues_are_kept(&queues.map(str::to_owned)).await;
    bed.stop(Server::Amqp, StopSignal::Kill).await;
    assert!(timeout(RECOVERY, bus.wait_until_connected(false)).await.unwrap());
    for spot in 2..=4 {
        assert_eq!(core.bookmark("hana12345", spot).await.status(), 201, "core continues");
    }
    let (status, readiness) = core.get("/readyz").await;
    assert_eq!(status, 503, "an operator sees what stands still");
    assert!(readiness["unready"]["event bus"].is_string(), "{readiness}");

    bed.start(Server::Amqp).await;
    let mut next = next_spot(&mut deliveries).await;
    if next == "1" {
        // The broker was killed before it had stored the acknowledgement.
        next = next_spot(&mut deliveries).await;
    }
    assert_eq!(next, "2");
    for spot in ["3", "4"] {
        assert_eq!(next_spot(&mut deliveries).await, spot);
    }
    // An event right before the stop is published too.
    assert_eq!(core.bookmark("hana12345", 5).await.status(), 201);
    assert!(core.stop().await < Duration::from_secs(12));
    assert_eq!(next_spot(&mut deliveries).await, "5");
    drop(deliveries);
    bus.close(Duration::from_secs(1)).await;
    bed.remove().await;
}
