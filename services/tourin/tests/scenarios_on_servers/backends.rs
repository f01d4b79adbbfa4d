//! The backends of a scenario's mesh on the servers of the test bed: a separate database, key prefixes and a
//! virtual host.

use std::future::Future;
use std::time::Duration;

use redis::AsyncCommands as _;
use tourin::part_settings::PartSettings;
use tourin::up::UpSettings;
use tourin_shared_events::mysql::testing::TestDatabase;
use tourin_testbed::Proxy;
use uuid::Uuid;

use crate::virtual_host::VirtualHost;

/// How long a scenario waits for a condition.
pub const TIMEOUT: Duration = Duration::from_secs(40);
/// Longest time from a view to the trend, on a loaded machine.
pub const FRESH: Duration = Duration::from_secs(10);
/// While one mesh writes its catalogue, the bed's MongoDB-protocol server may take longer than the 3 s that
/// recommendation allows for another mesh's reads, which are then answered 503.
pub const MONGODB_MAY_BE_SLOW: bool = true;

/// Database, key prefixes and virtual host of one scenario. Dropping it removes them.
pub struct Backends {
    name: String,
    database: Option<TestDatabase>,
    _broker: VirtualHost,
}

impl Backends {
    pub async fn create(settings: &mut UpSettings) -> Self {
        let name = format!("scenario-{}", Uuid::now_v7().simple());
        let broker = VirtualHost::make(&name).await;
        let database = TestDatabase::create().await;
        let mongodb = with_path(&server("TOURIN_MONGODB_URL"), &name);
        let mut parts = PartSettings::from_flags([
            format!("--redis-url={}", server("TOURIN_REDIS_URL")),
            format!("--recommendation-redis-prefix={name}:recommendation"),
            format!("--session-redis-prefix={name}:sessions"),
            format!("--mongodb-url={mongodb}"),
            format!("--amqp-url={}", broker.url(&server("TOURIN_AMQP_URL"))),
        ])
        .unwrap();
        parts.core.database.server.mysql_url = Some(database.url().clone().into());
        parts.gateway.listen = settings.parts.gateway.listen;
        settings.parts = parts;
        Self { name, database: Some(database), _broker: broker }
    }

    /// Puts a proxy, which can be slow, in front of MongoDB.
    pub async fn mongodb_by_proxy(settings: &mut UpSettings) -> Proxy {
        let servers = &mut settings.parts.recommendation.servers;
        let url = servers.mongodb().expect("with a MongoDB").clone();
        let way = Proxy::open_to_url(url.expose()).await;
        servers.mongodb_url = Some(way.url(url.expose()).parse().unwrap());
        way
    }

    /// Puts a closed proxy in front of the database.
    pub fn unreachable_database(&self, settings: &mut UpSettings) -> Proxy {
        let way = Proxy::closed_to(TestDatabase::authority());
        let database = self.database.as_ref().expect("it is there until the end");
        settings.parts.core.database.server.mysql_url =
            Some(database.url_through(&way.address.to_string()).into());
        way
    }
}

impl Drop for Backends {
    fn drop(&mut self) {
        let (name, database) = (self.name.clone(), self.database.take());
        // On a separate thread, because this one belongs to the scenario's runtime.
        let clearing = std::thread::spawn(move || {
            in_a_runtime(async {
                drop_documents(&name).await;
                delete_keys(&name).await;
                if let Some(database) = database {
                    database.remove().await;
                }
            });
        });
        let cleared = clearing.join();
        if !std::thread::panicking() {
            cleared.expect("the servers are left as they were");
        }
    }
}

fn in_a_runtime(work: impl Future<Output = ()>) {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(work);
}

fn server(variable: &str) -> String {
    let url = std::env::var(variable).unwrap_or_default();
    assert!(
        !url.is_empty(),
        "{variable} is not set: run it by `deploy/testbed.sh run -- cargo test -p tourin`"
    );
    url
}

/// The same URL with another path, which names a database.
fn with_path(url: &str, path: &str) -> String {
    let mut url: reqwest::Url = url.parse().unwrap();
    url.set_path(path);
    url.into()
}

async fn drop_documents(database: &str) {
    let client = mongodb::Client::with_uri_str(server("TOURIN_MONGODB_URL")).await.unwrap();
    client.database(database).drop().await.unwrap();
}

async fn delete_keys(prefix: &str) {
    let client = redis::Client::open(server("TOURIN_REDIS_URL")).unwrap();
    let mut connection = client.get_multiplexed_async_connection().await.unwrap();
    // Keys may begin with a hash tag's brace, and need not be text.
    let keys: Vec<Vec<u8>> = connection.keys(format!("*{prefix}*")).await.unwrap();
    if !keys.is_empty() {
        let _deleted: u64 = connection.del(keys).await.unwrap();
    }
}
