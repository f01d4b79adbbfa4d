//! What happens on an accepted connection before its first request: the PROXY header, the limit per
//! client, TLS. All of it has a deadline, and ends at the stop.

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use pingora::apps::ServerApp;
use pingora::proxy::HttpProxy;
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, watch};
use tokio_rustls::TlsAcceptor;
use tokio_util::task::TaskTracker;
use tourin_chassis::metrics::Gauge;

use crate::client_connections::{ClientConnection, ClientConnections};
use crate::connection::{Connection, GuardedStream, Streams};
use crate::connection_app::ConnectionApp;
use crate::http2::Http2Limits;
use crate::log_throttle::LogThrottle;
use crate::proxy::Proxy;
use crate::proxy_protocol::read_header;
use crate::server_settings::ServerSettings;
use crate::transport::Transport;

/// The accepted connections.
pub struct Incoming {
    proxy: Arc<HttpProxy<Proxy>>,
    clients: ClientConnections,
    settings: ServerSettings,
    http2: Arc<Http2Limits>,
    tasks: TaskTracker,
    over_limit: Mutex<LogThrottle>,
    no_proxy_header: Mutex<LogThrottle>,
}

impl Incoming {
    /// Connections to `proxy`.
    pub fn new(
        proxy: Arc<HttpProxy<Proxy>>,
        clients: ClientConnections,
        settings: ServerSettings,
    ) -> Self {
        Self {
            proxy,
            clients,
            http2: Arc::clone(&settings.http2),
            settings,
            tasks: TaskTracker::new(),
            over_limit: Mutex::default(),
            no_proxy_header: Mutex::default(),
        }
    }

    /// Serves a connection in a task of its own, which holds `permit`.
    pub fn accepted(
        self: &Arc<Self>,
        tcp: TcpStream,
        peer: SocketAddr,
        permit: OwnedSemaphorePermit,
        stops: (watch::Receiver<bool>, watch::Receiver<bool>),
    ) {
        let incoming = Arc::clone(self);
        let open = OpenConnection::new(&self.settings.metrics.open);
        let accepted = (peer, tokio::time::Instant::now());
        self.tasks.spawn(async move {
            incoming.serve(tcp, accepted, stops).await;
            drop((permit, open));
        });
    }

    /// Waits until all connections are closed, at most for `limit`. Gives the number of open ones.
    pub async fn drain(&self, limit: Duration) -> usize {
        self.tasks.close();
        let drained = tokio::time::timeout(limit, self.tasks.wait()).await;
        if drained.is_ok() { 0 } else { self.tasks.len() }
    }

    async fn serve(
        &self,
        mut tcp: TcpStream,
        (peer, at): (SocketAddr, tokio::time::Instant),
        (retiring, stopping): (watch::Receiver<bool>, watch::Receiver<bool>),
    ) {
        // Small responses must not wait for the peer's acknowledgement. A failure is harmless.
        if let Err(error) = tcp.set_nodelay(true) {
            tracing::debug!(%error, "cannot set TCP_NODELAY");
        }
        let Some(peer) = self.client_of(&mut tcp, peer, stopping.clone()).await else { return };
        let connection = Connection::accepted(peer, self.settings.tls.is_some(), at);
        let Ok(counted) = self.try_add(&connection) else { return };
        let is_bounded = counted.is_some();
        let serving = async {
            let transport = match &self.settings.tls {
                None => Transport::Tcp(tcp),
                Some(acceptor) => self.handshake(acceptor, tcp, stopping.clone()).await?,
            };
            let (limits, malformed) = (self.settings.limits, &self.settings.malformed);
            let stream =
                GuardedStream::new(transport, limits, Arc::clone(&connection), malformed.clone());
            let resets = self.settings.metrics.http2_reset_floods.clone();
            let streams = Streams::new(Arc::clone(&connection), resets);
            let of_connection = (Arc::clone(&connection), streams);
            let (proxy, http2) = (Arc::clone(&self.proxy), Arc::clone(&self.http2));
            let http2 = (http2, is_bounded);
            let app = ConnectionApp::new(proxy, of_connection, http2, self.tasks.clone());
            // Chooses the protocol by ALPN, and serves until the connection ends.
            app.process_new(Box::new(stream), &retiring).await;
            Some(())
        };
        tokio::select! {
            _ = serving => {}
            () = connection.evicted() => {}
        }
    }

    /// The client's address: the PROXY header's where one is expected, else the peer's. `None` when the
    /// connection is to be closed.
    async fn client_of(
        &self,
        tcp: &mut TcpStream,
        peer: SocketAddr,
        mut stopping: watch::Receiver<bool>,
    ) -> Option<SocketAddr> {
        if !self.settings.proxy_protocol.expects_header(peer) {
            return Some(peer);
        }
        let limit = self.settings.limits.first_byte_timeout;
        let read = tokio::select! {
            read = tokio::time::timeout(limit, read_header(tcp)) => read,
            _ = stopping.wait_for(|stop| *stop) => return None,
        };
        let error = match read {
            Ok(Ok(client)) => return Some(client.unwrap_or(peer)),
            Ok(Err(error)) => error,
            Err(_) => io::Error::new(io::ErrorKind::TimedOut, "no PROXY header in time"),
        };
        self.settings.metrics.proxy_headers_refused.increase();
        if let Some(unlogged) = recorded(&self.no_proxy_header) {
            tracing::warn!(
                balancer = %peer.ip(), %error, unlogged,
                "closed a connection: addresses of --proxy-protocol must begin with a PROXY header"
            );
        }
        None
    }

    /// Counts the connection of its client; `Ok(None)` for a trusted proxy's, `Err` at the limit.
    fn try_add(&self, connection: &Arc<Connection>) -> Result<Option<ClientConnection>, ()> {
        let peer = connection.peer.ip().to_canonical();
        if self.settings.trusted_proxies.iter().any(|net| net.contains(&peer)) {
            return Ok(None);
        }
        if let Some(counted) = self.clients.try_add(connection) {
            return Ok(Some(counted));
        }
        self.settings.metrics.refused.increase();
        if let Some(unlogged) = recorded(&self.over_limit) {
            let limit = self.settings.connections.per_client;
            tracing::warn!(limit, unlogged, "closed a connection: its client has too many");
        }
        Err(())
    }

    async fn handshake(
        &self,
        acceptor: &TlsAcceptor,
        tcp: TcpStream,
        mut stopping: watch::Receiver<bool>,
    ) -> Option<Transport> {
        let limit = self.settings.limits.head_timeout;
        let accepted = tokio::select! {
            accepted = tokio::time::timeout(limit, acceptor.accept(tcp)) => accepted,
            _ = stopping.wait_for(|stop| *stop) => return None,
        };
        let error = match accepted {
            Ok(Ok(tls)) => return Some(Transport::Tls(Box::new(tls))),
            Ok(Err(error)) => error,
            Err(_) => io::Error::new(io::ErrorKind::TimedOut, "no handshake in time"),
        };
        // Scanners cause many, so they are counted and not logged.
        self.settings.metrics.tls_failed.increase();
        tracing::debug!(%error, "a TLS handshake failed");
        None
    }
}

fn recorded(throttle: &Mutex<LogThrottle>) -> Option<u64> {
    throttle.lock().unwrap_or_else(PoisonError::into_inner).record(Instant::now())
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
