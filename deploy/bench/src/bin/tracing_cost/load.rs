//! Requests by kept-alive connections, as fast as they are answered, with as little work on this
//! side as can be.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::Context;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

const MAX_ANSWER_BYTES: usize = 64 << 10;

/// Asks for `time`, and says how many requests were answered with success.
///
/// # Errors
/// When a connection breaks or an answer is no success.
pub async fn run(to: SocketAddr, connections: usize, time: Duration) -> anyhow::Result<u64> {
    let until = Instant::now() + time;
    let mut asking = JoinSet::new();
    for _ in 0..connections {
        asking.spawn(ask(to, until));
    }
    let mut answered = 0;
    while let Some(count) = asking.join_next().await {
        answered += count??;
    }
    Ok(answered)
}

async fn ask(to: SocketAddr, until: Instant) -> anyhow::Result<u64> {
    let mut stream = TcpStream::connect(to).await?;
    stream.set_nodelay(true)?;
    let request = format!(
        "GET /api/tour-spots?query=palace HTTP/1.1\r\nHost: {to}\r\nUser-Agent: bench\r\nAccept: */*\r\n\r\n"
    );
    let mut buffer = vec![0; MAX_ANSWER_BYTES];
    let mut answered = 0;
    while Instant::now() < until {
        stream.write_all(request.as_bytes()).await?;
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
        anyhow::ensure!(read > 0, "the gateway closed a connection");
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
    anyhow::ensure!(text.starts_with("http/1.1 200"), "not a success: {text}");
    let body: usize = text
        .lines()
        .find_map(|line| line.strip_prefix("content-length:"))
        .context("no Content-Length")?
        .trim()
        .parse()?;
    Ok(Some(head + 4 + body))
}
