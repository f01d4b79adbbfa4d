//! The service's part of the OpenAPI 3.1 document, and the parts that its calls share.
//!
//! The gateway merges the parts of all services. `/internal` calls are not in the document: clients
//! cannot reach them.

use std::borrow::Cow;
use std::collections::BTreeMap;

use axum::Router;
use axum::response::IntoResponse;
use axum::routing::get;
use http::header::CONTENT_TYPE;
use tourin_chassis::http::{ErrorBody, ServiceCaller};

use utoipa::openapi::header::HeaderBuilder;
use utoipa::openapi::schema::{ObjectBuilder, Schema, SchemaType, Type};
use utoipa::openapi::security::{ApiKey, ApiKeyValue, HttpAuthScheme, HttpBuilder, SecurityScheme};
use utoipa::openapi::{
    ComponentsBuilder, ContentBuilder, InfoBuilder, OpenApi, OpenApiBuilder, Ref, RefOr, Response,
    ResponseBuilder,
};
use utoipa::{IntoResponses, PartialSchema, ToSchema};
use utoipa_axum::router::OpenApiRouter;

use tourin_chassis::session_cookies::CookieNames;

use super::AppState;
use crate::domain::account::{Email, MemberId, Name};
use crate::domain::password::Password;
use crate::domain::tag::Tag;

/// The document that the calls are added to.
pub(super) fn document() -> OpenApi {
    let bearer = HttpBuilder::new()
        .scheme(HttpAuthScheme::Bearer)
        .bearer_format("JWT")
        .description(Some("the access token that logging in answered with"))
        .build();
    let cookie = ApiKeyValue::with_description(
        CookieNames::HostPrefixed.access(),
        "the cookie that logging in set; `access_token` over plain HTTP to the local machine",
    );
    OpenApiBuilder::new()
        .info(
            InfoBuilder::new()
                .title("Tourin core")
                .description(Some("Accounts and sessions, tour spots, bookmarks, reviews."))
                .version(env!("CARGO_PKG_VERSION"))
                .build(),
        )
        .components(Some(
            ComponentsBuilder::new()
                .schema(ErrorBody::name(), ErrorBody::schema())
                .security_scheme("bearer", SecurityScheme::Http(bearer))
                .security_scheme("cookie", SecurityScheme::ApiKey(ApiKey::Cookie(cookie)))
                .build(),
        ))
        .build()
}

/// Serves the routes, and their description to other services.
pub(super) fn serve(routes: OpenApiRouter<AppState>) -> Router<AppState> {
    let (router, document) = routes.split_for_parts();
    let text = document.to_json().expect("the document holds strings, numbers and maps");
    let text = bytes::Bytes::from(text);
    router.route(
        "/internal/openapi.json",
        get(move |_: ServiceCaller| async move {
            ([(CONTENT_TYPE, "application/json")], text).into_response()
        }),
    )
}

/// The statuses of a call with a JSON body, besides those of [`Unavailable`].
pub(super) struct BodyRefused;

impl IntoResponses for BodyRefused {
    fn responses() -> BTreeMap<String, RefOr<Response>> {
        errors([
            ("400", "The body is not JSON"),
            ("413", "The body is too large"),
            ("415", "The body is not sent as JSON, by its Content-Type or Content-Encoding"),
            ("422", "A value is not allowed; the message says what is"),
        ])
    }
}

/// The status of an invalid query parameter.
pub(super) struct QueryRefused;

impl IntoResponses for QueryRefused {
    fn responses() -> BTreeMap<String, RefOr<Response>> {
        errors([("422", "A parameter is not allowed; the message says what is")])
    }
}

/// The status of a call that needs a session.
pub(super) struct SessionNeeded;

impl IntoResponses for SessionNeeded {
    fn responses() -> BTreeMap<String, RefOr<Response>> {
        errors([("401", "There is no session, or it has ended")])
    }
}

/// The status of a call that checks passwords.
pub(super) struct TooManyAttempts;

impl IntoResponses for TooManyAttempts {
    fn responses() -> BTreeMap<String, RefOr<Response>> {
        errors([("429", "Too many wrong passwords for this account")])
    }
}

