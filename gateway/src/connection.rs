//! The stream of a client's connection, with bounds that Pingora does not have.
//!
//! This stream lies under Pingora's HTTP session and adds:
//! - one deadline and one size limit for a whole head. Pingora bounds each read alone, so a slow client
//!   could hold a connection for ever, and allows heads of 1 MiB;
//! - a time-out of idle connections;
//! - refusals with a body in place of Pingora's empty ones, for heads that do not parse;
//! - request lines that Pingora's parser does not accept ([`request_line`]);
//! - a deadline for the whole exchange, at which waiting reads and writes fail.

mod head;
mod request_line;

use std::io;
use std::net::SocketAddr;
use std::os::fd::AsRawFd;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use bytes::{Buf, Bytes};
use pingora::protocols::raw_connect::ProxyDigest;
use pingora::protocols::{
    GetProxyDigest, GetSocketDigest, GetTimingDigest, Peek, Shutdown, SocketDigest, Ssl,
    TimingDigest, UniqueID, UniqueIDType,
};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufWriter, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep};

use crate::malformed::MalformedRequests;
use crate::messages;
use crate::responses::Response;
use head::{Head, HeadProgress};

/// Write buffer (bytes): a small response is one packet.
const WRITE_BUFFER_BYTES: usize = 8 << 10;
/// Bytes that are still read after an early refusal, so that the client gets it and no reset.
const LINGER_BYTES: usize = 8 << 20;
const LINGER: Duration = Duration::from_millis(1_000);
const DISCARD_BYTES: usize = 4 << 10;

/// Bounds of a connection.
#[derive(Debug, Clone, Copy)]
pub struct ConnectionLimits {
    /// Largest head.
    pub head_bytes: usize,
    /// Largest target, for the text of refusals; the admission filter checks it.
    pub target_bytes: usize,
    /// From a head's first byte to its last.
    pub head_timeout: Duration,
    /// Until the first byte of a connection's first head.
    pub first_byte_timeout: Duration,
    /// From a request's end to the next one's first byte.
    pub idle_timeout: Duration,
}

/// State that the proxy and the stream share.
#[derive(Debug)]
pub struct Connection {
    /// The client's address.
    pub peer: SocketAddr,
    /// Whether the proxy has the current request. What Pingora writes before that is its own refusal.
    admitted: AtomicBool,
    linger: AtomicBool,
    deadline: Mutex<Option<Instant>>,
    /// The authority of the current request's target, if it was in absolute form.
    authority: Mutex<Option<Bytes>>,
    body_bytes: AtomicU64,
}

impl Connection {
    /// A connection from `peer`.
    pub fn new(peer: SocketAddr) -> Arc<Self> {
        Arc::new(Self {
            peer,
            admitted: AtomicBool::new(false),
            linger: AtomicBool::new(false),
            deadline: Mutex::new(None),
            authority: Mutex::new(None),
            body_bytes: AtomicU64::new(0),
        })
    }

    /// Notes that the proxy has the request.
    pub fn admit(&self) {
        self.admitted.store(true, Ordering::Relaxed);
    }

    fn is_admitted(&self) -> bool {
        self.admitted.load(Ordering::Relaxed)
    }

    /// Sets the deadline of the current exchange.
    pub fn end_by(&self, deadline: Instant) {
        *self.deadline.lock().unwrap_or_else(PoisonError::into_inner) = Some(deadline);
    }

