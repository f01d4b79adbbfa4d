//! Authentication and authorisation of requests.

pub mod cookies;
pub mod keys;
pub mod revocation;
pub mod sliding;
pub mod tokens;
pub mod visitor;

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::header::{CACHE_CONTROL, SET_COOKIE};
use http::{HeaderMap, HeaderValue};
use pingora::http::ResponseHeader;
use tourin_chassis::http::{Message, fields, messages as shared};
use tourin_chassis::identity::KnownSubject;
use tourin_chassis::session_cookies::{CookieNames, SessionCookies};
use tourin_chassis::telemetry::Span;

use crate::messages;
use crate::responses::Response;
use crate::routes::Access;
use revocation::{Freshness, Revocations};
use sliding::{Outcome, Renewal, SlidingSessions};
use tokens::{Member, TokenError, TokenVerifier};
use visitor::Visitors;

/// How long a public call waits for the renewal of an expired cookie before it counts as a visitor's.
/// Short, because such a call need not depend on core.
const PUBLIC_RENEWAL_WAIT: Duration = Duration::from_millis(300);
const MAX_TOKENS: usize = 4;

/// The tokens of a request.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Credentials<'a> {
    /// The first valid one counts.
    tokens: Vec<&'a str>,
    /// Whether they came in cookies, which a browser adds by itself.
    pub by_cookie: bool,
    /// The names of the client's session cookies.
    names: CookieNames,
}

impl<'a> Credentials<'a> {
    /// Reads the tokens. A bearer token wins over cookies.
    pub fn of(headers: &'a HeaderMap, cookies: SessionCookies) -> Self {
        let names = cookies.names;
        if let Some(token) = fields::bearer_tokens(headers).next() {
            return Self { tokens: vec![token], by_cookie: false, names };
        }
        let tokens = fields::cookies(headers, names.access()).take(MAX_TOKENS).collect();
        Self { tokens, by_cookie: cookies.sent, names }
    }

    /// Whether the call must come from an own page: it is authorised by cookies, or its response
    /// removes cookies.
    pub fn need_own_site(&self, access: &Access) -> bool {
        self.by_cookie || (*access == Access::Logout && self.tokens.is_empty())
    }
}

/// Refuses a request with two bearer tokens: what checks the one in front of the gateway would vouch
/// for a request that the gateway takes for the other's (RFC 6750, 3.1).
///
/// # Errors
/// The 400 to answer with.
pub fn check_bearer(headers: &HeaderMap) -> Result<(), Response> {
    match fields::bearer_tokens(headers).nth(1) {
        Some(_) => Err(Response::malformed(messages::several_bearer_tokens())),
        None => Ok(()),
    }
}

/// Authenticates callers and checks their access.
pub struct Authenticator {
    /// Verifies tokens.
    pub tokens: Arc<TokenVerifier>,
    /// Ended sessions.
    pub revocations: Arc<Revocations>,
    /// Renews sessions that are carried by cookies.
    pub sliding: Arc<SlidingSessions>,
    /// Names visitors.
    pub visitors: Arc<Visitors>,
}

/// An admitted caller.
#[derive(Debug)]
pub struct Caller {
    /// The identity that services get.
    pub subject: Arc<KnownSubject>,
    /// The renewal whose new cookie may go on the response.
    pub renewal: Option<Renewal>,
}

impl From<Arc<KnownSubject>> for Caller {
    fn from(subject: Arc<KnownSubject>) -> Self {
        Self { subject, renewal: None }
    }
}

impl Authenticator {
    /// Authenticates the caller and checks its access.
    ///
    /// # Errors
    /// 401 without a valid token, 403 without the role, 503 while tokens cannot be checked. Never 401
    /// for a fault of the mesh.
    pub async fn admit(
        &self,
        access: &Access,
        credentials: &Credentials<'_>,
        address: IpAddr,
    ) -> Result<Caller, Response> {
        if *access == Access::Logout {
            let named = self.name(credentials).await?;
            return Ok(named.unwrap_or_else(|| self.visitor(address)).into());
        }
        let role = match access {
            Access::Role(role) => Some(role),
            _ => None,
        };
        let max_wait = match access {
            Access::Public => PUBLIC_RENEWAL_WAIT,
            _ => Duration::MAX,
        };
        match (access, self.authenticate(credentials, max_wait).await) {
            (_, Credential::Valid(member, renewal)) => match role {
                Some(role) if !member.roles.contains(role) => {
                    Err(Response::forbidden(messages::role_needed(role)))
                }
                _ => Ok(Caller { subject: Arc::clone(&member.subject), renewal }),
            },
            // An invalid token counts as none here. Under `Optional` an undetermined one is refused.
            (Access::Public | Access::Anonymous, credential)
            | (Access::Optional, credential @ (Credential::Missing | Credential::Invalid(_))) => {
                if !matches!(credential, Credential::Missing) {
                    Span::current().annotate("fall_back", &[("to", "visitor")]);
                }
                Ok(self.visitor(address).into())
            }
            (_, Credential::Invalid(response) | Credential::Undetermined(response)) => {
                Err(response)
            }
            (_, Credential::Missing) => {
                Err(Response::unauthenticated(shared::session_needed(), false))
            }
        }
    }

