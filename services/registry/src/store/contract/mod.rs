//! What every store must do: the same tests run over each. Rules that are written both in Rust and in Lua are
//! held to the same behaviour by [`sequences`], too.

mod leases;
mod rules;
mod sequences;
mod watchers;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use chrono::TimeDelta;
use tempfile::TempDir;
use tokio::time::sleep;
use tourin_chassis::clock::SystemClock;
use tourin_chassis::health::Health;
use tourin_chassis::shutdown::Shutdown;
use tourin_registry_api::Instance;
use tourin_registry_api::wire::JoinClaims;
use tourin_testbed::{Server, User, eventually, given_to};
use uuid::Uuid;

use super::memory::MemoryStore;
use super::redis::{Redis, RedisStore, RedisUses};
use crate::app::ports::{Store, StoreError, TokenUses};
use crate::authority::{Authority, AuthoritySettings};
use crate::domain::{CatalogueLimits, ProtectionRule, Swept};

const LIMITS: CatalogueLimits =
    CatalogueLimits { instances: 4, per_service: 4, history: 8, protection: ProtectionRule::OFF };
/// A lease that does not end during a test.
const LONG: TimeDelta = TimeDelta::seconds(120);
/// One whose end a test waits for.
const SHORT: TimeDelta = TimeDelta::milliseconds(300);
/// How often a registry sweeps here: often enough that it never seems to have been paused.
const SWEEP_EVERY: Duration = Duration::from_millis(20);

/// A store as a registry has it, swept until it is dropped.
pub(super) struct Fixture {
    store: Arc<dyn Store>,
    uses: Arc<dyn TokenUses>,
    swept: Arc<Mutex<Vec<Swept>>>,
    stop: Shutdown,
    _folder: TempDir,
}

impl Drop for Fixture {
    fn drop(&mut self) {
        self.stop.begin();
    }
}

impl Fixture {
    async fn in_memory(limits: CatalogueLimits) -> Self {
        let folder = TempDir::new().unwrap();
        let file = folder.path().join("overrides.json");
        let settings = AuthoritySettings {
            folder: folder.path().to_owned(),
            mesh: "tourin".to_owned(),
            lifetime: Duration::from_secs(60),
            given: None,
            tokens: None,
        };
        let authority = Authority::open(settings, Arc::new(SystemClock)).unwrap();
        let store = MemoryStore::open(limits, Arc::new(SystemClock), file).unwrap();
        Self::run(Arc::new(store), Arc::new(authority.uses().clone()), folder).await
    }

    async fn in_redis(limits: CatalogueLimits) -> Self {
        let prefix = format!("test-{}", Uuid::now_v7().simple());
        let url = given_to(User::Registry, Server::Redis).parse().unwrap();
        let redis = Redis::new(&url, &prefix, limits.history).unwrap();
        let health = Health::new().register("redis");
        let store = RedisStore::new(redis.clone(), limits, health);
        let folder = TempDir::new().unwrap();
        Self::run(Arc::new(store), Arc::new(RedisUses::new(redis)), folder).await
    }

    async fn run(store: Arc<dyn Store>, uses: Arc<dyn TokenUses>, folder: TempDir) -> Self {
        let (stop, swept) = (Shutdown::new(), Arc::<Mutex<Vec<Swept>>>::default());
        let (keeping, stopping) = (Arc::clone(&store), stop.clone());
        tokio::spawn(async move { keeping.keep(stopping).await });
        eventually("the instances are known", async || store.ready().is_ok()).await;
        let (sweeping, stopping, found) = (Arc::clone(&store), stop.clone(), Arc::clone(&swept));
        tokio::spawn(async move {
            while !stopping.is_begun() {
                if let Ok(some) = sweeping.sweep().await {
                    found.lock().unwrap_or_else(PoisonError::into_inner).push(some);
                }
                sleep(SWEEP_EVERY).await;
            }
        });
        Self { store, uses, swept, stop, _folder: folder }
    }

    /// The ids of the instances of core.
    fn ids(&self) -> Vec<String> {
        self.store.snapshot(Some("core")).instances.into_iter().map(|i| i.id).collect()
    }

    fn seen(&self, id: &str) -> Instance {
        let all = self.store.snapshot(None).instances;
        all.into_iter().find(|instance| instance.id == id).unwrap()
    }

    /// What all sweeps together have found: who is gone, and which protections began and ended.
    fn swept(&self) -> (Vec<String>, Vec<String>, Vec<String>) {
        let swept = self.swept.lock().unwrap_or_else(PoisonError::into_inner);
        (
            swept.iter().flat_map(|swept| &swept.gone).map(|i| i.id.clone()).collect(),
            swept.iter().flat_map(|swept| swept.protected.clone()).collect(),
            swept.iter().flat_map(|swept| swept.unprotected.clone()).collect(),
        )
    }
}

fn instance(id: &str, port: u16) -> Instance {
    Instance::new("core", id, ([127, 0, 0, 1], port).into())
}

fn claims(token: &str) -> JoinClaims {
    JoinClaims {
        iss: "tourin".to_owned(),
        sub: "core".to_owned(),
        jti: token.to_owned(),
        exp: u64::try_from(chrono::Utc::now().timestamp()).unwrap() + 3_600,
        uses: None,
        root: String::new(),
    }
}

/// Why a call was refused.
fn refusal<T: std::fmt::Debug, E>(result: Result<T, StoreError<E>>) -> E {
    match result {
        Err(StoreError::Refused(reason)) => reason,
        Err(StoreError::Unavailable(error)) => panic!("{error}"),
        Ok(value) => panic!("it is not refused: {value:?}"),
    }
}

/// Runs the tests over each store.
macro_rules! over_each_store {
    ($($test:ident),* $(,)?) => {
        mod in_memory {
            use crate::store::contract::Fixture;
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $test() {
                super::$test(Fixture::in_memory).await;
            })*
        }
        mod in_redis {
            use crate::store::contract::Fixture;
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $test() {
                super::$test(Fixture::in_redis).await;
            })*
        }
    };
}
use over_each_store;