    fn deadline(&self) -> Option<Instant> {
        *self.deadline.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The authority of the current request's target, if it was in absolute form: Pingora gets the
    /// target without it.
    pub fn target_authority(&self) -> Option<Bytes> {
        self.authority.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Notes the declared length of the current request's body; `None` when it is chunked.
    pub fn expect_body(&self, bytes: Option<u64>) {
        self.body_bytes.store(bytes.unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// Reads on for a while after the response, because the request was not read whole.
    pub fn linger(&self) {
        self.linger.store(true, Ordering::Relaxed);
    }
}

#[derive(Debug)]
enum Phase {
    /// Waiting for a head, or reading one.
    Head(Head),
    /// After the head: body and response.
    Open,
    /// The head was refused; these bytes of the response are still to be written.
    Refusing(Bytes),
    /// At most so many bytes are still read and discarded, then reading fails. Not left to
    /// [`Shutdown`], which Pingora does not call when a head cannot be read.
    Discarding(usize),
}

/// The stream under the Pingora sessions of one connection.
pub struct GuardedStream {
    io: BufWriter<TcpStream>,
    phase: Phase,
    limits: ConnectionLimits,
    connection: Arc<Connection>,
    timer: Pin<Box<Sleep>>,
    head_began: Option<SystemTime>,
    malformed: Arc<MalformedRequests>,
    /// Written in place of Pingora's refusal.
    substitute: Option<Bytes>,
    /// The request line as far as it has come, while it is not complete.
    line: Option<Vec<u8>>,
    /// The normalised request line, to be read in place of the received one.
    normalized: Bytes,
    /// Bytes given to Pingora since the current head's end.
    after_head: u64,
    /// Whether the next read begins with a head, because Pingora has buffered none of it. Otherwise
    /// request lines are not normalised: a part of a body could be taken for one.
    is_aligned: bool,
}

impl std::fmt::Debug for GuardedStream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("GuardedStream").field("peer", &self.connection.peer).finish_non_exhaustive()
    }
}

impl GuardedStream {
    /// Wraps an accepted connection. Refusals here are recorded by `malformed`.
    pub fn new(
        tcp: TcpStream,
        limits: ConnectionLimits,
        connection: Arc<Connection>,
        malformed: Arc<MalformedRequests>,
    ) -> Self {
        Self {
            io: BufWriter::with_capacity(WRITE_BUFFER_BYTES, tcp),
            phase: Phase::Head(Head::default()),
            timer: Box::pin(tokio::time::sleep(limits.first_byte_timeout)),
            limits,
            connection,
            head_began: None,
            malformed,
            substitute: None,
            line: Some(Vec::new()),
            normalized: Bytes::new(),
            after_head: 0,
            is_aligned: true,
        }
    }

    /// Prepares for the connection's next request.
    pub fn next_request(&mut self) {
        self.phase = Phase::Head(Head::default());
        self.head_began = None;
        self.is_aligned &= self.after_head == self.connection.body_bytes.swap(0, Ordering::Relaxed);
        self.after_head = 0;
        self.line = self.is_aligned.then(Vec::new);
        *self.connection.authority.lock().unwrap_or_else(PoisonError::into_inner) = None;
        self.timer.as_mut().reset(Instant::now() + self.limits.idle_timeout);
        self.connection.admitted.store(false, Ordering::Relaxed);
        self.connection.linger.store(false, Ordering::Relaxed);
        *self.connection.deadline.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// A refusal of a request that the proxy never gets.
    fn refusal(&self, response: Response) -> Bytes {
        // A pipelined head was buffered by Pingora, so its beginning was not seen here.
        self.malformed.refuse(response, self.head_began.unwrap_or_else(SystemTime::now))
    }

    fn refuse(&mut self, response: Response) {
        self.phase = Phase::Refusing(self.refusal(response));
    }

    /// Normalises the request line in the bytes just read, which are those from `before` on in `buf`.
    /// They are removed from `buf` while the line is incomplete, or when they will be read from
    /// [`Self::normalized`].
    fn normalize_line(&mut self, buf: &mut ReadBuf<'_>, before: usize) -> Result<(), Response> {
        let Some(mut start) = self.line.take() else { return Ok(()) };
        let read = &buf.filled()[before..];
        if start.is_empty() && request_line::is_normalized(read) {
            return Ok(());
        }
        start.extend_from_slice(read);
        buf.set_filled(before);
        let Some(line) = request_line::normalize(&start) else {
            self.line = Some(start);
            return Ok(());
        };
        let line = line?;
        self.normalized = line.bytes;
        *self.connection.authority.lock().unwrap_or_else(PoisonError::into_inner) = line.authority;
        Ok(())
    }

    /// Polled when a read or write is pending: fails at the exchange's deadline. The timer is the head's
    /// before the proxy sets the deadline.
    fn poll_deadline<T>(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<T>> {
        let Some(deadline) = self.connection.deadline() else {
            return Poll::Pending;
        };
        if self.timer.deadline() != deadline {
            self.timer.as_mut().reset(deadline);
        }
        ready!(self.timer.as_mut().poll(cx));
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the exchange took too long")))
    }

    fn poll_send(&mut self, cx: &mut Context<'_>, mut wire: Bytes) -> Poll<io::Result<Bytes>> {
        while !wire.is_empty() {
            match Pin::new(&mut self.io).poll_write(cx, &wire) {
                Poll::Ready(Ok(written)) => wire.advance(written),
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => return Poll::Ready(Ok(wire)),
            }
        }
        Poll::Ready(Ok(wire))
    }
}

impl AsyncRead for GuardedStream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if matches!(this.phase, Phase::Head(_)) && this.connection.is_admitted() {
            // A pipelined head was buffered by Pingora, so its end was not seen here.
            this.phase = Phase::Open;
        }
        loop {
            if !this.normalized.is_empty() {
                let length = this.normalized.len().min(buf.remaining());
                buf.put_slice(&this.normalized.split_to(length));
                return Poll::Ready(Ok(()));
            }
            match &mut this.phase {
                Phase::Open => {
                    let before = buf.filled().len();
                    return match Pin::new(&mut this.io).poll_read(cx, buf) {
                        Poll::Pending => this.poll_deadline(cx),
                        ready => {
                            this.after_head += (buf.filled().len() - before) as u64;
                            ready
                        }
                    };
                }
                Phase::Head(head) => {
                    let before = buf.filled().len();
                    match Pin::new(&mut this.io).poll_read(cx, buf) {
                        Poll::Ready(Ok(())) if buf.filled().len() == before => {
                            return Poll::Ready(Ok(()));
                        }
                        Poll::Ready(Ok(())) => {
                            let first = head.seen == 0;
                            this.head_began.get_or_insert_with(SystemTime::now);
                            match head.feed(&buf.filled()[before..], this.limits.head_bytes) {
                                HeadProgress::Incomplete if first => {
                                    let deadline = Instant::now() + this.limits.head_timeout;
                                    this.timer.as_mut().reset(deadline);
                                }
                                HeadProgress::Incomplete => {}
                                HeadProgress::Complete { rest } => {
                                    this.phase = Phase::Open;
                                    this.after_head = rest as u64;
                                }
                                HeadProgress::TooLarge { in_target } => {
                                    buf.set_filled(before);
                                    let limit = this.limits.head_bytes;
                                    this.refuse(if in_target {
                                        Response::uri_too_long(this.limits.target_bytes.min(limit))
                                    } else {
                                        Response::head_too_large(messages::head_too_large(limit))
                                    });
                                    continue;
                                }
                            }
                            if let Err(response) = this.normalize_line(buf, before) {
                                this.refuse(response);
                            } else if buf.filled().len() > before {
                                return Poll::Ready(Ok(()));
                            }
                        }
                        Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                        Poll::Pending => {
                            let quiet = head.seen == 0;
                            ready!(this.timer.as_mut().poll(cx));
                            if quiet {
                                // The idle time-out looks like the stream's end to Pingora.
                                return Poll::Ready(Ok(()));
                            }
                            this.refuse(Response::client_too_slow());
                        }
                    }
                }
                Phase::Refusing(wire) => {
                    let wire = std::mem::take(wire);
                    let rest = ready!(this.poll_send(cx, wire))?;
                    let done = rest.is_empty();
                    this.phase = Phase::Refusing(rest);
                    if !done {
                        return Poll::Pending;
                    }
                    // Flushes, and closes the writing side.
                    ready!(Pin::new(&mut this.io).poll_shutdown(cx))?;
                    this.timer.as_mut().reset(Instant::now() + LINGER);
                    this.phase = Phase::Discarding(LINGER_BYTES);
                }
                Phase::Discarding(left) => {
                    let mut sink = [0; DISCARD_BYTES];
                    let mut sink = ReadBuf::new(&mut sink);
                    let read = match Pin::new(&mut this.io).poll_read(cx, &mut sink) {
                        Poll::Ready(Ok(())) => sink.filled().len(),
                        Poll::Ready(Err(_)) => 0,
                        Poll::Pending => {
                            ready!(this.timer.as_mut().poll(cx));
                            0
                        }
                    };
                    *left = left.saturating_sub(read);
                    if read == 0 || *left == 0 {
                        return Poll::Ready(Err(io::Error::other(
                            "the request's head was refused",
                        )));
                    }
                }
            }
        }
    }
}

impl AsyncWrite for GuardedStream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if this.connection.is_admitted() {
            return match Pin::new(&mut this.io).poll_write(cx, bytes) {
                Poll::Pending => this.poll_deadline(cx),
                ready => ready,
            };
        }
        if this.substitute.is_none() {
            let response = if bytes.get(9..12) == Some(b"405") {
                // Pingora answers 405 to CONNECT alone.
                Response::no_tunnel()
            } else {
                Response::malformed(messages::unreadable_request())
            };
            this.connection.linger();
            this.substitute = Some(this.refusal(response));
        }
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if let Some(wire) = this.substitute.take() {
            let rest = ready!(this.poll_send(cx, wire))?;
            let done = rest.is_empty();
            // Kept when empty, so that no more of Pingora's bytes are written.
            this.substitute = Some(rest);
            if !done {
                return Poll::Pending;
            }
        }
        match Pin::new(&mut this.io).poll_flush(cx) {
            Poll::Pending => this.poll_deadline(cx),
            ready => ready,
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.as_mut().poll_flush(cx))?;
        Pin::new(&mut self.get_mut().io).poll_shutdown(cx)
    }
}

