//! `/api/tour-spots`: the list, the map, one spot.
#![allow(unused_qualifications, reason = "utoipa's macro writes them")]

use std::str::FromStr;

use axum::extract::State;
use axum::response::Response;
use http::Method;
use serde::Serialize;
use tourin_chassis::http::{ApiError, Caller, ErrorBody, Json, Message, Parameter, Params, Path};
use tourin_chassis::identity::Subject;
use utoipa::openapi::schema::{ArrayBuilder, ObjectBuilder, Schema, Type};
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::openapi::{QueryRefused, Unavailable};
use super::page::{self, PageOf, PageParams};
use super::{AppState, messages};
use crate::domain::geo::{Bounds, InvalidBounds};
use crate::domain::search::{MAX_QUERY_CHARS, SearchText, SpotFilter, SpotSort, UnknownSort};
use crate::domain::spot::{Spot, SpotId, SpotOverview};
use crate::domain::tag::{Tag, TagSet};

pub(super) fn router() -> OpenApiRouter<AppState> {
    OpenApiRouter::default().routes(routes!(list)).routes(routes!(map)).routes(routes!(find))
}

/// A tour spot in a list.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct TourSpotOverview {
    #[schema(pattern = "^[0-9]+$", example = "1")]
    id: String,
    #[schema(example = "경복궁")]
    name: String,
    #[schema(example = "서울특별시 종로구 사직로 161")]
    address: String,
    /// Decimal degrees (WGS 84).
    #[schema(minimum = -90, maximum = 90)]
    lat: f64,
    /// Decimal degrees (WGS 84).
    #[schema(minimum = -180, maximum = 180)]
    lng: f64,
    /// Null when there is none.
    #[schema(required)]
    image_url: Option<String>,
    #[schema(min_items = 1)]
    tags: Vec<Tag>,
}

impl From<SpotOverview> for TourSpotOverview {
    fn from(spot: SpotOverview) -> Self {
        let SpotOverview { id, name, address, at, tags, image_url } = spot;
        Self {
            id: id.to_string(),
            name,
            address,
            lat: at.lat(),
            lng: at.lng(),
            image_url,
            tags: tags.iter().collect(),
        }
    }
}

/// A tour spot.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct TourSpot {
    #[schema(pattern = "^[0-9]+$", example = "1")]
    id: String,
    #[schema(example = "경복궁")]
    name: String,
    #[schema(example = "서울특별시 종로구 사직로 161")]
    address: String,
    /// Decimal degrees (WGS 84).
    #[schema(minimum = -90, maximum = 90)]
    lat: f64,
    /// Decimal degrees (WGS 84).
    #[schema(minimum = -180, maximum = 180)]
    lng: f64,
    /// Null when there is none.
    #[schema(required)]
    image_url: Option<String>,
    /// Null when there is none.
    #[schema(required)]
    description: Option<String>,
    /// Null when none is known.
    #[schema(required)]
    phone_number: Option<String>,
    #[schema(min_items = 1)]
    tags: Vec<Tag>,
}

impl From<&Spot> for TourSpot {
    fn from(spot: &Spot) -> Self {
        let TourSpotOverview { id, name, address, lat, lng, image_url, tags } =
            spot.overview().into();
        Self {
            id,
            name,
            address,
            lat,
            lng,
            image_url,
            description: spot.content.description().map(ToOwned::to_owned),
            phone_number: spot.content.phone_number().map(ToOwned::to_owned),
            tags,
        }
    }
}

/// The conditions of the list and of the map, for the OpenAPI document.
#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
#[allow(dead_code, reason = "read by utoipa only")]
struct FilterParams {
    /// A text in the name or the address. Every character stands for itself; blank is none.
    #[param(max_length = 100, example = "해운대")]
    query: Option<String>,
    #[param(schema_with = tag_names, required = false)]
    tags: Option<Vec<Tag>>,
    #[param(rename = "customFilters", schema_with = filter_names, required = false)]
    custom_filters: Option<Vec<CustomFilter>>,
}

