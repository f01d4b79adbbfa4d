//! `/api/auth`: signing up, logging in and out, the account.

mod bodies;
mod sliding;

use std::time::Duration;

use axum::body::Bytes;
use axum::extract::State;
use axum::extract::rejection::BytesRejection;
use axum::response::{IntoResponse, Response};
use http::header::CACHE_CONTROL;
use http::{HeaderMap, HeaderValue, StatusCode};
use serde::de::DeserializeOwned;
use serde_json::Value;
use tourin_chassis::http::fields::PERSONAL;
use tourin_chassis::http::{ApiError, Caller, Json, MemberCaller, Params, read_body, read_value};
use tourin_chassis::identity::{SESSION_ENDED_HEADER, Subject};
use tourin_chassis::session_cookies::{CookieNames, SessionCookies};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use self::bodies::{
    AccountAnswer, DeleteAccount, LogIn, LoggedInAnswer, Reissue, SignUp, TokensAnswer, Typed,
    UpdatePassword, UpdateProfile,
};
use super::body::Object;
use super::openapi::{BodyRefused, QueryRefused, SessionNeeded, TooManyAttempts, Unavailable};
use super::source::CallSource;
use super::{AppState, cookies, messages};
use crate::app::accounts::AccountError;
use crate::app::attempts;
use crate::app::client_source::ClientSource;
use crate::app::fair_queue::Requester;
use crate::app::passwords::HashingError;
use crate::app::sessions::{SessionError, TokenPair};
use crate::domain::account::{Account, MemberId};
use crate::domain::token::{RefreshToken, SessionId};

pub(super) fn router() -> OpenApiRouter<AppState> {
    OpenApiRouter::default()
        .routes(routes!(sign_up))
        .routes(routes!(log_in))
        .routes(routes!(reissue))
        .routes(routes!(log_out))
        .routes(routes!(me))
        .routes(routes!(delete_account))
        .routes(routes!(update_profile))
        .routes(routes!(update_password))
        .merge(sliding::router())
}

/// Sign up
#[utoipa::path(
    post, path = "/api/auth/signup", operation_id = "signUp", tag = "auth",
    request_body = SignUp,
    responses(
        (status = 201, description = "The account exists now", body = AccountAnswer),
        BodyRefused, Unavailable,
    ),
)]
async fn sign_up(
    State(state): State<AppState>,
    CallSource(source): CallSource,
    Object(body): Object<SignUp>,
) -> Result<(StatusCode, Json<AccountAnswer>), ApiError> {
    let (id, password, name, email) = body.parse()?;
    let account = state.accounts.sign_up(id, &password, name, email, &source).await?;
    Ok((StatusCode::CREATED, Json(account.into())))
}

/// Log in
///
/// Answers the tokens and sets them as cookies. A call that brought session cookies gets them in new
/// cookies alone.
/// The cookie `device` lets this device log in while others guess the
/// member's password.
#[utoipa::path(
    post, path = "/api/auth/login", operation_id = "logIn", tag = "auth",
    request_body = LogIn,
    responses(
        (status = 200, description = "A session is open", body = LoggedInAnswer,
            headers(("Set-Cookie" = String, description = "The tokens, for a browser"))),
        (status = 401, description = "The id or the password is wrong",
            body = tourin_chassis::http::ErrorBody),
        BodyRefused, TooManyAttempts, Unavailable,
    ),
)]
async fn log_in(
    State(state): State<AppState>,
    cookies: SessionCookies,
    CallSource(source): CallSource,
    headers: HeaderMap,
    Object(body): Object<LogIn>,
) -> Result<Response, ApiError> {
    let devices: Vec<_> = cookies::devices(&headers).collect();
    let opened = state.sessions.log_in(&body.id, &body.password.0, &source, &devices).await?;
    let answer = LoggedInAnswer {
        account: opened.account.into(),
        tokens: TokensAnswer::new(&opened.tokens, cookies.sent),
    };
    let mut response = with_tokens(&state, cookies.names, &opened.tokens, Json(answer));
    if let Some(device) = &opened.new_device {
        cookies::set_device(cookies.names, response.headers_mut(), device);
    }
    name_ended(&state, response.headers_mut(), &opened.ended);
    Ok(response)
}

