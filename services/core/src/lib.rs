//! Tourin's core service: accounts and tokens, tour spots, reviews, bookmarks.
//!
//! [`Core::build`] opens the store, migrates it and takes the listening address; then
//! [`Core::run_until_stopped`] registers, serves, and on the stop leaves the registry, drains and
//! ends its tasks, in that order and within 4 s.

pub mod app;
mod assemble;
mod background;
pub mod config;
pub mod domain;
pub mod http;
pub mod store;
#[cfg(test)]
mod testing;

use std::fs::File;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use tokio::net::TcpListener;
use tourin_chassis::clock::SharedClock;
use tourin_chassis::health::Health;
use tourin_chassis::http::{HttpLimits, bind, serve, service_router};
use tourin_chassis::identity::IdentityVerifier;
use tourin_chassis::shutdown::{Shutdown, Tasks};
use tourin_registry_api::{Instance, Registration, RegistryClient};
use tourin_shared_events::bus::Publisher;
use tourin_shared_events::outbox::Wake;
use tourin_shared_events::sqlite::{create_private_folder, hold_folder};

pub use self::config::Settings;
use crate::app::import::load_catalogue;
use crate::app::signing::SigningKeys;
use crate::config::TokenSettings;
use crate::http::AppState;
use crate::store::key_files::{read_or_create_signing_key, read_previous_keys, read_signing_key};
use crate::store::sqlite::{SqliteSpots, SqliteStore};

/// The service's name in the registry and in identities.
pub const SERVICE: &str = "core";

/// How long background tasks may take to end after the drain.
const TASKS_LIMIT: Duration = Duration::from_millis(500);

/// The database in the data folder.
const DATABASE_FILE: &str = "core.sqlite3";

/// What the process that the service runs in gives it.
pub struct Dependencies {
    /// Where events go. Without one, other processes follow them over HTTP (`/internal/events`).
    pub publisher: Option<Arc<dyn Publisher>>,
    /// What time it is.
    pub clock: SharedClock,
}

/// The core service, ready to serve.
pub struct Core {
    settings: Settings,
    listener: TcpListener,
    address: SocketAddr,
    registry: RegistryClient,
    store: SqliteStore,
    state: AppState,
    stopping: Shutdown,
    dependencies: Dependencies,
    /// Held for its effect: it keeps a second core out of the folder.
    held: File,
}

impl Core {
    /// Opens the store, migrates it, loads the catalogue at the first start, takes the address.
    ///
    /// # Errors
    /// When a setting is bad, the data folder cannot be used, or the address is taken.
    pub async fn build(settings: Settings, dependencies: Dependencies) -> anyhow::Result<Self> {
        settings.tokens.policy()?;
        let registry = RegistryClient::new(
            &settings.mesh.registry_url,
            settings.mesh.registration_secret.expose(),
        )
        .with_context(|| format!("--registry-url {}", settings.mesh.registry_url))?;
        create_private(&settings.data_dir)?;
        let held = hold_folder(&settings.data_dir, SERVICE)
            .with_context(|| format!("--data-dir {}", settings.data_dir.display()))?;
        let keys = signing_keys(&settings.tokens, &settings.data_dir)?;
        // Before anything is written to the database: of two on one folder, one fails here or waits
        // for the other's lock, and neither is half-way through.
        let listener = bind(settings.listen).await?;
        let address = listener.local_addr()?;

        let store = open_store(&settings.data_dir, settings.database_readers).await?;

        let clock = &dependencies.clock;
        if !settings.no_demo {
            load_catalogue(&SqliteSpots::new(store.clone()), clock.as_ref())
                .await
                .context("loading the catalogue of tour spots")?;
        }

        let stopping = Shutdown::new();
        let state = assemble::assemble(&settings, &store, keys, clock, &stopping)?;
        Ok(Self {
            settings,
            listener,
            address,
            registry,
            store,
            state,
            stopping,
            dependencies,
            held,
        })
    }