    fn visitor(&self, address: IpAddr) -> Arc<KnownSubject> {
        self.visitors.subject(address)
    }

    /// The session to end: that of a token with a valid signature, expired or not. `None` if there is
    /// none, or if it is known to have ended.
    async fn name(
        &self,
        credentials: &Credentials<'_>,
    ) -> Result<Option<Arc<KnownSubject>>, Response> {
        for token in &credentials.tokens {
            match self.tokens.verify(token).await {
                Ok(member) | Err(TokenError::Expired(member))
                    if !self.revocations.has_ended(&member.session) =>
                {
                    return Ok(Some(Arc::clone(&member.subject)));
                }
                Ok(_) | Err(TokenError::Expired(_) | TokenError::Invalid) => {}
                Err(TokenError::KeysUnavailable) => {
                    return Err(Response::unavailable(messages::tokens_cannot_be_checked()));
                }
            }
        }
        Ok(None)
    }

    /// Puts the new cookie on the response if the renewal is done; otherwise a later response gets it.
    /// Not if the response sets that cookie itself, nor if the session has ended.
    ///
    /// # Errors
    /// Pingora's, which the headers set here do not cause.
    pub async fn put_cookie(
        &self,
        renewal: Renewal,
        head: &mut ResponseHeader,
    ) -> pingora::Result<()> {
        let Some(renewed) = renewal.if_done().await else {
            return Ok(());
        };
        let is_access =
            |set| CookieNames::ALL.iter().any(|names| names.access() == cookie_name(set));
        let sets_it = head.headers.get_all(SET_COOKIE).iter().any(is_access);
        if sets_it || self.revocations.has_ended(&renewed.member.session) {
            return Ok(());
        }
        head.append_header(SET_COOKIE, renewed.cookie.clone())?;
        // A cache must not give one client's token to another.
        head.insert_header(CACHE_CONTROL, fields::PERSONAL)
    }

    /// Checks all tokens: a browser may send several cookies of one name, a stale one first.
    async fn authenticate(&self, credentials: &Credentials<'_>, max_wait: Duration) -> Credential {
        let mut verdict = Credential::Missing;
        for token in &credentials.tokens {
            let slides = credentials.by_cookie.then_some(credentials.names);
            match (self.authenticate_token(token, slides, max_wait).await, &verdict) {
                (good @ Credential::Valid(..), _) => return good,
                (credential, Credential::Missing)
                | (credential @ Credential::Undetermined(_), Credential::Invalid(_)) => {
                    verdict = credential;
                }
                _ => {}
            }
        }
        verdict
    }

    /// Checks a token. One from a cookie `slides`: it is renewed, as the cookie of that name. Clients
    /// renew bearer tokens. An expired one waits for the renewal for at most `max_wait`.
    async fn authenticate_token(
        &self,
        token: &str,
        slides: Option<CookieNames>,
        max_wait: Duration,
    ) -> Credential {
        // The trace has the exact reason; the client gets one message for several.
        let because = |reason| Span::current().annotate("token_refused", &[("reason", reason)]);
        let bad = |reason, message| {
            because(reason);
            Credential::Invalid(Response::unauthenticated(message, true))
        };
        let undetermined = |reason, message: Message| {
            because(reason);
            Credential::Undetermined(Response::unavailable(message))
        };
        let (member, expired) = match self.tokens.verify(token).await {
            Ok(member) => (member, false),
            Err(TokenError::Expired(member))
                if slides.is_some() && self.sliding.is_renewable(&member) =>
            {
                (member, true)
            }
            Err(TokenError::Invalid) => {
                return bad("invalid", messages::invalid_token());
            }
            Err(TokenError::Expired(_)) => {
                return bad("expired", messages::expired_token());
            }
            Err(TokenError::KeysUnavailable) => {
                return undetermined("keys_unavailable", messages::tokens_cannot_be_checked());
            }
        };
        let ended = || bad("session_ended", messages::session_has_ended());
        if self.revocations.has_ended(&member.session) {
            return ended();
        }
        match self.revocations.freshness(Instant::now()) {
            Freshness::Usable => {}
            Freshness::Loading => {
                return undetermined("revocations_loading", messages::sessions_are_loading());
            }
            Freshness::Stale => {
                return undetermined("revocations_stale", messages::sessions_cannot_be_checked());
            }
        }
        let Some(names) = slides.filter(|_| self.sliding.is_due(&member)) else {
            return Credential::Valid(member, None);
        };
        let renewal = self.sliding.renew(&member, names).await;
        if matches!(renewal, Renewal::Done(Outcome::Ended)) {
            return ended();
        }
        if !expired {
            return Credential::Valid(member, Some(renewal));
        }
        let outcome = tokio::time::timeout(max_wait, renewal.outcome()).await;
        match outcome.unwrap_or(Outcome::Unavailable) {
            // The session may have ended meanwhile.
            Outcome::Renewed(renewed) if !self.revocations.has_ended(&renewed.member.session) => {
                let member = Arc::clone(&renewed.member);
                Credential::Valid(member, Some(Renewal::Done(Outcome::Renewed(renewed))))
            }
            Outcome::Renewed(_) | Outcome::Ended => ended(),
            Outcome::Unavailable => {
                undetermined("renewal_unavailable", messages::session_cannot_be_renewed())
            }
        }
    }
}