/// Exchange a refresh token for a new pair
///
/// The token is in the body or in a cookie; the body goes first. It is good once;
/// a repeat within seconds, by a second tab, answers the same successor. A later repeat ends the
/// session. A client that only sends cookies need not call it while it is active.
#[utoipa::path(
    post, path = "/api/auth/reissue", operation_id = "reissueTokens", tag = "auth",
    request_body = Option<Reissue>,
    responses(
        (status = 200, description = "A new pair", body = TokensAnswer,
            headers(("Set-Cookie" = String, description = "The tokens, for a browser"))),
        (status = 401, description = "The token is unknown, used, expired or revoked",
            body = tourin_chassis::http::ErrorBody,
            headers(("Set-Cookie" = String, description = "Takes the tokens away from a browser"))),
        BodyRefused, Unavailable,
    ),
)]
async fn reissue(
    State(state): State<AppState>,
    cookies: SessionCookies,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Result<Response, ApiError> {
    let body = read_optional::<Reissue>(&headers, body)?.refresh_token.map(|token| token.0);
    let body = body.as_deref().filter(|token| !token.is_empty());
    let presented: Vec<&str> = match body {
        Some(token) => vec![token],
        None => cookies::refresh_tokens(cookies.names, &headers).collect(),
    };
    let mut ended = Vec::new();
    for token in &presented {
        match state.sessions.renew(token).await {
            Ok(tokens) => {
                let answer = TokensAnswer::new(&tokens, cookies.sent || body.is_none());
                let mut response = with_tokens(&state, cookies.names, &tokens, Json(answer));
                name_ended(&state, response.headers_mut(), &ended);
                return Ok(response);
            }
            // The other tokens may still be valid.
            Err(SessionError::Refused { ended: one }) => ended.extend(one),
            Err(error) => return Err(error.into()),
        }
    }
    let refused = SessionError::Refused { ended: None };
    let mut response = ApiError::from(refused).into_response();
    // Cookies are cleared only for a request that sent them and no token in the body. A request without
    // cookies may come from another site's page: browsers add no cookies to its calls, but accept the
    // cookies of its responses.
    if body.is_none() && !presented.is_empty() {
        cookies::clear(cookies.names, response.headers_mut());
    }
    name_ended(&state, response.headers_mut(), &ended);
    Ok(response)
}

/// Log out
///
/// By whatever tokens are left: an access token that has expired, too, and the cookie
/// of the refresh token. Also answers so where they lead nowhere, or there are none.
#[utoipa::path(
    post, path = "/api/auth/logout", operation_id = "logOut", tag = "auth",
    params(("everywhere" = Option<bool>, Query, description = "End all of the member's sessions")),
    responses(
        (status = 204, description = "The session's tokens work nowhere any more",
            headers(("Set-Cookie" = String, description = "Takes the tokens away from a browser"))),
        QueryRefused, Unavailable,
    ),
    security((), ("bearer" = []), ("cookie" = [])),
)]
async fn log_out(
    State(state): State<AppState>,
    Caller(caller): Caller,
    cookies: SessionCookies,
    headers: HeaderMap,
    params: Params,
) -> Result<Response, ApiError> {
    let everywhere = params.one::<bool>("everywhere")?.unwrap_or(false);
    let named = match &caller {
        Some(Subject::Member { id, session, .. }) => Some((id.as_str(), session.as_str())),
        _ => None,
    };
    let refresh_tokens: Vec<_> = cookies::refresh_tokens(cookies.names, &headers).collect();
    let ended = state.sessions.log_out(named, &refresh_tokens, everywhere).await?;
    Ok(logged_out(&state, cookies.names, &ended))
}

/// The account that is logged in
#[utoipa::path(
    get, path = "/api/auth/me", operation_id = "showMe", tag = "auth",
    responses(
        (status = 200, description = "The account", body = AccountAnswer),
        SessionNeeded, Unavailable,
    ),
    security(("bearer" = []), ("cookie" = [])),
)]
async fn me(State(state): State<AppState>, caller: MemberCaller) -> Result<Response, ApiError> {
    let (account, _) = signed_in(&state, &caller).await?;
    Ok(private(Json(AccountAnswer::from(account))))
}