    /// The address that it listens on.
    pub fn addr(&self) -> SocketAddr {
        self.address
    }

    /// Registers and serves until `stop`, then leaves the registry, drains and ends.
    ///
    /// # Errors
    /// When the listener fails for good.
    pub async fn run_until_stopped(self, stop: Shutdown) -> anyhow::Result<()> {
        let Self {
            settings,
            listener,
            address,
            registry,
            store,
            state,
            stopping,
            dependencies,
            held,
        } = self;
        // Tasks outlive the last request: what it left behind (views, events) is still written.
        let end = Shutdown::new();
        let tasks = Tasks::new(end.clone()).or_stop(stop.clone());
        let health = Health::new();
        background::start(&tasks, &store, &state, &dependencies, &health);

        let limits = HttpLimits::default();
        let verifier = IdentityVerifier::new(&settings.mesh.registration_secret, SERVICE);
        let views = state.content.views.clone();
        let router = service_router(SERVICE, http::router(state), verifier, health, &limits);

        let mesh = &settings.mesh;
        let instance =
            Instance::new(SERVICE, mesh.instance_id_or_new(SERVICE), mesh.advertised(address));
        let registration = Registration::start(
            registry,
            instance,
            Duration::from_millis(mesh.heartbeat_ms),
            Duration::from_millis(mesh.lease_ms),
            end.token(),
        );

        // Requests are served until every gateway knows that we leave.
        let drain = Shutdown::new();
        let farewell = async {
            stop.begun().await;
            // Long polls end first, so that the drain does not wait for them.
            stopping.begin();
            registration.leave().await;
            drain.begin();
        };
        let drain_timeout = Duration::from_millis(settings.drain_timeout_ms);
        let serving = serve(listener, router, &limits, drain.clone(), drain_timeout);
        let (served, ()) = tokio::join!(
            async {
                let served = serving.await;
                // A listener that failed must not leave the farewell waiting for a stop.
                stop.begin();
                served
            },
            farewell
        );
        if let Err(error) = views.flush().await {
            tracing::warn!(%error, "the last views could not be written");
        }
        end.begin();
        let finished = tasks.finish(TASKS_LIMIT).await;
        store.close().await;
        drop(held);
        served.context("serving").and(finished)
    }
}

/// Makes the folder with access for its owner only: it holds a private key and password hashes.
fn create_private(folder: &Path) -> anyhow::Result<()> {
    create_private_folder(folder)
        .with_context(|| format!("--data-dir {}: cannot make the folder", folder.display()))
}

async fn open_store(data_dir: &Path, readers: u32) -> anyhow::Result<SqliteStore> {
    SqliteStore::open(&data_dir.join(DATABASE_FILE), readers, Wake::new())
        .await
        .with_context(|| format!("--data-dir {}", data_dir.display()))
}

/// Whether core has kept data in this folder before.
pub fn has_database(data_dir: &Path) -> bool {
    data_dir.join(DATABASE_FILE).exists()
}

/// The tour spots in a data folder, for an import beside a service that may be running on it.
///
/// # Errors
/// When the folder cannot be made or the database in it not be opened.
pub async fn open_spots(data_dir: &Path) -> anyhow::Result<SqliteSpots> {
    create_private(data_dir)?;
    Ok(SqliteSpots::new(open_store(data_dir, 1).await?))
}

fn signing_keys(settings: &TokenSettings, data_dir: &Path) -> anyhow::Result<SigningKeys> {
    let current = match &settings.signing_key {
        Some(file) => read_signing_key(file).context("--signing-key")?,
        None => read_or_create_signing_key(&data_dir.join("signing.pem")).context("--data-dir")?,
    };
    let mut previous = settings.previous_signing_keys.clone();
    let folder = data_dir.join("previous-keys");
    if previous.is_empty() && folder.is_dir() {
        previous.push(folder);
    }
    let previous = read_previous_keys(&previous).context("--previous-signing-keys")?;
    SigningKeys::new(&current, &previous)
}
