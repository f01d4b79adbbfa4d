//! Attacks on access tokens and on the identity that services get, each through a real gateway.
//!
//! Further ones: of another site's page in `sites`, of requests with two ends in `hygiene`, of one who
//! has a stolen refresh token in the scenarios of sessions. `docs/security.md` names them all.

mod callers;
mod keys;

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use futures::future::join_all;
use hmac::{Hmac, Mac};
use jsonwebtoken::{Algorithm, EncodingKey};
use serde_json::{Value, json};
use sha2::Sha256;

use crate::harness::{Issuer, Mesh, Service, TestGateway};

/// A P-256 key made for these tests, PKCS #8, and its public half.
const P256: &str = "MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQgx5VR8nnFd/9gF5DUAGvgWW3Y9eCFJdfzAPnxBE1p6g6hRANCAARNZqSpGtKCB6y1uevlceX/Xsj9xpB0TvGRpzyJAuQAH4zeJJvm+WPgbJa8HxzaTyvkFMz9oSF1y+zPAaO2oE3F";
const P256_X: &str = "TWakqRrSggestbnr5XHl_17I_caQdE7xkac8iQLkAB8";
const P256_Y: &str = "jN4km-b5Y-BslrwfHNpPK-QUzP2hIXXL7M8Bo7agTcU";

fn ec_jwk() -> Value {
    json!({
        "kty": "EC", "crv": "P-256", "kid": "ec", "alg": "ES256", "use": "sig",
        "x": P256_X, "y": P256_Y,
    })
}

/// The uncompressed point.
fn ec_point() -> Vec<u8> {
    let coordinate = |text| URL_SAFE_NO_PAD.decode(text).unwrap();
    [vec![4], coordinate(P256_X), coordinate(P256_Y)].concat()
}

fn part(value: &Value) -> String {
    URL_SAFE_NO_PAD.encode(value.to_string())
}

/// A token of these parts, signed by `sign`.
fn token(header: &Value, claims: &Value, sign: impl Fn(&[u8]) -> Vec<u8>) -> String {
    let message = format!("{}.{}", part(header), part(claims));
    let signature = sign(message.as_bytes());
    format!("{message}.{}", URL_SAFE_NO_PAD.encode(signature))
}

fn by_ec(message: &[u8]) -> Vec<u8> {
    let key = EncodingKey::from_ec_der(&STANDARD.decode(P256).unwrap());
    let signature = jsonwebtoken::crypto::sign(message, &key, Algorithm::ES256).unwrap();
    URL_SAFE_NO_PAD.decode(signature).unwrap()
}

fn by_secret(secret: &[u8]) -> impl Fn(&[u8]) -> Vec<u8> {
    move |message| {
        let mut mac = <Hmac<Sha256> as Mac>::new_from_slice(secret).unwrap();
        mac.update(message);
        mac.finalize().into_bytes().to_vec()
    }
}

fn claims() -> Value {
    Issuer::claims("member01", "s1")
}

fn header() -> Value {
    json!({"alg": "EdDSA", "typ": "at+jwt", "kid": "key-1"})
}

/// With one member replaced, or removed if `value` is null.
fn with(mut object: Value, name: &str, value: Value) -> Value {
    let fields = object.as_object_mut().unwrap();
    match value {
        Value::Null => fields.remove(name),
        value => fields.insert(name.to_owned(), value),
    };
    object
}

const OWN: &str = "/api/auth/me";

/// Whether the token is refused by header and by cookie, wherever a session is needed, and is
/// nobody's where none is. Asks all at once: a token with an unknown key waits for a fetch of keys.
async fn assert_opens_nothing(gateway: &TestGateway, what: &str, token: &str) {
    let (by_header, by_cookie, public, logout) = tokio::join!(
        gateway.call_as(token, "GET", OWN),
        gateway.call_by_cookie(token, "GET", OWN),
        gateway.call_as(token, "GET", "/api/users"),
        gateway.call_as(token, "POST", "/api/auth/logout"),
    );
    for answer in [by_header, by_cookie] {
        assert_eq!(answer.status, 401, "{what}: {answer:?}");
        assert_eq!(answer.body["error"], "unauthenticated", "{what}");
        assert!(!answer.body.to_string().contains(token), "{what}: it is repeated");
    }
    for answer in [public, logout] {
        assert_eq!(answer.asked()["subject"]["kind"], "visitor", "{what}");
    }
}

