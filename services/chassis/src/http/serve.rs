//! A server with bounds that drains.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::ConnectInfo;
use hyper::body::Incoming;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::ServiceExt;

use super::HttpLimits;
use crate::shutdown::Shutdown;

/// A listening address that cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// Somebody else listens there.
    #[error("--listen {0}: the address is taken by another process; choose another port")]
    Taken(SocketAddr),
    /// Anything else the operating system says.
    #[error("--listen {0}: cannot listen there: {1}")]
    Other(SocketAddr, io::Error),
}

/// Listens on `address`; port 0 takes a free one.
///
/// # Errors
/// When the address is taken or not ours.
pub async fn bind(address: SocketAddr) -> Result<TcpListener, BindError> {
    TcpListener::bind(address).await.map_err(|error| match error.kind() {
        io::ErrorKind::AddrInUse => BindError::Taken(address),
        _ => BindError::Other(address, error),
    })
}

/// Serves until `stop`, then lets requests in flight finish for at most `drain_timeout`. New
/// connections are refused from the stop on; kept-alive ones are closed after their answer.
///
/// # Errors
/// Never for a single connection; only when the listener itself fails for good.
pub async fn serve(
    listener: TcpListener,
    router: Router,
    limits: &HttpLimits,
    stop: Shutdown,
    drain_timeout: Duration,
) -> io::Result<()> {
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
                    // Out of file descriptors, or a peer that left before the handshake: neither
                    // is a reason to stop, and a pause keeps the first from spinning.
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
    // Nothing of a request runs on when this returns: what it works with is closed next.
    cut.cancel();
    connections.close();
    connections.wait().await;
    Ok(())
}

fn stream_options(stream: TcpStream) -> TcpStream {
    // Small answers must not wait for the peer's acknowledgement. A socket that refuses works too.
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
