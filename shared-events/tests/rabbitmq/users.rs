//! What the services' users at RabbitMQ may do, by `deploy/rabbitmq/definitions.json`.

use lapin::options::{
    BasicGetOptions, BasicPublishOptions, ConfirmSelectOptions, ExchangeDeclareOptions,
    ExchangeDeleteOptions, QueueDeclareOptions, QueueDeleteOptions,
};
use lapin::protocol::{AMQPErrorKind, AMQPSoftError};
use lapin::types::FieldTable;
use lapin::{BasicProperties, Channel, Connection, ConnectionProperties, ErrorKind, ExchangeKind};
use tourin_shared_events::bus::rabbitmq::{RabbitBus, RabbitDeadLetters, RabbitSettings};
use tourin_shared_events::bus::{
    Binding, Publisher as _, Settlement, Subscriber as _, Subscription,
};
use tourin_shared_events::dead_letters::{DeadLetterStore as _, Settled};
use tourin_shared_events::events::USER_EXCHANGE;
use tourin_testbed::{Server, User, given, given_to};
use uuid::Uuid;

use crate::bed::{SOON, soon};

async fn connect(url: &str) -> Connection {
    soon(Connection::connect(url, ConnectionProperties::default())).await.expect("a broker")
}

async fn publish(channel: &Channel, exchange: &str, routing_key: &str) -> lapin::Result<()> {
    channel.confirm_select(ConfirmSelectOptions::default()).await?;
    let (options, none) = (BasicPublishOptions::default(), BasicProperties::default());
    let publishing =
        channel.basic_publish(exchange.into(), routing_key.into(), options, b"x", none);
    publishing.await?.await.map(drop)
}

async fn read(channel: &Channel, queue: &str) -> lapin::Result<()> {
    channel.basic_get(queue.into(), BasicGetOptions::default()).await.map(drop)
}

async fn declare_queue(channel: &Channel, queue: &str) -> lapin::Result<()> {
    let options = QueueDeclareOptions { durable: true, ..Default::default() };
    channel.queue_declare(queue.into(), options, FieldTable::default()).await.map(drop)
}

async fn delete_exchange(channel: &Channel, exchange: &str) -> lapin::Result<()> {
    channel.exchange_delete(exchange.into(), ExchangeDeleteOptions::default()).await
}

#[track_caller]
fn assert_refused(what: &str, result: lapin::Result<()>) {
    let error = result.expect_err(what);
    let is_refused = matches!(error.kind(), ErrorKind::ProtocolError(error)
        if matches!(error.kind(), AMQPErrorKind::Soft(AMQPSoftError::ACCESSREFUSED)));
    assert!(is_refused, "{what}: {error}");
}

