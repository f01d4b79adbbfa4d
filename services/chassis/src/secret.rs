//! Secrets that are never printed.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hmac::{Hmac, Mac};
use rand::RngCore;
use sha2::Sha256;
use subtle::ConstantTimeEq;

/// The minimum length of a secret: 32 random bytes in base64url, without padding.
pub const MIN_SECRET_CHARS: usize = 43;
/// The minimum length of a secret in hexadecimal digits: they hold 32 bytes as well.
const MIN_SECRET_HEX_DIGITS: usize = 64;
/// The minimum number of different characters. 43 random ones practically never have fewer.
const MIN_DIFFERENT_CHARS: usize = 8;

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
        let is_hex = text.bytes().all(|byte| byte.is_ascii_hexdigit());
        let min_chars = if is_hex { MIN_SECRET_HEX_DIGITS } else { MIN_SECRET_CHARS };
        let different: BTreeSet<char> = text.chars().collect();
        if text.chars().count() < min_chars || different.len() < MIN_DIFFERENT_CHARS {
            return Err(format!(
                "a secret needs 32 random bytes, as 64 hexadecimal digits or {MIN_SECRET_CHARS} characters of base64; \
                 `openssl rand -hex 32` makes one"
            ));
        }
        Ok(Self(text.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_redacted_and_compared_as_a_whole() {
        let text = "0123456789abcdefghijklmnopqrstuvwxyz-ABCDEFGH";
        let secret: Secret = text.parse().unwrap();
        assert_eq!(format!("{secret:?}"), "Secret(..)");
        assert!(secret.matches(text));
        assert!(!secret.matches(&text.replace('H', "X")));
        assert!(!secret.matches(text.trim_end_matches('H')));
    }

    #[test]
    fn a_secret_of_less_than_32_random_bytes_is_refused() {
        let hex = "0123456789abcdef".repeat(4);
        for long_enough in [Secret::random().expose(), &hex, &hex.to_uppercase()] {
            assert!(long_enough.parse::<Secret>().is_ok(), "{long_enough}");
        }
        for (refused, why) in [
            (String::new(), "empty"),
            ("a-secret-that-somebody-made-up".to_owned(), "30 characters"),
            (Secret::random().expose()[1..].to_owned(), "42 characters of base64"),
            (hex[1..].to_owned(), "63 hexadecimal digits"),
            ("a".repeat(64), "one character"),
            ("changeme".repeat(8), "seven different characters"),
        ] {
            let error = refused.parse::<Secret>().expect_err(why);
            assert!(error.contains("openssl rand -hex 32"), "{error}");
            assert!(refused.is_empty() || !error.contains(&refused), "{error}");
        }
    }

    #[test]
    fn keys_of_different_purposes_differ() {
        let secret = Secret::random();
        assert_eq!(secret.derive_key("a"), secret.derive_key("a"));
        assert_ne!(secret.derive_key("a"), secret.derive_key("b"));
        assert_ne!(secret.derive_key("a"), Secret::random().derive_key("a"));
    }
}
