//! The choice of the key that a token is verified with.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use futures::future::join_all;
use serde_json::{Value, json};
use tokio::net::TcpListener;

use super::{
    OWN, assert_each_opens_nothing, assert_opens, assert_opens_nothing, by_secret, claims, header,
    mesh, token, with,
};
use crate::harness::Issuer;

/// A server that counts its connections.
async fn bait() -> (SocketAddr, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (address, count) = (listener.local_addr().unwrap(), Arc::new(AtomicUsize::new(0)));
    let counted = Arc::clone(&count);
    tokio::spawn(async move {
        while listener.accept().await.is_ok() {
            counted.fetch_add(1, Ordering::SeqCst);
        }
    });
    (address, count)
}

#[tokio::test]
async fn a_key_id_is_looked_up_among_known_keys_and_nowhere_else() {
    let (_mesh, core, gateway) = mesh().await;
    let (address, visits) = bait().await;
    let url = format!("http://{address}/jwks.json");
    let long = "k".repeat(4_000);
    let ids = [
        "../../../../../../dev/null",
        "/dev/null",
        "..\\..\\windows\\win.ini",
        "file:///dev/null",
        url.as_str(),
        "' OR '1'='1",
        "x' UNION SELECT 'AA' -- ",
        "key-1'; DROP TABLE members; --",
        "$(curl x)|`id`",
        "key-1\u{0}",
        "key-1 ",
        " key-1",
        "KEY-1",
        "key-1/../key-1",
        "\u{212a}ey-1",
        "",
        &long,
    ];
    let mut forged = Vec::new();
    for id in ids {
        let mac = json!({"alg": "HS256", "typ": "at+jwt", "kid": id});
        // The content of an empty file, and of an absent row, is an empty secret.
        forged.push((format!("{id:.20} HS256"), token(&mac, &claims(), by_secret(b""))));
        let head = with(header(), "kid", json!(id));
        let own = Issuer::new(9, id);
        forged.push((format!("{id:.20} EdDSA"), token(&head, &claims(), |m| own.signature(m))));
    }
    for id in [json!(1), json!(["key-1"]), json!({"kid": "key-1"}), json!(true), Value::Null] {
        let head = with(header(), "kid", id.clone());
        let signed = token(&head, &claims(), |message| core.issuer.signature(message));
        forged.push((format!("kid {id}"), signed));
    }
    assert_each_opens_nothing(&gateway, forged).await;
    assert_eq!(visits.load(Ordering::SeqCst), 0, "a key was fetched from where a token says");
    assert_opens(&gateway, "core's", &core.issuer.token("member01", "s1")).await;
}

#[tokio::test]
async fn keys_that_a_token_brings_or_points_to_are_not_used() {
    let (_mesh, core, gateway) = mesh().await;
    let (address, visits) = bait().await;
    let attacker = Issuer::new(9, "key-1");
    let url = format!("http://{address}/keys");
    let mut forged = Vec::new();
    for (name, value) in [
        ("jku", json!(url)),
        ("x5u", json!(url)),
        ("jwk", attacker.jwk()),
        ("x5c", json!([STANDARD.encode([0x30, 0x03, 0x02, 0x01, 0x01])])),
        ("x5t", json!("AAAA")),
        ("x5t#S256", json!("AAAA")),
    ] {
        let known = with(header(), name, value.clone());
        let unknown = with(with(header(), name, value.clone()), "kid", json!("key-9"));
        let without = with(with(header(), name, value), "kid", Value::Null);
        for (what, head) in [("known", known), ("unknown", unknown), ("no", without)] {
            let signed = token(&head, &claims(), |message| attacker.signature(message));
            forged.push((format!("{name} with {what} kid"), signed));
        }
    }
    assert_each_opens_nothing(&gateway, forged).await;
    // In a token that core signed they change nothing either.
    for name in ["jku", "x5u"] {
        let head = with(header(), name, json!(url));
        let signed = token(&head, &claims(), |message| core.issuer.signature(message));
        assert_opens(&gateway, name, &signed).await;
    }
    assert_eq!(visits.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn keys_overlap_in_a_rotation_and_the_old_one_ends_with_it() {
    let (_mesh, core, gateway) = mesh().await;
    let old = core.issuer.token("member01", "s1");
    assert_opens(&gateway, "before", &old).await;
    let next = Issuer::new(8, "key-2");
    core.publish(vec![next.jwk(), core.issuer.jwk()]);
    let new = next.token("member01", "s1");
    // Unknown a moment ago: the gateway asks core before it answers.
    assert_opens(&gateway, "the new key's first token", &new).await;
    assert_opens(&gateway, "during the overlap", &old).await;
    assert_opens(&gateway, "another of the old key", &core.issuer.token("member01", "s3")).await;
    core.publish(vec![next.jwk()]);
    // The next fetch shows it, here that for a made-up key.
    let made_up = Issuer::new(9, "key-9").token("member01", "s1");
    assert_opens_nothing(&gateway, "made up", &made_up).await;
    assert_opens_nothing(&gateway, "after the overlap", &old).await;
    assert_opens(&gateway, "after the overlap", &new).await;
}

#[tokio::test]
async fn made_up_key_ids_cost_core_one_fetch_in_a_second() {
    let (_mesh, core, gateway) = mesh().await;
    let good = core.issuer.token("member01", "s1");
    let (before, began) = (core.key_fetches(), Instant::now());
    let made_up = |n: usize| Issuer::new(9, &format!("made-up-{n}")).token("member01", "s1");
    let guesses = join_all((0..100).map(|n| {
        let (token, gateway) = (made_up(n), &gateway);
        async move { gateway.call_as(&token, "GET", OWN).await.status }
    }));
    let (statuses, ()) = tokio::join!(guesses, assert_opens(&gateway, "meanwhile", &good));
    assert!(statuses.iter().all(|status| *status == 401), "{statuses:?}");
    let (fetches, seconds) = (core.key_fetches() - before, began.elapsed().as_secs());
    assert!(fetches >= 1, "core was asked");
    // The cool-down is one second; a fetch may fall on each end.
    assert!(fetches as u64 <= seconds + 2, "{fetches} fetches in {seconds} s");
    assert_opens(&gateway, "afterwards", &good).await;
}
