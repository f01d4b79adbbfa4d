//! Keeps one instance known to the registry.

use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tokio_util::sync::{CancellationToken, DropGuard};
use tracing::{debug, info, warn};

use crate::backoff::Backoff;
use crate::client::{ClientError, RegistryClient};
use crate::instance::{Instance, Status};

/// [`Registration::leave`] and [`Registration::drain`] take at most this long (milliseconds).
const LEAVE_TIMEOUT_MS: u64 = 2_000;
/// Of that, this much is for the way there and back (milliseconds).
const ROUND_TRIP_MS: u64 = 200;

/// How far a [`Registration`] has come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RegistrationState {
    /// Not known to the registry, and trying; the last failure if there was one.
    Registering(Option<ClientError>),
    /// Known to the registry, as far as the last heartbeat says.
    Registered,
    /// The last heartbeats failed; the lease may run out. Keeps trying.
    Unreachable(ClientError),
}

/// Keeps one instance known to the registry: registers (again and again until it succeeds), renews
/// the lease with every heartbeat, registers again when the registry forgot it.
///
/// Heartbeats end when the token is cancelled, when [`Registration::leave`] is called, or when this
/// is dropped. Only `leave` tells the registry; otherwise the lease runs out.
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
    /// Starts to register `instance`, in the background, and returns at once. Must be called
    /// within a tokio runtime.
    ///
    /// The lease should be three heartbeats or more, so that one lost heartbeat does no harm.
    /// What the registry holds an id and a name to is in [`crate::limits`]; it refuses others, and
    /// this goes on trying and saying so.
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

    /// How far it has come, and every change of that.
    pub fn state(&self) -> watch::Receiver<RegistrationState> {
        self.state.clone()
    }

    /// Waits until the registry knows the instance; false when `limit` passed first.
    pub async fn registered(&self, limit: Duration) -> bool {
        let mut state = self.state.clone();
        let known = state.wait_for(|state| *state == RegistrationState::Registered);
        matches!(timeout(limit, known).await, Ok(Ok(_)))
    }

    /// Announces that the instance wants nothing new; the lease is still renewed. Returns true once
    /// every live watcher acknowledged, false after 2 s or when the registry cannot be told now
    /// (it is told when it is back).
    pub async fn drain(&self) -> bool {
        self.status.send_replace(Status::Draining);
        let limit = Duration::from_millis(LEAVE_TIMEOUT_MS);
        let wait = limit - Duration::from_millis(ROUND_TRIP_MS);
        let draining = self.client.drain(&self.service, &self.id, wait);
        matches!(timeout(limit, draining).await, Ok(Ok(departure)) if departure.acknowledged)
    }

    /// Ends the heartbeats and deregisters. Keep serving until this returns: true once every live
    /// watcher acknowledged, false after 2 s or at once when the registry is not there.
    pub async fn leave(self) -> bool {
        let Self { client, service, id, heartbeats, stop, .. } = self;
        drop(stop);
        if heartbeats.await.is_err() {
            warn!(service, id, "the heartbeats ended by a panic");
        }
        let end = Instant::now() + Duration::from_millis(LEAVE_TIMEOUT_MS);
        // Two attempts: a kept-alive connection may turn out to be dead with the first.
        for _ in 0..2 {
            let left = end.saturating_duration_since(Instant::now());
            let wait = left.saturating_sub(Duration::from_millis(ROUND_TRIP_MS));
            match timeout_at(end, client.deregister(&service, &id, wait)).await {
                Ok(Ok(departure)) => {
                    info!(service, id, acknowledged = departure.acknowledged, "left the registry");
                    return departure.acknowledged;
                }
                // Never registered, expired, or the registry restarted: it is not listed.
                Ok(Err(ClientError::Unknown)) => return true,
                Ok(Err(ClientError::Unreachable(reason))) => debug!(reason, "could not leave"),
                Ok(Err(error)) => {
                    warn!(service, id, %error, "could not leave the registry");
                    return false;
                }
                Err(_) => break,
            }
        }
        info!(service, id, "the registry is not there to be told; the lease runs out");
        false
    }
}

/// The background half.
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
                    // Drain was asked for while the request was on its way.
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
                    // Sooner than the next heartbeat: the lease is running.
                    pause = self.backoff.pause();
                }
            }
        }
    }

    /// An attempt that hangs must leave time for another within the lease.
    fn attempt_timeout(&self) -> Duration {
        self.heartbeat.max(Duration::from_millis(100))
    }

    /// Publishes the state, and logs it when it is another than before.
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
        Err(_) => Err(ClientError::Unreachable("no answer in time".to_owned())),
    }
}
