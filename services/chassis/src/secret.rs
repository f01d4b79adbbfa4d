//! Secrets that are never printed.

use std::fmt;
use std::str::FromStr;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hmac::{Hmac, Mac};
use rand::RngCore;
use sha2::Sha256;
use subtle::ConstantTimeEq;

/// The minimum length of a secret. 16 random base64 characters are 96 bits.
pub const MIN_SECRET_CHARS: usize = 16;

/// A shared secret. Its `Debug` output is redacted, it has no `Display`, and comparison takes
/// constant time.
#[derive(Clone)]
pub struct Secret(String);

impl Secret {
    /// A new secret of 256 random bits.
    pub fn random() -> Self {
        let mut bytes = [0_u8; 32];
        rand::rng().fill_bytes(&mut bytes);
        Self(URL_SAFE_NO_PAD.encode(bytes))
    }

    /// Whether `candidate` is this secret. Takes constant time.
    pub fn matches(&self, candidate: &str) -> bool {
        self.0.as_bytes().ct_eq(candidate.as_bytes()).into()
    }

    /// A key for one purpose. A key reveals neither the secret nor the keys of other purposes:
    /// HMAC-SHA-256 is used as a key derivation function, with the purpose as its message.
    pub fn derive_key(&self, purpose: &str) -> [u8; 32] {
        let mut mac = <Hmac<Sha256> as Mac>::new_from_slice(self.0.as_bytes())
            .expect("HMAC accepts a key of any length");
        mac.update(purpose.as_bytes());
        mac.finalize().into_bytes().into()
    }

    /// The secret itself, for the code that must send it.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

impl FromStr for Secret {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.chars().count() < MIN_SECRET_CHARS {
            return Err(format!("a secret needs at least {MIN_SECRET_CHARS} characters"));
        }
        Ok(Self(text.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_redacted_and_compared_as_a_whole() {
        let secret: Secret = "0123456789abcdef".parse().unwrap();
        assert_eq!(format!("{secret:?}"), "Secret(..)");
        assert!(secret.matches("0123456789abcdef"));
        assert!(!secret.matches("0123456789abcdeX"));
        assert!(!secret.matches("0123456789abcde"));
        assert!("short".parse::<Secret>().is_err());
    }

    #[test]
    fn keys_of_different_purposes_differ() {
        let secret = Secret::random();
        assert_eq!(secret.derive_key("a"), secret.derive_key("a"));
        assert_ne!(secret.derive_key("a"), secret.derive_key("b"));
        assert_ne!(secret.derive_key("a"), Secret::random().derive_key("a"));
    }
}
