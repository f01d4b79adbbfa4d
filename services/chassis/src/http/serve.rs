//! An HTTP server with limits and a graceful stop.
//!
//! On a listener with mTLS a handler finds the connection's [`Peer`] among the request's extensions. A
//! connection outlives its peer's certificate by one response, which closes it. Handshakes are bounded in
//! number and time, and a stop does not wait for them.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use axum::Router;
use axum::body::Body;
use axum::extract::ConnectInfo;
use futures::future::BoxFuture;
use http::HeaderValue;
use http::header::CONNECTION;
use hyper::body::Incoming;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::{GracefulShutdown, Watcher};
use rustls::ServerConfig;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::ServiceExt;

use super::HttpLimits;
use super::handshakes::{Handshake, Handshakes};
use crate::peer::{Peer, ThisMachine};
use crate::shutdown::Shutdown;

/// Binding the listening address failed.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// Another process listens there.
    #[error("--listen {0}: the address is taken by another process; choose another port")]
    Taken(SocketAddr),
    /// Another error of the operating system.
    #[error("--listen {0}: cannot listen there: {1}")]
    Other(SocketAddr, io::Error),
}

/// Listens on `address`. Port 0 selects a free port.
///
/// # Errors
/// When the address is taken or not available on this machine.
pub async fn bind(address: SocketAddr) -> Result<TcpListener, BindError> {
    TcpListener::bind(address).await.map_err(|error| match error.kind() {
        io::ErrorKind::AddrInUse => BindError::Taken(address),
        _ => BindError::Other(address, error),
    })
}

/// A bound listener, with or without mTLS.
pub struct Listener {
    tcp: TcpListener,
    tls: Option<Tls>,
}

#[derive(Clone)]
struct Tls {
    acceptor: TlsAcceptor,
    /// The mesh whose certificates count: an authority may have signed for several.
    mesh: Arc<str>,
}

impl From<TcpListener> for Listener {
    /// Plain HTTP, for operators on this machine.
    fn from(tcp: TcpListener) -> Self {
        Self { tcp, tls: None }
    }
}

impl Listener {
    /// HTTPS, for peers with a certificate of this mesh; and plain HTTP for processes of this machine, which have no
    /// [`Peer`]: a health check needs no certificate.
    pub fn with_tls(tcp: TcpListener, config: Arc<ServerConfig>, mesh: &str) -> Self {
        Self { tcp, tls: Some(Tls { acceptor: config.into(), mesh: mesh.into() }) }
    }
}

/// Serves until `stop`, then lets requests in flight finish for at most `drain_timeout`. After the
/// stop new connections are refused, kept-alive connections are closed after their response, and connections
/// whose TLS is not set up yet at once.
///
/// # Errors
/// When the listener fails for good. Errors of single connections are only logged.
pub fn serve(
    listener: impl Into<Listener>,
    router: Router,
    limits: &HttpLimits,
    stop: Shutdown,
    drain_timeout: Duration,
) -> BoxFuture<'_, io::Result<()>> {
    let Listener { tcp, tls } = listener.into();
    Box::pin(async move {
        let graceful = GracefulShutdown::new();
        let connections = TaskTracker::new();
        let cut = CancellationToken::new();
        let mut http = hyper::server::conn::http1::Builder::new();
        http.timer(TokioTimer::new())
            .header_read_timeout(Duration::from_millis(limits.header_read_timeout_ms));
        let http = Arc::new(http);
        let handshakes = Handshakes::new(limits.handshakes);
        loop {
            let (stream, address) = tokio::select! {
                accepted = tcp.accept() => match accepted {
                    Ok(accepted) => accepted,
                    Err(error) => {
                        // Out of file descriptors, or the peer left before the handshake. The pause
                        // keeps the loop from spinning in the first case.
                        tracing::warn!(%error, "cannot accept a connection");
                        tokio::time::sleep(Duration::from_millis(20)).await;
                        continue;
                    }
                },
                () = stop.begun() => break,
            };
            let stream = stream_options(stream);
            let connection = Connection {
                http: Arc::clone(&http),
                is_local: is_local(&stream, address),
                service: Service { router: router.clone(), address, is_plain: true, peer: None },
                watcher: graceful.watcher(),
            };
            let tls = tls.clone().map(|tls| (tls, handshakes.begin()));
            let (stop, cut) = (stop.clone(), cut.clone());
            connections.spawn(async move {
                tokio::select! {
                    () = connection.serve_on(stream, tls, stop) => {}
                    () = cut.cancelled() => {}
                }
            });
        }
        drop(tcp);
        let open = graceful.count();
        if tokio::time::timeout(drain_timeout, graceful.shutdown()).await.is_err() {
            tracing::warn!(open, "connections cut at the end of the drain");
        }
        // No request may run after the return: the caller closes the stores next.
        cut.cancel();
        connections.close();
        connections.wait().await;
        Ok(())
    })
}

