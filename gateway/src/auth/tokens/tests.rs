use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use chrono::TimeZone;
use ed25519_dalek::SigningKey;
use ed25519_dalek::pkcs8::EncodePrivateKey;
use jsonwebtoken::{EncodingKey, Header, encode};
use serde_json::{Value, json};
use tourin_chassis::clock::{Clock, ManualClock};

use super::*;

/// A P-256 key made for these tests, PKCS #8, and its public half.
const P256: &str = "MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQgx5VR8nnFd/9gF5DUAGvgWW3Y9eCFJdfzAPnxBE1p6g6hRANCAARNZqSpGtKCB6y1uevlceX/Xsj9xpB0TvGRpzyJAuQAH4zeJJvm+WPgbJa8HxzaTyvkFMz9oSF1y+zPAaO2oE3F";
const P256_X: &str = "TWakqRrSggestbnr5XHl_17I_caQdE7xkac8iQLkAB8";
const P256_Y: &str = "jN4km-b5Y-BslrwfHNpPK-QUzP2hIXXL7M8Bo7agTcU";

struct Issuer {
    ed: SigningKey,
    clock: Arc<ManualClock>,
    keys: Arc<KeyStore>,
    verifier: TokenVerifier,
}

impl Issuer {
    fn new() -> Self {
        let clock = Arc::new(ManualClock::new(Utc.with_ymd_and_hms(2026, 5, 4, 12, 0, 0).unwrap()));
        let keys = Arc::new(KeyStore::default());
        let rules = TokenRules {
            issuer: "tourin-core".to_owned(),
            audience: "tourin".to_owned(),
            leeway: Duration::from_secs(5),
            cache_entries: 100,
        };
        let issuer = Self {
            ed: SigningKey::from_bytes(&[7; 32]),
            verifier: TokenVerifier::new(Arc::clone(&keys), &rules, clock.clone()),
            clock,
            keys,
        };
        issuer.publish(&[issuer.ed_jwk(), ec_jwk()]);
        issuer
    }

    fn publish(&self, keys: &[Value]) {
        self.keys.install(json!({"keys": keys}).to_string().as_bytes()).unwrap();
    }

    fn ed_jwk(&self) -> Value {
        let public = URL_SAFE_NO_PAD.encode(self.ed.verifying_key().as_bytes());
        json!({"kty": "OKP", "crv": "Ed25519", "kid": "ed", "alg": "EdDSA", "use": "sig", "x": public})
    }

    fn claims(&self) -> Value {
        let now = self.clock.now().timestamp();
        json!({
            "iss": "tourin-core", "aud": "tourin", "sub": "member1", "sid": "s1", "jti": "t1",
            "iat": now, "nbf": now, "exp": now + 600, "roles": ["editor"],
        })
    }

    fn sign(&self, algorithm: Algorithm, kid: Option<&str>, claims: &Value) -> String {
        self.sign_as(Some("at+jwt"), algorithm, kid, claims)
    }

    fn sign_as(
        &self,
        typ: Option<&str>,
        algorithm: Algorithm,
        kid: Option<&str>,
        claims: &Value,
    ) -> String {
        let mut header = Header::new(algorithm);
        header.kid = kid.map(str::to_owned);
        header.typ = typ.map(str::to_owned);
        let key = match algorithm {
            Algorithm::EdDSA => {
                EncodingKey::from_ed_der(self.ed.to_pkcs8_der().unwrap().as_bytes())
            }
            Algorithm::ES256 => EncodingKey::from_ec_der(&STANDARD.decode(P256).unwrap()),
            _ => EncodingKey::from_secret(self.ed.verifying_key().as_bytes()),
        };
        encode(&header, claims, &key).unwrap()
    }

    async fn verdict(&self, token: &str) -> Result<String, TokenError> {
        self.verifier.verify(token).await.map(|member| member.id.clone())
    }
}

fn ec_jwk() -> Value {
    json!({"kty": "EC", "crv": "P-256", "kid": "ec", "alg": "ES256", "x": P256_X, "y": P256_Y})
}

fn with(mut claims: Value, name: &str, value: Value) -> Value {
    if value.is_null() {
        claims.as_object_mut().unwrap().remove(name);
    } else {
        claims[name] = value;
    }
    claims
}

#[tokio::test]
async fn valid_tokens_of_both_kinds_are_accepted() {
    let issuer = Issuer::new();
    for (algorithm, kid) in [(Algorithm::EdDSA, "ed"), (Algorithm::ES256, "ec")] {
        let token = issuer.sign(algorithm, Some(kid), &issuer.claims());
        for _ in 0..2 {
            let member = issuer.verifier.verify(&token).await.unwrap();
            assert_eq!((member.id.as_str(), member.session.as_str()), ("member1", "s1"));
            assert_eq!(member.roles, ["editor"]);
        }
    }
}

