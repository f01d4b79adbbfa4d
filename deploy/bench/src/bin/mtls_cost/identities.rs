//! The identity of a caller: signed by the gateway and verified by a service, which both remember; and as it
//! was with a shared secret, when both made it anew for each request.

use std::io::Write;
use std::time::Duration;

use anyhow::Context;
use http::HeaderValue;
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation, decode, encode};
use serde::{Deserialize, Serialize};
use tourin_bench::thread_time;
use tourin_chassis::identity::{IdentitySigner, IdentityVerifier, Subject};
use tourin_chassis::peer::Peer;
use tourin_chassis::secret::Secret;
use tourin_registry_api::Workload;

const AUDIENCE: &str = "core";

/// The former life of an identity, in seconds.
const FORMER_TTL_S: i64 = 30;

#[derive(Serialize, Deserialize)]
struct FormerClaims {
    aud: String,
    exp: i64,
    #[serde(flatten)]
    subject: Subject,
}

/// The former signer and verifier.
struct Former {
    signs: EncodingKey,
    verifies: DecodingKey,
    validation: Validation,
}

impl Former {
    fn new() -> Self {
        let key = Secret::random().derive_key("tourin/identity/v1");
        let mut validation = Validation::new(Algorithm::HS256);
        validation.set_audience(&[AUDIENCE]);
        validation.set_required_spec_claims(&["exp", "aud"]);
        validation.leeway = 5;
        let (signs, verifies) = (EncodingKey::from_secret(&key), DecodingKey::from_secret(&key));
        Self { signs, verifies, validation }
    }

    fn pass(&self, subject: &Subject) -> anyhow::Result<Subject> {
        let claims = FormerClaims {
            aud: AUDIENCE.to_owned(),
            exp: chrono::Utc::now().timestamp() + FORMER_TTL_S,
            subject: subject.clone(),
        };
        let token = encode(&Header::new(Algorithm::HS256), &claims, &self.signs)?;
        let value = HeaderValue::from_str(&token)?;
        let token = decode::<FormerClaims>(value.to_str()?, &self.verifies, &self.validation)?;
        Ok(token.claims.subject)
    }
}

/// The present signer and verifier.
struct Present {
    signer: IdentitySigner,
    verifier: IdentityVerifier,
    gateway: Peer,
}

impl Present {
    fn new(gateway: &Workload) -> anyhow::Result<Self> {
        let chain = gateway.chain();
        let certificate = chain.first().context("the gateway has a certificate")?;
        let peer = Peer::of_certificate(certificate).context("it is a peer's")?;
        let signer = IdentitySigner::new(gateway.key(), &peer.id);
        Ok(Self { signer, verifier: IdentityVerifier::new(AUDIENCE), gateway: peer })
    }

    fn pass(&self, subject: &Subject) -> anyhow::Result<Subject> {
        let value = self.signer.sign(subject, AUDIENCE);
        self.verifier.verify(&value, &self.gateway).context("the identity is refused")
    }
}

/// A member in a session of this number.
fn member(session: u32) -> Subject {
    Subject::Member {
        id: "benchmark1".to_owned(),
        session: format!("{session:032}"),
        roles: vec!["user".to_owned()],
    }
}

/// Measures and prints.
pub fn measure(gateway: &Workload, count: u32) -> anyhow::Result<()> {
    let (former, present) = (Former::new(), Present::new(gateway)?);
    let known = member(0);
    anyhow::ensure!(former.pass(&known)? == known && present.pass(&known)? == known);
    let remembered = each(count, |_| present.pass(&known))?;
    let first = each(count, |number| present.pass(&member(number + 1)))?;
    let secret = each(count, |_| former.pass(&known))?;
    let us = |time: Duration| time.as_secs_f64() * 1e6;
    writeln!(
        std::io::stdout(),
        "an identity, signed and verified: {:.2} us when both ends remember it, {:.1} us the first time, {:.2} us with a shared secret as before; remembered / before: {:.2}",
        us(remembered),
        us(first),
        us(secret),
        us(remembered) / us(secret)
    )?;
    Ok(())
}

fn each(count: u32, pass: impl Fn(u32) -> anyhow::Result<Subject>) -> anyhow::Result<Duration> {
    let before = thread_time()?;
    for number in 0..count {
        std::hint::black_box(pass(number)?);
    }
    Ok((thread_time()? - before) / count)
}
