//! One client's connection, with the bounds that Pingora leaves to its user.
//!
//! Pingora bounds each read of a request's head but not all of them together, so that a client that
//! sends a byte now and then holds a connection for ever; it takes heads of up to 1 MiB; and what it
//! refuses itself (a head that does not parse) it answers without a body. This stream sits under
//! Pingora's HTTP session, watches for the head's end, and puts that right: the whole head has one
//! deadline and one size, an idle connection is closed, and refusals are in the contract's words.
//! Request lines that its parser is too narrow for are made plain on the way ([`request_line`]).
//! Pingora bounds no exchange as a whole either; here reads and writes that wait end with the
//! request's time, and Pingora's with them.

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

/// Written bytes that are gathered before they go out (bytes): a small answer is one packet.
const WRITE_BUFFER_BYTES: usize = 8 << 10;
/// What is still read of a request that has been refused before its end, so that the client sees
/// the refusal and not a reset: so much (bytes) ...
const LINGER_BYTES: usize = 8 << 20;
/// ... for so long.
const LINGER: Duration = Duration::from_millis(1_000);
/// Thrown away at a time (bytes).
const DISCARD_BYTES: usize = 4 << 10;

/// Bounds of a connection.
#[derive(Debug, Clone, Copy)]
pub struct ConnectionLimits {
    /// Largest head.
    pub head_bytes: usize,
    /// Largest target: for the words of refusals, for it is the gate that checks it.
    pub target_bytes: usize,
    /// From a head's first byte to its last.
    pub head_timeout: Duration,
    /// Until the first byte of a connection's first head.
    pub first_byte_timeout: Duration,
    /// From a request's end to the next one's first byte.
    pub idle_timeout: Duration,
}

/// What the proxy and the stream tell each other.
#[derive(Debug)]
pub struct Connection {
    /// The other end.
    pub peer: SocketAddr,
    /// Whether the proxy has taken the current request on; what Pingora writes before that is a
    /// refusal of its own.
    admitted: AtomicBool,
    linger: AtomicBool,
    /// When the current request and its answer must be over.
    deadline: Mutex<Option<Instant>>,
    /// The authority of the current request's target, when that came in absolute form.
    authority: Mutex<Option<Bytes>>,
    /// Bytes of the current request's body, as its head declares them.
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

    /// The proxy has the request now.
    pub fn admit(&self) {
        self.admitted.store(true, Ordering::Relaxed);
    }

    fn is_admitted(&self) -> bool {
        self.admitted.load(Ordering::Relaxed)
    }

    /// The current request and its answer must be over by then.
    pub fn end_by(&self, deadline: Instant) {
        *self.deadline.lock().unwrap_or_else(PoisonError::into_inner) = Some(deadline);
    }

    fn deadline(&self) -> Option<Instant> {
        *self.deadline.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The authority of the current request's target, when that came in absolute form: Pingora has
    /// only the rest of it.
    pub fn target_authority(&self) -> Option<Bytes> {
        self.authority.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What the current request's head says of its body: its bytes, `None` when it is chunked.
    pub fn expect_body(&self, bytes: Option<u64>) {
        self.body_bytes.store(bytes.unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// The answer comes before the request's end: do not cut the connection under it.
    pub fn linger(&self) {
        self.linger.store(true, Ordering::Relaxed);
    }
}

#[derive(Debug)]
enum Phase {
    /// Waiting for a head, or reading one.
    Head(Head),
    /// Past the head: body, answer.
    Open,
    /// The head was refused; its answer goes out ...
    Refusing(Bytes),
    /// ... and what still comes in is thrown away for a while (so many bytes), then reading fails.
    /// Pingora closes without a word when a head cannot be read, so this cannot be left to
    /// [`Shutdown`].
    Discarding(usize),
}

/// The stream under one Pingora session after another.
pub struct GuardedStream {
    io: BufWriter<TcpStream>,
    phase: Phase,
    limits: ConnectionLimits,
    connection: Arc<Connection>,
    timer: Pin<Box<Sleep>>,
    /// When the current head began to come.
    head_began: Option<SystemTime>,
    malformed: Arc<MalformedRequests>,
    /// Our words in place of Pingora's refusal.
    substitute: Option<Bytes>,
    /// What has come of the request line while that is still to be looked at.
    line: Option<Vec<u8>>,
    /// What is to be read in place of what came.
    normalized: Bytes,
    /// Bytes given to Pingora since the current head's end.
    after_head: u64,
    /// Whether every head begins where one is read: Pingora has kept nothing of one that came early.
    /// Only then is a request line looked at, or part of a body might be taken for one.
    is_aligned: bool,
}

impl std::fmt::Debug for GuardedStream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("GuardedStream").field("peer", &self.connection.peer).finish_non_exhaustive()
    }
}

impl GuardedStream {
    /// Guards an accepted connection. What is refused here is seen through `malformed`.
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

    /// Makes ready for the connection's next request.
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

    /// A refusal of what never becomes a request that the proxy could log.
    fn refusal(&self, response: Response) -> Bytes {
        // A pipelined head came with the request before it, and not by this way.
        self.malformed.refuse(response, self.head_began.unwrap_or_else(SystemTime::now))
    }

    fn refuse(&mut self, response: Response) {
        self.phase = Phase::Refusing(self.refusal(response));
    }

    /// Sees to the request line among what has just been read, from `before` on in `buf`. Nothing of it
    /// is left there while it is held back, or where it is read from [`Self::normalized`] instead.
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

    /// In place of waiting: fails once the exchange has had all of its time. The timer is the head's
    /// before that.
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
            // A pipelined head came with the request before it, and not by this way.
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
                                // Idle for long enough: the end of the stream, as far as Pingora sees.
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
                    // Flushes, and says that no more will come.
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
                // Only CONNECT is refused like this, which has no path to tell the methods of.
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
            // Stays there, empty, so that nothing more of Pingora's is let through.
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
        // Closing with unread bytes resets the connection, and the client may lose the answer.
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