async fn assert_each_opens_nothing(
    gateway: &TestGateway,
    tokens: impl IntoIterator<Item = (String, String)>,
) {
    let tokens: Vec<_> = tokens.into_iter().collect();
    assert!(!tokens.is_empty());
    // Each makes four requests at once. More of them would be that many handshakes at once with a service,
    // which a debug build on a busy machine does too slowly for its health checks.
    for some in tokens.chunks(4) {
        join_all(some.iter().map(|(what, token)| assert_opens_nothing(gateway, what, token))).await;
    }
}

async fn assert_opens(gateway: &TestGateway, what: &str, token: &str) {
    let answer = gateway.call_as(token, "GET", OWN).await;
    assert_eq!(answer.status, 200, "{what}: {answer:?}");
    assert_eq!(answer.body["subject"]["id"], "member01", "{what}");
}

/// Core with a key of each kind.
async fn mesh() -> (Mesh, Service, TestGateway) {
    let mesh = Mesh::start().await;
    let core = mesh.service("core", "core-1").await;
    core.publish(vec![core.issuer.jwk(), ec_jwk()]);
    mesh.service("recommendation", "recommendation-1").await;
    let gateway = mesh.gateway(|_| {}).await;
    (mesh, core, gateway)
}

#[tokio::test]
async fn no_algorithm_but_its_keys_own_verifies_a_token() {
    let (_mesh, core, gateway) = mesh().await;
    let ed = |message: &[u8]| core.issuer.signature(message);
    let ec_header = |alg: &str| json!({"alg": alg, "typ": "at+jwt", "kid": "ec"});
    assert_opens(&gateway, "EdDSA", &token(&header(), &claims(), ed)).await;
    assert_opens(&gateway, "ES256", &token(&ec_header("ES256"), &claims(), by_ec)).await;

    let mut forged = Vec::new();
    for alg in ["none", "None", "NONE", "nOnE", "", "null"].map(Value::from) {
        let head = with(header(), "alg", alg.clone());
        forged.push((format!("alg {alg} unsigned"), token(&head, &claims(), |_| Vec::new())));
        forged.push((format!("alg {alg} signed"), token(&head, &claims(), ed)));
    }
    forged.push(("no alg".into(), token(&with(header(), "alg", Value::Null), &claims(), ed)));
    for alg in [json!(["EdDSA"]), json!(0), json!({})] {
        let head = with(header(), "alg", alg.clone());
        forged.push((format!("alg {alg}"), token(&head, &claims(), ed)));
    }
    // The public key as the secret of a MAC, in every form in which the attacker may have it.
    let ed_public = URL_SAFE_NO_PAD.decode(core.issuer.jwk()["x"].as_str().unwrap()).unwrap();
    let spki_prefix = "MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAE";
    let spki = [STANDARD.decode(spki_prefix).unwrap(), ec_point()[1..].to_vec()].concat();
    let pem = format!(
        "-----BEGIN PUBLIC KEY-----\n{}\n-----END PUBLIC KEY-----\n",
        STANDARD.encode(&spki)
    );
    for (kid, secret) in [
        ("key-1", ed_public.clone()),
        ("key-1", core.issuer.jwk()["x"].as_str().unwrap().into()),
        ("key-1", core.issuer.jwk().to_string().into_bytes()),
        ("ec", ec_point()),
        ("ec", spki),
        ("ec", pem.into_bytes()),
        ("ec", ec_jwk().to_string().into_bytes()),
        ("ec", Vec::new()),
    ] {
        for alg in ["HS256", "HS384", "HS512"] {
            let head = json!({"alg": alg, "typ": "at+jwt", "kid": kid});
            let what = format!("{alg} by {} bytes of {kid}", secret.len());
            forged.push((what, token(&head, &claims(), by_secret(&secret))));
        }
    }
    // One key's signature under the other algorithm, and under the other key's name.
    forged.push(("EdDSA by ec".into(), token(&ec_header("EdDSA"), &claims(), by_ec)));
    forged.push(("EdDSA as ec".into(), token(&ec_header("EdDSA"), &claims(), ed)));
    let es = with(header(), "alg", json!("ES256"));
    forged.push(("ES256 by key-1".into(), token(&es, &claims(), ed)));
    forged.push(("ES256 as key-1".into(), token(&es, &claims(), by_ec)));
    for alg in ["RS256", "PS256", "ES384", "ES512", "ES256K", "EdDSA ", "eddsa"] {
        let head = with(header(), "alg", json!(alg));
        forged.push((format!("alg {alg}"), token(&head, &claims(), ed)));
    }
    // Signatures that some libraries took for valid (CVE-2022-21449) or truncate.
    for bytes in [vec![0; 64], vec![], vec![0; 63], vec![0xff; 64], vec![0; 65]] {
        let what = format!("ES256 signature {bytes:?}");
        forged.push((what, token(&ec_header("ES256"), &claims(), |_| bytes.clone())));
    }
    assert_each_opens_nothing(&gateway, forged).await;
}

