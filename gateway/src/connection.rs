//! The stream of a client's connection, with bounds that Pingora does not have.
//!
//! This stream lies under Pingora's HTTP session and adds:
//! - one deadline and one size limit for a whole head. Pingora bounds each read alone, so a slow client
//!   could hold a connection for ever, and allows heads of 1 MiB;
//! - a time-out of idle connections;
//! - refusals with a body in place of Pingora's empty ones, for heads that do not parse;
//! - request lines that Pingora's parser does not accept ([`request_line`]);
//! - an end of each request: Pingora gets nothing of the next one before it has responded to this one. So a
//!   pipelined head is bounded and normalised as every other;
//! - a deadline for the whole exchange, at which waiting reads and writes fail;
//! - what an exchange needs that has become a stream ([`open_stream`]).
//!
//! Of HTTP/2 it bounds the time until the first request alone. The rest is up to Pingora's session and
//! to [`crate::http2`].

mod body;
mod head;
mod open_stream;
mod request_line;
mod shared;
mod unread;

use std::io;
use std::os::fd::AsRawFd;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use bytes::{Buf, Bytes};
use pingora::protocols::raw_connect::ProxyDigest;
use pingora::protocols::{
    ALPN, GetProxyDigest, GetSocketDigest, GetTimingDigest, Peek, Shutdown, SocketDigest, Ssl,
    TimingDigest, UniqueID, UniqueIDType,
};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufWriter, ReadBuf};
use tokio::time::{Instant, Sleep};

use crate::malformed::MalformedRequests;
use crate::messages;
use crate::responses::Response;
use crate::transport::Transport;
pub use body::BodyEnd;
use body::BodyProgress;
use head::{Head, HeadProgress};
use open_stream::OpenStream;
pub use shared::{Connection, Streams};
use unread::Unread;

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
    /// HTTP/2, which has no heads of this kind. `silent` until the first byte.
    Http2 { silent: bool },
}

/// The stream under the Pingora sessions of one connection.
pub struct GuardedStream {
    io: BufWriter<Transport>,
    phase: Phase,
    limits: ConnectionLimits,
    connection: Arc<Connection>,
    /// Fires at `deadline` or before it: see [`GuardedStream::poll_until`].
    timer: Pin<Box<Sleep>>,
    /// Until when a head, or the client's end after a refusal, is waited for.
    deadline: Instant,
    head_began: Option<SystemTime>,
    malformed: Arc<MalformedRequests>,
    /// Written in place of Pingora's refusal.
    substitute: Option<Bytes>,
    /// The request line as far as it has come, while it is not complete.
    line: Option<Vec<u8>>,
    /// The normalised request line, to be read in place of the received one.
    normalized: Bytes,
    body: BodyProgress,
    unread: Unread,
    stream: Option<OpenStream>,
}

impl std::fmt::Debug for GuardedStream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("GuardedStream").field("peer", &self.connection.peer).finish_non_exhaustive()
    }
}

impl GuardedStream {
    /// Wraps an accepted connection. Refusals here are recorded by `malformed`.
    pub fn new(
        transport: Transport,
        limits: ConnectionLimits,
        connection: Arc<Connection>,
        malformed: Arc<MalformedRequests>,
    ) -> Self {
        let phase = if transport.is_http2() {
            Phase::Http2 { silent: true }
        } else {
            Phase::Head(Head::default())
        };
        let deadline = Instant::now() + limits.first_byte_timeout;
        Self {
            io: BufWriter::with_capacity(WRITE_BUFFER_BYTES, transport),
            phase,
            timer: Box::pin(tokio::time::sleep_until(deadline)),
            deadline,
            limits,
            connection,
            head_began: None,
            malformed,
            substitute: None,
            line: Some(Vec::new()),
            normalized: Bytes::new(),
            body: BodyProgress::default(),
            unread: Unread::default(),
            stream: None,
        }
    }

    /// Prepares for the connection's next request.
    pub fn next_request(&mut self) {
        self.phase = Phase::Head(Head::default());
        self.head_began = None;
        self.stream = None;
        self.connection.next_request();
        self.body = BodyProgress::default();
        self.line = Some(Vec::new());
        self.deadline = Instant::now() + self.limits.idle_timeout;
    }

    fn is_http2(&self) -> bool {
        matches!(self.phase, Phase::Http2 { .. })
    }

    /// A refusal of a request that the proxy never gets.
    fn refusal(&self, response: Response) -> Bytes {
        let began = self.head_began.unwrap_or_else(SystemTime::now);
        self.malformed.refuse(response, self.connection.is_tls, began)
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
        self.connection.set_target_authority(line.authority);
        Ok(())
    }

    /// Reads the body. What follows it waits for the next request, and meanwhile looks like nothing. So a
    /// client that leaves is noticed only if it has sent nothing before.
    fn poll_body(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let end = self.connection.body_end();
        if self.body.is_complete(end) && !self.unread.is_empty() {
            return Poll::Pending;
        }
        let before = buf.filled().len();
        ready!(self.unread.poll_read(Pin::new(&mut self.io), cx, buf))?;
        let read = buf.filled().len() - before;
        let of_body = self.body.take(end, &buf.filled()[before..]);
        self.unread.take_back(buf, read - of_body);
        if read > 0 && of_body == 0 { Poll::Pending } else { Poll::Ready(Ok(())) }
    }

