//! How to reach the broker, and the bounds of everything that waits for it.

use std::str::FromStr;
use std::time::Duration;

use lapin::uri::AMQPUri;

use crate::backoff::Backoff;
use crate::bus::MessagingSystem;

/// The broker's address with its credentials: `amqp://user:password@host:port/vhost`, `amqps` for TLS. Neither `Debug`
/// nor any error shows the credentials.
#[derive(Clone)]
pub struct AmqpUrl(AMQPUri);

/// The text is not an AMQP URL. The error does not quote it, because it may hold a password.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not an AMQP URL of the form amqp://user:password@host:port/vhost")]
pub struct InvalidAmqpUrl;

/// A service in a separate process has no broker configured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "--amqp-url (TOURIN_AMQP_URL) is missing: services in separate processes exchange events over RabbitMQ. Give its URL, \
     or start them by `deploy/testbed.sh run -- COMMAND` or `docker compose up`, which bring one; `tourin up` needs none"
)]
pub struct NoBroker;

impl FromStr for AmqpUrl {
    type Err = InvalidAmqpUrl;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.parse().map(Self).map_err(|_| InvalidAmqpUrl)
    }
}

impl AmqpUrl {
    /// Host and port, safe to log.
    pub fn address(&self) -> String {
        format!("{}:{}", self.0.authority.host, self.0.authority.port)
    }

    pub(super) fn messaging_system(&self) -> MessagingSystem {
        MessagingSystem::rabbitmq(&self.0.authority.host, self.0.authority.port)
    }

    /// The URL with this client's fixed parameters.
    pub(super) fn uri(&self, settings: &RabbitSettings) -> AMQPUri {
        let mut uri = self.0.clone();
        let seconds = settings.heartbeat.as_secs().clamp(1, 60);
        uri.query.heartbeat = u16::try_from(seconds).ok();
        uri
    }
}

impl std::fmt::Debug for AmqpUrl {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "AmqpUrl({})", self.address())
    }
}

/// Address, names and bounds.
#[derive(Clone, Debug)]
pub struct RabbitSettings {
    /// Where the broker is.
    pub url: AmqpUrl,
    /// The client's name in the broker's list of connections. Default `tourin`.
    pub connection_name: String,
    /// Certificates (PEM) of trusted authorities besides the system's, for `amqps`. Default none.
    pub ca_certificates_pem: Option<String>,
    /// The prefix of every exchange and queue name, so that several meshes can share a virtual host. Default none.
    pub prefix: String,
    /// How long one attempt to connect may take. Default 5 s.
    pub connect_timeout: Duration,
    /// The delay between attempts. Default 100 ms, doubling to at most 3 s, half of it random.
    pub reconnect: Backoff,
    /// Each side considers the other dead after twice this time of silence. Whole seconds, 1 to 60. Default 3 s.
    pub heartbeat: Duration,
    /// How long one request to the broker (for example, a declaration) may take. Default 10 s.
    pub request_timeout: Duration,
    /// How long [`publish`](crate::bus::Publisher::publish) waits for a connection before it fails. Default 2 s.
    pub publish_wait: Duration,
    /// How long the broker may take to confirm a group of messages. Default 10 s.
    pub confirm_timeout: Duration,
    /// Channels that publish concurrently, each with one group of messages in flight. Default 4.
    pub publish_channels: usize,
    /// The most messages published before their confirms are awaited. Default 256.
    pub publish_group: usize,
    /// How long [`subscribe`](crate::bus::Subscriber::subscribe) waits for the broker. Default 10 s.
    pub subscribe_timeout: Duration,
    /// How long the release of a shard waits for its deliveries to be settled. Default 10 s.
    pub handover_timeout: Duration,
    /// How often a broker may requeue a message from lost consumers before it dead-letters it. This stops a message
    /// that kills its consumers. An argument of the shard queues, so it cannot change for existing queues. Default 100.
    pub delivery_limit: u32,
    /// The most bytes of messages in a shard queue. Beyond it the broker refuses an event, which stays in its
    /// publisher's outbox. Other queues of the domain get it again with each try. A queue of 8 shards takes up to 8
    /// times this on the disk of each of its nodes. Cannot change for existing queues. Default 128 MiB.
    pub shard_max_bytes: u64,
    /// The most bytes of messages in a queue of dead letters. While it is full, nothing more can be dead-lettered: such
    /// deliveries wait with their keys and are tried again. Cannot change for existing queues. Default 128 MiB.
    pub dead_max_bytes: u64,
    /// The most messages in a queue of dead letters, with the same effect. A look takes all of them, so this also
    /// bounds its memory. Cannot change for existing queues. Default 10,000.
    pub dead_max_letters: u32,
    /// How often replicas of a subscriber announce themselves. After four times this of silence a replica counts as
    /// gone, and its shards are spread over the others. (The broker moves the shards of a lost connection at once; this
    /// is about fairness.) Default 500 ms.
    pub peer_interval: Duration,
}

impl RabbitSettings {
    /// The defaults, for the broker at `url`.
    pub fn new(url: AmqpUrl) -> Self {
        Self {
            url,
            connection_name: "tourin".to_owned(),
            ca_certificates_pem: None,
            prefix: String::new(),
            connect_timeout: Duration::from_secs(5),
            reconnect: Backoff {
                base: Duration::from_millis(100),
                max: Duration::from_secs(3),
                jitter: 0.5,
            },
            heartbeat: Duration::from_secs(3),
            request_timeout: Duration::from_secs(10),
            publish_wait: Duration::from_secs(2),
            confirm_timeout: Duration::from_secs(10),
            publish_channels: 4,
            publish_group: 256,
            subscribe_timeout: Duration::from_secs(10),
            handover_timeout: Duration::from_secs(10),
            delivery_limit: 100,
            shard_max_bytes: 128 * 1024 * 1024,
            dead_max_bytes: 128 * 1024 * 1024,
            dead_max_letters: 10_000,
            peer_interval: Duration::from_millis(500),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_are_shown_nowhere() {
        let url: AmqpUrl = "amqp://someone:pass-word@broker.example:5673/vhost".parse().unwrap();
        let shown = format!("{:?}", RabbitSettings::new(url));
        assert!(shown.contains("broker.example:5673"), "{shown}");
        assert!(!shown.contains("pass-word") && !shown.contains("someone"), "{shown}");
        for wrong in
            ["", "pass-word", "http://someone:pass-word@x", "amqp://someone:pass-word@x:port"]
        {
            let error = wrong.parse::<AmqpUrl>().unwrap_err();
            assert!(!format!("{error} {error:?}").contains("pass-word"), "{wrong}");
        }
    }
}
