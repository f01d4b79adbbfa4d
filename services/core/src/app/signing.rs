//! The keys that sign access tokens, and their public halves.

use anyhow::Context;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ed25519_dalek::VerifyingKey;
use ed25519_dalek::pkcs8::EncodePrivateKey;
use hmac::{Hmac, Mac};
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use sha2::{Digest, Sha256};

use crate::domain::security_event::{EVENT_TOKEN_TYPE, EventClaims};
use crate::domain::token::{Claims, TOKEN_TYPE};

/// A public key as a JSON Web Key (RFC 7517, RFC 8037).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PublicKey {
    /// The key's id: its RFC 7638 thumbprint, so that the same key has the same id everywhere.
    pub kid: String,
    /// The 32 bytes of the key in unpadded base64url.
    pub x: String,
}

impl PublicKey {
    /// Names a key by its thumbprint.
    pub fn new(key: &VerifyingKey) -> Self {
        let x = URL_SAFE_NO_PAD.encode(key.as_bytes());
        // RFC 7638: the required members in lexicographic order, without white space.
        let canonical = format!(r#"{{"crv":"Ed25519","kty":"OKP","x":"{x}"}}"#);
        Self { kid: URL_SAFE_NO_PAD.encode(Sha256::digest(canonical)), x }
    }
}

/// Signs with the current key; publishes it and the previous ones.
///
/// To retire a key, make it a previous one until the tokens that it signed have expired.
pub struct SigningKeys {
    current: EncodingKey,
    header: Header,
    public: Vec<PublicKey>,
}

impl SigningKeys {
    /// Signs with `current`; `previous` keys are only published.
    ///
    /// # Errors
    /// When the key cannot be encoded, which does not happen with a valid key.
    pub fn new(
        current: &ed25519_dalek::SigningKey,
        previous: &[VerifyingKey],
    ) -> anyhow::Result<Self> {
        let der = current.to_pkcs8_der().context("encoding the signing key")?;
        let mut public = vec![PublicKey::new(&current.verifying_key())];
        for key in previous.iter().map(PublicKey::new) {
            if !public.contains(&key) {
                public.push(key);
            }
        }
        let mut header = Header::new(Algorithm::EdDSA);
        header.kid = Some(public[0].kid.clone());
        // RFC 9068, 2.1: so that no other JWT of this key can pass for an access token.
        header.typ = Some(TOKEN_TYPE.to_owned());
        Ok(Self { current: EncodingKey::from_ed_der(der.as_bytes()), header, public })
    }

    /// Signs an access token.
    ///
    /// # Errors
    /// When signing fails, which does not happen with a key that was accepted at the start.
    pub fn sign(&self, claims: &Claims) -> anyhow::Result<String> {
        jsonwebtoken::encode(&self.header, claims, &self.current).context("signing an access token")
    }

    /// Signs a security event. Its type tells it from an access token of the same key.
    ///
    /// # Errors
    /// When signing fails, which does not happen with a key that was accepted at the start.
    pub fn sign_event(&self, claims: &EventClaims) -> anyhow::Result<String> {
        let typ = Some(EVENT_TOKEN_TYPE.to_owned());
        let header = Header { typ, ..self.header.clone() };
        jsonwebtoken::encode(&header, claims, &self.current).context("signing a security event")
    }

    /// A key for another purpose than tokens, which all instances with the same signing key derive: by
    /// HMAC-SHA-256 with the purpose as its message.
    pub fn derive_key(&self, purpose: &str) -> [u8; 32] {
        let mut mac = <Hmac<Sha256> as Mac>::new_from_slice(self.current.as_bytes())
            .expect("HMAC accepts a key of any length");
        mac.update(purpose.as_bytes());
        mac.finalize().into_bytes().into()
    }

    /// The keys to verify with, the current one first.
    pub fn public(&self) -> &[PublicKey] {
        &self.public
    }
}

impl std::fmt::Debug for SigningKeys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SigningKeys").field("public", &self.public).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use ed25519_dalek::SigningKey;
    use jsonwebtoken::{DecodingKey, Validation};

    use super::*;

    fn claims() -> Claims {
        Claims {
            iss: "tourin-core".into(),
            aud: "tourin".into(),
            sub: "hana12345".into(),
            sid: "s".into(),
            iat: 1_700_000_000,
            nbf: 1_700_000_000,
            exp: 4_000_000_000,
            jti: "j".into(),
            roles: vec!["member".into()],
        }
    }

    #[test]
    fn a_token_verifies_with_the_published_key_of_its_kid() {
        let previous = SigningKey::from_bytes(&[1; 32]).verifying_key();
        let keys = SigningKeys::new(&SigningKey::from_bytes(&[7; 32]), &[previous]).unwrap();
        let token = keys.sign(&claims()).unwrap();
        let header = jsonwebtoken::decode_header(&token).unwrap();
        assert_eq!(header.typ.as_deref(), Some("at+jwt"));
        let kid = header.kid.unwrap();
        let published = keys.public().iter().find(|key| key.kid == kid).unwrap();

        let mut expected = Validation::new(Algorithm::EdDSA);
        expected.set_audience(&["tourin"]);
        expected.set_issuer(&["tourin-core"]);
        let key = DecodingKey::from_ed_components(&published.x).unwrap();
        let read = jsonwebtoken::decode::<Claims>(&token, &key, &expected).unwrap();
        assert_eq!(read.claims, claims());

        let other = DecodingKey::from_ed_components(&keys.public()[1].x).unwrap();
        assert!(jsonwebtoken::decode::<Claims>(&token, &other, &expected).is_err());
    }

    #[test]
    fn the_key_id_is_the_thumbprint_of_rfc_8037() {
        // RFC 8037, appendix A.2 and A.3.
        let x = URL_SAFE_NO_PAD.decode("11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo").unwrap();
        let key = VerifyingKey::from_bytes(&x.try_into().unwrap()).unwrap();
        assert_eq!(PublicKey::new(&key).kid, "kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k");
    }

    #[test]
    fn a_previous_key_that_is_current_again_is_published_once() {
        let key = SigningKey::from_bytes(&[7; 32]);
        let keys = SigningKeys::new(&key, &[key.verifying_key()]).unwrap();
        assert_eq!(keys.public().len(), 1);
    }

    #[test]
    fn the_private_key_is_not_shown_in_debug_output() {
        let keys = SigningKeys::new(&SigningKey::from_bytes(&[7; 32]), &[]).unwrap();
        assert!(!format!("{keys:?}").contains("EncodingKey"));
    }
}
