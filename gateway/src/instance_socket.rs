//! Connections to instances whose reading differs from that of Pingora's own connections.

use std::fmt::Debug;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use pingora::protocols::l4::socket::SocketAddr;
use pingora::protocols::l4::stream::Stream;
use pingora::protocols::l4::virt::{VirtualSockOpt, VirtualSocket, VirtualSocketStream};
use pingora::{Error, ErrorType};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

/// How a connection is read.
pub(crate) trait Reading: Debug + Send + Sync + Unpin + 'static {
    /// As [`AsyncRead::poll_read`] of the connection.
    fn poll_read(
        &mut self,
        tcp: Pin<&mut TcpStream>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>>;

    /// Something was written.
    fn wrote(&mut self) {}
}

/// A connection to an instance that is read in this way.
#[derive(Debug)]
pub(crate) struct InstanceSocket<R> {
    pub tcp: TcpStream,
    pub reading: R,
}

impl<R: Reading> InstanceSocket<R> {
    /// Connects, with the failures that Pingora's own connections have.
    pub async fn connect(to: &SocketAddr, reading: R) -> pingora::Result<Stream> {
        let Some(address) = to.as_inet() else {
            return Error::e_explain(ErrorType::InternalError, format!("{to} has no port"));
        };
        let tcp = TcpStream::connect(address).await.map_err(|error| {
            let kind = match error.kind() {
                io::ErrorKind::ConnectionRefused => ErrorType::ConnectRefused,
                _ => ErrorType::ConnectError,
            };
            Error::because(kind, format!("connecting to {address}"), error)
        })?;
        Ok(VirtualSocketStream::new(Box::new(Self { tcp, reading })).into())
    }
}

impl<R: Reading> AsyncRead for InstanceSocket<R> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        this.reading.poll_read(Pin::new(&mut this.tcp), cx, buf)
    }
}

impl<R: Reading> AsyncWrite for InstanceSocket<R> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.tcp).poll_write(cx, bytes))?;
        self.reading.wrote();
        Poll::Ready(Ok(written))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_shutdown(cx)
    }
}

impl<R: Reading> VirtualSocket for InstanceSocket<R> {
    /// Sets what Pingora sets on its own connections.
    fn set_socket_option(&self, option: VirtualSockOpt) -> io::Result<()> {
        match option {
            VirtualSockOpt::NoDelay => self.tcp.set_nodelay(true),
            other => Err(io::Error::new(io::ErrorKind::Unsupported, format!("{other:?}"))),
        }
    }
}
