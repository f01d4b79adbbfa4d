//! A corner of the broker for each test, and a proxy that can cut what goes through it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use lapin::options::{ExchangeDeleteOptions, QueueDeleteOptions};
use lapin::uri::AMQPUri;
use lapin::{Connection, ConnectionProperties};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};
use tourin_shared_events::backoff::Backoff;
use tourin_shared_events::bus::rabbitmq::{RabbitBus, RabbitSettings};
use tourin_shared_events::bus::styles::{COMMAND_EXCHANGE, REPLY_EXCHANGE};
use tourin_shared_events::events::{TOUR_SPOT_EXCHANGE, USER_EXCHANGE};
use uuid::Uuid;

/// How long something may take that must happen.
pub const SOON: Duration = Duration::from_secs(30);

pub fn broker_url() -> String {
    std::env::var("TOURIN_AMQP_URL").expect(
        "TOURIN_AMQP_URL is not set: run it by deploy/testbed.sh run -- cargo test -p tourin-shared-events",
    )
}

pub async fn soon<T>(future: impl Future<Output = T>) -> T {
    timeout(SOON, future).await.expect("it should not take so long")
}

/// Waits until a condition holds; panics with its last word when it does not in time.
pub async fn eventually<T: std::fmt::Debug>(mut look: impl AsyncFnMut() -> Result<(), T>) {
    let deadline = Instant::now() + SOON;
    loop {
        match look().await {
            Ok(()) => return,
            Err(last) if Instant::now() > deadline => panic!("it never came: {last:?}"),
            Err(_) => sleep(Duration::from_millis(20)).await,
        }
    }
}

/// Names of its own at the broker.
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
        let uri: AMQPUri = broker_url().parse().expect("an AMQP URL");
        let user = &uri.authority.userinfo;
        let vhost = if uri.vhost == "/" { "%2f" } else { &uri.vhost };
        let (name, password, at) = (&user.username, &user.password, proxy.address);
        self.settings_for(&format!("amqp://{name}:{password}@{at}/{vhost}"))
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

    /// A connection past everything that is under test.
    pub async fn broker() -> Connection {
        let url = broker_url();
        let connecting = Connection::connect(&url, ConnectionProperties::default());
        soon(connecting).await.expect("a broker")
    }

    /// Leaves nothing behind.
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

/// Stands between a bus and the broker.
pub struct Proxy {
    pub address: SocketAddr,
    state: Arc<watch::Sender<State>>,
    _tasks: JoinSet<()>,
}

#[derive(Clone, Copy)]
struct State {
    /// A new number ends every connection.
    cuts: u64,
    /// New connections are let through.
    open: bool,
    /// What the broker says is lost.
    deaf: bool,
}

impl Proxy {
    pub async fn start() -> Self {
        let uri: AMQPUri = broker_url().parse().expect("an AMQP URL");
        let broker = (uri.authority.host, uri.authority.port);
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let state = Arc::new(watch::Sender::new(State { cuts: 0, open: true, deaf: false }));
        let mut tasks = JoinSet::new();
        tasks.spawn({
            let state = state.clone();
            async move {
                let mut connections = JoinSet::new();
                while let Ok((client, _)) = listener.accept().await {
                    if state.borrow().open {
                        connections.spawn(carry(client, broker.clone(), state.subscribe()));
                    }
                }
            }
        });
        Self { address, state, _tasks: tasks }
    }

    /// Cuts what is connected; new connections are welcome.
    pub fn cut(&self) {
        self.state
            .send_modify(|state| *state = State { cuts: state.cuts + 1, deaf: false, ..*state });
    }

    /// From now on the broker hears, but is not heard: confirms are lost, messages are taken and never come.
    pub fn deafen(&self) {
        self.state.send_modify(|state| state.deaf = true);
    }

    /// Cuts, and lets nobody in (or in again).
    pub fn set_open(&self, open: bool) {
        self.cut();
        self.state.send_modify(|state| state.open = open);
    }
}

async fn carry(client: TcpStream, broker: (String, u16), mut state: watch::Receiver<State>) {
    let cuts = state.borrow().cuts;
    let Ok(server) = TcpStream::connect(broker).await else { return };
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_server, mut to_server) = server.into_split();
    let told = state.clone();
    let down = async move {
        let mut buffer = vec![0; 64 * 1024];
        while let Ok(read @ 1..) = from_server.read(&mut buffer).await {
            let deaf = told.borrow().deaf;
            if !deaf && to_client.write_all(&buffer[..read]).await.is_err() {
                break;
            }
        }
    };
    // All is dropped at once: whatever was on its way is lost.
    tokio::select! {
        _ = tokio::io::copy(&mut from_client, &mut to_server) => {}
        () = down => {}
        _ = state.wait_for(|state| state.cuts != cuts) => {}
    }
}