/// The status of every call when a dependency is down or overloaded.
pub(super) struct Unavailable;

impl IntoResponses for Unavailable {
    fn responses() -> BTreeMap<String, RefOr<Response>> {
        errors([("503", "Something that the call needs is down or overloaded")])
    }
}

fn errors<const N: usize>(
    statuses: [(&'static str, &'static str); N],
) -> BTreeMap<String, RefOr<Response>> {
    statuses
        .into_iter()
        .map(|(status, description)| {
            let body = ContentBuilder::new()
                .schema(Some(Ref::from_schema_name(ErrorBody::name())))
                .build();
            let mut response =
                ResponseBuilder::new().description(description).content("application/json", body);
            if matches!(status, "429" | "503") {
                let header = HeaderBuilder::new()
                    .schema(ObjectBuilder::new().schema_type(Type::Integer).minimum(Some(1)))
                    .description(Some("Seconds after which to try again"));
                response = response.header("Retry-After", header.build());
            }
            (status.to_owned(), response.build().into())
        })
        .collect()
}

fn text(pattern: Option<&str>, chars: (usize, usize), example: &str) -> ObjectBuilder {
    ObjectBuilder::new()
        .schema_type(SchemaType::Type(Type::String))
        .pattern(pattern)
        .min_length(Some(chars.0))
        .max_length(Some(chars.1))
        .examples([example])
}

impl PartialSchema for Tag {
    fn schema() -> RefOr<Schema> {
        let names = Tag::ALL.map(Tag::name);
        let schema = ObjectBuilder::new()
            .schema_type(SchemaType::Type(Type::String))
            .description(Some("What kind of place a tour spot is."))
            .enum_values(Some(names));
        schema.into()
    }
}

impl ToSchema for Tag {
    fn name() -> Cow<'static, str> {
        Cow::Borrowed("TourSpotTag")
    }
}

/// [`MemberId`].
pub(super) fn member_id() -> Schema {
    text(Some(MemberId::PATTERN), (MemberId::MIN_CHARS, MemberId::MAX_CHARS), "hana12345")
        .description(Some("Not `anonymous`, in any case"))
        .into()
}

fn name_text() -> ObjectBuilder {
    text(Some(Name::PATTERN), (Name::MIN_CHARS, Name::MAX_CHARS), "김하나").description(Some(
        "Letters of any script, spaces, and ' ’ - . or ·, at least one letter; counted in Unicode \
         NFC. Spaces around it and invisible characters are left out",
    ))
}

/// [`Name`].
pub(super) fn name() -> Schema {
    name_text().into()
}

/// [`Name`], where it may be left out.
pub(super) fn optional_name() -> Schema {
    optional(name_text())
}

/// [`Email`].
pub(super) fn email() -> Schema {
    text(Some(Email::PATTERN), (Email::MIN_CHARS, Email::MAX_CHARS), "hana@example.com").into()
}

/// [`Email`], where it may be left out.
pub(super) fn optional_email() -> Schema {
    optional(text(Some(Email::PATTERN), (Email::MIN_CHARS, Email::MAX_CHARS), "hana@example.com"))
}

/// A new [`Password`].
pub(super) fn password() -> Schema {
    text(Some(Password::PATTERN), (Password::MIN_CHARS, Password::MAX_CHARS), "sea-breeze1!")
        .description(Some(
            "At least one letter (a-z, A-Z), one digit and one of @$!%*?&, no control or invisible \
             character; counted and compared in Unicode NFC (RFC 8265, OpaqueString)",
        ))
        .write_only(Some(true))
        .into()
}

/// A typed password, without rules: a wrong one is not invalid.
pub(super) fn typed_password() -> Schema {
    ObjectBuilder::new()
        .schema_type(SchemaType::Type(Type::String))
        .write_only(Some(true))
        .examples(["sea-breeze1!"])
        .into()
}

fn optional(schema: ObjectBuilder) -> Schema {
    schema.schema_type(SchemaType::from_iter([Type::String, Type::Null])).into()
}
