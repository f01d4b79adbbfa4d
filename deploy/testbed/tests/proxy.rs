//! Changes of the proxy take effect at once.

#![allow(clippy::unwrap_used, reason = "a test that cannot continue fails")]

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;
use tourin_testbed::{Cut, Proxy, SOON, equal, eventually};

/// How long nothing must happen.
const A_WHILE: Duration = Duration::from_millis(100);

/// A server that echoes what it is sent, with its own mark before each piece.
async fn server(mark: u8) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (mut client, _) = listener.accept().await.unwrap();
            tokio::spawn(async move {
                let mut piece = [0; 1_024];
                while let Ok(length @ 1..) = client.read(&mut piece).await {
                    let answer = [&[mark], &piece[..length]].concat();
                    client.write_all(&answer).await.unwrap();
                }
            });
        }
    });
    address
}

/// The server's response; `None` when the connection is cut.
async fn ask(connection: &mut TcpStream, request: &[u8]) -> Option<Vec<u8>> {
    connection.write_all(request).await.ok()?;
    let mut answer = vec![0; request.len() + 1];
    let read =
        timeout(SOON, connection.read_exact(&mut answer)).await.expect("an answer or an end");
    read.ok().map(|_| answer)
}

async fn is_silent(connection: &mut TcpStream, request: &[u8]) -> bool {
    connection.write_all(request).await.unwrap();
    timeout(A_WHILE, connection.read_u8()).await.is_err()
}

async fn connect(proxy: &Proxy) -> TcpStream {
    TcpStream::connect(proxy.address).await.unwrap()
}

#[tokio::test]
async fn a_closed_one_refuses_until_it_is_opened_and_closing_cuts() {
    let proxy = Proxy::closed_to(server(b'1').await);
    let refused = TcpStream::connect(proxy.address).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
    for _ in 0..3 {
        proxy.open().await;
        let mut connection = connect(&proxy).await;
        assert_eq!(ask(&mut connection, b"a").await.unwrap(), b"1a");
        proxy.close().await;
        assert!(ask(&mut connection, b"b").await.is_none());
        let refused = TcpStream::connect(proxy.address).await.unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
    }
}

#[tokio::test]
async fn a_cut_closes_existing_connections_only() {
    let proxy = Proxy::open_to(server(b'1').await).await;
    let mut connection = connect(&proxy).await;
    assert_eq!(ask(&mut connection, b"a").await.unwrap(), b"1a");
    proxy.cut().await;
    assert!(ask(&mut connection, b"b").await.is_none());
    assert_eq!(ask(&mut connect(&proxy).await, b"c").await.unwrap(), b"1c");
}

#[tokio::test]
async fn responses_are_dropped_until_the_cut() {
    let proxy = Proxy::open_to(server(b'1').await).await;
    let (mut one, mut other) = (connect(&proxy).await, connect(&proxy).await);
    proxy.drop_responses();
    assert_eq!(proxy.affected_connections(), 0);
    assert!(is_silent(&mut one, b"a").await && is_silent(&mut one, b"b").await);
    let affects = async |count: usize| {
        eventually("responses are dropped", async || equal(proxy.affected_connections(), count))
            .await;
    };
    affects(1).await;
    assert!(is_silent(&mut other, b"c").await);
    affects(2).await;
    proxy.cut().await;
    assert_eq!(ask(&mut connect(&proxy).await, b"d").await.unwrap(), b"1d");
}

#[tokio::test]
async fn stalled_connections_stay_open_and_new_ones_are_redirected() {
    let proxy = Proxy::open_to(server(b'1').await).await;
    let mut silenced = connect(&proxy).await;
    assert_eq!(ask(&mut silenced, b"a").await.unwrap(), b"1a");
    proxy.stall();
    proxy.redirect_to(server(b'2').await);
    assert!(is_silent(&mut silenced, b"b").await);
    assert_eq!(ask(&mut connect(&proxy).await, b"c").await.unwrap(), b"2c");
}

#[tokio::test]
async fn a_request_is_cut_once_before_or_after_the_server_hears_of_it() {
    let proxy = Proxy::open_to(server(b'1').await).await;
    for cut in [Cut::BeforeRequest, Cut::AfterRequest] {
        let mut connection = connect(&proxy).await;
        proxy.cut_at(b"INSERT", b"COMMIT", cut);
        assert_eq!(ask(&mut connection, b"BEGIN").await.unwrap(), b"1BEGIN");
        assert_eq!(ask(&mut connection, b"INSERT").await.unwrap(), b"1INSERT");
        // Another connection, which has not sent `after`, is not cut.
        assert_eq!(ask(&mut connect(&proxy).await, b"COMMIT").await.unwrap(), b"1COMMIT");
        assert!(ask(&mut connection, b"a COMMIT b").await.is_none(), "{cut:?}");
        assert_eq!(ask(&mut connect(&proxy).await, b"COMMIT").await.unwrap(), b"1COMMIT");
    }
}

#[tokio::test]
async fn a_delay_holds_up_both_directions() {
    let proxy = Proxy::open_to(server(b'1').await).await;
    let mut connection = connect(&proxy).await;
    let delay = Duration::from_millis(50);
    proxy.delay(delay);
    let began = Instant::now();
    assert_eq!(ask(&mut connection, b"a").await.unwrap(), b"1a");
    assert!(began.elapsed() >= 2 * delay);
}
