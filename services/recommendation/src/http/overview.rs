//! A spot in a list. Its JSON and its schema, with descriptions, must be the same as core's.

use serde::Serialize;

use crate::domain::spot::Spot;

/// A tour spot in a list.
#[derive(Debug, Clone, PartialEq, Serialize, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct TourSpotOverview {
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
    #[schema(value_type = Vec<Tag>, min_items = 1)]
    tags: Vec<String>,
}

/// What kind of place a tour spot is.
#[derive(utoipa::ToSchema)]
#[schema(as = TourSpotTag)]
#[allow(dead_code, reason = "for the document: this service keeps tags as core sends them")]
enum Tag {
    #[schema(rename = "자연")]
    Nature,
    #[schema(rename = "역사")]
    History,
    #[schema(rename = "휴양")]
    Rest,
    #[schema(rename = "체험")]
    Experience,
    #[schema(rename = "산업")]
    Industry,
    #[schema(rename = "건축/조형")]
    Architecture,
    #[schema(rename = "문화")]
    Culture,
    #[schema(rename = "축제")]
    Festival,
    #[schema(rename = "공연/행사")]
    Performance,
}

impl From<Spot> for TourSpotOverview {
    fn from(spot: Spot) -> Self {
        Self {
            id: spot.id.to_string(),
            name: spot.name,
            address: spot.address,
            lat: spot.coordinates.lat,
            lng: spot.coordinates.lng,
            image_url: spot.image_url,
            tags: spot.tags,
        }
    }
}
