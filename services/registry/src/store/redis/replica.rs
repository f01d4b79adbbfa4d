//! What a registry has read of the changes.
//!
//! It loads everything once, then reads the stream from where it is. An entry that is not the next one means
//! that Redis was emptied or that this registry fell behind: it loads again.

use std::convert::Infallible;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::Context as _;
use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, Client};

use super::entries::{self, Entry};
use super::{RedisStore, key};

const CONNECT_TIMEOUT: Duration = Duration::from_millis(1_000);
/// Longest wait for a change. The next command then shows whether the connection still works.
const MAX_WAIT: Duration = Duration::from_millis(1_000);
/// Time for a response besides the wait.
const ANSWER_MARGIN: Duration = Duration::from_millis(1_000);
const RETRY_AFTER: Duration = Duration::from_millis(200);
const BATCH: usize = 1_000;

/// What the script gives: epoch, version, protected services, instances, and the latest changes.
type Loaded = (String, String, Vec<String>, Vec<(String, String, String, String)>, Vec<Entry>);

impl RedisStore {
    /// Follows the changes, and connects again without end.
    pub(super) async fn follow(&self) {
        let address = &self.redis.address;
        let mut was_reading = true;
        loop {
            let Err(error) = self.read_on(&mut was_reading).await;
            if was_reading {
                tracing::warn!(address, %error, "cannot follow the instances in redis");
            }
            was_reading = false;
            self.health.set_unready(format!("redis at {address} does not answer"));
            tokio::time::sleep(RETRY_AFTER).await;
        }
    }

    async fn read_on(&self, was_reading: &mut bool) -> anyhow::Result<Infallible> {
        let client =
            Client::open(self.redis.url.expose()).ok().context("the URL cannot be used")?;
        let settings = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(CONNECT_TIMEOUT))
            .set_response_timeout(Some(MAX_WAIT + ANSWER_MARGIN));
        let mut connection = client.get_multiplexed_async_connection_with_config(&settings).await?;
        loop {
            self.load().await?;
            self.health.set_ready();
            if !*was_reading {
                tracing::info!(address = self.redis.address, "following the instances in redis");
            }
            *was_reading = true;
            while self.read(&mut connection).await? {}
        }
    }

    /// Reads everything. What is shown already stays as it is if nothing was missed.
    async fn load(&self) -> anyhow::Result<()> {
        let call = self.redis.call(&self.redis.scripts.load);
        let (epoch, version, protected, rows, changes): Loaded = self.redis.run(&call).await?;
        let place: (u64, u64) = (epoch.parse()?, version.parse()?);
        let instances = rows.iter().map(|(id, instance, drains, decided)| {
            anyhow::Ok((key(id)?, entries::seen(instance, drains, decided)?))
        });
        let instances = instances.collect::<anyhow::Result<Vec<_>>>()?;
        let changes = changes.iter().map(|entry| anyhow::Ok(entries::change(entry)?.1));
        let changes = changes.collect::<anyhow::Result<Vec<_>>>()?;
        {
            let mut view = self.view();
            view.replace(place, instances, changes);
            view.protect(protected.into_iter().collect());
        }
        self.is_loaded.store(true, Ordering::Release);
        // Also when it is lower: Redis was restored from an older state.
        self.version.send_replace(place.1);
        Ok(())
    }

    /// Waits for changes and applies them. False if one is missing.
    async fn read(&self, connection: &mut MultiplexedConnection) -> anyhow::Result<bool> {
        let after = *self.version.borrow();
        let mut read = redis::cmd("XREAD");
        read.arg("COUNT").arg(BATCH).arg("BLOCK").arg(MAX_WAIT.as_millis().to_string());
        read.arg("STREAMS").arg(self.redis.key("changes")).arg(format!("{after}-0"));
        let streams: Option<Vec<(String, Vec<Entry>)>> = read.query_async(connection).await?;
        let entries = streams.into_iter().flatten().flat_map(|(_, entries)| entries);
        let mut version = after;
        for entry in entries {
            let (key, change) = entries::change(&entry)?;
            version = change.version;
            if !self.view().apply(key, change) {
                return Ok(false);
            }
        }
        self.version.send_if_modified(|shown| {
            let newer = version > *shown;
            *shown = version.max(*shown);
            newer
        });
        Ok(true)
    }
}
