//! Events of tour spots: exchange `event.tour-spot.ex`, ordered per spot.

use serde::{Deserialize, Serialize};

use super::{Event, InvalidEvent, TOUR_SPOT_EXCHANGE, validation};

/// The bounds of a spot's fields in events. Their sum is far below a consumer's 256 KiB.
pub mod limits {
    /// Characters in a name; at least one.
    pub const NAME_CHARS: usize = 500;
    /// Characters in an address.
    pub const ADDRESS_CHARS: usize = 1_000;
    /// Characters in an image's URL.
    pub const IMAGE_URL_CHARS: usize = 2_048;
    /// Characters in a description.
    pub const DESCRIPTION_CHARS: usize = 20_000;
    /// Characters in a telephone number.
    pub const PHONE_NUMBER_CHARS: usize = 100;
    /// Tags per spot.
    pub const TAGS: usize = 32;
    /// Characters in a tag; at least one.
    pub const TAG_CHARS: usize = 64;
}

/// A spot was added or changed; carries all of its fields.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TourSpotUpsert {
    /// The spot's id.
    pub tourspot_id: String,
    /// Grows with every change of this spot. A replica keeps the highest version and ignores lower ones, so a full
    /// resync and the stream of events can run at once.
    pub version: u64,
    /// The display name.
    pub name: String,
    /// The postal address.
    pub address: String,
    /// Latitude, decimal degrees.
    pub lat: f64,
    /// Longitude, decimal degrees.
    pub lng: f64,
    /// The URL of its picture.
    #[serde(default)]
    pub image_url: Option<String>,
    /// A description of a few sentences.
    #[serde(default)]
    pub description: Option<String>,
    /// Its telephone number.
    #[serde(default)]
    pub phone_number: Option<String>,
    /// Its tags.
    #[serde(default)]
    pub tags: Vec<String>,
}

impl Event for TourSpotUpsert {
    const TYPE: &'static str = "tourSpot.upsert";
    const EXCHANGE: &'static str = TOUR_SPOT_EXCHANGE;

    fn ordering_key(&self) -> String {
        self.tourspot_id.clone()
    }

    fn validate(&self) -> Result<(), InvalidEvent> {
        use validation::text;
        validation::numeric_id("tourspot_id", &self.tourspot_id)?;
        if self.name.trim().is_empty() {
            return Err(InvalidEvent::Field { field: "name", rule: "must not be blank" });
        }
        text("name", &self.name, limits::NAME_CHARS, "must be at most 500 characters")?;
        text("address", &self.address, limits::ADDRESS_CHARS, "must be at most 1000 characters")?;
        if !(-90.0..=90.0).contains(&self.lat) {
            return Err(InvalidEvent::Field { field: "lat", rule: "must be within -90 and 90" });
        }
        if !(-180.0..=180.0).contains(&self.lng) {
            return Err(InvalidEvent::Field { field: "lng", rule: "must be within -180 and 180" });
        }
        let image_url = self.image_url.as_deref().unwrap_or_default();
        text("image_url", image_url, limits::IMAGE_URL_CHARS, "must be at most 2048 characters")?;
        let description = self.description.as_deref().unwrap_or_default();
        text(
            "description",
            description,
            limits::DESCRIPTION_CHARS,
            "must be at most 20000 characters",
        )?;
        let phone = self.phone_number.as_deref().unwrap_or_default();
        text("phone_number", phone, limits::PHONE_NUMBER_CHARS, "must be at most 100 characters")?;
        if self.tags.len() > limits::TAGS {
            return Err(InvalidEvent::Field { field: "tags", rule: "must be at most 32" });
        }
        for tag in &self.tags {
            if tag.trim().is_empty() {
                return Err(InvalidEvent::Field { field: "tags", rule: "must not be blank" });
            }
            text("tags", tag, limits::TAG_CHARS, "must be at most 64 characters each")?;
        }
        Ok(())
    }
}

/// A spot was deleted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TourSpotDelete {
    /// The spot's id.
    pub tourspot_id: String,
    /// Higher than every earlier version of this spot.
    pub version: u64,
}

impl Event for TourSpotDelete {
    const TYPE: &'static str = "tourSpot.delete";
    const EXCHANGE: &'static str = TOUR_SPOT_EXCHANGE;

    fn ordering_key(&self) -> String {
        self.tourspot_id.clone()
    }

    fn validate(&self) -> Result<(), InvalidEvent> {
        validation::numeric_id("tourspot_id", &self.tourspot_id)
    }
}
