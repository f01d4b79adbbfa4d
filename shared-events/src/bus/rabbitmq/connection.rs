//! A supervised connection: lapin connects, and this module decides when.

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt as _;
use lapin::options::QueueDeclareOptions;
use lapin::protocol::{AMQPErrorKind, AMQPSoftError};
use lapin::tcp::OwnedTLSConfig;
use lapin::types::FieldTable;
use lapin::{Channel, ConnectionProperties, ErrorKind, Event};
use tokio::sync::watch;
use tokio::time::{interval, sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::RabbitSettings;
use super::metrics::BusMetrics;

/// How often a connection's state is checked, in addition to its events.
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// How long closing a connection may take.
const GOODBYE: Duration = Duration::from_secs(1);

/// Why a request to the broker failed. Never shows credentials.
#[derive(Debug, thiserror::Error)]
pub(super) enum BrokerError {
    #[error("there is no connection to the broker")]
    Down,
    #[error("the broker ended the consumer")]
    Cancelled,
    #[error("the broker did not answer in time")]
    Slow,
    #[error("{0}")]
    Broker(#[from] lapin::Error),
}

impl BrokerError {
    /// A declaration contradicts an existing queue or exchange.
    pub(super) fn is_contradiction(&self) -> bool {
        self.is(&AMQPSoftError::PRECONDITIONFAILED)
    }

    /// The queue or exchange does not exist.
    pub(super) fn is_missing(&self) -> bool {
        self.is(&AMQPSoftError::NOTFOUND)
    }

    /// Another connection holds it exclusively.
    pub(super) fn is_locked(&self) -> bool {
        self.is(&AMQPSoftError::RESOURCELOCKED)
    }

    fn is(&self, kind: &AMQPSoftError) -> bool {
        let Self::Broker(error) = self else { return false };
        matches!(error.kind(), ErrorKind::ProtocolError(error)
            if matches!(error.kind(), AMQPErrorKind::Soft(soft) if soft == kind))
    }
}

/// One connection, from its opening to its end.
pub(super) struct Connection {
    inner: lapin::Connection,
    /// Distinguishes connections: after a reconnect, declared queues may be gone (a broker may have lost its disk).
    pub(super) number: u64,
    ended: CancellationToken,
    request_timeout: Duration,
}

impl Connection {
    pub(super) async fn channel(&self) -> Result<Channel, BrokerError> {
        self.ask(self.inner.create_channel()).await
    }

    /// The number of messages in a queue; `None` when the queue does not exist.
    pub(super) async fn depth(&self, queue: &str) -> Result<Option<u32>, BrokerError> {
        // A missing queue closes the channel.
        let channel = self.channel().await?;
        let options = QueueDeclareOptions { passive: true, ..Default::default() };
        let asking = channel.queue_declare(queue.into(), options, FieldTable::default());
        match self.ask(asking).await {
            Ok(queue) => Ok(Some(queue.message_count())),
            Err(error) if error.is_missing() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Waits for the broker's response, with a time-out.
    pub(super) async fn ask<T>(
        &self,
        request: impl Future<Output = lapin::Result<T>>,
    ) -> Result<T, BrokerError> {
        // The library does not fail every request when its connection ends.
        tokio::select! {
            biased;
            answer = timeout(self.request_timeout, request) => {
                answer.map_err(|_| BrokerError::Slow)?.map_err(Into::into)
            }
            () = self.ended() => Err(BrokerError::Down),
        }
    }

    /// Waits until the connection is lost.
    pub(super) async fn ended(&self) {
        self.ended.cancelled().await;
    }

    /// Whether the connection is lost.
    pub(super) fn is_lost(&self) -> bool {
        self.ended.is_cancelled() || !self.inner.status().connected()
    }
}

/// Access to the current connection.
#[derive(Clone)]
pub(super) struct Connections(watch::Receiver<Option<Arc<Connection>>>);

impl Connections {
    /// Waits for the connection.
    pub(super) async fn get(&mut self) -> Result<Arc<Connection>, BrokerError> {
        let connection = self.0.wait_for(Option::is_some).await.map_err(|_| BrokerError::Down)?;
        connection.clone().ok_or(BrokerError::Down)
    }

    pub(super) async fn get_within(
        &mut self,
        limit: Duration,
    ) -> Result<Arc<Connection>, BrokerError> {
        timeout(limit, self.get()).await.map_err(|_| BrokerError::Down)?
    }

    pub(super) fn is_up(&self) -> bool {
        self.0.borrow().is_some()
    }

    /// Waits until the connection changes. An error when there will be no other.
    pub(super) async fn changed(&mut self) -> Result<(), BrokerError> {
        self.0.changed().await.map_err(|_| BrokerError::Down)
    }
}

/// Starts to supervise a connection for `purpose`, until `stop`.
pub(super) fn keep(
    settings: Arc<RabbitSettings>,
    purpose: &'static str,
    metrics: BusMetrics,
    stop: CancellationToken,
) -> (Connections, impl Future<Output = ()>) {
    let (sender, receiver) = watch::channel(None);
    let keeping = async move {
        let keeper = Supervisor { settings, purpose, metrics, sender };
        stop.run_until_cancelled(keeper.run()).await;
        if let Some(connection) = keeper.sender.send_replace(None) {
            connection.ended.cancel();
            let goodbye = connection.inner.close(200, "OK".into());
            // The broker notices the end by itself if this does not reach it.
            drop(timeout(GOODBYE, goodbye).await);
        }
    };
    (Connections(receiver), keeping)
}

struct Supervisor {
    settings: Arc<RabbitSettings>,
    purpose: &'static str,
    metrics: BusMetrics,
    sender: watch::Sender<Option<Arc<Connection>>>,
}

impl Supervisor {
    async fn run(&self) {
        let broker = self.settings.url.address();
        let (mut failures, mut was_connected) = (0, false);
        for number in 1.. {
            match self.connect(number).await {
                Ok(connection) => {
                    tracing::info!(broker, purpose = self.purpose, number, "connected");
                    failures = 0;
                    if std::mem::replace(&mut was_connected, true) {
                        self.metrics.reconnects.inc();
                    }
                    let connection = Arc::new(connection);
                    self.sender.send_replace(Some(connection.clone()));
                    let why = ended(&connection.inner, &self.metrics).await;
                    self.sender.send_replace(None);
                    connection.ended.cancel();
                    tracing::warn!(broker, purpose = self.purpose, number, why, "connection lost");
                }
                Err(error) => {
                    // Powers of two, so that a long outage does not fill the log.
                    if u32::is_power_of_two(failures + 1) {
                        let failures = failures + 1;
                        tracing::warn!(broker, purpose = self.purpose, failures, %error, "waiting for RabbitMQ");
                    }
                }
            }
            failures += 1;
            sleep(self.settings.reconnect.after(failures)).await;
        }
    }

    async fn connect(&self, number: u64) -> Result<Connection, BrokerError> {
        let uri = self.settings.url.uri(&self.settings);
        let name = format!("{} {}", self.settings.connection_name, self.purpose);
        // No recovery by the library: this module decides what is restored, and when.
        let properties = ConnectionProperties::default().with_connection_name(name.into());
        let tls = OwnedTLSConfig {
            identity: None,
            cert_chain: self.settings.ca_certificates_pem.clone(),
        };
        let runtime = lapin::runtime::default_runtime()?;
        let connecting = lapin::Connection::connect_uri_with_config(uri, properties, tls, runtime);
        let connection = timeout(self.settings.connect_timeout, connecting)
            .await
            .map_err(|_| BrokerError::Slow)??;
        let request_timeout = self.settings.request_timeout;
        Ok(Connection {
            inner: connection,
            number,
            ended: CancellationToken::new(),
            request_timeout,
        })
    }
}

/// Waits for a connection's end and returns its cause.
async fn ended(connection: &lapin::Connection, metrics: &BusMetrics) -> String {
    let mut blocked = None;
    let mut events = std::pin::pin!(connection.events_listener());
    let mut look = interval(LOOK_EVERY);
    let mut last_error = None;
    while connection.status().connected() {
        tokio::select! {
            event = events.next() => match event {
                // The error may belong to a channel only; the connection's state decides.
                Some(Event::Error(error)) => last_error = Some(error.to_string()),
                Some(Event::ConnectionBlocked(reason)) => {
                    blocked.get_or_insert_with(|| metrics.blocked());
                    tracing::warn!(reason, "the broker takes no messages for now");
                }
                Some(Event::ConnectionUnblocked) => {
                    blocked = None;
                    tracing::info!("the broker takes messages again");
                }
                Some(_) => {}
                None => break,
            },
            _ = look.tick() => {}
        }
    }
    last_error.unwrap_or_else(|| "the connection is closed".to_owned())
}
