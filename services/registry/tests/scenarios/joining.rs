//! Answers to joins that are lost on the way.

use std::net::SocketAddr;
use std::time::Duration;

use reqwest::StatusCode;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tourin_chassis::peer::Peer;
use tourin_registry_api::JoinError;
use tourin_registry_api::wire::{CertificateRequest, codes};

use crate::shared::Shared;
use crate::strangers::{certificate_request, outcome};
use crate::world::*;

const MINUTE: Duration = Duration::from_secs(60);

/// Asks for a certificate by a join token.
async fn ask(registry: &Running, token: &str, request: &CertificateRequest) -> (StatusCode, Value) {
    let (stranger, named) = registry.stranger();
    let asked = stranger.post(format!("{named}/v1/certificates")).bearer_auth(token);
    outcome(asked.json(request)).await
}

fn name_and_key(issued: &Value) -> (String, [u8; 32]) {
    let first = pem::parse(issued["chain"].as_str().unwrap()).unwrap();
    let peer = Peer::of_certificate(first.contents()).unwrap();
    (peer.id, peer.public_key)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_spent_join_token_is_good_for_the_request_that_spent_it_and_no_other() {
    let (shared, alone) = (Shared::new(), Running::start().await);
    let (one, two) = (shared.registry().await, shared.registry().await);
    for (first, second) in [(&alone, &alone), (&one, &two)] {
        let token = first.authority().join_token("core", Some(1), MINUTE).unwrap();
        let request = certificate_request("a");
        let (status, issued) = ask(first, &token, &request).await;
        assert_eq!(status, StatusCode::OK, "{issued}");
        // As if that had not come back.
        let (status, again) = ask(second, &token, &request).await;
        assert_eq!(status, StatusCode::OK, "{again}");
        assert_eq!(name_and_key(&again), name_and_key(&issued));
        assert_eq!(name_and_key(&again).0, "spiffe://tourin/core/a");

        let renamed = CertificateRequest { instance: "b".to_owned(), ..request.clone() };
        for other in [certificate_request("a"), certificate_request("b"), renamed] {
            for registry in [first, second] {
                let (status, refused) = ask(registry, &token, &other).await;
                assert_eq!(status, StatusCode::UNAUTHORIZED);
                assert_eq!(refused["error"], json!(codes::JOIN_TOKEN_USED_UP));
            }
        }
        assert_eq!(ask(second, &token, &request).await.0, StatusCode::OK, "others change nothing");
    }
}

/// Passes connections to a registry, and loses the answer to the first request.
async fn losing_an_answer(registry: SocketAddr) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let (client, _) = listener.accept().await.unwrap();
        lose_the_answer(client, TcpStream::connect(registry).await.unwrap()).await;
        while let Ok((mut client, _)) = listener.accept().await {
            let mut server = TcpStream::connect(registry).await.unwrap();
            tokio::spawn(async move { copy_bidirectional(&mut client, &mut server).await.ok() });
        }
    });
    address
}

/// In a handshake (TLS 1.3, no tickets) the server speaks once. What it says after the client has spoken again is
/// its answer to a request.
async fn lose_the_answer(mut client: TcpStream, mut server: TcpStream) {
    let (mut from_client, mut from_server) = (vec![0; 1 << 16], vec![0; 1 << 16]);
    let (mut has_said_hello, mut has_asked) = (false, false);
    loop {
        tokio::select! {
            read = server.read(&mut from_server) => {
                if has_asked {
                    return;
                }
                has_said_hello = true;
                client.write_all(&from_server[..read.unwrap()]).await.unwrap();
            }
            read = client.read(&mut from_client) => {
                has_asked = has_said_hello;
                server.write_all(&from_client[..read.unwrap()]).await.unwrap();
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_is_lost_costs_no_use_of_the_token() {
    let shared = Shared::new();
    for registry in [Running::start().await, shared.registry().await] {
        let token = registry.authority().join_token("core", Some(1), MINUTE).unwrap();
        let address = losing_an_answer(registry.addr).await;
        let joining = joining(address, ("core", "a"), &token).join(None);
        let joined = tokio::time::timeout(TIMEOUT, joining).await.expect("it asks again").unwrap();
        joined.registry.register(&instance("a", 4001), LEASE * 100).await.unwrap();
        let answered = registry.counted("tourin_http_requests_total", "/v1/certificates").await;
        assert_eq!(answered, 2, "the first one was answered, too");
        let refused = registry.join(("core", "b"), &token).await.err();
        assert!(
            matches!(&refused, Some(JoinError::Refused(said)) if said.contains("used up")),
            "{refused:?}"
        );
    }
}
