//! `/api/users/{userId}/bookmarks`.

use axum::extract::State;
use axum::response::Response;
use http::StatusCode;
use serde::{Deserialize, Serialize};
use tourin_chassis::http::{ApiError, ErrorBody, Json, MemberCaller, Params, Path};

use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::body::Object;
use super::openapi::{BodyRefused, QueryRefused, SessionNeeded, Unavailable};
use super::page::{self, PageOf, PageParams};
use super::spots::{TourSpot, no_such_member, no_such_spot};
use super::{AppState, messages};
use crate::app::bookmarks::{Placed, Removed};
use crate::domain::bookmark::Bookmark;
use crate::domain::spot::SpotId;

pub(super) fn router() -> OpenApiRouter<AppState> {
    OpenApiRouter::default().routes(routes!(list, place)).routes(routes!(find, remove))
}

/// A spot that a member keeps.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = Bookmark)]
struct BookmarkAnswer {
    user_id: String,
    #[schema(pattern = "^[0-9]+$")]
    tour_spot_id: String,
    tour_spot_overview: TourSpot,
}

impl From<Bookmark> for BookmarkAnswer {
    fn from(bookmark: Bookmark) -> Self {
        Self {
            tour_spot_id: bookmark.spot.id.to_string(),
            tour_spot_overview: TourSpot::from(&bookmark.spot),
            user_id: bookmark.user_id,
        }
    }
}

/// What to bookmark.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
struct NewBookmark {
    /// The spot's id.
    #[schema(example = "1")]
    tour_spot_id: String,
}

fn no_such_user() -> ApiError {
    ApiError::not_found(messages::no_such_member())
}

fn own(caller: &MemberCaller, user_id: &str) -> Result<(), ApiError> {
    if caller.id == user_id {
        Ok(())
    } else {
        Err(ApiError::forbidden(messages::another_members_bookmarks()))
    }
}

/// A member's bookmarks, newest first
#[utoipa::path(
    get, path = "/api/users/{userId}/bookmarks",
    operation_id = "listBookmarks", tag = "bookmarks",
    params(("userId" = String, Path, description = "The member's id"), PageParams),
    responses(
        PageOf<BookmarkAnswer>,
        (status = 404, description = "No such member", body = ErrorBody),
        QueryRefused, Unavailable,
    ),
)]
async fn list(
    State(state): State<AppState>,
    Path(user_id): Path<String>,
    params: Params,
) -> Result<Response, ApiError> {
    let request = page::request(&params)?;
    let found = state.content.bookmarks.page(&user_id, request).await?;
    Ok(page::answer(found.ok_or_else(no_such_user)?.map(BookmarkAnswer::from)))
}

/// Bookmark a spot
///
/// Doing it again changes nothing.
#[utoipa::path(
    post, path = "/api/users/{userId}/bookmarks",
    operation_id = "placeBookmark", tag = "bookmarks",
    params(("userId" = String, Path, description = "The caller's own id")),
    request_body = NewBookmark,
    responses(
        (status = 201, description = "The bookmark", body = BookmarkAnswer),
        (status = 403, description = "Another member's bookmarks", body = ErrorBody),
        (status = 404, description = "No such spot", body = ErrorBody),
        SessionNeeded, BodyRefused, Unavailable,
    ),
    security(("bearer" = []), ("cookie" = [])),
)]
async fn place(
    State(state): State<AppState>,
    caller: MemberCaller,
    Path(user_id): Path<String>,
    body: Result<Object<NewBookmark>, ApiError>,
) -> Result<(StatusCode, Json<BookmarkAnswer>), ApiError> {
    own(&caller, &user_id)?;
    let spot: SpotId = body?.0.tour_spot_id.parse().map_err(|_| no_such_spot())?;
    match state.content.bookmarks.place(&user_id, spot).await? {
        Placed::Placed(bookmark) | Placed::AlreadyThere(bookmark) => {
            Ok((StatusCode::CREATED, Json(bookmark.into())))
        }
        Placed::NoSuchSpot => Err(no_such_spot()),
        Placed::NoSuchMember => Err(no_such_member()),
    }
}

/// A member's bookmark of a spot
#[utoipa::path(
    get, path = "/api/users/{userId}/bookmarks/{tourSpotId}",
    operation_id = "showBookmark", tag = "bookmarks",
    params(
        ("userId" = String, Path, description = "The member's id"),
        ("tourSpotId" = String, Path, description = "The spot's id"),
    ),
    responses(
        (status = 200, description = "The bookmark", body = BookmarkAnswer),
        (status = 404, description = "No such bookmark", body = ErrorBody),
        Unavailable,
    ),
)]
async fn find(
    State(state): State<AppState>,
    Path((user_id, spot)): Path<(String, String)>,
) -> Result<Json<BookmarkAnswer>, ApiError> {
    let missing = || ApiError::not_found(messages::no_such_bookmark());
    let spot: SpotId = spot.parse().map_err(|_| missing())?;
    let found = state.content.bookmarks.find(&user_id, spot).await?;
    Ok(Json(found.ok_or_else(missing)?.into()))
}

/// Take a bookmark back
#[utoipa::path(
    delete, path = "/api/users/{userId}/bookmarks/{tourSpotId}",
    operation_id = "removeBookmark", tag = "bookmarks",
    params(
        ("userId" = String, Path, description = "The caller's own id"),
        ("tourSpotId" = String, Path, description = "The spot's id"),
    ),
    responses(
        (status = 204, description = "The bookmark is gone"),
        (status = 403, description = "Another member's bookmark", body = ErrorBody),
        (status = 404, description = "No such bookmark", body = ErrorBody),
        SessionNeeded, Unavailable,
    ),
    security(("bearer" = []), ("cookie" = [])),
)]
async fn remove(
    State(state): State<AppState>,
    caller: MemberCaller,
    Path((user_id, spot)): Path<(String, String)>,
) -> Result<StatusCode, ApiError> {
    own(&caller, &user_id)?;
    let missing = || ApiError::not_found(messages::no_such_bookmark());
    let spot: SpotId = spot.parse().map_err(|_| missing())?;
    match state.content.bookmarks.remove(&user_id, spot).await? {
        Removed::Removed => Ok(StatusCode::NO_CONTENT),
        Removed::NotThere => Err(missing()),
        Removed::NoSuchMember => Err(no_such_member()),
    }
}
