//! Reviews of tour spots, and who likes them.

use axum::extract::State;
use axum::response::Response;
use chrono::{DateTime, Utc};
use http::StatusCode;
use serde::{Deserialize, Serialize};
use tourin_chassis::http::{ApiError, ErrorBody, Json, MemberCaller, Params, Path};

use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::body::Object;
use super::openapi::{BodyRefused, QueryRefused, SessionNeeded, Unavailable};
use super::page::{self, PageOf, PageParams};
use super::spots::{no_such_member, no_such_spot};
use super::{AppState, messages};
use crate::app::reviews::{Deleted, Liked, Written};
use crate::domain::review::{MAX_CONTENT_CHARS, Review, ReviewContent, ReviewId};
use crate::domain::spot::SpotId;

/// Most reviews per query of likes.
const MAX_LIKES: usize = 100;

pub(super) fn router() -> OpenApiRouter<AppState> {
    OpenApiRouter::default()
        .routes(routes!(list, write))
        .routes(routes!(delete))
        .routes(routes!(like))
        .routes(routes!(likes))
}

/// What a member wrote about a spot.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = Review)]
struct ReviewAnswer {
    #[schema(pattern = "^[0-9]+$")]
    id: String,
    #[schema(pattern = "^[0-9]+$")]
    tour_spot_id: String,
    user_id: String,
    #[schema(value_type = String, format = DateTime)]
    created_at: DateTime<Utc>,
    #[schema(min_length = 1, max_length = 500)]
    content: String,
    #[schema(minimum = 0)]
    like_count: u64,
}

impl From<Review> for ReviewAnswer {
    fn from(review: Review) -> Self {
        Self {
            id: review.id.to_string(),
            tour_spot_id: review.spot_id.to_string(),
            user_id: review.user_id,
            created_at: review.created_at,
            content: review.content,
            like_count: review.like_count,
        }
    }
}

/// A review to keep.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
struct NewReview {
    /// The caller's own id.
    user_id: String,
    /// At least one character is visible. Kept in Unicode NFC, which is counted; a line break is kept as
    /// one line feed, a tab as a space, and no other control character is kept.
    #[schema(min_length = 1, max_length = 500, pattern = r"\S")]
    content: String,
}

/// Whether the caller likes a review.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
struct NewLike {
    /// The caller's own id.
    user_id: String,
    liked: bool,
}

/// Whether a member likes a review.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
struct ReviewLike {
    user_id: String,
    #[schema(pattern = "^[0-9]+$")]
    tour_spot_review_id: String,
    liked: bool,
}

fn no_such_review() -> ApiError {
    ApiError::not_found(messages::no_such_review())
}

/// Checks that the body's member is the session's.
fn own(caller: &MemberCaller, user_id: &str) -> Result<(), ApiError> {
    if caller.id == user_id {
        Ok(())
    } else {
        Err(ApiError::forbidden(messages::user_id_is_not_the_sessions()))
    }
}

/// A spot's reviews, newest first
#[utoipa::path(
    get, path = "/api/tour-spots/{id}/reviews",
    operation_id = "listReviews", tag = "reviews",
    params(("id" = String, Path, description = "The spot's id"), PageParams),
    responses(
        PageOf<ReviewAnswer>,
        (status = 404, description = "No such spot", body = ErrorBody),
        QueryRefused, Unavailable,
    ),
)]
async fn list(
    State(state): State<AppState>,
    Path(spot): Path<String>,
    params: Params,
) -> Result<Response, ApiError> {
    let spot: SpotId = spot.parse().map_err(|_| no_such_spot())?;
    let request = page::request(&params)?;
    let found = state.content.reviews.page(spot, request).await?;
    Ok(page::answer(found.ok_or_else(no_such_spot)?.map(ReviewAnswer::from)))
}

/// Review a spot
#[utoipa::path(
    post, path = "/api/tour-spots/{id}/reviews",
    operation_id = "writeReview", tag = "reviews",
    params(("id" = String, Path, description = "The spot's id")),
    request_body = NewReview,
    responses(
        (status = 201, description = "The review", body = ReviewAnswer),
        (status = 403, description = "The body's `userId` must be the caller's own id",
            body = ErrorBody),
        (status = 404, description = "No such spot", body = ErrorBody),
        SessionNeeded, BodyRefused, Unavailable,
    ),
    security(("bearer" = []), ("cookie" = [])),
)]
async fn write(
    State(state): State<AppState>,
    caller: MemberCaller,
    Path(spot): Path<String>,
    Object(body): Object<NewReview>,
) -> Result<(StatusCode, Json<ReviewAnswer>), ApiError> {
    own(&caller, &body.user_id)?;
    let content = ReviewContent::new(&body.content)
        .map_err(|_| ApiError::invalid(messages::invalid_content(MAX_CONTENT_CHARS)))?;
    let spot: SpotId = spot.parse().map_err(|_| no_such_spot())?;
    match state.content.reviews.write(&caller.id, spot, &content).await? {
        Written::Written(review) => Ok((StatusCode::CREATED, Json(review.into()))),
        Written::NoSuchSpot => Err(no_such_spot()),
        Written::NoSuchMember => Err(no_such_member()),
    }
}

