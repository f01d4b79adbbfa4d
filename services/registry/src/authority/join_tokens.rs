//! Join tokens: JWTs that the registry signs and verifies itself.

use std::collections::HashSet;
use std::fs::{self, DirBuilder};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::Path;
use std::time::Duration;

use anyhow::Context as _;
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation, decode, encode};
use sha2::{Digest as _, Sha256};
use tourin_chassis::clock::SharedClock;
use tourin_chassis::secret::Secret;
use tourin_registry_api::limits;
use tourin_registry_api::wire::JoinClaims;
use uuid::Uuid;

use super::folder::{Folder, write_private};
use super::hex;

const KEY: &str = "join-token-key";
/// The services for which [`JoinTokens::keep_files`] keeps tokens.
const SERVICES: [&str; 4] = ["core", "gateway", "operator", "recommendation"];
/// Life of a token in a file, which is replaced at half.
const FILE_TTL: Duration = Duration::from_secs(24 * 60 * 60);

/// A join token is not accepted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum JoinRefused {
    /// It is not one of this registry, or has expired.
    #[error("the join token is not valid, or has expired; `tourin join-token` makes one")]
    Invalid,
    /// As many instances as it allows have joined by it.
    #[error("the join token is used up; `tourin join-token` makes one")]
    UsedUp,
    /// Its use cannot be counted.
    #[error("the use of the join token cannot be counted: {0}")]
    Failed(String),
}

/// Signs and verifies join tokens.
pub struct JoinTokens {
    mesh: String,
    key: Secret,
    clock: SharedClock,
}

impl JoinTokens {
    /// With a `given` authority's key (PEM) the key of tokens is derived from it: every registry that has
    /// the authority knows the tokens of the others.
    pub(super) fn open(
        folder: &Folder,
        (mesh, given): (&str, Option<&str>),
        clock: SharedClock,
    ) -> anyhow::Result<Self> {
        let key = match (given, folder.read(KEY)?) {
            (Some(given), _) => derived(given)?,
            (None, Some(key)) => key.trim().parse().map_err(anyhow::Error::msg).context(KEY)?,
            (None, None) => {
                let key = Secret::random();
                folder.write(KEY, key.expose())?;
                key
            }
        };
        Ok(Self { mesh: mesh.to_owned(), key, clock })
    }

    pub(super) fn sign(
        &self,
        service: &str,
        (uses, ttl): (Option<u32>, Duration),
        root: String,
    ) -> anyhow::Result<String> {
        limits::service_name(service)?;
        let claims = JoinClaims {
            iss: self.mesh.clone(),
            sub: service.to_owned(),
            jti: Uuid::new_v4().to_string(),
            exp: self.now() + ttl.as_secs(),
            uses,
            root,
        };
        let key = EncodingKey::from_secret(self.key.expose().as_bytes());
        Ok(encode(&Header::new(Algorithm::HS256), &claims, &key)?)
    }

    /// What a token of this registry says that has not expired.
    pub(super) fn claims(&self, token: &str) -> Result<JoinClaims, JoinRefused> {
        let mut validation = Validation::new(Algorithm::HS256);
        validation.set_issuer(&[&self.mesh]);
        validation.required_spec_claims = HashSet::from(["exp", "iss", "sub"].map(Into::into));
        // By the clock of this registry.
        validation.validate_exp = false;
        let key = DecodingKey::from_secret(self.key.expose().as_bytes());
        let claims = decode::<JoinClaims>(token, &key, &validation);
        let claims = claims.map_err(|_| JoinRefused::Invalid)?.claims;
        if claims.exp <= self.now() {
            return Err(JoinRefused::Invalid);
        }
        Ok(claims)
    }

    /// Keeps a token for each service in `folder/SERVICE/join-token`. One that names another root than
    /// `root` is of no use: who joins by it would not know this registry.
    pub(super) fn keep_files(
        &self,
        folder: &Path,
        root: &str,
        sign: impl Fn(&str, Duration) -> anyhow::Result<String>,
    ) -> anyhow::Result<()> {
        let half = self.now() + FILE_TTL.as_secs() / 2;
        for service in SERVICES {
            let own = folder.join(service);
            let file = own.join("join-token");
            let known = fs::read_to_string(&file).ok();
            let known = known.and_then(|token| self.claims(token.trim()).ok());
            if known.is_some_and(|token| token.exp > half && token.root == root) {
                continue;
            }
            DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(&own)
                .with_context(|| format!("--join-tokens {}", folder.display()))?;
            write_private(&file, &sign(service, FILE_TTL)?)?;
        }
        Ok(())
    }

    fn now(&self) -> u64 {
        u64::try_from(self.clock.now().timestamp()).unwrap_or_default()
    }
}

/// A secret that only who has the authority's key can know, and from which that key cannot be told.
fn derived(authority_key: &str) -> anyhow::Result<Secret> {
    let key = pem::parse(authority_key).context("the authority's key is not PEM")?;
    let mut digest = Sha256::new();
    digest.update(b"tourin join tokens\0");
    digest.update(key.contents());
    hex(&digest.finalize()).parse().map_err(anyhow::Error::msg)
}
