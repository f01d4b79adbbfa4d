//! A WebSocket client, and the frames of RFC 6455.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::raw::{RawResponse, parse};

/// The key and the answer to it of RFC 6455, 1.3.
pub const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";
pub const ACCEPT: &str = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";

pub const TEXT: u8 = 1;
pub const BINARY: u8 = 2;
pub const CLOSE: u8 = 8;

#[derive(Debug, PartialEq, Eq)]
pub struct Frame {
    pub opcode: u8,
    pub payload: Vec<u8>,
}

impl Frame {
    pub fn text(&self) -> &str {
        assert_eq!(self.opcode, TEXT);
        std::str::from_utf8(&self.payload).unwrap()
    }

    /// The status of a Close frame.
    pub fn status(&self) -> u16 {
        assert_eq!(self.opcode, CLOSE, "{self:?}");
        u16::from_be_bytes(self.payload[..2].try_into().unwrap())
    }
}

/// A whole message in one frame; a client's has a mask.
pub fn encode(opcode: u8, payload: &[u8], mask: Option<[u8; 4]>) -> Vec<u8> {
    let masked = if mask.is_some() { 0x80 } else { 0 };
    let mut wire = vec![0x80 | opcode];
    match payload.len() {
        length @ 0..126 => wire.push(masked | u8::try_from(length).unwrap()),
        length @ 126..65_536 => {
            wire.push(masked | 126);
            wire.extend(u16::try_from(length).unwrap().to_be_bytes());
        }
        length => {
            wire.push(masked | 127);
            wire.extend((length as u64).to_be_bytes());
        }
    }
    wire.extend(mask.unwrap_or_default().iter().take(if mask.is_some() { 4 } else { 0 }));
    let mask = mask.unwrap_or_default();
    wire.extend(payload.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask));
    wire
}

/// The next frame; `None` when the connection ends before or within it.
pub async fn read_frame(stream: &mut (impl AsyncRead + Unpin)) -> Option<Frame> {
    let mut head = [0; 2];
    stream.read_exact(&mut head).await.ok()?;
    let length = match head[1] & 0x7f {
        126 => u64::from(stream.read_u16().await.ok()?),
        127 => stream.read_u64().await.ok()?,
        length => u64::from(length),
    };
    let mut mask = [0; 4];
    if head[1] & 0x80 != 0 {
        stream.read_exact(&mut mask).await.ok()?;
    }
    let mut payload = vec![0; usize::try_from(length).unwrap()];
    stream.read_exact(&mut payload).await.ok()?;
    payload.iter_mut().zip(mask.iter().cycle()).for_each(|(byte, mask)| *byte ^= mask);
    Some(Frame { opcode: head[0] & 0x0f, payload })
}

pub fn handshake(path: &str, headers: &[(&str, &str)]) -> String {
    let mut request =
        format!("GET {path} HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n");
    for (name, value) in [("Sec-WebSocket-Version", "13"), ("Sec-WebSocket-Key", KEY)] {
        if !headers.iter().any(|(own, _)| own.eq_ignore_ascii_case(name)) {
            request += &format!("{name}: {value}\r\n");
        }
    }
    for (name, value) in headers {
        request += &format!("{name}: {value}\r\n");
    }
    request + "\r\n"
}

/// Reads a head byte by byte, so that nothing after it is read.
pub async fn read_head(stream: &mut (impl AsyncRead + Unpin)) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        match stream.read_u8().await {
            Ok(byte) => head.push(byte),
            Err(_) => break,
        }
    }
    String::from_utf8(head).unwrap()
}

#[derive(Debug)]
pub struct WebSocket {
    pub stream: TcpStream,
    pub head: RawResponse,
}

impl WebSocket {
    /// Opens one; the response if it is not 101.
    pub async fn try_connect(
        addr: SocketAddr,
        path: &str,
        headers: &[(&str, &str)],
    ) -> Result<Self, RawResponse> {
        let mut stream = TcpStream::connect(addr).await.unwrap();
        stream.write_all(handshake(path, headers).as_bytes()).await.unwrap();
        let opening = async {
            let head = read_head(&mut stream).await;
            let mut response = parse(head.as_bytes());
            if response.status == 101 {
                return Ok(response);
            }
            let length = response.header("content-length").map_or(0, |n| n.parse().unwrap());
            let mut body = vec![0; length];
            stream.read_exact(&mut body).await.unwrap();
            response = parse(&[head.as_bytes(), &body].concat());
            Err(response)
        };
        let head = tokio::time::timeout(super::DEADLINE, opening).await.expect("an answer")?;
        Ok(Self { stream, head })
    }

    pub async fn connect(addr: SocketAddr, path: &str, headers: &[(&str, &str)]) -> Self {
        Self::try_connect(addr, path, headers).await.unwrap()
    }

    pub async fn send(&mut self, opcode: u8, payload: &[u8]) {
        let wire = encode(opcode, payload, Some([7, 1, 9, 3]));
        self.stream.write_all(&wire).await.unwrap();
    }

    pub async fn say(&mut self, text: &str) {
        self.send(TEXT, text.as_bytes()).await;
    }

    /// The next frame; `None` at the connection's end.
    pub async fn receive(&mut self) -> Option<Frame> {
        tokio::time::timeout(super::DEADLINE, read_frame(&mut self.stream)).await.expect("a frame")
    }

    /// Whether nothing comes for a while.
    pub async fn is_quiet_for(&mut self, time: Duration) -> bool {
        let mut byte = [0];
        tokio::time::timeout(time, self.stream.peek(&mut byte)).await.is_err()
    }
}
