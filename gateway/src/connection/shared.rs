//! What the proxy and the stream of a connection both know.

mod streams;

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::BodyEnd;
use crate::streams::{StreamHandle, StreamKind};
pub use streams::Streams;

/// State that the proxy and the stream share. Each request over HTTP/2 has one of its own
/// ([`Streams::next_request`]).
#[derive(Debug)]
pub struct Connection {
    /// The client's address.
    pub peer: SocketAddr,
    /// Whether it is TLS that ends here.
    pub is_tls: bool,
    /// Of HTTP/2: the connection that this stream belongs to.
    streams: Option<Arc<Streams>>,
    /// Since when the gateway waits for the client, if it does.
    waiting_since: Mutex<Option<Instant>>,
    evicted: CancellationToken,
    /// Whether the proxy has the current request. What Pingora writes before that is its own refusal.
    admitted: AtomicBool,
    linger: AtomicBool,
    deadline: Mutex<Option<Instant>>,
    /// Whether `stream` has a value.
    has_stream: AtomicBool,
    stream: Mutex<Option<StreamHandle>>,
    /// Of HTTP/2: tells the request's task that it has become a stream.
    stream_opened: Notify,
    /// Whether [`Streams`] knows that the gateway closes the stream.
    stream_closes: AtomicBool,
    /// The authority of the current request's target, if it was in absolute form.
    authority: Mutex<Option<Bytes>>,
    /// The end of the current request's body. Nothing is read of one that is not known.
    body_end: Mutex<BodyEnd>,
}

impl Connection {
    /// A connection from `peer`.
    pub fn new(peer: SocketAddr, is_tls: bool) -> Arc<Self> {
        Self::accepted(peer, is_tls, Instant::now())
    }

    /// A connection that was accepted at this time. The task that serves it may begin later, and the longest
    /// idle one is by the time of acceptance.
    pub fn accepted(peer: SocketAddr, is_tls: bool, at: Instant) -> Arc<Self> {
        Arc::new(Self::with((peer, is_tls), at, None))
    }

    fn with(
        (peer, is_tls): (SocketAddr, bool),
        at: Instant,
        streams: Option<Arc<Streams>>,
    ) -> Self {
        Self {
            peer,
            is_tls,
            streams,
            waiting_since: Mutex::new(Some(at)),
            evicted: CancellationToken::new(),
            admitted: AtomicBool::new(false),
            linger: AtomicBool::new(false),
            deadline: Mutex::new(None),
            has_stream: AtomicBool::new(false),
            stream: Mutex::new(None),
            stream_opened: Notify::new(),
            stream_closes: AtomicBool::new(false),
            authority: Mutex::new(None),
            body_end: Mutex::new(BodyEnd::After(0)),
        }
    }

    /// The scheme of its requests, unless a trusted proxy says otherwise.
    pub fn scheme(&self) -> &'static str {
        if self.is_tls { "https" } else { "http" }
    }

    /// Notes that the proxy has the request.
    pub fn admit(&self) {
        self.mark_admitted();
        self.wait_for_client(false);
    }

    pub(super) fn mark_admitted(&self) {
        self.admitted.store(true, Ordering::Relaxed);
    }

    pub(super) fn is_admitted(&self) -> bool {
        self.admitted.load(Ordering::Relaxed)
    }

    /// Prepares for the next request.
    pub(super) fn next_request(&self) {
        self.set_target_authority(None);
        self.admitted.store(false, Ordering::Relaxed);
        self.wait_for_client(true);
        self.linger.store(false, Ordering::Relaxed);
        *self.deadline.lock().unwrap_or_else(PoisonError::into_inner) = None;
        self.take_stream();
        self.expect_body(BodyEnd::After(0));
    }

    /// Notes that the gateway waits for the client from now on, or no longer.
    pub fn wait_for_client(&self, waits: bool) {
        let mut since = self.waiting_since.lock().unwrap_or_else(PoisonError::into_inner);
        if since.is_some() != waits
            && let Some(streams) = &self.streams
        {
            streams.wait_for_client(waits);
        }
        *since = waits.then(Instant::now);
    }

    /// Notes that the client has left before the response to its request, which came at `started`.
    pub fn abandoned(&self, started: std::time::Instant) {
        if let Some(streams) = &self.streams {
            streams.abandoned(started.elapsed());
        }
    }

    /// Since when the gateway waits for a head or a body of the client; `None` while it does not, and
    /// once the connection is to be closed.
    pub fn idle_since(&self) -> Option<Instant> {
        let since = *self.waiting_since.lock().unwrap_or_else(PoisonError::into_inner);
        since.filter(|_| !self.is_evicted())
    }

    /// Has the connection closed, to make room for another one.
    pub fn evict(&self) {
        self.evicted.cancel();
    }

    /// Whether [`Connection::evict`] was called.
    pub fn is_evicted(&self) -> bool {
        self.evicted.is_cancelled()
    }

    /// Ends when the connection is to be closed.
    pub async fn evicted(&self) {
        self.evicted.cancelled().await;
    }

    /// Sets the deadline of the current exchange.
    pub fn end_by(&self, deadline: Instant) {
        *self.deadline.lock().unwrap_or_else(PoisonError::into_inner) = Some(deadline);
    }

    /// Makes a stream of the current exchange, from the response's head on. It has no deadline.
    pub fn open_stream(&self, stream: StreamHandle) {
        if stream.kind == StreamKind::WebSocket {
            self.expect_body(BodyEnd::Never);
        }
        *self.deadline.lock().unwrap_or_else(PoisonError::into_inner) = None;
        *self.stream.lock().unwrap_or_else(PoisonError::into_inner) = Some(stream);
        self.has_stream.store(true, Ordering::Release);
        self.stream_opened.notify_one();
    }

    /// Of HTTP/2: waits until the request has become a stream and the gateway closes it. The connection ends
    /// once it has no other request, since nothing can be written between a response's parts; those are
    /// withheld from then on.
    pub async fn stream_closes(&self) {
        self.stream_opened.notified().await;
        let Some(stream) = self.take_stream() else { return std::future::pending().await };
        stream.control.closing().cancelled().await;
        if let Some(streams) = &self.streams {
            self.stream_closes.store(true, Ordering::Relaxed);
            streams.stream_closes();
        }
    }

    pub(super) fn take_stream(&self) -> Option<StreamHandle> {
        if !self.has_stream.swap(false, Ordering::Acquire) {
            return None;
        }
        self.stream.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    pub(super) fn deadline(&self) -> Option<Instant> {
        *self.deadline.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The authority of the current request's target, if it was in absolute form: Pingora gets the
    /// target without it.
    pub fn target_authority(&self) -> Option<Bytes> {
        self.authority.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn set_target_authority(&self, authority: Option<Bytes>) {
        *self.authority.lock().unwrap_or_else(PoisonError::into_inner) = authority;
    }

    /// Notes how the current request's body ends.
    pub fn expect_body(&self, end: BodyEnd) {
        *self.body_end.lock().unwrap_or_else(PoisonError::into_inner) = end;
    }

    pub(super) fn body_end(&self) -> BodyEnd {
        *self.body_end.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads on for a while after the response, because the request was not read whole.
    pub fn linger(&self) {
        self.linger.store(true, Ordering::Relaxed);
    }

    pub(super) fn lingers(&self) -> bool {
        self.linger.load(Ordering::Relaxed)
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        if let Some(streams) = &self.streams
            && *self.stream_closes.get_mut()
        {
            streams.stream_closed();
        }
        self.wait_for_client(true);
    }
}