fn tag_names() -> Schema {
    let (names, old_names) = (Tag::ALL.map(Tag::name), Tag::ALL.map(Tag::old_name));
    let description = "Spots that have at least one of these tags. A tag goes by its name or by its old one \
        (자연 or NATURE), the old one in any case. Repeated or separated by commas.";
    list_of(&[names, old_names].concat(), description)
}

fn filter_names() -> Schema {
    let description = "`bookmarked`, or by its old name `bookmark`: only spots that the caller has bookmarked; \
        needs a session. Repeated or separated by commas.";
    list_of(&["bookmarked", "bookmark"], description)
}

/// A list of some of these words. The schema has the description, because utoipa leaves that of a field with
/// `schema_with` out.
fn list_of(words: &[&str], description: &str) -> Schema {
    let word = ObjectBuilder::new().schema_type(Type::String).enum_values(Some(words.to_vec()));
    ArrayBuilder::new().items(word).description(Some(description)).into()
}

/// A condition on the caller's own data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum CustomFilter {
    /// The caller has bookmarked the spot.
    Bookmarked,
}

impl FromStr for CustomFilter {
    type Err = ApiError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "bookmarked" | "bookmark" => Ok(Self::Bookmarked),
            _ => Err(ApiError::invalid(messages::unknown_filter())),
        }
    }
}

impl Parameter for SpotSort {
    fn refusal(_: &str, _: &UnknownSort) -> Message {
        messages::unknown_sort()
    }
}

/// Ascending or descending by name.
#[derive(ToSchema)]
#[allow(dead_code, reason = "read by utoipa only")]
enum Sort {
    #[schema(rename = "name-asc")]
    NameAscending,
    #[schema(rename = "name-desc")]
    NameDescending,
}

#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
#[allow(dead_code, reason = "read by utoipa only")]
struct SortParam {
    /// By the name's code points, then by id; `name-asc` when not given. `name-desc` is the exact
    /// reverse.
    #[param(inline)]
    sort: Option<Sort>,
}

/// The edges of the map, for the OpenAPI document.
#[derive(IntoParams)]
#[into_params(parameter_in = Query, rename_all = "camelCase")]
#[allow(dead_code, reason = "read by utoipa only")]
struct BoundsParams {
    /// The southern edge in decimal degrees, not above `maxLat`.
    #[param(minimum = -90, maximum = 90, example = 33.0)]
    min_lat: f64,
    /// The western edge in decimal degrees, not above `maxLng`.
    #[param(minimum = -180, maximum = 180, example = 124.5)]
    min_lng: f64,
    /// The northern edge in decimal degrees.
    #[param(minimum = -90, maximum = 90, example = 38.7)]
    max_lat: f64,
    /// The eastern edge in decimal degrees.
    #[param(minimum = -180, maximum = 180, example = 131.9)]
    max_lng: f64,
}

fn filter(params: &Params, caller: &Caller) -> Result<SpotFilter, ApiError> {
    let query = match params.one::<String>("query")? {
        Some(text) => SearchText::new(&text)
            .map_err(|_| ApiError::invalid(messages::query_too_long(MAX_QUERY_CHARS)))?,
        None => None,
    };
    let tags = TagSet::parse(params.list("tags")).map_err(|_| {
        let known = Tag::ALL.map(|tag| format!("{} ({})", tag.name(), tag.old_name())).join(", ");
        ApiError::invalid(messages::unknown_tag(&known))
    })?;
    let mut bookmarked_by = None;
    for name in params.list("customFilters") {
        match (name.parse()?, &caller.0) {
            (CustomFilter::Bookmarked, Some(Subject::Member { id, .. })) => {
                bookmarked_by = Some(id.clone());
            }
            (CustomFilter::Bookmarked, _) => {
                return Err(ApiError::unauthenticated(messages::filter_needs_session()));
            }
        }
    }
    Ok(SpotFilter { query, tags, bookmarked_by })
}