    /// Ready when `at` has come. To set a timer costs more than to poll it, and each request has deadlines of
    /// its own, so it is set only when it would fire too late, or has fired too early.
    fn poll_until(&mut self, at: Instant, cx: &mut Context<'_>) -> Poll<()> {
        if self.timer.deadline() > at {
            self.timer.as_mut().reset(at);
        }
        ready!(self.timer.as_mut().poll(cx));
        if self.timer.deadline() < at && Instant::now() < at {
            self.timer.as_mut().reset(at);
            return self.timer.as_mut().poll(cx);
        }
        Poll::Ready(())
    }

    /// Polled when a read or write is pending: fails at the exchange's deadline, or at the end of a stream.
    fn poll_deadline<T>(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<T>> {
        if self.stream().is_some() {
            ready!(self.poll_stream(cx));
            return Poll::Ready(Err(io::Error::new(
                io::ErrorKind::TimedOut,
                "the stream was closed",
            )));
        }
        let Some(deadline) = self.connection.deadline() else {
            return Poll::Pending;
        };
        ready!(self.poll_until(deadline, cx));
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
        loop {
            if !this.normalized.is_empty() {
                let length = this.normalized.len().min(buf.remaining());
                buf.put_slice(&this.normalized.split_to(length));
                return Poll::Ready(Ok(()));
            }
            match &mut this.phase {
                Phase::Open => {
                    return match this.poll_body(cx, buf) {
                        Poll::Pending if this.stream().is_some() => {
                            // The gateway's end of a stream looks like the client's to Pingora.
                            ready!(this.poll_stream(cx));
                            Poll::Ready(Ok(()))
                        }
                        Poll::Pending => this.poll_deadline(cx),
                        ready => {
                            if let Some(stream) = &mut this.stream {
                                stream.received();
                            }
                            ready
                        }
                    };
                }
                Phase::Http2 { silent } => {
                    let before = buf.filled().len();
                    let read = Pin::new(&mut this.io).poll_read(cx, buf);
                    if read.is_ready() {
                        if *silent && buf.filled().len() > before {
                            *silent = false;
                            this.deadline = Instant::now() + this.limits.head_timeout;
                        }
                    } else if !this.connection.is_admitted() {
                        ready!(this.poll_until(this.deadline, cx));
                        // This looks like the stream's end.
                        return Poll::Ready(Ok(()));
                    }
                    return read;
                }
                Phase::Head(head) => {
                    let before = buf.filled().len();
                    match this.unread.poll_read(Pin::new(&mut this.io), cx, buf) {
                        Poll::Ready(Ok(())) if buf.filled().len() == before => {
                            return Poll::Ready(Ok(()));
                        }
                        Poll::Ready(Ok(())) => {
                            let waited = !head.started;
                            let progress =
                                head.feed(&buf.filled()[before..], this.limits.head_bytes);
                            let begins = waited && head.started;
                            this.head_began = begins.then(SystemTime::now).or(this.head_began);
                            match progress {
                                HeadProgress::Incomplete if begins => {
                                    this.deadline = Instant::now() + this.limits.head_timeout;
                                }
                                HeadProgress::Incomplete => {}
                                HeadProgress::Complete { rest } => {
                                    this.phase = Phase::Open;
                                    this.unread.take_back(buf, rest);
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
                            let quiet = !head.started;
                            ready!(this.poll_until(this.deadline, cx));
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
                    this.deadline = Instant::now() + LINGER;
                    this.phase = Phase::Discarding(LINGER_BYTES);
                }
                Phase::Discarding(left) => {
                    let left = *left;
                    let mut sink = [0; DISCARD_BYTES];
                    let mut sink = ReadBuf::new(&mut sink);
                    let read = match Pin::new(&mut this.io).poll_read(cx, &mut sink) {
                        Poll::Ready(Ok(())) => sink.filled().len(),
                        Poll::Ready(Err(_)) => 0,
                        Poll::Pending => {
                            ready!(this.poll_until(this.deadline, cx));
                            0
                        }
                    };
                    let left = left.saturating_sub(read);
                    this.phase = Phase::Discarding(left);
                    if read == 0 || left == 0 {
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
        if this.connection.is_admitted() || this.is_http2() {
            let may_send = this.stream().map_or(bytes.len(), |stream| stream.may_send(bytes));
            if may_send == 0 {
                return Poll::Ready(Ok(bytes.len()));
            }
            return match Pin::new(&mut this.io).poll_write(cx, &bytes[..may_send]) {
                Poll::Pending => this.poll_deadline(cx),
                Poll::Ready(Ok(written)) => {
                    if let Some(stream) = &mut this.stream {
                        stream.sent(&bytes[..written]);
                    }
                    Poll::Ready(Ok(written))
                }
                failed => failed,
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
        let lingers = self.connection.lingers() || !self.unread.is_empty();
        if AsyncWriteExt::shutdown(self).await.is_err() || !lingers {
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

impl Ssl for GuardedStream {
    fn selected_alpn_proto(&self) -> Option<ALPN> {
        self.is_http2().then_some(ALPN::H2)
    }
}

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