#[async_trait]
impl Shutdown for GuardedStream {
    async fn shutdown(&mut self) {
        if AsyncWriteExt::shutdown(self).await.is_err()
            || !self.connection.linger.load(Ordering::Relaxed)
        {
            return;
        }
        // Closing with unread bytes resets the connection, and the client could lose the response.
        let drain = async {
            let mut sink = [0; DISCARD_BYTES];
            let mut left = LINGER_BYTES;
            while left > 0 {
                match self.io.read(&mut sink).await {
                    Ok(0) | Err(_) => break,
                    Ok(read) => left = left.saturating_sub(read),
                }
            }
        };
        let _ = tokio::time::timeout(LINGER, drain).await;
    }
}

impl UniqueID for GuardedStream {
    fn id(&self) -> UniqueIDType {
        self.io.get_ref().as_raw_fd()
    }
}

impl Ssl for GuardedStream {}
impl Peek for GuardedStream {}

impl GetTimingDigest for GuardedStream {
    fn get_timing_digest(&self) -> Vec<Option<TimingDigest>> {
        Vec::new()
    }
}

impl GetProxyDigest for GuardedStream {
    fn get_proxy_digest(&self) -> Option<Arc<ProxyDigest>> {
        None
    }
}

impl GetSocketDigest for GuardedStream {
    fn get_socket_digest(&self) -> Option<Arc<SocketDigest>> {
        None
    }
}

#[cfg(test)]
mod tests;
