//! Pingora's application for one connection.

use std::sync::Arc;

use async_trait::async_trait;
use pingora::apps::{HttpServerApp, HttpServerOptions, ReusedHttpStream};
use pingora::protocols::http::ServerSession;
use pingora::protocols::http::v2::server::H2Options;
use pingora::proxy::HttpProxy;
use pingora::server::ShutdownWatch;
use tokio_util::task::TaskTracker;

use crate::connection::{Connection, GuardedStream, Streams};
use crate::http2::Http2Limits;
use crate::proxy::Proxy;

/// Pingora's keep-alive time-out (seconds) of HTTP/1; the stream's idle time-out is shorter.
const KEEP_ALIVE_S: u64 = 3_600;

/// The proxy, and what it has to know of the connection.
pub struct ConnectionApp {
    proxy: Arc<HttpProxy<Proxy>>,
    connection: Arc<Connection>,
    streams: Arc<Streams>,
    limits: Arc<Http2Limits>,
    /// Whether the limits of a client apply, as to all but trusted proxies.
    is_bounded: bool,
    /// Counts HTTP/2 requests, which Pingora handles in tasks of their own, for the drain.
    requests: TaskTracker,
}

impl ConnectionApp {
    /// Serves `connection` by `proxy`. Its requests over HTTP/2 are bounded per client if it `is_bounded`.
    pub fn new(
        proxy: Arc<HttpProxy<Proxy>>,
        (connection, streams): (Arc<Connection>, Arc<Streams>),
        (limits, is_bounded): (Arc<Http2Limits>, bool),
        requests: TaskTracker,
    ) -> Arc<Self> {
        Arc::new(Self { proxy, connection, streams, limits, is_bounded, requests })
    }
}

#[async_trait]
impl HttpServerApp for ConnectionApp {
    async fn process_new_http(
        self: &Arc<Self>,
        mut session: ServerSession,
        shutdown: &ShutdownWatch,
    ) -> Option<ReusedHttpStream> {
        if session.is_http2() {
            let client = self.connection.peer.ip();
            let open = self.is_bounded.then(|| self.limits.requests.try_add(client));
            if matches!(open, Some(None)) {
                // A request that is dropped is reset. Not even a refusal waits for this client.
                return None;
            }
            let _counted = (self.requests.token(), open);
            let request = self.streams.next_request(session.req_header_mut());
            let serving = self.proxy.process_new_http(session, shutdown);
            tokio::pin!(serving);
            tokio::select! {
                reused = &mut serving => return reused,
                () = request.stream_closes() => {}
            }
            return serving.await;
        }
        session.set_keepalive(Some(KEEP_ALIVE_S));
        // The stream gives Pingora nothing of the next request. If it did, that head would be unchecked: with
        // pipelining off, Pingora closes the connection.
        session.set_pipelining_enabled(false);
        session.set_connection_user_context(Some(Box::new(Arc::clone(&self.connection))));
        let reused = self.proxy.process_new_http(session, shutdown).await?;
        let (stream, settings) = reused.consume();
        // Pingora returns the stream that it was given.
        let mut stream = stream.into_any().downcast::<GuardedStream>().ok()?;
        stream.next_request();
        Some(ReusedHttpStream::new(stream, settings))
    }

    fn h2_options(&self) -> Option<H2Options> {
        Some(self.limits.options.clone())
    }

    fn server_options(&self) -> Option<&HttpServerOptions> {
        Some(&self.limits.server)
    }
}
