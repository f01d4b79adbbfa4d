//! The accept loop around Pingora's proxy.
//!
//! Pingora's `Server` is not used: it binds late and panics if that fails, always sleeps for its whole
//! grace period, and does not let us wrap the stream. Here the listener is bound first, a stop closes
//! idle connections at once and waits for the requests in flight, and several gateways can run in one
//! process. The loop has a thread and a runtime of its own, so that other work in the process, such as
//! password hashing in the all-in-one, does not delay requests.

use std::io;
use std::net::TcpListener as StdListener;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use ipnet::IpNet;
use pingora::apps::HttpServerApp;
use pingora::protocols::http::ServerSession;
use pingora::proxy::HttpProxy;
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, oneshot, watch};
use tokio_util::task::TaskTracker;
use tourin_chassis::metrics::Gauge;

use crate::connection::{Connection, ConnectionLimits, GuardedStream};
use crate::descriptors::ConnectionCounts;
use crate::limits::ClientConnections;
use crate::log_throttle::LogThrottle;
use crate::malformed::MalformedRequests;
use crate::metrics::ConnectionMetrics;
use crate::proxy::Proxy;

/// The pause after a failed accept: without one, a lack of file descriptors causes a busy loop.
const ACCEPT_PAUSE: Duration = Duration::from_millis(20);
const RUNTIME_END: Duration = Duration::from_millis(100);
/// Pingora's keep-alive time-out (seconds); the stream's idle time-out is shorter.
const KEEP_ALIVE_S: u64 = 3_600;

/// Settings of the data plane.
#[derive(Debug, Clone)]
pub struct ServerSettings {
    /// Worker threads.
    pub threads: usize,
    /// Limits on client connections.
    pub connections: ConnectionCounts,
    /// Proxies, to which the limit per client does not apply.
    pub trusted_proxies: Vec<IpNet>,
    /// Time for requests in flight at the stop.
    pub drain_timeout: Duration,
    /// Bounds of each connection.
    pub limits: ConnectionLimits,
    /// Counts of connections.
    pub metrics: ConnectionMetrics,
    /// Refuses and records malformed requests.
    pub malformed: Arc<MalformedRequests>,
}

/// The running data plane.
pub struct DataPlane {
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
        let (stop, stopping) = watch::channel(false);
        let (end, ended) = oneshot::channel();
        std::thread::Builder::new()
            .name("gateway".to_owned())
            .spawn(move || {
                let result = run(listener, proxy, &settings, stopping);
                // The receiver is gone if the gateway was dropped.
                let _ = end.send(result);
            })
            .context("cannot start the gateway's thread")?;
        Ok(Self { stop, ended })
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

    /// Stops accepting, and drains requests in flight.
    ///
    /// # Errors
    /// When the data plane had failed.
    pub async fn stop(self) -> anyhow::Result<()> {
        self.stop.send_replace(true);
        self.ended.await.context("the gateway's thread panicked")?
    }
}

fn run(
    listener: StdListener,
    proxy: HttpProxy<Proxy>,
    settings: &ServerSettings,
    stopping: watch::Receiver<bool>,
) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(settings.threads)
        .thread_name("gateway-worker")
        .enable_all()
        .build()
        .context("cannot start the gateway's runtime")?;
    let served = runtime.block_on(serve(listener, Arc::new(proxy), settings, stopping));
    runtime.shutdown_timeout(RUNTIME_END);
    served.context("the gateway cannot listen")
}

async fn serve(
    listener: StdListener,
    proxy: Arc<HttpProxy<Proxy>>,
    settings: &ServerSettings,
    mut stopping: watch::Receiver<bool>,
) -> io::Result<()> {
    let listener = TcpListener::from_std(listener)?;
    let permits = Arc::new(Semaphore::new(settings.connections.total.min(Semaphore::MAX_PERMITS)));
    let clients = ClientConnections::new(settings.connections.per_client);
    let (mut accept_failed, mut over_limit) = (LogThrottle::default(), LogThrottle::default());
    let connections = TaskTracker::new();
    loop {
        let accepted = tokio::select! {
            _ = stopping.wait_for(|stop| *stop) => break,
            accepted = async {
                // At the limit, connections wait in the kernel's queue.
                let permit = Arc::clone(&permits).acquire_owned().await;
                (permit, listener.accept().await)
            } => accepted,
        };
        let (permit, (tcp, peer)) = match accepted {
            (Ok(permit), Ok(connection)) => (permit, connection),
            (_, Err(error)) => {
                if let Some(unlogged) = accept_failed.record(Instant::now()) {
                    tracing::warn!(%error, unlogged, "cannot accept a connection");
                }
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
            (Err(_), _) => break, // The semaphore is never closed.
        };
        let is_proxy =
            settings.trusted_proxies.iter().any(|net| net.contains(&peer.ip().to_canonical()));
        let client_connection = if is_proxy { None } else { clients.try_add(peer.ip()) };
        if client_connection.is_none() && !is_proxy {
            settings.metrics.refused.increase();
            if let Some(unlogged) = over_limit.record(Instant::now()) {
                let limit = settings.connections.per_client;
                tracing::warn!(limit, unlogged, "closed a connection: its client has too many");
            }
            continue;
        }
        let proxy = Arc::clone(&proxy);
        let stopping = stopping.clone();
        let (limits, malformed) = (settings.limits, Arc::clone(&settings.malformed));
        // Small responses must not wait for the peer's acknowledgement. A failure is harmless.
        if let Err(error) = tcp.set_nodelay(true) {
            tracing::debug!(%error, "cannot set TCP_NODELAY");
        }
        let open = OpenConnection::new(&settings.metrics.open);
        connections.spawn(async move {
            let connection = Connection::new(peer);
            let stream = GuardedStream::new(tcp, limits, Arc::clone(&connection), malformed);
            serve_connection(&proxy, stream, &connection, &stopping).await;
            drop((permit, client_connection, open));
        });
    }
    drop(listener);
    // Closes idle connections; the others close after their response.
    proxy.http_cleanup().await;
    connections.close();
    if tokio::time::timeout(settings.drain_timeout, connections.wait()).await.is_err() {
        tracing::warn!(
            open = connections.len(),
            "requests still in flight at the end of the drain"
        );
    }
    Ok(())
}

/// Counts an open connection until it is dropped.
struct OpenConnection(Gauge);

impl OpenConnection {
    fn new(gauge: &Gauge) -> Self {
        gauge.add(1.0);
        Self(gauge.clone())
    }
}

impl Drop for OpenConnection {
    fn drop(&mut self) {
        self.0.add(-1.0);
    }
}

async fn serve_connection(
    proxy: &Arc<HttpProxy<Proxy>>,
    stream: GuardedStream,
    connection: &Arc<Connection>,
    stopping: &watch::Receiver<bool>,
) {
    let mut session = ServerSession::new_http1(Box::new(stream));
    session.set_keepalive(Some(KEEP_ALIVE_S));
    // Without this, a client that pipelines loses the response to the first request.
    session.set_pipelining_enabled(true);
    loop {
        session.set_connection_user_context(Some(Box::new(Arc::clone(connection))));
        let Some(reused) = proxy.process_new_http(session, stopping).await else {
            return;
        };
        let (stream, settings) = reused.consume();
        let Ok(mut stream) = stream.into_any().downcast::<GuardedStream>() else {
            return; // Never: Pingora returns the stream that it was given.
        };
        stream.next_request();
        session = ServerSession::new_http1(stream);
        if let Some(settings) = settings {
            settings.apply_to_session(&mut session);
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
