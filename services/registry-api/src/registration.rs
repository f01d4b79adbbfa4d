//! Keeps one instance registered.

use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tokio_util::sync::{CancellationToken, DropGuard};
use tracing::{debug, info, warn};

use crate::backoff::Backoff;
use crate::client::{ClientError, RegistryClient};
use crate::instance::{Instance, Status};

/// Longest time of [`Registration::leave`] and [`Registration::drain`] (milliseconds).
const LEAVE_TIMEOUT_MS: u64 = 2_000;
/// Part of that which is left for the network (milliseconds).
const ROUND_TRIP_MS: u64 = 200;

/// The state of a [`Registration`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RegistrationState {
    /// Trying to register; with the last failure if there was one.
    Registering(Option<ClientError>),
    /// Registered, according to the last heartbeat.
    Registered,
    /// The last heartbeats failed and the lease may expire. Keeps trying.
    Unreachable(ClientError),
}

/// Keeps one instance registered: retries until it is, renews the lease with every heartbeat, and
/// registers again when the registry has forgotten it.
///
/// Heartbeats end with the token, with [`Registration::leave`], or with a drop. Only `leave` tells
/// the registry; otherwise the lease expires.
///
/// ```
/// use std::time::Duration;
///
/// use tokio_util::sync::CancellationToken;
/// use tourin_registry_api::{Instance, Registration, RegistrationState, RegistryClient};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// // Nothing listens there: the registration keeps trying.
/// let (http, secret) = (reqwest::Client::new(), "a-secret-of-the-mesh");
/// let client = RegistryClient::new(http, "http://127.0.0.1:1", secret).unwrap();
/// let instance = Instance::new("core", "core-1", "127.0.0.1:8081".parse().unwrap());
/// let (heartbeat, lease) = (Duration::from_secs(1), Duration::from_secs(3));
/// let stop = CancellationToken::new();
/// let registration = Registration::start(client, instance, heartbeat, lease, stop);
/// assert!(!registration.registered(Duration::from_millis(50)).await);
/// assert!(matches!(*registration.state().borrow(), RegistrationState::Registering(_)));
/// assert!(!registration.leave().await);
/// # }
/// ```
#[derive(Debug)]
pub struct Registration {
    client: RegistryClient,
    service: String,
    id: String,
    status: watch::Sender<Status>,
    state: watch::Receiver<RegistrationState>,
    heartbeats: JoinHandle<()>,
    stop: DropGuard,
}

impl Registration {
    /// Registers `instance` in the background and returns at once. Must be called within a tokio
    /// runtime.
    ///
    /// The lease should be three heartbeats or more, so that one may be lost. A name or id outside
    /// of [`crate::limits`] is refused by the registry again and again; the log says so.
    pub fn start(
        client: RegistryClient,
        instance: Instance,
        heartbeat: Duration,
        lease: Duration,
        stop: CancellationToken,
    ) -> Self {
        let stop = stop.child_token();
        let (status, wanted_status) = watch::channel(instance.status);
        let (progress, state) = watch::channel(RegistrationState::Registering(None));
        let (service, id) = (instance.service.clone(), instance.id.clone());
        let heartbeats = Heartbeats {
            client: client.clone(),
            instance,
            wanted_status,
            heartbeat,
            lease,
            progress,
            backoff: Backoff::new(heartbeat),
        };
        let ended = stop.clone();
        let heartbeats = tokio::spawn(async move {
            tokio::select! {
                () = ended.cancelled() => {}
                () = heartbeats.run() => {}
            }
        });
        Self { client, service, id, status, state, heartbeats, stop: stop.drop_guard() }
    }

    /// The state, with a wake-up at every change.
    pub fn state(&self) -> watch::Receiver<RegistrationState> {
        self.state.clone()
    }

    /// Waits until the instance is registered; false when `limit` passed first.
    pub async fn registered(&self, limit: Duration) -> bool {
        let mut state = self.state.clone();
        let known = state.wait_for(|state| *state == RegistrationState::Registered);
        matches!(timeout(limit, known).await, Ok(Ok(_)))
    }

    /// Announces that the instance takes no new requests; the lease is still renewed. True once every
    /// live watcher has acknowledged it; false after 2 s, or when the registry is unreachable (the
    /// next heartbeat says so).
    pub async fn drain(&self) -> bool {
        self.status.send_replace(Status::Draining);
        let limit = Duration::from_millis(LEAVE_TIMEOUT_MS);
        let wait = limit - Duration::from_millis(ROUND_TRIP_MS);
        let draining = self.client.drain(&self.service, &self.id, wait);
        matches!(timeout(limit, draining).await, Ok(Ok(departure)) if departure.acknowledged)
    }