#[tokio::test]
async fn tokens_that_are_not_cores_are_refused() {
    let issuer = Issuer::new();
    let claims = issuer.claims();
    let good = issuer.sign(Algorithm::EdDSA, Some("ed"), &claims);
    let parts: Vec<&str> = good.split('.').collect();
    let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let none = part(&json!({"alg": "none", "typ": "at+jwt", "kid": "ed"}));
    let tampered = part(&with(claims.clone(), "sub", json!("somebody1")));
    let stranger = Issuer { ed: SigningKey::from_bytes(&[8; 32]), ..Issuer::new() };

    let mut bad = vec![
        ("not a token", "nonsense".to_owned()),
        ("empty", String::new()),
        ("too long", "a".repeat(MAX_TOKEN_BYTES + 1)),
        ("alg none", format!("{none}.{}.", parts[1])),
        ("alg none with a signature", format!("{none}.{}.{}", parts[1], parts[2])),
        ("tampered claims", format!("{}.{tampered}.{}", parts[0], parts[2])),
        ("no signature", format!("{}.{}.", parts[0], parts[1])),
        ("HS256 with the public key", issuer.sign(Algorithm::HS256, Some("ed"), &claims)),
        ("ES256 under the EdDSA key's kid", issuer.sign(Algorithm::ES256, Some("ed"), &claims)),
        ("EdDSA under the ES256 key's kid", issuer.sign(Algorithm::EdDSA, Some("ec"), &claims)),
        ("another's key", stranger.sign(Algorithm::EdDSA, Some("ed"), &claims)),
        ("no kid", issuer.sign(Algorithm::EdDSA, None, &claims)),
    ];
    // Another kind of JWT that the same key may sign one day, such as an ID token.
    for (what, typ) in [
        ("no type", None),
        ("any JWT", Some("JWT")),
        ("an ID token", Some("id+jwt")),
        ("a type that only begins so", Some("at+jwt2")),
        ("an empty type", Some("")),
    ] {
        bad.push((what, issuer.sign_as(typ, Algorithm::EdDSA, Some("ed"), &claims)));
    }
    for (what, name, value) in [
        ("another issuer", "iss", json!("evil")),
        ("no issuer", "iss", Value::Null),
        ("another audience", "aud", json!("other")),
        ("no audience", "aud", Value::Null),
        ("no expiry", "exp", Value::Null),
        ("expiry out of range", "exp", json!(i64::MAX)),
        ("no subject", "sub", Value::Null),
        ("empty subject", "sub", json!("")),
        ("no session", "sid", Value::Null),
        ("not yet", "nbf", json!(issuer.clock.now().timestamp() + 6)),
    ] {
        let claims = with(claims.clone(), name, value);
        bad.push((what, issuer.sign(Algorithm::EdDSA, Some("ed"), &claims)));
    }
    for (what, token) in bad {
        assert_eq!(issuer.verdict(&token).await, Err(TokenError::Invalid), "{what}");
    }
    assert!(issuer.verdict(&good).await.is_ok());
    for typ in ["AT+JWT", "application/at+jwt"] {
        let good = issuer.sign_as(Some(typ), Algorithm::EdDSA, Some("ed"), &claims);
        assert!(issuer.verdict(&good).await.is_ok(), "{typ}");
    }
}

#[tokio::test]
async fn a_token_ends_with_its_time_even_when_it_is_remembered() {
    let issuer = Issuer::new();
    let claims = issuer.claims();
    let token = issuer.sign(Algorithm::EdDSA, Some("ed"), &claims);
    assert!(issuer.verdict(&token).await.is_ok());
    issuer.clock.advance(TimeDelta::seconds(604));
    assert!(issuer.verdict(&token).await.is_ok(), "within the leeway");
    issuer.clock.advance(TimeDelta::seconds(1));
    // An expired token still names its session, if its signature is valid.
    for token in [token.clone(), issuer.sign(Algorithm::EdDSA, Some("ed"), &claims)] {
        let Err(TokenError::Expired(member)) = issuer.verifier.verify(&token).await else {
            panic!("believed after its time");
        };
        assert_eq!((member.id.as_str(), member.session.as_str()), ("member1", "s1"));
        assert_eq!(member.expires_at - member.renew_from, TimeDelta::seconds(300));
    }
    let forged = Issuer { ed: SigningKey::from_bytes(&[8; 32]), ..Issuer::new() };
    let forged = forged.sign(Algorithm::EdDSA, Some("ed"), &claims);
    assert_eq!(issuer.verdict(&forged).await, Err(TokenError::Invalid));
}

#[tokio::test]
async fn a_withdrawn_key_takes_its_tokens_with_it() {
    let issuer = Issuer::new();
    let token = issuer.sign(Algorithm::EdDSA, Some("ed"), &issuer.claims());
    assert!(issuer.verdict(&token).await.is_ok());
    issuer.publish(&[ec_jwk()]);
    // Core is asked once more before the key counts as gone.
    let asked = async { issuer.keys.fetched(Instant::now(), true) };
    let (verdict, ()) = tokio::join!(issuer.verdict(&token), asked);
    assert_eq!(verdict, Err(TokenError::Invalid));
}
