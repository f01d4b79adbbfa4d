//! The background task of a directory: keeps the watch open and sends acknowledgements.

use std::sync::Arc;
use std::time::{Duration, Instant};

use reqwest::header::CONTENT_TYPE;
use tokio::sync::watch;
use tokio::time::{sleep, sleep_until, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::{DirectorySettings, Shared};
use crate::backoff::Backoff;
use crate::client::{ClientError, MAX_RESPONSE_BYTES, RegistryClient};
use crate::membership::{Gap, Membership};
use crate::sse::{Event, ParseError, Parser};
use crate::wire::{CHANGE_EVENT, SNAPSHOT_EVENT};

/// Why a watch ended.
#[derive(Debug, thiserror::Error)]
enum WatchError {
    #[error(transparent)]
    Client(#[from] ClientError),
    #[error("the response is not a stream of events")]
    NotAStream,
    #[error("the registry closed the watch")]
    Closed,
    #[error("the watch was cut: {0}")]
    Cut(String),
    #[error("the watch was silent for {0:?}")]
    Silent(Duration),
    #[error(transparent)]
    Unparseable(#[from] ParseError),
    #[error("an event is not understood: {0}")]
    NotUnderstood(#[from] serde_json::Error),
    #[error(transparent)]
    Missed(#[from] Gap),
}

impl WatchError {
    /// Whether resuming from the same version would fail again.
    fn wants_snapshot(&self) -> bool {
        matches!(self, Self::Unparseable(_) | Self::NotUnderstood(_) | Self::Missed(_))
    }
}

pub(super) struct Follower {
    client: RegistryClient,
    watcher: Option<String>,
    settings: DirectorySettings,
    shared: Arc<Shared>,
    known: Membership,
    /// The number of the open watch; 0 while none is open.
    session: watch::Sender<u64>,
    sessions: u64,
    /// Ask for a snapshot, not for changes.
    needs_snapshot: bool,
}

impl Follower {
    pub(super) fn new(
        client: RegistryClient,
        watcher: Option<String>,
        settings: DirectorySettings,
        shared: Arc<Shared>,
    ) -> Self {
        Self {
            client,
            watcher,
            settings,
            shared,
            known: Membership::default(),
            session: watch::Sender::new(0),
            sessions: 0,
            needs_snapshot: false,
        }
    }

    pub(super) async fn run(self, stop: CancellationToken) {
        let shared = Arc::clone(&self.shared);
        let acks = send_acks(
            self.client.clone(),
            self.watcher.clone(),
            shared.acknowledged.subscribe(),
            self.session.subscribe(),
        );
        tokio::select! {
            () = stop.cancelled() => {}
            () = self.follow() => {}
            () = acks => {}
        }
        shared.connected.send_replace(false);
    }

    async fn follow(mut self) {
        let mut backoff = Backoff::new(self.settings.max_backoff);
        let mut logged = false;
        loop {
            let sessions = self.sessions;
            let Err(end) = self.watch_once().await;
            self.session.send_replace(0);
            self.shared.connected.send_if_modified(|on| std::mem::replace(on, false));
            self.needs_snapshot = end.wants_snapshot();
            if self.sessions != sessions {
                // The watch had been open, so an earlier failure is over.
                backoff.reset();
                logged = false;
            }
            if logged {
                debug!(%end, "no watch");
            } else {
                let version = self.known.version();
                warn!(%end, version, "no watch on the registry; keeping what is known");
                logged = true;
            }
            sleep(backoff.pause()).await;
        }
    }

    async fn watch_once(&mut self) -> Result<std::convert::Infallible, WatchError> {
        let from = if self.needs_snapshot { 0 } else { self.known.version() };
        let mut response =
            self.client.watch(from, self.known.epoch(), self.watcher.as_deref()).await?;
        let kind = response.headers().get(CONTENT_TYPE).map(|kind| kind.as_bytes());
        if !kind.is_some_and(|kind| kind.starts_with(b"text/event-stream")) {
            return Err(WatchError::NotAStream);
        }
        self.sessions += 1;
        self.session.send_replace(self.sessions);
        self.shared.connected.send_replace(true);
        info!(from, "watching the registry");
        self.known.connected(Instant::now(), self.settings.settle);

        let idle_timeout = self.settings.idle_timeout;
        let mut parser = Parser::new(MAX_RESPONSE_BYTES);
        loop {
            let settles_at = self.known.settles_at();
            tokio::select! {
                piece = timeout(idle_timeout, response.chunk()) => {
                    let piece = piece
                        .map_err(|_| WatchError::Silent(idle_timeout))?
                        .map_err(|e| WatchError::Cut(e.to_string()))?
                        .ok_or(WatchError::Closed)?;
                    let events = parser.push(&piece)?;
                    if !events.is_empty() {
                        let taken = self.take(events);
                        // Also the events before one that could not be applied.
                        self.publish();
                        taken?;
                    }
                }
                () = sleep_until(settles_at.unwrap_or_else(Instant::now).into()),
                    if settles_at.is_some() =>
                {
                    if self.known.settle(Instant::now()) {
                        info!("instances that did not register again after the restart are gone");
                        self.publish();
                    }
                }
            }
        }
    }

    fn publish(&self) {
        self.shared.publish(self.known.version(), self.known.instances().cloned().collect());
    }

    fn take(&mut self, events: Vec<Event>) -> Result<(), WatchError> {
        for event in events {
            match event.name.as_str() {
                SNAPSHOT_EVENT => {
                    let snapshot = serde_json::from_str(&event.data)?;
                    self.known.replace(snapshot, Instant::now(), self.settings.settle);
                }
                CHANGE_EVENT => self.known.apply(serde_json::from_str(&event.data)?)?,
                other => debug!(event = other, "an unknown kind of event"),
            }
        }
        Ok(())
    }
}

/// Sends the latest acknowledged version, once per watch and at every change.
async fn send_acks(
    client: RegistryClient,
    watcher: Option<String>,
    mut acknowledged: watch::Receiver<u64>,
    mut session: watch::Receiver<u64>,
) {
    let Some(watcher) = watcher else {
        return std::future::pending().await;
    };
    let mut backoff = Backoff::new(Duration::from_millis(1_000));
    let mut sent = (0, 0);
    loop {
        let wanted = (*session.borrow_and_update(), *acknowledged.borrow_and_update());
        if wanted.0 != 0 && wanted.1 != 0 && wanted != sent {
            match client.ack(&watcher, wanted.1).await {
                Ok(()) => {
                    sent = wanted;
                    backoff.reset();
                }
                Err(error) => {
                    debug!(%error, version = wanted.1, "could not acknowledge; trying again");
                    sleep(backoff.pause()).await;
                }
            }
            continue;
        }
        // The senders live in the follower, which is dropped together with this.
        let woken = tokio::select! {
            woken = acknowledged.changed() => woken,
            woken = session.changed() => woken,
        };
        if woken.is_err() {
            return std::future::pending().await;
        }
    }
}
