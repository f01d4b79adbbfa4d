//! The thread and the loop that Pingora's proxy runs in.
//!
//! The proxy is Pingora's; the accept loop is ours, which `pingora::proxy::http_proxy` is made for.
//! Pingora's own `Server` would bind its listener late and panic when it cannot, sleep through a
//! whole grace period of whole seconds and then cut what is still in flight, and give no way to
//! bound a request's head. Here the listener is bound before anything else starts, a stop closes
//! idle connections at once and waits for just the requests in flight, and any number of gateways
//! live in one process. Like Pingora's server it has a thread and a runtime of its own, so that
//! other work in the process (password hashing in the all-in-one) does not hold requests up.

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
use crate::malformed::MalformedRequests;
use crate::metrics::ConnectionMetrics;
use crate::proxy::Proxy;

/// The pause after a failed accept; running out of file descriptors must not become a busy loop.
const ACCEPT_PAUSE: Duration = Duration::from_millis(20);
/// What keeps happening to connections is logged this often.
const LOG_EVERY: Duration = Duration::from_secs(1);
/// What tasks get to notice that their runtime ends.
const RUNTIME_END: Duration = Duration::from_millis(100);
/// Pingora's own keep-alive bound (seconds); the stream's idle time-out is shorter and decides.
const KEEP_ALIVE_S: u64 = 3_600;

/// How the data plane runs.
#[derive(Debug, Clone)]
pub struct ServerSettings {
    /// Worker threads.
    pub threads: usize,
    /// Client connections at once.
    pub connections: ConnectionCounts,
    /// Proxies, which connect for many clients and so are not counted as one.
    pub trusted_proxies: Vec<IpNet>,
    /// What requests in flight get when it stops.
    pub drain_timeout: Duration,
    /// Bounds of each connection.
    pub limits: ConnectionLimits,
    /// Where connections are counted.
    pub metrics: ConnectionMetrics,
    /// How requests are seen that the proxy never gets.
    pub malformed: Arc<MalformedRequests>,
}

/// The running data plane.
pub struct DataPlane {
    stop: watch::Sender<bool>,
    ended: oneshot::Receiver<anyhow::Result<()>>,
}

impl DataPlane {
    /// Starts serving on `listener`, on a thread of its own.
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
                // Nobody listens any more when the gateway was dropped without being stopped.
                let _ = end.send(result);
            })
            .context("cannot start the gateway's thread")?;
        Ok(Self { stop, ended })
    }

    /// Waits for an end that nobody asked for.
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

    /// Stops accepting, lets requests in flight finish within the drain's bound, and ends.
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
                // Without a place, connections wait in the kernel's queue.
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
        // Small answers must not wait for the peer's acknowledgement. A socket that refuses works too.
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
    // Wakes idle connections, which close; those with a request in flight close after its answer.
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

/// A connection in the count of those that are open.
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

/// Lets what happens over and over be logged now and then.
#[derive(Debug, Default)]
struct LogThrottle {
    logged: Option<Instant>,
    unlogged: u64,
}

impl LogThrottle {
    /// It happens. When it is to be logged: how often it was not since the last time.
    fn record(&mut self, now: Instant) -> Option<u64> {
        if self.logged.is_some_and(|at| now.saturating_duration_since(at) < LOG_EVERY) {
            self.unlogged += 1;
            return None;
        }
        self.logged = Some(now);
        Some(std::mem::take(&mut self.unlogged))
    }
}

/// One connection's requests, one after the other.
async fn serve_connection(
    proxy: &Arc<HttpProxy<Proxy>>,
    stream: GuardedStream,
    connection: &Arc<Connection>,
    stopping: &watch::Receiver<bool>,
) {
    let mut session = ServerSession::new_http1(Box::new(stream));
    session.set_keepalive(Some(KEEP_ALIVE_S));
    // Without this, a client that sends its next request early loses the answer to this one.
    session.set_pipelining_enabled(true);
    loop {
        session.set_connection_user_context(Some(Box::new(Arc::clone(connection))));
        let Some(reused) = proxy.process_new_http(session, stopping).await else {
            return;
        };
        let (stream, settings) = reused.consume();
        let Ok(mut stream) = stream.into_any().downcast::<GuardedStream>() else {
            return; // Pingora gives back what it was given.
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
    fn what_keeps_happening_is_logged_once_a_second() {
        let start = Instant::now();
        let mut accept_failed = LogThrottle::default();
        let logged: Vec<_> =
            (0..250).filter_map(|n| accept_failed.record(start + ACCEPT_PAUSE * n)).collect();
        assert_eq!(logged, [0, 49, 49, 49, 49]);
    }
}