enum Credential {
    /// No tokens.
    Missing,
    /// A live session, and its renewal if one is due.
    Valid(Arc<Member>, Option<Renewal>),
    /// Invalid or ended. With the response for calls that need a session.
    Invalid(Response),
    /// Cannot be checked now, because of a fault of the mesh. With the response.
    Undetermined(Response),
}

/// The name of the cookie that a `Set-Cookie` header is about.
fn cookie_name(set: &HeaderValue) -> &str {
    let name = set.as_bytes().split(|byte| *byte == b'=').next().unwrap_or_default();
    std::str::from_utf8(name).unwrap_or_default().trim()
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;
    use http::header::{AUTHORIZATION, COOKIE};

    use super::*;

    /// A host beside ours, or a plain HTTP response, can set a cookie without the prefix.
    #[test]
    fn a_cookie_without_the_prefix_opens_no_session_where_the_prefix_is_due() {
        let mut headers = HeaderMap::new();
        headers.append(COOKIE, HeaderValue::from_static("access_token=x; refresh_token=y"));
        let names = CookieNames::HostPrefixed;
        let of = |headers: &HeaderMap| SessionCookies::of(names, headers);
        let injected = Credentials::of(&headers, of(&headers));
        assert_eq!(injected, Credentials { tokens: vec![], by_cookie: false, names });
        headers.append(COOKIE, HeaderValue::from_static("__Host-access_token=c"));
        let own = Credentials::of(&headers, of(&headers));
        assert_eq!(own, Credentials { tokens: vec!["c"], by_cookie: true, names });
    }

    #[test]
    fn a_bearer_token_wins_over_cookies() {
        let headers = |authorization: Option<&'static str>, cookies: &[&'static str]| {
            let mut headers = HeaderMap::new();
            if let Some(value) = authorization {
                headers.append(AUTHORIZATION, HeaderValue::from_static(value));
            }
            for value in cookies {
                headers.append(COOKIE, HeaderValue::from_bytes(value.as_bytes()).unwrap());
            }
            headers
        };
        for (authorization, cookies, tokens, by_cookie) in [
            (None, &[][..], vec![], false),
            (Some("Bearer t"), &["access_token=c"], vec!["t"], false),
            (Some("bearer  t "), &[], vec!["t"], false),
            (Some("Basic dTpw"), &["access_token=c"], vec!["c"], true),
            (Some("Bearer "), &["access_token=c"], vec!["c"], true),
            (None, &["a=1; access_token=c; b=2"], vec!["c"], true),
            (None, &["a=1", "access_token=\"c\""], vec!["c"], true),
            (None, &["ad=광고; access_token=c"], vec!["c"], true),
            (None, &["access_token=c; access_token=d"], vec!["c", "d"], true),
            (None, &["my_access_token=c"], vec![], false),
            (None, &["ad=광고; refresh_token=r"], vec![], true),
            (None, &["access_token="], vec![], false),
            (None, &["__Host-access_token=c; __Host-refresh_token=r"], vec![], false),
        ] {
            let headers = headers(authorization, cookies);
            let names = CookieNames::Plain;
            assert_eq!(
                Credentials::of(&headers, SessionCookies::of(names, &headers)),
                Credentials { tokens, by_cookie, names },
                "{authorization:?} {cookies:?}"
            );
        }
    }
}
