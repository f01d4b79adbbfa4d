//! The accept loop around Pingora's proxy.
//!
//! Pingora's `Server` and its listeners (`TransportStack`) are not used. They bind late and panic if that
//! fails, panic again over a certificate that cannot be read, always sleep for the whole grace period,
//! count no connections, and do not let us wrap the stream; they cannot be used apart from each other.
//! Here the listener is bound first, a stop closes idle connections at once and waits for the requests in
//! flight, and several gateways can run in one process. What follows on an accepted connection is in
//! [`crate::incoming`], and uses Pingora's own parts again: its choice of the protocol, its loops over
//! the requests of HTTP/1 and of HTTP/2, and its proxy. TLS is `tokio-rustls`, on which Pingora's own
//! acceptor is built too; that one wraps each connection in a buffer of 64 KiB. The loop has a thread
//! and a runtime of its own, so that other work in the process, such as password hashing in the
//! all-in-one, does not delay requests.

use std::io;
use std::net::TcpListener as StdListener;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use pingora::apps::HttpServerApp;
use pingora::proxy::HttpProxy;
use tokio::net::TcpListener;
use tokio::sync::{AcquireError, OwnedSemaphorePermit, Semaphore, oneshot, watch};
use tourin_chassis::shutdown::Shutdown;

use crate::client_connections::ClientConnections;
use crate::incoming::Incoming;
use crate::log_throttle::LogThrottle;
use crate::proxy::Proxy;
use crate::server_settings::ServerSettings;

/// The pause after a failed accept: without one, a lack of file descriptors causes a busy loop.
const ACCEPT_PAUSE: Duration = Duration::from_millis(20);
/// How often more idle connections are closed while the gateway is full.
const EVICT_EVERY: Duration = Duration::from_millis(50);
const RUNTIME_END: Duration = Duration::from_millis(100);

/// The running data plane.
pub struct DataPlane {
    /// Accepts no more, and closes connections after their next response.
    retire: watch::Sender<bool>,
    /// Closes idle connections.
    stop: watch::Sender<bool>,
    ended: oneshot::Receiver<anyhow::Result<()>>,
}

impl DataPlane {
    /// Serves `listener` on a new thread.
    ///
    /// # Errors
    /// When the operating system gives no thread.
    pub fn start(
        listener: StdListener,
        proxy: HttpProxy<Proxy>,
        settings: ServerSettings,
    ) -> anyhow::Result<Self> {
        let (retire, retiring) = watch::channel(false);
        let (stop, stopping) = watch::channel(false);
        let (end, ended) = oneshot::channel();
        std::thread::Builder::new()
            .name("gateway".to_owned())
            .spawn(move || {
                let result = run(listener, proxy, settings, (retiring, stopping));
                // The receiver is gone if the gateway was dropped.
                let _ = end.send(result);
            })
            .context("cannot start the gateway's thread")?;
        Ok(Self { retire, stop, ended })
    }

    /// Waits until it fails.
    ///
    /// # Errors
    /// Always: why it ended.
    pub async fn ended(&mut self) -> anyhow::Result<()> {
        match (&mut self.ended).await {
            Ok(Ok(())) => anyhow::bail!("the gateway's listener stopped by itself"),
            Ok(Err(error)) => Err(error),
            Err(_) => anyhow::bail!("the gateway's thread panicked"),
        }
    }

    /// Stops accepting, and drains requests in flight. Until `at_once` begins, idle connections stay open
    /// for [`ServerSettings::handover_drain`]: a request may be on its way to one of them.
    ///
    /// # Errors
    /// When the data plane had failed.
    pub async fn stop(self, at_once: &Shutdown) -> anyhow::Result<()> {
        let Self { retire, stop, mut ended } = self;
        // Before the other one, so that it never finds it unset.
        if at_once.is_begun() {
            stop.send_replace(true);
        }
        retire.send_replace(true);
        let ended = tokio::select! {
            ended = &mut ended => ended,
            () = at_once.begun() => {
                stop.send_replace(true);
                ended.await
            }
        };
        ended.context("the gateway's thread panicked")?
    }
}

fn run(
    listener: StdListener,
    proxy: HttpProxy<Proxy>,
    settings: ServerSettings,
    stops: (watch::Receiver<bool>, watch::Receiver<bool>),
) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(settings.threads)
        .thread_name("gateway-worker")
        .enable_all()
        .build()
        .context("cannot start the gateway's runtime")?;
    let served = runtime.block_on(serve(listener, Arc::new(proxy), settings, stops));
    runtime.shutdown_timeout(RUNTIME_END);
    served.context("the gateway cannot listen")
}

async fn serve(
    listener: StdListener,
    proxy: Arc<HttpProxy<Proxy>>,
    settings: ServerSettings,
    (mut retiring, mut stopping): (watch::Receiver<bool>, watch::Receiver<bool>),
) -> io::Result<()> {
    let listener = TcpListener::from_std(listener)?;
    let permits = Arc::new(Semaphore::new(settings.connections.total.min(Semaphore::MAX_PERMITS)));
    let clients =
        ClientConnections::new(settings.connections.per_client, settings.metrics.evicted.clone());
    let (handover_drain, drain_timeout) = (settings.handover_drain, settings.drain_timeout);
    let incoming = Arc::new(Incoming::new(Arc::clone(&proxy), clients.clone(), settings));
    let mut accept_failed = LogThrottle::default();
    loop {
        let accepted = tokio::select! {
            _ = retiring.wait_for(|retire| *retire) => break,
            accepted = listener.accept() => accepted,
        };
        let (tcp, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                if let Some(unlogged) = accept_failed.record(Instant::now()) {
                    tracing::warn!(%error, unlogged, "cannot accept a connection");
                }
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        // A connection that was accepted is served, also if a successor has taken over meanwhile.
        let permit = tokio::select! {
            _ = stopping.wait_for(|stop| *stop) => break,
            permit = make_room(&permits, &clients) => permit,
        };
        let Ok(permit) = permit else { break }; // The semaphore is never closed.
        incoming.accepted(tcp, peer, permit, (retiring.clone(), stopping.clone()));
    }
    drop(listener);
    // Connections close after their next response, idle ones not yet.
    tokio::select! {
        _ = stopping.wait_for(|stop| *stop) => {}
        _ = incoming.drain(handover_drain) => {}
    }
    // Closes idle connections; the others close after their response.
    proxy.http_cleanup().await;
    let left = incoming.drain(drain_timeout).await;
    if left > 0 {
        tracing::warn!(open = left, "requests still in flight at the end of the drain");
    }
    Ok(())
}

/// A permit for the next connection. At the limit, idle connections are closed; while none is idle,
/// new ones wait in the kernel's queue.
async fn make_room(
    permits: &Arc<Semaphore>,
    clients: &ClientConnections,
) -> Result<OwnedSemaphorePermit, AcquireError> {
    if let Ok(permit) = Arc::clone(permits).try_acquire_owned() {
        return Ok(permit);
    }
    loop {
        clients.evict_idle();
        let next = Arc::clone(permits).acquire_owned();
        if let Ok(permit) = tokio::time::timeout(EVICT_EVERY, next).await {
            return permit;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_repeated_message_is_logged_once_a_second() {
        let start = Instant::now();
        let mut accept_failed = LogThrottle::default();
        let logged: Vec<_> =
            (0..250).filter_map(|n| accept_failed.record(start + ACCEPT_PAUSE * n)).collect();
        assert_eq!(logged, [0, 49, 49, 49, 49]);
    }
}
