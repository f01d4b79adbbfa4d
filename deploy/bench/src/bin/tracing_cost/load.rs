//! Requests over kept-alive connections, each sent as soon as the last one is answered, with little work on
//! the client's side.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

const MAX_ANSWER_BYTES: usize = 64 << 10;

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

/// Makes requests for `time`, on one connection for each list, and returns how many succeeded.
///
/// # Errors
/// When a connection breaks or a request fails.
pub async fn run(to: SocketAddr, connections: &[Requests], time: Duration) -> anyhow::Result<u64> {
    let until = Instant::now() + time;
    let mut asking = JoinSet::new();
    for requests in connections {
        asking.spawn(ask(to, Arc::clone(requests), until));
    }
    let mut answered = 0;
    while let Some(count) = asking.join_next().await {
        answered += count??;
    }
    Ok(answered)
}

async fn ask(to: SocketAddr, requests: Requests, until: Instant) -> anyhow::Result<u64> {
    let mut stream = TcpStream::connect(to).await?;
    stream.set_nodelay(true)?;
    let mut buffer = vec![0; MAX_ANSWER_BYTES];
    let mut answered = 0;
    for request in requests.iter().cycle() {
        if Instant::now() >= until {
            break;
        }
        stream.write_all(request).await?;
        read_answer(&mut stream, &mut buffer).await?;
        answered += 1;
    }
    Ok(answered)
}

async fn read_answer(stream: &mut TcpStream, buffer: &mut [u8]) -> anyhow::Result<()> {
    let mut filled = 0;
    let mut whole = None;
    while whole.is_none_or(|whole| filled < whole) {
        let read = stream.read(&mut buffer[filled..]).await?;
        anyhow::ensure!(read > 0, "the server closed a connection");
        filled += read;
        if whole.is_none() {
            whole = length(&buffer[..filled])?;
        }
    }
    Ok(())
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