fn bounds(params: &Params) -> Result<Bounds, ApiError> {
    let edge = |name: &str| {
        params.one::<f64>(name)?.ok_or_else(|| ApiError::invalid(messages::missing_edge(name)))
    };
    Bounds::new(edge("minLat")?, edge("minLng")?, edge("maxLat")?, edge("maxLng")?).map_err(
        |error| {
            ApiError::invalid(match error {
                InvalidBounds::Latitude => messages::invalid_latitude(),
                InvalidBounds::Longitude => messages::invalid_longitude(),
                InvalidBounds::LatitudeOrder => messages::latitudes_out_of_order(),
                InvalidBounds::LongitudeOrder => messages::longitudes_out_of_order(),
            })
        },
    )
}

/// The error when the caller's account was deleted concurrently.
pub(super) fn no_such_member() -> ApiError {
    ApiError::unauthenticated(messages::account_is_gone())
}

/// The error when the spot does not exist.
pub(super) fn no_such_spot() -> ApiError {
    ApiError::not_found(messages::no_such_spot())
}

/// Tour spots, by name
#[utoipa::path(
    get, path = "/api/tour-spots",
    operation_id = "listTourSpots", tag = "tour spots",
    params(FilterParams, SortParam, PageParams),
    responses(
        PageOf<TourSpotOverview>,
        (status = 401, description = "`customFilters=bookmarked` without a session",
            body = ErrorBody),
        QueryRefused, Unavailable,
    ),
    security((), ("bearer" = []), ("cookie" = [])),
)]
async fn list(
    State(state): State<AppState>,
    caller: Caller,
    params: Params,
) -> Result<Response, ApiError> {
    let request = page::request(&params)?;
    let sort = params.one::<SpotSort>("sort")?.unwrap_or_default();
    let filter = filter(&params, &caller)?;
    let found = state.content.spots.search(&filter, sort, request).await?;
    let spots = found.ok_or_else(no_such_member)?;
    Ok(page::answer(spots.map(TourSpotOverview::from)))
}

/// Tour spots in a box of the map
///
/// By id. At most 500, unless the operator set another bound; when more match, some from all over
/// the box, the same ones for the same box and catalogue.
#[utoipa::path(
    get, path = "/api/tour-spots/map",
    operation_id = "mapTourSpots", tag = "tour spots",
    params(BoundsParams, FilterParams),
    responses(
        (status = 200, description = "The spots in the box", body = Vec<TourSpotOverview>),
        (status = 401, description = "`customFilters=bookmarked` without a session",
            body = ErrorBody),
        QueryRefused, Unavailable,
    ),
    security((), ("bearer" = []), ("cookie" = [])),
)]
async fn map(
    State(state): State<AppState>,
    caller: Caller,
    params: Params,
) -> Result<Json<Vec<TourSpotOverview>>, ApiError> {
    let bounds = bounds(&params)?;
    let filter = filter(&params, &caller)?;
    let found = state.content.spots.map(&filter, &bounds).await?;
    let spots = found.ok_or_else(no_such_member)?;
    Ok(Json(spots.into_iter().map(TourSpotOverview::from).collect()))
}

/// A tour spot
///
/// A successful answer counts as a view of the spot by the caller.
#[utoipa::path(
    get, path = "/api/tour-spots/{id}",
    operation_id = "showTourSpot", tag = "tour spots",
    params(("id" = String, Path, description = "The spot's id", example = "1")),
    responses(
        (status = 200, description = "The spot", body = TourSpot),
        (status = 404, description = "No such spot", body = ErrorBody),
        Unavailable,
    ),
    security((), ("bearer" = []), ("cookie" = [])),
)]
async fn find(
    State(state): State<AppState>,
    method: Method,
    caller: Caller,
    Path(id): Path<String>,
) -> Result<Json<TourSpot>, ApiError> {
    let id: SpotId = id.parse().map_err(|_| no_such_spot())?;
    let spot = state.content.spots.find(id).await?.ok_or_else(no_such_spot)?;
    // HEAD requests come here too, but are not views.
    if method == Method::GET {
        match caller.0 {
            Some(Subject::Member { id: viewer, .. }) => state.content.views.record(viewer, id),
            Some(Subject::Visitor { pseudonym }) => state.content.views.record(pseudonym, id),
            None => {}
        }
    }
    Ok(Json(TourSpot::from(&spot)))
}