    /// Ends the heartbeats and deregisters. Keep serving until this returns: true once every live
    /// watcher has acknowledged it; false after 2 s, or at once when the registry is unreachable.
    pub async fn leave(self) -> bool {
        let Self { client, service, id, heartbeats, stop, .. } = self;
        drop(stop);
        if heartbeats.await.is_err() {
            warn!(service, id, "the heartbeats ended by a panic");
        }
        let end = Instant::now() + Duration::from_millis(LEAVE_TIMEOUT_MS);
        // Two attempts: the first may meet a dead kept-alive connection.
        for _ in 0..2 {
            let left = end.saturating_duration_since(Instant::now());
            let wait = left.saturating_sub(Duration::from_millis(ROUND_TRIP_MS));
            match timeout_at(end, client.deregister(&service, &id, wait)).await {
                Ok(Ok(departure)) => {
                    info!(service, id, acknowledged = departure.acknowledged, "left the registry");
                    return departure.acknowledged;
                }
                // Never registered, expired, or the registry has restarted: it is not listed.
                Ok(Err(ClientError::Unknown)) => return true,
                Ok(Err(ClientError::Unreachable(reason))) => debug!(reason, "could not leave"),
                Ok(Err(error)) => {
                    warn!(service, id, %error, "could not leave the registry");
                    return false;
                }
                Err(_) => break,
            }
        }
        info!(service, id, "the registry is unreachable; the lease will expire");
        false
    }
}

struct Heartbeats {
    client: RegistryClient,
    instance: Instance,
    wanted_status: watch::Receiver<Status>,
    heartbeat: Duration,
    lease: Duration,
    progress: watch::Sender<RegistrationState>,
    backoff: Backoff,
}

impl Heartbeats {
    async fn run(mut self) {
        loop {
            self.register().await;
            self.renew_until_forgotten().await;
        }
    }

    async fn register(&mut self) {
        loop {
            self.instance.status = *self.wanted_status.borrow_and_update();
            let attempt = self.client.register(&self.instance, self.lease);
            match in_time(self.attempt_timeout(), attempt).await {
                Ok(registered) => {
                    self.backoff.reset();
                    info!(
                        service = self.instance.service,
                        id = self.instance.id,
                        version = registered.version,
                        "registered"
                    );
                    self.progress.send_replace(RegistrationState::Registered);
                    // `drain` may have been called meanwhile.
                    if *self.wanted_status.borrow() == self.instance.status {
                        return;
                    }
                }
                Err(error) => {
                    self.report(RegistrationState::Registering(Some(error)));
                    sleep(self.backoff.pause()).await;
                }
            }
        }
    }

    async fn renew_until_forgotten(&mut self) {
        let mut pause = self.heartbeat;
        loop {
            sleep(pause).await;
            let attempt = self.client.renew(&self.instance.service, &self.instance.id);
            match in_time(self.attempt_timeout(), attempt).await {
                Ok(()) => {
                    self.report(RegistrationState::Registered);
                    self.backoff.reset();
                    pause = self.heartbeat;
                }
                Err(ClientError::Unknown) => {
                    self.report(RegistrationState::Registering(Some(ClientError::Unknown)));
                    return;
                }
                Err(error) => {
                    self.report(RegistrationState::Unreachable(error));
                    // Sooner than the next heartbeat, because the lease is running.
                    pause = self.backoff.pause();
                }
            }
        }
    }

    /// A hanging attempt must leave time for another one within the lease.
    fn attempt_timeout(&self) -> Duration {
        self.heartbeat.max(Duration::from_millis(100))
    }

    fn report(&self, state: RegistrationState) {
        let service = &self.instance.service;
        let id = &self.instance.id;
        self.progress.send_if_modified(|known| {
            if *known == state {
                return false;
            }
            match &state {
                RegistrationState::Registered => info!(service, id, "the registry is back"),
                RegistrationState::Registering(Some(ClientError::Unknown)) => {
                    info!(service, id, "the registry forgot this instance; registering again");
                }
                RegistrationState::Registering(Some(error)) => {
                    warn!(service, id, %error, "not registered; trying again");
                }
                RegistrationState::Unreachable(error) => {
                    warn!(service, id, %error, "the lease could not be renewed; trying again");
                }
                RegistrationState::Registering(None) => {}
            }
            *known = state;
            true
        });
    }
}

async fn in_time<T>(
    limit: Duration,
    attempt: impl Future<Output = Result<T, ClientError>>,
) -> Result<T, ClientError> {
    match timeout(limit, attempt).await {
        Ok(result) => result,
        Err(_) => Err(ClientError::Unreachable("no response in time".to_owned())),
    }
}