/// Delete one's own review
#[utoipa::path(
    delete, path = "/api/tour-spot-reviews/{id}",
    operation_id = "deleteReview", tag = "reviews",
    params(("id" = String, Path, description = "The review's id")),
    responses(
        (status = 204, description = "The review is gone"),
        (status = 403, description = "Another member's review", body = ErrorBody),
        (status = 404, description = "No such review", body = ErrorBody),
        SessionNeeded, Unavailable,
    ),
    security(("bearer" = []), ("cookie" = [])),
)]
async fn delete(
    State(state): State<AppState>,
    caller: MemberCaller,
    Path(review): Path<String>,
) -> Result<StatusCode, ApiError> {
    let review: ReviewId = review.parse().map_err(|_| no_such_review())?;
    match state.content.reviews.delete(&caller.id, review).await? {
        Deleted::Deleted => Ok(StatusCode::NO_CONTENT),
        Deleted::NotYours => Err(ApiError::forbidden(messages::another_members_review())),
        Deleted::NotThere => Err(no_such_review()),
        Deleted::NoSuchMember => Err(no_such_member()),
    }
}

/// Like a review, or not
///
/// Idempotent both ways.
#[utoipa::path(
    put, path = "/api/tour-spot-reviews/{id}/likes",
    operation_id = "likeReview", tag = "reviews",
    params(("id" = String, Path, description = "The review's id")),
    request_body = NewLike,
    responses(
        (status = 200, description = "It is so now", body = ReviewLike),
        (status = 403, description = "The body's `userId` must be the caller's own id",
            body = ErrorBody),
        (status = 404, description = "No such review", body = ErrorBody),
        SessionNeeded, BodyRefused, Unavailable,
    ),
    security(("bearer" = []), ("cookie" = [])),
)]
async fn like(
    State(state): State<AppState>,
    caller: MemberCaller,
    Path(review): Path<String>,
    Object(body): Object<NewLike>,
) -> Result<Json<ReviewLike>, ApiError> {
    own(&caller, &body.user_id)?;
    let review: ReviewId = review.parse().map_err(|_| no_such_review())?;
    match state.content.reviews.like(&caller.id, review, body.liked).await? {
        // The reviews of its spot show the number of likes.
        Liked::Changed(spot) => state.invalidations.spot_changed(spot),
        Liked::Unchanged => {}
        Liked::NoSuchReview => return Err(no_such_review()),
        Liked::NoSuchMember => return Err(no_such_member()),
    }
    Ok(Json(ReviewLike {
        user_id: caller.id,
        tour_spot_review_id: review.to_string(),
        liked: body.liked,
    }))
}

/// Which of these reviews a member likes, in the order asked
///
/// A review that does not exist is not liked.
#[utoipa::path(
    get, path = "/api/users/{userId}/tour-spot-reviews/likes",
    operation_id = "listReviewLikes", tag = "reviews",
    params(
        ("userId" = String, Path, description = "The member's id"),
        ("tourSpotReviewIds" = Option<Vec<String>>, Query, max_items = 100,
            description = "At most 100 ids of reviews, repeated or separated by commas"),
    ),
    responses(
        (status = 200, description = "One entry per id", body = Vec<ReviewLike>),
        (status = 404, description = "No such member", body = ErrorBody),
        QueryRefused, Unavailable,
    ),
)]
async fn likes(
    State(state): State<AppState>,
    Path(user_id): Path<String>,
    params: Params,
) -> Result<Json<Vec<ReviewLike>>, ApiError> {
    let ids = params.list("tourSpotReviewIds");
    if ids.len() > MAX_LIKES {
        return Err(ApiError::invalid(messages::too_many_reviews_at_once(MAX_LIKES)));
    }
    let reviews: Vec<ReviewId> = ids
        .iter()
        .map(|id| id.parse())
        .collect::<Result<_, _>>()
        .map_err(|_| ApiError::invalid(messages::invalid_review_id()))?;
    let liked = state.content.reviews.likes(&user_id, &reviews).await?;
    let liked = liked.ok_or_else(|| ApiError::not_found(messages::no_such_member()))?;
    let answers = ids.into_iter().zip(liked).map(|(id, liked)| ReviewLike {
        user_id: user_id.clone(),
        tour_spot_review_id: id,
        liked,
    });
    Ok(Json(answers.collect()))
}
