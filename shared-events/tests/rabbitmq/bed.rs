//! A separate prefix at the broker for each test.

use std::time::Duration;

use lapin::options::{ExchangeDeleteOptions, QueueDeleteOptions};
use lapin::{Connection, ConnectionProperties};
use tokio::time::timeout;
use tourin_shared_events::backoff::Backoff;
use tourin_shared_events::bus::rabbitmq::{RabbitBus, RabbitSettings};
use tourin_shared_events::bus::{COMMAND_EXCHANGE, REPLY_EXCHANGE};
use tourin_shared_events::events::{TOUR_SPOT_EXCHANGE, USER_EXCHANGE};
use tourin_testbed::{Proxy, Server, given};
use uuid::Uuid;

/// The time within which expected events must happen.
pub const SOON: Duration = Duration::from_secs(30);

pub fn broker_url() -> String {
    given(Server::Amqp)
}

/// A route to the broker.
pub async fn broker_proxy() -> Proxy {
    Proxy::open_to_url(&broker_url()).await
}

pub async fn soon<T>(future: impl Future<Output = T>) -> T {
    timeout(SOON, future).await.expect("it should not take so long")
}

/// A test's own names at the broker.
pub struct Bed {
    pub prefix: String,
}

impl Bed {
    pub fn new() -> Self {
        Self { prefix: format!("test-{}.", Uuid::now_v7().simple()) }
    }

    pub fn settings(&self) -> RabbitSettings {
        self.settings_for(&broker_url())
    }

    pub fn settings_through(&self, proxy: &Proxy) -> RabbitSettings {
        self.settings_for(&proxy.url(&broker_url()))
    }

    fn settings_for(&self, url: &str) -> RabbitSettings {
        RabbitSettings {
            prefix: self.prefix.clone(),
            connection_name: "tourin test".to_owned(),
            reconnect: Backoff {
                base: Duration::from_millis(20),
                max: Duration::from_millis(500),
                jitter: 0.5,
            },
            peer_interval: Duration::from_millis(100),
            ..RabbitSettings::new(url.parse().expect("an AMQP URL"))
        }
    }

    pub fn bus(&self) -> RabbitBus {
        RabbitBus::start(self.settings())
    }

    /// A connection that bypasses the bus under test.
    pub async fn broker() -> Connection {
        let url = broker_url();
        let connecting = Connection::connect(&url, ConnectionProperties::default());
        soon(connecting).await.expect("a broker")
    }

    /// Deletes everything that the test declared.
    pub async fn clear(&self, queues: &[&str]) {
        let connection = Self::broker().await;
        let channel = connection.create_channel().await.expect("a channel");
        let prefix = &self.prefix;
        let exchanges = [USER_EXCHANGE, TOUR_SPOT_EXCHANGE, "event.other.ex"];
        let exchanges = exchanges.into_iter().chain([COMMAND_EXCHANGE, REPLY_EXCHANGE]);
        let exchanges = exchanges.map(str::to_owned);
        let own = ["slots", "rest", "dead", "peers"];
        let own = queues.iter().flat_map(|q| own.map(|kind| format!("{q}.{kind}")));
        for name in exchanges.chain(own) {
            let name = format!("{prefix}{name}");
            let deleting = channel.exchange_delete(name.into(), ExchangeDeleteOptions::default());
            deleting.await.expect("an exchange deleted");
        }
        for queue in queues {
            let shards = (0..8).map(|shard| format!("{prefix}{queue}.shard.{shard}"));
            for name in shards.chain([format!("{prefix}{queue}.dead")]) {
                let deleting = channel.queue_delete(name.into(), QueueDeleteOptions::default());
                deleting.await.expect("a queue deleted");
            }
        }
    }
}
