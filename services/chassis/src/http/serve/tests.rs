use std::collections::VecDeque;

use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::*;
use crate::health::Health;
use crate::http::{Admission, service_router};

/// A server whose TLS is never set up: a client gets as far as it does in a handshake that it breaks off.
#[derive(Debug)]
struct NoCertificate;

impl ResolvesServerCert for NoCertificate {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        None
    }
}

/// Clients that connect over TLS and go no further than this.
const SILENT: &[u8] = &[];
const HALF_A_HELLO: &[u8] = &[22, 3, 1, 2, 0, 1];

async fn serve_tls(handshakes: usize) -> (SocketAddr, Shutdown, JoinHandle<io::Result<()>>) {
    let tcp = bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
    let (address, stop) = (tcp.local_addr().unwrap(), Shutdown::new());
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let tls = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(NoCertificate));
    let listener = Listener::with_tls(tcp, tls.into(), "tourin");
    let (limits, stopping) = (HttpLimits { handshakes, ..HttpLimits::default() }, stop.clone());
    let admission = Admission::new("demo", &[]);
    let router = service_router("demo", Router::new(), admission, Health::new(), &limits);
    let serving = tokio::spawn(async move {
        // A drain without an end, so that who waits for it shows.
        let drain = Duration::from_secs(3_600);
        serve(listener, router, &limits, stopping, drain).await
    });
    (address, stop, serving)
}

/// The status of a probe, which this machine asks for over plain HTTP.
async fn probe(address: SocketAddr) -> String {
    let mut client = TcpStream::connect(address).await.unwrap();
    let request = b"GET /healthz HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n";
    client.write_all(request).await.unwrap();
    let mut text = String::new();
    client.read_to_string(&mut text).await.unwrap();
    text.lines().next().unwrap_or_default().to_owned()
}

#[tokio::test]
async fn a_stop_does_not_wait_for_handshakes() {
    let (address, stop, serving) = serve_tls(8).await;
    let mut stalled = Vec::new();
    for begun in [SILENT, HALF_A_HELLO, SILENT, HALF_A_HELLO] {
        let mut client = TcpStream::connect(address).await.unwrap();
        client.write_all(begun).await.unwrap();
        stalled.push(client);
    }
    // Connections are accepted in their order: the others are in their handshakes by now.
    assert_eq!(probe(address).await, "HTTP/1.1 200 OK");
    stop.begin();
    // A handshake has five seconds, and the drain an hour.
    timeout(Duration::from_secs(4), serving).await.unwrap().unwrap().unwrap();
    for mut client in stalled {
        let mut rest = Vec::new();
        let ended = client.read_to_end(&mut rest).await;
        assert!(ended.is_err() || rest.is_empty(), "{rest:?}");
    }
}

#[tokio::test]
async fn handshakes_that_do_not_go_on_leave_room_for_others_and_end() {
    let (address, stop, serving) = serve_tls(3).await;
    let mut stalled = VecDeque::new();
    for number in 0..10 {
        let mut client = TcpStream::connect(address).await.unwrap();
        client.write_all(if number % 2 == 0 { SILENT } else { HALF_A_HELLO }).await.unwrap();
        stalled.push_back(client);
        assert_eq!(probe(address).await, "HTTP/1.1 200 OK", "after {number}");
        // The probe was one, too.
        if stalled.len() > 2 {
            let mut oldest = stalled.pop_front().unwrap();
            let ended = timeout(Duration::from_secs(4), oldest.read_u8()).await;
            assert!(ended.expect("the oldest one ends before its time").is_err());
        }
    }
    // The rest has its time, which passes at once.
    tokio::time::pause();
    for mut client in stalled {
        assert!(client.read_u8().await.is_err());
    }
    stop.begin();
    serving.await.unwrap().unwrap();
}
