//! The ceiling: the broker's client alone.

use std::time::{Duration, Instant};

use anyhow::ensure;
use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use lapin::options::{
    BasicAckOptions, BasicConsumeOptions, BasicPublishOptions, BasicQosOptions,
    ConfirmSelectOptions, QueueDeclareOptions, QueueDeleteOptions,
};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, Channel, Confirmation, Connection, ConnectionProperties};
use tourin_bench::processor_time;
use uuid::Uuid;

use super::Figures;
use super::mesh::event;

/// Messages in flight of the publisher and of the consumer, as in the mesh.
const IN_FLIGHT: usize = 512;
const PREFETCH: u16 = 256;
/// A stuck broker must not hang the run.
const LIMIT: Duration = Duration::from_secs(300);

/// Publishes and consumes `events` persistent messages over one quorum queue, both at once.
pub async fn measure(url: &str, events: usize) -> anyhow::Result<Figures> {
    // A connection each, as the bus has.
    let publishing = Connection::connect(url, ConnectionProperties::default()).await?;
    let consuming = Connection::connect(url, ConnectionProperties::default()).await?;
    let (publisher, consumer) =
        (publishing.create_channel().await?, consuming.create_channel().await?);
    let queue = format!("bench-{}", Uuid::now_v7().simple());
    let mut arguments = FieldTable::default();
    arguments.insert("x-queue-type".into(), AMQPValue::LongString("quorum".into()));
    let durable = QueueDeclareOptions { durable: true, ..Default::default() };
    consumer.queue_declare(queue.clone().into(), durable, arguments).await?;
    publisher.confirm_select(ConfirmSelectOptions::default()).await?;
    consumer.basic_qos(PREFETCH, BasicQosOptions::default()).await?;

    let before = processor_time()?;
    let start = Instant::now();
    let both = async {
        tokio::try_join!(publish(&publisher, &queue, events), consume(&consumer, &queue, events))
    };
    tokio::time::timeout(LIMIT, both).await??;
    let took = start.elapsed();
    let processor_time = processor_time()? - before;
    consumer.queue_delete(queue.into(), QueueDeleteOptions::default()).await?;
    Ok(Figures { took, processor_time, events })
}

async fn publish(channel: &Channel, queue: &str, events: usize) -> anyhow::Result<()> {
    let mut unconfirmed = FuturesUnordered::new();
    for number in 0..events {
        let event = event(number);
        let body = serde_json::to_vec(&event.envelope)?;
        let properties = BasicProperties::default()
            .with_delivery_mode(2)
            .with_message_id(event.envelope.id.to_string().into());
        let options = BasicPublishOptions { mandatory: true, ..Default::default() };
        unconfirmed.push(
            channel.basic_publish("".into(), queue.into(), options, &body, properties).await?,
        );
        if unconfirmed.len() >= IN_FLIGHT {
            confirmed(unconfirmed.next().await)?;
        }
    }
    while let Some(confirm) = unconfirmed.next().await {
        confirmed(Some(confirm))?;
    }
    Ok(())
}

fn confirmed(confirm: Option<lapin::Result<Confirmation>>) -> anyhow::Result<()> {
    let confirm = confirm.transpose()?;
    ensure!(matches!(confirm, Some(Confirmation::Ack(None))), "the broker refused a message");
    Ok(())
}

async fn consume(channel: &Channel, queue: &str, events: usize) -> anyhow::Result<()> {
    let options = BasicConsumeOptions::default();
    let mut deliveries =
        channel.basic_consume(queue.into(), "bench".into(), options, FieldTable::default()).await?;
    let mut consumed = 0;
    while consumed < events {
        let Some(delivery) = deliveries.next().await else {
            anyhow::bail!("the broker ended the consumer");
        };
        delivery?.acker.ack(BasicAckOptions::default()).await?;
        consumed += 1;
    }
    Ok(())
}