#[tokio::test]
async fn a_token_holds_for_its_time_its_issuer_and_its_audience() {
    let (_mesh, core, gateway) = mesh().await;
    let now = chrono::Utc::now().timestamp();
    let wrong = [
        ("exp", json!(now - 60)),
        ("exp", json!(0)),
        ("exp", json!(-1)),
        ("exp", json!((now + 600).to_string())),
        ("exp", json!(i64::MAX)),
        ("exp", json!(1e300)),
        ("exp", Value::Null),
        ("nbf", json!(now + 60)),
        ("nbf", json!(i64::MAX)),
        ("nbf", json!("now")),
        ("iss", json!("evil")),
        ("iss", json!("tourin-core/")),
        ("iss", json!("Tourin-Core")),
        ("iss", Value::Null),
        ("aud", json!("evil")),
        ("aud", json!(["evil", "other"])),
        ("aud", json!([])),
        ("aud", json!("TOURIN")),
        ("aud", Value::Null),
        ("sub", json!("")),
        ("sub", json!(["member01"])),
        ("sub", json!(7)),
        ("sub", Value::Null),
        ("sid", json!("")),
        ("sid", Value::Null),
    ];
    let mut forged: Vec<_> = wrong
        .into_iter()
        .map(|(name, value)| {
            let what = format!("{name} {value}");
            (what, core.issuer.sign(&with(claims(), name, value)))
        })
        .collect();
    // Other kinds of JWT, which the same key may sign one day (RFC 8725, 3.11).
    for typ in [json!("JWT"), json!("identity+jwt"), json!("secevent+jwt"), json!(1), Value::Null] {
        let head = with(header(), "typ", typ.clone());
        let signed = token(&head, &claims(), |message| core.issuer.signature(message));
        forged.push((format!("typ {typ}"), signed));
    }
    // A key with the published name that is not the published key, and the other way round.
    forged.push(("another key".into(), Issuer::new(9, "key-1").token("member01", "s1")));
    forged.push(("another name".into(), Issuer::new(7, "key-7").token("member01", "s1")));
    // An expired token names the session to log out, so it is tried where it opens something.
    let (expired, rest) = forged.split_at(3);
    for (what, token) in expired {
        gateway.call_as(token, "GET", OWN).await.assert_refused(401, "unauthenticated");
        let public = gateway.call_as(token, "GET", "/api/users").await;
        assert_eq!(public.asked()["subject"]["kind"], "visitor", "{what}");
    }
    assert_each_opens_nothing(&gateway, rest.iter().cloned()).await;
}

