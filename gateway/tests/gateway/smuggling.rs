//! Requests with two readings: one in which they are one request, and one in which a second request is in
//! them. Each file of the folder has one, and the second request is a public call to another service.
//!
//! A lenient reader in front of the gateway, or behind it, could take the second one for somebody else's.
//! So the gateway refuses each of them and closes its connection.

use std::path::Path;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::harness::{Mesh, raw};

/// What such a request may be answered, besides nothing.
const REFUSALS: [&str; 6] = ["400", "405", "408", "413", "501", "505"];

#[tokio::test]
async fn no_request_can_be_read_in_two_ways() {
    let mesh = Mesh::start().await;
    let first = mesh.service("core", "core-1").await;
    let second = mesh.service("recommendation", "recommendation-1").await;
    let gateway = mesh.gateway(|_| {}).await;
    // The second request is a good one, were it sent by itself.
    assert_eq!(gateway.get("/api/tour-spots/1/similar").await.status, 200);
    let (first_calls, second_calls) = (first.calls(), second.calls());

    let folder = Path::new("tests/gateway/smuggling");
    let files = std::fs::read_dir(folder).unwrap().map(|file| file.unwrap().path());
    let files: Vec<_> =
        files.filter(|file| file.extension().is_some_and(|kind| kind == "http")).collect();
    assert!(files.len() >= 50, "{}", files.len());
    for file in files {
        let name = file.file_stem().unwrap().to_string_lossy();
        let mut stream = TcpStream::connect(gateway.addr).await.unwrap();
        // The gateway may refuse and close before it has read everything.
        let _ = stream.write_all(&std::fs::read(&file).unwrap()).await;
        let mut answer = Vec::new();
        let read = stream.read_to_end(&mut answer);
        let read = tokio::time::timeout(Duration::from_secs(10), read).await;
        assert!(read.is_ok(), "{name}: the connection stays open");
        let answer = String::from_utf8_lossy(&answer);
        let lines = answer.lines().filter_map(|line| line.strip_prefix("HTTP/1.1 "));
        let statuses: Vec<_> = lines.map(|status| status.get(..3).unwrap_or("")).collect();
        assert!(statuses.len() <= 1, "{name}: {answer}");
        assert!(statuses.iter().all(|status| REFUSALS.contains(status)), "{name}: {answer}");
        assert_eq!(second.calls(), second_calls, "{name}: the second request was served");
        assert_eq!(first.calls(), first_calls, "{name}: the first request was served");
    }
}

/// The parser of chunks takes a chunk without a size for the last one, and what follows for trailers, which
/// are dropped. So there is one reading here too, and no second request in it.
#[tokio::test]
async fn after_a_chunk_without_a_size_there_is_no_second_request() {
    let mesh = Mesh::start().await;
    let first = mesh.service("core", "core-1").await;
    let second = mesh.service("recommendation", "recommendation-1").await;
    let gateway = mesh.gateway(|_| {}).await;
    let head = "POST /api/auth/login HTTP/1.1\r\nHost: h\r\nConnection: close\r\nTransfer-Encoding: chunked";
    let hidden = "GET /api/tour-spots/1/similar HTTP/1.1\r\nHost: h";
    let answer = raw(gateway.addr, format!("{head}\r\n\r\n\r\n{hidden}\r\n\r\n")).await;
    assert_eq!((answer.status, &answer.body["body"]), (200, &0.into()), "{answer:?}");
    assert_eq!((first.calls(), second.calls()), (1, 0));
}
