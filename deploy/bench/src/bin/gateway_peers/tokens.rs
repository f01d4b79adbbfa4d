//! Access tokens by ES256, which HAProxy, Envoy and the gateway all verify, and their key in the forms that
//! these take.

use anyhow::Context;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256, PublicKeyData as _};
use serde_json::{Value, json};

pub const ISSUER: &str = "tourin-core";
pub const AUDIENCE: &str = "tourin";
const KID: &str = "bench";
/// Longer than a run.
const LIFE_S: i64 = 6 * 3_600;
/// Bytes of each of a point's coordinates.
const COORDINATE: usize = 32;

/// The key of an issuer.
pub struct Issuer {
    pair: KeyPair,
}

impl Issuer {
    /// With a new key.
    pub fn new() -> anyhow::Result<Self> {
        Ok(Self { pair: KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)? })
    }

    /// The public key as a JWK.
    pub fn jwk(&self) -> anyhow::Result<Value> {
        // Uncompressed: 4, x and y (SEC 1, 2.3.3).
        let point = self.pair.der_bytes().strip_prefix(&[4]).context("a compressed key")?;
        let (x, y) = point.split_at_checked(COORDINATE).context("a short key")?;
        let [x, y] = [x, y].map(|coordinate| URL_SAFE_NO_PAD.encode(coordinate));
        Ok(
            json!({"kty": "EC", "crv": "P-256", "alg": "ES256", "use": "sig", "kid": KID, "x": x, "y": y}),
        )
    }

    /// The public key as PEM.
    pub fn pem(&self) -> String {
        self.pair.public_key_pem()
    }

    /// As many tokens as this, each of another session.
    pub fn tokens(&self, count: usize) -> anyhow::Result<Vec<String>> {
        let key = EncodingKey::from_ec_der(&self.pair.serialize_der());
        let header = Header {
            kid: Some(KID.to_owned()),
            typ: Some("at+jwt".to_owned()),
            ..Header::new(Algorithm::ES256)
        };
        let now = chrono::Utc::now().timestamp();
        let token = |number: usize| {
            let claims = json!({
                "iss": ISSUER, "aud": AUDIENCE, "sub": format!("member-{number:06}"),
                "sid": uuid::Uuid::now_v7(), "iat": now, "exp": now + LIFE_S, "roles": ["USER"],
            });
            Ok(encode(&header, &claims, &key)?)
        };
        (0..count).map(token).collect()
    }
}
