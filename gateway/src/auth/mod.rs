//! Who is calling, and whether they may.

pub mod keys;
pub mod revocation;
pub mod tokens;
pub mod visitor;

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use http::HeaderMap;
use http::header::{AUTHORIZATION, COOKIE, USER_AGENT};
use tourin_chassis::clock::SharedClock;
use tourin_chassis::identity::Subject;
use tourin_chassis::secret::Secret;

use crate::answers::Answer;
use crate::routes::Access;
use revocation::{Reliance, Revocations};
use tokens::{Member, TokenError, TokenVerifier};

const ACCESS_COOKIE: &str = "access_token";
const REFRESH_COOKIE: &str = "refresh_token";

/// What a request shows to say who is calling.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Credentials<'a> {
    token: Option<&'a str>,
    /// Whether it leans on cookies, which a browser adds by itself.
    pub by_cookie: bool,
}

impl<'a> Credentials<'a> {
    /// Reads them. A bearer token wins over cookies.
    pub fn of(headers: &'a HeaderMap) -> Self {
        if let Some(token) = bearer(headers) {
            return Self { token: Some(token), by_cookie: false };
        }
        let access = cookie(headers, ACCESS_COOKIE);
        Self {
            token: access,
            by_cookie: access.is_some() || cookie(headers, REFRESH_COOKIE).is_some(),
        }
    }
}

fn bearer(headers: &HeaderMap) -> Option<&str> {
    headers.get_all(AUTHORIZATION).iter().find_map(|value| {
        let (scheme, token) = value.to_str().ok()?.split_once(' ')?;
        scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
    })
}

fn cookie<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers
        .get_all(COOKIE)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(';'))
        .filter_map(|pair| pair.split_once('='))
        .find(|(known, _)| known.trim() == name)
        .map(|(_, value)| value.trim().trim_matches('"'))
        .filter(|value| !value.is_empty())
}

/// Decides who a caller is and whether they may call.
pub struct Authenticator {
    /// Judges tokens.
    pub tokens: TokenVerifier,
    /// Knows ended sessions.
    pub revocations: Arc<Revocations>,
    /// Salts visitors' pseudonyms.
    pub secret: Secret,
    /// The time.
    pub clock: SharedClock,
}

impl Authenticator {
    /// Who is calling, if they may.
    ///
    /// # Errors
    /// The answer to give instead: 401 without a good token, 403 without the role, 503 while that
    /// cannot be judged. Never a 401 for a fault of ours.
    pub async fn admit(
        &self,
        access: &Access,
        credentials: &Credentials<'_>,
        address: IpAddr,
        headers: &HeaderMap,
    ) -> Result<Subject, Answer> {
        let member = self.member(credentials).await;
        let role = match access {
            Access::Public => {
                return Ok(match member {
                    Ok(Some(member)) => subject(&member),
                    // A bad token is as good as none here.
                    Ok(None) | Err(_) => self.visitor(address, headers),
                });
            }
            Access::Session => None,
            Access::Role(role) => Some(role),
        };
        let Some(member) = member? else {
            return Err(Answer::unauthenticated("this call needs a session: log in first", false));
        };
        match self.revocations.reliance(Instant::now()) {
            Reliance::Usable => {}
            Reliance::Loading => {
                return Err(Answer::unavailable(
                    "the gateway is still loading the ended sessions; try again",
                ));
            }
            Reliance::Stale => {
                return Err(Answer::unavailable("sessions cannot be checked just now; try again"));
            }
        }
        match role {
            Some(role) if !member.roles.contains(role) => {
                Err(Answer::forbidden(format!("this call needs the role {role:?}")))
            }
            _ => Ok(subject(&member)),
        }
    }

    async fn member(&self, credentials: &Credentials<'_>) -> Result<Option<Arc<Member>>, Answer> {
        let Some(token) = credentials.token else {
            return Ok(None);
        };
        let refused = |message| Err(Answer::unauthenticated(message, true));
        match self.tokens.verify(token).await {
            Ok(member) if self.revocations.has_ended(&member.session) => {
                refused("this session has ended: log in again")
            }
            Ok(member) => Ok(Some(member)),
            Err(TokenError::Invalid) => refused("the access token is not valid: log in again"),
            Err(TokenError::Expired) => refused("the access token has expired: have it reissued"),
            Err(TokenError::KeysUnavailable) => {
                Err(Answer::unavailable("tokens cannot be checked just now; try again"))
            }
        }
    }

    fn visitor(&self, address: IpAddr, headers: &HeaderMap) -> Subject {
        let agent = headers.get(USER_AGENT).map_or(&[][..], |value| value.as_bytes());
        Subject::Visitor {
            pseudonym: visitor::pseudonym(&self.secret, self.clock.now(), address, agent),
        }
    }
}

fn subject(member: &Member) -> Subject {
    Subject::Member {
        id: member.id.clone(),
        session: member.session.clone(),
        roles: member.roles.clone(),
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    #[test]
    fn a_bearer_token_wins_over_cookies() {
        let headers = |authorization: Option<&'static str>, cookies: &[&'static str]| {
            let mut headers = HeaderMap::new();
            if let Some(value) = authorization {
                headers.append(AUTHORIZATION, HeaderValue::from_static(value));
            }
            for value in cookies {
                headers.append(COOKIE, HeaderValue::from_static(value));
            }
            headers
        };
        for (authorization, cookies, token, by_cookie) in [
            (None, &[][..], None, false),
            (Some("Bearer t"), &["access_token=c"], Some("t"), false),
            (Some("bearer  t "), &[], Some("t"), false),
            (Some("Basic dTpw"), &["access_token=c"], Some("c"), true),
            (None, &["a=1; access_token=c; b=2"], Some("c"), true),
            (None, &["a=1", "access_token=\"c\""], Some("c"), true),
            (None, &["my_access_token=c"], None, false),
            (None, &["refresh_token=r"], None, true),
            (None, &["access_token="], None, false),
        ] {
            let headers = headers(authorization, cookies);
            assert_eq!(
                Credentials::of(&headers),
                Credentials { token, by_cookie },
                "{authorization:?} {cookies:?}"
            );
        }
    }
}
