//! The PROXY protocol.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tourin_testbed::eventually;

use crate::harness::{Mesh, Site, TestGateway, raw};

const V1: &[u8] = b"PROXY TCP4 203.0.113.9 10.0.0.1 5555 8080\r\n";
const V2: &[u8] = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\xcb\0\x71\x09\x0a\0\0\x01\x15\xb3\x1f\x90";
const LOCAL: &[u8] = b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0";
const ASK: &[u8] =
    b"GET /api/users HTTP/1.1\r\nHost: h\r\nX-Forwarded-For: 6.6.6.6\r\nConnection: close\r\n\r\n";

async fn behind_balancer(mesh: &Mesh, network: &str) -> TestGateway {
    mesh.service("core", "core-1").await;
    mesh.service("recommendation", "recommendation-1").await;
    let gateway = mesh
        .starting_gateway(|settings| {
            settings.proxy_protocol.proxy_protocol = vec![network.parse().unwrap()];
            settings.client_first_byte_ms = 1_500;
        })
        .await;
    let ready = format!("http://{}/readyz", gateway.admin);
    eventually("the gateway is ready", || async {
        gateway.http.get(&ready).send().await.is_ok_and(|answer| answer.status() == 200)
    })
    .await;
    gateway
}

#[tokio::test]
async fn a_balancer_names_the_client() {
    let mesh = Mesh::start().await;
    let gateway = behind_balancer(&mesh, "127.0.0.0/8").await;
    for (header, client) in [(V1, "203.0.113.9"), (V2, "203.0.113.9"), (LOCAL, "127.0.0.1")] {
        let answer = raw(gateway.addr, [header, ASK].concat()).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        // The client's own header says nothing: the balancer is none of --trusted-proxies.
        assert_eq!(answer.body["headers"]["x-forwarded-for"], client);
    }

    // Without a header, or with a bad one, the connection is closed without an answer.
    let refused = "tourin_gateway_proxy_headers_refused_total";
    assert_eq!(gateway.metric(refused).await, 0.0);
    let silent = b"".as_slice();
    for sent in [ASK, b"PROXY TCP4 nobody\r\n".as_slice(), b"PROXY TCP4 203.0", silent] {
        let mut stream = TcpStream::connect(gateway.addr).await.unwrap();
        stream.write_all(sent).await.unwrap();
        let mut answer = Vec::new();
        let closed = stream.read_to_end(&mut answer);
        let _ = tokio::time::timeout(Duration::from_secs(10), closed).await.expect("closed");
        assert!(answer.is_empty(), "{}", String::from_utf8_lossy(&answer));
    }
    eventually("each is counted", || async { gateway.metric(refused).await == 4.0 }).await;
}

#[tokio::test]
async fn the_header_stands_before_tls() {
    let mesh = Mesh::start().await;
    mesh.service("core", "core-1").await;
    mesh.service("recommendation", "recommendation-1").await;
    let site = Site::new(&["tourin.example"]);
    let gateway = mesh
        .starting_gateway(|settings| {
            settings.tls = site.settings();
            settings.proxy_protocol.proxy_protocol = vec!["127.0.0.0/8".parse().unwrap()];
        })
        .await;
    eventually("the gateway is ready", || async {
        let mut tcp = TcpStream::connect(gateway.addr).await.unwrap();
        tcp.write_all(V2).await.unwrap();
        let mut tls = site.connect_over(tcp, "tourin.example", &[]).await.unwrap();
        tls.write_all(ASK).await.unwrap();
        let mut answer = Vec::new();
        tls.read_to_end(&mut answer).await.unwrap();
        let answer = String::from_utf8(answer).unwrap();
        let named = answer.contains(r#""x-forwarded-for":"203.0.113.9""#);
        answer.starts_with("HTTP/1.1 200 ") && named && answer.contains("proto=https")
    })
    .await;
}

#[tokio::test]
async fn nobody_else_may_name_clients() {
    let mesh = Mesh::start().await;
    let gateway = behind_balancer(&mesh, "10.0.0.0/8").await;
    let answer = raw(gateway.addr, ASK).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    assert_eq!(answer.body["headers"]["x-forwarded-for"], "127.0.0.1");
    for header in [V1, V2, LOCAL] {
        raw(gateway.addr, [header, ASK].concat()).await.assert_refused(400, "malformed");
    }
}

#[tokio::test]
async fn the_limit_of_connections_is_the_named_clients() {
    let mesh = Mesh::start().await;
    mesh.service("core", "core-1").await;
    mesh.service("recommendation", "recommendation-1").await;
    let gateway = mesh
        .starting_gateway(|settings| {
            settings.proxy_protocol.proxy_protocol = vec!["127.0.0.0/8".parse().unwrap()];
            settings.max_connections_per_client = 1;
        })
        .await;
    let open = async |client: u8| -> std::io::Result<TcpStream> {
        let mut stream = TcpStream::connect(gateway.addr).await.unwrap();
        let header = format!("PROXY TCP4 203.0.113.{client} 10.0.0.1 5555 8080\r\n");
        let ask = "GET /healthz HTTP/1.1\r\nHost: h\r\n\r\n";
        stream.write_all(format!("{header}{ask}").as_bytes()).await.unwrap();
        let mut answer = [0; 12];
        stream.read_exact(&mut answer).await?;
        assert_eq!(&answer, b"HTTP/1.1 200");
        Ok(stream)
    };
    let (mut first, _other) = (open(1).await.unwrap(), open(2).await.unwrap());
    let evicted = "tourin_gateway_connections_evicted_total";
    assert_eq!(gateway.metric(evicted).await, 0.0);
    let _next = eventually("the client's idle connection makes room", || open(1)).await;
    let mut rest = Vec::new();
    let closed = first.read_to_end(&mut rest);
    let _ = tokio::time::timeout(Duration::from_secs(10), closed).await.expect("closed");
    assert_eq!(gateway.metric(evicted).await, 1.0);
}
