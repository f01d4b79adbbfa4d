//! Who is calling, and whether they may.

pub mod keys;
pub mod revocation;
pub mod tokens;
pub mod visitor;

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use http::HeaderMap;
use http::header::{AUTHORIZATION, COOKIE};
use tourin_chassis::clock::SharedClock;
use tourin_chassis::identity::Subject;
use tourin_chassis::secret::Secret;
use tourin_chassis::telemetry::Span;

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
    ) -> Result<Subject, Answer> {
        let role = match access {
            Access::Role(role) => Some(role),
            _ => None,
        };
        match (access, self.judge(credentials).await) {
            (_, Shown::Good(member)) => match role {
                Some(role) if !member.roles.contains(role) => {
                    Err(Answer::forbidden(format!("this call needs the role {role:?}")))
                }
                _ => Ok(subject(&member)),
            },
            // A bad token is as good as none here; one that cannot be judged must not pass for good.
            (Access::Public, shown)
            | (Access::Optional, shown @ (Shown::Nothing | Shown::Bad(_))) => {
                if !matches!(shown, Shown::Nothing) {
                    Span::current().annotate("fall_back", &[("to", "visitor")]);
                }
                let pseudonym = visitor::pseudonym(&self.secret, self.clock.now(), address);
                Ok(Subject::Visitor { pseudonym })
            }
            (_, Shown::Bad(answer) | Shown::Unjudged(answer)) => Err(answer),
            (_, Shown::Nothing) => {
                Err(Answer::unauthenticated("this call needs a session: log in first", false))
            }
        }
    }

    async fn judge(&self, credentials: &Credentials<'_>) -> Shown {
        let Some(token) = credentials.token else {
            return Shown::Nothing;
        };
        // The reason goes into the trace, where it tells apart what the client sees as one.
        let because = |reason| Span::current().annotate("token_refused", &[("reason", reason)]);
        let bad = |reason, message| {
            because(reason);
            Shown::Bad(Answer::unauthenticated(message, true))
        };
        let unjudged = |reason, message: &'static str| {
            because(reason);
            Shown::Unjudged(Answer::unavailable(message))
        };
        let member = match self.tokens.verify(token).await {
            Ok(member) => member,
            Err(TokenError::Invalid) => {
                return bad("invalid", "the access token is not valid: log in again");
            }
            Err(TokenError::Expired) => {
                return bad("expired", "the access token has expired: have it reissued");
            }
            Err(TokenError::KeysUnavailable) => {
                return unjudged(
                    "keys_unavailable",
                    "tokens cannot be checked just now; try again",
                );
            }
        };
        if self.revocations.has_ended(&member.session) {
            return bad("session_ended", "this session has ended: log in again");
        }
        match self.revocations.reliance(Instant::now()) {
            Reliance::Usable => Shown::Good(member),
            Reliance::Loading => unjudged(
                "revocations_loading",
                "the gateway is still loading the ended sessions; try again",
            ),
            Reliance::Stale => {
                unjudged("revocations_stale", "sessions cannot be checked just now; try again")
            }
        }
    }
}

/// What a request's credentials are worth.
enum Shown {
    /// There are none.
    Nothing,
    /// A session that has not ended, as far as the policy asks to know.
    Good(Arc<Member>),
    /// Not good; trying again will not help. With the answer where a session is needed.
    Bad(Answer),
    /// That cannot be said just now, and it is our fault. With the answer to give.
    Unjudged(Answer),
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
