//! Requests over kept-alive connections, each sent as soon as the last one is answered, with little work on
//! the client's side.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio_rustls::TlsConnector;

/// The head of an answer, and what is read of its body at once.
const BUFFER_BYTES: usize = 64 << 10;

/// The requests of one connection, which it makes in turn.
pub type Requests = Arc<[Vec<u8>]>;

/// A request without a body, with more header lines or none.
pub fn get(path: &str, more: &str) -> Vec<u8> {
    request("GET", path, more, "")
}

/// A request. Each line in `more` ends with CR and LF.
pub fn request(method: &str, path: &str, more: &str, body: &str) -> Vec<u8> {
    let length = body.len();
    format!(
        "{method} {path} HTTP/1.1\r\nHost: bench\r\nUser-Agent: bench\r\nAccept: */*\r\n{more}Content-Length: {length}\r\n\r\n{body}"
    )
    .into_bytes()
}

/// A server under load.
#[derive(Clone)]
pub struct Target {
    /// Its address.
    pub addr: SocketAddr,
    /// How it is called by TLS; by plain HTTP if `None`.
    pub tls: Option<Arc<ClientConfig>>,
}

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

/// A kept-alive connection.
pub struct Connection {
    stream: Box<dyn Stream>,
    buffer: Vec<u8>,
}

impl Connection {
    /// Opens one.
    ///
    /// # Errors
    /// When the server does not accept it.
    pub async fn open(to: &Target) -> anyhow::Result<Self> {
        let stream = TcpStream::connect(to.addr).await?;
        stream.set_nodelay(true)?;
        let stream: Box<dyn Stream> = match &to.tls {
            Some(tls) => {
                // The configuration says which name it expects of the server.
                let name = ServerName::from(to.addr.ip());
                Box::new(TlsConnector::from(Arc::clone(tls)).connect(name, stream).await?)
            }
            None => Box::new(stream),
        };
        Ok(Self { stream, buffer: vec![0; BUFFER_BYTES] })
    }

    /// Makes a request and reads the answer.
    ///
    /// # Errors
    /// When the connection breaks or the answer is no success; then it is of no further use.
    pub async fn ask(&mut self, request: &[u8]) -> anyhow::Result<()> {
        self.stream.write_all(request).await?;
        self.stream.flush().await?;
        let mut filled = 0;
        let whole = loop {
            filled += self.read(filled).await?;
            if let Some(whole) = length(&self.buffer[..filled])? {
                break whole;
            }
        };
        let mut left = whole.checked_sub(filled).context("more than an answer")?;
        while left > 0 {
            let read = self.read(0).await?;
            left = left.checked_sub(read).context("more than an answer")?;
        }
        Ok(())
    }

    async fn read(&mut self, from: usize) -> anyhow::Result<usize> {
        let read = self.stream.read(&mut self.buffer[from..]).await?;
        anyhow::ensure!(read > 0, "the server closed a connection, or a head is too long");
        Ok(read)
    }
}

/// Bytes of the whole answer, once its head is there.
fn length(answer: &[u8]) -> anyhow::Result<Option<usize>> {
    let Some(head) = answer.windows(4).position(|four| four == b"\r\n\r\n") else {
        return Ok(None);
    };
    let text = std::str::from_utf8(&answer[..head])?.to_ascii_lowercase();
    anyhow::ensure!(text.starts_with("http/1.1 20"), "not a success: {text}");
    if text.starts_with("http/1.1 204") {
        return Ok(Some(head + 4));
    }
    let body: usize = text
        .lines()
        .find_map(|line| line.strip_prefix("content-length:"))
        .context("no Content-Length")?
        .trim()
        .parse()?;
    Ok(Some(head + 4 + body))
}

/// Connections that are open, each with its requests.
pub struct Load(Vec<(Connection, Requests)>);

impl Load {
    /// Opens a connection for each list and makes its requests once, so that no handshake is among what is
    /// measured: a server verifies a client's certificate when the client has connected already.
    ///
    /// # Errors
    /// When a connection breaks or a request fails.
    pub async fn open(to: &Target, lists: &[Requests]) -> anyhow::Result<Self> {
        let mut connections = Vec::new();
        for requests in lists {
            let mut connection = Connection::open(to).await?;
            for request in requests.iter() {
                connection.ask(request).await?;
            }
            connections.push((connection, Arc::clone(requests)));
        }
        Ok(Self(connections))
    }

    /// Makes requests for `time` on all connections at once, and returns how many succeeded.
    ///
    /// # Errors
    /// When a connection breaks or a request fails.
    pub async fn run(&mut self, time: Duration) -> anyhow::Result<u64> {
        let until = Instant::now() + time;
        let mut asking = JoinSet::new();
        for (mut connection, requests) in self.0.drain(..) {
            asking.spawn(async move {
                let mut answered = 0;
                for request in requests.iter().cycle() {
                    if Instant::now() >= until {
                        break;
                    }
                    connection.ask(request).await?;
                    answered += 1;
                }
                anyhow::Ok((answered, connection, requests))
            });
        }
        let mut all = 0;
        while let Some(asked) = asking.join_next().await {
            let (answered, connection, requests) = asked??;
            all += answered;
            self.0.push((connection, requests));
        }
        Ok(all)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_has_the_length_of_its_head_and_body() {
        assert_eq!(length(b"HTTP/1.1 200 OK\r\nContent-Len").unwrap(), None);
        let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\nab";
        assert_eq!(length(answer).unwrap(), Some(answer.len() + 5));
        let empty = b"HTTP/1.1 204 No Content\r\n\r\n";
        assert_eq!(length(empty).unwrap(), Some(empty.len()));
        assert!(length(b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n").is_err());
        assert!(length(b"HTTP/1.1 200 OK\r\n\r\n").is_err());
    }
}