/// A refusal closes its channel, so each attempt has one of its own.
macro_rules! refused {
    ($connection:expr, $action:ident($($argument:expr),*)) => {{
        let channel = soon($connection.create_channel()).await.expect("a channel");
        let result = soon($action(&channel, $($argument),*)).await;
        assert_refused(concat!(stringify!($action), stringify!(($($argument),*))), result);
    }};
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_service_may_not_publish_as_another_nor_read_anothers_queue() {
    let admin = connect(&given(Server::Amqp)).await;
    let channel = soon(admin.create_channel()).await.expect("a channel");
    let (of_core, of_recommendation) = ("core.users-test", "recommendation.users-test");
    for queue in [of_core, of_recommendation] {
        soon(declare_queue(&channel, queue)).await.expect("a queue");
    }

    let recommendation = connect(&given_to(User::Recommendation, Server::Amqp)).await;
    for exchange in [USER_EXCHANGE, "event.tour-spot.ex"] {
        refused!(recommendation, publish(exchange, "user.viewTourspot"));
        refused!(recommendation, delete_exchange(exchange));
    }
    // The default exchange leads into every queue.
    refused!(recommendation, publish("", of_core));
    refused!(recommendation, read(of_core));
    refused!(recommendation, declare_queue("core.another"));

    let core = connect(&given_to(User::Core, Server::Amqp)).await;
    refused!(core, read(of_recommendation));
    refused!(core, publish("", of_recommendation));
    refused!(core, declare_queue("core.another"));

    let operator = connect(&given_to(User::Operator, Server::Amqp)).await;
    refused!(operator, publish(USER_EXCHANGE, "user.viewTourspot"));
    refused!(operator, read(of_recommendation));
    refused!(operator, delete_exchange(USER_EXCHANGE));

    let own = soon(recommendation.create_channel()).await.expect("a channel");
    soon(read(&own, of_recommendation)).await.expect("its own queue");
    let own = soon(core.create_channel()).await.expect("a channel");
    let options = ExchangeDeclareOptions { durable: true, ..Default::default() };
    let (kind, none) = (ExchangeKind::Topic, FieldTable::default());
    soon(own.exchange_declare(USER_EXCHANGE.into(), kind, options, none)).await.expect("its own");
    // No queue is bound for this type.
    soon(publish(&own, USER_EXCHANGE, "nothing.usersTest")).await.expect("its own exchange");
    for queue in [of_core, of_recommendation] {
        let deleting = channel.queue_delete(queue.into(), QueueDeleteOptions::default());
        soon(deleting).await.expect("a queue deleted");
    }
}

/// The bus itself, with each program's own user: what it declares, publishes, consumes and dead-letters.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_event_goes_from_cores_user_to_recommendations_and_its_dead_letter_to_operators() {
    let settings =
        |user| RabbitSettings::new(given_to(user, Server::Amqp).parse().expect("an AMQP URL"));
    let queue = format!("recommendation.users-test-{}", Uuid::now_v7().simple());
    let member = format!("member-{}", Uuid::now_v7().simple());
    let core = RabbitBus::start(settings(User::Core));
    let recommendation = RabbitBus::start(settings(User::Recommendation));
    let operator = RabbitBus::start(settings(User::Operator));
    assert!(soon(core.wait_until_connected(true)).await);
    core.probe(SOON).await.expect("the small write of core's readiness");

    let bindings = vec![Binding::new(USER_EXCHANGE, "user.viewTourspot")];
    let subscription = Subscription { shards: 2, ..Subscription::new(&queue, bindings) };
    let mut deliveries = soon(recommendation.subscribe(subscription)).await.expect("a queue");
    let event = tourin_shared_events::bus::contract::view(&member, 7);
    let published = soon(core.publish(vec![event])).await;
    assert_eq!(published, [Ok(())]);
    let delivery = soon(deliveries.next()).await.expect("the event");
    soon(delivery.settle(Settlement::DeadLetter { reason: "a test".to_owned() }))
        .await
        .expect("settled");

    let letters = RabbitDeadLetters::new(operator.clone(), vec![queue.clone()]);
    let listed = soon(letters.list(10, None)).await.expect("a list");
    assert_eq!(listed.len(), 1, "{listed:?}");
    let replayed = soon(letters.replay(&[listed[0].id])).await.expect("a replay");
    assert_eq!(replayed, [Settled::Done]);
    let again = soon(deliveries.next()).await.expect("the event again");
    soon(again.settle(Settlement::Ack)).await.expect("settled");

    drop(deliveries);
    for bus in [core, recommendation, operator] {
        soon(bus.close(SOON)).await;
    }
    let admin = connect(&given(Server::Amqp)).await;
    let channel = soon(admin.create_channel()).await.expect("a channel");
    for kind in ["slots", "rest", "dead", "peers"] {
        let deleting = channel
            .exchange_delete(format!("{queue}.{kind}").into(), ExchangeDeleteOptions::default());
        soon(deleting).await.expect("an exchange deleted");
    }
    for name in ["shard.0", "shard.1", "dead"] {
        let deleting =
            channel.queue_delete(format!("{queue}.{name}").into(), QueueDeleteOptions::default());
        soon(deleting).await.expect("a queue deleted");
    }
}
