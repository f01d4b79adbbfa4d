//! Connections to instances for requests that ask for an upgrade.
//!
//! Pingora 0.9.1 ends an upgraded exchange at once when it reads the response's head before it has taken note
//! that the request has no body (cloudflare/pingora#946). Which of the two comes first is chance when a
//! service answers fast. So the first read after a write waits for one turn of the task here, and Pingora
//! takes that note in it. This module can go with a Pingora that does not need it.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use async_trait::async_trait;
use pingora::connectors::l4::Connect;
use pingora::protocols::l4::socket::SocketAddr;
use pingora::protocols::l4::stream::Stream;
use tokio::io::{AsyncRead, ReadBuf};
use tokio::net::TcpStream;

use crate::instance_socket::{InstanceSocket, Reading};

/// Makes such connections.
#[derive(Debug)]
pub struct UpgradeConnector;

#[async_trait]
impl Connect for UpgradeConnector {
    async fn connect(&self, to: &SocketAddr) -> pingora::Result<Stream> {
        InstanceSocket::connect(to, YieldingReads::default()).await
    }
}

/// The first read after a write is pending once.
#[derive(Debug, Default)]
struct YieldingReads {
    has_written: bool,
}

impl Reading for YieldingReads {
    fn poll_read(
        &mut self,
        tcp: Pin<&mut TcpStream>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if std::mem::take(&mut self.has_written) {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        tcp.poll_read(cx, buf)
    }

    fn wrote(&mut self) {
        self.has_written = true;
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
        let mut socket = InstanceSocket { tcp: client, reading: YieldingReads::default() };
        assert_eq!(socket.read_u8().now_or_never().unwrap().unwrap(), b'a');
        socket.write_all(b"request").await.unwrap();
        assert!(socket.read_u8().now_or_never().is_none());
        assert_eq!(socket.read_u8().now_or_never().unwrap().unwrap(), b'n');
        socket.write_all(b"another").await.unwrap();
        assert_eq!(socket.read_u8().await.unwrap(), b's');
    }
}
