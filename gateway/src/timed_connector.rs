//! Connections to instances on which reading fails at a time that can be changed while a response is waited for.
//!
//! Pingora 0.9.1 has one time-out for all reads of an exchange (`PeerOptions::read_timeout`), which nothing can
//! change after its beginning. Where a response may become a stream, that is the time for which the stream may be
//! quiet. So it does not bound the wait for the response's head. Over HTTP/1 the client's connection ends
//! the exchange at its deadline ([`crate::connection`]). Over HTTP/2 that connection has other requests too, so the
//! connection to the instance does it.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};

use async_trait::async_trait;
use pingora::connectors::l4::Connect;
use pingora::protocols::l4::socket::SocketAddr;
use pingora::protocols::l4::stream::Stream;
use pingora::{Error, ErrorSource, ErrorType};
use tokio::io::{AsyncRead, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep};

use crate::instance_socket::{InstanceSocket, Reading};

/// When reading fails; never, by default.
#[derive(Debug, Default)]
pub struct ReadDeadline(Mutex<Option<Instant>>);

impl ReadDeadline {
    /// Changes it, by the task that reads.
    pub fn set(&self, at: Option<Instant>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = at;
    }

    fn get(&self) -> Option<Instant> {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Makes connections with this deadline.
#[derive(Debug)]
pub struct TimedConnector(pub Arc<ReadDeadline>);

#[async_trait]
impl Connect for TimedConnector {
    async fn connect(&self, to: &SocketAddr) -> pingora::Result<Stream> {
        InstanceSocket::connect(to, TimedReads::new(Arc::clone(&self.0))).await
    }
}

/// Has Pingora take a read that failed at a [`ReadDeadline`] for what it is, a time-out.
pub fn name_timeout(error: &mut Error) {
    let cause = error.cause.as_ref().and_then(|cause| cause.downcast_ref::<io::Error>());
    // The operating system's own time-outs have nothing in them.
    let is_ours =
        |cause: &io::Error| cause.kind() == io::ErrorKind::TimedOut && cause.get_ref().is_some();
    if error.esource == ErrorSource::Upstream
        && error.etype == ErrorType::ReadError
        && cause.is_some_and(is_ours)
    {
        error.etype = ErrorType::ReadTimedout;
    }
}

#[derive(Debug)]
struct TimedReads {
    deadline: Arc<ReadDeadline>,
    timer: Pin<Box<Sleep>>,
}

impl TimedReads {
    fn new(deadline: Arc<ReadDeadline>) -> Self {
        Self { deadline, timer: Box::pin(tokio::time::sleep_until(Instant::now())) }
    }
}

impl Reading for TimedReads {
    fn poll_read(
        &mut self,
        tcp: Pin<&mut TcpStream>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let read = tcp.poll_read(cx, buf);
        let Some(deadline) = self.deadline.get().filter(|_| read.is_pending()) else {
            return read;
        };
        if self.timer.deadline() != deadline {
            self.timer.as_mut().reset(deadline);
        }
        ready!(self.timer.as_mut().poll(cx));
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the response took too long")))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn a_read_fails_at_its_deadline_until_there_is_none() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (mut service, _) = listener.accept().await.unwrap();
        let deadline = Arc::new(ReadDeadline::default());
        let mut socket =
            InstanceSocket { tcp: client, reading: TimedReads::new(Arc::clone(&deadline)) };
        let begun = Instant::now();
        deadline.set(Some(begun + Duration::from_millis(100)));
        let failed = socket.read_u8().await.unwrap_err();
        assert!(begun.elapsed() >= Duration::from_millis(100));
        let mut error = Error::because(ErrorType::ReadError, "while reading", failed);
        error.esource = ErrorSource::Upstream;
        name_timeout(&mut error);
        assert_eq!(error.etype, ErrorType::ReadTimedout);
        // What is there is read, also after the deadline.
        service.write_all(b"a").await.unwrap();
        socket.tcp.readable().await.unwrap();
        assert_eq!(socket.read_u8().await.unwrap(), b'a');
        // A read that waits already has the new deadline.
        deadline.set(Some(Instant::now() + Duration::from_millis(100)));
        let mut reading = Box::pin(socket.read_u8());
        assert!(futures::poll!(&mut reading).is_pending());
        deadline.set(None);
        let none = tokio::time::timeout(Duration::from_millis(300), &mut reading).await;
        assert!(none.is_err(), "{none:?}");
        service.write_all(b"b").await.unwrap();
        assert_eq!(reading.await.unwrap(), b'b');
    }
}