/// Delete the account and everything that is the member's
///
/// Its id stays taken.
#[utoipa::path(
    post, path = "/api/auth/delete-account", operation_id = "deleteAccount", tag = "auth",
    request_body = Option<DeleteAccount>,
    responses(
        (status = 204, description = "The account is gone and the erasure has begun",
            headers(("Set-Cookie" = String, description = "Takes the tokens away from a browser"))),
        (status = 401, description = "There is no session, it has ended, or the password is wrong",
            body = tourin_chassis::http::ErrorBody),
        BodyRefused, TooManyAttempts, Unavailable,
    ),
    security(("bearer" = []), ("cookie" = [])),
)]
async fn delete_account(
    State(state): State<AppState>,
    caller: MemberCaller,
    cookies: SessionCookies,
    CallSource(source): CallSource,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Result<Response, ApiError> {
    let (account, session) = signed_in(&state, &caller).await?;
    let body = read_optional::<DeleteAccount>(&headers, body)?;
    let proof = Proof { password: body.password.as_ref(), session, source };
    step_up(&state, &account.id, proof, true).await?;
    let ended = state.accounts.delete(&account.id).await?;
    Ok(logged_out(&state, cookies.names, &ended))
}

/// Change the name or the email address
#[utoipa::path(
    post, path = "/api/auth/update-profile", operation_id = "updateProfile", tag = "auth",
    request_body = UpdateProfile,
    responses(
        (status = 200, description = "The account as it is now", body = AccountAnswer),
        (status = 401, description = "There is no session, it has ended, or the password is wrong",
            body = tourin_chassis::http::ErrorBody),
        BodyRefused, TooManyAttempts, Unavailable,
    ),
    security(("bearer" = []), ("cookie" = [])),
)]
async fn update_profile(
    State(state): State<AppState>,
    caller: MemberCaller,
    CallSource(source): CallSource,
    Object(body): Object<UpdateProfile>,
) -> Result<Response, ApiError> {
    let (account, session) = signed_in(&state, &caller).await?;
    let change = body.parse()?;
    let is_sensitive = change.email.as_ref().is_some_and(|email| *email != account.email);
    let proof = Proof { password: body.password.as_ref(), session, source };
    step_up(&state, &account.id, proof, is_sensitive).await?;
    let account = state.accounts.update_profile(&account.id, &change).await?;
    Ok(private(Json(AccountAnswer::from(account))))
}

/// Change the password
///
/// Ends the member's other sessions and the refresh token of this one. A call that brought session
/// cookies gets new ones. Another client logs in again when its access token expires.
#[utoipa::path(
    post, path = "/api/auth/update-password", operation_id = "updatePassword", tag = "auth",
    request_body = UpdatePassword,
    responses(
        (status = 204, description = "The password is changed, other sessions are ended",
            headers(("Set-Cookie" = String, description = "New tokens, for a browser that sent cookies"))),
        (status = 401, description = "There is no session, it has ended, or the old password is wrong",
            body = tourin_chassis::http::ErrorBody),
        BodyRefused, TooManyAttempts, Unavailable,
    ),
    security(("bearer" = []), ("cookie" = [])),
)]
async fn update_password(
    State(state): State<AppState>,
    caller: MemberCaller,
    cookies: SessionCookies,
    CallSource(source): CallSource,
    Object(body): Object<UpdatePassword>,
) -> Result<Response, ApiError> {
    let (account, session) = signed_in(&state, &caller).await?;
    let new = bodies::new_password("newPassword", &body.new_password).map_err(ApiError::invalid)?;
    let refresh_token = RefreshToken::random().map_err(ApiError::internal)?;
    let (old, token) = (&body.old_password.0, refresh_token.hash());
    let requester = Requester::urgent(source);
    let change = state.accounts.update_password(&account.id, session, token, old, &new, &requester);
    let ended = change.await?;
    let mut response = private(StatusCode::NO_CONTENT);
    if cookies.sent {
        match state.sessions.pair_with(&account.id, session, refresh_token).await {
            Ok(Some(tokens)) => {
                state.cookies.set(cookies.names, response.headers_mut(), &tokens);
            }
            Ok(None) => {}
            // The response must not be an error, because the password is changed.
            Err(error) => tracing::warn!(
                %error,
                "no new cookies after a change of the password: the member must log in again"
            ),
        }
    }
    name_ended(&state, response.headers_mut(), &ended);
    Ok(response)
}

/// The password that came with a call, and from where.
struct Proof<'a> {
    password: Option<&'a Typed>,
    session: SessionId,
    source: ClientSource,
}

