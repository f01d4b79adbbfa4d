//! An HTTP server with limits and a graceful stop.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::ConnectInfo;
use futures::future::BoxFuture;
use hyper::body::Incoming;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::ServiceExt;

use super::HttpLimits;
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

/// Serves until `stop`, then lets requests in flight finish for at most `drain_timeout`. After the
/// stop new connections are refused, and kept-alive connections are closed after their response.
///
/// # Errors
/// When the listener fails for good. Errors of single connections are only logged.
pub fn serve(
    listener: TcpListener,
    router: Router,
    limits: &HttpLimits,
    stop: Shutdown,
    drain_timeout: Duration,
) -> BoxFuture<'_, io::Result<()>> {
    Box::pin(async move {
        let graceful = GracefulShutdown::new();
        let connections = TaskTracker::new();
        let cut = CancellationToken::new();
        let mut http = hyper::server::conn::http1::Builder::new();
        http.timer(TokioTimer::new())
            .header_read_timeout(Duration::from_millis(limits.header_read_timeout_ms));
        loop {
            let (stream, peer) = tokio::select! {
                accepted = listener.accept() => match accepted {
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
            let connection =
                http.serve_connection(TokioIo::new(stream_options(stream)), service(&router, peer));
            let connection = graceful.watch(connection);
            let cut = cut.clone();
            connections.spawn(async move {
                tokio::select! {
                    ended = connection => if let Err(error) = ended {
                        tracing::debug!(%error, "connection ended");
                    },
                    () = cut.cancelled() => {}
                }
            });
        }
        drop(listener);
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

fn service(
    router: &Router,
    peer: SocketAddr,
) -> impl hyper::service::Service<
    http::Request<Incoming>,
    Response = axum::response::Response,
    Error = Infallible,
    Future: Send + 'static,
> + Send
+ 'static {
    let router = router.clone();
    hyper::service::service_fn(move |request: http::Request<Incoming>| {
        let mut request = request.map(Body::new);
        request.extensions_mut().insert(ConnectInfo(peer));
        router.clone().oneshot(request)
    })
}
