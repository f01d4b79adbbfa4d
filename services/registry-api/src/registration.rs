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
use crate::wire::{Departure, LeaveRequest};

/// Longest time of [`Registration::leave`] and [`Registration::drain`] (milliseconds).
const LEAVE_TIMEOUT_MS: u64 = 2_000;
/// Longest time of [`Departing::finish`] (milliseconds), which waits for nobody; and when the registry did
/// not answer before.
const FINISH_TIMEOUT_MS: u64 = 1_000;
const FINISH_UNHEARD_MS: u64 = 300;
/// Part of [`LEAVE_TIMEOUT_MS`] which is left for the network (milliseconds).
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
/// # rustls::crypto::ring::default_provider().install_default().unwrap();
/// let client = RegistryClient::new(reqwest::Client::new(), "https://127.0.0.1:1").unwrap();
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
        self.receipt_of_drain().await.is_some_and(|receipt| receipt.acknowledged)
    }

    async fn receipt_of_drain(&self) -> Option<Departure> {
        self.status.send_replace(Status::Draining);
        let drained = in_two_attempts(LEAVE_TIMEOUT_MS, |wait| {
            self.client.drain(&self.service, &self.id, wait)
        });
        drained.await.inspect_err(|error| debug!(%error, "could not drain")).ok()
    }

    /// Begins to leave: announces that the instance takes no new requests, and returns once every live
    /// watcher has acknowledged that, or after 2 s. Keep serving until then; then finish the requests in
    /// flight, and say so by [`Departing::finish`]. The lease is renewed meanwhile.
    pub async fn depart(self) -> Departing {
        let began = Instant::now();
        let receipt = self.receipt_of_drain().await;
        match &receipt {
            Some(Departure { acknowledged, watchers, .. }) => {
                info!(service = self.service, id = self.id, acknowledged, watchers, "draining");
            }
            None => info!(service = self.service, id = self.id, "draining without the registry"),
        }
        Departing { registration: self, began, receipt }
    }

    /// Ends the heartbeats and deregisters, for an instance without requests in flight. Keep serving until
    /// this returns: true once every live watcher has acknowledged it; false after 2 s, or at once when the
    /// registry is unreachable.
    pub async fn leave(self) -> bool {
        let Self { client, service, id, heartbeats, stop, .. } = self;
        stopped(heartbeats, stop, (&service, &id)).await;
        let left =
            in_two_attempts(LEAVE_TIMEOUT_MS, |wait| client.deregister(&service, &id, wait)).await;
        match left {
            Ok(departure) => {
                info!(service, id, acknowledged = departure.acknowledged, "left the registry");
                departure.acknowledged
            }
            Err(error) => is_gone(&error, (&service, &id)),
        }
    }
}

/// An instance that no watcher sends new requests to, and that has requests in flight. Dropping it lets
/// its lease expire.
#[derive(Debug)]
pub struct Departing {
    registration: Registration,
    began: Instant,
    receipt: Option<Departure>,
}

impl Departing {
    /// Whether every live watcher has acknowledged that the instance drains.
    pub fn is_acknowledged(&self) -> bool {
        self.receipt.as_ref().is_some_and(|receipt| receipt.acknowledged)
    }

    /// The last request is answered: deregisters, with the numbers of requests that were `served` and of
    /// those among them that were answered with an error of the server. False after 1 s, or at once when
    /// the registry is unreachable: the lease expires then.
    pub async fn finish(self, (served, errors): (u64, u64)) -> bool {
        let Self { registration, began, receipt } = self;
        let Registration { client, service, id, heartbeats, stop, .. } = registration;
        stopped(heartbeats, stop, (&service, &id)).await;
        let drain_ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
        let limit = if receipt.is_some() { FINISH_TIMEOUT_MS } else { FINISH_UNHEARD_MS };
        let report = LeaveRequest { served, errors, drain_ms, receipt };
        match in_two_attempts(limit, |_| client.leave(&service, &id, &report)).await {
            Ok(_) => {
                info!(service, id, served, errors, drain_ms, "left the registry");
                true
            }
            Err(error) => is_gone(&error, (&service, &id)),
        }
    }
}

/// Ends the heartbeats, so that none registers the instance again.
async fn stopped(heartbeats: JoinHandle<()>, stop: DropGuard, (service, id): (&str, &str)) {
    drop(stop);
    if heartbeats.await.is_err() {
        warn!(service, id, "the heartbeats ended by a panic");
    }
}

/// Makes a call within a time, of which it may wait for acknowledgements for almost all. The first of two
/// attempts may meet a dead kept-alive connection.
async fn in_two_attempts<F>(
    limit_ms: u64,
    call: impl Fn(Duration) -> F,
) -> Result<Departure, ClientError>
where
    F: Future<Output = Result<Departure, ClientError>>,
{
    let end = Instant::now() + Duration::from_millis(limit_ms);
    let mut last = ClientError::Unreachable("no response in time".to_owned());
    for _ in 0..2 {
        let left = end.saturating_duration_since(Instant::now());
        let wait = left.saturating_sub(Duration::from_millis(ROUND_TRIP_MS));
        match timeout_at(end, call(wait)).await {
            Ok(Err(error @ ClientError::Unreachable(_))) => last = error,
            Ok(answered) => return answered,
            Err(_) => break,
        }
    }
    Err(last)
}

/// Whether an instance is not listed although it could not leave.
fn is_gone(error: &ClientError, (service, id): (&str, &str)) -> bool {
    match error {
        // Never registered, expired, or the registry has restarted.
        ClientError::Unknown => return true,
        ClientError::Unreachable(reason) => {
            info!(service, id, reason, "the registry is unreachable; the lease will expire");
        }
        error => warn!(service, id, %error, "could not leave the registry"),
    }
    false
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