/// Checks the password that came with a sensitive call. It may be left out unless the settings
/// require it.
async fn step_up(
    state: &AppState,
    member: &MemberId,
    proof: Proof<'_>,
    is_sensitive: bool,
) -> Result<(), ApiError> {
    match proof.password {
        Some(Typed(password)) => {
            let requester = Requester::urgent(proof.source);
            match state.accounts.confirm(member, proof.session, password, &requester).await {
                Ok(_) => Ok(()),
                Err(AccountError::WrongPassword) => {
                    Err(ApiError::unauthenticated(messages::wrong_password()))
                }
                Err(error) => Err(error.into()),
            }
        }
        None if state.step_up && is_sensitive => {
            Err(ApiError::invalid(messages::password_needed()))
        }
        None => Ok(()),
    }
}

/// The caller's account and session. The gateway has verified the token; this checks that the session
/// is still open.
async fn signed_in(
    state: &AppState,
    caller: &MemberCaller,
) -> Result<(Account, SessionId), ApiError> {
    let ended = || ApiError::unauthenticated(messages::session_has_ended());
    let session = SessionId::parse(&caller.session).ok_or_else(ended)?;
    let id = MemberId::parse(&caller.id).map_err(|_| ended())?;
    let account = state.sessions.account(&id, session).await?.ok_or_else(ended)?;
    Ok((account, session))
}

/// A body that may be absent.
fn read_optional<T: DeserializeOwned + Default>(
    headers: &HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Result<T, ApiError> {
    match read_body(headers, &body?)? {
        // Some clients send null for an absent body.
        None | Some(Value::Null) => Ok(T::default()),
        Some(body) => read_value(body).map_err(ApiError::invalid),
    }
}

fn with_tokens(
    state: &AppState,
    names: CookieNames,
    tokens: &TokenPair,
    answer: impl IntoResponse,
) -> Response {
    let mut response = private(answer);
    state.cookies.set(names, response.headers_mut(), tokens);
    response
}

/// A response that caches must not store.
fn private(answer: impl IntoResponse) -> Response {
    let mut response = answer.into_response();
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static(PERSONAL));
    response
}

fn logged_out(state: &AppState, names: CookieNames, ended: &[SessionId]) -> Response {
    let mut response = StatusCode::NO_CONTENT.into_response();
    cookies::clear(names, response.headers_mut());
    name_ended(state, response.headers_mut(), ended);
    response
}

/// Adds the header that tells the gateway which sessions have ended.
pub(super) fn name_ended(state: &AppState, headers: &mut HeaderMap, ended: &[SessionId]) {
    if ended.is_empty() {
        return;
    }
    let until = state.sessions.revoked_until().timestamp();
    let sessions: Vec<_> = ended.iter().map(|id| format!("{id};until={until}")).collect();
    let value =
        HeaderValue::from_str(&sessions.join(", ")).expect("UUIDs and numbers are header-safe");
    headers.insert(SESSION_ENDED_HEADER, value);
}

impl From<attempts::TooManyAttempts> for ApiError {
    fn from(attempts::TooManyAttempts { retry_after }: attempts::TooManyAttempts) -> Self {
        let seconds = retry_after.as_secs() + u64::from(retry_after.subsec_nanos() > 0);
        Self::rate_limited(messages::too_many_attempts(seconds.max(1)), retry_after)
    }
}

impl From<HashingError> for ApiError {
    fn from(error: HashingError) -> Self {
        match error {
            HashingError::Busy => {
                Self::unavailable(messages::too_many_passwords_at_once(), Duration::from_secs(2))
            }
            HashingError::Failed(cause) => Self::internal(cause),
        }
    }
}

impl From<AccountError> for ApiError {
    fn from(error: AccountError) -> Self {
        match error {
            AccountError::Taken => Self::invalid(messages::id_is_taken()),
            AccountError::Gone => Self::unauthenticated(messages::account_is_gone()),
            AccountError::WrongPassword => Self::unauthenticated(messages::wrong_old_password()),
            AccountError::TooManyAttempts(error) => error.into(),
            AccountError::Hashing(error) => error.into(),
            AccountError::Busy => {
                Self::unavailable(tourin_chassis::http::messages::busy(), Duration::from_secs(1))
            }
            AccountError::Store(error) => error.into(),
        }
    }
}

impl From<SessionError> for ApiError {
    fn from(error: SessionError) -> Self {
        match error {
            SessionError::WrongCredentials => Self::unauthenticated(messages::wrong_credentials()),
            SessionError::Refused { .. } => {
                Self::unauthenticated(messages::refresh_token_refused())
            }
            SessionError::TooManyAttempts(error) => error.into(),
            SessionError::Hashing(error) => error.into(),
            SessionError::Store(error) => error.into(),
            SessionError::Token(cause) => Self::internal(cause),
        }
    }
}
