//! Requests that no proper client would send.

use std::net::SocketAddr;

use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// What came back before the connection was closed.
#[derive(Debug)]
pub struct RawResponse {
    pub status: u16,
    pub head: String,
    /// The body as it came, and as JSON.
    pub text: String,
    pub body: Value,
}

impl RawResponse {
    pub fn header(&self, name: &str) -> Option<&str> {
        let mut fields = self.head.lines().filter_map(|line| line.split_once(": "));
        fields.find(|(field, _)| field.eq_ignore_ascii_case(name)).map(|(_, value)| value)
    }

    #[track_caller]
    pub fn assert_refused(&self, status: u16, error: &str) {
        assert_eq!(self.status, status, "{self:?}");
        assert_eq!(self.body["error"], error, "{self:?}");
        assert_eq!(self.header("content-type"), Some("application/json"), "{self:?}");
        assert!(self.header("x-request-id").is_some(), "{self:?}");
        assert!(self.header("traceresponse").is_some(), "{self:?}");
    }
}

/// Sends bytes as they are and reads until the connection is closed, which `Connection: close` in
/// the request brings about.
pub async fn raw(addr: SocketAddr, request: impl AsRef<[u8]>) -> RawResponse {
    let mut stream = TcpStream::connect(addr).await.unwrap();
    // The gateway may refuse and close before it has read everything.
    let _ = stream.write_all(request.as_ref()).await;
    let mut bytes = Vec::new();
    tokio::time::timeout(super::DEADLINE, stream.read_to_end(&mut bytes))
        .await
        .expect("the connection is closed in time")
        .unwrap();
    parse(&bytes)
}

pub fn parse(bytes: &[u8]) -> RawResponse {
    let text = String::from_utf8_lossy(bytes);
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no answer: {text:?}"));
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    RawResponse {
        status,
        head: head.to_owned(),
        text: body.to_owned(),
        body: serde_json::from_str(body).unwrap_or(Value::Null),
    }
}
