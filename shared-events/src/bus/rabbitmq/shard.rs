//! The consumers of one subscription: one channel for each shard, opened again whenever it ends.
//!
//! Every replica consumes every shard. The broker activates one of them and the others stand by, so a replica's death
//! moves its shards at once. A replica releases a shard by closing its channel: in one step the broker requeues all of
//! its unsettled messages in order and activates another replica.

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt as _;
use futures::future::join_all;
use lapin::Consumer;
use lapin::options::{BasicConsumeOptions, BasicQosOptions};
use lapin::types::FieldTable;
use tokio::sync::Mutex;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::RabbitSettings;
use super::connection::{BrokerError, Connection, Connections};
use super::membership::Membership;
use super::prefetch_buffer::PrefetchBuffer;
use super::topology::Topology;

/// A released shard that returns stays at least this long: replicas that disagree on their membership must not move it
/// back and forth.
const KEEP_AT_LEAST: Duration = Duration::from_secs(2);
/// The fewest messages in flight of a shard, if the subscriber's prefetch allows it.
const MIN_SHARD_PREFETCH: usize = 16;

/// State shared by one subscription's tasks.
pub(super) struct Subscribed {
    pub(super) settings: Arc<RabbitSettings>,
    pub(super) connections: Connections,
    pub(super) topology: Topology,
    pub(super) buffer: Arc<PrefetchBuffer>,
    pub(super) membership: Membership,
    pub(super) stop: CancellationToken,
    /// The connection of the last declaration; `None` when the topology must be declared again.
    pub(super) declared: Mutex<Option<u64>>,
    shards: usize,
    /// In messages, for each shard.
    prefetch: u16,
}

enum End {
    /// The subscription ended.
    Stopped,
    /// It was released for another replica.
    Released,
    /// The channel, the queue or the connection is lost.
    Failed(BrokerError),
}

impl Subscribed {
    pub(super) fn new(
        settings: Arc<RabbitSettings>,
        connections: Connections,
        topology: Topology,
        buffer: Arc<PrefetchBuffer>,
        stop: CancellationToken,
        (shards, prefetch): (usize, usize),
    ) -> Self {
        // Twice the fair share, because keys are never spread evenly.
        let share = (prefetch.div_ceil(shards) * 2).max(MIN_SHARD_PREFETCH).min(prefetch);
        Self {
            membership: Membership::new(settings.peer_interval),
            settings,
            connections,
            topology,
            buffer,
            stop,
            declared: Mutex::new(None),
            shards,
            prefetch: u16::try_from(share).unwrap_or(u16::MAX),
        }
    }

    /// Consumes each shard until the subscription is stopped or the bus ends.
    pub(super) async fn consume(&self) {
        join_all((0..self.shards).map(|shard| self.keep_shard(shard))).await;
    }

    /// Whether there is more than one shard.
    pub(super) fn has_shards_to_share(&self) -> bool {
        self.shards > 1
    }

    /// Declares the topology, once for each connection and again after something was missing.
    pub(super) async fn declare(&self, connection: &Connection) -> Result<(), BrokerError> {
        let mut declared = self.declared.lock().await;
        if *declared != Some(connection.number) {
            self.topology.declare(connection).await?;
            *declared = Some(connection.number);
        }
        Ok(())
    }

    async fn keep_shard(&self, shard: usize) {
        let mut failures = 0;
        let mut connections = self.connections.clone();
        let mut keep_until = Instant::now();
        loop {
            let connection = tokio::select! {
                () = self.stop.cancelled() => return,
                connection = connections.get() => match connection {
                    Ok(connection) => connection,
                    Err(_) => return,
                },
            };
            let opened = Instant::now();
            let end = self.serve(&connection, shard, keep_until).await;
            self.buffer.begin(shard);
            match end {
                End::Stopped => return,
                End::Released => keep_until = Instant::now() + KEEP_AT_LEAST,
                End::Failed(error) => {
                    if opened.elapsed() > self.settings.reconnect.max {
                        failures = 0;
                    }
                    failures += 1;
                    let queue = &self.buffer.queue;
                    if connection.is_lost() {
                        // The loss was logged once, and took every shard with it.
                        tracing::debug!(queue, shard, failures, %error, "shard lost, opening it again");
                    } else {
                        tracing::warn!(queue, shard, failures, %error, "shard lost, opening it again");
                    }
                    // After any failure the queue may be gone too.
                    *self.declared.lock().await = None;
                    let wait = sleep(self.settings.reconnect.after(failures));
                    if self.stop.run_until_cancelled(wait).await.is_none() {
                        return;
                    }
                }
            }
        }
    }

    /// Consumes one shard over one channel.
    async fn serve(&self, connection: &Connection, shard: usize, keep_until: Instant) -> End {
        match self.try_serve(connection, shard, keep_until).await {
            Ok(end) => end,
            Err(error) => End::Failed(error),
        }
    }

    async fn try_serve(
        &self,
        connection: &Connection,
        shard: usize,
        keep_until: Instant,
    ) -> Result<End, BrokerError> {
        self.declare(connection).await?;
        let channel = connection.channel().await?;
        connection.ask(channel.basic_qos(self.prefetch, BasicQosOptions::default())).await?;
        let queue = self.topology.shard(shard);
        let (options, none) = (BasicConsumeOptions::default(), FieldTable::default());
        let consuming = channel.basic_consume(queue.into(), "".into(), options, none);
        let mut consumer = connection.ask(consuming).await?;
        let epoch = self.buffer.begin(shard);
        let receiving = self.receive(&mut consumer, shard, epoch, keep_until);
        let end = tokio::select! {
            end = receiving => end,
            () = connection.ended() => End::Failed(BrokerError::Down),
        };
        if !matches!(end, End::Failed(_)) {
            self.buffer.release(shard);
            let limit = self.settings.handover_timeout;
            if timeout(limit, self.buffer.drained(shard)).await.is_err() {
                let queue = &self.buffer.queue;
                tracing::warn!(queue, shard, "shard released with unsettled deliveries");
            }
            connection.ask(channel.close(200, "OK".into())).await?;
        }
        Ok(end)
    }

    async fn receive(
        &self,
        consumer: &mut Consumer,
        shard: usize,
        epoch: u64,
        keep_until: Instant,
    ) -> End {
        let mut look = interval(self.settings.peer_interval);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // The broker does not say which consumer is active; the first delivery shows it.
        let mut active = false;
        loop {
            if active && Instant::now() >= keep_until && self.membership.is_for_another(shard) {
                return End::Released;
            }
            tokio::select! {
                () = self.stop.cancelled() => return End::Stopped,
                delivery = consumer.next() => match delivery {
                    Some(Ok(delivery)) => {
                        active = true;
                        self.buffer.push(shard, epoch, delivery);
                    }
                    Some(Err(error)) => return End::Failed(error.into()),
                    None => return End::Failed(BrokerError::Cancelled),
                },
                _ = look.tick() => {}
            }
        }
    }
}
