//! Connections to instances for requests that ask for an upgrade.
//!
//! Pingora 0.9.1 ends an upgraded exchange at once when it reads the response's head before it has taken note
//! that the request has no body (cloudflare/pingora#946). Which of the two comes first is chance when a
//! service answers fast. So the first read after a write waits for one turn of the task here, and Pingora
//! takes that note in it. This module can go with a Pingora that does not need it.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use async_trait::async_trait;
use pingora::connectors::l4::Connect;
use pingora::protocols::l4::socket::SocketAddr;
use pingora::protocols::l4::stream::Stream;
use pingora::protocols::l4::virt::{VirtualSockOpt, VirtualSocket, VirtualSocketStream};
use pingora::{Error, ErrorType};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

/// Makes such connections.
#[derive(Debug)]
pub struct UpgradeConnector;

#[async_trait]
impl Connect for UpgradeConnector {
    async fn connect(&self, to: &SocketAddr) -> pingora::Result<Stream> {
        let socket = YieldingSocket::new(connect(to).await?);
        Ok(VirtualSocketStream::new(Box::new(socket)).into())
    }
}

/// A connection to an instance, with failures that Pingora's own connections have.
pub(crate) async fn connect(to: &SocketAddr) -> pingora::Result<TcpStream> {
    let Some(address) = to.as_inet() else {
        return Error::e_explain(ErrorType::InternalError, format!("{to} has no port"));
    };
    TcpStream::connect(address).await.map_err(|error| {
        let kind = match error.kind() {
            io::ErrorKind::ConnectionRefused => ErrorType::ConnectRefused,
            _ => ErrorType::ConnectError,
        };
        Error::because(kind, format!("connecting to {address}"), error)
    })
}

/// Sets what Pingora sets on its own connections.
pub(crate) fn set_option(tcp: &TcpStream, option: VirtualSockOpt) -> io::Result<()> {
    match option {
        VirtualSockOpt::NoDelay => tcp.set_nodelay(true),
        other => Err(io::Error::new(io::ErrorKind::Unsupported, format!("{other:?}"))),
    }
}

/// A socket whose first read after a write is pending once.
#[derive(Debug)]
struct YieldingSocket {
    tcp: TcpStream,
    has_written: bool,
}

impl YieldingSocket {
    fn new(tcp: TcpStream) -> Self {
        Self { tcp, has_written: false }
    }
}

impl AsyncRead for YieldingSocket {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if std::mem::take(&mut self.has_written) {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        Pin::new(&mut self.tcp).poll_read(cx, buf)
    }
}

impl AsyncWrite for YieldingSocket {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.tcp).poll_write(cx, bytes))?;
        self.has_written = true;
        Poll::Ready(Ok(written))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_shutdown(cx)
    }
}

impl VirtualSocket for YieldingSocket {
    fn set_socket_option(&self, option: VirtualSockOpt) -> io::Result<()> {
        set_option(&self.tcp, option)
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn only_the_first_read_after_a_write_waits_for_a_turn() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (mut service, _) = listener.accept().await.unwrap();
        service.write_all(b"answer").await.unwrap();
        client.readable().await.unwrap();
        let mut socket = YieldingSocket::new(client);
        assert_eq!(socket.read_u8().now_or_never().unwrap().unwrap(), b'a');
        socket.write_all(b"request").await.unwrap();
        assert!(socket.read_u8().now_or_never().is_none());
        assert_eq!(socket.read_u8().now_or_never().unwrap().unwrap(), b'n');
        socket.write_all(b"another").await.unwrap();
        assert_eq!(socket.read_u8().await.unwrap(), b's');
    }
}
