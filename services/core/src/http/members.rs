//! `/api/users`: members as others see them.

use axum::extract::State;
use axum::response::Response;
use serde::Serialize;
use tourin_chassis::http::{ApiError, ErrorBody, Json, Params, Path};
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::openapi::{QueryRefused, Unavailable};
use super::source::CallSource;
use super::{AppState, messages, openapi, page};
use crate::domain::account::{Member, MemberId};

pub(super) fn router() -> OpenApiRouter<AppState> {
    OpenApiRouter::default().routes(routes!(list)).routes(routes!(find))
}

/// A member as others see one.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Member)]
struct MemberAnswer {
    #[schema(schema_with = openapi::member_id)]
    id: String,
    #[schema(schema_with = openapi::name)]
    name: String,
}

impl From<Member> for MemberAnswer {
    fn from(member: Member) -> Self {
        Self { id: member.id.to_string(), name: member.name.as_str().to_owned() }
    }
}

/// Members whose id or name contains a text, by id
///
/// The first 10,000 of them; the totals count no further.
#[utoipa::path(
    get, path = "/api/users", operation_id = "listMembers", tag = "members",
    params(
        ("query" = Option<String>, Query, description = "Text to look for; blank is none"),
        page::PageParams,
    ),
    responses(
        page::PageOf<MemberAnswer>,
        QueryRefused, Unavailable,
    ),
)]
async fn list(
    State(state): State<AppState>,
    CallSource(source): CallSource,
    params: Params,
) -> Result<Response, ApiError> {
    let request = page::request(&params)?;
    let query = params.text("query");
    let members = state.accounts.members(query.as_deref(), request, &source).await?;
    Ok(page::answer(members.map(MemberAnswer::from)))
}

/// A member
#[utoipa::path(
    get, path = "/api/users/{userId}", operation_id = "showMember", tag = "members",
    params(("userId" = String, Path, description = "The member's id")),
    responses(
        (status = 200, description = "The member", body = MemberAnswer),
        (status = 404, description = "No such member", body = ErrorBody),
        Unavailable,
    ),
)]
async fn find(
    State(state): State<AppState>,
    Path(id): Path<String>,
) -> Result<Json<MemberAnswer>, ApiError> {
    let missing = || ApiError::not_found(messages::no_such_member());
    let id = MemberId::parse(&id).map_err(|_| missing())?;
    let member = state.accounts.member(&id).await?.ok_or_else(missing)?;
    Ok(Json(member.into()))
}
