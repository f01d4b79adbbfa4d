//! The endpoints for recommendations.

use axum::extract::State;
use tourin_chassis::http::{ApiError, ErrorBody, Json, MemberCaller, Params, Path};

use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::openapi::Unavailable;
use super::{TourSpotOverview, messages, unavailable};
use crate::app::recommend::Recommender;
use crate::domain::spot::{Spot, SpotId};

/// The maximum number of spots in a response.
const MAX_K: usize = 100;
/// The default number of spots in the trend and in personal recommendations.
const DEFAULT_K: usize = 5;
/// The default number of similar spots.
const DEFAULT_SIMILAR_K: usize = 10;

pub(super) fn router() -> OpenApiRouter<Recommender> {
    OpenApiRouter::new()
        .routes(routes!(trend))
        .routes(routes!(personalized))
        .routes(routes!(similar))
}

/// What is trending
///
/// Spots by their recent views and bookmarks, whose weight decays with age; best first. Only spots
/// with recent views or bookmarks are included, so there may be fewer than `k`, or none.
#[utoipa::path(
    get,
    path = "/api/recommendations/trend",
    operation_id = "trend",
    tag = "recommendations",
    params(("k" = Option<i32>, Query, description = "At most this many spots", minimum = 0, maximum = 100, example = 5)),
    responses(
        (status = 200, description = "Up to k spots, best first", body = Vec<TourSpotOverview>),
        (status = 401, description = "No session", body = ErrorBody),
        (status = 422, description = "k is not a whole number from 0 to 100", body = ErrorBody),
        Unavailable,
    ),
    security(("bearer" = []), ("cookie" = [])),
)]
async fn trend(
    State(recommender): State<Recommender>,
    _member: MemberCaller,
    params: Params,
) -> Result<Json<Vec<TourSpotOverview>>, ApiError> {
    let k = k(&params, DEFAULT_K)?;
    let spots = recommender.trend(k).await.map_err(unavailable)?;
    Ok(overviews(spots))
}

/// Recommendations for this member
///
/// Based on the member's views and bookmarks and on those of members with common spots. Without
/// such members, spots with similar tags nearby. A newcomer gets the trend. Never a spot that the
/// member has viewed or bookmarked.
#[utoipa::path(
    get,
    path = "/api/recommendations/personalized",
    operation_id = "personalized",
    tag = "recommendations",
    params(("k" = Option<i32>, Query, description = "At most this many spots", minimum = 0, maximum = 100, example = 5)),
    responses(
        (status = 200, description = "Up to k spots, best first", body = Vec<TourSpotOverview>),
        (status = 401, description = "No session", body = ErrorBody),
        (status = 422, description = "k is not a whole number from 0 to 100", body = ErrorBody),
        Unavailable,
    ),
    security(("bearer" = []), ("cookie" = [])),
)]
async fn personalized(
    State(recommender): State<Recommender>,
    member: MemberCaller,
    params: Params,
) -> Result<Json<Vec<TourSpotOverview>>, ApiError> {
    let k = k(&params, DEFAULT_K)?;
    let spots = recommender.personalized(&member.id, k).await.map_err(unavailable)?;
    Ok(overviews(spots))
}

/// Spots like this one
///
/// Spots that members who viewed or bookmarked this one also viewed or bookmarked, then nearby spots
/// with its tags; best first.
#[utoipa::path(
    get,
    path = "/api/tour-spots/{id}/similar",
    operation_id = "similar",
    tag = "recommendations",
    params(
        ("id" = String, Path, description = "The spot's id", example = "1"),
        ("k" = Option<i32>, Query, description = "At most this many spots", minimum = 0, maximum = 100, example = 10),
    ),
    responses(
        (status = 200, description = "Up to k spots, best first", body = Vec<TourSpotOverview>),
        (status = 404, description = "No such spot", body = ErrorBody),
        (status = 422, description = "k is not a whole number from 0 to 100", body = ErrorBody),
        Unavailable,
    ),
)]
async fn similar(
    State(recommender): State<Recommender>,
    Path(id): Path<String>,
    params: Params,
) -> Result<Json<Vec<TourSpotOverview>>, ApiError> {
    let k = k(&params, DEFAULT_SIMILAR_K)?;
    let no_such_spot = || ApiError::not_found(messages::no_such_spot());
    let id: SpotId = id.parse().map_err(|_| no_such_spot())?;
    let spots = recommender.similar(id, k).await.map_err(unavailable)?;
    Ok(overviews(spots.ok_or_else(no_such_spot)?))
}

fn k(params: &Params, default: usize) -> Result<usize, ApiError> {
    match params.one::<usize>("k") {
        Ok(None) => Ok(default),
        Ok(Some(k)) if k <= MAX_K => Ok(k),
        Ok(Some(_)) | Err(_) => Err(ApiError::invalid(messages::invalid_k(MAX_K))),
    }
}

fn overviews(spots: Vec<Spot>) -> Json<Vec<TourSpotOverview>> {
    Json(spots.into_iter().map(TourSpotOverview::from).collect())
}