fn stream_options(stream: TcpStream) -> TcpStream {
    // Small responses must not wait for the peer's acknowledgement. A socket works without it, too.
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "cannot set TCP_NODELAY");
    }
    stream
}

struct Connection {
    http: Arc<hyper::server::conn::http1::Builder>,
    is_local: bool,
    service: Service,
    watcher: Watcher,
}

impl Connection {
    async fn serve_on(mut self, stream: TcpStream, tls: Option<(Tls, Handshake)>, stop: Shutdown) {
        let Some((Tls { acceptor, mesh }, handshake)) = tls else {
            return self.serve(stream).await;
        };
        let address = self.service.address;
        let is_local = self.is_local;
        let begun = async {
            if is_local && !begins_tls(&stream).await {
                return Ok(Begun::Plain(stream));
            }
            acceptor.accept(stream).await.map(|stream| Begun::Tls(Box::new(stream)))
        };
        let begun = tokio::select! {
            begun = handshake.run(begun) => begun,
            // No request was read yet, so the client can repeat it elsewhere.
            () = stop.begun() => return,
        };
        match begun {
            Ok(Ok(Begun::Plain(stream))) => {
                drop(handshake);
                self.serve(stream).await;
            }
            Ok(Ok(Begun::Tls(stream))) => {
                self.service.peer = peer(&stream).filter(|peer| *peer.mesh == *mesh).map(Arc::new);
                self.service.is_plain = false;
                if self.service.peer.is_some() {
                    drop(handshake);
                    self.serve(stream).await;
                } else if let Err(error) = handshake.run(self.serve(stream)).await {
                    tracing::debug!(%address, %error, "a connection without a certificate is cut");
                }
            }
            Ok(Err(error)) => tracing::debug!(%address, %error, "no TLS connection"),
            Err(error) => tracing::debug!(%address, %error, "no TLS connection"),
        }
    }

    async fn serve<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(self, stream: S) {
        let Self { http, service, watcher, .. } = self;
        let connection = http.serve_connection(TokioIo::new(stream), service);
        if let Err(error) = watcher.watch(connection).await {
            tracing::debug!(%error, "connection ended");
        }
    }
}

/// A connection whose first bytes are through.
enum Begun {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

/// Whether both ends are on this machine.
fn is_local(stream: &TcpStream, peer: SocketAddr) -> bool {
    peer.ip().is_loopback() || stream.local_addr().is_ok_and(|own| own.ip() == peer.ip())
}

/// Whether the client begins a TLS handshake (RFC 8446, 5.1). Waits for its first byte.
async fn begins_tls(stream: &TcpStream) -> bool {
    const HANDSHAKE: u8 = 22;
    let mut first = [0];
    let peeked = stream.peek(&mut first).await;
    !matches!(peeked, Ok(1)) || first[0] == HANDSHAKE
}

fn peer(stream: &TlsStream<TcpStream>) -> Option<Peer> {
    let certificates = stream.get_ref().1.peer_certificates()?;
    Peer::of_certificate(certificates.first()?)
}

/// Passes the requests of one connection to the router.
struct Service {
    router: Router,
    address: SocketAddr,
    /// Without TLS, which is for this machine alone.
    is_plain: bool,
    peer: Option<Arc<Peer>>,
}

impl hyper::service::Service<http::Request<Incoming>> for Service {
    type Response = axum::response::Response;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Self::Response, Infallible>>;

    fn call(&self, request: http::Request<Incoming>) -> Self::Future {
        let mut request = request.map(Body::new);
        request.extensions_mut().insert(ConnectInfo(self.address));
        let mut has_expired = false;
        if let Some(peer) = &self.peer {
            has_expired = peer.expires <= SystemTime::now();
            request.extensions_mut().insert(Arc::clone(peer));
        } else if self.is_plain {
            request.extensions_mut().insert(ThisMachine);
        }
        let responding = self.router.clone().oneshot(request);
        Box::pin(async move {
            let mut response = responding.await?;
            if has_expired {
                // Renewed by now; the next connection shows the new certificate.
                response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
            }
            Ok(response)
        })
    }
}

#[cfg(test)]
mod tests;