#[tokio::test]
async fn a_token_with_anything_missing_or_more_is_refused() {
    let (_mesh, core, gateway) = mesh().await;
    let good = core.issuer.token("member01", "s1");
    let parts: Vec<&str> = good.split('.').collect();
    let [head, payload, signature] = parts[..] else { panic!("{good}") };
    let mut forged = Vec::new();
    for index in 0..3 {
        let part = parts[index];
        for (what, changed) in [
            ("empty", String::new()),
            ("without its end", part[..part.len() - 1].to_owned()),
            ("halved", part[..part.len() / 2].to_owned()),
            ("without its beginning", part[1..].to_owned()),
            ("padded", format!("{part}=")),
            ("of standard base64", format!("{}+/", &part[..part.len() - 2])),
            ("with a space", format!("{} {}", &part[..4], &part[4..])),
        ] {
            let mut parts: Vec<String> = parts.iter().map(|part| (*part).to_owned()).collect();
            parts[index] = changed;
            forged.push((format!("segment {index} {what}"), parts.join(".")));
        }
    }
    // The last character of an Ed25519 signature has four bits that count for nothing.
    let alphabet = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let last = alphabet.iter().position(|c| *c == *signature.as_bytes().last().unwrap()).unwrap();
    for bit in [1, 2, 4, 8] {
        let other = char::from(alphabet[last ^ bit]);
        let twin = format!("{}{other}", &signature[..signature.len() - 1]);
        forged.push((format!("spare bit {bit}"), format!("{head}.{payload}.{twin}")));
    }
    for (what, token) in [
        ("header alone", head.to_owned()),
        ("no signature", format!("{head}.{payload}")),
        ("four segments", format!("{good}.{signature}")),
        ("a dot before", format!(".{good}")),
        ("a dot after", format!("{good}.")),
        ("dots alone", "..".to_owned()),
        ("two in one", format!("{good},{good}")),
        ("reordered", format!("{payload}.{head}.{signature}")),
    ] {
        forged.push((what.to_owned(), token));
    }
    assert_each_opens_nothing(&gateway, forged).await;
    assert_opens(&gateway, "whole", &good).await;

    // A valid signature does not excuse the size.
    let bulky = core.issuer.sign(&with(claims(), "more", json!("x".repeat(8 << 10))));
    assert_opens_nothing(&gateway, "oversized", &bulky).await;
    let huge = "A".repeat(64 << 10);
    let answer = gateway.call_as(&huge, "GET", OWN).await;
    assert_eq!(answer.status, 431, "{answer:?}");
}

#[tokio::test]
async fn extensions_encryption_and_nesting_are_refused() {
    let (_mesh, core, gateway) = mesh().await;
    let ed = |message: &[u8]| core.issuer.signature(message);
    let mut forged = Vec::new();
    for crit in [json!(["exp"]), json!(["b64"]), json!(["unknown"]), json!([]), json!("exp")] {
        let head = with(with(header(), "crit", crit.clone()), "b64", json!(false));
        forged.push((format!("crit {crit}"), token(&head, &claims(), ed)));
    }
    // RFC 7797: the payload as it is, not in base64.
    let head = with(with(header(), "crit", json!(["b64"])), "b64", json!(false));
    let message = format!("{}.{}", part(&head), "{}");
    let signature = URL_SAFE_NO_PAD.encode(ed(message.as_bytes()));
    forged.push(("unencoded payload".into(), format!("{message}.{signature}")));

    let inner = core.issuer.token("member01", "s1");
    let inner_text = URL_SAFE_NO_PAD.encode(&inner);
    for (what, head) in [
        ("dir", json!({"alg": "dir", "enc": "A256GCM", "cty": "JWT", "kid": "key-1"})),
        (
            "ECDH-ES",
            json!({"alg": "ECDH-ES", "enc": "A128GCM", "cty": "JWT", "kid": "ec", "epk": ec_jwk()}),
        ),
        (
            "PBES2",
            json!({"alg": "PBES2-HS256+A128KW", "enc": "A128GCM", "p2c": 2_000_000_000, "p2s": "AA"}),
        ),
        ("as EdDSA", header()),
    ] {
        forged.push((format!("JWE {what}"), format!("{}..AAAA.{inner_text}.AAAA", part(&head))));
        forged.push((format!("JWE {what} around"), format!("{}.AA.AA.{inner}", part(&head))));
    }
    // A signed token around a signed token.
    let head = with(header(), "cty", json!("JWT"));
    let message = format!("{}.{inner_text}", part(&head));
    let signature = URL_SAFE_NO_PAD.encode(ed(message.as_bytes()));
    forged.push(("nested JWS".into(), format!("{message}.{signature}")));
    // Compressed, as JWE may be (RFC 8725, 3.6): `zip` means nothing, and the rest does not verify.
    let zipped = with(header(), "zip", json!("DEF"));
    forged.push(("zip".into(), token(&zipped, &json!("not claims"), ed)));
    assert_each_opens_nothing(&gateway, forged).await;
}
