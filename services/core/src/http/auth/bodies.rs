//! What the calls under `/api/auth` take and answer.

use serde::{Deserialize, Serialize};
use tourin_chassis::http::{ApiError, Message};
use utoipa::ToSchema;

use super::super::{messages, openapi};
use crate::app::sessions::TokenPair;
use crate::domain::account::{Account, Email, MemberId, Name, ProfileChange};
use crate::domain::password::Password;

/// A secret as typed: not shown in debug output.
#[derive(Clone, Default, Deserialize)]
#[serde(transparent)]
pub(super) struct Typed(pub(super) String);

impl std::fmt::Debug for Typed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Typed(..)")
    }
}

/// A new account.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct SignUp {
    #[schema(schema_with = openapi::member_id)]
    id: String,
    #[schema(schema_with = openapi::password)]
    password: Typed,
    #[schema(schema_with = openapi::name)]
    name: String,
    #[schema(schema_with = openapi::email)]
    email: String,
}

impl SignUp {
    /// The parsed parts, or all their errors.
    pub(super) fn parse(&self) -> Result<(MemberId, Password, Name, Email), ApiError> {
        let parts = (
            MemberId::parse(&self.id).map_err(|_| invalid_id()),
            new_password("password", &self.password),
            Name::parse(&self.name).map_err(|_| invalid_name()),
            Email::parse(&self.email).map_err(|_| invalid_email()),
        );
        match parts {
            (Ok(id), Ok(password), Ok(name), Ok(email)) => Ok((id, password, name, email)),
            (id, password, name, email) => {
                Err(invalid([id.err(), password.err(), name.err(), email.err()]))
            }
        }
    }
}

/// All errors in one message.
fn invalid(reasons: impl IntoIterator<Item = Option<Message>>) -> ApiError {
    let reasons: Vec<_> = reasons.into_iter().flatten().collect();
    ApiError::invalid(Message::all(&reasons))
}

fn invalid_id() -> Message {
    messages::invalid_id(MemberId::MIN_CHARS, MemberId::MAX_CHARS)
}

fn invalid_name() -> Message {
    messages::invalid_name(Name::MIN_CHARS, Name::MAX_CHARS)
}

fn invalid_email() -> Message {
    messages::invalid_email(Email::MAX_CHARS)
}

/// A password that satisfies the rules for new ones. `field` is how the client named it.
pub(super) fn new_password(field: &'static str, typed: &Typed) -> Result<Password, Message> {
    let (min, max) = (Password::MIN_CHARS, Password::MAX_CHARS);
    let password = Password::parse(field, &typed.0)
        .map_err(|_| messages::invalid_password(field, min, max, Password::SYMBOLS))?;
    if password.is_common() { Err(messages::common_password(field)) } else { Ok(password) }
}

/// Who logs in.
#[derive(Debug, Deserialize, ToSchema)]
pub(super) struct LogIn {
    #[schema(example = "hana12345")]
    pub(super) id: String,
    #[schema(schema_with = openapi::typed_password)]
    pub(super) password: Typed,
}

/// A refresh token, where the cookie does not carry it.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct Reissue {
    #[schema(value_type = Option<String>)]
    pub(super) refresh_token: Option<Typed>,
}

/// What to change of the profile; what is left out, or null, stays.
#[derive(Debug, Deserialize, ToSchema)]
pub(super) struct UpdateProfile {
    #[schema(schema_with = openapi::optional_name, required = false)]
    name: Option<String>,
    #[schema(schema_with = openapi::optional_email, required = false)]
    email: Option<String>,
    /// Must be right if it is there; the service may require it for a change of the address
    #[schema(value_type = Option<String>)]
    pub(super) password: Option<Typed>,
}

/// The password, for calls that work without it unless the service requires it.
#[derive(Debug, Default, Deserialize, ToSchema)]
pub(super) struct DeleteAccount {
    /// Must be right if it is there; the service may require it
    #[schema(value_type = Option<String>)]
    pub(super) password: Option<Typed>,
}

impl UpdateProfile {
    /// The parsed change, or all its errors.
    pub(super) fn parse(&self) -> Result<ProfileChange, ApiError> {
        let name = self.name.as_deref().map(Name::parse).transpose();
        let email = self.email.as_deref().map(Email::parse).transpose();
        let name = name.map_err(|_| invalid_name());
        let email = email.map_err(|_| invalid_email());
        match (name, email) {
            (Ok(name), Ok(email)) => Ok(ProfileChange { name, email }),
            (name, email) => Err(invalid([name.err(), email.err()])),
        }
    }
}

/// The old password and the one to replace it.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct UpdatePassword {
    #[schema(schema_with = openapi::typed_password)]
    pub(super) old_password: Typed,
    #[schema(schema_with = openapi::password)]
    pub(super) new_password: Typed,
}

/// An account as its member sees it.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Account)]
pub(super) struct AccountAnswer {
    #[schema(schema_with = openapi::member_id)]
    id: String,
    #[schema(schema_with = openapi::name)]
    name: String,
    #[schema(schema_with = openapi::email)]
    email: String,
}

impl From<Account> for AccountAnswer {
    fn from(account: Account) -> Self {
        Self {
            id: account.id.to_string(),
            name: account.name.as_str().to_owned(),
            email: account.email.as_str().to_owned(),
        }
    }
}

/// A new pair of tokens: in the cookies alone for a call that brought session cookies
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = Tokens)]
pub(super) struct TokensAnswer {
    /// Send it as `Authorization: Bearer ...`
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = String, required = false)]
    access_token: Option<String>,
    /// Good for one reissue
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = String, required = false, min_length = 43, max_length = 43)]
    refresh_token: Option<String>,
    #[schema(pattern = "^Bearer$")]
    token_type: &'static str,
    /// Seconds for which the access token holds
    #[schema(minimum = 0)]
    expires_in: i64,
}

impl TokensAnswer {
    /// The answer to a call that brought session cookies, or none.
    pub(super) fn new(pair: &TokenPair, cookies_sent: bool) -> Self {
        let (access, refresh) = (&pair.access, &pair.refresh_token);
        Self {
            access_token: (!cookies_sent).then(|| access.token.clone()),
            refresh_token: (!cookies_sent).then(|| refresh.expose()),
            token_type: "Bearer",
            expires_in: (access.expires_at - access.issued_at).num_seconds(),
        }
    }
}

/// An account and its new session's tokens.
#[derive(Serialize, ToSchema)]
#[schema(as = LoggedIn)]
pub(super) struct LoggedInAnswer {
    #[serde(flatten)]
    pub(super) account: AccountAnswer,
    #[serde(flatten)]
    pub(super) tokens: TokensAnswer,
}
