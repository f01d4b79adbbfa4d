//! Access and refresh tokens.
//!
//! A refresh token is 256 random bits. The store keeps its SHA-256, never the token. A plain digest
//! is enough, because 2^256 inputs cannot be tried.
//!
//! # The race of two tabs
//! Two tabs of one browser share a refresh token and may both present it when the access token
//! expires. The second tab must get the *same* successor as the first; otherwise one of them would
//! hold a token that the next rotation invalidates. So the successor is derived, not random:
//! `successor = HMAC-SHA-256(key: token, "tourin/refresh/v1" || salt)` with a new random salt per
//! rotation, stored beside the digest of the used token. Deriving it again needs both the used token,
//! which is not in the database, and the salt, which is not in the token. The salt is deleted at the
//! next rotation, or by the pruner after the grace.

use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hmac::{Hmac, Mac};
use rand::TryRngCore;
use rand::rngs::OsRng;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use uuid::Uuid;

/// The `iss` of every access token.
pub const ISSUER: &str = "tourin-core";
/// The `aud` of every access token.
pub const AUDIENCE: &str = "tourin";

/// The `typ` in the header of every access token (RFC 9068, 2.1).
pub const TOKEN_TYPE: &str = "at+jwt";

const DERIVATION: &[u8] = b"tourin/refresh/v1";

/// The operating system gave no random bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the operating system gave no random bytes")]
pub struct NoEntropy;

/// 32 cryptographically random bytes.
///
/// # Errors
/// [`NoEntropy`]; there is no weaker fallback.
pub fn random_bytes() -> Result<[u8; 32], NoEntropy> {
    let mut bytes = [0_u8; 32];
    OsRng.try_fill_bytes(&mut bytes).map_err(|_| NoEntropy)?;
    Ok(bytes)
}

/// A refresh token as the client holds it. Never printed, never stored.
#[derive(Clone, PartialEq, Eq)]
pub struct RefreshToken([u8; 32]);

impl RefreshToken {
    /// Length of the text form: 32 bytes in unpadded base64url.
    pub const TEXT_CHARS: usize = 43;

    /// A new token of 256 random bits.
    ///
    /// # Errors
    /// [`NoEntropy`].
    pub fn random() -> Result<Self, NoEntropy> {
        random_bytes().map(Self)
    }

    /// Reads the text form; `None` if it is malformed.
    pub fn parse(text: &str) -> Option<Self> {
        let mut bytes = [0_u8; 32];
        if text.len() != Self::TEXT_CHARS {
            return None;
        }
        match URL_SAFE_NO_PAD.decode_slice(text, &mut bytes) {
            Ok(32) => Some(Self(bytes)),
            _ => None,
        }
    }

    /// The digest that the store keeps.
    pub fn hash(&self) -> TokenHash {
        TokenHash(Sha256::digest(self.0).into())
    }

    /// The next token under `salt`; the same for the same salt.
    pub fn successor(&self, salt: &Salt) -> Self {
        let mut mac = <Hmac<Sha256> as Mac>::new_from_slice(&self.0)
            .expect("HMAC accepts a key of any length");
        mac.update(DERIVATION);
        mac.update(&salt.0);
        Self(mac.finalize().into_bytes().into())
    }

    /// The text form, for the client.
    pub fn expose(&self) -> String {
        URL_SAFE_NO_PAD.encode(self.0)
    }
}

impl fmt::Debug for RefreshToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RefreshToken(..)")
    }
}

/// SHA-256 of a refresh token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TokenHash(pub [u8; 32]);

/// Derives a used token's successor; useless without that token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Salt(pub [u8; 32]);

impl Salt {
    /// A new salt.
    ///
    /// # Errors
    /// [`NoEntropy`].
    pub fn random() -> Result<Self, NoEntropy> {
        random_bytes().map(Self)
    }
}

/// A session's id: the `sid` of its access tokens and of its revocation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SessionId(pub Uuid);

impl SessionId {
    /// A new id.
    pub fn new() -> Self {
        Self(Uuid::new_v4())
    }

    /// A new id that no session can have: see [`SessionId::is_of_no_session`].
    pub fn of_no_session() -> Self {
        Self(uuid::Builder::from_custom_bytes(Uuid::new_v4().into_bytes()).into_uuid())
    }

    /// Whether no session can have this id, since it is of another version of UUIDs (RFC 9562, 5.8). Such
    /// ids are in the log of ended sessions for gateways that measure how soon they learn of an end, and in
    /// entries that are about something else.
    pub fn is_of_no_session(self) -> bool {
        self.0.get_version_num() == 8
    }

    /// Reads the text form; `None` if it is malformed.
    pub fn parse(text: &str) -> Option<Self> {
        Uuid::try_parse(text).ok().map(Self)
    }
}

impl Default for SessionId {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Display for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.hyphenated().fmt(f)
    }
}

/// The claims of an access token. Times are seconds since the epoch (RFC 7519, NumericDate).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claims {
    /// The issuer: [`ISSUER`].
    pub iss: String,
    /// The audience: [`AUDIENCE`].
    pub aud: String,
    /// The member's id.
    pub sub: String,
    /// The session's id.
    pub sid: String,
    /// When it was issued.
    pub iat: i64,
    /// When it becomes valid.
    pub nbf: i64,
    /// When it expires.
    pub exp: i64,
    /// The token's own id.
    pub jti: String,
    /// The member's additional roles.
    pub roles: Vec<String>,
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_token_reads_back_as_itself(bytes in any::<[u8; 32]>()) {
            let token = RefreshToken(bytes);
            prop_assert_eq!(RefreshToken::parse(&token.expose()), Some(token));
        }

        #[test]
        fn text_that_reads_as_a_token_has_one_spelling(text in "[A-Za-z0-9_-]{43}") {
            if let Some(token) = RefreshToken::parse(&text) {
                prop_assert_eq!(token.expose(), text);
            }
        }

        #[test]
        fn other_text_is_not_a_token(text in ".{0,60}") {
            prop_assume!(text.len() != RefreshToken::TEXT_CHARS);
            prop_assert_eq!(RefreshToken::parse(&text), None);
        }

        #[test]
        fn the_successor_depends_on_token_and_salt(
            token in any::<[u8; 32]>(), other in any::<[u8; 32]>(),
            salt in any::<[u8; 32]>(), salt_2 in any::<[u8; 32]>(),
        ) {
            prop_assume!(token != other && salt != salt_2);
            let (token, other) = (RefreshToken(token), RefreshToken(other));
            let (salt, salt_2) = (Salt(salt), Salt(salt_2));
            prop_assert_eq!(token.successor(&salt), token.successor(&salt));
            prop_assert_ne!(token.successor(&salt), token.successor(&salt_2));
            prop_assert_ne!(token.successor(&salt), other.successor(&salt));
            prop_assert_ne!(token.successor(&salt), token);
        }
    }

    #[test]
    fn a_token_is_not_shown_in_debug_output() {
        let token = RefreshToken::random().unwrap();
        assert_eq!(format!("{token:?}"), "RefreshToken(..)");
    }
}
